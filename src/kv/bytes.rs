//! Reading and writing bytes: the pieces that every byte form of `kv` is made of.
//!
//! docs/formats.md, "Command", is the specification. Numbers are varints (LEB128, seven bits a
//! byte, lowest first) because most of them are small; only the shortest form is accepted, so that
//! equal values have equal bytes. Decoding trusts nothing: a length or count is checked against
//! what is there before memory is taken, and a refusal names the field. Left out: anything that
//! reads from a stream; a frame is complete before it is decoded.

use std::fmt;

/// Bytes that do not decode: what was wrong. Class: reject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed {}", self.0)
    }
}

impl std::error::Error for Malformed {}

/// Longest varint: ten groups of seven bits hold 64.
pub const VARINT_BYTES_MAX: usize = 10;

/// A cursor over bytes from outside.
#[derive(Clone, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed(what))?;
        self.0 = tail;
        Ok(head)
    }

    /// The next byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        let (&first, tail) = self.0.split_first().ok_or(Malformed(what))?;
        self.0 = tail;
        Ok(first)
    }

    /// A varint in its shortest form.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let mut value = 0;
        for group in 0..VARINT_BYTES_MAX {
            let byte = self.u8(what)?;
            // The last group has one bit left; and a last byte of zero says nothing.
            let too_big = group == VARINT_BYTES_MAX - 1 && byte > 1;
            let too_long = group > 0 && byte == 0;
            if too_big || too_long {
                return Err(Malformed(what));
            }
            value |= u64::from(byte & 0x7f) << (7 * group);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed(what))
    }

    /// A varint that fits 32 bits.
    pub fn varint32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        u32::try_from(self.varint(what)?).map_err(|_| Malformed(what))
    }

    /// A signed number: zigzag, so that small negative numbers are short too.
    pub fn signed(&mut self, what: &'static str) -> Result<i64, Malformed> {
        let raw = self.varint(what)?;
        Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    /// A varint length and that many bytes.
    pub fn blob(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.varint(what)?).map_err(|_| Malformed(what))?;
        self.bytes(len, what)
    }

    /// How many things follow: at most `max`, and no more than the bytes left can hold when each
    /// takes `least` bytes. What is reserved for them is so bounded by what was received.
    pub fn count(
        &mut self,
        max: usize,
        least: usize,
        what: &'static str,
    ) -> Result<usize, Malformed> {
        let count = usize::try_from(self.varint(what)?).map_err(|_| Malformed(what))?;
        if count > max || count > self.0.len() / least {
            return Err(Malformed(what));
        }
        Ok(count)
    }

    /// Refuses left-over bytes.
    pub fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed(what)) }
    }
}

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number as a zigzag varint.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Appends a length and the bytes.
pub fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_varint_has_exactly_one_form() {
        // A padded zero, a padded one, an eleventh byte and a 65th bit would each give one number
        // a second form, and with it two equal commands different bytes.
        for bytes in [&[0x80, 0x00][..], &[0x81, 0x00], &[0xff; 11], &{
            let mut b = [0xff; 10];
            b[9] = 2;
            b
        }] {
            assert_eq!(Input(bytes).varint("n"), Err(Malformed("n")), "{bytes:x?}");
        }
        let mut largest = [0xff; 10];
        largest[9] = 1;
        assert_eq!(Input(&largest).varint("n"), Ok(u64::MAX));
    }

    #[test]
    fn a_count_is_refused_before_memory_is_taken_for_it() {
        // Four bytes follow: two things of two bytes may be there, three may not.
        assert_eq!(Input(&[2, 0, 0, 0, 0]).count(9, 2, "n"), Ok(2));
        assert_eq!(Input(&[3, 0, 0, 0, 0]).count(9, 2, "n"), Err(Malformed("n")));
        assert_eq!(Input(&[2, 0, 0, 0, 0]).count(1, 2, "n"), Err(Malformed("n")));
    }

    proptest! {
        #[test]
        fn numbers_come_back_as_they_went(value: u64, signed: i64, shift in 0u32..64) {
            // The shift makes every length of varint likely.
            let (value, signed) = (value >> shift, signed >> shift);
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_signed(&mut out, signed);
            put_signed(&mut out, !signed);
            let mut input = Input(&out);
            prop_assert_eq!(input.varint("n"), Ok(value));
            prop_assert_eq!(input.signed("n"), Ok(signed));
            prop_assert_eq!(input.signed("n"), Ok(!signed));
            prop_assert_eq!(input.end("n"), Ok(()));
        }
    }
}
