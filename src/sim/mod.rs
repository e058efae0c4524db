//! The simulator: whole nodes on a seeded scheduler, with a simulated disk, network and clock.
//!
//! The components are those of production (`node::Replica`, `wal::Wal`, `node::Applier`); only what
//! runs them is different. One `u64` seed decides everything: delays, faults, what clients ask.
//! Equal seeds and builds give equal traces, which the trace hash shows.
//!
//! A run has two phases. In the first anything goes wrong ([`plans`]), and every invariant is
//! checked after every step ([`checks`]); in the second faults stop, and progress is demanded: a
//! leader in time, every call answered, replicas equal. At the end the history of the clients must
//! be linearizable ([`linearizability`]). docs/simulation.md says what is modelled and what is not.
//!
//! Meanwhile the members change: machines join, are promoted, removed and replaced (`operator.rs`).

mod between;
pub mod checks;
mod clients;
pub mod dice;
mod direct;
pub mod disk;
mod endings;
pub mod explore;
pub mod faults;
mod handshakes;
#[cfg(test)]
mod hostile;
mod impostor;
mod late;
mod ledger;
pub mod linearizability;
mod lines;
mod links;
mod log;
mod machines;
pub mod moments;
pub mod network;
mod node;
mod operator;
mod patterns;
mod pauses;
mod places;
pub mod plans;
mod platters;
pub mod recording;
pub mod replay;
mod run;
mod senders;
mod serving;
mod slow;
mod snapshots;
mod startup;
mod store;
pub mod trace;
mod traffic;
mod unproved;
mod vocabulary;
pub mod world;

pub use run::{Failed, Options, Report, run};

#[cfg(test)]
mod tests;
