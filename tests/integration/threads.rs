//! A node whose system gives it few threads.

use crate::support::cluster::{Cluster, Setup};
use crate::support::text::{Reply, Text};
use crate::support::{http, say, wait_for};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

/// Threads that the system gives the node: what it needs, and some clients'.
const THREADS: usize = 48;
const CLIENTS: usize = 120;

/// Words in front of the node's command that make it run as a user of its own with so few threads; or why that cannot be.
fn limited() -> Result<Vec<String>, String> {
    // Nobody else's threads count to a number that nobody has.
    let user = 61_000 + std::process::id() % 4_000;
    let nproc = format!("--nproc={THREADS}:{THREADS}");
    let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
    let words = ["prlimit", &nproc, "setpriv", &uid, &gid, "--clear-groups"];
    let wrapper: Vec<String> = words.map(str::to_owned).to_vec();
    match Command::new("prlimit").args(&wrapper[1..]).args(["test", "-x", "/"]).output() {
        Ok(told) if told.status.success() => Ok(wrapper),
        Ok(told) => Err(String::from_utf8_lossy(&told.stderr).trim().to_owned()),
        Err(e) => Err(format!("prlimit: {e}")),
    }
}

#[test]
fn a_node_that_gets_no_more_threads_sheds_connections_and_goes_on() {
    // 120 clients come to a node that gets 48 threads. Each refused thread costs a connection: the node closes those that
    // have shown nothing, says what the system does not give and what helps, and serves whoever asks.
    let wrapper = match limited() {
        Ok(wrapper) => wrapper,
        Err(why) => return say("threads", &format!("skipped: no other user can be taken: {why}")),
    };
    let data = tempfile::Builder::new().prefix("kontiki-test-").tempdir().expect("a directory");
    fs::set_permissions(data.path(), fs::Permissions::from_mode(0o777)).expect("a mode");
    let setup = Setup { data: Some(data.path().to_owned()), wrapper, ..Setup::default() };
    let mut cluster = Cluster::with(1, setup);
    let address = cluster.nodes[0].address.clone();
    let mut client = Text::connect(&address).expect("a connection");
    assert_eq!(client.line("SET before 1").unwrap(), Reply::ok());
    let crowd: Vec<Text> = (0..CLIENTS).filter_map(|_| Text::connect(&address).ok()).collect();
    wait_for("the shortage is told", || {
        let log = fs::read_to_string(&cluster.nodes[0].log).ok()?;
        log.contains("the system gives this process no more threads").then_some(())
    });
    let mut writes = 0;
    wait_for("a client is served", || {
        let mut late = Text::connect(&address).ok()?;
        writes += 1;
        (late.line(&format!("SET late {writes}")).ok()? == Reply::ok()).then_some(())
    });
    assert!(!cluster.ended(0), "the node goes on");
    assert_eq!(http::status(&address, "/health"), Some(200));
    drop(crowd);
    wait_for("all that come are served again", || {
        // Fewer than it serves at least in the minute behind a shortage.
        let mut many: Vec<Text> = (0..5).filter_map(|_| Text::connect(&address).ok()).collect();
        let served = |client: &mut Text| client.line("PING").is_ok();
        many.iter_mut().all(served).then_some(())
    });
    let log = cluster.log(0);
    assert!(log.lines().count() < 200, "{log}");
    say("threads", &format!("{CLIENTS} clients at a node of {THREADS} threads"));
}
