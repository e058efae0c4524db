//! `--record`: writes down what the components get and do ([`crate::node::recording`]), on a thread of its own.
//!
//! Who records waits while the queue is full: a recording with a gap would be of no use, and the file is not
//! synced, so that as a rule the queue is empty. What is in the queue when the process is killed is lost; a
//! recording ends torn then, a few milliseconds early. The file is bounded; when the bound is reached, or the file
//! cannot be written, recording ends, says so, and the node goes on.

use super::lock;
use super::logging::{info, warning};
use crate::node::recording::{
    EndReason, Record, RecordWriter, Start, file_name, life_of, put_body,
};
use crate::raft::NodeId;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// Bytes that wait to be written. Who records beyond that waits, too.
const QUEUE_BYTES_MAX: usize = 8 << 20;

/// A recording in the making.
#[derive(Debug)]
pub(crate) struct Recorder {
    path: PathBuf,
    bytes_max: u64,
    queue: Mutex<RecordWriter>,
    /// Something is in the queue.
    filled: Condvar,
    /// The queue was emptied, or recording has ended.
    emptied: Condvar,
    ended: AtomicBool,
}

/// Makes the directory of recordings, before anything else of the node is made.
///
/// # Errors
/// The system's.
pub(crate) fn prepare(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)
}

impl Recorder {
    /// Begins a recording in `dir` of the node's next life, with at most so many bytes, give or take a record.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(crate) fn begin(
        dir: &Path,
        node: NodeId,
        bytes_max: u64,
        start: impl FnOnce(u64) -> Start,
    ) -> io::Result<Arc<Recorder>> {
        let (path, mut file, life) = next_file(dir, node)?;
        let recorder = Arc::new(Recorder {
            path,
            bytes_max,
            queue: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            ended: AtomicBool::new(false),
        });
        recorder.record(|out| put_body(out, &Record::Start(Box::new(start(life)))));
        let theirs = Arc::clone(&recorder);
        thread::Builder::new().name("recorder".into()).spawn(move || theirs.run(&mut file))?;
        let path = recorder.path.display();
        info!(
            "records what it gets and does, keys and values in clear, in {path} limit={bytes_max}"
        );
        Ok(recorder)
    }

    /// Adds a record; `put` appends its body. It may wait.
    pub(crate) fn record(&self, put: impl FnOnce(&mut Vec<u8>)) {
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        let mut body = Vec::new();
        put(&mut body);
        let full = |queue: &mut RecordWriter| {
            queue.held() >= QUEUE_BYTES_MAX && !self.ended.load(Ordering::Acquire)
        };
        let queue = self.emptied.wait_while(lock(&self.queue), full);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        queue.put(&body);
        if queue.total() >= self.bytes_max {
            body.clear();
            put_body(&mut body, &Record::End(EndReason::Limit));
            queue.put(&body);
            self.ended.store(true, Ordering::Release);
            let (path, limit) = (self.path.display(), self.bytes_max);
            info!("recording ends: {path} has reached --record-limit={limit}");
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// The thread: writes what there is, all at once.
    fn run(&self, file: &mut File) {
        loop {
            let idle =
                |queue: &mut RecordWriter| queue.held() == 0 && !self.ended.load(Ordering::Acquire);
            let queue = self.filled.wait_while(lock(&self.queue), idle);
            let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
            let bytes = queue.take();
            drop(queue);
            if bytes.is_empty() {
                return;
            }
            self.emptied.notify_all();
            if let Err(e) = file.write_all(&bytes) {
                self.ended.store(true, Ordering::Release);
                self.emptied.notify_all();
                warning!("recording ends: cannot write {}: {e}", self.path.display());
                return;
            }
        }
    }
}

/// Makes the file of the node's next life.
fn next_file(dir: &Path, node: NodeId) -> io::Result<(PathBuf, File, u64)> {
    let mut last = 0;
    for entry in fs::read_dir(dir)? {
        last = last.max(life_of(&entry?.file_name().to_string_lossy(), node).unwrap_or(0));
    }
    let life = last + 1;
    let path = dir.join(file_name(node, life));
    let file = File::options().write(true).create_new(true).open(&path)?;
    Ok((path, file, life))
}
