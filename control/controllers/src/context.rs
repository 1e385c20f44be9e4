//! What every controller is given, and how it is fed and run.

use std::{fmt::Debug, future::Future, sync::Arc, time::Duration};

use futures::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Api, Client, Resource};
use skep_client::{Action, Change, Informer, Informers, ObjectKey, Queue, Recorder, queue};
use tokio_util::sync::CancellationToken;

/// The CA that signs the certificates of nodes.
#[derive(Clone)]
pub struct Authority {
    pub certificate_pem: String,
    pub key_pem: String,
}

#[derive(Clone)]
pub struct Config {
    /// Shared with the scheduler when both run in one process.
    pub informers: Informers,
    /// Holder name in the Lease; stable across restarts of the same control plane, unique among running ones.
    pub identity: String,
    /// `None`: certificate signing requests are left to somebody else.
    pub signer: Option<Authority>,
    /// What pods verify the API server with; published to every namespace. Empty: nothing is published.
    pub root_ca_pem: String,
    /// Pod ranges of the whole cluster, at most one a family. Empty: nodes get no `podCIDR`.
    pub cluster_cidrs: Vec<IpNet>,
    /// Prefix length of a node's share, by family.
    pub node_prefix_v4: u8,
    pub node_prefix_v6: u8,
    /// Addresses for LoadBalancer Services. Empty: somebody else gives them theirs.
    pub load_balancer_pools: Vec<IpNet>,
    /// A node that does not report for this long is unreachable.
    pub node_monitor_grace: Duration,
    /// Between two looks of an autoscaler at its metrics.
    pub horizontal_period: Duration,
    /// Finished pods kept in the whole cluster.
    pub terminated_pod_threshold: usize,
}

impl Config {
    /// Upstream's defaults.
    pub fn new(informers: Informers, identity: impl Into<String>) -> Self {
        Self {
            informers,
            identity: identity.into(),
            signer: None,
            root_ca_pem: String::new(),
            cluster_cidrs: Vec::new(),
            node_prefix_v4: 24,
            node_prefix_v6: 64,
            load_balancer_pools: Vec::new(),
            node_monitor_grace: Duration::from_secs(40),
            horizontal_period: Duration::from_secs(15),
            terminated_pod_threshold: 12_500,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {doing}")]
    Api {
        doing: &'static str,
        #[source]
        source: kube::Error,
    },
    /// An object that no retry makes usable.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    pub fn api(&self) -> Option<&kube::Error> {
        match self {
            Self::Api { source, .. } => Some(source),
            Self::Invalid(_) => None,
        }
    }
}

/// Names what was being done when the API server said no.
pub trait Doing<T> {
    /// # Errors
    /// The same, named.
    fn doing(self, doing: &'static str) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, kube::Error> {
    fn doing(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Api { doing, source })
    }
}

/// What the API server said, without our client's wrapping.
pub fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => queue::chain(other),
    }
}

pub struct Context {
    pub client: Client,
    pub informers: Informers,
    pub events: Events,
    pub config: Arc<Config>,
    pub term: CancellationToken,
}

/// One recorder a component, as upstream names them in "From".
pub struct Events {
    client: Client,
    term: CancellationToken,
}

impl Events {
    pub fn from(&self, component: &str) -> Recorder {
        Recorder::new(self.client.clone(), component, self.term.clone())
    }
}

impl Context {
    pub fn new(config: Arc<Config>, term: CancellationToken) -> Arc<Self> {
        let client = config.informers.client().clone();
        Arc::new(Self {
            events: Events {
                client: client.clone(),
                term: term.clone(),
            },
            informers: config.informers.clone(),
            client,
            config,
            term,
        })
    }

    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub fn cluster_api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Calls `handler` for every change while the term lasts. Informers outlive terms, so a handler must fall silent.
    pub fn watch<K>(
        &self,
        informer: &Informer<K>,
        handler: impl Fn(&Change<K>) + Send + Sync + 'static,
    ) where
        K: Resource + Clone + Send + Sync + 'static,
    {
        let term = self.term.clone();
        informer.on_change(move |change| {
            if !term.is_cancelled() {
                handler(change);
            }
        });
    }

    /// Nothing to do yet: see [`Work`].
    pub fn work(self: &Arc<Self>) -> Work {
        Work {
            context: self.clone(),
            queue: Queue::new(),
            read: Vec::new(),
        }
    }

    /// Runs `work` now and every `period` until the term ends.
    pub async fn every<Fut: Future<Output = ()>>(
        &self,
        period: Duration,
        mut work: impl FnMut() -> Fut,
    ) {
        loop {
            tokio::select! {
                () = self.term.cancelled() => return,
                () = async {
                    work().await;
                    tokio::time::sleep(skep_client::backoff::jitter(period)).await;
                } => {}
            }
        }
    }
}

/// The keys that a controller is to reconcile, found in the changes of the objects that it reads.
pub struct Work {
    context: Arc<Context>,
    queue: Arc<Queue>,
    read: Vec<BoxFuture<'static, ()>>,
}

impl Work {
    /// No key is reconciled before this informer has its objects.
    pub fn reads<K>(&mut self, informer: &Informer<K>)
    where
        K: Resource + Clone + Send + Sync + 'static,
    {
        let informer = informer.clone();
        self.read
            .push(async move { informer.synced().await }.boxed());
    }

    /// Reads an informer, and queues the keys that `keys` finds concerned by a change.
    pub fn feed<K>(
        &mut self,
        informer: &Informer<K>,
        keys: impl Fn(&Change<K>) -> Vec<ObjectKey> + Send + Sync + 'static,
    ) where
        K: Resource + Clone + Send + Sync + 'static,
    {
        self.reads(informer);
        let queue = self.queue.clone();
        self.context.watch(informer, move |change| {
            for key in keys(change) {
                queue.add(key);
            }
        });
    }

    /// Reads an informer, and queues each object that changes.
    pub fn feed_self<K>(&mut self, informer: &Informer<K>)
    where
        K: Resource + Clone + Send + Sync + 'static,
    {
        self.feed(informer, |change| {
            vec![ObjectKey::of(change.object().meta())]
        });
    }

    /// Waits for what is read, then reconciles with at most `workers` at a time until the term ends.
    pub async fn run<C, F, Fut>(
        self,
        name: &'static str,
        workers: usize,
        controller: Arc<C>,
        reconcile: F,
    ) where
        C: Send + Sync + 'static,
        F: Fn(Arc<C>, ObjectKey) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Action, Error>> + Send + 'static,
    {
        let term = &self.context.term;
        tokio::select! {
            () = term.cancelled() => return,
            _ = join_all(self.read) => {}
        }
        tracing::debug!(controller = name, "running");
        let reconcile = move |key| reconcile(controller.clone(), key);
        queue::run(name, self.queue, workers, term.clone(), reconcile).await;
    }
}
