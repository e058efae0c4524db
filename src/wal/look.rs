//! What a log on disk is, found by reading alone: what is replayed, what a tail is, what is refused.
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
//! Opening a log (`recover`) looks first and writes then; whoever inspects one (`inspect`) only
//! looks. Nothing here writes, makes a file or syncs.

use super::error::WalError;
use super::format::{
    self, ALIGN_BYTES, BATCH_HEADER_BYTES, BatchHeader, Header, HeaderFault, Place, Record,
    Records, Start,
};
use super::recovered::Cut;
use super::shape::{Places, Segment, Shape, hard_state_follows};
use super::spare::slot_of;
use crate::env::{Disk, DiskFile, Open};
use crate::raft::{Index, Payload};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes read ahead in one piece.
pub(super) const WINDOW_BYTES: u64 = 256 * 1024;

/// A log file as it was found.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) len: u64,
    pub(super) head: Head,
}

pub(super) enum Head {
    Sound(Box<Header>, u64),
    Blank,
    Bad,
}

/// Reads a file forward in large pieces.
pub(super) struct Window<'a> {
    found: &'a Found,
    start: u64,
    buf: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(found: &'a Found) -> Window<'a> {
        Window { found, start: 0, buf: Vec::new() }
    }

    /// `len` bytes at `offset`; the caller stays within the file.
    pub(super) fn get(&mut self, offset: u64, len: usize) -> Result<&[u8], WalError> {
        let end = offset + len as u64;
        if offset < self.start || end > self.start + self.buf.len() as u64 {
            let ahead = WINDOW_BYTES.min(self.found.len.saturating_sub(offset));
            self.buf.resize((len as u64).max(ahead) as usize, 0);
            self.start = offset;
            let read = self.found.file.read_exact_at(&mut self.buf, offset);
            read.map_err(|e| WalError::unread(&self.found.path, offset, e))?;
        }
        let at = (offset - self.start) as usize;
        Ok(&self.buf[at..at + len])
    }
}

/// What stands where a batch may begin.
pub(super) enum Next {
    Batch(BatchHeader),
    Blank,
    Bad,
}

pub(super) fn next_at(
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
pub(super) fn later_batch(
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
pub(super) struct Tail {
    pub(super) offset: u64,
    /// Offset and length of the last batch.
    pub(super) last: Option<(u64, usize)>,
    /// Something that is not blank stands at `offset`.
    pub(super) torn: bool,
    /// Which file this was.
    last_found: Option<usize>,
}

/// A log that is sound, as `Wal::open` would find it.
pub(super) struct Look {
    pub(super) files: Vec<Found>,
    /// Which file is the segment of that number.
    pub(super) by_number: BTreeMap<u64, usize>,
    /// The newest segment's number and file, none when the log was never begun.
    pub(super) newest: Option<(u64, usize)>,
    pub(super) shape: Shape,
    pub(super) places: Places,
    pub(super) next_seq: u64,
    pub(super) first_segment: u64,
    pub(super) batches: u64,
    pub(super) tail: Tail,
    /// No file has this slot, or a higher one.
    pub(super) next_slot: u64,
}

/// Looks through the log of that identity in `dir`, with files opened in that mode, and does every
/// check there is before a log may be used.
pub(super) fn look(
    disk: &dyn Disk,
    dir: &Path,
    identity: u64,
    must_exist: bool,
    mode: Open,
) -> Result<Look, WalError> {
    let names = slots(disk, dir)?;
    let last = names.iter().map(|(slot, _)| *slot).max();
    let next_slot = last.map_or(1, |slot| slot.saturating_add(1));
    if names.is_empty() && must_exist {
        return Err(WalError::damaged(dir, 0, "the log's files are missing"));
    }
    let mut files = Vec::with_capacity(names.len());
    for (_, path) in names {
        files.push(find(disk, path, identity, mode)?);
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
        places: Places::new(identity),
        next_seq: 1,
        first_segment: 1,
        batches: 0,
    };
    let mut tail = Tail::default();
    let newest = by_number.last_key_value().map(|(number, at)| (*number, *at));
    match newest {
        Some((number, _)) => replay_all(dir, &files, &by_number, number, &mut replay, &mut tail)?,
        None => check_unused(&files, must_exist)?,
    }
    // The header of the segment that would come next may be bad. Batches under it tell.
    let number = newest.map_or(1, |(number, _)| number + 1);
    for found in files.iter().filter(|found| !found.is_live(replay.first_segment)) {
        if let Some(offset) = later_batch(found, identity, number, 0, replay.next_seq)? {
            let what = format!(
                "the header of segment {number} cannot be read, but a batch stands at {offset}"
            );
            return Err(WalError::damaged(&found.path, 0, what));
        }
    }

    if let Some((number, at)) = newest
        && has_end_mark(&files[at], identity, number)?
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

    let Replay { mut shape, mut places, next_seq, first_segment, batches } = replay;
    drop(places.drop_before(first_segment));
    if let Some(front) = places.segments.front()
        && front.prev.0 > shape.base.0
    {
        shape.rebase(front.prev);
    }
    Ok(Look {
        files,
        by_number,
        newest,
        shape,
        places,
        next_seq,
        first_segment,
        batches,
        tail,
        next_slot,
    })
}

/// The log's files, segments and spares alike: slot and path.
pub(super) fn slots(disk: &dyn Disk, dir: &Path) -> Result<Vec<(u64, PathBuf)>, WalError> {
    let names = disk.list(dir).map_err(|e| WalError::io("list", dir, e))?;
    Ok(names.iter().filter_map(|name| Some((slot_of(name)?, dir.join(name)))).collect())
}

impl Found {
    pub(super) fn is_live(&self, first_segment: u64) -> bool {
        matches!(&self.head, Head::Sound(header, _) if header.number >= first_segment)
    }
}

/// Opens a file and reads its header.
pub(super) fn find(
    disk: &dyn Disk,
    path: PathBuf,
    identity: u64,
    mode: Open,
) -> Result<Found, WalError> {
    let file = disk.open(&path, mode).map_err(|e| WalError::io("open", &path, e))?;
    let len = file.len().map_err(|e| WalError::io("measure", &path, e))?;
    let read = |len: usize| -> Result<Vec<u8>, WalError> {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).map_err(|e| WalError::unread(&path, 0, e))?;
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
        // One with a header that cannot be read rather than a blank spare.
        let bad = files.iter().find(|found| matches!(found.head, Head::Bad));
        let bad = bad.or_else(|| files.iter().find(|found| matches!(found.head, Head::Blank)));
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
pub(super) fn has_end_mark(found: &Found, identity: u64, segment: u64) -> Result<bool, WalError> {
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

/// What would be cut off a tail that is torn.
pub(super) fn would_cut(
    found: &Found,
    tail: &Tail,
    next_seq: u64,
) -> Result<Option<Cut>, WalError> {
    if !tail.torn {
        return Ok(None);
    }
    let header = BatchHeader::decode(Window::new(found).get(tail.offset, BATCH_HEADER_BYTES)?);
    let room = format::data_end(found.len).saturating_sub(tail.offset);
    let claimed = header.filter(|h| h.seq == next_seq && h.len > 0).map(|h| h.total() as u64);
    let bytes = claimed.filter(|&bytes| bytes <= room).unwrap_or(ALIGN_BYTES);
    Ok(Some(Cut { path: found.path.clone(), offset: tail.offset, bytes }))
}
