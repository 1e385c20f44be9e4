//! pods/log, exec, attach and portforward, and the `proxy` subresources: finding out where to relay to.

use std::{net::IpAddr, sync::Arc};

use axum::response::Response;
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::Value;

use crate::{
    codec::meta,
    context::{Api, Ctx},
    registry::Resource,
    relay::{self, Destination, Tls},
    respond::text,
    status::{Result, Status},
    websocket,
};

const AGENT_PORT: u16 = 10250;

async fn stored(ctx: &Ctx, plural: &str, namespace: &str, name: &str) -> Result<Value> {
    let resource = ctx.registry.get("", "v1", plural);
    let resource = resource.ok_or_else(Status::no_such_resource)?;
    let entry = ctx.api.storage.get(&resource.key(namespace, name)).await?;
    let entry = entry.ok_or_else(|| Status::missing(resource, name))?;
    serde_json::from_slice(&entry.bytes())
        .map_err(|error| Status::internal("decoding a stored object", &error))
}

/// Address and agent port of a node; upstream's order of address types.
async fn node(ctx: &Ctx, name: &str) -> Result<(IpAddr, u16)> {
    let node = stored(ctx, "nodes", "", name).await?;
    agent_address(&node).ok_or_else(|| {
        let addresses = node["status"]["addresses"].as_array();
        let addresses = addresses.map(Vec::as_slice).unwrap_or_default();
        Status::internal_message(&format!(
            "no preferred addresses found; known addresses: {addresses:?}"
        ))
    })
}

/// Where a node's agent listens. `None`: it has no address yet.
pub(crate) fn agent_address(node: &Value) -> Option<(IpAddr, u16)> {
    let addresses = node["status"]["addresses"].as_array()?;
    let address = ["InternalIP", "ExternalIP", "Hostname"]
        .iter()
        .find_map(|wanted| {
            let mut of_type = addresses.iter().filter(|a| a["type"] == *wanted);
            of_type.find_map(|a| a["address"].as_str()?.parse().ok())
        })?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
    Some((address, port.unwrap_or(AGENT_PORT)))
}

/// Percent-encodes what may not stand in a path segment or query value.
fn escape(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// The container that a request means.
fn container(ctx: &Ctx, pod: &Value) -> Result<String> {
    let names = |field: &str| -> Vec<String> {
        let containers = pod["spec"][field].as_array().into_iter().flatten();
        containers
            .filter_map(|c| c["name"].as_str())
            .map(str::to_owned)
            .collect()
    };
    let (main, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    let wanted = ctx.query.get("container");
    let pod_name = meta(pod, "name");
    if !wanted.is_empty() {
        let known = main
            .iter()
            .chain(&init)
            .chain(&ephemeral)
            .any(|name| name == wanted);
        return if known {
            Ok(wanted.to_owned())
        } else {
            Err(Status::bad_request(format!(
                "container {wanted} is not valid for pod {pod_name}"
            )))
        };
    }
    match main.as_slice() {
        [only] if init.is_empty() || ctx.info.subresource != "log" => Ok(only.clone()),
        [only] => Ok(only.clone()),
        _ => {
            let mut why = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                main.join(" ")
            );
            if !init.is_empty() {
                why.push_str(&format!(
                    " or one of the init containers: [{}]",
                    init.join(" ")
                ));
            }
            Err(Status::bad_request(why))
        }
    }
}

/// `key=value` pairs of the query that the agent knows, under the names that it knows them by.
fn parameters(ctx: &Ctx, names: &[(&str, &str)]) -> String {
    let mut query = String::new();
    for (ours, theirs) in names {
        for value in ctx.query.all(ours) {
            if matches!(*theirs, "input" | "output" | "error" | "tty") {
                if value.eq_ignore_ascii_case("false") || value == "0" {
                    continue;
                }
                push_pair(&mut query, theirs, "1");
            } else {
                push_pair(&mut query, theirs, &value);
            }
        }
    }
    query
}

fn push_pair(query: &mut String, key: &str, value: &str) {
    query.push(if query.is_empty() { '?' } else { '&' });
    query.push_str(key);
    query.push('=');
    query.push_str(&escape(value));
}

pub async fn log(ctx: &Ctx) -> Result<Response> {
    let (namespace, name) = (&ctx.info.namespace, &ctx.info.name);
    check_log_options(ctx)?;
    let pod = stored(ctx, "pods", namespace, name).await?;
    let container = container(ctx, &pod)?;
    let Some(node_name) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) else {
        // Not scheduled yet: there is nothing to read.
        return Ok(text(StatusCode::OK, ""));
    };
    let (address, port) = node(ctx, node_name).await?;
    let query = parameters(
        ctx,
        &[
            ("follow", "follow"),
            ("previous", "previous"),
            ("timestamps", "timestamps"),
            ("sinceSeconds", "sinceSeconds"),
            ("sinceTime", "sinceTime"),
            ("tailLines", "tailLines"),
            ("limitBytes", "limitBytes"),
            ("stream", "stream"),
        ],
    );
    let destination = Destination {
        address,
        port,
        tls: Tls::Node,
        node: Some(node_name.to_owned()),
        path: format!(
            "/containerLogs/{}/{}/{}{query}",
            escape(namespace),
            escape(name),
            escape(&container)
        ),
        headers: HeaderMap::new(),
    };
    match websocket::is_asked(&ctx.headers) {
        true => websocket::pieces(ctx, relay::fetch_plain(ctx, &destination).await?),
        false => relay::forward(ctx, &destination).await,
    }
}

fn check_log_options(ctx: &Ctx) -> Result<()> {
    use skep_api::field::{Bad, FieldError, FieldErrorKind::Invalid};
    let mut errors = Vec::new();
    for (field, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        let Some(text) = ctx.query.find(field).filter(|t| !t.is_empty()) else {
            continue;
        };
        let number: i64 = text.parse().map_err(|_| {
            Status::bad_request(format!(
                "strconv.ParseInt: parsing {text:?}: invalid syntax"
            ))
        })?;
        if number < least {
            errors.push(FieldError::new(Invalid, field, Bad::json(&number), why));
        }
    }
    if ctx.query.find("sinceSeconds").is_some() && ctx.query.find("sinceTime").is_some() {
        errors.push(FieldError::new(
            skep_api::field::FieldErrorKind::Forbidden,
            "",
            Bad::omitted(),
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid(
            "",
            "PodLogOptions",
            &ctx.info.name,
            &errors,
        ))
    }
}

/// exec, attach and portforward.
pub async fn stream(ctx: &Ctx, resource: &Arc<Resource>, subresource: &str) -> Result<Response> {
    let (namespace, name) = (&ctx.info.namespace, &ctx.info.name);
    if ctx.method == Method::GET {
        // A WebSocket begins with GET, but what it does is to create a process.
        ctx.authorize_resource("create", name)?;
    }
    super::connect::admit(ctx, resource, subresource).await?;
    let pod = stored(ctx, "pods", namespace, name).await?;
    let container = match subresource {
        "portforward" => String::new(),
        _ => container(ctx, &pod)?,
    };
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    let Some(node_name) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) else {
        return Err(Status::bad_request(format!(
            "pod {name} does not have a host assigned"
        )));
    };
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Status::bad_request(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    let (address, port) = node(ctx, node_name).await?;
    if ctx.headers.get(header::UPGRADE).is_none() {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let path = if subresource == "portforward" {
        let query = parameters(ctx, &[("ports", "port")]);
        format!("/portForward/{}/{}{query}", escape(namespace), escape(name))
    } else {
        let mut names = vec![
            ("stdin", "input"),
            ("stdout", "output"),
            ("stderr", "error"),
            ("tty", "tty"),
        ];
        if subresource == "exec" {
            if ctx.query.all("command").is_empty() {
                return Err(Status::bad_request(
                    "you must specify at least 1 command for the container",
                ));
            }
            names.push(("command", "command"));
        }
        let query = parameters(ctx, &names);
        let (namespace, name, container) = (escape(namespace), escape(name), escape(&container));
        format!("/{subresource}/{namespace}/{name}/{container}{query}")
    };
    let destination = Destination {
        address,
        port,
        tls: Tls::Node,
        node: Some(node_name.to_owned()),
        path,
        headers: HeaderMap::new(),
    };
    relay::forward(ctx, &destination).await
}

/// `name`, `name:port`, `scheme:name:port`
struct Target<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

/// `kind`: what it is of, for the refusal.
fn split_target<'a>(text: &'a str, kind: &str) -> Result<Target<'a>> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] if !name.is_empty() => ("", *name, ""),
        [name, port] if !name.is_empty() => ("", *name, *port),
        [scheme @ ("" | "http" | "https"), name, port] if !name.is_empty() => {
            (*scheme, *name, *port)
        }
        _ => {
            return Err(Status::bad_request(format!(
                "invalid {kind} request {text:?}"
            )));
        }
    };
    Ok(Target { scheme, name, port })
}

fn proxy_path(ctx: &Ctx, path: Option<&str>) -> String {
    let rest = path
        .unwrap_or(ctx.info.rest.as_str())
        .trim_start_matches('/');
    let query = ctx
        .query_text
        .as_deref()
        .map(|q| format!("?{q}"))
        .unwrap_or_default();
    format!("/{rest}{query}")
}

pub async fn proxy(ctx: &Ctx) -> Result<Response> {
    let namespace = &ctx.info.namespace;
    let kind = ctx.info.resource.trim_end_matches('s');
    let target = split_target(&ctx.info.name, kind)?;
    let path = proxy_path(ctx, None);
    let tls = if target.scheme == "https" {
        Tls::Proxy
    } else {
        Tls::None
    };
    let number = |port: &str| port.parse::<u16>().ok().filter(|p| *p != 0);
    let destination = match ctx.info.resource.as_str() {
        "nodes" => {
            let (address, own_port) = node(ctx, target.name).await?;
            let port = number(target.port).unwrap_or(own_port);
            // Only the agent's own port speaks our TLS.
            let tls = if port == own_port { Tls::Node } else { tls };
            Destination {
                address,
                port,
                tls,
                node: Some(target.name.to_owned()),
                path,
                headers: HeaderMap::new(),
            }
        }
        "pods" => {
            let pod = stored(ctx, "pods", namespace, target.name).await?;
            let address = pod["status"]["podIP"]
                .as_str()
                .and_then(|ip| ip.parse().ok());
            let address = address.ok_or_else(|| Status::bad_request("address not allowed"))?;
            let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
            let ports = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
            let first = ports.into_iter().find_map(|p| p["containerPort"].as_u64());
            let first = first.and_then(|p| u16::try_from(p).ok());
            let port = number(target.port).or(first).unwrap_or(80);
            Destination {
                address,
                port,
                tls,
                node: pod["spec"]["nodeName"].as_str().map(str::to_owned),
                path,
                headers: HeaderMap::new(),
            }
        }
        _ => {
            let Endpoint {
                address,
                port,
                node,
            } = endpoint(ctx, namespace, &target).await?;
            Destination {
                address,
                port,
                tls,
                node,
                path,
                headers: HeaderMap::new(),
            }
        }
    };
    if destination.address.is_loopback() || is_link_local(destination.address) {
        return Err(Status::bad_request("address not allowed"));
    }
    relay::forward(ctx, &destination).await
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// One of a Service's endpoints.
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
    pub node: Option<String>,
}

async fn endpoint(ctx: &Ctx, namespace: &str, target: &Target<'_>) -> Result<Endpoint> {
    // Says that the Service is missing, if it is.
    stored(ctx, "services", namespace, target.name).await?;
    service_endpoint(&ctx.api, namespace, target.name, target.port)
}

/// A ready endpoint of a Service, at random. `port`: its number or name; empty for the only one.
///
/// # Errors
/// 503 while there is none.
pub fn service_endpoint(
    api: &Api,
    namespace: &str,
    service_name: &str,
    port: &str,
) -> Result<Endpoint> {
    let key = format!("/registry/core/services/{namespace}/{service_name}");
    let entry = api.storage.cache.get(&key);
    let service: Value = entry
        .and_then(|entry| serde_json::from_slice(&entry.bytes()).ok())
        .unwrap_or_default();
    let ports = service["spec"]["ports"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let wanted = match (port, ports.as_slice()) {
        ("", [only]) => Some(only),
        ("", _) => ports
            .iter()
            .find(|p| p["name"].as_str().unwrap_or_default().is_empty()),
        (text, _) => ports.iter().find(|p| {
            p["name"] == text || p["port"].as_u64().is_some_and(|n| n.to_string() == text)
        }),
    };
    let wanted = wanted.ok_or_else(|| {
        Status::service_unavailable(format!(
            "no service port {:?} found for service {:?}",
            port, service_name
        ))
    })?;
    let name = wanted["name"].as_str().unwrap_or_default();
    let none = || {
        Status::service_unavailable(format!(
            "no endpoints available for service {:?}",
            service_name
        ))
    };
    let slices = format!("/registry/discovery.k8s.io/endpointslices/{namespace}/");
    let snapshot = api.storage.cache.snapshot(&slices);
    let mut found = Vec::new();
    let of_service = snapshot
        .iter()
        .filter(|entry| entry.labels.get("kubernetes.io/service-name") == Some(service_name));
    for entry in of_service {
        let slice: Value = serde_json::from_slice(&entry.bytes()).unwrap_or_default();
        let ports = slice["ports"].as_array().into_iter().flatten();
        let port = ports
            .into_iter()
            .find(|p| p["name"].as_str().unwrap_or_default() == name)
            .and_then(|p| p["port"].as_u64())
            .and_then(|p| u16::try_from(p).ok());
        let Some(port) = port else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] == false {
                continue;
            }
            let address = endpoint["addresses"][0]
                .as_str()
                .and_then(|a| a.parse().ok());
            found.extend(address.map(|address: IpAddr| Endpoint {
                address,
                port,
                node: endpoint["nodeName"].as_str().map(str::to_owned),
            }));
        }
    }
    if found.is_empty() {
        return Err(none());
    }
    Ok(found.swap_remove(rand::random_range(0..found.len())))
}
