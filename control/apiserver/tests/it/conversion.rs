//! Several versions of a custom resource, converted by a webhook: a small TLS server of this test.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, routing::post};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::{
    cluster::Cluster,
    definitions::{DEFINITIONS, established, until},
};

struct Webhook {
    url: String,
    ca_bundle: String,
    calls: Arc<AtomicUsize>,
}

/// Answers reviews with `convert` at `/convert`; `/slow` never answers.
async fn webhook(convert: fn(Value, &str) -> Result<Value, String>) -> Webhook {
    let certified =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = certified.signing_key.serialize_der();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .expect("protocol versions")
    .with_no_client_auth()
    .with_single_cert(
        vec![certified.cert.der().clone()],
        rustls_pki_types::PrivateKeyDer::Pkcs8(key.into()),
    )
    .expect("a server");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let app = Router::new()
        .route(
            "/convert",
            post(move |review: Bytes| {
                counter.fetch_add(1, Ordering::SeqCst);
                async move {
                    let review = serde_json::from_slice(&review).expect("a review");
                    answer(&review, convert).to_string()
                }
            }),
        )
        .route("/slow", post(std::future::pending::<String>));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, app) = (acceptor.clone(), app.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = TowerToHyperService::new(app);
                let _served = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Webhook {
        url: format!("https://localhost:{port}"),
        ca_bundle: STANDARD.encode(certified.cert.pem()),
        calls,
    }
}

fn answer(review: &Value, convert: fn(Value, &str) -> Result<Value, String>) -> Value {
    let request = &review["request"];
    let to = request["desiredAPIVersion"].as_str().expect("a version");
    let objects = request["objects"].as_array().expect("objects");
    let converted: Result<Vec<Value>, String> = objects
        .iter()
        .map(|object| convert(object.clone(), to))
        .collect();
    let mut response = json!({"uid": request["uid"]});
    match converted {
        Ok(objects) => {
            response["result"] = json!({"status": "Success"});
            response["convertedObjects"] = objects.into();
        }
        Err(message) => response["result"] = json!({"status": "Failed", "message": message}),
    }
    json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": response})
}

/// `v1` has `spec.address`, `v2` has `spec.host` and `spec.port`.
fn addresses(mut object: Value, to: &str) -> Result<Value, String> {
    let spec = &mut object["spec"];
    if spec["host"] == "refused" {
        return Err("this host is refused".to_owned());
    }
    if to.ends_with("/v1") {
        let host = spec["host"].as_str().unwrap_or_default();
        *spec = json!({"address": format!("{host}:{}", spec["port"])});
    } else {
        let address = spec["address"].as_str().unwrap_or_default();
        let (host, port) = address.split_once(':').ok_or("no port")?;
        let port: u16 = port.parse().map_err(|_| "no port")?;
        *spec = json!({"host": host, "port": port});
    }
    object["apiVersion"] = to.into();
    object["metadata"]["labels"] = json!({"converted-to": to.rsplit('/').next()});
    Ok(object)
}

fn servers(webhook: &Webhook, path: &str, storage: &str) -> Value {
    let version = |name: &str, spec: Value| {
        json!({
            "name": name, "served": true, "storage": name == storage,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": spec},
            }}},
        })
    };
    json!({
        "metadata": {"name": "servers.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "servers", "kind": "Server"},
            "conversion": {"strategy": "Webhook", "webhook": {
                "conversionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("{}{path}", webhook.url), "caBundle": webhook.ca_bundle},
            }},
            "versions": [
                version("v1", json!({"address": {"type": "string"}})),
                version("v2", json!({"host": {"type": "string"}, "port": {"type": "integer"}})),
            ],
        },
    })
}

const V1: &str = "/apis/example.com/v1/namespaces/default/servers";
const V2: &str = "/apis/example.com/v2/namespaces/default/servers";

#[tokio::test]
async fn a_webhook_converts_between_versions() {
    let webhook = webhook(addresses).await;
    let cluster = Cluster::start().await;
    let path = format!("{DEFINITIONS}/servers.example.com");
    cluster
        .post(DEFINITIONS, servers(&webhook, "/convert", "v1"))
        .await
        .expect(201);
    established(&cluster, "servers.example.com").await;
    until(&cluster, V2, |code, _| code == 200).await;

    let created = cluster
        .post(
            V1,
            json!({"metadata": {"name": "a"}, "spec": {"address": "x:80"}}),
        )
        .await
        .expect(201);
    let version = created["metadata"]["resourceVersion"].clone();
    let calls = || webhook.calls.load(Ordering::SeqCst);
    assert_eq!(calls(), 0, "v1 is what is stored");
    let got = cluster.get(&format!("{V2}/a")).await.expect(200);
    assert_eq!(got["apiVersion"], "example.com/v2");
    assert_eq!(got["spec"], json!({"host": "x", "port": 80}));
    assert_eq!(got["metadata"]["uid"], created["metadata"]["uid"]);
    assert_eq!(got["metadata"]["labels"], json!({"converted-to": "v2"}));
    let asked = calls();
    let list = cluster.get(V2).await.expect(200);
    assert_eq!(list["items"][0]["spec"]["port"], 80);
    assert_eq!(list["apiVersion"], "example.com/v2");
    assert_eq!(calls(), asked, "what was converted once is kept");

    // A write through the other version is stored in the first.
    let patched = cluster
        .merge(&format!("{V2}/a"), json!({"spec": {"port": 81}}))
        .await
        .expect(200);
    assert_eq!(patched["spec"], json!({"host": "x", "port": 81}));
    let got = cluster.get(&format!("{V1}/a")).await.expect(200);
    assert_eq!(got["spec"], json!({"address": "x:81"}));

    // A watch shows its own version.
    let watch = format!(
        "{V2}?watch=1&timeoutSeconds=1&resourceVersion={}",
        version.as_str().expect("text")
    );
    let events = cluster.get(&watch).await;
    let first = events.bytes.split(|b| *b == b'\n').next().expect("a line");
    let event: Value = serde_json::from_slice(first).expect("JSON");
    assert_eq!(event["type"], "MODIFIED");
    assert_eq!(event["object"]["spec"], json!({"host": "x", "port": 81}));

    // What the webhook refuses is an error, in its words.
    let refused = cluster
        .post(
            V2,
            json!({"metadata": {"name": "b"}, "spec": {"host": "refused", "port": 1}}),
        )
        .await
        .expect(500);
    assert_eq!(
        refused["message"],
        "conversion webhook for example.com/v2, Kind=Server failed: this host is refused"
    );

    // With another storage version the objects stay as they are stored, and are shown as before.
    let current = cluster.get(&path).await.expect(200);
    let mut changed = servers(&webhook, "/convert", "v2");
    changed["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
    let changed = cluster.put(&path, changed).await.expect(200);
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v2"]));
    let got = cluster.get(&format!("{V2}/a")).await.expect(200);
    assert_eq!(got["spec"], json!({"host": "x", "port": 81}));
    let got = cluster.get(&format!("{V1}/a")).await.expect(200);
    assert_eq!(got["spec"], json!({"address": "x:81"}));
    cluster
        .delete(&format!("{V1}/a"), Value::Null)
        .await
        .expect(200);
    assert_eq!(cluster.get(&format!("{V2}/a")).await.code, 404);
}

/// `matchPolicy: Equivalent`: a policy about one version sees writes through another as they would be in its own, and a
/// policy that changes them changes what is written.
#[tokio::test]
async fn policies_see_other_versions_converted() {
    let webhook = webhook(addresses).await;
    let cluster = Cluster::start().await;
    let definition = servers(&webhook, "/convert", "v1");
    cluster.post(DEFINITIONS, definition).await.expect(201);
    established(&cluster, "servers.example.com").await;
    until(&cluster, V2, |code, _| code == 200).await;

    let group = "/apis/admissionregistration.k8s.io/v1";
    let constraints = json!({"resourceRules": [{
        "apiGroups": ["example.com"], "apiVersions": ["v2"], "resources": ["servers"], "operations": ["CREATE"],
    }]});
    let bound = async |kind: &str, name: &str, spec: Value| {
        let policy = json!({"metadata": {"name": name}, "spec": spec});
        let path = format!("{group}/{kind}admissionpolicies");
        cluster.post(&path, policy).await.expect(201);
        let mut binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
        if kind == "validating" {
            binding["spec"]["validationActions"] = json!(["Deny"]);
        }
        let path = format!("{group}/{kind}admissionpolicybindings");
        cluster.post(&path, binding).await.expect(201);
    };
    let validations = json!([{"expression": "object.spec.port != 22", "message": "not that port"}]);
    let validating = json!({"matchConstraints": constraints, "validations": validations});
    bound("validating", "ports", validating).await;
    let mutation = "object.spec.host == 'old' ? [JSONPatch{op: 'replace', path: '/spec/host', value: 'new'}] : []";
    let mutating = json!({
        "matchConstraints": constraints, "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": mutation}}],
    });
    bound("mutating", "hosts", mutating).await;

    let server = |name: &str, address: &str| json!({"metadata": {"name": name}, "spec": {"address": address}});
    let refused = cluster.post(V1, server("a", "x:22")).await.expect(422);
    let message = refused["message"].as_str().expect("a message");
    assert!(message.contains("not that port"), "{message}");
    let created = cluster.post(V1, server("b", "old:80")).await.expect(201);
    assert_eq!(created["apiVersion"], "example.com/v1");
    assert_eq!(created["spec"], json!({"address": "new:80"}));
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_holds_up_nobody_else() {
    let webhook = webhook(addresses).await;
    let cluster = Cluster::start().await;
    cluster
        .post(DEFINITIONS, servers(&webhook, "/slow", "v1"))
        .await
        .expect(201);
    established(&cluster, "servers.example.com").await;
    until(&cluster, V1, |code, _| code == 200).await;
    cluster
        .post(
            V1,
            json!({"metadata": {"name": "a"}, "spec": {"address": "x:80"}}),
        )
        .await
        .expect(201);
    let slow: Vec<_> = (0..20)
        .map(|_| {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.get(V2).await })
        })
        .collect();
    let started = Instant::now();
    for _ in 0..20 {
        cluster.get(&format!("{V1}/a")).await.expect(200);
        cluster.get("/api/v1/namespaces/default").await.expect(200);
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(slow.iter().all(|task| !task.is_finished()));
    for task in slow {
        task.abort();
    }
}

#[tokio::test]
async fn without_a_webhook_only_the_version_changes() {
    let cluster = Cluster::start().await;
    let version = |name: &str, properties: Value| {
        json!({
            "name": name, "served": true, "storage": name == "v1", "deprecated": name == "v1",
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": properties},
            }}},
        })
    };
    let definition = json!({
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Cluster", "names": {"plural": "things", "kind": "Thing"},
            "versions": [
                version("v1", json!({"a": {"type": "string"}})),
                version("v2", json!({"a": {"type": "string"}, "b": {"type": "string"}})),
            ],
        },
    });
    cluster.post(DEFINITIONS, definition).await.expect(201);
    established(&cluster, "things.example.com").await;
    let (v1, v2) = ("/apis/example.com/v1/things", "/apis/example.com/v2/things");
    until(&cluster, v2, |code, _| code == 200).await;
    let thing = json!({"metadata": {"name": "x"}, "spec": {"a": "1", "b": "2"}});
    let created = cluster.post(v2, thing).await.expect(201);
    // It is stored in v1, which does not know `b`.
    assert_eq!(created["spec"], json!({"a": "1"}));
    assert_eq!(created["apiVersion"], "example.com/v2");
    let got = cluster.get(&format!("{v1}/x")).await;
    let warning = got.headers["warning"].to_str().expect("text").to_owned();
    assert_eq!(warning, "299 - \"example.com/v1 Thing is deprecated\"");
    assert_eq!(got.expect(200)["apiVersion"], "example.com/v1");
    let group = cluster.get("/apis/example.com").await.expect(200);
    assert_eq!(group["preferredVersion"]["version"], "v2");
}

/// Each version has selectable fields of its own, of the same objects. (Upstream refuses that for versions of one schema.)
#[tokio::test]
async fn versions_select_by_their_own_fields() {
    let cluster = Cluster::start().await;
    let version = |name: &str, field: &str| {
        let text = json!({"type": "string"});
        let properties = json!({"a": text, "b": text});
        let spec = json!({"type": "object", "description": name, "properties": properties});
        json!({
            "name": name, "served": true, "storage": name == "v1",
            "selectableFields": [{"jsonPath": format!(".spec.{field}")}],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
        })
    };
    let definition = json!({
        "metadata": {"name": "servers.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "servers", "kind": "Server"},
            "versions": [version("v1", "a"), version("v2", "b")],
        },
    });
    cluster.post(DEFINITIONS, definition).await.expect(201);
    established(&cluster, "servers.example.com").await;
    until(&cluster, V2, |code, _| code == 200).await;
    for (name, a, b) in [("x", "1", "2"), ("y", "2", "1")] {
        let server = json!({"metadata": {"name": name}, "spec": {"a": a, "b": b}});
        cluster.post(V1, server).await.expect(201);
    }
    for (path, field, name) in [(V1, "a", "x"), (V2, "b", "y")] {
        let selected = cluster
            .get(&format!("{path}?fieldSelector=spec.{field}%3D1"))
            .await
            .expect(200);
        let names: Vec<_> = selected["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|item| &item["metadata"]["name"])
            .collect();
        assert_eq!(names, [name]);
    }
}

/// The definition of servers, each version with selectable fields of its own; stored in `v1`.
fn selectable_servers(webhook: &Webhook) -> Value {
    let mut definition = servers(webhook, "/convert", "v1");
    let versions = &mut definition["spec"]["versions"];
    versions[0]["selectableFields"] = json!([{"jsonPath": ".spec.address"}]);
    versions[1]["selectableFields"] =
        json!([{"jsonPath": ".spec.host"}, {"jsonPath": ".spec.port"}]);
    definition
}

/// A cluster that serves [`selectable_servers`] in both versions.
async fn selectable_cluster() -> (Webhook, Cluster) {
    let webhook = webhook(addresses).await;
    let cluster = Cluster::start().await;
    let definition = selectable_servers(&webhook);
    cluster.post(DEFINITIONS, definition).await.expect(201);
    established(&cluster, "servers.example.com").await;
    until(&cluster, V2, |code, _| code == 200).await;
    (webhook, cluster)
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().into_iter().flatten();
    items
        .map(|item| item["metadata"]["name"].as_str().unwrap_or_default())
        .collect()
}

/// Selectors see what the client sees: fields that the stored form has not, labels that the webhook gives.
#[tokio::test]
async fn lists_select_converted_objects() {
    let (_webhook, cluster) = selectable_cluster().await;
    for number in 0..450 {
        let host = if number % 90 == 7 { "rare" } else { "common" };
        let server = json!({
            "metadata": {"name": format!("s{number:03}"), "labels": {"stored": "yes"}},
            "spec": {"address": format!("{host}:{number}")},
        });
        cluster.post(V1, server).await.expect(201);
    }
    let rare = ["s007", "s097", "s187", "s277", "s367"];
    let by_host = format!("{V2}?fieldSelector=spec.host%3Drare");
    let list = cluster.get(&by_host).await.expect(200);
    assert_eq!(names(&list), rare);
    assert_eq!(
        list["items"][1]["spec"],
        json!({"host": "rare", "port": 97})
    );
    assert!(list["metadata"].get("remainingItemCount").is_none());

    // Pages are full, and the last one says that it is the last.
    let (mut found, mut next) = (Vec::new(), String::new());
    let mut pages = 0;
    loop {
        let page = format!("{by_host}&limit=2&continue={next}");
        let page = cluster.get(&page).await.expect(200);
        found.extend(names(&page).into_iter().map(str::to_owned));
        pages += 1;
        next = page["metadata"]["continue"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if next.is_empty() {
            break;
        }
        assert_eq!(names(&page).len(), 2);
    }
    assert_eq!(
        (found.iter().map(String::as_str).collect(), pages),
        (rare.to_vec(), 3)
    );

    // A number is selected by its text; the other version's fields are not this one's.
    let list = cluster
        .get(&format!("{V2}?fieldSelector=spec.port%3D449"))
        .await;
    assert_eq!(names(&list.expect(200)), ["s449"]);
    let list = cluster
        .get(&format!("{V1}?fieldSelector=spec.address%3Drare:7"))
        .await;
    assert_eq!(names(&list.expect(200)), ["s007"]);
    let refused = cluster
        .get(&format!("{V1}?fieldSelector=spec.host%3Drare"))
        .await;
    assert_eq!(refused.code, 400);

    // The webhook replaces labels.
    let list = cluster.get(&format!("{V2}?labelSelector=stored")).await;
    assert_eq!(names(&list.expect(200)), [""; 0]);
    let labelled = format!("{V2}?labelSelector=converted-to%3Dv2&fieldSelector=spec.host%3Drare");
    assert_eq!(names(&cluster.get(&labelled).await.expect(200)), rare);

    // What is deleted is what is selected.
    let deleted = cluster.delete(&by_host, Value::Null).await.expect(200);
    assert_eq!(names(&deleted), rare);
    assert_eq!(deleted["items"][0]["spec"]["host"], "rare");
    let rest = cluster.get(V1).await.expect(200);
    assert_eq!(names(&rest).len(), 445);
}

/// What a watch said until it ended, one line an event: its type, the object's name and port.
async fn watched(cluster: &Cluster, path: &str) -> Vec<String> {
    let answer = cluster.get(path).await;
    let lines = answer.bytes.split(|byte| *byte == b'\n');
    let events = lines.filter(|line| !line.is_empty()).map(|line| {
        let event: Value = serde_json::from_slice(line).expect("an event");
        let object = &event["object"];
        assert_eq!(object["apiVersion"], "example.com/v2", "{event}");
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let kind = event["type"].as_str().unwrap_or_default();
        format!("{kind} {name} {}", object["spec"]["port"])
    });
    events.collect()
}

#[tokio::test]
async fn watches_select_converted_objects() {
    let (_webhook, cluster) = selectable_cluster().await;
    let server = |name: &str, address: &str| json!({"metadata": {"name": name}, "spec": {"address": address}});
    cluster.post(V1, server("a", "x:1")).await.expect(201);
    let before = cluster.post(V1, server("b", "y:2")).await.expect(201);
    let address = |address: &str| json!({"spec": {"address": address}});
    let change = async |name: &str, to: &str| {
        let path = format!("{V1}/{name}");
        cluster.merge(&path, address(to)).await.expect(200)
    };
    change("a", "x:3").await; // stays selected
    change("b", "x:4").await; // becomes selected
    change("b", "x:5").await;
    let left = change("b", "y:6").await; // is no more
    change("b", "y:7").await;
    let path = format!("{V1}/a");
    cluster.delete(&path, Value::Null).await.expect(200);
    let path = format!("{V1}/b");
    cluster.delete(&path, Value::Null).await.expect(200);

    let version = before["metadata"]["resourceVersion"]
        .as_str()
        .expect("text");
    let by_host = format!("{V2}?watch=1&timeoutSeconds=1&fieldSelector=spec.host%3Dx");
    let seen = watched(&cluster, &format!("{by_host}&resourceVersion={version}")).await;
    let expected = [
        "MODIFIED a 3",
        "ADDED b 4",
        "MODIFIED b 5",
        // As it was, under the revision of the change.
        "DELETED b 5",
        "DELETED a 3",
    ];
    assert_eq!(seen, expected);

    // A watcher that has seen an object leave spoils it for nobody.
    let version = left["metadata"]["resourceVersion"].as_str().expect("text");
    let exact = format!("{V2}?resourceVersion={version}&resourceVersionMatch=Exact");
    let then = cluster.get(&exact).await.expect(200);
    assert_eq!(then["items"][1]["spec"], json!({"host": "y", "port": 6}));

    // What is there at the start is selected in the same way.
    cluster.post(V1, server("c", "x:8")).await.expect(201);
    cluster.post(V1, server("d", "y:9")).await.expect(201);
    assert_eq!(watched(&cluster, &by_host).await, ["ADDED c 8"]);
}

/// A watch that begins with many objects does not ask for each by itself.
#[tokio::test]
async fn initial_events_are_converted_by_the_hundred() {
    let (webhook, cluster) = selectable_cluster().await;
    for number in 0..300 {
        let server = json!({
            "metadata": {"name": format!("s{number:03}")}, "spec": {"address": format!("x:{number}")},
        });
        cluster.post(V1, server).await.expect(201);
    }
    let before = webhook.calls.load(Ordering::SeqCst);
    let watch = format!("{V2}?watch=1&timeoutSeconds=2&fieldSelector=spec.host%3Dx");
    let seen = watched(&cluster, &watch).await;
    assert_eq!(seen.len(), 300);
    assert_eq!(
        (seen[0].as_str(), seen[299].as_str()),
        ("ADDED s000 0", "ADDED s299 299")
    );
    let asked = webhook.calls.load(Ordering::SeqCst) - before;
    assert!(asked <= 3, "{asked} calls");
}

/// Objects that were stored before a field got its default are selected by it, as they are shown with it.
#[tokio::test]
async fn later_defaults_are_selected_by() {
    let cluster = Cluster::start().await;
    let definition = |text: Value| {
        json!({
            "metadata": {"name": "servers.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced",
                "names": {"plural": "servers", "kind": "Server"},
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "selectableFields": [{"jsonPath": ".spec.zone"}],
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                        "spec": {"type": "object", "properties": {"zone": text}},
                    }}},
                }],
            },
        })
    };
    let path = format!("{DEFINITIONS}/servers.example.com");
    let without = definition(json!({"type": "string"}));
    cluster.post(DEFINITIONS, without).await.expect(201);
    established(&cluster, "servers.example.com").await;
    until(&cluster, V1, |code, _| code == 200).await;
    let server = json!({"metadata": {"name": "a"}, "spec": {}});
    cluster.post(V1, server).await.expect(201);
    let mut with = definition(json!({"type": "string", "default": "north"}));
    let current = cluster.get(&path).await.expect(200);
    with["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
    cluster.put(&path, with).await.expect(200);
    until(&cluster, &format!("{V1}/a"), |_, body| {
        body["spec"]["zone"] == "north"
    })
    .await;
    let selected = format!("{V1}?fieldSelector=spec.zone%3Dnorth");
    until(&cluster, &selected, |_, list| names(list) == ["a"]).await;
}
