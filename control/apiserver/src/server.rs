//! Puts an API server together: store → cache → registry → handlers.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use serde_json::Value;
use skep_store::Store;

use crate::{
    admission::{self, Chain},
    aggregation::{self, Aggregation, FrontProxy},
    audit::Audit,
    authn::Authenticator,
    authz::Authorizer,
    bootstrap::{self, Advertise, ExtensionAuthentication},
    cache::{Cache, Index, Indexer, Options, resource_prefix},
    context::Api,
    crd,
    encryption::Encryption,
    fairness::Fairness,
    health::Readiness,
    metrics::Metrics,
    node_metrics,
    registry::{Registry, Resource},
    relay::Relay,
    service::ApiService,
    services::Allocators,
    storage::Storage,
    webhook::Webhooks,
};

/// What an API server is made of. `authenticator` may come later, as it reads through the cache: see
/// [`Server::storage`].
pub struct Config {
    pub cache: Arc<Cache>,
    pub store: Arc<dyn Store>,
    pub registry: Arc<ArcSwap<Registry>>,
    pub authorizer: Arc<dyn Authorizer>,
    pub authenticator: Option<Arc<Authenticator>>,
    pub services: Allocators,
    pub relay: Relay,
    /// The address and port that the `kubernetes` Service leads to; `None` makes no such Service.
    pub advertise: Option<Advertise>,
    /// `None`: the plugins that are on by default.
    pub admission: Option<Chain>,
    /// `None`: no audit log.
    pub audit: Option<Arc<Audit>>,
    /// The one that the cache was started with.
    pub encryption: Arc<Encryption>,
    /// What is shown to the servers of APIServices.
    pub front_proxy: Option<FrontProxy>,
    /// The CAs in the ConfigMap by which those servers know users and this server; `None` makes no such ConfigMap.
    pub authentication: Option<ExtensionAuthentication>,
}

/// A running API server.
#[derive(Clone)]
pub struct Server {
    pub api: Arc<Api>,
    _tasks: Arc<Tasks>,
}

/// What runs until the last [`Server`] is dropped.
struct Tasks(Vec<tokio::task::AbortHandle>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// The table of built-in resources, for [`start_cache`] and [`Config`]; with `metrics.k8s.io` if the server is to measure
/// its nodes, which upstream leaves to an add-on.
pub fn builtin_registry(measures: bool) -> Arc<ArcSwap<Registry>> {
    let mut registry = Registry::new(skep_api::builtin());
    if measures {
        registry = registry.with(node_metrics::rows());
    }
    Arc::new(ArcSwap::from_pointee(registry))
}

/// Starts the watch cache over a store; labels and selectable fields are indexed by the registry's rows.
///
/// # Errors
/// When the store cannot be read.
pub async fn start_cache(
    store: Arc<dyn Store>,
    registry: &Arc<ArcSwap<Registry>>,
    encryption: Arc<Encryption>,
) -> Result<Arc<Cache>, skep_store::StoreError> {
    let mut options = Options::new(Arc::new(ByRegistry {
        registry: registry.clone(),
        derived: ArcSwap::from_pointee((u64::MAX, HashMap::new())),
    }));
    options.reveal = Some(Arc::new(move |key: &str, value| {
        encryption.reveal(key, value)
    }));
    Cache::start(store, options).await
}

/// Indexes an object as the rows of its resource say, which its key's prefix tells.
struct ByRegistry {
    registry: Arc<ArcSwap<Registry>>,
    /// As of a generation of the registry.
    derived: ArcSwap<(u64, ByPrefix)>,
}

type ByPrefix = HashMap<String, Vec<Arc<Resource>>>;

impl ByRegistry {
    fn rows<T>(&self, key: &str, read: impl FnOnce(&[Arc<Resource>]) -> T) -> T {
        let registry = self.registry.load();
        if self.derived.load().0 != registry.generation {
            let mut rows = ByPrefix::new();
            // The row of the stored version knows the stored object; of a custom resource any version does, and the fields
            // of all.
            for resource in registry.resources().filter(|r| r.def.conversion.is_none()) {
                let of_prefix = rows.entry(resource.prefix.clone()).or_default();
                if of_prefix.is_empty() || !resource.custom {
                    of_prefix.push(resource.clone());
                }
            }
            self.derived.store(Arc::new((registry.generation, rows)));
        }
        let derived = self.derived.load();
        let rows = resource_prefix(key).and_then(|prefix| derived.1.get(prefix));
        read(rows.map(Vec::as_slice).unwrap_or_default())
    }
}

impl Indexer for ByRegistry {
    fn index(&self, key: &str, object: &Value) -> Index {
        let mut index = Index::of_metadata(object);
        self.rows(key, |rows| {
            for row in rows {
                let form = row.stored_form.as_ref();
                let object = form.map_or(Cow::Borrowed(object), |form| form.indexed(object));
                for (name, value) in (row.def.selectable_fields)(&object) {
                    if !index.fields.iter().any(|(known, _)| *known == name) {
                        index.fields.push((name.into_owned(), value));
                    }
                }
            }
        });
        index
    }

    fn reads_content(&self, key: &str) -> bool {
        let reads = |row: &Arc<Resource>| row.custom || !row.def.selectable_names.is_empty();
        self.rows(key, |rows| rows.iter().any(reads))
    }
}

/// Builds the server and writes what every cluster has from the beginning.
///
/// # Errors
/// When the first objects cannot be written.
pub async fn build(config: Config) -> anyhow::Result<Server> {
    let chain = config.admission.unwrap_or_else(admission::default_chain);
    let fairness = Fairness::new(config.cache.clone());
    let webhooks = Webhooks::new(config.registry.clone(), config.cache.clone());
    let api = Arc::new(Api {
        storage: Storage {
            store: config.store,
            cache: config.cache,
            encryption: config.encryption,
        },
        registry: config.registry,
        authorizer: config.authorizer,
        authenticator: config.authenticator,
        admission: ArcSwap::from_pointee(chain),
        services: config.services,
        relay: config.relay,
        webhooks,
        definitions: Default::default(),
        documents: Default::default(),
        discovery: Default::default(),
        metrics: Metrics::default(),
        fairness,
        node_metrics: Default::default(),
        readiness: Readiness::default(),
        audit: config.audit,
        aggregation: Aggregation::new(config.front_proxy),
    });
    crd::start(&api);
    bootstrap::run(&api, config.advertise, config.authentication.as_ref()).await?;
    crd::follow(&api);
    let mut tasks = vec![tokio::spawn(aggregation::run(api.clone())).abort_handle()];
    if api.registry.load().group(node_metrics::GROUP).is_some() {
        let collector = node_metrics::run(Arc::downgrade(&api));
        tasks.push(tokio::spawn(collector).abort_handle());
    }
    if let Some(Advertise {
        address,
        shared: true,
    }) = config.advertise
    {
        let member = bootstrap::masters::run(api.clone(), address);
        tasks.push(tokio::spawn(member).abort_handle());
    }
    Ok(Server {
        api,
        _tasks: Arc::new(Tasks(tasks)),
    })
}

impl Server {
    pub fn service(&self) -> ApiService {
        ApiService(self.api.clone())
    }

    /// The service as an axum router: one fallback, no route a kind.
    pub fn router(&self) -> axum::Router {
        axum::Router::new().fallback_service(self.service())
    }

    /// From now on not ready; watches end.
    pub fn drain(&self) {
        self.api.readiness.drain();
    }
}
