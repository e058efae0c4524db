//! Descriptors and threads that the system does not give: the limit, a reserve, and waiting.
//!
//! A system gives a process so many descriptors (files, directories, sockets) and no more. A server whose
//! clients hold all of them can neither write nor answer. So it keeps a [`Reserve`]: descriptors that stand
//! for nothing. An operation that finds none ([`Reserve::patiently`]) takes one of these in its place, says that
//! there is a [`Shortage`], and goes on; with the reserve spent it waits. Somebody waits for shortages
//! ([`Reserve::next_shortage`]), closes what can be spared, and fills the reserve again. A process that keeps no
//! reserve, such as a command of the line client, gets the error.
//!
//! Left out: what can be spared, which is the business of whoever has it; and raising the limit, which takes
//! a call that the standard library does not have.

use std::fs::File;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pause before an operation that found no descriptor, nor one in the reserve, is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// What the system has run out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Descriptors, of this process or of the machine.
    Descriptors,
    /// Threads, or memory for one.
    Threads,
}

/// Most descriptors that this process may have open; none when the system sets no limit or does not say.
pub fn limit() -> Option<u64> {
    if !cfg!(unix) {
        // Windows bounds handles by memory alone.
        return None;
    }
    match std::fs::read_to_string("/proc/self/limits") {
        Ok(text) => soft_limit(&text),
        Err(_) => asked_of_a_shell(),
    }
}

/// The limit in force from the lines of `/proc/self/limits`.
fn soft_limit(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A child process has the limits of its parent, and every Unix has a shell that tells them.
fn asked_of_a_shell() -> Option<u64> {
    let told = std::process::Command::new("sh").args(["-c", "ulimit -n"]).output().ok()?;
    String::from_utf8(told.stdout).ok()?.trim().parse().ok()
}

/// Whether an operation failed because the process, or the machine, has no descriptor left.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    // EMFILE and ENFILE are 24 and 23 on every Unix; ERROR_TOO_MANY_OPEN_FILES and WSAEMFILE on Windows.
    let codes = if cfg!(windows) { [4, 10024] } else { [24, 23] };
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// The reserve of this process. Empty, and of no effect, until [`Reserve::keep`].
pub static RESERVE: Reserve = Reserve::new(open_nothing);

/// Opens what exists on every machine and stands for nothing.
fn open_nothing() -> io::Result<File> {
    File::open(if cfg!(windows) { "NUL" } else { "/dev/null" })
}

/// See the module.
#[derive(Debug)]
pub struct Reserve {
    state: Mutex<State>,
    changed: Condvar,
    open: fn() -> io::Result<File>,
}

/// Invariant: `spare` holds no more than `wanted`.
#[derive(Debug)]
struct State {
    spare: Vec<File>,
    /// Descriptors that are to be in reserve; nobody waits for any while it is 0.
    wanted: usize,
    /// Nobody has taken note of it yet.
    shortage: Option<Shortage>,
}

impl Reserve {
    const fn new(open: fn() -> io::Result<File>) -> Reserve {
        let state = State { spare: Vec::new(), wanted: 0, shortage: None };
        Reserve { state: Mutex::new(state), changed: Condvar::new(), open }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps so many from now on. Whoever finds none waits from now on, so somebody must wait for shortages.
    pub fn keep(&self, wanted: usize) {
        self.lock().wanted = wanted;
        if !self.refill() {
            self.report(Shortage::Descriptors);
        }
    }

    /// Does `operation` until it has not failed for want of a descriptor: see the module. With a time, no
    /// longer than until then.
    ///
    /// # Errors
    /// Those of `operation`; that it has no descriptor only when nothing is kept, or the time is over.
    pub fn patiently<T>(
        &self,
        until: Option<Instant>,
        mut operation: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match operation() {
                Err(e) if is_out_of_descriptors(&e) && self.give_way(until) => {}
                done => return done,
            }
        }
    }

    /// There was no descriptor: gives one up, or waits a moment. False when that is not to be waited for.
    fn give_way(&self, until: Option<Instant>) -> bool {
        let mut state = self.lock();
        if state.wanted == 0 || until.is_some_and(|until| Instant::now() >= until) {
            return false;
        }
        state.shortage = Some(Shortage::Descriptors);
        self.changed.notify_all();
        if state.spare.pop().is_none() {
            drop(self.changed.wait_timeout(state, PAUSE));
        }
        true
    }

    /// Something was not to be had, and nobody waits for it here.
    pub fn report(&self, shortage: Shortage) {
        self.lock().shortage = Some(shortage);
        self.changed.notify_all();
    }

    /// Waits for a shortage of which nobody has taken note.
    pub fn next_shortage(&self) -> Shortage {
        let mut state = self.lock();
        loop {
            if let Some(shortage) = state.shortage.take() {
                return shortage;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Fills the reserve as far as that goes; true when it is whole.
    pub fn refill(&self) -> bool {
        loop {
            let state = self.lock();
            if state.spare.len() >= state.wanted {
                return true;
            }
            drop(state);
            let Ok(spare) = (self.open)() else { return false };
            let mut state = self.lock();
            if state.spare.len() < state.wanted {
                state.spare.push(spare);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn none_left() -> io::Error {
        io::Error::from_raw_os_error(if cfg!(windows) { 4 } else { 24 })
    }

    #[test]
    fn the_limit_in_force_is_read() {
        // The soft limit counts: the hard one is only what it may be raised to.
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             126000               126000               processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(soft_limit(text), Some(1024));
        let text =
            "Max open files            unlimited            unlimited            files     \n";
        assert_eq!(soft_limit(text), None);
        if cfg!(unix) {
            let limit = limit().expect("a limit");
            assert_eq!(asked_of_a_shell(), Some(limit), "with and without /proc");
        }
    }

    #[test]
    fn an_operation_without_a_descriptor_goes_on_with_one_of_the_reserve() {
        // All descriptors but the two in reserve are taken. Two operations find none and take these; the third
        // waits until somebody, who hears of it, closes something. Then the reserve is whole again.
        static FREE: AtomicUsize = AtomicUsize::new(2);
        static RESERVE: Reserve = Reserve::new(|| {
            let taken = FREE.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            taken.map_err(|_| none_left()).and_then(|_| open_nothing())
        });
        RESERVE.keep(2);
        assert_eq!(FREE.load(Ordering::SeqCst), 0);
        let open = || {
            let before = RESERVE.lock().spare.len();
            let mut tries = 0;
            let opened = RESERVE.patiently(None, || {
                tries += 1;
                // What leaves the reserve is free for a moment.
                let given = before - RESERVE.lock().spare.len();
                let free = FREE.load(Ordering::SeqCst);
                if given + free > 0 { Ok(()) } else { Err(none_left()) }
            });
            opened.map(|()| tries)
        };
        assert_eq!((open().unwrap(), RESERVE.lock().spare.len()), (2, 1));
        assert_eq!(RESERVE.next_shortage(), Shortage::Descriptors);
        assert_eq!((open().unwrap(), RESERVE.lock().spare.len()), (2, 0));
        assert_eq!(RESERVE.next_shortage(), Shortage::Descriptors);
        assert!(!RESERVE.refill(), "nothing was closed");
        let third = std::thread::spawn(move || open().unwrap());
        assert_eq!(RESERVE.next_shortage(), Shortage::Descriptors);
        FREE.store(3, Ordering::SeqCst);
        assert!(third.join().unwrap() > 1);
        assert!(RESERVE.refill());
        assert_eq!(FREE.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn without_a_reserve_or_time_the_error_is_told() {
        let reserve = Reserve::new(open_nothing);
        let fails = |until| reserve.patiently(until, || Err::<(), _>(none_left())).unwrap_err();
        assert!(is_out_of_descriptors(&fails(None)), "nothing is kept");
        reserve.keep(1);
        assert!(is_out_of_descriptors(&fails(Some(Instant::now()))), "no time");
        let other = reserve.patiently(None, || Err::<(), _>(io::ErrorKind::NotFound.into()));
        assert_eq!(other.unwrap_err().kind(), io::ErrorKind::NotFound);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(!is_out_of_descriptors(&full));
    }
}
