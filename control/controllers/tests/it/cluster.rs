//! The cluster under test.

use std::{
    collections::HashSet,
    fmt::Debug,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::extract::Request;
use jiff::Timestamp;
use k8s_openapi::{
    ClusterResourceScope, NamespaceResourceScope,
    api::{
        coordination::v1::Lease,
        core::v1::{Node, Pod, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use skep_apiserver::{authz::Union, build, builtin_registry, identity::User, start_cache};
use skep_client::{Informers, in_process};
use skep_controllers::{Authority, Config};
use skep_store::{Store, memory::MemoryStore};
use tokio_util::sync::CancellationToken;

/// Long enough for a loaded machine; nothing waits for it in vain.
const DEADLINE: Duration = Duration::from_secs(40);
pub(crate) const GRACE: Duration = Duration::from_secs(2);

pub(crate) struct Cluster {
    server: skep_apiserver::Server,
    pub(crate) client: Client,
    /// Nodes whose kubelet lives.
    alive: Arc<Mutex<HashSet<String>>>,
    stop: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn client(router: axum::Router, user: User) -> Client {
    in_process(router.layer(axum::middleware::map_request(
        move |mut request: Request| {
            request.extensions_mut().insert(user.clone());
            std::future::ready(request)
        },
    )))
}

impl Cluster {
    pub(crate) async fn start(nodes: &[&str]) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into()))
            .with_test_writer()
            .try_init();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let registry = builtin_registry(true);
        let cache = start_cache(store.clone(), &registry, Default::default())
            .await
            .expect("a cache");
        let server = build(skep_apiserver::Config {
            cache,
            store,
            registry,
            authorizer: Arc::new(Union {
                authorizers: Vec::new(),
            }),
            authenticator: None,
            services: Default::default(),
            relay: Default::default(),
            advertise: None,
            admission: None,
            audit: None,
            encryption: Default::default(),
            front_proxy: None,
            authentication: None,
        })
        .await
        .expect("an API server");
        let stop = CancellationToken::new();
        let controllers = client(
            server.router(),
            User::component("system:kube-controller-manager"),
        );
        let scheduler = client(server.router(), User::component("system:kube-scheduler"));
        let admin = client(server.router(), User::component("admin"));
        let key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = ca.self_signed(&key).expect("a CA");
        let mut config = Config::new(Informers::new(controllers, stop.clone()), "test");
        config.root_ca_pem = ca.pem();
        config.signer = Some(Authority {
            certificate_pem: ca.pem(),
            key_pem: key.serialize_pem(),
        });
        config.cluster_cidrs = vec!["10.244.0.0/16".parse().expect("a range")];
        config.load_balancer_pools = vec!["192.0.2.8/30".parse().expect("a range")];
        config.node_monitor_grace = GRACE;
        config.horizontal_period = Duration::from_millis(200);
        tokio::spawn(skep_controllers::run(config, stop.clone()));
        let config = skep_scheduler::Config {
            informers: Informers::new(scheduler, stop.clone()),
            identity: "test".into(),
        };
        tokio::spawn(skep_scheduler::run(config, stop.clone()));
        let cluster = Self {
            server,
            client: admin,
            alive: Arc::default(),
            stop,
        };
        for node in nodes {
            cluster.add_node(node).await;
        }
        // Admission refuses pods in a namespace without its default account.
        wait_for(
            "the default account",
            || async {
                let accounts = cluster.api::<ServiceAccount>();
                accounts.get_opt("default").await.expect("answers")
            },
            Option::is_some,
        )
        .await;
        tokio::spawn(kubelet(
            cluster.client.clone(),
            cluster.alive.clone(),
            cluster.stop.clone(),
        ));
        cluster
    }

    pub(crate) async fn add_node(&self, name: &str) {
        let node: Node = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } } }))
        .expect("a node");
        self.all::<Node>()
            .create(&PostParams::default(), &node)
            .await
            .expect("registers");
        let size = json!({ "cpu": "8", "memory": "16Gi", "pods": "110" });
        let status = json!({ "status": { "capacity": size, "allocatable": size,
            "addresses": [ { "type": "InternalIP", "address": "192.0.2.7" } ] } });
        self.all::<Node>()
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
            .await
            .expect("reports its size");
        report_ready(&self.client, name).await.expect("reports");
        self.alive.lock().insert(name.to_owned());
    }

    /// What nodes and pods use, as their agents would report it.
    pub(crate) fn metrics(&self) -> &skep_apiserver::node_metrics::NodeMetrics {
        &self.server.api.node_metrics
    }

    /// The kubelet dies; its pods and its Node object stay.
    pub(crate) fn kill_node(&self, name: &str) {
        self.alive.lock().remove(name);
    }

    pub(crate) async fn revive_node(&self, name: &str) {
        report_ready(&self.client, name).await.expect("reports");
        self.alive.lock().insert(name.to_owned());
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::default_namespaced(self.client.clone())
    }

    pub(crate) fn api_in<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn all<K>(&self) -> Api<K>
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Serialize
            + Debug,
    {
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("default")
            .to_owned();
        let object: K = serde_json::from_value(object).expect("an object");
        self.api_in::<K>(&namespace)
            .create(&PostParams::default(), &object)
            .await
            .expect("creates")
    }

    pub(crate) async fn patch<K>(&self, name: &str, patch: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        self.api::<K>()
            .patch(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .expect("patches")
    }

    /// Pods of the default namespace with this label `app`.
    pub(crate) async fn pods(&self, app: &str) -> Vec<Pod> {
        let params = kube::api::ListParams::default().labels(&format!("app={app}"));
        self.api::<Pod>().list(&params).await.expect("lists").items
    }
}

/// Asks until `check` is content, and says what it saw last if that never happens.
pub(crate) async fn wait_for<T, Fut>(
    what: &str,
    mut look: impl FnMut() -> Fut,
    check: impl Fn(&T) -> bool,
) -> T
where
    T: Debug,
    Fut: Future<Output = T>,
{
    let end = Instant::now() + DEADLINE;
    loop {
        let seen = look().await;
        if check(&seen) {
            return seen;
        }
        assert!(
            Instant::now() < end,
            "waited for {what}; saw last: {seen:#?}"
        );
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

async fn report_ready(client: &Client, node: &str) -> Result<(), kube::Error> {
    let now = Time(Timestamp::now());
    let patch = json!({ "status": { "conditions": [ { "type": "Ready", "status": "True", "reason": "KubeletReady",
        "lastHeartbeatTime": now, "lastTransitionTime": now } ] } });
    Api::<Node>::all(client.clone())
        .patch_status(node, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .map(drop)
}

async fn renew(client: &Client, node: &str) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": node },
        "spec": { "holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": MicroTime(Timestamp::now()) } });
    match api
        .patch(node, &PatchParams::default(), &Patch::Merge(&lease))
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            let lease: Lease = serde_json::from_value(lease).expect("a lease");
            api.create(&PostParams::default(), &lease).await.map(drop)
        }
        Err(error) => Err(error),
    }
}

async fn kubelet(client: Client, alive: Arc<Mutex<HashSet<String>>>, stop: CancellationToken) {
    static ADDRESSES: AtomicU32 = AtomicU32::new(1);
    let pods = Informers::new(client.clone(), stop.clone()).of::<Pod>();
    pods.synced().await;
    let mut renewed = Instant::now() - Duration::from_secs(60);
    while !stop.is_cancelled() {
        let nodes = alive.lock().clone();
        if renewed.elapsed() > GRACE / 5 {
            renewed = Instant::now();
            for node in &nodes {
                if let Err(error) = renew(&client, node).await {
                    tracing::warn!(%error, node, "cannot renew");
                }
            }
        }
        for pod in pods.all() {
            let node = pod
                .spec
                .as_ref()
                .and_then(|spec| spec.node_name.clone())
                .unwrap_or_default();
            if !nodes.contains(&node) {
                continue;
            }
            let api: Api<Pod> = Api::namespaced(
                client.clone(),
                pod.metadata.namespace.as_deref().unwrap_or_default(),
            );
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref())
                .unwrap_or_default();
            if pod.metadata.deletion_timestamp.is_some() {
                let _ = api
                    .delete(name, &DeleteParams::default().grace_period(0))
                    .await;
                continue;
            }
            if !matches!(phase, "Pending" | "") {
                continue;
            }
            let annotations = pod.metadata.annotations.clone().unwrap_or_default();
            let now = Time(Timestamp::now());
            let number = ADDRESSES.fetch_add(1, Ordering::Relaxed);
            let ip = format!("10.244.{}.{}", number / 250, number % 250 + 1);
            // What the test wants the container to do: nothing (run), or exit with a code.
            let exit = annotations
                .get("test/exit")
                .and_then(|code| code.parse::<i32>().ok());
            let never_ready = annotations.contains_key("test/never-ready");
            let (phase, ready) = match exit {
                Some(0) => ("Succeeded", "False"),
                Some(_) => ("Failed", "False"),
                None => ("Running", if never_ready { "False" } else { "True" }),
            };
            let container = pod
                .spec
                .as_ref()
                .map(|spec| spec.containers[0].name.clone());
            let state = match exit {
                Some(code) => {
                    json!({ "terminated": { "exitCode": code, "startedAt": now, "finishedAt": now } })
                }
                None => json!({ "running": { "startedAt": now } }),
            };
            let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": {
                "phase": phase, "podIP": ip, "podIPs": [ { "ip": ip } ], "startTime": now,
                "conditions": [ { "type": "Ready", "status": ready, "lastTransitionTime": now } ],
                "containerStatuses": [ { "name": container, "ready": ready == "True", "restartCount": 0,
                    "image": "", "imageID": "", "state": state } ] } });
            if let Err(error) = api
                .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                tracing::debug!(%error, name, "cannot report");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
