//! Connections between nodes, event by event. This node is 1; its cluster is 7.

use super::*;
use crate::raft::{Body, HardState, Member, Options, Restored, RestoredLog, RoleName};
use crate::wire::frame::FRAME_HEADER_BYTES;
use crate::wire::proof::{Dialer, Dialing, Listener};

const OWN: u64 = 11;
const SECOND: u64 = 1_000_000;
const TOKEN: &[u8] = b"token";
const OURS: Secret = Secret { bytes: [7; 32], sealed: true };
/// What a member shows.
const MEMBER: Proven = Proven { token: true, member: true, sealed: true };

fn identity(id: NodeId) -> u64 {
    10 + id
}

fn member(id: NodeId, identity: u64) -> Member {
    Member { id, identity, address: format!("host:{id}") }
}

/// Members 1 to `count`; their disks are known if `bound`.
fn members(count: u64, bound: bool) -> Configuration {
    let known = |id| if bound { identity(id) } else { 0 };
    Configuration::of_voters(7, (1..=count).map(|id| member(id, known(id))).collect())
}

/// A core whose log holds those configurations one behind the other, all committed.
fn core(term: u64, configurations: &[Configuration]) -> Raft {
    let last = configurations.len() as u64 - 1;
    let all = (0..).zip(configurations.iter().cloned().map(Arc::new));
    let log = RestoredLog {
        base: 0,
        base_term: 0,
        runs: if last > 0 { vec![(1, term)] } else { Vec::new() },
        last,
        configurations: all.collect(),
    };
    let hard_state = HardState { term, vote: None };
    Raft::new(Options::new(1, 5), Restored { hard_state, log, applied: last }, 0)
}

struct Fixture {
    raft: Raft,
    peers: Peers,
    now_us: u64,
}

impl Fixture {
    fn of(raft: Raft) -> Fixture {
        let address = "host:1".to_string();
        let (token, seeds) = (TOKEN.to_vec(), Vec::new());
        let options = PeersOptions { identity: OWN, address, token, secret: OURS, seeds };
        let mut peers = Peers::new(&raft, options, 0);
        peers.begin();
        Fixture { raft, peers, now_us: 0 }
    }

    fn new(count: u64) -> Fixture {
        Fixture::of(core(3, &[members(count, true)]))
    }

    fn event(&mut self, event: PeerEvent) -> Vec<PeerEffect> {
        self.peers.handle(event, &self.raft, self.now_us);
        self.peers.take_effects()
    }

    fn tick(&mut self, now_us: u64) -> Vec<PeerEffect> {
        self.now_us = now_us;
        self.peers.tick(&self.raft, now_us);
        self.peers.take_effects()
    }

    /// A Hello of a peer that shows what a member shows, accepted under that number.
    fn accept(&mut self, connection: ConnectionId, hello: Hello) -> Result<Welcome, Reject> {
        let answered = self.shake(connection, member_says(hello)).0;
        answered.answer
    }

    /// A whole handshake in which this node is dialed: the answer, and all effects.
    fn shake(&mut self, connection: ConnectionId, says: Greeting) -> (Answered, Vec<PeerEffect>) {
        let (presented, mut dialer) = presented(says);
        let presented = Box::new(presented);
        let effects = self.event(PeerEvent::Accepted { connection, presented });
        let frame = effects.iter().find_map(|effect| match effect {
            PeerEffect::Welcome { frame, .. } | PeerEffect::Reject { frame, .. } => Some(frame),
            _ => None,
        });
        let heard = dialer.heard(&frame.expect("an answer")[FRAME_HEADER_BYTES..]);
        let Ok(Dialing::Over(answered)) = heard else { panic!("{heard:?}") };
        (*answered, effects)
    }

    /// Dials what is due; gives the connections with whom they are to reach and where.
    fn dial(&mut self, now_us: u64) -> Vec<(ConnectionId, NodeId, Lane, String)> {
        let dial = |effect| match effect {
            PeerEffect::Dial { connection, peer, address, greeting } => {
                Some((connection, peer, greeting.hello.lane, address))
            }
            _ => None,
        };
        self.tick(now_us).into_iter().filter_map(dial).collect()
    }

    fn welcomed(&mut self, connection: ConnectionId, by: NodeId) -> Vec<PeerEffect> {
        let answer = Ok(welcome(by, Remembered::default()));
        self.answered(connection, answer, MEMBER)
    }

    fn rejected(&mut self, connection: ConnectionId, code: RejectCode) -> Vec<PeerEffect> {
        self.answered(connection, rejection(code), MEMBER)
    }

    /// The dialed node answers, and shows that.
    fn answered(
        &mut self,
        connection: ConnectionId,
        answer: Result<Welcome, Reject>,
        proven: Proven,
    ) -> Vec<PeerEffect> {
        let pad = presented(member_says(hello(2))).0.pad();
        let answered = Box::new(Answered { answer, proven, pad });
        self.event(PeerEvent::Answered { connection, answered })
    }
}

fn rejection(code: RejectCode) -> Result<Welcome, Reject> {
    Err(Reject { code, message: "no".to_string() })
}

/// What a member says with that Hello.
fn member_says(hello: Hello) -> Greeting {
    let keys = Keys { token: TOKEN.to_vec(), secret: Some(OURS) };
    Greeting { hello, keys, offers_in: None }
}

/// Both ends of a handshake up to the proof.
fn presented(says: Greeting) -> (Presented, Dialer) {
    let (mut dialer, hello) = Dialer::new(says, [1; 32]);
    let heard = Listener::new(&hello[FRAME_HEADER_BYTES..], &[2; 32]);
    let (listener, challenge) = heard.expect("a hello");
    let proof = dialer.heard(&challenge[FRAME_HEADER_BYTES..]);
    let Ok(Dialing::Write(proof)) = proof else { panic!("{proof:?}") };
    let presented = listener.proof(&proof[FRAME_HEADER_BYTES..], TOKEN).expect("the token");
    (presented, dialer)
}

fn welcome(by: NodeId, remembered: Remembered) -> Welcome {
    Welcome {
        version: 3,
        cluster: 7,
        node: by,
        identity: identity(by),
        leader: 0,
        leader_address: String::new(),
        remembered,
    }
}

fn hello(from: NodeId) -> Hello {
    Hello {
        role: Role::Peer,
        from,
        to: 1,
        identity: identity(from),
        address: format!("host:{from}"),
        ..Hello::of_client(7)
    }
}

fn stop_of(effects: &[PeerEffect]) -> Option<Verdict> {
    effects.iter().find_map(|effect| match effect {
        PeerEffect::Stop { verdict, .. } => Some(*verdict),
        _ => None,
    })
}

/// A Hello that the network delivers late: its dialer has given up, come again, and done much since.
/// It says less than is true now. Nobody is condemned by it, and its end is not the end of the peer.
#[test]
fn a_late_hello_harms_nobody() {
    let mut f = Fixture::new(3);
    assert!(f.accept(1, hello(2)).is_ok());
    let heard = Message {
        from: 2,
        to: 1,
        term: 9,
        body: crate::raft::Body::HeartbeatResponse { round: 0 },
    };
    f.peers.heard(&heard, 0);
    assert_eq!(f.peers.remembers(2).term, 9);
    f.peers.take_told();
    // Of the time before, when this node had come to less, too.
    let late = Hello { remembered: Remembered { identity: OWN, term: 1, index: 0 }, ..hello(2) };
    let welcome = f.accept(2, late).expect("let in");
    assert_eq!(welcome.remembered, Remembered { identity: identity(2), term: 9, index: 0 });
    f.peers.take_told();
    f.event(PeerEvent::AcceptedClosed { connection: 2 });
    assert_eq!(f.peers.take_told(), []);
    f.event(PeerEvent::AcceptedClosed { connection: 1 });
    assert_eq!(f.peers.take_told(), [Told::Gone { node: 2 }]);
}

/// A peer remembers more of this very disk than it holds: it is an old copy, and stops before anything
/// it has to say reaches that peer. So by a Welcome, and by a Hello.
#[test]
fn an_old_copy_stops_itself() {
    let remembered = Remembered { identity: OWN, term: 4, index: 0 };
    let mut f = Fixture::new(3);
    let (connection, by, ..) = f.dial(0)[0].clone();
    let effects = f.answered(connection, Ok(welcome(by, remembered)), MEMBER);
    assert_eq!(stop_of(&effects), Some(Verdict::RolledBack));
    assert_eq!(effects.len(), 1, "nothing else leaves");
    assert!(f.peers.take_told().is_empty());
    assert!(f.welcomed(connection, by).is_empty() && f.tick(SECOND).is_empty());

    let mut f = Fixture::new(3);
    let (presented, _) = presented(member_says(Hello { remembered, ..hello(2) }));
    let presented = Box::new(presented);
    let effects = f.event(PeerEvent::Accepted { connection: 1, presented });
    assert_eq!(stop_of(&effects), Some(Verdict::RolledBack));
    // One that it does not take for a member condemns nobody.
    let mut f = Fixture::new(3);
    let stranger = Hello { identity: 5, remembered, ..self::hello(2) };
    assert_eq!(f.accept(1, stranger).unwrap_err().code, RejectCode::WrongIdentity);
    assert!(!f.peers.is_stopped());
}

/// A connection in doubt stays in use until another one is welcomed; only then is it closed.
#[test]
fn a_connection_in_doubt_is_replaced_by_one_that_works() {
    let mut f = Fixture::new(2);
    let (first, ..) = f.dial(0)[0].clone();
    let opened = f.welcomed(first, 2);
    assert!(matches!(opened[..], [PeerEffect::Open { peer: 2, lane: Lane::Control, .. }]));
    assert_eq!(f.dial(0).len(), 1, "the lane for entries");
    f.event(PeerEvent::Silent { connection: first });
    let (second, ..) = f.dial(1_000)[0].clone();
    assert_eq!(f.peers.connection(2, Lane::Control), Some(first));
    f.event(PeerEvent::Closed { connection: second, why: "refused".to_string() });
    assert_eq!(f.peers.connection(2, Lane::Control), Some(first));
    let (third, ..) = f.dial(100_000)[0].clone();
    let effects = f.welcomed(third, 2);
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, PeerEffect::Close { connection } if *connection == first))
    );
    assert_eq!(f.peers.connection(2, Lane::Control), Some(third));
    // What is told of the old one now concerns nobody.
    assert!(f.event(PeerEvent::Closed { connection: first, why: "late".to_string() }).is_empty());
}

/// A peer that should send all the time and does not is asked for a sign of life, once.
#[test]
fn a_silent_peer_is_asked_for_a_sign_of_life() {
    let mut f = Fixture::new(2);
    let (connection, ..) = f.dial(0)[0].clone();
    f.welcomed(connection, 2);
    f.tick(0);
    assert_eq!(f.peers.next_tick_us(&f.raft), 300_000);
    let hastened = |effects: Vec<PeerEffect>| {
        effects.iter().filter(|e| matches!(e, PeerEffect::Hasten { .. })).count()
    };
    assert_eq!(hastened(f.tick(299_999)), 0);
    assert_eq!(hastened(f.tick(300_000)), 1);
    assert_eq!(hastened(f.tick(900_000)), 0);
}

/// One peer's word for a removal is not enough where another peer can be asked; where nobody else can,
/// it is. A peer that takes the node in takes its word back.
#[test]
fn a_removal_needs_two_words() {
    let mut f = Fixture::new(3);
    let dials = f.dial(0);
    assert_eq!(stop_of(&f.rejected(dials[0].0, RejectCode::Removed)), None);
    let again = f.dial(20_000);
    assert_eq!(stop_of(&f.rejected(again[0].0, RejectCode::Removed)), None, "the same peer");
    assert_eq!(stop_of(&f.rejected(dials[1].0, RejectCode::Removed)), Some(Verdict::Removed));

    let mut f = Fixture::new(3);
    let dials = f.dial(0);
    f.rejected(dials[0].0, RejectCode::Removed);
    let again = f.dial(20_000);
    f.welcomed(again[0].0, again[0].1);
    assert_eq!(stop_of(&f.rejected(dials[1].0, RejectCode::Removed)), None);

    let mut f = Fixture::new(2);
    let dials = f.dial(0);
    assert_eq!(stop_of(&f.rejected(dials[0].0, RejectCode::Removed)), Some(Verdict::Removed));
}

/// A directory was copied and the copy runs beside the original: as long as that is connected the copy
/// is turned away. A second connection of the node itself is not.
#[test]
fn a_copy_beside_its_original_is_turned_away() {
    let mut f = Fixture::new(3);
    assert!(f.accept(1, hello(2)).is_ok() && f.accept(2, hello(2)).is_ok());
    let copy = Hello { address: "elsewhere:2".to_string(), ..hello(2) };
    let reject = f.accept(3, copy.clone()).unwrap_err();
    assert_eq!(reject.code, RejectCode::WrongNode);
    assert!(reject.message.contains("runs at host:2: one of the two has a copy"), "{reject}");
    for connection in [1, 2] {
        f.event(PeerEvent::AcceptedClosed { connection });
    }
    assert!(f.accept(4, copy).is_ok(), "it has moved");
    assert_eq!(f.peers.addresses_of(2), ["host:2", "elsewhere:2"]);
}

/// A member that turns out to be this very node under another address is refused by name, and so is
/// whoever does not say who it is.
#[test]
fn this_very_node_is_no_other_member() {
    let mut f = Fixture::new(3);
    let reject = f.accept(1, Hello { identity: OWN, ..hello(2) }).unwrap_err();
    assert!(reject.message.contains("one node is listed under two addresses"), "{reject}");
    for nobody in [Hello { identity: 0, ..hello(2) }, Hello { from: 0, ..hello(2) }] {
        assert_eq!(f.accept(2, nobody).unwrap_err().code, RejectCode::Malformed);
    }
}

/// A peer was let in while nobody was known under its id; then the log says that another disk is the
/// member's. It is parted with, and the member is not.
#[test]
fn an_impostor_is_parted_with() {
    let mut f = Fixture::of(core(3, &[members(3, false)]));
    assert!(f.accept(1, hello(2)).is_ok());
    assert!(f.accept(2, Hello { identity: 99, address: "x:2".to_string(), ..hello(2) }).is_ok());
    let mut bound = members(3, true);
    bound.members[1].identity = 99;
    f.raft = core(3, &[members(3, false), bound]);
    f.peers.follow(&f.raft);
    let parted: Vec<ConnectionId> = f
        .peers
        .take_effects()
        .iter()
        .filter_map(|e| match e {
            PeerEffect::Part { connection } => Some(*connection),
            _ => None,
        })
        .collect();
    assert_eq!(parted, [1]);
}

/// Nodes that joined since this one was last there are let in and answered, as many as may join, and are
/// forgotten when they are gone. A peer that dials without end takes no more places than it may.
#[test]
fn newcomers_and_connections_are_bounded() {
    let mut f = Fixture::new(3);
    for id in 4..4 + NEWCOMERS_MAX as u64 {
        assert!(f.accept(id, hello(id)).is_ok());
    }
    let code = |answer: Result<Welcome, Reject>| answer.unwrap_err().code;
    assert_eq!(code(f.accept(900, hello(900))), RejectCode::TooManyConnections);
    assert_eq!(f.peers.others().len(), 2 + NEWCOMERS_MAX);
    f.event(PeerEvent::AcceptedClosed { connection: 4 });
    assert!(f.accept(901, hello(901)).is_ok());
    for id in 10_000..10_100 {
        f.event(PeerEvent::AcceptedClosed { connection: id - 1 });
        f.event(PeerEvent::AcceptedClosed { connection: 901 });
        assert!(f.accept(id, hello(id)).is_ok());
    }
    assert!(f.peers.memory.len() <= NEWCOMERS_MAX, "who is gone is forgotten");
    assert!(!f.peers.others().contains(&4));
    for connection in 1000..1000 + ACCEPTED_MAX as u64 {
        assert!(f.accept(connection, hello(2)).is_ok());
    }
    assert_eq!(code(f.accept(2000, hello(2))), RejectCode::TooManyConnections);
    assert!(f.accept(2001, Hello { lane: Lane::Bulk, ..hello(2) }).is_ok());
}

/// A peer that cannot be reached is dialed again after pauses that grow; while nobody leads they stay
/// below an election timeout. Where it has moved it is looked for at both addresses in turn.
#[test]
fn pauses_grow_and_targets_take_turns() {
    let mut f = Fixture::new(2);
    f.peers.said.insert(2, "moved:2".to_string());
    let (mut at_us, mut pauses, mut targets) = (0, Vec::new(), Vec::new());
    for _ in 0..10 {
        let dials = f.dial(at_us);
        let [(connection, 2, Lane::Control, ref address)] = dials[..] else { panic!("{dials:?}") };
        targets.push(address.clone());
        f.event(PeerEvent::Closed { connection, why: "refused".to_string() });
        let next_us = f.peers.next_tick_us(&f.raft);
        pauses.push(next_us - at_us);
        at_us = next_us;
    }
    assert_eq!(pauses[..5], [20_000, 40_000, 80_000, 160_000, 250_000]);
    assert!(pauses.iter().all(|&pause| pause <= 250_000), "{pauses:?}");
    assert_eq!(targets[..4], ["host:2", "moved:2", "host:2", "moved:2"]);
    // It dials: no pause any more.
    f.accept(1, hello(2)).expect("let in");
    assert_eq!(f.dial(f.now_us).len(), 1);
}

/// Somebody else answers at the address of a peer: it is not taken for it.
#[test]
fn another_node_at_its_address_is_not_the_peer() {
    let mut f = Fixture::new(3);
    let (connection, peer, ..) = f.dial(0)[0].clone();
    let effects = f.welcomed(connection, 5 - peer);
    assert!(effects.iter().any(|e| matches!(e, PeerEffect::Close { .. })));
    assert_eq!(f.peers.connection(peer, Lane::Control), None);
    assert!(f.peers.take_told().is_empty());
}

// ---- proofs ----

/// What an impostor says that knows the token and every number: it has a secret of its own.
fn impostor_says(hello: Hello) -> Greeting {
    let secret = Some(Secret { bytes: [9; 32], sealed: true });
    Greeting { hello, keys: Keys { token: TOKEN.to_vec(), secret }, offers_in: Some(3) }
}

/// Remembers more of this node than its disk holds.
const FAR: Remembered = Remembered { identity: OWN, term: 1 << 40, index: 1 << 40 };

/// Node 2 is connected. Somebody else names its id and identity, which every client can read, and
/// remembers a term that this node never came to: it is turned away, and that is all. The member keeps
/// its connections, and what is remembered and known of it.
#[test]
fn an_impostor_with_a_members_numbers_changes_nothing() {
    let mut f = Fixture::new(3);
    assert!(f.accept(1, hello(2)).is_ok());
    f.peers.take_told();
    let others = [
        Hello { remembered: FAR, ..hello(2) },
        Hello { address: "evil:2".to_string(), ..hello(2) },
        Hello { lane: Lane::Bulk, ..hello(2) },
        Hello { role: Role::Snapshot, ..hello(2) },
        hello(99),
    ];
    for (connection, hello) in (2..).zip(others) {
        let (answered, effects) = f.shake(connection, impostor_says(hello));
        assert_eq!(answered.answer.unwrap_err().code, RejectCode::Unproven);
        assert!(matches!(effects[..], [PeerEffect::Reject { .. }]), "{effects:?}");
        f.event(PeerEvent::AcceptedClosed { connection });
    }
    assert!(!f.peers.is_stopped());
    assert_eq!(f.peers.take_told(), []);
    assert_eq!(f.peers.addresses_of(2), ["host:2"]);
    assert_eq!(f.peers.others(), BTreeSet::from([2, 3]));
    assert_eq!(f.peers.keys().secret, Some(OURS), "it takes no other secret");
    // An empty disk in the place of a member has nothing to show: it is told what it is.
    let empty = Hello { identity: 5, ..hello(2) };
    let (answered, _) = f.shake(9, impostor_says(empty));
    assert_eq!(answered.answer.unwrap_err().code, RejectCode::WrongIdentity);
}

/// Somebody has bound the address of a dead peer. Whatever it says is not believed: no removal, no other disk,
/// no old copy; and it is not used. The same words of a member are.
#[test]
fn who_binds_the_address_of_a_peer_is_not_believed() {
    let stranger = Proven { token: true, ..Proven::default() };
    let words = [
        rejection(RejectCode::Removed),
        rejection(RejectCode::WrongIdentity),
        Ok(welcome(2, FAR)),
        Ok(welcome(2, Remembered::default())),
    ];
    for bound in [true, false] {
        for (says, verdict) in words.iter().zip([
            Some(Verdict::Removed),
            (!bound).then_some(Verdict::Impostor),
            Some(Verdict::RolledBack),
            None,
        ]) {
            let mut f = Fixture::of(core(3, &[members(2, bound)]));
            let (connection, ..) = f.dial(0)[0].clone();
            let effects = f.answered(connection, says.clone(), stranger);
            assert_eq!(stop_of(&effects), None, "{says:?}");
            assert!(effects.iter().any(|e| matches!(e, PeerEffect::Close { .. })), "{says:?}");
            assert_eq!(f.peers.connection(2, Lane::Control), None);
            assert!(f.peers.take_told().is_empty());
            let (again, ..) = f.dial(20_000)[0].clone();
            assert_eq!(stop_of(&f.answered(again, says.clone(), MEMBER)), verdict, "{says:?}");
        }
    }
}

/// A core that leads three, as far as it knows.
fn leading(configuration: &Configuration) -> Raft {
    let mut raft = core(3, std::slice::from_ref(configuration));
    for now_us in (1..100).map(|n| n * 100_000) {
        raft.tick(now_us);
        let ready = raft.ready();
        if let Some(persist) = ready.persist {
            raft.persisted(persist.seq, now_us);
        }
        let mut messages = ready.messages;
        messages.extend(raft.ready().messages);
        for Message { to: from, term, body, .. } in messages {
            let body = match body {
                Body::RequestPreVote { .. } => Body::PreVoteResponse { granted: true },
                Body::RequestVote { .. } => Body::VoteResponse { granted: true },
                _ => continue,
            };
            raft.step(Message { from, to: 1, term, body }, now_us);
        }
        if raft.role() == RoleName::Leader {
            return raft;
        }
    }
    panic!("it is elected");
}

fn kept(effects: &[PeerEffect]) -> Option<Secret> {
    effects.iter().find_map(|effect| match effect {
        PeerEffect::Keep { secret } => Some(*secret),
        _ => None,
    })
}

/// A leader offers its secret to all others, on connections that it makes anew for that, and seals it when all
/// have shown it; then it says so, again on new connections. One member that was not met, or whose disk is not
/// bound yet, keeps it from that.
#[test]
fn a_leader_seals_the_secret_when_all_members_hold_it() {
    for (bound, both) in [(true, true), (false, true), (true, false)] {
        let mut f = Fixture::of(core(3, &[members(3, bound)]));
        f.peers.secret.sealed = false;
        for (connection, peer, ..) in f.dial(0) {
            let shown = Proven { token: true, ..Proven::default() };
            f.answered(connection, Ok(welcome(peer, Remembered::default())), shown);
        }
        f.raft = leading(&members(3, bound));
        let now_us = 20_000_000;
        let offering: Vec<(ConnectionId, NodeId)> = f
            .tick(now_us)
            .into_iter()
            .filter_map(|effect| match effect {
                PeerEffect::Dial { connection, peer, greeting, .. }
                    if greeting.offers_in == Some(f.raft.term()) =>
                {
                    Some((connection, peer))
                }
                _ => None,
            })
            .collect();
        assert_eq!(offering.len(), 2, "control lanes only");
        for &(connection, peer) in &offering {
            let shown = Proven { sealed: false, member: both || peer == 2, ..MEMBER };
            f.answered(connection, Ok(welcome(peer, Remembered::default())), shown);
        }
        let effects = f.tick(now_us + 1);
        let sealed = kept(&effects);
        assert_eq!(sealed, (bound && both).then_some(OURS));
        let tells = |effects: &[PeerEffect]| {
            let sealed = |greeting: &Greeting| greeting.keys.secret.is_some_and(|s| s.sealed);
            let says = |e: &&PeerEffect| matches!(e, PeerEffect::Dial { greeting, .. } if sealed(greeting));
            effects.iter().filter(says).count()
        };
        assert_eq!(tells(&effects), if sealed.is_some() { 2 } else { 0 });
    }
}

/// A member takes a secret from the leader of its own term only, on the lane for that; it shows it in the answer,
/// behind making it durable. One that is sealed it never gives up, and that it is sealed it takes from
/// whoever holds the same.
#[test]
fn a_secret_is_taken_from_the_leader_of_the_term() {
    let theirs = Secret { bytes: [9; 32], sealed: false };
    let keys = |secret| Keys { token: TOKEN.to_vec(), secret: Some(secret) };
    let fixture = |secret: Secret, leader: NodeId| {
        let mut f = Fixture::new(3);
        f.peers.secret = secret;
        let body = Body::Heartbeat { commit: 0, commit_term: 0, round: 0 };
        f.raft.step(Message { from: leader, to: 1, term: 4, body }, 1);
        assert_eq!(f.raft.leader(), Some(leader));
        f
    };
    let unsealed = Secret { sealed: false, ..OURS };
    let offer = |hello, term| Greeting { hello, keys: keys(theirs), offers_in: Some(term) };
    let mut f = fixture(unsealed, 2);
    let (answered, effects) = f.shake(1, offer(hello(2), 4));
    assert!(answered.proven.member, "it shows what it has taken");
    assert!(matches!(effects[..2], [PeerEffect::Keep { .. }, PeerEffect::Welcome { .. }]));
    assert_eq!(kept(&effects), Some(theirs));
    let refused: [(Secret, NodeId, Greeting); 4] = [
        (unsealed, 3, offer(hello(2), 4)),
        (unsealed, 2, offer(hello(2), 3)),
        (unsealed, 2, offer(Hello { lane: Lane::Bulk, ..hello(2) }, 4)),
        (unsealed, 2, Greeting { offers_in: None, ..offer(hello(2), 4) }),
    ];
    for (own, leader, says) in refused {
        let mut f = fixture(own, leader);
        let (answered, effects) = f.shake(1, says);
        assert!(answered.answer.is_ok() && !answered.proven.member);
        assert_eq!((kept(&effects), f.peers.keys().secret), (None, Some(own)));
    }
    let mut f = fixture(OURS, 2);
    assert_eq!(kept(&f.shake(1, offer(hello(2), 4)).1), None, "a sealed one is not given up");
    let mut f = fixture(unsealed, 2);
    assert_eq!(
        kept(&f.shake(1, member_says(hello(3))).1),
        Some(OURS),
        "another member has sealed it"
    );
    let mut f = fixture(unsealed, 2);
    assert_eq!(kept(&f.shake(1, impostor_says(hello(3))).1), None, "who holds another one has not");
}
