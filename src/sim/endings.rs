//! How a run ends: faults stop, and whoever can comes back. Not everybody always can: a minority may be gone
//! for good, one node may be heard by nobody or hear nobody, or be slow for ever. Progress is demanded all
//! the same, of those who are left; and once there is a leader, it stays.

use super::checks::{Violation, violated};
use super::world::World;
use crate::raft::{NodeId, Term};

/// How long nothing may happen to a leader.
const HOLD_US: u64 = 6_000_000;
/// What the log writer of a slow node may take.
const SLOW_SYNC_US: u64 = 400_000;
/// Most elections from when the faults have stopped: some that were under way, and one that counts.
const ELECTIONS_MAX: u64 = 12;

/// What stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Everybody comes back.
    All,
    /// Machines are gone for good, as many as the others can do without.
    Gone,
    /// One node is not heard, or does not hear.
    CutOff { heard: bool },
    /// One node's disk is slow.
    Slow,
}

/// The leader that must stay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    leader: NodeId,
    term: Term,
    until_us: u64,
}

impl World {
    /// Chooses who does not come back as it was.
    pub(super) fn choose_ending(&mut self) {
        let ending = match self.dice.below(8) {
            0 | 1 => Ending::Gone,
            2 => Ending::CutOff { heard: true },
            3 => Ending::CutOff { heard: false },
            4 => Ending::Slow,
            _ => Ending::All,
        };
        let mut ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let turn = self.dice.below(ids.len() as u64) as usize;
        ids.rotate_left(turn);
        // Whoever leads is one of many, and the one that matters most.
        if let Some(leader) = self.newest_leader().filter(|_| self.dice.chance(1, 2)) {
            ids.insert(0, leader);
        }
        for node in ids {
            let there = self.nodes.get(&node).is_some_and(|n| self.counts(n));
            let spare = there && self.can_lose(node);
            match ending {
                Ending::Gone if spare => {
                    self.count("gone for good");
                    self.lose(node);
                }
                Ending::CutOff { heard } if spare => {
                    self.count(if heard {
                        "hears nobody for good"
                    } else {
                        "heard by nobody for good"
                    });
                    self.cut_off(node, heard);
                    return;
                }
                Ending::Slow if there => {
                    self.count("slow for good");
                    if let Some(n) = self.nodes.get_mut(&node) {
                        n.sync_us_max = SLOW_SYNC_US;
                    }
                    return;
                }
                _ => {}
            }
        }
    }

    fn cut_off(&mut self, node: NodeId, heard: bool) {
        for other in self.nodes.keys().copied().filter(|&other| other != node).collect::<Vec<_>>() {
            let (from, to) = if heard { (other, node) } else { (node, other) };
            self.network.line(from, to).cut = true;
        }
        if let Some(n) = self.nodes.get_mut(&node) {
            n.cut_off = true;
        }
    }

    /// Everything has settled: whether the leader has stayed for long enough since then.
    ///
    /// # Errors
    /// It has not stayed.
    pub(super) fn holds(&self, hold: &mut Option<Hold>, elections: u64) -> Result<bool, Violation> {
        let now = self.leader().and_then(|leader| {
            let up = self.nodes.get(&leader)?.up.as_ref()?;
            Some((leader, up.node.replica().raft().term()))
        });
        let Some((leader, term)) = now else {
            return match hold {
                Some(hold) => violated("a healthy leader keeps its term", format!("{hold:?}")),
                None => Ok(false),
            };
        };
        if self.cluster.elections() > elections + ELECTIONS_MAX {
            let detail =
                format!("{} since the faults stopped", self.cluster.elections() - elections);
            return violated("elections are few without faults", detail);
        }
        let hold = hold.get_or_insert(Hold { leader, term, until_us: self.now_us + HOLD_US });
        if (leader, term) != (hold.leader, hold.term) {
            let detail = format!("{hold:?}, and now node {leader} in term {term}");
            return violated("a healthy leader keeps its term", detail);
        }
        Ok(self.now_us >= hold.until_us)
    }
}
