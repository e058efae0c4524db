//! Two independent ways to make trouble: each has blind spots that the other has not.
//!
//! [`Random`] does anything at any time. [`Adversary`] plays patterns that are known to hurt: it
//! waits for a moment (a write under way, an election just won) and strikes there.
//!
//! Both leave at most a minority of the nodes damaged for good; everything else ends, so that the
//! second phase of a run can demand progress.

use super::dice::Dice;
use super::disk::Trouble;
use super::faults::Fault;
use super::operator::Operation;
use super::patterns::{
    LEADER, abandon, entries_of_an_earlier_term, late_line, late_lines, log_overtakes_snapshot,
    new_life_at_once, old_acknowledgements_meet_new_reads, stalled_acknowledgements,
    wiped_disk_let_in,
};
use super::world::World;
use crate::raft::NodeId;

/// Largest room that is left on a disk that becomes full: a few segments of the log.
const FULL_ROOM_BYTES_MAX: u64 = 48 << 10;

/// A connection for a snapshot is forgotten within so many packets: handshake, questions, answers.
const DARK_PACKETS_MAX: u64 = 16;

/// Decides what goes wrong next.
pub trait Plan {
    /// Faults to apply now, and the time until the next question, in microseconds.
    fn next(&mut self, world: &World) -> (Vec<Fault>, u64);
}

fn nodes(world: &World) -> Vec<NodeId> {
    world.nodes.values().filter(|n| !n.gone && !n.over).map(|n| n.id).collect()
}

fn running(world: &World) -> Vec<NodeId> {
    world.nodes.values().filter(|n| n.up.is_some()).map(|n| n.id).collect()
}

/// What the operator does: the commonest first, and often.
fn operation(dice: &mut Dice) -> Fault {
    use Operation::*;
    let what = *dice.pick(&[
        Join,
        Join,
        Join,
        Join,
        Join,
        JoinUnseen,
        JoinUnseen,
        Promote,
        Promote,
        Remove,
        Remove,
        Remove,
        Remove,
        RemoveLeader,
        RemoveLeader,
        RemoveOff,
        RemoveOff,
        Replace,
        Replace,
        Replace,
        ReplaceInPlace,
        ReplaceInPlace,
        ReplaceLost,
        ReplaceLost,
        ReplaceLost,
        Knock,
        Knock,
        Knock,
        Move,
        Move,
    ]);
    Fault::Operate { what, at: dice.roll() }
}

/// Whether a disk is damaged or lost of a node that was not replaced yet: there is one at a time.
fn is_spent(world: &World) -> bool {
    world.nodes.values().any(|n| (n.has_damage() || n.wiped || n.old_copy) && !n.gone && !n.over)
}

/// A bandwidth that carries what clients ask here, and more or less than that is under way.
pub(super) fn bandwidth(dice: &mut Dice) -> u64 {
    dice.log_between(30_000, 2_000_000)
}

/// Anything at any time.
#[derive(Debug)]
pub struct Random {
    dice: Dice,
    pace_us: u64,
    flips: u64,
    /// Of so many faults one is a change of the members; 0 for none.
    changes: u64,
}

impl Random {
    /// A plan with its own dice.
    pub fn new(mut dice: Dice) -> Random {
        // Some runs are hectic, some nearly quiet.
        let pace_us = dice.log_between(100_000, 3_000_000);
        let flips = dice.below(3);
        let changes = *dice.pick(&[0, 2, 3, 5]);
        Random { dice, pace_us, flips, changes }
    }

    fn one(&mut self, world: &World) -> Option<Fault> {
        let dice = &mut self.dice;
        let all = nodes(world);
        let up = running(world);
        if up.is_empty() {
            return None;
        }
        let node = *dice.pick(&up);
        let from = *dice.pick(&all);
        let to = *dice.pick(&all);
        // Half of the disk errors wait for a process that is down, if one is: recovery meets them.
        let down = all.iter().copied().find(|id| !up.contains(id));
        let any = down.filter(|_| dice.chance(1, 2)).unwrap_or(node);
        let down_us = dice.log_between(10_000, 4_000_000);
        Some(match dice.below(66) {
            0..3 => Fault::Kill { node, down_us },
            3..5 => Fault::PowerLoss { node, down_us },
            5 => Fault::TornWrite { node, changes: dice.below(6) },
            6..8 => Fault::PowerAt { node, turn: dice.roll(), skip: dice.below(3) },
            8..10 => Fault::Pause { node, for_us: dice.log_between(50_000, 3_000_000) },
            10..12 if from != to => Fault::Cut { from, to },
            12..14 => Fault::Isolate { node: from },
            14..18 if from != to => Fault::Bad {
                from,
                to,
                loss: dice.below(400),
                duplication: dice.below(300),
                delay_us: dice.log_between(2_000, 400_000),
            },
            18..20 if from != to => Fault::Reset { from, to },
            20..26 => Fault::Heal,
            26 => Fault::DiskTrouble { node: any, trouble: Trouble::Sync },
            27 => Fault::DiskTrouble { node: any, trouble: Trouble::Write },
            28 | 50 => Fault::DiskTrouble { node: any, trouble: Trouble::Read },
            29 => Fault::DiskTrouble { node: any, trouble: Trouble::Full },
            62 => Fault::DiskTrouble { node: any, trouble: Trouble::FullSync },
            63 | 64 => Fault::DiskTrouble { node: any, trouble: Trouble::Held },
            65 => Fault::DiskTrouble { node: any, trouble: Trouble::Descriptors },
            30 => Fault::SlowDisk { node, sync_us_max: dice.log_between(1_000, 1_500_000) },
            31 => Fault::SlowDisk { node, sync_us_max: 2_000 },
            32 => Fault::Transfer { node, to: None },
            33..35 => Fault::Burst { node, writes: dice.log_between(1, 60) },
            35 => Fault::Compact { node },
            51 | 52 if !is_spent(world) => Fault::FlipStore { node: any, at: dice.roll() },
            58..62 => Fault::Sweep { node, from: dice.roll(), keys: dice.log_between(8, 300) },
            36..38 => Fault::Rush { for_us: dice.log_between(50_000, 1_000_000) },
            38 => Fault::FillDisk { node: from, room: dice.below(FULL_ROOM_BYTES_MAX) },
            39..41 => Fault::EmptyDisk { node: from },
            41..43 => Fault::CopyDisk { node },
            43 => Fault::OldCopy { node },
            44..46 if from != to => Fault::Forget { from, to },
            46 if from != to => Fault::Slow { from, to, bandwidth: bandwidth(dice) },
            47 if from != to => Fault::Slow { from, to, bandwidth: 0 },
            48 => Fault::DialStorm,
            49 => Fault::ForgetSnapshot { packets: dice.below(DARK_PACKETS_MAX) },
            _ => {
                // Damage for good: one node, so that a majority stays.
                let spent = is_spent(world) || !world.can_lose(down.unwrap_or(node));
                let Some(down) = down else {
                    if self.flips == 0 || spent || all.len() < 3 {
                        return None;
                    }
                    self.flips -= 1;
                    return Some(Fault::Wipe { node, down_us });
                };
                if self.flips == 0 || spent {
                    return Some(Fault::FlipIdentity { node: down, both: false, at: dice.roll() });
                }
                // A damaged store is repaired, and may be damaged again.
                if dice.chance(1, 2) {
                    return Some(Fault::FlipStore { node: down, at: dice.roll() });
                }
                self.flips -= 1;
                match dice.below(6) {
                    0 | 1 => Fault::BitFlip { node: down, at: dice.roll() },
                    2 | 3 => Fault::Misdirect { node: down, from: dice.roll(), to: dice.roll() },
                    _ => Fault::FlipIdentity { node: down, both: true, at: dice.roll() },
                }
            }
        })
    }
}

impl Plan for Random {
    fn next(&mut self, world: &World) -> (Vec<Fault>, u64) {
        let mut faults: Vec<Fault> = self.one(world).into_iter().collect();
        if self.changes > 0 && self.dice.chance(1, self.changes) {
            faults.push(operation(&mut self.dice));
        }
        (faults, self.dice.between(self.pace_us / 2, self.pace_us * 2))
    }
}

/// Patterns that are known to hurt.
#[derive(Debug)]
pub struct Adversary {
    dice: Dice,
    script: Vec<(u64, Fault)>,
    /// Members change, too.
    changes: bool,
}

impl Adversary {
    /// A plan with its own dice.
    pub fn new(mut dice: Dice) -> Adversary {
        let changes = dice.chance(3, 4);
        Adversary { dice, script: Vec::new(), changes }
    }

    /// Writes down the next pattern: pauses in microseconds and faults, in order.
    fn write(&mut self, world: &World) {
        let dice = &mut self.dice;
        let mut all = nodes(world);
        let leader = world.leader().unwrap_or(all[0]);
        let others: Vec<NodeId> = all.iter().copied().filter(|&id| id != leader).collect();
        if others.is_empty() {
            self.script = vec![(dice.log_between(200_000, 3_000_000), operation(dice))];
            return;
        }
        if let Some(late) = world.late() {
            let known: Vec<NodeId> = others.iter().copied().filter(|&id| id != late).collect();
            if known.len() > 2 {
                self.script = wiped_disk_let_in(dice, leader, late, &known);
                return;
            }
        }
        let follower = *dice.pick(&others);
        let short = |dice: &mut Dice| dice.log_between(100, 20_000);
        let mut script: Vec<(u64, Fault)> = Vec::new();
        match dice.below(if self.changes { 39 } else { 27 }) {
            // Swizzle: cut nodes off one by one, heal in another order.
            0 => {
                for _ in 0..all.len() {
                    let at = dice.below(all.len() as u64) as usize;
                    let node = all.remove(at);
                    script.push((dice.log_between(10_000, 600_000), Fault::Isolate { node }));
                }
                script.push((dice.log_between(10_000, 2_000_000), Fault::Heal));
            }
            // The leader is alone just after it took a write, goes on for a while, and comes back.
            1 => {
                script.push((short(dice), Fault::Isolate { node: leader }));
                script.push((dice.log_between(100_000, 3_000_000), Fault::Heal));
            }
            // A majority goes down at some stage of replication.
            2 => {
                for &node in all.iter().take(all.len() / 2 + 1) {
                    let down_us = dice.log_between(10_000, 1_500_000);
                    script.push((short(dice), Fault::PowerLoss { node, down_us }));
                }
            }
            // Everybody at once, torn in the middle of writing.
            3 => {
                let aimed = dice.chance(1, 2).then(|| dice.roll());
                for &node in &all {
                    let torn = match aimed {
                        Some(turn) => Fault::PowerAt { node, turn, skip: 0 },
                        None => Fault::TornWrite { node, changes: dice.below(3) },
                    };
                    script.push((0, torn));
                }
                let down_us = dice.log_between(10_000, 300_000);
                for &node in &all {
                    script.push((dice.below(60_000), Fault::PowerLoss { node, down_us }));
                }
            }
            // The leader's disk stalls, then its syncs fail.
            4 => {
                let sync_us_max = dice.between(400_000, 2_000_000);
                script.push((0, Fault::SlowDisk { node: leader, sync_us_max }));
                script.push((
                    dice.log_between(50_000, 2_000_000),
                    Fault::DiskTrouble { node: leader, trouble: Trouble::Sync },
                ));
                script.push((200_000, Fault::SlowDisk { node: leader, sync_us_max: 2_000 }));
            }
            // The leader sleeps past an election and wakes believing that it leads.
            5 => {
                let for_us = dice.log_between(100_000, 4_000_000);
                script.push((short(dice), Fault::Pause { node: leader, for_us }));
                if dice.chance(1, 2) {
                    abandon(&mut script, dice, leader, &others);
                    let before_us = dice.log_between(10_000, for_us);
                    script.push((for_us - before_us, Fault::Rush { for_us: 2 * before_us }));
                    script.push((2 * before_us, Fault::Heal));
                } else {
                    script.push((for_us / 2, Fault::Cut { from: leader, to: follower }));
                    script.push((for_us, Fault::Heal));
                }
            }
            // Acknowledgements get lost one way, and everything arrives twice and late.
            6 => {
                script.push((0, Fault::Cut { from: follower, to: leader }));
                for &to in &others {
                    let fault = Fault::Bad {
                        from: leader,
                        to,
                        loss: 50,
                        duplication: 500,
                        delay_us: 150_000,
                    };
                    script.push((short(dice), fault));
                }
                script.push((dice.log_between(200_000, 3_000_000), Fault::Heal));
            }
            // Restart loop: one node is killed again and again, often before it has caught up.
            7 => {
                let damaged = is_spent(world) || !world.can_lose(follower);
                let mut little_room = false;
                if all.len() > 2 && !damaged && dice.chance(3, 4) {
                    // Once its log has a bad bit instead.
                    let down_us = dice.log_between(1_000, 60_000);
                    script.push((short(dice), Fault::PowerLoss { node: follower, down_us }));
                    let at = dice.roll();
                    let flip = match dice.chance(1, 4) {
                        true => Fault::BitFlip { node: follower, at },
                        false => Fault::FlipStore { node: follower, at },
                    };
                    script.push((500, flip));
                    little_room = dice.chance(2, 3);
                    if little_room {
                        // For its repair, which is to end all the same.
                        let room = dice.below(FULL_ROOM_BYTES_MAX / 8);
                        script.push((500, Fault::FillDisk { node: follower, room }));
                    }
                    // Compactions may meet it before anybody reads it.
                    for _ in 0..4 {
                        let writes = dice.between(20, 60);
                        let burst = Fault::Burst { node: leader, writes };
                        script.push((dice.log_between(20_000, 120_000), burst));
                    }
                }
                if little_room {
                    let pause_us = dice.log_between(3_000_000, 9_000_000);
                    script.push((pause_us, Fault::EmptyDisk { node: follower }));
                }
                for _ in 0..if little_room { 0 } else { 6 } {
                    let down_us = dice.log_between(1_000, 60_000);
                    let pause_us = dice.log_between(2_000, 300_000);
                    let fault = if dice.chance(1, 2) {
                        Fault::PowerLoss { node: follower, down_us }
                    } else {
                        Fault::Kill { node: follower, down_us }
                    };
                    script.push((pause_us, fault));
                }
            }
            // Leadership is handed around while the new leader dies.
            8 => {
                script.push((0, Fault::Transfer { node: leader, to: None }));
                let down_us = dice.log_between(10_000, 800_000);
                script.push((short(dice), Fault::Kill { node: follower, down_us }));
                script.push((short(dice), Fault::Reset { from: leader, to: follower }));
            }
            17 => {
                script = old_acknowledgements_meet_new_reads(dice, leader, &others);
            }
            // The leader is alone and does not know; the others do and go on. Clients ask both.
            9 => {
                script.push((0, Fault::Rush { for_us: 1_000_000 }));
                if dice.chance(1, 2) {
                    // What they have acknowledged before is still under way.
                    for &from in &others {
                        let delay_us = dice.log_between(50_000, 600_000);
                        let late = late_line(dice, from, leader, (0, 300), delay_us);
                        script.push((short(dice), late));
                    }
                }
                if dice.chance(1, 2) {
                    script
                        .push((dice.log_between(2_000, 100_000), Fault::Isolate { node: leader }));
                } else {
                    for &from in &others {
                        script.push((short(dice), Fault::Cut { from, to: leader }));
                    }
                }
                abandon(&mut script, dice, leader, &others);
                script.push((dice.log_between(50_000, 800_000), Fault::Heal));
            }
            // A leader gathers entries that nobody else has, another one fewer of a later term;
            // then both are back, and one of them goes.
            10 => {
                script.push((0, Fault::Isolate { node: leader }));
                script.push((short(dice), Fault::Burst { node: leader, writes: dice.below(60) }));
                abandon(&mut script, dice, leader, &others);
                for &node in &others {
                    let writes = dice.below(4);
                    script.push((dice.log_between(5_000, 80_000), Fault::Burst { node, writes }));
                }
                script.push((dice.log_between(5_000, 1_000_000), Fault::Heal));
                for &node in &others {
                    let down_us = dice.log_between(10_000, 1_000_000);
                    script.push((dice.log_between(200, 200_000), Fault::Kill { node, down_us }));
                    if dice.chance(1, 2) {
                        break;
                    }
                }
            }
            // Answers come late, some of them twice, while leadership goes to and fro.
            11 => {
                for &from in &others {
                    let loss = dice.below(100);
                    let delay_us = dice.log_between(20_000, 600_000);
                    let late = late_line(dice, from, leader, (loss, 500), delay_us);
                    script.push((short(dice), late));
                }
                script.push((short(dice), Fault::Rush { for_us: 1_500_000 }));
                for _ in 0..3 {
                    let writes = dice.below(30);
                    let pause_us = dice.log_between(1_000, 300_000);
                    script.push((pause_us, Fault::Burst { node: leader, writes }));
                    abandon(&mut script, dice, leader, &others);
                    let node = *dice.pick(&all);
                    script.push((
                        dice.log_between(1_000, 200_000),
                        Fault::Transfer { node, to: None },
                    ));
                }
                script.push((dice.log_between(100_000, 1_000_000), Fault::Heal));
            }
            // A follower begins a new life while the leader still works for the former one.
            20 => script = new_life_at_once(dice, leader, follower, &all),
            12 => {
                let sync_us_max = dice.log_between(20_000, 400_000);
                for &node in &all {
                    script.push((0, Fault::SlowDisk { node, sync_us_max }));
                }
                script.push((0, Fault::Rush { for_us: 1_500_000 }));
                for _ in 0..4 {
                    let down_us = dice.log_between(500, 20_000);
                    let kill = Fault::Kill { node: follower, down_us };
                    script.push((dice.log_between(5_000, 500_000), kill));
                }
                for &node in &all {
                    script.push((short(dice), Fault::SlowDisk { node, sync_us_max: 2_000 }));
                }
            }
            // Leader after leader is cut off with entries of its own; each log parts from the others
            // at another place.
            13 | 21 | 22 => {
                if dice.chance(3, 4) {
                    let delay_us = dice.log_between(10_000, 400_000);
                    late_lines(&mut script, dice, &all, 0, delay_us);
                }
                for _ in 0..dice.between(3, 8) {
                    let writes = dice.log_between(1, 60);
                    script.push((short(dice), Fault::Burst { node: LEADER, writes }));
                    script.push((short(dice), Fault::Isolate { node: LEADER }));
                    abandon(&mut script, dice, LEADER, &all);
                    script.push((dice.log_between(10_000, 300_000), Fault::Reconnect));
                }
            }
            // Votes come late: of one election in the next.
            14 => {
                let delay_us = dice.log_between(50_000, 800_000);
                late_lines(&mut script, dice, &all, 100, delay_us);
                for _ in 0..dice.between(3, 8) {
                    abandon(&mut script, dice, LEADER, &all);
                    let down_us = dice.log_between(10_000, 400_000);
                    let kill = Fault::Kill { node: LEADER, down_us };
                    script.push((dice.log_between(1_000, 800_000), kill));
                }
            }
            19 if others.len() > 1 => {
                let heir = others.iter().copied().find(|&id| id != follower).unwrap_or(leader);
                script = entries_of_an_earlier_term(dice, leader, follower, heir);
            }
            // One follower has what the others have not, and says so late. They go on without it;
            // then its leader is back.
            15 | 18 | 19 => {
                let rest: Vec<NodeId> =
                    others.iter().copied().filter(|&id| id != follower).collect();
                if rest.len() > 2 && dice.chance(2, 3) {
                    self.script = stalled_acknowledgements(dice, leader, follower, &rest);
                    return;
                }
                for &to in &rest {
                    script.push((1, Fault::Cut { from: leader, to }));
                }
                let delay_us = dice.log_between(100_000, 600_000);
                let late = late_line(dice, follower, leader, (0, 1000), delay_us);
                script.push((1, late));
                let burst = Fault::Burst { node: leader, writes: dice.between(10, 60) };
                script.push((1, burst));
                abandon(&mut script, dice, leader, &rest);
                script.push((dice.log_between(20_000, 150_000), Fault::Reconnect));
                for _ in 0..2 {
                    let back = Fault::Transfer { node: LEADER, to: Some(leader) };
                    script.push((dice.log_between(10_000, 100_000), back));
                    script.push((dice.log_between(5_000, 50_000), burst));
                }
            }
            24 if others.len() > 1 && dice.chance(1, 2) => {
                let heir = others.iter().copied().find(|&id| id != follower).unwrap_or(leader);
                script = log_overtakes_snapshot(dice, leader, follower, heir);
            }
            // A follower is away until its place in the log is gone, and disks fail while it fetches.
            23 | 24 => {
                let down_us = dice.between(1_500_000, 4_000_000);
                script.push((short(dice), Fault::Kill { node: follower, down_us }));
                for _ in 0..8 {
                    let burst = Fault::Burst { node: LEADER, writes: dice.between(20, 60) };
                    script.push((down_us / 9, burst));
                }
                let after_us = dice.log_between(10_000, 400_000);
                let full = dice.chance(1, 2);
                if full {
                    // Its disk is full when it is back.
                    let room = dice.below(FULL_ROOM_BYTES_MAX / 2);
                    script.push((1_000, Fault::FillDisk { node: follower, room }));
                }
                script.push((down_us / 9 + after_us, Fault::Reset { from: follower, to: leader }));
                if full {
                    let pause_us = dice.log_between(500_000, 4_000_000);
                    script.push((pause_us, Fault::EmptyDisk { node: follower }));
                }
                if dice.chance(1, 2) {
                    // And its connections go silent.
                    for _ in 0..dice.between(1, 4) {
                        let packets = dice.below(DARK_PACKETS_MAX);
                        let pause_us = dice.log_between(1_000, 3_000_000);
                        script.push((pause_us, Fault::ForgetSnapshot { packets }));
                    }
                }
                for _ in 0..dice.between(1, 3) {
                    let troubles = [
                        Trouble::Read,
                        Trouble::Write,
                        Trouble::Sync,
                        Trouble::Full,
                        Trouble::FullSync,
                        Trouble::Held,
                    ];
                    let trouble = *dice.pick(&troubles);
                    let node = if trouble == Trouble::Read { LEADER } else { follower };
                    let trouble = Fault::DiskTrouble { node, trouble };
                    script.push((dice.log_between(1_000, 300_000), trouble));
                }
                let (from, to) = (follower, LEADER);
                script.push((short(dice), Fault::Reset { from, to }));
            }
            // A disk is full while much is written, and now and then the node on it dies. Then there
            // is space again, or first somebody deletes.
            25 | 26 => {
                let node = if dice.chance(2, 3) { leader } else { follower };
                let room = dice.below(FULL_ROOM_BYTES_MAX);
                script.push((short(dice), Fault::FillDisk { node, room }));
                for _ in 0..dice.between(2, 8) {
                    let burst = Fault::Burst { node: LEADER, writes: dice.between(10, 60) };
                    script.push((dice.log_between(20_000, 400_000), burst));
                    if dice.chance(1, 8) {
                        let down_us = dice.log_between(10_000, 400_000);
                        let fault = match dice.chance(1, 2) {
                            true => Fault::PowerLoss { node, down_us },
                            false => Fault::Kill { node, down_us },
                        };
                        script.push((short(dice), fault));
                    }
                }
                script.push((dice.log_between(10_000, 2_000_000), Fault::EmptyDisk { node }));
                script.push((1_500_000, Fault::Rush { for_us: 300_000 }));
            }
            // A change is under way when the leader goes, one way or another, or several do.
            27..30 => {
                for _ in 0..dice.between(1, 4) {
                    script.push((short(dice), operation(dice)));
                    let down_us = dice.log_between(10_000, 800_000);
                    let fault = match dice.below(4) {
                        0 => Fault::Isolate { node: LEADER },
                        1 => Fault::Kill { node: LEADER, down_us },
                        2 => Fault::PowerLoss { node: LEADER, down_us },
                        _ => Fault::Transfer { node: LEADER, to: None },
                    };
                    script.push((dice.log_between(1_000, 300_000), fault));
                    if dice.chance(1, 2) {
                        script.push((dice.log_between(10_000, 600_000), Fault::Reconnect));
                    }
                }
            }
            // Every leader is asked to let itself be removed, while answers come late.
            30 => {
                let delay_us = dice.log_between(10_000, 300_000);
                late_lines(&mut script, dice, &all, 50, delay_us);
                for _ in 0..3 {
                    let join = Fault::Operate { what: Operation::Join, at: dice.roll() };
                    script.push((dice.log_between(10_000, 1_000_000), join));
                    let remove = Fault::Operate { what: Operation::RemoveLeader, at: dice.roll() };
                    script.push((dice.log_between(100_000, 2_000_000), remove));
                }
            }
            // A node has led since its disk was copied, and comes back with the copy; then somebody
            // replaces it.
            31..34 => {
                let copy = Fault::CopyDisk { node: follower };
                script.push((short(dice), copy));
                let to = Some(follower);
                script.push((short(dice), Fault::Transfer { node: LEADER, to }));
                let back = Fault::Transfer { node: LEADER, to: None };
                script.push((dice.log_between(300_000, 2_000_000), back));
                for _ in 0..6 {
                    let back = Fault::OldCopy { node: follower };
                    script.push((dice.log_between(50_000, 500_000), back));
                }
                let replace = Fault::Operate { what: Operation::ReplaceLost, at: dice.roll() };
                script.push((dice.log_between(500_000, 3_000_000), replace));
            }
            // Power fails everywhere while voters change.
            34 => {
                script.push((short(dice), operation(dice)));
                let down_us = dice.log_between(10_000, 300_000);
                let pause_us = dice.log_between(1_000, 1_000_000);
                for (at, &node) in all.iter().enumerate() {
                    let pause_us = if at == 0 { pause_us } else { dice.below(5_000) };
                    script.push((pause_us, Fault::PowerLoss { node, down_us }));
                }
            }
            // A disk is lost, also in a power failure, and the machine replaced where it is.
            35 => {
                let down_us = dice.log_between(10_000, 400_000);
                script.push((short(dice), Fault::Wipe { node: follower, down_us }));
                if dice.chance(1, 2) {
                    for &node in all.iter().filter(|&&node| node != follower) {
                        let down_us = dice.log_between(10_000, 1_000_000);
                        script.push((dice.below(2_000), Fault::PowerLoss { node, down_us }));
                    }
                }
                for _ in 0..3 {
                    let at = dice.roll();
                    let replace = Fault::Operate { what: Operation::ReplaceLost, at };
                    script.push((dice.log_between(100_000, 1_500_000), replace));
                }
            }
            // Whoever was removed comes back with its old disk, again and again.
            36..39 => {
                let off = Fault::Operate { what: Operation::RemoveOff, at: dice.roll() };
                script.push((short(dice), off));
                for _ in 0..dice.between(2, 6) {
                    let knock = Fault::Operate { what: Operation::Knock, at: dice.roll() };
                    script.push((dice.log_between(100_000, 2_000_000), knock));
                }
            }
            // Votes are torn: power fails around elections.
            _ => {
                let down_us = dice.log_between(10_000, 200_000);
                script.push((0, Fault::Kill { node: leader, down_us }));
                for &node in &others {
                    script.push((short(dice), Fault::TornWrite { node, changes: dice.below(3) }));
                }
            }
        }
        script.push((dice.log_between(200_000, 3_000_000), Fault::Heal));
        script.reverse();
        self.script = script;
    }
}

impl Plan for Adversary {
    fn next(&mut self, world: &World) -> (Vec<Fault>, u64) {
        if self.script.is_empty() {
            self.write(world);
        }
        let fault = self.script.pop().and_then(|(_, fault)| fault.aimed(world.newest_leader()));
        let mut faults: Vec<Fault> = fault.into_iter().filter(|f| applies(world, f)).collect();
        if self.changes && self.dice.chance(1, 10) {
            faults.push(operation(&mut self.dice));
        }
        // Scripts are played from the back: the pause belongs to the fault that follows.
        (faults, self.script.last().map_or(100_000, |next| next.0).max(1))
    }
}

/// A process that is down cannot be stopped again, and who leads is not asked to hand over to itself.
fn applies(world: &World, fault: &Fault) -> bool {
    let node = fault.node();
    match fault {
        Fault::Kill { .. } | Fault::PowerLoss { .. } | Fault::Pause { .. } => {
            running(world).contains(&node)
        }
        Fault::Transfer { to, .. } => *to != Some(node),
        _ => true,
    }
}
