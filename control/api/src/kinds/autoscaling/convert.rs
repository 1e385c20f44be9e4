//! autoscaling/v1 knows one metric, CPU utilisation; what else an autoscaler says stands in annotations there.

use serde_json::{Map, Value, json};

pub(crate) const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

pub(crate) const ANNOTATIONS: [&str; 4] = [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR];

pub(crate) fn to_v2(mut object: Value) -> Value {
    object["apiVersion"] = json!("autoscaling/v2");
    let mut metrics = list(take_annotation(&mut object, METRICS), metric_to_v2);
    let mut current = list(take_annotation(&mut object, CURRENT_METRICS), status_to_v2);
    let conditions = take_annotation(&mut object, CONDITIONS);
    let behavior = take_annotation(&mut object, BEHAVIOR);
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        if let Some(percent) = spec.remove("targetCPUUtilizationPercentage") {
            metrics.push(json!({
                "type": "Resource",
                "resource": {
                    "name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": percent},
                },
            }));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".to_owned(), Value::Array(metrics));
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".to_owned(), rename(behavior, lower_first));
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        if let Some(percent) = status.remove("currentCPUUtilizationPercentage") {
            let has_cpu = current
                .iter()
                .any(|metric| metric["resource"]["name"] == "cpu");
            if !has_cpu {
                current.push(json!({
                    "type": "Resource",
                    "resource": {"name": "cpu", "current": {"averageUtilization": percent}},
                }));
            }
        }
        let current = if current.is_empty() {
            Value::Null
        } else {
            Value::Array(current)
        };
        status.insert("currentMetrics".to_owned(), current);
        if let Some(conditions) = conditions {
            status.insert("conditions".to_owned(), conditions);
        }
        if status.get("currentReplicas") == Some(&json!(0)) {
            status.remove("currentReplicas");
        }
    }
    object
}

pub(crate) fn from_v2(mut object: Value) -> Value {
    object["apiVersion"] = json!("autoscaling/v1");
    let mut annotations = Vec::new();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        let mut others = Vec::new();
        for metric in taken_list(spec, "metrics") {
            let percent = &metric["resource"]["target"]["averageUtilization"];
            if metric["resource"]["name"] == "cpu" && !percent.is_null() {
                spec.insert("targetCPUUtilizationPercentage".to_owned(), percent.clone());
            } else {
                others.push(metric_to_v1(&metric));
            }
        }
        if !others.is_empty() {
            annotations.push((METRICS, Value::Array(others)));
        }
        if let Some(behavior) = spec.remove("behavior") {
            annotations.push((BEHAVIOR, internal_behavior(&behavior)));
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        let mut all = Vec::new();
        for metric in taken_list(status, "currentMetrics") {
            let percent = &metric["resource"]["current"]["averageUtilization"];
            if metric["resource"]["name"] == "cpu" && !percent.is_null() {
                status.insert(
                    "currentCPUUtilizationPercentage".to_owned(),
                    percent.clone(),
                );
            }
            all.push(status_to_v1(&metric));
        }
        if !all.is_empty() {
            annotations.push((CURRENT_METRICS, Value::Array(all)));
        }
        let conditions = status
            .remove("conditions")
            .filter(|list| list.as_array().is_some_and(|list| !list.is_empty()));
        if let Some(conditions) = conditions {
            annotations.push((CONDITIONS, conditions));
        }
        status.entry("currentReplicas").or_insert(json!(0));
        status.entry("desiredReplicas").or_insert(json!(0));
    }
    for (key, value) in annotations {
        object["metadata"]["annotations"][key] = json!(go_json(&value));
    }
    object
}

/// Fields in the order of upstream's structs; each pair of fields that share a struct stands here in its order.
const ORDER: [&str; 39] = [
    "type",
    "status",
    "lastTransitionTime",
    "reason",
    "message",
    "object",
    "pods",
    "resource",
    "containerResource",
    "external",
    "target",
    "metricName",
    "metricSelector",
    "kind",
    "name",
    "apiVersion",
    "targetValue",
    "targetAverageUtilization",
    "targetAverageValue",
    "currentValue",
    "currentAverageUtilization",
    "currentAverageValue",
    "selector",
    "averageValue",
    "container",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "ScaleUp",
    "ScaleDown",
    "StabilizationWindowSeconds",
    "SelectPolicy",
    "Policies",
    "Tolerance",
    "Type",
    "Value",
    "PeriodSeconds",
];

/// JSON as Go writes it. Labels are a map and stay sorted.
fn go_json(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut names: Vec<&String> = map.keys().collect();
            names.sort_by_key(|name| ORDER.iter().position(|field| field == name));
            let members = names.into_iter().map(|name| {
                let value = &map[name];
                let text = if name == "matchLabels" {
                    value.to_string()
                } else {
                    go_json(value)
                };
                format!("{}:{text}", json!(name))
            });
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_json).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}

fn take_annotation(object: &mut Value, key: &str) -> Option<Value> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let text = annotations.remove(key)?;
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn list(value: Option<Value>, convert: fn(&Value) -> Value) -> Vec<Value> {
    let items = value.as_ref().and_then(Value::as_array);
    items.map_or(Vec::new(), |items| items.iter().map(convert).collect())
}

fn taken_list(fields: &mut Map<String, Value>, name: &str) -> Vec<Value> {
    match fields.remove(name) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

/// An object of the fields that are there.
fn fields<'a>(all: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let there = all.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(
        there
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

fn source(metric: &Value) -> (&'static str, &Value) {
    let names = [
        "object",
        "pods",
        "resource",
        "containerResource",
        "external",
    ];
    let found = names.into_iter().find(|name| metric.get(name).is_some());
    found.map_or(("", &Value::Null), |name| (name, &metric[name]))
}

fn metric_to_v1(metric: &Value) -> Value {
    let (name, source) = source(metric);
    let target = &source["target"];
    let (value, average) = (target["value"].clone(), target["averageValue"].clone());
    let metric_name = source["metric"]["name"].clone();
    let selector = source["metric"]["selector"].clone();
    let body = match name {
        "object" => fields([
            ("target", source["describedObject"].clone()),
            ("metricName", metric_name),
            (
                "targetValue",
                if value.is_null() { json!("0") } else { value },
            ),
            ("selector", selector),
            ("averageValue", average),
        ]),
        "pods" => fields([
            ("metricName", metric_name),
            ("targetAverageValue", average),
            ("selector", selector),
        ]),
        "resource" | "containerResource" => fields([
            ("name", source["name"].clone()),
            (
                "targetAverageUtilization",
                target["averageUtilization"].clone(),
            ),
            ("targetAverageValue", average),
            ("container", source["container"].clone()),
        ]),
        _ => fields([
            ("metricName", metric_name),
            ("metricSelector", selector),
            ("targetValue", value),
            ("targetAverageValue", average),
        ]),
    };
    fields([("type", metric["type"].clone()), (name, body)])
}

fn metric_to_v2(metric: &Value) -> Value {
    let (name, source) = source(metric);
    let identifier = |selector: &str| {
        fields([
            ("name", source["metricName"].clone()),
            ("selector", source[selector].clone()),
        ])
    };
    let target = |value: &str, average: &str| {
        let utilization = source["targetAverageUtilization"].clone();
        let (value, average) = (source[value].clone(), source[average].clone());
        let type_ = if !utilization.is_null() {
            "Utilization"
        } else if !average.is_null() {
            "AverageValue"
        } else {
            "Value"
        };
        let value = if name == "object" && type_ == "AverageValue" {
            Value::Null
        } else {
            value
        };
        fields([
            ("type", json!(type_)),
            ("value", value),
            ("averageValue", average),
            ("averageUtilization", utilization),
        ])
    };
    let body = match name {
        "object" => fields([
            ("describedObject", source["target"].clone()),
            ("target", target("targetValue", "averageValue")),
            ("metric", identifier("selector")),
        ]),
        "pods" => fields([
            ("metric", identifier("selector")),
            ("target", target("targetValue", "targetAverageValue")),
        ]),
        "resource" | "containerResource" => fields([
            ("name", source["name"].clone()),
            ("target", target("targetValue", "targetAverageValue")),
            ("container", source["container"].clone()),
        ]),
        _ => fields([
            ("metric", identifier("metricSelector")),
            ("target", target("targetValue", "targetAverageValue")),
        ]),
    };
    fields([("type", metric["type"].clone()), (name, body)])
}

fn status_to_v1(metric: &Value) -> Value {
    let (name, source) = source(metric);
    let current = &source["current"];
    let (value, average) = (current["value"].clone(), current["averageValue"].clone());
    let or_zero = |value: Value| if value.is_null() { json!("0") } else { value };
    let metric_name = source["metric"]["name"].clone();
    let selector = source["metric"]["selector"].clone();
    let body = match name {
        "object" => fields([
            ("target", source["describedObject"].clone()),
            ("metricName", metric_name),
            ("currentValue", or_zero(value)),
            ("selector", selector),
            ("averageValue", average),
        ]),
        "pods" => fields([
            ("metricName", metric_name),
            ("currentAverageValue", or_zero(average)),
            ("selector", selector),
        ]),
        "resource" | "containerResource" => fields([
            ("name", source["name"].clone()),
            (
                "currentAverageUtilization",
                current["averageUtilization"].clone(),
            ),
            ("currentAverageValue", or_zero(average)),
            ("container", source["container"].clone()),
        ]),
        _ => fields([
            ("metricName", metric_name),
            ("metricSelector", selector),
            ("currentValue", or_zero(value)),
            ("currentAverageValue", average),
        ]),
    };
    fields([("type", metric["type"].clone()), (name, body)])
}

fn status_to_v2(metric: &Value) -> Value {
    let (name, source) = source(metric);
    let identifier = |selector: &str| {
        fields([
            ("name", source["metricName"].clone()),
            ("selector", source[selector].clone()),
        ])
    };
    let current = |average: &str| {
        fields([
            ("value", source["currentValue"].clone()),
            ("averageValue", source[average].clone()),
            (
                "averageUtilization",
                source["currentAverageUtilization"].clone(),
            ),
        ])
    };
    let body = match name {
        "object" => fields([
            ("metric", identifier("selector")),
            ("current", current("averageValue")),
            ("describedObject", source["target"].clone()),
        ]),
        "pods" => fields([
            ("metric", identifier("selector")),
            ("current", current("currentAverageValue")),
        ]),
        "resource" | "containerResource" => fields([
            ("name", source["name"].clone()),
            ("current", current("currentAverageValue")),
            ("container", source["container"].clone()),
        ]),
        _ => fields([
            ("metric", identifier("metricSelector")),
            ("current", current("currentAverageValue")),
        ]),
    };
    fields([("type", metric["type"].clone()), (name, body)])
}

/// The behavior annotation is upstream's internal type, written with Go's field names and all of its fields.
fn internal_behavior(behavior: &Value) -> Value {
    let rules = |rules: &Value| {
        if rules.is_null() {
            return Value::Null;
        }
        let policies = rules["policies"].as_array().map(|policies| {
            let policy = |policy: &Value| {
                json!({
                    "Type": policy["type"],
                    "Value": policy["value"],
                    "PeriodSeconds": policy["periodSeconds"],
                })
            };
            policies.iter().map(policy).collect::<Vec<_>>()
        });
        json!({
            "StabilizationWindowSeconds": rules["stabilizationWindowSeconds"],
            "SelectPolicy": rules["selectPolicy"],
            "Policies": policies,
            "Tolerance": rules["tolerance"],
        })
    };
    json!({
        "ScaleUp": rules(&behavior["scaleUp"]),
        "ScaleDown": rules(&behavior["scaleDown"]),
    })
}

fn lower_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or(String::new(), |first| {
        first.to_ascii_lowercase().to_string() + chars.as_str()
    })
}

/// Renames every field, and leaves out those that are null.
fn rename(value: Value, name: fn(&str) -> String) -> Value {
    match value {
        Value::Object(fields) => {
            let there = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                there
                    .map(|(key, value)| (name(&key), rename(value, name)))
                    .collect(),
            )
        }
        Value::Array(items) => {
            Value::Array(items.into_iter().map(|item| rename(item, name)).collect())
        }
        other => other,
    }
}
