//! One run of one seed, from the first start to the verdict.

use super::checks::{Violation, violated};
use super::dice::Dice;
use super::linearizability::{self, Call};
use super::plans::{Adversary, Plan, Random};
use super::recording::Recordings;
use super::slow::Slow;
use super::trace::Step;
use super::world::World;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a run is made with. `None` leaves the choice to the seed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Nodes.
    pub nodes: Option<u64>,
    /// Events after which the first phase ends at the latest.
    pub steps: u64,
    /// Print every step.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { nodes: None, steps: 48_000, trace: false }
    }
}

/// What a run consisted of.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Hash over every step.
    pub hash: u64,
    /// Steps.
    pub steps: u64,
    /// Simulated time, in microseconds.
    pub simulated_us: u64,
    /// How often each thing happened.
    pub counters: BTreeMap<&'static str, u64>,
}

/// A run that broke an invariant.
#[derive(Clone, Debug)]
pub struct Failed {
    /// Which, and how.
    pub violation: Violation,
    /// The last steps before it.
    pub steps: Vec<Step>,
    /// What the run consisted of until then.
    pub report: Report,
}

/// Length of the first phase, in simulated microseconds.
const STORM_US: u64 = 40_000_000;
/// In a harsh run so many of 1000 messages are lost at the end of it, for so long.
const LAST_LOSS: u64 = 400;
const LAST_LOSS_US: u64 = 300_000;
/// The second phase must be over in this time.
const CALM_US: u64 = 60_000_000;
/// A leader must be there ten of the largest election timeouts after the faults have stopped.
const LEADER_US: u64 = 10 * 1_000_000;
/// Clocks run up to a twentieth slow, and a paused node first has to wake.
const SLACK_US: u64 = 1_000_000;

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Failed>> {
    run_world(seed, options, false).0
}

/// Runs one seed, and gives its world back; with `records` that holds recordings of every node's lives.
pub(super) fn run_world(
    seed: u64,
    options: &Options,
    records: bool,
) -> (Result<Report, Box<Failed>>, World) {
    let mut dice = Dice::new(seed);
    let nodes = options.nodes.unwrap_or(*dice.pick(&[1, 3, 3, 3, 3, 5, 5]));
    let (clients, keys) = (dice.between(2, 5), dice.between(1, 4));
    let plan_dice = dice.split();
    let adversary = dice.chance(1, 2);
    let mut plan: Box<dyn Plan> = if nodes > 1 && dice.chance(1, 5) {
        Box::new(Slow::new(plan_dice))
    } else if adversary && nodes > 1 {
        Box::new(Adversary::new(plan_dice))
    } else {
        Box::new(Random::new(plan_dice))
    };
    let mut world = World::new(nodes, clients, keys, options.trace, dice);
    world.recordings = records.then(Recordings::default);
    // An assertion of the components is an invariant like any other. What it leaves behind is only
    // looked at, for the report. Where panics abort, the process ends with it instead.
    let run = AssertUnwindSafe(|| phases(&mut world, &mut *plan, options.steps));
    let verdict =
        catch_unwind(run).unwrap_or_else(|payload| violated("assertion", said(&*payload)));
    let report = report(&world);
    let verdict = match verdict {
        Ok(()) => Ok(report),
        Err(violation) => {
            let steps = world.trace.last().copied().collect();
            Err(Box::new(Failed { violation, steps, report }))
        }
    };
    (verdict, world)
}

/// The message of a panic.
fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

fn report(world: &World) -> Report {
    let mut counters = world.counters.clone();
    counters.insert("elections", world.cluster.elections());
    counters.insert("entries committed", world.cluster.committed());
    let [sessions, writes, sequences, held] = world.ledger.forgotten;
    counters.insert("sessions forgotten for others", sessions);
    counters.insert("sessions forgotten that were held", held);
    counters.insert("sessions refused for want of a place", world.ledger.full);
    counters.insert("sessions released", world.ledger.released[0]);
    counters.insert("sessions that stayed held, in use elsewhere", world.ledger.released[1]);
    counters.insert("writes of forgotten sessions", writes);
    counters.insert("writes of forgotten sequences", sequences);
    for (&name, &times) in &world.network.counters {
        *counters.entry(name).or_default() += times;
    }
    for node in world.nodes.values() {
        for (trouble, times) in node.disk.struck() {
            let name = match trouble {
                super::disk::Trouble::Read => "read errors",
                super::disk::Trouble::Write => "write errors",
                super::disk::Trouble::Sync => "sync errors",
                super::disk::Trouble::Full => "full disks",
                super::disk::Trouble::FullSync => "syncs without space",
                super::disk::Trouble::Held => "files held",
                super::disk::Trouble::Descriptors => "opens that waited for a descriptor",
            };
            *counters.entry(name).or_default() += times;
        }
        for (name, times) in node.disk.seen() {
            *counters.entry(name).or_default() += times;
        }
    }
    Report {
        hash: world.trace.hash(),
        steps: world.trace.count(),
        simulated_us: world.now_us,
        counters,
    }
}

fn phases(world: &mut World, plan: &mut dyn Plan, steps: u64) -> Result<(), Violation> {
    world.schedule_fault(2_000_000);
    let mut left = steps;
    while left > 0 && world.step(STORM_US)? {
        left -= 1;
        if std::mem::take(&mut world.fault_due) {
            let (faults, pause_us) = plan.next(world);
            for fault in &faults {
                world.fault(fault)?;
            }
            world.schedule_fault(pause_us);
        }
    }
    lose_the_last(world)?;
    calm(world)?;
    judge(world)
}

/// The last that goes wrong in a harsh run: messages are lost, and nothing breaks after them that would
/// have them sent again.
fn lose_the_last(world: &mut World) -> Result<(), Violation> {
    if !world.network.harsh {
        return Ok(());
    }
    world.network.heal();
    world.network.lose(LAST_LOSS);
    world.count("losses at the end");
    let end_us = world.now_us + LAST_LOSS_US;
    while world.step(end_us)? {}
    Ok(())
}

/// Faults stop, and everybody who can comes back.
fn calm(world: &mut World) -> Result<(), Violation> {
    world.network.heal();
    world.quiet = true;
    let ids: Vec<u64> = world.nodes.keys().copied().collect();
    for id in ids {
        if let Some(node) = world.nodes.get_mut(&id) {
            node.disk.trouble(None);
            node.disk.limit(None);
            node.disk.spare_power();
            node.sync_us_max = 2_000;
            node.paused_until_us = node.paused_until_us.min(world.now_us);
        }
        world.resume(id);
        world.start(id)?;
    }
    world.help_the_lost();
    if !world.is_hopeless() {
        world.choose_ending();
    }
    let hopeless = world.is_hopeless();
    if hopeless {
        world.count("cluster lost for good");
    }
    let begin_us = world.now_us;
    let elections = world.cluster.elections();
    // In some runs it is watched that nothing happens any more.
    let watched = world.dice.chance(1, 3);
    let mut hold = None;
    let mut leader = false;
    loop {
        let more = world.step(begin_us + CALM_US)?;
        if !leader && world.leader().is_some() {
            leader = true;
        }
        let since_us = world.now_us - begin_us;
        if hopeless && since_us > LEADER_US {
            return Ok(());
        }
        if !leader && !hopeless && since_us > LEADER_US + SLACK_US {
            return violated(
                "a leader in time",
                format!("none after {since_us} us without faults"),
            );
        }
        let settled = since_us > 8_000_000 && leader;
        let idle = || world.clients.iter().all(|c| !c.is_busy() || world.is_lost(c));
        let served = world.are_served_since(begin_us);
        let quiet = || settled && idle() && served && world.unsettled().is_none();
        if hold.is_some() || (quiet() && world.replicas_equal()?) {
            if !watched || world.holds(&mut hold, elections)? || !more {
                return Ok(());
            }
            continue;
        }
        if !more {
            let busy = world.clients.iter().filter(|c| c.is_busy()).count();
            let members = world.unsettled().unwrap_or("settled".to_string());
            let equal = world.replicas_equal()?;
            let detail = format!(
                "{busy} clients wait, all served: {served}, replicas equal: {equal}, \
                 members: {members}"
            );
            return violated("everything settles", detail);
        }
    }
}

fn judge(world: &mut World) -> Result<(), Violation> {
    world.all_directly_answered()?;
    if let Some((node, whose)) = world.ended_by_full_disk {
        return violated("a full disk ends no node", format!("node {node}: {whose}"));
    }
    world.clients.iter_mut().for_each(|client| client.abandon());
    world.lines.iter_mut().for_each(|client| client.give_up());
    let histories = world.clients.iter().map(|client| &client.history);
    let histories = histories.chain(world.lines.iter().map(|client| &client.history));
    let history: Vec<Call> = histories.flatten().cloned().collect();
    match linearizability::check(&history) {
        Ok(_) => Ok(()),
        // A history that is too hard to decide counts as one too: nothing passes unseen.
        Err(e) => violated("linearizability", e.to_string()),
    }
}
