//! Clients that speak the text dialect: a person with telnet, or any Redis client.
//!
//! Commands of one connection take effect in their order. A turn is a run of neighbours of one kind:
//! neighbouring reads share one read index; neighbouring writes are one atomic write. (Several writes
//! under way together have no order: one that a leader has given back may be overtaken by the next.)

use super::load::Charge;
use super::replies::{outcome_of, stopping};
use super::state::{NodeState, failure};
use super::turn::{Next, Turn};
use super::{Encode, Progress, Step, Wait, make_room};
use crate::kv::limits::{OP_OVERHEAD_BYTES, WRITE_OVERHEAD_BYTES, op_bytes};
use crate::kv::{Found, Limits, Op, OpResult, Outcome, Query, Reply, Write};
use crate::node::Answer;
use crate::wire::client::{Answer as Told, Call, Class, Consistency, Failure};
use crate::wire::proof::is_token;
use crate::wire::sniff::is_method;
use crate::wire::text::reply::{put_array, put_bulk, put_error, put_integer, put_nil, put_simple};
use crate::wire::text::{TextCommand, TextReader};
use std::sync::Arc;

/// Commands taken together: bounds the answers that are held before they are written.
const TOGETHER_MAX: usize = 1024;
/// Whoever does not show the token within so long is sent away; a person may type slowly.
const AUTH_TIMEOUT_US: u64 = 60_000_000;
/// Commands whose answers may be written by whoever brings them: a few lines, which fit any send buffer of a
/// client that reads.
const DIRECT_MAX: usize = 64;
/// Neighbouring writes are one up to this size: little beside what any node's flags let in.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Where a reply goes.
#[derive(Clone, Debug)]
pub(super) enum Mark {
    /// It is known already.
    Known(Vec<u8>),
    /// To a read.
    Read,
    /// To a write of several commands: how many operations each has.
    Writes(Vec<usize>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reads,
    Sets,
    /// Also taken when the disk is full.
    Deletes,
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

/// A connection that has shown a wrong token is answered after so long: who tries tokens needs a connection for
/// each attempt a second, and these are bounded.
const AUTH_PAUSE_US: u64 = 1_000_000;
/// Wrong tokens of one connection: it may have left long ago, and each one behind the other holds its thread for
/// that pause.
const WRONG_TOKENS_MAX: u32 = 5;

/// What is said before the connection closes.
const NOT_HTTP: &str = "ERR that is HTTP and no command; this connection closes";
const TOO_MANY: &str = "ERR too many wrong tokens; this connection closes";

type Parsed = Result<TextCommand, String>;

#[derive(Debug)]
pub(super) struct Text {
    reader: TextReader,
    turn: Turn<Mark>,
    /// The turn is collected, and this follows it.
    more: Option<More>,
    /// The first command behind the turn.
    next: Option<Parsed>,
    /// The write that is being collected, its size, and the operations of each command.
    write: (Write, usize, Vec<usize>),
    authorised: bool,
    authorise_by_us: u64,
    /// A wrong token was shown just now.
    rests: bool,
    /// As many were before, and it.
    wrong: u32,
    /// A command was completed since the last read.
    fresh: bool,
    /// One was completed before.
    served: bool,
}

impl Text {
    pub(super) fn new(first: &[u8], state: &NodeState, now_us: u64) -> Text {
        let mut reader = TextReader::new(state.limits.max_value_bytes);
        reader.set_trusted(state.token.is_empty());
        reader.feed(first);
        Text {
            reader,
            turn: Turn::new(state),
            more: None,
            next: None,
            write: Default::default(),
            authorised: state.token.is_empty(),
            authorise_by_us: now_us + AUTH_TIMEOUT_US,
            rests: false,
            wrong: 0,
            fresh: false,
            served: false,
        }
    }

    /// Whether it has shown the token, where one is asked for.
    pub(super) fn is_authorised(&self) -> bool {
        self.authorised
    }

    /// Whether a command was answered.
    pub(super) fn was_served(&self) -> bool {
        self.served
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
            self.close_write(now_us);
            if std::mem::take(&mut self.rests) {
                let why = "a wrong token in AUTH".to_string();
                return Progress::Do(Step::Rest { us: AUTH_PAUSE_US, why });
            }
        }
        loop {
            let direct = if out.is_empty() { self.few_writes() } else { None };
            match self.turn.next(state, out.len(), now_us) {
                Next::Submit(requests) => {
                    let direct =
                        direct.map(|counts| encode(state, counts, self.turn.charge().hand_over()));
                    return Progress::Do(Step::Submit { requests, direct });
                }
                Next::Flush => return Progress::Flush,
                Next::Check => return Progress::Do(Step::Check),
                Next::Unreadable(e) => return Progress::Do(Step::Unreadable(e)),
                Next::Reply(Mark::Known(bytes), _) => out.extend_from_slice(&bytes),
                Next::Reply(Mark::Read, result) => put_value(out, result),
                Next::Reply(Mark::Writes(counts), result) => put_results(out, &counts, result),
                Next::Over => return self.over(out),
            }
        }
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

    /// The commands, if the turn is a write of a few and nothing waits behind it.
    fn few_writes(&self) -> Option<Vec<usize>> {
        match (&self.more, self.turn.only()) {
            (Some(More::Read), Some(Mark::Writes(counts))) if counts.len() <= DIRECT_MAX => {
                Some(counts.clone())
            }
            _ => None,
        }
    }

    /// Collects the commands of a turn.
    fn collect(&mut self, state: &NodeState, now_us: u64) -> More {
        let mut kind = None;
        while self.turn.len() + self.write.2.len() < TOGETHER_MAX {
            let command = match self.next.take() {
                Some(command) => command,
                None => match self.reader.next_command() {
                    Ok(Some(words)) if is_http(&words) => {
                        return More::Close(Some(NOT_HTTP.to_string()));
                    }
                    Ok(Some(words)) => TextCommand::from_words(words),
                    Ok(None) => return More::Read,
                    Err(e) => return More::Close(Some(e.to_string())),
                },
            };
            (self.fresh, self.served) = (true, true);
            let its = if self.authorised { kind_of(&command) } else { None };
            let another = kind.is_some() && its.is_some() && kind != its;
            if another || !self.has_room(&command, state) {
                self.next = Some(command);
                return More::Turn;
            }
            kind = kind.or(its);
            let mut known = Vec::new();
            match command {
                Ok(TextCommand::Quit) => {
                    put_simple(&mut known, "OK");
                    self.known(known, now_us);
                    return More::Close(None);
                }
                Ok(TextCommand::Auth { password }) => {
                    self.authorise(&password, state, &mut known);
                    self.known(known, now_us);
                    // What is behind a wrong one is looked at after the pause.
                    if self.rests {
                        if self.wrong >= WRONG_TOKENS_MAX {
                            return More::Close(Some(TOO_MANY.to_string()));
                        }
                        return More::Turn;
                    }
                }
                Ok(_) if !self.authorised => {
                    put_error(&mut known, "NOAUTH Authentication required.");
                    self.known(known, now_us);
                }
                Ok(TextCommand::Get { key }) => {
                    if self.is_refused(now_us) {
                        continue;
                    }
                    let query = Query::Get { key };
                    let consistency = Consistency::Linearizable;
                    self.turn.call(Mark::Read, Call::Query { query, consistency }, 0, now_us);
                }
                Ok(TextCommand::Set { key, value }) => {
                    self.write(vec![Op::Put { key, value }], state, now_us);
                }
                Ok(TextCommand::Del { keys }) => {
                    let ops = keys.into_iter().map(|key| Op::Delete { key }).collect();
                    self.write(ops, state, now_us);
                }
                other => {
                    put_simple_answer(other, &mut known);
                    self.known(known, now_us);
                }
            }
        }
        More::Turn
    }

    /// Whether a command, if it writes, may be part of this turn's write: one that is closed, or as large as
    /// it may be, is followed by another turn.
    fn has_room(&self, command: &Parsed, state: &NodeState) -> bool {
        let (bytes, ops) = match command {
            Ok(TextCommand::Set { key, value }) => (key.len() + value.len() + OP_OVERHEAD_BYTES, 1),
            Ok(TextCommand::Del { keys }) => {
                (keys.iter().map(|key| key.len() + OP_OVERHEAD_BYTES).sum(), keys.len())
            }
            _ => return true,
        };
        let Limits { max_batch_bytes, max_batch_ops, .. } = state.limits;
        let (write, held, counts) = &self.write;
        let fits = counts.is_empty()
            || held + bytes <= WRITE_BYTES_MAX.min(max_batch_bytes - WRITE_OVERHEAD_BYTES)
                && write.ops.len() + ops <= max_batch_ops;
        fits && (self.turn.len() == 0 || !self.authorised)
    }

    /// A reply that needs nobody.
    fn known(&mut self, bytes: Vec<u8>, now_us: u64) {
        self.close_write(now_us);
        self.turn.reply(Mark::Known(bytes), Ok(Told::Ok));
    }

    /// Whether too much is under way for one more command, which is told so.
    fn is_refused(&mut self, now_us: u64) -> bool {
        let Err(why) = self.turn.charge().take(now_us) else { return false };
        let mut refused = Vec::new();
        put_failure(&mut refused, &failure(Class::Busy, why));
        self.known(refused, now_us);
        true
    }

    /// Adds a command to the write of this turn. One that no node would take is refused by itself.
    fn write(&mut self, ops: Vec<Op>, state: &NodeState, now_us: u64) {
        if let Some(why) = ops.iter().find_map(|op| state.limits.check_op(op).err()) {
            let mut refused = Vec::new();
            put_error(&mut refused, &format!("ERR {why}"));
            return self.known(refused, now_us);
        }
        if self.is_refused(now_us) {
            return;
        }
        let (write, bytes, counts) = &mut self.write;
        *bytes += ops.iter().map(op_bytes).sum::<usize>();
        counts.push(ops.len());
        write.ops.extend(ops);
    }

    /// The write of this turn is complete.
    fn close_write(&mut self, now_us: u64) {
        let (write, _, counts) = std::mem::take(&mut self.write);
        if !counts.is_empty() {
            self.turn.call(Mark::Writes(counts), Call::Write(write), 0, now_us);
        }
    }

    fn authorise(&mut self, password: &[u8], state: &NodeState, out: &mut Vec<u8>) {
        if state.token.is_empty() {
            put_error(out, "ERR this node asks for no token");
            return;
        }
        self.authorised = is_token(password, &state.token);
        self.reader.set_trusted(self.authorised);
        if self.authorised {
            put_simple(out, "OK");
        } else {
            self.rests = true;
            self.wrong += 1;
            put_error(out, "WRONGPASS invalid token");
        }
    }
}

/// Whether words are the beginning of an HTTP request: behind whatever came first, what follows is not for
/// us, and may be what a page made a browser send.
fn is_http(words: &[Vec<u8>]) -> bool {
    words.first().is_some_and(|name| is_method(name) || name.eq_ignore_ascii_case(b"host:"))
}

fn kind_of(command: &Parsed) -> Option<Kind> {
    match command {
        Ok(TextCommand::Get { .. }) => Some(Kind::Reads),
        Ok(TextCommand::Set { .. }) => Some(Kind::Sets),
        Ok(TextCommand::Del { .. }) => Some(Kind::Deletes),
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

/// What becomes of the answer to a write of several commands.
fn encode(state: &Arc<NodeState>, counts: Vec<usize>, mut charge: Charge) -> Encode {
    let state = Arc::clone(state);
    Box::new(move |mut answers| {
        let result = match answers.pop() {
            Some(Answer::Write(verdict)) => outcome_of(&state, verdict).map(Told::Outcome),
            _ => Err(stopping()),
        };
        let mut out = Vec::new();
        put_results(&mut out, &counts, result);
        charge.settle();
        out
    })
}

/// Answers each command of a write.
fn put_results(out: &mut Vec<u8>, counts: &[usize], result: Result<Told, Failure>) {
    let results = match result {
        Ok(Told::Outcome(Outcome::Done { results, .. })) => results,
        other => {
            for _ in counts {
                match &other {
                    Err(failure) => put_failure(out, failure),
                    Ok(told) => put_error(out, &format!("ERR not done: {told:?}")),
                }
            }
            return;
        }
    };
    let mut results = results.into_iter();
    for &count in counts {
        let own: Vec<OpResult> = results.by_ref().take(count).collect();
        match own.first() {
            Some(OpResult::Deleted { .. }) => {
                let existed = |r: &&OpResult| matches!(r, OpResult::Deleted { existed: true });
                let removed = own.iter().filter(existed).count();
                put_integer(out, i64::try_from(removed).unwrap_or(i64::MAX));
            }
            _ => put_simple(out, "OK"),
        }
    }
}

fn put_value(out: &mut Vec<u8>, result: Result<Told, Failure>) {
    match result {
        Ok(Told::Reply(Reply::Value(Some(Found { value, .. })))) => {
            make_room(out, value.len());
            put_bulk(out, &value);
        }
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
        Class::Damaged => format!("DAMAGED {message}"),
        Class::TooLarge | Class::Invalid => format!("ERR {message}"),
    };
    put_error(out, &text);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Driver, Stopped, state_with_token};

    /// A client sends a hundred guesses and leaves. Each costs a second of the thread that serves it, which cannot see
    /// that nobody is there: after five it ends.
    #[test]
    fn guesses_of_one_connection_are_few() {
        let mut guesser = Driver::new(state_with_token(b"secret"), false);
        assert_eq!(guesser.send(&b"AUTH x\r\n".repeat(100)), Stopped::Closed(None));
        let text = guesser.text();
        assert_eq!((guesser.rested_us, text.matches("WRONGPASS").count()), (5_000_000, 5));
        assert!(text.ends_with("-ERR too many wrong tokens; this connection closes\r\n"), "{text}");
    }
}
