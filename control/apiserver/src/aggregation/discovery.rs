//! What aggregated servers say they serve, merged with what is served here.

use std::time::Duration;

use http::{HeaderValue, header};
use serde_json::{Value, json};

use super::{Remote, Table, proxy};
use crate::{context::Api, relay};

const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// What one server said when it was last asked; null for what it did not say.
#[derive(Debug, Default)]
pub struct Documents {
    /// One version of an `APIGroupDiscovery`.
    version: Value,
    /// Its entry in the index of `/openapi/v3`.
    openapi_v3: Value,
    openapi_v2: Value,
}

/// Asks a server that answers. What it does not know stays out.
pub(super) async fn fetch(api: &Api, remote: &Remote, timeout: Duration) -> Documents {
    let get = async |path: &str, accept: &'static str| -> Value {
        let Ok(mut destination) = proxy::destination(api, remote, path.to_owned()) else {
            return Value::Null;
        };
        let user = crate::identity::User::component("system:kube-aggregator");
        destination.headers = proxy::identity(&user);
        destination
            .headers
            .insert(header::ACCEPT, HeaderValue::from_static(accept));
        let answer = tokio::time::timeout(timeout, relay::fetch(api, &destination)).await;
        match answer {
            Ok(Ok(answer)) if answer.status.is_success() => {
                serde_json::from_slice(&answer.body).unwrap_or_default()
            }
            _ => Value::Null,
        }
    };
    let own = format!("/apis/{}/{}", remote.group, remote.version);
    let (groups, index, openapi_v2) = futures::join!(
        get("/apis", AGGREGATED),
        get("/openapi/v3", "application/json"),
        get("/openapi/v2", "application/json"),
    );
    let items = groups["items"].as_array().into_iter().flatten();
    let mut of_group = items
        .filter(|group| group["metadata"]["name"] == remote.group.as_str())
        .flat_map(|group| group["versions"].as_array().into_iter().flatten());
    let version = match of_group.find(|v| v["version"] == remote.version.as_str()) {
        Some(version) => version.clone(),
        None => converted(&get(&own, "application/json").await, remote),
    };
    Documents {
        version,
        openapi_v3: index["paths"][own.trim_start_matches('/')].clone(),
        openapi_v2,
    }
}

/// An `APIResourceList` as a version of aggregated discovery, for servers that know only the older form.
fn converted(list: &Value, remote: &Remote) -> Value {
    let Some(listed) = list["resources"].as_array() else {
        return Value::Null;
    };
    let kind = |resource: &Value| {
        let or_own = |field: &str, own: &str| {
            let given = resource[field].as_str().filter(|v| !v.is_empty());
            given.unwrap_or(own).to_owned()
        };
        json!({
            "group": or_own("group", &remote.group), "version": or_own("version", &remote.version),
            "kind": resource["kind"],
        })
    };
    let mut resources: Vec<Value> = Vec::new();
    for resource in listed {
        let name = resource["name"].as_str().unwrap_or_default();
        if name.contains('/') {
            continue;
        }
        let scope = match resource["namespaced"] == true {
            true => "Namespaced",
            false => "Cluster",
        };
        let mut one = json!({
            "resource": name, "responseKind": kind(resource), "scope": scope,
            "singularResource": resource["singularName"], "verbs": resource["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if let Some(value) = resource.get(field) {
                one[field] = value.clone();
            }
        }
        let subresources: Vec<Value> = listed
            .iter()
            .filter_map(|sub| {
                let (parent, own) = sub["name"].as_str()?.split_once('/')?;
                (parent == name).then(|| {
                    json!({"subresource": own, "responseKind": kind(sub), "verbs": sub["verbs"]})
                })
            })
            .collect();
        if !subresources.is_empty() {
            one["subresources"] = subresources.into();
        }
        resources.push(one);
    }
    json!({"version": remote.version, "resources": resources})
}

impl Table {
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// Puts the aggregated groups into the items of an `APIGroupDiscoveryList`.
    pub fn add_aggregated(&self, items: &mut Vec<Value>) {
        for remote in &self.services {
            let mut version = remote.documents.version.clone();
            if !version.is_object() {
                version = json!({"version": remote.version});
            }
            version["freshness"] = match remote.available {
                true => "Current".into(),
                false => "Stale".into(),
            };
            let name = remote.group.as_str();
            let known = items
                .iter_mut()
                .find(|item| item["metadata"]["name"] == name);
            match known.and_then(|item| item["versions"].as_array_mut()) {
                Some(versions) => versions.push(version),
                None => items.push(json!({"metadata": {"name": name}, "versions": [version]})),
            }
        }
    }

    /// Puts them into the groups of an `APIGroupList`.
    pub fn add_groups(&self, groups: &mut Vec<Value>) {
        for remote in &self.services {
            let name = remote.group.as_str();
            let at = groups.iter().position(|group| group["name"] == name);
            let at = at.unwrap_or_else(|| {
                groups.push(json!({"name": name, "versions": []}));
                groups.len() - 1
            });
            add_version(&mut groups[at], remote);
        }
    }

    /// The `APIGroup` of a group that is served by others, at least in part.
    pub fn complete_group(&self, name: &str, local: Option<Value>) -> Option<Value> {
        let mut group = local;
        for remote in self.services.iter().filter(|r| r.group == name) {
            let group = group.get_or_insert_with(|| json!({"name": name, "versions": []}));
            add_version(group, remote);
        }
        group
    }

    /// Puts them into the paths of `/openapi/v3`.
    pub fn add_openapi_v3(&self, paths: &mut serde_json::Map<String, Value>) {
        for remote in self.services.iter().filter(|r| r.available) {
            if remote.documents.openapi_v3.is_object() {
                let path = format!("apis/{}/{}", remote.group, remote.version);
                paths.insert(path, remote.documents.openapi_v3.clone());
            }
        }
    }

    /// Puts their paths, and what those refer to, into a v2 document. Where two define the same name, the first one stays.
    pub fn add_openapi_v2(&self, document: &mut Value) {
        for remote in self.services.iter().filter(|r| r.available) {
            let theirs = &remote.documents.openapi_v2;
            let own = format!("/apis/{}/{}/", remote.group, remote.version);
            for (part, prefix) in [
                ("paths", own.as_str()),
                ("definitions", ""),
                ("parameters", ""),
            ] {
                let (Some(from), Some(to)) =
                    (theirs[part].as_object(), document[part].as_object_mut())
                else {
                    continue;
                };
                for (name, value) in from.iter().filter(|(name, _)| name.starts_with(prefix)) {
                    to.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
        }
    }
}

fn add_version(group: &mut Value, remote: &Remote) {
    let version = json!({
        "groupVersion": format!("{}/{}", remote.group, remote.version), "version": remote.version,
    });
    if group["preferredVersion"].is_null() {
        group["preferredVersion"] = version.clone();
    }
    if let Some(versions) = group["versions"].as_array_mut()
        && !versions.contains(&version)
    {
        versions.push(version);
    }
}
