//! Several API servers over one store.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use serde_json::{Value, json};
use skep_store::{Store, memory::MemoryStore};

use crate::cluster::{Cluster, MAPS, map};

const DEADLINE: Duration = Duration::from_secs(20);

/// Where the `kubernetes` Service leads to, by Endpoints and by EndpointSlices.
async fn led_to(cluster: &Cluster) -> [BTreeSet<SocketAddr>; 2] {
    let address = |ip: &Value, port: &Value| -> SocketAddr {
        let text = format!("{}:{port}", ip.as_str().expect("an address"));
        text.parse().expect("an address")
    };
    let each = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let path = "/api/v1/namespaces/default/endpoints/kubernetes";
    let endpoints = cluster.get(path).await.expect(200);
    let by_endpoints = each(&endpoints["subsets"]).into_iter().flat_map(|subset| {
        let addresses = each(&subset["addresses"]).into_iter();
        addresses.map(move |a| address(&a["ip"], &subset["ports"][0]["port"]))
    });
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let slices = cluster.get(path).await.expect(200);
    let by_slices = each(&slices["items"]).into_iter().flat_map(|slice| {
        let endpoints = each(&slice["endpoints"]).into_iter();
        endpoints.map(move |e| address(&e["addresses"][0], &slice["ports"][0]["port"]))
    });
    [by_endpoints.collect(), by_slices.collect()]
}

async fn expect_led_to(cluster: &Cluster, wanted: &[&str]) {
    let wanted: BTreeSet<SocketAddr> = wanted
        .iter()
        .map(|a| a.parse().expect("an address"))
        .collect();
    let mut last = Default::default();
    let seen = async {
        loop {
            last = led_to(cluster).await;
            if last.iter().all(|led_to| *led_to == wanted) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(DEADLINE, seen).await;
    assert!(in_time.is_ok(), "want {wanted:?}, have {last:?}");
}

#[tokio::test]
async fn the_kubernetes_service_leads_to_every_server_that_runs() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (one, two, other_port) = ("192.0.2.1:6443", "192.0.2.2:6443", "192.0.2.3:7443");
    let member = async |address: &str| {
        Cluster::member(store.clone(), address.parse().expect("an address")).await
    };
    let first = member(one).await;
    expect_led_to(&first, &[one]).await;
    let second = member(two).await;
    expect_led_to(&first, &[one, two]).await;
    let third = member(other_port).await;
    expect_led_to(&first, &[one, two, other_port]).await;
    third.server.drain();
    expect_led_to(&first, &[one, two]).await;
    second.server.drain();
    expect_led_to(&first, &[one]).await;
}

#[tokio::test]
async fn each_server_shows_what_another_wrote() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let member = async |address: &str| {
        Cluster::member(store.clone(), address.parse().expect("an address")).await
    };
    let (first, second) = (
        member("192.0.2.1:6443").await,
        member("192.0.2.2:6443").await,
    );
    for number in 0..20 {
        let (here, there) = match number % 2 {
            0 => (&first, &second),
            _ => (&second, &first),
        };
        let name = format!("m{number}");
        here.post(MAPS, map(&name)).await.expect(201);
        let path = format!("{MAPS}/{name}");
        let read = there.get(&path).await.expect(200);
        let mut stale = read.clone();
        stale["data"] = json!({"by": "there"});
        there.put(&path, stale.clone()).await.expect(200);
        // What the other server changed meanwhile is a conflict here too.
        here.put(&path, stale).await.expect(409);
    }
}
