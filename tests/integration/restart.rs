//! All nodes end at once and are started again, also with other words.

use crate::support::cluster::{BINARY, Cluster, free_ports, kontiki};
use crate::support::say;
use crate::support::text::{Reply, Text};
use std::process::Output;

#[test]
fn everything_acknowledged_survives_the_death_of_all_nodes() {
    // Power fails for all three in the middle of a pipeline; whatever was answered is there again.
    let mut cluster = Cluster::start(3);
    let mut clients: Vec<Text> = cluster
        .addresses()
        .iter()
        .map(|address| Text::connect(address).expect("a connection"))
        .collect();
    let mut sent = [0; 3];
    // Numbers of the writes through each node that were answered with OK.
    let mut acknowledged: Vec<Vec<u32>> = vec![Vec::new(); 3];
    for _ in 0..100 {
        for (node, client) in clients.iter_mut().enumerate() {
            let line = format!("SET {node}/{0} value-{0}\r\n", sent[node]);
            client.send(line.as_bytes()).expect("a line");
            sent[node] += 1;
        }
        for (node, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.reply().expect("a reply"), Reply::ok());
            acknowledged[node].push(sent[node] - 1);
        }
    }
    for (node, client) in clients.iter_mut().enumerate() {
        let more: String =
            (0..3000).map(|n| format!("SET {node}/{0} value-{0}\r\n", sent[node] + n)).collect();
        client.send(more.as_bytes()).expect("lines");
        assert_eq!(client.reply().expect("the first of them"), Reply::ok());
        acknowledged[node].push(sent[node]);
    }
    (0..3).for_each(|node| cluster.kill(node));
    for (node, client) in clients.iter_mut().enumerate() {
        // Answers that were on their way. A follower that outlived the leader for a moment does not
        // know what became of the writes it had passed on.
        for number in sent[node] + 1.. {
            match client.reply() {
                Ok(reply) if reply == Reply::ok() => acknowledged[node].push(number),
                Ok(reply) => {
                    let fine = reply.is_error("ERR UNKNOWN") || reply.is_error("CLUSTERDOWN");
                    assert!(fine, "{reply:?}");
                }
                Err(_) => break,
            }
        }
    }
    (0..3).for_each(|node| cluster.relaunch(node));
    (0..3).for_each(|node| cluster.wait_serving(node));
    for address in cluster.addresses() {
        let mut client = Text::connect(&address).expect("a connection");
        for (node, numbers) in acknowledged.iter().enumerate() {
            let gets: String = numbers.iter().map(|n| format!("GET {node}/{n}\r\n")).collect();
            client.send(gets.as_bytes()).expect("lines");
            for n in numbers {
                let expected = Reply::Bulk(format!("value-{n}").into_bytes());
                assert_eq!(client.reply().expect("a reply"), expected, "{address}: {node}/{n}");
            }
        }
    }
    let counts: Vec<usize> = acknowledged.iter().map(Vec::len).collect();
    say("restart", &format!("{counts:?} acknowledged writes are on all three nodes again"));
}

#[test]
fn a_node_is_not_started_as_another_one() {
    // A data directory remembers the members that it began with: others are refused with a line that
    // names both, and the right ones still work.
    let mut cluster = Cluster::start(3);
    cluster.kill(0);
    let own = cluster.nodes[0].address.clone();
    let all = cluster.addresses().join(",");
    let other = format!("127.0.0.1:{}", free_ports(1)[0]);
    let others = format!("{},{other}", cluster.addresses()[..2].join(","));
    let data = cluster.nodes[0].data.display().to_string();
    let serve = |words: &[&str]| -> Output {
        let mut command = kontiki(BINARY);
        command.args(["serve", "--data", &data]).args(words).output().expect("kontiki serve")
    };
    let cases: [(&[&str], i32, &[&str]); 3] = [
        (&["--listen", &own, "--peers", &others], 3, &[&all, &other, "--peers"]),
        (&["--listen", &other, "--peers", &all], 2, &[&other, "not among"]),
        (&["--listen", &own, "--peers", &all, "--join", &other], 2, &["--join", "--peers"]),
    ];
    for (words, code, parts) in cases {
        let ended = serve(words);
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(code), "{words:?}: {said}");
        let complaint = said.lines().last().unwrap_or_default();
        for part in parts {
            assert!(complaint.contains(part), "{words:?}: {part} is not in: {said}");
        }
        assert_eq!(said.lines().count(), 1, "{words:?}: one line, not: {said}");
    }
    cluster.restart(0);
    say("restart", "three wrong command lines refused, each with one line; the right one serves");
}
