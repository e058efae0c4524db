//! From what is on disk to what the components begin with.
//!
//! The order matters for crashes during the very first start: the identity is stored, then the log
//! is made, then the identity says that the log was made. From then on a missing log is damage.

use crate::env::Disk;
use crate::raft::{Configuration, Restored, RestoredLog};
use crate::wal::{self, Identity, LOG_DIR, Recovered, Wal, WalError};
use std::path::Path;
use std::sync::Arc;

/// Opens the log of a node in its data directory, or makes it at the very first start.
///
/// # Errors
/// Those of [`Wal::open`] and [`Identity::store`].
pub fn open_log(
    disk: &Arc<dyn Disk>,
    data: &Path,
    identity: &Identity,
    segment_bytes: u64,
) -> Result<(Wal, Recovered), WalError> {
    let options = wal::Options {
        segment_bytes,
        identity: identity.identity,
        must_exist: identity.log_created,
    };
    let opened = Wal::open(Arc::clone(disk), &data.join(LOG_DIR), options)?;
    if !identity.log_created {
        Identity { log_created: true, ..identity.clone() }.store(&**disk, data)?;
    }
    Ok(opened)
}

/// What the consensus core begins with. `applied` is the store's applied index.
pub fn restored(identity: &Identity, recovered: &Recovered, applied: u64) -> Restored {
    let first = Configuration::of_voters(identity.cluster, identity.members.clone());
    let before = recovered.configuration_before.clone();
    let mut configurations = vec![before.unwrap_or_else(|| (0, Arc::new(first)))];
    configurations.extend(recovered.configurations.iter().cloned());
    Restored {
        hard_state: recovered.hard_state,
        log: RestoredLog {
            base: recovered.first_index - 1,
            base_term: recovered.prev_term,
            runs: recovered.terms.clone(),
            last: recovered.last_index,
            configurations,
        },
        applied,
    }
}
