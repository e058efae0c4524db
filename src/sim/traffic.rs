//! The clients' side of the world: when they ask, whom, and how answers reach them.

use super::checks::{Violation, violated};
use super::clients::Next;
use super::node::ClientId;
use super::world::{ANY_LIFE, Event, World};
use crate::kv::{Reader as _, Space, View as _};
use crate::node::{Answer, Input, Request};
use crate::raft::NodeId;

/// A client gives up on a node that says nothing for so long.
const CLIENT_PATIENCE_US: u64 = 6_000_000;

/// What a client asks a node to answer within, on the node's clock: usually long, now and then
/// about as long as an answer takes.
const DEADLINE_US: (u64, u64) = (20_000, 3_000_000);

/// Mean pause of a client that is in a hurry.
const RUSH_THINK_US: u64 = 10_000;

impl World {
    pub(super) fn client_acts(&mut self, client: ClientId, turn: u64) {
        if self.clients[client as usize].turn != turn {
            return;
        }
        let think_us = if self.now_us < self.rush_until_us { RUSH_THINK_US } else { self.think_us };
        let think_us = self.dice.between(think_us / 4, think_us * 2);
        self.schedule(think_us, 0, ANY_LIFE, Event::ClientActs { client, turn });
        let read = self.quiet;
        let now_us = self.now_us;
        let c = &mut self.clients[client as usize];
        if c.is_busy() {
            return;
        }
        let request = c.begin(now_us, read);
        self.client_sends(client, request);
    }

    fn client_sends(&mut self, client: ClientId, request: Request) {
        let running: Vec<NodeId> = self
            .nodes
            .values()
            .filter(|n| n.up.is_some() && (!self.quiet || self.counts(n)))
            .map(|n| n.id)
            .collect();
        let c = &mut self.clients[client as usize];
        c.committed = self.cluster.committed();
        c.request += 1;
        let number = c.request;
        self.count("requests");
        let patience_us = CLIENT_PATIENCE_US;
        let lost = Event::ClientLost { client, request: number };
        self.schedule(patience_us, 0, ANY_LIFE, lost);
        if running.is_empty() {
            return;
        }
        let node = *self.dice.pick(&running);
        let n = &self.nodes[&node];
        let hurry = self.now_us < self.rush_until_us;
        let patience_us = if hurry || self.dice.chance(1, 4) {
            let max_us = if hurry { DEADLINE_US.1 / 6 } else { DEADLINE_US.1 };
            self.dice.log_between(DEADLINE_US.0, max_us)
        } else {
            DEADLINE_US.1
        };
        let (life, deadline_us) = (n.life, n.local_us(self.now_us) + patience_us);
        let requests = vec![(number, deadline_us, request)];
        let delay_us = self.dice.log_between(40, 1_000);
        self.schedule(delay_us, node, life, Event::Input(Input::Client { client, requests }));
    }

    pub(super) fn client_answered(
        &mut self,
        node: NodeId,
        client: ClientId,
        request: u64,
        answer: Answer,
    ) {
        let now_us = self.now_us;
        // A request of the fault plan has no client who waits.
        let Some(c) = self.clients.get_mut(client as usize) else { return };
        if c.request != request {
            return;
        }
        let next = c.answered(now_us, answer);
        self.client_goes_on(client, Some(node), next);
    }

    pub(super) fn client_lost(&mut self, client: ClientId, request: u64) {
        let c = &mut self.clients[client as usize];
        if c.request == request && c.is_busy() {
            let next = c.lost();
            self.count("requests without an answer");
            self.client_goes_on(client, None, next);
        }
    }

    fn client_goes_on(&mut self, client: ClientId, node: Option<NodeId>, next: Next) {
        match next {
            Next::Send(request) => self.client_sends(client, request),
            Next::ReadNow(key) => {
                // The connection's thread reads a while after it was told it may.
                let delay_us = self.hop_us();
                let request = self.clients[client as usize].request;
                if let Some(node) = node {
                    let life = self.nodes[&node].life;
                    let read = Event::ReadNow { client, request, key };
                    self.schedule(delay_us, node, life, read);
                }
            }
            Next::Over => self.count("operations"),
        }
    }

    pub(super) fn read_now(
        &mut self,
        node: NodeId,
        client: ClientId,
        request: u64,
        key: &[u8],
    ) -> Result<(), Violation> {
        let now_us = self.now_us;
        let c = &mut self.clients[client as usize];
        if c.request != request {
            return Ok(());
        }
        let Some(up) = self.nodes.get(&node).and_then(|n| n.up.as_ref()) else { return Ok(()) };
        let view = up.reader.view();
        if view.applied() < c.committed {
            let (applied, committed) = (view.applied(), c.committed);
            let detail = format!("node {node} at {applied}, committed before: {committed}");
            return violated("reads see what was committed before", detail);
        }
        match view.get(Space::User, key) {
            Ok(found) => {
                c.read(now_us, found);
                self.count("operations");
                Ok(())
            }
            // The client hears of it as of any node that goes away.
            Err(e) => self.store_failed(node, "disk error in a read", &e),
        }
    }

    /// Clients begin at once, and hardly pause for a while.
    pub(super) fn rush(&mut self, for_us: u64) {
        self.rush_until_us = self.now_us + for_us;
        for client in 0..self.clients.len() as u64 {
            self.clients[client as usize].turn += 1;
            let turn = self.clients[client as usize].turn;
            let delay_us = self.dice.below(RUSH_THINK_US);
            self.schedule(delay_us, 0, ANY_LIFE, Event::ClientActs { client, turn });
        }
    }
}
