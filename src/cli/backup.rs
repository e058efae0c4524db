//! `backup`: a consistent cut of everything, streamed to a file; and `compact`.
//!
//! The file gets its name when it is whole and durable, and the name is durable before anybody is told: what a
//! broken backup leaves is not mistaken for one. It is for its owner alone. An existing file is never replaced. A backup whose node is gone is begun anew, in the same
//! file, at another node. Between two pieces the node is left in peace for as
//! long as the piece took, so that others hardly notice.

use super::answers::{Failed, Shell, exit_of};
use super::exit::Exit;
use super::json::Json;
use super::progress::Progress;
use crate::client::Error;
use crate::env::real::{RealDisk, new_private_file};
use crate::kv::BackupWriter;
use crate::wire::client::Class;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek as _};
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// Longest rest between two pieces.
const REST_MAX: Duration = Duration::from_millis(50);
/// How long a node may take to flush its store.
const COMPACT_WAIT: Duration = Duration::from_secs(60);
/// How long a node may take to say how far its tables are.
const COMPACTION_WAIT: Duration = Duration::from_secs(10);
/// Pause between two such questions.
const COMPACTION_PAUSE: Duration = Duration::from_millis(100);

/// Times a backup is begun: each member of a large cluster may be restarted once meanwhile.
const TRIES_MAX: u32 = 8;

/// What went wrong while a backup was written.
enum Trouble {
    File(io::Error),
    Cluster(Error),
    /// The node is gone in the middle.
    Broke(Error),
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Trouble {
        Trouble::File(e)
    }
}

impl From<Error> for Trouble {
    fn from(e: Error) -> Trouble {
        Trouble::Cluster(e)
    }
}

/// What was written.
struct Written {
    revision: u64,
    bytes: u64,
}

impl Shell<'_> {
    /// Writes everything to a file.
    pub(super) fn backup(&mut self, path: &Path) -> io::Result<Result<Exit, Failed>> {
        let shown = path.display();
        if path.symlink_metadata().is_ok() {
            let why =
                format!("{shown} is there already: a backup replaces nothing, name another file");
            return Ok(Err(Failed { exit: Exit::Usage, why }));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let written = self.write_backup(path, &partial);
        match written {
            Ok(Written { revision, bytes }) => {
                let json = || {
                    Json::Object(vec![
                        ("ok", true.into()),
                        ("revision", revision.into()),
                        ("bytes", bytes.into()),
                    ])
                };
                self.say(format!("OK {revision}").as_bytes(), json).map(Ok)
            }
            Err(Trouble::Cluster(e) | Trouble::Broke(e)) => {
                let why = format!("no backup was made: {e}");
                Ok(Err(Failed { exit: exit_of(e.class), why }))
            }
            Err(Trouble::File(e)) => {
                let why = format!("no backup was made: cannot write {}: {e}", partial.display());
                Ok(Err(Failed { exit: Exit::Usage, why }))
            }
        }
    }

    fn write_backup(&mut self, path: &Path, partial: &Path) -> Result<Written, Trouble> {
        // What an earlier try left goes; another one that runs now is not disturbed by more than
        // that its file has no name any more, and it fails when it is done.
        let _ = fs::remove_file(partial);
        let file = new_private_file(partial)?;
        let result = self.fill_whole_backup(&file).and_then(|written| {
            fs::hard_link(partial, path).or_else(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => Err(e),
                // Not every file system has links.
                _ => fs::rename(partial, path),
            })?;
            Ok(written)
        });
        // After a rename it is not there any more.
        let _ = fs::remove_file(partial);
        let written = result?;
        // Its name is as durable as its contents before anybody is told that there is a backup.
        RealDisk::default().sync_above(path).inspect_err(|_| drop(fs::remove_file(path)))?;
        Ok(written)
    }

    /// Begins anew when the node is gone, and with it what the backup consisted of.
    fn fill_whole_backup(&mut self, mut file: &File) -> Result<Written, Trouble> {
        for _ in 1..TRIES_MAX {
            match self.fill_backup(file) {
                Err(Trouble::Broke(e)) => {
                    file.set_len(0)?;
                    file.rewind()?;
                    let _ = writeln!(self.errors, "kontiki: the backup is begun anew: {e}");
                }
                filled => return filled,
            }
        }
        self.fill_backup(file)
    }

    fn fill_backup(&mut self, file: &File) -> Result<Written, Trouble> {
        let started = Instant::now();
        let now_us = || u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut backup = self.client.backup()?;
        let contents = backup.contents().clone();
        let total = contents.bytes();
        let mut progress = Progress::new("tables", Some(total), 0, self.errors_is_terminal);
        let out = BufWriter::new(file);
        let mut writer = BackupWriter::new(out, backup.cluster(), backup.manifest())?;
        let (mut tables, mut bytes) = (0, 0);
        for piece in contents.pieces() {
            let asked = Instant::now();
            let got = backup.piece(piece).map_err(|e| match e.class {
                Class::Unavailable => Trouble::Broke(e),
                _ => Trouble::Cluster(e),
            })?;
            writer.put(&got)?;
            tables += u64::from(piece.offset == 0);
            bytes += got.len() as u64;
            if let Some(text) = progress.update(now_us(), tables, bytes) {
                // Progress is a courtesy: a backup does not fail for it.
                let _ = self.errors.write_all(text.as_bytes());
            }
            std::thread::sleep(asked.elapsed().min(REST_MAX));
        }
        let (out, bytes) = writer.finish()?;
        out.into_inner().map_err(|e| e.into_error())?;
        file.sync_all()?;
        if let Some(text) = progress.finish(now_us(), tables, total) {
            let _ = self.errors.write_all(text.as_bytes());
        }
        Ok(Written { revision: contents.applied, bytes })
    }

    /// Makes every member flush its store, cut its log and compact its tables; follows that to its end.
    pub(super) fn compact(&mut self) -> io::Result<Result<Exit, Failed>> {
        let members = match self.client.members() {
            Ok(members) => members,
            Err(error) => return Ok(Err(error.into())),
        };
        let client = &self.client;
        let ended: Vec<Option<Error>> = std::thread::scope(|scope| {
            let ask = |address| {
                let ask = move || client.compact(address, COMPACT_WAIT).err();
                std::thread::Builder::new().spawn_scoped(scope, ask)
            };
            let asked: Vec<_> = members.iter().map(|m| ask(&m.address)).collect();
            let gone = |m: &str| Some(Error::nobody(m));
            let answers = members.iter().zip(asked);
            let answer = |asked: io::Result<ScopedJoinHandle<'_, _>>| asked.ok()?.join().ok();
            answers.map(|(m, asked)| answer(asked).unwrap_or_else(|| gone(&m.address))).collect()
        });
        let failed: Vec<Error> = ended.into_iter().flatten().collect();
        let all = members.len();
        if let Some(first) = failed.first() {
            let why =
                format!("{} of {all} members have cut their log; {first}", all - failed.len());
            return Ok(Err(Failed { exit: exit_of(first.class), why }));
        }
        let addresses = members.iter().map(|m| m.address.as_str()).collect();
        match self.follow_compaction(addresses) {
            Ok(bytes) => {
                let json =
                    || Json::Object(vec![("ok", true.into()), ("table_bytes", bytes.into())]);
                Ok(Ok(self.say(b"OK", json)?))
            }
            Err(error) => {
                let why = format!(
                    "all {all} members have cut their log and compact their tables; {error}"
                );
                Ok(Err(Failed { exit: exit_of(error.class), why }))
            }
        }
    }

    /// Waits until these nodes have compacted their tables; gives the bytes of all tables then.
    fn follow_compaction(&mut self, mut busy: Vec<&str>) -> Result<u64, Error> {
        let started = Instant::now();
        let now_us = || u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut progress: Option<Progress> = None;
        let (mut done_bytes, mut most, mut done, all) = (0, 0, 0, busy.len());
        while !busy.is_empty() {
            let mut left = 0;
            let mut still = Vec::new();
            for address in busy {
                match self.client.compaction(address, COMPACTION_WAIT) {
                    Ok((Some(bytes), _)) => {
                        left += bytes;
                        still.push(address);
                    }
                    Ok((None, bytes)) => done_bytes += bytes,
                    // It is older than this question, and compacts nothing.
                    Err(error) if error.class == Class::Invalid => {}
                    Err(error) => return Err(error),
                }
            }
            busy = still;
            most = most.max(left);
            done = (all - busy.len()) as u64;
            let shown = self.errors_is_terminal;
            let line = progress
                .get_or_insert_with(|| Progress::new("members compacted", Some(most), 0, shown))
                .update(now_us(), done, most - left);
            // Progress is a courtesy.
            line.into_iter().for_each(|line| drop(self.errors.write_all(line.as_bytes())));
            if !busy.is_empty() {
                std::thread::sleep(COMPACTION_PAUSE);
            }
        }
        let line = progress.and_then(|mut progress| progress.finish(now_us(), done, most));
        line.into_iter().for_each(|line| drop(self.errors.write_all(line.as_bytes())));
        Ok(done_bytes)
    }
}
