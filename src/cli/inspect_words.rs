//! The words of `kontiki inspect`: entries, keys and configurations as short readable text, rows as
//! aligned columns.
//!
//! What comes from disk is escaped as everywhere on a terminal, and cut short: a line is to be read
//! by a person. Whoever needs the bytes has the node's clients.

use super::json::Json;
use super::words::{escape, quote};
use crate::env::{Finding, Findings};
use crate::kv::Test;
use crate::kv::codec::{CommandRef, ConditionRef, OpRef, WriteRef};
use crate::kv::{Space, split_stored_key};
use crate::raft::{Configuration, Entry, NodeId, Payload, codec};

/// Bytes of a key or a value that are shown.
const SHOWN_BYTES_MAX: usize = 40;
/// Operations and conditions of a write that are shown, each.
const SHOWN_OPS_MAX: usize = 4;

/// What an entry is.
pub(super) fn kind_of(entry: &Entry) -> &'static str {
    match entry.payload {
        Payload::Noop => "noop",
        Payload::Command(_) => "command",
        Payload::Configuration(_) => "configuration",
    }
}

/// Bytes of an entry's payload.
pub(super) fn bytes_of(entry: &Entry) -> u64 {
    (codec::entry_len(entry) - codec::ENTRY_HEADER_BYTES) as u64
}

/// What an entry says, shortened.
pub(super) fn content(entry: &Entry) -> String {
    match &entry.payload {
        Payload::Noop => String::new(),
        Payload::Configuration(configuration) => configuration_text(configuration),
        Payload::Command(bytes) => match CommandRef::decode(bytes) {
            Ok(CommandRef::OpenSession) => "open session".to_owned(),
            Ok(CommandRef::CloseSession { session }) => format!("close session {session}"),
            Ok(CommandRef::ReleaseSession { session, .. }) => format!("release session {session}"),
            Ok(CommandRef::Write(write)) => write_text(&write),
            Err(e) => format!("does not decode: {e}"),
        },
    }
}

fn write_text(write: &WriteRef<'_>) -> String {
    let mut parts = Vec::new();
    if let Some(stamp) = &write.stamp {
        parts.push(format!("session {} sequence {}", stamp.session, stamp.sequence));
    }
    let more = |len: usize| match len.saturating_sub(SHOWN_OPS_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    if !write.conditions.is_empty() {
        let shown: Vec<String> =
            write.conditions.iter().take(SHOWN_OPS_MAX).map(condition_text).collect();
        parts.push(format!("if {}{}", shown.join(", "), more(write.conditions.len())));
    }
    let shown: Vec<String> = write.ops.iter().take(SHOWN_OPS_MAX).map(op_text).collect();
    parts.push(format!("{}{}", shown.join(", "), more(write.ops.len())));
    parts.join(": ")
}

fn condition_text(condition: &ConditionRef<'_>) -> String {
    let key = shortened(condition.key);
    match condition.test {
        Test::Absent => format!("{key} absent"),
        Test::Present => format!("{key} present"),
        Test::Revision(revision) => format!("{key} at {revision}"),
    }
}

fn op_text(op: &OpRef<'_>) -> String {
    match *op {
        OpRef::Put { key, value } => format!("put {} {}", shortened(key), shortened(value)),
        OpRef::Delete { key } => format!("del {}", shortened(key)),
        OpRef::Increment { key, by } => format!("incr {} {by}", shortened(key)),
        OpRef::Get { key } => format!("get {}", shortened(key)),
    }
}

/// A word, and how long it is when it does not end there.
fn shortened(bytes: &[u8]) -> String {
    match bytes.split_at_checked(SHOWN_BYTES_MAX) {
        Some((front, rest)) if !rest.is_empty() => {
            format!("{}... ({} bytes)", quote(front), bytes.len())
        }
        _ => quote(bytes),
    }
}

fn ids(ids: &std::collections::BTreeSet<NodeId>) -> String {
    ids.iter().map(NodeId::to_string).collect::<Vec<_>>().join(",")
}

/// Members with their addresses, and who votes.
pub(super) fn configuration_text(configuration: &Configuration) -> String {
    let members: Vec<String> = configuration
        .members
        .iter()
        .map(|m| format!("{}@{}", m.id, escape(m.address.as_bytes())))
        .collect();
    let mut text = format!("members {} voters {}", members.join(" "), ids(&configuration.voters));
    for (what, set) in
        [("outgoing", &configuration.outgoing), ("learners", &configuration.learners)]
    {
        if !set.is_empty() {
            text.push_str(&format!(" {what} {}", ids(set)));
        }
    }
    text
}

/// The same as an object.
pub(super) fn configuration_json(index: u64, configuration: &Configuration) -> Json {
    let member = |m: &crate::raft::Member| {
        Json::Object(vec![
            ("id", m.id.into()),
            ("address", m.address.clone().into()),
            ("identity", format!("{:016x}", m.identity).into()),
        ])
    };
    let set = |set: &std::collections::BTreeSet<NodeId>| {
        Json::Array(set.iter().map(|id| Json::from(*id)).collect())
    };
    Json::Object(vec![
        ("index", index.into()),
        ("cluster", format!("{:016x}", configuration.cluster).into()),
        ("members", Json::Array(configuration.members.iter().map(member).collect())),
        ("voters", set(&configuration.voters)),
        ("outgoing", set(&configuration.outgoing)),
        ("learners", set(&configuration.learners)),
    ])
}

fn space_word(space: Option<Space>) -> &'static str {
    match space {
        Some(Space::Meta) => "meta",
        Some(Space::User) => "user",
        None => "unknown",
    }
}

/// A key as a table holds it: its space, a colon and the key, escaped.
pub(super) fn key_text(stored: &[u8]) -> String {
    let (space, key) = split_stored_key(stored);
    format!("{}:{}", space_word(space), escape(key))
}

/// The same as an object.
pub(super) fn key_json(stored: &[u8]) -> Json {
    let (space, key) = split_stored_key(stored);
    Json::Object(vec![("space", space_word(space).into()), ("key", Json::bytes(key))])
}

/// Findings as fields of an object.
pub(super) fn findings_json(findings: &Findings) -> Vec<(&'static str, Json)> {
    let finding = |finding: &Finding| {
        Json::Object(vec![
            ("file", finding.path.display().to_string().into()),
            ("offset", finding.offset.into()),
            ("what", finding.what.clone().into()),
            ("healed", finding.healed.into()),
        ])
    };
    let list = |list: &[Finding]| Json::Array(list.iter().map(finding).collect());
    vec![
        ("problem_count", findings.problem_count().into()),
        ("note_count", findings.note_count().into()),
        ("problems", list(&findings.problems)),
        ("notes", list(&findings.notes)),
    ]
}

/// Rows under a head, in columns as wide as they must be.
pub(super) fn table<const N: usize>(rows: &[[String; N]], head: &[&str]) -> String {
    let mut widths = [0; N];
    for (i, width) in widths.iter_mut().enumerate() {
        let cells = rows.iter().map(|row| row[i].chars().count());
        *width = cells.chain(head.get(i).map(|word| word.chars().count())).max().unwrap_or(0);
    }
    let mut text = String::new();
    let mut push = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    };
    if !head.is_empty() {
        push(head.to_vec());
    }
    for row in rows {
        push(row.iter().map(String::as_str).collect());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Command, Condition, Op, SessionStamp, Write, encode_command};
    use crate::raft::Member;
    use std::sync::Arc;

    fn entry(command: &Command) -> Entry {
        let mut bytes = Vec::new();
        encode_command(command, &mut bytes);
        Entry { index: 7, term: 2, payload: Payload::Command(Arc::from(bytes)) }
    }

    #[test]
    fn an_entry_reads_like_the_command_that_made_it() {
        // Keys and values as they are typed, long ones cut, many operations counted.
        let put = |key: &str, value: &str| Op::Put { key: key.into(), value: value.into() };
        let one = Write { ops: vec![put("city", "Oslo")], ..Write::default() };
        assert_eq!(content(&entry(&Command::Write(one))), "put city Oslo");
        let full = Write {
            stamp: Some(SessionStamp { session: 3, sequence: 4, answered_below: 1 }),
            conditions: vec![Condition { key: b"a b".to_vec(), test: Test::Revision(9) }],
            ops: vec![
                Op::Delete { key: b"\x00".to_vec() },
                Op::Increment { key: b"n".to_vec(), by: -2 },
                Op::Get { key: b"g".to_vec() },
                put("k", &"v".repeat(50)),
                put("l", ""),
                put("m", ""),
            ],
        };
        assert_eq!(
            content(&entry(&Command::Write(full))),
            format!(
                "session 3 sequence 4: if \"a b\" at 9: del \"\\x00\", incr n -2, get g, \
                 put k {}... (50 bytes) and 2 more",
                "v".repeat(40)
            )
        );
        assert_eq!(content(&entry(&Command::OpenSession)), "open session");
        assert_eq!(content(&entry(&Command::CloseSession { session: 3 })), "close session 3");
        let bad = Entry { index: 1, term: 1, payload: Payload::Command(Arc::from(&b"\xff"[..])) };
        assert!(content(&bad).starts_with("does not decode: "), "{}", content(&bad));
        let noop = Entry { index: 1, term: 1, payload: Payload::Noop };
        assert_eq!((kind_of(&noop), bytes_of(&noop), content(&noop).as_str()), ("noop", 0, ""));
    }

    #[test]
    fn a_configuration_names_who_votes() {
        // A joint one has two sets of voters.
        let member = |id| Member { id, identity: id * 17, address: format!("host:{id}") };
        let mut c = Configuration::of_voters(5, vec![member(1), member(2), member(3)]);
        assert_eq!(configuration_text(&c), "members 1@host:1 2@host:2 3@host:3 voters 1,2,3");
        c.voters.remove(&3);
        c.outgoing = [1, 3].into();
        c.learners = [3].into();
        let text = configuration_text(&c);
        assert!(text.ends_with("voters 1,2 outgoing 1,3 learners 3"), "{text}");
        let json = configuration_json(4, &c).to_string();
        assert!(json.starts_with(r#"{"index":4,"cluster":"0000000000000005","members":[{"id":1,"#));
    }

    #[test]
    fn keys_of_tables_show_their_space() {
        // What the state machine remembers and the users' keys never look alike.
        assert_eq!(key_text(b"\x01a\nb"), "user:a\\nb");
        assert_eq!(key_text(b"\x00t"), "meta:t");
        assert_eq!(key_text(b"\x07t"), "unknown:\\x07t");
        assert_eq!(
            key_json(b"\x01\xff").to_string(),
            r#"{"space":"user","key":{"base64":"/w=="}}"#
        );
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        // A head wider than its cells, a cell wider than its head, nothing behind the last.
        let rows = [["1".to_owned(), "a long cell".to_owned(), "x".to_owned()]];
        assert_eq!(
            table(&rows, &["WIDE", "B", "C"]),
            "WIDE  B            C\n1     a long cell  x\n"
        );
    }
}
