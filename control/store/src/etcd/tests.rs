use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Instant,
};

use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};

use super::*;
use crate::conformance;

/// A real etcd on a loopback port with a folder of its own.
struct Etcd {
    folder: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    process: Child,
}

impl Etcd {
    /// `None`, with the reason printed, where there is no etcd to run.
    fn start() -> Option<Self> {
        let Some(binary) = find_etcd() else {
            eprintln!("SKIPPED: no `etcd` in PATH; apt-get install etcd-server");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let (client_port, peer_port) = (free_port(), free_port());
        let process = spawn(&binary, &folder, client_port, peer_port);
        Some(Self {
            folder,
            client_port,
            peer_port,
            process,
        })
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn restart(&mut self) {
        let binary = find_etcd().unwrap();
        self.process = spawn(&binary, &self.folder, self.client_port, self.peer_port);
    }

    async fn connect(&self) -> EtcdStore {
        let endpoints = vec![format!("http://127.0.0.1:{}", self.client_port)];
        let options = Options {
            endpoints,
            ..Default::default()
        };
        let started = Instant::now();
        loop {
            match EtcdStore::connect(options.clone()).await {
                Ok(store) => return store,
                Err(error) if started.elapsed() > Duration::from_secs(20) => panic!("{error:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn find_etcd() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join("etcd"))
        .find(|file| file.is_file())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn spawn(binary: &PathBuf, folder: &tempfile::TempDir, client: u16, peer: u16) -> Child {
    let (client, peer) = (
        format!("http://127.0.0.1:{client}"),
        format!("http://127.0.0.1:{peer}"),
    );
    Command::new(binary)
        .env_clear()
        .arg("--data-dir")
        .arg(folder.path())
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(["--logger", "zap", "--log-level", "error"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn conforms() {
    let Some(etcd) = Etcd::start() else { return };
    let store = Arc::new(etcd.connect().await);
    conformance::check_all(store.clone()).await;

    let mut runner = TestRunner::deterministic();
    let mut store: Arc<dyn Store> = store;
    for _ in 0..5 {
        let steps = conformance::steps()
            .new_tree(&mut runner)
            .unwrap()
            .current();
        conformance::check_against_model(store, &steps, |store| store).await;
        store = Arc::new(etcd.connect().await);
    }
}

#[tokio::test]
async fn survives_a_restart_of_etcd() {
    let Some(mut etcd) = Etcd::start() else {
        return;
    };
    let store = etcd.connect().await;
    let put = |value: &'static str| {
        vec![Op::Put {
            key: "/a".into(),
            value: Bytes::from_static(value.as_bytes()),
            ttl: None,
        }]
    };
    let before = store.txn(vec![], put("1")).await.unwrap();
    let TxnOutcome::Committed { revision } = before else {
        panic!("{before:?}")
    };
    let mut watch = store.watch("/", revision).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().events.len(), 1);
    etcd.kill();
    let error = watch.next().await.unwrap().unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(watch.next().await.is_none());
    let error = store.txn(vec![], put("2")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    etcd.restart();
    let started = Instant::now();
    while let Err(error) = store.get("/a").await {
        assert!(started.elapsed() < Duration::from_secs(20), "{error:?}");
    }
    let after = store.txn(vec![], put("3")).await.unwrap();
    let TxnOutcome::Committed { revision: last } = after else {
        panic!("{after:?}")
    };
    let mut watch = store.watch("/", revision + 1).await.unwrap();
    let mut seen = 0;
    while seen < last {
        seen = watch.next().await.unwrap().unwrap().revision;
    }
    assert_eq!(seen, last);
}

#[tokio::test]
async fn says_that_nobody_answers() {
    let endpoints = vec![format!("http://127.0.0.1:{}", free_port())];
    let error = EtcdStore::connect(Options {
        endpoints,
        ..Default::default()
    })
    .await
    .err()
    .unwrap();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
}

#[test]
fn prefixes_end() {
    assert_eq!(end_of_prefix("/a/"), b"/a0");
    assert_eq!(end_of_prefix(""), [0]);
}
