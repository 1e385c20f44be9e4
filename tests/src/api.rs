//! The API as programs use it that are no command line: single requests, and WebSockets as browsers open them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use http::{HeaderValue, Method, Request, header};
use kube::client::ConfigExt as _;
use kube::config::Kubeconfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

/// For a stream that never ends.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Api {
    runtime: tokio::runtime::Runtime,
    config: kube::Config,
    client: kube::Client,
}

impl Api {
    pub fn new(kubeconfig: &Path) -> Result<Self> {
        // An error says that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let config = runtime.block_on(kube::Config::from_custom_kubeconfig(
            kubeconfig,
            &Default::default(),
        ))?;
        let client = runtime.block_on(async { kube::Client::try_from(config.clone()) })?;
        Ok(Self {
            runtime,
            config,
            client,
        })
    }

    /// A request and its answer as JSON. Patches are strategic.
    pub fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let kind = match method {
            Method::PATCH => "application/strategic-merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header(header::CONTENT_TYPE, kind)
            .body(match body {
                Value::Null => Vec::new(),
                body => serde_json::to_vec(body)?,
            })?;
        self.runtime
            .block_on(self.client.request(request))
            .with_context(|| format!("{method} {path}"))
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, &Value::Null)
    }

    /// All messages of a WebSocket until it is closed, or until `enough` of them.
    pub fn messages(
        &self,
        path: &str,
        protocol: Option<&'static str>,
        enough: usize,
    ) -> Result<Vec<Message>> {
        self.read(path, protocol, |messages| messages.len() >= enough)
    }

    /// The events of a watch, up to the one that is the last.
    pub fn events(&self, path: &str, is_last: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let event =
            |message: &Message| -> Result<Value> { Ok(serde_json::from_str(message.to_text()?)?) };
        let messages = self.read(path, None, |messages| {
            let last = messages.last().map(event);
            last.is_some_and(|last| last.is_ok_and(|last| is_last(&last)))
        })?;
        messages.iter().map(event).collect()
    }

    fn read(
        &self,
        path: &str,
        protocol: Option<&'static str>,
        is_all: impl Fn(&[Message]) -> bool,
    ) -> Result<Vec<Message>> {
        let read = async {
            let url = &self.config.cluster_url;
            let host = url.host().context("no host")?;
            let port = url.port_u16().unwrap_or(443);
            let tls = self.config.rustls_client_config()?;
            let stream = TcpStream::connect((host, port)).await?;
            let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
                .connect(ServerName::try_from(host.to_owned())?, stream)
                .await?;
            let mut request = format!("wss://{host}:{port}{path}").into_client_request()?;
            if let Some(protocol) = protocol {
                let value = HeaderValue::from_static(protocol);
                let headers = request.headers_mut();
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
            }
            let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await?;
            let mut messages = Vec::new();
            while !is_all(&messages)
                && let Some(message) = socket.next().await
            {
                match message? {
                    Message::Close(_) => break,
                    Message::Ping(_) | Message::Pong(_) => {}
                    message => messages.push(message),
                }
            }
            Ok(messages)
        };
        let timed = async { tokio::time::timeout(PATIENCE, read).await };
        match self.runtime.block_on(timed) {
            Ok(messages) => messages,
            Err(_) => bail!("the WebSocket {path} does not end"),
        }
    }
}
