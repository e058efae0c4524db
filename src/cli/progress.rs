//! Progress of a long command: one line that is rewritten in place, on a terminal only.
//!
//! The time is passed in and the text is given back, so that the display has no clock and no
//! output of its own. In a pipe it says nothing at all.

use std::fmt::Write;
use std::io::IsTerminal;

/// Least time between two displays, microseconds: faster than that nobody reads.
pub const INTERVAL_US: u64 = 100_000;

/// A progress line.
///
/// Invariant: `shown_us` is the time of the last display, none before the first.
#[derive(Clone, Debug)]
pub struct Progress {
    what: &'static str,
    total: Option<u64>,
    enabled: bool,
    started_us: u64,
    shown_us: Option<u64>,
    width: usize,
}

impl Progress {
    /// A display on standard error, silent unless that is a terminal. `what` names the things
    /// counted, `total_bytes` is the size of the whole where it is known, `now_us` any monotonic
    /// time in microseconds.
    pub fn on_stderr(what: &'static str, total_bytes: Option<u64>, now_us: u64) -> Progress {
        Progress::new(what, total_bytes, now_us, std::io::stderr().is_terminal())
    }

    /// As [`Progress::on_stderr`], with the terminal question answered by the caller.
    pub fn new(what: &'static str, total: Option<u64>, now_us: u64, enabled: bool) -> Progress {
        Progress { what, total, enabled, started_us: now_us, shown_us: None, width: 0 }
    }

    /// What to write now, if anything: `count` things and `bytes` bytes are done.
    pub fn update(&mut self, now_us: u64, count: u64, bytes: u64) -> Option<String> {
        let due = self.shown_us.is_none_or(|at| now_us.saturating_sub(at) >= INTERVAL_US);
        (self.enabled && due).then(|| self.line(now_us, count, bytes))
    }

    /// The last display, with a line end; none where nothing was ever shown.
    pub fn finish(&mut self, now_us: u64, count: u64, bytes: u64) -> Option<String> {
        self.shown_us?;
        let mut line = self.line(now_us, count, bytes);
        line.push('\n');
        self.shown_us = None;
        Some(line)
    }

    fn line(&mut self, now_us: u64, count: u64, bytes: u64) -> String {
        self.shown_us = Some(now_us);
        let mut text = format!("{count} {}, {}", self.what, size(bytes));
        // Over the first instants a rate is noise, and over none it is undefined.
        let elapsed_us = now_us.saturating_sub(self.started_us);
        if elapsed_us >= INTERVAL_US {
            let per_second =
                |n: u64| u64::try_from(u128::from(n) * 1_000_000 / u128::from(elapsed_us));
            let (things, volume) = (per_second(count), per_second(bytes));
            if let (Ok(things), Ok(volume)) = (things, volume) {
                // Writing to a String does not fail.
                let _ = write!(text, ", {things}/s, {}/s", size(volume));
            }
        }
        if let Some(total) = self.total.filter(|&t| t > 0) {
            let percent = u128::from(bytes.min(total)) * 100 / u128::from(total);
            let _ = write!(text, ", {percent}%");
        }
        // The line before may have been longer: its rest is wiped with spaces.
        let width = text.chars().count();
        let line = format!("\r{text}{}", " ".repeat(self.width.saturating_sub(width)));
        self.width = width;
        line
    }
}

/// A number of bytes for people: `512 B`, `1.5 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // 1024 is 2^10, so the unit follows from the highest bit.
    let step = ((bytes.ilog2() / 10) as usize).min(UNITS.len());
    let tenths = (u128::from(bytes) * 10) >> (10 * step);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[step - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_sees_nothing() {
        // Output that is read by a program holds only answers.
        let mut p = Progress::new("keys", Some(100), 0, false);
        assert_eq!(p.update(0, 1, 1), None);
        assert_eq!(p.update(10 * INTERVAL_US, 2, 2), None);
        assert_eq!(p.finish(10 * INTERVAL_US, 2, 2), None);
    }

    #[test]
    fn the_line_moves_ten_times_a_second_at_most() {
        // A load of a million keys must not spend its time on the display.
        let mut p = Progress::new("keys", None, 0, true);
        assert!(p.update(5, 1, 1).is_some());
        assert_eq!(p.update(5 + INTERVAL_US - 1, 2, 2), None);
        assert!(p.update(5 + INTERVAL_US, 3, 3).is_some());
    }

    #[test]
    fn rate_and_percent_follow_from_time_and_total() {
        // Two seconds, half of the bytes; then a shorter line wipes what is left of a longer one.
        let mut p = Progress::new("keys", Some(4096), 1_000_000, true);
        let line = p.update(3_000_000, 500, 2048);
        assert_eq!(line.as_deref(), Some("\r500 keys, 2.0 KiB, 250/s, 1.0 KiB/s, 50%"));
        let last = p.finish(3_000_000, 5, 4096).unwrap_or_default();
        assert_eq!(last, format!("\r5 keys, 4.0 KiB, 2/s, 2.0 KiB/s, 100%{}\n", " ".repeat(3)));
        assert_eq!(p.finish(3_000_000, 5, 4096), None, "the end is shown once");
    }

    #[test]
    fn time_that_stands_still_and_sizes_of_zero_divide_by_nothing() {
        // An empty file, loaded in no time.
        let mut p = Progress::new("keys", Some(0), 7, true);
        assert_eq!(p.update(7, 0, 0).as_deref(), Some("\r0 keys, 0 B"));
        assert_eq!(
            p.update(7 + INTERVAL_US, u64::MAX, u64::MAX).map(|l| l.is_empty()),
            Some(false)
        );
    }

    #[test]
    fn sizes_have_one_digit_and_the_right_unit() {
        // Both sides of a boundary, and the largest number there is.
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size(1024 * 1024 - 1), "1023.9 KiB");
        assert_eq!(size(3 << 19), "1.5 MiB");
        assert_eq!(size(u64::MAX), "15.9 EiB");
    }
}
