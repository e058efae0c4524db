//! The line client against nodes that speak the protocol: what it prints and how it ends.

use super::*;
use crate::client::tests::fake::{Node, Step, Store, failure};
use crate::kv::Outcome;
use crate::wire::client::{Call, Class};
use std::time::Instant;

struct Ran {
    exit: Exit,
    out: String,
    err: String,
}

/// Runs the subcommand on a pipe; the output must be UTF-8 unless [`raw`] is asked.
fn cli(nodes: &[&Node], args: &[&str], input: &str) -> Ran {
    let (exit, out, err) = raw(nodes, args, input.as_bytes(), false);
    Ran { exit, out: String::from_utf8(out).expect("text"), err }
}

fn raw(
    nodes: &[&Node],
    args: &[&str],
    mut input: &[u8],
    terminal: bool,
) -> (Exit, Vec<u8>, String) {
    let addresses: Vec<&str> = nodes.iter().map(|n| n.address.as_str()).collect();
    let addresses = addresses.join(",");
    let all: Vec<&str> = ["-a", &addresses].into_iter().chain(args.iter().copied()).collect();
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let streams = Streams {
        input: &mut input,
        output: &mut output,
        errors: &mut errors,
        input_is_terminal: terminal,
        output_is_terminal: terminal,
        errors_is_terminal: terminal,
    };
    let exit = run(&all, streams);
    (exit, output, String::from_utf8(errors).expect("text"))
}

#[test]
fn each_command_prints_its_answer() {
    // A session in a pipe, line by line.
    let node = Node::good(1, &Store::new());
    let input = "put city Oslo\nget city\nset city Bergen if 2\nget nothing\nmput a 1 b 2\n\
                 # a comment\n\nincr n\nincr n -5\nrange '' '' limit 2\nprefix c keys\ncount a c\n\
                 del city\ndel city\nping\ntransfer 2\n";
    let ran = cli(&[&node], &[], input);
    // The session is revision 1.
    let expected = "OK 2\nOslo\nOK 3\n(nil)\nOK 4\n1\n-4\na\t1\nb\t2\n# cursor b\ncity\n2\n\
                    OK 7\n(nil)\nPONG\nOK\n";
    assert_eq!(ran.out, expected, "{}", ran.err);
    assert_eq!(ran.err, "");
    assert_eq!(ran.exit, Exit::Absent, "one key was absent");
}

#[test]
fn words_on_the_command_line_are_one_command() {
    // The shell has quoted them already; a word like a flag belongs to the command.
    let node = Node::good(1, &Store::new());
    assert_eq!(cli(&[&node], &["put", "a b", "c\\n"], "").out, "OK 2\n");
    let got = cli(&[&node], &["get", "a b"], "");
    assert_eq!((got.out.as_str(), got.exit), ("c\\n\n", Exit::Done));
    assert_eq!(cli(&[&node], &["incr", "k", "-5"], "").out, "-5\n");
    assert_eq!(cli(&[&node], &["get", "nothing"], "").exit, Exit::Absent);
}

#[test]
fn json_is_one_object_a_line_and_errors_are_among_them() {
    // A program reads standard output alone.
    let node = Node::good(1, &Store::new());
    node.names_members(&[&node]);
    let input = "put k v\nget k\nget x\nput k v if absent\nrange '' ''\ncount '' ''\nincr k\n\
                 frobnicate\nput \"\\xff\" v\ndump\nmembers\n";
    let ran = cli(&[&node], &["--json"], input);
    let address = &node.address;
    let expected = [
        r#"{"ok":true,"revision":2}"#,
        r#"{"key":"k","value":"v","revision":2}"#,
        r#"{"key":"x","value":null,"revision":null}"#,
        r#"{"error":"the condition does not hold: the key has revision 2","class":"condition","line":4}"#,
        r#"{"items":[{"key":"k","value":"v","revision":2}],"count":1,"revision":3,"cursor":null}"#,
        r#"{"count":1,"revision":3}"#,
        r#"{"error":"the value is not a whole number of 64 bits","class":"condition","line":7}"#,
        r#"{"error":"unknown command 'frobnicate'; help lists them","class":"usage","line":8}"#,
        r#"{"ok":true,"revision":5}"#,
        r#"{"key":"k","value":"v","revision":2}"#,
        r#"{"key":{"base64":"/w=="},"value":"v","revision":5}"#,
        &format!(
            r#"{{"members":[{{"id":1,"address":"{address}","role":"follower","voter":true}}]}}"#
        ),
    ];
    assert_eq!(ran.out.lines().collect::<Vec<_>>(), expected);
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Usage, ""));
}

#[test]
fn bytes_are_raw_in_a_pipe_and_escaped_on_a_terminal() {
    // A value must not steer the terminal; a program gets exactly what was stored.
    let node = Node::good(1, &Store::new());
    let put = b"put \"k\\x00\" \"\\x1b[2J\\xff\"\n";
    raw(&[&node], &[], put, false);
    let get = b"get \"k\\x00\"\nrange '' '' limit 1\n";
    assert_eq!(raw(&[&node], &[], get, false).1, b"\x1b[2J\xff\nk\0\t\x1b[2J\xff\n");
    let (_, out, _) = raw(&[&node], &["get", "k\0"], b"", true);
    assert_eq!(out, b"\\x1b[2J\\xff\n");
    // Lines that are typed are prompted for, behind the help.
    let (_, out, _) = raw(&[&node], &[], b"ping\nquit\nping\n", true);
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with(&help::commands()));
    assert!(text.ends_with("kontiki> PONG\nkontiki> "), "{text}");
}

#[test]
fn an_error_of_one_line_does_not_end_the_others_and_the_gravest_gives_the_exit_code() {
    // A usage error, then a write that nobody knows of, then work goes on.
    let steps = [Step::ServeAndClose, Step::Say(Outcome::SessionUnknown)];
    let node = Node::writes(1, &Store::new(), steps);
    let ran = cli(&[&node], &[], "get\nput a 1\nput b 2\nget b\n");
    assert_eq!(ran.exit, Exit::Unknown);
    assert!(ran.out.ends_with("\n2\n"), "{}", ran.out);
    let errors: Vec<&str> = ran.err.lines().collect();
    assert_eq!(errors.len(), 2, "{}", ran.err);
    assert!(errors[0].starts_with("kontiki: line 1: KEY is missing; usage: get KEY"));
    assert!(errors[1].starts_with("kontiki: line 2: outcome unknown: "), "{}", errors[1]);
}

#[test]
fn exit_codes_follow_the_class() {
    // What a script decides by.
    let store = Store::new();
    for (class, exit) in [
        (Class::Busy, Exit::Busy),
        (Class::Unavailable, Exit::Unavailable),
        (Class::Damaged, Exit::Unavailable),
        (Class::Unknown, Exit::Unknown),
        (Class::TooLarge, Exit::TooLarge),
        (Class::DiskFull, Exit::DiskFull),
        (Class::Invalid, Exit::Usage),
        (Class::Unauthorised, Exit::Unauthorised),
    ] {
        let node = Node::start(1, &store, move |call| match call {
            Call::Write(_) => Step::Refuse(failure(class, None)),
            _ => Step::Serve,
        });
        let ran = cli(&[&node], &["--timeout-ms", "50", "put", "k", "v"], "");
        assert_eq!(ran.exit, exit, "{}", ran.err);
        assert_eq!(ran.out, "");
    }
    let secret = Node::start_with_token(1, &store, b"secret", |_| Step::Serve);
    assert_eq!(cli(&[&secret], &["get", "k"], "").exit, Exit::Unauthorised);
    let mut gone = Node::good(1, &store);
    gone.stop();
    let ran = cli(&[&gone], &["--timeout-ms", "50", "put", "k", "v"], "");
    assert_eq!(ran.exit, Exit::Unavailable, "{}", ran.err);
}

#[test]
fn a_wrong_flag_sends_nothing() {
    // Each is named; the exit code is that of wrong usage.
    let node = Node::good(1, &Store::new());
    for (args, why) in [
        (&["--jsn", "ping"][..], "Unrecognized option"),
        (&["--timeout-ms", "0", "ping"], "flag --timeout-ms: '0' is not a whole number"),
        (&["-a", "nonsense", "ping"], "flag -a: 'nonsense' is not of the form HOST:PORT"),
        (&["--token-file", "/nonexistent/token", "ping"], "cannot read /nonexistent/token"),
        (&["frob"], "unknown command 'frob'"),
    ] {
        let ran = cli(&[&node], args, "");
        assert_eq!(ran.exit, Exit::Usage, "{args:?}");
        assert!(ran.err.contains(why), "{args:?}: {}", ran.err);
    }
    assert_eq!(node.connections(), 0);
}

#[test]
fn status_asks_each_member_and_says_who_is_not_there() {
    // Three members, one of them down: its row says so, and nobody waits for it for long.
    let store = Store::new();
    let nodes: Vec<Node> = (1..=3).map(|id| Node::good(id, &store)).collect();
    let [a, b, c] = nodes.as_slice() else { panic!() };
    a.names_members(&[a, b, c]);
    let mut nodes = nodes;
    nodes[2].stop();
    let started = Instant::now();
    let ran = cli(&[&nodes[0]], &["status"], "");
    assert!(started.elapsed() < Duration::from_secs(3));
    let rows: Vec<Vec<&str>> = ran.out.lines().map(|l| l.split_whitespace().collect()).collect();
    let address = |i: usize| nodes[i].address.as_str();
    let rest = ["follower", "3", "12", "10", "2", "4096", "following"];
    assert_eq!(rows[0], [&["1", address(0)][..], &rest].concat());
    assert_eq!(rows[1], [&["2", address(1)][..], &rest].concat());
    assert_eq!(rows[2], ["3", address(2), "-", "-", "-", "-", "-", "-", "unreachable"]);
    assert_eq!(ran.exit, Exit::Done);
    let json = cli(&[&nodes[0]], &["--json", "status"], "").out;
    assert!(
        json.contains(r#""reachable":true"#) && json.contains(r#""reachable":false"#),
        "{json}"
    );
    assert!(json.contains(r#""lag":2"#) && json.ends_with("]}\n"), "{json}");
}

fn file(text: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text).expect("it can be written");
    file
}

fn load(node: &Node, text: &[u8]) -> Ran {
    let file = file(text);
    cli(&[node], &["load", file.path().to_str().expect("a plain path")], "")
}

#[test]
fn a_load_and_a_dump_give_the_same_bytes() {
    // Sorted lines with unique keys, and connections that break on the way.
    let mut count = 0;
    let node = Node::start(1, &Store::new(), move |call| {
        count += u64::from(matches!(call, Call::Write(_)));
        if matches!(call, Call::Write(_)) && count % 5 == 3 {
            Step::ServeAndClose
        } else {
            Step::Serve
        }
    });
    let mut text = Vec::new();
    for n in 0..3000 {
        text.extend_from_slice(format!("{n:06}\tname {n};Lu;0\twith a tab;ø\n").as_bytes());
    }
    text.extend_from_slice(b"\\tkey\\\\\tline\\n\\r\\\\ \xff\x00\n");
    let ran = load(&node, &text);
    assert_eq!((ran.out.as_str(), ran.err.as_str(), ran.exit), ("OK 3001\n", "", Exit::Done));
    assert_eq!(raw(&[&node], &["get", "\tkey\\"], b"", false).1, b"line\n\r\\ \xff\x00\n");
    // The escape of a tab sorts before digits; the last line of the file is the first of the dump.
    let (exit, dumped, _) = raw(&[&node], &["dump"], b"", false);
    let last = text.len() - b"\\tkey\\\\\tline\\n\\r\\\\ \xff\x00\n".len();
    assert_eq!(exit, Exit::Done);
    assert!(dumped == [&text[last..], &text[..last]].concat(), "the dump is what was loaded");
    let part = cli(&[&node], &["dump", "000001", "000003"], "").out;
    assert_eq!(part.lines().count(), 2);
}

#[test]
fn a_key_that_stands_twice_keeps_its_last_value() {
    // Far enough apart to be in different writes.
    let node = Node::good(1, &Store::new());
    let lines = (0..1000).map(|n| format!("k{}\t{n}\n", n % 150));
    let ran = load(&node, lines.collect::<String>().as_bytes());
    assert_eq!(ran.out, "OK 1000\n", "{}", ran.err);
    assert_eq!(cli(&[&node], &["get", "k99"], "").out, "999\n");
    assert_eq!(cli(&[&node], &["get", "k100"], "").out, "850\n");
}

#[test]
fn a_load_that_fails_says_which_lines_are_stored() {
    // A line without TAB; then a refusal; then a file that is not there.
    let node = Node::good(1, &Store::new());
    let ran = load(&node, b"a\t1\nb\t2\nno tab\nc\t3\n");
    assert_eq!(ran.exit, Exit::Usage);
    let why = ", line 3: no TAB between key and value; lines 1 to 2 are stored\n";
    assert!(ran.err.ends_with(why), "{}", ran.err);
    assert_eq!(cli(&[&node], &["count", "", ""], "").out, "2\n");

    let refused = Step::Refuse(failure(Class::TooLarge, None));
    let node = Node::writes(1, &Store::new(), [Step::Serve, refused]);
    let lines: String = (0..10_000).map(|n| format!("{n:05}\tv\n")).collect();
    let ran = load(&node, lines.as_bytes());
    assert_eq!(ran.exit, Exit::TooLarge);
    assert!(ran.err.contains(", lines 129 to 256: "), "{}", ran.err);
    assert!(ran.err.contains("; lines 1 to 128 are stored"), "{}", ran.err);

    let ran = cli(&[&node], &["load", "/nonexistent/file"], "");
    assert_eq!(ran.exit, Exit::Usage);
    assert!(ran.err.contains("cannot open /nonexistent/file"), "{}", ran.err);
    assert_eq!(load(&node, b"").out, "OK 0\n", "an empty file is no error");
}

/// Keys are bytes: a word that is no text is taken as it is. Flags end where the command begins,
/// whatever its words look like.
#[cfg(unix)]
#[test]
fn words_that_are_no_text_are_taken_as_bytes() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut options = cluster_options();
    options.parsing_style(getopts::ParsingStyle::StopAtFirstFree);
    let split = |args: &[&[u8]]| {
        let args: Vec<&OsStr> = args.iter().map(|a| OsStr::from_bytes(a)).collect();
        let (matches, at) = leading_flags(&options, &args).unwrap();
        (matches.opt_strs("a"), words_of(&args[at..]).unwrap())
    };
    let put = || vec![b"put".to_vec(), b"k\xff".to_vec(), b"-a".to_vec()];
    assert_eq!(split(&[b"put", b"k\xff", b"-a"]), (vec![], put()));
    assert_eq!(split(&[b"-a", b"h:1", b"put", b"k\xff", b"-a"]), (vec!["h:1".into()], put()));
    assert_eq!(split(&[b"-ah:1", b"--", b"put", b"k\xff", b"-a"]), (vec!["h:1".into()], put()));
    assert_eq!(split(&[b"--address=h:1"]), (vec!["h:1".into()], vec![]));
}
