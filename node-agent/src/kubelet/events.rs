//! Events about pods and the node, for users.
//!
//! Repeated events are one object whose count grows, as `kubectl describe` expects. Sending never
//! holds up a pod: a bounded queue, and what does not fit is counted and dropped.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tracing::{debug, warn};

const QUEUE: usize = 1024;
/// Distinct events remembered for counting; the oldest half is forgotten beyond it.
const REMEMBERED: usize = 4096;

pub static EVENTS_DROPPED: AtomicU64 = AtomicU64::new(0);

#[derive(Debug, Clone)]
pub struct Note {
    pub about: ObjectReference,
    pub warning: bool,
    pub reason: String,
    pub message: String,
}

#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Note>,
}

impl Recorder {
    pub fn start(client: Client, node: &str) -> Self {
        let (queue, receive) = mpsc::channel(QUEUE);
        tokio::spawn(write(client, node.to_string(), receive));
        Self { queue }
    }

    /// One that forgets everything.
    pub fn silent() -> Self {
        let (queue, mut receive) = mpsc::channel(QUEUE);
        tokio::spawn(async move { while receive.recv().await.is_some() {} });
        Self { queue }
    }

    pub fn normal(&self, about: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.send(about, false, reason, message.into());
    }

    pub fn warning(&self, about: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.send(about, true, reason, message.into());
    }

    fn send(&self, about: &ObjectReference, warning: bool, reason: &str, message: String) {
        // The API refuses longer messages.
        let message: String = message.chars().take(1000).collect();
        let note = Note {
            about: about.clone(),
            warning,
            reason: reason.into(),
            message,
        };
        if self.queue.try_send(note).is_err() {
            EVENTS_DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Known {
    name: String,
    count: i32,
    last: Timestamp,
}

async fn write(client: Client, node: String, mut notes: mpsc::Receiver<Note>) {
    // By a hash: what an event says would be most of what is remembered of it.
    let hash = RandomState::new();
    let mut known: HashMap<u64, Known> = HashMap::new();
    while let Some(note) = notes.recv().await {
        let about = &note.about;
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key = hash.hash_one((&about.uid, &about.field_path, &note.reason, &note.message));
        let now = Timestamp::now();
        if let Some(before) = known.get_mut(&key) {
            before.count += 1;
            before.last = now;
            let patch = serde_json::json!({"count": before.count, "lastTimestamp": Time(now)});
            let sent = api
                .patch(&before.name, &PatchParams::default(), &Patch::Merge(&patch))
                .await;
            match sent {
                Ok(_) => continue,
                // Expired: begin a new one.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    known.remove(&key);
                }
                Err(e) => {
                    debug!(error = %e, "cannot count an event");
                    continue;
                }
            }
        }
        let stamp = u64::try_from(now.as_nanosecond()).unwrap_or_default();
        let name = format!("{}.{stamp:x}", about.name.clone().unwrap_or_default());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: about.clone(),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
            reason: Some(note.reason.clone()),
            message: Some(note.message.clone()),
            source: Some(EventSource {
                component: Some("kubelet".into()),
                host: Some(node.clone()),
            }),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(node.clone()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            ..Default::default()
        };
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                known.insert(
                    key,
                    Known {
                        name,
                        count: 1,
                        last: now,
                    },
                );
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                debug!(message = status.message, "an event was not accepted");
            }
            Err(e) => warn!(reason = note.reason, error = %e, "cannot write an event"),
        }
        if known.len() > REMEMBERED {
            let mut times: Vec<Timestamp> = known.values().map(|k| k.last).collect();
            times.sort_unstable();
            let middle = times[times.len() / 2];
            known.retain(|_, k| k.last > middle);
        }
    }
}
