//! Keeps the table current, and the `Available` condition of each APIService true to what a check finds.
//!
//! One task a check at a time, a bound on how many at once: a server that does not answer holds up no other.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};

use super::{Aggregation, PREFIX, Remote, discovery, proxy};
use crate::{
    cache::{WatchFrom, WatchItem, WatchRequest},
    context::{Api, now},
    hooks::Extra,
    relay::{self, Tls},
    storage::{Written, to_stored},
};

/// How often each is checked.
const INTERVAL: Duration = Duration::from_secs(30);
/// And how often one that is not available.
const INTERVAL_UNAVAILABLE: Duration = Duration::from_secs(5);
/// How long a check may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Checks under way at once.
const MAX_CHECKS: usize = 16;
/// After one change was looked at, how long further ones gather before they are.
const SETTLE: Duration = Duration::from_millis(50);

/// Why the task goes on.
enum Wake {
    Check,
    Changed,
    Lost,
}

struct Finding {
    available: bool,
    reason: &'static str,
    message: String,
}

impl Finding {
    fn bad(reason: &'static str, message: String) -> Self {
        Self {
            available: false,
            reason,
            message,
        }
    }
}

/// Follows the APIServices, and the Services behind them, until the cache goes away.
pub async fn run(api: Arc<Api>) {
    loop {
        let watch = |prefix: &str| {
            api.storage.cache.watch(WatchRequest {
                prefix: prefix.to_owned(),
                from: WatchFrom::Now,
                field: None,
            })
        };
        let watches = [
            watch(PREFIX),
            watch("/registry/core/services/"),
            watch("/registry/discovery.k8s.io/endpointslices/"),
        ];
        let mut running = Vec::new();
        for watch in watches {
            match watch {
                Ok(watch) => running.push(watch),
                Err(error) => tracing::warn!(%error, "APIServices cannot be watched yet"),
            }
        }
        let mut changes = stream::select_all(running);
        api.aggregation.refresh(&api);
        check_all(&api).await;
        loop {
            let services = api.aggregation.table().services.clone();
            let interval = match services.as_slice() {
                // Nothing to check: only changes matter.
                [] => Duration::MAX,
                all if all.iter().all(|remote| remote.available) => INTERVAL,
                _ => INTERVAL_UNAVAILABLE,
            };
            let mut due = std::pin::pin!(tokio::time::sleep(interval));
            // Changes that concern nobody do not put the check off.
            let wake = loop {
                tokio::select! {
                    changed = changes.next() => match changed {
                        Some(Ok(item)) if !concerns(&item, &services) => {}
                        Some(Ok(_)) => break Wake::Changed,
                        // A watch fell behind: start over.
                        Some(Err(_)) | None => break Wake::Lost,
                    },
                    () = api.aggregation.suspicion.notified() => break Wake::Check,
                    () = &mut due => break Wake::Check,
                }
            };
            match wake {
                Wake::Check => {}
                Wake::Changed => {
                    // The table is made of all of them at once.
                    let lost = loop {
                        match changes.next().now_or_never() {
                            Some(Some(Ok(_))) => {}
                            Some(Some(Err(_)) | None) => break true,
                            None => break false,
                        }
                    };
                    if lost {
                        break;
                    }
                    api.aggregation.refresh(&api);
                }
                Wake::Lost => break,
            }
            check_all(&api).await;
            tokio::time::sleep(SETTLE).await;
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Whether a change may make a difference to an aggregated server.
fn concerns(item: &WatchItem, services: &[Arc<Remote>]) -> bool {
    let WatchItem::Event(event) = item else {
        return false;
    };
    let key = event.entry.key.as_ref();
    if key.starts_with(PREFIX) {
        return true;
    }
    let mut parts = key.split('/').skip(4);
    let (Some(namespace), Some(name)) = (parts.next(), parts.next()) else {
        return false;
    };
    let slice_of = event.entry.labels.get("kubernetes.io/service-name");
    services
        .iter()
        .any(|remote| remote.namespace == namespace && slice_of.unwrap_or(name) == remote.service)
}

async fn check_all(api: &Arc<Api>) {
    let services = api.aggregation.table().services.clone();
    if services.is_empty() {
        return;
    }
    stream::iter(services)
        .for_each_concurrent(MAX_CHECKS, |remote| async move {
            let finding = check(api, &remote).await;
            if finding.available {
                let documents = discovery::fetch(api, &remote, TIMEOUT).await;
                api.aggregation.learned(&remote.name, documents);
            }
            write(api, &remote, &finding).await;
        })
        .await;
    api.aggregation.refresh(api);
}

/// Upstream's order and words (kube-aggregator `remote_available_controller.go`).
async fn check(api: &Api, remote: &Remote) -> Finding {
    let Remote {
        service,
        namespace,
        port,
        ..
    } = remote;
    let stored = format!("/registry/core/services/{namespace}/{service}");
    let Some(entry) = api.storage.cache.get(&stored) else {
        return Finding::bad(
            "ServiceNotFound",
            format!("service/{service} in {namespace:?} is not present"),
        );
    };
    let object: Value = serde_json::from_slice(&entry.bytes()).unwrap_or_default();
    let ports = object["spec"]["ports"].as_array();
    let mut ports = ports.into_iter().flatten();
    let Some(found) = ports.find(|p| p["port"].as_u64() == Some(u64::from(*port))) else {
        return Finding::bad(
            "ServicePortError",
            format!("service/{service} in {namespace:?} is not listening on port {port}"),
        );
    };
    let slices = format!("/registry/discovery.k8s.io/endpointslices/{namespace}/");
    let snapshot = api.storage.cache.snapshot(&slices);
    let of_service = |entry: &&Arc<crate::cache::Entry>| {
        entry.labels.get("kubernetes.io/service-name") == Some(service.as_str())
    };
    if !snapshot.iter().any(|entry| of_service(&entry)) {
        return Finding::bad(
            "EndpointsNotFound",
            format!("cannot find endpointslices for service/{service} in {namespace:?}"),
        );
    }
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let mut destination = match proxy::destination(api, remote, path) {
        Ok(destination) => destination,
        Err(why) if remote.tls.is_err() => {
            return Finding::bad("FailedDiscoveryCheck", why);
        }
        Err(_) => {
            let name = found["name"].as_str().unwrap_or_default();
            return Finding::bad(
                "MissingEndpoints",
                format!(
                    "endpointslices for service/{service} in {namespace:?} have no addresses with port name {name:?}"
                ),
            );
        }
    };
    destination.headers =
        proxy::identity(&crate::identity::User::component("system:kube-aggregator"));
    let url = url(&destination);
    let answer = tokio::time::timeout(TIMEOUT, relay::fetch(api, &destination)).await;
    let why = match answer {
        Ok(Ok(answer)) if answer.status.is_success() => {
            return Finding {
                available: true,
                reason: "Passed",
                message: "all checks passed".to_owned(),
            };
        }
        Ok(Ok(answer)) => format!("bad status from {url}: {}", answer.status.as_u16()),
        Ok(Err(why)) => format!("Get \"{url}\": {why}"),
        Err(_) => format!("Get \"{url}\": context deadline exceeded"),
    };
    Finding::bad(
        "FailedDiscoveryCheck",
        format!("failing or missing response from {url}: {why}"),
    )
}

fn url(destination: &relay::Destination) -> String {
    let scheme = match destination.tls {
        Tls::None => "http",
        _ => "https",
    };
    let target = std::net::SocketAddr::new(destination.address, destination.port);
    format!("{scheme}://{target}{}", destination.path)
}

/// A conflict is left to the next check: whoever was faster knows better.
async fn write(api: &Api, remote: &Remote, finding: &Finding) {
    let registry = api.registry.load_full();
    let Some(resource) = registry.get("apiregistration.k8s.io", "v1", "apiservices") else {
        return;
    };
    let key = resource.key("", &remote.name);
    let Some(entry) = api.storage.cache.get(&key) else {
        return;
    };
    let Ok(mut object) = serde_json::from_slice::<Value>(&entry.bytes()) else {
        return;
    };
    let status = if finding.available { "True" } else { "False" };
    let mut conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let mut condition = json!({
        "type": "Available", "status": status, "lastTransitionTime": now().to_string(),
        "reason": finding.reason, "message": finding.message,
    });
    match conditions.iter_mut().find(|c| c["type"] == "Available") {
        Some(former) => {
            if former["status"] == condition["status"] {
                condition["lastTransitionTime"] = former["lastTransitionTime"].clone();
            }
            if *former == condition {
                return;
            }
            *former = condition;
        }
        None => conditions.push(condition),
    }
    object["status"]["conditions"] = conditions.into();
    let stored = to_stored(resource, &object);
    let written = api
        .storage
        .update(&key, stored, entry.revision, None, Extra::default())
        .await;
    match written {
        Ok(Written::At(_)) => {
            tracing::info!(
                apiservice = remote.name,
                available = finding.available,
                reason = finding.reason,
                "an aggregated API changed"
            );
        }
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(
                apiservice = remote.name,
                error = error.message,
                "the condition of an APIService cannot be written yet"
            );
        }
    }
}

impl Aggregation {
    /// For tests and the start: everything that is stored now is in the table.
    pub async fn settle(&self, api: &Arc<Api>) {
        self.refresh(api);
        check_all(api).await;
    }
}
