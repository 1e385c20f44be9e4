//! `skep describe`: an object in words, with its events.
//!
//! Pods, nodes, Services and workloads have descriptions of their own; any other kind is shown field by field.

use std::fmt::Write as _;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use crate::{
    discovery::{Resource, encode, items},
    output,
    session::{Global, Session, name_of, text},
    target::Selection,
};

/// Show objects in detail, with their events.
#[derive(Args, Clone, Debug)]
pub struct Describe {
    #[command(flatten)]
    selection: Selection,
    /// Leave the events out
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, action = clap::ArgAction::Set)]
    show_events: bool,
}

impl Describe {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        let objects = self.selection.objects(session, global).await?;
        if objects.is_empty() {
            eprintln!("No resources found in {} namespace.", session.namespace);
        }
        for (index, (resource, object)) in objects.iter().enumerate() {
            if index > 0 {
                println!("\n");
            }
            let mut page = Page::default();
            describe(&mut page, session, resource, object).await?;
            if self.show_events {
                page.events(&events_of(session, object).await?);
            }
            print!("{}", page.0);
        }
        Ok(())
    }
}

/// Lines of `Name:   value`, indented by level.
#[derive(Default)]
struct Page(String);

const WIDTH: usize = 22;

impl Page {
    fn field(&mut self, level: usize, name: &str, value: impl AsRef<str>) {
        let value = value.as_ref();
        let shown = if value.is_empty() { "<none>" } else { value };
        let width = WIDTH.saturating_sub(2 * level);
        let head = format!("{name}:");
        let indent = 2 * level;
        for (index, line) in shown.lines().enumerate() {
            let head = if index == 0 { head.as_str() } else { "" };
            let _ = writeln!(self.0, "{:indent$}{head:<width$} {line}", "");
        }
    }

    fn heading(&mut self, level: usize, name: &str) {
        let _ = writeln!(self.0, "{:indent$}{name}:", "", indent = 2 * level);
    }

    fn line(&mut self, level: usize, text: &str) {
        let _ = writeln!(self.0, "{:indent$}{text}", "", indent = 2 * level);
    }

    fn map(&mut self, level: usize, name: &str, map: &Value) {
        let pairs: Vec<String> = map
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", scalar(value)))
            .collect();
        self.field(level, name, pairs.join("\n"));
    }

    fn table(&mut self, level: usize, rows: &[Vec<String>]) {
        for line in output::align(rows).lines() {
            self.line(level, line);
        }
    }

    fn conditions(&mut self, object: &Value, columns: &[&str]) {
        let mut conditions = items(&object["status"], "conditions").peekable();
        if conditions.peek().is_none() {
            return;
        }
        self.heading(0, "Conditions");
        let head: Vec<String> = columns.iter().map(|c| title(c)).collect();
        let rule = head.iter().map(|c| "-".repeat(c.len())).collect();
        let mut rows = vec![head, rule];
        rows.extend(conditions.map(|c| columns.iter().map(|key| text(c, key)).collect()));
        self.table(1, &rows);
    }

    fn events(&mut self, events: &[Value]) {
        if events.is_empty() {
            self.field(0, "Events", "");
            return;
        }
        self.heading(0, "Events");
        let head = ["Type", "Reason", "Age", "From", "Message"];
        let mut rows = vec![
            head.map(str::to_owned).to_vec(),
            head.map(|h| "-".repeat(h.len())).to_vec(),
        ];
        for event in events {
            let last = age_of(&event_time(event));
            let count = event["count"]
                .as_i64()
                .or(event["series"]["count"].as_i64())
                .unwrap_or(1);
            let age = match count {
                0 | 1 => last,
                _ => format!(
                    "{last} (x{count} over {})",
                    age_of(&text(event, "firstTimestamp"))
                ),
            };
            let from = event["source"]["component"]
                .as_str()
                .filter(|c| !c.is_empty());
            let from = from
                .or(event["reportingComponent"].as_str())
                .unwrap_or_default();
            rows.push(vec![
                text(event, "type"),
                text(event, "reason"),
                age,
                from.to_owned(),
                text(event, "message").trim().to_owned(),
            ]);
        }
        self.table(1, &rows);
    }

    /// Any value, as nested lines.
    fn value(&mut self, level: usize, name: &str, value: &Value) {
        match value {
            Value::Object(map) if map.is_empty() => self.field(level, name, ""),
            Value::Object(map) => {
                self.heading(level, name);
                for (key, value) in map {
                    self.value(level + 1, &title(key), value);
                }
            }
            Value::Array(list) if list.iter().all(|v| !v.is_object() && !v.is_array()) => {
                let words: Vec<String> = list.iter().map(scalar).collect();
                self.field(level, name, words.join("\n"));
            }
            Value::Array(list) => {
                self.heading(level, name);
                for element in list {
                    match element {
                        Value::Object(map) => {
                            for (key, value) in map {
                                self.value(level + 1, &title(key), value);
                            }
                        }
                        other => self.line(level + 1, &scalar(other)),
                    }
                }
            }
            other => self.field(level, name, scalar(other)),
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// `lastTransitionTime` → `LastTransitionTime`; in free fields with spaces.
fn title(key: &str) -> String {
    let mut out = String::new();
    for (index, character) in key.chars().enumerate() {
        if index == 0 {
            out.extend(character.to_uppercase());
        } else {
            out.push(character);
        }
    }
    out
}

/// When an event last happened.
pub fn event_time(event: &Value) -> String {
    ["lastTimestamp", "eventTime", "firstTimestamp"]
        .iter()
        .map(|key| text(event, key))
        .find(|time| !time.is_empty())
        .unwrap_or_else(|| text(&event["metadata"], "creationTimestamp"))
}

/// `5m`, `3h12m`: how long ago.
pub fn age_of(time: &str) -> String {
    let Ok(time) = time.parse::<Timestamp>() else {
        return "<unknown>".to_owned();
    };
    let seconds = Timestamp::now().as_second() - time.as_second();
    human(seconds.max(0))
}

/// Seconds in at most two units, as kubectl shows ages.
fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 if seconds % 60 != 0 => format!("{minutes}m{}s", seconds % 60),
        120..10800 => format!("{minutes}m"),
        10800..28800 if minutes % 60 != 0 => format!("{hours}h{}m", minutes % 60),
        10800..172800 => format!("{hours}h"),
        172800..691200 if hours % 24 != 0 => format!("{days}d{}h", hours % 24),
        _ if days < 730 => format!("{days}d"),
        _ => format!("{}y", days / 365),
    }
}

async fn events_of(session: &Session, object: &Value) -> Result<Vec<Value>> {
    let metadata = &object["metadata"];
    let namespace = text(metadata, "namespace");
    let mut selector = format!(
        "involvedObject.name={},involvedObject.kind={}",
        name_of(object),
        text(object, "kind")
    );
    // Events about nodes carry the node's name as uid.
    if !namespace.is_empty() {
        let _ = write!(selector, ",involvedObject.uid={}", text(metadata, "uid"));
    }
    let namespace = if namespace.is_empty() {
        "default"
    } else {
        &namespace
    };
    let path = format!(
        "/api/v1/namespaces/{namespace}/events?fieldSelector={}",
        encode(&selector)
    );
    let list = session.get(&path).await?;
    let mut events: Vec<Value> = items(&list, "items").cloned().collect();
    events.sort_by_key(event_time);
    Ok(events)
}

async fn describe(
    page: &mut Page,
    session: &Session,
    resource: &Resource,
    object: &Value,
) -> Result<()> {
    let metadata = &object["metadata"];
    page.field(0, "Name", name_of(object));
    if resource.namespaced {
        page.field(0, "Namespace", text(metadata, "namespace"));
    }
    match resource.kind.as_str() {
        "Pod" => pod(page, object),
        "Node" => node(page, session, object).await?,
        "Service" => service(page, session, object).await?,
        "Deployment"
        | "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicationController"
        | "Job" => {
            workload(page, session, &resource.kind, object).await?;
        }
        "Secret" => {
            head(page, metadata);
            page.field(0, "Type", text(object, "type"));
            page.heading(0, "Data");
            for (key, value) in object["data"].as_object().into_iter().flatten() {
                // Sizes only: a secret is not for the screen.
                let encoded = value.as_str().unwrap_or_default();
                let size = encoded.len() / 4 * 3
                    - encoded.bytes().rev().take_while(|&b| b == b'=').count();
                page.field(1, key, format!("{size} bytes"));
            }
        }
        _ => {
            head(page, metadata);
            for (key, value) in object.as_object().into_iter().flatten() {
                if !matches!(key.as_str(), "metadata" | "apiVersion" | "kind") {
                    page.value(0, &title(key), value);
                }
            }
        }
    }
    Ok(())
}

fn head(page: &mut Page, metadata: &Value) {
    page.map(0, "Labels", &metadata["labels"]);
    let mut annotations = metadata["annotations"].clone();
    if let Some(map) = annotations.as_object_mut() {
        map.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    page.map(0, "Annotations", &annotations);
    if let Some(time) = metadata["deletionTimestamp"].as_str() {
        page.field(0, "Status", format!("Terminating (since {})", age_of(time)));
    }
}

fn pod(page: &mut Page, object: &Value) {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    if !spec["priority"].is_null() {
        page.field(0, "Priority", scalar(&spec["priority"]));
    }
    page.field(0, "Service Account", text(spec, "serviceAccountName"));
    let node = text(spec, "nodeName");
    let host = text(status, "hostIP");
    page.field(
        0,
        "Node",
        if host.is_empty() {
            node
        } else {
            format!("{node}/{host}")
        },
    );
    page.field(0, "Start Time", text(status, "startTime"));
    page.map(0, "Labels", &metadata["labels"]);
    page.map(0, "Annotations", &metadata["annotations"]);
    match metadata["deletionTimestamp"].as_str() {
        Some(time) => {
            page.field(0, "Status", format!("Terminating (lasts {})", age_of(time)));
            let grace = scalar(&metadata["deletionGracePeriodSeconds"]);
            page.field(0, "Termination Grace Period", format!("{grace}s"));
        }
        None => page.field(0, "Status", text(status, "phase")),
    }
    for key in ["reason", "message"] {
        if status[key].is_string() {
            page.field(0, &title(key), text(status, key));
        }
    }
    page.field(0, "IP", text(status, "podIP"));
    page.heading(0, "IPs");
    for ip in items(status, "podIPs") {
        page.field(1, "IP", text(ip, "ip"));
    }
    if let Some(owner) = items(metadata, "ownerReferences").find(|o| o["controller"] == true) {
        page.field(
            0,
            "Controlled By",
            format!("{}/{}", text(owner, "kind"), text(owner, "name")),
        );
    }
    for (list, statuses, name) in [
        ("initContainers", "initContainerStatuses", "Init Containers"),
        ("containers", "containerStatuses", "Containers"),
        (
            "ephemeralContainers",
            "ephemeralContainerStatuses",
            "Ephemeral Containers",
        ),
    ] {
        if items(spec, list).len() == 0 {
            continue;
        }
        page.heading(0, name);
        for container in items(spec, list) {
            let own = items(status, statuses).find(|s| s["name"] == container["name"]);
            pod_container(page, container, own.unwrap_or(&Value::Null));
        }
    }
    page.conditions(object, &["type", "status"]);
    page.heading(0, "Volumes");
    for volume in items(spec, "volumes") {
        page.heading(1, &text(volume, "name"));
        for (kind, detail) in volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(k, _)| *k != "name")
        {
            page.value(2, &title(kind), detail);
        }
    }
    page.field(0, "QoS Class", text(status, "qosClass"));
    page.map(0, "Node-Selectors", &spec["nodeSelector"]);
    let tolerations: Vec<String> = items(spec, "tolerations").map(toleration).collect();
    page.field(0, "Tolerations", tolerations.join("\n"));
}

fn toleration(toleration: &Value) -> String {
    let mut out = text(toleration, "key");
    if toleration["value"].is_string() {
        let _ = write!(out, "={}", text(toleration, "value"));
    }
    if toleration["effect"].is_string() {
        let _ = write!(out, ":{}", text(toleration, "effect"));
    }
    if toleration["operator"] == "Exists" {
        out.push_str(" op=Exists");
    }
    if let Some(seconds) = toleration["tolerationSeconds"].as_i64() {
        let _ = write!(out, " for {seconds}s");
    }
    out
}

fn pod_container(page: &mut Page, container: &Value, status: &Value) {
    page.heading(1, &text(container, "name"));
    page.field(2, "Container ID", text(status, "containerID"));
    page.field(2, "Image", text(container, "image"));
    page.field(2, "Image ID", text(status, "imageID"));
    let ports: Vec<String> = items(container, "ports")
        .map(|p| {
            format!(
                "{}/{}",
                scalar(&p["containerPort"]),
                p["protocol"].as_str().unwrap_or("TCP")
            )
        })
        .collect();
    page.field(2, "Ports", ports.join(", "));
    for key in ["command", "args"] {
        let words: Vec<String> = items(container, key).map(scalar).collect();
        if !words.is_empty() {
            page.field(2, &title(key), words.join("\n"));
        }
    }
    container_state(page, "State", &status["state"]);
    if status["lastState"]
        .as_object()
        .is_some_and(|state| !state.is_empty())
    {
        container_state(page, "Last State", &status["lastState"]);
    }
    page.field(2, "Ready", title(&(status["ready"] == true).to_string()));
    page.field(2, "Restart Count", scalar(&status["restartCount"]));
    for key in ["limits", "requests"] {
        let amounts = &container["resources"][key];
        if amounts.is_object() {
            page.heading(2, &title(key));
            for (name, amount) in amounts.as_object().into_iter().flatten() {
                page.field(3, name, scalar(amount));
            }
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[key].is_object() {
            page.field(
                2,
                title(key).trim_end_matches("Probe"),
                probe(&container[key]),
            );
        }
    }
    page.heading(2, "Environment");
    for variable in items(container, "env") {
        let from = variable["valueFrom"]
            .as_object()
            .and_then(|from| from.iter().next());
        let shown = match from {
            Some((kind, source)) => {
                let path = source["fieldPath"]
                    .as_str()
                    .or(source["key"].as_str())
                    .unwrap_or_default();
                format!("<from {kind} {path} {}>", text(source, "name"))
            }
            None => text(variable, "value"),
        };
        page.field(3, &text(variable, "name"), shown);
    }
    page.heading(2, "Mounts");
    for mount in items(container, "volumeMounts") {
        let mode = if mount["readOnly"] == true {
            "ro"
        } else {
            "rw"
        };
        page.line(
            3,
            &format!(
                "{} from {} ({mode})",
                text(mount, "mountPath"),
                text(mount, "name")
            ),
        );
    }
}

fn container_state(page: &mut Page, name: &str, state: &Value) {
    let Some((kind, detail)) = state.as_object().and_then(|state| state.iter().next()) else {
        page.field(2, name, "Waiting");
        return;
    };
    page.field(2, name, title(kind));
    for (key, shown) in [
        ("reason", "Reason"),
        ("message", "Message"),
        ("exitCode", "Exit Code"),
        ("signal", "Signal"),
        ("startedAt", "Started"),
        ("finishedAt", "Finished"),
    ] {
        if !detail[key].is_null() {
            page.field(3, shown, scalar(&detail[key]));
        }
    }
}

fn probe(probe: &Value) -> String {
    let action = if probe["httpGet"].is_object() {
        let get = &probe["httpGet"];
        let scheme = get["scheme"].as_str().unwrap_or("HTTP").to_lowercase();
        format!(
            "http-get {scheme}://{}:{}{}",
            text(get, "host"),
            scalar(&get["port"]),
            text(get, "path")
        )
    } else if probe["tcpSocket"].is_object() {
        format!("tcp-socket :{}", scalar(&probe["tcpSocket"]["port"]))
    } else if probe["grpc"].is_object() {
        format!("grpc <pod>:{}", scalar(&probe["grpc"]["port"]))
    } else {
        let words: Vec<String> = items(&probe["exec"], "command").map(scalar).collect();
        format!("exec [{}]", words.join(" "))
    };
    let number = |key: &str| probe[key].as_i64().unwrap_or(0);
    format!(
        "{action} delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds"),
        number("timeoutSeconds"),
        number("periodSeconds"),
        number("successThreshold"),
        number("failureThreshold"),
    )
}

async fn node(page: &mut Page, session: &Session, object: &Value) -> Result<()> {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    let role_of = |label: &String| {
        label
            .strip_prefix("node-role.kubernetes.io/")
            .map(str::to_owned)
    };
    let roles: Vec<String> = metadata["labels"]
        .as_object()
        .into_iter()
        .flat_map(|l| l.keys().filter_map(role_of))
        .collect();
    page.field(0, "Roles", roles.join(","));
    page.map(0, "Labels", &metadata["labels"]);
    page.map(0, "Annotations", &metadata["annotations"]);
    page.field(0, "CreationTimestamp", text(metadata, "creationTimestamp"));
    let taints: Vec<String> = items(spec, "taints").map(toleration).collect();
    page.field(0, "Taints", taints.join("\n"));
    page.field(
        0,
        "Unschedulable",
        (spec["unschedulable"] == true).to_string(),
    );
    page.conditions(
        object,
        &[
            "type",
            "status",
            "lastHeartbeatTime",
            "lastTransitionTime",
            "reason",
            "message",
        ],
    );
    page.heading(0, "Addresses");
    for address in items(status, "addresses") {
        page.field(1, &text(address, "type"), text(address, "address"));
    }
    for key in ["capacity", "allocatable"] {
        page.heading(0, &title(key));
        for (name, amount) in status[key].as_object().into_iter().flatten() {
            page.field(1, name, scalar(amount));
        }
    }
    page.heading(0, "System Info");
    for (name, value) in status["nodeInfo"].as_object().into_iter().flatten() {
        page.value(1, &title(name), value);
    }
    page.field(0, "PodCIDR", text(spec, "podCIDR"));
    let path = format!(
        "/api/v1/pods?fieldSelector={}",
        encode(&format!("spec.nodeName={}", name_of(object)))
    );
    let pods = session.get(&path).await?;
    page.line(
        0,
        &format!(
            "Non-terminated Pods: ({} in total)",
            items(&pods, "items").len()
        ),
    );
    let mut rows = vec![["Namespace", "Name", "Age"].map(str::to_owned).to_vec()];
    for pod in items(&pods, "items") {
        let metadata = &pod["metadata"];
        rows.push(vec![
            text(metadata, "namespace"),
            name_of(pod),
            age_of(&text(metadata, "creationTimestamp")),
        ]);
    }
    page.table(1, &rows);
    Ok(())
}

async fn service(page: &mut Page, session: &Session, object: &Value) -> Result<()> {
    let spec = &object["spec"];
    page.map(0, "Labels", &object["metadata"]["labels"]);
    page.map(0, "Annotations", &object["metadata"]["annotations"]);
    page.map(0, "Selector", &spec["selector"]);
    page.field(0, "Type", text(spec, "type"));
    page.field(0, "IP Family Policy", text(spec, "ipFamilyPolicy"));
    page.field(0, "IP", text(spec, "clusterIP"));
    let addresses: Vec<String> = items(spec, "clusterIPs").map(scalar).collect();
    page.field(0, "IPs", addresses.join(","));
    if spec["externalName"].is_string() {
        page.field(0, "External Name", text(spec, "externalName"));
    }
    let namespace = text(&object["metadata"], "namespace");
    let selector = encode(&format!("kubernetes.io/service-name={}", name_of(object)));
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector={selector}"
    );
    let slices = session.get(&path).await?;
    for port in items(spec, "ports") {
        let name = port["name"].as_str().unwrap_or("<unset>");
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        page.field(
            0,
            "Port",
            format!("{name}  {}/{protocol}", scalar(&port["port"])),
        );
        page.field(
            0,
            "TargetPort",
            format!("{}/{protocol}", scalar(&port["targetPort"])),
        );
        if !port["nodePort"].is_null() {
            page.field(
                0,
                "NodePort",
                format!("{name}  {}/{protocol}", scalar(&port["nodePort"])),
            );
        }
        let mut endpoints = Vec::new();
        for slice in items(&slices, "items") {
            let same = |p: &&Value| text(p, "name") == text(port, "name");
            let Some(number) = items(slice, "ports").find(same).map(|p| scalar(&p["port"])) else {
                continue;
            };
            for endpoint in items(slice, "endpoints").filter(|e| e["conditions"]["ready"] != false)
            {
                endpoints.extend(
                    items(endpoint, "addresses").map(|a| format!("{}:{number}", scalar(a))),
                );
            }
        }
        page.field(0, "Endpoints", endpoints.join(","));
    }
    page.field(0, "Session Affinity", text(spec, "sessionAffinity"));
    page.field(
        0,
        "Internal Traffic Policy",
        text(spec, "internalTrafficPolicy"),
    );
    Ok(())
}

async fn workload(page: &mut Page, session: &Session, kind: &str, object: &Value) -> Result<()> {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    page.field(0, "CreationTimestamp", text(metadata, "creationTimestamp"));
    page.map(0, "Labels", &metadata["labels"]);
    page.map(0, "Annotations", &metadata["annotations"]);
    let selector = if spec["selector"]["matchLabels"].is_object() {
        &spec["selector"]["matchLabels"]
    } else {
        &spec["selector"]
    };
    page.map(0, "Selector", selector);
    if let Some(owner) = items(metadata, "ownerReferences").find(|o| o["controller"] == true) {
        page.field(
            0,
            "Controlled By",
            format!("{}/{}", text(owner, "kind"), text(owner, "name")),
        );
    }
    let number = |key: &str| status[key].as_i64().unwrap_or(0);
    match kind {
        "Deployment" => {
            page.field(
                0,
                "Replicas",
                format!(
                    "{} desired | {} updated | {} total | {} available | {} unavailable",
                    scalar(&spec["replicas"]),
                    number("updatedReplicas"),
                    number("replicas"),
                    number("availableReplicas"),
                    number("unavailableReplicas"),
                ),
            );
            page.field(0, "StrategyType", text(&spec["strategy"], "type"));
            page.field(
                0,
                "MinReadySeconds",
                spec["minReadySeconds"].as_i64().unwrap_or(0).to_string(),
            );
            let rolling = &spec["strategy"]["rollingUpdate"];
            if rolling.is_object() {
                let (unavailable, surge) = (
                    scalar(&rolling["maxUnavailable"]),
                    scalar(&rolling["maxSurge"]),
                );
                page.field(
                    0,
                    "RollingUpdateStrategy",
                    format!("{unavailable} max unavailable, {surge} max surge"),
                );
            }
        }
        "Job" => {
            page.field(0, "Parallelism", scalar(&spec["parallelism"]));
            page.field(0, "Completions", scalar(&spec["completions"]));
            let (active, succeeded, failed) =
                (number("active"), number("succeeded"), number("failed"));
            page.field(
                0,
                "Pods Statuses",
                format!("{active} Active / {succeeded} Succeeded / {failed} Failed"),
            );
        }
        "DaemonSet" => {
            page.field(
                0,
                "Desired Number of Nodes Scheduled",
                number("desiredNumberScheduled").to_string(),
            );
            page.field(
                0,
                "Current Number of Nodes Scheduled",
                number("currentNumberScheduled").to_string(),
            );
            page.field(
                0,
                "Number of Nodes Scheduled with Available Pods",
                number("numberAvailable").to_string(),
            );
        }
        _ => {
            let (current, desired) = (number("replicas"), scalar(&spec["replicas"]));
            page.field(
                0,
                "Replicas",
                format!("{current} current / {desired} desired"),
            );
            page.field(0, "Ready Replicas", number("readyReplicas").to_string());
        }
    }
    page.heading(0, "Pod Template");
    let template = &spec["template"];
    page.map(1, "Labels", &template["metadata"]["labels"]);
    for list in ["initContainers", "containers"] {
        if items(&template["spec"], list).len() == 0 {
            continue;
        }
        page.heading(1, &title(list));
        for container in items(&template["spec"], list) {
            page.heading(2, &text(container, "name"));
            for (key, value) in container.as_object().into_iter().flatten() {
                if !matches!(
                    key.as_str(),
                    "name" | "terminationMessagePath" | "terminationMessagePolicy"
                ) {
                    page.value(3, &title(key), value);
                }
            }
        }
    }
    page.conditions(object, &["type", "status", "reason"]);
    if kind == "Deployment" {
        let namespace = text(metadata, "namespace");
        let list = session
            .get(&format!("/apis/apps/v1/namespaces/{namespace}/replicasets"))
            .await?;
        let revision = text(
            &metadata["annotations"],
            "deployment.kubernetes.io/revision",
        );
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for set in items(&list, "items") {
            if !items(&set["metadata"], "ownerReferences").any(|o| o["uid"] == metadata["uid"]) {
                continue;
            }
            let (created, wanted) = (
                set["status"]["replicas"].as_i64().unwrap_or(0),
                scalar(&set["spec"]["replicas"]),
            );
            let line = format!("{} ({created}/{wanted} replicas created)", name_of(set));
            if text(
                &set["metadata"]["annotations"],
                "deployment.kubernetes.io/revision",
            ) == revision
            {
                new.push(line);
            } else {
                old.push(line);
            }
        }
        page.field(0, "OldReplicaSets", old.join(", "));
        page.field(0, "NewReplicaSet", new.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        for (seconds, shown) in [
            (5, "5s"),
            (119, "119s"),
            (125, "2m5s"),
            (600, "10m"),
            (11000, "3h3m"),
            (90000, "25h"),
            (864000, "10d"),
        ] {
            assert_eq!(human(seconds), shown);
        }
    }

    #[test]
    fn unknown_kinds_are_shown_field_by_field() {
        let mut page = Page::default();
        page.value(
            0,
            "Spec",
            &serde_json::json!({"size": 3, "parts": [{"name": "a"}], "tags": ["x", "y"]}),
        );
        assert!(
            page.0.contains("Size:") && page.0.contains("Name:") && page.0.contains("y"),
            "{}",
            page.0
        );
    }
}
