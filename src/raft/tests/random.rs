//! Seeded random schedules: loss, duplication, reordering, crashes with part of what was being
//! written, partitions, clock steps, proposals, reads and transfers, with every invariant checked
//! after every step; then a second phase without faults, in which the cluster must come back.
//!
//! `KONTIKI_SEED=N cargo test --lib raft::tests::random` runs one seed.

use super::cluster::Cluster;
use super::solo::{HEARTBEAT_US, Platter, TIMEOUT_US, member, voters};
use crate::raft::*;

const SEEDS: u64 = 600;
const STEPS: usize = 6000;
/// Undelivered messages: over this the network drops the oldest.
const NET_MAX: usize = 60;
/// Liveness: a leader within this time once faults stop.
const LEADER_WITHIN_US: u64 = 10 * 2 * TIMEOUT_US;

/// What the faults of one seed amount to.
#[derive(Default)]
struct Counts {
    crashes: u64,
    torn: u64,
    partitions: u64,
    elections: u64,
    committed: u64,
    truncated: u64,
    reads: u64,
    transfers: u64,
    stalls: u64,
    changes: u64,
}

struct Run {
    cluster: Cluster,
    rng: Rng,
    counts: Counts,
    proposed: u64,
    /// Of a hundred possible faults, how many happen.
    faults: u64,
    /// How fast disks are: the greater, the faster.
    disk: u64,
    /// This node's timer is hardly looked at; it may lead long after it was deposed.
    drowsy: NodeId,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut rng = Rng::new(seed);
        let n = [3, 5][rng.below(2) as usize];
        // Who votes first; from there it changes as it likes.
        let first = if rng.below(2) == 0 { n } else { 1 + rng.below(n) };
        // Small bounds, so that a short run reaches all of them.
        let tweak: fn(&mut Options) = match rng.below(3) {
            0 => |o| {
                o.append_bytes_max = 120;
                o.probe_bytes_max = 60;
                o.inflight_bytes_max = 300;
                o.cache_bytes_max = 400;
                o.applying_bytes_max = 200;
                o.replay_entries_max = 4;
                o.remote_reads_max = 2;
            },
            1 => |o| {
                o.cache_bytes_max = 0;
                o.inflight_bytes_max = 1;
                o.replay_entries_max = 7;
            },
            _ => |_| {},
        };
        let platters = (1..=n).map(|id| (id, Platter::new(voters(first))));
        let mut cluster = Cluster::of(platters, seed, tweak);
        cluster.lazy = true;
        let faults = [10, 30, 100][rng.below(3) as usize];
        let disk = [7, 9, 12][rng.below(3) as usize];
        Run { cluster, rng, counts: Counts::default(), proposed: 0, faults, disk, drowsy: 1 }
    }

    fn any(&mut self) -> NodeId {
        1 + self.rng.below(self.cluster.nodes.len() as u64)
    }

    fn up(&mut self) -> Option<NodeId> {
        let id = self.any();
        self.cluster.is_up(id).then_some(id)
    }

    fn step(&mut self) {
        let c = &mut self.cluster;
        while c.net.len() > NET_MAX {
            c.net.remove(0);
        }
        let count = c.net.len() as u64;
        let event = self.rng.below(1000);
        // Faults come as often as this run has it.
        let fault = matches!(event, 380..410 | 945..959 | 975..980);
        if fault && self.rng.below(100) >= self.faults {
            return;
        }
        match event {
            0..380 if count > 0 => {
                // Mostly in order, sometimes any.
                let at = if self.rng.below(3) > 0 { 0 } else { self.rng.below(count) };
                self.cluster.deliver(at as usize);
            }
            380..395 if count > 0 => {
                c.net.remove(self.rng.below(count) as usize);
            }
            395..410 if count > 0 => {
                let again = c.net[self.rng.below(count) as usize].clone();
                c.net.push(again);
            }
            410..690 => {
                let Some(id) = self.up() else { return };
                self.turn(id);
            }
            690..850 => self.pass_time(),
            850..900 => {
                let id = match self.rng.below(3) {
                    0 => self.any(),
                    _ => self.cluster.leader().unwrap_or(1),
                };
                self.proposed += 1;
                let _ = self.cluster.propose(id, &format!("command {}", self.proposed));
            }
            900..940 => {
                if let Some(id) = self.up() {
                    self.cluster.read(id);
                    self.cluster.absorb(id);
                    self.counts.reads += 1;
                }
            }
            940..945 => {
                let to = self.any();
                let to = (self.rng.below(2) == 0).then_some(to);
                if let Some(id) = self.cluster.leader() {
                    let done = self.cluster.on(id, |r, now| r.transfer(to, now));
                    self.counts.transfers += u64::from(matches!(done, Some(Ok(_))));
                }
            }
            945..953 => {
                let (Some(id), peer) = (self.up(), self.any()) else { return };
                self.cluster.on(id, |r, now| r.peer_lost(peer, now));
            }
            953..959 => {
                if let Some(id) = self.up() {
                    self.cluster.absorb(id);
                    let asked = self.cluster.nodes[&id].pending.len() as u64;
                    let writes = self.rng.below(asked + 1) as usize;
                    let torn = (self.rng.below(2) == 0).then(|| self.rng.below(3) as usize);
                    self.cluster.crash(id, writes, torn);
                    self.counts.crashes += 1;
                    self.counts.torn += u64::from(torn.is_some() && (writes as u64) < asked);
                }
            }
            959..975 => {
                let id = self.any();
                if !self.cluster.is_up(id) {
                    self.cluster.restart(id);
                }
            }
            975..980 => {
                let id = self.any();
                if self.rng.below(2) == 0 {
                    self.cluster.isolate(id);
                } else {
                    let other = self.any();
                    self.cluster.cuts.insert((id, other));
                }
                self.counts.partitions += 1;
            }
            980..988 => self.cluster.cuts.clear(),
            988..993 => {
                // The store flushes: it need not apply so much again after a crash.
                if let Some(id) = self.up() {
                    let applied = self.cluster.raft(id).applied_index();
                    self.cluster.node(id).platter.applied = applied;
                }
            }
            993..998 => self.change(),
            _ => {}
        }
    }

    /// Voters become any others, all at once if it so happens, and others learn.
    fn change(&mut self) {
        let Some(leader) = self.cluster.leader() else { return };
        let n = self.cluster.nodes.len() as u64;
        let now = self.cluster.raft(leader).configuration();
        let mut target = Configuration { cluster: 1, last_id: n, ..Configuration::default() };
        for id in 1..=n {
            let (kept, dice) = (now.voters.contains(&id), self.rng.below(4));
            if dice < if kept { 3 } else { 1 } {
                target.voters.insert(id);
            } else if dice == 3 && !kept {
                target.learners.insert(id);
            }
        }
        let stays = |id: &NodeId| target.voters.contains(id) || target.learners.contains(id);
        target.members = (1..=n).filter(stays).map(member).collect();
        if target.is_valid() {
            let done = self.cluster.on(leader, |r, _| r.propose_configuration(target));
            self.counts.changes += u64::from(matches!(done, Some(Ok(_))));
        }
    }

    /// A node's surroundings move: mostly all of them, sometimes one.
    fn turn(&mut self, id: NodeId) {
        let kind = self.rng.below(12);
        let c = &mut self.cluster;
        match kind {
            0 => c.write_one(id),
            1 => c.report(id),
            2 => c.absorb(id),
            3 => c.read_log(id),
            4 => c.apply_one(id),
            5 => c.write_all(id),
            _ => {
                c.absorb(id);
                if kind < self.disk {
                    c.write_all(id);
                }
                c.read_log(id);
                c.apply_one(id);
                c.absorb(id);
            }
        }
    }

    fn pass_time(&mut self) {
        let us = match self.rng.below(200) {
            0 => self.rng.below(3 * TIMEOUT_US),
            1..20 => self.rng.below(HEARTBEAT_US),
            _ => self.rng.below(HEARTBEAT_US / 50),
        };
        let c = &mut self.cluster;
        c.now_us += us;
        for id in c.ids() {
            // One node's clock, or its timer thread, is far behind.
            if id != self.drowsy || self.rng.below(30) == 0 {
                self.cluster.tick(id);
            }
        }
    }

    /// No more faults: everything that is owed arrives.
    fn recover(&mut self) {
        let c = &mut self.cluster;
        self.counts.elections = c.leaders.len() as u64;
        self.counts.committed = c.committed.len() as u64;
        c.cuts.clear();
        c.lazy = false;
        for id in c.ids() {
            if !c.is_up(id) {
                c.restart(id);
            }
            c.absorb(id);
        }
        let end = c.now_us + LEADER_WITHIN_US;
        while c.leader().is_none_or(|id| !c.raft(id).leads_and_knows()) {
            assert!(c.now_us < end, "no leader within ten election timeouts");
            c.run(HEARTBEAT_US);
        }
        c.run(2 * TIMEOUT_US);
        let (term, leader) = (c.leaders.len(), c.leader().expect("it stays"));
        assert!(c.raft(leader).is_settled(), "no change stays open");
        let configuration = c.raft(leader).configuration();
        let members: Vec<NodeId> = configuration.members.iter().map(|m| m.id).collect();
        c.propose(leader, "the last one").expect("a leader takes proposals");
        c.run(HEARTBEAT_US);
        // Who was removed is told nothing any more.
        let reads: Vec<_> = members.into_iter().map(|id| (id, c.read(id))).collect();
        c.run(2 * TIMEOUT_US);
        assert_eq!((c.leaders.len(), c.leader()), (term, Some(leader)), "a healthy leader stays");
        let last = c.raft(leader).last_index();
        assert_eq!(c.committed.len() as Index, last, "everything in the leader's log");
        for (id, read) in reads {
            let raft = c.raft(id);
            assert_eq!((raft.last_index(), raft.commit_index()), (last, last), "node {id}");
            assert_eq!((raft.applied_index(), raft.durable_index()), (last, last), "node {id}");
            assert_eq!(c.nodes[&id].platter.log, c.committed, "logs converge on node {id}");
            assert_eq!(c.nodes[&id].answers[&read], Some(last), "a read at node {id}");
            assert!(c.nodes[&id].reads.is_empty(), "a read at node {id} is never answered");
        }
    }
}

fn run_seed(seed: u64) -> Counts {
    struct Name(u64);
    impl Drop for Name {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("run again with KONTIKI_SEED={}", self.0);
            }
        }
    }
    let _name = Name(seed);
    let mut run = Run::new(seed);
    let mut longest = vec![0; run.cluster.nodes.len()];
    for _ in 0..STEPS {
        run.step();
        for (longest, node) in longest.iter_mut().zip(run.cluster.nodes.values()) {
            let last = node.platter.last();
            run.counts.truncated += u64::from(last < *longest);
            *longest = last;
            run.counts.stalls += u64::from(node.raft.as_ref().is_some_and(Raft::disk_stalls));
        }
    }
    run.recover();
    run.counts
}

/// Whatever happens to messages, disks, processes and clocks, no invariant breaks; and once it
/// stops happening the cluster has one leader, one log, and answers everything.
#[test]
fn random_schedules_are_safe_and_end_well() {
    if let Some(seed) = std::env::var("KONTIKI_SEED").ok().and_then(|s| s.parse().ok()) {
        run_seed(seed);
        return;
    }
    let mut sum = [0; 10];
    for seed in 0..SEEDS {
        let c = run_seed(seed);
        let all = [
            c.crashes,
            c.torn,
            c.partitions,
            c.elections,
            c.committed,
            c.truncated,
            c.reads,
            c.transfers,
            c.stalls,
            c.changes,
        ];
        sum.iter_mut().zip(all).for_each(|(sum, one)| *sum += one);
    }
    let names = "crashes, torn, partitions, elections, committed, truncated, reads, transfers, stalls, \
         changes";
    println!("{names}: {sum:?}");
    assert!(sum.iter().all(|&count| count > SEEDS / 5), "too little happened: {names}: {sum:?}");
}
