//! Tests of the consensus core.
//!
//! | file             | what it shows                                                           |
//! |------------------|-------------------------------------------------------------------------|
//! | `paper.rs`       | each rule of Figure 2 and section 5.4 on one core, citing the paper     |
//! | `figures.rs`     | Figures 7 and 8 on a whole cluster                                      |
//! | `elections.rs`   | PreVote, CheckQuorum, stickiness, transfer, partitions                  |
//! | `replication.rs` | durability, the log writer's races, hints, configurations               |
//! | `flow.rs`        | windows, breaks, patience with slow followers, reading the log file      |
//! | `reads.rs`       | linearizable reads on leader and followers                              |
//! | `snapshots.rs`   | logs that forget their front, offers, installs (paper section 7)        |
//! | `membership.rs`  | learners, joint consensus, a leader that leaves (section 6, thesis 4)   |
//! | `hostile.rs`     | nothing a peer says trips an assertion                                  |
//! | `random.rs`      | seeded schedules with every invariant after every step, then liveness   |
//!
//! Two harnesses: `solo.rs` holds one core and plays everybody else by hand; `cluster.rs` holds
//! several, sees everything and checks the invariants of the whole after every step.

mod cluster;
mod elections;
mod figures;
mod flow;
mod hostile;
mod membership;
mod paper;
mod random;
mod reads;
mod replication;
mod snapshots;
mod solo;
