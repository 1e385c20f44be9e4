//! What the server serves, from aggregated discovery (KEP-3352).

use std::fmt;

use anyhow::Result;
use serde_json::Value;

use crate::session::{Session, text};

const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub verbs: Vec<String>,
    pub subresources: Vec<String>,
    pub namespaced: bool,
    /// The group prefers this version.
    pub preferred: bool,
}

impl Resource {
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `/apis/apps/v1/namespaces/a/deployments/web`; empty `namespace` = all, empty `name` = the collection.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if self.namespaced && !namespace.is_empty() {
            path.push_str(&format!("/namespaces/{namespace}"));
        }
        path.push('/');
        path.push_str(&self.plural);
        if !name.is_empty() {
            path.push('/');
            path.push_str(&encode(name));
        }
        path
    }

    /// `deployment.apps`, as kubectl names objects in its answers.
    pub fn qualified_singular(&self) -> String {
        if self.group.is_empty() {
            self.singular.clone()
        } else {
            format!("{}.{}", self.singular, self.group)
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.plural)
        } else {
            write!(f, "{}.{}", self.plural, self.group)
        }
    }
}

/// RFC 3986: a path segment or query value.
pub fn encode(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes())
        .collect::<String>()
        .replace('+', "%20")
}

#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// In the server's order of preference.
    pub all: Vec<Resource>,
}

impl Resources {
    pub async fn discover(session: &Session) -> Result<Self> {
        let mut all = Vec::new();
        for root in ["/api", "/apis"] {
            let list = session.request("GET", root, AGGREGATED, None).await?;
            all.extend(parse(&list));
        }
        Ok(Self { all })
    }

    pub fn find(&self, word: &str) -> Option<&Resource> {
        let lower = word.to_lowercase();
        let (name, suffix) = lower.split_once('.').unwrap_or((&lower, ""));
        let named = |resource: &&Resource| {
            resource.plural == name
                || resource.singular == name
                || resource.kind.to_lowercase() == name
                || resource.short_names.iter().any(|short| short == name)
        };
        let in_group = |resource: &&Resource| {
            suffix.is_empty()
                || resource.group == suffix
                || format!("{}.{}", resource.version, resource.group) == suffix
                || (resource.group.is_empty() && resource.version == suffix)
        };
        let mut matching = self.all.iter().filter(named).filter(in_group);
        let first = matching.clone().find(|r| r.preferred || !suffix.is_empty());
        first.or_else(|| matching.next())
    }

    pub fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        self.all
            .iter()
            .find(|r| r.kind == kind && r.api_version() == api_version)
    }

    /// The resources of a category such as `all`.
    pub fn in_category(&self, category: &str) -> Vec<Resource> {
        let matching = self.all.iter().filter(|r| r.preferred);
        matching
            .filter(|r| r.categories.iter().any(|c| c == category))
            .cloned()
            .collect()
    }
}

fn parse(list: &Value) -> Vec<Resource> {
    let mut resources = Vec::new();
    for group in items(list, "items") {
        for (index, version) in items(group, "versions").enumerate() {
            for resource in items(version, "resources") {
                let kind = text(&resource["responseKind"], "kind");
                let strings = |key: &str| -> Vec<String> {
                    items(resource, key)
                        .filter_map(|v| v.as_str().map(str::to_owned))
                        .collect()
                };
                let singular = text(resource, "singularResource");
                resources.push(Resource {
                    group: text(&group["metadata"], "name"),
                    version: text(version, "version"),
                    singular: if singular.is_empty() {
                        kind.to_lowercase()
                    } else {
                        singular
                    },
                    kind,
                    plural: text(resource, "resource"),
                    short_names: strings("shortNames"),
                    categories: strings("categories"),
                    verbs: strings("verbs"),
                    subresources: items(resource, "subresources")
                        .map(|sub| text(sub, "subresource"))
                        .collect(),
                    namespaced: resource["scope"] == "Namespaced",
                    preferred: index == 0,
                });
            }
        }
    }
    resources
}

/// The elements of an array member; none when absent.
pub fn items<'a>(value: &'a Value, key: &str) -> std::slice::Iter<'a, Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resources() -> Resources {
        let list = json!({"items": [
            {"metadata": {}, "versions": [{"version": "v1", "resources": [
                {"resource": "pods", "singularResource": "pod", "shortNames": ["po"], "scope": "Namespaced",
                 "responseKind": {"kind": "Pod"}, "verbs": ["get"], "categories": ["all"]},
                {"resource": "events", "singularResource": "event", "shortNames": ["ev"], "scope": "Namespaced",
                 "responseKind": {"kind": "Event"}, "verbs": ["get"]}]}]},
            {"metadata": {"name": "events.k8s.io"}, "versions": [{"version": "v1", "resources": [
                {"resource": "events", "singularResource": "event", "shortNames": ["ev"], "scope": "Namespaced",
                 "responseKind": {"kind": "Event"}, "verbs": ["get"]}]}]},
            {"metadata": {"name": "autoscaling"}, "versions": [
                {"version": "v2", "resources": [{"resource": "horizontalpodautoscalers", "scope": "Namespaced",
                    "shortNames": ["hpa"], "responseKind": {"kind": "HorizontalPodAutoscaler"}, "verbs": []}]},
                {"version": "v1", "resources": [{"resource": "horizontalpodautoscalers", "scope": "Namespaced",
                    "shortNames": ["hpa"], "responseKind": {"kind": "HorizontalPodAutoscaler"}, "verbs": []}]}]},
        ]});
        Resources { all: parse(&list) }
    }

    #[track_caller]
    fn check(word: &str, expected: Option<&str>) {
        let resources = resources();
        let found = resources
            .find(word)
            .map(|r| format!("{}/{}", r.api_version(), r.plural));
        assert_eq!(found.as_deref(), expected, "{word}");
    }

    #[test]
    fn words_name_resources() {
        for word in ["pods", "pod", "po", "Pod", "POD", "pods.v1"] {
            check(word, Some("v1/pods"));
        }
        check("ev", Some("v1/events"));
        check("events.events.k8s.io", Some("events.k8s.io/v1/events"));
        check("hpa", Some("autoscaling/v2/horizontalpodautoscalers"));
        check(
            "hpa.v1.autoscaling",
            Some("autoscaling/v1/horizontalpodautoscalers"),
        );
        check("nothing", None);
        check("pods.apps", None);
    }

    #[test]
    fn paths_are_built() {
        let resources = resources();
        let pod = resources.find("pod").unwrap();
        assert_eq!(pod.path("a", "p"), "/api/v1/namespaces/a/pods/p");
        assert_eq!(pod.path("", ""), "/api/v1/pods");
        let hpa = resources.find("hpa").unwrap();
        assert_eq!(
            hpa.path("a", ""),
            "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers"
        );
    }
}
