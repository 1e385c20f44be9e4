//! Bad input, and the words in which kubectl's users know it.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use skep_tests::wait::wait_for;
use xtask::cluster::images::NGINX;

use crate::Story;
use crate::manifests::{SOON, deployment};

pub(crate) fn bad_input(story: &Story<'_>) -> Result<()> {
    let create = |object: &Value, said: &str| -> Result<()> {
        let file = story.file("bad.json", &object.to_string())?;
        story
            .kubectl
            .refuse(&["create", "-f", &file], said)
            .map(drop)
    };
    let pod = |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad"}, "spec": spec});
    let container = json!({"name": "main", "image": NGINX});

    create(
        &pod(json!({"containers": [container], "imagination": 1})),
        r#"unknown field "spec.imagination""#,
    )?;
    create(&pod(json!({"containers": "none"})), "spec.containers")?;
    create(
        &pod(json!({"containers": []})),
        "spec.containers: Required value",
    )?;
    create(
        &pod(json!({"containers": [{"name": "main"}]})),
        "spec.containers[0].image: Required value",
    )?;
    create(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "Bad_Name"}, "spec": {"containers": [container]}}),
        r#"metadata.name: Invalid value: "Bad_Name""#,
    )?;
    create(
        &json!({"apiVersion": "v1", "kind": "Dream", "metadata": {"name": "bad"}}),
        r#"no matches for kind "Dream" in version "v1""#,
    )?;
    let kubectl = &story.kubectl;
    kubectl.refuse(
        &["get", "dreams"],
        r#"the server doesn't have a resource type "dreams""#,
    )?;
    kubectl.refuse(&["get", "pod", "nobody"], r#"pods "nobody" not found"#)?;
    kubectl.refuse(&["logs", "nobody"], r#"pods "nobody" not found"#)?;

    // An immutable field.
    story.apply(&[deployment("fixed", 0)])?;
    kubectl.refuse(
        &[
            "patch",
            "deployment",
            "fixed",
            "-p",
            r#"{"spec":{"selector":{"matchLabels":{"app":"other"}}}}"#,
        ],
        "field is immutable",
    )?;

    // A write that is based on an old version.
    let old = kubectl.get(&["deployment", "fixed"])?;
    kubectl.run(&["label", "deployment", "fixed", "changed=yes"])?;
    let mut stale = old;
    stale["metadata"]["labels"]["changed"] = json!("no");
    let file = story.file("stale.json", &stale.to_string())?;
    kubectl.refuse(&["replace", "-f", &file], "the object has been modified")?;

    // Someone who is not known.
    kubectl
        .refuse(
            &["--token=nonsense", "--client-certificate=", "get", "pods"],
            "Unauthorized",
        )
        .map(drop)
        .or_else(
            // kubectl prefers the client certificate of the kubeconfig where the flag does not take it away.
            |_| {
                kubectl
                    .refuse(
                        &["--as=nobody", "get", "pods"],
                        r#"User "nobody" cannot list resource "pods""#,
                    )
                    .map(drop)
            },
        )?;
    Ok(())
}

pub(crate) fn missing_image(story: &Story<'_>) -> Result<()> {
    // A registry on this machine that is not there: the pull fails at once and without a packet leaving.
    story
        .kubectl
        .run(&["run", "unreal", "--image=127.0.0.1:1/no/such:image"])?;
    wait_for("the pod to say why it does not run", SOON, || {
        let pod = story.kubectl.get(&["pod", "unreal"])?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        ensure!(
            waiting == "ErrImagePull" || waiting == "ImagePullBackOff",
            "{}",
            pod["status"]
        );
        Ok(())
    })?;
    wait_for("the event", SOON, || {
        story
            .kubectl
            .expect(&["describe", "pod", "unreal"], "Failed to pull image")
    })?;

    // An image that is there, with a command that is not.
    story.kubectl.run(&[
        "run",
        "speechless",
        &format!("--image={NGINX}"),
        "--command",
        "--",
        "/no/such/command",
    ])?;
    wait_for(
        "the pod to say that its command does not start",
        SOON,
        || {
            let pod = story.kubectl.get(&["pod", "speechless"])?;
            let status = pod["status"]["containerStatuses"][0].to_string();
            ensure!(
                status.contains("RunContainerError")
                    || status.contains("CrashLoopBackOff")
                    || status.contains("StartError"),
                "{status}"
            );
            Ok(())
        },
    )
}
