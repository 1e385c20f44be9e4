//! The verbs, one set for all resources.

pub mod create;
pub mod delete;
pub mod patch;
pub mod read;
pub mod selection;
pub mod update;
pub mod watch;
pub mod write;
