//! Role-based access control (`rbac.authorization.k8s.io/v1`): roles are lists of rules, bindings give them to subjects.
//!
//! [`Policy`] is a snapshot of all roles and bindings; [`Rbac`] holds the newest one. Pure: objects come in as JSON.

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    sync::Arc,
};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Attributes, Authorizer, Decision};
use crate::identity::User;

const ALL: &str = "*";
const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// `PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    pub fn everything() -> Self {
        let all = || vec![ALL.to_owned()];
        Self {
            verbs: all(),
            api_groups: all(),
            resources: all(),
            ..Self::default()
        }
    }

    pub fn every_path() -> Self {
        Self {
            verbs: vec![ALL.into()],
            non_resource_urls: vec![ALL.into()],
            ..Self::default()
        }
    }

    fn allows(&self, attributes: &Attributes<'_>) -> bool {
        match *attributes {
            Attributes::Resource {
                verb,
                group,
                resource,
                subresource,
                name,
                ..
            } => {
                has(&self.verbs, verb)
                    && has(&self.api_groups, group)
                    && self.names_resource(resource, subresource)
                    && (self.resource_names.is_empty()
                        || self.resource_names.iter().any(|allowed| allowed == name))
            }
            Attributes::Path { verb, path, .. } => {
                has(&self.verbs, verb)
                    && self
                        .non_resource_urls
                        .iter()
                        .any(|allowed| url_matches(allowed, path))
            }
        }
    }

    fn names_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|allowed| {
            if allowed == ALL {
                return true;
            }
            match allowed.split_once('/') {
                None => subresource.is_empty() && allowed == resource,
                Some((ALL, sub)) => !subresource.is_empty() && sub == subresource,
                Some((main, sub)) => main == resource && sub == subresource,
            }
        })
    }

    /// The rule split into rules of one verb and one object each, so that they can be compared.
    fn atoms(&self) -> Vec<Rule> {
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    let atom = Rule {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        atoms.push(atom);
                    } else {
                        atoms.extend(self.resource_names.iter().map(|name| Rule {
                            resource_names: vec![name.clone()],
                            ..atom.clone()
                        }));
                    }
                }
            }
            atoms.extend(self.non_resource_urls.iter().map(|url| Rule {
                verbs: vec![verb.clone()],
                non_resource_urls: vec![url.clone()],
                ..Self::default()
            }));
        }
        atoms
    }

    /// Whether this rule allows all that `atom`, a rule of one verb and one object, allows.
    fn covers(&self, atom: &Rule) -> bool {
        let subset = |of: &[String], items: &[String]| items.iter().all(|item| has(of, item));
        let resources = atom.resources.iter().all(|wanted| {
            let (main, sub) = wanted.split_once('/').unwrap_or((wanted, ""));
            self.resources.contains(wanted) || self.names_resource(main, sub)
        });
        let names = match (&self.resource_names[..], &atom.resource_names[..]) {
            ([], _) => true,
            (_, []) => false,
            (have, want) => want.iter().all(|name| have.contains(name)),
        };
        let urls = atom.non_resource_urls.iter().all(|wanted| {
            self.non_resource_urls
                .iter()
                .any(|have| url_matches(have, wanted))
        });
        subset(&self.verbs, &atom.verbs)
            && subset(&self.api_groups, &atom.api_groups)
            && resources
            && names
            && urls
    }
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|entry| entry == ALL || entry == item)
}

fn url_matches(allowed: &str, path: &str) -> bool {
    allowed == ALL
        || allowed == path
        || allowed
            .strip_suffix(ALL)
            .is_some_and(|prefix| path.starts_with(prefix))
}

/// What of `wanted` the rules in `owned` do not allow, in pieces of one verb and one object.
/// Empty = no escalation of privileges.
pub fn uncovered(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted
        .iter()
        .flat_map(Rule::atoms)
        .filter(|atom| !owned.iter().any(|rule| rule.covers(atom)))
        .collect()
}

#[derive(Clone, Debug, Deserialize)]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

impl Subject {
    /// `namespace`: of the binding; service accounts without one are in it.
    fn is(&self, user: &User, namespace: &str) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.groups.contains(&self.name),
            "ServiceAccount" => {
                let of = if self.namespace.is_empty() {
                    namespace
                } else {
                    &self.namespace
                };
                user.name
                    .strip_prefix(SERVICE_ACCOUNT_PREFIX)
                    .and_then(|rest| rest.split_once(':'))
                    .is_some_and(|(ns, name)| ns == of && name == self.name)
            }
            _ => false,
        }
    }

    fn describe(&self) -> String {
        match self.kind.as_str() {
            "ServiceAccount" => format!("ServiceAccount \"{}/{}\"", self.name, self.namespace),
            kind => format!("{kind} \"{}\"", self.name),
        }
    }
}

#[derive(Clone, Debug)]
struct Binding {
    name: String,
    role_is_cluster_wide: bool,
    role: String,
    subjects: Vec<Subject>,
}

/// All roles and bindings at one moment.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    roles: HashMap<(String, String), Arc<[Rule]>>,
    cluster_bindings: BTreeMap<String, Binding>,
    bindings: HashMap<String, Vec<Binding>>,
}

impl Policy {
    /// Takes in one object of the four RBAC kinds; other kinds are ignored.
    pub fn insert(&mut self, plural: &str, object: &Value) {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let rules = || -> Arc<[Rule]> {
            let rules = object.get("rules").cloned().unwrap_or(Value::Null);
            serde_json::from_value::<Option<Vec<Rule>>>(rules)
                .ok()
                .flatten()
                .unwrap_or_default()
                .into()
        };
        let binding = |name: String| Binding {
            name,
            role_is_cluster_wide: text("/roleRef/kind") == "ClusterRole",
            role: text("/roleRef/name"),
            subjects: object
                .get("subjects")
                .cloned()
                .and_then(|subjects| serde_json::from_value(subjects).ok())
                .unwrap_or_default(),
        };
        match plural {
            "clusterroles" => drop(self.cluster_roles.insert(name, rules())),
            "roles" => drop(self.roles.insert((namespace, name), rules())),
            "clusterrolebindings" => {
                self.cluster_bindings.insert(name.clone(), binding(name));
            }
            "rolebindings" => self
                .bindings
                .entry(namespace)
                .or_default()
                .push(binding(name)),
            _ => {}
        }
    }

    /// The rules of a role, for escalation checks of a binding.
    pub fn role_rules(
        &self,
        cluster_wide: bool,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<[Rule]>> {
        if cluster_wide {
            self.cluster_roles.get(name).cloned()
        } else {
            self.roles
                .get(&(namespace.to_owned(), name.to_owned()))
                .cloned()
        }
    }

    /// Shows every rule that applies, with why, until `visit` breaks.
    fn visit<T>(
        &self,
        user: &User,
        namespace: &str,
        mut visit: impl FnMut(&Rule, &dyn Fn() -> String) -> ControlFlow<T>,
    ) -> Option<T> {
        let mut apply = |binding: &Binding, scope: &str| -> ControlFlow<T> {
            let Some(subject) = binding.subjects.iter().find(|s| s.is(user, scope)) else {
                return ControlFlow::Continue(());
            };
            let rules = self.role_rules(binding.role_is_cluster_wide, scope, &binding.role);
            let reason = || {
                let (kind, of) = if scope.is_empty() {
                    ("ClusterRoleBinding", binding.name.clone())
                } else {
                    ("RoleBinding", format!("{}/{scope}", binding.name))
                };
                let role = if binding.role_is_cluster_wide {
                    "ClusterRole"
                } else {
                    "Role"
                };
                let subject = subject.describe();
                format!(
                    "RBAC: allowed by {kind} \"{of}\" of {role} \"{}\" to {subject}",
                    binding.role
                )
            };
            for rule in rules.iter().flat_map(|rules| rules.iter()) {
                visit(rule, &reason)?;
            }
            ControlFlow::Continue(())
        };
        for binding in self.cluster_bindings.values() {
            if let ControlFlow::Break(found) = apply(binding, "") {
                return Some(found);
            }
        }
        if namespace.is_empty() {
            return None;
        }
        for binding in self.bindings.get(namespace).into_iter().flatten() {
            if let ControlFlow::Break(found) = apply(binding, namespace) {
                return Some(found);
            }
        }
        None
    }
}

/// The RBAC authorizer over the newest [`Policy`].
#[derive(Default)]
pub struct Rbac {
    policy: ArcSwap<Policy>,
}

impl Rbac {
    pub fn replace(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
    }

    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }
}

impl Authorizer for Arc<Rbac> {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let namespace = match attributes {
            Attributes::Resource { namespace, .. } => namespace,
            Attributes::Path { .. } => "",
        };
        let found = self
            .policy
            .load()
            .visit(attributes.user(), namespace, |rule, reason| {
                if rule.allows(attributes) {
                    ControlFlow::Break(reason())
                } else {
                    ControlFlow::Continue(())
                }
            });
        match found {
            Some(reason) => Decision::Allow { reason },
            None => Decision::NoOpinion {
                reason: String::new(),
            },
        }
    }

    fn rules(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        self.policy.load().visit(user, namespace, |rule, _| {
            rules.push(rule.clone());
            ControlFlow::<()>::Continue(())
        });
        rules
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy() -> Arc<Rbac> {
        let mut policy = Policy::default();
        policy.insert(
            "clusterroles",
            &json!({"metadata": {"name": "view"}, "rules": [
                {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]},
                {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/apis/*"]},
            ]}),
        );
        policy.insert("roles", &json!({"metadata": {"name": "one", "namespace": "a"}, "rules": [
            {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*/scale"]},
            {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["x"]},
        ]}));
        policy.insert(
            "clusterrolebindings",
            &json!({"metadata": {"name": "view"},
            "roleRef": {"kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "Group", "name": "readers"}]}),
        );
        policy.insert(
            "rolebindings",
            &json!({"metadata": {"name": "one", "namespace": "a"},
            "roleRef": {"kind": "Role", "name": "one"},
            "subjects": [{"kind": "ServiceAccount", "name": "robot"}]}),
        );
        let rbac = Arc::new(Rbac::default());
        rbac.replace(policy);
        rbac
    }

    #[track_caller]
    fn check(user: &str, group: &str, request: (&str, &str, &str, &str, &str), allowed: bool) {
        let user = User {
            name: user.into(),
            groups: vec![group.into()],
            ..User::default()
        };
        let (verb, api_group, resource, namespace, name) = request;
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let attributes = Attributes::Resource {
            user: &user,
            verb,
            group: api_group,
            version: "v1",
            resource,
            subresource,
            namespace,
            name,
        };
        assert_eq!(
            policy().authorize(&attributes).allowed(),
            allowed,
            "{attributes:?}"
        );
    }

    #[test]
    fn rules_are_matched() {
        check("jane", "readers", ("get", "", "pods", "a", "p"), true);
        check("jane", "readers", ("get", "", "pods/log", "a", "p"), true);
        check("jane", "readers", ("get", "", "pods/exec", "a", "p"), false);
        check("jane", "readers", ("delete", "", "pods", "a", "p"), false);
        check("jane", "others", ("get", "", "pods", "a", "p"), false);
        let robot = "system:serviceaccount:a:robot";
        check(
            robot,
            "",
            ("update", "apps", "deployments/scale", "a", "d"),
            true,
        );
        check(
            robot,
            "",
            ("update", "apps", "deployments", "a", "d"),
            false,
        );
        check(
            robot,
            "",
            ("update", "apps", "deployments/scale", "b", "d"),
            false,
        );
        check(robot, "", ("get", "", "secrets", "a", "x"), true);
        check(robot, "", ("get", "", "secrets", "a", "y"), false);
        check(robot, "", ("list", "", "secrets", "a", ""), false);
        check(
            "system:serviceaccount:b:robot",
            "",
            ("get", "", "secrets", "a", "x"),
            false,
        );
    }

    #[test]
    fn paths_match_by_prefix() {
        let user = User {
            groups: vec!["readers".into()],
            ..User::default()
        };
        let ask = |path| {
            policy()
                .authorize(&Attributes::Path {
                    user: &user,
                    verb: "get",
                    path,
                })
                .allowed()
        };
        assert!(ask("/healthz") && ask("/apis/apps/v1"));
        assert!(!ask("/healthz/etcd") && !ask("/metrics"));
    }

    #[test]
    fn escalation_is_what_is_not_covered() {
        let rule = |verbs: &[&str], resources: &[&str], names: &[&str]| Rule {
            verbs: verbs.iter().map(|&s| s.into()).collect(),
            api_groups: vec![String::new()],
            resources: resources.iter().map(|&s| s.into()).collect(),
            resource_names: names.iter().map(|&s| s.into()).collect(),
            ..Rule::default()
        };
        let owned = [
            rule(&["get", "list"], &["pods"], &[]),
            rule(&["*"], &["secrets"], &["x"]),
        ];
        assert!(uncovered(&owned, &[rule(&["get"], &["pods"], &["p"])]).is_empty());
        assert!(uncovered(&owned, &[rule(&["delete"], &["secrets"], &["x"])]).is_empty());
        let missing = uncovered(&owned, &[rule(&["get", "delete"], &["pods", "nodes"], &[])]);
        assert_eq!(missing.len(), 3, "{missing:?}");
        assert_eq!(
            uncovered(&owned, &[rule(&["get"], &["secrets"], &[])]).len(),
            1
        );
        assert_eq!(
            uncovered(&[Rule::everything()], &[rule(&["*"], &["*"], &[])]),
            []
        );
    }
}
