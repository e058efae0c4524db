//! Connections that speak the text dialect: a person with telnet, or any Redis client.
//!
//! Commands of one connection take effect in their order. Those that arrive together are grouped:
//! neighbouring writes are submitted as one message, neighbouring reads share one read index.

use super::Shared;
use super::connection::{OUT_BYTES_MAX, Session, command_request};
use super::sockets::{ClientInput, NO_ROOM, read_by, write_patiently};
use crate::env::real::FAILED_WRITE_TAKES_NOTHING;
use crate::kv::{Command, Found, Op, OpResult, Outcome, Query, Reply, Write};
use crate::node::{Answer, Request, Verdict};
use crate::wire::client::{Class, Failure};
use crate::wire::handshake::tokens_equal;
use crate::wire::text::reply::{put_array, put_bulk, put_error, put_integer, put_nil, put_simple};
use crate::wire::text::{TextCommand, TextReader};
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Commands taken together: bounds the answers that are held before they are written.
const TOGETHER_MAX: usize = 1024;
/// Whoever does not show the token within so long is sent away; a person may type slowly.
const AUTH_TIMEOUT: Duration = Duration::from_secs(60);
const READ_BYTES: usize = 16 << 10;
/// Answers that may be written by whoever brings the last of them: a few lines, which fit any send
/// buffer of a client that reads.
const DIRECT_MAX: usize = 64;

pub(crate) fn serve(stream: TcpStream, first: &[u8], shared: &Arc<Shared>) -> io::Result<()> {
    let until = Instant::now() + AUTH_TIMEOUT;
    let stream = Arc::new(stream);
    let mut reader = TextReader::new(shared.limits.max_value_bytes);
    let mut client = Client {
        session: Session::new(Arc::clone(shared)),
        stream: Arc::clone(&stream),
        authorised: shared.token.is_empty(),
        group: Group::default(),
        out: Vec::new(),
    };
    let mut input = ClientInput::new(&shared.partial);
    // A command was completed since the last read.
    let mut fresh = false;
    let mut buffer = vec![0; READ_BYTES];
    reader.feed(first);
    loop {
        let (commands, more) = take(&mut reader);
        fresh |= !commands.is_empty();
        // Commands of one connection take effect in their order.
        client.session.settle();
        let open = client.execute(commands, matches!(more, More::AfterRead))?;
        match more {
            More::Now if open => {}
            More::AfterRead if open => {
                client.flush()?;
                if !input.holds(reader.begun(), std::mem::take(&mut fresh), reader.memory()) {
                    client.session.settle();
                    put_error(&mut client.out, &format!("ERR {NO_ROOM}"));
                    return client.flush();
                }
                let n = match client.authorised {
                    true => input.read(&stream, &mut buffer)?,
                    false => read_by(&stream, &mut buffer, until)?,
                };
                if n == 0 {
                    return Ok(());
                }
                reader.feed(&buffer[..n]);
            }
            More::Never(error) if open => {
                put_error(&mut client.out, &error);
                return client.flush();
            }
            _ => return client.flush(),
        }
    }
}

enum More {
    Now,
    AfterRead,
    Never(String),
}

type Parsed = Result<TextCommand, String>;

fn take(reader: &mut TextReader) -> (Vec<Parsed>, More) {
    let mut commands = Vec::new();
    while commands.len() < TOGETHER_MAX {
        match reader.next_command() {
            Ok(Some(words)) => commands.push(TextCommand::from_words(words)),
            Ok(None) => return (commands, More::AfterRead),
            Err(e) => return (commands, More::Never(e.to_string())),
        }
    }
    (commands, More::Now)
}

/// One connection.
struct Client {
    session: Session,
    stream: Arc<TcpStream>,
    authorised: bool,
    group: Group,
    /// Answers that are not written yet.
    out: Vec<u8>,
}

impl Client {
    fn flush(&mut self) -> io::Result<()> {
        write_patiently(&self.stream, &self.out)?;
        self.out.clear();
        self.out.shrink_to(OUT_BYTES_MAX);
        Ok(())
    }

    /// Executes commands in order; false when the connection is to be closed. When the last of
    /// them are a few writes and nothing else waits to be written (`last`), their answers go out
    /// without this thread.
    fn execute(&mut self, commands: Vec<Parsed>, last: bool) -> io::Result<bool> {
        for command in commands {
            if self.out.len() > OUT_BYTES_MAX {
                self.flush()?;
            }
            match command {
                Ok(TextCommand::Quit) => {
                    self.finish()?;
                    put_simple(&mut self.out, "OK");
                    return Ok(false);
                }
                Ok(TextCommand::Auth { password }) => {
                    self.finish()?;
                    self.authorise(&password);
                }
                Ok(_) if !self.authorised => {
                    put_error(&mut self.out, "NOAUTH Authentication required.");
                }
                Ok(TextCommand::Get { key }) => {
                    self.be(Kind::Reads)?;
                    self.group.reads.push(key);
                }
                Ok(TextCommand::Set { key, value }) => self.write(vec![Op::Put { key, value }])?,
                Ok(TextCommand::Del { keys }) => {
                    self.write(keys.into_iter().map(|key| Op::Delete { key }).collect())?;
                }
                other => {
                    self.finish()?;
                    simple(other, &mut self.out);
                }
            }
        }
        // Only where whoever answers can see at once that a client does not take it.
        let direct = last && FAILED_WRITE_TAKES_NOTHING;
        let few = (1..=DIRECT_MAX).contains(&self.group.writes.len());
        if direct && few && self.out.is_empty() {
            let writes = std::mem::take(&mut self.group).writes;
            let shared = Arc::clone(&self.session.shared);
            let encode = move |answers: Vec<Answer>| {
                let mut out = Vec::new();
                for answer in answers {
                    put_write_answer(&shared, Some(answer), &mut out);
                }
                out
            };
            self.session.call_direct(writes, &self.stream, Box::new(encode));
        } else {
            self.finish()?;
        }
        Ok(true)
    }

    fn authorise(&mut self, password: &[u8]) {
        let token = &self.session.shared.token;
        if token.is_empty() {
            put_error(&mut self.out, "ERR this node asks for no token");
        } else {
            self.authorised = tokens_equal(password, token);
            if self.authorised {
                put_simple(&mut self.out, "OK");
            } else {
                put_error(&mut self.out, "WRONGPASS invalid token");
            }
        }
    }

    fn be(&mut self, kind: Kind) -> io::Result<()> {
        if self.group.kind != Some(kind) {
            self.finish()?;
            self.group.kind = Some(kind);
        }
        Ok(())
    }

    fn write(&mut self, ops: Vec<Op>) -> io::Result<()> {
        self.be(Kind::Writes)?;
        let request = command_request(&Command::Write(Write { ops, ..Write::default() }));
        self.group.writes.push((self.session.deadline_us(0), request));
        Ok(())
    }

    /// Does what is grouped, and waits for it.
    fn finish(&mut self) -> io::Result<()> {
        let group = std::mem::take(&mut self.group);
        match group.kind {
            Some(Kind::Writes) => self.finish_writes(group.writes),
            Some(Kind::Reads) => self.finish_reads(group.reads)?,
            None => {}
        }
        Ok(())
    }

    fn finish_writes(&mut self, writes: Vec<(u64, Request)>) {
        let count = writes.len();
        let mut answers = self.session.call(writes).into_iter();
        for _ in 0..count {
            put_write_answer(&self.session.shared, answers.next(), &mut self.out);
        }
    }

    fn finish_reads(&mut self, keys: Vec<Vec<u8>>) -> io::Result<()> {
        let request = (self.session.deadline_us(0), Request::Read);
        let refused = match self.session.call(vec![request]).pop() {
            Some(Answer::Read(Ok(()))) => None,
            Some(Answer::Read(Err(refusal))) => Some(self.session.shared.refused(refusal)),
            _ => Some(unexpected()),
        };
        for key in keys {
            let reply = match &refused {
                Some(failure) => Err(failure.clone()),
                None => self.session.query(&Query::Get { key }),
            };
            match reply {
                Ok(Reply::Value(Some(Found { value, .. }))) => put_bulk(&mut self.out, &value),
                Ok(_) => put_nil(&mut self.out),
                Err(failure) => put_failure(&mut self.out, &failure),
            }
            // The store is read when the answer's turn comes, so that values are not piled up.
            if self.out.len() > OUT_BYTES_MAX {
                self.flush()?;
            }
        }
        Ok(())
    }
}

/// Commands that need neither the log nor the store.
fn simple(command: Parsed, out: &mut Vec<u8>) {
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Writes,
    Reads,
}

/// Neighbouring commands of one kind.
#[derive(Default)]
struct Group {
    kind: Option<Kind>,
    writes: Vec<(u64, Request)>,
    reads: Vec<Vec<u8>>,
}

fn unexpected() -> Failure {
    super::connection::failure(Class::Unknown, "the node is stopping".to_string())
}

fn put_write_answer(shared: &Shared, answer: Option<Answer>, out: &mut Vec<u8>) {
    match answer {
        Some(Answer::Write(Verdict::Applied(Outcome::Done { results, .. }))) => {
            let removed =
                results.iter().filter(|r| matches!(r, OpResult::Deleted { existed: true })).count();
            match results.first() {
                Some(OpResult::Deleted { .. }) => {
                    put_integer(out, i64::try_from(removed).unwrap_or(i64::MAX));
                }
                _ => put_simple(out, "OK"),
            }
        }
        Some(Answer::Write(Verdict::Applied(outcome))) => {
            put_error(out, &format!("ERR not done: {outcome:?}"));
        }
        Some(Answer::Write(Verdict::NotApplied(refusal))) => {
            put_failure(out, &shared.refused(refusal));
        }
        Some(Answer::Write(Verdict::Unknown(why))) => {
            put_failure(out, &super::connection::failure(Class::Unknown, why.to_string()));
        }
        _ => put_failure(out, &unexpected()),
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
