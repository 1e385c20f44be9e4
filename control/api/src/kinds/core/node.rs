use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::{
    defaults::pod_spec::round_up,
    field::{Bad, Errors, Path},
    kinds::{Check, Kind, Rules, Selectable},
    quantity::Amount,
    strategy::Warnings,
    validation::{
        net::{cidr_warnings, is_dual_stack, parse_cidr, validate_cidr},
        resources::validate_resource_quantity,
        scheduling::validate_taints,
    },
    zero::{List, Text},
};

impl Kind for Node {
    const RULES: Rules = Rules::cluster()
        .status()
        .keep_status_on_create()
        .update_checks(&[Check::Metadata, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        // `podCIDR` is the first of `podCIDRs`; where they disagree, the older field counts.
        let first = spec.pod_cidrs.items().first().cloned();
        match spec.pod_cidr.clone().filter(|cidr| !cidr.is_empty()) {
            Some(cidr) if first.as_ref() != Some(&cidr) => spec.pod_cidrs = Some(vec![cidr]),
            Some(_) => {}
            None => spec.pod_cidr = first,
        }
        let Some(status) = &mut self.status else {
            return;
        };
        round_up(status.capacity.as_mut());
        round_up(status.allocatable.as_mut());
        if status.allocatable.is_none() {
            status.allocatable.clone_from(&status.capacity);
        }
    }

    fn prepare_create(&mut self) {
        drop_config_source(self, None);
        drop_config(self, None);
    }

    fn prepare_update(&mut self, old: &Self) {
        drop_config_source(self, Some(old));
    }

    fn prepare_status_update(&mut self, old: &Self) {
        drop_config(self, Some(old));
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        validate_taints(spec.taints.items(), &Path::new("metadata.taints"), errors);
        validate_resources(self, errors);
        let path = Path::new("spec.podCIDRs");
        let cidrs = spec.pod_cidrs.items();
        for (i, cidr) in cidrs.iter().enumerate() {
            validate_cidr(cidr, &[], &path.index(i), errors);
        }
        if cidrs.len() > 1 {
            let parsed: Vec<_> = cidrs
                .iter()
                .filter_map(|cidr| parse_cidr(cidr))
                .map(|net| net.addr())
                .collect();
            if !is_dual_stack(&parsed) || cidrs.len() > 2 {
                errors.invalid(
                    &path,
                    Bad::json(&cidrs),
                    "may specify no more than one CIDR for each IP family",
                );
            }
            let mut seen = BTreeSet::new();
            for (i, cidr) in cidrs.iter().enumerate() {
                if !seen.insert(cidr) {
                    errors.duplicate(&path.index(i), cidr);
                }
            }
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        validate_change(self, old, errors);
    }

    fn validate_status_update(&self, old: &Self, errors: &mut Errors) {
        validate_change(self, old, errors);
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        let mut warnings = Warnings::new();
        let spec = self.spec.clone().unwrap_or_default();
        if spec.config_source.is_some() {
            warnings.push("spec.configSource: the feature is removed".to_owned());
        }
        if !spec.external_id.text().is_empty() {
            let message = "spec.externalID: this field is deprecated, and is unused by Kubernetes";
            warnings.push(message.to_owned());
        }
        let path = Path::new("spec.podCIDRs");
        for (i, cidr) in spec.pod_cidrs.items().iter().enumerate() {
            warnings.extend(cidr_warnings(cidr, &path.index(i)));
        }
        warnings
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::node()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        const FIELDS: &[Selectable] = &[Selectable {
            name: "spec.unschedulable",
            get: |object| {
                let flag = object
                    .pointer("/spec/unschedulable")
                    .and_then(Value::as_bool);
                flag.unwrap_or(false).to_string()
            },
        }];
        Some(FIELDS)
    }
}

/// Kubelets are no longer configured by objects: nodes that were keep what says so, others do not get it.
fn drop_config_source(node: &mut Node, old: Option<&Node>) {
    let used = old.and_then(|old| old.spec.as_ref()?.config_source.as_ref());
    if let (None, Some(spec)) = (used, &mut node.spec) {
        spec.config_source = None;
    }
}

fn drop_config(node: &mut Node, old: Option<&Node>) {
    let used = old.and_then(|old| old.status.as_ref()?.config.as_ref());
    if let (None, Some(status)) = (used, &mut node.status) {
        status.config = None;
    }
}

fn validate_resources(node: &Node, errors: &mut Errors) {
    let status = node.status.clone().unwrap_or_default();
    for (field, list) in [
        ("status.capacity", &status.capacity),
        ("status.allocatable", &status.allocatable),
    ] {
        let path = Path::new(field);
        for (name, quantity) in list.iter().flatten() {
            validate_resource_quantity(name, Amount::of(quantity), &path.child(name), errors);
        }
    }
}

fn validate_change(new: &Node, old: &Node, errors: &mut Errors) {
    validate_resources(new, errors);
    let addresses = new
        .status
        .clone()
        .unwrap_or_default()
        .addresses
        .unwrap_or_default();
    let path = Path::new("status.addresses");
    for (i, address) in addresses.iter().enumerate() {
        if addresses[..i].contains(address) {
            let shown = format!(
                r#"{{"Type":{},"Address":{}}}"#,
                json!(address.type_),
                json!(address.address)
            );
            errors.duplicate(&path.index(i), Bad::shown(shown));
        }
    }
    let spec = new.spec.clone().unwrap_or_default();
    let old_spec = old.spec.clone().unwrap_or_default();
    let (cidrs, old_cidrs) = (spec.pod_cidrs.items(), old_spec.pod_cidrs.items());
    if !old_cidrs.is_empty() {
        let changes = if cidrs.len() == old_cidrs.len() {
            cidrs
                .iter()
                .zip(old_cidrs)
                .filter(|(new, old)| new != old)
                .count()
        } else {
            1
        };
        for _ in 0..changes {
            errors.forbidden(
                &Path::new("spec.podCIDRs"),
                "node updates may not change podCIDR except from \"\" to valid",
            );
        }
    }
    let provider = old_spec.provider_id.text();
    if !provider.is_empty() && provider != spec.provider_id.text() {
        errors.forbidden(
            &Path::new("spec.providerID"),
            "node updates may not change providerID except from \"\" to valid",
        );
    }
    validate_taints(spec.taints.items(), &Path::new("metadata.taints"), errors);
    if spec.external_id.text() != old_spec.external_id.text() {
        errors.forbidden(&Path::new("spec.externalID"), "may not be updated");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kinds::Typed,
        strategy::{Strategy, UpdateOf},
    };

    #[test]
    fn kubelets_are_not_configured_by_objects() {
        let strategy: Typed<Node> = Default::default();
        let source = json!({"configMap": {"name": "c", "namespace": "n", "kubeletConfigKey": "k"}});
        let mut node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"configSource": source}, "status": {"config": {"active": source}},
        });
        let configured = node.clone();
        assert_eq!(strategy.create(&mut node), Ok(Warnings::new()));
        assert_eq!(node["spec"], json!({}));
        assert_eq!(node["status"]["config"], Value::Null);
        let mut again = configured.clone();
        assert_eq!(
            strategy.update(&mut again, &node, UpdateOf::Main),
            Ok(Warnings::new())
        );
        assert_eq!(again["spec"], json!({}));
        let mut again = configured.clone();
        assert_eq!(
            strategy.update(&mut again, &configured, UpdateOf::Main),
            Ok(vec!["spec.configSource: the feature is removed".to_owned()])
        );
        assert_eq!(again["spec"]["configSource"], source);
        let mut again = configured;
        assert_eq!(
            strategy.update(&mut again, &node, UpdateOf::Status),
            Ok(Warnings::new())
        );
        assert_eq!(again["status"]["config"], Value::Null);
    }
}
