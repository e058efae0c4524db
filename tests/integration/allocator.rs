//! A node sets the C library's allocator by beginning anew, once, and is the same process for whoever started it.

use crate::support::cluster::{BINARY, Cluster, Setup, flags, free_ports, kontiki};
use crate::support::{http, say, wait_for};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;

const LIMITS: [&str; 2] = ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"];
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// What a process was begun with, one after the other; none where the system does not tell.
fn begun_with(pid: u32, what: &str) -> Option<Vec<OsString>> {
    let bytes = fs::read(format!("/proc/{pid}/{what}")).ok()?;
    let words = bytes.strip_suffix(&[0]).unwrap_or(&bytes).split(|byte| *byte == 0);
    Some(words.map(|word| OsString::from_vec(word.to_vec())).collect())
}

/// The allocator's limits among its variables, as `NAME=BYTES`.
fn limits(pid: u32) -> Option<Vec<String>> {
    let all = begun_with(pid, "environ")?;
    let mut all: Vec<String> = all.iter().map(|pair| pair.to_string_lossy().into_owned()).collect();
    all.retain(|pair| LIMITS.iter().any(|name| pair.starts_with(name)));
    all.sort();
    Some(all)
}

#[test]
fn a_node_begins_anew_once_and_is_the_same_process() {
    // It is started under a name that is no text, in a directory of its own, with what it writes in a file. The process
    // that was started serves, with the variable, and name, words, directory and file are what they were.
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log");
    let [port] = free_ports(1)[..] else { panic!("a port") };
    let address = format!("127.0.0.1:{port}");
    let name = OsStr::from_bytes(b"ko\xffntiki");
    let words = ["serve", "--data", "data", "--listen", &address];
    let mut child = kontiki(BINARY)
        .arg0(name)
        .args(words)
        .current_dir(dir.path())
        .env_remove(LIMITS[0])
        .env_remove(LIMITS[1])
        .env_remove("MALLOC_SET_BY_KONTIKI")
        .env_remove("GLIBC_TUNABLES")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).expect("a file"))
        .spawn()
        .expect("a process");
    let pid = child.id();
    wait_for("it serves", || (http::status(&address, "/health") == Some(200)).then_some(()));
    let (set, begun) = (limits(pid), begun_with(pid, "cmdline"));
    let (cwd, stderr) = (format!("/proc/{pid}/cwd"), format!("/proc/{pid}/fd/2"));
    let (cwd, stderr) = (fs::read_link(cwd).ok(), fs::read_link(stderr).ok());
    child.kill().expect("it runs");
    child.wait().expect("its end");
    assert!(dir.path().join("data").is_dir());
    let Some(set) = set else { return say("allocator", "skipped: there is no /proc") };
    assert_eq!(set, ["MALLOC_MMAP_THRESHOLD_=1048576", "MALLOC_TRIM_THRESHOLD_=524288"]);
    let mut expected: Vec<&OsStr> = vec![name];
    expected.extend(words.iter().map(OsStr::new));
    assert_eq!(begun.expect("as before"), expected);
    let real = |path: &Path| path.canonicalize().expect("a path");
    assert_eq!((cwd, stderr), (Some(real(dir.path())), Some(real(&log))));
}

#[test]
fn what_a_person_has_set_stays() {
    let wrapper = vec!["env".to_owned(), "MALLOC_MMAP_THRESHOLD_=65536".to_owned()];
    let cluster = Cluster::with(1, Setup { wrapper, ..Setup::default() });
    let Some(set) = limits(cluster.pid(0)) else {
        return say("allocator", "skipped: there is no /proc");
    };
    assert_eq!(set, ["MALLOC_MMAP_THRESHOLD_=65536"]);
}

#[test]
fn a_node_that_cannot_begin_anew_goes_on() {
    // It runs by a loader, which is what the system names as the program: that is not to be executed in its place.
    // The node serves, and says why.
    if !Path::new(LOADER).exists() {
        return say("allocator", "skipped: no loader is where it is looked for");
    }
    let wrapper = vec![LOADER.to_owned()];
    let setup = Setup { wrapper, flags: flags("--log-level debug"), ..Setup::default() };
    let cluster = Cluster::with(1, setup);
    assert!(cluster.log(0).contains("the allocator could not be set"), "{}", cluster.log(0));
    assert_eq!(limits(cluster.pid(0)).unwrap_or_default(), [""; 0]);
}
