//! The log writer's thread: whatever is queued becomes one batch with one `fdatasync`.
//!
//! While it syncs, the next batch accumulates in its inbox. Spare segments are made by a thread
//! beside it.

use super::logging::{debug, warning};
use super::{ClientHandle, Shared, fatal};
use crate::node::Input;
use crate::raft::{Index, Persist};
use crate::wal::{Preparer, Spare, Wal, WalError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// What the log writer is sent.
#[derive(Debug)]
pub(crate) enum LogWork {
    /// Make this durable.
    Persist(Persist),
    /// The log up to there is not needed any more.
    Compact(Index),
    /// A spare segment is ready, or could not be made.
    Spare(Result<Spare, WalError>),
}

/// Requests written as one batch at most: bounds the memory of one write.
const BATCH_REQUESTS_MAX: usize = 256;

pub(crate) fn run(
    mut wal: Wal,
    inbox: &Receiver<LogWork>,
    to_self: Sender<LogWork>,
    shared: &Arc<Shared>,
) {
    let (spares, orders) = channel::<Preparer>();
    let maker = thread::Builder::new().name("spare-maker".into());
    let made = maker.spawn(move || make_spares(&orders, &to_self));
    if let Err(e) = made {
        fatal(format_args!("cannot start a thread: {e}"));
    }
    order_spare(&mut wal, &spares);
    let mut batch: Vec<Persist> = Vec::new();
    while let Ok(first) = inbox.recv() {
        let mut next = Some(first);
        let mut through = None;
        while let Some(work) = next {
            match work {
                LogWork::Persist(persist) => batch.push(persist),
                LogWork::Compact(index) => through = Some(index),
                LogWork::Spare(spare) => {
                    if let Err(e) = &spare {
                        warning!("no spare log segment, the next one is tried later: {e}");
                    }
                    wal.prepared(spare);
                }
            }
            next = if batch.len() < BATCH_REQUESTS_MAX { inbox.try_recv().ok() } else { None };
        }
        if let Some(index) = through {
            compact(&mut wal, index, shared);
            order_spare(&mut wal, &spares);
        }
        if batch.is_empty() {
            continue;
        }
        match wal.write(&batch) {
            Ok(durable) => {
                let (seq, log_bytes) = (durable.seq, wal.bytes());
                let persisted: Input<ClientHandle> = Input::Persisted { seq, log_bytes };
                if shared.raft.send(persisted).is_err() {
                    return;
                }
            }
            Err(e) => {
                fatal(format_args!("the log cannot be written, nothing more is promised: {e}"))
            }
        }
        batch.clear();
        shared.log_bytes.store(wal.bytes(), Ordering::Relaxed);
        order_spare(&mut wal, &spares);
    }
}

fn compact(wal: &mut Wal, through: Index, shared: &Shared) {
    match wal.compact(through) {
        Ok(segments) => {
            let log_bytes = wal.bytes();
            if segments > 0 {
                debug!("cut the log through={through} segments={segments} bytes={log_bytes}");
            }
            shared.log_bytes.store(log_bytes, Ordering::Relaxed);
            let _ = shared.raft.send(Input::Compacted { log_bytes });
        }
        Err(e) => fatal(format_args!("the log cannot be cut, nothing more is promised: {e}")),
    }
}

fn order_spare(wal: &mut Wal, spares: &Sender<Preparer>) {
    if let Some(order) = wal.prepare() {
        // The maker lives as long as this thread.
        let _ = spares.send(order);
    }
}

fn make_spares(orders: &Receiver<Preparer>, done: &Sender<LogWork>) {
    while let Ok(mut order) = orders.recv() {
        let spare = loop {
            match order.step() {
                Ok(None) => {}
                Ok(Some(spare)) => break Ok(spare),
                Err(e) => break Err(e),
            }
        };
        if done.send(LogWork::Spare(spare)).is_err() {
            return;
        }
    }
}
