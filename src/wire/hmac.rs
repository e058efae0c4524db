//! SHA-256 (FIPS 180-4), HMAC-SHA-256 (RFC 2104) and a comparison in constant time.
//!
//! The handshake ([`super::proof`]) shows with them that a side knows a secret, without showing the
//! secret. Here rather than from a crate: the crate has two dependencies, and these are sixty lines whose
//! results are published. Neither branches nor table look-ups depend on what is hashed.
//!
//! Left out: speed. A handshake hashes a few hundred bytes.

/// Bytes of a hash, and of a code made with a key.
pub const HASH_BYTES: usize = 32;
/// A hash, or a code made with a key.
pub type Hash = [u8; HASH_BYTES];

/// Bytes that are taken in at once.
const BLOCK_BYTES: usize = 64;

/// The first 32 bits of the fractional parts of the square roots of the first 8 primes (FIPS 180-4, 5.3.3).
const BEGIN: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
#[rustfmt::skip]
const ROUNDS: [u32; 64] = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
];

/// SHA-256 of pieces, one behind the other.
pub fn sha256(pieces: &[&[u8]]) -> Hash {
    let mut state = BEGIN;
    let mut block = [0; BLOCK_BYTES];
    let (mut held, mut bytes) = (0, 0u64);
    for &byte in pieces.iter().copied().flatten() {
        block[held] = byte;
        held += 1;
        bytes += 1;
        if held == BLOCK_BYTES {
            compress(&mut state, &block);
            held = 0;
        }
    }
    // A one bit, zeros, and the length in bits.
    block[held] = 0x80;
    block[held + 1..].fill(0);
    if held + 1 > BLOCK_BYTES - 8 {
        compress(&mut state, &block);
        block.fill(0);
    }
    block[BLOCK_BYTES - 8..].copy_from_slice(&(bytes * 8).to_be_bytes());
    compress(&mut state, &block);
    let mut hash = [0; HASH_BYTES];
    for (out, word) in hash.chunks_exact_mut(4).zip(state) {
        out.copy_from_slice(&word.to_be_bytes());
    }
    hash
}

/// FIPS 180-4, 6.2.2.
fn compress(state: &mut [u32; 8], block: &[u8; BLOCK_BYTES]) {
    let mut words = [0u32; 64];
    for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
        *word = bytes.iter().fold(0, |word, &byte| word << 8 | u32::from(byte));
    }
    for t in 16..64 {
        let (a, b) = (words[t - 15], words[t - 2]);
        let s0 = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
        let s1 = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
        words[t] = words[t - 16].wrapping_add(s0).wrapping_add(words[t - 7]).wrapping_add(s1);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (round, word) in ROUNDS.iter().zip(words) {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = (e & f) ^ (!e & g);
        let t1 = h.wrapping_add(s1).wrapping_add(choice).wrapping_add(*round).wrapping_add(word);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let majority = (a & b) ^ (a & c) ^ (b & c);
        let t2 = s0.wrapping_add(majority);
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    for (word, new) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(new);
    }
}

/// HMAC-SHA-256 of pieces, one behind the other, under a key of any length.
pub fn hmac(key: &[u8], pieces: &[&[u8]]) -> Hash {
    let mut padded = [0; BLOCK_BYTES];
    if key.len() > BLOCK_BYTES {
        padded[..HASH_BYTES].copy_from_slice(&sha256(&[key]));
    } else {
        padded[..key.len()].copy_from_slice(key);
    }
    let inner_key = padded.map(|byte| byte ^ 0x36);
    let outer_key = padded.map(|byte| byte ^ 0x5c);
    let mut all: Vec<&[u8]> = vec![&inner_key];
    all.extend_from_slice(pieces);
    sha256(&[&outer_key, &sha256(&all)])
}

/// Compares in a time that depends on the lengths only.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a.iter().zip(b).fold(0u8, |d, (x, y)| std::hint::black_box(d | (x ^ y)));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The examples of FIPS 180-4 (NIST, "SHA256.pdf"), the empty message, and a million times `a`; in one
    /// piece and in many.
    #[test]
    fn hashes_are_those_of_the_standard() {
        let two = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        let million = vec![b'a'; 1_000_000];
        let cases: [(&[u8], &str); 4] = [
            (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (two, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"),
            (&million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ];
        for (message, expected) in cases {
            assert_eq!(hex(&sha256(&[message])), expected);
            let pieces: Vec<&[u8]> = message.chunks(7).collect();
            assert_eq!(hex(&sha256(&pieces)), expected);
        }
    }

    /// Every length around the ends of blocks is padded as the standard says: the hash of all of them is that
    /// of another program (`for n in 0..=130: h.update(sha256(b"x" * n).digest())` in Python's hashlib).
    #[test]
    fn messages_of_every_length_are_padded() {
        let all: Vec<Hash> = (0..=130).map(|n| sha256(&[&vec![b'x'; n]])).collect();
        let pieces: Vec<&[u8]> = all.iter().map(|hash| &hash[..]).collect();
        assert_eq!(
            hex(&sha256(&pieces)),
            "f5a018ad6f7a21c451c8d98b57699f4aeeb1976b88771c339c7ea60cd09c64ef"
        );
    }

    /// RFC 4231, test cases 1 to 4, 6 and 7.
    #[test]
    fn codes_are_those_of_the_standard() {
        let counted: Vec<u8> = (1..=25).collect();
        let cases: [(&[u8], &[u8], &str); 6] = [
            (
                &[0x0b; 20],
                b"Hi There",
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 20],
                &[0xdd; 50],
                "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
            ),
            (
                &counted,
                &[0xcd; 50],
                "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
            ),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
            (
                &[0xaa; 131],
                b"This is a test using a larger than block-size key and a larger than block-size data. \
                  The key needs to be hashed before being used by the HMAC algorithm.",
                "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
            ),
        ];
        for (key, message, expected) in cases {
            assert_eq!(hex(&hmac(key, &[message])), expected);
            let (front, back) = message.split_at(message.len() / 3);
            assert_eq!(hex(&hmac(key, &[front, back])), expected);
        }
    }

    /// Secrets are equal when all bytes are.
    #[test]
    fn secrets_are_compared_whole() {
        assert!(equal(b"", b""));
        assert!(equal(b"abc", b"abc"));
        for other in [&b"abd"[..], b"bbc", b"ab", b"abcd", b""] {
            assert!(!equal(b"abc", other));
        }
    }
}
