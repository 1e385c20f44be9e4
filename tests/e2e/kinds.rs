//! The kinds that nodes, pods and storage are made of, in the API: each lives its whole life, and wrong ones are refused.
//! What the conformance suite of Kubernetes asks of them without a container.

use anyhow::{Context as _, Result, bail, ensure};
use http::Method;
use serde_json::{Value, json};
use skep_tests::api::Api;
use skep_tests::cluster::{items, text};
use skep_tests::wait::wait_for;
use xtask::cluster::images::BUSYBOX;

use crate::Story;
use crate::manifests::{SOON, await_gone, await_ready, idle_pod};

/// One kind, where its objects are, and what of them may change.
struct Kind {
    /// Of the namespace, if it has one: `{namespace}` stands for it.
    path: &'static str,
    object: Value,
    /// A strategic merge patch.
    change: Value,
    /// Another one, of the status, for those that have it as a subresource.
    status: Option<Value>,
}

fn kind(path: &'static str, object: Value) -> Kind {
    Kind {
        path,
        object,
        change: json!({"metadata": {"annotations": {"patched": "true"}}}),
        status: None,
    }
}

impl Kind {
    fn changing(self, change: Value) -> Self {
        Self { change, ..self }
    }

    fn with_status(self, status: Value) -> Self {
        Self {
            status: Some(status),
            ..self
        }
    }
}

fn kinds(name: &str) -> Vec<Kind> {
    let conditions = json!({"conditions": [{"type": "Told", "status": "True", "reason": "ByAStory",
        "message": "it was", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    let claim =
        json!({"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": name}}]}});
    let volume = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "storageClassName": "volumes-of-a-story", "hostPath": {"path": "/nowhere"}});
    let template = json!({"metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "main", "image": BUSYBOX}]}});
    vec![
        kind(
            "/api/v1/namespaces/{namespace}/configmaps",
            json!({"data": {"key": "value"}}),
        )
        .changing(json!({"data": {"key": "patched"}})),
        kind(
            "/api/v1/namespaces/{namespace}/secrets",
            json!({"type": "Opaque", "data": {"key": "dmFsdWU="}}),
        )
        .changing(json!({"data": {"key": "cGF0Y2hlZA=="}})),
        kind(
            "/api/v1/namespaces/{namespace}/podtemplates",
            json!({"template": template}),
        )
        .changing(json!({"template": {"metadata": {"labels": {"app": "patched"}}}})),
        kind(
            "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
            json!({"spec": {"holderIdentity": "holder", "leaseDurationSeconds": 30,
                "acquireTime": "2026-01-01T00:00:00.000000Z", "leaseTransitions": 0}}),
        )
        .changing(json!({"spec": {"leaseDurationSeconds": 60}})),
        kind(
            "/apis/node.k8s.io/v1/runtimeclasses",
            json!({"handler": "handler"}),
        ),
        kind(
            "/api/v1/nodes",
            json!({"spec": {"unschedulable": true, "taints": [{"key": "story", "effect": "NoSchedule"}]}}),
        )
        .with_status(json!({"capacity": {"example.com/thing": "5"}})),
        kind(
            "/api/v1/persistentvolumes",
            json!({"spec": volume}),
        )
        .with_status(json!({"message": "StatusPatched", "reason": "E2E patchStatus"})),
        kind(
            "/api/v1/namespaces/{namespace}/persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "claims-of-a-story",
                "resources": {"requests": {"storage": "1Gi"}}}}),
        )
        .with_status(conditions.clone()),
        kind(
            "/apis/storage.k8s.io/v1/storageclasses",
            json!({"provisioner": "example.com/nobody"}),
        ),
        kind(
            "/apis/storage.k8s.io/v1/csidrivers",
            json!({"spec": {"attachRequired": false}}),
        )
        .changing(json!({"spec": {"requiresRepublish": true}})),
        kind("/apis/storage.k8s.io/v1/csinodes", json!({"spec": {"drivers": []}})),
        kind(
            "/apis/storage.k8s.io/v1/namespaces/{namespace}/csistoragecapacities",
            json!({"storageClassName": "nobody", "capacity": "1Gi"}),
        )
        .changing(json!({"capacity": "2Gi"})),
        kind(
            "/apis/storage.k8s.io/v1/volumeattachments",
            json!({"spec": {"attacher": "example.com", "nodeName": "nobody",
                "source": {"persistentVolumeName": "none"}}}),
        )
        .with_status(json!({"attached": true, "attachmentMetadata": {"told": "yes"}})),
        kind(
            "/apis/storage.k8s.io/v1/volumeattributesclasses",
            json!({"driverName": "example.com", "parameters": {"speed": "1"}}),
        ),
        kind(
            "/apis/resource.k8s.io/v1/deviceclasses",
            json!({"spec": {"selectors": [{"cel": {"expression": "device.driver == 'example.com'"}}]}}),
        )
        .changing(json!({"spec": {"selectors": [{"cel": {"expression": "device.driver == 'example.org'"}}]}})),
        kind(
            "/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims",
            json!({"spec": claim}),
        )
        .with_status(json!({"allocation": {"devices": {"results": [
            {"request": "one", "driver": "example.com", "pool": "pool", "device": "device"}]}}})),
        kind(
            "/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaimtemplates",
            json!({"spec": {"spec": claim}}),
        ),
        kind(
            "/apis/resource.k8s.io/v1/resourceslices",
            json!({"spec": {"driver": "example.com", "nodeName": "nobody", "devices": [{"name": "device"}],
                "pool": {"name": "pool", "generation": 1, "resourceSliceCount": 1}}}),
        )
        .changing(json!({"spec": {"devices": [{"name": "other"}]}})),
    ]
}

/// Created, found in every way, watched, patched, replaced, its status told, and deleted with its like.
pub(crate) fn lives(story: &Story<'_>) -> Result<()> {
    let api = Api::new(&story.cluster.state.kubeconfig())?;
    let name = format!("{}.example.com", story.namespace);
    for kind in kinds(&name) {
        life(&api, story.namespace, &name, &kind).with_context(|| kind.path.to_owned())?;
    }
    Ok(())
}

fn life(api: &Api, namespace: &str, name: &str, kind: &Kind) -> Result<()> {
    let all = kind.path.replace("{namespace}", namespace);
    let everywhere = kind.path.replace("/namespaces/{namespace}", "");
    let one = format!("{all}/{name}");
    let selector = format!("labelSelector=story%3D{namespace}");
    let mut object = kind.object.clone();
    object["metadata"] = json!({"name": name, "labels": {"story": namespace}});
    let created = api.call(Method::POST, &all, &object)?;
    let uid = &created["metadata"]["uid"];
    let revision = text(&created, "/metadata/resourceVersion")?;
    ensure!(uid.is_string(), "{created}");
    ensure!(api.get(&one)?["metadata"]["uid"] == *uid, "it is another");
    for list in [&all, &everywhere] {
        let list = api.get(&format!("{list}?{selector}"))?;
        let found: Vec<&Value> = items(&list).iter().map(|o| &o["metadata"]["uid"]).collect();
        ensure!(found == [uid], "{found:?}");
    }

    api.call(Method::PATCH, &one, &kind.change)?;
    let patched = api.get(&one)?;
    ensure!(contains(&patched, &kind.change), "{patched}");
    let watch = format!("{all}?watch=true&{selector}&resourceVersion={revision}");
    let events = api.events(&watch, |event| event["type"] == "MODIFIED")?;
    let event = events.last().context("no event")?;
    ensure!(
        event["type"] == "MODIFIED" && event["object"]["metadata"]["uid"] == *uid,
        "{event}"
    );

    // Controllers write some of them too: what is replaced must be the newest.
    let replaced = wait_for("a replacement", SOON, || {
        let mut next = api.get(&one)?;
        next["metadata"]["annotations"]["replaced"] = json!("true");
        api.call(Method::PUT, &one, &next)
    })?;
    ensure!(
        replaced["metadata"]["annotations"]["replaced"] == "true",
        "{replaced}"
    );
    if let Some(status) = &kind.status {
        let path = format!("{one}/status");
        api.call(Method::PATCH, &path, &json!({"status": status}))?;
        let told = api.get(&path)?;
        ensure!(contains(&told["status"], status), "{told}");
        wait_for("a replaced status", SOON, || {
            let mut next = api.get(&path)?;
            next["metadata"]["annotations"]["status"] = json!("replaced");
            let replaced = api.call(Method::PUT, &path, &next)?;
            ensure!(contains(&replaced["status"], status), "{replaced}");
            Ok(())
        })?;
    }

    api.call(Method::DELETE, &format!("{all}?{selector}"), &Value::Null)?;
    wait_for("it to be gone", SOON, || {
        let left = api.get(&format!("{all}?{selector}"))?;
        ensure!(items(&left).is_empty(), "{left}");
        Ok(())
    })?;
    refused(api, Method::GET, &one, &Value::Null, "not found")
}

/// Whether a value has all that a patch says.
fn contains(value: &Value, patch: &Value) -> bool {
    match (value, patch) {
        (Value::Object(value), Value::Object(patch)) => patch
            .iter()
            .all(|(key, patch)| value.get(key).is_some_and(|value| contains(value, patch))),
        (Value::Array(values), Value::Array(patches)) => patches
            .iter()
            .all(|patch| values.iter().any(|value| contains(value, patch))),
        _ => value == patch,
    }
}

fn refused(api: &Api, method: Method, path: &str, body: &Value, said: &str) -> Result<()> {
    match api.call(method, path, body) {
        Ok(answer) => bail!("{path} was answered with {answer}"),
        Err(error) => {
            let error = format!("{error:#}");
            ensure!(error.contains(said), "{path}: {error:?}, not {said:?}");
            Ok(())
        }
    }
}

/// What the API does not take of pods and of what they are configured with.
pub(crate) fn refusals(story: &Story<'_>) -> Result<()> {
    let api = Api::new(&story.cluster.state.kubeconfig())?;
    let namespaced = format!("/api/v1/namespaces/{}", story.namespace);
    let named = |name: &str, mut object: Value| {
        object["metadata"]["name"] = json!(name);
        object
    };
    for (kind, value) in [("configmaps", "value"), ("secrets", "dmFsdWU=")] {
        let all = format!("{namespaced}/{kind}");
        let empty = named("empty", json!({"data": {"": value}}));
        refused(&api, Method::POST, &all, &empty, "Invalid value: \"\"")?;

        // Immutable, it stays as it is until it is deleted.
        let fixed = named("fixed", json!({"data": {"key": value}, "immutable": true}));
        api.call(Method::POST, &all, &fixed)?;
        let one = format!("{all}/fixed");
        let said = "field is immutable when `immutable` is set";
        for change in [
            json!({"data": {"key": value, "more": value}}),
            json!({"immutable": false}),
        ] {
            refused(&api, Method::PATCH, &one, &change, said)?;
        }
        let label = json!({"metadata": {"labels": {"may": "change"}}});
        api.call(Method::PATCH, &one, &label)?;
        api.call(Method::DELETE, &one, &Value::Null)?;
        refused(&api, Method::GET, &one, &Value::Null, "not found")?;
    }

    let pods = format!("{namespaced}/pods");
    let with = |name: &str, more: Value| {
        let mut pod = idle_pod(name, None);
        for (key, value) in more.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        pod
    };
    let sysctls = ["foo-", "kernel.shmmax", "safe-and-unsafe", "bar.."]
        .map(|name| json!({"name": name, "value": "1"}));
    let wrong = with("sysctls", json!({"securityContext": {"sysctls": sysctls}}));
    for name in ["foo-", "bar.."] {
        let said = format!("Invalid value: \"{name}\"");
        refused(&api, Method::POST, &pods, &wrong, &said)?;
    }
    let class = format!("{}-class", story.namespace);
    let of_class = with("classy", json!({"runtimeClassName": class}));
    let said = format!("RuntimeClass \"{class}\" not found");
    refused(&api, Method::POST, &pods, &of_class, &said)?;
    let classes = "/apis/node.k8s.io/v1/runtimeclasses";
    let plain = named(&class, json!({"handler": "runc"}));
    api.call(Method::POST, classes, &plain)?;
    // A class without an overhead adds nothing to a pod.
    let outcome = wait_for("the pod to be taken", SOON, || {
        api.call(Method::POST, &pods, &of_class)
    })
    .and_then(|pod| {
        ensure!(pod["spec"]["overhead"].is_null(), "{}", pod["spec"]);
        await_ready(&story.kubectl, "classy")
    });
    api.call(Method::DELETE, &format!("{classes}/{class}"), &Value::Null)?;
    outcome?;
    let again = with("classy-again", json!({"runtimeClassName": class}));
    refused(&api, Method::POST, &pods, &again, &said)
}

/// Pods as objects: watched, changed, their status written by somebody else, deleted with others.
pub(crate) fn pods(story: &Story<'_>) -> Result<()> {
    let api = Api::new(&story.cluster.state.kubeconfig())?;
    let all = format!("/api/v1/namespaces/{}/pods", story.namespace);
    let mut pod = idle_pod("living", None);
    pod["metadata"]["generation"] = json!(100);
    pod["metadata"]["labels"]["kind"] = json!("story");
    let created = wait_for("the pod to be taken", SOON, || {
        api.call(Method::POST, &all, &pod)
    })?;
    // It is not for users to say.
    ensure!(created["metadata"]["generation"] == 1, "{created}");
    let revision = text(&created, "/metadata/resourceVersion")?;
    let running = await_ready(&story.kubectl, "living")?;
    ensure!(
        !text(&running, "/status/hostIP")?.is_empty()
            && !text(&running, "/status/podIP")?.is_empty(),
        "{}",
        running["status"]
    );
    let one = format!("{all}/living");
    let patched = api.call(
        Method::PATCH,
        &one,
        &json!({"metadata": {"labels": {"time": "now"}}}),
    )?;
    ensure!(patched["metadata"]["labels"]["time"] == "now", "{patched}");
    ensure!(patched["metadata"]["generation"] == 1, "{patched}");

    // A condition that is not the node's own, twice: the node leaves it alone.
    let condition = |status: &str| {
        json!({"status": {"conditions": [{"type": "Told", "status": status, "reason": "ByAStory",
            "message": "it was", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
    };
    let path = format!("{one}/status");
    api.call(Method::PATCH, &path, &condition("False"))?;
    wait_for("a replaced status", SOON, || {
        let mut next = api.get(&path)?;
        for condition in next["status"]["conditions"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            if condition["type"] == "Told" {
                condition["status"] = json!("True");
            }
        }
        api.call(Method::PUT, &path, &next)
    })?;
    // A new label makes the node look again.
    api.call(
        Method::PATCH,
        &one,
        &json!({"metadata": {"labels": {"time": "later"}}}),
    )?;
    let told = api.get(&one)?;
    ensure!(
        contains(&told["status"], &condition("True")["status"]),
        "{}",
        told["status"]
    );

    // An ephemeral container, and one more while the first runs.
    let path = format!("{one}/ephemeralcontainers");
    for name in ["first", "second"] {
        let container = json!({"name": name, "image": BUSYBOX, "command": ["sleep", "3600"]});
        api.call(
            Method::PATCH,
            &path,
            &json!({"spec": {"ephemeralContainers": [container]}}),
        )?;
    }
    wait_for("both to run", SOON, || {
        let pod = api.get(&one)?;
        let all = pod["status"]["ephemeralContainerStatuses"].as_array();
        let running = all
            .into_iter()
            .flatten()
            .filter(|s| s["state"]["running"].is_object());
        ensure!(running.count() == 2, "{}", pod["status"]);
        Ok(())
    })?;

    // A volume of a driver that nobody has: the API takes it, and the pod waits.
    let mut inline = idle_pod("inline", None);
    inline["spec"]["volumes"] = json!([{"name": "v", "csi": {"driver": "example.com"}}]);
    api.call(Method::POST, &all, &inline)?;
    let found = api.get(&format!("{all}/inline"))?;
    ensure!(
        found["spec"]["volumes"][0]["csi"]["driver"] == "example.com",
        "{found}"
    );
    wait_for("the node to say what it lacks", SOON, || {
        story
            .kubectl
            .expect(&["describe", "pod", "inline"], "no volume plugin matched")
    })?;

    api.call(
        Method::DELETE,
        &format!("{all}?labelSelector=kind%3Dstory"),
        &Value::Null,
    )?;
    await_gone(&story.kubectl, &["pod", "living"])?;
    let watch = format!("{all}?watch=true&labelSelector=kind%3Dstory&resourceVersion={revision}");
    let events = api.events(&watch, |event| event["type"] == "DELETED")?;
    let kinds: Vec<&str> = events.iter().filter_map(|e| e["type"].as_str()).collect();
    let changes = kinds.iter().filter(|kind| **kind == "MODIFIED").count();
    ensure!(changes > 4 && changes + 1 == kinds.len(), "{kinds:?}");
    api.call(Method::DELETE, &format!("{all}/inline"), &Value::Null)
        .map(drop)
}
