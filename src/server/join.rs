//! Before a node has an id: asking a running cluster to take it in, and finding out that the cluster
//! has known another data directory under its name.
//!
//! A node that joins is a client of the cluster until it is a member. It asks until it is answered:
//! the cluster may be down, or a person may have to decide first. Nothing of it is on disk but its
//! identity, so that asking again, after a crash too, is the same question.

use super::logging::{info, warning};
use super::native::{handshake_reader, read_one_frame};
use crate::client::{Client, Options};
use crate::env::resolve::connect;
use crate::raft::NodeId;
use crate::wire::client::{Class, Joined};
use crate::wire::frame::PREAMBLE;
use crate::wire::handshake::{self, Hello, Reject, RejectCode, Role};
use std::io::{self, Write as _};
use std::thread;
use std::time::{Duration, Instant};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between attempts that were refused: a person may have to do something first.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a peer may take to say that it knows another directory.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks until the cluster has taken the node in.
///
/// # Errors
/// When the token is wrong: asking again does not help.
pub(super) fn join(
    cluster: &[String],
    address: &str,
    identity: u64,
    token: &[u8],
) -> Result<Joined, String> {
    info!("asks to be taken in at={} as {address}", cluster.join(","));
    let options = Options { timeout: ATTEMPT, token: token.to_vec(), ..Options::default() };
    let mut client = Client::new(cluster, options);
    let mut said = String::new();
    loop {
        match client.join(address, identity) {
            Ok(joined) => {
                info!("taken in as node={} of cluster={:016x}", joined.id, joined.cluster);
                return Ok(joined);
            }
            Err(e) if e.class == Class::Unauthorised => return Err(e.to_string()),
            Err(e) => {
                let text = e.to_string();
                if text != said {
                    warning!("not taken in yet, asks again: {text}");
                    said = text;
                }
                // Whoever refused may be asked something else by a person meanwhile.
                thread::sleep(PAUSE);
            }
        }
    }
}

/// The cluster that a running node is in, if one of them answers.
pub(super) fn cluster_at(addresses: &[String], token: &[u8]) -> Option<(String, u64)> {
    let options = Options { timeout: LOOK_TIMEOUT, token: token.to_vec(), ..Options::default() };
    let client = Client::connect(addresses, options).ok()?;
    let address = client.address()?.to_string();
    let cluster = client.into_connection()?.welcome().cluster;
    (cluster != 0).then_some((address, cluster))
}

/// Who knows the node of that hello by another identity, or has removed it: the address, and what it
/// says. Asked of peers that run, before the very first start makes anything. A removal is said by who
/// knows that it is committed; a peer that is a little behind still knows the identity of before, so
/// all are asked, and who speaks of a removal is believed.
pub(super) fn knows_another(peers: &[(NodeId, String)], hello: &Hello) -> Option<(String, Reject)> {
    let mut known = None;
    for (id, address) in peers {
        let said = dial(address, &Hello { to: *id, ..hello.clone() }).ok().flatten();
        match said {
            Some(reject) if reject.code == RejectCode::Removed => {
                return Some((address.clone(), reject));
            }
            Some(reject) if reject.code == RejectCode::WrongIdentity => {
                known.get_or_insert((address.clone(), reject));
            }
            _ => {}
        }
    }
    known
}

/// What a new node says of itself to the other first members.
pub(super) fn first_hello(
    cluster: u64,
    from: NodeId,
    identity: u64,
    address: &str,
    token: &[u8],
) -> Hello {
    let (role, address) = (Role::Snapshot, address.to_string());
    Hello { role, from, identity, address, ..Hello::of_client(cluster, token) }
}

fn dial(address: &str, hello: &Hello) -> io::Result<Option<Reject>> {
    let mut stream = connect(address, LOOK_TIMEOUT)?;
    stream.set_write_timeout(Some(LOOK_TIMEOUT))?;
    let mut out = PREAMBLE.to_vec();
    handshake::put_hello(&mut out, hello);
    stream.write_all(&out)?;
    let mut reader = handshake_reader();
    let answer = read_one_frame(&stream, &mut reader, Instant::now() + LOOK_TIMEOUT)?;
    Ok(handshake::take_answer(&answer).ok().and_then(Result::err))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::TcpListener;

    /// A peer that answers one Hello with that rejection.
    fn peer(code: RejectCode) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address").to_string();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a dialer");
            let mut preamble = [0; PREAMBLE.len()];
            stream.read_exact(&mut preamble).expect("the preamble");
            read_one_frame(&stream, &mut handshake_reader(), Instant::now() + LOOK_TIMEOUT)
                .expect("a Hello");
            let mut out = Vec::new();
            handshake::put_reject(&mut out, &Reject { code, message: "no".to_string() });
            stream.write_all(&out).expect("sent");
        });
        address
    }

    #[test]
    fn who_knows_of_a_removal_is_believed_over_who_is_behind() {
        // The removal is committed, and one peer has not heard of the commit yet: it still knows the
        // identity of before.
        let hello = first_hello(7, 1, 9, "127.0.0.1:1", b"");
        let asked = |codes: &[RejectCode]| {
            let peers: Vec<(NodeId, String)> = (2..).zip(codes.iter().map(|c| peer(*c))).collect();
            let (at, reject) = knows_another(&peers, &hello)?;
            let place = peers.iter().position(|(_, address)| *address == at).expect("one of them");
            Some((place, reject.code))
        };
        use RejectCode::{NotFormed, Removed, WrongIdentity};
        assert_eq!(asked(&[WrongIdentity, Removed]), Some((1, Removed)));
        assert_eq!(asked(&[NotFormed, WrongIdentity, NotFormed]), Some((1, WrongIdentity)));
        assert_eq!(asked(&[NotFormed]), None);
    }
}
