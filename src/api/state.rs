//! What a node's connections may look at: who it is, what its store holds, who leads.

use super::answers::{ANSWER_BYTES_MAX, ANSWER_FREE_BYTES};
use super::budget::Budget;
use super::load::Load;
use super::patience::partial_budget;
use crate::kv::limits::TooLarge;
use crate::kv::query::answer as answer_query;
use crate::kv::{Limits, LsmReader, Query, Reader as _, Reply, Space, StoreError, View as _};
use crate::node::{ClusterView, DEADLINE_US, DEADLINE_US_MAX, Refusal, Status, TransferProgress};
use crate::raft::{Configuration, Member, NodeId, PeerProgress};
use crate::wal::{Identity, LogReader};
use crate::wire::client::{Class, Failure, NodeStatus, PeerStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// What a client is told of a node whose store is damaged.
pub(super) const DAMAGED: &str = "this node's store is damaged and is being repaired";

/// The same where no other node is there to repair it.
pub(super) const DAMAGED_ALONE: &str =
    "this is in a damaged part of the store, and no other node has it";

/// See the module. Whoever owns a part of it writes it here; everybody reads.
#[derive(Debug)]
pub struct NodeState {
    /// The node.
    pub id: NodeId,
    /// The members that the cluster was formed of.
    pub first: Vec<Member>,
    /// The number of its data directory.
    pub identity: u64,
    /// The cluster.
    pub cluster: u64,
    /// Where it is reached.
    pub address: String,
    /// The [`tokens`](crate::wire::proof::tokens) of which dialers must know one; empty for none.
    pub token: Vec<u8>,
    /// What its flags allow.
    pub limits: Limits,
    /// Connections of clients that its flags allow at a time.
    pub connections_set: usize,
    /// Connections of clients that have a place at a time: fewer where the machine gives no more.
    pub connections_max: AtomicUsize,
    /// Reads the store.
    pub reader: LsmReader,
    /// Reads the log.
    pub log: LogReader,
    /// Connections that are open.
    pub connections: AtomicUsize,
    /// Bytes in use in the log.
    pub log_bytes: AtomicU64,
    /// How far a snapshot is on its way here, while one is fetched or installed.
    pub fetching: Mutex<Option<TransferProgress>>,
    /// Replicas were seen to differ.
    pub different: AtomicBool,
    /// A read has met damage in the store.
    pub damaged: AtomicBool,
    /// What all clients hold for requests that are not complete.
    pub partial: Arc<Budget>,
    /// How many requests are under way, and may be.
    pub load: Arc<Load>,
    /// What the answers hold that are not sent yet, to all clients and to nodes that passed requests on.
    pub answers: Arc<Budget>,
    /// What the raft loop knows of the cluster.
    pub view: RwLock<Arc<ClusterView>>,
}

/// What a failed read of the store means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreTrouble {
    /// The store cannot be read, and that is not to be waited for: the node cannot go on.
    Fatal,
    /// It is damaged, and nobody knew: the replica is told.
    Damaged,
    /// That is known.
    Known,
}

impl NodeState {
    /// That of a node of this identity which has just been opened, without an address and a token, and with
    /// the usual limits.
    pub fn of(
        identity: &Identity,
        reader: LsmReader,
        log: LogReader,
        view: ClusterView,
    ) -> NodeState {
        NodeState {
            id: identity.node,
            first: identity.members.clone(),
            identity: identity.identity,
            cluster: identity.cluster,
            address: String::new(),
            token: Vec::new(),
            limits: Limits::default(),
            connections_set: usize::MAX,
            connections_max: AtomicUsize::new(usize::MAX),
            reader,
            log,
            connections: AtomicUsize::new(0),
            log_bytes: AtomicU64::new(0),
            fetching: Mutex::new(None),
            different: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            partial: partial_budget(),
            load: Arc::default(),
            answers: Budget::new(ANSWER_BYTES_MAX, ANSWER_FREE_BYTES),
            view: RwLock::new(Arc::new(view)),
        }
    }

    /// The latest view of the cluster.
    pub fn view(&self) -> Arc<ClusterView> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes another view.
    pub fn publish(&self, view: Arc<ClusterView>) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    /// The configuration in force.
    pub fn configuration(&self) -> Arc<Configuration> {
        Arc::clone(self.view().history.in_force())
    }

    /// Who leads, and where that is; 0 and empty when either is not known.
    pub fn known_leader(&self) -> (NodeId, String) {
        let view = self.view();
        let member = view.history.in_force().member(view.leader);
        member.map_or_else(Default::default, |m| (m.id, m.address.clone()))
    }

    /// The same for an answer to a client.
    pub fn leader_hint(&self) -> Option<(NodeId, String)> {
        Some(self.known_leader()).filter(|(id, _)| *id != 0)
    }

    /// Why a connection is refused at the cap.
    pub fn full(&self) -> String {
        let max = self.connections_max.load(Ordering::Relaxed);
        match self.connections_set {
            set if set <= max => {
                format!("busy: {set} connections are the limit (--max-connections)")
            }
            set => format!(
                "busy: {max} connections are the limit, because the machine gives the node no more \
                 (its log says of what); --max-connections is {set}"
            ),
        }
    }

    /// Most connections of clients, where that is fewer than the flags allow.
    fn fewer_connections(&self) -> Option<String> {
        let max = self.connections_max.load(Ordering::Relaxed);
        (max < self.connections_set).then(|| format!("{max} connections at most"))
    }

    /// What unsent answers hold, where that is nearly as much as they may.
    fn answers_held(&self) -> Option<String> {
        let (held, max) = (self.answers.held() >> 20, self.answers.max() >> 20);
        self.answers
            .is_short()
            .then(|| format!("answers not taken by clients: {held} of {max} MiB"))
    }

    /// What a client is told whose answer finds no room.
    pub(super) fn no_room(&self) -> Failure {
        let max = self.answers.max();
        let message = format!(
            "busy: the answers that clients have not taken yet hold as much memory as they may ({max} bytes); try \
             again later"
        );
        failure(Class::Busy, message)
    }

    /// The store could not be read. Damage concerns what it hides: it is never served, and the node is
    /// not healthy any more. Anything else, which is no end of a file and not to be waited for, ends the
    /// node.
    pub fn trouble(&self, e: &StoreError) -> StoreTrouble {
        if !e.is_damage() {
            return StoreTrouble::Fatal;
        }
        let unnamed = matches!(e, StoreError::BadRecord { .. });
        if self.reader.damage().is_none() && !unnamed {
            // It was met in a cut of the time before a repair.
            return StoreTrouble::Known;
        }
        match self.damaged.swap(true, Ordering::Relaxed) {
            true => StoreTrouble::Known,
            false => StoreTrouble::Damaged,
        }
    }

    /// Whether no other node has what this one has.
    pub fn is_alone(&self) -> bool {
        self.view().others.is_empty()
    }

    /// What the log says when damage is met first.
    pub fn damaged_line(&self) -> &'static str {
        match self.is_alone() {
            true => {
                "a part of this node's store is damaged, and no other node has it: what is whole is served; restore \
                 a backup, or save what is left (docs/operations.md, \"A wiped or damaged disk\")"
            }
            false => DAMAGED,
        }
    }

    /// A refusal as a client sees it, with the leader's address where that may help.
    pub(super) fn refused(&self, refusal: Refusal) -> Failure {
        Failure { class: refusal.class(), message: refusal.to_string(), leader: self.leader_hint() }
    }

    /// Why a query is not answered.
    pub(super) fn check_query(&self, query: &Query) -> Result<(), Failure> {
        self.limits.check_query(query).map_err(|e| {
            // An empty key is no matter of size.
            let class = if e == TooLarge::EmptyKey { Class::Invalid } else { Class::TooLarge };
            failure(class, e.to_string())
        })
    }

    /// Bytes that the answer to a query may hold, without reading them: exactly those of a value, of a page the most.
    pub(super) fn answer_bytes(&self, query: &Query) -> Result<usize, StoreError> {
        Ok(match query {
            Query::Get { key } => self.reader.view().value_len(Space::User, key)?.unwrap_or(0),
            Query::Range(range) if range.count_only => 0,
            Query::Range(_) => self.limits.max_page_bytes,
        })
    }

    /// Answers a query from what this node has applied.
    pub(super) fn query(&self, query: &Query) -> Result<Reply, QueryError> {
        self.check_query(query).map_err(QueryError::Refused)?;
        answer_query(&self.reader.view(), query, &self.limits).map_err(QueryError::Unreadable)
    }

    pub(super) fn status(&self, status: &Status) -> NodeStatus {
        let fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        let fetching = fetching.as_ref().map(ToString::to_string);
        let words = status.words(self.reader.is_disk_full(), fetching);
        let peer = |p: &PeerProgress| PeerStatus {
            id: p.id,
            match_index: p.match_index,
            reachable: p.reachable,
        };
        let connections = self.connections.load(Ordering::Relaxed);
        NodeStatus {
            id: self.id,
            identity: self.identity,
            cluster: self.cluster,
            address: self.address.clone(),
            role: status.own_role(),
            leader: status.leader,
            term: status.term,
            commit: status.commit,
            applied: status.applied,
            last_index: status.last_index,
            first_index: self.log.first_index(),
            log_bytes: self.log_bytes.load(Ordering::Relaxed),
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            version: env!("CARGO_PKG_VERSION").to_string(),
            peers: status.peers.iter().map(peer).collect(),
            state: [Some(words), self.fewer_connections(), self.answers_held()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}

/// Why a query has no reply.
pub(super) enum QueryError {
    Refused(Failure),
    Unreadable(StoreError),
}

/// When a request that arrives now must be answered; 0 leaves that to the node.
pub(super) fn deadline_us(deadline_ms: u32, now_us: u64) -> u64 {
    let wait_us = match deadline_ms {
        0 => DEADLINE_US,
        ms => (u64::from(ms) * 1000).min(DEADLINE_US_MAX),
    };
    now_us + wait_us
}

pub(super) fn failure(class: Class, message: String) -> Failure {
    Failure { class, message, leader: None }
}
