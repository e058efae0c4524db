//! Clients that speak HTTP: the health of the node, for load balancers and people, and what it counts.

use super::metrics;
use super::state::{DAMAGED, NodeState};
use super::{Progress, Step, Wait};
use crate::node::{Answer, Request};
use crate::wire::http::{Head, host_name, is_address, parse, response};
use crate::wire::proof::is_token;
use std::sync::atomic::Ordering;

/// Time in which the node must show that it can serve.
const HEALTH_US: u64 = 1_000_000;
/// A connection is kept for so long until its next request is complete.
pub(super) const IDLE_TIMEOUT_US: u64 = 30_000_000;
const PLAIN: &str = "text/plain; charset=utf-8";

/// What is being looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// A linearizable read can be served.
    Reads,
    /// The node leads, and knows everything that is committed.
    Leads,
    /// It still does.
    StillLeads,
}

#[derive(Debug)]
pub(super) struct Http {
    bytes: Vec<u8>,
    /// The request that is being answered.
    head: Option<Head>,
    /// Checks that are left, the next one last.
    checks: Vec<Check>,
    /// The first that failed, and why.
    failed: Option<String>,
    until_us: u64,
    /// Why nothing is answered but how the node is: it came when every place was taken.
    full: Option<String>,
    /// Requests that were answered.
    answered: u64,
}

impl Http {
    /// One whose first request is complete until then.
    pub(super) fn new(bytes: Vec<u8>, full: Option<String>, until_us: u64) -> Http {
        let (head, checks, failed) = (None, Vec::new(), None);
        Http { bytes, head, checks, failed, until_us, full, answered: 0 }
    }

    /// Whether a request was answered.
    pub(super) fn was_served(&self) -> bool {
        self.answered > 0
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn next(&mut self, state: &NodeState, out: &mut Vec<u8>, now_us: u64) -> Progress {
        let Some(head) = &self.head else {
            return match parse(&self.bytes) {
                Ok(Some((head, len))) => {
                    self.bytes.drain(..len);
                    if let Some((status, why)) = refusal(&head, state, self.full.as_deref()) {
                        let (body, only) = (format!("{why}\n").into_bytes(), head.head_only);
                        out.extend_from_slice(&response(status, PLAIN, &body, only, false));
                        return Progress::Close(None);
                    }
                    self.checks = match head.path.as_str() {
                        "/health" => vec![Check::Reads],
                        // Leads *now*: a majority has just confirmed it.
                        "/health/leader" => vec![Check::StillLeads, Check::Reads, Check::Leads],
                        _ => Vec::new(),
                    };
                    (self.head, self.failed) = (Some(head), None);
                    Progress::Goes
                }
                Ok(None) if !out.is_empty() => Progress::Flush,
                Ok(None) => Progress::Wait(Wait::Until(self.until_us)),
                Err(e) => {
                    out.extend_from_slice(&e.response());
                    Progress::Close(None)
                }
            };
        };
        if let Some(check) = self.checks.last() {
            let request = match check {
                Check::Reads if state.damaged.load(Ordering::Relaxed) && !state.is_alone() => {
                    self.fail(DAMAGED.to_string());
                    return Progress::Goes;
                }
                Check::Reads => Request::Read,
                Check::Leads | Check::StillLeads => Request::Status,
            };
            let requests = vec![(now_us + HEALTH_US, request)];
            return Progress::Do(Step::Submit { requests, direct: None });
        }
        let (status, body) = page(head, self.failed.take(), state);
        let keep = head.keep_alive && self.full.is_none();
        self.answered += 1;
        out.extend_from_slice(&response(status, PLAIN, body.as_bytes(), head.head_only, keep));
        self.head = None;
        self.until_us = now_us + IDLE_TIMEOUT_US;
        if keep { Progress::Flush } else { Progress::Close(None) }
    }

    pub(super) fn answered(&mut self, answers: &[Answer]) {
        let Some(check) = self.checks.pop() else { return };
        match (check, answers.first()) {
            (Check::Reads, Some(Answer::Read(Ok(())))) => {}
            (Check::Reads, Some(Answer::Read(Err(refusal)))) => self.fail(refusal.to_string()),
            (_, Some(Answer::Status(status))) if status.leads_and_knows => {}
            (Check::Leads, Some(Answer::Status(_))) => {
                self.fail("another node leads, or none".to_string());
            }
            (Check::StillLeads, Some(Answer::Status(_))) => {
                self.fail("leadership was lost just now".to_string());
            }
            _ => self.fail("the node is stopping".to_string()),
        }
    }

    fn fail(&mut self, why: String) {
        self.checks.clear();
        self.failed = Some(why);
    }
}

/// Why a request is not answered, if it is not. The health is for everybody. All else wants the token, or,
/// where there is none, a name of this node's: a page in a browser could reach the node under a name of its
/// own that it has resolve to this machine (DNS rebinding). `full` says why no more is done for a connection
/// beyond the cap than to say how the node is.
fn refusal(head: &Head, state: &NodeState, full: Option<&str>) -> Option<(u16, String)> {
    let own = || head.host.as_deref().is_none_or(|host| is_own(host, &state.address));
    let shown = || head.bearer.as_deref().is_some_and(|token| is_token(token, &state.token));
    let health = is_health(&head.path);
    if state.token.is_empty() && !health && !own() {
        let why =
            "this node has no such name; ask for its address, or for the host that it advertises";
        return Some((421, why.to_string()));
    }
    if !state.token.is_empty() && !health && !shown() {
        return Some((401, "show the token: Authorization: Bearer TOKEN".to_string()));
    }
    full.filter(|_| !tells_how_it_is(head)).map(|full| (503, full.to_string()))
}

/// Whether a host, with or without a port, is an address, this machine, or the one that is advertised.
fn is_own(host: &str, advertised: &str) -> bool {
    let name = host_name(host);
    is_address(name)
        || name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case(host_name(advertised))
}

/// Status and body of the answer.
fn page(head: &Head, failed: Option<String>, state: &NodeState) -> (u16, String) {
    match (head.path.as_str(), failed) {
        ("/health", None) => (200, "ok: serves linearizable reads\n".to_string()),
        ("/health", Some(why)) => (503, format!("not ready: {why}\n")),
        ("/health/leader", None) => (200, "ok: leads\n".to_string()),
        ("/health/leader", Some(why)) => (503, format!("not the leader: {why}\n")),
        ("/metrics", _) => (200, metrics::text(state)),
        _ => (404, "not found; there are /health, /health/leader and /metrics\n".to_string()),
    }
}

/// Answered also when every place is taken: whoever watches the node must not take it for dead.
fn tells_how_it_is(head: &Head) -> bool {
    is_health(&head.path) || head.path == "/metrics"
}

fn is_health(path: &str) -> bool {
    matches!(path, "/health" | "/health/leader")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_served_before_the_first_answer() {
        // Until then a connection gives way to newcomers.
        assert!(!Http::new(b"GET / HTTP/1.1\r\n".to_vec(), None, 0).was_served());
    }
}
