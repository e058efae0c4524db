//! Names to addresses, and addresses to connections, each within a time.
//!
//! The standard library resolves a name for as long as the system likes, which may be half a minute when
//! a name server does not answer. Here it happens on a thread of its own and the caller waits only as
//! long as it said. Callers that ask for a name which is being looked up already share that lookup, so a
//! resolver that hangs holds one thread for each name, and `LOOKUPS_MAX` in all: who asks for one more
//! name then is refused at once.
//!
//! Left out: a cache (the system has one), and dialing several addresses of a name at a time.

use super::descriptors::{RESERVE, Shortage};
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Names that are looked up at a time: more than a process has peers, few enough threads.
const LOOKUPS_MAX: usize = 32;

/// The shortest time that one address is given: the system takes zero for an error.
const CONNECT_MIN: Duration = Duration::from_millis(1);

const NO_ADDRESS: &str = "the name has no address";

static RESOLVER: Resolver = Resolver {
    lookups: Mutex::new(BTreeMap::new()),
    look_up: |name| Ok(name.to_socket_addrs()?.collect()),
};

/// The addresses of `address` (`HOST:PORT`), in the order in which they are to be tried; at least one.
/// An address of digits needs no lookup and no time.
///
/// # Errors
/// `TimedOut` when the lookup takes longer than `wait`, `ResourceBusy` when too many others do, `NotFound`
/// when the name has no address, or what the system says.
pub fn resolve(address: &str, wait: Duration) -> io::Result<Vec<SocketAddr>> {
    RESOLVER.resolve(address, wait)
}

/// Connects to the first of `addresses` that answers. Each gets an equal share of the time that is left
/// when its turn comes, so that one that does not answer leaves time for the others.
///
/// # Errors
/// When none answers: of several, all reasons with their addresses, under the kind of the last.
pub fn connect_any(addresses: &[SocketAddr], until: Instant) -> io::Result<TcpStream> {
    first_that(addresses, until, connect_one).map_err(|mut errors| {
        if errors.len() > 1 {
            let all: Vec<String> = errors.iter().map(|(at, e)| format!("{at}: {e}")).collect();
            let last = errors.last().map_or(io::ErrorKind::Other, |(_, e)| e.kind());
            return io::Error::new(last, all.join("; "));
        }
        let nowhere = || io::Error::new(io::ErrorKind::NotFound, NO_ADDRESS);
        errors.pop().map_or_else(nowhere, |(_, e)| e)
    })
}

/// Connects to one address.
///
/// # Errors
/// What the system says; `TimedOut` when it is silent until then.
pub fn connect_one(address: &SocketAddr, until: Instant) -> io::Result<TcpStream> {
    RESERVE.patiently(Some(until), || {
        let wait = until.saturating_duration_since(Instant::now());
        TcpStream::connect_timeout(address, wait.max(CONNECT_MIN))
    })
}

/// Resolves and connects within `wait`, of which the lookup may take half.
///
/// # Errors
/// As [`resolve`] and [`connect_any`].
pub fn connect(address: &str, wait: Duration) -> io::Result<TcpStream> {
    let until = Instant::now() + wait;
    connect_any(&resolve(address, wait / 2)?, until)
}

/// Tries the addresses in turn, each until its equal share of the time that is left is over.
///
/// # Errors
/// What each of them failed with.
pub fn first_that<T, E>(
    addresses: &[SocketAddr],
    until: Instant,
    mut attempt: impl FnMut(&SocketAddr, Instant) -> Result<T, E>,
) -> Result<T, Vec<(SocketAddr, E)>> {
    let mut errors = Vec::new();
    for (at, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let left = until.saturating_duration_since(now);
        let share = left / u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
        match attempt(address, now + share) {
            Ok(done) => return Ok(done),
            Err(e) => errors.push((*address, e)),
        }
    }
    Err(errors)
}

/// What a lookup gave; an error as its kind and words, for all who wait.
type Found = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

/// A lookup under way.
#[derive(Debug, Default)]
struct Lookup {
    found: Mutex<Option<Found>>,
    ended: Condvar,
}

/// Invariant: `lookups` has an entry for each thread that is running, and no other.
struct Resolver {
    lookups: Mutex<BTreeMap<String, Arc<Lookup>>>,
    look_up: fn(&str) -> io::Result<Vec<SocketAddr>>,
}

impl Resolver {
    fn resolve(&'static self, address: &str, wait: Duration) -> io::Result<Vec<SocketAddr>> {
        if let Ok(literal) = address.parse() {
            return Ok(vec![literal]);
        }
        let lookup = self.begin(address)?;
        let found = lock(&lookup.found);
        let (found, _) = lookup
            .ended
            .wait_timeout_while(found, wait, |found| found.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        match found.as_ref() {
            Some(Ok(addresses)) if addresses.is_empty() => {
                Err(io::Error::new(io::ErrorKind::NotFound, NO_ADDRESS))
            }
            Some(Ok(addresses)) => Ok(addresses.clone()),
            Some(Err((kind, words))) => Err(io::Error::new(*kind, words.clone())),
            None => {
                let words = format!("the name was not resolved within {} ms", wait.as_millis());
                Err(io::Error::new(io::ErrorKind::TimedOut, words))
            }
        }
    }

    /// The lookup of that name that is under way, or a new one.
    fn begin(&'static self, address: &str) -> io::Result<Arc<Lookup>> {
        let mut lookups = lock(&self.lookups);
        if let Some(under_way) = lookups.get(address) {
            return Ok(Arc::clone(under_way));
        }
        if lookups.len() >= LOOKUPS_MAX {
            let words = format!("{LOOKUPS_MAX} names are being resolved and none is answered");
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, words));
        }
        let lookup = Arc::new(Lookup::default());
        let (name, theirs) = (address.to_owned(), Arc::clone(&lookup));
        let resolver = thread::Builder::new().name("resolver".to_owned());
        let spawned = resolver.spawn(move || {
            let found = (self.look_up)(&name).map_err(|e| (e.kind(), e.to_string()));
            // Who comes from now on asks anew.
            lock(&self.lookups).remove(&name);
            *lock(&theirs.found) = Some(found);
            theirs.ended.notify_all();
        });
        spawned.inspect_err(|_| RESERVE.report(Shortage::Threads))?;
        // The thread needs the lock to leave, and so finds its entry.
        lookups.insert(address.to_owned(), Arc::clone(&lookup));
        Ok(lookup)
    }
}

/// Plain data stays usable whatever thread died.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Long enough that no slow machine fails a test; nothing waits for it.
    const PATIENT: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(20);

    fn resolver(look_up: fn(&str) -> io::Result<Vec<SocketAddr>>) -> &'static Resolver {
        Box::leak(Box::new(Resolver { lookups: Mutex::default(), look_up }))
    }

    #[test]
    fn digits_need_no_lookup() {
        // Neither family asks a name server, even when none can be asked any more.
        let broken = resolver(|name| Err(io::Error::other(format!("asked for {name}"))));
        for address in ["127.0.0.1:80", "[::1]:80"] {
            assert_eq!(broken.resolve(address, Duration::ZERO).unwrap().len(), 1);
        }
        assert_eq!(
            broken.resolve("host:80", PATIENT).unwrap_err().to_string(),
            "asked for host:80"
        );
    }

    #[test]
    fn names_give_all_their_addresses_or_a_reason() {
        // The local name by the system; a form that is none; a name without an address.
        assert!(resolve("localhost:80", PATIENT).unwrap().iter().all(|a| a.port() == 80));
        assert_eq!(resolve("no port", PATIENT).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let empty = resolver(|_| Ok(Vec::new()));
        assert_eq!(empty.resolve("a:1", PATIENT).unwrap_err().kind(), io::ErrorKind::NotFound);
        let two = resolver(|_| Ok(vec![([127, 0, 0, 2], 1).into(), ([127, 0, 0, 1], 1).into()]));
        let found: Vec<String> =
            two.resolve("a:1", PATIENT).unwrap().iter().map(SocketAddr::to_string).collect();
        assert_eq!(found, ["127.0.0.2:1", "127.0.0.1:1"]);
    }

    #[test]
    fn a_resolver_that_hangs_holds_one_thread_a_name_and_a_bound_of_them() {
        // The name server is gone. Every caller is told in time, however often it asks, and one name
        // that hangs keeps no other from being resolved.
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        static GATE: Mutex<()> = Mutex::new(());
        let hangs = resolver(|name| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            if name.starts_with("gone") {
                drop(lock(&GATE));
            }
            Ok(vec![([127, 0, 0, 1], 1).into()])
        });
        let closed = lock(&GATE);
        for _ in 0..3 * LOOKUPS_MAX {
            let error = hangs.resolve("gone:1", Duration::from_millis(1)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        assert_eq!(hangs.resolve("fine:1", PATIENT).unwrap().len(), 1);
        for n in 1..LOOKUPS_MAX {
            assert!(hangs.resolve(&format!("gone{n}:1"), SHORT).is_err());
        }
        let error = hangs.resolve("fine:1", PATIENT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(ASKED.load(Ordering::SeqCst) <= LOOKUPS_MAX + 1);
        // It is back, and so are the threads.
        drop(closed);
        assert_eq!(hangs.resolve("gone:1", PATIENT).unwrap().len(), 1);
    }

    #[test]
    fn every_address_of_a_name_gets_its_share_of_the_time() {
        // The first two do not answer, which takes each as long as it is given; the third does.
        let addresses: Vec<SocketAddr> = (1..=3).map(|n| ([127, 0, 0, n], 1).into()).collect();
        let begin = Instant::now();
        let mut given = Vec::new();
        let answered = first_that(&addresses, begin + PATIENT, |address, until| {
            given.push(until.saturating_duration_since(Instant::now()));
            if *address == addresses[2] { Ok(*address) } else { Err(()) }
        });
        assert_eq!(answered.unwrap(), addresses[2]);
        assert!(given[0] <= PATIENT / 3 && given[0] > PATIENT / 4, "{given:?}");
        assert!(given[1] <= PATIENT / 2 && given[2] > PATIENT / 2, "{given:?}");
    }

    #[test]
    fn a_name_whose_first_address_is_dead_is_reached_at_the_second() {
        // Nobody listens at the first one.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let alive = listener.local_addr().unwrap();
        let dead = {
            let gone = TcpListener::bind("127.0.0.1:0").unwrap();
            gone.local_addr().unwrap()
        };
        let stream = connect_any(&[dead, alive], Instant::now() + PATIENT).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), alive);
        let error = connect_any(&[dead, dead], Instant::now() + PATIENT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(error.to_string().matches(&dead.to_string()).count(), 2, "{error}");
        assert!(connect(&alive.to_string(), PATIENT).is_ok());
    }
}
