//! Informers: one list+watch per kind, whoever asks, kept as an indexed cache with synchronous change handlers.
//!
//! ```text
//!  watch ── Apply/Delete/Init… ──► Cache (objects, by owner, by index) ──► handlers(Change { old, new }) ──► queues
//! ```
//! # Guarantees
//! - Handlers of one informer run one at a time, in the order of the events, after the cache shows the change.
//! - After a relist handlers get the difference: an object that vanished meanwhile is reported as deleted.
//! - A handler added late first gets every object as an addition.
//!
//! # Caveats
//! The cache lags the server, own writes included: see [`crate::expectations`]. Handlers must be quick: they may enqueue,
//! not wait. What no reconciler reads is dropped from the cache ([`slim`]), so never write a cached Pod back whole: patch.

use std::{
    any::{Any, TypeId},
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    fmt::Debug,
    hash::Hash,
    ops::Bound,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, future};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Resource,
    core::{ApiResource, DynamicObject, ObjectMeta, PartialObjectMeta},
    runtime::watcher,
};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Backoff, ObjectKey};

/// Between attempts to list or watch after a failure.
const WATCH_BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// Objects of one list request. A page is in memory as text, twice, and as objects while it is read, and an EndpointSlice
/// may have 30 KB.
const PAGE: u32 = 100;

/// Index of the pods bound to a node, by the node's name.
pub const BY_NODE: &str = "node";
/// Index of EndpointSlices by `namespace/service`.
pub const BY_SERVICE: &str = "service";

/// What a cache holds before and after an event. Never both `None`.
#[derive(Debug)]
pub struct Change<K> {
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The newest known form of the object.
    pub fn object(&self) -> &Arc<K> {
        match (&self.new, &self.old) {
            (Some(object), _) | (None, Some(object)) => object,
            (None, None) => unreachable!("a change has an old or a new object"),
        }
    }

    pub fn is_delete(&self) -> bool {
        self.new.is_none()
    }

    /// Both forms, oldest first.
    pub fn each(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// What a cache keeps of an object: the object, or of a kind that a cluster has very many of, what is read of it.
pub trait Kept: Send + Sync + 'static {
    /// As the API sends it.
    type Sent;

    fn keep(sent: Self::Sent) -> Self;

    fn key(&self) -> ObjectKey;

    /// Whether both, which have the same key, are the same version of the same object.
    fn is_same(&self, other: &Self) -> bool;

    /// The uids of its owners, as far as anybody looks for it by them.
    fn owners(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }

    /// The names of indexes, and its value in each.
    fn indexes(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

impl<K: Resource + Clone + Send + Sync + 'static> Kept for K {
    type Sent = K;

    fn keep(mut sent: K) -> K {
        slim(&mut sent);
        sent
    }

    fn key(&self) -> ObjectKey {
        ObjectKey::of(self.meta())
    }

    fn is_same(&self, other: &K) -> bool {
        let (one, other) = (self.meta(), other.meta());
        one.resource_version == other.resource_version && one.uid == other.uid
    }

    fn owners(&self) -> impl Iterator<Item = &str> {
        let owners = self.meta().owner_references.iter().flatten();
        owners.map(|owner| owner.uid.as_str())
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        indexes(self)
    }
}

struct Cache<K> {
    objects: BTreeMap<Arc<ObjectKey>, Arc<K>>,
    /// Keys by uid of any owner.
    by_owner: HashMap<String, Keys>,
    by_index: HashMap<(&'static str, String), Keys>,
}

/// Never empty. A set of one, which most are, would take as much memory as one of eleven.
enum Keys {
    One(Arc<ObjectKey>),
    Many(BTreeSet<Arc<ObjectKey>>),
}

impl Keys {
    fn iter(&self) -> impl Iterator<Item = &Arc<ObjectKey>> {
        let (one, many) = match self {
            Keys::One(key) => (Some(key), None),
            Keys::Many(keys) => (None, Some(keys)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            by_owner: HashMap::new(),
            by_index: HashMap::new(),
        }
    }
}

impl<K: Kept> Cache<K> {
    fn put(&mut self, key: ObjectKey, object: Option<Arc<K>>) -> Option<Arc<K>> {
        let known = self.objects.get_key_value(&key);
        let key = known.map_or_else(|| Arc::new(key), |(known, _)| known.clone());
        let old = match &object {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(&key),
        };
        if let Some(old) = &old {
            for owner in old.owners() {
                unindex(&mut self.by_owner, owner, &key);
            }
            for index in old.indexes() {
                unindex(&mut self.by_index, &index, &key);
            }
        }
        if let Some(object) = &object {
            for owner in object.owners() {
                add_to(&mut self.by_owner, owner.to_owned(), &key);
            }
            for index in object.indexes() {
                add_to(&mut self.by_index, index, &key);
            }
        }
        old
    }
}

fn add_to<I: Eq + Hash>(map: &mut HashMap<I, Keys>, index: I, key: &Arc<ObjectKey>) {
    match map.entry(index) {
        Entry::Vacant(vacant) => {
            vacant.insert(Keys::One(key.clone()));
        }
        Entry::Occupied(mut occupied) => match occupied.get_mut() {
            Keys::One(known) if known == key => {}
            Keys::One(known) => {
                let both = BTreeSet::from([known.clone(), key.clone()]);
                occupied.insert(Keys::Many(both));
            }
            Keys::Many(keys) => {
                keys.insert(key.clone());
            }
        },
    }
}

fn unindex<I, Q>(map: &mut HashMap<I, Keys>, index: &Q, key: &Arc<ObjectKey>)
where
    I: Eq + Hash + Borrow<Q>,
    Q: Eq + Hash + ?Sized,
{
    let is_last = match map.get_mut(index) {
        None => false,
        Some(Keys::One(known)) => known == key,
        Some(Keys::Many(keys)) => {
            keys.remove(key);
            keys.is_empty()
        }
    };
    if is_last {
        map.remove(index);
    }
}

fn indexes<K: Resource + 'static>(object: &K) -> Vec<(&'static str, String)> {
    let any: &dyn Any = object;
    if let Some(pod) = any.downcast_ref::<Pod>() {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        return node
            .filter(|name| !name.is_empty())
            .map(|name| (BY_NODE, name))
            .into_iter()
            .collect();
    }
    // EndpointSlices.
    let meta = object.meta();
    let service = meta
        .labels
        .as_ref()
        .and_then(|labels| labels.get("kubernetes.io/service-name"));
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    service
        .map(|name| by_service(namespace, name))
        .into_iter()
        .collect()
}

/// Where an EndpointSlice of this Service is found.
pub fn by_service(namespace: &str, service: &str) -> (&'static str, String) {
    (BY_SERVICE, format!("{namespace}/{service}"))
}

struct Shared<K> {
    cache: RwLock<Cache<K>>,
    /// Held while an event is applied and dispatched, so that handlers see events in order and a late handler misses none.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

/// A shared, indexed cache of one kind.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<K: Kept> Informer<K> {
    fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                cache: RwLock::new(Cache::default()),
                handlers: Mutex::new(Vec::new()),
                synced: watch::Sender::new(false),
            }),
        }
    }

    /// An informer without a watch, filled by hand: for tests of what reads caches.
    pub fn fixed(objects: impl IntoIterator<Item = K>) -> Self {
        let informer = Self::new();
        for object in objects {
            informer.put(object.key(), Some(Arc::new(object)));
        }
        informer.shared.synced.send_replace(true);
        informer
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.shared.cache.read().objects.get(key).cloned()
    }

    pub fn all(&self) -> Vec<Arc<K>> {
        self.shared.cache.read().objects.values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.shared.cache.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let cache = self.shared.cache.read();
        let start = Bound::Included(ObjectKey::new(namespace, ""));
        cache
            .objects
            .range::<ObjectKey, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Objects that name `uid` among their owners.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        let cache = self.shared.cache.read();
        cache
            .by_owner
            .get(uid)
            .into_iter()
            .flat_map(Keys::iter)
            .filter_map(|key| cache.objects.get(key).cloned())
            .collect()
    }

    /// Objects under `value` of the index `name` ([`BY_NODE`], [`BY_SERVICE`]).
    pub fn by_index(&self, name: &'static str, value: &str) -> Vec<Arc<K>> {
        let cache = self.shared.cache.read();
        cache
            .by_index
            .get(&(name, value.to_owned()))
            .into_iter()
            .flat_map(Keys::iter)
            .filter_map(|key| cache.objects.get(key).cloned())
            .collect()
    }

    /// Calls `handler` for every change from now on, and first for every object already there.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock();
        for object in self.all() {
            handler(&Change {
                old: None,
                new: Some(object),
            });
        }
        handlers.push(Box::new(handler));
    }

    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Returns when the first list is in the cache and its handlers have run.
    pub async fn synced(&self) {
        let mut receiver = self.shared.synced.subscribe();
        // An error means that the watch task is gone, which only shutdown does: then wait to be cancelled.
        if receiver.wait_for(|synced| *synced).await.is_err() {
            future::pending::<()>().await;
        }
    }

    fn put(&self, key: ObjectKey, object: Option<Arc<K>>) {
        let handlers = self.shared.handlers.lock();
        let old = self.shared.cache.write().put(key, object.clone());
        if old.is_none() && object.is_none() {
            return;
        }
        let change = Change { old, new: object };
        for handler in handlers.iter() {
            handler(&change);
        }
    }

    fn apply(&self, object: K::Sent) {
        let object = K::keep(object);
        self.put(object.key(), Some(Arc::new(object)));
    }

    /// Follows the stream of `api` until `stop`. Errors are retried with [`WATCH_BACKOFF`].
    async fn follow(self, api: Api<K::Sent>, config: watcher::Config, stop: CancellationToken)
    where
        K::Sent: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let kind = std::any::type_name::<K>()
            .rsplit("::")
            .next()
            .unwrap_or_default();
        let config = config.page_size(PAGE);
        let mut stream = pin!(watcher(api, config));
        // Keys seen in the list under way; what is not among them when it ends is gone.
        let mut listed: HashSet<ObjectKey> = HashSet::new();
        let mut failures = 0;
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = stream.next() => event,
            };
            match event {
                None => return,
                Some(Err(error)) => {
                    let delay = WATCH_BACKOFF.delay(failures);
                    if failures == 0 {
                        tracing::debug!(kind, %error, "watch interrupted, retrying");
                    } else {
                        tracing::warn!(kind, %error, failures, "watch failed, retrying");
                    }
                    failures += 1;
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(delay) => {}
                    }
                    continue;
                }
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => {
                    let object = K::keep(object);
                    let key = object.key();
                    listed.insert(key.clone());
                    if !self.get(&key).is_some_and(|known| known.is_same(&object)) {
                        self.put(key, Some(Arc::new(object)));
                    }
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    let gone: Vec<ObjectKey> = {
                        let cache = self.shared.cache.read();
                        let known = cache.objects.keys().map(|key| &**key);
                        let gone = known.filter(|key| !listed.contains(*key));
                        gone.cloned().collect()
                    };
                    for key in gone {
                        self.put(key, None);
                    }
                    listed = HashSet::new();
                    self.shared.synced.send_replace(true);
                }
                Some(Ok(watcher::Event::Apply(object))) => self.apply(object),
                Some(Ok(watcher::Event::Delete(object))) => {
                    self.put(ObjectKey::of(object.meta()), None);
                }
            }
            failures = 0;
        }
    }
}

/// The informers of a process: the first to ask for a kind starts its watch, all share it.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    stop: CancellationToken,
    started: Arc<Mutex<HashMap<TypeId, Box<dyn Any + Send>>>>,
}

impl Informers {
    /// Watches end with `stop`.
    pub fn new(client: Client, stop: CancellationToken) -> Self {
        Self {
            client,
            stop,
            started: Arc::default(),
        }
    }

    /// The same informers for a component that writes as somebody else. Whoever asks for a kind first reads it for all.
    #[must_use]
    pub fn with_client(&self, client: Client) -> Self {
        Self {
            client,
            ..self.clone()
        }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn of<K>(&self) -> Informer<K>
    where
        K: Kept,
        K::Sent: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let mut started = self.started.lock();
        if let Some(informer) = started
            .get(&TypeId::of::<K>())
            .and_then(|any| any.downcast_ref::<Informer<K>>())
        {
            return informer.clone();
        }
        let informer = Informer::<K>::new();
        started.insert(TypeId::of::<K>(), Box::new(informer.clone()));
        tokio::spawn(informer.clone().follow(
            Api::all(self.client.clone()),
            watcher::Config::default(),
            self.stop.clone(),
        ));
        informer
    }

    /// Of one object of the cluster, by its name. Not shared.
    pub fn only<K>(&self, name: &str) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let informer = Informer::<K>::new();
        tokio::spawn(informer.clone().follow(
            Api::all(self.client.clone()),
            watcher::Config::default().fields(&format!("metadata.name={name}")),
            self.stop.clone(),
        ));
        informer
    }

    /// Metadata of a kind known only by discovery. Not shared; ends with `stop`. `prepare` adds the handlers.
    pub fn metadata(
        &self,
        resource: &ApiResource,
        stop: CancellationToken,
        prepare: impl FnOnce(&Informer<PartialObjectMeta<DynamicObject>>),
    ) -> Informer<PartialObjectMeta<DynamicObject>> {
        let informer = Informer::new();
        prepare(&informer);
        tokio::spawn(informer.clone().follow(
            Api::all_with(self.client.clone(), resource),
            watcher::Config::default(),
            stop,
        ));
        informer
    }
}

/// Drops from an object what no reconciler reads; a typed Pod is ten times its JSON otherwise.
fn slim<K: Resource + 'static>(object: &mut K) {
    slim_metadata(object.meta_mut());
    let object: &mut dyn Any = object;
    if let Some(pod) = object.downcast_mut::<Pod>() {
        slim_pod(pod);
    } else if let Some(partial) = object.downcast_mut::<PartialObjectMeta<DynamicObject>>() {
        // Garbage collection reads names, owners and finalizers only, of every object there is.
        partial.types = None;
        partial.metadata.labels = None;
        partial.metadata.annotations = None;
        partial.metadata.generate_name = None;
    }
}

fn slim_metadata(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    meta.self_link = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        if annotations.is_empty() {
            meta.annotations = None;
        }
    }
}

fn slim_pod(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        container.args = None;
        container.command = None;
        container.env = None;
        container.env_from = None;
        container.lifecycle = None;
        container.liveness_probe = None;
        container.readiness_probe = None;
        container.startup_probe = None;
        container.security_context = None;
        container.termination_message_path = None;
        container.volume_mounts = None;
        container.working_dir = None;
    }
    spec.ephemeral_containers = None;
    spec.security_context = None;
    spec.dns_config = None;
    spec.host_aliases = None;
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| {
            volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
        });
        volumes.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::PodSpec, apimachinery::pkg::apis::meta::v1::OwnerReference};

    use super::*;

    fn pod(name: &str, node: &str, owner: &str) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("default".into()),
                owner_references: Some(vec![OwnerReference {
                    uid: owner.into(),
                    ..Default::default()
                }]),
                ..Default::default()
            },
            spec: Some(PodSpec {
                node_name: Some(node.into()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn indexes_follow_changes() {
        let informer = Informer::fixed([pod("a", "n1", "u1"), pod("b", "n1", "u2")]);
        assert_eq!(informer.by_index(BY_NODE, "n1").len(), 2);
        informer.apply(pod("a", "n2", "u2"));
        assert_eq!(informer.by_index(BY_NODE, "n1").len(), 1);
        assert_eq!(informer.owned_by("u2").len(), 2);
        assert!(informer.owned_by("u1").is_empty());
        informer.put(ObjectKey::new("default", "a"), None);
        assert!(informer.by_index(BY_NODE, "n2").is_empty());
        assert_eq!(informer.in_namespace("default").len(), 1);
        assert!(informer.in_namespace("defaul").is_empty());
    }

    #[test]
    fn a_late_handler_gets_what_is_there() {
        let informer = Informer::fixed([pod("a", "n1", "u1")]);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        informer.on_change(move |change| {
            sink.lock().push((
                change.old.is_some(),
                change.new.is_some(),
                change.object().metadata.name.clone(),
            ));
        });
        informer.apply(pod("a", "n2", "u1"));
        informer.put(ObjectKey::new("default", "a"), None);
        informer.put(ObjectKey::new("default", "a"), None);
        let name = Some("a".to_owned());
        assert_eq!(
            *seen.lock(),
            [
                (false, true, name.clone()),
                (true, true, name.clone()),
                (true, false, name)
            ]
        );
    }
}
