//! The only user of aya and of `unsafe`: loads the eBPF programs, pins their maps and links,
//! attaches them, and offers the maps as typed tables.
//!
//! It must not know Kubernetes: a Service is a [`services::ServicePort`] here, a pod is an address
//! and an interface. Everything is pinned below one folder of a bpffs; an agent that starts finds
//! the maps as its predecessor left them and replaces the programs of the links in place, so that
//! no packet sees a moment without a program.
//!
//! Read `loader` first, then `services`.
#![allow(
    unsafe_code,
    reason = "bpf(2), and memory shared with the kernel; see the crate's doc"
)]

mod clsact;
mod counters;
mod error;
mod events;
mod flows;
mod links;
mod loader;
mod memory;
mod pins;
mod pods;
pub mod policy;
mod programs;
mod resident;
pub mod services;
mod slots;
mod sys;
mod table;
pub mod trace;
mod xdp;

pub use counters::{ReasonCount, ServiceCount};
pub use error::Error;
pub use events::{Event, EventReader};
pub use flows::{FlowEntry, Sweep};
pub use links::TcHook;
pub use loader::{Datapath, DatapathConfig, Limits, cleanup, ensure_bpffs};
pub use pods::PodLink;
pub use programs::{PacketResult, ProgramCost, Verdict};
pub use resident::release_program;
pub use skep_ebpf_common as layout;
pub use sys::{Offload, give_back_memory, netns_cookie, set_offload, share_memory};
pub use xdp::{XdpMode, XdpState};
