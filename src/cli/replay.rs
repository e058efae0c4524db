//! `kontiki sim --replay`: replays what `kontiki serve --record` has written.

use super::exit::Exit;
use crate::node::recording::EXTENSION;
use crate::sim::replay::{File, Replayed, replay};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Replays files, and all recordings below directories. Exit code 1 when what was recorded is not what the
/// components do or breaks an invariant, 2 when there is nothing to replay.
pub(super) fn run(args: &[OsString]) -> Exit {
    let mut flags = getopts::Options::new();
    flags.optflag("", "replay", "replay these recordings");
    let found = match flags.parse(args) {
        Ok(found) => found,
        Err(e) => return usage(&format!("{e}; --replay goes with files and directories only")),
    };
    if found.free.is_empty() {
        return usage(
            "--replay: name recordings, or directories that hold some (kontiki serve --record)",
        );
    }
    let mut files = Vec::new();
    for name in &found.free {
        if let Err((path, e)) = gather(Path::new(name), true, &mut files) {
            return usage(&format!("cannot read {}: {e}", path.display()));
        }
    }
    if files.is_empty() {
        let names = found.free.join(", ");
        return usage(&format!(
            "--replay: no file below {names} has a name that ends with .{EXTENSION}"
        ));
    }
    match replay(&files) {
        Ok(replayed) => {
            print(&replayed);
            println!("{} files: ok", files.len());
            Exit::Done
        }
        Err(e) => match e.invariant() {
            None => usage(&e.to_string()),
            Some(invariant) => {
                println!("{e}");
                println!("{} files: FAILED {invariant}", files.len());
                Exit::ConditionFalse
            }
        },
    }
}

fn usage(why: &str) -> Exit {
    eprintln!("kontiki sim: {why}");
    Exit::Usage
}

/// Reads a file that was named, or the recordings below a directory.
fn gather(path: &Path, named: bool, files: &mut Vec<File>) -> Result<(), (PathBuf, io::Error)> {
    let failed = |e| (path.to_path_buf(), e);
    if fs::metadata(path).map_err(failed)?.is_dir() {
        let entries = fs::read_dir(path).map_err(failed)?;
        let paths: Result<Vec<PathBuf>, io::Error> =
            entries.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut paths = paths.map_err(failed)?;
        paths.sort();
        paths.iter().try_for_each(|path| gather(path, false, files))
    } else if named || path.extension().is_some_and(|extension| extension == EXTENSION) {
        let bytes = fs::read(path).map_err(failed)?;
        files.push(File { path: path.to_path_buf(), bytes });
        Ok(())
    } else {
        Ok(())
    }
}

fn print(replayed: &Replayed) {
    for note in &replayed.notes {
        println!("{note}");
    }
    for (name, times) in &replayed.counters {
        println!("{times:>12}  {name}");
    }
}
