//! What is served: `/api`, `/apis` and below, in the legacy and the aggregated form.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use skep_api::resource::Subresource;

use crate::{
    aggregation::Table,
    context::Ctx,
    negotiate,
    registry::{Group, Registry, Resource, Version},
    respond::{json_response, text},
    status::{Result, Status},
};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The aggregated documents of one generation of the registry and of the APIServices.
#[derive(Default)]
pub struct Cache(Mutex<Option<(Generations, Arc<Aggregated>)>>);

/// Of the registry and of the APIServices.
type Generations = (u64, u64);

struct Aggregated {
    core: (Bytes, String),
    groups: (Bytes, String),
}

impl Cache {
    fn get(&self, registry: &Registry, remotes: &Table) -> Arc<Aggregated> {
        let mut cached = self.0.lock();
        let now = (registry.generation, remotes.generation);
        if let Some((generation, documents)) = cached.as_ref()
            && *generation == now
        {
            return documents.clone();
        }
        let (core, groups): (Vec<&Group>, Vec<&Group>) =
            registry.groups().iter().partition(|g| g.name.is_empty());
        let documents = Arc::new(Aggregated {
            core: aggregated(&core, &Table::default()),
            groups: aggregated(&groups, remotes),
        });
        *cached = Some((now, documents.clone()));
        documents
    }
}

fn aggregated(groups: &[&Group], remotes: &Table) -> (Bytes, String) {
    let mut items: Vec<Value> = groups.iter().map(|g| aggregated_group(g)).collect();
    remotes.add_aggregated(&mut items);
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": items,
    });
    let bytes = crate::codec::encode_object(&list);
    let hash: String = Sha512::digest(&bytes)
        .iter()
        .map(|b| format!("{b:02X}"))
        .collect();
    (bytes, format!("\"{hash}\""))
}

fn aggregated_group(group: &Group) -> Value {
    let versions = group.versions.iter().map(|version| {
        let mut resources: Vec<&Arc<Resource>> = version.resources.iter().collect();
        resources.sort_by(|a, b| a.def.plural.cmp(&b.def.plural));
        let resources = resources.into_iter().map(|r| aggregated_resource(r));
        json!({
            "version": version.version, "resources": resources.collect::<Vec<_>>(),
            "freshness": "Current",
        })
    });
    let mut metadata = json!({});
    if !group.name.is_empty() {
        metadata["name"] = group.name.as_str().into();
    }
    json!({"metadata": metadata, "versions": versions.collect::<Vec<_>>()})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let def = &resource.def;
    // Built-in kinds leave group and version empty: those of the group around them. Custom ones name them.
    let (group, version) = if resource.custom {
        (def.group.as_ref(), def.version.as_ref())
    } else {
        ("", "")
    };
    let mut value = json!({
        "resource": def.plural,
        "responseKind": {"group": group, "version": version, "kind": def.kind},
        "scope": if resource.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": def.singular,
        "verbs": def.verbs.iter().map(|v| v.as_str()).collect::<Vec<_>>(),
    });
    if !def.short_names.is_empty() {
        value["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        value["categories"] = json!(def.categories);
    }
    if !def.subresources.is_empty() {
        let mut subresources: Vec<&Subresource> = def.subresources.iter().collect();
        subresources.sort_by(|a, b| a.name.cmp(&b.name));
        let subresources = subresources.into_iter().map(|sub| {
            let own = sub.group.is_empty() && sub.version.is_empty();
            let (group, version) = if own {
                (group, version)
            } else {
                (sub.group.as_ref(), sub.version.as_ref())
            };
            json!({
                "subresource": sub.name,
                "responseKind": {"group": group, "version": version, "kind": sub.kind},
                "verbs": sub.verbs.iter().map(|v| v.as_str()).collect::<Vec<_>>(),
            })
        });
        value["subresources"] = subresources.collect();
    }
    value
}

/// `None`: not a discovery path.
pub fn handle(ctx: &Ctx) -> Option<Result<Response>> {
    let path = ctx.info.path.trim_matches('/');
    let mut parts = path.split('/');
    let answer = match (parts.next()?, parts.next(), parts.next(), parts.next()) {
        ("api", None, ..) => root(ctx, true),
        ("apis", None, ..) => root(ctx, false),
        ("api", Some(version), None, _) => resources(ctx, "", version),
        ("apis", Some(name), None, _) => group(ctx, name),
        ("apis", Some(group), Some(version), None) => resources(ctx, group, version),
        _ => return None,
    };
    if ctx.method != http::Method::GET {
        return Some(Err(Status::method_not_allowed()));
    }
    Some(answer)
}

fn root(ctx: &Ctx, core: bool) -> Result<Response> {
    // The first clause that we know decides between the two forms.
    let mut unknown_form = false;
    for clause in negotiate::clauses(&ctx.headers) {
        let json = matches!(clause.media, "application/json" | "application/*" | "*/*");
        let other = matches!(
            clause.media,
            "application/vnd.kubernetes.protobuf" | "application/yaml"
        );
        match (
            clause.parameter("as"),
            clause.parameter("g"),
            clause.parameter("v"),
        ) {
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") if json => {
                return Ok(aggregated_response(ctx, core));
            }
            ("", ..) if json || other => {
                let out = ctx.plain_output()?;
                let value = if core { versions(ctx) } else { groups(ctx) };
                return ctx.value(StatusCode::OK, &value, &out);
            }
            _ => unknown_form |= json || other,
        }
    }
    Err(if unknown_form {
        Status::not_acceptable(
            "only the following media types are accepted: application/json, application/yaml, \
             application/vnd.kubernetes.protobuf",
        )
    } else {
        Status::not_acceptable_scope()
    })
}

fn aggregated_response(ctx: &Ctx, core: bool) -> Response {
    let remotes = ctx.api.aggregation.table();
    let documents = ctx.api.discovery.get(&ctx.registry, &remotes);
    let (bytes, etag) = if core {
        &documents.core
    } else {
        &documents.groups
    };
    let known = ctx.headers.get(header::IF_NONE_MATCH);
    let not_modified = known.is_some_and(|known| known.as_bytes() == etag.as_bytes());
    let mut response = if not_modified {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        Response::new(bytes.clone().into())
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(header::ETAG, etag);
    }
    response
}

fn versions(ctx: &Ctx) -> Value {
    let group = ctx.registry.group("");
    let versions = group
        .into_iter()
        .flat_map(|g| &g.versions)
        .map(|v| &v.version);
    let host = ctx.headers.get(header::HOST).and_then(|h| h.to_str().ok());
    json!({
        "kind": "APIVersions", "versions": versions.collect::<Vec<_>>(),
        "serverAddressByClientCIDRs": [
            {"clientCIDR": "0.0.0.0/0", "serverAddress": host.unwrap_or_default()}
        ],
    })
}

fn api_group(group: &Group) -> Value {
    let of = |version: &Version| json!({"groupVersion": format!("{}/{}", group.name, version.version), "version": version.version});
    json!({
        "name": group.name,
        "versions": group.versions.iter().map(of).collect::<Vec<_>>(),
        "preferredVersion": group.versions.first().map(of),
    })
}

fn groups(ctx: &Ctx) -> Value {
    let groups = ctx.registry.groups().iter().filter(|g| !g.name.is_empty());
    let mut groups: Vec<Value> = groups.map(api_group).collect();
    ctx.api.aggregation.table().add_groups(&mut groups);
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group(ctx: &Ctx, name: &str) -> Result<Response> {
    let local = ctx.registry.group(name).filter(|_| !name.is_empty());
    let remotes = ctx.api.aggregation.table();
    let Some(mut value) = remotes.complete_group(name, local.map(api_group)) else {
        return Ok(text(StatusCode::NOT_FOUND, "404 page not found\n"));
    };
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    ctx.value(StatusCode::OK, &value, &ctx.plain_output()?)
}

fn resources(ctx: &Ctx, group: &str, version: &str) -> Result<Response> {
    let Some(found) = ctx.registry.version(group, version) else {
        if group.is_empty() || ctx.registry.group(group).is_some() {
            return Err(Status::no_such_resource());
        }
        return Ok(text(StatusCode::NOT_FOUND, "404 page not found\n"));
    };
    let mut resources = Vec::new();
    for resource in &found.resources {
        resources.push(legacy_resource(resource));
        let subresources = resource.def.subresources.iter();
        resources.extend(subresources.map(|sub| legacy_subresource(resource, sub)));
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let mut value = json!({
        "kind": "APIResourceList",
        "groupVersion": crate::registry::api_version(group, version),
        "resources": resources,
    });
    if !group.is_empty() {
        value["apiVersion"] = "v1".into();
    }
    let out = ctx.plain_output()?;
    if out.encoding == negotiate::Encoding::Json && !out.pretty {
        return Ok(json_response(StatusCode::OK, &value));
    }
    ctx.value(StatusCode::OK, &value, &out)
}

fn legacy_resource(resource: &Resource) -> Value {
    let def = &resource.def;
    let mut value = json!({
        "name": def.plural, "singularName": def.singular, "namespaced": resource.namespaced(),
        "kind": def.kind, "verbs": def.verbs.iter().map(|v| v.as_str()).collect::<Vec<_>>(),
    });
    if !def.short_names.is_empty() {
        value["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        value["categories"] = json!(def.categories);
    }
    let stored = def.verbs.contains(&skep_api::resource::Verb::Update);
    if stored {
        // Clients compare it for equality only.
        use base64::{Engine, engine::general_purpose::STANDARD};
        let of = format!(
            "{}/{}/{}",
            resource.stored_group, resource.stored_version, def.kind
        );
        let hash = Sha256::digest(of.as_bytes());
        value["storageVersionHash"] = STANDARD.encode(&hash[..8]).into();
    }
    value
}

fn legacy_subresource(resource: &Resource, sub: &Subresource) -> Value {
    let mut value = json!({
        "name": format!("{}/{}", resource.def.plural, sub.name), "singularName": "",
        "namespaced": resource.namespaced(), "kind": sub.kind,
        "verbs": sub.verbs.iter().map(|v| v.as_str()).collect::<Vec<_>>(),
    });
    if !sub.group.is_empty() {
        value["group"] = json!(sub.group);
    }
    if !sub.version.is_empty() {
        value["version"] = json!(sub.version);
    }
    value
}
