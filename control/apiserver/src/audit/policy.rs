//! The policy file: which requests are recorded, and how much of each (`audit.k8s.io/v1 Policy`).
//!
//! The first rule that matches decides; without one nothing is recorded.

use serde::{Deserialize, Serialize};

use crate::{identity::User, request::RequestInfo};

/// How much of a request is recorded; each level holds all of the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde_json::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Rule {
    level: Option<Level>,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct GroupResources {
    /// Empty for the core group.
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What the policy says about one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("failed decoding: {0}")]
    Unreadable(String),
    #[error("{field}: {why}")]
    Invalid { field: String, why: String },
}

impl Policy {
    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// Says which field is wrong (upstream's `ValidatePolicy`).
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = serde_saphyr::from_str(text)
            .map_err(|error| PolicyError::Unreadable(error.to_string()))?;
        if (policy.api_version.as_str(), policy.kind.as_str()) != ("audit.k8s.io/v1", "Policy") {
            return Err(PolicyError::Unreadable(format!(
                "unknown group version field {} in policy file: want apiVersion audit.k8s.io/v1 and kind Policy",
                policy.api_version
            )));
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::Unreadable(
                "loaded illegal policy with 0 rules".to_owned(),
            ));
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            rule.check().map_err(|(field, why)| PolicyError::Invalid {
                field: format!("rules[{index}].{field}"),
                why,
            })?;
        }
        Ok(policy)
    }

    pub fn verdict(&self, user: &User, info: &RequestInfo) -> Verdict {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(user, info)) else {
            return Verdict::default();
        };
        let mut omit_stages = self.omit_stages.clone();
        omit_stages.extend(&rule.omit_stages);
        Verdict {
            level: rule.level.unwrap_or_default(),
            omit_stages,
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn check(&self) -> Result<(), (String, String)> {
        let bad = |field: &str, why: &str| Err((field.to_owned(), why.to_owned()));
        if self.level.is_none() {
            return bad("level", "Required value");
        }
        let of_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        if of_resources && !self.non_resource_urls.is_empty() {
            return bad(
                "nonResourceURLs",
                "Invalid value: rules cannot apply to both regular resources and non-resource URLs",
            );
        }
        for (index, url) in self.non_resource_urls.iter().enumerate() {
            let field = format!("nonResourceURLs[{index}]");
            if url == "*" {
                continue;
            }
            if !url.starts_with('/') {
                return bad(
                    &field,
                    "Invalid value: non-resource URL rules must begin with a '/' character",
                );
            }
            if url[..url.len() - 1].contains('*') {
                return bad(
                    &field,
                    "Invalid value: non-resource URL wildcards '*' must be the final character of the rule",
                );
            }
        }
        for (index, group) in self.resources.iter().enumerate() {
            let field = format!("resources[{index}]");
            if group.group.contains('/') || group.group.contains(char::is_whitespace) {
                return bad(
                    &format!("{field}.group"),
                    "Invalid value: must be the name of an API group, without a version",
                );
            }
            if !group.resource_names.is_empty() && group.resources.is_empty() {
                return bad(
                    &format!("{field}.resourceNames"),
                    "Invalid value: using resourceNames requires at least one resource",
                );
            }
        }
        Ok(())
    }

    fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        let listed = |list: &[String], value: &str| list.iter().any(|item| item == value);
        if !self.users.is_empty() && !listed(&self.users, &user.name) {
            return false;
        }
        if !self.user_groups.is_empty()
            && !user
                .groups
                .iter()
                .any(|group| listed(&self.user_groups, group))
        {
            return false;
        }
        if !self.verbs.is_empty() && !listed(&self.verbs, info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && (self.namespaces.is_empty() || listed(&self.namespaces, &info.namespace))
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(info)));
        }
        if !self.non_resource_urls.is_empty() {
            let matches = |pattern: &String| match pattern.strip_suffix('*') {
                Some(prefix) => info.path.starts_with(prefix),
                None => *pattern == info.path,
            };
            return !info.is_resource && self.non_resource_urls.iter().any(matches);
        }
        true
    }
}

impl GroupResources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != info.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !self.resource_names.contains(&info.name) {
            return false;
        }
        self.resources.iter().any(|pattern| {
            let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
            if pattern == "*" {
                return true;
            }
            match (resource, subresource) {
                ("*", wanted) => wanted == info.subresource && !wanted.is_empty(),
                (wanted, "*") => wanted == info.resource,
                (resource, subresource) => {
                    resource == info.resource && subresource == info.subresource
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn policy(rules: &str) -> Result<Policy, PolicyError> {
        Policy::parse(&format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n{rules}"
        ))
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = policy(
            "- {level: None, users: [system:kube-proxy], verbs: [watch]}
- {level: RequestResponse, resources: [{group: '', resources: [pods]}], omitManagedFields: true}
- {level: Metadata, resources: [{group: '', resources: [pods/log, '*/status']}]}
- {level: Request, resources: [{group: '', resources: [configmaps], resourceNames: [x]}], namespaces: [kube-system]}
- {level: None, resources: [{group: apps, resources: [deployments/*]}]}
- {level: None, nonResourceURLs: ['/healthz*', /version]}
- {level: None, userGroups: [ops], nonResourceURLs: ['*']}
- {level: Metadata, omitStages: [Panic], resources: [{group: apps}]}
",
        )
        .unwrap();
        let level = |user: &str, method: Method, path: &str| {
            let user = User {
                name: user.into(),
                groups: vec!["ops".into()],
                ..User::default()
            };
            let watch = path.ends_with("?watch");
            let path = path.trim_end_matches("?watch");
            policy.verdict(&user, &RequestInfo::parse(&method, path, watch))
        };
        let check = |user: &str, path: &str, expected: Level| {
            assert_eq!(level(user, Method::GET, path).level, expected, "{path}");
        };
        check("system:kube-proxy", "/api/v1/pods?watch", Level::None);
        check("system:kube-proxy", "/api/v1/pods", Level::RequestResponse);
        check("a", "/api/v1/namespaces/d/pods/x", Level::RequestResponse);
        check("a", "/api/v1/namespaces/d/pods/x/log", Level::Metadata);
        check("a", "/api/v1/nodes/x/status", Level::Metadata);
        check("a", "/api/v1/namespaces/d/pods/x/exec", Level::None);
        check(
            "a",
            "/api/v1/namespaces/kube-system/configmaps/x",
            Level::Request,
        );
        check("a", "/api/v1/namespaces/d/configmaps/x", Level::None);
        check(
            "a",
            "/api/v1/namespaces/kube-system/configmaps",
            Level::None,
        );
        check(
            "a",
            "/apis/apps/v1/namespaces/d/deployments/x/scale",
            Level::None,
        );
        check("a", "/apis/apps/v1/daemonsets", Level::Metadata);
        check("a", "/healthz/ping", Level::None);
        let verdict = level("a", Method::GET, "/apis/apps/v1/daemonsets");
        assert_eq!(verdict.omit_stages, [Stage::RequestReceived, Stage::Panic]);
        assert!(!verdict.omit_managed_fields);
        assert!(level("a", Method::GET, "/api/v1/pods").omit_managed_fields);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |rules: &str, expected: &str| {
            let error = policy(rules).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("- {users: [a]}", "rules[0].level: Required value");
        check(
            "- {level: None, nonResourceURLs: [/a], namespaces: [b]}",
            "rules cannot apply to both regular resources and non-resource URLs",
        );
        check(
            "- {level: None, nonResourceURLs: [/a*b]}",
            "rules[0].nonResourceURLs[0]",
        );
        check("- {level: All}", "failed decoding");
        check("- {level: None, user: [a]}", "unknown field");
        assert!(Policy::parse("apiVersion: audit.k8s.io/v1\nkind: Policy\n").is_err());
        assert!(Policy::parse("apiVersion: v1\nkind: Policy\nrules: [{level: None}]").is_err());
    }
}
