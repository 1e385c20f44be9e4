//! The audit log: who asked for what, and what became of it (`audit.k8s.io/v1 Event`, one line of JSON each).
//!
//! `policy` decides what is recorded, `sink` writes it. A [`Record`] goes with its request:
//!
//! ```text
//! RequestReceived ──► ResponseStarted (only what streams) ──► ResponseComplete
//!         └─────────────────────────────────────────────────► Panic
//! ```

pub mod policy;
pub mod sink;

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::{
    policy::{Level, Policy, Stage, Verdict},
    sink::Sink,
};
use crate::{
    authz::Decision,
    codec,
    identity::{Peer, User},
    negotiate::{self, Encoding},
    request::RequestInfo,
};

pub const AUDIT_ID: http::HeaderName = http::HeaderName::from_static("audit-id");
/// Longer identifiers from clients are replaced.
const AUDIT_ID_MAX: usize = 64;
/// Longer user agents are cut, as upstream does.
const USER_AGENT_MAX: usize = 1024;

/// `--audit-policy-file` and where its events go.
pub struct Audit {
    pub policy: Policy,
    pub sink: Sink,
}

/// In the order in which upstream writes it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    kind: &'static str,
    api_version: &'static str,
    level: Level,
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: Stage,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: &'static str,
    user: UserInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<UserInfo>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    source_ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<ObjectRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_object: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_object: Option<Value>,
    request_received_timestamp: String,
    stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct UserInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, Vec<String>>,
}

impl From<&User> for UserInfo {
    fn from(user: &User) -> Self {
        Self {
            username: user.name.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            extra: user.extra.clone(),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef {
    #[serde(skip_serializing_if = "String::is_empty")]
    resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    subresource: String,
}

/// One request that the policy wants recorded.
pub struct Record {
    audit: Arc<Audit>,
    verdict: Verdict,
    event: Event,
    /// Requests that stay open have a `ResponseStarted`, and end when their body does.
    streams: bool,
    body: Mutex<Option<(Bytes, Form)>>,
    annotations: Mutex<BTreeMap<String, String>>,
}

/// How a request's body is to be read.
#[derive(Clone, Copy)]
enum Form {
    Object(Encoding),
    Yaml,
}

/// Where a request came from, as its headers and its connection say.
pub fn source_ips(headers: &HeaderMap, peer: Option<&Peer>) -> Vec<String> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let is_address = |address: &&str| address.parse::<std::net::IpAddr>().is_ok();
    let forwarded = text("x-forwarded-for").unwrap_or_default().split(',');
    let mut addresses: Vec<String> = forwarded
        .map(str::trim)
        .filter(is_address)
        .map(str::to_owned)
        .collect();
    let real = text("x-real-ip").map(str::trim).filter(is_address);
    if let Some(real) = real
        && addresses.is_empty()
    {
        addresses.push(real.to_owned());
    }
    if let Some(peer) = peer {
        let remote = peer.address.ip().to_canonical().to_string();
        if addresses.last() != Some(&remote) {
            addresses.push(remote);
        }
    }
    addresses
}

/// The request's own identifier, else a new one.
pub fn audit_id(headers: &HeaderMap) -> String {
    let given = headers.get(AUDIT_ID).and_then(|v| v.to_str().ok());
    match given.filter(|id| !id.is_empty() && id.len() <= AUDIT_ID_MAX) {
        Some(id) => id.to_owned(),
        None => crate::handlers::write::new_uid(),
    }
}

/// What is known when a request arrives.
pub struct Arrival<'a> {
    pub id: &'a str,
    pub uri: &'a http::Uri,
    pub headers: &'a HeaderMap,
    pub info: &'a RequestInfo,
    pub peer: Option<&'a Peer>,
    /// `None`: the credentials were wrong.
    pub requester: Option<&'a User>,
    pub impersonated: Option<&'a User>,
}

impl Audit {
    /// `None`: the policy does not want it.
    pub async fn begin(self: &Arc<Self>, arrival: Arrival<'_>) -> Option<Box<Record>> {
        let Arrival { info, headers, .. } = arrival;
        let nobody = User::default();
        let requester = arrival.requester.unwrap_or(&nobody);
        let verdict = self.policy.verdict(requester, info);
        if verdict.level == Level::None {
            return None;
        }
        let mut user_agent = headers
            .get(header::USER_AGENT)
            .map(|agent| String::from_utf8_lossy(agent.as_bytes()).into_owned())
            .unwrap_or_default();
        if user_agent.len() > USER_AGENT_MAX {
            let mut end = USER_AGENT_MAX;
            while !user_agent.is_char_boundary(end) {
                end -= 1;
            }
            user_agent.truncate(end);
            user_agent.push_str("...TRUNCATED");
        }
        let now = micro_time(Timestamp::now());
        let event = Event {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: verdict.level,
            audit_id: arrival.id.to_owned(),
            stage: Stage::RequestReceived,
            request_uri: arrival.uri.to_string(),
            verb: info.verb,
            user: requester.into(),
            impersonated_user: arrival.impersonated.map(UserInfo::from),
            source_ips: source_ips(headers, arrival.peer),
            user_agent,
            object_ref: info.is_resource.then(|| ObjectRef {
                resource: info.resource.clone(),
                namespace: info.namespace.clone(),
                name: info.name.clone(),
                uid: String::new(),
                api_group: info.group.clone(),
                api_version: info.version.clone(),
                resource_version: String::new(),
                subresource: info.subresource.clone(),
            }),
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: now.clone(),
            stage_timestamp: now,
            annotations: BTreeMap::new(),
        };
        let streams = info.verb == "watch"
            || matches!(
                info.subresource.as_str(),
                "exec" | "attach" | "portforward" | "proxy" | "log"
            );
        let record = Box::new(Record {
            audit: self.clone(),
            verdict,
            event,
            streams,
            body: Mutex::default(),
            annotations: Mutex::default(),
        });
        if arrival.requester.is_some() && record.wants(Stage::RequestReceived) {
            self.sink.send(line(&record.event)).await;
        }
        Some(record)
    }
}

fn line(event: &Event) -> Vec<u8> {
    // Strings and JSON values always encode.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line
}

fn micro_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

impl Record {
    fn wants(&self, stage: Stage) -> bool {
        !self.verdict.omit_stages.contains(&stage)
    }

    /// Answers would have to be unpacked again.
    pub fn needs_plain_answer(&self) -> bool {
        self.verdict.level >= Level::RequestResponse && !self.streams
    }

    pub fn note_decision(&self, decision: &Decision) {
        let (decision, reason) = match decision {
            Decision::Allow { reason } => ("allow", reason),
            Decision::NoOpinion { reason } => ("forbid", reason),
        };
        self.annotate("authorization.k8s.io/decision", decision);
        self.annotate("authorization.k8s.io/reason", reason);
    }

    /// The first value of a key stays, as upstream keeps it.
    pub fn annotate(&self, key: &str, value: &str) {
        let mut annotations = self.annotations.lock();
        annotations
            .entry(key.to_owned())
            .or_insert_with(|| value.to_owned());
    }

    pub fn note_body(&self, headers: &HeaderMap, body: &Bytes) {
        let form = match negotiate::media_type(headers) {
            "application/apply-patch+yaml" => Form::Yaml,
            media if media.ends_with("-patch+json") => Form::Object(Encoding::Json),
            _ => Form::Object(negotiate::input(headers).unwrap_or(Encoding::Json)),
        };
        *self.body.lock() = Some((body.clone(), form));
    }

    /// What the request's object says, into the event.
    fn read_request(&mut self) {
        let Some((body, form)) = self.body.get_mut().take().filter(|(b, _)| !b.is_empty()) else {
            return;
        };
        let is_patch = self.event.verb == "patch";
        let object = match form {
            Form::Object(Encoding::Json) if is_patch => serde_json::from_slice(&body).ok(),
            Form::Object(Encoding::Json) if self.verdict.level < Level::Request => {
                // Only what the reference shows; a whole object may be large.
                serde_json::from_slice::<Peek>(&body)
                    .ok()
                    .map(|peek| json!({"metadata": peek.metadata}))
            }
            Form::Object(Encoding::Json) => serde_json::from_slice(&body).ok(),
            Form::Object(Encoding::Yaml) | Form::Yaml => crate::yaml::parse(&body).ok(),
            Form::Object(Encoding::Protobuf) => skep_schema::protobuf::decode(&body).ok(),
        };
        let Some(mut object) = object else { return };
        if let Some(reference) = &mut self.event.object_ref
            && !is_patch
            && !self.event.verb.starts_with("delete")
        {
            let fill = |field: &mut String, name: &str| {
                if field.is_empty() {
                    *field = codec::meta(&object, name).to_owned();
                }
            };
            fill(&mut reference.name, "name");
            fill(&mut reference.namespace, "namespace");
            fill(&mut reference.uid, "uid");
            fill(&mut reference.resource_version, "resourceVersion");
        }
        if self.verdict.level >= Level::Request {
            if self.verdict.omit_managed_fields && !is_patch {
                drop_managed_fields(&mut object);
            }
            self.event.request_object = Some(object);
        }
    }

    fn at(&mut self, stage: Stage) -> Vec<u8> {
        self.event.stage = stage;
        self.event.stage_timestamp = micro_time(Timestamp::now());
        self.event.annotations = self.annotations.lock().clone();
        line(&self.event)
    }

    /// The last or last but one stage of the request. Long-lived answers carry the record on.
    pub async fn answered(
        mut self: Box<Self>,
        response: Response,
        failure: Option<Value>,
        authenticated: bool,
    ) -> Response {
        self.read_request();
        let code = response.status().as_u16();
        let mut status = json!({"metadata": {}, "code": code});
        let mut answer = failure;
        let mut response = response;
        let wanted = self.needs_plain_answer() || self.event.verb == "delete";
        if answer.is_none() && wanted && !self.streams && is_object(&response) {
            let (parts, body) = response.into_parts();
            // Our own bodies never fail.
            let bytes = body
                .collect()
                .await
                .map(|b| b.to_bytes())
                .unwrap_or_default();
            let protobuf = bytes.starts_with(b"k8s\0");
            answer = if protobuf {
                skep_schema::protobuf::decode(&bytes).ok()
            } else {
                serde_json::from_slice(&bytes).ok()
            };
            response = Response::from_parts(parts, Body::from(bytes));
        }
        if let Some(answer) = answer {
            if answer["kind"] == "Status" && answer["apiVersion"] == "v1" {
                for field in ["status", "message", "reason", "details"] {
                    if let Some(value) = answer.get(field) {
                        status[field] = value.clone();
                    }
                }
            }
            if self.verdict.level >= Level::RequestResponse {
                let mut answer = answer;
                if self.verdict.omit_managed_fields {
                    drop_managed_fields(&mut answer);
                }
                self.event.response_object = Some(answer);
            }
        }
        if !authenticated {
            status["message"] = "Authentication failed, attempted: bearer".into();
            self.event.response_status = Some(status);
            if self.wants(Stage::ResponseStarted) {
                let line = self.at(Stage::ResponseStarted);
                self.audit.sink.send(line).await;
            }
            return response;
        }
        self.event.response_status = Some(status);
        if self.streams && code < 400 {
            if self.wants(Stage::ResponseStarted) {
                let line = self.at(Stage::ResponseStarted);
                self.audit.sink.send(line).await;
            }
            return response.map(|body| {
                Body::new(Recorded {
                    body,
                    record: Some(self),
                })
            });
        }
        if self.wants(Stage::ResponseComplete) {
            let line = self.at(Stage::ResponseComplete);
            self.audit.sink.send(line).await;
        }
        response
    }

    pub async fn panicked(mut self: Box<Self>, what: &str) {
        self.read_request();
        self.event.response_status = Some(json!({
            "metadata": {}, "status": "Failure", "message": format!("APIServer panic'd: {what}"),
            "reason": "InternalError", "code": 500,
        }));
        if self.wants(Stage::Panic) {
            let line = self.at(Stage::Panic);
            self.audit.sink.send(line).await;
        }
    }
}

#[derive(Deserialize)]
struct Peek {
    #[serde(default)]
    metadata: PeekMeta,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct PeekMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

fn is_object(response: &Response) -> bool {
    let media = response.headers().get(header::CONTENT_TYPE);
    let media = media.and_then(|m| m.to_str().ok()).unwrap_or_default();
    media.starts_with("application/json")
        || media.starts_with("application/vnd.kubernetes.protobuf")
}

/// Of an object or of a list's items.
fn drop_managed_fields(object: &mut Value) {
    let one = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(one);
    }
    one(object);
}

/// A body whose end is the end of its request.
struct Recorded {
    body: Body,
    record: Option<Box<Record>>,
}

impl http_body::Body for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take()
            && record.wants(Stage::ResponseComplete)
        {
            let line = record.at(Stage::ResponseComplete);
            record.audit.sink.send_now(line);
        }
    }
}

/// Every answer names its request.
pub fn name(response: &mut Response, id: &str) {
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(AUDIT_ID, id);
    }
}
