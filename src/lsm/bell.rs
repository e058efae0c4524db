//! How the background hears that there is something to do.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    rung: bool,
    closed: bool,
}

/// Rung by writers and readers, heard by the one worker.
#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    heard: Condvar,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ring(&self) {
        self.lock().rung = true;
        self.heard.notify_one();
    }

    /// The store is closing: whoever waits goes home.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.heard.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until the bell was rung since the last wait, or the store closes.
    pub(super) fn wait(&self) {
        let mut state = self.lock();
        while !state.rung && !state.closed {
            state = self.heard.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.rung = false;
    }
}
