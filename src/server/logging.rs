//! Log lines on standard error: time, level, node, message.
//!
//! One line a call; details follow the message as `key=value`. Neither who reads the lines nor who causes
//! them can hurt the node:
//!
//! - Lines go to a thread that writes them (`Lines`), by a queue with a bound. Where nobody reads standard
//!   error, or its disk stalls, no other thread waits: what does not fit is dropped and counted.
//! - Every place in the code that logs is a kind of its own (`Kind`): so many lines at once, and one a second
//!   from then on, with the number of those that were held back ([`crate::api::ration`]).
//!
//! Left out: files, rotation and formats, which belong to whoever runs the process.

use super::lock;
use crate::api::ration::{Backlog, Rationed};
use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The node cannot do what it should.
    Error = 0,
    /// Something is not as it should be.
    Warn = 1,
    /// What a person wants to know afterwards.
    Info = 2,
    /// What a developer wants to know.
    Debug = 3,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static NODE: AtomicU64 = AtomicU64::new(0);

/// Shows lines up to this level from now on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// The node that lines speak of from now on.
pub fn set_node(id: u64) {
    NODE.store(id, Ordering::Relaxed);
}

/// Writes one line. Nothing that comes from outside may cause it at will: see `Kind`.
pub fn log(level: Level, message: fmt::Arguments<'_>) {
    if level as u8 > LEVEL.load(Ordering::Relaxed) {
        return;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = timestamp(since.as_secs(), since.subsec_millis());
    let name = match level {
        Level::Error => "ERROR",
        Level::Warn => "WARN",
        Level::Info => "INFO",
        Level::Debug => "DEBUG",
    };
    let node = NODE.load(Ordering::Relaxed);
    let line = format!("{time} {name:5} node={node} {}\n", one_line(&message.to_string()));
    match LINES.get() {
        Some(lines) => lines.put(&line),
        // Before there is a thread, and where there can be none. A closed standard error is no reason to stop.
        None => drop(std::io::stderr().write_all(line.as_bytes())),
    }
}

/// A message without control characters: what a peer says may be in it, which must not pass for other lines.
fn one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for c in message.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// Lines are written by a thread of their own from now on.
pub(crate) fn start() {
    if LINES.get().is_none()
        && let Ok(lines) = Lines::start(std::io::stderr())
    {
        let _ = LINES.set(lines);
    }
}

/// Waits until what was logged is written, for a moment at most: the process is about to end.
pub(crate) fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(FLUSH_MAX);
    }
}

static LINES: OnceLock<Lines> = OnceLock::new();

/// Bytes of lines that wait to be written: some thousands of lines.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// How long the end of a process waits for who reads its standard error.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// The lines that wait for the thread that writes them.
#[derive(Debug)]
struct Lines(Arc<(Mutex<Waiting>, Condvar)>);

#[derive(Debug, Default)]
struct Waiting {
    backlog: Backlog,
    /// The thread writes what it took last.
    writing: bool,
}

impl Lines {
    /// Starts the thread.
    fn start(mut out: impl Write + Send + 'static) -> std::io::Result<Lines> {
        let shared: Arc<(Mutex<Waiting>, Condvar)> = Arc::default();
        let theirs = Arc::clone(&shared);
        let body = move || {
            let (waiting, changed) = &*theirs;
            loop {
                let mut held = lock(waiting);
                held.writing = false;
                changed.notify_all();
                while held.backlog.is_empty() {
                    held = changed.wait(held).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                let bytes = held.backlog.take();
                held.writing = true;
                drop(held);
                let _ = out.write_all(&bytes);
            }
        };
        thread::Builder::new().name("log".into()).spawn(body)?;
        Ok(Lines(shared))
    }

    fn put(&self, line: &str) {
        let (waiting, changed) = &*self.0;
        lock(waiting).backlog.put(line, WAITING_BYTES_MAX);
        changed.notify_all();
    }

    /// Waits until nothing waits any more, at most so long.
    fn flush(&self, within: Duration) {
        let (waiting, changed) = &*self.0;
        let until = Instant::now() + within;
        let mut held = lock(waiting);
        while held.writing || !held.backlog.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = changed.wait_timeout(held, left);
            held = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}

/// Lines of one kind that are written at once: more than any kind has that nobody causes at will.
const BURST: u64 = 30;
/// [`Rationed`] for several threads, by the clock of this process. By default one line at once.
#[derive(Debug)]
pub(crate) struct Rate(Mutex<Rationed>);

impl Default for Rate {
    fn default() -> Rate {
        Rate::of(1)
    }
}

impl Rate {
    const fn of(burst: u64) -> Rate {
        Rate(Mutex::new(Rationed::new(burst)))
    }

    /// Whether a line may be written now; if so, how many were held back since the last one.
    pub(crate) fn pass(&self) -> Option<u64> {
        static BEGAN: OnceLock<Instant> = OnceLock::new();
        let since = BEGAN.get_or_init(Instant::now).elapsed();
        lock(&self.0).pass(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

/// One place in the code that logs: at most [`BURST`] lines at once.
#[derive(Debug)]
pub(crate) struct Kind(Rate);

impl Kind {
    pub(crate) const fn new() -> Kind {
        Kind(Rate::of(BURST))
    }

    /// Writes a line of that kind, or holds it back.
    pub(crate) fn log(&self, level: Level, message: fmt::Arguments<'_>) {
        if level as u8 > LEVEL.load(Ordering::Relaxed) {
            return;
        }
        match self.0.pass() {
            None => {}
            Some(0) => log(level, message),
            Some(more) => {
                log(level, format_args!("{message} ({more} more like this were not logged)"));
            }
        }
    }
}

/// `2026-01-31T12:34:56.789Z`, by the civil calendar.
fn timestamp(seconds: u64, millis: u32) -> String {
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 0000-03-01, so that a leap day ends its year; an era is 400 years.
    let day = day + 719_468;
    let era = day / 146_097;
    let of_era = day % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02}T{h:02}:{m:02}:{s:02}.{millis:03}Z")
}

/// Logs at info.
macro_rules! info {
    ($($arg:tt)*) => {{
        static KIND: $crate::server::logging::Kind = $crate::server::logging::Kind::new();
        KIND.log($crate::server::logging::Level::Info, format_args!($($arg)*))
    }};
}

/// Logs at warn.
macro_rules! warning {
    ($($arg:tt)*) => {{
        static KIND: $crate::server::logging::Kind = $crate::server::logging::Kind::new();
        KIND.log($crate::server::logging::Level::Warn, format_args!($($arg)*))
    }};
}

/// Logs at debug.
macro_rules! debug {
    ($($arg:tt)*) => {{
        static KIND: $crate::server::logging::Kind = $crate::server::logging::Kind::new();
        KIND.log($crate::server::logging::Level::Debug, format_args!($($arg)*))
    }};
}

pub(crate) use {debug, info, warning};

#[cfg(test)]
mod tests {
    use super::{Lines, WAITING_BYTES_MAX, one_line, timestamp};
    use std::io::Write;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    /// Takes a piece when it is let, and says what it was.
    struct Slow(Receiver<()>, Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Nobody reads standard error: no thread that logs waits for that, memory has a bound, and who reads at
    /// last is told how many lines are missing, and where.
    #[test]
    fn nobody_waits_for_who_reads_the_lines() {
        let ((let_it, lets), (wrote, written)) = (channel(), channel());
        let lines = Lines::start(Slow(lets, wrote)).unwrap();
        let line = |n: u64| format!("{n:099}\n");
        let fit = WAITING_BYTES_MAX as u64 / 100;
        (0..3 * fit).for_each(|n| lines.put(&line(n)));
        lines.flush(Duration::from_millis(1));
        let mut all = Vec::new();
        let next = |all: &mut Vec<u8>| {
            let_it.send(()).unwrap();
            all.extend(written.recv().unwrap());
        };
        // The thread may have taken a part of it before the rest came.
        while !super::lock(&lines.0.0).backlog.is_empty() {
            next(&mut all);
        }
        let last = line(7_777_777);
        lines.put(&last);
        while !all.ends_with(last.as_bytes()) {
            next(&mut all);
        }
        let text = String::from_utf8(all).unwrap();
        // In one place, or in two when the thread had taken a part.
        let told = text.lines().filter(|line| line.contains("lines were dropped here"));
        let dropped: u64 =
            told.map(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        let kept = text.lines().filter(|line| line.len() == 99).count() as u64;
        assert_eq!(kept + dropped, 3 * fit + 1);
        assert!(dropped >= fit && kept <= 2 * fit + 1, "{kept} {dropped}");
        assert_eq!(text.lines().last().unwrap(), line(7_777_777).trim_end());
    }

    /// A peer says why it refuses this node, and puts a line of its own into that: it stays one line.
    #[test]
    fn a_message_is_one_line() {
        let said =
            "it refuses the connection: no\n2026-01-01T00:00:00.000Z ERROR node=1 lost\x1b[2J";
        let line = one_line(said);
        assert!(!line.contains(char::is_control), "{line}");
        assert!(line.contains("no\\n2026") && line.contains("\\u{1b}[2J"), "{line}");
        assert_eq!(one_line("städtisch \"x\""), "städtisch \"x\"");
    }

    /// Dates around leap days and centuries come out as the calendar has them.
    #[test]
    fn timestamps_follow_the_calendar() {
        assert_eq!(timestamp(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_782_400, 5), "2000-02-29T00:00:00.005Z");
        assert_eq!(timestamp(951_868_799, 0), "2000-02-29T23:59:59.000Z");
        assert_eq!(timestamp(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
        assert_eq!(timestamp(1_709_251_199, 999), "2024-02-29T23:59:59.999Z");
    }
}
