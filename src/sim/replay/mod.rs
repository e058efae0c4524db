//! Replays recordings of real processes (`kontiki serve --record`): what threads, disks and sockets did was
//! something that the simulator allows.
//!
//! A recording holds what the components of one process got, and checksums of what they did (`node/recording`).
//! Here the same components are built, get the same, and must do the same (`life`). What they do goes through the
//! checks of the simulator ([`super::checks`]), which see the whole cluster: so recordings of several nodes are
//! replayed together, in an order in which nothing arrives before it was sent. No clock tells that order; the messages do: a
//! node waits here until the sender of its next message has come to it.
//!
//! A process that is killed takes with it what its recorder had not written yet. Messages of that time have
//! arrived nevertheless. When nobody can go on, the earliest message is let through whose sender has ended; it must
//! have arrived when that sender's recording ended, or later.
//!
//! Where recordings of some members are missing, what the others conclude from them is taken as it is.

mod life;
mod log;
mod state;
#[cfg(test)]
mod tests;

use super::checks::{Cluster, Platter, Violation};
use super::node::platter_of;
use crate::node::Input;
use crate::node::recording::{
    EndReason, Ending, Record, RecordReader, RecordingError, Start, take_body,
};
use crate::raft::{Body, Entry, Index, Message, NodeId, Term};
use life::Life;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::PathBuf;

/// A message may arrive so long before its sender's recording ends, by the clocks of the two machines, and yet be one that
/// is in no record: so far apart are clocks that are set by hand.
const CLOCKS_APART_US: u64 = 5_000_000;
/// A message arrives at most so long after the end of the process that sent it: what the system has in its buffers by then may trickle
/// in over a slow line, or wait for a thread that stands still.
const LATE_US: u64 = 60_000_000;
/// A message was let through although no record says that it was sent.
const UNSENT: &str = "messages of which only the arrival is recorded";
/// A node was let through that knew something to be committed of which no recording tells.
const UNCOMMITTED: &str = "commits of which no recording tells";

/// Records that one node goes on before the next one has its turn: bounds what messages wait in memory.
const TURN: usize = 256;

/// A file.
#[derive(Clone, Debug)]
pub struct File {
    /// Where it was, for messages.
    pub path: PathBuf,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// What was replayed.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// How often each thing happened.
    pub counters: BTreeMap<&'static str, u64>,
    /// What a person should know, a line each: how each file ends, and what could not be replayed.
    pub notes: Vec<String>,
}

/// A replay that did not come to its end.
#[derive(Debug)]
pub enum ReplayError {
    /// A file cannot be read as a recording.
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: RecordingError,
    },
    /// The files do not belong together.
    Files(String),
    /// Something was done that the components do not do, or that breaks an invariant.
    Failed(Box<Failure>),
    /// Behind all records: what a majority must have shown by then.
    Unproved(Violation),
}

/// Where a replay parts from its recording, or breaks an invariant.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The recording.
    pub path: PathBuf,
    /// The record, from 0.
    pub record: u64,
    /// The time that the components were told last.
    pub now_us: u64,
    /// The record in words.
    pub event: String,
    /// What is broken.
    pub violation: Violation,
}

impl ReplayError {
    /// The invariant that is broken, or what is not as the components do it; none when the files cannot be replayed.
    pub fn invariant(&self) -> Option<&'static str> {
        match self {
            ReplayError::Failed(failure) => Some(failure.violation.invariant),
            ReplayError::Unproved(violation) => Some(violation.invariant),
            ReplayError::File { .. } | ReplayError::Files(_) => None,
        }
    }
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayError::File { path, source } => write!(f, "{}: {source}", path.display()),
            ReplayError::Files(why) => f.write_str(why),
            ReplayError::Unproved(violation) => {
                write!(f, "behind all records: {}", violation.detail)
            }
            ReplayError::Failed(failure) => write!(
                f,
                "{} record {} at {} us: {}\n{}",
                failure.path.display(),
                failure.record,
                failure.now_us,
                failure.event,
                failure.violation.detail
            ),
        }
    }
}

impl std::error::Error for ReplayError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ReplayError::File { source, .. } => Some(source),
            ReplayError::Files(_) | ReplayError::Failed(_) | ReplayError::Unproved(_) => None,
        }
    }
}

/// What all nodes share here.
#[derive(Debug, Default)]
struct Shared {
    cluster: Cluster,
    platters: BTreeMap<NodeId, Platter>,
    /// Every entry that was given to a log writer.
    entries: BTreeMap<(Index, Term), Entry>,
    /// Lives of the senders of messages that were sent and have not arrived.
    under_way: BTreeMap<MessageKey, Vec<u64>>,
    /// A message may arrive again.
    repeats: bool,
    counters: BTreeMap<&'static str, u64>,
    notes: Vec<String>,
}

/// Sender, receiver, and a hash of all but the entries.
type MessageKey = (NodeId, NodeId, u64);

impl Shared {
    fn count(&mut self, what: &'static str) {
        *self.counters.entry(what).or_default() += 1;
    }

    /// A node has come to hold something more.
    fn look(&mut self) {
        if let Some(unproved) = &mut self.cluster.unproved {
            unproved.look(&self.platters);
        }
    }

    /// The committed entries of a range, when all of them are known.
    fn committed(&self, first: Index, last: Index) -> Option<Vec<Entry>> {
        let terms = self.cluster.committed_terms();
        let entry = |index: Index| {
            let term = terms.get(index as usize - 1)?;
            self.entries.get(&(index, *term)).cloned()
        };
        (first..=last).map(entry).collect()
    }
}

/// Entries that are read from the log file are not known to the sender's core.
fn key_of(message: &Message) -> MessageKey {
    let mut bytes = Vec::new();
    match &message.body {
        Body::AppendEntries { prev_index, prev_term, commit, round, .. } => {
            let head = [message.term, *prev_index, *prev_term, *commit, *round];
            head.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        }
        _ => {
            crate::wire::peer::put_message(&mut bytes, message);
        }
    }
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    (message.from, message.to, bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// One life of a node, before its turn.
struct Coming<'a> {
    path: PathBuf,
    reader: RecordReader<'a>,
    start: Box<Start>,
    /// How often its directory was made anew: lives of another identity go on from nothing.
    identity: u64,
}

/// A node: what it does now, and its later lives.
struct Player<'a> {
    now: Option<Playing<'a>>,
    coming: VecDeque<Coming<'a>>,
    /// Its last life that was begun: number and identity.
    before: Option<(u64, u64)>,
    /// When each life's recording ended, by the system's clock of its machine.
    ended_us: BTreeMap<u64, u64>,
}

/// A life that is being replayed.
struct Playing<'a> {
    path: PathBuf,
    reader: RecordReader<'a>,
    life: Life,
    next: Record,
}

/// Why a node does not go on.
enum Waits {
    /// For a message that this sender has not sent yet.
    Message(NodeId),
    /// For somebody to commit what it has applied.
    Commit,
}

/// Replays recordings of nodes of one cluster.
///
/// # Errors
/// See [`ReplayError`].
pub fn replay(files: &[File]) -> Result<Replayed, ReplayError> {
    let mut shared = Shared::default();
    let mut players = players(files, &mut shared)?;
    let given: BTreeSet<NodeId> = players.keys().copied().collect();
    loop {
        let mut moved = false;
        for (&node, player) in &mut players {
            for _ in 0..TURN {
                if player.waits(&shared, &given).is_some()
                    || !player.step(node, &mut shared, &given)?
                {
                    break;
                }
                moved = true;
            }
        }
        if !moved && !let_through(&mut players, &mut shared, &given)? {
            break;
        }
    }
    if let Some(unproved) = &shared.cluster.unproved {
        unproved.end(&shared.platters).map_err(ReplayError::Unproved)?;
    }
    shared.counters.insert("elections", shared.cluster.elections());
    let known = shared.cluster.committed_terms().iter().filter(|term| **term != 0);
    shared.counters.insert("entries committed", known.count() as u64);
    Ok(Replayed { counters: shared.counters, notes: shared.notes })
}

/// Sorts the files by node and life.
fn players<'a>(
    files: &'a [File],
    shared: &mut Shared,
) -> Result<BTreeMap<NodeId, Player<'a>>, ReplayError> {
    let mut players: BTreeMap<NodeId, Player<'a>> = BTreeMap::new();
    let mut clusters = BTreeSet::new();
    for file in files {
        let unreadable = |source| ReplayError::File { path: file.path.clone(), source };
        let mut reader = RecordReader::new(&file.bytes).map_err(unreadable)?;
        let path = file.path.clone();
        let Ok(body) = reader.next_body().map_err(unreadable)? else {
            shared.notes.push(format!("{}: ends before its first record", path.display()));
            continue;
        };
        let start = match take_body(body).map_err(|e| unreadable(reader.malformed(e)))? {
            Record::Start(start) => start,
            _ => {
                let what = "a start is expected first";
                return Err(unreadable(RecordingError::Damaged { offset: 8, number: 0, what }));
            }
        };
        if start.program != env!("CARGO_PKG_VERSION") {
            let (theirs, ours) = (&start.program, env!("CARGO_PKG_VERSION"));
            let path = path.display();
            let note = format!(
                "{path}: recorded by version {theirs}, replayed by {ours}: what differs may be that"
            );
            shared.notes.push(note);
        }
        clusters.insert(start.first.cluster);
        shared.repeats |= !start.connections;
        let new = || Player {
            now: None,
            coming: VecDeque::new(),
            before: None,
            ended_us: BTreeMap::new(),
        };
        let identity = start.replica.identity;
        let player = players.entry(start.raft.id).or_insert_with(new);
        player.coming.push_back(Coming { path, reader, start, identity });
    }
    if clusters.len() > 1 {
        let names: Vec<String> = clusters.iter().map(|c| format!("{c:016x}")).collect();
        let why = format!("the files are of several clusters: {}", names.join(", "));
        return Err(ReplayError::Files(why));
    }
    for (node, player) in &mut players {
        let lives = player.coming.make_contiguous();
        lives.sort_by_key(|coming| (coming.start.life, coming.start.unix_us));
        let twice = lives.windows(2).find(|two| {
            (two[0].start.life, two[0].identity) == (two[1].start.life, two[1].identity)
        });
        if let Some([one, other]) = twice {
            return Err(ReplayError::Files(format!(
                "{} and {} both are life {} of node {node}: name one directory of recordings for each node",
                one.path.display(),
                other.path.display(),
                one.start.life
            )));
        }
        shared.cluster.unseen.insert(*node);
    }
    let first = players.values().filter_map(|player| player.coming.front());
    let Some(first) = first.min_by_key(|coming| coming.start.restored.applied) else {
        return Err(ReplayError::Files("there is no recording in these files".to_string()));
    };
    let unseen = std::mem::take(&mut shared.cluster.unseen);
    shared.cluster = Cluster::begin(first.start.first.clone());
    shared.cluster.unseen = unseen;
    Ok(players)
}

/// Nobody goes on by himself: somebody waits for what is in no record. Lets the one go on who most likely does; false when all
/// have come to their end.
///
/// A message whose sender has no more records will not come. One whose sender has begun another life may yet be sent in
/// that; the sooner it arrived after the end of a life, the likelier it is of that one.
fn let_through(
    players: &mut BTreeMap<NodeId, Player<'_>>,
    shared: &mut Shared,
    given: &BTreeSet<NodeId>,
) -> Result<bool, ReplayError> {
    let mut best: Option<((u64, u64), NodeId, &'static str)> = None;
    for (&node, player) in players.iter().filter(|(_, player)| !player.is_done()) {
        let at_us = player.wall_us();
        let (apart_us, what) = match player.waits(shared, given) {
            Some(Waits::Message(from)) => {
                let Some(sender) = players.get(&from) else { continue };
                let Some(apart_us) = sender.unrecorded(at_us) else { continue };
                (if sender.is_done() { 0 } else { apart_us }, UNSENT)
            }
            Some(Waits::Commit) => (CLOCKS_APART_US, UNCOMMITTED),
            None => continue,
        };
        let rank = (apart_us, at_us);
        if best.is_none_or(|(least, _, _)| rank < least) {
            best = Some((rank, node, what));
        }
    }
    if let Some((_, node, what)) = best {
        shared.count(what);
        // From here on nobody knows what was first.
        shared.cluster.unproved.get_or_insert_default();
        let Some(player) = players.get_mut(&node) else { return Ok(false) };
        player.step(node, shared, given)?;
        return Ok(true);
    }
    let waiting = players.values().filter(|player| !player.is_done());
    let Some(player) = waiting.min_by_key(|player| player.wall_us()) else { return Ok(false) };
    let wait = players.values().filter(|player| !player.is_done()).map(Player::place);
    let wait = wait.collect::<Vec<_>>().join(", ");
    let detail = format!(
        "its sender has not sent it by then, and no recording of the sender ends within {} s before or {} s after \
         (unless the clocks of the two machines are further apart); all who wait: {wait}",
        LATE_US / 1_000_000,
        CLOCKS_APART_US / 1_000_000
    );
    Err(player.failed(Violation { invariant: "what arrives was sent", detail }))
}

impl<'a> Player<'a> {
    fn is_done(&self) -> bool {
        self.now.is_none() && self.coming.is_empty()
    }

    /// How far the end of one of its lives is from that time; none when a message that arrives then can be of none of
    /// those ends.
    fn unrecorded(&self, at_us: u64) -> Option<u64> {
        let near = |ended_us: &&u64| {
            at_us <= **ended_us + LATE_US && **ended_us <= at_us + CLOCKS_APART_US
        };
        self.ended_us.values().filter(near).map(|ended_us| at_us.abs_diff(*ended_us)).min()
    }

    /// When what is next happened, by the system's clock of its machine.
    fn wall_us(&self) -> u64 {
        match (&self.now, self.coming.front()) {
            (Some(now), _) => now.life.wall_us(&now.next),
            (None, Some(coming)) => coming.start.unix_us,
            (None, None) => u64::MAX,
        }
    }

    fn waits(&self, shared: &Shared, given: &BTreeSet<NodeId>) -> Option<Waits> {
        let committed = shared.cluster.committed();
        let Some(now) = &self.now else {
            let coming = self.coming.front()?;
            return (coming.start.restored.applied > committed && self.before.is_some())
                .then_some(Waits::Commit);
        };
        match &now.next {
            Record::Handled { input, .. } => {
                let Input::Peer(message) = &**input else { return None };
                let known = given.contains(&message.from)
                    && !shared.under_way.contains_key(&key_of(message));
                known.then_some(Waits::Message(message.from))
            }
            Record::Did(did) => did.installed.filter(|at| at.0 > committed).map(|_| Waits::Commit),
            _ => None,
        }
    }

    /// The record that is next.
    fn place(&self) -> String {
        match (&self.now, self.coming.front()) {
            (Some(now), _) => format!("{} record {}", now.path.display(), now.reader.number()),
            (None, Some(coming)) => format!("{} record 0", coming.path.display()),
            (None, None) => String::new(),
        }
    }

    fn failed(&self, violation: Violation) -> ReplayError {
        let (path, record, now_us, event) = match (&self.now, self.coming.front()) {
            (Some(now), _) => (
                now.path.clone(),
                now.reader.number(),
                now.life.now_us(),
                shortened(&format!("{:?}", now.next)),
            ),
            (None, Some(coming)) => {
                (coming.path.clone(), 0, coming.start.now_us, "start".to_string())
            }
            (None, None) => (PathBuf::new(), 0, 0, String::new()),
        };
        ReplayError::Failed(Box::new(Failure { path, record, now_us, event, violation }))
    }

    /// Replays the next record; false when there is none.
    fn step(
        &mut self,
        node: NodeId,
        shared: &mut Shared,
        given: &BTreeSet<NodeId>,
    ) -> Result<bool, ReplayError> {
        if self.now.is_none() {
            return self.begin(node, shared, given);
        }
        let Some(now) = &mut self.now else { return Ok(false) };
        if let Err(violation) = now.life.step(&now.next, shared, given) {
            return Err(self.failed(violation));
        }
        shared.count("records");
        self.advance(node, shared)?;
        Ok(true)
    }

    /// Begins the next life.
    fn begin(
        &mut self,
        node: NodeId,
        shared: &mut Shared,
        given: &BTreeSet<NodeId>,
    ) -> Result<bool, ReplayError> {
        let Some(coming) = self.coming.front() else { return Ok(false) };
        let begun = started(node, &coming.start, self.before, shared, given);
        let life = match begun {
            Ok(life) => life,
            Err(violation) => return Err(self.failed(violation)),
        };
        let Some(Coming { path, reader, start, identity }) = self.coming.pop_front() else {
            return Ok(false);
        };
        self.before = Some((start.life, identity));
        shared.count("lives");
        shared.cluster.unseen.remove(&node);
        self.now = Some(Playing { path, reader, life, next: Record::Start(start) });
        self.advance(node, shared)?;
        Ok(true)
    }

    /// Reads the next record, or ends the life.
    fn advance(&mut self, node: NodeId, shared: &mut Shared) -> Result<(), ReplayError> {
        let Some(now) = &mut self.now else { return Ok(()) };
        let unreadable = |source| ReplayError::File { path: now.path.clone(), source };
        let end = match now.reader.next_body().map_err(unreadable)? {
            Ok(body) => {
                let malformed = |e| unreadable(now.reader.malformed(e));
                match take_body(body).map_err(malformed)? {
                    Record::End(EndReason::Limit) => "its limit (--record-limit)".to_string(),
                    record => {
                        now.next = record;
                        return Ok(());
                    }
                }
            }
            Err(Ending::Whole) => "a whole record".to_string(),
            Err(Ending::Torn { bytes }) => {
                format!("{bytes} bytes of a record that is not whole: the process ended there")
            }
        };
        let (path, records) = (now.path.display(), now.reader.number() + 1);
        shared.notes.push(format!("{path}: {records} records, ends with {end}"));
        if let Some(why) = now.life.left_out() {
            shared.notes.push(format!("{path}: {why}"));
        }
        self.ended_us.insert(now.life.number(), now.life.wall_now_us());
        self.now = None;
        shared.cluster.unseen.insert(node);
        Ok(())
    }
}

/// A node starts: what it found on its disk must be what it had durable.
fn started(
    node: NodeId,
    start: &Start,
    before: Option<(u64, u64)>,
    shared: &mut Shared,
    given: &BTreeSet<NodeId>,
) -> Result<Life, Violation> {
    let restored = &start.restored;
    let log = &restored.log;
    let runs = |index: Index| {
        let run = log.runs.iter().rev().find(|run| run.0 <= index);
        match run {
            Some(run) if index <= log.last => Some(run.1),
            _ => (index == log.base && index > 0).then_some(log.base_term),
        }
    };
    let (known, in_term) = (restored.applied.max(log.base), restored.hard_state.term);
    shared.cluster.learn(known, in_term, runs, &log.configurations);
    let found = platter_of(restored, shared.cluster.committed_terms());
    let next =
        |(life, identity): (u64, u64)| life + 1 == start.life && identity == start.replica.identity;
    if before.is_some_and(next)
        && let Some(had) = shared.platters.get(&node)
    {
        had.outlived(node, &found, shared.cluster.committed_terms())?;
    }
    shared.platters.insert(node, found);
    shared.look();
    Life::begin(start, shared, given)
}

/// As much of a text as a person reads.
fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 600;
    match text.char_indices().nth(CHARS_MAX) {
        None => text.to_string(),
        Some((end, _)) => format!("{} ...", &text[..end]),
    }
}
