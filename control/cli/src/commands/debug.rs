//! `skep debug`: a container with tools beside those of a pod, or on a node.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::pods::{attach_to, pod_of};
use crate::session::{PatchKind, Session, name_of};

/// Run a container with tools in a running pod (as an ephemeral container), or on a node.
///
/// Examples:
///   skep debug -it web-1 --image=busybox --target=web
///   skep debug -it node/node1 --image=busybox -- chroot /host sh
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Debug {
    /// POD, TYPE/NAME or node/NAME
    target: String,
    #[arg(long)]
    image: String,
    /// Name of the container (default: debugger-…, chosen freely)
    #[arg(short, long)]
    container: Option<String>,
    /// See the processes of this container of the pod
    #[arg(long = "target", value_name = "CONTAINER")]
    process_of: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// With a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// Attach to it (default: with -i)
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    attach: Option<bool>,
    #[arg(long, value_name = "POLICY")]
    image_pull_policy: Option<String>,
    /// KEY=VALUE for the environment (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// The command, behind --
    #[arg(last = true)]
    command: Vec<String>,
}

impl Debug {
    pub async fn run(self, session: &Session) -> Result<()> {
        let (namespace, pod, container) = match self.target.split_once('/') {
            Some(("node" | "nodes" | "no", node)) => self.on_node(session, node).await?,
            _ => self.in_pod(session).await?,
        };
        if !self.attach.unwrap_or(self.stdin) {
            return Ok(());
        }
        attach_to(session, &namespace, &pod, &container, self.stdin, self.tty).await
    }

    async fn in_pod(&self, session: &Session) -> Result<(String, String, String)> {
        let pod = pod_of(session, &self.target).await?;
        let name = name_of(&pod);
        let container = self.container(&unused_name(&pod))?;
        let container_name = name_of(&json!({"metadata": container}));
        let patch = json!({"spec": {"ephemeralContainers": [container]}});
        let path = format!(
            "/api/v1/namespaces/{}/pods/{name}/ephemeralcontainers",
            session.namespace
        );
        session.patch(&path, PatchKind::Strategic, &patch).await?;
        eprintln!("Defaulting debug container name to {container_name}.");
        Ok((session.namespace.clone(), name, container_name))
    }

    /// A pod with the node's namespaces, and its files below /host.
    async fn on_node(&self, session: &Session, node: &str) -> Result<(String, String, String)> {
        if self.process_of.is_some() {
            bail!("--target is for pods: a container on a node sees all of its processes");
        }
        session.get(&format!("/api/v1/nodes/{node}")).await?;
        let mut container = self.container("debugger")?;
        container["volumeMounts"] = json!([{"name": "host-root", "mountPath": "/host"}]);
        let container_name = name_of(&json!({"metadata": container}));
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": format!("node-debugger-{node}-")},
            "spec": {
                "nodeName": node,
                "hostNetwork": true,
                "hostPID": true,
                "hostIPC": true,
                "restartPolicy": "Never",
                "tolerations": [{"operator": "Exists"}],
                "volumes": [{"name": "host-root", "hostPath": {"path": "/"}}],
                "containers": [container],
            },
        });
        let path = format!("/api/v1/namespaces/{}/pods", session.namespace);
        let name = name_of(&session.create(&path, &pod).await?);
        eprintln!("Creating debugging pod {name} with container {container_name} on node {node}.");
        Ok((session.namespace.clone(), name, container_name))
    }

    fn container(&self, name: &str) -> Result<Value> {
        let mut environment = Vec::new();
        for pair in &self.env {
            let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty())
            else {
                bail!("--env wants KEY=VALUE, not {pair:?}");
            };
            environment.push(json!({"name": name, "value": value}));
        }
        let mut container = json!({
            "name": self.container.as_deref().unwrap_or(name),
            "image": self.image,
            "stdin": self.stdin,
            "tty": self.tty,
            "terminationMessagePolicy": "File",
        });
        if !environment.is_empty() {
            container["env"] = environment.into();
        }
        if !self.command.is_empty() {
            container["command"] = json!(self.command);
        }
        if let Some(policy) = &self.image_pull_policy {
            container["imagePullPolicy"] = json!(policy);
        }
        if let Some(target) = &self.process_of {
            container["targetContainerName"] = json!(target);
        }
        Ok(container)
    }
}

/// `debugger-1`, or the first of its kind that the pod has not had: ephemeral containers are never removed.
fn unused_name(pod: &Value) -> String {
    let taken: Vec<&str> = pod["spec"]["ephemeralContainers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect();
    (1..=taken.len() + 1)
        .map(|number| format!("debugger-{number}"))
        .find(|name| !taken.contains(&name.as_str()))
        .unwrap_or_else(|| "debugger".into())
}
