use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, Ingress, IngressBackend, IngressRule, IngressSpec, IngressTLS,
};

use crate::{
    field::{Bad, Errors, Path},
    kinds::{Check, Generation, Kind, Rules},
    strategy::Warnings,
    validation::{net, text},
    zero::{List, Text},
};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

impl Kind for Ingress {
    const RULES: Rules = Rules::namespaced()
        .generation(Generation::Spec)
        .status()
        .update_checks(&[Check::Metadata, Check::MetadataChange]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        validate_spec(&spec, errors);
        let annotation = class_annotation(self);
        if let (Some(annotation), Some(class)) = (annotation, &spec.ingress_class_name)
            && annotation != class
        {
            errors.invalid(
                &Path::new("annotations").child(CLASS_ANNOTATION),
                annotation,
                "must match `ingressClassName` when both are specified",
            );
        }
    }

    fn validate_update(&self, _old: &Self, errors: &mut Errors) {
        validate_spec(&self.spec.clone().unwrap_or_default(), errors);
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        let balancer = self
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        let points = balancer.map_or(&[][..], |balancer| balancer.ingress.items());
        let path = Path::new("status.loadBalancer.ingress");
        for (index, point) in points.iter().enumerate() {
            let path = path.index(index);
            if let Some(ip) = point.ip.as_deref().filter(|ip| !ip.is_empty()) {
                net::validate_ip(ip, &[], &path.child("ip"), errors);
            }
            let host = point.hostname.text();
            let at = path.child("hostname");
            if !host.is_empty() {
                errors.invalid_each(&at, host, text::dns1123_subdomain(host));
                if net::parse_ip(host).is_some() {
                    errors.invalid(&at, host, "must be a DNS name, not an IP address");
                }
            }
        }
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        if old.is_none() && class_annotation(self).is_some() {
            vec![format!(
                "annotation \"{CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead"
            )]
        } else {
            Warnings::new()
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::network::ingress()
    }
}

fn class_annotation(ingress: &Ingress) -> Option<&String> {
    ingress.metadata.annotations.as_ref()?.get(CLASS_ANNOTATION)
}

fn validate_spec(spec: &IngressSpec, errors: &mut Errors) {
    let path = Path::new("spec");
    if spec.rules.items().is_empty() && spec.default_backend.is_none() {
        errors.invalid(
            &path,
            Bad::json(&spec.rules),
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    if let Some(backend) = &spec.default_backend {
        validate_backend(backend, &path.child("defaultBackend"), errors);
    }
    for (index, rule) in spec.rules.items().iter().enumerate() {
        validate_rule(rule, &path.child("rules").index(index), errors);
    }
    for (index, tls) in spec.tls.items().iter().enumerate() {
        validate_tls(tls, &path.child("tls").index(index), errors);
    }
    if let Some(class) = &spec.ingress_class_name {
        errors.invalid_each(
            &path.child("ingressClassName"),
            class,
            text::dns1123_subdomain(class),
        );
    }
}

fn host_problems(host: &str) -> Vec<String> {
    if host.contains('*') {
        text::wildcard_dns1123_subdomain(host)
    } else {
        text::dns1123_subdomain(host)
    }
}

fn validate_tls(tls: &IngressTLS, path: &Path<'_>, errors: &mut Errors) {
    for (index, host) in tls.hosts.items().iter().enumerate() {
        errors.invalid_each(&path.child("hosts").index(index), host, host_problems(host));
    }
    let secret = tls.secret_name.text();
    if !secret.is_empty() {
        errors.invalid_each(
            &path.child("secretName"),
            secret,
            text::dns1123_subdomain(secret),
        );
    }
}

fn validate_rule(rule: &IngressRule, path: &Path<'_>, errors: &mut Errors) {
    let host = rule.host.text();
    if !host.is_empty() {
        let at = path.child("host");
        if net::parse_ip(host).is_some() {
            errors.invalid(&at, host, "must be a DNS name, not an IP address");
        }
        errors.invalid_each(&at, host, host_problems(host));
    }
    let Some(http) = &rule.http else { return };
    let at = path.child("http.paths");
    if http.paths.is_empty() {
        errors.required(&at, "");
    }
    for (index, one) in http.paths.iter().enumerate() {
        validate_path(one, &at.index(index), errors);
    }
}

fn validate_path(one: &HTTPIngressPath, path: &Path<'_>, errors: &mut Errors) {
    const TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
    let url = one.path.text();
    let at = path.child("path");
    match one.path_type.as_str() {
        "" => {
            errors.required(&path.child("pathType"), "pathType must be specified");
            return;
        }
        "Exact" | "Prefix" => {
            if !url.starts_with('/') {
                errors.invalid(&at, url, "must be an absolute path");
            }
            if !url.is_empty() {
                validate_url(url, &at, errors);
            }
        }
        "ImplementationSpecific" => {
            if !url.is_empty() && !url.starts_with('/') {
                errors.invalid(&at, url, "must be an absolute path");
            }
        }
        other => errors.not_supported(&path.child("pathType"), other, &TYPES),
    }
    validate_backend(&one.backend, &path.child("backend"), errors);
}

fn validate_url(url: &str, at: &Path<'_>, errors: &mut Errors) {
    for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
        if url.contains(sequence) {
            errors.invalid(at, url, format!("must not contain '{sequence}'"));
        }
    }
    for suffix in ["/..", "/."] {
        if url.ends_with(suffix) {
            errors.invalid(at, url, format!("cannot end with '{suffix}'"));
        }
    }
}

fn validate_backend(backend: &IngressBackend, path: &Path<'_>, errors: &mut Errors) {
    match (&backend.service, &backend.resource) {
        (Some(_), Some(_)) => {
            errors.invalid(path, "", "cannot set both resource and service backends");
        }
        (None, Some(resource)) => {
            validate_reference(
                resource.api_group.as_deref(),
                &resource.kind,
                &resource.name,
                &path.child("resource"),
                errors,
            );
        }
        (None, None) => errors.invalid(path, "", "resource or service backend is required"),
        (Some(service), None) => {
            let at = path.child("service.name");
            if service.name.is_empty() {
                errors.required(&at, "");
            } else {
                errors.invalid_each(&at, &service.name, text::dns1123_label(&service.name));
            }
            let port = service.port.clone().unwrap_or_default();
            match (port.name.text(), port.number.unwrap_or(0)) {
                ("", 0) => errors.required(path, "port name or number is required"),
                ("", number) => {
                    net::validate_port_number(number, &path.child("service.port.number"), errors);
                }
                (name, 0) => errors.invalid_each(
                    &path.child("service.port.name"),
                    name,
                    text::port_name(name),
                ),
                _ => errors.invalid(path, "", "cannot set both port name & port number"),
            }
        }
    }
}

/// A reference to an object of the namespace, also of an IngressClass.
pub(super) fn validate_reference(
    group: Option<&str>,
    kind: &str,
    name: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if let Some(group) = group {
        let at = path.child("apiGroup");
        errors.invalid_each(&at, group, text::dns1123_subdomain(group));
    }
    for (field, value, missing) in [
        ("kind", kind, "kind is required"),
        ("name", name, "name is required"),
    ] {
        if value.is_empty() {
            errors.required(&path.child(field), missing);
        } else {
            errors.invalid_each(&path.child(field), value, text::path_segment(value));
        }
    }
}
