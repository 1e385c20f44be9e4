//! `skep trace`: a question in a URL's query, its answer as JSON.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use skep_datapath::Datapath;
use skep_datapath::layout::{SCTP, TCP, UDP};
use skep_datapath::trace::{End, Origin, Path, Question, Step, Trace};

pub(super) fn answer(datapath: &Datapath, query: &HashMap<String, String>) -> Value {
    let question = match read(query) {
        Ok(question) => question,
        Err(what) => return json!({"error": what}),
    };
    match datapath.trace(&question) {
        Ok(trace) => tell(&trace),
        Err(error) => json!({"error": error.to_string()}),
    }
}

fn read(query: &HashMap<String, String>) -> Result<Question, String> {
    let get = |name: &str| {
        query
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| format!("{name} is missing"))
    };
    let ip = |name: &str| -> Result<IpAddr, String> {
        let text = get(name)?;
        text.parse()
            .map_err(|_| format!("{name}: {text:?} is no IP address"))
    };
    let port = get("port")?;
    let question = Question {
        origin: match get("origin")? {
            "pod" => Origin::Pod,
            "node" => Origin::Node,
            "outside" => Origin::Outside,
            "otherNode" => Origin::OtherNode,
            other => {
                return Err(format!(
                    "origin: {other:?} is none of pod, node, outside, otherNode"
                ));
            }
        },
        from: ip("from")?,
        to: ip("to")?,
        port: port
            .parse()
            .map_err(|_| format!("port: {port:?} is no port"))?,
        protocol: match query.get("protocol").map_or("TCP", String::as_str) {
            "TCP" => TCP,
            "UDP" => UDP,
            "SCTP" => SCTP,
            other => return Err(format!("protocol: {other:?} is none of TCP, UDP, SCTP")),
        },
    };
    if question.from.is_ipv4() != question.to.is_ipv4() {
        return Err(format!(
            "{} and {} are of different families",
            question.from, question.to
        ));
    }
    Ok(question)
}

fn tell(trace: &Trace) -> Value {
    json!({
        "steps": steps(&trace.steps),
        "paths": trace.paths.iter().map(tell_path).collect::<Vec<_>>(),
        "more": trace.more,
    })
}

fn steps(steps: &[Step]) -> Vec<Value> {
    steps
        .iter()
        .map(|step| json!({"what": step.what, "detail": step.detail}))
        .collect()
}

fn tell_path(path: &Path) -> Value {
    let (verdict, reason, node) = match path.end {
        End::Delivered => ("delivered", None, None),
        End::ToNode => ("to node", None, None),
        End::Routed => ("routed", None, None),
        End::Tunnelled(node) => ("tunnelled", None, Some(node)),
        End::Refused(reason) => ("refused", Some(reason.name()), None),
        End::Dropped(reason) => ("dropped", Some(reason.name()), None),
    };
    let (ip, port) = path.destination;
    json!({
        "steps": steps(&path.steps),
        "source": path.source,
        "destination": SocketAddr::new(ip, port).to_string(),
        "verdict": verdict,
        "reason": reason,
        "node": node,
    })
}
