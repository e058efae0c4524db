//! Why a call failed, and what may be concluded from it.

use crate::wire::Malformed;
use crate::wire::client::Class;
use crate::wire::frame::FrameError;
use crate::wire::handshake::{Reject, RejectCode};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A call that failed.
///
/// The class speaks of the call as a whole, all its copies: every class but [`Class::Unknown`] says
/// that it surely had no effect and never will.
#[derive(Debug)]
pub struct Error {
    /// What may be concluded.
    pub class: Class,
    /// The node it is about, if it is about one.
    pub address: Option<String>,
    /// What happened.
    pub cause: Cause,
}

/// What happened.
#[derive(Debug)]
pub enum Cause {
    /// The network.
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The other side sent something that is no frame.
    Frame(FrameError),
    /// The other side sent a frame that does not decode.
    Malformed(Malformed),
    /// The other side answered what was not asked.
    Unexpected(&'static str),
    /// The node did not take the connection.
    Rejected(Reject),
    /// The node did not carry it out; its own words.
    Refused(String),
    /// The request does not fit a frame. Nothing was sent.
    Frameless {
        /// Bytes of the request.
        bytes: usize,
        /// Bytes that fit.
        limit: usize,
    },
    /// The session of a write was forgotten by the cluster while the fate of a copy was open.
    SessionLost,
    /// A copy of a write may have taken effect, and a later one was refused.
    Uncertain(Box<Error>),
    /// The node was silent.
    Silent {
        /// For how long.
        wait: Duration,
    },
    /// The network took no more bytes of a request.
    Blocked {
        /// For how long.
        wait: Duration,
    },
    /// No answer within the time of the call.
    GaveUp {
        /// The time of the call.
        after: Duration,
        /// The last thing that went wrong, if anything but the waiting did.
        last: Option<Arc<Error>>,
    },
    /// Another error, which is that of several calls.
    Shared(Arc<Error>),
    /// No address to dial was given.
    NoAddress,
}

impl Error {
    pub(super) fn new(class: Class, address: &str, cause: Cause) -> Error {
        Error { class, address: Some(address.to_owned()), cause }
    }

    /// The error of a node that gave no answer at all, for no reason that is known.
    pub fn nobody(address: &str) -> Error {
        Error::new(Class::Unavailable, address, Cause::Unexpected("none at all"))
    }

    pub(super) fn io(class: Class, address: &str, doing: &'static str, source: io::Error) -> Error {
        Error::new(class, address, Cause::Io { doing, source })
    }

    /// The error of a node that does not take the connection.
    pub fn rejected(address: &str, reject: Reject) -> Error {
        let class = match reject.code {
            RejectCode::Token => Class::Unauthorised,
            RejectCode::TooManyConnections => Class::Busy,
            _ => Class::Unavailable,
        };
        Error::new(class, address, Cause::Rejected(reject))
    }

    pub(super) fn gave_up(class: Class, after: Duration, last: Option<Arc<Error>>) -> Error {
        // Giving up for having given up says nothing: the reason behind it does.
        let last = match last.as_deref() {
            Some(Error { cause: Cause::GaveUp { last: Some(inner), .. }, .. }) => {
                Some(Arc::clone(inner))
            }
            _ => last,
        };
        Error { class, address: None, cause: Cause::GaveUp { after, last } }
    }

    /// An error that others share: the same class and words for each of them.
    pub(super) fn passed_on(error: &Arc<Error>) -> Error {
        let cause = Cause::Shared(Arc::clone(error));
        Error { class: error.class, address: None, cause }
    }

    /// Whether dialing the same address again is pointless.
    pub(super) fn bars_address(&self) -> bool {
        matches!(&self.cause, Cause::Rejected(reject) if !reject.code.may_pass())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = &self.address {
            write!(f, "{address}: ")?;
        }
        match &self.cause {
            Cause::Io { doing, source } => write!(f, "{doing}: {source}"),
            Cause::Frame(error) => write!(f, "the connection is lost: {error}"),
            Cause::Malformed(error) => write!(f, "an answer does not decode: {error}"),
            Cause::Unexpected(what) => write!(f, "unexpected answer: {what}"),
            Cause::Rejected(reject) => reject.fmt(f),
            Cause::Refused(message) => f.write_str(message),
            Cause::Frameless { bytes, limit } => {
                write!(f, "request of {bytes} bytes is over the limit of {limit}")
            }
            Cause::SessionLost => {
                f.write_str("the cluster has forgotten the session that tells copies apart")
            }
            Cause::Uncertain(later) => {
                write!(f, "an earlier copy may have been done; the last one was refused: {later}")
            }
            Cause::Silent { wait } => write!(f, "no answer for {} ms", wait.as_millis()),
            Cause::Blocked { wait } => {
                write!(f, "nothing could be sent for {} ms", wait.as_millis())
            }
            Cause::GaveUp { after, last } => {
                write!(f, "gave up after {} ms", after.as_millis())?;
                last.as_ref().map_or(Ok(()), |last| write!(f, "; last: {last}"))
            }
            Cause::Shared(error) => error.fmt(f),
            Cause::NoAddress => f.write_str("no address to dial"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::Io { source, .. } => Some(source),
            Cause::Frame(error) => Some(error),
            Cause::Malformed(error) => Some(error),
            Cause::Rejected(reject) => Some(reject),
            Cause::Uncertain(later) => Some(later),
            Cause::GaveUp { last: Some(last), .. } | Cause::Shared(last) => Some(last),
            _ => None,
        }
    }
}
