//! Objects that exist in every cluster and that nobody has to make: priority classes, priority levels and flow
//! schemas, the APIServices of built-in groups.

use serde_json::{Value, json};

use crate::registry::Registry;

pub fn priority_classes() -> Vec<Value> {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name, "generation": 1}, "value": value, "description": description,
            "preemptionPolicy": "PreemptLowerPriority",
        })
    };
    vec![
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ]
}

fn flow_control(kind: &str, name: &str, spec: Value, status: Value) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind,
        "metadata": {
            "name": name, "generation": 1,
            "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"},
        },
        "spec": spec, "status": status,
    })
}

pub fn priority_levels() -> Vec<Value> {
    let level = |name: &str, shares: u32, lendable: u32, queuing: Option<(u32, u32)>| {
        let response = match queuing {
            None => json!({"type": "Reject"}),
            Some((queues, hand_size)) => json!({
                "type": "Queue",
                "queuing": {"queues": queues, "handSize": hand_size, "queueLengthLimit": 50},
            }),
        };
        let limited = json!({
            "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response,
        });
        let spec = json!({"type": "Limited", "limited": limited});
        flow_control("PriorityLevelConfiguration", name, spec, json!({}))
    };
    let exempt = json!({
        "type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0},
    });
    vec![
        flow_control("PriorityLevelConfiguration", "exempt", exempt, json!({})),
        level("catch-all", 5, 0, None),
        level("global-default", 20, 50, Some((128, 6))),
        level("leader-election", 10, 0, Some((16, 4))),
        level("node-high", 40, 25, Some((64, 6))),
        level("system", 30, 33, Some((64, 6))),
        level("workload-high", 40, 50, Some((128, 6))),
        level("workload-low", 100, 90, Some((128, 6))),
    ]
}

fn group(name: &str) -> Value {
    json!({"kind": "Group", "group": {"name": name}})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "user": {"name": name}})
}

fn system_accounts() -> Value {
    json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": "*"}})
}

fn resources(verbs: &[&str], group: &str, resources: &[&str], cluster: bool) -> Value {
    let mut rule = json!({
        "verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"],
    });
    if cluster {
        rule["clusterScope"] = true.into();
    }
    rule
}

/// A rule about everything that these subjects may ask for.
fn everything(subjects: &[Value]) -> Value {
    json!({
        "subjects": subjects,
        "resourceRules": [resources(&["*"], "*", &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    })
}

pub fn flow_schemas(now: &str) -> Vec<Value> {
    let schema = |name: &str, level: &str, precedence: u32, by: Option<&str>, rule: Value| {
        let mut spec = json!({
            "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence,
            "rules": [rule],
        });
        if let Some(by) = by {
            spec["distinguisherMethod"] = json!({"type": by});
        }
        let message = format!(
            "This FlowSchema references the PriorityLevelConfiguration object named {level:?} and it exists"
        );
        let status = json!({"conditions": [{
            "type": "Dangling", "status": "False", "reason": "Found", "message": message,
            "lastTransitionTime": now,
        }]});
        flow_control("FlowSchema", name, spec, status)
    };
    let everybody = [
        group("system:unauthenticated"),
        group("system:authenticated"),
    ];
    let (by_user, by_namespace) = (Some("ByUser"), Some("ByNamespace"));
    let probes = json!({
        "subjects": everybody,
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}],
    });
    let election = json!({
        "subjects": [
            user("system:kube-controller-manager"), user("system:kube-scheduler"), system_accounts(),
        ],
        "resourceRules": [
            resources(&["get", "create", "update"], "coordination.k8s.io", &["leases"], false),
        ],
    });
    let node = json!({
        "subjects": [group("system:nodes")],
        "resourceRules": [
            resources(&["*"], "", &["nodes", "nodes/status"], true),
            resources(&["*"], "coordination.k8s.io", &["leases"], false),
        ],
    });
    let of = |subject: Value| everything(&[subject]);
    vec![
        schema("exempt", "exempt", 1, None, of(group("system:masters"))),
        schema("probes", "exempt", 2, None, probes),
        schema(
            "system-leader-election",
            "leader-election",
            100,
            by_user,
            election,
        ),
        schema("system-node-high", "node-high", 400, by_user, node),
        schema(
            "system-nodes",
            "system",
            500,
            by_user,
            of(group("system:nodes")),
        ),
        schema(
            "kube-controller-manager",
            "workload-high",
            800,
            by_namespace,
            of(user("system:kube-controller-manager")),
        ),
        schema(
            "kube-scheduler",
            "workload-high",
            800,
            by_namespace,
            of(user("system:kube-scheduler")),
        ),
        schema(
            "kube-system-service-accounts",
            "workload-high",
            900,
            by_namespace,
            of(system_accounts()),
        ),
        schema(
            "service-accounts",
            "workload-low",
            9000,
            by_user,
            of(group("system:serviceaccounts")),
        ),
        schema(
            "global-default",
            "global-default",
            9900,
            by_user,
            everything(&everybody),
        ),
        schema(
            "catch-all",
            "catch-all",
            10_000,
            by_user,
            everything(&everybody),
        ),
    ]
}

/// One `APIService` a built-in group-version, served here.
pub fn api_services(registry: &Registry, now: &str) -> Vec<Value> {
    let mut services = Vec::new();
    for group in registry.groups() {
        for version in &group.versions {
            if version.resources.iter().all(|r| r.custom) {
                continue;
            }
            let (of_group, of_version) = priority(&group.name, &version.version);
            let mut spec = json!({
                "version": version.version, "groupPriorityMinimum": of_group,
                "versionPriority": of_version,
            });
            if !group.name.is_empty() {
                spec["group"] = group.name.as_str().into();
            }
            services.push(json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {
                    "name": format!("{}.{}", version.version, group.name),
                    "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"},
                },
                "spec": spec,
                "status": {"conditions": [{
                    "type": "Available", "status": "True", "reason": "Local",
                    "message": "Local APIServices are always available", "lastTransitionTime": now,
                }]},
            }));
        }
    }
    // The aggregator does not register itself.
    services.retain(|s| s["spec"]["group"] != "apiregistration.k8s.io");
    services
}

/// The order of groups and versions in discovery.
fn priority(group: &str, version: &str) -> (u32, u32) {
    let of_group = match group {
        "" => return (18_000, 1),
        "apps" => 17_800,
        "events.k8s.io" => 17_750,
        "authentication.k8s.io" => 17_700,
        "authorization.k8s.io" => 17_600,
        "autoscaling" => 17_500,
        "batch" => 17_400,
        "certificates.k8s.io" => 17_300,
        "networking.k8s.io" => 17_200,
        "policy" => 17_100,
        "rbac.authorization.k8s.io" => 17_000,
        "storage.k8s.io" => 16_800,
        "admissionregistration.k8s.io" | "apiextensions.k8s.io" => 16_700,
        "scheduling.k8s.io" => 16_600,
        "coordination.k8s.io" => 16_500,
        "node.k8s.io" => 16_300,
        "discovery.k8s.io" | "resource.k8s.io" => 16_200,
        "flowcontrol.apiserver.k8s.io" => 16_100,
        _ => 1_000,
    };
    let of_version = match (group, version) {
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io" | "resource.k8s.io", "v1") => 21,
        _ => 15,
    };
    (of_group, of_version)
}
