//! Which config maps and secrets pods' volumes show: one watch for each, whoever shows it.
//!
//! A change wakes the pods concerned, which then read and write what differs. Metadata is enough for
//! that, so nothing secret is kept here. A node may watch only what its pods use, object by object.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tracing::debug;

use super::{WatchBackoff, pod};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    ConfigMap,
    Secret,
}

/// Kind, namespace and name.
type Key = (Kind, String, String);

/// By pod uid: how to wake it.
type Users = Arc<Mutex<HashMap<String, Arc<Notify>>>>;

struct Entry {
    users: Users,
    task: AbortHandle,
}

pub struct Watches {
    client: Client,
    entries: Mutex<HashMap<Key, Entry>>,
}

impl Watches {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            entries: Mutex::default(),
        }
    }

    /// From now on `wake` is notified when something that the pod's volumes show changes.
    pub fn follow(&self, pod: &Pod, wake: &Arc<Notify>) {
        let uid = pod.uid().unwrap_or_default();
        let mut entries = self.entries.lock();
        for key in shown(pod) {
            let entry = entries
                .entry(key.clone())
                .or_insert_with(|| self.begin(&key));
            entry.users.lock().insert(uid.clone(), wake.clone());
        }
    }

    pub fn forget(&self, uid: &str) {
        self.entries.lock().retain(|_, entry| {
            let mut users = entry.users.lock();
            users.remove(uid);
            if users.is_empty() {
                entry.task.abort();
            }
            !users.is_empty()
        });
    }

    fn begin(&self, (kind, namespace, name): &Key) -> Entry {
        let users = Users::default();
        let (client, name) = (self.client.clone(), name.clone());
        let task = match kind {
            Kind::ConfigMap => {
                let api: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client, namespace);
                tokio::spawn(watch(api, name, users.clone()))
            }
            Kind::Secret => {
                let api: Api<PartialObjectMeta<Secret>> = Api::namespaced(client, namespace);
                tokio::spawn(watch(api, name, users.clone()))
            }
        };
        Entry {
            users,
            task: task.abort_handle(),
        }
    }
}

fn shown(pod: &Pod) -> HashSet<Key> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut out = HashSet::new();
    let mut add = |kind, name: Option<&str>| {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            out.insert((kind, namespace.clone(), name.to_string()));
        }
    };
    for volume in pod::spec(pod).volumes.iter().flatten() {
        let map = volume.config_map.as_ref();
        add(Kind::ConfigMap, map.map(|m| m.name.as_str()));
        let secret = volume.secret.as_ref();
        add(Kind::Secret, secret.and_then(|s| s.secret_name.as_deref()));
        let sources = volume.projected.as_ref().and_then(|p| p.sources.as_ref());
        for source in sources.into_iter().flatten() {
            let map = source.config_map.as_ref();
            add(Kind::ConfigMap, map.map(|m| m.name.as_str()));
            let secret = source.secret.as_ref();
            add(Kind::Secret, secret.map(|s| s.name.as_str()));
        }
    }
    out
}

async fn watch<K>(api: Api<PartialObjectMeta<K>>, name: String, users: Users)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(api, config).backoff(WatchBackoff::new()));
    // `None` until the first list is complete; then the version, if there is one. The pods have
    // read the object after this watch was asked for, so the first one is no news.
    let mut known: Option<Option<String>> = None;
    let mut listed = None;
    while let Some(event) = events.next().await {
        let version = match event {
            Ok(watcher::Event::Init) => {
                listed = None;
                continue;
            }
            Ok(watcher::Event::InitApply(o)) => {
                if o.name_any() == name {
                    listed = o.resource_version();
                }
                continue;
            }
            Ok(watcher::Event::InitDone) => listed.take(),
            Ok(watcher::Event::Apply(o)) if o.name_any() == name => o.resource_version(),
            Ok(watcher::Event::Delete(o)) if o.name_any() == name => None,
            Ok(_) => continue,
            Err(e) => {
                debug!(name, error = %e, "the watch of an object that a volume shows failed");
                continue;
            }
        };
        let news = known.as_ref().is_some_and(|known| *known != version);
        known = Some(version);
        if news {
            for wake in users.lock().values() {
                wake.notify_one();
            }
        }
    }
}
