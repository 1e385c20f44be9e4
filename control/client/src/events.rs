//! Events for users: `kubectl describe` and `kubectl events` show them. Best effort by design: a full queue drops.
//!
//! Equal events (same object, reason, type and message) become one with a growing `count`. A source that repeats itself
//! without end is cut off per object by a token bucket, as upstream: 25 at once, then one each five minutes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    core::ObjectMeta,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events waiting to be written; more are dropped and counted.
const QUEUE: usize = 1024;
/// Distinct events and sources remembered; beyond it the oldest half is forgotten.
const REMEMBERED: usize = 4096;
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
const MESSAGE_BYTES: usize = 1024;

#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Occurrence>,
    dropped: Arc<AtomicU64>,
}

struct Occurrence {
    about: ObjectReference,
    type_: &'static str,
    reason: String,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// `component` is what `describe` shows in "From". Must be called within a runtime; writing ends with `stop`.
    pub fn new(client: Client, component: &str, stop: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let writer = Writer {
            client,
            component: component.to_owned(),
            written: HashMap::new(),
            budgets: HashMap::new(),
        };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = writer.run(receiver) => {}
            }
        });
        Self {
            sender,
            dropped: Arc::default(),
        }
    }

    pub fn normal<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record(about.object_ref(&()), "Normal", reason, message.into());
    }

    pub fn warning<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record(about.object_ref(&()), "Warning", reason, message.into());
    }

    pub fn record(
        &self,
        about: ObjectReference,
        type_: &'static str,
        reason: &str,
        mut message: String,
    ) {
        if message.len() > MESSAGE_BYTES {
            let mut end = MESSAGE_BYTES;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        let occurrence = Occurrence {
            about,
            type_,
            reason: reason.to_owned(),
            message,
            at: Timestamp::now(),
        };
        if self.sender.try_send(occurrence).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events lost because [`QUEUE`] was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    uid: String,
    name: String,
    type_: &'static str,
    reason: String,
    message: String,
}

struct Written {
    namespace: String,
    name: String,
    count: i32,
    last: Instant,
}

struct Budget {
    tokens: f64,
    last: Instant,
}

struct Writer {
    client: Client,
    component: String,
    written: HashMap<Identity, Written>,
    budgets: HashMap<String, Budget>,
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<Occurrence>) {
        while let Some(occurrence) = receiver.recv().await {
            if !self.allow(&occurrence) {
                continue;
            }
            if let Err(error) = self.write(&occurrence).await {
                tracing::debug!(reason = %occurrence.reason, %error, "event not written");
            }
        }
    }

    fn allow(&mut self, occurrence: &Occurrence) -> bool {
        if self.budgets.len() >= REMEMBERED {
            self.budgets
                .retain(|_, budget| budget.last.elapsed() < REFILL);
            if self.budgets.len() >= REMEMBERED {
                self.budgets.clear();
            }
        }
        let source = format!(
            "{}/{}",
            occurrence.about.kind.as_deref().unwrap_or_default(),
            occurrence.about.uid.as_deref().unwrap_or_default()
        );
        let now = Instant::now();
        let budget = self.budgets.entry(source).or_insert(Budget {
            tokens: BURST,
            last: now,
        });
        let refilled = now.duration_since(budget.last).as_secs_f64() / REFILL.as_secs_f64();
        budget.tokens = (budget.tokens + refilled).min(BURST);
        budget.last = now;
        if budget.tokens < 1.0 {
            return false;
        }
        budget.tokens -= 1.0;
        true
    }

    async fn write(&mut self, occurrence: &Occurrence) -> Result<(), kube::Error> {
        let about = &occurrence.about;
        let identity = Identity {
            uid: about.uid.clone().unwrap_or_default(),
            name: about.name.clone().unwrap_or_default(),
            type_: occurrence.type_,
            reason: occurrence.reason.clone(),
            message: occurrence.message.clone(),
        };
        let now = Time(occurrence.at);
        if let Some(written) = self.written.get_mut(&identity) {
            let api: Api<Event> = Api::namespaced(self.client.clone(), &written.namespace);
            written.count = written.count.saturating_add(1);
            written.last = Instant::now();
            let patch = json!({ "count": written.count, "lastTimestamp": now });
            match api
                .patch(&written.name, &PatchParams::default(), &Patch::Merge(patch))
                .await
            {
                Ok(_) => return Ok(()),
                // Expired on the server: write it anew.
                Err(kube::Error::Api(status)) if status.is_not_found() => {
                    self.written.remove(&identity);
                }
                Err(error) => return Err(error),
            }
        }
        // Events about cluster-scoped objects live in "default", as upstream.
        let namespace = about
            .namespace
            .clone()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let name = format!("{}.{:x}", identity.name, occurrence.at.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.clone()),
                ..Default::default()
            },
            involved_object: about.clone(),
            reason: Some(occurrence.reason.clone()),
            message: Some(occurrence.message.clone()),
            type_: Some(occurrence.type_.into()),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: None,
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(String::new()),
            ..Default::default()
        };
        api.create(&PostParams::default(), &event).await?;
        if self.written.len() >= REMEMBERED {
            let mut ages: Vec<Instant> =
                self.written.values().map(|written| written.last).collect();
            ages.sort();
            let median = ages[ages.len() / 2];
            self.written.retain(|_, written| written.last > median);
        }
        self.written.insert(
            identity,
            Written {
                namespace,
                name,
                count: 1,
                last: Instant::now(),
            },
        );
        Ok(())
    }
}
