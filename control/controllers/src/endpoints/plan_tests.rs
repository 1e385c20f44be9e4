use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

fn service(spec: Value) -> Service {
    serde_json::from_value(
        json!({ "metadata": { "name": "web", "namespace": "default", "uid": "s",
        "labels": { "team": "a" } }, "spec": spec }),
    )
    .expect("a service")
}

fn plain() -> Service {
    service(
        json!({ "selector": { "app": "web" }, "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"],
        "ports": [ { "name": "http", "port": 80, "targetPort": 8080 } ] }),
    )
}

fn target(name: &str, ip: &str, ready: bool, extra: Value) -> Target {
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "default", "uid": name },
        "spec": { "nodeName": "n1", "containers": [ { "name": "c", "ports": [ { "name": "web", "containerPort": 9000 } ] } ] },
        "status": { "phase": "Running", "podIP": ip, "podIPs": [ { "ip": ip } ],
            "conditions": [ { "type": "Ready", "status": if ready { "True" } else { "False" } } ] },
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        for (inner, value) in value.as_object().into_iter().flatten() {
            pod[key][inner] = value.clone();
        }
    }
    Target {
        pod: Arc::new(serde_json::from_value(pod).expect("a pod")),
        zone: Some("z1".into()),
    }
}

/// Applies the writes to the slices, as the API server would.
fn apply(
    service: &Service,
    targets: &[Target],
    slices: &mut Vec<Arc<EndpointSlice>>,
    number: &mut u32,
) {
    let writes = plan_slices(service, targets, slices, now());
    for write in writes {
        match write {
            SliceWrite::Create(mut slice) => {
                *number += 1;
                slice.metadata.name = Some(format!("web-{number:03}"));
                slices.push(Arc::new(*slice));
            }
            SliceWrite::Update(slice) => {
                let old = slices
                    .iter_mut()
                    .find(|old| old.metadata.name == slice.metadata.name)
                    .expect("known");
                *old = Arc::new(*slice);
            }
            SliceWrite::Delete(slice) => {
                slices.retain(|old| old.metadata.name != slice.metadata.name)
            }
        }
    }
}

fn one(service: &Service, targets: &[Target]) -> EndpointSlice {
    let mut writes = plan_slices(service, targets, &[], now());
    assert_eq!(writes.len(), 1, "{writes:?}");
    match writes.remove(0) {
        SliceWrite::Create(slice) => *slice,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_slice_says_where_and_in_what_state() {
    let leaving = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    let targets = [
        target("a", "10.0.0.1", true, json!({})),
        target("b", "10.0.0.2", false, json!({})),
        target("c", "10.0.0.3", true, leaving),
        target(
            "d",
            "10.0.0.4",
            true,
            json!({ "status": { "phase": "Succeeded" } }),
        ),
    ];
    let slice = one(&plain(), &targets);
    let states: Vec<_> = slice
        .endpoints
        .iter()
        .flatten()
        .map(|endpoint| {
            let conditions = endpoint.conditions.clone().expect("has some");
            (
                endpoint.addresses[0].as_str(),
                conditions.ready,
                conditions.serving,
                conditions.terminating,
            )
        })
        .collect();
    assert_eq!(
        states,
        [
            ("10.0.0.1", Some(true), Some(true), Some(false)),
            ("10.0.0.2", Some(false), Some(false), Some(false)),
            ("10.0.0.3", Some(false), Some(true), Some(true)),
        ]
    );
    let labels = slice.metadata.labels.expect("labelled");
    assert_eq!(labels.get(SERVICE_NAME).map(String::as_str), Some("web"));
    assert_eq!(labels.get("team").map(String::as_str), Some("a"));
    let port = &slice.ports.expect("has ports")[0];
    assert_eq!(
        (port.name.as_deref(), port.port, port.protocol.as_deref()),
        (Some("http"), Some(8080), Some("TCP"))
    );
    let first = &slice.endpoints.expect("has some")[0];
    assert_eq!(
        (first.zone.as_deref(), first.node_name.as_deref()),
        (Some("z1"), Some("n1"))
    );
}

#[test]
fn named_ports_differ_by_pod() {
    let service = service(
        json!({ "selector": { "app": "web" }, "ports": [ { "port": 80, "targetPort": "web" } ] }),
    );
    let other = json!({ "spec": { "containers": [ { "name": "c", "ports": [ { "name": "web", "containerPort": 9001 } ] } ] } });
    let targets = [
        target("a", "10.0.0.1", true, json!({})),
        target("b", "10.0.0.2", true, other),
    ];
    let writes = plan_slices(&service, &targets, &[], now());
    let mut ports: Vec<_> = writes
        .iter()
        .map(|write| match write {
            SliceWrite::Create(slice) => slice.ports.as_ref().and_then(|ports| ports[0].port),
            other => panic!("{other:?}"),
        })
        .collect();
    ports.sort();
    assert_eq!(ports, [Some(9000), Some(9001)]);
}

#[test]
fn no_endpoints_is_an_empty_slice_and_dual_stack_is_two() {
    assert!(
        one(&plain(), &[])
            .endpoints
            .is_some_and(|endpoints| endpoints.is_empty())
    );
    let dual = service(
        json!({ "selector": { "app": "web" }, "ipFamilies": ["IPv6", "IPv4"], "ports": [ { "port": 80 } ] }),
    );
    let both = json!({ "status": { "podIPs": [ { "ip": "10.0.0.1" }, { "ip": "fd00::1" } ] } });
    let writes = plan_slices(&dual, &[target("a", "10.0.0.1", true, both)], &[], now());
    assert_eq!(writes.len(), 2);
}

#[test]
fn headless_pods_have_names_and_unready_ones_can_be_published() {
    let headless = service(
        json!({ "selector": { "app": "web" }, "clusterIP": "None", "publishNotReadyAddresses": true }),
    );
    let named = json!({ "spec": { "hostname": "web-0", "subdomain": "web" } });
    let slice = one(&headless, &[target("a", "10.0.0.1", false, named)]);
    let endpoint = &slice.endpoints.expect("has one")[0];
    assert_eq!(endpoint.hostname.as_deref(), Some("web-0"));
    assert_eq!(
        endpoint
            .conditions
            .as_ref()
            .and_then(|conditions| conditions.ready),
        Some(true)
    );
    assert!(
        slice
            .metadata
            .labels
            .is_some_and(|labels| labels.contains_key(HEADLESS))
    );
}

#[test]
fn changes_touch_as_few_slices_as_possible() {
    let service = plain();
    let mut number = 0;
    let mut slices = Vec::new();
    let pods = |range: std::ops::Range<u32>, unready: Option<u32>| -> Vec<Target> {
        range
            .map(|index| {
                let ip = format!("10.0.{}.{}", index / 200, index % 200 + 1);
                target(
                    &format!("p{index:03}"),
                    &ip,
                    Some(index) != unready,
                    json!({}),
                )
            })
            .collect()
    };
    apply(&service, &pods(0..250, None), &mut slices, &mut number);
    let sizes = |slices: &[Arc<EndpointSlice>]| -> Vec<usize> {
        let mut sizes: Vec<_> = slices
            .iter()
            .map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len))
            .collect();
        sizes.sort();
        sizes
    };
    assert_eq!(sizes(&slices), [50, 100, 100]);
    assert!(
        plan_slices(&service, &pods(0..250, None), &slices, now()).is_empty(),
        "settled"
    );
    assert_eq!(
        plan_slices(&service, &pods(0..250, Some(7)), &slices, now()).len(),
        1,
        "one became unready"
    );
    assert_eq!(
        plan_slices(&service, &pods(0..260, None), &slices, now()).len(),
        1,
        "ten more"
    );
    apply(&service, &pods(0..10, None), &mut slices, &mut number);
    assert_eq!(sizes(&slices), [10]);
    apply(&service, &[], &mut slices, &mut number);
    assert_eq!(sizes(&slices), [0], "a placeholder stays");
    apply(&service, &pods(0..3, None), &mut slices, &mut number);
    assert_eq!(sizes(&slices), [3]);
}

#[test]
fn endpoints_group_addresses_by_ports() {
    let targets = [
        target("b", "10.0.0.2", true, json!({})),
        target("a", "10.0.0.1", true, json!({})),
        target("c", "10.0.0.3", false, json!({})),
        target(
            "d",
            "10.0.0.4",
            true,
            json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
        ),
    ];
    let endpoints = plan_endpoints(&plain(), &targets, None, now()).expect("to be created");
    let subsets = endpoints.subsets.clone().expect("has some");
    assert_eq!(subsets.len(), 1);
    let ips = |addresses: &Option<Vec<EndpointAddress>>| -> Vec<String> {
        addresses
            .iter()
            .flatten()
            .map(|address| address.ip.clone())
            .collect()
    };
    assert_eq!(ips(&subsets[0].addresses), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(ips(&subsets[0].not_ready_addresses), ["10.0.0.3"]);
    assert!(
        plan_endpoints(&plain(), &targets, Some(&endpoints), now()).is_none(),
        "settled"
    );
    let empty = plan_endpoints(&plain(), &[], None, now()).expect("exists even if empty");
    assert_eq!(empty.subsets.map(|subsets| subsets.len()), Some(0));
}
