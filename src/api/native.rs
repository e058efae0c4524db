//! Clients that speak frames (docs/protocol.md, "Client frames"), behind the handshake.

use super::holding::{About, Holding};
use super::patience::NO_ROOM;
use super::state::{NodeState, failure};
use super::turn::{Next, Turn, answers_with_values, memory_of, waits_its_turn};
use super::{OUT_BYTES_MAX, Progress, Step, Wait, make_room};
use crate::kv::Command;
use crate::kv::machine::RESULT_BYTES_MAX;
use crate::node::Answerer;
use crate::wire::client::{self, Answer, Call, Class, NO_REQUEST, Request, Response};
use crate::wire::frame::{CLIENT_FRAME_MAX, FrameReader};
use crate::wire::proof::{JoinedPad, Secret};
use std::sync::Arc;

/// Requests that are answered together.
const TOGETHER_MAX: usize = 1024;
/// Writes among them that read: each may be answered with [`RESULT_BYTES_MAX`] and a value.
const READING_WRITES_MAX: usize = 4;

const _: () = assert!(READING_WRITES_MAX * RESULT_BYTES_MAX <= CLIENT_FRAME_MAX);

#[derive(Debug)]
pub(super) struct Native {
    reader: FrameReader,
    /// Masks what a node that joins is told.
    pad: JoinedPad,
    /// Marked with the requests' ids, and what they mean to its sessions.
    turn: Turn<(u64, About)>,
    holding: Holding,
    /// The turn is being collected: writes in it that read.
    reading_writes: usize,
    collected: bool,
    /// There may be more of it.
    more: bool,
    /// A change of the members, which waits for what was seen at its address.
    looks: Option<Request>,
    /// What cannot be read; the connection ends behind the answers to what came before.
    broken: Option<Response>,
    /// A request was completed since the last read.
    fresh: bool,
    /// It came when every place was taken: why nothing is answered but how the node is, and when it ends.
    full: Option<(String, u64)>,
}

impl Native {
    /// One that came when every place was taken is told why, and ends at some time (`full`).
    pub(super) fn new(
        reader: FrameReader,
        state: &Arc<NodeState>,
        pad: JoinedPad,
        full: Option<(String, u64)>,
    ) -> Native {
        Native {
            reader,
            pad,
            turn: Turn::new(state),
            holding: Holding::default(),
            reading_writes: 0,
            collected: false,
            more: false,
            looks: None,
            broken: None,
            fresh: false,
            full,
        }
    }

    pub(super) fn reader(&mut self) -> &mut FrameReader {
        &mut self.reader
    }

    /// Where to read ahead, up to so much memory; it is looked at behind the turn.
    pub(super) fn space_ahead(&mut self, memory_max: usize) -> Option<&mut [u8]> {
        if self.reader.memory() >= memory_max {
            return None;
        }
        self.more = true;
        Some(self.reader.space())
    }

    pub(super) fn turn(&mut self) -> &mut Turn<(u64, About)> {
        &mut self.turn
    }

    /// The connection has ended: what is to be said of the sessions that it held.
    pub(super) fn releases(&mut self) -> impl Iterator<Item = Command> + use<> {
        self.holding.releases()
    }

    /// Who answers at the address that a change names.
    pub(super) fn looked(&mut self, answerer: Option<Answerer>, state: &NodeState) {
        let Some(Request { id, deadline_ms, call: Call::Change(change) }) = self.looks.take()
        else {
            return;
        };
        let checked = answerer
            .map_or(Ok(()), |answerer| change.check_answerer(answerer, &state.configuration()));
        match checked {
            Ok(()) => self.looks = Some(Request { id, deadline_ms, call: Call::Change(change) }),
            Err(why) => {
                self.turn.reply(of(id), Err(failure(why.class(), why.to_string())));
            }
        }
    }

    pub(super) fn next(&mut self, state: &NodeState, out: &mut Vec<u8>, now_us: u64) -> Progress {
        if !self.collected {
            if let Some(Request { id, deadline_ms, call }) = self.looks.take() {
                self.turn.call(of(id), call, deadline_ms, now_us);
            }
            let before = out.len();
            if let Some(step) = self.collect(state, out, now_us) {
                return Progress::Do(step);
            }
            self.collected = true;
            let refused = out.len() > before;
            self.fresh |= self.turn.len() > 0 || refused;
            if refused {
                // Those that are refused hear of it before the others are served.
                return Progress::Flush;
            }
        }
        loop {
            match self.turn.next(state, out.len(), now_us) {
                Next::Submit(requests) => {
                    return Progress::Do(Step::Submit { requests, direct: None });
                }
                Next::Flush => return Progress::Flush,
                Next::Check => return Progress::Do(Step::Check),
                Next::Unreadable(e) => return Progress::Do(Step::Unreadable(e)),
                Next::Reply((id, about), mut result) => {
                    self.holding.answered(about, &result);
                    if let Ok(Answer::Joined(joined)) = &mut result
                        && let Some(Secret { bytes, .. }) = &mut joined.secret
                    {
                        *bytes = self.pad.mask(bytes);
                    }
                    make_room(out, result.as_ref().map_or(0, memory_of));
                    client::put_response(out, &Response { id, result });
                }
                Next::Over => return self.over(out),
            }
        }
    }

    /// Everything is answered that was collected.
    fn over(&mut self, out: &mut Vec<u8>) -> Progress {
        if let Some(response) = self.broken.take() {
            client::put_response(out, &response);
            return Progress::Close(response.result.err().map(|failure| failure.message));
        }
        if !out.is_empty() {
            return Progress::Flush;
        }
        self.collected = false;
        self.reading_writes = 0;
        if std::mem::take(&mut self.more) {
            return Progress::Goes;
        }
        let begun = self.reader.finish().is_err();
        let fresh = std::mem::take(&mut self.fresh);
        let memory = self.reader.memory();
        let by_us = self.full.as_ref().map(|(_, by_us)| *by_us);
        Progress::Wait(Wait::Request { begun, fresh, memory, by_us })
    }

    /// Collects what has arrived whole; stops at a request that needs somebody to be looked at first. What is
    /// refused because too much is under way is answered at once.
    fn collect(&mut self, state: &NodeState, out: &mut Vec<u8>, now_us: u64) -> Option<Step> {
        let break_off =
            |id, message| Some(Response { id, result: Err(failure(Class::Invalid, message)) });
        while self.turn.len() < TOGETHER_MAX
            && self.reading_writes < READING_WRITES_MAX
            && out.len() <= OUT_BYTES_MAX
        {
            let request = match self.reader.next_frame() {
                Ok(Some(body)) => match client::take_request(body) {
                    Ok(request) => request,
                    Err(e) => {
                        self.broken = break_off(client::request_id(body), e.to_string());
                        return None;
                    }
                },
                Ok(None) => return None,
                Err(e) => {
                    self.broken = break_off(NO_REQUEST, e.to_string());
                    return None;
                }
            };
            if let Some((full, _)) = self.full.as_ref().filter(|_| !tells_how_it_is(&request.call))
            {
                self.turn.reply(of(request.id), Err(failure(Class::Busy, full.clone())));
                continue;
            }
            if waits_its_turn(&request.call)
                && let Err(why) = self.turn.charge().take(now_us)
            {
                let result = Err(failure(Class::Busy, why));
                client::put_response(out, &Response { id: request.id, result });
                continue;
            }
            if answers_with_values(&request.call) {
                // It is done or not before anybody knows what it reads, so there must be room for all it may.
                if !state.answers.has_room(RESULT_BYTES_MAX) {
                    self.turn.reply(of(request.id), Err(state.no_room()));
                    continue;
                }
                self.reading_writes += 1;
            }
            let about = match self.holding.asks(&request.call) {
                Ok(about) => about,
                Err(why) => {
                    self.turn.reply(of(request.id), Err(failure(Class::Busy, why)));
                    continue;
                }
            };
            if let Call::Change(change) = &request.call {
                if let Err(why) = change.check_address() {
                    self.turn.reply(of(request.id), Err(failure(Class::Invalid, why)));
                    continue;
                }
                if let Some(address) = change.address_to_look_at() {
                    let address = address.to_string();
                    self.looks = Some(request);
                    return Some(Step::Look { address });
                }
            }
            let Request { id, deadline_ms, call } = request;
            self.turn.call((id, about), call, deadline_ms, now_us);
        }
        self.more = true;
        None
    }
}

/// The mark of a request that means nothing to sessions.
fn of(id: u64) -> (u64, About) {
    (id, About::Nothing)
}

/// Answered also when every place is taken.
fn tells_how_it_is(call: &Call) -> bool {
    matches!(call, Call::Ping | Call::Status | Call::Members)
}

/// Tells a client that no memory is left for the request that it has begun.
pub(super) fn put_no_room(out: &mut Vec<u8>) {
    let result = Err(failure(Class::Busy, NO_ROOM.to_string()));
    client::put_response(out, &Response { id: NO_REQUEST, result });
}
