//! Integration tests: the house rules, and clusters of real processes.

mod bad_input;
mod cluster_script;
mod full_disk;
mod kill_rounds;
mod loading;
mod restart;
mod slow_clients;
mod snapshots;
mod support;
mod sync_before_ack;
mod telnet;
mod tidy;
