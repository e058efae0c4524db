//! Who a node is, decided before it runs: from its disk, its flags, and what other nodes answer.
//!
//! A directory with an identity belongs to a node of a cluster for good. It goes on as that node, or is
//! refused with a reason when the flags say something else. An empty one is made a first member of a new
//! cluster, or a node that asks a running cluster to take it in. The identity is durable before anything
//! else is made of the directory, so that a crash at any moment leads back to the same question: a
//! node that joins asks again under the same number.
//!
//! A first member with an empty directory asks the others first whether they know it by another one.
//! Then its disk was lost, and it is a new node that waits to be taken in.
//!
//! Left out: files, sockets and clocks, which are the owner's; and opening log and store, which is
//! [`super::open`]'s.

use crate::raft::{Member, NodeId};
use crate::wal::{Identity, MembersSecret};
use crate::wire::client::{Class, Joined};
use crate::wire::handshake::{Hello, Reject, RejectCode, Role};
use crate::wire::proof::{Greeting, Keys, Secret};
use std::collections::VecDeque;

/// Pause between attempts to join, in microseconds: a person may have to do something first.
const JOIN_PAUSE_US: u64 = 500_000;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct StartupOptions {
    /// The data directory, for messages.
    pub data: String,
    /// Where the others reach this node.
    pub advertise: String,
    /// The first members in the order of their ids, or none for a cluster of one.
    pub peers: Vec<String>,
    /// Addresses of a running cluster that is to take this node in; empty when none is.
    pub join: Vec<String>,
    /// The number of the backup to begin from, if there is one.
    pub backup: Option<u64>,
    /// The cluster's tokens, empty for none.
    pub token: Vec<u8>,
    /// Random bytes: the members' secret of a new directory, until a leader offers its own.
    pub secret: [u8; 32],
    /// A random number, the identity of a new directory.
    pub own: u64,
    /// A random number, the name of a new cluster of one.
    pub cluster: u64,
}

/// The answer to what a [`Startup`] wanted done.
#[derive(Debug)]
pub enum StartupEvent {
    /// [`StartupEffect::Store`]: it is durable.
    Stored,
    /// [`StartupEffect::AskPeer`]: how it rejects this node; none when it lets it in, or said nothing
    /// in time, or did not show that it knows the token.
    PeerAnswered(Option<Reject>),
    /// [`StartupEffect::AskCluster`]: an address and the cluster there; none when nobody said so in time.
    ClusterAnswered(Option<(String, u64)>),
    /// [`StartupEffect::Join`]: this node is a member.
    Joined(Joined),
    /// [`StartupEffect::Join`]: it is not.
    NotJoined {
        /// What may be concluded.
        class: Class,
        /// Why, for a person.
        why: String,
    },
    /// [`StartupEffect::Wait`] is over.
    Waited,
}

/// What is to be done next. All but [`StartupEffect::Say`] is answered by an event, or is the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartupEffect {
    /// The identity is to be made durable.
    Store(Identity),
    /// A first member is to be asked whether it knows this node.
    AskPeer {
        /// Where it is.
        address: String,
        /// What to say to it.
        greeting: Box<Greeting>,
    },
    /// Which cluster answers at one of these addresses?
    AskCluster {
        /// The addresses.
        addresses: Vec<String>,
    },
    /// A cluster is to take this node in.
    Join {
        /// Its addresses.
        addresses: Vec<String>,
        /// This node's identity.
        identity: u64,
    },
    /// Something for a person.
    Say {
        /// It needs a person's attention.
        warning: bool,
        /// The line.
        text: String,
    },
    /// So long, in microseconds.
    Wait(u64),
    /// The end: the node runs as this. It is durable.
    Run(Identity),
    /// The end: the node does not start. Why, and the way out.
    Refuse(String),
}

/// What an answer is awaited for.
#[derive(Debug)]
enum Awaits {
    /// What other first members say about an empty directory: those that are yet to be asked, and the
    /// first that knew another directory.
    Peers {
        identity: Identity,
        rest: VecDeque<(NodeId, String)>,
        asked: String,
        known: Option<(String, Reject)>,
    },
    /// The cluster that the flags name beside a directory of a member.
    Cluster(Identity),
    /// That it is durable.
    Stored(Identity),
    /// A cluster.
    Joining { identity: Identity, said: String },
    /// Nothing any more.
    Nothing,
}

/// Decides who a node is.
///
/// Invariant: a node runs as what is durable on its disk, and never as another node than the one its disk
/// belongs to.
#[derive(Debug)]
pub struct Startup {
    options: StartupOptions,
    awaits: Awaits,
    effects: VecDeque<StartupEffect>,
}

impl Startup {
    /// Begins with the identity that was found on disk, if there is one.
    pub fn new(options: StartupOptions, found: Option<Identity>) -> Startup {
        let mut startup = Startup { options, awaits: Awaits::Nothing, effects: VecDeque::new() };
        match found {
            Some(identity) => startup.recognise(identity),
            None => startup.make_up(),
        }
        startup
    }

    /// What is to be done next.
    ///
    /// # Panics
    /// When the last effect was not answered, or was the end.
    pub fn next_effect(&mut self) -> StartupEffect {
        // invariant: every state but the end has an effect, or follows from the event that is owed
        self.effects.pop_front().expect("every effect is answered")
    }

    /// What came of the last effect.
    pub fn handle(&mut self, event: StartupEvent) {
        let awaits = std::mem::replace(&mut self.awaits, Awaits::Nothing);
        match (event, awaits) {
            (
                StartupEvent::PeerAnswered(answer),
                Awaits::Peers { identity, rest, asked, known },
            ) => self.peer_answered(identity, rest, asked, known, answer),
            (StartupEvent::ClusterAnswered(found), Awaits::Cluster(identity)) => {
                self.cluster_answered(identity, found);
            }
            (StartupEvent::Stored, Awaits::Stored(identity)) => self.stored(identity),
            (StartupEvent::Joined(joined), Awaits::Joining { identity, .. }) => {
                let Joined { cluster, id, first, secret } = joined;
                let Some(secret) = secret else {
                    let why = format!(
                        "node {id} votes already, and is not given the members' secret again: if its data directory \
                         is lost, run: kontiki cli member replace {id} {}",
                        identity.advertise
                    );
                    return self.refuse(why);
                };
                let text = format!("taken in as node={id} of cluster={cluster:016x}");
                self.say(false, text);
                let secret = Some(to_keep(secret));
                self.store(Identity { cluster, node: id, members: first, secret, ..identity });
            }
            (StartupEvent::NotJoined { class, why }, Awaits::Joining { identity, said }) => {
                // Asking again does not help.
                if class == Class::Unauthorised {
                    return self.refuse(why);
                }
                if why != said {
                    self.say(true, format!("not taken in yet, asks again: {why}"));
                }
                self.awaits = Awaits::Joining { identity, said: why };
                self.effects.push_back(StartupEffect::Wait(JOIN_PAUSE_US));
            }
            (StartupEvent::Waited, Awaits::Joining { identity, said }) => {
                self.ask_to_join(identity, said);
            }
            // An answer to nothing.
            (_, awaits) => self.awaits = awaits,
        }
    }

    fn say(&mut self, warning: bool, text: String) {
        self.effects.push_back(StartupEffect::Say { warning, text });
    }

    fn refuse(&mut self, why: String) {
        self.effects.push_back(StartupEffect::Refuse(why));
    }

    fn store(&mut self, identity: Identity) {
        self.effects.push_back(StartupEffect::Store(identity.clone()));
        self.awaits = Awaits::Stored(identity);
    }

    // ---- a directory that belongs to a node ----

    fn recognise(&mut self, identity: Identity) {
        if let Some(why) = self.mismatch(&identity) {
            return self.refuse(why);
        }
        if identity.node != 0 && !self.options.join.is_empty() {
            let addresses = self.options.join.clone();
            self.effects.push_back(StartupEffect::AskCluster { addresses });
            self.awaits = Awaits::Cluster(identity);
            return;
        }
        self.go_on(identity);
    }

    /// Why a node of that identity is not started with these flags.
    fn mismatch(&self, identity: &Identity) -> Option<String> {
        let StartupOptions { data, peers, join, backup, advertise, .. } = &self.options;
        let from = backup.map(|backup| cluster_of(&identity.members, Some(backup)));
        if from.is_some_and(|cluster| cluster != identity.cluster) {
            return Some(format!(
                "data directory {data} holds a cluster that was not begun from this backup; start it without \
                 --restore, or choose another --data"
            ));
        }
        if identity.restoring && backup.is_none() {
            return Some(format!(
                "a restore into data directory {data} was begun and not finished; start it with the same \
                 --restore again, or remove the directory"
            ));
        }
        let known: Vec<&str> = identity.members.iter().map(|m| m.address.as_str()).collect();
        if !peers.is_empty() && identity.node != 0 && known != *peers {
            return Some(format!(
                "data directory {data} belongs to a cluster that was formed of {}, not of {}; start it with \
                 the --peers it was made with or without any, or choose another --data",
                known.join(","),
                peers.join(",")
            ));
        }
        if identity.removed {
            return Some(format!(
                "data directory {data} belongs to node {} that was removed from its cluster; it is of no use \
                 any more. To take this machine in again start it with an empty --data and with --join",
                identity.node
            ));
        }
        if identity.denied {
            let id = identity.node;
            return Some(format!(
                "data directory {data} is not the one that node {id} of the cluster had, or an old copy of \
                 it, as this node was told before; it must not vote. If the disk of node {id} is lost for \
                 ever, run: kontiki cli -a OTHER member replace {id} {advertise} -- where OTHER is the address \
                 of a node that runs, and start this machine with an empty --data and --join OTHER"
            ));
        }
        if identity.node == 0 && join.is_empty() && peers.is_empty() {
            return Some(format!(
                "data directory {data} was made to join a cluster, which has not taken it in yet; start it \
                 with --join, or remove the directory"
            ));
        }
        None
    }

    fn cluster_answered(&mut self, identity: Identity, found: Option<(String, u64)>) {
        match found {
            Some((at, cluster)) if cluster != identity.cluster => self.refuse(format!(
                "data directory {} holds data of cluster {:016x}, and {at} is in cluster {cluster:016x}; \
                 start it without --join to go on in its own, or choose another --data",
                self.options.data, identity.cluster
            )),
            _ => self.go_on(identity),
        }
    }

    fn go_on(&mut self, identity: Identity) {
        if identity.advertise == self.options.advertise && identity.secret.is_some() {
            return self.stored(identity);
        }
        // The leader hears of the address when this node dials. A directory from before there was a secret
        // has none.
        let secret = identity.secret.or(Some(self.new_secret()));
        self.store(Identity { advertise: self.options.advertise.clone(), secret, ..identity });
    }

    // ---- an empty directory ----

    fn make_up(&mut self) {
        let options = &self.options;
        let members = first_members(&options.peers, &options.advertise);
        let own = members.iter().find(|m| m.address == options.advertise);
        // The members of a cluster named by --peers agree on its id without a word: it is made of their
        // addresses. Their identities make the difference to another cluster of that name. The same
        // holds of the backup they all begin from.
        let cluster = match (options.backup, &options.peers[..]) {
            (None, []) => options.cluster,
            (backup, _) => cluster_of(&members, backup),
        };
        let identity = Identity {
            cluster: cluster.max(1),
            node: own.map_or(0, |m| m.id),
            identity: options.own.max(1),
            created: false,
            restoring: options.backup.is_some(),
            removed: false,
            denied: false,
            advertise: options.advertise.clone(),
            members,
            secret: Some(self.new_secret()),
        };
        let others = identity.members.iter().filter(|m| m.id != identity.node);
        let rest = others.map(|m| (m.id, m.address.clone())).collect();
        self.ask_next(identity, rest, None);
    }

    /// Asks the other first members, one after the other. A removal is said by who knows that it is
    /// committed; a peer that is a little behind still knows the identity of before. So all are asked,
    /// and one that speaks of a removal is believed.
    fn ask_next(
        &mut self,
        identity: Identity,
        mut rest: VecDeque<(NodeId, String)>,
        known: Option<(String, Reject)>,
    ) {
        let Some((to, address)) = rest.pop_front() else { return self.form(identity, known) };
        let hello = Hello {
            role: Role::Snapshot,
            from: identity.node,
            to,
            identity: identity.identity,
            address: identity.advertise.clone(),
            ..Hello::of_client(identity.cluster)
        };
        let keys = Keys { token: self.options.token.clone(), secret: identity.secret.map(to_show) };
        let greeting = Box::new(Greeting { hello, keys, offers_in: None });
        self.effects.push_back(StartupEffect::AskPeer { address: address.clone(), greeting });
        self.awaits = Awaits::Peers { identity, rest, asked: address, known };
    }

    fn peer_answered(
        &mut self,
        identity: Identity,
        rest: VecDeque<(NodeId, String)>,
        asked: String,
        known: Option<(String, Reject)>,
        answer: Option<Reject>,
    ) {
        match answer {
            Some(Reject { code: RejectCode::Removed, message }) => self.refuse(format!(
                "the node at {asked} says: {message}. Nothing was made of this directory; to take this machine \
                 in as a new node start it with --join {asked} in place of --peers"
            )),
            Some(reject) if reject.code == RejectCode::WrongIdentity => {
                self.ask_next(identity, rest, known.or(Some((asked, reject))));
            }
            _ => self.ask_next(identity, rest, known),
        }
    }

    /// Everybody was asked: it is a first member, or a node that has no id yet.
    fn form(&mut self, identity: Identity, known: Option<(String, Reject)>) {
        let joins = known.is_some() || !self.options.join.is_empty();
        if let Some((at, Reject { message, .. })) = known {
            let (node, own) = (identity.node, &identity.advertise);
            let text = format!(
                "the node at {at} says: {message}. Node {node} of the cluster had another data directory: its \
                 disk was wiped or exchanged. This one never votes under the old id; it waits to be taken in as a \
                 new node. If the old disk is lost for ever, run: kontiki cli -a {at} member replace {node} {own}"
            );
            self.say(true, text);
        }
        let nobody = Identity {
            cluster: 0,
            node: 0,
            restoring: false,
            members: Vec::new(),
            ..identity.clone()
        };
        self.store(if joins { nobody } else { identity });
    }

    fn new_secret(&self) -> MembersSecret {
        MembersSecret { bytes: self.options.secret, sealed: false }
    }

    // ---- the end ----

    /// The identity is durable.
    fn stored(&mut self, identity: Identity) {
        if identity.node != 0 {
            return self.effects.push_back(StartupEffect::Run(identity));
        }
        let addresses = self.addresses().join(",");
        self.say(false, format!("asks to be taken in at={addresses} as {}", identity.advertise));
        self.ask_to_join(identity, String::new());
    }

    fn addresses(&self) -> Vec<String> {
        let StartupOptions { join, peers, advertise, .. } = &self.options;
        join.iter().chain(peers.iter().filter(|peer| *peer != advertise)).cloned().collect()
    }

    fn ask_to_join(&mut self, identity: Identity, said: String) {
        let addresses = self.addresses();
        self.effects.push_back(StartupEffect::Join { addresses, identity: identity.identity });
        self.awaits = Awaits::Joining { identity, said };
    }
}

/// The members' secret as the disk holds it.
pub fn to_keep(secret: Secret) -> MembersSecret {
    MembersSecret { bytes: secret.bytes, sealed: secret.sealed }
}

/// The members' secret as a handshake shows it.
pub fn to_show(secret: MembersSecret) -> Secret {
    Secret { bytes: secret.bytes, sealed: secret.sealed }
}

/// The members that a cluster begins with: those at `peers`, or the one at `advertise` alone. Identities
/// become known when they meet.
fn first_members(peers: &[String], advertise: &str) -> Vec<Member> {
    let alone = [advertise.to_string()];
    let addresses = if peers.is_empty() { &alone[..] } else { peers };
    let member =
        |(id, address): (NodeId, &String)| Member { id, identity: 0, address: address.clone() };
    (1..).zip(addresses).map(member).collect()
}

/// The name of a cluster: FNV-1a, 64 bits, of the addresses of its first members in order, each ended by
/// a zero byte, and of the number in eight bytes of the backup that it begins from, if there is one.
pub fn cluster_of(members: &[Member], backup: Option<u64>) -> u64 {
    let bytes = members.iter().flat_map(|m| m.address.bytes().chain([0]));
    let bytes = bytes.chain(backup.into_iter().flat_map(u64::to_le_bytes));
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
