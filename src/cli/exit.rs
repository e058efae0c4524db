//! Exit codes by meaning, and the class of an error in `--json` answers.
//!
//! A script decides by the code alone whether a retry is safe: 3 says the write surely had no
//! effect, 4 that nobody knows. The two are never mixed up and never rounded to a plain failure.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It was done.
    Done,
    /// The key is absent.
    Absent,
    /// A condition did not hold; nothing was done.
    ConditionFalse,
    /// The command line, a setting or a command is wrong; nothing was sent.
    Usage,
    /// No node could take it, and it surely had no effect.
    Unavailable,
    /// It may or may not have taken effect.
    Unknown,
    /// A bound of the cluster is used up for the moment; nothing was done, a retry may succeed.
    Busy,
    /// A size is over its limit; nothing was done, a retry cannot succeed.
    TooLarge,
    /// The token is missing or wrong.
    Unauthorised,
    /// A disk is full; nothing was done, a retry may succeed once there is space.
    DiskFull,
}

impl Exit {
    /// Every way to end, in the order of the codes.
    pub const ALL: [Exit; 10] = [
        Exit::Done,
        Exit::Absent,
        Exit::ConditionFalse,
        Exit::Usage,
        Exit::Unavailable,
        Exit::Unknown,
        Exit::Busy,
        Exit::TooLarge,
        Exit::Unauthorised,
        Exit::DiskFull,
    ];

    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Absent | Exit::ConditionFalse => 1,
            Exit::Usage => 2,
            Exit::Unavailable => 3,
            Exit::Unknown => 4,
            Exit::Busy | Exit::TooLarge | Exit::DiskFull => 5,
            Exit::Unauthorised => 6,
        }
    }

    /// The word for it in the `class` field of a `--json` answer.
    pub fn class(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Absent => "absent",
            Exit::ConditionFalse => "condition",
            Exit::Usage => "usage",
            Exit::Unavailable => "unavailable",
            Exit::Unknown => "unknown",
            Exit::Busy => "busy",
            Exit::TooLarge => "too-large",
            Exit::Unauthorised => "unauthorised",
            Exit::DiskFull => "disk-full",
        }
    }

    /// Of two commands on one input, the one whose code the process ends with: an outcome that
    /// nobody knows outweighs everything, and no failure is hidden by a later success.
    pub fn worse(self, other: Exit) -> Exit {
        let weight = |e: Exit| match e {
            Exit::Done => 0,
            Exit::Absent => 1,
            Exit::ConditionFalse => 2,
            Exit::Usage => 3,
            Exit::TooLarge => 4,
            Exit::Busy => 5,
            Exit::DiskFull => 6,
            Exit::Unauthorised => 7,
            Exit::Unavailable => 8,
            Exit::Unknown => 9,
        };
        if weight(other) > weight(self) { other } else { self }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones() {
        // Scripts depend on these numbers; docs/operations.md lists them.
        let codes: Vec<u8> = Exit::ALL.iter().map(|e| e.code()).collect();
        assert_eq!(codes, [0, 1, 1, 2, 3, 4, 5, 5, 6, 5]);
    }

    #[test]
    fn every_class_has_a_word_of_its_own() {
        // A reader of JSON tells the classes apart by the word alone.
        let mut words: Vec<&str> = Exit::ALL.iter().map(|e| e.class()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Exit::ALL.len());
    }

    #[test]
    fn an_unknown_outcome_is_never_hidden_by_what_follows() {
        // A script that pipes many lines must learn of the one write whose fate nobody knows.
        for e in Exit::ALL {
            assert_eq!(e.worse(Exit::Unknown), Exit::Unknown);
            assert_eq!(Exit::Unknown.worse(e), Exit::Unknown);
            assert_eq!(Exit::Done.worse(e), e);
        }
    }
}
