//! The datapath on this machine's kernel: programs loaded, sockets and packets sent. Needs root;
//! says so and passes otherwise.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod direct;
mod faults;
mod frame;
mod fresh;
mod known;
mod packets;
mod ports;
mod scratch;
mod sockets;
mod tables;
mod upgrade;
mod xdp;
