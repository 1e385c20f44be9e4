//! Keeps the cluster as its objects say: one file (or folder) a controller over one small runtime.
//!
//! Every controller is the same four steps: observe (informers) → plan (a pure function) → execute → report (status).
//! None knows the store, the API server's internals or another controller; they meet in the API's objects only.
//!
//! Read [`context`] for the runtime, then `replica_set` as the example of a controller.
#![forbid(unsafe_code)]

pub mod bootstrap_token;
pub mod certificates;
pub mod cluster_role;
pub mod context;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod garbage;
pub mod horizontal;
pub mod job;
pub mod load_balancer;
pub mod mirroring;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod owners;
pub mod persistent_volume;
pub mod pod_gc;
pub mod pod_writes;
pub mod pods;
pub mod replica_set;
pub mod resource_quota;
pub mod revisions;
pub mod service_account;
pub mod service_cidr;
pub mod stateful_set;
pub mod taint_eviction;
pub mod validating_policy;
pub mod volume_attributes_class;

use std::sync::Arc;

use skep_client::Election;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use context::{Authority, Config, Context, Error};

/// Runs every controller whenever this process holds the Lease `kube-controller-manager`, until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) {
    let election = Election::new(
        config.informers.client().clone(),
        "kube-controller-manager",
        &config.identity,
    );
    let config = Arc::new(config);
    election
        .run(&shutdown, |term| lead(config.clone(), term))
        .await;
}

/// Runs every controller until `term` ends, without an election. For tests, and for [`run`].
pub async fn lead(config: Arc<Config>, term: CancellationToken) {
    let context = Context::new(config, term.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(replica_set::run_replica_sets(context.clone()));
    tasks.spawn(replica_set::run_replication_controllers(context.clone()));
    tasks.spawn(deployment::run(context.clone()));
    tasks.spawn(daemon_set::run(context.clone()));
    tasks.spawn(stateful_set::run(context.clone()));
    tasks.spawn(job::run(context.clone()));
    tasks.spawn(cron_job::run(context.clone()));
    tasks.spawn(disruption::run(context.clone()));
    tasks.spawn(endpoints::run(context.clone()));
    tasks.spawn(load_balancer::run(context.clone()));
    tasks.spawn(namespace::run(context.clone()));
    tasks.spawn(garbage::run(context.clone()));
    tasks.spawn(horizontal::run(context.clone()));
    tasks.spawn(node_lifecycle::run(context.clone()));
    tasks.spawn(taint_eviction::run(context.clone()));
    tasks.spawn(node_ipam::run(context.clone()));
    tasks.spawn(pod_gc::run(context.clone()));
    tasks.spawn(service_account::run(context.clone()));
    tasks.spawn(service_cidr::run(context.clone()));
    tasks.spawn(persistent_volume::run(context.clone()));
    tasks.spawn(volume_attributes_class::run(context.clone()));
    tasks.spawn(resource_quota::run(context.clone()));
    tasks.spawn(cluster_role::run(context.clone()));
    tasks.spawn(mirroring::run(context.clone()));
    tasks.spawn(certificates::run(context.clone()));
    tasks.spawn(bootstrap_token::run(context.clone()));
    tasks.spawn(validating_policy::run(context.clone()));
    while let Some(outcome) = tasks.join_next().await {
        if let Err(error) = outcome
            && !term.is_cancelled()
        {
            // Half a control plane is worse than none: give up the term, so that all start again together.
            tracing::error!(%error, "a controller died");
            term.cancel();
        }
    }
}
