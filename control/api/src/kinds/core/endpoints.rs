use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, Endpoints};

use crate::{
    field::{Errors, Path},
    kinds::{Check, Kind, Rules},
    strategy::Warnings,
    validation::{
        net::{
            ip_warning, validate_ip, validate_non_special_ip, validate_port_number,
            validate_protocol,
        },
        text,
    },
    zero::{List, Text, fill},
};

impl Kind for Endpoints {
    const RULES: Rules = Rules::namespaced()
        .create_on_update()
        .update_checks(&[Check::Metadata, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        for subset in self.subsets.iter_mut().flatten() {
            for port in subset.ports.iter_mut().flatten() {
                fill(&mut port.protocol, "TCP");
            }
        }
    }

    fn validate(&self, errors: &mut Errors) {
        validate(self, &[], errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let mut known = Vec::new();
        for subset in old.subsets.items() {
            let all = subset
                .addresses
                .items()
                .iter()
                .chain(subset.not_ready_addresses.items());
            known.extend(all.map(|address| address.ip.clone()));
        }
        validate(self, &known, errors);
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        let mut warnings = Warnings::new();
        let path = Path::new("subsets");
        for (i, subset) in self.subsets.items().iter().enumerate() {
            let path = path.index(i);
            for (field, addresses) in [
                ("addresses", subset.addresses.items()),
                ("notReadyAddresses", subset.not_ready_addresses.items()),
            ] {
                let path = path.child(field);
                for (j, address) in addresses.iter().enumerate() {
                    warnings.extend(ip_warning(&address.ip, &path.index(j).child("ip")));
                }
            }
        }
        warnings
    }

    fn canonicalize(&mut self) -> bool {
        let packed = self.subsets.as_deref().map(super::subsets::repack);
        let changed = packed != self.subsets;
        self.subsets = packed;
        changed
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::network::endpoints()
    }
}

fn validate(endpoints: &Endpoints, known: &[String], errors: &mut Errors) {
    let path = Path::new("subsets");
    for (i, subset) in endpoints.subsets.items().iter().enumerate() {
        let path = path.index(i);
        let (ready, not_ready) = (subset.addresses.items(), subset.not_ready_addresses.items());
        if ready.is_empty() && not_ready.is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for (field, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
            let path = path.child(field);
            for (j, address) in addresses.iter().enumerate() {
                validate_address(address, known, &path.index(j), errors);
            }
        }
        let ports = subset.ports.items();
        let at = path.child("ports");
        for (j, port) in ports.iter().enumerate() {
            validate_port(port, ports.len() > 1, &at.index(j), errors);
        }
    }
}

fn validate_address(
    address: &EndpointAddress,
    known: &[String],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    validate_ip(&address.ip, known, &path.child("ip"), errors);
    let hostname = address.hostname.text();
    if !hostname.is_empty() {
        errors.invalid_each(
            &path.child("hostname"),
            hostname,
            text::dns1123_label(hostname),
        );
    }
    if let Some(node) = &address.node_name {
        errors.invalid_each(&path.child("nodeName"), node, text::dns1123_subdomain(node));
    }
    validate_non_special_ip(&address.ip, &path.child("ip"), errors);
}

fn validate_port(port: &EndpointPort, named: bool, path: &Path<'_>, errors: &mut Errors) {
    let name = port.name.text();
    if named && name.is_empty() {
        errors.required(&path.child("name"), "");
    } else if !name.is_empty() {
        errors.invalid_each(&path.child("name"), name, text::dns1123_label(name));
    }
    validate_port_number(port.port, &path.child("port"), errors);
    validate_protocol(port.protocol.text(), &path.child("protocol"), errors);
    if let Some(protocol) = &port.app_protocol {
        errors.invalid_each(
            &path.child("appProtocol"),
            protocol,
            text::qualified_name(protocol),
        );
    }
}
