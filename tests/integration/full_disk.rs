//! A small file system that is filled to the end and emptied again, under a real node: one in memory, and one that
//! allocates late and keeps a journal.

use crate::support::cluster::{Cluster, Setup};
use crate::support::http;
use crate::support::mounted::Mounted;
use crate::support::native::Native;
use crate::support::text::{Reply, Text, array};
use crate::support::{Dice, say, wait_for};
use kontiki::kv::{Op, Write as KvWrite};
use kontiki::wire::client::{Call, Consistency};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

const DISK_BYTES: u64 = 64 << 20;
const RESERVE_BYTES: u64 = 24 << 20;
const VALUE_BYTES: usize = 1024;
/// More than fits the disk.
const WRITES_MAX: usize = 64 << 10;
/// Writes under way at a time.
const WINDOW: usize = 64;
/// A refusal lasts when so many attempts in a row, with this pause, met it.
const REFUSALS: usize = 80;
/// Deletes taken on a disk without space before the log must have met its end.
const DELETES_MAX: usize = 200_000;
const PAUSE: Duration = Duration::from_millis(50);

fn key(n: usize) -> String {
    format!("k{n:06}")
}

/// A value that does not compress and is another one for every key.
fn value(n: usize) -> Vec<u8> {
    let mut dice = Dice::new(n as u64 + 1);
    (0..VALUE_BYTES).map(|_| b'a' + dice.below(26) as u8).collect()
}

fn put(n: usize) -> Vec<u8> {
    array(&[b"SET", key(n).as_bytes(), &value(n)])
}

/// The node, a client of it, and what it has acknowledged.
struct Story {
    cluster: Cluster,
    client: Text,
    stored: BTreeMap<String, Vec<u8>>,
    next: usize,
}

impl Story {
    fn address(&self) -> &str {
        &self.cluster.nodes[0].address
    }

    fn took(&mut self, n: usize, reply: &Reply) -> bool {
        if *reply == Reply::ok() {
            self.stored.insert(key(n), value(n));
            return true;
        }
        // Any other word would leave its outcome in doubt, or say that this may help now.
        assert!(reply.is_error("OOM the disk of node 1"), "{reply:?}");
        false
    }

    /// One write; whether it was taken.
    fn try_put(&mut self) -> bool {
        let n = self.next;
        self.next += 1;
        self.client.send(&put(n)).expect("a write");
        let reply = self.client.reply().expect("a reply");
        self.took(n, &reply)
    }

    /// Writes, many at a time, until a refusal lasts.
    fn fill(&mut self) {
        let mut refused = 0;
        while refused < REFUSALS {
            let window = if refused == 0 { WINDOW } else { 1 };
            let first = self.next;
            self.next += window;
            assert!(self.next < WRITES_MAX, "more was taken than the disk holds");
            for n in first..self.next {
                self.client.send(&put(n)).expect("a write");
            }
            // Neighbours are one write: refused together, they are one refusal.
            let mut last = true;
            for n in first..first + window {
                let reply = self.client.reply().expect("a reply");
                last = self.took(n, &reply);
            }
            refused = if last { 0 } else { refused + 1 };
            if refused > 0 {
                thread::sleep(PAUSE);
            }
        }
    }

    fn delete(&mut self, keys: &[String]) {
        for keys in keys.chunks(WINDOW) {
            for key in keys {
                self.client.send(&array(&[b"DEL", key.as_bytes()])).expect("a delete");
            }
            for key in keys {
                assert_eq!(self.client.reply().expect("a reply"), Reply::Integer(1), "{key}");
                self.stored.remove(key);
            }
        }
    }

    /// Everything that was acknowledged is there, and nothing else.
    fn check(&self) {
        let items = Native::new(self.address()).all("k", Consistency::Linearizable);
        assert_eq!(items.len(), self.stored.len());
        for (item, (key, value)) in items.iter().zip(&self.stored) {
            assert_eq!((item.key.as_slice(), &item.value), (key.as_bytes(), value));
        }
    }

    /// What it says of itself; whether it is full.
    fn says_full(&self) -> bool {
        assert_eq!(http::status(self.address(), "/health"), Some(200), "reads are served");
        let (_, page) = http::get(self.address(), "/metrics").expect("metrics");
        let full = page.contains("\nkontiki_disk_full 1\n");
        assert!(full || page.contains("\nkontiki_disk_full 0\n"));
        full
    }

    fn reserve(&self) -> PathBuf {
        self.cluster.nodes[0].data.join("store").join("reserve")
    }

    fn wait_for_writes(&mut self) {
        wait_for("writes are taken again", || {
            let taken = self.try_put();
            if !taken {
                thread::sleep(PAUSE);
            }
            taken.then_some(())
        });
        wait_for("the reserve is whole", || {
            let len = fs::metadata(self.reserve()).map_or(0, |m| m.len());
            (len == RESERVE_BYTES).then_some(())
        });
    }
}

/// Somebody else's file takes all that is left.
fn fill_with_ballast(path: &Path) -> u64 {
    let mut file = File::create(path).expect("a file");
    let mut bytes = 0;
    for size in [64 << 10, 4 << 10] {
        while file.write_all(&vec![1; size]).is_ok() {
            bytes += size as u64;
        }
    }
    bytes
}

#[test]
fn a_full_file_system_is_no_end_and_nothing_acknowledged_is_lost() {
    match Mounted::tmpfs(DISK_BYTES) {
        Ok(mounted) => fills(&mounted, "full disk"),
        Err(why) => say("full disk", &format!("NOT RUN, a tmpfs cannot be mounted: {why}")),
    }
}

#[test]
fn a_full_ext4_is_no_end_and_nothing_acknowledged_is_lost() {
    match Mounted::ext4(DISK_BYTES) {
        Ok(mounted) => fills(&mounted, "full ext4"),
        Err(why) => say("full ext4", &format!("NOT RUN, a file cannot be mounted: {why}")),
    }
}

fn fills(mounted: &Mounted, name: &str) {
    // A node on 64 MiB is given data until it takes no more; all of it can be read, deletes go on,
    // and by deletes alone it takes data again. Then somebody else fills the disk, the node is
    // killed and starts on the full disk; when the space is back it goes on by itself. Last, there
    // is nothing left at all: the log ends the process, and a new one finds everything.
    let sizes = [
        ("--wal-limit", 1 << 20),
        ("--max-batch", 64 << 10),
        ("--max-value", 32 << 10),
        ("--memtable", 1 << 20),
        ("--cache", 1 << 20),
        ("--reserve", RESERVE_BYTES),
    ];
    let flags = sizes.iter().flat_map(|(name, n)| [(*name).to_owned(), n.to_string()]).collect();
    // Not the root of it: an ext4 has a directory there.
    let data = Some(mounted.path().join("data"));
    let cluster = Cluster::with(1, Setup { flags, data, ..Setup::default() });
    let client = Text::connect(&cluster.nodes[0].address).expect("a connection");
    let mut story = Story { cluster, client, stored: BTreeMap::new(), next: 0 };
    story.wait_for_writes();

    story.fill();
    let by_data = story.stored.len();
    assert!(story.says_full());
    story.check();
    let status = Native::new(story.address()).status().expect("a status");
    assert_eq!(status.state, "disk full");
    let words = ["put", "more", "data"];
    let refused = story.cluster.cli().args(["--json"]).args(words).output().expect("kontiki cli");
    let said = String::from_utf8_lossy(&refused.stdout).into_owned()
        + &String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(5), "{said}");
    assert!(said.contains("disk-full"), "{said}");

    let half: Vec<String> = story.stored.keys().step_by(2).cloned().collect();
    story.delete(&half);
    story.wait_for_writes();
    assert!(!story.says_full());
    story.check();

    let ballast = mounted.path().join("ballast");
    let foreign = fill_with_ballast(&ballast);
    story.fill();
    assert!(story.says_full());
    story.check();
    story.cluster.kill(0);
    let rest = mounted.path().join("rest");
    fill_with_ballast(&rest);
    story.cluster.restart(0);
    story.client = Text::connect(story.address()).expect("a connection");
    story.check();
    story.fill();
    let some: Vec<String> = story.stored.keys().take(100).cloned().collect();
    story.delete(&some);
    story.check();

    fs::remove_file(&ballast).expect("the foreign file goes");
    fs::remove_file(&rest).expect("and the other");
    story.wait_for_writes();
    assert!(!story.says_full());
    for _ in 0..WINDOW {
        assert!(story.try_put());
    }
    story.check();
    assert!(!story.cluster.ended(0), "the same process all the while");

    // Whatever becomes free is taken at once, the reserve, too, and keys are deleted that nobody has written, which
    // is taken and must be flushed: when there is nothing left it is the log that ends the process.
    let mut file = File::create(&ballast).expect("a file");
    let mut native = Native::new(story.address());
    let mut begun = 0;
    while !story.cluster.ended(0) {
        while file.write_all(&[1; 4 << 10]).is_ok() {}
        for _ in 0..WINDOW {
            let key = format!("none {begun:0>200}").into_bytes();
            let ops = vec![Op::Delete { key }];
            if native.call(Call::Write(KvWrite { ops, ..KvWrite::default() })).is_err() {
                break;
            }
            begun += 1;
        }
        assert!(begun < DELETES_MAX, "the log has a bound");
    }
    let log = story.cluster.log(0);
    let line = log.lines().last().expect("a last line");
    let cause = "the log cannot be written, nothing more is promised: cannot write ";
    assert!(line.contains(cause) && line.contains("No space left on device"), "{line}");
    drop(file);
    fs::remove_file(&ballast).expect("the foreign file goes");
    story.cluster.restart(0);
    story.client = Text::connect(story.address()).expect("a connection");
    story.check();
    story.wait_for_writes();
    let told = story.cluster.log(0).matches("the disk is full and the reserve in use").count();
    let what = format!(
        "{by_data} KiB of values until it was full, {} deleted; {foreign} bytes of another file; \
         it said {told} times that the disk is full",
        half.len()
    );
    say(name, &what);
}
