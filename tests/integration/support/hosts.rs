//! Several hosts on one machine: network namespaces on one bridge, each with one node of the cluster.
//!
//! Faults are made with `ip` alone and silently, as a real network makes them: nobody is told that a
//! packet is lost. What is made here, all of it in namespaces, goes when [`Hosts`] is dropped; what a
//! process that was killed has left goes when the next one begins.

use super::cluster::{BINARY, alone, kontiki};
use super::wait_for;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Names of namespaces begin so; then come this process's id and the host's number.
const PREFIX: &str = "kontiki-test-";
const PORT: u16 = 7000;
const LOG_LINES_SHOWN: usize = 60;

/// Runs `ip` with these words.
fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split_whitespace()).stdin(Stdio::null()).output();
    match output {
        Err(e) => Err(format!("ip cannot be run: {e}")),
        Ok(ended) if ended.status.success() => Ok(()),
        Ok(ended) => {
            let why = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
            Err(format!("ip {words}: {why}"))
        }
    }
}

/// Why there cannot be hosts here, if so.
pub(crate) fn missing() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("network namespaces are of Linux".to_owned());
    }
    let name = namespace("probe");
    let made = ip(&format!("netns add {name}"))
        .and_then(|()| ip(&format!("-n {name} link add br0 type bridge")))
        .and_then(|()| ip(&format!("-n {name} link add v1 type veth peer name v2")));
    let _ = ip(&format!("netns del {name}"));
    made.err()
}

fn namespace(what: impl std::fmt::Display) -> String {
    format!("{PREFIX}{}-{what}", std::process::id())
}

/// Removes the namespaces of test processes that are gone.
fn sweep() {
    let Ok(list) = Command::new("ip").args(["netns", "list"]).output() else { return };
    for line in String::from_utf8_lossy(&list.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// A host, and its node.
#[derive(Debug)]
struct Host {
    namespace: String,
    /// Its addresses end in this number.
    number: u8,
    /// How often its flows were forgotten.
    forgotten: u8,
    log: PathBuf,
    child: Option<Child>,
}

/// Hosts 1 to N; see the module.
#[derive(Debug)]
pub(crate) struct Hosts {
    hosts: Vec<Host>,
    switch: String,
    dir: TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Hosts {
    /// So many hosts, each with a node that runs.
    pub(crate) fn start(count: u8) -> Hosts {
        let one = alone();
        sweep();
        let dir = tempfile::Builder::new().prefix("kontiki-test-").tempdir().expect("a directory");
        fs::write(dir.path().join("token"), "namespaces\n").expect("a token");
        let switch = namespace("switch");
        let mut all = Hosts { hosts: Vec::new(), switch, dir, _one: one };
        let must = |words: String| ip(&words).unwrap_or_else(|why| panic!("{why}"));
        must(format!("netns add {}", all.switch));
        must(format!("-n {} link add br0 type bridge", all.switch));
        must(format!("-n {} link set br0 up", all.switch));
        for number in 1..=count {
            let host = Host {
                namespace: namespace(number),
                number,
                forgotten: 0,
                log: all.dir.path().join(format!("n{number}.log")),
                child: None,
            };
            let (name, switch) = (host.namespace.clone(), all.switch.clone());
            let source = host.source();
            all.hosts.push(host);
            must(format!("netns add {name}"));
            must(format!("-n {name} link set lo up"));
            must(format!("-n {switch} link add v{number} type veth peer name eth0 netns {name}"));
            must(format!("-n {switch} link set v{number} master br0 up"));
            must(format!("-n {name} addr add {}/24 dev eth0", address(number)));
            must(format!("-n {name} addr add {source}/32 dev eth0"));
            must(format!("-n {name} link set eth0 up"));
            must(format!("-n {name} route replace 10.77.0.0/24 dev eth0 src {source}"));
        }
        let peers: Vec<String> =
            (1..=count).map(|number| format!("{}:{PORT}", address(number))).collect();
        (0..all.hosts.len()).for_each(|place| all.launch(place, &peers.join(",")));
        all
    }

    fn launch(&mut self, place: usize, peers: &str) {
        let number = self.hosts[place].number;
        let own = format!("{}:{PORT}", address(number));
        let data = self.dir.path().join(format!("d{number}"));
        let log = File::create(&self.hosts[place].log).expect("a log file");
        let mut command = self.within(place);
        command.args(["serve", "--listen", &own, "--peers", peers, "--reserve", "1MiB", "--data"]);
        command.arg(data).arg("--token-file").arg(self.dir.path().join("token"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.hosts[place].child = Some(child.expect("the node's process"));
    }

    /// This program, run at a host.
    fn within(&self, place: usize) -> Command {
        let mut command = kontiki("ip");
        command.args(["netns", "exec", &self.hosts[place].namespace, BINARY]);
        command.current_dir(self.dir.path());
        command
    }

    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }

    fn log(&self, place: usize) -> String {
        fs::read_to_string(&self.hosts[place].log).unwrap_or_default()
    }

    /// The place of the node that was last elected, once one was.
    pub(crate) fn leader(&self) -> usize {
        wait_for("a leader", || {
            let terms = |place: usize| {
                let log = self.log(place);
                let term = |line: &str| {
                    line.split_once("leads the cluster term=")?.1.trim().parse::<u64>().ok()
                };
                log.lines().filter_map(term).max()
            };
            let elected = (0..self.len()).filter_map(|place| Some((terms(place)?, place)));
            elected.max().map(|(_, place)| place)
        })
    }

    // ---- faults; each is over with its opposite ----

    /// Nothing comes to the host or goes from it.
    pub(crate) fn isolate(&self, place: usize) {
        self.switch_port(place, "nomaster");
    }

    pub(crate) fn join(&self, place: usize) {
        self.switch_port(place, "master br0");
    }

    fn switch_port(&self, place: usize, how: &str) {
        let number = self.hosts[place].number;
        ip(&format!("-n {} link set v{number} {how}", self.switch)).expect("a port of the switch");
    }

    /// What one host sends another is lost: it goes to a machine that is not there.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        let name = &self.hosts[from].namespace;
        for end in self.addresses(to) {
            let nowhere = "lladdr 02:00:00:00:00:99 dev eth0 nud permanent";
            ip(&format!("-n {name} neigh replace {end} {nowhere}")).expect("an address");
        }
    }

    pub(crate) fn heal(&self, from: usize, to: usize) {
        let name = &self.hosts[from].namespace;
        for end in self.addresses(to) {
            ip(&format!("-n {name} neigh del {end} dev eth0")).expect("an address");
        }
    }

    fn addresses(&self, place: usize) -> [String; 2] {
        [address(self.hosts[place].number), self.hosts[place].source()]
    }

    /// What is under way between hosts is forgotten, as by a gateway that was started again: packets
    /// of connections that are open are dropped without a word, new connections are as good as ever.
    pub(crate) fn forget_flows(&mut self) {
        for host in &mut self.hosts {
            let (name, old) = (host.namespace.clone(), host.source());
            host.forgotten += 1;
            let new = host.source();
            ip(&format!("-n {name} addr add {new}/32 dev eth0")).expect("a new address");
            ip(&format!("-n {name} route replace 10.77.0.0/24 dev eth0 src {new}")).expect("a way");
            ip(&format!("-n {name} addr del {old}/32 dev eth0")).expect("the old address");
        }
    }

    /// A client at a host that writes to its node, one write after the other, until it is dropped.
    pub(crate) fn writer(&self, place: usize) -> Writer {
        let own = format!("{}:{PORT}", address(self.hosts[place].number));
        let mut command = self.within(place);
        command.args(["cli", "--json", "--timeout-ms", "10000", "-a", &own, "--token-file"]);
        command.arg(self.dir.path().join("token"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("a client");
        let mut lines = child.stdin.take().expect("its input");
        let mut answers = BufReader::new(child.stdout.take().expect("its output"));
        let answered = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&answered);
        let thread = thread::spawn(move || {
            for n in 0_u64.. {
                let mut answer = String::new();
                let sent = writeln!(lines, "put writer/{place} {n}").and_then(|()| lines.flush());
                if sent.is_err() || answers.read_line(&mut answer).unwrap_or(0) == 0 {
                    return;
                }
                if answer.starts_with("{\"ok\":true") {
                    theirs.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                }
            }
        });
        Writer { child, answered, thread: Some(thread) }
    }
}

/// Where a host's node is reached.
fn address(number: u8) -> String {
    format!("10.77.0.{number}")
}

impl Host {
    /// From where it makes connections, until they are forgotten.
    fn source(&self) -> String {
        format!("10.77.0.{}", 10 * (self.forgotten + 1) + self.number)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for place in 0..self.len() {
            if let Some(mut child) = self.hosts[place].child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            if thread::panicking() {
                let log = self.log(place);
                let lines: Vec<&str> = log.lines().collect();
                let skip = lines.len().saturating_sub(LOG_LINES_SHOWN);
                eprintln!("--- log of node {} ({skip} lines left out)", place + 1);
                lines[skip..].iter().for_each(|line| eprintln!("{line}"));
            }
            let _ = ip(&format!("netns del {}", self.hosts[place].namespace));
        }
        let _ = ip(&format!("netns del {}", self.switch));
    }
}

/// See [`Hosts::writer`].
#[derive(Debug)]
pub(crate) struct Writer {
    child: Child,
    answered: Arc<Mutex<Vec<Instant>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Waits until a write is answered that was not before.
    pub(crate) fn goes_on(&self) {
        let begun = Instant::now();
        wait_for("a client is served", || self.last().filter(|at| *at > begun));
    }

    fn last(&self) -> Option<Instant> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }

    /// The longest time within these in which no write was answered.
    pub(crate) fn worst_gap(&self, from: Instant, to: Instant) -> Duration {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let within = answered.iter().copied().filter(|at| (from..=to).contains(at));
        let ends = within.chain([to]);
        let mut before = from;
        let gaps = ends.map(|at| at.duration_since(std::mem::replace(&mut before, at)));
        gaps.max().unwrap_or_default()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
