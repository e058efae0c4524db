//! What must hold of one core at any moment, and from one moment to the next.
//!
//! [`Watch::observe`] is called after every step in tests and in simulation. What needs the view
//! of the whole cluster (election safety, log matching, leader completeness) is checked there.

use super::core::{Raft, Role};
use super::progress::Progress;
use super::types::{Entry, HardState, Index, Term};

/// Remembers the state after the step before, to compare.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    before: Option<Observed>,
}

#[derive(Clone, Debug)]
struct Observed {
    hard: HardState,
    commit: Index,
    applied: Index,
    durable: Index,
    last: (Index, Term),
    leads: bool,
}

impl Watch {
    /// Checks the state of the core and the transition from the last observation; an error names
    /// the invariant that is broken.
    pub fn observe(&mut self, raft: &Raft) -> Result<(), String> {
        check_state(raft)?;
        let now = Observed {
            hard: raft.hard_state(),
            commit: raft.commit_index(),
            applied: raft.applied_index(),
            durable: raft.durable_index(),
            last: (raft.last_index(), raft.log.last_term()),
            leads: matches!(raft.role, Role::Leader(_)),
        };
        if let Some(before) = self.before.replace(now.clone()) {
            check_transition(raft, &before, &now)?;
        }
        Ok(())
    }
}

fn ensure(holds: bool, name: &str, raft: &Raft) -> Result<(), String> {
    if holds {
        return Ok(());
    }
    Err(format!(
        "{name}: node {} term {} role {:?} base {} applied {} commit {} durable {} last {}",
        raft.id(),
        raft.term(),
        raft.role(),
        raft.log.base(),
        raft.applied,
        raft.commit,
        raft.log.durable(),
        raft.last_index()
    ))
}

fn check_state(raft: &Raft) -> Result<(), String> {
    raft.assert_log_invariants();
    let last = raft.last_index();
    ensure(raft.log.base() <= raft.applied, "snapshot <= applied", raft)?;
    ensure(raft.applied <= raft.handed, "applied <= handed", raft)?;
    ensure(raft.handed <= raft.commit, "handed <= commit", raft)?;
    ensure(raft.commit <= last, "commit <= last", raft)?;
    ensure(raft.handed <= raft.log.durable(), "handed <= durable", raft)?;
    ensure(raft.log.last_term() <= raft.term(), "last term <= term", raft)?;
    check_memory(raft)?;
    if let Some(leader) = raft.leader_state() {
        ensure(raft.hard.vote == Some(raft.id()), "leader voted for itself", raft)?;
        ensure(leader.term_start <= last, "leader has its no-op", raft)?;
        ensure(
            leader.term_start < raft.first_index()
                || raft.term_at(leader.term_start) == Some(raft.term()),
            "no-op is of the leader's term",
            raft,
        )?;
        // What the leader changed itself; of what it found the one before may be committed unknown
        // to it.
        if let [.., (before, old), (newest, new)] = raft.configurations()
            && *newest > leader.term_start
        {
            ensure(*before <= raft.commit, "one change at a time", raft)?;
            let knows = leader.term_start <= raft.commit;
            ensure(old.overlaps(new), "consecutive majorities intersect", raft)?;
            ensure(knows, "no change before the leader has committed in its term", raft)?;
        }
        for progress in leader.progress.values() {
            progress.assert_invariants();
            ensure(progress.match_index <= last, "match <= last", raft)?;
            ensure(progress.next_index <= last + 1, "next <= last + 1", raft)?;
        }
    }
    Ok(())
}

/// What is counted is what is there, and what is owed and under way stays within its bounds, but for the last entry or
/// message: one may always be larger.
fn check_memory(raft: &Raft) -> Result<(), String> {
    let cached = raft.log.cache.iter().map(Entry::weight).sum::<usize>();
    ensure(raft.log.cache_bytes == cached, "cached bytes are counted", raft)?;
    if let Some(&(last, weight)) = raft.applying.back() {
        let owed: usize = raft.applying.iter().map(|batch| batch.1).sum();
        let entry = raft.log.cached(last, last, 0);
        let single = entry.is_none_or(|e| e.iter().map(Entry::weight).sum::<usize>() == weight);
        let bounded = single || owed <= raft.options.applying_bytes_max;
        ensure(bounded, "the applier owes no more than it may", raft)?;
    }
    if let Some(leader) = raft.leader_state() {
        let inflight_bytes_max = raft.options.inflight_bytes_max;
        // How large an entry of the log file is turns out when it is read.
        let before_last = |p: &Progress| p.window.back().map_or(0, |last| p.window_bytes - last.1);
        let bounded = |p: &Progress| before_last(p) <= inflight_bytes_max;
        let all = leader.progress.values().all(bounded);
        ensure(all, "a follower is sent no more ahead than it may be", raft)?;
    }
    Ok(())
}

fn check_transition(raft: &Raft, before: &Observed, now: &Observed) -> Result<(), String> {
    ensure(before.hard.term <= now.hard.term, "term monotonic", raft)?;
    let same_term = before.hard.term == now.hard.term;
    ensure(
        !same_term || before.hard.vote.is_none() || before.hard.vote == now.hard.vote,
        "one vote per term",
        raft,
    )?;
    ensure(before.commit <= now.commit, "commit monotonic", raft)?;
    ensure(before.applied <= now.applied, "applied monotonic", raft)?;
    ensure(now.durable >= before.durable.min(before.commit), "committed stays durable", raft)?;
    if same_term && before.leads && now.leads {
        let kept = raft.term_at(before.last.0) == Some(before.last.1);
        ensure(before.last.0 < raft.first_index() || kept, "leader append-only", raft)?;
    }
    Ok(())
}
