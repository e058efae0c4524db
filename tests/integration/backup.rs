//! A backup taken under load, refused when it is spoiled, and a new cluster that begins from it.

use crate::support::cluster::{BINARY, Cluster, Setup, flags, kontiki};
use crate::support::native::Native;
use crate::support::text::{Reply, Text};
use crate::support::{say, wait_for};
use kontiki::wire::client::Consistency;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Keys that are there before the backup begins.
const KEYS: usize = 3000;
const VALUE_BYTES: usize = 700;
/// Places at which a bit of the backup is turned over.
const FLIPS: u64 = 40;

fn cli(address: &str, words: &[&str]) -> Output {
    let mut command = kontiki(BINARY);
    command.args(["cli", "-a", address]).args(words).output().expect("kontiki cli")
}

/// The standard output of a command that must succeed.
fn done(address: &str, words: &[&str]) -> String {
    let ended = cli(address, words);
    assert!(ended.status.success(), "{words:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).expect("text")
}

/// Value and revision by key, as a node has them.
fn contents(address: &str) -> BTreeMap<Vec<u8>, (Vec<u8>, u64)> {
    let mut native = Native::new(address);
    let mut items = native.all("k", Consistency::Linearizable);
    items.extend(native.all("w", Consistency::Linearizable));
    items.into_iter().map(|item| (item.key, (item.value, item.revision))).collect()
}

/// A node that is started with this file says that it cannot, and makes nothing.
fn refused(file: &Path, dir: &Path, what: &str) {
    let data = dir.join("never");
    let listen = format!("127.0.0.1:{}", crate::support::cluster::free_ports(1)[0]);
    let ended = kontiki(BINARY)
        .args(["serve", "--listen", &listen, "--data"])
        .arg(&data)
        .arg("--restore")
        .arg(file)
        .output()
        .expect("kontiki serve");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(3), "{what}: {said}");
    assert!(
        said.contains("cannot restore") && said.contains("damaged at offset"),
        "{what}: {said}"
    );
    assert!(!data.exists(), "{what}: nothing is made");
}

#[test]
fn a_backup_under_load_begins_a_new_cluster_whose_revisions_go_on() {
    // A writer never stops. The backup holds everything that was answered before, nothing twice and
    // nothing half; files that were cut off or spoiled are refused before anything is made; a new
    // cluster of three begins from the whole one, and so does one of one, and both go on with higher
    // revisions. The same command line again goes on with what is on disk.
    let aside = tempfile::tempdir().expect("a directory");
    let file = aside.path().join("all.backup");
    let file_name = file.display().to_string();
    let flags = flags("--memtable 1MiB --wal-limit 1MiB --max-batch 64KiB --max-value 32KiB");
    let cluster = Cluster::with(3, Setup { flags: flags.clone(), ..Setup::default() });
    let address = cluster.nodes[0].address.clone();
    let mut text = Text::connect(&address).expect("a connection");
    for n in 0..KEYS {
        let line = format!("SET k{n:05} {n}-{}", "v".repeat(VALUE_BYTES));
        assert_eq!(text.line(&line).expect("a reply"), Reply::ok());
    }
    assert_eq!(text.line("DEL k00007").expect("a reply"), Reply::Integer(1));
    let before = contents(&address);
    let stop = AtomicBool::new(false);
    let (revision, written) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let (a, b) = (format!("SET w-a {n}"), format!("SET k00009 {n}"));
                assert_eq!(text.line(&a).expect("a reply"), Reply::ok());
                assert_eq!(text.line(&b).expect("a reply"), Reply::ok());
                n += 1;
            }
            n
        });
        let said = done(&address, &["--json", "backup", &file_name]);
        stop.store(true, Ordering::Relaxed);
        let revision = said.split("\"revision\":").nth(1).expect("a revision");
        let digits: String = revision.chars().take_while(char::is_ascii_digit).collect();
        (digits.parse::<u64>().expect("a number"), writer.join().expect("the writer"))
    });
    let again = cli(&address, &["backup", &file_name]);
    assert_eq!(again.status.code(), Some(2), "a backup replaces nothing");

    // All members cut their logs, and say so.
    assert_eq!(done(&address, &["compact"]), "OK\n");
    for node in &cluster.nodes {
        let mut native = Native::new(&node.address);
        let status = native.status().expect("a status");
        assert!(status.first_index > before.len() as u64 / 2, "cut at {}", status.first_index);
    }
    drop(cluster);

    let bytes = fs::read(&file).expect("the backup");
    let spoiled = aside.path().join("spoiled");
    for cut in [0, 1, 30, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&spoiled, &bytes[..cut]).expect("a file");
        refused(&spoiled, aside.path(), &format!("cut to {cut} bytes"));
    }
    for flip in 0..FLIPS {
        let at = (flip * (bytes.len() as u64 - 1) / (FLIPS - 1)) as usize;
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (flip % 8);
        fs::write(&spoiled, &bytes).expect("a file");
        refused(&spoiled, aside.path(), &format!("a bit at {at}"));
    }

    for nodes in [3, 1] {
        let mut flags = flags.clone();
        flags.extend(["--restore".to_owned(), file_name.clone()]);
        let mut cluster = Cluster::with(nodes, Setup { flags, ..Setup::default() });
        let restored = contents(&cluster.nodes[nodes - 1].address);
        for (key, (value, at)) in &before {
            if key != b"k00009" && key != b"w-a" {
                assert_eq!(
                    restored.get(key),
                    Some(&(value.clone(), *at)),
                    "{}",
                    key.escape_ascii()
                );
            }
        }
        assert!(!restored.contains_key(&b"k00007"[..]), "what was deleted stays so");
        assert!(restored.values().all(|(_, at)| *at <= revision), "one cut");
        let number = |key: &[u8]| -> Option<(u64, u64)> {
            let (value, at) = restored.get(key)?;
            Some((String::from_utf8_lossy(value).parse().ok()?, *at))
        };
        if let (Some((a, at_a)), Some((b, at_b))) = (number(b"w-a"), number(b"k00009")) {
            assert!(a == b && at_a < at_b || a == b + 1 && at_b < at_a, "{a}@{at_a} {b}@{at_b}");
        }
        let said = done(&cluster.nodes[0].address, &["put", "k-new", "x"]);
        let new: u64 = said.trim_start_matches("OK ").trim().parse().expect("a revision");
        assert!(new > revision, "{new} is behind {revision}");
        (0..nodes).for_each(|node| cluster.kill(node));
        if nodes == 1 {
            // The file is not needed any more.
            fs::rename(&file, aside.path().join("elsewhere")).expect("renamed");
        }
        (0..nodes).for_each(|node| cluster.relaunch(node));
        (0..nodes).for_each(|node| cluster.wait_serving(node));
        let after = contents(&cluster.nodes[0].address);
        assert_eq!(after.len(), restored.len() + 1);
        wait_for("every node has it", || {
            let all = cluster.nodes.iter().all(|n| contents(&n.address) == after);
            all.then_some(())
        });
    }
    say(
        "backup",
        &format!("{} bytes up to revision {revision}, {written} writes meanwhile", bytes.len()),
    );
}

#[cfg(unix)]
#[test]
fn what_a_node_and_a_backup_make_is_for_their_owner_alone() {
    // Everything that clients store lies in these files: log, tables, identity, lock, backup.
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).expect("its mode").permissions().mode();
    let setup = Setup { flags: flags("--memtable 1MiB"), ..Setup::default() };
    let mut cluster = Cluster::with(1, setup);
    let (address, data) = (cluster.nodes[0].address.clone(), cluster.nodes[0].data.clone());
    let mut client = Text::connect(&address).expect("a connection");
    for n in 0..200 {
        let key = format!("key {n}");
        let reply = client.command(&[b"SET", key.as_bytes(), &[b'x'; 20_000]]);
        assert_eq!(reply.expect("a reply"), Reply::ok());
    }
    let backup = cluster.dir.path().join("backup");
    done(&address, &["backup", &backup.display().to_string()]);
    // Tables come and go while it runs.
    cluster.kill(0);
    let files = crate::support::contents(&data);
    for name in ["lock", "identity-", "log-", "table-", "manifest-"] {
        let is =
            |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(name));
        assert!(files.keys().any(|path| is(path)), "no {name} among {:?}", files.keys());
    }
    let dirs = files.keys().filter_map(|path| path.parent());
    for path in dirs.chain(files.keys().map(std::path::PathBuf::as_path)).chain([&*backup]) {
        assert_eq!(mode(path) & 0o077, 0, "{}: {:o}", path.display(), mode(path));
    }
}
