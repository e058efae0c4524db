//! The raft loop's thread: drain the inbox, let the replica decide, send the effects on.

use super::applier::deliver;
use super::inbox::RaftEvents;
use super::log_writer::LogWork;
use super::logging::{Level, info, log};
use super::peers::{self, Outgoing};
use super::{ApplyQueue, ClientHandle, Shared, members, snapshots};
use crate::node::{Configurations, Difference, Effects, Replica, Work};
use crate::raft::{Configuration, NodeId, RoleName};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

pub(crate) fn run(
    mut replica: Replica<ClientHandle>,
    mut events: RaftEvents,
    log_writer: &Sender<LogWork>,
    applier: &ApplyQueue,
    shared: &Arc<Shared>,
) {
    let mut told: Option<Arc<Configuration>> = None;
    loop {
        let effects = replica.effects();
        let leads = replica.raft().role() == RoleName::Leader;
        // Before anything leaves that promises so much.
        let (raft, (term, index)) = (replica.raft(), &shared.promise);
        term.store(raft.term(), Ordering::Release);
        index.store(raft.last_index(), Ordering::Release);
        let committed = raft.committed_configuration();
        let news = told.as_ref().is_none_or(|told| !Arc::ptr_eq(told, committed));
        if effects.configuration.is_some() || news {
            told = Some(Arc::clone(committed));
            reconfigure(shared, Configurations::of(raft), leads);
        }
        act(effects, log_writer, applier, shared);
        let wants = replica.wants();
        let wait_us = replica.next_tick_us().saturating_sub(shared.clock.now_us());
        let wait = Duration::from_micros(wait_us);
        let handle = |input| replica.handle(input, shared.clock.now_us());
        if !events.wait(&shared.raft, wants, wait, handle) {
            return;
        }
        replica.tick(shared.clock.now_us());
    }
}

/// Says it loudly: no disk and no network does this, and it does not go away.
fn tell_difference(shared: &Shared, difference: &Difference) {
    shared.different.store(true, Ordering::Relaxed);
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
    log_writer: &Sender<LogWork>,
    applier: &ApplyQueue,
    shared: &Arc<Shared>,
) {
    if let Some(difference) = &effects.difference {
        tell_difference(shared, difference);
    }
    if let Some((index, digest)) = effects.digest {
        for link in shared.links.read().unwrap_or_else(PoisonError::into_inner).values() {
            let _ = link.send(Outgoing::Digest { index, digest });
        }
    }
    for (peer, remembered) in effects.aside {
        members::set_aside(shared, peer, remembered);
    }
    if effects.repair {
        let _ = applier.send(Work::Hold);
    }
    // The other threads end the process rather than themselves: sends do not fail while it lives.
    if let Some(persist) = effects.persist {
        let _ = log_writer.send(LogWork::Persist(persist));
    }
    if !(effects.messages.is_empty() && effects.from_log.is_empty() && effects.forwards.is_empty())
    {
        let links = shared.links.read().unwrap_or_else(PoisonError::into_inner);
        let send = |to: NodeId, outgoing| {
            if let Some(link) = links.get(&to) {
                let _ = link.send(outgoing);
            }
        };
        for message in effects.messages {
            send(message.to, Outgoing::Message(message));
        }
        for read in effects.from_log {
            send(read.message.to, Outgoing::FromLog(read));
        }
        for (to, forward) in effects.forwards {
            send(to, Outgoing::Forward(forward));
        }
    }
    if effects.flush {
        let _ = applier.send(Work::Flush);
    }
    if let Some(apply) = effects.apply {
        let _ = applier.send(Work::Apply(apply));
    }
    if let Some(through) = effects.compact {
        let _ = log_writer.send(LogWork::Compact(through));
    }
    if let Some(offer) = effects.offer {
        snapshots::offered(shared, offer, applier);
    }
    deliver(shared, effects.answers);
    if let Some((term, role, leader)) = effects.role {
        shared.leader.store(leader.unwrap_or(0), Ordering::Relaxed);
        match (role, leader) {
            (RoleName::Leader, _) => info!("leads the cluster term={term}"),
            (RoleName::Follower, Some(leader)) => info!("follows leader={leader} term={term}"),
            (role, _) => info!("has no leader role={role:?} term={term}"),
        }
    }
}

/// The first leader binds its own id as soon as it has committed something: that is when a cluster
/// comes into being. Whoever expected an old one, with its data, must be able to see that.
fn tell_formation(shared: &Shared, next: &Configuration, leads: bool) {
    let now = shared.configuration();
    let bound = |c: &Configuration| c.member(shared.id).is_some_and(|m| m.identity != 0);
    if leads && !bound(&now) && bound(next) {
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

/// Keeps one sender for every other member, and for every newcomer. Who is a member no more is parted
/// with once that is committed: a leader that leaves still needs the answers until then.
fn reconfigure(shared: &Arc<Shared>, next: Configurations, leads: bool) {
    let configuration = Arc::clone(next.in_force());
    tell_formation(shared, &configuration, leads);
    *shared.configurations.write().unwrap_or_else(PoisonError::into_inner) = next;
    members::part_with_strangers(shared);
    let mut links = shared.links.write().unwrap_or_else(PoisonError::into_inner);
    for member in configuration.members.iter().filter(|m| m.id != shared.id) {
        links.entry(member.id).or_insert_with(|| peers::spawn(shared, member.id));
    }
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
