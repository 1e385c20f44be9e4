//! Pods that a file of this node describes, and how the API shows them.
//!
//! ```text
//! DIR/x.yaml ── read ─▶ static pod (uid = hash) ── worker, as any other
//!                        └─ mirror pod in the API (annotation config.mirror = hash)
//! ```
//! The file is what counts: a mirror that is deleted comes back, and one whose file is gone or has
//! changed is removed. Upstream: `pkg/kubelet/config/common.go`, `pkg/kubelet/pod/mirror_client.go`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use sha2::{Digest, Sha256};
use skep_api::defaults::pod_spec::set_pod_defaults;
use tracing::warn;

use super::pod::CONFIG_SOURCE;

const CONFIG_HASH: &str = "kubernetes.io/config.hash";
const CONFIG_SEEN: &str = "kubernetes.io/config.seen";
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// The pods of a folder by uid. What is no pod is left out, with a word in the log.
pub fn read(folder: &Path, node: &str) -> BTreeMap<String, Pod> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden || !path.is_file() {
            continue;
        }
        let pod = fs::read_to_string(&path)
            .map_err(|e| e.to_string())
            .and_then(|text| parse(&text, &path, node));
        match pod {
            Ok(pod) => {
                out.insert(pod.uid().unwrap_or_default(), pod);
            }
            Err(e) => warn!(file = %path.display(), error = e, "this file is no static pod"),
        }
    }
    out
}

fn parse(text: &str, path: &Path, node: &str) -> Result<Pod, String> {
    // By way of JSON, which the agent reads pods from anyway: to read them from YAML too would take megabytes of code.
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let mut pod: Pod = serde_json::from_str(&value.to_string()).map_err(|e| e.to_string())?;
    let name = pod.name_any();
    let containers = pod.spec.as_ref().map_or(0, |s| s.containers.len());
    if name.is_empty() || containers == 0 {
        return Err("a pod needs a name and containers".into());
    }
    let mut digest = Sha256::new();
    digest.update(format!("host:{node}\nfile:{}\n", path.display()));
    digest.update(serde_json::to_vec(&pod).map_err(|e| e.to_string())?);
    let hash: String = digest
        .finalize()
        .iter()
        .take(16)
        .map(|b| format!("{b:02x}"))
        .collect();
    let meta = &mut pod.metadata;
    meta.uid = Some(meta.uid.clone().filter(|u| !u.is_empty()).unwrap_or(hash));
    meta.name = Some(format!("{name}-{}", node.to_lowercase()));
    meta.namespace = Some(
        meta.namespace
            .clone()
            .filter(|n| !n.is_empty())
            .unwrap_or_else(|| "default".into()),
    );
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.into(), meta.uid.clone().unwrap_or_default());
    annotations.insert(CONFIG_SOURCE.into(), "file".into());
    annotations.insert(CONFIG_SEEN.into(), Timestamp::now().to_string());
    set_pod_defaults(&mut pod);
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node.into());
    // A taint cannot drive out what the node itself starts again.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Default::default()
    });
    pod.status = Some(PodStatus {
        phase: Some("Pending".into()),
        ..Default::default()
    });
    Ok(pod)
}

pub fn is_mirror(pod: &Pod) -> bool {
    pod.annotations().contains_key(CONFIG_MIRROR)
}

fn hash(pod: &Pod) -> Option<&String> {
    pod.annotations().get(CONFIG_HASH)
}

/// The uid of the static pod that a mirror shows.
pub fn hash_of_mirror(mirror: &Pod) -> Option<&String> {
    mirror.annotations().get(CONFIG_MIRROR)
}

/// Whether the mirror shows this very version of the pod.
pub fn is_mirror_of(mirror: &Pod, pod: &Pod) -> bool {
    hash_of_mirror(mirror) == hash(pod) && mirror.metadata.deletion_timestamp.is_none()
}

/// What the API is given to show.
pub fn mirror(pod: &Pod, node: &Node) -> Pod {
    let mut annotations = pod.annotations().clone();
    if let Some(hash) = hash(pod) {
        annotations.insert(CONFIG_MIRROR.into(), hash.clone());
    }
    Pod {
        metadata: ObjectMeta {
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            labels: pod.metadata.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: node.name_any(),
                uid: node.uid().unwrap_or_default(),
                controller: Some(true),
                ..Default::default()
            }]),
            ..Default::default()
        },
        spec: pod.spec.clone(),
        status: None,
    }
}

/// The pod with what the API knows of it.
pub fn with_mirror(pod: &Pod, mirror: Option<&Pod>) -> Pod {
    let mut pod = pod.clone();
    if let Some(mirror) = mirror {
        pod.status.clone_from(&mirror.status);
        pod.metadata
            .resource_version
            .clone_from(&mirror.metadata.resource_version);
        pod.metadata.generation = mirror.metadata.generation;
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_pod_of_this_node() {
        let dir = tempfile::tempdir().unwrap();
        let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: c\n    image: i\n";
        fs::write(dir.path().join("web.yaml"), text).unwrap();
        fs::write(dir.path().join(".hidden"), text).unwrap();
        fs::write(dir.path().join("bad.yaml"), "kind: [").unwrap();
        let first = read(dir.path(), "Node1");
        let [(uid, pod)] = &first.iter().collect::<Vec<_>>()[..] else {
            panic!("{first:?}");
        };
        assert_eq!(pod.name_any(), "web-node1");
        assert_eq!(pod.namespace().as_deref(), Some("default"));
        assert!(crate::kubelet::pod::is_static(pod));
        assert_eq!(read(dir.path(), "Node1").keys().collect::<Vec<_>>(), [*uid]);

        let mirror = mirror(pod, &Node::default());
        assert!(is_mirror(&mirror) && is_mirror_of(&mirror, pod));
        fs::write(
            dir.path().join("web.yaml"),
            text.replace("image: i", "image: j"),
        )
        .unwrap();
        let second = read(dir.path(), "Node1");
        let changed = second.values().next().unwrap();
        assert_ne!(
            changed.uid().as_ref(),
            Some(*uid),
            "a changed file is another pod"
        );
        assert!(!is_mirror_of(&mirror, changed));
    }
}
