//! `kontiki inspect recover DIR --i-accept-data-loss`: a survivor of a lost majority becomes a cluster
//! of one (`node::recover`). The one subject of `inspect` that changes anything, which is why it wants
//! a flag that says what it costs.

use super::exit::Exit;
use super::inspect::Failed;
use super::json::Json;
use crate::env::real::RealRandom;
use crate::env::{Disk, Random as _};
use crate::node::{RecoverError, Rescued, recover as rescue};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// The flag without which nothing is done.
pub(super) const CONSENT: &str = "--i-accept-data-loss";

/// Does it and says what may be missing. The directory is locked already.
pub(super) fn recover(
    disk: &Arc<dyn Disk>,
    data: &Path,
    consent: bool,
    json: bool,
    output: &mut dyn Write,
) -> Result<Exit, Failed> {
    if !consent {
        let why = format!(
            "recover makes {} a cluster of its own and gives up what other nodes have that it has \
             not; only when their majority is lost for ever: add {CONSENT}",
            data.display()
        );
        return Err(Failed::Told(Exit::Usage, why));
    }
    let mut random = RealRandom::default();
    let new = (random.next_u64().max(1), random.secret());
    let rescued = rescue(disk, data, new).map_err(|e| {
        let exit = match e {
            RecoverError::NoMember => Exit::Usage,
            RecoverError::Boot(_) => Exit::Unavailable,
        };
        Failed::Told(exit, e.to_string())
    })?;
    if json {
        writeln!(output, "{}", as_json(&rescued))?;
    } else {
        write!(output, "{}", as_text(&rescued, data))?;
    }
    Ok(Exit::Done)
}

fn as_text(rescued: &Rescued, data: &Path) -> String {
    let Rescued { before, cluster, node, address, applied, last: (last, term), .. } = rescued;
    let mut text = String::new();
    let mut line = |words: String| {
        text.push_str(&words);
        text.push('\n');
    };
    if rescued.was_removed {
        line(format!(
            "node {node} had been removed from its cluster: what it has is of the time before that"
        ));
    }
    line(format!("node {node} is a cluster of one now: {cluster:016x}, before {before:016x}"));
    let open = match last - applied {
        0 => "all of it was committed".to_string(),
        open => format!(
            "the last {open} of it, from {}, count from now on, whether they were ever acknowledged \
             or not",
            applied + 1
        ),
    };
    line(format!("it has everything up to index {last} of term {term}; {open}"));
    line(
        "missing is what the others acknowledged behind that and this node never got; how much, \
         nobody can tell"
            .to_string(),
    );
    let others: Vec<String> =
        rescued.left_out.iter().map(|m| format!("{}@{}", m.id, m.address)).collect();
    if !others.is_empty() {
        let others = others.join(" ");
        line(format!("left out: {others}; they must never be started again with their old data"));
    }
    line(format!("go on with: kontiki serve --data {} --listen {address}", data.display()));
    line(format!(
        "and let new nodes join: kontiki serve --data NEW --listen ADDR --join {address}"
    ));
    text
}

fn as_json(rescued: &Rescued) -> Json {
    let other = |m: &crate::raft::Member| {
        Json::Object(vec![("id", m.id.into()), ("address", m.address.clone().into())])
    };
    Json::Object(vec![
        ("cluster", format!("{:016x}", rescued.cluster).into()),
        ("before", format!("{:016x}", rescued.before).into()),
        ("node", rescued.node.into()),
        ("address", rescued.address.clone().into()),
        ("committed", rescued.applied.into()),
        ("last", rescued.last.0.into()),
        ("term", rescued.last.1.into()),
        ("was_removed", rescued.was_removed.into()),
        ("left_out", Json::Array(rescued.left_out.iter().map(other).collect())),
    ])
}
