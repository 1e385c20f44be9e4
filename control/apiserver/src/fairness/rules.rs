//! FlowSchemas: which level and which flow a request belongs to.

use std::{
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

use http::HeaderValue;
use serde_json::Value;

use crate::{
    identity::{MASTERS, User},
    request::RequestInfo,
};

pub struct Schema {
    pub name: String,
    pub uid: HeaderValue,
    pub precedence: u64,
    pub level: String,
    pub level_uid: HeaderValue,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

#[derive(Clone, Copy)]
enum Distinguisher {
    Nothing,
    User,
    Namespace,
}

struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    cluster: bool,
    namespaces: Vec<String>,
}

struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

const NO_UID: HeaderValue = HeaderValue::from_static("");

/// An object's uid as the answers to its requests show it.
pub fn uid_header(object: &Value) -> HeaderValue {
    HeaderValue::from_str(&text(&object["metadata"]["uid"])).unwrap_or(NO_UID)
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn has(items: &[String], wanted: &str) -> bool {
    items.iter().any(|item| item == "*" || item == wanted)
}

impl Schema {
    /// `None` for one whose level does not exist (it dangles and takes no requests). `level_uid` looks a level up.
    pub fn read(schema: &Value, level_uid: impl Fn(&str) -> Option<HeaderValue>) -> Option<Self> {
        let spec = &schema["spec"];
        let level = text(&spec["priorityLevelConfiguration"]["name"]);
        let level_uid = level_uid(&level)?;
        Some(Self {
            name: text(&schema["metadata"]["name"]),
            uid: uid_header(schema),
            precedence: spec["matchingPrecedence"].as_u64().unwrap_or(1000),
            level,
            level_uid,
            distinguisher: match spec["distinguisherMethod"]["type"].as_str() {
                Some("ByUser") => Distinguisher::User,
                Some("ByNamespace") => Distinguisher::Namespace,
                _ => Distinguisher::Nothing,
            },
            rules: list(&spec["rules"]).map(Rule::read).collect(),
        })
    }

    /// What holds when no schema matches: administrators and probes are exempt, and everybody else is caught.
    pub fn mandatory(user: &User, info: &RequestInfo) -> &'static Self {
        static EXEMPT: LazyLock<Schema> = LazyLock::new(|| Schema::without_rules("exempt"));
        static CATCH_ALL: LazyLock<Schema> = LazyLock::new(|| Schema::without_rules("catch-all"));
        let probe = matches!(info.path.as_str(), "/healthz" | "/livez" | "/readyz");
        if probe || user.groups.iter().any(|group| group == MASTERS) {
            &EXEMPT
        } else {
            &CATCH_ALL
        }
    }

    fn without_rules(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            uid: NO_UID,
            precedence: 0,
            level: name.to_owned(),
            level_uid: NO_UID,
            distinguisher: Distinguisher::Nothing,
            rules: Vec::new(),
        }
    }

    pub fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| rule.matches(user, info))
    }

    /// A number that tells this request's flow from others.
    pub fn flow(&self, user: &User, info: &RequestInfo) -> u64 {
        let distinguisher = match self.distinguisher {
            Distinguisher::Nothing => "",
            Distinguisher::User => user.name.as_str(),
            Distinguisher::Namespace => info.namespace.as_str(),
        };
        FLOWS.hash_one((&self.name, distinguisher))
    }
}

/// Keyed, so that nobody can choose names that share the queues of others.
static FLOWS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl Rule {
    fn read(rule: &Value) -> Self {
        let subject = |subject: &Value| match subject["kind"].as_str()? {
            "User" => Some(Subject::User(text(&subject["user"]["name"]))),
            "Group" => Some(Subject::Group(text(&subject["group"]["name"]))),
            "ServiceAccount" => Some(Subject::ServiceAccount {
                namespace: text(&subject["serviceAccount"]["namespace"]),
                name: text(&subject["serviceAccount"]["name"]),
            }),
            _ => None,
        };
        Self {
            subjects: list(&rule["subjects"]).filter_map(subject).collect(),
            resources: list(&rule["resourceRules"])
                .map(|rule| ResourceRule {
                    verbs: texts(&rule["verbs"]),
                    groups: texts(&rule["apiGroups"]),
                    resources: texts(&rule["resources"]),
                    cluster: rule["clusterScope"] == true,
                    namespaces: texts(&rule["namespaces"]),
                })
                .collect(),
            paths: list(&rule["nonResourceRules"])
                .map(|rule| PathRule {
                    verbs: texts(&rule["verbs"]),
                    paths: texts(&rule["nonResourceURLs"]),
                })
                .collect(),
        }
    }

    fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        if !self.subjects.iter().any(|subject| subject.is(user)) {
            return false;
        }
        if info.is_resource {
            return self.resources.iter().any(|rule| rule.matches(info));
        }
        self.paths.iter().any(|rule| rule.matches(info))
    }
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => name == "*" || *name == user.name,
            Self::Group(name) => user.groups.iter().any(|group| name == "*" || group == name),
            Self::ServiceAccount { namespace, name } => {
                let rest = user.name.strip_prefix("system:serviceaccount:");
                let Some((of, own)) = rest.and_then(|rest| rest.split_once(':')) else {
                    return false;
                };
                of == namespace && (name == "*" || own == name)
            }
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = match info.subresource.as_str() {
            "" => info.resource.clone(),
            sub => format!("{}/{sub}", info.resource),
        };
        let in_scope = if info.namespace.is_empty() {
            self.cluster
        } else {
            has(&self.namespaces, &info.namespace)
        };
        in_scope
            && has(&self.verbs, info.verb)
            && has(&self.groups, &info.group)
            && has(&self.resources, &resource)
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let path = info.path.as_str();
        has(&self.verbs, info.verb)
            && self.paths.iter().any(|pattern| {
                pattern == "*"
                    || pattern == path
                    || pattern
                        .strip_suffix('*')
                        .is_some_and(|prefix| prefix.ends_with('/') && path.starts_with(prefix))
            })
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;

    #[test]
    fn who_and_what() {
        let rule = |subject: Value, resource: Value, path: Value| {
            let spec = json!({"metadata": {"name": "s"}, "spec": {
                "priorityLevelConfiguration": {"name": "l"},
                "rules": [{"subjects": [subject], "resourceRules": [resource], "nonResourceRules": [path]}],
            }});
            Schema::read(&spec, |_| Some(NO_UID)).unwrap()
        };
        let account = User {
            name: "system:serviceaccount:ns:builder".into(),
            groups: vec!["system:serviceaccounts".into()],
            ..User::default()
        };
        let pods = json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"],
            "namespaces": ["ns"]});
        let paths = json!({"verbs": ["*"], "nonResourceURLs": ["/healthz", "/metrics/*"]});
        let check = |schema: &Schema, path: &str, wanted: bool| {
            let info = RequestInfo::parse(&Method::GET, path, false);
            assert_eq!(schema.matches(&account, &info), wanted, "{path}");
        };
        let own =
            json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "ns", "name": "*"}});
        let schema = rule(own, pods.clone(), paths.clone());
        check(&schema, "/api/v1/namespaces/ns/pods", true);
        check(&schema, "/api/v1/namespaces/ns/pods/p/log", true);
        check(&schema, "/api/v1/namespaces/ns/pods/p/status", false);
        check(&schema, "/api/v1/namespaces/other/pods", false);
        // All namespaces are the cluster's scope.
        check(&schema, "/api/v1/pods", false);
        check(&schema, "/apis/apps/v1/namespaces/ns/pods", false);
        check(&schema, "/healthz", true);
        check(&schema, "/metrics/x", true);
        check(&schema, "/metrics", false);
        let other =
            json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "ns", "name": "x"}});
        check(&rule(other, pods.clone(), paths.clone()), "/healthz", false);
        let group = json!({"kind": "Group", "group": {"name": "system:serviceaccounts"}});
        check(&rule(group, pods.clone(), paths.clone()), "/healthz", true);
        let anyone = json!({"kind": "User", "user": {"name": "*"}});
        check(&rule(anyone, pods, paths), "/healthz", true);
    }
}
