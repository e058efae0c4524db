//! Taking a backup: from one node, over one connection. What it consists of stays readable there for
//! as long as that lives; when it breaks, the backup is begun anew.

use super::Client;
use super::error::{Cause, Error};
use crate::kv::{Contents, Piece};
use crate::wire::client::{Answer, Call, Class};
use std::time::Duration;

/// How long the beginning may take: the node makes everything durable first.
const BEGIN_WAIT: Duration = Duration::from_secs(60);
/// How long a piece may take.
const PIECE_WAIT: Duration = Duration::from_secs(10);

/// A backup that is being taken.
#[derive(Debug)]
pub struct Backup<'c> {
    client: &'c mut Client,
    manifest: Vec<u8>,
    contents: Contents,
}

impl Client {
    /// Begins a backup of everything that was answered before.
    ///
    /// # Errors
    /// Any class but `Unknown`.
    pub fn backup(&mut self) -> Result<Backup<'_>, Error> {
        let timeout = BEGIN_WAIT.max(self.options().timeout);
        let Answer::Backup { manifest } = self.ask_within(Call::Backup, timeout)? else {
            return Err(self.unexpected(Class::Unavailable, "to the beginning of a backup"));
        };
        match Contents::of(&manifest) {
            Ok(contents) => Ok(Backup { client: self, manifest, contents }),
            Err(_) => Err(self.unexpected(Class::Unavailable, "a manifest that does not decode")),
        }
    }

    /// Makes the node at `address` flush its store and drop the log in front of that. Then it compacts all tables:
    /// see [`Client::compaction`].
    ///
    /// # Errors
    /// When it does not say within `wait` that this is done.
    pub fn compact(&self, address: &str, wait: Duration) -> Result<(), Error> {
        match self.ask_one(address, Call::Compact, wait)? {
            Answer::Ok => Ok(()),
            _ => {
                let cause = Cause::Unexpected("to a compaction");
                Err(Error::new(Class::Unavailable, address, cause))
            }
        }
    }

    /// How far the compaction of all tables is at the node at `address`: bytes that are still to be brought down, none
    /// when it is done, and bytes of all tables.
    ///
    /// # Errors
    /// When it does not answer within `wait`; class `Invalid` from a node that is too old to say.
    pub fn compaction(&self, address: &str, wait: Duration) -> Result<(Option<u64>, u64), Error> {
        match self.ask_one(address, Call::Compaction, wait)? {
            Answer::Compaction { left, bytes } => Ok((left, bytes)),
            _ => {
                let cause = Cause::Unexpected("to a question for the compaction");
                Err(Error::new(Class::Unavailable, address, cause))
            }
        }
    }
}

impl Backup<'_> {
    /// The cluster it is of.
    pub fn cluster(&self) -> u64 {
        self.client.core.cluster()
    }

    /// What it is made of, as bytes.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// What it is made of.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Fetches a piece.
    ///
    /// # Errors
    /// Any: the backup is then to be begun anew.
    pub fn piece(&mut self, piece: Piece) -> Result<Vec<u8>, Error> {
        let Piece { table, offset, len } = piece;
        let call = Call::Piece { table, offset, len: u32::try_from(len).unwrap_or(u32::MAX) };
        match self.client.ask_within(call, PIECE_WAIT) {
            Ok(Answer::Bytes(bytes)) if bytes.len() == len => Ok(bytes),
            Ok(_) => Err(self.client.unexpected(Class::Unavailable, "to a question for a piece")),
            Err(error) if error.class == Class::Unknown => {
                Err(Error { class: Class::Unavailable, ..error })
            }
            Err(error) => Err(error),
        }
    }
}
