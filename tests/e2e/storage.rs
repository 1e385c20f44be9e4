//! Volumes that are claimed: made where their first pod runs, kept while somebody uses them, and given back.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use skep_tests::cluster::text;
use skep_tests::wait::wait_for;
use xtask::cluster::images::BUSYBOX;

use crate::Story;
use crate::manifests::{SOON, await_gone, await_ready};

fn pod(name: &str, volume: Value, mut more: Value) -> Value {
    more["volumes"] = json!([volume]);
    more["terminationGracePeriodSeconds"] = json!(0);
    let own = json!({"name": "main", "image": BUSYBOX, "command": ["sleep", "3600"],
        "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"},
            {"name": "data", "mountPath": "/own", "subPathExpr": "$(POD)"}]});
    more["containers"] = json!([own]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": more})
}

fn claim(name: &str, class: Option<&str>) -> Value {
    let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}});
    if let Some(class) = class {
        claim["spec"]["storageClassName"] = json!(class);
    }
    claim
}

fn of_claim(name: &str) -> Value {
    json!({"name": "data", "persistentVolumeClaim": {"claimName": name}})
}

pub(crate) fn claims(story: &Story<'_>) -> Result<()> {
    for_one_pod(story)?;
    for_pod_after_pod(story)?;
    by_hand(story)
}

/// A generic ephemeral volume comes and goes with its pod.
fn for_one_pod(story: &Story<'_>) -> Result<()> {
    let template = json!({"spec": claim("", None)["spec"]});
    let volume = json!({"name": "data", "ephemeral": {"volumeClaimTemplate": template}});
    story.apply(&[pod("scratch", volume, json!({}))])?;
    let made = await_ready(&story.kubectl, "scratch")?;
    story.exec("scratch", &["touch", "/own/file"])?;
    ensure!(story.exec("scratch", &["ls", "/data/scratch"])? == "file\n");
    let claim = story.kubectl.get(&["pvc", "scratch-data"])?;
    ensure!(
        claim["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"],
        "{}",
        claim["metadata"]
    );
    let volume = text(&claim, "/spec/volumeName")?;
    story.kubectl.run(&["delete", "pod", "scratch"])?;
    await_gone(&story.kubectl, &["pvc", "scratch-data"])?;
    await_gone(&story.kubectl, &["pv", volume])
}

/// What one pod has written the next one reads; the claim stays as long as one of them uses it.
fn for_pod_after_pod(story: &Story<'_>) -> Result<()> {
    story.apply(&[claim("kept", None)])?;
    wait_for("the claim to wait for its first pod", SOON, || {
        let claim = story.kubectl.get(&["pvc", "kept"])?;
        ensure!(claim["status"]["phase"] == "Pending", "{}", claim["status"]);
        let said = "waiting for first consumer to be created before binding";
        story.kubectl.expect(&["describe", "pvc", "kept"], said)
    })?;
    let group = json!({"securityContext": {"runAsUser": 1000, "fsGroup": 2000}});
    story.apply(&[pod("first", of_claim("kept"), group.clone())])?;
    let first = await_ready(&story.kubectl, "first")?;
    story.exec("first", &["sh", "-c", "echo kept > /data/file"])?;
    let owner = story.exec("first", &["stat", "-c", "%u %g", "/data/file"])?;
    ensure!(owner == "1000 2000\n", "{owner:?}");
    story.kubectl.run(&["delete", "pod", "first"])?;
    story.apply(&[pod("second", of_claim("kept"), group)])?;
    let second = await_ready(&story.kubectl, "second")?;
    ensure!(
        second["spec"]["nodeName"] == first["spec"]["nodeName"],
        "it runs where the data is not"
    );
    ensure!(story.exec("second", &["cat", "/data/file"])? == "kept\n");

    let claim = story.kubectl.get(&["pvc", "kept"])?;
    let volume = text(&claim, "/spec/volumeName")?;
    story
        .kubectl
        .run(&["delete", "pvc", "kept", "--wait=false"])?;
    let ending = story.kubectl.get(&["pvc", "kept"])?;
    ensure!(
        ending["metadata"]["deletionTimestamp"].is_string(),
        "{}",
        ending["metadata"]
    );
    ensure!(story.exec("second", &["cat", "/data/file"])? == "kept\n");
    story.kubectl.run(&["delete", "pod", "second"])?;
    await_gone(&story.kubectl, &["pvc", "kept"])?;
    await_gone(&story.kubectl, &["pv", volume])
}

/// A volume that an administrator has made is bound by its class and size, and keeps its data when it is released.
fn by_hand(story: &Story<'_>) -> Result<()> {
    let marker = story.file("marker", "from before\n")?;
    let folder = marker.trim_end_matches("/marker");
    let name = format!("{}-volume", story.namespace);
    let class = format!("{}-class", story.namespace);
    story.apply(&[
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {"capacity": {"storage": "2Mi"}, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain", "storageClassName": class,
                "local": {"path": folder},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node2"]}]}]}}}}),
        claim("bound", Some(&class)),
        pod("reads", of_claim("bound"), json!({})),
    ])?;
    let outcome = await_ready(&story.kubectl, "reads").and_then(|pod| {
        ensure!(pod["spec"]["nodeName"] == "node2", "{}", pod["spec"]);
        ensure!(story.exec("reads", &["cat", "/data/marker"])? == "from before\n");
        story.kubectl.run(&["delete", "pod/reads", "pvc/bound"])?;
        wait_for("the volume to be released", SOON, || {
            let volume = story.kubectl.get(&["pv", &name])?;
            ensure!(
                volume["status"]["phase"] == "Released",
                "{}",
                volume["status"]
            );
            Ok(())
        })
    });
    story.kubectl.run(&["delete", "pv", &name])?;
    outcome?;
    ensure!(std::fs::read_to_string(&marker)? == "from before\n");
    Ok(())
}
