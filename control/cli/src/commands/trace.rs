//! `skep trace`: what would happen to a new connection, and why, read from the tables of the nodes that it passes.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use serde_json::{Value, json};
use url::form_urlencoded::Serializer;

use super::datapath::{namespaced, pod_ips};
use crate::{
    discovery::items,
    session::{Session, name_of, text},
};

/// Show what would happen to a new connection, and why: Service, backends, policy, address translation, route
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  skep trace client web:80\n  skep trace node/node1 10.96.0.1:443\n  \
    skep trace 198.51.100.9 192.0.2.10:30080 --node node2"
)]
pub struct Trace {
    /// Who connects: a pod (NAME or NAMESPACE/NAME), node/NAME, or an address outside the cluster
    from: String,
    /// To what: ADDRESS:PORT, a Service (NAME:PORT or NAMESPACE/NAME:PORT; PORT by number or name), or pod/NAME:PORT
    to: String,
    /// TCP, UDP or SCTP
    #[arg(long, default_value = "TCP", ignore_case = true, value_parser = ["TCP", "UDP", "SCTP"])]
    protocol: String,
    /// The node that a connection from outside comes to [default: the one that has the address, else the first]
    #[arg(long)]
    node: Option<String>,
    /// json
    #[arg(short, long)]
    output: Option<String>,
}

/// Who connects, and which node sees it first.
struct Source {
    origin: &'static str,
    node: String,
    ips: Vec<IpAddr>,
    shown: String,
}

impl Trace {
    pub async fn run(&self, session: &Session) -> Result<()> {
        let nodes = session.get("/api/v1/nodes").await?;
        let to = self.destination(session).await?;
        let from = self.source(session, &nodes, &to).await?;
        let same_family = |ip: &&IpAddr| ip.is_ipv4() == to.is_ipv4();
        let ip = from.ips.iter().find(same_family).with_context(|| {
            let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
            format!("{} has no {family} address", from.shown)
        })?;
        let mut answer = self.ask(session, &from.node, from.origin, *ip, to).await?;
        self.go_on(session, &nodes, &from.node, &mut answer).await?;
        match self.output.as_deref() {
            Some("json") => println!("{}", serde_json::to_string_pretty(&answer)?),
            Some(other) => bail!(
                "unable to match a printer suitable for the output format \"{other}\", allowed formats are: json"
            ),
            None => print!("{}", told(&from, *ip, to, &answer)),
        }
        Ok(())
    }

    async fn ask(
        &self,
        session: &Session,
        node: &str,
        origin: &str,
        from: IpAddr,
        to: SocketAddr,
    ) -> Result<Value> {
        let query = Serializer::new(String::new())
            .append_pair("origin", origin)
            .append_pair("from", &from.to_string())
            .append_pair("to", &to.ip().to_string())
            .append_pair("port", &to.port().to_string())
            .append_pair("protocol", &self.protocol.to_ascii_uppercase())
            .finish();
        let path = format!("/api/v1/nodes/{node}/proxy/skep/trace?{query}");
        let mut answer = session.get(&path).await?;
        if let Some(error) = answer["error"].as_str() {
            bail!("node {node}: {error}");
        }
        answer["node"] = json!(node);
        Ok(answer)
    }

    /// What leaves the first node for a pod of another is judged there too.
    async fn go_on(
        &self,
        session: &Session,
        nodes: &Value,
        first: &str,
        answer: &mut Value,
    ) -> Result<()> {
        let Some(paths) = answer["paths"].as_array_mut() else {
            return Ok(());
        };
        for path in paths {
            if !["routed", "tunnelled"].contains(&text(path, "verdict").as_str()) {
                continue;
            }
            let destination: SocketAddr = text(path, "destination").parse()?;
            let Some(next) = node_of_pod(nodes, destination.ip()).filter(|next| next != first)
            else {
                continue;
            };
            let source = text(path, "source").parse()?;
            let there = self
                .ask(session, &next, "otherNode", source, destination)
                .await?;
            path["next"] = there;
        }
        Ok(())
    }

    async fn destination(&self, session: &Session) -> Result<SocketAddr> {
        if let Ok(address) = self.to.parse() {
            return Ok(address);
        }
        let (name, port) = self.to.rsplit_once(':').with_context(|| {
            format!("{} names no port: want NAME:PORT or ADDRESS:PORT", self.to)
        })?;
        if let Some(pod) = name.strip_prefix("pod/") {
            let (namespace, name) = namespaced(session, pod);
            let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
            let pod = session.get(&path).await?;
            let ips = pod_ips(&pod);
            let ip = ips
                .first()
                .with_context(|| format!("pod \"{name}\" has no address yet"))?;
            return Ok(SocketAddr::new(ip.parse()?, number(port)?));
        }
        let (namespace, name) = namespaced(session, name);
        let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
        let service = session.get(&path).await?;
        let ip = text(&service["spec"], "clusterIP");
        let ip: IpAddr = ip.parse().map_err(|_| {
            anyhow!("service \"{name}\" has no ClusterIP: trace one of its pods, pod/NAME:PORT")
        })?;
        let named = items(&service["spec"], "ports").find(|each| text(each, "name") == port);
        let port = match named.and_then(|each| each["port"].as_u64()) {
            Some(port) => u16::try_from(port)?,
            None => number(port)?,
        };
        Ok(SocketAddr::new(ip, port))
    }

    async fn source(&self, session: &Session, nodes: &Value, to: &SocketAddr) -> Result<Source> {
        if let Ok(ip) = self.from.parse::<IpAddr>() {
            let node = match &self.node {
                Some(node) => node.clone(),
                None => entry_node(nodes, to.ip())?,
            };
            return Ok(Source {
                origin: "outside",
                node,
                ips: vec![ip],
                shown: format!("{ip}, outside the cluster"),
            });
        }
        if self.node.is_some() {
            bail!("--node is for connections from outside: this one begins on a node of its own");
        }
        if let Some(name) = self.from.strip_prefix("node/") {
            let node = items(nodes, "items")
                .find(|node| name_of(node) == name)
                .with_context(|| format!("nodes \"{name}\" not found"))?;
            return Ok(Source {
                origin: "node",
                node: name.to_string(),
                ips: internal_ips(node),
                shown: format!("node {name}"),
            });
        }
        let name = self.from.strip_prefix("pod/").unwrap_or(&self.from);
        let (namespace, name) = namespaced(session, name);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let pod = session.get(&path).await?;
        let node = text(&pod["spec"], "nodeName");
        let ips: Vec<IpAddr> = pod_ips(&pod)
            .iter()
            .filter_map(|ip| ip.parse().ok())
            .collect();
        if node.is_empty() || ips.is_empty() {
            bail!("pod \"{name}\" does not run on a node yet");
        }
        let on_host = pod["spec"]["hostNetwork"] == true;
        Ok(Source {
            origin: if on_host { "node" } else { "pod" },
            node,
            ips,
            shown: format!("pod {namespace}/{name}"),
        })
    }
}

fn number(port: &str) -> Result<u16> {
    port.parse()
        .map_err(|_| anyhow!("\"{port}\" is neither the name nor the number of a port"))
}

fn internal_ips(node: &Value) -> Vec<IpAddr> {
    items(&node["status"], "addresses")
        .filter(|address| address["type"] == "InternalIP")
        .filter_map(|address| text(address, "address").parse().ok())
        .collect()
}

/// The node that has the address; any other will do for an address of a load balancer.
fn entry_node(nodes: &Value, to: IpAddr) -> Result<String> {
    let all = || items(nodes, "items");
    all()
        .find(|node| internal_ips(node).contains(&to))
        .or_else(|| all().next())
        .map(name_of)
        .context("the cluster has no node")
}

fn node_of_pod(nodes: &Value, ip: IpAddr) -> Option<String> {
    items(nodes, "items")
        .find(|node| {
            items(&node["spec"], "podCIDRs").any(|cidr| {
                let cidr = cidr.as_str().unwrap_or_default();
                holds(cidr, ip)
            }) || internal_ips(node).contains(&ip)
        })
        .map(name_of)
}

/// Whether a CIDR holds an address.
fn holds(cidr: &str, ip: IpAddr) -> bool {
    let Some((net, bits)) = cidr.split_once('/') else {
        return false;
    };
    let (Ok(net), Ok(bits)) = (net.parse::<IpAddr>(), bits.parse::<u32>()) else {
        return false;
    };
    let (net, ip, bits) = match (net, ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => (
            u128::from(net.to_bits()),
            u128::from(ip.to_bits()),
            32u32.checked_sub(bits),
        ),
        (IpAddr::V6(net), IpAddr::V6(ip)) => {
            (net.to_bits(), ip.to_bits(), 128u32.checked_sub(bits))
        }
        _ => return false,
    };
    bits.is_some_and(|bits| {
        net.checked_shr(bits).unwrap_or_default() == ip.checked_shr(bits).unwrap_or_default()
    })
}

fn told(from: &Source, ip: IpAddr, to: SocketAddr, answer: &Value) -> String {
    let mut out = format!("{} ({ip}) to {to}, on node {}\n", from.shown, from.node);
    tell_steps(&mut out, "  ", &answer["steps"]);
    let paths: Vec<&Value> = items(answer, "paths").collect();
    let several = paths.len() > 1;
    for path in paths {
        let indent = if several {
            out.push_str(&format!("  if {} is chosen:\n", text(path, "destination")));
            "    "
        } else {
            "  "
        };
        tell_path(&mut out, indent, path);
    }
    if let Some(more) = answer["more"].as_u64().filter(|more| *more > 0) {
        out.push_str(&format!("  and {more} more backends\n"));
    }
    out
}

fn tell_path(out: &mut String, indent: &str, path: &Value) {
    tell_steps(out, indent, &path["steps"]);
    let next = &path["next"];
    if next.is_object() {
        out.push_str(&format!("{indent}on node {}:\n", text(next, "node")));
        for path in items(next, "paths") {
            tell_path(out, &format!("{indent}  "), path);
        }
        return;
    }
    let reason = text(path, "reason");
    let why = if reason.is_empty() {
        String::new()
    } else {
        format!(" ({reason})")
    };
    out.push_str(&format!(
        "{indent}=> {}{why}: {} -> {}\n",
        text(path, "verdict"),
        text(path, "source"),
        text(path, "destination"),
    ));
}

fn tell_steps(out: &mut String, indent: &str, steps: &Value) {
    for step in steps.as_array().into_iter().flatten() {
        out.push_str(&format!(
            "{indent}{:<9}{}\n",
            text(step, "what"),
            text(step, "detail")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Value {
        let node = |name: &str, ip: &str, cidrs: &[&str]| {
            json!({"metadata": {"name": name}, "spec": {"podCIDRs": cidrs},
                "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
        };
        json!({"items": [
            node("n1", "192.0.2.1", &["10.244.0.0/24", "fd00::/64"]),
            node("n2", "192.0.2.2", &["10.244.1.0/24", "fd00:0:0:1::/64"]),
        ]})
    }

    #[test]
    fn addresses_lead_to_nodes() {
        let of = |ip: &str| node_of_pod(&nodes(), ip.parse().unwrap());
        assert_eq!(of("10.244.1.9").as_deref(), Some("n2"));
        assert_eq!(of("fd00::9").as_deref(), Some("n1"));
        assert_eq!(of("fd00:0:0:1::9").as_deref(), Some("n2"));
        assert_eq!(of("192.0.2.1").as_deref(), Some("n1"));
        assert_eq!(of("198.51.100.1"), None);
        let entry = |ip: &str| entry_node(&nodes(), ip.parse().unwrap()).unwrap();
        assert_eq!(entry("192.0.2.2"), "n2");
        assert_eq!(entry("192.0.2.250"), "n1", "somebody answers");
        assert!(!holds("10.244.0.0/33", "10.244.0.1".parse().unwrap()));
        assert!(holds("0.0.0.0/0", "10.244.0.1".parse().unwrap()));
    }

    #[test]
    fn a_trace_reads_top_down() {
        let path = |destination: &str| {
            json!({"steps": [{"what": "nat", "detail": "the destination becomes x"}], "source": "10.244.0.5",
                "destination": destination, "verdict": "delivered", "reason": null})
        };
        let mut far = path("10.244.1.6:80");
        far["next"] = json!({"node": "n2", "paths": [{"steps": [], "source": "10.244.0.5",
            "destination": "10.244.1.6:80", "verdict": "dropped", "reason": "policy_ingress"}]});
        let answer = json!({"steps": [{"what": "service", "detail": "default/web: 2 backends"}],
            "paths": [path("10.244.0.6:80"), far], "more": 0});
        let from = Source {
            origin: "pod",
            node: "n1".into(),
            ips: Vec::new(),
            shown: "pod default/client".into(),
        };
        let text = told(
            &from,
            "10.244.0.5".parse().unwrap(),
            "10.96.0.1:80".parse().unwrap(),
            &answer,
        );
        assert_eq!(
            text,
            "pod default/client (10.244.0.5) to 10.96.0.1:80, on node n1\n  \
             service  default/web: 2 backends\n  if 10.244.0.6:80 is chosen:\n    \
             nat      the destination becomes x\n    => delivered: 10.244.0.5 -> 10.244.0.6:80\n  \
             if 10.244.1.6:80 is chosen:\n    nat      the destination becomes x\n    on node n2:\n      \
             => dropped (policy_ingress): 10.244.0.5 -> 10.244.1.6:80\n"
        );
    }
}
