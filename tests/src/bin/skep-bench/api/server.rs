//! A `skep-control --roles api` of our own, and what it costs.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use skep_tests::wait::wait_for;
use xtask::cluster::Store;
use xtask::workspace;

use super::connection::{Connection, TOKEN};
use crate::memory;

const READY: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    /// `None` between a kill and the next start.
    child: Option<Child>,
    etcd: Option<Child>,
    etcd_port: u16,
    store: Store,
    address: SocketAddr,
    plain: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    data: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(store: Store) -> Result<Self> {
        let data = tempfile::tempdir()?;
        let etcd_port = free_port()?;
        let etcd = if store == Store::Etcd {
            Some(start_etcd(data.path(), etcd_port)?)
        } else {
            None
        };
        std::fs::write(
            data.path().join("tokens.csv"),
            format!("{TOKEN},admin,1,\"system:masters\"\n"),
        )?;
        let no_roots = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let mut server = Self {
            child: None,
            etcd,
            etcd_port,
            store,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
            plain: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
            tls: Arc::new(no_roots),
            data,
        };
        server.run()?;
        let admin = server.data.path().join("control/admin.kubeconfig");
        // The sockets are there before the server is; the file comes with the server.
        let kubeconfig = wait_for("skep-control to write its kubeconfig", READY, || {
            Ok(std::fs::read(&admin)?)
        })?;
        let kubeconfig: Value = serde_json::from_slice(&kubeconfig)?;
        let encoded = kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"]
            .as_str()
            .context("no certificate authority in the kubeconfig")?;
        let certificate = base64::engine::general_purpose::STANDARD.decode(encoded)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&certificate)?)?;
        let mut tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        server.tls = Arc::new(tls);
        Ok(server)
    }

    /// Starts it over the data that is there, and waits until it is ready.
    pub(crate) fn run(&mut self) -> Result<()> {
        let data = self.data.path();
        let tokens = data.join("tokens.csv");
        let (store, etcd_port) = (self.store, self.etcd_port);
        let (address, plain) = (self.address, self.plain);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(data.join("log"))?;
        let child = Command::new(workspace::binary("skep-control"))
            .arg("--data-dir")
            .arg(data.join("control"))
            .arg("--token-auth-file")
            .arg(&tokens)
            .args(["--roles", "api", "--advertise-address", "127.0.0.1"])
            .args(["--store", store.name()])
            .args(["--listen", &address.to_string()])
            .args(["--listen-plain", &plain.to_string()])
            .args(["--etcd-endpoints", &format!("http://127.0.0.1:{etcd_port}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start skep-control")?;
        self.child = Some(child);
        for address in [address, plain] {
            wait_for("skep-control to listen", READY, || {
                Ok(std::net::TcpStream::connect(address).map(drop)?)
            })?;
        }
        Ok(())
    }

    /// `kill -9`
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    pub(crate) fn store_bytes(&self) -> Result<u64> {
        let file = self.data.path().join("control/skep.redb");
        Ok(std::fs::metadata(file)?.len())
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("it does not run")?.id())
    }

    pub(crate) async fn connect(&self, secure: bool) -> Result<Connection> {
        if secure {
            Connection::tls(self.address, Arc::clone(&self.tls)).await
        } else {
            Connection::plain(self.plain).await
        }
    }

    /// `None`: this server keeps its objects itself.
    pub(super) fn etcd_endpoint(&self) -> Option<String> {
        let port = self.etcd_port;
        self.etcd
            .as_ref()
            .map(|_| format!("http://127.0.0.1:{port}"))
    }

    pub(super) fn memory_mib(&self) -> Result<f64> {
        memory::resident_mib(i32::try_from(self.pid()?)?)
    }

    /// What all its threads ran so far; the same however busy the machine is, unlike requests per second.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid()?))?;
        let mut ns = 0;
        for task in tasks {
            // A thread may end meanwhile.
            let Ok(statistics) = std::fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            let ran = statistics.split_whitespace().next();
            ns += ran.context("an empty schedstat")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(ns))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in [self.child.as_mut(), self.etcd.as_mut()]
            .into_iter()
            .flatten()
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_etcd(data: &Path, port: u16) -> Result<Child> {
    let program = xtask::command::find("etcd").context("etcd is not installed")?;
    let client = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{}", free_port()?);
    let log = std::fs::File::create(data.join("etcd.log"))?;
    Command::new(program)
        .arg("--data-dir")
        .arg(data.join("etcd"))
        .args(["--name", "bench"])
        .args(["--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("bench={peer}")])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start etcd")
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}
