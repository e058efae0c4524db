//! Who is let in, and what it means not to be.
//!
//! The listener decides by the configurations in its log ([`super::ConfigurationHistory`]). What a
//! rejection means is decided by the dialer, by its own log.

use super::events::Verdict;
use super::status::{ConfigurationHistory, PeerStatus};
use crate::raft::{Configuration, NodeId};
use crate::wire::handshake::{self, Hello, Local, Reject, RejectCode};

/// A node that is connected under an id and a data directory.
pub(super) struct Connected<'a> {
    pub(super) node: NodeId,
    pub(super) identity: u64,
    pub(super) address: &'a str,
}

/// Whether a node that dials is let in. `is_member`: it has proven that, or cannot be asked to yet. `connected` are
/// those that are.
pub(super) fn admit<'a>(
    hello: &Hello,
    local: &Local,
    own_address: &str,
    history: &ConfigurationHistory,
    is_member: bool,
    connected: impl Iterator<Item = Connected<'a>>,
) -> Result<(), Reject> {
    let reject = |code, message: String| Err(Reject { code, message });
    if hello.from == 0 || hello.identity == 0 {
        return reject(RejectCode::Malformed, "a node names its id and identity".to_string());
    }
    if hello.identity == local.identity {
        let message = format!(
            "the dialer has the data directory of this very node, {} at {own_address}: one node is listed \
             under two addresses, or its directory was copied",
            local.node
        );
        return reject(RejectCode::WrongNode, message);
    }
    match handshake::addressed(hello, local) {
        Ok(()) => status_of(hello, history)?,
        // The node that it looks for may have been replaced at its address, and so may all others that
        // it knows. Then this node must be the one to tell it what it is.
        Err(reject) if reject.code == RejectCode::WrongNode => {
            status_of(hello, history)?;
            return Err(reject);
        }
        Err(reject) => return Err(reject),
    }
    // An empty disk in the place of another one is told so: it has nothing to show yet.
    if !is_member {
        let message = format!(
            "the dialer says that it is node {}, and does not hold the members' secret: it is a client, or a data \
             directory of another cluster or of a time before",
            hello.from
        );
        return reject(RejectCode::Unproven, message);
    }
    for other in connected {
        let same_disk = other.identity == hello.identity;
        if same_disk && other.node == hello.from && other.address != hello.address {
            let message = format!(
                "node {} with this very data directory runs at {}: one of the two has a copy, and has \
                 to be stopped",
                hello.from, other.address
            );
            return reject(RejectCode::WrongNode, message);
        }
    }
    Ok(())
}

fn status_of(hello: &Hello, history: &ConfigurationHistory) -> Result<(), Reject> {
    let id = hello.from;
    match history.status(id, hello.identity) {
        // A node that joined later than anything this node has heard of may even lead: one that
        // joins begins with the members of long ago (paper section 6, thesis 4.1).
        PeerStatus::Member | PeerStatus::Newer => Ok(()),
        PeerStatus::Impostor => {
            let message = format!("the dialer is not the node {id} of the configuration");
            Err(Reject { code: RejectCode::WrongIdentity, message })
        }
        PeerStatus::Removed => {
            let message = format!("node {id} was removed from the cluster");
            Err(Reject { code: RejectCode::Removed, message })
        }
    }
}

/// What a rejection means to the node that dialed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// This node must not go on.
    Stop(Verdict, String),
    /// The peer does not talk to this node; others may.
    Refused(String),
}

/// Who was dialed, and by whom.
pub(super) struct Dialed<'a> {
    pub(super) own: NodeId,
    pub(super) own_identity: u64,
    pub(super) own_address: &'a str,
    pub(super) peer: NodeId,
    /// Where it was reached: it may have moved since, or be no member that is known.
    pub(super) address: &'a str,
}

/// A peer that knows another data directory under this node's id is believed as long as this node's
/// log does not bind the id to its own: what this node would vote or acknowledge may have been promised
/// otherwise. Once the log binds it, a majority has elected a leader that knew this directory, and has
/// committed with it. Then the peer is of another life of the cluster, and to stop would only take
/// away what is served.
pub(super) fn meaning_of(
    reject: &Reject,
    configuration: &Configuration,
    dialed: &Dialed<'_>,
) -> Meaning {
    let Reject { code, message } = reject;
    let Dialed { own, own_address, peer, address, .. } = *dialed;
    match code {
        RejectCode::Removed => {
            return Meaning::Stop(
                Verdict::Removed,
                format!(
                    "node {peer} at {address} says: {message}. This node stops, and its data directory is \
                     of no use any more; to take this machine in again start it with an empty --data and \
                     --join {address}"
                ),
            );
        }
        RejectCode::WrongIdentity => {}
        _ => return Meaning::Refused(format!("it refuses the connection: {message}")),
    }
    let identity = |id| configuration.member(id).map_or(0, |m| m.identity);
    if identity(own) == dialed.own_identity {
        return Meaning::Refused(format!(
            "node {peer} at {address} has a data directory of another life of this cluster and is \
             left out ({message}); see docs/operations.md, \"A wiped or damaged disk\""
        ));
    }
    if identity(own) == 0 && identity(peer) != 0 {
        return Meaning::Refused(format!("it refuses the connection: {message}"));
    }
    Meaning::Stop(
        Verdict::Impostor,
        format!(
            "node {peer} at {address} says: {message}. This is not the data directory that node {own} \
             of the cluster had: its disk was wiped or exchanged. {}",
            way_out(own, own_address, address)
        ),
    )
}

/// What a person does about a disk that must not vote.
pub(super) fn way_out(own: NodeId, own_address: &str, peer_address: &str) -> String {
    format!(
        "It must not vote under the old id. If the disk of node {own} is lost for good, run: kontiki \
         cli -a {peer_address} member replace {own} {own_address} -- and start this node with an empty \
         --data and --join {peer_address}; see docs/operations.md, \"A wiped or damaged disk\""
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Member;

    fn rejected(code: RejectCode, own: u64, peer: u64) -> Meaning {
        let member = |id, identity| Member { id, identity, address: format!("host:{id}") };
        let configuration = Configuration::of_voters(7, vec![member(1, own), member(2, peer)]);
        let reject = Reject { code, message: "no".to_string() };
        let dialed =
            Dialed { own: 1, own_identity: 11, own_address: "host:1", peer: 2, address: "there:9" };
        meaning_of(&reject, &configuration, &dialed)
    }

    /// A node that was away is told by one that joined meanwhile, or that has moved: the command that
    /// it names leads to where that is.
    #[test]
    fn the_way_out_names_the_address_that_was_dialed() {
        for code in [RejectCode::Removed, RejectCode::WrongIdentity] {
            let Meaning::Stop(_, text) = rejected(code, 0, 0) else { panic!("goes on") };
            assert!(text.contains("node 2 at there:9 says"), "{text}");
            assert!(text.contains("--join there:9"), "{text}");
        }
    }

    /// A wiped node is told by a peer that remembers its old disk: it stops, for nothing in its log
    /// says that it is a member. Two wiped nodes have formed a cluster without the third, which
    /// comes back with its old disk: they go on, whether or not they had bound it.
    #[test]
    fn only_a_node_that_is_not_bound_stops_when_its_identity_is_denied() {
        let denied = |own, peer| rejected(RejectCode::WrongIdentity, own, peer);
        assert!(matches!(denied(0, 0), Meaning::Stop(Verdict::Impostor, _)));
        assert!(matches!(denied(99, 0), Meaning::Stop(Verdict::Impostor, _)));
        // It has got the log from one that did not know whose disk it has; now its own says so, too.
        assert!(matches!(denied(99, 22), Meaning::Stop(Verdict::Impostor, _)));
        for peer in [0, 22] {
            let Meaning::Refused(text) = denied(11, peer) else { panic!("stops") };
            assert!(text.contains("another life of this cluster"), "{text}");
        }
        assert!(matches!(denied(0, 22), Meaning::Refused(_)));
    }

    /// A peer that is full, or of another cluster, stops nobody.
    #[test]
    fn other_rejections_stop_nobody() {
        let meaning = rejected(RejectCode::ForeignCluster, 0, 0);
        assert_eq!(meaning, Meaning::Refused("it refuses the connection: no".to_string()));
    }
}
