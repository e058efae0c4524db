//! Kontiki: a linearizable, crash-safe, ordered key-value store replicated by Raft.
//!
//! One idea carries the architecture: **a component is a plain struct that turns an event into
//! effects**. Threads are one way to run it, the simulator is another. No component touches a
//! thread, a socket, a clock or a random source of its own; the disk comes in as a trait.
//!
//! # Module map
//!
//! | module   | what it is                                                   | may import          |
//! |----------|--------------------------------------------------------------|---------------------|
//! | `raft`   | the consensus core, sans-IO                                  | nothing of ours     |
//! | `env`    | the traits for disk, clock and random, the real ones; names  | nothing of ours     |
//! | `wal`    | the durable Raft log and hard state                          | `raft`, `env`       |
//! | `lsm`    | ordered storage engine for data larger than memory           | `env`               |
//! | `kv`     | the replicated state machine: commands, sessions, store      | `lsm env`           |
//! | `node`   | the components of one node as plain structs, no threads      | `raft wal kv env wire` |
//! | `wire`   | frames and codecs: peers, clients, text, HTTP                | `raft kv`           |
//! | `client` | the client library: leader discovery, retry, sessions        | `env kv wire`       |
//! | `api`    | what clients say: dialects, requests, answers, without sockets | `raft kv wal node wire` |
//! | `server` | threads and sockets only                                     | all of the above    |
//! | `sim`    | simulated disk, network, clock; scheduler; checkers          | all of the above    |
//! | `cli`    | the subcommands of the binary                                | all of the above    |
//!
//! `raft`, `kv`, `node`, `api` and `client::core` are deterministic: no clock, thread, file, socket, hash-map order or
//! random source. The tidy test holds these arrows.

pub mod api;
pub mod cli;
pub mod client;
pub mod env;
pub mod kv;
pub mod lsm;
pub mod node;
pub mod raft;
pub mod server;
pub mod sim;
pub mod wal;
pub mod wire;
