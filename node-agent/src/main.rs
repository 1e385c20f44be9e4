//! `skep-agent`: configuration, wiring and shutdown of one node.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use skep_agent::dns::{Dns, DnsConfig};
use skep_agent::endpoints::Slice;
use skep_agent::kubelet::logind::Logind;
use skep_agent::kubelet::volumes::{MountNamespace, Volumes};
use skep_agent::kubelet::{
    self, Config, Context, Kubelet, bootstrap, cgroup, events, eviction, image_gc, logind, logs,
    node, objects, own_node, reserved, shutdown,
};
use skep_agent::memory;
use skep_agent::network::node::cleanup as network_cleanup;
use skep_agent::network::{HollowNetwork, NodeNetwork, NodeNetworkConfig, PodNetwork, Way};
use skep_agent::policy;
use skep_agent::proxy::{self, ProxyConfig};
use skep_agent::runtime::Runtime;
use skep_agent::runtime::docker::DockerRuntime;
use skep_agent::runtime::hollow::HollowRuntime;
use skep_agent::services::Service;
use skep_client::informer::Informers;
use skep_datapath::services::Forwarding;
use skep_datapath::{TcHook, XdpMode};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Runs the pods of this node and carries their traffic.
#[derive(Debug, Parser)]
#[command(name = "skep-agent", version)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// The node's access to the API; written when joining with --bootstrap-kubeconfig.
    /// Default: `kubeconfig` in the state folder.
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
    /// A kubeconfig with a bootstrap token, for a node that has no identity yet.
    #[arg(long, value_name = "FILE", global = true)]
    bootstrap_kubeconfig: Option<PathBuf>,
    /// Default: the machine's host name.
    #[arg(long, global = true)]
    node_name: Option<String>,
    /// The node's address; in a dual-stack cluster one of each family, the first being the one that
    /// the API server calls. Default: the address that the way to the API starts from.
    #[arg(
        long,
        value_name = "IP[,IP]",
        value_delimiter = ',',
        num_args = 1,
        global = true
    )]
    node_ip: Vec<IpAddr>,
    #[arg(
        long,
        default_value = "/var/lib/skep/agent",
        value_name = "DIR",
        global = true
    )]
    state_dir: PathBuf,
    #[arg(long, default_value = "/skep", value_name = "PATH", global = true)]
    cgroup_parent: String,
    #[arg(
        long,
        default_value = "/sys/fs/bpf/skep",
        value_name = "DIR",
        global = true
    )]
    bpf_dir: PathBuf,
    #[arg(
        long,
        default_value = "/var/run/docker.sock",
        value_name = "PATH",
        global = true
    )]
    docker_socket: PathBuf,
    #[arg(long, default_value = "10.96.0.10", value_name = "IP", global = true)]
    cluster_dns: IpAddr,
    #[arg(long, default_value = "cluster.local", global = true)]
    cluster_domain: String,
    /// The range of all pods, or one of each family; traffic to it keeps its source address.
    #[arg(
        long,
        default_value = "10.244.0.0/16",
        value_name = "CIDR[,CIDR]",
        value_delimiter = ',',
        global = true
    )]
    cluster_cidr: Vec<IpNet>,
    #[arg(
        long,
        default_value = "10.96.0.0/16",
        value_name = "CIDR[,CIDR]",
        value_delimiter = ',',
        global = true
    )]
    service_cidr: Vec<IpNet>,
    /// How pods of other nodes are reached; the same on every node. `native`: nodes share a link, or
    /// the network between them routes pod addresses. `vxlan`: through a tunnel.
    #[arg(long, value_enum, default_value = "native", global = true)]
    pod_network: PodNetworkWay,
    /// The device to other nodes. Default: the one that holds the node's address.
    #[arg(long, value_name = "IFACE", global = true)]
    uplink: Option<String>,
    /// How clients outside reach backends of other nodes, for Services without the annotation `skep.dev/forwarding-mode`;
    /// the same on every node. `snat`: hidden behind the node they come to. `dsr`: with their own address, and the
    /// backend's node answers them directly, which the network between must let pass. `auto`: through the tunnel with
    /// their own address, else `snat`.
    #[arg(long, value_enum, default_value = "auto", global = true)]
    forwarding_mode: ForwardingMode,
    /// Whether XDP on the uplink handles what it can of the traffic from outside, before the stack. `auto`: in the
    /// device's driver where it pays, else not at all. `generic` works with every device and is slower than none.
    #[arg(long, value_enum, default_value = "auto", global = true)]
    xdp: Xdp,
    /// How the programs are attached to devices. `auto`: tcx, or clsact where the kernel is older than 6.6.
    #[arg(long, value_enum, default_value = "auto", global = true)]
    tc: Tc,
    /// A folder of files that describe static pods.
    #[arg(long, value_name = "DIR", global = true)]
    pod_manifest_path: Option<PathBuf>,
    /// Sysctls that pods may set beyond the safe ones: names, or prefixes that end with `*`.
    #[arg(long, value_name = "NAME", value_delimiter = ',', global = true)]
    allowed_unsafe_sysctls: Vec<String>,
    /// When pods have to go: `memory.available`, `nodefs.available`, `nodefs.inodesFree`, `pid.available`, each below an
    /// amount or a percentage. Empty: never.
    #[arg(
        long,
        default_value = eviction::plan::DEFAULT,
        value_name = "SIGNAL<AMOUNT,…",
        global = true
    )]
    eviction_hard: String,
    /// The same, once it has been so for `--eviction-soft-grace-period`; pods get their own grace period.
    #[arg(
        long,
        default_value = "",
        value_name = "SIGNAL<AMOUNT,…",
        global = true
    )]
    eviction_soft: String,
    #[arg(long, default_value_t = 90, value_name = "SECONDS", global = true)]
    eviction_soft_grace_period: u64,
    /// Where `pods` and `containers` lead to what containers say, for log shippers.
    #[arg(long, default_value = "/var/log", value_name = "DIR", global = true)]
    log_dir: PathBuf,
    /// A container's log file is rotated at this size.
    #[arg(long, default_value = "10Mi", value_name = "AMOUNT", global = true)]
    container_log_max_size: String,
    /// How many files a container's log has at most, two or more.
    #[arg(long, default_value_t = 5, value_name = "COUNT", global = true)]
    container_log_max_files: usize,
    /// Kept for the system's own processes: `cpu=100m,memory=500Mi,ephemeral-storage=1Gi`.
    #[arg(
        long,
        default_value = "",
        value_name = "RESOURCE=AMOUNT,…",
        global = true
    )]
    system_reserved: String,
    /// Kept for the agent and Docker.
    #[arg(
        long,
        default_value = "",
        value_name = "RESOURCE=AMOUNT,…",
        global = true
    )]
    kube_reserved: String,
    /// Percent of the images' disk in use above which unused images go; 100: never.
    #[arg(long, default_value_t = 85, value_name = "PERCENT", global = true)]
    image_gc_high_threshold: u8,
    /// How far.
    #[arg(long, default_value_t = 80, value_name = "PERCENT", global = true)]
    image_gc_low_threshold: u8,
    /// How long pods have when the machine shuts down, which logind or SIGPWR tells; 0: they are not ended. The critical ones
    /// (`system-cluster-critical` and above) end last, in the second part of it.
    #[arg(long, default_value_t = 0, value_name = "SECONDS", global = true)]
    shutdown_grace_period: u64,
    #[arg(long, default_value_t = 0, value_name = "SECONDS", global = true)]
    shutdown_grace_period_critical_pods: u64,
    /// Instead of both, how long each group of priorities has: `0=20,2000000000=10`.
    #[arg(
        long,
        default_value = "",
        value_name = "PRIORITY=SECONDS,…",
        global = true
    )]
    shutdown_grace_period_by_pod_priority: String,
    #[arg(long, value_enum, default_value = "docker", global = true)]
    runtime: Which,
    #[arg(long, default_value_t = 10250, global = true)]
    port: u16,
    /// API servers cannot dial this node: they use the tunnels that it keeps open to them at once, not only after
    /// trying.
    #[arg(long, global = true)]
    tunnel: bool,
    #[arg(long, default_value_t = 110, global = true)]
    max_pods: u32,
    /// Processes and threads that a pod may have; -1: as many as the node.
    #[arg(
        long,
        default_value_t = -1,
        allow_negative_numbers = true,
        value_name = "COUNT",
        global = true
    )]
    pod_max_pids: i64,
    #[arg(
        long,
        default_value = "/etc/resolv.conf",
        value_name = "FILE",
        global = true
    )]
    resolv_conf: PathBuf,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Removes what the agent made on this machine: containers, mounts, cgroups, network.
    Cleanup,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Docker,
    Hollow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PodNetworkWay {
    Native,
    Vxlan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ForwardingMode {
    Auto,
    Snat,
    Dsr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tc {
    Auto,
    Clsact,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Xdp {
    Auto,
    Native,
    Generic,
    Off,
}

fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    memory::prepare();
    // Both `ring` and others may be linked in; say which one TLS uses.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        bail!("a TLS provider is installed already");
    }
    let options = Options::parse();
    memory::runtime()
        .context("cannot start the runtime")?
        .block_on(async {
            match options.command {
                Some(Command::Cleanup) => cleanup(options).await,
                None => run(options).await,
            }
        })
}

fn node_name(options: &Options) -> Result<String> {
    match &options.node_name {
        Some(name) => Ok(name.clone()),
        None => Ok(nix::unistd::gethostname()?.to_string_lossy().to_lowercase()),
    }
}

/// Names this node among all agents that use one Docker daemon.
fn scope(options: &Options, node_name: &str) -> String {
    format!("{}@{node_name}", options.cgroup_parent)
}

fn network_config(options: &Options, node_name: &str, node_ips: Vec<IpAddr>) -> NodeNetworkConfig {
    NodeNetworkConfig {
        node_name: node_name.into(),
        uplink: options.uplink.clone(),
        node_ips,
        state_dir: options.state_dir.clone(),
        bpf_dir: options.bpf_dir.clone(),
        cgroup: cgroup::Cgroups::discover()
            .unified(&options.cgroup_parent)
            .unwrap_or_else(|| PathBuf::from("/sys/fs/cgroup")),
        cluster_cidrs: options.cluster_cidr.clone(),
        service_cidrs: options.service_cidr.clone(),
        way: match options.pod_network {
            PodNetworkWay::Native => Way::Native,
            PodNetworkWay::Vxlan => Way::Vxlan,
        },
        tc: match options.tc {
            Tc::Auto => TcHook::Auto,
            Tc::Clsact => TcHook::Clsact,
        },
        xdp: match options.xdp {
            Xdp::Auto => XdpMode::Auto,
            Xdp::Native => XdpMode::Native,
            Xdp::Generic => XdpMode::Generic,
            Xdp::Off => XdpMode::Off,
        },
    }
}

/// # Errors
/// When an option names no threshold.
fn thresholds(options: &Options) -> Result<Vec<eviction::plan::Threshold>> {
    let mut all = eviction::plan::parse(&options.eviction_hard)
        .map_err(anyhow::Error::msg)
        .context("--eviction-hard")?;
    let soft = eviction::plan::parse(&options.eviction_soft)
        .map_err(anyhow::Error::msg)
        .context("--eviction-soft")?;
    let grace = std::time::Duration::from_secs(options.eviction_soft_grace_period);
    all.extend(soft.into_iter().map(|threshold| eviction::plan::Threshold {
        grace: Some(grace),
        ..threshold
    }));
    Ok(all)
}

/// # Errors
/// When an option makes no sense.
fn periods(options: &Options) -> Result<shutdown::Periods> {
    let by_priority = &options.shutdown_grace_period_by_pod_priority;
    let seconds = std::time::Duration::from_secs;
    let periods = match by_priority.is_empty() {
        true => shutdown::Periods::new(
            seconds(options.shutdown_grace_period),
            seconds(options.shutdown_grace_period_critical_pods),
        ),
        false => shutdown::Periods::parse(by_priority),
    };
    periods
        .map_err(anyhow::Error::msg)
        .context("the grace periods of a shutdown")
}

fn rotation(options: &Options) -> Result<logs::Rotation> {
    let size = k8s_openapi::apimachinery::pkg::api::resource::Quantity(
        options.container_log_max_size.clone(),
    );
    let max_size = u64::try_from(kubelet::resources::value(&size)).unwrap_or(0);
    if max_size == 0 || options.container_log_max_files < 2 {
        bail!(
            "--container-log-max-size must be an amount and --container-log-max-files at least 2"
        );
    }
    Ok(logs::Rotation {
        max_size,
        max_files: options.container_log_max_files,
    })
}

async fn run(options: Options) -> Result<()> {
    let thresholds = match options.runtime {
        Which::Docker => thresholds(&options)?,
        // What a hollow node's machine lacks is no business of its pods.
        Which::Hollow => Vec::new(),
    };
    let mut reserved = reserved::Reserved::new();
    for text in [&options.system_reserved, &options.kube_reserved] {
        reserved::add(&mut reserved, text).map_err(anyhow::Error::msg)?;
    }
    let node_name = node_name(&options)?;
    std::fs::create_dir_all(&options.state_dir)
        .with_context(|| format!("cannot make {}", options.state_dir.display()))?;
    let kubeconfig = options
        .kubeconfig
        .clone()
        .unwrap_or_else(|| options.state_dir.join("kubeconfig"));
    if !kubeconfig.exists() {
        let Some(token) = &options.bootstrap_kubeconfig else {
            bail!(
                "{} does not exist; give --bootstrap-kubeconfig to join with a token",
                kubeconfig.display()
            );
        };
        bootstrap::join(token, &kubeconfig, &node_name).await?;
    }
    let api = bootstrap::config(&kubeconfig).await?;
    let node_ips = match options.node_ip.as_slice() {
        [] => vec![source_address(&api.cluster_url).context("give --node-ip")?],
        [ip] => vec![*ip],
        [a, b] if a.is_ipv4() != b.is_ipv4() => vec![*a, *b],
        _ => bail!("--node-ip: one address, or one of each IP family"),
    };
    let node_ip = node_ips[0];
    let tunnels = kubelet::server::tunnel::Settings {
        api: api.clone(),
        only: options.tunnel,
    };
    let api_address = socket_address(&api.cluster_url);
    let roots = api.root_cert.clone().unwrap_or_default();
    let roots = roots.into_iter().map(CertificateDer::from).collect();
    let client = kube::Client::try_from(api)?;
    let stop = CancellationToken::new();
    let informers = Informers::new(client.clone(), stop.clone());

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
        pod_max_pids: (options.pod_max_pids > 0).then_some(options.pod_max_pids),
        static_pods: options.pod_manifest_path.clone(),
    };
    let objects = objects::Objects::new(client.clone());
    let mut tasks: Vec<tokio::task::JoinHandle<()>> = Vec::new();
    let mut ooms = None;
    let (runtime, volumes, cgroups): (Arc<dyn Runtime>, _, _) = match options.runtime {
        Which::Hollow => (Arc::new(HollowRuntime::new()), None, None),
        Which::Docker => {
            let docker =
                DockerRuntime::connect(&options.docker_socket, &scope(&options, &node_name))
                    .await?;
            if let Err(e) = docker.ensure_pause_image().await {
                // Docker may come later; sandboxes load the image when they need it.
                warn!(error = %e, "cannot load the pause image yet");
            }
            let volumes = Volumes::new(
                &options.state_dir,
                objects.clone(),
                mount_namespace(&docker),
            );
            let cgroups = cgroup::Cgroups::discover();
            cgroups.enter(&options.cgroup_parent)?;
            ooms = docker.ooms();
            (Arc::new(docker), Some(volumes), Some(cgroups))
        }
    };
    let network: Arc<dyn PodNetwork> = match options.runtime {
        Which::Hollow => Arc::new(HollowNetwork::new()),
        Which::Docker => {
            let node = NodeNetwork::open(network_config(&options, &node_name, node_ips.clone()))
                .await
                .context("cannot set up the node's network")?;
            let node = Arc::new(node);
            let dns = Dns::bind(DnsConfig {
                domain: options.cluster_domain.clone(),
                node_ip,
                port: DNS_PORT,
                resolv_conf: options.resolv_conf.clone(),
                cluster_dns: options.cluster_dns,
            })
            .await
            .context("cannot serve DNS on the node's address")?;
            let proxy_config = ProxyConfig {
                node_name: node_name.clone(),
                dns: Some((options.cluster_dns, dns.address())),
                api: kubernetes_service(&options.service_cidr).zip(api_address),
                forwarding: match options.forwarding_mode {
                    ForwardingMode::Auto => Forwarding::Auto,
                    ForwardingMode::Snat => Forwarding::SourceNat,
                    ForwardingMode::Dsr => Forwarding::DirectReturn,
                },
                metrics: Arc::default(),
            };
            let metrics = proxy_config.metrics.clone();
            node.pods.add_metrics(move |text| metrics.write(text));
            proxy::program_static(&node.datapath, &proxy_config)
                .context("cannot program the cluster DNS address")?;
            tasks.push(tokio::spawn(dns.run(informers.clone(), stop.clone())));
            let pods = node.pods.clone();
            let namespaces = pods.clone();
            tasks.push(tokio::spawn(policy::run(
                informers.clone(),
                node.datapath.clone(),
                node_name.clone(),
                pods.clone(),
                stop.clone(),
            )));
            tasks.push(tokio::spawn(proxy::announce::run(
                informers.clone(),
                node.datapath.clone(),
                node_name.clone(),
                stop.clone(),
            )));
            tasks.push(tokio::spawn(proxy::run(
                informers.clone(),
                node.datapath.clone(),
                proxy_config,
                Arc::new(move || namespaces.namespaces()),
                stop.clone(),
            )));
            tasks.push(tokio::spawn(node.run(informers.clone(), stop.clone())));
            pods
        }
    };

    let capacity = node::capacity(&config);
    if let Some(cgroups) = &cgroups {
        reserved::enforce(cgroups, &options.cgroup_parent, &capacity, &reserved)
            .context("cannot limit the pods to what is not reserved")?;
    }
    // A hollow node has no containers that could tell the difference.
    let docker = options.runtime == Which::Docker;
    let rotation = rotation(&options)?;
    let periods = periods(&options)?;
    let ctx = Arc::new(Context {
        logs: docker.then(|| logs::Logs::start(&options.log_dir, &options.state_dir, rotation)),
        recorder: events::Recorder::start(client.clone(), &node_name),
        runtime_name: match options.runtime {
            Which::Docker => "docker",
            Which::Hollow => "hollow",
        },
        runtime,
        network,
        objects,
        watches: volumes
            .is_some()
            .then(|| kubelet::watches::Watches::new(client.clone())),
        volumes,
        cgroups,
        services: docker.then(|| informers.of::<Service>()),
        endpoint_slices: docker.then(|| informers.of::<Slice>()),
        host_ips: node_ips,
        allocatable: parking_lot::RwLock::new(reserved::allocatable(
            &capacity,
            &reserved,
            &thresholds,
        )),
        reserved,
        thresholds,
        memory_capacity: i64::try_from(node::memory_kib() * 1024).unwrap_or(i64::MAX),
        starts: kubelet::Context::starts(),
        creates: kubelet::Context::starts(),
        desk: kubelet::admit::Desk {
            unsafe_sysctls: options.allowed_unsafe_sysctls.clone(),
            ..Default::default()
        },
        node: own_node::OwnNode::new(
            client.clone(),
            &node_name,
            match docker {
                // Its network follows all of them.
                true => informers.of(),
                false => informers.only(&node_name),
            },
        ),
        evictions: Default::default(),
        shutdown: Default::default(),
        layers: Default::default(),
        accounts: Default::default(),
        pulled: docker.then(|| kubelet::pulled::Pulled::open(&options.state_dir)),
        counters: Default::default(),
        probes: Default::default(),
        pods: parking_lot::RwLock::default(),
        client,
        config,
    });
    info!(node = node_name, ip = %node_ip, "starting");
    tasks.push(tokio::spawn(node::run(ctx.clone(), stop.clone())));
    tasks.push(tokio::spawn(Kubelet::new(ctx.clone()).run(stop.clone())));
    if docker {
        tasks.push(tokio::spawn(eviction::run(
            ctx.clone(),
            eviction::Settings::new(ctx.thresholds.clone(), ooms),
            stop.clone(),
        )));
        let thresholds = image_gc::Thresholds {
            high: options.image_gc_high_threshold,
            low: options.image_gc_low_threshold,
        };
        tasks.push(tokio::spawn(image_gc::run(
            ctx.clone(),
            thresholds,
            stop.clone(),
        )));
    }
    if options.runtime == Which::Docker {
        let served = kubelet::server::run(ctx.clone(), roots, tunnels, stop.clone());
        tasks.push(tokio::spawn(async move {
            if let Err(e) = served.await {
                error!(error = format!("{e:#}"), "the agent's server ended");
            }
        }));
    }
    if docker && !periods.is_empty() {
        tasks.push(tokio::spawn(logind::run(
            ctx.clone(),
            periods.clone(),
            Logind::default(),
            stop.clone(),
        )));
    }
    let mut power = signal(SignalKind::from_raw(SIGPWR))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = power.recv(), if !periods.is_empty() => shutdown::run(&ctx, &periods).await,
        never = memory::run(&ctx.counters) => match never {},
        (ended, _, _) = futures::future::select_all(tasks) => {
            // A dead task ends the process; whoever runs it starts it again.
            ended.context("a task panicked")?;
            bail!("a task ended by itself");
        }
    }
    info!("stopping; pods that run and their traffic go on");
    stop.cancel();
    Ok(())
}

fn mount_namespace(docker: &DockerRuntime) -> MountNamespace {
    match docker.daemon_pid() {
        Some(pid) => MountNamespace::of_process(pid),
        None => MountNamespace::own(),
    }
}

/// Every step is tried, whatever became of the one before.
async fn cleanup(options: Options) -> Result<()> {
    let node_name = node_name(&options)?;
    let mut failures: Vec<String> = Vec::new();
    let mut namespace = MountNamespace::own();
    match DockerRuntime::connect(&options.docker_socket, &scope(&options, &node_name)).await {
        Ok(docker) => {
            namespace = mount_namespace(&docker);
            match docker.list().await {
                Ok(containers) => {
                    let removals = containers.iter().map(|c| docker.remove(&c.id));
                    let removed = futures::future::join_all(removals).await;
                    failures.extend(
                        removed
                            .into_iter()
                            .filter_map(Result::err)
                            .map(|e| e.to_string()),
                    );
                }
                Err(e) => failures.push(e.to_string()),
            }
        }
        Err(e) => failures.push(e.to_string()),
    }
    if let Err(e) = logs::clear(&options.log_dir, &options.state_dir) {
        failures.push(format!("cannot remove the logs of containers: {e}"));
    }
    for folder in Volumes::folders(&options.state_dir) {
        if let Err(e) = namespace.unmount_below(&folder) {
            failures.push(format!(
                "cannot unmount what is below {}: {e}",
                folder.display()
            ));
            continue;
        }
        match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                failures.push(format!("cannot remove {}: {e}", folder.display()));
            }
            _ => {}
        }
    }
    if let Err(e) = logind::clear(&Logind::default()) {
        failures.push(format!("cannot take back what was said to logind: {e}"));
    }
    let group = format!("{}/kubepods", options.cgroup_parent.trim_end_matches('/'));
    if let Err(e) = cgroup::Cgroups::discover().remove(&group) {
        failures.push(format!("cannot remove cgroup {group}: {e}"));
    }
    let config = network_config(&options, &node_name, options.node_ip.clone());
    if let Err(e) = network_cleanup(&config).await {
        failures.push(format!("cannot remove the network: {e}"));
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("; "))
}

/// The power fails, or the machine is to be switched off: see init(8).
const SIGPWR: i32 = nix::sys::signal::Signal::SIGPWR as i32;

/// Where this node's DNS server listens; pods reach it at the cluster DNS address.
const DNS_PORT: u16 = 10_053;

/// The API server's own address; `None` when the kubeconfig names it.
fn socket_address(api: &http::Uri) -> Option<SocketAddr> {
    let host = api.host()?.trim_matches(['[', ']']);
    Some(SocketAddr::new(
        host.parse().ok()?,
        api.port_u16().unwrap_or(443),
    ))
}

/// The first address of the Service range is the API's own.
fn kubernetes_service(ranges: &[IpNet]) -> Option<SocketAddr> {
    let first = ranges.first()?.hosts().next()?;
    Some(SocketAddr::new(first, 443))
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
