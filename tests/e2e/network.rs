//! The network between pods, nodes and the outside, on three nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skep_tests::cluster::text;
use skep_tests::load::{Connections, Load, wait_until_answers};
use skep_tests::wait::wait_for;
use xtask::cluster::images::NGINX;

use crate::Story;
use crate::manifests::{await_ready, idle_pod, service, web_pod};

/// Enough new connections that each of three backends is picked, but for one time in 10^10.
const PICKS: usize = 60;

/// A web server on each node, and a client on each node.
fn everywhere(story: &Story<'_>, services: &[Value]) -> Result<Vec<(String, Value)>> {
    let nodes: Vec<&str> = story
        .cluster
        .state
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .collect();
    let mut objects = services.to_vec();
    for node in &nodes {
        objects.push(web_pod(&format!("web-{node}"), "web", node));
        objects.push(idle_pod(&format!("client-{node}"), Some(node)));
    }
    story.apply(&objects)?;
    for node in &nodes {
        await_ready(&story.kubectl, &format!("client-{node}"))?;
    }
    nodes
        .into_iter()
        .map(|node| {
            Ok((
                node.to_owned(),
                await_ready(&story.kubectl, &format!("web-{node}"))?,
            ))
        })
        .collect()
}

pub(crate) fn pods(story: &Story<'_>) -> Result<()> {
    let servers = everywhere(story, &[service("web", "web", json!({}))])?;
    story.backends("web", servers.len())?;
    let cluster_ip = story.cluster_ip("web")?;
    for (node, _) in &servers {
        let client = format!("client-{node}");
        let own = story.kubectl.get(&["pod", &client])?;
        let own_address = text(&own, "/status/podIP")?;
        for (other, server) in &servers {
            let address = text(server, "/status/podIP")?;
            let answer = story.fetch(&client, &format!("http://{address}/whoami"))?;
            // The server sees the pod itself: no address is translated between pods.
            let expected = format!("web-{other} {address} {own_address}\n");
            ensure!(
                answer == expected,
                "from {client} to web-{other}: {answer:?}, not {expected:?}"
            );
        }
        // Every backend gets its share, whichever node asks.
        let fetches = format!(
            "for i in $(seq {PICKS}); do timeout 3 wget -q -O - http://{cluster_ip}/whoami || exit 1; done"
        );
        let answers = story.exec(&client, &["sh", "-c", &fetches])?;
        let seen: BTreeSet<&str> = answers
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        ensure!(
            seen.len() == servers.len(),
            "{client} reached only {seen:?} through {cluster_ip}"
        );
        // And its node's kernel has counted which got how many.
        let given = connections_given(story, node, &cluster_ip)?;
        ensure!(
            given.len() == servers.len() && given.iter().sum::<u64>() == PICKS as u64,
            "of {PICKS} connections {node} has counted {given:?}"
        );
    }

    // A Service without a backend refuses at once.
    story.apply(&[service("empty", "nothing", json!({}))])?;
    let empty = story.cluster_ip("empty")?;
    let refusal = format!("timeout 5 wget -q -O - http://{empty}/ 2>&1; echo status $?");
    wait_for("a refusal", Duration::from_secs(10), || {
        let said = story.exec(&format!("client-{}", servers[0].0), &["sh", "-c", &refusal])?;
        ensure!(
            said.contains("efused") || said.contains("not permitted"),
            "{said}"
        );
        Ok(())
    })
}

/// To each backend of the Service `web`, as this node has counted them.
fn connections_given(story: &Story<'_>, node: &str, cluster_ip: &str) -> Result<Vec<u64>> {
    let name = format!("{}/web:", story.namespace);
    let skep = story.cluster.skep(story.namespace);
    let printed = skep.run(&["services", &name, "--node", node, "--output", "json"])?;
    let frontends: Vec<Value> = serde_json::from_str(&printed)?;
    let frontend = frontends
        .iter()
        .find(|frontend| frontend["address"] == format!("{cluster_ip}:80"))
        .with_context(|| format!("{cluster_ip}:80 is not in {printed}"))?;
    let connections = frontend["connections"].as_object();
    let given = connections.context("nothing is counted")?.values();
    Ok(given.filter_map(Value::as_u64).collect())
}

pub(crate) fn nodes(story: &Story<'_>) -> Result<()> {
    let servers = everywhere(story, &[service("web", "web", json!({}))])?;
    story.backends("web", servers.len())?;
    let cluster_ip = story.cluster_ip("web")?;
    for node in &story.cluster.state.nodes {
        let target = format!("{cluster_ip}:80");
        wait_until_answers(&node.place(), &target)?;
        let report =
            Load::new(node.place(), &target, Connections::New).run(Duration::from_secs(1))?;
        report.ensure_no_failures(&format!("requests from {} to {target}", node.name))?;
        for (other, server) in &servers {
            let direct = format!("{}:80", text(server, "/status/podIP")?);
            let report = Load::new(node.place(), &direct, Connections::New)
                .run(Duration::from_millis(300))?;
            report.ensure_no_failures(&format!(
                "requests from {} to the pod on {other}",
                node.name
            ))?;
        }
    }
    Ok(())
}

pub(crate) fn outside(story: &Story<'_>) -> Result<()> {
    let servers = everywhere(story, &[service("web", "web", json!({"type": "NodePort"}))])?;
    story.backends("web", servers.len())?;
    let port = story.node_port("web")?;
    for node in &story.cluster.state.nodes {
        let target = format!("{}:{port}", node.address);
        wait_until_answers(&story.cluster.state.outside(), &target)?;
        for connections in [Connections::New, Connections::KeepAlive] {
            let report = Load::new(story.cluster.state.outside(), &target, connections)
                .run(Duration::from_secs(1))?;
            report.ensure_no_failures(&format!(
                "{} requests from outside to {target}",
                connections.name()
            ))?;
        }
    }
    // One node alone behind it: the other nodes must pass the request on, and the answer back.
    for (node, _) in servers.iter().skip(1) {
        story
            .kubectl
            .run(&["delete", "pod", &format!("web-{node}")])?;
    }
    story.backends("web", 1)?;
    for node in &story.cluster.state.nodes {
        let target = format!("{}:{port}", node.address);
        wait_until_answers(&story.cluster.state.outside(), &target)?;
        let report = Load::new(story.cluster.state.outside(), &target, Connections::New)
            .run(Duration::from_secs(1))?;
        report.ensure_no_failures(&format!(
            "requests from outside to {target} with one backend"
        ))?;
    }
    Ok(())
}

pub(crate) fn names(story: &Story<'_>) -> Result<()> {
    let services = [
        service("web", "web", json!({})),
        service("each", "web", json!({"clusterIP": "None"})),
    ];
    let servers = everywhere(story, &services)?;
    story.backends("web", servers.len())?;
    story.backends("each", servers.len())?;
    let cluster_ip = story.cluster_ip("web")?;
    let namespace = story.namespace;
    for (node, _) in &servers {
        let client = format!("client-{node}");
        for name in [
            "web".to_owned(),
            format!("web.{namespace}"),
            format!("web.{namespace}.svc.cluster.local"),
        ] {
            let page = story.fetch(&client, &format!("http://{name}/"))?;
            ensure!(
                page.contains("nginx version 1"),
                "http://{name}/ from {client}: {page}"
            );
        }
        let answer = story.exec(
            &client,
            &["nslookup", &format!("web.{namespace}.svc.cluster.local")],
        )?;
        ensure!(
            answer.contains(&cluster_ip),
            "{cluster_ip} is not in {answer}"
        );
        // A headless Service has the pods' own addresses.
        let answer = story.exec(
            &client,
            &["nslookup", &format!("each.{namespace}.svc.cluster.local")],
        )?;
        for (other, server) in &servers {
            let address = text(server, "/status/podIP")?;
            ensure!(
                answer.contains(address),
                "the pod on {other}, {address}, is not in {answer}"
            );
        }
        let answer = story.exec(
            &client,
            &["nslookup", "kubernetes.default.svc.cluster.local"],
        )?;
        ensure!(answer.contains("10.96.0.1"), "{answer}");
    }
    Ok(())
}

pub(crate) fn udp(story: &Story<'_>) -> Result<()> {
    let binaries = xtask::workspace::binaries();
    let echo = |name: &str, node: &str, command: Value| {
        let mut pod = idle_pod(name, Some(node));
        pod["spec"]["volumes"] =
            json!([{"name": "binaries", "hostPath": {"path": binaries, "type": "Directory"}}]);
        let container = &mut pod["spec"]["containers"][0];
        // It has the C library that the binary is linked to.
        container["image"] = json!(NGINX);
        container["command"] = command;
        container["volumeMounts"] =
            json!([{"name": "binaries", "mountPath": "/binaries", "readOnly": true}]);
        pod
    };
    let ports =
        json!({"ports": [{"name": "echo", "port": 53, "targetPort": 5353, "protocol": "UDP"}]});
    story.apply(&[
        echo(
            "echo",
            "node1",
            json!(["/binaries/skep-echo", "serve", "5353"]),
        ),
        echo("near", "node1", json!(["sleep", "3600"])),
        echo("far", "node2", json!(["sleep", "3600"])),
        service("echo", "echo", ports),
    ])?;
    for pod in ["echo", "near", "far"] {
        await_ready(&story.kubectl, pod)?;
    }
    story.backends("echo", 1)?;
    let target = format!("{}:53", story.cluster_ip("echo")?);
    // The answer must come from the address that was asked, or no resolver would take it.
    let expected = format!("anybody from {target}\n");
    for client in ["near", "far"] {
        let ask = ["/binaries/skep-echo", "ask", &target, "anybody"];
        let heard = story.exec(client, &ask)?;
        ensure!(
            heard == expected,
            "{client} heard {heard:?}, not {expected:?}"
        );
        let heard = story.exec(client, &[&ask[..], &["--connected"]].concat())?;
        ensure!(
            heard == expected,
            "{client} heard {heard:?} on a connected socket, not {expected:?}"
        );
    }
    Ok(())
}

/// The claim of the design: no rule is ever written. Asked in every namespace of the cluster, where there is a tool.
pub(crate) fn no_netfilter_rules(story: &Story<'_>) -> Result<()> {
    let nft =
        xtask::command::find("nft").context("nft is not installed: `cargo xtask test` does")?;
    for node in &story.cluster.state.nodes {
        let rules = node
            .place()
            .program(&nft)?
            .args(["list", "ruleset"])
            .output()?;
        ensure!(rules.trim().is_empty(), "{} has rules:\n{rules}", node.name);
    }
    Ok(())
}

/// On a dual-stack cluster; where there is no IPv6, what asks for it is refused.
pub(crate) fn over_ipv6(story: &Story<'_>) -> Result<()> {
    let state = &story.cluster.state;
    let dual = json!({"ipFamilyPolicy": "RequireDualStack", "type": "NodePort"});
    if !state.dual_stack {
        let refused = story.apply(&[service("web", "web", dual)]);
        let error = format!("{:#}", refused.err().context("it was accepted")?);
        ensure!(error.contains("dual-stack"), "{error}");
        return Ok(());
    }
    let services = [
        service("web", "web", dual),
        service(
            "prefer",
            "web",
            json!({"ipFamilyPolicy": "PreferDualStack"}),
        ),
        service("six", "web", json!({"ipFamilies": ["IPv6"]})),
        service(
            "each",
            "web",
            json!({"clusterIP": "None", "ipFamilyPolicy": "PreferDualStack"}),
        ),
        service("nobody", "nothing", json!({"ipFamilies": ["IPv6"]})),
    ];
    let servers = everywhere(story, &services)?;
    for (name, families) in [("web", 2), ("prefer", 2), ("six", 1), ("each", 2)] {
        story.backends(name, servers.len() * families)?;
    }
    let first = |path: &str| -> Result<String> {
        let object = story.kubectl.get(&["service", path])?;
        let ips = object["spec"]["clusterIPs"].as_array().cloned();
        let v6 = ips.into_iter().flatten().find_map(|ip| {
            let text = ip.as_str()?;
            text.contains(':').then(|| text.to_owned())
        });
        v6.with_context(|| format!("{path} has no IPv6 address: {}", object["spec"]))
    };
    let (web, six, nobody) = (first("web")?, first("six")?, first("nobody")?);
    first("prefer")?;
    let pod_v6 =
        |pod: &Value| -> Result<String> { Ok(text(pod, "/status/podIPs/1/ip")?.to_owned()) };

    // Every node and pod has two addresses, and the pod knows them.
    for node in &state.nodes {
        let object = story.kubectl.get(&["node", &node.name])?;
        let listed: Vec<&str> = object["status"]["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|address| address["type"] == "InternalIP")
            .filter_map(|address| address["address"].as_str())
            .collect();
        let expected = [Some(node.address.as_str()), node.address_v6.as_deref()];
        ensure!(
            listed.iter().map(|ip| Some(*ip)).eq(expected),
            "{}: {listed:?}",
            node.name
        );
    }
    for (node, _) in &servers {
        let client = format!("client-{node}");
        let own = story.kubectl.get(&["pod", &client])?;
        let own_v6 = pod_v6(&own)?;
        text(&own, "/status/hostIPs/1/ip")?;
        let hosts = story.exec(&client, &["cat", "/etc/hosts"])?;
        ensure!(hosts.contains(&own_v6), "{own_v6} is not in {hosts}");
        for (other, server) in &servers {
            let address = pod_v6(server)?;
            let answer = story.fetch(&client, &format!("http://[{address}]/whoami"))?;
            let expected = format!("web-{other} {address} {own_v6}\n");
            ensure!(
                answer == expected,
                "from {client}: {answer:?}, not {expected:?}"
            );
        }
        for ip in [&web, &six] {
            story.fetch(&client, &format!("http://[{ip}]/whoami"))?;
        }
        let refusal = format!("timeout 5 wget -q -O - http://[{nobody}]/ 2>&1; echo status $?");
        let said = story.exec(&client, &["sh", "-c", &refusal])?;
        ensure!(said.contains("efused"), "{said}");
        // AAAA and PTR.
        let namespace = story.namespace;
        let name = format!("six.{namespace}.svc.cluster.local");
        let answer = story.exec(&client, &["nslookup", &name])?;
        ensure!(answer.contains(&six), "{six} is not in {answer}");
        let answer = story.exec(&client, &["nslookup", &six])?;
        ensure!(answer.contains(&name), "{name} is not in {answer}");
        let each = format!("each.{namespace}.svc.cluster.local");
        let answer = story.exec(&client, &["nslookup", &each])?;
        let address = pod_v6(&servers[0].1)?;
        ensure!(answer.contains(&address), "{address} is not in {answer}");
        story.fetch(&client, "http://six/whoami")?;
    }

    // From outside, on every node, by both families; from a node itself.
    let port = story.node_port("web")?;
    for node in &state.nodes {
        let v6 = node.address_v6.as_deref().context("no IPv6 address")?;
        for target in [format!("[{v6}]:{port}"), format!("{}:{port}", node.address)] {
            wait_until_answers(&state.outside(), &target)?;
            let report = Load::new(state.outside(), &target, Connections::New)
                .run(Duration::from_millis(300))?;
            report.ensure_no_failures(&format!("requests from outside to {target}"))?;
        }
        for target in [format!("[{web}]:80"), format!("[::1]:{port}")] {
            let report = Load::new(node.place(), &target, Connections::New)
                .run(Duration::from_millis(300))?;
            report.ensure_no_failures(&format!("requests from {} to {target}", node.name))?;
        }
    }

    // Policy is about pods, not about a family of their addresses.
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client-node1"}}}]}],
        },
    });
    story.apply(&[policy])?;
    let server = pod_v6(&servers[1].1)?;
    let attempt = format!("timeout 2 wget -q -O - http://[{server}]/whoami 2>&1; echo status $?");
    wait_for("policy over IPv6", Duration::from_secs(20), || {
        let said = story.exec("client-node3", &["sh", "-c", &attempt])?;
        ensure!(!said.contains("status 0"), "client-node3 got in: {said}");
        Ok(())
    })?;
    story.fetch("client-node1", &format!("http://[{server}]/whoami"))?;
    Ok(())
}
