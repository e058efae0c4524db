//! The settings of `serve`, typed and checked.
//!
//! [`resolve`] takes the command line and the environment and answers a [`ServeConfig`] or one
//! error that names the source of the wrong value: `flag --max-value`, `variable
//! KONTIKI_MAX_VALUE`, `line 3 of FILE`. Settings that only make sense together are compared here,
//! before anything is opened.
//! Left out: what is on disk. Whether the identity there fits is the node's question.

use super::exit::Exit;
use super::settings::{Given, Values, gather};
use crate::kv::Limits;
use crate::kv::limits::MAX_BATCH_BYTES_CEILING;
use crate::wire::handshake::TOKEN_BYTES_MAX;
use crate::wire::proof::TOKENS_MAX;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use super::settings::{CONFIG, Origin, SETTINGS, Setting, variable};

/// Most first members: more voters only make every commit slower.
pub const PEERS_MAX: usize = 31;
/// Longest time a setting may name, milliseconds: a cluster that waits longer is down.
pub const TIMEOUT_MS_MAX: u64 = 60_000;
/// Most connections a node may be told to serve: each costs a thread.
pub const CONNECTIONS_MAX: u64 = 65_536;
/// Largest atomic write a setting may allow, bytes: it travels in one frame from the client, with
/// some words around it.
pub const BATCH_BYTES_MAX: u64 = MAX_BATCH_BYTES_CEILING as u64;
/// Most unanswered writes a setting may allow, bytes: they lie in memory.
pub const INFLIGHT_BYTES_MAX: u64 = 1 << 30;
/// Bounds of `--record-limit`: some seconds of work at least, and at most what a replay can still read into memory
/// on a machine of its own.
const RECORD_LIMIT_BYTES_MIN: u64 = 1 << 20;
const RECORD_LIMIT_BYTES_MAX: u64 = 64 << 30;
/// Least log: less would be spent on its segments.
pub const WAL_LIMIT_BYTES_MIN: u64 = 1 << 20;
/// Largest memtable and cache, bytes each: beyond it a slip of the pen is likelier than such a
/// machine.
pub const STORE_MEMORY_BYTES_MAX: u64 = 1 << 40;
/// Smallest size a setting may name, bytes: less does not hold one key.
pub const SIZE_BYTES_MIN: u64 = 1 << 10;
/// Longest host name, bytes (RFC 1035).
const HOST_BYTES_MAX: usize = 253;

const _: () = {
    assert!(BATCH_BYTES_MAX <= MAX_BATCH_BYTES_CEILING as u64);
    assert!(BATCH_BYTES_MAX <= INFLIGHT_BYTES_MAX);
};

/// Everything `serve` is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeConfig {
    /// Data directory.
    pub data: PathBuf,
    /// Where the node listens.
    pub listen: Address,
    /// Where others reach it.
    pub advertise: Address,
    /// The first members, sorted by host and port; empty when the node forms a cluster of one.
    pub peers: Vec<Address>,
    /// A running cluster that is to take the node in; empty when none is.
    pub join: Vec<Address>,
    /// A backup that a new cluster begins from.
    pub restore: Option<PathBuf>,
    /// File with the shared token.
    pub token_file: Option<PathBuf>,
    /// Time between heartbeats, milliseconds.
    pub heartbeat_ms: u64,
    /// Least time without a leader before an election, milliseconds.
    pub election_timeout_ms: u64,
    /// Connections served at a time.
    pub max_connections: usize,
    /// What a write may be (`max-value`, `max-batch`).
    pub limits: Limits,
    /// Writes that are taken and not answered yet, bytes.
    pub inflight_bytes: usize,
    /// Log beyond which its front goes, bytes.
    pub wal_limit_bytes: u64,
    /// Newest writes kept in memory, bytes.
    pub memtable_bytes: usize,
    /// Room on disk that is kept for when the disk is full, bytes.
    pub reserve_bytes: u64,
    /// Table blocks kept in memory, bytes.
    pub cache_bytes: usize,
    /// Directory for recordings of what the node gets and does; none makes none.
    pub record: Option<PathBuf>,
    /// Bytes of one recording.
    pub record_bytes_max: u64,
    /// How much is logged.
    pub log_level: LogLevel,
}

impl ServeConfig {
    /// The first members with their ids, 1..N in the order of their addresses: the same on every
    /// node, in whatever order the command line names them.
    pub fn members(&self) -> Vec<(u64, &Address)> {
        let all =
            if self.peers.is_empty() { std::slice::from_ref(&self.advertise) } else { &self.peers };
        (1..).zip(all).collect()
    }

    /// This node's id among the first members.
    pub fn node_id(&self) -> u64 {
        let mine = self.members().into_iter().find(|(_, address)| **address == self.advertise);
        // `check` refuses peers without this node; zero is never a member.
        mine.map_or(0, |(id, _)| id)
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Serve so.
    Serve(Box<ServeConfig>),
    /// Print the help text.
    Help,
}

/// How much is logged; each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// What stops the node or loses a connection to a peer for good.
    Error,
    /// What a person should look at.
    Warn,
    /// What happens in the normal course of things, seldom.
    Info,
    /// Everything.
    Debug,
}

impl LogLevel {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        }
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<LogLevel, String> {
        [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug]
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| format!("'{text}' is not one of error, warn, info, debug"))
    }
}

/// A host and a port. Ordered by host, then by the port as a number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// A name in lower case or an IP address in its usual form, without brackets.
    pub host: String,
    /// The port, never 0.
    pub port: u16,
}

impl Address {
    /// Whether only this machine reaches it. A name other than `localhost` may lead anywhere.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether it stands for every address of the machine, so that nobody can connect to it.
    pub fn is_unspecified(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("'{text}' is not of the form HOST:PORT"))?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|&p| p > 0 && digits)
            .ok_or_else(|| format!("'{port}' in '{text}' is not a port from 1 to 65535"))?;
        let host = if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            let ip = inner.parse::<Ipv6Addr>();
            ip.map_err(|_| format!("'{inner}' in '{text}' is not an IPv6 address"))?.to_string()
        } else if host.contains(':') {
            return Err(format!("'{text}': an IPv6 address is written [ADDRESS]:PORT"));
        } else {
            let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(good) {
                return Err(format!("'{host}' in '{text}' is not a host name"));
            }
            host.to_ascii_lowercase()
        };
        Ok(Address { host, port })
    }
}

/// Why there is no configuration. Nothing was opened or changed; exit code 2.
#[derive(Debug)]
pub enum ConfigError {
    /// A name that is no setting.
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// The name as it is spelled there.
        name: String,
        /// The nearest setting, spelled in the same way.
        nearest: Option<String>,
    },
    /// A value that is wrong by itself or beside another one.
    Bad {
        /// Where it stands.
        origin: Origin,
        /// What is wrong.
        why: String,
    },
    /// A word that is no flag.
    Word(String),
    /// A file that cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ConfigError {
    /// How the process ends.
    pub fn exit(&self) -> Exit {
        Exit::Usage
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Unknown { origin, name, nearest } => {
                match origin {
                    Origin::Line { .. } => write!(f, "{origin}: {name} is unknown")?,
                    _ => write!(f, "{origin} is unknown")?,
                }
                match nearest {
                    Some(nearest) => write!(f, "; did you mean {nearest}?"),
                    None => write!(f, "; see kontiki help serve"),
                }
            }
            ConfigError::Bad { origin, why } => write!(f, "{origin}: {why}"),
            ConfigError::Word(word) => {
                write!(f, "serve takes flags only, not '{word}'; see kontiki help serve")
            }
            ConfigError::Unreadable { path, source } => {
                write!(f, "cannot read {}: {source}", path.display())
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConfigError::Unreadable { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Settles what `serve` is told: flag over variable over file over default. `args` are the words
/// after `serve`; `variables` the whole environment (`std::env::vars_os()`).
///
/// # Errors
/// When a name is unknown, a value does not parse, the settings contradict one another, or the
/// configuration file cannot be read.
pub fn resolve(
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Resolved, ConfigError> {
    let Some(values) = gather(args, variables)? else { return Ok(Resolved::Help) };
    let settings = Settings(&values);
    let listen = settings.required("listen", Address::from_str)?;
    let config = ServeConfig {
        data: settings.required("data", path)?,
        advertise: settings.optional("advertise", Address::from_str)?.unwrap_or(listen.clone()),
        listen,
        peers: settings.optional("peers", peers)?.unwrap_or_default(),
        join: settings.optional("join", parse_addresses)?.unwrap_or_default(),
        restore: settings.optional("restore", path)?,
        token_file: settings.optional("token-file", path)?,
        heartbeat_ms: settings.required("heartbeat-ms", milliseconds)?,
        election_timeout_ms: settings.required("election-timeout-ms", milliseconds)?,
        max_connections: settings.required("max-connections", connections)?,
        limits: settings.limits()?,
        inflight_bytes: settings.required("inflight-bytes", |t| sized(t, INFLIGHT_BYTES_MAX))?,
        wal_limit_bytes: settings.required("wal-limit", wal_limit)?,
        memtable_bytes: settings.required("memtable", |t| sized(t, STORE_MEMORY_BYTES_MAX))?,
        reserve_bytes: settings.required("reserve", reserve)?,
        cache_bytes: settings.required("cache", |t| sized(t, STORE_MEMORY_BYTES_MAX))?,
        record: settings.optional("record", path)?,
        record_bytes_max: settings.required("record-limit", record_limit)?,
        log_level: settings.required("log-level", LogLevel::from_str)?,
    };
    settings.check(&config)?;
    Ok(Resolved::Serve(Box::new(config)))
}

/// The values as they were written, on their way to types.
struct Settings<'a>(&'a Values);

impl Settings<'_> {
    fn optional<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let parse = |g: &Given| {
            parse(&g.value).map_err(|why| ConfigError::Bad { origin: g.origin.clone(), why })
        };
        self.0.get(name).map(parse).transpose()
    }

    fn required<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        self.optional(name, parse)?.ok_or_else(|| self.bad(&[name], "is missing".to_owned()))
    }

    /// What a write may be: the largest value must fit the largest write.
    fn limits(&self) -> Result<Limits, ConfigError> {
        let max_value = self.required("max-value", |t| sized(t, BATCH_BYTES_MAX))?;
        let max_batch = self.required("max-batch", |t| sized(t, BATCH_BYTES_MAX))?;
        Limits::new(max_value, max_batch)
            .map_err(|why| self.bad(&["max-value", "max-batch"], why.to_string()))
    }

    /// An error that blames the first of these settings that somebody set.
    fn bad(&self, names: &[&'static str], why: String) -> ConfigError {
        let set = names.iter().filter_map(|n| self.0.get(n)).map(|g| &g.origin);
        let origin = set
            .clone()
            .find(|o| !matches!(o, Origin::Default(_)))
            .or(set.clone().next())
            .cloned()
            .unwrap_or(Origin::Default(names.first().copied().unwrap_or_default()));
        ConfigError::Bad { origin, why }
    }

    /// What must hold between settings.
    fn check(&self, c: &ServeConfig) -> Result<(), ConfigError> {
        // A follower must hear two heartbeats before it gives a leader up, or one lost packet
        // costs an election.
        if c.heartbeat_ms.saturating_mul(2) >= c.election_timeout_ms {
            return Err(self.bad(
                &["heartbeat-ms", "election-timeout-ms"],
                format!(
                    "the heartbeat ({} ms) must be less than half of the election timeout ({} ms)",
                    c.heartbeat_ms, c.election_timeout_ms
                ),
            ));
        }
        // Else the largest write would be answered `busy` for ever.
        let max_batch = c.limits.max_batch_bytes;
        if max_batch > c.inflight_bytes {
            let why = format!(
                "max-batch ({max_batch}) must not exceed inflight-bytes ({})",
                c.inflight_bytes
            );
            return Err(self.bad(&["max-batch", "inflight-bytes"], why));
        }
        if !c.listen.is_loopback() && c.token_file.is_none() {
            return Err(self.bad(
                &["listen"],
                format!("{} is reachable from other machines: that needs --token-file", c.listen),
            ));
        }
        if c.advertise.is_unspecified() {
            return Err(self.bad(
                &["advertise", "listen"],
                format!("nobody can connect to {}: name an address with --advertise", c.advertise),
            ));
        }
        let alone = [("peers", !c.peers.is_empty()), ("restore", c.restore.is_some())];
        if let Some((other, _)) = alone.into_iter().find(|(_, set)| *set && !c.join.is_empty()) {
            let why = format!(
                "a node that joins a running cluster does not begin one: leave out --join or --{other}"
            );
            return Err(self.bad(&["join"], why));
        }
        if c.join.contains(&c.advertise) {
            let why = format!("{} is this node itself; name nodes that run", c.advertise);
            return Err(self.bad(&["join"], why));
        }
        if !c.peers.is_empty() && !c.peers.contains(&c.advertise) {
            let list: Vec<String> = c.peers.iter().map(Address::to_string).collect();
            return Err(self.bad(
                &["peers"],
                format!(
                    "this node's own address {} is not among {}; set --advertise or --listen",
                    c.advertise,
                    list.join(",")
                ),
            ));
        }
        Ok(())
    }
}

/// The addresses of all first members, sorted.
fn peers(text: &str) -> Result<Vec<Address>, String> {
    let mut list = parse_addresses(text)?;
    if list.len() > PEERS_MAX {
        return Err(format!("{} members are more than {PEERS_MAX}", list.len()));
    }
    list.sort();
    match list.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("{} is named twice", pair[0])),
        None => Ok(list),
    }
}

/// Addresses with commas between them, in their order.
///
/// # Errors
/// When one is not `HOST:PORT`.
pub fn parse_addresses(text: &str) -> Result<Vec<Address>, String> {
    text.split(',').map(|item| item.trim().parse()).collect()
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn milliseconds(text: &str) -> Result<u64, String> {
    parse_integer(text, 1, TIMEOUT_MS_MAX)
}

fn connections(text: &str) -> Result<usize, String> {
    to_usize(parse_integer(text, 1, CONNECTIONS_MAX)?)
}

fn wal_limit(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if !(WAL_LIMIT_BYTES_MIN..=STORE_MEMORY_BYTES_MAX).contains(&bytes) {
        let (min, max) = (WAL_LIMIT_BYTES_MIN, STORE_MEMORY_BYTES_MAX);
        return Err(format!("'{text}' is not from {min} to {max} bytes"));
    }
    Ok(bytes)
}

fn reserve(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes > STORE_MEMORY_BYTES_MAX {
        return Err(format!("'{text}' is more than {STORE_MEMORY_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

fn record_limit(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if !(RECORD_LIMIT_BYTES_MIN..=RECORD_LIMIT_BYTES_MAX).contains(&bytes) {
        let (min, max) = (RECORD_LIMIT_BYTES_MIN, RECORD_LIMIT_BYTES_MAX);
        return Err(format!("'{text}' is not from {min} to {max} bytes"));
    }
    Ok(bytes)
}

fn sized(text: &str, max: u64) -> Result<usize, String> {
    let bytes = parse_size(text)?;
    if !(SIZE_BYTES_MIN..=max).contains(&bytes) {
        return Err(format!("'{text}' is not from {SIZE_BYTES_MIN} to {max} bytes"));
    }
    to_usize(bytes)
}

fn to_usize(number: u64) -> Result<usize, String> {
    usize::try_from(number).map_err(|_| format!("{number} is more than this machine can count"))
}

/// A whole number within bounds, both included.
///
/// # Errors
/// When it is not a number or outside.
pub fn parse_integer(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse::<u64>()
        .ok()
        .filter(|n| digits && (min..=max).contains(n))
        .ok_or_else(|| format!("'{text}' is not a whole number from {min} to {max}"))
}

/// A number of bytes: plain, or with `B`, `KiB`, `MiB`, `GiB`.
///
/// # Errors
/// When it is not a number with a known unit, or does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size such as 4096, 64KiB, 256MiB or 2GiB");
    let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is too large"))
}

/// Reads the shared token: the text of the file without the space around it. During a change the file has two
/// lines, a token each, and both are given, with a line end between them.
///
/// # Errors
/// When the file cannot be read, is empty or has more lines, or a line is too long, or holds a control character
/// or bytes that are not UTF-8.
pub fn read_token(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read;
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let wrong = |why: &str| unreadable(io::Error::new(io::ErrorKind::InvalidData, why));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(4 * TOKEN_BYTES_MAX as u64).read_to_string(&mut text).map_err(unreadable)?;
    let tokens: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if tokens.is_empty() {
        return Err(wrong("the token is empty"));
    }
    let odd = |token: &&str| token.len() > TOKEN_BYTES_MAX || token.chars().any(char::is_control);
    if tokens.len() > TOKENS_MAX || tokens.iter().any(odd) {
        return Err(wrong(&format!(
            "the token is not one line of at most {TOKEN_BYTES_MAX} bytes, nor are there two such lines, the new \
             token and the old one"
        )));
    }
    Ok(tokens.join("\n"))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
