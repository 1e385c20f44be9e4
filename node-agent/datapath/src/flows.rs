//! The sweep of the flow table. The kernel evicts nothing: an entry goes when both directions of
//! its connection have been quiet for longer than their state allows.

use std::collections::HashSet;
use std::net::IpAddr;

use skep_ebpf_common::flow::{Flow, FlowKey, TIME_WAIT_SECONDS, flow_flags};
use skep_ebpf_common::node::seconds;
use skep_ebpf_common::{Address, TCP, UDP};

use crate::error::Error;
use crate::table::Table;

/// Above this share of the table, quiet flows go sooner.
const HIGH_WATER_PERCENT: usize = 70;

/// What a sweep saw and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    pub entries: usize,
    pub removed: usize,
    pub limit: u32,
}

/// An entry of the flow table, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    pub protocol: u8,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
    pub new_source: (IpAddr, u16),
    pub new_destination: (IpAddr, u16),
    pub answer: bool,
    pub closing: bool,
    pub service: u32,
}

pub(crate) struct FlowTable(pub(crate) Table<FlowKey, Flow>);

impl Sweep {
    /// Whether the next sweep should come soon.
    pub fn is_high(&self) -> bool {
        self.limit != 0 && self.entries * 100 >= self.limit as usize * HIGH_WATER_PERCENT
    }
}

impl FlowTable {
    /// # Errors
    /// The kernel refused; nothing is half done.
    pub(crate) fn sweep(&self, now: u32) -> Result<Sweep, Error> {
        let mut entries = 0;
        let mut quiet: Vec<(FlowKey, Flow)> = Vec::new();
        self.0.for_each(|key, flow| {
            entries += 1;
            // The shortest time that any state allows at high water; judged exactly below.
            if idle(now, flow) >= 5 {
                quiet.push((*key, *flow));
            }
        })?;
        let limit = self.0.limit();
        let hurry = entries * 100 >= limit as usize * HIGH_WATER_PERCENT;
        let mut removed = HashSet::new();
        for (key, flow) in quiet {
            let allowed = timeout(&key, &flow, hurry);
            if removed.contains(&key) || idle(now, &flow) < allowed {
                continue;
            }
            // It may have been used since, or its other direction may be alive.
            let Some(current) = self.0.get(&key)? else {
                continue;
            };
            if idle(now, &current) < allowed {
                continue;
            }
            let twin_key = current.reverse_key(&key);
            let twin = self.0.get(&twin_key)?.filter(|twin| twin.answers(&key));
            if twin.is_some_and(|twin| idle(now, &twin) < allowed) {
                continue;
            }
            // Both at once, the asking direction first: half a pair would take packets in one
            // direction and lose their answers, for as long as they come.
            let reverse = current.flags & flow_flags::REVERSE != 0;
            let pair = match (twin.is_some(), reverse) {
                (false, _) => vec![key],
                (true, true) => vec![twin_key, key],
                (true, false) => vec![key, twin_key],
            };
            for each in pair {
                self.0.remove(&each)?;
                removed.insert(each);
            }
        }
        let removed = removed.len();
        Ok(Sweep {
            entries,
            removed,
            limit,
        })
    }

    /// Forgets every UDP flow to these backends, so that the next datagram chooses anew.
    pub(crate) fn forget_backends(&self, backends: &[(IpAddr, u16)]) -> Result<usize, Error> {
        let wanted: Vec<(Address, u16)> = backends
            .iter()
            .map(|(ip, port)| (Address::from(*ip), *port))
            .collect();
        let mut stale = Vec::new();
        self.0.for_each(|key, flow| {
            let backend = (flow.destination, flow.destination_port.get());
            if key.protocol == UDP
                && flow.service != 0
                && flow.flags & flow_flags::REVERSE == 0
                && wanted.contains(&backend)
            {
                stale.push((*key, flow.reverse_key(key)));
            }
        })?;
        for (key, twin) in &stale {
            self.0.remove(key)?;
            self.0.remove(twin)?;
        }
        Ok(stale.len())
    }

    pub(crate) fn list(&self) -> Result<Vec<FlowEntry>, Error> {
        let mut list = Vec::new();
        self.0.for_each(|key, flow| {
            list.push(FlowEntry {
                protocol: key.protocol,
                source: (key.source.to_ip(), key.source_port.get()),
                destination: (key.destination.to_ip(), key.destination_port.get()),
                new_source: (flow.source.to_ip(), flow.source_port.get()),
                new_destination: (flow.destination.to_ip(), flow.destination_port.get()),
                answer: flow.flags & flow_flags::REVERSE != 0,
                closing: flow.flags & flow_flags::CLOSING != 0,
                service: flow.service,
            });
        })?;
        Ok(list)
    }
}

pub(crate) fn now() -> Result<u32, Error> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills the structure.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) } != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Error::kernel("read", "the monotonic clock", error));
    }
    Ok(seconds(
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
    ))
}

fn idle(now: u32, flow: &Flow) -> u32 {
    // The clock ticks while a sweep runs: an entry from the future is not idle.
    let idle = now.wrapping_sub(flow.seen);
    if idle > u32::MAX / 2 { 0 } else { idle }
}

/// Whether the asking side's address or port was replaced by one of the node's.
fn holds_port(key: &FlowKey, flow: &Flow) -> bool {
    if flow.flags & flow_flags::REVERSE == 0 {
        (flow.source, flow.source_port) != (key.source, key.source_port)
    } else {
        (flow.destination, flow.destination_port) != (key.destination, key.destination_port)
    }
}

/// Seconds of silence that a flow's state allows.
fn timeout(key: &FlowKey, flow: &Flow, hurry: bool) -> u32 {
    // The answers to a direct flow's datagrams are seen elsewhere.
    let direct = flow.flags & flow_flags::DIRECT != 0 && key.protocol == UDP;
    let answered = flow.flags & flow_flags::ANSWERED != 0 || direct;
    let reset = flow.flags & flow_flags::RESET != 0;
    let both_closed = flow.flags & (flow_flags::FIN | flow_flags::PEER_FIN)
        == flow_flags::FIN | flow_flags::PEER_FIN;
    let (normal, hurried) = match key.protocol {
        // The receiver may hold the connection in TIME_WAIT: nobody else gets the port.
        TCP if both_closed && !reset && holds_port(key, flow) => (TIME_WAIT_SECONDS, 5),
        TCP if reset || both_closed => (10, 5),
        // A half-closed connection may still carry data for long (RFC 5382 REQ-5 names 4 minutes
        // for transitory states).
        TCP if flow.flags & flow_flags::CLOSING != 0 => (240, 60),
        TCP if answered => (7_440, 3_600),
        TCP => (60, 10),
        UDP if answered => (180, 60),
        _ => (30, 10),
    };
    if hurry { hurried } else { normal }
}
