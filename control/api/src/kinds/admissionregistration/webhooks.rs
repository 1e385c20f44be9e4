use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, RuleWithOperations, ValidatingWebhookConfiguration,
    WebhookClientConfig,
};

use crate::{
    field::{Errors, Path},
    kinds::{Generation, Kind, Rules},
    printer::Printer,
    printers::access,
    validation::text,
    zero::{List, Text, fill, set},
};

const RULES: Rules = Rules::cluster()
    .generation(Generation::Object)
    .conditional_update();

/// What both kinds of webhook have, checked the same way.
struct Webhook<'a> {
    name: &'a str,
    review_versions: &'a [String],
    client: &'a WebhookClientConfig,
    failure_policy: &'a str,
    match_policy: &'a str,
    reinvocation_policy: &'a str,
    side_effects: &'a str,
    timeout_seconds: i32,
    rules: &'a [RuleWithOperations],
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

macro_rules! as_webhook {
    ($webhook:expr, $reinvocation:expr) => {
        Webhook {
            name: &$webhook.name,
            review_versions: &$webhook.admission_review_versions,
            client: &$webhook.client_config,
            failure_policy: $webhook.failure_policy.text(),
            match_policy: $webhook.match_policy.text(),
            reinvocation_policy: $reinvocation,
            side_effects: &$webhook.side_effects,
            timeout_seconds: $webhook.timeout_seconds.unwrap_or(10),
            rules: $webhook.rules.items(),
        }
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
        let hooks = self
            .webhooks
            .items()
            .iter()
            .map(|hook| as_webhook!(hook, "Never"));
        validate(&hooks.collect::<Vec<_>>(), errors);
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
        let hooks = self.webhooks.items().iter();
        let hooks = hooks.map(|hook| as_webhook!(hook, hook.reinvocation_policy.text()));
        validate(&hooks.collect::<Vec<_>>(), errors);
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

fn validate(webhooks: &[Webhook<'_>], errors: &mut Errors) {
    let path = Path::new("webhooks");
    for (index, webhook) in webhooks.iter().enumerate() {
        validate_webhook(webhook, &path.index(index), errors);
        if webhooks[..index]
            .iter()
            .any(|before| before.name == webhook.name)
        {
            let at = path.index(index);
            errors.duplicate(&at.child("name"), webhook.name);
        }
    }
}

fn one_of(value: &str, words: &[&str], path: &Path<'_>, errors: &mut Errors) {
    if !value.is_empty() && !words.contains(&value) {
        errors.not_supported(path, value, words);
    }
}

fn validate_webhook(webhook: &Webhook<'_>, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("name");
    if webhook.name.is_empty() {
        errors.required(&at, "");
    } else {
        let mut messages = text::dns1123_subdomain(webhook.name);
        if messages.is_empty() && webhook.name.split('.').count() < 3 {
            messages.push(
                "should be a domain with at least three segments separated by dots".to_owned(),
            );
        }
        errors.invalid_each(&at, webhook.name, messages);
    }
    let versions = path.child("admissionReviewVersions");
    if webhook.review_versions.is_empty() {
        errors.required(&versions, "must specify one of v1, v1beta1");
    } else if !webhook
        .review_versions
        .iter()
        .any(|version| matches!(version.as_str(), "v1" | "v1beta1"))
    {
        errors.invalid(
            &versions,
            crate::field::Bad::json(&webhook.review_versions),
            "must include at least one of v1, v1beta1",
        );
    }
    for (index, rule) in webhook.rules.iter().enumerate() {
        let rules = path.child("rules");
        validate_rule(rule, &rules.index(index), errors);
    }
    one_of(
        webhook.failure_policy,
        &["Fail", "Ignore"],
        &path.child("failurePolicy"),
        errors,
    );
    one_of(
        webhook.match_policy,
        &["Equivalent", "Exact"],
        &path.child("matchPolicy"),
        errors,
    );
    let at = path.child("sideEffects");
    match webhook.side_effects {
        "" => errors.required(&at, "must specify one of None, NoneOnDryRun"),
        "None" | "NoneOnDryRun" => {}
        other => errors.not_supported(&at, other, &["None", "NoneOnDryRun"]),
    }
    if !(1..=30).contains(&webhook.timeout_seconds) {
        errors.invalid(
            &path.child("timeoutSeconds"),
            webhook.timeout_seconds,
            "the timeout value must be between 1 and 30 seconds",
        );
    }
    one_of(
        webhook.reinvocation_policy,
        &["IfNeeded", "Never"],
        &path.child("reinvocationPolicy"),
        errors,
    );
    let at = path.child("clientConfig");
    if webhook.client.url.is_some() == webhook.client.service.is_some() {
        errors.required(&at, "exactly one of url or service is required");
    } else if let Some(service) = &webhook.client.service {
        let at = at.child("service");
        if service.name.is_empty() {
            errors.required(&at.child("name"), "service name is required");
        }
        if service.namespace.is_empty() {
            errors.required(&at.child("namespace"), "service namespace is required");
        }
    }
}

pub(super) fn validate_rule(rule: &RuleWithOperations, path: &Path<'_>, errors: &mut Errors) {
    let operations = path.child("operations");
    if rule.operations.items().is_empty() {
        errors.required(&operations, "");
    }
    for (index, operation) in rule.operations.items().iter().enumerate() {
        one_of(
            operation,
            &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"],
            &operations.index(index),
            errors,
        );
    }
    for (field, values) in [
        ("apiGroups", &rule.api_groups),
        ("apiVersions", &rule.api_versions),
        ("resources", &rule.resources),
    ] {
        if values.items().is_empty() {
            errors.required(&path.child(field), "");
        }
    }
    let scope = rule.scope.text();
    one_of(
        scope,
        &["*", "Cluster", "Namespaced"],
        &path.child("scope"),
        errors,
    );
}
