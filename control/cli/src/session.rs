//! One connection to one cluster: requests as JSON values, errors in kubectl's words.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use http::{Request, header};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::discovery::{Resource, Resources};

/// The name under which writes appear in `metadata.managedFields`.
pub const FIELD_MANAGER: &str = "skep";

/// Flags that every command takes.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Path to the kubeconfig file (default: $KUBECONFIG, then ~/.kube/config)
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig context to use
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The namespace of this request
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Address of the API server, instead of the kubeconfig's
    #[arg(short, long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// Bearer token, instead of the kubeconfig's credentials
    #[arg(long, global = true)]
    pub token: Option<String>,
    /// Act as this user
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// Act as a member of this group (repeatable)
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub impersonate_groups: Vec<String>,
    /// Do not check the server's certificate
    #[arg(long, global = true)]
    pub insecure_skip_tls_verify: bool,
}

/// What a patch body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchKind {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

pub const JSON: &str = "application/json";
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub struct Session {
    pub client: Client,
    /// The namespace of requests that name none.
    pub namespace: String,
    /// `https://…`, as `cluster-info` shows it.
    pub server: String,
    resources: OnceCell<Resources>,
}

impl Session {
    pub async fn open(global: &Global) -> Result<Self> {
        let mut config = load_config(global).await?;
        if let Some(server) = &global.server {
            config.cluster_url = server
                .parse()
                .with_context(|| format!("--server {server}"))?;
        }
        if let Some(token) = &global.token {
            config.auth_info = kube::config::AuthInfo::default();
            config.auth_info.token = Some(token.clone().into());
        }
        config.auth_info.impersonate.clone_from(&global.impersonate);
        if !global.impersonate_groups.is_empty() {
            config.auth_info.impersonate_groups = Some(global.impersonate_groups.clone());
        }
        config.accept_invalid_certs |= global.insecure_skip_tls_verify;
        // Watches and `logs -f` may be silent for long.
        config.read_timeout = None;
        let namespace = global
            .namespace
            .clone()
            .unwrap_or(config.default_namespace.clone());
        let server = config
            .cluster_url
            .to_string()
            .trim_end_matches('/')
            .to_owned();
        let client = Client::try_from(config).context("setting up the connection")?;
        Ok(Self {
            client,
            namespace,
            server,
            resources: OnceCell::new(),
        })
    }

    pub async fn resources(&self) -> Result<&Resources> {
        self.resources
            .get_or_try_init(|| Resources::discover(self))
            .await
    }

    /// The resource a word names: plural, singular, short name or kind, optionally with `.group`.
    pub async fn resource(&self, word: &str) -> Result<Resource> {
        self.resources()
            .await?
            .find(word)
            .cloned()
            .ok_or_else(|| anyhow!("the server doesn't have a resource type \"{word}\""))
    }

    pub async fn request(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, accept);
        let bytes = match body {
            Some((content_type, body)) => {
                request = request.header(header::CONTENT_TYPE, content_type);
                serde_json::to_vec(body)?
            }
            None => Vec::new(),
        };
        let response = self
            .client
            .send(request.body(bytes.into())?)
            .await
            .map_err(explain)?;
        let warnings: Vec<_> = response
            .headers()
            .get_all(header::WARNING)
            .iter()
            .cloned()
            .collect();
        for warning in warnings {
            // RFC 9111 §5.5: `299 - "text"`.
            let text = String::from_utf8_lossy(warning.as_bytes()).into_owned();
            let text = text
                .splitn(3, ' ')
                .nth(2)
                .unwrap_or(&text)
                .trim_matches('"')
                .to_owned();
            eprintln!("Warning: {}", text.replace("\\\"", "\""));
        }
        let status = response.status();
        let body = http_body_util::BodyExt::collect(response.into_body()).await;
        let body = body
            .map_err(|error| anyhow!("reading the answer: {error}"))?
            .to_bytes();
        if !status.is_success() {
            return Err(match serde_json::from_slice::<Value>(&body) {
                Ok(value) if value["kind"] == "Status" => ApiError(value).into(),
                // Paths that nobody serves are answered in plain text.
                _ if status == http::StatusCode::NOT_FOUND => ApiError(serde_json::json!({
                    "reason": "NotFound",
                    "message": "the server could not find the requested resource",
                }))
                .into(),
                _ => anyhow!(
                    "Error from server: {status}: {}",
                    String::from_utf8_lossy(&body).trim()
                ),
            });
        }
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).with_context(|| format!("the answer to {path} is not JSON"))
    }

    pub async fn get(&self, path: &str) -> Result<Value> {
        self.request("GET", path, JSON, None).await
    }

    /// `None` when the server answers NotFound.
    pub async fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if ApiError::reason(&error) == Some("NotFound") => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn text(&self, path: &str) -> Result<String> {
        let request = Request::get(path).body(Vec::new())?;
        self.client.request_text(request).await.map_err(explain)
    }

    pub async fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.request("POST", &with_manager(path), JSON, Some((JSON, object)))
            .await
    }

    pub async fn replace(&self, path: &str, object: &Value) -> Result<Value> {
        self.request("PUT", &with_manager(path), JSON, Some((JSON, object)))
            .await
    }

    pub async fn patch(&self, path: &str, kind: PatchKind, patch: &Value) -> Result<Value> {
        let body = Some((kind.content_type(), patch));
        self.request("PATCH", &with_manager(path), JSON, body).await
    }

    pub async fn delete(&self, path: &str, options: &Value) -> Result<Value> {
        self.request("DELETE", path, JSON, Some((JSON, options)))
            .await
    }

    /// The path of an object's own resource, from its apiVersion and kind.
    pub async fn resource_of(&self, object: &Value) -> Result<Resource> {
        let (api_version, kind) = (text(object, "apiVersion"), text(object, "kind"));
        if api_version.is_empty() || kind.is_empty() {
            bail!("error validating data: apiVersion and kind must be set");
        }
        self.resources().await?.of_kind(&api_version, &kind).cloned().ok_or_else(|| {
            anyhow!(
                "resource mapping not found for name: \"{}\" namespace: \"{}\": no matches for kind \
                 \"{kind}\" in version \"{api_version}\"\nensure CRDs are installed first",
                name_of(object),
                text(&object["metadata"], "namespace"),
            )
        })
    }

    /// The namespace to use for an object: its own, else the request's; refuses a contradiction.
    pub fn namespace_of(&self, object: &Value, explicit: Option<&str>) -> Result<String> {
        let own = text(&object["metadata"], "namespace");
        match explicit {
            Some(explicit) if !own.is_empty() && own != explicit => bail!(
                "the namespace from the provided object \"{own}\" does not match the namespace \
                 \"{explicit}\". You must pass '--namespace={own}' to perform this operation."
            ),
            _ if own.is_empty() => Ok(self.namespace.clone()),
            _ => Ok(own),
        }
    }
}

async fn load_config(global: &Global) -> Result<Config> {
    let options = KubeConfigOptions {
        context: global.context.clone(),
        ..Default::default()
    };
    if let Some(path) = &global.kubeconfig {
        let file = Kubeconfig::read_from(path)
            .with_context(|| format!("reading the kubeconfig {}", path.display()))?;
        return Ok(Config::from_custom_kubeconfig(file, &options).await?);
    }
    match Config::from_kubeconfig(&options).await {
        Ok(config) => Ok(config),
        Err(error) if global.context.is_some() => Err(error.into()),
        Err(error) => match Config::incluster() {
            Ok(config) => Ok(config),
            Err(_) if global.server.is_some() => Ok(Config::new("https://localhost".parse()?)),
            Err(_) => Err(anyhow!(error).context(
                "no usable kubeconfig (looked at --kubeconfig, $KUBECONFIG and ~/.kube/config); \
                 `cargo xtask up` makes a cluster and writes one",
            )),
        },
    }
}

fn with_manager(path: &str) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    if path.contains("fieldManager=") {
        path.to_owned()
    } else {
        format!("{path}{separator}fieldManager={FIELD_MANAGER}")
    }
}

/// A failure `Status` of the API server.
#[derive(Debug)]
pub struct ApiError(pub Value);

impl ApiError {
    pub fn reason(error: &anyhow::Error) -> Option<&str> {
        error
            .downcast_ref::<Self>()
            .and_then(|e| e.0["reason"].as_str())
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (message, reason) = (text(&self.0, "message"), text(&self.0, "reason"));
        match reason.as_str() {
            "" | "Unknown" => write!(f, "Error from server: {message}"),
            // kubectl says the same of a 422 that its server-side validation caused.
            "Invalid" => write!(f, "{message}"),
            _ => write!(f, "Error from server ({reason}): {message}"),
        }
    }
}

impl std::error::Error for ApiError {}

/// A transport error in one line.
pub fn explain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => match serde_json::to_value(&status) {
            Ok(value) => ApiError(value).into(),
            Err(_) => anyhow!("Error from server: {status}"),
        },
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(&other);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            anyhow!("Unable to connect to the server: {text}")
        }
    }
}

/// A string member; empty when absent.
pub fn text(value: &Value, key: &str) -> String {
    value
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

pub fn name_of(object: &Value) -> String {
    text(&object["metadata"], "name")
}
