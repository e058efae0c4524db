//! What must hold of the whole cluster, checked after every step: the simulator sees everything.
//!
//! Names are those of the paper's Figure 3 and of the project's list of invariants.

pub use super::platters::Platter;
use super::unproved::{Claim, Unproved};
use crate::raft::{
    AppendResult, Body, Configuration, Entry, HardState, Index, Member, Message, NodeId, Payload,
    Persist, Raft, RoleName, Term, codec,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
}

/// Fails with the name of an invariant.
pub fn violated<T>(invariant: &'static str, detail: String) -> Result<T, Violation> {
    Err(Violation { invariant, detail })
}

/// A member does not vote any more, and the one that is to take its place does not yet.
pub const WENT_FIRST: &str = "members gone before their replacements";

/// The view of the whole cluster.
#[derive(Debug, Default)]
pub struct Cluster {
    leaders: BTreeMap<Term, NodeId>,
    /// Term of each committed index, from 1. Of a simulated cluster all are known; in recordings 0 stands for what none of
    /// them holds.
    committed: Vec<Term>,
    /// Term in which each of them was committed: that of the leader who counted.
    committed_in: Vec<Term>,
    /// What each (index, term) holds, and the term before it (Log Matching, by induction).
    entries: BTreeMap<(Index, Term), (Term, u64)>,
    /// Hash of each applied entry, from index 1; 0 where it is not known.
    applied: Vec<u64>,
    /// Commit index last seen of each node's life.
    commits: BTreeMap<(NodeId, u64), Index>,
    /// Every configuration that went to a log writer.
    configurations: BTreeMap<(Index, Term), Arc<Configuration>>,
    /// Those of them that are committed, and that of the beginning.
    in_force: BTreeMap<Index, Arc<Configuration>>,
    /// Index of the configuration that each node had in force after its last step, by its life.
    before: BTreeMap<NodeId, (u64, Index)>,
    /// What was committed of changes, and the member it is about.
    news: Vec<(&'static str, NodeId)>,
    /// Term of a leader, and how far it believes a follower to match, by the two.
    pub(super) believed: BTreeMap<(NodeId, NodeId), (Term, Index)>,
    /// Most members that the cluster may have, where that is known.
    pub(super) members_max: Option<usize>,
    /// Nodes of which nothing is seen now: they may hold whatever they are said to hold. None in the simulator.
    pub(super) unseen: BTreeSet<NodeId>,
    /// Of some nodes nothing was ever seen, so that what others conclude from them cannot be checked.
    pub(super) is_partial: bool,
    /// What a majority does not show yet and may still: only where the order of things is not certain. None in the
    /// simulator.
    pub(super) unproved: Option<Unproved>,
}

impl Cluster {
    /// Elections that were won.
    pub fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// Index of the last entry known to be committed.
    pub fn committed(&self) -> Index {
        self.committed.len() as Index
    }

    /// Term of each committed index, from 1.
    pub fn committed_terms(&self) -> &[Term] {
        &self.committed
    }

    /// A cluster that begins with this configuration.
    pub fn begin(configuration: Configuration) -> Cluster {
        let in_force = BTreeMap::from([(0, Arc::new(configuration))]);
        Cluster { in_force, ..Cluster::default() }
    }

    /// The latest configuration that is committed.
    pub fn configuration(&self) -> Option<&Arc<Configuration>> {
        self.in_force.last_key_value().map(|(_, c)| c)
    }

    /// Configurations that are in force somewhere, or may come to be: the latest that is committed,
    /// and all that may still be.
    pub fn possible(&self) -> Vec<Configuration> {
        let open = self.configurations.range((self.committed() + 1, 0)..).map(|(_, c)| c);
        self.configuration().into_iter().chain(open).map(|c| (**c).clone()).collect()
    }

    /// What was committed of changes since the last call.
    pub fn take_news(&mut self) -> Vec<(&'static str, NodeId)> {
        std::mem::take(&mut self.news)
    }

    /// A core has made a step.
    pub fn core_stepped(
        &mut self,
        raft: &Raft,
        life: u64,
        platters: &BTreeMap<NodeId, Platter>,
    ) -> Result<(), Violation> {
        let id = raft.id();
        if raft.role() == RoleName::Leader {
            self.leads(id, raft.term())?;
        }
        if let Some(leader) = raft.leader()
            && self.leaders.get(&raft.term()) != Some(&leader)
        {
            let detail = format!("node {id} takes node {leader} for that of term {}", raft.term());
            return violated("the leader of a term is obeyed", detail);
        }
        let seen = self.commits.entry((id, life)).or_insert(0);
        let (from, to) = (*seen + 1, raft.commit_index());
        if to < *seen {
            return violated("commit monotonic", format!("node {id}: {seen} then {to}"));
        }
        *seen = to;
        // What a leader commits first, it commits by counting copies, and those may only be of an
        // entry of its own term (paper 5.4.2): others' terms are committed along with one.
        let news = to > self.committed();
        if news && raft.role() == RoleName::Leader && raft.term_at(to) != Some(raft.term()) {
            let (term, at) = (raft.term(), raft.term_at(to));
            let detail = format!("node {id} leads term {term}, commits index {to} of {at:?}");
            return violated("only entries of its own term are counted", detail);
        }
        let before = self.before.get(&id).filter(|(of, _)| *of == life).map_or(0, |b| b.1);
        for index in from..=to {
            let Some(term) = raft.term_at(index) else { continue };
            match self.committed.get_mut(index as usize - 1) {
                Some(known) if *known == term => {}
                Some(known @ 0) => *known = term,
                Some(known) => {
                    let detail = format!("index {index}: term {known}, at node {id} term {term}");
                    return violated("state machine safety", detail);
                }
                None => self.commits_first(raft, index, term, before, platters)?,
            }
        }
        self.before.insert(id, (life, raft.configuration_index()));
        Ok(())
    }

    /// What is known to be committed up to there, in that term or before, although nobody was seen to commit it: `term`
    /// says what each index holds, as far as that is known.
    pub(super) fn learn(
        &mut self,
        through: Index,
        in_term: Term,
        term: impl Fn(Index) -> Option<Term>,
        configurations: &[(Index, Arc<Configuration>)],
    ) {
        for index in self.committed() + 1..=through {
            self.committed.push(term(index).unwrap_or(0));
            self.committed_in.push(in_term);
        }
        for (index, configuration) in configurations {
            match term(*index) {
                Some(term) if *index > through => {
                    self.configurations
                        .entry((*index, term))
                        .or_insert_with(|| Arc::clone(configuration));
                }
                _ => {
                    self.in_force.entry(*index).or_insert_with(|| Arc::clone(configuration));
                }
            }
        }
    }

    /// A node is known to lead a term.
    pub(super) fn leads(&mut self, id: NodeId, term: Term) -> Result<(), Violation> {
        let leader = *self.leaders.entry(term).or_insert(id);
        if leader != id {
            return violated(
                "election safety",
                format!("nodes {leader} and {id} lead term {term}"),
            );
        }
        Ok(())
    }

    /// `before`: the index of the configuration that was in force when the step began.
    fn commits_first(
        &mut self,
        raft: &Raft,
        index: Index,
        term: Term,
        before: Index,
        platters: &BTreeMap<NodeId, Platter>,
    ) -> Result<(), Violation> {
        let holds = |node| {
            self.unseen.contains(&node) || platters.get(&node).is_some_and(|p| p.holds(index, term))
        };
        // A step may count, and then begin the next change: what counted is what was in force before,
        // or came to be in this step.
        let known = raft.configurations();
        let first = known.iter().rposition(|(at, _)| *at <= before).unwrap_or(0);
        if !self.is_partial && !known[first..].iter().any(|(_, c)| majority_of(c, holds)) {
            let detail = format!("node {} commits index {index} term {term}", raft.id());
            let may_be = known[first..].iter().map(|(_, c)| Arc::clone(c)).collect();
            self.cannot_show("commit evidence", detail, Claim::Entry { index, term }, may_be)?;
        }
        self.committed.push(term);
        self.committed_in.push(raft.term());
        if let Some((_, configuration)) = known.iter().find(|(at, _)| *at == index) {
            let configuration = Arc::clone(configuration);
            self.comes_into_force(raft.id(), index, configuration)?;
        }
        Ok(())
    }

    /// A majority does not show it: that is wrong, or must be shown later where the order is not certain.
    fn cannot_show(
        &mut self,
        invariant: &'static str,
        detail: String,
        claim: Claim,
        configurations: Vec<Arc<Configuration>>,
    ) -> Result<(), Violation> {
        match &mut self.unproved {
            None => violated(invariant, detail),
            Some(unproved) => {
                unproved.add(Violation { invariant, detail }, claim, configurations);
                Ok(())
            }
        }
    }

    /// A configuration is committed: what must hold of it and the one before.
    fn comes_into_force(
        &mut self,
        leader: NodeId,
        index: Index,
        next: Arc<Configuration>,
    ) -> Result<(), Violation> {
        let Some(now) = self.configuration().cloned() else { return Ok(()) };
        let detail = || format!("index {index}: {now:?}, then {next:?}");
        if !next.is_valid() {
            return violated("a configuration is whole", detail());
        }
        if self.members_max.is_some_and(|max| next.members.len() > max) {
            return violated("no more members than there may be", detail());
        }
        let known = |id| now.member(id).is_some();
        let again = |m: &Member| !known(m.id) && m.id <= now.last_id;
        if next.last_id < now.last_id || next.members.iter().any(again) {
            return violated("no id is given twice", detail());
        }
        let other = |m: &Member| {
            now.member(m.id).is_some_and(|old| old.identity != 0 && old.identity != m.identity)
        };
        if next.members.iter().any(other) {
            return violated("an id stays with its directory", detail());
        }
        if !overlap(&now, &next) {
            return violated("consecutive configurations overlap", detail());
        }
        if now.is_joint() && (next.is_joint() || next.voters != now.voters) {
            return violated("a joint configuration leads to its second half", detail());
        }
        if now.members == next.members && now.voters == next.voters && now.learners == next.learners
        {
            if now.replaces != next.replaces {
                self.news.push(("replacements named", 0));
            }
        } else {
            self.tell_change(leader, &now, &next);
        }
        self.in_force.insert(index, next);
        Ok(())
    }

    fn tell_change(&mut self, leader: NodeId, now: &Configuration, next: &Configuration) {
        self.news.push(("members changed", 0));
        if next.is_joint() {
            self.news.push(("joint configurations committed", 0));
        }
        let joined = next.members.iter().filter(|m| now.member(m.id).is_none());
        self.news.extend(joined.map(|m| ("learners joined", m.id)));
        let vote = next.voters.iter().filter(|id| now.learners.contains(id));
        self.news.extend(vote.map(|&id| ("learner votes", id)));
        for gone in now.members.iter().filter(|m| next.member(m.id).is_none()) {
            self.news.push(("members removed", gone.id));
            if gone.id == leader {
                self.news.push(("leaders removed", gone.id));
            }
        }
        for (new, old) in &now.replaces {
            if next.voters.contains(new) && !next.voters.contains(old) {
                self.news.push(("members replaced", *old));
            }
        }
        for (new, old) in &now.replaces {
            if next.learners.contains(new) && now.is_voter(*old) && !next.voters.contains(old) {
                self.news.push((WENT_FIRST, *old));
            }
        }
        let was = |m: &&Member| now.member(m.id).is_some_and(|old| old.address != m.address);
        self.news.extend(next.members.iter().filter(was).map(|m| ("addresses changed", m.id)));
    }

    /// After a step: the configuration in force is the latest in the node's own log or snapshot.
    pub fn configured(&self, raft: &Raft) -> Result<(), Violation> {
        let index = raft.configuration_index();
        let detail = || format!("node {} has that of index {index} in force", raft.id());
        let wrong = "the latest configuration in the log is in force";
        let same = match raft.term_at(index).filter(|_| index >= raft.first_index()) {
            Some(term) => self.configurations.get(&(index, term)),
            None => self.in_force.range(..raft.first_index()).next_back().map(|(_, c)| c),
        };
        if same.is_none_or(|c| c != raft.configuration()) {
            return violated(wrong, detail());
        }
        let behind = self.configurations.range((index + 1, 0)..);
        let held = |((at, term), _): (&(Index, Term), &Arc<Configuration>)| {
            *at <= raft.last_index() && raft.term_at(*at) == Some(*term)
        };
        if behind.into_iter().any(held) {
            return violated(wrong, detail());
        }
        Ok(())
    }

    /// A core has become leader.
    pub fn elected(
        &mut self,
        raft: &Raft,
        platters: &BTreeMap<NodeId, Platter>,
    ) -> Result<(), Violation> {
        // Whoever voted has that on its platter, or has moved on to a later term since.
        let vote = HardState { term: raft.term(), vote: Some(raft.id()) };
        let voted = |node| {
            let voted = |p: &Platter| p.hard == vote || p.hard.term > vote.term;
            self.unseen.contains(&node) || platters.get(&node).is_some_and(voted)
        };
        let may_lead =
            raft.configurations().iter().rev().take(2).any(|(_, c)| c.is_voter(raft.id()));
        let detail = || format!("node {} leads term {}", raft.id(), raft.term());
        if !may_lead {
            return violated("election evidence", detail());
        }
        if !self.is_partial && !majority_of(raft.configuration(), voted) {
            let may_be = vec![Arc::clone(raft.configuration())];
            self.cannot_show("election evidence", detail(), Claim::Vote(vote), may_be)?;
        }
        // Votes may come so late that a later term has committed meanwhile: that says nothing of
        // this one, whose leader will learn soon that it is over.
        let before = |at: &(&Term, &Term)| *at.1 < raft.term();
        let known = self.committed.iter().zip(&self.committed_in).take_while(before);
        for (index, (&term, _)) in (1..).zip(known) {
            let found = raft.term_at(index);
            // In front of its log it has a snapshot of it.
            if index >= raft.first_index() && term != 0 && found != Some(term) {
                let (id, now) = (raft.id(), raft.term());
                let detail = format!(
                    "node {id} leads term {now} with {found:?} at index {index}, committed {term}"
                );
                return violated("leader completeness", detail);
            }
        }
        Ok(())
    }

    /// A core hands entries to its log writer.
    pub fn persists(
        &mut self,
        raft: &Raft,
        persist: &Persist,
        platter: &Platter,
    ) -> Result<(), Violation> {
        // Whoever holds what is committed never has a reason to replace it (Leader Completeness).
        let first = persist.entries.first().map_or(Index::MAX, |e| e.index);
        // Where the store is ahead of the log, the entries in between may still arrive.
        let last = match platter.awaits_reset {
            Some(_) => 0,
            None => self.committed().min(platter.terms.len() as Index),
        };
        for index in first..=last {
            let committed = self.committed.get(index as usize - 1).copied();
            if platter.term(index) == committed && raft.term_at(index) != committed {
                let detail = format!("node {} replaces index {index} of {committed:?}", raft.id());
                return violated("what is committed is never replaced", detail);
            }
        }
        for entry in &persist.entries {
            if let Payload::Configuration(configuration) = &entry.payload {
                let at = (entry.index, entry.term);
                self.configurations.entry(at).or_insert_with(|| Arc::clone(configuration));
            }
            let before = raft.term_at(entry.index - 1).unwrap_or(0);
            let says = (before, hash_of(entry));
            let known = *self.entries.entry((entry.index, entry.term)).or_insert(says);
            if known != says {
                let detail = format!("index {} term {} differs", entry.index, entry.term);
                return violated("log matching", detail);
            }
        }
        Ok(())
    }

    /// Entries are applied at a node that had applied everything before `first`.
    pub fn applies(&mut self, node: NodeId, entries: &[Entry]) -> Result<(), Violation> {
        for entry in entries {
            let at = entry.index as usize - 1;
            let hash = (hash_of(entry) ^ entry.term.rotate_left(32)) | 1;
            if self.applied.len() <= at {
                self.applied.resize(at + 1, 0);
            }
            match self.applied[at] {
                0 => self.applied[at] = hash,
                known if known == hash => {}
                _ => {
                    let detail = format!("node {node} applies another entry at {}", entry.index);
                    return violated("state machine safety", detail);
                }
            }
            if self.committed.get(at).is_none_or(|term| *term != 0 && *term != entry.term) {
                let detail = format!("node {node} applies index {}", entry.index);
                return violated("only committed entries are applied", detail);
            }
        }
        Ok(())
    }

    /// A message leaves a node: whatever it promises must be durable there.
    pub fn leaves(
        &mut self,
        raft: &Raft,
        message: &Message,
        platter: &Platter,
    ) -> Result<(), Violation> {
        let detail = || format!("{message:?} leaves with {:?} durable", platter.hard);
        let Message { to, term, .. } = *message;
        // A term may begin and end within one step.
        if let Body::AppendEntries { .. } | Body::Heartbeat { .. } | Body::InstallSnapshot { .. } =
            &message.body
        {
            self.leads(raft.id(), term)?;
        }
        // By some configuration that it has: one that leaves may not know yet that it has left.
        let votes = || raft.configurations().iter().any(|(_, c)| c.is_voter(raft.id()));
        if let Body::RequestPreVote { .. } | Body::RequestVote { .. } = &message.body
            && !votes()
        {
            return violated("who stands for election has a vote", detail());
        }
        match &message.body {
            Body::RequestPreVote { .. } | Body::PreVoteResponse { granted: true } => return Ok(()),
            Body::VoteResponse { granted: true }
                if platter.hard != (HardState { term, vote: Some(to) }) =>
            {
                return violated("vote is durable", detail());
            }
            Body::SnapshotResponse { last_index, installed: true }
                if *last_index > platter.terms.len() as Index =>
            {
                return violated("an installed snapshot is durable", detail());
            }
            Body::RequestVote { .. }
                if platter.hard != (HardState { term, vote: Some(raft.id()) }) =>
            {
                return violated("own vote is durable", detail());
            }
            Body::AppendResponse { result: AppendResult::Matched { index }, .. } => {
                let held = platter.term(*index);
                // Released by one input and overtaken by the next of the same turn, it speaks of
                // the log of its own term, which the core has left since but the platter has not.
                // What has gone to a snapshot meanwhile is durable there.
                let left = raft.term() > term || *index < raft.first_index();
                if *index > 0 && (held.is_none() || (!left && held != raft.term_at(*index))) {
                    return violated("acknowledged entries are durable", detail());
                }
            }
            _ => {}
        }
        if platter.hard.term < term {
            return violated("term shown is durable", detail());
        }
        Ok(())
    }
}

/// Whether those who are not down could be a majority of each set of voters.
pub fn can_serve(configuration: &Configuration, down: &[NodeId]) -> bool {
    majority_of(configuration, |id| !down.contains(&id))
}

/// Whether a majority of each set of voters has it. It shares nothing with what it checks.
pub(super) fn majority_of(configuration: &Configuration, has: impl Fn(NodeId) -> bool) -> bool {
    let of = |set: &BTreeSet<NodeId>| {
        let all: Vec<bool> = set.iter().map(|&id| has(id)).collect();
        let yes = all.iter().filter(|&&yes| yes).count();
        set.is_empty() || 2 * yes > all.len()
    };
    !configuration.voters.is_empty() && of(&configuration.voters) && of(&configuration.outgoing)
}

/// Whether every two decisions, one by each configuration, have a voter in common: for some set of
/// voters of each, two majorities cannot be apart.
fn overlap(one: &Configuration, other: &Configuration) -> bool {
    let apart = |a: &BTreeSet<NodeId>, b: &BTreeSet<NodeId>| {
        let common = a.intersection(b).count();
        let need = |set: &BTreeSet<NodeId>| (set.len() / 2 + 1).saturating_sub(set.len() - common);
        need(a) + need(b) <= common
    };
    let sets = |c: &Configuration| {
        let sets = [c.voters.clone(), c.outgoing.clone()];
        sets.into_iter().filter(|set| !set.is_empty()).collect::<Vec<_>>()
    };
    let (ours, theirs) = (sets(one), sets(other));
    ours.iter().any(|a| theirs.iter().any(|b| !apart(a, b)))
}

fn hash_of(entry: &Entry) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut byte = |b: u8| hash = (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
    match &entry.payload {
        Payload::Noop => byte(0),
        Payload::Command(bytes) => {
            byte(1);
            bytes.iter().for_each(|&b| byte(b));
        }
        Payload::Configuration(c) => {
            byte(2);
            let mut bytes = Vec::new();
            codec::put_configuration(&mut bytes, c);
            bytes.into_iter().for_each(byte);
        }
    }
    hash
}
