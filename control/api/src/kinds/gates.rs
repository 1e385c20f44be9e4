//! Fields behind feature gates that are off: what `gates.txt` says is dropped from what clients write.

use std::{collections::HashMap, sync::LazyLock};

use serde_json::Value;

static FACTS: &str = include_str!("gates.txt");

/// Where each kind has the spec of a pod.
const PODS: [(&str, &str); 9] = [
    ("Pod", "spec."),
    ("PodTemplate", "template.spec."),
    ("ReplicationController", "spec.template.spec."),
    ("ReplicaSet", "spec.template.spec."),
    ("Deployment", "spec.template.spec."),
    ("DaemonSet", "spec.template.spec."),
    ("StatefulSet", "spec.template.spec."),
    ("Job", "spec.template.spec."),
    ("CronJob", "spec.jobTemplate.spec.template.spec."),
];

/// The fields of one gate in one kind.
#[derive(Default)]
pub(super) struct Gate(Vec<Vec<Step>>);

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Field {
        name: &'static str,
        /// It goes too, once it is empty.
        drop_empty: bool,
        /// It is meant only where it has this field.
        having: Option<&'static str>,
    },
    Items,
    Values,
}

fn steps(path: &'static str) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let name_end = part.find(['[', '{', '?', '(']).unwrap_or(part.len());
        let (name, marks) = part.split_at(name_end);
        steps.push(Step::Field {
            name,
            drop_empty: marks == "?",
            having: marks
                .strip_prefix('(')
                .and_then(|rest| rest.strip_suffix(')')),
        });
        match marks {
            "[]" => steps.push(Step::Items),
            "{}" => steps.push(Step::Values),
            _ => {}
        }
    }
    steps
}

type ByKind = HashMap<&'static str, Vec<Gate>>;

static GATES: LazyLock<ByKind> = LazyLock::new(|| {
    let mut by_kind = ByKind::new();
    // The kinds that have fields of the gate at hand.
    let mut begun: Vec<&str> = Vec::new();
    for line in FACTS.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if !line.starts_with(' ') {
            begun.clear();
            continue;
        }
        let mut words = line.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let paths: Vec<&'static str> = words.collect();
        let kinds: Vec<(&'static str, &'static str)> = match kind {
            "POD" => PODS.to_vec(),
            kind => vec![(kind, "")],
        };
        for (kind, prefix) in kinds {
            let gates = by_kind.entry(kind).or_default();
            if !begun.contains(&kind) {
                begun.push(kind);
                gates.push(Gate::default());
            }
            let Some(gate) = gates.last_mut() else {
                continue;
            };
            gate.0.extend(paths.iter().map(|path| {
                let prefix = prefix.split_terminator('.').flat_map(steps);
                prefix.chain(steps(path)).collect()
            }));
        }
    }
    by_kind
});

/// The gates with fields in a kind.
pub(super) fn of(kind: &str) -> &'static [Gate] {
    GATES.get(kind).map_or(&[], Vec::as_slice)
}

/// Drops the fields of gates that are off and that the stored object, if there is one, does not use.
pub(super) fn drop_disabled(gates: &[Gate], new: &mut Value, old: Option<&Value>) {
    for Gate(fields) in gates {
        let in_use = |object: &Value| fields.iter().any(|path| uses(object, path));
        if in_use(new) && !old.is_some_and(in_use) {
            for path in fields {
                drop_at(new, path);
            }
        }
    }
}

fn uses(value: &Value, path: &[Step]) -> bool {
    let Some((step, rest)) = path.split_first() else {
        return !value.is_null();
    };
    match step {
        Step::Field { name, .. } => value.get(name).is_some_and(|value| uses(value, rest)),
        Step::Items => {
            let mut items = value.as_array().into_iter().flatten();
            items.any(|item| uses(item, rest))
        }
        Step::Values => {
            let mut values = value.as_object().into_iter().flat_map(|map| map.values());
            values.any(|value| uses(value, rest))
        }
    }
}

fn drop_at(value: &mut Value, path: &[Step]) {
    let Some((step, rest)) = path.split_first() else {
        return;
    };
    match step {
        Step::Field {
            name,
            drop_empty,
            having,
        } => {
            let Some(map) = value.as_object_mut() else {
                return;
            };
            if rest.is_empty() {
                let meant = |found: &Value| {
                    having.is_none_or(|field| found[field].as_str().is_some_and(|s| !s.is_empty()))
                };
                if map.get(*name).is_some_and(meant) {
                    map.remove(*name);
                }
                return;
            }
            let Some(inner) = map.get_mut(*name) else {
                return;
            };
            let used = uses(inner, rest);
            drop_at(inner, rest);
            let empty = inner.as_object().is_some_and(serde_json::Map::is_empty);
            if *drop_empty && used && empty {
                map.remove(*name);
            }
        }
        Step::Items => {
            let items = value.as_array_mut().into_iter().flatten();
            items.for_each(|item| drop_at(item, rest));
        }
        Step::Values => {
            let values = value
                .as_object_mut()
                .into_iter()
                .flat_map(|map| map.values_mut());
            values.for_each(|value| drop_at(value, rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skep_schema::table::Shape;

    use super::*;

    #[track_caller]
    fn check(kind: &str, mut new: Value, old: Option<Value>, expected: &Value) {
        drop_disabled(of(kind), &mut new, old.as_ref());
        assert_eq!(new, *expected);
    }

    #[test]
    fn fields_of_gates_that_are_off_are_dropped() {
        let pod = json!({"spec": {
            "schedulingGroup": {"podGroupName": "g"},
            "containers": [
                {"name": "a", "lifecycle": {"stopSignal": "SIGINT"}},
                {"name": "b", "lifecycle": {"stopSignal": "SIGINT", "preStop": {"sleep": {"seconds": 1}}}},
                {"name": "c", "lifecycle": {}},
            ],
            "volumes": [{"name": "v", "projected": {"sources": [
                {"clusterTrustBundle": {"path": "ca"}}, {"secret": {"name": "s"}},
            ]}}],
        }});
        let dropped = json!({"spec": {
            "containers": [
                {"name": "a"},
                {"name": "b", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}},
                {"name": "c", "lifecycle": {}},
            ],
            "volumes": [{"name": "v", "projected": {"sources": [{}, {"secret": {"name": "s"}}]}}],
        }});
        check("Pod", pod.clone(), None, &dropped);
        let within = |spec: &Value| json!({"spec": {"jobTemplate": {"spec": {"template": spec}}}});
        check("CronJob", within(&pod), None, &within(&dropped));
        check("ConfigMap", pod.clone(), None, &pod);
    }

    #[test]
    fn what_is_in_use_stays() {
        let with =
            |signal: &str| json!({"spec": {"containers": [{"lifecycle": {"stopSignal": signal}}]}});
        let (new, old) = (with("SIGINT"), with("SIGTERM"));
        check("Pod", new.clone(), Some(old.clone()), &new);
        // Each gate by itself.
        let mut grouped = new.clone();
        grouped["spec"]["schedulingGroup"] = json!({"podGroupName": "g"});
        check("Pod", grouped, Some(old), &new);
        let lease = json!({"spec": {"strategy": "OldestEmulationVersion", "preferredHolder": "a"}});
        let old = json!({"spec": {"strategy": "OldestEmulationVersion"}});
        check("Lease", lease, Some(old.clone()), &old);
    }

    #[test]
    fn sources_in_other_namespaces_are_dropped_whole() {
        let claim = |namespace: &str| json!({"spec": {"dataSourceRef": {"name": "a", "namespace": namespace}}});
        let none = json!({"spec": {}});
        check("PersistentVolumeClaim", claim("b"), None, &none);
        check("PersistentVolumeClaim", claim(""), None, &claim(""));
        let old = json!({"spec": {"dataSourceRef": {"name": "a"}}});
        check("PersistentVolumeClaim", claim("b"), Some(old), &claim("b"));
    }

    #[test]
    fn every_field_exists() {
        let find = |kind: &str, path: &str| {
            let rows = crate::builtin();
            let row = rows.iter().find(|row| row.kind == kind).expect("a row");
            let schema = row.schema.clone().expect("a schema");
            let mut node = schema.node();
            for name in path.split('.') {
                let name: String = name
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric())
                    .collect();
                let found = node.field(&name);
                (_, node) = found.unwrap_or_else(|| panic!("{kind}: {path}: {name}"));
                while let Shape::List { items: inner, .. } | Shape::Map { values: inner, .. } =
                    node.shape()
                {
                    node = node.at(*inner);
                }
            }
        };
        for line in FACTS.lines().filter(|line| line.starts_with(' ')) {
            let mut words = line.split_whitespace();
            let kind = words.next().expect("a kind");
            for path in words {
                if kind == "POD" {
                    for (kind, prefix) in PODS {
                        find(kind, &format!("{prefix}{path}"));
                    }
                } else {
                    find(kind, path);
                }
            }
        }
    }
}
