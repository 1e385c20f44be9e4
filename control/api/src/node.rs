//! Which pods a node takes: taints and tolerations, node selectors and affinity.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeCondition, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint,
    Toleration,
};

use crate::zero::{List, Text};

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.text();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.text();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.text() {
        "" | "Equal" => toleration.value.text() == taint.value.text(),
        "Exists" => true,
        _ => false,
    }
}

pub fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations
        .iter()
        .any(|toleration| tolerates(toleration, taint))
}

/// `nodeSelector` and the required part of the node affinity.
pub fn matches_required_affinity(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| label(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    selected && required.is_none_or(|selector| matches_selector(selector, node))
}

/// One of the terms must match.
pub fn matches_selector(selector: &NodeSelector, node: &Node) -> bool {
    selector
        .node_selector_terms
        .iter()
        .any(|term| matches_term(term, node))
}

/// An empty term matches nothing.
pub fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.items();
    let fields = term.match_fields.items();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    expressions.iter().all(|requirement| {
        matches_requirement(
            requirement,
            labels.get(&requirement.key).map(String::as_str),
        )
    }) && fields.iter().all(|requirement| {
        let name = (requirement.key == "metadata.name").then(|| node.metadata.name.text());
        matches_requirement(requirement, name)
    })
}

pub fn matches_requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.items();
    let listed = |value: &str| values.iter().any(|one| one == value);
    let number = |text: &str| text.parse::<i64>().ok();
    let limit = values.first().and_then(|limit| number(limit));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value
            .and_then(number)
            .zip(limit)
            .is_some_and(|(value, limit)| value > limit),
        "Lt" => value
            .and_then(number)
            .zip(limit)
            .is_some_and(|(value, limit)| value < limit),
        _ => false,
    }
}

pub fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .items()
        .iter()
        .find(|condition| condition.type_ == type_)
}

pub fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|condition| condition.status == "True")
}

/// The first address of a type: `InternalIP`, `ExternalIP`, `Hostname`, …
pub fn address<'a>(node: &'a Node, type_: &str) -> Option<&'a str> {
    let addresses = node.status.as_ref()?.addresses.items();
    addresses
        .iter()
        .find(|address| address.type_ == type_)
        .map(|address| address.address.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(toleration: serde_json::Value, tolerated: bool) {
        let taint = Taint {
            key: "a".into(),
            value: Some("b".into()),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        let toleration: Toleration = serde_json::from_value(toleration).expect("a toleration");
        assert_eq!(tolerates(&toleration, &taint), tolerated, "{toleration:?}");
    }

    #[test]
    fn tolerations() {
        check(json!({"operator": "Exists"}), true);
        check(json!({"key": "a", "operator": "Exists"}), true);
        check(json!({"key": "a", "value": "b"}), true);
        check(
            json!({"key": "a", "operator": "Equal", "value": "c"}),
            false,
        );
        check(json!({"key": "x", "operator": "Exists"}), false);
        check(
            json!({"key": "a", "operator": "Exists", "effect": "NoExecute"}),
            false,
        );
    }

    #[test]
    fn terms() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"zone": "z", "cpus": "8"}}
        }))
        .expect("a node");
        let term = |term: serde_json::Value| {
            matches_term(&serde_json::from_value(term).expect("a term"), &node)
        };
        assert!(!term(json!({})));
        assert!(term(
            json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]})
        ));
        assert!(term(
            json!({"matchExpressions": [{"key": "cpus", "operator": "Gt", "values": ["4"]}]})
        ));
        assert!(!term(
            json!({"matchExpressions": [{"key": "zone", "operator": "Gt", "values": ["4"]}]})
        ));
        assert!(term(
            json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]})
        ));
        assert!(term(
            json!({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["z"]}]})
        ));
    }
}
