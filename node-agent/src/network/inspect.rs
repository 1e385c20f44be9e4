//! The datapath as text: metrics for machines, views for people.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Value, json};
use skep_datapath::Datapath;
use tracing::debug;

use super::trace;

/// Counters under kube-proxy's names where it has them, else under ours.
pub(super) fn metrics(datapath: &Datapath) -> String {
    let mut text = String::new();
    if let Err(error) = write_metrics(datapath, &mut text) {
        debug!(%error, "datapath metrics");
    }
    text
}

fn write_metrics(datapath: &Datapath, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let reasons = datapath.reason_counts()?;
    let groups = [
        (
            "skep_datapath_drops_total",
            "Packets and connections refused, by reason.",
            true,
        ),
        (
            "skep_datapath_events_total",
            "What the programs did beside plain forwarding.",
            false,
        ),
    ];
    for (name, help, drops) in groups {
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter")?;
        for count in reasons
            .iter()
            .filter(|count| count.reason.is_drop() == drops)
        {
            writeln!(
                text,
                "{name}{{reason=\"{}\"}} {}",
                count.reason.name(),
                count.count
            )?;
        }
    }
    let services = datapath.service_counts()?;
    for (name, help) in [
        (
            "skep_proxy_connections_total",
            "Connections given a backend, by Service port.",
        ),
        (
            "skep_proxy_refused_total",
            "Connections refused for want of a backend.",
        ),
    ] {
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter")?;
        for service in &services {
            let value = if name == "skep_proxy_connections_total" {
                service.connections
            } else {
                service.refused
            };
            writeln!(text, "{name}{{port=\"{}\"}} {value}", service.name)?;
        }
    }
    let backends = datapath.services().lock().connections();
    writeln!(
        text,
        "# HELP skep_proxy_backend_connections_total Connections given to a backend, of those that had any.\n\
         # TYPE skep_proxy_backend_connections_total counter"
    )?;
    for backend in &backends {
        writeln!(
            text,
            "skep_proxy_backend_connections_total{{port=\"{}\",backend=\"{}\"}} {}",
            backend.name,
            std::net::SocketAddr::new(backend.ip, backend.port),
            backend.connections
        )?;
    }
    let sweep = datapath.last_sweep();
    writeln!(
        text,
        "# HELP skep_datapath_flows Entries of the flow table at the last sweep.\n\
         # TYPE skep_datapath_flows gauge\n\
         skep_datapath_flows {}\n\
         # TYPE skep_datapath_flows_limit gauge\n\
         skep_datapath_flows_limit {}",
        sweep.entries, sweep.limit
    )?;
    Ok(())
}

/// `services`, `flows`, `reasons`, or `trace` of a question.
pub(super) fn view(
    datapath: &Datapath,
    name: &str,
    query: &HashMap<String, String>,
) -> Option<Value> {
    let result = match name {
        "services" => services(datapath),
        "flows" => flows(datapath),
        "reasons" => reasons(datapath),
        "trace" => return Some(trace::answer(datapath, query)),
        _ => return None,
    };
    Some(result.unwrap_or_else(|error| json!({"error": error.to_string()})))
}

fn services(datapath: &Datapath) -> Result<Value, skep_datapath::Error> {
    let views = datapath.services().lock().view()?;
    let address =
        |(ip, port): &(std::net::IpAddr, u16)| std::net::SocketAddr::new(*ip, *port).to_string();
    Ok(views
        .iter()
        .map(|view| {
            json!({
                "name": view.name,
                "address": std::net::SocketAddr::new(view.ip, view.port).to_string(),
                "nodePort": view.ip.is_unspecified(),
                "protocol": protocol(view.protocol),
                "affinitySeconds": view.affinity.map(|affinity| affinity.as_secs()),
                "internal": view.internal.iter().map(address).collect::<Vec<_>>(),
                "external": view.external.iter().map(address).collect::<Vec<_>>(),
                "connections": view
                    .connections
                    .iter()
                    .map(|(backend, count)| (address(backend), json!(count)))
                    .collect::<serde_json::Map<_, _>>(),
            })
        })
        .collect())
}

fn flows(datapath: &Datapath) -> Result<Value, skep_datapath::Error> {
    let address =
        |(ip, port): (std::net::IpAddr, u16)| std::net::SocketAddr::new(ip, port).to_string();
    let names: HashMap<u32, String> = datapath
        .services()
        .lock()
        .ids()
        .into_iter()
        .map(|(name, id)| (id, name))
        .collect();
    Ok(datapath
        .flow_entries()?
        .into_iter()
        .map(|flow| {
            json!({
                "service": names.get(&flow.service),
                "protocol": protocol(flow.protocol),
                "source": address(flow.source),
                "destination": address(flow.destination),
                "newSource": address(flow.new_source),
                "newDestination": address(flow.new_destination),
                "answer": flow.answer,
                "closing": flow.closing,
            })
        })
        .collect())
}

fn reasons(datapath: &Datapath) -> Result<Value, skep_datapath::Error> {
    Ok(datapath
        .reason_counts()?
        .into_iter()
        .map(|count| {
            json!({
                "reason": count.reason.name(),
                "drop": count.reason.is_drop(),
                "count": count.count,
            })
        })
        .collect())
}

pub(super) fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "ICMPv6".into(),
        132 => "SCTP".into(),
        other => other.to_string(),
    }
}
