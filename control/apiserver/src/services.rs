//! Cluster IPs and node ports of Services.
//!
//! What is taken is in the store itself: an `IPAddress` object an address, a record a port. They are written in the
//! Service's own transaction, guarded by their absence, so that two Services never get the same one and nothing leaks.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv4Net;
use serde_json::{Value, json};
use skep_api::field::{Bad, FieldError, FieldErrorKind};
use skep_apply::managed::{self, Writer};
use skep_store::{Guard, Key, Op};

use crate::{
    codec::{self, meta},
    context::{Api, Ctx},
    handlers::write::new_uid,
    hooks::Extra,
    status::{Result, Status},
};

const IP_PREFIX: &str = "/registry/networking.k8s.io/ipaddresses/";
/// Not a resource: only the API server reads these.
const PORT_PREFIX: &str = "/registry/skep.internal/nodeports/";

/// What may be handed out.
#[derive(Clone, Debug)]
pub struct Allocators {
    pub service_cidr: Ipv4Net,
    pub node_ports: std::ops::RangeInclusive<u16>,
}

impl Default for Allocators {
    fn default() -> Self {
        Self {
            service_cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
            node_ports: 30000..=32767,
        }
    }
}

impl Allocators {
    /// The `kubernetes` Service's address.
    pub fn first_ip(&self) -> Ipv4Addr {
        offset(self.service_cidr, 1)
    }

    /// Usable addresses are offsets 1 to this.
    fn last_offset(&self) -> u32 {
        let bits = 32 - self.service_cidr.prefix_len();
        let size = 1u32.checked_shl(u32::from(bits)).unwrap_or(u32::MAX);
        size.saturating_sub(2)
    }

    /// Below this offset addresses are given only to who asks for them (KEP-3070).
    fn static_band(&self) -> u32 {
        let size = self.last_offset() + 2;
        (size / 16).clamp(16, 256).min(self.last_offset())
    }
}

fn offset(network: Ipv4Net, by: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()).wrapping_add(by))
}

fn service_type(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn needs_ip(service: &Value) -> bool {
    service_type(service) != "ExternalName"
}

fn needs_node_port(service: &Value) -> bool {
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != json!(false),
        _ => false,
    }
}

fn needs_health_check_port(service: &Value) -> bool {
    service_type(service) == "LoadBalancer"
        && service["spec"]["externalTrafficPolicy"] == json!("Local")
}

/// The addresses that a Service holds.
fn held_ips(service: &Value) -> BTreeSet<String> {
    let ips = service["spec"]["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten();
    let one = service["spec"]["clusterIP"].as_str();
    ips.filter_map(Value::as_str)
        .chain(one)
        .filter(|ip| !ip.is_empty() && *ip != "None")
        .map(str::to_owned)
        .collect()
}

/// The node ports that a Service holds; one number may serve several protocols.
fn held_ports(service: &Value) -> BTreeSet<u16> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports = ports.map(|port| &port["nodePort"]);
    ports
        .chain([&service["spec"]["healthCheckNodePort"]])
        .filter_map(Value::as_u64)
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .collect()
}

fn ip_key(ip: &str) -> Key {
    format!("{IP_PREFIX}{ip}").into()
}

fn port_key(port: u16) -> Key {
    format!("{PORT_PREFIX}{port}").into()
}

/// The stored `IPAddress` of an address that belongs to a Service.
pub fn ip_address_object(ip: &str, namespace: &str, service: &str, now: jiff::Timestamp) -> Value {
    let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
    let mut object = json!({
        "kind": "IPAddress", "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": ip, "uid": new_uid(), "creationTimestamp": now.to_string(),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family,
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": service}},
    });
    if let Some(schema) = skep_schema::builtin("networking.k8s.io", "v1", "IPAddress") {
        if let Ok(decoded) = skep_schema::conform(object.clone(), &schema) {
            object = decoded.value;
        }
        let writer = Writer {
            manager: "kube-apiserver".to_owned(),
            api_version: "networking.k8s.io/v1".to_owned(),
            subresource: String::new(),
            time: now,
        };
        managed::update(None, &mut object, &schema, &writer, &[]);
    }
    object
}

/// Gives a Service what it needs, keeps what it has, and frees what it no longer needs.
///
/// # Errors
/// 422 for addresses and ports that are taken or out of range.
pub async fn allocate(ctx: &Ctx, service: &mut Value, old: Option<&Value>) -> Result<Extra> {
    let api = &ctx.api;
    if let Some(old) = old {
        keep_allocated(service, old);
    }
    default_families(service);
    // A port or address freed just now must count as free.
    api.storage.fresh().await?;
    let name = meta(service, "name").to_owned();
    let namespace = meta(service, "namespace").to_owned();
    let invalid = |error: FieldError| Status::invalid("", "Service", &name, &[error]);
    let policy = &service["spec"]["ipFamilyPolicy"];
    let was_dual = old.is_some_and(|old| old["spec"]["ipFamilyPolicy"] == *policy);
    if needs_ip(service)
        && !is_selectorless_headless(service)
        && policy == "RequireDualStack"
        && !was_dual
    {
        return Err(invalid(FieldError::new(
            FieldErrorKind::Invalid,
            "spec.ipFamilyPolicy",
            Bad::from("RequireDualStack"),
            "this cluster is not configured for dual-stack services",
        )));
    }
    let (old_ips, old_ports) = match old {
        Some(old) => (held_ips(old), held_ports(old)),
        None => Default::default(),
    };
    allocate_ips(api, service, &old_ips).map_err(invalid)?;
    allocate_ports(api, service, &old_ports).map_err(invalid)?;

    let mut extra = Extra::default();
    let ips = if needs_ip(service) {
        held_ips(service)
    } else {
        BTreeSet::new()
    };
    for ip in ips.difference(&old_ips) {
        let object = ip_address_object(ip, &namespace, &name, ctx.now);
        take(&mut extra, ip_key(ip), &object);
    }
    for ip in old_ips.difference(&ips) {
        extra.ops.push(Op::Delete { key: ip_key(ip) });
    }
    let ports = held_ports(service);
    for port in ports.difference(&old_ports) {
        let record = json!({
            "metadata": {"name": port.to_string()},
            "service": {"namespace": namespace, "name": name},
        });
        take(&mut extra, port_key(*port), &record);
    }
    for port in old_ports.difference(&ports) {
        extra.ops.push(Op::Delete {
            key: port_key(*port),
        });
    }
    Ok(extra)
}

fn take(extra: &mut Extra, key: Key, object: &Value) {
    extra.guards.push(Guard::Missing(key.clone()));
    extra.ops.push(Op::Put {
        key,
        value: codec::encode_stored(object),
        ttl: None,
    });
}

/// Frees everything that a deleted Service held.
pub fn release(service: &Value) -> Extra {
    let ips = held_ips(service).into_iter().map(|ip| ip_key(&ip));
    let ports = held_ports(service).into_iter().map(port_key);
    Extra {
        guards: Vec::new(),
        ops: ips.chain(ports).map(|key| Op::Delete { key }).collect(),
    }
}

/// An update that leaves out allocated values keeps them (upstream `patchAllocatedValues`).
fn keep_allocated(new: &mut Value, old: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if needs_ip(old) && needs_ip(new) {
        if text(&new["spec"]["clusterIP"]).is_empty() {
            new["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
        }
        if !new["spec"]["clusterIPs"].is_array()
            && new["spec"]["clusterIP"] == old["spec"]["clusterIP"]
        {
            new["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        let new_used = held_ports(new);
        let mut used: BTreeSet<u16> = held_ports(old).intersection(&new_used).copied().collect();
        let by_name = |name: &Value| {
            let mut ports = old["spec"]["ports"].as_array().into_iter().flatten();
            let port = ports.rfind(|port| port["name"] == *name);
            port.and_then(|p| p["nodePort"].as_u64())
                .and_then(|p| u16::try_from(p).ok())
        };
        for port in new["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port["nodePort"].as_u64().unwrap_or(0) == 0
                && let Some(before) = by_name(&port["name"]).filter(|p| *p != 0)
                && used.insert(before)
            {
                port["nodePort"] = before.into();
            }
        }
    }
    if needs_health_check_port(old)
        && needs_health_check_port(new)
        && new["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) == 0
        && !old["spec"]["healthCheckNodePort"].is_null()
    {
        new["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
}

/// Somebody else makes its endpoints, of whatever families.
fn is_selectorless_headless(service: &Value) -> bool {
    let spec = &service["spec"];
    let headless = spec["clusterIP"] == "None" || spec["clusterIPs"][0] == "None";
    headless
        && spec["selector"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty)
}

/// `ipFamilies`, `ipFamilyPolicy` and the agreement of `clusterIP` with `clusterIPs`, on an IPv4 cluster.
fn default_families(service: &mut Value) {
    if !needs_ip(service) {
        return;
    }
    let selectorless = is_selectorless_headless(service);
    let spec = &mut service["spec"];
    let ip = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
    if !spec["clusterIPs"].is_array() && !ip.is_empty() {
        spec["clusterIPs"] = json!([ip]);
    }
    if selectorless {
        if spec["ipFamilyPolicy"].is_null() {
            spec["ipFamilyPolicy"] = "RequireDualStack".into();
        }
        let dual = spec["ipFamilyPolicy"] != "SingleStack";
        if !spec["ipFamilies"].is_array() {
            spec["ipFamilies"] = if dual {
                json!(["IPv4", "IPv6"])
            } else {
                json!(["IPv4"])
            };
        }
        return;
    }
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
    if !spec["ipFamilies"].is_array() {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
}

fn allocate_ips(
    api: &Api,
    service: &mut Value,
    own: &BTreeSet<String>,
) -> std::result::Result<(), FieldError> {
    if !needs_ip(service) || service["spec"]["clusterIP"] == json!("None") {
        return Ok(());
    }
    let pool = &api.services;
    let taken = |ip: &str| api.storage.cache.get(&ip_key(ip)).is_some();
    let wanted: Vec<String> = held_ips(service).into_iter().collect();
    if service["spec"]["clusterIP"]
        .as_str()
        .unwrap_or_default()
        .is_empty()
        && !wanted.is_empty()
    {
        // Only half of the pair is given: refused by the Service's validation.
        return Ok(());
    }
    if wanted.is_empty() {
        let ip = free_ip(pool, taken).ok_or_else(|| {
            FieldError::new(
                FieldErrorKind::Internal,
                "spec.clusterIPs[0]",
                Bad::omitted(),
                "failed to allocate a serviceIP: range is full",
            )
        })?;
        service["spec"]["clusterIP"] = ip.to_string().into();
        service["spec"]["clusterIPs"] = json!([ip.to_string()]);
        return Ok(());
    }
    for ip in wanted.iter().filter(|ip| !own.contains(*ip)) {
        let refuse = |why: String| {
            let shown = Bad::json(&service["spec"]["clusterIPs"]);
            let why = format!("failed to allocate IP {ip}: {why}");
            FieldError::new(FieldErrorKind::Invalid, "spec.clusterIPs", shown, why)
        };
        match ip.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => {
                let network = pool.service_cidr;
                let by = u32::from(address).wrapping_sub(u32::from(network.network()));
                if !network.contains(&address) || by == 0 || by > pool.last_offset() {
                    return Err(refuse(
                        "the provided network does not match the current range".to_owned(),
                    ));
                }
                if taken(ip) {
                    return Err(refuse("provided IP is already allocated".to_owned()));
                }
            }
            // What is no IPv4 address is refused by the Service's validation, which can say why.
            _ => continue,
        }
    }
    Ok(())
}

/// Random first, so that an address is not reused at once; then the next free one.
fn free_ip(pool: &Allocators, taken: impl Fn(&str) -> bool) -> Option<Ipv4Addr> {
    let (band, last) = (pool.static_band(), pool.last_offset());
    let start = rand::random_range(band..=last.max(band));
    let upper = (start..=last).chain(band..start);
    // The static band only when nothing else is left.
    upper
        .chain(1..band)
        .map(|by| offset(pool.service_cidr, by))
        .find(|ip| !taken(&ip.to_string()))
}

fn allocate_ports(
    api: &Api,
    service: &mut Value,
    own: &BTreeSet<u16>,
) -> std::result::Result<(), FieldError> {
    let range = api.services.node_ports.clone();
    let taken = |port: u16| api.storage.cache.get(&port_key(port)).is_some();
    if needs_node_port(service) {
        let mut chosen = held_ports(service);
        let ports = service["spec"]["ports"].as_array_mut();
        // One number for the same port in several protocols.
        let mut by_port: Vec<(Value, Value, u16)> = Vec::new();
        for (index, port) in ports.into_iter().flatten().enumerate() {
            let given = port["nodePort"].as_u64().unwrap_or(0);
            let field = format!("spec.ports[{index}].nodePort");
            let Ok(given) = u16::try_from(given) else {
                continue;
            };
            if given != 0 {
                let shared = by_port
                    .iter()
                    .any(|(_, p, n)| *n == given && *p != port["protocol"]);
                check_port(
                    given,
                    &range,
                    own.contains(&given) || shared,
                    &taken,
                    &field,
                )?;
                by_port.push((port["port"].clone(), port["protocol"].clone(), given));
                continue;
            }
            let other_protocol = by_port
                .iter()
                .find(|(number, protocol, _)| {
                    *number == port["port"] && *protocol != port["protocol"]
                })
                .map(|(_, _, node_port)| *node_port);
            let node_port = match other_protocol {
                Some(port) => port,
                None => free_port(&range, &taken, &chosen).ok_or_else(|| full(&field))?,
            };
            chosen.insert(node_port);
            by_port.push((port["port"].clone(), port["protocol"].clone(), node_port));
            port["nodePort"] = node_port.into();
        }
    }
    if needs_health_check_port(service) {
        const FIELD: &str = "spec.healthCheckNodePort";
        let given = service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0);
        match u16::try_from(given) {
            Ok(0) => {
                let chosen = held_ports(service);
                let port = free_port(&range, &taken, &chosen).ok_or_else(|| full(FIELD))?;
                service["spec"]["healthCheckNodePort"] = port.into();
            }
            Ok(port) => check_port(port, &range, own.contains(&port), &taken, FIELD)?,
            Err(_) => {}
        }
    }
    Ok(())
}

fn full(field: &str) -> FieldError {
    FieldError::new(
        FieldErrorKind::Internal,
        field,
        Bad::omitted(),
        "failed to allocate a nodePort: range is full",
    )
}

fn check_port(
    port: u16,
    range: &std::ops::RangeInclusive<u16>,
    own: bool,
    taken: &impl Fn(u16) -> bool,
    field: &str,
) -> std::result::Result<(), FieldError> {
    let refuse = |why: String| {
        Err(FieldError::new(
            FieldErrorKind::Invalid,
            field,
            Bad::json(&port),
            why,
        ))
    };
    if !range.contains(&port) {
        return refuse(format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            range.start(),
            range.end()
        ));
    }
    if !own && taken(port) {
        return refuse("provided port is already allocated".to_owned());
    }
    Ok(())
}

/// Ports below this offset are given only to who asks for them (KEP-3668).
const STATIC_PORTS: u16 = 86;

fn free_port(
    range: &std::ops::RangeInclusive<u16>,
    taken: &impl Fn(u16) -> bool,
    chosen: &BTreeSet<u16>,
) -> Option<u16> {
    let (first, last) = (*range.start(), *range.end());
    let dynamic = first.saturating_add(STATIC_PORTS).min(last);
    let start = rand::random_range(dynamic..=last);
    let mut candidates = (start..=last).chain(dynamic..start).chain(first..dynamic);
    candidates.find(|port| !chosen.contains(port) && !taken(*port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_from_the_dynamic_band_until_it_is_full() {
        let pool = Allocators {
            service_cidr: "10.0.0.0/27".parse().expect("network"),
            ..Allocators::default()
        };
        assert_eq!((pool.static_band(), pool.last_offset()), (16, 30));
        let mut taken = BTreeSet::new();
        for round in 0..30 {
            let ip = free_ip(&pool, |ip| taken.contains(ip)).expect("room");
            let by = u32::from(ip) - u32::from(pool.service_cidr.network());
            assert_eq!(by >= 16, round < 15, "{ip} in round {round}");
            assert!(taken.insert(ip.to_string()));
        }
        assert_eq!(free_ip(&pool, |ip| taken.contains(ip)), None);
    }

    #[test]
    fn an_update_keeps_what_it_leaves_out() {
        let old = json!({"spec": {
            "type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
            "ports": [{"name": "a", "port": 1, "nodePort": 30001}, {"name": "b", "port": 2, "nodePort": 30002}],
        }});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"name": "b", "port": 3}]}});
        keep_allocated(&mut new, &old);
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.1.1"]));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30002);
    }
}
