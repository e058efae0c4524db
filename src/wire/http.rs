//! The little of HTTP/1.x that a browser, a load balancer and a metrics collector need.
//!
//! One bounded request head, GET or HEAD, no body; one response. Anything else is refused with a
//! status. Left out: bodies, chunks, continuation lines, percent-decoding (no path here needs it).

use std::fmt;
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest request head: what browsers send to a bare host fits several times.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

const _: () = assert!(super::sniff::FIRST_LINE_MAX <= HEAD_BYTES_MAX);

/// A request that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Only the head of the answer is wanted (HEAD).
    pub head_only: bool,
    /// The path: begins with `/`, visible ASCII, without a query.
    pub path: String,
    /// What follows the first `?`, empty when there is none.
    pub query: String,
    /// The client keeps the connection open for another request.
    pub keep_alive: bool,
    /// Whom it means to ask: name and port, as it says.
    pub host: Option<String>,
    /// The token that it shows (`Authorization: Bearer`, RFC 6750).
    pub bearer: Option<Vec<u8>>,
}

/// A request that cannot be answered; the connection closes after the refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpError {
    /// It is not what HTTP/1.x says.
    BadRequest(&'static str),
    /// It is neither GET nor HEAD.
    MethodNotAllowed,
    /// Its head is longer than [`HEAD_BYTES_MAX`].
    TooLong,
}

impl HttpError {
    /// The status that says so.
    pub fn status(self) -> u16 {
        match self {
            HttpError::BadRequest(_) => 400,
            HttpError::MethodNotAllowed => 405,
            HttpError::TooLong => 431,
        }
    }

    /// The whole response that says so.
    pub fn response(self) -> Vec<u8> {
        response(
            self.status(),
            "text/plain; charset=utf-8",
            format!("{self}\n").as_bytes(),
            false,
            false,
        )
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HttpError::BadRequest(what) => write!(f, "bad request: {what}"),
            HttpError::MethodNotAllowed => write!(f, "only GET and HEAD are answered here"),
            HttpError::TooLong => write!(f, "request head above {HEAD_BYTES_MAX} bytes"),
        }
    }
}

impl std::error::Error for HttpError {}

/// Reads a request head from the front of what arrived: the head and its length, or none while it
/// is not complete.
pub fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, HttpError> {
    let mut lines = Lines { bytes, at: 0 };
    let Some(first) = lines.next_line()? else { return Ok(None) };
    let (mut head, one_one) = parse_request_line(first)?;
    head.keep_alive = one_one;
    loop {
        let Some(line) = lines.next_line()? else { return Ok(None) };
        if line.is_empty() {
            return Ok(Some((head, lines.at)));
        }
        parse_header(line, &mut head)?;
    }
}

struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    /// The next line without its end; a bare line feed ends one too, for people with `nc`.
    fn next_line(&mut self) -> Result<Option<&'a [u8]>, HttpError> {
        let window = &self.bytes[..self.bytes.len().min(HEAD_BYTES_MAX)];
        let Some(len) = window[self.at..].iter().position(|&b| b == b'\n') else {
            let full = window.len() == HEAD_BYTES_MAX;
            return if full { Err(HttpError::TooLong) } else { Ok(None) };
        };
        let line = &window[self.at..self.at + len];
        self.at += len + 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().any(|&b| b.is_ascii_control() && b != b'\t') {
            return Err(HttpError::BadRequest("control character in the head"));
        }
        Ok(Some(line))
    }
}

/// The request line: the head so far, and whether it is HTTP/1.1 or later in 1.x.
fn parse_request_line(line: &[u8]) -> Result<(Head, bool), HttpError> {
    let line = str::from_utf8(line).map_err(|_| HttpError::BadRequest("request line"))?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(HttpError::BadRequest("request line"));
    };
    let one_one = match version.strip_prefix("HTTP/1.").map(str::as_bytes) {
        Some([b'0']) => false,
        Some([b'1'..=b'9']) => true,
        _ => return Err(HttpError::BadRequest("version")),
    };
    if method.is_empty() || !method.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(HttpError::BadRequest("method"));
    }
    let head_only = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Err(HttpError::MethodNotAllowed),
    };
    if !target.starts_with('/') || !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(HttpError::BadRequest("target"));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let head = Head {
        head_only,
        path: path.to_string(),
        query: query.to_string(),
        keep_alive: false,
        host: None,
        bearer: None,
    };
    Ok((head, one_one))
}

fn parse_header(line: &[u8], head: &mut Head) -> Result<(), HttpError> {
    let colon = line.iter().position(|&b| b == b':').ok_or(HttpError::BadRequest("header"))?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if name.is_empty() || !name.iter().all(|b| b.is_ascii_graphic()) {
        return Err(HttpError::BadRequest("header name"));
    }
    if name.eq_ignore_ascii_case(b"connection") {
        for word in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
            if word.eq_ignore_ascii_case(b"close") {
                head.keep_alive = false;
            } else if word.eq_ignore_ascii_case(b"keep-alive") {
                head.keep_alive = true;
            }
        }
    }
    if name.eq_ignore_ascii_case(b"host") {
        // Two of them are none: who put the second one there?
        if head.host.is_some() {
            return Err(HttpError::BadRequest("two hosts"));
        }
        head.host = Some(String::from_utf8_lossy(value).into_owned());
    }
    if name.eq_ignore_ascii_case(b"authorization")
        && let Some((scheme, token)) = value.split_at_checked(7)
        && scheme.eq_ignore_ascii_case(b"bearer ")
    {
        head.bearer = Some(token.trim_ascii().to_vec());
    }
    // A body that was not read would be taken for the next request.
    let body = (name.eq_ignore_ascii_case(b"content-length") && value != b"0")
        || name.eq_ignore_ascii_case(b"transfer-encoding");
    if body { Err(HttpError::BadRequest("a body is not expected")) } else { Ok(()) }
}

/// A host without its port.
pub fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether a host's name is an address, of IPv6 in brackets (RFC 3986, 3.2.2), and so resolved by nobody.
pub fn is_address(name: &str) -> bool {
    let inside = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    match inside {
        Some(inside) => inside.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<Ipv4Addr>().is_ok(),
    }
}

/// A whole response; with `head_only` the body is measured but not sent.
pub fn response(
    status: u16,
    content_type: &str,
    body: &[u8],
    head_only: bool,
    keep_alive: bool,
) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    };
    let allow = match status {
        401 => "WWW-Authenticate: Bearer\r\n",
        405 => "Allow: GET, HEAD\r\n",
        _ => "",
    };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut out = Vec::with_capacity(256 + body.len());
    // Writing to a vector cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{allow}\
         Connection: {connection}\r\n\r\n",
        body.len()
    );
    if !head_only {
        out.extend_from_slice(body);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(bytes: &[u8]) -> Head {
        let (head, used) = parse(bytes).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        head
    }

    /// A browser and a person with `nc` both get a page; the head is found only when it is whole,
    /// wherever the reads happen to cut it.
    #[test]
    fn a_request_is_read_however_it_is_cut() {
        let bytes = b"GET /status?x=1 HTTP/1.1\r\nHost: a:1\r\nAccept: */*\r\n\r\n";
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len]), Ok(None), "length {len}");
        }
        let expected = Head {
            host: Some("a:1".to_string()),
            bearer: None,
            head_only: false,
            path: "/status".into(),
            query: "x=1".into(),
            keep_alive: true,
        };
        assert_eq!(head(bytes), expected);
        assert_eq!(head(b"HEAD / HTTP/1.0\n\n").path, "/");
        let two = b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n";
        assert_eq!(parse(two).unwrap().unwrap().1, two.len() / 2);
    }

    /// Connections stay open as each version of HTTP says, and as the client asks.
    #[test]
    fn keep_alive_follows_version_and_header() {
        assert!(head(b"GET / HTTP/1.1\r\n\r\n").keep_alive);
        assert!(!head(b"GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(!head(b"GET / HTTP/1.1\r\nconnection: x, Close\r\n\r\n").keep_alive);
        assert!(head(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
    }

    /// What is not a plain GET or HEAD is refused with the status that says why.
    #[test]
    fn other_requests_are_refused_with_a_status() {
        let cases: [(&[u8], u16); 11] = [
            (b"POST / HTTP/1.1\r\n\r\n", 405),
            (b"DELETE /x HTTP/1.1\r\n", 405),
            (b"GET  / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/2.0\r\n\r\n", 400),
            (b"GET / HTTP/1.10\r\n\r\n", 400),
            (b"GET x HTTP/1.1\r\n\r\n", 400),
            (b"GET /\0 HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 400),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ];
        for (bytes, status) in cases {
            let error = parse(bytes).unwrap_err();
            assert_eq!(error.status(), status, "{}", bytes.escape_ascii());
        }
        let refusal = String::from_utf8(HttpError::MethodNotAllowed.response()).unwrap();
        assert!(refusal.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{refusal}");
        assert!(refusal.contains("\r\nAllow: GET, HEAD\r\n"), "{refusal}");
        assert!(refusal.contains("\r\nConnection: close\r\n"), "{refusal}");
    }

    /// A head without end is refused at the bound, in one line or in many.
    #[test]
    fn an_endless_head_is_refused_at_the_bound() {
        let mut lines = b"GET / HTTP/1.1\r\n".to_vec();
        while lines.len() < HEAD_BYTES_MAX {
            assert_eq!(parse(&lines), Ok(None));
            lines.extend_from_slice(b"X-Filler: 0123456789\r\n");
        }
        assert_eq!(parse(&lines), Err(HttpError::TooLong));
        let mut line = b"GET /".to_vec();
        line.resize(HEAD_BYTES_MAX - 1, b'a');
        assert_eq!(parse(&line), Ok(None));
        line.push(b'a');
        assert_eq!(parse(&line), Err(HttpError::TooLong));
    }

    /// The answer to HEAD tells the length of the body that GET would bring.
    #[test]
    fn a_head_answer_has_the_length_and_no_body() {
        let get = response(200, "text/plain", b"hello", false, true);
        let head = response(200, "text/plain", b"hello", true, true);
        assert_eq!(get, [&head[..], b"hello"].concat());
        assert!(head.ends_with(b"\r\n\r\n"));
        assert!(String::from_utf8(head).unwrap().contains("\r\nContent-Length: 5\r\n"));
    }
}
