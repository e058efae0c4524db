//! Sealing: how the members' secret comes about, with one command line a node and in any order of starts.
//!
//! The secret ([`crate::wire::proof`]) has to be random, and the first members begin at the same time without a
//! word. So every data directory is made with a secret of its own, and a leader makes its own everybody's:
//!
//! 1. A leader whose secret is not *sealed* offers it to every other member in the handshake of a connection
//!    that it dials anew for that. A member whose secret is not sealed either takes it, when it comes from the
//!    leader of the term that it is in itself, makes it durable, and shows it in its answer.
//! 2. When all members of a committed configuration have shown it in one term, and every one of them is bound
//!    to its data directory, the leader seals it. Sealed is said in every handshake; whoever hears it from
//!    somebody who holds the same secret seals it, too.
//! 3. A sealed node lets in, and believes, nobody who does not show the secret, and takes no other one.
//!
//! A node that joins is given the secret in the answer that takes it in. A directory from before there was a
//! secret gets one of its own at its start, so a cluster that is upgraded is sealed as a new one is.
//!
//! **Why one secret is sealed.** Say a leader of term t has seen every member hold S. Each of them was in term t
//! then, or it would not have taken that for the word of its leader. Whoever leads later was itself a member
//! that held S in term t, or was taken in by such a one; so the first later leader offers S, and by
//! induction every one does. Nobody can have taken another secret from an earlier leader after it was in term t.
//! Which leader seals first does not matter.
//!
//! Until then the token is all that a member has to show: a client that has it can pose as a member. That is
//! the time in which a cluster is formed or upgraded, and it lasts until all members have met under one leader.
//! A member that never comes keeps the cluster from being sealed until it is removed or replaced; the log says so.

use super::Peers;
use super::events::PeerEffect;
use crate::raft::{NodeId, Raft, RoleName, Term};
use crate::wire::handshake::{Hello, Lane, Role};
use crate::wire::proof::{Presented, Proven};
use std::collections::BTreeMap;

/// What a leader knows of others that hold its secret.
#[derive(Debug, Default)]
pub(super) struct Sealing {
    /// The term in which it leads.
    term: Term,
    /// Who has shown it in that term, and of what data directory that is.
    shown: BTreeMap<NodeId, u64>,
    /// When those who have not are dialed anew.
    next_us: u64,
    /// Said once a life.
    said: bool,
    /// How often they were, in that term.
    rounds: u32,
}

/// Rounds, of an election timeout each, after which it is said who keeps the secret from being sealed.
const ROUNDS_UNSAID: u32 = 20;

impl Peers {
    /// The term in which this node leads and offers its secret.
    pub(super) fn offers_in(&self, raft: &Raft) -> Option<Term> {
        (!self.secret.sealed && raft.role() == RoleName::Leader).then(|| raft.term())
    }

    /// A dialer that was let in may offer the secret, or say that it is sealed.
    pub(super) fn take_offer(&mut self, presented: &Presented, proven: Proven, raft: &Raft) {
        if proven.sealed {
            return self.seal("another member says so");
        }
        let Hello { from, role, lane, .. } = *presented.hello;
        let by_the_leader =
            |(term, bytes)| (term == raft.term() && raft.leader() == Some(from)).then_some(bytes);
        if self.secret.sealed || (role, lane) != (Role::Peer, Lane::Control) {
            return;
        }
        if let Some(bytes) = presented.offer().and_then(by_the_leader)
            && self.secret.bytes != bytes
        {
            self.secret.bytes = bytes;
            self.effects.push(PeerEffect::Keep { secret: self.secret });
        }
    }

    /// A member has shown the secret that was offered in that term.
    pub(super) fn has_shown(&mut self, peer: NodeId, identity: u64, offered: Term, raft: &Raft) {
        if self.offers_in(raft) == Some(offered) && self.sealing.term == offered {
            // Newcomers may come and go for as long as a member does not come.
            let others = self.others();
            let stays = |id: &NodeId| others.contains(id) || self.history.is_member(*id);
            self.sealing.shown.retain(|id, _| stays(id));
            self.sealing.shown.insert(peer, identity);
        }
    }

    /// Seals the secret when that is due, and says what is new to those who were dialed before.
    pub(super) fn go_on_sealing(&mut self, raft: &Raft) {
        if self.secret.sealed {
            return self.links.tell_sealed(self.now_us);
        }
        let Some(term) = self.offers_in(raft) else { return };
        if self.sealing.term != term {
            let said = self.sealing.said;
            let shown = BTreeMap::new();
            self.sealing = Sealing { term, shown, next_us: self.now_us, said, rounds: 0 };
        }
        if self.all_have_shown() {
            self.seal("all members hold it");
            return self.links.tell_sealed(self.now_us);
        }
        if self.now_us < self.sealing.next_us {
            return;
        }
        self.sealing.next_us = self.now_us + raft.options().election_timeout_us;
        let waits_for: Vec<NodeId> =
            self.others().into_iter().filter(|id| !self.sealing.shown.contains_key(id)).collect();
        self.sealing.rounds = self.sealing.rounds.saturating_add(1);
        if self.sealing.rounds == ROUNDS_UNSAID {
            let text = format!(
                "members cannot prove themselves yet, because these have not been met: {waits_for:?}. Until they \
                 are, or are removed, a client that has the token can pose as a member"
            );
            self.effects.push(PeerEffect::Say { warning: true, text });
        }
        for id in waits_for {
            if let Some(connection) = self.links.open(id, Lane::Control) {
                self.links.replace(connection, self.now_us);
            }
        }
    }

    /// When [`Peers::go_on_sealing`] may find something.
    pub(super) fn seals_at_us(&self, raft: &Raft) -> u64 {
        match self.offers_in(raft) {
            None => u64::MAX,
            Some(term) if term != self.sealing.term => 0,
            Some(_) => self.sealing.next_us,
        }
    }

    fn all_have_shown(&self) -> bool {
        let [configuration] = self.history.all() else { return false };
        configuration.members.iter().all(|member| {
            let shown = match member.id == self.id {
                true => Some(&self.options.identity),
                false => self.sealing.shown.get(&member.id),
            };
            member.identity != 0 && shown == Some(&member.identity)
        })
    }

    pub(super) fn seal(&mut self, why: &str) {
        if self.secret.sealed {
            return;
        }
        self.secret.sealed = true;
        self.effects.push(PeerEffect::Keep { secret: self.secret });
        if !std::mem::replace(&mut self.sealing.said, true) {
            let text = format!("members prove themselves with their own secret from now on: {why}");
            self.effects.push(PeerEffect::Say { warning: false, text });
        }
    }
}
