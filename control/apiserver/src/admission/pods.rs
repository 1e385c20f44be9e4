//! Priority, DefaultTolerationSeconds, RuntimeClass.

use async_trait::async_trait;
use serde_json::{Value, json};

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
        let classes = objects(api, SCHEDULING, "priorityclasses", "");
        let other = classes
            .iter()
            .find(|c| c["globalDefault"] == true && c["metadata"]["name"] != name);
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
        if !attributes.is("", "pods") || attributes.operation != Operation::Create {
            return Ok(());
        }
        let spec = &attributes.object["spec"];
        let overhead = spec["overhead"].as_object().is_some_and(|o| !o.is_empty());
        let Some(name) = spec["runtimeClassName"].as_str().filter(|n| !n.is_empty()) else {
            if overhead {
                return Err(forbidden(
                    attributes,
                    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
                ));
            }
            return Ok(());
        };
        let Some(class) = object(api, "node.k8s.io", "runtimeclasses", "", name).await? else {
            let why = format!("pod rejected: RuntimeClass {name:?} not found");
            return Err(forbidden(attributes, &why));
        };
        let fixed = &class["overhead"]["podFixed"];
        if overhead && *fixed != spec["overhead"] {
            return Err(forbidden(
                attributes,
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ));
        }
        let selector = class["scheduling"]["nodeSelector"].as_object();
        for (key, value) in selector.into_iter().flatten() {
            let own = &spec["nodeSelector"][key.as_str()];
            if !own.is_null() && own != value {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let why = format!(
                    "pod rejected: conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; \
                     pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(own)
                );
                return Err(forbidden(attributes, &why));
            }
        }
        let spec = &mut attributes.object["spec"];
        if fixed.is_object() {
            spec["overhead"] = fixed.clone();
        }
        for (key, value) in selector.into_iter().flatten() {
            spec["nodeSelector"][key.as_str()] = value.clone();
        }
        for toleration in class["scheduling"]["tolerations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            if !spec["tolerations"].is_array() {
                spec["tolerations"] = json!([]);
            }
            if let Some(own) = spec["tolerations"].as_array_mut()
                && !own.contains(toleration)
            {
                own.push(toleration.clone());
            }
        }
        Ok(())
    }
}
