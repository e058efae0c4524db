//! The commands of the line client: words in, [`LineCommand`] out, or a precise usage error.
//!
//! One table names every command; the errors and the help text follow from it. What a command
//! does, and how its answer is printed, is not known here.

use super::config::{Address, parse_size};
use super::nearest;
use super::words::{self, WordError};
use crate::kv::{Range, Revision, Test};
use crate::wire::client::Change;
use std::fmt;
use std::path::PathBuf;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// A command of the line client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineCommand {
    /// Store a value.
    Put {
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
        /// What must hold of the key.
        condition: Option<Test>,
    },
    /// Read a value.
    Get {
        /// The key.
        key: Vec<u8>,
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
    /// Keys in order, by `range` or `prefix`.
    Range(Range),
    /// Number of keys in a range; `count_only` is set.
    Count(Range),
    /// Store several values at once: all or none.
    PutMany {
        /// Keys and values; at least one pair.
        pairs: Vec<Pair>,
    },
    /// Add to a number.
    Increment {
        /// The key.
        key: Vec<u8>,
        /// What to add.
        by: i64,
    },
    /// Store what a file holds.
    Load {
        /// The file.
        file: PathBuf,
    },
    /// Write out what a range holds.
    Dump {
        /// First key.
        start: Vec<u8>,
        /// First key beyond; empty means no bound.
        end: Vec<u8>,
    },
    /// One row per member.
    Status,
    /// Who belongs to the cluster.
    Members,
    /// Hand leadership over, to this member or to the one that is furthest.
    Transfer {
        /// The member's id.
        to: Option<u64>,
    },
    /// Take a node in.
    Join {
        /// Where it is reached.
        address: String,
    },
    /// Another change of the members.
    ChangeMembers(Change),
    /// Flush every member's store and drop the log in front of that.
    Compact,
    /// Write everything to a file that `serve --restore` takes.
    Backup {
        /// The file; it must not be there.
        file: PathBuf,
    },
    /// Is anybody there?
    Ping,
    /// What can be said here.
    Help,
    /// End the session.
    Quit,
}

/// A command as people write it.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Its word.
    pub name: &'static str,
    /// What follows the word.
    pub words: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// Every command, in the order of the help text.
#[rustfmt::skip]
pub const COMMANDS: &[Usage] = &[
    Usage { name: "put", words: "KEY VALUE [if REVISION|absent|present]", help: "store a value; prints OK and its revision" },
    Usage { name: "set", words: "KEY VALUE [if REVISION|absent|present]", help: "the same as put" },
    Usage { name: "get", words: "KEY", help: "print the value, or (nil)" },
    Usage { name: "del", words: "KEY", help: "remove a key" },
    Usage { name: "range", words: "START END [limit N] [bytes N] [after CURSOR] [reverse] [keys]", help: "keys from START to before END; an empty END (\"\") is no bound; a page that ends with a cursor, full or not, is not the last" },
    Usage { name: "prefix", words: "P [limit N] [bytes N] [after CURSOR] [reverse] [keys]", help: "keys that begin with P" },
    Usage { name: "count", words: "START END", help: "number of keys from START to before END" },
    Usage { name: "mput", words: "KEY VALUE [KEY VALUE ...]", help: "store all of them or none" },
    Usage { name: "incr", words: "KEY [BY]", help: "add BY (or 1) to a number; an absent key counts as 0" },
    Usage { name: "load", words: "FILE", help: "store what a file holds that dump wrote" },
    Usage { name: "dump", words: "[START END]", help: "write out all keys, or those of a range" },
    Usage { name: "status", words: "", help: "one row per member" },
    Usage { name: "members", words: "", help: "who belongs to the cluster" },
    Usage { name: "transfer", words: "[ID]", help: "hand leadership over" },
    Usage { name: "member", words: "join ADDR | promote ID [--force] | remove ID [--force] | replace ID ADDR", help: "change who belongs to the cluster, one at a time" },
    Usage { name: "compact", words: "", help: "flush every member's store, drop the log in front of that, and compact all tables" },
    Usage { name: "backup", words: "FILE", help: "write a consistent cut of everything to a new file, for serve --restore" },
    Usage { name: "ping", words: "", help: "ask whether the cluster answers" },
    Usage { name: "help", words: "", help: "this list" },
    Usage { name: "quit", words: "", help: "leave" },
];

/// Why words are no command. Nothing was sent; exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineError {
    /// The line does not split into words.
    Words(WordError),
    /// No command has this name.
    Unknown {
        /// The first word, escaped.
        name: String,
        /// The nearest command.
        nearest: Option<&'static str>,
    },
    /// The words behind the command are wrong.
    Usage {
        /// What is wrong.
        why: String,
        /// The command's name and words.
        usage: String,
    },
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LineError::Words(error) => error.fmt(f),
            LineError::Unknown { name, nearest: Some(nearest) } => {
                write!(f, "unknown command '{name}'; did you mean {nearest}?")
            }
            LineError::Unknown { name, nearest: None } => {
                write!(f, "unknown command '{name}'; help lists them")
            }
            LineError::Usage { why, usage } => write!(f, "{why}; usage: {usage}"),
        }
    }
}

impl std::error::Error for LineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LineError::Words(error) => Some(error),
            _ => None,
        }
    }
}

/// Reads one line; none when it is blank or a comment (`#` as its first character, so that the
/// output of `range` with its cursor line can be fed back).
///
/// # Errors
/// When the line does not split into words, or they are no command.
pub fn parse_line(line: &[u8]) -> Result<Option<LineCommand>, LineError> {
    if line.trim_ascii_start().first() == Some(&b'#') {
        return Ok(None);
    }
    let words = words::split(line).map_err(LineError::Words)?;
    if words.is_empty() { Ok(None) } else { parse(&words).map(Some) }
}

/// Reads the words of one command, the first being its name in upper or lower case.
///
/// # Errors
/// When there is no such command, or its words are wrong.
pub fn parse(words: &[Vec<u8>]) -> Result<LineCommand, LineError> {
    let name = words.first().map(|w| w.to_ascii_lowercase()).unwrap_or_default();
    let Some(usage) = COMMANDS.iter().find(|c| c.name.as_bytes() == name) else {
        let name = words::escape(&name);
        let nearest = nearest(&name, COMMANDS.iter().map(|c| c.name));
        return Err(LineError::Unknown { name, nearest });
    };
    let mut rest = Rest { usage, words: words.get(1..).unwrap_or_default() };
    let command = match usage.name {
        "put" | "set" => LineCommand::Put {
            key: rest.next("KEY")?,
            value: rest.next("VALUE")?,
            condition: rest.condition()?,
        },
        "get" => LineCommand::Get { key: rest.next("KEY")? },
        "del" => LineCommand::Delete { key: rest.next("KEY")? },
        "range" => {
            let (start, end) = (rest.next("START")?, rest.next("END")?);
            LineCommand::Range(rest.range(start, end)?)
        }
        "prefix" => {
            let prefix = rest.next("P")?;
            let end = prefix_end(&prefix);
            LineCommand::Range(rest.range(prefix, end)?)
        }
        "count" => LineCommand::Count(Range {
            start: rest.next("START")?,
            end: rest.next("END")?,
            count_only: true,
            ..Range::default()
        }),
        "mput" => LineCommand::PutMany { pairs: rest.pairs()? },
        "incr" => LineCommand::Increment { key: rest.next("KEY")?, by: rest.increment()? },
        "load" => LineCommand::Load { file: rest.path()? },
        "dump" if rest.words.is_empty() => LineCommand::Dump { start: vec![], end: vec![] },
        "dump" => LineCommand::Dump { start: rest.next("START")?, end: rest.next("END")? },
        "status" => LineCommand::Status,
        "members" => LineCommand::Members,
        "transfer" => LineCommand::Transfer { to: rest.member()? },
        "member" => rest.change()?,
        "compact" => LineCommand::Compact,
        "backup" => LineCommand::Backup { file: rest.path()? },
        "ping" => LineCommand::Ping,
        "help" => LineCommand::Help,
        "quit" => LineCommand::Quit,
        other => return Err(LineError::Unknown { name: other.to_owned(), nearest: None }),
    };
    rest.end()?;
    Ok(command)
}

/// The first key behind all keys with this prefix; empty, that is no bound, when there is none
/// (an empty prefix, or one of `0xFF` alone).
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    // Drop what cannot be raised, raise the last byte that can.
    let kept = prefix.iter().rposition(|&b| b != 0xff).map_or(0, |at| at + 1);
    let mut end = prefix.get(..kept).unwrap_or_default().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// The words behind a command's name that are not read yet.
struct Rest<'a> {
    usage: &'static Usage,
    words: &'a [Vec<u8>],
}

impl Rest<'_> {
    fn wrong(&self, why: String) -> LineError {
        let Usage { name, words, .. } = self.usage;
        LineError::Usage { why, usage: format!("{name} {words}").trim_end().to_owned() }
    }

    /// The next word; `what` names it in the error when it is missing.
    fn next(&mut self, what: &str) -> Result<Vec<u8>, LineError> {
        let (first, rest) =
            self.words.split_first().ok_or_else(|| self.wrong(format!("{what} is missing")))?;
        self.words = rest;
        Ok(first.clone())
    }

    /// The next word as text; what is not UTF-8 is escaped and will be refused by name.
    fn text(&mut self, what: &str) -> Result<String, LineError> {
        let word = self.next(what)?;
        Ok(String::from_utf8(word).unwrap_or_else(|e| words::escape(e.as_bytes())))
    }

    fn parsed<T>(
        &mut self,
        what: &str,
        kind: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, LineError> {
        let text = self.text(what)?;
        parse(&text).ok_or_else(|| self.wrong(format!("{what} '{text}' is not {kind}")))
    }

    fn condition(&mut self) -> Result<Option<Test>, LineError> {
        if self.words.is_empty() {
            return Ok(None);
        }
        let word = self.text("if")?;
        if !word.eq_ignore_ascii_case("if") {
            return Err(self.wrong(format!("unexpected '{word}'")));
        }
        let what = self.text("REVISION, absent or present")?;
        let test = match what.to_ascii_lowercase().as_str() {
            "absent" => Test::Absent,
            "present" => Test::Present,
            number => Test::Revision(number.parse::<Revision>().map_err(|_| {
                self.wrong(format!("'{what}' is not a revision, absent or present"))
            })?),
        };
        Ok(Some(test))
    }

    fn range(&mut self, start: Vec<u8>, end: Vec<u8>) -> Result<Range, LineError> {
        let mut range = Range { start, end, ..Range::default() };
        let positive = |n: u64| u32::try_from(n).ok().filter(|&n| n > 0);
        let mut seen: Vec<String> = Vec::new();
        while !self.words.is_empty() {
            let option = self.text("option")?.to_ascii_lowercase();
            match option.as_str() {
                "limit" => {
                    let count = |t: &str| t.parse().ok().and_then(positive);
                    range.limit = self.parsed("limit", "a number of keys from 1", count)?;
                }
                "bytes" => {
                    let size = |t: &str| parse_size(t).ok().and_then(positive);
                    range.bytes = self.parsed("bytes", "a size from 1 such as 64KiB", size)?;
                }
                "after" => range.after = Some(self.next("CURSOR")?),
                "reverse" => range.reverse = true,
                "keys" => range.keys_only = true,
                other => return Err(self.wrong(format!("unexpected '{other}'"))),
            }
            if seen.contains(&option) {
                return Err(self.wrong(format!("{option} is given twice")));
            }
            seen.push(option);
        }
        Ok(range)
    }

    fn pairs(&mut self) -> Result<Vec<Pair>, LineError> {
        let mut pairs = vec![(self.next("KEY")?, self.next("VALUE")?)];
        while !self.words.is_empty() {
            pairs.push((self.next("KEY")?, self.next("VALUE")?));
        }
        Ok(pairs)
    }

    fn increment(&mut self) -> Result<i64, LineError> {
        if self.words.is_empty() {
            return Ok(1);
        }
        self.parsed("BY", "a whole number of 64 bits", |t| t.parse().ok())
    }

    fn member(&mut self) -> Result<Option<u64>, LineError> {
        if self.words.is_empty() {
            return Ok(None);
        }
        self.id().map(Some)
    }

    fn change(&mut self) -> Result<LineCommand, LineError> {
        let what = self.next("join, promote, remove or replace")?;
        let call = match what.to_ascii_lowercase().as_slice() {
            b"join" => return Ok(LineCommand::Join { address: self.address()? }),
            b"promote" => Change::Promote { id: self.id()?, force: self.force()? },
            b"remove" => Change::Remove { id: self.id()?, force: self.force()? },
            b"replace" => Change::Replace { old: self.id()?, address: self.address()? },
            other => {
                let shown = words::escape(other);
                let why = format!("'{shown}' is not one of join, promote, remove, replace");
                return Err(self.wrong(why));
            }
        };
        Ok(LineCommand::ChangeMembers(call))
    }

    fn id(&mut self) -> Result<u64, LineError> {
        self.parsed("ID", "a member's id", |t| t.parse().ok().filter(|&id| id > 0))
    }

    fn address(&mut self) -> Result<String, LineError> {
        let parse = |t: &str| t.parse::<Address>().ok().map(|address| address.to_string());
        self.parsed("ADDR", "an address HOST:PORT", parse)
    }

    fn force(&mut self) -> Result<bool, LineError> {
        match self.words {
            [] => Ok(false),
            [word] if word == b"--force" => {
                self.words = &[];
                Ok(true)
            }
            [other, ..] => Err(self.wrong(format!("'{}' is not --force", words::escape(other)))),
        }
    }

    /// A path; it must be UTF-8, which every system can name a file by.
    fn path(&mut self) -> Result<PathBuf, LineError> {
        let word = self.next("FILE")?;
        match String::from_utf8(word) {
            Ok(text) if !text.is_empty() => Ok(PathBuf::from(text)),
            Ok(_) => Err(self.wrong("FILE is empty".to_owned())),
            Err(e) => {
                let shown = words::escape(e.as_bytes());
                Err(self.wrong(format!("FILE '{shown}' is not UTF-8")))
            }
        }
    }

    fn end(&self) -> Result<(), LineError> {
        match self.words.first() {
            Some(word) => Err(self.wrong(format!("unexpected '{}'", words::escape(word)))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command(line: &str) -> LineCommand {
        parse_line(line.as_bytes()).expect(line).expect(line)
    }

    fn error(line: &str) -> String {
        parse_line(line.as_bytes()).expect_err(line).to_string()
    }

    fn put(key: &str, value: &str, condition: Option<Test>) -> LineCommand {
        LineCommand::Put { key: key.into(), value: value.into(), condition }
    }

    #[test]
    fn put_takes_a_condition_and_set_is_the_same() {
        // The three things a write may demand, in either case of letters.
        assert_eq!(command("put city Oslo"), put("city", "Oslo", None));
        assert_eq!(command("SET city Oslo"), put("city", "Oslo", None));
        assert_eq!(command("put a b if absent"), put("a", "b", Some(Test::Absent)));
        assert_eq!(command("put a b IF Present"), put("a", "b", Some(Test::Present)));
        assert_eq!(command("put a b if 12"), put("a", "b", Some(Test::Revision(12))));
        assert_eq!(command(r#"put "a b" '' "#), put("a b", "", None));
    }

    #[test]
    fn short_commands_are_read() {
        // Every command that takes a key or nothing.
        assert_eq!(command("get k"), LineCommand::Get { key: b"k".to_vec() });
        assert_eq!(command("del k"), LineCommand::Delete { key: b"k".to_vec() });
        assert_eq!(command("incr k"), LineCommand::Increment { key: b"k".to_vec(), by: 1 });
        assert_eq!(command("incr k -5"), LineCommand::Increment { key: b"k".to_vec(), by: -5 });
        assert_eq!(command("load a.txt"), LineCommand::Load { file: "a.txt".into() });
        assert_eq!(command("dump"), LineCommand::Dump { start: vec![], end: vec![] });
        let dump = LineCommand::Dump { start: b"a".to_vec(), end: b"b".to_vec() };
        assert_eq!(command("dump a b"), dump);
        assert_eq!(command("transfer"), LineCommand::Transfer { to: None });
        assert_eq!(command("transfer 3"), LineCommand::Transfer { to: Some(3) });
        for (line, expected) in [
            ("status", LineCommand::Status),
            ("members", LineCommand::Members),
            ("ping", LineCommand::Ping),
            ("help", LineCommand::Help),
            ("quit", LineCommand::Quit),
        ] {
            assert_eq!(command(line), expected);
        }
    }

    #[test]
    fn range_takes_its_options_in_any_order() {
        // All of them at once; then none.
        let all = command("range a b keys after \"\\x00\" bytes 64KiB reverse limit 5");
        let expected = Range {
            start: b"a".to_vec(),
            end: b"b".to_vec(),
            after: Some(vec![0]),
            limit: 5,
            bytes: 65_536,
            reverse: true,
            keys_only: true,
            count_only: false,
        };
        assert_eq!(all, LineCommand::Range(expected));
        assert_eq!(command("range '' ''"), LineCommand::Range(Range::default()));
        let count = Range { start: b"a".to_vec(), count_only: true, ..Range::default() };
        assert_eq!(command("count a ''"), LineCommand::Count(count));
    }

    #[test]
    fn prefix_is_a_range_up_to_the_next_key_behind_it() {
        // The bound carries over bytes that cannot be raised, and vanishes when none can.
        let range =
            Range { start: b"ab".to_vec(), end: b"ac".to_vec(), limit: 2, ..Range::default() };
        assert_eq!(command("prefix ab limit 2"), LineCommand::Range(range));
        assert_eq!(prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(prefix_end(b"\xff\xff"), b"");
        assert_eq!(prefix_end(b""), b"");
        assert_eq!(prefix_end(b"a\0"), b"a\x01");
    }

    #[test]
    fn mput_wants_pairs() {
        // A key without a value is refused, not stored empty.
        let pairs = vec![(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())];
        assert_eq!(command("mput a 1 b 2"), LineCommand::PutMany { pairs });
        let usage = "; usage: mput KEY VALUE [KEY VALUE ...]";
        assert_eq!(error("mput a 1 b"), format!("VALUE is missing{usage}"));
        assert_eq!(error("mput"), format!("KEY is missing{usage}"));
    }

    #[test]
    fn blank_lines_and_comments_are_no_commands() {
        // A script may be laid out, and its cursor lines fed back.
        for line in ["", "  \r\n", "# cursor b", "  # \"unclosed"] {
            assert_eq!(parse_line(line.as_bytes()), Ok(None), "{line}");
        }
    }

    #[test]
    fn each_mistake_is_named_with_the_usage() {
        // One precise line for each.
        assert_eq!(error("get"), "KEY is missing; usage: get KEY");
        assert_eq!(error("get a b"), "unexpected 'b'; usage: get KEY");
        assert_eq!(error("status now"), "unexpected 'now'; usage: status");
        assert_eq!(error("gett a"), "unknown command 'gett'; did you mean get?");
        assert_eq!(error("xyzzy42"), "unknown command 'xyzzy42'; help lists them");
        assert_eq!(error("get \"a"), "the quote at column 5 is not closed");
        assert_eq!(error("\"\\x00\\xff\" a"), "unknown command '\\x00\\xff'; help lists them");
        for (line, why) in [
            ("put a b c", "unexpected 'c'"),
            ("put a b if", "REVISION, absent or present is missing"),
            ("put a b if -1", "'-1' is not a revision, absent or present"),
            ("put a b if 1 2", "unexpected '2'"),
            ("range a", "END is missing"),
            ("range a b limit", "limit is missing"),
            ("range a b limit 0", "limit '0' is not a number of keys from 1"),
            ("range a b limit 4294967296", "limit '4294967296' is not a number of keys from 1"),
            ("range a b bytes 1K", "bytes '1K' is not a size from 1 such as 64KiB"),
            ("range a b after", "CURSOR is missing"),
            ("range a b keys keys", "keys is given twice"),
            ("range a b sideways", "unexpected 'sideways'"),
            ("incr k 1.5", "BY '1.5' is not a whole number of 64 bits"),
            ("load ''", "FILE is empty"),
            ("load \"\\xff\"", "FILE '\\xff' is not UTF-8"),
            ("dump a", "END is missing"),
            ("transfer 0", "ID '0' is not a member's id"),
        ] {
            assert!(error(line).starts_with(&format!("{why}; usage: ")), "{line}: {}", error(line));
        }
    }

    #[test]
    fn every_command_of_the_table_is_read() {
        // The table and the reader must not drift apart: no name of the table is unknown.
        for usage in COMMANDS {
            let result = parse(&[usage.name.as_bytes().to_vec()]);
            assert!(!matches!(result, Err(LineError::Unknown { .. })), "{}", usage.name);
        }
    }

    proptest! {
        #[test]
        fn a_prefix_range_holds_exactly_the_keys_with_the_prefix(
            prefix in proptest::collection::vec(prop_oneof![Just(0u8), Just(0xfe), Just(0xff)], 0..4),
            key in proptest::collection::vec(prop_oneof![Just(0u8), Just(0xfe), Just(0xff)], 0..6),
        ) {
            // Checked on the bytes where carrying goes wrong.
            let end = prefix_end(&prefix);
            let inside = key >= prefix && (end.is_empty() || key < end);
            prop_assert_eq!(inside, key.starts_with(&prefix));
        }
    }
}
