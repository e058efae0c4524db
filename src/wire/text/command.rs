//! What words mean.
//!
//! To add a command: a line in `COMMANDS`, a variant of [`TextCommand`], an arm in `build`.

use super::super::kv::WRITE_PARTS_MAX;
use std::fmt::Write as _;

/// A command of the text dialect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextCommand {
    /// `PING [message]`: `PONG`, or the message.
    Ping {
        /// To be sent back.
        message: Option<Vec<u8>>,
    },
    /// `ECHO message`.
    Echo {
        /// To be sent back.
        message: Vec<u8>,
    },
    /// `QUIT`: `OK`, then the connection closes.
    Quit,
    /// `AUTH [user] token`: shows the token that a node beyond loopback asks for.
    Auth {
        /// The token.
        password: Vec<u8>,
    },
    /// `COMMAND ...`: what client libraries ask when they connect.
    Command,
    /// `GET key`.
    Get {
        /// The key.
        key: Vec<u8>,
    },
    /// `SET key value`.
    Set {
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// `DEL key [key ...]`: how many were there.
    Del {
        /// The keys, at least one.
        keys: Vec<Vec<u8>>,
    },
}

#[derive(Clone, Copy)]
enum Name {
    Ping,
    Echo,
    Quit,
    Auth,
    Command,
    Get,
    Set,
    Del,
}

/// Name in lower case, fewest and most words including the name.
const COMMANDS: [(&str, Name, usize, usize); 8] = [
    ("ping", Name::Ping, 1, 2),
    ("echo", Name::Echo, 2, 2),
    ("quit", Name::Quit, 1, usize::MAX),
    ("auth", Name::Auth, 2, 3),
    ("command", Name::Command, 1, usize::MAX),
    ("get", Name::Get, 2, 2),
    ("set", Name::Set, 3, usize::MAX),
    ("del", Name::Del, 2, WRITE_PARTS_MAX + 1),
];

/// An unknown command is quoted in the answer up to here, and so are its arguments; as in Redis.
const QUOTED_BYTES_MAX: usize = 128;

impl TextCommand {
    /// Gives words a meaning, or the text of the error to answer; the connection stays open.
    pub fn from_words(words: Vec<Vec<u8>>) -> Result<TextCommand, String> {
        let mut words = words.into_iter();
        let name = words.next().unwrap_or_default();
        let Some((known, name, min, max)) =
            COMMANDS.iter().find(|(known, ..)| name.eq_ignore_ascii_case(known.as_bytes()))
        else {
            return Err(unknown(&name, words.as_slice()));
        };
        if !(*min..=*max).contains(&(words.len() + 1)) {
            return Err(format!("ERR wrong number of arguments for '{known}' command"));
        }
        build(*name, words).ok_or_else(|| "ERR syntax error".to_string())
    }
}

/// The command, its number of words being right; none when the words make no sense.
fn build(name: Name, mut words: std::vec::IntoIter<Vec<u8>>) -> Option<TextCommand> {
    Some(match name {
        Name::Ping => TextCommand::Ping { message: words.next() },
        Name::Echo => TextCommand::Echo { message: words.next()? },
        Name::Quit => TextCommand::Quit,
        Name::Auth => TextCommand::Auth { password: words.next_back()? },
        Name::Command => TextCommand::Command,
        Name::Get => TextCommand::Get { key: words.next()? },
        Name::Set => {
            let (key, value) = (words.next()?, words.next()?);
            // An option that is not understood must not be passed over.
            if words.len() > 0 {
                return None;
            }
            TextCommand::Set { key, value }
        }
        Name::Del => TextCommand::Del { keys: words.collect() },
    })
}

fn unknown(name: &[u8], arguments: &[Vec<u8>]) -> String {
    let mut quoted = String::new();
    for argument in arguments {
        let Some(left @ 1..) = QUOTED_BYTES_MAX.checked_sub(quoted.len()) else { break };
        // Writing to a string cannot fail.
        let _ = write!(quoted, "'{}' ", printable(argument, left));
    }
    let name = printable(name, QUOTED_BYTES_MAX);
    format!("ERR unknown command '{name}', with args beginning with: {quoted}")
}

/// The first bytes as text that cannot break a line or a terminal.
fn printable(bytes: &[u8], max: usize) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(max)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
