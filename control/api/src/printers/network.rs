//! Services, endpoints, ingress and network policy.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::*;
use crate::printer::{Column, Printer, age, name};

pub fn endpoints() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of("Endpoints", "io.k8s.api.core.v1.Endpoints", "subsets"),
                Column::age(),
            ]
        },
        endpoints_cells,
    )
}

pub fn service() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of("Type", "io.k8s.api.core.v1.ServiceSpec", "type"),
                Column::of("Cluster-IP", "io.k8s.api.core.v1.ServiceSpec", "clusterIP"),
                Column::of(
                    "External-IP",
                    "io.k8s.api.core.v1.ServiceSpec",
                    "externalIPs",
                ),
                Column::of("Port(s)", "io.k8s.api.core.v1.ServiceSpec", "ports"),
                Column::age(),
                Column::of("Selector", "io.k8s.api.core.v1.ServiceSpec", "selector").wide(),
            ]
        },
        service_cells,
    )
}

pub fn endpoint_slice() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "AddressType",
                    "io.k8s.api.discovery.v1.EndpointSlice",
                    "addressType",
                ),
                Column::of("Ports", "io.k8s.api.discovery.v1.EndpointSlice", "ports"),
                Column::of(
                    "Endpoints",
                    "io.k8s.api.discovery.v1.EndpointSlice",
                    "endpoints",
                ),
                Column::age(),
            ]
        },
        endpoint_slice_cells,
    )
}

pub fn ingress_class() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "Controller",
                    "Controller that is responsible for handling this class",
                ),
                Column::new(
                    "Parameters",
                    "A reference to a resource with additional parameters",
                ),
                Column::age(),
            ]
        },
        ingress_class_cells,
    )
}

pub fn ingress() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "Class",
                    "The name of the IngressClass resource that should be used for additional configuration",
                ),
                Column::new(
                    "Hosts",
                    "Hosts that incoming requests are matched against before the ingress rule",
                ),
                Column::new(
                    "Address",
                    "Address is a list containing ingress points for the load-balancer",
                ),
                Column::new("Ports", "Ports of TLS configurations that open"),
                Column::age(),
            ]
        },
        ingress_cells,
    )
}

pub fn ip_address() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "ParentRef",
                    "io.k8s.api.networking.v1.IPAddressSpec",
                    "parentRef",
                ),
            ]
        },
        ip_address_cells,
    )
}

pub fn network_policy() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "Pod-Selector",
                    "io.k8s.api.networking.v1.NetworkPolicySpec",
                    "podSelector",
                ),
                Column::age(),
            ]
        },
        network_policy_cells,
    )
}

pub fn service_cidr() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of("CIDRs", "io.k8s.api.networking.v1.ServiceCIDRSpec", "cidrs"),
                Column::age(),
            ]
        },
        service_cidr_cells,
    )
}

fn endpoints_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let subsets = items(object, "/subsets");
    let mut all = Vec::new();
    for subset in subsets {
        let addresses = || {
            items(subset, "/addresses")
                .iter()
                .map(|one| text(one, "/ip"))
        };
        let ports = items(subset, "/ports");
        if ports.is_empty() {
            all.extend(addresses().map(ToOwned::to_owned));
        }
        for port in ports {
            let port = integer(port, "/port");
            all.extend(addresses().map(|ip| {
                if ip.contains(':') {
                    format!("[{ip}]:{port}")
                } else {
                    format!("{ip}:{port}")
                }
            }));
        }
    }
    let shown = if subsets.is_empty() {
        "<none>".to_owned()
    } else {
        first_three(&all).0
    };
    vec![name(object), shown.into(), age(object, now)]
}

fn endpoint_slice_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = items(object, "/ports")
        .iter()
        .map(|port| match port.pointer("/port").and_then(Value::as_i64) {
            Some(number) => number.to_string(),
            None => port
                .pointer("/name")
                .and_then(Value::as_str)
                .unwrap_or("*")
                .to_owned(),
        })
        .collect();
    let addresses: Vec<String> = items(object, "/endpoints")
        .iter()
        .flat_map(|endpoint| strings(endpoint, "/addresses"))
        .map(ToOwned::to_owned)
        .collect();
    let shown = |all: &[String]| {
        let (shown, _) = first_three(all);
        Value::from(if shown.is_empty() {
            "<unset>".to_owned()
        } else {
            shown
        })
    };
    vec![
        name(object),
        text(object, "/addressType").into(),
        shown(&ports),
        shown(&addresses),
        age(object, now),
    ]
}

fn service_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = items(object, "/spec/ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (integer(port, "/port"), text(port, "/protocol"));
            match integer(port, "/nodePort") {
                0 => format!("{number}/{protocol}"),
                node_port => format!("{number}:{node_port}/{protocol}"),
            }
        })
        .collect();
    vec![
        name(object),
        text(object, "/spec/type").into(),
        or(text(object, "/spec/clusterIPs/0"), "<none>").into(),
        external_ip(object).into(),
        or(&ports.join(","), "<none>").into(),
        age(object, now),
        labels(object.pointer("/spec/selector")).into(),
    ]
}

fn external_ip(object: &Value) -> String {
    let external = joined(strings(object, "/spec/externalIPs"), ",");
    match text(object, "/spec/type") {
        "ClusterIP" | "NodePort" => or(&external, "<none>").to_owned(),
        "LoadBalancer" => {
            let balancers = load_balancers(object);
            match (balancers.is_empty(), external.is_empty()) {
                (true, true) => "<pending>".to_owned(),
                (true, false) => external,
                (false, true) => balancers,
                (false, false) => format!("{balancers},{external}"),
            }
        }
        "ExternalName" => text(object, "/spec/externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn load_balancers(object: &Value) -> String {
    let mut all: Vec<&str> = items(object, "/status/loadBalancer/ingress")
        .iter()
        .map(|one| or(text(one, "/ip"), text(one, "/hostname")))
        .filter(|address| !address.is_empty())
        .collect();
    all.sort_unstable();
    all.dedup();
    all.join(",")
}

fn ingress_class_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = object
        .pointer("/spec/parameters")
        .filter(|one| !one.is_null());
    let parameters = parameters.map_or("<none>".to_owned(), |one| {
        let group = text(one, "/apiGroup");
        let dot = if one.pointer("/apiGroup").is_some() {
            "."
        } else {
            ""
        };
        format!("{}{dot}{group}/{}", text(one, "/kind"), text(one, "/name"))
    });
    vec![
        name(object),
        text(object, "/spec/controller").into(),
        parameters.into(),
        age(object, now),
    ]
}

fn ingress_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let rules = items(object, "/spec/rules");
    let mut hosts: Vec<&str> = Vec::new();
    let mut more = false;
    for rule in rules {
        more |= hosts.len() == 3;
        let host = text(rule, "/host");
        if !more && !host.is_empty() {
            hosts.push(host);
        }
    }
    let hosts = match (hosts.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (false, false) => hosts.join(","),
        (false, true) => format!("{} + {} more...", hosts.join(","), rules.len() - 3),
    };
    let tls = !items(object, "/spec/tls").is_empty();
    vec![
        name(object),
        or(text(object, "/spec/ingressClassName"), "<none>").into(),
        hosts.into(),
        load_balancers(object).into(),
        if tls { "80, 443" } else { "80" }.into(),
        age(object, now),
    ]
}

/// Upstream puts an age into a column that it does not declare.
fn ip_address_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let parent = object
        .pointer("/spec/parentRef")
        .filter(|one| !one.is_null());
    let parent = parent.map_or("<none>".to_owned(), |one| {
        let group = text(one, "/group");
        let dot = if group.is_empty() { "" } else { "." };
        let namespace = text(one, "/namespace");
        let slash = if namespace.is_empty() { "" } else { "/" };
        format!(
            "{}{slash}{namespace}/{}",
            format!("{}{dot}{group}", text(one, "/resource")).to_lowercase(),
            text(one, "/name")
        )
    });
    vec![name(object), parent.into(), age(object, now)]
}

fn network_policy_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        selector_or_none(object.pointer("/spec/podSelector")).into(),
        age(object, now),
    ]
}

fn service_cidr_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        joined(strings(object, "/spec/cidrs"), ",").into(),
        age(object, now),
    ]
}
