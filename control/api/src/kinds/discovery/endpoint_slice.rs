use std::collections::BTreeSet;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::{
    field::{Errors, Path},
    kinds::{Check, Generation, Kind, Rules},
    strategy::Warnings,
    validation::{
        labels::validate_labels,
        net::{PROTOCOLS, ip_warning, is_ipv6, parse_ip, validate_non_special_ip},
        text,
    },
    zero::{List, Text, set},
};

const TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];
const NODE_NAME_LABEL: &str = "kubernetes.io/hostname";

impl Kind for EndpointSlice {
    const RULES: Rules = Rules::namespaced()
        .generation(Generation::ObjectOrMetadata)
        .update_checks(&[Check::Metadata]);

    fn set_defaults(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            set(&mut port.name, String::new());
            set(&mut port.protocol, "TCP".to_owned());
        }
    }

    fn prepare_create(&mut self) {
        drop_topology(self);
    }

    fn prepare_update(&mut self, _old: &Self) {
        drop_topology(self);
    }

    fn validate(&self, errors: &mut Errors) {
        validate(self, &TYPES, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate(self, &["FQDN", "IP", "IPv4", "IPv6"], errors);
        errors.immutable(
            &Path::new("addressType"),
            &self.address_type,
            &old.address_type,
        );
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        if self.address_type == "FQDN" {
            return vec!["spec.addressType: FQDN endpoints are deprecated".to_owned()];
        }
        let mut warnings = Warnings::new();
        let path = Path::new("endpoints");
        for (i, endpoint) in self.endpoints.items().iter().enumerate() {
            let path = path.index(i);
            let path = path.child("addresses");
            for (j, address) in endpoint.addresses.iter().enumerate() {
                warnings.extend(ip_warning(address, &path.index(j)));
            }
        }
        warnings
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::network::endpoint_slice()
    }
}

/// `nodeName` and `zone` took the place of these.
fn drop_topology(slice: &mut EndpointSlice) {
    for endpoint in &mut slice.endpoints.iter_mut().flatten() {
        if let Some(topology) = &mut endpoint.deprecated_topology {
            topology.remove(NODE_NAME_LABEL);
        }
    }
}

fn validate(slice: &EndpointSlice, types: &[&str], errors: &mut Errors) {
    let type_ = slice.address_type.as_str();
    let path = Path::new("addressType");
    if type_.is_empty() {
        errors.required(&path, "");
    } else if !types.contains(&type_) {
        errors.not_supported(&path, type_, types);
    }
    let endpoints = slice.endpoints.items();
    let path = Path::new("endpoints");
    if endpoints.len() > 1000 {
        errors.too_many(&path, endpoints.len(), 1000);
    } else {
        for (i, endpoint) in endpoints.iter().enumerate() {
            validate_endpoint(endpoint, type_, &path.index(i), errors);
        }
    }
    validate_ports(slice, &Path::new("ports"), errors);
}

fn validate_endpoint(endpoint: &Endpoint, type_: &str, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("addresses");
    let addresses = &endpoint.addresses;
    if addresses.is_empty() {
        errors.required(&at, "must contain at least 1 address");
    } else if addresses.len() > 100 {
        errors.too_many(&at, addresses.len(), 100);
    }
    for (i, address) in addresses.iter().enumerate() {
        validate_address(address, type_, &at, &at.index(i), errors);
    }
    if let Some(node) = &endpoint.node_name {
        errors.invalid_each(&path.child("nodeName"), node, text::dns1123_subdomain(node));
    }
    let at = path.child("deprecatedTopology");
    if let Some(topology) = &endpoint.deprecated_topology {
        if topology.len() > 16 {
            errors.too_many(&at, topology.len(), 16);
        }
        validate_labels(Some(topology), &at, errors);
        for (key, instead) in [
            (NODE_NAME_LABEL, "nodeName"),
            ("topology.kubernetes.io/zone", "zone"),
        ] {
            if topology.contains_key(key) {
                errors.invalid(&at.key(key), key, format!("use {instead} instead"));
            }
        }
    }
    if let Some(hostname) = &endpoint.hostname {
        errors.invalid_each(
            &path.child("hostname"),
            hostname,
            text::dns1123_label(hostname),
        );
    }
    if let Some(hints) = &endpoint.hints {
        let zones: Vec<&str> = hints
            .for_zones
            .items()
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        let nodes: Vec<&str> = hints
            .for_nodes
            .items()
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        let path = path.child("hints");
        validate_hints(&zones, text::label_value, &path.child("forZones"), errors);
        validate_hints(
            &nodes,
            text::dns1123_subdomain,
            &path.child("forNodes"),
            errors,
        );
    }
}

fn validate_hints(
    names: &[&str],
    rule: fn(&str) -> text::Messages,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if names.len() > 8 {
        errors.too_many(path, names.len(), 8);
        return;
    }
    for (i, name) in names.iter().enumerate() {
        let at = path.index(i);
        let at = at.child("name");
        if names[..i].contains(name) {
            errors.duplicate(&at, *name);
        } else {
            errors.invalid_each(&at, name, rule(name));
        }
    }
}

/// Whether the family fits is said of the list, the rest of the address.
fn validate_address(
    address: &str,
    type_: &str,
    list: &Path<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let family = |wanted: bool, name: &str, errors: &mut Errors| match parse_ip(address) {
        Some(_) if is_ipv6(address) == wanted => {
            validate_non_special_ip(address, path, errors);
        }
        _ => errors.invalid(list, address, format!("must be an {name} address")),
    };
    match type_ {
        "IPv4" => family(false, "IPv4", errors),
        "IPv6" => family(true, "IPv6", errors),
        "FQDN" => {
            let name = address.strip_suffix('.').unwrap_or(address);
            let messages = text::dns1123_subdomain(name);
            if name.is_empty() {
                errors.required(path, "");
            } else if !messages.is_empty() {
                errors.invalid(path, address, messages.join(","));
            } else if !name.contains('.') {
                errors.invalid(
                    path,
                    address,
                    "should be a domain with at least two segments separated by dots",
                );
            }
        }
        _ => {}
    }
}

fn validate_ports(slice: &EndpointSlice, path: &Path<'_>, errors: &mut Errors) {
    let ports = slice.ports.items();
    if ports.len() > 100 {
        errors.too_many(path, ports.len(), 100);
        return;
    }
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = port.name.text();
        if !name.is_empty() {
            errors.invalid_each(&path.child("name"), name, text::dns1123_label(name));
        }
        if !names.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        match port.protocol.as_deref() {
            None => errors.required(&path.child("protocol"), ""),
            Some(protocol) if !PROTOCOLS.contains(&protocol) => {
                errors.not_supported(&path.child("protocol"), protocol, &PROTOCOLS);
            }
            Some(_) => {}
        }
        if let Some(protocol) = &port.app_protocol {
            errors.invalid_each(
                &path.child("appProtocol"),
                protocol,
                text::qualified_name(protocol),
            );
        }
    }
}
