//! Seeded random schedules: requests, faults and time in any order, then peace.

use super::*;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn step(c: &mut Cluster, dice: &mut Dice) {
    let id = 1 + dice.below(3);
    let other = 1 + dice.below(3);
    match dice.below(16) {
        0..=4 => {
            let wait_us = 1000 + dice.below(1_500_000);
            let key = dice.below(5).to_string();
            c.write(id, &key, wait_us);
        }
        5 | 6 => {
            let wait_us = 1000 + dice.below(1_500_000);
            c.read(id, wait_us);
        }
        7 => c.node(id).disk_held ^= true,
        8 => c.node(id).applier_held ^= true,
        9 if id != other => {
            c.cuts.insert((id, other));
            c.input(other, Input::PeerLost { node: id });
        }
        10 if id != other => {
            c.held.insert((id, other));
        }
        11 => c.heal(),
        12 if id != other => c.input(id, Input::PeerLost { node: other }),
        13 if dice.below(8) == 0 => c.restart(id),
        _ => {
            let us = dice.below(300_000);
            c.advance(us);
        }
    }
}

/// Whatever happens and in whatever order, each request is answered exactly once, at the latest
/// soon after its deadline; when peace returns nothing is charged any more, and all nodes are of
/// one mind.
#[test]
fn every_request_is_answered_exactly_once() {
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let mut c = Cluster::with_inflight(3, 5_000);
        for _ in 0..150 {
            step(&mut c, &mut dice);
        }
        c.heal();
        for node in c.nodes.values_mut() {
            (node.disk_held, node.applier_held) = (false, false);
        }
        let leader = c.elect();
        c.advance(2 * SOON_US);
        for (request, (id, _)) in &c.asked {
            assert!(c.answers.contains_key(request), "seed {seed}: {request} at {id} is open");
        }
        let applied = c.nodes[&leader].applier.machine().applied();
        for (id, node) in &c.nodes {
            assert_eq!(node.replica.inflight_bytes(), 0, "seed {seed}: node {id}");
            assert_eq!(node.applier.machine().applied(), applied, "seed {seed}: node {id}");
        }
    }
}
