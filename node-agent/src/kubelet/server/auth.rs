//! Who asks, and may they: both are questions to the API, with short memories.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use http::{Method, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tracing::warn;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Refused;

const TOKEN_TTL: Duration = Duration::from_secs(120);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
const REMEMBERED: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    user: String,
    groups: Vec<String>,
}

/// The other end of a connection, if it has shown a certificate.
#[derive(Debug, Clone)]
pub(super) struct Peer(pub Option<Identity>);

/// TLS has checked the chain already.
pub(super) fn identity(chain: &[CertificateDer<'_>]) -> Option<Identity> {
    let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
    let subject = certificate.subject();
    let user = subject
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?
        .to_string();
    let mut groups: Vec<String> = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok().map(String::from))
        .collect();
    groups.push("system:authenticated".into());
    Some(Identity { user, groups })
}

struct Memory<K, V> {
    entries: Mutex<HashMap<K, (V, Instant)>>,
}

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn new() -> Self {
        Self {
            entries: Mutex::default(),
        }
    }

    fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock();
        entries
            .get(key)
            .filter(|(_, until)| *until > Instant::now())
            .map(|(v, _)| v.clone())
    }

    fn put(&self, key: K, value: V, ttl: Duration) {
        let mut entries = self.entries.lock();
        if entries.len() >= REMEMBERED {
            let now = Instant::now();
            entries.retain(|_, (_, until)| *until > now);
        }
        if entries.len() >= REMEMBERED {
            entries.clear();
        }
        entries.insert(key, (value, Instant::now() + ttl));
    }
}

/// What of a request decides whether it may go on.
pub(super) struct Question {
    certificate: Option<Identity>,
    bearer: Option<String>,
    verb: &'static str,
    path: String,
}

impl Question {
    pub(super) fn of(request: &axum::extract::Request) -> Self {
        let path = request.uri().path().to_string();
        let verb = match (path.split('/').nth(1), request.method()) {
            // A WebSocket begins with GET, but creates something.
            (Some("exec" | "attach" | "portForward"), _) => "create",
            (_, &Method::POST) => "create",
            (_, &Method::PUT) => "update",
            (_, &Method::PATCH) => "patch",
            (_, &Method::DELETE) => "delete",
            _ => "get",
        };
        let bearer = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
            .map(|token| token.trim().to_string());
        let peer = request.extensions().get::<Peer>();
        Self {
            certificate: peer.and_then(|p| p.0.clone()),
            bearer,
            verb,
            path,
        }
    }
}

type Access = (Identity, &'static str, &'static str);

pub(super) struct Auth {
    client: Client,
    node: String,
    tokens: Memory<[u8; 32], Option<Identity>>,
    verdicts: Memory<Access, bool>,
}

impl Auth {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self {
            client,
            node: node.into(),
            tokens: Memory::new(),
            verdicts: Memory::new(),
        }
    }

    pub(super) async fn check(&self, question: Question) -> Result<(), Refused> {
        let unauthorized = || Refused(StatusCode::UNAUTHORIZED, "Unauthorized".into());
        let identity = match (question.certificate, question.bearer) {
            (Some(identity), _) => identity,
            (None, Some(token)) => self.token(&token).await?.ok_or_else(unauthorized)?,
            (None, None) => return Err(unauthorized()),
        };
        let (verb, path) = (question.verb, question.path.as_str());
        let asked = subresources(path);
        for subresource in asked {
            if self.may(&identity, verb, subresource).await? {
                return Ok(());
            }
        }
        Err(Refused(
            StatusCode::FORBIDDEN,
            format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
                identity.user,
                asked.join(" ")
            ),
        ))
    }

    async fn token(&self, token: &str) -> Result<Option<Identity>, Refused> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key) {
            return Ok(known);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.into(),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| unavailable(&e))?;
        let status = answer.status.unwrap_or_default();
        let identity = status
            .user
            .filter(|_| status.authenticated == Some(true))
            .map(|user| Identity {
                user: user.username.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
            });
        self.tokens.put(key, identity.clone(), TOKEN_TTL);
        Ok(identity)
    }

    async fn may(
        &self,
        identity: &Identity,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, Refused> {
        let question = (identity.clone(), verb, subresource);
        if let Some(known) = self.verdicts.get(&question) {
            return Ok(known);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(identity.user.clone()),
                groups: Some(identity.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(self.node.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| unavailable(&e))?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        self.verdicts.put(
            question,
            allowed,
            if allowed { ALLOWED_TTL } else { DENIED_TTL },
        );
        Ok(allowed)
    }
}

fn unavailable(e: &kube::Error) -> Refused {
    warn!(error = %e, "cannot ask the API who may do what");
    Refused(
        StatusCode::INTERNAL_SERVER_ERROR,
        "Authorization error".into(),
    )
}

/// KEP-2862: some paths have a name of their own; the old one opens them too.
fn subresources(path: &str) -> &'static [&'static str] {
    match path.split('/').nth(1) {
        Some("stats") => &["stats"],
        Some("metrics") => &["metrics"],
        Some("logs") => &["log"],
        Some("healthz") => &["healthz", "proxy"],
        Some("pods" | "runningpods") => &["pods", "proxy"],
        Some("configz") => &["configz", "proxy"],
        _ => &["proxy"],
    }
}
