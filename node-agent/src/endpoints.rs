//! EndpointSlices as a node needs them. A cluster has hundreds of thousands of endpoints and every
//! node knows all of them: as typed objects they are 700 bytes each, here 40.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::LazyLock;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::RwLock;
use serde::Deserialize;
use skep_datapath::layout::{SCTP, TCP, UDP};

pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Set on a slice: when that happened which made it differ.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// An EndpointSlice without what nobody on a node reads. Never written back.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Read")]
pub struct Slice {
    /// Names, versions, the label [`SERVICE_NAME_LABEL`] and the annotation [`TRIGGER_TIME`].
    pub metadata: ObjectMeta,
    /// `None`: names, which nothing is sent to.
    pub is_v4: Option<bool>,
    pub ports: Box<[Port]>,
    pub endpoints: Box<[Endpoint]>,
}

#[derive(Clone, Debug)]
pub struct Port {
    pub name: Box<str>,
    /// IANA number.
    pub protocol: u8,
    pub number: Option<u16>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(from = "ReadEndpoint")]
pub struct Endpoint {
    /// The first address: the others are the same endpoint's.
    pub ip: Option<IpAddr>,
    flags: u8,
    node: Option<Word>,
    /// Of the pod's uid; 0: no pod.
    pod: u64,
    more: Option<Box<More>>,
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

impl Endpoint {
    pub fn is_ready(&self) -> bool {
        self.flags & READY != 0
    }

    pub fn is_serving(&self) -> bool {
        self.flags & SERVING != 0
    }

    pub fn is_terminating(&self) -> bool {
        self.flags & TERMINATING != 0
    }

    pub fn node(&self) -> Option<Word> {
        self.node
    }

    pub fn hostname(&self) -> Option<&str> {
        self.more.as_ref()?.hostname.as_deref()
    }

    /// Zones and nodes whose clients it is meant for (KEP-2433, KEP-3015).
    pub fn hints(&self) -> (&[Word], &[Word]) {
        self.more
            .as_ref()
            .map_or((&[], &[]), |more| (&more.zones, &more.nodes))
    }

    pub fn is_pod(&self, uid: &str) -> bool {
        self.pod != 0 && self.pod == digest(uid)
    }
}

impl Slice {
    pub fn service(&self) -> Option<&str> {
        let labels = self.metadata.labels.as_ref()?;
        labels.get(SERVICE_NAME_LABEL).map(String::as_str)
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

/// FNV-1a: two pods with the same would have to live at the same time on one node to matter.
fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
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

impl kube::Resource for Slice {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> std::borrow::Cow<'_, str> {
        "EndpointSlice".into()
    }

    fn group(_: &()) -> std::borrow::Cow<'_, str> {
        "discovery.k8s.io".into()
    }

    fn version(_: &()) -> std::borrow::Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> std::borrow::Cow<'_, str> {
        "endpointslices".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// As the API writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    address_type: String,
    ports: Option<Vec<ReadPort>>,
    endpoints: Option<Vec<Endpoint>>,
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

#[derive(Default, Deserialize)]
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
        Self {
            metadata: slim(read.metadata),
            is_v4: match read.address_type.as_str() {
                "IPv4" => Some(true),
                "IPv6" => Some(false),
                _ => None,
            },
            ports: ports.collect(),
            // Copied: an allocator may leave the room that the vector had grown to with what is in it.
            endpoints: Box::from(read.endpoints.unwrap_or_default().as_slice()),
        }
    }
}

fn slim(metadata: ObjectMeta) -> ObjectMeta {
    let only = |map: Option<BTreeMap<String, String>>, key: &str| {
        let value = map?.remove(key)?;
        Some(BTreeMap::from([(key.to_string(), value)]))
    };
    ObjectMeta {
        labels: only(metadata.labels, SERVICE_NAME_LABEL),
        annotations: only(metadata.annotations, TRIGGER_TIME),
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        ..ObjectMeta::default()
    }
}

impl From<ReadEndpoint> for Endpoint {
    fn from(read: ReadEndpoint) -> Self {
        // Unset: ready, and serving as it is ready (discovery.k8s.io/v1, EndpointConditions).
        let conditions = read.conditions.unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(ready, READY)
            | flag(conditions.serving.unwrap_or(ready), SERVING)
            | flag(conditions.terminating.unwrap_or(false), TERMINATING);
        let hints = read.hints.unwrap_or_default();
        let words = |hints: Option<Vec<Hint>>| -> Box<[Word]> {
            let hints = hints.into_iter().flatten();
            hints.map(|hint| Word::of(&hint.name)).collect()
        };
        let more = More {
            hostname: read.hostname.filter(|name| !name.is_empty()),
            zones: words(hints.for_zones),
            nodes: words(hints.for_nodes),
        };
        let plain = more.hostname.is_none() && more.zones.is_empty() && more.nodes.is_empty();
        Self {
            ip: read.addresses.first().and_then(|ip| ip.parse().ok()),
            flags,
            node: read.node_name.as_deref().map(Word::of),
            pod: read
                .target_ref
                .and_then(|target| target.uid)
                .map_or(0, |uid| digest(&uid)),
            more: (!plain).then(|| Box::new(more)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_endpoint_is_small() {
        assert_eq!(size_of::<Endpoint>(), 40);
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
                {"addresses": ["not an address"]},
            ],
        }))
        .unwrap();
        assert_eq!(slice.service(), Some("web"));
        assert_eq!(slice.metadata.labels.as_ref().unwrap().len(), 1);
        assert_eq!(slice.metadata.annotations.as_ref().unwrap().len(), 1);
        assert_eq!(slice.is_v4, Some(false));
        let ports: Vec<_> = slice
            .ports
            .iter()
            .map(|port| (&*port.name, port.protocol, port.number))
            .collect();
        assert_eq!(ports, [("http", TCP, Some(80)), ("", UDP, Some(53))]);
        let [first, second] = &*slice.endpoints else {
            panic!("{slice:?}");
        };
        assert_eq!(first.ip, Some("fd00::5".parse().unwrap()));
        assert!(!first.is_ready() && first.is_serving() && first.is_terminating());
        assert_eq!(first.node(), Some(Word::of("node1")));
        assert_eq!(first.hostname(), Some("a"));
        assert_eq!(
            first.hints(),
            (&[Word::of("z")][..], &[Word::of("node1")][..])
        );
        assert!(first.is_pod("u-1") && !first.is_pod("u-2"));
        assert_eq!(second.ip, None);
        assert!(second.is_ready() && second.is_serving() && !second.is_terminating());
        assert!(!second.is_pod(""));
        assert_eq!(second.hints(), (&[][..], &[][..]));
    }
}
