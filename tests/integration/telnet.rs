//! The port as people and load balancers see it: typed lines, RESP, HTTP.

use crate::support::cluster::Cluster;
use crate::support::text::{Reply, Text, array};
use crate::support::{http, say};

#[test]
fn lines_and_arrays_are_answered_by_every_node() {
    // What is typed at one node, leader or not, is read at the others.
    let cluster = Cluster::start(3);
    let follower = cluster.follower();
    let mut at = Text::connect(&cluster.nodes[follower].address).expect("a connection");
    assert_eq!(at.line("PING").unwrap(), Reply::Simple("PONG".into()));
    assert_eq!(at.line("ping \"a b\"").unwrap(), Reply::bulk(b"a b"));
    assert_eq!(at.line("GET city").unwrap(), Reply::Nil);
    // A follower forwards what only the leader can do.
    assert_eq!(at.line("SET city \"Oslo\\x00\\n\"").unwrap(), Reply::ok());
    for address in cluster.addresses() {
        let mut other = Text::connect(&address).expect("a connection");
        assert_eq!(other.command(&[b"GET", b"city"]).unwrap(), Reply::bulk(b"Oslo\0\n"));
    }
    assert_eq!(at.line("DEL city nowhere").unwrap(), Reply::Integer(1));
    assert_eq!(at.line("DEL city").unwrap(), Reply::Integer(0));
    assert_eq!(at.command(&[b"GET", b"city"]).unwrap(), Reply::Nil);
    assert!(at.line("NONSENSE 1 2").unwrap().is_error("ERR unknown command 'NONSENSE'"));
    assert!(at.line("GET").unwrap().is_error("ERR wrong number of arguments"));
    assert_eq!(at.line("QUIT").unwrap(), Reply::ok());
    assert_eq!(at.rest().unwrap(), b"", "QUIT closes");
    say("telnet", "lines and arrays answered by leader and followers");
}

#[test]
fn pipelined_commands_are_answered_in_their_order() {
    // Two hundred commands of all kinds in one write, through a follower and through the leader;
    // each read sees the write in front of it.
    let cluster = Cluster::start(3);
    for node in [cluster.leader(), cluster.follower()] {
        let mut client = Text::connect(&cluster.nodes[node].address).expect("a connection");
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for n in 0..50 {
            let (key, value) = (format!("{node}/k{n}"), format!("value {n}"));
            bytes.extend(array(&[b"SET", key.as_bytes(), value.as_bytes()]));
            bytes.extend(format!("GET {key}\r\n").into_bytes());
            bytes.extend(array(&[b"DEL", key.as_bytes()]));
            bytes.extend(array(&[b"GET", key.as_bytes()]));
            let replies =
                [Reply::ok(), Reply::bulk(value.as_bytes()), Reply::Integer(1), Reply::Nil];
            expected.extend(replies);
        }
        client.send(&bytes).unwrap();
        for (n, expected) in expected.into_iter().enumerate() {
            assert_eq!(client.reply().unwrap(), expected, "reply {n}");
        }
    }
    say("telnet", "2 x 200 pipelined commands answered in order");
}

#[test]
fn health_tells_load_balancers_where_to_go() {
    // All three serve, one leads; with two killed the third neither serves nor leads.
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    for (node, address) in cluster.addresses().iter().enumerate() {
        assert_eq!(http::status(address, "/health"), Some(200), "node {}", node + 1);
        let expected = if node == leader { 200 } else { 503 };
        assert_eq!(http::status(address, "/health/leader"), Some(expected), "node {}", node + 1);
        assert_eq!(http::status(address, "/nowhere"), Some(404));
    }
    (0..3).filter(|&node| node != leader).for_each(|node| cluster.kill(node));
    let address = &cluster.nodes[leader].address;
    assert_eq!(http::status(address, "/health"), Some(503), "without a majority");
    assert_eq!(http::status(address, "/health/leader"), Some(503), "without a majority");
    let mut client = Text::connect(address).expect("a connection");
    let refused = client.line("SET lonely 1").unwrap();
    let unsure = refused.is_error("ERR UNKNOWN") || refused.is_error("CLUSTERDOWN");
    assert!(unsure, "a write without a majority: {refused:?}");
    say("telnet", "health codes of leader, followers and a node without majority");
}
