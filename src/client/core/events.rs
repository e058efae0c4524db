//! What happens to a client, and what it wants done.

use super::super::error::Error;
use crate::wire::client::{Answer, Call, Request, Response};
use crate::wire::handshake::Welcome;
use std::time::Duration;

/// What happens to a client.
#[derive(Debug)]
pub enum Event {
    /// A call begins. Calls that are open at the same time have numbers that grow.
    Begin {
        /// The caller's number for it.
        number: u64,
        /// What is asked; a write without a stamp gets one if [`super::super::Options::sessions`] says so.
        call: Call,
        /// How long it may take, all retries included. For several calls: how long without any of
        /// them being answered.
        timeout: Duration,
    },
    /// A connection is wanted; it is answered with [`Answer::Pong`] once there is one.
    Reach {
        /// As of a call.
        number: u64,
        /// As of a call.
        timeout: Duration,
    },
    /// The node that was dialed takes this client. An earlier connection is closed.
    Connected {
        /// What it says.
        welcome: Welcome,
    },
    /// The node that was dialed does not, or there is none. An earlier connection stays.
    ConnectFailed {
        /// Why; a hello that was refused is [`super::super::Cause::Rejected`].
        error: Error,
    },
    /// Everything has been handed to the network that was to be sent.
    Flushed,
    /// The network takes no more bytes.
    Blocked {
        /// Requests from this id on have surely not been handed over whole.
        unsent_from: u64,
    },
    /// Bytes have arrived that are no whole answer yet.
    Heard,
    /// An answer has arrived.
    Answered {
        /// The answer.
        response: Response,
    },
    /// The connection is of no more use.
    Broke {
        /// Why.
        error: Error,
        /// Requests from this id on have surely not been handed over whole.
        unsent_from: u64,
    },
    /// Time has passed.
    Time,
}

/// What a client wants done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Dial an address, beside the connection that is there, and say what has come of it.
    Connect {
        /// `HOST:PORT`.
        address: String,
        /// The cluster that is meant, 0 for any.
        cluster: u64,
        /// How long that may take, names and handshake included.
        within: Duration,
    },
    /// Put this into what is to be sent. One that fits no frame is answered by the caller as
    /// [`crate::wire::client::Class::TooLarge`].
    Send(Request),
    /// Hand everything to the network, and say so; or say that it takes nothing.
    Flush {
        /// For how long it may take nothing.
        stall: Duration,
        /// How long it may take in all.
        within: Duration,
    },
    /// Close the connection.
    Close,
    /// A call is over.
    Done {
        /// The caller's number for it.
        number: u64,
        /// The answer, or what is known instead.
        result: Result<Answer, Error>,
    },
    /// All calls that were open are over, since the cluster does not answer, or takes nobody.
    GaveUp {
        /// Why.
        error: Error,
    },
}
