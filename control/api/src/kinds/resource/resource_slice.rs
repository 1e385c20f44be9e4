use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{api::resource::v1::ResourceSlice, apimachinery::pkg::apis::meta::v1::Time};

use super::devices::{validate_counter_sets, validate_devices, validate_pool_name};
use crate::{
    field::{Errors, Path},
    kinds::{Generation, Kind, Rules, Selectable, core::event::first_text},
    printer::Printer,
    printers,
    validation::{
        internal, scheduling::validate_node_selector, text,
        volume_sources::validate_csi_driver_name,
    },
    zero::{Flag, List},
};

impl Kind for ResourceSlice {
    const RULES: Rules = Rules::cluster().generation(Generation::Spec);

    fn set_defaults(&mut self) {
        let devices = self.spec.devices.iter_mut().flatten();
        for taint in devices.flat_map(|device| device.taints.iter_mut().flatten()) {
            if taint.time_added.is_none() {
                let now = Timestamp::from_second(Timestamp::now().as_second());
                taint.time_added = now.ok().map(Time);
            }
        }
    }

    fn validate(&self, errors: &mut Errors) {
        validate(self, None, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate(self, Some(old), errors);
    }

    fn printer() -> Arc<dyn Printer> {
        printers::storage::resource_slice()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        Some(&[
            Selectable {
                name: "spec.nodeName",
                get: |object| first_text(object, &["/spec/nodeName"]),
            },
            Selectable {
                name: "spec.driver",
                get: |object| first_text(object, &["/spec/driver"]),
            },
        ])
    }
}

fn validate(slice: &ResourceSlice, old: Option<&ResourceSlice>, errors: &mut Errors) {
    let (spec, path) = (&slice.spec, Path::new("spec"));
    validate_csi_driver_name(&spec.driver, &path.child("driver"), errors);
    let pool_at = path.child("pool");
    validate_pool_name(&spec.pool.name, &pool_at.child("name"), errors);
    let count = spec.pool.resource_slice_count;
    if count <= 0 {
        errors.invalid(
            &pool_at.child("resourceSliceCount"),
            count,
            "must be greater than zero",
        );
    }
    if spec.pool.generation < 0 {
        errors.invalid(
            &pool_at.child("generation"),
            spec.pool.generation,
            "must be greater than or equal to zero",
        );
    }
    if let Some(old) = old {
        let (old, name_at) = (&old.spec, pool_at.child("name"));
        errors.immutable(&name_at, &spec.pool.name, &old.pool.name);
        errors.immutable(&path.child("driver"), &spec.driver, &old.driver);
        errors.immutable(&path.child("nodeName"), &spec.node_name, &old.node_name);
    }
    validate_nodes(slice, &path, errors);
    if spec.shared_counters.is_some() && spec.devices.is_some() {
        errors.invalid(
            &path,
            "",
            "only one of `sharedCounters` or `devices` is allowed",
        );
    }
    validate_devices(
        spec.devices.items(),
        old.map(|old| old.spec.devices.items()).unwrap_or_default(),
        spec.per_device_node_selection.is_true(),
        &path.child("devices"),
        errors,
    );
    validate_counter_sets(
        spec.shared_counters.items(),
        &path.child("sharedCounters"),
        errors,
    );
}

/// Which nodes can reach the devices: one way of saying it.
fn validate_nodes(slice: &ResourceSlice, path: &Path<'_>, errors: &mut Errors) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let spec = &slice.spec;
    let mut chosen = Vec::new();
    if let Some(name) = &spec.node_name {
        let at = path.child("nodeName");
        if name.is_empty() {
            errors.invalid(
                &at,
                name,
                "must be either unset or set to a non-empty string",
            );
        } else {
            chosen.push("`nodeName`");
            errors.invalid_each(&at, name, text::dns1123_subdomain(name));
        }
    }
    if let Some(selector) = &spec.node_selector {
        chosen.push("`nodeSelector`");
        let at = path.child("nodeSelector");
        validate_node_selector(selector, &at, errors);
        let terms = &selector.node_selector_terms;
        if terms.len() != 1 {
            errors.invalid(
                &at.child("nodeSelectorTerms"),
                internal::bad("NodeTerm", terms),
                "must have exactly one node selector term",
            );
        }
    }
    for (field, flag, shown) in [
        ("allNodes", spec.all_nodes, "`allNodes`"),
        (
            "perDeviceNodeSelection",
            spec.per_device_node_selection,
            "`perDeviceNodeSelection`",
        ),
    ] {
        match flag {
            Some(true) => chosen.push(shown),
            Some(false) => errors.invalid(
                &path.child(field),
                false,
                "must be either unset or set to true",
            ),
            None => {}
        }
    }
    match chosen.len() {
        0 => errors.required(path, ONE),
        1 => {}
        _ => errors.invalid(
            path,
            format!("{{{}}}", chosen.join(", ")),
            format!("{ONE}, but multiple fields are set"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(spec: Value, expected: &[&str]) {
        let mut all = json!({"driver": "d.example.com", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}});
        for (field, value) in spec.as_object().expect("fields") {
            all[field] = value.clone();
        }
        let slice: ResourceSlice =
            serde_json::from_value(json!({"metadata": {}, "spec": all})).expect("a slice");
        let mut errors = Errors::default();
        slice.validate(&mut errors);
        let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_taint_gets_the_time_when_it_was_added() {
        let taints = json!([
            {"key": "a", "effect": "NoSchedule"},
            {"key": "b", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"},
        ]);
        let mut slice: ResourceSlice = serde_json::from_value(json!({"metadata": {}, "spec": {
            "driver": "d.example.com", "devices": [{"name": "d", "taints": taints}],
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        }}))
        .expect("a slice");
        slice.set_defaults();
        let taints =
            serde_json::to_value(&slice).expect("JSON")["spec"]["devices"][0]["taints"].take();
        assert!(taints[0]["timeAdded"].is_string(), "{taints}");
        assert_eq!(taints[1]["timeAdded"], "2026-01-01T00:00:00Z");
    }

    #[test]
    fn slices() {
        check(json!({"nodeName": "n"}), &[]);
        check(
            json!({}),
            &[
                "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
            ],
        );
        check(
            json!({"nodeName": "n", "allNodes": true}),
            &[
                r#"spec: Invalid value: "{`nodeName`, `allNodes`}": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set"#,
            ],
        );
        check(
            json!({"allNodes": true, "devices": [
                {"name": "d", "attributes": {"a": {}}, "taints": [{"key": "k", "effect": "X"}]},
                {"name": "d", "capacity": {"c": {"value": "1", "requestPolicy": {}}}},
            ]}),
            &[
                r#"spec.devices[0].attributes[a]: Invalid value: "": exactly one value must be specified"#,
                r#"spec.devices[0].taints[0].effect: Unsupported value: "X": supported values: "NoExecute", "NoSchedule", "None""#,
                "spec.devices[1].capacity[c].requestPolicy: Forbidden: allowMultipleAllocations must be true",
                r#"spec.devices[1]: Duplicate value: "d""#,
            ],
        );
    }
}
