//! Clients that speak the text dialect: a person with telnet, or any Redis client.
//!
//! Commands of one connection take effect in their order. A turn is a run of neighbours of one kind:
//! neighbouring writes are submitted as one message, neighbouring reads share one read index.

use super::replies::{outcome_of, stopping};
use super::state::NodeState;
use super::turn::{Next, Turn};
use super::{Encode, OUT_BYTES_MAX, Progress, Step, Wait};
use crate::kv::{Found, Op, OpResult, Outcome, Query, Reply, Write};
use crate::node::{Answer, SnapshotSender};
use crate::wire::client::{Answer as Told, Call, Class, Consistency, Failure};
use crate::wire::handshake::tokens_equal;
use crate::wire::text::reply::{put_array, put_bulk, put_error, put_integer, put_nil, put_simple};
use crate::wire::text::{TextCommand, TextReader};
use std::sync::Arc;

/// Commands taken together: bounds the answers that are held before they are written.
const TOGETHER_MAX: usize = 1024;
/// Whoever does not show the token within so long is sent away; a person may type slowly.
const AUTH_TIMEOUT_US: u64 = 60_000_000;
/// Answers that may be written by whoever brings the last of them: a few lines, which fit any send
/// buffer of a client that reads.
const DIRECT_MAX: usize = 64;

/// Where a reply goes.
#[derive(Clone, Debug)]
pub(super) enum Mark {
    /// It is known already.
    Known(Vec<u8>),
    /// To a read or a write.
    Asked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Writes,
    Reads,
}

/// What follows a turn.
#[derive(Debug)]
enum More {
    /// Another one.
    Turn,
    /// More has to be read.
    Read,
    /// The end of the connection, with an error that is told.
    Close(Option<String>),
}

type Parsed = Result<TextCommand, String>;

#[derive(Debug)]
pub(super) struct Text {
    reader: TextReader,
    turn: Turn<Mark>,
    /// The turn is collected, and this follows it.
    more: Option<More>,
    /// The first command behind the turn.
    next: Option<Parsed>,
    authorised: bool,
    authorise_by_us: u64,
    /// A command was completed since the last read.
    fresh: bool,
}

impl Text {
    pub(super) fn new(first: &[u8], state: &NodeState, now_us: u64) -> Text {
        let mut reader = TextReader::new(state.limits.max_value_bytes);
        reader.feed(first);
        Text {
            reader,
            turn: Turn::new(SnapshotSender::new(state.reader.clone())),
            more: None,
            next: None,
            authorised: state.token.is_empty(),
            authorise_by_us: now_us + AUTH_TIMEOUT_US,
            fresh: false,
        }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.reader.feed(bytes);
    }

    pub(super) fn turn(&mut self) -> &mut Turn<Mark> {
        &mut self.turn
    }

    pub(super) fn next(
        &mut self,
        state: &Arc<NodeState>,
        out: &mut Vec<u8>,
        now_us: u64,
    ) -> Progress {
        if self.more.is_none() {
            self.more = Some(self.collect(state, now_us));
        }
        while out.len() <= OUT_BYTES_MAX {
            let direct = out.is_empty() && self.is_few_writes();
            match self.turn.next(state) {
                Next::Submit(requests) => {
                    let direct = direct.then(|| encode(state));
                    return Progress::Do(Step::Submit { requests, direct });
                }
                Next::Unreadable(e) => return Progress::Do(Step::Unreadable(e)),
                Next::Reply(Mark::Known(bytes), _) => out.extend_from_slice(&bytes),
                Next::Reply(Mark::Asked, result) => put_reply(out, result),
                Next::Over => return self.over(out),
            }
        }
        Progress::Flush
    }

    fn over(&mut self, out: &mut Vec<u8>) -> Progress {
        match self.more.take() {
            Some(More::Close(error)) => {
                if let Some(error) = error {
                    put_error(out, &error);
                }
                Progress::Close(None)
            }
            Some(More::Read) if !out.is_empty() => {
                self.more = Some(More::Read);
                Progress::Flush
            }
            Some(More::Read) => Progress::Wait(Wait::Request {
                begun: self.reader.begun(),
                fresh: std::mem::take(&mut self.fresh),
                memory: self.reader.memory(),
                by_us: (!self.authorised).then_some(self.authorise_by_us),
            }),
            Some(More::Turn) | None => Progress::Goes,
        }
    }

    /// Whether the turn consists of a few writes and nothing waits behind it.
    fn is_few_writes(&self) -> bool {
        let few = (1..=DIRECT_MAX).contains(&self.turn.len());
        few && matches!(self.more, Some(More::Read)) && self.turn.is_writes()
    }

    /// Collects the commands of a turn.
    fn collect(&mut self, state: &NodeState, now_us: u64) -> More {
        let mut kind = None;
        while self.turn.len() < TOGETHER_MAX {
            let command = match self.next.take() {
                Some(command) => command,
                None => match self.reader.next_command() {
                    Ok(Some(words)) => TextCommand::from_words(words),
                    Ok(None) => return More::Read,
                    Err(e) => return More::Close(Some(e.to_string())),
                },
            };
            self.fresh = true;
            let its = if self.authorised { kind_of(&command) } else { None };
            if kind.is_some() && its.is_some() && kind != its {
                self.next = Some(command);
                return More::Turn;
            }
            kind = kind.or(its);
            let mut known = Vec::new();
            match command {
                Ok(TextCommand::Quit) => {
                    put_simple(&mut known, "OK");
                    self.known(known);
                    return More::Close(None);
                }
                Ok(TextCommand::Auth { password }) => {
                    self.authorise(&password, state, &mut known);
                    self.known(known);
                }
                Ok(_) if !self.authorised => {
                    put_error(&mut known, "NOAUTH Authentication required.");
                    self.known(known);
                }
                Ok(TextCommand::Get { key }) => {
                    let query = Query::Get { key };
                    let consistency = Consistency::Linearizable;
                    self.call(Call::Query { query, consistency }, now_us);
                }
                Ok(TextCommand::Set { key, value }) => {
                    self.write(vec![Op::Put { key, value }], now_us);
                }
                Ok(TextCommand::Del { keys }) => {
                    self.write(keys.into_iter().map(|key| Op::Delete { key }).collect(), now_us);
                }
                other => {
                    put_simple_answer(other, &mut known);
                    self.known(known);
                }
            }
        }
        More::Turn
    }

    fn known(&mut self, bytes: Vec<u8>) {
        self.turn.reply(Mark::Known(bytes), Ok(Told::Ok));
    }

    fn write(&mut self, ops: Vec<Op>, now_us: u64) {
        self.call(Call::Write(Write { ops, ..Write::default() }), now_us);
    }

    fn call(&mut self, call: Call, now_us: u64) {
        self.turn.call(Mark::Asked, call, 0, now_us);
    }

    fn authorise(&mut self, password: &[u8], state: &NodeState, out: &mut Vec<u8>) {
        if state.token.is_empty() {
            put_error(out, "ERR this node asks for no token");
            return;
        }
        self.authorised = tokens_equal(password, &state.token);
        if self.authorised {
            put_simple(out, "OK");
        } else {
            put_error(out, "WRONGPASS invalid token");
        }
    }
}

fn kind_of(command: &Parsed) -> Option<Kind> {
    match command {
        Ok(TextCommand::Get { .. }) => Some(Kind::Reads),
        Ok(TextCommand::Set { .. } | TextCommand::Del { .. }) => Some(Kind::Writes),
        _ => None,
    }
}

/// Answers commands that need neither the log nor the store.
fn put_simple_answer(command: Parsed, out: &mut Vec<u8>) {
    match command {
        Err(text) => put_error(out, &text),
        Ok(TextCommand::Ping { message: None }) => put_simple(out, "PONG"),
        Ok(TextCommand::Ping { message: Some(text) } | TextCommand::Echo { message: text }) => {
            put_bulk(out, &text);
        }
        // What clients ask on their own when they connect; they live well with an empty answer.
        Ok(TextCommand::Command) => put_array(out, 0),
        Ok(_) => put_error(out, "ERR internal: unexpected command"),
    }
}

/// What becomes of the answers to a turn of writes.
fn encode(state: &Arc<NodeState>) -> Encode {
    let state = Arc::clone(state);
    Box::new(move |answers| {
        let mut out = Vec::new();
        for answer in answers {
            let result = match answer {
                Answer::Write(verdict) => outcome_of(&state, verdict).map(Told::Outcome),
                _ => Err(stopping()),
            };
            put_reply(&mut out, result);
        }
        out
    })
}

fn put_reply(out: &mut Vec<u8>, result: Result<Told, Failure>) {
    match result {
        Ok(Told::Outcome(Outcome::Done { results, .. })) => match results.first() {
            Some(OpResult::Deleted { .. }) => {
                let existed = |r: &&OpResult| matches!(r, OpResult::Deleted { existed: true });
                let removed = results.iter().filter(existed).count();
                put_integer(out, i64::try_from(removed).unwrap_or(i64::MAX));
            }
            _ => put_simple(out, "OK"),
        },
        Ok(Told::Outcome(outcome)) => put_error(out, &format!("ERR not done: {outcome:?}")),
        Ok(Told::Reply(Reply::Value(Some(Found { value, .. })))) => put_bulk(out, &value),
        Ok(_) => put_nil(out),
        Err(failure) => put_failure(out, &failure),
    }
}

/// The prefix tells a client library whether a retry is safe.
fn put_failure(out: &mut Vec<u8>, failure: &Failure) {
    let message = &failure.message;
    let text = match failure.class {
        Class::Busy => format!("TRYAGAIN {message}"),
        Class::Unavailable => format!("CLUSTERDOWN {message}"),
        Class::Unknown => format!("ERR UNKNOWN outcome: {message}"),
        Class::Unauthorised => format!("NOAUTH {message}"),
        // What Redis says when it takes nothing that needs more memory.
        Class::DiskFull => format!("OOM {message}"),
        Class::TooLarge | Class::Invalid => format!("ERR {message}"),
    };
    put_error(out, &text);
}
