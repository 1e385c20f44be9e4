use k8s_openapi::api::storage::v1::{
    VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentStatus,
};

use crate::{
    field::{Errors, Path},
    kinds::{Check, Kind, Rules, core::persistent_volume, keep_status_metadata},
    validation::{internal, text, volume_sources::validate_csi_driver_name},
    zero::Text,
};

impl Kind for VolumeAttachment {
    const RULES: Rules = Rules::cluster()
        .status()
        .conditional_update()
        .reset_status(&["metadata", "spec"])
        .update_checks(&[Check::Metadata, Check::Metadata]);
    const HAS_DEFAULTS: bool = false;

    fn prepare_create(&mut self) {
        self.status = Some(Default::default());
    }

    fn prepare_status_update(&mut self, old: &Self) {
        keep_status_metadata(&mut self.metadata, &old.metadata);
    }

    fn validate(&self, errors: &mut Errors) {
        validate(self, errors);
        let path = Path::new("spec");
        if !self.spec.attacher.is_empty() {
            validate_csi_driver_name(&self.spec.attacher, &path.child("attacher"), errors);
        }
        if let Some(name) = &self.spec.source.persistent_volume_name {
            errors.invalid_each(
                &path.child("source.persistentVolumeName"),
                name,
                text::dns1123_subdomain(name),
            );
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate(self, errors);
        validate(self, errors);
        internal::immutable(
            "VolumeAttachmentSpec",
            &Path::new("spec"),
            &self.spec,
            &old.spec,
            errors,
        );
    }

    fn validate_status_update(&self, old: &Self, errors: &mut Errors) {
        self.validate_update(old, errors);
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::storage::volume_attachment()
    }
}

/// What holds for an update too.
fn validate(attachment: &VolumeAttachment, errors: &mut Errors) {
    let spec = &attachment.spec;
    let path = Path::new("spec");
    if spec.attacher.is_empty() {
        errors.required(&path.child("attacher"), "");
    }
    validate_source(&spec.source, &path.child("source"), errors);
    let node = &spec.node_name;
    errors.invalid_each(&path.child("nodeName"), node, text::dns1123_subdomain(node));
    validate_status(&attachment.status.clone().unwrap_or_default(), errors);
}

fn validate_source(source: &VolumeAttachmentSource, path: &Path<'_>, errors: &mut Errors) {
    match (&source.inline_volume_spec, &source.persistent_volume_name) {
        (None, None) => errors.required(
            path,
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ),
        (Some(_), Some(_)) => errors.forbidden(
            path,
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ),
        (None, name) => {
            if name.text().is_empty() {
                errors.required(
                    &path.child("persistentVolumeName"),
                    "must specify non empty persistentVolumeName",
                );
            }
        }
        (Some(spec), None) => {
            let at = path.child("inlineVolumeSpec");
            persistent_volume::validate_spec(spec, "", true, &at, errors);
        }
    }
}

fn validate_status(status: &VolumeAttachmentStatus, errors: &mut Errors) {
    const LIMIT_BYTES: usize = 256 * 1024;
    const MESSAGE_LIMIT: usize = 1024;
    let path = Path::new("status");
    let metadata = status.attachment_metadata.iter().flatten();
    let size: usize = metadata.map(|(key, value)| key.len() + value.len()).sum();
    if size > LIMIT_BYTES {
        errors.too_long(&path.child("attachmentMetadata"), LIMIT_BYTES);
    }
    for (field, problem) in [
        ("attachError", &status.attach_error),
        ("detachError", &status.detach_error),
    ] {
        let Some(problem) = problem else { continue };
        let path = path.child(field);
        if problem.message.text().len() > MESSAGE_LIMIT {
            errors.too_long(&path.child("message"), LIMIT_BYTES);
        }
        if let Some(code) = problem.error_code.filter(|code| *code < 0) {
            let detail = text::inclusive_range(0, i32::MAX.into());
            errors.invalid(&path.child("errorCode"), code, detail);
        }
    }
}
