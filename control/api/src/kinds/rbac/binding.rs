use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject};
use serde_json::json;

use crate::{
    field::{Bad, Errors, Path},
    kinds::{Check, Kind, Rules},
    validation::{meta::NameRule, text},
    zero::{List, Text, fill},
};

const GROUP: &str = "rbac.authorization.k8s.io";

impl Kind for RoleBinding {
    const RULES: Rules = Rules::namespaced()
        .name(NameRule::PathSegment)
        .create_on_update()
        .update_checks(&[Check::Metadata, Check::Object, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        set_defaults(
            &mut self.role_ref,
            self.subjects.as_deref_mut().unwrap_or_default(),
        );
    }

    fn validate(&self, errors: &mut Errors) {
        validate(&self.role_ref, self.subjects.items(), true, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate_same_role(&self.role_ref, &old.role_ref, errors);
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::access::role_binding()
    }
}

impl Kind for ClusterRoleBinding {
    const RULES: Rules = Rules::cluster()
        .name(NameRule::PathSegment)
        .create_on_update()
        .update_checks(&[Check::Metadata, Check::Object, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        set_defaults(
            &mut self.role_ref,
            self.subjects.as_deref_mut().unwrap_or_default(),
        );
    }

    fn validate(&self, errors: &mut Errors) {
        validate(&self.role_ref, self.subjects.items(), false, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate_same_role(&self.role_ref, &old.role_ref, errors);
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::access::cluster_role_binding()
    }
}

fn set_defaults(role: &mut RoleRef, subjects: &mut [Subject]) {
    fill(&mut role.api_group, GROUP);
    for subject in subjects {
        if matches!(subject.kind.as_str(), "User" | "Group") {
            fill(&mut subject.api_group, GROUP);
        }
    }
}

fn validate(role: &RoleRef, subjects: &[Subject], namespaced: bool, errors: &mut Errors) {
    let path = Path::new("roleRef");
    if role.api_group.text() != GROUP {
        errors.not_supported(&path.child("apiGroup"), role.api_group.text(), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    if !kinds.contains(&role.kind.as_str()) {
        errors.not_supported(&path.child("kind"), &role.kind, kinds);
    }
    if role.name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        errors.invalid_each(
            &path.child("name"),
            &role.name,
            text::path_segment(&role.name),
        );
    }
    let path = Path::new("subjects");
    for (i, subject) in subjects.iter().enumerate() {
        validate_subject(subject, namespaced, &path.index(i), errors);
    }
}

fn validate_subject(subject: &Subject, namespaced: bool, path: &Path<'_>, errors: &mut Errors) {
    let name = path.child("name");
    if subject.name.is_empty() {
        errors.required(&name, "");
    }
    let group = subject.api_group.text();
    match subject.kind.as_str() {
        "ServiceAccount" => {
            if !subject.name.is_empty() {
                errors.invalid_each(&name, &subject.name, text::dns1123_subdomain(&subject.name));
            }
            if !group.is_empty() {
                errors.not_supported(&path.child("apiGroup"), group, &[""]);
            }
            if !namespaced && subject.namespace.text().is_empty() {
                errors.required(&path.child("namespace"), "");
            }
        }
        kind @ ("User" | "Group") => {
            if subject.name.is_empty() {
                errors.invalid(
                    &name,
                    "",
                    format!("{} name cannot be empty", kind.to_lowercase()),
                );
            }
            if group != GROUP {
                errors.not_supported(&path.child("apiGroup"), group, &[GROUP]);
            }
        }
        other => {
            errors.not_supported(
                &path.child("kind"),
                other,
                &["ServiceAccount", "User", "Group"],
            );
        }
    }
}

fn validate_same_role(new: &RoleRef, old: &RoleRef, errors: &mut Errors) {
    if new != old {
        let shown = format!(
            r#"{{"APIGroup":{},"Kind":{},"Name":{}}}"#,
            json!(new.api_group.text()),
            json!(new.kind),
            json!(new.name)
        );
        errors.invalid(
            &Path::new("roleRef"),
            Bad::shown(shown),
            "cannot change roleRef",
        );
    }
}
