//! What the system says of a process.

use std::fs;

/// The number of a line of its status, `VmRSS:` say, in the system's unit: kB for memory. None where the system does
/// not tell.
pub(crate) fn status(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Memory that is in use, bytes.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    Some(status(pid, "VmRSS:")? << 10)
}
