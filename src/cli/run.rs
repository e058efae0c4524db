//! `kontiki cli`: one command from the words of the command line, or lines from standard input.
//!
//! Flags and the loop over lines are here; what a command does and prints is in `answers`, `dump`
//! and `load` in `bulk`. The streams are passed in, so that tests need no process. An error
//! of one line does not end the others: the exit code is that of the gravest.

use super::answers::Shell;
use super::config::{parse_addresses, parse_integer, read_token};
use super::exit::Exit;
use super::lines::{self, LineCommand, LineError};
use super::{config::Address, help};
use crate::client::{Client, Options};
use crate::env::real::argument_bytes;
use crate::wire::frame::CLIENT_FRAME_MAX;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, IsTerminal as _, Read as _, Write};
use std::path::Path;
use std::time::Duration;

/// Where a cluster is looked for when nothing is said: where `serve` listens then.
pub(super) const ADDRESS_DEFAULT: &str = "127.0.0.1:7101";

/// Longest line, bytes: what fits a frame, with every byte escaped as `\xHH`, would be twice as
/// long; such values are for files.
pub(super) const LINE_BYTES_MAX: usize = 2 * CLIENT_FRAME_MAX;

/// Longest `--timeout-ms`: an hour.
const TIMEOUT_MS_MAX: u64 = 3_600_000;

const PROMPT: &[u8] = b"kontiki> ";

/// What the line client reads and writes, and which of it is a terminal.
pub struct Streams<'a> {
    /// Lines of commands.
    pub input: &'a mut dyn BufRead,
    /// Answers.
    pub output: &'a mut dyn Write,
    /// Errors and progress.
    pub errors: &'a mut dyn Write,
    /// Somebody types the lines.
    pub input_is_terminal: bool,
    /// Somebody reads the answers.
    pub output_is_terminal: bool,
    /// Somebody reads the errors.
    pub errors_is_terminal: bool,
}

/// The flags of a subcommand that talks to a cluster.
pub(super) struct Cluster {
    pub(super) addresses: Vec<String>,
    pub(super) options: Options,
}

/// Runs the subcommand with the process's own streams.
pub fn main(args: &[impl AsRef<OsStr>]) -> Exit {
    let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
    let streams = Streams {
        input_is_terminal: input.is_terminal(),
        output_is_terminal: output.is_terminal(),
        errors_is_terminal: errors.is_terminal(),
        // Locked handles would keep other threads from writing; there are none that do.
        input: &mut BufReader::new(input),
        output: &mut BufWriter::new(output),
        errors: &mut { errors },
    };
    run(args, streams)
}

/// Runs the subcommand.
pub fn run(args: &[impl AsRef<OsStr>], streams: Streams<'_>) -> Exit {
    let mut options = cluster_options();
    // A word such as -5 behind the command is not a flag.
    options.parsing_style(getopts::ParsingStyle::StopAtFirstFree);
    options.optflag("", "json", "");
    let (matches, behind) = match leading_flags(&options, args) {
        Ok(found) => found,
        Err(fail) => return usage(streams.errors, &fail.to_string()),
    };
    if matches.opt_present("help") {
        let text = help::help(Some("cli")).unwrap_or_default();
        let written = streams.output.write_all(text.as_bytes());
        return if written.and_then(|()| streams.output.flush()).is_ok() {
            Exit::Done
        } else {
            Exit::Unavailable
        };
    }
    let cluster = match cluster_of(&matches) {
        Ok(cluster) => cluster,
        Err((exit, why)) => {
            usage(streams.errors, &why);
            return exit;
        }
    };
    let Some(words) = words_of(&args[behind..]) else {
        return usage(streams.errors, "a word is not Unicode");
    };
    let command = match words.as_slice() {
        [] => None,
        words => Some(lines::parse(words)),
    };
    let json = matches.opt_present("json");
    let client = Client::new(&cluster.addresses, cluster.options.clone());
    let Streams { input, output, errors, .. } = streams;
    let mut shell = Shell {
        client,
        options: cluster.options,
        json,
        output,
        errors,
        output_is_terminal: streams.output_is_terminal,
        errors_is_terminal: streams.errors_is_terminal,
    };
    let result = match command {
        Some(command) => one(&mut shell, command, None),
        None => all_lines(&mut shell, input, streams.input_is_terminal),
    };
    let exit = match result.and_then(|exit| shell.output.flush().map(|()| exit)) {
        Ok(exit) => exit,
        // Whoever reads the answers has seen enough.
        Err(stop) if stop.kind() == ErrorKind::BrokenPipe => Exit::Done,
        Err(stop) => {
            let _ = writeln!(shell.errors, "kontiki: cannot write the answer: {stop}");
            // What was written to the cluster may well be done: the reader cannot know.
            Exit::Unknown
        }
    };
    shell.client.close();
    exit
}

/// Parses the flags before the command alone, for only they are text; says where the command
/// begins. The shortest run of arguments that parses and has no flag behind it is all of them:
/// after a flag whose value is missing comes its value.
fn leading_flags(
    options: &getopts::Options,
    args: &[impl AsRef<OsStr>],
) -> Result<(getopts::Matches, usize), getopts::Fail> {
    let mut at = 0;
    loop {
        let word = args.get(at).map_or(&b""[..], |word| word.as_ref().as_encoded_bytes());
        let end_of_flags = word == b"--";
        if word.len() > 1 && word[0] == b'-' && !end_of_flags {
            at += 1;
            continue;
        }
        match options.parse(&args[..at]) {
            Ok(matches) => return Ok((matches, at + usize::from(end_of_flags))),
            Err(getopts::Fail::ArgumentMissing(_)) if at < args.len() => at += 1,
            Err(fail) => return Err(fail),
        }
    }
}

/// The words of a command are bytes; none when the system has one that cannot be had as bytes.
fn words_of(args: &[impl AsRef<OsStr>]) -> Option<Vec<Vec<u8>>> {
    args.iter().map(|word| argument_bytes(word.as_ref())).collect()
}

/// The flags that `cli` and `bench` share.
pub(super) fn cluster_options() -> getopts::Options {
    let mut options = getopts::Options::new();
    options.optflag("h", "help", "");
    options.optmulti("a", "address", "", "HOST:PORT[,..]");
    options.optopt("", "timeout-ms", "", "N");
    options.optopt("", "token-file", "", "FILE");
    options
}

/// What the flags say of the cluster.
pub(super) fn cluster_of(matches: &getopts::Matches) -> Result<Cluster, (Exit, String)> {
    let wrong = |flag: &str, why: String| (Exit::Usage, format!("flag {flag}: {why}"));
    let mut given = matches.opt_strs("a");
    if given.is_empty() {
        given.push(ADDRESS_DEFAULT.to_owned());
    }
    let parsed = parse_addresses(&given.join(",")).map_err(|why| wrong("-a", why))?;
    let addresses = parsed.iter().map(Address::to_string).collect();
    let mut options = Options::default();
    if let Some(text) = matches.opt_str("timeout-ms") {
        let ms = parse_integer(&text, 1, TIMEOUT_MS_MAX).map_err(|e| wrong("--timeout-ms", e))?;
        options.timeout = Duration::from_millis(ms);
        options.connect_timeout = options.connect_timeout.min(options.timeout);
    }
    if let Some(file) = matches.opt_str("token-file") {
        let token = read_token(Path::new(&file)).map_err(|e| (e.exit(), e.to_string()))?;
        options.token = token.into_bytes();
    }
    Ok(Cluster { addresses, options })
}

/// Says what is wrong with the command line.
pub(super) fn usage(errors: &mut dyn Write, why: &str) -> Exit {
    // Without standard error there is the exit code.
    let _ = writeln!(errors, "kontiki: {why}");
    Exit::Usage
}

fn one(
    shell: &mut Shell<'_>,
    command: Result<LineCommand, LineError>,
    line: Option<u64>,
) -> io::Result<Exit> {
    let exit = match command {
        Ok(command) => shell.carry_out(command, line)?,
        Err(error) => shell.fail(Exit::Usage, &error.to_string(), line)?,
    };
    shell.output.flush()?;
    Ok(exit)
}

fn all_lines(shell: &mut Shell<'_>, input: &mut dyn BufRead, typed: bool) -> io::Result<Exit> {
    let mut worst = Exit::Done;
    let mut number = 0;
    let mut line = Vec::new();
    if typed {
        shell.output.write_all(help::commands().as_bytes())?;
    }
    loop {
        if typed {
            shell.output.write_all(PROMPT)?;
            shell.output.flush()?;
        }
        number += 1;
        // Who types sees which line is meant.
        let shown = (!typed).then_some(number);
        match read_line(input, &mut line) {
            Ok(Line::Whole) => {}
            Ok(Line::End) => return Ok(worst),
            Ok(Line::TooLong) => {
                let why = format!("the line is longer than {LINE_BYTES_MAX} bytes");
                return Ok(worst.worse(shell.fail(Exit::TooLarge, &why, shown)?));
            }
            Err(error) => {
                let why = format!("cannot read the next command: {error}");
                return Ok(worst.worse(shell.fail(Exit::Usage, &why, shown)?));
            }
        }
        let command = match lines::parse_line(&line) {
            Ok(None) => continue,
            Ok(Some(LineCommand::Quit)) => return Ok(worst),
            Ok(Some(command)) => Ok(command),
            Err(error) => Err(error),
        };
        match one(shell, command, shown) {
            Ok(exit) => worst = worst.worse(exit),
            // What was found out before the reader went away still counts.
            Err(stop) if stop.kind() == ErrorKind::BrokenPipe => return Ok(worst),
            Err(stop) => return Err(stop),
        }
    }
}

/// What [`read_line`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its line feed.
    Whole,
    /// Nothing more.
    End,
    /// A line of more than [`LINE_BYTES_MAX`].
    TooLong,
}

/// Reads a line into `line`; takes memory only for what is there.
pub(super) fn read_line(mut input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<Line> {
    line.clear();
    let read = (&mut input).take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Line::Whole);
    }
    Ok(match read {
        0 => Line::End,
        n if n > LINE_BYTES_MAX => Line::TooLong,
        _ => Line::Whole,
    })
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
