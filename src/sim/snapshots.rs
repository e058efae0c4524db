//! Snapshots on their way between nodes: who asks, who answers, and what is installed.
//!
//! Questions and answers travel on the connection between the two and are lost with it; whoever got
//! no answer for a while begins again, perhaps at another node.

use super::checks::{Violation, violated};
use super::network::Packet;
use super::node::{ClientId, Fetching};
use super::world::{Event, World};
use crate::env::Disk;
use crate::kv::{Reader as _, Staged, StoreError, View as _};
use crate::node::{ApplyError, Ask, Fetch, Input, Next, Request, Source, Told};
use crate::raft::{Index, NodeId, Offer};
use std::path::Path;
use std::sync::Arc;

/// After so many questions without an answer somebody else is asked, where anybody will do.
const UNANSWERED_MAX: u64 = 2;

/// Without an answer for so long the question is asked again from the beginning.
const PATIENCE_US: u64 = 1_000_000;

impl World {
    /// A leader offers a snapshot: it is fetched, unless one is on its way.
    pub(super) fn offered(&mut self, node: NodeId, offer: Offer) {
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else { return };
        if let Some(fetching) = &mut up.fetching {
            // The leader may have changed; the next question goes to the new one.
            if !fetching.repairs {
                fetching.from = offer.from;
                fetching.fetch.aim(offer.index);
            }
            return;
        }
        self.begin_fetch(node, offer, false);
    }

    /// The store is damaged: what takes its place is fetched from whoever has it.
    pub(super) fn repair(&mut self, node: NodeId) {
        let from = self.another(node, node);
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else { return };
        let index = up.applier.machine().applied();
        if let Some(fetching) = &mut up.fetching {
            fetching.repairs = true;
            fetching.fetch.aim(index);
            return;
        }
        self.begin_fetch(node, Offer { from, index }, true);
    }

    /// The member behind that one, but not the node itself.
    fn another(&self, node: NodeId, behind: NodeId) -> NodeId {
        let mut all = self.peers_of(node);
        // All whom it knows in its log may be gone meanwhile.
        let up = self.nodes.get(&node).and_then(|n| n.up.as_ref());
        all.extend(up.into_iter().flat_map(|up| up.node.peers().others()));
        all.retain(|id| *id != node);
        all.sort_unstable();
        all.dedup();
        all.iter().copied().find(|id| *id > behind).or(all.first().copied()).unwrap_or(node)
    }

    fn begin_fetch(&mut self, node: NodeId, offer: Offer, repairs: bool) {
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let (life, disk) = (n.life, n.disk.clone());
        let Some(up) = &mut n.up else { return };
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let data = Path::new(super::node::DATA);
        let fetch = Fetch::new(disk, data, up.reader.clone(), offer.index);
        let from = offer.from;
        up.fetching =
            Some(Fetching { fetch, from, repairs, unanswered: 0, turn: 0, handed: false });
        self.count("snapshots begun");
        self.note(node, "snapshot offered", [offer.from, offer.index, 0, 0]);
        let delay_us = self.hop_us();
        self.schedule(delay_us, node, life, Event::Fetch { turn: 0 });
    }

    /// The fetching end goes on. Of two events of one turn only the first counts.
    pub(super) fn fetch(&mut self, node: NodeId, turn: u64) -> Result<(), Violation> {
        let from = self.nodes.get(&node).and_then(|n| Some(n.up.as_ref()?.fetching.as_ref()?.from));
        let next = self.another(node, from.unwrap_or(0));
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let life = n.life;
        let Some(up) = &mut n.up else { return Ok(()) };
        let Some(fetching) = up.fetching.as_mut().filter(|f| f.turn == turn && !f.handed) else {
            return Ok(());
        };
        fetching.turn += 1;
        fetching.unanswered += 1;
        if fetching.repairs && fetching.unanswered > UNANSWERED_MAX {
            (fetching.from, fetching.unanswered) = (next, 0);
        }
        let (from, turn) = (fetching.from, fetching.turn);
        match fetching.fetch.go_on() {
            Ok(Next::Ask(ask)) => {
                self.send(node, from, Packet::Ask(ask));
                self.schedule(PATIENCE_US, node, life, Event::Fetch { turn });
            }
            Ok(Next::Again) => {
                let delay_us = self.hop_us();
                self.schedule(delay_us, node, life, Event::Fetch { turn });
            }
            Ok(Next::Done(snapshot)) => {
                fetching.handed = true;
                let index = snapshot.applied();
                if let Err(e) = fetching.fetch.discard() {
                    return self.store_failed(node, "disk error in fetching a snapshot", &e);
                }
                up.to_apply.push_back(crate::node::Work::Install { snapshot, index });
                self.note(node, "snapshot fetched", [index, 0, 0, 0]);
                self.start_applying(node, 0);
            }
            Err(e) => return self.fetch_failed(node, &e),
        }
        Ok(())
    }

    /// A full disk is waited out; anything else stops the node.
    fn fetch_failed(&mut self, node: NodeId, e: &StoreError) -> Result<(), Violation> {
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let life = n.life;
        match n.up.as_mut().and_then(|up| up.fetching.as_mut()) {
            Some(fetching) if e.is_out_of_space() => {
                fetching.fetch.set_back();
                let turn = fetching.turn;
                self.count("snapshot put off for want of space");
                self.schedule(PATIENCE_US, node, life, Event::Fetch { turn });
                Ok(())
            }
            _ => self.store_failed(node, "disk error in fetching a snapshot", e),
        }
    }

    /// Somebody fetches here.
    pub(super) fn asked(&mut self, node: NodeId, from: NodeId, ask: Ask) -> Result<(), Violation> {
        let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) else {
            return Ok(());
        };
        let reader = &up.reader;
        let source = up.sources.entry(from).or_insert_with(|| Source::new(reader.clone()));
        match source.answer(ask) {
            Ok(told) => {
                if let Ask::Begin { index } = ask
                    && told == Told::Gone
                    && reader.view().applied() >= index
                {
                    // Applied, and not in tables yet.
                    let requests = vec![(0, u64::MAX, Request::Flush { cut: false })];
                    self.input(node, Input::Client { client: ClientId::MAX, requests });
                }
                self.send(node, from, Packet::Told(told));
                Ok(())
            }
            Err(e) => self.store_failed(node, "disk error in giving a snapshot", &e),
        }
    }

    /// An answer for the fetching end.
    pub(super) fn told(&mut self, node: NodeId, from: NodeId, told: Told) -> Result<(), Violation> {
        let hop_us = self.hop_us();
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let life = n.life;
        let Some(up) = &mut n.up else { return Ok(()) };
        let Some(fetching) = up.fetching.as_mut().filter(|f| f.from == from && !f.handed) else {
            return Ok(());
        };
        let gone = told == Told::Gone;
        // Whoever has nothing to give is asked no longer.
        fetching.unanswered = if gone { UNANSWERED_MAX } else { 0 };
        let turn = fetching.turn;
        if let Err(e) = fetching.fetch.told(told) {
            return self.fetch_failed(node, &e);
        }
        let delay_us = if gone { PATIENCE_US / 2 } else { hop_us };
        self.count(if gone { "snapshot pieces gone" } else { "snapshot pieces" });
        self.schedule(delay_us, node, life, Event::Fetch { turn });
        Ok(())
    }

    /// The applier puts a snapshot in the place of the state.
    pub(super) fn install(
        &mut self,
        node: NodeId,
        snapshot: Staged,
        index: Index,
    ) -> Result<(), Violation> {
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let life = n.life;
        let Some(up) = &mut n.up else { return Ok(()) };
        let mark = match up.applier.install(snapshot, index, &up.first) {
            Ok(mark) => mark,
            Err(ApplyError::Store(e)) => {
                return self.store_failed(node, "disk error in installing a snapshot", &e);
            }
            Err(e) => return violated("a snapshot is installed", e.to_string()),
        };
        up.fetching = None;
        let repaired = n.store_flipped && mark.is_some() && up.reader.damage().is_none();
        if repaired {
            (n.store_flipped, n.store_repaired) = (false, true);
            self.count("stores repaired");
        }
        if let Some(mark) = mark {
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
        } else {
            self.count("snapshots that came too late");
            let holds =
                |n: &super::node::SimNode| n.up.as_ref().is_some_and(|up| up.applier.is_holding());
            if self.nodes.get(&node).is_some_and(holds) {
                self.repair(node);
            }
        }
        self.applier_is_free(node);
        self.start_storing(node);
        Ok(())
    }
}
