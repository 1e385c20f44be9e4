//! From a Service and its EndpointSlices to what the datapath should have. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use skep_datapath::services::{Endpoint, Forwarding, FrontendAddress, ServicePort};

use crate::endpoints::{Endpoint as SliceEndpoint, Slice, Word, protocol_name};
use crate::services::{Kind, Port, Service};

/// What of this node the choice of endpoints depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    pub name: String,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// The cluster DNS address, served by the agent itself on port 53.
    pub cluster_dns: Option<IpAddr>,
    /// Of Services that do not say.
    pub forwarding: Forwarding,
}

/// What one Service should be in the datapath.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// By a name that stays the same as long as it is the same port of the same Service.
    pub ports: BTreeMap<String, ServicePort>,
    pub health: Option<HealthPlan>,
}

/// What to answer on `spec.healthCheckNodePort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPlan {
    pub port: u16,
    pub local_endpoints: usize,
}

/// # Guarantees
/// A function of its arguments; equal inputs in another order give an equal plan.
pub fn plan_service(service: &Service, slices: &[Arc<Slice>], node: &NodeView) -> ServicePlan {
    let mut plan = ServicePlan::default();
    if service.is_served_by_another_proxy || service.kind == Kind::ExternalName {
        return plan;
    }
    let (namespace, name) = (service.namespace(), service.name());
    let forwarding = service.forwarding.unwrap_or(node.forwarding);
    let mut local_ready = BTreeSet::new();
    for &cluster_ip in &service.ips {
        let family = if cluster_ip.is_ipv4() { "ipv4" } else { "ipv6" };
        for port in &service.ports {
            let endpoints = endpoints_of(slices, port, &cluster_ip, node);
            local_ready.extend(
                endpoints
                    .iter()
                    .filter(|endpoint| endpoint.local && endpoint.is_ready())
                    .map(|endpoint| endpoint.ip),
            );
            let frontends = frontends_of(service, port, cluster_ip, node);
            let base = format!(
                "{namespace}/{name}:{}/{}/{family}",
                port.name,
                protocol_name(port.protocol)
            );
            for (suffix, wanted) in plan_port(service, port.protocol, &frontends, &endpoints, node)
            {
                let wanted = ServicePort {
                    forwarding,
                    ..wanted
                };
                plan.ports.insert(format!("{base}{suffix}"), wanted);
            }
        }
    }
    let port = service.health_check_node_port();
    if port != 0 && service.kind == Kind::LoadBalancer && service.external_local {
        plan.health = Some(HealthPlan {
            port,
            local_endpoints: local_ready.len(),
        });
    }
    plan
}

#[derive(Clone, Copy, Debug)]
struct Candidate<'a> {
    ip: IpAddr,
    port: u16,
    local: bool,
    endpoint: SliceEndpoint<'a>,
}

impl<'a> Candidate<'a> {
    /// Zones whose clients it is meant for.
    fn zones(&self) -> &'a [Word] {
        self.endpoint.hints().0
    }

    /// Nodes whose clients it is meant for.
    fn nodes(&self) -> &'a [Word] {
        self.endpoint.hints().1
    }

    fn is_ready(&self) -> bool {
        self.endpoint.is_ready()
    }

    /// Still serves, but on its way out.
    fn is_draining(&self) -> bool {
        self.endpoint.is_serving() && self.endpoint.is_terminating()
    }
}

fn plan_port(
    service: &Service,
    protocol: u8,
    frontends: &[FrontendAddress],
    candidates: &[Candidate<'_>],
    node: &NodeView,
) -> Vec<(&'static str, ServicePort)> {
    let cluster = usable(candidates, |_| true, Some(node));
    let local = usable(candidates, |candidate| candidate.local, None);
    let wanted = |frontends: Vec<FrontendAddress>, internal: &[Endpoint]| ServicePort {
        protocol,
        // All nodes choose the same backend for a connection, whichever of them it comes to.
        maglev: service.maglev && frontends.iter().any(|frontend| frontend.external),
        frontends,
        internal: internal.to_vec(),
        external: if service.external_local {
            local.clone()
        } else {
            cluster.clone()
        },
        affinity: service.affinity(),
        external_local: service.external_local,
        source_ranges: service.source_ranges().to_vec(),
        ..ServicePort::default()
    };
    let (external, internal): (Vec<_>, Vec<_>) = frontends
        .iter()
        .copied()
        .partition(|frontend| frontend.external);
    if !service.internal_local {
        let all = internal.into_iter().chain(external).collect();
        return vec![("", wanted(all, &cluster))];
    }
    // internalTrafficPolicy is about the ClusterIP alone: clients inside reach external addresses
    // through every endpoint (KEP-2086).
    let mut ports = vec![("", wanted(internal, &local))];
    if !external.is_empty() {
        ports.push(("/external", wanted(external, &cluster)));
    }
    ports
}

/// The endpoints that traffic may go to: ready ones, or when there are none, those that still
/// serve while they terminate (KEP-1669). Hints apply to the ready ones (KEP-2433, KEP-3015).
fn usable(
    candidates: &[Candidate<'_>],
    filter: impl Fn(&Candidate<'_>) -> bool,
    topology: Option<&NodeView>,
) -> Vec<Endpoint> {
    let ready: Vec<&Candidate<'_>> = candidates
        .iter()
        .filter(|candidate| candidate.is_ready() && filter(candidate))
        .collect();
    let chosen = if ready.is_empty() {
        candidates
            .iter()
            .filter(|candidate| candidate.is_draining() && filter(candidate))
            .collect()
    } else {
        match topology {
            Some(node) => nearest(ready, node),
            None => ready,
        }
    };
    chosen
        .into_iter()
        .map(|candidate| Endpoint {
            ip: candidate.ip,
            port: candidate.port,
            local: candidate.local,
        })
        .collect()
}

/// Hints count only if every ready endpoint has them, and never leave a client without endpoint.
fn nearest<'a, 'b>(ready: Vec<&'a Candidate<'b>>, node: &NodeView) -> Vec<&'a Candidate<'b>> {
    let own = Word::of(&node.name);
    let for_node = |candidate: &&Candidate<'_>| candidate.nodes().contains(&own);
    if ready.iter().all(|candidate| !candidate.nodes().is_empty()) && ready.iter().any(for_node) {
        return ready.into_iter().filter(for_node).collect();
    }
    let Some(zone) = node.zone.as_deref().map(Word::of) else {
        return ready;
    };
    let for_zone = |candidate: &&Candidate<'_>| candidate.zones().contains(&zone);
    if ready.iter().all(|candidate| !candidate.zones().is_empty()) && ready.iter().any(for_zone) {
        return ready.into_iter().filter(for_zone).collect();
    }
    ready
}

fn endpoints_of<'a>(
    slices: &'a [Arc<Slice>],
    port: &Port,
    cluster_ip: &IpAddr,
    node: &NodeView,
) -> Vec<Candidate<'a>> {
    let own = Word::of(&node.name);
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for slice in slices
        .iter()
        .filter(|slice| slice.is_v4(cluster_ip.is_ipv4()))
    {
        let number = slice.ports.iter().find_map(|slice_port| {
            let same = slice_port.name == port.name && slice_port.protocol == port.protocol;
            same.then_some(slice_port.number).flatten()
        });
        let Some(number) = number else {
            continue;
        };
        candidates.extend(slice.endpoints().map(|endpoint| Candidate {
            ip: endpoint.ip,
            port: number,
            local: endpoint.node() == Some(own),
            endpoint,
        }));
    }
    // While slices are being rearranged an endpoint can be in two: ready anywhere counts.
    candidates.sort_by_key(|candidate| (candidate.ip, candidate.port, !candidate.is_ready()));
    candidates.dedup_by_key(|candidate| (candidate.ip, candidate.port));
    candidates
}

fn frontends_of(
    service: &Service,
    port: &Port,
    cluster_ip: IpAddr,
    node: &NodeView,
) -> Vec<FrontendAddress> {
    let number = port.number;
    let same_family = |ip: &IpAddr| ip.is_ipv4() == cluster_ip.is_ipv4();
    let external = |ip: IpAddr, restricted| FrontendAddress {
        ip,
        port: number,
        external: true,
        restricted,
    };
    let mut frontends = Vec::new();
    // The agent's own DNS server answers there.
    if !(node.cluster_dns == Some(cluster_ip) && number == 53) {
        frontends.push(FrontendAddress {
            ip: cluster_ip,
            port: number,
            external: false,
            restricted: false,
        });
    }
    if port.node_port != 0 {
        let ip = if cluster_ip.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        frontends.push(FrontendAddress {
            ip,
            port: port.node_port,
            external: true,
            restricted: false,
        });
    }
    let external_ips = service.external_ips().iter().copied();
    frontends.extend(
        external_ips
            .filter(same_family)
            .map(|ip| external(ip, false)),
    );
    if service.kind == Kind::LoadBalancer {
        let vips = service.ingress().iter().filter(|ingress| ingress.is_vip);
        let ips = vips.map(|ingress| ingress.ip).filter(same_family);
        frontends.extend(ips.map(|ip| external(ip, true)));
    }
    frontends.sort();
    frontends.dedup();
    frontends
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::time::Duration;

    use ipnet::IpNet;
    use serde_json::{Value, json};

    use super::*;

    fn node() -> NodeView {
        NodeView {
            name: "node1".into(),
            zone: Some("a".into()),
            cluster_dns: Some("10.96.0.10".parse().unwrap()),
            forwarding: Forwarding::Auto,
        }
    }

    fn service(spec: Value) -> Service {
        described(json!({}), spec, json!({}))
    }

    /// With more metadata, and a status.
    fn described(more: Value, spec: Value, status: Value) -> Service {
        let mut metadata = json!({"namespace": "default", "name": "web"});
        for (key, value) in more.as_object().unwrap() {
            metadata[key] = value.clone();
        }
        let mut base = json!({
            "type": "ClusterIP", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        });
        for (key, value) in spec.as_object().unwrap() {
            base[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": metadata, "spec": base, "status": status}))
            .unwrap()
    }

    fn endpoint(ip: &str, node: &str, conditions: Value) -> Value {
        json!({"addresses": [ip], "nodeName": node, "conditions": conditions})
    }

    fn slice(endpoints: Vec<Value>) -> Vec<Arc<Slice>> {
        vec![Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": "web-1", "namespace": "default"},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": endpoints,
            }))
            .unwrap(),
        )]
    }

    fn ready(ip: &str, node: &str) -> Value {
        endpoint(ip, node, json!({"ready": true}))
    }

    fn ips(endpoints: &[Endpoint]) -> Vec<String> {
        endpoints
            .iter()
            .map(|endpoint| endpoint.ip.to_string())
            .collect()
    }

    #[track_caller]
    fn check(spec: Value, endpoints: Vec<Value>, internal: &[&str], external: &[&str]) {
        let plan = plan_service(&service(spec), &slice(endpoints), &node());
        let port = &plan.ports["default/web:http/tcp/ipv4"];
        assert_eq!(ips(&port.internal), internal, "internal");
        assert_eq!(ips(&port.external), external, "external");
    }

    #[test]
    fn ready_endpoints_serve() {
        check(
            json!({}),
            vec![
                ready("10.244.0.2", "node1"),
                endpoint(
                    "10.244.0.3",
                    "node1",
                    json!({"ready": false, "serving": false}),
                ),
                endpoint("10.244.1.4", "node2", json!({})),
            ],
            &["10.244.0.2", "10.244.1.4"],
            &["10.244.0.2", "10.244.1.4"],
        );
    }

    #[test]
    fn terminating_endpoints_serve_when_nothing_else_does() {
        let draining = json!({"ready": false, "serving": true, "terminating": true});
        let gone = json!({"ready": false, "serving": false, "terminating": true});
        check(
            json!({}),
            vec![
                endpoint("10.244.0.2", "node1", draining.clone()),
                endpoint("10.244.0.3", "node1", gone),
            ],
            &["10.244.0.2"],
            &["10.244.0.2"],
        );
        check(
            json!({}),
            vec![
                endpoint("10.244.0.2", "node1", draining),
                ready("10.244.0.4", "node1"),
            ],
            &["10.244.0.4"],
            &["10.244.0.4"],
        );
    }

    #[test]
    fn traffic_policies_keep_to_the_node() {
        let endpoints = || vec![ready("10.244.0.2", "node1"), ready("10.244.1.2", "node2")];
        check(
            json!({"externalTrafficPolicy": "Local", "type": "NodePort"}),
            endpoints(),
            &["10.244.0.2", "10.244.1.2"],
            &["10.244.0.2"],
        );
        check(
            json!({"internalTrafficPolicy": "Local"}),
            endpoints(),
            &["10.244.0.2"],
            &["10.244.0.2", "10.244.1.2"],
        );
    }

    #[test]
    fn internal_policy_is_about_the_cluster_ip_alone() {
        let spec = json!({
            "internalTrafficPolicy": "Local", "type": "NodePort",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        });
        let endpoints = vec![ready("10.244.0.2", "node1"), ready("10.244.1.2", "node2")];
        let plan = plan_service(&service(spec), &slice(endpoints), &node());
        let external = &plan.ports["default/web:http/tcp/ipv4/external"];
        assert_eq!(ips(&external.internal), ["10.244.0.2", "10.244.1.2"]);
        assert_eq!(external.frontends.len(), 1);
        assert_eq!(external.frontends[0].port, 30080);
        assert!(external.frontends[0].ip.is_unspecified());
    }

    #[test]
    fn hints_choose_the_zone_only_if_all_have_them() {
        let hinted = |ip: &str, zone: &str| {
            let mut endpoint = ready(ip, "node2");
            endpoint["hints"] = json!({"forZones": [{"name": zone}]});
            endpoint
        };
        check(
            json!({}),
            vec![hinted("10.244.1.2", "a"), hinted("10.244.1.3", "b")],
            &["10.244.1.2"],
            &["10.244.1.2"],
        );
        check(
            json!({}),
            vec![hinted("10.244.1.2", "a"), ready("10.244.1.3", "node2")],
            &["10.244.1.2", "10.244.1.3"],
            &["10.244.1.2", "10.244.1.3"],
        );
        check(
            json!({}),
            vec![hinted("10.244.1.2", "b"), hinted("10.244.1.3", "b")],
            &["10.244.1.2", "10.244.1.3"],
            &["10.244.1.2", "10.244.1.3"],
        );
    }

    #[test]
    fn every_address_is_a_frontend() {
        let spec = json!({
            "type": "LoadBalancer", "externalIPs": ["198.51.100.7"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
            "loadBalancerSourceRanges": ["203.0.113.0/24"],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        });
        let ingress = json!([{"ip": "198.51.100.9"}, {"ip": "198.51.100.10", "ipMode": "Proxy"}]);
        let status = json!({"loadBalancer": {"ingress": ingress}});
        let object = described(json!({}), spec, status);
        let plan = plan_service(&object, &[], &node());
        let port = &plan.ports["default/web:http/tcp/ipv4"];
        let addresses: Vec<(String, u16, bool, bool)> = port
            .frontends
            .iter()
            .map(|f| (f.ip.to_string(), f.port, f.external, f.restricted))
            .collect();
        assert_eq!(
            addresses,
            [
                ("10.96.0.5".to_string(), 80, false, false),
                ("0.0.0.0".to_string(), 30080, true, false),
                ("198.51.100.7".to_string(), 80, true, false),
                ("198.51.100.9".to_string(), 80, true, true),
            ]
        );
        assert_eq!(port.affinity, Some(Duration::from_secs(60)));
        assert_eq!(
            port.source_ranges,
            ["203.0.113.0/24".parse::<IpNet>().unwrap()]
        );
    }

    #[test]
    fn some_services_are_not_ours() {
        for spec in [
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            json!({"type": "ExternalName"}),
        ] {
            assert_eq!(
                plan_service(&service(spec), &[], &node()),
                ServicePlan::default()
            );
        }
        let labels = json!({"labels": {"service.kubernetes.io/service-proxy-name": "other"}});
        let object = described(labels, json!({}), json!({}));
        assert_eq!(plan_service(&object, &[], &node()), ServicePlan::default());
    }

    #[test]
    fn the_agent_answers_dns_itself() {
        let object = service(json!({
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "metrics", "port": 9153}],
        }));
        let plan = plan_service(&object, &[], &node());
        assert!(plan.ports["default/web:dns/udp/ipv4"].frontends.is_empty());
        assert_eq!(
            plan.ports["default/web:metrics/tcp/ipv4"].frontends.len(),
            1
        );
    }

    #[test]
    fn clients_outside_are_balanced_by_maglev_unless_told_otherwise() {
        let check = |kind: &str, balance: Option<&str>, expected: bool| {
            let spec = match kind {
                "ClusterIP" => json!({}),
                _ => json!({
                    "type": kind, "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
                }),
            };
            let metadata = match balance {
                Some(name) => json!({"annotations": {"skep.dev/load-balancing": name}}),
                None => json!({}),
            };
            let object = described(metadata, spec, json!({}));
            let plan = plan_service(&object, &slice(vec![ready("10.244.0.2", "n")]), &node());
            assert_eq!(plan.ports["default/web:http/tcp/ipv4"].maglev, expected);
        };
        check("NodePort", None, true);
        check("NodePort", Some("maglev"), true);
        check("NodePort", Some("random"), false);
        check("ClusterIP", None, false);
    }

    #[test]
    fn health_counts_local_ready_endpoints() {
        let object = service(json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
        }));
        let endpoints = vec![ready("10.244.0.2", "node1"), ready("10.244.1.2", "node2")];
        let plan = plan_service(&object, &slice(endpoints), &node());
        assert_eq!(
            plan.health,
            Some(HealthPlan {
                port: 32000,
                local_endpoints: 1
            })
        );
    }

    #[test]
    fn forwarding_is_the_services_choice_then_the_clusters() {
        let mode = |annotation: Option<&str>, cluster: Forwarding| {
            let metadata = match annotation {
                Some(mode) => json!({"annotations": {"skep.dev/forwarding-mode": mode}}),
                None => json!({}),
            };
            let object = described(metadata, json!({}), json!({}));
            let view = NodeView {
                forwarding: cluster,
                ..node()
            };
            plan_service(&object, &[], &view).ports["default/web:http/tcp/ipv4"].forwarding
        };
        let (auto, snat, dsr) = (
            Forwarding::Auto,
            Forwarding::SourceNat,
            Forwarding::DirectReturn,
        );
        for cluster in [auto, snat, dsr] {
            assert_eq!(mode(None, cluster), cluster);
            assert_eq!(mode(Some("unheard-of"), cluster), cluster);
            assert_eq!(mode(Some("auto"), cluster), auto);
            assert_eq!(mode(Some("snat"), cluster), snat);
            assert_eq!(mode(Some("dsr"), cluster), dsr);
        }
    }
}
