//! Longer patterns of the adversary ([`super::plans`]), and what they are made of. A pattern is a script,
//! played from its back: each fault with the pause before it, in microseconds.

use super::dice::Dice;
use super::faults::Fault;
use crate::raft::NodeId;

/// In a script: whoever leads when the fault's turn comes.
pub(super) const LEADER: NodeId = 0;

/// A line on which what is said comes late: now and then, with losses and doubles, or all of it and in order.
pub(super) fn late_line(
    dice: &mut Dice,
    from: NodeId,
    to: NodeId,
    (loss, duplication): (u64, u64),
    delay_us: u64,
) -> Fault {
    match dice.chance(1, 2) {
        true => Fault::Bad { from, to, loss, duplication, delay_us },
        false => Fault::Distant { from, to, delay_us },
    }
}

/// Everything comes late, and half of it twice.
pub(super) fn late_lines(
    script: &mut Vec<(u64, Fault)>,
    dice: &mut Dice,
    all: &[NodeId],
    loss: u64,
    delay_us: u64,
) {
    for &from in all {
        for &to in all.iter().filter(|&&to| to != from) {
            let loss = dice.below(loss + 1);
            let line = late_line(dice, from, to, (loss, 500), delay_us);
            script.push((1, line));
        }
    }
}

/// The followers see their connections with the leader break, and choose another soon. What counts for
/// that is the one that the leader has dialed.
pub(super) fn abandon(
    script: &mut Vec<(u64, Fault)>,
    dice: &mut Dice,
    leader: NodeId,
    others: &[NodeId],
) {
    for &node in others {
        script.push((dice.log_between(100, 20_000), Fault::Reset { from: node, to: leader }));
        script.push((1, Fault::Reset { from: leader, to: node }));
    }
}

/// A follower begins a new life at once, again and again, while the leader still owes answers to the one
/// before: either disks are so slow that nothing is committed in between, or what the leader says comes late
/// while it commits more. Each life asks for as much as the last.
pub(super) fn new_life_at_once(
    dice: &mut Dice,
    leader: NodeId,
    follower: NodeId,
    all: &[NodeId],
) -> Vec<(u64, Fault)> {
    if dice.chance(1, 4) {
        return old_answer_meets_new_read(dice, leader, follower, all);
    }
    let mut script = Vec::new();
    let slow = dice.chance(1, 2);
    let sync_us_max = dice.log_between(40_000, 400_000);
    if slow {
        script.extend(all.iter().map(|&node| (1, Fault::SlowDisk { node, sync_us_max })));
    } else {
        let delay_us = dice.log_between(20_000, 400_000);
        let (loss, duplication) = (0, dice.below(300));
        // What it says to that one, or to all others: then it cannot answer before the new life is there.
        let others = dice.chance(1, 2);
        for &to in all.iter().filter(|&&to| to != leader && (to != follower) == others) {
            script.push((1, Fault::Bad { from: leader, to, loss, duplication, delay_us }));
        }
    }
    for _ in 0..dice.between(2, 6) {
        let burst = Fault::Burst { node: follower, writes: dice.log_between(4, 40) };
        script.push((dice.log_between(500, 60_000), burst));
        let down_us = dice.log_between(200, 4_000);
        let kill = Fault::Kill { node: follower, down_us };
        script.push((dice.log_between(50, 80_000), kill));
        if !slow {
            let burst = Fault::Burst { node: leader, writes: dice.log_between(4, 40) };
            script.push((dice.log_between(500, 20_000), burst));
        }
    }
    let burst = Fault::Burst { node: follower, writes: dice.log_between(4, 40) };
    script.push((dice.log_between(5_000, 60_000), burst));
    let end =
        |node| (dice.log_between(10_000, 200_000), Fault::SlowDisk { node, sync_us_max: 2_000 });
    script.extend(all.iter().copied().map(end));
    script
}

/// A follower asks for a read index and begins a new life before the leader can answer, since what that says to
/// all others comes late. The answer, of the time before the writes that follow, is under way to the new life
/// while that asks as well.
fn old_answer_meets_new_read(
    dice: &mut Dice,
    leader: NodeId,
    follower: NodeId,
    all: &[NodeId],
) -> Vec<(u64, Fault)> {
    let mut script = Vec::new();
    let round_us = dice.between(100_000, 350_000);
    let answer_us = dice.between(round_us / 16, round_us / 4);
    for &to in all.iter().filter(|&&to| to != leader) {
        let delay_us = if to == follower { answer_us } else { round_us };
        script.push((1, Fault::Distant { from: leader, to, delay_us }));
    }
    for _ in 0..dice.between(2, 5) {
        let burst = |node, writes| Fault::Burst { node, writes };
        let asked = burst(follower, dice.between(4, 12));
        script.push((dice.between(round_us, 2 * round_us), asked));
        let down_us = dice.log_between(200, 4_000);
        script.push((dice.log_between(500, 10_000), Fault::Kill { node: follower, down_us }));
        script.push((dice.log_between(100, 10_000), burst(leader, dice.between(4, 12))));
        // Around the time when the leader's round is over.
        let asked = burst(follower, dice.between(4, 12));
        script.push((dice.between(round_us - answer_us, round_us + answer_us), asked));
    }
    script.extend(
        all.iter()
            .filter(|&&to| to != leader)
            .map(|&to| (dice.log_between(10_000, 200_000), Fault::Mend { from: leader, to })),
    );
    script
}

/// What the others say reaches the leader late, later and later, but it never hears nothing for long. Then nobody
/// hears the leader any more, and they choose another. The old one still hears what they said before: it takes
/// that for signs that it leads, with a round of reads under way, while the new one commits writes.
pub(super) fn old_acknowledgements_meet_new_reads(
    dice: &mut Dice,
    leader: NodeId,
    others: &[NodeId],
) -> Vec<(u64, Fault)> {
    let mut script = Vec::new();
    let late_us = dice.between(1_000_000, 1_800_000);
    let steps = 5;
    for step in 1..=steps {
        for &from in others {
            let delay_us = late_us * step / steps;
            script.push((1, Fault::Distant { from, to: leader, delay_us }));
        }
        script.push((late_us / steps, Fault::Reads { node: leader, count: 1 }));
    }
    for _ in 0..dice.between(1, 4) {
        let count = dice.between(1, 4);
        script.push((dice.log_between(1_000, 100_000), Fault::Reads { node: leader, count }));
    }
    for &to in others {
        script.push((dice.log_between(1, 2_000), Fault::Cut { from: leader, to }));
    }
    let mut pause_us = dice.between(300_000, 900_000);
    for _ in 0..dice.between(4, 10) {
        script.push((pause_us, Fault::Burst { node: LEADER, writes: dice.between(1, 6) }));
        script.push((dice.log_between(2_000, 60_000), Fault::Reads { node: leader, count: 2 }));
        pause_us = dice.log_between(2_000, 200_000);
    }
    script.push((dice.log_between(10_000, 1_000_000), Fault::Heal));
    script
}

/// A follower was away for so long that the leader has no log for it any more, and fetches a snapshot. Another
/// node leads meanwhile, and has the log: the follower applies more than the snapshot holds before that is
/// taken in.
pub(super) fn log_overtakes_snapshot(
    dice: &mut Dice,
    leader: NodeId,
    follower: NodeId,
    heir: NodeId,
) -> Vec<(u64, Fault)> {
    let mut script = vec![(dice.log_between(200, 20_000), Fault::Isolate { node: follower })];
    for _ in 0..dice.between(1, 4) {
        let burst = Fault::Burst { node: leader, writes: dice.between(5, 40) };
        script.push((dice.log_between(5_000, 60_000), burst));
    }
    script.push((dice.log_between(5_000, 60_000), Fault::Compact { node: leader }));
    let (from, to, bandwidth) = (leader, follower, dice.log_between(10_000, 200_000));
    script.push((dice.log_between(5_000, 60_000), Fault::Slow { from, to, bandwidth }));
    for (from, to) in [(leader, follower), (follower, leader), (heir, follower), (follower, heir)] {
        script.push((dice.log_between(1, 20_000), Fault::Mend { from, to }));
    }
    for _ in 0..dice.between(1, 4) {
        let there = Fault::Transfer { node: LEADER, to: Some(heir) };
        script.push((dice.log_between(1_000, 200_000), there));
        let burst = Fault::Burst { node: heir, writes: dice.between(1, 30) };
        script.push((dice.log_between(1_000, 60_000), burst));
        let back = Fault::Transfer { node: LEADER, to: Some(leader) };
        script.push((dice.log_between(20_000, 400_000), back));
    }
    script.push((dice.log_between(1_000, 100_000), Fault::Slow { from, to, bandwidth: 0 }));
    script.push((1, Fault::Heal));
    script
}

/// A leader goes and comes back, again and again, while what it says to one follower is late, now more and now
/// less: entries of its earlier term come behind the first words of its new one, where messages keep no order.
pub(super) fn entries_of_an_earlier_term(
    dice: &mut Dice,
    leader: NodeId,
    follower: NodeId,
    heir: NodeId,
) -> Vec<(u64, Fault)> {
    let delay_us = dice.log_between(50_000, 400_000);
    let late = Fault::Bad { from: leader, to: follower, loss: 0, duplication: 300, delay_us };
    let mut script = vec![(dice.log_between(200, 20_000), late)];
    for _ in 0..dice.between(3, 8) {
        let burst = Fault::Burst { node: LEADER, writes: dice.between(5, 40) };
        script.push((dice.log_between(1_000, 60_000), burst));
        let there = Fault::Transfer { node: LEADER, to: Some(heir) };
        script.push((dice.log_between(1_000, 20_000), there));
        let back = Fault::Transfer { node: LEADER, to: Some(leader) };
        script.push((dice.log_between(10_000, 100_000), back));
    }
    script.push((dice.log_between(10_000, 400_000), Fault::Heal));
    script
}

/// What one follower has acknowledged stalls on a cut line. The others replace those entries, the old
/// leader leads them again, and the line is mended: a connection carries everything, however late.
pub(super) fn stalled_acknowledgements(
    dice: &mut Dice,
    leader: NodeId,
    follower: NodeId,
    rest: &[NodeId],
) -> Vec<(u64, Fault)> {
    let mut script: Vec<(u64, Fault)> = Vec::new();
    for &to in rest {
        script.push((1, Fault::Cut { from: leader, to }));
    }
    script.push((1, Fault::Cut { from: follower, to: leader }));
    let writes = dice.between(10, 60);
    script.push((1, Fault::Burst { node: leader, writes }));
    script.push((dice.log_between(15_000, 80_000), Fault::Isolate { node: follower }));
    // Connections are not broken: nobody makes another one to a line that is cut.
    let mut pause_us = dice.between(700_000, 1_300_000);
    for &to in rest {
        script.push((pause_us, Fault::Mend { from: leader, to }));
        pause_us = 1;
    }
    for attempt in 0..5 {
        if attempt < 2 {
            script.push((dice.between(20_000, 100_000), Fault::Burst { node: LEADER, writes }));
        }
        let back = Fault::Transfer { node: LEADER, to: Some(leader) };
        script.push((dice.between(100_000, 300_000), back));
    }
    script.push((1, Fault::Mend { from: follower, to: leader }));
    script.push((2_000_000, Fault::Heal));
    script.reverse();
    script
}

/// A node has heard nobody since the beginning, and knows none of the others by its disk. One of them loses
/// its disk and meets that node first, which lets it in; then it hears from the leader whom it has let in.
pub(super) fn wiped_disk_let_in(
    dice: &mut Dice,
    leader: NodeId,
    late: NodeId,
    others: &[NodeId],
) -> Vec<(u64, Fault)> {
    let node = *dice.pick(others);
    let down_us = dice.log_between(10_000, 400_000);
    let both =
        |one, other| [Fault::Mend { from: one, to: other }, Fault::Mend { from: other, to: one }];
    let mut script = vec![(dice.log_between(100, 20_000), Fault::Wipe { node, down_us })];
    script.push((1, Fault::Isolate { node }));
    script.extend(both(node, late).map(|fault| (1, fault)));
    // Time to start, to dial, and to be let in.
    script.push((dice.between(500_000, 4_000_000), Fault::Mend { from: leader, to: late }));
    script.push((1, Fault::Mend { from: late, to: leader }));
    // A dial to a line that is cut is given up after three seconds.
    script.push((4_500_000, Fault::Heal));
    script.reverse();
    script
}
