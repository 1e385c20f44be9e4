use k8s_openapi::api::networking::v1::IPAddress;

use crate::{
    field::{Errors, Path},
    kinds::{Check, Kind, Rules},
    validation::{internal, meta::NameRule, net, text},
    zero::Text,
};

impl Kind for IPAddress {
    const RULES: Rules = Rules::cluster()
        .name(NameRule::Any)
        .update_checks(&[Check::Metadata, Check::MetadataChange]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        let name = self.metadata.name.text();
        let at = Path::new("metadata.name");
        net::validate_canonical_ip(name, &at, errors);
        let parent = &self.spec.parent_ref;
        let path = Path::new("spec.parentRef");
        if *parent == Default::default() {
            errors.required(&path, "");
            return;
        }
        let group = parent.group.text();
        if !group.is_empty() {
            errors.invalid_each(&path.child("group"), group, text::dns1123_subdomain(group));
        }
        for (field, value, required) in [
            ("resource", parent.resource.as_str(), true),
            ("name", parent.name.as_str(), true),
            ("namespace", parent.namespace.text(), false),
        ] {
            let at = path.child(field);
            if !value.is_empty() {
                errors.invalid_each(&at, value, text::path_segment(value));
            } else if required {
                errors.required(&at, "");
            }
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        internal::immutable(
            "ParentReference",
            &Path::new("spec.parentRef"),
            &self.spec.parent_ref,
            &old.spec.parent_ref,
            errors,
        );
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::network::ip_address()
    }

    fn selectable() -> Option<&'static [crate::kinds::Selectable]> {
        Some(&[
            crate::kinds::Selectable {
                name: "spec.parentRef.group",
                get: |object| {
                    super::super::core::event::first_text(object, &["/spec/parentRef/group"])
                },
            },
            crate::kinds::Selectable {
                name: "spec.parentRef.resource",
                get: |object| {
                    super::super::core::event::first_text(object, &["/spec/parentRef/resource"])
                },
            },
            crate::kinds::Selectable {
                name: "spec.parentRef.namespace",
                get: |object| {
                    super::super::core::event::first_text(object, &["/spec/parentRef/namespace"])
                },
            },
            crate::kinds::Selectable {
                name: "spec.parentRef.name",
                get: |object| {
                    super::super::core::event::first_text(object, &["/spec/parentRef/name"])
                },
            },
        ])
    }
}
