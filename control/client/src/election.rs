//! Leader election by a Lease (coordination.k8s.io/v1), so that several control planes run one set of controllers.
//!
//! # Guarantees
//! A leader stops (its token is cancelled) at the latest `renew_deadline` after the start of its last successful renewal,
//! measured on its own monotonic clock; another takes over at the earliest `lease_duration` after it first observed that
//! renewal, measured on its clock. With `renew_deadline < lease_duration` the two never overlap, whatever wall clocks say.
//!
//! # Caveats
//! `identity` should survive a restart of the same control plane: it then resumes its own Lease at once. It must never be
//! shared by two running ones.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use tokio_util::sync::CancellationToken;

use crate::backoff::jitter;

#[derive(Clone)]
pub struct Election {
    pub client: Client,
    pub namespace: String,
    pub name: String,
    pub identity: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

/// The record as last seen to change, and when, on our clock.
struct Observed {
    holder: String,
    resource_version: String,
    at: Instant,
}

impl Election {
    /// Upstream's timing: 15 s lease, 10 s renew deadline, 2 s retry, in `kube-system`.
    pub fn new(client: Client, name: &str, identity: &str) -> Self {
        Self {
            client,
            namespace: "kube-system".into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }

    /// Runs `lead` whenever this process leads, until `stop`. The token given to `lead` is cancelled when leadership ends;
    /// `lead` must return then. The Lease is released on the way out.
    pub async fn run<F, Fut>(&self, stop: &CancellationToken, lead: F)
    where
        F: Fn(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        while !stop.is_cancelled() {
            let Some(renewed) = self.acquire(stop).await else {
                return;
            };
            tracing::info!(lease = %self.name, identity = %self.identity, "leading");
            let term = stop.child_token();
            let leading = lead(term.clone());
            let renewing = async {
                self.hold(renewed, &term).await;
                term.cancel();
            };
            tokio::join!(leading, renewing);
            self.release().await;
            if !stop.is_cancelled() {
                tracing::warn!(lease = %self.name, identity = %self.identity, "leadership lost");
            }
        }
    }

    /// When the Lease was taken, or `None` on stop.
    async fn acquire(&self, stop: &CancellationToken) -> Option<Instant> {
        let mut observed = None;
        let mut complained = false;
        loop {
            let started = Instant::now();
            match self.try_acquire(&mut observed).await {
                Ok(true) => return Some(started),
                Ok(false) => {}
                Err(error) => {
                    if complained {
                        tracing::debug!(lease = %self.name, %error, "cannot read or write the lease");
                    } else {
                        tracing::info!(lease = %self.name, %error, "cannot take the lease yet, retrying");
                        complained = true;
                    }
                }
            }
            // A failure right after the start is usually an API server that is not ready yet: ask soon.
            let wait = if observed.is_none() {
                self.retry_period / 8
            } else {
                self.retry_period
            };
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(jitter(wait)) => {}
            }
        }
    }

    /// Renews until the deadline passes without success, somebody else holds the Lease, or the term ends.
    async fn hold(&self, mut renewed: Instant, term: &CancellationToken) {
        loop {
            tokio::select! {
                () = term.cancelled() => return,
                () = tokio::time::sleep(jitter(self.retry_period)) => {}
            }
            let started = Instant::now();
            let deadline = renewed + self.renew_deadline;
            let mut observed = None;
            tokio::select! {
                () = term.cancelled() => return,
                () = tokio::time::sleep_until(deadline.into()) => return,
                outcome = self.try_acquire(&mut observed) => match outcome {
                    Ok(true) => renewed = started,
                    Ok(false) => return,
                    Err(error) => tracing::warn!(lease = %self.name, %error, "cannot renew the lease, will retry"),
                },
            }
        }
    }

    /// One attempt to create, take over or renew. `Ok(false)`: held by another, whose time is not over.
    async fn try_acquire(&self, observed: &mut Option<Observed>) -> Result<bool, kube::Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    namespace: Some(self.namespace.clone()),
                    ..Default::default()
                },
                spec: Some(self.spec(now.clone(), now, 0)),
            };
            return match api.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(true),
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
                Err(error) => Err(error),
            };
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let resource_version = lease.metadata.resource_version.clone().unwrap_or_default();
        let seen = match observed {
            Some(seen) if seen.resource_version == resource_version && seen.holder == holder => {
                seen.at
            }
            _ => {
                let at = Instant::now();
                *observed = Some(Observed {
                    holder: holder.clone(),
                    resource_version,
                    at,
                });
                at
            }
        };
        let term = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.lease_duration, Duration::from_secs);
        let free = holder.is_empty() || holder == self.identity || seen.elapsed() >= term;
        if !free {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or_default();
        lease.spec = Some(if holder == self.identity {
            self.spec(
                spec.acquire_time.unwrap_or_else(|| now.clone()),
                now,
                transitions,
            )
        } else {
            self.spec(now.clone(), now, transitions.saturating_add(1))
        });
        // The resourceVersion in `lease` makes this a compare-and-swap.
        match api
            .replace(&self.name, &PostParams::default(), &lease)
            .await
        {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                if holder == self.identity {
                    // Our own record changed under us: look again before giving up the term.
                    Err(kube::Error::Api(status))
                } else {
                    Ok(false)
                }
            }
            Err(error) => Err(error),
        }
    }

    fn spec(&self, acquired: MicroTime, renewed: MicroTime, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.lease_duration.as_secs().max(1)).ok(),
            acquire_time: Some(acquired),
            renew_time: Some(renewed),
            lease_transitions: Some(transitions),
            ..Default::default()
        }
    }

    /// Best effort: without it the next leader waits out the lease.
    async fn release(&self) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let attempt = async {
            let mut lease = api.get(&self.name).await?;
            let Some(spec) = &mut lease.spec else {
                return Ok(());
            };
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            api.replace(&self.name, &PostParams::default(), &lease)
                .await
                .map(drop)
        };
        match tokio::time::timeout(Duration::from_secs(1), attempt).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(lease = %self.name, %error, "lease not released"),
            Err(_) => tracing::debug!(lease = %self.name, "lease not released in time"),
        }
    }
}
