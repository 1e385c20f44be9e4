//! Cluster IPs and node ports of Services.
//!
//! What is taken is in the store itself: an `IPAddress` object an address, a record a port. They are written in the
//! Service's own transaction, guarded by their absence, so that two Services never get the same one and nothing leaks.

mod addresses;
mod families;
mod ports;

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use serde_json::{Value, json};
use skep_api::{
    field::{Bad, FieldError, FieldErrorKind},
    kinds::core::service::{
        is_headless, needs_health_check, normalize_cluster_ips, patch_allocated_values,
    },
    zero::{List, Text},
};
use skep_apply::managed::{self, Writer};
use skep_store::{Guard, Key, Op};

pub use addresses::Range;
use families::Family;
use ports::{Pool, PortError};

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

const CIDR_PREFIX: &str = "/registry/networking.k8s.io/servicecidrs/";

/// What may be handed out.
#[derive(Clone, Debug)]
pub struct Allocators {
    /// One range, or one of each family; the first is the default family's.
    pub ranges: Vec<Range>,
    pub node_ports: std::ops::RangeInclusive<u16>,
}

impl Default for Allocators {
    fn default() -> Self {
        let net = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16);
        Self {
            ranges: vec![Range::new(IpNet::V4(net))],
            node_ports: 30000..=32767,
        }
    }
}

impl Allocators {
    /// The `kubernetes` Service's address; `None` without a range.
    pub fn first_ip(&self) -> Option<IpAddr> {
        self.ranges.first().map(|range| range.at(1))
    }

    fn families(&self) -> Vec<Family> {
        self.ranges.iter().map(|range| range.family()).collect()
    }
}

fn needs_ip(spec: &ServiceSpec) -> bool {
    spec.type_.text() != "ExternalName"
}

/// The addresses that a Service holds.
fn held_ips(spec: &ServiceSpec) -> BTreeSet<IpAddr> {
    if !needs_ip(spec) {
        return BTreeSet::new();
    }
    let one = spec.cluster_ip.iter();
    let all = spec.cluster_ips.items().iter().chain(one);
    all.filter_map(|ip| ip.parse().ok()).collect()
}

/// The node ports that a Service holds; one number may serve several protocols.
fn held_ports(spec: &ServiceSpec) -> BTreeSet<u16> {
    let of_ports = matches!(spec.type_.text(), "NodePort" | "LoadBalancer");
    let ports = spec.ports.items().iter().filter(|_| of_ports);
    let health = needs_health_check(spec).then_some(spec.health_check_node_port);
    ports
        .map(|port| port.node_port)
        .chain(health)
        .flatten()
        .filter_map(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
        .collect()
}

fn ip_key(ip: IpAddr) -> Key {
    format!("{IP_PREFIX}{ip}").into()
}

fn port_key(port: u16) -> Key {
    format!("{PORT_PREFIX}{port}").into()
}

/// The stored `IPAddress` of an address that belongs to a Service.
pub fn ip_address_object(
    ip: IpAddr,
    namespace: &str,
    service: &str,
    now: jiff::Timestamp,
) -> Value {
    let family = Family::of(ip).to_string();
    let mut object = json!({
        "kind": "IPAddress", "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": ip.to_string(), "uid": new_uid(), "creationTimestamp": now.to_string(),
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
    // What is no Service is refused by the strategy, which can say why.
    let Some(mut spec) = spec_of(service) else {
        return Ok(Extra::default());
    };
    let old_spec = old.and_then(spec_of);
    let before = old_spec.as_ref();
    let name = meta(service, "name").to_owned();
    let namespace = meta(service, "namespace").to_owned();
    let invalid = |errors: &[FieldError]| Status::invalid("", "Service", &name, errors);
    normalize_cluster_ips(&mut spec, before);
    if let Some(before) = before {
        patch_allocated_values(&mut spec, before);
    }
    // A port or address freed just now must count as free.
    api.storage.fresh().await?;
    families::infer(&mut spec, before, &api.services.families()).map_err(|all| invalid(&all))?;
    allocate_ips(api, &mut spec, before).map_err(|problem| match problem {
        IpError::Field(error) => invalid(&[error]),
        IpError::Full => Status::internal_message("failed to allocate a serviceIP: range is full"),
    })?;
    let taken = |port: u16| api.storage.cache.get(&port_key(port)).is_some();
    let mut pool = Pool::new(api.services.node_ports.clone(), &taken);
    ports::allocate(&mut spec, before, &mut pool).map_err(|problem| match problem {
        PortError::Field(error) => invalid(&[error]),
        PortError::Internal(why) => Status::internal_message(&why),
        PortError::Unknown(why) => Status::unknown(why),
    })?;
    write_back(service, &spec);
    let (old_ips, old_ports) = before.map_or_else(Default::default, |before| {
        (held_ips(before), held_ports(before))
    });

    let mut extra = Extra::default();
    let ips = held_ips(&spec);
    for ip in ips.difference(&old_ips) {
        let object = ip_address_object(*ip, &namespace, &name, ctx.now);
        take(&mut extra, ip_key(*ip), &object);
    }
    for ip in old_ips.difference(&ips) {
        extra.ops.push(Op::Delete { key: ip_key(*ip) });
    }
    let ports = held_ports(&spec);
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
    let spec = spec_of(service).unwrap_or_default();
    let ips = held_ips(&spec).into_iter().map(ip_key);
    let ports = held_ports(&spec).into_iter().map(port_key);
    Extra {
        guards: Vec::new(),
        ops: ips.chain(ports).map(|key| Op::Delete { key }).collect(),
    }
}

fn spec_of(service: &Value) -> Option<ServiceSpec> {
    let service: Service = serde::Deserialize::deserialize(service).ok()?;
    Some(service.spec.unwrap_or_default())
}

/// Only what was given out or inferred; the rest stays as it was written.
fn write_back(service: &mut Value, spec: &ServiceSpec) {
    let fields = &mut service["spec"];
    for (name, value) in [
        ("clusterIP", json!(spec.cluster_ip)),
        ("clusterIPs", json!(spec.cluster_ips)),
        ("ipFamilies", json!(spec.ip_families)),
        ("ipFamilyPolicy", json!(spec.ip_family_policy)),
        ("healthCheckNodePort", json!(spec.health_check_node_port)),
    ] {
        if !value.is_null() {
            fields[name] = value;
        } else if let Some(fields) = fields.as_object_mut() {
            fields.remove(name);
        }
    }
    let ports = fields["ports"].as_array_mut().into_iter().flatten();
    for (port, given) in ports.zip(spec.ports.items()) {
        if let Some(number) = given.node_port {
            port["nodePort"] = number.into();
        }
    }
}

enum IpError {
    Field(FieldError),
    Full,
}

/// Upstream's cases: a new Service, one that was an ExternalName, and one that becomes dual-stack. In all others the
/// addresses are what they were, or validation refuses them.
fn allocate_ips(
    api: &Api,
    spec: &mut ServiceSpec,
    old: Option<&ServiceSpec>,
) -> std::result::Result<(), IpError> {
    if !needs_ip(spec) || is_headless(spec) || families::stays_as_it_is(spec, old) {
        return Ok(());
    }
    let first = match old {
        Some(old) if !needs_ip(old) => 0,
        Some(old) if is_headless(old) => return Ok(()),
        Some(old) if old.ip_families.items().len() == 1 && spec.ip_families.items().len() == 2 => 1,
        Some(_) => return Ok(()),
        None => 0,
    };
    if spec.cluster_ip.text().is_empty() && !spec.cluster_ips.items().is_empty() {
        // Only half of the pair is given: refused by the Service's validation.
        return Ok(());
    }
    let wanted = spec.ip_families.clone().unwrap_or_default();
    let ranges = ranges(api);
    let taken = |ip: IpAddr| api.storage.cache.get(&ip_key(ip)).is_some();
    for (i, family) in wanted.iter().enumerate().skip(first) {
        let given = spec.cluster_ips.items().get(i).cloned();
        let given = given.filter(|ip| !ip.is_empty());
        if let Some(text) = given {
            let refuse = |why: &str| {
                let shown = Bad::json(&spec.cluster_ips);
                let why = format!("failed to allocate IP {text}: {why}");
                let error = FieldError::new(FieldErrorKind::Invalid, "spec.clusterIPs", shown, why);
                Err(IpError::Field(error))
            };
            // What is no address is refused by the Service's validation.
            let Ok(ip) = text.parse::<IpAddr>() else {
                continue;
            };
            if !ranges.iter().any(|range| range.offers(ip)) {
                return refuse("the provided network does not match the current range");
            }
            if taken(ip) {
                return refuse("provided IP is already allocated");
            }
            continue;
        }
        let family = Family::parse(family);
        let mut own = ranges.iter().filter(|range| Some(range.family()) == family);
        let ip = own
            .find_map(|range| range.free(taken))
            .ok_or(IpError::Full)?;
        let ips = spec.cluster_ips.get_or_insert_default();
        ips.truncate(i);
        ips.push(ip.to_string());
        if i == 0 {
            spec.cluster_ip = Some(ip.to_string());
        }
    }
    Ok(())
}

/// The cluster's own ranges, then those of further ServiceCIDRs that are ready and stay (KEP-1880).
fn ranges(api: &Api) -> Vec<Range> {
    let mut ranges = api.services.ranges.clone();
    for entry in api.storage.cache.snapshot(CIDR_PREFIX).iter() {
        let object: Value = serde_json::from_slice(&entry.bytes()).unwrap_or_default();
        let conditions = object["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .any(|one| one["type"] == "Ready" && one["status"] == "True");
        if !ready || !object["metadata"]["deletionTimestamp"].is_null() {
            continue;
        }
        let cidrs = object["spec"]["cidrs"].as_array().into_iter().flatten();
        let nets = cidrs.filter_map(|cidr| cidr.as_str()?.parse().ok());
        for range in nets.map(Range::new) {
            if !ranges.contains(&range) {
                ranges.push(range);
            }
        }
    }
    ranges
}
