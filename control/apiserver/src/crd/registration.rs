//! An `APIService` for each group-version that definitions serve (upstream crdregistration and autoregister).
//!
//! Level-triggered like the rest: each round compares all definitions with all APIServices that are managed so. What
//! somebody made by hand, without the label, stays as it is.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use serde_json::{Value, json};
use skep_store::Key;

use super::{RETRY, publish, rounds, row_of_definitions};
use crate::{
    bootstrap,
    cache::{WatchFrom, WatchRequest},
    codec::meta,
    context::{Api, now},
    hooks::Extra,
    registry::Registry,
    status::Result,
};

const GROUP: &str = "apiregistration.k8s.io";
const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Custom groups come after all built-in ones in discovery.
const GROUP_PRIORITY: u32 = 1000;
const VERSION_PRIORITY: u32 = 100;

/// Follows definitions and APIServices until the server is gone.
pub fn follow(api: &Arc<Api>) {
    tokio::spawn(run(Arc::downgrade(api)));
}

async fn run(api: Weak<Api>) {
    loop {
        let Some(strong) = api.upgrade() else { return };
        let watches = prefixes(&strong.registry.load()).and_then(|prefixes| {
            let watches = prefixes.map(|prefix| {
                strong.storage.cache.watch(WatchRequest {
                    prefix,
                    from: WatchFrom::InitialEvents,
                    field: None,
                })
            });
            let [definitions, services] = watches;
            Some((definitions.ok()?, services.ok()?))
        });
        drop(strong);
        let Some((definitions, services)) = watches else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let changes = futures::stream::select(definitions, services);
        rounds(&api, changes, |api| async move {
            match round(&api).await {
                Ok(()) => true,
                Err(why) => {
                    tracing::warn!(why, "registering the groups of definitions failed");
                    false
                }
            }
        })
        .await;
    }
}

fn prefixes(registry: &Registry) -> Option<[String; 2]> {
    let definitions = row_of_definitions(registry)?;
    let services = registry.any_version(GROUP, "apiservices")?;
    Some([definitions.prefix.clone(), services.prefix.clone()])
}

async fn round(api: &Arc<Api>) -> std::result::Result<(), String> {
    let Some([_, services]) = prefixes(&api.registry.load()) else {
        return Ok(());
    };
    // Definitions are large: those that did not change are not read again.
    publish(api, false);
    let served = {
        let known = api.definitions.known.lock();
        let definitions = known.definitions.values();
        served_versions(definitions.map(|definition| definition.value.as_ref()))
    };
    let services = read(api, &services);
    for (key, revision, service) in &services {
        if is_stale(service, &served) {
            let deleted: Result<_> = api.storage.delete(key, *revision, Extra::default()).await;
            deleted.map_err(|status| status.message.clone())?;
        }
    }
    let at = now().to_string();
    for (group, version) in served {
        let name = format!("{version}.{group}");
        if services
            .iter()
            .all(|(_, _, service)| meta(service, "name") != name)
        {
            bootstrap::ensure(api, api_service(&group, &version, &at))
                .await
                .map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn read(api: &Api, prefix: &str) -> Vec<(Key, u64, Value)> {
    let snapshot = api.storage.cache.snapshot(prefix);
    snapshot
        .iter()
        .filter_map(|entry| {
            let value = serde_json::from_slice(&entry.bytes()).ok()?;
            Some((entry.key.clone(), entry.revision, value))
        })
        .collect()
}

/// (group, version) pairs that some definition serves.
fn served_versions<'a>(definitions: impl Iterator<Item = &'a Value>) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for definition in definitions {
        let spec = &definition["spec"];
        let versions = spec["versions"].as_array().into_iter().flatten();
        for version in versions.filter(|version| version["served"] == true) {
            if let (Some(group), Some(name)) = (spec["group"].as_str(), version["name"].as_str()) {
                found.insert((group.to_owned(), name.to_owned()));
            }
        }
    }
    found
}

/// Ours, and of a group-version that no definition serves any more.
fn is_stale(service: &Value, served: &BTreeSet<(String, String)>) -> bool {
    let text = |field: &str| {
        service["spec"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    service["metadata"]["labels"][LABEL] == "true"
        && !served.contains(&(text("group"), text("version")))
}

fn api_service(group: &str, version: &str, now: &str) -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": format!("{version}.{group}"), "labels": {LABEL: "true"}},
        "spec": {
            "group": group, "version": version,
            "groupPriorityMinimum": GROUP_PRIORITY, "versionPriority": VERSION_PRIORITY,
        },
        "status": {"conditions": [{
            "type": "Available", "status": "True", "reason": "Local",
            "message": "Local APIServices are always available", "lastTransitionTime": now,
        }]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_we_registered_goes() {
        let definition = json!({"spec": {"group": "g.example", "versions": [
            {"name": "v1", "served": true}, {"name": "v1beta1", "served": false},
        ]}});
        let served = served_versions([definition].iter());
        assert_eq!(served, [("g.example".into(), "v1".into())].into());
        let check = |version: &str, label: Value, stale: bool| {
            let mut service = api_service("g.example", version, "");
            service["metadata"]["labels"] = label;
            assert_eq!(is_stale(&service, &served), stale, "{service}");
        };
        check("v1", json!({LABEL: "true"}), false);
        check("v1beta1", json!({LABEL: "true"}), true);
        check("v1beta1", json!({LABEL: "onstart"}), false);
        check("v1beta1", json!({}), false);
    }
}
