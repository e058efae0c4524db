//! What a node asks of others before it runs. What it asks, and what follows from an answer, is decided
//! by [`crate::node::Startup`].

use super::handshakes::{handshake_reader, shake_hands};
use crate::client::{Client, Options};
use crate::env::resolve::connect;
use crate::wire::handshake::Reject;
use crate::wire::proof::Greeting;
use std::io;
use std::time::Duration;

/// How long one attempt to join may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long a node may take to say who it is, or whom it knows.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// A client of the cluster that a node asks to take it in.
pub(super) fn client(cluster: &[String], token: &[u8]) -> Client {
    Client::new(cluster, options(ATTEMPT, token))
}

fn options(timeout: Duration, token: &[u8]) -> Options {
    Options { timeout, token: token.to_vec(), ..Options::default() }
}

/// The cluster that a running node is in, if one of them answers.
pub(super) fn cluster_at(addresses: &[String], token: &[u8]) -> Option<(String, u64)> {
    let client = Client::connect(addresses, options(LOOK_TIMEOUT, token)).ok()?;
    let address = client.address()?.to_string();
    let cluster = client.into_connection()?.welcome().cluster;
    (cluster != 0).then_some((address, cluster))
}

/// How the node at an address rejects that greeting; none when it lets the dialer in, or has not shown that it knows
/// the token.
///
/// # Errors
/// Those of the connection, and an answer that is none.
pub(super) fn ask_peer(address: &str, greeting: Greeting) -> io::Result<Option<Reject>> {
    let stream = connect(address, LOOK_TIMEOUT)?;
    let answered = shake_hands(&stream, &mut handshake_reader(), greeting, LOOK_TIMEOUT)?;
    Ok(answered.answer.err().filter(|_| answered.proven.token))
}
