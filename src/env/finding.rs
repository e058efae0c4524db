//! What looking through files found: plain data, for whoever prints or counts it.
//!
//! Storage code that inspects files without opening them for use reports here. A *problem* is
//! damage: a byte that is not what was written, or files that cannot belong together. A *note* is
//! what a crash or the ordinary course of things leaves behind, and is worth a word all the same.
//! The number kept is bounded, since a rotten disk has no end of problems; all are counted.

use std::fmt;
use std::path::{Path, PathBuf};

/// Problems, and notes, that are kept each; the rest is counted.
pub const FINDINGS_MAX: usize = 1000;

/// Something found in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, or the directory when a file is missing.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What is there.
    pub what: String,
    /// The next start of the node puts it right by itself, from a copy that is whole.
    pub healed: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}: {}", self.path.display(), self.offset, self.what)
    }
}

/// All that was found.
///
/// Invariant: no place (file and offset) is twice among the problems, nor among the notes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Damage, in the order in which it was found; the first [`FINDINGS_MAX`].
    pub problems: Vec<Finding>,
    /// What is no damage, as many at most.
    pub notes: Vec<Finding>,
    /// Problems beyond those.
    pub problems_left_out: u64,
    /// Notes beyond those.
    pub notes_left_out: u64,
}

impl Findings {
    /// Damage; of several words about one place the first counts.
    pub fn problem(&mut self, path: &Path, offset: u64, what: impl Into<String>) {
        push(&mut self.problems, &mut self.problems_left_out, path, offset, what.into(), false);
    }

    /// Damage that the next start of the node puts right by itself.
    pub fn healed(&mut self, path: &Path, offset: u64, what: impl Into<String>) {
        push(&mut self.problems, &mut self.problems_left_out, path, offset, what.into(), true);
    }

    /// No damage.
    pub fn note(&mut self, path: &Path, offset: u64, what: impl Into<String>) {
        push(&mut self.notes, &mut self.notes_left_out, path, offset, what.into(), false);
    }

    /// How many problems there are.
    pub fn problem_count(&self) -> u64 {
        self.problems.len() as u64 + self.problems_left_out
    }

    /// How many notes there are.
    pub fn note_count(&self) -> u64 {
        self.notes.len() as u64 + self.notes_left_out
    }

    /// Whether a problem is about this file.
    pub fn blames(&self, path: &Path) -> bool {
        self.problems.iter().any(|finding| finding.path == path)
    }
}

fn push(
    list: &mut Vec<Finding>,
    left_out: &mut u64,
    path: &Path,
    offset: u64,
    what: String,
    healed: bool,
) {
    if list.iter().any(|finding| finding.offset == offset && finding.path == path) {
        return;
    }
    if list.len() < FINDINGS_MAX {
        list.push(Finding { path: path.to_path_buf(), offset, what, healed });
    } else {
        *left_out += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_once_and_a_rotten_disk_fills_no_memory() {
        // Two checks meet the same block; then every block of a large file is bad.
        let mut findings = Findings::default();
        let path = Path::new("store/table-00000001");
        findings.problem(path, 0, "first");
        findings.problem(path, 0, "second");
        findings.note(path, 0, "a word");
        assert_eq!((findings.problem_count(), findings.note_count()), (1, 1));
        assert_eq!(findings.problems[0].to_string(), "store/table-00000001 at offset 0: first");
        for block in 1..2 * FINDINGS_MAX as u64 {
            findings.problem(path, block * 4096, "bad");
        }
        assert_eq!(findings.problems.len(), FINDINGS_MAX);
        assert_eq!(findings.problem_count(), 2 * FINDINGS_MAX as u64);
        assert!(findings.blames(path) && !findings.blames(Path::new("store")));
    }
}
