//! A damaged store is not served from, and repairs itself from the others.

use crate::support::cluster::{Cluster, Setup, flags};
use crate::support::mounted::Mounted;
use crate::support::native::Native;
use crate::support::text::{Reply, Text};
use crate::support::{http, say, wait_for};
use kontiki::wire::client::Consistency;
use std::fs;
use std::path::{Path, PathBuf};

const KEYS: usize = 6000;
const VALUE_BYTES: usize = 500;

/// The tables of a store, largest first.
fn tables(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("store")).expect("a store").flatten();
    let named = |e: &fs::DirEntry| e.file_name().to_string_lossy().starts_with("table-");
    let mut all: Vec<_> = entries.filter(named).map(|e| e.path()).collect();
    all.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).map_or(0, |m| m.len())));
    all
}

/// Turns over a bit in the middle of a file.
fn spoil(path: &Path) {
    let mut bytes = fs::read(path).expect("a table");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("written");
}

/// Room for three stores, the fetched ones beside them, logs and reserves.
const DISK_BYTES: u64 = 512 << 20;

#[test]
fn a_node_with_damaged_tables_serves_nothing_wrong_and_heals() {
    heals("repair", None);
}

#[test]
fn a_node_on_an_ext4_heals_as_well() {
    match Mounted::ext4(DISK_BYTES) {
        Ok(mounted) => heals("repair on an ext4", Some(mounted.path().join("data"))),
        Err(why) => say("repair on an ext4", &format!("NOT RUN, a file cannot be mounted: {why}")),
    }
}

fn heals(name: &str, data: Option<PathBuf>) {
    // Every table of one node rots while it is down, or is lost. It comes back, does not say a wrong
    // word, and fetches a whole store from the others without help, also when it leads. Writes
    // go on all the while.
    let flags = flags("--memtable 256KiB --wal-limit 1MiB --max-batch 64KiB --max-value 32KiB");
    let mut cluster = Cluster::with(3, Setup { flags, data, ..Setup::default() });
    let value = |n: usize| format!("{n}-{}", "x".repeat(VALUE_BYTES));
    let mut text = Text::connect(&cluster.nodes[0].address).expect("a connection");
    for n in 0..KEYS {
        let reply = text.line(&format!("SET k{n:05} {}", value(n))).expect("a reply");
        assert_eq!(reply, Reply::ok());
    }
    drop(text);
    for victim in [cluster.follower(), cluster.leader()] {
        cluster.kill(victim);
        let all = tables(&cluster.nodes[victim].data);
        // How many there are depends on how far compactions have come.
        let (lost, spoiled) = all.split_at(usize::from(all.len() > 1));
        assert!(!spoiled.is_empty(), "there are tables");
        spoiled.iter().for_each(|path| spoil(path));
        lost.iter().for_each(|path| fs::remove_file(path).expect("removed"));
        cluster.relaunch(victim);
        let address = cluster.nodes[victim].address.clone();
        // Whatever it answers meanwhile is right; what it cannot know it does not answer.
        let mut asked = 0;
        let (mut native, mut n) = (Native::new(&address), 0);
        wait_for("the node repairs its store", || {
            n = (n + 977) % KEYS;
            let key = format!("k{n:05}").into_bytes();
            let query = kontiki::kv::Query::Get { key };
            if let Ok(kontiki::kv::Reply::Value(found)) =
                native.query(query, Consistency::Linearizable)
            {
                assert_eq!(found.map(|f| f.value), Some(value(n).into_bytes()));
                asked += 1;
            }
            let repaired = cluster.log(victim).contains("the store is repaired");
            repaired.then_some(())
        });
        wait_for("it is well", || (http::status(&address, "/health") == Some(200)).then_some(()));
        assert!(cluster.log(victim).contains("is damaged at offset"), "it says what was damaged");
        let items = Native::new(&address).all("k", Consistency::Linearizable);
        assert_eq!(items.len(), KEYS);
        for (n, item) in items.iter().enumerate() {
            assert_eq!(item.value, value(n).into_bytes());
        }
        say(name, &format!("{} tables spoiled, {asked} right answers meanwhile", all.len()));
    }
}
