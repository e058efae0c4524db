//! Puts changes into the text of a file, each behind a switch: `if crate::sieve::on(7) { changed } else { original }`.
//! All of a sample is one build then, and lines keep their numbers, since what is put in has no line ends.

use crate::find::{Kind, Mutation};
use std::ops::Range;

/// A file with changes in it.
pub struct Woven {
    pub text: String,
    /// Of each change, in the order given: bytes of the text that belong to it alone, and those of its whole switch.
    pub places: Vec<(Range<usize>, Range<usize>)>,
}

/// Weaves the changes, whose numbers are given beside them, into a file. They are sorted by place, outer ones first.
pub fn weave(original: &str, changes: &[(usize, &Mutation)]) -> Woven {
    let places = vec![(0..0, 0..0); changes.len()];
    let mut weaver = Weaver { original, changes, text: String::new(), places };
    weaver.part(0..original.len(), 0..changes.len());
    Woven { text: weaver.text, places: weaver.places }
}

struct Weaver<'a> {
    original: &'a str,
    changes: &'a [(usize, &'a Mutation)],
    text: String,
    places: Vec<(Range<usize>, Range<usize>)>,
}

impl Weaver<'_> {
    /// A part of the original with the changes that lie within.
    fn part(&mut self, part: Range<usize>, changes: Range<usize>) {
        let mut at = part.start;
        let mut next = changes.start;
        while next < changes.end {
            let first = self.changes[next].1;
            let (kind, place) = (first.kind, first.place.clone());
            let alike = |m: &Mutation| m.kind == kind && m.place == place;
            let count =
                self.changes[next..changes.end].iter().take_while(|(_, m)| alike(m)).count();
            let within = self.changes[next + count..changes.end]
                .iter()
                .take_while(|(_, m)| m.place.start < place.end && kind != Kind::Body)
                .count();
            self.text.push_str(&self.original[at..place.start]);
            let group = next..next + count;
            let inner = next + count..next + count + within;
            next = inner.end;
            at = place.end;
            self.group(kind, place, group, inner);
        }
        self.text.push_str(&self.original[at..part.end]);
    }

    fn group(&mut self, kind: Kind, place: Range<usize>, group: Range<usize>, inner: Range<usize>) {
        let begin = self.text.len();
        for i in group.clone() {
            let (number, m) = self.changes[i];
            let own = self.text.len();
            match kind {
                Kind::Statement => {
                    self.text.push_str(&format!("if !crate::sieve::on({number}) {{ "))
                }
                Kind::Expression => {
                    let word = if i == group.start { "(if" } else { " else if" };
                    self.text.push_str(&format!(
                        "{word} crate::sieve::on({number}) {{ {} }}",
                        m.instead
                    ));
                }
                Kind::Body => {
                    self.text.push_str(&format!(
                        " if crate::sieve::on({number}) {{ return {}; }}",
                        m.instead
                    ));
                }
            }
            self.places[i].0 = own..self.text.len();
        }
        match kind {
            Kind::Statement => {
                self.part(place, inner);
                self.text.push_str(&" }".repeat(group.len()));
            }
            Kind::Expression => {
                self.text.push_str(" else { ");
                self.part(place, inner);
                self.text.push_str(" })");
            }
            Kind::Body => {}
        }
        for i in group {
            self.places[i].1 = begin..self.text.len();
        }
    }
}
