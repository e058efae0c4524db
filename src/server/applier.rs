//! The applier's thread, and the way of an answer to whoever waits for it.

use super::logging::info;
use super::mailbox::DirectWrite;
use super::peer_out::Command;
use super::{ClientHandle, Shared, fatal};
use crate::kv::{LsmStore, Staged};
use crate::node::{Answer, Applier, Input, Outgoing, ReceiverEvent, ReplyTo, Work};
use crate::raft::Configuration;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

pub(crate) fn run(
    mut applier: Applier<LsmStore>,
    inbox: &Receiver<Work<ClientHandle, Staged>>,
    first: &Configuration,
    shared: &Arc<Shared>,
) {
    // What came while the applier held.
    let mut waiting = VecDeque::new();
    loop {
        let next = if applier.is_holding() { None } else { waiting.pop_front().map(Work::Apply) };
        let Some(work) = next.or_else(|| inbox.recv().ok()) else { return };
        match work {
            Work::Apply(work) if applier.is_holding() => waiting.push_back(work),
            Work::Apply(work) => match applier.handle(work) {
                Ok(applied) => {
                    deliver(shared, applied.answers, DirectWrite::write);
                    shared.raft.applied(applied.index, applied.flushed);
                    if let Some((index, digest)) = applied.digest {
                        let node = shared.id;
                        let _ = shared.raft.send(Input::Digest { node, index, digest });
                    }
                    if let Some((held, e)) = applied.held {
                        waiting.push_front(held);
                        shared.store_unreadable(&e);
                    }
                    if applied.rest_us > 0 {
                        thread::sleep(Duration::from_micros(applied.rest_us));
                    }
                }
                Err(e) => fatal(format_args!("cannot apply, the node stops: {e}")),
            },
            Work::Flush => applier.flush(),
            Work::Hold => {
                applier.hold();
                repair(shared, &applier);
            }
            Work::Install { snapshot, index } => {
                let repairs = applier.is_holding();
                let installed = applier.install(snapshot, index, first);
                let _ = shared.snapshots.send(ReceiverEvent::Installed);
                match installed {
                    Ok(Some(mark)) => {
                        info!("installed a snapshot index={} term={}", mark.index, mark.term);
                        if repairs {
                            shared.damaged.store(false, Ordering::Relaxed);
                            info!("the store is repaired");
                        }
                        let _ = shared.raft.send(Input::Installed { mark });
                    }
                    // One that was on its way when the damage was met, and is too old.
                    Ok(None) if repairs => repair(shared, &applier),
                    Ok(None) => info!("a snapshot came too late: its index is applied already"),
                    Err(e) => fatal(format_args!("cannot install a snapshot, the node stops: {e}")),
                }
            }
        }
    }
}

/// What the store held is to be fetched from another node.
fn repair(shared: &Shared, applier: &Applier<LsmStore>) {
    let index = applier.machine().applied();
    let _ = shared.snapshots.send(ReceiverEvent::Damaged { index });
}

/// Hands out answers; what is to be written to a client's socket goes to `write`. Whoever is gone is
/// passed over.
pub(crate) fn deliver(
    shared: &Shared,
    answers: Vec<(ReplyTo<ClientHandle>, Answer)>,
    mut write: impl FnMut(DirectWrite),
) {
    for (reply_to, answer) in answers {
        match reply_to {
            ReplyTo::Client { client, request } => {
                if let Some(last) = client.0.put(request, answer) {
                    write(last);
                }
            }
            ReplyTo::Peer { node, id } => {
                let Some(outgoing) = Outgoing::answer(id, answer) else { continue };
                let senders = shared.bulk_senders.read().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, sender)) = senders.get(&node) {
                    let _ = sender.send(Command::Send(outgoing));
                }
            }
        }
    }
}
