//! Frames of a connection on which a node fetches a snapshot: one question, one answer, in turn.
//!
//! docs/protocol.md, "Snapshots", is the specification. What a manifest says and what a piece is
//! means nothing here.

use super::Malformed;
use super::fields::put_blob;
use super::frame::put_frame;
use crate::raft::codec::Input;

mod kind {
    pub(super) const BEGIN: u8 = 1;
    pub(super) const PIECE: u8 = 2;
    pub(super) const BEGINS: u8 = 3;
    pub(super) const BYTES: u8 = 4;
    pub(super) const GONE: u8 = 5;
}

/// A frame in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotFrame {
    /// Asks what there is, if it reaches to this index.
    Begin {
        /// Index that it must reach.
        index: u64,
    },
    /// Asks for a range of a table.
    Piece {
        /// The table's number.
        table: u64,
        /// Where the range begins, bytes.
        offset: u64,
        /// Its length, bytes.
        len: u32,
    },
    /// Says what there is.
    Begins {
        /// The manifest (docs/formats.md).
        manifest: Vec<u8>,
    },
    /// Gives a range of a table.
    Bytes {
        /// The table's number.
        table: u64,
        /// Where the range begins, bytes.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// There is nothing like that.
    Gone,
}

/// Appends a frame; gives the length of its body.
pub fn put_snapshot_frame(out: &mut Vec<u8>, frame: &SnapshotFrame) -> usize {
    put_frame(out, |out| match frame {
        SnapshotFrame::Begin { index } => {
            out.push(kind::BEGIN);
            out.extend_from_slice(&index.to_le_bytes());
        }
        SnapshotFrame::Piece { table, offset, len } => {
            out.push(kind::PIECE);
            out.extend_from_slice(&table.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
        SnapshotFrame::Begins { manifest } => {
            out.push(kind::BEGINS);
            put_blob(out, manifest);
        }
        SnapshotFrame::Bytes { table, offset, bytes } => {
            out.push(kind::BYTES);
            out.extend_from_slice(&table.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            put_blob(out, bytes);
        }
        SnapshotFrame::Gone => out.push(kind::GONE),
    })
}

/// Reads a frame's body.
pub fn take_snapshot_frame(body: &[u8]) -> Result<SnapshotFrame, Malformed> {
    let mut input = Input(body);
    let frame = match input.u8("frame kind")? {
        kind::BEGIN => SnapshotFrame::Begin { index: input.u64("index")? },
        kind::PIECE => SnapshotFrame::Piece {
            table: input.u64("table")?,
            offset: input.u64("offset")?,
            len: input.u32("length")?,
        },
        kind::BEGINS => SnapshotFrame::Begins { manifest: input.blob("manifest")?.to_vec() },
        kind::BYTES => SnapshotFrame::Bytes {
            table: input.u64("table")?,
            offset: input.u64("offset")?,
            bytes: input.blob("bytes")?.to_vec(),
        },
        kind::GONE => SnapshotFrame::Gone,
        _ => return Err(Malformed("frame kind")),
    };
    input.end("frame")?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameReader;

    /// Each frame comes back as it was, and none of its cuts or longer forms is taken.
    #[test]
    fn snapshot_frames_round_trip_and_have_one_form() {
        let frames = [
            SnapshotFrame::Begin { index: 7 },
            SnapshotFrame::Piece { table: 3, offset: 1 << 40, len: 9 },
            SnapshotFrame::Begins { manifest: b"tables".to_vec() },
            SnapshotFrame::Bytes { table: 3, offset: 4, bytes: b"block".to_vec() },
            SnapshotFrame::Gone,
        ];
        for frame in frames {
            let mut out = Vec::new();
            put_snapshot_frame(&mut out, &frame);
            let mut reader = FrameReader::new(1 << 10);
            reader.feed(&out);
            let body = reader.next_frame().unwrap().unwrap().to_vec();
            assert_eq!(take_snapshot_frame(&body), Ok(frame));
            assert!((0..body.len()).all(|cut| take_snapshot_frame(&body[..cut]).is_err()));
            assert!(take_snapshot_frame(&[&body[..], b"x"].concat()).is_err());
        }
        assert!(take_snapshot_frame(&[9]).is_err());
    }
}
