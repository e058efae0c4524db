//! Reads what strace wrote about the nodes of a cluster, and holds it against the promise that
//! nothing is acknowledged before it is durable on a majority.
//!
//! Understood are the lines of `strace -f -y -ttt -T -s N -o FILE` for the calls named in
//! [`CALLS`]. Times are those of one machine's clock, in microseconds; a call that is shown in two
//! halves is put together.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// The calls that say what a node receives, writes, syncs and answers.
pub(crate) const CALLS: &str =
    "read,recvfrom,write,writev,sendto,sendmsg,pwrite64,pwritev,pwritev2,fdatasync,fsync";
/// Bytes of a buffer that are shown: the head of a batch of the log and a write in it.
pub(crate) const BYTES_SHOWN: usize = 400;

/// One system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    /// Number and target of the descriptor, as `-y` shows it.
    pub(crate) file: String,
    /// All arguments as shown.
    pub(crate) arguments: String,
    /// Microseconds since 1970.
    pub(crate) begun_us: u64,
    pub(crate) ended_us: u64,
    /// Lines of the trace in which its beginning and its end are shown: the order in which one
    /// tracer saw things, whatever the clock did meanwhile.
    pub(crate) lines: (usize, usize),
    pub(crate) result: i64,
}

/// Why traces cannot be made here, if they cannot.
pub(crate) fn missing() -> Option<String> {
    if !cfg!(target_os = "linux") {
        return Some("strace is a program of Linux".to_owned());
    }
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-o", "/dev/null", "true"]).stdin(Stdio::null());
    match command.output() {
        Err(e) => Some(format!("strace cannot be run: {e}")),
        Ok(ended) if !ended.status.success() => {
            let why = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
            Some(format!("strace may not trace here: {why}"))
        }
        Ok(_) => None,
    }
}

/// The words in front of a node's command; it stays the direct child, and the tracer ends with it.
pub(crate) fn wrapper(output: &str) -> Vec<String> {
    let shown = BYTES_SHOWN.to_string();
    let trace = format!("trace={CALLS}");
    ["strace", "-D", "-f", "-y", "-ttt", "-T", "-s", &shown, "-e", &trace, "-o", output]
        .map(str::to_owned)
        .to_vec()
}

/// The calls of one node by their beginnings. Calls without an end, and lines of another kind, are
/// left out.
pub(crate) fn parse(text: &str) -> Vec<Event> {
    let mut halves: BTreeMap<&str, (u64, usize, &str)> = BTreeMap::new();
    let mut events = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some((thread, rest)) = line.trim_start().split_once(' ') else { continue };
        let Some((time, rest)) = rest.trim_start().split_once(' ') else { continue };
        let Some(time_us) = microseconds(time) else { continue };
        if let Some(first) = rest.strip_suffix(" <unfinished ...>") {
            halves.insert(thread, (time_us, number, first));
        } else if let Some(second) = rest.strip_prefix("<... ") {
            let Some((begun_us, begun, first)) = halves.remove(thread) else { continue };
            let Some((_, second)) = second.split_once(" resumed>") else { continue };
            events.extend(event(begun_us, (begun, number), &format!("{first}{second}")));
        } else {
            events.extend(event(time_us, (number, number), rest));
        }
    }
    events.sort_by_key(|event| event.begun_us);
    events
}

/// `1700000000.123456`, or the seconds of a duration.
fn microseconds(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.')?;
    let fraction = fraction.get(..6).filter(|_| fraction.len() == 6)?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + fraction.parse::<u64>().ok()?)
}

/// `name(file, arguments) = result <duration>`
fn event(begun_us: u64, lines: (usize, usize), text: &str) -> Option<Event> {
    let (name, rest) = text.split_once('(')?;
    let (call, end) = rest.rsplit_once(") = ").or_else(|| {
        // Short calls are filled up with spaces.
        let (call, end) = rest.rsplit_once(" = ")?;
        Some((call.trim_end().strip_suffix(')')?, end))
    })?;
    let (result, took) = end.rsplit_once('<')?;
    let took_us = microseconds(took.strip_suffix('>')?)?;
    let result = result.split_whitespace().next()?.parse().ok()?;
    let file = call.split(", ").next()?.to_owned();
    let (name, arguments) = (name.to_owned(), call.to_owned());
    Some(Event { name, file, arguments, begun_us, ended_us: begun_us + took_us, lines, result })
}

/// Holds the traces of all nodes against the promise, for writes of the keys named, which one client
/// sent to node `asked` one after another. Says how many acknowledgements were looked at.
///
/// For each: the request had arrived; then on a majority of nodes the write's bytes were written to
/// a file, and a sync of that file was begun after that and ended before the answer was begun.
pub(crate) fn synced_before_acknowledged(
    traces: &[Vec<Event>],
    asked: usize,
    keys: &[String],
) -> Result<usize, String> {
    let majority = traces.len() / 2 + 1;
    let mut acknowledged = 0;
    for key in keys {
        let arrived = traces[asked].iter().find(|event| {
            matches!(&*event.name, "recvfrom" | "read") && event.arguments.contains(&**key)
        });
        let Some(arrived) = arrived else { return Err(format!("{key} did not arrive")) };
        let answered = traces[asked].iter().find(|event| {
            matches!(&*event.name, "sendto" | "write" | "sendmsg" | "writev")
                && event.file == arrived.file
                && event.lines.0 > arrived.lines.1
                && event.arguments.contains("+OK")
        });
        let Some(answered) = answered else { return Err(format!("{key} was not answered")) };
        let durable = traces.iter().filter(|trace| {
            trace.iter().any(|write| {
                write.name.starts_with("pwrite")
                    && write.begun_us >= arrived.ended_us
                    && write.arguments.contains(&**key)
                    && trace.iter().any(|sync| {
                        matches!(&*sync.name, "fdatasync" | "fsync")
                            && sync.file == write.file
                            && sync.result == 0
                            && sync.begun_us >= write.ended_us
                            && sync.ended_us <= answered.begun_us
                    })
            })
        });
        let durable = durable.count();
        if durable < majority {
            return Err(format!(
                "{key} arrived at {}, was acknowledged at {} and durable on {durable} of {} nodes",
                arrived.ended_us,
                answered.begun_us,
                traces.len()
            ));
        }
        acknowledged += 1;
    }
    Ok(acknowledged)
}
