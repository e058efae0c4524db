//! Words of a command line, quoted as in Redis, and the same escapes for output.
//!
//! A word is bare, `"quoted with \n \r \t \b \a \xHH \\ \""`, or `'raw, with only \' special'`;
//! quotes may begin inside a word and end it. Words are bytes: nothing here demands UTF-8.
//! Left out: variables, globs and comments. This is not a shell.

use std::fmt;

/// Why a line does not split into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordError {
    /// A quote is not closed. The byte offset of the opening one.
    Unclosed {
        /// Where it opens.
        offset: usize,
    },
    /// A closing quote is followed by something other than space. The byte offset of that.
    Joined {
        /// Where the word goes on.
        offset: usize,
    },
}

impl fmt::Display for WordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WordError::Unclosed { offset } => {
                write!(f, "the quote at column {} is not closed", offset + 1)
            }
            WordError::Joined { offset } => {
                write!(f, "a space is missing after the quote, at column {}", offset + 1)
            }
        }
    }
}

impl std::error::Error for WordError {}

/// Splits a line into words.
///
/// # Errors
/// When a quote is not closed, or a closing one is not followed by space.
pub fn split(line: &[u8]) -> Result<Vec<Vec<u8>>, WordError> {
    let mut words = Vec::new();
    let mut at = 0;
    loop {
        while line.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        if at == line.len() {
            return Ok(words);
        }
        let mut word = Vec::new();
        while let Some(&byte) = line.get(at).filter(|b| !b.is_ascii_whitespace()) {
            if byte == b'"' || byte == b'\'' {
                at = quoted(line, at, &mut word)?;
                break;
            }
            word.push(byte);
            at += 1;
        }
        words.push(word);
    }
}

/// Reads the quoted text that opens at `open` into `word`; answers the offset behind it.
fn quoted(line: &[u8], open: usize, word: &mut Vec<u8>) -> Result<usize, WordError> {
    let quote = line[open];
    let mut at = open + 1;
    loop {
        let rest = line.get(at..).unwrap_or_default();
        match *rest {
            [] => return Err(WordError::Unclosed { offset: open }),
            [byte, ref tail @ ..] if byte == quote => {
                return match tail.first() {
                    Some(next) if !next.is_ascii_whitespace() => {
                        Err(WordError::Joined { offset: at + 1 })
                    }
                    _ => Ok(at + 1),
                };
            }
            [b'\\', b'\'', ..] if quote == b'\'' => {
                word.push(b'\'');
                at += 2;
            }
            [b'\\', b'x', high, low, ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                word.push(hex_value(high) * 16 + hex_value(low));
                at += 4;
            }
            [b'\\', letter, ..] if quote == b'"' => {
                word.push(match letter {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => other,
                });
                at += 2;
            }
            [byte, ..] => {
                word.push(byte);
                at += 1;
            }
        }
    }
}

/// The value of a hexadecimal digit; 0 for any other byte.
fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => 0,
    }
}

/// Bytes as text that is safe on a terminal: control characters, bytes that are not UTF-8 and
/// characters that reorder the line become escapes that [`split`] reads back inside `"..."`.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                c if c.is_control() || is_invisible(c) => {
                    push_hex(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                c => out.push(c),
            }
        }
        push_hex(&mut out, chunk.invalid());
    }
    out
}

/// A word that [`split`] reads back as exactly these bytes: bare when that is safe, else quoted.
pub fn quote(bytes: &[u8]) -> String {
    let escaped = escape(bytes);
    let plain = !bytes.is_empty()
        && escaped.len() == bytes.len()
        && !bytes.iter().any(|b| b.is_ascii_whitespace() || *b == b'\'');
    if plain { escaped } else { format!("\"{escaped}\"") }
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push_str("\\x");
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// Characters that show nothing or reorder what stands around them: line and paragraph separators,
/// marks of width zero and of direction. A key must not look like another one.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(line: &str) -> Vec<String> {
        let words = split(line.as_bytes()).expect(line);
        words.into_iter().map(|w| String::from_utf8_lossy(&w).into_owned()).collect()
    }

    #[test]
    fn a_line_splits_at_any_run_of_space() {
        // Typed lines come with stray spaces, tabs and a carriage return.
        assert_eq!(words("  put\tcity   Oslo \r\n"), ["put", "city", "Oslo"]);
        assert_eq!(words(""), Vec::<String>::new());
        assert_eq!(words(" \t "), Vec::<String>::new());
    }

    #[test]
    fn quotes_keep_spaces_and_escapes_give_bytes() {
        // The example of the interface, and every escape.
        assert_eq!(split(br#""a b\n\x00""#), Ok(vec![b"a b\n\0".to_vec()]));
        assert_eq!(
            split(br#""\r\t\b\a\\\"\xfF\q\xg1""#),
            Ok(vec![b"\r\t\x08\x07\\\"\xffqxg1".to_vec()])
        );
        assert_eq!(words(r"'raw \n \'x\''"), [r"raw \n 'x'"]);
        assert_eq!(words(r#""" '' a"b c""#), ["", "", "ab c"]);
    }

    #[test]
    fn a_broken_quote_is_named_with_its_column() {
        // Nothing is guessed: an unclosed quote would swallow the rest of the line.
        assert_eq!(split(b"put \"a b"), Err(WordError::Unclosed { offset: 4 }));
        assert_eq!(split(b"'x\\'"), Err(WordError::Unclosed { offset: 0 }));
        assert_eq!(split(b"\"a\\"), Err(WordError::Unclosed { offset: 0 }));
        assert_eq!(split(b"\"a\"b c"), Err(WordError::Joined { offset: 3 }));
        assert!(WordError::Unclosed { offset: 4 }.to_string().contains("column 5"));
    }

    #[test]
    fn output_cannot_steer_the_terminal() {
        // A value with an escape sequence, a bidirectional override or broken UTF-8 is shown, not obeyed.
        assert_eq!(escape(b"\x1b[2Jx"), "\\x1b[2Jx");
        assert_eq!(escape("a\u{202e}b".as_bytes()), "a\\xe2\\x80\\xaeb");
        assert_eq!(escape("\u{9b}".as_bytes()), "\\xc2\\x9b");
        assert_eq!(escape(b"ok\xff\xfe"), "ok\\xff\\xfe");
        assert_eq!(escape("Tromsø".as_bytes()), "Tromsø");
    }

    #[test]
    fn a_word_is_quoted_only_when_it_must_be() {
        // Plain keys stay readable.
        assert_eq!(quote(b"city"), "city");
        assert_eq!(quote(b""), "\"\"");
        assert_eq!(quote(b"a b"), "\"a b\"");
        assert_eq!(quote(b"it's"), "\"it's\"");
    }

    proptest! {
        #[test]
        fn what_is_quoted_reads_back(list in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..5)) {
            // Whatever bytes a word holds, a printed command can be pasted back.
            let line = list.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" ");
            prop_assert_eq!(split(line.as_bytes()), Ok(list));
        }

        #[test]
        fn splitting_takes_any_bytes(line in proptest::collection::vec(any::<u8>(), 0..64)) {
            // The words never hold more bytes than the line.
            if let Ok(words) = split(&line) {
                prop_assert!(words.iter().map(Vec::len).sum::<usize>() <= line.len());
            }
        }
    }
}
