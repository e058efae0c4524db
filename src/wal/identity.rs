//! Who this data directory is: two copies of a small record, each with a checksum.
//!
//! Both copies are written, one after the other, each synced before the next begins: a crash
//! spoils at most one, and once [`Identity::store`] has returned one spoiled copy loses nothing.
//! There is no rename. docs/formats.md, "Identity", is the specification.
//!
//! The order at a first start is: store the identity with `created` false, make log and store, store
//! it again with `created` true. From then on both are opened with `must_exist`.

use super::LOG_DIR;
use super::error::WalError;
use super::spare::slot_of;
use crate::env::{Disk, Open, is_unreadable};
use crate::raft::codec::{Input, Malformed};
use crate::raft::{Member, NodeId};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The two copies, in the order in which they are written.
const FILES: [&str; 2] = ["identity-a", "identity-b"];

const MAGIC: [u8; 8] = *b"kontnode";
/// Version 1 has no secret.
const VERSION: u32 = 2;
const SECRET_SINCE: u32 = 2;

/// Bits of the flags.
const CREATED: u8 = 1;
const RESTORING: u8 = 2;
const REMOVED: u8 = 4;
const DENIED: u8 = 8;

/// Magic, version, checksum, length.
const PREFIX_BYTES: usize = 8 + 4 + 4 + 4;

/// No record is larger; a bound for what a spoiled length may ask for.
const BYTES_MAX: u64 = 1 << 20;

/// The secret that members show one another, and no client has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MembersSecret {
    /// The secret.
    pub bytes: [u8; 32],
    /// All members hold it: it is the cluster's for good.
    pub sealed: bool,
}

/// The secret never reaches a log.
impl fmt::Debug for MembersSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MembersSecret").field("sealed", &self.sealed).finish_non_exhaustive()
    }
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the cluster; zero while the node belongs to none.
    pub cluster: u64,
    /// The node's small id; zero while it has none.
    pub node: NodeId,
    /// Random number made with the directory.
    pub identity: u64,
    /// Whether log and store have been made: an empty directory is damage from then on.
    pub created: bool,
    /// The store is being filled from a backup, and was not when this was stored: nothing else may
    /// be made of the directory.
    pub restoring: bool,
    /// The cluster has removed this node: it is never to run again.
    pub removed: bool,
    /// Others know another directory under its id, or remember more than this one holds: it must not
    /// vote, also when those who know that have forgotten it.
    pub denied: bool,
    /// `HOST:PORT` under which the others reach this node.
    pub advertise: String,
    /// The members the cluster was, or is to be, formed of; empty for a node that joins.
    pub members: Vec<Member>,
    /// The members' secret; none in a directory of an earlier version.
    pub secret: Option<MembersSecret>,
}

/// A copy as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityCopy {
    /// There is no such file.
    Absent,
    /// It is not what was written, and why.
    Bad(&'static str),
    /// Its sequence number, the greater one counts, and what it says.
    Good(u64, Identity),
}

impl Identity {
    /// Reads the identity of the data directory `dir`. A copy that is missing, spoiled or older is
    /// written again. `None` only when the directory was never used.
    ///
    /// # Errors
    /// [`WalError::Damaged`] when no copy can be read although one was stored, and the disk's.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>, WalError> {
        let a = read_copy(disk, dir, 0)?;
        let b = read_copy(disk, dir, 1)?;
        let (seq, identity, repair) = match (a, b) {
            (IdentityCopy::Good(a, identity), IdentityCopy::Good(b, other)) => match a.cmp(&b) {
                std::cmp::Ordering::Equal => (a, identity, None),
                std::cmp::Ordering::Greater => (a, identity, Some(1)),
                std::cmp::Ordering::Less => (b, other, Some(0)),
            },
            (IdentityCopy::Good(seq, identity), _) => (seq, identity, Some(1)),
            (_, IdentityCopy::Good(seq, identity)) => (seq, identity, Some(0)),
            // The second copy is not begun before the first is durable: a first store was cut
            // off, and nothing rests on it, for the log is made later.
            (IdentityCopy::Absent | IdentityCopy::Bad(_), IdentityCopy::Absent) => {
                if holds_log(disk, dir)? {
                    let what = "it is missing or spoiled, but the directory holds a log";
                    return Err(WalError::damaged(&dir.join(FILES[0]), 0, what));
                }
                return Ok(None);
            }
            (IdentityCopy::Absent, IdentityCopy::Bad(what)) => {
                return Err(WalError::damaged(&dir.join(FILES[1]), 0, what));
            }
            (IdentityCopy::Bad(what), IdentityCopy::Bad(_)) => {
                let what = format!("{what}; so is the other copy, {}", FILES[1]);
                return Err(WalError::damaged(&dir.join(FILES[0]), 0, what));
            }
        };
        if let Some(copy) = repair {
            write_copy(disk, dir, copy, &identity.encode(copy, seq))?;
        }
        Ok(Some(identity))
    }

    /// Reads both copies as they are, and repairs nothing: path and what is there, each.
    ///
    /// # Errors
    /// The disk's, for the copy that could not be read.
    pub fn copies(disk: &dyn Disk, dir: &Path) -> [(PathBuf, Result<IdentityCopy, WalError>); 2] {
        [0, 1].map(|copy| (dir.join(FILES[copy]), read_copy(disk, dir, copy)))
    }

    /// Stores the identity durably in `dir`, which is there already.
    ///
    /// # Errors
    /// The disk's. After an error the old identity or the new one will be found.
    pub fn store(&self, disk: &dyn Disk, dir: &Path) -> Result<(), WalError> {
        let seq_of = |copy| {
            Ok(match read_copy(disk, dir, copy)? {
                IdentityCopy::Good(seq, _) => seq,
                IdentityCopy::Absent | IdentityCopy::Bad(_) => 0,
            })
        };
        let (a, b): (u64, u64) = (seq_of(0)?, seq_of(1)?);
        let seq = a.max(b) + 1;
        // The copy to spoil first is the one that is not the better one.
        let order = if a > b { [1, 0] } else { [0, 1] };
        for copy in order {
            write_copy(disk, dir, copy, &self.encode(copy, seq))?;
        }
        Ok(())
    }

    fn encode(&self, copy: usize, seq: u64) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        for word in [seq, self.cluster, self.node, self.identity] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let flags = [
            (self.created, CREATED),
            (self.restoring, RESTORING),
            (self.removed, REMOVED),
            (self.denied, DENIED),
        ];
        out.push(flags.into_iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum());
        put_text(&mut out, &self.advertise);
        out.extend_from_slice(&len32(self.members.len()));
        for member in &self.members {
            out.extend_from_slice(&member.id.to_le_bytes());
            out.extend_from_slice(&member.identity.to_le_bytes());
            put_text(&mut out, &member.address);
        }
        out.push(self.secret.map_or(0, |secret| 1 + u8::from(secret.sealed)));
        out.extend(self.secret.iter().flat_map(|secret| secret.bytes));
        let len = len32(out.len());
        out[16..20].copy_from_slice(&len);
        let sum = crc(&out, copy).to_le_bytes();
        out[12..16].copy_from_slice(&sum);
        out
    }

    fn decode(bytes: &[u8], copy: usize) -> Result<(u64, Identity), Malformed> {
        let mut input = Input(bytes);
        if input.bytes(8, "magic")? != MAGIC {
            return Err(Malformed("magic"));
        }
        let version = input.u32("version")?;
        let sum = input.u32("checksum")?;
        let len = input.u32("length")? as usize;
        let record = bytes.get(..len).ok_or(Malformed("length"))?;
        if len < PREFIX_BYTES || sum != crc(record, copy) {
            return Err(Malformed("checksum"));
        }
        if version == 0 || version > VERSION {
            return Err(Malformed("version"));
        }
        let mut input = Input(&record[PREFIX_BYTES..]);
        let seq = input.u64("sequence number")?;
        let cluster = input.u64("cluster")?;
        let node = input.u64("node")?;
        let identity = input.u64("identity")?;
        let flags = input.u8("flags")?;
        if flags & !(CREATED | RESTORING | REMOVED | DENIED) != 0 {
            return Err(Malformed("flags"));
        }
        let advertise = take_text(&mut input)?;
        let mut members = Vec::new();
        for _ in 0..input.u32("member count")? {
            let id = input.u64("member id")?;
            let identity = input.u64("member identity")?;
            members.push(Member { id, identity, address: take_text(&mut input)? });
        }
        let secret = match version >= SECRET_SINCE {
            true => take_secret(&mut input)?,
            false => None,
        };
        input.end("length")?;
        let is = |bit| flags & bit != 0;
        let known = Identity {
            cluster,
            node,
            identity,
            created: is(CREATED),
            restoring: is(RESTORING),
            removed: is(REMOVED),
            denied: is(DENIED),
            advertise,
            members,
            secret,
        };
        Ok((seq, known))
    }
}

/// Lengths here are those of addresses and member lists, far below 4 GiB.
fn len32(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&len32(text.len()));
    out.extend_from_slice(text.as_bytes());
}

fn take_text(input: &mut Input<'_>) -> Result<String, Malformed> {
    let bytes = input.blob("address")?;
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed("address"))?;
    Ok(text.to_string())
}

fn take_secret(input: &mut Input<'_>) -> Result<Option<MembersSecret>, Malformed> {
    let sealed = match input.u8("secret")? {
        0 => return Ok(None),
        1 => false,
        2 => true,
        _ => return Err(Malformed("secret")),
    };
    let bytes = input.bytes(32, "secret")?.try_into().map_err(|_| Malformed("secret"))?;
    Ok(Some(MembersSecret { bytes, sealed }))
}

/// Over all but the checksum itself; the copy's number keeps one from passing for the other.
fn crc(record: &[u8], copy: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[copy as u8]);
    hasher.update(record.get(..12).unwrap_or_default());
    hasher.update(record.get(16..).unwrap_or_default());
    hasher.finalize()
}

fn read_copy(disk: &dyn Disk, dir: &Path, copy: usize) -> Result<IdentityCopy, WalError> {
    let path = dir.join(FILES[copy]);
    let file = match disk.open(&path, Open::Read) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(IdentityCopy::Absent),
        Err(e) => return Err(WalError::io("open", &path, e)),
    };
    let len = file.len().map_err(|e| WalError::io("measure", &path, e))?;
    let mut bytes = vec![0; len.min(BYTES_MAX) as usize];
    match file.read_exact_at(&mut bytes, 0) {
        // The other copy makes it good.
        Err(e) if is_unreadable(&e) => return Ok(IdentityCopy::Bad("the disk cannot read it")),
        read => read.map_err(|e| WalError::unread(&path, 0, e))?,
    }
    Ok(match Identity::decode(&bytes, copy) {
        Ok((seq, identity)) => IdentityCopy::Good(seq, identity),
        Err(Malformed(what)) => IdentityCopy::Bad(what),
    })
}

fn write_copy(disk: &dyn Disk, dir: &Path, copy: usize, bytes: &[u8]) -> Result<(), WalError> {
    let path = dir.join(FILES[copy]);
    let file = match disk.open(&path, Open::Write) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => disk.open(&path, Open::CreateNew),
        other => other,
    };
    let file = file.map_err(|e| WalError::io("open", &path, e))?;
    // All of a longer one: behind the record may lie a sector that cannot be read before it is written again.
    let len = file.len().map_err(|e| WalError::io("measure", &path, e))?.min(BYTES_MAX);
    let mut whole = bytes.to_vec();
    whole.resize(bytes.len().max(len as usize), 0);
    file.write_all_at(&whole, 0).map_err(|e| WalError::io("write", &path, e))?;
    file.sync_all().map_err(|e| WalError::io("sync", &path, e))?;
    // Always: the file may have been made by a process that was killed before it could do this.
    disk.sync_dir(dir).map_err(|e| WalError::io("sync", dir, e))
}

/// Whether there are files of a log in the data directory `dir`.
///
/// # Errors
/// The disk's.
pub fn holds_log(disk: &dyn Disk, dir: &Path) -> Result<bool, WalError> {
    for dir in [dir, &dir.join(LOG_DIR)] {
        match disk.list(dir) {
            Ok(names) if names.iter().any(|name| slot_of(name).is_some()) => return Ok(true),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(WalError::io("list", dir, e)),
        }
    }
    Ok(false)
}
