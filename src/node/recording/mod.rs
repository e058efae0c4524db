//! What one process's components got and did, as a file: `kontiki serve --record`.
//!
//! A component is a plain struct that turns an event into effects, so what it did can be repeated from
//! what it began with and what it got. A *recording* holds that of one process's life, in the order
//! in which it happened: what the start handed to the components ([`Start`]), every event whole, with
//! the time that the component was told, and a checksum of every effect. `sim/replay.rs` builds the same components,
//! gives them the same events, and compares.
//!
//! | component  | events                                  | effects                                             |
//! |------------|-----------------------------------------|-----------------------------------------------------|
//! | raft loop  | every input, every tick                 | a checksum of each kind of effect ([`Part`])        |
//! | log writer | what it is told to write and to cut     | which requests are durable, what was cut            |
//! | applier    | its tasks                               | how far, the state's digest, a checksum of answers  |
//!
//! The log writer's and the applier's events are effects of the raft loop, so they are named and not
//! repeated: a replay has them already, and sees whether they came in that order.
//!
//! A record is made before its effects are acted on. Hence the order of the file is one that the threads
//! allow: what a component was told stands behind the record of whoever said it.
//!
//! The token is left out, and no more: keys and values are in the file as they are. docs/formats.md, "Recording", is
//! the specification of the bytes.
//!
//! Left out: the store's files and what reads them; snapshots on their way, and whoever gives them; connections of
//! clients. A replay takes what they tell the three components for granted.

mod file;
mod input;
mod prints;
mod start;
#[cfg(test)]
mod tests;

pub use file::{
    EXTENSION, Ending, MAGIC, RECORD_BYTES_MAX, RecordReader, RecordWriter, RecordingError,
    file_name, life_of,
};
pub use input::{put_input, take_input};
pub use prints::{Part, Print, of_answers, of_effects};
pub use start::{Start, put_start, take_start};

use super::applier::{Applied, ApplyEffects, ApplyTask, Installed};
use super::events::{Apply, Input};
use super::log_writer::{LogEffects, LogEvent};
use super::raft_loop::NodeEffects;
use crate::raft::codec::{Input as Bytes, Malformed};
use crate::raft::{Index, Term};
use crate::wire::proof::Secret;

/// One record. Clients are numbers: what they are is nobody's business here.
#[derive(Debug)]
pub enum Record {
    /// What the components began with: the first record, and no other.
    Start(Box<Start>),
    /// The raft loop got an input.
    Handled {
        /// The time that it was told.
        now_us: u64,
        /// The input.
        input: Box<Input<u64>>,
    },
    /// The raft loop was told that time has passed.
    Ticked {
        /// The time.
        now_us: u64,
    },
    /// The raft loop gave its effects.
    Effects {
        /// The time that it was told.
        now_us: u64,
        /// Of each kind of effect that there was, ascending.
        prints: Vec<Print>,
    },
    /// The log writer got an event.
    LogEvent(LogNote),
    /// The log writer made a step of which something came.
    LogStep(LogStep),
    /// The applier got a task.
    Task(TaskNote),
    /// The applier did a task.
    Did(DidNote),
    /// The recording ends here by intention; the process goes on.
    End(EndReason),
}

/// What the log writer was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogNote {
    /// To make this request of the raft loop durable.
    Persist {
        /// Its number.
        seq: u64,
    },
    /// That the log up to there is not needed any more.
    Compact {
        /// The index.
        through: Index,
    },
    /// What came of a spare segment.
    Spare {
        /// It was made.
        made: bool,
    },
}

impl LogNote {
    /// Of this event.
    pub fn of(event: &LogEvent) -> LogNote {
        match event {
            LogEvent::Persist(persist) => LogNote::Persist { seq: persist.seq },
            LogEvent::Compact(through) => LogNote::Compact { through: *through },
            LogEvent::Spare(made) => LogNote::Spare { made: made.is_ok() },
        }
    }
}

/// What came of a step of the log writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStep {
    /// The time that it was told.
    pub now_us: u64,
    /// The number of the last request that is durable now, and how many were written in this step.
    pub written: Option<(u64, u64)>,
    /// Up to where the log was cut.
    pub cut: Option<Index>,
    /// Bytes in use in the log.
    pub log_bytes: u64,
    /// A spare segment was ordered.
    pub orders: bool,
    /// The log lacks space on the disk.
    pub lacks_space: bool,
}

impl LogStep {
    /// Of these effects.
    pub fn of(effects: &LogEffects, now_us: u64) -> LogStep {
        let written = effects.written.as_ref().map(|w| (w.seq, w.batch.len() as u64));
        LogStep {
            now_us,
            written,
            cut: effects.cut.map(|cut| cut.through),
            log_bytes: effects.log_bytes,
            orders: effects.order.is_some(),
            lacks_space: effects.lacks_space,
        }
    }

    /// Whether anything came of it.
    pub fn is_news(&self) -> bool {
        self.written.is_some() || self.cut.is_some() || self.orders || self.lacks_space
    }
}

/// What the applier was told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskNote {
    /// To apply these committed entries.
    Apply {
        /// The first.
        first: Index,
        /// The last.
        last: Index,
    },
    /// To have the store flush.
    Flush,
    /// That it has flushed something.
    Flushed,
    /// To wait for a repair of the store.
    Hold,
    /// To put a snapshot in place of the state.
    Install {
        /// Where it ends.
        index: Index,
    },
}

impl TaskNote {
    /// Of this task.
    pub fn of<C, Snapshot>(task: &ApplyTask<C, Snapshot>) -> TaskNote {
        match task {
            ApplyTask::Apply(Apply { committed, .. }) => {
                TaskNote::Apply { first: committed.first, last: committed.last }
            }
            ApplyTask::Flush => TaskNote::Flush,
            ApplyTask::Flushed => TaskNote::Flushed,
            ApplyTask::Hold => TaskNote::Hold,
            ApplyTask::Install { index, .. } => TaskNote::Install { index: *index },
        }
    }
}

/// What the applier did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DidNote {
    /// When, on the clock that the others are told.
    pub now_us: u64,
    /// Everything up to here is applied, and up to there durable in the store.
    pub applied: Option<(Index, Index)>,
    /// The state's digest behind it: see `kv::Machine`.
    pub digest: u32,
    /// How many answers it gave, and a checksum of them.
    pub answers: (u64, u32),
    /// What it told the others as its digest.
    pub told: Option<(Index, u32)>,
    /// A snapshot was taken in: where it ends.
    pub installed: Option<(Index, Term)>,
    /// Damage was met in the store.
    pub damaged: bool,
}

impl DidNote {
    /// Of these effects; `digest` is the state's. `name` names a client.
    pub fn of<C>(
        effects: &ApplyEffects<C>,
        digest: u32,
        now_us: u64,
        name: impl Fn(&C) -> u64,
    ) -> DidNote {
        DidNote {
            now_us,
            applied: effects.applied.map(|Applied { index, flushed }| (index, flushed)),
            digest,
            answers: (effects.answers.len() as u64, of_answers(&effects.answers, &name)),
            told: effects.digest,
            installed: match &effects.installed {
                Some(Installed::Done { mark, .. }) => Some((mark.index, mark.term)),
                Some(Installed::TooLate | Installed::Unread) | None => None,
            },
            damaged: effects.damage.is_some(),
        }
    }
}

/// Why a recording ends while the process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// It is as long as it may be.
    Limit,
}

mod kind {
    pub(super) const START: u8 = 1;
    pub(super) const HANDLED: u8 = 2;
    pub(super) const TICKED: u8 = 3;
    pub(super) const EFFECTS: u8 = 4;
    pub(super) const LOG_EVENT: u8 = 5;
    pub(super) const LOG_STEP: u8 = 6;
    pub(super) const TASK: u8 = 7;
    pub(super) const DID: u8 = 8;
    pub(super) const END: u8 = 9;
}

/// Appends the body of [`Record::Handled`], to a node that holds the members' secret so.
pub fn put_handled<C>(
    out: &mut Vec<u8>,
    now_us: u64,
    input: &Input<C>,
    own: &Secret,
    name: impl Fn(&C) -> u64,
) {
    out.push(kind::HANDLED);
    put_numbers(out, &[now_us]);
    put_input(out, input, own, &name);
}

/// Appends the body of [`Record::Ticked`].
pub fn put_ticked(out: &mut Vec<u8>, now_us: u64) {
    out.push(kind::TICKED);
    put_numbers(out, &[now_us]);
}

/// Appends the body of [`Record::Effects`].
pub fn put_effects<C>(
    out: &mut Vec<u8>,
    now_us: u64,
    effects: &NodeEffects<C>,
    name: impl Fn(&C) -> u64,
) {
    put_prints(out, now_us, &of_effects(effects, &name));
}

fn put_prints(out: &mut Vec<u8>, now_us: u64, prints: &[Print]) {
    out.push(kind::EFFECTS);
    put_numbers(out, &[now_us]);
    // There are fewer parts than a byte counts.
    out.push(prints.len() as u8);
    for Print { part, crc } in prints {
        out.push(part.number());
        out.extend_from_slice(&crc.to_le_bytes());
    }
}

/// Appends the body of any record.
pub fn put_body(out: &mut Vec<u8>, record: &Record) {
    match record {
        Record::Start(start) => {
            out.push(kind::START);
            put_start(out, start);
        }
        // One that was read has no secret in it.
        Record::Handled { now_us, input } => {
            put_handled(out, *now_us, input, &Secret::default(), |&client| client);
        }
        Record::Ticked { now_us } => put_ticked(out, *now_us),
        Record::Effects { now_us, prints } => put_prints(out, *now_us, prints),
        Record::LogEvent(note) => {
            let (what, number) = match *note {
                LogNote::Persist { seq } => (1, seq),
                LogNote::Compact { through } => (2, through),
                LogNote::Spare { made } => (3, u64::from(made)),
            };
            out.extend_from_slice(&[kind::LOG_EVENT, what]);
            put_numbers(out, &[number]);
        }
        Record::LogStep(step) => {
            out.push(kind::LOG_STEP);
            put_numbers(out, &[step.now_us]);
            put_pair(out, step.written);
            put_option(out, step.cut);
            put_numbers(out, &[step.log_bytes]);
            out.extend_from_slice(&[u8::from(step.orders), u8::from(step.lacks_space)]);
        }
        Record::Task(task) => {
            let (what, numbers) = match *task {
                TaskNote::Apply { first, last } => (1, [first, last]),
                TaskNote::Flush => (2, [0; 2]),
                TaskNote::Hold => (3, [0; 2]),
                TaskNote::Install { index } => (4, [index, 0]),
                TaskNote::Flushed => (5, [0; 2]),
            };
            out.extend_from_slice(&[kind::TASK, what]);
            put_numbers(out, &numbers);
        }
        Record::Did(did) => {
            out.push(kind::DID);
            put_numbers(out, &[did.now_us]);
            put_pair(out, did.applied);
            put_numbers(out, &[u64::from(did.digest), did.answers.0, u64::from(did.answers.1)]);
            put_pair(out, did.told.map(|(index, digest)| (index, u64::from(digest))));
            put_pair(out, did.installed);
            out.push(u8::from(did.damaged));
        }
        Record::End(EndReason::Limit) => out.extend_from_slice(&[kind::END, 1]),
    }
}

/// Reads a record's body.
///
/// # Errors
/// It is none of this version.
pub fn take_body(body: &[u8]) -> Result<Record, Malformed> {
    let mut input = Bytes(body);
    let input = &mut input;
    let record = match input.u8("record kind")? {
        kind::START => Record::Start(Box::new(take_start(input)?)),
        kind::HANDLED => {
            let now_us = input.u64("time")?;
            Record::Handled { now_us, input: Box::new(take_input(input)?) }
        }
        kind::TICKED => Record::Ticked { now_us: input.u64("time")? },
        kind::EFFECTS => {
            let now_us = input.u64("time")?;
            let count = input.u8("effects")?;
            let mut prints = Vec::with_capacity(usize::from(count));
            for _ in 0..count {
                let part = Part::of(input.u8("kind of effect")?);
                let part = part.ok_or(Malformed("kind of effect"))?;
                prints.push(Print { part, crc: input.u32("checksum of an effect")? });
            }
            Record::Effects { now_us, prints }
        }
        kind::LOG_EVENT => {
            let what = input.u8("log event")?;
            let number = input.u64("log event")?;
            Record::LogEvent(match what {
                1 => LogNote::Persist { seq: number },
                2 => LogNote::Compact { through: number },
                3 => LogNote::Spare { made: number != 0 },
                _ => return Err(Malformed("log event")),
            })
        }
        kind::LOG_STEP => Record::LogStep(LogStep {
            now_us: input.u64("time")?,
            written: take_pair(input, "what was written")?,
            cut: take_option(input, "what was cut")?,
            log_bytes: input.u64("bytes of the log")?,
            orders: take_flag(input, "order of a spare")?,
            lacks_space: take_flag(input, "space of the log")?,
        }),
        kind::TASK => {
            let what = input.u8("task")?;
            let (first, last) = (input.u64("task")?, input.u64("task")?);
            Record::Task(match what {
                1 => TaskNote::Apply { first, last },
                2 => TaskNote::Flush,
                3 => TaskNote::Hold,
                4 => TaskNote::Install { index: first },
                5 => TaskNote::Flushed,
                _ => return Err(Malformed("task")),
            })
        }
        kind::DID => {
            let now_us = input.u64("time")?;
            let applied = take_pair(input, "applied index")?;
            let digest = take_crc(input, "digest")?;
            let answers = (input.u64("answers")?, take_crc(input, "checksum of answers")?);
            let told = match take_pair(input, "digest that was told")? {
                None => None,
                Some((index, digest)) => {
                    let digest = u32::try_from(digest).map_err(|_| Malformed("digest"))?;
                    Some((index, digest))
                }
            };
            let installed = take_pair(input, "snapshot")?;
            let damaged = take_flag(input, "damage")?;
            Record::Did(DidNote { now_us, applied, digest, answers, told, installed, damaged })
        }
        kind::END => match input.u8("end")? {
            1 => Record::End(EndReason::Limit),
            _ => return Err(Malformed("end")),
        },
        _ => return Err(Malformed("record kind")),
    };
    input.end("record length")?;
    Ok(record)
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Longer ones fit no frame, log or configuration.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_option(out: &mut Vec<u8>, value: Option<u64>) {
    out.push(u8::from(value.is_some()));
    put_numbers(out, value.as_slice());
}

fn put_pair(out: &mut Vec<u8>, value: Option<(u64, u64)>) {
    out.push(u8::from(value.is_some()));
    if let Some((one, two)) = value {
        put_numbers(out, &[one, two]);
    }
}

fn take_flag(input: &mut Bytes<'_>, what: &'static str) -> Result<bool, Malformed> {
    match input.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed(what)),
    }
}

fn take_option(input: &mut Bytes<'_>, what: &'static str) -> Result<Option<u64>, Malformed> {
    Ok(if take_flag(input, what)? { Some(input.u64(what)?) } else { None })
}

fn take_pair(input: &mut Bytes<'_>, what: &'static str) -> Result<Option<(u64, u64)>, Malformed> {
    Ok(if take_flag(input, what)? { Some((input.u64(what)?, input.u64(what)?)) } else { None })
}

fn take_crc(input: &mut Bytes<'_>, what: &'static str) -> Result<u32, Malformed> {
    u32::try_from(input.u64(what)?).map_err(|_| Malformed(what))
}

fn take_text(input: &mut Bytes<'_>, what: &'static str) -> Result<String, Malformed> {
    let bytes = input.blob(what)?;
    std::str::from_utf8(bytes).map(str::to_string).map_err(|_| Malformed(what))
}
