//! A small file system of its own for a test, unmounted and removed whatever happens.
//!
//! In memory (tmpfs), or ext4 in a file on a loop device: that one allocates late and keeps a journal, as most
//! disks of users do. Both need the right to mount; where that is missing the caller says so and runs
//! without.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// See the module. Dropped, it is gone.
pub(crate) struct Mounted {
    path: PathBuf,
    /// Where it is mounted, and the image.
    dir: TempDir,
}

fn run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Result<(), String> {
    match Command::new(program).args(args).output() {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            Err(format!("{program}: {said}"))
        }
        Err(e) => Err(format!("no command `{program}`: {e}")),
    }
}

impl Mounted {
    /// So many bytes in memory.
    pub(crate) fn tmpfs(bytes: u64) -> Result<Mounted, String> {
        let mounted = Mounted::prepare()?;
        let size = format!("size={bytes}");
        let options = ["-t", "tmpfs", "-o", &size, "tmpfs"].map(OsStr::new);
        run("mount", options.into_iter().chain([mounted.path.as_os_str()]))?;
        Ok(mounted)
    }

    /// An ext4 of so many bytes, its own needs included, in a file.
    pub(crate) fn ext4(bytes: u64) -> Result<Mounted, String> {
        let mounted = Mounted::prepare()?;
        let image = mounted.dir.path().join("image");
        let file = File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(bytes).map_err(|e| e.to_string())?;
        // No blocks for root alone: the node may run as root.
        let options = ["-q", "-F", "-m", "0"].map(OsStr::new);
        run("mkfs.ext4", options.into_iter().chain([image.as_os_str()]))?;
        let options = ["-t", "ext4", "-o", "loop"].map(OsStr::new);
        let places = [image.as_os_str(), mounted.path.as_os_str()];
        run("mount", options.into_iter().chain(places))?;
        Ok(mounted)
    }

    fn prepare() -> Result<Mounted, String> {
        let dir = tempfile::Builder::new().prefix("kontiki-disk-").tempdir();
        let dir = dir.map_err(|e| e.to_string())?;
        let path = dir.path().join("mounted");
        std::fs::create_dir(&path).map_err(|e| e.to_string())?;
        Ok(Mounted { path, dir })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Its last user may be about to end; and it may not have been mounted at all.
        if run("umount", [&self.path]).is_err() {
            let _ = run("umount", [OsStr::new("-l"), self.path.as_os_str()]);
        }
    }
}
