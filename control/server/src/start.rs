//! Puts the parts together: store → watch cache → API server → listeners; scheduler and controllers as its clients.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use axum::{Extension, Router};
use ipnet::IpNet;
use jiff::Timestamp;
use kube::Client;
use skep_apiserver::{
    Config, Server,
    audit::{self, Audit, policy::Policy, sink::Sink},
    authn::{Authenticator, service_account::TokenKeys, token_file::StaticTokens},
    authz,
    bootstrap::{Advertise, ExtensionAuthentication},
    build, builtin_registry,
    encryption::Encryption,
    identity::User,
    relay::Relay,
    services::{Allocators, Range},
    start_cache,
};
use skep_client::informer::Informers;
use skep_controllers::Authority;
use skep_store::Store;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    joining::Joining,
    kubeconfig::{self, Credentials},
    listen,
    options::{Options, Role, StoreKind},
    pki::{FRONT_PROXY, Pki, write_private},
    rotation::{self, Shown},
};

/// `iss` and default audience of service-account tokens.
const ISSUER: &str = "https://kubernetes.default.svc";
const CLUSTER_DOMAIN: &str = "cluster.local";

pub async fn run(options: Options, shutdown: CancellationToken) -> Result<()> {
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    let (components, pki) = if options.roles.contains(&Role::Api) {
        let (router, pki) = serve_api(&options, &mut tasks, &shutdown).await?;
        (Components::InProcess(router), Some(pki))
    } else {
        let path = options
            .kubeconfig
            .clone()
            .unwrap_or(options.data_dir.join("admin.kubeconfig"));
        (Components::Remote(path), None)
    };
    let identity = identity(&options);
    // Scheduler and controllers read the same pods and nodes: one cache does for both.
    let mut shared: Option<Informers> = None;
    if options.roles.contains(&Role::Scheduler) {
        let client = components.client("system:kube-scheduler").await?;
        let informers = Informers::new(client, shutdown.clone());
        shared = Some(informers.clone());
        let config = skep_scheduler::Config {
            informers,
            identity: identity.clone(),
        };
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            skep_scheduler::run(config, shutdown).await;
            Ok(())
        });
    }
    if options.roles.contains(&Role::Controllers) {
        check_families("--cluster-cidr", &options.cluster_cidr)?;
        let authority = authority(&options, pki.as_ref())?;
        let joining = Joining {
            client: components.client("system:apiserver").await?,
            data_dir: options.data_dir.clone(),
            ca_pem: authority.certificate_pem.clone(),
            api_address: pki
                .is_some()
                .then(|| SocketAddr::new(advertise_address(&options), options.listen.port())),
            service_cidr: *options
                .service_cidr
                .first()
                .context("--service-cidr is empty")?,
        };
        joining.prepare(&shutdown).await?;
        let client = components.client("system:kube-controller-manager").await?;
        let informers = match &shared {
            Some(shared) => shared.with_client(client),
            None => Informers::new(client, shutdown.clone()),
        };
        let config = controllers(&options, informers, authority, identity);
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            skep_controllers::run(config, shutdown).await;
            Ok(())
        });
    }
    // Whatever ends first ends the process: a control plane with a dead part would only look alive.
    while let Some(ended) = tasks.join_next().await {
        let stopping = shutdown.is_cancelled();
        shutdown.cancel();
        ended.context("a part of the control plane panicked")??;
        if !stopping && !tasks.is_empty() {
            bail!("a part of the control plane ended by itself");
        }
    }
    Ok(())
}

fn check_families(option: &str, ranges: &[IpNet]) -> Result<()> {
    match ranges {
        [_] => Ok(()),
        [a, b] if a.addr().is_ipv4() != b.addr().is_ipv4() => Ok(()),
        all => bail!(
            "{option}: one range, or one of each IP family, not {}",
            all.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(",")
        ),
    }
}

/// How the scheduler and the controllers reach the API.
enum Components {
    InProcess(Router),
    Remote(PathBuf),
}

impl Components {
    async fn client(&self, user: &str) -> Result<Client> {
        Ok(match self {
            Self::InProcess(router) => {
                skep_client::in_process(router.clone().layer(Extension(User::component(user))))
            }
            Self::Remote(path) => skep_client::from_kubeconfig(path).await?,
        })
    }
}

async fn serve_api(
    options: &Options,
    tasks: &mut JoinSet<Result<()>>,
    shutdown: &CancellationToken,
) -> Result<(Router, Pki)> {
    // Listeners first: a port that is taken is said before anything is written.
    let mut listeners = listen::inherited()?;
    listeners.push(listen::bind(options.listen)?);
    let plain = options.listen_plain.map(listen::bind).transpose()?;
    let port = listeners
        .last()
        .context("bound above")?
        .local_addr()?
        .port();
    let advertise = SocketAddr::new(advertise_address(options), port);
    let local: Vec<SocketAddr> = listeners
        .iter()
        .map(|listener| listener.local_addr())
        .collect::<Result<_, _>>()?;

    check_families("--service-cidr", &options.service_cidr)?;
    let (first, last) = options.service_node_port_range;
    let services = Allocators {
        ranges: options
            .service_cidr
            .iter()
            .copied()
            .map(Range::new)
            .collect(),
        node_ports: first..=last,
    };
    let (names, addresses) = serving_names(options, advertise.ip(), services.first_ip());
    let folder = options.data_dir.join("pki");
    let open_pki = move || Pki::open(&folder, &names, &addresses, Timestamp::now());
    let pki = open_pki()?;
    let shown = Shown::new(&pki)?;

    let store = open_store(options).await?;
    let measures = options
        .metrics_api
        .unwrap_or(options.roles.contains(&Role::Controllers));
    let registry = builtin_registry(measures);
    let encryption = Arc::new(encryption(options)?);
    let cache = start_cache(store.clone(), &registry, encryption.clone())
        .await
        .context("loading the store")?;
    let static_tokens = match &options.token_auth_file {
        Some(path) => StaticTokens::read(path)?,
        None => StaticTokens::default(),
    };
    let authenticator = Authenticator {
        static_tokens,
        service_accounts: Arc::new(TokenKeys::from_pkcs8(
            &pki.service_account_key,
            ISSUER,
            Vec::new(),
        )?),
        objects: cache.clone(),
    };
    let server: Server = build(Config {
        authorizer: Arc::new(authz::cached::authorizer(cache.clone())),
        authenticator: Some(Arc::new(authenticator)),
        cache,
        store,
        registry,
        services,
        relay: Relay::to_nodes(Arc::new(listen::node_tls_config(
            &pki,
            shown.kubelet_client.clone(),
        )?)),
        advertise: Some(Advertise {
            address: advertise,
            shared: options.store == StoreKind::Etcd,
        }),
        admission: None,
        audit: audit(options)?,
        encryption,
        front_proxy: Some(shown.front_proxy.clone()),
        authentication: Some(ExtensionAuthentication {
            client_ca: pki.ca.certificate.clone(),
            request_header_ca: pki.front_proxy_ca.certificate.clone(),
            allowed_names: vec![FRONT_PROXY.to_owned()],
        }),
    })
    .await?;
    let router = server.router();

    let tls = Arc::new(listen::tls_config(&pki, shown.serving.clone())?);
    // Whoever sees the API answer finds the file.
    write_admin_kubeconfig(options, &pki, &local)?;
    for listener in listeners {
        let serve = listen::serve(
            listener,
            Some(tls.clone()),
            router.clone(),
            shutdown.clone(),
        );
        tasks.spawn(serve);
    }
    if let Some(plain) = plain {
        tasks.spawn(listen::serve(plain, None, router.clone(), shutdown.clone()));
    }
    let draining = (server.clone(), shutdown.clone());
    tokio::spawn(async move {
        draining.1.cancelled().await;
        draining.0.drain();
    });
    let written = options.clone();
    let renewed = move |pki: &Pki| write_admin_kubeconfig(&written, pki, &local);
    tokio::spawn(rotation::run(shown, open_pki, renewed, shutdown.clone()));
    info!(listen = %options.listen, %advertise, data_dir = %options.data_dir.display(), "the API server is up");
    Ok((router, pki))
}

fn audit(options: &Options) -> Result<Option<Arc<Audit>>> {
    let (Some(policy), Some(path)) = (&options.audit_policy_file, &options.audit_log_path) else {
        return Ok(None);
    };
    let doing = || format!("loading audit policy file {}", policy.display());
    let text = std::fs::read_to_string(policy).with_context(doing)?;
    let policy = Policy::parse(&text).with_context(doing)?;
    let log = audit::sink::Options {
        path: path.clone(),
        max_size_bytes: options.audit_log_maxsize << 20,
        max_age_days: options.audit_log_maxage,
        max_backups: options.audit_log_maxbackup,
    };
    let sink = Sink::open(log).with_context(|| format!("opening {}", path.display()))?;
    Ok(Some(Arc::new(Audit { policy, sink })))
}

fn encryption(options: &Options) -> Result<Encryption> {
    let Some(path) = &options.encryption_provider_config else {
        return Ok(Encryption::default());
    };
    let doing = || format!("loading {}", path.display());
    let text = std::fs::read_to_string(path).with_context(doing)?;
    Encryption::parse(&text).with_context(doing)
}

async fn open_store(options: &Options) -> Result<Arc<dyn Store>> {
    Ok(match options.store {
        StoreKind::Memory => Arc::new(skep_store::memory::MemoryStore::new()),
        StoreKind::Redb => {
            let path = options.data_dir.join("skep.redb");
            Arc::new(skep_store::redb::RedbStore::open(path)?)
        }
        StoreKind::Etcd => {
            let endpoints = options.etcd_endpoints.clone();
            let doing = format!("connecting to etcd at {}", endpoints.join(", "));
            let etcd = skep_store::etcd::Options {
                endpoints,
                tls: etcd_tls(options)?,
                user: None,
            };
            Arc::new(
                skep_store::etcd::EtcdStore::connect(etcd)
                    .await
                    .context(doing)?,
            )
        }
    })
}

fn etcd_tls(options: &Options) -> Result<Option<skep_store::etcd::Tls>> {
    let read =
        |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let Some(ca) = &options.etcd_cafile else {
        return Ok(None);
    };
    let identity = match (&options.etcd_certfile, &options.etcd_keyfile) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    Ok(Some(skep_store::etcd::Tls {
        ca: read(ca)?,
        identity,
    }))
}

/// The address that nodes and pods use.
fn advertise_address(options: &Options) -> IpAddr {
    if let Some(address) = options.advertise_address {
        return address;
    }
    if !options.listen.ip().is_unspecified() {
        return options.listen.ip();
    }
    // Connecting a UDP socket sends nothing; it asks the kernel which address it would use (RFC 5737 TEST-NET-1).
    let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    routed.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

fn serving_names(
    options: &Options,
    advertise: IpAddr,
    service: Option<IpAddr>,
) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let mut names: BTreeSet<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ]
    .map(str::to_owned)
    .into();
    names.insert(format!("kubernetes.default.svc.{CLUSTER_DOMAIN}"));
    let mut addresses: BTreeSet<IpAddr> = [
        advertise,
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        "::1".parse().expect("an address"),
    ]
    .into();
    addresses.extend(service);
    if !options.listen.ip().is_unspecified() {
        addresses.insert(options.listen.ip());
    }
    for name in &options.tls_san {
        match name.parse() {
            Ok(address) => drop(addresses.insert(address)),
            Err(_) => drop(names.insert(name.clone())),
        }
    }
    (names, addresses)
}

/// `DATA_DIR/admin.kubeconfig`, for people on this machine.
fn write_admin_kubeconfig(options: &Options, pki: &Pki, local: &[SocketAddr]) -> Result<()> {
    // A loopback listener, handed over or bound, is the nearest; a wildcard one is reached on loopback too.
    let nearest = local
        .iter()
        .find(|address| address.ip().is_loopback())
        .or(local.last());
    let server = match nearest {
        Some(address) if address.ip().is_unspecified() => {
            format!("https://127.0.0.1:{}", address.port())
        }
        Some(address) => format!("https://{address}"),
        None => bail!("there is no listener"),
    };
    let credentials = Credentials::Certificate(&pki.admin);
    let text = kubeconfig::render(
        "skep",
        &server,
        &pki.ca.certificate,
        "skep-admin",
        &credentials,
    );
    write_private(&options.data_dir.join("admin.kubeconfig"), &text)
}

/// Names this control plane in leader elections; the same after a restart.
fn identity(options: &Options) -> String {
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    let host = host.unwrap_or_else(|| "skep-control".into());
    // Several control planes on one machine differ by their port.
    format!("{host}_{}", options.listen.port())
}

fn controllers(
    options: &Options,
    informers: Informers,
    authority: Authority,
    identity: String,
) -> skep_controllers::Config {
    let mut config = skep_controllers::Config::new(informers, identity);
    config.cluster_cidrs.clone_from(&options.cluster_cidr);
    config
        .load_balancer_pools
        .clone_from(&options.load_balancer_cidr);
    config.node_monitor_grace = options.node_monitor_grace_period;
    config.root_ca_pem.clone_from(&authority.certificate_pem);
    config.signer = Some(authority);
    config
}

/// What the controllers sign certificates with: the API server's own, or the files that were copied here from it.
fn authority(options: &Options, pki: Option<&Pki>) -> Result<Authority> {
    if let Some(pki) = pki {
        return Ok(Authority {
            certificate_pem: pki.ca.certificate.clone(),
            key_pem: pki.ca.key.clone(),
        });
    }
    let read = |name: &str| {
        let path = options.data_dir.join("pki").join(name);
        std::fs::read_to_string(&path).with_context(|| {
            format!(
                "reading {} (the controllers sign with it: copy it from the API server's --data-dir)",
                path.display()
            )
        })
    };
    Ok(Authority {
        certificate_pem: read("ca.crt")?,
        key_pem: read("ca.key")?,
    })
}
