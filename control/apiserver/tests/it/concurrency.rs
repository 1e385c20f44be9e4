use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cluster::{Cluster, MAPS, map};

/// Patches that each add a key lose nothing, however they interleave.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_patches_all_arrive() {
    let cluster = Cluster::start().await;
    cluster.post(MAPS, map("a")).await.expect(201);
    let patches: Vec<_> = (0..24)
        .map(|n| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                let patch = json!({"data": {format!("k{n}"): "v"}});
                cluster.merge(&format!("{MAPS}/a"), patch).await.code
            })
        })
        .collect();
    for patch in patches {
        assert_eq!(patch.await.expect("no panic"), 200);
    }
    let map = cluster.get(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(map["data"].as_object().map(serde_json::Map::len), Some(24));
}

/// Of many creates of one name exactly one succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_create_wins() {
    let cluster = Cluster::start().await;
    let creates: Vec<_> = (0..16)
        .map(|_| {
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.post(MAPS, map("a")).await.code })
        })
        .collect();
    let mut won = 0;
    for create in creates {
        match create.await.expect("no panic") {
            201 => won += 1,
            code => assert_eq!(code, 409),
        }
    }
    assert_eq!(won, 1);
}

/// Services made at once never share an address or a node port, and a deleted one gives both back.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn services_never_share_addresses() {
    let cluster = Cluster::start().await;
    let services = "/api/v1/namespaces/default/services";
    let creates: Vec<_> = (0..24)
        .map(|n| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                let service = json!({
                    "metadata": {"name": format!("s{n}")},
                    "spec": {"type": "NodePort", "ports": [{"port": 80}]},
                });
                cluster.post(services, service).await.expect(201)
            })
        })
        .collect();
    let (mut ips, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for create in creates {
        let service = create.await.expect("no panic");
        assert!(ips.insert(service["spec"]["clusterIP"].to_string()));
        assert!(ports.insert(service["spec"]["ports"][0]["nodePort"].to_string()));
    }
    let addresses = cluster
        .get("/apis/networking.k8s.io/v1/ipaddresses")
        .await
        .expect(200);
    assert_eq!(addresses["items"].as_array().map(Vec::len), Some(24));
    let first = cluster.get(&format!("{services}/s0")).await.expect(200);
    cluster
        .delete(&format!("{services}/s0"), Value::Null)
        .await
        .expect(200);
    let same = json!({
        "metadata": {"name": "again"},
        "spec": {
            "type": "NodePort", "clusterIP": first["spec"]["clusterIP"],
            "ports": [{"port": 80, "nodePort": first["spec"]["ports"][0]["nodePort"]}],
        },
    });
    cluster.post(services, same).await.expect(201);
}

mod fairness {
    use axum::{body::Body, http::Request};
    use serde_json::json;
    use skep_apiserver::identity::User;
    use tower::ServiceExt;

    use crate::cluster::{Answer, Cluster};

    async fn get_as(cluster: &Cluster, user: &str, groups: &[&str], path: &str) -> Answer {
        let mut request = Request::get(path).body(Body::empty()).expect("a request");
        request.extensions_mut().insert(User {
            name: user.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..User::default()
        });
        let service = cluster.server.service();
        let response = service.oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            bytes: http_body_util::BodyExt::collect(body)
                .await
                .expect("a body")
                .to_bytes(),
        }
    }

    const GROUP: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

    #[tokio::test]
    async fn answers_say_which_schema_and_level_they_had() {
        let cluster = Cluster::start().await;
        let uid = async |kind: &str, name: &str| {
            let object = cluster
                .get(&format!("{GROUP}/{kind}/{name}"))
                .await
                .expect(200);
            object["metadata"]["uid"]
                .as_str()
                .expect("a uid")
                .to_owned()
        };
        let all = ["system:authenticated"];
        let answer = get_as(&cluster, "jane", &all, "/api/v1/pods").await;
        assert_eq!(answer.code, 403);
        assert_eq!(
            answer.headers["x-kubernetes-pf-flowschema-uid"],
            uid("flowschemas", "global-default").await
        );
        let level = &answer.headers["x-kubernetes-pf-prioritylevel-uid"];
        assert_eq!(
            level,
            &uid("prioritylevelconfigurations", "global-default").await
        );
        let answer = get_as(
            &cluster,
            "n",
            &["system:nodes", "system:authenticated"],
            "/api/v1/nodes/n",
        )
        .await;
        assert_eq!(
            answer.headers["x-kubernetes-pf-flowschema-uid"],
            uid("flowschemas", "system-node-high").await
        );
        let answer = get_as(&cluster, "a", &["system:masters"], "/api/v1/nodes").await;
        assert_eq!(
            answer.headers["x-kubernetes-pf-prioritylevel-uid"],
            uid("prioritylevelconfigurations", "exempt").await
        );
    }

    #[tokio::test]
    async fn a_level_without_seats_refuses_its_requests_only() {
        let cluster = Cluster::start().await;
        let level = json!({"metadata": {"name": "none"}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 0, "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"},
        }}});
        cluster
            .post(&format!("{GROUP}/prioritylevelconfigurations"), level)
            .await
            .expect(201);
        let schema = json!({"metadata": {"name": "jane"}, "spec": {
            "matchingPrecedence": 50, "priorityLevelConfiguration": {"name": "none"},
            "rules": [{
                "subjects": [{"kind": "User", "user": {"name": "jane"}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
                    "clusterScope": true, "namespaces": ["*"]}],
            }],
        }});
        cluster
            .post(&format!("{GROUP}/flowschemas"), schema)
            .await
            .expect(201);
        let all = ["system:authenticated"];
        let answer = get_as(&cluster, "jane", &all, "/api/v1/pods").await;
        assert_eq!(answer.code, 429);
        assert_eq!(answer.headers["retry-after"], "1");
        assert_eq!(answer.bytes, "Too many requests, please try again later.\n");
        assert_eq!(
            get_as(&cluster, "joe", &all, "/api/v1/pods").await.code,
            403
        );
        let metrics = cluster.get("/metrics").await;
        let text = String::from_utf8_lossy(&metrics.bytes).into_owned();
        let line = "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"jane\",priority_level=\"none\",reason=\"concurrency-limit\"} 1";
        assert!(text.contains(line), "{text}");
        assert!(
            text.contains(
                "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"workload-low\"} 245"
            ),
            "{text}"
        );
    }
}
