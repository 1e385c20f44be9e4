//! Which API servers share one store: each keeps a record alive, and the `kubernetes` Service leads to all whose record
//! is there (upstream's lease endpoint reconciler).

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use serde_json::{Value, json};
use skep_store::{Guard, Op};

use super::{BootstrapError, replace};
use crate::{codec::encode_stored, context::Api, hooks::Extra};

/// Not a resource: only API servers read these.
const PREFIX: &str = "/registry/skep.internal/masters/";
/// A server that is gone for this long is led to no more. Upstream's figures.
const TTL: Duration = Duration::from_secs(15);
const INTERVAL: Duration = Duration::from_secs(10);

fn key(address: SocketAddr) -> Arc<str> {
    format!("{PREFIX}{address}").into()
}

/// Everybody whose record is there, and ourselves.
pub(super) fn alive(api: &Api, own: SocketAddr) -> BTreeSet<SocketAddr> {
    let snapshot = api.storage.cache.snapshot(PREFIX);
    let mut alive: BTreeSet<SocketAddr> = snapshot
        .iter()
        .filter_map(|entry| entry.key.strip_prefix(PREFIX)?.parse().ok())
        .collect();
    alive.insert(own);
    alive
}

/// Renews our record and keeps the Service's endpoints true, until the server drains; then takes itself out.
pub async fn run(api: Arc<Api>, own: SocketAddr) {
    let mut draining = api.readiness.draining();
    loop {
        renew(&api, own).await;
        lead_to(&api, &alive(&api, own)).await;
        let pause = INTERVAL.mul_f64(rand::random_range(0.9..1.0));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = &mut draining => break,
        }
    }
    if let Some(entry) = api.storage.cache.get(&key(own)) {
        let removed = api
            .storage
            .delete(&entry.key, entry.revision, Extra::default());
        if let Err(error) = removed.await {
            tracing::warn!(
                error = error.message,
                "this server's record stays until it is old"
            );
        }
    }
    let mut others = alive(&api, own);
    others.remove(&own);
    if !others.is_empty() {
        lead_to(&api, &others).await;
    }
}

/// A failure is left to the next time.
async fn renew(api: &Api, own: SocketAddr) {
    let key = key(own);
    let record = json!({
        "kind": "Master", "apiVersion": "skep.internal/v1", "metadata": {"name": own.to_string()},
    });
    let guard = match api.storage.cache.get(&key) {
        Some(entry) => Guard::Unchanged(key.clone(), entry.revision),
        None => Guard::Missing(key.clone()),
    };
    let put = Op::Put {
        key,
        value: encode_stored(&record),
        ttl: Some(TTL),
    };
    if let Err(error) = api.storage.write(guard, put, Extra::default()).await {
        tracing::warn!(
            error = error.message,
            "this server's record cannot be renewed yet"
        );
    }
}

async fn lead_to(api: &Arc<Api>, addresses: &BTreeSet<SocketAddr>) {
    if let Err(error) = write(api, addresses).await {
        tracing::warn!(%error, "the endpoints of the kubernetes Service cannot be written yet");
    }
}

/// Endpoints and EndpointSlice of the `kubernetes` Service. Never empty.
pub(super) async fn write(
    api: &Arc<Api>,
    addresses: &BTreeSet<SocketAddr>,
) -> Result<(), BootstrapError> {
    let Some(first) = addresses.first() else {
        return Ok(());
    };
    let ports: BTreeSet<u16> = addresses.iter().map(SocketAddr::port).collect();
    let with = |port: u16| addresses.iter().filter(move |a| a.port() == port);
    let subsets: Vec<Value> = ports
        .iter()
        .map(|port| {
            let ips: Vec<Value> = with(*port).map(|a| json!({"ip": a.ip()})).collect();
            json!({
                "addresses": ips, "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            })
        })
        .collect();
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": subsets,
    });
    replace(api, endpoints).await?;
    let family = if first.is_ipv6() { "IPv6" } else { "IPv4" };
    // A slice has one set of ports. Servers of one cluster listen on the same port; the first server's stands under the
    // name that upstream uses.
    for (index, port) in ports.iter().enumerate() {
        let name = match index {
            0 => "kubernetes".to_owned(),
            _ => format!("kubernetes-{port}"),
        };
        let endpoints: Vec<Value> = with(*port)
            .map(|a| json!({"addresses": [a.ip()], "conditions": {"ready": true}}))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": "default", "generation": 1,
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": family, "endpoints": endpoints,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        });
        replace(api, slice).await?;
    }
    remove_others(api, &ports).await;
    Ok(())
}

/// Slices of ports on which nobody listens any more.
async fn remove_others(api: &Api, ports: &BTreeSet<u16>) {
    const SLICES: &str = "/registry/discovery.k8s.io/endpointslices/default/";
    let own: Vec<String> = ports
        .iter()
        .skip(1)
        .map(|port| format!("{SLICES}kubernetes-{port}"))
        .collect();
    let snapshot = api.storage.cache.snapshot(SLICES);
    let old = snapshot.iter().filter(|entry| {
        let ours = entry.labels.get("kubernetes.io/service-name") == Some("kubernetes");
        let port = entry
            .key
            .strip_prefix(SLICES)
            .and_then(|name| name.strip_prefix("kubernetes-"));
        ours && port.is_some_and(|port| port.parse::<u16>().is_ok())
            && !own.contains(&entry.key.to_string())
    });
    for entry in old.cloned().collect::<Vec<_>>() {
        let removed = api
            .storage
            .delete(&entry.key, entry.revision, Extra::default());
        if let Err(error) = removed.await {
            tracing::warn!(
                error = error.message,
                "an old slice of the kubernetes Service stays"
            );
        }
    }
}
