//! What subresources ask of names, UIDs and versions in the objects posted to them.

use serde_json::{Value, json};

use crate::cluster::Cluster;

const CORE: &str = "/api/v1/namespaces/default";

fn pod() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[tokio::test]
async fn a_binding_names_its_pod() {
    let cluster = Cluster::start().await;
    cluster
        .post(&format!("{CORE}/pods"), pod())
        .await
        .expect(201);
    let target = json!({"name": "n"});
    for (path, metadata, code, why) in [
        (
            "pods/p/binding",
            json!({"name": "q"}),
            400,
            "name in URL does not match name in Binding object",
        ),
        ("bindings", json!({}), 400, "Name parameter required."),
        (
            "pods/q/binding",
            json!({"name": "q", "uid": "u"}),
            404,
            "pods \"q\" not found",
        ),
        (
            "pods/p/eviction",
            json!({"name": "p", "namespace": "other"}),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
    ] {
        let body = match path {
            "pods/p/eviction" => json!({"metadata": metadata}),
            _ => json!({"metadata": metadata, "target": target}),
        };
        let answer = cluster.post(&format!("{CORE}/{path}"), body).await;
        assert_eq!(answer.json()["message"], why, "{path}");
        assert_eq!(answer.code, code, "{path}");
    }
    let stale = json!({"metadata": {"name": "p", "resourceVersion": "1"}, "target": target});
    let path = format!("{CORE}/pods/p/binding");
    let status = cluster.post(&path, stale).await.expect(409);
    let why = status["message"].as_str().expect("a message");
    assert!(
        why.contains("Precondition failed: ResourceVersion in precondition: 1, ResourceVersion in object meta: "),
        "{why}"
    );
}

#[tokio::test]
async fn a_token_is_of_the_account_that_is_named() {
    let cluster = Cluster::start().await;
    let accounts = format!("{CORE}/serviceaccounts");
    let account = json!({"metadata": {"name": "sa"}});
    cluster.post(&accounts, account).await.expect(201);
    let path = format!("{accounts}/sa/token");
    let other = json!({"metadata": {"name": "other"}, "spec": {}});
    assert_eq!(
        cluster.post(&path, other).await.expect(422)["message"],
        "TokenRequest.authentication.k8s.io \"sa\" is invalid: metadata.name: Invalid value: \"other\": must match the \
         service account name if specified"
    );
}
