//! What answers mean, and what a connection that is lost leaves behind: which calls are over, which go
//! on, and where.

use super::calls::Repeat;
use super::{ANSWERS, Core, Open, Session, took_long};
use crate::client::error::{Cause, Error};
use crate::kv::Outcome;
use crate::wire::client::{Answer, Call, Class, Failure, NO_REQUEST, Response};
use std::sync::Arc;
use std::time::Duration;

impl Core {
    pub(super) fn answered(&mut self, response: Response, now_us: u64) {
        let Response { id, result } = response;
        match self.open.remove(&id) {
            None => {
                let cause = match result {
                    Err(failure) if id == NO_REQUEST => Cause::Refused(failure.message),
                    _ => Cause::Unexpected("an id that nobody asked"),
                };
                self.lost(cause, u64::MAX, false, now_us);
            }
            Some(Open::Members) => {
                if let Ok(answer) = &result {
                    self.learn(answer);
                }
            }
            Some(Open::Session { sent_us }) => match result {
                Ok(Answer::Outcome(Outcome::SessionOpened { session })) => {
                    self.session = Some(Session { id: session, next_sequence: 1 });
                    // Who else there is should be known before anything is in doubt.
                    self.members_due_us = Some(now_us);
                }
                Ok(_) => {
                    let cause = Cause::Unexpected("to opening a session");
                    self.lost(cause, u64::MAX, false, now_us);
                }
                Err(failure) => match failure.class {
                    Class::Busy | Class::Unavailable | Class::Unknown => {
                        self.refused(failure, sent_us, now_us);
                    }
                    _ => {
                        self.last = Some(Arc::new(self.error_of(failure)));
                        self.give_up(true);
                    }
                },
            },
            Some(Open::Call(ticket)) => self.call_answered(id, ticket, result, now_us),
        }
    }

    fn learn(&mut self, answer: &Answer) {
        if let Answer::Members(members) = answer {
            self.directory.members(members.members.iter().map(|m| m.address.clone()));
        }
    }

    fn error_of(&self, failure: Failure) -> Error {
        self.error(failure.class, Cause::Refused(failure.message))
    }

    fn error(&self, class: Class, cause: Cause) -> Error {
        Error { class, address: self.here.clone(), cause }
    }

    fn call_answered(
        &mut self,
        id: u64,
        ticket: u64,
        result: Result<Answer, Failure>,
        now_us: u64,
    ) {
        let Some(pending) = self.calls.pending.get_mut(&ticket) else { return };
        pending.open = None;
        let (ours, repeat, sent_us) = (pending.ours, pending.repeat, pending.sent_us);
        let (doubt, stamp) = (pending.doubt, pending.stamp());
        let is_write = matches!(pending.request.call, Call::Write(_));
        let failure = match result {
            Ok(Answer::Outcome(Outcome::SessionUnknown | Outcome::SequenceForgotten)) if ours => {
                if self.session.as_ref().map(|s| s.id) == stamp.map(|s| s.session) {
                    self.session = None;
                }
                if doubt {
                    let error = self.error(Class::Unknown, Cause::SessionLost);
                    self.finish(ticket, Err(error), now_us);
                } else {
                    let error = self.error(Class::Unavailable, Cause::SessionLost);
                    self.last = Some(Arc::new(error));
                    self.calls.renew(ticket);
                }
                return;
            }
            Ok(answer) if is_write && !matches!(answer, Answer::Outcome(_)) => {
                // Put back, so that it is counted among what is in doubt.
                pending.open = Some(id);
                self.open.insert(id, Open::Call(ticket));
                return self.lost(Cause::Unexpected("to a write"), u64::MAX, false, now_us);
            }
            Ok(answer) => {
                let took_us = now_us.saturating_sub(sent_us);
                self.learned_us =
                    (took_us * ANSWERS).min(self.patience_us).max(self.first_patience_us());
                self.learn(&answer);
                return self.finish(ticket, Ok(answer), now_us);
            }
            Err(failure) => failure,
        };
        let again = match failure.class {
            _ if repeat == Repeat::Here => false,
            Class::Busy | Class::Unavailable => true,
            Class::Unknown => {
                pending.doubt |= pending.may_be_in_doubt();
                repeat.is_safe()
            }
            Class::TooLarge
            | Class::Invalid
            | Class::Unauthorised
            | Class::DiskFull
            | Class::Damaged => false,
        };
        if again {
            return self.refused(failure, sent_us, now_us);
        }
        let mut error = self.error_of(failure);
        if doubt && error.class != Class::Unknown {
            let address = error.address.clone();
            error =
                Error { class: Class::Unknown, address, cause: Cause::Uncertain(Box::new(error)) };
        }
        self.finish(ticket, Err(error), now_us);
    }

    /// A node did not carry out a request, or does not know whether it has; the request goes on.
    fn refused(&mut self, failure: Failure, sent_us: u64, now_us: u64) {
        let late = took_long(now_us.saturating_sub(sent_us), self.patience_us);
        if failure.class == Class::Unavailable {
            let named = failure.leader.as_ref().map(|(_, address)| address.clone());
            // One that names itself cannot serve all the same; another one may pass the call on.
            let named = named.filter(|address| {
                self.here.as_ref() != Some(address) && self.directory.may_follow(address, now_us)
            });
            let known = self.elsewhere.take().flatten();
            self.elsewhere = Some(named.or(known));
        }
        if failure.class == Class::Unavailable || late {
            self.tried_here(late);
        }
        self.last = Some(Arc::new(self.error_of(failure)));
        self.wait(now_us);
    }

    /// The connection is of no more use: every copy that was handed to it is in doubt.
    pub(super) fn lost(&mut self, cause: Cause, unsent_from: u64, late: bool, now_us: u64) {
        let error = Arc::new(self.error(Class::Unknown, cause));
        let Some(here) = self.here.clone() else { return };
        self.directory.is_silent(&here, now_us);
        self.directory.go_on_behind(&here);
        self.tried_here(late);
        let open = std::mem::take(&mut self.open);
        self.disconnect();
        for (id, open) in open {
            let Open::Call(ticket) = open else { continue };
            let Some(pending) = self.calls.pending.get_mut(&ticket) else { continue };
            pending.open = None;
            pending.doubt |= id < unsent_from && pending.may_be_in_doubt();
            if pending.doubt && pending.repeat == Repeat::Never {
                let after = Duration::from_micros(now_us - self.heard_us);
                let cause = Cause::GaveUp { after, last: Some(Arc::clone(&error)) };
                let address = Some(here.clone());
                self.finish(ticket, Err(Error { class: Class::Unknown, address, cause }), now_us);
            }
        }
        self.last = Some(error);
        self.wait(now_us);
    }
}
