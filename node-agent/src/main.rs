//! `skep-agent`: configuration, wiring and shutdown of one node.
#![forbid(unsafe_code)]

use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use skep_agent::kubelet::volumes::{MountNamespace, Volumes};
use skep_agent::kubelet::{
    self, Config, Context, Kubelet, bootstrap, cgroup, events, node, objects,
};
use skep_agent::network::{HollowNetwork, PodNetwork};
use skep_agent::runtime::Runtime;
use skep_agent::runtime::docker::DockerRuntime;
use skep_agent::runtime::hollow::HollowRuntime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Runs the pods of this node and carries their traffic.
#[derive(Debug, Parser)]
#[command(name = "skep-agent", version)]
struct Options {
    /// The node's access to the API; written when joining with --bootstrap-kubeconfig.
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// A kubeconfig with a bootstrap token, for a node that has no identity yet.
    #[arg(long, value_name = "FILE")]
    bootstrap_kubeconfig: Option<PathBuf>,
    /// Default: the machine's host name.
    #[arg(long)]
    node_name: Option<String>,
    /// Default: the address that the way to the API starts from.
    #[arg(long)]
    node_ip: Option<IpAddr>,
    #[arg(long, default_value = "/var/lib/skep/agent", value_name = "DIR")]
    state_dir: PathBuf,
    #[arg(long, default_value = "/skep", value_name = "PATH")]
    cgroup_parent: String,
    #[arg(long, default_value = "/sys/fs/bpf/skep", value_name = "DIR")]
    bpf_dir: PathBuf,
    #[arg(long, default_value = "/var/run/docker.sock", value_name = "PATH")]
    docker_socket: PathBuf,
    #[arg(long, default_value = "10.96.0.10", value_name = "IP")]
    cluster_dns: IpAddr,
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// The device to other nodes. Default: the one that holds the node's address.
    #[arg(long, value_name = "IFACE")]
    uplink: Option<String>,
    #[arg(long, value_enum, default_value = "docker")]
    runtime: Which,
    #[arg(long, default_value_t = 10250)]
    port: u16,
    #[arg(long, default_value_t = 110)]
    max_pods: u32,
    #[arg(long, default_value = "/etc/resolv.conf", value_name = "FILE")]
    resolv_conf: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Docker,
    Hollow,
}

fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    // Both `ring` and others may be linked in; say which one TLS uses.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        bail!("a TLS provider is installed already");
    }
    let options = Options::parse();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run(options))
}

async fn run(options: Options) -> Result<()> {
    let node_name = match &options.node_name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
    };
    std::fs::create_dir_all(&options.state_dir)
        .with_context(|| format!("cannot make {}", options.state_dir.display()))?;
    if !options.kubeconfig.exists() {
        let Some(token) = &options.bootstrap_kubeconfig else {
            bail!(
                "{} does not exist; give --bootstrap-kubeconfig to join with a token",
                options.kubeconfig.display()
            );
        };
        bootstrap::join(token, &options.kubeconfig, &node_name).await?;
    }
    let api = bootstrap::config(&options.kubeconfig).await?;
    let node_ip = match options.node_ip {
        Some(ip) => ip,
        None => source_address(&api.cluster_url).context("give --node-ip")?,
    };
    let client = kube::Client::try_from(api)?;
    let stop = CancellationToken::new();

    let config = Config {
        node_name: node_name.clone(),
        node_ip,
        state_dir: options.state_dir.clone(),
        cgroup_parent: options.cgroup_parent.clone(),
        cluster_dns: Some(options.cluster_dns),
        cluster_domain: options.cluster_domain.clone(),
        resolv_conf: options.resolv_conf.clone(),
        port: options.port,
        max_pods: options.max_pods,
    };
    let objects = objects::Objects::new(client.clone());
    let (runtime, volumes, cgroups): (Arc<dyn Runtime>, _, _) = match options.runtime {
        Which::Hollow => (Arc::new(HollowRuntime::new()), None, None),
        Which::Docker => {
            let scope = format!("{}@{node_name}", options.cgroup_parent);
            let docker = DockerRuntime::connect(&options.docker_socket, &scope).await?;
            docker.ensure_pause_image().await?;
            let namespace = match docker.daemon_pid() {
                Some(pid) => MountNamespace::of_process(pid),
                None => MountNamespace::own(),
            };
            let volumes = Volumes::new(&options.state_dir, objects.clone(), namespace);
            (
                Arc::new(docker),
                Some(volumes),
                Some(cgroup::Cgroups::discover()),
            )
        }
    };
    let network: Arc<dyn PodNetwork> = Arc::new(HollowNetwork::new());
    let (services, writer) = reflector::store::<Service>();
    let watched = reflector(
        writer,
        watcher(
            Api::<Service>::all(client.clone()),
            watcher::Config::default(),
        ),
    );
    tokio::spawn(async move {
        use futures::StreamExt;
        let mut applied = Box::pin(watched.default_backoff().applied_objects());
        while applied.next().await.is_some() {}
    });

    let ctx = Arc::new(Context {
        recorder: events::Recorder::start(client.clone(), &node_name),
        runtime_name: match options.runtime {
            Which::Docker => "docker",
            Which::Hollow => "hollow",
        },
        runtime,
        network,
        objects,
        volumes,
        cgroups,
        services: Some(services),
        host_ips: vec![node_ip],
        allocatable: parking_lot::RwLock::new(node::capacity(&config)),
        memory_capacity: i64::try_from(node::memory_kib() * 1024).unwrap_or(i64::MAX),
        starts: kubelet::Context::starts(),
        pods: parking_lot::RwLock::default(),
        client,
        config,
    });
    info!(node = node_name, ip = %node_ip, "starting");
    let tasks = [
        tokio::spawn(node::run(ctx.clone(), stop.clone())),
        tokio::spawn(Kubelet::new(ctx.clone()).run(stop.clone())),
    ];
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut all = futures::future::select_all(tasks);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        (ended, _, _) = &mut all => {
            // A dead task ends the process; whoever runs it starts it again.
            ended.context("a task panicked")?;
            bail!("a task ended by itself");
        }
    }
    info!("stopping; pods and their traffic go on");
    stop.cancel();
    Ok(())
}

/// The address that packets to the API leave from. Nothing is sent.
fn source_address(api: &http::Uri) -> Result<IpAddr> {
    let host = api
        .host()
        .context("the API's address has no host")?
        .trim_matches(['[', ']']);
    let port = api.port_u16().unwrap_or(443);
    let socket = UdpSocket::bind(if host.contains(':') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    })?;
    socket.connect((host, port))?;
    Ok(socket.local_addr()?.ip())
}
