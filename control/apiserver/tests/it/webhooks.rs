//! Mutating and validating webhooks, good and bad ones.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::response::Response;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, MAPS, map},
    hook::{Hook, patched, rule},
};

const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

async fn configure(cluster: &Cluster, path: &str, name: &str, webhooks: Value) {
    let configuration = json!({"metadata": {"name": name}, "webhooks": webhooks});
    cluster.post(path, configuration).await.expect(201);
}

fn message(status: &Value) -> &str {
    status["message"].as_str().expect("a message")
}

#[tokio::test]
async fn a_validating_webhook_says_no_in_its_own_words() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|request| {
        let name = request["object"]["metadata"]["name"].as_str();
        match name {
            Some("bad") => json!({"allowed": false, "status": {
                "code": 418, "reason": "Teapot", "message": "short and stout",
                "details": {"causes": [{"message": "handle", "field": "spout"}]},
            }}),
            Some("silent") => json!({"allowed": false}),
            _ => json!({"allowed": true, "warnings": ["looked at it"], "auditAnnotations": {"k": "v"}}),
        }
    })
    .await;
    configure(
        &cluster,
        VALIDATING,
        "v",
        json!([hook.webhook("v.example.com")]),
    )
    .await;
    let good = cluster.post(MAPS, map("good")).await;
    assert_eq!(good.code, 201);
    assert!(
        good.headers["warning"]
            .to_str()
            .unwrap()
            .contains("looked at it")
    );
    let bad = cluster.post(MAPS, map("bad")).await.expect(418);
    assert_eq!(
        message(&bad),
        "admission webhook \"v.example.com\" denied the request: short and stout"
    );
    assert_eq!(bad["reason"], "Teapot");
    assert_eq!(bad["details"]["causes"][0]["field"], "spout");
    let silent = cluster.post(MAPS, map("silent")).await.expect(400);
    assert_eq!(
        message(&silent),
        "admission webhook \"v.example.com\" denied the request without explanation"
    );
    // One connection served all three.
    assert_eq!(hook.called(), 3);
    assert_eq!(
        hook.connections.load(std::sync::atomic::Ordering::SeqCst),
        1
    );
}

#[tokio::test]
async fn reviews_carry_what_upstream_sends() {
    let cluster = Cluster::start().await;
    let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
    let log = seen.clone();
    let hook = Hook::start(move |request| {
        log.lock().unwrap().push(request.clone());
        json!({"allowed": true})
    })
    .await;
    let mut webhook = hook.webhook("all.example.com");
    webhook["rules"] = json!([
        rule("", "v1", "configmaps", &["*"]),
        rule("apps", "v1", "deployments/scale", &["UPDATE"]),
        rule("", "v1", "pods/exec", &["CONNECT"]),
        rule("", "v1", "pods/eviction", &["CREATE"]),
        rule("", "v1", "namespaces", &["*"]),
    ]);
    configure(&cluster, VALIDATING, "v", json!([webhook])).await;
    let last = || seen.lock().unwrap().last().cloned().expect("a review");

    let dry = format!("{MAPS}?dryRun=All&fieldManager=me");
    cluster.post(&dry, map("a")).await.expect(201);
    let request = last();
    assert_eq!(request["operation"], "CREATE");
    assert_eq!(request["dryRun"], true);
    assert_eq!(
        request["kind"],
        json!({"group": "", "version": "v1", "kind": "ConfigMap"})
    );
    assert_eq!(request["resource"]["resource"], "configmaps");
    assert_eq!(request["requestResource"], request["resource"]);
    assert_eq!(request["userInfo"]["username"], "tester");
    assert_eq!(request["options"]["kind"], "CreateOptions");
    assert_eq!(request["options"]["fieldManager"], "me");
    assert_eq!(
        (request["name"].as_str(), request["namespace"].as_str()),
        (Some("a"), Some("default"))
    );
    assert!(request["oldObject"].is_null());
    assert_eq!(request["object"]["kind"], "ConfigMap");

    cluster.post(MAPS, map("a")).await.expect(201);
    cluster
        .merge(&format!("{MAPS}/a"), json!({"data": {"k": "v"}}))
        .await
        .expect(200);
    let request = last();
    assert_eq!(request["operation"], "UPDATE");
    assert_eq!(request["object"]["data"]["k"], "v");
    assert!(request["oldObject"]["data"].is_null());
    assert_eq!(request["options"]["kind"], "PatchOptions");
    cluster
        .delete(&format!("{MAPS}/a"), Value::Null)
        .await
        .expect(200);
    let request = last();
    assert_eq!(request["operation"], "DELETE");
    assert!(request["object"].is_null());
    assert_eq!(request["oldObject"]["data"]["k"], "v");
    assert_eq!(request["options"]["kind"], "DeleteOptions");

    cluster
        .post("/api/v1/namespaces", map("other"))
        .await
        .expect(201);
    assert_eq!(last()["namespace"], "other");

    let pods = "/api/v1/namespaces/default/pods";
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    cluster.post(pods, pod).await.expect(201);
    let exec = axum::http::Request::builder()
        .method("POST")
        .uri(format!(
            "{pods}/p/exec?command=ls&command=-l&stdout=true&container=c"
        ))
        .header("upgrade", "websocket")
        .header("connection", "upgrade")
        .body(axum::body::Body::empty())
        .unwrap();
    cluster.call(exec).await;
    let request = last();
    assert_eq!(request["operation"], "CONNECT");
    assert_eq!(request["subResource"], "exec");
    assert_eq!(request["object"]["kind"], "PodExecOptions");
    assert_eq!(request["object"]["command"], json!(["ls", "-l"]));
    let before = hook.called();
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    cluster
        .post(&format!("{pods}/p/eviction"), eviction)
        .await
        .expect(201);
    assert_eq!(last()["kind"]["kind"], "Eviction");
    assert_eq!(hook.called(), before + 1);

    let deployment = json!({"metadata": {"name": "d"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }});
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    cluster.post(deployments, deployment).await.expect(201);
    cluster
        .merge(
            &format!("{deployments}/d/scale"),
            json!({"spec": {"replicas": 3}}),
        )
        .await
        .expect(200);
    let request = last();
    assert_eq!(request["kind"]["kind"], "Scale");
    assert_eq!(request["object"]["spec"]["replicas"], 3);
    assert_eq!(request["oldObject"]["spec"]["replicas"], 1);
}

#[tokio::test]
async fn mutating_webhooks_patch_in_order_and_again_if_needed() {
    let cluster = Cluster::start().await;
    let first = Hook::start(|request| {
        let seen = request["object"]["data"].get("second").is_some();
        patched(&match request["object"]["data"].is_null() {
            true => json!([{"op": "add", "path": "/data", "value": {"first": "1"}}]),
            false => json!([{"op": "add", "path": "/data/first", "value": if seen { "after" } else { "before" }}]),
        })
    })
    .await;
    let second =
        Hook::start(|_| patched(&json!([{"op": "add", "path": "/data/second", "value": "2"}])))
            .await;
    let mut again = first.webhook("a.example.com");
    again["reinvocationPolicy"] = "IfNeeded".into();
    configure(
        &cluster,
        MUTATING,
        "m",
        json!([again, second.webhook("b.example.com")]),
    )
    .await;
    let created = cluster.post(MAPS, map("a")).await.expect(201);
    assert_eq!(created["data"], json!({"first": "after", "second": "2"}));
    assert_eq!((first.called(), second.called()), (2, 1));
    let stored = cluster.get(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(stored["data"], created["data"]);
}

#[tokio::test]
async fn a_patch_must_fit() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(
        |request| match request["object"]["metadata"]["name"].as_str() {
            Some("path") => patched(&json!([{"op": "remove", "path": "/nope"}])),
            Some("type") => patched(&json!([{"op": "add", "path": "/data", "value": 7}])),
            Some("invalid") => {
                patched(&json!([{"op": "add", "path": "/data", "value": {"not a key": "x"}}]))
            }
            _ => json!({"allowed": true}),
        },
    )
    .await;
    let mut webhook = hook.webhook("m.example.com");
    webhook["rules"][0]["operations"] = json!(["*"]);
    configure(&cluster, MUTATING, "m", json!([webhook])).await;
    for (name, code) in [
        ("path", 500),
        ("type", 500),
        ("invalid", 422),
        ("fine", 201),
    ] {
        assert_eq!(cluster.post(MAPS, map(name)).await.code, code, "{name}");
    }
    cluster
        .delete(&format!("{MAPS}/fine"), Value::Null)
        .await
        .expect(200);
}

/// What a call that fails in some way makes of a create, with either failure policy.
async fn failing(client_config: Value, timeout: u64, expected: &str) {
    let cluster = Cluster::start().await;
    let webhook = |policy: &str| {
        json!({
            "name": "f.example.com", "clientConfig": client_config, "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "timeoutSeconds": timeout, "failurePolicy": policy,
            "rules": [rule("", "v1", "configmaps", &["CREATE"])],
        })
    };
    configure(&cluster, VALIDATING, "f", json!([webhook("Fail")])).await;
    let refused = cluster.post(MAPS, map("a")).await.expect(500);
    let text = message(&refused);
    let start = "Internal error occurred: failed calling webhook \"f.example.com\": ";
    assert!(text.starts_with(start) && text.contains(expected), "{text}");
    assert_eq!(refused["reason"], "InternalError");
    cluster
        .delete(&format!("{VALIDATING}/f"), Value::Null)
        .await
        .expect(200);
    configure(&cluster, MUTATING, "f", json!([webhook("Fail")])).await;
    let refused = cluster.post(MAPS, map("a")).await.expect(500);
    assert!(message(&refused).contains(expected));
    cluster
        .delete(&format!("{MUTATING}/f"), Value::Null)
        .await
        .expect(200);
    configure(&cluster, MUTATING, "f", json!([webhook("Ignore")])).await;
    configure(&cluster, VALIDATING, "f", json!([webhook("Ignore")])).await;
    cluster.post(MAPS, map("a")).await.expect(201);
}

#[tokio::test]
async fn refused_connections() {
    let url = "https://127.0.0.1:1/x";
    failing(
        json!({"url": url}),
        1,
        "failed to call webhook: Post \"https://127.0.0.1:1/x?timeout=1s\": dial tcp 127.0.0.1:1: connect: connection refused",
    )
    .await;
}

#[tokio::test]
async fn slow_answers() {
    let hook = Hook::raw(|_| Box::pin(std::future::pending())).await;
    failing(
        hook.client_config(),
        1,
        "?timeout=1s\": context deadline exceeded",
    )
    .await;
}

#[tokio::test]
async fn answers_that_are_no_json() {
    let hook = Hook::raw(|_| Box::pin(async { Response::new("{nope".into()) })).await;
    failing(
        hook.client_config(),
        5,
        "couldn't get version/kind; json parse error",
    )
    .await;
}

#[tokio::test]
async fn errors_of_the_server() {
    let hook = Hook::raw(|_| {
        Box::pin(async {
            let mut response = Response::new("boom".into());
            *response.status_mut() = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
            response
        })
    })
    .await;
    failing(
        hook.client_config(),
        5,
        "an error on the server (\"boom\") has prevented the request from succeeding",
    )
    .await;
}

#[tokio::test]
async fn answers_of_another_review() {
    let hook = Hook::raw(|_| {
        let review = json!({
            "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
            "response": {"uid": "x", "allowed": true},
        });
        Box::pin(async move { Response::new(review.to_string().into()) })
    })
    .await;
    failing(
        hook.client_config(),
        5,
        "received invalid webhook response: expected response.uid=",
    )
    .await;
}

#[tokio::test]
async fn endless_answers() {
    let hook = Hook::raw(|_| {
        Box::pin(async {
            let chunks =
                futures::stream::repeat(Ok::<_, std::convert::Infallible>(vec![b' '; 65536]));
            Response::new(axum::body::Body::from_stream(chunks))
        })
    })
    .await;
    failing(hook.client_config(), 20, "the answer is longer than").await;
}

#[tokio::test]
async fn certificates_of_others() {
    let (hook, other) = (
        Hook::start(|_| json!({"allowed": true})).await,
        Hook::start(|_| json!({"allowed": true})).await,
    );
    let mut config = hook.client_config();
    config["caBundle"] = other.ca_bundle.clone().into();
    failing(
        config,
        5,
        "tls: failed to verify certificate: x509: certificate signed by unknown authority",
    )
    .await;
    assert_eq!(hook.called(), 0);
}

#[tokio::test]
async fn names_that_the_certificate_lacks() {
    let hook = Hook::start(|_| json!({"allowed": true})).await;
    let mut config = hook.client_config();
    config["url"] = format!("https://localhost:{}/", hook.port).into();
    failing(
        config,
        5,
        "tls: failed to verify certificate: x509: certificate is",
    )
    .await;
}

#[tokio::test]
async fn services_are_resolved_to_ready_endpoints() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_| json!({"allowed": false, "status": {"message": "called"}})).await;
    let service = json!({"namespace": "default", "name": "hook", "path": "/x"});
    let mut webhook = hook.webhook("s.example.com");
    webhook["clientConfig"] = json!({"service": service, "caBundle": hook.ca_bundle});
    configure(&cluster, VALIDATING, "s", json!([webhook])).await;
    let refused = cluster.post(MAPS, map("a")).await.expect(500);
    assert!(
        message(&refused).ends_with(
            "failed to call webhook: Post \"https://hook.default.svc:443/x?timeout=5s\": service \"hook\" not found"
        ),
        "{refused}"
    );
    let service = json!({"metadata": {"name": "hook"}, "spec": {"ports": [{"name": "h", "port": 443, "targetPort": 8443}]}});
    cluster
        .post("/api/v1/namespaces/default/services", service)
        .await
        .expect(201);
    let refused = cluster.post(MAPS, map("a")).await.expect(500);
    assert!(
        message(&refused).ends_with("no endpoints available for service \"hook\""),
        "{refused}"
    );
    let slice = json!({
        "metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
        "addressType": "IPv4", "ports": [{"name": "h", "port": hook.port}],
        "endpoints": [
            {"addresses": ["127.0.0.9"], "conditions": {"ready": false}},
            {"addresses": ["127.0.0.1"], "conditions": {"ready": true}},
        ],
    });
    // Loopback is no address of a pod, so this object could not come from a client.
    let resource = cluster.server.api.registry.load();
    let resource = resource
        .any_version("discovery.k8s.io", "endpointslices")
        .unwrap()
        .clone();
    let mut slice = slice;
    slice["kind"] = "EndpointSlice".into();
    slice["apiVersion"] = "discovery.k8s.io/v1".into();
    let stored = skep_apiserver::codec::encode_stored(&slice);
    let key = resource.key("default", "hook-1");
    let storage = &cluster.server.api.storage;
    storage
        .create(&key, stored, None, Default::default())
        .await
        .unwrap();
    let refused = cluster.post(MAPS, map("a")).await.expect(400);
    assert!(message(&refused).ends_with("denied the request: called"));
}

#[tokio::test]
async fn selectors_conditions_and_scope_decide_who_is_asked() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_| json!({"allowed": false, "status": {"message": "no"}})).await;
    let mut webhook = hook.webhook("s.example.com");
    webhook["namespaceSelector"] =
        json!({"matchLabels": {"kubernetes.io/metadata.name": "default"}});
    webhook["objectSelector"] =
        json!({"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]});
    webhook["matchConditions"] = json!([
        {"name": "big", "expression": "has(object.data) && size(object.data) > 1"},
        {"name": "mine", "expression": "request.userInfo.username == 'tester' && authorizer.requestResource.check('create').allowed()"},
    ]);
    configure(&cluster, VALIDATING, "s", json!([webhook])).await;
    cluster
        .post("/api/v1/namespaces", map("other"))
        .await
        .expect(201);
    let two = json!({"a": "1", "b": "2"});
    let named = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}, "data": two});
    cluster.post(MAPS, named("a", json!({}))).await.expect(400);
    cluster
        .post(MAPS, named("b", json!({"skip": "x"})))
        .await
        .expect(201);
    cluster.post(MAPS, map("c")).await.expect(201);
    cluster
        .post("/api/v1/namespaces/other/configmaps", named("a", json!({})))
        .await
        .expect(201);
    assert_eq!(hook.called(), 1);
    // A label that goes counts as much as one that comes.
    cluster
        .merge(
            &format!("{MAPS}/b"),
            json!({"metadata": {"labels": {"skip": null}}}),
        )
        .await
        .expect(400);

    let mut failing = hook.webhook("c.example.com");
    failing["matchConditions"] =
        json!([{"name": "broken", "expression": "object.data.nope == ''"}]);
    cluster
        .delete(&format!("{VALIDATING}/s"), Value::Null)
        .await
        .expect(200);
    configure(&cluster, VALIDATING, "c", json!([failing])).await;
    let refused = cluster.post(MAPS, named("d", json!({}))).await.expect(403);
    assert_eq!(
        message(&refused),
        "configmaps \"d\" is forbidden: expression 'object.data.nope == ''' resulted in error: no such key: nope"
    );
}

#[tokio::test]
async fn equivalent_resources_are_converted() {
    let cluster = Cluster::start().await;
    let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
    let log = seen.clone();
    let hook = Hook::start(move |request| {
        log.lock().unwrap().push(request.clone());
        patched(&json!([{"op": "add", "path": "/spec/maxReplicas", "value": 7}]))
    })
    .await;
    let mut webhook = hook.webhook("e.example.com");
    webhook["rules"] = json!([rule(
        "autoscaling",
        "v1",
        "horizontalpodautoscalers",
        &["CREATE"]
    )]);
    configure(&cluster, MUTATING, "e", json!([webhook.clone()])).await;
    let autoscaler = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {
            "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
            "metrics": [{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}],
        }})
    };
    let path = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let created = cluster.post(path, autoscaler("a")).await.expect(201);
    assert_eq!(created["apiVersion"], "autoscaling/v2");
    assert_eq!(created["spec"]["maxReplicas"], 7);
    assert_eq!(
        created["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
        60
    );
    let request = seen.lock().unwrap()[0].clone();
    assert_eq!(request["resource"]["version"], "v1");
    assert_eq!(request["requestResource"]["version"], "v2");
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v1");
    assert_eq!(
        request["object"]["spec"]["targetCPUUtilizationPercentage"],
        60
    );
    webhook["matchPolicy"] = "Exact".into();
    cluster
        .delete(&format!("{MUTATING}/e"), Value::Null)
        .await
        .expect(200);
    configure(&cluster, MUTATING, "e", json!([webhook])).await;
    let created = cluster.post(path, autoscaler("b")).await.expect(201);
    assert_eq!(created["spec"]["maxReplicas"], 3);
}

#[tokio::test]
async fn side_effects_forbid_dry_runs() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_| json!({"allowed": true})).await;
    configure(
        &cluster,
        VALIDATING,
        "d",
        json!([hook.webhook("d.example.com")]),
    )
    .await;
    cluster
        .post(&format!("{MAPS}?dryRun=All"), map("a"))
        .await
        .expect(201);
    // Validation refuses it today; clusters may hold such webhooks from before v1.
    let api = &cluster.server.api;
    let registry = api.registry.load();
    let resource = registry
        .any_version(
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations",
        )
        .unwrap();
    let key = resource.key("", "d");
    let entry = api.storage.get(&key).await.unwrap().unwrap();
    let mut stored: Value = serde_json::from_slice(&entry.bytes()).unwrap();
    stored["webhooks"][0]["sideEffects"] = "Unknown".into();
    let bytes = skep_apiserver::codec::encode_stored(&stored);
    api.storage
        .update(&key, bytes, entry.revision, None, Default::default())
        .await
        .unwrap();
    let refused = cluster
        .post(&format!("{MAPS}?dryRun=All"), map("a"))
        .await
        .expect(400);
    assert_eq!(
        message(&refused),
        "admission webhook \"d.example.com\" does not support dry run"
    );
}

#[tokio::test]
async fn validating_webhooks_are_asked_at_once_and_stall_nobody_else() {
    let cluster = Cluster::start().await;
    let barrier = Arc::new(tokio::sync::Barrier::new(2));
    let hook = Hook::raw(move |review| {
        let barrier = barrier.clone();
        Box::pin(async move {
            // Answers only once both are being asked.
            barrier.wait().await;
            let review = json!({
                "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
                "response": {"uid": review["request"]["uid"], "allowed": true},
            });
            Response::new(review.to_string().into())
        })
    })
    .await;
    let both = json!([hook.webhook("a.example.com"), hook.webhook("b.example.com")]);
    configure(&cluster, VALIDATING, "v", both).await;
    cluster.post(MAPS, map("a")).await.expect(201);

    let dead = Hook::raw(|_| Box::pin(std::future::pending())).await;
    let mut webhook = dead.webhook("dead.example.com");
    webhook["rules"] = json!([rule("", "v1", "secrets", &["*"])]);
    webhook["timeoutSeconds"] = 30.into();
    configure(&cluster, VALIDATING, "dead", json!([webhook])).await;
    let stuck: Vec<_> = (0..50)
        .map(|n| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                let path = "/api/v1/namespaces/default/secrets";
                cluster.post(path, map(&format!("s{n}"))).await.code
            })
        })
        .collect();
    while dead.called() < 50 {
        tokio::time::timeout(Duration::from_secs(10), tokio::task::yield_now())
            .await
            .unwrap();
    }
    let started = Instant::now();
    cluster.post(MAPS, map("b")).await.expect(201);
    assert!(started.elapsed() < Duration::from_secs(5));
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn configurations_of_admission_are_exempt() {
    let cluster = Cluster::start().await;
    let hook = Hook::start(|_| json!({"allowed": false})).await;
    let mut webhook = hook.webhook("all.example.com");
    webhook["rules"] = json!([rule("*", "*", "*/*", &["*"])]);
    configure(&cluster, VALIDATING, "all", json!([webhook])).await;
    cluster.post(MAPS, map("a")).await.expect(400);
    cluster
        .delete(&format!("{VALIDATING}/all"), Value::Null)
        .await
        .expect(200);
    cluster.post(MAPS, map("a")).await.expect(201);
}

/// `--admission-control-config-file`: a webhook that lets in only whom it knows.
#[tokio::test]
async fn webhooks_are_shown_the_certificate_that_is_for_them() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).expect("a CA");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let hook = Hook::of_clients(verifier.build().expect("a verifier"), |review| {
        let response = json!({"uid": review["request"]["uid"], "allowed": true});
        let review = json!({
            "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response,
        });
        Box::pin(async move { Response::new(review.to_string().into()) })
    })
    .await;
    let cluster = Cluster::start().await;
    let webhook = hook.webhook("v.example.com");
    configure(&cluster, VALIDATING, "v", json!([webhook])).await;
    let refused = cluster.post(MAPS, map("a")).await.expect(500);
    assert!(
        message(&refused).contains("failed calling webhook"),
        "{refused}"
    );

    let issuer = rcgen::Issuer::from_ca_cert_pem(&authority.pem(), key).expect("an issuer");
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["apiserver".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    write("client.crt", &certificate.pem());
    write("client.key", &key.serialize_pem());
    let user = json!({
        "name": format!("127.0.0.1:{}", hook.port),
        "user": {"client-certificate": "client.crt", "client-key": "client.key"},
    });
    write("kubeconfig", &json!({"users": [user]}).to_string());
    let version = "apiserver.config.k8s.io/v1";
    let plugin = json!({"name": "ValidatingAdmissionWebhook", "configuration": {
        "apiVersion": version, "kind": "WebhookAdmissionConfiguration", "kubeConfigFile": "kubeconfig",
    }});
    let configuration =
        json!({"apiVersion": version, "kind": "AdmissionConfiguration", "plugins": [plugin]});
    let path = write("admission.yaml", &configuration.to_string());
    let credentials =
        skep_apiserver::webhook::credentials::Credentials::load(&path).expect("credentials");
    cluster.server.api.webhooks.show(credentials);
    cluster.post(MAPS, map("a")).await.expect(201);
    assert_eq!(hook.called(), 1);
}
