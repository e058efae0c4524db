//! The log writer of a recorded life: the component of production on a disk in memory.
//!
//! The log that the process found is not in the recording, but for the term of each index and the configurations. So
//! the log here holds entries of those terms that say nothing: bytes, segments and spares differ from the process',
//! and what is compared is which requests are written together, what is said to be durable, and what may be cut.

use crate::env::Disk;
use crate::node::recording::{LogNote, LogStep};
use crate::node::{LogEvent, LogWriter};
use crate::raft::{Entry, Index, Payload, Persist, Restored, SnapshotMark, Term};
use crate::sim::checks::{Violation, violated};
use crate::sim::dice::Dice;
use crate::sim::disk::SimDisk;
use crate::wal::{self, LogReader, Preparer, Wal, WalError};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// Segments are as small as a log's may be: they lie in memory.
const SEGMENT_BYTES: u64 = wal::SEGMENT_BYTES_MIN;

#[derive(Debug)]
pub(super) struct LogReplay {
    writer: LogWriter,
    orders: VecDeque<Preparer>,
    reader: LogReader,
}

impl LogReplay {
    /// With a log of the same terms as the one that was found.
    pub(super) fn begin(
        restored: &Restored,
        batch_requests_max: u64,
    ) -> Result<LogReplay, WalError> {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(Dice::new(1)));
        let options = wal::Options { segment_bytes: SEGMENT_BYTES, identity: 1, must_exist: false };
        let (mut wal, _) = Wal::open(disk, Path::new("/log"), options)?;
        let log = &restored.log;
        let reset = match log.configurations.first() {
            Some((_, configuration)) if log.base > 0 => Some(SnapshotMark {
                index: log.base,
                term: log.base_term,
                configuration: Arc::clone(configuration),
            }),
            _ => None,
        };
        let hard_state = Some(restored.hard_state);
        wal.write(&[Persist { seq: 0, hard_state, reset, entries: Vec::new() }])?;
        let ends = log.runs.iter().skip(1).map(|run| run.0).chain([log.last + 1]);
        for (&(first, term), end) in log.runs.iter().zip(ends) {
            let entries = (first..end).map(|index| entry(restored, index, term)).collect();
            wal.write(&[Persist { seq: 0, hard_state: None, reset: None, entries }])?;
        }
        let reader = wal.reader();
        let most = usize::try_from(batch_requests_max).unwrap_or(usize::MAX).max(1);
        Ok(LogReplay { writer: LogWriter::new(wal, most), orders: VecDeque::new(), reader })
    }

    pub(super) fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// It is told to make that durable.
    pub(super) fn persist(&mut self, persist: Persist) {
        self.writer.handle(LogEvent::Persist(persist));
    }

    /// It is told anything else.
    pub(super) fn event(&mut self, note: LogNote) {
        match note {
            LogNote::Persist { .. } => {}
            LogNote::Compact { through } => self.writer.handle(LogEvent::Compact(through)),
            LogNote::Spare { made } => {
                let order = self.orders.pop_front();
                if let Some(order) = order.filter(|_| made) {
                    self.writer.handle(LogEvent::Spare(order.finish()));
                }
            }
        }
    }

    /// It makes a step, which must come to the same.
    pub(super) fn step(&mut self, recorded: &LogStep) -> Result<(), Violation> {
        let effects = match self.writer.step(recorded.now_us) {
            Ok(effects) => effects,
            Err(e) => return violated("the log writer does the same", format!("an error: {e}")),
        };
        let step = LogStep::of(&effects, recorded.now_us);
        self.orders.extend(effects.order);
        if (step.written, step.cut) != (recorded.written, recorded.cut) {
            let seen = |s: &LogStep| format!("written {:?}, cut {:?}", s.written, s.cut);
            let detail = format!("recorded {}; replayed {}", seen(recorded), seen(&step));
            return violated("the log writer does the same", detail);
        }
        Ok(())
    }
}

fn entry(restored: &Restored, index: Index, term: Term) -> Entry {
    let known = restored.log.configurations.iter().find(|(at, _)| *at == index);
    let payload = match known {
        Some((_, configuration)) => Payload::Configuration(Arc::clone(configuration)),
        None => Payload::Noop,
    };
    Entry { index, term, payload }
}
