//! Makes further ranges of Service addresses usable, and keeps them while addresses of theirs are in use (KEP-1880).
//!
//! Watches: ServiceCIDR, IPAddress. Writes: ServiceCIDR (finalizer, status). The API server gives out addresses of those
//! that are Ready and not being deleted.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::api::{Patch, PatchParams};
use serde_json::json;
use skep_client::{Action, Informer, ObjectKey, Queue, writes};

use crate::{
    context::{Context, Doing, Error},
    pods,
};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Time for every API server to learn that a range gives out nothing more.
const DELETION_GRACE: Duration = Duration::from_secs(10);

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        ranges: context.informers.of(),
        addresses: context.informers.of(),
        context: context.clone(),
    });
    let queue = Queue::new();
    // A range may wait for another to cover its addresses, or for an address to go.
    let ranges = controller.ranges.clone();
    let all = move || -> Vec<ObjectKey> {
        let ranges = ranges.all();
        ranges
            .iter()
            .map(|one| ObjectKey::of(&one.metadata))
            .collect()
    };
    let leaving = controller.ranges.clone();
    context.feed(&controller.ranges, &queue, move |change| {
        let mut keys = all();
        keys.push(ObjectKey::of(&change.object().metadata));
        keys
    });
    context.feed(&controller.addresses, &queue, move |_| {
        let ranges = leaving.all();
        let leaving = ranges
            .iter()
            .filter(|one| one.metadata.deletion_timestamp.is_some());
        leaving.map(|one| ObjectKey::of(&one.metadata)).collect()
    });
    let ready = {
        let controller = controller.clone();
        async move {
            controller.ranges.synced().await;
            controller.addresses.synced().await;
        }
    };
    context
        .run("service-cidr", queue, 1, ready, move |key| {
            let controller = controller.clone();
            async move { controller.reconcile(key).await }
        })
        .await;
}

struct Controller {
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    context: Arc<Context>,
}

/// What one range needs.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// A finalizer (if it lacks one) and the Ready condition.
    Serve {
        hold: bool,
    },
    /// Still in use.
    Wait,
    Release {
        after: Duration,
    },
    Settled,
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(range) = self.ranges.get(&key) else {
            return Ok(Action::done());
        };
        let all = self.ranges.all();
        let addresses = self.addresses.all();
        let used = addresses.iter().filter_map(|one| {
            let name = one.metadata.name.as_deref()?;
            name.parse::<IpAddr>().ok()
        });
        let others = all
            .iter()
            .map(AsRef::as_ref)
            .filter(|one| one.metadata.name != range.metadata.name);
        let api = self.context.cluster_api::<ServiceCIDR>();
        let version = &range.metadata.resource_version;
        let finalizers = range.metadata.finalizers.clone().unwrap_or_default();
        match plan(&range, others, used, self.context.now()) {
            Plan::Settled => {}
            Plan::Serve { hold } => {
                if hold {
                    let mut finalizers = finalizers;
                    finalizers.push(FINALIZER.to_owned());
                    let patch =
                        json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
                    api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                        .await
                        .doing("hold a range of Service addresses")?;
                }
                let condition = self.condition("True", "", "Kubernetes Service CIDR is ready");
                self.write_condition(&key, &range, condition).await?;
            }
            Plan::Wait => {
                let condition = self.condition(
                    "False",
                    "Terminating",
                    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
                );
                self.write_condition(&key, &range, condition).await?;
            }
            Plan::Release { after } if !after.is_zero() => return Ok(Action::requeue(after)),
            Plan::Release { .. } => {
                let mut finalizers = finalizers;
                finalizers.retain(|one| one != FINALIZER);
                let patch =
                    json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
                let released = api
                    .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                    .await;
                match released {
                    Err(error) if !writes::is_not_found(&error) => {
                        return Err(error).doing("release a range of Service addresses");
                    }
                    _ => tracing::info!(kind = "ServiceCIDR", name = %key.name, "released"),
                }
            }
        }
        Ok(Action::done())
    }

    fn condition(&self, status: &str, reason: &str, message: &str) -> serde_json::Value {
        json!({
            "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": self.context.now().to_string(),
        })
    }

    async fn write_condition(
        &self,
        key: &ObjectKey,
        range: &ServiceCIDR,
        condition: serde_json::Value,
    ) -> Result<(), Error> {
        if ready(range) == condition["status"].as_str() {
            return Ok(());
        }
        let api = self.context.cluster_api::<ServiceCIDR>();
        writes::patch_status(&api, &key.name, json!({"conditions": [condition]}))
            .await
            .doing("tell whether a range of Service addresses is ready")?;
        Ok(())
    }
}

/// The status of the Ready condition.
fn ready(range: &ServiceCIDR) -> Option<&str> {
    let conditions = range.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|one| one.type_ == "Ready")?;
    Some(ready.status.as_str())
}

fn nets(range: &ServiceCIDR) -> Vec<IpNet> {
    let cidrs = range.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
    let cidrs = cidrs.into_iter().flatten();
    cidrs.filter_map(|text| text.parse().ok()).collect()
}

fn plan<'a>(
    range: &ServiceCIDR,
    others: impl Iterator<Item = &'a ServiceCIDR>,
    mut used: impl Iterator<Item = IpAddr>,
    now: Timestamp,
) -> Plan {
    let finalizers = range.metadata.finalizers.as_deref().unwrap_or_default();
    let held = finalizers.iter().any(|one| one == FINALIZER);
    let Some(deleted) = &range.metadata.deletion_timestamp else {
        return match ready(range) {
            Some("True") if held => Plan::Settled,
            _ => Plan::Serve { hold: !held },
        };
    };
    if !held {
        return Plan::Settled;
    }
    let own = nets(range);
    let covering: Vec<IpNet> = others
        .filter(|one| one.metadata.deletion_timestamp.is_none())
        .flat_map(nets)
        .collect();
    let contains = |nets: &[IpNet], ip: &IpAddr| nets.iter().any(|net| net.contains(ip));
    if used.any(|ip| contains(&own, &ip) && !contains(&covering, &ip)) {
        return Plan::Wait;
    }
    let end = deleted.0 + jiff::SignedDuration::try_from(DELETION_GRACE).unwrap_or_default();
    Plan::Release {
        after: pods::until(now, end),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn range(cidr: &str, metadata: Value, status: Value) -> ServiceCIDR {
        serde_json::from_value(json!({
            "metadata": metadata, "spec": {"cidrs": [cidr]}, "status": status,
        }))
        .expect("a ServiceCIDR")
    }

    #[test]
    fn a_range_serves_until_its_last_address_goes() {
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().expect("a time");
        let ready = json!({"conditions": [{
            "type": "Ready", "status": "True", "reason": "", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]});
        let held = json!({"name": "a", "finalizers": [FINALIZER]});
        let leaving = |at: &str| {
            let mut metadata = held.clone();
            metadata["deletionTimestamp"] = at.into();
            range("10.1.0.0/24", metadata, ready.clone())
        };
        let check = |range: &ServiceCIDR, other: Option<&ServiceCIDR>, used: &str, plan: Plan| {
            let used = std::iter::once(used.parse::<IpAddr>().expect("an address"));
            assert_eq!(super::plan(range, other.into_iter(), used, now), plan);
        };
        let new = range("10.1.0.0/24", json!({"name": "a"}), Value::Null);
        check(&new, None, "10.1.0.5", Plan::Serve { hold: true });
        let kept = range("10.1.0.0/24", held.clone(), ready.clone());
        check(&kept, None, "10.1.0.5", Plan::Settled);
        let old = leaving("2026-01-01T00:00:00Z");
        check(&old, None, "10.1.0.5", Plan::Wait);
        let wider = range("10.1.0.0/16", held.clone(), ready.clone());
        let now_or = |seconds| Plan::Release {
            after: Duration::from_secs(seconds),
        };
        check(&old, Some(&wider), "10.1.0.5", now_or(0));
        check(&old, None, "10.96.0.5", now_or(0));
        check(
            &leaving("2026-01-01T00:00:06Z"),
            None,
            "10.96.0.5",
            now_or(6),
        );
        // What goes as well covers nothing.
        check(
            &old,
            Some(&leaving("2026-01-01T00:00:06Z")),
            "10.1.0.5",
            Plan::Wait,
        );
    }
}
