//! Nodes are killed one after another while clients write and read.

use crate::support::cluster::Cluster;
use crate::support::load::{HOT_KEYS, Run, Seat, client, counter, record};
use crate::support::native::Native;
use crate::support::{say, wait_for};
use kontiki::kv::{Query, Reply, Revision};
use kontiki::sim::linearizability::{Call, End, Op, check};
use kontiki::wire::client::Consistency;
use std::collections::BTreeMap;
use std::thread;
use std::time::Instant;

const ROUNDS: usize = 20;
const CLIENTS: u64 = 6;
/// Writes acknowledged between one event of a round and the next.
const WRITES_BETWEEN: u64 = 300;

fn kill_each_in_turn(cluster: &mut Cluster, run: &Run) -> usize {
    let mut leaders = 0;
    for round in 0..ROUNDS {
        let node = round % 3;
        run.more_writes(WRITES_BETWEEN);
        leaders += usize::from(cluster.leader() == node);
        cluster.kill(node);
        run.more_writes(WRITES_BETWEEN);
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
    let run = Run::new(cluster.addresses());
    let (leaders, mut seats, sum) = thread::scope(|scope| {
        let stop = run.stopper();
        let run = &run;
        let doors = || run.addresses.iter().map(|a| Native::new(a)).collect();
        let clients: Vec<_> =
            (0..CLIENTS).map(|number| scope.spawn(move || client(run, number, doors()))).collect();
        let counting = scope.spawn(move || counter(run));
        let leaders = kill_each_in_turn(&mut cluster, run);
        drop(stop);
        let seats: Vec<Seat> =
            clients.into_iter().map(|c| c.join().expect("a client's end")).collect();
        (leaders, seats, counting.join().expect("the counter's end"))
    });
    let killed_after = run.elapsed();
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
