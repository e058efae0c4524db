//! A third way to make trouble: links and disks that are slow from the beginning to the end of a run,
//! and connections that die on them without a word.
//!
//! Nothing else goes wrong, or little. So what goes on for long here is the cluster's own doing:
//! copies of what is under way already, elections that a large frame has caused, connections that are
//! made and given up in turn. The lines stay slow in the second phase of the run: progress is demanded
//! at that bandwidth.

use super::dice::Dice;
use super::faults::Fault;
use super::plans::{Plan, bandwidth};
use super::world::World;
use crate::raft::NodeId;

/// Longest sync of a slow disk, in microseconds: below the smallest election timeout.
const SYNC_US_MAX: u64 = 300_000;

/// Least and most bytes a second of a disk of little bandwidth: what is written here goes to the log once and through the
/// levels some ten times.
const DISK_BANDWIDTH: (u64, u64) = (400_000, 10_000_000);

/// See the module.
#[derive(Debug)]
pub(super) struct Slow {
    dice: Dice,
    /// The lines and disks are slow.
    begun: bool,
    script: Vec<(u64, Fault)>,
}

impl Slow {
    /// A plan with its own dice.
    pub(super) fn new(dice: Dice) -> Slow {
        Slow { dice, begun: false, script: Vec::new() }
    }

    /// Draws which lines and disks are slow: all, those of one node, or each by chance.
    fn begin(&mut self, world: &World) -> Vec<Fault> {
        let dice = &mut self.dice;
        let all: Vec<NodeId> = world.nodes.keys().copied().collect();
        let one = *dice.pick(&all);
        let (kind, rate) = (dice.below(3), bandwidth(dice));
        let slow_disks = dice.chance(1, 2);
        let paced = dice.chance(1, 2);
        let mut faults = Vec::new();
        for &from in &all {
            for &to in all.iter().filter(|&&to| to != from) {
                let slow = match kind {
                    0 => true,
                    1 => from == one || to == one,
                    _ => dice.chance(1, 2),
                };
                if slow {
                    faults.push(Fault::Slow { from, to, bandwidth: rate });
                }
            }
            if slow_disks && dice.chance(1, 2) {
                let sync_us_max = dice.log_between(5_000, SYNC_US_MAX);
                faults.push(Fault::SlowDisk { node: from, sync_us_max });
            }
            if paced && dice.chance(1, 2) {
                let bytes_a_second = dice.log_between(DISK_BANDWIDTH.0, DISK_BANDWIDTH.1);
                faults.push(Fault::PaceDisk { node: from, bytes_a_second });
            }
        }
        faults
    }

    fn write(&mut self, world: &World) {
        let dice = &mut self.dice;
        let up: Vec<NodeId> =
            world.nodes.values().filter(|n| n.up.is_some()).map(|n| n.id).collect();
        let leader = world.leader().or(up.first().copied()).unwrap_or(1);
        let others: Vec<NodeId> = up.iter().copied().filter(|&id| id != leader).collect();
        let mut script = Vec::new();
        let pause = |dice: &mut Dice| dice.log_between(10_000, 2_000_000);
        match dice.below(8) {
            // More at once than a line carries in a while.
            0..3 => {
                for _ in 0..dice.between(1, 4) {
                    let writes = dice.log_between(10, 60);
                    script.push((pause(dice), Fault::Burst { node: leader, writes }));
                }
            }
            3 => script.push((pause(dice), Fault::Rush { for_us: 1_000_000 })),
            // A firewall forgets what is between the leader and some, or all; then, soon after that is
            // mended, what is between others.
            4 | 5 => {
                for &to in &others {
                    if dice.chance(2, 3) {
                        script.push((dice.below(3_000), Fault::Forget { from: leader, to }));
                    }
                }
                if others.len() > 1 && dice.chance(1, 2) {
                    let (from, to) = (others[0], others[1]);
                    script.push((pause(dice), Fault::Forget { from, to }));
                }
            }
            6 => script.push((pause(dice), Fault::DialStorm)),
            // Nothing passes for a while, one way or both.
            _ => {
                if let Some(&to) = others.first() {
                    script.push((pause(dice), Fault::Cut { from: leader, to }));
                    if dice.chance(1, 2) {
                        script.push((1, Fault::Cut { from: to, to: leader }));
                    }
                    script.push((dice.log_between(50_000, 4_000_000), Fault::Reconnect));
                }
            }
        }
        script.push((pause(dice), Fault::Reconnect));
        script.reverse();
        self.script = script;
    }
}

impl Plan for Slow {
    fn next(&mut self, world: &World) -> (Vec<Fault>, u64) {
        if !std::mem::replace(&mut self.begun, true) {
            return (self.begin(world), 1_000_000);
        }
        if self.script.is_empty() {
            self.write(world);
        }
        let fault = self.script.pop().map(|(_, fault)| fault);
        let pause_us = self.script.last().map_or(200_000, |next| next.0).max(1);
        (fault.into_iter().collect(), pause_us)
    }
}
