//! A data directory of a term behind which there is no other.

use crate::support::cluster::{BINARY, Cluster, Setup, kontiki};
use crate::support::native::Native;
use crate::support::say;
use crate::support::text::{Reply, Text};
use kontiki::env::Disk;
use kontiki::env::real::RealDisk;
use kontiki::kv::StoreOptions;
use kontiki::node::{Plan, open};
use kontiki::raft::{HardState, Persist};
use kontiki::wal::{self, Identity};
use std::path::Path;
use std::sync::Arc;

/// The last term that peers take from one another.
const LAST_TERM: u64 = (1 << 62) - 1;

/// Writes down that the node there, which does not run, was in that term.
fn set_term(data: &Path, term: u64) {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::default());
    let identity = Identity::load(&*disk, data).expect("it is read").expect("there is one");
    let store = StoreOptions { reserve_bytes: 0, ..StoreOptions::new(identity.identity) };
    let segment_bytes = wal::SEGMENT_BYTES_MIN;
    let plan = Plan { data, identity: &identity, segment_bytes, store, restore: None };
    let mut opened = open(&disk, plan, |_| {}).expect("it is whole");
    let hard_state = Some(HardState { term, vote: None });
    let persist = Persist { seq: 0, hard_state, reset: None, entries: Vec::new() };
    opened.wal.write(&[persist]).expect("it is written");
}

#[test]
fn the_data_of_a_node_in_the_last_term_begins_a_new_cluster() {
    // A node was taken to the last term there is, in which no other node can follow it. It becomes a cluster of one, which
    // serves alone; its backup begins a new cluster of three, whose terms begin anew and whose revisions go on.
    let aside = tempfile::tempdir().expect("a directory");
    let file = aside.path().join("all.backup").display().to_string();
    let mut cluster = Cluster::start(1);
    let address = cluster.nodes[0].address.clone();
    let mut client = Text::connect(&address).expect("a connection");
    assert_eq!(client.line("SET city Oslo").unwrap(), Reply::ok());
    cluster.kill(0);
    let data = cluster.nodes[0].data.clone();
    set_term(&data, LAST_TERM);
    let told = kontiki(BINARY)
        .args(["inspect", "recover"])
        .arg(&data)
        .arg("--i-accept-data-loss")
        .output()
        .expect("kontiki inspect");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    cluster.relaunch(0);
    crate::support::wait_for("it serves alone", || {
        let mut client = Text::connect(&address).ok()?;
        (client.line("GET city").ok()? == Reply::Bulk(b"Oslo".to_vec())).then_some(())
    });
    let log = cluster.log(0);
    assert!(log.contains("no other node can follow"), "{log}");
    let old = Native::new(&address).status().expect("a status");
    assert!(old.term > LAST_TERM, "{}", old.term);
    let backup = kontiki(BINARY).args(["cli", "-a", &address, "backup", &file]).output();
    let backup = backup.expect("kontiki cli");
    assert!(backup.status.success(), "{}", String::from_utf8_lossy(&backup.stderr));
    drop(cluster);

    let flags = vec!["--restore".to_owned(), file];
    let cluster = Cluster::with(3, Setup { flags, ..Setup::default() });
    for address in cluster.addresses() {
        let mut client = Text::connect(&address).expect("a connection");
        assert_eq!(client.line("GET city").unwrap(), Reply::Bulk(b"Oslo".to_vec()));
    }
    let leader = &cluster.nodes[cluster.leader()].address;
    let mut client = Text::connect(leader).expect("a connection");
    assert_eq!(client.line("SET city Bergen").unwrap(), Reply::ok());
    let new = Native::new(leader).status().expect("a status");
    assert!(new.term < 1000, "{}", new.term);
    assert!(new.applied > old.applied, "{} behind {}", new.applied, old.applied);
    say("terms", &format!("term {} before, {} now", old.term, new.term));
}
