//! This node's object in the API: registration, status and Lease.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeFeatures, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
    ObjectReference,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use skep_api::validation::resources::is_extended;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::events::Recorder;
use super::eviction::plan::Pressure;
use super::{Config, Context, reserved, shutdown};
use crate::runtime::{Image, Runtime, RuntimeError};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
const HEARTBEAT: Duration = Duration::from_secs(10);
/// An unchanged status is written again after this time.
const REPORT: Duration = Duration::from_secs(300);
const MAX_IMAGES: usize = 50;
/// A runtime that is silent for less than this leaves the node ready: its containers go on, and a
/// node that says otherwise loses the endpoints of all its pods. Kubelet's
/// `maxWaitForContainerRuntime`.
const RUNTIME_SILENCE: Duration = Duration::from_secs(30);
/// A slow runtime must not hold up the Lease.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(5);
/// What the kubelet says of the version it speaks for.
const VERSION: &str = "v1.36.0";

pub fn reference(name: &str) -> ObjectReference {
    // Events about nodes are kept under the node's name as uid.
    ObjectReference {
        kind: Some("Node".into()),
        name: Some(name.into()),
        uid: Some(name.into()),
        ..Default::default()
    }
}

/// What a machine has, in the API's words.
pub fn capacity(config: &Config) -> BTreeMap<String, Quantity> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let disk = nix::sys::statvfs::statvfs(&config.state_dir)
        .map(|s| s.blocks() * s.fragment_size())
        .unwrap_or(0);
    let mut capacity = BTreeMap::from([
        ("cpu".into(), Quantity(cpus.to_string())),
        ("memory".into(), Quantity(format!("{}Ki", memory_kib()))),
        (
            "ephemeral-storage".into(),
            Quantity(format!("{}Ki", disk / 1024)),
        ),
        ("pods".into(), Quantity(config.max_pods.to_string())),
    ]);
    for size in ["2Mi", "1Gi"] {
        let kib = if size == "2Mi" { 2048 } else { 1_048_576 };
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages");
        if let Ok(count) = std::fs::read_to_string(path) {
            let pages: u64 = count.trim().parse().unwrap_or(0);
            let amount = if pages == 0 {
                "0".into()
            } else {
                format!("{}Ki", pages * kib)
            };
            capacity.insert(format!("hugepages-{size}"), Quantity(amount));
        }
    }
    capacity
}

pub fn memory_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

fn file(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_string())
        .unwrap_or_default()
}

fn os_image() -> String {
    file("/etc/os-release")
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_string())
        .unwrap_or_else(|| "Linux".into())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn labels(config: &Config) -> BTreeMap<String, String> {
    let pairs = [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ];
    pairs
        .into_iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect()
}

/// What the runtime said last, and how long ago that was.
#[derive(Default)]
struct RuntimeView {
    version: String,
    images: Vec<ContainerImage>,
    answered_at: Option<tokio::time::Instant>,
}

impl RuntimeView {
    async fn look(&mut self, runtime: &dyn Runtime) {
        let answer = tokio::time::timeout(RUNTIME_PATIENCE, async {
            let version = runtime.version().await?;
            Ok::<_, RuntimeError>((version, images(runtime).await?))
        });
        match answer.await {
            Ok(Ok((version, images))) => {
                self.version = version.version;
                self.images = images;
                self.answered_at = Some(tokio::time::Instant::now());
            }
            Ok(Err(e)) => warn!(error = %e, "the container runtime does not answer"),
            Err(_) => warn!("the container runtime is slow to answer"),
        }
    }

    fn is_up(&self, now: tokio::time::Instant) -> bool {
        self.answered_at
            .is_some_and(|at| now.duration_since(at) < RUNTIME_SILENCE)
    }
}

fn conditions(
    old: &[NodeCondition],
    trouble: Option<&str>,
    pressure: &BTreeSet<Pressure>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let ready = match trouble {
        None => (
            "True",
            "KubeletReady",
            "kubelet is posting ready status".to_string(),
        ),
        Some(why) => ("False", "KubeletNotReady", why.to_string()),
    };
    let level = |kind: Pressure| match (kind, pressure.contains(&kind)) {
        (Pressure::Memory, true) => (
            "MemoryPressure",
            "True",
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available".to_string(),
        ),
        (Pressure::Memory, false) => (
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available".to_string(),
        ),
        (Pressure::Disk, true) => (
            "DiskPressure",
            "True",
            "KubeletHasDiskPressure",
            "kubelet has disk pressure".to_string(),
        ),
        (Pressure::Disk, false) => (
            "DiskPressure",
            "False",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure".to_string(),
        ),
        (Pressure::Pid, true) => (
            "PIDPressure",
            "True",
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available".to_string(),
        ),
        (Pressure::Pid, false) => (
            "PIDPressure",
            "False",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available".to_string(),
        ),
    };
    let wanted = [
        level(Pressure::Memory),
        level(Pressure::Disk),
        level(Pressure::Pid),
        ("Ready", ready.0, ready.1, ready.2),
    ];
    wanted
        .into_iter()
        .map(|(kind, status, reason, message)| {
            let since = old
                .iter()
                .find(|c| c.type_ == kind && c.status == status)
                .and_then(|c| c.last_transition_time.clone());
            NodeCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: since.or(Some(Time(now))),
            }
        })
        .collect()
}

async fn status(
    ctx: &Context,
    runtime: &mut RuntimeView,
    old: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let config = &ctx.config;
    runtime.look(&*ctx.runtime).await;
    let capacity = capacity(config);
    let allocatable = reserved::allocatable(&capacity, &ctx.reserved, &ctx.thresholds);
    ctx.allocatable.write().clone_from(&allocatable);
    let trouble = match (
        ctx.shutdown.has_begun(),
        runtime.is_up(tokio::time::Instant::now()),
    ) {
        (true, _) => Some(shutdown::NOT_READY),
        (false, false) => Some("container runtime is down"),
        (false, true) => None,
    };
    let old_conditions = old.and_then(|o| o.conditions.clone()).unwrap_or_default();
    let mut addresses: Vec<NodeAddress> = ctx
        .host_ips
        .iter()
        .map(|ip: &IpAddr| NodeAddress {
            type_: "InternalIP".into(),
            address: ip.to_string(),
        })
        .collect();
    addresses.push(NodeAddress {
        type_: "Hostname".into(),
        address: config.node_name.clone(),
    });
    let machine = file("/etc/machine-id");
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(
            &old_conditions,
            trouble,
            &ctx.evictions.pressure(),
            now,
        )),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(config.port),
            }),
        }),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().into(),
            boot_id: file("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: runtime.version.clone(),
            kernel_version: file("/proc/sys/kernel/osrelease"),
            kubelet_version: VERSION.into(),
            machine_id: machine.clone(),
            operating_system: "linux".into(),
            os_image: os_image(),
            system_uuid: match file("/sys/class/dmi/id/product_uuid") {
                uuid if uuid.is_empty() => machine,
                uuid => uuid,
            },
            ..Default::default()
        }),
        images: Some(runtime.images.clone()),
        // A hollow node confines nothing.
        features: ctx.volumes.as_ref().map(|_| NodeFeatures {
            supplemental_groups_policy: Some(true),
        }),
        runtime_handlers: ctx.volumes.as_ref().map(|_| vec![default_handler()]),
        ..Default::default()
    }
}

/// What the one runtime that there is can do. The default handler has no name.
fn default_handler() -> NodeRuntimeHandler {
    NodeRuntimeHandler {
        name: Some(String::new()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(true),
            user_namespaces: Some(false),
        }),
    }
}

async fn images(runtime: &dyn Runtime) -> Result<Vec<ContainerImage>, RuntimeError> {
    let mut all = runtime.images().await?;
    all.retain(|i| !i.digests.is_empty() || !i.tags.is_empty());
    all.sort_by_key(|i| std::cmp::Reverse(i.size_bytes));
    all.truncate(MAX_IMAGES);
    // Otherwise the few that are kept take the room of all.
    all.shrink_to_fit();
    let names = |i: Image| i.digests.into_iter().chain(i.tags).take(5).collect();
    let listed = all.into_iter().map(|i| ContainerImage {
        size_bytes: Some(i.size_bytes),
        names: Some(names(i)),
    });
    Ok(listed.collect())
}

/// Two statuses that differ in heartbeats only.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let bare = |s: &NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
        }
        s
    };
    bare(a) == bare(b)
}

/// Registers the node and keeps its status and Lease fresh until `stop`.
pub async fn run(ctx: Arc<Context>, stop: CancellationToken) {
    let mut registered = false;
    let mut written: Option<(NodeStatus, tokio::time::Instant)> = None;
    let mut runtime = RuntimeView::default();
    let mut tick = tokio::time::interval(HEARTBEAT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut wait = Duration::from_millis(200);
    loop {
        let outcome = heartbeat(&ctx, &mut runtime, &mut registered, &mut written).await;
        if let Err(e) = &outcome {
            warn!(node = ctx.config.node_name, error = %e, "cannot report the node; will retry");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = ctx.evictions.pressure_changed.notified() => {}
            () = ctx.shutdown.changed.notified() => {}
            _ = tick.tick(), if outcome.is_ok() => wait = Duration::from_millis(200),
            () = tokio::time::sleep(wait), if outcome.is_err() => {
                wait = (wait * 2).min(HEARTBEAT);
            }
        }
    }
}

async fn heartbeat(
    ctx: &Context,
    runtime: &mut RuntimeView,
    registered: &mut bool,
    written: &mut Option<(NodeStatus, tokio::time::Instant)>,
) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(ctx.client.clone());
    let name = &ctx.config.node_name;
    let now = Timestamp::now();
    if !*registered {
        let node = register(ctx, runtime, &api).await?;
        *written = None;
        *registered = true;
        info!(
            node = name,
            uid = node.uid().unwrap_or_default(),
            "registered the node"
        );
    }
    let mut fresh = status(ctx, runtime, written.as_ref().map(|(s, _)| s), now).await;
    let theirs = ctx.node.watched();
    if let (Some(allocatable), Some(theirs)) = (&mut fresh.allocatable, &theirs) {
        allocatable.extend(added(theirs));
    }
    let due = match written {
        Some((before, at)) => !same(before, &fresh) || at.elapsed() >= REPORT,
        None => true,
    };
    if due {
        let patch = status_patch(&fresh, theirs.as_deref());
        match api
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch))
            .await
        {
            Ok(_) => {
                *written = Some((fresh, tokio::time::Instant::now()));
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                // Somebody deleted the object of a node that lives.
                *registered = false;
                return Err(kube::Error::Api(status));
            }
            Err(e) => return Err(e),
        }
    }
    if !renew(ctx.client.clone(), name).await? {
        // The lease goes with its node: make sure that the node is there too.
        *registered = false;
    }
    Ok(())
}

async fn register(
    ctx: &Context,
    runtime: &mut RuntimeView,
    api: &Api<Node>,
) -> Result<Node, kube::Error> {
    let config = &ctx.config;
    let status = status(ctx, runtime, None, Timestamp::now()).await;
    let node = Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config)),
            ..Default::default()
        },
        status: Some(status),
        ..Default::default()
    };
    let events: &Recorder = &ctx.recorder;
    events.normal(
        &reference(&config.node_name),
        "Starting",
        "Starting kubelet.",
    );
    match api.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = serde_json::json!({"metadata": {"labels": labels(config)}});
            api.patch(
                &config.node_name,
                &PatchParams::default(),
                &Patch::Strategic(&patch),
            )
            .await
        }
        other => other,
    }
}

/// Extended resources that others have given the node: all of one can be had.
fn added(node: &Node) -> BTreeMap<String, Quantity> {
    let status = node.status.as_ref();
    let capacity = status.and_then(|s| s.capacity.as_ref());
    let all = capacity.into_iter().flatten();
    all.filter(|(name, _)| is_extended(name))
        .map(|(name, amount)| (name.clone(), amount.clone()))
        .collect()
}

/// Addresses are merged by their type, and two may have the same: the list is replaced as a whole. Extended resources that
/// the node, as others see it, does not have any more are taken out.
fn status_patch(status: &NodeStatus, theirs: Option<&Node>) -> serde_json::Value {
    let mut patch = serde_json::json!({"status": status});
    if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
        addresses.push(serde_json::json!({"$patch": "replace"}));
    }
    let shown = theirs.and_then(|node| node.status.as_ref()?.allocatable.as_ref());
    for name in shown.into_iter().flatten().map(|(name, _)| name) {
        let gone = is_extended(name) && patch["status"]["allocatable"][name].is_null();
        if gone {
            patch["status"]["allocatable"][name] = serde_json::Value::Null;
        }
    }
    patch
}

/// False when there was no lease to renew.
async fn renew(client: Client, node: &str) -> Result<bool, kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
    let now = MicroTime(Timestamp::now());
    let patch = serde_json::json!({"spec": {
        "holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now,
    }});
    match api
        .patch(node, &PatchParams::default(), &Patch::Merge(&patch))
        .await
    {
        Ok(_) => return Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(e) => return Err(e),
    }
    let owner = Api::<Node>::all(client).get(node).await.ok().and_then(|n| {
        Some(OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: node.into(),
            uid: n.uid()?,
            ..Default::default()
        })
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node.into()),
            namespace: Some(LEASE_NAMESPACE.into()),
            owner_references: owner.map(|o| vec![o]),
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.into()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    match api.create(&PostParams::default(), &lease).await {
        // Another heartbeat was quicker.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(true),
        other => other.map(|_| {
            debug!(node, "made the node's lease");
            false
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::hollow::HollowRuntime;

    #[test]
    fn pressure_is_told_once_and_dated() {
        let (first, later) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(60).unwrap());
        let pressure = BTreeSet::from([Pressure::Disk]);
        let before = conditions(&[], None, &pressure, first);
        let shown = |all: &[NodeCondition], kind: &str| {
            let found = all.iter().find(|c| c.type_ == kind).unwrap();
            let since = found.last_transition_time.as_ref().unwrap().0;
            (found.status.clone(), found.reason.clone().unwrap(), since)
        };
        let disk = ("True".into(), "KubeletHasDiskPressure".into(), first);
        assert_eq!(shown(&before, "DiskPressure"), disk);
        let memory = ("False".into(), "KubeletHasSufficientMemory".into(), first);
        assert_eq!(shown(&before, "MemoryPressure"), memory);
        let same = conditions(&before, None, &pressure, later);
        assert_eq!(shown(&same, "DiskPressure"), disk);
        let over = conditions(&before, None, &BTreeSet::new(), later);
        let fine = ("False".into(), "KubeletHasNoDiskPressure".into(), later);
        assert_eq!(shown(&over, "DiskPressure"), fine);
    }

    #[test]
    fn what_others_give_the_node_can_be_had() {
        let node = |capacity: &str| -> Node {
            let status = serde_json::json!({"capacity": serde_json::from_str::<serde_json::Value>(capacity).unwrap(),
                "allocatable": {"cpu": "2", "example.com/dongle": "3"}});
            serde_json::from_value(serde_json::json!({"metadata": {}, "status": status})).unwrap()
        };
        let patch = |theirs: &Node| {
            let mut allocatable = BTreeMap::from([("cpu".to_owned(), Quantity("2".into()))]);
            allocatable.extend(added(theirs));
            let status = NodeStatus {
                allocatable: Some(allocatable),
                ..Default::default()
            };
            status_patch(&status, Some(theirs))["status"]["allocatable"].to_string()
        };
        let given = node(r#"{"cpu": "4", "example.com/dongle": "5"}"#);
        assert_eq!(patch(&given), r#"{"cpu":"2","example.com/dongle":"5"}"#);
        let taken = node(r#"{"cpu": "4"}"#);
        assert_eq!(patch(&taken), r#"{"cpu":"2","example.com/dongle":null}"#);
    }

    #[tokio::test]
    async fn a_node_outlives_a_short_silence_of_its_runtime() {
        let mut view = RuntimeView::default();
        let now = tokio::time::Instant::now();
        assert!(!view.is_up(now), "nothing is known of it yet");
        view.look(&HollowRuntime::new()).await;
        let ready = |silence: Duration| {
            let up = view.answered_at.is_some_and(|at| view.is_up(at + silence));
            let trouble = (!up).then_some("container runtime is down");
            let all = conditions(&[], trouble, &BTreeSet::new(), Timestamp::UNIX_EPOCH);
            let ready = all.into_iter().find(|c| c.type_ == "Ready").unwrap();
            (ready.status, ready.message.unwrap_or_default())
        };
        assert_eq!(ready(RUNTIME_SILENCE - Duration::from_secs(1)).0, "True");
        assert_eq!(
            ready(RUNTIME_SILENCE),
            ("False".into(), "container runtime is down".into())
        );
    }
}
