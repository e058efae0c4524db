//! Just enough of Rust's grammar for the tidy rules: code without its comments and texts, the
//! paths that it names, and where its tests begin.
//!
//! Left out: macros that build names, `use ... as` renames of whole modules, and shadowed names.
//! The rules are a fence against accidents, not against malice.

/// A source file prepared for the rules.
pub(super) struct Source {
    /// Path from the top of the repository, with `/`.
    pub(super) path: String,
    /// The file as it is.
    pub(super) text: String,
    /// The same lines, with comments and the insides of texts replaced by spaces.
    pub(super) code: Vec<String>,
    /// Per line, whether it belongs to tests.
    pub(super) test: Vec<bool>,
}

/// A path that the code names, such as `crate::raft::Entry`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Line, from 1.
    pub(super) line: usize,
    /// Its segments.
    pub(super) segments: Vec<String>,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Source {
        let code: Vec<String> = mask(text).lines().map(str::to_owned).collect();
        let test = if is_test_file(path) { vec![true; code.len()] } else { test_lines(&code) };
        Source { path: path.to_owned(), text: text.to_owned(), code, test }
    }

    /// Line number and masked text of the lines that are not tests.
    pub(super) fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.iter().zip(&self.test).enumerate();
        lines.filter(|(_, (_, test))| !**test).map(|(i, (code, _))| (i + 1, code.as_str()))
    }

    /// The paths that production code names.
    pub(super) fn paths(&self) -> Vec<Named> {
        let mut named = paths(&self.code.join("\n"));
        named.retain(|n| !self.test.get(n.line - 1).copied().unwrap_or(false));
        named
    }

    /// The module path of the file within the crate: `src/raft/log.rs` is `[raft, log]`.
    pub(super) fn module(&self) -> Vec<&str> {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let inner = inner.strip_suffix(".rs").unwrap_or(inner);
        let mut parts: Vec<&str> = inner.split('/').collect();
        if matches!(parts.last(), Some(&("mod" | "lib" | "main"))) {
            parts.pop();
        }
        parts
    }
}

/// Whether everything in a file of this name is test code.
fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.split('/').any(|part| part == "tests")
        || name == "tests.rs"
        || name == "testdisk.rs"
        || (name.contains("_test") && name.ends_with(".rs"))
}

/// Which lines are tests: from `#[cfg(test)]` to the end of the file, or, where it marks an item
/// without a body (`mod tests;`, `use ...;`), to that item's end.
fn test_lines(code: &[String]) -> Vec<bool> {
    let mut test = vec![false; code.len()];
    let mut at = 0;
    while at < code.len() {
        if code[at].trim() != "#[cfg(test)]" {
            at += 1;
            continue;
        }
        let ends = |line: &String| line.contains(['{', ';']);
        let last = code[at..].iter().position(ends).map_or(code.len(), |n| at + n + 1);
        let bodiless = last <= code.len()
            && code[at..last].last().is_some_and(|l| l.trim_end().ends_with(';'));
        // The braces of `use a::{b, c};` are no body.
        let end = if bodiless { last } else { code.len() };
        test[at..end].fill(true);
        at = end;
    }
    test
}

/// Replaces comments and the insides of texts and characters by spaces; lines stay where they are.
pub(super) fn mask(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let blank = |out: &mut String, from: usize, to: usize| {
        out.extend(chars[from..to].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
    };
    let mut at = 0;
    while at < chars.len() {
        let next = chars.get(at + 1).copied();
        let before = at.checked_sub(1).map(|i| chars[i]);
        let word_before = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let end = match chars[at] {
            '/' if next == Some('/') => {
                chars[at..].iter().position(|&c| c == '\n').map_or(chars.len(), |n| at + n)
            }
            '/' if next == Some('*') => block_comment_end(&chars, at),
            '"' => text_end(&chars, at + 1),
            'r' | 'b' | 'c' if !word_before => match raw_text_end(&chars, at) {
                Some(end) => end,
                None => at,
            },
            '\'' => char_end(&chars, at),
            _ => at,
        };
        if end > at {
            blank(&mut out, at, end);
            at = end;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The end of a text whose inside begins at `at`.
fn text_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// The end of a raw text `r#"..."#` (with `b` or `c` before it) at `start`, if one begins there.
fn raw_text_end(chars: &[char], start: usize) -> Option<usize> {
    let mut at = start;
    if matches!(chars[at], 'b' | 'c') {
        at += 1;
    }
    if chars.get(at) != Some(&'r') {
        return None;
    }
    at += 1;
    let hashes = chars[at..].iter().take_while(|&&c| c == '#').count();
    at += hashes;
    if chars.get(at) != Some(&'"') {
        return None;
    }
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let inside = chars.get(at + 1..)?;
    let found = inside.windows(close.len()).position(|w| w == close);
    Some(found.map_or(chars.len(), |n| at + 1 + n + close.len()))
}

/// The end of a character literal at `start`; `start` itself for a lifetime.
fn char_end(chars: &[char], start: usize) -> usize {
    match (chars.get(start + 1), chars.get(start + 2)) {
        // Behind the escaped character, up to the quote: '\'' '\u{1f}'.
        (Some('\\'), Some(_)) => chars[start + 3..]
            .iter()
            .position(|&c| c == '\'')
            .map_or(chars.len(), |n| start + 3 + n + 1),
        (Some(c), Some('\'')) if *c != '\'' => start + 3,
        _ => start,
    }
}

/// Every path in masked code; the groups of `use a::{b, c::d}` are written out.
pub(super) fn paths(code: &str) -> Vec<Named> {
    let mut parser = Parser { chars: code.chars().collect(), at: 0, line: 1, found: Vec::new() };
    while parser.at < parser.chars.len() {
        if parser.starts_word() {
            parser.path(&mut Vec::new());
        } else {
            parser.step();
        }
    }
    parser.found
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    line: usize,
    found: Vec<Named>,
}

impl Parser {
    fn starts_word(&self) -> bool {
        self.chars.get(self.at).is_some_and(|c| c.is_alphabetic() || *c == '_')
    }

    fn step(&mut self) {
        if self.chars.get(self.at) == Some(&'\n') {
            self.line += 1;
        }
        self.at += 1;
    }

    fn skip_space(&mut self) {
        while self.chars.get(self.at).is_some_and(|c| c.is_whitespace()) {
            self.step();
        }
    }

    fn word(&mut self) -> String {
        let start = self.at;
        while self.chars.get(self.at).is_some_and(|c| c.is_alphanumeric() || *c == '_') {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    /// Reads a path that begins with a word here; `before` are the segments of an outer group.
    fn path(&mut self, before: &mut Vec<String>) {
        let (depth, line) = (before.len(), self.line);
        before.push(self.word());
        loop {
            let (at, resume) = (self.at, self.line);
            self.skip_space();
            if self.chars.get(self.at..self.at + 2) != Some(&[':', ':']) {
                (self.at, self.line) = (at, resume);
                break;
            }
            self.at += 2;
            self.skip_space();
            if self.starts_word() {
                before.push(self.word());
            } else if self.chars.get(self.at) == Some(&'{') {
                self.at += 1;
                self.group(before);
                before.truncate(depth);
                return;
            } else {
                // `::*` or `::<`: the path ends here.
                break;
            }
        }
        self.found.push(Named { line, segments: before.clone() });
        before.truncate(depth);
    }

    fn group(&mut self, before: &mut Vec<String>) {
        while self.at < self.chars.len() {
            if self.starts_word() {
                self.path(before);
            } else if self.chars[self.at] == '}' {
                self.at += 1;
                return;
            } else {
                self.step();
            }
        }
    }
}

#[test]
fn comments_and_texts_are_no_code() {
    // Each kind of comment and text; what stands between them stays, at its place.
    let code = "a /* b /* c */ d */ e // f\n\"g \\\" h\" i r#\"j \" k\"# l 'm' '\\'' 'n b\"o\" p";
    let masked = mask(code);
    let words: Vec<&str> = masked.split_whitespace().collect();
    assert_eq!(words, ["a", "e", "i", "l", "'n", "b", "p"]);
    assert_eq!(masked.len(), code.len());
    assert_eq!(mask("x = \"a\nb\";\ny").lines().count(), 3);
    assert_eq!(mask("f::<'a, 'b>(c)"), "f::<'a, 'b>(c)");
}

#[test]
fn paths_are_found_with_their_groups_written_out() {
    // The forms that imports and calls take.
    let found = paths("use crate::{a::{B, c::*},\n super::d};\nlet x = std::fs::read::<T>(y);");
    let shown: Vec<(usize, String)> =
        found.into_iter().map(|n| (n.line, n.segments.join("::"))).collect();
    for expected in [
        (1, "crate::a::B"),
        (1, "crate::a::c"),
        (2, "crate::super::d"),
        (3, "std::fs::read"),
        (3, "y"),
    ] {
        assert!(shown.contains(&(expected.0, expected.1.to_owned())), "{expected:?} {shown:?}");
    }
}

#[test]
fn tests_begin_at_their_mark() {
    // A test module in place takes the rest of the file, a declared one only its own lines.
    let declared = Source::new("src/a.rs", "a();\n#[cfg(test)]\nmod tests;\nb();\n");
    assert_eq!(declared.test, [false, true, true, false]);
    let inline = Source::new("src/a.rs", "a();\n#[cfg(test)]\nmod tests {\n}\n");
    assert_eq!(inline.test, [false, true, true, true]);
    for path in
        ["src/a/tests.rs", "src/wal/testdisk.rs", "tests/integration/x.rs", "src/a_tests.rs"]
    {
        assert_eq!(Source::new(path, "a();").test, [true], "{path}");
    }
    assert_eq!(Source::new("src/latest.rs", "a();").test, [false]);
}
