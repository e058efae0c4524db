//! What goes to a peer from the log file: entries that the core does not have in memory any more.

use crate::raft::{Body, LogRead, Message};
use crate::wal::{LogReader, ReadError};

/// Bytes of entries read from the log file for one message.
pub const LOG_MESSAGE_BYTES: usize = 1 << 20;

/// Turns one [`LogRead`] into as many messages as it needs, one at a time.
#[derive(Debug)]
pub struct LogMessages {
    read: LogRead,
}

impl LogMessages {
    /// The messages for what the core wants sent.
    pub fn new(read: LogRead) -> LogMessages {
        LogMessages { read }
    }

    /// The next message, none when all are made, or when the log has changed since: then nothing
    /// more must be sent, and the core will notice that no answer comes.
    ///
    /// # Errors
    /// The entries cannot be read; nothing more is to be sent.
    pub fn next(&mut self, log: &LogReader) -> Result<Option<Message>, ReadError> {
        let LogRead { message, first, last, last_term } = &mut self.read;
        if *first > *last {
            return Ok(None);
        }
        let piece = log.read(*first, *last, LOG_MESSAGE_BYTES)?;
        // Looked at after the piece: if the last entry is still the one that was meant, so was
        // everything before it (Log Matching).
        let meant = log.read(*last, *last, 0)?.first().is_some_and(|e| e.term == *last_term);
        let Some(end) = piece.last().map(|e| (e.index, e.term)).filter(|_| meant) else {
            *first = *last + 1;
            return Ok(None);
        };
        let mut part = message.clone();
        if let Body::AppendEntries { entries, .. } = &mut part.body {
            *entries = piece;
        }
        // The next message continues where this one ends.
        if let Body::AppendEntries { prev_index, prev_term, .. } = &mut message.body {
            (*prev_index, *prev_term) = end;
        }
        *first = end.0 + 1;
        Ok(Some(part))
    }
}
