//! How the background hears that there is something to do.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Debug, Default)]
struct State {
    rung: bool,
    closed: bool,
    /// The worker waits.
    silent: bool,
}

/// Rung by writers and readers, heard by the one worker.
#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    heard: Condvar,
    silence: Condvar,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ring(&self) {
        self.lock().rung = true;
        self.heard.notify_one();
    }

    /// The store is closing, or the worker has ended: whoever waits goes home.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.heard.notify_one();
        self.silence.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until the bell was rung since the last wait, or the store closes.
    pub(super) fn wait(&self) {
        let mut state = self.lock();
        while !state.rung && !state.closed {
            state.silent = true;
            self.silence.notify_all();
            state = self.heard.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.silent = false;
        state.rung = false;
    }

    /// The same, but no longer than that; true when it was rung.
    pub(super) fn wait_at_most(&self, wait: Duration) -> bool {
        let mut state = self.lock();
        if !state.rung && !state.closed {
            state.silent = true;
            self.silence.notify_all();
            // Woken for nothing it only looks once more than it had to.
            let woken = self.heard.wait_timeout(state, wait);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.silent = false;
        std::mem::take(&mut state.rung)
    }

    /// Waits until the worker has heard everything and waits itself, or the store closes.
    pub(super) fn wait_for_silence(&self) {
        let mut state = self.lock();
        while (state.rung || !state.silent) && !state.closed {
            state = self.silence.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
