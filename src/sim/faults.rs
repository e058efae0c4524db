//! The faults there are, and what each does to the world.

use super::checks::Violation;
use super::clients::sweep;
use super::disk::Trouble;
use super::moments::{FileKind, Moment};
use super::node::DATA;
use super::operator::Operation;
use super::world::World;
use crate::lsm::STORE_DIR;
use crate::node::Request;
use crate::raft::NodeId;
use crate::wal::{Identity, IdentityCopy};
use std::path::Path;

/// Something goes wrong, or is asked of the cluster at a bad moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed and started again.
    Kill {
        /// The node.
        node: NodeId,
        /// Time until it starts again, in microseconds.
        down_us: u64,
    },
    /// The machine loses power and comes back.
    PowerLoss {
        /// The node.
        node: NodeId,
        /// Time until it starts again, in microseconds.
        down_us: u64,
    },
    /// The power fails in the middle of a disk operation.
    TornWrite {
        /// The node.
        node: NodeId,
        /// Operations that change something until then.
        changes: u64,
    },
    /// The power fails in the middle of a step of some kind: of three that `turn` draws the one at which
    /// it has failed the least.
    PowerAt {
        /// The node.
        node: NodeId,
        /// What draws them.
        turn: u64,
        /// Steps of that kind until then.
        skip: u64,
    },
    /// The process stands still.
    Pause {
        /// The node.
        node: NodeId,
        /// How long, in microseconds.
        for_us: u64,
    },
    /// Nothing passes in this direction.
    Cut {
        /// Sender.
        from: NodeId,
        /// Receiver.
        to: NodeId,
    },
    /// Everything passes in this direction again.
    Mend {
        /// Sender.
        from: NodeId,
        /// Receiver.
        to: NodeId,
    },
    /// Nothing passes to or from the node.
    Isolate {
        /// The node.
        node: NodeId,
    },
    /// Messages in this direction are lost, doubled and late.
    Bad {
        /// Sender.
        from: NodeId,
        /// Receiver.
        to: NodeId,
        /// Lost, of 1000.
        loss: u64,
        /// Doubled, of 1000.
        duplication: u64,
        /// Longest delay, in microseconds.
        delay_us: u64,
    },
    /// A connection breaks.
    Reset {
        /// The dialing side.
        from: NodeId,
        /// The other side.
        to: NodeId,
    },
    /// A firewall forgets all connections between two nodes: they go silent, new ones pass.
    Forget {
        /// One of them.
        from: NodeId,
        /// The other.
        to: NodeId,
    },
    /// A firewall forgets the connection on which a snapshot travels, and no others.
    ForgetSnapshot {
        /// Packets that pass before, the handshake included.
        packets: u64,
    },
    /// Everything takes so long on a line, in order.
    Distant {
        /// Sender.
        from: NodeId,
        /// Receiver.
        to: NodeId,
        /// Time that it takes, in microseconds.
        delay_us: u64,
    },
    /// A line gets that bandwidth.
    Slow {
        /// Sender.
        from: NodeId,
        /// Receiver.
        to: NodeId,
        /// Bytes a second; 0 for no bound.
        bandwidth: u64,
    },
    /// All connections between nodes break at once, and everybody dials anew.
    DialStorm,
    /// All lines are good again.
    Heal,
    /// Nothing is cut any more; bad lines stay bad.
    Reconnect,
    /// A disk operation fails.
    DiskTrouble {
        /// The node.
        node: NodeId,
        /// Which.
        trouble: Trouble,
    },
    /// The disk is full for a while.
    FillDisk {
        /// The node.
        node: NodeId,
        /// Bytes that are left.
        room: u64,
    },
    /// The disk has space again.
    EmptyDisk {
        /// The node.
        node: NodeId,
    },
    /// The disk gets that bandwidth.
    PaceDisk {
        /// The node.
        node: NodeId,
        /// Bytes a second; 0 for no bound.
        bytes_a_second: u64,
    },
    /// Syncs become slow, or fast again.
    SlowDisk {
        /// The node.
        node: NodeId,
        /// Longest time of one, in microseconds.
        sync_us_max: u64,
    },
    /// A bit of the log of a stopped node turns over, or a sector of it cannot be read any more.
    BitFlip {
        /// The node.
        node: NodeId,
        /// Chooses the bit.
        at: u64,
    },
    /// So many writes at once that nobody waits for: long logs, large batches.
    Burst {
        /// The node that is asked.
        node: NodeId,
        /// Writes.
        writes: u64,
    },
    /// Reads come to the node all at once.
    Reads {
        /// The node.
        node: NodeId,
        /// How many.
        count: u64,
    },
    /// A run of keys is deleted that bursts of writes put there.
    Sweep {
        /// The node that is asked.
        node: NodeId,
        /// Chooses the first key.
        from: u64,
        /// How many keys.
        keys: u64,
    },
    /// The clients are in a hurry.
    Rush {
        /// How long, in microseconds.
        for_us: u64,
    },
    /// A bit of the stopped node's identity turns over, or its sector cannot be read any more: in one copy, which the other makes good, or
    /// in both.
    FlipIdentity {
        /// The node.
        node: NodeId,
        /// Both copies.
        both: bool,
        /// Chooses the bit.
        at: u64,
    },
    /// A bit of the store turns over, or its sector cannot be read any more: in a table, or in a slot of the manifest
    /// of a stopped node.
    FlipStore {
        /// The node.
        node: NodeId,
        /// Chooses the bit.
        at: u64,
    },
    /// A sector of the stopped node's log is written over another one.
    Misdirect {
        /// The node.
        node: NodeId,
        /// Chooses the sector.
        from: u64,
        /// Chooses where it lands.
        to: u64,
    },
    /// The node loses its disk and begins anew under its old id.
    Wipe {
        /// The node.
        node: NodeId,
        /// Time until it starts again, in microseconds.
        down_us: u64,
    },
    /// The operator changes the members.
    Operate {
        /// What.
        what: Operation,
        /// Chooses whom, and how.
        at: u64,
    },
    /// A copy of the node's disk is kept.
    CopyDisk {
        /// The node.
        node: NodeId,
    },
    /// The node comes back with the copy of its disk.
    OldCopy {
        /// The node.
        node: NodeId,
    },
    /// A person asks for the log to be cut.
    Compact {
        /// The node.
        node: NodeId,
    },
    /// Leadership is handed over on demand.
    Transfer {
        /// The node that is asked.
        node: NodeId,
        /// Who is to take over, if that matters.
        to: Option<NodeId>,
    },
}

impl Fault {
    /// Its name in counters and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Kill { .. } => "kill",
            Fault::PowerLoss { .. } => "power loss",
            Fault::TornWrite { .. } => "torn write",
            Fault::PowerAt { .. } => "aimed power failure",
            Fault::Pause { .. } => "pause",
            Fault::Cut { .. } => "one-way cut",
            Fault::Mend { .. } => "line mended",
            Fault::Isolate { .. } => "isolation",
            Fault::Bad { .. } => "bad line",
            Fault::Distant { .. } => "distant line",
            Fault::Reset { .. } => "connection reset",
            Fault::Forget { .. } => "forgotten connections",
            Fault::ForgetSnapshot { .. } => "snapshot in the dark",
            Fault::Slow { bandwidth: 0, .. } => "line is fast again",
            Fault::Slow { .. } => "slow line",
            Fault::DialStorm => "dial storm",
            Fault::Heal => "heal",
            Fault::Reconnect => "reconnect",
            Fault::DiskTrouble { trouble: Trouble::Read, .. } => "read error armed",
            Fault::DiskTrouble { trouble: Trouble::Write, .. } => "write error armed",
            Fault::DiskTrouble { trouble: Trouble::Sync, .. } => "sync error armed",
            Fault::DiskTrouble { trouble: Trouble::Full, .. } => "full disk armed",
            Fault::DiskTrouble { trouble: Trouble::FullSync, .. } => "full disk at a sync armed",
            Fault::DiskTrouble { trouble: Trouble::Held, .. } => "held file armed",
            Fault::DiskTrouble { trouble: Trouble::Descriptors, .. } => "want of descriptors armed",
            Fault::PaceDisk { bytes_a_second: 0, .. } => "disk has bandwidth again",
            Fault::PaceDisk { .. } => "disk of little bandwidth",
            Fault::FillDisk { .. } => "disk is full for a while",
            Fault::EmptyDisk { .. } => "disk has space again",
            Fault::SlowDisk { .. } => "slow disk",
            Fault::BitFlip { .. } => "bit flip",
            Fault::FlipIdentity { both: false, .. } => "bit flip in one identity copy",
            Fault::FlipIdentity { both: true, .. } => "bit flip in both identity copies",
            Fault::FlipStore { .. } => "bit flip in the store",
            Fault::Misdirect { .. } => "misdirected write",
            Fault::Wipe { .. } => "wiped disk",
            Fault::Burst { .. } => "burst of writes",
            Fault::Reads { .. } => "burst of reads",
            Fault::Sweep { .. } => "sweep of deletes",
            Fault::Rush { .. } => "rush of clients",
            Fault::Operate { what, .. } => match what {
                Operation::Join => "operator: join",
                Operation::JoinUnseen => "operator: join unseen",
                Operation::Promote => "operator: promote",
                Operation::Remove => "operator: remove",
                Operation::RemoveLeader => "operator: remove the leader",
                Operation::RemoveOff => "operator: switch off and remove",
                Operation::Replace => "operator: replace",
                Operation::ReplaceInPlace => "operator: replace in place",
                Operation::ReplaceLost => "operator: replace what is lost",
                Operation::Knock => "operator: start a removed node",
                Operation::Move => "operator: move",
            },
            Fault::CopyDisk { .. } => "disk copied",
            Fault::OldCopy { .. } => "old copy",
            Fault::Compact { .. } => "log cut on demand",
            Fault::Transfer { .. } => "transfer",
        }
    }

    /// The node it is about, and for a line the one at its other end.
    fn ends(&mut self) -> (Option<&mut NodeId>, Option<&mut NodeId>) {
        match self {
            Fault::Kill { node, .. }
            | Fault::PowerLoss { node, .. }
            | Fault::TornWrite { node, .. }
            | Fault::PowerAt { node, .. }
            | Fault::Pause { node, .. }
            | Fault::Isolate { node }
            | Fault::DiskTrouble { node, .. }
            | Fault::SlowDisk { node, .. }
            | Fault::PaceDisk { node, .. }
            | Fault::FillDisk { node, .. }
            | Fault::EmptyDisk { node }
            | Fault::BitFlip { node, .. }
            | Fault::FlipIdentity { node, .. }
            | Fault::FlipStore { node, .. }
            | Fault::Misdirect { node, .. }
            | Fault::Wipe { node, .. }
            | Fault::Burst { node, .. }
            | Fault::Reads { node, .. }
            | Fault::Sweep { node, .. }
            | Fault::CopyDisk { node }
            | Fault::OldCopy { node }
            | Fault::Compact { node }
            | Fault::Transfer { node, .. } => (Some(node), None),
            Fault::Cut { from, to }
            | Fault::Mend { from, to }
            | Fault::Bad { from, to, .. }
            | Fault::Distant { from, to, .. }
            | Fault::Reset { from, to }
            | Fault::Forget { from, to }
            | Fault::Slow { from, to, .. } => (Some(from), Some(to)),
            Fault::DialStorm
            | Fault::ForgetSnapshot { .. }
            | Fault::Heal
            | Fault::Reconnect
            | Fault::Rush { .. }
            | Fault::Operate { .. } => (None, None),
        }
    }

    /// The node it is about, 0 for none.
    pub fn node(&self) -> NodeId {
        let mut fault = *self;
        fault.ends().0.map_or(0, |node| *node)
    }

    /// The same fault with 0 replaced by whoever leads; none when nobody does, or when a line
    /// would lead from a node to itself.
    pub fn aimed(mut self, leader: Option<NodeId>) -> Option<Fault> {
        let aim = |node: &mut NodeId| {
            if *node == 0 {
                *node = leader.unwrap_or(0);
            }
            *node != 0
        };
        let aimed = match self.ends() {
            (Some(from), Some(to)) => aim(from) && aim(to) && from != to,
            (Some(node), None) => aim(node),
            _ => true,
        };
        aimed.then_some(self)
    }

    /// Its details, for the trace.
    pub fn words(&self) -> [u64; 4] {
        match *self {
            Fault::Kill { down_us, .. } | Fault::PowerLoss { down_us, .. } => [down_us, 0, 0, 0],
            Fault::TornWrite { changes, .. } => [changes, 0, 0, 0],
            Fault::PowerAt { turn, skip, .. } => [turn, skip, 0, 0],
            Fault::Pause { for_us, .. } => [for_us, 0, 0, 0],
            Fault::Cut { to, .. }
            | Fault::Mend { to, .. }
            | Fault::Reset { to, .. }
            | Fault::Forget { to, .. } => [to, 0, 0, 0],
            Fault::Slow { to, bandwidth, .. } => [to, bandwidth, 0, 0],
            Fault::Distant { to, delay_us, .. } => [to, delay_us, 0, 0],
            Fault::Bad { to, loss, duplication, delay_us, .. } => [to, loss, duplication, delay_us],
            Fault::SlowDisk { sync_us_max, .. } => [sync_us_max, 0, 0, 0],
            Fault::PaceDisk { bytes_a_second, .. } => [bytes_a_second, 0, 0, 0],
            Fault::BitFlip { at, .. } | Fault::FlipStore { at, .. } => [at, 0, 0, 0],
            Fault::FlipIdentity { both, at, .. } => [u64::from(both), at, 0, 0],
            Fault::Misdirect { from, to, .. } => [from, to, 0, 0],
            Fault::Wipe { down_us, .. } => [down_us, 0, 0, 0],
            Fault::Burst { writes, .. } => [writes, 0, 0, 0],
            Fault::Reads { count, .. } => [count, 0, 0, 0],
            Fault::Sweep { from, keys, .. } => [from, keys, 0, 0],
            Fault::ForgetSnapshot { packets } => [packets, 0, 0, 0],
            Fault::FillDisk { room, .. } => [room, 0, 0, 0],
            Fault::Rush { for_us } => [for_us, 0, 0, 0],
            Fault::DiskTrouble { trouble, .. } => [trouble as u64, 0, 0, 0],
            Fault::Operate { what, at } => [what as u64, at, 0, 0],
            Fault::Isolate { .. }
            | Fault::CopyDisk { .. }
            | Fault::OldCopy { .. }
            | Fault::EmptyDisk { .. }
            | Fault::DialStorm
            | Fault::Heal
            | Fault::Reconnect
            | Fault::Compact { .. }
            | Fault::Transfer { .. } => [0; 4],
        }
    }

    pub(super) fn apply(&self, world: &mut World) -> Result<(), Violation> {
        match *self {
            Fault::Kill { node, down_us } => {
                world.stop(node, false);
                world.start_in(down_us, node);
            }
            Fault::PowerLoss { node, down_us } => {
                world.stop(node, true);
                world.start_in(down_us, node);
            }
            Fault::TornWrite { node, changes } => world.nodes[&node].disk.fail_power_in(changes),
            Fault::PowerAt { node, turn, skip } => {
                let all = Moment::ALL;
                let drawn = [turn, turn >> 16, turn >> 32].map(|n| all[n as usize % all.len()]);
                let met = |name| world.counters.get(name).copied().unwrap_or_default();
                let seldom = drawn.iter().min_by_key(|(_, name)| met(name));
                if let Some((moment, _)) = seldom {
                    world.nodes[&node].disk.fail_power_at(*moment, skip);
                }
            }
            Fault::Pause { node, for_us } => world.pause(node, for_us),
            Fault::Cut { from, to } => world.network.line(from, to).cut = true,
            Fault::Mend { from, to } => world.network.line(from, to).cut = false,
            Fault::Isolate { node } => {
                for other in others(world, node) {
                    world.network.line(node, other).cut = true;
                    world.network.line(other, node).cut = true;
                }
            }
            Fault::Bad { from, to, loss, duplication, delay_us } => {
                let line = world.network.line(from, to);
                line.loss = loss;
                line.duplication = duplication;
                line.delay_us.1 = delay_us;
            }
            Fault::Distant { from, to, delay_us } => {
                world.network.line(from, to).delay_us = (delay_us, delay_us + delay_us / 16 + 1);
            }
            Fault::Reset { from, to } => world.break_connections(from, to),
            Fault::Forget { from, to } => world.network.forget(from, to),
            Fault::ForgetSnapshot { packets } => world.network.forget_snapshot(packets),
            Fault::Slow { from, to, bandwidth } => {
                world.network.line(from, to).bandwidth = bandwidth;
            }
            Fault::DialStorm => {
                for flow in world.network.all_flows() {
                    world.reset(flow, None);
                }
            }
            Fault::Heal => world.network.heal(),
            Fault::Reconnect => world.network.reconnect(),
            Fault::DiskTrouble { node, trouble } => {
                // A read that fails may be one of the store: see [`flip_store`].
                if trouble != Trouble::Read || world.can_lose(node) {
                    world.nodes[&node].disk.trouble(Some(trouble));
                }
            }
            Fault::FillDisk { node, room } => {
                world.nodes[&node].disk.limit(usize::try_from(room).ok());
            }
            Fault::EmptyDisk { node } => world.nodes[&node].disk.limit(None),
            Fault::SlowDisk { node, sync_us_max } => {
                if let Some(n) = world.nodes.get_mut(&node) {
                    n.sync_us_max = sync_us_max;
                }
            }
            Fault::PaceDisk { node, bytes_a_second } => {
                let pace = (bytes_a_second > 0).then_some(bytes_a_second);
                world.nodes[&node].disk.pace(pace);
            }
            Fault::BitFlip { node, at } => flip(world, node, at),
            Fault::FlipStore { node, at } => flip_store(world, node, at),
            Fault::FlipIdentity { node, both, at } => flip_identity(world, node, both, at),
            Fault::Misdirect { node, from, to } => {
                if let Some(n) = world.nodes.get_mut(&node)
                    && n.up.is_none()
                    && n.disk.misdirect(from, to)
                {
                    n.flipped = true;
                }
            }
            Fault::Wipe { node, down_us } => world.wipe(node, down_us),
            Fault::Burst { node, writes } => world.burst(node, writes),
            Fault::Reads { node, count } => {
                world.ask_directly(node, vec![Request::Read; count as usize]);
            }
            Fault::Sweep { node, from, keys } => {
                world.ask_directly(node, sweep(from, keys));
            }
            Fault::Operate { what, at } => return world.operate(what, at),
            Fault::CopyDisk { node } => world.copy_disk(node),
            Fault::OldCopy { node } => return world.old_copy(node),
            Fault::Rush { for_us } => world.rush(for_us),
            Fault::Compact { node } => {
                let up = world.nodes.get(&node).and_then(|n| n.up.as_ref());
                up.into_iter().for_each(|up| up.reader.compact());
                world.start_storing(node);
                world.ask_directly(node, vec![Request::Flush { cut: true }]);
            }
            Fault::Transfer { node, to } => world.ask_directly(node, vec![Request::Transfer(to)]),
        }
        Ok(())
    }
}

fn others(world: &World, node: NodeId) -> Vec<NodeId> {
    world.nodes.keys().copied().filter(|&id| id != node).collect()
}

/// Turns over one bit of the log that is not in its last batch: that one cannot be told from a torn
/// write (docs/formats.md).
fn flip(world: &mut World, node: NodeId, at: u64) {
    let Some(n) = world.nodes.get_mut(&node) else { return };
    if n.up.is_some() {
        return;
    }
    if let Some((path, byte)) = n.disk.settled_byte(at) {
        n.flipped = true;
        hurt(world, node, &path, byte, at);
    }
}

/// Turns over one bit of a byte, or makes its sector one that cannot be read: `at` chooses.
fn hurt(world: &mut World, node: NodeId, path: &Path, byte: usize, at: u64) {
    let Some(n) = world.nodes.get_mut(&node) else { return };
    if at.count_ones().is_multiple_of(2) {
        n.disk.flip(path, byte, (at % 8) as u8);
        return;
    }
    n.disk.spoil(path, byte);
    world.count(match FileKind::of(path) {
        FileKind::Identity => "unreadable sectors of the identity",
        FileKind::Log => "unreadable sectors of the log",
        FileKind::Manifest => "unreadable sectors of the manifest",
        _ => "unreadable sectors of tables",
    });
}

fn flip_identity(world: &mut World, node: NodeId, both: bool, at: u64) {
    let Some(n) = world.nodes.get_mut(&node) else { return };
    if n.up.is_some() || n.identity == 0 || (!both && n.hurt) {
        return;
    }
    let copies = Identity::copies(&n.disk.copy(), Path::new(DATA));
    if !both && !copies.iter().all(|(_, copy)| matches!(copy, Ok(IdentityCopy::Good(..)))) {
        // It is made good from the other one.
        return;
    }
    n.hurt = true;
    let mut files = n.disk.files();
    files.retain(|(path, len)| path.to_string_lossy().contains("identity-") && *len > 0);
    let chosen = if both { files.len() } else { 1 };
    n.flipped |= both;
    for (path, len) in files.iter().cycle().skip((at % 2) as usize).take(chosen) {
        hurt(world, node, path, (at >> 8) as usize % len, at);
    }
}

fn flip_store(world: &mut World, node: NodeId, at: u64) {
    // It heals from the others, who must be able to do without.
    if !world.can_lose(node) {
        return;
    }
    let Some(n) = world.nodes.get_mut(&node) else { return };
    let runs = n.up.is_some();
    let mut files = n.disk.files();
    files.retain(|(path, len)| path.parent().is_some_and(|d| d.ends_with(STORE_DIR)) && *len > 0);
    // What means nothing cannot be damaged.
    files.retain(|(path, _)| !path.ends_with("reserve"));
    if runs {
        // What it reads again as long as it runs.
        files.retain(|(path, _)| FileKind::of(path) == FileKind::Table);
    }
    if let Some((path, len)) = files.get((at >> 40) as usize % files.len().max(1)) {
        // One of two copies costs nothing, whatever else goes wrong.
        let is_copy = path.to_string_lossy().contains("manifest-");
        if is_copy && !n.manifest_hurt {
            n.manifest_hurt = true;
            world.count("bit flip in one manifest copy");
        } else {
            n.store_flipped = true;
        }
        hurt(world, node, path, (at >> 8) as usize % len, at);
    }
}
