//! What the cluster domain answers: the Kubernetes DNS specification 1.1.0 over the informers'
//! caches. No I/O.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use skep_client::informer::BY_SERVICE;
use skep_client::{Informer, ObjectKey};

use super::reverse::Reverse;
use crate::endpoints::{Endpoint, Slice, protocol_name};
use crate::services::Service;

/// Short: an answer is only as old as this, and asking costs no network.
const TTL: u32 = 5;

#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Never empty.
    Records(Vec<Record>),
    /// The name exists, without records of this type.
    NoData,
    NoSuchName,
    /// Another zone: ask upstream.
    NotOurs,
}

/// The caches that names are read from.
#[derive(Clone)]
pub struct Zone {
    pub services: Informer<Service>,
    pub slices: Informer<Slice>,
    pub reverse: Arc<Reverse>,
    /// `cluster.local.`
    pub domain: Name,
}

impl Zone {
    pub fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        if let Some(ip) = reverse_address(name) {
            return self.answer_reverse(name, ip, kind);
        }
        if !self.domain.zone_of(name) {
            return Answer::NotOurs;
        }
        let labels: Vec<String> = name
            .iter()
            .take(name.num_labels().saturating_sub(self.domain.num_labels()) as usize)
            .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
            .collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] => self.apex(kind),
            ["dns-version"] => text(name, kind, "1.1.0"),
            ["svc" | "pod"] => Answer::NoData,
            [namespace, "svc"] => self.namespace(namespace),
            [service, namespace, "svc"] => self.service(name, service, namespace, kind),
            [port, protocol, service, namespace, "svc"]
                if port.starts_with('_') && protocol.starts_with('_') =>
            {
                self.ports(name, &port[1..], &protocol[1..], service, namespace, kind)
            }
            [protocol, _, _, "svc"] if protocol.starts_with('_') => Answer::NoData,
            [host, service, namespace, "svc"] => self.host(name, host, service, namespace, kind),
            [address, _, "pod"] => pod(name, address, kind),
            [_, "pod"] => Answer::NoData,
            _ => Answer::NoSuchName,
        }
    }

    /// The zone's own record, for answers without records (RFC 2308 §3).
    pub fn soa(&self) -> Record {
        let server = self.named("ns.dns");
        let contact = self.named("hostmaster");
        let soa = SOA::new(server, contact, 1, 7_200, 1_800, 86_400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    fn named(&self, relative: &str) -> Name {
        Name::from_str(relative)
            .and_then(|name| name.append_domain(&self.domain))
            .unwrap_or_else(|_| self.domain.clone())
    }

    fn apex(&self, kind: RecordType) -> Answer {
        match kind {
            RecordType::SOA => Answer::Records(vec![self.soa()]),
            RecordType::NS => {
                let server = RData::NS(NS(self.named("ns.dns")));
                Answer::Records(vec![Record::from_rdata(self.domain.clone(), TTL, server)])
            }
            _ => Answer::NoData,
        }
    }

    fn namespace(&self, namespace: &str) -> Answer {
        if self.services.in_namespace(namespace).is_empty() {
            Answer::NoSuchName
        } else {
            Answer::NoData
        }
    }

    fn find(&self, service: &str, namespace: &str) -> Option<Arc<Service>> {
        self.services.get(&ObjectKey::new(namespace, service))
    }

    fn slices_of(&self, service: &str, namespace: &str) -> Vec<Arc<Slice>> {
        self.slices
            .by_index(BY_SERVICE, &format!("{namespace}/{service}"))
    }

    fn service(&self, name: &Name, service: &str, namespace: &str, kind: RecordType) -> Answer {
        let Some(object) = self.find(service, namespace) else {
            return Answer::NoSuchName;
        };
        if let Some(target) = object.external_name() {
            let Ok(target) = Name::from_ascii(format!("{}.", target.trim_end_matches('.'))) else {
                return Answer::NoData;
            };
            return records(name, [RData::CNAME(CNAME(target))]);
        }
        if !object.ips.is_empty() {
            return addresses(name, &object.ips, kind);
        }
        // Headless: no endpoint, no name.
        let ips: Vec<IpAddr> = self
            .slices_of(service, namespace)
            .iter()
            .flat_map(|slice| ready_endpoints(slice))
            .map(|endpoint| endpoint.ip)
            .collect();
        if ips.is_empty() {
            Answer::NoSuchName
        } else {
            addresses(name, &ips, kind)
        }
    }

    /// One endpoint of a headless Service.
    fn host(
        &self,
        name: &Name,
        host: &str,
        service: &str,
        namespace: &str,
        kind: RecordType,
    ) -> Answer {
        let headless = self
            .find(service, namespace)
            .is_some_and(|object| object.is_headless);
        if !headless {
            return Answer::NoSuchName;
        }
        let ips: Vec<IpAddr> = self
            .slices_of(service, namespace)
            .iter()
            .flat_map(|slice| ready_endpoints(slice))
            .filter(|endpoint| host_label(*endpoint) == host)
            .map(|endpoint| endpoint.ip)
            .collect();
        if ips.is_empty() {
            Answer::NoSuchName
        } else {
            addresses(name, &ips, kind)
        }
    }

    fn ports(
        &self,
        name: &Name,
        port: &str,
        protocol: &str,
        service: &str,
        namespace: &str,
        kind: RecordType,
    ) -> Answer {
        let Some(object) = self.find(service, namespace) else {
            return Answer::NoSuchName;
        };
        let base = self.named(&format!("{service}.{namespace}.svc"));
        let mut found: Vec<RData> = Vec::new();
        let srv = |number: u16, target: Name| RData::SRV(SRV::new(0, 100, number, target));
        if object.is_headless {
            for slice in self.slices_of(service, namespace) {
                for slice_port in &slice.ports {
                    if !same_port(&slice_port.name, slice_port.protocol, port, protocol) {
                        continue;
                    }
                    let Some(number) = slice_port.number else {
                        continue;
                    };
                    for endpoint in ready_endpoints(&slice) {
                        let host = Name::from_ascii(host_label(endpoint))
                            .and_then(|host| host.append_domain(&base));
                        if let Ok(target) = host {
                            found.push(srv(number, target));
                        }
                    }
                }
            }
        } else {
            for own in &object.ports {
                if same_port(&own.name, own.protocol, port, protocol) {
                    found.push(srv(own.number, base.clone()));
                }
            }
        }
        match (found.is_empty(), kind) {
            (true, _) => Answer::NoSuchName,
            (false, RecordType::SRV | RecordType::ANY) => records(name, found),
            (false, _) => Answer::NoData,
        }
    }

    fn answer_reverse(&self, name: &Name, ip: IpAddr, kind: RecordType) -> Answer {
        let targets = self.reverse.names(ip);
        if targets.is_empty() {
            return Answer::NotOurs;
        }
        if !matches!(kind, RecordType::PTR | RecordType::ANY) {
            return Answer::NoData;
        }
        records(
            name,
            targets
                .iter()
                .map(|target| RData::PTR(PTR(self.named(target)))),
        )
    }
}

fn records(name: &Name, data: impl IntoIterator<Item = RData>) -> Answer {
    Answer::Records(
        data.into_iter()
            .map(|data| Record::from_rdata(name.clone(), TTL, data))
            .collect(),
    )
}

fn addresses(name: &Name, ips: &[IpAddr], kind: RecordType) -> Answer {
    let mut ips = ips.to_vec();
    ips.sort();
    ips.dedup();
    let data: Vec<RData> = ips
        .into_iter()
        .filter_map(|ip| match (ip, kind) {
            (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => Some(RData::A(A(ip))),
            (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(ip))),
            _ => None,
        })
        .collect();
    if data.is_empty() {
        Answer::NoData
    } else {
        records(name, data)
    }
}

fn text(name: &Name, kind: RecordType, value: &str) -> Answer {
    match kind {
        RecordType::TXT | RecordType::ANY => {
            records(name, [RData::TXT(TXT::new(vec![value.to_string()]))])
        }
        _ => Answer::NoData,
    }
}

/// `10-244-1-7.default.pod`: what the name says, as CoreDNS does by default.
fn pod(name: &Name, address: &str, kind: RecordType) -> Answer {
    let ip = IpAddr::from_str(&address.replace('-', "."))
        .or_else(|_| IpAddr::from_str(&address.replace('-', ":")));
    match ip {
        Ok(ip) => addresses(name, &[ip], kind),
        Err(_) => Answer::NoSuchName,
    }
}

/// The endpoint's own label under its headless Service.
pub(super) fn host_label(endpoint: Endpoint<'_>) -> String {
    match endpoint.hostname() {
        Some(hostname) => hostname.to_string(),
        None => endpoint.ip.to_string().replace(['.', ':'], "-"),
    }
}

pub(super) fn ready_endpoints(slice: &Slice) -> impl Iterator<Item = Endpoint<'_>> {
    slice.endpoints().filter(Endpoint::is_ready)
}

fn same_port(name: &str, protocol: u8, port: &str, wanted: &str) -> bool {
    name == port && !port.is_empty() && protocol_name(protocol).eq_ignore_ascii_case(wanted)
}

/// `7.1.244.10.in-addr.arpa.` and `….ip6.arpa.` (RFC 1035 §3.5, RFC 3596 §2.5).
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let text = name.to_ascii().to_ascii_lowercase();
    if let Some(digits) = text.strip_suffix(".in-addr.arpa.") {
        let octets: Vec<u8> = digits
            .split('.')
            .rev()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        return Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?));
    }
    let digits = text.strip_suffix(".ip6.arpa.")?;
    let nibbles: Vec<u8> = digits
        .split('.')
        .rev()
        .map(|digit| {
            if digit.len() == 1 {
                u8::from_str_radix(digit, 16).ok()
            } else {
                None
            }
        })
        .collect::<Option<_>>()?;
    let octets: Vec<u8> = nibbles
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |a, b| a << 4 | b))
        .collect();
    Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn zone() -> Zone {
        let service = |name: &str, spec: Value| -> Service {
            serde_json::from_value(
                json!({"metadata": {"namespace": "default", "name": name}, "spec": spec}),
            )
            .unwrap()
        };
        let services = vec![
            service(
                "web",
                json!({
                    "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
                    "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
                }),
            ),
            service("db", json!({"clusterIP": "None", "clusterIPs": ["None"]})),
            service(
                "empty",
                json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            ),
            service(
                "away",
                json!({"type": "ExternalName", "externalName": "example.org"}),
            ),
        ];
        let slice: Slice = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "db-x", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4",
            "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.0.7"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.1.8"], "conditions": {"ready": true}},
                {"addresses": ["10.244.1.9"], "conditions": {"ready": false}},
            ],
        }))
        .unwrap();
        let reverse = Arc::new(Reverse::default());
        for service in &services {
            reverse.set_service(service);
        }
        reverse.set_slice(&slice);
        Zone {
            services: Informer::fixed(services),
            slices: Informer::fixed([slice]),
            reverse,
            domain: Name::from_ascii("cluster.local.").unwrap(),
        }
    }

    fn ask(name: &str, kind: RecordType) -> Answer {
        zone().answer(&Name::from_ascii(name).unwrap(), kind)
    }

    #[track_caller]
    fn check(name: &str, kind: RecordType, expected: &[&str]) {
        let Answer::Records(records) = ask(name, kind) else {
            panic!("{name} {kind}: {:?}", ask(name, kind));
        };
        let mut found: Vec<String> = records
            .iter()
            .map(|record| record.data.to_string())
            .collect();
        found.sort();
        assert_eq!(found, expected, "{name} {kind}");
    }

    #[test]
    fn names_of_the_specification() {
        use RecordType::{A as IPV4, ANY, CNAME as ALIAS, PTR as NAME, SRV as PORT, TXT as TEXT};
        check("web.default.svc.cluster.local.", IPV4, &["10.96.0.5"]);
        check("WEB.default.SVC.cluster.local.", IPV4, &["10.96.0.5"]);
        check(
            "_http._tcp.web.default.svc.cluster.local.",
            PORT,
            &["0 100 80 web.default.svc.cluster.local."],
        );
        check(
            "db.default.svc.cluster.local.",
            IPV4,
            &["10.244.0.7", "10.244.1.8"],
        );
        check("db-0.db.default.svc.cluster.local.", IPV4, &["10.244.0.7"]);
        check(
            "10-244-1-8.db.default.svc.cluster.local.",
            ANY,
            &["10.244.1.8"],
        );
        check(
            "_sql._tcp.db.default.svc.cluster.local.",
            PORT,
            &[
                "0 100 5432 10-244-1-8.db.default.svc.cluster.local.",
                "0 100 5432 db-0.db.default.svc.cluster.local.",
            ],
        );
        check("away.default.svc.cluster.local.", IPV4, &["example.org."]);
        check("away.default.svc.cluster.local.", ALIAS, &["example.org."]);
        check(
            "10-244-1-8.default.pod.cluster.local.",
            IPV4,
            &["10.244.1.8"],
        );
        check(
            "5.0.96.10.in-addr.arpa.",
            NAME,
            &["web.default.svc.cluster.local."],
        );
        check(
            "7.0.244.10.in-addr.arpa.",
            NAME,
            &["db-0.db.default.svc.cluster.local."],
        );
        check("dns-version.cluster.local.", TEXT, &["1.1.0"]);
    }

    #[test]
    fn what_is_not_there() {
        use RecordType::{A as IPV4, AAAA as IPV6};
        assert_eq!(ask("web.default.svc.cluster.local.", IPV6), Answer::NoData);
        assert_eq!(ask("default.svc.cluster.local.", IPV4), Answer::NoData);
        for name in [
            "none.default.svc.cluster.local.",
            "empty.default.svc.cluster.local.",
            "other.svc.cluster.local.",
            "db-9.db.default.svc.cluster.local.",
            "web.web.default.svc.cluster.local.",
            "_http._udp.web.default.svc.cluster.local.",
            "example.org.default.svc.cluster.local.",
            "x.cluster.local.",
        ] {
            assert_eq!(ask(name, IPV4), Answer::NoSuchName, "{name}");
        }
        assert_eq!(ask("example.org.", IPV4), Answer::NotOurs);
        assert_eq!(
            ask("8.8.8.8.in-addr.arpa.", RecordType::PTR),
            Answer::NotOurs
        );
    }
}
