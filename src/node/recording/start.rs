//! What the components of a node began with.

use super::super::peers::PeersOptions;
use super::super::replica::ReplicaOptions;
use super::{put_bytes, put_numbers, put_option, take_option, take_text};
use crate::kv::{Limits, SessionBounds};
use crate::raft::codec::{Input as Bytes, Malformed, put_configuration, take_configuration};
use crate::raft::{self, Configuration, HardState, Index, Restored, RestoredLog};
use crate::wire::proof::{SECRET_BYTES, Secret};
use std::sync::Arc;

/// What the start of a process handed to its components.
#[derive(Clone, Debug)]
pub struct Start {
    /// Version of the program.
    pub program: String,
    /// Which of the node's recorded lives this is, from 1.
    pub life: u64,
    /// When it began, in microseconds of the system's clock since 1970. It tells a person when that was, and orders
    /// what nothing else orders.
    pub unix_us: u64,
    /// Time on the clock of the components.
    pub now_us: u64,
    /// Messages of peers come by connections: each arrives once at most. It is not so in some runs of the simulator.
    pub connections: bool,
    /// The configuration the cluster began with.
    pub first: Configuration,
    /// What the core is made with: its seed is the source of all its random numbers.
    pub raft: raft::Options,
    /// What was on disk, and how far it was applied.
    pub restored: Restored,
    /// Bounds of the replica.
    pub replica: ReplicaOptions,
    /// What the connections go by; without the token.
    /// The token is left out, and the secret is [its pseudonym](Secret::pseudonym).
    pub peers: PeersOptions,
    /// The log writer writes so many requests at once.
    pub batch_requests_max: u64,
    /// The store is damaged: nothing is applied before it is repaired.
    pub holding: bool,
    /// The state's digest at the applied index.
    pub digest: u32,
    /// At every index that is a multiple of it the node tells the others its digest.
    pub digest_every: u64,
    /// How much the state remembers of sessions.
    pub sessions: SessionBounds,
}

/// Appends it.
pub fn put_start(out: &mut Vec<u8>, start: &Start) {
    put_bytes(out, start.program.as_bytes());
    put_numbers(out, &[start.life, start.unix_us, start.now_us]);
    out.push(u8::from(start.connections));
    put_configuration(out, &start.first);
    let raft = &start.raft;
    put_numbers(out, &[raft.id, raft.election_timeout_us, raft.heartbeat_us, raft.seed]);
    let sizes = [
        raft.append_bytes_max,
        raft.probe_bytes_max,
        raft.inflight_bytes_max,
        raft.cache_bytes_max,
        raft.applying_bytes_max,
        raft.remote_reads_max,
    ];
    put_sizes(out, &sizes);
    put_numbers(out, &[raft.replay_entries_max]);
    let Restored { hard_state, log, applied } = &start.restored;
    put_numbers(out, &[hard_state.term]);
    put_option(out, hard_state.vote);
    put_numbers(out, &[log.base, log.base_term, log.last, *applied, log.runs.len() as u64]);
    for (index, term) in &log.runs {
        put_numbers(out, &[*index, *term]);
    }
    put_numbers(out, &[log.configurations.len() as u64]);
    for (index, configuration) in &log.configurations {
        put_numbers(out, &[*index]);
        put_configuration(out, configuration);
    }
    let ReplicaOptions {
        inflight_bytes_max,
        limits,
        batch_bytes_max,
        identity,
        address,
        wal_limit_bytes,
        members_max,
    } = &start.replica;
    put_sizes(out, &[*inflight_bytes_max, *batch_bytes_max, *members_max]);
    put_numbers(out, &[*identity, *wal_limit_bytes]);
    put_bytes(out, address.as_bytes());
    let sizes = [
        limits.max_key_bytes,
        limits.max_value_bytes,
        limits.max_batch_ops,
        limits.max_batch_bytes,
        limits.max_page_keys,
        limits.max_page_bytes,
    ];
    put_sizes(out, &sizes);
    put_numbers(out, &[limits.max_page_work]);
    let PeersOptions { identity, address, token: _, secret, seeds } = &start.peers;
    out.push(u8::from(secret.sealed));
    out.extend_from_slice(&secret.bytes);
    put_numbers(out, &[*identity]);
    put_bytes(out, address.as_bytes());
    put_numbers(out, &[seeds.len() as u64]);
    seeds.iter().for_each(|seed| put_bytes(out, seed.as_bytes()));
    put_numbers(out, &[start.batch_requests_max]);
    out.push(u8::from(start.holding));
    out.extend_from_slice(&start.digest.to_le_bytes());
    put_numbers(out, &[start.digest_every]);
    let SessionBounds {
        sessions,
        released_entries,
        held_entries,
        results,
        session_bytes,
        outcome_bytes,
    } = start.sessions;
    put_sizes(out, &[sessions]);
    put_numbers(out, &[released_entries, held_entries]);
    put_sizes(out, &[results, session_bytes, outcome_bytes]);
}

fn put_sizes(out: &mut Vec<u8>, sizes: &[usize]) {
    sizes.iter().for_each(|&size| put_numbers(out, &[size as u64]));
}

/// Reads it.
///
/// # Errors
/// It is none.
pub fn take_start(input: &mut Bytes<'_>) -> Result<Start, Malformed> {
    const START: &str = "a number of the start";
    let number = |input: &mut Bytes<'_>| input.u64(START);
    let size = |input: &mut Bytes<'_>| {
        let number = input.u64(START)?;
        usize::try_from(number).map_err(|_| Malformed(START))
    };
    let program = take_text(input, "version of the program")?;
    let (life, unix_us, now_us) = (number(input)?, number(input)?, number(input)?);
    let connections = super::take_flag(input, "network")?;
    let first = take_configuration(input)?;
    let raft = raft::Options {
        id: number(input)?,
        election_timeout_us: number(input)?,
        heartbeat_us: number(input)?,
        seed: number(input)?,
        append_bytes_max: size(input)?,
        probe_bytes_max: size(input)?,
        inflight_bytes_max: size(input)?,
        cache_bytes_max: size(input)?,
        applying_bytes_max: size(input)?,
        remote_reads_max: size(input)?,
        replay_entries_max: number(input)?,
    };
    let hard_state = HardState { term: number(input)?, vote: take_option(input, "vote")? };
    let (base, base_term, last) = (number(input)?, number(input)?, number(input)?);
    let (applied, count) = (number(input)?, number(input)?);
    let mut runs = Vec::new();
    for _ in 0..count {
        runs.push((number(input)?, number(input)?));
    }
    let count = number(input)?;
    let mut configurations: Vec<(Index, Arc<Configuration>)> = Vec::new();
    for _ in 0..count {
        let index = number(input)?;
        configurations.push((index, Arc::new(take_configuration(input)?)));
    }
    let log = RestoredLog { base, base_term, runs, last, configurations };
    if log.configurations.is_empty() || applied > last || base > last {
        return Err(Malformed("what was on disk"));
    }
    let (inflight_bytes_max, batch_bytes_max) = (size(input)?, size(input)?);
    let members_max = size(input)?;
    let (identity, wal_limit_bytes) = (number(input)?, number(input)?);
    let address = take_text(input, "address")?;
    let limits = Limits {
        max_key_bytes: size(input)?,
        max_value_bytes: size(input)?,
        max_batch_ops: size(input)?,
        max_batch_bytes: size(input)?,
        max_page_keys: size(input)?,
        max_page_bytes: size(input)?,
        max_page_work: number(input)?,
    };
    let replica = ReplicaOptions {
        inflight_bytes_max,
        limits,
        batch_bytes_max,
        identity,
        address,
        wal_limit_bytes,
        members_max,
    };
    let sealed = super::take_flag(input, "the members' secret")?;
    let bytes = input.bytes(SECRET_BYTES, "the members' secret")?;
    let bytes = bytes.try_into().map_err(|_| Malformed("the members' secret"))?;
    let secret = Secret { bytes, sealed };
    let (identity, address) = (number(input)?, take_text(input, "address")?);
    let count = number(input)?;
    let mut seeds = Vec::new();
    for _ in 0..count {
        seeds.push(take_text(input, "address")?);
    }
    Ok(Start {
        program,
        life,
        unix_us,
        now_us,
        connections,
        first,
        raft,
        restored: Restored { hard_state, log, applied },
        replica,
        peers: PeersOptions { identity, address, token: Vec::new(), secret, seeds },
        batch_requests_max: number(input)?,
        holding: super::take_flag(input, "damage")?,
        digest: input.u32("digest")?,
        digest_every: number(input)?,
        sessions: SessionBounds {
            sessions: size(input)?,
            released_entries: number(input)?,
            held_entries: number(input)?,
            results: size(input)?,
            session_bytes: size(input)?,
            outcome_bytes: size(input)?,
        },
    })
}
