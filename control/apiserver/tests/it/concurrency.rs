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
