use std::sync::Arc;

use k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, AllocationResult, DeviceRequestAllocationResult, NetworkDeviceData,
    ResourceClaim, ResourceClaimStatus,
};

use super::{
    NO_LIMIT,
    devices::{validate_binding_conditions, validate_pool_name},
    requests::{
        CONFIG_LIMIT, RequestNames, set_claim_defaults, validate_claim_spec,
        validate_configuration, validate_raw, validate_toleration,
    },
    validate_items, validate_set,
};
use crate::{
    field::{Errors, Path},
    kinds::{Kind, Rules, keep_status_metadata},
    printer::Printer,
    printers,
    validation::{
        internal, meta::validate_conditions, net::validate_interface_address,
        scheduling::validate_node_selector, text, volume_sources::validate_csi_driver_name,
    },
    zero::{List, Text},
};

const RESERVED_LIMIT: usize = 256;
const RESULTS_LIMIT: usize = 32;
const CONDITIONS_LIMIT: usize = 8;
const DATA_LIMIT_BYTES: usize = 10 * 1024;
const IPS_LIMIT: usize = 16;

impl Kind for ResourceClaim {
    const RULES: Rules = Rules::namespaced()
        .status()
        .reset_status(&["metadata", "spec"]);

    fn set_defaults(&mut self) {
        set_claim_defaults(&mut self.spec);
    }

    fn prepare_create(&mut self) {
        self.status = Some(Default::default());
    }

    fn prepare_status_update(&mut self, old: &Self) {
        keep_status_metadata(&mut self.metadata, &old.metadata);
    }

    fn validate(&self, errors: &mut Errors) {
        validate_claim_spec(&self.spec, &Path::new("spec"), errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        internal::immutable(
            "ResourceClaimSpec",
            &Path::new("spec"),
            &self.spec,
            &old.spec,
            errors,
        );
    }

    fn validate_status_update(&self, old: &Self, errors: &mut Errors) {
        validate_status(self, old, errors);
    }

    fn printer() -> Arc<dyn Printer> {
        printers::storage::resource_claim()
    }
}

fn validate_status(claim: &ResourceClaim, old: &ResourceClaim, errors: &mut Errors) {
    let none = ResourceClaimStatus::default();
    let status = claim.status.as_ref().unwrap_or(&none);
    let old = old.status.as_ref().unwrap_or(&none);
    let names = RequestNames::of(&claim.spec);
    let path = Path::new("status");
    let at = path.child("reservedFor");
    let reserved = status.reserved_for.items();
    validate_set(
        reserved,
        RESERVED_LIMIT,
        |consumer| consumer.uid.clone(),
        &at,
        errors,
        |consumer, path, errors| {
            for (field, value) in [
                ("resource", &consumer.resource),
                ("name", &consumer.name),
                ("uid", &consumer.uid),
            ] {
                if value.is_empty() {
                    errors.required(&path.child(field), "");
                }
            }
        },
    );
    let allocated = allocated_devices(status.allocation.as_ref());
    validate_set(
        status.devices.items(),
        NO_LIMIT,
        |one| device_id(&one.driver, &one.pool, &one.device, one.share_id.as_deref()),
        &path.child("devices"),
        errors,
        |device, path, errors| validate_device_status(device, &allocated, path, errors),
    );
    if !reserved.is_empty() {
        let added = reserved
            .iter()
            .any(|one| !old.reserved_for.items().contains(one));
        if status.allocation.is_none() {
            errors.forbidden(&at, "may not be specified when `allocated` is not set");
        } else if claim.metadata.deletion_timestamp.is_some() && added {
            errors.forbidden(
                &at,
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
            );
        }
    }
    let at = path.child("allocation");
    match (&status.allocation, &old.allocation) {
        (Some(_), Some(_)) => errors.immutable(&at, &status.allocation, &old.allocation),
        (Some(allocation), None) => validate_allocation(allocation, &names, &at, errors),
        (None, _) => {}
    }
}

/// How upstream names a device in messages.
fn device_id(driver: &str, pool: &str, device: &str, share: Option<&str>) -> String {
    let mut id = format!("{driver}/{pool}/{device}");
    if let Some(share) = share {
        id = format!("{id}/{share}");
    }
    id
}

fn allocated_devices(allocation: Option<&AllocationResult>) -> Vec<String> {
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    let results = devices.map(|devices| devices.results.items());
    let results = results.unwrap_or_default().iter();
    results
        .map(|one| device_id(&one.driver, &one.pool, &one.device, one.share_id.as_deref()))
        .collect()
}

fn validate_share(share: Option<&String>, path: &Path<'_>, errors: &mut Errors) {
    let Some(share) = share else { return };
    let groups: Vec<&str> = share.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let hex = |text: &str| text.bytes().all(|c| c.is_ascii_hexdigit());
    let at = path.child("shareID");
    if lengths != [8, 4, 4, 4, 12] || !groups.iter().all(|group| hex(group)) {
        errors.invalid(
            &at,
            share,
            format!(
                "error validating uid: {}",
                if share.len() == 36 {
                    "invalid UUID format".to_owned()
                } else {
                    format!("invalid UUID length: {}", share.len())
                }
            ),
        );
    } else if *share != share.to_lowercase() {
        errors.invalid(
            &at,
            share,
            "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters",
        );
    }
}

fn validate_device_status(
    device: &AllocatedDeviceStatus,
    allocated: &[String],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    validate_csi_driver_name(&device.driver, &path.child("driver"), errors);
    validate_pool_name(&device.pool, &path.child("pool"), errors);
    errors.invalid_each(
        &path.child("device"),
        &device.device,
        text::dns1123_label(&device.device),
    );
    validate_share(device.share_id.as_ref(), path, errors);
    let id = device_id(
        &device.driver,
        &device.pool,
        &device.device,
        device.share_id.as_deref(),
    );
    if !allocated.contains(&id) {
        errors.invalid(path, id, "must be an allocated device in the claim");
    }
    let at = path.child("conditions");
    let conditions = device.conditions.items();
    if conditions.len() > CONDITIONS_LIMIT {
        errors.too_many(&at, conditions.len(), CONDITIONS_LIMIT);
    }
    validate_conditions(conditions, &at, errors);
    if let Some(data) = device.data.as_ref().filter(|data| !data.0.is_null()) {
        validate_raw(data, DATA_LIMIT_BYTES, &path.child("data"), errors);
    }
    if let Some(network) = &device.network_data {
        validate_network(network, &path.child("networkData"), errors);
    }
}

fn validate_network(network: &NetworkDeviceData, path: &Path<'_>, errors: &mut Errors) {
    for (field, value, limit) in [
        ("interfaceName", &network.interface_name, 256),
        ("hardwareAddress", &network.hardware_address, 128),
    ] {
        if value.text().len() > limit {
            errors.too_long(&path.child(field), limit);
        }
    }
    validate_set(
        network.ips.items(),
        IPS_LIMIT,
        String::clone,
        &path.child("ips"),
        errors,
        |ip, path, errors| validate_interface_address(ip, path, errors),
    );
}

fn validate_allocation(
    allocation: &AllocationResult,
    names: &RequestNames,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let devices = allocation.devices.clone().unwrap_or_default();
    let at = path.child("devices");
    validate_items(
        devices.results.items(),
        RESULTS_LIMIT,
        &at.child("results"),
        errors,
        |result, path, errors| validate_result(result, names, path, errors),
    );
    validate_items(
        devices.config.items(),
        2 * CONFIG_LIMIT,
        &at.child("config"),
        errors,
        |config, path, errors| {
            let at = path.child("source");
            match config.source.as_str() {
                "" => errors.required(&at, ""),
                "FromClaim" | "FromClass" => {}
                other => errors.not_supported(&at, other, &["FromClaim", "FromClass"]),
            }
            names.validate_references(config.requests.items(), path, errors);
            validate_configuration(config.opaque.as_ref(), path, errors);
        },
    );
    if let Some(selector) = &allocation.node_selector {
        validate_node_selector(selector, &path.child("nodeSelector"), errors);
    }
}

fn validate_result(
    result: &DeviceRequestAllocationResult,
    names: &RequestNames,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    names.validate_reference(&result.request, &path.child("request"), errors);
    validate_csi_driver_name(&result.driver, &path.child("driver"), errors);
    validate_pool_name(&result.pool, &path.child("pool"), errors);
    errors.invalid_each(
        &path.child("device"),
        &result.device,
        text::dns1123_label(&result.device),
    );
    validate_binding_conditions(
        result.binding_conditions.items(),
        result.binding_failure_conditions.items(),
        path,
        errors,
    );
    let at = path.child("tolerations");
    for (i, toleration) in result.tolerations.items().iter().enumerate() {
        validate_toleration(toleration, &at.index(i), errors);
    }
    validate_share(result.share_id.as_ref(), path, errors);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        kinds::Typed,
        strategy::{Strategy, UpdateOf},
    };

    #[track_caller]
    fn check(devices: Value, expected: &[&str]) {
        let mut claim: ResourceClaim =
            serde_json::from_value(json!({"metadata": {}, "spec": {"devices": devices}}))
                .expect("a claim");
        claim.set_defaults();
        let mut errors = Errors::default();
        claim.validate(&mut errors);
        let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn requests() {
        let exactly = |rest: Value| json!({"requests": [{"name": "r", "exactly": rest}]});
        check(exactly(json!({"deviceClassName": "c"})), &[]);
        check(
            exactly(json!({"deviceClassName": "", "allocationMode": "All", "count": 2})),
            &[
                "spec.devices.requests[0].exactly.deviceClassName: Required value",
                "spec.devices.requests[0].exactly.count: Invalid value: 2: must not be specified when allocationMode is 'All'",
            ],
        );
        check(
            json!({"requests": [{"name": "r"}]}),
            &[
                "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
            ],
        );
        check(
            json!({
                "requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}],
                "constraints": [{"requests": ["x"], "matchAttribute": "a"}],
                "config": [{}],
            }),
            &[
                r#"spec.devices.constraints[0].requests[0]: Invalid value: "x": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"#,
                r#"spec.devices.constraints[0].matchAttribute: Invalid value: "a": a fully qualified name must be a domain and a name separated by a slash"#,
                "spec.devices.config[0].opaque: Required value",
            ],
        );
    }

    #[test]
    fn conditions_of_devices_have_a_time() {
        let strategy: Typed<ResourceClaim> = Default::default();
        let old = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": "c", "namespace": "n", "uid": "u", "resourceVersion": "1",
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {
                "deviceClassName": "c", "allocationMode": "ExactCount", "count": 1,
            }}]}},
            "status": {"allocation": {"devices": {"results": [
                {"request": "r", "driver": "d.io", "pool": "p", "device": "x"},
            ]}}},
        });
        let mut new = old.clone();
        new["status"]["devices"] = json!([{"driver": "d.io", "pool": "p", "device": "x", "conditions": [
            {"type": "A", "status": "True", "reason": "R", "message": "", "lastTransitionTime": null},
        ]}]);
        let refused = strategy.update(&mut new, &old, UpdateOf::Status).err();
        let texts: Vec<String> = refused.iter().flatten().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["status.devices[0].conditions[0].lastTransitionTime: Required value: must be set"]
        );
    }
}
