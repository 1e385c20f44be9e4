//! The end-to-end suite: stories that a user could tell, on an isolated cluster of real containers.
//!
//! `cargo xtask test` runs it. By hand: `cargo test -p skep-tests --test e2e -- --store redb [WORD…]`, where a
//! story runs if its name contains one of the words. `SKEP_KEEP=1` leaves the cluster there.
#![forbid(unsafe_code)]

mod clients;
mod errors;
mod first_session;
mod healing;
mod kinds;
mod manifests;
mod network;
mod node;
mod rollout;
mod storage;
mod streams;
mod workloads;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};
use clap::Parser;
use skep_tests::client::Client;
use skep_tests::cluster::TestCluster;
use xtask::cluster::Store;

#[derive(Parser)]
struct Options {
    #[arg(long, value_enum, default_value = "redb")]
    store: Store,
    /// The cluster's name; another one lets two checkouts be tested on one machine at a time
    #[arg(long)]
    name: Option<String>,
    /// Only stories whose name contains one of these words
    words: Vec<String>,
    /// Print the names and stop
    #[arg(long)]
    list: bool,
}

const NODES: usize = 3;

type Tell = fn(&Story<'_>) -> Result<()>;

/// A name and what happens. The order matters only for reading: every story has a namespace of its own and leaves the
/// cluster whole.
const STORIES: &[(&str, Tell)] = &[
    (
        "the first session with kubectl",
        first_session::with_kubectl,
    ),
    ("the first session with skep", first_session::with_skep),
    (
        "bad input gets the error that kubectl users know",
        errors::bad_input,
    ),
    ("the newest kubectl", clients::newest_kubectl),
    ("Helm installs, upgrades and rolls back", clients::helm),
    ("the Python client", clients::python),
    ("an image that does not exist", errors::missing_image),
    (
        "configuration, volumes and init containers reach a container",
        first_session::configuration,
    ),
    ("pods reach pods and Services across nodes", network::pods),
    ("nodes reach Services", network::nodes),
    (
        "the outside reaches a NodePort on every node",
        network::outside,
    ),
    ("names resolve across nodes", network::names),
    ("UDP through a Service", network::udp),
    ("pods and Services over IPv6", network::over_ipv6),
    (
        "nothing writes iptables or nftables rules",
        network::no_netfilter_rules,
    ),
    (
        "members of a StatefulSet keep their names and data",
        workloads::stateful,
    ),
    ("volumes are claimed, kept and given back", storage::claims),
    (
        "a DaemonSet runs on every node and is replaced",
        workloads::on_every_node,
    ),
    ("Jobs end, give up, and come by schedule", workloads::jobs),
    ("a drain respects a disruption budget", workloads::drain),
    ("exec, logs and a watch over WebSockets", node::websockets),
    (
        "logs, commands, files, ports and figures of a node",
        streams::served,
    ),
    (
        "every kind of nodes, pods and storage lives its life in the API",
        kinds::lives,
    ),
    ("pods are refused for what they ask for", kinds::refusals),
    ("a pod's life, as the API shows it", kinds::pods),
    ("what a pod is told of its surroundings", node::facts),
    ("a taint drives pods away", node::taints),
    ("the resources of a running pod change", node::resize),
    ("110 pods on one node", node::crowd),
    (
        "a rolling update under load fails no request",
        rollout::under_load,
    ),
    ("a killed container is replaced", healing::container),
    (
        "kill -9 of every agent under load fails no request",
        healing::agents,
    ),
    (
        "kill -9 of the control plane under load fails no request",
        healing::control_plane,
    ),
    (
        "kill -9 of dockerd under load fails no request",
        healing::docker,
    ),
    (
        "a node that cannot be dialled is reached",
        healing::undialled,
    ),
    ("a dead node's pods run elsewhere", healing::node),
    (
        "a node is gone for good, with its volumes",
        node::gone_for_good,
    ),
];

/// What a story is given.
pub(crate) struct Story<'a> {
    pub(crate) cluster: &'a TestCluster,
    pub(crate) namespace: &'a str,
    /// The real kubectl, in the story's namespace.
    pub(crate) kubectl: Client,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let chosen: Vec<_> = STORIES
        .iter()
        .enumerate()
        .filter(|(_, (name, _))| {
            options.words.is_empty()
                || options
                    .words
                    .iter()
                    .any(|word| name.contains(word.as_str()))
        })
        .collect();
    if options.list {
        for (_, (name, _)) in chosen {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    }

    let label = format!("e2e on {}", options.store.name());
    let name = options
        .name
        .unwrap_or_else(|| format!("e2e-{}", options.store.name()));
    println!("{label}: {} stories on {NODES} nodes", chosen.len());
    let start = Instant::now();
    // With etcd the control plane is in parts, as people run it on several machines.
    let shape = match options.store {
        Store::Etcd => "--split",
        _ => "--dual-stack",
    };
    let cluster = match TestCluster::up(&name, NODES, options.store, &[shape]) {
        Ok(cluster) => cluster,
        Err(error) => {
            println!("the cluster does not start: {error:#}");
            println!("{label}: 0 passed, {} failed", chosen.len());
            return ExitCode::FAILURE;
        }
    };
    println!(
        "the cluster runs after {:.1} s",
        start.elapsed().as_secs_f32()
    );

    let mut failed = 0;
    for (number, (story, run)) in &chosen {
        let start = Instant::now();
        let outcome = tell(&cluster, &format!("story-{number}"), *run);
        let seconds = start.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => println!("ok      {story} ({seconds:.1} s)"),
            Err(error) => {
                failed += 1;
                println!("FAILED  {story} ({seconds:.1} s)\n{error:#}");
            }
        }
    }
    let logs = xtask::workspace::root()
        .join("target/e2e-logs")
        .join(options.store.name());
    match cluster.keep_logs(&logs) {
        Ok(()) => println!("the logs of the cluster are in {}", logs.display()),
        Err(error) => println!("the logs of the cluster are lost: {error:#}"),
    }
    drop(cluster);
    println!("{label}: {} passed, {failed} failed", chosen.len() - failed);
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs one story in a fresh namespace. A panic in it is its failure, not ours.
fn tell(cluster: &TestCluster, namespace: &str, run: Tell) -> Result<()> {
    let kubectl = cluster.kubectl(namespace);
    kubectl.run(&["create", "namespace", namespace])?;
    let story = Story {
        cluster,
        namespace,
        kubectl,
    };
    let told = std::panic::catch_unwind(AssertUnwindSafe(|| run(&story)))
        .unwrap_or_else(|_| Err(anyhow!("it panicked; see above")));
    let result =
        told.map_err(|error| anyhow!("{error:#}\n{}", cluster.describe_trouble(namespace)));
    // The next story needs neither its pods nor its names; that a namespace goes away is told in the first session.
    let removal = story
        .kubectl
        .run(&["delete", "namespace", namespace, "--wait=false"]);
    result.and(removal.map(drop))
}
