//! `skep services`, `skep flows`, `skep drops`: what the kernels of the nodes have and do, told by their agents.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use futures::{AsyncBufReadExt as _, StreamExt as _, stream};
use http::Request;
use serde_json::{Map, Value, json};

use crate::{
    discovery::items,
    output,
    session::{self, Session, name_of, text},
};

#[derive(Args, Clone, Debug)]
struct Nodes {
    /// Only this node; all of them otherwise
    #[arg(long)]
    node: Option<String>,
    /// json
    #[arg(short, long)]
    output: Option<String>,
}

/// Show frontends and their backends as the kernel has them
#[derive(Args, Clone, Debug)]
pub struct Services {
    /// Only Service ports with this in their name: skep services default/web
    name: Option<String>,
    #[command(flatten)]
    nodes: Nodes,
}

/// Show the translated and tracked connections, or follow new ones and drops as they happen
#[derive(Args, Clone, Debug)]
pub struct Flows {
    /// Tell new connections and drops as they happen, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// With --follow: of so many new connections tell of one; drops are always told
    #[arg(long, default_value_t = 1, value_name = "N", requires = "follow",
        value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    /// With --follow: forwarded, translated, dropped, or a reason as `skep drops --all` names it
    #[arg(long, requires = "follow")]
    verdict: Option<String>,
    /// Only of this pod: NAME or NAMESPACE/NAME
    #[arg(long)]
    pod: Option<String>,
    /// Only of this Service: NAME or NAMESPACE/NAME
    #[arg(long)]
    service: Option<String>,
    /// Only with this address or address:port on any side
    #[arg(long)]
    address: Option<String>,
    /// TCP, UDP, SCTP or ICMP
    #[arg(long)]
    protocol: Option<String>,
    /// The entries of answers too
    #[arg(long, conflicts_with = "follow")]
    answers: bool,
    #[command(flatten)]
    nodes: Nodes,
}

/// What is shown of flows and events.
#[derive(Clone, Debug, Default)]
struct Filter {
    /// One of these on any side; empty: any.
    addresses: Vec<String>,
    protocol: Option<String>,
    /// `NAMESPACE/NAME:`, with which the names of its ports begin.
    service: Option<String>,
    verdict: Option<String>,
    answers: bool,
}

/// Count packets and connections that were refused, by reason
#[derive(Args, Clone, Debug)]
pub struct Drops {
    /// What is counted beside drops too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    nodes: Nodes,
}

impl Services {
    pub async fn run(&self, session: &Session) -> Result<()> {
        let rows = self
            .nodes
            .view(session, "services", |entry| {
                self.name
                    .as_ref()
                    .is_none_or(|name| text(entry, "name").contains(name))
            })
            .await?;
        self.nodes.print(&rows, services_table)
    }
}

impl Flows {
    pub async fn run(&self, session: &Session) -> Result<()> {
        let filter = self.filter(session).await?;
        if self.follow {
            return self.follow(session, &filter).await;
        }
        let rows = self
            .nodes
            .view(session, "flows", |entry| filter.wants(entry))
            .await?;
        self.nodes.print(&rows, flows_table)
    }

    async fn filter(&self, session: &Session) -> Result<Filter> {
        let mut addresses: Vec<String> = self.address.iter().cloned().collect();
        if let Some(pod) = &self.pod {
            let (namespace, name) = namespaced(session, pod);
            let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
            let pod = session.get(&path).await?;
            let ips = pod_ips(&pod);
            if ips.is_empty() {
                bail!("pod \"{name}\" has no address yet");
            }
            addresses.extend(ips);
        }
        Ok(Filter {
            addresses,
            protocol: self.protocol.clone(),
            service: self.service.as_deref().map(|service| {
                let (namespace, name) = namespaced(session, service);
                format!("{namespace}/{name}:")
            }),
            verdict: self.verdict.clone(),
            answers: self.answers,
        })
    }

    /// One line an event, of all nodes as they come.
    async fn follow(&self, session: &Session, filter: &Filter) -> Result<()> {
        let json = match self.nodes.output.as_deref() {
            None => false,
            Some("json") => true,
            Some(other) => bail!(unknown_output(other)),
        };
        let mut streams = Vec::new();
        for node in self.nodes.names(session).await? {
            let path = format!(
                "/api/v1/nodes/{node}/proxy/skep/events?sample={}",
                self.sample
            );
            let request = Request::get(&path).body(Vec::new())?;
            let lines = session
                .client
                .request_stream(request)
                .await
                .map_err(session::explain)
                .with_context(|| format!("node {node}"))?
                .lines();
            streams.push(lines.map(move |line| (node.clone(), line)).boxed());
        }
        let mut events = stream::select_all(streams);
        while let Some((node, line)) = events.next().await {
            let line = line.with_context(|| format!("node {node}"))?;
            let mut event: Value = serde_json::from_str(&line)
                .with_context(|| format!("node {node} said {line:?}"))?;
            if let Some(missed) = event["missed"].as_u64() {
                eprintln!("node {node}: {missed} events were missed; --sample asks for fewer");
                continue;
            }
            if !filter.wants(&event) {
                continue;
            }
            if json {
                event["node"] = json!(node);
                println!("{event}");
            } else {
                println!("{}", event_line(&node, &event));
            }
        }
        Ok(())
    }
}

impl Filter {
    fn wants(&self, flow: &Value) -> bool {
        let sides = ["source", "destination", "newSource", "newDestination"];
        let touches = |address: &String| {
            sides.iter().any(|side| {
                let whole = text(flow, side);
                whole == *address || host(&whole) == address.trim_matches(['[', ']'])
            })
        };
        let is = |field: &str, wanted: &String| text(flow, field).eq_ignore_ascii_case(wanted);
        (self.answers || flow["answer"] != true)
            && (self.addresses.is_empty() || self.addresses.iter().any(touches))
            && self
                .protocol
                .as_ref()
                .is_none_or(|wanted| is("protocol", wanted))
            && self
                .service
                .as_ref()
                .is_none_or(|service| text(flow, "service").starts_with(service))
            && self
                .verdict
                .as_ref()
                .is_none_or(|wanted| is("verdict", wanted) || is("reason", wanted))
    }
}

/// `NAMESPACE/NAME`, or a name in the namespace of the session.
pub(super) fn namespaced<'a>(session: &'a Session, name: &'a str) -> (&'a str, &'a str) {
    name.split_once('/').unwrap_or((&session.namespace, name))
}

pub(super) fn pod_ips(pod: &Value) -> Vec<String> {
    items(&pod["status"], "podIPs")
        .map(|each| text(each, "ip"))
        .collect()
}

/// `12:00:01.250 node1 translated TCP 10.244.0.5 -> 10.96.0.1:443 => 10.89.0.1:6443 default/kubernetes:https`
fn event_line(node: &str, event: &Value) -> String {
    let time = text(event, "time");
    let time = time
        .split_once('T')
        .map_or(time.as_str(), |(_, clock)| clock.trim_end_matches('Z'));
    let bare = |side: &str| text(event, side).trim_end_matches(":0").to_string();
    let mut line = format!(
        "{time} {node} {} {} {} -> {}",
        text(event, "verdict"),
        text(event, "protocol"),
        bare("source"),
        bare("destination")
    );
    let (source, destination) = (bare("newSource"), bare("newDestination"));
    if !destination.is_empty() {
        let hidden = if source == bare("source") {
            String::new()
        } else {
            format!("{source} -> ")
        };
        line.push_str(&format!(" => {hidden}{destination}"));
    }
    for field in ["service", "reason"] {
        let value = text(event, field);
        let told = ["forwarded", "socket_translated", "flow_created"];
        if !value.is_empty() && !told.contains(&value.as_str()) {
            line.push_str(&format!(" {value}"));
        }
    }
    line
}

fn unknown_output(format: &str) -> String {
    format!(
        "unable to match a printer suitable for the output format \"{format}\", allowed formats are: json"
    )
}

impl Drops {
    pub async fn run(&self, session: &Session) -> Result<()> {
        let rows = self
            .nodes
            .view(session, "reasons", |entry| {
                entry["count"] != 0 && (self.all || entry["drop"] == true)
            })
            .await?;
        self.nodes.print(&rows, drops_table)
    }
}

impl Nodes {
    async fn names(&self, session: &Session) -> Result<Vec<String>> {
        match &self.node {
            Some(name) => Ok(vec![name.clone()]),
            None => {
                let nodes = session.get("/api/v1/nodes").await?;
                Ok(items(&nodes, "items").map(name_of).collect())
            }
        }
    }

    /// The wanted entries of a view, each with its node's name. Nodes that do not answer are named on stderr.
    async fn view(
        &self,
        session: &Session,
        view: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        for node in self.names(session).await? {
            let path = format!("/api/v1/nodes/{node}/proxy/skep/{view}");
            let entries = match session.get(&path).await {
                Ok(entries) => entries,
                Err(error) if self.node.is_some() => return Err(error),
                Err(error) => {
                    eprintln!("node {node}: {error:#}");
                    continue;
                }
            };
            if let Some(error) = entries["error"].as_str() {
                bail!("node {node}: {error}");
            }
            for entry in entries.as_array().into_iter().flatten() {
                if wanted(entry) {
                    let mut row = Map::from_iter([("node".to_string(), json!(node))]);
                    row.extend(entry.as_object().into_iter().flatten().map(own));
                    rows.push(Value::Object(row));
                }
            }
        }
        Ok(rows)
    }

    fn print(&self, rows: &[Value], table: impl Fn(&[Value]) -> String) -> Result<()> {
        match self.output.as_deref() {
            Some("json") => println!("{}", serde_json::to_string_pretty(rows)?),
            Some(other) => bail!(unknown_output(other)),
            None if rows.is_empty() => eprintln!("No resources found"),
            None => print!("{}", table(rows)),
        }
        Ok(())
    }
}

fn own((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

/// Without the port, and without an IPv6 address' brackets.
fn host(address: &str) -> &str {
    address
        .rsplit_once(':')
        .map_or(address, |(host, _)| host)
        .trim_matches(['[', ']'])
}

fn align(heading: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let heading = heading.iter().map(ToString::to_string).collect();
    output::align(&std::iter::once(heading).chain(rows).collect::<Vec<_>>())
}

fn services_table(rows: &[Value]) -> String {
    let list = |value: &Value| {
        let mut joined = String::new();
        for backend in value.as_array().into_iter().flatten() {
            let comma = if joined.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(joined, "{comma}{}", backend.as_str().unwrap_or_default());
        }
        if joined.is_empty() {
            "<none>".to_string()
        } else {
            joined
        }
    };
    let row = |entry: &Value| {
        let inside = list(&entry["internal"]);
        let outside = list(&entry["external"]);
        let outside = if outside == inside {
            "same".to_string()
        } else {
            outside
        };
        // In the order of the backends.
        let given = [&entry["internal"], &entry["external"]]
            .into_iter()
            .find_map(|list| list.as_array().filter(|list| !list.is_empty()))
            .into_iter()
            .flatten()
            .map(|backend| {
                let backend = backend.as_str().unwrap_or_default();
                entry["connections"][backend]
                    .as_u64()
                    .unwrap_or(0)
                    .to_string()
            })
            .collect::<Vec<_>>()
            .join(",");
        vec![
            text(entry, "node"),
            text(entry, "name"),
            format!("{}/{}", text(entry, "address"), text(entry, "protocol")),
            inside,
            outside,
            given,
        ]
    };
    align(
        &[
            "NODE",
            "NAME",
            "FRONTEND",
            "BACKENDS",
            "FROM-OUTSIDE",
            "CONNECTIONS",
        ],
        rows.iter().map(row),
    )
}

fn flows_table(rows: &[Value]) -> String {
    let row = |entry: &Value| {
        let change = |before: &str, after: &str| {
            let (before, after) = (text(entry, before), text(entry, after));
            if before == after {
                before
            } else {
                format!("{before}->{after}")
            }
        };
        let state = if entry["closing"] == true {
            "closing"
        } else {
            "open"
        };
        vec![
            text(entry, "node"),
            text(entry, "protocol"),
            change("source", "newSource"),
            change("destination", "newDestination"),
            state.to_string(),
        ]
    };
    align(
        &["NODE", "PROTOCOL", "SOURCE", "DESTINATION", "STATE"],
        rows.iter().map(row),
    )
}

fn drops_table(rows: &[Value]) -> String {
    let row = |entry: &Value| {
        vec![
            text(entry, "node"),
            text(entry, "reason"),
            entry["count"].to_string(),
        ]
    };
    align(&["NODE", "REASON", "COUNT"], rows.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source: &str, answer: bool) -> Value {
        json!({"node": "n1", "protocol": "TCP", "source": source, "destination": "192.0.2.1:30080",
            "newSource": source, "newDestination": "10.244.1.5:80", "answer": answer, "closing": false})
    }

    fn filter(address: Option<&str>, protocol: Option<&str>, answers: bool) -> Filter {
        Filter {
            addresses: address.iter().map(ToString::to_string).collect(),
            protocol: protocol.map(str::to_string),
            answers,
            ..Filter::default()
        }
    }

    #[test]
    fn flows_are_filtered() {
        let entry = flow("198.51.100.9:4444", false);
        for address in [
            "198.51.100.9",
            "198.51.100.9:4444",
            "10.244.1.5",
            "10.244.1.5:80",
        ] {
            assert!(
                filter(Some(address), Some("tcp"), false).wants(&entry),
                "{address}"
            );
        }
        assert!(!filter(Some("198.51.100.9:4"), None, false).wants(&entry));
        assert!(!filter(None, Some("udp"), false).wants(&entry));
        let six = flow("[2001:db8::9]:4444", false);
        assert!(filter(Some("2001:db8::9"), None, false).wants(&six));
        assert!(!filter(None, None, false).wants(&flow("192.0.2.9:1", true)));
        assert!(filter(None, None, true).wants(&flow("192.0.2.9:1", true)));
    }

    #[test]
    fn events_are_filtered_and_told_in_a_line() {
        let event = json!({"time": "2026-01-01T12:00:01.250Z", "verdict": "translated",
            "reason": "socket_translated", "hook": "socket", "protocol": "TCP",
            "source": "10.244.0.5:0", "destination": "10.96.0.1:443", "newSource": "10.244.0.5:0",
            "newDestination": "10.89.0.1:6443", "service": "default/kubernetes:https/tcp/ipv4"});
        assert_eq!(
            event_line("node1", &event),
            "12:00:01.250 node1 translated TCP 10.244.0.5 -> 10.96.0.1:443 => 10.89.0.1:6443 \
             default/kubernetes:https/tcp/ipv4"
        );
        let of = |service: &str, verdict: &str| Filter {
            service: Some(service.to_string()),
            verdict: Some(verdict.to_string()),
            ..Filter::default()
        };
        assert!(of("default/kubernetes:", "translated").wants(&event));
        assert!(of("default/kubernetes:", "socket_translated").wants(&event));
        assert!(!of("default/kube:", "translated").wants(&event));
        assert!(!of("default/kubernetes:", "dropped").wants(&event));
        let drop = json!({"time": "2026-01-01T12:00:01.250Z", "verdict": "dropped",
            "reason": "policy_ingress", "protocol": "UDP", "source": "[fd00::5]:9",
            "destination": "[fd00::6]:53"});
        assert_eq!(
            event_line("n", &drop),
            "12:00:01.250 n dropped UDP [fd00::5]:9 -> [fd00::6]:53 policy_ingress"
        );
    }

    #[test]
    fn tables_say_what_changes() {
        let table = flows_table(&[flow("198.51.100.9:4444", false)]);
        assert!(
            table.contains("198.51.100.9:4444   192.0.2.1:30080->10.244.1.5:80   open"),
            "{table}"
        );
        let service = json!({"node": "n1", "name": "default/web:http", "address": "10.96.0.5:80",
            "protocol": "TCP", "internal": ["10.244.1.5:80", "10.244.2.5:80"], "external": [],
            "connections": {"10.244.2.5:80": 7}});
        let table = services_table(&[service]);
        assert!(
            table.contains("10.96.0.5:80/TCP   10.244.1.5:80,10.244.2.5:80   <none>         0,7"),
            "{table}"
        );
    }
}
