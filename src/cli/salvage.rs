//! `kontiki inspect dump`: the rows of a damaged store that can be read, as `load` takes them.
//!
//! The rows go to the output and everything else to the errors, so that the output is a file for `load`. Rows of which a
//! newer version may be lost are left out of it: `--old` writes those, for a person to look at.

use super::bulk::put_escaped;
use super::exit::Exit;
use super::inspect::Failed;
use crate::env::Disk;
use crate::kv::StoreError;
use crate::node::{SavedRow, save};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Why a row was not written.
enum Stopped {
    Store(StoreError),
    Output,
}

impl From<StoreError> for Stopped {
    fn from(e: StoreError) -> Stopped {
        Stopped::Store(e)
    }
}

/// Runs it. Exit code 0: nothing is lost; 1: something is.
pub(super) fn dump(
    disk: &Arc<dyn Disk>,
    data: &Path,
    old: bool,
    output: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<Exit, Failed> {
    let mut line = Vec::new();
    let saved = save(disk, data, &mut |row: SavedRow<'_>| {
        if row.perhaps_old != old {
            return Ok(());
        }
        line.clear();
        put_escaped(&mut line, row.key, true);
        line.push(b'\t');
        put_escaped(&mut line, row.value, false);
        line.push(b'\n');
        output.write_all(&line).map_err(|_| Stopped::Output)
    });
    let report = match saved {
        Ok(report) => report,
        Err(Stopped::Output) => return Err(Failed::Output),
        Err(Stopped::Store(e)) => return Err(Failed::Told(Exit::Unavailable, e.to_string())),
    };
    output.flush()?;
    for problem in report.findings.problems.iter().filter(|problem| !problem.healed) {
        writeln!(errors, "{problem}")?;
    }
    let (rows, old_rows, index) = (report.rows, report.old_rows, report.index);
    writeln!(errors, "{rows} rows are the latest up to index {index}")?;
    if old_rows > 0 {
        writeln!(errors, "{old_rows} rows are there of which a newer version may be lost (--old)")?;
    }
    let whole = report.findings.problems.iter().all(|problem| problem.healed);
    Ok(if whole { Exit::Done } else { Exit::ConditionFalse })
}
