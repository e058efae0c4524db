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
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

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

/// Without space, a spare is tried again after so long.
const SPACE_PAUSE: Duration = Duration::from_secs(1);

/// The log waits for space only so long before it is written all the same, and the process ends if
/// that fails: so many attempts, with this pause.
const SPACE_TRIES: usize = 200;
const SPACE_STEP: Duration = Duration::from_millis(10);

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
    loop {
        let lacks_space = wal.lacks_space();
        // The store's reserve is for the log, too.
        shared.reader.lacks_space(lacks_space);
        let mut next = match lacks_space {
            false => inbox.recv().ok(),
            true => match inbox.recv_timeout(SPACE_PAUSE) {
                Ok(work) => Some(work),
                Err(RecvTimeoutError::Disconnected) => None,
                Err(RecvTimeoutError::Timeout) => {
                    wal.hope();
                    order_spare(&mut wal, &spares);
                    continue;
                }
            },
        };
        if next.is_none() {
            return;
        }
        let mut through = None;
        while let Some(work) = next {
            match work {
                LogWork::Persist(persist) => batch.push(persist),
                LogWork::Compact(index) => through = Some(index),
                LogWork::Spare(spare) => {
                    if let Err(e) = &spare
                        && !(wal.lacks_space() && e.is_out_of_space())
                    {
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
        wait_for_space(&mut wal, &batch, shared);
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

/// Makes the segments that are needed now. If there is no space for them, the store gives up its
/// reserve as soon as it hears of that.
fn wait_for_space(wal: &mut Wal, batch: &[Persist], shared: &Shared) {
    let mut tries = 0;
    while tries < SPACE_TRIES
        && let Some(bytes) = wal.needs_segment(batch)
    {
        match wal.make_spare(bytes) {
            Ok(()) => {}
            Err(e) if e.is_out_of_space() => {
                shared.reader.lacks_space(true);
                thread::sleep(SPACE_STEP);
                tries += 1;
            }
            // Whatever else the disk says, it says to the log, too.
            Err(_) => return,
        }
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
