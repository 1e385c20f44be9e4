//! What the node and its pods use: Prometheus text and the summary API.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::App;
use crate::kubelet::disk::{self, Occupied};
use crate::kubelet::events;
use crate::kubelet::usage::{self, Level, Used};
use crate::runtime::{ContainerRole, ContainerStats, State as ContainerState};

struct NodeUsage {
    cpu_ns: u64,
    memory_used: u64,
    memory_available: u64,
    memory_total: u64,
}

fn node_usage() -> NodeUsage {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first
        .split_whitespace()
        .skip(1)
        .filter_map(|n| n.parse().ok())
        .collect();
    // user, nice, system, irq, softirq, steal: what is neither idle nor waiting. 100 ticks a second.
    let busy: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|i| ticks.get(*i))
        .sum();
    let memory = usage::memory();
    NodeUsage {
        cpu_ns: busy * 10_000_000,
        memory_used: memory.capacity.saturating_sub(memory.available),
        memory_available: memory.available,
        memory_total: memory.capacity,
    }
}

pub(super) async fn resource(State(app): State<App>) -> String {
    let all = usage::containers(&app.ctx).await;
    let node = node_usage();
    let now = Timestamp::now().as_millisecond();
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, lines: Vec<String>| {
        let _ = writeln!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for line in lines {
            let _ = writeln!(out, "{name}{line} {now}");
        }
    };
    let labels = |o: &Used| {
        format!(
            "{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
            o.name, o.pod.namespace, o.pod.name
        )
    };
    let seconds = |ns: u64| ns as f64 / 1e9;
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        all.iter()
            .map(|o| format!("{} {}", labels(o), seconds(o.stats.cpu_usage_ns)))
            .collect(),
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        all.iter()
            .map(|o| format!("{} {}", labels(o), o.stats.memory_working_set_bytes))
            .collect(),
    );
    family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        all.iter()
            .filter_map(|o| {
                Some(format!(
                    "{} {}",
                    labels(o),
                    o.started_at?.as_millisecond() as f64 / 1e3
                ))
            })
            .collect(),
    );
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        vec![format!(" {}", seconds(node.cpu_ns))],
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        vec![format!(" {}", node.memory_used)],
    );
    let mut pods: std::collections::BTreeMap<(String, String), (u64, u64)> = Default::default();
    for o in &all {
        let s = &o.stats;
        let sum = pods
            .entry((o.pod.namespace.clone(), o.pod.name.clone()))
            .or_default();
        sum.0 += s.cpu_usage_ns;
        sum.1 += s.memory_working_set_bytes;
    }
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        pods.iter()
            .map(|((ns, pod), (cpu, _))| {
                format!("{{namespace=\"{ns}\",pod=\"{pod}\"}} {}", seconds(*cpu))
            })
            .collect(),
    );
    family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        pods.iter()
            .map(|((ns, pod), (_, memory))| {
                format!("{{namespace=\"{ns}\",pod=\"{pod}\"}} {memory}")
            })
            .collect(),
    );
    let _ = writeln!(
        out,
        "# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise\n\
         # TYPE resource_scrape_error gauge\nresource_scrape_error 0"
    );
    out
}

pub(super) async fn summary(State(app): State<App>) -> Response {
    let all = usage::containers(&app.ctx).await;
    let node = node_usage();
    let now = Timestamp::now().to_string();
    let cpu = |ns: u64| json!({"time": now, "usageCoreNanoSeconds": ns});
    let memory = |usage: u64, working: u64, rss: u64| json!({"time": now, "usageBytes": usage, "workingSetBytes": working, "rssBytes": rss});
    let nodefs = usage::disk(&app.ctx.config.state_dir);
    // With the figures of the file system that it is on.
    let part = |used: Occupied, of: Option<(Level, Level)>| {
        of.map(|(bytes, inodes)| {
            json!({
                "time": now, "availableBytes": bytes.available, "capacityBytes": bytes.capacity,
                "usedBytes": used.bytes, "inodesFree": inodes.available,
                "inodes": inodes.capacity, "inodesUsed": used.inodes,
            })
        })
    };
    let images = app.ctx.runtime.image_root().await;
    let imagefs = images.as_deref().and_then(usage::disk);
    let objects: Vec<_> = app.ctx.pods.read().values().cloned().collect();
    let mut pods: Vec<Value> = Vec::new();
    let mut uids: Vec<&str> = all.iter().map(|o| o.pod.uid.as_str()).collect();
    uids.sort_unstable();
    uids.dedup();
    for uid in uids {
        let of: Vec<_> = all.iter().filter(|o| o.pod.uid == uid).collect();
        let Some(first) = of.first() else {
            continue;
        };
        let object = objects
            .iter()
            .find(|pod| pod.metadata.uid.as_deref() == Some(uid));
        let disk = match object {
            Some(pod) => disk::of(&app.ctx, pod).await,
            None => Default::default(),
        };
        let volumes: Vec<Value> = disk
            .volumes
            .iter()
            .filter_map(|(name, used)| {
                let mut volume = part(*used, nodefs)?;
                volume["name"] = json!(name);
                Some(volume)
            })
            .collect();
        let sum = |f: fn(&ContainerStats) -> u64| of.iter().map(|o| f(&o.stats)).sum::<u64>();
        let containers: Vec<Value> = of
            .iter()
            .map(|o| {
                let s = &o.stats;
                let own = disk.containers.get(&o.name).cloned().unwrap_or_default();
                json!({
                    "name": o.name,
                    "rootfs": part(own.rootfs, imagefs),
                    "logs": part(own.logs, nodefs),
                    "startTime": o.started_at.map(|t| t.to_string()),
                    "cpu": cpu(s.cpu_usage_ns),
                    "memory": memory(
                        s.memory_usage_bytes, s.memory_working_set_bytes, s.memory_rss_bytes),
                })
            })
            .collect();
        pods.push(json!({
            "podRef": {"name": first.pod.name, "namespace": first.pod.namespace, "uid": uid},
            "startTime": of.iter().filter_map(|o| o.started_at).min().map(|t| t.to_string()),
            "containers": containers,
            "cpu": cpu(sum(|s| s.cpu_usage_ns)),
            "memory": memory(
                sum(|s| s.memory_usage_bytes),
                sum(|s| s.memory_working_set_bytes),
                sum(|s| s.memory_rss_bytes)),
            "volume": volumes,
            "ephemeral-storage": part(disk.total, nodefs),
            "process_stats": {"process_count": sum(|s| s.pids)},
        }));
    }
    let whole = |of: Option<(Level, Level)>| {
        let used = of.map(|(bytes, inodes)| Occupied {
            bytes: bytes.capacity.saturating_sub(bytes.available),
            inodes: inodes.capacity.saturating_sub(inodes.available),
        });
        part(used.unwrap_or_default(), of)
    };
    let rlimit = usage::pids().map(|pids| {
        json!({
            "time": now, "maxpid": pids.capacity,
            "curproc": pids.capacity.saturating_sub(pids.available),
        })
    });
    super::json(&json!({
        "node": {
            "nodeName": app.ctx.config.node_name,
            "cpu": cpu(node.cpu_ns),
            "memory": {
                "time": now,
                "availableBytes": node.memory_available,
                "usageBytes": node.memory_total.saturating_sub(node.memory_available),
                "workingSetBytes": node.memory_used,
            },
            "fs": whole(nodefs),
            "runtime": {"imageFs": whole(imagefs)},
            "rlimit": rlimit,
        },
        "pods": pods,
    }))
}

/// cAdvisor's names for what `/metrics/resource` counts: dashboards ask for them.
pub(super) async fn cadvisor(State(app): State<App>) -> String {
    let mut out = String::new();
    for o in usage::containers(&app.ctx).await {
        let s = &o.stats;
        let labels = format!(
            "{{container=\"{}\",id=\"{}\",image=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
            o.name, o.id, o.image, o.pod.namespace, o.pod.name
        );
        let seconds = s.cpu_usage_ns as f64 / 1e9;
        let _ = writeln!(out, "container_cpu_usage_seconds_total{labels} {seconds}");
        let _ = writeln!(
            out,
            "container_memory_working_set_bytes{labels} {}",
            s.memory_working_set_bytes
        );
        let _ = writeln!(
            out,
            "container_memory_usage_bytes{labels} {}",
            s.memory_usage_bytes
        );
        let _ = writeln!(out, "container_memory_rss{labels} {}", s.memory_rss_bytes);
        let _ = writeln!(out, "container_processes{labels} {}", s.pids);
    }
    out
}

pub(super) async fn probes(State(app): State<App>) -> String {
    app.ctx.probes.text()
}

pub(super) async fn prometheus(State(app): State<App>) -> String {
    let pods = app.ctx.pods.read().len();
    let listed = app.ctx.runtime.list().await.unwrap_or_default();
    let count = |role: ContainerRole, state: ContainerState| {
        listed
            .iter()
            .filter(|c| c.role == role && c.state == state)
            .count()
    };
    let memory = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = memory
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let mut text = format!(
        "# TYPE kubelet_desired_pods gauge\n\
         kubelet_desired_pods {pods}\n\
         # TYPE kubelet_running_pods gauge\n\
         kubelet_running_pods {}\n\
         # TYPE kubelet_running_containers gauge\n\
         kubelet_running_containers{{container_state=\"running\"}} {}\n\
         kubelet_running_containers{{container_state=\"exited\"}} {}\n\
         # TYPE kubelet_node_name gauge\n\
         kubelet_node_name{{node=\"{}\"}} 1\n\
         # TYPE skep_kubelet_events_dropped_total counter\n\
         skep_kubelet_events_dropped_total {}\n\
         # TYPE process_resident_memory_bytes gauge\n\
         process_resident_memory_bytes {}\n",
        count(ContainerRole::Sandbox, ContainerState::Running),
        count(ContainerRole::App, ContainerState::Running),
        count(ContainerRole::App, ContainerState::Exited),
        app.ctx.config.node_name,
        events::EVENTS_DROPPED.load(Ordering::Relaxed),
        pages * 4096,
    );
    text.push_str(&app.ctx.counters.text());
    text.push_str(&app.ctx.network.metrics());
    text
}
