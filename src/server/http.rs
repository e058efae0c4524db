//! Connections that speak HTTP: the health of the node, for load balancers and people.

use super::connection::{DAMAGED, Session};
use super::sockets::{read_by, write_patiently};
use super::{Shared, metrics};
use crate::node::{Answer, Request};
use crate::wire::http::{Head, parse, response};
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Time in which the node must show that it can serve, in milliseconds.
const HEALTH_MS: u32 = 1000;
/// A connection is kept for so long until its next request is complete.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers, whatever is asked, that the node is full.
pub(crate) fn refuse(stream: &TcpStream, why: &str) -> io::Result<()> {
    write_patiently(stream, &response(503, PLAIN, format!("{why}\n").as_bytes(), false, false))
}

pub(crate) fn serve(stream: &TcpStream, first: Vec<u8>, shared: &Arc<Shared>) -> io::Result<()> {
    let mut until = Instant::now() + IDLE_TIMEOUT;
    let mut session = Session::new(Arc::clone(shared));
    let mut bytes = first;
    let mut buffer = [0; 4096];
    loop {
        match parse(&bytes) {
            Ok(Some((head, len))) => {
                bytes.drain(..len);
                let (status, body) = answer(&mut session, &head);
                let (head_only, keep) = (head.head_only, head.keep_alive);
                let bytes = response(status, PLAIN, body.as_bytes(), head_only, keep);
                write_patiently(stream, &bytes)?;
                if !keep {
                    return Ok(());
                }
                until = Instant::now() + IDLE_TIMEOUT;
            }
            Ok(None) => {
                let n = read_by(stream, &mut buffer, until)?;
                if n == 0 {
                    return Ok(());
                }
                bytes.extend_from_slice(&buffer[..n]);
            }
            Err(e) => return write_patiently(stream, &e.response()),
        }
    }
}

fn answer(session: &mut Session, head: &Head) -> (u16, String) {
    match head.path.as_str() {
        "/health" => match can_read(session) {
            Ok(()) => (200, "ok: serves linearizable reads\n".to_string()),
            Err(why) => (503, format!("not ready: {why}\n")),
        },
        "/health/leader" => match leads(session) {
            Ok(()) => (200, "ok: leads\n".to_string()),
            Err(why) => (503, format!("not the leader: {why}\n")),
        },
        "/metrics" => (200, metrics::text(&session.shared)),
        _ => (404, "not found; there are /health, /health/leader and /metrics\n".to_string()),
    }
}

fn can_read(session: &mut Session) -> Result<(), String> {
    if session.shared.damaged.load(Ordering::Relaxed) {
        return Err(DAMAGED.to_string());
    }
    let request = (session.deadline_us(HEALTH_MS), Request::Read);
    match session.call(vec![request]).pop() {
        Some(Answer::Read(Ok(()))) => Ok(()),
        Some(Answer::Read(Err(refusal))) => Err(refusal.to_string()),
        _ => Err("the node is stopping".to_string()),
    }
}

/// Leads *now*: a majority has just confirmed it.
fn leads(session: &mut Session) -> Result<(), String> {
    let leads = |session: &mut Session| {
        let request = (session.deadline_us(HEALTH_MS), Request::Status);
        match session.call(vec![request]).pop() {
            Some(Answer::Status(status)) => status.leads_and_knows,
            _ => false,
        }
    };
    if !leads(session) {
        return Err("another node leads, or none".to_string());
    }
    can_read(session)?;
    if leads(session) { Ok(()) } else { Err("leadership was lost just now".to_string()) }
}
