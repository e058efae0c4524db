//! Who is to belong to the cluster: what persons and joining nodes ask, what the leader does by
//! itself, and why a change is refused.
//!
//! The consensus core says when a change is *safe*; here it is decided whether it is *wise*: who is
//! reachable, who has caught up, whose address or id is taken. The leader by itself
//! - writes down identities and addresses it has learned of members;
//! - promotes learners that have caught up (thesis 4.2.1), in one step with the removal of the member
//!   that a learner replaces, so that there are never fewer healthy voters than before.
//!
//! Everything here is asked of a leader; a follower passes on what it is asked (`admin.rs`). Left out: reaching a new
//! node at all, which is the business of whoever owns sockets.

use super::changes::{Change, ChangeRefused};
use super::words::{Answer, ReplyTo};
use crate::raft::{Configuration, Index, Member, NodeId, NotProposed, PeerProgress, Raft, Term};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most members of a cluster, learners included: each costs the leader a thread, a connection and a
/// copy of the log.
pub const MEMBERS_MAX: usize = 32;

/// Entries that a learner may lack and be promoted when somebody asks for it: about what a busy
/// leader has under way.
const LAG_MAX: u64 = 1000;

/// What is to be done about a change.
enum Plan {
    /// It is not known yet who can be reached now.
    Wait,
    /// Leadership goes to somebody else first.
    HandOver,
    /// Nothing: that is how things are, or will be with the configuration in force.
    Done(NodeId),
    /// Change to this; the member it is about.
    To(Configuration, NodeId),
}

/// Changes that somebody waits for: they are done one at a time, and who asks beyond that is told that another one is
/// under way.
const OPEN_MAX: usize = 1024;

/// A change that waits until it is known who can be reached.
#[derive(Debug)]
struct Asked<C> {
    reply_to: ReplyTo<C>,
    deadline_us: u64,
    change: Change,
    at_us: u64,
}

#[derive(Debug)]
struct Waiting<C> {
    reply_to: ReplyTo<C>,
    deadline_us: u64,
    /// The entry that began it.
    index: Index,
    term: Term,
    id: NodeId,
    /// That entry is committed.
    holds: bool,
}

/// What was learned of a member.
#[derive(Debug, Default)]
struct Known {
    identity: u64,
    address: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Membership<C> {
    /// Bounded by [`Membership::forget_strangers`].
    known: BTreeMap<NodeId, Known>,
    asked: Vec<Asked<C>>,
    waiting: Vec<Waiting<C>>,
    /// Of each learner: what the log was when its present round began, and when that was.
    rounds: BTreeMap<NodeId, (Index, u64)>,
    /// Most members: [`MEMBERS_MAX`] in production.
    members_max: usize,
}

impl<C: Clone> Membership<C> {
    /// `id` is this node.
    pub(super) fn new(
        id: NodeId,
        identity: u64,
        address: Option<String>,
        members_max: usize,
    ) -> Membership<C> {
        let known = BTreeMap::from([(id, Known { identity, address })]);
        let (asked, waiting) = (Vec::new(), Vec::new());
        Membership { known, asked, waiting, rounds: BTreeMap::new(), members_max }
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !(self.waiting.is_empty() && self.asked.is_empty())
    }

    /// A member has shown its identity, and maybe where it is reached now.
    pub(super) fn met(&mut self, node: NodeId, identity: u64, address: Option<String>) {
        let known = self.known.entry(node).or_default();
        // Zero stands for "not known": bound, it would be bound again and again.
        if identity != 0 {
            known.identity = identity;
        }
        known.address = address.or(known.address.take());
    }

    /// Somebody asks for a change. It is begun with [`Membership::turn`].
    pub(super) fn ask(
        &mut self,
        reply_to: ReplyTo<C>,
        deadline_us: u64,
        change: Change,
        now_us: u64,
        answers: &mut Vec<(ReplyTo<C>, Answer)>,
    ) {
        if self.asked.len() + self.waiting.len() >= OPEN_MAX {
            let why = ChangeRefused::NotProposed(NotProposed::ChangeOpen);
            answers.push((reply_to, Answer::Changed(Err(why))));
            return;
        }
        self.asked.push(Asked { reply_to, deadline_us, change, at_us: now_us });
    }

    fn begin(&mut self, raft: &mut Raft, now_us: u64, answers: &mut Vec<(ReplyTo<C>, Answer)>) {
        for asked in std::mem::take(&mut self.asked) {
            match begin(raft, &asked.change, self.members_max, asked.at_us, now_us) {
                Ok(None) => self.asked.push(asked),
                Ok(Some((index, id))) => {
                    let Asked { reply_to, deadline_us, .. } = asked;
                    let term = raft.term_at(index).unwrap_or(0);
                    // Only what is committed leaves the log.
                    let holds = index < raft.first_index();
                    let waiting = Waiting { reply_to, deadline_us, index, term, id, holds };
                    self.waiting.push(waiting);
                }
                Err(why) => answers.push((asked.reply_to, Answer::Changed(Err(why)))),
            }
        }
    }

    /// Does what the leader does by itself, and settles with whoever waits.
    pub(super) fn turn(
        &mut self,
        raft: &mut Raft,
        now_us: u64,
        answers: &mut Vec<(ReplyTo<C>, Answer)>,
    ) {
        self.begin(raft, now_us, answers);
        self.forget_strangers(raft.configuration());
        self.waiting.retain_mut(|waiting| {
            let Some(fate) = fate(raft, waiting) else { return true };
            let result = fate.map(|()| waiting.id);
            answers.push((waiting.reply_to.clone(), Answer::Changed(result)));
            false
        });
        if raft.may_change().is_err() {
            return;
        }
        if let Some(target) = self.bound(raft.configuration()) {
            let _ = raft.propose_configuration(target);
        } else {
            self.promote(raft, now_us);
        }
    }

    /// What was learned of nodes that are no members is kept for those that may become members soon: the
    /// next ids, as many as there may be.
    fn forget_strangers(&mut self, now: &Configuration) {
        if self.known.len() > 2 * MEMBERS_MAX {
            let soon = now.last_id..=now.last_id + MEMBERS_MAX as NodeId;
            self.known.retain(|id, _| now.member(*id).is_some() || soon.contains(id));
        }
    }

    pub(super) fn expire(&mut self, now_us: u64, answers: &mut Vec<(ReplyTo<C>, Answer)>) {
        self.asked.retain(|asked| {
            let keep = now_us < asked.deadline_us;
            if !keep {
                let why = ChangeRefused::NotProposed(NotProposed::TooEarly);
                answers.push((asked.reply_to.clone(), Answer::Changed(Err(why))));
            }
            keep
        });
        self.waiting.retain(|waiting| {
            let keep = now_us < waiting.deadline_us;
            if !keep {
                let unknown = Answer::Changed(Err(ChangeRefused::Unknown));
                answers.push((waiting.reply_to.clone(), unknown));
            }
            keep
        });
    }

    /// The configuration with everything that was learned of its members, if that is news: so that
    /// a wiped disk is recognised for ever after, and a node that moved is found.
    fn bound(&self, now: &Configuration) -> Option<Configuration> {
        let news = |member: &Member| {
            let known = self.known.get(&member.id)?;
            let identity = if member.identity == 0 { known.identity } else { member.identity };
            // Only of the very node: another one cannot move it.
            let moved = known.address.as_ref().filter(|_| known.identity == identity);
            let address = moved.unwrap_or(&member.address);
            let news = identity != member.identity || *address != member.address;
            news.then(|| Member { id: member.id, identity, address: address.clone() })
        };
        if now.members.iter().all(|member| news(member).is_none()) {
            return None;
        }
        let mut next = now.clone();
        for member in &mut next.members {
            if let Some(news) = news(member) {
                *member = news;
            }
        }
        // Nobody moves to where somebody else is; two may change places.
        for at in 0..next.members.len() {
            let (old, new) = (&now.members[at], &next.members[at]);
            let taken = next.members.iter().any(|m| m.id != new.id && m.address == new.address);
            if old.address != new.address && taken {
                let address = old.address.clone();
                next.members[at].address = address;
            }
        }
        (next != *now).then_some(next)
    }

    /// Lets a learner vote that has caught up: what the log was when its round began it had within
    /// an election timeout, so that a majority that needs it does not stall (thesis 4.2.1).
    fn promote(&mut self, raft: &mut Raft, now_us: u64) {
        let now = Arc::clone(raft.configuration());
        self.rounds.retain(|id, _| now.learners.contains(id));
        if now.learners.is_empty() {
            return;
        }
        let (last, patience_us) = (raft.last_index(), raft.options().election_timeout_us);
        let mut ready = None;
        for peer in raft.progress() {
            let known = now.member(peer.id).is_some_and(|m| m.identity != 0);
            if !now.learners.contains(&peer.id) || !known || !peer.reachable {
                continue;
            }
            let round = self.rounds.entry(peer.id).or_insert((last, now_us));
            if peer.match_index < round.0 {
                continue;
            }
            if now_us <= round.1 + patience_us && peer.match_index > 0 {
                ready = Some(peer.id);
                break;
            }
            *round = (last, now_us);
        }
        let Some(id) = ready else { return };
        if now.replaces.get(&id) == Some(&raft.id()) && raft.transfer(None, now_us).is_ok() {
            // Whoever leads next goes on.
            return;
        }
        let target = now.with_promoted(id);
        let peers = raft.progress();
        let reached =
            |id: NodeId| id == raft.id() || peers.iter().any(|p| p.id == id && p.reachable);
        if target.majority(reached) {
            let _ = raft.propose_configuration(target);
        }
    }
}

/// Whether a change is done, or will never be; none while that is open.
fn fate<C>(raft: &Raft, waiting: &mut Waiting<C>) -> Option<Result<(), ChangeRefused>> {
    if !waiting.holds {
        if waiting.index < raft.first_index() {
            // A snapshot took its place, of a log that may hold something else there.
            return Some(Err(ChangeRefused::Unknown));
        }
        if raft.term_at(waiting.index) != Some(waiting.term) {
            return Some(Err(ChangeRefused::Overwritten));
        }
        waiting.holds = raft.commit_index() >= waiting.index;
    }
    (waiting.holds && raft.is_settled()).then_some(Ok(()))
}

/// Begins a change; answers the entry to wait for, none when it cannot be told yet.
fn begin(
    raft: &mut Raft,
    change: &Change,
    members_max: usize,
    at_us: u64,
    now_us: u64,
) -> Result<Option<(Index, NodeId)>, ChangeRefused> {
    match plan(raft, change, members_max, at_us, now_us)? {
        Plan::Wait => Ok(None),
        Plan::HandOver => {
            let to = raft.transfer(None, now_us)?;
            Err(ChangeRefused::HandsOver { to })
        }
        Plan::Done(id) => Ok(Some((raft.configuration_index(), id))),
        Plan::To(target, id) => Ok(Some((raft.propose_configuration(target)?, id))),
    }
}

/// What a change comes to. Who is reachable is known of those that were heard since `at_us`, when it
/// was asked for, and of all after an election timeout: who has just died is not counted on.
fn plan(
    raft: &Raft,
    change: &Change,
    members_max: usize,
    at_us: u64,
    now_us: u64,
) -> Result<Plan, ChangeRefused> {
    // That something is refused for good is said before that it cannot be done now.
    raft.may_propose()?;
    let now = raft.configuration();
    let member = |id: NodeId| match now.member(id) {
        Some(member) => Ok(member),
        None if now.was_removed(id) => Err(ChangeRefused::WasRemoved { id }),
        None => Err(ChangeRefused::NoMember { id }),
    };
    let of_address = |address: &str| now.members.iter().find(|m| m.address == *address);
    let progress = raft.progress();
    let reaches =
        |id: NodeId| id == raft.id() || progress.iter().any(|p| p.id == id && p.heard_us > at_us);
    let known = now_us >= at_us + raft.options().election_timeout_us;
    let room = || {
        if now.members.len() < members_max {
            Ok(())
        } else {
            Err(ChangeRefused::TooMany { members_max })
        }
    };
    let plan = match change {
        Change::Join { address, identity } => {
            let same = |m: &&Member| *identity != 0 && m.identity == *identity;
            if let Some(member) = now.members.iter().find(same) {
                return Ok(Plan::Done(member.id));
            }
            // One that somebody else has asked for is to come.
            let awaited = |m: &&Member| {
                m.address == *address && m.identity == 0 && now.learners.contains(&m.id)
            };
            if let Some(id) = now.members.iter().find(awaited).map(|m| m.id) {
                if *identity == 0 {
                    return Ok(Plan::Done(id));
                }
                let mut next = Configuration::clone(now);
                let of_id = next.members.iter_mut().filter(|m| m.id == id);
                of_id.for_each(|m| m.identity = *identity);
                Plan::To(next, id)
            } else if let Some(taken) = of_address(address) {
                let (id, address) = (taken.id, address.clone());
                let own = now.member(raft.id()).map(|m| m.address.clone());
                let asked_at = own.filter(|_| *identity != 0);
                return Err(ChangeRefused::AddressTaken { id, address, asked_at });
            } else {
                room()?;
                let next = now.with_learner(*identity, address);
                let id = next.last_id;
                Plan::To(next, id)
            }
        }
        &Change::Promote { id, force } => {
            member(id)?;
            if now.is_voter(id) {
                return Err(ChangeRefused::Votes { id });
            }
            // One that was never heard has nothing.
            let heard = |p: &&PeerProgress| p.id == id && p.reachable && p.match_index > 0;
            let peer = progress.iter().find(heard);
            let entries = peer.map(|p| raft.commit_index().saturating_sub(p.match_index));
            // Whoever cannot be reached is no vote but a burden, whatever a person knows.
            let waits = entries.is_none() || entries > Some(LAG_MAX) && !force;
            if waits {
                return Err(ChangeRefused::Behind { id, entries });
            }
            let target = now.with_promoted(id);
            let needs_more = |voters, reachable| ChangeRefused::NeedsMore { id, voters, reachable };
            if !has_quorum(&target, reaches, known, needs_more)? {
                return Ok(Plan::Wait);
            }
            Plan::To(target, id)
        }
        &Change::Remove { id, force } => {
            member(id)?;
            let target = now.without(id);
            if target.voters.is_empty() {
                return Err(ChangeRefused::OnlyVoter { id });
            }
            let loses = |left, reachable| ChangeRefused::LosesQuorum { id, left, reachable };
            if now.is_voter(id) && !force && !has_quorum(&target, reaches, known, loses)? {
                return Ok(Plan::Wait);
            }
            if id == raft.id() {
                return Ok(Plan::HandOver);
            }
            Plan::To(target, id)
        }
        Change::Replace { old, address } => {
            let old = member(*old)?;
            if let Some((&by, _)) = now.replaces.iter().find(|(_, replaced)| **replaced == old.id) {
                let same = now.member(by).is_some_and(|m| m.address == *address);
                return match same {
                    true => Ok(Plan::Done(by)),
                    false => Err(ChangeRefused::BeingReplaced { id: old.id, by }),
                };
            }
            let there = now.members.iter().find(|m| m.address == *address && m.id != old.id);
            match there.map(|m| m.id) {
                Some(id) if now.replaces.contains_key(&id) => {
                    return Err(ChangeRefused::Replaces { id, old: now.replaces[&id] });
                }
                Some(id) if now.learners.contains(&id) => {
                    let mut next = Configuration::clone(now);
                    next.replaces.insert(id, old.id);
                    Plan::To(next, id)
                }
                Some(id) => return Err(ChangeRefused::ReplacedByVoter { old: old.id, id }),
                None if old.address == *address && reaches(old.id) => {
                    return Err(ChangeRefused::Answers { id: old.id });
                }
                None if old.address == *address && !known => return Ok(Plan::Wait),
                None => {
                    room()?;
                    let mut next = now.with_learner(0, address);
                    next.replaces.insert(next.last_id, old.id);
                    let id = next.last_id;
                    Plan::To(next, id)
                }
            }
        }
    };
    raft.may_change()?;
    Ok(plan)
}

/// Whether the voters of `target` that can be reached are enough; false while that is not known. Then
/// `refused` is told how many voters there are and how many of them can be reached.
fn has_quorum(
    target: &Configuration,
    reaches: impl Fn(NodeId) -> bool,
    known: bool,
    refused: impl Fn(usize, usize) -> ChangeRefused,
) -> Result<bool, ChangeRefused> {
    if target.majority(&reaches) {
        return Ok(true);
    }
    let reachable = target.voters.iter().filter(|&&id| reaches(id)).count();
    if known { Err(refused(target.voters.len(), reachable)) } else { Ok(false) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of any id dial, one after the other. What was learned of members stays, and of those that may
    /// be members soon; the rest is forgotten.
    #[test]
    fn what_is_learned_of_strangers_is_bounded() {
        let member = |id| Member { id, identity: 0, address: format!("host:{id}") };
        let now = Configuration::of_voters(7, (1..=3).map(member).collect());
        let mut membership: Membership<u64> = Membership::new(1, 11, None, MEMBERS_MAX);
        for id in (2..=500).rev() {
            membership.met(id, 10 + id, None);
            membership.forget_strangers(&now);
            assert!(membership.known.len() <= 2 * MEMBERS_MAX, "{}", membership.known.len());
        }
        assert!((1..=4).all(|id| membership.known[&id].identity == 10 + id));
    }
}
