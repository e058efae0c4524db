//! Which change is made in this process: number `SIEVE` of the environment. With `SIEVE_REACHED`, a file, none is made,
//! and the number of each that is reached is appended there once.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

const UNREAD: u32 = u32::MAX;
const RECORDS: u32 = u32::MAX - 1;
const NONE: u32 = u32::MAX - 2;

static MADE: AtomicU32 = AtomicU32::new(UNREAD);
static REACHED: [AtomicBool; COUNT] = [const { AtomicBool::new(false) }; COUNT];

/// Whether change `number` is made.
#[inline]
pub fn on(number: u32) -> bool {
    let made = MADE.load(Relaxed);
    made == number || (made >= RECORDS && rarely(made, number))
}

#[cold]
fn rarely(made: u32, number: u32) -> bool {
    if made == UNREAD {
        let chosen = std::env::var("SIEVE").ok().and_then(|n| n.parse().ok());
        let otherwise = if std::env::var_os("SIEVE_REACHED").is_some() { RECORDS } else { NONE };
        MADE.store(chosen.unwrap_or(otherwise), Relaxed);
        return on(number);
    }
    if !REACHED[number as usize].swap(true, Relaxed)
        && let Some(path) = std::env::var_os("SIEVE_REACHED")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        // One write: other threads of the process append, too.
        let _ = file.write_all(format!("{number}\n").as_bytes());
    }
    false
}
