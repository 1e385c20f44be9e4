//! Gives every LoadBalancer Service an address of the cluster's pool: `status.loadBalancer`.
//!
//! Watches: Service. Writes: Service status. The nodes answer for the addresses that carry the
//! condition [`ADDRESS_FROM_POOL`]; those of a cloud's controller they leave alone. One worker, so
//! that two Services never get the same address; what was written and is not yet in the cache is
//! remembered.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::{
    api::core::v1::{Service, ServiceSpec},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skep_client::{Action, Informer, ObjectKey, Recorder, writes};

use crate::context::{Context, Doing, Error};

/// The condition of a Service whose address this controller has chosen.
const ADDRESS_FROM_POOL: &str = "skep.dev/AddressFromPool";
/// `spec.loadBalancerClass` of Services that ask for the pool by name.
const CLASS: &str = "skep.dev/pool";

pub async fn run(context: Arc<Context>) {
    if context.config.load_balancer_pools.is_empty() {
        return;
    }
    let controller = Arc::new(Controller {
        services: context.informers.of(),
        given: Mutex::default(),
        events: context.events.from("service-controller"),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.services);
    work.run("service-lb", 1, controller, |controller, key| async move {
        controller.reconcile(key).await
    })
    .await;
}

struct Controller {
    services: Informer<Service>,
    /// Addresses written and perhaps not in the cache yet.
    given: Mutex<HashMap<ObjectKey, Vec<IpAddr>>>,
    events: Recorder,
    context: Arc<Context>,
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(service) = self.services.get(&key) else {
            self.given.lock().remove(&key);
            return Ok(Action::done());
        };
        let used: HashSet<IpAddr> = {
            let given = self.given.lock();
            let others = self.services.all();
            let others = others
                .iter()
                .filter(|other| ObjectKey::of(&other.metadata) != key)
                .flat_map(|other| addresses(other));
            let written = given.iter().filter(|(other, _)| **other != key);
            others
                .chain(written.flat_map(|(_, ips)| ips.iter().copied()))
                .collect()
        };
        match plan(&service, &used, &self.context.config.load_balancer_pools) {
            Plan::Settled => {
                self.given.lock().remove(&key);
                Ok(Action::done())
            }
            Plan::Assign(ips) => {
                self.given.lock().insert(key.clone(), ips.clone());
                let ingress: Vec<Value> = ips
                    .iter()
                    .map(|ip| json!({ "ip": ip, "ipMode": "VIP" }))
                    .collect();
                let mut conditions = other_conditions(&service);
                conditions.push(json!({
                    "type": ADDRESS_FROM_POOL, "status": "True", "reason": "Assigned", "message": "",
                    "lastTransitionTime": Time(self.context.now()) }));
                self.write(&service, &key, json!({ "ingress": ingress }), conditions)
                    .await?;
                self.events.normal(
                    service.as_ref(),
                    "EnsuredLoadBalancer",
                    "Ensured load balancer",
                );
                Ok(Action::done())
            }
            Plan::Release => {
                self.given.lock().remove(&key);
                self.write(&service, &key, Value::Null, other_conditions(&service))
                    .await?;
                Ok(Action::done())
            }
            Plan::Impossible(why) => {
                self.events.warning(
                    service.as_ref(),
                    "SyncLoadBalancerFailed",
                    format!("Error syncing load balancer: {why}"),
                );
                // Tried again with a growing pause: an address may become free.
                Err(Error::Invalid(why))
            }
        }
    }

    async fn write(
        &self,
        service: &Service,
        key: &ObjectKey,
        balancer: Value,
        conditions: Vec<Value>,
    ) -> Result<(), Error> {
        // The version guards the list of conditions, which a merge replaces as a whole.
        let patch = json!({
            "metadata": {
                "uid": service.metadata.uid, "resourceVersion": service.metadata.resource_version },
            "status": { "loadBalancer": balancer, "conditions": conditions } });
        let api = self.context.api::<Service>(&key.namespace);
        match api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) => {
                self.given.lock().remove(key);
                if writes::is_not_found(&error) {
                    return Ok(());
                }
                Err(error).doing("write the address of a load balancer")
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Settled,
    Assign(Vec<IpAddr>),
    Release,
    Impossible(String),
}

fn plan(service: &Service, used: &HashSet<IpAddr>, pools: &[IpNet]) -> Plan {
    let empty = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let class = spec.load_balancer_class.as_deref();
    let ours = spec.type_.as_deref() == Some("LoadBalancer")
        && class.is_none_or(|class| class == CLASS)
        && service.metadata.deletion_timestamp.is_none();
    let assigned = is_assigned(service);
    if !ours {
        return if assigned && service.metadata.deletion_timestamp.is_none() {
            Plan::Release
        } else {
            Plan::Settled
        };
    }
    let current = addresses(service);
    if !assigned && !current.is_empty() {
        // Somebody else's.
        return Plan::Settled;
    }
    let in_pool = |ip: &IpAddr| pools.iter().any(|pool| pool.contains(ip));
    let mut chosen = Vec::new();
    for family in families(spec) {
        let fits = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4);
        let wanted = spec
            .load_balancer_ip
            .as_deref()
            .and_then(|ip| ip.parse().ok())
            .filter(fits);
        let kept = current.iter().copied().find(|ip| {
            fits(ip)
                && in_pool(ip)
                && !used.contains(ip)
                && wanted.is_none_or(|wanted| wanted == *ip)
        });
        if let Some(ip) = kept {
            chosen.push(ip);
            continue;
        }
        let found = match wanted {
            Some(ip) if !in_pool(&ip) => Err(format!("{ip} is in none of the address pools")),
            Some(ip) if used.contains(&ip) => Err(format!("{ip} is in use by another Service")),
            Some(ip) => Ok(ip),
            None => pools
                .iter()
                .filter(|pool| fits(&pool.addr()))
                .flat_map(IpNet::hosts)
                .find(|ip| !used.contains(ip))
                .ok_or_else(|| "no address is free in the pools".to_string()),
        };
        match found {
            Ok(ip) => chosen.push(ip),
            // The other family alone is better than nothing.
            Err(_) if !chosen.is_empty() => {}
            Err(why) => return Plan::Impossible(why),
        }
    }
    if assigned && chosen == current {
        Plan::Settled
    } else {
        Plan::Assign(chosen)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

fn families(spec: &ServiceSpec) -> Vec<Family> {
    let named = spec.ip_families.iter().flatten();
    let families: Vec<Family> = named
        .map(|name| {
            if name == "IPv6" {
                Family::V6
            } else {
                Family::V4
            }
        })
        .collect();
    if families.is_empty() {
        vec![Family::V4]
    } else {
        families
    }
}

fn addresses(service: &Service) -> Vec<IpAddr> {
    let balancer = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    balancer
        .and_then(|balancer| balancer.ingress.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect()
}

fn is_assigned(service: &Service) -> bool {
    service
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == ADDRESS_FROM_POOL)
}

fn other_conditions(service: &Service) -> Vec<Value> {
    service
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten()
        .filter(|condition| condition.type_ != ADDRESS_FROM_POOL)
        .map(|condition| json!(condition))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value, ingress: &[&str], assigned: bool) -> Service {
        let ingress: Vec<Value> = ingress.iter().map(|ip| json!({ "ip": ip })).collect();
        let conditions = if assigned {
            json!([{ "type": ADDRESS_FROM_POOL, "status": "True", "reason": "Assigned", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z" }])
        } else {
            json!([])
        };
        serde_json::from_value(json!({
            "metadata": { "namespace": "default", "name": "web" }, "spec": spec,
            "status": { "loadBalancer": { "ingress": ingress }, "conditions": conditions } }))
        .expect("a Service")
    }

    #[track_caller]
    fn check(service: &Service, used: &[&str], expected: &Plan) {
        let used = used.iter().map(|ip| ip.parse().expect("an IP")).collect();
        let pools = ["192.0.2.8/30".parse().expect("a pool")];
        assert_eq!(&plan(service, &used, &pools), expected);
    }

    fn assign(ip: &str) -> Plan {
        Plan::Assign(vec![ip.parse().expect("an IP")])
    }

    #[test]
    fn the_first_free_address_is_given_and_kept() {
        let spec = json!({ "type": "LoadBalancer" });
        check(
            &service(spec.clone(), &[], false),
            &[],
            &assign("192.0.2.9"),
        );
        check(
            &service(spec.clone(), &[], false),
            &["192.0.2.9"],
            &assign("192.0.2.10"),
        );
        check(
            &service(spec.clone(), &["192.0.2.10"], true),
            &[],
            &Plan::Settled,
        );
        // Two got the same, or the pool has moved: the one that is looked at gives way.
        check(
            &service(spec.clone(), &["192.0.2.10"], true),
            &["192.0.2.10"],
            &assign("192.0.2.9"),
        );
        check(
            &service(spec.clone(), &["203.0.113.1"], true),
            &[],
            &assign("192.0.2.9"),
        );
        let full = ["192.0.2.9", "192.0.2.10"];
        check(
            &service(spec, &[], false),
            &full,
            &Plan::Impossible("no address is free in the pools".into()),
        );
    }

    #[test]
    fn an_address_can_be_asked_for() {
        let spec = json!({ "type": "LoadBalancer", "loadBalancerIP": "192.0.2.10" });
        check(
            &service(spec.clone(), &[], false),
            &[],
            &assign("192.0.2.10"),
        );
        check(
            &service(spec.clone(), &["192.0.2.9"], true),
            &[],
            &assign("192.0.2.10"),
        );
        check(
            &service(spec, &[], false),
            &["192.0.2.10"],
            &Plan::Impossible("192.0.2.10 is in use by another Service".into()),
        );
        let spec = json!({ "type": "LoadBalancer", "loadBalancerIP": "203.0.113.1" });
        check(
            &service(spec, &[], false),
            &[],
            &Plan::Impossible("203.0.113.1 is in none of the address pools".into()),
        );
    }

    #[test]
    fn other_services_are_left_alone_and_former_ones_released() {
        check(
            &service(json!({ "type": "NodePort" }), &[], false),
            &[],
            &Plan::Settled,
        );
        check(
            &service(json!({ "type": "ClusterIP" }), &["192.0.2.9"], true),
            &[],
            &Plan::Release,
        );
        let other = json!({ "type": "LoadBalancer", "loadBalancerClass": "example.com/cloud" });
        check(&service(other, &[], false), &[], &Plan::Settled);
        let own = json!({ "type": "LoadBalancer", "loadBalancerClass": CLASS });
        check(&service(own, &[], false), &[], &assign("192.0.2.9"));
        // An address that a cloud's controller wrote.
        let cloud = json!({ "type": "LoadBalancer" });
        check(
            &service(cloud, &["203.0.113.1"], false),
            &[],
            &Plan::Settled,
        );
    }
}
