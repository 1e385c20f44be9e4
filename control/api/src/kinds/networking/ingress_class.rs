use k8s_openapi::api::networking::v1::{IngressClass, IngressClassParametersReference};

use crate::{
    field::{Errors, Path},
    kinds::{Check, Generation, Kind, Rules},
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
    let fits = domain_path_problem(controller);
    match fits {
        None => {}
        Some(None) => errors.required(path, ""),
        Some(Some(problem)) => match problem {
            Problem::Shape => {
                errors.invalid(
                    path,
                    controller,
                    "must be a domain-prefixed path (such as \"acme.io/foo\")",
                );
            }
            Problem::Domain(messages) => {
                let domain = controller.split('/').next().unwrap_or_default();
                errors.invalid_each(path, domain, messages);
            }
            Problem::Path(message) => {
                let rest = controller.split_once('/').map_or("", |(_, rest)| rest);
                errors.invalid(path, rest, message);
            }
        },
    }
}

enum Problem {
    Shape,
    Domain(Vec<String>),
    Path(String),
}

/// `None`: well formed. `Some(None)`: nothing there.
fn domain_path_problem(value: &str) -> Option<Option<Problem>> {
    if value.is_empty() {
        return Some(None);
    }
    let Some((domain, rest)) = value
        .split_once('/')
        .filter(|(domain, rest)| !domain.is_empty() && !rest.is_empty())
    else {
        return Some(Some(Problem::Shape));
    };
    let messages = text::dns1123_subdomain(domain);
    if !messages.is_empty() {
        return Some(Some(Problem::Domain(messages)));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/:._~%!$&'()*+,;=@-".contains(&byte);
    if rest.bytes().all(allowed) {
        None
    } else {
        let messages = text::pattern(
            false,
            "Invalid path",
            r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+",
            &[],
        );
        Some(Some(Problem::Path(
            messages.into_iter().next().unwrap_or_default(),
        )))
    }
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
