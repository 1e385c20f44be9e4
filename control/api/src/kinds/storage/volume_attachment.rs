use k8s_openapi::api::storage::v1::{VolumeAttachment, VolumeAttachmentSource};

use crate::{
    field::{Errors, Path},
    kinds::{Kind, Rules, core::persistent_volume},
    validation::{internal, text, volume_sources::validate_csi_driver_name},
    zero::Text,
};

impl Kind for VolumeAttachment {
    const RULES: Rules = Rules::cluster().status().conditional_update();
    const HAS_DEFAULTS: bool = false;

    fn prepare_create(&mut self) {
        self.status = Some(Default::default());
    }

    fn validate(&self, errors: &mut Errors) {
        let path = Path::new("spec");
        let at = path.child("attacher");
        if self.spec.attacher.is_empty() {
            errors.required(&at, "");
        } else {
            validate_csi_driver_name(&self.spec.attacher, &at, errors);
        }
        validate_source(&self.spec.source, &path.child("source"), errors);
        let node = &self.spec.node_name;
        errors.invalid_each(&path.child("nodeName"), node, text::dns1123_subdomain(node));
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        internal::immutable(
            "VolumeAttachmentSpec",
            &Path::new("spec"),
            &self.spec,
            &old.spec,
            errors,
        );
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::storage::volume_attachment()
    }
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
