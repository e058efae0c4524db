//! The format of recordings: everything comes back, and what was changed is refused.

use super::*;
use crate::kv::bytes::Malformed as BadCommand;
use crate::kv::{Limits, Outcome, SessionBounds, TooLarge};
use crate::node::{
    Admin, AdminForward, Change, ChangeRefused, Forward, PeerEvent, PeersOptions, Refusal,
    ReplicaOptions, Request, Verdict,
};
use crate::raft::{
    self, AppendResult, Body, Configuration, EntriesRead, Entry, HardState, Member, Message,
    Payload, Restored, RestoredLog, SnapshotMark,
};
use crate::wire::client::Class;
use crate::wire::frame::FRAME_HEADER_BYTES;
use crate::wire::handshake::{Hello, Lane, Reject, RejectCode, Remembered, Role, Welcome};
use crate::wire::proof::{
    Answered, Dialer, Dialing, Greeting, Keys, Listener, Presented, Proven, Shown,
};
use std::sync::Arc;

/// The members' secret.
const SECRET: Secret = Secret { bytes: *b"thirty-two bytes: known to no 1.", sealed: false };

fn configuration() -> Configuration {
    let member = |id| Member { id, identity: 10 * id, address: format!("host:{id}") };
    Configuration::of_voters(9, vec![member(1), member(2)])
}

fn hello() -> Hello {
    Hello {
        role: Role::Peer,
        from: 2,
        to: 1,
        identity: 20,
        to_identity: 10,
        address: "host:2".to_string(),
        lane: Lane::Bulk,
        remembered: Remembered { identity: 10, term: 3, index: 4 },
        ..Hello::of_client(9)
    }
}

/// One input of every kind, and of every form that a kind may have.
fn inputs() -> Vec<Input<u64>> {
    let write = Request::Write(Arc::from(&b"command"[..]));
    let join = Change::Join { address: "host:3".to_string(), identity: 30 };
    let requests = [
        write,
        Request::Read,
        Request::Status,
        Request::Transfer(Some(2)),
        Request::Transfer(None),
        Request::Change(join.clone()),
        Request::Flush { cut: true },
    ];
    let requests = (0..).zip(requests).map(|(at, what)| (at, 1000 + at, what)).collect();
    let message = |body| Input::Peer(Message { from: 2, to: 1, term: 7, body });
    let payloads = [
        Payload::Noop,
        Payload::Command(Arc::from(&b"command"[..])),
        Payload::Configuration(Arc::new(configuration())),
    ];
    let entries =
        (5..).zip(payloads).map(|(index, payload)| Entry { index, term: 7, payload }).collect();
    let proven = Proven { token: true, member: true, sealed: false };
    let accepted = |offer| {
        let presented = Presented::recorded(hello(), 2, Shown { proven, offer });
        Input::Link(PeerEvent::Accepted { connection: 3, presented: Box::new(presented) })
    };
    let answered = |verdict| Input::ForwardAnswered { from: 2, id: 5, verdict };
    let refused = |refusal| answered(Verdict::NotApplied(refusal));
    let administered = |result| Input::AdminAnswered { from: 2, id: 6, result };
    let welcome = Welcome {
        version: 2,
        cluster: 9,
        node: 2,
        identity: 20,
        leader: 2,
        leader_address: "host:2".to_string(),
        remembered: Remembered::default(),
    };
    let reject = Reject { code: RejectCode::WrongNode, message: "not here".to_string() };
    let link = Input::Link;
    vec![
        Input::Client { client: 77, requests },
        message(Body::AppendEntries { prev_index: 4, prev_term: 6, commit: 3, round: 1, entries }),
        message(Body::AppendResponse { result: AppendResult::Matched { index: 4 }, round: 2 }),
        message(Body::VoteResponse { granted: true }),
        message(Body::InstallSnapshot {
            last_index: 9,
            last_term: 7,
            configuration: Arc::new(configuration()),
        }),
        Input::Forwarded {
            from: 2,
            forward: Forward { id: 5, deadline_ms: 10, command: Arc::from(&b"command"[..]) },
        },
        answered(Verdict::Applied(Outcome::Done { revision: 8, results: Vec::new() })),
        answered(Verdict::Unknown("the leader does not know what became of it")),
        refused(Refusal::LeaderBusy),
        refused(Refusal::DiskFull { node: 2 }),
        refused(Refusal::NotLeader),
        refused(Refusal::Malformed(BadCommand("refused by the leader"))),
        refused(Refusal::TooLarge { leader: Some(2), why: TooLarge::EmptyKey }),
        Input::ForwardUnsent { id: 5 },
        Input::AdminForwarded {
            from: 2,
            forward: AdminForward { id: 6, deadline_ms: 10, what: Admin::Change(join) },
        },
        administered(Ok(3)),
        administered(Err(ChangeRefused::declined(Class::Unavailable, "later".to_string()))),
        administered(Err(ChangeRefused::declined(Class::Invalid, "never".to_string()))),
        administered(Err(ChangeRefused::declined(Class::Unknown, String::new()))),
        link(PeerEvent::AcceptedClosed { connection: 3 }),
        link(PeerEvent::Answered {
            connection: 3,
            answered: Box::new(Answered::recorded(Ok(welcome), proven)),
        }),
        link(PeerEvent::Answered {
            connection: 3,
            answered: Box::new(Answered::recorded(Err(reject), Proven::default())),
        }),
        accepted(None),
        accepted(Some((7, [5; 32]))),
        link(PeerEvent::Closed { connection: 3, why: "it broke".to_string() }),
        link(PeerEvent::Silent { connection: 3 }),
        link(PeerEvent::LeaderNamed { leader: 2, address: "host:2".to_string() }),
        link(PeerEvent::Probed { address: "host:2".to_string(), node: Some(2) }),
        link(PeerEvent::Probed { address: "host:2".to_string(), node: None }),
        Input::PeerReached { node: 2, identity: 20 },
        Input::PeerConnected { node: 2, identity: 20 },
        Input::PeerDialed { node: 2, identity: 20, address: "host:2".to_string() },
        Input::PeerLost { node: 2 },
        Input::FlowLost { node: 2 },
        Input::EntriesRead(EntriesRead { to: 2, term: 7, first: 5, sent: Some((6, 300)) }),
        Input::EntriesRead(EntriesRead { to: 2, term: 7, first: 5, sent: None }),
        Input::Persisted { seq: 4, log_bytes: 4096 },
        Input::Compacted { log_bytes: 4096 },
        Input::Applied { index: 6, flushed: 5 },
        Input::Flushed { index: 6 },
        Input::Damaged,
        Input::Digest { node: 2, index: 4096, digest: 0xdead_beef },
        Input::DiskFull(true),
        Input::FlushWanted,
        Input::Rests { until_us: 70 },
        Input::Installed {
            mark: SnapshotMark { index: 9, term: 7, configuration: Arc::new(configuration()) },
        },
    ]
}

fn start() -> Start {
    let configurations = vec![(0, Arc::new(configuration())), (3, Arc::new(configuration()))];
    Start {
        program: "0.1.0".to_string(),
        life: 2,
        unix_us: 1_700_000_000_000_000,
        now_us: 12,
        connections: true,
        first: configuration(),
        raft: raft::Options::new(1, 99),
        restored: Restored {
            hard_state: HardState { term: 7, vote: Some(2) },
            log: RestoredLog {
                base: 2,
                base_term: 1,
                runs: vec![(3, 2), (5, 7)],
                last: 6,
                configurations,
            },
            applied: 4,
        },
        replica: ReplicaOptions {
            inflight_bytes_max: 1 << 20,
            limits: Limits::default(),
            batch_bytes_max: 1 << 16,
            identity: 10,
            address: "host:1".to_string(),
            wal_limit_bytes: 1 << 24,
            members_max: 32,
        },
        peers: PeersOptions {
            identity: 10,
            address: "host:1".to_string(),
            token: b"secret".to_vec(),
            secret: SECRET.pseudonym(),
            seeds: vec!["host:2".to_string()],
        },
        batch_requests_max: 256,
        holding: false,
        digest: 0x1234_5678,
        digest_every: 4096,
        sessions: SessionBounds::STANDARD,
    }
}

/// One record of every kind, and of every form that a kind may have.
fn records() -> Vec<Record> {
    let step = LogStep {
        now_us: 5,
        written: Some((3, 2)),
        cut: Some(4),
        log_bytes: 99,
        orders: true,
        lacks_space: false,
    };
    let did = DidNote {
        now_us: 6,
        applied: Some((5, 4)),
        digest: 7,
        answers: (1, 8),
        told: Some((4096, 9)),
        installed: Some((5, 7)),
        damaged: true,
    };
    let prints = vec![Print { part: Part::Links, crc: 1 }, Print { part: Part::Sends, crc: 2 }];
    vec![
        Record::Start(Box::new(start())),
        Record::Handled { now_us: 1, input: Box::new(Input::Damaged) },
        Record::Ticked { now_us: 2 },
        Record::Effects { now_us: 3, prints },
        Record::Effects { now_us: 3, prints: Vec::new() },
        Record::LogEvent(LogNote::Persist { seq: 3 }),
        Record::LogEvent(LogNote::Compact { through: 4 }),
        Record::LogEvent(LogNote::Spare { made: true }),
        Record::LogStep(step),
        Record::LogStep(LogStep { written: None, cut: None, orders: false, ..step }),
        Record::Task(TaskNote::Apply { first: 4, last: 5 }),
        Record::Task(TaskNote::Flushed),
        Record::Task(TaskNote::Flush),
        Record::Task(TaskNote::Hold),
        Record::Task(TaskNote::Install { index: 5 }),
        Record::Did(did),
        Record::Did(DidNote { applied: None, told: None, installed: None, ..did }),
        Record::End(EndReason::Limit),
    ]
}

fn body_of(record: &Record) -> Vec<u8> {
    let mut body = Vec::new();
    put_body(&mut body, record);
    body
}

fn recording(records: &[Record]) -> Vec<u8> {
    let mut writer = RecordWriter::default();
    records.iter().for_each(|record| writer.put(&body_of(record)));
    writer.take()
}

/// What a reader gives of a file: the bodies, and how it ends.
fn read(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, Ending), RecordingError> {
    let mut reader = RecordReader::new(bytes)?;
    let mut bodies = Vec::new();
    loop {
        match reader.next_body()? {
            Ok(body) => bodies.push(body.to_vec()),
            Err(ending) => return Ok((bodies, ending)),
        }
    }
}

/// Whatever the raft loop may get comes back as it was, from its bytes: a replay gives it to the same component.
#[test]
fn every_input_comes_back() {
    for input in inputs() {
        let mut bytes = Vec::new();
        put_input(&mut bytes, &input, &SECRET, &|&client| client);
        let mut rest = Bytes(&bytes);
        let back = take_input(&mut rest).unwrap_or_else(|e| panic!("{input:?}: {e}"));
        assert!(rest.0.is_empty(), "{input:?}");
        assert_eq!(format!("{back:?}"), format!("{input:?}"));
    }
}

/// Records come back as they were.
#[test]
fn every_record_comes_back() {
    for record in records() {
        let back = take_body(&body_of(&record)).unwrap_or_else(|e| panic!("{record:?}: {e}"));
        let shown =
            format!("{record:?}").replace("token: [115, 101, 99, 114, 101, 116]", "token: []");
        assert_eq!(format!("{back:?}"), shown);
    }
}

/// A node has a token and the members' secret, and its recording goes to somebody else: they are in no record, of
/// whatever kind, though it says what a dialer has proven, and which secret it has offered.
#[test]
fn token_and_secret_are_in_no_record() {
    let keys = Keys { token: b"secret".to_vec(), secret: Some(SECRET) };
    let greeting = Greeting { hello: hello(), keys, offers_in: Some(7) };
    let (mut dialer, frame) = Dialer::new(greeting, [1; 32]);
    let body = |frame: &[u8]| frame[FRAME_HEADER_BYTES..].to_vec();
    let (listener, challenge) = Listener::new(&body(&frame), &[2; 32]).unwrap();
    let Dialing::Write(proof) = dialer.heard(&body(&challenge)).unwrap() else { panic!("a proof") };
    let presented = listener.proof(&body(&proof), b"secret").unwrap();
    assert_eq!(presented.offer(), Some((7, SECRET.bytes)));
    let accepted =
        Input::<u64>::Link(PeerEvent::Accepted { connection: 3, presented: Box::new(presented) });
    let mut handled = Vec::new();
    put_handled(&mut handled, 1, &accepted, &SECRET, |&client| client);
    let started = body_of(&Record::Start(Box::new(start())));
    for bytes in [&handled, &started] {
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
        assert!(!bytes.windows(SECRET.bytes.len()).any(|window| window == SECRET.bytes));
    }
    let Record::Handled { input, .. } = take_body(&handled).unwrap() else { panic!("an input") };
    let Input::Link(PeerEvent::Accepted { presented, .. }) = *input else { panic!("a dialer") };
    let own = SECRET.pseudonym();
    assert_eq!(*presented.hello, Hello { nonce: [1; 32], ..hello() });
    assert!(presented.proven(&own).member);
    assert_eq!(presented.offer(), Some((7, own.bytes)));
}

/// The process is killed in the middle of a write, after whatever byte: all whole records before are there, and nothing
/// is called damaged. The same when power fails and the file ends with zeros.
#[test]
fn a_torn_tail_is_no_damage() {
    let records = records();
    let bytes = recording(&records);
    let whole = |count: usize| recording(&records[..count]).len();
    for end in 0..bytes.len() {
        let expected = (0..records.len()).rev().find(|&n| whole(n) <= end).unwrap_or(0);
        let (bodies, ending) = read(&bytes[..end]).unwrap_or_else(|e| panic!("{end}: {e}"));
        assert_eq!(bodies.len(), expected, "{end}");
        let left = end.saturating_sub(whole(expected));
        let torn = Ending::Torn { bytes: left as u64 };
        assert_eq!(ending, if left == 0 { Ending::Whole } else { torn }, "{end}");
    }
    for zeros in [1, 11, 12, 13, 5000] {
        let mut bytes = bytes.clone();
        bytes.resize(bytes.len() + zeros, 0);
        let (bodies, ending) = read(&bytes).unwrap();
        assert_eq!((bodies.len(), ending), (records.len(), Ending::Torn { bytes: zeros as u64 }));
    }
}

/// A bit of the file flips, whichever. It is refused, and never taken for the end of the recording or for another
/// record.
#[test]
fn a_flipped_bit_is_damage() {
    let bytes = recording(&records()[..6]);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            match read(&bytes) {
                Err(RecordingError::Foreign) if at < 7 => {}
                Err(RecordingError::Version { .. }) if at == 7 => {}
                Err(RecordingError::Damaged { offset, .. }) if at >= 8 => {
                    assert!(offset as usize <= at);
                }
                other => panic!("byte {at} bit {bit}: {other:?}"),
            }
        }
    }
}

/// Two records change places: each is whole, and yet the file is refused.
#[test]
fn a_record_in_another_ones_place_is_damage() {
    let records = [Record::Ticked { now_us: 1 }, Record::Ticked { now_us: 2 }];
    let bytes = recording(&records);
    let len = (bytes.len() - 8) / 2;
    let (one, two) = bytes[8..].split_at(len);
    let swapped = [&bytes[..8], two, one].concat();
    let e = read(&swapped).unwrap_err();
    assert!(e.to_string().starts_with("record 0 at offset 8 is damaged (its head)"), "{e}");
}

/// The bytes of the example of docs/formats.md.
#[test]
fn the_format_is_that_of_the_documentation() {
    let bytes = recording(&[Record::Ticked { now_us: 258 }]);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, "6b6f6e747265630109000000a224d63b71e4bb4d030201000000000000");
}

/// What is no body of a record is refused by name, and memory is not taken for what it announces.
#[test]
fn what_is_no_record_is_refused() {
    for (body, what) in [
        (&[][..], "record kind"),
        (&[99], "record kind"),
        (&[3, 1], "time"),
        (&[9, 7], "end"),
        (&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0], "record length"),
        (&[2, 0, 0, 0, 0, 0, 0, 0, 0, 99], "input"),
        (
            &[2, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255],
            "checksum of a frame",
        ),
    ] {
        assert_eq!(take_body(body).unwrap_err(), Malformed(what), "{body:?}");
    }
}
