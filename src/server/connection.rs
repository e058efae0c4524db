//! What the dialects of a connection share: asking the raft loop and waiting for its answers.
//!
//! A connection thread reads every complete request in its buffer, submits them as one message and
//! waits for the answers; reads it then serves itself, from the store, without another hop.

use super::logging::{Level, log};
use super::mailbox::{Encode, Mailbox};
use super::{ClientHandle, Shared, fatal};
use crate::kv::codec::encode_command;
use crate::kv::limits::TooLarge;
use crate::kv::query::answer as answer_query;
use crate::kv::{Command, Query, Reader as _, Reply, StoreError};
use crate::node::{Answer, DEADLINE_US, DEADLINE_US_MAX, Input, Refusal, Request, Verdict};
use crate::wire::client::{Class, Failure};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Answers collected before they are written: what one connection may hold beside one page.
pub(crate) const OUT_BYTES_MAX: usize = 1 << 20;

/// One client's way to the raft loop.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    next_request: u64,
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>) -> Session {
        Session { shared, mailbox: Arc::default(), next_request: 0 }
    }

    /// When a request that arrives now must be answered.
    pub(crate) fn deadline_us(&self, deadline_ms: u32) -> u64 {
        let wait_us = match deadline_ms {
            0 => DEADLINE_US,
            ms => (u64::from(ms) * 1000).min(DEADLINE_US_MAX),
        };
        self.shared.clock.now_us() + wait_us
    }

    /// Submits requests as one message, and waits until each is answered, in their order. The
    /// replica answers every request, at the latest at its deadline.
    pub(crate) fn call(&mut self, requests: Vec<(u64, Request)>) -> Vec<Answer> {
        self.submit(requests, None);
        self.mailbox.wait()
    }

    /// Submits writes as one message and does not wait: whoever brings the last answer writes what
    /// `encode` makes of them to the socket. For answers that are small.
    pub(crate) fn call_direct(
        &mut self,
        requests: Vec<(u64, Request)>,
        stream: &Arc<TcpStream>,
        encode: Encode,
    ) {
        self.submit(requests, Some((Arc::clone(stream), encode)));
    }

    /// Waits until the answers to [`Session::call_direct`] are written.
    pub(crate) fn settle(&self) {
        self.mailbox.wait();
    }

    fn submit(&mut self, requests: Vec<(u64, Request)>, direct: Option<(Arc<TcpStream>, Encode)>) {
        let first = self.next_request;
        let count = requests.len();
        self.next_request += count as u64;
        let numbered = (first..).zip(requests);
        let requests = numbered.map(|(n, (deadline_us, what))| (n, deadline_us, what)).collect();
        self.mailbox.open(first, count, direct);
        let client = ClientHandle(Arc::clone(&self.mailbox));
        if self.shared.raft.send(Input::Client { client, requests }).is_err() {
            for number in (first..).take(count) {
                let answer = Answer::Write(Verdict::Unknown("the node is stopping"));
                if let Some(last) = self.mailbox.put(number, answer) {
                    last.write();
                }
            }
        }
    }

    /// Answers a query from what this node has applied.
    pub(crate) fn query(&self, query: &Query) -> Result<Reply, Failure> {
        if let Err(e) = self.shared.limits.check_query(query) {
            return Err(failure(class_of(e), e.to_string()));
        }
        match answer_query(&self.shared.reader.view(), query, &self.shared.limits) {
            Ok(reply) => Ok(reply),
            Err(e) => {
                self.shared.store_unreadable(&e);
                Err(failure(Class::Unavailable, format!("{DAMAGED}; ask another one: {e}")))
            }
        }
    }
}

/// What a client is told of a node whose store is damaged.
pub(crate) const DAMAGED: &str = "this node's store is damaged and is being repaired";

impl Shared {
    /// The store could not be read. Damage concerns what it hides: it is never served, and the node
    /// is not healthy any more. Anything else, which is no end of a file and not to be waited for,
    /// stops the node.
    pub(crate) fn store_unreadable(&self, e: &StoreError) {
        if !e.is_damage() {
            fatal(format_args!("the store cannot be read, the node stops: {e}"));
        }
        let unnamed = matches!(e, StoreError::BadRecord { .. });
        if self.reader.damage().is_none() && !unnamed {
            // It was met in a cut of the time before a repair.
            return;
        }
        if !self.damaged.swap(true, Ordering::Relaxed) {
            log(Level::Error, format_args!("{DAMAGED}; the damage is never served: {e}"));
            let _ = self.raft.send(Input::Damaged);
        }
    }

    /// Damage may have been met behind the scenes.
    pub(crate) fn damage_met(&self) {
        if let Some(e) = self.reader.damage() {
            self.store_unreadable(&e);
        }
    }

    /// A refusal as a client sees it, with the leader's address where that may help.
    pub(crate) fn refused(&self, refusal: Refusal) -> Failure {
        Failure { class: refusal.class(), message: refusal.to_string(), leader: self.leader_hint() }
    }
}

/// An empty key is no matter of size.
fn class_of(why: TooLarge) -> Class {
    if why == TooLarge::EmptyKey { Class::Invalid } else { Class::TooLarge }
}

pub(crate) fn command_request(command: &Command) -> Request {
    let mut bytes = Vec::new();
    encode_command(command, &mut bytes);
    Request::Write(Arc::from(bytes))
}

pub(crate) fn failure(class: Class, message: String) -> Failure {
    Failure { class, message, leader: None }
}
