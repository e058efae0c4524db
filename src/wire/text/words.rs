//! How a line falls into words: as in Redis, so that habits and copied lines work.

/// Splits a line into words. Words are separated by white space; `"..."` knows `\n \r \t \b \a`,
/// `\xHH` and a backslash before anything else; `'...'` knows only `\'`. None when quotes do not
/// pair up, or when something follows a closing quote at once.
pub fn split_words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        // Unlike Rust's, the white space of C holds the vertical tab.
        while let [0x0B, tail @ ..] = rest {
            rest = tail.trim_ascii_start();
        }
        if rest.is_empty() {
            return Some(words);
        }
        let (word, tail) = take_word(rest)?;
        words.push(word);
        rest = tail;
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn take_word(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut word = Vec::new();
    loop {
        match *rest {
            [] => return Some((word, rest)),
            [byte, ..] if is_space(byte) => return Some((word, rest)),
            [quote @ (b'"' | b'\''), ref tail @ ..] => {
                let tail = take_quoted(quote, tail, &mut word)?;
                return match tail.first() {
                    Some(&byte) if !is_space(byte) => None,
                    _ => Some((word, tail)),
                };
            }
            [byte, ref tail @ ..] => {
                word.push(byte);
                rest = tail;
            }
        }
    }
}

/// What stands between quotes; gives what follows the closing one.
fn take_quoted<'a>(quote: u8, mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match *rest {
            [] => return None,
            [byte, ref tail @ ..] if byte == quote => return Some(tail),
            [b'\\', b'x', high, low, ref tail @ ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                word.push(hex(high) << 4 | hex(low));
                tail
            }
            [b'\\', byte, ref tail @ ..] if quote == b'"' => {
                word.push(match byte {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => other,
                });
                tail
            }
            [b'\\', b'\'', ref tail @ ..] if quote == b'\'' => {
                word.push(b'\'');
                tail
            }
            [byte, ref tail @ ..] => {
                word.push(byte);
                tail
            }
        };
    }
}

/// Value of a hexadecimal digit; the caller has seen that it is one.
fn hex(digit: u8) -> u8 {
    char::from(digit).to_digit(16).map_or(0, |value| value as u8)
}
