//! A snapshot on its way from one node to another: both ends, without a connection.
//!
//! The follower asks, the other side answers: first what the snapshot consists of, then piece after
//! piece. [`Fetch`] is the follower's end. It decides what to ask next, keeps what it was told on
//! disk, and does the merging into its own store a step at a time. When the connection breaks, it
//! begins again with another one and asks only for what is missing; so it does after a restart, and
//! when the other side has gone on to newer tables meanwhile. [`Source`] is the end that has the
//! data: any node whose store reaches far enough.
//!
//! Left out: dialing, pace, and giving up, which are the owner's; and the install, which is the
//! applier's.

use crate::env::Disk;
use crate::kv::{Export, INCOMING_DIR, Import, LsmReader, Piece, Sealed, Staged, StoreError};
use crate::raft::Index;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a follower asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// What there is, if it reaches to this index.
    Begin {
        /// Index that it must reach.
        index: Index,
    },
    /// A piece of what the last [`Told::Begins`] described.
    Piece(Piece),
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The manifest of what there is.
    Begins {
        /// Its bytes (docs/formats.md, "Manifest").
        manifest: Vec<u8>,
    },
    /// The piece that was asked for.
    Piece {
        /// Which.
        piece: Piece,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// There is no such thing here: begin again, perhaps elsewhere.
    Gone,
}

/// The end that has the data.
#[derive(Debug)]
pub struct Source {
    reader: LsmReader,
    export: Option<Export>,
}

impl Source {
    /// Gives what this store holds.
    pub fn new(reader: LsmReader) -> Source {
        Source { reader, export: None }
    }

    /// Answers.
    ///
    /// # Errors
    /// The store's: nothing that cannot be read is passed on.
    pub fn answer(&mut self, ask: Ask) -> Result<Told, StoreError> {
        match ask {
            Ask::Begin { index } => {
                let export = self.reader.export();
                if export.applied() < index {
                    return Ok(Told::Gone);
                }
                let manifest = export.manifest();
                self.export = Some(export);
                Ok(Told::Begins { manifest })
            }
            Ask::Piece(piece) => match &self.export {
                Some(export) if export.holds(piece) => {
                    Ok(Told::Piece { piece, bytes: export.read(piece)? })
                }
                _ => Ok(Told::Gone),
            },
        }
    }
}

/// What a fetch wants next.
#[derive(Debug)]
pub enum Next {
    /// Ask this.
    Ask(Ask),
    /// Come again: a piece of work was done.
    Again,
    /// For the applier.
    Done(Staged),
}

/// The follower's end.
pub struct Fetch {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    reader: LsmReader,
    index: Index,
    import: Option<Import>,
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fetch({}, {:?})", self.index, self.import)
    }
}

impl Fetch {
    /// Fetches what reaches to `index`, into the data directory `data`.
    pub fn new(disk: Arc<dyn Disk>, data: &Path, reader: LsmReader, index: Index) -> Fetch {
        Fetch { disk, dir: data.join(INCOMING_DIR), reader, index, import: None }
    }

    /// Another offer came: what is fetched from now on need not reach further than that. A new leader
    /// may have an older snapshot than the one before, and enough entries behind it.
    pub fn aim(&mut self, index: Index) {
        self.index = index;
    }

    /// A connection is there, a new one perhaps.
    pub fn begin(&mut self) -> Ask {
        Ask::Begin { index: self.index }
    }

    /// Bytes of the snapshot, and of those that are still missing; none before it has begun.
    pub fn progress(&self) -> Option<(u64, u64)> {
        self.import.as_ref().map(Import::bytes)
    }

    /// There is no space for what comes: it is begun again some time later, with what is here.
    pub fn set_back(&mut self) {
        self.import = None;
    }

    /// What to do next.
    ///
    /// # Errors
    /// The disk's: the node stops, unless only space is missing ([`Fetch::set_back`]).
    pub fn go_on(&mut self) -> Result<Next, StoreError> {
        let Some(import) = &mut self.import else { return Ok(Next::Ask(self.begin())) };
        if let Some(piece) = import.missing() {
            return Ok(Next::Ask(Ask::Piece(piece)));
        }
        match LsmReader::seal(import)? {
            Sealed::Working | Sealed::Damaged => Ok(Next::Again),
            Sealed::Done(staged) => Ok(Next::Done(staged)),
        }
    }

    /// The other side has said something. What was not asked for is passed over.
    ///
    /// # Errors
    /// As [`Fetch::go_on`]. What is no manifest is asked for again.
    pub fn told(&mut self, told: Told) -> Result<(), StoreError> {
        match told {
            Told::Begins { manifest } => {
                // Its files are closed before they are looked at again.
                self.import = None;
                let disk = Arc::clone(&self.disk);
                match self.reader.import(disk, &self.dir, &manifest) {
                    Ok(import) => self.import = Some(import),
                    Err(StoreError::Damaged { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
            Told::Piece { piece, bytes } => {
                if let Some(import) = &mut self.import
                    && import.missing() == Some(piece)
                    && bytes.len() == piece.len
                {
                    import.put(piece, &bytes).map_err(StoreError::from)?;
                }
            }
            Told::Gone => self.import = None,
        }
        Ok(())
    }

    /// It is over: what was fetched is in the store, or of no use.
    ///
    /// # Errors
    /// The disk's.
    pub fn discard(&mut self) -> Result<(), StoreError> {
        let import = self.import.take();
        import.map_or(Ok(()), |import| import.discard().map_err(StoreError::from))
    }
}
