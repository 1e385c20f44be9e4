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
use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, Service},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use rand::RngExt;
use skep_apiserver::{
    Config, Server,
    authn::{Authenticator, service_account::TokenKeys, token_file::StaticTokens},
    authz, build, builtin_registry,
    identity::User,
    relay::Relay,
    services::Allocators,
    start_cache,
};
use skep_client::informer::Informers;
use skep_store::Store;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    kubeconfig::{self, Credentials},
    listen,
    options::{Options, Role, StoreKind},
    pki::{Pki, write_private},
};

/// `iss` and default audience of service-account tokens.
const ISSUER: &str = "https://kubernetes.default.svc";
const CLUSTER_DOMAIN: &str = "cluster.local";

pub async fn run(options: Options, shutdown: CancellationToken) -> Result<()> {
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    let (components, pki) = if options.roles.contains(&Role::Api) {
        let (router, pki) = serve_api(&options, &mut tasks, &shutdown).await?;
        let components = Components::InProcess(router);
        if options.roles.contains(&Role::Controllers) {
            let client = components.client("system:apiserver").await?;
            write_bootstrap_token(&client, &options, &pki).await?;
            ensure_dns_service(&client, options.service_cidr).await?;
        }
        (components, Some(pki))
    } else {
        let path = options
            .kubeconfig
            .clone()
            .unwrap_or(options.data_dir.join("admin.kubeconfig"));
        (Components::Remote(path), None)
    };
    let identity = identity(&options);
    if options.roles.contains(&Role::Scheduler) {
        let informers = Informers::new(
            components.client("system:kube-scheduler").await?,
            shutdown.clone(),
        );
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
        let client = components.client("system:kube-controller-manager").await?;
        let config = controllers(&options, client, pki.as_ref(), identity, &shutdown)?;
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

    let IpNet::V4(service_cidr) = options.service_cidr else {
        bail!(
            "--service-cidr {}: only IPv4 ranges are supported",
            options.service_cidr
        );
    };
    let (first, last) = options.service_node_port_range;
    let services = Allocators {
        service_cidr,
        node_ports: first..=last,
    };
    let (names, addresses) = serving_names(options, advertise.ip(), services.first_ip());
    let pki = Pki::open(
        &options.data_dir.join("pki"),
        &names,
        &addresses,
        Timestamp::now(),
    )?;

    let store = open_store(options).await?;
    let registry = builtin_registry();
    let cache = start_cache(store.clone(), &registry)
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
        relay: Relay::to_nodes(Arc::new(listen::node_tls_config(&pki)?)),
        advertise: Some(advertise),
        admission: None,
    })
    .await?;
    let router = server.router();

    let tls = Arc::new(listen::tls_config(&pki)?);
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
    write_admin_kubeconfig(options, &pki, &local)?;
    info!(listen = %options.listen, %advertise, data_dir = %options.data_dir.display(), "the API server is up");
    Ok((router, pki))
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
    service: Ipv4Addr,
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
        IpAddr::V4(service),
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        "::1".parse().expect("an address"),
    ]
    .into();
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

/// `DATA_DIR/bootstrap.kubeconfig`, with which nodes join: a bootstrap token, kept as a Secret in the cluster.
async fn write_bootstrap_token(client: &Client, options: &Options, pki: &Pki) -> Result<()> {
    let path = options.data_dir.join("bootstrap-token");
    let token = match std::fs::read_to_string(&path) {
        Ok(token) => token.trim().to_owned(),
        Err(_) => {
            let token = random_token();
            write_private(&path, &token)?;
            token
        }
    };
    let (id, secret) = token.split_once('.').with_context(|| {
        format!(
            "{} holds no token; delete it to make another",
            path.display()
        )
    })?;
    let data = [
        ("token-id", id),
        ("token-secret", secret),
        ("usage-bootstrap-authentication", "true"),
        ("usage-bootstrap-signing", "true"),
        (
            "description",
            "Made by skep-control: with it nodes join the cluster.",
        ),
    ];
    let object = Secret {
        metadata: ObjectMeta {
            name: Some(format!("bootstrap-token-{id}")),
            namespace: Some("kube-system".into()),
            ..ObjectMeta::default()
        },
        type_: Some("bootstrap.kubernetes.io/token".into()),
        data: Some(
            data.map(|(k, v)| (k.to_owned(), ByteString(v.as_bytes().to_vec())))
                .into(),
        ),
        ..Secret::default()
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    match secrets.create(&PostParams::default(), &object).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => return Err(error).context("storing the bootstrap token"),
    }
    let server = SocketAddr::new(advertise_address(options), options.listen.port());
    let credentials = Credentials::Token(&token);
    let text = kubeconfig::render(
        "skep",
        &format!("https://{server}"),
        &pki.ca.certificate,
        "node-bootstrapper",
        &credentials,
    );
    write_private(&options.data_dir.join("bootstrap.kubeconfig"), &text)
}

/// The cluster DNS address as people look for it, and taken, so that no other Service gets it. Every agent answers there
/// by itself: the Service has no selector and needs no endpoints.
async fn ensure_dns_service(client: &Client, service_cidr: IpNet) -> Result<()> {
    let Some(address) = service_cidr.hosts().nth(9) else {
        return Ok(());
    };
    let service: Service = serde_json::from_value(serde_json::json!({
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"},
        },
        "spec": {
            "clusterIP": address.to_string(),
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ],
        },
    }))?;
    let services: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    match services.create(&PostParams::default(), &service).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => {
            // Names resolve without it.
            tracing::warn!(%error, "the kube-dns Service was not made");
            Ok(())
        }
    }
}

/// `[a-z0-9]{6}.[a-z0-9]{16}`, 82 bits of secret.
fn random_token() -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    let mut letters = |count: usize| -> String {
        (0..count)
            .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
            .collect()
    };
    format!("{}.{}", letters(6), letters(16))
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
    client: Client,
    pki: Option<&Pki>,
    identity: String,
    shutdown: &CancellationToken,
) -> Result<skep_controllers::Config> {
    let informers = Informers::new(client, shutdown.clone());
    let mut config = skep_controllers::Config::new(informers, identity);
    config.cluster_cidrs = vec![options.cluster_cidr];
    config.node_monitor_grace = options.node_monitor_grace_period;
    let (certificate, key) = match pki {
        Some(pki) => (pki.ca.certificate.clone(), pki.ca.key.clone()),
        None => {
            let read = |name: &str| {
                let path = options.data_dir.join("pki").join(name);
                std::fs::read_to_string(&path).with_context(|| {
                    format!("reading {} (the controllers sign with it)", path.display())
                })
            };
            (read("ca.crt")?, read("ca.key")?)
        }
    };
    config.signer = Some(skep_controllers::Authority {
        certificate_pem: certificate.clone(),
        key_pem: key,
    });
    config.root_ca_pem = certificate;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_the_form_of_bootstrap_tokens() {
        let token = random_token();
        assert!(
            skep_apiserver::authn::bootstrap_token::Token::parse(&token).is_some(),
            "{token}"
        );
    }
}
