//! A data set is loaded while the leader is killed.

use crate::support::cluster::{BINARY, Cluster, kontiki};
use crate::support::native::Native;
use crate::support::{say, wait_for};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

/// A table of characters that many systems have: a code, then fields that begin with a semicolon.
const CHARACTERS: &str = "/usr/share/unicode/UnicodeData.txt";
/// Lines of the data set that is made up when there is no table.
const MADE_UP_LINES: usize = 35_000;

/// Lines `CODE TAB REST`, sorted by code as bytes.
fn lines() -> (&'static str, Vec<String>) {
    let (what, mut lines) = match fs::read_to_string(CHARACTERS) {
        Ok(text) => {
            let line =
                |line: &str| line.split_once(';').map(|(code, rest)| format!("{code}\t{rest}\n"));
            (CHARACTERS, text.lines().filter_map(line).collect::<Vec<_>>())
        }
        Err(_) => {
            let line =
                |n: usize| format!("{n:05X}\tMADE UP LETTER {};Lo;0;L;;;;;N;;;;;\n", n * 7919);
            ("a made-up table", (0..MADE_UP_LINES).map(line).collect())
        }
    };
    lines.sort_unstable_by(|a, b| a.split('\t').next().cmp(&b.split('\t').next()));
    (what, lines)
}

/// Entries that a leader applies of a load before it is killed: some writes, and more are in flight.
const APPLIED_BEFORE_DEATH: u64 = 8;
const KILLS: usize = 2;
/// Loads in which the leaders are killed; one is enough where loading takes as long as it does here.
const LOADS_MAX: usize = 10;

/// Loads the file once, killing leaders while that goes on. Says how many.
fn load(cluster: &mut Cluster, file: &Path, kills_max: usize) -> usize {
    let applied = |cluster: &Cluster, node: usize| {
        Native::new(&cluster.nodes[node].address).status().map_or(0, |status| status.applied)
    };
    let leader = cluster.leader();
    let mut before = applied(cluster, leader);
    let mut load = cluster
        .cli()
        .args(["--timeout-ms", "20000", "load"])
        .arg(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kontiki cli load");
    let mut kills = 0;
    while kills < kills_max {
        // The node that leads and has applied some of the load, or none when that has ended.
        let leader = wait_for("the load gets on or ends", || {
            if load.try_wait().expect("the state of the load").is_some() {
                return Some(None);
            }
            let leader = cluster.leader();
            let now = applied(cluster, leader);
            (now >= before + APPLIED_BEFORE_DEATH).then(|| {
                before = now;
                Some(leader)
            })
        });
        let Some(leader) = leader else { break };
        cluster.kill(leader);
        kills += usize::from(load.try_wait().expect("the state of the load").is_none());
        cluster.relaunch(leader);
    }
    let loaded = load.wait_with_output().expect("the end of the load");
    let said = String::from_utf8_lossy(&loaded.stdout).into_owned();
    let complained = String::from_utf8_lossy(&loaded.stderr).into_owned();
    assert!(loaded.status.success(), "{}: {said}{complained}", loaded.status);
    assert!(said.starts_with("OK "), "{said}");
    kills
}

#[test]
fn a_load_survives_the_death_of_two_leaders() {
    // While lines flow in, the leader is killed hard and started again, twice. The dump then equals
    // the input to the byte, from whichever node.
    let (what, lines) = lines();
    let mut cluster = Cluster::start(3);
    let begun = Instant::now();
    let file = cluster.dir.path().join("input.tsv");
    let expected = lines.concat().into_bytes();
    fs::write(&file, &expected).expect("the input");
    let (mut kills, mut loads) = (0, 0);
    while kills < KILLS {
        // The same lines once more change nothing.
        loads += 1;
        assert!(loads <= LOADS_MAX, "the loads were too fast for {KILLS} kills");
        kills += load(&mut cluster, &file, KILLS - kills);
    }
    let loaded_after = begun.elapsed();
    for node in 0..3 {
        cluster.wait_serving(node);
        let address = &cluster.nodes[node].address;
        let dump = kontiki(BINARY).args(["cli", "-a", address, "dump"]).output();
        let dump = dump.expect("kontiki cli dump");
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        let (found, wanted) = (dump.stdout.len(), expected.len());
        assert!(dump.stdout == expected, "the dump of {found} bytes is not the input of {wanted}");
    }
    say(
        "leader_killed_while_loading",
        &format!(
            "{} lines of {what}, {loads} load(s) in {:.1} s with the leader killed {kills} times; \
             three dumps of {} bytes equal the input",
            lines.len(),
            loaded_after.as_secs_f64(),
            expected.len()
        ),
    );
}
