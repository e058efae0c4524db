//! The moments at which the power can be made to fail: a step of the disk, at a file of some kind.

use std::path::Path;

/// A step that changes something on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskStep {
    /// A file is made.
    Create,
    /// Bytes are written.
    Write,
    /// A file is synced.
    Sync,
    /// A file is removed.
    Remove,
    /// The names of a directory are synced.
    SyncNames,
    /// A directory is made.
    CreateDir,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileKind {
    /// The identity of the node.
    Identity,
    /// A segment of the log, or a spare one.
    Log,
    /// The store's manifest.
    Manifest,
    /// A table.
    Table,
    /// A part of a snapshot on its way here.
    Incoming,
    /// Anything else.
    #[default]
    Other,
}

impl FileKind {
    /// What a path is for.
    pub fn of(path: &Path) -> FileKind {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        if path.to_string_lossy().contains("incoming") {
            return FileKind::Incoming;
        }
        let kinds = [
            ("identity-", FileKind::Identity),
            ("log", FileKind::Log),
            ("manifest-", FileKind::Manifest),
            ("store", FileKind::Table),
            ("table-", FileKind::Table),
        ];
        let found = kinds.iter().find(|(prefix, _)| name.starts_with(prefix));
        found.map_or(FileKind::Other, |(_, kind)| *kind)
    }
}

/// A step at a file of some kind: where the power can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The step.
    pub step: DiskStep,
    /// The file. Where names are synced, the directory that has them.
    pub file: FileKind,
}

impl Moment {
    /// All that there are in a run, and what each is called in counters.
    pub const ALL: [(Moment, &'static str); MOMENTS] = {
        use DiskStep::{Create, CreateDir, Remove, Sync, SyncNames, Write};
        use FileKind::{Identity, Incoming, Log, Manifest, Other, Table};
        const fn at(step: DiskStep, file: FileKind) -> Moment {
            Moment { step, file }
        }
        [
            (at(Create, Identity), "power lost: identity created"),
            (at(Write, Identity), "power lost: identity written"),
            (at(Sync, Identity), "power lost: identity synced"),
            (at(SyncNames, Other), "power lost: names of the data directory synced"),
            (at(CreateDir, Log), "power lost: directory of the log made"),
            (at(CreateDir, Table), "power lost: directory of the store made"),
            (at(Create, Log), "power lost: segment created"),
            (at(Write, Log), "power lost: segment written"),
            (at(Sync, Log), "power lost: segment synced"),
            (at(Remove, Log), "power lost: segment removed"),
            (at(SyncNames, Log), "power lost: names of the log synced"),
            (at(Create, Manifest), "power lost: manifest created"),
            (at(Write, Manifest), "power lost: manifest written"),
            (at(Sync, Manifest), "power lost: manifest synced"),
            (at(Create, Table), "power lost: table created"),
            (at(Write, Table), "power lost: table written"),
            (at(Sync, Table), "power lost: table synced"),
            (at(Remove, Table), "power lost: table removed"),
            (at(SyncNames, Table), "power lost: names of the store synced"),
            (at(Create, Incoming), "power lost: piece of a snapshot created"),
            (at(Write, Incoming), "power lost: piece of a snapshot written"),
            (at(Sync, Incoming), "power lost: piece of a snapshot synced"),
            (at(Remove, Incoming), "power lost: piece of a snapshot removed"),
            (at(SyncNames, Incoming), "power lost: names of a snapshot synced"),
            (at(CreateDir, Incoming), "power lost: directory of a snapshot made"),
        ]
    };

    /// Those from here on belong to a snapshot on its way here.
    pub const INCOMING: usize = 19;
    /// So many of them, the first, belong to a node's first start above all.
    pub const FIRST_START: usize = 14;

    /// What it is called in counters.
    pub fn name(self) -> Option<&'static str> {
        Moment::ALL.iter().find(|(moment, _)| *moment == self).map(|(_, name)| *name)
    }
}

/// How many there are.
const MOMENTS: usize = 25;
