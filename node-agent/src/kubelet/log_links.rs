//! `/var/log/pods` and `/var/log/containers` in the usual layout, so that log shippers find what containers say.
//!
//! ```text
//! pods/NAMESPACE_POD_UID/CONTAINER/N.log          -> Docker's own file (one JSON object a line)
//! containers/POD_NAMESPACE_CONTAINER-ID.log       -> the link above
//! ```
//!
//! Docker writes and rotates the files; only links are made here, so that logs are neither copied nor kept twice. What
//! there should be is a pure function of the pods' statuses; the folders are touched only where that has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Context, pod};

/// How late a link may be.
const PERIOD: Duration = Duration::from_secs(1);
const PODS: &str = "pods";
const CONTAINERS: &str = "containers";

/// Path below the log folder → where it leads.
type Links = BTreeMap<PathBuf, PathBuf>;

/// Keeps the links until `stop`.
pub async fn run(ctx: Arc<Context>, folder: PathBuf, stop: CancellationToken) {
    let mut made: Option<Links> = None;
    let mut files: Option<PathBuf> = None;
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        if files.is_none() {
            files = ctx
                .runtime
                .image_root()
                .await
                .map(|root| root.join("containers"));
        }
        let Some(files) = &files else { continue };
        let pods: Vec<Arc<Pod>> = ctx.pods.read().values().cloned().collect();
        let wanted = links(&pods, &folder, files);
        if made.as_ref() == Some(&wanted) {
            continue;
        }
        let outcome = match made.take() {
            Some(before) => apply(&folder, &before, &wanted),
            // What an agent before this one has left.
            None => found(&folder, files).and_then(|before| apply(&folder, &before, &wanted)),
        };
        match outcome {
            Ok(()) => made = Some(wanted),
            Err(e) => warn!(error = %e, "cannot link the logs of containers; will retry"),
        }
    }
}

/// Removes every link to a file of the Docker daemon whose data is below `root`.
///
/// # Errors
/// Of the file system.
pub fn clear(folder: &Path, root: &Path) -> io::Result<()> {
    let made = found(folder, &root.join("containers"))?;
    apply(folder, &made, &Links::new())
}

fn links(pods: &[Arc<Pod>], folder: &Path, files: &Path) -> Links {
    let mut links = Links::new();
    for pod in pods {
        let who = pod::identity(pod);
        let Some(status) = &pod.status else { continue };
        let all = [
            &status.init_container_statuses,
            &status.container_statuses,
            &status.ephemeral_container_statuses,
        ];
        for container in all.into_iter().flatten().flatten() {
            for (id, attempt) in attempts(container) {
                let name = &container.name;
                let log = PathBuf::from(PODS)
                    .join(format!("{}_{}_{}", who.namespace, who.name, who.uid))
                    .join(name)
                    .join(format!("{attempt}.log"));
                let plain = format!("{}_{}_{name}-{id}.log", who.name, who.namespace);
                links.insert(PathBuf::from(CONTAINERS).join(plain), folder.join(&log));
                links.insert(log, files.join(&id).join(format!("{id}-json.log")));
            }
        }
    }
    links
}

/// The ids of this container and of the one before it, with the number of each.
fn attempts(status: &ContainerStatus) -> Vec<(String, i32)> {
    let id = |text: Option<&str>| -> Option<String> {
        let (scheme, id) = text?.split_once("://")?;
        // It becomes part of a path.
        let plain = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric());
        (scheme == "docker" && plain).then(|| id.to_owned())
    };
    let current = id(status.container_id.as_deref());
    let last = status
        .last_state
        .as_ref()
        .and_then(|s| s.terminated.as_ref());
    let last = id(last.and_then(|t| t.container_id.as_deref()));
    let mut found = Vec::new();
    if let Some(last) = last.filter(|last| Some(last) != current.as_ref()) {
        found.push((last, (status.restart_count - 1).max(0)));
    }
    found.extend(current.map(|current| (current, status.restart_count)));
    found
}

fn apply(folder: &Path, before: &Links, wanted: &Links) -> io::Result<()> {
    for (path, target) in before {
        if wanted.get(path) != Some(target) {
            remove(&folder.join(path), folder)?;
        }
    }
    for (path, target) in wanted {
        if before.get(path) == Some(target) {
            continue;
        }
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match symlink(target, &path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // Only a link is ours to replace.
                if fs::read_link(&path)? != *target {
                    fs::remove_file(&path)?;
                    symlink(target, &path)?;
                }
            }
            other => other?,
        }
    }
    Ok(())
}

/// Removes a link, and the folders that it leaves empty.
fn remove(path: &Path, folder: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => fs::remove_file(path)?,
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let mut parent = path.parent();
    let keep: BTreeSet<PathBuf> = [PODS, CONTAINERS].map(|name| folder.join(name)).into();
    while let Some(empty) = parent.filter(|p| p.starts_with(folder) && !keep.contains(*p)) {
        // Not empty, or gone already.
        if fs::remove_dir(empty).is_err() {
            break;
        }
        parent = empty.parent();
    }
    Ok(())
}

/// The links below `folder` that lead to Docker's files, or to a link of ours.
fn found(folder: &Path, files: &Path) -> io::Result<Links> {
    let mut links = Links::new();
    let mut folders = vec![folder.join(PODS), folder.join(CONTAINERS)];
    while let Some(next) = folders.pop() {
        let entries = match fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path())?;
                let ours = target.starts_with(files) || target.starts_with(folder.join(PODS));
                if let (true, Ok(path)) = (ours, entry.path().strip_prefix(folder)) {
                    links.insert(path.to_path_buf(), target);
                }
            }
        }
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(restarts: i32, id: &str, last: Option<&str>) -> Arc<Pod> {
        let last = last.map(|id| {
            serde_json::json!({"terminated": {"exitCode": 1, "containerID": format!("docker://{id}")}})
        });
        let pod = serde_json::json!({
            "metadata": {"namespace": "default", "name": "web", "uid": "u1"},
            "status": {"containerStatuses": [{
                "name": "c", "ready": true, "restartCount": restarts, "image": "", "imageID": "",
                "containerID": format!("docker://{id}"), "lastState": last,
            }]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn links_follow_the_containers() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, files) = (dir.path().join("log"), dir.path().join("docker"));
        for id in ["aa", "bb"] {
            fs::create_dir_all(files.join(id)).unwrap();
            fs::write(files.join(id).join(format!("{id}-json.log")), id).unwrap();
        }
        let read = |path: &str| fs::read_to_string(folder.join(path));
        let first = links(&[pod(0, "aa", None)], &folder, &files);
        apply(&folder, &Links::new(), &first).unwrap();
        assert_eq!(read("pods/default_web_u1/c/0.log").unwrap(), "aa");
        assert_eq!(read("containers/web_default_c-aa.log").unwrap(), "aa");

        let second = links(&[pod(1, "bb", Some("aa"))], &folder, &files);
        apply(&folder, &first, &second).unwrap();
        assert_eq!(read("pods/default_web_u1/c/0.log").unwrap(), "aa");
        assert_eq!(read("pods/default_web_u1/c/1.log").unwrap(), "bb");
        assert_eq!(read("containers/web_default_c-bb.log").unwrap(), "bb");

        // Another agent finds them, and removes what is of no pod; a file is nobody's to remove.
        fs::write(folder.join("containers/other.log"), "kept").unwrap();
        let left = found(&folder, &files).unwrap();
        assert_eq!(left, second);
        apply(&folder, &left, &Links::new()).unwrap();
        assert!(!folder.join("pods/default_web_u1").exists());
        assert_eq!(found(&folder, &files).unwrap(), Links::new());
        assert_eq!(read("containers/other.log").unwrap(), "kept");
    }

    #[test]
    fn an_id_that_is_no_id_makes_no_path() {
        let pod = pod(0, "../../etc", None);
        assert_eq!(
            links(&[pod], Path::new("/log"), Path::new("/docker")),
            Links::new()
        );
    }
}
