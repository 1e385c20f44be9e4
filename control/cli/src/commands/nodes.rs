//! `skep cordon`, `uncordon`, `drain`, `taint`, `top`: nodes and what they carry.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::duration;
use crate::{
    discovery::items,
    output,
    session::{ApiError, PatchKind, Session, name_of, text},
};

/// The nodes named or selected.
async fn nodes(session: &Session, names: &[String], selector: Option<&str>) -> Result<Vec<Value>> {
    if let Some(selector) = selector {
        let path = format!(
            "/api/v1/nodes?labelSelector={}",
            crate::discovery::encode(selector)
        );
        return Ok(items(&session.get(&path).await?, "items")
            .cloned()
            .collect());
    }
    if names.is_empty() {
        bail!("USAGE: NODE (or --selector)");
    }
    let mut found = Vec::new();
    for name in names {
        let name = name
            .strip_prefix("node/")
            .or(name.strip_prefix("nodes/"))
            .unwrap_or(name);
        found.push(session.get(&format!("/api/v1/nodes/{name}")).await?);
    }
    Ok(found)
}

#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    names: Vec<String>,
    #[arg(short = 'l', long)]
    selector: Option<String>,
}

/// Marks nodes (un)schedulable.
pub async fn cordon(session: &Session, args: &NodeArgs, unschedulable: bool) -> Result<()> {
    for node in nodes(session, &args.names, args.selector.as_deref()).await? {
        set_unschedulable(session, &node, unschedulable).await?;
    }
    Ok(())
}

async fn set_unschedulable(session: &Session, node: &Value, unschedulable: bool) -> Result<()> {
    let name = name_of(node);
    let word = if unschedulable {
        "cordoned"
    } else {
        "uncordoned"
    };
    if (node["spec"]["unschedulable"] == true) == unschedulable {
        println!("node/{name} already {word}");
        return Ok(());
    }
    let value = if unschedulable {
        json!(true)
    } else {
        Value::Null
    };
    let patch = json!({"spec": {"unschedulable": value}});
    session
        .patch(
            &format!("/api/v1/nodes/{name}"),
            PatchKind::Strategic,
            &patch,
        )
        .await?;
    println!("node/{name} {word}");
    Ok(())
}

/// Move all pods off nodes, respecting disruption budgets.
#[derive(Args, Clone, Debug)]
pub struct Drain {
    names: Vec<String>,
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Leave pods of DaemonSets where they are
    #[arg(long)]
    ignore_daemonsets: bool,
    /// Also pods with emptyDir volumes, whose data is lost
    #[arg(long)]
    delete_emptydir_data: bool,
    /// Also pods that no controller makes again
    #[arg(long)]
    force: bool,
    /// Seconds for pods to end in; -1 leaves it to them
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    grace_period: i64,
    #[arg(long, value_parser = duration, default_value = "0s")]
    timeout: Duration,
    /// Delete instead of evicting, whatever the budgets say
    #[arg(long)]
    disable_eviction: bool,
    #[arg(long)]
    pod_selector: Option<String>,
}

impl Drain {
    pub async fn run(self, session: &Session) -> Result<()> {
        let deadline = (!self.timeout.is_zero()).then(|| Instant::now() + self.timeout);
        let nodes = nodes(session, &self.names, self.selector.as_deref()).await?;
        for node in &nodes {
            set_unschedulable(session, node, true).await?;
        }
        for node in &nodes {
            self.empty(session, &name_of(node), deadline).await?;
            println!("node/{} drained", name_of(node));
        }
        Ok(())
    }

    async fn empty(&self, session: &Session, node: &str, deadline: Option<Instant>) -> Result<()> {
        let mut path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
        if let Some(selector) = &self.pod_selector {
            path = format!(
                "{path}&labelSelector={}",
                crate::discovery::encode(selector)
            );
        }
        let list = session.get(&path).await?;
        let (mut leaving, mut obstacles, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
        for pod in items(&list, "items") {
            match self.verdict(pod) {
                Verdict::Leave => leaving.push(pod.clone()),
                Verdict::Ignore => ignored.push(pod_name(pod)),
                Verdict::Stay => {}
                Verdict::Obstacle(why) => obstacles.push(format!("{} ({why})", pod_name(pod))),
            }
        }
        if !obstacles.is_empty() {
            bail!(
                "unable to drain node \"{node}\": cannot delete {}",
                obstacles.join(", ")
            );
        }
        if !ignored.is_empty() {
            eprintln!(
                "Warning: ignoring DaemonSet-managed Pods: {}",
                ignored.join(", ")
            );
        }
        for pod in &leaving {
            self.evict(session, pod, deadline).await?;
        }
        for pod in &leaving {
            let path = pod_path(pod);
            loop {
                let now = session.find(&path).await?;
                if now.is_none_or(|now| now["metadata"]["uid"] != pod["metadata"]["uid"]) {
                    break;
                }
                pause(deadline, Duration::from_millis(100), || {
                    format!("pod {} to end", pod_name(pod))
                })
                .await?;
            }
            println!("pod/{} evicted", name_of(pod));
        }
        Ok(())
    }

    fn verdict(&self, pod: &Value) -> Verdict {
        let annotations = &pod["metadata"]["annotations"];
        if !annotations["kubernetes.io/config.mirror"].is_null() {
            return Verdict::Stay;
        }
        let finished = matches!(
            pod["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed")
        );
        let controller =
            items(&pod["metadata"], "ownerReferences").find(|o| o["controller"] == true);
        if !finished && controller.is_some_and(|c| c["kind"] == "DaemonSet") {
            return match self.ignore_daemonsets {
                true => Verdict::Ignore,
                false => Verdict::Obstacle("DaemonSet-managed; use --ignore-daemonsets to ignore"),
            };
        }
        let has_local_data = items(&pod["spec"], "volumes").any(|v| !v["emptyDir"].is_null());
        if !finished && has_local_data && !self.delete_emptydir_data {
            return Verdict::Obstacle("has local storage; use --delete-emptydir-data to override");
        }
        if !finished && controller.is_none() && !self.force {
            return Verdict::Obstacle("declares no controller; use --force to override");
        }
        Verdict::Leave
    }

    async fn evict(&self, session: &Session, pod: &Value, deadline: Option<Instant>) -> Result<()> {
        println!("evicting pod {}", pod_name(pod));
        let mut options = json!({});
        if self.grace_period >= 0 {
            options["gracePeriodSeconds"] = self.grace_period.into();
        }
        let path = pod_path(pod);
        if self.disable_eviction {
            session.delete(&path, &options).await?;
            return Ok(());
        }
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "deleteOptions": options,
            "metadata": {"name": name_of(pod), "namespace": pod["metadata"]["namespace"]},
        });
        loop {
            match session.create(&format!("{path}/eviction"), &eviction).await {
                Ok(_) => return Ok(()),
                Err(error) => match ApiError::reason(&error) {
                    Some("NotFound") => return Ok(()),
                    // A disruption budget: it is met again when other pods are ready.
                    Some("TooManyRequests") => {
                        eprintln!(
                            "error when evicting pods/\"{}\" (will retry after 5s): {error}",
                            name_of(pod)
                        );
                        let what = || format!("the disruption budget of {}", pod_name(pod));
                        pause(deadline, Duration::from_secs(5), what).await?;
                    }
                    _ => return Err(error),
                },
            }
        }
    }
}

enum Verdict {
    Leave,
    Stay,
    Ignore,
    Obstacle(&'static str),
}

async fn pause(deadline: Option<Instant>, time: Duration, what: impl Fn() -> String) -> Result<()> {
    if deadline.is_some_and(|deadline| Instant::now() > deadline) {
        bail!("timed out waiting for {}", what());
    }
    tokio::time::sleep(time).await;
    Ok(())
}

fn pod_name(pod: &Value) -> String {
    format!("{}/{}", text(&pod["metadata"], "namespace"), name_of(pod))
}

fn pod_path(pod: &Value) -> String {
    format!(
        "/api/v1/namespaces/{}/pods/{}",
        text(&pod["metadata"], "namespace"),
        name_of(pod)
    )
}

/// Set and remove taints.
///
/// Examples:
///   skep taint nodes n1 dedicated=db:NoSchedule
///   skep taint nodes n1 dedicated:NoSchedule-
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Taint {
    words: Vec<String>,
    #[arg(short = 'l', long)]
    selector: Option<String>,
    #[arg(long)]
    overwrite: bool,
}

impl Taint {
    pub async fn run(self, session: &Session) -> Result<()> {
        let words = self
            .words
            .split_first()
            .filter(|(kind, _)| matches!(kind.as_str(), "node" | "nodes" | "no"));
        let Some((_, words)) = words else {
            bail!("want: taint nodes NODE… KEY=VALUE:EFFECT…")
        };
        let is_change =
            |word: &&String| word.contains(':') || word.contains('=') || word.ends_with('-');
        let (changes, names): (Vec<&String>, Vec<&String>) = words.iter().partition(is_change);
        if changes.is_empty() {
            bail!("at least one taint update is required");
        }
        let names: Vec<String> = names.into_iter().cloned().collect();
        for node in nodes(session, &names, self.selector.as_deref()).await? {
            let mut taints: Vec<Value> = items(&node["spec"], "taints").cloned().collect();
            for change in &changes {
                self.change(&mut taints, change)?;
            }
            let name = name_of(&node);
            let version = node["metadata"]["resourceVersion"].clone();
            let patch =
                json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
            session
                .patch(&format!("/api/v1/nodes/{name}"), PatchKind::Merge, &patch)
                .await?;
            let removed = changes.iter().all(|change| change.ends_with('-'));
            println!(
                "node/{name} {}",
                if removed { "untainted" } else { "tainted" }
            );
        }
        Ok(())
    }

    fn change(&self, taints: &mut Vec<Value>, change: &str) -> Result<()> {
        if let Some(removed) = change.strip_suffix('-') {
            let (pair, effect) = removed
                .split_once(':')
                .map_or((removed, None), |(p, e)| (p, Some(e)));
            let key = pair.split('=').next().unwrap_or(pair);
            let before = taints.len();
            taints
                .retain(|t| t["key"] != key || effect.is_some_and(|effect| t["effect"] != effect));
            if taints.len() == before {
                bail!("taint \"{removed}\" not found");
            }
            return Ok(());
        }
        let Some((pair, effect)) = change.split_once(':') else {
            bail!("invalid taint spec: {change}, want KEY=VALUE:EFFECT");
        };
        if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            bail!("invalid taint effect: {effect}, unsupported taint effect");
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let same = |t: &Value| t["key"] == key && t["effect"] == effect;
        if taints.iter().any(same) && !self.overwrite {
            bail!("node already has {key} taint(s) with same effect(s) and --overwrite is false");
        }
        taints.retain(|t| !same(t));
        let mut taint = json!({"key": key, "effect": effect});
        if !value.is_empty() {
            taint["value"] = value.into();
        }
        taints.push(taint);
        Ok(())
    }
}

/// CPU and memory in use (from metrics.k8s.io).
#[derive(Subcommand, Clone, Debug)]
pub enum Top {
    #[command(visible_aliases = ["nodes", "no"])]
    Node { name: Option<String> },
    #[command(visible_aliases = ["pods", "po"])]
    Pod {
        name: Option<String>,
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        #[arg(short = 'l', long)]
        selector: Option<String>,
        /// A line a container
        #[arg(long)]
        containers: bool,
    },
}

impl Top {
    pub async fn run(self, session: &Session) -> Result<()> {
        const API: &str = "/apis/metrics.k8s.io/v1beta1";
        let fetch = async |path: String| {
            session
                .get(&path)
                .await
                .map_err(|error| match ApiError::reason(&error) {
                    Some("NotFound") => anyhow::anyhow!("Metrics API not available"),
                    _ => error,
                })
        };
        let mut rows: Vec<Vec<String>> = Vec::new();
        match self {
            Self::Node { name } => {
                rows.push(
                    ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"]
                        .map(str::to_owned)
                        .to_vec(),
                );
                let path =
                    name.map_or(format!("{API}/nodes"), |name| format!("{API}/nodes/{name}"));
                let metrics = fetch(path).await?;
                for metric in output::objects(&metrics) {
                    let name = name_of(metric);
                    let node = session.get(&format!("/api/v1/nodes/{name}")).await?;
                    let allocatable = &node["status"]["allocatable"];
                    let (cpu, memory) = (
                        amount(&metric["usage"]["cpu"]),
                        amount(&metric["usage"]["memory"]),
                    );
                    let percent = |used: f64, of: f64| match of > 0.0 {
                        true => format!("{:.0}%", used / of * 100.0),
                        false => "<unknown>".to_owned(),
                    };
                    rows.push(vec![
                        name,
                        format!("{:.0}m", cpu * 1000.0),
                        percent(cpu, amount(&allocatable["cpu"])),
                        format!("{:.0}Mi", memory / 1048576.0),
                        percent(memory, amount(&allocatable["memory"])),
                    ]);
                }
            }
            Self::Pod {
                name,
                all_namespaces,
                selector,
                containers,
            } => {
                let mut head = vec!["NAME", "CPU(cores)", "MEMORY(bytes)"];
                if containers {
                    head[0] = "POD";
                    head.insert(1, "NAME");
                }
                if all_namespaces {
                    head.insert(0, "NAMESPACE");
                }
                rows.push(head.into_iter().map(str::to_owned).collect());
                let mut path = match all_namespaces {
                    true => format!("{API}/pods"),
                    false => format!("{API}/namespaces/{}/pods", session.namespace),
                };
                if let Some(name) = name {
                    path = format!("{path}/{name}");
                }
                if let Some(selector) = selector {
                    path = format!(
                        "{path}?labelSelector={}",
                        crate::discovery::encode(&selector)
                    );
                }
                let metrics = fetch(path).await?;
                for metric in output::objects(&metrics) {
                    let mut add = |names: Vec<String>, cpu: f64, memory: f64| {
                        let mut row = Vec::new();
                        if all_namespaces {
                            row.push(text(&metric["metadata"], "namespace"));
                        }
                        row.extend(names);
                        row.push(format!("{:.0}m", cpu * 1000.0));
                        row.push(format!("{:.0}Mi", memory / 1048576.0));
                        rows.push(row);
                    };
                    let each = items(metric, "containers").map(|container| {
                        let usage = &container["usage"];
                        (
                            text(container, "name"),
                            amount(&usage["cpu"]),
                            amount(&usage["memory"]),
                        )
                    });
                    if containers {
                        each.for_each(|(name, cpu, memory)| {
                            add(vec![name_of(metric), name], cpu, memory)
                        });
                    } else {
                        let (cpu, memory) =
                            each.fold((0.0, 0.0), |sum, (_, c, m)| (sum.0 + c, sum.1 + m));
                        add(vec![name_of(metric)], cpu, memory);
                    }
                }
            }
        }
        if rows.len() == 1 {
            eprintln!("No resources found");
            return Ok(());
        }
        print!("{}", output::align(&rows));
        Ok(())
    }
}

fn quantity(text: &str) -> f64 {
    let digits = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let number: f64 = text[..digits].parse().unwrap_or(0.0);
    number
        * match &text[digits..] {
            "n" => 1e-9,
            "u" => 1e-6,
            "m" => 1e-3,
            "k" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "T" => 1e12,
            "Ki" => 1024.0,
            "Mi" => 1048576.0,
            "Gi" => 1073741824.0,
            "Ti" => 1099511627776.0,
            _ => 1.0,
        }
}

fn amount(value: &Value) -> f64 {
    quantity(value.as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain() -> Drain {
        Drain {
            names: vec![],
            selector: None,
            ignore_daemonsets: false,
            delete_emptydir_data: false,
            force: false,
            grace_period: -1,
            timeout: Duration::ZERO,
            disable_eviction: false,
            pod_selector: None,
        }
    }

    #[test]
    fn drain_asks_before_it_loses_something() {
        let owned = |kind: &str| json!({"metadata": {"ownerReferences": [{"kind": kind, "controller": true}]}});
        assert!(matches!(
            drain().verdict(&owned("ReplicaSet")),
            Verdict::Leave
        ));
        assert!(matches!(
            drain().verdict(&owned("DaemonSet")),
            Verdict::Obstacle(_)
        ));
        assert!(matches!(
            drain().verdict(&json!({"metadata": {}})),
            Verdict::Obstacle(_)
        ));
        let mut with_data = owned("ReplicaSet");
        with_data["spec"] = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        assert!(matches!(drain().verdict(&with_data), Verdict::Obstacle(_)));
        let finished = json!({"metadata": {}, "status": {"phase": "Succeeded"}});
        assert!(!matches!(drain().verdict(&finished), Verdict::Ignore));
    }

    #[test]
    fn taints_are_set_and_removed() {
        let taint = Taint {
            words: vec![],
            selector: None,
            overwrite: false,
        };
        let mut taints = Vec::new();
        taint.change(&mut taints, "a=b:NoSchedule").unwrap();
        assert_eq!(
            taints,
            [json!({"key": "a", "value": "b", "effect": "NoSchedule"})]
        );
        assert!(taint.change(&mut taints, "a=c:NoSchedule").is_err());
        assert!(taint.change(&mut taints, "a=c:Nonsense").is_err());
        taint.change(&mut taints, "a:NoSchedule-").unwrap();
        assert!(taints.is_empty());
        assert!(taint.change(&mut taints, "a-").is_err());
    }

    #[test]
    fn quantities_are_read() {
        assert_eq!(quantity("250m"), 0.25);
        assert_eq!(quantity("1Gi"), 1073741824.0);
        assert_eq!(quantity("12345678n"), 0.012345678);
    }
}
