//! Processes that stand still for a while (SIGSTOP, a virtual machine that is suspended), and go on.
//!
//! What reaches a process meanwhile waits in the buffers of its sockets and in the queues between its threads.
//! When it goes on, the system lets its threads run in any order: a client's request that came last may be
//! taken first, and an answer that came before anything else may be taken last. Only what one thread takes from
//! one source stays in order.

use super::links::LinkEvent;
use super::world::{ANY_LIFE, Event, World};
use crate::raft::NodeId;
use std::collections::BTreeMap;

/// What is taken in the order in which it came, by one thread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Timer,
    LogWriter,
    Applier,
    Store,
    Transfer,
    /// What the node's own threads have put into the raft loop's inbox.
    Inbox,
    /// A client's connection.
    Client(u64),
    /// An accepted or dialed flow of bytes between nodes.
    Flow(u64),
    /// A connection that is being made.
    Dialing(u64),
    Rest,
}

impl Source {
    fn of(event: &Event) -> Source {
        match event {
            Event::Wake => Source::Timer,
            Event::Write | Event::Written { .. } | Event::Prepare => Source::LogWriter,
            Event::Apply | Event::Applied(_) => Source::Applier,
            Event::Store => Source::Store,
            Event::Transfer(_) => Source::Transfer,
            Event::Input(_) => Source::Inbox,
            Event::Served { connection, .. } => Source::Client(*connection),
            Event::Answer { client, .. } => Source::Client(*client),
            Event::Link(
                LinkEvent::Arrive { flow, .. }
                | LinkEvent::Silence { flow }
                | LinkEvent::Lost { flow, .. },
            ) => Source::Flow(*flow),
            Event::Link(
                LinkEvent::Refused { connection }
                | LinkEvent::Timeout { connection }
                | LinkEvent::Pump { connection }
                | LinkEvent::Beat { connection },
            ) => Source::Dialing(*connection),
            _ => Source::Rest,
        }
    }
}

impl World {
    /// A process stands still for so long.
    pub(super) fn pause(&mut self, node: NodeId, for_us: u64) {
        let until_us = self.now_us + for_us;
        let Some(n) = self.nodes.get_mut(&node) else { return };
        n.paused_until_us = n.paused_until_us.max(until_us);
        self.schedule(for_us, node, ANY_LIFE, Event::Resume);
    }

    /// A process may go on. It does everything now that it would have done meanwhile: in half of all cases in
    /// the order in which it came, but for its timers, which may be late; else one source before another.
    pub(super) fn resume(&mut self, node: NodeId) {
        let now_us = self.now_us;
        let Some(n) = self.nodes.get_mut(&node).filter(|n| n.paused_until_us <= now_us) else {
            return;
        };
        let mut events = std::mem::take(&mut n.put_off);
        if self.dice.chance(1, 2) {
            events = self.mixed(events);
            self.count("paused processes whose threads go on in another order");
        }
        for (life, event) in events {
            let timer = matches!(event, Event::Wake) && self.dice.chance(1, 2);
            let delay_us = if timer { self.dice.between(1, 300) } else { 0 };
            self.schedule(delay_us, node, life, event);
        }
    }

    /// The same events in another order, in which those of one source keep theirs.
    fn mixed(&mut self, events: Vec<(u64, Event)>) -> Vec<(u64, Event)> {
        let mut places: BTreeMap<Source, Vec<u64>> = BTreeMap::new();
        for (_, event) in &events {
            places.entry(Source::of(event)).or_default().push(self.dice.roll());
        }
        // The first event of a source gets the first of its places.
        places.values_mut().for_each(|places| places.sort_unstable_by(|a, b| b.cmp(a)));
        let mut placed: Vec<(u64, (u64, Event))> = Vec::with_capacity(events.len());
        for event in events {
            let place = places.get_mut(&Source::of(&event.1)).and_then(Vec::pop);
            placed.push((place.unwrap_or(u64::MAX), event));
        }
        placed.sort_by_key(|(place, _)| *place);
        placed.into_iter().map(|(_, event)| event).collect()
    }
}
