//! The log writer of each node: when it hears what it is told, how long its syncs take, and the spare segments in
//! the making.

use super::checks::Violation;
use super::world::{Event, World};
use crate::node::recording::{LogNote, LogStep, Record, put_body};
use crate::node::{Cut, Input, LogEffects, LogEvent, Written};
use crate::raft::{NodeId, Payload};

impl World {
    /// Wakes a node's log writer for what it was told, or when something is due by itself.
    pub(super) fn start_writing(&mut self, node: NodeId) {
        let (now_us, hop_us) = (self.now_us, self.hop_us());
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let life = n.life;
        let Some(up) = n.up.as_ref().filter(|up| !up.writing) else { return };
        let next_us = up.log_writer.next_step_us();
        let at_us = match up.to_log.is_empty() {
            false => now_us + hop_us,
            true if next_us == u64::MAX => return,
            true => n.global_us(next_us).max(now_us + 1),
        };
        let Some(up) = &mut n.up else { return };
        if up.log_wakes_at_us.is_none_or(|at| at > at_us) {
            up.log_wakes_at_us = Some(at_us);
            self.schedule(at_us - now_us, node, life, Event::Write);
        }
    }

    pub(super) fn write(&mut self, node: NodeId) -> Result<(), Violation> {
        let now_us = self.now_us;
        let Some(n) = self.nodes.get_mut(&node) else { return Ok(()) };
        let local_us = n.local_us(now_us);
        let Some(up) = &mut n.up else { return Ok(()) };
        if up.writing || up.log_wakes_at_us.is_none_or(|at| at > now_us) {
            return Ok(());
        }
        up.log_wakes_at_us = None;
        for event in up.to_log.drain(..) {
            if let Some(recordings) = &mut self.recordings {
                let told = Record::LogEvent(LogNote::of(&event));
                recordings.put(node, |out| put_body(out, &told));
            }
            up.log_writer.handle(event);
        }
        let Ok(effects) = up.log_writer.step(local_us) else {
            n.torn = Some(up.log_writer.batch().cloned().collect());
            self.disk_failed(node, "disk error in the log writer");
            return Ok(());
        };
        let step = LogStep::of(&effects, local_us);
        if let Some(recordings) = self.recordings.as_mut().filter(|_| step.is_news()) {
            recordings.put(node, |out| put_body(out, &Record::LogStep(step)));
        }
        self.log_stepped(node, effects);
        Ok(())
    }

    fn log_stepped(&mut self, node: NodeId, effects: LogEffects) {
        let LogEffects { written, cut, log_bytes, order, lacks_space, .. } = effects;
        let now_us = self.now_us;
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let life = n.life;
        let Some(up) = &mut n.up else { return };
        let waits = written.is_none() && up.log_writer.batch().next().is_some();
        let lacked_space = std::mem::replace(&mut up.lacks_space, lacks_space);
        up.reader.lacks_space(lacks_space);
        up.waits_since_us = waits.then(|| up.waits_since_us.unwrap_or(now_us));
        up.writing = written.is_some();
        if let Some(order) = order {
            up.preparers.push_back(order);
            if up.preparers.len() == 1 {
                self.schedule(3_000, node, life, Event::Prepare);
            }
        }
        if let Some(Cut { through, segments }) = cut {
            if segments > 0 {
                self.count("log compacted");
            }
            self.note(node, "log compacted", [through, segments as u64, log_bytes, 0]);
            self.input(node, Input::Compacted { log_bytes });
        }
        if lacks_space && !lacked_space {
            self.count("log short of space");
        }
        if waits {
            self.count("log waited for space");
        }
        if lacks_space || lacked_space {
            self.start_storing(node);
        }
        match written {
            Some(written) => self.synced(node, &written, log_bytes),
            None => self.start_writing(node),
        }
    }

    /// A batch is on the platter; the log writer says so after a while.
    fn synced(&mut self, node: NodeId, written: &Written, log_bytes: u64) {
        let Some(n) = self.nodes.get(&node) else { return };
        let (life, limits, slow_us) = (n.life, n.limits, n.sync_us_max);
        let more = n.up.as_ref().is_some_and(|up| up.log_writer.batch().next().is_some());
        let Written { seq, bytes, batch } = written;
        let commands = batch.iter().flat_map(|p| &p.entries).filter_map(|e| match &e.payload {
            Payload::Command(bytes) => Some(bytes),
            _ => None,
        });
        let mut foreign = commands.filter(|bytes| {
            bytes.len() > limits.max_value_bytes && limits.check_command(bytes).is_err()
        });
        if foreign.next().is_some() {
            self.count("logged what its own flags do not allow");
        }
        if more {
            self.count("more to write than a batch holds");
        }
        if let Some(platter) = self.platters.get_mut(&node) {
            platter.written(batch);
        }
        let delay_us = self.dice.log_between(60, slow_us) + self.disk_time_us(node);
        self.note(node, "log synced", [*seq, *bytes, delay_us, 0]);
        self.schedule(delay_us, node, life, Event::Written { seq: *seq, log_bytes });
    }

    /// The log writer has said so, and goes on.
    pub(super) fn written(&mut self, node: NodeId, seq: u64, log_bytes: u64) {
        if let Some(up) = self.nodes.get_mut(&node).and_then(|n| n.up.as_mut()) {
            up.writing = false;
        }
        self.input(node, Input::Persisted { seq, log_bytes });
        self.start_writing(node);
    }

    /// A spare segment is made, one small step at a time.
    pub(super) fn prepare(&mut self, node: NodeId) {
        let Some(n) = self.nodes.get_mut(&node) else { return };
        let life = n.life;
        let Some(up) = &mut n.up else { return };
        let Some(preparer) = up.preparers.front_mut() else { return };
        let made = match preparer.step() {
            Ok(None) => {
                let delay_us = 2_000 + self.disk_time_us(node);
                self.schedule(delay_us, node, life, Event::Prepare);
                return;
            }
            Ok(Some(spare)) => Ok(spare),
            Err(e) => Err(e),
        };
        if made.is_err() && n.disk.is_dark() {
            self.disk_failed(node, "");
            return;
        }
        up.preparers.pop_front();
        let more = !up.preparers.is_empty();
        let failed = made.is_err();
        up.to_log.push_back(LogEvent::Spare(made));
        if more {
            self.schedule(2_000, node, life, Event::Prepare);
        }
        if failed {
            self.count("spare segment failed");
        }
        self.start_writing(node);
    }
}
