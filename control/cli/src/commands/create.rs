//! `skep run`, `create KIND`, `expose`, `autoscale`: objects made from flags.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::write::{WriteArgs, create_files};
use crate::{
    files::FileArgs,
    session::{Global, Session, name_of, text},
    target::{Selection, Target, target_of},
};

async fn make(
    session: &Session,
    global: &Global,
    write: &WriteArgs,
    object: Value,
) -> Result<Value> {
    let target = target_of(session, global, &object).await?;
    write.create(session, &target, &object).await
}

/// `a=b,c=d` or repeated `a=b`.
fn pairs(items: &[String], what: &str) -> Result<BTreeMap<String, String>> {
    let parse = |item: &String| {
        let (key, value) = item
            .split_once('=')
            .with_context(|| format!("{what}: want KEY=VALUE, not \"{item}\""))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    items.iter().map(parse).collect()
}

fn labels_or_run(labels: &[String], name: &str, key: &str) -> Result<BTreeMap<String, String>> {
    if labels.is_empty() {
        return Ok(BTreeMap::from([(key.to_owned(), name.to_owned())]));
    }
    pairs(labels, "--labels")
}

/// Run an image in a pod.
///
/// Examples:
///   skep run nginx-pod --image=nginx --port=80
///   skep run shell --image=busybox -it --rm --restart=Never -- sh
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Run {
    name: String,
    #[arg(long)]
    image: String,
    #[arg(long)]
    port: Option<u16>,
    /// Also make a Service for --port
    #[arg(long, requires = "port")]
    expose: bool,
    /// NAME=VALUE (repeatable)
    #[arg(long)]
    env: Vec<String>,
    #[arg(short, long, value_delimiter = ',')]
    labels: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    annotations: Vec<String>,
    #[arg(long, default_value = "Always", value_parser = ["Always", "OnFailure", "Never"])]
    restart: String,
    #[arg(long, value_parser = ["Always", "IfNotPresent", "Never"])]
    image_pull_policy: Option<String>,
    /// Replace the image's command, not only its arguments
    #[arg(long)]
    command: bool,
    /// Keep standard input open
    #[arg(short = 'i', long)]
    stdin: bool,
    #[arg(short = 't', long)]
    tty: bool,
    /// Attach once it runs
    #[arg(long)]
    attach: bool,
    /// Delete the pod afterwards
    #[arg(long)]
    rm: bool,
    #[arg(long)]
    privileged: bool,
    #[command(flatten)]
    write: WriteArgs,
    /// Arguments (or, with --command, the command)
    #[arg(last = true)]
    args: Vec<String>,
}

impl Run {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        let labels = labels_or_run(&self.labels, &self.name, "run")?;
        let mut container = json!({"name": self.name, "image": self.image});
        if let Some(port) = self.port {
            container["ports"] = json!([{"containerPort": port}]);
        }
        if !self.env.is_empty() {
            let env: Vec<Value> = pairs(&self.env, "--env")?
                .into_iter()
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect();
            container["env"] = env.into();
        }
        if !self.args.is_empty() {
            container[if self.command { "command" } else { "args" }] = self.args.clone().into();
        }
        if let Some(policy) = &self.image_pull_policy {
            container["imagePullPolicy"] = policy.clone().into();
        }
        if self.privileged {
            container["securityContext"] = json!({"privileged": true});
        }
        if self.stdin {
            container["stdin"] = true.into();
            container["stdinOnce"] = true.into();
        }
        if self.tty {
            container["tty"] = true.into();
        }
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "labels": labels},
            "spec": {"containers": [container], "restartPolicy": self.restart},
        });
        if !self.annotations.is_empty() {
            pod["metadata"]["annotations"] = json!(pairs(&self.annotations, "--annotations")?);
        }
        if self.rm && !(self.attach || self.stdin) {
            bail!("--rm should only be used for attached containers");
        }
        let created = make(session, global, &self.write, pod).await?;
        if self.expose
            && let Some(port) = self.port
        {
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": self.name},
                "spec": {"selector": labels, "ports": [{"port": port, "targetPort": port}]},
            });
            make(session, global, &self.write, service).await?;
        }
        if self.attach || self.stdin {
            let namespace = text(&created["metadata"], "namespace");
            let result = super::pods::attach_to(
                session, &namespace, &self.name, &self.name, self.stdin, self.tty,
            )
            .await;
            if self.rm {
                let path = format!("/api/v1/namespaces/{namespace}/pods/{}", self.name);
                session.delete(&path, &json!({})).await?;
                println!("pod \"{}\" deleted from {namespace} namespace", self.name);
            }
            return result;
        }
        Ok(())
    }
}

/// Create objects from files, or from flags for some kinds.
///
/// Examples:
///   skep create -f web.yaml
///   skep create deployment web --image=nginx --replicas=2 --port=80
///   skep create configmap settings --from-literal=a=b --from-file=app.conf
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
pub struct Create {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    write: WriteArgs,
    #[command(subcommand)]
    kind: Option<CreateKind>,
}

#[derive(Subcommand, Clone, Debug)]
enum CreateKind {
    #[command(visible_alias = "ns")]
    Namespace {
        name: String,
        #[command(flatten)]
        write: WriteArgs,
    },
    #[command(visible_alias = "deploy")]
    Deployment {
        name: String,
        #[arg(long, required = true)]
        image: Vec<String>,
        #[arg(short, long, default_value_t = 1)]
        replicas: i32,
        #[arg(long)]
        port: Option<u16>,
        #[command(flatten)]
        write: WriteArgs,
        #[arg(last = true)]
        command: Vec<String>,
    },
    Job {
        name: String,
        #[arg(long, required_unless_present = "from")]
        image: Option<String>,
        /// Take the template of this CronJob: cronjob/NAME
        #[arg(long)]
        from: Option<String>,
        #[command(flatten)]
        write: WriteArgs,
        #[arg(last = true)]
        command: Vec<String>,
    },
    #[command(visible_alias = "cj")]
    Cronjob {
        name: String,
        #[arg(long)]
        image: String,
        #[arg(long)]
        schedule: String,
        #[command(flatten)]
        write: WriteArgs,
        #[arg(last = true)]
        command: Vec<String>,
    },
    #[command(visible_alias = "cm")]
    Configmap {
        name: String,
        #[command(flatten)]
        data: DataArgs,
        #[command(flatten)]
        write: WriteArgs,
    },
    Secret {
        #[command(subcommand)]
        kind: SecretKind,
    },
    #[command(visible_alias = "sa")]
    Serviceaccount {
        name: String,
        #[command(flatten)]
        write: WriteArgs,
    },
    #[command(visible_alias = "svc")]
    Service {
        /// clusterip, nodeport, loadbalancer or externalname
        kind: String,
        name: String,
        /// PORT:TARGETPORT (repeatable)
        #[arg(long, value_delimiter = ',')]
        tcp: Vec<String>,
        #[arg(long)]
        node_port: Option<u16>,
        #[arg(long)]
        external_name: Option<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    Role(RoleArgs),
    Clusterrole(RoleArgs),
    Rolebinding(BindingArgs),
    Clusterrolebinding(BindingArgs),
    /// A token for a service account
    Token {
        name: String,
        /// How long it is good for
        #[arg(long, value_parser = super::duration)]
        duration: Option<std::time::Duration>,
        #[arg(long)]
        audience: Vec<String>,
    },
    /// An HTTP route: --rule=HOST/PATH=SERVICE:PORT
    #[command(visible_alias = "ing")]
    Ingress {
        name: String,
        #[arg(long)]
        rule: Vec<String>,
        #[arg(long)]
        class: Option<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    #[command(visible_alias = "pdb")]
    Poddisruptionbudget {
        name: String,
        #[arg(long)]
        selector: String,
        #[arg(
            long,
            conflicts_with = "max_unavailable",
            required_unless_present = "max_unavailable"
        )]
        min_available: Option<String>,
        #[arg(long)]
        max_unavailable: Option<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    Quota {
        name: String,
        /// cpu=1,memory=1Gi,pods=10
        #[arg(long, value_delimiter = ',')]
        hard: Vec<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    #[command(visible_alias = "pc")]
    Priorityclass {
        name: String,
        #[arg(long, allow_negative_numbers = true)]
        value: i32,
        #[arg(long)]
        global_default: bool,
        #[arg(long, default_value = "")]
        description: String,
        #[command(flatten)]
        write: WriteArgs,
    },
}

#[derive(Args, Clone, Debug)]
struct DataArgs {
    /// KEY=VALUE (repeatable)
    #[arg(long)]
    from_literal: Vec<String>,
    /// [KEY=]FILE or a folder (repeatable)
    #[arg(long)]
    from_file: Vec<String>,
    /// A file of KEY=VALUE lines
    #[arg(long)]
    from_env_file: Vec<String>,
}

#[derive(Subcommand, Clone, Debug)]
enum SecretKind {
    Generic {
        name: String,
        #[command(flatten)]
        data: DataArgs,
        #[arg(long = "type", default_value = "Opaque")]
        kind: String,
        #[command(flatten)]
        write: WriteArgs,
    },
    Tls {
        name: String,
        #[arg(long)]
        cert: std::path::PathBuf,
        #[arg(long)]
        key: std::path::PathBuf,
        #[command(flatten)]
        write: WriteArgs,
    },
    DockerRegistry {
        name: String,
        #[arg(long)]
        docker_server: String,
        #[arg(long)]
        docker_username: String,
        #[arg(long)]
        docker_password: String,
        #[arg(long, default_value = "")]
        docker_email: String,
        #[command(flatten)]
        write: WriteArgs,
    },
}

#[derive(Args, Clone, Debug)]
struct RoleArgs {
    name: String,
    #[arg(long, value_delimiter = ',', required = true)]
    verb: Vec<String>,
    /// RESOURCE[.GROUP][/SUBRESOURCE]
    #[arg(long, value_delimiter = ',')]
    resource: Vec<String>,
    #[arg(long)]
    resource_name: Vec<String>,
    #[arg(long = "non-resource-url", value_delimiter = ',')]
    non_resource_url: Vec<String>,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Args, Clone, Debug)]
struct BindingArgs {
    name: String,
    #[arg(long, conflicts_with = "clusterrole")]
    role: Option<String>,
    #[arg(long)]
    clusterrole: Option<String>,
    #[arg(long)]
    user: Vec<String>,
    #[arg(long)]
    group: Vec<String>,
    /// NAMESPACE:NAME
    #[arg(long)]
    serviceaccount: Vec<String>,
    #[command(flatten)]
    write: WriteArgs,
}

impl DataArgs {
    fn entries(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut data = BTreeMap::new();
        let mut add = |key: String, value: Vec<u8>| {
            if data.insert(key.clone(), value).is_some() {
                bail!("cannot add key \"{key}\", another key by that name already exists");
            }
            Ok(())
        };
        for (key, value) in pairs(&self.from_literal, "--from-literal")? {
            add(key, value.into_bytes())?;
        }
        for source in &self.from_file {
            let (key, path) = match source.split_once('=') {
                Some((key, path)) => (Some(key), std::path::Path::new(path)),
                None => (None, std::path::Path::new(source)),
            };
            let mut files = vec![path.to_owned()];
            if path.is_dir() {
                files = std::fs::read_dir(path)?
                    .map(|e| Ok(e?.path()))
                    .collect::<Result<_>>()?;
                files.retain(|file| file.is_file());
            }
            for file in files {
                let name = file
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                let content =
                    std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
                add(key.map_or(name, str::to_owned), content)?;
            }
        }
        for file in &self.from_env_file {
            let content =
                std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
            for line in content
                .lines()
                .map(str::trim)
                .filter(|l| !l.is_empty() && !l.starts_with('#'))
            {
                let (key, value) = line.split_once('=').unwrap_or((line, ""));
                add(key.to_owned(), value.as_bytes().to_vec())?;
            }
        }
        Ok(data)
    }
}

impl Create {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        let Some(kind) = self.kind else {
            if self.files.is_empty() {
                bail!("must specify one of -f or a kind; see 'skep create --help'");
            }
            return create_files(session, global, &self.files, &self.write).await;
        };
        if let CreateKind::Token {
            name,
            duration,
            audience,
        } = &kind
        {
            return create_token(session, name, *duration, audience).await;
        }
        let (object, write) = kind.object(session).await?;
        make(session, global, &write, object).await.map(drop)
    }
}

async fn create_token(
    session: &Session,
    name: &str,
    duration: Option<std::time::Duration>,
    audiences: &[String],
) -> Result<()> {
    let path = format!(
        "/api/v1/namespaces/{}/serviceaccounts/{name}/token",
        session.namespace
    );
    let mut spec = json!({"audiences": audiences});
    if let Some(duration) = duration {
        spec["expirationSeconds"] = duration.as_secs().into();
    }
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let answer = session.create(&path, &request).await?;
    println!("{}", text(&answer["status"], "token"));
    Ok(())
}

/// A pod template with one container.
fn pod_spec(name: &str, image: &str, command: &[String], restart: Option<&str>) -> Value {
    let mut container = json!({"name": name, "image": image});
    if !command.is_empty() {
        container["command"] = command.to_vec().into();
    }
    let mut spec = json!({"containers": [container]});
    if let Some(restart) = restart {
        spec["restartPolicy"] = restart.into();
    }
    spec
}

impl CreateKind {
    async fn object(self, session: &Session) -> Result<(Value, WriteArgs)> {
        Ok(match self {
            Self::Namespace { name, write } => (
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
                write,
            ),
            Self::Serviceaccount { name, write } => (
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}),
                write,
            ),
            Self::Deployment {
                name,
                image,
                replicas,
                port,
                write,
                command,
            } => {
                let containers: Vec<Value> = image
                    .iter()
                    .map(|image| {
                        let mut container = json!({"name": container_name(image), "image": image});
                        if !command.is_empty() {
                            container["command"] = command.clone().into();
                        }
                        if let Some(port) = port {
                            container["ports"] = json!([{"containerPort": port}]);
                        }
                        container
                    })
                    .collect();
                let labels = json!({"app": name});
                (
                    json!({
                        "apiVersion": "apps/v1", "kind": "Deployment",
                        "metadata": {"name": name, "labels": labels},
                        "spec": {
                            "replicas": replicas,
                            "selector": {"matchLabels": labels},
                            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
                        },
                    }),
                    write,
                )
            }
            Self::Job {
                name,
                image,
                from,
                write,
                command,
            } => {
                let spec = match (image, from) {
                    (Some(image), _) => {
                        json!({"template": {"spec": pod_spec(&name, &image, &command, Some("Never"))}})
                    }
                    (None, Some(from)) => {
                        let cron_job = from
                            .split_once('/')
                            .filter(|(kind, _)| kind.starts_with("cronjob") || *kind == "cj");
                        let (_, cron_job) = cron_job.context("--from: want cronjob/NAME")?;
                        let resource = session.resource("cronjobs").await?;
                        let cron_job = session
                            .get(&resource.path(&session.namespace, cron_job))
                            .await?;
                        cron_job["spec"]["jobTemplate"]["spec"].clone()
                    }
                    (None, None) => bail!("either --image or --from must be specified"),
                };
                (
                    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}),
                    write,
                )
            }
            Self::Cronjob {
                name,
                image,
                schedule,
                write,
                command,
            } => (
                json!({
                    "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name},
                    "spec": {"schedule": schedule, "jobTemplate": {"metadata": {"name": name}, "spec": {"template": {
                        "spec": pod_spec(&name, &image, &command, Some("OnFailure"))}}}},
                }),
                write,
            ),
            Self::Configmap { name, data, write } => {
                let (mut plain, mut binary) = (BTreeMap::new(), BTreeMap::new());
                for (key, value) in data.entries()? {
                    match String::from_utf8(value) {
                        Ok(text) => drop(plain.insert(key, text)),
                        Err(error) => drop(binary.insert(key, STANDARD.encode(error.into_bytes()))),
                    }
                }
                let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": plain});
                if !binary.is_empty() {
                    object["binaryData"] = json!(binary);
                }
                (object, write)
            }
            Self::Secret { kind } => kind.object()?,
            Self::Service {
                kind,
                name,
                tcp,
                node_port,
                external_name,
                write,
            } => (
                service(&kind, &name, &tcp, node_port, external_name)?,
                write,
            ),
            Self::Role(args) => args.object(session, "Role").await?,
            Self::Clusterrole(args) => args.object(session, "ClusterRole").await?,
            Self::Rolebinding(args) => args.object("RoleBinding")?,
            Self::Clusterrolebinding(args) => args.object("ClusterRoleBinding")?,
            Self::Ingress {
                name,
                rule,
                class,
                write,
            } => {
                let rules: Vec<Value> = rule
                    .iter()
                    .map(|rule| ingress_rule(rule))
                    .collect::<Result<_>>()?;
                let mut spec = json!({"rules": rules});
                if let Some(class) = class {
                    spec["ingressClassName"] = class.into();
                }
                (
                    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name}, "spec": spec}),
                    write,
                )
            }
            Self::Poddisruptionbudget {
                name,
                selector,
                min_available,
                max_unavailable,
                write,
            } => {
                let labels = pairs(
                    &selector.split(',').map(str::to_owned).collect::<Vec<_>>(),
                    "--selector",
                )?;
                let mut spec = json!({"selector": {"matchLabels": labels}});
                let number =
                    |text: String| text.parse::<i64>().map_or(Value::String(text), Value::from);
                if let Some(min) = min_available {
                    spec["minAvailable"] = number(min);
                }
                if let Some(max) = max_unavailable {
                    spec["maxUnavailable"] = number(max);
                }
                (
                    json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}, "spec": spec}),
                    write,
                )
            }
            Self::Quota { name, hard, write } => (
                json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name},
                    "spec": {"hard": pairs(&hard, "--hard")?}}),
                write,
            ),
            Self::Priorityclass {
                name,
                value,
                global_default,
                description,
                write,
            } => (
                json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
                    "value": value, "globalDefault": global_default, "description": description}),
                write,
            ),
            Self::Token { .. } => bail!("a token is no object"),
        })
    }
}

/// `registry/library/nginx:1.27@sha256:…` → `nginx`
fn container_name(image: &str) -> String {
    let image = image.split('@').next().unwrap_or(image);
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split(':')
        .next()
        .unwrap_or(last)
        .replace(['.', '_'], "-")
        .to_lowercase()
}

impl SecretKind {
    fn object(self) -> Result<(Value, WriteArgs)> {
        let secret = |name: String, kind: &str, data: BTreeMap<String, Vec<u8>>| {
            let data: BTreeMap<_, _> = data
                .into_iter()
                .map(|(k, v)| (k, STANDARD.encode(v)))
                .collect();
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": kind, "data": data})
        };
        Ok(match self {
            Self::Generic {
                name,
                data,
                kind,
                write,
            } => (secret(name, &kind, data.entries()?), write),
            Self::Tls {
                name,
                cert,
                key,
                write,
            } => {
                let read = |path: &std::path::Path| {
                    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
                };
                let data = [
                    ("tls.crt".to_owned(), read(&cert)?),
                    ("tls.key".to_owned(), read(&key)?),
                ];
                (secret(name, "kubernetes.io/tls", data.into()), write)
            }
            Self::DockerRegistry {
                name,
                docker_server,
                docker_username,
                docker_password,
                docker_email,
                write,
            } => {
                let auth = STANDARD.encode(format!("{docker_username}:{docker_password}"));
                let config = json!({"auths": {docker_server: {
                    "username": docker_username, "password": docker_password, "email": docker_email, "auth": auth,
                }}});
                let data = BTreeMap::from([(
                    ".dockerconfigjson".to_owned(),
                    config.to_string().into_bytes(),
                )]);
                (secret(name, "kubernetes.io/dockerconfigjson", data), write)
            }
        })
    }
}

fn service(
    kind: &str,
    name: &str,
    tcp: &[String],
    node_port: Option<u16>,
    external_name: Option<String>,
) -> Result<Value> {
    let type_ = match kind.to_lowercase().as_str() {
        "clusterip" => "ClusterIP",
        "nodeport" => "NodePort",
        "loadbalancer" => "LoadBalancer",
        "externalname" => "ExternalName",
        _ => bail!("want clusterip, nodeport, loadbalancer or externalname, not \"{kind}\""),
    };
    let mut ports = Vec::new();
    for item in tcp {
        let (port, target) = item.split_once(':').unwrap_or((item, item));
        let number: u16 = port
            .parse()
            .with_context(|| format!("--tcp: \"{port}\" is no port"))?;
        let target = target
            .parse::<u16>()
            .map_or(json!(target), |number| json!(number));
        let mut entry = json!({"name": item.replace(':', "-"), "port": number, "protocol": "TCP", "targetPort": target});
        if let Some(node_port) = node_port {
            entry["nodePort"] = node_port.into();
        }
        ports.push(entry);
    }
    let mut spec = json!({"type": type_, "selector": {"app": name}});
    if !ports.is_empty() {
        spec["ports"] = ports.into();
    } else if type_ != "ExternalName" {
        bail!("at least one --tcp=PORT:TARGETPORT must be specified");
    }
    if let Some(external_name) = external_name {
        spec["externalName"] = external_name.into();
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec,
    }))
}

/// `HOST/PATH=SERVICE:PORT`, a path that ends with * is a prefix.
fn ingress_rule(rule: &str) -> Result<Value> {
    let wrong = || format!("--rule: want HOST/PATH=SERVICE:PORT, not \"{rule}\"");
    let (from, to) = rule.split_once('=').with_context(wrong)?;
    let (host, path) = from.split_once('/').with_context(wrong)?;
    let (service, port) = to
        .split(',')
        .next()
        .unwrap_or(to)
        .split_once(':')
        .with_context(wrong)?;
    let (path, kind) = match path.strip_suffix('*') {
        Some(path) => (path, "Prefix"),
        None => (path, "Exact"),
    };
    let port = port
        .parse::<u16>()
        .map_or(json!({"name": port}), |number| json!({"number": number}));
    let mut entry = json!({"http": {"paths": [{
        "path": format!("/{path}"), "pathType": kind, "backend": {"service": {"name": service, "port": port}},
    }]}});
    if !host.is_empty() {
        entry["host"] = host.into();
    }
    Ok(entry)
}

impl RoleArgs {
    async fn object(self, session: &Session, kind: &str) -> Result<(Value, WriteArgs)> {
        let mut by_group: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for word in &self.resource {
            let (name, sub) = word
                .split_once('/')
                .map_or((word.as_str(), None), |(n, s)| (n, Some(s)));
            let (group, plural) = if name == "*" {
                ("*".to_owned(), "*".to_owned())
            } else {
                let resource = session.resource(name).await?;
                (resource.group, resource.plural)
            };
            let resource = sub.map_or(plural.clone(), |sub| format!("{plural}/{sub}"));
            by_group.entry(group).or_default().push(resource);
        }
        let mut rules: Vec<Value> = Vec::new();
        for (group, resources) in by_group {
            let mut rule =
                json!({"verbs": self.verb, "apiGroups": [group], "resources": resources});
            if !self.resource_name.is_empty() {
                rule["resourceNames"] = self.resource_name.clone().into();
            }
            rules.push(rule);
        }
        if !self.non_resource_url.is_empty() {
            rules.push(json!({"verbs": self.verb, "nonResourceURLs": self.non_resource_url}));
        }
        if rules.is_empty() {
            bail!("at least one resource must be specified");
        }
        let object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": {"name": self.name}, "rules": rules});
        Ok((object, self.write))
    }
}

impl BindingArgs {
    fn object(self, kind: &str) -> Result<(Value, WriteArgs)> {
        const GROUP: &str = "rbac.authorization.k8s.io";
        let (role_kind, role) = match (self.role, self.clusterrole) {
            (Some(role), None) if kind == "RoleBinding" => ("Role", role),
            (None, Some(role)) => ("ClusterRole", role),
            _ => bail!(
                "exactly one of --clusterrole or (for a rolebinding) --role must be specified"
            ),
        };
        let mut subjects: Vec<Value> = Vec::new();
        for user in self.user {
            subjects.push(json!({"kind": "User", "apiGroup": GROUP, "name": user}));
        }
        for group in self.group {
            subjects.push(json!({"kind": "Group", "apiGroup": GROUP, "name": group}));
        }
        for account in self.serviceaccount {
            let (namespace, name) = account
                .split_once(':')
                .context("--serviceaccount: want NAMESPACE:NAME")?;
            subjects.push(json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}));
        }
        let object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": {"name": self.name},
            "subjects": subjects, "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role}});
        Ok((object, self.write))
    }
}

/// Make a Service for pods, a Deployment, a ReplicaSet or another Service.
///
/// Examples:
///   skep expose deployment web --port=80 --target-port=8080
///   skep expose pod nginx-pod --port=80 --type=NodePort --name=web
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Expose {
    #[command(flatten)]
    selection: Selection,
    #[arg(long)]
    port: Option<u16>,
    #[arg(long)]
    target_port: Option<String>,
    #[arg(long, default_value = "TCP")]
    protocol: String,
    #[arg(long = "type", default_value = "ClusterIP", value_parser = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])]
    kind: String,
    /// Name of the Service
    #[arg(long)]
    name: Option<String>,
    #[arg(long, value_delimiter = ',')]
    labels: Vec<String>,
    /// None makes it headless
    #[arg(long)]
    cluster_ip: Option<String>,
    #[arg(long)]
    external_ip: Option<String>,
    #[arg(long)]
    session_affinity: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
}

impl Expose {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        for (resource, object) in self.selection.objects(session, global).await? {
            let name = name_of(&object);
            let selector = match resource.kind.as_str() {
                "Pod" => object["metadata"]["labels"].clone(),
                "Service" | "ReplicationController" => object["spec"]["selector"].clone(),
                "Deployment" | "ReplicaSet" => object["spec"]["selector"]["matchLabels"].clone(),
                _ => bail!("cannot expose a {}", resource.kind),
            };
            if selector.as_object().is_none_or(serde_json::Map::is_empty) {
                bail!(
                    "couldn't retrieve selectors: {} has no labels to select by",
                    name
                );
            }
            let template = match resource.kind.as_str() {
                "Pod" => &object["spec"],
                _ => &object["spec"]["template"]["spec"],
            };
            let mut ports: Vec<Value> = Vec::new();
            if let Some(port) = self.port {
                ports.push(json!({"port": port, "protocol": self.protocol}));
            } else {
                for container in crate::discovery::items(template, "containers") {
                    for port in crate::discovery::items(container, "ports") {
                        let protocol = port["protocol"].as_str().unwrap_or("TCP");
                        ports.push(json!({"port": port["containerPort"], "protocol": protocol}));
                    }
                }
                if ports.is_empty() {
                    bail!("couldn't find port via --port flag or introspection");
                }
                if ports.len() > 1 {
                    for (index, port) in ports.iter_mut().enumerate() {
                        port["name"] = format!("port-{}", index + 1).into();
                    }
                }
            }
            for port in &mut ports {
                port["targetPort"] = match &self.target_port {
                    Some(target) => target
                        .parse::<u16>()
                        .map_or(json!(target), |number| json!(number)),
                    None => port["port"].clone(),
                };
            }
            let labels = match self.labels.is_empty() {
                true => object["metadata"]["labels"].clone(),
                false => json!(pairs(&self.labels, "--labels")?),
            };
            let mut spec = json!({"selector": selector, "ports": ports});
            if self.kind != "ClusterIP" {
                spec["type"] = self.kind.clone().into();
            }
            if let Some(address) = &self.cluster_ip {
                spec["clusterIP"] = address.clone().into();
            }
            if let Some(address) = &self.external_ip {
                spec["externalIPs"] = json!([address]);
            }
            if let Some(affinity) = &self.session_affinity {
                spec["sessionAffinity"] = affinity.clone().into();
            }
            let service_name = self.name.clone().unwrap_or_else(|| name.clone());
            let mut service = json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"name": service_name, "namespace": object["metadata"]["namespace"]}, "spec": spec});
            if labels.is_object() {
                service["metadata"]["labels"] = labels;
            }
            let target: Target = target_of(session, global, &service).await?;
            let mut object = self.write.clone();
            if object.output.is_none() {
                // kubectl says "exposed" where it would say "created".
                let created = session
                    .create(&format!("{}?{}", target.path(""), object.query()), &service)
                    .await?;
                object.report(&created, &target, "exposed")?;
            } else {
                object.output = self.write.output.clone();
                object.create(session, &target, &service).await?;
            }
        }
        Ok(())
    }
}

/// Let a HorizontalPodAutoscaler choose the number of replicas.
#[derive(Args, Clone, Debug)]
pub struct Autoscale {
    #[command(flatten)]
    selection: Selection,
    #[arg(long)]
    min: Option<i32>,
    #[arg(long)]
    max: i32,
    /// Target average CPU use, in percent of the request
    #[arg(long)]
    cpu_percent: Option<i32>,
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
}

impl Autoscale {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        for (resource, object) in self.selection.objects(session, global).await? {
            let name = self.name.clone().unwrap_or_else(|| name_of(&object));
            let mut spec = json!({
                "scaleTargetRef": {"apiVersion": resource.api_version(), "kind": resource.kind, "name": name_of(&object)},
                "maxReplicas": self.max,
            });
            if let Some(min) = self.min {
                spec["minReplicas"] = min.into();
            }
            let percent = self.cpu_percent.unwrap_or(80);
            spec["metrics"] = json!([{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": percent}}}]);
            let autoscaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": name, "namespace": object["metadata"]["namespace"]}, "spec": spec});
            let target = target_of(session, global, &autoscaler).await?;
            let path = format!("{}?{}", target.path(""), self.write.query());
            let created = session.create(&path, &autoscaler).await?;
            self.write.report(&created, &target, "autoscaled")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_name_containers() {
        assert_eq!(container_name("nginx"), "nginx");
        assert_eq!(
            container_name("registry.io:5000/library/nginx:1.27"),
            "nginx"
        );
        assert_eq!(container_name("a/b@sha256:0123"), "b");
    }

    #[test]
    fn ingress_rules_are_read() {
        let rule = ingress_rule("foo.com/bar*=web:80").unwrap();
        assert_eq!(rule["host"], "foo.com");
        assert_eq!(rule["http"]["paths"][0]["pathType"], "Prefix");
        assert!(ingress_rule("foo.com").is_err());
    }

    #[test]
    fn services_are_made() {
        let made = service("nodeport", "web", &["80:8080".into()], Some(30080), None).unwrap();
        assert_eq!(made["spec"]["ports"][0]["nodePort"], 30080);
        assert!(service("clusterip", "web", &[], None, None).is_err());
        assert!(service("nonsense", "web", &[], None, None).is_err());
    }
}
