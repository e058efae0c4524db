//! Records a run the way `kontiki serve --record` does: the same bytes, a file for each life of each node.
//!
//! So a recording of thousands of different runs can be had, in which every kind of fault occurs, and replayed: what a
//! recording lacks shows there, and whether a replay calls wrong what the simulator allows.

use super::replay::File;
use super::run::{Failed, Options, Report, run_world};
use super::world::World;
use crate::node::recording::{
    Record, RecordWriter, Start, file_name, put_body, put_effects, put_handled, put_ticked,
};
use crate::node::{Input, NodeEffects};
use crate::raft::NodeId;
use crate::wire::proof::Secret;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Recordings of a run. None are made unless somebody asks for them.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    nodes: BTreeMap<NodeId, Lives>,
}

#[derive(Debug, Default)]
struct Lives {
    /// Number of the present life.
    number: u64,
    writers: Vec<RecordWriter>,
}

impl Recordings {
    /// A life begins. One that does not go on where the last one ended leaves out a number.
    fn begin(&mut self, node: NodeId, mut start: Start, goes_on: bool) {
        let lives = self.nodes.entry(node).or_default();
        lives.number += if goes_on { 1 } else { 2 };
        start.life = lives.number;
        lives.writers.push(RecordWriter::default());
        self.put(node, |out| put_body(out, &Record::Start(Box::new(start))));
    }

    /// Adds a record of a node; `put` appends its body.
    pub(super) fn put(&mut self, node: NodeId, put: impl FnOnce(&mut Vec<u8>)) {
        let writer = self.nodes.get_mut(&node).and_then(|lives| lives.writers.last_mut());
        if let Some(writer) = writer {
            let mut body = Vec::new();
            put(&mut body);
            writer.put(&body);
        }
    }

    /// The raft loop gets an input.
    pub(super) fn handled(&mut self, node: NodeId, now_us: u64, input: &Input<u64>, own: &Secret) {
        self.put(node, |out| put_handled(out, now_us, input, own, |&client| client));
    }

    /// The raft loop is told the time, and gives its effects.
    pub(super) fn stepped(&mut self, node: NodeId, now_us: u64, effects: &NodeEffects<u64>) {
        self.put(node, |out| put_ticked(out, now_us));
        self.put(node, |out| put_effects(out, now_us, effects, |&client| client));
    }

    fn into_files(self) -> Vec<File> {
        let mut files = Vec::new();
        for (node, lives) in self.nodes {
            for (at, mut writer) in (1..).zip(lives.writers) {
                let path = PathBuf::from(file_name(node, at));
                files.push(File { path, bytes: writer.take() });
            }
        }
        files
    }
}

impl World {
    /// A process has begun to run.
    pub(super) fn begin_recording(&mut self, node: NodeId) {
        let Some(recordings) = &mut self.recordings else { return };
        let Some(n) = self.nodes.get_mut(&node) else { return };
        if let Some(start) = n.begun.take() {
            let (unix_us, connections) = (self.now_us, !self.network.harsh);
            recordings.begin(node, Start { unix_us, connections, ..*start }, !n.old_copy);
        }
    }
}

/// What a recorded run has left.
#[derive(Debug)]
pub struct Recorded {
    /// The recordings, by node and life.
    pub files: Vec<File>,
    /// What came of the run itself.
    pub verdict: Result<Report, Box<Failed>>,
}

/// Runs one seed and records it.
pub fn record(seed: u64, options: &Options) -> Recorded {
    let (verdict, mut world) = run_world(seed, options, true);
    let files = world.recordings.take().unwrap_or_default().into_files();
    Recorded { files, verdict }
}
