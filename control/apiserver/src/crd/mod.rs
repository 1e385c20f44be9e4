//! CustomResourceDefinitions at work: names accepted, rows published, objects removed with their definition.
//!
//! ```text
//! created ──names free──► Established: rows in the registry ──delete──► Terminating: objects are removed ──► gone
//!    └──names taken──► NamesAccepted=False, not served, until they are free
//! ```
//!
//! One task follows the definitions in the watch cache. It is level-triggered: each round looks at all of them, so that a
//! restart serves what was served before. What a row does is in `skep_api::custom`; `conversion` holds how stored objects
//! become a row's; `registration` makes their APIServices.

pub mod conversion;
mod registration;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skep_api::{
    custom::{self, names},
    kinds::apiextensions::CLEANUP_FINALIZER,
};
use skep_apply::managed::{self, Writer};
use skep_store::Key;

use crate::{
    cache::{Entry, WatchFrom, WatchRequest},
    codec::{self, meta},
    context::{Api, now},
    handlers::write::{mark_deleting, remove_meta},
    hooks::Extra,
    registry::{Registry, Resource},
    status::Result,
    storage::Written,
    subresources::scale::ScalePaths,
};

use self::conversion::Conversion;

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
/// Who writes the status, for managed fields.
const MANAGER: &str = "kube-apiserver";
/// How long to wait before a failed write is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How often a changed definition is written before waiting for its next event.
const ATTEMPTS: usize = 10;
/// Objects of a removed definition that are deleted before the list is looked at again.
const CLEANUP_PAGE: usize = 500;

/// What was made of the definitions, by key.
#[derive(Default)]
struct Known {
    definitions: HashMap<Key, Definition>,
}

/// One definition at one revision.
struct Definition {
    revision: u64,
    value: Arc<Value>,
    rows: Vec<Arc<Resource>>,
}

/// The definitions' state of one API server.
#[derive(Default)]
pub struct Definitions {
    known: Mutex<Known>,
    /// Being emptied.
    cleaning: Mutex<HashSet<Key>>,
}

fn row_of_definitions(registry: &Registry) -> Option<Arc<Resource>> {
    registry.any_version(GROUP, PLURAL).cloned()
}

/// Serves what is established, before the server answers for the first time.
pub fn start(api: &Arc<Api>) {
    publish(api, true);
}

/// `first`: no request was answered by an older table.
fn publish(api: &Arc<Api>, first: bool) {
    let Some(definitions) = row_of_definitions(&api.registry.load()) else {
        return;
    };
    let entries: Vec<Arc<Entry>> = api
        .storage
        .cache
        .snapshot(&definitions.prefix)
        .iter()
        .cloned()
        .collect();
    let mut known = api.definitions.known.lock();
    let mut changed = false;
    let present: HashSet<&Key> = entries.iter().map(|entry| &entry.key).collect();
    let before = known.definitions.len();
    known.definitions.retain(|key, _| present.contains(key));
    changed |= known.definitions.len() != before;
    let mut prefixes = Vec::new();
    for entry in &entries {
        let same = known
            .definitions
            .get(&entry.key)
            .is_some_and(|known| known.revision == entry.revision);
        if same {
            continue;
        }
        let Ok(value) = serde_json::from_slice::<Value>(&entry.bytes()) else {
            continue;
        };
        let old = known.definitions.get(&entry.key);
        let rows = match old.filter(|old| serves_the_same(&old.value, &value)) {
            Some(old) => old.rows.clone(),
            None => {
                // Until now objects may have been written by the schema before.
                let now = if first {
                    0
                } else {
                    api.storage.cache.revision()
                };
                rows(&value, entry.revision.max(now))
            }
        };
        prefixes.extend(rows.first().map(|row| row.prefix.clone()));
        changed = true;
        known.definitions.insert(
            entry.key.clone(),
            Definition {
                revision: entry.revision,
                value: Arc::new(value),
                rows,
            },
        );
    }
    if !changed {
        return;
    }
    let mut groups: BTreeMap<(String, String), Vec<Arc<Resource>>> = BTreeMap::new();
    for definition in known.definitions.values() {
        for row in &definition.rows {
            let at = (row.def.group.to_string(), row.def.plural.to_string());
            groups.entry(at).or_default().push(row.clone());
        }
    }
    let rows: Vec<Arc<Resource>> = groups.into_values().flatten().collect();
    // Under the lock of `known`: publications happen in order.
    api.registry
        .rcu(|registry| Arc::new(registry.with_custom(rows.iter().cloned())));
    drop(known);
    for prefix in prefixes {
        api.storage.cache.reindex(&prefix);
    }
}

/// Whether two states of a definition make the same rows.
fn serves_the_same(old: &Value, new: &Value) -> bool {
    let same = |pointer: &str| old.pointer(pointer) == new.pointer(pointer);
    let condition = |ty: &str| names::condition(old, ty) == names::condition(new, ty);
    same("/spec")
        && same("/status/acceptedNames")
        && condition("Established")
        && condition("Terminating")
}

/// The rows of an established definition. `since`: objects written later fit today's schema.
fn rows(definition: &Value, since: u64) -> Vec<Arc<Resource>> {
    if names::condition(definition, "Established") != Some("True") {
        return Vec::new();
    }
    let rows = match custom::rows(definition) {
        Ok(rows) => rows,
        Err(error) => {
            let name = meta(definition, "name");
            tracing::error!(name, %error, "a definition cannot be served");
            return Vec::new();
        }
    };
    let shared = match conversion::Shared::read(definition, since) {
        Ok(shared) => Arc::new(shared),
        Err(error) => {
            let name = meta(definition, "name");
            tracing::error!(name, error, "a definition cannot be served");
            return Vec::new();
        }
    };
    let list_kind = definition["status"]["acceptedNames"]["listKind"].as_str();
    rows.into_iter()
        .map(|row| {
            let mut resource = Resource::new(row.def, true);
            if let Some(list_kind) = list_kind.filter(|kind| !kind.is_empty()) {
                resource.list_kind = list_kind.to_owned();
            }
            resource.stored_version = shared.storage_version().to_owned();
            resource.scale = row.scale.map(|scale| ScalePaths::custom(&scale));
            resource.terminating = names::condition(definition, "Terminating") == Some("True");
            resource.openapi = Some(Arc::new(row.openapi));
            resource.stored_form = Some(Conversion::new(shared.clone(), &resource.api_version));
            Arc::new(resource)
        })
        .collect()
}

/// Follows the definitions until the server is gone.
pub fn follow(api: &Arc<Api>) {
    tokio::spawn(run(Arc::downgrade(api)));
    registration::follow(api);
}

async fn run(api: Weak<Api>) {
    loop {
        let Some(watch) = api.upgrade().and_then(|api| {
            let definitions = row_of_definitions(&api.registry.load())?;
            let request = WatchRequest {
                prefix: definitions.prefix.clone(),
                from: WatchFrom::InitialEvents,
                field: None,
            };
            api.storage.cache.watch(request).ok()
        }) else {
            if api.strong_count() == 0 {
                return;
            }
            tokio::time::sleep(RETRY).await;
            continue;
        };
        rounds(&api, watch, |api| async move { round(&api).await }).await;
    }
}

/// Does `round` after changes, and again after a while if it was not fine, until the changes end or the server is gone.
async fn rounds<T, E, Fut>(
    api: &Weak<Api>,
    mut changes: impl Stream<Item = std::result::Result<T, E>> + Unpin,
    round: impl Fn(Arc<Api>) -> Fut,
) where
    Fut: Future<Output = bool>,
{
    let mut fine = false;
    loop {
        let event = if fine {
            Ok(changes.next().await)
        } else {
            tokio::time::timeout(RETRY, changes.next()).await
        };
        if !matches!(event, Ok(Some(Ok(_))) | Err(_)) {
            return;
        }
        // What came meanwhile is one round's work.
        while let Some(Some(Ok(_))) = futures::FutureExt::now_or_never(changes.next()) {}
        let Some(api) = api.upgrade() else { return };
        fine = round(api).await;
    }
}

/// `false`: something failed that must be tried again.
async fn round(api: &Arc<Api>) -> bool {
    publish(api, false);
    let all: Vec<(Key, u64, Arc<Value>)> = api
        .definitions
        .known
        .lock()
        .definitions
        .iter()
        .map(|(key, d)| (key.clone(), d.revision, d.value.clone()))
        .collect();
    let mut fine = true;
    for (key, _, definition) in &all {
        if !definition["metadata"]["deletionTimestamp"].is_null() {
            clean_up(api, key);
            continue;
        }
        let group = &definition["spec"]["group"];
        let others = all
            .iter()
            .filter(|(other, _, value)| other != key && value["spec"]["group"] == *group)
            .map(|(_, _, value)| value.as_ref());
        let planned = names::plan_status(definition, others);
        if planned != definition["status"] {
            match write_status(api, key, definition, planned).await {
                Ok(()) => {}
                Err(status) => {
                    let name = meta(definition, "name");
                    tracing::warn!(name, error = %status.message, "writing a definition's status failed");
                    fine = false;
                }
            }
        }
    }
    publish(api, false);
    tracing::debug!(definitions = all.len(), fine, "looked at all definitions");
    fine
}

fn stamp(status: &mut Value) {
    let at = now().to_string();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if condition["lastTransitionTime"].is_null() {
            condition["lastTransitionTime"] = at.as_str().into();
        }
    }
}

/// Writes the status if the definition is still the one that it was planned for; else its event is on its way.
async fn write_status(api: &Api, key: &Key, definition: &Value, planned: Value) -> Result<()> {
    let mut new = definition.clone();
    new["status"] = planned;
    stamp(&mut new["status"]);
    if let Some(schema) = skep_schema::builtin(GROUP, "v1", "CustomResourceDefinition") {
        let writer = Writer {
            manager: MANAGER.to_owned(),
            api_version: format!("{GROUP}/v1"),
            subresource: "status".to_owned(),
            time: now(),
        };
        managed::update(
            Some(definition),
            &mut new,
            &schema,
            &writer,
            &["spec", "metadata"],
        );
    }
    let revision = meta(definition, "resourceVersion").parse().unwrap_or(0);
    let stored = codec::encode_stored(&new);
    api.storage
        .update(key, stored, revision, None, Extra::default())
        .await?;
    Ok(())
}

/// Empties a definition that is being deleted, in a task of its own, once at a time.
fn clean_up(api: &Arc<Api>, key: &Key) {
    if !api.definitions.cleaning.lock().insert(key.clone()) {
        return;
    }
    let (api, key) = (Arc::downgrade(api), key.clone());
    tokio::spawn(async move {
        while let Some(strong) = api.upgrade() {
            match clean_up_once(&strong, &key).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(status) => {
                    tracing::warn!(%key, error = %status.message, "emptying a definition failed");
                }
            }
            drop(strong);
            tokio::time::sleep(RETRY.mul_f64(0.2 + rand::random::<f64>() * 0.4)).await;
        }
        if let Some(api) = api.upgrade() {
            api.definitions.cleaning.lock().remove(&key);
        }
    });
}

/// `true`: the definition is gone, or not to be emptied.
async fn clean_up_once(api: &Arc<Api>, key: &Key) -> Result<bool> {
    let Some(entry) = api.storage.get(key).await? else {
        return Ok(true);
    };
    let mut definition: Value = serde_json::from_slice(&entry.bytes())
        .map_err(|error| crate::status::Status::internal("decoding a definition", &error))?;
    let held = definition["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|all| all.iter().any(|f| f == CLEANUP_FINALIZER));
    if definition["metadata"]["deletionTimestamp"].is_null() || !held {
        return Ok(true);
    }
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let prefix = format!(
        "/registry/{}/{}/",
        text(&spec["group"]),
        text(&spec["names"]["plural"])
    );
    // A definition that was never served may share its prefix with nobody, but owns no objects either.
    let served = names::condition(&definition, "Established") == Some("True");
    if served && !remove_objects(api, &prefix).await? {
        let mut status = definition["status"].clone();
        names::set_condition(
            &mut status,
            "Terminating",
            "True",
            "InstanceDeletionInProgress",
            "CustomResource deletion is in progress",
        );
        if status != definition["status"] {
            write_status(api, key, &definition, status).await?;
        }
        return Ok(false);
    }
    for _ in 0..ATTEMPTS {
        let finalizers = definition["metadata"]["finalizers"].as_array_mut();
        let left = finalizers.map_or(0, |all| {
            all.retain(|f| f != CLEANUP_FINALIZER);
            all.len()
        });
        let revision = meta(&definition, "resourceVersion").parse().unwrap_or(0);
        let written = if left == 0 {
            api.storage.delete(key, revision, Extra::default()).await?
        } else {
            let mut status = definition["status"].take();
            names::set_condition(
                &mut status,
                "Terminating",
                "False",
                "InstanceDeletionCompleted",
                "removed all instances",
            );
            stamp(&mut status);
            definition["status"] = status;
            let stored = codec::encode_stored(&definition);
            api.storage
                .update(key, stored, revision, None, Extra::default())
                .await?
        };
        match written {
            Written::At(_) => return Ok(true),
            Written::Conflict(Some(current)) => {
                definition = serde_json::from_slice(&current.bytes).map_err(|error| {
                    crate::status::Status::internal("decoding a definition", &error)
                })?;
            }
            Written::Conflict(None) => return Ok(true),
            Written::ExtraConflict => {}
        }
    }
    Ok(false)
}

/// Deletes all objects under the prefix, marking those that finalizers hold. `true`: none is left.
async fn remove_objects(api: &Api, prefix: &str) -> Result<bool> {
    api.storage.fresh().await?;
    let cache = &api.storage.cache;
    let page = cache.list(prefix, None, CLEANUP_PAGE, |_| true);
    let mut left = page.more;
    for entry in page.entries {
        let mut object: Value = serde_json::from_slice(&entry.bytes())
            .map_err(|error| crate::status::Status::internal("decoding a stored object", &error))?;
        let held = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
        if !held {
            let extra = Extra::default();
            let written = api
                .storage
                .delete(&entry.key, entry.revision, extra)
                .await?;
            left |= !matches!(written, Written::At(_) | Written::Conflict(None));
            continue;
        }
        left = true;
        if object["metadata"]["deletionTimestamp"].is_null() {
            mark_deleting(&mut object, now());
            let stored = codec::encode_stored(&object);
            let extra = Extra::default();
            api.storage
                .update(&entry.key, stored, entry.revision, None, extra)
                .await?;
        }
    }
    Ok(!left)
}

/// Turns a definition `Terminating` and puts the finalizer on, as its delete does. `false`: it was so already.
pub fn begin_deletion(definition: &mut Value, now: jiff::Timestamp) -> bool {
    if !definition["metadata"]["deletionTimestamp"].is_null() {
        return false;
    }
    let at = now.to_string();
    definition["metadata"]["deletionTimestamp"] = at.as_str().into();
    let mut finalizers = definition["metadata"]["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if !finalizers.iter().any(|f| f == CLEANUP_FINALIZER) {
        finalizers.push(json!(CLEANUP_FINALIZER));
    }
    remove_meta(definition, "finalizers");
    definition["metadata"]["finalizers"] = finalizers.into();
    let mut status = definition["status"].take();
    if !status.is_object() {
        status = json!({});
    }
    names::set_condition(
        &mut status,
        "Terminating",
        "True",
        "InstanceDeletionPending",
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    );
    stamp(&mut status);
    definition["status"] = status;
    true
}
