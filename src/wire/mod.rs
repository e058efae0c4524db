//! Bytes on the network: frames and codecs for peers, clients, the text dialect and HTTP.
//!
//! One port speaks three dialects; [`sniff`] tells them apart by the first bytes. The native one is
//! made of frames ([`frame`]) that open with a handshake ([`handshake`], [`proof`]) and then carry peer
//! messages ([`peer`]), a [`snapshot`] or client calls ([`client`], with the words of the store in [`kv`]).
//! [`text`] is RESP2 and typed lines, [`http`] a read-only page for people and load balancers.
//! docs/protocol.md is the specification; its worked examples are test fixtures here.
//!
//! Everything is sans-IO: functions and small state machines over byte buffers. Bytes from outside
//! are checked before memory is taken for them and refused with a reason, never asserted on.
//! Left out: sockets, deadlines, connection counts (`server`), what a request means (`node`), and
//! the form of the log (`kv` and `wal` have their own, so that the log and the client protocol are
//! versioned apart).

pub mod client;
mod fields;
pub mod frame;
pub mod handshake;
pub mod hmac;
pub mod http;
pub mod kv;
pub mod peer;
pub mod proof;
pub mod snapshot;
pub mod sniff;
mod status;
pub mod text;

pub use crate::raft::codec::Malformed;
pub use fields::{ADDRESS_BYTES_MAX, MESSAGE_BYTES_MAX};

#[cfg(test)]
mod proof_tests;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
