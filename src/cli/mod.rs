//! The subcommands of the binary: settings, words, output and exit codes.
//!
//! Everything here may read arguments, variables and files and write to the terminal; nothing here
//! knows a thread, a frame or a log. Each part is a plain function or struct that takes what it
//! needs (arguments, variables, the time), so that tests need no process.

mod answers;
mod backup;
pub mod bench;
mod bulk;
pub mod config;
mod engine_bench;
pub mod exit;
mod explore;
pub mod help;
pub mod inspect;
mod inspect_words;
pub mod json;
pub mod lines;
pub mod progress;
mod recover;
mod replay;
pub mod run;
mod salvage;
pub mod serve;
mod settings;
pub mod sim;
pub mod words;

/// The name nearest to `wrong`, unless none is near enough to be meant.
fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Beyond a third of the word (two letters for short ones) a hint would be a guess.
    let bound = (wrong.chars().count() / 3).max(2);
    names
        .into_iter()
        .map(|name| (edit_distance(wrong, name), name))
        .filter(|(distance, name)| *distance <= bound && *distance < name.chars().count())
        .min()
        .map(|(_, name)| name)
}

/// Letters to insert, remove or replace to turn one word into the other (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    // `row[j]` is the distance between the letters of `a` seen so far and the first `j` of `b`.
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_single_letter_changes() {
        // The classic pair, and both ends of the scale.
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", ""), 3);
        assert_eq!(edit_distance("listen", "listen"), 0);
    }

    #[test]
    fn a_typing_slip_finds_its_name_and_nonsense_finds_none() {
        // A hint must help: a wild guess is worse than silence.
        let names = ["listen", "data", "peers"];
        assert_eq!(nearest("lsten", names), Some("listen"));
        assert_eq!(nearest("peer", names), Some("peers"));
        assert_eq!(nearest("zzzzzz", names), None);
        assert_eq!(nearest("x", ["a", "b"]), None);
    }
}
