//! Hostile bytes by the thousand, at everything that reads bytes of others: the handshake, the three dialects of
//! clients, the frames of peers, both ends of a snapshot.
//!
//! No socket and no thread: each input goes to the component that a node runs, in one piece or in many. An input is
//! made of the corpus, which is valid examples of each dialect and what was kept of earlier runs
//! (`tests/corpus/DIALECT/`), by a few seeded mutations. An input that ends as none before it did joins the corpus,
//! so that mutations build on each other without a coverage tool. Frames are sealed again with a right CRC, mostly:
//! else nothing behind the CRC would ever be reached.
//!
//! What must hold: nothing panics (overflows of arithmetic included), nothing goes round in a circle, nothing takes
//! memory that its bounds do not name, and what is written in return can be read by a client.
//!
//! `cargo test` runs [`INPUTS`] of each dialect. `scripts/fuzz.sh` is the long mode: fresh seeds, as many as it is
//! told, and it keeps what it found.

mod clients;
mod mutation;
mod nodes;

use super::dice::Dice;
use mutation::{Form, mutated};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Inputs of each dialect in `cargo test`.
const INPUTS: u64 = 4_000;
/// Most of the corpus that is kept of one dialect, in memory and on disk.
const CORPUS_MAX: usize = 400;
/// Longest input that is kept on disk, bytes: smaller ones say as much.
const KEPT_BYTES_MAX: usize = 2 << 10;
/// Answers of one input, bytes: a few values of the store, which has one large one.
const OUT_BYTES_MAX: usize = 64 << 20;

/// Something that reads bytes of others.
trait Target {
    /// A name for its corpus.
    const NAME: &'static str;
    /// How its inputs are mutated.
    const FORM: Form;
    /// Valid inputs.
    fn examples() -> Vec<Vec<u8>>;
    /// Takes inputs that follow each other, and says how that ended, in words without numbers.
    fn take(&mut self, inputs: &[Vec<u8>], dice: &mut Dice) -> String;
    /// A fresh one.
    fn new() -> Self;
}

/// Inputs that one target takes before another one takes its place: what one has left behind meets the next.
const LIVES: u64 = 200;

fn corpus_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name)
}

/// What was kept, in the order of its names.
fn kept(name: &str) -> Vec<Vec<u8>> {
    let Ok(files) = std::fs::read_dir(corpus_dir(name)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// What a long run is told: `HOSTILE_INPUTS`, `HOSTILE_SEED`, and `HOSTILE_KEEP` for what is new to be kept.
struct Plan {
    inputs: u64,
    seed: u64,
    keep: bool,
}

impl Plan {
    fn of_variables() -> Plan {
        let number = |name| std::env::var(name).ok().map(|text| text.parse().expect(name));
        Plan {
            inputs: number("HOSTILE_INPUTS").unwrap_or(INPUTS),
            seed: number("HOSTILE_SEED").unwrap_or(1),
            keep: std::env::var_os("HOSTILE_KEEP").is_some(),
        }
    }
}

/// Runs the plan at one target.
fn attack<T: Target>() {
    let plan = Plan::of_variables();
    let mut dice = Dice::new(plan.seed);
    let mut corpus = T::examples();
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    let mut target = T::new();
    // What was kept is run as it is first: what ends like it is not kept again.
    for input in kept(T::NAME) {
        let end = target.take(std::slice::from_ref(&input), &mut dice.split());
        ends.entry(end).or_default();
        corpus.push(input);
    }
    for number in 0..plan.inputs {
        if number % LIVES == 0 {
            target = T::new();
        }
        let count = dice.between(1, 4);
        let inputs: Vec<Vec<u8>> =
            (0..count).map(|_| mutated(&corpus, T::FORM, &mut dice)).collect();
        let mut own = dice.split();
        let end = catch_unwind(AssertUnwindSafe(|| target.take(&inputs, &mut own)));
        let Ok(end) = end else {
            let shown: Vec<String> =
                inputs.iter().map(|input| String::from_utf8_lossy(input).into_owned()).collect();
            panic!(
                "{}: input {number} of seed {} (a life has {LIVES}): {inputs:02x?}\n{shown:?}",
                T::NAME,
                plan.seed
            );
        };
        let times = ends.entry(end).or_default();
        *times += 1;
        if *times == 1 && corpus.len() < CORPUS_MAX {
            if plan.keep {
                keep(T::NAME, &inputs);
            }
            corpus.extend(inputs);
        }
    }
    println!("{}: {} inputs, {} ends", T::NAME, plan.inputs, ends.len());
    for (end, times) in &ends {
        println!("{times:>9}  {end}");
    }
    assert!(ends.len() > 2, "everything ends alike: nothing is reached");
}

fn keep(name: &str, inputs: &[Vec<u8>]) {
    let dir = corpus_dir(name);
    std::fs::create_dir_all(&dir).unwrap();
    for input in inputs.iter().filter(|input| input.len() <= KEPT_BYTES_MAX) {
        let path = dir.join(format!("{:08x}", crc32fast::hash(input)));
        std::fs::write(path, input).unwrap();
    }
}

/// An end in words: numbers differ from input to input and say nothing new.
fn words(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(120) {
        match c {
            c if c.is_ascii_digit() => {
                if !out.ends_with('N') {
                    out.push('N');
                }
            }
            c if c.is_ascii_graphic() || c == ' ' => out.push(c),
            _ => out.push('?'),
        }
    }
    out
}

#[test]
fn hostile_handshakes() {
    attack::<clients::Handshake>();
}

#[test]
fn hostile_native_clients() {
    attack::<clients::Native>();
}

#[test]
fn hostile_text_clients() {
    attack::<clients::Text>();
}

#[test]
fn hostile_http_clients() {
    attack::<clients::Http>();
}

#[test]
fn hostile_peers() {
    attack::<nodes::Peer>();
}

#[test]
fn hostile_askers_of_snapshots() {
    attack::<nodes::Asker>();
}

#[test]
fn hostile_givers_of_snapshots() {
    attack::<nodes::Giver>();
}
