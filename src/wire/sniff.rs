//! Which dialect a connection speaks, from its first bytes.
//!
//! The native preamble opens with a byte that nobody types. A web page can make a browser send almost any
//! body to a node, and its lines must never be taken for commands. So a first word that is a method of HTTP
//! is HTTP, in upper or lower case and however long the line is. `GET` alone opens both an HTTP request and a
//! command: there the end of the first line decides.

use super::frame::NATIVE_FIRST_BYTE;

/// Longest first line that is waited for: a longer one is decided by how it begins.
pub const FIRST_LINE_MAX: usize = 4 << 10;

/// The methods of HTTP (RFC 9110, RFC 5789) but for GET, and the first word of HTTP/2 (RFC 9113). None is a
/// command of ours.
const METHODS: [&[u8]; 9] =
    [b"CONNECT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PRI", b"PUT", b"TRACE"];
/// No method is longer.
const METHOD_BYTES_MAX: usize = 7;

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

/// Whether a word opens an HTTP request and no command; in any case of letters.
pub fn is_method(word: &[u8]) -> bool {
    METHODS.iter().any(|method| word.eq_ignore_ascii_case(method))
}

/// Decides from the bytes that arrived so far, from the first on. Once it is not
/// [`Dialect::NeedMore`], more bytes never change it.
pub fn sniff(bytes: &[u8]) -> Dialect {
    match bytes.first() {
        None => return Dialect::NeedMore,
        Some(&NATIVE_FIRST_BYTE) => return Dialect::Native,
        Some(b'A'..=b'Z' | b'a'..=b'z') => {}
        Some(_) => return Dialect::Text,
    }
    let begin = &bytes[..bytes.len().min(METHOD_BYTES_MAX + 1)];
    match begin.iter().position(|b| !b.is_ascii_alphabetic()) {
        Some(end) if is_method(&begin[..end]) => return Dialect::Http,
        None if begin.len() <= METHOD_BYTES_MAX => return Dialect::NeedMore,
        _ => {}
    }
    match bytes.iter().take(FIRST_LINE_MAX).position(|&b| b == b'\n') {
        Some(end) if ends_as_http(&bytes[..end]) => Dialect::Http,
        Some(_) => Dialect::Text,
        None if bytes.len() < FIRST_LINE_MAX => Dialect::NeedMore,
        // Only a request for a page is that long and looks like `GET /...`.
        None if bytes[..5].eq_ignore_ascii_case(b"GET /") => Dialect::Http,
        None => Dialect::Text,
    }
}

/// Whether a line ends in ` HTTP/` and any version.
fn ends_as_http(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let last = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
    let version = last.split_at_checked(5).filter(|(name, _)| name.eq_ignore_ascii_case(b"HTTP/"));
    last.len() < line.len()
        && version.is_some_and(|(_, v)| v.iter().all(|b| b.is_ascii_digit() || *b == b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One port, many callers: each is told apart, also when its bytes trickle in one by one, and
    /// the verdict never changes after it was given.
    #[test]
    fn each_dialect_is_known_by_its_first_bytes() {
        let cases: [(&[u8], Dialect); 22] = [
            (b"", Dialect::NeedMore),
            (b"\xF0KTK\x01\0\0\0", Dialect::Native),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Dialect::Http),
            (b"GET /health HTTP/1.0\n\n", Dialect::Http),
            (b"POST /x HTTP/1.1\r\n\r\nSET a b\r\n", Dialect::Http),
            (b"GET /health\r\n", Dialect::Text),
            (b"GET key\r\n", Dialect::Text),
            (b"GET", Dialect::NeedMore),
            (b"get / HTTP/1.1\r\n", Dialect::Http),
            (b"GET / HTTP/2.0\r\n", Dialect::Http),
            (b"GET / HTTP/1.10\r\n", Dialect::Http),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Dialect::Http),
            (b"post /x\r\n", Dialect::Http),
            (b"POST", Dialect::NeedMore),
            (b"Options\r\n", Dialect::Http),
            (b"PUTTER a\r\n", Dialect::Text),
            (b"POSTPONED a\r\n", Dialect::Text),
            (b"SET a HTTP/1.1\r\n", Dialect::Http),
            (b"SET a HTTP/x\r\n", Dialect::Text),
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

    /// A page makes a browser post commands to a path that is longer than any first line that is waited for.
    #[test]
    fn a_post_is_http_however_long_its_path_is() {
        for method in ["POST", "post", "Put", "PATCH", "delete", "HEAD", "options"] {
            let mut request = format!("{method} /").into_bytes();
            request.resize(2 * FIRST_LINE_MAX, b'a');
            request.extend_from_slice(b" HTTP/1.1\r\nHost: x\r\n\r\nSET a b\r\n");
            assert_eq!(sniff(&request), Dialect::Http, "{method}");
        }
    }
}
