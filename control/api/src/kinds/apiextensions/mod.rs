//! `apiextensions.k8s.io`: CustomResourceDefinitions. What a definition makes is in [`crate::custom`].

mod formats;
mod internal;
mod schema;
mod validation;

use std::sync::Arc;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceConversion, CustomResourceDefinition, CustomResourceDefinitionStatus,
};

use super::{Generation, Kind, Rules};
use crate::{
    field::{Errors, Path, quoted},
    printer::Printer,
    printers,
    strategy::Warnings,
};

/// Holds a definition until its objects are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

impl Kind for CustomResourceDefinition {
    const RULES: Rules = Rules::cluster()
        .generation(Generation::Spec)
        .status()
        .reset_status(&["metadata", "spec"])
        .conditional_update();

    fn set_defaults(&mut self) {
        let names = &mut self.spec.names;
        let empty = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
        if empty(&names.singular) && !names.kind.is_empty() {
            names.singular = Some(names.kind.to_lowercase());
        }
        if empty(&names.list_kind) && !names.kind.is_empty() {
            names.list_kind = Some(format!("{}List", names.kind));
        }
        let conversion = self
            .spec
            .conversion
            .get_or_insert_with(|| CustomResourceConversion {
                strategy: "None".to_owned(),
                webhook: None,
            });
        let service = conversion
            .webhook
            .as_mut()
            .and_then(|webhook| webhook.client_config.as_mut()?.service.as_mut());
        if let Some(service) = service {
            service.port.get_or_insert(443);
        }
        let status = self.status.get_or_insert_default();
        if status.stored_versions.as_ref().is_none_or(Vec::is_empty) {
            let storage = self.spec.versions.iter().find(|version| version.storage);
            status.stored_versions = storage.map(|version| vec![version.name.clone()]);
        }
    }

    fn prepare_create(&mut self) {
        self.status = Some(CustomResourceDefinitionStatus::default());
        self.remember_stored_version();
    }

    fn prepare_update(&mut self, _old: &Self) {
        self.remember_stored_version();
    }

    fn validate(&self, errors: &mut Errors) {
        validation::definition(self, None, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validation::definition(self, Some(old), errors);
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        validation::status(self, errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        let known = old.map(formats::unrecognized).unwrap_or_default();
        let mut found = formats::unrecognized(self);
        found.retain(|format| !known.contains(format));
        let shown = found.iter().map(|format| quoted(format));
        shown
            .map(|format| format!("unrecognized format {format}"))
            .collect()
    }

    fn printer() -> Arc<dyn Printer> {
        printers::core::name_and_creation()
    }
}

trait StoredVersions {
    fn remember_stored_version(&mut self);
}

impl StoredVersions for CustomResourceDefinition {
    /// The storage version joins the versions that objects may be stored in.
    fn remember_stored_version(&mut self) {
        let Some(storage) = self.spec.versions.iter().find(|version| version.storage) else {
            return;
        };
        let stored = self
            .status
            .get_or_insert_default()
            .stored_versions
            .get_or_insert_default();
        if !stored.contains(&storage.name) {
            stored.push(storage.name.clone());
        }
    }
}

/// For checks that several parts share.
fn each(path: &Path<'_>, bad: &str, messages: Vec<String>, prefix: &str, errors: &mut Errors) {
    if !messages.is_empty() {
        errors.invalid(path, bad, format!("{prefix}{}", messages.join(",")));
    }
}
