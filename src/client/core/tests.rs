//! The core against nodes whose answers a test writes down, on a clock that it moves.

use super::*;
use crate::kv::{Op, OpResult, Outcome, Write};
use crate::wire::client::{Failure, MemberInfo, MemberRole, Members, Response};
use crate::wire::handshake::{Reject, RejectCode, Remembered};
use std::io;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A core, its clock, and what it wanted done.
struct Bench {
    core: Core,
    now_us: u64,
    effects: std::collections::VecDeque<Effect>,
    done: Vec<(u64, Result<Answer, Error>)>,
    number: u64,
}

fn put(key: &str) -> Call {
    Call::Write(Write { ops: put_ops(key), ..Write::default() })
}

fn put_ops(key: &str) -> Vec<Op> {
    vec![Op::Put { key: key.into(), value: b"v".to_vec() }]
}

fn done() -> Result<Answer, Failure> {
    Ok(Answer::Outcome(Outcome::Done { revision: 7, results: vec![OpResult::Put] }))
}

fn failure(class: Class, leader: Option<&str>) -> Result<Answer, Failure> {
    let leader = leader.map(|address| (9, address.to_owned()));
    Err(Failure { class, message: "made up".to_owned(), leader })
}

fn network(kind: io::ErrorKind) -> Error {
    let cause = Cause::Io { doing: "connect", source: kind.into() };
    Error { class: Class::Unavailable, address: None, cause }
}

fn refused(code: RejectCode) -> Error {
    Error::rejected("", Reject { code, message: String::new() })
}

impl Bench {
    fn new(addresses: &[&str], options: Options) -> Bench {
        let addresses: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
        Bench {
            core: Core::new(&addresses, options, 3),
            now_us: 1_000_000,
            effects: Default::default(),
            done: Vec::new(),
            number: 0,
        }
    }

    fn three(sessions: bool) -> Bench {
        Bench::new(&["a", "b", "c"], Options { sessions, ..Options::default() })
    }

    fn tell(&mut self, event: Event) {
        self.effects.extend(self.core.handle(event, self.now_us));
        let (ended, others): (Vec<Effect>, Vec<Effect>) = std::mem::take(&mut self.effects)
            .into_iter()
            .partition(|effect| matches!(effect, Effect::Done { .. }));
        self.effects.extend(others);
        self.done.extend(ended.into_iter().filter_map(|effect| match effect {
            Effect::Done { number, result } => Some((number, result)),
            _ => None,
        }));
    }

    fn begin(&mut self, call: Call) {
        self.number += 1;
        self.tell(Event::Begin { number: self.number, call, timeout: TIMEOUT });
    }

    /// Lets time pass until the core wants something.
    fn pass(&mut self) {
        while self.effects.is_empty() && self.done.is_empty() {
            self.now_us = self.core.next_us().expect("it waits for a time");
            self.tell(Event::Time);
        }
    }

    /// The next dial: where, and for how long.
    fn dial(&mut self) -> (String, u64) {
        self.pass();
        loop {
            match self.effects.pop_front() {
                Some(Effect::Connect { address, within, .. }) => return (address, micros(within)),
                Some(Effect::Close | Effect::Flush { .. }) => self.pass(),
                other => panic!("no dial: {other:?}, {:?}", self.done),
            }
        }
    }

    /// A node takes the connection; it leads or names who does.
    fn welcome(&mut self, node: u64, leader: (u64, &str)) {
        let (leader, leader_address) = (leader.0, leader.1.to_owned());
        let remembered = Remembered::default();
        let (version, identity) = (2, node);
        let welcome =
            Welcome { version, cluster: 5, node, identity, leader, leader_address, remembered };
        self.tell(Event::Connected { welcome });
    }

    fn fail_dial(&mut self, error: Error) {
        self.tell(Event::ConnectFailed { error });
    }

    /// Nobody answers a dial.
    fn time_out_dial(&mut self, within_us: u64) {
        self.now_us += within_us;
        self.fail_dial(network(io::ErrorKind::TimedOut));
    }

    /// What was sent, all of which is handed over.
    fn sent(&mut self) -> Vec<Request> {
        self.pass();
        let mut requests = Vec::new();
        while let Some(effect) = self.effects.pop_front() {
            match effect {
                Effect::Send(request) => requests.push(request),
                Effect::Close | Effect::Flush { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        self.tell(Event::Flushed);
        requests.retain(|request| request.call != Call::Members);
        assert!(!requests.is_empty());
        requests
    }

    fn answer(&mut self, id: u64, result: Result<Answer, Failure>) {
        self.tell(Event::Answered { response: Response { id, result } });
    }

    /// Connects to the first address and has its session.
    fn settle(&mut self) {
        self.dial();
        self.welcome(1, (0, ""));
        if self.core.options().sessions {
            let opening = self.sent();
            assert_eq!(opening[0].call, Call::OpenSession);
            self.answer(opening[0].id, Ok(Answer::Outcome(Outcome::SessionOpened { session: 8 })));
        }
    }

    fn result(&mut self) -> Result<Answer, Error> {
        while self.done.is_empty() {
            self.now_us = self.core.next_us().expect("it waits for a time");
            self.tell(Event::Time);
        }
        self.done.remove(0).1
    }
}

fn stamp(request: &Request) -> SessionStamp {
    match &request.call {
        Call::Write(write) => write.stamp.expect("it is stamped"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_attempt_gets_more_time_before_every_address_had_one() {
    // Nobody answers. In the first round each address gets well below the two seconds that one once
    // took; only in the next one more.
    let mut bench = Bench::three(true);
    bench.begin(put("k"));
    let mut first: Vec<String> = Vec::new();
    for _ in 0..3 {
        let (address, within_us) = bench.dial();
        assert!(within_us <= PATIENCE_US, "{within_us}");
        first.push(address);
        bench.time_out_dial(within_us);
    }
    first.sort();
    assert_eq!(first, ["a", "b", "c"]);
    let (_, within_us) = bench.dial();
    assert!(within_us > PATIENCE_US, "{within_us}");
}

#[test]
fn a_short_time_limit_is_shared_by_all_addresses() {
    // A call of 300 ms: the third address is dialed before it is over.
    let mut bench = Bench::three(true);
    bench.tell(Event::Begin { number: 1, call: put("k"), timeout: Duration::from_millis(300) });
    for _ in 0..2 {
        let (_, within_us) = bench.dial();
        bench.time_out_dial(within_us);
    }
    let (_, within_us) = bench.dial();
    assert!(within_us >= 90_000, "{within_us}");
}

#[test]
fn a_dead_leader_costs_one_patience_even_if_others_still_name_it() {
    // The leader falls silent. The next node does not know yet and names it in its welcome.
    let mut bench = Bench::three(true);
    bench.begin(put("k"));
    bench.settle();
    let begun_us = bench.now_us;
    let first = bench.sent();
    let (next, _) = bench.dial();
    assert_ne!(next, "a");
    assert!(bench.now_us - begun_us <= PATIENCE_US + 2 * GRACE_US, "{}", bench.now_us - begun_us);
    bench.welcome(2, (1, "a"));
    let second = bench.sent();
    assert_eq!(stamp(&second[0]), stamp(&first[0]));
    assert!(second[0].id > first[0].id);
    bench.answer(second[0].id, done());
    assert!(bench.result().is_ok());
}

#[test]
fn a_slow_node_is_not_given_up_for_ever() {
    // Every answer takes 1.5 s, on every node: more than the first patience, less than the call has.
    let mut bench = Bench::three(true);
    bench.begin(put("k"));
    bench.settle();
    let slow_us = 1_500_000;
    let mut calls = 1;
    loop {
        let requests = bench.sent();
        let answers_us = bench.now_us + slow_us;
        // It hears nothing else; either the answer is first, or it goes on elsewhere.
        if bench.core.next_us().expect("it waits") > answers_us {
            bench.now_us = answers_us;
            bench.answer(requests[0].id, done());
            break;
        }
        bench.pass();
        if bench.done.pop().is_some() {
            // That was no time for a second round. The next call begins where this one ended.
            bench.effects.clear();
            bench.begin(put("k"));
            calls += 1;
        }
        if matches!(bench.effects.front(), Some(Effect::Close | Effect::Connect { .. })) {
            bench.dial();
            bench.welcome(2, (0, ""));
        }
    }
    assert!(calls <= 2, "{calls}");
    assert!(bench.result().is_ok());
    // It has learned: the next call waits for that long at once.
    bench.begin(put("k"));
    let requests = bench.sent();
    bench.now_us += slow_us;
    assert!(bench.core.next_us().expect("it waits") > bench.now_us);
    bench.answer(requests[0].id, done());
    assert!(bench.result().is_ok());
}

#[test]
fn bytes_that_arrive_are_life() {
    // A long answer comes in over a slow link, a piece every 300 ms.
    let mut bench = Bench::three(true);
    bench.begin(Call::Ping);
    bench.dial();
    bench.welcome(1, (0, ""));
    let requests = bench.sent();
    for _ in 0..10 {
        bench.now_us += 300_000;
        bench.tell(Event::Heard);
        assert!(bench.effects.is_empty(), "{:?}", bench.effects);
    }
    bench.answer(requests[0].id, Ok(Answer::Pong));
    assert!(bench.result().is_ok());
}

#[test]
fn a_node_that_refuses_the_token_does_not_end_the_search() {
    // The first one has a newer token than the client; the second takes it.
    let mut bench = Bench::three(true);
    bench.begin(Call::Ping);
    assert_eq!(bench.dial().0, "a");
    bench.fail_dial(refused(RejectCode::Token));
    assert_eq!(bench.dial().0, "b");
    bench.welcome(2, (0, ""));
    let requests = bench.sent();
    bench.answer(requests[0].id, Ok(Answer::Pong));
    assert!(bench.result().is_ok());
}

#[test]
fn a_token_that_all_refuse_is_told_at_once() {
    let mut bench = Bench::three(true);
    let begun_us = bench.now_us;
    bench.begin(Call::Ping);
    for _ in 0..3 {
        bench.dial();
        bench.fail_dial(refused(RejectCode::Token));
    }
    assert_eq!(bench.result().unwrap_err().class, Class::Unauthorised);
    assert!(bench.now_us - begun_us < 100_000);
    // The next call asks again: the token may have been taken up.
    bench.effects.clear();
    bench.begin(Call::Ping);
    bench.dial();
}

#[test]
fn a_refused_token_is_the_reason_when_the_others_do_not_answer() {
    // One node refuses, two are silent: they are tried until the time is over.
    let mut bench = Bench::three(true);
    bench.begin(Call::Ping);
    bench.dial();
    bench.fail_dial(refused(RejectCode::Token));
    let mut dials = Vec::new();
    loop {
        bench.pass();
        if !bench.done.is_empty() {
            break;
        }
        let (address, within_us) = bench.dial();
        dials.push(address);
        bench.time_out_dial(within_us);
    }
    assert!(dials.len() >= 4 && !dials.contains(&"a".to_owned()), "{dials:?}");
    assert_eq!(bench.result().unwrap_err().class, Class::Unauthorised);
}

#[test]
fn a_node_of_another_cluster_is_never_dialed_again() {
    let mut bench = Bench::new(&["a", "b"], Options::default());
    bench.begin(Call::Ping);
    bench.dial();
    bench.fail_dial(refused(RejectCode::ForeignCluster));
    for _ in 0..3 {
        let (address, within_us) = bench.dial();
        assert_eq!(address, "b");
        bench.time_out_dial(within_us);
    }
}

#[test]
fn what_a_blocked_send_kept_back_goes_to_the_next_node() {
    // The peer vanishes and the buffer is full: the first write is handed over whole, the second is
    // not. Both have a stamp, so both are sent again, each with its own.
    let mut bench = Bench::three(true);
    bench.begin(put("x"));
    bench.settle();
    bench.begin(put("y"));
    let first = bench.sent();
    assert_eq!(first.len(), 2);
    bench.now_us += 400_000;
    bench.tell(Event::Blocked { unsent_from: first[1].id });
    assert_ne!(bench.dial().0, "a");
    bench.welcome(2, (0, ""));
    let mut second = bench.sent();
    while second.len() < 2 {
        second.extend(bench.sent());
    }
    assert_eq!(
        second.iter().map(stamp).collect::<Vec<_>>(),
        first.iter().map(stamp).collect::<Vec<_>>()
    );
}

#[test]
fn without_a_stamp_only_what_was_not_handed_over_is_sent_again() {
    // The same without a session: the first write is unknown, the second goes on.
    let mut bench = Bench::three(false);
    bench.begin(put("x"));
    bench.settle();
    bench.begin(put("y"));
    let first = bench.sent();
    assert_eq!(first.len(), 2);
    bench.tell(Event::Blocked { unsent_from: first[1].id });
    assert_eq!(bench.result().unwrap_err().class, Class::Unknown);
    bench.dial();
    bench.welcome(2, (0, ""));
    let second = bench.sent();
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].call, first[1].call);
    bench.answer(second[0].id, done());
    assert!(bench.result().is_ok());
}

#[test]
fn two_nodes_that_name_each_other_do_not_keep_the_client_from_the_third() {
    // Neither leads any more; each takes the other for the leader.
    let mut bench = Bench::three(true);
    bench.begin(Call::Ping);
    let mut asked = Vec::new();
    for _ in 0..3 {
        let (address, _) = bench.dial();
        bench.welcome(1, (0, ""));
        let requests = bench.sent();
        let other = if address == "a" { "b" } else { "a" };
        asked.push(address);
        bench.answer(requests[0].id, failure(Class::Unavailable, Some(other)));
    }
    assert_eq!(asked, ["a", "b", "c"]);
}

#[test]
fn a_leader_that_cannot_serve_does_not_keep_the_client() {
    // Its store is damaged, say: it refuses, and names itself. Another node serves, though it names
    // that leader in its welcome.
    let mut bench = Bench::three(true);
    bench.begin(Call::Ping);
    assert_eq!(bench.dial().0, "a");
    bench.welcome(1, (1, "a"));
    let requests = bench.sent();
    bench.answer(requests[0].id, failure(Class::Unavailable, Some("a")));
    assert_eq!(bench.dial().0, "b");
    bench.welcome(2, (1, "a"));
    let requests = bench.sent();
    bench.answer(requests[0].id, Ok(Answer::Pong));
    assert!(bench.result().is_ok());
}

#[test]
fn the_members_are_known_before_a_node_is_gone() {
    // One address is given. The node tells the others in passing; then it is gone.
    let mut bench = Bench::new(&["a"], Options::default());
    bench.begin(put("k"));
    bench.dial();
    bench.welcome(1, (0, ""));
    let opening = bench.sent();
    bench.answer(opening[0].id, Ok(Answer::Outcome(Outcome::SessionOpened { session: 8 })));
    let ids: Vec<(u64, bool)> = bench
        .effects
        .drain(..)
        .filter_map(|effect| match effect {
            Effect::Send(request) => Some((request.id, request.call == Call::Members)),
            _ => None,
        })
        .collect();
    let member = |id: u64, address: &str| MemberInfo {
        id,
        address: address.to_owned(),
        role: MemberRole::Follower,
        voter: true,
        replaces: None,
    };
    let members = Members { members: vec![member(1, "a"), member(2, "b")] };
    assert_eq!(ids.iter().map(|(_, members)| *members).collect::<Vec<_>>(), [true, false]);
    bench.answer(ids[0].0, Ok(Answer::Members(members)));
    bench.tell(Event::Broke {
        error: network(io::ErrorKind::ConnectionReset),
        unsent_from: u64::MAX,
    });
    assert_eq!(bench.dial().0, "b");
}

#[test]
fn a_piece_of_a_backup_is_asked_for_on_its_own_connection_alone() {
    // The node that holds the backup is gone: no other one has it.
    let mut bench = Bench::three(true);
    bench.begin(Call::Backup);
    bench.dial();
    bench.welcome(1, (0, ""));
    let requests = bench.sent();
    bench.answer(requests[0].id, Ok(Answer::Backup { manifest: Vec::new() }));
    assert!(bench.result().is_ok());
    bench.begin(Call::Piece { table: 1, offset: 0, len: 4 });
    bench.sent();
    bench.tell(Event::Broke {
        error: network(io::ErrorKind::ConnectionReset),
        unsent_from: u64::MAX,
    });
    assert_eq!(bench.result().unwrap_err().class, Class::Unavailable);
    // It is begun anew, elsewhere.
    bench.effects.clear();
    bench.begin(Call::Backup);
    assert_ne!(bench.dial().0, "a");
}

#[test]
fn a_second_write_of_a_key_waits_for_the_first_whatever_refuses_it() {
    // The first is refused, in ways after which it is sent again. The second, which was given later, must
    // not take effect before it; a write of another key may.
    let refusals: [fn() -> Result<Answer, Failure>; 4] = [
        || failure(Class::Busy, None),
        || failure(Class::Unavailable, None),
        || failure(Class::Unknown, None),
        || Ok(Answer::Outcome(Outcome::SessionUnknown)),
    ];
    for refusal in refusals {
        let mut bench = Bench::three(true);
        bench.begin(put("x"));
        bench.settle();
        bench.begin(put("x"));
        bench.begin(put("y"));
        let mut refused = false;
        let mut order = Vec::new();
        while order.len() < 3 {
            bench.pass();
            match bench.effects.pop_front() {
                Some(Effect::Connect { .. }) => bench.welcome(1, (0, "")),
                Some(Effect::Flush { .. }) => bench.tell(Event::Flushed),
                Some(Effect::Send(Request { id, call, .. })) => match &call {
                    Call::OpenSession => {
                        let opened = Outcome::SessionOpened { session: 9 };
                        bench.answer(id, Ok(Answer::Outcome(opened)));
                    }
                    Call::Write(write) if !refused && write.ops == put_ops("x") => {
                        refused = true;
                        bench.answer(id, refusal());
                    }
                    Call::Write(_) => {
                        bench.answer(id, done());
                        order.extend(bench.done.drain(..).map(|(number, _)| number));
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        let place = |number| order.iter().position(|n| *n == number);
        assert!(refused && place(1) < place(2), "{order:?}");
    }
}

#[test]
fn a_time_is_wanted_only_while_one_is_waited_for() {
    // Not without a call, and not while a dial is under way, which ends by itself.
    let mut bench = Bench::three(false);
    assert_eq!((bench.core.next_us(), bench.core.patience()), (None, Duration::from_millis(400)));
    bench.begin(put("k"));
    assert!(bench.core.next_us().is_none());
    bench.dial();
    assert!(bench.core.next_us().is_none());
    bench.welcome(1, (1, "a"));
    bench.sent();
    assert!(bench.core.next_us().is_some_and(|at_us| at_us > bench.now_us));
}

#[test]
fn more_calls_do_not_give_a_silent_node_more_time() {
    // Its patience runs from when the first of the open calls was sent.
    let mut bench = Bench::three(true);
    bench.begin(Call::Ping);
    bench.dial();
    bench.welcome(1, (1, "a"));
    bench.sent();
    let until_us = bench.core.next_us().expect("an answer is awaited");
    bench.now_us += 100_000;
    bench.begin(Call::Ping);
    assert_eq!(bench.sent().len(), 1);
    let now_until_us = bench.core.next_us().expect("an answer is awaited");
    assert!(now_until_us < until_us + 10_000, "{now_until_us} after {until_us}");
}
