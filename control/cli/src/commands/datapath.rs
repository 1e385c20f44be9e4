//! `skep services`, `skep flows`, `skep drops`: what the kernels of the nodes have and do, told by their agents.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::{
    discovery::items,
    output,
    session::{Session, name_of, text},
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

/// Show the translated and tracked connections
#[derive(Args, Clone, Debug)]
pub struct Flows {
    /// Only with this address or address:port on any side
    #[arg(long)]
    address: Option<String>,
    /// TCP, UDP, SCTP or ICMP
    #[arg(long)]
    protocol: Option<String>,
    /// The entries of answers too
    #[arg(long)]
    answers: bool,
    #[command(flatten)]
    nodes: Nodes,
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
        let rows = self
            .nodes
            .view(session, "flows", |entry| self.wants(entry))
            .await?;
        self.nodes.print(&rows, flows_table)
    }

    fn wants(&self, flow: &Value) -> bool {
        let sides = ["source", "destination", "newSource", "newDestination"];
        let touches = |address: &String| {
            sides.iter().any(|side| {
                let whole = text(flow, side);
                whole == *address || host(&whole) == address.trim_matches(['[', ']'])
            })
        };
        (self.answers || flow["answer"] != true)
            && self.address.as_ref().is_none_or(touches)
            && self
                .protocol
                .as_ref()
                .is_none_or(|protocol| text(flow, "protocol").eq_ignore_ascii_case(protocol))
    }
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
    /// The wanted entries of a view, each with its node's name. Nodes that do not answer are named on stderr.
    async fn view(
        &self,
        session: &Session,
        view: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Vec<Value>> {
        let nodes = match &self.node {
            Some(name) => vec![name.clone()],
            None => items(&session.get("/api/v1/nodes").await?, "items")
                .map(name_of)
                .collect(),
        };
        let mut rows = Vec::new();
        for node in nodes {
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
            Some(other) => bail!(
                "unable to match a printer suitable for the output format \"{other}\", allowed formats are: json"
            ),
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
        vec![
            text(entry, "node"),
            text(entry, "name"),
            format!("{}/{}", text(entry, "address"), text(entry, "protocol")),
            inside,
            outside,
        ]
    };
    align(
        &["NODE", "NAME", "FRONTEND", "BACKENDS", "FROM-OUTSIDE"],
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

    fn flows(address: Option<&str>, protocol: Option<&str>, answers: bool) -> Flows {
        Flows {
            address: address.map(str::to_string),
            protocol: protocol.map(str::to_string),
            answers,
            nodes: Nodes {
                node: None,
                output: None,
            },
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
                flows(Some(address), Some("tcp"), false).wants(&entry),
                "{address}"
            );
        }
        assert!(!flows(Some("198.51.100.9:4"), None, false).wants(&entry));
        assert!(!flows(None, Some("udp"), false).wants(&entry));
        let six = flow("[2001:db8::9]:4444", false);
        assert!(flows(Some("2001:db8::9"), None, false).wants(&six));
        assert!(!flows(None, None, false).wants(&flow("192.0.2.9:1", true)));
        assert!(flows(None, None, true).wants(&flow("192.0.2.9:1", true)));
    }

    #[test]
    fn tables_say_what_changes() {
        let table = flows_table(&[flow("198.51.100.9:4444", false)]);
        assert!(
            table.contains("198.51.100.9:4444   192.0.2.1:30080->10.244.1.5:80   open"),
            "{table}"
        );
        let service = json!({"node": "n1", "name": "default/web:http", "address": "10.96.0.5:80",
            "protocol": "TCP", "internal": ["10.244.1.5:80", "10.244.2.5:80"], "external": []});
        let table = services_table(&[service]);
        assert!(
            table.contains("10.96.0.5:80/TCP   10.244.1.5:80,10.244.2.5:80   <none>"),
            "{table}"
        );
    }
}
