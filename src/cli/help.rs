//! The texts of `kontiki version` and `kontiki help`, made from the tables they describe.
//!
//! A setting or a command that is not in its table does not exist, and one that is there is
//! explained: no help text is written twice.

use super::config::{CONFIG, SETTINGS, variable};
use super::explore;
use super::lines::COMMANDS;
use super::nearest;
use std::fmt::Write;

/// A subcommand of the binary.
#[derive(Clone, Copy, Debug)]
pub struct Subcommand {
    /// Its word.
    pub name: &'static str,
    /// What follows the word.
    pub words: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// Every subcommand, in the order of the help text.
#[rustfmt::skip]
pub const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand { name: "serve", words: "[FLAGS]", help: "run one node" },
    Subcommand { name: "cli", words: "[FLAGS] [WORDS...]", help: "talk to a cluster: one command, or lines from standard input" },
    Subcommand { name: "bench", words: "[FLAGS]", help: "measure how fast a cluster is" },
    Subcommand { name: "sim", words: "[FLAGS]", help: "run whole nodes on a simulated disk, network and clock, with faults" },
    Subcommand { name: "inspect", words: "(verify|wal|store|identity|dump|recover) DIR [FLAGS]", help: "look through the data directory of a node that does not run" },
    Subcommand { name: "version", words: "", help: "print the version" },
    Subcommand { name: "help", words: "[SUBCOMMAND]", help: "print this, or all about one subcommand" },
];

/// The flags of `cli`: name, value, text.
#[rustfmt::skip]
const CLI_FLAGS: &[(&str, &str, &str)] = &[
    ("-a", "HOST:PORT[,..]", "nodes to ask, one is enough (default 127.0.0.1:7101)"),
    ("--json", "", "answer with one JSON object a line, errors too"),
    ("--timeout-ms", "N", "milliseconds until an answer is given up"),
    ("--token-file", "FILE", "file with the token of the cluster"),
];

/// The flags of `bench` beside those it shares with `cli`: name, value, text.
#[rustfmt::skip]
const BENCH_FLAGS: &[(&str, &str, &str)] = &[
    ("--clients", "N", "clients, each with a connection of its own (default 64)"),
    ("--seconds", "S", "how long to measure (default 5)"),
    ("--value", "SIZE", "bytes of a value (default 256)"),
    ("--keys", "N", "different keys (default 100000); those to be read are stored first"),
    ("--pipeline", "P", "requests that each client has open at a time (default 1)"),
    ("--mix", "put|get|80r20w", "what to ask: writes, linearizable reads, or four reads to one write (default put)"),
    ("--rate", "N", "requests a second, all clients together; latency counts from when each is due (default: the next when one is answered)"),
    ("--once", "", "each key once, in a scattered order; ends with the last (default: keys at random until the time is over)"),
    ("--stored", "", "the keys to read are there already, from an earlier run"),
];

/// The flags of `bench --engine`: name, value, text.
#[rustfmt::skip]
const ENGINE_FLAGS: &[(&str, &str, &str)] = &[
    ("--engine", "", "measure the storage engine alone, with the workloads of db_bench; no cluster is asked"),
    ("--dir", "DIR", "an empty or new directory, removed in the end (default kontiki-bench)"),
    ("--workloads", "A,B..", "of fillseq fillrandom readrandom readmissing seekrandom readseq readreverse overwrite"),
    ("--keys", "N", "different keys, and how many are written (default 1000000)"),
    ("--reads", "N", "how many are read (default as many as --keys)"),
    ("--value", "SIZE", "bytes of a value (default 256)"),
    ("--memtable", "SIZE", "bytes that are written to memory before they are flushed (default 32MiB)"),
    ("--cache", "SIZE", "bytes of the block cache (default 64MiB)"),
];

/// The flags of `sim`: name, value, text.
#[rustfmt::skip]
const SIM_FLAGS: &[(&str, &str, &str)] = &[
    ("--seed", "N", "run this seed and print its trace hash"),
    ("--seeds", "COUNT", "run so many seeds, from 0 or from --seed, and print totals (default 100)"),
    ("--steps", "N", "end the storm of faults after so many steps (default 60000)"),
    ("--nodes", "N", "nodes of the cluster (by default the seed decides: 1, 3 or 5)"),
    ("--jobs", "N", "of many seeds, run N at the same time (default: one a core)"),
    ("--stop", "", "of many seeds, stop at the first that fails"),
    ("--trace", "", "print every step"),
    ("--record", "DIR", "with --seed: leave recordings of its nodes there, as serve --record does"),
    ("--replay", "FILE...", "something else: replay recordings of real processes (serve --record), or all below directories"),
    ("--explore", "", "something else: every short run of the consensus core alone, with the flags below"),
];

/// What `inspect` looks at: word, text.
#[rustfmt::skip]
const INSPECT_SUBJECTS: &[(&str, &str)] = &[
    ("verify DIR", "check every checksum and every reference from file to file; each problem is one line: file, offset, what"),
    ("wal DIR", "the files of the log, hard state, first and last index, configurations"),
    ("store DIR", "the manifest, the tables of each level, what the state machine remembers beside the keys"),
    ("identity DIR", "cluster, node, address, members, and whether both copies agree"),
    ("dump DIR", "write every row of a damaged store that can be read, as lines for load, and say what could not"),
    ("recover DIR", "the majority is lost for ever: make this survivor a cluster of one, with a new name and with what it has"),
];

/// The flags of `inspect`: name, value, text.
#[rustfmt::skip]
const INSPECT_FLAGS: &[(&str, &str, &str)] = &[
    ("--entries", "", "of wal: also one line an entry, in the order in which they were written: index, term, kind, bytes, content"),
    ("--old", "", "of dump: the rows of which a newer version may be lost, and no others"),
    ("--i-accept-data-loss", "", "of recover: what only the lost nodes have is given up"),
    ("--json", "", "one JSON object and nothing else"),
];

/// Width of the explanations, letters; wider lines are hard to read.
const WIDTH: usize = 96;

/// `kontiki 0.1.0`.
pub fn version() -> String {
    format!("kontiki {}", env!("CARGO_PKG_VERSION"))
}

/// The help text of a subcommand, or of the binary; it ends with a line end.
///
/// # Errors
/// When there is no such subcommand: one line that names the nearest.
pub fn help(topic: Option<&str>) -> Result<String, String> {
    match topic {
        None => Ok(overview()),
        Some("serve") => Ok(serve()),
        Some("cli") => Ok(cli()),
        Some("bench") => Ok(bench()),
        Some("sim") => Ok(sim()),
        Some("inspect") => Ok(inspect()),
        Some(other) => match SUBCOMMANDS.iter().find(|s| s.name == other) {
            Some(s) => Ok(format!("usage: {}\n\n{}\n", usage(s), s.help)),
            None => Err(unknown(other)),
        },
    }
}

/// The error for a word that is no subcommand.
pub fn unknown(word: &str) -> String {
    match nearest(word, SUBCOMMANDS.iter().map(|s| s.name)) {
        Some(name) => format!("unknown subcommand '{word}'; did you mean {name}?"),
        None => format!("unknown subcommand '{word}'; see kontiki help"),
    }
}

fn usage(s: &Subcommand) -> String {
    format!("kontiki {} {}", s.name, s.words).trim_end().to_owned()
}

fn overview() -> String {
    let mut text = format!("{}: a small replicated key-value store\n\n", version());
    let rows = SUBCOMMANDS.iter().map(|s| (usage(s), s.help.to_owned()));
    push_rows(&mut text, rows.collect());
    text
}

fn serve() -> String {
    let mut text = String::from("usage: kontiki serve [FLAGS]\n\nRuns one node. ");
    text.push_str("The same command line again continues from what is on disk.\n\n");
    let row = |s: &super::config::Setting| {
        let default = match s.default {
            "" => String::new(),
            default => format!(" (default {default})"),
        };
        (format!("--{} {}", s.name, s.value), format!("{}{default}", s.help))
    };
    push_rows(&mut text, SETTINGS.iter().chain([&CONFIG]).map(row).collect());
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "\nEach is also a variable ({} for --data) and a line of the file (data = DIR).\n\
         A flag goes before the variable, the variable before the file. SIZE is a number of\n\
         bytes or 64KiB, 256MiB.\n",
        variable("data"),
    );
    text
}

fn flag(&(name, value, help): &(&str, &str, &str)) -> (String, String) {
    (format!("{name} {value}").trim_end().to_owned(), help.to_owned())
}

fn sim() -> String {
    let mut text = String::from("usage: kontiki sim [FLAGS]\n\n");
    push_rows(&mut text, SIM_FLAGS.iter().map(flag).collect());
    text.push_str(
        "\nOne seed decides everything and reproduces a run exactly. Exit code 1 when an invariant was\n\
         broken; the last lines then name it. A replay names the first record that differs from what the\n\
         components do, or that breaks an invariant; give it the recordings of all nodes.\n\n\
         With --explore:\n\n",
    );
    let flags = explore::FLAGS.iter().map(|&(name, value, help)| (name, value, help.to_owned()));
    let row = |(name, value, help)| (format!("--{name} {value}").trim_end().to_owned(), help);
    push_rows(&mut text, flags.chain(explore::allowances()).map(row).collect());
    text.push_str(
        "\nThe shortest run that breaks an invariant is printed. What ends in which time is in\n\
         docs/simulation.md.\n",
    );
    text
}

fn inspect() -> String {
    let mut text = String::from(
        "usage: kontiki inspect (verify|wal|store|identity|dump|recover) DIR [FLAGS]\n\n",
    );
    let subject = |&(word, help): &(&str, &str)| (word.to_owned(), help.to_owned());
    push_rows(&mut text, INSPECT_SUBJECTS.iter().map(subject).collect());
    text.push('\n');
    push_rows(&mut text, INSPECT_FLAGS.iter().map(flag).collect());
    text.push_str(
        "\nDIR is a data directory. Nothing in it is changed. Exit code 0: nothing is damaged; 1: something\n\
         is; 2: usage, or no data directory; 3: a node runs there, or it cannot be read.\n\
         docs/operations.md, \"Inspecting a data directory\", explains the output.\n",
    );
    text
}

fn bench() -> String {
    let mut text = String::from("usage: kontiki bench [FLAGS]\n\n");
    let shared = CLI_FLAGS.iter().filter(|(name, ..)| *name != "--json");
    push_rows(&mut text, shared.chain(BENCH_FLAGS).map(flag).collect());
    text.push_str(
        "\nPrints answers per second, the latency that half, 99 %, 99.9 % and 99.99 % of them stayed below, the\n\
         longest, and how many failed. Writes are never sent twice.\n\n",
    );
    push_rows(&mut text, ENGINE_FLAGS.iter().map(flag).collect());
    text
}

fn cli() -> String {
    let mut text = String::from("usage: kontiki cli [FLAGS] [WORDS...]\n\n");
    push_rows(&mut text, CLI_FLAGS.iter().map(flag).collect());
    text.push('\n');
    text.push_str(&commands());
    text
}

/// What `help` says inside the line client.
pub fn commands() -> String {
    let mut text = String::new();
    let row = |c: &super::lines::Usage| {
        (format!("{} {}", c.name, c.words).trim_end().to_owned(), c.help.to_owned())
    };
    push_rows(&mut text, COMMANDS.iter().map(row).collect());
    text.push_str(
        "\nWords are bare, \"quoted\\n\\x00\" or 'raw'. dump and load know lines KEY<TAB>VALUE, in which\n\
         \\\\ \\r \\n (and in a key \\t) stand for backslash, carriage return, line feed (and tab).\n",
    );
    text
}

/// Two columns: names to the left, explanations to the right, wrapped. A name that is too wide for
/// the column stands on a line of its own.
fn push_rows(text: &mut String, rows: Vec<(String, String)>) {
    const NAME_WIDTH_MAX: usize = 32;
    let widths = rows.iter().map(|(name, _)| name.chars().count());
    let column = widths.filter(|&w| w <= NAME_WIDTH_MAX).max().unwrap_or(0);
    let indent = " ".repeat(column + 4);
    for (name, help) in rows {
        let mut line = format!("  {name:column$}  ");
        if name.chars().count() > column {
            let _ = writeln!(text, "  {name}");
            line.clone_from(&indent);
        }
        let mut room = WIDTH - column;
        for (i, word) in help.split(' ').enumerate() {
            let length = word.chars().count();
            if i > 0 && length + 1 > room {
                let _ = writeln!(text, "{line}");
                line = format!("{indent}{word}");
                room = (WIDTH - column).saturating_sub(length);
            } else {
                let space = if i > 0 { " " } else { "" };
                let _ = write!(line, "{space}{word}");
                room = room.saturating_sub(length + 1);
            }
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_of_serve_explains_every_setting() {
        // Whatever the table holds is there, with its default.
        let text = help(Some("serve")).unwrap_or_default();
        for s in SETTINGS.iter().chain([&CONFIG]) {
            assert!(text.contains(&format!("--{} {}", s.name, s.value)), "{}: {text}", s.name);
            assert!(text.contains(s.default), "{}", s.name);
        }
        assert!(text.contains("KONTIKI_DATA"));
    }

    #[test]
    fn help_of_cli_explains_every_command() {
        // The same text that the line client prints.
        let text = help(Some("cli")).unwrap_or_default();
        for c in COMMANDS {
            assert!(text.contains(&format!("\n  {} {}", c.name, c.words).trim_end().to_owned()));
        }
        assert!(text.contains("--json") && text.ends_with(&commands()));
    }

    #[test]
    fn help_of_sim_explains_every_flag_of_the_explorer() {
        // Each bound and each kind of event.
        let text = help(Some("sim")).unwrap_or_default();
        for (name, value, _) in explore::FLAGS {
            assert!(text.contains(format!("\n  --{name} {value}").trim_end()), "{name}: {text}");
        }
        for (name, ..) in explore::allowances() {
            assert!(text.contains(&format!("\n  --{name} N")), "{name}: {text}");
        }
    }

    #[test]
    fn every_subcommand_has_a_page_and_the_overview_lists_it() {
        // A page for each, none for anything else.
        let overview = help(None).unwrap_or_default();
        for s in SUBCOMMANDS {
            assert!(overview.contains(&format!("kontiki {}", s.name)));
            assert!(help(Some(s.name)).is_ok_and(|page| page.starts_with("usage: kontiki ")));
        }
        assert_eq!(
            help(Some("sevre")),
            Err("unknown subcommand 'sevre'; did you mean serve?".into())
        );
        assert_eq!(unknown("frobnicate"), "unknown subcommand 'frobnicate'; see kontiki help");
    }

    #[test]
    fn no_line_is_too_wide_or_ends_in_space() {
        // It must fit a terminal window, and be clean in a pipe.
        for topic in [None, Some("serve"), Some("cli"), Some("sim"), Some("inspect")] {
            for line in help(topic).unwrap_or_default().lines() {
                assert!(line.chars().count() <= WIDTH + 4, "{line}");
                assert_eq!(line, line.trim_end());
            }
        }
    }

    #[test]
    fn version_is_that_of_the_package() {
        // One word and the number, so that scripts can cut it.
        assert_eq!(
            version().split(' ').collect::<Vec<_>>(),
            ["kontiki", env!("CARGO_PKG_VERSION")]
        );
    }
}
