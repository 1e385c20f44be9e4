//! NetworkPolicy of the pods of this node: informers → plan (pure) → the datapath's tables.
//!
//! Changes are gathered for a moment and planned as a whole: a rolling update changes many pods
//! at once. A pod of this node is judged from its attachment on, before its containers start; its
//! address reaches the other nodes with its status, and until then it is a stranger there.

pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use skep_client::{Informer, Informers};
use skep_datapath::Datapath;
use skep_datapath::policy::PolicyState;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::network::Pods;
use plan::{LocalPods, Numbers, plan_policy};

/// Changes within this time are planned together.
const GATHER: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(2);

/// Keeps policy what the API says until `stop`. Namespaces and pods of the whole cluster are watched
/// only once there is a policy.
pub async fn run(
    informers: Informers,
    datapath: Arc<Datapath>,
    node_name: String,
    pods: Arc<Pods>,
    stop: CancellationToken,
) {
    let changed = pods.attached();
    let policies = informers.of::<NetworkPolicy>();
    let wake = changed.clone();
    policies.on_change(move |_| wake.notify_one());
    // A predecessor's policy stays until everything is known.
    tokio::select! {
        () = policies.synced() => {}
        () = stop.cancelled() => return,
    }
    let mut numbers = Numbers::default();
    let mut others: Option<(Informer<Namespace>, Informer<Pod>)> = None;
    loop {
        let state = if policies.is_empty() {
            PolicyState::default()
        } else {
            let (namespaces, all_pods) =
                others.get_or_insert_with(|| watch_peers(&informers, &changed));
            tokio::select! {
                () = async { tokio::join!(namespaces.synced(), all_pods.synced()); } => {}
                () = stop.cancelled() => return,
            }
            let attached = pods.addresses().await;
            plan_policy(
                &policies.all(),
                &namespaces.all(),
                &all_pods.all(),
                &LocalPods {
                    node_name: &node_name,
                    attached: &attached,
                },
                &mut numbers,
            )
        };
        let failed = match datapath.set_policy(&state) {
            Ok(changed) => {
                debug!(
                    changed,
                    rules = state.rules.len(),
                    pods = state.pods.len(),
                    "policy"
                );
                false
            }
            Err(error) => {
                warn!(%error, "policy is not up to date");
                true
            }
        };
        tokio::select! {
            () = changed.notified() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
            () = stop.cancelled() => return,
        }
        tokio::time::sleep(GATHER).await;
    }
}

fn watch_peers(
    informers: &Informers,
    changed: &Arc<Notify>,
) -> (Informer<Namespace>, Informer<Pod>) {
    let namespaces = informers.of::<Namespace>();
    let wake = changed.clone();
    namespaces.on_change(move |_| wake.notify_one());
    let pods = informers.of::<Pod>();
    let wake = changed.clone();
    pods.on_change(move |_| wake.notify_one());
    (namespaces, pods)
}
