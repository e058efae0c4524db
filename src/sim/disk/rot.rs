//! What happens to bytes that lie on a platter, behind everyone's back.

use super::{SECTOR_BYTES, SimDisk};
use std::path::{Path, PathBuf};

impl SimDisk {
    /// A byte of some file of the log that a later synced write followed: chosen by `at`.
    pub fn settled_byte(&self, at: u64) -> Option<(PathBuf, usize)> {
        let state = self.state();
        let files: Vec<_> = state
            .names
            .iter()
            .filter(|(path, _)| path.to_string_lossy().contains("log-"))
            .map(|(path, &id)| (path, state.files[id].last_synced))
            .filter(|(_, end)| *end > 0)
            .collect();
        let (path, end) = files.get(usize::try_from(at >> 32).ok()? % files.len().max(1))?;
        Some(((*path).into(), usize::try_from(at & 0xffff_ffff).ok()? % end))
    }

    /// Writes a sector that is settled a second time, where it does not belong: over another one
    /// that is settled. Whether that changed anything.
    pub fn misdirect(&self, from: u64, to: u64) -> bool {
        let (Some(from), Some(to)) = (self.settled_byte(from), self.settled_byte(to)) else {
            return false;
        };
        let sector = |byte: usize| byte / SECTOR_BYTES * SECTOR_BYTES;
        let mut state = self.state();
        let ids = (
            state.names.get(from.0.as_os_str()).copied(),
            state.names.get(to.0.as_os_str()).copied(),
        );
        let (Some(source), Some(target)) = ids else { return false };
        let (at, to) = (sector(from.1), sector(to.1));
        let Some(bytes) = state.files[source].bytes.get(at..at + SECTOR_BYTES) else {
            return false;
        };
        let bytes = bytes.to_vec();
        let settled = to + SECTOR_BYTES <= state.files[target].last_synced;
        match state.files[target].bytes.get_mut(to..to + SECTOR_BYTES) {
            Some(place) if settled && *place != bytes[..] => {
                place.copy_from_slice(&bytes);
                true
            }
            _ => false,
        }
    }

    /// Turns one bit over, behind everyone's back.
    pub fn flip(&self, path: &Path, byte: usize, bit: u8) {
        let mut state = self.state();
        if let Some(&id) = state.names.get(path.as_os_str())
            && let Some(byte) = state.files[id].bytes.get_mut(byte)
        {
            *byte ^= 1 << (bit % 8);
        }
    }

    /// The sector of that byte cannot be read from now on.
    pub fn spoil(&self, path: &Path, byte: usize) {
        let mut state = self.state();
        if let Some(&id) = state.names.get(path.as_os_str()) {
            state.files[id].spoiled.insert(byte / SECTOR_BYTES * SECTOR_BYTES);
        }
    }

    /// Reads that met such a sector.
    pub fn spoiled_reads(&self) -> u64 {
        self.state().spoiled_reads
    }
}
