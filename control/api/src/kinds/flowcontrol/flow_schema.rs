use std::sync::Arc;

use k8s_openapi::api::flowcontrol::v1::{
    FlowSchema, FlowSchemaSpec, NonResourcePolicyRule, PolicyRulesWithSubjects, ResourcePolicyRule,
    Subject,
};
use serde_json::{Value, json};

use super::{CATCH_ALL, EXEMPT, validate_condition_types, validate_fixed};
use crate::{
    field::{Bad, Errors, Path},
    kinds::{Check, Generation, Kind, Rules, keep_status_metadata},
    printer::Printer,
    printers::access,
    validation::text,
    zero::{Flag, List, Text},
};

const VERBS: [&str; 9] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];
const MAX_PRECEDENCE: i32 = 10_000;

impl Kind for FlowSchema {
    const RULES: Rules = Rules::cluster()
        .generation(Generation::Spec)
        .status()
        .reset_status(&["metadata", "spec"])
        .update_checks(&[Check::Metadata]);

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        if spec.matching_precedence.unwrap_or(0) == 0 {
            spec.matching_precedence = Some(1000);
        }
        self.status.get_or_insert_default();
    }

    fn prepare_create(&mut self) {
        self.status = Some(Default::default());
    }

    fn prepare_status_update(&mut self, old: &Self) {
        keep_status_metadata(&mut self.metadata, &old.metadata);
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        let name = self.metadata.name.text();
        validate_spec(&spec, name, &Path::new("spec"), errors);
        validate_fixed(
            ("FlowSchemaSpec", name),
            &spec,
            fixed_spec(name),
            "must equal the fixed value",
            errors,
        );
        validate_status(self, errors);
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        validate_status(self, errors);
    }

    fn printer() -> Arc<dyn Printer> {
        access::flow_schema()
    }
}

fn validate_status(schema: &FlowSchema, errors: &mut Errors) {
    let status = schema.status.as_ref();
    let conditions = status.map(|status| status.conditions.items());
    let conditions = conditions.unwrap_or_default().iter();
    validate_condition_types(conditions.map(|condition| &condition.type_), errors);
}

fn fixed_spec(name: &str) -> Option<Value> {
    let groups: &[&str] = match name {
        EXEMPT => &["system:masters"],
        CATCH_ALL => &["system:unauthenticated", "system:authenticated"],
        _ => return None,
    };
    let subjects: Vec<Value> = groups
        .iter()
        .map(|group| json!({"kind": "Group", "group": {"name": group}}))
        .collect();
    let everything = json!([{
        "subjects": subjects,
        "resourceRules": [{
            "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"],
        }],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    }]);
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": name},
        "matchingPrecedence": if name == EXEMPT { 1 } else { MAX_PRECEDENCE },
        "rules": everything,
    });
    if name == CATCH_ALL {
        spec["distinguisherMethod"] = json!({"type": "ByUser"});
    }
    Some(spec)
}

fn validate_spec(spec: &FlowSchemaSpec, name: &str, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("matchingPrecedence");
    let precedence = spec.matching_precedence.unwrap_or(0);
    if precedence <= 0 {
        errors.invalid(&at, precedence, "must be a positive value");
    }
    if precedence > MAX_PRECEDENCE {
        errors.invalid(
            &at,
            precedence,
            format!("must not be greater than {MAX_PRECEDENCE}"),
        );
    }
    if precedence == 1 && name != EXEMPT {
        errors.invalid(
            &at,
            precedence,
            "only the schema named 'exempt' may have matchingPrecedence 1",
        );
    }
    if let Some(method) = &spec.distinguisher_method {
        let methods = ["ByNamespace", "ByUser"];
        if !methods.contains(&method.type_.as_str()) {
            let shown = format!(r#"{{"Type":{}}}"#, json!(method.type_));
            errors.not_supported(
                &path.child("distinguisherMethod.type"),
                Bad::shown(shown),
                &methods,
            );
        }
    }
    let at = path.child("priorityLevelConfiguration.name");
    let level = &spec.priority_level_configuration.name;
    if level.is_empty() {
        errors.required(&at, "must reference a priority level");
    } else {
        errors.invalid_each(&at, level, text::dns1123_subdomain(level));
    }
    let at = path.child("rules");
    for (i, rule) in spec.rules.items().iter().enumerate() {
        validate_rules(rule, &at.index(i), errors);
    }
}

fn validate_rules(rules: &PolicyRulesWithSubjects, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("subjects");
    for (i, subject) in rules.subjects.iter().enumerate() {
        validate_subject(subject, &at.index(i), errors);
    }
    if rules.subjects.is_empty() {
        errors.required(&at, "subjects must contain at least one value");
    }
    let resources = rules.resource_rules.items();
    let others = rules.non_resource_rules.items();
    if resources.is_empty() && others.is_empty() {
        errors.required(
            path,
            "at least one of resourceRules and nonResourceRules has to be non-empty",
        );
    }
    let at = path.child("resourceRules");
    for (i, rule) in resources.iter().enumerate() {
        validate_resource_rule(rule, &at.index(i), errors);
    }
    let at = path.child("nonResourceRules");
    for (i, rule) in others.iter().enumerate() {
        validate_non_resource_rule(rule, &at.index(i), errors);
    }
}

fn validate_subject(subject: &Subject, path: &Path<'_>, errors: &mut Errors) {
    let kinds = ["Group", "ServiceAccount", "User"];
    let kind = subject.kind.as_str();
    if !kinds.contains(&kind) {
        errors.not_supported(&path.child("kind"), kind, &kinds);
        return;
    }
    let group = subject.group.as_ref().map(|group| group.name.as_str());
    let user = subject.user.as_ref().map(|user| user.name.as_str());
    let account = subject.service_account.as_ref();
    let missing = |field: &str| format!("{field} is required when subject kind is '{kind}'");
    match kind {
        "ServiceAccount" => {
            let at = path.child("serviceAccount");
            match account {
                None => errors.required(&at, missing("serviceAccount")),
                Some(account) => {
                    validate_account(&account.name, &account.namespace, &at, errors);
                }
            }
        }
        _ => {
            let (field, name) = if kind == "User" {
                ("user", user)
            } else {
                ("group", group)
            };
            let at = path.child(field);
            match name {
                None => errors.required(&at, missing(field)),
                Some("") => errors.required(&at.child("name"), ""),
                Some(_) => {}
            }
        }
    }
    // In upstream's order, which puts service accounts first.
    for (field, of, there) in [
        ("serviceAccount", "ServiceAccount", account.is_some()),
        ("user", "User", user.is_some()),
        ("group", "Group", group.is_some()),
    ] {
        if there && kind != of {
            errors.forbidden(
                &path.child(field),
                format!("{field} is forbidden when subject kind is not '{of}'"),
            );
        }
    }
}

fn validate_account(name: &str, namespace: &str, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("name");
    match name {
        "" => errors.required(&at, ""),
        "*" => {}
        name => errors.invalid_each(&at, name, text::dns1123_subdomain(name)),
    }
    let at = path.child("namespace");
    if namespace.is_empty() {
        errors.required(&at, "must specify namespace for service account");
    } else {
        errors.invalid_each(&at, namespace, text::dns1123_label(namespace));
    }
}

fn has_wildcard(values: &[String]) -> bool {
    values.iter().any(|value| value == "*")
}

/// Not nothing, and `*` only alone.
fn validate_some(
    values: &[String],
    field: &str,
    missing: &str,
    others: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child(field);
    if values.is_empty() {
        errors.required(&at, missing);
    } else if values.len() > 1 && has_wildcard(values) {
        errors.invalid(
            &at,
            Bad::json(&values),
            format!("if '*' is present, must not specify other {others}"),
        );
    }
}

fn validate_verbs(verbs: &[String], path: &Path<'_>, errors: &mut Errors) {
    let missing = "verbs must contain at least one value";
    validate_some(verbs, "verbs", missing, "verbs", path, errors);
    let known = |verb: &String| VERBS.contains(&verb.as_str());
    if !verbs.is_empty() && !has_wildcard(verbs) && !verbs.iter().all(known) {
        errors.not_supported(&path.child("verbs"), Bad::json(&verbs), &VERBS);
    }
}

fn validate_resource_rule(rule: &ResourcePolicyRule, path: &Path<'_>, errors: &mut Errors) {
    validate_verbs(&rule.verbs, path, errors);
    for (values, field, what, others) in [
        (&rule.api_groups, "apiGroups", "api group", "api groups"),
        (&rule.resources, "resources", "resource", "resources"),
    ] {
        let missing = format!("resource rules must supply at least one {what}");
        validate_some(values, field, &missing, others, path, errors);
    }
    let at = path.child("namespaces");
    let namespaces = rule.namespaces.items();
    if namespaces.is_empty() {
        if !rule.cluster_scope.is_true() {
            errors.required(
                &at,
                "resource rules that are not cluster scoped must supply at least one namespace",
            );
        }
    } else if has_wildcard(namespaces) {
        validate_some(namespaces, "namespaces", "", "namespaces", path, errors);
    } else {
        for (i, namespace) in namespaces.iter().enumerate() {
            for message in text::dns1123_label(namespace) {
                errors.invalid(
                    &at.index(i),
                    namespace,
                    format!("each member of this list must be '*' or a DNS-1123 label; {message}"),
                );
            }
        }
    }
}

fn validate_non_resource_rule(rule: &NonResourcePolicyRule, path: &Path<'_>, errors: &mut Errors) {
    validate_verbs(&rule.verbs, path, errors);
    let urls = &rule.non_resource_urls;
    validate_some(
        urls,
        "nonResourceURLs",
        "nonResourceURLs must contain at least one value",
        "non-resource URLs",
        path,
        errors,
    );
    if has_wildcard(urls) {
        return;
    }
    let at = path.child("nonResourceURLs");
    for (i, url) in urls.iter().enumerate() {
        if let Some(problem) = url_problem(url) {
            errors.invalid(&at.index(i), url, problem);
        }
    }
}

fn url_problem(url: &str) -> Option<&'static str> {
    let stars = url.matches('*').count();
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        url if !url.starts_with('/') => Some("must start with slash"),
        url if url.contains(' ') => Some("must not contain white-space"),
        url if url.contains("//") => Some("must not contain double slash"),
        url if stars > 1 || (stars == 1 && !url.ends_with("/*")) => {
            Some("wildcard can only do suffix matching")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, spec: Value, expected: &[&str]) {
        let mut schema: FlowSchema =
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))
                .expect("a flow schema");
        schema.set_defaults();
        let mut errors = Errors::default();
        schema.validate(&mut errors);
        let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected);
    }

    fn with(subject: Value, rule: Value) -> Value {
        json!({"priorityLevelConfiguration": {"name": "l"}, "rules": [{"subjects": [subject], "nonResourceRules": [rule]}]})
    }

    #[test]
    fn rules() {
        let user = || json!({"kind": "User", "user": {"name": "u"}});
        let rule = || json!({"verbs": ["get"], "nonResourceURLs": ["/x/*"]});
        check("a", with(user(), rule()), &[]);
        check(
            "a",
            with(
                json!({"kind": "User", "group": {"name": "g"}}),
                json!({"verbs": ["eat"], "nonResourceURLs": ["x"]}),
            ),
            &[
                "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
                "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
                r#"spec.rules[0].nonResourceRules[0].verbs: Unsupported value: ["eat"]: supported values: "create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch""#,
                r#"spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: "x": must start with slash"#,
            ],
        );
        check(
            "a",
            with(
                json!({"kind": "X"}),
                json!({"verbs": ["get"], "nonResourceURLs": ["/a*"]}),
            ),
            &[
                r#"spec.rules[0].subjects[0].kind: Unsupported value: "X": supported values: "Group", "ServiceAccount", "User""#,
                r#"spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: "/a*": wildcard can only do suffix matching"#,
            ],
        );
    }

    #[test]
    fn what_is_mandatory_stays_as_it_is() {
        for name in [EXEMPT, CATCH_ALL] {
            let fixed = fixed_spec(name).expect("fixed");
            check(name, fixed.clone(), &[]);
            let mut other = fixed;
            other["matchingPrecedence"] = json!(2);
            let mut schema: FlowSchema =
                serde_json::from_value(json!({"metadata": {"name": name}, "spec": other}))
                    .expect("a flow schema");
            schema.set_defaults();
            let mut errors = Errors::default();
            schema.validate(&mut errors);
            assert_eq!(errors.0[0].field, "spec");
        }
    }
}
