//! A snapshot on its way from one node to another: both ends, without a socket.
//!
//! [`SnapshotReceiver`] is the end that lacks something: a follower to which the leader offered a
//! snapshot, or a node whose store is damaged. It chooses who is asked, asks for the manifest and then
//! for piece after piece, keeps what arrives on disk, reads all of it once more a step at a
//! time, and hands the result to the applier. When a connection ends, goes silent or brings nothing of
//! use, it pauses and tries another connection, then another sender. Tables that are whole are not
//! fetched again from the same sender. [`SnapshotSender`] is the end that has the data: any node whose
//! store reaches far enough, leader or not, since what a store holds is committed.
//!
//! Left out: connections, which the owner makes and reads, and the install, which is the applier's.

use crate::env::Disk;
use crate::kv::{
    Export, INCOMING_DIR, Import, LsmError, LsmReader, Piece, Reader as _, Sealed, Staged,
    StoreError, View as _,
};
use crate::raft::{Index, NodeId, Offer};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A sender that owes an answer and from which no byte arrives for so long is given up. The first time;
/// each time in a row this doubles, up to 4 seconds. A sender may have to write a lot to its disk first,
/// for longer than that: it goes on writing, and the next time that it is asked less is left. In
/// microseconds.
pub const SNAPSHOT_SILENCE_US: u64 = 2_000_000;
/// Longest patience with a silent sender, in microseconds.
const SILENCE_US_MAX: u64 = 4_000_000;
/// A receiver that asks nothing for so long is given up by the sender: it asks anew after the longest
/// write to its own disk, and needs no connection while it checks. In microseconds.
pub const SNAPSHOT_IDLE_US: u64 = 15_000_000;
/// First pause after a connection that was of no use, in microseconds. It grows by as much with every
/// fourth.
const RETRY_PAUSE_US: u64 = 200_000;
/// Longest such pause, in microseconds: a store can be repaired when somebody has a whole one, hours
/// later perhaps.
const RETRY_PAUSE_US_MAX: u64 = 5_000_000;
/// Pause while the disk is full, in microseconds.
const SPACE_PAUSE_US: u64 = 2_000_000;
/// A damaged store makes room when the disk was full so often since its repair began: not at once, since the room
/// may have been taken for a moment.
const GIVES_UP_AT: u32 = 2;
/// After an answer the receiver rests as long as it took, at most so long, so that other traffic hardly
/// notices. In microseconds.
const REST_US_MAX: u64 = 50_000;
/// Connections in a row to one sender that bring nothing. Another one has other tables, so that what
/// was fetched from the first is of no use any more.
const TRIES_MAX: u32 = 2;
/// The same trouble with the same sender is told again after so long, in microseconds.
const TELL_AGAIN_US: u64 = 60_000_000;
/// Different troubles that are remembered as told.
const TOLD_MAX: usize = 20;

const _: () = assert!(SNAPSHOT_SILENCE_US < SILENCE_US_MAX && TRIES_MAX > 0);

/// What a receiver asks. One question at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotRequest {
    /// What there is, if it reaches to this index.
    Begin {
        /// Index that it must reach.
        index: Index,
    },
    /// A piece of what the last [`SnapshotResponse::Begins`] described.
    Piece(Piece),
}

/// What it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotResponse {
    /// The manifest of what there is.
    Begins {
        /// Its bytes (docs/formats.md, "Manifest").
        manifest: Vec<u8>,
    },
    /// The piece that was asked for.
    Piece {
        /// Which.
        piece: Piece,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// There is no such thing here, or none that can be read: another node may have it.
    Gone,
}

// ---- the sender ----

/// The end that has the data, for one connection.
#[derive(Debug)]
pub struct SnapshotSender {
    reader: LsmReader,
    export: Option<Export>,
    /// A question that waits for a flush: the index it asks for.
    flushing: Option<Index>,
}

/// What a sender wants done.
#[derive(Debug)]
pub enum SenderEffect {
    /// The store is to flush; then [`SnapshotSender::flushed`] goes on.
    Flush,
    /// The answer.
    Send(SnapshotResponse),
    /// The store cannot be read: that is told to the node. If it is damage, the receiver is answered
    /// [`SnapshotResponse::Gone`]; nothing that cannot be read is passed on.
    Unreadable(StoreError),
}

impl SnapshotSender {
    /// Sends what this store holds.
    pub fn new(reader: LsmReader) -> SnapshotSender {
        SnapshotSender { reader, export: None, flushing: None }
    }

    /// Answers a question. What is asked for may be applied and not in tables yet: then it is made
    /// durable first.
    pub fn asked(&mut self, request: SnapshotRequest) -> SenderEffect {
        match request {
            SnapshotRequest::Begin { index } => {
                let applied = self.reader.view().applied();
                if index <= applied && self.reader.exportable() < index {
                    self.flushing = Some(index);
                    return SenderEffect::Flush;
                }
                SenderEffect::Send(self.begin(index))
            }
            SnapshotRequest::Piece(piece) => match &self.export {
                Some(export) if export.holds(piece) => match export.read(piece) {
                    Ok(bytes) => SenderEffect::Send(SnapshotResponse::Piece { piece, bytes }),
                    // It has ended since.
                    Err(LsmError::Rejected { .. }) => SenderEffect::Send(SnapshotResponse::Gone),
                    Err(e) => SenderEffect::Unreadable(e.into()),
                },
                _ => SenderEffect::Send(SnapshotResponse::Gone),
            },
        }
    }

    /// The store has flushed, or cannot now: answers what waited for it, if anything does.
    pub fn flushed(&mut self) -> Option<SnapshotResponse> {
        let index = self.flushing.take()?;
        Some(self.begin(index))
    }

    /// What the tables hold now, if that reaches to `index`. Its tables can be read until another one
    /// is begun.
    pub fn begin(&mut self, index: Index) -> SnapshotResponse {
        let export = self.reader.export();
        if export.applied() < index {
            return SnapshotResponse::Gone;
        }
        let manifest = export.manifest();
        self.export = Some(export);
        SnapshotResponse::Begins { manifest }
    }
}

// ---- the receiver ----

/// What happens to a receiver.
#[derive(Debug)]
pub enum ReceiverEvent {
    /// The leader offers a snapshot that this node needs. It may be repeated, and another leader may
    /// offer another one.
    Offered(Offer),
    /// The store is damaged, and held everything up to `index`: any node that reaches as far will do.
    Damaged {
        /// The index.
        index: Index,
    },
    /// The applier is done with what it was given ([`ReceiverEffect::Install`]).
    Installed,
    /// The connection that was to be made was made, and this node was let in.
    Connected,
    /// Bytes arrived on it.
    Heard,
    /// An answer arrived on it.
    Answered(SnapshotResponse),
    /// It was not made, or has ended.
    Lost {
        /// Why, for a person.
        why: String,
    },
}

/// What a receiver wants done.
#[derive(Debug)]
pub enum ReceiverEffect {
    /// A connection is to be made: answered by [`ReceiverEvent::Connected`] or [`ReceiverEvent::Lost`],
    /// in bounded time.
    Dial {
        /// With whom.
        sender: NodeId,
    },
    /// A question for the other end.
    Send(SnapshotRequest),
    /// The connection is of no use any more. Nothing more is told of it.
    Close,
    /// For the applier, which says [`ReceiverEvent::Installed`].
    Install {
        /// The snapshot.
        snapshot: Staged,
        /// Index that it reaches to.
        index: Index,
    },
    /// Something for a person.
    Say {
        /// It is no part of a transfer that goes well.
        warning: bool,
        /// The line.
        text: String,
    },
    /// Nothing before that time, unless something happens; `u64::MAX` for never.
    Wait {
        /// When to ask again, in microseconds.
        until_us: u64,
    },
}

/// How far a snapshot is on its way here, for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferProgress {
    /// Bytes of all of it, and of what is missing; none before that is known.
    bytes: Option<(u64, u64)>,
}

impl TransferProgress {
    /// Whether some of its pieces are still missing.
    pub fn is_fetching(&self) -> bool {
        matches!(self.bytes, Some((_, 1..)))
    }
}

impl fmt::Display for TransferProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes {
            None => f.write_str("waiting for a snapshot"),
            Some((_, 0)) => f.write_str("installing a snapshot"),
            Some((all, missing)) => {
                let here = all - missing;
                let percent = u128::from(here) * 100 / u128::from(all.max(1));
                write!(f, "fetching a snapshot: {here} of {all} bytes, {percent}%")
            }
        }
    }
}

/// What is needed.
#[derive(Clone, Copy, Debug)]
struct Need {
    /// The leader that offered it; 0 for none.
    from: NodeId,
    /// Index that it must reach.
    index: Index,
    /// The store is damaged: what the log brings does not help.
    repairs: bool,
    since_us: u64,
}

/// The connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    None,
    Dialing(NodeId),
    /// In use. `begun`: the other end has said what there is.
    Open {
        sender: NodeId,
        begun: bool,
    },
    /// The owner is yet to be told to close it.
    Unused,
}

/// The end that lacks something.
///
/// Invariants: nothing is asked but on an open connection, one question at a time; what is installed
/// was described by one manifest, all of it.
pub struct SnapshotReceiver {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    reader: LsmReader,
    need: Option<Need>,
    connection: Connection,
    import: Option<Import>,
    /// When the question was asked that is not answered, and when a byte last arrived since.
    asked: Option<(u64, u64)>,
    /// Nothing is asked or dialed before.
    rest_until_us: u64,
    /// The applier has it.
    installing: bool,
    /// Connections in a row that brought nothing; how many of them to the present sender, and how many
    /// went silent.
    failures: u32,
    tries: u32,
    /// What becomes of the connection is held against the present sender: it was not begun before another
    /// leader took that one's place.
    counts: bool,
    /// Who sent the last piece that was of use.
    source: Option<NodeId>,
    silences: u32,
    /// Counts senders that were given up.
    turn: usize,
    /// The disk was full the last time.
    lacks_space: bool,
    /// How often it was since something is needed.
    full_times: u32,
    /// Whether it was told what is needed, and what for.
    needs_told: Option<bool>,
    /// When each trouble was told.
    told_us: BTreeMap<(NodeId, String), u64>,
    lines: VecDeque<(bool, String)>,
}

impl fmt::Debug for SnapshotReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotReceiver({:?}, {:?}, {:?})", self.need, self.connection, self.import)
    }
}

impl SnapshotReceiver {
    /// Needs nothing yet. What it fetches is kept in the data directory `data`.
    pub fn new(disk: Arc<dyn Disk>, data: &Path, reader: LsmReader) -> SnapshotReceiver {
        SnapshotReceiver {
            disk,
            dir: data.join(INCOMING_DIR),
            reader,
            need: None,
            connection: Connection::None,
            import: None,
            asked: None,
            rest_until_us: 0,
            installing: false,
            failures: 0,
            tries: 0,
            counts: false,
            source: None,
            silences: 0,
            turn: 0,
            lacks_space: false,
            full_times: 0,
            needs_told: None,
            told_us: BTreeMap::new(),
            lines: VecDeque::new(),
        }
    }

    /// How far it is; none when nothing is needed.
    pub fn progress(&self) -> Option<TransferProgress> {
        let bytes = self.import.as_ref().map(Import::bytes);
        let bytes = if self.installing { Some((0, 0)) } else { bytes };
        self.need.map(|_| TransferProgress { bytes })
    }

    /// Whether it waits for space on the disk.
    pub fn lacks_space(&self) -> bool {
        self.lacks_space
    }

    /// Connections in a row that went silent.
    pub fn silences(&self) -> u32 {
        self.silences
    }

    // ---- events ----

    /// Something happened. Then [`SnapshotReceiver::poll`] is to be asked.
    ///
    /// # Errors
    /// The disk's, unless only space is missing: what the own disk does to a snapshot it may do to
    /// everything, and the node stops.
    pub fn handle(&mut self, event: ReceiverEvent, now_us: u64) -> Result<(), StoreError> {
        match event {
            ReceiverEvent::Offered(offer) => self.offered(offer, now_us),
            ReceiverEvent::Damaged { index } => self.damaged(index, now_us),
            ReceiverEvent::Installed => {
                (self.need, self.installing) = (None, false);
                self.import.take().map_or(Ok(()), Import::discard)?;
            }
            ReceiverEvent::Connected => {
                if let Connection::Dialing(sender) = self.connection {
                    self.connection = Connection::Open { sender, begun: false };
                }
            }
            ReceiverEvent::Heard => {
                if let Some((_, heard_us)) = &mut self.asked {
                    *heard_us = now_us;
                }
            }
            ReceiverEvent::Answered(response) => {
                let taken = self.answered(response, now_us);
                self.unless_full(taken, now_us)?;
            }
            ReceiverEvent::Lost { why } => self.lost(&why, now_us),
        }
        Ok(())
    }

    fn offered(&mut self, offer: Offer, now_us: u64) {
        let Offer { from, index } = offer;
        match &mut self.need {
            // A new leader may have an older snapshot than the one before, and enough entries behind
            // it. A damaged store needs what it needs, whoever leads.
            Some(need) => {
                if std::mem::replace(&mut need.from, from) != from && !need.repairs {
                    (self.tries, self.turn, self.counts) = (0, 0, false);
                }
                need.index = if need.repairs { need.index.max(index) } else { index };
            }
            None => self.begin(Need { from, index, repairs: false, since_us: now_us }),
        }
    }

    fn damaged(&mut self, index: Index, now_us: u64) {
        match &mut self.need {
            Some(need) => {
                need.repairs = true;
                need.index = need.index.max(index);
            }
            None => self.begin(Need { from: 0, index, repairs: true, since_us: now_us }),
        }
    }

    fn begin(&mut self, need: Need) {
        (self.need, self.source) = (Some(need), None);
        (self.failures, self.tries, self.silences, self.turn) = (0, 0, 0, 0);
        (self.needs_told, self.rest_until_us, self.full_times) = (None, 0, 0);
    }

    fn answered(&mut self, response: SnapshotResponse, now_us: u64) -> Result<(), StoreError> {
        let Connection::Open { sender, begun } = self.connection else { return Ok(()) };
        let Some((asked_us, _)) = self.asked.take() else { return Ok(()) };
        self.rest_until_us = now_us + (now_us - asked_us).min(REST_US_MAX);
        match response {
            SnapshotResponse::Begins { manifest } if !begun => {
                // Its files are closed before they are looked at again.
                self.import = None;
                match self.reader.import(Arc::clone(&self.disk), &self.dir, &manifest) {
                    Ok(import) => self.import = Some(import),
                    Err(StoreError::Damaged { .. }) => {
                        self.give_up("what it sent is no manifest", true, now_us);
                        return Ok(());
                    }
                    Err(e) => return Err(e),
                }
                self.connection = Connection::Open { sender, begun: true };
            }
            SnapshotResponse::Piece { piece, bytes } if begun => {
                let import = self.import.as_mut();
                let asked =
                    import.filter(|i| i.missing() == Some(piece) && bytes.len() == piece.len);
                let Some(import) = asked else {
                    self.give_up("its answer is to another question", false, now_us);
                    return Ok(());
                };
                import.put(piece, &bytes).map_err(StoreError::from)?;
                self.source = Some(sender);
                (self.failures, self.tries, self.silences) = (0, 0, 0);
                self.lacks_space = false;
            }
            SnapshotResponse::Gone => {
                self.import = None;
                self.give_up("it has none that reaches far enough", true, now_us);
            }
            _ => self.give_up("its answer is to another question", false, now_us),
        }
        Ok(())
    }

    fn lost(&mut self, why: &str, now_us: u64) {
        match self.connection {
            Connection::None | Connection::Unused => {}
            // Everything is here.
            Connection::Open { begun: true, .. } if self.is_whole() => {
                self.connection = Connection::None;
            }
            Connection::Open { .. } => {
                self.give_up(why, false, now_us);
                self.connection = Connection::None;
            }
            // Nothing was fetched there that would be lost, and somebody else may be there.
            Connection::Dialing(sender) => {
                self.give_up(why, self.source != Some(sender), now_us);
                self.connection = Connection::None;
            }
        }
    }

    /// The connection was of no use: pauses, and goes on with another one, or with another sender.
    fn give_up(&mut self, why: &str, elsewhere: bool, now_us: u64) {
        let (Connection::Open { sender, .. } | Connection::Dialing(sender)) = self.connection
        else {
            return;
        };
        (self.connection, self.asked) = (Connection::Unused, None);
        let pause_us = RETRY_PAUSE_US * u64::from(1 + self.failures / 4);
        self.rest_until_us = now_us + pause_us.min(RETRY_PAUSE_US_MAX);
        self.failures += 1;
        // That of another sender says nothing about this one (seed 200013614: the leader was passed over for the
        // one before, which was dead).
        if std::mem::take(&mut self.counts) {
            self.tries += 1;
            if elsewhere || self.tries >= TRIES_MAX {
                (self.tries, self.turn) = (0, self.turn + 1);
            }
        }
        let key = (sender, why.to_string());
        if self.told_us.get(&key).is_some_and(|at| now_us < at + TELL_AGAIN_US) {
            return;
        }
        if self.told_us.len() >= TOLD_MAX {
            self.told_us.retain(|_, at| now_us < *at + TELL_AGAIN_US);
        }
        if self.told_us.len() < TOLD_MAX {
            self.told_us.insert(key, now_us);
            let text =
                format!("a snapshot from node={sender} did not come, to be tried again: {why}");
            self.lines.push_back((true, text));
        }
    }

    /// A full disk sets a transfer back, and so does a file that is to go and that another program holds: it is begun again some time later, with what is here. When that does not help,
    /// a damaged store makes room for what is to take its place.
    fn unless_full<T>(
        &mut self,
        result: Result<T, StoreError>,
        now_us: u64,
    ) -> Result<Option<T>, StoreError> {
        match result {
            Err(e) if e.is_held() => {
                self.import = None;
                if !matches!(self.connection, Connection::None) {
                    self.connection = Connection::Unused;
                }
                (self.asked, self.rest_until_us) = (None, now_us + SPACE_PAUSE_US);
                let text = format!("a snapshot waits for a file that another program holds: {e}");
                self.lines.push_back((true, text));
                Ok(None)
            }
            Err(e) if e.is_out_of_space() => {
                let begun = self.import.take().is_some();
                (self.connection, self.asked) = match self.connection {
                    Connection::None => (Connection::None, None),
                    _ => (Connection::Unused, None),
                };
                self.rest_until_us = now_us + SPACE_PAUSE_US;
                self.lacks_space = true;
                if self.full_times == 0 {
                    let text = format!("no space for a snapshot, to be resumed: {e}");
                    self.lines.push_back((true, text));
                }
                self.full_times += 1;
                let repairs = self.need.is_some_and(|need| need.repairs);
                if begun && repairs && self.full_times >= GIVES_UP_AT {
                    self.make_room(now_us)?;
                }
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// A table of the damaged store goes.
    fn make_room(&mut self, now_us: u64) -> Result<(), StoreError> {
        if let Some((path, bytes)) = self.reader.give_up_table(self.disk.as_ref())? {
            let path = path.display();
            let text = format!(
                "no space to repair the damaged store beside it: gave up {path}, {bytes} bytes of it"
            );
            self.lines.push_back((true, text));
            self.rest_until_us = now_us;
        }
        Ok(())
    }

    // ---- what to do ----

    /// What is to be done now: to be asked until it is to wait. `others` are all other nodes that this
    /// one knows.
    ///
    /// # Errors
    /// As [`SnapshotReceiver::handle`].
    pub fn poll(
        &mut self,
        others: &BTreeSet<NodeId>,
        now_us: u64,
    ) -> Result<ReceiverEffect, StoreError> {
        if let Some((warning, text)) = self.lines.pop_front() {
            return Ok(ReceiverEffect::Say { warning, text });
        }
        let wait = |until_us| Ok(ReceiverEffect::Wait { until_us });
        if self.connection == Connection::Unused {
            self.connection = Connection::None;
            return Ok(ReceiverEffect::Close);
        }
        let Some(need) = self.need.filter(|_| !self.installing) else { return wait(u64::MAX) };
        if let Some((_, heard_us)) = self.asked {
            let patience_us = (SNAPSHOT_SILENCE_US << self.silences.min(8)).min(SILENCE_US_MAX);
            if now_us < heard_us + patience_us {
                return wait(heard_us + patience_us);
            }
            self.silences += 1;
            self.give_up("no byte arrived in time", false, now_us);
            return self.poll(others, now_us);
        }
        if now_us < self.rest_until_us {
            return wait(self.rest_until_us);
        }
        let is_whole = self.is_whole();
        match self.connection {
            Connection::None if !need.repairs && self.reader.view().applied() >= need.index => {
                // Its log came all the same.
                self.need = None;
                self.import.take().map_or(Ok(()), Import::discard)?;
                wait(u64::MAX)
            }
            Connection::None | Connection::Open { begun: true, .. } if is_whole => {
                self.check(need, now_us)
            }
            Connection::None => match self.choose(&need, others) {
                Some(sender) => {
                    if self.needs_told.replace(need.repairs) != Some(need.repairs) {
                        let why = if need.repairs { "to repair the store" } else { "to go on" };
                        let index = need.index;
                        let text =
                            format!("needs a snapshot {why} from node={sender} index={index}");
                        self.lines.push_back((false, text));
                    }
                    (self.connection, self.counts) = (Connection::Dialing(sender), true);
                    Ok(ReceiverEffect::Dial { sender })
                }
                None => {
                    self.rest_until_us = now_us + RETRY_PAUSE_US_MAX;
                    wait(self.rest_until_us)
                }
            },
            Connection::Open { begun, .. } => {
                self.asked = Some((now_us, now_us));
                let piece = self.import.as_ref().filter(|_| begun).and_then(Import::missing);
                Ok(ReceiverEffect::Send(match piece {
                    Some(piece) => SnapshotRequest::Piece(piece),
                    None => SnapshotRequest::Begin { index: need.index },
                }))
            }
            Connection::Dialing(_) | Connection::Unused => wait(u64::MAX),
        }
    }

    /// Whether every piece was fetched.
    fn is_whole(&self) -> bool {
        self.import.as_ref().is_some_and(|import| import.missing().is_none())
    }

    /// The leader that offered it comes first, then all others in turn, whoever they are.
    fn choose(&self, need: &Need, others: &BTreeSet<NodeId>) -> Option<NodeId> {
        let leader = Some(need.from).filter(|&id| id != 0 && !need.repairs);
        let rest = others.iter().copied().filter(|&id| Some(id) != leader);
        let all: Vec<NodeId> = leader.into_iter().chain(rest).collect();
        all.get(self.turn % all.len().max(1)).copied()
    }

    /// A step of reading what was fetched. A table that turns out to be damaged is fetched again.
    fn check(&mut self, need: Need, now_us: u64) -> Result<ReceiverEffect, StoreError> {
        let again = ReceiverEffect::Wait { until_us: now_us };
        let Some(import) = &mut self.import else { return Ok(again) };
        let sealed = LsmReader::seal(import);
        match self.unless_full(sealed, now_us)? {
            Some(Sealed::Damaged) => {
                // On the way, or on either disk: the same from the same sender would go on in a circle.
                self.give_up("a table of it is damaged", true, now_us);
                Ok(again)
            }
            None | Some(Sealed::Working) => Ok(again),
            Some(Sealed::Done(snapshot)) => {
                let index = snapshot.applied();
                let (bytes, _) = self.import.as_ref().map_or((0, 0), Import::bytes);
                let ms = now_us.saturating_sub(need.since_us) / 1000;
                let text = format!("fetched a snapshot index={index} bytes={bytes} ms={ms}");
                self.lines.push_back((false, text));
                self.installing = true;
                if self.connection != Connection::None {
                    self.connection = Connection::Unused;
                }
                Ok(ReceiverEffect::Install { snapshot, index })
            }
        }
    }
}
