//! The roles and bindings of `bootstrap-policy.txt`, as objects to create at first start.
//!
//! At every start a missing object is made again and missing rules are added, as upstream's `autoupdate` annotation
//! promises; what an administrator added stays.

use serde_json::{Map, Value, json};

const POLICY: &str = include_str!("bootstrap-policy.txt");
const GROUP: &str = "rbac.authorization.k8s.io";
const CONTROLLER_ROLE: &str = "system:controller:";

/// An object with the plural of its resource.
#[derive(Clone, Debug)]
pub struct BootstrapObject {
    pub plural: &'static str,
    pub object: Value,
}

/// All bootstrap roles and bindings, roles first.
pub fn objects() -> Vec<BootstrapObject> {
    let mut objects: Vec<BootstrapObject> = Vec::new();
    for line in POLICY
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(rule) = line.strip_prefix("  ") {
            let role = objects
                .last_mut()
                .and_then(|last| last.object.get_mut("rules"));
            if let Some(rules) = role {
                if rules.is_null() {
                    *rules = json!([]);
                }
                rules
                    .as_array_mut()
                    .expect("made above")
                    .push(parse_rule(rule));
            }
            continue;
        }
        let mut words = line.split_whitespace();
        let (kind, name) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let words: Vec<&str> = words.collect();
        objects.push(match kind {
            "clusterrole" => role("clusterroles", "ClusterRole", name, &words),
            "role" => role("roles", "Role", name, &words),
            "clusterrolebinding" => {
                binding("clusterrolebindings", "ClusterRoleBinding", name, &words)
            }
            _ => binding("rolebindings", "RoleBinding", name, &words),
        });
    }
    let controllers: Vec<BootstrapObject> = objects
        .iter()
        .filter(|o| o.plural == "clusterroles")
        .filter_map(|o| o.object["metadata"]["name"].as_str())
        .filter_map(|name| Some((name, name.strip_prefix(CONTROLLER_ROLE)?)))
        .map(|(role, account)| {
            let subject = format!("serviceaccount:kube-system/{account}");
            let words = ["->", "clusterrole", role, &subject];
            binding("clusterrolebindings", "ClusterRoleBinding", role, &words)
        })
        .collect();
    objects.extend(controllers);
    objects
}

fn object(kind: &str, name: &str, labels: Map<String, Value>) -> Map<String, Value> {
    let mut metadata = Map::new();
    match name.split_once('/') {
        Some((namespace, name)) => {
            metadata.insert("name".into(), name.into());
            metadata.insert("namespace".into(), namespace.into());
        }
        None => drop(metadata.insert("name".into(), name.into())),
    }
    metadata.insert("labels".into(), labels.into());
    metadata.insert(
        "annotations".into(),
        json!({"rbac.authorization.kubernetes.io/autoupdate": "true"}),
    );
    let mut object = Map::new();
    object.insert("apiVersion".into(), format!("{GROUP}/v1").into());
    object.insert("kind".into(), kind.into());
    object.insert("metadata".into(), metadata.into());
    object
}

fn bootstrap_label() -> Map<String, Value> {
    Map::from_iter([(
        "kubernetes.io/bootstrapping".to_owned(),
        "rbac-defaults".into(),
    )])
}

fn aggregation_label(role: &str) -> String {
    format!("{GROUP}/aggregate-to-{role}")
}

fn role(plural: &'static str, kind: &str, name: &str, words: &[&str]) -> BootstrapObject {
    let mut labels = bootstrap_label();
    let mut selectors = Vec::new();
    for word in words {
        if let Some(role) = word.strip_prefix('+') {
            labels.insert(aggregation_label(role), "true".into());
        } else if let Some(roles) = word.strip_prefix('=') {
            selectors.extend(roles.split(',').map(|role| {
                let label = aggregation_label(role);
                json!({"matchLabels": {label: "true"}})
            }));
        }
    }
    let mut object = object(kind, name, labels);
    object.insert("rules".into(), Value::Null);
    if !selectors.is_empty() {
        object.insert(
            "aggregationRule".into(),
            json!({"clusterRoleSelectors": selectors}),
        );
    }
    BootstrapObject {
        plural,
        object: object.into(),
    }
}

fn parse_rule(text: &str) -> Value {
    let list = |text: &str| -> Vec<String> {
        text.split(',')
            .map(|item| if item == "core" { "" } else { item }.to_owned())
            .collect()
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        [verbs, "url", paths] => json!({"verbs": list(verbs), "nonResourceURLs": list(paths)}),
        [verbs, groups, resources] => {
            json!({"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)})
        }
        [verbs, groups, resources, names] => json!({
            "verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources),
            "resourceNames": list(names.trim_matches(['[', ']'])),
        }),
        _ => Value::Null,
    }
}

fn binding(plural: &'static str, kind: &str, name: &str, words: &[&str]) -> BootstrapObject {
    let role_kind = if words.get(1) == Some(&"clusterrole") {
        "ClusterRole"
    } else {
        "Role"
    };
    let role = words.get(2).copied().unwrap_or_default();
    let subjects: Vec<Value> = words
        .iter()
        .skip(3)
        .filter_map(|word| subject(word))
        .collect();
    let mut object = object(kind, name, bootstrap_label());
    object.insert(
        "roleRef".into(),
        json!({"apiGroup": GROUP, "kind": role_kind, "name": role}),
    );
    if !subjects.is_empty() {
        object.insert("subjects".into(), subjects.into());
    }
    BootstrapObject {
        plural,
        object: object.into(),
    }
}

fn subject(word: &str) -> Option<Value> {
    let (kind, name) = word.split_once(':')?;
    Some(match kind {
        "user" => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
        "group" => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        _ => {
            let (namespace, name) = name.split_once('/')?;
            json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(objects: &'a [BootstrapObject], plural: &str, name: &str) -> &'a Value {
        let found = objects
            .iter()
            .find(|o| o.plural == plural && o.object["metadata"]["name"] == name);
        &found.unwrap_or_else(|| panic!("no {plural} {name}")).object
    }

    #[test]
    fn every_line_becomes_an_object_or_a_rule() {
        let objects = objects();
        assert_eq!(
            objects
                .iter()
                .filter(|o| o.plural == "clusterroles")
                .count(),
            73
        );
        assert_eq!(
            objects
                .iter()
                .filter(|o| o.plural == "clusterrolebindings")
                .count(),
            56
        );
        assert_eq!(objects.iter().filter(|o| o.plural == "roles").count(), 7);
        assert_eq!(
            objects
                .iter()
                .filter(|o| o.plural == "rolebindings")
                .count(),
            7
        );
        for BootstrapObject { object, .. } in &objects {
            let rules = object.get("rules").and_then(Value::as_array);
            assert!(
                rules.is_none_or(|rules| rules.iter().all(|r| !r.is_null())),
                "{object}"
            );
        }
    }

    #[test]
    fn roles_aggregate_and_controllers_are_bound() {
        let objects = objects();
        let edit = find(&objects, "clusterroles", "edit");
        assert_eq!(
            edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"],
            "true"
        );
        assert_eq!(
            edit["aggregationRule"]["clusterRoleSelectors"][0]["matchLabels"],
            json!({"rbac.authorization.k8s.io/aggregate-to-edit": "true"})
        );
        let name = "system:controller:job-controller";
        let binding = find(&objects, "clusterrolebindings", name);
        assert_eq!(binding["roleRef"]["name"], name);
        assert_eq!(
            binding["subjects"],
            json!([{"kind": "ServiceAccount", "name": "job-controller", "namespace": "kube-system"}])
        );
        let admin = find(&objects, "clusterroles", "cluster-admin");
        assert_eq!(
            admin["rules"][1],
            json!({"verbs": ["*"], "nonResourceURLs": ["*"]})
        );
    }
}
