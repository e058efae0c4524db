//! Snapshots on their way between nodes: who asks, who answers, and what is installed.
//!
//! Questions and answers travel on the connection between the two and are lost with it; whoever got
//! no answer for a while begins again, perhaps at another node.

use super::checks::{Violation, violated};
use super::network::Packet;
use super::node::Fetching;
use super::world::{Event, World};
use crate::env::Disk;
use crate::kv::{Staged, StoreError};
use crate::node::{ApplyError, Ask, Fetch, Input, Next, Source, Told};
use crate::raft::{Index, NodeId, Offer};
use std::path::Path;
use std::sync::Arc;

/// Without an answer for so long the question is asked again from the beginning.
const PATIENCE_US: u64 = 1_000_000;

impl World {
    /// A leader offers a snapshot: it is fetched, unless one is on its way.
    pub(super) fn offered(&mut self, node: NodeId, offer: Offer) {
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let (life, disk) = (n.life, n.disk.clone());
        let Some(up) = &mut n.up else { return };
        if let Some(fetching) = &mut up.fetching {
            // The leader may have changed; the next question goes to the new one.
            fetching.from = offer.from;
            fetching.fetch.aim(offer.index);
            return;
        }
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let data = Path::new(super::node::DATA);
        let fetch = Fetch::new(disk, data, up.reader.clone(), offer.index);
        up.fetching = Some(Fetching { fetch, from: offer.from, turn: 0, handed: false });
        self.count("snapshots begun");
        self.note(node, "snapshot offered", [offer.from, offer.index, 0, 0]);
        let delay_us = self.hop_us();
        self.schedule(delay_us, node, life, Event::Fetch { turn: 0 });
    }

    /// The fetching end goes on. Of two events of one turn only the first counts.
    pub(super) fn fetch(&mut self, node: NodeId, turn: u64) -> Result<(), Violation> {
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let life = n.life;
        let Some(up) = &mut n.up else { return Ok(()) };
        let Some(fetching) = up.fetching.as_mut().filter(|f| f.turn == turn && !f.handed) else {
            return Ok(());
        };
        fetching.turn += 1;
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
        if let Some(mark) = mark {
            if self.cluster.committed_terms().get(mark.index as usize - 1) != Some(&mark.term) {
                let detail = format!("node {node}: {} of term {}", mark.index, mark.term);
                return violated("a snapshot ends with what is committed", detail);
            }
            if let Some(platter) = self.platters.get_mut(&node) {
                platter.installed(&mark, self.cluster.committed_terms());
            }
            self.count("snapshots installed");
            self.note(node, "snapshot installed", [mark.index, mark.term, 0, 0]);
            if !self.compare(node)? {
                return Ok(());
            }
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
        }
        self.applier_is_free(node);
        self.start_storing(node);
        Ok(())
    }
}
