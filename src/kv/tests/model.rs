//! A second state machine, as plain as can be, to compare the real one with.
//!
//! It keeps owned values in a flat list, copies everything before each write and throws the copy
//! away when the write is done; its sessions are a list in order of use. It knows no batches.

use crate::kv::sessions::SessionBounds;
use crate::kv::*;

#[derive(Clone, Debug)]
struct ModelSession {
    id: u64,
    named: u64,
    held: bool,
    below: u64,
    results: Vec<(u64, Outcome)>,
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    index: u64,
    /// Key, value, revision; in no order.
    rows: Vec<(Vec<u8>, Vec<u8>, u64)>,
    /// The one first that was not named for the longest time.
    sessions: Vec<ModelSession>,
    bounds: SessionBounds,
}

impl Model {
    pub(super) fn new(bounds: SessionBounds) -> Model {
        Model { index: 0, rows: Vec::new(), sessions: Vec::new(), bounds }
    }

    /// The rows in order.
    pub(super) fn rows(&self) -> Vec<Item> {
        let mut rows = self.rows.clone();
        rows.sort();
        rows.into_iter().map(|(key, value, revision)| Item { key, value, revision }).collect()
    }

    pub(super) fn apply(&mut self, command: &Command) -> Outcome {
        self.index += 1;
        match command {
            Command::OpenSession => {
                if self.sessions.len() == self.bounds.sessions {
                    let (index, bounds) = (self.index, self.bounds);
                    let position = |held, entries| {
                        let goes = |s: &ModelSession| s.held == held && index - s.named > entries;
                        self.sessions.iter().position(goes)
                    };
                    let released = position(false, bounds.released_entries);
                    let Some(at) = released.or_else(|| position(true, bounds.held_entries)) else {
                        return Outcome::SessionsFull;
                    };
                    self.sessions.remove(at);
                }
                let (id, results) = (self.index, Vec::new());
                self.sessions.push(ModelSession { id, named: id, held: true, below: 1, results });
                Outcome::SessionOpened { session: self.index }
            }
            Command::ReleaseSession { session, sequence } => {
                let gone_on = |s: &ModelSession| {
                    let last = s.results.iter().map(|(sequence, _)| *sequence).max();
                    last.unwrap_or(0).max(s.below.saturating_sub(1)) > *sequence
                };
                let at = self.sessions.iter().position(|s| s.id == *session && !gone_on(s));
                if let Some(at) = at {
                    let session = self.sessions.remove(at);
                    self.sessions.push(ModelSession { held: false, named: self.index, ..session });
                }
                Outcome::SessionReleased
            }
            Command::CloseSession { session } => {
                self.sessions.retain(|s| s.id != *session);
                Outcome::SessionClosed
            }
            Command::Write(write) => match &write.stamp {
                None => self.write(write),
                Some(stamp) => self.stamped(write, *stamp),
            },
        }
    }

    fn stamped(&mut self, write: &Write, stamp: SessionStamp) -> Outcome {
        let Some(at) = self.sessions.iter().position(|s| s.id == stamp.session) else {
            return Outcome::SessionUnknown;
        };
        let mut session = self.sessions.remove(at);
        (session.held, session.named) = (true, self.index);
        session.below = session.below.max(stamp.answered_below);
        let below = session.below;
        session.results.retain(|(sequence, _)| *sequence >= below);
        let outcome = if stamp.sequence < session.below {
            Outcome::SequenceForgotten
        } else if let Some((_, outcome)) =
            session.results.iter().find(|(sequence, _)| *sequence == stamp.sequence)
        {
            outcome.clone()
        } else {
            let outcome = self.write(write);
            session.results.push((stamp.sequence, outcome.clone()));
            session.results.sort_by_key(|(sequence, _)| *sequence);
            if session.results.len() > self.bounds.results {
                session.below = session.results.remove(0).0 + 1;
            }
            outcome
        };
        self.sessions.push(session);
        outcome
    }

    fn find(&self, key: &[u8]) -> Option<Found> {
        self.rows
            .iter()
            .find(|(k, _, _)| k == key)
            .map(|(_, value, revision)| Found { value: value.clone(), revision: *revision })
    }

    fn write(&mut self, write: &Write) -> Outcome {
        for (at, Condition { key, test }) in write.conditions.iter().enumerate() {
            let found = self.find(key).map(|f| f.revision);
            let holds = match (test, found) {
                (Test::Absent, None) | (Test::Present, Some(_)) => true,
                (Test::Revision(wanted), Some(revision)) => *wanted == revision,
                _ => false,
            };
            if !holds {
                return Outcome::ConditionFalse { condition: at as u32, found };
            }
        }
        let mut copy = self.clone();
        let mut results = Vec::new();
        for (at, op) in write.ops.iter().enumerate() {
            let found = copy.find(op.key());
            let new = match op {
                Op::Get { .. } => {
                    results.push(OpResult::Got { found });
                    continue;
                }
                Op::Put { value, .. } => {
                    results.push(OpResult::Put);
                    Some(value.clone())
                }
                Op::Delete { .. } => {
                    results.push(OpResult::Deleted { existed: found.is_some() });
                    None
                }
                Op::Increment { by, .. } => {
                    let text = found.map_or(b"0".to_vec(), |f| f.value);
                    let text = String::from_utf8_lossy(&text).into_owned();
                    // A number is what prints as it was written.
                    let Some(old) = text.parse::<i64>().ok().filter(|n| n.to_string() == text)
                    else {
                        return Outcome::NotANumber { op: at as u32 };
                    };
                    let sum = i128::from(old) + i128::from(*by);
                    let Ok(value) = i64::try_from(sum) else {
                        return Outcome::Overflow { op: at as u32 };
                    };
                    results.push(OpResult::Number { value });
                    Some(sum.to_string().into_bytes())
                }
            };
            copy.rows.retain(|(key, _, _)| key != op.key());
            copy.rows.extend(new.map(|value| (op.key().to_vec(), value, self.index)));
        }
        *self = copy;
        Outcome::Done { revision: self.index, results }
    }
}
