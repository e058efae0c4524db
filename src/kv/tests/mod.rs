//! Tests of the state machine: scenarios, and properties against a naive model.
mod codec;
mod lsm;
mod machine;
mod model;
mod query;
mod sessions;
mod strategies;
