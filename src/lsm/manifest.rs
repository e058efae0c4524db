//! The manifest: which tables the store consists of, and the applied index they hold.
//!
//! Two files, the slots, each with a sequence number and a checksum. A state is written to one and
//! synced, then to the other and synced; only then does anything rely on it, and only then are
//! files removed that it no longer names. The slot with the higher number counts. So a crash while
//! one is written leaves the other, without a rename; and a slot that rots, which nothing tells
//! from one that was torn, costs nothing that was ever relied on, since the other holds the same
//! state or a newer one. Opening makes both alike again. Both unreadable is damage.
//! docs/formats.md, "Manifest", is the specification.

use super::LsmError;
use super::block::Seed;
use super::bytes::{Input, Malformed, put_blob};
use super::error::lost;
use super::table::TableMeta;
use crate::env::{Disk, DiskFile, Open};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names of the slots.
const SLOTS: [&str; 2] = ["manifest-0", "manifest-1"];
/// First bytes of a slot.
const MAGIC: [u8; 8] = *b"kontman\n";
/// Version of the format.
const VERSION: u32 = 2;
/// Levels there can be: with a ratio of ten, the last of them holds a million times the first.
pub(super) const LEVELS: usize = 7;
/// No slot is larger: room for a hundred thousand tables with long keys.
const SLOT_BYTES_MAX: u64 = 256 << 20;
/// Slots grow by so much at a time: what a file system takes at once anyway.
const GROW_BYTES: u64 = 4 << 10;
/// Magic, version, identity, length of the body.
const HEADER_BYTES: usize = 8 + 4 + 8 + 4;

/// What a manifest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Every write up to this index is in the tables, none after.
    pub(super) applied: u64,
    /// No file has this number yet, or a higher one.
    pub(super) next_file: u64,
    /// For each level, the largest key that the last compaction took from it.
    pub(super) pointers: [Vec<u8>; LEVELS],
    /// For each level its tables: newest first in level 0, ascending in the others.
    pub(super) levels: [Vec<TableMeta>; LEVELS],
}

pub(super) fn encode(state: &State, identity: u64, slot: usize, sequence: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend(identity.to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(sequence.to_le_bytes());
    out.extend(state.applied.to_le_bytes());
    out.extend(state.next_file.to_le_bytes());
    for (pointer, tables) in state.pointers.iter().zip(&state.levels) {
        put_blob(&mut out, pointer);
        out.extend((tables.len() as u32).to_le_bytes());
        for table in tables {
            let TableMeta { number, bytes, entries, tombstones, .. } = *table;
            let TableMeta { written_by, written_as, .. } = *table;
            for number in [number, bytes, entries, tombstones, written_by, written_as] {
                out.extend(number.to_le_bytes());
            }
            put_blob(&mut out, &table.smallest);
            put_blob(&mut out, &table.largest);
        }
    }
    let len = (out.len() - HEADER_BYTES) as u32;
    out[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&len.to_le_bytes());
    let crc = Seed { identity, number: slot as u64 }.crc(0, &out);
    out.extend(crc.to_le_bytes());
    out
}

/// The identity of the store that a manifest says it is of; nothing of it is checked.
pub(super) fn identity_of(bytes: &[u8]) -> Result<u64, Malformed> {
    let mut input = Input::new(bytes, 0);
    input.take(MAGIC.len() + 4)?;
    input.u64()
}

/// Reads a slot: its sequence number and what it says.
pub(super) fn decode(bytes: &[u8], identity: u64, slot: usize) -> Result<(u64, State), Malformed> {
    let mut input = Input::new(bytes, 0);
    if input.take(8)? != MAGIC {
        return Err(Malformed("no manifest begins like this"));
    }
    if input.u32()? != VERSION {
        return Err(Malformed("the manifest's format is not known here"));
    }
    if input.u64()? != identity {
        return Err(Malformed("the manifest belongs to another store"));
    }
    let len = input.u32()? as usize;
    input.take(len)?;
    let end = input.at;
    if input.u32()? != (Seed { identity, number: slot as u64 }).crc(0, &bytes[..end]) {
        return Err(Malformed("the manifest's checksum does not fit"));
    }
    let mut input = Input::new(&bytes[..end], HEADER_BYTES);
    let sequence = input.u64()?;
    let mut state = State { applied: input.u64()?, next_file: input.u64()?, ..State::default() };
    for (pointer, tables) in state.pointers.iter_mut().zip(&mut state.levels) {
        *pointer = input.blob()?.to_vec();
        for _ in 0..input.u32()? {
            tables.push(TableMeta {
                number: input.u64()?,
                bytes: input.u64()?,
                entries: input.u64()?,
                tombstones: input.u64()?,
                written_by: input.u64()?,
                written_as: input.u64()?,
                smallest: input.blob()?.to_vec(),
                largest: input.blob()?.to_vec(),
            });
        }
    }
    if !input.is_empty() {
        return Err(Malformed("the manifest goes on behind its end"));
    }
    Ok((sequence, state))
}

/// Writes the slots. Invariant: between two writes both hold the same state, durably.
#[derive(Debug)]
pub(super) struct Manifest {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: u64,
    sequence: u64,
    files: [Option<Arc<dyn DiskFile>>; 2],
    /// How long each slot's file surely is, once that was asked for.
    room: [Option<u64>; 2],
}

/// What a slot turned out to be.
#[derive(Debug)]
pub(super) enum Slot {
    Missing,
    Bad(Malformed),
    Good(u64, Box<State>),
}

impl Manifest {
    /// Reads the manifest, or begins one when there is none and none must be. Then both slots hold
    /// it durably; the number says how many of them had to be written for that.
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        identity: u64,
        must_exist: bool,
    ) -> Result<(Manifest, State, u64), LsmError> {
        let mut files = [None, None];
        let mut best: Option<(u64, Box<State>)> = None;
        let mut sequences = [None; 2];
        let mut bad = None;
        for (i, file) in files.iter_mut().enumerate() {
            match read_slot(disk.as_ref(), dir, identity, i, Open::Write, file)? {
                Slot::Missing => {}
                Slot::Bad(why) => bad = Some((i, why)),
                Slot::Good(sequence, state) => {
                    sequences[i] = Some(sequence);
                    if best.as_ref().is_none_or(|(other, _)| sequence > *other) {
                        best = Some((sequence, state));
                    }
                }
            }
        }
        let (disk, dir) = (Arc::clone(disk), dir.to_path_buf());
        let Some((sequence, state)) = best else {
            // A crash can have interrupted the making of the first slot, when nothing else was
            // there.
            let tables = disk.list(&dir).map_err(|e| LsmError::io(&dir, 0, e))?;
            let virgin = files[1].is_none() && !tables.iter().any(|n| n.starts_with("table-"));
            if must_exist || !virgin {
                let (i, why) = bad.unwrap_or((0, Malformed("the manifest is missing")));
                return Err(LsmError::damaged(&dir.join(SLOTS[i]), 0, why.0));
            }
            let mut manifest =
                Manifest { disk, dir, identity, sequence: 0, files, room: [None; 2] };
            let state = State { next_file: 1, ..State::default() };
            manifest.write(&state)?;
            return Ok((manifest, state, 0));
        };
        let mut manifest = Manifest { disk, dir, identity, sequence, files, room: [None; 2] };
        let repairs = manifest.make_alike(&state, sequences)?;
        Ok((manifest, *state, repairs))
    }

    /// Whatever an earlier process left: makes both slots hold the state, and durably so. First it
    /// syncs the good ones, since that process may have been killed before it did. If both are good,
    /// the second is written again all the same: had its sync failed, it would look well here and
    /// not be on the disk, and a sync now would not help.
    fn make_alike(&mut self, state: &State, found: [Option<u64>; 2]) -> Result<u64, LsmError> {
        let good = found.map(|sequence| sequence == Some(self.sequence));
        for slot in (0..2).filter(|slot| good[*slot]) {
            if let Some(file) = &self.files[slot] {
                let path = self.dir.join(SLOTS[slot]);
                file.sync_all().map_err(|e| LsmError::io(&path, 0, e))?;
            }
        }
        self.sync_names()?;
        for slot in (0..2).filter(|slot| !good[*slot] || (*slot == 1 && good[0])) {
            if !good[slot] {
                self.clear(slot)?;
            }
            self.write_slot(slot, state)?;
        }
        Ok(good.into_iter().filter(|good| !good).count() as u64)
    }

    /// Writes zeros over all of a slot: a sector behind what it says may be the one that cannot be read, and only
    /// writing it again helps (seed 610004162).
    fn clear(&self, slot: usize) -> Result<(), LsmError> {
        let Some(file) = &self.files[slot] else { return Ok(()) };
        let path = self.dir.join(SLOTS[slot]);
        let io = |e| LsmError::io(&path, 0, e);
        let len = file.len().map_err(io)?.min(SLOT_BYTES_MAX);
        file.write_all_at(&vec![0; len as usize], 0).map_err(io)
    }

    /// Makes the slots long enough for a state, and changes nothing that they say: behind the end of
    /// what they hold stands what means nothing. So when there is no space for a new state, that is
    /// known before the first of them is written.
    pub(super) fn make_room(&mut self, state: &State) -> Result<(), LsmError> {
        let need = encode(state, self.identity, 0, self.sequence).len() as u64;
        for ((file, name), room) in self.files.iter().zip(SLOTS).zip(&mut self.room) {
            let Some(file) = file else { continue };
            let path = self.dir.join(name);
            let io = |e| LsmError::io(&path, 0, e);
            let len = match *room {
                Some(len) => len,
                None => *room.insert(file.len().map_err(io)?),
            };
            if len < need {
                let long = need.next_multiple_of(GROW_BYTES);
                file.write_all_at(&vec![0; (long - len) as usize], len).map_err(io)?;
                // Some file systems say only here that there is no space.
                file.sync_all().map_err(io)?;
                *room = Some(long);
            }
        }
        Ok(())
    }

    /// Makes this the state of the store: when it returns, durably and in both slots; when it fails
    /// or the machine stops, either this or the state before.
    pub(super) fn write(&mut self, state: &State) -> Result<(), LsmError> {
        self.sequence += 1;
        self.write_slot(0, state)?;
        self.write_slot(1, state)
    }

    fn write_slot(&mut self, slot: usize, state: &State) -> Result<(), LsmError> {
        let path = self.dir.join(SLOTS[slot]);
        let io = |e| LsmError::io(&path, 0, e);
        let bytes = encode(state, self.identity, slot, self.sequence);
        if bytes.len() as u64 > SLOT_BYTES_MAX {
            return Err(io(io::ErrorKind::FileTooLarge.into()));
        }
        let (file, fresh) = match &self.files[slot] {
            Some(file) => (Arc::clone(file), false),
            None => (self.disk.open(&path, Open::CreateNew).map_err(io)?, true),
        };
        self.files[slot] = Some(Arc::clone(&file));
        file.write_all_at(&bytes, 0).map_err(io)?;
        file.sync_all().map_err(io)?;
        if fresh { self.sync_names() } else { Ok(()) }
    }

    fn sync_names(&self) -> Result<(), LsmError> {
        self.disk.sync_dir(&self.dir).map_err(|e| LsmError::io(&self.dir, 0, e))
    }
}

/// Path of a slot.
pub(super) fn slot_path(dir: &Path, slot: usize) -> PathBuf {
    dir.join(SLOTS[slot])
}

/// Bytes of a slot that carry something; what follows is left from a longer manifest.
pub(super) fn used_bytes(state: &State, identity: u64, slot: usize, sequence: u64) -> u64 {
    encode(state, identity, slot, sequence).len() as u64
}

/// Reads a slot, and gives its file when it is there.
pub(super) fn read_slot(
    disk: &dyn Disk,
    dir: &Path,
    identity: u64,
    slot: usize,
    mode: Open,
    file: &mut Option<Arc<dyn DiskFile>>,
) -> Result<Slot, LsmError> {
    let path = dir.join(SLOTS[slot]);
    let io = |e| LsmError::io(&path, 0, e);
    let opened = match disk.open(&path, mode) {
        Ok(opened) => opened,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Slot::Missing),
        Err(e) => return Err(io(e)),
    };
    let len = opened.len().map_err(io)?;
    *file = Some(Arc::clone(&opened));
    if len > SLOT_BYTES_MAX + 4 {
        return Ok(Slot::Bad(Malformed("the manifest is too long")));
    }
    let mut bytes = vec![0; len as usize];
    if let Err(e) = opened.read_exact_at(&mut bytes, 0) {
        // A slot that cannot be read is a bad one: the other holds the same, and makes it good.
        return lost(&e).map(|what| Slot::Bad(Malformed(what))).ok_or_else(|| io(e));
    }
    Ok(match decode(&bytes, identity, slot) {
        Ok((sequence, state)) => Slot::Good(sequence, Box::new(state)),
        Err(why) => Slot::Bad(why),
    })
}
