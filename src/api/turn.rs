//! One turn of a connection: requests that arrived together, from what is asked to what is answered.
//!
//! Everything of a turn that the replica must do is put to it in one message; all linearizable reads
//! share one read index, which is asked for last. The answers come in the order of the requests. What
//! is read from the store is read when its reply's turn comes, so that pages are not piled up. What it holds, and the
//! bytes that are not written yet, is part of the node's budget. A reply that finds no room there waits until those are
//! written, and is *busy* where there are none.

use super::OUT_BYTES_MAX;
use super::answers::admit;
use super::budget::Share;
use super::load::Charge;
use super::replies::{reply_of, stopping};
use super::state::{DAMAGED, DAMAGED_ALONE, NodeState, QueryError, deadline_us, failure};
use crate::kv::codec::encode_command;
use crate::kv::limits::COUNT_STEP_PAGES;
use crate::kv::query::Counting;
use crate::kv::{Command, LsmView, Op, Piece, Query, Reader as _, Reply as KvReply, StoreError};
use crate::node::{
    Answer, Request, SenderEffect, SnapshotRequest, SnapshotResponse, SnapshotSender, Verdict,
};
use crate::wire::client::{Answer as Reply, Call, Change, Class, Consistency, Failure};
use std::collections::VecDeque;
use std::sync::Arc;

/// What a reply is made of, once the replica has answered.
#[derive(Debug)]
enum Work {
    Ready(Result<Reply, Failure>),
    /// Read from what is applied here, until then.
    Here(Query, u64),
    /// A count that is under way, until then.
    Counting(Box<Counting<LsmView>>, u64),
    /// Begin a backup: it holds every write that was answered before it was asked for, so it begins
    /// like a linearizable read; then the store makes that durable.
    Backup {
        deadline_us: u64,
        stage: Stage,
    },
    /// A piece of the backup.
    Piece(Piece),
    /// How far the compaction of all tables is.
    Compaction,
    Asked(Asked),
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Read,
    Flush,
    Begin,
}

/// What was put to the replica.
#[derive(Debug)]
pub(super) enum Asked {
    Write,
    /// A linearizable read, when it must be confirmed, and until when it is read here.
    Query {
        query: Query,
        deadline_us: u64,
        read_by_us: u64,
    },
    Status,
    Members,
    Transfer,
    Compact,
    /// A node is taken in; it has asked for itself.
    Join {
        itself: bool,
    },
    Change,
}

/// See the module. Each request has a mark that says where its reply goes.
#[derive(Debug)]
pub(super) struct Turn<M> {
    work: VecDeque<(M, Work)>,
    requests: Vec<(u64, Request)>,
    /// When the most patient linearizable read must be answered.
    read_by_us: Option<u64>,
    /// The answers that are not used yet.
    answers: VecDeque<Answer>,
    /// What they hold.
    answers_bytes: usize,
    /// That, and what is not written yet.
    held: Share,
    may_read: Option<Answer>,
    answered_us: u64,
    /// Much was read since it was last looked at whether the client is there.
    worked: bool,
    /// What is asked is about the backup alone.
    about_backup: bool,
    backup_answer: Option<Answer>,
    /// A backup stays readable until the connection ends, or the next is begun.
    backup: SnapshotSender,
    /// What of it counts as under way at the node.
    charge: Charge,
}

/// What a turn has come to.
pub(super) enum Next<M> {
    /// To be put to the replica.
    Submit(Vec<(u64, Request)>),
    /// A reply.
    Reply(M, Result<Reply, Failure>),
    /// Much was read: it is to be looked at whether the client is still there.
    Check,
    /// What is not written yet is to be written first: there is no room for more, or it is much already.
    Flush,
    /// The store could not be read; the reply says so next.
    Unreadable(StoreError),
    /// Nothing is left.
    Over,
}

impl<M> Turn<M> {
    /// An empty one.
    pub(super) fn new(state: &NodeState) -> Turn<M> {
        Turn {
            work: VecDeque::new(),
            requests: Vec::new(),
            read_by_us: None,
            answers: VecDeque::new(),
            answers_bytes: 0,
            held: Share::new(&state.answers),
            may_read: None,
            answered_us: 0,
            worked: false,
            about_backup: false,
            backup_answer: None,
            backup: SnapshotSender::new(state.reader.clone()),
            charge: Charge::new(&state.load),
        }
    }

    /// What of it is under way, and is to be taken before a call that other threads serve is added.
    pub(super) fn charge(&mut self) -> &mut Charge {
        &mut self.charge
    }

    /// Requests without a reply.
    pub(super) fn len(&self) -> usize {
        self.work.len()
    }

    /// The mark of the one request there is.
    pub(super) fn only(&self) -> Option<&M> {
        match self.work.len() {
            1 => self.work.front().map(|(mark, _)| mark),
            _ => None,
        }
    }

    /// All requests that were submitted are answered elsewhere.
    pub(super) fn clear(&mut self) {
        self.work.clear();
        self.answers.clear();
        self.charge.settle();
        self.answers_bytes = 0;
    }

    /// Adds a reply that needs nobody.
    pub(super) fn reply(&mut self, mark: M, result: Result<Reply, Failure>) {
        self.work.push_back((mark, Work::Ready(result)));
    }

    /// Adds a call. One that changes members was looked at before.
    pub(super) fn call(&mut self, mark: M, call: Call, deadline_ms: u32, now_us: u64) {
        let explicit = deadline_ms != 0;
        let deadline_us = deadline_us(deadline_ms, now_us);
        let mut ask = |request, asked| {
            self.requests.push((deadline_us, request));
            Work::Asked(asked)
        };
        let work = match call {
            Call::Write(write) => ask(command(&Command::Write(write)), Asked::Write),
            Call::OpenSession => ask(command(&Command::OpenSession), Asked::Write),
            Call::CloseSession { session } => {
                ask(command(&Command::CloseSession { session }), Asked::Write)
            }
            Call::Query { query, consistency: Consistency::Linearizable } => {
                let by_us = self.read_by_us.map_or(deadline_us, |at| at.max(deadline_us));
                self.read_by_us = Some(by_us);
                let read_by_us = read_by_us(&query, explicit, deadline_us);
                Work::Asked(Asked::Query { query, deadline_us, read_by_us })
            }
            Call::Query { query, consistency: Consistency::Stale } => {
                let read_by_us = read_by_us(&query, explicit, deadline_us);
                Work::Here(query, read_by_us)
            }
            Call::Ping => Work::Ready(Ok(Reply::Pong)),
            Call::Status => ask(Request::Status, Asked::Status),
            Call::Members => ask(Request::Status, Asked::Members),
            Call::Transfer { to } => ask(Request::Transfer(to), Asked::Transfer),
            Call::Change(change) => {
                let asked = match change {
                    Change::Join { identity, .. } => Asked::Join { itself: identity != 0 },
                    _ => Asked::Change,
                };
                ask(Request::Change(change), asked)
            }
            Call::Compact => ask(Request::Flush { cut: true }, Asked::Compact),
            Call::Compaction => Work::Compaction,
            Call::Backup => Work::Backup { deadline_us, stage: Stage::Read },
            Call::Piece { table, offset, len } => {
                Work::Piece(Piece { table, offset, len: len as usize })
            }
        };
        self.work.push_back((mark, work));
    }

    /// The answers to what was submitted.
    pub(super) fn answered(&mut self, answers: Vec<Answer>, now_us: u64) {
        let mut answers = VecDeque::from(answers);
        if std::mem::take(&mut self.about_backup) {
            self.backup_answer = answers.pop_front();
            return;
        }
        self.answered_us = now_us;
        self.may_read = self.read_by_us.take().and_then(|_| answers.pop_back());
        self.answers_bytes = 0;
        for answer in &mut answers {
            admit(answer, &mut self.answers_bytes, &mut self.held);
        }
        self.answers = answers;
    }

    /// What comes next, when so many bytes are not written yet.
    pub(super) fn next(&mut self, state: &NodeState, unsent: usize, now_us: u64) -> Next<M> {
        // Mostly less than before, since something was written. More is what was held by an answer in another form.
        let _ = self.held.hold(self.answers_bytes + unsent);
        if unsent > OUT_BYTES_MAX {
            return self.flush();
        }
        if !self.requests.is_empty() || self.read_by_us.is_some() {
            let mut requests = std::mem::take(&mut self.requests);
            requests.extend(self.read_by_us.map(|by_us| (by_us, Request::Read)));
            return Next::Submit(requests);
        }
        let Some((mark, work)) = self.work.pop_front() else {
            (self.may_read, self.answers) = (None, VecDeque::new());
            self.worked = false;
            self.charge.settle();
            return Next::Over;
        };
        let result = match work {
            Work::Ready(result) => result,
            Work::Compaction => {
                let left = state.reader.compaction_left();
                let bytes = state.reader.stats().levels.iter().map(|(_, bytes)| bytes).sum();
                Ok(Reply::Compaction { left, bytes })
            }
            Work::Here(_, by_us) if now_us >= by_us => Err(too_late(0)),
            Work::Counting(counting, by_us) if now_us >= by_us => Err(too_late(counting.counted())),
            Work::Here(Query::Range(_), _) | Work::Counting(..) if self.worked => {
                self.worked = false;
                self.work.push_front((mark, work));
                return Next::Check;
            }
            Work::Here(Query::Range(range), by_us) if range.count_only => {
                match state.check_query(&Query::Range(range.clone())) {
                    Err(failure) => Err(failure),
                    Ok(()) => {
                        let counting = Counting::new(state.reader.view(), range);
                        return self.count(mark, Box::new(counting), by_us, state);
                    }
                }
            }
            Work::Counting(counting, by_us) => return self.count(mark, counting, by_us, state),
            Work::Here(query, by_us) => return self.query(mark, query, by_us, state, unsent),
            Work::Backup { deadline_us, stage } => match self.back_up(stage, state) {
                BackUp::Ask(request, stage) => {
                    self.work.push_front((mark, Work::Backup { deadline_us, stage }));
                    self.about_backup = true;
                    return Next::Submit(vec![(deadline_us, request)]);
                }
                BackUp::Done(result) => result,
            },
            Work::Piece(piece) if !self.has_room(unsent, piece.len) => {
                return self.without_room(mark, Work::Piece(piece), state, unsent);
            }
            Work::Piece(piece) => match self.backup.asked(SnapshotRequest::Piece(piece)) {
                SenderEffect::Send(SnapshotResponse::Piece { bytes, .. }) => {
                    Ok(Reply::Bytes(bytes))
                }
                SenderEffect::Unreadable(e) => return self.unreadable(mark, e, state),
                SenderEffect::Send(_) | SenderEffect::Flush => {
                    let message = "the backup begun on this connection has no such piece";
                    Err(failure(Class::Invalid, message.to_string()))
                }
            },
            // The round that serves the most patient read may have ended too late for this one.
            Work::Asked(Asked::Query { deadline_us, .. }) if self.answered_us >= deadline_us => {
                let message = "the read was not confirmed before its deadline".to_string();
                Err(failure(Class::Unavailable, message))
            }
            Work::Asked(Asked::Query { query, read_by_us, .. }) => match &self.may_read {
                Some(Answer::Read(Ok(()))) => {
                    self.work.push_front((mark, Work::Here(query, read_by_us)));
                    return self.next(state, unsent, now_us);
                }
                Some(Answer::Read(Err(refusal))) => Err(state.refused(*refusal)),
                _ => Err(stopping()),
            },
            Work::Asked(asked) => match self.answers.pop_front() {
                Some(answer) => {
                    if let Answer::Write(Verdict::Applied(outcome)) = &answer {
                        self.answers_bytes = self.answers_bytes.saturating_sub(outcome.memory());
                    }
                    reply_of(state, &asked, answer)
                }
                None => Err(stopping()),
            },
        };
        Next::Reply(mark, result)
    }

    /// Goes on with a count, a step.
    fn count(
        &mut self,
        mark: M,
        mut counting: Box<Counting<LsmView>>,
        by_us: u64,
        state: &NodeState,
    ) -> Next<M> {
        self.worked = true;
        match counting.step(COUNT_STEP_PAGES * state.limits.max_page_work) {
            Ok(Some(page)) => Next::Reply(mark, Ok(Reply::Reply(KvReply::Page(page)))),
            Ok(None) => {
                self.worked = false;
                self.work.push_front((mark, Work::Counting(counting, by_us)));
                Next::Check
            }
            Err(e) => self.unreadable(mark, e, state),
        }
    }

    fn query(
        &mut self,
        mark: M,
        query: Query,
        by_us: u64,
        state: &NodeState,
        unsent: usize,
    ) -> Next<M> {
        self.worked |= matches!(query, Query::Range(_));
        // What is read only to be dropped takes memory, too.
        if state.answers.is_short() {
            match state.answer_bytes(&query) {
                Ok(bytes) if !self.has_room(unsent, bytes) => {
                    return self.without_room(mark, Work::Here(query, by_us), state, unsent);
                }
                Ok(_) => {}
                Err(e) => return self.unreadable(mark, e, state),
            }
        }
        match state.query(&query) {
            Ok(reply) => {
                let reply = Reply::Reply(reply);
                if self.has_room(unsent, memory_of(&reply)) {
                    return Next::Reply(mark, Ok(reply));
                }
                // Read again then: what is confirmed may be read later.
                self.without_room(mark, Work::Here(query, by_us), state, unsent)
            }
            Err(QueryError::Refused(failure)) => Next::Reply(mark, Err(failure)),
            Err(QueryError::Unreadable(e)) => self.unreadable(mark, e, state),
        }
    }

    /// Whether there is room for a reply behind what is not written yet; then it is held.
    fn has_room(&mut self, unsent: usize, bytes: usize) -> bool {
        self.held.hold(self.answers_bytes + unsent + bytes)
    }

    fn without_room(&mut self, mark: M, work: Work, state: &NodeState, unsent: usize) -> Next<M> {
        if unsent == 0 {
            return Next::Reply(mark, Err(state.no_room()));
        }
        self.work.push_front((mark, work));
        self.flush()
    }

    /// What is left of the turn waits for its client, and is not under way at the node any more.
    fn flush(&mut self) -> Next<M> {
        self.charge.settle();
        Next::Flush
    }

    fn unreadable(&mut self, mark: M, e: StoreError, state: &NodeState) -> Next<M> {
        let failure = match state.is_alone() {
            true => failure(Class::Damaged, format!("{DAMAGED_ALONE}: {e}")),
            false => failure(Class::Unavailable, format!("{DAMAGED}; ask another one: {e}")),
        };
        self.work.push_front((mark, Work::Ready(Err(failure))));
        Next::Unreadable(e)
    }

    fn back_up(&mut self, stage: Stage, state: &NodeState) -> BackUp {
        let refused = |refusal| BackUp::Done(Err(state.refused(refusal)));
        match (stage, self.backup_answer.take()) {
            (Stage::Read, _) => BackUp::Ask(Request::Read, Stage::Flush),
            (Stage::Flush, Some(Answer::Read(Ok(())))) => {
                BackUp::Ask(Request::Flush { cut: false }, Stage::Begin)
            }
            (Stage::Begin, Some(Answer::Flushed(Ok(index)))) => {
                BackUp::Done(match self.backup.begin(index) {
                    SnapshotResponse::Begins { manifest } => Ok(Reply::Backup { manifest }),
                    _ => {
                        let message = "the store has gone back; try again".to_string();
                        Err(failure(Class::Unavailable, message))
                    }
                })
            }
            (_, Some(Answer::Read(Err(refusal)) | Answer::Flushed(Err(refusal)))) => {
                refused(refusal)
            }
            _ => {
                let message = "the node is stopping".to_string();
                BackUp::Done(Err(failure(Class::Unavailable, message)))
            }
        }
    }
}

enum BackUp {
    Ask(Request, Stage),
    Done(Result<Reply, Failure>),
}

/// Until when a query is read. One of a single key costs hardly more than to say that it is too late; so where the client
/// has said nothing, it is read whenever its turn comes, though the client be slow to take what is in front of it.
fn read_by_us(query: &Query, explicit: bool, deadline_us: u64) -> u64 {
    match query {
        Query::Get { .. } if !explicit => u64::MAX,
        _ => deadline_us,
    }
}

/// What is told of a read that came to its turn, or went on, behind its deadline.
fn too_late(counted: u64) -> Failure {
    let message = match counted {
        0 => "the deadline passed before it was read; allow more time, or ask for less at once"
            .to_string(),
        n => format!(
            "the deadline passed when {n} keys were counted; allow more time, or count a smaller range"
        ),
    };
    failure(Class::Unavailable, message)
}

/// Bytes of memory that a reply holds beside itself; in its byte form it has hardly more.
pub(super) fn memory_of(reply: &Reply) -> usize {
    match reply {
        Reply::Outcome(outcome) => outcome.memory(),
        Reply::Reply(KvReply::Value(found)) => found.as_ref().map_or(0, |found| found.value.len()),
        Reply::Reply(KvReply::Page(page)) => {
            let bytes = page.items.iter().map(|item| item.key.len() + item.value.len());
            size_of_val(&page.items[..]) + bytes.sum::<usize>()
        }
        Reply::Backup { manifest } => manifest.len(),
        Reply::Bytes(bytes) => bytes.len(),
        _ => 0,
    }
}

pub(super) fn command(command: &Command) -> Request {
    let mut bytes = Vec::new();
    encode_command(command, &mut bytes);
    Request::Write(Arc::from(bytes))
}

/// Whether a call waits for other threads of the node, as many others may do.
pub(super) fn waits_its_turn(call: &Call) -> bool {
    match call {
        Call::Query { consistency, .. } => *consistency == Consistency::Linearizable,
        Call::Write(_) | Call::OpenSession | Call::CloseSession { .. } => true,
        _ => false,
    }
}

/// Whether it is a write whose answer carries values.
pub(super) fn answers_with_values(call: &Call) -> bool {
    matches!(call, Call::Write(write) if write.ops.iter().any(|op| matches!(op, Op::Get { .. })))
}
