//! Copies Endpoints that a user keeps for a Service without a selector into EndpointSlices, which is what the datapath
//! reads.
//!
//! Watches: Endpoints, Service, EndpointSlice. Writes: EndpointSlice.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::{
    core::v1::{EndpointAddress, Endpoints, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
};
use kube::{
    api::{DeleteParams, PostParams},
    core::ObjectMeta,
};
use skep_client::{Action, Informer, ObjectKey, informer::BY_SERVICE, writes};

use crate::{
    context::{Context, Doing, Error},
    owners,
};

const WORKERS: usize = 4;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const MAX_PER_SUBSET: usize = 1000;

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        endpoints: context.informers.of(),
        services: context.informers.of(),
        slices: context.informers.of(),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.endpoints);
    work.feed_self(&controller.services);
    work.feed(&controller.slices, |change| {
        let slice = change.object();
        let labels = slice.metadata.labels.as_ref();
        match labels
            .and_then(|labels| labels.get(SERVICE_NAME))
            .filter(|_| is_ours(slice))
        {
            Some(name) => vec![ObjectKey::new(
                slice.metadata.namespace.clone().unwrap_or_default(),
                name.clone(),
            )],
            None => Vec::new(),
        }
    });
    work.run(
        "endpointslice-mirroring",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    context: Arc<Context>,
}

fn is_ours(slice: &EndpointSlice) -> bool {
    slice
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGED_BY))
        .is_some_and(|manager| manager == MANAGER)
}

fn should_mirror(endpoints: &Endpoints, service: &Service) -> bool {
    let meta = &endpoints.metadata;
    let skipped = meta
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SKIP))
        .is_some_and(|value| value == "true");
    let elects = meta
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(LEADER));
    let selects = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref())
        .is_some_and(|selector| !selector.is_empty());
    !skipped && !elects && !selects && meta.deletion_timestamp.is_none()
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .by_index(BY_SERVICE, &key.to_string())
            .into_iter()
            .filter(|slice| is_ours(slice))
            .collect();
        let wanted = match (self.endpoints.get(&key), self.services.get(&key)) {
            (Some(endpoints), Some(service)) if should_mirror(&endpoints, &service) => {
                mirror(&endpoints)
            }
            _ => Vec::new(),
        };
        let api = self.context.api::<EndpointSlice>(&key.namespace);
        let mut left = existing;
        for slice in wanted {
            // Same family and ports: the same slice, brought up to date.
            let match_at = left
                .iter()
                .position(|old| old.address_type == slice.address_type && old.ports == slice.ports);
            match match_at.map(|index| left.remove(index)) {
                None => match api.create(&PostParams::default(), &slice).await {
                    Ok(_) => {}
                    Err(error) if writes::is_namespace_terminating(&error) => {
                        return Ok(Action::done());
                    }
                    Err(error) => return Err(error).doing("create a mirrored EndpointSlice"),
                },
                Some(old)
                    if old.endpoints != slice.endpoints
                        || old.metadata.labels != slice.metadata.labels =>
                {
                    let mut updated = (*old).clone();
                    updated.endpoints = slice.endpoints;
                    updated.metadata.labels = slice.metadata.labels;
                    let name = updated.metadata.name.clone().unwrap_or_default();
                    api.replace(&name, &PostParams::default(), &updated)
                        .await
                        .doing("update a mirrored EndpointSlice")?;
                }
                Some(_) => {}
            }
        }
        for slice in left {
            let name = slice.metadata.name.clone().unwrap_or_default();
            writes::delete(
                &api,
                &name,
                slice.metadata.uid.clone(),
                DeleteParams::default(),
            )
            .await
            .doing("delete a mirrored EndpointSlice")?;
        }
        Ok(Action::done())
    }
}

/// One slice for each subset and family.
fn mirror(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let mut labels: BTreeMap<String, String> =
        endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let owner = owners::reference(endpoints);
    let mut slices = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset
            .addresses
            .iter()
            .flatten()
            .map(|address| (address, true));
        let not_ready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|address| (address, false));
        let mut by_family: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
        for (address, ready) in ready.chain(not_ready).take(MAX_PER_SUBSET) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                continue;
            };
            by_family
                .entry(if ip.is_ipv6() { "IPv6" } else { "IPv4" })
                .or_default()
                .push(endpoint(address, ready));
        }
        for (family, endpoints_here) in by_family {
            slices.push(EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{name}-")),
                    namespace: endpoints.metadata.namespace.clone(),
                    labels: Some(labels.clone()),
                    owner_references: Some(vec![owner.clone()]),
                    ..Default::default()
                },
                address_type: family.to_owned(),
                endpoints: Some(endpoints_here),
                ports: Some(ports.clone()),
            });
        }
    }
    slices
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..Default::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_slice_for_each_family_and_subset() {
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": { "name": "db", "namespace": "default", "labels": { "team": "a" } },
            "subsets": [ { "addresses": [ { "ip": "192.0.2.1" }, { "ip": "2001:db8::1" } ],
                "notReadyAddresses": [ { "ip": "192.0.2.2" } ], "ports": [ { "port": 5432 } ] } ] }))
        .expect("endpoints");
        let slices = mirror(&endpoints);
        let shown: Vec<_> = slices
            .iter()
            .map(|slice| {
                (
                    slice.address_type.as_str(),
                    slice.endpoints.as_ref().map_or(0, Vec::len),
                )
            })
            .collect();
        assert_eq!(shown, [("IPv4", 2), ("IPv6", 1)]);
        let service = |selector: serde_json::Value| -> Service {
            serde_json::from_value(json!({ "spec": { "selector": selector } })).expect("a service")
        };
        assert!(should_mirror(&endpoints, &service(json!({}))));
        assert!(!should_mirror(&endpoints, &service(json!({ "app": "db" }))));
    }
}
