//! The real disk, clock and random numbers. All differences between operating systems are here.

use super::descriptors::RESERVE;
use super::{Clock, DirLock, Disk, DiskFile, Open, Random};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
#[cfg(unix)]
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// The operating system's file system. What needs a descriptor waits for one as [`super::descriptors`] says.
#[derive(Debug, Default)]
pub struct RealDisk {
    directories: Directories,
}

/// Directories that were synced stay open, so that syncing one again needs no descriptor.
#[derive(Debug, Default)]
struct Directories(#[cfg(unix)] Mutex<BTreeMap<PathBuf, Arc<File>>>);

/// Directories that stay open at most: more than a node has, data directory and its parents included.
#[cfg(unix)]
const DIRECTORIES_MAX: usize = 8;

impl Directories {
    /// The open directory of that name.
    #[cfg(unix)]
    fn get(&self, dir: &Path) -> io::Result<Arc<File>> {
        use std::os::unix::fs::MetadataExt as _;
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = open.get(dir) {
            // Another one may have its name by now.
            let (ours, theirs) = (found.metadata()?, fs::metadata(dir)?);
            if (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()) {
                return Ok(Arc::clone(found));
            }
            open.remove(dir);
        }
        drop(open);
        let opened = Arc::new(RESERVE.patiently(None, || File::open(dir))?);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() < DIRECTORIES_MAX {
            open.insert(dir.to_path_buf(), Arc::clone(&opened));
        }
        Ok(opened)
    }

    #[cfg(unix)]
    fn sync(&self, dir: &Path) -> io::Result<()> {
        self.get(dir)?.sync_all()
    }

    #[cfg(not(unix))]
    fn sync(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// Name of the file whose lock guards a data directory.
pub const LOCK_FILE: &str = "lock";

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode != Open::Read).create_new(mode == Open::CreateNew);
        let file = RESERVE.patiently(None, || options.open(path))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in RESERVE.patiently(None, || fs::read_dir(dir))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.directories.sync(dir)
    }

    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        let path = dir.join(LOCK_FILE);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(DirLock { guard: Box::new(file), path }),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    #[cfg(unix)]
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buf, offset)
    }

    #[cfg(unix)]
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.0, buf, offset)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !buf.is_empty() {
            match self.0.seek_read(buf, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    #[cfg(windows)]
    fn write_all_at(&self, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !buf.is_empty() {
            match self.0.seek_write(buf, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    buf = &buf[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

/// Whether a timed write to a socket that fails has surely taken nothing. Windows promises nothing
/// about how much a send that ran out of time has sent (Winsock, "Details on SO_SNDTIMEO and
/// SO_RCVTIMEO"): the connection is of no further use then, and what was being sent is in doubt.
/// It also takes any shorter time for half a second.
pub const FAILED_WRITE_TAKES_NOTHING: bool = cfg!(unix);

/// Bytes that one timed write to a socket is given: everything, unless it says nothing of a part
/// that was taken. Then a piece that anybody who reads at all takes before the time is up.
pub const WRITE_AT_ONCE: usize = if FAILED_WRITE_TAKES_NOTHING { usize::MAX } else { 64 << 10 };

/// Time since the clock was made.
#[derive(Clone, Copy, Debug)]
pub struct RealClock(Instant);

impl Default for RealClock {
    fn default() -> RealClock {
        RealClock(Instant::now())
    }
}

impl Clock for RealClock {
    fn now_us(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Numbers from the keys that the standard library takes from the operating system.
#[derive(Clone, Debug, Default)]
pub struct RealRandom(RandomState, u64);

impl Random for RealRandom {
    fn next_u64(&mut self) -> u64 {
        self.1 += 1;
        let mut hasher = self.0.build_hasher();
        hasher.write_u64(self.1);
        hasher.finish()
    }
}

/// An argument of the command line as bytes: on Unix it is nothing else; elsewhere it is text, and
/// none when it cannot be had as UTF-8.
pub fn argument_bytes(word: &OsStr) -> Option<Vec<u8>> {
    match cfg!(unix) {
        true => Some(word.as_encoded_bytes().to_vec()),
        false => word.to_str().map(|text| text.as_bytes().to_vec()),
    }
}
