//! What every handler has at hand: the server's state, and one request.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jiff::Timestamp;
use parking_lot::Mutex;
use skep_api::selector::FieldSelector;

use crate::{
    admission::Chain,
    aggregation::Aggregation,
    audit::{self, Audit},
    authn::Authenticator,
    authz::{Attributes, Authorizer, Decision},
    identity::User,
    metrics::Metrics,
    options::Query,
    registry::Registry,
    request::RequestInfo,
    services::Allocators,
    status::{Failure, Result, Status},
    storage::Storage,
};

/// Largest request body, as upstream's.
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(34);

/// The server's state, shared by all requests.
pub struct Api {
    pub storage: Storage,
    pub registry: Arc<ArcSwap<Registry>>,
    pub authorizer: Arc<dyn Authorizer>,
    /// `None` only where no tokens are issued or reviewed (tests).
    pub authenticator: Option<Arc<Authenticator>>,
    pub admission: ArcSwap<Chain>,
    pub services: Allocators,
    pub relay: crate::relay::Relay,
    pub webhooks: crate::webhook::Webhooks,
    pub definitions: crate::crd::Definitions,
    pub documents: crate::openapi::Documents,
    pub discovery: crate::discovery::Cache,
    pub metrics: Metrics,
    pub fairness: crate::fairness::Fairness,
    pub node_metrics: crate::node_metrics::NodeMetrics,
    pub readiness: crate::health::Readiness,
    /// `None`: nothing is recorded.
    pub audit: Option<Arc<Audit>>,
    pub aggregation: Aggregation,
}

/// One request.
pub struct Ctx {
    pub api: Arc<Api>,
    pub registry: Arc<Registry>,
    pub method: Method,
    pub info: RequestInfo,
    pub query: Query,
    /// As it came.
    pub query_text: Option<String>,
    pub headers: HeaderMap,
    pub user: User,
    /// Taken by whoever reads it.
    body: Mutex<Option<Body>>,
    /// The connection, for requests that become streams.
    pub upgrade: Mutex<Option<hyper::upgrade::OnUpgrade>>,
    pub warnings: Mutex<Vec<String>>,
    /// What admission has to say to the audit log.
    pub audit_annotations: Mutex<Vec<(String, String)>>,
    /// What the audit log says about this request, if anything.
    pub audit: Option<Box<audit::Record>>,
    pub now: Timestamp,
}

impl Ctx {
    /// Takes the headers.
    pub fn new(api: Arc<Api>, parts: &mut http::request::Parts, body: Body, user: User) -> Self {
        let query = Query::parse(parts.uri.query());
        let watch = query.flag("watch");
        Self {
            registry: api.registry.load_full(),
            api,
            method: parts.method.clone(),
            info: RequestInfo::parse(&parts.method, parts.uri.path(), watch),
            query,
            query_text: parts.uri.query().map(str::to_owned),
            headers: std::mem::take(&mut parts.headers),
            user,
            body: Mutex::new(Some(body)),
            upgrade: Mutex::new(None),
            warnings: Mutex::default(),
            audit_annotations: Mutex::default(),
            audit: None,
            now: now(),
        }
    }

    pub fn warn(&self, text: impl Into<String>) {
        self.warnings.lock().push(text.into());
    }

    pub fn take_body(&self) -> Body {
        self.body.lock().take().unwrap_or_default()
    }

    /// The whole body.
    ///
    /// # Errors
    /// 413 over [`MAX_BODY_BYTES`], 408 from a client that does not finish.
    pub async fn read_body(&self) -> Result<Bytes> {
        let body = Limited::new(self.take_body(), MAX_BODY_BYTES);
        match tokio::time::timeout(BODY_TIMEOUT, body.collect()).await {
            Err(_) => Err(Status::plain(
                408,
                "Timeout",
                "the request's body did not arrive in time",
            )),
            Ok(Ok(collected)) => {
                let body = collected.to_bytes();
                if let Some(record) = &self.audit {
                    record.note_body(&self.headers, &body);
                }
                Ok(body)
            }
            Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
                Err(Status::too_large(format!(
                    "Request entity too large: limit is {MAX_BODY_BYTES}"
                )))
            }
            Ok(Err(error)) => Err(Status::bad_request(format!(
                "the request's body could not be read: {error}"
            ))),
        }
    }

    /// `fieldManager`, else the user agent up to its first slash.
    pub fn field_manager(&self, given: &str) -> String {
        const MAX: usize = 128;
        if !given.is_empty() {
            return given.to_owned();
        }
        let agent = self.headers.get(header::USER_AGENT);
        let agent = agent.and_then(|a| a.to_str().ok()).unwrap_or_default();
        let first = agent.split('/').next().unwrap_or_default();
        let name: String = first
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX)
            .collect();
        if name.is_empty() {
            "unknown".to_owned()
        } else {
            name
        }
    }

    /// # Errors
    /// 403 with upstream's text.
    pub fn authorize(&self) -> Result<()> {
        let info = &self.info;
        if info.is_resource {
            // A list or watch of one object by its name is asked about as that object: so a node
            // may watch what its pods use.
            let fields = match info.verb {
                "list" | "watch" if info.name.is_empty() => {
                    FieldSelector::parse(self.query.get("fieldSelector")).ok()
                }
                _ => None,
            };
            let selected = fields.as_ref().and_then(|f| f.requires("metadata.name"));
            return self.authorize_resource(info.verb, selected.unwrap_or(&info.name));
        }
        let attributes = Attributes::Path {
            user: &self.user,
            verb: info.verb,
            path: &info.path,
        };
        let decision = self.api.authorizer.authorize(&attributes);
        self.note_decision(&decision);
        match decision {
            Decision::Allow { .. } => Ok(()),
            Decision::NoOpinion { reason } => Err(refusal(&attributes, &reason)),
        }
    }

    /// The same question about this resource with another verb (an apply that would create).
    pub fn authorize_resource(&self, verb: &'static str, name: &str) -> Result<()> {
        let info = &self.info;
        let attributes = Attributes::Resource {
            user: &self.user,
            verb,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name,
        };
        let decision = self.api.authorizer.authorize(&attributes);
        self.note_decision(&decision);
        match decision {
            Decision::Allow { .. } => Ok(()),
            Decision::NoOpinion { reason } => Err(refusal(&attributes, &reason)),
        }
    }
}

/// 403 for what was asked, in upstream's words.
pub fn refusal(asked: &Attributes<'_>, reason: &str) -> Failure {
    match *asked {
        Attributes::Path { user, verb, path } => {
            let mut text = format!("User {:?} cannot {verb} path {path:?}", user.name);
            append_reason(&mut text, reason);
            Status::forbidden("", "", "", &text)
        }
        Attributes::Resource {
            user,
            verb,
            group,
            resource,
            subresource,
            namespace,
            name,
            ..
        } => {
            let part = match subresource {
                "" => resource.to_owned(),
                subresource => format!("{resource}/{subresource}"),
            };
            let mut text = format!(
                "User {:?} cannot {verb} resource {part:?} in API group {group:?}",
                user.name
            );
            if namespace.is_empty() {
                text.push_str(" at the cluster scope");
            } else {
                text.push_str(&format!(" in the namespace {namespace:?}"));
            }
            append_reason(&mut text, reason);
            Status::forbidden(group, resource, name, &text)
        }
    }
}

impl Ctx {
    fn note_decision(&self, decision: &Decision) {
        if let Some(record) = &self.audit {
            record.note_decision(decision);
        }
    }
}

fn append_reason(text: &mut String, reason: &str) {
    if !reason.is_empty() {
        text.push_str(": ");
        text.push_str(reason);
    }
}

/// Now, in the resolution that objects carry.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
