//! The real systemd-logind, on a bus of its own, asks for the machine's shutdown; what it would do then is seen here.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use skep_agent::kubelet::logind::{self, Logind};
use skep_agent::kubelet::shutdown::Periods;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use zbus::object_server::SignalEmitter;
use zbus::wire::{ObjectPath, OwnedObjectPath};

use crate::harness::{IMAGE, Node};

const LOGIND: &str = "/lib/systemd/systemd-logind";
const JOB: &str = "/org/freedesktop/systemd1/job/1";
const SOON: Duration = Duration::from_secs(20);

/// Ends with its owner, and whatever it started with it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// What logind asks of systemd.
struct Systemd {
    logind: Pid,
    units: mpsc::UnboundedSender<String>,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn subscribe(&self) {}

    fn start_unit(&self, name: String, _mode: &str) -> OwnedObjectPath {
        self.units.send(name).expect("the test goes on");
        ObjectPath::from_static_str_unchecked(JOB).into()
    }

    fn kill_unit(&self, name: &str, whom: &str, signal: i32) {
        assert_eq!((name, whom), ("systemd-logind.service", "main"));
        let signal = Signal::try_from(signal).expect("a signal");
        kill(self.logind, signal).expect("it runs");
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

/// What would be started.
struct PowerOff;

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl PowerOff {
    #[zbus(property)]
    fn load_state(&self) -> &str {
        "loaded"
    }
}

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn power_off(&self, interactive: bool) -> zbus::Result<()>;
    fn list_inhibitors(&self) -> zbus::Result<Vec<(String, String, String, String, u32, u32)>>;
    #[zbus(property(emits_changed_signal = "false"), name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> zbus::Result<u64>;
}

fn start_bus(dir: &Path) -> (Process, String) {
    let address = format!("unix:path={}/bus", dir.display());
    let conf = dir.join("bus.conf");
    let text = format!(
        "<busconfig><type>custom</type><listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
         <allow own=\"*\"/><allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>"
    );
    std::fs::write(&conf, text).expect("the folder is there");
    let bus = Command::new("dbus-daemon")
        .arg(format!("--config-file={}", conf.display()))
        .args(["--nofork", "--nopidfile", "--nosyslog"])
        .stderr(Stdio::null())
        .spawn()
        .expect("it is installed");
    (Process(bus), address)
}

/// It has no way to this machine's own power switch: that is systemd's, and the one it sees is the test's.
fn start_logind(address: &str, conf_dir: &Path) -> Process {
    let script = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd && \
         mount -t tmpfs tmpfs /etc/systemd && mkdir /etc/systemd/logind.conf.d && \
         mount --bind {} /etc/systemd/logind.conf.d && \
         exec setpriv --bounding-set -sys_boot --inh-caps -sys_boot {LOGIND}",
        conf_dir.display()
    );
    let logind = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(script)
        .env("DBUS_SYSTEM_BUS_ADDRESS", address)
        .stderr(Stdio::null())
        .spawn()
        .expect("unshare is here");
    Process(logind)
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    match tokio::time::timeout(SOON, found).await {
        Ok(found) => found,
        Err(_) => panic!("{what}: not in time"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machine_waits_for_its_pods() {
    let able = Path::new(LOGIND).exists()
        && Command::new("dbus-daemon")
            .arg("--version")
            .output()
            .is_ok();
    if !able {
        eprintln!("skipped: needs systemd-logind and dbus-daemon");
        return;
    }
    let Some(node) = Node::start().await else {
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let conf_dir = dir.path().join("logind.conf.d");
    std::fs::create_dir(&conf_dir).expect("a folder");
    let (_bus, address) = start_bus(dir.path());
    let connect = || zbus::connection::Builder::address(address.as_str());
    let client = until("the bus", async || connect().build().await.ok()).await;
    let logind = start_logind(&address, &conf_dir);
    let (units, mut started) = mpsc::unbounded_channel();
    let systemd = Systemd {
        logind: Pid::from_raw(logind.0.id().cast_signed()),
        units,
    };
    let path = "/org/freedesktop/systemd1";
    let systemd = connect()
        .name("org.freedesktop.systemd1")
        .serve_at(path, systemd)
        .serve_at(format!("{path}/unit/poweroff_2etarget"), PowerOff)
        .build()
        .await
        .expect("the name is free");
    let manager = ManagerProxy::new(&client).await.expect("a proxy");
    let locks = async || {
        let all = manager.list_inhibitors().await.ok()?;
        let own = all.iter().filter(|lock| lock.1 == "skep-agent");
        Some(
            own.map(|lock| (lock.0.clone(), lock.3.clone()))
                .collect::<Vec<_>>(),
        )
    };
    until("logind", locks).await;

    // A pod that takes a while to end, longer than logind waits of itself.
    let script = "trap 'sleep 7; exit 0' TERM; while :; do sleep 0.1; done";
    node.create(
        "slow",
        json!({"terminationGracePeriodSeconds": 30, "containers": [{"name": "c", "image": IMAGE,
            "imagePullPolicy": "Never", "command": ["sh", "-c", script]}]}),
    );
    node.wait_phase("slow", "Running").await;
    let ctx = node.ctx.clone().expect("runs");
    let seconds = Duration::from_secs;
    let periods = Periods::new(seconds(25), seconds(5)).expect("periods");
    let place = Logind {
        bus: Some(address.clone()),
        conf_dir: conf_dir.clone(),
    };
    let stop = CancellationToken::new();
    let _stops = stop.clone().drop_guard();
    tokio::spawn(logind::run(Arc::clone(&ctx), periods, place.clone(), stop));
    let shutdown_delay = [("shutdown".to_owned(), "delay".to_owned())];
    until("the lock", async || {
        locks().await.filter(|locks| *locks == shutdown_delay)
    })
    .await;
    until("the longer delay", async || {
        let granted = manager.inhibit_delay_max_usec().await;
        granted.ok().filter(|usec| *usec == 25_000_000)
    })
    .await;

    manager.power_off(false).await.expect("it is asked");
    until("the node says so", async || {
        ctx.shutdown.has_begun().then_some(())
    })
    .await;
    assert!(started.try_recv().is_err(), "the machine stops too early");
    let unit = tokio::time::timeout(SOON, started.recv()).await;
    assert_eq!(unit.ok().flatten().as_deref(), Some("poweroff.target"));
    let pod = node.wait_phase("slow", "Failed").await;
    assert_eq!(pod["status"]["reason"], "Terminated");
    let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(state["exitCode"], 0, "it was not left its time: {state}");

    // The machine goes on after all.
    let emitter = SignalEmitter::new(&systemd, path).expect("a path");
    let job = ObjectPath::from_static_str_unchecked(JOB);
    Systemd::job_removed(&emitter, 1, job, "poweroff.target", "failed")
        .await
        .expect("it is sent");
    until("the lock again", async || {
        locks().await.filter(|locks| *locks == shutdown_delay)
    })
    .await;
    assert!(!ctx.shutdown.has_begun());
    node.create(
        "late",
        json!({"containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["sh", "-c", "while :; do sleep 0.1; done"]}]}),
    );
    node.wait_phase("late", "Running").await;

    logind::clear(&place).expect("it is ours");
    let left = std::fs::read_dir(&conf_dir).expect("the folder is there");
    assert_eq!(left.count(), 0);
}
