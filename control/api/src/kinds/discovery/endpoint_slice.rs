use std::collections::BTreeSet;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::{
    field::{Errors, Path},
    kinds::{Check, Generation, Kind, Rules},
    strategy::Warnings,
    validation::{
        net::{PROTOCOLS, ip_warning, is_ipv6, validate_ip, validate_non_special_ip},
        text,
    },
    zero::{List, Text, set},
};

const TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];
/// Where the first versions of the kind had the node's name.
const NODE_NAME_LABEL: &str = "kubernetes.io/hostname";
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLERS: [&str; 2] = [
    "endpointslice-controller.k8s.io",
    "endpointslicemirroring-controller.k8s.io",
];
const PORTS_LIMIT: usize = 20_000;

impl Kind for EndpointSlice {
    const RULES: Rules = Rules::namespaced()
        .generation(Generation::ObjectOrLabels)
        .update_checks(&[Check::Metadata]);

    fn set_defaults(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            set(&mut port.name, String::new());
            set(&mut port.protocol, "TCP".to_owned());
        }
    }

    fn prepare_create(&mut self) {
        drop_topology(self, &[]);
    }

    fn prepare_update(&mut self, old: &Self) {
        if self.endpoints != old.endpoints {
            drop_topology(self, old.endpoints.items());
        }
    }

    fn validate(&self, errors: &mut Errors) {
        validate(self, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate(self, errors);
        errors.immutable(
            &Path::new("addressType"),
            &self.address_type,
            &old.address_type,
        );
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        let mut warnings = Warnings::new();
        if old.is_none() && self.address_type == "FQDN" {
            warnings.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
        }
        let labels = self.metadata.labels.as_ref();
        let manager = labels.and_then(|labels| labels.get(MANAGED_BY_LABEL));
        if manager.is_some_and(|manager| CONTROLLERS.contains(&manager.as_str())) {
            return warnings;
        }
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

/// No client of this version writes `deprecatedTopology`. Of an old object's, `nodeName` takes over the node.
fn drop_topology(slice: &mut EndpointSlice, old: &[Endpoint]) {
    let node = |endpoint: &Endpoint| {
        let topology = endpoint.deprecated_topology.as_ref()?;
        let node = topology.get(NODE_NAME_LABEL).cloned()?;
        text::dns1123_subdomain(&node).is_empty().then_some(node)
    };
    let known: BTreeSet<String> = old.iter().filter_map(node).collect();
    for endpoint in slice.endpoints.iter_mut().flatten() {
        if endpoint.node_name.is_none() {
            endpoint.node_name = node(endpoint).filter(|node| known.contains(node));
        }
        endpoint.deprecated_topology = None;
    }
}

fn validate(slice: &EndpointSlice, errors: &mut Errors) {
    let type_ = slice.address_type.as_str();
    let path = Path::new("addressType");
    if type_.is_empty() {
        errors.required(&path, "");
    } else if !TYPES.contains(&type_) {
        errors.not_supported(&path, type_, &TYPES);
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
        let at = path.child("forZones");
        if validate_hints(&zones, text::label_value, &at, errors) {
            let at = path.child("forNodes");
            validate_hints(&nodes, text::dns1123_subdomain, &at, errors);
        }
    }
}

/// Whether there are not too many.
fn validate_hints(
    names: &[&str],
    rule: fn(&str) -> text::Messages,
    path: &Path<'_>,
    errors: &mut Errors,
) -> bool {
    if names.len() > 8 {
        errors.too_many(path, names.len(), 8);
        return false;
    }
    for (i, name) in names.iter().enumerate() {
        let at = path.index(i);
        let at = at.child("name");
        if names[..i].contains(name) {
            errors.duplicate(&at, *name);
        }
        errors.invalid_each(&at, name, rule(name));
    }
    true
}

/// Whether the family fits is said of the list, the rest of the address.
fn validate_address(
    address: &str,
    type_: &str,
    list: &Path<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let family = |wanted: bool, name: &str, errors: &mut Errors| {
        let before = errors.len();
        validate_ip(address, &[], path, errors);
        if errors.len() > before {
            return;
        }
        if is_ipv6(address) != wanted {
            errors.invalid(list, address, format!("must be an {name} address"));
        }
        validate_non_special_ip(address, path, errors);
    };
    match type_ {
        "IPv4" => family(false, "IPv4", errors),
        "IPv6" => family(true, "IPv6", errors),
        "FQDN" => validate_domain(address, path, errors),
        _ => {}
    }
}

fn validate_domain(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let messages = text::dns1123_subdomain(name);
    if !messages.is_empty() {
        errors.invalid(path, name, messages.join(","));
        return;
    }
    if !name.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.invalid(path, name, detail);
        return;
    }
    let bad = name
        .split('.')
        .map(|label| (label, text::dns1123_label(label)))
        .find(|(_, messages)| !messages.is_empty());
    if let Some((label, messages)) = bad {
        errors.invalid(path, label, messages.join(","));
    }
}

fn validate_ports(slice: &EndpointSlice, path: &Path<'_>, errors: &mut Errors) {
    let ports = slice.ports.items();
    if ports.len() > PORTS_LIMIT {
        errors.too_many(path, ports.len(), PORTS_LIMIT);
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(type_: &str, endpoint: &Value) -> EndpointSlice {
        let slice = json!({"metadata": {}, "addressType": type_, "endpoints": [endpoint]});
        serde_json::from_value(slice).unwrap()
    }

    #[track_caller]
    fn check(type_: &str, address: &str, expected: &[&str]) {
        let mut errors = Errors::default();
        validate(&slice(type_, &json!({"addresses": [address]})), &mut errors);
        let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn addresses() {
        check("IPv4", "10.0.0.1", &[]);
        check(
            "IPv4",
            "x",
            &[
                "endpoints[0].addresses[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or \
                 2001:db8::ffff)",
            ],
        );
        check(
            "IPv4",
            "::1",
            &[
                "endpoints[0].addresses: Invalid value: \"::1\": must be an IPv4 address",
                "endpoints[0].addresses[0]: Invalid value: \"::1\": may not be in the loopback range (127.0.0.0/8, \
                 ::1/128)",
            ],
        );
        check("FQDN", "a.b.", &[]);
        check(
            "FQDN",
            "a.",
            &[
                "endpoints[0].addresses[0]: Invalid value: \"a\": should be a domain with at least two segments \
                 separated by dots",
            ],
        );
    }

    #[test]
    fn topology_is_not_written_any_more() {
        let topology =
            json!({"addresses": ["10.0.0.1"], "deprecatedTopology": {NODE_NAME_LABEL: "n"}});
        let mut new = slice("IPv4", &topology);
        new.prepare_create();
        let endpoint = &new.endpoints.items()[0];
        assert_eq!(
            (&endpoint.node_name, &endpoint.deprecated_topology),
            (&None, &None)
        );
        // An old object's stays as long as nothing changes, and becomes the name of the node then.
        let old = slice("IPv4", &topology);
        let mut new = old.clone();
        new.prepare_update(&old);
        assert_eq!(new, old);
        new.endpoints.as_mut().unwrap()[0].hostname = Some("h".to_owned());
        new.prepare_update(&old);
        let endpoint = &new.endpoints.items()[0];
        assert_eq!(endpoint.node_name.as_deref(), Some("n"));
        assert_eq!(endpoint.deprecated_topology, None);
    }

    #[test]
    fn hints_that_repeat_are_checked_as_well() {
        let hints = json!({"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "a b"}, {"name": "a b"}]}});
        let mut errors = Errors::default();
        validate(&slice("IPv4", &hints), &mut errors);
        let kinds: Vec<&str> = errors.0.iter().map(|error| error.kind.reason()).collect();
        assert_eq!(
            kinds,
            [
                "FieldValueInvalid",
                "FieldValueDuplicate",
                "FieldValueInvalid"
            ]
        );
    }
}
