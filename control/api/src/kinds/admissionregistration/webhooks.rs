//! ValidatingWebhookConfiguration and MutatingWebhookConfiguration.

use std::sync::Arc;

use k8s_openapi::{
    api::admissionregistration::v1::{
        MatchCondition, MutatingWebhookConfiguration, RuleWithOperations,
        ValidatingWebhookConfiguration, WebhookClientConfig,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::{
    reserved_name_warnings,
    rules::{
        FAILURE_POLICIES, MATCH_POLICIES, validate_match_conditions, validate_rule, validate_word,
    },
};
use crate::{
    field::{Bad, Errors, Path},
    kinds::{Check, Generation, Kind, Rules},
    printer::Printer,
    printers::access,
    strategy::Warnings,
    validation::{
        labels::{SelectorRules, validate_selector},
        text,
        webhooks::{validate_webhook_service, validate_webhook_url},
    },
    zero::{List, fill, set},
};

const RULES: Rules = Rules::cluster()
    .generation(Generation::Object)
    .conditional_update()
    .update_checks(&[Check::Metadata]);
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const ALL_SIDE_EFFECTS: [&str; 4] = ["None", "NoneOnDryRun", "Some", "Unknown"];
const REINVOCATION_POLICIES: [&str; 2] = ["IfNeeded", "Never"];

/// What both kinds of webhook have, checked the same way.
struct Webhook<'a> {
    name: &'a str,
    review_versions: &'a [String],
    client: &'a WebhookClientConfig,
    failure_policy: Option<&'a String>,
    match_policy: Option<&'a String>,
    reinvocation_policy: Option<&'a String>,
    side_effects: &'a str,
    timeout_seconds: i32,
    rules: &'a [RuleWithOperations],
    namespace_selector: Option<&'a LabelSelector>,
    object_selector: Option<&'a LabelSelector>,
    match_conditions: &'a [MatchCondition],
}

macro_rules! webhook_defaults {
    ($webhook:expr) => {
        let webhook = $webhook;
        set(&mut webhook.failure_policy, "Fail".to_owned());
        set(&mut webhook.match_policy, "Equivalent".to_owned());
        webhook.namespace_selector.get_or_insert_default();
        webhook.object_selector.get_or_insert_default();
        set(&mut webhook.timeout_seconds, 10);
        set_client_defaults(&mut webhook.client_config);
        for rule in webhook.rules.iter_mut().flatten() {
            fill(&mut rule.scope, "*");
        }
    };
}

macro_rules! webhooks_of {
    ($configuration:expr, $hook:ident => $reinvocation:expr) => {
        $configuration
            .webhooks
            .items()
            .iter()
            .map(|$hook| Webhook {
                name: &$hook.name,
                review_versions: &$hook.admission_review_versions,
                client: &$hook.client_config,
                failure_policy: $hook.failure_policy.as_ref(),
                match_policy: $hook.match_policy.as_ref(),
                reinvocation_policy: $reinvocation,
                side_effects: &$hook.side_effects,
                timeout_seconds: $hook.timeout_seconds.unwrap_or(10),
                rules: $hook.rules.items(),
                namespace_selector: $hook.namespace_selector.as_ref(),
                object_selector: $hook.object_selector.as_ref(),
                match_conditions: $hook.match_conditions.items(),
            })
            .collect::<Vec<_>>()
    };
}

impl Kind for ValidatingWebhookConfiguration {
    const RULES: Rules = RULES;

    fn set_defaults(&mut self) {
        for webhook in self.webhooks.iter_mut().flatten() {
            webhook_defaults!(webhook);
        }
    }

    fn validate(&self, errors: &mut Errors) {
        validate(&webhooks_of!(self, hook => None), None, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let old = webhooks_of!(old, hook => None);
        validate(&webhooks_of!(self, hook => None), Some(&old), errors);
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        reserved_name_warnings(&self.metadata)
    }

    fn printer() -> Arc<dyn Printer> {
        access::validating_webhook_configuration()
    }
}

impl Kind for MutatingWebhookConfiguration {
    const RULES: Rules = RULES;

    fn set_defaults(&mut self) {
        for webhook in self.webhooks.iter_mut().flatten() {
            set(&mut webhook.reinvocation_policy, "Never".to_owned());
            webhook_defaults!(webhook);
        }
    }

    fn validate(&self, errors: &mut Errors) {
        let hooks = webhooks_of!(self, hook => hook.reinvocation_policy.as_ref());
        validate(&hooks, None, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let hooks = webhooks_of!(self, hook => hook.reinvocation_policy.as_ref());
        let old = webhooks_of!(old, hook => hook.reinvocation_policy.as_ref());
        validate(&hooks, Some(&old), errors);
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        reserved_name_warnings(&self.metadata)
    }

    fn printer() -> Arc<dyn Printer> {
        access::mutating_webhook_configuration()
    }
}

fn set_client_defaults(client: &mut WebhookClientConfig) {
    if let Some(service) = &mut client.service {
        set(&mut service.port, 443);
    }
}

/// What older servers let in, and what an object that has it may keep.
#[derive(Clone, Copy, Default)]
struct Tolerated {
    side_effects: bool,
    review_versions: bool,
    same_names: bool,
    selector_values: bool,
    match_conditions: bool,
}

fn names_known_version(versions: &[String]) -> bool {
    versions
        .iter()
        .any(|version| REVIEW_VERSIONS.contains(&version.as_str()))
}

fn tolerated(webhooks: &[Webhook<'_>], old: &[Webhook<'_>]) -> Tolerated {
    let bad_selector = |hook: &Webhook<'_>| {
        let mut errors = Errors::default();
        for selector in [hook.namespace_selector, hook.object_selector] {
            validate_selector(selector, SelectorRules::default(), &Path::ROOT, &mut errors);
        }
        !errors.is_empty()
    };
    let names: Vec<&str> = old.iter().map(|hook| hook.name).collect();
    Tolerated {
        side_effects: !old
            .iter()
            .all(|hook| SIDE_EFFECTS.contains(&hook.side_effects)),
        review_versions: old.iter().any(|hook| {
            let versions = hook.review_versions;
            !versions.is_empty() && !names_known_version(versions)
        }),
        same_names: (1..names.len()).any(|i| names[..i].contains(&names[i])),
        selector_values: old.iter().any(bad_selector),
        match_conditions: webhooks.len() == old.len()
            && webhooks
                .iter()
                .zip(old)
                .all(|(new, old)| new.match_conditions == old.match_conditions),
    }
}

fn validate(webhooks: &[Webhook<'_>], old: Option<&[Webhook<'_>]>, errors: &mut Errors) {
    let tolerated = old.map_or(Tolerated::default(), |old| tolerated(webhooks, old));
    let path = Path::new("webhooks");
    for (index, webhook) in webhooks.iter().enumerate() {
        let at = path.index(index);
        validate_webhook(webhook, tolerated, &at, errors);
        let versions_at = at.child("admissionReviewVersions");
        validate_review_versions(webhook, tolerated, &versions_at, errors);
        let name = webhook.name;
        if !tolerated.same_names
            && !name.is_empty()
            && webhooks[..index].iter().any(|before| before.name == name)
        {
            errors.duplicate(&at.child("name"), name);
        }
    }
}

fn validate_webhook(
    webhook: &Webhook<'_>,
    tolerated: Tolerated,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child("name");
    let messages = text::dns1123_subdomain(webhook.name);
    if webhook.name.is_empty() {
        errors.required(&at, "");
    } else if !messages.is_empty() {
        errors.invalid(&at, webhook.name, messages.join(","));
    } else if webhook.name.split('.').count() < 3 {
        errors.invalid(
            &at,
            webhook.name,
            "should be a domain with at least three segments separated by dots",
        );
    }
    let at = path.child("rules");
    for (index, rule) in webhook.rules.iter().enumerate() {
        validate_rule(rule, &at.index(index), errors);
    }
    for (field, value, words) in [
        ("failurePolicy", webhook.failure_policy, &FAILURE_POLICIES),
        ("matchPolicy", webhook.match_policy, &MATCH_POLICIES),
    ] {
        validate_word(value, words, &path.child(field), errors);
    }
    let at = path.child("sideEffects");
    let allowed: &[&str] = if tolerated.side_effects {
        &ALL_SIDE_EFFECTS
    } else {
        &SIDE_EFFECTS
    };
    match webhook.side_effects {
        "" => errors.required(&at, format!("must specify one of {}", allowed.join(", "))),
        effects if allowed.contains(&effects) => {}
        other => errors.not_supported(&at, other, allowed),
    }
    if !(1..=30).contains(&webhook.timeout_seconds) {
        errors.invalid(
            &path.child("timeoutSeconds"),
            webhook.timeout_seconds,
            "the timeout value must be between 1 and 30 seconds",
        );
    }
    let rules = SelectorRules {
        allow_invalid_values: tolerated.selector_values,
    };
    for (field, selector) in [
        ("namespaceSelector", webhook.namespace_selector),
        ("objectSelector", webhook.object_selector),
    ] {
        validate_selector(selector, rules, &path.child(field), errors);
    }
    validate_word(
        webhook.reinvocation_policy,
        &REINVOCATION_POLICIES,
        &path.child("reinvocationPolicy"),
        errors,
    );
    let at = path.child("clientConfig");
    match (&webhook.client.url, &webhook.client.service) {
        (Some(url), None) => validate_webhook_url(url, &at.child("url"), errors),
        (None, Some(service)) => validate_webhook_service(
            &service.name,
            &service.namespace,
            service.path.as_deref(),
            service.port.unwrap_or(443),
            &at.child("service"),
            errors,
        ),
        _ => errors.required(&at, "exactly one of url or service is required"),
    }
    if !tolerated.match_conditions {
        let at = path.child("matchConditions");
        validate_match_conditions(webhook.match_conditions, &at, errors);
        super::expressions::Scope::new(false).conditions(webhook.match_conditions, &at, errors);
    }
}

fn validate_review_versions(
    webhook: &Webhook<'_>,
    tolerated: Tolerated,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let versions = webhook.review_versions;
    if versions.is_empty() {
        errors.required(path, "must specify one of v1, v1beta1");
        return;
    }
    for (i, version) in versions.iter().enumerate() {
        let at = path.index(i);
        if versions[..i].contains(version) {
            errors.invalid(&at, version, "duplicate version");
        } else {
            errors.invalid_each(&at, version, text::dns1035_label(version));
        }
    }
    if !tolerated.review_versions && !names_known_version(versions) {
        errors.invalid(
            path,
            Bad::json(&versions),
            "must include at least one of v1, v1beta1",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn configuration(webhook: Value) -> MutatingWebhookConfiguration {
        let mut all = json!({
            "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://h/x"},
        });
        for (field, value) in webhook.as_object().expect("fields") {
            all[field] = value.clone();
        }
        let mut configuration: MutatingWebhookConfiguration =
            serde_json::from_value(json!({"metadata": {"name": "w"}, "webhooks": [all]}))
                .expect("a configuration");
        configuration.set_defaults();
        configuration
    }

    #[track_caller]
    fn check(webhook: Value, expected: &[&str]) {
        let mut errors = Errors::default();
        configuration(webhook).validate(&mut errors);
        let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn webhooks() {
        check(json!({}), &[]);
        check(
            json!({"name": "a.b", "sideEffects": "Some", "reinvocationPolicy": "X", "timeoutSeconds": 31}),
            &[
                r#"webhooks[0].name: Invalid value: "a.b": should be a domain with at least three segments separated by dots"#,
                r#"webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun""#,
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
                r#"webhooks[0].reinvocationPolicy: Unsupported value: "X": supported values: "IfNeeded", "Never""#,
            ],
        );
        check(
            json!({"admissionReviewVersions": ["v2", "v2"]}),
            &[
                r#"webhooks[0].admissionReviewVersions[1]: Invalid value: "v2": duplicate version"#,
                r#"webhooks[0].admissionReviewVersions: Invalid value: ["v2","v2"]: must include at least one of v1, v1beta1"#,
            ],
        );
    }

    #[test]
    fn an_update_keeps_what_an_older_server_let_in() {
        let old = configuration(json!({"sideEffects": "Some"}));
        let mut errors = Errors::default();
        old.validate_update(&old, &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        let good = configuration(json!({}));
        old.validate_update(&good, &mut errors);
        assert_eq!(errors.len(), 1);
    }
}
