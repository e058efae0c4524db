//! A backup file: the manifest of an [`super::Export`] and the bytes of its tables, one behind the
//! other. docs/formats.md, "Backup", is the specification.
//!
//! It is written front to back by whoever fetches the pieces, and read by [`super::Import`] like any
//! other source. A checksum over everything is its last word, so that a file that was cut off or
//! spoiled is known before anything is made of it. The tables carry their own checksums as well.
//!
//! Left out: who fetches, where the file lies, and what becomes of it.

use super::bytes::{Input, Malformed};
use super::manifest::{self, State};
use super::snapshot::{Piece, TRAVELLING_SLOT, plausible};
use super::{LsmError, PIECE_BYTES_MAX};
use crate::env::{Disk, DiskFile, Open};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// First bytes of a backup.
const MAGIC: [u8; 8] = *b"kontback";
/// First bytes of its trailer.
const END: [u8; 8] = *b"kontbend";
/// Version of the format.
const VERSION: u32 = 1;
/// Magic, version, cluster, length of the manifest.
const HEAD_BYTES: usize = 8 + 4 + 8 + 4;
/// Magic, length of the file, checksum.
const TRAILER_BYTES: usize = 8 + 8 + 4;
/// No manifest is longer: as in a store.
const MANIFEST_BYTES_MAX: usize = 256 << 20;

/// What a manifest that travels says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Every write up to this index is in it, none after.
    pub applied: u64,
    /// Number and length of each table, in the order in which a backup holds them.
    pub tables: Vec<(u64, u64)>,
}

impl Contents {
    /// Reads a manifest that an [`super::Export`] gave.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(manifest: &[u8]) -> Result<Contents, &'static str> {
        let decoded = manifest::identity_of(manifest)
            .and_then(|identity| manifest::decode(manifest, identity, TRAVELLING_SLOT))
            .and_then(|(_, state)| plausible(&state).map(|()| state));
        let State { applied, levels, .. } = decoded.map_err(|Malformed(what)| what)?;
        let tables = levels.iter().flatten().map(|t| (t.number, t.bytes)).collect();
        Ok(Contents { applied, tables })
    }

    /// Bytes of all tables.
    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.1).sum()
    }

    /// The pieces of all tables, in the order in which a backup holds them.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.tables.iter().flat_map(|&(table, bytes)| {
            let offsets = (0..bytes).step_by(PIECE_BYTES_MAX);
            let len = move |offset: u64| (bytes - offset).min(PIECE_BYTES_MAX as u64) as usize;
            offsets.map(move |offset| Piece { table, offset, len: len(offset) })
        })
    }
}

/// Writes a backup.
#[derive(Debug)]
pub struct BackupWriter<W> {
    out: W,
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl<W: Write> BackupWriter<W> {
    /// Begins one of a store of that cluster. The pieces of its tables follow.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(out: W, cluster: u64, manifest: &[u8]) -> io::Result<BackupWriter<W>> {
        let mut writer = BackupWriter { out, crc: crc32fast::Hasher::new(), bytes: 0 };
        let len = u32::try_from(manifest.len()).map_err(io::Error::other)?;
        writer.put(&MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        writer.put(&cluster.to_le_bytes())?;
        writer.put(&len.to_le_bytes())?;
        writer.put(manifest)?;
        let crc = writer.crc.clone().finalize();
        writer.put(&crc.to_le_bytes())?;
        Ok(writer)
    }

    /// Appends the next piece.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Ends it; gives its length, bytes. Syncing is the caller's.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        let len = self.bytes + TRAILER_BYTES as u64;
        self.put(&END)?;
        self.put(&len.to_le_bytes())?;
        let crc = self.crc.clone().finalize();
        self.put(&crc.to_le_bytes())?;
        self.out.flush()?;
        Ok((self.out, len))
    }
}

/// A backup that is read.
#[derive(Debug)]
pub struct Backup {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    len: u64,
    cluster: u64,
    manifest: Vec<u8>,
    contents: Contents,
    /// Where the first table begins.
    tables_at: u64,
    fingerprint: u64,
}

impl Backup {
    /// Opens one: looks at its head and its end, not at what lies between.
    ///
    /// # Errors
    /// [`LsmError::Damaged`] when it is no backup or not a whole one; the disk's.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<Backup, LsmError> {
        let io = |offset| move |e| LsmError::read(path, offset, e);
        let damaged = |offset, what| LsmError::damaged(path, offset, what);
        let file = disk.open(path, Open::Read).map_err(|e| LsmError::io(path, 0, e))?;
        let len = file.len().map_err(io(0))?;
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, 0).map_err(io(0))?;
        let bad = |Malformed(what)| damaged(0, what);
        let mut input = Input::new(&head, 0);
        if input.take(8).map_err(bad)? != MAGIC {
            return Err(damaged(0, "no backup begins like this"));
        }
        if input.u32().map_err(bad)? != VERSION {
            return Err(damaged(8, "the backup's format is not known here"));
        }
        let cluster = input.u64().map_err(bad)?;
        let manifest_len = input.u32().map_err(bad)? as usize;
        let tables_at = (HEAD_BYTES + manifest_len + 4) as u64;
        if manifest_len > MANIFEST_BYTES_MAX || tables_at + TRAILER_BYTES as u64 > len {
            return Err(damaged(20, "the backup is shorter than its manifest"));
        }
        let mut manifest = vec![0; manifest_len];
        file.read_exact_at(&mut manifest, HEAD_BYTES as u64).map_err(io(HEAD_BYTES as u64))?;
        let mut crc = [0; 4];
        file.read_exact_at(&mut crc, tables_at - 4).map_err(io(tables_at - 4))?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&head);
        hasher.update(&manifest);
        let head_crc = hasher.finalize();
        if u32::from_le_bytes(crc) != head_crc {
            return Err(damaged(0, "the checksum of the backup's head does not fit"));
        }
        let contents = Contents::of(&manifest).map_err(|what| damaged(HEAD_BYTES as u64, what))?;
        let end = tables_at.checked_add(contents.bytes());
        let end = end.filter(|end| end.checked_add(TRAILER_BYTES as u64) == Some(len));
        let end = end.ok_or(damaged(len, "the backup is not as long as its tables"))?;
        let mut trailer = [0; TRAILER_BYTES];
        file.read_exact_at(&mut trailer, end).map_err(io(end))?;
        let mut input = Input::new(&trailer, 0);
        let bad = |Malformed(what)| damaged(end, what);
        if input.take(8).map_err(bad)? != END || input.u64().map_err(bad)? != len {
            return Err(damaged(end, "no backup ends like this"));
        }
        let file_crc = input.u32().map_err(bad)?;
        let fingerprint = u64::from(head_crc) << 32 | u64::from(file_crc);
        let path = path.to_path_buf();
        Ok(Backup { path, file, len, cluster, manifest, contents, tables_at, fingerprint })
    }

    /// Reads all of it and compares its checksum.
    ///
    /// # Errors
    /// As [`Backup::open`].
    pub fn verify(&self) -> Result<(), LsmError> {
        let end = self.len - 4;
        let mut hasher = crc32fast::Hasher::new();
        let mut bytes = vec![0; PIECE_BYTES_MAX];
        for offset in (0..end).step_by(PIECE_BYTES_MAX) {
            let len = (end - offset).min(PIECE_BYTES_MAX as u64) as usize;
            self.fill(&mut bytes[..len], offset)?;
            hasher.update(&bytes[..len]);
        }
        if hasher.finalize() != self.fingerprint as u32 {
            return Err(self.damaged(end, "the backup's checksum does not fit: it is damaged"));
        }
        Ok(())
    }

    /// A number that no other backup has, as good as surely.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The cluster it is of.
    pub fn cluster(&self) -> u64 {
        self.cluster
    }

    /// What it holds.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// As [`super::Export::manifest`] gave it.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// Reads a piece of a table.
    ///
    /// # Errors
    /// [`LsmError::Rejected`] when there is no such piece; the disk's.
    pub fn read(&self, piece: Piece) -> Result<Vec<u8>, LsmError> {
        let mut at = self.tables_at;
        for &(table, bytes) in &self.contents.tables {
            let end = piece.offset.checked_add(piece.len as u64);
            if table == piece.table && end.is_some_and(|end| end <= bytes) {
                let mut out = vec![0; piece.len];
                self.fill(&mut out, at + piece.offset)?;
                return Ok(out);
            }
            at += bytes;
        }
        Err(LsmError::Rejected { what: "no such piece" })
    }

    fn fill(&self, out: &mut [u8], offset: u64) -> Result<(), LsmError> {
        self.file.read_exact_at(out, offset).map_err(|e| LsmError::read(&self.path, offset, e))
    }

    /// The error for something that does not fit in it.
    pub fn damaged(&self, offset: u64, what: &'static str) -> LsmError {
        LsmError::damaged(&self.path, offset, what)
    }
}
