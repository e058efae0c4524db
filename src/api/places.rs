//! Which connection has a place at a node, and which gives its own up.
//!
//! A node serves so many connections of clients. When all places are taken and one more comes, the one that has
//! shown least goes: a connection is ranked by what it has shown of itself ([`Rank`]), and among equals the
//! one that has been idle longest goes first. One that has shown the token, or is in use, gives its place to
//! nobody. If all are such, the newcomer is *over the cap*: it is heard out, and served if it is another node or
//! only asks how this one is; else it is told why not. Those places are few ([`OVER_CAP_MAX`]) and there is
//! always one: the one that has been idle longest goes.
//!
//! Connections with other nodes count for nothing here and never go.
//!
//! When the machine has run out of descriptors or threads, the cap was too high for it ([`Places::relieve`]): the
//! least deserving go, whoever they are, and the cap stays as low as that for a while.
//!
//! [`Budget`] is how the descriptors of a process are shared out at the start.
//!
//! Left out: sockets and threads, which are the server's. It gives a handle to each connection and closes
//! what is handed back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// Connections beyond the cap that are heard out at a time: more than a cluster has members.
pub const OVER_CAP_MAX: usize = 32;
/// A client without the token that was answered, and then was idle for so long, gives its place to a newcomer.
/// Longer than any request takes.
const IN_USE_US: u64 = 60_000_000;
/// Connections that go at a time when the machine has run out of something: room for what the node itself
/// opens next, and few beside what a machine can have.
const SCARCE_STEP: usize = 16;
/// When closing the least deserving was not enough, or for so long after it, clients go too, and not strangers
/// only.
const AGAIN_US: u64 = 10_000_000;
/// The cap is not lowered below this.
const CONNECTIONS_MIN: usize = 8;
/// How long a lowered cap stays: what was scarce may be there again, and if not, the next shortage
/// costs idle connections only.
const LOWERED_US: u64 = 60_000_000;

/// What a connection has shown of itself, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Nothing.
    Silent,
    /// Bytes, and neither the token nor a whole request.
    Unproven,
    /// Where no token is asked for, or none can be shown: a request that was answered.
    Served,
    /// The token.
    Authenticated,
    /// It is another node.
    Node,
}

const RANKS: [Rank; 5] =
    [Rank::Silent, Rank::Unproven, Rank::Served, Rank::Authenticated, Rank::Node];

/// What is known of a connection; written by its owner, read by [`Places`]. Nothing is ordered by it.
#[derive(Debug)]
pub struct Place {
    rank: AtomicU8,
    busy: AtomicBool,
    active_us: AtomicU64,
}

impl Place {
    fn new(now_us: u64) -> Place {
        let (rank, busy) = (AtomicU8::new(Rank::Silent as u8), AtomicBool::new(false));
        Place { rank, busy, active_us: AtomicU64::new(now_us) }
    }

    /// Bytes have come.
    pub fn heard(&self, now_us: u64) {
        self.active_us.store(now_us, Ordering::Relaxed);
        self.busy.store(true, Ordering::Relaxed);
        self.shows(Rank::Unproven);
    }

    /// Everything that has come is answered.
    pub fn rests(&self) {
        self.busy.store(false, Ordering::Relaxed);
    }

    /// It has shown so much; a rank never falls.
    pub fn shows(&self, rank: Rank) {
        if self.rank() < rank {
            self.rank.store(rank as u8, Ordering::Relaxed);
        }
    }

    fn rank(&self) -> Rank {
        RANKS.get(usize::from(self.rank.load(Ordering::Relaxed))).copied().unwrap_or(Rank::Node)
    }

    /// The least deserving has the least.
    fn merit(&self) -> (Rank, bool, u64) {
        let busy = self.busy.load(Ordering::Relaxed);
        (self.rank(), busy, self.active_us.load(Ordering::Relaxed))
    }

    fn gives_way_to_newcomers(&self, now_us: u64) -> bool {
        match self.merit() {
            (Rank::Silent | Rank::Unproven, ..) => true,
            (Rank::Served, busy, active_us) => {
                !busy && now_us.saturating_sub(active_us) >= IN_USE_US
            }
            (Rank::Authenticated | Rank::Node, ..) => false,
        }
    }
}

#[derive(Debug)]
struct Open<T> {
    place: Arc<Place>,
    handle: T,
    over_cap: bool,
    /// It was handed back to be closed, and has not ended yet.
    going: bool,
}

impl<T> Open<T> {
    fn is_client(&self) -> bool {
        !self.going && !self.over_cap && self.place.rank() != Rank::Node
    }
}

/// What becomes of a newcomer.
#[derive(Debug)]
pub struct Arrived<T> {
    /// Its number, to leave by.
    pub number: u64,
    /// What is known of it.
    pub place: Arc<Place>,
    /// All places are taken by those that keep them.
    pub over_cap: bool,
    /// To be closed.
    pub shed: Option<T>,
}

#[derive(Clone, Copy, Debug)]
enum Shortage {
    Never,
    Lasts,
    Ended { at_us: u64 },
}

/// The open connections; `T` is what the owner closes one by.
///
/// Invariants: of those that are not going at most [`Places::max`] are clients with a place at the moment when
/// one comes, and at most [`OVER_CAP_MAX`] are over the cap.
#[derive(Debug)]
pub struct Places<T> {
    max: usize,
    /// A lower cap, and until when it holds.
    lowered: Option<(usize, u64)>,
    /// A shortage was not ended yet, or when the last one was.
    shortage: Shortage,
    next: u64,
    open: BTreeMap<u64, Open<T>>,
}

impl<T: Clone> Places<T> {
    /// Places for so many clients.
    pub fn new(max: usize) -> Places<T> {
        let (lowered, shortage) = (None, Shortage::Never);
        Places { max, lowered, shortage, next: 0, open: BTreeMap::new() }
    }

    /// Most clients that have a place now.
    pub fn max(&mut self, now_us: u64) -> usize {
        self.lowered = self.lowered.filter(|(_, until_us)| now_us < *until_us);
        self.lowered.map_or(self.max, |(max, _)| max.min(self.max))
    }

    /// Connections that are open, of all kinds.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// One has come.
    pub fn arrive(&mut self, handle: T, now_us: u64) -> Arrived<T> {
        let max = self.max(now_us);
        let (mut over_cap, mut shed) = (false, None);
        if self.open.values().filter(|open| open.is_client()).count() >= max {
            let is_least =
                |open: &Open<T>| open.is_client() && open.place.gives_way_to_newcomers(now_us);
            shed = self.shed(is_least);
            if shed.is_none() {
                over_cap = true;
                let waits = |open: &Open<T>| {
                    open.over_cap && !open.going && open.place.rank() != Rank::Node
                };
                if self.open.values().filter(|open| waits(open)).count() >= OVER_CAP_MAX {
                    shed = self.shed(waits);
                }
            }
        }
        let (number, place) = (self.next, Arc::new(Place::new(now_us)));
        self.next += 1;
        let open = Open { place: Arc::clone(&place), handle, over_cap, going: false };
        self.open.insert(number, open);
        Arrived { number, place, over_cap, shed }
    }

    /// One has ended.
    pub fn leave(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// The machine has run out of something, of which so many `spared` were just given back otherwise: gives the
    /// connections to be closed. To be asked again until the shortage is over ([`Places::relieved`]).
    pub fn relieve(&mut self, spared: usize, now_us: u64) -> Vec<T> {
        let again = match self.shortage {
            Shortage::Never => false,
            Shortage::Lasts => true,
            Shortage::Ended { at_us } => now_us < at_us + AGAIN_US,
        };
        self.shortage = Shortage::Lasts;
        let shed = self.scarce(again, now_us);
        if shed.is_empty() && spared == 0 { self.scarce(true, now_us) } else { shed }
    }

    /// The shortage is over.
    pub fn relieved(&mut self, now_us: u64) {
        self.shortage = Shortage::Ended { at_us: now_us };
    }

    /// Gives the least deserving to be closed, of those that gave nothing for their place only unless
    /// `whoever`, and lowers the cap to what is left.
    fn scarce(&mut self, whoever: bool, now_us: u64) -> Vec<T> {
        let mut shed = Vec::new();
        let goes = |open: &Open<T>| {
            let rank = open.place.rank();
            !open.going && (rank <= Rank::Unproven || whoever && rank != Rank::Node)
        };
        while shed.len() < SCARCE_STEP {
            let Some(handle) = self.shed(goes) else { break };
            shed.push(handle);
        }
        let left = self.open.values().filter(|open| open.is_client()).count();
        let max = self.max(now_us).min(left.max(CONNECTIONS_MIN));
        self.lowered = Some((max, now_us + LOWERED_US));
        shed
    }

    /// The least deserving of those that may go.
    fn shed(&mut self, may_go: impl Fn(&Open<T>) -> bool) -> Option<T> {
        let open = self.open.values_mut().filter(|open| may_go(open));
        let least = open.min_by_key(|open| open.place.merit())?;
        least.going = true;
        Some(least.handle.clone())
    }
}

/// Descriptors of what a node always has open, and opens now and then: its standard streams, the listener, locks,
/// directories, manifests, the tables that are written, a snapshot, a backup.
const OWN_DESCRIPTORS: u64 = 32;
/// Descriptors in reserve: see [`crate::env::descriptors`]. As many threads of a node open files.
pub const RESERVE_DESCRIPTORS: usize = 8;
/// Connections with one other node: two lanes each way, and a snapshot each way.
const DESCRIPTORS_A_PEER: u64 = 6;
/// Peers that a node has room for, though it was told of fewer: members may be added.
const PEERS_MIN: u64 = 8;
/// Open table files, however few descriptors there are.
const TABLE_FILES_MIN: u64 = 8;

/// How the descriptors of a process are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Connections of clients that have a place at a time.
    pub connections: usize,
    /// Files of tables that are open at a time.
    pub table_files: usize,
    /// All that is asked for fits.
    pub is_whole: bool,
    /// Descriptors that there are; without meaning where there is no limit.
    limit: u64,
}

/// What a node would like to have.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Connections of clients at a time.
    pub connections: usize,
    /// Files of tables that are open at a time.
    pub table_files: usize,
    /// Segments of the log, spares among them.
    pub log_files: u64,
    /// Other members.
    pub peers: u64,
}

impl Budget {
    /// Within a limit of descriptors, if there is one. What the node needs for itself comes first; of what is left
    /// a third at most is for files of tables. However little there is, a few of both are allowed: then
    /// shortages will be met, and dealt with.
    pub fn within(limit: Option<u64>, demand: Demand) -> Budget {
        let Demand { connections, table_files, log_files, peers } = demand;
        let Some(limit) = limit else {
            return Budget { connections, table_files, is_whole: true, limit: u64::MAX };
        };
        let own = OWN_DESCRIPTORS
            + RESERVE_DESCRIPTORS as u64
            + log_files
            + peers.max(PEERS_MIN) * DESCRIPTORS_A_PEER
            + OVER_CAP_MAX as u64;
        let free = limit.saturating_sub(own);
        // Saturating where a 32-bit machine is given a limit beyond what it can count.
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let files = table_files.min(count((free / 3).max(TABLE_FILES_MIN)));
        let left = count(free.saturating_sub(files as u64)).max(CONNECTIONS_MIN);
        let is_whole = left >= connections && files >= table_files;
        Budget { connections: connections.min(left), table_files: files, is_whole, limit }
    }

    /// What a person is told when there is less than was asked for.
    pub fn shortage(&self, demand: Demand) -> Option<String> {
        let Budget { connections, table_files, limit, is_whole } = self;
        (!is_whole).then(|| {
            format!(
                "the limit of descriptors is {limit}: at most {connections} connections of the {} that \
                 --max-connections allows are served, and {table_files} table files kept open; raise it (ulimit -n, \
                 LimitNOFILE= of systemd) or lower --max-connections",
                demand.connections
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of a connection is its handle.
    fn come(places: &mut Places<u64>, now_us: u64) -> Arrived<u64> {
        let number = places.next;
        places.arrive(number, now_us)
    }

    fn come_and_show(places: &mut Places<u64>, rank: Rank, now_us: u64) -> Arrived<u64> {
        let arrived = come(places, now_us);
        arrived.place.heard(now_us);
        arrived.place.shows(rank);
        arrived.place.rests();
        arrived
    }

    #[test]
    fn strangers_give_way_to_newcomers_and_clients_do_not() {
        // Four places: a client that has shown the token long ago, one that was served just now, and two
        // strangers, of which one has sent a byte. The silent one goes first, then the other, then the
        // newcomers in the order in which they came.
        let mut places = Places::new(4);
        come_and_show(&mut places, Rank::Authenticated, 0);
        come_and_show(&mut places, Rank::Served, IN_USE_US);
        come_and_show(&mut places, Rank::Unproven, 1);
        come(&mut places, 2);
        for (shed, now_us) in [3, 4, 5, 6].into_iter().zip(3..) {
            let arrived = come(&mut places, IN_USE_US + now_us);
            assert_eq!((arrived.shed, arrived.over_cap), (Some(shed), false));
        }
        assert_eq!(places.shed(|open| open.place.rank() == Rank::Unproven), Some(2));
    }

    #[test]
    fn a_served_client_without_a_token_keeps_its_place_while_it_is_used() {
        // No token is asked for. One client rests, one waits for an answer that takes long. Only the
        // first gives way, and only after a while.
        let mut places = Places::new(2);
        come_and_show(&mut places, Rank::Served, 0);
        come_and_show(&mut places, Rank::Served, 0).place.heard(0);
        assert!(come(&mut places, IN_USE_US - 1).over_cap);
        let arrived = come(&mut places, IN_USE_US);
        assert_eq!((arrived.shed, arrived.over_cap), (Some(0), false));
        arrived.place.shows(Rank::Authenticated);
        assert!(come(&mut places, 9 * IN_USE_US).over_cap);
    }

    #[test]
    fn over_the_cap_there_is_always_a_place_to_be_heard_and_nodes_keep_theirs() {
        // Clients hold the only place. A node comes, and a flood behind it. The flood sheds itself, the node stays;
        // and nodes do not count among the clients.
        let mut places = Places::new(1);
        let client = come_and_show(&mut places, Rank::Authenticated, 0);
        let node = come(&mut places, 1);
        assert!(node.over_cap && node.shed.is_none());
        node.place.shows(Rank::Node);
        for now_us in 0..10 * OVER_CAP_MAX as u64 {
            let arrived = come(&mut places, 2 + now_us);
            assert!(arrived.over_cap);
            let expected = now_us.checked_sub(OVER_CAP_MAX as u64).map(|first| 2 + first);
            assert_eq!(arrived.shed, expected);
            if let Some(gone) = expected.filter(|gone| gone % 2 == 0) {
                places.leave(gone);
            }
        }
        places.leave(client.number);
        assert!(!come(&mut places, 9_999).over_cap);
    }

    #[test]
    fn a_shortage_that_lasts_or_soon_comes_again_takes_clients_too() {
        // A stranger and four clients. The stranger is enough for the first shortage. In the next one, which comes
        // long after it, some files of tables are given back, and that is not enough: a client goes. In
        // one that comes soon after, clients go at once.
        let mut places = Places::new(1000);
        come(&mut places, 0);
        for now_us in 1..=SCARCE_STEP as u64 {
            come_and_show(&mut places, Rank::Served, now_us);
        }
        assert_eq!(places.relieve(0, 50), [0]);
        places.relieved(50);
        let later_us = 50 + AGAIN_US;
        assert!(places.relieve(3, later_us).is_empty());
        let clients: Vec<u64> = (1..=SCARCE_STEP as u64).collect();
        assert_eq!(places.relieve(3, later_us), clients);
        places.relieved(later_us);
        come_and_show(&mut places, Rank::Served, later_us);
        assert_eq!(places.relieve(3, later_us + AGAIN_US - 1).len(), 1);
    }

    #[test]
    fn a_shortage_takes_strangers_then_idle_clients_and_lowers_the_cap_for_a_while() {
        // 40 strangers, 20 idle clients, 20 that wait for answers, and a node. The cap was a thousand.
        let mut places = Places::new(1000);
        come_and_show(&mut places, Rank::Node, 0);
        for now_us in 0..40 {
            come(&mut places, now_us);
        }
        for now_us in 0..40 {
            let client = come_and_show(&mut places, Rank::Served, 99 - now_us);
            if now_us >= 20 {
                client.place.heard(0);
            }
        }
        let strangers: Vec<u64> = (0..3).flat_map(|_| places.scarce(false, 100)).collect();
        assert_eq!(strangers, (1..=40).collect::<Vec<u64>>(), "the idlest first");
        assert_eq!((places.scarce(false, 100), places.max(100)), (vec![], 40));
        let idle: Vec<u64> = (45..61).rev().collect();
        assert_eq!((places.scarce(true, 100), places.max(100)), (idle, 24));
        let rest = places.scarce(true, 100);
        assert_eq!(rest[..4], [44, 43, 42, 41]);
        assert!(rest[4..].iter().all(|busy| (61..81).contains(busy)));
        places.scarce(true, 100);
        assert!(places.scarce(true, 100).is_empty(), "the node stays");
        assert_eq!(places.max(100), CONNECTIONS_MIN);
        assert_eq!(places.max(100 + LOWERED_US), 1000);
    }

    #[test]
    fn descriptors_are_shared_out_with_the_nodes_own_needs_first() {
        let demand = Demand { connections: 8192, table_files: 256, log_files: 27, peers: 2 };
        let within = |limit| {
            let Budget { connections, table_files, is_whole, .. } = Budget::within(limit, demand);
            let taken = 32 + 8 + 27 + 8 * 6 + 32 + (connections + table_files) as u64;
            assert!(limit.is_none_or(|limit| taken <= limit.max(163)), "{limit:?}: {taken}");
            (connections, table_files, is_whole)
        };
        assert_eq!(within(None), (8192, 256, true));
        assert_eq!(within(Some(20_000)), (8192, 256, true));
        assert_eq!(within(Some(8_595)), (8192, 256, true));
        assert_eq!(within(Some(8_594)), (8191, 256, false));
        assert_eq!(within(Some(1_024)), (621, 256, false));
        assert_eq!(within(Some(256)), (73, 36, false));
        assert_eq!(within(Some(64)), (8, 8, false));
        assert_eq!(within(Some(u64::MAX)), (8192, 256, true));
        let few = Demand { connections: 5, peers: 30, ..demand };
        assert_eq!(Budget::within(Some(1_024), few).connections, 5);
    }
}
