//! A log with a limit: the front of it goes, and who needs what went gets a snapshot.

use crate::support::cluster::{Cluster, Setup};
use crate::support::native::Native;
use crate::support::text::{Reply, Text, array};
use crate::support::{say, wait_for};
use kontiki::wire::client::Consistency;
use std::fs;
use std::path::Path;

const LIMIT_BYTES: u64 = 1 << 20;
const BATCH_BYTES: u64 = 64 << 10;
const MEMTABLE_BYTES: u64 = 1 << 20;
const VALUE_BYTES: usize = 1024;
/// More than ten times the limit.
const WRITES: usize = 12 * 1024;
/// Writes under way at a time.
const WINDOW: usize = 128;
/// Writes between two looks at the logs' directories.
const LOOK_EVERY: usize = 256;
/// Times that the node that fetches is killed, and times that the one that gives is.
const CUTS: usize = 2;

fn key(n: usize) -> String {
    format!("k{n:06}")
}

/// A value that does not compress and is another one for every key.
fn value(n: usize) -> Vec<u8> {
    let mut dice = crate::support::Dice::new(n as u64 + 1);
    (0..VALUE_BYTES).map(|_| b'a' + dice.below(26) as u8).collect()
}

/// Bytes of all files below a directory; those that go meanwhile do not count.
fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
}

/// Size of the largest file of a log.
fn segment_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.metadata().ok()).map(|m| m.len()).max().expect("a segment")
}

/// How often a node has said something.
fn said(cluster: &Cluster, node: usize, words: &str) -> usize {
    cluster.log(node).matches(words).count()
}

#[test]
fn a_node_that_was_away_for_ten_logs_catches_up_by_a_snapshot_that_is_cut_off() {
    // One of three is killed while more than ten times the limit is written. The logs of the others
    // stay short all the while. When it is back it fetches a snapshot, is killed in the middle of
    // that, and so is the leader that gives it; in the end all three hold every acknowledged write.
    let sizes = [
        ("--wal-limit", LIMIT_BYTES),
        ("--max-batch", BATCH_BYTES),
        ("--max-value", 32 << 10),
        ("--memtable", MEMTABLE_BYTES),
    ];
    let flags = sizes.iter().flat_map(|(name, n)| [(*name).to_owned(), n.to_string()]).collect();
    let mut cluster = Cluster::with(3, Setup { flags, ..Setup::default() });
    let away = cluster.follower();
    cluster.kill(away);
    let leader = cluster.leader();
    let stay: Vec<usize> = (0..3).filter(|&node| node != away).collect();
    let logs: Vec<_> = stay.iter().map(|&node| cluster.nodes[node].data.join("log")).collect();
    let mut client = Text::connect(&cluster.nodes[leader].address).expect("a connection");
    let (mut sent, mut longest) = (0, 0);
    for n in 0..WRITES {
        while sent < WRITES.min(n + WINDOW) {
            let words = [b"SET".as_slice(), key(sent).as_bytes(), &value(sent)].map(<[u8]>::to_vec);
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            client.send(&array(&words)).expect("a write");
            sent += 1;
        }
        assert_eq!(client.reply().expect("a reply"), Reply::ok(), "write {n}");
        if n % LOOK_EVERY == 0 {
            longest = logs.iter().map(|log| bytes_below(log)).fold(longest, u64::max);
        }
    }
    // What node/compaction.rs states; while one flush lasts, as much is written as fits a memtable.
    let bound = LIMIT_BYTES + 3 * segment_bytes(&logs[0]) + MEMTABLE_BYTES;
    assert!(longest <= bound, "a log took {longest} bytes, and may take {bound}");

    let (mut kills_of_fetcher, mut kills_of_giver) = (0, 0);
    cluster.relaunch(away);
    let incoming = cluster.nodes[away].data.join("incoming");
    let mut before = 0;
    let mut shown = String::new();
    while kills_of_fetcher + kills_of_giver < 2 * CUTS {
        // Something more has arrived than before the last cut, or it was too quick for another one.
        let fetching = wait_for("a fetch gets on or ends", || {
            if said(&cluster, away, "fetched a snapshot") > 0 {
                return Some(false);
            }
            let bytes = bytes_below(&incoming);
            let state = Native::new(&cluster.nodes[away].address).status().map(|s| s.state);
            if let Some(state) = state.ok().filter(|state| state.contains("fetching a snapshot")) {
                shown = state;
            }
            (bytes > before).then(|| before = bytes).map(|()| true)
        });
        if !fetching {
            break;
        }
        if kills_of_fetcher <= kills_of_giver {
            cluster.kill(away);
            kills_of_fetcher += 1;
            cluster.relaunch(away);
        } else {
            let leader = cluster.leader();
            cluster.kill(leader);
            kills_of_giver += 1;
            cluster.relaunch(leader);
        }
    }
    (0..3).for_each(|node| cluster.wait_serving(node));
    assert!(shown.contains(" bytes, ") && shown.ends_with('%'), "progress in status: '{shown}'");
    assert!(kills_of_fetcher > 0, "a fetch of {WRITES} KiB cannot be over before it is seen");
    wait_for("the node takes in a snapshot", || {
        (said(&cluster, away, "installed a snapshot") > 0).then_some(())
    });

    // The last word, from the front: what one sees, all see.
    let mut client = Text::connect(&cluster.nodes[away].address).expect("a connection");
    assert_eq!(client.line("SET k-last done").expect("a reply"), Reply::ok());
    for node in 0..3 {
        let mut native = Native::new(&cluster.nodes[node].address);
        let mut items = native.all("k", Consistency::Linearizable);
        // Sorted by key, and `-` comes before digits.
        let last = items.remove(0);
        assert_eq!((last.key.as_slice(), last.value.as_slice()), (&b"k-last"[..], &b"done"[..]));
        assert_eq!(items.len(), WRITES, "node {}", node + 1);
        for (n, item) in items.iter().enumerate() {
            assert_eq!(item.key, key(n).into_bytes(), "node {}", node + 1);
            assert_eq!(item.value, value(n), "node {}: {}", node + 1, key(n));
        }
    }
    let dump = |node: usize| {
        let mut command = crate::support::cluster::kontiki(crate::support::cluster::BINARY);
        let address = &cluster.nodes[node].address;
        let ended = command.args(["cli", "-a", address, "dump"]).output().expect("kontiki cli");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        ended.stdout
    };
    let first = dump(0);
    assert!(first.len() > WRITES * VALUE_BYTES);
    assert!(first == dump(1) && first == dump(2), "three equal dumps");
    let what = format!(
        "{WRITES} KiB written, longest log {longest} of {bound} bytes; fetch cut by \
         {kills_of_fetcher} kills of the node itself and {kills_of_giver} of the leader"
    );
    say("snapshots", &what);
}
