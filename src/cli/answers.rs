//! What each command of the line client does, and how its answer is printed.
//!
//! Three forms: for people on a terminal, where bytes are escaped; for programs in a pipe, where
//! they are raw; and with `--json` one object a line. An error goes to standard error, or is an
//! object of its own among the answers.

use super::exit::Exit;
use super::help;
use super::json::Json;
use super::lines::LineCommand;
use super::words;
use crate::client::{Client, Error, Options};
use crate::kv::{Condition, Item, Op, OpResult, Outcome, Page, Range, Revision, Write as KvWrite};
use crate::wire::client::{Class, MemberInfo, NodeStatus};
use std::io::{self, Write};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

/// How long `status` waits for each member, all at once: who is well answers in a millisecond.
const STATUS_WAIT: Duration = Duration::from_secs(1);

/// A client and where its answers go.
pub(super) struct Shell<'a> {
    pub(super) client: Client,
    pub(super) options: Options,
    pub(super) json: bool,
    pub(super) output: &'a mut dyn Write,
    pub(super) errors: &'a mut dyn Write,
    pub(super) output_is_terminal: bool,
    pub(super) errors_is_terminal: bool,
}

/// A command that did not do what it was asked.
pub(super) struct Failed {
    pub(super) exit: Exit,
    pub(super) why: String,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        let why = match error.class {
            Class::Unknown => format!("outcome unknown: {error}"),
            _ => error.to_string(),
        };
        Failed { exit: exit_of(error.class), why }
    }
}

/// The exit code of a failure.
pub(super) fn exit_of(class: Class) -> Exit {
    match class {
        Class::Busy => Exit::Busy,
        Class::TooLarge => Exit::TooLarge,
        Class::Invalid => Exit::Usage,
        Class::Unavailable | Class::Damaged => Exit::Unavailable,
        Class::Unknown => Exit::Unknown,
        Class::Unauthorised => Exit::Unauthorised,
        Class::DiskFull => Exit::DiskFull,
    }
}

/// Revision and results of a write that was done.
pub(super) fn done(outcome: Outcome) -> Result<(Revision, Vec<OpResult>), Failed> {
    let failed = |exit, why: &str| Err(Failed { exit, why: why.to_owned() });
    match outcome {
        Outcome::Done { revision, results } => Ok((revision, results)),
        Outcome::ResultsForgotten { revision } => Ok((revision, Vec::new())),
        Outcome::ConditionFalse { found: None, .. } => {
            failed(Exit::ConditionFalse, "the condition does not hold: the key is absent")
        }
        Outcome::ConditionFalse { found: Some(revision), .. } => {
            let why = format!("the condition does not hold: the key has revision {revision}");
            failed(Exit::ConditionFalse, &why)
        }
        Outcome::NotANumber { .. } => {
            failed(Exit::ConditionFalse, "the value is not a whole number of 64 bits")
        }
        Outcome::Overflow { .. } => {
            failed(Exit::ConditionFalse, "the number would leave its 64 bits")
        }
        Outcome::ResultsTooLarge { .. } => {
            failed(Exit::TooLarge, "what was read is more than one answer may carry")
        }
        Outcome::SessionUnknown
        | Outcome::SequenceForgotten
        | Outcome::SessionOpened { .. }
        | Outcome::SessionClosed
        | Outcome::SessionReleased
        | Outcome::SessionsFull
        | Outcome::Malformed => failed(Exit::Unknown, "the answer does not belong to a write"),
    }
}

/// One member's row: what it said, or why it said nothing.
type StatusRow = (Option<MemberInfo>, String, Result<NodeStatus, Error>);

impl Shell<'_> {
    /// Does what a command says and prints the answer. An error is that of the output.
    pub(super) fn carry_out(
        &mut self,
        command: LineCommand,
        line: Option<u64>,
    ) -> io::Result<Exit> {
        let result = match command {
            LineCommand::Put { key, value, condition } => {
                let condition = condition.map(|test| Condition { key: key.clone(), test });
                self.put(condition, vec![Op::Put { key, value }])?
            }
            LineCommand::PutMany { pairs } => {
                let put = |(key, value)| Op::Put { key, value };
                self.put(None, pairs.into_iter().map(put).collect())?
            }
            LineCommand::Get { key } => self.get(&key)?,
            LineCommand::Delete { key } => self.delete(key)?,
            LineCommand::Increment { key, by } => self.increment(&key, by)?,
            LineCommand::Range(range) => self.range(range)?,
            LineCommand::Count(range) => self.count(range)?,
            LineCommand::Load { file } => self.load(&file)?,
            LineCommand::Dump { start, end } => self.dump(start, end)?,
            LineCommand::Status => self.status()?,
            LineCommand::Members => self.members()?,
            LineCommand::Transfer { to } => match self.client.transfer(to) {
                Ok(()) => Ok(self.say(b"OK", || Json::Object(vec![("ok", true.into())]))?),
                Err(error) => Err(error.into()),
            },
            LineCommand::Join { address } => match self.client.join(&address, 0) {
                Ok(joined) => Ok(self.changed(joined.id)?),
                Err(error) => Err(error.into()),
            },
            LineCommand::ChangeMembers(call) => match self.client.change_members(call) {
                Ok(id) => Ok(self.changed(id)?),
                Err(error) => Err(error.into()),
            },
            LineCommand::Compact => self.compact()?,
            LineCommand::Backup { file } => self.backup(&file)?,
            LineCommand::Ping => match self.client.ping() {
                Ok(()) => Ok(self.say(b"PONG", || Json::Object(vec![("ok", true.into())]))?),
                Err(error) => Err(error.into()),
            },
            LineCommand::Help => {
                self.output.write_all(help::commands().as_bytes())?;
                Ok(Exit::Done)
            }
            LineCommand::Quit => Ok(Exit::Done),
        };
        match result {
            Ok(exit) => Ok(exit),
            Err(failed) => self.fail(failed.exit, &failed.why, line),
        }
    }

    /// Prints an error.
    pub(super) fn fail(&mut self, exit: Exit, why: &str, line: Option<u64>) -> io::Result<Exit> {
        if self.json {
            let mut fields = vec![("error", why.into()), ("class", exit.class().into())];
            fields.extend(line.map(|line| ("line", line.into())));
            writeln!(self.output, "{}", Json::Object(fields))?;
            return Ok(exit);
        }
        // Answers and errors may go to the same place: they keep their order there.
        self.output.flush()?;
        let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        // Without standard error there is the exit code.
        let _ = writeln!(self.errors, "kontiki: {place}{why}");
        Ok(exit)
    }

    pub(super) fn say(&mut self, text: &[u8], json: impl FnOnce() -> Json) -> io::Result<Exit> {
        if self.json {
            writeln!(self.output, "{}", json())?;
        } else {
            self.output.write_all(text)?;
            self.output.write_all(b"\n")?;
        }
        Ok(Exit::Done)
    }

    /// Bytes as they are in a pipe, escaped on a terminal.
    fn shown(&self, bytes: &[u8]) -> Vec<u8> {
        if self.output_is_terminal { words::escape(bytes).into_bytes() } else { bytes.to_vec() }
    }

    fn put(
        &mut self,
        condition: Option<Condition>,
        ops: Vec<Op>,
    ) -> io::Result<Result<Exit, Failed>> {
        let conditions = condition.into_iter().collect();
        let outcome = self.client.write(KvWrite { stamp: None, conditions, ops });
        match outcome.map_err(Failed::from).and_then(done) {
            Ok((revision, _)) => {
                let json =
                    || Json::Object(vec![("ok", true.into()), ("revision", revision.into())]);
                self.say(format!("OK {revision}").as_bytes(), json).map(Ok)
            }
            Err(failed) => Ok(Err(failed)),
        }
    }

    fn get(&mut self, key: &[u8]) -> io::Result<Result<Exit, Failed>> {
        let found = match self.client.get(key) {
            Ok(found) => found,
            Err(error) => return Ok(Err(error.into())),
        };
        let json = || {
            let value = found.as_ref().map(|f| Json::bytes(&f.value));
            Json::Object(vec![
                ("key", Json::bytes(key)),
                ("value", value.unwrap_or(Json::Null)),
                ("revision", found.as_ref().map(|f| f.revision).into()),
            ])
        };
        let (text, exit) = match &found {
            Some(found) => (self.shown(&found.value), Exit::Done),
            None => (b"(nil)".to_vec(), Exit::Absent),
        };
        self.say(&text, json)?;
        Ok(Ok(exit))
    }

    fn delete(&mut self, key: Vec<u8>) -> io::Result<Result<Exit, Failed>> {
        let write = KvWrite { ops: vec![Op::Delete { key }], ..KvWrite::default() };
        match self.client.write(write).map_err(Failed::from).and_then(done) {
            Ok((revision, results)) => {
                let existed = results.first() != Some(&OpResult::Deleted { existed: false });
                let json = || {
                    Json::Object(vec![("deleted", existed.into()), ("revision", revision.into())])
                };
                let text = if existed { format!("OK {revision}") } else { "(nil)".to_owned() };
                self.say(text.as_bytes(), json)?;
                Ok(Ok(if existed { Exit::Done } else { Exit::Absent }))
            }
            Err(failed) => Ok(Err(failed)),
        }
    }

    fn increment(&mut self, key: &[u8], by: i64) -> io::Result<Result<Exit, Failed>> {
        let ops = vec![Op::Increment { key: key.to_vec(), by }];
        let outcome = self.client.write(KvWrite { ops, ..KvWrite::default() });
        match outcome.map_err(Failed::from).and_then(done) {
            Ok((revision, results)) => {
                let Some(OpResult::Number { value }) = results.first().cloned() else {
                    let why = format!("done at revision {revision}; the new number was not told");
                    return Ok(Err(Failed { exit: Exit::Unknown, why }));
                };
                let json = || {
                    Json::Object(vec![
                        ("key", Json::bytes(key)),
                        ("value", value.into()),
                        ("revision", revision.into()),
                    ])
                };
                self.say(value.to_string().as_bytes(), json).map(Ok)
            }
            Err(failed) => Ok(Err(failed)),
        }
    }

    fn range(&mut self, range: Range) -> io::Result<Result<Exit, Failed>> {
        let keys_only = range.keys_only;
        let page = match self.client.range(range) {
            Ok(page) => page,
            Err(error) => return Ok(Err(error.into())),
        };
        if self.json {
            writeln!(self.output, "{}", page_json(&page, keys_only))?;
            return Ok(Ok(Exit::Done));
        }
        for item in &page.items {
            self.output.write_all(&self.shown(&item.key))?;
            if !keys_only {
                self.output.write_all(b"\t")?;
                self.output.write_all(&self.shown(&item.value))?;
            }
            self.output.write_all(b"\n")?;
        }
        if let Some(cursor) = &page.cursor {
            // On a terminal it is quoted, to be pasted behind `after`.
            let quoted = words::quote(cursor).into_bytes();
            self.output.write_all(b"# cursor ")?;
            self.output.write_all(if self.output_is_terminal { &quoted } else { cursor })?;
            self.output.write_all(b"\n")?;
        }
        Ok(Ok(Exit::Done))
    }

    fn count(&mut self, range: Range) -> io::Result<Result<Exit, Failed>> {
        match self.client.range(range) {
            Ok(page) => {
                let json = || {
                    let revision = page.revision.into();
                    Json::Object(vec![("count", page.count.into()), ("revision", revision)])
                };
                self.say(page.count.to_string().as_bytes(), json).map(Ok)
            }
            Err(error) => Ok(Err(error.into())),
        }
    }

    /// The members are changed; this is the one it was about.
    fn changed(&mut self, id: u64) -> io::Result<Exit> {
        let json = || Json::Object(vec![("ok", true.into()), ("id", id.into())]);
        self.say(format!("OK {id}").as_bytes(), json)
    }

    fn members(&mut self) -> io::Result<Result<Exit, Failed>> {
        let members = match self.client.members() {
            Ok(members) => members,
            Err(error) => return Ok(Err(error.into())),
        };
        if self.json {
            let rows = members.iter().map(|m| Json::Object(member_json(m))).collect();
            writeln!(self.output, "{}", Json::Object(vec![("members", Json::Array(rows))]))?;
            return Ok(Ok(Exit::Done));
        }
        let mut rows = vec![];
        for m in &members {
            let voter = match m.replaces {
                Some(old) => format!("replaces {old}"),
                None if m.voter => "voter".to_owned(),
                None => "-".to_owned(),
            };
            let address = words::escape(m.address.as_bytes());
            let row = [&m.id.to_string(), &address, m.role.name(), &voter];
            rows.push(row.map(str::to_owned).to_vec());
        }
        self.table(&["id", "address", "role", "votes"], &[0], &rows)?;
        Ok(Ok(Exit::Done))
    }

    /// Asks each member itself: what one says of another may be long out of date.
    fn status(&mut self) -> io::Result<Result<Exit, Failed>> {
        let wait = self.options.timeout.min(STATUS_WAIT);
        let options = Options {
            timeout: wait,
            connect_timeout: self.options.connect_timeout.min(wait),
            only_asks: true,
            ..self.options.clone()
        };
        let known = self.client.known_addresses();
        let mut client = Client::new(&known, options);
        let members = match client.members() {
            Ok(members) => members,
            Err(error) if error.class == Class::Unauthorised => return Ok(Err(error.into())),
            // Nobody says who belongs to the cluster: the addresses that are known may still answer.
            Err(_) => Vec::new(),
        };
        let mut asked: Vec<(Option<MemberInfo>, String)> =
            members.into_iter().map(|m| (Some(m.clone()), m.address)).collect();
        if asked.is_empty() {
            asked = known.into_iter().map(|address| (None, address)).collect();
        }
        let client = &client;
        let rows: Vec<StatusRow> = std::thread::scope(|scope| {
            let ask = |(member, address): (Option<MemberInfo>, String)| {
                let of = address.clone();
                let ask = move || client.status(&of, wait);
                (member, address, std::thread::Builder::new().spawn_scoped(scope, ask))
            };
            let asking: Vec<_> = asked.into_iter().map(ask).collect();
            let answer =
                |(member, address, thread): (_, String, io::Result<ScopedJoinHandle<'_, _>>)| {
                    let result = thread.ok().and_then(|thread| thread.join().ok());
                    let result = result.unwrap_or_else(|| Err(Error::nobody(&address)));
                    (member, address, result)
                };
            asking.into_iter().map(answer).collect()
        });
        let reached = rows.iter().any(|(_, _, result)| result.is_ok());
        self.print_status(&rows)?;
        Ok(Ok(if reached { Exit::Done } else { Exit::Unavailable }))
    }

    fn print_status(&mut self, rows: &[StatusRow]) -> io::Result<()> {
        let commit = rows.iter().filter_map(|r| r.2.as_ref().ok()).map(|s| s.commit).max();
        let lag = |s: &NodeStatus| commit.unwrap_or(0).saturating_sub(s.applied);
        if self.json {
            let row = |(member, address, result): &StatusRow| {
                Json::Object(status_json(member.as_ref(), address, result, lag))
            };
            let rows = rows.iter().map(row).collect();
            return writeln!(self.output, "{}", Json::Object(vec![("members", Json::Array(rows))]));
        }
        let row = |(member, address, result): &StatusRow| -> Vec<String> {
            let address = words::escape(address.as_bytes());
            let unknown = || "-".to_owned();
            match result {
                Ok(s) => vec![
                    s.id.to_string(),
                    address,
                    s.role.name().to_owned(),
                    s.term.to_string(),
                    s.commit.to_string(),
                    s.applied.to_string(),
                    lag(s).to_string(),
                    s.log_bytes.to_string(),
                    words::escape(s.state.as_bytes()),
                ],
                Err(_) => {
                    let id = member.as_ref().map_or_else(unknown, |m| m.id.to_string());
                    let mut row = vec![id, address];
                    row.extend((0..6).map(|_| unknown()));
                    row.push("unreachable".to_owned());
                    row
                }
            }
        };
        let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
        let names =
            ["id", "address", "role", "term", "commit", "applied", "lag", "log bytes", "state"];
        self.table(&names, &[0, 3, 4, 5, 6, 7], &rows)
    }

    /// Rows in columns as wide as their widest cell, numbers to the right; names above them where a
    /// person reads.
    fn table(&mut self, names: &[&str], numbers: &[usize], rows: &[Vec<String>]) -> io::Result<()> {
        let mut lines: Vec<Vec<String>> = Vec::new();
        if self.output_is_terminal {
            lines.push(names.iter().map(|n| (*n).to_owned()).collect());
        }
        lines.extend(rows.iter().cloned());
        let width = |column: usize| {
            lines.iter().filter_map(|l| l.get(column)).map(|c| c.chars().count()).max()
        };
        let widths: Vec<usize> = (0..names.len()).map(|c| width(c).unwrap_or(0)).collect();
        for line in &lines {
            let mut text = String::new();
            for (column, cell) in line.iter().enumerate() {
                let width = widths.get(column).copied().unwrap_or(0);
                let gap = if column > 0 { "  " } else { "" };
                text += &if numbers.contains(&column) {
                    format!("{gap}{cell:>width$}")
                } else {
                    format!("{gap}{cell:<width$}")
                };
            }
            writeln!(self.output, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// One key as `--json` shows it.
pub(super) fn item_json(item: &Item, keys_only: bool) -> Json {
    let mut fields = vec![("key", Json::bytes(&item.key))];
    if !keys_only {
        fields.push(("value", Json::bytes(&item.value)));
    }
    fields.push(("revision", item.revision.into()));
    Json::Object(fields)
}

fn page_json(page: &Page, keys_only: bool) -> Json {
    let items = page.items.iter().map(|item| item_json(item, keys_only)).collect();
    let cursor = page.cursor.as_ref().map_or(Json::Null, |c| Json::bytes(c));
    Json::Object(vec![
        ("items", Json::Array(items)),
        ("count", page.count.into()),
        ("revision", page.revision.into()),
        ("cursor", cursor),
    ])
}

fn member_json(m: &MemberInfo) -> Vec<(&'static str, Json)> {
    let mut fields = vec![
        ("id", m.id.into()),
        ("address", m.address.as_str().into()),
        ("role", m.role.name().into()),
        ("voter", m.voter.into()),
    ];
    fields.extend(m.replaces.map(|old| ("replaces", old.into())));
    fields
}

fn status_json(
    member: Option<&MemberInfo>,
    address: &str,
    result: &Result<NodeStatus, Error>,
    lag: impl Fn(&NodeStatus) -> u64,
) -> Vec<(&'static str, Json)> {
    let voter = member.map_or(Json::Null, |m| m.voter.into());
    match result {
        Ok(s) => vec![
            ("id", s.id.into()),
            ("address", address.into()),
            ("role", s.role.name().into()),
            ("voter", voter),
            ("reachable", true.into()),
            ("leader", s.leader.into()),
            ("term", s.term.into()),
            ("commit", s.commit.into()),
            ("applied", s.applied.into()),
            ("lag", lag(s).into()),
            ("first_index", s.first_index.into()),
            ("last_index", s.last_index.into()),
            ("log_bytes", s.log_bytes.into()),
            ("connections", u64::from(s.connections).into()),
            ("version", s.version.as_str().into()),
            ("state", s.state.as_str().into()),
        ],
        Err(error) => vec![
            ("id", member.map(|m| m.id).into()),
            ("address", address.into()),
            ("voter", voter),
            ("reachable", false.into()),
            ("state", "unreachable".into()),
            ("error", error.to_string().into()),
        ],
    }
}
