//! Keeps `status.used` of every ResourceQuota at what its namespace really uses.
//!
//! Watches: ResourceQuota and what is counted. Writes: ResourceQuota status. Admission adds to `used` before a create; this
//! takes away what went, and repairs the rest. Kinds without an informer of their own are counted by asking the API server
//! for one object and how many remain.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{
    Api,
    api::ListParams,
    core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta},
    discovery::Discovery,
};
use skep_client::{Action, Informer, ObjectKey, writes};
use skep_scheduler::{
    pod::{PodInfo, Resources},
    quantity,
};

use crate::{
    context::{Context, Doing, Error},
    pods,
};

const WORKERS: usize = 4;
const RESYNC: Duration = Duration::from_secs(300);
/// Kinds of the core group that are counted by their plain plural.
const PLAIN: [(&str, &str); 4] = [
    ("configmaps", "ConfigMap"),
    ("secrets", "Secret"),
    ("replicationcontrollers", "ReplicationController"),
    ("resourcequotas", "ResourceQuota"),
];

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        quotas: context.informers.of(),
        pods: context.informers.of(),
        services: context.informers.of(),
        claims: context.informers.of(),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.quotas);
    let watcher = controller.clone();
    work.feed(&controller.pods, move |change| {
        // Admission counts what is created; only what stops counting needs us.
        let counts = |pod: &Arc<Pod>| !pods::is_finished(pod);
        let stopped =
            change.old.as_ref().is_some_and(counts) && !change.new.as_ref().is_some_and(counts);
        if stopped {
            watcher.quotas_of(change.object().metadata.namespace.as_deref())
        } else {
            Vec::new()
        }
    });
    let watcher = controller.clone();
    work.feed(&controller.services, move |change| {
        watcher.quotas_of(change.object().metadata.namespace.as_deref())
    });
    let watcher = controller.clone();
    work.feed(&controller.claims, move |change| {
        watcher.quotas_of(change.object().metadata.namespace.as_deref())
    });
    work.run(
        "resourcequota",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    context: Arc<Context>,
}

impl Controller {
    fn quotas_of(&self, namespace: Option<&str>) -> Vec<ObjectKey> {
        let quotas = self.quotas.in_namespace(namespace.unwrap_or_default());
        quotas
            .iter()
            .map(|quota| ObjectKey::of(&quota.metadata))
            .collect()
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(quota) = self.quotas.get(&key) else {
            return Ok(Action::done());
        };
        if quota.metadata.deletion_timestamp.is_some() {
            return Ok(Action::done());
        }
        let hard = quota
            .spec
            .as_ref()
            .and_then(|spec| spec.hard.clone())
            .unwrap_or_default();
        let all = self.pods.in_namespace(&key.namespace);
        let counted: Vec<&Arc<Pod>> = all
            .iter()
            .filter(|pod| !pods::is_finished(pod) && in_scopes(&quota, pod))
            .collect();
        let mut used = BTreeMap::new();
        let mut discovery = None;
        for resource in hard.keys() {
            let amount = match pod_usage(resource, &counted)
                .or_else(|| service_usage(resource, &self.services.in_namespace(&key.namespace)))
                .or_else(|| claim_usage(resource, &self.claims.in_namespace(&key.namespace)))
            {
                Some(amount) => amount,
                None => self.count(&key.namespace, resource, &mut discovery).await?,
            };
            used.insert(resource.clone(), amount);
        }
        let status = ResourceQuotaStatus {
            hard: Some(hard),
            used: Some(used),
        };
        let api = self.context.api::<ResourceQuota>(&key.namespace);
        let old = quota.status.clone().unwrap_or_default();
        match writes::merge_status(&api, &quota.metadata, &old, &status).await {
            Ok(_) => Ok(Action::requeue(RESYNC)),
            Err(error) if writes::is_not_found(&error) => Ok(Action::done()),
            Err(error) => Err(error).doing("update the quota's status"),
        }
    }

    /// `configmaps`, `count/deployments.apps`.
    async fn count(
        &self,
        namespace: &str,
        resource: &str,
        discovery: &mut Option<Discovery>,
    ) -> Result<Quantity, Error> {
        let counted = resource.strip_prefix("count/").unwrap_or(resource);
        let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
        let plain = PLAIN
            .iter()
            .find(|(name, _)| group.is_empty() && *name == plural);
        let kind = match plain {
            Some((_, kind)) => Some(ApiResource::from_gvk(&GroupVersionKind::gvk(
                "", "v1", kind,
            ))),
            None => {
                if discovery.is_none() {
                    let run = Discovery::new(self.context.client.clone())
                        .run_aggregated()
                        .await;
                    *discovery = Some(run.doing("discover what a quota counts")?);
                }
                let found = discovery
                    .as_ref()
                    .and_then(|discovery| discovery.get(group));
                let mut resources = found
                    .into_iter()
                    .flat_map(|group| group.recommended_resources());
                resources
                    .find(|(resource, _)| resource.plural == plural)
                    .map(|(resource, _)| resource)
            }
        };
        let Some(kind) = kind else {
            return Ok(Quantity("0".into()));
        };
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::namespaced_with(self.context.client.clone(), namespace, &kind);
        let list = api
            .list(&ListParams::default().limit(1))
            .await
            .doing("count what a quota limits")?;
        let remaining = list.metadata.remaining_item_count.unwrap_or_default();
        let here = i64::try_from(list.items.len()).unwrap_or_default();
        Ok(Quantity((remaining + here).to_string()))
    }
}

fn number(count: usize) -> Quantity {
    Quantity(count.to_string())
}

fn millis(amount: i64) -> Quantity {
    Quantity(if amount % 1000 == 0 {
        (amount / 1000).to_string()
    } else {
        format!("{amount}m")
    })
}

fn bytes(amount: i64) -> Quantity {
    for (size, suffix) in [(1i64 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")] {
        if amount != 0 && amount % size == 0 {
            return Quantity(format!("{}{suffix}", amount / size));
        }
    }
    Quantity(amount.to_string())
}

/// What pods use of a resource; `None` if pods do not use it.
fn pod_usage(resource: &str, pods: &[&Arc<Pod>]) -> Option<Quantity> {
    let sum = |of: &dyn Fn(&Resources) -> i64, limits: bool| -> i64 {
        pods.iter()
            .map(|pod| of(&demand(pod, limits)))
            .fold(0, i64::saturating_add)
    };
    Some(match resource {
        "pods" | "count/pods" => number(pods.len()),
        "cpu" | "requests.cpu" => millis(sum(&|resources| resources.cpu_millicores, false)),
        "memory" | "requests.memory" => bytes(sum(&|resources| resources.memory_bytes, false)),
        "ephemeral-storage" | "requests.ephemeral-storage" => {
            bytes(sum(&|resources| resources.ephemeral_bytes, false))
        }
        "limits.cpu" => millis(sum(&|resources| resources.cpu_millicores, true)),
        "limits.memory" => bytes(sum(&|resources| resources.memory_bytes, true)),
        "limits.ephemeral-storage" => bytes(sum(&|resources| resources.ephemeral_bytes, true)),
        "requests.storage" => return None,
        _ => {
            let (name, limits) = match (
                resource.strip_prefix("requests."),
                resource.strip_prefix("limits."),
            ) {
                (Some(name), _) => (name, false),
                (None, Some(name)) => (name, true),
                (None, None) => return None,
            };
            let of =
                |resources: &Resources| resources.extended.get(name).copied().unwrap_or_default();
            Quantity(sum(&of, limits).to_string())
        }
    })
}

/// Requests as the scheduler counts them; limits the same way.
fn demand(pod: &Arc<Pod>, limits: bool) -> Resources {
    if !limits {
        return PodInfo::new(pod.clone()).requests;
    }
    let mut swapped = (**pod).clone();
    if let Some(spec) = &mut swapped.spec {
        let containers = spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten());
        for resources in containers.filter_map(|container| container.resources.as_mut()) {
            resources.requests = resources.limits.take();
        }
        if let Some(resources) = &mut spec.resources {
            resources.requests = resources.limits.take();
        }
    }
    PodInfo::new(Arc::new(swapped)).requests
}

fn service_usage(resource: &str, services: &[Arc<Service>]) -> Option<Quantity> {
    let of_type = |wanted: &str| {
        let type_ =
            |service: &Arc<Service>| service.spec.as_ref().and_then(|spec| spec.type_.clone());
        services
            .iter()
            .filter(|service| type_(service).as_deref().unwrap_or("ClusterIP") == wanted)
            .count()
    };
    let node_ports = || {
        let ports = services.iter().flat_map(|service| {
            service
                .spec
                .iter()
                .flat_map(|spec| spec.ports.iter().flatten())
        });
        ports
            .filter(|port| port.node_port.is_some_and(|port| port > 0))
            .count()
    };
    Some(match resource {
        "services" | "count/services" => number(services.len()),
        "services.loadbalancers" => number(of_type("LoadBalancer")),
        "services.nodeports" => number(node_ports()),
        _ => return None,
    })
}

/// `persistentvolumeclaims`, `requests.storage`, and both by class: `CLASS.storageclass.storage.k8s.io/…`.
fn claim_usage(resource: &str, claims: &[Arc<PersistentVolumeClaim>]) -> Option<Quantity> {
    let (class, resource) = match resource.split_once(".storageclass.storage.k8s.io/") {
        Some((class, resource)) => (Some(class), resource),
        None => (None, resource),
    };
    let selected = claims.iter().filter(|claim| {
        class.is_none()
            || claim
                .spec
                .as_ref()
                .and_then(|spec| spec.storage_class_name.as_deref())
                == class
    });
    Some(match resource {
        "persistentvolumeclaims" | "count/persistentvolumeclaims" => number(selected.count()),
        "requests.storage" => bytes(
            selected
                .filter_map(|claim| {
                    claim
                        .spec
                        .as_ref()?
                        .resources
                        .as_ref()?
                        .requests
                        .as_ref()?
                        .get("storage")
                })
                .map(quantity::value)
                .fold(0, i64::saturating_add),
        ),
        _ => return None,
    })
}

/// Whether the quota's scopes take the pod in.
fn in_scopes(quota: &ResourceQuota, pod: &Arc<Pod>) -> bool {
    let Some(spec) = &quota.spec else { return true };
    let terminating = pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.active_deadline_seconds.is_some());
    let best_effort = {
        let quality = pod
            .status
            .as_ref()
            .and_then(|status| status.qos_class.as_deref());
        quality == Some("BestEffort")
    };
    let class = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.priority_class_name.as_deref())
        .unwrap_or_default();
    let simple = |scope: &str| match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => !class.is_empty(),
        _ => false,
    };
    let expressions = spec
        .scope_selector
        .iter()
        .flat_map(|selector| selector.match_expressions.iter().flatten());
    spec.scopes.iter().flatten().all(|scope| simple(scope))
        && expressions.into_iter().all(|expression| {
            if expression.scope_name != "PriorityClass" {
                return simple(&expression.scope_name);
            }
            let values: BTreeSet<&str> = expression
                .values
                .iter()
                .flatten()
                .map(String::as_str)
                .collect();
            match expression.operator.as_str() {
                "In" => values.contains(class),
                "NotIn" => !values.contains(class),
                "Exists" => !class.is_empty(),
                "DoesNotExist" => class.is_empty(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec }))
                .expect("a pod"),
        )
    }

    #[test]
    fn what_pods_use() {
        let one = pod(json!({ "containers": [ { "name": "c", "resources": {
            "requests": { "cpu": "250m", "memory": "1Gi", "example.com/gpu": "2" }, "limits": { "cpu": "1" } } } ] }));
        let pods = [&one, &one];
        let check = |resource: &str, expected: Option<&str>| {
            assert_eq!(
                pod_usage(resource, &pods)
                    .map(|quantity| quantity.0)
                    .as_deref(),
                expected,
                "{resource}"
            );
        };
        check("pods", Some("2"));
        check("requests.cpu", Some("500m"));
        check("limits.cpu", Some("2"));
        check("memory", Some("2Gi"));
        check("limits.memory", Some("0"));
        check("requests.example.com/gpu", Some("4"));
        check("services", None);
        check("requests.storage", None);
    }

    #[test]
    fn claims_by_class() {
        let claim = |class: &str, size: &str| -> Arc<PersistentVolumeClaim> {
            let claim = json!({ "spec": { "storageClassName": class, "resources": { "requests": { "storage": size } } } });
            Arc::new(serde_json::from_value(claim).expect("a claim"))
        };
        let claims = [claim("fast", "1Gi"), claim("slow", "512Mi")];
        let check = |resource: &str, expected: &str| {
            assert_eq!(
                claim_usage(resource, &claims)
                    .map(|quantity| quantity.0)
                    .as_deref(),
                Some(expected)
            );
        };
        check("persistentvolumeclaims", "2");
        check("requests.storage", "1536Mi");
        check("fast.storageclass.storage.k8s.io/requests.storage", "1Gi");
        check(
            "slow.storageclass.storage.k8s.io/persistentvolumeclaims",
            "1",
        );
    }

    #[test]
    fn scopes() {
        let quota = |spec: Value| -> ResourceQuota {
            serde_json::from_value(json!({ "spec": spec })).expect("a quota")
        };
        let brief = pod(
            json!({ "containers": [], "activeDeadlineSeconds": 5, "priorityClassName": "high" }),
        );
        let check = |spec: Value, expected: bool| {
            assert_eq!(in_scopes(&quota(spec.clone()), &brief), expected, "{spec}")
        };
        check(json!({}), true);
        check(json!({ "scopes": ["Terminating"] }), true);
        check(json!({ "scopes": ["NotTerminating"] }), false);
        let by_class = |operator: &str, values: Value| {
            json!({ "scopeSelector": { "matchExpressions": [
                { "scopeName": "PriorityClass", "operator": operator, "values": values } ] } })
        };
        check(by_class("In", json!(["high"])), true);
        check(by_class("NotIn", json!(["high"])), false);
    }
}
