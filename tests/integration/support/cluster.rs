//! A cluster of real processes in a directory of its own, which nothing outlives.

use super::proxy::Proxy;
use super::{http, wait_for};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use tempfile::TempDir;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_kontiki");
/// Lines of each node's log that are shown when a test fails.
const LOG_LINES_SHOWN: usize = 60;
/// Attempts to start on ports that were free a moment ago.
const PORT_ATTEMPTS: usize = 5;

/// One cluster at a time: tests that measure time or kill leaders must not starve one another.
static ONE: Mutex<()> = Mutex::new(());

/// How a cluster is to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// Further flags of every node.
    pub(crate) flags: Vec<String>,
    /// Where the data directories are, if not beside the logs.
    pub(crate) data: Option<PathBuf>,
    /// Words in front of the command of each node, `%` being its number.
    pub(crate) wrapper: Vec<String>,
    /// A [`Proxy`] stands in front of each node, and the others know its address only.
    pub(crate) proxies: bool,
    /// By this name the nodes know one another, in place of their address.
    pub(crate) name: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) address: String,
    pub(crate) data: PathBuf,
    pub(crate) log: PathBuf,
    /// What stands in front of it.
    pub(crate) proxy: Option<Proxy>,
    /// Where the others reach it, unless that is its address.
    advertise: Option<String>,
    /// What it is to do at the very first start, and may say at any later one.
    begins: Vec<String>,
    /// Words in front of its command, in place of those of the setup.
    wrapper: Vec<String>,
    child: Option<Child>,
}

/// Nodes in the order of their ids, which are 1 more than their places.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) dir: TempDir,
    setup: Setup,
    /// None for a cluster beside another one.
    _one: Option<MutexGuard<'static, ()>>,
}

/// Flags as they are typed.
pub(crate) fn flags(typed: &str) -> Vec<String> {
    typed.split_whitespace().map(str::to_owned).collect()
}

/// Ports that nobody uses at this moment, ascending.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    let listen = |_| TcpListener::bind("127.0.0.1:0").expect("a free port");
    let held: Vec<TcpListener> = (0..count).map(listen).collect();
    let mut ports: Vec<u16> =
        held.iter().map(|l| l.local_addr().expect("its address").port()).collect();
    ports.sort_unstable();
    ports
}

/// Keeps other clusters from starting, for tests that run processes of their own.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The command for this binary without what the environment would add.
pub(crate) fn kontiki(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KONTIKI_") {
            command.env_remove(name);
        }
    }
    command
}

impl Cluster {
    pub(crate) fn start(count: usize) -> Cluster {
        Cluster::with(count, Setup::default())
    }

    /// Starts a cluster and waits until each node serves.
    pub(crate) fn with(count: usize, setup: Setup) -> Cluster {
        Cluster::begin(count, setup, Some(alone()))
    }

    /// Another cluster beside one that runs.
    pub(crate) fn beside(_other: &Cluster, count: usize) -> Cluster {
        Cluster::begin(count, Setup::default(), None)
    }

    fn begin(count: usize, setup: Setup, one: Option<MutexGuard<'static, ()>>) -> Cluster {
        let dir = tempfile::Builder::new().prefix("kontiki-test-").tempdir().expect("a directory");
        let mut cluster = Cluster { nodes: Vec::new(), dir, setup, _one: one };
        for _ in 0..PORT_ATTEMPTS {
            let addresses: Vec<String> =
                free_ports(count).iter().map(|port| format!("127.0.0.1:{port}")).collect();
            let proxies = if cluster.setup.proxies { Proxy::before(&addresses) } else { vec![] };
            cluster.nodes = addresses
                .into_iter()
                .enumerate()
                .map(|(at, address)| {
                    let port = address.rsplit(':').next().expect("a port");
                    let proxy = proxies.get(at).cloned();
                    let name = cluster.setup.name.as_ref().map(|name| format!("{name}:{port}"));
                    Node {
                        advertise: proxy.as_ref().map(|p| p.address.clone()).or(name),
                        proxy,
                        data: cluster.data().join(port),
                        log: cluster.dir.path().join(format!("n{}.log", at + 1)),
                        begins: Vec::new(),
                        wrapper: cluster.wrapper_of(at),
                        child: None,
                        address,
                    }
                })
                .collect();
            let known = |node: &Node| node.advertise.clone().unwrap_or(node.address.clone());
            let all = cluster.nodes.iter().map(known).collect::<Vec<_>>().join(",");
            let begins = |node: &mut Node| node.begins = vec!["--peers".to_owned(), all.clone()];
            cluster.nodes.iter_mut().for_each(begins);
            (0..count).for_each(|node| cluster.launch(node));
            if cluster.all_serve_unless_a_port_was_taken() {
                return cluster;
            }
            (0..count).for_each(|node| cluster.kill(node));
        }
        panic!("somebody took the ports, {PORT_ATTEMPTS} times");
    }

    fn wrapper_of(&self, node: usize) -> Vec<String> {
        self.setup.wrapper.iter().map(|w| w.replace('%', &(node + 1).to_string())).collect()
    }

    fn data(&self) -> &Path {
        self.setup.data.as_deref().unwrap_or(self.dir.path())
    }

    fn all_serve_unless_a_port_was_taken(&mut self) -> bool {
        let taken = |log: &Path| fs::read_to_string(log).is_ok_and(|t| t.contains("cannot listen"));
        for node in 0..self.nodes.len() {
            let serves = wait_for("each node serves", || {
                let gone = self.ended(node);
                let node = &self.nodes[node];
                assert!(!gone || taken(&node.log), "a node ended; see its log below");
                let serves = http::status(&node.address, "/health") == Some(200);
                if gone { Some(false) } else { serves.then_some(true) }
            });
            if !serves {
                return false;
            }
        }
        true
    }

    /// Starts a new node that asks those that run to take it in; gives its place.
    pub(crate) fn join(&mut self) -> usize {
        self.join_under(None)
    }

    /// The same with these words in front of its command.
    pub(crate) fn join_under(&mut self, wrapper: Option<Vec<String>>) -> usize {
        let port = free_ports(1)[0];
        let place = self.nodes.len();
        let running = self.nodes.iter().filter(|node| node.child.is_some());
        let cluster: Vec<String> = running.map(|node| node.address.clone()).collect();
        self.nodes.push(Node {
            address: format!("127.0.0.1:{port}"),
            data: self.data().join(format!("{port}")),
            log: self.dir.path().join(format!("n{}.log", place + 1)),
            proxy: None,
            advertise: None,
            begins: vec!["--join".to_owned(), cluster.join(",")],
            wrapper: wrapper.unwrap_or_else(|| self.wrapper_of(place)),
            child: None,
        });
        self.launch(place);
        place
    }

    /// Starts a node with other words: `--join A,B`, say, or none.
    pub(crate) fn relaunch_with(&mut self, node: usize, begins: &str) {
        self.nodes[node].begins = flags(begins);
        self.relaunch(node);
    }

    /// Waits until the node's process has ended by itself; gives its exit code.
    pub(crate) fn wait_ended(&mut self, node: usize) -> Option<i32> {
        let child = self.nodes[node].child.as_mut().expect("a node that was started");
        wait_for("the node ends", || child.try_wait().expect("its state")).code()
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// The words of a node's command line.
    pub(crate) fn words(&self, node: usize) -> Vec<String> {
        let it = &self.nodes[node];
        let data = it.data.display().to_string();
        let mut words: Vec<String> =
            ["serve", "--data", &data, "--listen", &it.address].map(str::to_owned).to_vec();
        words.extend(it.begins.iter().cloned());
        if let Some(advertise) = &it.advertise {
            words.extend(["--advertise", advertise].map(str::to_owned));
        }
        if !self.setup.flags.iter().any(|flag| flag == "--reserve") {
            // Tests are many, and what each of them writes is in the way of the others.
            words.extend(["--reserve", "1MiB"].map(str::to_owned));
        }
        words.extend(self.setup.flags.iter().cloned());
        words
    }

    fn launch(&mut self, node: usize) {
        let mut command = self.nodes[node].wrapper.clone();
        command.push(BINARY.to_owned());
        command.extend(self.words(node));
        let it = &mut self.nodes[node];
        let log = File::options().create(true).append(true).open(&it.log).expect("a log file");
        let child = kontiki(&command[0])
            .args(&command[1..])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the node's process");
        it.child = Some(child);
    }

    /// Whether the node's process has ended by itself.
    pub(crate) fn ended(&mut self, node: usize) -> bool {
        let child = self.nodes[node].child.as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    pub(crate) fn pid(&self, node: usize) -> u32 {
        self.nodes[node].child.as_ref().expect("a running node").id()
    }

    /// SIGKILL, and the wait for its end.
    pub(crate) fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.nodes[node].child.take() {
            // It may have ended already, which `wait` reports just as well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a node that was killed, and waits until it serves. It needs a majority for that.
    pub(crate) fn restart(&mut self, node: usize) {
        self.relaunch(node);
        self.wait_serving(node);
    }

    /// Starts a node that was killed.
    pub(crate) fn relaunch(&mut self, node: usize) {
        self.kill(node);
        self.launch(node);
    }

    pub(crate) fn wait_serving(&mut self, node: usize) {
        wait_for("the node serves", || {
            assert!(!self.ended(node), "node {} ended; see its log below", node + 1);
            (http::status(&self.nodes[node].address, "/health") == Some(200)).then_some(())
        });
    }

    /// The place of the node that leads, once one does.
    pub(crate) fn leader(&self) -> usize {
        wait_for("a leader", || {
            let leads = |node: &Node| http::status(&node.address, "/health/leader") == Some(200);
            self.nodes.iter().position(|node| node.child.is_some() && leads(node))
        })
    }

    /// A place of a node that runs and does not lead.
    pub(crate) fn follower(&self) -> usize {
        let leader = self.leader();
        (0..self.nodes.len()).find(|&n| n != leader && self.nodes[n].child.is_some()).expect("one")
    }

    /// The proxy in front of a node.
    pub(crate) fn proxy(&self, node: usize) -> &Proxy {
        self.nodes[node].proxy.as_ref().expect("a cluster with proxies")
    }

    /// How often a node was elected so far.
    pub(crate) fn elections(&self) -> usize {
        (0..self.nodes.len()).map(|node| self.log(node).matches("leads the cluster").count()).sum()
    }

    /// Runs `kontiki cli` on all nodes' addresses.
    pub(crate) fn cli(&self) -> Command {
        let mut command = kontiki(BINARY);
        command.args(["cli", "-a", &self.addresses().join(",")]).current_dir(self.dir.path());
        command
    }

    pub(crate) fn log(&self, node: usize) -> String {
        fs::read_to_string(&self.nodes[node].log).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..self.nodes.len()).for_each(|node| self.kill(node));
        if thread::panicking() {
            for node in 0..self.nodes.len() {
                let log = self.log(node);
                let lines: Vec<&str> = log.lines().collect();
                let skip = lines.len().saturating_sub(LOG_LINES_SHOWN);
                eprintln!("--- log of node {} ({} lines left out)", node + 1, skip);
                lines[skip..].iter().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}
