//! One node of its own for each test: scope, cgroup and folder are unique and removed afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node as K8sNode;
use serde_json::{Value, json};
use skep_agent::kubelet::volumes::{MountNamespace, Volumes};
use skep_agent::kubelet::{
    Config, Context, Kubelet, cgroup, events, eviction, logs, node, objects, own_node, pulled,
    watches,
};
use skep_agent::network::HollowNetwork;
use skep_agent::runtime::Runtime;
use skep_agent::runtime::docker::DockerRuntime;
use skep_client::{Informer, Informers};
use tokio_util::sync::CancellationToken;

use crate::api::FakeApi;

pub const IMAGE: &str = "skep-kubelet-test/busybox:1";
pub const SOCKET: &str = "/var/run/docker.sock";
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    pub api: FakeApi,
    pub docker: DockerRuntime,
    pub name: String,
    pub dir: tempfile::TempDir,
    pub socket: PathBuf,
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
    /// Of the agent that runs.
    pub ctx: Option<Arc<Context>>,
    thresholds: Vec<eviction::plan::Threshold>,
    /// All that the agent ever hears of its node unasked.
    known: Option<K8sNode>,
}

pub fn docker(arguments: &[&str]) -> String {
    docker_at(SOCKET.as_ref(), arguments)
}

pub fn docker_at(socket: &Path, arguments: &[&str]) -> String {
    let output = Command::new("docker")
        .arg("-H")
        .arg(format!("unix://{}", socket.display()))
        .args(arguments)
        .output()
        .expect("docker runs");
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

/// Whether Docker may give a container all there is: not where it has not got all itself.
pub fn may_be_privileged() -> bool {
    ensure_image();
    let run = [
        "run",
        "--rm",
        "--privileged",
        "--network",
        "none",
        IMAGE,
        "true",
    ];
    let able = Command::new("docker").args(run).output();
    let able = able.is_ok_and(|output| output.status.success());
    if !able {
        eprintln!("no privileged container: Docker starts none here");
    }
    able
}

/// A static busybox with its applets, made from the machine's own.
pub fn ensure_image() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| import_image(SOCKET.as_ref()));
}

fn import_image(socket: &Path) {
    let mut tar = tar::Builder::new(Vec::new());
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut header = tar::Header::new_gnu();
    header.set_size(busybox.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "bin/busybox", busybox.as_slice())
        .expect("in memory");
    for applet in [
        "sh", "sleep", "cat", "echo", "kill", "ls", "id", "test", "true", "false", "stat", "nc",
        "httpd", "wget", "hostname", "ps", "mount", "grep", "touch", "date", "stty", "tar", "mv",
        "readlink",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")
            .expect("in memory");
    }
    for folder in ["tmp/", "etc/", "proc/", "sys/", "dev/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_data(&mut header, folder, std::io::empty())
            .expect("in memory");
    }
    // A user whom only the image knows, and a group that it is in.
    for (path, text) in [
        (
            "etc/passwd",
            "root:x:0:0::/:/bin/sh\nfred:x:1100:1500::/:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\nown:x:1500:\nmore:x:50000:fred\n"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, text.as_bytes())
            .expect("in memory");
    }
    let bytes = tar.into_inner().expect("in memory");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("written");
    docker_at(
        socket,
        &[
            "import",
            "-c",
            "CMD [\"sleep\",\"1000000\"]",
            &file.path().to_string_lossy(),
            IMAGE,
        ],
    );
}

impl Node {
    /// `None` when there is no Docker here.
    pub async fn start() -> Option<Self> {
        let able = nix::unistd::geteuid().is_root()
            && Command::new("docker")
                .arg("version")
                .output()
                .is_ok_and(|o| o.status.success());
        if !able {
            eprintln!("skipped: needs root and a Docker daemon");
            return None;
        }
        ensure_image();
        Some(Self::start_at(SOCKET.as_ref()).await)
    }

    pub async fn start_at(socket: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = format!("kubelet-test-{}-{number}", std::process::id());
        let dir = tempfile::tempdir().expect("a folder");
        let docker = DockerRuntime::connect(socket, &name)
            .await
            .expect("docker answers");
        docker
            .ensure_pause_image()
            .await
            .expect("the pause image loads");
        let mut node = Self {
            api: FakeApi::new(),
            docker,
            name,
            dir,
            socket: socket.to_path_buf(),
            stop: CancellationToken::new(),
            task: None,
            ctx: None,
            thresholds: Vec::new(),
            known: None,
        };
        node.run();
        node
    }

    /// The same node, which from now on finds that it runs short of something.
    pub async fn run_short(&mut self, thresholds: &str) {
        self.thresholds = eviction::plan::parse(thresholds).expect("thresholds");
        self.restart().await;
    }

    pub fn log_dir(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn config(&self) -> Config {
        Config {
            node_name: self.name.clone(),
            node_ip: [192, 0, 2, 1].into(),
            state_dir: self.dir.path().to_path_buf(),
            cgroup_parent: format!("/skep/{}", self.name),
            cluster_dns: Some([10, 96, 0, 10].into()),
            cluster_domain: "cluster.local".into(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            port: 0,
            max_pods: 110,
            pod_max_pids: Some(100),
            static_pods: Some(self.dir.path().join("manifests")),
        }
    }

    pub fn run(&mut self) {
        let client = self.api.client();
        let stop = CancellationToken::new();
        let config = self.config();
        let objects = objects::Objects::new(client.clone());
        let ctx = Arc::new(Context {
            recorder: events::Recorder::start(client.clone(), &self.name),
            runtime: Arc::new(self.docker.clone()),
            runtime_name: "docker",
            network: Arc::new(HollowNetwork::new()),
            volumes: Some(Volumes::new(
                self.dir.path(),
                objects.clone(),
                MountNamespace::own(),
            )),
            objects,
            logs: Some(logs::Logs::start(
                &self.log_dir(),
                self.dir.path(),
                logs::Rotation {
                    max_size: 64 << 10,
                    max_files: 3,
                },
            )),
            watches: Some(watches::Watches::new(client.clone())),
            cgroups: Some(cgroup::Cgroups::discover()),
            services: None,
            endpoint_slices: None,
            host_ips: vec![config.node_ip],
            allocatable: parking_lot::RwLock::new(node::capacity(&config)),
            reserved: Default::default(),
            thresholds: Vec::new(),
            memory_capacity: 1 << 34,
            starts: Context::starts(),
            creates: Context::starts(),
            desk: Default::default(),
            node: own_node::OwnNode::new(
                client.clone(),
                &self.name,
                match &self.known {
                    Some(known) => Informer::fixed([known.clone()]),
                    None => Informers::new(client.clone(), stop.clone()).only(&self.name),
                },
            ),
            evictions: Default::default(),
            shutdown: Default::default(),
            layers: Default::default(),
            accounts: Default::default(),
            pulled: Some(pulled::Pulled::open(self.dir.path())),
            counters: Default::default(),
            probes: Default::default(),
            pods: parking_lot::RwLock::default(),
            client,
            config,
        });
        self.stop = stop;
        let settings = eviction::Settings {
            ooms: self.docker.ooms(),
            thresholds: self.thresholds.clone(),
            period: std::time::Duration::from_millis(300),
        };
        tokio::spawn(eviction::run(ctx.clone(), settings, self.stop.clone()));
        self.ctx = Some(ctx.clone());
        self.task = Some(tokio::spawn(Kubelet::new(ctx).run(self.stop.clone())));
    }

    /// The agent dies and comes back; containers go on.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.run();
    }

    /// The agent dies.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            task.await.expect("the kubelet ends");
        }
        if let Some(logs) = self.ctx.take().as_ref().and_then(|ctx| ctx.logs.as_ref()) {
            // Two agents would write the same files.
            logs.stop().await;
        }
    }

    /// Somebody writes the node's object.
    pub fn put_node(&self, node: Value) {
        let mut object = node;
        object["apiVersion"] = json!("v1");
        object["kind"] = json!("Node");
        object["metadata"]["name"] = json!(self.name);
        self.api
            .put(&format!("/api/v1/nodes/{}", self.name), object);
    }

    /// The same node, whose watch of its own object has stopped at this one.
    pub async fn fall_behind(&mut self, node: Value) {
        let mut object = node;
        object["metadata"]["name"] = json!(self.name);
        self.known = Some(serde_json::from_value(object).expect("a node"));
        self.restart().await;
    }

    /// Waits until the agent knows of its node what `check` looks for.
    pub async fn wait_node(&self, what: &str, check: impl Fn(&K8sNode) -> bool) {
        self.wait(&format!("node {what}"), || {
            let node = self.ctx.as_ref().and_then(|ctx| ctx.node.watched());
            match &node {
                Some(node) if check(node) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    pub fn path(&self, pod: &str) -> String {
        format!("/api/v1/pods/default/{pod}")
    }

    pub fn create(&self, name: &str, spec: Value) -> String {
        let mut spec = spec;
        spec["nodeName"] = json!(self.name);
        if spec["terminationGracePeriodSeconds"].is_null() {
            spec["terminationGracePeriodSeconds"] = json!(1);
        }
        for list in ["initContainers", "containers"] {
            let containers = spec[list].as_array_mut().into_iter().flatten();
            for resources in containers.filter_map(|c| c.get_mut("resources")) {
                // As the API does it: what is limited is asked for.
                let limits = resources["limits"].as_object().cloned().unwrap_or_default();
                for (name, limit) in limits {
                    if resources["requests"][&name].is_null() {
                        resources["requests"][&name] = limit;
                    }
                }
            }
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
            "spec": spec, "status": {"phase": "Pending"}});
        let made = self.api.put(&self.path(name), pod);
        made["metadata"]["uid"].as_str().expect("a uid").to_string()
    }

    pub fn delete(&self, name: &str) {
        let deleted = self.api.change(&self.path(name), |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            let grace = pod["spec"]["terminationGracePeriodSeconds"].clone();
            pod["metadata"]["deletionGracePeriodSeconds"] = grace;
        });
        deleted.expect("the pod exists");
    }

    /// Waits until `check` gives something, and says what was seen last if it never does.
    pub async fn wait<T>(&self, what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
        let begun = Instant::now();
        loop {
            match check() {
                Ok(found) => return found,
                Err(seen) if begun.elapsed() > PATIENCE => panic!("no {what}; last seen: {seen}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    pub async fn wait_pod(&self, name: &str, what: &str, check: impl Fn(&Value) -> bool) -> Value {
        self.wait(&format!("{name} {what}"), || {
            match self.api.get(&self.path(name)) {
                Some(pod) if check(&pod) => Ok(pod),
                Some(pod) => Err(pod["status"].to_string()),
                None => Err("no such pod".into()),
            }
        })
        .await
    }

    pub async fn wait_phase(&self, name: &str, phase: &str) -> Value {
        self.wait_pod(name, phase, |pod| pod["status"]["phase"] == phase)
            .await
    }

    pub async fn wait_gone(&self, name: &str) {
        self.wait(&format!("end of {name}"), || {
            match self.api.get(&self.path(name)) {
                None => Ok(()),
                Some(pod) => Err(pod["status"].to_string()),
            }
        })
        .await;
    }

    pub async fn wait_event(&self, pod: &str, reason: &str, text: &str) {
        self.wait(&format!("event {reason} {text}"), || {
            let all = self.api.list("/api/v1/events/default/");
            let of: Vec<&Value> = all
                .iter()
                .filter(|e| e["involvedObject"]["name"] == pod)
                .collect();
            let hit = of.iter().any(|e| {
                e["reason"] == reason && e["message"].as_str().unwrap_or_default().contains(text)
            });
            let seen = || {
                of.iter()
                    .map(|e| format!("{} {}", e["reason"], e["message"]))
                    .collect::<Vec<_>>()
                    .join("; ")
            };
            if hit { Ok(()) } else { Err(seen()) }
        })
        .await;
    }

    /// What a container of a pod has printed.
    pub fn log(&self, pod: &Value, container: &str) -> String {
        let lists = ["initContainerStatuses", "containerStatuses"];
        let statuses = lists
            .iter()
            .flat_map(|list| pod["status"][list].as_array().into_iter().flatten());
        let status = statuses
            .into_iter()
            .find(|s| s["name"] == container)
            .expect("such a container");
        let id = status["containerID"].as_str().expect("it has run");
        docker_at(&self.socket, &["logs", id.trim_start_matches("docker://")])
    }

    /// Changes the stored object of a pod.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = self.api.get(&self.path(name)).expect("the pod exists");
        change(&mut pod);
        self.api.put(&self.path(name), pod);
    }

    pub async fn containers(&self) -> usize {
        self.docker.list().await.expect("docker lists").len()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
        let label = format!("label=io.skep.scope={}", self.name);
        let host = format!("unix://{}", self.socket.display());
        // The kubelet may be about to remove some of them too.
        for _ in 0..100 {
            let ids = docker_at(&self.socket, &["ps", "-aq", "--filter", &label]);
            if ids.is_empty() {
                break;
            }
            let _ = Command::new("docker")
                .args(["-H", &host, "rm", "-f"])
                .args(ids.split_whitespace())
                .output();
        }
        let group = format!("/skep/{}", self.name);
        let _ = cgroup::Cgroups::discover().remove(&group);
    }
}

/// A Docker daemon of the test's own, which it may kill.
pub struct Daemon {
    dir: tempfile::TempDir,
    child: std::process::Child,
}

impl Daemon {
    /// `None` when there is no `dockerd` here.
    pub fn start() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || Command::new("dockerd").arg("-v").output().is_err()
        {
            eprintln!("skipped: needs root and dockerd");
            return None;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let child = Self::spawn(dir.path());
        let daemon = Self { dir, child };
        daemon.wait();
        import_image(&daemon.socket());
        Some(daemon)
    }

    fn spawn(dir: &Path) -> std::process::Child {
        let log = std::fs::File::create(dir.join("log")).expect("a log");
        let path = |name: &str| dir.join(name).display().to_string();
        Command::new("dockerd")
            .args(["--iptables=false", "--ip-masq=false", "--bridge=none"])
            .args(["--live-restore", "--max-download-attempts=1"])
            .args(["--data-root", &path("data")])
            .args(["--exec-root", &path("exec"), "--pidfile", &path("pid")])
            .args(["-H", &format!("unix://{}", path("sock"))])
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("dockerd starts")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    fn wait(&self) {
        let begun = Instant::now();
        let answers = || {
            let host = format!("unix://{}", self.socket().display());
            let version = Command::new("docker")
                .args(["-H", &host, "version"])
                .output();
            version.is_ok_and(|o| o.status.success())
        };
        while !answers() {
            let log = || std::fs::read_to_string(self.dir.path().join("log"));
            assert!(begun.elapsed() < PATIENCE, "no dockerd: {:?}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("dockerd runs");
        self.child.wait().expect("it ended");
    }

    pub fn restart(&mut self) {
        // Its predecessor could not remove it.
        let _ = std::fs::remove_file(self.dir.path().join("pid"));
        self.child = Self::spawn(self.dir.path());
        self.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // An orderly end takes its containerd along.
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGTERM,
            );
        }
        let _ = self.child.wait();
    }
}
