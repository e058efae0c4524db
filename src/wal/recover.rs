//! Opening a log: what was found is made durable, what is torn is cut.
//!
//! `look` decides what is part of the log and what is refused. All checks come before the first
//! write: a log that is refused is left as it was found. The last batch may be only in the
//! operating system's cache, even after a sync that failed; it is written again and synced before
//! the log is used.

use super::error::WalError;
use super::format::{self, ALIGN_BYTES, BATCH_HEADER_BYTES, Header, Start};
use super::look::{Found, Head, Look, Tail, WINDOW_BYTES, Window, look, would_cut};
use super::recovered::{Cut, Recovered};
use super::spare::{Preparer, SPARES_MAX, Spare};
use super::{Current, Options, Staged, Wal, write_end_mark, write_header};
use crate::env::{Disk, Open};
use crate::raft::HardState;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

pub(super) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: Options,
) -> Result<(Wal, Recovered), WalError> {
    let io = |what: &'static str| move |e: io::Error| WalError::io(what, dir, e);
    disk.create_dir(dir).map_err(io("create"))?;
    let found = look(disk.as_ref(), dir, options.identity, options.must_exist, Open::Write)?;
    // The log is sound. Only from here on is anything written.
    let Look { files, by_number, newest, shape, mut places, next_seq, first_segment, .. } = found;
    let (batches, mut tail, mut next_slot) = (found.batches, found.tail, found.next_slot);
    if files.is_empty() {
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty());
        disk.sync_dir(parent.unwrap_or(Path::new("."))).map_err(io("sync the parent of"))?;
    }
    let mut cut = None;
    if let Some((number, at)) = newest {
        cut = secure(&files[at], &tail, next_seq)?;
        // The roll may have been cut off in front of the mark; or its sync has failed. Also when
        // the log begins with the newest segment: the one before it still has its header.
        if tail.last.is_none()
            && let Some(&before) = by_number.get(&(number - 1))
        {
            let Found { path, file, len, .. } = &files[before];
            let end = format::data_end(*len);
            write_end_mark(file.as_ref(), path, options.identity, number - 1, end)?;
        }
    }
    let (mut spares, mut surplus) = (Vec::new(), Vec::new());
    for found in files.into_iter().filter(|found| !found.is_live(first_segment)) {
        let Found { path, file, len, head } = found;
        if matches!(head, Head::Bad) {
            // Blank, so that it is not taken for a header that was torn once more.
            let blank = vec![0; len.min(ALIGN_BYTES) as usize];
            file.write_all_at(&blank, 0).map_err(|e| WalError::io("write", &path, e))?;
            let bytes = blank.len() as u64;
            cut = cut.or(Some(Cut { path: path.clone(), offset: 0, bytes }));
        }
        if len == options.segment_bytes && spares.len() < SPARES_MAX {
            file.sync_all().map_err(|e| WalError::io("sync", &path, e))?;
            spares.push(Spare { path, file, bytes: len });
        } else {
            surplus.push(path);
        }
    }
    disk.sync_dir(dir).map_err(io("sync"))?;
    if newest.is_none() {
        let spare = match spares.pop() {
            Some(spare) => spare,
            None => {
                next_slot += 1;
                let size = options.segment_bytes;
                Preparer::new(Arc::clone(&disk), dir, next_slot - 1, size).finish()?
            }
        };
        let segment = write_header(&first_header(options), spare)?;
        tail.offset = segment.used;
        places.segments.push_back(segment);
    }
    let Some(last) = places.segments.back() else {
        return Err(WalError::damaged(dir, 0, "the log has no segment"));
    };
    let current = Current {
        path: last.path.clone(),
        file: Arc::clone(&last.file),
        number: last.number,
        end: format::data_end(last.file.len().map_err(|e| WalError::io("measure", &last.path, e))?),
        offset: tail.offset,
        prev: last.prev.0,
    };
    let mut wal = Wal {
        disk,
        dir: dir.to_path_buf(),
        options,
        shape,
        places: Arc::new(Mutex::new(places)),
        current,
        next_seq,
        first_segment,
        buffer: vec![0; BATCH_HEADER_BYTES],
        header_bytes: 0,
        batch_limit: 0,
        staged: Staged::default(),
        spares,
        preparing: 0,
        no_spares: false,
        no_space: false,
        next_slot,
        last_request: 0,
        poisoned: false,
    };
    wal.update_batch_limit();
    if wal.current.number > 1 && tail.last.is_none() {
        // Before older files go: a header with a batch behind it is never taken for a torn one.
        wal.stage_hard_state(wal.shape.hard_state)?;
        wal.flush()?;
    }
    if !surplus.is_empty() {
        for path in &surplus {
            // A file that stays is harmless; the next opening tries again.
            let _ = wal.disk.remove(path);
        }
        wal.disk.sync_dir(dir).map_err(io("sync"))?;
    }
    let recovered = Recovered::of(&wal.shape, &super::lock(&wal.places), cut, batches);
    Ok((wal, recovered))
}

/// Cuts the torn tail and makes the rest of the newest segment durable.
fn secure(found: &Found, tail: &Tail, next_seq: u64) -> Result<Option<Cut>, WalError> {
    let Found { path, file, len, .. } = found;
    let write = |bytes: &[u8], offset: u64| {
        file.write_all_at(bytes, offset).map_err(|e| WalError::io("write", path, e))
    };
    let mut window = Window::new(found);
    // What was written last may be in the cache only, and clean after a sync that failed. Without
    // a batch that is the header, which ends where the first batch would begin.
    let (offset, n) = tail.last.unwrap_or((0, tail.offset as usize));
    write(window.get(offset, n)?, offset)?;
    let cut = would_cut(found, tail, next_seq)?;
    if cut.is_some() {
        let mut offset = tail.offset;
        while offset < *len {
            let n = WINDOW_BYTES.min(len - offset);
            if window.get(offset, n as usize)?.iter().any(|&b| b != 0) {
                write(&vec![0; n as usize], offset)?;
            }
            offset += n;
        }
    }
    file.sync_data().map_err(|e| WalError::io("sync", path, e))?;
    Ok(cut)
}

/// The header of a log's first segment.
fn first_header(options: Options) -> Header {
    Header {
        start: Start::Continue,
        identity: options.identity,
        number: 1,
        bytes: options.segment_bytes,
        first_seq: 1,
        first_segment: 1,
        prev: (0, 0),
        hard_state: HardState::default(),
        configuration: None,
    }
}
