//! One HTTP request to a node.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A node that takes longer to say how it is does not serve.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Status code and body of `GET path`, none when there is no whole answer.
pub(crate) fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let socket = address.parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&socket, TIMEOUT).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((code, body.to_owned()))
}

/// Only the status code.
pub(crate) fn status(address: &str, path: &str) -> Option<u16> {
    get(address, path).map(|(code, _)| code)
}
