//! Simulated clients: what they ask, what they are told, and the history they leave.
//!
//! A client has one call open at a time. Writes of a client with a session carry a stamp and are
//! sent again, to any node, while their outcome is unknown; the history shows such a call once,
//! from its first sending to its last answer.

use super::dice::Dice;
use super::linearizability::{Answer as Told, Call, End, Op, Seen};
use super::node::{ClientId, VALUE_LIMITS_BYTES};
use crate::kv::codec::encode_command;
use crate::kv::{self, Command, Condition, OpResult, Outcome, SessionStamp, Test};
use crate::node::{Answer, Refusal, Request, Verdict};
use crate::raft::Index;
use std::sync::Arc;

/// What a client does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Send this to a node of its choice.
    Send(Request),
    /// Read the key from the store of the node that answered.
    ReadNow(Vec<u8>),
    /// The call is over.
    Over,
}

#[derive(Clone, Debug)]
enum Doing {
    OpenSession,
    Call { call: Call, command: Option<Arc<[u8]>>, stamped: bool, doubtful: bool, tries: u32 },
}

/// A client.
#[derive(Debug)]
pub(super) struct SimClient {
    /// Its id.
    pub(super) id: ClientId,
    /// Number of its request under way.
    pub(super) request: u64,
    /// What was committed when its request was sent: a read must see that.
    pub(super) committed: Index,
    /// Only the events of its present turn make it act.
    pub(super) turn: u64,
    dice: Dice,
    keys: u64,
    sessions: bool,
    session: Option<u64>,
    sequence: u64,
    doing: Option<Doing>,
    values: u64,
    last_revision: Option<u64>,
    /// Calls that are over.
    pub(super) history: Vec<Call>,
}

/// Times one call is sent.
const TRIES_MAX: u32 = 12;

impl SimClient {
    /// A client that uses so many keys.
    pub(super) fn new(id: ClientId, keys: u64, mut dice: Dice) -> SimClient {
        SimClient {
            id,
            request: 0,
            committed: 0,
            turn: 0,
            keys,
            sessions: dice.chance(1, 2),
            dice,
            session: None,
            sequence: 0,
            doing: None,
            values: 0,
            last_revision: None,
            history: Vec::new(),
        }
    }

    /// Whether a call is open.
    pub(super) fn is_busy(&self) -> bool {
        self.doing.is_some()
    }

    /// Begins a call; with `read` a read.
    pub(super) fn begin(&mut self, now_us: u64, read: bool) -> Request {
        if self.sessions && self.session.is_none() && !read {
            self.doing = Some(Doing::OpenSession);
            return write_of(&Command::OpenSession);
        }
        let number = self.dice.below(self.keys);
        let (key, op) = self.choose(number, read);
        let call = Call { client: self.id, key, op, called: now_us, end: End::Open };
        let stamp = self.session.filter(|_| call.op != Op::Get).map(|session| {
            self.sequence += 1;
            let sequence = self.sequence;
            SessionStamp { session, sequence, answered_below: sequence }
        });
        let command = command_of(&call, stamp);
        let request = match &command {
            Some(bytes) => Request::Write(Arc::clone(bytes)),
            None => Request::Read,
        };
        let stamped = stamp.is_some();
        self.doing = Some(Doing::Call { call, command, stamped, doubtful: false, tries: 1 });
        request
    }

    fn choose(&mut self, number: u64, read: bool) -> (Vec<u8>, Op) {
        let register = format!("key-{number}").into_bytes();
        if read {
            return (register, Op::Get);
        }
        self.values += 1;
        // Some values are longer than a sector, so that batches tear within an entry. A few are about
        // as long as the flags of one node or another allow.
        let pad = match self.dice.below(64) {
            0 => *self.dice.pick(&VALUE_LIMITS_BYTES) + 1,
            1..9 => 500,
            _ => 0,
        };
        let mut value = format!("{}-{}", self.id, self.values);
        let pad = pad.saturating_sub(value.len() + self.dice.below(2) as usize);
        value.push_str(&"x".repeat(pad));
        let value = value.into_bytes();
        match self.dice.below(16) {
            0..6 => (register, Op::Get),
            6..11 => (register, Op::Put { value }),
            11 => (register, Op::Delete),
            12..14 => {
                let test = match (self.dice.below(3), self.last_revision) {
                    (0, Some(revision)) => Test::Revision(revision),
                    (1, _) => Test::Absent,
                    _ => Test::Present,
                };
                (register, Op::Cas { test, value })
            }
            _ => (format!("sum-{number}").into_bytes(), Op::Increment { by: 1 }),
        }
    }

    /// An answer to its request.
    pub(super) fn answered(&mut self, now_us: u64, answer: Answer) -> Next {
        match answer {
            Answer::Write(Verdict::Applied(outcome)) => self.applied(now_us, outcome),
            // Not to be sent again, as it is.
            Answer::Write(Verdict::NotApplied(Refusal::TooLarge { .. })) => {
                if let Some(Doing::Call { tries, .. }) = &mut self.doing {
                    *tries = TRIES_MAX;
                }
                self.failed(false)
            }
            Answer::Write(Verdict::NotApplied(_)) => self.failed(false),
            Answer::Write(Verdict::Unknown(_)) => self.failed(true),
            Answer::Read(Ok(())) => match &self.doing {
                Some(Doing::Call { call, .. }) => Next::ReadNow(call.key.clone()),
                _ => Next::Over,
            },
            Answer::Read(Err(_)) => self.failed(false),
            Answer::Status(_) | Answer::Transfer(_) | Answer::Changed(_) | Answer::Flushed(_) => {
                Next::Over
            }
        }
    }

    /// What it read.
    pub(super) fn read(&mut self, now_us: u64, found: Option<kv::Found>) {
        let found = found.map(|f| {
            self.last_revision = Some(f.revision);
            Seen { value: f.value, revision: Some(f.revision) }
        });
        self.end(End::Answered { at: now_us, answer: Told::Found(found) });
    }

    /// The node that had its request is gone, or has not answered for too long.
    pub(super) fn lost(&mut self) -> Next {
        self.failed(true)
    }

    fn end(&mut self, end: End) {
        if let Some(Doing::Call { mut call, .. }) = self.doing.take() {
            call.end = end;
            self.history.push(call);
        }
    }

    /// Gives up, at the end of the run.
    pub(super) fn abandon(&mut self) {
        self.end(End::Open);
        self.doing = None;
    }

    fn failed(&mut self, doubt: bool) -> Next {
        let Some(Doing::Call { command, stamped, doubtful, tries, .. }) = &mut self.doing else {
            self.doing = None;
            return Next::Over;
        };
        *doubtful |= doubt;
        let again = *tries < TRIES_MAX && (*stamped || !*doubtful || command.is_none());
        if again {
            *tries += 1;
            return Next::Send(match command {
                Some(bytes) => Request::Write(Arc::clone(bytes)),
                None => Request::Read,
            });
        }
        let end = if *doubtful { End::Open } else { End::Refused };
        self.end(end);
        Next::Over
    }

    fn applied(&mut self, now_us: u64, outcome: Outcome) -> Next {
        let doubtful = matches!(self.doing, Some(Doing::Call { doubtful: true, .. }));
        let answer = match outcome {
            Outcome::SessionOpened { session } => {
                self.session = Some(session);
                self.sequence = 0;
                self.doing = None;
                return Next::Over;
            }
            Outcome::Done { revision, results } => {
                self.last_revision = Some(revision);
                let revision = Some(revision);
                match results.first() {
                    Some(OpResult::Deleted { existed }) => {
                        Told::Deleted { existed: Some(*existed), revision }
                    }
                    Some(OpResult::Number { value }) => Told::Number { value: *value, revision },
                    _ => Told::Written { revision },
                }
            }
            Outcome::ConditionFalse { found, .. } => Told::Mismatch { found: Some(found) },
            // Nothing was done by this copy; an earlier one may have been.
            Outcome::SessionUnknown | Outcome::SequenceForgotten => {
                self.session = None;
                self.end(if doubtful { End::Open } else { End::Refused });
                return Next::Over;
            }
            _ => {
                self.end(End::Refused);
                return Next::Over;
            }
        };
        self.end(End::Answered { at: now_us, answer });
        Next::Over
    }
}

/// A write that no client waits for, to a key that no client uses: over enough keys to give the
/// store several levels, and tombstones in all of them.
pub(super) fn filler(dice: &mut Dice) -> Request {
    let key = format!("filler-{}", dice.below(300)).into_bytes();
    let ops = if dice.chance(1, 5) {
        vec![kv::Op::Delete { key }]
    } else {
        vec![kv::Op::Put { key, value: vec![b'x'; dice.below(400) as usize] }]
    };
    write_of(&Command::Write(kv::Write { stamp: None, conditions: Vec::new(), ops }))
}

fn write_of(command: &Command) -> Request {
    let mut bytes = Vec::new();
    encode_command(command, &mut bytes);
    Request::Write(Arc::from(bytes))
}

fn command_of(call: &Call, stamp: Option<SessionStamp>) -> Option<Arc<[u8]>> {
    let key = call.key.clone();
    let mut conditions = Vec::new();
    let op = match &call.op {
        Op::Get => return None,
        Op::Put { value } => kv::Op::Put { key, value: value.clone() },
        Op::Delete => kv::Op::Delete { key },
        Op::Increment { by } => kv::Op::Increment { key, by: *by },
        Op::Cas { test, value } => {
            conditions.push(Condition { key: key.clone(), test: *test });
            kv::Op::Put { key, value: value.clone() }
        }
    };
    let write = kv::Write { stamp, conditions, ops: vec![op] };
    match write_of(&Command::Write(write)) {
        Request::Write(bytes) => Some(bytes),
        _ => None,
    }
}
