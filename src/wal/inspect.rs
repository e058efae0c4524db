//! Looking through a log without opening it: what each file is, every batch and every entry, and
//! all that is wrong rather than the first of it.
//!
//! Two passes. The first is the very check that opening makes (`look`): when it refuses, there is a
//! problem, at least the one it met. The second walks every segment of the log from its header to its end, goes on behind
//! what is not sound, decodes entry by entry, and also looks at what opening has no use for, such
//! as padding. Files are opened for reading only and nothing is kept but a line for each file, so
//! that memory does not grow with the log beyond what opening it takes.

use super::error::WalError;
use super::format::{self, ALIGN_BYTES, BatchHeader, Place, Record, Records};
use super::look::{
    self, Found, Head, Look, Next, Window, find, has_end_mark, later_batch, look, next_at,
    would_cut,
};
use super::recovered::Recovered;
use crate::env::{Disk, Findings, Open};
use crate::raft::{Entry, Index};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// What a log file is to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// A segment of the log.
    Live,
    /// Part of no log; kept to be used again.
    Spare,
    /// It has neither a header nor blanks where a header would be.
    Unreadable,
}

/// A log file as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// What it is.
    pub state: FileState,
    /// The segment's number, as its header says; a spare may have one of a former life.
    pub number: Option<u64>,
    /// Of a live segment: bytes from its front that carry something, up to the end of its last
    /// batch. What follows has no meaning but for an end mark in the last 512 bytes.
    pub used: u64,
    /// Sound batches in a live segment.
    pub batches: u64,
    /// Entries in them, replaced ones included.
    pub entries: u64,
    /// The smallest and the largest index among those.
    pub range: Option<(Index, Index)>,
}

/// A log as it was found.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// Segments in the order of the log, then spares and unreadable files.
    pub files: Vec<LogFile>,
    /// What opening the log would find, unless it would be refused.
    pub recovered: Option<Recovered>,
    /// File and offset of the newest segment's last batch: the one whose damage may look like a
    /// torn write.
    pub last_batch: Option<(PathBuf, u64)>,
}

/// An entry where it stands, in the order of the log's batches: one whose index is not above that
/// of the one before replaces it and all behind.
#[derive(Debug)]
pub struct Placed<'a> {
    /// The segment's file.
    pub path: &'a Path,
    /// Byte offset of the batch.
    pub offset: u64,
    /// The entry.
    pub entry: Entry,
}

/// Looks through the log in `dir`. `must_exist` says that it was made before, so that a directory
/// without it is damage. Every entry of the live segments is shown to `visit`.
pub fn inspect(
    disk: &dyn Disk,
    dir: &Path,
    identity: u64,
    must_exist: bool,
    findings: &mut Findings,
    visit: &mut dyn FnMut(Placed<'_>, &mut Findings),
) -> Inspection {
    let mut inspection = Inspection::default();
    let (mut sound, mut refused) = (None, None);
    let problems = findings.problem_count();
    match look(disk, dir, identity, must_exist, Open::Read) {
        Ok(found) => sound = Some(found),
        Err(WalError::Io { path, source, .. })
            if path == dir && source.kind() == io::ErrorKind::NotFound =>
        {
            if must_exist {
                findings.problem(dir, 0, "the log's directory is missing");
            }
            return inspection;
        }
        Err(e) => refused = Some(e),
    }
    let names = match look::slots(disk, dir) {
        Ok(names) => names,
        Err(e) => {
            report(findings, dir, e);
            return inspection;
        }
    };
    let (mut files, mut rest) = (Vec::with_capacity(names.len()), Vec::new());
    for (_, path) in names {
        match find(disk, path.clone(), identity, Open::Read) {
            Ok(found) => files.push(found),
            Err(e) => {
                rest.push(unreadable(path));
                report(findings, dir, e);
            }
        }
    }
    let (segments, first) = live_segments(dir, &files, identity, findings);
    let newest = segments.last_key_value().map(|(number, _)| *number);
    let missing = missing_segments(&segments, first, identity);
    if !missing.is_empty() {
        let what = format!("the log lacks segment {}", missing.join(", "));
        findings.problem(dir, 0, what);
    }
    // A file without a header may have been one of those.
    let whole = missing.is_empty() && newest.is_some();
    for found in &files {
        if !segments.values().any(|segment| std::ptr::eq(segment.found, found)) {
            rest.push(not_live(found, whole || sound.is_some(), findings));
        }
    }
    let mut before: Option<Walk<'_>> = None;
    for (number, segment) in &segments {
        let found = segment.found;
        let mut walk = Walk::new(segment, identity, *number);
        if let Some(before) = &before {
            walk.follow(before, segment, findings);
        }
        if let Err(e) = walk.run(findings, visit) {
            report(findings, dir, e);
        }
        if let Some(before) = before.filter(|before| before.number + 1 == *number) {
            // Only a newest segment without a batch may have no mark in front of it.
            let cut_off = newest == Some(*number) && walk.last.is_none();
            check_mark(before.found, identity, before.number, cut_off, findings);
        }
        if newest == Some(*number) {
            inspection.last_batch = walk.last.map(|offset| (found.path.clone(), offset));
            if let Err(e) = walk.check_tail(findings) {
                report(findings, dir, e);
            }
        }
        inspection.files.push(walk.file.clone());
        before = Some(walk);
    }
    inspection.files.append(&mut rest);
    // What opening meets first is often a consequence of what was named; it counts when nothing was.
    if let Some(e) = refused.filter(|_| findings.problem_count() == problems) {
        report(findings, dir, e);
    }
    if let Some(found) = sound {
        note_tail(&found, findings);
        let Look { shape, places, batches, .. } = &found;
        inspection.recovered = Some(Recovered::of(shape, places, None, *batches));
    }
    inspection
}

/// The mark of a segment whose successor is there.
fn check_mark(found: &Found, identity: u64, number: u64, cut_off: bool, findings: &mut Findings) {
    let end = format::data_end(found.len);
    match has_end_mark(found, identity, number) {
        Ok(true) => {}
        Ok(false) if cut_off => {
            let what = "the end mark is not written yet: beginning the next segment was cut off, \
                        and the next start completes it";
            findings.note(&found.path, end, what);
        }
        Ok(false) => {
            let what = format!("the end mark is missing, but segment {} is in use", number + 1);
            findings.problem(&found.path, end, what);
        }
        Err(e) => report(findings, &found.path, e),
    }
}

/// A segment of the log, as far as its header tells.
struct Live<'a> {
    found: &'a Found,
    /// Number of its first batch; none when the header cannot be read.
    first_seq: Option<u64>,
    /// Bytes of the header.
    header: Option<u64>,
    /// Where the first batch is; without a header, the first one that is sound.
    used: u64,
}

/// The segments from the first of the log to the newest. One whose header cannot be read is known
/// by a batch that belongs nowhere else. And the number of the first.
fn live_segments<'a>(
    dir: &Path,
    files: &'a [Found],
    identity: u64,
    findings: &mut Findings,
) -> (BTreeMap<u64, Live<'a>>, u64) {
    let mut live: BTreeMap<u64, Live<'a>> = BTreeMap::new();
    for found in files {
        let Head::Sound(header, used) = &found.head else { continue };
        let segment = Live {
            found,
            first_seq: Some(header.first_seq),
            header: Some(header.encode().len() as u64),
            used: *used,
        };
        if live.insert(header.number, segment).is_some() {
            let what = format!("another file is segment {}, too", header.number);
            findings.problem(&found.path, 0, what);
        }
    }
    let Some((&newest, segment)) = live.last_key_value() else { return (live, 1) };
    let least = match &segment.found.head {
        Head::Sound(header, _) => header.first_segment,
        Head::Blank | Head::Bad => newest,
    };
    for found in files.iter().filter(|found| matches!(found.head, Head::Bad)) {
        // In a gap, or behind the newest whose header can be read.
        for number in least..=newest + 1 {
            if live.contains_key(&number) {
                continue;
            }
            match first_batch(found, identity, number) {
                Ok(Some(used)) => {
                    live.insert(number, Live { found, first_seq: None, header: None, used });
                    break;
                }
                Ok(None) => {}
                Err(e) => report(findings, &found.path, e),
            }
        }
    }
    let first = match live.last_key_value() {
        Some((&number, segment)) => first_recorded(segment, identity, number, least),
        None => Ok(least),
    };
    let mut first = first.unwrap_or_else(|e| {
        report(findings, dir, e);
        least
    });
    if let Some((&last, segment)) = live.last_key_value()
        && is_marked(segment.found, identity, last)
    {
        // The newest is gone, and may have said that the log begins later: what lies in front of a
        // gap may have been given up.
        let run = (first..=last).rev().take_while(|number| live.contains_key(number));
        first = run.last().unwrap_or(last);
    }
    live.retain(|number, _| *number >= first);
    for segment in live.values().filter(|segment| segment.header.is_none()) {
        findings.problem(&segment.found.path, 0, "the header cannot be read");
    }
    (live, first)
}

/// The number of the log's first segment, as the newest one tells: its header, which says `least`,
/// and records behind it, beyond damage too.
fn first_recorded(
    segment: &Live<'_>,
    identity: u64,
    number: u64,
    least: u64,
) -> Result<u64, WalError> {
    let found = segment.found;
    let (mut first, mut offset, mut due) = (least, segment.used, segment.first_seq.unwrap_or(1));
    let mut window = Window::new(found);
    let end = format::data_end(found.len);
    loop {
        let place = Place { identity, segment: number, offset };
        let Next::Batch(batch) = next_at(&mut window, place, end, |_| true)? else {
            match later_batch(found, identity, number, offset + ALIGN_BYTES, due)? {
                Some(later) => offset = later,
                None => return Ok(first),
            }
            continue;
        };
        due = batch.seq.saturating_add(1);
        let mut records = Records::of(window.get(offset, batch.total())?);
        // What does not decode is reported by the walk.
        while let Ok(Some(record)) = records.take() {
            if let Record::FirstSegment(recorded) = record {
                first = first.max(recorded.min(number));
            }
        }
        offset += format::aligned(batch.total() as u64);
    }
}

/// Whether a segment says that the one behind it was begun; not when that cannot be read, which the
/// walk reports.
fn is_marked(found: &Found, identity: u64, number: u64) -> bool {
    has_end_mark(found, identity, number).is_ok_and(|marked| marked)
}

/// Segments from the first on that no file is; also the one behind the newest, when that says that
/// it was begun.
fn missing_segments(segments: &BTreeMap<u64, Live<'_>>, first: u64, identity: u64) -> Vec<String> {
    let Some((&newest, segment)) = segments.last_key_value() else { return Vec::new() };
    let mut missing: Vec<u64> =
        (first..newest).filter(|number| !segments.contains_key(number)).collect();
    missing.extend(is_marked(segment.found, identity, newest).then_some(newest + 1));
    missing.iter().map(u64::to_string).collect()
}

/// Where the first sound batch of that segment stands in a file, whatever its header says.
fn first_batch(found: &Found, identity: u64, segment: u64) -> Result<Option<u64>, WalError> {
    let mut window = Window::new(found);
    let end = format::data_end(found.len);
    for offset in (ALIGN_BYTES..end).step_by(ALIGN_BYTES as usize) {
        let place = Place { identity, segment, offset };
        if matches!(next_at(&mut window, place, end, |_| true)?, Next::Batch(_)) {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

fn unreadable(path: PathBuf) -> LogFile {
    LogFile {
        path,
        bytes: 0,
        state: FileState::Unreadable,
        number: None,
        used: 0,
        batches: 0,
        entries: 0,
        range: None,
    }
}

/// A file that is no segment of the log. `whole`: the log lacks none.
fn not_live(found: &Found, whole: bool, findings: &mut Findings) -> LogFile {
    let (state, number) = match &found.head {
        Head::Sound(header, _) => (FileState::Spare, Some(header.number)),
        Head::Blank => (FileState::Spare, None),
        Head::Bad => (FileState::Unreadable, None),
    };
    if state == FileState::Unreadable && whole {
        let what = "neither a segment's header nor blank; the log needs no such file, and the next \
                    start makes it a spare again";
        findings.note(&found.path, 0, what);
    } else if state == FileState::Unreadable {
        findings.problem(&found.path, 0, "the header cannot be read");
    }
    LogFile { bytes: found.len, state, number, ..unreadable(found.path.clone()) }
}

/// A walk over one segment.
struct Walk<'a> {
    found: &'a Found,
    identity: u64,
    number: u64,
    window: Window<'a>,
    file: LogFile,
    /// Bytes of a header that can be read.
    header: Option<u64>,
    /// The number that the next batch must have; none when nothing tells.
    due: Option<u64>,
    /// Where the last sound batch begins.
    last: Option<u64>,
}

impl<'a> Walk<'a> {
    fn new(segment: &Live<'a>, identity: u64, number: u64) -> Walk<'a> {
        let Live { found, first_seq, header, used } = *segment;
        let file = LogFile {
            bytes: found.len,
            state: FileState::Live,
            number: Some(number),
            used,
            ..unreadable(found.path.clone())
        };
        let window = Window::new(found);
        Walk { found, identity, number, window, file, header, due: first_seq, last: None }
    }

    /// What stands between this segment and the one that was walked before.
    fn follow(&mut self, before: &Walk<'_>, segment: &Live<'_>, findings: &mut Findings) {
        if before.number + 1 != self.number {
            return;
        }
        match (before.due, segment.first_seq) {
            (Some(due), Some(first)) if first > due => {
                let what = format!("batch {due} is missing");
                findings.problem(&before.found.path, before.file.used, what);
            }
            (Some(due), None) => {
                // The header told where the first batch is: what is missing is missing here.
                let head = BatchHeader::decode(self.head(segment.used));
                if head.is_some_and(|batch| batch.seq != due) {
                    let what = format!("batch {due} is missing");
                    findings.problem(&self.found.path, ALIGN_BYTES, what);
                }
            }
            _ => {}
        }
    }

    /// The first bytes of a batch; nothing when they cannot be read.
    fn head(&mut self, offset: u64) -> &[u8] {
        self.window.get(offset, format::BATCH_HEADER_BYTES).unwrap_or_default()
    }

    fn run(
        &mut self,
        findings: &mut Findings,
        visit: &mut dyn FnMut(Placed<'_>, &mut Findings),
    ) -> Result<(), WalError> {
        let (identity, segment) = (self.identity, self.number);
        let end = format::data_end(self.found.len);
        if let Some(header) = self.header {
            self.check_padding(header, self.file.used, findings)?;
        }
        loop {
            let offset = self.file.used;
            let place = Place { identity, segment, offset };
            if let Next::Batch(batch) = next_at(&mut self.window, place, end, |_| true)? {
                self.batch(offset, batch, findings, visit)?;
                continue;
            }
            let (from, due) = (offset + ALIGN_BYTES, self.due.unwrap_or(1));
            let Some(later) = later_batch(self.found, identity, segment, from, due)? else {
                return Ok(());
            };
            let what = format!("no sound batch, but a later one stands at offset {later}");
            findings.problem(&self.found.path, offset, what);
            // What lies between is lost; the batch behind says which number it has.
            self.due = BatchHeader::decode(self.head(later)).map(|batch| batch.seq);
            self.file.used = later;
        }
    }

    /// A batch of one sector behind the newest segment's last cannot have been torn.
    fn check_tail(&mut self, findings: &mut Findings) -> Result<(), WalError> {
        let offset = self.file.used;
        let (Some(due), true) = (self.due, offset < format::data_end(self.found.len)) else {
            return Ok(());
        };
        let place = Place { identity: self.identity, segment: self.number, offset };
        let sector = self.window.get(offset, ALIGN_BYTES as usize)?;
        if sector.iter().any(|&byte| byte != 0) && format::sector_is_rotten(sector, place, due) {
            let what = "a batch of one sector is not sound, and a sector is never half written";
            findings.problem(&self.found.path, offset, what);
        }
        Ok(())
    }

    fn batch(
        &mut self,
        offset: u64,
        batch: BatchHeader,
        findings: &mut Findings,
        visit: &mut dyn FnMut(Placed<'_>, &mut Findings),
    ) -> Result<(), WalError> {
        let path = &self.found.path;
        if let Some(due) = self.due.filter(|due| *due != batch.seq) {
            findings.problem(path, offset, format!("batch {} where {due} is due", batch.seq));
        }
        let bytes = self.window.get(offset, batch.total())?;
        let mut records = Records::of(bytes);
        loop {
            let raw = match records.take() {
                Ok(None) => break,
                Ok(Some(Record::Entry(raw))) => raw,
                Ok(Some(Record::HardState(_) | Record::FirstSegment(_))) => continue,
                Err(e) => {
                    findings.problem(path, offset, e.to_string());
                    break;
                }
            };
            let index = raw.index;
            let (first, last) = self.file.range.unwrap_or((index, index));
            self.file.range = Some((first.min(index), last.max(index)));
            self.file.entries += 1;
            match raw.decode() {
                Ok(entry) => visit(Placed { path, offset, entry }, findings),
                Err(e) => findings.problem(path, offset, format!("entry {index}: {e}")),
            }
        }
        let end = offset + batch.total() as u64;
        self.check_padding(end, format::aligned(end), findings)?;
        self.due = Some(batch.seq.saturating_add(1));
        self.last = Some(offset);
        self.file.batches += 1;
        self.file.used = format::aligned(end);
        Ok(())
    }

    /// Whatever ends within a sector is followed by zeros in it. They carry nothing.
    fn check_padding(
        &mut self,
        from: u64,
        to: u64,
        findings: &mut Findings,
    ) -> Result<(), WalError> {
        let to = to.min(self.found.len);
        if from >= to {
            return Ok(());
        }
        let padding = self.window.get(from, (to - from) as usize)?;
        if let Some(at) = padding.iter().position(|&byte| byte != 0) {
            let what = "a byte of padding is not zero; it carries nothing, but nobody wrote it";
            findings.note(&self.found.path, from + at as u64, what);
        }
        Ok(())
    }
}

/// What stands behind the end of a log that is sound.
fn note_tail(found: &Look, findings: &mut Findings) {
    let Some((number, at)) = found.newest else { return };
    let file = &found.files[at];
    match would_cut(file, &found.tail, found.next_seq) {
        Ok(Some(cut)) => {
            let what = format!(
                "a tail of {} bytes would be cut: batch {} was not completely written, or is \
                 damaged",
                cut.bytes, found.next_seq
            );
            findings.note(&cut.path, cut.offset, what);
        }
        Ok(None) => {
            // Each write goes on with zeros to the end of its page.
            let end = format::data_end(file.len);
            let page = found.tail.offset.next_multiple_of(format::PAGE_BYTES).min(end);
            let len = page.saturating_sub(found.tail.offset) as usize;
            let rest = Window::new(file).get(found.tail.offset, len).map(<[u8]>::to_vec);
            match rest {
                Ok(rest) if rest.iter().all(|&byte| byte == 0) => {}
                Ok(_) => {
                    let what = format!(
                        "something stands behind the end of segment {number} that is no batch: \
                         one that was not completely written, or is damaged"
                    );
                    findings.note(&file.path, found.tail.offset, what);
                }
                Err(e) => report(findings, &file.path, e),
            }
        }
        Err(e) => report(findings, &file.path, e),
    }
}

/// An error is a problem of the file it names; `dir` is for those that name none.
fn report(findings: &mut Findings, dir: &Path, error: WalError) {
    match error {
        WalError::Io { what, path, source } => {
            findings.problem(&path, 0, format!("cannot {what} it: {source}"));
        }
        WalError::Unread { path, offset, source } => {
            findings.problem(&path, offset, format!("cannot read it: {source}"));
        }
        WalError::Damaged { path, offset, what } => findings.problem(&path, offset, what),
        WalError::Foreign { ref path, .. } | WalError::Version { ref path, .. } => {
            findings.problem(&path.clone(), 0, error.to_string());
        }
        WalError::Rejected { .. } | WalError::TooLarge { .. } | WalError::Poisoned => {
            findings.problem(dir, 0, error.to_string());
        }
    }
}
