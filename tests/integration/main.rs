//! Integration tests: the house rules, and clusters of real processes.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod allocator;
mod backup;
mod bad_input;
mod cluster_script;
mod deletes;
mod descriptors;
mod floods;
mod full_disk;
mod impostor;
mod inspect;
mod kill_rounds;
mod limits;
mod links;
mod loading;
mod members;
mod memory;
mod namespaces;
mod recording;
mod repair;
mod restart;
mod sessions;
mod slow_clients;
mod snapshots;
mod support;
mod sync_before_ack;
mod telnet;
mod terms;
#[cfg(unix)]
mod threads;
mod tidy;
