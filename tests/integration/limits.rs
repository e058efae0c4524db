//! Nodes whose flags differ: what one lets in all hold, or the leader refuses it.

use crate::support::cluster::Cluster;
use crate::support::native::Native;
use crate::support::text::{Reply, Text};
use crate::support::wait_for;
use kontiki::kv::{Query, Reply as Found};
use kontiki::wire::client::Consistency;

/// Flags that allow far less than the default ones, and make small segments.
const SMALL: &str = "--wal-limit 1MiB --max-batch 64KiB --max-value 16KiB";

/// About the largest value that the default flags allow.
const LARGE_BYTES: usize = 1_000_000;

fn lead(cluster: &Cluster, node: usize) {
    wait_for("leadership is handed over", || {
        let to = (node + 1).to_string();
        let _ = cluster.cli().args(["transfer", &to]).output().expect("kontiki cli");
        (cluster.leader() == node).then_some(())
    });
}

fn set(cluster: &Cluster, node: usize, key: &str, value: &[u8]) -> Reply {
    let mut client = Text::connect(&cluster.nodes[node].address).expect("a connection");
    client.command(&[b"SET", key.as_bytes(), value]).expect("a reply")
}

#[test]
fn what_the_leaders_flags_allow_every_node_holds() {
    // Two nodes have small limits. One with large ones leads and takes large writes: the others hold
    // them, end, and start again, also with their flags exchanged. Led by a node with small limits, the
    // same write is refused, also by the way of the node that would take it, and the limit is named.
    let mut cluster = Cluster::start(3);
    for node in [0, 1] {
        cluster.relaunch_with(node, SMALL);
        cluster.wait_serving(node);
    }
    lead(&cluster, 2);
    let value = vec![b'x'; LARGE_BYTES];
    for n in 0..4 {
        assert_eq!(set(&cluster, 2, &format!("large {n}"), &value), Reply::ok());
    }
    let read = |node: usize, cluster: &mut Cluster| {
        let address = cluster.nodes[node].address.clone();
        for n in 0..4 {
            let key = format!("large {n}").into_bytes();
            wait_for("the value is there", || {
                assert!(!cluster.ended(node), "node {} ended; see its log below", node + 1);
                let query = Query::Get { key: key.clone() };
                match Native::new(&address).query(query, Consistency::Stale) {
                    Ok(Found::Value(Some(found))) => {
                        assert_eq!(found.value, value, "node {}", node + 1);
                        Some(())
                    }
                    _ => None,
                }
            });
        }
    };
    (0..3).for_each(|node| read(node, &mut cluster));
    for flags in [SMALL, "", SMALL] {
        for node in [0, 1] {
            cluster.relaunch_with(node, flags);
            cluster.wait_serving(node);
            read(node, &mut cluster);
        }
    }
    lead(&cluster, 0);
    let refused = set(&cluster, 2, "refused", &value);
    let Reply::Error(text) = &refused else { panic!("{refused:?}") };
    let named = "which leads, does not take it: value of 1000000 bytes is over the limit of 16384";
    assert!(text.starts_with("ERR node 1, ") && text.contains(named), "{text}");
    assert!(text.contains("--max-value"), "{text}");
    assert_eq!(set(&cluster, 2, "taken", &value[..16 << 10]), Reply::ok());
    for node in 0..3 {
        let query = Query::Get { key: b"refused".to_vec() };
        let found =
            Native::new(&cluster.nodes[node].address).query(query, Consistency::Linearizable);
        assert_eq!(found, Ok(Found::Value(None)));
    }
}
