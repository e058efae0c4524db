//! Backups that a client takes: a consistent cut, handed out in pieces over its own connection.
//!
//! A backup begins like a linearizable read, so that it holds every write that was answered before
//! it was asked for; then the store makes that durable, and the tables of that moment stay readable
//! until the connection ends. Nobody waits for it, and what is written meanwhile is not in it.
//! What a backup file looks like is the client's business (docs/formats.md, "Backup").

use super::Shared;
use super::connection::{DAMAGED, Session, failure};
use crate::kv::{Piece, StoreError};
use crate::node::{
    Answer, Request, SenderEffect, SnapshotRequest, SnapshotResponse, SnapshotSender,
};
use crate::wire::client::{Answer as Reply, Class, Failure};
use std::sync::Arc;

/// The backup of one connection.
pub(crate) struct Backups {
    sender: SnapshotSender,
}

impl Backups {
    /// None begun.
    pub(crate) fn new(shared: &Arc<Shared>) -> Backups {
        Backups { sender: SnapshotSender::new(shared.reader.clone()) }
    }

    /// Begins one.
    pub(crate) fn begin(
        &mut self,
        session: &mut Session,
        deadline_us: u64,
    ) -> Result<Reply, Failure> {
        let refused = |session: &Session, answer: Option<Answer>| match answer {
            Some(Answer::Read(Err(refusal)) | Answer::Flushed(Err(refusal))) => {
                session.shared.refused(refusal)
            }
            _ => failure(Class::Unavailable, "the node is stopping".to_string()),
        };
        let read = session.call(vec![(deadline_us, Request::Read)]).pop();
        if !matches!(read, Some(Answer::Read(Ok(())))) {
            return Err(refused(session, read));
        }
        let flush = Request::Flush { cut: false };
        let flushed = session.call(vec![(deadline_us, flush)]).pop();
        let Some(Answer::Flushed(Ok(index))) = flushed else {
            return Err(refused(session, flushed));
        };
        match self.sender.begin(index) {
            SnapshotResponse::Begins { manifest } => Ok(Reply::Backup { manifest }),
            _ => Err(failure(Class::Unavailable, "the store has gone back; try again".to_string())),
        }
    }

    /// Reads a piece of the one that was begun.
    pub(crate) fn piece(&mut self, session: &Session, piece: Piece) -> Result<Reply, Failure> {
        match self.sender.asked(SnapshotRequest::Piece(piece)) {
            SenderEffect::Send(SnapshotResponse::Piece { bytes, .. }) => Ok(Reply::Bytes(bytes)),
            SenderEffect::Unreadable(e) => Err(unreadable(session, &e)),
            SenderEffect::Send(_) | SenderEffect::Flush => {
                let message = "the backup begun on this connection has no such piece".to_string();
                Err(failure(Class::Invalid, message))
            }
        }
    }
}

fn unreadable(session: &Session, e: &StoreError) -> Failure {
    session.shared.store_unreadable(e);
    failure(Class::Unavailable, format!("{DAMAGED}; ask another one: {e}"))
}
