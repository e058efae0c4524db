//! Seeded mutations of inputs.

use crate::sim::dice::Dice;

/// What inputs look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The body of a frame: integers of fixed width, little end first.
    Body,
    /// Lines.
    Lines,
}

/// Longest input, bytes: beyond the limits of most fields, and quick.
const BYTES_MAX: usize = 64 << 10;

/// Words that mean something to one dialect or another.
const WORDS: [&[u8]; 28] = [
    b"\r\n",
    b"\n",
    b" ",
    b"\0",
    b"*",
    b"$",
    b"*-1\r\n",
    b"$-1\r\n",
    b"*1\r\n",
    b"$0\r\n\r\n",
    b"*1048577\r\n",
    b"$9223372036854775807\r\n",
    b"4294967296",
    b"-",
    b"\"",
    b"'",
    b"\\x",
    b"GET ",
    b"SET ",
    b"DEL ",
    b"AUTH ",
    b"POST / HTTP/1.1\r\n",
    b"Host: localhost\r\n",
    b"Content-Length: 18446744073709551615\r\n",
    b"HTTP/1.1",
    b"Transfer-Encoding: chunked\r\n",
    b"\xff\xfe",
    b"QUIT\r\n",
];

/// One of the corpus, with a few mutations or none.
pub(super) fn mutated(corpus: &[Vec<u8>], form: Form, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = dice.pick(corpus).clone();
    for _ in 0..dice.log_between(1, 8) - 1 {
        mutate(&mut bytes, corpus, form, dice);
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn place(bytes: &[u8], dice: &mut Dice) -> usize {
    dice.below(bytes.len() as u64 + 1) as usize
}

/// A stretch of it, mostly a short one.
fn stretch(bytes: &[u8], dice: &mut Dice) -> std::ops::Range<usize> {
    let from = place(bytes, dice);
    let most = (bytes.len() - from) as u64;
    let len = if dice.chance(1, 4) { dice.below(most + 1) } else { dice.below(most.min(9) + 1) };
    from..from + len as usize
}

fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], form: Form, dice: &mut Dice) {
    match dice.below(9) {
        0 => {
            if let Some(byte) = {
                let at = place(bytes, dice);
                bytes.get_mut(at)
            } {
                *byte ^= 1 << dice.below(8);
            }
        }
        1 => {
            if let Some(byte) = {
                let at = place(bytes, dice);
                bytes.get_mut(at)
            } {
                *byte = *dice.pick(&[0, 1, 2, 0x7f, 0x80, 0xff, b'0', b'9', b'\n']);
            }
        }
        // A length, a count, an index or a term becomes an extreme one.
        2 if form == Form::Body => {
            let number = match dice.below(4) {
                0 => dice.below(20),
                1 => u64::MAX - dice.below(4),
                2 => 1 << dice.below(64),
                _ => (1 << dice.below(64)) - 1,
            };
            let width = *dice.pick(&[1, 2, 4, 8]);
            let at = place(bytes, dice);
            for (to, from) in bytes[at..].iter_mut().zip(&number.to_le_bytes()[..width]) {
                *to = *from;
            }
        }
        2 | 3 => {
            let at = place(bytes, dice);
            bytes.splice(at..at, dice.pick(&WORDS).iter().copied());
        }
        4 => {
            let range = stretch(bytes, dice);
            bytes.drain(range);
        }
        5 => {
            let copy = bytes[stretch(bytes, dice)].to_vec();
            let at = place(bytes, dice);
            bytes.splice(at..at, copy);
        }
        6 => {
            let at = place(bytes, dice);
            bytes.truncate(at);
        }
        // Of another input.
        7 => {
            let other = dice.pick(corpus);
            let from = stretch(other, dice);
            let at = stretch(bytes, dice);
            bytes.splice(at, other[from].iter().copied());
        }
        _ => {
            let at = place(bytes, dice);
            let many = dice.log_between(1, 5_000) as usize;
            let byte = *dice.pick(b"a0 \r\n\0*$\xff");
            bytes.splice(at..at, std::iter::repeat_n(byte, many));
        }
    }
}

/// Inputs as a stream of frames, or nearly so.
pub(super) fn framed(inputs: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut stream = Vec::new();
    for input in inputs {
        crate::wire::frame::put_frame(&mut stream, |body| body.extend_from_slice(input));
    }
    if dice.chance(1, 8) {
        mutate(&mut stream, inputs, Form::Body, dice);
    }
    stream
}

/// A stream as it may arrive: in one piece, or in several.
pub(super) fn pieces<'a>(stream: &'a [u8], dice: &mut Dice) -> Vec<&'a [u8]> {
    let size = *dice.pick(&[usize::MAX, usize::MAX, 1000, 64, 7]);
    // A long one byte by byte takes its time and says nothing more.
    stream.chunks(size.max(stream.len() / 500 + 1)).collect()
}
