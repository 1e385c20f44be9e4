use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    field::{Bad, Errors, Path},
    kinds::{Check, Generation, Kind, Rules},
    strategy::Warnings,
    validation::{
        labels::{SelectorRules, validate_selector},
        net, text,
    },
    zero::{List, set},
};

impl Kind for NetworkPolicy {
    const RULES: Rules = Rules::namespaced()
        .generation(Generation::Spec)
        .update_checks(&[Check::Metadata, Check::Object, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.pod_selector.get_or_insert_default();
        let ingress = spec
            .ingress
            .iter_mut()
            .flatten()
            .map(|rule| &mut rule.ports);
        let egress = spec.egress.iter_mut().flatten().map(|rule| &mut rule.ports);
        for port in ingress.chain(egress).flatten().flatten() {
            set(&mut port.protocol, "TCP".to_owned());
        }
        if spec.policy_types.items().is_empty() {
            let mut types = vec!["Ingress".to_owned()];
            if !spec.egress.items().is_empty() {
                types.push("Egress".to_owned());
            }
            spec.policy_types = Some(types);
        }
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        let path = Path::new("spec");
        validate_selector(
            spec.pod_selector.as_ref(),
            SelectorRules::default(),
            &path.child("podSelector"),
            errors,
        );
        for (index, rule) in spec.ingress.items().iter().enumerate() {
            let list = path.child("ingress");
            let path = list.index(index);
            validate_ports(rule.ports.items(), &path.child("ports"), errors);
            validate_peers(rule.from.items(), &path.child("from"), errors);
        }
        for (index, rule) in spec.egress.items().iter().enumerate() {
            let list = path.child("egress");
            let path = list.index(index);
            validate_ports(rule.ports.items(), &path.child("ports"), errors);
            validate_peers(rule.to.items(), &path.child("to"), errors);
        }
        let at = path.child("policyTypes");
        if spec.policy_types.items().len() > 2 {
            errors.invalid(
                &at,
                Bad::json(&spec.policy_types),
                "may not specify more than two policyTypes",
            );
            return;
        }
        for (index, one) in spec.policy_types.items().iter().enumerate() {
            if !matches!(one.as_str(), "Ingress" | "Egress") {
                errors.not_supported(&at.index(index), one.as_str(), &["Ingress", "Egress"]);
            }
        }
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        let mut warnings = Warnings::new();
        let spec = self.spec.clone().unwrap_or_default();
        let path = Path::new("spec");
        let ingress = path.child("ingress");
        for (i, rule) in spec.ingress.items().iter().enumerate() {
            let path = ingress.index(i);
            peer_warnings(rule.from.items(), &path.child("from"), &mut warnings);
        }
        let egress = path.child("egress");
        for (i, rule) in spec.egress.items().iter().enumerate() {
            let path = egress.index(i);
            peer_warnings(rule.to.items(), &path.child("to"), &mut warnings);
        }
        warnings
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::network::network_policy()
    }
}

fn validate_ports(ports: &[NetworkPolicyPort], path: &Path<'_>, errors: &mut Errors) {
    for (index, port) in ports.iter().enumerate() {
        validate_port(port, &path.index(index), errors);
    }
}

fn validate_port(port: &NetworkPolicyPort, path: &Path<'_>, errors: &mut Errors) {
    if let Some(protocol) = &port.protocol
        && !matches!(protocol.as_str(), "TCP" | "UDP" | "SCTP")
    {
        errors.not_supported(
            &path.child("protocol"),
            protocol.as_str(),
            &["TCP", "UDP", "SCTP"],
        );
    }
    let at = path.child("endPort");
    match &port.port {
        Some(IntOrString::Int(number)) => {
            let end = port.end_port;
            net::validate_port_number(*number, &path.child("port"), errors);
            if let Some(end) = end {
                if end < *number {
                    errors.invalid(&at, *number, "must be greater than or equal to `port`");
                }
                net::validate_port_number(end, &at, errors);
            }
        }
        Some(IntOrString::String(name)) => {
            if let Some(end) = port.end_port {
                errors.invalid(&at, end, "may not be specified when `port` is non-numeric");
            }
            errors.invalid_each(&path.child("port"), name, text::port_name(name));
        }
        None => {
            if let Some(end) = port.end_port {
                errors.invalid(
                    &at,
                    end,
                    "may not be specified when `port` is not specified",
                );
            }
        }
    }
}

fn validate_peers(peers: &[NetworkPolicyPeer], path: &Path<'_>, errors: &mut Errors) {
    for (index, peer) in peers.iter().enumerate() {
        let path = path.index(index);
        let mut count = 0;
        if let Some(selector) = &peer.pod_selector {
            count += 1;
            validate_selector(
                Some(selector),
                SelectorRules::default(),
                &path.child("podSelector"),
                errors,
            );
        }
        if let Some(selector) = &peer.namespace_selector {
            count += 1;
            validate_selector(
                Some(selector),
                SelectorRules::default(),
                &path.child("namespaceSelector"),
                errors,
            );
        }
        if let Some(block) = &peer.ip_block {
            validate_block(block, &path.child("ipBlock"), errors);
            if count > 0 {
                errors.forbidden(&path, "may not specify both ipBlock and another peer");
            }
        } else if count == 0 {
            errors.required(&path, "must specify a peer");
        }
    }
}

fn validate_block(block: &IPBlock, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("cidr");
    if block.cidr.is_empty() {
        errors.required(&at, "");
        return;
    }
    net::validate_cidr(&block.cidr, &[], &at, errors);
    let Some(cidr) = net::parse_cidr(&block.cidr) else {
        return;
    };
    for (index, except) in block.except.items().iter().enumerate() {
        let list = path.child("except");
        let at = list.index(index);
        net::validate_cidr(except, &[], &at, errors);
        let Some(inner) = net::parse_cidr(except) else {
            continue;
        };
        if !cidr.contains(&inner.network()) || inner.prefix_len() <= cidr.prefix_len() {
            errors.invalid(&at, except.as_str(), "must be a strict subset of `cidr`");
        }
    }
}

fn peer_warnings(peers: &[NetworkPolicyPeer], path: &Path<'_>, warnings: &mut Warnings) {
    for (i, peer) in peers.iter().enumerate() {
        let Some(block) = &peer.ip_block else {
            continue;
        };
        let path = path.index(i);
        let path = path.child("ipBlock");
        warnings.extend(net::cidr_warnings(&block.cidr, &path.child("cidr")));
        let at = path.child("except");
        for (j, except) in block.except.items().iter().enumerate() {
            warnings.extend(net::cidr_warnings(except, &at.index(j)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cidr: &str, except: &str, expected: &[&str]) {
        let block = IPBlock {
            cidr: cidr.to_owned(),
            except: Some(vec![except.to_owned()]),
        };
        let mut errors = Errors::default();
        validate_block(&block, &Path::new("b"), &mut errors);
        let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn exceptions_are_within_the_block() {
        check("10.0.0.0/8", "10.1.0.0/16", &[]);
        let outside =
            "b.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`";
        check("10.0.0.0/8", "11.0.0.0/16", &[outside]);
        // What is written badly but can be read is compared all the same.
        let bits = "b.cidr: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length";
        check("10.0.0.1/8", "11.0.0.0/16", &[bits, outside]);
    }
}
