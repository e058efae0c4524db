//! The thread of the store's background work: what that has done is told to whom it concerns.

use super::logging::{info, warning};
use super::{ApplyQueue, Shared, fatal};
use crate::kv::{News, StoreWorker};
use crate::node::{ApplyTask, Input};

/// Works until the process ends.
pub(crate) fn run(mut worker: StoreWorker, to_applier: &ApplyQueue, shared: &Shared) {
    let mut was_full = false;
    let tell = |news| match news {
        News::Flushed(index) => {
            let _ = shared.raft.send(Input::Flushed { index });
            let _ = to_applier.send(ApplyTask::Flushed);
        }
        News::Damaged => shared.damage_met(),
        News::WantsFlush => drop(shared.raft.send(Input::FlushWanted)),
        News::Full(full) => {
            if full != was_full {
                tell_space(full);
            }
            was_full = full;
            let _ = shared.raft.send(Input::DiskFull(full));
        }
    };
    if let Err(e) = worker.run(tell) {
        fatal(format_args!("the store's background work failed, the node stops: {e}"));
    }
}

fn tell_space(full: bool) {
    if full {
        warning!(
            "the disk is full and the reserve in use: writes that add data are refused where this \
             node leads; reads and deletes go on"
        );
    } else {
        info!("the disk has space again and the reserve is whole: all writes are taken");
    }
}
