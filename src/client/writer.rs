//! Writes, one or a million: taken from an iterator as there is room, answered each once.

use super::{Cause, Client, Error, Event};
use crate::kv::{Outcome, Write};
use crate::wire::client::{Answer, Call, Class};
use std::ops::ControlFlow;
use std::sync::Arc;

impl Client {
    /// Carries out many writes, as many at a time as the cluster digests, and gives each one's
    /// outcome, in order. Each is atomic; all together are not. Writes that name the same key take
    /// effect in the order given.
    pub fn write_many(&mut self, writes: &[Write]) -> Vec<Result<Outcome, Error>> {
        let mut results: Vec<Option<Result<Outcome, Error>>> = Vec::new();
        results.resize_with(writes.len(), || None);
        let ended = self.write_stream(writes.iter().cloned(), |index, result| {
            if let Some(slot) = results.get_mut(index) {
                *slot = Some(result);
            }
            ControlFlow::Continue(())
        });
        let why = ended.err().map(Arc::new);
        let class = why.as_ref().map_or(Class::Unavailable, |e| match e.class {
            Class::Unknown => Class::Unavailable,
            class => class,
        });
        let timeout = self.options().timeout;
        let unsent = || Err(Error::gave_up(class, timeout, why.clone()));
        results.into_iter().map(|result| result.unwrap_or_else(unsent)).collect()
    }

    /// Carries out writes as they come from an iterator, which is asked for the next one only when
    /// there is room for it. `answered` gets each one's position and outcome, in any order; after
    /// it breaks no further writes are taken, and those in flight are still answered. A write that
    /// the caller has stamped keeps that stamp and is answered with whatever the cluster says.
    ///
    /// # Errors
    /// When no write was answered for [`super::Options::timeout`], or the cluster does not take
    /// this client. Every write that was taken has been answered then, with `Unknown` or as surely
    /// not applied; the rest were not taken.
    pub fn write_stream(
        &mut self,
        writes: impl IntoIterator<Item = Write>,
        mut answered: impl FnMut(usize, Result<Outcome, Error>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let timeout = self.options().timeout;
        let first = self.next_number + 1;
        let mut source = writes.into_iter();
        let mut stopped = false;
        loop {
            while !stopped && self.core.has_room() {
                let Some(write) = source.next() else {
                    stopped = true;
                    break;
                };
                let number = self.number();
                self.tell(Event::Begin { number, call: Call::Write(write), timeout });
            }
            self.act(&mut |number, result| {
                let index = usize::try_from(number - first).unwrap_or(usize::MAX);
                let result = result.and_then(|answer| match answer {
                    Answer::Outcome(outcome) => Ok(outcome),
                    _ => {
                        let cause = Cause::Unexpected("to a write");
                        Err(Error { class: Class::Unknown, address: None, cause })
                    }
                });
                stopped |= answered(index, result).is_break();
            })?;
            if !self.core.is_idle() {
                self.wait();
            } else if stopped {
                return Ok(());
            }
        }
    }
}
