//! Snapshots on their way between nodes: what `server/snapshots.rs` does with sockets, on simulated
//! flows, and what is installed.
//!
//! Whom to dial, what to ask and when to give up is decided by [`SnapshotReceiver`]; what to answer, by
//! [`SnapshotSender`]. A connection is let in like any other between nodes, by [`crate::node::Peers`].

use super::checks::{Violation, violated};
use super::handshakes::{goes_on, take_frame};
use super::moments::Moment;
use super::network::{End, Packet};
use super::store::contents;
use super::world::{ANY_LIFE, Event, World};
use crate::kv::Reader as _;
use crate::node::{
    ApplyTask, Input, Installed, ReceiverEffect, ReceiverEvent, Request, SNAPSHOT_IDLE_US,
    SNAPSHOT_SILENCE_US, SenderEffect, SnapshotReceiver, SnapshotRequest, SnapshotResponse,
    SnapshotSender, request_frame, request_of, response_frame, response_of,
};
use crate::raft::{Index, NodeId};
use crate::wire::handshake::{Lane, Role};
use crate::wire::proof::{Dialer, Dialing, Greeting};
use crate::wire::snapshot::{SnapshotFrame, put_snapshot_frame};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// Connecting takes no longer, and neither does the handshake: `server/snapshots.rs`.
const DIAL_US: u64 = 1_000_000 + SNAPSHOT_SILENCE_US;
/// How long a sender's store may take to flush.
const FLUSH_US: (u64, u64) = (1_000, 400_000);
/// When one in so many pieces has arrived, a bit flips in what was fetched before.
const HURT_EVERY: u64 = 12;

/// The thread that fetches.
#[derive(Debug)]
pub(super) struct Transfer {
    /// Its component.
    pub(super) receiver: SnapshotReceiver,
    /// Its connection, once the other machine has answered.
    pub(super) flow: Option<u64>,
    /// Counts the connections it has dialed; whether the last one is being made.
    dials: u64,
    dialing: bool,
    /// While the handshake is under way.
    dialer: Option<Dialer>,
    /// When it goes on.
    wakes_at_us: Option<u64>,
}

impl Transfer {
    pub(super) fn new(receiver: SnapshotReceiver) -> Transfer {
        let (flow, dialer, wakes_at_us) = Default::default();
        Transfer { receiver, flow, dials: 0, dialing: false, dialer, wakes_at_us }
    }
}

/// Something happens to a transfer.
#[derive(Debug)]
pub(super) enum TransferEvent {
    /// The fetching thread goes on.
    Run,
    /// The first packet of a dialer reaches the machine at an address.
    Knock { dialer: NodeId, life: u64, dial: u64, greeting: Box<Greeting> },
    /// The dialer hears that nobody is there, or nothing in time.
    NotMade { dial: u64, why: &'static str },
    /// The store of a sender has flushed, or not.
    Flushed { flow: u64 },
}

impl World {
    fn transfer(&mut self, node: NodeId) -> Option<&mut Transfer> {
        Some(&mut self.nodes.get_mut(&node)?.up.as_mut()?.transfer)
    }

    fn transfer_in(&mut self, delay_us: u64, node: NodeId, event: TransferEvent) {
        let life = self.nodes.get(&node).map_or(0, |n| n.life);
        self.schedule(delay_us, node, life, Event::Transfer(event));
    }

    pub(super) fn on_transfer(
        &mut self,
        node: NodeId,
        event: TransferEvent,
    ) -> Result<(), Violation> {
        match event {
            TransferEvent::Run => self.fetch(node),
            TransferEvent::Knock { dialer, life, dial, greeting } => {
                self.knocked_for_snapshot(node, (dialer, life), dial, *greeting)
            }
            TransferEvent::NotMade { dial, why } => {
                let fits = |t: &mut Transfer| t.dialing && t.dials == dial;
                match self.transfer(node).is_some_and(fits) {
                    true => self.transfer_lost(node, why),
                    false => Ok(()),
                }
            }
            TransferEvent::Flushed { flow } => {
                let up = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut());
                let sender = up.and_then(|up| up.senders.get_mut(&flow));
                if let Some(response) = sender.and_then(SnapshotSender::flushed) {
                    self.put(flow, End::Acceptor, Packet::SnapshotResponse(response));
                }
                Ok(())
            }
        }
    }

    // ---- the receiver ----

    /// Tells the fetching thread.
    pub(super) fn tell_receiver(
        &mut self,
        node: NodeId,
        event: ReceiverEvent,
    ) -> Result<(), Violation> {
        let now_us = self.nodes.get(&node).map_or(0, |n| n.local_us(self.now_us));
        let Some(transfer) = self.transfer(node) else { return Ok(()) };
        let was_idle = transfer.receiver.progress().is_none();
        let lacked_space = transfer.receiver.lacks_space();
        let handled = transfer.receiver.handle(event, now_us);
        let lacks_space = transfer.receiver.lacks_space() && !lacked_space;
        let begins = was_idle && transfer.receiver.progress().is_some();
        if let Err(e) = handled {
            return self.store_failed(node, "disk error in fetching a snapshot", &e);
        }
        if lacks_space {
            self.count("snapshot put off for want of space");
        }
        if begins {
            self.count("snapshots begun");
            if !self.quiet && self.dice.chance(1, 8) {
                let (moment, _) = *self.dice.pick(&Moment::ALL[Moment::INCOMING..]);
                let skip = self.dice.below(3);
                self.nodes[&node].disk.fail_power_at(moment, skip);
            }
            self.note(node, "snapshot needed", [0; 4]);
        }
        let delay_us = self.hop_us() + self.disk_time_us(node);
        self.fetch_in(node, delay_us);
        Ok(())
    }

    /// The store is damaged: what takes its place is fetched from another node.
    pub(super) fn repair(&mut self, node: NodeId, index: Index) -> Result<(), Violation> {
        self.tell_receiver(node, ReceiverEvent::Damaged { index })
    }

    fn fetch_in(&mut self, node: NodeId, delay_us: u64) {
        let at_us = self.now_us + delay_us;
        let Some(transfer) = self.transfer(node) else { return };
        if transfer.wakes_at_us.is_none_or(|at| at > at_us) {
            transfer.wakes_at_us = Some(at_us);
            self.transfer_in(delay_us, node, TransferEvent::Run);
        }
    }

    /// The fetching thread goes on until it waits.
    fn fetch(&mut self, node: NodeId) -> Result<(), Violation> {
        let due_us = self.now_us;
        let Some(transfer) = self.transfer(node) else { return Ok(()) };
        if transfer.wakes_at_us.is_none_or(|at| at > due_us) {
            return Ok(());
        }
        transfer.wakes_at_us = None;
        // A large answer may be arriving.
        if let Some(flow) = transfer.flow
            && self.network.is_arriving(due_us, flow, End::Dialer)
        {
            self.tell_receiver(node, ReceiverEvent::Heard)?;
        }
        loop {
            let mut others: BTreeSet<NodeId> = self.peers_of(node).into_iter().collect();
            let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
            let local_us = n.local_us(due_us);
            let Some(up) = &mut n.up else { return Ok(()) };
            // All whom it knows in its log may be gone meanwhile.
            others.extend(up.node.peers().others());
            let receiver = &mut up.transfer.receiver;
            let before = (receiver.lacks_space(), receiver.silences());
            let effect = receiver.poll(&others, local_us);
            let after = (receiver.lacks_space(), receiver.silences());
            if after.0 && !before.0 {
                self.count("snapshot put off for want of space");
            }
            if after.1 > before.1 {
                self.count("silent snapshot connections given up");
            }
            let effect = match effect {
                Ok(effect) => effect,
                Err(e) => return self.store_failed(node, "disk error in fetching a snapshot", &e),
            };
            self.trace.detail(due_us, node, || format!("fetching: {effect:?}"));
            match effect {
                ReceiverEffect::Dial { sender } => self.dial_for_snapshot(node, sender),
                ReceiverEffect::Send(request) => {
                    if let Some(flow) = self.transfer(node).and_then(|t| t.flow) {
                        self.put(flow, End::Dialer, Packet::SnapshotRequest(request));
                    }
                }
                ReceiverEffect::Close => {
                    if let Some(flow) = self.transfer(node).and_then(|t| t.flow.take()) {
                        self.close(flow, End::Dialer);
                    }
                }
                ReceiverEffect::Install { snapshot, index } => {
                    self.note(node, "snapshot fetched", [index, 0, 0, 0]);
                    if let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) {
                        up.to_apply.push_back(ApplyTask::Install { snapshot, index });
                    }
                    self.start_applying(node);
                }
                ReceiverEffect::Say { text, .. } if text.contains("gave up") => {
                    self.count("tables given up for a repair");
                }
                ReceiverEffect::Say { warning, .. } => {
                    if warning {
                        self.count("snapshots that did not come");
                    }
                }
                ReceiverEffect::Wait { until_us: u64::MAX } => return Ok(()),
                ReceiverEffect::Wait { until_us } => {
                    let until_us = self.nodes[&node].global_us(until_us);
                    let delay_us = until_us.saturating_sub(due_us) + self.hop_us();
                    self.fetch_in(node, delay_us);
                    return Ok(());
                }
            }
        }
    }

    fn dial_for_snapshot(&mut self, node: NodeId, sender: NodeId) {
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let life = n.life;
        let Some(up) = &mut n.up else { return };
        let peers = up.node.peers();
        let greeting = Box::new(peers.greeting(Role::Snapshot, sender, Lane::Control));
        let addresses = peers.addresses_of(sender);
        let transfer = &mut up.transfer;
        transfer.dials += 1;
        (transfer.dialing, transfer.flow) = (true, None);
        let dial = transfer.dials;
        self.transfer_in(DIAL_US, node, TransferEvent::NotMade { dial, why: "no answer" });
        let Some(target) = addresses.iter().find_map(|address| self.machine_at(address)) else {
            let delay_us = self.dice.log_between(100, 1_000_000);
            let event = TransferEvent::NotMade { dial, why: "nobody is there" };
            return self.transfer_in(delay_us, node, event);
        };
        if self.network.is_cut(node, target) {
            return;
        }
        let delay_us = self.network.delay_us(node, target);
        let knock = TransferEvent::Knock { dialer: node, life, dial, greeting };
        self.schedule(delay_us, target, ANY_LIFE, Event::Transfer(knock));
    }

    fn knocked_for_snapshot(
        &mut self,
        node: NodeId,
        dialer: (NodeId, u64),
        dial: u64,
        greeting: Greeting,
    ) -> Result<(), Violation> {
        let lives = self.nodes.get(&dialer.0).is_some_and(|n| n.life == dialer.1);
        let waits = |t: &mut Transfer| t.dialing && t.dials == dial;
        if !lives || !self.transfer(dialer.0).is_some_and(waits) {
            return Ok(());
        }
        let Some(n) = self.nodes.get(&node) else { return Ok(()) };
        let (life, up) = (n.life, n.up.is_some());
        if self.network.is_cut(node, dialer.0) {
            return Ok(());
        }
        if !up {
            let delay_us = self.network.delay_us(node, dialer.0);
            let event = TransferEvent::NotMade { dial, why: "refused" };
            self.transfer_in(delay_us, dialer.0, event);
            return Ok(());
        }
        let flow = self.network.open_for_snapshot(dialer, (node, life));
        let (handshake, hello) = Dialer::new(greeting, self.dice.bytes());
        if let Some(transfer) = self.transfer(dialer.0) {
            (transfer.flow, transfer.dialer) = (Some(flow), Some(handshake));
        }
        self.accept(node, flow, dialer.0, SNAPSHOT_IDLE_US)?;
        self.put(flow, End::Dialer, Packet::Handshake(hello));
        Ok(())
    }

    /// Something arrived on the connection.
    pub(super) fn arrived_for_receiver(
        &mut self,
        node: NodeId,
        packet: Packet,
    ) -> Result<(), Violation> {
        match packet {
            Packet::Handshake(frame) => {
                let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else {
                    return Ok(());
                };
                let (transfer, keys) = (&mut up.transfer, up.node.peers().keys());
                let (Some(dialer), Some(flow)) = (&mut transfer.dialer, transfer.flow) else {
                    return Ok(());
                };
                match goes_on(dialer, &frame) {
                    Ok(Dialing::Write(frame)) => {
                        self.put(flow, End::Dialer, Packet::Handshake(frame));
                        Ok(())
                    }
                    Ok(Dialing::Over(answered)) if answered.is_let_in(&keys).is_ok() => {
                        (transfer.dialing, transfer.dialer) = (false, None);
                        self.tell_receiver(node, ReceiverEvent::Connected)
                    }
                    Ok(Dialing::Over(_)) => self.transfer_lost(node, "rejected"),
                    Err(why) => violated("nodes keep to the protocol", why),
                }
            }
            Packet::SnapshotResponse(response) => {
                let response = framed(&response_frame(response), response_of)?;
                let gone = response == SnapshotResponse::Gone;
                self.count(if gone { "snapshot pieces gone" } else { "snapshot pieces" });
                self.tell_receiver(node, ReceiverEvent::Answered(response))?;
                self.hurt_what_was_fetched(node);
                Ok(())
            }
            Packet::Fin => self.transfer_lost(node, "closed"),
            _ => Ok(()),
        }
    }

    /// Now and then a bit flips in a table that was fetched while others of the snapshot are still on their way. It is
    /// read before it is installed, and fetched again, so that this excuses nothing.
    fn hurt_what_was_fetched(&mut self, node: NodeId) {
        if self.quiet || !self.dice.chance(1, HURT_EVERY) {
            return;
        }
        let Some(n) = self.nodes.get(&node) else { return };
        let progress = n.up.as_ref().and_then(|up| up.transfer.receiver.progress());
        let mut files = n.disk.files();
        files.retain(|(path, len)| path.to_string_lossy().contains("fetched-") && *len > 0);
        if !progress.is_some_and(|p| p.is_fetching()) || files.is_empty() {
            return;
        }
        let (path, len) = &files[self.dice.below(files.len() as u64) as usize];
        let bit = self.dice.below(8 * *len as u64);
        n.disk.flip(path, (bit / 8) as usize, (bit % 8) as u8);
        self.count("bit flip in a fetched table");
    }

    /// The connection was not made, or has ended.
    pub(super) fn transfer_lost(&mut self, node: NodeId, why: &str) -> Result<(), Violation> {
        let Some(transfer) = self.transfer(node) else { return Ok(()) };
        transfer.dialing = false;
        if let Some(flow) = transfer.flow.take() {
            self.close(flow, End::Dialer);
        }
        self.tell_receiver(node, ReceiverEvent::Lost { why: why.to_string() })
    }

    // ---- the sender ----

    /// A node that fetches here asks.
    pub(super) fn asked(
        &mut self,
        node: NodeId,
        flow: u64,
        request: SnapshotRequest,
    ) -> Result<(), Violation> {
        let request = framed(&request_frame(request), request_of)?;
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else {
            return Ok(());
        };
        let reader = &up.reader;
        let sender = up.senders.entry(flow).or_insert_with(|| SnapshotSender::new(reader.clone()));
        let response = match sender.asked(request) {
            SenderEffect::Send(response) => response,
            SenderEffect::Flush => {
                self.count("flushed for a snapshot");
                self.ask_directly(node, vec![Request::Flush { cut: false }]);
                let delay_us = self.dice.log_between(FLUSH_US.0, FLUSH_US.1);
                self.transfer_in(delay_us, node, TransferEvent::Flushed { flow });
                return Ok(());
            }
            SenderEffect::Unreadable(e) => {
                self.store_failed(node, "disk error in giving a snapshot", &e)?;
                SnapshotResponse::Gone
            }
        };
        if self.nodes.get(&node).is_some_and(|n| n.up.is_some()) {
            self.put(flow, End::Acceptor, Packet::SnapshotResponse(response));
        }
        Ok(())
    }

    // ---- the install ----

    /// The applier says what became of a snapshot.
    pub(super) fn installed(
        &mut self,
        node: NodeId,
        installed: Installed,
    ) -> Result<(), Violation> {
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let life = n.life;
        let Some(up) = &mut n.up else { return Ok(()) };
        // Its mark lay in the store before it was installed, and may have been hurt there.
        let view = up.reader.view();
        let undamaged = n.disk.beside(|| contents(&view, usize::MAX)).is_ok();
        if matches!(installed, Installed::Done { repaired: true, .. }) {
            up.state.damaged.store(false, Ordering::Relaxed);
        }
        if matches!(installed, Installed::Done { .. }) && n.store_is_hurt() && undamaged {
            (n.store_flipped, n.store_repaired) = (false, true);
            n.disk.forget_read_struck();
            self.count("stores repaired");
        }
        self.tell_receiver(node, ReceiverEvent::Installed)?;
        let Installed::Done { mark, .. } = installed else {
            let late = matches!(installed, Installed::TooLate);
            self.count(if late { "snapshots that came too late" } else { "snapshots unread" });
            return Ok(());
        };
        if self.cluster.committed_terms().get(mark.index as usize - 1) != Some(&mark.term) {
            let detail = format!("node {node}: {} of term {}", mark.index, mark.term);
            return violated("a snapshot ends with what is committed", detail);
        }
        if let Some(platter) = self.platters.get_mut(&node) {
            platter.installed(&mark, self.cluster.committed_terms());
        }
        self.count("snapshots installed");
        if !mark.configuration.is_voter(node) {
            self.count("snapshots to learners");
        }
        self.note(node, "snapshot installed", [mark.index, mark.term, 0, 0]);
        self.compare(node)?;
        // The one moment at which the store is ahead of the log.
        if !self.quiet && self.dice.chance(1, 6) {
            self.count("stopped right after an install");
            let power_lost = self.dice.chance(1, 2);
            self.stop(node, power_lost);
            let delay_us = self.dice.log_between(10_000, 1_000_000);
            self.start_in(delay_us, node);
            return Ok(());
        }
        let delay_us = self.hop_us();
        self.schedule(delay_us, node, life, Event::Input(Input::Installed { mark }));
        Ok(())
    }
}

/// What the other side takes from a frame.
fn framed<T>(
    frame: &SnapshotFrame,
    take: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, Violation> {
    let mut bytes = Vec::new();
    put_snapshot_frame(&mut bytes, frame);
    take_frame(&bytes, take)
}
