//! Services as a node needs them, as [`crate::endpoints`] has EndpointSlices: a cluster has thousands and
//! every node knows all of them. As typed objects they are 5 KB each, here a twentieth of that.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use skep_client::{Kept, ObjectKey};
use skep_datapath::services::Forwarding;

use crate::endpoints::protocol_number;
use crate::slim::{Identity, Metadata, Sent, Slim};

/// Set on a Service: another proxy serves it.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Set on a Service: `maglev` (the default; of more than 6,553 backends one is chosen at random all the same) or
/// `random`, for clients outside.
const BALANCE_ANNOTATION: &str = "skep.dev/load-balancing";
/// Set on a Service, for clients outside whose backend is on another node: `auto`, `snat` or `dsr`,
/// whatever the agents' `--forwarding-mode` says.
const FORWARDING_ANNOTATION: &str = "skep.dev/forwarding-mode";
/// Written by the controller that assigns addresses of the pool.
const ADDRESS_FROM_POOL: &str = "skep.dev/AddressFromPool";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` when it is not given.
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);

/// A Service without what nobody on a node reads. Never written back.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Read")]
pub struct Service {
    identity: Identity,
    pub kind: Kind,
    pub is_headless: bool,
    pub is_served_by_another_proxy: bool,
    /// internalTrafficPolicy Local.
    pub internal_local: bool,
    /// externalTrafficPolicy Local.
    pub external_local: bool,
    /// Consistent choice for clients outside.
    pub maglev: bool,
    /// `None`: as the agents' options say.
    pub forwarding: Option<Forwarding>,
    /// The ClusterIPs, those of a headless Service excluded: it has none.
    pub ips: Box<[IpAddr]>,
    pub ports: Box<[Port]>,
    more: Option<Box<More>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Internal,
    LoadBalancer,
    ExternalName,
}

#[derive(Clone, Debug)]
pub struct Port {
    pub name: Box<str>,
    /// IANA number.
    pub protocol: u8,
    pub number: u16,
    /// 0: none.
    pub node_port: u16,
}

/// What few Services have.
#[derive(Clone, Debug, Default, PartialEq)]
struct More {
    external_name: Option<Box<str>>,
    external_ips: Box<[IpAddr]>,
    ingress: Box<[Ingress]>,
    source_ranges: Box<[IpNet]>,
    affinity: Option<Duration>,
    health_check_node_port: u16,
    is_from_pool: bool,
}

/// An address of `status.loadBalancer`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ingress {
    pub ip: IpAddr,
    /// Traffic comes to the nodes with this address (ipMode VIP).
    pub is_vip: bool,
}

impl Service {
    pub fn name(&self) -> &str {
        &self.identity.name
    }

    pub fn namespace(&self) -> &str {
        &self.identity.namespace
    }

    /// Of the type that has one.
    pub fn external_name(&self) -> Option<&str> {
        self.more()?.external_name.as_deref()
    }

    pub fn external_ips(&self) -> &[IpAddr] {
        self.more().map_or(&[], |more| &more.external_ips)
    }

    /// Addresses of its load balancer, of whatever type it is now.
    pub fn ingress(&self) -> &[Ingress] {
        self.more().map_or(&[], |more| &more.ingress)
    }

    /// loadBalancerSourceRanges, sorted.
    pub fn source_ranges(&self) -> &[IpNet] {
        self.more().map_or(&[], |more| &more.source_ranges)
    }

    /// sessionAffinity ClientIP.
    pub fn affinity(&self) -> Option<Duration> {
        self.more()?.affinity
    }

    /// 0: none.
    pub fn health_check_node_port(&self) -> u16 {
        self.more().map_or(0, |more| more.health_check_node_port)
    }

    /// Its address is from the pool whose addresses nodes answer for.
    pub fn is_from_pool(&self) -> bool {
        self.more().is_some_and(|more| more.is_from_pool)
    }

    fn more(&self) -> Option<&More> {
        self.more.as_deref()
    }
}

impl Slim for Service {
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const KIND: &'static str = "Service";
    const PLURAL: &'static str = "services";

    fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl Kept for Service {
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
}

/// As the API writes it.
#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<ReadSpec>,
    status: Option<ReadStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ReadSpec {
    r#type: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    external_name: Option<Box<str>>,
    ports: Option<Vec<ReadPort>>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    session_affinity: Option<String>,
    session_affinity_config: Option<ReadAffinity>,
    load_balancer_source_ranges: Option<Vec<String>>,
    health_check_node_port: Option<i32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadPort {
    name: Option<Box<str>>,
    protocol: Option<String>,
    port: i32,
    node_port: Option<i32>,
}

#[derive(Deserialize)]
struct ReadAffinity {
    #[serde(rename = "clientIP")]
    client_ip: Option<ReadClientIp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadClientIp {
    timeout_seconds: Option<i32>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ReadStatus {
    load_balancer: Option<ReadBalancer>,
    conditions: Option<Vec<ReadCondition>>,
}

#[derive(Deserialize)]
struct ReadBalancer {
    ingress: Option<Vec<ReadIngress>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadIngress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

#[derive(Deserialize)]
struct ReadCondition {
    r#type: String,
    status: String,
}

impl From<Read> for Service {
    fn from(read: Read) -> Self {
        let Read {
            metadata,
            spec,
            status,
        } = read;
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        Self {
            identity: metadata.identity(),
            kind: match spec.r#type.as_deref() {
                Some("ExternalName") => Kind::ExternalName,
                Some("LoadBalancer") => Kind::LoadBalancer,
                _ => Kind::Internal,
            },
            is_headless: spec.cluster_ip.as_deref() == Some("None"),
            is_served_by_another_proxy: metadata.label(PROXY_NAME_LABEL).is_some(),
            internal_local: is_local(&spec.internal_traffic_policy),
            external_local: is_local(&spec.external_traffic_policy),
            maglev: metadata.annotation(BALANCE_ANNOTATION) != Some("random"),
            // One of no known mode counts as none.
            forwarding: match metadata.annotation(FORWARDING_ANNOTATION) {
                Some("auto") => Some(Forwarding::Auto),
                Some("snat") => Some(Forwarding::SourceNat),
                Some("dsr") => Some(Forwarding::DirectReturn),
                _ => None,
            },
            ips: cluster_ips(&spec),
            ports: ports(spec.ports.as_deref().unwrap_or_default()),
            more: more(spec, status),
        }
    }
}

fn cluster_ips(spec: &ReadSpec) -> Box<[IpAddr]> {
    let ips = match &spec.cluster_ips {
        Some(ips) if !ips.is_empty() => ips.as_slice(),
        _ => spec.cluster_ip.as_slice(),
    };
    // `None` (headless) and an empty string (not allocated yet) do not parse.
    parsed(ips)
}

fn parsed(ips: &[String]) -> Box<[IpAddr]> {
    ips.iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn ports(ports: &[ReadPort]) -> Box<[Port]> {
    let number = |port: i32| u16::try_from(port).ok();
    let read = |port: &ReadPort| {
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: protocol_number(port.protocol.as_deref())?,
            number: number(port.port)?,
            node_port: port.node_port.and_then(number).unwrap_or(0),
        })
    };
    ports.iter().filter_map(read).collect()
}

fn more(spec: ReadSpec, status: ReadStatus) -> Option<Box<More>> {
    let is_elsewhere = spec.r#type.as_deref() == Some("ExternalName");
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let client_ip = spec.session_affinity_config?.client_ip?;
        let seconds = u64::try_from(client_ip.timeout_seconds?).ok()?;
        Some(Duration::from_secs(seconds))
    });
    let mut source_ranges: Vec<IpNet> = spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .filter_map(|range| range.trim().parse().ok())
        .collect();
    source_ranges.sort();
    let ingress = status.load_balancer.and_then(|balancer| balancer.ingress);
    let ingress = ingress.into_iter().flatten().filter_map(|ingress| {
        Some(Ingress {
            ip: ingress.ip?.parse().ok()?,
            is_vip: ingress.ip_mode.as_deref() != Some("Proxy"),
        })
    });
    let conditions = status.conditions.unwrap_or_default();
    let more = More {
        external_name: spec.external_name.filter(|_| is_elsewhere),
        external_ips: parsed(&spec.external_ips.unwrap_or_default()),
        ingress: ingress.collect(),
        source_ranges: source_ranges.into_boxed_slice(),
        affinity: affinity.map(|given| given.unwrap_or(DEFAULT_AFFINITY)),
        health_check_node_port: spec
            .health_check_node_port
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(0),
        is_from_pool: conditions
            .iter()
            .any(|condition| condition.r#type == ADDRESS_FROM_POOL && condition.status == "True"),
    };
    (more != More::default()).then(|| Box::new(more))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::json;
    use skep_datapath::layout::{TCP, UDP};

    use super::*;

    #[test]
    fn services_are_read_as_the_api_writes_them() {
        let service: Service = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "web", "namespace": "default", "resourceVersion": "7", "uid": "u",
                "labels": {"app": "web"},
                "annotations": {BALANCE_ANNOTATION: "random", FORWARDING_ANNOTATION: "dsr"},
            },
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "fd00::5"],
                "externalIPs": ["198.51.100.7", "no address"], "selector": {"app": "web"},
                "ports": [
                    {"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP", "targetPort": "http"},
                    {"port": 53, "protocol": "UDP"},
                    {"port": 70_000}, {"port": 1, "protocol": "X"},
                ],
                "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 32_000, "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "loadBalancerSourceRanges": [" 203.0.113.0/24", "192.0.2.0/24"],
            },
            "status": {
                "loadBalancer": {"ingress": [{"ip": "192.0.2.7"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}, {"hostname": "x"}]},
                "conditions": [{"type": ADDRESS_FROM_POOL, "status": "True"}],
            },
        }))
        .unwrap();
        assert_eq!((service.namespace(), service.name()), ("default", "web"));
        assert_eq!(service.kind, Kind::LoadBalancer);
        assert!(!service.is_headless && !service.is_served_by_another_proxy && !service.maglev);
        assert!(!service.internal_local && service.external_local && service.is_from_pool());
        assert_eq!(service.forwarding, Some(Forwarding::DirectReturn));
        let texts = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&service.ips), ["10.96.0.5", "fd00::5"]);
        assert_eq!(texts(service.external_ips()), ["198.51.100.7"]);
        let ports: Vec<_> = service
            .ports
            .iter()
            .map(|port| (&*port.name, port.protocol, port.number, port.node_port))
            .collect();
        assert_eq!(ports, [("http", TCP, 80, 30_080), ("", UDP, 53, 0)]);
        let ingress: Vec<_> = service
            .ingress()
            .iter()
            .map(|ingress| (ingress.ip.to_string(), ingress.is_vip))
            .collect();
        let expected = [
            ("192.0.2.7".to_string(), true),
            ("192.0.2.8".to_string(), false),
        ];
        assert_eq!(ingress, expected);
        assert_eq!(service.health_check_node_port(), 32_000);
        assert_eq!(service.affinity(), Some(Duration::from_secs(60)));
        let ranges: Vec<String> = service
            .source_ranges()
            .iter()
            .map(IpNet::to_string)
            .collect();
        assert_eq!(ranges, ["192.0.2.0/24", "203.0.113.0/24"]);
    }

    #[test]
    fn what_is_not_said_is_as_the_api_means_it() {
        let read = |spec: serde_json::Value| -> Service {
            serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap()
        };
        let plain = read(json!({"clusterIP": "10.96.0.5"}));
        assert_eq!(plain.ips.len(), 1);
        assert!(plain.maglev && plain.forwarding.is_none() && plain.affinity().is_none());
        assert!(plain.more.is_none());
        let headless = read(json!({"clusterIP": "None", "clusterIPs": ["None"]}));
        assert!(headless.is_headless && headless.ips.is_empty());
        let away = read(json!({"type": "ExternalName", "externalName": "example.org"}));
        assert_eq!(away.external_name(), Some("example.org"));
        let sticky = read(json!({"sessionAffinity": "ClientIP"}));
        assert_eq!(sticky.affinity(), Some(DEFAULT_AFFINITY));
        let empty: Service = serde_json::from_value(json!({})).unwrap();
        assert!(empty.ports.is_empty() && !empty.is_from_pool());
    }
}
