//! The applier's thread, and the way of an answer to whoever waits for it.

use super::logging::info;
use super::peers::Outgoing;
use super::{ClientHandle, Shared, fatal, lock};
use crate::kv::{LsmStore, Staged};
use crate::node::{Answer, Applier, Input, ReplyTo, Work};
use crate::raft::Configuration;
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
    while let Ok(work) = inbox.recv() {
        let applied = match work {
            Work::Apply(work) => applier.handle(work),
            Work::Flush => {
                applier.flush();
                continue;
            }
            Work::Install { snapshot, index } => {
                match applier.install(snapshot, index, first) {
                    Ok(Some(mark)) => {
                        info!("installed a snapshot index={} term={}", mark.index, mark.term);
                        let _ = shared.raft.send(Input::Installed { mark });
                    }
                    Ok(None) => info!("a snapshot came too late: its index is applied already"),
                    Err(e) => fatal(format_args!("cannot install a snapshot, the node stops: {e}")),
                }
                *lock(&shared.fetching) = None;
                continue;
            }
        };
        match applied {
            Ok(applied) => {
                deliver(shared, applied.answers);
                shared.raft.applied(applied.index, applied.flushed);
                if applied.rest_us > 0 {
                    thread::sleep(Duration::from_micros(applied.rest_us));
                }
            }
            Err(e) => fatal(format_args!("cannot apply, the node stops: {e}")),
        }
    }
}

/// Hands out answers. Whoever is gone is passed over.
pub(crate) fn deliver(shared: &Shared, answers: Vec<(ReplyTo<ClientHandle>, Answer)>) {
    for (reply_to, answer) in answers {
        match reply_to {
            ReplyTo::Client { client, request } => {
                client.0.put(request, answer);
            }
            ReplyTo::Peer { node, id } => {
                let links = shared.links.read().unwrap_or_else(PoisonError::into_inner);
                if let (Some(link), Answer::Write(verdict)) = (links.get(&node), answer) {
                    let _ = link.send(Outgoing::ForwardAnswer { id, verdict });
                }
            }
        }
    }
}
