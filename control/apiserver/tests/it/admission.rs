use serde_json::{Value, json};

use crate::cluster::{Cluster, MAPS, map};

#[tokio::test]
async fn nothing_is_made_where_there_is_no_namespace() {
    let cluster = Cluster::start().await;
    let missing = cluster
        .post("/api/v1/namespaces/none/configmaps", map("a"))
        .await
        .expect(404);
    assert_eq!(missing["details"]["kind"], "namespaces");
    cluster
        .post("/api/v1/namespaces", map("leaving"))
        .await
        .expect(201);
    cluster
        .delete("/api/v1/namespaces/leaving", Value::Null)
        .await
        .expect(200);
    let refused = cluster
        .post("/api/v1/namespaces/leaving/configmaps", map("a"))
        .await
        .expect(403);
    assert_eq!(
        refused["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    assert_eq!(
        cluster
            .delete("/api/v1/namespaces/default", Value::Null)
            .await
            .code,
        403
    );
}

#[tokio::test]
async fn pods_get_an_account_a_token_and_tolerations() {
    let cluster = Cluster::start().await;
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pod = cluster
        .post("/api/v1/namespaces/default/pods", pod)
        .await
        .expect(201);
    assert_eq!(pod["spec"]["serviceAccountName"], "default");
    assert_eq!(pod["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(pod["spec"]["priority"], 0);
}

#[tokio::test]
async fn a_quota_counts_and_then_refuses() {
    let cluster = Cluster::start().await;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard = json!({"configmaps": "2"});
    cluster
        .post(
            quotas,
            json!({"metadata": {"name": "q"}, "spec": {"hard": hard}}),
        )
        .await
        .expect(201);
    let status_path = format!("{quotas}/q/status");
    let limits = json!({"status": {"hard": hard}});
    cluster.merge(&status_path, limits).await.expect(200);
    let unknown = cluster.post(MAPS, map("early")).await.expect(403);
    assert!(
        unknown["message"]
            .as_str()
            .expect("text")
            .contains("status unknown for quota")
    );
    let status = json!({"status": {"hard": hard, "used": {"configmaps": "0"}}});
    cluster.merge(&status_path, status).await.expect(200);
    // At once, so that they race for the last place.
    let creates = (0..6).map(|n| {
        let cluster = cluster.clone();
        tokio::spawn(async move { cluster.post(MAPS, map(&format!("m{n}"))).await.code })
    });
    let mut codes = Vec::new();
    for create in creates {
        codes.push(create.await.expect("no panic"));
    }
    codes.sort();
    assert_eq!(codes, [201, 201, 403, 403, 403, 403]);
    let quota = cluster.get(&format!("{quotas}/q")).await.expect(200);
    assert_eq!(quota["status"]["used"]["configmaps"], "2");
}

#[tokio::test]
async fn an_eviction_spends_the_budget() {
    let cluster = Cluster::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    for name in ["a", "b"] {
        let pod = json!({
            "metadata": {"name": name, "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        });
        cluster.post(pods, pod).await.expect(201);
        let status = json!({"status": {
            "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
        }});
        cluster
            .merge(&format!("{pods}/{name}/status"), status)
            .await
            .expect(200);
    }
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({
        "metadata": {"name": "x"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}},
    });
    cluster.post(budgets, budget).await.expect(201);
    let status = json!({"status": {
        "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2,
        "observedGeneration": 1,
    }});
    cluster
        .merge(&format!("{budgets}/x/status"), status)
        .await
        .expect(200);
    let evict = async |name: &str| {
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name},
        });
        cluster
            .post(&format!("{pods}/{name}/eviction"), eviction)
            .await
    };
    evict("a").await.expect(201);
    let refused = evict("b").await.expect(429);
    assert_eq!(
        refused["details"]["causes"][0]["reason"],
        "DisruptionBudget"
    );
}

#[tokio::test]
async fn agents_write_only_what_is_their_nodes() {
    let cluster = Cluster::start().await;
    let node = json!({"metadata": {"name": "n", "labels": {
        "topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r",
    }}});
    cluster.post("/api/v1/nodes", node).await.expect(201);
    let pods = "/api/v1/namespaces/default/pods";
    for (name, on) in [("mine", "n"), ("other", "m")] {
        let pod = json!({"metadata": {"name": name}, "spec": {
            "nodeName": on, "containers": [{"name": "c", "image": "i"}],
        }});
        cluster.post(pods, pod).await.expect(201);
    }
    // What runs in a pod can know where it is.
    let mine = cluster.get(&format!("{pods}/mine")).await.expect(200);
    assert_eq!(
        mine["metadata"]["labels"],
        json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"})
    );
    let agent = async |method: &str, path: &str, body: Value, code: u16, why: &str| {
        let answer = cluster.as_agent("n", method, path, &body).await;
        let status = answer.expect(code);
        let message = status["message"].as_str().unwrap_or_default();
        assert!(message.contains(why), "{status}");
    };
    let status = json!({"status": {"phase": "Running"}});
    agent(
        "PATCH",
        &format!("{pods}/mine/status"),
        status.clone(),
        200,
        "",
    )
    .await;
    let why = "node \"n\" can only update pod status for pods with spec.nodeName set to itself";
    agent("PATCH", &format!("{pods}/other/status"), status, 403, why).await;
    let why = "node \"n\" can only delete pods with spec.nodeName set to itself";
    agent("DELETE", &format!("{pods}/other"), Value::Null, 403, why).await;
    let plain =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    agent(
        "POST",
        pods,
        plain,
        403,
        "node \"n\" can only create mirror pods",
    )
    .await;
    let labels = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    agent("PATCH", "/api/v1/nodes/n", labels("example.com/x"), 200, "").await;
    let why = "node \"n\" is not allowed to modify labels: node-restriction.kubernetes.io/x";
    agent(
        "PATCH",
        "/api/v1/nodes/n",
        labels("node-restriction.kubernetes.io/x"),
        403,
        why,
    )
    .await;
    let taints = json!({"spec": {"taints": []}});
    agent(
        "PATCH",
        "/api/v1/nodes/n",
        taints,
        403,
        "is not allowed to modify taints",
    )
    .await;
    let lease = json!({"metadata": {"name": "m"}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let why = "can only access node lease with the same name as the requesting node";
    agent("POST", leases, lease, 403, why).await;
    agent("POST", leases, json!({"metadata": {"name": "n"}}), 201, "").await;
}

#[tokio::test]
async fn an_agent_asks_for_tokens_for_whom_its_pod_names() {
    let cluster = Cluster::start().await;
    cluster
        .post("/api/v1/nodes", json!({"metadata": {"name": "n"}}))
        .await
        .expect(201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "nodeName": "n", "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "t", "audience": "vault"}},
        ]}}],
    }});
    let pod = cluster
        .post("/api/v1/namespaces/default/pods", pod)
        .await
        .expect(201);
    let ask = async |audiences: Value| {
        let body = json!({"spec": {"audiences": audiences, "boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"],
        }}});
        let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
        let answer = cluster.as_agent("n", "POST", path, &body).await;
        let message = answer.json()["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (answer.code, message)
    };
    let (code, why) = ask(json!(["elsewhere"])).await;
    assert_eq!(code, 403, "{why}");
    assert!(
        why.contains(
            "audience \"elsewhere\" not found in pod spec volume, system:node:n is not authorized"
        ),
        "{why}"
    );
    let (code, why) = ask(json!(["vault", "elsewhere"])).await;
    assert!(code == 403 && why.contains("0 or 1 audiences"), "{why}");
    // This server signs no tokens, but what admission thinks of it comes first.
    assert_ne!(ask(json!(["vault"])).await.0, 403);
    assert_ne!(ask(json!([])).await.0, 403);
}

#[tokio::test]
async fn nobody_grants_what_they_do_not_have() {
    let cluster = Cluster::start().await;
    let group = "/apis/rbac.authorization.k8s.io/v1";
    let rule = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]});
    let role = json!({"metadata": {"name": "r"}, "rules": [rule]});
    let roles = format!("{group}/namespaces/default/roles");
    let missing = "user \"system:node:n\" (groups=[\"system:nodes\" \"system:authenticated\"]) is attempting to grant RBAC \
                   permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}";
    let status = cluster
        .as_agent("n", "POST", &roles, &role)
        .await
        .expect(403);
    assert_eq!(
        status["message"],
        format!("roles.rbac.authorization.k8s.io \"r\" is forbidden: {missing}")
    );
    cluster.post(&roles, role).await.expect(201);
    let bindings = format!("{group}/namespaces/default/rolebindings");
    let binding = |kind: &str, name: &str| {
        json!({"metadata": {"name": "b"}, "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name,
        }})
    };
    let own = binding("Role", "r");
    let refused = cluster.as_agent("n", "POST", &bindings, &own);
    let status = refused.await.expect(403);
    assert_eq!(
        status["message"],
        format!("rolebindings.rbac.authorization.k8s.io \"b\" is forbidden: {missing}")
    );
    let none = binding("ClusterRole", "none");
    let refused = cluster.as_agent("n", "POST", &bindings, &none);
    let status = refused.await.expect(404);
    assert_eq!(
        status["message"],
        "clusterroles.rbac.authorization.k8s.io \"none\" not found"
    );
    // What grants nothing is nobody's secret, and the garbage collector's fields are free.
    let empty = json!({"metadata": {"name": "empty"}, "rules": []});
    cluster
        .as_agent("n", "POST", &roles, &empty)
        .await
        .expect(201);
    let finalizers = json!({"metadata": {"finalizers": ["example.com/x"]}});
    let one = format!("{roles}/r");
    cluster
        .as_agent("n", "PATCH", &one, &finalizers)
        .await
        .expect(200);
    let more = json!({"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    cluster
        .as_agent("n", "PATCH", &one, &more)
        .await
        .expect(403);
}
