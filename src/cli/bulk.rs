//! `dump` and `load`: a range as lines `KEY<TAB>VALUE`, and such lines back into the store.
//!
//! Plain text is the same in the file and in the store. Only a backslash, a carriage return and a
//! line feed, and in a key a tab, are written `\\`, `\r`, `\n` and `\t`, so that what was dumped
//! loads to the same bytes. A tab in a value stays: the first one of the line ends the key.
//! A dump is cut into pages, each consistent in itself; writes between two pages may show.
//! `load` packs lines into writes and has many of them in flight; each is done exactly once.

use super::answers::{Failed, Shell, done, exit_of, item_json};
use super::exit::Exit;
use super::json::Json;
use super::progress::Progress;
use super::run::{LINE_BYTES_MAX, Line, read_line};
use crate::client::Error;
use crate::kv::{Op, Outcome, Range, Write as KvWrite};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

/// Lines of one write: enough to make its fixed cost small, few enough to be a moment's work for
/// the store.
const GROUP_LINES_MAX: usize = 128;

/// Bytes of keys and values of one write, unless one line alone has more.
const GROUP_BYTES_MAX: usize = 32 << 10;

/// The buffer in front of a file that is loaded.
const FILE_BUFFER_BYTES: usize = 256 << 10;

const _: () = assert!(GROUP_BYTES_MAX < FILE_BUFFER_BYTES && FILE_BUFFER_BYTES < LINE_BYTES_MAX);

/// Appends a key or a value as a dump holds it.
pub(super) fn put_escaped(out: &mut Vec<u8>, bytes: &[u8], key: bool) {
    for &byte in bytes {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\t' if key => out.extend_from_slice(b"\\t"),
            other => out.push(other),
        }
    }
}

/// The bytes that [`put_escaped`] wrote so.
fn unescaped(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next() {
            Some(b'\\') => b'\\',
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            _ => return Err("a backslash must be followed by \\, r, n or t".to_owned()),
        });
    }
    Ok(out)
}

/// Key and value of a line without its line feed; a carriage return before that is part of the
/// line end.
fn parse(line: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let tab = line.iter().position(|b| *b == b'\t');
    let Some((key, value)) = tab.map(|at| (&line[..at], &line[at + 1..])) else {
        return Err("no TAB between key and value".to_owned());
    };
    if key.is_empty() {
        return Err("the key is empty".to_owned());
    }
    Ok((unescaped(key)?, unescaped(value)?))
}

/// Lines that were sent as one write.
#[derive(Clone, Copy)]
struct Group {
    first: u64,
    last: u64,
    bytes: u64,
    /// Whether it is answered, and then whether it is stored.
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Stored,
    Not,
    Unknown,
}

/// What is known of the lines of a file.
#[derive(Default)]
struct Ledger {
    /// Groups behind the first one that is not stored; `dropped` of them are no longer here.
    groups: VecDeque<Group>,
    dropped: usize,
    /// Every line up to this one is stored.
    stored_to: u64,
    stored: u64,
    stored_bytes: u64,
    unknown: u64,
    failed: Option<(u64, u64, Failed)>,
}

impl Ledger {
    fn answered(&mut self, index: usize, result: Result<Outcome, Error>) -> ControlFlow<()> {
        let Some(group) = index.checked_sub(self.dropped).and_then(|i| self.groups.get_mut(i))
        else {
            return ControlFlow::Break(());
        };
        let lines = group.last + 1 - group.first;
        let flow = match result.map_err(Failed::from).and_then(done) {
            Ok(_) => {
                group.state = State::Stored;
                self.stored += lines;
                self.stored_bytes += group.bytes;
                ControlFlow::Continue(())
            }
            Err(failed) => {
                group.state = State::Not;
                if failed.exit == Exit::Unknown {
                    group.state = State::Unknown;
                    self.unknown += lines;
                }
                let (first, last) = (group.first, group.last);
                // The first in the file is told; an unknown one outweighs it in the exit code.
                match &mut self.failed {
                    Some((earliest, _, held)) if *earliest < first => {
                        held.exit = held.exit.worse(failed.exit);
                    }
                    Some((.., held)) => {
                        let exit = held.exit.worse(failed.exit);
                        self.failed = Some((first, last, Failed { exit, ..failed }));
                    }
                    None => self.failed = Some((first, last, failed)),
                }
                ControlFlow::Break(())
            }
        };
        while let Some(group) = self.groups.front().filter(|g| g.state == State::Stored) {
            self.stored_to = group.last;
            self.groups.pop_front();
            self.dropped += 1;
        }
        flow
    }

    /// What is certain, in words.
    fn summary(&self) -> String {
        let behind = self.stored - self.stored_to;
        let mut text = match (self.stored_to, behind) {
            (0, 0) => "no line is stored for sure".to_owned(),
            (0, behind) => format!("{behind} lines further on are stored"),
            (1, 0) => "line 1 is stored".to_owned(),
            (last, 0) => format!("lines 1 to {last} are stored"),
            (last, behind) => format!("lines 1 to {last} are stored, and {behind} further on"),
        };
        if self.unknown > 0 {
            text += &format!("; of {} lines that is unknown", self.unknown);
        }
        text
    }
}

/// The file as writes: stops at its end, or at the first line that is none.
struct Groups<'a> {
    input: &'a mut dyn BufRead,
    ledger: &'a RefCell<Ledger>,
    line: Vec<u8>,
    number: u64,
    /// A line that was read and did not fit the group before it.
    held: Option<(Vec<u8>, Vec<u8>, u64)>,
    broken: &'a RefCell<Option<(u64, String)>>,
    ended: bool,
}

impl Groups<'_> {
    fn next_pair(&mut self) -> Option<(Vec<u8>, Vec<u8>, u64)> {
        if let Some(held) = self.held.take() {
            return Some(held);
        }
        if self.ended {
            return None;
        }
        self.ended = true;
        self.number += 1;
        let why = match read_line(self.input, &mut self.line) {
            Ok(Line::End) => return None,
            Ok(Line::TooLong) => format!("longer than {LINE_BYTES_MAX} bytes"),
            Err(error) => format!("cannot read it: {error}"),
            Ok(Line::Whole) => match parse(&self.line) {
                Ok((key, value)) => {
                    self.ended = false;
                    return Some((key, value, self.line.len() as u64 + 1));
                }
                Err(why) => why,
            },
        };
        *self.broken.borrow_mut() = Some((self.number, why));
        None
    }
}

impl Iterator for Groups<'_> {
    type Item = KvWrite;

    fn next(&mut self) -> Option<KvWrite> {
        let mut ops = Vec::new();
        let (mut size, mut bytes) = (0, 0);
        while ops.len() < GROUP_LINES_MAX {
            let Some((key, value, line_bytes)) = self.next_pair() else { break };
            let pair = key.len() + value.len();
            if !ops.is_empty() && size + pair > GROUP_BYTES_MAX {
                self.held = Some((key, value, line_bytes));
                break;
            }
            size += pair;
            bytes += line_bytes;
            ops.push(Op::Put { key, value });
        }
        if ops.is_empty() {
            return None;
        }
        // Behind the group, the last line that was read is held or was none.
        let mut ledger = self.ledger.borrow_mut();
        let first = ledger.groups.back().map_or(ledger.stored_to, |g| g.last) + 1;
        let last = first + ops.len() as u64 - 1;
        ledger.groups.push_back(Group { first, last, bytes, state: State::Open });
        Some(KvWrite { ops, ..KvWrite::default() })
    }
}

impl Shell<'_> {
    /// Stores what a file holds.
    pub(super) fn load(&mut self, path: &Path) -> io::Result<Result<Exit, Failed>> {
        let opened = File::open(path).and_then(|file| {
            let size = file.metadata()?.len();
            Ok((file, size))
        });
        match opened {
            Ok((file, size)) => {
                let mut input = BufReader::with_capacity(FILE_BUFFER_BYTES, file);
                self.load_from(&mut input, &path.display().to_string(), size)
            }
            Err(error) => {
                let why = format!("cannot open {}: {error}", path.display());
                Ok(Err(Failed { exit: Exit::Usage, why }))
            }
        }
    }

    pub(super) fn load_from(
        &mut self,
        input: &mut dyn BufRead,
        name: &str,
        size: u64,
    ) -> io::Result<Result<Exit, Failed>> {
        let started = Instant::now();
        let now_us = || u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut progress = Progress::new("lines", Some(size), 0, self.errors_is_terminal);
        let ledger = RefCell::new(Ledger::default());
        let broken = RefCell::new(None);
        let groups = Groups {
            input,
            ledger: &ledger,
            line: Vec::new(),
            number: 0,
            held: None,
            broken: &broken,
            ended: false,
        };
        let errors = &mut *self.errors;
        let ended = self.client.write_stream(groups, |index, result| {
            let mut ledger = ledger.borrow_mut();
            let flow = ledger.answered(index, result);
            if let Some(text) = progress.update(now_us(), ledger.stored, ledger.stored_bytes) {
                // Progress is a courtesy: a load does not fail for it.
                let _ = errors.write_all(text.as_bytes());
            }
            flow
        });
        let ledger = ledger.into_inner();
        if let Some(text) = progress.finish(now_us(), ledger.stored, ledger.stored_bytes) {
            let _ = errors.write_all(text.as_bytes());
        }
        let summary = ledger.summary();
        if let Some((first, last, failed)) = ledger.failed {
            let lines = if first == last {
                format!("line {first}")
            } else {
                format!("lines {first} to {last}")
            };
            let why = format!("{name}, {lines}: {}; {summary}", failed.why);
            return Ok(Err(Failed { exit: failed.exit, why }));
        }
        if let Err(error) = ended {
            let why = format!("{name}: {error}; {summary}");
            return Ok(Err(Failed { exit: exit_of(error.class), why }));
        }
        if let Some((number, why)) = broken.into_inner() {
            let why = format!("{name}, line {number}: {why}; {summary}");
            return Ok(Err(Failed { exit: Exit::Usage, why }));
        }
        let stored = ledger.stored;
        if self.json {
            let fields = vec![("ok", true.into()), ("lines", stored.into())];
            writeln!(self.output, "{}", Json::Object(fields))?;
        } else {
            writeln!(self.output, "OK {stored}")?;
        }
        Ok(Ok(Exit::Done))
    }

    /// Writes out what a range holds.
    pub(super) fn dump(
        &mut self,
        start: Vec<u8>,
        end: Vec<u8>,
    ) -> io::Result<Result<Exit, Failed>> {
        let started = Instant::now();
        let now_us = || u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let shown = self.errors_is_terminal && !self.output_is_terminal;
        let mut progress = Progress::new("keys", None, 0, shown);
        let (mut keys, mut bytes) = (0, 0);
        let mut range = Range { start, end, ..Range::default() };
        let mut out = Vec::new();
        let result = loop {
            let page = match self.client.range(range.clone()) {
                Ok(page) => page,
                Err(error) => break Err(error),
            };
            out.clear();
            for item in &page.items {
                if self.json {
                    out.extend_from_slice(item_json(item, false).to_string().as_bytes());
                } else {
                    put_escaped(&mut out, &item.key, true);
                    out.push(b'\t');
                    put_escaped(&mut out, &item.value, false);
                }
                out.push(b'\n');
            }
            self.output.write_all(&out)?;
            keys += page.items.len() as u64;
            bytes += out.len() as u64;
            if let Some(text) = progress.update(now_us(), keys, bytes) {
                // Progress is a courtesy: a dump does not fail for it.
                let _ = self.errors.write_all(text.as_bytes());
            }
            match page.cursor {
                Some(cursor) => range.after = Some(cursor),
                None => break Ok(()),
            }
        };
        if let Some(text) = progress.finish(now_us(), keys, bytes) {
            let _ = self.errors.write_all(text.as_bytes());
        }
        Ok(match result {
            Ok(()) => Ok(Exit::Done),
            Err(error) => {
                let failed = Failed::from(error);
                let why = format!("{}; the dump ends after {keys} keys", failed.why);
                Err(Failed { why, ..failed })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_lines_are_their_own_escape() {
        // A line of a character table, with tabs in its value.
        let line = b"0041\tLATIN CAPITAL LETTER A;Lu\t0;L;;;;;N;;;;0061;";
        let (key, value) = parse(line).unwrap();
        assert_eq!(key, b"0041");
        let mut out = Vec::new();
        put_escaped(&mut out, &key, true);
        out.push(b'\t');
        put_escaped(&mut out, &value, false);
        assert_eq!(out, line);
    }

    #[test]
    fn lines_that_are_none_are_named() {
        // Each with its reason; nothing is guessed.
        for (line, why) in [
            (&b"no tab"[..], "no TAB between key and value"),
            (b"", "no TAB between key and value"),
            (b"\tvalue", "the key is empty"),
            (b"C:\\temp\\x\tv", "a backslash must be followed by \\, r, n or t"),
            (b"k\tv\\", "a backslash must be followed by \\, r, n or t"),
        ] {
            assert_eq!(parse(line), Err(why.to_owned()));
        }
        assert_eq!(parse(b"k\t\r"), Ok((b"k".to_vec(), b"".to_vec())), "a line end of two bytes");
    }

    proptest! {
        #[test]
        fn what_is_dumped_loads_to_the_same_bytes(
            key in proptest::collection::vec(prop_oneof![Just(b'\\'), Just(b'\t'), Just(b'\n'), Just(b'\r'), any::<u8>()], 1..8),
            value in proptest::collection::vec(prop_oneof![Just(b'\\'), Just(b'\t'), Just(b'\n'), Just(b'\r'), any::<u8>()], 0..8),
        ) {
            // Bytes that mean something to the form, and all others.
            let mut line = Vec::new();
            put_escaped(&mut line, &key, true);
            line.push(b'\t');
            put_escaped(&mut line, &value, false);
            prop_assert!(!line.contains(&b'\n'));
            prop_assert_eq!(parse(&line), Ok((key, value)));
        }
    }
}
