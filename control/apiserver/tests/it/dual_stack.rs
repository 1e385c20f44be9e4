//! Services of two address families: what is given out, upgrades, downgrades, and what is given back.

use serde_json::{Value, json};
use skep_apiserver::services::{Allocators, Range};

use crate::cluster::Cluster;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

async fn cluster(ranges: &[&str]) -> Cluster {
    let ranges = ranges.iter().map(|range| range.parse().expect("a range"));
    let cluster = Cluster::with_services(Allocators {
        ranges: ranges.map(Range::new).collect(),
        ..Allocators::default()
    });
    cluster.await
}

fn service(name: &str, mut spec: Value) -> Value {
    spec["ports"] = json!([{"port": 80}]);
    json!({"metadata": {"name": name}, "spec": spec})
}

/// Policy, families, and the families of the addresses.
#[track_caller]
fn check(service: &Value, policy: &str, families: &[&str]) {
    let spec = &service["spec"];
    assert_eq!(spec["ipFamilyPolicy"], policy, "{spec}");
    assert_eq!(spec["ipFamilies"], json!(families), "{spec}");
    let ips = spec["clusterIPs"].as_array().expect("addresses");
    let of = ips.iter().map(|ip| match ip.as_str() {
        Some(ip) if ip.starts_with("10.9.") => "IPv4",
        Some(ip) if ip.starts_with("fd00:9::") => "IPv6",
        other => panic!("{other:?}"),
    });
    assert_eq!(of.collect::<Vec<_>>(), families, "{spec}");
    assert_eq!(spec["clusterIP"], ips[0], "{spec}");
}

/// The addresses that are held for a Service, sorted.
async fn held(cluster: &Cluster, service: &str) -> Vec<String> {
    let list = cluster.get(ADDRESSES).await.expect(200);
    let items = list["items"].as_array().expect("items").iter();
    let of = items.filter(|item| item["spec"]["parentRef"]["name"] == service);
    let mut names: Vec<String> = of
        .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    let mut texts: Vec<String> = list
        .filter_map(|text| text.as_str().map(str::to_owned))
        .collect();
    texts.sort();
    texts
}

#[tokio::test]
async fn families_are_given_as_asked() {
    let cluster = cluster(&["10.9.0.0/24", "fd00:9::/112"]).await;
    let create = async |name: &str, spec: Value| {
        cluster
            .post(SERVICES, service(name, spec))
            .await
            .expect(201)
    };
    let made = create("default", json!({})).await;
    check(&made, "SingleStack", &["IPv4"]);
    let made = create("six", json!({"ipFamilies": ["IPv6"]})).await;
    check(&made, "SingleStack", &["IPv6"]);
    let made = create("prefer", json!({"ipFamilyPolicy": "PreferDualStack"})).await;
    check(&made, "PreferDualStack", &["IPv4", "IPv6"]);
    assert_eq!(
        held(&cluster, "prefer").await,
        texts(&made["spec"]["clusterIPs"])
    );
    let spec = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]});
    let made = create("require", spec).await;
    check(&made, "RequireDualStack", &["IPv6", "IPv4"]);
    // Addresses bring their families.
    let spec = json!({
        "ipFamilyPolicy": "PreferDualStack", "clusterIP": "fd00:9::77", "clusterIPs": ["fd00:9::77"],
    });
    let made = create("asked", spec).await;
    check(&made, "PreferDualStack", &["IPv6", "IPv4"]);
    assert_eq!(made["spec"]["clusterIP"], "fd00:9::77");
    let taken = json!({"clusterIP": "fd00:9::77"});
    let refused = cluster.post(SERVICES, service("taken", taken)).await;
    let refused = refused.expect(422);
    assert_eq!(
        refused["details"]["causes"][0]["field"], "spec.clusterIPs",
        "{refused}"
    );
    // Headless ones have families and no addresses.
    let made = create("headless", json!({"clusterIP": "None"})).await;
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(made["spec"]["ipFamilyPolicy"], "RequireDualStack");
    assert_eq!(made["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(held(&cluster, "headless").await, [""; 0]);
    let refused = cluster
        .post(
            SERVICES,
            service("twice", json!({"ipFamilies": ["IPv4", "IPv6"]})),
        )
        .await
        .expect(422);
    assert_eq!(
        refused["details"]["causes"][0]["field"],
        "spec.ipFamilyPolicy"
    );
}

#[tokio::test]
async fn a_second_family_comes_and_goes() {
    let cluster = cluster(&["10.9.0.0/24", "fd00:9::/112"]).await;
    let path = format!("{SERVICES}/a");
    let made = cluster
        .post(SERVICES, service("a", json!({"type": "NodePort"})))
        .await
        .expect(201);
    check(&made, "SingleStack", &["IPv4"]);
    let ports = made["spec"]["ports"].clone();
    let policy = |policy: &str| json!({"spec": {"ipFamilyPolicy": policy}});
    let up = cluster.merge(&path, policy("RequireDualStack")).await;
    let up = up.expect(200);
    check(&up, "RequireDualStack", &["IPv4", "IPv6"]);
    assert_eq!(up["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    assert_eq!(up["spec"]["ports"], ports);
    assert_eq!(held(&cluster, "a").await, texts(&up["spec"]["clusterIPs"]));

    // The first family stays what it is.
    let turned = json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}});
    let refused = cluster.merge(&path, turned).await.expect(422);
    let field = &refused["details"]["causes"][0]["field"];
    assert_eq!(field, "spec.clusterIPs[0]", "{refused}");
    let fewer = json!({"spec": {"clusterIPs": [made["spec"]["clusterIP"]]}});
    let refused = cluster.merge(&path, fewer).await.expect(422);
    let field = &refused["details"]["causes"][0]["field"];
    assert_eq!(field, "spec.ipFamilyPolicy", "{refused}");

    let down = cluster.merge(&path, policy("SingleStack")).await;
    let down = down.expect(200);
    check(&down, "SingleStack", &["IPv4"]);
    assert_eq!(down["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    assert_eq!(
        held(&cluster, "a").await,
        texts(&down["spec"]["clusterIPs"])
    );

    // What was given back can be had by another.
    let second = up["spec"]["clusterIPs"][1].clone();
    let again = service("b", json!({"clusterIP": second}));
    let again = cluster.post(SERVICES, again).await.expect(201);
    check(&again, "SingleStack", &["IPv6"]);

    let up = cluster.merge(&path, policy("PreferDualStack")).await;
    check(&up.expect(200), "PreferDualStack", &["IPv4", "IPv6"]);
    // Not a ClusterIP any more: everything goes back.
    let external = json!({"spec": {
        "type": "ExternalName", "externalName": "a.example.com", "clusterIP": null, "clusterIPs": null,
        "ipFamilies": null, "ipFamilyPolicy": null, "ports": [{"port": 80, "nodePort": null}],
    }});
    cluster.merge(&path, external).await.expect(200);
    assert_eq!(held(&cluster, "a").await, [""; 0]);
    cluster.delete(&path, Value::Null).await.expect(200);
}

#[tokio::test]
async fn one_range_gives_one_family() {
    let cluster = cluster(&["fd00:9::/112"]).await;
    let create = async |name: &str, spec: Value| cluster.post(SERVICES, service(name, spec)).await;
    let made = create("a", json!({})).await.expect(201);
    check(&made, "SingleStack", &["IPv6"]);
    let made = create("b", json!({"ipFamilyPolicy": "PreferDualStack"})).await;
    check(&made.expect(201), "PreferDualStack", &["IPv6"]);
    let refused = create("c", json!({"ipFamilyPolicy": "RequireDualStack"})).await;
    let refused = refused.expect(422);
    assert_eq!(
        refused["message"],
        "Service \"c\" is invalid: spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not \
         configured for dual-stack services"
    );
    let refused = create("d", json!({"ipFamilies": ["IPv4"]})).await;
    let refused = refused.expect(422);
    assert_eq!(
        refused["details"]["causes"][0]["field"],
        "spec.ipFamilies[0]"
    );
    // Nothing was taken by what was refused.
    assert_eq!(held(&cluster, "c").await, [""; 0]);
}
