//! Answers in RESP2.

use std::io::Write as _;

/// Appends a status such as `OK`; line ends in it become spaces.
pub fn put_simple(out: &mut Vec<u8>, text: &str) {
    put_line(out, b'+', text);
}

/// Appends an error. Its first word is its class (`ERR`, `CLUSTERDOWN`...); line ends in it become
/// spaces.
pub fn put_error(out: &mut Vec<u8>, text: &str) {
    put_line(out, b'-', text);
}

fn put_line(out: &mut Vec<u8>, mark: u8, text: &str) {
    out.push(mark);
    out.extend(text.bytes().map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { b }));
    out.extend_from_slice(b"\r\n");
}

/// Appends a number.
pub fn put_integer(out: &mut Vec<u8>, value: i64) {
    // Writing to a vector cannot fail, here and below.
    let _ = write!(out, ":{value}\r\n");
}

/// Appends a string of any bytes.
pub fn put_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    let _ = write!(out, "${}\r\n", bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends "nothing there".
pub fn put_nil(out: &mut Vec<u8>) {
    out.extend_from_slice(b"$-1\r\n");
}

/// Appends the head of an array; its `len` elements follow.
pub fn put_array(out: &mut Vec<u8>, len: usize) {
    let _ = write!(out, "*{len}\r\n");
}
