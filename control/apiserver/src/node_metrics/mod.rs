//! `metrics.k8s.io`: what nodes and pods use, without an add-on.
//!
//! `collect` reads every node agent's `/metrics/resource` and keeps the last two readings; `samples` (pure) makes
//! rates of them; this file answers requests from both and from the watch cache, which knows the labels.

mod collect;
mod rows;
mod samples;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use parking_lot::RwLock;
use serde_json::{Value, json};

use self::samples::{Reading, Usage};
use crate::{
    cache::Entry,
    codec,
    context::Ctx,
    handlers::selection::Selection,
    options::ListOptions,
    registry::Resource,
    respond::{self, ListHead, Object, Rendering},
    status::{Result, Status},
};

pub use self::{
    collect::run,
    rows::{GROUP, rows},
};

/// As metrics-server's `--metric-resolution`.
pub const PERIOD: Duration = Duration::from_secs(15);

/// The last two readings of each node.
#[derive(Default)]
pub struct NodeMetrics {
    nodes: RwLock<HashMap<String, Arc<Pair>>>,
    pub counters: collect::Counters,
}

#[derive(Default)]
struct Pair {
    previous: Option<Reading>,
    last: Reading,
}

impl NodeMetrics {
    /// Takes in what a node's `/metrics/resource` said.
    pub fn read(&self, node: &str, text: &str, now: Timestamp) {
        self.record(node, Reading::parse(text, now));
    }

    fn record(&self, node: &str, reading: Reading) {
        let mut nodes = self.nodes.write();
        let entry = nodes.entry(node.to_owned()).or_default();
        let same = entry.last.node.map(|point| point.at_ms) == reading.node.map(|p| p.at_ms);
        if same && reading.node.is_some() {
            return;
        }
        let previous = match Arc::try_unwrap(std::mem::take(entry)) {
            Ok(pair) => pair.last,
            Err(shared) => shared.last.clone(),
        };
        *entry = Arc::new(Pair {
            previous: previous.node.is_some().then_some(previous),
            last: reading,
        });
    }

    /// Forgets nodes that are gone, and readings that are too old to be true.
    fn retain(&self, known: impl Fn(&str) -> bool, now: Timestamp) {
        let oldest = now.as_millisecond() - 4 * PERIOD.as_millis() as i64;
        self.nodes.write().retain(|name, pair| {
            known(name) && pair.last.node.is_none_or(|point| point.at_ms >= oldest)
        });
    }

    fn node(&self, name: &str) -> Option<Usage> {
        let pair = self.nodes.read().get(name)?.clone();
        let before = pair.previous.as_ref().and_then(|r| r.node.as_ref());
        samples::usage(before, pair.last.node.as_ref()?)
    }

    fn pod(&self, node: &str, namespace: &str, name: &str) -> Option<Vec<(String, Usage)>> {
        let pair = self.nodes.read().get(node)?.clone();
        let key = (namespace.to_owned(), name.to_owned());
        let before = pair.previous.as_ref().and_then(|r| r.pods.get(&key));
        samples::pod_usage(before, pair.last.pods.get(&key)?)
    }

    /// The object that describes the node or pod of this entry.
    fn object(&self, metrics: &Resource, of: &Entry, now: Timestamp) -> Option<Value> {
        let rest = of.key.rsplit('/').next().unwrap_or_default();
        let (usages, namespace) = if metrics.namespaced() {
            let mut parts = of.key.rsplit('/').skip(1);
            let namespace = parts.next().unwrap_or_default();
            let node = of.fields.get("spec.nodeName").filter(|n| !n.is_empty())?;
            (self.pod(node, namespace, rest)?, Some(namespace))
        } else {
            (vec![(String::new(), self.node(rest)?)], None)
        };
        let labels: serde_json::Map<String, Value> = of
            .labels
            .iter()
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect();
        let mut metadata = json!({"name": rest, "creationTimestamp": now.to_string()});
        if let Some(namespace) = namespace {
            metadata["namespace"] = namespace.into();
        }
        if !labels.is_empty() {
            metadata["labels"] = labels.into();
        }
        let earliest = usages.iter().map(|(_, usage)| *usage);
        let earliest = earliest.min_by_key(|usage| usage.at_ms)?;
        let at = Timestamp::from_second(earliest.at_ms / 1000).unwrap_or(now);
        let mut object = json!({
            "kind": metrics.def.kind, "apiVersion": metrics.api_version, "metadata": metadata,
            "timestamp": at.to_string(), "window": window(earliest.window_ms),
        });
        if namespace.is_some() {
            let containers = usages
                .iter()
                .map(|(name, usage)| json!({"name": name, "usage": amounts(usage)}));
            object["containers"] = containers.collect();
        } else {
            object["usage"] = amounts(&earliest);
        }
        Some(object)
    }
}

fn amounts(usage: &Usage) -> Value {
    json!({
        "cpu": format!("{}n", usage.cpu_ns_per_second),
        "memory": format!("{}Ki", usage.memory_bytes / 1024),
    })
}

/// A duration as Go prints it.
fn window(ms: i64) -> String {
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    if minutes > 0 {
        format!("{minutes}m{seconds}s")
    } else {
        format!("{seconds}s")
    }
}

/// Whether the row is one of ours: an installed add-on of the same group has rows of its own.
pub fn serves(resource: &Resource) -> bool {
    !resource.custom && resource.def.group == GROUP
}

/// The stored kind that a row of metrics is about.
fn subject<'a>(ctx: &'a Ctx, resource: &Resource) -> Result<&'a Arc<Resource>> {
    let subject = ctx.registry.get("", "v1", &resource.def.plural);
    subject.ok_or_else(Status::no_such_resource)
}

/// # Errors
/// 404 when there is no such node or pod, or nothing is known of it yet.
pub async fn get(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    let subject = subject(ctx, resource)?;
    let (namespace, name) = (&ctx.info.namespace, &ctx.info.name);
    let key = subject.key(namespace, name);
    let known = ctx.api.storage.find(&key).await?;
    let object = known.and_then(|entry| {
        let metrics = &ctx.api.node_metrics;
        metrics.object(resource, &entry, ctx.now)
    });
    let missing = || {
        let shown = if namespace.is_empty() {
            name.clone()
        } else {
            format!("{namespace}/{name}")
        };
        Status::not_found(GROUP, &resource.def.kind.to_lowercase(), &shown)
    };
    let object = object.ok_or_else(missing)?;
    ctx.object(resource, StatusCode::OK, Object::Value(object), &out)
}

/// Everything selected of which something is known.
///
/// # Errors
/// 400 for selectors that cannot be.
pub async fn list(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    let rendering = Rendering::of_list(ctx, resource, out)?;
    let options = ListOptions::parse(&ctx.query, false)?;
    let subject = subject(ctx, resource)?;
    let selection = Selection::new(ctx, subject, &options)?;
    let page = crate::handlers::read::page(ctx, subject, &selection, &Default::default()).await?;
    let entries = page.entries.iter().filter_map(|entry| {
        let object = ctx.api.node_metrics.object(resource, entry, ctx.now)?;
        Some(Arc::new(Entry {
            key: entry.key.clone(),
            body: codec::encode_object(&object).into(),
            stale: false,
            create_revision: 0,
            revision: 0,
            uid: "".into(),
            labels: entry.labels.clone(),
            fields: Default::default(),
        }))
    });
    let head = ListHead {
        resource_version: String::new(),
        continue_token: String::new(),
        remaining: None,
    };
    respond::list(ctx, &rendering, &head, entries.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_read_as_go_durations() {
        for (ms, text) in [(15_000, "15s"), (10_062, "10.062s"), (61_500, "1m1.5s")] {
            assert_eq!(window(ms), text);
        }
    }
}
