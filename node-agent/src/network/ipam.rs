//! Which pod has which address. The file is written, and on disk, before an address is used, so
//! that no restart hands one out twice; an address is reused as late as possible.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{HostPort, NetworkError};

/// An attached pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    pub namespace: String,
    pub name: String,
    /// One per family; never empty.
    pub ips: Vec<IpAddr>,
    /// The host's end of the veth pair.
    pub interface: String,
    /// Here, so that a successor can serve them before it sees the pod.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct State {
    /// By pod uid.
    leases: BTreeMap<String, Lease>,
    /// By range: the offset at which the search for a free address goes on.
    next: BTreeMap<IpNet, u128>,
}

#[derive(Debug)]
pub struct Ipam {
    file: PathBuf,
    ranges: Vec<IpNet>,
    state: State,
}

impl Ipam {
    /// Reads what a predecessor wrote. A missing file is an empty one.
    pub fn open(file: &Path) -> io::Result<Self> {
        let state = match std::fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                io::Error::other(format!(
                    "{} is damaged ({error}); move it away when no pod runs on this node",
                    file.display()
                ))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            file: file.to_path_buf(),
            ranges: Vec::new(),
            state,
        })
    }

    /// The node's `spec.podCIDRs`. Leases outside stay with their pods.
    pub fn set_ranges(&mut self, ranges: Vec<IpNet>) {
        self.ranges = ranges;
    }

    pub fn ranges(&self) -> &[IpNet] {
        &self.ranges
    }

    pub fn lease(&self, uid: &str) -> Option<&Lease> {
        self.state.leases.get(uid)
    }

    pub fn leases(&self) -> impl Iterator<Item = (&String, &Lease)> {
        self.state.leases.iter()
    }

    /// The pod's addresses; new ones, one per range, unless it has some.
    pub fn allocate(
        &mut self,
        uid: &str,
        lease: impl FnOnce(Vec<IpAddr>) -> Lease,
    ) -> Result<Lease, NetworkError> {
        if let Some(lease) = self.state.leases.get(uid) {
            return Ok(lease.clone());
        }
        if self.ranges.is_empty() {
            return Err(NetworkError::NoAddress(
                "the node has no spec.podCIDR yet; the node IPAM controller assigns one".into(),
            ));
        }
        let used: HashSet<IpAddr> = self
            .state
            .leases
            .values()
            .flat_map(|lease| lease.ips.iter().copied())
            .collect();
        let mut next = self.state.next.clone();
        let mut ips = Vec::with_capacity(self.ranges.len());
        for range in &self.ranges {
            let start = next.get(range).copied().unwrap_or(FIRST_OFFSET);
            let (ip, offset) = find_free(range, start, &used).ok_or_else(|| {
                NetworkError::NoAddress(format!("every address of {range} is in use"))
            })?;
            next.insert(*range, offset + 1);
            ips.push(ip);
        }
        let lease = lease(ips);
        let mut state = self.state.clone();
        state.next = next;
        state.leases.insert(uid.to_string(), lease.clone());
        self.commit(state)?;
        Ok(lease)
    }

    /// Only after nothing uses the addresses any more.
    pub fn free(&mut self, uid: &str) -> Result<(), NetworkError> {
        if !self.state.leases.contains_key(uid) {
            return Ok(());
        }
        let mut state = self.state.clone();
        state.leases.remove(uid);
        self.commit(state)
    }

    fn commit(&mut self, state: State) -> Result<(), NetworkError> {
        write_durably(&self.file, &state).map_err(|error| {
            NetworkError::Other(format!("cannot write {}: {error}", self.file.display()))
        })?;
        self.state = state;
        Ok(())
    }
}

/// The network's own address and the first, which people expect to be a gateway's, are left out.
const FIRST_OFFSET: u128 = 2;

fn find_free(range: &IpNet, start: u128, used: &HashSet<IpAddr>) -> Option<(IpAddr, u128)> {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let size = 1u128.checked_shl(bits).unwrap_or(u128::MAX);
    // The last address of an IPv4 network is its broadcast address (RFC 919 §7).
    let end = if range.addr().is_ipv4() {
        size.saturating_sub(1)
    } else {
        size
    };
    let first = if size > 4 { FIRST_OFFSET } else { 0 };
    let end = if size > 4 { end } else { size };
    let count = end.checked_sub(first).filter(|count| *count > 0)?;
    // One more than all that are in use is enough to find a free one.
    let attempts = count.min(used.len() as u128 + 1);
    let begin = start.clamp(first, end) - first;
    (0..attempts)
        .map(|step| first + (begin + step) % count)
        .map(|offset| (at(range, offset), offset))
        .find(|(ip, _)| !used.contains(ip))
}

fn at(range: &IpNet, offset: u128) -> IpAddr {
    match range.network() {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) + offset as u32).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) + offset).into()),
    }
}

fn write_durably(file: &Path, state: &State) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let temporary = file.with_extension("new");
    let mut output = std::fs::File::create(&temporary)?;
    output.write_all(&serde_json::to_vec(state)?)?;
    output.sync_all()?;
    std::fs::rename(&temporary, file)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn lease(ips: Vec<IpAddr>) -> Lease {
        Lease {
            namespace: "default".into(),
            name: "pod".into(),
            ips,
            interface: "sk0".into(),
            host_ports: Vec::new(),
        }
    }

    fn open(folder: &tempfile::TempDir, ranges: &[&str]) -> Ipam {
        let mut ipam = Ipam::open(&folder.path().join("pods.json")).unwrap();
        ipam.set_ranges(ranges.iter().map(|range| range.parse().unwrap()).collect());
        ipam
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate(u8),
        Free(u8),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..24).prop_map(Step::Allocate),
            3 => (0u8..24).prop_map(Step::Free),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn never_hands_out_twice(steps in prop::collection::vec(step(), 1..60)) {
            let folder = tempfile::tempdir().unwrap();
            let ranges = ["10.244.1.0/28", "fd00:1::/124"];
            let mut ipam = open(&folder, &ranges);
            let mut model: HashMap<String, Vec<IpAddr>> = HashMap::new();
            for step in steps {
                match step {
                    Step::Allocate(pod) => {
                        let uid = pod.to_string();
                        match ipam.allocate(&uid, lease) {
                            Ok(lease) => {
                                prop_assert_eq!(lease.ips.len(), 2);
                                if let Some(before) = model.get(&uid) {
                                    prop_assert_eq!(before, &lease.ips);
                                } else {
                                    for ip in &lease.ips {
                                        prop_assert!(!model.values().flatten().any(|used| used == ip));
                                        prop_assert!(ranges.iter().any(|range| range.parse::<IpNet>().unwrap().contains(ip)));
                                    }
                                    model.insert(uid, lease.ips);
                                }
                            }
                            // 13 usable IPv4 addresses.
                            Err(_) => prop_assert_eq!(model.len(), 13),
                        }
                    }
                    Step::Free(pod) => {
                        ipam.free(&pod.to_string()).unwrap();
                        model.remove(&pod.to_string());
                    }
                    Step::Restart => ipam = open(&folder, &ranges),
                }
            }
        }
    }

    #[test]
    fn reuses_as_late_as_possible() {
        let folder = tempfile::tempdir().unwrap();
        let mut ipam = open(&folder, &["10.244.1.0/24"]);
        let first = ipam.allocate("a", lease).unwrap();
        ipam.free("a").unwrap();
        let second = ipam.allocate("b", lease).unwrap();
        assert_ne!(first.ips, second.ips);
        assert_eq!(first.ips, ["10.244.1.2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn without_a_range_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let mut ipam = open(&folder, &[]);
        let error = ipam.allocate("a", lease).unwrap_err();
        assert!(error.to_string().contains("spec.podCIDR"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_not_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pods.json"), b"{").unwrap();
        assert!(Ipam::open(&folder.path().join("pods.json")).is_err());
    }
}
