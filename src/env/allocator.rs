//! What the C library keeps of memory that is freed.
//!
//! The allocator of glibc takes a large block from the system by itself, and gives it back when it is freed; the rest comes
//! from heaps that threads share, and each of these keeps some of what is freed at its end. What is large, and how much is
//! kept, it learns: once a block of 1 MiB was freed, blocks of that size come from the heaps, and each keeps
//! 2 MiB. So a node would keep for good a part of what a storm of large answers has taken. A limit that is set is not
//! learned. It is set by a variable of the environment, when a program begins; the other way is a call of C, and there is
//! no unsafe code here.
//!
//! A block from the system costs more than one from a heap, and so does a heap that gives its end back: with the limits that
//! glibc begins with, 128 KiB both, reads of values of 256 KiB take four times the processor's time. So the
//! limits are larger ([`LIMITS`]).
//!
//! So a node that finds no such variable begins anew, once, with them: the same process, with the same arguments, directory and
//! open files, but another program image ([`begin_anew`]). Another variable says that this was done, since the system takes
//! variables of the allocator away from a program with privileges of its own.
//!
//! An image that cannot be executed would leave this process changed (the library of Rust says so: a write to a
//! closed pipe would end it). So it is asked for its version first, as a process of its own: where the program was removed,
//! or runs by a loader that is named in its stead, the node goes on as it is.
//!
//! Left out: other C libraries, and other systems, where nothing is done.

/// Variables of glibc, and bytes: from how many on a block comes from the system, and how many a heap may keep at its end.
/// Values of some hundred KiB come from heaps that need not grow and shrink with each.
pub const LIMITS: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "1048576"), ("MALLOC_TRIM_THRESHOLD_", "524288")];

/// Begins the program anew with the allocator set, where that is to be done, and then does not return. The program must
/// answer `version` with that line.
///
/// # Errors
/// Why it could not be; the process is as before.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn begin_anew(version: &str) -> Result<(), String> {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    if !linux::is_wanted(|name| std::env::var_os(name)) {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|e| format!("where the program lies: {e}"))?;
    let failed = |e: std::io::Error| format!("{}: {e}", program.display());
    let command = || {
        let mut command = Command::new(&program);
        command.envs(LIMITS).env(linux::DONE, "1");
        command
    };
    let answered = command()
        .arg("version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(failed)?;
    if answered.stdout.trim_ascii_end() != version.as_bytes() {
        return Err(format!("{} is not {version}", program.display()));
    }
    let mut args = std::env::args_os();
    let mut anew = command();
    if let Some(name) = args.next() {
        anew.arg0(name);
    }
    Err(failed(anew.args(args).exec()))
}

/// Nothing is to be done here.
///
/// # Errors
/// None.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn begin_anew(_version: &str) -> Result<(), String> {
    Ok(())
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod linux {
    use super::LIMITS;
    use std::ffi::OsString;

    /// The newer way to set those and others.
    const TUNABLES: &str = "GLIBC_TUNABLES";
    /// It was begun anew.
    pub(super) const DONE: &str = "MALLOC_SET_BY_KONTIKI";

    /// Whether nobody has set the allocator, and this program has not tried.
    pub(super) fn is_wanted(variable: impl Fn(&str) -> Option<OsString>) -> bool {
        let tuned = |value: OsString| value.to_string_lossy().contains("glibc.malloc.");
        LIMITS.iter().all(|(name, _)| variable(name).is_none())
            && variable(DONE).is_none()
            && !variable(TUNABLES).is_some_and(tuned)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// A person has set the allocator one way or the other, or the program was begun anew and the system took the
        /// allocator's own variable away: it stays as it is.
        #[test]
        fn what_is_set_is_left_alone() {
            let wanted = |name: &'static str, value: &'static str| {
                is_wanted(|asked| (asked == name).then(|| value.into()))
            };
            assert!(wanted("MALLOC_ARENA_MAX", "2"));
            assert!(wanted(TUNABLES, "glibc.pthread.rseq=0"));
            assert!(!wanted(TUNABLES, "glibc.pthread.rseq=0:glibc.malloc.mmap_threshold=65536"));
            assert!(!wanted("MALLOC_MMAP_THRESHOLD_", ""));
            assert!(!wanted("MALLOC_TRIM_THRESHOLD_", "1"));
            assert!(!wanted(DONE, "1"));
        }
    }
}
