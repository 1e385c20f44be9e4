//! `skep create -f`, `apply`, `replace`, `patch`, `delete`, `edit`, `label`, `annotate`: changes to objects as they are.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::get::strip_managed_fields;
use crate::{
    files::FileArgs,
    output::{self, Format},
    session::{ApiError, Global, PatchKind, Session, name_of, text},
    target::{Selection, Target, target_of},
};

/// How a write is made and what is said of it.
#[derive(Args, Clone, Debug, Default)]
pub struct WriteArgs {
    /// none, server (check it there, store nothing) or client (do not send it)
    #[arg(long, value_name = "MODE", default_value = "none", default_missing_value = "client", num_args = 0..=1)]
    pub dry_run: DryRun,
    /// yaml, json, name, jsonpath=TEMPLATE
    #[arg(short, long)]
    pub output: Option<Format>,
    /// What to do with unknown fields: strict (refuse), warn or ignore
    #[arg(long, value_name = "MODE", default_value = "strict", default_missing_value = "strict", num_args = 0..=1)]
    pub validate: Validate,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    #[default]
    None,
    Client,
    Server,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Validate {
    #[default]
    #[value(alias = "true")]
    Strict,
    Warn,
    #[value(alias = "false")]
    Ignore,
}

impl WriteArgs {
    pub fn query(&self) -> String {
        let validation = match self.validate {
            Validate::Strict => "Strict",
            Validate::Warn => "Warn",
            Validate::Ignore => "Ignore",
        };
        let dry_run = if self.dry_run == DryRun::Server {
            "&dryRun=All"
        } else {
            ""
        };
        format!("fieldValidation={validation}{dry_run}")
    }

    /// Says what was done: `deployment.apps/web created`, or the object with -o.
    pub fn report(&self, object: &Value, target: &Target, done: &str) -> Result<()> {
        let mut object = object.clone();
        strip_managed_fields(&mut object);
        match &self.output {
            None => {
                let suffix = match self.dry_run {
                    DryRun::None => "",
                    DryRun::Client => " (dry run)",
                    DryRun::Server => " (server dry run)",
                };
                println!(
                    "{} {done}{suffix}",
                    output::qualified_name(&object, Some(&target.resource))
                );
            }
            Some(format) => print!("{}", format.render(&object, Some(&target.resource))?),
        }
        Ok(())
    }

    /// Creates one object and says so.
    pub async fn create(
        &self,
        session: &Session,
        target: &Target,
        object: &Value,
    ) -> Result<Value> {
        let created = if self.dry_run == DryRun::Client {
            object.clone()
        } else {
            let path = format!("{}?{}", target.path(""), self.query());
            session.create(&path, object).await?
        };
        self.report(&created, target, "created")?;
        Ok(created)
    }
}

/// Goes on after a failure, as kubectl does with several files, and fails at the end.
struct Failures(Vec<anyhow::Error>);

impl Failures {
    fn take<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    fn end(self) -> Result<()> {
        let mut errors = self.0.into_iter().rev();
        let Some(last) = errors.next() else {
            return Ok(());
        };
        for error in errors.rev() {
            eprintln!("{}", crate::message(&error));
        }
        Err(last)
    }
}

pub async fn create_files(
    session: &Session,
    global: &Global,
    files: &FileArgs,
    write: &WriteArgs,
) -> Result<()> {
    let mut failures = Failures(Vec::new());
    for object in files.objects()? {
        let result = async {
            let target = target_of(session, global, &object).await?;
            write
                .create(session, &target, &object)
                .await
                .map_err(|error| while_doing(error, "creating", &files.filename))
        };
        failures.take(result.await);
    }
    failures.end()
}

/// kubectl's frame around a refused file.
fn while_doing(error: anyhow::Error, doing: &str, files: &[String]) -> anyhow::Error {
    match error.downcast::<ApiError>() {
        Ok(error) => {
            let (reason, message) = (text(&error.0, "reason"), text(&error.0, "message"));
            let reason = if reason.is_empty() {
                "Unknown".to_owned()
            } else {
                reason
            };
            let file = files.first().map(String::as_str).unwrap_or_default();
            if reason == "Invalid" {
                return ApiError(error.0).into();
            }
            anyhow!("Error from server ({reason}): error when {doing} \"{file}\": {message}")
        }
        Err(error) => error,
    }
}

/// Make objects be as the files say; fields left out later are removed (server-side apply).
///
/// Examples:
///   skep apply -f web.yaml
///   cat web.yaml | skep apply -f -
///   skep apply -f manifests/ --dry-run=server
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Apply {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    apply: ServerApply,
    /// Accepted for kubectl's sake: apply is always done on the server
    #[arg(long, num_args = 0..=1, default_missing_value = "true", hide = true)]
    server_side: Option<bool>,
}

/// How the server is to apply.
#[derive(Args, Clone, Debug)]
pub struct ServerApply {
    /// Take over fields that others manage
    #[arg(long)]
    force_conflicts: bool,
    /// Under which name the fields are owned
    #[arg(long, default_value = crate::session::FIELD_MANAGER)]
    field_manager: String,
}

impl ServerApply {
    /// The object as it is once applied. Conflicts with this program's own `create`, `scale`, … are none.
    pub async fn send(
        &self,
        session: &Session,
        path: &str,
        query: &str,
        object: &Value,
    ) -> Result<Value> {
        let manager = &self.field_manager;
        let path = |force: bool| format!("{path}?{query}&fieldManager={manager}&force={force}");
        let applied = session
            .patch(&path(self.force_conflicts), PatchKind::Apply, object)
            .await;
        match applied {
            Err(error) if conflicts_only_with_own(&error) => {
                session.patch(&path(true), PatchKind::Apply, object).await
            }
            applied => applied,
        }
    }
}

impl Apply {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        let mut failures = Failures(Vec::new());
        for object in self.files.objects()? {
            failures.take(self.apply(session, global, &object).await);
        }
        failures.end()
    }

    async fn apply(&self, session: &Session, global: &Global, object: &Value) -> Result<()> {
        let target = target_of(session, global, object).await?;
        let [name] = &target.names[..] else {
            bail!("apply needs metadata.name; metadata.generateName works with create only");
        };
        let path = target.path(name);
        let before = session.find(&path).await?;
        if self.write.dry_run == DryRun::Client {
            let done = if before.is_some() {
                "configured"
            } else {
                "created"
            };
            return self.write.report(object, &target, done);
        }
        let query = self.write.query();
        let applied = self.apply.send(session, &path, &query, object).await;
        let after =
            applied.map_err(|error| while_doing(error, "applying", &self.files.filename))?;
        let same = |before: &Value| {
            let owned = |live| owned_fields(live, &self.apply.field_manager);
            owned(before) == owned(&after) && same_within(object, before, &after)
        };
        let done = match before {
            None => "created",
            Some(before) if same(&before) => "unchanged",
            Some(_) => "configured",
        };
        self.write.report(&after, &target, done)
    }
}

/// The fields that a manager's applies have set.
fn owned_fields<'a>(live: &'a Value, manager: &str) -> Option<&'a Value> {
    let entries = live["metadata"]["managedFields"].as_array()?;
    let ours = |entry: &&Value| entry["manager"] == manager && entry["operation"] == "Apply";
    entries.iter().find(ours).map(|entry| &entry["fieldsV1"])
}

/// Whether two states of an object agree in the fields that an applied one names. Resource versions do not tell: others
/// write the object meanwhile.
fn same_within(applied: &Value, before: &Value, after: &Value) -> bool {
    match applied {
        Value::Object(fields) => fields
            .iter()
            .all(|(name, field)| same_within(field, &before[name], &after[name])),
        _ => before == after,
    }
}

/// Whether every field in conflict was set by this program's own `create`, `run`, `scale`, …: then applying over it is
/// no conflict between people.
fn conflicts_only_with_own(error: &anyhow::Error) -> bool {
    let Some(ApiError(status)) = error.downcast_ref::<ApiError>() else {
        return false;
    };
    let own = format!("conflict with {:?}", crate::session::FIELD_MANAGER);
    let causes = status["details"]["causes"].as_array();
    causes.is_some_and(|causes| {
        !causes.is_empty()
            && causes.iter().all(|cause| {
                cause["reason"] == "FieldManagerConflict"
                    && text(cause, "message").starts_with(&own)
            })
    })
}

/// Replace objects as a whole.
#[derive(Args, Clone, Debug)]
pub struct Replace {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    write: WriteArgs,
    /// Delete and create again where it cannot be replaced
    #[arg(long)]
    force: bool,
}

impl Replace {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        for object in self.files.objects()? {
            let target = target_of(session, global, &object).await?;
            let [name] = &target.names[..] else {
                bail!("replace needs metadata.name")
            };
            let path = target.path(name);
            if self.force {
                if session.find(&path).await?.is_some() {
                    session
                        .delete(&path, &json!({"gracePeriodSeconds": 0}))
                        .await?;
                    wait_gone(session, &path, Duration::from_secs(60)).await?;
                }
                self.write.create(session, &target, &object).await?;
                continue;
            }
            let replaced = session
                .replace(&format!("{path}?{}", self.write.query()), &object)
                .await
                .map_err(|error| while_doing(error, "replacing", &self.files.filename))?;
            self.write.report(&replaced, &target, "replaced")?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PatchType {
    Strategic,
    Merge,
    Json,
}

/// Change fields of objects.
///
/// Examples:
///   skep patch deploy web -p '{"spec":{"replicas":3}}'
///   skep patch -f web.yaml -p '{"metadata":{"labels":{"a":"b"}}}'
///   skep patch pod web --type=json -p '[{"op":"remove","path":"/metadata/labels/a"}]'
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Patch {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    write: WriteArgs,
    /// The patch, as JSON or YAML
    #[arg(short, long)]
    patch: Option<String>,
    /// A file with the patch
    #[arg(long, value_name = "FILE")]
    patch_file: Option<PathBuf>,
    /// Custom resources take merge and json only
    #[arg(long = "type", default_value = "strategic")]
    kind: PatchType,
    /// Patch this subresource (status, scale)
    #[arg(long)]
    subresource: Option<String>,
}

impl Patch {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        let source = match (&self.patch, &self.patch_file) {
            (Some(patch), None) => patch.clone(),
            (None, Some(file)) => std::fs::read_to_string(file)
                .with_context(|| format!("reading the patch {}", file.display()))?,
            _ => bail!("must specify -p to patch (or --patch-file)"),
        };
        let patch: Value =
            serde_saphyr::from_str(&source).context("unable to parse the patch as JSON or YAML")?;
        let kind = match self.kind {
            PatchType::Strategic => PatchKind::Strategic,
            PatchType::Merge => PatchKind::Merge,
            PatchType::Json => PatchKind::Json,
        };
        for target in self.selection.targets(session, global).await? {
            if target.names.is_empty() {
                bail!("resource name may not be empty");
            }
            for name in &target.names {
                let mut path = target.path(name);
                let before = session.get(&path).await?;
                if let Some(subresource) = &self.subresource {
                    path = format!("{path}/{subresource}");
                }
                let path = format!("{path}?{}", self.write.query());
                let after = session.patch(&path, kind, &patch).await?;
                let version = |object: &Value| text(&object["metadata"], "resourceVersion");
                let changed = version(&before) != version(&after);
                self.write.report(
                    &after,
                    &target,
                    if changed {
                        "patched"
                    } else {
                        "patched (no change)"
                    },
                )?;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cascade {
    Background,
    Foreground,
    Orphan,
}

/// Delete objects.
///
/// Examples:
///   skep delete pod web-1 web-2
///   skep delete -f web.yaml
///   skep delete pods,services -l app=web
///   skep delete pod stuck --force
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Delete {
    #[command(flatten)]
    selection: Selection,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// At once, without waiting for it to end on its node
    #[arg(long)]
    force: bool,
    /// Seconds to end in; -1 leaves it to the object
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    grace_period: i64,
    /// --grace-period=1
    #[arg(long)]
    now: bool,
    /// What becomes of dependents
    #[arg(long, default_value = "background")]
    cascade: Cascade,
    /// Wait until they are gone
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, action = clap::ArgAction::Set)]
    wait: bool,
    /// How long to wait; 0 = for ever
    #[arg(long, default_value = "0s", value_parser = super::duration)]
    timeout: Duration,
    /// No error for what does not exist
    #[arg(long)]
    ignore_not_found: bool,
    /// name
    #[arg(short, long)]
    output: Option<Format>,
}

impl Delete {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        let targets = self.selection.targets(session, global).await?;
        let chosen = self.all
            || self.selection.selector.is_some()
            || self.selection.field_selector.is_some();
        let mut grace = self.grace_period;
        if self.now {
            grace = 1;
        }
        if self.force && grace < 0 {
            grace = 0;
        }
        if grace == 0 && !self.force {
            grace = 1;
        }
        if self.force {
            eprintln!(
                "Warning: Immediate deletion does not wait for confirmation that the running resource \
                 has been terminated. The resource may continue to run on the cluster indefinitely."
            );
        }
        let policy = match self.cascade {
            Cascade::Background => "Background",
            Cascade::Foreground => "Foreground",
            Cascade::Orphan => "Orphan",
        };
        let mut options =
            json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy});
        if grace >= 0 {
            options["gracePeriodSeconds"] = grace.into();
        }
        let mut failures = Failures(Vec::new());
        let mut deleted: Vec<(String, String)> = Vec::new();
        let mut found_any = false;
        for target in targets {
            let mut names: Vec<(String, String)> = target
                .names
                .iter()
                .map(|name| (target.namespace.clone(), name.clone()))
                .collect();
            if names.is_empty() {
                if !chosen {
                    bail!(
                        "resource(s) were provided, but no name was specified (use --all for all of them)"
                    );
                }
                let path = format!("{}?{}", target.path(""), self.selection.query());
                let list = session.get(&path).await?;
                names = crate::discovery::items(&list, "items")
                    .map(|item| (text(&item["metadata"], "namespace"), name_of(item)))
                    .collect();
            }
            for (namespace, name) in names {
                found_any = true;
                let path = target.resource.path(&namespace, &name);
                match session.delete(&path, &options).await {
                    Ok(answer) => {
                        let what = format!("{} \"{name}\"", target.resource.qualified_singular());
                        let uid = match answer["kind"] == "Status" {
                            true => text(&answer["details"], "uid"),
                            false => text(&answer["metadata"], "uid"),
                        };
                        if self.output == Some(Format::Name) {
                            println!("{}/{name}", target.resource.qualified_singular());
                        } else if self.force {
                            println!("{what} force deleted");
                        } else if namespace.is_empty() {
                            println!("{what} deleted");
                        } else {
                            println!("{what} deleted from {namespace} namespace");
                        }
                        deleted.push((path, uid));
                    }
                    Err(error)
                        if self.ignore_not_found
                            && ApiError::reason(&error) == Some("NotFound") => {}
                    Err(error) => drop(failures.take::<()>(Err(error))),
                }
            }
        }
        if !found_any {
            println!("No resources found");
        }
        if self.wait && self.cascade != Cascade::Orphan {
            let timeout = if self.timeout.is_zero() {
                Duration::MAX
            } else {
                self.timeout
            };
            for (path, uid) in deleted {
                wait_replaced(session, &path, &uid, timeout).await?;
            }
        }
        failures.end()
    }
}

/// Waits until nothing is at `path`.
pub async fn wait_gone(session: &Session, path: &str, timeout: Duration) -> Result<()> {
    wait_replaced(session, path, "", timeout).await
}

/// Waits until the object with this uid is gone (another of its name may stand there).
async fn wait_replaced(session: &Session, path: &str, uid: &str, timeout: Duration) -> Result<()> {
    let deadline = std::time::Instant::now().checked_add(timeout);
    let mut pause = Duration::from_millis(50);
    loop {
        match session.find(path).await? {
            None => return Ok(()),
            Some(object) if !uid.is_empty() && text(&object["metadata"], "uid") != uid => {
                return Ok(());
            }
            Some(_) => {}
        }
        if deadline.is_some_and(|deadline| std::time::Instant::now() > deadline) {
            bail!("timed out waiting for the condition on {path}");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Edit an object in $EDITOR.
#[derive(Args, Clone, Debug)]
pub struct Edit {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    write: WriteArgs,
}

impl Edit {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        for target in self.selection.targets(session, global).await? {
            for name in &target.names {
                self.edit(session, &target, name).await?;
            }
        }
        Ok(())
    }

    async fn edit(&self, session: &Session, target: &Target, name: &str) -> Result<()> {
        let path = target.path(name);
        let mut before = session.get(&path).await?;
        strip_managed_fields(&mut before);
        let mut note = String::from(
            "# Edit the object below. Lines that start with # are ignored; an empty file aborts.\n",
        );
        let mut content = output::yaml(&before)?;
        loop {
            let file = tempfile::Builder::new()
                .prefix("skep-edit-")
                .suffix(".yaml")
                .tempfile()?;
            std::fs::write(file.path(), format!("{note}{content}"))?;
            let editor = ["KUBE_EDITOR", "EDITOR", "VISUAL"]
                .iter()
                .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
                .unwrap_or_else(|| "vi".to_owned());
            let status = Command::new("sh")
                .arg("-c")
                .arg(format!("{editor} \"$1\""))
                .arg("sh")
                .arg(file.path())
                .status()
                .with_context(|| format!("there was a problem with the editor \"{editor}\""))?;
            if !status.success() {
                bail!("there was a problem with the editor \"{editor}\"");
            }
            let text = std::fs::read_to_string(file.path())?;
            let body: String = text
                .lines()
                .filter(|l| !l.starts_with('#'))
                .flat_map(|l| [l, "\n"])
                .collect();
            if body.trim().is_empty() || body == content {
                println!("Edit cancelled, no changes made.");
                return Ok(());
            }
            let result = match crate::files::parse(&body) {
                Ok(mut objects) if objects.len() == 1 => {
                    let object = objects.swap_remove(0);
                    session
                        .replace(&format!("{path}?{}", self.write.query()), &object)
                        .await
                }
                Ok(_) => Err(anyhow!("want exactly one object")),
                Err(error) => Err(error),
            };
            match result {
                Ok(after) => return self.write.report(&after, target, "edited"),
                Err(error) => {
                    let lines = crate::message(&error).replace('\n', "\n# ");
                    note = format!("# {lines}\n#\n");
                    content = body;
                }
            }
        }
    }
}

/// KEY=VALUE sets, KEY- removes.
#[derive(Args, Clone, Debug)]
pub struct Metadata {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    write: WriteArgs,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// Allow existing values to be changed
    #[arg(long)]
    overwrite: bool,
    /// Show what is there
    #[arg(long)]
    list: bool,
}

impl Metadata {
    /// `field`: `labels` or `annotations`; `done`: `labeled` or `annotated`.
    pub async fn run(
        mut self,
        session: &Session,
        global: &Global,
        field: &str,
        done: &str,
    ) -> Result<()> {
        let is_change =
            |word: &String| word.contains('=') || (word.ends_with('-') && word.len() > 1);
        let split = self.selection.words.iter().position(is_change);
        let changes = match split {
            Some(at) => self.selection.words.split_off(at),
            None => Vec::new(),
        };
        if changes.is_empty() && !self.list {
            bail!(
                "at least one {} update is required",
                field.trim_end_matches('s')
            );
        }
        let mut patch = Map::new();
        for change in &changes {
            match (change.split_once('='), change.strip_suffix('-')) {
                (Some((key, value)), _) => drop(patch.insert(key.to_owned(), value.into())),
                (None, Some(key)) => drop(patch.insert(key.to_owned(), Value::Null)),
                (None, None) => bail!("want KEY=VALUE or KEY-, not \"{change}\""),
            }
        }
        for target in self.selection.targets(session, global).await? {
            let mut found: Vec<Value> = Vec::new();
            for name in &target.names {
                found.push(session.get(&target.path(name)).await?);
            }
            if target.names.is_empty() {
                if !self.all && self.selection.selector.is_none() {
                    bail!(
                        "one or more resources must be specified as <resource> <name> or <resource>/<name>"
                    );
                }
                let list = session
                    .get(&format!("{}?{}", target.path(""), self.selection.query()))
                    .await?;
                found.extend(crate::discovery::items(&list, "items").cloned());
            }
            for object in found {
                let have = &object["metadata"][field];
                if self.list {
                    for (key, value) in have.as_object().into_iter().flatten() {
                        println!("{key}={}", value.as_str().unwrap_or_default());
                    }
                    continue;
                }
                let namespace = text(&object["metadata"], "namespace");
                let path = target.resource.path(&namespace, &name_of(&object));
                for (key, value) in &patch {
                    let existing = &have[key];
                    if !self.overwrite
                        && !value.is_null()
                        && !existing.is_null()
                        && existing != value
                    {
                        bail!(
                            "'{key}' already has a value ({}), and --overwrite is false",
                            existing.as_str().unwrap_or_default()
                        );
                    }
                }
                let changed = patch.iter().any(|(key, value)| have[key] != *value);
                let removes_only = patch.values().all(Value::is_null);
                let body = json!({"metadata": {field: patch}});
                let path = format!("{path}?{}", self.write.query());
                let after = session.patch(&path, PatchKind::Merge, &body).await?;
                let word = match (changed, removes_only) {
                    (false, _) => format!("not {done}"),
                    (true, true) if field == "labels" => "unlabeled".to_owned(),
                    _ => done.to_owned(),
                };
                self.write.report(&after, &target, &word)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_is_no_change_of_an_apply() {
        let applied = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"replicas": 2}});
        let live = |label: &str, replicas: u32, status: &str| {
            json!({
                "metadata": {"labels": {"a": label, "b": status}, "resourceVersion": status},
                "spec": {"replicas": replicas, "paused": status == "2"},
                "status": status,
            })
        };
        let same = |before: &Value, after: &Value| same_within(&applied, before, after);
        assert!(same(&live("1", 2, "1"), &live("1", 2, "2")));
        assert!(!same(&live("1", 1, "1"), &live("1", 2, "1")));
        assert!(!same(&live("0", 2, "1"), &live("1", 2, "1")));
    }

    #[test]
    fn owned_fields_are_those_of_the_manager_that_applied() {
        let live = json!({"metadata": {"managedFields": [
            {"manager": "skep", "operation": "Update", "fieldsV1": {"f:a": {}}},
            {"manager": "skep", "operation": "Apply", "fieldsV1": {"f:b": {}}},
        ]}});
        assert_eq!(owned_fields(&live, "skep"), Some(&json!({"f:b": {}})));
        assert_eq!(owned_fields(&live, "other"), None);
    }
}
