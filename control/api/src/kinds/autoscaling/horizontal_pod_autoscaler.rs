use k8s_openapi::{
    api::autoscaling::v2::{
        CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler,
        MetricIdentifier, MetricSpec, MetricTarget, ResourceMetricSource,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{
    field::{Errors, Path},
    kinds::{Kind, Rules},
    quantity::Amount,
    validation::{
        labels::{SelectorRules, validate_selector},
        numbers::validate_non_negative,
        resources::validate_container_resource_name,
        text,
    },
    zero::{List, Text, set},
};

const METRIC_TYPES: [&str; 5] = [
    "ContainerResource",
    "External",
    "Object",
    "Pods",
    "Resource",
];

impl Kind for HorizontalPodAutoscaler {
    const RULES: Rules = Rules::namespaced().status();

    fn set_defaults(&mut self) {
        let spec = &mut self.spec;
        set(&mut spec.min_replicas, 1);
        if spec.metrics.items().is_empty() {
            spec.metrics = Some(vec![cpu_metric(80)]);
        }
        if let Some(behavior) = &mut spec.behavior {
            let up = behavior.scale_up.get_or_insert_default();
            set(&mut up.stabilization_window_seconds, 0);
            set_rule_defaults(up, &[("Pods", 4), ("Percent", 100)]);
            let down = behavior.scale_down.get_or_insert_default();
            set_rule_defaults(down, &[("Percent", 100)]);
        }
        self.status.get_or_insert_default();
    }

    fn prepare_create(&mut self) {
        self.status = Some(Default::default());
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = &self.spec;
        let path = Path::new("spec");
        let scales_to_zero = spec
            .metrics
            .items()
            .iter()
            .any(|metric| matches!(metric.type_.as_str(), "Object" | "External"));
        let minimum = spec.min_replicas.unwrap_or(1);
        if minimum < 1 {
            let at = path.child("minReplicas");
            errors.invalid(&at, minimum, "must be greater than or equal to 1");
        }
        if spec.max_replicas < 1 {
            errors.required(&path.child("maxReplicas"), "must be set and greater than 0");
        }
        if spec.max_replicas < minimum {
            errors.invalid(
                &path.child("maxReplicas"),
                spec.max_replicas,
                "must be greater than or equal to `minReplicas`",
            );
        }
        validate_reference(
            &spec.scale_target_ref,
            true,
            &path.child("scaleTargetRef"),
            errors,
        );
        let at = path.child("metrics");
        for (index, metric) in spec.metrics.items().iter().enumerate() {
            validate_metric(metric, &at.index(index), errors);
        }
        if minimum == 0 && !scales_to_zero {
            errors.forbidden(
                &at,
                "must specify at least one Object or External metric to support scaling to zero replicas",
            );
        }
        if let Some(behavior) = &spec.behavior {
            let at = path.child("behavior");
            for (field, rules) in [
                ("scaleUp", &behavior.scale_up),
                ("scaleDown", &behavior.scale_down),
            ] {
                if let Some(rules) = rules {
                    validate_rules(rules, &at.child(field), errors);
                }
            }
        }
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        let status = self.status.clone().unwrap_or_default();
        for (field, count) in [
            ("currentReplicas", status.current_replicas.unwrap_or(0)),
            ("desiredReplicas", status.desired_replicas),
        ] {
            validate_non_negative(count.into(), &Path::new("status").child(field), errors);
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::horizontal_pod_autoscaler()
    }
}

/// The metric that autoscaling/v1 is all about.
pub(crate) fn cpu_metric(percent: i32) -> MetricSpec {
    MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource {
            name: "cpu".to_owned(),
            target: MetricTarget {
                type_: "Utilization".to_owned(),
                average_utilization: Some(percent),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    }
}

fn set_rule_defaults(rules: &mut HPAScalingRules, policies: &[(&str, i32)]) {
    set(&mut rules.select_policy, "Max".to_owned());
    if rules.policies.is_none() {
        let policy = |&(type_, value): &(&str, i32)| HPAScalingPolicy {
            type_: type_.to_owned(),
            value,
            period_seconds: 15,
        };
        rules.policies = Some(policies.iter().map(policy).collect());
    }
}

fn validate_reference(
    target: &CrossVersionObjectReference,
    is_scale_target: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    for (field, value) in [("kind", &target.kind), ("name", &target.name)] {
        let at = path.child(field);
        if value.is_empty() {
            errors.required(&at, "");
        } else {
            errors.invalid_each(&at, value, text::path_segment(value));
        }
    }
    if !is_scale_target {
        return;
    }
    let at = path.child("apiVersion");
    let version = target.api_version.text();
    match version.split('/').count() {
        1 if target.kind == "ReplicationController" && version == "v1" => {}
        2 if version.split('/').all(|part| !part.is_empty()) => {}
        2 if !version.starts_with('/') => {}
        0..=2 => errors.invalid(&at, version, "apiVersion must specify API group"),
        _ => errors.invalid(
            &at,
            version,
            format!("unexpected GroupVersion string: {version}"),
        ),
    }
}

fn validate_metric(metric: &MetricSpec, path: &Path<'_>, errors: &mut Errors) {
    let type_ = metric.type_.as_str();
    let at = path.child("type");
    if type_.is_empty() {
        errors.required(&at, "must specify a metric source type");
    }
    let known = METRIC_TYPES.contains(&type_);
    if !known {
        errors.not_supported(&at, type_, &METRIC_TYPES);
    }
    // (field, type, there), in the order in which upstream looks.
    let sources = [
        ("object", "Object", metric.object.is_some()),
        ("external", "External", metric.external.is_some()),
        ("pods", "Pods", metric.pods.is_some()),
        ("resource", "Resource", metric.resource.is_some()),
        (
            "containerResource",
            "ContainerResource",
            metric.container_resource.is_some(),
        ),
    ];
    let present: Vec<&str> = sources
        .iter()
        .filter(|(_, _, there)| *there)
        .map(|(field, _, _)| *field)
        .collect();
    // Only the first is looked into.
    if let Some(first) = present.first() {
        validate_source(metric, first, path, errors);
    }
    match sources.iter().find(|(_, of, _)| *of == type_) {
        Some((field, _, false)) => errors.required(
            &path.child(field),
            "must populate information for the given metric source",
        ),
        Some(_) => {}
        None => errors.not_supported(&at, type_, &METRIC_TYPES),
    }
    if present.len() == 1 {
        return;
    }
    for (field, of, there) in sources {
        if there && of != type_ {
            errors.forbidden(
                &path.child(field),
                "must populate the given metric source only",
            );
        }
    }
}

fn validate_source(metric: &MetricSpec, field: &str, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child(field);
    let target_at = at.child("target");
    if let ("object", Some(object)) = (field, &metric.object) {
        validate_reference(
            &object.described_object,
            false,
            &at.child("describedObject"),
            errors,
        );
        validate_identifier(&object.metric, &at.child("metric"), errors);
        validate_target(&object.target, &target_at, errors);
        let detail = "must set either a target value or averageValue";
        require_either(&object.target, detail, &target_at, errors);
    }
    if let ("external", Some(external)) = (field, &metric.external) {
        validate_identifier(&external.metric, &at.child("metric"), errors);
        validate_target(&external.target, &target_at, errors);
        let detail = "must set either a target value for metric or a per-pod target";
        require_either(&external.target, detail, &target_at, errors);
        if external.target.value.is_some() && external.target.average_value.is_some() {
            errors.forbidden(
                &target_at.child("value"),
                "may not set both a target value for metric and a per-pod target",
            );
        }
    }
    if let ("pods", Some(pods)) = (field, &metric.pods) {
        validate_identifier(&pods.metric, &at.child("metric"), errors);
        validate_target(&pods.target, &target_at, errors);
        if pods.target.average_value.is_none() {
            errors.required(
                &target_at.child("averageValue"),
                "must specify a positive target averageValue",
            );
        }
    }
    if let ("containerResource", Some(container)) = (field, &metric.container_resource) {
        let name = &at.child("name");
        if container.name.is_empty() {
            errors.required(name, "must specify a resource name");
        } else {
            validate_container_resource_name(&container.name, name, errors);
        }
        let (name, at) = (&container.container, &at.child("container"));
        if name.is_empty() {
            errors.required(at, "must specify a container");
        } else {
            errors.invalid_each(at, name, text::dns1123_label(name));
        }
        validate_resource_target(&container.target, &target_at, errors);
    }
    if let ("resource", Some(resource)) = (field, &metric.resource) {
        if resource.name.is_empty() {
            errors.required(&at.child("name"), "must specify a resource name");
        }
        validate_resource_target(&resource.target, &target_at, errors);
    }
}

fn amount(quantity: Option<&Quantity>) -> Option<Amount> {
    quantity.map(Amount::of)
}

fn require_either(target: &MetricTarget, detail: &str, path: &Path<'_>, errors: &mut Errors) {
    if target.value.is_none() && target.average_value.is_none() {
        errors.required(&path.child("averageValue"), detail);
    }
}

fn validate_resource_target(target: &MetricTarget, path: &Path<'_>, errors: &mut Errors) {
    validate_target(target, path, errors);
    if target.average_utilization.is_none() && target.average_value.is_none() {
        errors.required(
            &path.child("averageUtilization"),
            "must set either a target raw value or a target utilization",
        );
    }
    if target.average_utilization.is_some() && target.average_value.is_some() {
        errors.forbidden(
            &path.child("averageValue"),
            "may not set both a target raw value and a target utilization",
        );
    }
}

fn validate_target(target: &MetricTarget, path: &Path<'_>, errors: &mut Errors) {
    const TYPES: [&str; 3] = ["AverageValue", "Utilization", "Value"];
    let at = path.child("type");
    let type_ = target.type_.as_str();
    if type_.is_empty() {
        errors.required(&at, "must specify a metric target type");
    }
    if !TYPES.contains(&type_) {
        // Upstream names the three in this order.
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.invalid(&at, type_, detail);
    }
    let positive = |quantity: &Option<Quantity>| {
        amount(quantity.as_ref()).is_none_or(|value| value.is_positive())
    };
    let show = |quantity: &Option<Quantity>| {
        quantity
            .as_ref()
            .map(|quantity| quantity.0.clone())
            .unwrap_or_default()
    };
    if !positive(&target.value) {
        errors.invalid(
            &path.child("value"),
            show(&target.value),
            "must be positive",
        );
    }
    if !positive(&target.average_value) {
        errors.invalid(
            &path.child("averageValue"),
            show(&target.average_value),
            "must be positive",
        );
    }
    if let Some(percent) = target.average_utilization.filter(|percent| *percent < 1) {
        errors.invalid(
            &path.child("averageUtilization"),
            percent,
            "must be greater than 0",
        );
    }
}

fn validate_identifier(metric: &MetricIdentifier, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("name");
    if metric.name.is_empty() {
        errors.required(&at, "must specify a metric name");
    } else {
        errors.invalid_each(&at, &metric.name, text::path_segment(&metric.name));
    }
    if let Some(selector) = &metric.selector {
        let at = path.child("selector");
        validate_selector(Some(selector), SelectorRules::default(), &at, errors);
    }
}

fn validate_rules(rules: &HPAScalingRules, path: &Path<'_>, errors: &mut Errors) {
    const SELECT: [&str; 3] = ["Disabled", "Max", "Min"];
    let at = path.child("stabilizationWindowSeconds");
    if let Some(seconds) = rules.stabilization_window_seconds {
        if seconds < 0 {
            errors.invalid(&at, seconds, "must be greater than or equal to zero");
        }
        if seconds > 3600 {
            errors.invalid(&at, seconds, "must be less than or equal to 3600");
        }
    }
    if let Some(select) = rules
        .select_policy
        .as_deref()
        .filter(|select| !SELECT.contains(select))
    {
        errors.not_supported(&path.child("selectPolicy"), select, &SELECT);
    }
    let at = path.child("policies");
    if rules.policies.items().is_empty() {
        errors.required(&at, "must specify at least one Policy");
    }
    for (index, policy) in rules.policies.items().iter().enumerate() {
        validate_policy(policy, &at.index(index), errors);
    }
    if let Some(tolerance) = &rules.tolerance {
        crate::validation::resources::validate_non_negative(
            Amount::of(tolerance),
            &path.child("tolerance"),
            errors,
        );
    }
}

fn validate_policy(policy: &HPAScalingPolicy, path: &Path<'_>, errors: &mut Errors) {
    if !matches!(policy.type_.as_str(), "Percent" | "Pods") {
        errors.not_supported(
            &path.child("type"),
            policy.type_.as_str(),
            &["Percent", "Pods"],
        );
    }
    for (field, value) in [
        ("value", policy.value),
        ("periodSeconds", policy.period_seconds),
    ] {
        if value <= 0 {
            errors.invalid(&path.child(field), value, "must be greater than zero");
        }
    }
    if policy.period_seconds > 1800 {
        errors.invalid(
            &path.child("periodSeconds"),
            policy.period_seconds,
            "must be less than or equal to 1800",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(metric: Value, expected: &[&str]) {
        let metric = serde_json::from_value(metric).unwrap();
        let mut errors = Errors::default();
        validate_metric(&metric, &Path::new("m"), &mut errors);
        let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn metrics() {
        let either = "m.object.target.averageValue: Required value: must set either a target value or averageValue";
        check(
            json!({"type": "Object", "object": {
                "describedObject": {"kind": "K", "name": "n"},
                "metric": {"name": "m"},
                "target": {"type": ""},
            }}),
            &[
                "m.object.target.type: Required value: must specify a metric target type",
                "m.object.target.type: Invalid value: \"\": must be either Utilization, Value, or AverageValue",
                either,
            ],
        );
        check(
            json!({"type": "Pods", "pods": {
                "metric": {"name": "m"},
                "target": {"type": "AverageValue", "averageValue": "0"},
            }}),
            &["m.pods.target.averageValue: Invalid value: \"0\": must be positive"],
        );
        check(
            json!({"type": "ContainerResource", "containerResource": {
                "name": "x",
                "container": "a.b",
                "target": {"type": "Utilization", "averageUtilization": 1},
            }}),
            &[
                "m.containerResource.name: Invalid value: \"x\": must be a standard resource type or fully qualified",
                "m.containerResource.name: Invalid value: \"x\": must be a standard resource for containers",
                "m.containerResource.container: Invalid value: \"a.b\": must not contain dots",
            ],
        );
    }
}
