//! The backup that a node was told to begin from: whether it is there, whole, and needed.
//!
//! It is read from end to end before anything is made of it: where nothing is stored yet, before the directory is made;
//! and where a crash has cut off a restore, before that goes on, since the file may have been spoiled meanwhile. A
//! node that is there already needs none: its file may be gone.
//!
//! Left out: whether it is the backup that this node began from, which [`super::Startup`] compares; and what is
//! taken from it, which [`super::open`] does.

use crate::env::Disk;
use crate::kv::{Backup, LsmError};
use crate::wal::Identity;
use std::io;
use std::path::Path;

/// See the module.
#[derive(Debug)]
pub struct Restore<'a> {
    path: Option<&'a Path>,
    backup: Option<Backup>,
    /// It was read from end to end.
    is_checked: bool,
}

impl<'a> Restore<'a> {
    /// Looks at the backup, if one was named. `is_new`: nothing was ever stored in the data directory. `say` gets
    /// lines for a person, warnings with `true`.
    ///
    /// # Errors
    /// It is no whole backup, or not there although it is needed; with its path.
    pub fn look(
        disk: &dyn Disk,
        path: Option<&'a Path>,
        is_new: bool,
        mut say: impl FnMut(bool, &str),
    ) -> Result<Restore<'a>, (&'a Path, LsmError)> {
        let Some(path) = path else {
            return Ok(Restore { path: None, backup: None, is_checked: false });
        };
        let opened = Backup::open(disk, path).and_then(|backup| {
            if is_new {
                let applied = backup.contents().applied;
                say(false, &format!("checks the backup {} applied={applied}", path.display()));
                backup.verify()?;
            }
            Ok(backup)
        });
        let backup = match opened {
            Ok(backup) => Some(backup),
            Err(LsmError::Io { source, .. })
                if !is_new && source.kind() == io::ErrorKind::NotFound =>
            {
                let there = path.display();
                say(true, &format!("the backup {there} is not there; goes on with the data"));
                None
            }
            Err(e) => return Err((path, e)),
        };
        Ok(Restore { path: Some(path), backup, is_checked: is_new })
    }

    /// The backup.
    pub fn backup(&self) -> Option<&Backup> {
        self.backup.as_ref()
    }

    /// Looks again once it is known who the node is.
    ///
    /// # Errors
    /// A restore that was cut off cannot go on, since the backup is not whole any more; with its path.
    pub fn check(&self, identity: &Identity) -> Result<(), (&'a Path, LsmError)> {
        let unchecked = self.backup.as_ref().filter(|_| identity.restoring && !self.is_checked);
        let (Some(backup), Some(path)) = (unchecked, self.path) else { return Ok(()) };
        backup.verify().map_err(|e| (path, e))
    }
}
