//! The real disk, clock and random numbers. All differences between operating systems are here.

use super::descriptors::RESERVE;
use super::{Clock, DirLock, Disk, DiskFile, Open, Random};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
#[cfg(unix)]
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// Codes of errors by which a system says that a medium does not give back what lies there: EIO, ENODATA (a
/// medium error, as the block layer says it), EBADMSG and EUCLEAN (the file system's checksum or structure does not
/// fit), EILSEQ (the device's protection information does not), EREMOTEIO (the device's own).
#[cfg(not(windows))]
pub(super) const UNREADABLE: &[i32] =
    if cfg!(target_os = "linux") { &[5, 61, 74, 84, 117, 121] } else { &[5] };
/// The same: ERROR_CRC, ERROR_SECTOR_NOT_FOUND, ERROR_READ_FAULT, ERROR_IO_DEVICE, ERROR_FILE_CORRUPT,
/// ERROR_DISK_CORRUPT, ERROR_DATA_CHECKSUM_ERROR.
#[cfg(windows)]
pub(super) const UNREADABLE: &[i32] = &[23, 27, 30, 1117, 1392, 1393, 323];

/// Codes of errors by which a system says that a file is not to be removed now: EACCES, EBUSY and EPERM; on Windows
/// ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION and ERROR_ACCESS_DENIED, which is said of a file that goes as soon as
/// somebody else has closed it.
pub(super) const HELD: &[i32] = if cfg!(windows) { &[32, 33, 5] } else { &[13, 16, 1] };

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
        owners_alone(&mut options);
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
        self.create(dir, new_directory)
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
        let directory = lock_itself(dir)?;
        let path = dir.join(LOCK_FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        owners_alone(&mut options);
        stays_while_open(&mut options);
        let file = RESERVE.patiently(None, || options.open(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(DirLock { guard: Box::new((file, directory)), path }),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

/// The directory that a relative path of one name is in.
const HERE: &str = ".";

/// What a sync of a directory fails with where there is no such thing.
const CANNOT_SYNC: [io::ErrorKind; 3] =
    [io::ErrorKind::PermissionDenied, io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported];

/// The directory that a file or directory is in.
fn above(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        Some(_) => Path::new(HERE),
        // The root is in itself.
        None => path,
    }
}

impl RealDisk {
    /// Makes a directory, those that it is in, which are not ours alone, and their names durable.
    fn create(&self, dir: &Path, make: fn(&Path) -> io::Result<()>) -> io::Result<()> {
        match make(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let above = above(dir);
                if above == dir || above == Path::new(HERE) {
                    return Err(e);
                }
                self.create(above, |dir| fs::create_dir(dir))?;
                make(dir)?;
            }
            // An empty one may be new: whoever made it may have been ended before its name was durable.
            Err(_) if dir.is_dir() => {
                if fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_some()) {
                    return Ok(());
                }
            }
            made => made?,
        }
        self.sync_above(dir)
    }

    /// Makes the name of a file or directory durable, where that can be done: not where names may be made and not
    /// read, nor on file systems that sync no directory.
    ///
    /// # Errors
    /// The system's.
    pub fn sync_above(&self, path: &Path) -> io::Result<()> {
        match self.sync_dir(above(path)) {
            Err(e) if CANNOT_SYNC.contains(&e.kind()) => Ok(()),
            synced => synced,
        }
    }
}

/// A new file that its owner alone may read and write, to be written.
///
/// # Errors
/// `AlreadyExists`, or what else the system says.
pub fn new_private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    owners_alone(options.write(true).create_new(true)).open(path)
}

/// Where files have modes, one that is made is for its owner alone: it holds what clients have stored.
fn owners_alone(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// Makes a directory for its owner alone, where directories have modes.
fn new_directory(dir: &Path) -> io::Result<()> {
    #[cfg_attr(not(unix), allow(unused_mut))]
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// Locks the directory itself, which nobody can remove as long as something is in it, while a lock file may be
/// removed by somebody who takes it for a remnant. None where a directory cannot be locked (some network
/// file systems, Windows): then the lock file is all there is.
fn lock_itself(dir: &Path) -> io::Result<Option<File>> {
    if !cfg!(unix) {
        return Ok(None);
    }
    let directory = RESERVE.patiently(None, || File::open(dir))?;
    match directory.try_lock() {
        Ok(()) => Ok(Some(directory)),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Where directories cannot be locked: Windows removes no file that somebody has open who does not allow it.
fn stays_while_open(options: &mut OpenOptions) {
    #[cfg(windows)]
    {
        const SHARE_READ_AND_WRITE: u32 = 1 | 2;
        std::os::windows::fs::OpenOptionsExt::share_mode(options, SHARE_READ_AND_WRITE);
    }
    #[cfg(not(windows))]
    let _ = options;
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

impl RealRandom {
    /// Bytes for a secret that is kept for long: what the system has for that, where it is a file, and the
    /// numbers of the standard library, whose keys are random, too.
    pub fn secret(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
        let numbers = self.bytes();
        match read {
            Ok(()) => std::array::from_fn(|i| bytes[i] ^ numbers[i]),
            Err(_) => numbers,
        }
    }
}

/// Whether other users than its owner may read or change a file, where the system says so; false where it does
/// not, or there is no such file.
pub fn others_may_use(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_kept_out_though_the_lock_file_is_gone() {
        // Somebody takes the lock file of a node that runs for a remnant and removes it. The directory is still
        // locked; and it is free when the first one has gone.
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::default();
        let lock = disk.lock(dir.path()).unwrap();
        let busy = |disk: &RealDisk| disk.lock(dir.path()).unwrap_err().kind();
        assert_eq!(busy(&RealDisk::default()), io::ErrorKind::ResourceBusy);
        let removed = fs::remove_file(&lock.path);
        assert!(removed.is_ok() || cfg!(windows));
        assert_eq!(busy(&RealDisk::default()), io::ErrorKind::ResourceBusy);
        drop(lock);
        drop(disk.lock(dir.path()).unwrap());
        // The lock file alone keeps others out, too, where the directory cannot.
        let file = File::open(dir.path().join(LOCK_FILE)).unwrap();
        file.try_lock().unwrap();
        assert_eq!(busy(&disk), io::ErrorKind::ResourceBusy);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_made_is_for_its_owner_alone_and_its_name_is_durable() {
        // A data directory two levels below what is there; then a file in it. The parents are not ours alone.
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let disk = RealDisk::default();
        let (parent, data) = (dir.path().join("a/b"), dir.path().join("a/b/data"));
        disk.create_dir(&data).unwrap();
        let synced =
            || -> Vec<PathBuf> { disk.directories.0.lock().unwrap().keys().cloned().collect() };
        assert_eq!(synced(), [dir.path().to_owned(), dir.path().join("a"), parent.clone()]);
        assert_eq!(mode(&data), 0o700);
        let usual = dir.path().join("usual");
        fs::create_dir(&usual).unwrap();
        assert_eq!((mode(&parent), mode(&dir.path().join("a"))), (mode(&usual), mode(&usual)));
        drop(disk.open(&data.join("file"), Open::CreateNew).unwrap());
        assert_eq!(mode(&data.join("file")), 0o600);
        let lock = disk.lock(&data).unwrap();
        assert_eq!(mode(&lock.path), 0o600);
        drop(new_private_file(&dir.path().join("backup")).unwrap());
        assert_eq!(mode(&dir.path().join("backup")), 0o600);
        // What is there stays as it is, and what is no directory is told.
        fs::set_permissions(&data, fs::Permissions::from_mode(0o750)).unwrap();
        disk.create_dir(&data).unwrap();
        assert_eq!(mode(&data), 0o750);
        let on_a_file = disk.create_dir(&data.join("file"));
        assert_eq!(on_a_file.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_took_the_name_of_another_is_the_one_that_is_synced() {
        // Directories stay open between two syncs. One is removed and made anew: the new one is meant.
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("incoming");
        let disk = RealDisk::default();
        disk.create_dir(&dir).unwrap();
        let first = disk.directories.get(&dir).unwrap();
        assert!(Arc::ptr_eq(&first, &disk.directories.get(&dir).unwrap()));
        fs::remove_dir(&dir).unwrap();
        assert_eq!(disk.sync_dir(&dir).unwrap_err().kind(), io::ErrorKind::NotFound);
        disk.create_dir(&dir).unwrap();
        disk.sync_dir(&dir).unwrap();
        assert!(!Arc::ptr_eq(&first, &disk.directories.get(&dir).unwrap()));
    }
}
