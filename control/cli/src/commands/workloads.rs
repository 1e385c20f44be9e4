//! `skep scale`, `set image|env|resources|selector…`, `rollout …`: changes to what runs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    duration,
    write::{DryRun, WriteArgs},
};
use crate::{
    discovery::{Resource, items},
    output::{self, qualified_name},
    session::{Global, PatchKind, Session, name_of, text},
    target::{Selection, Target},
};

const REVISION: &str = "deployment.kubernetes.io/revision";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";

/// Set the number of replicas.
///
/// Examples:
///   skep scale deployment web --replicas=5
///   skep scale rs/web-1 rs/web-2 --replicas=0
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Scale {
    #[command(flatten)]
    selection: Selection,
    #[arg(long)]
    replicas: i32,
    /// Only if it has this many now
    #[arg(long)]
    current_replicas: Option<i32>,
    #[command(flatten)]
    write: WriteArgs,
    /// Wait until the replicas are there
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
}

impl Scale {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        for (resource, object) in self.selection.objects(session, global).await? {
            if !resource.subresources.iter().any(|sub| sub == "scale") {
                bail!("could not find the scale subresource of {resource}");
            }
            let (target, path) = at(&resource, &object);
            let scale = session.get(&format!("{path}/scale")).await?;
            if let Some(expected) = self.current_replicas {
                let current = scale["spec"]["replicas"].as_i64().unwrap_or(0);
                if current != i64::from(expected) {
                    bail!("expected replicas to be {expected}, was {current}");
                }
            }
            if self.write.dry_run != DryRun::Client {
                let patch = json!({"spec": {"replicas": self.replicas}});
                let path = format!("{path}/scale?{}", self.write.query());
                session.patch(&path, PatchKind::Merge, &patch).await?;
            }
            self.write.report(&object, &target, "scaled")?;
            if let Some(timeout) = self.timeout {
                wait_until(timeout, || async {
                    let scale = session.get(&format!("{path}/scale")).await?;
                    Ok(scale["status"]["replicas"].as_i64().unwrap_or(0)
                        == i64::from(self.replicas))
                })
                .await
                .context("timed out waiting for the replicas")?;
            }
        }
        Ok(())
    }
}

fn at(resource: &Resource, object: &Value) -> (Target, String) {
    let namespace = text(&object["metadata"], "namespace");
    let name = name_of(object);
    let path = resource.path(&namespace, &name);
    (
        Target {
            resource: resource.clone(),
            namespace,
            names: vec![name],
        },
        path,
    )
}

async fn wait_until<F: Future<Output = Result<bool>>>(
    timeout: Duration,
    mut done: impl FnMut() -> F,
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !done().await? {
        if Instant::now() > deadline {
            bail!("timed out after {timeout:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Where the pod template of a workload is.
fn template_path(kind: &str) -> Result<&'static [&'static str]> {
    Ok(match kind {
        "Pod" => &["spec"],
        "CronJob" => &["spec", "jobTemplate", "spec", "template", "spec"],
        "Deployment"
        | "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "ReplicationController" => &["spec", "template", "spec"],
        _ => bail!("a {kind} has no pod template"),
    })
}

/// Wraps a change of a pod spec into a patch of the workload that holds it.
fn nest(path: &[&str], change: Value) -> Value {
    path.iter()
        .rev()
        .fold(change, |inner, key| json!({ (*key).to_owned(): inner }))
}

fn pod_spec<'a>(kind: &str, object: &'a Value) -> Result<&'a Value> {
    Ok(template_path(kind)?
        .iter()
        .fold(object, |value, key| &value[*key]))
}

/// Change a field of workloads.
#[derive(Subcommand, Clone, Debug)]
pub enum Set {
    /// CONTAINER=IMAGE: skep set image deployment/web nginx=nginx:1.28 ('*' is every container)
    #[command(visible_alias = "i")]
    Image(SetArgs),
    /// NAME=VALUE sets, NAME- removes: skep set env deployment/web LEVEL=debug
    Env(SetArgs),
    /// skep set resources deployment/web --limits=cpu=200m,memory=64Mi --requests=cpu=100m
    Resources {
        #[command(flatten)]
        args: SetArgs,
        #[arg(long, value_delimiter = ',')]
        limits: Vec<String>,
        #[arg(long, value_delimiter = ',')]
        requests: Vec<String>,
    },
    /// skep set serviceaccount deployment/web NAME
    #[command(visible_alias = "sa")]
    Serviceaccount(SetArgs),
}

#[derive(Args, Clone, Debug)]
pub struct SetArgs {
    #[command(flatten)]
    selection: Selection,
    /// Only in this container
    #[arg(short, long)]
    containers: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
}

impl SetArgs {
    async fn patch(
        &self,
        session: &Session,
        resource: &Resource,
        object: &Value,
        change: Value,
        done: &str,
    ) -> Result<()> {
        let (target, path) = at(resource, object);
        let patch = nest(template_path(&resource.kind)?, change);
        let patched = if self.write.dry_run == DryRun::Client {
            object.clone()
        } else {
            let path = format!("{path}?{}", self.write.query());
            session.patch(&path, PatchKind::Strategic, &patch).await?
        };
        let version = |object: &Value| text(&object["metadata"], "resourceVersion");
        if version(&patched) != version(object) || self.write.dry_run != DryRun::None {
            self.write.report(&patched, &target, done)?;
        }
        Ok(())
    }

    fn container_names(&self, spec: &Value) -> Vec<String> {
        let names = items(spec, "containers").map(|c| text(c, "name"));
        names
            .filter(|name| {
                self.containers
                    .as_ref()
                    .is_none_or(|only| only == name || only == "*")
            })
            .collect()
    }
}

impl Set {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        let mut args = match &self {
            Self::Image(args) | Self::Env(args) | Self::Serviceaccount(args) => args.clone(),
            Self::Resources { args, .. } => args.clone(),
        };
        let words = std::mem::take(&mut args.selection.words);
        let (targets, values): (Vec<String>, Vec<String>) = match self {
            // The name of the account stands last.
            Self::Serviceaccount(_) => match words.split_last() {
                Some((last, rest)) => (rest.to_vec(), vec![last.clone()]),
                None => bail!("serviceaccount is required"),
            },
            Self::Env(_) => words
                .into_iter()
                .partition(|w| !w.contains('=') && !w.ends_with('-')),
            _ => words.into_iter().partition(|word| !word.contains('=')),
        };
        args.selection.words = targets;
        for (resource, object) in args.selection.objects(session, global).await? {
            let spec = pod_spec(&resource.kind, &object)?;
            let (change, done) = match &self {
                Self::Image(_) => (images(spec, &values)?, "image updated"),
                Self::Env(_) => (
                    environment(&args.container_names(spec), &values)?,
                    "env updated",
                ),
                Self::Resources {
                    limits, requests, ..
                } => {
                    let change = resources(&args.container_names(spec), limits, requests)?;
                    (change, "resource requirements updated")
                }
                Self::Serviceaccount(_) => (
                    json!({"serviceAccountName": values[0]}),
                    "serviceaccount updated",
                ),
            };
            args.patch(session, &resource, &object, change, done)
                .await?;
        }
        Ok(())
    }
}

fn images(spec: &Value, values: &[String]) -> Result<Value> {
    if values.is_empty() {
        bail!("at least one image update (CONTAINER=IMAGE) is required");
    }
    let mut change = Map::new();
    for value in values {
        let (name, image) = value.split_once('=').context("want CONTAINER=IMAGE")?;
        let mut found = false;
        for list in ["containers", "initContainers"] {
            for container in items(spec, list) {
                let this = text(container, "name");
                if name == "*" || this == name {
                    found = true;
                    let entry = change.entry(list).or_insert_with(|| json!([]));
                    if let Some(entries) = entry.as_array_mut() {
                        entries.push(json!({"name": this, "image": image}));
                    }
                }
            }
        }
        if !found {
            bail!("unable to find container named \"{name}\"");
        }
    }
    Ok(change.into())
}

fn environment(containers: &[String], values: &[String]) -> Result<Value> {
    if values.is_empty() {
        bail!("at least one environment variable (NAME=VALUE or NAME-) must be provided");
    }
    let env: Vec<Value> = values
        .iter()
        .map(|value| match value.split_once('=') {
            Some((name, value)) => json!({"name": name, "value": value}),
            None => json!({"name": value.trim_end_matches('-'), "$patch": "delete"}),
        })
        .collect();
    let containers: Vec<Value> = containers
        .iter()
        .map(|name| json!({"name": name, "env": env}))
        .collect();
    Ok(json!({"containers": containers}))
}

fn resources(containers: &[String], limits: &[String], requests: &[String]) -> Result<Value> {
    let parse = |list: &[String]| -> Result<Map<String, Value>> {
        let pair = |item: &String| {
            let (name, amount) = item
                .split_once('=')
                .context("want RESOURCE=AMOUNT, as cpu=100m")?;
            Ok((name.to_owned(), Value::from(amount)))
        };
        list.iter().map(pair).collect()
    };
    if limits.is_empty() && requests.is_empty() {
        bail!(
            "you must specify an update to requests or limits (in the form of --requests/--limits)"
        );
    }
    let (limits, requests) = (parse(limits)?, parse(requests)?);
    let containers: Vec<Value> = containers
        .iter()
        .map(|name| json!({"name": name, "resources": {"limits": limits, "requests": requests}}))
        .collect();
    Ok(json!({"containers": containers}))
}

/// Follow and steer the rollout of a Deployment, DaemonSet or StatefulSet.
#[derive(Subcommand, Clone, Debug)]
pub enum Rollout {
    /// Show how far a rollout is, and wait for its end
    Status {
        #[command(flatten)]
        selection: Selection,
        /// Wait for the end
        #[arg(short, long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, action = clap::ArgAction::Set)]
        watch: bool,
        #[arg(long, value_parser = duration, default_value = "0s")]
        timeout: Duration,
    },
    /// Show earlier revisions
    History {
        #[command(flatten)]
        selection: Selection,
        /// Show this revision's pod template
        #[arg(long)]
        revision: Option<i64>,
    },
    /// Go back to an earlier revision
    Undo {
        #[command(flatten)]
        selection: Selection,
        /// 0 = the one before
        #[arg(long, default_value_t = 0)]
        to_revision: i64,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Replace all pods, one after the other
    Restart(RolloutArgs),
    /// Let changes of the template wait
    Pause(RolloutArgs),
    /// Go on after a pause
    Resume(RolloutArgs),
}

#[derive(Args, Clone, Debug)]
pub struct RolloutArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    write: WriteArgs,
}

impl Rollout {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        match self {
            Self::Status {
                selection,
                watch,
                timeout,
            } => {
                for (resource, object) in selection.objects(session, global).await? {
                    follow(session, &resource, &object, watch, timeout).await?;
                }
            }
            Self::History {
                selection,
                revision,
            } => {
                for (resource, object) in selection.objects(session, global).await? {
                    history(session, &resource, &object, revision).await?;
                }
            }
            Self::Undo {
                selection,
                to_revision,
                write,
            } => {
                for (resource, object) in selection.objects(session, global).await? {
                    undo(session, &resource, &object, to_revision, &write).await?;
                }
            }
            Self::Restart(args) => {
                let now = jiff::Timestamp::now()
                    .strftime("%Y-%m-%dT%H:%M:%SZ")
                    .to_string();
                let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
                let patch =
                    json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
                args.patch(session, global, &patch, "restarted").await?;
            }
            Self::Pause(args) => {
                args.patch(
                    session,
                    global,
                    &json!({"spec": {"paused": true}}),
                    "paused",
                )
                .await?;
            }
            Self::Resume(args) => {
                args.patch(
                    session,
                    global,
                    &json!({"spec": {"paused": null}}),
                    "resumed",
                )
                .await?;
            }
        }
        Ok(())
    }
}

impl RolloutArgs {
    async fn patch(
        &self,
        session: &Session,
        global: &Global,
        patch: &Value,
        done: &str,
    ) -> Result<()> {
        for (resource, object) in self.selection.objects(session, global).await? {
            let (target, path) = at(&resource, &object);
            let kind = resource.kind.as_str();
            match done {
                "restarted" if !matches!(kind, "Deployment" | "DaemonSet" | "StatefulSet") => {
                    bail!("restarting is not supported for {resource}");
                }
                "paused" | "resumed" if kind != "Deployment" => bail!("{kind}s cannot be {done}"),
                "paused" if object["spec"]["paused"] == true => {
                    bail!(
                        "{} is already paused",
                        qualified_name(&object, Some(&resource))
                    );
                }
                "resumed" if object["spec"]["paused"] != true => {
                    bail!("{} is not paused", qualified_name(&object, Some(&resource)));
                }
                _ => {}
            }
            let path = format!("{path}?{}", self.write.query());
            let patched = session.patch(&path, PatchKind::Strategic, patch).await?;
            self.write.report(&patched, &target, done)?;
        }
        Ok(())
    }
}

/// What kubectl says of a rollout, and whether it is at its end.
fn rollout_status(kind: &str, object: &Value) -> Result<(String, bool)> {
    let name = name_of(object);
    let (spec, status) = (&object["spec"], &object["status"]);
    let number = |value: &Value, key: &str| value[key].as_i64().unwrap_or(0);
    if number(&object["metadata"], "generation") > number(status, "observedGeneration") {
        return Ok((
            format!(
                "Waiting for {} spec update to be observed...",
                kind.to_lowercase()
            ),
            false,
        ));
    }
    Ok(match kind {
        "Deployment" => {
            let progressing = items(status, "conditions").find(|c| c["type"] == "Progressing");
            if progressing.is_some_and(|c| c["reason"] == "ProgressDeadlineExceeded") {
                bail!("deployment \"{name}\" exceeded its progress deadline");
            }
            let wanted = spec["replicas"].as_i64().unwrap_or(1);
            let (all, updated, available) = (
                number(status, "replicas"),
                number(status, "updatedReplicas"),
                number(status, "availableReplicas"),
            );
            let waiting = format!("Waiting for deployment \"{name}\" rollout to finish: ");
            if updated < wanted {
                (
                    format!("{waiting}{updated} out of {wanted} new replicas have been updated..."),
                    false,
                )
            } else if all > updated {
                (
                    format!(
                        "{waiting}{} old replicas are pending termination...",
                        all - updated
                    ),
                    false,
                )
            } else if available < updated {
                (
                    format!("{waiting}{available} of {updated} updated replicas are available..."),
                    false,
                )
            } else {
                (
                    format!("deployment \"{name}\" successfully rolled out"),
                    true,
                )
            }
        }
        "DaemonSet" => {
            let (wanted, updated, available) = (
                number(status, "desiredNumberScheduled"),
                number(status, "updatedNumberScheduled"),
                number(status, "numberAvailable"),
            );
            let waiting = format!("Waiting for daemon set \"{name}\" rollout to finish: ");
            if updated < wanted {
                (
                    format!("{waiting}{updated} out of {wanted} new pods have been updated..."),
                    false,
                )
            } else if available < wanted {
                (
                    format!("{waiting}{available} of {wanted} updated pods are available..."),
                    false,
                )
            } else {
                (
                    format!("daemon set \"{name}\" successfully rolled out"),
                    true,
                )
            }
        }
        "StatefulSet" => {
            let wanted = spec["replicas"].as_i64().unwrap_or(1);
            let partition = number(&spec["updateStrategy"]["rollingUpdate"], "partition");
            let (ready, updated) = (
                number(status, "readyReplicas"),
                number(status, "updatedReplicas"),
            );
            if ready < wanted {
                (
                    format!("Waiting for {} pods to be ready...", wanted - ready),
                    false,
                )
            } else if partition > 0 && updated < wanted - partition {
                let of = wanted - partition;
                (
                    format!(
                        "Waiting for partitioned roll out to finish: {updated} out of {of} new pods have been updated..."
                    ),
                    false,
                )
            } else if partition == 0 && status["updateRevision"] != status["currentRevision"] {
                let revision = text(status, "updateRevision");
                (
                    format!(
                        "waiting for statefulset rolling update to complete {updated} pods at revision {revision}..."
                    ),
                    false,
                )
            } else {
                let current = number(status, "currentReplicas");
                (
                    format!(
                        "statefulset rolling update complete {current} pods at revision {}...",
                        text(status, "currentRevision")
                    ),
                    true,
                )
            }
        }
        _ => bail!("no status viewer has been implemented for {kind}"),
    })
}

async fn follow(
    session: &Session,
    resource: &Resource,
    object: &Value,
    watch: bool,
    timeout: Duration,
) -> Result<()> {
    let (_, path) = at(resource, object);
    let deadline = (!timeout.is_zero()).then(|| Instant::now() + timeout);
    let mut said = String::new();
    loop {
        let object = session.get(&path).await?;
        let (message, done) = rollout_status(&resource.kind, &object)?;
        if message != said {
            println!("{message}");
            said = message;
        }
        if done || !watch {
            return Ok(());
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            bail!("timed out waiting for the condition");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A stored revision: its number, the cause given for it, and its pod template.
struct Revision {
    number: i64,
    cause: String,
    template: Value,
}

async fn revisions(
    session: &Session,
    resource: &Resource,
    object: &Value,
) -> Result<Vec<Revision>> {
    let namespace = text(&object["metadata"], "namespace");
    let uid = text(&object["metadata"], "uid");
    let owned = |item: &&Value| {
        items(&item["metadata"], "ownerReferences").any(|o| o["uid"] == uid.as_str())
    };
    let kept = match resource.kind.as_str() {
        "Deployment" => "replicasets.apps",
        "DaemonSet" | "StatefulSet" => "controllerrevisions.apps",
        kind => bail!("no history viewer has been implemented for {kind}"),
    };
    let kept = session.resource(kept).await?;
    let list = session.get(&kept.path(&namespace, "")).await?;
    let mut revisions: Vec<Revision> = items(&list, "items")
        .filter(owned)
        .filter_map(|item| {
            let annotations = &item["metadata"]["annotations"];
            let (number, template) = if resource.kind == "Deployment" {
                let mut template = item["spec"]["template"].clone();
                if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
                    labels.remove("pod-template-hash");
                }
                (annotations[REVISION].as_str()?.parse().ok()?, template)
            } else {
                (
                    item["revision"].as_i64()?,
                    item["data"]["spec"]["template"].clone(),
                )
            };
            Some(Revision {
                number,
                cause: text(annotations, CHANGE_CAUSE),
                template,
            })
        })
        .collect();
    revisions.sort_by_key(|revision| revision.number);
    Ok(revisions)
}

async fn history(
    session: &Session,
    resource: &Resource,
    object: &Value,
    wanted: Option<i64>,
) -> Result<()> {
    let revisions = revisions(session, resource, object).await?;
    let name = qualified_name(object, Some(resource));
    if let Some(wanted) = wanted {
        let found = revisions.iter().find(|r| r.number == wanted);
        let found =
            found.with_context(|| format!("unable to find the specified revision {wanted}"))?;
        println!("{name} with revision #{wanted}\nPod Template:");
        for line in output::yaml(&found.template)?.lines() {
            println!("  {line}");
        }
        return Ok(());
    }
    let mut rows = vec![vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()]];
    for revision in revisions {
        let cause = if revision.cause.is_empty() {
            "<none>".to_owned()
        } else {
            revision.cause
        };
        rows.push(vec![revision.number.to_string(), cause]);
    }
    println!("{name}");
    println!("{}", output::align(&rows));
    Ok(())
}

async fn undo(
    session: &Session,
    resource: &Resource,
    object: &Value,
    to: i64,
    write: &WriteArgs,
) -> Result<()> {
    let (target, path) = at(resource, object);
    if object["spec"]["paused"] == true {
        bail!(
            "you cannot rollback a paused deployment; resume it first with 'skep rollout resume {}' and try again",
            qualified_name(object, Some(resource))
        );
    }
    let revisions = revisions(session, resource, object).await?;
    let chosen = match to {
        0 if revisions.len() < 2 => bail!(
            "no rollout history found for {}",
            qualified_name(object, Some(resource))
        ),
        0 => &revisions[revisions.len() - 2],
        _ => revisions
            .iter()
            .find(|revision| revision.number == to)
            .with_context(|| format!("unable to find specified revision {to} in history"))?,
    };
    let mut template = chosen.template.clone();
    if let Some(template) = template.as_object_mut() {
        template.remove("$patch");
    }
    if template == object["spec"]["template"] {
        let reason = format!(
            "current template already matches revision {}",
            chosen.number
        );
        return write.report(object, &target, &format!("skipped rollback ({reason})"));
    }
    let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
    let patched = if write.dry_run == DryRun::Client {
        object.clone()
    } else {
        session
            .patch(
                &format!("{path}?{}", write.query()),
                PatchKind::Json,
                &patch,
            )
            .await?
    };
    write.report(&patched, &target, "rolled back")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: Value, message: &str, done: bool) {
        let object = json!({
            "metadata": {"name": "web", "generation": 2}, "spec": {"replicas": 3}, "status": status,
        });
        let (said, ended) = rollout_status("Deployment", &object).unwrap();
        assert!(said.contains(message), "{said}");
        assert_eq!(ended, done);
    }

    #[test]
    fn rollouts_are_followed_to_their_end() {
        check(
            json!({"observedGeneration": 1}),
            "spec update to be observed",
            false,
        );
        check(
            json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1}),
            "1 out of 3 new replicas have been updated",
            false,
        );
        check(
            json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3, "availableReplicas": 3}),
            "1 old replicas are pending termination",
            false,
        );
        check(
            json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 2}),
            "2 of 3 updated replicas are available",
            false,
        );
        check(
            json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}),
            "successfully rolled out",
            true,
        );
    }

    #[test]
    fn images_are_set_by_container() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]});
        let change = images(&spec, &["a=x:1".into()]).unwrap();
        assert_eq!(
            change,
            json!({"containers": [{"name": "a", "image": "x:1"}]})
        );
        let change = images(&spec, &["*=x:1".into()]).unwrap();
        assert_eq!(change["containers"].as_array().unwrap().len(), 2);
        assert_eq!(change["initContainers"].as_array().unwrap().len(), 1);
        assert!(images(&spec, &["z=x:1".into()]).is_err());
    }
}
