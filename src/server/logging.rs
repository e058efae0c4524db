//! Log lines on standard error: time, level, node, message.
//!
//! One line a call, written at once; details follow the message as `key=value`. Left out: files,
//! rotation and formats, which belong to whoever runs the process.

use std::fmt;
use std::io::Write as _;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
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

/// Writes one line.
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
    let line = format!("{time} {name:5} node={node} {message}\n");
    // A closed standard error is no reason to stop serving.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// At most one line in so long of those that strangers can cause at will.
const RATE: Duration = Duration::from_secs(1);

/// Lets one line in [`RATE`] pass and counts those it holds back.
#[derive(Debug, Default)]
pub(crate) struct Rate(Mutex<(Option<Instant>, u64)>);

impl Rate {
    /// Whether a line may be written now; if so, how many were held back since the last one.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|last| now.saturating_duration_since(last) < RATE) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
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
    ($($arg:tt)*) => { $crate::server::logging::log($crate::server::logging::Level::Info, format_args!($($arg)*)) };
}

/// Logs at warn.
macro_rules! warning {
    ($($arg:tt)*) => { $crate::server::logging::log($crate::server::logging::Level::Warn, format_args!($($arg)*)) };
}

/// Logs at debug.
macro_rules! debug {
    ($($arg:tt)*) => { $crate::server::logging::log($crate::server::logging::Level::Debug, format_args!($($arg)*)) };
}

pub(crate) use {debug, info, warning};

#[cfg(test)]
mod tests {
    use super::{RATE, Rate, timestamp};
    use std::time::Instant;

    /// Somebody dials with a wrong token a thousand times a second: one line a second, and the next
    /// one says how many there were.
    #[test]
    fn lines_that_strangers_cause_are_rationed_and_counted() {
        let rate = Rate::default();
        let now = Instant::now();
        assert_eq!(rate.pass(now), Some(0));
        assert!((0..1000).all(|_| rate.pass(now + RATE / 2).is_none()));
        assert_eq!(rate.pass(now + RATE), Some(1000));
        assert_eq!(rate.pass(now + 2 * RATE), Some(0));
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
