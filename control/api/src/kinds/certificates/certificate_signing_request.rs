use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use serde_json::Value;
use x509_parser::{
    certificate::X509Certificate, certification_request::X509CertificationRequest, pem::Pem,
    prelude::FromDer,
};

use crate::{
    field::{Bad, Errors, Path, quoted},
    kinds::{Check, Kind, Rules, Selectable},
    validation::{meta::NameRule, text},
    zero::List,
};

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";

/// Who may change what: nobody the spec, `/approval` the conditions, `/status` the certificate.
#[derive(Clone, Copy, Default)]
struct Allowed {
    approval: bool,
    certificate: bool,
}

impl Kind for CertificateSigningRequest {
    const RULES: Rules = Rules::cluster()
        .name(NameRule::Any)
        .status()
        .reset(&["spec", "status"])
        .reset_status(&["spec", "status.conditions"])
        .reset_subresource(&["spec", "status.certificate"])
        .update_checks(&[Check::Metadata, Check::MetadataChange]);
    const HAS_DEFAULTS: bool = false;

    fn prepare_update(&mut self, old: &Self) {
        self.spec.clone_from(&old.spec);
    }

    /// Who approves does so through `/approval`: as many conditions of the kind are the old ones.
    fn prepare_status_update(&mut self, old: &Self) {
        let old = conditions_of(old);
        let Some(new) = self
            .status
            .as_mut()
            .and_then(|status| status.conditions.as_mut())
        else {
            return;
        };
        for type_ in ["Approved", "Denied"] {
            let before: Vec<_> = old.iter().filter(|one| one.type_ == type_).collect();
            let now = new.iter_mut().filter(|one| one.type_ == type_);
            let now: Vec<_> = now.collect();
            if now.len() == before.len() {
                for (now, before) in now.into_iter().zip(before) {
                    now.clone_from(before);
                }
            }
        }
    }

    fn prepare_subresource_update(&mut self, old: &Self, _subresource: &str) {
        self.spec.clone_from(&old.spec);
        let certificate = old.status.as_ref().and_then(|one| one.certificate.clone());
        self.status.get_or_insert_default().certificate = certificate;
    }

    fn validate(&self, errors: &mut Errors) {
        validate(self, None, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate_change(self, old, Allowed::default(), errors);
    }

    fn validate_status_update(&self, old: &Self, errors: &mut Errors) {
        let allowed = Allowed {
            certificate: true,
            ..Allowed::default()
        };
        validate_change(self, old, allowed, errors);
    }

    fn validate_subresource_update(&self, old: &Self, _subresource: &str, errors: &mut Errors) {
        let allowed = Allowed {
            approval: true,
            ..Allowed::default()
        };
        validate_change(self, old, allowed, errors);
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::access::certificate_signing_request()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        const FIELDS: &[Selectable] = &[Selectable {
            name: "spec.signerName",
            get: |object| {
                let name = object.pointer("/spec/signerName").and_then(Value::as_str);
                name.unwrap_or_default().to_owned()
            },
        }];
        Some(FIELDS)
    }
}

/// What a stored request got away with stays allowed (`old`).
fn validate(
    request: &CertificateSigningRequest,
    old: Option<&CertificateSigningRequest>,
    errors: &mut Errors,
) {
    let path = Path::new("spec");
    let spec = &request.spec;
    if let Err(problem) = check_request(&spec.request.0) {
        errors.invalid(&path.child("request"), Bad::json(&spec.request), problem);
    }
    let at = path.child("usages");
    let usages = spec.usages.items();
    let old_usages = old.map(|old| old.spec.usages.items()).unwrap_or_default();
    if usages.is_empty() {
        errors.required(&at, "");
    }
    let known = |usage: &String| USAGES.contains(&usage.as_str());
    if old_usages.iter().all(known) {
        for (i, usage) in usages.iter().enumerate() {
            if !known(usage) {
                errors.not_supported(&at.index(i), usage, &USAGES);
            }
        }
    }
    if !has_duplicates(old_usages) {
        for (i, usage) in usages.iter().enumerate() {
            if usages[..i].contains(usage) {
                errors.duplicate(&at.index(i), usage);
            }
        }
    }
    let at = path.child("signerName");
    let had_legacy = old.is_some_and(|old| old.spec.signer_name == LEGACY_SIGNER);
    if spec.signer_name == LEGACY_SIGNER && !had_legacy {
        errors.invalid(
            &at,
            &spec.signer_name,
            "the legacy signerName is not allowed via this API version",
        );
    } else {
        validate_signer_name(&spec.signer_name, &at, errors);
    }
    if let Some(seconds) = spec.expiration_seconds.filter(|seconds| *seconds < 600) {
        errors.invalid(
            &path.child("expirationSeconds"),
            seconds,
            "may not specify a duration less than 600 seconds (10 minutes)",
        );
    }
    let conditions = conditions_of(request);
    let old_conditions = old.map(conditions_of).unwrap_or_default();
    validate_conditions(conditions, old_conditions, errors);
    let certificate = certificate_of(request);
    let old_certificate = old.map(certificate_of);
    let tolerated =
        old_certificate.is_some_and(|old| old == certificate || check_certificates(old).is_err());
    if !tolerated && let Err(problem) = check_certificates(certificate) {
        errors.invalid(
            &Path::new("status.certificate"),
            "<certificate data>",
            problem,
        );
    }
}

fn conditions_of(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    let status = request.status.as_ref();
    status
        .map(|status| status.conditions.items())
        .unwrap_or_default()
}

fn certificate_of(request: &CertificateSigningRequest) -> &[u8] {
    let status = request.status.as_ref();
    let certificate = status.and_then(|status| status.certificate.as_ref());
    certificate.map_or(&[], |bytes| bytes.0.as_slice())
}

fn has_duplicates<T: PartialEq>(items: &[T]) -> bool {
    (1..items.len()).any(|i| items[..i].contains(&items[i]))
}

fn validate_conditions(
    conditions: &[CertificateSigningRequestCondition],
    old: &[CertificateSigningRequestCondition],
    errors: &mut Errors,
) {
    const STATUSES: [&str; 3] = ["False", "True", "Unknown"];
    let path = Path::new("status.conditions");
    let types = |all: &[CertificateSigningRequestCondition]| -> Vec<String> {
        all.iter().map(|one| one.type_.clone()).collect()
    };
    let (all, before) = (types(conditions), types(old));
    let had = |type_: &str| before.iter().any(|one| one == type_);
    let tolerate_both = had("Approved") && had("Denied");
    for (i, condition) in conditions.iter().enumerate() {
        let at = path.index(i);
        let type_ = condition.type_.as_str();
        if type_.is_empty() && !had("") {
            errors.required(&at.child("type"), "");
        }
        let only_true = matches!(type_, "Approved" | "Denied" | "Failed");
        let statuses = if only_true {
            &STATUSES[1..2]
        } else {
            &STATUSES
        };
        if condition.status.is_empty() {
            errors.required(&at.child("status"), "");
        } else if !statuses.contains(&condition.status.as_str()) {
            errors.not_supported(&at.child("status"), &condition.status, statuses);
        }
        let opposite = match type_ {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !opposite.is_empty() && !tolerate_both && all[..i].iter().any(|one| one == opposite) {
            errors.invalid(
                &path,
                type_,
                "Approved and Denied conditions are mutually exclusive",
            );
        }
        if !has_duplicates(&before) && all[..i].contains(&condition.type_) {
            errors.duplicate(&at.child("type"), type_);
        }
    }
}

fn validate_change(
    new: &CertificateSigningRequest,
    old: &CertificateSigningRequest,
    allowed: Allowed,
    errors: &mut Errors,
) {
    validate(new, Some(old), errors);
    let path = Path::new("status.conditions");
    let of_type = |request: &CertificateSigningRequest, type_: &str| {
        let all = conditions_of(request).iter();
        all.filter(|one| one.type_ == type_)
            .cloned()
            .collect::<Vec<_>>()
    };
    for type_ in ["Approved", "Denied", "Failed"] {
        if of_type(new, type_).len() < of_type(old, type_).len() {
            errors.forbidden(
                &path,
                format!(
                    "updates may not remove a condition of type {}",
                    quoted(type_)
                ),
            );
        }
    }
    if !allowed.approval {
        for type_ in ["Approved", "Denied"] {
            let (new, old) = (of_type(new, type_), of_type(old, type_));
            let what = match new.len().cmp(&old.len()) {
                std::cmp::Ordering::Greater => "add",
                std::cmp::Ordering::Equal if new != old => "modify",
                _ => continue,
            };
            errors.forbidden(
                &path,
                format!(
                    "updates may not {what} a condition of type {}",
                    quoted(type_)
                ),
            );
        }
    }
    if certificate_of(new) != certificate_of(old) {
        let at = Path::new("status.certificate");
        if !allowed.certificate {
            errors.forbidden(&at, "updates may not set certificate content");
        } else if !certificate_of(old).is_empty() {
            errors.forbidden(&at, "updates may not modify existing certificate content");
        }
    }
}

/// `example.com/signer`: a domain of two labels at least, and a name.
pub(crate) fn validate_signer_name(signer: &str, path: &Path<'_>, errors: &mut Errors) {
    const DOMAIN_LIMIT: usize = 253;
    /// Both parts, a namespace's and an object's name in the second one.
    const LIMIT: usize = DOMAIN_LIMIT + 1 + 253 + 1 + 63;
    if signer.is_empty() {
        errors.required(path, "");
        return;
    }
    let [domain, name] = signer.split('/').collect::<Vec<_>>()[..] else {
        errors.invalid(
            path,
            signer,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        );
        return;
    };
    if domain.len() > DOMAIN_LIMIT {
        errors.too_long(path, DOMAIN_LIMIT);
    }
    validate_parts(domain, text::dns1123_label, path, errors);
    if !domain.contains('.') {
        errors.invalid(
            path,
            domain,
            "should be a domain with at least two segments separated by dots",
        );
    }
    validate_parts(name, text::dns1123_subdomain, path, errors);
    if signer.len() > LIMIT {
        errors.too_long(path, LIMIT);
    }
}

/// Only the first bad part between dots is reported.
fn validate_parts(
    parts: &str,
    rule: fn(&str) -> text::Messages,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let wrong = parts.split('.').find(|label| !rule(label).is_empty());
    for message in wrong.map(rule).unwrap_or_default() {
        let label = quoted(wrong.unwrap_or_default());
        errors.invalid(path, parts, format!("validating label {label}: {message}"));
    }
}

const ED25519: &str = "1.3.101.112";
/// And a hash after it.
const ECDSA: &str = "1.2.840.10045.4.";

/// A PEM block with a request that its own key signed.
fn check_request(pem: &[u8]) -> Result<(), String> {
    let block = Pem::iter_from_buffer(pem).next();
    let block = block
        .and_then(Result::ok)
        .filter(|block| block.label == "CERTIFICATE REQUEST");
    let block = block.ok_or("PEM block type must be CERTIFICATE REQUEST")?;
    let (rest, request) = X509CertificationRequest::from_der(&block.contents).map_err(|error| {
        let problem = super::asn1::problem(&block.contents);
        problem.unwrap_or_else(|| format!("asn1: structure error: {error}"))
    })?;
    if !rest.is_empty() {
        return Err("asn1: syntax error: trailing data".to_owned());
    }
    request.verify_signature().map_err(|_| {
        let algorithm = request.signature_algorithm.algorithm.to_id_string();
        let problem = match algorithm.as_str() {
            ED25519 => "x509: Ed25519 verification failure",
            other if other.starts_with(ECDSA) => "x509: ECDSA verification failure",
            _ => "crypto/rsa: verification error",
        };
        problem.to_owned()
    })
}

fn check_certificates(pem: &[u8]) -> Result<(), String> {
    if pem.is_empty() {
        return Ok(());
    }
    let mut blocks = 0;
    for block in Pem::iter_from_buffer(pem) {
        let Ok(block) = block else { break };
        if block.label != "CERTIFICATE" {
            return Err(format!(
                "only CERTIFICATE PEM blocks are allowed, found {}",
                quoted(&block.label)
            ));
        }
        blocks += 1;
        if block.contents.is_empty() {
            return Err("found CERTIFICATE PEM block containing 0 certificates".to_owned());
        }
        let mut rest = block.contents.as_slice();
        while !rest.is_empty() {
            let parsed = X509Certificate::from_der(rest);
            let (after, _) = parsed.map_err(|_| "x509: malformed certificate")?;
            rest = after;
        }
    }
    if blocks == 0 {
        return Err("must contain at least one CERTIFICATE PEM block".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn approvals_are_not_changed_through_the_status() {
        let of = |conditions: Value| -> CertificateSigningRequest {
            serde_json::from_value(json!({"metadata": {}, "status": {"conditions": conditions}}))
                .expect("a request")
        };
        let old = of(json!([{"type": "Approved", "status": "True", "reason": "old"}]));
        let mut new = of(json!([
            {"type": "Failed", "status": "True"},
            {"type": "Approved", "status": "False", "reason": "new"},
        ]));
        new.prepare_status_update(&old);
        let reasons: Vec<_> = conditions_of(&new)
            .iter()
            .map(|one| one.reason.as_deref())
            .collect();
        assert_eq!(reasons, [None, Some("old")]);
    }
}
