//! The script that runs a cluster on this machine. It needs bash.
#![cfg(unix)]

use crate::support::cluster::{BINARY, alone, kontiki};
use crate::support::load::{Run, while_loaded};
use crate::support::text::{Reply, Text};
use crate::support::{http, say, wait_for};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Instant;

/// The first of some neighbouring ports that nobody uses at this moment.
fn neighbouring_ports(count: u16) -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    // Below the range from which systems take ports for outgoing connections.
    let start = 20_000 + u16::try_from(std::process::id() % 10_000).expect("a small number");
    (start..32_000)
        .step_by(usize::from(count))
        .find(|&first| (first..first + count).all(free))
        .expect("some free ports in a row")
}

struct Script {
    directory: PathBuf,
    port: u16,
}

impl Script {
    fn run(&self, words: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cluster.sh");
        let mut command = kontiki("bash");
        command
            .arg(script)
            .args(words)
            .env("KONTIKI_PORT", self.port.to_string())
            .env("KONTIKI_DIR", &self.directory)
            .env("KONTIKI_BIN", BINARY);
        command.output().expect("bash")
    }

    fn good(&self, words: &[&str]) -> String {
        let ended = self.run(words);
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        let complained = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{words:?}: {}\n{said}{complained}", ended.status);
        said
    }

    fn address(&self, id: u16) -> String {
        format!("127.0.0.1:{}", self.port + id - 1)
    }
}

/// Also when the test fails.
impl Drop for Script {
    fn drop(&mut self) {
        self.run(&["clean"]);
    }
}

#[test]
fn one_command_brings_a_cluster_up_and_one_takes_it_down() {
    // Start, look, kill the leader, look, bring it back, stop, start again: what was written stays.
    // Clean leaves nothing.
    let _one = alone();
    let begun = Instant::now();
    let home = tempfile::Builder::new().prefix("kontiki-test-").tempdir().expect("a directory");
    let directory = home.path().join("cluster");
    let script = Script { directory: directory.clone(), port: neighbouring_ports(3) };

    let said = script.good(&["start"]);
    assert!(said.contains("3 node(s) on") && said.contains("cli -a"), "{said}");
    let mut client = Text::connect(&script.address(2)).expect("a connection");
    assert_eq!(client.line("SET city Oslo").unwrap(), Reply::ok());
    let rows = script.good(&["status"]);
    for id in 1..=3 {
        let row = rows.lines().find(|row| row.contains(&script.address(id)));
        let row = row.unwrap_or_else(|| panic!("no row of node {id}: {rows}"));
        assert_eq!(row.split_whitespace().next(), Some(&*id.to_string()), "{rows}");
    }
    assert!(script.good(&["start"]).contains("3 node(s)"), "starting twice is safe");

    let leads = |id: &u16| http::status(&script.address(*id), "/health/leader") == Some(200);
    let leader = (1..=3).find(leads).expect("a leader").to_string();
    assert!(script.good(&["kill", &leader]).contains(&format!("killed node {leader}")));
    let again = script.run(&["kill", &leader]);
    assert!(!again.status.success(), "a dead node is not killed twice");
    assert!(script.good(&["restart", &leader]).contains(&format!("restarted node {leader}")));
    assert_eq!(script.run(&["kill", "4"]).status.code(), Some(2), "there is no node 4");

    script.good(&["stop"]);
    assert!((1..=3).all(|id| Text::connect(&script.address(id)).is_err()), "all have ended");
    script.good(&["start"]);
    let mut client = Text::connect(&script.address(1)).expect("a connection");
    assert_eq!(client.line("GET city").unwrap(), Reply::bulk(b"Oslo"));

    script.good(&["clean"]);
    assert!(!directory.exists(), "clean leaves nothing");
    assert!((1..=3).all(|id| Text::connect(&script.address(id)).is_err()), "all have ended");
    assert_eq!(fs::read_dir(home.path()).expect("the directory").count(), 0);
    let took = begun.elapsed().as_secs_f64();
    say(
        "cluster_script",
        &format!("start, status, kill, restart, stop, start, clean: {took:.1} s"),
    );
}

#[test]
fn all_nodes_are_restarted_one_by_one_without_a_failed_call() {
    // A cluster of three, grown to four, is restarted node by node while clients write and read: no
    // call fails, and what they saw has one explanation. Then everybody runs with a new process.
    let _one = alone();
    let home = tempfile::Builder::new().prefix("kontiki-test-").tempdir().expect("a directory");
    let script = Script { directory: home.path().join("cluster"), port: neighbouring_ports(4) };
    script.good(&["start"]);
    assert!(script.good(&["add"]).contains("added node 4"));
    let pid = |id: u16| fs::read_to_string(script.directory.join(format!("n{id}.pid")));
    let pids = || (1..=4).map(|id| pid(id).expect("a pid")).collect::<Vec<_>>();
    let before = pids();
    let run = Run::new((1..=4).map(|id| script.address(id)).collect());
    let (said, checked, sum) = while_loaded(&run, 4, || {
        run.more_writes(500);
        let said = script.good(&["roll"]);
        run.more_writes(500);
        said
    });
    assert!((1..=4).all(|id| said.contains(&format!("restarted node {id} "))), "{said}");
    assert!(before.iter().zip(pids()).all(|(before, now)| *before != now), "new processes");
    say(
        "cluster_script",
        &format!(
            "4 nodes restarted one by one: {} calls answered, none failed; exact counter at {sum}",
            checked.answered
        ),
    );
    // A member is let go by hand: from then on the script does without it.
    let address = script.address(1);
    let removed = kontiki(BINARY).args(["cli", "-a", &address, "member", "remove", "2"]).output();
    assert_eq!(removed.expect("kontiki cli").stdout, b"OK 2\n");
    let log = script.directory.join("n2.log");
    let stops = || fs::read_to_string(&log).is_ok_and(|log| log.contains("This node stops"));
    let gone = || TcpStream::connect(script.address(2)).is_err();
    wait_for("it is told, and ends", || (stops() && gone()).then_some(()));
    let said = script.good(&["roll"]);
    assert!([1, 3, 4].iter().all(|id| said.contains(&format!("restarted node {id} "))), "{said}");
    assert!(!said.contains("node 2"), "{said}");
    let refused = script.run(&["restart", "2"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("removed from the cluster for ever"));
    assert!(!script.good(&["status"]).contains(&script.address(2)));
    script.good(&["stop"]);
    assert!(script.good(&["start"]).contains("3 node(s) on"));
}
