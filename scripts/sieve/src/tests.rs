//! What is found in a small file, and what the file looks like with it.

use crate::find::{Kind, mutations, test_modules};
use crate::weave::weave;

const SAMPLE: &str = "\
const N: u64 = 3; // not this
fn f(a: u64, b: &mut Vec<u64>) -> bool {
    b.push(a); // the end
    if a < 2
        && b.is_empty() { return false; }
    assert!(a > 7);
    matches!(a, 1..=3)
}
#[cfg(test)]
mod tests { fn g() -> bool { 1 < 2 } }
#[cfg(test)]
mod more;
";

#[test]
fn finds_what_can_be_changed_and_nothing_else() {
    // Constants, assertions, patterns in macros and tests stay.
    let words: Vec<String> =
        mutations(SAMPLE).expect("Rust").into_iter().map(|m| m.words).collect();
    assert_eq!(
        words,
        [
            "fn f returns true at once",
            "fn f returns false at once",
            "`b . push (a)` left out",
            "a < 2 && b . is_empty () => true",
            "a < 2 && b . is_empty () => false",
            "a < 2 && b . is_empty () => (a < 2) || (b . is_empty ())",
            "a < 2 => (a) <= (2)",
            "2 => 3",
        ]
    );
    assert_eq!(test_modules(SAMPLE), ["more"]);
}

#[test]
fn weaves_one_in_another_and_keeps_lines() {
    // A change within another one's original stays a change; the text is Rust with as many lines.
    let found = mutations(SAMPLE).expect("Rust");
    let numbered: Vec<_> = found.iter().enumerate().collect();
    let woven = weave(SAMPLE, &numbered);
    assert_eq!(woven.text.lines().count(), SAMPLE.lines().count());
    syn::parse_file(&woven.text).expect("Rust again");
    for (number, m) in &numbered {
        assert_eq!(woven.text.matches(&format!("sieve::on({number})")).count(), 1);
        let (own, switch) = &woven.places[*number];
        assert!(woven.text[own.clone()].contains(&format!("on({number})")));
        assert!(switch.start <= own.start && own.end <= switch.end);
        let line = woven.text[..switch.start].matches('\n').count() + 1;
        assert!(m.kind == Kind::Body || line == m.line, "{number} has moved");
    }
    // Nothing woven, nothing changed.
    assert_eq!(weave(SAMPLE, &[]).text, SAMPLE);
}
