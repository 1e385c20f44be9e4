//! Selectors and affinity terms of pods and volumes, compiled once so that matching a node costs no parsing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::{
    api::core::v1::{
        Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm,
        PodSpec, Taint, Toleration, TopologySpreadConstraint, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::core::{Selector, SelectorExt};

use crate::node::NodeInfo;

pub type Labels = BTreeMap<String, String>;

/// A label selector. `None` inside selects nothing: the selector was absent or cannot be read.
#[derive(Clone, Debug, Default)]
pub struct LabelMatch(Option<Selector>);

impl LabelMatch {
    pub fn new(selector: Option<&LabelSelector>) -> Self {
        Self(selector.and_then(|selector| selector.clone().try_into().ok()))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.0
            .as_ref()
            .is_some_and(|selector| selector.matches(labels))
    }

    fn require(&mut self, key: &str, value: &str) {
        if let Some(selector) = &mut self.0 {
            selector.extend(kube::core::Expression::In(
                key.into(),
                [value.to_owned()].into(),
            ));
        }
    }
}

/// One requirement on a node's label or field.
#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
    /// An unknown operator or an unreadable number: matches nothing.
    Never,
}

impl Requirement {
    fn new(requirement: &NodeSelectorRequirement) -> Self {
        let values = requirement.values.clone().unwrap_or_default();
        let number = values.first().and_then(|value| value.parse().ok());
        let test = match (requirement.operator.as_str(), number) {
            ("In", _) => Test::In(values),
            ("NotIn", _) => Test::NotIn(values),
            ("Exists", _) => Test::Exists,
            ("DoesNotExist", _) => Test::DoesNotExist,
            ("Gt", Some(number)) => Test::Gt(number),
            ("Lt", Some(number)) => Test::Lt(number),
            _ => Test::Never,
        };
        Self {
            key: requirement.key.clone(),
            test,
        }
    }

    fn matches(&self, value: Option<&String>) -> bool {
        match (&self.test, value) {
            (Test::In(values), Some(value)) => values.contains(value),
            (Test::NotIn(values), Some(value)) => !values.contains(value),
            (Test::Exists, Some(_)) | (Test::NotIn(_) | Test::DoesNotExist, None) => true,
            (Test::Gt(bound), Some(value)) => {
                value.parse::<i64>().is_ok_and(|number| number > *bound)
            }
            (Test::Lt(bound), Some(value)) => {
                value.parse::<i64>().is_ok_and(|number| number < *bound)
            }
            _ => false,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    names: Vec<Requirement>,
}

impl NodeTerm {
    pub fn new(term: &NodeSelectorTerm) -> Self {
        let fields = term.match_fields.iter().flatten();
        Self {
            labels: term
                .match_expressions
                .iter()
                .flatten()
                .map(Requirement::new)
                .collect(),
            names: fields
                .map(|field| {
                    let mut requirement = Requirement::new(field);
                    if field.key != "metadata.name" {
                        requirement.test = Test::Never;
                    }
                    requirement
                })
                .collect(),
        }
    }

    /// An empty term matches no node, as upstream.
    pub fn matches(&self, name: &String, labels: &Labels) -> bool {
        !(self.labels.is_empty() && self.names.is_empty())
            && self
                .labels
                .iter()
                .all(|requirement| requirement.matches(labels.get(&requirement.key)))
            && self
                .names
                .iter()
                .all(|requirement| requirement.matches(Some(name)))
    }
}

/// `nodeSelector` and required node affinity, or the node affinity of a volume: any of the terms.
#[derive(Clone, Debug, Default)]
pub struct NodeMatch {
    equal: Vec<(String, String)>,
    any_of: Option<Vec<NodeTerm>>,
}

impl NodeMatch {
    pub fn of_pod(spec: &PodSpec) -> Self {
        let required = spec
            .affinity
            .as_ref()
            .and_then(|affinity| affinity.node_affinity.as_ref())
            .and_then(|affinity| {
                affinity
                    .required_during_scheduling_ignored_during_execution
                    .as_ref()
            });
        Self {
            equal: spec
                .node_selector
                .iter()
                .flatten()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            any_of: required.map(terms),
        }
    }

    pub fn of_selector(selector: &NodeSelector) -> Self {
        Self {
            equal: Vec::new(),
            any_of: Some(terms(selector)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.equal.is_empty() && self.any_of.is_none()
    }

    pub fn matches(&self, name: &String, labels: &Labels) -> bool {
        self.equal
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .any_of
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|term| term.matches(name, labels)))
    }
}

fn terms(selector: &NodeSelector) -> Vec<NodeTerm> {
    selector
        .node_selector_terms
        .iter()
        .map(NodeTerm::new)
        .collect()
}

/// Node affinity that is preferred, with weights.
pub fn preferred_nodes(affinity: Option<&Affinity>) -> Vec<(i64, NodeTerm)> {
    affinity
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .preferred_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .into_iter()
        .flatten()
        .map(|term| (i64::from(term.weight), NodeTerm::new(&term.preference)))
        .collect()
}

/// A pod (anti-)affinity term.
#[derive(Clone, Debug)]
pub struct PodTerm {
    pub topology_key: String,
    selector: LabelMatch,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelMatch>,
}

impl PodTerm {
    pub fn new(term: &PodAffinityTerm, own_namespace: &str) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(own_namespace.to_owned());
        }
        Self {
            topology_key: term.topology_key.clone(),
            selector: LabelMatch::new(term.label_selector.as_ref()),
            namespaces,
            namespace_selector: term
                .namespace_selector
                .as_ref()
                .map(|selector| LabelMatch::new(Some(selector))),
        }
    }

    pub fn matches(
        &self,
        namespace: &str,
        labels: &Labels,
        namespaces: &HashMap<String, Labels>,
    ) -> bool {
        let in_namespace = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                static NONE: Labels = Labels::new();
                selector.matches(namespaces.get(namespace).unwrap_or(&NONE))
            });
        in_namespace && self.selector.matches(labels)
    }
}

/// The pod affinity of one pod.
#[derive(Clone, Debug, Default)]
pub struct PodTerms {
    pub required: Vec<PodTerm>,
    pub required_anti: Vec<PodTerm>,
    /// Weights are negative for anti-affinity.
    pub preferred: Vec<(i64, PodTerm)>,
}

impl PodTerms {
    pub fn new(affinity: Option<&Affinity>, namespace: &str) -> Self {
        let mut terms = Self::default();
        let Some(affinity) = affinity else {
            return terms;
        };
        let required = |part: Option<&Vec<PodAffinityTerm>>| -> Vec<PodTerm> {
            let part = part.into_iter().flatten();
            part.map(|term| PodTerm::new(term, namespace)).collect()
        };
        let mut prefer = |part: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| {
            terms
                .preferred
                .extend(part.into_iter().flatten().map(|term| {
                    let weight = sign * i64::from(term.weight);
                    (weight, PodTerm::new(&term.pod_affinity_term, namespace))
                }));
        };
        if let Some(part) = &affinity.pod_affinity {
            prefer(
                part.preferred_during_scheduling_ignored_during_execution
                    .as_ref(),
                1,
            );
            terms.required = required(
                part.required_during_scheduling_ignored_during_execution
                    .as_ref(),
            );
        }
        if let Some(part) = &affinity.pod_anti_affinity {
            prefer(
                part.preferred_during_scheduling_ignored_during_execution
                    .as_ref(),
                -1,
            );
            terms.required_anti = required(
                part.required_during_scheduling_ignored_during_execution
                    .as_ref(),
            );
        }
        terms
    }
}

/// A topology spread constraint.
#[derive(Clone, Debug)]
pub struct Spread {
    pub topology_key: String,
    pub max_skew: i64,
    pub min_domains: i64,
    pub hard: bool,
    pub selector: LabelMatch,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

impl Spread {
    pub fn new(constraint: &TopologySpreadConstraint, pod_labels: &Labels) -> Self {
        let mut selector = LabelMatch::new(constraint.label_selector.as_ref());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = pod_labels.get(key) {
                selector.require(key, value);
            }
        }
        Self {
            topology_key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            selector,
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    if toleration
        .effect
        .as_deref()
        .is_some_and(|effect| !effect.is_empty() && effect != taint.effect)
    {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let value = toleration.value.as_deref().unwrap_or_default();
    let taint_value = taint.value.as_deref().unwrap_or_default();
    match toleration.operator.as_deref() {
        None | Some("" | "Equal") => !key.is_empty() && value == taint_value,
        Some("Exists") => true,
        // KEP-5471, taints with numbers.
        Some(operator @ ("Gt" | "Lt")) => {
            match (value.parse::<i64>(), taint_value.parse::<i64>()) {
                (Ok(bound), Ok(number)) => {
                    (operator == "Gt" && number > bound) || (operator == "Lt" && number < bound)
                }
                _ => false,
            }
        }
        Some(_) => false,
    }
}

/// The first taint that keeps a pod off the node.
pub fn untolerated<'a>(node: &'a NodeInfo, tolerations: &[Toleration]) -> Option<&'a Taint> {
    node.taints
        .iter()
        .filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute")
        .find(|taint| {
            !tolerations
                .iter()
                .any(|toleration| tolerates(toleration, taint))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: effect.into(),
            time_added: None,
        }
    }

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Toleration {
            key: some(key),
            operator: some(operator),
            value: some(value),
            effect: some(effect),
            toleration_seconds: None,
        }
    }

    #[test]
    fn tolerations() {
        let check = |toleration: Toleration, taint: Taint, expected| {
            assert_eq!(
                tolerates(&toleration, &taint),
                expected,
                "{toleration:?} {taint:?}"
            );
        };
        check(
            toleration("a", "", "1", ""),
            taint("a", "1", "NoSchedule"),
            true,
        );
        check(
            toleration("a", "", "2", ""),
            taint("a", "1", "NoSchedule"),
            false,
        );
        check(
            toleration("a", "Exists", "", "NoExecute"),
            taint("a", "1", "NoSchedule"),
            false,
        );
        check(
            toleration("", "Exists", "", ""),
            taint("a", "1", "NoExecute"),
            true,
        );
        check(
            toleration("", "", "", ""),
            taint("a", "", "NoExecute"),
            false,
        );
    }

    #[test]
    fn node_terms() {
        let labels: Labels = [
            ("zone".to_owned(), "a".to_owned()),
            ("cores".to_owned(), "8".to_owned()),
        ]
        .into();
        let check = |key: &str, operator: &str, values: &[&str], expected| {
            let term = NodeTerm::new(&NodeSelectorTerm {
                match_expressions: Some(vec![NodeSelectorRequirement {
                    key: key.into(),
                    operator: operator.into(),
                    values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
                }]),
                match_fields: None,
            });
            assert_eq!(
                term.matches(&"n1".to_owned(), &labels),
                expected,
                "{key} {operator} {values:?}"
            );
        };
        check("zone", "In", &["a", "b"], true);
        check("zone", "NotIn", &["a"], false);
        check("rack", "NotIn", &["a"], true);
        check("rack", "Exists", &[], false);
        check("rack", "DoesNotExist", &[], true);
        check("cores", "Gt", &["4"], true);
        check("cores", "Lt", &["8"], false);
        check("zone", "Gt", &["4"], false);
        check("zone", "Sounds", &["a"], false);
        assert!(!NodeTerm::default().matches(&"n1".to_owned(), &labels));
    }
}
