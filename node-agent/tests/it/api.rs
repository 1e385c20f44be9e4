//! An API of a few hundred lines in memory, behind a real `kube::Client`: enough for the agent.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Answer = Response<StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>>;

#[derive(Clone)]
pub struct FakeApi {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Mutex<BTreeMap<String, Value>>,
    events: broadcast::Sender<(String, Value)>,
    revision: AtomicU64,
}

impl FakeApi {
    pub fn new() -> Self {
        // Nodes of one process share a Docker daemon: the uids of their pods, made of revisions, must differ.
        static FIRST: AtomicU64 = AtomicU64::new(1);
        let (events, _) = broadcast::channel(4096);
        let inner = Inner {
            objects: Mutex::default(),
            events,
            revision: AtomicU64::new(FIRST.fetch_add(1 << 32, Ordering::SeqCst)),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    pub fn client(&self) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move { Ok::<_, Infallible>(this.serve(request).await) }
        });
        Client::new(service, "default")
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.inner.objects.lock().get(path).cloned()
    }

    pub fn list(&self, prefix: &str) -> Vec<Value> {
        let objects = self.inner.objects.lock();
        objects
            .iter()
            .filter(|(k, _)| k.starts_with(prefix))
            .map(|(_, v)| v.clone())
            .collect()
    }

    pub fn put(&self, path: &str, mut object: Value) -> Value {
        let mut objects = self.inner.objects.lock();
        let kind = if objects.contains_key(path) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        let revision = self.next_revision(&mut object);
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{:x}-{revision}", std::process::id()));
        }
        objects.insert(path.into(), object.clone());
        self.tell(path, kind, &object);
        object
    }

    /// Reads, changes and writes as one step: what comes between the two would be lost.
    pub fn change(&self, path: &str, change: impl FnOnce(&mut Value)) -> Option<Value> {
        let mut objects = self.inner.objects.lock();
        let object = objects.get_mut(path)?;
        change(object);
        self.next_revision(object);
        self.tell(path, "MODIFIED", object);
        Some(object.clone())
    }

    pub fn remove(&self, path: &str) {
        let mut objects = self.inner.objects.lock();
        if let Some(mut object) = objects.remove(path) {
            self.next_revision(&mut object);
            self.tell(path, "DELETED", &object);
        }
    }

    fn next_revision(&self, object: &mut Value) -> u64 {
        let revision = self.inner.revision.fetch_add(1, Ordering::SeqCst) + 1;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        revision
    }

    /// With the objects locked, so that watches see changes in their order.
    fn tell(&self, path: &str, kind: &str, object: &Value) {
        let event = json!({"type": kind, "object": object});
        let _ = self.inner.events.send((path.to_string(), event));
    }

    async fn serve(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let bytes = body
            .collect()
            .await
            .map(|b| b.to_bytes())
            .unwrap_or_default();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let path = parts.uri.path().trim_end_matches('/').to_string();
        let query = parts.uri.query().unwrap_or_default().to_string();
        // `/api/v1/pods` and `/api/v1/namespaces/ns/pods` name the same list.
        let words: Vec<&str> = path.split('/').skip(1).collect();
        let base = if words.first() == Some(&"api") { 2 } else { 3 };
        let (group, rest) = words.split_at(base.min(words.len()));
        let (namespace, rest) = match rest {
            ["namespaces", ns, tail @ ..] if !tail.is_empty() => (Some(*ns), tail),
            other => (None, other),
        };
        let group = group.join("/");
        let plural = rest.first().copied().unwrap_or_default();
        let key = |name: &str| match namespace {
            Some(ns) => format!("/{group}/{plural}/{ns}/{name}"),
            None => format!("/{group}/{plural}/{name}"),
        };
        match (&parts.method, rest) {
            (&Method::GET, [_]) if query.contains("watch=") => {
                self.watch(&group, plural, namespace)
            }
            (&Method::GET, [_]) => {
                let prefix = match namespace {
                    Some(ns) => format!("/{group}/{plural}/{ns}/"),
                    None => format!("/{group}/{plural}/"),
                };
                let revision = self.inner.revision.load(Ordering::SeqCst).to_string();
                let items = self.list(&prefix);
                json_answer(
                    200,
                    &json!({"kind": "List", "apiVersion": "v1", "items": items,
                        "metadata": {"resourceVersion": revision}}),
                )
            }
            (&Method::GET, [_, name]) => match self.get(&key(name)) {
                Some(object) => json_answer(200, &object),
                None => not_found(plural, name),
            },
            (&Method::POST, [_]) => {
                let name = body["metadata"]["name"]
                    .as_str()
                    .unwrap_or("generated")
                    .to_string();
                if self.get(&key(&name)).is_some() {
                    return failure(409, "AlreadyExists", &format!("{name} already exists"));
                }
                json_answer(201, &self.put(&key(&name), body))
            }
            (&Method::POST, [_, _, "token"]) => json_answer(
                201,
                &json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
                    "metadata": {}, "spec": {"audiences": []},
                    "status": {"token": "a.b.c", "expirationTimestamp": "2099-01-01T00:00:00Z"}}),
            ),
            (&Method::PATCH, [_, name] | [_, name, "status"]) => {
                match self.change(&key(name), |object| merge(object, &body)) {
                    Some(object) => json_answer(200, &object),
                    None => not_found(plural, name),
                }
            }
            (&Method::DELETE, [_, name]) => {
                self.remove(&key(name));
                json_answer(
                    200,
                    &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
                )
            }
            _ => failure(405, "MethodNotAllowed", &format!("{} {path}", parts.method)),
        }
    }

    fn watch(&self, group: &str, plural: &str, namespace: Option<&str>) -> Answer {
        let prefix = match namespace {
            Some(ns) => format!("/{group}/{plural}/{ns}/"),
            None => format!("/{group}/{plural}/"),
        };
        let events = tokio_stream::wrappers::BroadcastStream::new(self.inner.events.subscribe());
        // A watcher that starts late sees everything again; the agent does not mind.
        let now: Vec<Value> = self
            .list(&prefix)
            .into_iter()
            .map(|object| json!({"type": "MODIFIED", "object": object}))
            .collect();
        let later = events.filter_map(move |event| {
            let hit = event
                .ok()
                .filter(|(path, _)| path.starts_with(&prefix))
                .map(|(_, e)| e);
            async move { hit }
        });
        let lines = futures::stream::iter(now)
            .chain(later)
            .map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
        Response::new(StreamBody::new(lines.boxed()))
    }
}

/// A merge patch that knows conditions.
fn merge(target: &mut Value, patch: &Value) {
    let (Some(target), Some(patch)) = (target.as_object_mut(), patch.as_object()) else {
        *target = patch.clone();
        return;
    };
    for (key, value) in patch {
        match (key.as_str(), value) {
            (_, Value::Null) => {
                target.remove(key);
            }
            ("conditions", Value::Array(new)) => {
                let old = target.entry(key.clone()).or_insert_with(|| json!([]));
                let list = old.as_array_mut().expect("conditions are a list");
                for condition in new {
                    if condition["$patch"] == "delete" {
                        list.retain(|c| c["type"] != condition["type"]);
                        continue;
                    }
                    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
                        Some(slot) => merge(slot, condition),
                        None => list.push(condition.clone()),
                    }
                }
            }
            (_, Value::Object(_)) => merge(
                target.entry(key.clone()).or_insert_with(|| json!({})),
                value,
            ),
            _ => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

fn json_answer(code: u16, value: &Value) -> Answer {
    let body = Bytes::from(value.to_string());
    let stream = futures::stream::once(async move { Ok(Frame::data(body)) }).boxed();
    let mut answer = Response::new(StreamBody::new(stream));
    *answer.status_mut() = StatusCode::from_u16(code).expect("a valid code");
    answer
}

fn failure(code: u16, reason: &str, message: &str) -> Answer {
    json_answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "reason": reason, "message": message, "metadata": {}}),
    )
}

fn not_found(plural: &str, name: &str) -> Answer {
    failure(404, "NotFound", &format!("{plural} \"{name}\" not found"))
}
