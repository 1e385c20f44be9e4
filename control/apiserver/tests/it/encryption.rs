//! Encryption at rest, from the store's side and from a client's.

use std::sync::Arc;

use serde_json::{Value, json};
use skep_apiserver::encryption::Encryption;
use skep_store::{Store, memory::MemoryStore};

use crate::cluster::Cluster;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const KEY: &str = "/registry/core/secrets/default/a";
const OLD: &str =
    "{secretbox: {keys: [{name: old, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}]}}";
const BOTH: &str = "{aesgcm: {keys: [{name: new, secret: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=}]}}, \
    {secretbox: {keys: [{name: old, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}]}}, {identity: {}}";
const WRONG: &str =
    "{secretbox: {keys: [{name: old, secret: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=}]}}";

async fn cluster(store: &Arc<dyn Store>, providers: &str) -> Cluster {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
         resources: [{{resources: [secrets], providers: [{providers}]}}]"
    );
    let encryption = Encryption::parse(&text).expect("a configuration");
    Cluster::encrypted(store.clone(), Arc::new(encryption)).await
}

async fn starts_with(store: &Arc<dyn Store>, prefix: &str) {
    let entry = store.get(KEY).await.expect("a store").expect("an entry");
    let shown = String::from_utf8_lossy(&entry.value[..30.min(entry.value.len())]).into_owned();
    assert!(shown.starts_with(prefix), "{shown}");
}

#[tokio::test]
async fn keys_are_rotated_by_writing_again() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let secret = json!({"metadata": {"name": "a"}, "stringData": {"k": "v"}});
    let plain = cluster(&store, "{identity: {}}").await;
    plain.post(SECRETS, secret).await.expect(201);
    starts_with(&store, "{").await;
    drop(plain);

    let path = format!("{SECRETS}/a");
    for (providers, prefix) in [
        (
            format!("{OLD}, {{identity: {{}}}}"),
            "k8s:enc:secretbox:v1:old:",
        ),
        (BOTH.to_owned(), "k8s:enc:aesgcm:v1:new:"),
    ] {
        let cluster = cluster(&store, &providers).await;
        let read = cluster.get(&path).await.expect(200);
        assert_eq!(read["data"]["k"], "dg==");
        // What `kubectl get -o json | kubectl replace -f -` sends: nothing changes but the form at rest.
        cluster.put(&path, read).await.expect(200);
        starts_with(&store, prefix).await;
        // Now it is as it should be, and an equal object is not written.
        let read = cluster.get(&path).await.expect(200);
        let again = cluster.put(&path, read.clone()).await.expect(200);
        assert_eq!(
            again["metadata"]["resourceVersion"],
            read["metadata"]["resourceVersion"]
        );
    }
}

#[tokio::test]
async fn a_wrong_key_is_an_error_and_not_a_missing_object() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let right = cluster(&store, OLD).await;
    let secret = json!({"metadata": {"name": "a"}, "stringData": {"k": "v"}});
    right.post(SECRETS, secret.clone()).await.expect(201);
    drop(right);

    let wrong = cluster(&store, WRONG).await;
    for path in [
        format!("{SECRETS}/a"),
        SECRETS.to_owned(),
        "/api/v1/secrets".to_owned(),
    ] {
        let status = wrong.get(&path).await.expect(500);
        let message = status["message"].as_str().expect("a message");
        assert!(
            message.contains(&format!("unable to transform key {KEY:?}")),
            "{message}"
        );
    }
    wrong.post(SECRETS, secret).await.expect(500);
    wrong
        .delete(&format!("{SECRETS}/a"), Value::Null)
        .await
        .expect(500);
    wrong
        .get("/api/v1/namespaces/default/configmaps")
        .await
        .expect(200);
    let other = json!({"metadata": {"name": "b"}});
    wrong.post(SECRETS, other).await.expect(201);
    wrong.get(&format!("{SECRETS}/b")).await.expect(200);
}
