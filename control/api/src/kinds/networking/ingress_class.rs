use k8s_openapi::api::networking::v1::{IngressClass, IngressClassParametersReference};

use crate::{
    field::{Errors, Path},
    kinds::{Check, Generation, Kind, Rules, batch::job::validate_domain_prefixed_path},
    validation::text,
    zero::{Text, set},
};

impl Kind for IngressClass {
    const RULES: Rules = Rules::cluster()
        .generation(Generation::Spec)
        .update_checks(&[Check::Metadata, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        if let Some(spec) = &mut self.spec
            && let Some(parameters) = &mut spec.parameters
        {
            set(&mut parameters.scope, "Cluster".to_owned());
        }
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        let path = Path::new("spec");
        validate_controller(spec.controller.text(), &path.child("controller"), errors);
        if let Some(parameters) = &spec.parameters {
            validate_parameters(parameters, &path.child("parameters"), errors);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let controller = |class: &Self| {
            let spec = class.spec.clone().unwrap_or_default();
            spec.controller.unwrap_or_default()
        };
        errors.immutable(
            &Path::new("spec.controller"),
            &controller(self),
            &controller(old),
        );
        self.validate(errors);
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::network::ingress_class()
    }
}

fn validate_controller(controller: &str, path: &Path<'_>, errors: &mut Errors) {
    if controller.len() > 250 {
        errors.too_long(path, 250);
    }
    validate_domain_prefixed_path(controller, path, errors);
}

fn validate_parameters(
    parameters: &IngressClassParametersReference,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    super::ingress::validate_reference(
        parameters.api_group.as_deref(),
        &parameters.kind,
        &parameters.name,
        path,
        errors,
    );
    let at = path.child("namespace");
    match (parameters.scope.text(), &parameters.namespace) {
        ("Cluster", Some(_)) => {
            errors.forbidden(&at, "`parameters.scope` is set to 'Cluster'");
        }
        ("Namespace", None) => errors.required(&at, "`parameters.scope` is set to 'Namespace'"),
        ("Namespace", Some(namespace)) => {
            errors.invalid_each(&at, namespace, text::dns1123_label(namespace));
        }
        ("Cluster", None) => {}
        (other, _) => {
            errors.not_supported(&path.child("scope"), other, &["Cluster", "Namespace"]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(controller: &str, expected: &[&str]) {
        let mut errors = Errors::default();
        validate_controller(controller, &Path::new("c"), &mut errors);
        let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn controllers_are_domain_prefixed_paths() {
        check("a.io/b", &[]);
        check("", &["c: Required value"]);
        let path = r#"c: Invalid value: "b@c": Invalid path (regex used for validation is '[A-Za-z0-9/\-._~%!$&'()*+,;=:]+')"#;
        check("a.io/b@c", &[path]);
        check(
            "A_b/b@c",
            &[
                "c: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
                 characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex \
                 used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                path,
            ],
        );
    }
}
