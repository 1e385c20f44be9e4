//! Admission of requests that become streams: exec, attach, portforward, proxy.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    admission::Operation, context::Ctx, handlers::write::Target, registry::Resource, status::Result,
};

/// Asks admission about this request, with its query as the options object of its kind.
pub async fn admit(ctx: &Ctx, resource: &Arc<Resource>, subresource: &str) -> Result<()> {
    let subresources = &resource.def.subresources;
    let Some(sub) = subresources.iter().find(|sub| sub.name == subresource) else {
        return Ok(());
    };
    let name = ctx.info.name.as_str();
    // `scheme:name:port` names an object too.
    let name = match name.split(':').collect::<Vec<_>>().as_slice() {
        ["" | "http" | "https", name, _] | [name, _] => *name,
        _ => name,
    };
    let target = Target {
        resource,
        namespace: if resource.namespaced() {
            &ctx.info.namespace
        } else {
            ""
        },
        name,
        subresource,
    };
    let options = options(ctx, &sub.kind);
    target
        .admit(ctx, Operation::Connect, &Value::Null, false, options)
        .await?;
    Ok(())
}

/// `PodExecOptions` and the like, as the query says them.
fn options(ctx: &Ctx, kind: &str) -> Value {
    let mut options = Map::new();
    options.insert("kind".into(), kind.into());
    options.insert("apiVersion".into(), "v1".into());
    let flag = |name: &str, default: bool| match ctx.query.find(name) {
        None => default,
        Some(_) => ctx.query.flag(name),
    };
    match kind {
        "PodExecOptions" | "PodAttachOptions" => {
            for (name, default) in [
                ("stdin", false),
                ("stdout", true),
                ("stderr", true),
                ("tty", false),
            ] {
                if flag(name, default) {
                    options.insert(name.into(), true.into());
                }
            }
            let container = ctx.query.get("container");
            if !container.is_empty() {
                options.insert("container".into(), container.into());
            }
            if kind == "PodExecOptions" {
                options.insert("command".into(), ctx.query.all("command").into());
            }
        }
        "PodPortForwardOptions" => {
            let ports: Vec<u16> = ctx
                .query
                .all("ports")
                .iter()
                .filter_map(|port| port.parse().ok())
                .collect();
            if !ports.is_empty() {
                options.insert("ports".into(), ports.into());
            }
        }
        _ => {
            let path = ctx.info.rest.trim_start_matches('/');
            if !path.is_empty() {
                options.insert("path".into(), format!("/{path}").into());
            }
        }
    }
    Value::Object(options)
}
