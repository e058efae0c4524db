//! The simulator on a standard set of seeds.

use super::*;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Seeds of the standard set: from 0, so many.
const STANDARD: u64 = 500;

/// Faults, and what must have come of them, somewhere in the standard set. What is not listed is a
/// consequence of these.
const MUST_HAPPEN: &[&str] = &[
    // Processes and machines.
    "kill",
    "power loss",
    "torn write",
    "killed within a write",
    "power lost within a write",
    "power lost within recovery",
    "pause",
    "paused processes whose threads go on in another order",
    // Disks.
    "read error armed",
    "write error armed",
    "sync error armed",
    "full disk armed",
    "read errors",
    "write errors",
    "sync errors",
    "full disks",
    "full disk at a sync armed",
    "syncs without space",
    "writes done in part",
    "held file armed",
    "files held",
    "held files removed later",
    "want of descriptors armed",
    "opens that waited for a descriptor",
    "disk of little bandwidth",
    "operations on a disk of little bandwidth",
    "directories lost",
    "disk is full for a while",
    "disk has space again",
    "work put off for want of space",
    "log short of space",
    "log waited for space",
    "more to write than a batch holds",
    "growth refused",
    "full disk recovered",
    "slow disk",
    // Sessions and members at their bounds.
    "change refused: too many",
    "sessions forgotten for others",
    "sessions forgotten that were held",
    "sessions refused for want of a place",
    "sessions released",
    "sessions that stayed held, in use elsewhere",
    "writes of forgotten sessions",
    "writes of forgotten sequences",
    // Flags that differ from node to node and from life to life.
    "too large",
    "too large for the leader, not for who forwarded it",
    "logged what its own flags do not allow",
    "bit flip",
    "bit flip in one identity copy",
    "bit flip in both identity copies",
    "misdirected write",
    "wiped disk",
    "disks lost",
    "refused a damaged disk",
    "stopped by a disk error",
    "disk error in the log writer",
    "disk error in the applier",
    "disk error in recovery",
    "disk error in reading for a peer",
    "disk error in the store's background",
    "bit flip in the store",
    "bit flip in a fetched table",
    "damage met in the store",
    "damage met by a compaction",
    "started with a damaged store",
    "stores repaired",
    "entries held back for a repair",
    "digests compared",
    "log cut on demand",
    "disk error in fetching a snapshot",
    "snapshot put off for want of space",
    "tables given up for a repair",
    "exports ended for their room",
    "new tables unread",
    "unreadable sectors of the identity",
    "unreadable sectors of the log",
    "unreadable sectors of the manifest",
    "unreadable sectors of tables",
    // Snapshots.
    "log compacted",
    "snapshots begun",
    "snapshot pieces",
    "snapshot pieces gone",
    "snapshot in the dark",
    "snapshot connections forgotten",
    "silent snapshot connections given up",
    "flushed for a snapshot",
    "snapshots installed",
    "stopped right after an install",
    // The store.
    "memtables flushed",
    "tables compacted",
    "tables moved down",
    "compactions for their tombstones",
    "compactions on demand",
    "tombstones dropped",
    "flushed for what it hides",
    "sweep of deletes",
    "writers slowed down",
    "writers slowed down again and again",
    "committed entries applied in pieces",
    "started from what was flushed",
    "bit flip in one manifest copy",
    "looks within a step of the store",
    "direct requests answered",
    "direct writes refused",
    "direct writes of unknown outcome",
    "flushes looked at on the platter",
    "stores compared",
    "stores compared with the model",
    "spare segment failed",
    // Changes of the members.
    "operator: join",
    "operator: join unseen",
    "operator: promote",
    "operator: remove",
    "operator: remove the leader",
    "operator: switch off and remove",
    "operator: replace",
    "operator: replace in place",
    "operator: replace what is lost",
    "operator: start a removed node",
    "operator: move",
    "members changed",
    "learners joined",
    "nodes announced",
    "nodes taken in",
    "promotions by the leader",
    "promotions on demand",
    "members removed",
    "elections won by who is about to leave",
    "members replaced",
    "machines broken",
    "nodes moved",
    "addresses changed",
    "joint configurations committed",
    "joint configurations met by a new leader",
    "changes open at a crash of the leader",
    "changes without an answer",
    "change of unknown outcome",
    "change overwritten",
    "change refused: not the leader",
    "change refused: another is open",
    "change refused: too early",
    "change refused: handing over",
    "change refused: hands over first",
    "change refused: removed before",
    "change refused: votes already",
    "change refused: the only voter",
    "change refused: loses the quorum",
    "change refused: behind",
    "change refused: being replaced",
    "change refused: address taken",
    "newer members let in",
    "leaders heard of",
    "removed nodes told",
    "removed nodes started again",
    "removed nodes that did not start",
    "rejected: removed",
    "rejected: wrong identity",
    "rejected: wrong node",
    "strangers parted with",
    "members' secrets taken from a leader",
    "members' secrets sealed",
    "members' secrets not kept",
    "impostors in the name of a member",
    "impostors with the token refused",
    "impostors without a proof refused",
    "handshakes played again",
    "handshakes handed on",
    "addresses bound by the impostor",
    "answers of impostors not believed",
    "nodes cut off from the beginning",
    "wiped disks let in by who did not know",
    "wiped nodes stopped",
    "wiped disks told at the start",
    "asked to join again",
    "found its cluster at the start",
    "disk copied",
    "old copies of disks",
    "old copies noticed",
    "snapshots to learners",
    // The network.
    "one-way cut",
    "line mended",
    "isolation",
    "bad line",
    "distant line",
    "connection reset",
    "heal",
    "reconnect",
    "messages lost",
    "losses at the end",
    "messages doubled",
    "messages stopped at a cut",
    "forgotten connections",
    "slow line",
    "dial storm",
    "flows stalled at a cut",
    "flows forgotten and written to",
    "segments repeated",
    "writes that had to wait",
    "connections abandoned",
    "connections in doubt",
    "signs of life asked for at once",
    "dialed connections silent for too long",
    "accepted connections silent for too long",
    "handshakes given up",
    "forwards given back",
    "forwards written in part",
    // Messages whose term is over, where they could be taken for one of the present term.
    "old acknowledgements met",
    "entries of an old leader met by a node without one",
    "entries of a leader's earlier term met",
    // What the nodes are asked to do meanwhile.
    "burst of writes",
    "rush of clients",
    "transfer",
    "writes forwarded",
    "transfers passed on",
    "changes passed on",
    "answers to what was passed on",
    "change passed on without an answer",
    "messages read from the log file",
    "answers that do not arrive",
    "queued without a wake-up",
    // The clients' own network.
    "dials that nobody answers",
    "tokens refused",
    "clients without a place",
    "connections closed for a newcomer",
    "connections beyond the cap closed",
    "nodes heard over the cap",
    "pages told over the cap",
    "shortages of descriptors",
    "strangers closed in a shortage",
    "clients closed in a shortage",
    "connections of clients broken",
    "writes of clients blocked",
    "calls given up",
    "answers written by who brings the last",
    "requests refused because too many wait",
    "aimed power failure",
    "power lost: identity created",
    "power lost: identity written",
    "power lost: identity synced",
    "power lost: names of the data directory synced",
    "power lost: directory of the log made",
    "power lost: directory of the store made",
    "power lost: directory of a snapshot made",
    "power lost: segment created",
    "power lost: segment written",
    "power lost: segment synced",
    "power lost: segment removed",
    "power lost: names of the log synced",
    "power lost: manifest created",
    "power lost: manifest written",
    "power lost: manifest synced",
    "power lost: table created",
    "power lost: table written",
    "power lost: table synced",
    "power lost: table removed",
    "power lost: names of the store synced",
    "power lost: piece of a snapshot created",
    "power lost: piece of a snapshot written",
    "power lost: piece of a snapshot synced",
    "power lost: piece of a snapshot removed",
    "power lost: names of a snapshot synced",
    "gone for good",
    "hears nobody for good",
    "heard by nobody for good",
    "slow for good",
    "writes of several operations",
    "first conditions that were false",
    "later conditions that were false",
    "increments of no number",
    "increments over the range",
    "pages with a cursor",
    "empty pages with a cursor",
    "pages without items",
    "last pages",
    "pages that say yes",
    "pages that say no",
    "text commands answered",
    "text commands refused",
    "text commands of unknown outcome",
    "text clients without a place",
    "text clients that lost patience",
    "text clients that left",
    "elections",
];

/// What may happen seldom: races of faults with changes that leave no majority of the disks.
const SELDOM: &str = "cluster lost for good";

/// Every seed of the standard set passes, and over all of them every fault and every branch of
/// error handling was met: what is never met is not tested.
#[test]
fn the_standard_seeds_pass_and_meet_every_fault() {
    let (next, met) = (AtomicU64::new(0), Mutex::new(BTreeMap::<&str, u64>::new()));
    // On every core: this is the longest test by far, and each run is a world of its own.
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= STANDARD {
                        return;
                    }
                    let report = passes(seed);
                    let mut met = met.lock().expect("no other run failed");
                    for (name, times) in report.counters {
                        *met.entry(name).or_default() += times;
                    }
                }
            });
        }
    });
    let met = met.into_inner().expect("every run passed");
    let never = |name: &&&str| met.get(**name).is_none_or(|&times| times == 0);
    let missing: Vec<_> = MUST_HAPPEN.iter().filter(never).collect();
    assert!(missing.is_empty(), "never happened: {missing:?}");
    let lost = met.get(SELDOM).copied().unwrap_or(0);
    assert!(lost <= STANDARD / 100, "{lost} of {STANDARD} clusters were lost");
}

/// Seeds that once found a bug, with its story in docs/simulation.md.
#[test]
fn seeds_that_found_bugs_pass() {
    for seed in [279, 613, 727, 758, 3214, 7310, 12218, 16548] {
        passes(seed);
    }
}

/// A run is decided by its seed alone.
#[test]
fn one_seed_gives_one_trace() {
    assert_eq!(passes(7).hash, passes(7).hash);
    assert_ne!(passes(7).hash, passes(8).hash);
}

fn passes(seed: u64) -> Report {
    match run(seed, &Options::default()) {
        Ok(report) => report,
        Err(failed) => panic!(
            "seed {seed}: {}: {}; see kontiki sim --seed {seed} --trace",
            failed.violation.invariant, failed.violation.detail
        ),
    }
}
