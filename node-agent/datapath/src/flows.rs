//! The sweep of the flow table. The kernel evicts nothing: an entry goes when both directions of
//! its connection have been quiet for longer than their state allows.

use std::collections::HashSet;
use std::net::IpAddr;

use skep_ebpf_common::flow::{Flow, Flow4, FlowKey, FlowKey4, TIME_WAIT_SECONDS, flow_flags};
use skep_ebpf_common::node::seconds;
use skep_ebpf_common::{Address, TCP, UDP};

use crate::error::Error;
use crate::memory::FlowBuckets;
use crate::table::Table;

/// Above this share of the table, quiet flows go sooner.
const HIGH_WATER_PERCENT: usize = 70;

/// What a sweep saw and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    pub entries: usize,
    pub removed: usize,
    pub limit: u32,
    /// Of its limit, of the family that has more of it.
    pub percent: usize,
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

/// The kernel's map of each family.
pub(crate) struct FlowTable {
    pub(crate) v4: FlowBuckets,
    pub(crate) v6: Table<FlowKey, Flow>,
    /// Of each.
    pub(crate) limit: u32,
}

impl Sweep {
    /// Whether the next sweep should come soon.
    pub fn is_high(&self) -> bool {
        self.percent >= HIGH_WATER_PERCENT
    }
}

impl FlowTable {
    fn get(&self, key: &FlowKey) -> Result<Option<Flow>, Error> {
        if key.source.is_v4() {
            let flow = self.v4.get(&FlowKey4::of(key))?;
            return Ok(flow.map(|flow| flow.widened()));
        }
        self.v6.get(key)
    }

    fn remove(&self, key: &FlowKey) -> Result<(), Error> {
        if key.source.is_v4() {
            return self.v4.remove(&FlowKey4::of(key));
        }
        self.v6.remove(key)
    }

    fn for_each(&self, mut visit: impl FnMut(&FlowKey, &Flow)) -> Result<(), Error> {
        self.v4
            .for_each(|key, flow| visit(&key.widened(), &flow.widened()))?;
        self.v6.for_each(visit)
    }

    /// Takes over the flows of an agent that had both families in one map, but for those that are
    /// known already and, where the tables have become smaller, those for which there is no room.
    pub(crate) fn take_over(&self, former: &Table<FlowKey, Flow>) -> Result<(), Error> {
        let mut found = Vec::new();
        former.for_each(|key, flow| found.push((*key, *flow)))?;
        for (key, flow) in found {
            let added = if key.source.is_v4() {
                self.v4.add(&FlowKey4::of(&key), &Flow4::of(&flow))
            } else {
                self.v6.add(&key, &flow)
            };
            match added {
                Ok(_) | Err(Error::Full { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes known what programs of a former layout, or [`Self::take_over`], have put where.
    pub(crate) fn settle(&self) -> Result<(), Error> {
        self.v4.for_each_settling(|_, _| {})
    }

    /// # Errors
    /// The kernel refused; nothing is half done.
    pub(crate) fn sweep(&self, now: u32) -> Result<Sweep, Error> {
        let (mut v4, mut v6) = (0, 0);
        let mut quiet: Vec<(FlowKey, Flow)> = Vec::new();
        let mut see = |key: &FlowKey, flow: &Flow| {
            // The shortest time that any state allows at high water; judged exactly below.
            if idle(now, flow) >= 5 {
                quiet.push((*key, *flow));
            }
        };
        self.v4.for_each_settling(|key, flow| {
            v4 += 1;
            see(&key.widened(), &flow.widened());
        })?;
        self.v6.for_each(|key, flow| {
            v6 += 1;
            see(key, flow);
        })?;
        let percent = |entries: usize, limit: u32| entries * 100 / (limit as usize).max(1);
        let (percent_v4, percent_v6) = (percent(v4, self.limit), percent(v6, self.limit));
        let mut removed = HashSet::new();
        for (key, flow) in quiet {
            let percent = if key.source.is_v4() {
                percent_v4
            } else {
                percent_v6
            };
            let allowed = timeout(&key, &flow, percent >= HIGH_WATER_PERCENT);
            if removed.contains(&key) || idle(now, &flow) < allowed {
                continue;
            }
            // It may have been used since, or its other direction may be alive.
            let Some(current) = self.get(&key)? else {
                continue;
            };
            if idle(now, &current) < allowed {
                continue;
            }
            let twin_key = current.reverse_key(&key);
            let twin = self.get(&twin_key)?.filter(|twin| twin.answers(&key));
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
                self.remove(&each)?;
                removed.insert(each);
            }
        }
        Ok(Sweep {
            entries: v4 + v6,
            removed: removed.len(),
            limit: self.limit.saturating_mul(2),
            percent: percent_v4.max(percent_v6),
        })
    }

    /// Forgets every UDP flow to these backends, so that the next datagram chooses anew.
    pub(crate) fn forget_backends(&self, backends: &[(IpAddr, u16)]) -> Result<usize, Error> {
        let wanted: Vec<(Address, u16)> = backends
            .iter()
            .map(|(ip, port)| (Address::from(*ip), *port))
            .collect();
        let mut stale = Vec::new();
        self.for_each(|key, flow| {
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
            self.remove(key)?;
            self.remove(twin)?;
        }
        Ok(stale.len())
    }

    pub(crate) fn list(&self) -> Result<Vec<FlowEntry>, Error> {
        let mut list = Vec::new();
        self.for_each(|key, flow| {
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
    let asker_first = flow.flags & flow_flags::ASKER_FIRST != 0;
    let both_closed = flow.flags & (flow_flags::FIN | flow_flags::PEER_FIN)
        == flow_flags::FIN | flow_flags::PEER_FIN;
    let (normal, hurried) = match key.protocol {
        // The receiver may hold the connection in TIME_WAIT: nobody else gets the port.
        TCP if both_closed && !reset && !asker_first && holds_port(key, flow) => {
            (TIME_WAIT_SECONDS, 5)
        }
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
