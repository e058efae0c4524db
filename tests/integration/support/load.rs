//! Clients that write and read and remember all of it, so that it can be asked afterwards whether
//! what they saw has one explanation.

use super::native::{Native, Trouble};
use super::{Dice, wait_for};
use kontiki::client::{Client, Options};
use kontiki::kv::{Condition, Found, OpResult, Outcome, Query, Reply, Revision, Test, Write};
use kontiki::sim::linearizability::{Answer as Told, Call, Checked, End, Op, Seen, check};
use kontiki::wire::client::{Answer, Call as Ask, Class, Consistency};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Keys that all clients write.
pub(crate) const HOT_KEYS: u64 = 3;

/// What the clients and the killer share.
pub(crate) struct Run {
    pub(crate) addresses: Vec<String>,
    begun: Instant,
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

impl Run {
    pub(crate) fn new(addresses: Vec<String>) -> Run {
        let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
        Run { addresses, begun: Instant::now(), stop, acknowledged }
    }

    /// Ends the clients when it is dropped, also when the test fails before.
    pub(crate) fn stopper(&self) -> Stop<'_> {
        Stop(&self.stop)
    }

    /// Waits until so many more writes were acknowledged.
    pub(crate) fn more_writes(&self, count: u64) {
        let enough = self.acknowledged.load(Ordering::Relaxed) + count;
        wait_for("clients get on", || {
            (self.acknowledged.load(Ordering::Relaxed) >= enough).then_some(())
        });
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).expect("a short test")
    }
}

/// See [`Run::stopper`].
pub(crate) struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whom a client asks.
pub(crate) trait Door {
    /// Asks, once or until it is answered.
    fn ask(&mut self, call: Ask) -> Result<Answer, Trouble>;
}

impl Door for Native {
    fn ask(&mut self, call: Ask) -> Result<Answer, Trouble> {
        self.call(call)
    }
}

/// The whole cluster, with retries.
impl Door for Client {
    fn ask(&mut self, call: Ask) -> Result<Answer, Trouble> {
        let result = match call {
            Ask::Write(write) => self.write(write).map(Answer::Outcome),
            Ask::Query { query, .. } => self.query(query).map(Answer::Reply),
            other => panic!("no load asks {other:?}"),
        };
        result.map_err(|e| match e.class {
            Class::Unknown => Trouble::Unknown(e.to_string()),
            _ => Trouble::Refused(e.to_string()),
        })
    }
}

/// What one client knows in the end.
#[derive(Default)]
pub(crate) struct Seat {
    pub(crate) history: Vec<Call>,
    /// Every call that was not answered, in words.
    pub(crate) troubles: Vec<String>,
    /// Writes of keys of its own that were acknowledged.
    pub(crate) own: BTreeMap<Vec<u8>, (Vec<u8>, Revision)>,
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
pub(crate) fn record(
    run: &Run,
    door: &mut impl Door,
    client: u64,
    key: &[u8],
    op: Op,
    seat: &mut Seat,
) {
    let called = run.now_us();
    let result = door.ask(ask(key, &op));
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
        Err(Trouble::Refused(why)) => {
            seat.troubles.push(why);
            End::Refused
        }
        Err(Trouble::Unknown(why)) => {
            seat.troubles.push(why);
            End::Open
        }
    };
    seat.history.push(Call { client, key: key.to_vec(), op, called, end });
}

/// Writes and reads through these doors, any of them each time, until it is told to stop.
pub(crate) fn client(run: &Run, number: u64, mut doors: Vec<impl Door>) -> Seat {
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
        let place = dice.below(doors.len() as u64);
        let door = &mut doors[usize::try_from(place).expect("a place")];
        record(run, door, number, &key, op, &mut seat);
        if let Some(End::Answered { answer: Told::Found(Some(Seen { revision, .. })), .. }) =
            seat.history.last().map(|call| &call.end)
        {
            last.insert(key, revision.expect("native answers tell revisions"));
        }
    }
    seat
}

/// Adds ones, each exactly once, whatever happens to the answers. Says how many.
pub(crate) fn counter(run: &Run) -> i64 {
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

/// Runs `what` while so many clients with retries, and the counter, write and read; gives what they
/// know in the end beside it. Their calls must all have been answered.
pub(crate) fn while_loaded<T>(
    run: &Run,
    clients: u64,
    what: impl FnOnce() -> T,
) -> (T, Checked, i64) {
    let options = Options { timeout: Duration::from_secs(20), ..Options::default() };
    let door = || vec![Client::new(&run.addresses, options.clone())];
    let (done, seats, sum) = thread::scope(|scope| {
        let stop = run.stopper();
        let begin = |number| {
            let door = door();
            scope.spawn(move || client(run, number, door))
        };
        let clients: Vec<_> = (0..clients).map(begin).collect();
        let counting = scope.spawn(|| counter(run));
        let done = what();
        drop(stop);
        let seats: Vec<Seat> = clients.into_iter().map(|c| c.join().expect("its end")).collect();
        (done, seats, counting.join().expect("the counter's end"))
    });
    let troubles: Vec<&String> = seats.iter().flat_map(|seat| &seat.troubles).collect();
    assert!(troubles.is_empty(), "{troubles:?}");
    let history: Vec<Call> = seats.into_iter().flat_map(|seat| seat.history).collect();
    let checked = check(&history).unwrap_or_else(|e| panic!("not linearizable:\n{e}"));
    (done, checked, sum)
}
