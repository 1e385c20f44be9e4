//! apiregistration.k8s.io/v1

use jiff::Timestamp;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    kube_aggregator::pkg::apis::apiregistration::v1::{
        APIService, APIServiceCondition, APIServiceStatus,
    },
};

use crate::{
    field::{Errors, Path},
    kinds::{Check, Kind, Rules, keep_status_metadata},
    validation::{meta::NameRule, text},
    zero::{Text, set},
};

impl Kind for APIService {
    const RULES: Rules = Rules::cluster()
        .name(NameRule::Any)
        .status()
        .reset_status(&["metadata", "spec"])
        .conditional_update()
        .update_checks(&[Check::MetadataChange, Check::Metadata]);

    fn set_defaults(&mut self) {
        let service = self.spec.as_mut().and_then(|spec| spec.service.as_mut());
        if let Some(service) = service {
            set(&mut service.port, 443);
        }
    }

    fn prepare_create(&mut self) {
        let mut status = APIServiceStatus::default();
        if self.spec.as_ref().is_none_or(|spec| spec.service.is_none()) {
            status.conditions = Some(vec![APIServiceCondition {
                type_: "Available".to_owned(),
                status: "True".to_owned(),
                reason: Some("Local".to_owned()),
                message: Some("Local APIServices are always available".to_owned()),
                last_transition_time: Some(Time(Timestamp::now())),
            }]);
        }
        self.status = Some(status);
    }

    fn prepare_status_update(&mut self, old: &Self) {
        keep_status_metadata(&mut self.metadata, &old.metadata);
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        let path = Path::new("spec");
        let (group, version) = (spec.group.text(), spec.version.text());
        validate_name(&self.metadata, &format!("{version}.{group}"), errors);
        if group.is_empty() && version != "v1" {
            let why = "only v1 may have an empty group and it better be legacy kube";
            errors.required(&path.child("group"), why);
        }
        if !group.is_empty() {
            let wrong = text::dns1123_subdomain(group);
            errors.invalid_each(&path.child("group"), group, wrong);
        }
        let wrong = text::dns1035_label(version);
        errors.invalid_each(&path.child("version"), version, wrong);
        for (field, value, limit) in [
            ("groupPriorityMinimum", spec.group_priority_minimum, 20_000),
            ("versionPriority", spec.version_priority, 1000),
        ] {
            if value <= 0 || value > limit {
                errors.invalid(
                    &path.child(field),
                    value,
                    format!("must be positive and less than {limit}"),
                );
            }
        }
        let bundle_bytes = spec.ca_bundle.as_ref().map_or(0, |bundle| bundle.0.len());
        let insecure = spec.insecure_skip_tls_verify == Some(true);
        let Some(service) = &spec.service else {
            if bundle_bytes != 0 {
                let shown = format!("{bundle_bytes} bytes");
                let why = "local APIServices may not have a caBundle";
                errors.invalid(&path.child("caBundle"), shown.as_str(), why);
            }
            if insecure {
                let why = "local APIServices may not have insecureSkipTLSVerify";
                errors.invalid(&path.child("insecureSkipTLSVerify"), true, why);
            }
            return;
        };
        let at = path.child("service");
        for (field, value) in [("namespace", &service.namespace), ("name", &service.name)] {
            if value.text().is_empty() {
                errors.required(&at.child(field), "");
            }
        }
        let port = service.port.unwrap_or(0);
        let wrong = text::port_number(port.into());
        if !wrong.is_empty() {
            let why = format!("port is not valid: {}", wrong.join(", "));
            errors.invalid(&at.child("port"), port, why);
        }
        if insecure && bundle_bytes != 0 {
            let why = "may not be true if caBundle is present";
            errors.invalid(&path.child("insecureSkipTLSVerify"), true, why);
        }
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        let conditions = self.status.as_ref().and_then(|one| one.conditions.as_ref());
        let path = Path::new("status.conditions");
        for (i, condition) in conditions.into_iter().flatten().enumerate() {
            let status = condition.status.as_str();
            let supported = ["True", "False", "Unknown"];
            if !supported.contains(&status) {
                errors.not_supported(&path.index(i).child("status"), status, &supported);
            }
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::api_service()
    }
}

fn validate_name(meta: &ObjectMeta, required: &str, errors: &mut Errors) {
    let path = Path::new("metadata");
    for (field, name) in [("generateName", &meta.generate_name), ("name", &meta.name)] {
        let name = name.text();
        if name.is_empty() {
            continue;
        }
        let mut wrong = text::path_segment(name);
        if wrong.is_empty() && name != required {
            wrong = vec![format!(
                "must be `spec.version+\".\"+spec.group`: {required:?}"
            )];
        }
        errors.invalid_each(&path.child(field), name, wrong);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn api_services_are_validated() {
        let good = json!({
            "group": "x.io", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1,
            "service": {"name": "s", "namespace": "n", "port": 443},
        });
        let local = json!({"service": null});
        let cases = [
            ("v1.x.io", json!({}), vec![]),
            (
                "v2.x.io",
                json!({}),
                vec![
                    r#"metadata.name: Invalid value: "v2.x.io": must be `spec.version+"."+spec.group`: "v1.x.io""#,
                ],
            ),
            (
                "v2.",
                json!({"group": "", "version": "v2"}),
                vec![
                    "spec.group: Required value: only v1 may have an empty group and it better be legacy kube",
                ],
            ),
            (
                "v1.x.io",
                json!({"service": {"port": 0}}),
                vec![
                    "spec.service.namespace: Required value",
                    "spec.service.name: Required value",
                    "spec.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                "v1.x.io",
                json!({"insecureSkipTLSVerify": true, "caBundle": "YQ=="}),
                vec![
                    "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present",
                ],
            ),
            (
                "v1.x.io",
                json!({"service": null, "insecureSkipTLSVerify": true, "caBundle": "YQ=="}),
                vec![
                    r#"spec.caBundle: Invalid value: "1 bytes": local APIServices may not have a caBundle"#,
                    "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify",
                ],
            ),
            ("v1.x.io", local, vec![]),
        ];
        for (name, changes, wanted) in cases {
            let mut spec = good.clone();
            for (field, value) in changes.as_object().into_iter().flatten() {
                spec[field.as_str()] = value.clone();
            }
            let object: Value = json!({"metadata": {"name": name}, "spec": spec});
            let service: APIService = serde_json::from_value(object).expect("an APIService");
            let mut errors = Errors::default();
            service.validate(&mut errors);
            let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
            assert_eq!(found, wanted, "{name} {changes}");
        }
    }
}
