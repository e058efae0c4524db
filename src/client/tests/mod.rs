//! The client against nodes that refuse, name others, lose answers and die.

pub(crate) mod fake;

use super::*;
use crate::kv::{Condition, SessionStamp, Test};
use crate::wire::client::Failure;
use fake::{Node, Step, Store, failure};
use std::ops::ControlFlow;

/// Long enough that no slow machine fails a test; nothing waits for it but what must time out.
const PATIENT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn options(timeout: Duration) -> Options {
    Options { timeout, ..Options::default() }
}

fn client(nodes: &[&Node], timeout: Duration) -> Client {
    let addresses: Vec<String> = nodes.iter().map(|n| n.address.clone()).collect();
    Client::new(&addresses, options(timeout))
}

fn put(key: &str, value: &str) -> Write {
    let op = Op::Put { key: key.into(), value: value.into() };
    Write { ops: vec![op], ..Write::default() }
}

fn add(key: &str, by: i64) -> Write {
    Write { ops: vec![Op::Increment { key: key.into(), by }], ..Write::default() }
}

fn unavailable(leader: Option<&Node>) -> Failure {
    failure(Class::Unavailable, leader)
}

fn only_stamp(stamps: &[Option<SessionStamp>]) -> SessionStamp {
    stamps[0].expect("the write is stamped")
}

#[test]
fn values_go_in_and_come_out() {
    // One of each call against a node that serves.
    let node = Node::good(1, &Store::new());
    let mut c = client(&[&node], PATIENT);
    let revision = c.put(b"city", b"Oslo").unwrap();
    let found = c.get(b"city").unwrap().unwrap();
    assert_eq!((found.value.as_slice(), found.revision), (&b"Oslo"[..], revision));
    assert_eq!(c.get(b"town").unwrap(), None);
    assert_eq!(c.increment(b"n", 5).unwrap().1, 5);
    assert_eq!(c.increment(b"n", -7).unwrap().1, -2);
    assert_eq!(c.increment(b"city", 1).unwrap_err().class, Class::Invalid);
    assert_eq!(c.count(b"", b"").unwrap(), 2);
    let page = c.range(Range { start: b"d".to_vec(), ..Range::default() }).unwrap();
    assert_eq!(page.items.iter().map(|i| i.key.as_slice()).collect::<Vec<_>>(), [b"n"]);
    assert!(c.delete(b"n").unwrap().1);
    assert!(!c.delete(b"n").unwrap().1);
    c.ping().unwrap();
    c.transfer(Some(1)).unwrap();
    assert_eq!(c.members().unwrap(), []);
    assert_eq!(c.status(&node.address, PATIENT).unwrap().term, 3);
    assert_eq!(node.connections(), 2, "one for the client, one for the status");
    c.close();
}

#[test]
fn a_lost_answer_is_fetched_with_the_same_stamp_and_the_write_is_done_once() {
    // The node adds, then its connection breaks before the answer is out.
    let store = Store::new();
    let node = Node::writes(1, &store, [Step::ServeAndClose, Step::ServeAndClose]);
    let mut c = client(&[&node], PATIENT);
    assert_eq!(c.increment(b"n", 1).unwrap().1, 1);
    assert_eq!(c.get(b"n").unwrap().unwrap().value, b"1");
    let stamps = node.stamps();
    assert_eq!(stamps.len(), 3);
    assert!(stamps.iter().all(|stamp| *stamp == stamps[0]));
    assert_eq!(only_stamp(&stamps).sequence, 1);
    // The next write says that this one is answered.
    c.increment(b"n", 1).unwrap();
    let next = node.stamps()[3].unwrap();
    assert_eq!((next.sequence, next.answered_below), (2, 2));
}

#[test]
fn a_write_without_a_session_is_never_sent_twice() {
    // Its answer is lost: nobody may guess. It stays unknown, and it was received once.
    let store = Store::new();
    for step in [Step::ServeAndClose, Step::Close, Step::Refuse(failure(Class::Unknown, None))] {
        let node = Node::writes(1, &store, [step]);
        let unstamped = Options { sessions: false, ..options(PATIENT) };
        let mut c = Client::new(std::slice::from_ref(&node.address), unstamped);
        let error = c.write(add("n", 1)).unwrap_err();
        assert_eq!(error.class, Class::Unknown, "{error}");
        assert_eq!(node.stamps(), [None]);
        // The client itself is fine.
        c.put(b"k", b"v").unwrap();
    }
}

#[test]
fn a_write_without_a_session_is_sent_again_when_it_surely_did_nothing() {
    // Busy and unavailable say so; the write is done by the third copy.
    let refusals = [Class::Busy, Class::Unavailable].map(|c| Step::Refuse(failure(c, None)));
    let node = Node::writes(1, &Store::new(), refusals);
    let unstamped = Options { sessions: false, ..options(PATIENT) };
    let mut c = Client::new(std::slice::from_ref(&node.address), unstamped);
    assert_eq!(c.increment(b"n", 1).unwrap().1, 1);
    assert_eq!(node.stamps(), [None, None, None]);
}

#[test]
fn an_unknown_answer_to_a_stamped_write_is_asked_again() {
    // The node does not know what became of the write; the copy tells.
    let node = Node::writes(1, &Store::new(), [Step::ServeAndSay(failure(Class::Unknown, None))]);
    let mut c = client(&[&node], PATIENT);
    assert_eq!(c.increment(b"n", 1).unwrap().1, 1);
    let stamps = node.stamps();
    assert_eq!((stamps.len(), stamps[0]), (2, stamps[1]));
}

#[test]
fn a_refusal_of_a_later_copy_does_not_end_the_doubt() {
    // The first copy was done and its answer lost; the second is refused for good.
    let refused = Step::Refuse(failure(Class::TooLarge, None));
    let node = Node::writes(1, &Store::new(), [Step::ServeAndClose, refused]);
    let error = client(&[&node], PATIENT).write(add("n", 1)).unwrap_err();
    assert_eq!(error.class, Class::Unknown, "{error}");
    // Without the doubt the same refusal is final at once, and so is that of a full disk.
    for class in [Class::TooLarge, Class::DiskFull] {
        let refused = Step::Refuse(failure(class, None));
        let node = Node::writes(1, &Store::new(), [refused]);
        let error = client(&[&node], PATIENT).write(add("n", 1)).unwrap_err();
        assert_eq!((error.class, node.stamps().len()), (class, 1));
    }
}

#[test]
fn a_forgotten_session_is_opened_anew_for_a_write_that_was_never_sent() {
    // The client was idle for long, and others crowded its session out.
    let store = Store::new();
    let node = Node::good(1, &store);
    let mut c = client(&[&node], PATIENT);
    c.put(b"a", b"1").unwrap();
    let first = only_stamp(&node.stamps()).session;
    store.forget(first);
    assert_eq!(c.increment(b"n", 1).unwrap().1, 1);
    let stamps = node.stamps();
    assert_ne!(stamps[2].unwrap().session, first);
    assert_eq!(stamps.len(), 3);
}

#[test]
fn a_session_forgotten_while_a_copy_is_in_doubt_leaves_the_write_unknown() {
    // The first copy's answer is lost, and the second copy finds no session: nobody knows any more.
    let store = Store::new();
    let node = Node::writes(1, &store, [Step::ServeAndClose, Step::Say(Outcome::SessionUnknown)]);
    let mut c = client(&[&node], PATIENT);
    let error = c.write(add("n", 1)).unwrap_err();
    assert_eq!(error.class, Class::Unknown);
    assert!(matches!(error.cause, Cause::SessionLost));
    assert_eq!(node.stamps().len(), 2);
    // The next write has a session of its own.
    c.put(b"k", b"v").unwrap();
    assert_ne!(node.stamps()[2].unwrap().session, only_stamp(&node.stamps()).session);
}

#[test]
fn the_leader_named_in_a_welcome_is_dialed() {
    // The client knows a follower alone.
    let store = Store::new();
    let (follower, leader) = (Node::good(1, &store), Node::good(2, &store));
    follower.names_leader(&leader);
    leader.names_leader(&leader);
    let mut c = client(&[&follower], PATIENT);
    c.put(b"a", b"1").unwrap();
    assert_eq!(c.address(), Some(leader.address.as_str()));
    assert_eq!((follower.calls().len(), leader.stamps().len()), (0, 1));
}

#[test]
fn the_leader_named_in_a_failure_is_asked_next() {
    // The node has just lost its leadership and knows to whom.
    let store = Store::new();
    let leader = Node::good(2, &store);
    let old = Node::writes(1, &store, [Step::Refuse(unavailable(Some(&leader)))]);
    let mut c = client(&[&old], PATIENT);
    assert_eq!(c.increment(b"n", 1).unwrap().1, 1);
    assert_eq!(c.address(), Some(leader.address.as_str()));
    assert_eq!((old.stamps().len(), leader.stamps().len()), (1, 1));
}

#[test]
fn a_leader_that_cannot_be_dialed_costs_nothing_but_the_attempt() {
    // A follower names a leader that is gone: the client stays, and the follower serves.
    let store = Store::new();
    let follower = Node::good(1, &store);
    let mut gone = Node::good(2, &store);
    gone.stop();
    follower.names_leader(&gone);
    let mut c = client(&[&follower], PATIENT);
    c.put(b"a", b"1").unwrap();
    assert_eq!(c.address(), Some(follower.address.as_str()));
}

#[test]
fn when_a_node_dies_the_other_members_are_asked() {
    // One address was given; the others were learned from it before it died.
    let store = Store::new();
    let mut first = Node::good(1, &store);
    let second = Node::good(2, &store);
    first.names_members(&[&first, &second]);
    let mut c = client(&[&first], PATIENT);
    c.put(b"a", b"1").unwrap();
    first.stop();
    c.put(b"b", b"2").unwrap();
    assert_eq!(c.get(b"b").unwrap().unwrap().value, b"2");
    assert_eq!(c.address(), Some(second.address.as_str()));
}

#[test]
fn a_silent_node_is_left_for_another_one() {
    // A paused leader keeps its connection and says nothing.
    let store = Store::new();
    let silent = Node::start(1, &store, |_| Step::Ignore);
    let good = Node::good(2, &store);
    let mut c = client(&[&silent, &good], Duration::from_secs(3));
    assert_eq!(c.increment(b"n", 1).unwrap().1, 1);
    assert_eq!(c.address(), Some(good.address.as_str()));
}

#[test]
fn the_timeout_holds_and_says_what_is_known() {
    // Nobody listens: surely not applied. A silent node: unknown for a write, unavailable for a
    // read. A busy one: busy.
    let store = Store::new();
    let mut gone = Node::good(1, &store);
    gone.stop();
    let silent = Node::writes(2, &store, (0..1000).map(|_| Step::Ignore));
    let mute = Node::start(3, &store, |_| Step::Ignore);
    let busy = Node::start(4, &store, |_| Step::Refuse(failure(Class::Busy, None)));
    for (node, class) in [
        (&gone, Class::Unavailable),
        (&silent, Class::Unknown),
        (&mute, Class::Unavailable),
        (&busy, Class::Busy),
    ] {
        let started = Instant::now();
        let error = client(&[node], SHORT).write(add("n", 1)).unwrap_err();
        assert_eq!(error.class, class, "{error}");
        // Twice the time is ample for a machine that is busy with other tests.
        assert!(started.elapsed() < 2 * (SHORT + GRACE), "{:?}", started.elapsed());
        assert!(started.elapsed() >= SHORT);
    }
    let error = client(&[&mute], SHORT).get(b"k").unwrap_err();
    assert_eq!(error.class, Class::Unavailable, "{error}");
    assert!(store_is_empty(&silent));
}

fn store_is_empty(node: &Node) -> bool {
    client(&[node], PATIENT).count(b"", b"").unwrap() == 0
}

#[test]
fn a_wrong_token_is_final_and_told() {
    // Asking again would not help; the right one is welcome.
    let store = Store::new();
    let node = Node::start_with_token(1, &store, b"secret", |_| Step::Serve);
    let started = Instant::now();
    let error = client(&[&node], PATIENT).put(b"k", b"v").unwrap_err();
    assert_eq!(error.class, Class::Unauthorised);
    assert!(started.elapsed() < PATIENT);
    let right = Options { token: b"secret".to_vec(), ..options(PATIENT) };
    assert!(!format!("{right:?}").contains("115"));
    Client::connect(std::slice::from_ref(&node.address), right).unwrap().put(b"k", b"v").unwrap();
}

#[test]
fn a_request_that_fits_no_frame_is_refused_here() {
    // Nothing is sent, and the connection goes on.
    let node = Node::good(1, &Store::new());
    let mut c = client(&[&node], PATIENT);
    let error = c.put(b"k", &vec![0; 17 << 20]).unwrap_err();
    assert_eq!(error.class, Class::TooLarge, "{error}");
    assert_eq!(node.stamps(), []);
    c.put(b"k", b"v").unwrap();
    assert_eq!(node.connections(), 1);
}

#[test]
fn many_writes_are_answered_each_in_its_place() {
    // Outcomes of different kinds, in the order of the writes, over one connection.
    let node = Node::good(1, &Store::new());
    let mut c = client(&[&node], PATIENT);
    let mut writes: Vec<Write> = (0..1000).map(|i| add(&format!("n{i}"), i)).collect();
    writes[500] = put("word", "x");
    writes[501] = add("word", 1);
    writes[502].conditions = vec![Condition { key: b"word".to_vec(), test: Test::Absent }];
    let outcomes = c.write_many(&writes);
    for (i, outcome) in outcomes.iter().enumerate() {
        match outcome.as_ref().unwrap() {
            Outcome::Done { results, .. } if i == 500 => assert_eq!(results, &[OpResult::Put]),
            Outcome::Done { results, .. } => {
                assert_eq!(results, &[OpResult::Number { value: i as i64 }]);
            }
            Outcome::NotANumber { .. } => assert_eq!(i, 501),
            Outcome::ConditionFalse { .. } => assert_eq!(i, 502),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(node.connections(), 1);
    let sequences: Vec<u64> = node.stamps().iter().map(|s| s.unwrap().sequence).collect();
    assert_eq!(sequences, (1..=1000).collect::<Vec<u64>>());
    assert!(node.stamps().iter().all(|s| {
        let s = s.unwrap();
        s.answered_below <= s.sequence && s.sequence - s.answered_below < 1024
    }));
}

#[test]
fn many_writes_survive_broken_connections_and_are_done_once_each() {
    // Every so often the connection breaks, before a write is done or after; every number must be
    // one in the end, and every outcome says so.
    let store = Store::new();
    let mut count = 0;
    let plan = move |call: &Call| {
        count += u64::from(matches!(call, Call::Write(_)));
        match (call, count % 83) {
            (Call::Write(_), 41) => Step::ServeAndClose,
            (Call::Write(_), 67) => Step::Close,
            (Call::Write(_), 7) => Step::ServeAndSay(failure(Class::Unknown, None)),
            (Call::Write(_), 11) => Step::Refuse(failure(Class::Busy, None)),
            _ => Step::Serve,
        }
    };
    let node = Node::start(1, &store, plan);
    let mut c = client(&[&node], PATIENT);
    let writes: Vec<Write> = (0..600).map(|i| add(&format!("n{i:03}"), 1)).collect();
    for (i, outcome) in c.write_many(&writes).into_iter().enumerate() {
        match outcome {
            Ok(Outcome::Done { results, .. }) => {
                assert_eq!(results, [OpResult::Number { value: 1 }], "write {i}");
            }
            other => panic!("write {i}: {other:?}"),
        }
    }
    assert!(node.connections() > 2, "the connection did break");
    assert_eq!(c.count(b"", b"").unwrap(), 600);
}

#[test]
fn many_writes_go_on_at_the_next_leader() {
    // The leader refuses from some write on and names the next one.
    let store = Store::new();
    let next = Node::good(2, &store);
    let hint = unavailable(Some(&next));
    let mut count = 0;
    let old = Node::start(1, &store, move |call| {
        count += u64::from(matches!(call, Call::Write(_)));
        if count > 100 { Step::Refuse(hint.clone()) } else { Step::Serve }
    });
    let mut c = client(&[&old], PATIENT);
    let writes: Vec<Write> = (0..300).map(|i| add(&format!("n{i}"), 1)).collect();
    assert!(c.write_many(&writes).iter().all(|o| matches!(o, Ok(Outcome::Done { .. }))));
    assert_eq!(next.stamps().len(), 200);
    assert_eq!(c.count(b"", b"").unwrap(), 300);
}

#[test]
fn writes_of_one_key_take_effect_in_order() {
    // The connection breaks in between; the last value given is the last value stored.
    let store = Store::new();
    let steps = (0..9).map(|i| if i % 3 == 1 { Step::ServeAndClose } else { Step::Serve });
    let node = Node::writes(1, &store, steps.collect::<Vec<_>>());
    let mut c = client(&[&node], PATIENT);
    let writes: Vec<Write> = (0..50).map(|i| put(["a", "b"][i % 2], &format!("{i}"))).collect();
    let outcomes = c.write_many(&writes);
    let revisions: Vec<u64> = outcomes
        .iter()
        .map(|o| match o {
            Ok(Outcome::Done { revision, .. }) => *revision,
            other => panic!("{other:?}"),
        })
        .collect();
    for pair in [0, 1] {
        let own: Vec<u64> = revisions.iter().skip(pair).step_by(2).copied().collect();
        assert!(own.is_sorted(), "{own:?}");
    }
    assert_eq!(c.get(b"a").unwrap().unwrap().value, b"48");
    assert_eq!(c.get(b"b").unwrap().unwrap().value, b"49");
}

#[test]
fn a_session_lost_in_the_middle_of_many_writes_is_replaced_for_those_that_did_nothing() {
    // Those that find no session were never done: they go on in a new one, still in order.
    let store = Store::new();
    let mut count = 0;
    let inner = store.clone();
    let node = Node::start(1, &store, move |call| {
        if let Call::Write(write) = call {
            count += 1;
            if count == 100 {
                inner.forget(write.stamp.unwrap().session);
            }
        }
        Step::Serve
    });
    let mut c = client(&[&node], PATIENT);
    let writes: Vec<Write> = (0..400).map(|i| add(&format!("n{}", i % 300), 1)).collect();
    let outcomes = c.write_many(&writes);
    for (i, outcome) in outcomes.iter().enumerate() {
        let value = 1 + (i / 300) as i64;
        match outcome {
            Ok(Outcome::Done { results, .. }) => {
                assert_eq!(results, &[OpResult::Number { value }], "write {i}");
            }
            other => panic!("write {i}: {other:?}"),
        }
    }
}

#[test]
fn when_nobody_answers_any_more_each_write_says_whether_it_is_in_doubt() {
    // The node serves some, then falls silent: some are done, those it received are unknown, and
    // those that were never sent surely did nothing.
    let store = Store::new();
    let mut count = 0;
    let node = Node::start(1, &store, move |call| {
        count += u64::from(matches!(call, Call::Write(_)));
        if count > 10 { Step::Ignore } else { Step::Serve }
    });
    let mut c = client(&[&node], SHORT);
    let writes: Vec<Write> = (0..2000).map(|i| add(&format!("n{i}"), 1)).collect();
    let outcomes = c.write_many(&writes);
    let of =
        |class| outcomes.iter().filter(|o| o.as_ref().is_err_and(|e| e.class == class)).count();
    assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 10);
    let received: std::collections::BTreeSet<String> = node.written_keys().into_iter().collect();
    assert!(of(Class::Unknown) >= received.len() - 10);
    assert!(of(Class::Unavailable) > 1000, "most were never sent");
    assert_eq!(10 + of(Class::Unknown) + of(Class::Unavailable), 2000);
}

#[test]
fn a_stream_stops_taking_writes_when_it_is_told_to() {
    // The first refusal ends a load: nothing more is taken, all that was taken is answered.
    let refused = Step::Refuse(failure(Class::TooLarge, None));
    let node = Node::writes(1, &Store::new(), [Step::Serve, refused]);
    let mut c = client(&[&node], PATIENT);
    let mut taken = 0;
    let mut answered = Vec::new();
    let source = (0..100_000).map(|i| {
        taken += 1;
        put(&format!("k{i}"), "v")
    });
    let ended = c.write_stream(source, |index, result| {
        let failed = result.is_err();
        answered.push(index);
        if failed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    ended.unwrap();
    answered.sort_unstable();
    assert_eq!(answered, (0..taken).collect::<Vec<usize>>());
    assert!(taken < 100_000);
}

#[test]
fn a_connection_that_was_idle_for_long_is_dialed_anew() {
    // The node may have closed it: an unstamped write would be in doubt for nothing.
    let node = Node::good(1, &Store::new());
    let addresses = [node.address.clone()];
    let mut c = Client::new(&addresses, Options { idle_max: Duration::ZERO, ..options(PATIENT) });
    c.put(b"a", b"1").unwrap();
    let before = node.connections();
    c.put(b"a", b"2").unwrap();
    assert!(node.connections() > before);
    let mut c = Client::new(&addresses, options(PATIENT));
    c.put(b"a", b"3").unwrap();
    let before = node.connections();
    c.put(b"a", b"4").unwrap();
    assert_eq!(node.connections(), before);
}
