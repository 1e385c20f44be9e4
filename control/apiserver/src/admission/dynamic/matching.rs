//! Which writes a webhook or policy is about: rules, selectors, equivalent resources.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as SelectorObject;
use serde_json::Value;
use skep_api::selector::LabelSelector;

use super::{Gvk, Matched, Subject, internal};
use crate::{
    admission::{Attributes, Operation, object},
    codec::meta,
    context::Api,
    registry::Resource,
    status::{Failure, Result, Status},
    subresources::scale::scale_of,
};

/// `RuleWithOperations`, `NamedRuleWithOperations`
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// `pods`, `pods/exec`, `*/scale`
    resources: Vec<String>,
    /// `Cluster`, `Namespaced` or `*`.
    scope: String,
    /// Empty: any.
    names: Vec<String>,
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(items: &[String], wanted: &str) -> bool {
    items.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    fn read(rule: &Value) -> Self {
        Self {
            operations: texts(&rule["operations"]),
            groups: texts(&rule["apiGroups"]),
            versions: texts(&rule["apiVersions"]),
            resources: texts(&rule["resources"]),
            scope: rule["scope"].as_str().unwrap_or("*").to_owned(),
            names: texts(&rule["resourceNames"]),
        }
    }

    fn matches(&self, operation: Operation, subject: &Subject, resource: &Resource) -> bool {
        let def = &resource.def;
        let cluster = subject.is_namespace() || subject.namespace.is_empty();
        let scope = match self.scope.as_str() {
            "Cluster" => cluster,
            "Namespaced" => !cluster,
            _ => true,
        };
        let named = |pattern: &String| {
            let (plural, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
            (plural == "*" || plural == def.plural) && (sub == "*" || sub == subject.subresource)
        };
        scope
            && has(&self.operations, operation.as_str())
            && has(&self.groups, &def.group)
            && has(&self.versions, &def.version)
            && self.resources.iter().any(named)
            && (self.names.is_empty() || self.names.contains(&subject.name))
    }
}

/// The rules and selectors of a webhook, a policy or a binding.
pub struct Match {
    rules: Vec<Rule>,
    exclude: Vec<Rule>,
    /// Without rules: a binding leaves them to its policy.
    any_resource: bool,
    equivalent: bool,
    namespaces: std::result::Result<LabelSelector, String>,
    objects: std::result::Result<LabelSelector, String>,
}

fn selector(value: &Value) -> std::result::Result<LabelSelector, String> {
    if value.is_null() {
        return Ok(LabelSelector::everything());
    }
    let selector: SelectorObject =
        serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
    LabelSelector::from_object(Some(&selector)).map_err(|error| error.0)
}

fn rules(value: &Value) -> Vec<Rule> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .map(Rule::read)
        .collect()
}

impl Match {
    /// A webhook: `rules`, `matchPolicy` and both selectors.
    pub fn of_webhook(hook: &Value) -> Self {
        Self {
            rules: rules(&hook["rules"]),
            exclude: Vec::new(),
            any_resource: false,
            equivalent: hook["matchPolicy"] != "Exact",
            namespaces: selector(&hook["namespaceSelector"]),
            objects: selector(&hook["objectSelector"]),
        }
    }

    /// `matchConstraints` or `matchResources`.
    pub fn of_resources(resources: &Value) -> Self {
        let included = rules(&resources["resourceRules"]);
        Self {
            any_resource: included.is_empty(),
            rules: included,
            exclude: rules(&resources["excludeResourceRules"]),
            equivalent: resources["matchPolicy"] != "Exact",
            namespaces: selector(&resources["namespaceSelector"]),
            objects: selector(&resources["objectSelector"]),
        }
    }

    /// The version that a rule matched; `None`: this write is of no concern.
    ///
    /// # Errors
    /// When it would be, but a selector cannot be asked.
    pub async fn matches(
        &self,
        api: &Api,
        attributes: &Attributes<'_>,
        subject: &Subject,
    ) -> Result<Option<Matched>> {
        let by_namespace = self.in_namespace(api, attributes, subject).await;
        if matches!(by_namespace, Ok(false)) {
            return Ok(None);
        }
        let by_object = self.of_object(attributes);
        if matches!(by_object, Ok(false)) {
            return Ok(None);
        }
        if self
            .by_rules(&self.exclude, api, attributes, subject)
            .is_some()
        {
            return Ok(None);
        }
        let matched = if self.any_resource {
            Some(Matched {
                resource: subject.resource.clone(),
                kind: subject.kind.clone(),
            })
        } else {
            self.by_rules(&self.rules, api, attributes, subject)
        };
        let Some(matched) = matched else {
            return Ok(None);
        };
        by_namespace?;
        by_object?;
        Ok(Some(matched))
    }

    fn by_rules(
        &self,
        rules: &[Rule],
        api: &Api,
        attributes: &Attributes<'_>,
        subject: &Subject,
    ) -> Option<Matched> {
        let operation = attributes.operation;
        let own = &subject.resource;
        if rules
            .iter()
            .any(|rule| rule.matches(operation, subject, own))
        {
            return Some(Matched {
                resource: own.clone(),
                kind: subject.kind.clone(),
            });
        }
        if !self.equivalent || rules.is_empty() {
            return None;
        }
        // Rows that store the same objects, in other versions or groups.
        let registry = api.registry.load();
        let others: Vec<_> = registry
            .resources()
            .filter(|other| other.prefix == own.prefix && other.api_version != own.api_version)
            .filter(|other| has_subresource(other, &subject.subresource))
            .collect();
        for rule in rules {
            let found = others
                .iter()
                .find(|other| rule.matches(operation, subject, other));
            if let Some(other) = found {
                return Some(Matched {
                    resource: (*other).clone(),
                    kind: Gvk::of(other, &subject.subresource),
                });
            }
        }
        None
    }

    async fn in_namespace(
        &self,
        api: &Api,
        attributes: &Attributes<'_>,
        subject: &Subject,
    ) -> Result<bool> {
        if subject.namespace.is_empty() && !subject.is_namespace() {
            return Ok(true);
        }
        let selector = self.namespaces.as_ref().map_err(internal)?;
        if selector.is_everything() {
            return Ok(true);
        }
        let itself = subject.is_namespace()
            && subject.subresource.is_empty()
            && attributes.operation != Operation::Delete;
        if itself {
            return Ok(selects(selector, &attributes.object));
        }
        let namespace = object(api, "", "namespaces", "", &subject.namespace).await?;
        let namespace = namespace.ok_or_else(|| no_namespace(&subject.namespace))?;
        Ok(selects(selector, &namespace))
    }

    fn of_object(&self, attributes: &Attributes<'_>) -> Result<bool> {
        let selector = self.objects.as_ref().map_err(internal)?;
        if selector.is_everything() {
            return Ok(true);
        }
        let by = |object: &Value| {
            if attributes.subresource == "scale" {
                // A Scale has no labels.
                let scale = scale_of(object, &attributes.resource.scale_paths());
                return !object.is_null() && selects(selector, &scale);
            }
            !object.is_null() && selects(selector, object)
        };
        Ok(by(&attributes.object) || by(attributes.old))
    }
}

fn has_subresource(resource: &Resource, name: &str) -> bool {
    name.is_empty() || resource.def.subresources.iter().any(|sub| sub.name == name)
}

pub fn selects(selector: &LabelSelector, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    selector.matches_with(|key| labels[key].as_str())
}

pub fn no_namespace(name: &str) -> Failure {
    Status::not_found("", "namespaces", name)
}

/// A `LabelSelector` as an object.
pub fn read_selector(value: &Value) -> std::result::Result<LabelSelector, String> {
    selector(value)
}

/// The namespace of a write, as expressions see it; null for what is in none.
pub async fn namespace_object(api: &Api, subject: &Subject) -> Result<Value> {
    if subject.namespace.is_empty() || subject.is_namespace() {
        return Ok(Value::Null);
    }
    let namespace = object(api, "", "namespaces", "", &subject.namespace).await?;
    let namespace = namespace.ok_or_else(|| no_namespace(&subject.namespace))?;
    const FIELDS: [&str; 12] = [
        "name",
        "generateName",
        "namespace",
        "labels",
        "annotations",
        "uid",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "generation",
        "resourceVersion",
        "finalizers",
    ];
    let mut seen = serde_json::json!({
        "metadata": {}, "spec": namespace["spec"], "status": namespace["status"],
    });
    for field in FIELDS {
        if let Some(value) = namespace["metadata"].get(field) {
            seen["metadata"][field] = value.clone();
        }
    }
    debug_assert!(!meta(&seen, "name").is_empty());
    Ok(seen)
}
