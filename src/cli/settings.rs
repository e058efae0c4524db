//! Where a setting of `serve` comes from: flag over variable over file over default.
//!
//! One table names every setting; the flags, the `KONTIKI_` variables, the lines of the `--config`
//! file and the help text all follow from it, so none of them can forget one. What the values mean
//! is the business of [`super::config`].

use super::config::ConfigError;
use super::nearest;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A setting of `serve`.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name: `--name`, `KONTIKI_NAME` with underscores, `name = value`.
    pub name: &'static str,
    /// What stands for the value in the help text.
    pub value: &'static str,
    /// Its value when nobody sets it; empty where there is none.
    pub default: &'static str,
    /// One sentence for the help text.
    pub help: &'static str,
}

/// Every setting of `serve`, in the order of the help text.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    Setting { name: "data", value: "DIR", default: "./kontiki-data", help: "data directory; made when absent" },
    Setting { name: "listen", value: "HOST:PORT", default: "127.0.0.1:7101", help: "where clients and peers are served; beyond loopback only with --token-file" },
    Setting { name: "advertise", value: "HOST:PORT", default: "", help: "where others reach this node; without it, the address of --listen" },
    Setting { name: "peers", value: "A,B,C", default: "", help: "the addresses of all first members, this node's among them; without it, a cluster of one" },
    Setting { name: "join", value: "A[,B..]", default: "", help: "addresses of a running cluster that is to take this node in" },
    Setting { name: "restore", value: "FILE", default: "", help: "a new cluster begins from this backup; with --peers, every member from the same file" },
    Setting { name: "token-file", value: "FILE", default: "", help: "file with the token that clients and peers must know" },
    Setting { name: "heartbeat-ms", value: "N", default: "100", help: "milliseconds between a leader's heartbeats" },
    Setting { name: "election-timeout-ms", value: "N", default: "500", help: "milliseconds without a leader before an election; each wait is drawn from here to twice that" },
    Setting { name: "max-connections", value: "N", default: "8192", help: "connections that are served at a time; further ones are refused" },
    Setting { name: "max-value", value: "SIZE", default: "1MiB", help: "largest value; fits --max-batch with its key" },
    Setting { name: "max-batch", value: "SIZE", default: "4MiB", help: "largest atomic write, keys and values together" },
    Setting { name: "inflight-bytes", value: "SIZE", default: "64MiB", help: "writes that are taken and not answered yet; further ones are busy" },
    Setting { name: "wal-limit", value: "SIZE", default: "256MiB", help: "log beyond which its front goes, from 1MiB; a member that lags further gets a snapshot" },
    Setting { name: "memtable", value: "SIZE", default: "32MiB", help: "newest writes kept in memory before they go to a table; two to four of these at a peak" },
    Setting { name: "reserve", value: "SIZE", default: "64MiB", help: "room on disk that is kept so that deletes go on when the disk is full; 0 for none" },
    Setting { name: "cache", value: "SIZE", default: "64MiB", help: "table blocks kept in memory for reads" },
    Setting { name: "record", value: "DIR", default: "", help: "record what this node gets and does there, for kontiki sim --replay; holds keys and values in clear, costs speed and disk" },
    Setting { name: "record-limit", value: "SIZE", default: "1GiB", help: "bytes of one recording, of which each start begins one; then recording ends" },
    Setting { name: "log-level", value: "error|warn|info|debug", default: "info", help: "how much is written to standard error" },
];

/// The flag that names the file; not a line of that file.
pub const CONFIG: Setting = Setting {
    name: "config",
    value: "FILE",
    default: "",
    help: "file with a line `name = value` for any of these; flags and variables go before it",
};

/// Variables of scripts/, which `serve` inherits and which are none of its settings.
const SCRIPT_VARIABLES: [&str; 3] = ["KONTIKI_PORT", "KONTIKI_DIR", "KONTIKI_BIN"];

/// What every variable's name begins with.
const PREFIX: &str = "KONTIKI_";

/// Largest configuration file, bytes: every setting once with a long comment is a tenth of this.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The variable of a setting.
pub fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.replace('-', "_").to_ascii_uppercase())
}

/// Who said what a setting is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody: the default of this setting.
    Default(&'static str),
    /// A line of the configuration file, from 1.
    Line {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A flag of the command line, without its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default(name) => write!(f, "default of --{name}"),
            Origin::Line { file, line } => write!(f, "line {line} of {}", file.display()),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::Flag(name) if name.chars().count() == 1 => write!(f, "flag -{name}"),
            Origin::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// A value as it was written, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) value: String,
    pub(super) origin: Origin,
}

/// The settings as they were written, each from its strongest source.
#[derive(Clone, Debug, Default)]
pub(super) struct Values(BTreeMap<&'static str, Given>);

impl Values {
    /// The value of a setting, if somebody set it or it has a default.
    pub(super) fn get(&self, name: &str) -> Option<&Given> {
        self.0.get(name)
    }
}

/// Collects the settings; none when help was asked for.
pub(super) fn gather(
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Option<Values>, ConfigError> {
    let Some(flags) = from_flags(args)? else { return Ok(None) };
    let variables = from_variables(variables)?;
    let mut values = Values::default();
    for s in SETTINGS.iter().filter(|s| !s.default.is_empty()) {
        let origin = Origin::Default(s.name);
        values.0.insert(s.name, Given { value: s.default.to_owned(), origin });
    }
    if let Some(file) = flags.get(CONFIG.name).or_else(|| variables.get(CONFIG.name)) {
        values.0.extend(from_file(Path::new(&file.value))?);
    }
    values.0.extend(variables);
    values.0.extend(flags);
    Ok(Some(values))
}

type Found = BTreeMap<&'static str, Given>;

/// The setting of that name, or an error that names the nearest one in the words of its source.
fn known(
    name: &str,
    origin: &Origin,
    with_config: bool,
    spell: impl Fn(&str) -> String,
) -> Result<&'static str, ConfigError> {
    let names = || {
        let config = with_config.then_some(CONFIG.name);
        SETTINGS.iter().map(|s| s.name).chain(config)
    };
    names().find(|n| *n == name).ok_or_else(|| ConfigError::Unknown {
        origin: origin.clone(),
        name: spell(name),
        nearest: nearest(name, names()).map(spell),
    })
}

fn from_flags(
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<Option<Found>, ConfigError> {
    let mut options = getopts::Options::new();
    options.optflag("h", "help", "");
    for s in SETTINGS.iter().chain([&CONFIG]) {
        options.optopt("", s.name, s.help, s.value);
    }
    let bad = |name: String, why: &str| ConfigError::Bad {
        origin: Origin::Flag(name),
        why: why.to_owned(),
    };
    let matches = match options.parse(args) {
        Ok(matches) => matches,
        Err(getopts::Fail::UnrecognizedOption(name)) => {
            let origin = Origin::Flag(name.clone());
            let dashes = if name.chars().count() == 1 { "-" } else { "--" };
            known(&name, &origin, true, |n| format!("{dashes}{n}"))?;
            return Err(bad(name, "is unknown"));
        }
        Err(getopts::Fail::ArgumentMissing(name)) => return Err(bad(name, "its value is missing")),
        Err(getopts::Fail::OptionDuplicated(name)) => return Err(bad(name, "is given twice")),
        Err(getopts::Fail::UnexpectedArgument(name)) => return Err(bad(name, "takes no value")),
        Err(getopts::Fail::OptionMissing(name)) => return Err(bad(name, "is missing")),
    };
    if matches.opt_present("help") {
        return Ok(None);
    }
    if let Some(word) = matches.free.first() {
        return Err(ConfigError::Word(word.clone()));
    }
    let given = |s: &Setting| {
        let value = matches.opt_str(s.name)?;
        Some((s.name, Given { value, origin: Origin::Flag(s.name.to_owned()) }))
    };
    Ok(Some(SETTINGS.iter().chain([&CONFIG]).filter_map(given).collect()))
}

/// An empty variable counts as one that is not set: that is how many tools unset one.
fn from_variables(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Found, ConfigError> {
    let mut found = Found::new();
    for (name, value) in variables {
        // A name that is not UTF-8 is none of ours, unless it looks like one.
        let name = name.to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if SCRIPT_VARIABLES.contains(&name.as_str()) || value.is_empty() {
            continue;
        }
        let origin = Origin::Variable(name.clone());
        let plain = rest.to_ascii_lowercase().replace('_', "-");
        let setting = known(&plain, &origin, true, variable)?;
        let value = value.into_string().map_err(|_| ConfigError::Bad {
            origin: origin.clone(),
            why: "is not UTF-8".to_owned(),
        })?;
        found.insert(setting, Given { value, origin });
    }
    Ok(found)
}

fn from_file(path: &Path) -> Result<Found, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let why = format!("is longer than {FILE_BYTES_MAX} bytes");
        return Err(unreadable(std::io::Error::new(std::io::ErrorKind::InvalidData, why)));
    }
    // Some Windows editors begin a file with a byte order mark.
    parse_lines(text.strip_prefix('\u{feff}').unwrap_or(&text), path)
}

/// Reads `name = value` lines. A `#` at the start of a line or after space begins a comment.
fn parse_lines(text: &str, path: &Path) -> Result<Found, ConfigError> {
    let mut found = Found::new();
    for (i, line) in text.lines().enumerate() {
        let origin = Origin::Line { file: path.to_owned(), line: i + 1 };
        let bad = |why: String| ConfigError::Bad { origin: origin.clone(), why };
        let line = without_comment(line).trim();
        if line.is_empty() {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            return Err(bad(format!("'{line}' is not of the form name = value")));
        };
        let (name, value) = (name.trim(), value.trim());
        if name == CONFIG.name {
            return Err(bad("a configuration file cannot name another one".to_owned()));
        }
        let setting = known(name, &origin, false, str::to_owned)?;
        if value.is_empty() {
            return Err(bad(format!("the value of {name} is missing")));
        }
        let given = Given { value: value.to_owned(), origin: origin.clone() };
        if let Some(earlier) = found.insert(setting, given) {
            return Err(bad(format!("{name} was set before, in {}", earlier.origin)));
        }
    }
    Ok(found)
}

fn without_comment(line: &str) -> &str {
    let mut after_space = true;
    for (at, c) in line.char_indices() {
        if c == '#' && after_space {
            return &line[..at];
        }
        after_space = c.is_whitespace();
    }
    line
}
