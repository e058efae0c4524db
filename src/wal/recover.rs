//! Opening a log: what is replayed, what is cut, what is refused.
//!
//! | found                                                     | meaning                        |
//! |-----------------------------------------------------------|--------------------------------|
//! | blank or bad batch at the end, nothing good behind it     | torn tail: cut                 |
//! | the same, but it is a batch of one sector                 | damage: a sector is not torn   |
//! | bad batch with a good one of the same life behind it      | damage                         |
//! | bad header, no batch of the segment that would come next  | torn header: a spare again     |
//! | an end mark in the segment of the greatest number         | damage: the newest is missing  |
//! | no end mark though the segment behind has a batch         | damage                         |
//! | bad header, but batches of the segment that would be next | damage                         |
//! | segment missing at the front, in the middle               | damage: numbers are contiguous |
//! | a batch number, index, term or vote that does not follow  | damage                         |
//! | no readable header and nothing ever written               | a first start that was cut off |
//! | a read that fails                                         | an error, never an end         |
//!
//! All checks come before the first write: a log that is refused is left as it was found. The
//! last batch may be only in the operating system's cache, even after a sync that failed; it is
//! written again and synced before the log is used.

use super::error::WalError;
use super::format::{
    self, ALIGN_BYTES, BATCH_HEADER_BYTES, BatchHeader, Header, HeaderFault, Place, Record,
    Records, Start,
};
use super::recovered::{Cut, Recovered};
use super::shape::{Places, Segment, Shape, hard_state_follows};
use super::spare::{Preparer, Spare, slot_of};
use super::{Current, Options, SPARES_MAX, Staged, Wal, write_end_mark, write_header};
use crate::env::{Disk, DiskFile, Open};
use crate::raft::{Configuration, HardState, Index, Payload};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Bytes read ahead in one piece.
const WINDOW_BYTES: u64 = 256 * 1024;

/// A log file as it was found.
struct Found {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    len: u64,
    head: Head,
}

enum Head {
    Sound(Box<Header>, u64),
    Blank,
    Bad,
}

/// Reads a file forward in large pieces.
struct Window<'a> {
    found: &'a Found,
    start: u64,
    buf: Vec<u8>,
}

impl<'a> Window<'a> {
    fn new(found: &'a Found) -> Window<'a> {
        Window { found, start: 0, buf: Vec::new() }
    }

    /// `len` bytes at `offset`; the caller stays within the file.
    fn get(&mut self, offset: u64, len: usize) -> Result<&[u8], WalError> {
        let end = offset + len as u64;
        if offset < self.start || end > self.start + self.buf.len() as u64 {
            let ahead = WINDOW_BYTES.min(self.found.len.saturating_sub(offset));
            self.buf.resize((len as u64).max(ahead) as usize, 0);
            self.start = offset;
            let read = self.found.file.read_exact_at(&mut self.buf, offset);
            read.map_err(|e| WalError::io("read", &self.found.path, e))?;
        }
        let at = (offset - self.start) as usize;
        Ok(&self.buf[at..at + len])
    }
}

/// What stands where a batch may begin.
enum Next {
    Batch(BatchHeader),
    Blank,
    Bad,
}

fn next_at(
    window: &mut Window<'_>,
    place: Place,
    limit: u64,
    plausible: impl Fn(&BatchHeader) -> bool,
) -> Result<Next, WalError> {
    let offset = place.offset;
    if offset + BATCH_HEADER_BYTES as u64 > limit {
        return Ok(Next::Blank);
    }
    let bytes = window.get(offset, BATCH_HEADER_BYTES)?;
    if bytes.iter().all(|&b| b == 0) {
        return Ok(Next::Blank);
    }
    let Some(header) = BatchHeader::decode(bytes) else { return Ok(Next::Bad) };
    if header.len == 0 || offset + header.total() as u64 > limit || !plausible(&header) {
        return Ok(Next::Bad);
    }
    let sound = format::batch_is_sound(window.get(offset, header.total())?, place);
    Ok(if sound { Next::Batch(header) } else { Next::Bad })
}

/// The offset of a sound batch of that segment, numbered `seq` or later, at or behind `from`.
fn later_batch(
    found: &Found,
    identity: u64,
    segment: u64,
    from: u64,
    seq: u64,
) -> Result<Option<u64>, WalError> {
    let mut window = Window::new(found);
    // No file has room for more batches than this; keeps the check of chance bytes cheap.
    let seq_max = seq.saturating_add(found.len / ALIGN_BYTES);
    let mut offset = from;
    while offset < found.len {
        let place = Place { identity, segment, offset };
        let end = format::data_end(found.len);
        let next = next_at(&mut window, place, end, |h| (seq..=seq_max).contains(&h.seq))?;
        if matches!(next, Next::Batch(_)) {
            return Ok(Some(offset));
        }
        offset += ALIGN_BYTES;
    }
    Ok(None)
}

/// The log as far as it has been replayed.
struct Replay {
    shape: Shape,
    places: Places,
    next_seq: u64,
    first_segment: u64,
    batches: u64,
}

impl Replay {
    /// Takes in the header of the next segment, or of the first one when there is none yet.
    fn begin(&mut self, found: &Found, header: &Header, used: u64) -> Result<(), String> {
        let prev = header.prev;
        if self.places.segments.is_empty() {
            self.shape.hard_state = header.hard_state;
            self.shape.reset(prev, header.configuration.clone());
            self.places.reset(prev.0);
            self.next_seq = header.first_seq;
            self.first_segment = header.first_segment;
        } else {
            if header.first_seq != self.next_seq {
                return Err(format!(
                    "the segment begins with batch {}, but {} is next",
                    header.first_seq, self.next_seq
                ));
            }
            if header.hard_state != self.shape.hard_state {
                return Err("the header's hard state is not the log's".into());
            }
            let known = self.shape.term(prev.0) == Some(prev.1);
            match header.start {
                Start::Continue if known && prev.0 == self.shape.last => {}
                Start::Truncate if known && prev.0 < self.shape.last => {
                    self.shape.truncate(prev.0);
                    self.places.truncate(prev.0);
                }
                Start::Reset => {
                    self.shape.reset(prev, header.configuration.clone());
                    self.places.reset(prev.0);
                    self.first_segment = header.number;
                }
                _ => return Err("the segment does not continue the log".into()),
            }
            if header.first_segment != self.first_segment {
                return Err("the header's first segment is not the log's".into());
            }
        }
        self.places.segments.push_back(Segment {
            number: header.number,
            path: found.path.clone(),
            file: Arc::clone(&found.file),
            prev,
            used,
        });
        Ok(())
    }

    /// Takes in one sound batch.
    fn batch(&mut self, batch: &[u8], header: &Header, offset: u64) -> Result<(), &'static str> {
        let mut entries: Option<(Index, Index)> = None;
        let mut records = Records::of(batch);
        while let Some(record) = records.take().map_err(|e| e.0)? {
            match record {
                Record::HardState(hard_state) => {
                    if !hard_state_follows(self.shape.hard_state, hard_state) {
                        return Err("a term or vote goes back");
                    }
                    self.shape.hard_state = hard_state;
                }
                Record::FirstSegment(number) => {
                    if number < self.first_segment || number > header.number {
                        return Err("the number of the first segment goes back");
                    }
                    self.first_segment = number;
                }
                Record::Entry(raw) => {
                    if entries.is_none() && raw.index <= self.shape.last {
                        if raw.index <= header.prev.0 {
                            return Err("an entry replaces one of an older segment");
                        }
                        self.shape.truncate(raw.index - 1);
                    }
                    if raw.index != self.shape.last + 1 {
                        return Err("entries are not contiguous");
                    }
                    if raw.term < self.shape.last_term() {
                        return Err("an entry's term goes back");
                    }
                    if raw.is_configuration {
                        let entry = raw.decode().map_err(|e| e.0)?;
                        if let Payload::Configuration(configuration) = entry.payload {
                            self.shape.configurations.push_back((raw.index, configuration));
                        }
                    }
                    self.shape.append(raw.index, raw.term);
                    let first = entries.map_or(raw.index, |(first, _)| first);
                    entries = Some((first, raw.index));
                }
            }
        }
        let len = format::aligned(batch.len() as u64);
        self.places.add_batch(header.number, offset, len, entries);
        self.next_seq += 1;
        self.batches += 1;
        Ok(())
    }
}

/// Where replay came to an end in the newest segment.
#[derive(Default)]
struct Tail {
    offset: u64,
    /// Offset and length of the last batch.
    last: Option<(u64, usize)>,
    /// Something that is not blank stands at `offset`.
    torn: bool,
    /// Which file this was.
    last_found: Option<usize>,
}

pub(super) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: Options,
) -> Result<(Wal, Recovered), WalError> {
    let io = |what: &'static str| move |e: io::Error| WalError::io(what, dir, e);
    disk.create_dir(dir).map_err(io("create"))?;
    let names = disk.list(dir).map_err(io("list"))?;
    let slots: Vec<(u64, &String)> =
        names.iter().filter_map(|name| Some((slot_of(name)?, name))).collect();
    let mut next_slot = slots.iter().map(|s| s.0).max().map_or(1, |slot| slot.saturating_add(1));
    if slots.is_empty() {
        if options.must_exist {
            return Err(WalError::damaged(dir, 0, "the log's files are missing"));
        }
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty());
        disk.sync_dir(parent.unwrap_or(Path::new("."))).map_err(io("sync the parent of"))?;
    }
    let mut files = Vec::with_capacity(slots.len());
    for (_, name) in slots {
        files.push(inspect(disk.as_ref(), dir.join(name), options.identity)?);
    }

    let mut by_number: BTreeMap<u64, usize> = BTreeMap::new();
    for (at, found) in files.iter().enumerate() {
        if let Head::Sound(header, _) = &found.head
            && by_number.insert(header.number, at).is_some()
        {
            let what = format!("another file is segment {}, too", header.number);
            return Err(WalError::damaged(&found.path, 0, what));
        }
    }
    let mut replay = Replay {
        shape: Shape::default(),
        places: Places::new(options.identity),
        next_seq: 1,
        first_segment: 1,
        batches: 0,
    };
    let mut tail = Tail::default();
    let newest = by_number.last_key_value().map(|(number, at)| (*number, *at));
    match newest {
        Some((number, _)) => replay_all(dir, &files, &by_number, number, &mut replay, &mut tail)?,
        None => check_unused(&files, options.must_exist)?,
    }
    // The header of the segment that would come next may be bad. Batches under it tell.
    let number = newest.map_or(1, |(number, _)| number + 1);
    for found in files.iter().filter(|found| !found.is_live(replay.first_segment)) {
        if let Some(offset) = later_batch(found, options.identity, number, 0, replay.next_seq)? {
            let what = format!(
                "the header of segment {number} cannot be read, but a batch stands at {offset}"
            );
            return Err(WalError::damaged(&found.path, 0, what));
        }
    }

    if let Some((number, at)) = newest
        && has_end_mark(&files[at], options.identity, number)?
    {
        let bad = files.iter().find(|found| matches!(found.head, Head::Bad));
        let (path, next) = (bad.map_or(dir, |found| &found.path), number + 1);
        let marked = files[at].path.display();
        let what = format!(
            "segment {next} is missing or its header cannot be read; the end mark of {marked} \
             says that it was begun"
        );
        return Err(WalError::damaged(path, 0, what));
    }

    // The log is sound. Only from here on is anything written.
    let Replay { mut shape, mut places, next_seq, first_segment, batches } = replay;
    drop(places.drop_before(first_segment));
    if let Some(front) = places.segments.front()
        && front.prev.0 > shape.base.0
    {
        shape.rebase(front.prev);
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
            spares.push(Spare { path, file });
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
    let recovered = wal.recovered(cut, batches);
    Ok((wal, recovered))
}

impl Wal {
    fn recovered(&self, cut: Option<Cut>, batches: u64) -> Recovered {
        let shape = &self.shape;
        let places = super::lock(&self.places);
        let live = |c: &&(Index, Arc<Configuration>)| c.0 > shape.base.0;
        Recovered {
            hard_state: shape.hard_state,
            first_index: shape.base.0 + 1,
            prev_term: shape.base.1,
            last_index: shape.last,
            terms: shape.runs.iter().copied().collect(),
            configurations: shape.configurations.iter().filter(live).cloned().collect(),
            configuration_before: shape.configuration_at(shape.base.0).cloned(),
            cut,
            segments: places.segments.len(),
            bytes: places.bytes(),
            batches,
        }
    }
}

impl Found {
    fn is_live(&self, first_segment: u64) -> bool {
        matches!(&self.head, Head::Sound(header, _) if header.number >= first_segment)
    }
}

/// Opens a file and reads its header.
fn inspect(disk: &dyn Disk, path: PathBuf, identity: u64) -> Result<Found, WalError> {
    let file = disk.open(&path, Open::Write).map_err(|e| WalError::io("open", &path, e))?;
    let len = file.len().map_err(|e| WalError::io("measure", &path, e))?;
    let read = |len: usize| -> Result<Vec<u8>, WalError> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).map_err(|e| WalError::io("read", &path, e))?;
        Ok(bytes)
    };
    let front = read(len.min(ALIGN_BYTES) as usize)?;
    let head = match Header::claimed_len(&front) {
        _ if front.iter().all(|&b| b == 0) => Head::Blank,
        Some(claimed) if claimed as u64 <= len => match Header::decode(&read(claimed)?) {
            Ok(header) if header.identity != identity => {
                let (found, expected) = (header.identity, identity);
                return Err(WalError::Foreign { path, found, expected });
            }
            Ok(header) if header.bytes != len => {
                let what = format!("a segment of {} bytes is {len} bytes long", header.bytes);
                return Err(WalError::damaged(&path, len, what));
            }
            Ok(header) => Head::Sound(Box::new(header), format::aligned(claimed as u64)),
            Err(HeaderFault::Version(found)) => return Err(WalError::Version { path, found }),
            Err(HeaderFault::Malformed(_)) => Head::Bad,
        },
        _ => Head::Bad,
    };
    Ok(Found { path, file, len, head })
}

/// The number of the log's first segment: the newest header tells, and records behind it.
fn first_live(newest: &Found) -> Result<u64, WalError> {
    let Head::Sound(header, used) = &newest.head else { return Ok(0) };
    let (mut first, mut offset) = (header.first_segment, *used);
    let mut window = Window::new(newest);
    let end = format::data_end(newest.len);
    loop {
        let place = Place { identity: header.identity, segment: header.number, offset };
        let Next::Batch(batch) = next_at(&mut window, place, end, |_| true)? else {
            return Ok(first);
        };
        let mut records = Records::of(window.get(offset, batch.total())?);
        // What does not decode is found again, and reported, by the replay.
        while let Ok(Some(record)) = records.take() {
            if let Record::FirstSegment(number) = record {
                first = number.min(header.number);
            }
        }
        offset += format::aligned(batch.total() as u64);
    }
}

/// Replays the segments from the first to the newest.
fn replay_all(
    dir: &Path,
    files: &[Found],
    by_number: &BTreeMap<u64, usize>,
    newest: u64,
    replay: &mut Replay,
    tail: &mut Tail,
) -> Result<(), WalError> {
    // Files in front of the first segment are spares, whatever they hold.
    let first = match by_number.get(&newest).map(|&at| &files[at]) {
        Some(found) => first_live(found)?,
        None => newest,
    };
    if let Some(missing) = (first..=newest).find(|number| !by_number.contains_key(number)) {
        let bad = files.iter().find(|found| !matches!(found.head, Head::Sound(..)));
        let path = bad.map_or(dir, |found| &found.path);
        let what = format!("segment {missing} is missing or its header cannot be read");
        return Err(WalError::damaged(path, 0, what));
    }
    for (number, &at) in by_number.range(first..) {
        let found = &files[at];
        let Head::Sound(header, used) = &found.head else { continue };
        // A segment that did not end where the next one begins has lost its end.
        if tail.last_found.is_some() && header.first_seq > replay.next_seq {
            let what = format!("batch {} is missing", replay.next_seq);
            let path = tail.last_found.map_or(&found.path, |at| &files[at].path);
            return Err(WalError::damaged(path, tail.offset, what));
        }
        replay
            .begin(found, header, *used)
            .map_err(|what| WalError::damaged(&found.path, 0, what))?;
        let before = tail.last_found.map(|at| &files[at]);
        *tail = replay_segment(found, header, *used, replay)?;
        tail.last_found = Some(at);
        // Only a roll that was cut off leaves no mark, and then there is nothing behind it.
        if let Some(before) = before
            && (*number < newest || tail.last.is_some())
            && !has_end_mark(before, header.identity, number - 1)?
        {
            let what = format!("the end mark is missing, but segment {number} is in use");
            return Err(WalError::damaged(&before.path, format::data_end(before.len), what));
        }
        if *number == newest
            && let Some(offset) = later_batch(
                found,
                header.identity,
                header.number,
                tail.offset + ALIGN_BYTES,
                replay.next_seq,
            )?
        {
            let what = format!("no sound batch, but a later one stands at offset {offset}");
            return Err(WalError::damaged(&found.path, tail.offset, what));
        }
        if *number == newest && tail.torn {
            let offset = tail.offset;
            let place = Place { identity: header.identity, segment: *number, offset };
            let mut window = Window::new(found);
            let sector = window.get(offset, ALIGN_BYTES as usize)?;
            if format::sector_is_rotten(sector, place, replay.next_seq) {
                let what = "a batch of one sector is not sound, and a sector is never half written";
                return Err(WalError::damaged(&found.path, offset, what));
            }
        }
    }
    Ok(())
}

/// Whether the file says that the segment behind it was begun.
fn has_end_mark(found: &Found, identity: u64, segment: u64) -> Result<bool, WalError> {
    let offset = format::data_end(found.len);
    let mark = format::end_mark(Place { identity, segment, offset });
    if found.len < mark.len() as u64 {
        return Ok(false);
    }
    Ok(Window::new(found).get(offset, mark.len())? == mark)
}

fn replay_segment(
    found: &Found,
    header: &Header,
    used: u64,
    replay: &mut Replay,
) -> Result<Tail, WalError> {
    let mut window = Window::new(found);
    let mut tail = Tail { offset: used, ..Tail::default() };
    let end = format::data_end(found.len);
    loop {
        let offset = tail.offset;
        let place = Place { identity: header.identity, segment: header.number, offset };
        let batch = match next_at(&mut window, place, end, |_| true)? {
            Next::Batch(batch) => batch,
            Next::Blank => return Ok(tail),
            Next::Bad => return Ok(Tail { torn: true, ..tail }),
        };
        let damaged = |what: String| WalError::damaged(&found.path, offset, what);
        if batch.seq != replay.next_seq {
            return Err(damaged(format!("batch {} where {} is due", batch.seq, replay.next_seq)));
        }
        let bytes = window.get(offset, batch.total())?;
        replay.batch(bytes, header, offset).map_err(|what| damaged(what.into()))?;
        tail.last = Some((offset, batch.total()));
        tail.offset += format::aligned(batch.total() as u64);
    }
}

/// Without any readable header: fine only if nothing can ever have been acknowledged. The first
/// segment's header is shorter than a sector, and no batch is written before it is durable.
fn check_unused(files: &[Found], must_exist: bool) -> Result<(), WalError> {
    for found in files {
        let mut window = Window::new(found);
        let mut offset = ALIGN_BYTES;
        let mut used = must_exist;
        while offset < found.len && !used {
            let n = WINDOW_BYTES.min(found.len - offset);
            used = window.get(offset, n as usize)?.iter().any(|&b| b != 0);
            offset += n;
        }
        if used {
            return Err(WalError::damaged(&found.path, 0, "no segment's header can be read"));
        }
    }
    Ok(())
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
    let mut cut = None;
    if tail.torn {
        let header = BatchHeader::decode(window.get(tail.offset, BATCH_HEADER_BYTES)?);
        let room = format::data_end(*len).saturating_sub(tail.offset);
        let claimed = header.filter(|h| h.seq == next_seq && h.len > 0).map(|h| h.total() as u64);
        let bytes = claimed.filter(|&bytes| bytes <= room).unwrap_or(ALIGN_BYTES);
        let mut offset = tail.offset;
        while offset < *len {
            let n = WINDOW_BYTES.min(len - offset);
            if window.get(offset, n as usize)?.iter().any(|&b| b != 0) {
                write(&vec![0; n as usize], offset)?;
            }
            offset += n;
        }
        cut = Some(Cut { path: path.clone(), offset: tail.offset, bytes });
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
