//! How fast a follower is sent to: the window, what is read from the log file, breaks, and patience.

use super::cluster::Cluster;
use super::replication::{led, propose, sent_bytes};
use super::solo::*;
use crate::raft::*;
use std::collections::VecDeque;

/// Place and last index of every AppendEntries to `to`.
fn appends(messages: &[Message], to: NodeId) -> Vec<(Index, Index)> {
    let of = |m: &Message| match &m.body {
        Body::AppendEntries { prev_index, entries, .. } if m.to == to => {
            Some((*prev_index, prev_index + entries.len() as Index))
        }
        _ => None,
    };
    messages.iter().filter_map(of).collect()
}

// ---- the window ----

/// A live connection of finite bandwidth to node 3, in the order of a stream. Node 2 is quick.
struct Link {
    solo: Solo,
    /// Messages on it, with the time at which the last byte of each is there.
    under_way: VecDeque<(u64, Message)>,
    free_at_us: u64,
    bytes_per_s: u64,
    /// Node 3 has the log up to here.
    had: Index,
    bytes: usize,
    bytes_most: usize,
    copies: usize,
    sent_to: Index,
}

fn wire_bytes(message: &Message) -> usize {
    match &message.body {
        Body::AppendEntries { entries, .. } => {
            MESSAGE_OVERHEAD_BYTES + entries.iter().map(Entry::weight).sum::<usize>()
        }
        _ => 0,
    }
}

impl Link {
    fn new(solo: Solo, bytes_per_s: u64) -> Link {
        let had = solo.raft.progress()[1].match_index;
        let (under_way, bytes, bytes_most) = (VecDeque::new(), 0, 0);
        let free_at_us = solo.now_us;
        Link {
            solo,
            under_way,
            free_at_us,
            bytes_per_s,
            had,
            bytes,
            bytes_most,
            copies: 0,
            sent_to: had,
        }
    }

    /// Takes what the leader has said: node 2 answers at once, heartbeats have a lane of their own.
    fn take(&mut self) {
        loop {
            let sent = self.solo.take();
            if sent.is_empty() {
                return;
            }
            for message in sent {
                match &message.body {
                    Body::Heartbeat { round, .. } => {
                        let body = Body::HeartbeatResponse { round: *round };
                        let (from, now_us) = (message.to, self.solo.now_us);
                        let term = self.solo.raft.term();
                        let answer = Message { from, to: 1, term, body };
                        self.solo.event(|raft, _| raft.step(answer, now_us));
                    }
                    Body::AppendEntries { prev_index, entries, .. } if message.to == 2 => {
                        let (index, term) =
                            (prev_index + entries.len() as Index, self.solo.raft.term());
                        let answer = Message { from: 2, to: 1, term, body: matched(index) };
                        let now_us = self.solo.now_us;
                        self.solo.event(|raft, _| raft.step(answer, now_us));
                    }
                    Body::AppendEntries { entries, .. } => {
                        self.copies += entries.iter().filter(|e| e.index <= self.sent_to).count();
                        self.sent_to = entries.last().map_or(self.sent_to, |e| e.index);
                        let bytes = wire_bytes(&message);
                        self.bytes += bytes;
                        self.bytes_most = self.bytes_most.max(self.bytes);
                        let takes_us = bytes as u64 * 1_000_000 / self.bytes_per_s;
                        self.free_at_us = self.free_at_us.max(self.solo.now_us) + takes_us;
                        self.under_way.push_back((self.free_at_us, message));
                    }
                    other => panic!("not expected here: {other:?}"),
                }
            }
        }
    }

    /// Goes on until node 3 has everything; answers how long that took.
    fn run(&mut self) -> u64 {
        let begun_us = self.solo.now_us;
        self.take();
        while self.had < self.solo.raft.last_index() {
            let tick_us = self.solo.raft.next_tick_us();
            match self.under_way.pop_front() {
                Some((at_us, message)) if at_us <= tick_us => {
                    self.solo.now_us = at_us;
                    self.bytes -= wire_bytes(&message);
                    let Body::AppendEntries { prev_index, entries, round, .. } = message.body
                    else {
                        continue;
                    };
                    assert!(prev_index <= self.had, "a connection has no gaps");
                    self.had = self.had.max(prev_index + entries.len() as Index);
                    let index = prev_index + entries.len() as Index;
                    let result = AppendResult::Matched { index };
                    self.solo.event(|raft, now| {
                        let body = Body::AppendResponse { result, round };
                        raft.step(Message { from: 3, to: 1, term: message.term, body }, now);
                    });
                }
                waits => {
                    waits.into_iter().for_each(|waits| self.under_way.push_front(waits));
                    let pause_us = tick_us.saturating_sub(self.solo.now_us);
                    self.solo.pass(pause_us);
                }
            }
            self.take();
        }
        self.solo.now_us - begun_us
    }
}

/// A follower behind a slow link is behind by many windows, and each takes longer than any patience. It
/// gets every entry once, as fast as the link carries them, and never more than the window is under way,
/// large entries and small ones.
#[test]
fn a_slow_link_carries_every_entry_once() {
    for sizes in [vec![100; 400], vec![3900; 10], vec![100, 5000, 100, 20, 9000, 3000, 3000, 20]] {
        let mut solo = Solo::leader_with(Platter::new(voters(3)), |o| {
            o.append_bytes_max = 1000;
            o.probe_bytes_max = 200;
            o.inflight_bytes_max = 4000;
        });
        solo.step(2, 1, matched(1));
        solo.step(3, 1, matched(1));
        let mut link = Link::new(solo, 1000);
        let mut ideal_bytes = 0;
        for &size in &sizes {
            link.solo.event(|raft, _| raft.propose([vec![0; size].into()])).unwrap();
            ideal_bytes += size + ENTRY_OVERHEAD_BYTES + MESSAGE_OVERHEAD_BYTES;
        }
        let took_us = link.run();
        assert_eq!(link.copies, 0, "{sizes:?}");
        let largest = sizes.iter().max().unwrap() + ENTRY_OVERHEAD_BYTES + MESSAGE_OVERHEAD_BYTES;
        // What it was asked while its window was full.
        let asked = 8 * MESSAGE_OVERHEAD_BYTES;
        assert!(link.bytes_most <= largest.max(4000) + asked, "{} bytes", link.bytes_most);
        let ideal_us = ideal_bytes as u64 * 1000;
        assert!(took_us < ideal_us * 11 / 10, "{took_us} us instead of {ideal_us}");
        assert_eq!(link.solo.raft.leader(), Some(1));
    }
}

/// Entries that come from the log file are charged with what they weigh, once that is known: the next
/// ones are read when the window has room for them.
#[test]
fn what_is_read_from_the_log_file_counts_in_the_window() {
    let mut solo = Solo::leader_with(Platter::of_terms(voters(3), 1, &[1; 100]), |o| {
        o.append_bytes_max = 1000;
        o.inflight_bytes_max = 2000;
    });
    let refused = AppendResult::Conflict { prev_index: 100, hint_index: 40, hint_term: 1 };
    solo.step(2, 2, Body::AppendResponse { result: refused, round: 0 });
    solo.step(2, 2, matched(40));
    let first = |solo: &mut Solo| solo.from_log.drain(..).map(|r| r.first).collect::<Vec<_>>();
    assert_eq!(first(&mut solo), [41]);
    let read = |solo: &mut Solo, first, sent| {
        let read = EntriesRead { to: 2, term: 2, first, sent };
        solo.event(|raft, now| raft.entries_read(&read, now));
    };
    read(&mut solo, 41, Some((50, 1000)));
    assert_eq!(first(&mut solo), [51], "half of the window is free");
    read(&mut solo, 41, Some((50, 1000)));
    assert!(first(&mut solo).is_empty(), "told twice");
    read(&mut solo, 51, Some((51, 5000)));
    assert!(first(&mut solo).is_empty(), "the window is more than full");
    solo.step(2, 2, matched(50));
    assert!(first(&mut solo).is_empty());
    solo.step(2, 2, matched(51));
    assert_eq!(first(&mut solo), [52]);
    // What is read arrives by a message of before: nothing goes back.
    solo.step(2, 2, matched(80));
    read(&mut solo, 52, Some((60, 1000)));
    assert_eq!(first(&mut solo), [81]);
    solo.step(2, 2, matched(51));
    read(&mut solo, 81, Some((81, 1000)));
    solo.step(2, 2, matched(81));
    assert_eq!(first(&mut solo), [82]);
    // It could not be read: it is tried again after a while, and not in circles.
    read(&mut solo, 82, None);
    assert!(first(&mut solo).is_empty() && solo.take().is_empty());
    let mut sent = Vec::new();
    for _ in 0..4 {
        solo.pass(HEARTBEAT_US);
        sent.extend(solo.take());
        solo.step(2, 2, Body::HeartbeatResponse { round: 0 });
        solo.step(3, 2, Body::HeartbeatResponse { round: 0 });
    }
    assert_eq!(appends(&sent, 2), [(81, 81)]);
    solo.step(2, 2, matched(81));
    assert_eq!(first(&mut solo), [82]);
}

/// A follower was cut off for so long that it is hardly asked any more. As soon as it is heard again it
/// is asked soon.
#[test]
fn a_follower_that_is_heard_again_is_asked_soon() {
    let mut solo = Solo::leader(Platter::new(voters(3)));
    solo.step(2, 1, matched(1));
    solo.step(3, 1, matched(1));
    propose(&mut solo, 5, 10);
    solo.step(2, 1, matched(6));
    for _ in 0..300 {
        solo.pass(HEARTBEAT_US);
        solo.step(2, 1, Body::HeartbeatResponse { round: 0 });
    }
    solo.step(3, 1, Body::HeartbeatResponse { round: 0 });
    let mut sent = Vec::new();
    for _ in 0..3 {
        solo.pass(HEARTBEAT_US);
        sent.extend(solo.take());
    }
    assert_eq!(appends(&sent, 3), [(6, 6)]);
}

/// A follower that acknowledges nothing is sent a window's worth and then asked, ever more rarely, how
/// far it is; when it answers again, everything flows.
#[test]
fn a_dead_follower_costs_a_bounded_number_of_bytes() {
    let mut solo = Solo::leader_with(Platter::new(voters(3)), |o| {
        o.append_bytes_max = 1000;
        o.probe_bytes_max = 200;
        o.inflight_bytes_max = 4000;
    });
    solo.step(2, 1, matched(1));
    solo.step(3, 1, matched(1));
    let mut sent = Vec::new();
    for _ in 0..1000 {
        sent.extend(propose(&mut solo, 1, 52));
        let last = solo.raft.last_index();
        sent.extend(solo.step(2, 1, matched(last)));
    }
    assert_eq!(sent_bytes(&sent, 2), 100_000, "the healthy follower gets all of it");
    let to_three = sent.iter().filter(|m| m.to == 3).map(wire_bytes).sum::<usize>();
    assert!((3700..=4000).contains(&to_three), "{to_three}");
    let mut asked = Vec::new();
    for beat in 0..600 {
        solo.pass(HEARTBEAT_US);
        let mut sent = solo.take();
        sent.extend(solo.step(2, 1, Body::HeartbeatResponse { round: 0 }));
        sent.extend(solo.step(3, 1, Body::HeartbeatResponse { round: 0 }));
        assert_eq!(sent_bytes(&sent, 3), 0, "no entry is sent again because time has passed");
        asked.extend(appends(&sent, 3).iter().map(|_| beat));
    }
    let pauses: Vec<i32> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!((asked[0], pauses.last()), (2, Some(&40)), "from a quarter of a second to four");
    // It is there again, and has nothing of all that.
    let mut had = 1;
    solo.event(|raft, now| raft.peer_connected(3, now));
    let mut inbox = solo.take();
    for _ in 0..1000 {
        let mut answer = matched(had);
        for m in std::mem::take(&mut inbox) {
            let (3, Body::AppendEntries { prev_index, entries, .. }) = (m.to, &m.body) else {
                continue;
            };
            if *prev_index > had {
                let (prev_index, hint_index) = (*prev_index, had);
                let result = AppendResult::Conflict { prev_index, hint_index, hint_term: 1 };
                answer = Body::AppendResponse { result, round: 0 };
            } else {
                had = had.max(prev_index + entries.len() as Index);
                answer = matched(had);
            }
        }
        inbox = solo.step(3, 1, answer);
    }
    assert_eq!(had, 1001);
}

/// Every message of a window is lost. The leader takes them for lost after a while, and the
/// follower has everything soon after.
#[test]
fn a_window_recovers_from_loss() {
    let mut cluster = led(3);
    cluster.isolate(3);
    for i in 0..50 {
        cluster.propose(1, &format!("{i}")).unwrap();
        cluster.settle();
    }
    cluster.cuts.clear();
    cluster.run(TIMEOUT_US);
    assert_eq!((cluster.raft(3).applied_index(), cluster.leader()), (51, Some(1)));
    let three = cluster.raft(1).progress().into_iter().find(|p| p.id == 3).unwrap();
    assert_eq!((three.match_index, three.state), (51, ProgressState::Replicate));
    assert!(three.reachable);
}

/// A refusal arrives late, when the follower has long taken what was behind it: nothing is sent
/// again because of it.
#[test]
fn a_late_refusal_is_ignored() {
    let mut solo = Solo::leader(Platter::new(voters(3)));
    solo.step(2, 1, matched(1));
    propose(&mut solo, 3, 10);
    solo.step(2, 1, matched(3));
    for (prev_index, hint_index) in [(1, 0), (3, 2), (2, 2), (3, 9)] {
        let result = AppendResult::Conflict { prev_index, hint_index, hint_term: 1 };
        assert!(solo.step(2, 1, Body::AppendResponse { result, round: 0 }).is_empty());
        assert_eq!(solo.raft.progress()[0].state, ProgressState::Replicate);
    }
}

/// A connection that broke took some of its messages with it, and made others arrive of which nobody was
/// told. The follower is asked at once, and what did not arrive is sent again, once.
#[test]
fn after_a_break_only_what_did_not_arrive_is_sent_again() {
    for (had, expected) in [(4, vec![(4, 11)]), (1, vec![(1, 11)]), (11, vec![])] {
        let mut solo = Solo::leader(Platter::new(voters(3)));
        solo.step(2, 1, matched(1));
        propose(&mut solo, 10, 10);
        solo.event(|raft, now| raft.peer_lost(2, now));
        solo.take();
        propose(&mut solo, 1, 10);
        assert!(appends(&solo.take(), 2).is_empty(), "nothing goes where nobody may be");
        solo.event(|raft, now| raft.peer_connected(2, now));
        let asked = appends(&solo.take(), 2);
        assert_eq!(asked, [(11, 11)], "what it has of all that was sent");
        let sent = if had == 11 {
            solo.step(2, 1, matched(11))
        } else {
            let refused = AppendResult::Conflict { prev_index: 11, hint_index: had, hint_term: 1 };
            solo.step(2, 1, Body::AppendResponse { result: refused, round: 0 })
        };
        // The twelfth came meanwhile.
        let expected: Vec<_> = match expected[..] {
            [] => vec![(11, 12)],
            _ => expected.iter().map(|&(prev, _)| (prev, 12)).collect(),
        };
        assert_eq!(appends(&sent, 2), expected, "it has {had}");
        assert!(solo.step(2, 1, matched(12)).is_empty());
    }
}

/// An answer that was under way when the connection broke says nothing of what was sent behind it.
#[test]
fn an_answer_from_before_a_break_sends_nothing_twice() {
    let mut solo = Solo::leader(Platter::new(voters(3)));
    solo.step(2, 1, matched(1));
    propose(&mut solo, 5, 10);
    propose(&mut solo, 5, 10);
    // The follower's own connection breaks, by which its answers come; the leader's does not.
    solo.event(|raft, now| raft.peer_lost(2, now));
    assert_eq!(appends(&solo.take(), 2), [(11, 11)]);
    assert!(solo.step(2, 1, matched(6)).is_empty(), "five more are under way");
    assert!(solo.step(2, 1, matched(11)).is_empty());
    propose(&mut solo, 1, 10);
    let progress = solo.raft.progress()[0];
    assert_eq!((progress.match_index, progress.state), (11, ProgressState::Replicate));
}

/// What a follower needs was compacted away. The leader says so once; whether the announcement is
/// lost or refused, it says so again after a while, and not at once, in circles.
#[test]
fn a_snapshot_is_announced_now_and_then() {
    let announced = |sent: Vec<Message>| {
        let of = |m: &&Message| matches!(m.body, Body::InstallSnapshot { last_index: 10, .. });
        sent.iter().filter(of).count()
    };
    let mut platter = Platter::new(voters(3));
    (platter.base, platter.base_term, platter.hard.term) = (10, 1, 1);
    let mut solo = Solo::leader(platter);
    let refused = AppendResult::Conflict { prev_index: 10, hint_index: 3, hint_term: 1 };
    let sent = solo.step(2, 2, Body::AppendResponse { result: refused, round: 0 });
    assert_eq!(announced(sent), 1);
    let refused = Body::SnapshotResponse { last_index: 10, installed: false };
    assert!(solo.step(2, 2, refused.clone()).is_empty());
    for answer in [Body::HeartbeatResponse { round: 0 }, refused] {
        let mut sent = Vec::new();
        for _ in 0..30 {
            solo.pass(HEARTBEAT_US);
            sent.extend(solo.take());
            sent.extend(solo.step(2, 2, answer.clone()));
        }
        assert!((1..=4).contains(&announced(sent)), "in three seconds");
    }
    solo.step(2, 2, Body::SnapshotResponse { last_index: 10, installed: true });
    assert_eq!(solo.raft.progress()[0].state, ProgressState::Replicate);
    solo.step(2, 2, matched(11));
    assert_eq!(solo.raft.commit_index(), 11);
}

// ---- where the logs part, and the log file ----

/// Where the logs part is not known, and the entries to try are in the log file, or large: none of
/// them is needed to find out. They would be read, sent and refused for nothing, or sent twice.
#[test]
fn a_probe_reads_nothing_and_carries_little() {
    let mut solo = Solo::leader(Platter::of_terms(voters(3), 1, &[1; 100]));
    let refused = AppendResult::Conflict { prev_index: 100, hint_index: 40, hint_term: 1 };
    let sent = solo.step(2, 2, Body::AppendResponse { result: refused, round: 0 });
    assert_eq!(appends(&sent, 2), [(40, 40)]);
    assert!(solo.from_log.is_empty());
    solo.step(2, 2, matched(40));
    let asked: Vec<_> = solo.from_log.iter().map(|r| (r.first, r.last, r.last_term)).collect();
    assert_eq!(asked, [(41, 100, 1)]);

    let mut solo = Solo::leader_with(Platter::new(voters(3)), |o| o.probe_bytes_max = 1000);
    solo.step(2, 1, matched(1));
    for (bytes, end) in [(2000, 1), (100, 3)] {
        let last = solo.raft.last_index();
        propose(&mut solo, 1, bytes);
        let refused =
            AppendResult::Conflict { prev_index: last + 1, hint_index: last, hint_term: 1 };
        let sent = solo.step(2, 1, Body::AppendResponse { result: refused, round: 0 });
        assert_eq!(appends(&sent, 2), [(last, end)], "an entry of {bytes} bytes");
        solo.step(2, 1, matched(last + 1));
    }
}

/// A follower that lags is sent old entries from the log file while new ones arrive. The read ends
/// where the leader's memory begins: the newest entries may not be in the file yet, and a read
/// that included them would find nothing, every time, for as long as there are writes.
#[test]
fn only_what_is_not_in_memory_is_read_from_the_log_file() {
    let mut solo = Solo::leader(Platter::of_terms(voters(3), 1, &[1; 100]));
    solo.disk_is_fast = false;
    propose(&mut solo, 10, 8);
    let refused = AppendResult::Conflict { prev_index: 100, hint_index: 90, hint_term: 1 };
    solo.step(2, 2, Body::AppendResponse { result: refused, round: 0 });
    assert!(solo.step(2, 2, matched(90)).is_empty(), "nothing overtakes what is read");
    assert_eq!((solo.from_log.len(), solo.from_log[0].first, solo.from_log[0].last), (1, 91, 100));
    // All ten fit one message.
    let read = EntriesRead { to: 2, term: 2, first: 91, sent: Some((100, 1000)) };
    solo.event(|raft, now| raft.entries_read(&read, now));
    assert_eq!(sent_bytes(&solo.take(), 2), 11 * 48 + 80, "from memory");
}

/// The first message of a new leader is lost, or the connection it went out on. The next one asks
/// at the same place, not from the beginning of the log, which may not be there any more.
#[test]
fn a_lost_probe_is_repeated_where_it_was() {
    let probes = |sent: Vec<Message>| -> Vec<Index> {
        let of = |m: &Message| match m.body {
            Body::AppendEntries { prev_index, .. } if m.to == 3 => Some(prev_index),
            _ => None,
        };
        sent.iter().filter_map(of).collect()
    };
    let mut solo = Solo::leader(Platter::of_terms(voters(3), 1, &[1, 1, 1]));
    solo.step(2, 2, matched(4));
    let mut sent = Vec::new();
    for _ in 0..5 {
        solo.pass(HEARTBEAT_US);
        sent.extend(solo.take());
        sent.extend(solo.step(2, 2, Body::HeartbeatResponse { round: 0 }));
    }
    assert_eq!(probes(sent), [3], "once in half an election timeout");
    solo.event(|raft, now| raft.peer_connected(3, now));
    assert_eq!(probes(solo.take()), [3]);
    assert!(solo.from_log.is_empty());
}

/// A follower that was away catches up from the log file, although nothing of what it lacks is in
/// the leader's memory.
#[test]
fn a_follower_catches_up_from_the_log_file() {
    let platters = (1..=3).map(|id| (id, Platter::new(voters(3))));
    let mut cluster = Cluster::of(platters, 1, |o| {
        o.cache_bytes_max = 0;
        o.replay_entries_max = 10;
    });
    cluster.elect(1);
    cluster.isolate(3);
    for i in 0..100 {
        cluster.propose(1, &format!("command {i}")).unwrap();
        cluster.settle();
    }
    cluster.cuts.clear();
    cluster.run(TIMEOUT_US);
    assert_eq!(cluster.raft(3).applied_index(), 101);
    assert_eq!(cluster.leader(), Some(1));
}
