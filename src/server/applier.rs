//! The applier's thread, and the way of an answer to whoever waits for it.

use super::logging::info;
use super::mailbox::DirectWrite;
use super::peer_out::Command;
use super::{ClientHandle, Shared, fatal};
use crate::api::answers::admit;
use crate::api::budget::Share;
use crate::kv::{LsmStore, Staged};
use crate::node::recording::{DidNote, Record, TaskNote, put_body};
use crate::node::{
    Answer, Applied, Applier, ApplyEffects, ApplyTask, Input, Installed, Outgoing, ReceiverEvent,
    ReplyTo,
};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

pub(crate) fn run(
    mut applier: Applier<LsmStore, ClientHandle>,
    inbox: &Receiver<ApplyTask<ClientHandle, Staged>>,
    shared: &Arc<Shared>,
) {
    loop {
        let rest_us = applier.take_rest_us();
        if rest_us > 0 {
            let until_us = shared.clock.now_us() + rest_us;
            let _ = shared.raft.send(Input::Rests { until_us });
            thread::sleep(Duration::from_micros(rest_us));
            // What comes meanwhile may be more urgent than to rest on.
            while let Ok(task) = inbox.try_recv() {
                take(task, &mut applier, shared);
            }
            continue;
        }
        match applier.step() {
            Ok(Some(effects)) => {
                shared.record(|out| {
                    let (digest, now_us) = (applier.machine().digest(), shared.clock.now_us());
                    let did = DidNote::of(&effects, digest, now_us, ClientHandle::number);
                    put_body(out, &Record::Did(did));
                });
                act(effects, shared);
            }
            Ok(None) => match inbox.recv() {
                Ok(task) => take(task, &mut applier, shared),
                Err(_) => return,
            },
            Err(e) => fatal(format_args!("cannot apply, the node stops: {e}")),
        }
    }
}

fn take(
    task: ApplyTask<ClientHandle, Staged>,
    applier: &mut Applier<LsmStore, ClientHandle>,
    shared: &Shared,
) {
    shared.record(|out| put_body(out, &Record::Task(TaskNote::of(&task))));
    applier.handle(task);
}

fn act(effects: ApplyEffects<ClientHandle>, shared: &Shared) {
    let ApplyEffects { applied, answers, digest, damage, installed, repair } = effects;
    deliver(shared, answers, DirectWrite::write);
    if let Some(Applied { index, flushed }) = applied {
        let _ = shared.raft.send(Input::Applied { index, flushed });
    }
    if let Some((index, digest)) = digest {
        let _ = shared.raft.send(Input::Digest { node: shared.node.id, index, digest });
    }
    if let Some(e) = damage {
        shared.store_unreadable(&e);
    }
    if let Some(installed) = installed {
        let _ = shared.snapshots.send(ReceiverEvent::Installed);
        match installed {
            Installed::Done { mark, repaired } => {
                info!("installed a snapshot index={} term={}", mark.index, mark.term);
                if repaired {
                    shared.node.damaged.store(false, Ordering::Relaxed);
                    info!("the store is repaired");
                }
                let _ = shared.raft.send(Input::Installed { mark });
            }
            Installed::TooLate => info!("a snapshot came too late: its index is applied already"),
            Installed::Unread => {
                info!("a snapshot is fetched again: the disk does not give it back");
            }
        }
    }
    if let Some(index) = repair {
        let _ = shared.snapshots.send(ReceiverEvent::Damaged { index });
    }
}

/// Hands out answers; what is to be written to a client's socket goes to `write`. Whoever is gone is
/// passed over.
pub(crate) fn deliver(
    shared: &Shared,
    answers: Vec<(ReplyTo<ClientHandle>, Answer)>,
    mut write: impl FnMut(DirectWrite),
) {
    for (reply_to, mut answer) in answers {
        match reply_to {
            ReplyTo::Client { client, request } => {
                if let Some(last) = client.0.put(request, answer) {
                    write(last);
                }
            }
            ReplyTo::Peer { node, id } => {
                let mut held = Share::new(&shared.node.answers);
                admit(&mut answer, &mut 0, &mut held);
                let Some(outgoing) = Outgoing::answer(id, answer) else { continue };
                let senders = shared.bulk_senders.read().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, sender)) = senders.get(&node) {
                    let _ = sender.send(Command::Answer { outgoing, held });
                }
            }
        }
    }
}
