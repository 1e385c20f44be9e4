//! Priority, DefaultTolerationSeconds, RuntimeClass.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use skep_api::quantity::Amount;

use super::{Attributes, Operation, Plugin, forbidden, object, objects};
use crate::{context::Api, status::Result};

/// Turns a priority class's name into the number that the scheduler and the kubelet read.
pub struct Priority;

const SCHEDULING: &str = "scheduling.k8s.io";

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if !attributes.is("", "pods") {
            return Ok(());
        }
        if attributes.operation == Operation::Update {
            // A client that does not know these fields does not remove them.
            for field in ["priority", "preemptionPolicy"] {
                let old = &attributes.old["spec"][field];
                if attributes.object["spec"][field].is_null() && !old.is_null() {
                    attributes.object["spec"][field] = old.clone();
                }
            }
            return Ok(());
        }
        if attributes.operation != Operation::Create {
            return Ok(());
        }
        let spec = &attributes.object["spec"];
        let name = spec["priorityClassName"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let class = if name.is_empty() {
            default_class(api)
        } else {
            let found = object(api, SCHEDULING, "priorityclasses", "", &name).await?;
            let missing = || format!("no PriorityClass with name {name} was found");
            Some(found.ok_or_else(|| forbidden(attributes, &missing()))?)
        };
        let class = class.unwrap_or(Value::Null);
        let priority = class["value"].as_i64().unwrap_or(0);
        let policy = class["preemptionPolicy"]
            .as_str()
            .unwrap_or("PreemptLowerPriority");
        if let Some(given) = spec["priority"].as_i64().filter(|given| *given != priority) {
            let why = format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission \
                 controller computed {priority} from the given PriorityClass name"
            );
            return Err(forbidden(attributes, &why));
        }
        if let Some(given) = spec["preemptionPolicy"]
            .as_str()
            .filter(|given| *given != policy)
        {
            let why = format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            );
            return Err(forbidden(attributes, &why));
        }
        let policy = policy.to_owned();
        let spec = &mut attributes.object["spec"];
        if let Some(name) = class["metadata"]["name"].as_str() {
            spec["priorityClassName"] = name.into();
        }
        spec["priority"] = priority.into();
        spec["preemptionPolicy"] = policy.into();
        Ok(())
    }

    async fn validate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if !attributes.is(SCHEDULING, "priorityclasses")
            || attributes.operation == Operation::Delete
            || attributes.object["globalDefault"] != true
        {
            return Ok(());
        }
        let name = attributes.object["metadata"]["name"].clone();
        let creates = attributes.operation == Operation::Create;
        let classes = objects(api, SCHEDULING, "priorityclasses", "");
        let other = classes
            .iter()
            .find(|c| c["globalDefault"] == true && (creates || c["metadata"]["name"] != name));
        match other {
            None => Ok(()),
            Some(other) => {
                let other = other["metadata"]["name"].as_str().unwrap_or_default();
                let why = format!(
                    "PriorityClass {other} is already marked as default. Only one default can exist"
                );
                Err(forbidden(attributes, &why))
            }
        }
    }
}

/// Of several defaults the one with the least priority counts.
fn default_class(api: &Api) -> Option<Value> {
    let classes = objects(api, SCHEDULING, "priorityclasses", "").into_iter();
    classes
        .filter(|class| class["globalDefault"] == true)
        .min_by_key(|class| class["value"].as_i64().unwrap_or(0))
}

/// Pods stay for a while on a node that stops answering, unless they say otherwise.
pub struct DefaultTolerationSeconds {
    pub seconds: i64,
}

impl Default for DefaultTolerationSeconds {
    fn default() -> Self {
        Self { seconds: 300 }
    }
}

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn mutate(&self, _: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if !attributes.is("", "pods")
            || !matches!(attributes.operation, Operation::Create | Operation::Update)
        {
            return Ok(());
        }
        let spec = &mut attributes.object["spec"];
        if !spec.is_object() {
            return Ok(());
        }
        for key in [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable",
        ] {
            let tolerations = spec["tolerations"].as_array().into_iter().flatten();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let tolerated = tolerations.into_iter().any(|t| {
                let (own, effect) = (text(&t["key"]), text(&t["effect"]));
                (own == key || own.is_empty()) && (effect == "NoExecute" || effect.is_empty())
            });
            if tolerated {
                continue;
            }
            if !spec["tolerations"].is_array() {
                spec["tolerations"] = json!([]);
            }
            if let Some(tolerations) = spec["tolerations"].as_array_mut() {
                tolerations.push(json!({
                    "key": key, "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": self.seconds,
                }));
            }
        }
        Ok(())
    }
}

/// A pod's runtime class says what running it costs and where it may run.
pub struct RuntimeClass;

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        let Some(class) = class_of(api, attributes).await? else {
            return Ok(());
        };
        let fixed = &class["overhead"]["podFixed"];
        let own = &attributes.object["spec"]["overhead"];
        if !class["overhead"].is_null() && has_items(own) && !same_amounts(fixed, own) {
            return Err(forbidden(attributes, OVERHEAD_DIFFERS));
        }
        if fixed.is_object() {
            attributes.object["spec"]["overhead"] = fixed.clone();
        }
        let conflict = schedule(&mut attributes.object["spec"], &class["scheduling"]);
        match conflict {
            Some(why) => Err(forbidden(attributes, &why)),
            None => Ok(()),
        }
    }

    async fn validate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        let class = class_of(api, attributes).await?.unwrap_or(Value::Null);
        if !attributes.is("", "pods") || attributes.operation != Operation::Create {
            return Ok(());
        }
        let own = &attributes.object["spec"]["overhead"];
        if class["overhead"].is_null() {
            return match has_items(own) {
                true => Err(forbidden(attributes, OVERHEAD_WITHOUT_CLASS)),
                false => Ok(()),
            };
        }
        match same_amounts(&class["overhead"]["podFixed"], own) {
            true => Ok(()),
            false => Err(forbidden(attributes, OVERHEAD_DIFFERS)),
        }
    }
}

const OVERHEAD_DIFFERS: &str =
    "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
const OVERHEAD_WITHOUT_CLASS: &str =
    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

/// Of a pod that is being made; `None` if it names none.
async fn class_of(api: &Api, attributes: &Attributes<'_>) -> Result<Option<Value>> {
    if !attributes.is("", "pods") || attributes.operation != Operation::Create {
        return Ok(None);
    }
    let Some(name) = attributes.object["spec"]["runtimeClassName"].as_str() else {
        return Ok(None);
    };
    match object(api, "node.k8s.io", "runtimeclasses", "", name).await? {
        Some(class) => Ok(Some(class)),
        None => {
            let why = format!("pod rejected: RuntimeClass {name:?} not found");
            Err(forbidden(attributes, &why))
        }
    }
}

fn has_items(list: &Value) -> bool {
    list.as_object().is_some_and(|list| !list.is_empty())
}

/// Quantities by what they are, not by how they are written.
fn same_amounts(one: &Value, other: &Value) -> bool {
    let none = Map::new();
    let (one, other) = (
        one.as_object().unwrap_or(&none),
        other.as_object().unwrap_or(&none),
    );
    let amount = |value: &Value| value.as_str().and_then(Amount::parse);
    one.len() == other.len()
        && one.iter().all(|(name, value)| {
            let other = other.get(name).and_then(amount);
            other.is_some() && amount(value) == other
        })
}

/// Adds what the class says about nodes to the pod's spec; answers what the two disagree on.
fn schedule(spec: &mut Value, scheduling: &Value) -> Option<String> {
    let selector = scheduling["nodeSelector"].as_object();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for (key, value) in selector.into_iter().flatten() {
        let own = &spec["nodeSelector"][key.as_str()];
        if !own.is_null() && own != value {
            return Some(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(own)
            ));
        }
    }
    for (key, value) in selector.into_iter().flatten() {
        spec["nodeSelector"][key.as_str()] = value.clone();
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let added = list(&scheduling["tolerations"]);
    if !added.is_empty() {
        let merged = merge_tolerations(list(&spec["tolerations"]), added);
        spec["tolerations"] = merged.into();
    }
    None
}

/// Of two tolerations of which one tolerates all that the other does, that one stays (upstream
/// `pkg/util/tolerations`).
fn merge_tolerations(own: Vec<Value>, added: Vec<Value>) -> Vec<Value> {
    let all: Vec<Value> = own.into_iter().chain(added).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (i, one) in all.iter().enumerate() {
        let before = merged.iter().any(|other| is_superset(other, one));
        let after = all[i + 1..]
            .iter()
            .any(|other| other != one && is_superset(other, one));
        if !before && !after {
            merged.push(one.clone());
        }
    }
    merged
}

fn is_superset(wide: &Value, narrow: &Value) -> bool {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    if wide == narrow {
        return true;
    }
    let (key, effect) = (text(wide, "key"), text(wide, "effect"));
    let exists = text(wide, "operator") == "Exists";
    // An empty key with Exists tolerates everything.
    if key != text(narrow, "key") && !(key.is_empty() && exists) {
        return false;
    }
    if effect != text(narrow, "effect") && !effect.is_empty() {
        return false;
    }
    if effect == "NoExecute"
        && let Some(seconds) = wide["tolerationSeconds"].as_i64()
        && narrow["tolerationSeconds"]
            .as_i64()
            .is_none_or(|narrow| seconds < narrow)
    {
        return false;
    }
    match text(wide, "operator").as_str() {
        "" | "Equal" => {
            matches!(text(narrow, "operator").as_str(), "" | "Equal")
                && text(wide, "value") == text(narrow, "value")
        }
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_schedules_its_pods() {
        let scheduling = json!({
            "nodeSelector": {"runtime": "vm"},
            "tolerations": [
                {"key": "vm", "operator": "Exists"},
                {"key": "a", "value": "b", "effect": "NoSchedule"},
            ],
        });
        let mut spec = json!({"tolerations": [
            {"key": "vm", "operator": "Equal", "value": "x", "effect": "NoSchedule"},
            {"key": "a", "operator": "Exists"},
        ]});
        assert_eq!(schedule(&mut spec, &scheduling), None);
        assert_eq!(
            spec,
            json!({
                "nodeSelector": {"runtime": "vm"},
                "tolerations": [
                    {"key": "a", "operator": "Exists"},
                    {"key": "vm", "operator": "Exists"},
                ],
            })
        );
        let mut spec = json!({"nodeSelector": {"runtime": "runc"}});
        assert_eq!(
            schedule(&mut spec, &scheduling).as_deref(),
            Some(
                "conflict: runtimeClass.scheduling.nodeSelector[runtime] = vm; pod.spec.nodeSelector[runtime] = runc"
            )
        );
    }

    #[test]
    fn overheads_are_compared_as_quantities() {
        assert!(same_amounts(
            &json!({"cpu": "0.5"}),
            &json!({"cpu": "500m"})
        ));
        assert!(!same_amounts(&json!({"cpu": "1"}), &json!({"memory": "1"})));
        assert!(!same_amounts(&json!({"cpu": "1"}), &json!({})));
    }
}
