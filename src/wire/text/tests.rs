//! The text dialect: cutting, bounds, wording.

use super::reply::*;
use super::*;
use proptest::prelude::*;

const BULK_MAX: usize = 1 << 20;

/// All commands in a stream and the error that ended it, fed in pieces.
fn commands(bytes: &[u8], piece: usize) -> (Vec<Vec<Vec<u8>>>, Option<TextError>) {
    let mut reader = TextReader::new(BULK_MAX);
    let mut commands = Vec::new();
    for bytes in bytes.chunks(piece) {
        reader.feed(bytes);
        loop {
            match reader.next_command() {
                Ok(Some(words)) => commands.push(words),
                Ok(None) => break,
                Err(error) => return (commands, Some(error)),
            }
        }
    }
    (commands, None)
}

fn words(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|w| w.as_bytes().to_vec()).collect()
}

fn meaning(list: &[&str]) -> Result<TextCommand, String> {
    TextCommand::from_words(words(list))
}

/// Pieces that RESP streams are made of, right and wrong, so that random streams go deep.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let array = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 1..4)
        .prop_map(|words| {
            let mut out = Vec::new();
            put_array(&mut out, words.len());
            for word in &words {
                put_bulk(&mut out, word);
            }
            out
        });
    let scrap = proptest::sample::select(vec![
        "*",
        "$",
        "1",
        "-1",
        "\r\n",
        "\n",
        "*0\r\n",
        "*-1\r\n",
        "$3\r\nabc\r\n",
        "*2\r\n",
        " ",
        "GET k\r\n",
        "set a \"b c\"\n",
        "'x",
        "\"",
        "\\x41",
        "*1\r\n$2\r\nabc",
        "99999999",
    ]);
    let piece = prop_oneof![4 => array, 2 => scrap.prop_map(|s| s.as_bytes().to_vec())];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// However the network cuts a stream, the same commands and the same error come out.
    #[test]
    fn a_stream_reads_the_same_however_it_is_cut(bytes in stream(), piece in 1usize..9) {
        let whole = commands(&bytes, bytes.len().max(1));
        prop_assert_eq!(&commands(&bytes, 1), &whole);
        prop_assert_eq!(&commands(&bytes, piece), &whole);
    }

    /// Words that are written as an array come back, whatever bytes they hold.
    #[test]
    fn arrays_come_back(words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 1..9)) {
        let mut out = Vec::new();
        put_array(&mut out, words.len());
        for word in &words {
            put_bulk(&mut out, word);
        }
        let (read, error) = commands(&out, out.len());
        prop_assert_eq!(error, None);
        prop_assert_eq!(read, vec![words]);
    }

    /// Noise never panics, in a line or as a command.
    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (read, _) = commands(&noise, noise.len().max(1));
        for words in read {
            prop_assert!(!words.is_empty());
            if let Err(text) = TextCommand::from_words(words) {
                prop_assert!(!text.contains(['\r', '\n']), "{}", text);
            }
        }
    }
}

/// A client library sends several commands at once; blank lines and empty arrays between them are
/// passed over.
#[test]
fn pipelined_commands_come_out_in_order() {
    let bytes = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n\r\n*0\r\n*-1\r\nPING\r\n*1\r\n$4\r\nQUIT\r\n";
    let (read, error) = commands(bytes, bytes.len());
    assert_eq!(error, None);
    assert_eq!(read, [words(&["GET", "a"]), words(&["PING"]), words(&["QUIT"])]);
}

/// Typed lines are quoted as in Redis.
#[test]
fn typed_lines_are_split_as_redis_splits_them() {
    let cases: [(&str, Option<&[&[u8]]>); 15] = [
        ("", Some(&[])),
        ("  \t ", Some(&[])),
        ("SET city Oslo", Some(&[b"SET", b"city", b"Oslo"])),
        ("  a \x0B  b  ", Some(&[b"a", b"b"])),
        (r#""a b\n\x00" 'raw'"#, Some(&[b"a b\n\0", b"raw"])),
        (r#""\r\t\b\a\\\"\q""#, Some(&[b"\r\t\x08\x07\\\"q"])),
        (r#""\xfF\xg1""#, Some(&[b"\xFFxg1"])),
        (r"'it\'s \n'", Some(&[br"it's \n"])),
        (r#""" ''"#, Some(&[b"", b""])),
        (r#"ab"c d""#, Some(&[b"abc d"])),
        (r#""a"b"#, None),
        (r#""a"#, None),
        ("'a", None),
        (r#""a\"#, None),
        (r"'a\'", None),
    ];
    for (line, expected) in cases {
        let expected = expected.map(|w| w.iter().map(|w| w.to_vec()).collect::<Vec<_>>());
        assert_eq!(split_words(line.as_bytes()), expected, "{line}");
    }
}

/// Broken streams end with the words that client libraries know from Redis.
#[test]
fn protocol_errors_are_worded_as_in_redis() {
    let cases: [(&str, &str); 12] = [
        ("*x\r\n", "invalid multibulk length"),
        ("*+1\r\n", "invalid multibulk length"),
        ("*131074\r\n", "invalid multibulk length"),
        ("*99999999999999999999\r\n", "invalid multibulk length"),
        ("*1\r\n:5\r\n", "expected '$', got ':'"),
        ("*1\r\n$x\r\n", "invalid bulk length"),
        ("*1\r\n$-1\r\n", "invalid bulk length"),
        ("*1\r\n$1048577\r\n", "invalid bulk length"),
        ("*1\r\n$4294967295\r\n", "invalid bulk length"),
        ("*1\r\n$1\r\nabc\r\n", "expected CRLF after a bulk string"),
        ("get \"a\r\n", "unbalanced quotes in request"),
        ("get 'a'b\r\n", "unbalanced quotes in request"),
    ];
    for (bytes, expected) in cases {
        let (read, error) = commands(bytes.as_bytes(), bytes.len());
        assert!(read.is_empty(), "{bytes}");
        let text = error.map(|e| e.to_string());
        assert_eq!(text, Some(format!("ERR Protocol error: {expected}")), "{bytes}");
    }
}

/// After an error the stream is lost: what follows is never taken for a command.
#[test]
fn nothing_is_read_behind_an_error() {
    let mut reader = TextReader::new(BULK_MAX);
    reader.feed(b"*1\r\n!");
    let error = reader.next_command().unwrap_err();
    reader.feed(b"\r\nDEL everything\r\n");
    assert_eq!(reader.next_command(), Err(error));
}

/// Lines without end are refused at their bound, each kind with its own words, in one piece and
/// byte by byte.
#[test]
fn endless_lines_are_refused_at_the_bound() {
    let cases = [
        ("", 'a', TextError::LineTooLong),
        ("*", '1', TextError::CountLineTooLong),
        ("*1\r\n$", '1', TextError::LengthLineTooLong),
    ];
    for (start, filler, expected) in cases {
        let line_at = start.rfind('\n').map_or(0, |at| at + 1);
        let mut bytes = start.as_bytes().to_vec();
        bytes.resize(line_at + LINE_BYTES_MAX - 1, filler as u8);
        assert_eq!(commands(&bytes, bytes.len()), (vec![], None));
        bytes.push(filler as u8);
        for piece in [1, bytes.len()] {
            assert_eq!(commands(&bytes, piece), (vec![], Some(expected)));
        }
        bytes.push(b'\n');
        assert_eq!(commands(&bytes, bytes.len()), (vec![], Some(expected)));
    }
}

/// Many large words in one command are refused by their sum before the last of them arrives, and
/// promises cost no memory.
#[test]
fn a_command_is_bounded_as_a_whole() {
    let mut reader = TextReader::new(COMMAND_BYTES_MAX);
    reader.feed(format!("*131073\r\n${COMMAND_BYTES_MAX}\r\n").as_bytes());
    assert_eq!(reader.next_command(), Ok(None));
    assert!(reader.memory() < 1024, "{}", reader.memory());

    let mut reader = TextReader::new(BULK_MAX);
    reader.feed(b"*20\r\n");
    let bulk = [format!("${BULK_MAX}\r\n").as_bytes(), &vec![b'x'; BULK_MAX], b"\r\n"].concat();
    for _ in 0..COMMAND_BYTES_MAX / BULK_MAX {
        reader.feed(&bulk);
        assert_eq!(reader.next_command(), Ok(None));
    }
    reader.feed(b"$1\r\n");
    assert_eq!(reader.next_command(), Err(TextError::CommandTooLong));
}

/// A large value passes; its memory is given back with the next small command.
#[test]
fn memory_for_a_large_word_is_given_back() {
    let mut reader = TextReader::new(BULK_MAX);
    let bulk =
        [format!("*1\r\n${BULK_MAX}\r\n").as_bytes(), &vec![b'x'; BULK_MAX], b"\r\n"].concat();
    reader.feed(&bulk);
    assert_eq!(reader.next_command().unwrap().unwrap()[0].len(), BULK_MAX);
    reader.feed(b"PING\r\n");
    assert_eq!(reader.next_command(), Ok(Some(words(&["PING"]))));
    assert!(reader.memory() < 1024, "{}", reader.memory());
}

/// Commands are known in any case; wrong ones are answered as Redis answers them.
#[test]
fn words_become_commands() {
    let b = |s: &str| s.as_bytes().to_vec();
    assert_eq!(meaning(&["pInG"]), Ok(TextCommand::Ping { message: None }));
    assert_eq!(meaning(&["PING", "x"]), Ok(TextCommand::Ping { message: Some(b("x")) }));
    assert_eq!(meaning(&["echo", "x"]), Ok(TextCommand::Echo { message: b("x") }));
    assert_eq!(meaning(&["quit"]), Ok(TextCommand::Quit));
    assert_eq!(meaning(&["GET", "k"]), Ok(TextCommand::Get { key: b("k") }));
    assert_eq!(meaning(&["SET", "k", "v"]), Ok(TextCommand::Set { key: b("k"), value: b("v") }));
    assert_eq!(meaning(&["del", "a", "b"]), Ok(TextCommand::Del { keys: vec![b("a"), b("b")] }));

    let errors: [(&[&str], &str); 8] = [
        (&["GET"], "ERR wrong number of arguments for 'get' command"),
        (&["Get", "a", "b"], "ERR wrong number of arguments for 'get' command"),
        (&["SET", "a"], "ERR wrong number of arguments for 'set' command"),
        (&["DEL"], "ERR wrong number of arguments for 'del' command"),
        (&["PING", "a", "b"], "ERR wrong number of arguments for 'ping' command"),
        (&["SET", "k", "v", "NX"], "ERR syntax error"),
        (&["foo"], "ERR unknown command 'foo', with args beginning with: "),
        (
            &["foo", "a", "b\r\nc"],
            "ERR unknown command 'foo', with args beginning with: 'a' 'b  c' ",
        ),
    ];
    for (list, expected) in errors {
        assert_eq!(meaning(list), Err(expected.to_string()));
    }
    let long = "x".repeat(100_000);
    let text = meaning(&[&long, &long, &long]).unwrap_err();
    assert!(text.len() < 400, "{}", text.len());
}

/// The bytes of each kind of answer.
#[test]
fn answers_are_resp2() {
    let mut out = Vec::new();
    put_simple(&mut out, "OK");
    put_error(&mut out, "ERR a\r\nb");
    put_integer(&mut out, -5);
    put_bulk(&mut out, b"a\r\nb");
    put_nil(&mut out);
    put_array(&mut out, 2);
    assert_eq!(out, b"+OK\r\n-ERR a  b\r\n:-5\r\n$4\r\na\r\nb\r\n$-1\r\n*2\r\n");
}
