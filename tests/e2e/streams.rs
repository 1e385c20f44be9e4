//! What a node serves through the API server: logs, commands, files, ports and figures, to the kubectl of the
//! distribution and to the newest one, which speaks WebSockets.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skep_tests::client::Client;
use skep_tests::cluster::{items, text};
use skep_tests::real_clients;
use skep_tests::wait::wait_for;
use xtask::cluster::images::BUSYBOX;

use crate::Story;
use crate::manifests::{SOON, await_ready};

/// More than a stream takes in one piece.
const FILE_BYTES: usize = 3 << 20;

pub(crate) fn served(story: &Story<'_>) -> Result<()> {
    story.apply(&[json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "server"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [
                {
                    "name": "main", "image": BUSYBOX,
                    "command": ["sh", "-c", "[ -e /v/once ] || { touch /v/once; echo first run; exit 1; }; \
                        for i in 1 2 3 4; do echo line $i; done; echo a page > /v/page; \
                        exec httpd -f -p 8080 -h /v"],
                    "readinessProbe": {"httpGet": {"port": 8080, "path": "/page"}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                },
                {
                    "name": "echo", "image": BUSYBOX, "stdin": true,
                    "command": ["sh", "-c", "echo to stderr >&2; exec cat"],
                },
            ],
        },
    })])?;
    let pod = await_ready(&story.kubectl, "server")?;
    let node = text(&pod, "/spec/nodeName")?;
    let newest = match real_clients::kubectl_and_helm() {
        Ok((program, _)) => Some(Client::new(
            program,
            story.kubectl.kubeconfig(),
            story.namespace,
        )),
        Err(reason) => {
            println!("SKIPPED for the newest kubectl: {reason}");
            None
        }
    };
    for client in [Some(story.kubectl.clone()), newest].into_iter().flatten() {
        let with = || client.path().display().to_string();
        logs(&client).with_context(with)?;
        commands(&client).with_context(with)?;
        files(story, &client).with_context(with)?;
        ports(&client).with_context(with)?;
        figures(&client, node).with_context(with)?;
    }
    endpoints(story, node)
}

fn logs(client: &Client) -> Result<()> {
    let of = |flags: &[&str]| client.run(&[&["logs", "server", "-c", "main"], flags].concat());
    let said = wait_for("the log", SOON, || {
        let said = of(&[])?;
        ensure!(said.lines().count() == 4, "{said:?}");
        Ok(said)
    })?;
    ensure!(said == "line 1\nline 2\nline 3\nline 4\n", "{said:?}");
    for (flags, expected) in [
        (&["--tail=2"][..], "line 3\nline 4\n"),
        (&["--tail=0"], ""),
        (&["--limit-bytes=6"], "line 1"),
        (&["--previous"], "first run\n"),
        (&["--since=1h", "--tail=1"], "line 4\n"),
    ] {
        let said = of(flags)?;
        ensure!(said == expected, "{flags:?}: {said:?}");
    }
    let stamped = of(&["--timestamps", "--tail=1"])?;
    let (time, rest) = stamped.split_once(' ').context("no time")?;
    ensure!(rest == "line 4\n", "{stamped:?}");
    ensure!(time.contains('T') && time.ends_with('Z'), "{stamped:?}");
    ensure!(of(&["--since-time=2100-01-01T00:00:00Z"])?.is_empty());

    wait_for("what went to stderr", SOON, || {
        let said = client.run(&["logs", "server", "-c", "echo"])?;
        ensure!(said.starts_with("to stderr\n"), "{said:?}");
        Ok(())
    })?;

    let mut follow = client.start(&["logs", "server", "-c", "echo", "--follow"])?;
    let word = format!("followed by {}", std::process::id());
    let mut attached = client.start(&["attach", "-i", "server", "-c", "echo"])?;
    attached.give(&format!("{word}\n"))?;
    while attached.line()? != word {}
    while follow.line()? != word {}
    client.refuse(&["logs", "server", "-c", "nobody"], "nobody")?;
    Ok(())
}

fn with_input(client: &Client, arguments: &[&str], input: &str) -> Result<Output> {
    let mut child = client
        .command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    Ok(child.wait_with_output()?)
}

fn commands(client: &Client) -> Result<()> {
    let exec = ["exec", "-i", "server", "-c", "main", "--"];
    let counted = with_input(
        client,
        &[&exec[..], &["wc", "-c"]].concat(),
        &"x".repeat(FILE_BYTES),
    )?;
    let said = String::from_utf8_lossy(&counted.stdout).trim().to_owned();
    ensure!(said == FILE_BYTES.to_string(), "{counted:?}");
    let both =
        client.attempt(&[&exec[..], &["sh", "-c", "echo out; echo err >&2; exit 7"]].concat())?;
    ensure!(
        !both.succeeded && both.stdout == "out\n" && both.stderr.starts_with("err\n"),
        "{both:?}"
    );
    ensure!(both.stderr.contains("exit code 7"), "{both:?}");
    client.refuse(&[&exec[..], &["/no/such/command"]].concat(), "no such file")?;
    Ok(())
}

fn files(story: &Story<'_>, client: &Client) -> Result<()> {
    let content: String = (0..FILE_BYTES / 8).map(|i| format!("{i:07}\n")).collect();
    let there = story.file("there.txt", &content)?;
    client.run(&["cp", &there, "server:/v/copied.txt", "-c", "main"])?;
    let back = story.file("back.txt", "")?;
    client.run(&["cp", "server:/v/copied.txt", &back, "-c", "main"])?;
    ensure!(std::fs::read_to_string(&back)? == content, "it has changed");
    Ok(())
}

fn ports(client: &Client) -> Result<()> {
    let mut forwarded = client.start(&["port-forward", "pod/server", ":8080"])?;
    let line = forwarded.line()?;
    let address = line
        .strip_prefix("Forwarding from ")
        .and_then(|rest| rest.split_whitespace().next())
        .with_context(|| line.clone())?
        .to_owned();
    // Several at a time, through one session.
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
        streams.push(stream);
    }
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.ends_with("a page\n"), "{answer:?}");
    }
    Ok(())
}

/// `metrics.k8s.io`, from the agents' own figures.
fn figures(client: &Client, node: &str) -> Result<()> {
    wait_for("figures of nodes and pods", SOON, || {
        let nodes = client.expect(&["top", "nodes"], node)?;
        ensure!(!nodes.contains("<unknown>"), "{nodes}");
        let pod = client.expect(&["top", "pod", "server", "--containers"], "main")?;
        ensure!(pod.contains("echo") && pod.contains("Mi"), "{pod}");
        Ok(())
    })
}

/// What monitors ask the agent itself for.
fn endpoints(story: &Story<'_>, node: &str) -> Result<()> {
    let raw = |path: &str| {
        let path = format!("/api/v1/nodes/{node}/proxy/{path}");
        story.kubectl.run(&["get", "--raw", &path])
    };
    ensure!(raw("healthz")?.trim() == "ok");
    let own = format!("namespace=\"{}\",pod=\"server\"", story.namespace);
    for (path, names) in [
        (
            "metrics/resource",
            &[
                "container_cpu_usage_seconds_total",
                "container_memory_working_set_bytes",
                "container_start_time_seconds",
                "node_cpu_usage_seconds_total",
                "node_memory_working_set_bytes",
                "pod_cpu_usage_seconds_total",
                "pod_memory_working_set_bytes",
                "resource_scrape_error",
            ][..],
        ),
        ("metrics/probes", &["prober_probe_total"]),
        ("metrics/cadvisor", &["container_memory_working_set_bytes"]),
        ("metrics", &["kubelet_running_pods", "kubelet_node_name"]),
    ] {
        let said = raw(path)?;
        for name in names {
            let mut lines = said.lines();
            let found = lines.any(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with([' ', '{']))
            });
            ensure!(found, "no {name} in {path}:\n{said}");
        }
        ensure!(
            path == "metrics" || path == "metrics/probes" || said.contains(&own),
            "{said}"
        );
    }
    let summary: Value = serde_json::from_str(&raw("stats/summary")?)?;
    ensure!(summary["node"]["nodeName"] == node, "{}", summary["node"]);
    let pods = summary["pods"].as_array().context("no pods")?;
    let of = |pod: &&Value| {
        pod["podRef"]["name"] == "server" && pod["podRef"]["namespace"] == story.namespace
    };
    let pod = pods.iter().find(of).context("not this pod")?;
    for (of, pointers) in [
        (
            &summary["node"],
            &[
                "/cpu/usageCoreNanoSeconds",
                "/memory/workingSetBytes",
                "/memory/availableBytes",
                "/fs/usedBytes",
                "/fs/inodesFree",
                "/runtime/imageFs/usedBytes",
                "/rlimit/curproc",
            ][..],
        ),
        (
            pod,
            &[
                "/cpu/usageCoreNanoSeconds",
                "/memory/workingSetBytes",
                "/containers/0/cpu/usageCoreNanoSeconds",
                "/containers/0/memory/workingSetBytes",
                "/containers/0/rootfs/usedBytes",
                "/containers/0/logs/usedBytes",
                "/volume/0/usedBytes",
                "/ephemeral-storage/usedBytes",
                "/process_stats/process_count",
            ],
        ),
    ] {
        for pointer in pointers {
            let amount = of.pointer(pointer).and_then(Value::as_u64);
            ensure!(amount > Some(0), "{pointer}: {of}");
        }
    }
    let listed: Value = serde_json::from_str(&raw("pods")?)?;
    let mut names = items(&listed).iter().map(|pod| &pod["metadata"]["name"]);
    ensure!(names.any(|name| name == "server"), "{listed}");
    Ok(())
}
