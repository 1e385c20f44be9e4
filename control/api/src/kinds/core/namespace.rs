use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};
use serde_json::Value;

use crate::{
    field::{Errors, Path},
    kinds::{Check, Kind, Rules, Selectable},
    validation::{meta::NameRule, text},
    zero::{List, Text, fill},
};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";
const FINALIZER: &str = "kubernetes";

impl Kind for Namespace {
    const RULES: Rules = Rules::cluster()
        .name(NameRule::Label)
        .status()
        .update_checks(&[Check::Metadata, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        set_name_label(self);
        fill(&mut self.status.get_or_insert_default().phase, "Active");
    }

    fn prepare_create(&mut self) {
        // A generated name was not there yet for the defaults.
        set_name_label(self);
        self.status = Some(NamespaceStatus {
            phase: Some("Active".to_owned()),
            ..NamespaceStatus::default()
        });
        let finalizers = self
            .spec
            .get_or_insert_default()
            .finalizers
            .get_or_insert_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
    }

    fn prepare_update(&mut self, old: &Self) {
        self.spec.clone_from(&old.spec);
        set_name_label(self);
    }

    fn prepare_subresource_update(&mut self, old: &Self, _finalize: &str) {
        self.status.clone_from(&old.status);
    }

    fn validate(&self, errors: &mut Errors) {
        validate_finalizers(self, false, errors);
    }

    fn validate_update(&self, _old: &Self, _errors: &mut Errors) {}

    fn validate_subresource_update(&self, _old: &Self, _finalize: &str, errors: &mut Errors) {
        validate_finalizers(self, true, errors);
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        let phase = self
            .status
            .as_ref()
            .map_or("", |status| status.phase.text());
        let (wanted, state) = match self.metadata.deletion_timestamp {
            None => ("Active", "empty"),
            Some(_) => ("Terminating", "not empty"),
        };
        if phase != wanted {
            errors.invalid(
                &Path::new("status.Phase"),
                phase,
                format!("may only be '{wanted}' if `deletionTimestamp` is {state}"),
            );
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::namespace()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        const FIELDS: &[Selectable] = &[
            Selectable {
                name: "status.phase",
                get: phase,
            },
            Selectable {
                name: "name",
                get: |object| {
                    object
                        .pointer("/metadata/name")
                        .and_then(Value::as_str)
                        .unwrap_or("")
                        .to_owned()
                },
            },
        ];
        Some(FIELDS)
    }
}

fn phase(object: &Value) -> String {
    object
        .pointer("/status/phase")
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_owned()
}

fn set_name_label(namespace: &mut Namespace) {
    let name = namespace.metadata.name.text().to_owned();
    if !name.is_empty() {
        namespace
            .metadata
            .labels
            .get_or_insert_default()
            .insert(NAME_LABEL.to_owned(), name);
    }
}

fn validate_finalizers(namespace: &Namespace, indexed: bool, errors: &mut Errors) {
    let path = Path::new("spec.finalizers");
    let spec = namespace.spec.clone().unwrap_or_default();
    for (i, finalizer) in spec.finalizers.items().iter().enumerate() {
        let at = path.index(i);
        let at = if indexed { &at } else { &path };
        errors.invalid_each(at, finalizer, text::qualified_name(finalizer));
        let standard = ["kubernetes", "orphan", "foregroundDeletion"];
        if !finalizer.contains('/') && !standard.contains(&finalizer.as_str()) {
            errors.invalid(
                at,
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
}
