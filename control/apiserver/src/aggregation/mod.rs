//! APIServices: parts of the API that other servers answer (upstream kube-aggregator).
//!
//! ```text
//! APIServices in the cache ──► table (who answers which group-version)
//!           │                    │
//!           ▼                    ▼
//!   availability (a check    proxy: /apis/G/V… ──TLS──► an endpoint of its Service
//!   each, in the background)  discovery, OpenAPI: merged with ours
//! ```
//! A request never waits for a server that the last check found dead: it gets 503 at once.
//!
//! Read `proxy` for what is sent on, `availability` for what is checked, `discovery` for what is merged.

mod availability;
pub mod discovery;
mod proxy;

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{ClientConfig, RootCertStore, client::ResolvesClientCert, pki_types::CertificateDer};
use rustls_pki_types::pem::PemObject;
use serde_json::Value;

use self::discovery::Documents;
use crate::{codec::meta, context::Api, relay::ServiceTls};

pub use self::{
    availability::run,
    proxy::{handle, is_identity},
};

const PREFIX: &str = "/registry/apiregistration.k8s.io/apiservices/";

/// The certificate that this server shows to aggregated servers, who then believe its `X-Remote-*` headers.
pub type FrontProxy = Arc<dyn ResolvesClientCert>;

/// The table, and what is needed to call those who stand in it.
#[derive(Default)]
pub struct Aggregation {
    pub front_proxy: Option<FrontProxy>,
    table: ArcSwap<Table>,
    /// Somebody could not reach one of them.
    suspicion: tokio::sync::Notify,
}

/// Who answers what, as of one revision of the APIServices. Only remote ones.
#[derive(Default)]
pub struct Table {
    services: Vec<Arc<Remote>>,
    by_version: HashMap<(String, String), usize>,
    /// Counts publications, for caches of derived documents.
    pub generation: u64,
}

/// An APIService that another server answers.
#[derive(Clone)]
pub struct Remote {
    /// `v1beta1.metrics.k8s.io`
    pub name: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub service: String,
    pub port: u16,
    group_priority: i64,
    version_priority: i64,
    /// As its stored condition says.
    pub available: bool,
    /// `Err`: why no connection can be made.
    tls: Result<Arc<ServiceTls>, String>,
    /// Whether the TLS settings above are still those of the object.
    trust: (String, bool),
    /// What it said about itself when it was last checked.
    documents: Arc<Documents>,
}

impl Aggregation {
    pub fn new(front_proxy: Option<FrontProxy>) -> Self {
        Self {
            front_proxy,
            table: ArcSwap::default(),
            suspicion: tokio::sync::Notify::new(),
        }
    }

    pub fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    pub fn remote(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let table = self.table.load();
        let at = table
            .by_version
            .get(&(group.to_owned(), version.to_owned()))?;
        table.services.get(*at).cloned()
    }

    /// Reads the APIServices again; what was learned about them stays.
    fn refresh(&self, api: &Api) {
        let former = self.table.load_full();
        let snapshot = api.storage.cache.snapshot(PREFIX);
        let mut services: Vec<Arc<Remote>> = snapshot
            .iter()
            .filter_map(|entry| serde_json::from_slice::<Value>(&entry.bytes()).ok())
            .filter_map(|object| self.remote_of(&object, &former))
            .map(Arc::new)
            .collect();
        // Discovery's order: groups by priority, then by name; versions likewise.
        services.sort_by(|a, b| {
            (b.group_priority, &a.group, b.version_priority, &a.version).cmp(&(
                a.group_priority,
                &b.group,
                a.version_priority,
                &b.version,
            ))
        });
        let by_version = services
            .iter()
            .enumerate()
            .map(|(at, remote)| ((remote.group.clone(), remote.version.clone()), at))
            .collect();
        self.table.store(Arc::new(Table {
            services,
            by_version,
            generation: former.generation + 1,
        }));
    }

    fn learned(&self, name: &str, documents: Documents) {
        let documents = Arc::new(documents);
        self.table.rcu(|table| {
            let services = table.services.iter().map(|remote| {
                if remote.name == name {
                    Arc::new(Remote {
                        documents: documents.clone(),
                        ..remote.as_ref().clone()
                    })
                } else {
                    remote.clone()
                }
            });
            Table {
                services: services.collect(),
                by_version: table.by_version.clone(),
                generation: table.generation + 1,
            }
        });
    }

    /// `None`: answered here.
    fn remote_of(&self, object: &Value, former: &Table) -> Option<Remote> {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = spec["service"].as_object()?;
        let name = meta(object, "name").to_owned();
        let known = former.services.iter().find(|r| r.name == name);
        let trust = (
            text(&spec["caBundle"]),
            spec["insecureSkipTLSVerify"].as_bool().unwrap_or(false),
        );
        let namespace = text(service.get("namespace").unwrap_or(&Value::Null));
        let service_name = text(service.get("name").unwrap_or(&Value::Null));
        let same = known.filter(|known| {
            known.trust == trust && known.service == service_name && known.namespace == namespace
        });
        let tls = match same {
            Some(known) => known.tls.clone(),
            None => self
                .service_tls(
                    &trust.0,
                    trust.1,
                    &format!("{service_name}.{namespace}.svc"),
                )
                .map(Arc::new),
        };
        let port = service.get("port").and_then(Value::as_u64);
        let conditions = object["status"]["conditions"].as_array();
        let available = conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Available" && condition["status"] == "True");
        Some(Remote {
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            port: port.and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
            version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
            documents: known
                .map(|known| known.documents.clone())
                .unwrap_or_default(),
            name,
            namespace,
            service: service_name,
            available,
            tls,
            trust,
        })
    }

    fn service_tls(&self, bundle: &str, insecure: bool, name: &str) -> Result<ServiceTls, String> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let builder = ClientConfig::builder();
        let builder = if insecure {
            let provider = rustls::crypto::ring::default_provider();
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(proxy::AnyCertificate(provider)))
        } else {
            let pem = STANDARD
                .decode(bundle)
                .map_err(|error| format!("caBundle: {error}"))?;
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| format!("caBundle: {error}"))?;
                roots
                    .add(certificate)
                    .map_err(|error| format!("caBundle: {error}"))?;
            }
            builder.with_root_certificates(roots)
        };
        let mut config = match &self.front_proxy {
            Some(identity) => builder.with_client_cert_resolver(identity.clone()),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(ServiceTls {
            config: Arc::new(config),
            name: name.to_owned(),
        })
    }
}
