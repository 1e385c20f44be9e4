use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::Value;

use crate::{
    defaults::pod_spec::set_template_defaults,
    field::{Errors, Path},
    kinds::{Check, Generation, Kind, Rules, Selectable},
    strategy::Warnings,
    validation::{
        numbers::{validate_non_negative, validate_replica_counts},
        template::{
            validate_required_selector, validate_selector_unchanged, validate_workload_template,
        },
        warnings::template_owner_warnings,
    },
    zero::set,
};

impl Kind for ReplicaSet {
    const RULES: Rules = Rules::namespaced()
        .status()
        .generation(Generation::Spec)
        .update_checks(&[Check::Metadata, Check::Object, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set(&mut spec.replicas, 1);
        set_template_defaults(spec.template.get_or_insert_default());
    }

    fn validate(&self, errors: &mut Errors) {
        let Some(spec) = &self.spec else { return };
        let path = Path::new("spec");
        validate_non_negative(
            spec.replicas.unwrap_or(0).into(),
            &path.child("replicas"),
            errors,
        );
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        validate_non_negative(min_ready.into(), &path.child("minReadySeconds"), errors);
        let (selector, unreadable) = (&spec.selector, "invalid label selector");
        // The kind is upstream's too.
        if validate_required_selector(selector, "deployment", unreadable, &path, errors) {
            let template = spec.template.clone().unwrap_or_default();
            let at = path.child("template");
            validate_workload_template(&template, selector, "ReplicaSet", &at, errors);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        let selector = |set: &Self| set.spec.as_ref().map(|spec| spec.selector.clone());
        validate_selector_unchanged(selector(self).as_ref(), selector(old).as_ref(), errors);
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        let status = self.status.clone().unwrap_or_default();
        validate_replica_counts(
            status.replicas,
            status.fully_labeled_replicas.unwrap_or(0),
            status.ready_replicas.unwrap_or(0),
            status.available_replicas.unwrap_or(0),
            status.observed_generation.unwrap_or(0),
            status.terminating_replicas,
            errors,
        );
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        let template = self.spec.as_ref().and_then(|spec| spec.template.as_ref());
        let old = old.map(|old| &old.metadata);
        template_owner_warnings(template, &self.metadata, old, "spec.template")
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::replica_set()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        const FIELDS: &[Selectable] = &[Selectable {
            name: "status.replicas",
            get: replicas,
        }];
        Some(FIELDS)
    }
}

/// Also for ReplicationControllers.
pub(crate) fn replicas(object: &Value) -> String {
    object
        .pointer("/status/replicas")
        .and_then(Value::as_i64)
        .unwrap_or(0)
        .to_string()
}
