//! The log writer's thread, and the one beside it that makes spare segments.

use super::logging::{debug, warning};
use super::{ClientHandle, Shared, fatal};
use crate::node::recording::{LogNote, LogStep, Record, put_body};
use crate::node::{Input, LogEffects, LogEvent, LogWriter};
use crate::wal::Preparer;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

pub(crate) fn run(
    mut writer: LogWriter,
    inbox: &Receiver<LogEvent>,
    to_self: Sender<LogEvent>,
    shared: &Arc<Shared>,
) {
    let (orders, to_make) = channel::<Preparer>();
    let maker = thread::Builder::new().name("spare-maker".into());
    if let Err(e) = maker.spawn(move || make_spares(&to_make, &to_self)) {
        fatal(format_args!("cannot start a thread: {e}"));
    }
    loop {
        let now_us = shared.clock.now_us();
        match writer.step(now_us) {
            Ok(effects) => {
                let step = LogStep::of(&effects, now_us);
                if step.is_news() {
                    shared.record(|out| put_body(out, &Record::LogStep(step)));
                }
                act(effects, &orders, shared);
            }
            Err(e) => fatal(format_args!("{e}")),
        }
        let wait_us = writer.next_step_us().saturating_sub(shared.clock.now_us());
        match inbox.recv_timeout(Duration::from_micros(wait_us)) {
            Ok(event) => handle(&mut writer, event, shared),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        inbox.try_iter().for_each(|event| handle(&mut writer, event, shared));
    }
}

fn handle(writer: &mut LogWriter, event: LogEvent, shared: &Shared) {
    shared.record(|out| put_body(out, &Record::LogEvent(LogNote::of(&event))));
    writer.handle(event);
}

fn act(effects: LogEffects, orders: &Sender<Preparer>, shared: &Shared) {
    let LogEffects { written, cut, log_bytes, order, spare_failed, lacks_space } = effects;
    if let Some(written) = written {
        let persisted: Input<ClientHandle> = Input::Persisted { seq: written.seq, log_bytes };
        let _ = shared.raft.send(persisted);
    }
    if let Some(cut) = cut {
        if cut.segments > 0 {
            let (through, segments) = (cut.through, cut.segments);
            debug!("cut the log through={through} segments={segments} bytes={log_bytes}");
        }
        let _ = shared.raft.send(Input::Compacted { log_bytes });
    }
    shared.node.log_bytes.store(log_bytes, Ordering::Relaxed);
    if let Some(order) = order {
        // The maker lives as long as this thread.
        let _ = orders.send(order);
    }
    if let Some(e) = spare_failed {
        warning!("no spare log segment, the next one is tried later: {e}");
    }
    shared.node.reader.lacks_space(lacks_space);
}

fn make_spares(orders: &Receiver<Preparer>, done: &Sender<LogEvent>) {
    while let Ok(order) = orders.recv() {
        if done.send(LogEvent::Spare(order.finish())).is_err() {
            return;
        }
    }
}
