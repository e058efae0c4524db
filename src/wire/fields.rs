//! The few field shapes that the binary frames are made of, beside plain integers.

use crate::raft::codec::{Input, Malformed};

/// Longest `HOST:PORT`: a DNS name has at most 253 bytes, a port six with its colon.
pub const ADDRESS_BYTES_MAX: usize = 260;

/// Longest message for a person in a refusal: a few lines.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// Appends a `u32` count. A count beyond 4 Gi is our own bug: memory bounds lie far below.
pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    // invariant: every count is bounded far below by the limits of a frame
    let count = u32::try_from(count).expect("limits keep every count below 4 Gi");
    out.extend_from_slice(&count.to_le_bytes());
}

/// Appends a `u32` length and the bytes.
pub(super) fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends text, cut at a character boundary so that it stays within `max` bytes.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str, max: usize) {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    put_blob(out, &text.as_bytes()[..end]);
}

/// Reads text of at most `max` bytes.
pub(super) fn take_text(
    input: &mut Input<'_>,
    max: usize,
    what: &'static str,
) -> Result<String, Malformed> {
    let bytes = input.blob(what)?;
    if bytes.len() > max {
        return Err(Malformed(what));
    }
    std::str::from_utf8(bytes).map(str::to_string).map_err(|_| Malformed(what))
}

/// Reads a byte that is 0 or 1.
pub(super) fn take_flag(input: &mut Input<'_>, what: &'static str) -> Result<bool, Malformed> {
    match input.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed(what)),
    }
}

/// Appends an optional `u64`: a flag, and the number when it is there.
pub(super) fn put_option(out: &mut Vec<u8>, value: Option<u64>) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// Reads an optional `u64`.
pub(super) fn take_option(
    input: &mut Input<'_>,
    what: &'static str,
) -> Result<Option<u64>, Malformed> {
    take_flag(input, what)?.then(|| input.u64(what)).transpose()
}

/// Reads a `u32` count and that many items of at least `item_bytes_min` bytes each. Memory is taken
/// only for as many as the bytes that are there can hold.
pub(super) fn take_list<T>(
    input: &mut Input<'_>,
    item_bytes_min: usize,
    count_max: usize,
    what: &'static str,
    mut take: impl FnMut(&mut Input<'_>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = input.u32(what)? as usize;
    if count > count_max || count > input.0.len() / item_bytes_min {
        return Err(Malformed(what));
    }
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(take(input)?);
    }
    Ok(items)
}
