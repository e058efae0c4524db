//! Floods of every kind at a real node: what they cost it, at the peak and after.

use crate::support::cluster::{BINARY, Cluster, Setup, flags, kontiki};
use crate::support::text::{Reply, Text, array};
use crate::support::{http, process, say, wait_for};
use kontiki::client::Connection;
use kontiki::kv::{Query, Range};
use kontiki::wire::client::{Call, Consistency, Request};
use kontiki::wire::frame::PREAMBLE;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const TOKEN: &str = "correct horse battery staple";
/// Connections of a flood at a time.
const CONNECTIONS: usize = 150;
/// How long each flood is kept up.
const TIME: Duration = Duration::from_secs(2);
/// The value that is asked for again and again.
const LARGE_BYTES: usize = 512 << 10;
/// Lines that floods of one kind may cause, bytes: a ration of lines a second each.
const LOG_BYTES_MAX: u64 = 32 << 10;
/// Most memory at any time, bytes: budgets for memtables and cache (none is full here), what waits to be written to
/// slow clients, and buffers.
const RESIDENT_BYTES_MAX: u64 = 800 << 20;
/// What may stay of it when a flood is over, beside one and a half times what there was before: memtables of 4 MiB, of
/// which there is one at one moment and up to four at another, whatever was written.
const STAYS_BYTES_MAX: u64 = 16 << 20;
/// The longest that a polite client may wait for one write meanwhile.
const LATENCY_MAX: Duration = Duration::from_secs(2);

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
struct Holds {
    resident: u64,
    threads: u64,
    descriptors: u64,
}

/// None where the system does not tell.
fn holds(pid: u32) -> Option<Holds> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    let (resident, threads) = (process::resident(pid)?, process::status(pid, "Threads:")?);
    Some(Holds { resident, threads, descriptors })
}

impl Holds {
    fn most(self, other: Holds) -> Holds {
        Holds {
            resident: self.resident.max(other.resident),
            threads: self.threads.max(other.threads),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

impl std::fmt::Display for Holds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Holds { resident, threads, descriptors } = self;
        write!(f, "{:>4} MiB {threads:>4} threads {descriptors:>4} descriptors", resident >> 20)
    }
}

/// One that has shown the token.
fn text(address: &str) -> Option<Text> {
    let mut client = Text::connect(address).ok()?;
    let told = client.command(&[b"AUTH", TOKEN.as_bytes()]).ok()?;
    (told == Reply::ok()).then_some(())?;
    Some(client)
}

/// Connects, and sends these bytes once.
fn sent(address: &str, bytes: &[u8]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_write_timeout(Some(Duration::from_millis(200))).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
    stream.write_all(bytes).ok()?;
    Some(stream)
}

/// Sends until nothing more is taken, and reads nothing.
fn stuff(mut stream: TcpStream, bytes: &[u8]) -> Option<TcpStream> {
    stream.set_write_timeout(Some(Duration::from_millis(200))).ok()?;
    let many = bytes.repeat(1 + (64 << 10) / bytes.len());
    for _ in 0..100 {
        match stream.write(&many) {
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(_) => return None,
        }
    }
    Some(stream)
}

/// A client's connection in the native dialect.
fn native(address: &str) -> Option<Connection> {
    Connection::dial(address, TOKEN.as_bytes(), 0, Duration::from_secs(2)).ok()
}

/// One member of a flood: does what it does once, and gives what is to be held on to.
type Flood = fn(&str) -> Option<Box<dyn std::any::Any>>;

/// Each kind, by name; `held` ones keep their connections until it is over.
const KINDS: [(&str, bool, Flood); 10] = [
    ("silence", true, |a| Some(Box::new(TcpStream::connect(a).ok()?))),
    ("half a word", true, |a| Some(Box::new(sent(a, b"*3\r\n$3\r\nSE")?))),
    ("no frames", false, |a| {
        let mut stream = sent(a, &[&PREAMBLE[..], &[0xee; 600]].concat())?;
        let _ = stream.read(&mut [0; 64]);
        Some(Box::new(()))
    }),
    ("wrong tokens", true, |a| Some(Box::new(sent(a, &b"AUTH guess\r\n".repeat(100))?))),
    ("web pages", false, |a| {
        let page = b"GET /health HTTP/1.1\r\nHost: evil\r\n\r\nGET /metrics HTTP/1.1\r\nHost: evil\r\n\r\n";
        let mut stream = sent(a, &page.repeat(50))?;
        let _ = stream.read(&mut [0; 4096]);
        Some(Box::new(()))
    }),
    ("foreign commands", false, |a| {
        let mut stream = sent(a, b"GET a\r\nPOST / HTTP/1.1\r\nNONSENSE\r\n")?;
        let _ = stream.read(&mut [0; 4096]);
        Some(Box::new(()))
    }),
    ("never reads large values", true, |a| {
        Some(Box::new(stuff(text(a)?.stream, &array(&[b"GET", b"large"]))?))
    }),
    ("never reads answers to writes", true, |a| {
        Some(Box::new(stuff(text(a)?.stream, &array(&[b"SET", b"flood", b"value"]))?))
    }),
    ("many reads on each connection", true, |a| {
        let mut client = text(a)?;
        client.stream.write_all(&array(&[b"GET", b"key1"]).repeat(100)).ok()?;
        Some(Box::new(client))
    }),
    ("asks for counts and leaves", false, |a| {
        let mut client = native(a)?;
        let all = Range { count_only: true, ..Range::default() };
        for _ in 0..200 {
            let query = Query::Range(all.clone());
            let call = Call::Query { query, consistency: Consistency::Stale };
            client.send(&mut Request { id: 0, deadline_ms: 0, call }).ok()?;
        }
        client.flush(Instant::now() + Duration::from_millis(200)).ok()?;
        // As many a second as others of these floods.
        thread::sleep(Duration::from_millis(20));
        Some(Box::new(()))
    }),
];

#[test]
fn floods_cost_a_bounded_amount_and_give_it_back() {
    // Three nodes with a token and some data. Clients of one kind after the other come in numbers, beside a polite
    // one that writes all the while; then a load of twice what the nodes can do. What the leader holds is looked at
    // before, at the peak, and when they have left.
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    fs::write(&file, format!("{TOKEN}\n")).expect("the token");
    let token = vec!["--token-file".to_owned(), file.display().to_string()];
    // Small memtables and cache, so that what they hold at the moment is no matter.
    let mut all = token.clone();
    all.extend(flags("--memtable 4MiB --cache 4MiB"));
    let cluster = Cluster::with(3, Setup { flags: all, ..Setup::default() });
    let leader = &cluster.nodes[cluster.leader()];
    let address = leader.address.clone();
    let pid = cluster.pid(cluster.leader());
    let mut client = text(&address).expect("a client");
    let large = vec![b'x'; LARGE_BYTES];
    assert_eq!(client.command(&[b"SET", b"large", &large]).unwrap(), Reply::ok());
    for n in 0..200 {
        assert_eq!(client.line(&format!("SET key{n} value")).unwrap(), Reply::ok());
    }
    // What a node that is used holds: full memtables, and the heaps of threads that were there.
    overload(&address, &token);
    let Some(before) = holds(pid) else {
        return say("floods", "skipped: this system does not say what a process holds");
    };
    say("floods", &format!("{:32} {before}", "before"));
    let log_bytes = || fs::metadata(&leader.log).map_or(0, |log| log.len());
    for (name, held, flood) in KINDS {
        let log_before = log_bytes();
        let (peak, longest) = beside(pid, &address, || {
            let until = Instant::now() + TIME;
            let work = || {
                let mut kept = Vec::new();
                while Instant::now() < until {
                    let got = flood(&address);
                    if held {
                        kept.extend(got);
                        if kept.len() * 10 >= CONNECTIONS {
                            thread::sleep(Duration::from_millis(20));
                            kept.truncate(CONNECTIONS / 10);
                        }
                    }
                }
            };
            thread::scope(|scope| (0..10).for_each(|_| drop(scope.spawn(work))));
        });
        let said = log_bytes() - log_before;
        say(
            "floods",
            &format!("{name:32} {peak} {said:>6} bytes of log, a write took at most {longest:?}"),
        );
        say("floods", &format!("{:32} {}", "", given_back(name, pid, before)));
        assert!(said <= LOG_BYTES_MAX, "{name}: {said} bytes of log");
        assert!(peak.resident <= RESIDENT_BYTES_MAX, "{name}: {peak}");
        assert!(longest <= LATENCY_MAX, "{name}: {longest:?}");
    }
    let (peak, longest) = beside(pid, &address, || overload(&address, &token));
    say("floods", &format!("{:32} {peak} a write took at most {longest:?}", "twice the load"));
    say("floods", &format!("{:32} {}", "", given_back("twice the load", pid, before)));
    assert_eq!(http::status(&address, "/health"), Some(200));
}

/// Waits until a flood's threads and descriptors are gone, and its memory; what the process holds then.
fn given_back(name: &str, pid: u32, before: Holds) -> Holds {
    let most = before.resident * 3 / 2 + STAYS_BYTES_MAX;
    let mut now = Holds::default();
    wait_for(&format!("what {name:?} took is given back: {before} before"), || {
        now = holds(pid).expect("it runs");
        let same = now.threads <= before.threads + 4 && now.descriptors <= before.descriptors + 8;
        (same && now.resident <= most).then_some(())
    });
    now
}

/// Runs a flood beside a polite client; the most that the process held, and the longest that a write took.
fn beside(pid: u32, address: &str, flood: impl FnOnce()) -> (Holds, Duration) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = Holds::default();
            while !over.load(Ordering::Relaxed) {
                peak = peak.most(holds(pid).expect("it runs"));
                thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        let polite = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            let mut client = text(address).expect("a place");
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let told = client.line("SET polite 1").expect("an answer");
                assert!(told == Reply::ok() || told.is_error("TRYAGAIN"), "{told:?}");
                longest = longest.max(begun.elapsed());
            }
            longest
        });
        flood();
        over.store(true, Ordering::Relaxed);
        (watch.join().expect("the watch"), polite.join().expect("the polite client"))
    })
}

/// `kontiki bench` at more than any machine here can do, many requests under way on each connection.
fn overload(address: &str, token: &[String]) {
    let rate = ["--rate", "200000", "--pipeline", "1024", "--clients", "16", "--seconds", "3"];
    let mut command = kontiki(BINARY);
    command.args(["bench", "-a", address]).args(rate).args(token);
    let ran = command.stdin(Stdio::null()).output().expect("kontiki bench");
    for line in String::from_utf8_lossy(&ran.stdout).lines() {
        say("floods", line);
    }
}
