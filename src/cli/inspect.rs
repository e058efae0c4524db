//! `kontiki inspect`: looks through the data directory of a node that does not run.
//!
//! All looking is done by the components (`node::verify`, `wal::inspect`, `kv::store_inspect`); here
//! their findings become lines or one JSON object. The directory's lock is held meanwhile, as a node
//! holds it, and every file is opened for reading only, but by `recover`. What may be long, such as the entries of a
//! log, is printed as it is found and never collected.

use super::exit::Exit;
use super::inspect_words::{
    bytes_of, configuration_json, configuration_text, content, findings_json, key_json, key_text,
    kind_of, table,
};
use super::json::Json;
use super::progress::Progress;
use super::recover::{CONSENT, recover};
use super::salvage::dump;
use super::{help, nearest};
use crate::env::real::{LOCK_FILE, RealDisk};
use crate::env::{DirLock, Disk, Findings};
use crate::kv::machine::{CONFIGURATION_KEY, TERM_KEY};
use crate::kv::store_inspect::Inspection as StoreSeen;
use crate::kv::{self, LsmView, STORE_DIR, Space, StoreError, View};
use crate::node::{Report, check_identity, verify};
use crate::raft::codec;
use crate::wal::inspect::{FileState, Inspection as LogSeen, Placed, inspect as inspect_log};
use crate::wal::{Identity, IdentityCopy, LOG_DIR, holds_log};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const SUBJECTS: [&str; 6] = ["verify", "wal", "store", "identity", "dump", "recover"];
const FLAGS: [&str; 5] = ["--json", "--entries", "--old", CONSENT, "--help"];

/// What was asked.
struct Asked {
    subject: &'static str,
    data: PathBuf,
    json: bool,
    entries: bool,
    consent: bool,
    old: bool,
}

/// How an inspection failed to begin, or to be printed.
pub(super) enum Failed {
    /// With an exit code and a line that says why.
    Told(Exit, String),
    /// The output is gone.
    Output,
}

impl From<io::Error> for Failed {
    fn from(_: io::Error) -> Failed {
        Failed::Output
    }
}

/// Runs the subcommand.
pub fn run(args: &[OsString], output: &mut dyn Write, errors: &mut dyn Write) -> Exit {
    let json = args.iter().any(|word| word == "--json");
    let done = parse(args).and_then(|asked| match asked {
        Some(asked) => look(&asked, output, errors),
        None => {
            output.write_all(help::help(Some("inspect")).unwrap_or_default().as_bytes())?;
            Ok(Exit::Done)
        }
    });
    let exit = match done {
        Ok(exit) => exit,
        Err(Failed::Output) => Exit::Unavailable,
        Err(Failed::Told(exit, why)) => {
            // Without an output there is the exit code.
            let _ = if json {
                let class = exit.class().into();
                let object = Json::Object(vec![("error", why.into()), ("class", class)]);
                writeln!(output, "{object}")
            } else {
                writeln!(errors, "kontiki inspect: {why}")
            };
            exit
        }
    };
    if output.flush().is_err() { Exit::Unavailable } else { exit }
}

/// By hand, since a path need not be text; none for a call for help.
fn parse(args: &[OsString]) -> Result<Option<Asked>, Failed> {
    let usage = |why: String| Failed::Told(Exit::Usage, format!("{why}; see kontiki help inspect"));
    let mut words = Vec::new();
    let (mut json, mut entries, mut consent, mut old) = (false, false, false, false);
    for word in args {
        match word.to_string_lossy().as_ref() {
            "--json" => json = true,
            "--entries" => entries = true,
            "--old" => old = true,
            CONSENT => consent = true,
            "--help" | "-h" => return Ok(None),
            flag if flag.starts_with('-') && flag.len() > 1 => {
                return Err(usage(match nearest(flag, FLAGS) {
                    Some(name) => format!("flag {flag} is unknown; did you mean {name}?"),
                    None => format!("flag {flag} is unknown"),
                }));
            }
            _ => words.push(word),
        }
    }
    let [subject, data] = words[..] else {
        return Err(usage("what to look at and one directory are needed".into()));
    };
    let subject = subject.to_string_lossy();
    let Some(subject) = SUBJECTS.into_iter().find(|name| *name == subject) else {
        return Err(usage(match nearest(&subject, SUBJECTS) {
            Some(name) => format!("'{subject}' is unknown; did you mean {name}?"),
            None => format!("'{subject}' is unknown"),
        }));
    };
    if entries && subject != "wal" {
        return Err(usage("flag --entries belongs to wal".into()));
    }
    if old && subject != "dump" {
        return Err(usage("flag --old belongs to dump".into()));
    }
    if json && subject == "dump" {
        return Err(usage(
            "flag --json does not belong to dump, which writes lines for load".into(),
        ));
    }
    if consent && subject != "recover" {
        return Err(usage(format!("flag {CONSENT} belongs to recover")));
    }
    Ok(Some(Asked { subject, data: PathBuf::from(data), json, entries, consent, old }))
}

fn look(asked: &Asked, output: &mut dyn Write, errors: &mut dyn Write) -> Result<Exit, Failed> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::default());
    let _lock = enter(disk.as_ref(), &asked.data)?;
    let mut out = Out { asked, output };
    match asked.subject {
        "verify" => {
            let mut progress = Progress::on_stderr("tables", None, 0);
            let begun = Instant::now();
            let now_us = || u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            let mut last = (0, 0);
            let report = verify(&disk, &asked.data, &mut |tables, bytes| {
                last = (tables, bytes);
                if let Some(line) = progress.update(now_us(), tables, bytes) {
                    // The display is a courtesy.
                    let _ = write!(errors, "{line}");
                }
            });
            if let Some(line) = progress.finish(now_us(), last.0, last.1) {
                let _ = write!(errors, "{line}");
            }
            out.verified(&report)
        }
        "wal" => out.log(&disk),
        "store" => out.store(&disk),
        "dump" => dump(&disk, &asked.data, asked.old, out.output, errors),
        "recover" => recover(&disk, &asked.data, asked.consent, asked.json, out.output),
        _ => out.identity(disk.as_ref()),
    }
}

/// Makes sure that this is a data directory and that no node runs there. No lock is needed, nor to
/// be had, where nobody can write.
fn enter(disk: &dyn Disk, data: &Path) -> Result<Option<DirLock>, Failed> {
    let shown = data.display();
    let told = |exit, why: String| Err(Failed::Told(exit, why));
    let names = match disk.list(data) {
        Ok(names) => names,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return told(Exit::Usage, format!("there is no directory {shown}"));
        }
        Err(e) => return told(Exit::Unavailable, format!("cannot read directory {shown}: {e}")),
    };
    let identity = names.iter().any(|name| name.starts_with("identity-"));
    let store = disk.list(&data.join(STORE_DIR)).is_ok_and(|names| !names.is_empty());
    let log = match holds_log(disk, data) {
        Ok(log) => log,
        Err(e) => return told(Exit::Unavailable, e.to_string()),
    };
    if !identity && !store && !log {
        let why = format!("{shown} is no data directory: it has no identity, no log and no store");
        return told(Exit::Usage, why);
    }
    match disk.lock(data) {
        Ok(lock) => Ok(Some(lock)),
        Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => told(
            Exit::Unavailable,
            format!("data directory {shown} is in use by another process; stop the node first"),
        ),
        Err(e) => {
            let lock = data.join(LOCK_FILE);
            told(Exit::Unavailable, format!("cannot lock {}: {e}", lock.display()))
        }
    }
}

/// Prints what was found.
struct Out<'a> {
    asked: &'a Asked,
    output: &'a mut dyn Write,
}

impl Out<'_> {
    /// Ends an answer: the findings as lines, or everything as an object. Gives the exit code.
    fn end(
        &mut self,
        mut fields: Vec<(&'static str, Json)>,
        findings: &Findings,
    ) -> Result<Exit, Failed> {
        if self.asked.json {
            fields.extend(findings_json(findings));
            writeln!(self.output, "{}", Json::Object(fields))?;
        } else {
            self.findings(findings)?;
        }
        Ok(exit_of(findings))
    }

    /// One line each.
    fn findings(&mut self, findings: &Findings) -> Result<(), Failed> {
        for problem in &findings.problems {
            writeln!(self.output, "problem: {problem}")?;
        }
        for note in &findings.notes {
            writeln!(self.output, "note: {note}")?;
        }
        for (count, what) in
            [(findings.problems_left_out, "problems"), (findings.notes_left_out, "notes")]
        {
            if count > 0 {
                writeln!(self.output, "and {count} more {what}")?;
            }
        }
        Ok(())
    }

    fn verified(&mut self, report: &Report) -> Result<Exit, Failed> {
        let Report { findings, totals } = report;
        let store = &totals.store;
        if self.asked.json {
            let fields = vec![
                ("sound", report.is_sound().into()),
                ("segments", totals.segments.into()),
                ("batches", totals.batches.into()),
                ("log_entries", totals.log_entries.into()),
                ("log_bytes", totals.log_bytes.into()),
                ("first_index", totals.log_range.map(|range| range.0).into()),
                ("last_index", totals.log_range.map(|range| range.1).into()),
                ("tables", store.tables.into()),
                ("blocks", store.blocks.into()),
                ("store_entries", store.entries.into()),
                ("tombstones", store.tombstones.into()),
                ("store_bytes", store.bytes.into()),
                ("applied", totals.applied.into()),
                ("sessions", totals.sessions.into()),
            ];
            return self.end(fields, findings);
        }
        self.findings(findings)?;
        let verdict = match (findings.problem_count(), findings.note_count()) {
            (0, 0) => "ok".to_owned(),
            (0, notes) => format!("ok, {}", counted(notes, "note")),
            (problems, 0) => counted(problems, "problem"),
            (problems, notes) => {
                format!("{}, {}", counted(problems, "problem"), counted(notes, "note"))
            }
        };
        let range = match totals.log_range {
            Some((first, last)) if first <= last => format!(" (index {first} to {last})"),
            Some((_, last)) => format!(" (none behind index {last})"),
            None => String::new(),
        };
        let applied = totals.applied.map_or(String::new(), |index| format!(", applied {index}"));
        writeln!(
            self.output,
            "{verdict}: log {}, {}, {}{range}, {} bytes; store {}, {}, {}, {}, {} bytes{applied}; {}",
            counted(totals.segments, "segment"),
            counted_with(totals.batches, "batch", "batches"),
            counted_with(totals.log_entries, "entry", "entries"),
            totals.log_bytes,
            counted(store.tables, "table"),
            counted(store.blocks, "block"),
            counted_with(store.entries, "entry", "entries"),
            counted(store.tombstones, "tombstone"),
            store.bytes,
            counted(totals.sessions, "session"),
        )?;
        Ok(exit_of(findings))
    }

    fn identity(&mut self, disk: &dyn Disk) -> Result<Exit, Failed> {
        let mut findings = Findings::default();
        let identity = check_identity(disk, &self.asked.data, &mut findings);
        let copies = Identity::copies(disk, &self.asked.data).map(|(path, copy)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match copy {
                Ok(IdentityCopy::Good(sequence, found)) => (name, Ok((sequence, found))),
                Ok(IdentityCopy::Absent) => (name, Err("missing".to_owned())),
                Ok(IdentityCopy::Bad(what)) => (name, Err(format!("not readable: {what}"))),
                Err(e) => (name, Err(e.to_string())),
            }
        });
        let agree = matches!(&copies, [(_, Ok(a)), (_, Ok(b))] if a == b);
        if self.asked.json {
            let copy = |(name, copy): &(String, Result<(u64, Identity), String>)| {
                let (sequence, error) = match copy {
                    Ok((sequence, _)) => (Some(*sequence), None),
                    Err(why) => (None, Some(why.clone())),
                };
                let file = Json::from(name.clone());
                Json::Object(vec![
                    ("file", file),
                    ("sequence", sequence.into()),
                    ("error", error.into()),
                ])
            };
            let mut fields = Vec::new();
            if let Some(i) = &identity {
                let member = |m: &crate::raft::Member| {
                    Json::Object(vec![
                        ("id", m.id.into()),
                        ("address", m.address.clone().into()),
                        ("identity", format!("{:016x}", m.identity).into()),
                    ])
                };
                fields.extend([
                    ("cluster", format!("{:016x}", i.cluster).into()),
                    ("node", i.node.into()),
                    ("identity", format!("{:016x}", i.identity).into()),
                    ("address", i.advertise.clone().into()),
                    ("created", i.created.into()),
                    ("restoring", i.restoring.into()),
                    ("removed", i.removed.into()),
                    ("denied", i.denied.into()),
                    ("secret", secret_state(i).into()),
                    ("members", Json::Array(i.members.iter().map(member).collect())),
                ]);
            }
            fields.push(("copies", Json::Array(copies.iter().map(copy).collect())));
            fields.push(("agree", agree.into()));
            return self.end(fields, &findings);
        }
        let mut rows = Vec::new();
        if let Some(i) = &identity {
            let members: Vec<String> =
                i.members.iter().map(|m| format!("{}@{}", m.id, m.address)).collect();
            let made = if i.created { "made" } else { "not made yet" };
            rows.extend([
                ["cluster".to_owned(), format!("{:016x}", i.cluster)],
                ["node".to_owned(), i.node.to_string()],
                ["identity".to_owned(), format!("{:016x}", i.identity)],
                ["address".to_owned(), i.advertise.clone()],
                ["members".to_owned(), members.join(" ")],
                ["log and store".to_owned(), made.to_owned()],
                ["members' secret".to_owned(), secret_state(i).to_owned()],
            ]);
            let states = [
                (i.node == 0, "waits to be taken in by a cluster"),
                (i.restoring, "a restore was begun and not finished"),
                (i.removed, "removed from its cluster, never to run again"),
                (i.denied, "not the disk that the cluster knows, never to run again"),
            ];
            for (_, state) in states.into_iter().filter(|(is, _)| *is) {
                rows.push(["state".to_owned(), state.to_owned()]);
            }
        }
        for (name, copy) in copies {
            let text = match copy {
                Ok((sequence, _)) => format!("sequence {sequence}"),
                Err(why) => why,
            };
            rows.push([name, text]);
        }
        let agreement = if agree { "agree" } else { "do not agree" };
        rows.push(["the copies".to_owned(), agreement.to_owned()]);
        write!(self.output, "{}", table(&rows, &[]))?;
        self.end(Vec::new(), &findings)
    }

    /// The identity, without which no checksum of log and store can be checked.
    fn own(&self, disk: &dyn Disk, findings: &mut Findings) -> Option<Identity> {
        check_identity(disk, &self.asked.data, findings)
    }

    fn log(&mut self, disk: &Arc<dyn Disk>) -> Result<Exit, Failed> {
        let mut findings = Findings::default();
        let Some(own) = self.own(disk.as_ref(), &mut findings) else {
            return self.end(Vec::new(), &findings);
        };
        let dir = self.asked.data.join(LOG_DIR);
        let look = |findings: &mut Findings, visit: &mut dyn FnMut(Placed<'_>, &mut Findings)| {
            inspect_log(disk.as_ref(), &dir, own.identity, own.created, findings, visit)
        };
        let seen = look(&mut findings, &mut |_, _| {});
        let fields = log_fields(&seen);
        if self.asked.json && self.asked.entries {
            // The object is written piece by piece: the entries are not collected.
            let mut fields = fields;
            fields.extend(findings_json(&findings));
            let object = Json::Object(fields).to_string();
            let open = object.strip_suffix('}').unwrap_or(&object);
            write!(self.output, "{open},\"entries\":[")?;
        } else if self.asked.json {
            return self.end(fields, &findings);
        } else {
            self.log_text(&seen)?;
            self.findings(&findings)?;
        }
        if self.asked.entries {
            let mut written = Ok(());
            let mut first = true;
            // What is wrong was said already.
            look(&mut Findings::default(), &mut |placed, _| {
                if written.is_ok() {
                    written = self.entry(&placed, first);
                    first = false;
                }
            });
            written?;
            if self.asked.json {
                writeln!(self.output, "]}}")?;
            }
        }
        Ok(exit_of(&findings))
    }

    fn log_text(&mut self, seen: &LogSeen) -> Result<(), Failed> {
        if let Some(found) = &seen.recovered {
            let vote = found.hard_state.vote.map_or("no vote".into(), |id| format!("vote {id}"));
            writeln!(self.output, "hard state: term {}, {vote}", found.hard_state.term)?;
            writeln!(
                self.output,
                "entries: first {}, last {}, in {} of {} bytes",
                found.first_index,
                found.last_index,
                counted(found.segments as u64, "segment"),
                found.bytes
            )?;
            let before = found.configuration_before.iter();
            for (index, configuration) in before.chain(&found.configurations) {
                let text = configuration_text(configuration);
                writeln!(self.output, "configuration at {index}: {text}")?;
            }
        }
        let mut rows = Vec::new();
        for file in &seen.files {
            let number = file.number.map_or("-".to_owned(), |number| number.to_string());
            let (first, last) = match file.range {
                Some((first, last)) => (first.to_string(), last.to_string()),
                None => ("-".to_owned(), "-".to_owned()),
            };
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            rows.push([
                name,
                state_word(file.state).to_owned(),
                number,
                file.bytes.to_string(),
                file.used.to_string(),
                file.batches.to_string(),
                file.entries.to_string(),
                first,
                last,
            ]);
        }
        let head =
            ["FILE", "STATE", "SEGMENT", "BYTES", "USED", "BATCHES", "ENTRIES", "FIRST", "LAST"];
        write!(self.output, "{}", table(&rows, &head))?;
        Ok(())
    }

    fn entry(&mut self, placed: &Placed<'_>, first: bool) -> Result<(), Failed> {
        let entry = &placed.entry;
        let (kind, bytes) = (kind_of(entry), bytes_of(entry));
        if self.asked.json {
            let comma = if first { "" } else { "," };
            let object = Json::Object(vec![
                ("index", entry.index.into()),
                ("term", entry.term.into()),
                ("kind", kind.into()),
                ("bytes", bytes.into()),
                ("content", content(entry).into()),
            ]);
            write!(self.output, "{comma}{object}")?;
        } else {
            let (index, term) = (entry.index, entry.term);
            let text = format!("{index} {term} {kind} {bytes} {}", content(entry));
            writeln!(self.output, "{}", text.trim_end())?;
        }
        Ok(())
    }

    fn store(&mut self, disk: &Arc<dyn Disk>) -> Result<Exit, Failed> {
        let mut findings = Findings::default();
        let Some(own) = self.own(disk.as_ref(), &mut findings) else {
            return self.end(Vec::new(), &findings);
        };
        let dir = self.asked.data.join(STORE_DIR);
        let seen = kv::store_inspect::inspect(disk, &dir, own.identity, own.created, &mut findings);
        let Some(seen) = seen else { return self.end(Vec::new(), &findings) };
        let meta = match meta_of(&seen, disk) {
            Ok(meta) => Some(meta),
            Err(e) => {
                e.found(&dir, &mut findings);
                None
            }
        };
        if self.asked.json {
            return self.end(store_fields(&seen, meta.as_ref()), &findings);
        }
        writeln!(self.output, "applied {}, next file {}", seen.applied, seen.next_file)?;
        for slot in &seen.slots {
            let name = slot.path.file_name().unwrap_or_default().to_string_lossy();
            let sequence = slot.sequence.map_or("not readable".into(), |n| format!("sequence {n}"));
            writeln!(self.output, "{name}: {sequence}")?;
        }
        if let Some(meta) = &meta {
            writeln!(self.output, "term {} since index {}", meta.term, meta.term_since)?;
            if let Some((index, configuration)) = &meta.configuration {
                let text = configuration_text(configuration);
                writeln!(self.output, "configuration at {index}: {text}")?;
            }
            writeln!(self.output, "{}", counted(meta.sessions, "session"))?;
            if meta.installed {
                writeln!(self.output, "installed as a snapshot, nothing applied since")?;
            }
        }
        let mut rows = Vec::new();
        for (level, tables) in seen.levels.iter().enumerate() {
            for t in tables {
                rows.push([
                    level.to_string(),
                    t.number.to_string(),
                    t.bytes.to_string(),
                    t.entries.to_string(),
                    t.tombstones.to_string(),
                    key_text(&t.smallest),
                    key_text(&t.largest),
                ]);
            }
        }
        let head = ["LEVEL", "TABLE", "BYTES", "ENTRIES", "TOMBSTONES", "SMALLEST", "LARGEST"];
        write!(self.output, "{}", table(&rows, &head))?;
        self.end(Vec::new(), &findings)
    }
}

fn exit_of(findings: &Findings) -> Exit {
    if findings.problem_count() == 0 { Exit::Done } else { Exit::ConditionFalse }
}

fn counted(count: u64, what: &str) -> String {
    counted_with(count, what, &format!("{what}s"))
}

fn counted_with(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn state_word(state: FileState) -> &'static str {
    match state {
        FileState::Live => "live",
        FileState::Spare => "spare",
        FileState::Unreadable => "unreadable",
    }
}

fn log_fields(seen: &LogSeen) -> Vec<(&'static str, Json)> {
    let file = |file: &crate::wal::inspect::LogFile| {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Json::Object(vec![
            ("file", name.into()),
            ("state", state_word(file.state).into()),
            ("segment", file.number.into()),
            ("bytes", file.bytes.into()),
            ("used", file.used.into()),
            ("batches", file.batches.into()),
            ("entries", file.entries.into()),
            ("first", file.range.map(|range| range.0).into()),
            ("last", file.range.map(|range| range.1).into()),
        ])
    };
    let mut fields = Vec::new();
    if let Some(found) = &seen.recovered {
        let configurations = found.configuration_before.iter().chain(&found.configurations);
        let configurations = configurations.map(|(index, c)| configuration_json(*index, c));
        fields.extend([
            ("term", found.hard_state.term.into()),
            ("vote", found.hard_state.vote.into()),
            ("first_index", found.first_index.into()),
            ("last_index", found.last_index.into()),
            ("configurations", Json::Array(configurations.collect())),
        ]);
    }
    fields.push(("files", Json::Array(seen.files.iter().map(file).collect())));
    fields
}

/// What the state machine remembers beside the keys.
struct Meta {
    term: u64,
    term_since: u64,
    configuration: Option<(u64, crate::raft::Configuration)>,
    sessions: u64,
    installed: bool,
}

fn meta_of(seen: &StoreSeen, disk: &Arc<dyn Disk>) -> Result<Meta, StoreError> {
    let view = LsmView::of(seen, disk)?;
    let place = kv::place(&view)?;
    let configuration = match &place.configuration {
        Some(bytes) => {
            let index = view.revision(Space::Meta, CONFIGURATION_KEY)?.unwrap_or_default();
            let taken = codec::take_configuration(&mut codec::Input(bytes));
            let configuration = taken.map_err(|_| StoreError::BadRecord {
                key: CONFIGURATION_KEY.to_vec(),
                source: kv::Malformed("a configuration"),
            })?;
            Some((index, configuration))
        }
        None => None,
    };
    Ok(Meta {
        term: place.term,
        term_since: view.revision(Space::Meta, TERM_KEY)?.unwrap_or_default(),
        configuration,
        sessions: kv::session_count(&view)? as u64,
        installed: place.installed,
    })
}

fn store_fields(seen: &StoreSeen, meta: Option<&Meta>) -> Vec<(&'static str, Json)> {
    let slot = |slot: &kv::store_inspect::SlotSeen| {
        let name = slot.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Json::Object(vec![("file", name.into()), ("sequence", slot.sequence.into())])
    };
    let level = |(level, tables): (usize, &Vec<kv::TableMeta>)| {
        tables
            .iter()
            .map(|t| {
                Json::Object(vec![
                    ("level", (level as u64).into()),
                    ("table", t.number.into()),
                    ("bytes", t.bytes.into()),
                    ("entries", t.entries.into()),
                    ("tombstones", t.tombstones.into()),
                    ("smallest", key_json(&t.smallest)),
                    ("largest", key_json(&t.largest)),
                ])
            })
            .collect::<Vec<Json>>()
    };
    let unnamed = |(name, bytes): &(String, u64)| {
        Json::Object(vec![("file", name.clone().into()), ("bytes", (*bytes).into())])
    };
    let mut fields = vec![
        ("applied", seen.applied.into()),
        ("next_file", seen.next_file.into()),
        ("slots", Json::Array(seen.slots.iter().map(slot).collect())),
        ("tables", Json::Array(seen.levels.iter().enumerate().flat_map(level).collect())),
        ("unnamed", Json::Array(seen.unnamed.iter().map(unnamed).collect())),
    ];
    if let Some(meta) = meta {
        let configuration = meta.configuration.as_ref();
        let configuration = configuration.map_or(Json::Null, |(i, c)| configuration_json(*i, c));
        fields.extend([
            ("term", meta.term.into()),
            ("term_since", meta.term_since.into()),
            ("configuration", configuration),
            ("sessions", meta.sessions.into()),
            ("installed", meta.installed.into()),
        ]);
    }
    fields
}

/// What there is to say of the members' secret: not what it is.
fn secret_state(identity: &Identity) -> &'static str {
    match identity.secret {
        None => "none yet",
        Some(secret) if secret.sealed => "sealed",
        Some(_) => "not sealed yet",
    }
}
