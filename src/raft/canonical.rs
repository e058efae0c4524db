//! A core without its clock: what an exhaustive exploration needs to tell states apart.
//!
//! Time enters the protocol only through comparisons of a moment with the present ("was a leader
//! heard within an election timeout?"). [`Raft::set_ages`] puts the core at one fixed moment and
//! decides those comparisons; a tick then does what it would have done at any real time at which
//! they come out so. [`Raft::canonical`] writes down everything that can influence what the core does
//! from there on, with the ids of the nodes replaced by given names, so that states that differ in
//! names alone are recognised.
//!
//! Left out of it, because nothing can depend on them once the ages are set: all moments, the random
//! numbers (they only choose moments; the number of the next ReadIndex request is part of the
//! state), the attempts since the leader's connection broke (the length of a wait), options (they
//! are the same in all states) and the seed. Numbers of requests to the log writer count from the
//! last durable one, because they are only compared with each other. Every struct is taken apart by name:
//! a new field does not compile until somebody has decided about it.

use super::core::{Raft, Role};
use super::follower::Forwarded;
use super::leader::{Leader, Transfer};
use super::log::Log;
use super::progress::{Progress, ProgressState};
use super::reads::{ReadRequest, Round};
use super::types::{
    AppendResult, Body, Entry, HardState, Index, Message, NodeId, Payload, Persist,
};
use super::{Configuration, LogRead, ReadAnswer};
use std::collections::{BTreeMap, BTreeSet};

/// The moment at which every explored core is, in microseconds. Any would do.
const NOW_US: u64 = 1 << 40;
/// A moment that does not come.
const NEVER_US: u64 = 1 << 41;

/// What the clock says, as far as a rule asks. The default is that nothing is due or old.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ages {
    /// The election timer has run out, or a leader's heartbeat is due.
    pub(crate) due: bool,
    /// The leader was not heard for an election timeout.
    pub(crate) leader_silent: bool,
    /// No follower was heard for an election timeout.
    pub(crate) followers_silent: bool,
    /// What was sent was not answered for as long as patience lasts; a transfer has taken too long.
    pub(crate) answers_late: bool,
    /// The log writer owes an answer for an election timeout.
    pub(crate) disk_stalls: bool,
    /// Of all followers this one was heard last.
    pub(crate) heard_last: Option<NodeId>,
}

/// A new name for every node: a permutation of `1..=n`, by id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a>(pub(crate) &'a [u64]);

impl Names<'_> {
    pub(crate) fn of(&self, id: NodeId) -> u64 {
        usize::try_from(id).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(id)
    }

    fn of_vote(&self, vote: Option<NodeId>) -> u64 {
        vote.map_or(0, |id| 1 + self.of(id))
    }

    fn of_set(&self, ids: &BTreeSet<NodeId>, words: &mut Vec<u64>) {
        let named: BTreeSet<u64> = ids.iter().map(|&id| self.of(id)).collect();
        words.push(named.len() as u64);
        words.extend(named);
    }
}

/// The same list whatever the order of its items was.
fn in_any_order(items: impl Iterator<Item = Vec<u64>>, words: &mut Vec<u64>) {
    let mut items: Vec<Vec<u64>> = items.collect();
    items.sort_unstable();
    words.push(items.len() as u64);
    for item in items {
        words.push(item.len() as u64);
        words.extend(item);
    }
}

fn collect(fill: impl FnOnce(&mut Vec<u64>)) -> Vec<u64> {
    let mut words = Vec::new();
    fill(&mut words);
    words
}

fn option(value: Option<u64>) -> u64 {
    value.map_or(0, |v| v + 1)
}

impl Raft {
    /// Puts the core at one moment at which these ages, and no others, are reached.
    pub(crate) fn set_ages(&mut self, ages: Ages) {
        let long_ago = NOW_US - 4 * self.options.election_timeout_us;
        let since = |old: bool| if old { long_ago } else { NOW_US };
        let due = if ages.due { NOW_US } else { NEVER_US };
        self.now_us = NOW_US;
        self.election_at_us = due;
        self.leader_heard_us = match self.leader_heard_us {
            Some(_) if !ages.leader_silent => Some(NOW_US),
            _ => None,
        };
        for asked in &mut self.asked_at_us {
            asked.1 = since(ages.disk_stalls);
        }
        if let Some(forwarded) = &mut self.forwarded {
            forwarded.sent_us = since(ages.answers_late);
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.heartbeat_at_us = due;
            leader.elected_us = since(ages.followers_silent);
            if let Some(transfer) = &mut leader.transfer {
                transfer.until_us = if ages.answers_late { NOW_US } else { NEVER_US };
            }
            for (&id, progress) in &mut leader.progress {
                progress.moved_us = since(ages.answers_late);
                progress.asked = 0;
                let last = u64::from(ages.heard_last == Some(id));
                progress.contact_us = since(ages.followers_silent) + last;
            }
        }
    }

    /// The moment of [`Raft::set_ages`].
    pub(crate) fn explored_now_us() -> u64 {
        NOW_US
    }

    /// Numbers this life's ReadIndex requests from `first`, in place of a random number.
    pub(crate) fn number_reads_from(&mut self, first: u64) {
        self.next_forward = first;
    }

    /// Whether a leader is heard, as far as this node has not forgotten.
    pub(crate) fn remembers_a_leader(&self) -> bool {
        self.leader_heard_us.is_some()
    }

    /// Forgets what it holds until the log writer answers, so that two cores can be compared without.
    pub(crate) fn let_go_of_held(&mut self) {
        self.held.clear();
    }

    /// Changes the configuration by one entry, as no core does by itself: without a joint one and, when
    /// `early`, before anything of its term is committed. To show what is found without the rules.
    pub(crate) fn change_at_once(&mut self, target: Configuration, early: bool) {
        let free = self.may_propose().is_ok() && self.is_settled();
        if free && (early || self.leads_and_knows()) {
            self.append_configuration(target);
        }
    }

    /// Whether `peer` is known to have acknowledged the read round; not when this node does not lead.
    pub(crate) fn knows_round(&self, peer: NodeId, round: u64) -> bool {
        let known = self.leader_state().and_then(|leader| leader.progress.get(&peer));
        known.is_some_and(|progress| progress.round >= round)
    }

    /// Everything that later behaviour can depend on, once [`Raft::set_ages`] has been called.
    pub(crate) fn canonical(&self, names: Names<'_>, words: &mut Vec<u64>) {
        let Raft {
            options,
            rng: _,
            hard,
            log,
            role,
            commit,
            handed,
            applying,
            applied,
            now_us: _,
            election_at_us: _,
            leader_heard_us,
            leader_broke: _,
            asked_seq,
            durable_seq,
            asked_at_us,
            hard_changed,
            hard_seq,
            held,
            outbox,
            from_log,
            read_answers,
            reads_waiting,
            forwarded,
            next_forward,
            // No term that is explored is too late to be believed.
            first_term: _,
            started_us: _,
            // Snapshots are not explored.
            wanted: _,
        } = self;
        let since = |seq: u64| seq.saturating_sub(*durable_seq);
        words.extend([names.of(options.id), hard.term, names.of_vote(hard.vote)]);
        log_words(log, names, since, words);
        role_words(role, names, words);
        words.extend([*commit, *handed, *applied, applying.len() as u64]);
        words.extend(applying.iter().flat_map(|&(index, bytes)| [index, bytes as u64]));
        words.push(u64::from(leader_heard_us.is_some()));
        words.extend([since(*asked_seq), asked_at_us.len() as u64]);
        words.extend(asked_at_us.iter().map(|asked| since(asked.0)));
        words.extend([u64::from(*hard_changed), since(*hard_seq)]);
        held_words(held.iter().map(|(seq, message)| (since(*seq), message)), names, words);
        let message = |m: &Message| collect(|words| message_words(m, names, words));
        in_any_order(outbox.iter().map(message), words);
        let log_read = |read: &LogRead| {
            let LogRead { message, first, last, last_term } = read;
            collect(|words| {
                words.extend([*first, *last, *last_term]);
                message_words(message, names, words);
            })
        };
        in_any_order(from_log.iter().map(log_read), words);
        let answer = |&ReadAnswer { id, index }: &ReadAnswer| vec![id, option(index)];
        in_any_order(read_answers.iter().map(answer), words);
        words.push(reads_waiting.len() as u64);
        words.extend(reads_waiting);
        if let Some(Forwarded { id, leader, reads, sent_us: _ }) = forwarded {
            words.extend([1, *id, names.of(*leader), reads.len() as u64]);
            words.extend(reads);
        } else {
            words.push(0);
        }
        words.push(*next_forward);
    }
}

fn log_words(log: &Log, names: Names<'_>, since: impl Fn(u64) -> u64, words: &mut Vec<u64>) {
    let Log {
        base,
        base_term,
        runs,
        last,
        cache,
        cache_bytes,
        cache_bytes_max: _,
        configurations,
        durable,
        persist_from,
        reset: _,
        pending,
    } = log;
    words.extend([*base, *base_term, *last, *durable, *persist_from]);
    words.push(runs.len() as u64);
    words.extend(runs.iter().flat_map(|&(first, term)| [first, term]));
    words.extend([cache.len() as u64, *cache_bytes as u64]);
    for entry in cache {
        entry_words(entry, names, words);
    }
    words.push(configurations.len() as u64);
    words.extend(configurations.iter().map(|c| c.0));
    words.push(pending.len() as u64);
    words.extend(pending.iter().flat_map(|&(seq, index): &(u64, Index)| [since(seq), index]));
}

fn role_words(role: &Role, names: Names<'_>, words: &mut Vec<u64>) {
    // A vote that was refused counts for as much as none, and may still be granted.
    let votes_words = |votes: &BTreeMap<NodeId, bool>, words: &mut Vec<u64>| {
        let granted = votes.iter().filter(|vote| *vote.1);
        in_any_order(granted.map(|vote| vec![names.of(*vote.0)]), words);
    };
    match role {
        Role::Follower { leader } => words.extend([0, names.of_vote(*leader)]),
        Role::PreCandidate { votes } => {
            words.push(1);
            votes_words(votes, words);
        }
        Role::Candidate { votes } => {
            words.push(2);
            votes_words(votes, words);
        }
        Role::Leader(leader) => {
            words.push(3);
            leader_words(leader, names, words);
        }
    }
}

fn leader_words(leader: &Leader, names: Names<'_>, words: &mut Vec<u64>) {
    let Leader {
        progress,
        term_start,
        heartbeat_at_us: _,
        elected_us: _,
        transfer,
        round,
        in_flight,
        reads,
    } = leader;
    let follower = |(&id, p): (&NodeId, &Progress)| {
        let Progress {
            match_index,
            next_index,
            state,
            window,
            window_bytes: _,
            reading,
            moved_us: _,
            asked: _,
            contact_us: _,
            round,
            commit_told,
        } = p;
        let state = match state {
            ProgressState::Probe { waiting } => [0, u64::from(*waiting)],
            ProgressState::Replicate => [1, 0],
            ProgressState::Snapshot { index } => [2, *index],
        };
        let mut words = vec![names.of(id), *match_index, *next_index, *round, *commit_told];
        words.extend(state);
        words.push(option(*reading));
        words.extend(window.iter().flat_map(|&(last, bytes)| [last, bytes as u64]));
        words
    };
    in_any_order(progress.iter().map(follower), words);
    words.push(*term_start);
    match transfer {
        None => words.push(0),
        Some(Transfer { to, until_us: _, told }) => {
            words.extend([1, names.of(*to), u64::from(*told)]);
        }
    }
    words.push(*round);
    let reads_words = |reads: &[ReadRequest], words: &mut Vec<u64>| {
        words.push(reads.len() as u64);
        words.extend(reads.iter().flat_map(|read| match read {
            ReadRequest::Local(id) => [0, *id],
            ReadRequest::Remote { node, id } => [names.of(*node), *id],
        }));
    };
    match in_flight {
        None => words.push(0),
        Some(Round { number, index, reads }) => {
            words.extend([1, *number, *index]);
            reads_words(reads, words);
        }
    }
    reads_words(reads, words);
}

/// What is held for one request is released at one moment: its order and copies of the same mean
/// nothing, except that the next acknowledgement looks for an earlier one in the last place.
fn held_words<'a>(
    held: impl Iterator<Item = (u64, &'a Message)>,
    names: Names<'_>,
    words: &mut Vec<u64>,
) {
    let held: Vec<(u64, &Message)> = held.collect();
    for group in held.chunk_by(|a, b| a.0 == b.0) {
        let mut items: Vec<Vec<u64>> = group
            .iter()
            .map(|(_, message)| collect(|words| message_words(message, names, words)))
            .collect();
        let acknowledges = |(_, message): &(u64, &Message)| {
            matches!(
                message.body,
                Body::AppendResponse { result: AppendResult::Matched { .. }, .. }
            )
        };
        if group.last().is_some_and(acknowledges) {
            items.extend(items.last().map(|last| [last.as_slice(), &[u64::MAX]].concat()));
        }
        items.sort_unstable();
        items.dedup();
        words.push(group[0].0);
        in_any_order(items.into_iter(), words);
    }
    words.push(u64::MAX);
}

/// A message, with names in place of ids.
pub(crate) fn message_words(message: &Message, names: Names<'_>, words: &mut Vec<u64>) {
    let Message { from, to, term, body } = message;
    words.extend([names.of(*from), names.of(*to), *term]);
    match body {
        Body::RequestPreVote { last_index, last_term } => {
            words.extend([0, *last_index, *last_term]);
        }
        Body::PreVoteResponse { granted } => words.extend([1, u64::from(*granted)]),
        Body::RequestVote { last_index, last_term, transfer } => {
            words.extend([2, *last_index, *last_term, u64::from(*transfer)]);
        }
        Body::VoteResponse { granted } => words.extend([3, u64::from(*granted)]),
        Body::AppendEntries { prev_index, prev_term, commit, round, entries } => {
            words.extend([4, *prev_index, *prev_term, *commit, *round, entries.len() as u64]);
            for entry in entries {
                entry_words(entry, names, words);
            }
        }
        Body::AppendResponse { result: AppendResult::Matched { index }, round } => {
            words.extend([5, *index, *round]);
        }
        Body::AppendResponse {
            result: AppendResult::Conflict { prev_index, hint_index, hint_term },
            round,
        } => words.extend([6, *prev_index, *hint_index, *hint_term, *round]),
        Body::Heartbeat { commit, commit_term, round } => {
            words.extend([7, *commit, *commit_term, *round]);
        }
        Body::HeartbeatResponse { round } => words.extend([8, *round]),
        Body::InstallSnapshot { last_index, last_term, configuration } => {
            words.extend([9, *last_index, *last_term]);
            configuration_words(configuration, names, words);
        }
        Body::SnapshotResponse { last_index, installed } => {
            words.extend([10, *last_index, u64::from(*installed)]);
        }
        Body::TimeoutNow => words.push(11),
        Body::ReadIndex { id } => words.extend([12, *id]),
        Body::ReadIndexResponse { id, index } => words.extend([13, *id, option(*index)]),
    }
}

/// An entry.
pub(crate) fn entry_words(entry: &Entry, names: Names<'_>, words: &mut Vec<u64>) {
    let Entry { index, term, payload } = entry;
    words.extend([*index, *term]);
    match payload {
        Payload::Noop => words.push(0),
        Payload::Command(bytes) => {
            words.extend([1, bytes.len() as u64]);
            words.extend(bytes.iter().map(|&byte| u64::from(byte)));
        }
        Payload::Configuration(c) => {
            words.push(2);
            configuration_words(c, names, words);
        }
    }
}

fn configuration_words(c: &Configuration, names: Names<'_>, words: &mut Vec<u64>) {
    // Members are who votes, learns or is left.
    let Configuration { cluster, members: _, voters, outgoing, learners, replaces, last_id } = c;
    words.extend([*cluster, *last_id]);
    let replaces: BTreeSet<[u64; 2]> =
        replaces.iter().map(|(&new, &old)| [names.of(new), names.of(old)]).collect();
    words.push(replaces.len() as u64);
    words.extend(replaces.into_iter().flatten());
    for set in [voters, outgoing, learners] {
        names.of_set(set, words);
    }
}

/// A request to the log writer, without its number: requests are kept in order.
pub(crate) fn persist_words(persist: &Persist, names: Names<'_>, words: &mut Vec<u64>) {
    let Persist { seq: _, hard_state, reset: _, entries } = persist;
    match hard_state {
        None => words.push(0),
        Some(hard) => {
            words.push(1);
            hard_words(hard, names, words);
        }
    }
    words.push(entries.len() as u64);
    for entry in entries {
        entry_words(entry, names, words);
    }
}

/// Term and vote.
pub(crate) fn hard_words(hard: &HardState, names: Names<'_>, words: &mut Vec<u64>) {
    let HardState { term, vote } = hard;
    words.extend([*term, names.of_vote(*vote)]);
}
