//! The raft loop's thread: drain the inbox, let the node decide, send the effects on.

use super::applier::deliver;
use super::connections::Connections;
use super::inbox::RaftEvents;
use super::logging::{Level, info, log};
use super::mailbox::DirectWrite;
use super::{ApplyQueue, ClientHandle, Shared, fatal};
use crate::node::recording::{put_effects, put_handled, put_ticked};
use crate::node::{
    ApplyTask, ClusterView, Difference, Effects, Input, LogEvent, Node, NodeEffects, ReceiverEvent,
};
use crate::raft::{Configuration, NodeId, RoleName};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

pub(crate) fn run(
    mut node: Node<ClientHandle>,
    mut events: RaftEvents,
    log_writer: &Sender<LogEvent>,
    applier: &ApplyQueue,
    shared: &Arc<Shared>,
) {
    let mut connections = Connections::new(Arc::clone(shared));
    let answers = start_answers();
    let mut view = shared.node.view();
    // Something has happened on a connection.
    let mut linked = true;
    loop {
        let now_us = shared.clock.now_us();
        let effects = node.effects(now_us);
        shared.record(|out| put_effects(out, now_us, &effects, ClientHandle::number));
        let NodeEffects { links, replica, sends } = effects;
        if linked || !view.fits(&node) {
            publish(&node, &mut view, shared);
            linked = false;
        }
        links.into_iter().for_each(|effect| connections.act(effect));
        act(replica, log_writer, applier, &answers, shared);
        for (connection, outgoing) in sends {
            connections.transmit(connection, outgoing);
        }
        let interest = node.wake_interest();
        let wait_us = node.next_tick_us().saturating_sub(shared.clock.now_us());
        let wait = Duration::from_micros(wait_us);
        let handle = |input| {
            if let Input::Link(event) = &input {
                connections.observe(event);
                linked = true;
            }
            let now_us = shared.clock.now_us();
            shared.record(|out| {
                put_handled(out, now_us, &input, node.peers().secret(), ClientHandle::number);
            });
            node.handle(input, now_us);
        };
        events.wait(&shared.raft, interest, wait, handle);
        let now_us = shared.clock.now_us();
        shared.record(|out| put_ticked(out, now_us));
        node.tick(now_us);
    }
}

/// Starts the thread that writes the answers of the raft loop to sockets: refusals, mostly. A client that
/// takes nothing must not hold up the loop.
fn start_answers() -> Sender<DirectWrite> {
    let (answers, inbox) = channel::<DirectWrite>();
    let body = move || inbox.into_iter().for_each(DirectWrite::write);
    if let Err(e) = thread::Builder::new().name("answers".into()).spawn(body) {
        fatal(format_args!("cannot start a thread: {e}"));
    }
    answers
}

/// Shows the other threads what the node goes by, if that is news.
fn publish(node: &Node<ClientHandle>, view: &mut Arc<ClusterView>, shared: &Shared) {
    let next = ClusterView::of(node);
    if next == **view {
        return;
    }
    let leads = node.replica().raft().role() == RoleName::Leader;
    tell_formation(shared.node.id, view.history.in_force(), next.history.in_force(), leads);
    *view = Arc::new(next);
    shared.node.publish(Arc::clone(view));
}

/// Says it loudly: no disk and no network does this, and it does not go away.
fn tell_difference(shared: &Shared, difference: &Difference) {
    shared.node.different.store(true, Ordering::Relaxed);
    let join = |nodes: Vec<String>| nodes.join(", ");
    let all = difference.digests.iter().map(|(node, digest)| format!("node {node} {digest:08x}"));
    let odd = difference.odd().iter().map(ToString::to_string).collect();
    let what = format_args!(
        "REPLICAS DIFFER at index={}: {}; different from most: {}; keep all data directories, take a \
         backup of a node that agrees with most, and report this",
        difference.index,
        join(all.collect()),
        join(odd)
    );
    log(Level::Error, what);
}

fn act(
    effects: Effects<ClientHandle>,
    log_writer: &Sender<LogEvent>,
    applier: &ApplyQueue,
    answers: &Sender<DirectWrite>,
    shared: &Arc<Shared>,
) {
    if let Some(difference) = &effects.difference {
        tell_difference(shared, difference);
    }
    if effects.repair {
        let _ = applier.send(ApplyTask::Hold);
    }
    // The other threads end the process rather than themselves: sends do not fail while it lives.
    if let Some(persist) = effects.persist {
        let _ = log_writer.send(LogEvent::Persist(persist));
    }
    if effects.flush {
        let _ = applier.send(ApplyTask::Flush);
    }
    if let Some(apply) = effects.apply {
        let _ = applier.send(ApplyTask::Apply(apply));
    }
    if let Some(through) = effects.compact {
        let _ = log_writer.send(LogEvent::Compact(through));
    }
    if let Some(offer) = effects.offer {
        let _ = shared.snapshots.send(ReceiverEvent::Offered(offer));
    }
    deliver(shared, effects.answers, |write| drop(answers.send(write)));
    if let Some((term, role, leader)) = effects.role {
        match (role, leader) {
            (RoleName::Leader, _) => info!("leads the cluster term={term}"),
            (RoleName::Follower, Some(leader)) => info!("follows leader={leader} term={term}"),
            (role, _) => info!("has no leader role={role:?} term={term}"),
        }
    }
}

/// The first leader binds its own id as soon as it has committed something: that is when a cluster
/// comes into being. Whoever expected an old one, with its data, must be able to see that.
fn tell_formation(id: NodeId, now: &Configuration, next: &Configuration, leads: bool) {
    let bound = |c: &Configuration| c.member(id).is_some_and(|m| m.identity != 0);
    if leads && !bound(now) && bound(next) {
        info!("formed a new cluster of members {}", described(next));
    }
}

/// `1@host:7101 2@host:7102 (not seen: 2)`: the members, and which of them no leader has met yet.
fn described(configuration: &Configuration) -> String {
    let join = |words: Vec<String>| words.join(" ");
    let members = configuration.members.iter();
    let all = join(members.clone().map(|m| format!("{}@{}", m.id, m.address)).collect());
    let unseen = members.filter(|m| m.identity == 0).map(|m| m.id.to_string());
    let unseen = join(unseen.collect());
    if unseen.is_empty() { all } else { format!("{all} (not seen yet: {unseen})") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Member;

    /// A cluster is formed by two of three: the line names all of them, and the one that is missing.
    #[test]
    fn a_formation_names_the_members_that_were_not_seen() {
        let of = |id, identity| Member { id, identity, address: format!("host:{id}") };
        let two = Configuration::of_voters(7, vec![of(1, 5), of(2, 6), of(3, 0)]);
        assert_eq!(described(&two), "1@host:1 2@host:2 3@host:3 (not seen yet: 3)");
        let one = Configuration::of_voters(7, vec![of(1, 5)]);
        assert_eq!(described(&one), "1@host:1");
    }
}
