//! What the stories deploy.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skep_tests::client::Client;
use skep_tests::cluster::{items, text};
use skep_tests::wait::wait_for;
use xtask::cluster::images::{BUSYBOX, NGINX};

use crate::Story;

/// Long enough for a slow machine with three nodes on it, short enough to notice a hang.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// nginx that is ready once it answers, and that goes on serving for a moment when told to end: until then every node
/// has taken it out of the Service. That is how people deploy what must not fail a request.
pub(crate) fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 10,
                    "containers": [{
                        "name": "nginx",
                        "image": NGINX,
                        "ports": [{"containerPort": 80}],
                        "readinessProbe": {"httpGet": {"path": "/quiet", "port": 80}, "periodSeconds": 1},
                        "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
                    }],
                },
            },
        },
    })
}

/// A pod that waits to be told what to do. On a given node if one is named.
pub(crate) fn idle_pod(name: &str, node: Option<&str>) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": BUSYBOX, "command": ["sleep", "3600"]}],
        },
    });
    if let Some(node) = node {
        pod["spec"]["nodeName"] = json!(node);
    }
    pod
}

/// A pod with nginx on a given node.
pub(crate) fn web_pod(name: &str, app: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {
            "nodeName": node,
            "hostname": name,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "nginx",
                "image": NGINX,
                "readinessProbe": {"httpGet": {"path": "/quiet", "port": 80}, "periodSeconds": 1},
            }],
        },
    })
}

pub(crate) fn service(name: &str, app: &str, spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": app}, "ports": [{"name": "http", "port": 80}]},
    });
    if let (Some(all), Value::Object(more)) = (service["spec"].as_object_mut(), spec) {
        all.extend(more);
    }
    service
}

impl Story<'_> {
    /// `kubectl apply -f` of what is made here.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let file = self.file("manifest.json", &list.to_string())?;
        self.kubectl
            .run(&["apply", "--validate=false", "-f", &file])
            .map(drop)
    }

    /// A file of the story's own; its path.
    pub(crate) fn file(&self, name: &str, content: &str) -> Result<String> {
        let folder = self
            .cluster
            .state
            .directory()
            .join("stories")
            .join(self.namespace);
        std::fs::create_dir_all(&folder)?;
        let file = folder.join(name);
        std::fs::write(&file, content)?;
        file.to_str()
            .map(str::to_owned)
            .context("the path is not text")
    }

    /// The ready pods with this label, once there are this many and no other.
    pub(crate) fn ready_pods(&self, app: &str, count: usize) -> Result<Vec<Value>> {
        let selector = format!("app={app}");
        wait_for(&format!("{count} ready pods of {app}"), SOON, || {
            let list = self.kubectl.get(&["pods", "-l", &selector])?;
            let pods = items(&list);
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            ensure!(
                ready == count && pods.len() == count,
                "{ready} ready of {}: {}",
                pods.len(),
                phases(pods)
            );
            Ok(pods.to_vec())
        })
    }

    /// The addresses behind a Service, once there are this many.
    pub(crate) fn backends(&self, service: &str, count: usize) -> Result<Vec<String>> {
        let selector = format!("kubernetes.io/service-name={service}");
        wait_for(&format!("{count} endpoints of {service}"), SOON, || {
            let list = self.kubectl.get(&["endpointslices", "-l", &selector])?;
            let ready: Vec<String> = items(&list)
                .iter()
                .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
                .filter(|endpoint| endpoint["conditions"]["ready"] != false)
                .filter_map(|endpoint| endpoint["addresses"][0].as_str().map(str::to_owned))
                .collect();
            ensure!(ready.len() == count, "there are {ready:?}");
            Ok(ready)
        })
    }

    pub(crate) fn cluster_ip(&self, service: &str) -> Result<String> {
        let service = self.kubectl.get(&["service", service])?;
        text(&service, "/spec/clusterIP").map(str::to_owned)
    }

    pub(crate) fn node_port(&self, service: &str) -> Result<u64> {
        let service = self.kubectl.get(&["service", service])?;
        service["spec"]["ports"][0]["nodePort"]
            .as_u64()
            .with_context(|| format!("no nodePort in {service}"))
    }

    /// What a command in a pod prints, once it succeeds.
    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let arguments = [&["exec", pod, "--"], command].concat();
        wait_for(
            &format!("`{}` in {pod}", command.join(" ")),
            Duration::from_secs(20),
            || self.kubectl.run(&arguments),
        )
    }

    /// What a web server says to a pod.
    pub(crate) fn fetch(&self, pod: &str, url: &str) -> Result<String> {
        self.exec(pod, &["timeout", "3", "wget", "-q", "-O", "-", url])
    }
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn phases(pods: &[Value]) -> String {
    let each: Vec<String> = pods
        .iter()
        .map(|pod| {
            let states: Vec<&Value> = pod["status"]["containerStatuses"]
                .as_array()
                .map(|all| all.iter().map(|status| &status["state"]).collect())
                .unwrap_or_default();
            format!(
                "{} {} {states:?}",
                pod["metadata"]["name"], pod["status"]["phase"]
            )
        })
        .collect();
    each.join("; ")
}

/// Waits until a pod is ready.
pub(crate) fn await_ready(client: &Client, pod: &str) -> Result<Value> {
    wait_for(&format!("{pod} to be ready"), SOON, || {
        let found = client.get(&["pod", pod])?;
        ensure!(is_ready(&found), "{}", found["status"]);
        Ok(found)
    })
}

/// Waits until something is gone.
pub(crate) fn await_gone(client: &Client, what: &[&str]) -> Result<()> {
    wait_for(&format!("{} to be gone", what.join(" ")), SOON, || {
        let outcome = client.attempt(&[&["get"], what].concat())?;
        ensure!(
            outcome.stderr.contains("NotFound") || outcome.stderr.contains("not found"),
            "{}{}",
            outcome.stdout,
            outcome.stderr
        );
        Ok(())
    })
}
