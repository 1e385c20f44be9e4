//! Services as the kernel has them. A caller says what one port of a Service should be
//! ([`ServiceTables::set`]); the difference to what is programmed is written, nothing else.
//!
//! Order of writes, so that a program sees the old state or the new one, never a mixture:
//! backends, slots, then frontends (each one atomic write), then removals. What a program may
//! still be reading is reused only after [`QUARANTINE`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use skep_ebpf_common::service::*;
use skep_ebpf_common::{Address, PortBe};

use crate::error::Error;
use crate::memory::{BackendArray, SlotArray};
use crate::slots::SlotAllocator;
use crate::table::{Prefix, Table};

/// A program runs for microseconds; one that read a slot has long ended after this.
const QUARANTINE: Duration = Duration::from_secs(1);

/// Slots in a Maglev table: prime, and 100 times the backends, for a balance within 1 %
/// (Eisenbud et al., "Maglev", NSDI 2016, §5.3). How many slots move between backends that stay
/// depends on the same ratio: less than 1 % at 500 times, and in the larger two of these at any. Up to the fourth
/// size that costs little memory.
const MAGLEV_SIZES: [u32; 5] = [251, 2_039, 16_381, 65_521, 131_071];
const MAGLEV_BALANCED: usize = 100;
const MAGLEV_CALM: usize = 500;
/// With less, shares differ by more than 5 %: then balance goes before consistency.
const MAGLEV_LEAST: usize = 20;

/// One usable pod address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub port: u16,
    /// Runs on this node.
    pub local: bool,
}

/// One address and port that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendAddress {
    /// Unspecified (`0.0.0.0`, `::`): a NodePort, on every address of the node of this family.
    pub ip: IpAddr,
    pub port: u16,
    /// Reachable from outside the cluster.
    pub external: bool,
    /// Only for clients in [`ServicePort::source_ranges`], if there are any.
    pub restricted: bool,
}

/// One port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// IANA number: 6 TCP, 17 UDP, 132 SCTP.
    pub protocol: u8,
    pub frontends: Vec<FrontendAddress>,
    /// For clients in pods and on nodes: internalTrafficPolicy applied. No duplicates.
    pub internal: Vec<Endpoint>,
    /// For clients outside: externalTrafficPolicy applied. No duplicates.
    pub external: Vec<Endpoint>,
    /// sessionAffinity ClientIP.
    pub affinity: Option<Duration>,
    /// externalTrafficPolicy Local: keep the client's address, drop where no backend is local.
    pub external_local: bool,
    /// Consistent choice for clients outside.
    pub maglev: bool,
    /// How clients outside reach backends of other nodes.
    pub forwarding: Forwarding,
    /// loadBalancerSourceRanges; empty = everybody.
    pub source_ranges: Vec<IpNet>,
}

/// How what comes from outside gets to a backend of another node, and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Forwarding {
    /// Through the tunnel with the client's address, where there is one; else hidden behind the
    /// node.
    #[default]
    Auto,
    /// Hidden behind the node where it came in; answers come back through it.
    SourceNat,
    /// With the client's address; the backend's node answers directly.
    DirectReturn,
}

/// A frontend as the kernel has it, for `skep services --node`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendView {
    pub name: Option<String>,
    /// Unspecified: a NodePort.
    pub ip: IpAddr,
    pub port: u16,
    pub protocol: u8,
    pub service: u32,
    pub affinity: Option<Duration>,
    pub internal: Vec<(IpAddr, u16)>,
    pub external: Vec<(IpAddr, u16)>,
    /// Given to each of these backends, of those that had any.
    pub connections: BTreeMap<(IpAddr, u16), u64>,
}

/// Connections that a backend of a Service port was given since it became one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConnections {
    pub name: String,
    pub ip: IpAddr,
    pub port: u16,
    pub connections: u64,
}

/// A part of the slots, which have the backends' indices. The table alone remembers them: a Maglev table is large.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    base: u32,
    len: u32,
    /// Order of the reserved run; `None` = no run.
    order: Option<u8>,
}

impl Run {
    fn extent(&self) -> Extent {
        Extent {
            base: self.base,
            len: self.len,
        }
    }

    fn range(&self) -> Range<u32> {
        self.base..self.base + self.len
    }
}

#[derive(Debug, Default)]
struct Programmed {
    id: u32,
    /// Indices of its backends, each once. The table has the addresses: there are as many of these
    /// as the cluster has endpoints.
    backends: Vec<u32>,
    internal: Run,
    /// `None`: the same backends as `internal`, the same run.
    external: Option<Run>,
    /// Few, and many Services have one: a map of each would be most of what is remembered of it.
    frontends: Vec<(FrontendKey, Frontend)>,
    source_ranges: BTreeSet<IpNet>,
}

enum Waste {
    Backend(u32),
    Run { base: u32, order: u8 },
    Id(u32),
}

pub struct ServiceTables {
    frontends: Table<FrontendKey, Frontend>,
    slots: SlotArray,
    backends: BackendArray,
    source_ranges: Table<Prefix<SourceRange>, u32>,
    /// Boxed, as a hash map has room for twice as many.
    by_name: HashMap<Arc<str>, Box<Programmed>>,
    /// Names by id.
    names: HashMap<u32, Arc<str>>,
    /// What a predecessor left and nobody has claimed yet, by id.
    adopted: HashMap<u32, Box<Programmed>>,
    owner: HashMap<FrontendKey, u32>,
    runs: SlotAllocator,
    free_backends: Numbers,
    free_ids: Numbers,
    quarantine: VecDeque<(Instant, Waste)>,
}

impl ServiceTables {
    /// Takes over what is in the maps.
    pub(crate) fn adopt(
        frontends: Table<FrontendKey, Frontend>,
        slots: SlotArray,
        backends: BackendArray,
        source_ranges: Table<Prefix<SourceRange>, u32>,
    ) -> Result<Self, Error> {
        let mut found: Vec<(FrontendKey, Frontend)> = Vec::new();
        frontends.for_each(|key, value| found.push((*key, *value)))?;
        // In the order of the tables, of which only a part is mapped.
        found.sort_unstable_by_key(|(_, frontend)| frontend.internal.base);
        let mut ranges: HashMap<u32, BTreeSet<IpNet>> = HashMap::new();
        for prefix in source_ranges.keys()? {
            if let Some(net) = network_of(&prefix) {
                ranges.entry(prefix.data.service).or_default().insert(net);
            }
        }

        let mut tables = Self {
            runs: SlotAllocator::new(1 << slots.len().ilog2()),
            frontends,
            slots,
            backends,
            source_ranges,
            by_name: HashMap::new(),
            names: HashMap::new(),
            adopted: HashMap::new(),
            owner: HashMap::new(),
            free_backends: Numbers::default(),
            free_ids: Numbers::default(),
            quarantine: VecDeque::new(),
        };
        for (key, frontend) in found {
            tables.adopt_frontend(key, frontend);
        }
        for (id, nets) in ranges {
            if let Some(programmed) = tables.adopted.get_mut(&id) {
                programmed.source_ranges = nets;
            }
        }
        let used: HashSet<u32> = tables
            .adopted
            .values()
            .flat_map(|programmed| programmed.backends.iter().copied())
            .collect();
        tables.free_backends = Numbers::new(0..tables.backends.len(), |n| used.contains(n));
        tables.free_ids = Numbers::new(1..MAX_SERVICES, |id| tables.adopted.contains_key(id));
        Ok(tables)
    }

    fn adopt_frontend(&mut self, key: FrontendKey, frontend: Frontend) {
        if !self.adopted.contains_key(&frontend.service) {
            let Some(internal) = self.adopt_run(frontend.internal) else {
                return;
            };
            let external = if frontend.external == frontend.internal {
                None
            } else {
                match self.adopt_run(frontend.external) {
                    Some(run) => Some(run),
                    None => return,
                }
            };
            let runs = [Some(internal), external].into_iter().flatten();
            let named: BTreeSet<u32> = runs.flat_map(|run| self.indices(run)).collect();
            let own = named
                .into_iter()
                .filter(|index| self.is_backend(*index, frontend.service));
            let backends = own.collect();
            let programmed = Programmed {
                id: frontend.service,
                backends,
                internal,
                external,
                ..Programmed::default()
            };
            self.adopted.insert(frontend.service, Box::new(programmed));
        }
        if let Some(programmed) = self.adopted.get_mut(&frontend.service) {
            programmed.frontends.push((key, frontend));
            self.owner.insert(key, frontend.service);
        }
    }

    /// `None`: the extent overlaps another or lies outside; the frontend is written anew.
    fn adopt_run(&mut self, extent: Extent) -> Option<Run> {
        if extent.len == 0 {
            return Some(Run::default());
        }
        let order = SlotAllocator::order_of(extent.len);
        let end = extent.base.checked_add(extent.len)?;
        if end > self.slots.len() || !self.runs.reserve(extent.base, order) {
            return None;
        }
        Some(Run {
            base: extent.base,
            len: extent.len,
            order: Some(order),
        })
    }

    fn indices(&self, run: Run) -> impl Iterator<Item = u32> {
        run.range().filter_map(|slot| self.slots.get(slot))
    }

    /// Makes the kernel's state of the named Service port what `wanted` says.
    ///
    /// # Errors
    /// `Full`: the port keeps its former state.
    pub fn set(&mut self, name: &str, wanted: &ServicePort) -> Result<(), Error> {
        self.recycle(Instant::now())?;
        let (name, mut programmed) = match self.by_name.remove_entry(name) {
            Some(known) => known,
            None => {
                let claimed = self.claim(wanted)?;
                let name: Arc<str> = name.into();
                self.names.insert(claimed.id, name.clone());
                (name, claimed)
            }
        };
        let result = self.write(&mut programmed, wanted);
        self.by_name.insert(name, programmed);
        result
    }

    /// Removes the named Service port. Missing is success.
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        self.recycle(Instant::now())?;
        match self.by_name.remove(name) {
            Some(programmed) => self.erase(*programmed),
            None => Ok(()),
        }
    }

    /// Removes what a predecessor left and nobody claimed. Only after every informer has synced.
    pub fn remove_unclaimed(&mut self) -> Result<usize, Error> {
        let unclaimed: Vec<_> = self.adopted.drain().map(|(_, value)| value).collect();
        let count = unclaimed.len();
        for programmed in unclaimed {
            self.erase(*programmed)?;
        }
        // Frontends whose extents could not be adopted.
        for key in self.frontends.keys()? {
            if !self.owner.contains_key(&key) {
                self.frontends.remove(&key)?;
            }
        }
        Ok(count)
    }

    /// Names of the ports that were set.
    pub fn names(&self) -> Vec<String> {
        self.by_name.keys().map(ToString::to_string).collect()
    }

    /// The id under which this port is counted.
    pub fn ids(&self) -> Vec<(String, u32)> {
        self.by_name
            .iter()
            .map(|(name, port)| (name.to_string(), port.id))
            .collect()
    }

    /// What each backend was given, of those that were given any.
    pub fn connections(&self) -> Vec<BackendConnections> {
        let mut given = Vec::new();
        for (name, port) in &self.by_name {
            for &index in &port.backends {
                let connections = self.backends.connections(index);
                if connections > 0
                    && let Some(backend) = self.backends.get(index)
                {
                    given.push(BackendConnections {
                        name: name.to_string(),
                        ip: backend.address.to_ip(),
                        port: backend.port.get(),
                        connections,
                    });
                }
            }
        }
        given
    }

    /// The maps' content, as the programs see it.
    pub fn view(&self) -> Result<Vec<FrontendView>, Error> {
        let mut frontends: Vec<(FrontendKey, Frontend)> = Vec::new();
        self.frontends
            .for_each(|key, frontend| frontends.push((*key, *frontend)))?;
        // In the order of the tables, of which only a part is mapped.
        frontends.sort_unstable_by_key(|(_, frontend)| frontend.internal.base);
        let mut views = Vec::with_capacity(frontends.len());
        for (key, frontend) in &frontends {
            let mut connections = BTreeMap::new();
            let mut list = |extent: Extent| -> Vec<(IpAddr, u16)> {
                let mut listed = Vec::new();
                for (index, backend) in self.backends_in(extent) {
                    let at = (backend.address.to_ip(), backend.port.get());
                    listed.push(at);
                    match self.backends.connections(index) {
                        0 => {}
                        count => {
                            connections.insert(at, count);
                        }
                    }
                }
                listed
            };
            let (internal, external) = (list(frontend.internal), list(frontend.external));
            views.push(FrontendView {
                name: self.name_of(frontend.service),
                ip: key.address.to_ip(),
                port: key.port.get(),
                protocol: key.protocol,
                service: frontend.service,
                affinity: (frontend.affinity_seconds != 0)
                    .then(|| Duration::from_secs(u64::from(frontend.affinity_seconds))),
                internal,
                external,
                connections,
            });
        }
        views.sort_by_key(|view| (view.ip, view.port, view.protocol));
        Ok(views)
    }

    /// A frontend as the programs find it, and the name of its Service port.
    pub(crate) fn frontend(
        &self,
        key: &FrontendKey,
    ) -> Result<Option<(Frontend, Option<String>)>, Error> {
        let Some(frontend) = self.frontends.get(key)? else {
            return Ok(None);
        };
        Ok(Some((frontend, self.name_of(frontend.service))))
    }

    fn name_of(&self, id: u32) -> Option<String> {
        self.names.get(&id).map(ToString::to_string)
    }

    /// The backends of an extent, each once, with their indices.
    pub(crate) fn backends_in(&self, extent: Extent) -> Vec<(u32, Backend)> {
        let mut seen = HashSet::new();
        (extent.base..extent.base.saturating_add(extent.len))
            .filter_map(|slot| self.slots.get(slot))
            .filter(|index| seen.insert(*index))
            .filter_map(|index| Some((index, self.backends.get(index)?)))
            .collect()
    }

    pub(crate) fn is_backend(&self, index: u32, service: u32) -> bool {
        let backend = self.backends.get(index);
        backend.is_some_and(|backend| backend.service == service)
    }

    /// Whether a range of the Service's holds the client.
    pub(crate) fn allows(&self, client: &Prefix<SourceRange>) -> Result<bool, Error> {
        Ok(self.source_ranges.get(client)?.is_some())
    }

    fn claim(&mut self, wanted: &ServicePort) -> Result<Box<Programmed>, Error> {
        for key in wanted
            .frontends
            .iter()
            .map(|frontend| key_of(frontend, wanted.protocol))
        {
            let Some(id) = self.owner.get(&key) else {
                continue;
            };
            if let Some(programmed) = self.adopted.remove(id) {
                return Ok(programmed);
            }
        }
        let id = self.free_ids.pop().ok_or(Error::Full {
            table: "SERVICE_COUNTERS",
            limit: MAX_SERVICES,
            hint: "fewer Service ports",
        })?;
        Ok(Box::new(Programmed {
            id,
            ..Programmed::default()
        }))
    }

    fn write(&mut self, port: &mut Programmed, wanted: &ServicePort) -> Result<(), Error> {
        let internal = self.place(port, &wanted.internal)?;
        let external = self.place(port, &wanted.external)?;
        // One backend needs no table to be chosen by all nodes alike.
        let mut maglev = wanted.maglev && external.len() > 1;
        let shared = !maglev && same_members(&wanted.internal, &wanted.external);

        self.fill(&mut port.internal, &internal)?;
        let external_extent = if shared {
            port.internal.extent()
        } else {
            let mut run = port.external.take().unwrap_or_default();
            if maglev {
                let members: Vec<(String, u32)> = wanted
                    .external
                    .iter()
                    .zip(&external)
                    .map(|(endpoint, index)| (format!("{}:{}", endpoint.ip, endpoint.port), *index))
                    .collect();
                // A smaller table rather than none, and balanced at random rather than not at all.
                maglev = false;
                for size in maglev_sizes(members.len(), run.len) {
                    let table = maglev_table(&members, size);
                    if !self.holds(run, &table) && !self.has_room_for_table(size) {
                        continue;
                    }
                    match self.refill(&mut run, &table) {
                        Ok(()) => {
                            maglev = true;
                            break;
                        }
                        Err(Error::Full { .. }) => {}
                        Err(error) => {
                            port.external = Some(run);
                            return Err(error);
                        }
                    }
                }
            }
            let result = if maglev {
                Ok(())
            } else {
                self.fill(&mut run, &external)
            };
            let extent = run.extent();
            port.external = Some(run);
            result?;
            extent
        };
        self.write_source_ranges(port, &wanted.source_ranges)?;

        let mut frontends = BTreeMap::new();
        for frontend in &wanted.frontends {
            frontends.insert(
                key_of(frontend, wanted.protocol),
                Frontend {
                    service: port.id,
                    flags: flags_of(frontend, wanted, maglev),
                    internal: port.internal.extent(),
                    external: external_extent,
                    affinity_seconds: wanted
                        .affinity
                        .map_or(0, |affinity| affinity.as_secs().clamp(1, 86_400) as u32),
                    _pad: 0,
                },
            );
        }
        for (key, frontend) in &frontends {
            let known = port.frontends.iter().position(|(known, _)| known == key);
            let same = known.is_some_and(|at| port.frontends[at].1 == *frontend);
            if !same || self.owner.get(key) != Some(&port.id) {
                self.frontends.set(key, frontend)?;
                self.owner.insert(*key, port.id);
                match known {
                    Some(at) => port.frontends[at].1 = *frontend,
                    None => port.frontends.push((*key, *frontend)),
                }
            }
        }
        while let Some(at) = port
            .frontends
            .iter()
            .position(|(key, _)| !frontends.contains_key(key))
        {
            self.remove_frontend(port.id, &port.frontends[at].0)?;
            port.frontends.swap_remove(at);
        }
        port.frontends.shrink_to_fit();

        // From here on nothing refers to what is no longer wanted.
        if shared && let Some(run) = port.external.take() {
            self.discard_run(run);
        }
        let kept: HashSet<u32> = internal.iter().chain(&external).copied().collect();
        let gone = port.backends.extract_if(.., |index| !kept.contains(index));
        for index in gone {
            self.discard_backend(index)?;
        }
        port.backends.shrink_to_fit();
        Ok(())
    }

    /// Tables get no more than half of all slots, so that there is always room for plain runs.
    fn has_room_for_table(&self, size: u32) -> bool {
        let run = 1u32 << SlotAllocator::order_of(size);
        self.runs.free_slots() >= run + self.slots.len() / 2
    }

    /// The backends' indices, new ones written.
    fn place(&mut self, port: &mut Programmed, endpoints: &[Endpoint]) -> Result<Vec<u32>, Error> {
        let mut indices = Vec::with_capacity(endpoints.len());
        let of_port = port
            .backends
            .iter()
            .filter_map(|&index| Some((index, self.backends.get(index)?)));
        let mut known: HashMap<(Address, PortBe), (u32, Backend)> = of_port
            .map(|(index, backend)| ((backend.address, backend.port), (index, backend)))
            .collect();
        for endpoint in endpoints {
            let key = (Address::from(endpoint.ip), PortBe::new(endpoint.port));
            let wanted = Backend {
                address: key.0,
                port: key.1,
                flags: if endpoint.local {
                    backend_flags::LOCAL
                } else {
                    0
                },
                service: port.id,
            };
            let index = match known.get(&key) {
                Some((index, backend)) if *backend == wanted => *index,
                found => {
                    let old = found.map(|(index, _)| *index);
                    if self.free_backends.is_empty() {
                        self.wait_for_quarantine()?;
                    }
                    let index = self.free_backends.pop().ok_or(Error::Full {
                        table: "BACKENDS",
                        limit: self.backends.len(),
                        hint: "raise the limit of backends and restart the agent",
                    })?;
                    self.backends.set(index, wanted)?;
                    port.backends.push(index);
                    known.insert(key, (index, wanted));
                    if let Some(old) = old {
                        port.backends.retain(|index| *index != old);
                        self.discard_backend_later(old);
                    }
                    index
                }
            };
            indices.push(index);
        }
        Ok(indices)
    }

    /// Makes the run hold exactly `wanted`, in any order, with as few stores as possible. Slots
    /// beyond the new length keep a valid backend until the frontends are written.
    fn fill(&mut self, run: &mut Run, wanted: &[u32]) -> Result<(), Error> {
        let fits = run.order.is_some_and(|order| wanted.len() <= 1 << order);
        if !fits {
            return if wanted.is_empty() {
                Ok(())
            } else {
                self.refill(run, wanted)
            };
        }
        let mut slots: Vec<u32> = self.indices(*run).collect();
        let wanted_set: HashSet<u32> = wanted.iter().copied().collect();
        let have: HashSet<u32> = slots.iter().copied().collect();
        let mut added: Vec<u32> = wanted
            .iter()
            .copied()
            .filter(|index| !have.contains(index))
            .collect();
        let mut position = 0;
        while position < slots.len() {
            if wanted_set.contains(&slots[position]) {
                position += 1;
                continue;
            }
            let replacement = match added.pop() {
                Some(index) => index,
                None => {
                    let Some(last) = slots.pop() else { break };
                    run.len = slots.len() as u32;
                    if position == slots.len() {
                        break;
                    }
                    last
                }
            };
            self.slots.set(run.base + position as u32, replacement)?;
            slots[position] = replacement;
        }
        for index in added {
            self.slots.set(run.base + run.len, index)?;
            run.len += 1;
        }
        Ok(())
    }

    /// Writes a fresh run; the old one is quarantined.
    fn refill(&mut self, run: &mut Run, wanted: &[u32]) -> Result<(), Error> {
        if self.holds(*run, wanted) {
            return Ok(());
        }
        let order = SlotAllocator::order_of(wanted.len() as u32);
        let allocated = match self.runs.allocate(order) {
            None => {
                self.wait_for_quarantine()?;
                self.runs.allocate(order)
            }
            allocated => allocated,
        };
        let base = allocated.ok_or(Error::Full {
            table: "SLOTS",
            limit: self.slots.len(),
            hint: "raise the limit of slots and restart the agent",
        })?;
        for (slot, index) in (base..).zip(wanted) {
            if let Err(error) = self.slots.set(slot, *index) {
                self.runs.release(base, order);
                return Err(error);
            }
        }
        let old = std::mem::replace(
            run,
            Run {
                base,
                len: wanted.len() as u32,
                order: Some(order),
            },
        );
        self.discard_run(old);
        Ok(())
    }

    fn holds(&self, run: Run, wanted: &[u32]) -> bool {
        run.order.is_some()
            && run.len as usize == wanted.len()
            && self.indices(run).eq(wanted.iter().copied())
    }

    fn write_source_ranges(
        &mut self,
        port: &mut Programmed,
        wanted: &[IpNet],
    ) -> Result<(), Error> {
        let wanted: BTreeSet<IpNet> = wanted.iter().map(IpNet::trunc).collect();
        for net in &wanted {
            if port.source_ranges.insert(*net) {
                self.source_ranges.set(&source_range(port.id, net), &1)?;
            }
        }
        let stale: Vec<IpNet> = port.source_ranges.difference(&wanted).copied().collect();
        for net in stale {
            self.source_ranges.remove(&source_range(port.id, &net))?;
            port.source_ranges.remove(&net);
        }
        Ok(())
    }

    fn erase(&mut self, mut port: Programmed) -> Result<(), Error> {
        for (key, _) in &port.frontends {
            self.remove_frontend(port.id, key)?;
        }
        self.write_source_ranges(&mut port, &[])?;
        self.discard_run(port.internal);
        if let Some(run) = port.external {
            self.discard_run(run);
        }
        for index in port.backends {
            self.discard_backend(index)?;
        }
        self.names.remove(&port.id);
        self.quarantine
            .push_back((Instant::now(), Waste::Id(port.id)));
        Ok(())
    }

    /// Another Service may have taken the address over meanwhile.
    fn remove_frontend(&mut self, id: u32, key: &FrontendKey) -> Result<(), Error> {
        if self.owner.get(key) == Some(&id) {
            self.frontends.remove(key)?;
            self.owner.remove(key);
        }
        Ok(())
    }

    fn discard_run(&mut self, run: Run) {
        if let Some(order) = run.order {
            self.quarantine.push_back((
                Instant::now(),
                Waste::Run {
                    base: run.base,
                    order,
                },
            ));
        }
    }

    fn discard_backend(&mut self, index: u32) -> Result<(), Error> {
        self.discard_backend_later(index);
        self.backends.retire(index)
    }

    /// A backend that moved to another element: slots may still name it, so it stays usable until
    /// the quarantine ends.
    fn discard_backend_later(&mut self, index: u32) {
        self.quarantine
            .push_back((Instant::now(), Waste::Backend(index)));
    }

    /// Before saying that a table is full: many changes within a second can fill it with what is
    /// only waiting to be reused.
    fn wait_for_quarantine(&mut self) -> Result<(), Error> {
        if let Some((since, _)) = self.quarantine.back() {
            std::thread::sleep(QUARANTINE.saturating_sub(since.elapsed()));
        }
        self.recycle(Instant::now())
    }

    fn recycle(&mut self, now: Instant) -> Result<(), Error> {
        while let Some((since, _)) = self.quarantine.front()
            && now.duration_since(*since) >= QUARANTINE
        {
            match self.quarantine.pop_front() {
                Some((_, Waste::Backend(index))) => {
                    self.backends.retire(index)?;
                    self.free_backends.push(index);
                }
                Some((_, Waste::Run { base, order })) => self.runs.release(base, order),
                Some((_, Waste::Id(id))) => self.free_ids.push(id),
                None => {}
            }
        }
        Ok(())
    }
}

/// Numbers to give away, without a list of those that were never given.
#[derive(Debug, Default)]
struct Numbers {
    /// From here on all are free.
    rest: Range<u32>,
    /// Free ones below it.
    returned: Vec<u32>,
}

impl Numbers {
    fn new(all: Range<u32>, is_used: impl Fn(&u32) -> bool) -> Self {
        let beyond = all.clone().rev().find(&is_used);
        let rest = beyond.map_or(all.start, |last| last + 1)..all.end;
        let below = (all.start..rest.start).rev();
        Self {
            returned: below.filter(|number| !is_used(number)).collect(),
            rest,
        }
    }

    fn pop(&mut self) -> Option<u32> {
        self.returned.pop().or_else(|| self.rest.next())
    }

    fn push(&mut self, number: u32) {
        self.returned.push(number);
    }

    fn is_empty(&self) -> bool {
        self.returned.is_empty() && self.rest.is_empty()
    }
}

fn key_of(frontend: &FrontendAddress, protocol: u8) -> FrontendKey {
    let address = Address::from(frontend.ip);
    FrontendKey::new(address, PortBe::new(frontend.port), protocol)
}

fn flags_of(frontend: &FrontendAddress, wanted: &ServicePort, maglev: bool) -> u32 {
    let mut flags = 0;
    if !frontend.external {
        flags |= frontend_flags::INTERNAL_ONLY;
    }
    if wanted.external_local {
        flags |= frontend_flags::EXTERNAL_LOCAL;
        if wanted.external.is_empty() && !wanted.internal.is_empty() {
            flags |= frontend_flags::EXTERNAL_DROP;
        }
    }
    match wanted.forwarding {
        Forwarding::Auto => {}
        Forwarding::SourceNat => flags |= frontend_flags::SOURCE_NAT,
        Forwarding::DirectReturn => flags |= frontend_flags::DIRECT_RETURN,
    }
    if maglev {
        flags |= frontend_flags::EXTERNAL_MAGLEV;
    }
    if frontend.restricted && !wanted.source_ranges.is_empty() {
        flags |= frontend_flags::SOURCE_RANGES;
    }
    flags
}

fn same_members(a: &[Endpoint], b: &[Endpoint]) -> bool {
    a == b
        || (a.len() == b.len()
            && a.iter().collect::<HashSet<_>>() == b.iter().collect::<HashSet<_>>())
}

fn source_range(service: u32, net: &IpNet) -> Prefix<SourceRange> {
    let family_bits = if net.addr().is_ipv4() { 96 } else { 0 };
    Prefix {
        bits: 32 + family_bits + u32::from(net.prefix_len()),
        data: SourceRange {
            service,
            client: Address::from(net.addr()),
        },
    }
}

fn network_of(prefix: &Prefix<SourceRange>) -> Option<IpNet> {
    let bits = prefix.bits.checked_sub(32)?;
    let ip = prefix.data.client.to_ip();
    let bits = if ip.is_ipv4() {
        bits.checked_sub(96)?
    } else {
        bits
    };
    IpNet::new(ip, u8::try_from(bits).ok()?).ok()
}

/// Sizes to try for so many backends, the best first. None: there are too many.
///
/// A table does not shrink with its backends: one of another size has nearly all in other places. So a node that came
/// later may have a smaller one than others.
fn maglev_sizes(count: usize, current: u32) -> Vec<u32> {
    let [.., large, largest] = MAGLEV_SIZES;
    if count * MAGLEV_LEAST > largest as usize {
        return Vec::new();
    }
    let at_least = |slots: usize| {
        let fits = |size: &u32| *size as usize >= slots;
        MAGLEV_SIZES.into_iter().find(fits).unwrap_or(largest)
    };
    let balanced = at_least(count * MAGLEV_BALANCED);
    let calm = at_least(count * MAGLEV_CALM).min(large).max(balanced);
    let kept = Some(current).filter(|size| MAGLEV_SIZES.contains(size) && *size > calm);
    let mut sizes: Vec<u32> = kept.into_iter().chain([calm, balanced]).collect();
    sizes.dedup();
    sizes
}

/// The lookup table of Maglev (NSDI 2016, §3.4, algorithm 1): the same members give the same table
/// on every node, and losing one moves few of the others.
fn maglev_table(members: &[(String, u32)], size: u32) -> Vec<u32> {
    if members.is_empty() {
        return Vec::new();
    }
    let size = size as usize;
    let mut members: Vec<&(String, u32)> = members.iter().collect();
    members.sort();
    // Where each member is on its way through the table, and by how much it goes on.
    let mut walks: Vec<(usize, usize)> = members
        .iter()
        .map(|(name, _)| {
            let offset = hash(name.as_bytes(), 0x5ce9) as usize % size;
            let skip = hash(name.as_bytes(), 0xbee5) as usize % (size - 1) + 1;
            (offset, skip)
        })
        .collect();
    let mut table = vec![u32::MAX; size];
    let mut filled = 0;
    loop {
        for ((at, skip), (_, index)) in walks.iter_mut().zip(&members) {
            while table[*at] != u32::MAX {
                *at += *skip;
                if *at >= size {
                    *at -= size;
                }
            }
            table[*at] = *index;
            filled += 1;
            if filled == size {
                return table;
            }
        }
    }
}

/// FNV-1a with a seed, finished by MurmurHash3's mixer: stable across versions and machines.
fn hash(bytes: &[u8], seed: u64) -> u64 {
    let mut value = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in bytes {
        value = (value ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: usize) -> Vec<(String, u32)> {
        (0..count)
            .map(|i| (format!("10.244.{}.{}:80", i / 250, i % 250), i as u32))
            .collect()
    }

    #[test]
    fn numbers_are_given_once_and_again_when_they_come_back() {
        let mut numbers = Numbers::new(1..6, |n| [2, 4].contains(n));
        let given: Vec<u32> = std::iter::from_fn(|| numbers.pop()).collect();
        assert_eq!(given, [1, 3, 5]);
        assert!(numbers.is_empty());
        numbers.push(4);
        assert_eq!((numbers.pop(), numbers.pop()), (Some(4), None));
        assert_eq!(Numbers::new(0..2, |_| false).pop(), Some(0));
        assert!(Numbers::new(0..2, |_| true).is_empty());
    }

    #[test]
    fn maglev_balances_and_moves_little() {
        for count in [1usize, 2, 7, 50, 160, 6_553] {
            let table = maglev_table(&members(count), maglev_sizes(count, 0)[0]);
            let mut shares = HashMap::new();
            for member in &table {
                *shares.entry(*member).or_insert(0usize) += 1;
            }
            assert_eq!(shares.len(), count);
            let fair = table.len() as f64 / count as f64;
            for share in shares.values() {
                assert!(
                    (*share as f64 - fair).abs() / fair < 0.05,
                    "{share} of {fair}"
                );
            }
        }
        assert!(maglev_sizes(6_554, 0).is_empty());
        // 251 backends are not a table for 5.
        assert_eq!(maglev_sizes(5, 251), [16_381, 2_039]);
        // Of the backends that stay, few slots change hands when one goes.
        for count in [3, 5, 10, 20, 33, 50, 160, 656, 2_000, 6_553] {
            let all = members(count);
            let before = maglev_table(&all, maglev_sizes(count, 0)[0]);
            for lost in [0, count / 2, count - 1] {
                let mut rest = all.clone();
                rest.remove(lost);
                let size = maglev_sizes(count - 1, before.len() as u32)[0];
                let after = maglev_table(&rest, size);
                assert_eq!(after.len(), before.len());
                let pairs = before.iter().zip(&after);
                let moved = pairs.filter(|(a, b)| **a != lost as u32 && a != b).count();
                let share = moved as f64 / before.len() as f64;
                assert!(
                    share < 0.01,
                    "{count} backends without number {lost}: {share}"
                );
            }
        }
    }
}
