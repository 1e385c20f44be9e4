//! `skep logs`, `exec`, `attach`, `cp`, `port-forward`, `wait`: what happens inside pods.

use std::{
    io::IsTerminal,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use futures::AsyncBufReadExt;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Status};
use kube::{
    Api,
    api::{AttachParams, AttachedProcess, LogParams, TerminalSize},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::duration;
use crate::{
    discovery::items,
    session::{Global, Session, explain, name_of, text},
    target::Selection,
    terminal::RawMode,
};

fn api(session: &Session, namespace: &str) -> Api<Pod> {
    Api::namespaced(session.client.clone(), namespace)
}

/// The pod a word names: `NAME`, `pod/NAME`, or a workload, Service or Job whose first running pod is taken.
pub async fn pod_of(session: &Session, word: &str) -> Result<Value> {
    let (kind, name) = word.split_once('/').unwrap_or(("pods", word));
    let resource = session.resource(kind).await?;
    let object = session
        .get(&resource.path(&session.namespace, name))
        .await?;
    let selector = match resource.kind.as_str() {
        "Pod" => return Ok(object),
        "Service" | "ReplicationController" => &object["spec"]["selector"],
        _ => &object["spec"]["selector"]["matchLabels"],
    };
    let Some(labels) = selector.as_object().filter(|labels| !labels.is_empty()) else {
        bail!("cannot find pods of {word}: it has no selector");
    };
    let pairs: Vec<String> = labels
        .iter()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    let pods = pods_by_label(session, &pairs.join(",")).await?;
    let running = pods.iter().find(|pod| pod["status"]["phase"] == "Running");
    running
        .or(pods.first())
        .cloned()
        .with_context(|| format!("no pods found for {word}"))
}

async fn pods_by_label(session: &Session, selector: &str) -> Result<Vec<Value>> {
    let selector = crate::discovery::encode(selector);
    let path = format!(
        "/api/v1/namespaces/{}/pods?labelSelector={selector}",
        session.namespace
    );
    let list = session.get(&path).await?;
    Ok(items(&list, "items").cloned().collect())
}

fn container_of(pod: &Value, wanted: Option<&str>) -> Result<String> {
    let names = |list: &str| {
        items(&pod["spec"], list)
            .map(|c| text(c, "name"))
            .collect::<Vec<_>>()
    };
    let all = [
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    ]
    .concat();
    if let Some(wanted) = wanted {
        if all.iter().any(|name| name == wanted) {
            return Ok(wanted.to_owned());
        }
        bail!("container {wanted} is not valid for pod {}", name_of(pod));
    }
    let default = &pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"];
    if let Some(default) = default
        .as_str()
        .filter(|name| all.iter().any(|have| have == name))
    {
        return Ok(default.to_owned());
    }
    let mut containers = names("containers").into_iter();
    let first = containers.next().context("the pod has no containers")?;
    let others: Vec<String> = containers.collect();
    if !others.is_empty() {
        eprintln!(
            "Defaulted container \"{first}\" out of: {first}, {}",
            others.join(", ")
        );
    }
    Ok(first)
}

/// Show what containers wrote.
///
/// Examples:
///   skep logs nginx-pod -f
///   skep logs deploy/web --tail=20 --timestamps
///   skep logs -l app=web --all-containers
///   skep logs nginx-pod --previous
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Logs {
    /// POD or TYPE/NAME
    target: Option<String>,
    /// Container (may also stand behind the pod's name)
    container_name: Option<String>,
    #[arg(short, long)]
    container: Option<String>,
    #[arg(short, long)]
    follow: bool,
    /// Of the container's run before this one
    #[arg(short, long)]
    previous: bool,
    #[arg(long)]
    timestamps: bool,
    /// Only the last lines; -1 = all
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    tail: i64,
    /// Only newer than this, as 5m
    #[arg(long, value_parser = duration)]
    since: Option<Duration>,
    /// Only since this time (RFC 3339)
    #[arg(long)]
    since_time: Option<jiff::Timestamp>,
    #[arg(long)]
    limit_bytes: Option<i64>,
    #[arg(short = 'l', long)]
    selector: Option<String>,
    #[arg(long)]
    all_containers: bool,
    /// [pod/NAME/CONTAINER] in front of each line
    #[arg(long)]
    prefix: bool,
}

impl Logs {
    pub async fn run(self, session: &Session) -> Result<()> {
        let pods = match (&self.target, &self.selector) {
            (Some(target), None) => vec![pod_of(session, target).await?],
            (None, Some(selector)) => pods_by_label(session, selector).await?,
            _ => bail!("expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]' or a selector"),
        };
        let mut sources = Vec::new();
        for pod in &pods {
            let wanted = self.container.as_deref().or(self.container_name.as_deref());
            if self.all_containers {
                for list in ["initContainers", "containers"] {
                    let names = items(&pod["spec"], list).map(|c| text(c, "name"));
                    sources.extend(names.map(|container| (name_of(pod), container)));
                }
            } else {
                sources.push((name_of(pod), container_of(pod, wanted)?));
            }
        }
        let tail = match self.tail {
            // With a selector kubectl shows ten lines of each.
            -1 => self.selector.is_some().then_some(10),
            lines => Some(lines),
        };
        let api = api(session, &session.namespace);
        let show = |(pod, container): (String, String)| {
            let api = api.clone();
            let params = LogParams {
                container: Some(container.clone()),
                follow: self.follow,
                previous: self.previous,
                timestamps: self.timestamps,
                tail_lines: tail,
                since_seconds: self.since.map(|since| since.as_secs().max(1) as i64),
                since_time: self.since_time,
                limit_bytes: self.limit_bytes,
                ..LogParams::default()
            };
            let prefix = if self.prefix {
                format!("[pod/{pod}/{container}] ")
            } else {
                String::new()
            };
            async move {
                let mut stream = api.log_stream(&pod, &params).await.map_err(explain)?;
                let mut line = Vec::new();
                let mut stdout = tokio::io::stdout();
                while stream.read_until(b'\n', &mut line).await? > 0 {
                    stdout.write_all(prefix.as_bytes()).await?;
                    stdout.write_all(&line).await?;
                    stdout.flush().await?;
                    line.clear();
                }
                Ok::<_, anyhow::Error>(())
            }
        };
        if self.follow {
            futures::future::try_join_all(sources.into_iter().map(show)).await?;
        } else {
            for source in sources {
                show(source).await?;
            }
        }
        Ok(())
    }
}

#[derive(Args, Clone, Debug)]
pub struct StreamArgs {
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// With a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// Nothing but the command's own output
    #[arg(short, long)]
    quiet: bool,
}

/// Run a command in a container.
///
/// Examples:
///   skep exec nginx-pod -- date
///   skep exec -it deploy/web -- sh
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Exec {
    /// POD or TYPE/NAME
    target: String,
    #[command(flatten)]
    stream: StreamArgs,
    /// The command, behind --
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

impl Exec {
    pub async fn run(self, session: &Session) -> Result<()> {
        let pod = pod_of(session, &self.target).await?;
        let container = container_of(&pod, self.stream.container.as_deref())?;
        let tty = self.stream.tty && std::io::stdin().is_terminal();
        if self.stream.tty && !tty {
            eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
        }
        let params = attach_params(&container, self.stream.stdin, tty);
        let api = api(session, &session.namespace);
        let process = api
            .exec(&name_of(&pod), &self.command, &params)
            .await
            .map_err(explain)?;
        stream(process, self.stream.stdin, tty).await
    }
}

/// Connect to what a container's process reads and writes.
#[derive(Args, Clone, Debug)]
pub struct Attach {
    /// POD or TYPE/NAME
    target: String,
    #[command(flatten)]
    stream: StreamArgs,
}

impl Attach {
    pub async fn run(self, session: &Session) -> Result<()> {
        let pod = pod_of(session, &self.target).await?;
        let container = container_of(&pod, self.stream.container.as_deref())?;
        let tty = self.stream.tty && std::io::stdin().is_terminal();
        let params = attach_params(&container, self.stream.stdin, tty);
        let api = api(session, &session.namespace);
        let process = api.attach(&name_of(&pod), &params).await.map_err(explain)?;
        stream(process, self.stream.stdin, tty).await
    }
}

/// Attaches to one container as soon as it runs; shows its logs if it has already ended.
pub async fn attach_to(
    session: &Session,
    namespace: &str,
    pod: &str,
    container: &str,
    stdin: bool,
    tty: bool,
) -> Result<()> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let object = session.get(&path).await?;
        let state = &container_status(&object, container)["state"];
        if state.get("running").is_some() {
            return connect(session, namespace, pod, container, stdin, tty).await;
        }
        let phase = text(&object["status"], "phase");
        if state.get("terminated").is_some() || matches!(phase.as_str(), "Succeeded" | "Failed") {
            return show_logs(session, namespace, pod, container).await;
        }
        if Instant::now() > deadline {
            let reason = text(&state["waiting"], "reason");
            bail!(
                "timed out waiting for container {container} of pod/{pod} to run: {reason} \
                 (see 'skep describe pod {pod}')"
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn container_status<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let lists = ["containerStatuses", "ephemeralContainerStatuses"];
    let statuses = lists.map(|list| pod["status"][list].as_array());
    let mut statuses = statuses.into_iter().flatten().flatten();
    statuses
        .find(|status| status["name"] == container)
        .unwrap_or(&Value::Null)
}

async fn show_logs(session: &Session, namespace: &str, pod: &str, container: &str) -> Result<()> {
    let params = LogParams {
        container: Some(container.to_owned()),
        ..Default::default()
    };
    let logs = api(session, namespace).logs(pod, &params).await;
    print!("{}", logs.map_err(explain)?);
    Ok(())
}

async fn connect(
    session: &Session,
    namespace: &str,
    pod: &str,
    container: &str,
    stdin: bool,
    tty: bool,
) -> Result<()> {
    let tty = tty && std::io::stdin().is_terminal();
    eprintln!("If you don't see a command prompt, try pressing enter.");
    let params = attach_params(container, stdin, tty);
    match api(session, namespace).attach(pod, &params).await {
        Ok(process) => stream(process, stdin, tty).await,
        // It may have ended since it was seen running.
        Err(error) => {
            let error = explain(error);
            eprintln!(
                "warning: couldn't attach to pod/{pod}, falling back to streaming logs: {error}"
            );
            show_logs(session, namespace, pod, container).await
        }
    }
}

fn attach_params(container: &str, stdin: bool, tty: bool) -> AttachParams {
    // With a terminal there is one stream out.
    AttachParams::default()
        .container(container)
        .stdin(stdin)
        .stdout(true)
        .stderr(!tty)
        .tty(tty)
}

/// Connects a remote process with this one's streams until it ends; exits with its code.
async fn stream(mut process: AttachedProcess, stdin: bool, tty: bool) -> Result<()> {
    let _raw = if tty { Some(RawMode::enter()?) } else { None };
    let status = process.take_status();
    if tty && let Some(mut sizes) = process.terminal_size() {
        let mut changes = signal(SignalKind::window_change())?;
        tokio::spawn(async move {
            loop {
                if let Some((width, height)) = crate::terminal::size() {
                    let size = TerminalSize { width, height };
                    if futures::SinkExt::send(&mut sizes, size).await.is_err() {
                        return;
                    }
                }
                changes.recv().await;
            }
        });
    }
    if stdin && let Some(mut remote) = process.stdin() {
        tokio::spawn(async move {
            let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut remote).await;
            let _ = remote.shutdown().await;
        });
    }
    let out = process.stdout().map(|mut remote| {
        tokio::spawn(async move { copy_flushing(&mut remote, &mut tokio::io::stdout()).await })
    });
    let errors = process.stderr().map(|mut remote| {
        tokio::spawn(async move { copy_flushing(&mut remote, &mut tokio::io::stderr()).await })
    });
    for task in [out, errors].into_iter().flatten() {
        task.await??;
    }
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    drop(_raw);
    finish(status)
}

async fn copy_flushing(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
) -> Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
    }
}

/// The remote command failed with this code; `main` exits with it.
#[derive(Debug, thiserror::Error)]
#[error("command terminated with exit code {0}")]
pub struct ExitCode(pub i32);

fn finish(status: Option<Status>) -> Result<()> {
    let Some(status) = status else { return Ok(()) };
    if status.status.as_deref() == Some("Success") {
        return Ok(());
    }
    let causes = status
        .details
        .as_ref()
        .and_then(|details| details.causes.as_ref());
    let code = causes
        .into_iter()
        .flatten()
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    match code.and_then(|cause| cause.message.as_deref()?.parse().ok()) {
        Some(code) => Err(ExitCode(code).into()),
        None => Err(anyhow!(
            status
                .message
                .unwrap_or_else(|| "the command failed".into())
        )),
    }
}

/// Copy files and folders to and from containers (needs tar in the container).
///
/// Examples:
///   skep cp notes.txt nginx-pod:/tmp/notes.txt
///   skep cp default/nginx-pod:/etc/nginx ./nginx
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Cp {
    /// PATH or [NAMESPACE/]POD:PATH
    from: String,
    to: String,
    #[arg(short, long)]
    container: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Local(PathBuf),
    Pod {
        namespace: Option<String>,
        pod: String,
        path: String,
    },
}

fn place(word: &str) -> Result<Place> {
    let Some((pod, path)) = word
        .split_once(':')
        .filter(|(pod, _)| !pod.starts_with(['.', '/']))
    else {
        return Ok(Place::Local(word.into()));
    };
    if pod.is_empty() || path.is_empty() {
        bail!("want [NAMESPACE/]POD:PATH, not \"{word}\"");
    }
    let (namespace, pod) = match pod.split_once('/') {
        Some((namespace, pod)) => (Some(namespace.to_owned()), pod),
        None => (None, pod),
    };
    Ok(Place::Pod {
        namespace,
        pod: pod.to_owned(),
        path: path.to_owned(),
    })
}

impl Cp {
    pub async fn run(self, session: &Session) -> Result<()> {
        match (place(&self.from)?, place(&self.to)?) {
            (
                Place::Local(from),
                Place::Pod {
                    namespace,
                    pod,
                    path,
                },
            ) => self.upload(session, &from, namespace, &pod, &path).await,
            (
                Place::Pod {
                    namespace,
                    pod,
                    path,
                },
                Place::Local(to),
            ) => self.download(session, namespace, &pod, &path, &to).await,
            _ => bail!(
                "one of source and destination must be a local path, the other [NAMESPACE/]POD:PATH"
            ),
        }
    }

    async fn start(
        &self,
        session: &Session,
        namespace: Option<String>,
        pod: &str,
        command: &[&str],
        stdin: bool,
    ) -> Result<AttachedProcess> {
        let namespace = namespace.unwrap_or_else(|| session.namespace.clone());
        let object = session
            .get(&format!("/api/v1/namespaces/{namespace}/pods/{pod}"))
            .await?;
        let container = container_of(&object, self.container.as_deref())?;
        let params = attach_params(&container, stdin, false);
        api(session, &namespace)
            .exec(pod, command.to_vec(), &params)
            .await
            .map_err(explain)
    }

    async fn upload(
        &self,
        session: &Session,
        from: &Path,
        namespace: Option<String>,
        pod: &str,
        to: &str,
    ) -> Result<()> {
        if !from.exists() {
            bail!("{} doesn't exist in local filesystem", from.display());
        }
        let own_name = from
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let (folder, name) = match to.strip_suffix('/') {
            Some(folder) => (folder.to_owned(), own_name),
            None => match to.rsplit_once('/') {
                Some((folder, name)) => (folder.to_owned(), name.to_owned()),
                None => (".".to_owned(), to.to_owned()),
            },
        };
        let folder = if folder.is_empty() {
            "/".to_owned()
        } else {
            folder
        };
        let mut archive = tar::Builder::new(Vec::new());
        if from.is_dir() {
            archive.append_dir_all(&name, from)?;
        } else {
            archive.append_path_with_name(from, &name)?;
        }
        let archive = archive.into_inner()?;
        let command = ["tar", "-xmf", "-", "-C", folder.as_str()];
        let mut process = self.start(session, namespace, pod, &command, true).await?;
        let status = process.take_status();
        let mut stdin = process.stdin().context("no stream to the container")?;
        stdin.write_all(&archive).await?;
        stdin.shutdown().await?;
        drop(stdin);
        let errors = read_all(process.stderr()).await?;
        finish(match status {
            Some(status) => status.await,
            None => None,
        })
        .map_err(|error| with_errors(error, &errors))
    }

    async fn download(
        &self,
        session: &Session,
        namespace: Option<String>,
        pod: &str,
        from: &str,
        to: &Path,
    ) -> Result<()> {
        let trimmed = from.trim_end_matches('/');
        let (folder, name) = trimmed.rsplit_once('/').unwrap_or((".", trimmed));
        let folder = if folder.is_empty() { "/" } else { folder };
        let command = ["tar", "cf", "-", "-C", folder, name];
        let mut process = self.start(session, namespace, pod, &command, false).await?;
        let status = process.take_status();
        let (stdout, stderr) = (process.stdout(), process.stderr());
        let (archive, errors) = tokio::try_join!(read_all(stdout), read_all(stderr))?;
        finish(match status {
            Some(status) => status.await,
            None => None,
        })
        .map_err(|error| with_errors(error, &errors))?;
        let to = if to.is_dir() {
            to.join(name)
        } else {
            to.to_owned()
        };
        unpack(&archive, name, &to)
    }
}

/// Writes the entries of an archive whose paths start with `name` to `to`; nothing outside of it.
fn unpack(archive: &[u8], name: &str, to: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let Ok(rest) = path.strip_prefix(name) else {
            bail!(
                "the container's tar sent {}, which was not asked for",
                path.display()
            );
        };
        let stays_inside = rest
            .components()
            .all(|c| matches!(c, std::path::Component::Normal(_)));
        let is_link =
            entry.header().entry_type().is_symlink() || entry.header().entry_type().is_hard_link();
        if !stays_inside || is_link {
            eprintln!(
                "warning: skipping {} (a link, or outside of the destination)",
                path.display()
            );
            continue;
        }
        let target = if rest.as_os_str().is_empty() {
            to.to_owned()
        } else {
            to.join(rest)
        };
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if entry.header().entry_type().is_dir() {
            std::fs::create_dir_all(&target)?;
        } else {
            entry
                .unpack(&target)
                .with_context(|| format!("writing {}", target.display()))?;
        }
    }
    Ok(())
}

async fn read_all(stream: Option<impl AsyncReadExt + Unpin>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn with_errors(error: anyhow::Error, stderr: &[u8]) -> anyhow::Error {
    let text = String::from_utf8_lossy(stderr);
    if text.trim().is_empty() {
        error
    } else {
        anyhow!("{}\n{error}", text.trim())
    }
}

/// Forward local ports to a pod.
///
/// Examples:
///   skep port-forward nginx-pod 8080:80
///   skep port-forward svc/web :80 --address=127.0.0.1
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct PortForward {
    /// POD or TYPE/NAME
    target: String,
    /// [LOCAL:]REMOTE; an empty LOCAL takes a free port
    #[arg(required = true)]
    ports: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1")]
    address: Vec<String>,
}

impl PortForward {
    pub async fn run(self, session: &Session) -> Result<()> {
        let pod = pod_of(session, &self.target).await?;
        let service = match self.target.split_once('/') {
            Some((kind, name)) if session.resource(kind).await?.kind == "Service" => {
                let path = format!("/api/v1/namespaces/{}/services/{name}", session.namespace);
                Some(session.get(&path).await?)
            }
            _ => None,
        };
        let api = api(session, &session.namespace);
        let mut tasks = Vec::new();
        for port in &self.ports {
            let (local, remote) = port.split_once(':').unwrap_or((port, port));
            let parse = |text: &str| {
                text.parse::<u16>()
                    .with_context(|| format!("\"{text}\" is no port"))
            };
            let local = if local.is_empty() { 0 } else { parse(local)? };
            let remote = match &service {
                Some(service) => target_port(service, &pod, remote)?,
                None => parse(remote)?,
            };
            for address in &self.address {
                let address = if address == "localhost" {
                    "127.0.0.1"
                } else {
                    address
                };
                let address: IpAddr = address
                    .parse()
                    .with_context(|| format!("--address {address}"))?;
                let listener = TcpListener::bind((address, local))
                    .await
                    .with_context(|| format!("unable to listen on port {local}"))?;
                println!("Forwarding from {} -> {remote}", listener.local_addr()?);
                tasks.push(forward(listener, api.clone(), name_of(&pod), remote));
            }
        }
        futures::future::try_join_all(tasks).await.map(drop)
    }
}

/// The pod's port behind a Service's port, given by number or name.
fn target_port(service: &Value, pod: &Value, wanted: &str) -> Result<u16> {
    let mut ports = items(&service["spec"], "ports");
    let port = ports
        .find(|port| port["port"].as_u64() == wanted.parse().ok() || port["name"] == wanted)
        .with_context(|| format!("the Service {} has no port {wanted}", name_of(service)))?;
    let number = match &port["targetPort"] {
        Value::String(name) => items(&pod["spec"], "containers")
            .flat_map(|container| items(container, "ports"))
            .find(|port| port["name"] == name.as_str())
            .map(|port| &port["containerPort"])
            .with_context(|| format!("the pod {} has no port named {name}", name_of(pod)))?,
        Value::Null => &port["port"],
        number => number,
    };
    number
        .as_u64()
        .and_then(|n| u16::try_from(n).ok())
        .context("the target port is no port number")
}

async fn forward(listener: TcpListener, api: Api<Pod>, pod: String, remote: u16) -> Result<()> {
    loop {
        let (mut local, from) = listener.accept().await?;
        let (api, pod) = (api.clone(), pod.clone());
        tokio::spawn(async move {
            println!(
                "Handling connection for {}",
                local.local_addr().map_or(0, |a| a.port())
            );
            let result = async {
                let mut forwarder = api.portforward(&pod, &[remote]).await.map_err(explain)?;
                let mut stream = forwarder
                    .take_stream(remote)
                    .context("no stream for the port")?;
                tokio::io::copy_bidirectional(&mut local, &mut stream).await?;
                drop(stream);
                forwarder.join().await?;
                Ok::<_, anyhow::Error>(())
            };
            if let Err(error) = result.await {
                eprintln!("error forwarding {from} to port {remote} of {pod}: {error:#}");
            }
        });
    }
}

/// Wait until objects have a condition, a value, or are gone.
///
/// Examples:
///   skep wait --for=condition=Ready pod -l app=web --timeout=60s
///   skep wait --for=delete pod/web
///   skep wait --for=jsonpath='{.status.phase}'=Running pod/web
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Wait {
    #[command(flatten)]
    selection: Selection,
    #[arg(long = "for", value_name = "WHAT")]
    what: String,
    #[arg(long, value_parser = duration, default_value = "30s")]
    timeout: Duration,
    #[arg(long)]
    all: bool,
}

impl Wait {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let gone = self.what == "delete";
        let targets = self.selection.targets(session, global).await?;
        for target in targets {
            let mut names: Vec<(String, String)> = target
                .names
                .iter()
                .map(|name| (target.namespace.clone(), name.clone()))
                .collect();
            if names.is_empty() {
                let list = session
                    .get(&format!("{}?{}", target.path(""), self.selection.query()))
                    .await?;
                let listed = items(&list, "items");
                names = listed
                    .map(|i| (text(&i["metadata"], "namespace"), name_of(i)))
                    .collect();
                if names.is_empty() && !gone {
                    bail!("no matching resources found");
                }
            }
            for (namespace, name) in names {
                let path = target.resource.path(&namespace, &name);
                let what = format!("{}/{name}", target.resource.qualified_singular());
                loop {
                    let object = session.find(&path).await?;
                    let met = match &object {
                        None if gone => true,
                        None => bail!("{} \"{name}\" not found", target.resource),
                        Some(_) if gone => false,
                        Some(object) => self.met(object)?,
                    };
                    if met {
                        println!("{what} {}", if gone { "deleted" } else { "condition met" });
                        break;
                    }
                    if Instant::now() > deadline {
                        bail!("timed out waiting for the condition on {what}");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        Ok(())
    }

    fn met(&self, object: &Value) -> Result<bool> {
        if let Some(condition) = self.what.strip_prefix("condition=") {
            let (name, wanted) = condition.split_once('=').unwrap_or((condition, "True"));
            let mut conditions = items(&object["status"], "conditions");
            let found = conditions.find(|c| text(c, "type").eq_ignore_ascii_case(name));
            return Ok(found.is_some_and(|c| text(c, "status").eq_ignore_ascii_case(wanted)));
        }
        if let Some(rest) = self.what.strip_prefix("jsonpath=") {
            let (path, wanted) = match rest.rsplit_once("}=") {
                Some((path, wanted)) => (format!("{path}}}"), Some(wanted)),
                None => (rest.to_owned(), None),
            };
            let found = crate::output::jsonpath(object, path.trim_matches('\''))?;
            return Ok(wanted.map_or(!found.is_empty(), |wanted| found == wanted));
        }
        bail!(
            "unrecognized condition: \"{}\"; want condition=…, delete or jsonpath=…",
            self.what
        )
    }
}

/// `skep events`
pub async fn events(session: &Session, selection: &Selection, of: Option<&str>) -> Result<()> {
    let mut path = if selection.all_namespaces {
        "/api/v1/events".to_owned()
    } else {
        format!("/api/v1/namespaces/{}/events", session.namespace)
    };
    if let Some((_, name)) = of.and_then(|of| of.split_once('/')) {
        path = format!("{path}?fieldSelector=involvedObject.name%3D{name}");
    }
    let list = session.get(&path).await?;
    let mut rows = vec![
        ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut events: Vec<&Value> = items(&list, "items").collect();
    events.sort_by_key(|event| super::describe::event_time(event));
    for event in events {
        let involved = &event["involvedObject"];
        rows.push(vec![
            super::describe::age_of(&super::describe::event_time(event)),
            text(event, "type"),
            text(event, "reason"),
            format!(
                "{}/{}",
                text(involved, "kind").to_lowercase(),
                text(involved, "name")
            ),
            text(event, "message").trim().to_owned(),
        ]);
    }
    if rows.len() == 1 {
        eprintln!("No events found in {} namespace.", session.namespace);
        return Ok(());
    }
    print!("{}", crate::output::align(&rows));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_are_told_apart() {
        assert_eq!(place("./a:b").unwrap(), Place::Local("./a:b".into()));
        assert_eq!(place("/tmp/x").unwrap(), Place::Local("/tmp/x".into()));
        let pod = Place::Pod {
            namespace: Some("n".into()),
            pod: "p".into(),
            path: "/x".into(),
        };
        assert_eq!(place("n/p:/x").unwrap(), pod);
        assert!(place("p:").is_err());
    }

    #[test]
    fn archives_stay_inside_their_destination() {
        let folder = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o644);
        header.set_cksum();
        builder
            .append_data(&mut header, "etc/a/b.conf", &b"hi"[..])
            .unwrap();
        let archive = builder.into_inner().unwrap();
        unpack(&archive, "etc", &folder.path().join("copy")).unwrap();
        assert_eq!(
            std::fs::read(folder.path().join("copy/a/b.conf")).unwrap(),
            b"hi"
        );
        assert!(unpack(&archive, "other", folder.path()).is_err());
    }

    #[test]
    fn service_ports_lead_to_pod_ports() {
        let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [
            {"port": 80, "targetPort": "http"}, {"port": 81, "name": "x", "targetPort": 8081}, {"port": 82}]}});
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"ports": [{"name": "http", "containerPort": 8080}]}]}});
        assert_eq!(target_port(&service, &pod, "80").unwrap(), 8080);
        assert_eq!(target_port(&service, &pod, "x").unwrap(), 8081);
        assert_eq!(target_port(&service, &pod, "82").unwrap(), 82);
        assert!(target_port(&service, &pod, "99").is_err());
    }
}
