//! The handshake: who dials whom, in which version, and with what right.
//!
//! The dialer sends [`Hello`]; both sides show what they know ([`super::proof`]); the other side answers
//! [`Welcome`] or [`Reject`] and closes after the latter. [`addressed`] holds the rules that clients and
//! nodes share. The form of `Hello`, up to its token, and of `Reject` outlives versions: any version can
//! say no to any other. docs/protocol.md, "Handshake", is the specification. Left out: encryption.

use super::fields::{ADDRESS_BYTES_MAX, MESSAGE_BYTES_MAX, put_blob, put_text, take_text};
use super::frame::{HANDSHAKE_FRAME_MAX, kind, put_frame};
use super::proof::{NONCE_BYTES, Nonce};
use crate::raft::codec::{Input, Malformed};
use crate::raft::{Index, NodeId, Term};
use std::fmt;

/// The versions of everything inside frames that this build speaks: the lowest and the highest. Two
/// neighbours in a rolling upgrade speak the highest that both know. Earlier ones sent the token in the
/// clear, and took a node for the member that it named: they are refused.
pub const PROTOCOL_VERSIONS: (u16, u16) = (3, 3);

/// From this version on Hello has a lane, a [`Remembered`] and a random number.
const PROOF_SINCE: u16 = 3;

const _: () =
    assert!(PROOF_SINCE <= PROTOCOL_VERSIONS.0 && PROTOCOL_VERSIONS.0 <= PROTOCOL_VERSIONS.1);

/// The highest version in both ranges; else which side is to be upgraded, in words.
pub(super) fn common_version(ours: (u16, u16), theirs: (u16, u16)) -> Result<u16, String> {
    let highest = ours.1.min(theirs.1);
    if highest >= ours.0.max(theirs.0) {
        return Ok(highest);
    }
    let range = |(min, max)| match min == max {
        true => format!("version {min}"),
        false => format!("versions {min} to {max}"),
    };
    let who = if theirs.0 > ours.1 { "this node" } else { "the dialer" };
    Err(format!(
        "this node speaks protocol {}, the dialer {}: {who} is too old, upgrade it (one version at \
         a time, docs/operations.md)",
        range(ours),
        range(theirs)
    ))
}

/// Longest token: a few hundred random bytes are more than enough.
pub const TOKEN_BYTES_MAX: usize = 1024;

const HELLO_FIXED_BYTES: usize = 1 + 2 + 2 + 1 + 5 * 8 + 4 + 4 + 2 * 8 + 1 + 3 * 8 + NONCE_BYTES;
const _: () = assert!(HELLO_FIXED_BYTES + ADDRESS_BYTES_MAX <= HANDSHAKE_FRAME_MAX);
const _: () = assert!(1 + 1 + 4 + MESSAGE_BYTES_MAX <= HANDSHAKE_FRAME_MAX);

/// What the dialer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends requests.
    Client,
    /// A node; sends peer frames.
    Peer,
    /// A node that fetches a snapshot.
    Snapshot,
}

impl Role {
    /// Whether the dialer is a node.
    pub fn is_node(self) -> bool {
        self != Role::Client
    }
}

/// What a connection between nodes is for. Each carries frames from the dialer, in order; so a frame
/// never waits for one of the other lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Small frames that must be on time: heartbeats, votes, acknowledgements, read indexes.
    Control,
    /// Entries, forwarded writes and the answers to these, of any size.
    Bulk,
}

/// What a node remembers of the one that it talks to, for that one to compare with itself: the
/// greatest term and log index that it was shown to have durably, under an identity. All zero when
/// it remembers nothing. Said too late it says too little, which harms nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Identity of the data directory that it is about; 0 when nothing is remembered.
    pub identity: u64,
    /// The greatest term that it showed.
    pub term: Term,
    /// The greatest committed index that it acknowledged.
    pub index: Index,
}

/// The dialer's first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest protocol version the dialer speaks, from 1.
    pub version_min: u16,
    /// Highest.
    pub version_max: u16,
    /// What the dialer is.
    pub role: Role,
    /// Cluster meant; 0 is any for a client, and "in none yet" for a peer.
    pub cluster: u64,
    /// The dialer's node id; 0 for a client, and for a node that has none yet.
    pub from: NodeId,
    /// Node meant; 0 is any.
    pub to: NodeId,
    /// The dialer's identity; 0 for a client.
    pub identity: u64,
    /// Identity that the dialer expects on the other side; 0 is any.
    pub to_identity: u64,
    /// Where the dialer can be reached, `HOST:PORT`; empty for a client.
    pub address: String,
    /// What a peer's connection is for; [`Lane::Control`] for others.
    pub lane: Lane,
    /// What the dialer remembers of the other side.
    pub remembered: Remembered,
    /// Of a client: it asks only how the node is and who belongs to the cluster, so that it is served also when
    /// every place is taken.
    pub only_asks: bool,
    /// A random number, of this handshake only. Whoever dials sets it.
    pub nonce: Nonce,
}

impl Hello {
    /// That of a client which demands nothing of the node.
    pub fn of_client(cluster: u64) -> Hello {
        Hello {
            version_min: PROTOCOL_VERSIONS.0,
            version_max: PROTOCOL_VERSIONS.1,
            role: Role::Client,
            cluster,
            from: 0,
            to: 0,
            identity: 0,
            to_identity: 0,
            address: String::new(),
            lane: Lane::Control,
            remembered: Remembered::default(),
            only_asks: false,
            nonce: [0; NONCE_BYTES],
        }
    }
}

/// The answer that opens the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Version both sides speak from here on.
    pub version: u16,
    /// The node's cluster; 0 while it is in none.
    pub cluster: u64,
    /// The node's id; 0 while it has none.
    pub node: NodeId,
    /// The node's identity.
    pub identity: u64,
    /// Who leads, as far as the node knows; 0 is unknown. A hint.
    pub leader: NodeId,
    /// Where the leader can be reached; empty is unknown.
    pub leader_address: String,
    /// What the node remembers of the dialer; nothing of a client.
    pub remembered: Remembered,
}

/// The answer that closes the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Why, for a program.
    pub code: RejectCode,
    /// Why, for a person.
    pub message: String,
}

impl Reject {
    /// Of whoever does not speak the protocol; `why` says where it went wrong.
    #[must_use]
    pub fn malformed(why: String) -> Reject {
        Reject { code: RejectCode::Malformed, message: why }
    }

    /// Of whoever finds no place; `why` names the limit.
    #[must_use]
    pub fn no_place(why: String) -> Reject {
        Reject { code: RejectCode::TooManyConnections, message: why }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection rejected: {}", self.message)
    }
}

impl std::error::Error for Reject {}

/// Why a connection is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectCode {
    /// No common protocol version.
    Version,
    /// The token is missing or wrong.
    Token,
    /// This node is in another cluster.
    ForeignCluster,
    /// This node has another id.
    WrongNode,
    /// An identity is not the one on record: a disk was wiped or mixed up.
    WrongIdentity,
    /// All connections are taken; later may be better.
    TooManyConnections,
    /// This node is in no cluster yet; later may be better.
    NotFormed,
    /// The hello does not decode.
    Malformed,
    /// The dialer was a member, and was removed for ever.
    Removed,
    /// The dialer does not hold the members' secret.
    Unproven,
    /// A code from a later version; never one of the above.
    Other(u8),
}

impl RejectCode {
    /// Its number on the wire.
    pub fn number(self) -> u8 {
        match self {
            RejectCode::Version => 1,
            RejectCode::Token => 2,
            RejectCode::ForeignCluster => 3,
            RejectCode::WrongNode => 4,
            RejectCode::WrongIdentity => 5,
            RejectCode::TooManyConnections => 6,
            RejectCode::NotFormed => 7,
            RejectCode::Malformed => 8,
            RejectCode::Removed => 9,
            RejectCode::Unproven => 10,
            RejectCode::Other(number) => number,
        }
    }

    fn of(number: u8) -> RejectCode {
        match number {
            1 => RejectCode::Version,
            2 => RejectCode::Token,
            3 => RejectCode::ForeignCluster,
            4 => RejectCode::WrongNode,
            5 => RejectCode::WrongIdentity,
            6 => RejectCode::TooManyConnections,
            7 => RejectCode::NotFormed,
            8 => RejectCode::Malformed,
            9 => RejectCode::Removed,
            10 => RejectCode::Unproven,
            other => RejectCode::Other(other),
        }
    }

    /// Whether the same hello may be welcome later.
    pub fn may_pass(self) -> bool {
        matches!(self, RejectCode::TooManyConnections | RejectCode::NotFormed)
    }
}

/// Appends a hello as a frame.
pub fn put_hello(out: &mut Vec<u8>, hello: &Hello) {
    put_frame(out, |out| {
        out.push(kind::HELLO);
        out.extend_from_slice(&hello.version_min.to_le_bytes());
        out.extend_from_slice(&hello.version_max.to_le_bytes());
        out.push(match hello.role {
            Role::Client => 1,
            Role::Peer => 2,
            Role::Snapshot => 3,
        });
        for field in [hello.cluster, hello.from, hello.to, hello.identity, hello.to_identity] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        put_text(out, &hello.address, ADDRESS_BYTES_MAX);
        // The token, and term and last index of the dialer, which earlier versions sent.
        put_blob(out, &[]);
        out.extend_from_slice(&[0; 16]);
        out.push(match (hello.role, hello.lane) {
            (Role::Client, _) => 1 + u8::from(hello.only_asks),
            (_, Lane::Control) => 1,
            (_, Lane::Bulk) => 2,
        });
        put_remembered(out, &hello.remembered);
        out.extend_from_slice(&hello.nonce);
    });
}

fn put_remembered(out: &mut Vec<u8>, remembered: &Remembered) {
    for field in [remembered.identity, remembered.term, remembered.index] {
        out.extend_from_slice(&field.to_le_bytes());
    }
}

fn take_remembered(input: &mut Input<'_>) -> Result<Remembered, Malformed> {
    let mut number = || input.u64("what is remembered");
    Ok(Remembered { identity: number()?, term: number()?, index: number()? })
}

/// Reads a hello from a frame's body.
pub fn take_hello(body: &[u8]) -> Result<Hello, Malformed> {
    let mut input = Input(body);
    if input.u8("frame kind")? != kind::HELLO {
        return Err(Malformed("first frame: a hello is expected"));
    }
    let version_min = input.u16("version")?;
    let version_max = input.u16("version")?;
    if version_min == 0 || version_min > version_max {
        return Err(Malformed("version"));
    }
    let role = match input.u8("role")? {
        1 => Role::Client,
        2 => Role::Peer,
        3 => Role::Snapshot,
        _ => return Err(Malformed("role")),
    };
    let mut number = |what| input.u64(what);
    let mut hello = Hello {
        version_min,
        version_max,
        role,
        cluster: number("cluster")?,
        from: number("sender id")?,
        to: number("receiver id")?,
        identity: number("sender identity")?,
        to_identity: number("receiver identity")?,
        address: take_text(&mut input, ADDRESS_BYTES_MAX, "address")?,
        lane: Lane::Control,
        remembered: Remembered::default(),
        only_asks: false,
        nonce: [0; NONCE_BYTES],
    };
    // Of an earlier version that is enough to say no.
    if version_max >= PROOF_SINCE {
        let _ = input.blob("token")?;
        let _ = (input.u64("sender term")?, input.u64("sender last index")?);
        (hello.lane, hello.only_asks) = match (input.u8("lane")?, role) {
            (1, _) => (Lane::Control, false),
            (2, Role::Client) => (Lane::Control, true),
            (2, _) => (Lane::Bulk, false),
            _ => return Err(Malformed("lane")),
        };
        hello.remembered = take_remembered(&mut input)?;
        let nonce = input.bytes(NONCE_BYTES, "random number")?;
        hello.nonce = nonce.try_into().map_err(|_| Malformed("random number"))?;
    }
    // A later version may append fields; an earlier one must still be able to answer.
    if version_max == PROTOCOL_VERSIONS.1 {
        input.end("hello length")?;
    }
    Ok(hello)
}

/// Appends the fields of an answer, without a proof.
pub fn put_answer_fields(out: &mut Vec<u8>, answer: &Result<Welcome, Reject>) {
    match answer {
        Ok(welcome) => {
            out.push(kind::WELCOME);
            out.extend_from_slice(&welcome.version.to_le_bytes());
            for field in [welcome.cluster, welcome.node, welcome.identity, welcome.leader] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            put_text(out, &welcome.leader_address, ADDRESS_BYTES_MAX);
            put_remembered(out, &welcome.remembered);
        }
        Err(reject) => {
            out.push(kind::REJECT);
            out.push(reject.code.number());
            put_text(out, &reject.message, MESSAGE_BYTES_MAX);
        }
    }
}

/// Reads the fields of an answer; what is left is its proof, if there is one.
pub(super) fn take_answer_fields(
    input: &mut Input<'_>,
) -> Result<Result<Welcome, Reject>, Malformed> {
    Ok(match input.u8("frame kind")? {
        kind::WELCOME => {
            let version = input.u16("version")?;
            let mut number = |what| input.u64(what);
            Ok(Welcome {
                version,
                cluster: number("cluster")?,
                node: number("node id")?,
                identity: number("identity")?,
                leader: number("leader id")?,
                leader_address: take_text(input, ADDRESS_BYTES_MAX, "leader address")?,
                remembered: take_remembered(input)?,
            })
        }
        kind::REJECT => Err(Reject {
            code: RejectCode::of(input.u8("reject code")?),
            message: take_text(input, MESSAGE_BYTES_MAX, "reject message")?,
        }),
        _ => return Err(Malformed("answer to a hello")),
    })
}

/// Appends a reject as a frame, without a proof: of a dialer that has not shown the token. A message beyond
/// its bound is cut.
pub fn put_reject(out: &mut Vec<u8>, reject: &Reject) {
    put_frame(out, |out| put_answer_fields(out, &Err(reject.clone())));
}

/// Reads an answer to a hello from a frame's body, and believes what it says: its proof is passed over.
pub fn take_answer(body: &[u8]) -> Result<Result<Welcome, Reject>, Malformed> {
    take_answer_fields(&mut Input(body))
}

/// What a listener knows of itself when somebody dials.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// The node's cluster; 0 while it is in none.
    pub cluster: u64,
    /// The node's id; 0 while it has none.
    pub node: NodeId,
    /// The node's identity.
    pub identity: u64,
}

/// Whether the dialer means this node: the version to speak is known, and the token. Whether a node is a
/// member, and of the directory that is known, is not decided here.
pub fn addressed(hello: &Hello, local: &Local) -> Result<(), Reject> {
    let reject = |code, message: String| Err(Reject { code, message });
    let any_cluster = hello.role == Role::Client && hello.cluster == 0;
    if !any_cluster && hello.cluster != local.cluster {
        return if local.cluster == 0 {
            reject(RejectCode::NotFormed, "this node is in no cluster yet".to_string())
        } else {
            let (mine, theirs) = (local.cluster, hello.cluster);
            reject(
                RejectCode::ForeignCluster,
                format!("this node is in cluster {mine:016x}, not {theirs:016x}"),
            )
        };
    }
    if hello.to != 0 && hello.to != local.node {
        return reject(
            RejectCode::WrongNode,
            format!("this is node {}, not {}", local.node, hello.to),
        );
    }
    if hello.to_identity != 0 && hello.to_identity != local.identity {
        return reject(
            RejectCode::WrongIdentity,
            format!("node {} has another identity than the dialer recorded", local.node),
        );
    }
    if hello.role.is_node() && hello.from != 0 && hello.from == local.node {
        return reject(RejectCode::WrongNode, format!("node {} is this node", hello.from));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: Local = Local { cluster: 77, node: 2, identity: 22 };

    fn client() -> Hello {
        Hello::of_client(0)
    }

    fn peer() -> Hello {
        let address = "127.0.0.1:7101".to_string();
        let (cluster, from, to, identity) = (77, 1, 2, 11);
        Hello { role: Role::Peer, cluster, from, to, identity, address, ..client() }
    }

    fn code(hello: &Hello, local: &Local) -> Option<RejectCode> {
        addressed(hello, local).err().map(|reject| reject.code)
    }

    /// The right client and the right peer mean this node, and each wrong one learns why not.
    #[test]
    fn each_wrong_hello_is_rejected_with_its_code() {
        let cases = [
            (client(), None),
            (peer(), None),
            (Hello { cluster: 77, to: 2, to_identity: 22, ..client() }, None),
            (Hello { cluster: 78, ..client() }, Some(RejectCode::ForeignCluster)),
            (Hello { cluster: 78, ..peer() }, Some(RejectCode::ForeignCluster)),
            (Hello { cluster: 0, ..peer() }, Some(RejectCode::ForeignCluster)),
            (Hello { to: 3, ..client() }, Some(RejectCode::WrongNode)),
            (Hello { to_identity: 23, ..peer() }, Some(RejectCode::WrongIdentity)),
            (Hello { from: 2, ..peer() }, Some(RejectCode::WrongNode)),
        ];
        for (hello, expected) in cases {
            assert_eq!(code(&hello, &LOCAL), expected, "{hello:?}");
        }
    }

    /// Nodes that are in no cluster yet find one another; who expects a cluster is told to wait.
    #[test]
    fn a_node_in_no_cluster_meets_its_like() {
        let local = Local { cluster: 0, node: 0, identity: 22 };
        let like = Hello { cluster: 0, from: 0, to: 0, ..peer() };
        assert_eq!(code(&like, &local), None);
        assert_eq!(code(&client(), &local), None);
        assert_eq!(code(&peer(), &local), Some(RejectCode::NotFormed));
        assert!(RejectCode::NotFormed.may_pass() && !RejectCode::Token.may_pass());
    }

    /// Neighbours in an upgrade speak the highest version that both know; who is too old is named.
    #[test]
    fn the_highest_common_version_is_spoken() {
        assert_eq!(common_version((1, 1), (1, 1)), Ok(1));
        assert_eq!(common_version((1, 2), (1, 1)), Ok(1));
        assert_eq!(common_version((2, 5), (3, 9)), Ok(5));
        assert_eq!(common_version((2, 5), (1, 2)), Ok(2));
        let older = common_version((3, 4), (1, 2)).unwrap_err();
        assert!(
            older.contains("versions 3 to 4, the dialer versions 1 to 2: the dialer is too old")
        );
        let newer = common_version((1, 1), (2, 2)).unwrap_err();
        assert!(newer.contains("version 1, the dialer version 2: this node is too old"), "{newer}");
    }

    /// A hello of a later version may have more fields: it is understood well enough to be
    /// answered, and so is one of an earlier version, which has fewer; one of this version may not.
    #[test]
    fn a_hello_of_another_version_can_be_answered() {
        for (version_max, understood) in [(4, true), (3, false), (2, true), (1, true)] {
            let mut out = Vec::new();
            put_hello(&mut out, &Hello { version_min: 1, version_max, ..client() });
            out.extend_from_slice(b"more");
            let body = &out[super::super::frame::FRAME_HEADER_BYTES..];
            assert_eq!(take_hello(body).is_ok(), understood);
        }
    }
}
