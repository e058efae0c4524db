//! Nodes are killed one after another while clients write and read.

use crate::support::cluster::Cluster;
use crate::support::native::{Native, Trouble};
use crate::support::{Dice, say, wait_for};
use kontiki::client::{Client, Options};
use kontiki::kv::{Condition, Found, OpResult, Outcome, Query, Reply, Revision, Test, Write};
use kontiki::sim::linearizability::{Answer as Told, Call, End, Op, Seen, check};
use kontiki::wire::client::{Answer, Call as Ask, Class, Consistency};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS: usize = 20;
const CLIENTS: u64 = 6;
const HOT_KEYS: u64 = 3;
/// Writes acknowledged between one event of a round and the next.
const WRITES_BETWEEN: u64 = 300;

/// What the clients and the killer share.
struct Run {
    addresses: Vec<String>,
    begun: Instant,
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

impl Run {
    fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).expect("a short test")
    }
}

/// What one client knows in the end.
#[derive(Default)]
struct Seat {
    history: Vec<Call>,
    /// Writes of keys of its own that were acknowledged.
    own: BTreeMap<Vec<u8>, (Vec<u8>, Revision)>,
}

fn seen(found: Option<Found>) -> Told {
    Told::Found(found.map(|f| Seen { value: f.value, revision: Some(f.revision) }))
}

/// What the node is to be asked for an operation.
fn ask(key: &[u8], op: &Op) -> Ask {
    let key = key.to_vec();
    let write = |test: Option<Test>, op| {
        let conditions = test.map(|test| Condition { key: key.clone(), test });
        let conditions = conditions.into_iter().collect();
        Ask::Write(Write { stamp: None, conditions, ops: vec![op] })
    };
    use kontiki::kv::Op as Kv;
    match op {
        Op::Get => Ask::Query {
            query: Query::Get { key: key.clone() },
            consistency: Consistency::Linearizable,
        },
        Op::Put { value } => write(None, Kv::Put { key: key.clone(), value: value.clone() }),
        Op::Delete => write(None, Kv::Delete { key: key.clone() }),
        Op::Cas { test, value } => {
            write(Some(*test), Kv::Put { key: key.clone(), value: value.clone() })
        }
        Op::Increment { by } => write(None, Kv::Increment { key: key.clone(), by: *by }),
    }
}

/// What the node's answer says.
fn told(op: &Op, answer: Answer) -> Told {
    match (op, answer) {
        (Op::Get, Answer::Reply(Reply::Value(found))) => seen(found),
        (_, Answer::Outcome(Outcome::Done { revision, results })) => {
            let revision = Some(revision);
            match results[..] {
                [OpResult::Put] => Told::Written { revision },
                [OpResult::Deleted { existed }] => {
                    Told::Deleted { existed: Some(existed), revision }
                }
                [OpResult::Number { value }] => Told::Number { value, revision },
                _ => panic!("{op:?} was answered by {results:?}"),
            }
        }
        (Op::Cas { .. }, Answer::Outcome(Outcome::ConditionFalse { found, .. })) => {
            Told::Mismatch { found: Some(found) }
        }
        (op, answer) => panic!("{op:?} was answered by {answer:?}"),
    }
}

/// Carries out one operation and writes it down.
fn record(run: &Run, node: &mut Native, client: u64, key: &[u8], op: Op, seat: &mut Seat) {
    let called = run.now_us();
    let result = node.call(ask(key, &op));
    let at = run.now_us();
    let end = match result {
        Ok(answer) => {
            let answer = told(&op, answer);
            if let (Op::Put { value }, Told::Written { revision: Some(revision) }) = (&op, &answer)
                && key.starts_with(b"own/")
            {
                seat.own.insert(key.to_vec(), (value.clone(), *revision));
            }
            if op != Op::Get {
                run.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            End::Answered { at, answer }
        }
        Err(Trouble::Refused(_)) => End::Refused,
        Err(Trouble::Unknown(_)) => End::Open,
    };
    seat.history.push(Call { client, key: key.to_vec(), op, called, end });
}

fn client(run: &Run, number: u64) -> Seat {
    let mut nodes: Vec<Native> = run.addresses.iter().map(|a| Native::new(a)).collect();
    let mut dice = Dice::new(number);
    let mut seat = Seat::default();
    // The last revision this client saw of each hot key, to put on top of.
    let mut last = BTreeMap::new();
    for count in 0_u64.. {
        if run.stop.load(Ordering::Relaxed) {
            break;
        }
        let hot = format!("hot/{}", dice.below(HOT_KEYS)).into_bytes();
        let value = format!("{number}-{count}").into_bytes();
        let (key, op) = match dice.below(20) {
            0..=4 => (format!("own/{number}/{count:06}").into_bytes(), Op::Put { value }),
            5..=8 => (hot, Op::Put { value }),
            9 => (hot, Op::Delete),
            10 => (hot, Op::Cas { test: Test::Absent, value }),
            11 => {
                let test = last.get(&hot).map_or(Test::Present, |r| Test::Revision(*r));
                (hot, Op::Cas { test, value })
            }
            12..=13 => (b"count".to_vec(), Op::Increment { by: 1 }),
            14 => (b"count".to_vec(), Op::Get),
            _ => (hot, Op::Get),
        };
        let node = &mut nodes[usize::try_from(dice.below(3)).expect("a place")];
        record(run, node, number, &key, op, &mut seat);
        if let Some(End::Answered { answer: Told::Found(Some(Seen { revision, .. })), .. }) =
            seat.history.last().map(|call| &call.end)
        {
            last.insert(key, revision.expect("native answers tell revisions"));
        }
    }
    seat
}

/// Adds ones, each exactly once, whatever happens to the answers. Says how many.
fn counter(run: &Run) -> i64 {
    let options = Options { timeout: Duration::from_secs(20), ..Options::default() };
    let mut client = Client::new(&run.addresses, options);
    let mut sum = 0;
    while !run.stop.load(Ordering::Relaxed) {
        match client.increment(b"exact", 1) {
            Ok((_, value)) => {
                sum += 1;
                assert_eq!(value, sum, "an increment was lost or done twice");
            }
            Err(e) => assert_ne!(e.class, Class::Unknown, "{e}"),
        }
    }
    sum
}

fn kill_each_in_turn(cluster: &mut Cluster, run: &Run) -> usize {
    let mut leaders = 0;
    let more_writes = || {
        let enough = run.acknowledged.load(Ordering::Relaxed) + WRITES_BETWEEN;
        wait_for("clients get on", || {
            (run.acknowledged.load(Ordering::Relaxed) >= enough).then_some(())
        });
    };
    for round in 0..ROUNDS {
        let node = round % 3;
        more_writes();
        leaders += usize::from(cluster.leader() == node);
        cluster.kill(node);
        more_writes();
        cluster.restart(node);
    }
    leaders
}

#[test]
fn nothing_acknowledged_is_lost_while_nodes_are_killed() {
    // Six clients write and read through all three nodes while each node in turn is killed hard and
    // started again, twenty times. At the end everything acknowledged is on every node, and all that
    // the clients saw has one explanation.
    let mut cluster = Cluster::start(3);
    let run = Run {
        addresses: cluster.addresses(),
        begun: Instant::now(),
        stop: AtomicBool::new(false),
        acknowledged: AtomicU64::new(0),
    };
    /// Ends the clients also when the test fails in between.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (leaders, mut seats, sum) = thread::scope(|scope| {
        let stop = Stop(&run.stop);
        let run = &run;
        let clients: Vec<_> =
            (0..CLIENTS).map(|number| scope.spawn(move || client(run, number))).collect();
        let counting = scope.spawn(move || counter(run));
        let leaders = kill_each_in_turn(&mut cluster, run);
        drop(stop);
        let seats: Vec<Seat> =
            clients.into_iter().map(|c| c.join().expect("a client's end")).collect();
        (leaders, seats, counting.join().expect("the counter's end"))
    });
    let killed_after = run.begun.elapsed();
    assert!(leaders > 0, "the leader was never hit");

    // Every node, asked by itself, with and without asking the others.
    let mut all: BTreeMap<Vec<u8>, (Vec<u8>, Revision)> = BTreeMap::new();
    seats.iter_mut().for_each(|seat| all.append(&mut seat.own));
    let leader = cluster.leader();
    let commit = Native::new(&run.addresses[leader]).status().expect("the leader's status").commit;
    let mut last = Seat::default();
    for address in &run.addresses {
        let mut node = Native::new(address);
        let linearizable = node.all("own/", Consistency::Linearizable);
        wait_for("the node has applied everything", || {
            node.status().is_ok_and(|status| status.applied >= commit).then_some(())
        });
        for (how, items) in
            [("linearizable", linearizable), ("stale", node.all("own/", Consistency::Stale))]
        {
            let held: BTreeMap<&[u8], (&[u8], Revision)> =
                items.iter().map(|i| (&i.key[..], (&i.value[..], i.revision))).collect();
            for (key, (value, revision)) in &all {
                let text = key.escape_ascii();
                let expected = Some(&(&value[..], *revision));
                assert_eq!(held.get(&key[..]), expected, "{address}, {how}: {text} is lost");
            }
        }
        for hot in (0..HOT_KEYS).map(|n| format!("hot/{n}")).chain(["count".to_owned()]) {
            record(&run, &mut node, CLIENTS, hot.as_bytes(), Op::Get, &mut last);
        }
        let exact = Query::Get { key: b"exact".to_vec() };
        let exact = node.query(exact, Consistency::Linearizable).expect("a reply");
        let Reply::Value(Some(found)) = exact else { panic!("no counter: {exact:?}") };
        assert_eq!(found.value, sum.to_string().into_bytes(), "{address}: the exact counter");
    }
    seats.push(last);

    let history: Vec<Call> = seats.into_iter().flat_map(|seat| seat.history).collect();
    let refused = history.iter().filter(|call| call.end == End::Refused).count();
    let searched = Instant::now();
    let checked = check(&history).unwrap_or_else(|e| panic!("not linearizable:\n{e}"));
    assert!(checked.answered > 20 * ROUNDS, "{checked:?}");
    say(
        "kill_rounds",
        &format!(
            "{ROUNDS} rounds in {:.1} s, the leader hit {leaders} times; {} acknowledged keys on 3 \
             nodes, exact counter at {sum}; {} calls answered, {refused} refused, {} writes of \
             unknown outcome: linearizable ({} states, {} ms)",
            killed_after.as_secs_f64(),
            all.len(),
            checked.answered,
            checked.open,
            checked.states,
            searched.elapsed().as_millis()
        ),
    );
}
