//! EndpointSlices as a node needs them. A cluster has hundreds of thousands of endpoints and every
//! node knows all of them: as typed objects they are 700 bytes each, here 20.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::SystemTime;

use parking_lot::RwLock;
use serde::Deserialize;
use skep_client::informer::by_service;
use skep_client::{Kept, ObjectKey};
use skep_datapath::layout::{SCTP, TCP, UDP};

use crate::slim::{Identity, Metadata, Sent, Slim, digest};

pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Set on a slice: when that happened which made it differ.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// An EndpointSlice without what nobody on a node reads. Never written back.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Read")]
pub struct Slice {
    identity: Identity,
    service: Option<Box<str>>,
    /// When that happened which made it differ, as far as it is said.
    pub triggered: Option<SystemTime>,
    pub ports: Box<[Port]>,
    ips: Ips,
    /// Of each endpoint, in the order of `ips`.
    facts: Box<[Facts]>,
    /// By the endpoint's place among all, in that order.
    more: Box<[(u32, More)]>,
}

#[derive(Clone, Debug)]
pub struct Port {
    pub name: Box<str>,
    /// IANA number.
    pub protocol: u8,
    pub number: Option<u16>,
}

/// The first address of each endpoint: the others are the same endpoint's.
#[derive(Clone, Debug)]
enum Ips {
    V4(Box<[Ipv4Addr]>),
    V6(Box<[Ipv6Addr]>),
    /// Which nothing is sent to.
    Names,
}

impl Ips {
    fn get(&self, index: usize) -> Option<IpAddr> {
        match self {
            Self::V4(ips) => ips.get(index).map(|ip| IpAddr::V4(*ip)),
            Self::V6(ips) => ips.get(index).map(|ip| IpAddr::V6(*ip)),
            Self::Names => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Facts {
    /// Of the pod's uid; 0: no pod. Two pods with the same would have to live at the same time in one namespace to matter.
    pod: u64,
    node: Option<Word>,
    flags: u8,
}

/// What few endpoints have.
#[derive(Clone, Debug, Default)]
struct More {
    hostname: Option<Box<str>>,
    zones: Box<[Word]>,
    nodes: Box<[Word]>,
}

const READY: u8 = 1;
const SERVING: u8 = 2;
const TERMINATING: u8 = 4;

/// One of a slice's.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    pub ip: IpAddr,
    facts: &'a Facts,
    more: Option<&'a More>,
}

impl<'a> Endpoint<'a> {
    pub fn is_ready(&self) -> bool {
        self.facts.flags & READY != 0
    }

    pub fn is_serving(&self) -> bool {
        self.facts.flags & SERVING != 0
    }

    pub fn is_terminating(&self) -> bool {
        self.facts.flags & TERMINATING != 0
    }

    pub fn node(&self) -> Option<Word> {
        self.facts.node
    }

    pub fn hostname(&self) -> Option<&'a str> {
        self.more?.hostname.as_deref()
    }

    /// Zones and nodes whose clients it is meant for (KEP-2433, KEP-3015).
    pub fn hints(&self) -> (&'a [Word], &'a [Word]) {
        self.more
            .map_or((&[], &[]), |more| (&more.zones, &more.nodes))
    }

    pub fn is_pod(&self, uid: &str) -> bool {
        self.facts.pod != 0 && self.facts.pod == digest(uid)
    }
}

impl Slice {
    pub fn namespace(&self) -> &str {
        &self.identity.namespace
    }

    pub fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }

    /// Whether its endpoints have addresses of this family.
    pub fn is_v4(&self, v4: bool) -> bool {
        match self.ips {
            Ips::V4(_) => v4,
            Ips::V6(_) => !v4,
            Ips::Names => false,
        }
    }

    /// Those that have an address.
    pub fn endpoints(&self) -> impl Iterator<Item = Endpoint<'_>> {
        self.facts.iter().enumerate().filter_map(|(index, facts)| {
            let more = self
                .more
                .binary_search_by_key(&index, |(at, _)| *at as usize);
            Some(Endpoint {
                ip: self.ips.get(index)?,
                facts,
                more: more.ok().map(|at| &self.more[at].1),
            })
        })
    }
}

/// The name of a node or a zone. Equal names are the same word, which is kept for good: there are
/// few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Word(NonZeroU32);

static WORDS: LazyLock<RwLock<HashMap<Box<str>, Word>>> = LazyLock::new(RwLock::default);

impl Word {
    pub fn of(text: &str) -> Self {
        if let Some(known) = WORDS.read().get(text) {
            return *known;
        }
        let mut words = WORDS.write();
        let next = NonZeroU32::MIN.saturating_add(words.len() as u32);
        *words.entry(text.into()).or_insert(Self(next))
    }
}

pub fn protocol_number(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        "SCTP" => Some(SCTP),
        _ => None,
    }
}

pub fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        UDP => "udp",
        SCTP => "sctp",
        _ => "tcp",
    }
}

impl Slim for Slice {
    const GROUP: &'static str = "discovery.k8s.io";
    const VERSION: &'static str = "v1";
    const KIND: &'static str = "EndpointSlice";
    const PLURAL: &'static str = "endpointslices";

    fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl Kept for Slice {
    type Sent = Sent<Self>;

    fn keep(sent: Sent<Self>) -> Self {
        sent.object
    }

    fn key(&self) -> ObjectKey {
        self.identity.key()
    }

    fn is_same(&self, other: &Self) -> bool {
        self.identity.is_same(&other.identity)
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        let service = self.service().into_iter();
        service
            .map(|name| by_service(self.namespace(), name))
            .collect()
    }
}

/// As the API writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    address_type: String,
    ports: Option<Vec<ReadPort>>,
    endpoints: Option<Vec<ReadEndpoint>>,
}

#[derive(Deserialize)]
struct ReadPort {
    name: Option<Box<str>>,
    protocol: Option<String>,
    port: Option<i32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadEndpoint {
    #[serde(default)]
    addresses: Vec<String>,
    conditions: Option<Conditions>,
    hostname: Option<Box<str>>,
    node_name: Option<String>,
    hints: Option<Hints>,
    target_ref: Option<TargetRef>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hints {
    for_zones: Option<Vec<Hint>>,
    for_nodes: Option<Vec<Hint>>,
}

#[derive(Deserialize)]
struct Hint {
    name: String,
}

#[derive(Deserialize)]
struct TargetRef {
    uid: Option<String>,
}

impl From<Read> for Slice {
    fn from(read: Read) -> Self {
        let ports = read.ports.into_iter().flatten().filter_map(|port| {
            Some(Port {
                name: port.name.unwrap_or_default(),
                protocol: protocol_number(port.protocol.as_deref())?,
                number: port.port.and_then(|port| u16::try_from(port).ok()),
            })
        });
        let trigger = read.metadata.annotation(TRIGGER_TIME);
        let trigger = trigger.and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let endpoints = read.endpoints.unwrap_or_default();
        let (ips, with_address) = match read.address_type.as_str() {
            "IPv4" => {
                let (ips, of) = addresses(endpoints);
                (Ips::V4(ips), of)
            }
            "IPv6" => {
                let (ips, of) = addresses(endpoints);
                (Ips::V6(ips), of)
            }
            _ => (Ips::Names, Vec::new()),
        };
        let mut more = Vec::new();
        let mut facts = Vec::with_capacity(with_address.len());
        for (index, endpoint) in (0u32..).zip(with_address) {
            facts.push(endpoint.facts());
            more.extend(endpoint.more().map(|more| (index, more)));
        }
        Self {
            identity: read.metadata.identity(),
            service: read.metadata.label(SERVICE_NAME_LABEL).map(Box::from),
            triggered: trigger.map(SystemTime::from),
            ports: ports.collect(),
            ips,
            facts: facts.into_boxed_slice(),
            more: more.into_boxed_slice(),
        }
    }
}

/// The addresses of this family, and whose they are.
fn addresses<A: FromStr>(endpoints: Vec<ReadEndpoint>) -> (Box<[A]>, Vec<ReadEndpoint>) {
    let parsed = endpoints.into_iter().filter_map(|endpoint| {
        let ip = endpoint.addresses.first()?.parse().ok()?;
        Some((ip, endpoint))
    });
    let (ips, of): (Vec<A>, Vec<ReadEndpoint>) = parsed.unzip();
    // Copied: an allocator may leave the room that the vector had grown to with what is in it.
    (ips.into_iter().collect::<Box<[A]>>(), of)
}

impl ReadEndpoint {
    fn facts(&self) -> Facts {
        // Unset: ready, and serving as it is ready (discovery.k8s.io/v1, EndpointConditions).
        let conditions = self.conditions.unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(ready, READY)
            | flag(conditions.serving.unwrap_or(ready), SERVING)
            | flag(conditions.terminating.unwrap_or(false), TERMINATING);
        let target = self.target_ref.as_ref();
        let uid = target.and_then(|target| target.uid.as_deref());
        Facts {
            pod: uid.map_or(0, digest),
            node: self.node_name.as_deref().map(Word::of),
            flags,
        }
    }

    fn more(self) -> Option<More> {
        let hints = self.hints.unwrap_or_default();
        let words = |hints: Option<Vec<Hint>>| -> Box<[Word]> {
            let hints = hints.into_iter().flatten();
            hints.map(|hint| Word::of(&hint.name)).collect()
        };
        let more = More {
            hostname: self.hostname.filter(|name| !name.is_empty()),
            zones: words(hints.for_zones),
            nodes: words(hints.for_nodes),
        };
        let plain = more.hostname.is_none() && more.zones.is_empty() && more.nodes.is_empty();
        (!plain).then_some(more)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_endpoint_is_small() {
        assert_eq!(size_of::<Ipv4Addr>() + size_of::<Facts>(), 20);
    }

    #[test]
    fn slices_are_read_as_the_api_writes_them() {
        let slice: Slice = serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "web-1", "namespace": "default", "resourceVersion": "7",
                "labels": {SERVICE_NAME_LABEL: "web", "app": "web"},
                "annotations": {TRIGGER_TIME: "2026-01-01T00:00:00Z", "other": "x"},
            },
            "addressType": "IPv6",
            "ports": [{"name": "http", "port": 80}, {"port": 53, "protocol": "UDP"}, {"protocol": "X"}],
            "endpoints": [
                {
                    "addresses": ["fd00::5"], "hostname": "a", "nodeName": "node1", "zone": "z",
                    "conditions": {"ready": false, "serving": true, "terminating": true},
                    "targetRef": {"kind": "Pod", "uid": "u-1"},
                    "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "node1"}]},
                },
                {"addresses": ["not an address"], "hostname": "b"},
                {"addresses": ["fd00::6"]},
            ],
        }))
        .unwrap();
        assert_eq!(slice.service(), Some("web"));
        let trigger: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(slice.triggered, Some(trigger.into()));
        assert!(slice.is_v4(false) && !slice.is_v4(true));
        let ports: Vec<_> = slice
            .ports
            .iter()
            .map(|port| (&*port.name, port.protocol, port.number))
            .collect();
        assert_eq!(ports, [("http", TCP, Some(80)), ("", UDP, Some(53))]);
        let endpoints: Vec<Endpoint<'_>> = slice.endpoints().collect();
        let [first, second] = &*endpoints else {
            panic!("{slice:?}");
        };
        assert_eq!(first.ip.to_string(), "fd00::5");
        assert!(!first.is_ready() && first.is_serving() && first.is_terminating());
        assert_eq!(first.node(), Some(Word::of("node1")));
        assert_eq!(first.hostname(), Some("a"));
        assert_eq!(
            first.hints(),
            (&[Word::of("z")][..], &[Word::of("node1")][..])
        );
        assert!(first.is_pod("u-1") && !first.is_pod("u-2"));
        assert_eq!(second.ip.to_string(), "fd00::6");
        assert_eq!(second.hostname(), None);
        assert!(second.is_ready() && second.is_serving() && !second.is_terminating());
        assert!(!second.is_pod(""));
        assert_eq!(second.hints(), (&[][..], &[][..]));
    }

    #[test]
    fn names_are_no_endpoints() {
        let slice: Slice = serde_json::from_value(json!({
            "addressType": "FQDN", "endpoints": [{"addresses": ["example.org"]}],
        }))
        .unwrap();
        assert!(!slice.is_v4(true) && !slice.is_v4(false));
        assert_eq!(slice.endpoints().count(), 0);
    }
}
