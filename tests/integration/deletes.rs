//! Everything is deleted: the store gives its space back by itself, and whoever asks for the first key meanwhile does not
//! wait for what is gone.

use crate::support::cluster::{Cluster, Setup, flags};
use crate::support::native::Native;
use crate::support::{say, wait_for};
use kontiki::kv::{Op, Query, Range, Reply, Write};
use kontiki::wire::client::{Answer, Call, Consistency};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const VALUE_BYTES: usize = 256;
/// Keys of one write.
const BATCH: u64 = 500;

fn key(number: u64) -> Vec<u8> {
    format!("job{number:09}").into_bytes()
}

/// Writes keys, or deletes them, in batches.
fn change(client: &mut Native, keys: u64, op: impl Fn(Vec<u8>) -> Op) {
    for first in (0..keys).step_by(BATCH as usize) {
        let ops = (first..keys.min(first + BATCH)).map(|number| op(key(number))).collect();
        let write = Write { ops, ..Write::default() };
        match client.call(Call::Write(write)) {
            Ok(Answer::Outcome(_)) => {}
            other => panic!("key {first}: {other:?}"),
        }
    }
}

fn put(key: Vec<u8>) -> Op {
    Op::Put { key, value: vec![b'v'; VALUE_BYTES] }
}

fn delete(key: Vec<u8>) -> Op {
    Op::Delete { key }
}

/// The first key there is, by as many pages as that takes.
fn first_key(client: &mut Native) -> Option<Vec<u8>> {
    let mut range = Range { limit: 1, keys_only: true, ..Range::default() };
    loop {
        match client.query(Query::Range(range.clone()), Consistency::Linearizable) {
            Ok(Reply::Page(page)) => match (page.items.into_iter().next(), page.cursor) {
                (Some(item), _) => return Some(item.key),
                (None, Some(cursor)) => range.after = Some(cursor),
                (None, None) => return None,
            },
            other => panic!("no page: {other:?}"),
        }
    }
}

/// Bytes of all files below a directory.
fn bytes_below(top: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(top) else { return 0 };
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_below(&entry.path()),
        // One that was removed meanwhile takes no room.
        data => data.map_or(0, |data| data.len()),
    };
    entries.flatten().map(bytes).sum()
}

/// What was seen while all keys were deleted.
struct Seen {
    full_bytes: u64,
    deleted_bytes: u64,
    deleting: Duration,
    /// Each the time that the first page took, ascending.
    waits: Vec<Duration>,
    shrunk_after: Duration,
}

/// Loads a node with so many keys and deletes them all; another client asks for the first key all the time. Then nothing
/// is done until the store is below a bound.
fn delete_everything(keys: u64, below_bytes: u64, node_flags: &str) -> Seen {
    let cluster = Cluster::with(1, Setup { flags: flags(node_flags), ..Setup::default() });
    let (address, store) = (&cluster.nodes[0].address, cluster.nodes[0].data.join("store"));
    let mut client = Native::new(address);
    change(&mut client, keys, put);
    client.call(Call::Compact).expect("a compaction");
    wait_for("everything is compacted", || match client.call(Call::Compaction) {
        Ok(Answer::Compaction { left: None, .. }) => Some(()),
        _ => None,
    });
    let full_bytes = bytes_below(&store);
    let over = AtomicBool::new(false);
    let (deleting, mut waits) = thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let (mut client, mut waits) = (Native::new(address), Vec::new());
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                first_key(&mut client);
                waits.push(asked.elapsed());
            }
            waits
        });
        let begun = Instant::now();
        change(&mut client, keys, delete);
        let deleting = begun.elapsed();
        over.store(true, Ordering::Relaxed);
        (deleting, asked.join().expect("a client"))
    });
    waits.sort_unstable();
    let deleted_bytes = bytes_below(&store);
    let begun = Instant::now();
    wait_for("the store has given its space back", || {
        (bytes_below(&store) < below_bytes).then_some(())
    });
    assert_eq!(first_key(&mut client), None);
    Seen { full_bytes, deleted_bytes, deleting, waits, shrunk_after: begun.elapsed() }
}

impl Seen {
    fn wait(&self, of_thousand: usize) -> Duration {
        self.waits[(self.waits.len() - 1) * of_thousand / 1000]
    }

    fn say(&self, keys: u64) {
        say(
            "deletes",
            &format!(
                "{keys} keys, store {} kB, deleted in {:?}: {} kB, shrunk {:?} later; first key asked {} times: median {:?}, \
                 p99 {:?}, longest {:?}",
                self.full_bytes >> 10,
                self.deleting,
                self.deleted_bytes >> 10,
                self.shrunk_after,
                self.waits.len(),
                self.wait(500),
                self.wait(990),
                self.wait(1000),
            ),
        );
    }
}

#[test]
fn what_is_deleted_gives_its_space_back_and_hides_nothing() {
    // 30,000 keys of 256 bytes in a store with memtables of 1 MiB. Nobody asks for a compaction after the deletes.
    let seen = delete_everything(30_000, 1 << 20, "--memtable 1MiB --reserve 0");
    seen.say(30_000);
    assert!(seen.full_bytes > 6 << 20, "there was nothing to give back: {}", seen.full_bytes);
    // Through 30,000 tombstones, key by key, a page would take as long as a scan of everything.
    assert!(seen.wait(500) < Duration::from_millis(100), "{:?}", seen.wait(500));
}

/// `KEYS` keys (1,500,000) under the default settings, for docs/performance.md.
#[test]
#[ignore = "takes minutes"]
fn figures_of_deletes() {
    let keys = std::env::var("KEYS").ok().and_then(|keys| keys.parse().ok()).unwrap_or(1_500_000);
    delete_everything(keys, 10 << 20, "--reserve 0").say(keys);
}
