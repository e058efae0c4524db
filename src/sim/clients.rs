//! Simulated clients: what they ask, what they are told, and the history they leave.
//!
//! Each runs the client library's [`Core`], which decides whom to ask and what to send again; here are
//! its calls. A client has one call open at a time, or several. The history shows each call once,
//! from its beginning to its end; `traffic` carries what is sent.

use super::checks::{Violation, violated};
use super::dice::Dice;
use super::ledger::Ledger;
use super::linearizability::{Answer as Told, Call, End, Op, Seen};
use super::node::{CLIENTS_TOKEN, ClientId, VALUE_LIMITS_BYTES};
use super::vocabulary::{self, Memory};
use crate::client::{Channel, Core, Error, Event, Options};
use crate::kv::codec::encode_command;
use crate::kv::{self, Command, Condition, Found, OpResult, Outcome, Query, Reply, Test};
use crate::node::Request;
use crate::raft::{Index, NodeId};
use crate::wire::client::Call as Asked;
use crate::wire::client::{Answer, Class, Consistency};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a client's calls may take, in milliseconds.
const TIMEOUTS_MS: [u64; 3] = [3_000, 5_000, 8_000];

/// Most calls that a client begins together.
const TOGETHER_MAX: u64 = 6;

/// A connection of a client to a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientConnection {
    /// Its number.
    pub(super) number: ClientId,
    /// The node.
    pub(super) node: NodeId,
    /// Its life.
    pub(super) life: u64,
    /// The process is gone.
    pub(super) gone: bool,
    /// What is sent does not arrive.
    pub(super) mute: bool,
    /// What is answered does not arrive.
    pub(super) deaf: bool,
    /// When what was sent last arrives there.
    pub(super) due_us: u64,
}

/// A call that is not answered yet.
#[derive(Debug)]
struct Open {
    /// What was asked.
    asked: Asked,
    /// What was committed when it began.
    from: Index,
    /// As the history has it, if it is about one key of all clients.
    call: Option<Call>,
}

/// A client.
#[derive(Debug)]
pub(super) struct SimClient {
    /// Its id.
    pub(super) id: u64,
    /// What decides.
    pub(super) core: Core,
    /// Only the events of its present turn make it act.
    pub(super) turn: u64,
    /// When its core is told the time.
    pub(super) wakes_at_us: Option<u64>,
    /// The number of the connection that it dials.
    pub(super) dial: Option<ClientId>,
    /// That connection, once a node has accepted it.
    pub(super) dialed: Option<ClientConnection>,
    /// Its connection.
    pub(super) connection: Option<ClientConnection>,
    /// Its bytes.
    pub(super) channel: Channel,
    /// When one of its reads was last answered.
    pub(super) served_us: Option<u64>,
    timeout: Duration,
    dice: Dice,
    keys: u64,
    open: BTreeMap<u64, Open>,
    memory: Memory,
    last_number: u64,
    values: u64,
    last_revision: Option<u64>,
    /// Addresses that were known at the first attempt since a call was last answered and had none yet,
    /// and the patience of that time.
    untried: Option<(BTreeSet<String>, Duration)>,
    /// What it was connected to then.
    from: Option<String>,
    /// Calls that are over.
    pub(super) history: Vec<Call>,
}

impl SimClient {
    /// A client that uses so many keys and knows these addresses.
    pub(super) fn new(id: u64, keys: u64, addresses: &[String], mut dice: Dice) -> SimClient {
        let timeout = Duration::from_millis(*dice.pick(&TIMEOUTS_MS));
        let options = Options { timeout, sessions: dice.chance(2, 3), ..Options::default() };
        SimClient {
            id,
            core: Core::new(addresses, options, dice.roll()),
            turn: 0,
            wakes_at_us: None,
            dial: None,
            dialed: None,
            connection: None,
            channel: Channel::new(0, CLIENTS_TOKEN, [0; 32]),
            served_us: None,
            timeout,
            keys,
            dice,
            open: BTreeMap::new(),
            memory: Memory::default(),
            last_number: 0,
            values: 0,
            last_revision: None,
            untried: None,
            from: None,
            history: Vec::new(),
        }
    }

    /// Whether a call is open.
    pub(super) fn is_busy(&self) -> bool {
        !self.core.is_idle()
    }

    /// What it begins next; with `read` a read.
    /// `from` is what is committed.
    pub(super) fn begin(&mut self, now_us: u64, from: Index, read: bool) -> Vec<Event> {
        self.forget_attempts();
        let together = if read || self.dice.chance(1, 2) { 1 } else { TOGETHER_MAX };
        let count = self.dice.between(1, together);
        let mut events = Vec::new();
        for _ in 0..count {
            let (asked, call) = if self.dice.chance(1, 3) && !read {
                let asked = match self.dice.chance(1, 2) {
                    true => vocabulary::page(&mut self.dice, &mut self.memory),
                    false => vocabulary::write(&mut self.dice, &self.memory),
                };
                (asked, None)
            } else {
                let call = self.choose(now_us, read);
                (asked(&call), Some(call))
            };
            events.push(self.begin_one(Open { asked, from, call }));
        }
        events
    }

    fn begin_one(&mut self, open: Open) -> Event {
        self.last_number += 1;
        let number = self.last_number;
        let event = Event::Begin { number, call: open.asked.clone(), timeout: self.timeout };
        self.open.insert(number, open);
        event
    }

    fn choose(&mut self, now_us: u64, read: bool) -> Call {
        let number = self.dice.below(self.keys);
        let (key, op) = if read {
            (format!("key-{number}").into_bytes(), Op::Get)
        } else {
            self.operation(number)
        };
        Call { client: self.id, key, op, called: now_us, end: End::Open }
    }

    fn operation(&mut self, number: u64) -> (Vec<u8>, Op) {
        let register = format!("key-{number}").into_bytes();
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

    /// A call is over.
    pub(super) fn done(
        &mut self,
        now_us: u64,
        number: u64,
        result: Result<Answer, Error>,
        ledger: &Ledger,
    ) -> Result<(), Violation> {
        self.forget_attempts();
        let Some(Open { asked, from, call }) = self.open.remove(&number) else {
            return violated("every call is answered once", format!("{number}: {result:?}"));
        };
        if let Ok(answer) = &result {
            ledger.check(&asked, from, answer)?;
            self.remember(&asked, answer);
        }
        let Some(mut call) = call else { return Ok(()) };
        let told = match result {
            Ok(Answer::Outcome(outcome)) => self.outcome(outcome),
            Ok(Answer::Reply(Reply::Value(found))) => {
                self.served_us = Some(now_us);
                Some(Told::Found(found.map(|found| self.seen(found))))
            }
            Ok(_) => None,
            Err(error) => {
                call.end = match error.class {
                    Class::Unknown => End::Open,
                    _ => End::Refused,
                };
                None
            }
        };
        if let Some(answer) = told {
            call.end = End::Answered { at: now_us, answer };
            // Writes of one key take effect in the order given: the next one begins now.
            let write = call.op != Op::Get;
            let same = |later: &&mut Call| write && later.op != Op::Get && later.key == call.key;
            let open = self.open.values_mut().filter_map(|open| open.call.as_mut());
            open.filter(same).for_each(|later| later.called = now_us);
        }
        self.history.push(call);
        Ok(())
    }

    fn remember(&mut self, asked: &Asked, answer: &Answer) {
        match (asked, answer) {
            (_, Answer::Outcome(Outcome::Done { revision, .. })) => self.memory.revision(*revision),
            (Asked::Query { query: Query::Range(range), .. }, Answer::Reply(Reply::Page(page))) => {
                self.memory.page(range, page);
            }
            _ => {}
        }
    }

    fn seen(&mut self, found: Found) -> Seen {
        self.last_revision = Some(found.revision);
        Seen { value: found.value, revision: Some(found.revision) }
    }

    fn outcome(&mut self, outcome: Outcome) -> Option<Told> {
        match outcome {
            Outcome::Done { revision, results } => {
                self.last_revision = Some(revision);
                let revision = Some(revision);
                Some(match results.first() {
                    Some(OpResult::Deleted { existed }) => {
                        Told::Deleted { existed: Some(*existed), revision }
                    }
                    Some(OpResult::Number { value }) => Told::Number { value: *value, revision },
                    _ => Told::Written { revision },
                })
            }
            Outcome::ConditionFalse { found, .. } => Some(Told::Mismatch { found: Some(found) }),
            _ => None,
        }
    }

    /// The rest is open at the end of the run.
    pub(super) fn abandon(&mut self) {
        let open = std::mem::take(&mut self.open).into_values();
        self.history.extend(open.filter_map(|open| open.call));
    }

    // ---- how it divides its time ----

    fn forget_attempts(&mut self) {
        self.untried = None;
        self.from = self.core.address().map(str::to_owned);
    }

    /// An address that its core has forgotten, or that has refused its token, is not asked, though it may
    /// be named again later.
    pub(super) fn follow_addresses(&mut self) {
        if let Some((untried, _)) = &mut self.untried
            && !untried.is_empty()
        {
            let open = self.core.open_addresses();
            untried.retain(|a| open.contains(a));
        }
    }

    /// It dials. A node that is gone may use up no more than its share: no attempt gets more time
    /// before every address had one.
    pub(super) fn dials(&mut self, address: &str) -> Result<(), Violation> {
        let patience = self.core.patience();
        let open = || self.core.open_addresses().into_iter().collect();
        let (untried, first) = self.untried.get_or_insert_with(|| (open(), patience));
        let from = self.from.as_ref();
        untried.retain(|a| a != address && from != Some(a));
        if !untried.is_empty() && patience > *first {
            let detail = format!("client {}: {patience:?} for {address}, {untried:?}", self.id);
            return violated("every address gets its share of a call's time", detail);
        }
        Ok(())
    }
}

/// Keys that no client uses.
const FILLERS: u64 = 300;
/// Most operations of one write of a sweep.
const SWEEP_OPS: usize = 16;

/// A write that no client waits for, to a key that no client uses: over enough keys to give the
/// store several levels, and tombstones in all of them.
pub(super) fn filler(dice: &mut Dice) -> Request {
    let key = filler_key(dice.below(FILLERS));
    let ops = if dice.chance(1, 5) {
        vec![kv::Op::Delete { key }]
    } else {
        // Each value is there once.
        let mut value = format!("{:016x}", dice.roll()).into_bytes();
        value.resize(16 + dice.below(400) as usize, b'x');
        vec![kv::Op::Put { key, value }]
    };
    write_of(&Command::Write(kv::Write { stamp: None, conditions: Vec::new(), ops }))
}

fn filler_key(number: u64) -> Vec<u8> {
    format!("filler-{:03}", number % FILLERS).into_bytes()
}

/// Deletes neighbours of these keys, some with one write.
pub(super) fn sweep(from: u64, keys: u64) -> Vec<Request> {
    let numbers: Vec<u64> = (0..keys.min(FILLERS)).map(|i| from % FILLERS + i).collect();
    let delete = |numbers: &[u64]| {
        let ops = numbers.iter().map(|&n| kv::Op::Delete { key: filler_key(n) }).collect();
        write_of(&Command::Write(kv::Write { stamp: None, conditions: Vec::new(), ops }))
    };
    numbers.chunks(SWEEP_OPS).map(delete).collect()
}

pub(super) fn write_of(command: &Command) -> Request {
    let mut bytes = Vec::new();
    encode_command(command, &mut bytes);
    Request::Write(Arc::from(bytes))
}

fn asked(call: &Call) -> Asked {
    let key = call.key.clone();
    let mut conditions = Vec::new();
    let op = match &call.op {
        Op::Get => {
            let query = Query::Get { key };
            return Asked::Query { query, consistency: Consistency::Linearizable };
        }
        Op::Put { value } => kv::Op::Put { key, value: value.clone() },
        Op::Delete => kv::Op::Delete { key },
        Op::Increment { by } => kv::Op::Increment { key, by: *by },
        Op::Cas { test, value } => {
            conditions.push(Condition { key: key.clone(), test: *test });
            kv::Op::Put { key, value: value.clone() }
        }
    };
    Asked::Write(kv::Write { stamp: None, conditions, ops: vec![op] })
}
