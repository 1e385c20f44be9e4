//! What `skep-stream` reports.

use serde::{Deserialize, Serialize};

/// Datagrams that were sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flood {
    pub sent: u64,
    /// Not sent, or told by ICMP that one did not arrive.
    pub failed: u64,
    pub seconds: f64,
}

/// Connections that were held and used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Held {
    pub connections: usize,
    /// Reset, closed by the other side, or without an answer for long.
    pub lost: usize,
    /// Words there and back.
    pub exchanges: u64,
    /// Of the first that were lost.
    pub failures: Vec<String>,
}
