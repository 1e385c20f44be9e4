//! One story a rule: where the pod goes, or upstream's words for why it goes nowhere.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::{Value, json};
use skep_client::ObjectKey;
use skep_scheduler::{
    decide::{self, Decision},
    volumes::Binding,
};

use crate::{cluster, node, place, pod};

fn taint(key: &str, effect: &str) -> Value {
    json!({ "spec": { "taints": [ { "key": key, "value": "v", "effect": effect } ] } })
}

#[test]
fn no_nodes() {
    let mut cluster = cluster([]);
    assert_eq!(
        place(&mut cluster, &pod("p", "1", json!({}))),
        Err("no nodes available to schedule pods".into())
    );
}

#[test]
fn says_why_per_node() {
    let mut cluster = cluster([
        node("a", "1", json!({})),
        node("b", "8", taint("gpu", "NoSchedule")),
        node("c", "8", taint("gpu", "NoSchedule")),
        node("d", "8", json!({ "spec": { "unschedulable": true } })),
    ]);
    assert_eq!(
        place(&mut cluster, &pod("p", "2", json!({}))),
        Err("0/4 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable, 2 node(s) had untolerated \
             taint {gpu: v}. preemption: 0/4 nodes are available: 1 No preemption victims found for incoming pod, 3 \
             Preemption is not helpful for scheduling."
            .into())
    );
    let tolerant = json!({ "spec": { "tolerations": [ { "key": "gpu", "operator": "Exists" } ] } });
    assert!(
        ["b", "c"].contains(
            &place(&mut cluster, &pod("q", "2", tolerant))
                .expect("fits")
                .as_str()
        )
    );
}

#[test]
fn an_assumed_pod_holds_its_resources() {
    let mut cluster = cluster([node("a", "2", json!({}))]);
    assert_eq!(
        place(&mut cluster, &pod("p", "1500m", json!({}))),
        Ok("a".into())
    );
    let error = place(&mut cluster, &pod("q", "1", json!({}))).expect_err("full");
    assert!(
        error.starts_with("0/1 nodes are available: 1 Insufficient cpu."),
        "{error}"
    );
    cluster.forget("p");
    assert_eq!(
        place(&mut cluster, &pod("q", "1", json!({}))),
        Ok("a".into())
    );
}

#[test]
fn pods_without_requests_still_count() {
    let few = json!({ "status": { "allocatable": { "pods": "1" } } });
    let mut cluster = cluster([node("a", "2", few)]);
    assert!(place(&mut cluster, &pod("p", "0", json!({}))).is_ok());
    let error = place(&mut cluster, &pod("q", "0", json!({}))).expect_err("full");
    assert!(error.contains("1 Too many pods"), "{error}");
}

#[test]
fn node_selector_and_affinity() {
    let label = |zone: &str| json!({ "metadata": { "labels": { "zone": zone } } });
    let mut cluster = cluster([node("a", "8", label("x")), node("b", "8", label("y"))]);
    let selector = json!({ "spec": { "nodeSelector": { "zone": "y" } } });
    assert_eq!(
        place(&mut cluster, &pod("p", "1", selector)),
        Ok("b".into())
    );
    let by_name = json!({ "spec": { "affinity": { "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
            { "matchFields": [ { "key": "metadata.name", "operator": "In", "values": ["a"] } ] } ] } } } } });
    assert_eq!(place(&mut cluster, &pod("q", "1", by_name)), Ok("a".into()));
    let nowhere = json!({ "spec": { "nodeSelector": { "zone": "z" } } });
    let error = place(&mut cluster, &pod("r", "1", nowhere)).expect_err("no such zone");
    assert!(
        error.starts_with(
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
        ),
        "{error}"
    );
    let preferred = json!({ "spec": { "affinity": { "nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [ { "weight": 100, "preference": { "matchExpressions": [
            { "key": "zone", "operator": "In", "values": ["y"] } ] } } ] } } } });
    assert_eq!(
        place(&mut cluster, &pod("s", "1", preferred)),
        Ok("b".into())
    );
}

#[test]
fn pods_of_one_owner_are_spread() {
    let mut cluster = cluster(["a", "b", "c"].map(|name| node(name, "8", json!({}))));
    let owned = json!({ "metadata": { "ownerReferences": [
        { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "rs", "controller": true } ] } });
    let mut used: Vec<String> = (0..6)
        .map(|number| {
            place(
                &mut cluster,
                &pod(&format!("p{number}"), "100m", owned.clone()),
            )
            .expect("fits")
        })
        .collect();
    used.sort();
    assert_eq!(used, ["a", "a", "b", "b", "c", "c"]);
}

#[test]
fn anti_affinity_works_both_ways() {
    let mut cluster = cluster(["a", "b"].map(|name| node(name, "8", json!({}))));
    let apart = json!({ "spec": { "affinity": { "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [ { "topologyKey": "kubernetes.io/hostname",
            "labelSelector": { "matchLabels": { "app": "web" } } } ] } } } });
    let first = place(&mut cluster, &pod("p", "1", apart.clone())).expect("fits");
    let second = place(&mut cluster, &pod("q", "1", apart.clone())).expect("fits");
    assert_ne!(first, second);
    let error = place(&mut cluster, &pod("r", "1", apart)).expect_err("both taken");
    assert!(
        error.contains("2 node(s) didn't match pod anti-affinity rules"),
        "{error}"
    );
    let error =
        place(&mut cluster, &pod("s", "1", json!({}))).expect_err("the running ones object");
    assert!(
        error.contains("2 node(s) didn't satisfy existing pods anti-affinity rules"),
        "{error}"
    );
}

#[test]
fn affinity_lets_the_first_of_a_group_start() {
    let mut cluster = cluster(["a", "b", "c"].map(|name| node(name, "8", json!({}))));
    let together = json!({ "spec": { "affinity": { "podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [ { "topologyKey": "kubernetes.io/hostname",
            "labelSelector": { "matchLabels": { "app": "web" } } } ] } } } });
    let first = place(&mut cluster, &pod("p", "1", together.clone())).expect("fits");
    assert_eq!(
        place(&mut cluster, &pod("q", "1", together.clone())),
        Ok(first)
    );
    let mut lonely = together;
    crate::merge(
        &mut lonely,
        json!({ "metadata": { "labels": { "app": "other" }, "namespace": "elsewhere" } }),
    );
    let error = place(&mut cluster, &pod("r", "1", lonely)).expect_err("nobody to be near");
    assert!(
        error.contains("3 node(s) didn't match pod affinity rules"),
        "{error}"
    );
}

#[test]
fn topology_spread() {
    let zone = |zone: &str| json!({ "metadata": { "labels": { "zone": zone } } });
    let mut cluster = cluster([
        node("a1", "8", zone("a")),
        node("a2", "8", zone("a")),
        node("b1", "3", zone("b")),
        node("none", "8", json!({})),
    ]);
    let spread = json!({ "spec": { "topologySpreadConstraints": [ { "maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": { "app": "web" } } } ] } });
    for number in 0..4 {
        place(
            &mut cluster,
            &pod(&format!("p{number}"), "1", spread.clone()),
        )
        .expect("fits");
    }
    let count = |node: &str| cluster.node(node).expect("exists").pods.len();
    assert_eq!(
        (count("a1") + count("a2"), count("b1"), count("none")),
        (2, 2, 0)
    );
    place(&mut cluster, &pod("p4", "1", spread.clone())).expect("fits");
    place(&mut cluster, &pod("p5", "1", spread.clone())).expect("fits");
    // b is full with three, so a fourth in a is allowed and a fifth is not.
    place(&mut cluster, &pod("p6", "1", spread.clone())).expect("skew of one");
    let error = place(&mut cluster, &pod("p7", "1", spread)).expect_err("skew of two");
    assert!(
        error.contains("2 node(s) didn't match pod topology spread constraints."),
        "{error}"
    );
    assert!(
        error.contains(
            "1 node(s) didn't match pod topology spread constraints (missing required label)"
        ),
        "{error}"
    );
}

#[test]
fn preempts_the_least_important_and_no_more_than_needed() {
    let mut cluster = cluster([node("a", "4", json!({})), node("b", "4", json!({}))]);
    let priority = |priority: i32| json!({ "spec": { "priority": priority } });
    for (name, at, cpu, value) in [
        ("a1", "a", "2", 5),
        ("a2", "a", "2", 10),
        ("b1", "b", "2", 1),
        ("b2", "b", "1", 50),
        ("b3", "b", "1", 1),
    ] {
        let info = pod(name, cpu, priority(value));
        cluster.assume(info, at);
    }
    let Decision::Unschedulable {
        message,
        preemption,
        ..
    } = decide::decide(&mut cluster, &pod("p", "2", priority(100)), 0)
    else {
        panic!("nothing is free");
    };
    let preemption = preemption.expect("somebody is less important");
    let victims: Vec<&str> = preemption
        .victims
        .iter()
        .map(|victim| victim.key.name.as_str())
        .collect();
    assert_eq!((preemption.node.as_str(), victims), ("b", vec!["b1"]));
    assert_eq!(message, "0/2 nodes are available: 2 Insufficient cpu.");

    let never = json!({ "spec": { "priority": 100, "preemptionPolicy": "Never" } });
    let error = place(&mut cluster, &pod("q", "2", never)).expect_err("full");
    assert!(
        error.ends_with("preemption: not eligible due to preemptionPolicy=Never."),
        "{error}"
    );
}

#[test]
fn a_nominated_pod_keeps_its_room() {
    let mut cluster = cluster([node("a", "2", json!({}))]);
    let important = pod("p", "2", json!({ "spec": { "priority": 100 } }));
    cluster.nominate(important.clone(), "a");
    assert!(place(&mut cluster, &pod("q", "1", json!({}))).is_err());
    assert_eq!(place(&mut cluster, &important), Ok("a".into()));
}

#[test]
fn preemption_respects_budgets_when_it_can() {
    let mut cluster = cluster([node("a", "2", json!({})), node("b", "2", json!({}))]);
    cluster.assume(
        pod(
            "guarded",
            "2",
            json!({ "metadata": { "labels": { "app": "db" } } }),
        ),
        "a",
    );
    cluster.assume(pod("plain", "2", json!({ "spec": { "priority": 1 } })), "b");
    let budget: k8s_openapi::api::policy::v1::PodDisruptionBudget = serde_json::from_value(json!({
        "metadata": { "name": "db", "namespace": "default" },
        "spec": { "selector": { "matchLabels": { "app": "db" } }, "minAvailable": 1 },
        "status": { "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1 } }))
    .expect("a budget");
    cluster
        .budgets
        .insert(ObjectKey::new("default", "db"), budget.into());
    let Decision::Unschedulable { preemption, .. } = decide::decide(
        &mut cluster,
        &pod("p", "2", json!({ "spec": { "priority": 100 } })),
        0,
    ) else {
        panic!("nothing is free");
    };
    assert_eq!(preemption.expect("somebody is less important").node, "b");
}

#[test]
fn claims() {
    let mut cluster = cluster(["a", "b"].map(|name| node(name, "8", json!({}))));
    let with_claim = json!({ "spec": { "volumes": [ { "name": "data", "persistentVolumeClaim": { "claimName": "data" } } ] } });
    let error = place(&mut cluster, &pod("p", "1", with_claim.clone())).expect_err("no claim");
    assert_eq!(
        error,
        "0/2 nodes are available: persistentvolumeclaim \"data\" not found. preemption: 0/2 nodes are available: 2 \
         Preemption is not helpful for scheduling."
    );
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": { "name": "data", "namespace": "default", "uid": "c" },
        "spec": { "storageClassName": "local", "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "1Gi" } } } }))
    .expect("a claim");
    let key = ObjectKey::new("default", "data");
    cluster
        .volumes
        .claims
        .insert(key.clone(), claim.clone().into());
    let error = place(&mut cluster, &pod("p", "1", with_claim.clone())).expect_err("not bound");
    assert!(
        error.contains("pod has unbound immediate PersistentVolumeClaims"),
        "{error}"
    );

    let class = json!({ "metadata": { "name": "local" }, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer" });
    cluster.volumes.classes.insert(
        "local".into(),
        std::sync::Arc::new(serde_json::from_value(class).expect("a class")),
    );
    let error = place(&mut cluster, &pod("p", "1", with_claim.clone())).expect_err("no volume");
    assert!(
        error.contains("2 node(s) didn't find available persistent volumes to bind"),
        "{error}"
    );

    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": { "name": "disk" },
        "spec": { "capacity": { "storage": "2Gi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
            "nodeAffinity": { "required": { "nodeSelectorTerms": [ { "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": ["b"] } ] } ] } } },
        "status": { "phase": "Available" } }))
    .expect("a volume");
    cluster.volumes.volumes.insert("disk".into(), volume.into());
    let Decision::Bind { node, bindings } =
        decide::decide(&mut cluster, &pod("p", "1", with_claim.clone()), 0)
    else {
        panic!("fits on b");
    };
    assert_eq!(node, "b");
    assert_eq!(
        bindings,
        [Binding::Volume {
            claim: key.clone(),
            volume: "disk".into()
        }]
    );

    let mut bound = claim;
    bound.spec.get_or_insert_default().volume_name = Some("disk".into());
    bound.status.get_or_insert_default().phase = Some("Bound".into());
    cluster.volumes.claims.insert(key, bound.into());
    assert_eq!(
        place(&mut cluster, &pod("p", "1", with_claim)),
        Ok("b".into())
    );
}
