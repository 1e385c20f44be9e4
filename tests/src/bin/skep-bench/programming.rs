//! Services and endpoints into the kernel, by the real proxy from a real watch: from nothing, and one change; and what
//! memory that takes. The API is a stub in another process, which has the objects ready as bytes.

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use futures::stream;
use serde_json::{Value, json};
use skep_agent::memory::{prepare, runtime};
use skep_agent::proxy::{self, ProxyConfig};
use skep_client::Informers;
use skep_datapath::Datapath;
use skep_datapath::layout::TCP;
use skep_datapath::trace::{Origin, Question};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::scratch::Scratch;
use crate::{Figure, Target, memory};

/// The stub's port; set in the process that is to be it.
const STUB: &str = "SKEP_BENCH_STUB";
const SIZES: [(usize, usize); 2] = [(5_000, 50), (10_000, 25)];
const CHANGES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks into the kernel, which add to what a change takes.
const LOOK: Duration = Duration::from_micros(100);

/// Serves the stub if this process is to be one.
pub(crate) fn stub_if_asked() -> Option<Result<()>> {
    let size = std::env::var(STUB).ok()?;
    Some(
        runtime()
            .map_err(Into::into)
            .and_then(|runtime| runtime.block_on(serve(&size))),
    )
}

pub(crate) fn measure(rounds: usize) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (services, endpoints) in SIZES {
        let label = format!("{services} Services, {} endpoints", services * endpoints);
        let mut cold = Vec::new();
        let mut changes = Vec::new();
        let (mut resident, mut anonymous) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let figures = measure_apart(services, endpoints)?;
            cold.push(figures["cold"].as_f64().context("no cold start")?);
            changes.push(figures["p99"].as_f64().context("no p99")?);
            resident.push(figures["resident"].as_f64().context("no memory")?);
            anonymous.push(figures["anonymous"].as_f64().context("no memory")?);
        }
        let named = |what: &str| format!("{what}, {label}");
        let targets = [
            ("plan into the kernel", "s", cold, 1.0),
            ("one change, p99", "ms", changes, 5.0),
            ("resident", "MiB", resident, 60.0),
        ];
        for (what, unit, samples, most) in targets {
            figures.push(Figure::of(named(what), unit, samples)?.wanted(Target::AtMost(most)));
        }
        let what = named("of that, not the program's own file or the kernel's tables");
        figures.push(Figure::of(what, "MiB", anonymous)?);
    }
    Ok(figures)
}

/// In a process of its own: its memory is one of the figures.
fn measure_apart(services: usize, endpoints: usize) -> Result<Value> {
    let output = Command::new(std::env::current_exe()?)
        .arg("programming")
        .env("SKEP_BENCH_ROUND", format!("{services}x{endpoints}"))
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        bail!("a round failed: {text}");
    }
    let last = text.lines().last().context("a round said nothing")?;
    Ok(serde_json::from_str(last)?)
}

/// One round, if this process is to be one; prints its figures.
pub(crate) fn round_if_asked() -> Option<Result<()>> {
    let size = std::env::var("SKEP_BENCH_ROUND").ok()?;
    Some(round(&size).map(|figures| println!("{figures}")))
}

struct Stub(Child);

impl Drop for Stub {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn round(size: &str) -> Result<Value> {
    let (services, _) = parse(size)?;
    // As the agent does.
    prepare();
    let scratch = Scratch::new()?;
    let mut stub = Stub(
        Command::new(std::env::current_exe()?)
            .arg("programming")
            .env(STUB, size)
            .env_remove("SKEP_BENCH_ROUND")
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut line = String::new();
    BufReader::new(stub.0.stdout.as_mut().context("no stdout")?).read_line(&mut line)?;
    let address: SocketAddr = line.trim().parse().context("the stub did not start")?;
    let datapath = Arc::new(scratch.open()?);
    // Its threads are born into this thread's network namespace.
    runtime()?.block_on(async {
        let url = format!("http://{address}").parse()?;
        let client = kube::Client::try_from(kube::Config::new(url))?;
        let stop = CancellationToken::new();
        let informers = Informers::new(client, stop.clone());
        let config = ProxyConfig {
            node_name: "node1".into(),
            ..ProxyConfig::default()
        };
        let metrics = config.metrics.clone();
        tokio::spawn(proxy::run(
            informers,
            datapath.clone(),
            config,
            Arc::new(Vec::new),
            stop.clone(),
        ));
        let began = Instant::now();
        while datapath.services().lock().names().len() < services {
            if began.elapsed() > PATIENCE {
                bail!("only {} Services", datapath.services().lock().names().len());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut text = String::new();
        metrics.write(&mut text);
        let cold = value(
            &text,
            "kubeproxy_sync_full_proxy_rules_duration_seconds_sum",
        )
        .context("no full sync was measured")?;
        let mut took = Vec::with_capacity(CHANGES);
        for number in 0..CHANGES {
            took.push(change(address, &datapath, number * (services / CHANGES)).await?);
        }
        took.sort_unstable();
        let p99 = took[took.len() * 99 / 100];
        let own = std::process::id().cast_signed();
        // As the agent does when it comes to rest.
        skep_datapath::give_back_memory();
        let resident = memory::resident_mib(own)?;
        let anonymous = memory::anonymous_mib(own)?;
        stop.cancel();
        Ok(json!({
            "cold": cold, "p99": p99.as_secs_f64() * 1e3,
            "resident": resident, "anonymous": anonymous,
        }))
    })
}

/// From the moment when the API is asked until the kernel has the Service's new backend.
async fn change(address: SocketAddr, datapath: &Datapath, number: usize) -> Result<Duration> {
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build_http::<http_body_util::Empty<Bytes>>();
    let request = http::Request::post(format!("http://{address}/change/{number}"))
        .body(http_body_util::Empty::new())?;
    let began = Instant::now();
    let answer = client.request(request).await?;
    let body = http_body_util::BodyExt::collect(answer.into_body())
        .await?
        .to_bytes();
    let wanted: IpAddr = std::str::from_utf8(&body)?.parse()?;
    let question = Question {
        origin: Origin::Node,
        from: Ipv4Addr::LOCALHOST.into(),
        to: cluster_ip(number).into(),
        port: 80,
        protocol: TCP,
    };
    loop {
        let trace = datapath.trace(&question)?;
        if trace.paths.iter().any(|path| path.destination.0 == wanted) {
            return Ok(began.elapsed());
        }
        if began.elapsed() > PATIENCE {
            bail!("the change of Service {number} did not arrive");
        }
        // Who looks all the time keeps a CPU, and the tables' lock, from those that do the work.
        tokio::task::block_in_place(|| std::thread::sleep(LOOK));
    }
}

fn value(metrics: &str, name: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn parse(size: &str) -> Result<(usize, usize)> {
    let (services, endpoints) = size.split_once('x').context("want SERVICESxENDPOINTS")?;
    Ok((services.parse()?, endpoints.parse()?))
}

fn cluster_ip(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be_bytes([10, 96, 1, 0]) + number as u32)
}

fn pod_ip(service: usize, endpoint: usize, endpoints: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be_bytes([10, 128, 0, 0]) + (service * endpoints + endpoint) as u32)
}

fn service(number: usize) -> Value {
    let ip = cluster_ip(number);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("service-{number}"), "namespace": "default", "uid": format!("s-{number}"),
            "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web"}},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app": format!("web-{number}")},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]},
        "status": {"loadBalancer": {}},
    })
}

fn slice(number: usize, endpoints: usize, first: Option<Ipv4Addr>, version: usize) -> Value {
    let endpoint = |index: usize| {
        let ip = match (index, first) {
            (0, Some(ip)) => ip,
            _ => pod_ip(number, index, endpoints),
        };
        json!({
            "addresses": [ip], "nodeName": format!("node-{}", index % 100), "zone": "a",
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("web-{number}-{index}"),
                "uid": format!("00000000-0000-0000-{:04x}-{:012x}", number % 65_536, index)},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("service-{number}-abcde"), "namespace": "default", "uid": format!("e-{number}"),
            "resourceVersion": version.to_string(), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"kubernetes.io/service-name": format!("service-{number}"),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}

#[derive(Clone)]
struct Api {
    services: usize,
    endpoints: usize,
    events: broadcast::Sender<Bytes>,
}

async fn serve(size: &str) -> Result<()> {
    let (services, endpoints) = parse(size)?;
    let api = Api {
        services,
        endpoints,
        events: broadcast::channel(1_024).0,
    };
    let router = Router::new()
        .route("/api/v1/services", get(list_services))
        .route("/api/v1/nodes", get(list_nodes))
        .route("/apis/discovery.k8s.io/v1/endpointslices", get(list_slices))
        .route("/change/{number}", post(change_slice))
        .with_state(api);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    // As the API server does: an event waits for no acknowledgement of the one before it.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await?;
    Ok(())
}

type Options = Query<std::collections::HashMap<String, String>>;

fn is_watch(options: &Options) -> bool {
    options.get("watch").is_some_and(|watch| watch == "true")
}

/// A watch that says nothing until there are events, if there ever are.
fn watch(events: Option<broadcast::Receiver<Bytes>>) -> Body {
    match events {
        None => Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()),
        Some(events) => Body::from_stream(stream::unfold(events, |mut events| async {
            let event = events.recv().await.ok()?;
            Some((Ok::<_, Infallible>(event), events))
        })),
    }
}

/// A page of a list, as `limit` and `continue` ask for it.
fn page(
    options: &Options,
    kind: &str,
    version: &str,
    all: usize,
    item: impl Fn(usize) -> Value,
) -> Body {
    let number = |name: &str| {
        options
            .get(name)
            .and_then(|text| text.parse::<usize>().ok())
    };
    let first = number("continue").unwrap_or(0);
    let end = (first + number("limit").unwrap_or(all)).min(all);
    let items: Vec<Value> = (first..end).map(item).collect();
    let mut metadata = json!({"resourceVersion": "1"});
    if end < all {
        metadata["continue"] = json!(end.to_string());
    }
    let list = json!({"apiVersion": version, "kind": kind, "metadata": metadata, "items": items});
    Body::from(list.to_string())
}

async fn list_services(State(api): State<Api>, options: Options) -> Body {
    if is_watch(&options) {
        return watch(None);
    }
    page(&options, "ServiceList", "v1", api.services, service)
}

async fn list_nodes(options: Options) -> Body {
    if is_watch(&options) {
        return watch(None);
    }
    page(
        &options,
        "NodeList",
        "v1",
        1,
        |_| json!({"metadata": {"name": "node1", "resourceVersion": "1"}, "spec": {}, "status": {}}),
    )
}

async fn list_slices(State(api): State<Api>, options: Options) -> Body {
    if is_watch(&options) {
        return watch(Some(api.events.subscribe()));
    }
    let endpoints = api.endpoints;
    page(
        &options,
        "EndpointSliceList",
        "discovery.k8s.io/v1",
        api.services,
        |number| slice(number, endpoints, None, 1),
    )
}

/// Gives the Service's first endpoint another address, which is the answer.
async fn change_slice(State(api): State<Api>, Path(number): Path<usize>) -> String {
    let ip = Ipv4Addr::from(u32::from_be_bytes([10, 250, 0, 0]) + number as u32);
    let object = slice(number, api.endpoints, Some(ip), 2);
    let event = json!({"type": "MODIFIED", "object": object});
    // Nobody watches yet: the caller finds out.
    let _ = api.events.send(Bytes::from(format!("{event}\n")));
    ip.to_string()
}
