//! Made-up frames for tests: one strategy for each type, and the examples of docs/protocol.md.

use super::client::Change;
use super::client::*;
use super::frame::put_frame;
use super::handshake::*;
use super::peer::*;
use crate::kv::*;
use crate::raft::{AppendResult, Body, Configuration, Entry, Member, Message, Payload};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::sync::Arc;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..20)
}

fn text() -> impl Strategy<Value = String> {
    "[a-zé:0-9 ]{0,12}"
}

/// Small numbers and extreme ones.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..5, any::<u64>()]
}

fn position() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..5, 0..=POSITION_MAX]
}

pub(super) fn hello() -> impl Strategy<Value = Hello> {
    let numbers = [number(), number(), number(), number(), number()];
    let rest = (text(), any::<[u8; 32]>(), any::<bool>(), remembered());
    (1u16..=PROTOCOL_VERSIONS.1, any::<bool>(), numbers, rest).prop_map(
        |(version_min, peer, numbers, (address, nonce, bulk, remembered))| {
            let [cluster, from, to, identity, to_identity] = numbers;
            let (only_asks, bulk) = (bulk && !peer, bulk && peer);
            Hello {
                version_min,
                version_max: PROTOCOL_VERSIONS.1,
                role: if peer { Role::Peer } else { Role::Client },
                cluster,
                from,
                to,
                identity,
                to_identity,
                address,
                lane: if bulk { Lane::Bulk } else { Lane::Control },
                remembered,
                only_asks,
                nonce,
            }
        },
    )
}

fn remembered() -> impl Strategy<Value = Remembered> {
    [number(), number(), number()].prop_map(|[identity, term, index]| Remembered {
        identity,
        term,
        index,
    })
}

pub(super) fn handshake_answer() -> impl Strategy<Value = Result<Welcome, Reject>> {
    let numbers = [number(), number(), number(), number()];
    let welcome = (any::<u16>(), numbers, text(), remembered()).prop_map(
        |(version, [cluster, node, identity, leader], leader_address, remembered)| {
            Ok(Welcome { version, cluster, node, identity, leader, leader_address, remembered })
        },
    );
    let code = prop_oneof![
        Just(RejectCode::Version),
        Just(RejectCode::Token),
        Just(RejectCode::ForeignCluster),
        Just(RejectCode::WrongNode),
        Just(RejectCode::WrongIdentity),
        Just(RejectCode::TooManyConnections),
        Just(RejectCode::NotFormed),
        Just(RejectCode::Malformed),
        Just(RejectCode::Removed),
        Just(RejectCode::Unproven),
        (64u8..).prop_map(RejectCode::Other),
    ];
    let reject = (code, text()).prop_map(|(code, message)| Err(Reject { code, message }));
    prop_oneof![welcome, reject]
}

fn write() -> impl Strategy<Value = Write> {
    let stamp = (1u64.., 1u64.., number()).prop_map(|(session, sequence, answered_below)| {
        SessionStamp { session, sequence, answered_below }
    });
    let test =
        prop_oneof![Just(Test::Absent), Just(Test::Present), number().prop_map(Test::Revision)];
    let condition = (bytes(), test).prop_map(|(key, test)| Condition { key, test });
    let op = prop_oneof![
        (bytes(), bytes()).prop_map(|(key, value)| Op::Put { key, value }),
        bytes().prop_map(|key| Op::Delete { key }),
        (bytes(), any::<i64>()).prop_map(|(key, by)| Op::Increment { key, by }),
        bytes().prop_map(|key| Op::Get { key }),
    ];
    (option::of(stamp), vec(condition, 0..3), vec(op, 0..4))
        .prop_map(|(stamp, conditions, ops)| Write { stamp, conditions, ops })
}

fn query() -> impl Strategy<Value = Query> {
    let range = (bytes(), bytes(), option::of(bytes()), any::<[u32; 2]>(), any::<[bool; 3]>());
    prop_oneof![
        bytes().prop_map(|key| Query::Get { key }),
        range.prop_map(|(start, end, after, [limit, bytes], [reverse, keys_only, count_only])| {
            Query::Range(Range { start, end, after, limit, bytes, reverse, keys_only, count_only })
        }),
    ]
}

fn found() -> impl Strategy<Value = Option<Found>> {
    option::of((bytes(), number()).prop_map(|(value, revision)| Found { value, revision }))
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let result = prop_oneof![
        Just(OpResult::Put),
        any::<bool>().prop_map(|existed| OpResult::Deleted { existed }),
        any::<i64>().prop_map(|value| OpResult::Number { value }),
        found().prop_map(|found| OpResult::Got { found }),
    ];
    prop_oneof![
        (number(), vec(result, 0..4))
            .prop_map(|(revision, results)| Outcome::Done { revision, results }),
        (any::<u32>(), option::of(number()))
            .prop_map(|(condition, found)| Outcome::ConditionFalse { condition, found }),
        any::<u32>().prop_map(|op| Outcome::NotANumber { op }),
        any::<u32>().prop_map(|op| Outcome::Overflow { op }),
        Just(Outcome::SessionUnknown),
        Just(Outcome::SequenceForgotten),
        number().prop_map(|session| Outcome::SessionOpened { session }),
        prop_oneof![
            Just(Outcome::SessionClosed),
            Just(Outcome::SessionReleased),
            Just(Outcome::SessionsFull),
        ],
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    let item = (bytes(), bytes(), number()).prop_map(|(key, value, revision)| Item {
        key,
        value,
        revision,
    });
    prop_oneof![
        found().prop_map(Reply::Value),
        (vec(item, 0..4), option::of(bytes()), number(), number()).prop_map(
            |(items, cursor, count, revision)| Reply::Page(Page { items, cursor, count, revision })
        ),
    ]
}

/// What an operator asks and only the leader does.
fn admin_call() -> impl Strategy<Value = Call> {
    prop_oneof![
        option::of(1u64..).prop_map(|to| Call::Transfer { to }),
        change().prop_map(Call::Change),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (text(), number()).prop_map(|(address, identity)| Change::Join { address, identity }),
        (number(), any::<bool>()).prop_map(|(id, force)| Change::Promote { id, force }),
        (number(), any::<bool>()).prop_map(|(id, force)| Change::Remove { id, force }),
        (number(), text()).prop_map(|(old, address)| Change::Replace { old, address }),
    ]
}

pub(super) fn request() -> impl Strategy<Value = Request> {
    let consistency = prop_oneof![Just(Consistency::Linearizable), Just(Consistency::Stale)];
    let call = prop_oneof![
        4 => write().prop_map(Call::Write),
        1 => Just(Call::OpenSession),
        1 => number().prop_map(|session| Call::CloseSession { session }),
        3 => (query(), consistency)
            .prop_map(|(query, consistency)| Call::Query { query, consistency }),
        1 => Just(Call::Ping),
        1 => Just(Call::Status),
        1 => Just(Call::Members),
        5 => admin_call(),
        2 => any::<bool>().prop_map(|asks| if asks { Call::Compaction } else { Call::Compact }),
        1 => Just(Call::Backup),
        1 => (number(), number(), any::<u32>())
            .prop_map(|(table, offset, len)| Call::Piece { table, offset, len }),
    ];
    (1u64.., any::<u32>(), call).prop_map(|(id, deadline_ms, call)| Request {
        id,
        deadline_ms,
        call,
    })
}

fn class() -> impl Strategy<Value = Class> {
    (0..Class::ALL.len()).prop_map(|i| Class::ALL[i])
}

fn role() -> impl Strategy<Value = MemberRole> {
    prop_oneof![
        Just(MemberRole::Leader),
        Just(MemberRole::Follower),
        Just(MemberRole::Learner),
        Just(MemberRole::Candidate),
    ]
}

fn status() -> impl Strategy<Value = NodeStatus> {
    let peer = (number(), number(), any::<bool>())
        .prop_map(|(id, match_index, reachable)| PeerStatus { id, match_index, reachable });
    let who = ([number(), number(), number()], text(), role(), option::of(number()));
    let log = [number(), number(), number(), number(), number(), number()];
    (who, log, any::<u32>(), text(), vec(peer, 0..4), text()).prop_map(
        |(
            ([id, identity, cluster], address, role, leader),
            log,
            connections,
            version,
            peers,
            state,
        )| {
            let [term, commit, applied, last_index, first_index, log_bytes] = log;
            NodeStatus {
                id,
                identity,
                cluster,
                address,
                role,
                leader,
                term,
                commit,
                applied,
                last_index,
                first_index,
                log_bytes,
                connections,
                version,
                peers,
                state,
            }
        },
    )
}

pub(super) fn response() -> impl Strategy<Value = Response> {
    let member =
        (number(), text(), role(), any::<bool>()).prop_map(|(id, address, role, voter)| {
            let replaces = voter.then_some(id);
            MemberInfo { id, address, role, voter, replaces }
        });
    let failure = (class(), text(), option::of((number(), text())))
        .prop_map(|(class, message, leader)| Failure { class, message, leader });
    let result = prop_oneof![
        outcome().prop_map(|o| Ok(Answer::Outcome(o))),
        reply().prop_map(|r| Ok(Answer::Reply(r))),
        option::of((option::of(number()), number())).prop_map(|compaction| {
            Ok(compaction.map_or(Answer::Pong, |(left, bytes)| Answer::Compaction { left, bytes }))
        }),
        status().prop_map(|s| Ok(Answer::Status(s))),
        vec(member, 0..4).prop_map(|members| Ok(Answer::Members(Members { members }))),
        Just(Ok(Answer::Ok)),
        bytes().prop_map(|manifest| Ok(Answer::Backup { manifest })),
        bytes().prop_map(|b| Ok(Answer::Bytes(b))),
        failure.prop_map(Err),
    ];
    (number(), result).prop_map(|(id, result)| Response { id, result })
}

fn configuration() -> impl Strategy<Value = Arc<Configuration>> {
    (number(), 1usize..5, 0usize..3, any::<bool>(), text()).prop_map(
        |(cluster, voters, learners, joint, address)| {
            let ids = 1..=(voters + learners) as u64;
            let members =
                ids.map(|id| Member { id, identity: id * 7, address: address.clone() }).collect();
            let mut c = Configuration::of_voters(cluster, members);
            c.learners = c.voters.split_off(&(voters as u64 + 1));
            if joint {
                c.outgoing = [1].into();
            }
            Arc::new(c)
        },
    )
}

/// Entries that follow `prev`, in terms that grow.
fn append() -> impl Strategy<Value = (u64, Body)> {
    let payload = prop_oneof![
        Just(Payload::Noop),
        bytes().prop_map(|b| Payload::Command(Arc::from(b))),
        configuration().prop_map(Payload::Configuration),
    ];
    let head = (0u64..1 << 60, 0u64..1 << 60, position(), number());
    (head, vec((payload, 0u64..3), 0..5), 0u64..3).prop_map(
        |((prev_index, prev_term, commit, round), payloads, ahead)| {
            let (mut index, mut term) = (prev_index, prev_term);
            let mut entries = Vec::new();
            for (payload, step) in payloads {
                index += 1;
                term += step;
                entries.push(Entry { index, term, payload });
            }
            (term + ahead, Body::AppendEntries { prev_index, prev_term, commit, round, entries })
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let append_result = prop_oneof![
        position().prop_map(|index| AppendResult::Matched { index }),
        (0u64..1 << 60, 0u64..9, position()).prop_map(|(hint_index, gap, hint_term)| {
            AppendResult::Conflict { prev_index: hint_index + gap, hint_index, hint_term }
        }),
    ];
    let body = prop_oneof![
        (position(), position())
            .prop_map(|(last_index, last_term)| Body::RequestPreVote { last_index, last_term }),
        any::<bool>().prop_map(|granted| Body::PreVoteResponse { granted }),
        (position(), position(), any::<bool>()).prop_map(|(last_index, last_term, transfer)| {
            Body::RequestVote { last_index, last_term, transfer }
        }),
        any::<bool>().prop_map(|granted| Body::VoteResponse { granted }),
        (append_result, number())
            .prop_map(|(result, round)| Body::AppendResponse { result, round }),
        (position(), position(), number()).prop_map(|(commit, commit_term, round)| {
            Body::Heartbeat { commit, commit_term, round }
        }),
        number().prop_map(|round| Body::HeartbeatResponse { round }),
        (position(), position(), configuration()).prop_map(
            |(last_index, last_term, configuration)| Body::InstallSnapshot {
                last_index,
                last_term,
                configuration
            }
        ),
        (position(), any::<bool>())
            .prop_map(|(last_index, installed)| Body::SnapshotResponse { last_index, installed }),
        Just(Body::TimeoutNow),
        number().prop_map(|id| Body::ReadIndex { id }),
        (number(), option::of(position()))
            .prop_map(|(id, index)| Body::ReadIndexResponse { id, index }),
    ];
    let any_body = prop_oneof![4 => (position(), body), 1 => append()];
    (1u64.., 1u64.., any_body).prop_map(|(from, to, (term, body))| Message { from, to, term, body })
}

fn too_large() -> impl Strategy<Value = TooLarge> {
    (0..6, any::<u32>(), any::<u32>()).prop_map(|(what, found, limit)| {
        let (bytes, limit) = (found as usize, limit as usize);
        match what {
            0 => TooLarge::EmptyKey,
            1 => TooLarge::Key { bytes, limit },
            2 => TooLarge::Value { bytes, limit },
            3 => TooLarge::Ops { count: bytes, limit },
            4 => TooLarge::Batch { bytes, limit },
            _ => TooLarge::Bound { bytes, limit },
        }
    })
}

pub(super) fn peer_frame() -> impl Strategy<Value = PeerFrame> {
    let result = prop_oneof![
        bytes().prop_map(ForwardResult::Applied),
        (class(), text()).prop_map(|(class, message)| ForwardResult::Refused { class, message }),
        too_large().prop_map(ForwardResult::TooLarge),
    ];
    let admin_result = prop_oneof![number().prop_map(Ok), (class(), text()).prop_map(Err)];
    prop_oneof![
        6 => message().prop_map(PeerFrame::Message),
        1 => (number(), any::<u32>(), bytes()).prop_map(|(id, deadline_ms, command)| {
            PeerFrame::Forward(Forward { id, deadline_ms, command: Arc::from(command) })
        }),
        1 => (number(), result)
            .prop_map(|(id, result)| PeerFrame::ForwardAnswer(ForwardAnswer { id, result })),
        1 => (number(), any::<u32>(), admin_call())
            .prop_map(|(id, deadline_ms, call)| PeerFrame::Admin(Admin { id, deadline_ms, call })),
        1 => (number(), admin_result)
            .prop_map(|(id, result)| PeerFrame::AdminAnswer(AdminAnswer { id, result })),
        1 => Just(PeerFrame::Ping),
        1 => (number(), text()).prop_map(|(leader, address)| PeerFrame::Pong { leader, address }),
        1 => (number(), any::<u32>())
            .prop_map(|(index, digest)| PeerFrame::Digest { index, digest }),
    ]
}

/// An answer without a proof.
pub(super) fn put_answer(out: &mut Vec<u8>, answer: &Result<Welcome, Reject>) {
    put_frame(out, |out| put_answer_fields(out, answer));
}

/// Any frame of any dialect of frames, encoded.
pub(super) fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let encode = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut out);
        out
    };
    prop_oneof![
        hello().prop_map(move |h| encode(&|out| put_hello(out, &h))),
        handshake_answer().prop_map(move |a| encode(&|out| put_answer(out, &a))),
        request().prop_map(move |r| encode(&|out| {
            put_request(out, &r);
        })),
        response().prop_map(move |r| encode(&|out| put_response(out, &r))),
        peer_frame().prop_map(move |f| encode(&|out| {
            put_peer_frame(out, &f);
        })),
    ]
}

// ---- examples for whoever mutates them ----

/// So many bodies of frames of a strategy, always the same.
pub(crate) fn bodies(frames: impl Strategy<Value = Vec<u8>>, count: usize) -> Vec<Vec<u8>> {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut body = || {
        // invariant: the strategies here refuse nothing.
        let frame = frames.new_tree(&mut runner).expect("a frame").current();
        frame[super::frame::FRAME_HEADER_BYTES..].to_vec()
    };
    (0..count).map(|_| body()).collect()
}

fn encoded<T>(put: impl Fn(&mut Vec<u8>) -> T) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out);
    out
}

/// Requests of clients.
pub(crate) fn request_frame() -> impl Strategy<Value = Vec<u8>> {
    request().prop_map(|request| encoded(|out| put_request(out, &request)))
}

/// What dialers say first.
pub(crate) fn handshake_frame() -> impl Strategy<Value = Vec<u8>> {
    hello().prop_map(|hello| encoded(|out| put_hello(out, &hello)))
}

/// What a peer says to a node.
pub(crate) fn peer_frames() -> impl Strategy<Value = Vec<u8>> {
    peer_frame().prop_map(|mut frame| {
        if let PeerFrame::Message(message) = &mut frame {
            // Else nothing is taken: a message is between the ends of the connection.
            (message.from, message.to) = (2, 1);
            message.term = message.term.min(50);
        }
        encoded(|out| put_peer_frame(out, &frame))
    })
}

/// What a node asks that fetches a snapshot, of a store that reaches so far.
pub(crate) fn snapshot_frames(reaches: u64) -> impl Strategy<Value = Vec<u8>> {
    use super::snapshot::{SnapshotFrame, put_snapshot_frame};
    let begin = (0..=reaches + 1).prop_map(|index| SnapshotFrame::Begin { index });
    let piece = (0u64..6, 0u64..4096, 0u32..4096)
        .prop_map(|(table, offset, len)| SnapshotFrame::Piece { table, offset, len });
    prop_oneof![begin, piece].prop_map(|frame| encoded(|out| put_snapshot_frame(out, &frame)))
}
