//! Mounts below volumes, mounts that come later, and volumes that are no folders.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::harness::{IMAGE, Node, docker};

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn container(name: &str, script: &str, more: Value) -> Value {
    let mut c = json!({"name": name, "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["sh", "-c", script]});
    for (key, value) in more.as_object().into_iter().flatten() {
        c[key] = value.clone();
    }
    c
}

fn status<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let mut all = pod["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten();
    all.find(|s| s["name"] == container).unwrap_or(&Value::Null)
}

/// A folder whose mounts containers may see and make, until it is dropped.
struct Shared(tempfile::TempDir);

impl Shared {
    fn make() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let none = None::<&str>;
        mount(Some(dir.path()), dir.path(), none, MsFlags::MS_BIND, none).expect("root mounts");
        mount(none, dir.path(), none, MsFlags::MS_SHARED, none).expect("root shares");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A file system of its own at a folder in it, with a file.
    fn mount_below(&self, name: &str) {
        let at = self.path().join(name);
        std::fs::create_dir_all(&at).expect("a folder");
        mount(
            Some("tmpfs"),
            &at,
            Some("tmpfs"),
            MsFlags::MS_NOEXEC,
            None::<&str>,
        )
        .expect("root mounts");
        std::fs::write(at.join("there"), "").expect("written");
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
        }
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_mounts_may_be_so_throughout() {
    let Some(node) = Node::start().await else {
        return;
    };
    let host = Shared::make();
    host.mount_below("below");
    std::fs::write(host.path().join("file"), "").expect("written");
    let script = "for f in /v/x /v/below/x; do touch $f 2>/dev/null && echo $f; done; ls /v/below; \
        grep ' /v/below ' /proc/mounts | grep -c noexec";
    let at = |more: Value| {
        let mut mount = json!({"name": "v", "mountPath": "/v", "readOnly": true});
        for (key, value) in more.as_object().into_iter().flatten() {
            mount[key] = value.clone();
        }
        json!({"volumeMounts": [mount]})
    };
    let volumes = json!([{"name": "v", "hostPath": {"path": host.path()}}]);
    node.create(
        "reader",
        json!({"restartPolicy": "Never", "volumes": volumes, "containers": [
            container("top", script, at(json!({}))),
            container("all", script, at(json!({"recursiveReadOnly": "Enabled"}))),
            container("perhaps", script, at(json!({"recursiveReadOnly": "IfPossible"}))),
            container("file", "touch /v 2>/dev/null || echo refused",
                at(json!({"recursiveReadOnly": "Enabled", "subPath": "file"}))),
        ]}),
    );
    let wrong = json!({"recursiveReadOnly": "Enabled", "mountPropagation": "HostToContainer"});
    node.create(
        "wrong",
        json!({"volumes": volumes, "containers": [container("c", FOREVER, at(wrong))]}),
    );
    let pod = node
        .wait_pod("reader", "ended", |pod| {
            ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or_default())
        })
        .await;
    let modes = ["top", "all", "perhaps", "file"].map(|name| {
        let mode = status(&pod, name)["volumeMounts"][0]["recursiveReadOnly"].clone();
        (node.log(&pod, name), mode)
    });
    let expected = [
        ("/v/below/x\nthere\nx\n1", "Disabled"),
        ("there\nx\n1", "Enabled"),
        ("there\nx\n1", "Enabled"),
        ("refused", "Enabled"),
    ];
    for ((said, mode), (expected, expected_mode)) in modes.iter().zip(expected) {
        // The first one may write later than the others look.
        assert_eq!(said.replace("x\n", ""), expected.replace("x\n", ""));
        assert_eq!(mode, expected_mode);
    }
    node.wait_pod("wrong", "refused", |pod| {
        let waiting = &status(pod, "c")["state"]["waiting"];
        waiting["reason"] == "CreateContainerConfigError"
            && waiting["message"]
                == "volume \"v\" requested recursive read-only mode, but it is not compatible with \
                    propagation \"HostToContainer\""
    })
    .await;
    for name in ["reader", "wrong"] {
        node.delete(name);
        node.wait_gone(name).await;
    }
    assert!(host.path().join("below/there").exists(), "it was not ours");
    let left = std::fs::read_dir(node.dir.path().join("read-only-mounts"));
    assert_eq!(left.into_iter().flatten().count(), 0, "folders are left");
    let state = node.dir.path().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("readable");
    assert!(!mounts.contains(&state), "mounts are left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_propagate_as_far_as_a_pod_says() {
    let Some(node) = Node::start().await else {
        return;
    };
    let host = Shared::make();
    // What the API wants of a pod whose mounts go out, to be privileged, not every machine allows.
    let at = |propagation: &str| {
        json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}},
            "volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": propagation}]})
    };
    node.create(
        "mounting",
        json!({"volumes": [{"name": "v", "hostPath": {"path": host.path()}}], "containers": [
            container("none", FOREVER, at("None")),
            container("one-way", FOREVER, at("HostToContainer")),
            container("both", FOREVER, at("Bidirectional")),
        ]}),
    );
    let pod = node.wait_phase("mounting", "Running").await;
    let run = |name: &str, script: &str| {
        let id = status(&pod, name)["containerID"].as_str().expect("an id");
        docker(&[
            "exec",
            id.trim_start_matches("docker://"),
            "sh",
            "-c",
            script,
        ])
    };
    host.mount_below("from-host");
    for name in ["none", "one-way", "both"] {
        let script = format!(
            "mkdir /v/from-{name}; mount -t tmpfs x /v/from-{name}; touch /v/from-{name}/there"
        );
        run(name, &script);
    }
    let look = "cd /v; for d in from-*; do test -e $d/there && echo $d; done; true";
    assert_eq!(run("none", look), "from-none");
    assert_eq!(run("one-way", look), "from-both\nfrom-host\nfrom-one-way");
    assert_eq!(run("both", look), "from-both\nfrom-host");
    let seen = |name: &str| host.path().join(name).join("there").exists();
    assert!(seen("from-both") && !seen("from-none") && !seen("from-one-way"));
    node.delete("mounting");
    node.wait_gone("mounting").await;
    assert!(seen("from-host"), "it was not the pod's");
}

/// A file as a block device, until it is dropped.
struct Loop {
    device: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    fn make() -> Option<Self> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 20).expect("room");
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file.path())
            .output();
        let made = made.ok().filter(|made| made.status.success());
        let Some(made) = made else {
            eprintln!("skipped: there are no loop devices here");
            return None;
        };
        let device = String::from_utf8_lossy(&made.stdout).trim().into();
        Some(Self {
            device,
            _file: file,
        })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.device)
            .status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_volume_may_be_a_block_device() {
    let Some(node) = Node::start().await else {
        return;
    };
    let Some(disk) = Loop::make() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    for (name, path, mode) in [
        ("disk", disk.device.as_path(), "Block"),
        ("folder", folder.path(), "Filesystem"),
        ("no-disk", folder.path(), "Block"),
    ] {
        node.api.put(
            &format!("/api/v1/persistentvolumes/{name}"),
            json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Mi"},
                "volumeMode": mode, "local": {"path": path}}}),
        );
        node.api.put(
            &format!("/api/v1/persistentvolumeclaims/default/{name}"),
            json!({"metadata": {"name": name, "namespace": "default"},
                "spec": {"volumeName": name, "volumeMode": mode}, "status": {"phase": "Bound"}}),
        );
    }
    let volume = |claim: &str, read_only: bool| json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}]);
    let device = json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/xvda"}]});
    let folder = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let script = "test -b /dev/xvda && echo block; echo text | dd of=/dev/xvda 2>/dev/null || echo refused; \
        head -c 4 /dev/xvda";
    let once = |container: Value, volumes: Value| json!({"restartPolicy": "Never", "containers": [container], "volumes": volumes});
    let raw = container("c", script, device.clone());
    node.create("raw", once(raw.clone(), volume("disk", false)));
    let pod = node.wait_phase("raw", "Succeeded").await;
    assert_eq!(node.log(&pod, "c"), "block\ntext");
    let start = std::fs::read(&disk.device).expect("root reads it");
    assert!(start.starts_with(b"text\n"));
    node.create("raw-read-only", once(raw, volume("disk", true)));
    let pod = node.wait_phase("raw-read-only", "Succeeded").await;
    assert_eq!(node.log(&pod, "c"), "block\nrefused\ntext");
    let show = "touch /v/x 2>/dev/null || echo refused";
    let reads = container("c", show, folder.clone());
    node.create("read-only", once(reads, volume("folder", true)));
    let pod = node.wait_phase("read-only", "Succeeded").await;
    assert_eq!(node.log(&pod, "c"), "refused");

    for (name, uses, claim, why) in [
        (
            "mounted",
            &folder,
            "disk",
            "volume v has volumeMode Block, but is specified in volumeMounts",
        ),
        (
            "as-device",
            &device,
            "folder",
            "volume v has volumeMode Filesystem, but is specified in volumeDevices",
        ),
        ("no-device", &device, "no-disk", "is not a block device"),
    ] {
        let spec = once(container("c", "true", uses.clone()), volume(claim, false));
        node.create(name, spec);
        node.wait_event(name, "FailedMount", why).await;
        node.delete(name);
        node.wait_gone(name).await;
    }
    for name in ["raw", "raw-read-only", "read-only"] {
        node.delete(name);
        node.wait_gone(name).await;
    }
}
