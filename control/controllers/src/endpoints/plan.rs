//! From a Service and its pods to EndpointSlices and Endpoints. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{
            EndpointAddress, EndpointPort as CorePort, EndpointSubset, Endpoints, Node,
            ObjectReference, Pod, Service, ServicePort,
        },
        discovery::v1::{
            Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode,
            ForZone,
        },
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::core::ObjectMeta;
use skep_client::ObjectKey;

use crate::{owners, pods};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const ENDPOINTS_MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MAX_PER_SLICE: usize = 100;
const MAX_PER_ENDPOINTS: usize = 1000;

/// A pod that the selector matches.
pub(super) struct Target {
    pub(super) pod: Arc<Pod>,
    pub(super) zone: Option<String>,
}

#[derive(Debug)]
pub(super) enum SliceWrite {
    Create(Box<EndpointSlice>),
    Update(Box<EndpointSlice>),
    Delete(Arc<EndpointSlice>),
}

pub(super) fn zone(node: &Arc<Node>) -> Option<String> {
    node.metadata
        .labels
        .as_ref()?
        .get("topology.kubernetes.io/zone")
        .cloned()
}

pub(super) fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    is_ours(slice).then(|| {
        ObjectKey::new(
            slice.metadata.namespace.clone().unwrap_or_default(),
            name.clone(),
        )
    })
}

pub(super) fn is_ours(slice: &EndpointSlice) -> bool {
    slice
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGED_BY))
        .is_some_and(|manager| manager == MANAGER)
}

pub(super) fn is_managed(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(ENDPOINTS_MANAGED_BY))
        .is_some_and(|manager| manager == ENDPOINTS_MANAGER)
}

/// Whether a change of a pod can change any endpoint.
pub(super) fn matters(old: &Pod, new: &Pod) -> bool {
    let ips = |pod: &Pod| {
        pod.status
            .as_ref()
            .map(|status| (status.pod_ip.clone(), status.pod_ips.clone()))
    };
    let hostname = |pod: &Pod| {
        pod.spec
            .as_ref()
            .map(|spec| (spec.hostname.clone(), spec.subdomain.clone()))
    };
    old.metadata.uid != new.metadata.uid
        || old.metadata.labels != new.metadata.labels
        || pods::is_terminating(old) != pods::is_terminating(new)
        || pods::is_finished(old) != pods::is_finished(new)
        || pods::is_ready(old) != pods::is_ready(new)
        || pods::node_name(old) != pods::node_name(new)
        || ips(old) != ips(new)
        || hostname(old) != hostname(new)
}

fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        .unwrap_or_default()
}

fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref())
        == Some("None")
}

fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.clone().unwrap_or_default();
    let families: Vec<_> = spec
        .ip_families
        .iter()
        .flatten()
        .map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" })
        .collect();
    if !families.is_empty() {
        return families;
    }
    match spec
        .cluster_ip
        .as_deref()
        .and_then(|ip| ip.parse::<IpAddr>().ok())
    {
        Some(IpAddr::V6(_)) => vec!["IPv6"],
        _ => vec!["IPv4"],
    }
}

fn addresses(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.as_str())
        .chain(status.pod_ip.as_deref());
    all.filter(|ip| !ip.is_empty())
        .find(|ip| {
            ip.parse::<IpAddr>()
                .is_ok_and(|ip| ip.is_ipv6() == (family == "IPv6"))
        })
        .map(str::to_owned)
}

/// The port number that `target` means in this pod.
fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let protocol = |protocol: &Option<String>| protocol.clone().unwrap_or_else(|| "TCP".into());
    match port.target_port.as_ref() {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|container| container.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|container| container.ports.iter().flatten())
                .find(|own| {
                    own.name.as_ref() == Some(name)
                        && protocol(&own.protocol) == protocol(&port.protocol)
                })
                .map(|own| own.container_port)
        }
    }
}

/// Sorted by name; what two slices are compared by.
type Ports = Vec<(String, String, Option<i32>, Option<String>)>;

fn ports_of(service: &Service, pod: &Pod) -> Ports {
    let mut ports: Ports = service
        .spec
        .iter()
        .flat_map(|spec| spec.ports.iter().flatten())
        .filter_map(|port| {
            let number = find_port(pod, port)?;
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((
                port.name.clone().unwrap_or_default(),
                protocol,
                Some(number),
                port.app_protocol.clone(),
            ))
        })
        .collect();
    ports.sort();
    ports
}

fn ports_of_slice(slice: &EndpointSlice) -> Ports {
    let mut ports: Ports = slice
        .ports
        .iter()
        .flatten()
        .map(|port| {
            (
                port.name.clone().unwrap_or_default(),
                port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port.port,
                port.app_protocol.clone(),
            )
        })
        .collect();
    ports.sort();
    ports
}

fn slice_ports(ports: &Ports) -> Vec<EndpointPort> {
    ports
        .iter()
        .map(|(name, protocol, port, app_protocol)| EndpointPort {
            name: Some(name.clone()),
            protocol: Some(protocol.clone()),
            port: *port,
            app_protocol: app_protocol.clone(),
        })
        .collect()
}

fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// Set only where DNS shall know the pod by name.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|name| !name.is_empty())?;
    (spec.subdomain == service.metadata.name).then_some(hostname)
}

fn endpoint(service: &Service, target: &Target, address: String) -> Endpoint {
    let pod = &target.pod;
    let serving = pods::is_ready(pod);
    let terminating = pods::is_terminating(pod);
    let ready = publishes_not_ready(service) || (serving && !terminating);
    let node = pods::node_name(pod).map(str::to_owned);
    let distribution = service
        .spec
        .as_ref()
        .and_then(|spec| spec.traffic_distribution.as_deref());
    let zone_hint = match distribution {
        Some("PreferClose" | "PreferSameZone" | "PreferSameNode") if ready => target.zone.clone(),
        _ => None,
    };
    let node_hint = node
        .clone()
        .filter(|_| ready && distribution == Some("PreferSameNode"));
    let hints = (zone_hint.is_some() || node_hint.is_some()).then(|| EndpointHints {
        for_zones: zone_hint.map(|name| vec![ForZone { name }]),
        for_nodes: node_hint.map(|name| vec![ForNode { name }]),
    });
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: node,
        target_ref: Some(target_ref(pod)),
        zone: target.zone.clone(),
        hints,
        deprecated_topology: None,
    }
}

/// The labels of a slice: the Service's own, without what is reserved, and ours.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| ![SERVICE_NAME, MANAGED_BY, HEADLESS].contains(&key.as_str()));
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(
        SERVICE_NAME.into(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

/// The writes that make the slices show the pods. Endpoints stay in the slice they are in; only what changed is written.
pub(super) fn plan_slices(
    service: &Service,
    targets: &[Target],
    existing: &[Arc<EndpointSlice>],
    now: Timestamp,
) -> Vec<SliceWrite> {
    let families = families(service);
    let mut wanted: BTreeMap<(&str, Ports), Vec<Endpoint>> = BTreeMap::new();
    for target in targets
        .iter()
        .filter(|target| !pods::is_finished(&target.pod))
    {
        for family in &families {
            if let Some(address) = addresses(&target.pod, family) {
                let ports = ports_of(service, &target.pod);
                wanted
                    .entry((family, ports))
                    .or_default()
                    .push(endpoint(service, target, address));
            }
        }
    }
    // A Service without any endpoint still has one empty slice a family: its consumers know it from "not there yet".
    for family in &families {
        if !wanted.keys().any(|(own, _)| own == family) {
            wanted.insert((family, Ports::new()), Vec::new());
        }
    }
    let mut groups: HashMap<(String, Ports), Vec<Arc<EndpointSlice>>> = HashMap::new();
    for slice in existing
        .iter()
        .filter(|slice| slice.metadata.deletion_timestamp.is_none())
    {
        groups
            .entry((slice.address_type.clone(), ports_of_slice(slice)))
            .or_default()
            .push(slice.clone());
    }
    let mut writes = Vec::new();
    for ((family, ports), endpoints) in wanted {
        let slices = groups
            .remove(&(family.to_owned(), ports.clone()))
            .unwrap_or_default();
        fill(service, family, &ports, endpoints, slices, now, &mut writes);
    }
    writes.extend(groups.into_values().flatten().map(SliceWrite::Delete));
    // Additions first: between two writes an endpoint is rather in two slices than in none.
    writes.sort_by_key(|write| match write {
        SliceWrite::Create(_) => 0,
        SliceWrite::Update(_) => 1,
        SliceWrite::Delete(_) => 2,
    });
    writes
}

fn fill(
    service: &Service,
    family: &str,
    ports: &Ports,
    endpoints: Vec<Endpoint>,
    mut slices: Vec<Arc<EndpointSlice>>,
    now: Timestamp,
    writes: &mut Vec<SliceWrite>,
) {
    slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut left: BTreeMap<(String, String), Endpoint> = BTreeMap::new();
    for endpoint in endpoints {
        left.insert(identity(&endpoint), endpoint);
    }
    let mut contents: Vec<Vec<Endpoint>> = Vec::new();
    let mut seen: HashSet<(String, String)> = HashSet::new();
    for slice in &slices {
        let mut kept = Vec::new();
        for old in slice.endpoints.iter().flatten() {
            let id = identity(old);
            if seen.insert(id.clone())
                && let Some(new) = left.remove(&id)
            {
                kept.push(new);
            }
        }
        contents.push(kept);
    }
    let mut left: Vec<Endpoint> = left.into_values().collect();
    // The fullest slice with room takes what is new, so that few slices change.
    while !left.is_empty() {
        let room = (0..contents.len())
            .filter(|index| contents[*index].len() < MAX_PER_SLICE)
            .max_by_key(|index| contents[*index].len());
        match room {
            Some(index) => {
                let count = (MAX_PER_SLICE - contents[index].len()).min(left.len());
                contents[index].extend(left.drain(..count));
            }
            None => contents.push(Vec::new()),
        }
    }
    if contents.is_empty() {
        contents.push(Vec::new());
    }
    let total: usize = contents.iter().map(Vec::len).sum();
    let mut placeholder_kept = false;
    for (index, endpoints) in contents.into_iter().enumerate() {
        let existing = slices.get(index);
        if endpoints.is_empty() && (total > 0 || placeholder_kept) {
            writes.extend(existing.cloned().map(SliceWrite::Delete));
            continue;
        }
        placeholder_kept = true;
        let slice = build(
            service,
            family,
            ports,
            endpoints,
            existing.map(AsRef::as_ref),
            now,
        );
        match existing {
            None => writes.push(SliceWrite::Create(Box::new(slice))),
            Some(existing) if differs(existing, &slice) => {
                writes.push(SliceWrite::Update(Box::new(slice)))
            }
            Some(_) => {}
        }
    }
}

/// What stays the same when an endpoint becomes ready or moves between slices.
fn identity(endpoint: &Endpoint) -> (String, String) {
    let target = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.clone())
        .unwrap_or_default();
    (target, endpoint.addresses.join(","))
}

fn build(
    service: &Service,
    family: &str,
    ports: &Ports,
    endpoints: Vec<Endpoint>,
    existing: Option<&EndpointSlice>,
    now: Timestamp,
) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let mut metadata = match existing {
        Some(slice) => slice.metadata.clone(),
        None => ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            ..Default::default()
        },
    };
    metadata.labels = Some(labels(service));
    metadata.owner_references = Some(vec![owners::reference(service)]);
    metadata.annotations.get_or_insert_default().insert(
        TRIGGER_TIME.into(),
        now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    );
    EndpointSlice {
        metadata,
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(slice_ports(ports)),
    }
}

fn differs(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    let set = |slice: &EndpointSlice| -> BTreeMap<(String, String), Endpoint> {
        slice
            .endpoints
            .iter()
            .flatten()
            .map(|endpoint| (identity(endpoint), endpoint.clone()))
            .collect()
    };
    old.metadata.labels != new.metadata.labels
        || old.metadata.owner_references != new.metadata.owner_references
        || old.endpoints.as_ref().map_or(0, Vec::len) != new.endpoints.as_ref().map_or(0, Vec::len)
        || set(old) != set(new)
}

/// The Endpoints object as it should be, or `None` if `current` already is.
pub(super) fn plan_endpoints(
    service: &Service,
    targets: &[Target],
    current: Option<&Endpoints>,
    now: Timestamp,
) -> Option<Endpoints> {
    let family = families(service)[0];
    let publishes = publishes_not_ready(service);
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let mut total = 0;
    let mut over_capacity = false;
    let mut usable: Vec<(&Target, String)> = targets
        .iter()
        .filter(|target| {
            let pod = &target.pod;
            // A pod that will never run again has no say; one that ends is told of only by who asks for unready ones.
            !pods::is_finished(pod) && (!pods::is_terminating(pod) || publishes)
        })
        .filter_map(|target| addresses(&target.pod, family).map(|address| (target, address)))
        .collect();
    usable
        .sort_by(|(a, a_ip), (b, b_ip)| (a_ip, pods::uid(&a.pod)).cmp(&(b_ip, pods::uid(&b.pod))));
    // Ready ones first, so that the cut falls on the others.
    usable.sort_by_key(|(target, _)| !pods::is_ready(&target.pod));
    for (target, ip) in usable {
        if total >= MAX_PER_ENDPOINTS {
            over_capacity = true;
            break;
        }
        let ports = ports_of(service, &target.pod);
        let has_ports = service
            .spec
            .as_ref()
            .is_some_and(|spec| spec.ports.as_ref().is_some_and(|ports| !ports.is_empty()));
        if has_ports && ports.is_empty() {
            continue;
        }
        total += 1;
        let address = EndpointAddress {
            ip,
            hostname: hostname(service, &target.pod),
            node_name: pods::node_name(&target.pod).map(str::to_owned),
            target_ref: Some(target_ref(&target.pod)),
        };
        let (ready, not_ready) = groups.entry(ports).or_default();
        if publishes || pods::is_ready(&target.pod) {
            ready
        } else {
            not_ready
        }
        .push(address);
    }
    let subsets: Vec<EndpointSubset> = groups
        .into_iter()
        .map(|(ports, (ready, not_ready))| EndpointSubset {
            addresses: (!ready.is_empty()).then_some(ready),
            not_ready_addresses: (!not_ready.is_empty()).then_some(not_ready),
            ports: (!ports.is_empty()).then(|| core_ports(&ports)),
        })
        .collect();
    let mut labels: BTreeMap<String, String> = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(ENDPOINTS_MANAGED_BY.into(), ENDPOINTS_MANAGER.into());
    if let Some(current) = current {
        let same_subsets = current.subsets.clone().unwrap_or_default() == subsets;
        if same_subsets && current.metadata.labels.as_ref() == Some(&labels) {
            return None;
        }
    }
    let mut annotations = BTreeMap::from([(
        TRIGGER_TIME.to_owned(),
        now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )]);
    if over_capacity {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    }
    Some(Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            ..Default::default()
        },
        subsets: Some(subsets),
    })
}

fn core_ports(ports: &Ports) -> Vec<CorePort> {
    ports
        .iter()
        .map(|(name, protocol, port, app_protocol)| CorePort {
            name: Some(name.clone()).filter(|name| !name.is_empty()),
            protocol: Some(protocol.clone()),
            port: port.unwrap_or_default(),
            app_protocol: app_protocol.clone(),
        })
        .collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
