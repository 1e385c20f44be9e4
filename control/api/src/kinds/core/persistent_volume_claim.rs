use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus,
    TypedLocalObjectReference, TypedObjectReference,
};

use crate::{
    defaults::{pod_spec::round_up, volumes::set_claim_defaults},
    field::{Errors, IMMUTABLE, Path},
    kinds::{Check, Kind, Rules},
    quantity::{Amount, ResourceList},
    strategy::Warnings,
    validation::{
        claims::validate_claim_spec,
        internal::claim_spec_diff,
        resources::{is_native, validate_basic_resource, validate_resource_quantity},
        text,
        warnings::claim_warnings,
    },
    zero::{List, Text},
};

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

impl Kind for PersistentVolumeClaim {
    const RULES: Rules = Rules::namespaced().status().update_checks(&[
        Check::Metadata,
        Check::Object,
        Check::MetadataChange,
        Check::Metadata,
    ]);

    fn set_defaults(&mut self) {
        set_claim_defaults(self);
        if let Some(status) = &mut self.status {
            round_up(status.capacity.as_mut());
            round_up(status.allocated_resources.as_mut());
        }
    }

    fn prepare_create(&mut self) {
        agree_on_source(self.spec.get_or_insert_default());
        self.status = Some(PersistentVolumeClaimStatus {
            phase: Some("Pending".to_owned()),
            ..PersistentVolumeClaimStatus::default()
        });
    }

    fn prepare_update(&mut self, _old: &Self) {
        agree_on_source(self.spec.get_or_insert_default());
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        validate_claim_spec(&spec, &Path::new("spec"), errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        validate_change(self, old, errors);
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        if spec.access_modes.items().is_empty() {
            errors.required(&Path::new("Spec.accessModes"), "");
        }
        let status = self.status.clone().unwrap_or_default();
        let path = Path::new("status.capacity");
        for (name, quantity) in status.capacity.iter().flatten() {
            validate_basic_resource(Amount::of(quantity), &path.key(name), errors);
        }
        let path = Path::new("status.allocatedResourceStatus");
        let states = [
            "ControllerResizeInProgress",
            "ControllerResizeInfeasible",
            "NodeResizeInProgress",
            "NodeResizeInfeasible",
            "NodeResizePending",
        ];
        for (name, state) in status.allocated_resource_statuses.iter().flatten() {
            validate_resource_key(name, &path, errors);
            if !states.contains(&state.as_str()) {
                errors.not_supported(&path, name, &states);
            }
        }
        let path = Path::new("status.allocatedResources");
        for (name, quantity) in status.allocated_resources.iter().flatten() {
            let before = errors.len();
            validate_resource_key(name, &path, errors);
            if errors.len() > before {
                continue;
            }
            let amount = Amount::of(quantity);
            validate_basic_resource(amount, &path.key(name), errors);
            if errors.len() == before {
                validate_resource_quantity("storage", amount, &path.key(name), errors);
            }
        }
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        let mut warnings = Warnings::new();
        let spec = self.spec.clone().unwrap_or_default();
        if self
            .metadata
            .annotations
            .as_ref()
            .is_some_and(|all| all.contains_key(BETA_CLASS))
        {
            warnings.push(format!(
                "metadata.annotations[{BETA_CLASS}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
            ));
        }
        let requests = spec
            .resources
            .as_ref()
            .and_then(|all| all.requests.as_ref());
        claim_warnings(requests, &Path::new("spec"), &mut warnings);
        warnings
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::storage::persistent_volume_claim()
    }
}

/// Two fields for one thing: each fills the other (KEP-1495).
fn agree_on_source(spec: &mut PersistentVolumeClaimSpec) {
    match (&spec.data_source, &spec.data_source_ref) {
        (Some(source), None) => {
            spec.data_source_ref = Some(TypedObjectReference {
                api_group: source.api_group.clone(),
                kind: source.kind.clone(),
                name: source.name.clone(),
                namespace: None,
            });
        }
        (None, Some(reference)) if reference.namespace.text().is_empty() => {
            spec.data_source = Some(TypedLocalObjectReference {
                api_group: reference.api_group.clone(),
                kind: reference.kind.clone(),
                name: reference.name.clone(),
            });
        }
        _ => {}
    }
}

fn validate_resource_key(name: &str, path: &Path<'_>, errors: &mut Errors) {
    let messages = text::qualified_name(name);
    if !messages.is_empty() {
        errors.invalid_each(path, name, messages);
    } else if is_native(name) && name != "storage" {
        errors.not_supported(path, name, &["storage"]);
    }
}

fn storage(list: Option<&ResourceList>) -> Amount {
    list.and_then(|list| list.get("storage"))
        .map_or(Amount::ZERO, Amount::of)
}

/// Only a bound claim may ask for more, or for another class of attributes.
fn validate_change(new: &PersistentVolumeClaim, old: &PersistentVolumeClaim, errors: &mut Errors) {
    let mut spec = new.spec.clone().unwrap_or_default();
    let mut old_spec = old.spec.clone().unwrap_or_default();
    let status = new.status.clone().unwrap_or_default();
    let old_status = old.status.clone().unwrap_or_default();
    let class = |claim: &PersistentVolumeClaim| {
        claim
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(BETA_CLASS))
            .cloned()
    };
    let (annotation, old_annotation) = (class(new), class(old));
    let from_annotation = old_annotation.is_some()
        && old_spec.storage_class_name.is_none()
        && spec.storage_class_name == old_annotation
        && (annotation.is_none() || annotation == old_annotation);
    if from_annotation {
        spec.storage_class_name = None;
    } else {
        let (annotation, old_annotation) = (annotation.unwrap_or_default(), old_annotation.clone());
        if annotation != old_annotation.clone().unwrap_or_default() {
            errors.invalid(
                &Path::new("metadata.annotations").child(BETA_CLASS),
                annotation,
                IMMUTABLE,
            );
        }
        let from_nothing = spec.storage_class_name.is_some()
            && old_spec.storage_class_name.is_none()
            && (old_annotation.is_none() || spec.storage_class_name == old_annotation);
        if from_nothing {
            spec.storage_class_name
                .clone_from(&old_spec.storage_class_name);
        }
    }
    if old_spec.volume_name.text().is_empty() {
        old_spec.volume_name.clone_from(&spec.volume_name);
    }
    let requests = |spec: &k8s_openapi::api::core::v1::PersistentVolumeClaimSpec| {
        spec.resources.as_ref().and_then(|all| all.requests.clone())
    };
    let (size, old_size) = (
        storage(requests(&spec).as_ref()),
        storage(requests(&old_spec).as_ref()),
    );
    let attributes = spec.volume_attributes_class_name.clone();
    let old_attributes = old_spec.volume_attributes_class_name.clone();
    if status.phase.text() == "Bound" {
        if let Some(kept) = requests(&old_spec).and_then(|list| list.get("storage").cloned())
            && let Some(list) = spec
                .resources
                .as_mut()
                .and_then(|all| all.requests.as_mut())
        {
            list.insert("storage".to_owned(), kept);
        }
        if attributes.is_some() {
            spec.volume_attributes_class_name
                .clone_from(&old_attributes);
        }
    }
    if spec != old_spec {
        errors.forbidden(
            &Path::new("spec"),
            format!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound \
                 claims\n{}",
                claim_spec_diff(&old_spec, &spec)
            ),
        );
    }
    if size < old_size && size <= storage(old_status.capacity.as_ref()) {
        errors.forbidden(
            &Path::new("spec.resources.requests.storage"),
            "field can not be less than status.capacity",
        );
    }
    errors.immutable(
        &Path::new("volumeMode"),
        &spec.volume_mode,
        &old_spec.volume_mode,
    );
    if old_attributes.is_some() && attributes != old_attributes {
        let path = Path::new("spec.volumeAttributesClassName");
        match attributes.as_deref() {
            None => errors.forbidden(&path, "update from non-nil value to nil is forbidden"),
            Some("") => errors.forbidden(
                &path,
                "update from non-nil value to an empty string is forbidden",
            ),
            Some(_) => {}
        }
    }
}
