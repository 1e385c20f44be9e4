//! What `up` ends with: nginx behind a Service, fetched in every way, and what to type next.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::process::wait_for;
use super::{State, images};
use crate::command::{Program, program};
use crate::{progress, workspace};

const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: nginx
  labels: {app: nginx}
spec:
  replicas: 2
  selector:
    matchLabels: {app: nginx}
  template:
    metadata:
      labels: {app: nginx}
    spec:
      containers:
      - name: nginx
        image: IMAGE
        ports:
        - containerPort: 80
        readinessProbe:
          httpGet: {path: /, port: 80}
          periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata:
  name: nginx
spec:
  type: NodePort
  selector: {app: nginx}
  ports:
  - port: 80
    targetPort: 80
"#;

const READY: Duration = Duration::from_secs(120);
const ANSWER: Duration = Duration::from_secs(30);

pub(super) fn run(state: &State) -> Result<()> {
    let image = if crate::command::find("apt-get").is_some() {
        images::ensure()?;
        images::NGINX
    } else {
        "nginx:stable-alpine"
    };
    let manifest = state.directory().join("quick-start.yaml");
    std::fs::write(&manifest, MANIFEST.replace("IMAGE", image).trim_start())?;
    progress::step("deploying nginx: 2 replicas and a Service", || {
        client(state)
            .args(["apply", "-f"])
            .arg(&manifest)
            .output()?;
        wait_for("2 ready replicas of nginx", READY, || {
            let deployment =
                get(state, &["deployment", "nginx"]).map_err(|error| format!("{error:#}"))?;
            match deployment["status"]["readyReplicas"].as_u64() {
                Some(2..) => Ok(()),
                _ => Err(format!("status {}", deployment["status"])),
            }
        })
    })?;

    let service = get(state, &["service", "nginx"])?;
    let cluster_ip = service["spec"]["clusterIP"]
        .as_str()
        .context("the Service has no clusterIP")?;
    let node_port = service["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .context("the Service has no nodePort")?;
    let node = state.nodes.first().context("a cluster has a node")?;

    let through_cluster_ip = format!("{cluster_ip}:80");
    let through_node_port = format!("{}:{node_port}", node.address);
    progress::step(
        &format!("fetching the page through the ClusterIP, http://{through_cluster_ip}/"),
        || fetch(&node.place(), &through_cluster_ip),
    )?;
    let (from, who) = if state.outside_namespace.is_some() {
        (state.outside(), "from outside the cluster")
    } else {
        (node.place(), "from this machine")
    };
    progress::step(
        &format!("fetching the page through the NodePort, http://{through_node_port}/, {who}"),
        || fetch(&from, &through_node_port),
    )?;

    progress::print(&next_steps(state, &through_cluster_ip, &through_node_port));
    Ok(())
}

fn fetch(place: &super::place::Place, address: &str) -> Result<()> {
    wait_for("the page", ANSWER, || {
        let page = place
            .program(std::env::current_exe().map_err(|error| error.to_string())?)
            .and_then(|program| program.arg("fetch").arg(address).output())
            .map_err(|error| format!("{error:#}"))?;
        if page.contains("nginx") {
            Ok(())
        } else {
            Err(page)
        }
    })
}

fn next_steps(state: &State, cluster_ip: &str, node_port: &str) -> String {
    let binaries = workspace::binaries();
    let kubeconfig = if state.isolated {
        format!("export KUBECONFIG={}", state.kubeconfig().display())
    } else {
        format!(
            "kubectl config use-context {}        # it is the current one already",
            super::kubeconfig::context(&state.name)
        )
    };
    let curl = match &state.outside_namespace {
        Some(namespace) if state.isolated => {
            format!("nsenter --net=/run/netns/{namespace} curl http://{node_port}/")
        }
        _ => format!("curl http://{node_port}/"),
    };
    format!(
        "\nThe cluster {name} runs: {nodes}, store {store}.\n\
         nginx has 2 replicas behind a Service: ClusterIP http://{cluster_ip}/, NodePort http://{node_port}/\n\n\
         What to type next:\n  \
         export PATH={binaries}:$PATH\n  \
         {kubeconfig}\n  \
         skep get pods -o wide                    # kubectl does the same\n  \
         {curl}\n  \
         skep scale deployment nginx --replicas=4\n  \
         skep set image deployment/nginx nginx={next}\n  \
         skep rollout status deployment/nginx\n  \
         skep logs deployment/nginx\n\n\
         Logs of the cluster itself: {logs}\n\
         To remove every trace of it: cargo xtask down{down}\n",
        name = state.name,
        nodes = match state.nodes.len() {
            1 => "1 node".to_owned(),
            count => format!("{count} nodes"),
        },
        store = state.store.name(),
        binaries = binaries.display(),
        next = images::NGINX_NEXT,
        logs = state.directory().join("logs").display(),
        down = if state.name == super::DEFAULT_NAME {
            String::new()
        } else {
            format!(" --name {}", state.name)
        },
    )
}

/// skep's own client as administrator of this cluster.
pub(super) fn client(state: &State) -> Program {
    program(workspace::binary("skep"))
        .arg("--kubeconfig")
        .arg(state.kubeconfig())
}

pub(super) fn get(state: &State, what: &[&str]) -> Result<Value> {
    let text = client(state)
        .arg("get")
        .args(what)
        .args(["-o", "json"])
        .output()?;
    serde_json::from_str(&text).context("`skep get -o json` printed no JSON")
}
