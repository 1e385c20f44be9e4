use k8s_openapi::{
    api::core::v1::ReplicationController, apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use crate::{
    defaults::pod_spec::set_template_defaults,
    field::{Errors, Path},
    kinds::{Check, Generation, Kind, Rules, Selectable, apps::replica_set::replicas},
    strategy::Warnings,
    validation::{
        numbers::{validate_non_negative, validate_replica_counts},
        template::validate_workload_template,
        warnings::template_owner_warnings,
    },
    zero::set,
};

impl Kind for ReplicationController {
    const RULES: Rules = Rules::namespaced()
        .status()
        .generation(Generation::Spec)
        .update_checks(&[Check::Metadata, Check::Object, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set(&mut spec.replicas, 1);
        let Some(template) = &mut spec.template else {
            return;
        };
        set_template_defaults(template);
        let labels = template
            .metadata
            .as_ref()
            .and_then(|meta| meta.labels.clone());
        let Some(labels) = labels else { return };
        if spec
            .selector
            .as_ref()
            .is_none_or(|selector| selector.is_empty())
        {
            spec.selector = Some(labels.clone());
        }
        if self
            .metadata
            .labels
            .as_ref()
            .is_none_or(|own| own.is_empty())
        {
            self.metadata.labels = Some(labels);
        }
    }

    fn validate(&self, errors: &mut Errors) {
        let Some(spec) = &self.spec else { return };
        let path = Path::new("spec");
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        validate_non_negative(min_ready.into(), &path.child("minReadySeconds"), errors);
        let empty = spec
            .selector
            .as_ref()
            .is_none_or(|selector| selector.is_empty());
        if empty {
            errors.required(&path.child("selector"), "");
        }
        validate_non_negative(
            spec.replicas.unwrap_or(0).into(),
            &path.child("replicas"),
            errors,
        );
        let at = path.child("template");
        match &spec.template {
            None => errors.required(&at, ""),
            // A selector that is missing is reported once.
            Some(template) => {
                let selector = LabelSelector {
                    match_labels: Some(spec.selector.clone().unwrap_or_default()),
                    match_expressions: None,
                };
                validate_workload_template(
                    template,
                    &selector,
                    "ReplicationController",
                    &at,
                    errors,
                );
            }
        }
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        let status = self.status.clone().unwrap_or_default();
        validate_replica_counts(
            status.replicas,
            status.fully_labeled_replicas.unwrap_or(0),
            status.ready_replicas.unwrap_or(0),
            status.available_replicas.unwrap_or(0),
            status.observed_generation.unwrap_or(0),
            None,
            errors,
        );
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        let template = self.spec.as_ref().and_then(|spec| spec.template.as_ref());
        let old = old.map(|old| &old.metadata);
        template_owner_warnings(template, &self.metadata, old, "spec.template")
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::replication_controller()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        const FIELDS: &[Selectable] = &[Selectable {
            name: "status.replicas",
            get: replicas,
        }];
        Some(FIELDS)
    }
}
