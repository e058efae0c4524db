//! What the operating system saw: nothing is acknowledged before it is durable on a majority.

use crate::support::cluster::{Cluster, Setup};
use crate::support::strace::{missing, parse, synced_before_acknowledged, wrapper};
use crate::support::text::{Reply, Text};
use crate::support::{say, wait_for};
use std::fs;
use std::time::Instant;

const WRITES: usize = 200;

#[test]
fn nothing_is_acknowledged_before_it_is_synced_on_a_majority() {
    // Three nodes under strace, one client that writes key after key. For each acknowledgement that
    // the leader sent, a majority of nodes had written the key to a file and synced that file.
    if let Some(why) = missing() {
        say("sync_before_ack", &format!("skipped: {why}"));
        return;
    }
    let begun = Instant::now();
    // Traced processes are slow; an election in the middle would only make the test longer.
    let flags = ["--election-timeout-ms", "3000"].map(str::to_owned).to_vec();
    let mut cluster =
        Cluster::with(3, Setup { flags, wrapper: wrapper("trace-%"), ..Setup::default() });
    let leader = cluster.leader();
    let mut client = Text::connect(&cluster.nodes[leader].address).expect("a connection");
    let keys: Vec<String> = (0..WRITES).map(|n| format!("sync-{n:05}")).collect();
    for key in &keys {
        assert_eq!(client.line(&format!("SET {key} value")).unwrap(), Reply::ok());
    }
    assert_eq!(cluster.leader(), leader, "the leader changed");
    (0..3).for_each(|node| cluster.kill(node));
    let traces: Vec<_> = (1..=3)
        .map(|id| {
            let path = cluster.dir.path().join(format!("trace-{id}"));
            // The tracer writes until it has seen the end of its process.
            let text = wait_for("the end of a trace", || {
                let text = String::from_utf8_lossy(&fs::read(&path).ok()?).into_owned();
                text.contains("+++ killed by SIGKILL +++").then_some(text)
            });
            parse(&text)
        })
        .collect();
    let checked = synced_before_acknowledged(&traces, leader, &keys);
    let checked = checked.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(checked, WRITES);
    say(
        "sync_before_ack",
        &format!(
            "{checked} acknowledgements, each after a sync on a majority; {:?} system calls, {:.1} s",
            traces.iter().map(Vec::len).collect::<Vec<_>>(),
            begun.elapsed().as_secs_f64()
        ),
    );
}

/// A trace in which node 1 answers at .000800; its sync ends at .000500, those of the others at the
/// moments given.
fn made_up(begins: [&str; 2], takes: [&str; 2]) -> Result<usize, String> {
    let leader = "\
10 1700000000.000100 recvfrom(9<socket:[7]>, \"SET sync-1 v\\r\\n\", 16384, 0, NULL, NULL) = 14 <0.000010>
11 1700000000.000200 pwrite64(5</d/log/log-00000001>, \"\\1\\0sync-1\\0v\", 4096, 512) = 4096 <0.000020>
11 1700000000.000300 fdatasync(5</d/log/log-00000001> <unfinished ...>
10 1700000000.000310 read(9<socket:[7]>,  <unfinished ...>
11 1700000000.000500 <... fdatasync resumed>)  = 0 <0.000200>
12 1700000000.000800 sendto(9<socket:[7]>, \"+OK\\r\\n\", 5, MSG_NOSIGNAL, NULL, 0) = 5 <0.000005>
12 1700000000.000900 +++ killed by SIGKILL +++
";
    let follower = |at: usize| {
        let (begin, take) = (begins[at], takes[at]);
        format!(
            "20 1700000000.000250 pwrite64(6</e/log-1>, \"sync-1\", 4096, 512) = 4096 <0.000020>\n\
             20 1700000000.{begin} fdatasync(6</e/log-1>) = 0 <0.{take}>\n"
        )
    };
    let traces = [leader.to_owned(), follower(0), follower(1)].map(|text| parse(&text));
    synced_before_acknowledged(&traces, 0, &["sync-1".to_owned()])
}

#[test]
fn the_judge_of_traces_can_tell_good_from_bad() {
    // A majority in time; then one that is late, one that began too early, one of another file.
    assert_eq!(made_up(["000300", "000900"], ["000500", "000100"]), Ok(1));
    let late = made_up(["000300", "000900"], ["000501", "000100"]).unwrap_err();
    assert!(late.contains("durable on 1 of 3 nodes"), "{late}");
    let early = made_up(["000260", "000900"], ["000100", "000100"]).unwrap_err();
    assert!(early.contains("durable on 1 of 3 nodes"), "{early}");
    let sync = "1 1700000000.000300 fdatasync(7</other>) = 0 <0.000010>\n";
    let write = "1 1700000000.000200 pwrite64(6</log>, \"sync-1\", 6, 0) = 6 <0.000001>\n";
    let asked = "1 1700000000.000100 read(9<s>, \"sync-1\", 99) = 6 <0.000001>\n";
    let answer = "1 1700000000.000400 write(9<s>, \"+OK\\r\\n\", 5) = 5 <0.000001>\n";
    let judge = |lines: &[&str]| {
        synced_before_acknowledged(&[parse(&lines.concat())], 0, &["sync-1".to_owned()])
    };
    assert!(judge(&[asked, write, sync, answer]).unwrap_err().contains("durable on 0 of 1"));
    let sync = sync.replace("7</other>", "6</log>");
    assert_eq!(judge(&[asked, write, &sync, answer]), Ok(1));
    let failed = sync.replace("= 0", "= -1 EIO (Input/output error)");
    assert!(judge(&[asked, write, &failed, answer]).is_err(), "a sync that failed is none");
    assert!(judge(&[asked, write, &sync]).unwrap_err().contains("not answered"));
    assert!(judge(&[write, &sync, answer]).unwrap_err().contains("did not arrive"));
}
