//! Which dialect a connection speaks, from its first bytes.
//!
//! The native preamble opens with a byte that nobody types. HTTP and an inline command may both
//! open with `GET `; the end of the first line tells them apart, so that a browser that is sent
//! here never has its request taken for commands.

use super::frame::NATIVE_FIRST_BYTE;

/// Longest first line that is waited for: HTTP request lines are shorter, commands that are longer
/// are decided by how they begin.
pub const FIRST_LINE_MAX: usize = 4 << 10;

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Not decided yet.
    NeedMore,
    /// Frames: see [`super::frame`].
    Native,
    /// See [`super::http`].
    Http,
    /// RESP arrays or typed lines: see [`super::text`].
    Text,
}

/// Decides from the bytes that arrived so far, from the first on. Once it is not
/// [`Dialect::NeedMore`], more bytes never change it.
pub fn sniff(bytes: &[u8]) -> Dialect {
    match bytes.first() {
        None => Dialect::NeedMore,
        Some(&NATIVE_FIRST_BYTE) => Dialect::Native,
        // HTTP methods are upper-case words; nothing else can become HTTP.
        Some(b'A'..=b'Z') => match bytes.iter().take(FIRST_LINE_MAX).position(|&b| b == b'\n') {
            Some(end) if ends_as_http(&bytes[..end]) => Dialect::Http,
            Some(_) => Dialect::Text,
            None if bytes.len() < FIRST_LINE_MAX => Dialect::NeedMore,
            // Only a request for a page is that long and looks like `GET /...`.
            None if bytes.starts_with(b"GET /") || bytes.starts_with(b"HEAD /") => Dialect::Http,
            None => Dialect::Text,
        },
        Some(_) => Dialect::Text,
    }
}

fn ends_as_http(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line {
        [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] => minor.is_ascii_digit(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One port, many callers: each is told apart, also when its bytes trickle in one by one, and
    /// the verdict never changes after it was given.
    #[test]
    fn each_dialect_is_known_by_its_first_bytes() {
        let cases: [(&[u8], Dialect); 13] = [
            (b"", Dialect::NeedMore),
            (b"\xF0KTK\x01\0\0\0", Dialect::Native),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Dialect::Http),
            (b"GET /health HTTP/1.0\n\n", Dialect::Http),
            (b"POST /x HTTP/1.1\r\n\r\nSET a b\r\n", Dialect::Http),
            (b"GET /health\r\n", Dialect::Text),
            (b"GET key\r\n", Dialect::Text),
            (b"GET", Dialect::NeedMore),
            (b"get / HTTP/1.1\r\n", Dialect::Text),
            (b"GET / HTTP/2.0\r\n", Dialect::Text),
            (b"*1\r\n$4\r\nPING\r\n", Dialect::Text),
            (b"\x16\x03\x01", Dialect::Text),
            (b"\r\n", Dialect::Text),
        ];
        for (bytes, expected) in cases {
            assert_eq!(sniff(bytes), expected, "{}", bytes.escape_ascii());
            let mut verdict = Dialect::NeedMore;
            for len in 0..=bytes.len() {
                let now = sniff(&bytes[..len]);
                assert!(verdict == Dialect::NeedMore || verdict == now, "verdict changed");
                verdict = now;
            }
        }
    }

    /// A first line without end is decided at the bound instead of being waited for.
    #[test]
    fn an_endless_first_line_is_decided_at_the_bound() {
        let mut page = b"GET /".to_vec();
        let mut command = b"GET k".to_vec();
        page.resize(FIRST_LINE_MAX - 1, b'a');
        command.resize(FIRST_LINE_MAX - 1, b'a');
        assert_eq!(sniff(&page), Dialect::NeedMore);
        assert_eq!(sniff(&command), Dialect::NeedMore);
        page.push(b'a');
        command.push(b'a');
        assert_eq!(sniff(&page), Dialect::Http);
        assert_eq!(sniff(&command), Dialect::Text);
        page.extend_from_slice(b"\n");
        assert_eq!(sniff(&page), Dialect::Http);
    }
}
