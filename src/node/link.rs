//! What goes to a peer from the log file: entries that the core does not have in memory any more.

use crate::raft::{Body, EntriesRead, Entry, LogRead, MESSAGE_OVERHEAD_BYTES, Message};
use crate::wal::{LogReader, ReadError};

/// Bytes of one message that is read from the log file, unless one entry alone is larger.
pub(super) const LOG_MESSAGE_BYTES: usize = 1 << 20;

/// Makes the message that the core wants sent, and says what the replica is to be told of it: before
/// it leaves, or also when there is none. There is none when the log has changed since.
///
/// # Errors
/// The entries cannot be read.
pub(super) fn read_entries(
    read: &LogRead,
    log: &LogReader,
) -> (Result<Option<Message>, ReadError>, EntriesRead) {
    let made = entries_of(read, log).map(|found| {
        found.map(|found| {
            let mut message = read.message.clone();
            if let Body::AppendEntries { entries, .. } = &mut message.body {
                *entries = found;
            }
            message
        })
    });
    let told = EntriesRead::of(read, made.as_ref().ok().and_then(Option::as_ref));
    (made, told)
}

fn entries_of(read: &LogRead, log: &LogReader) -> Result<Option<Vec<Entry>>, ReadError> {
    let entries = log.read(read.first, read.last, LOG_MESSAGE_BYTES - MESSAGE_OVERHEAD_BYTES)?;
    // Looked at after the entries: if the last one is still the one that was meant, so was
    // everything before it (Log Matching).
    let last = log.read(read.last, read.last, 0)?;
    let meant = last.first().is_some_and(|e| e.term == read.last_term);
    Ok(meant.then_some(entries).filter(|entries| !entries.is_empty()))
}
