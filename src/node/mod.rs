//! The components of one node, as plain structs: an event goes in, effects come out.
//!
//! | component     | owns                                              | production thread |
//! |---------------|---------------------------------------------------|-------------------|
//! | [`Replica`]   | the consensus core, who waits for which log index | raft loop         |
//! | [`Peers`]     | connections with other nodes: dialing, admission  | raft loop         |
//! | [`Node`]      | the two above, and what one tells the other       | raft loop         |
//! | [`Inbox`]     | what waits for the raft loop, and what wakes it   | everybody's       |
//! | [`Applier`]   | the state machine, what waits for a repair of it  | applier           |
//! | [`SnapshotReceiver`] | a snapshot on its way here               | snapshot          |
//! | [`SnapshotSender`]   | a snapshot that another node fetches     | peer reader       |
//! | [`Sender`]    | what is on its way to a peer on one connection    | peer sender       |
//! | [`LogWriter`] | the log file                                      | log writer        |
//!
//! None of them has a thread, socket or clock; time is an argument. `server/` runs each on a thread
//! with one inbox, the simulator steps each as an actor.
//!
//! [`recording`] writes down what the raft loop, the log writer and the applier got and did, for a replay.
//!
//! [`Startup`] decides who the node is; [`open`] reads what is on disk, and [`Assembly`] makes the components of it; [`verify`]
//! looks through it without opening it.
//!
//! Clients are named by a type parameter `C`: a handle in production, a number in the simulator.
//! Nothing here looks inside. Dialects and frames are not known here: a client's request arrives
//! as an encoded command or as the wish to read, and leaves as a [`Verdict`].

mod admin;
mod applier;
mod assembly;
mod boot;
mod changes;
mod compaction;
mod digests;
mod events;
mod flushes;
mod frames;
mod inbox;
mod link;
mod log_writer;
mod membership;
mod peers;
mod proposals;
mod raft_loop;
mod reads;
pub mod recording;
mod recover;
mod replica;
mod restore;
mod salvage;
mod sender;
mod snapshot_transfer;
mod startup;
mod status;
mod verify;
mod view;
mod words;

#[cfg(test)]
pub(crate) mod tests;

pub use admin::{Admin, AdminForward};
pub use applier::{
    Applied, Applier, ApplyEffects, ApplyError, ApplyTask, Installed, apply_entries, mark_of,
};
pub use assembly::{Assembly, Fixed, Parts, Settings, log_limit, segment_bytes};
pub use boot::{BootError, Opened, Part, Plan, open};
pub use changes::{Answerer, Change, ChangeRefused};
pub use digests::Difference;
pub use events::{Apply, Effects, Input};
pub use frames::{input_of, put_outgoing, request_frame, request_of, response_frame, response_of};
pub use inbox::{INPUTS_MAX, Inbox, WakeInterest};
pub use log_writer::{BATCH_REQUESTS_MAX, Cut, LogEffects, LogError, LogEvent, LogWriter, Written};
pub use membership::MEMBERS_MAX;
pub use peers::{
    ConfigurationHistory, ConnectionId, Due, HASTENED_PATIENCE_US, Keepalive, LogPosition,
    PING_EVERY_US, PONG_PATIENCE_US, PeerEffect, PeerEvent, PeerStatus, Peers, PeersOptions,
    SILENCE_MAX_US, Verdict as PeerVerdict,
};
pub use raft_loop::{Node, NodeEffects, Outgoing};
pub use recover::{RecoverError, Rescued, recover};
pub use replica::{DEADLINE_US, DEADLINE_US_MAX, Replica, ReplicaOptions};
pub use restore::Restore;
pub use salvage::{SaveReport, SavedRow, save};
pub use sender::{Bytes, Fetched, Pongs, Queue, Sender, Sign, WRITE_BYTES};
pub use snapshot_transfer::{
    ReceiverEffect, ReceiverEvent, SNAPSHOT_IDLE_US, SNAPSHOT_SILENCE_US, SenderEffect,
    SnapshotReceiver, SnapshotRequest, SnapshotResponse, SnapshotSender, TransferProgress,
};
pub use startup::{
    Startup, StartupEffect, StartupEvent, StartupOptions, cluster_of, to_keep, to_show,
};
pub use status::Status;
pub use verify::{Report, Totals, check_identity, verify};
pub use view::{ClusterView, OtherNode};
pub use words::*;
