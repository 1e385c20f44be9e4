//! The one form that the subsets of Endpoints are kept in (upstream `pkg/api/endpoints` `RepackSubsets`): ports that the
//! same addresses offer stand together, an address once, sorted.

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};
use md5::{Digest, Md5};

use crate::zero::{List, Text};

/// A port and who offers it; no port stands for subsets without ports.
struct Offer {
    port: Option<EndpointPort>,
    addresses: Offerers,
}

/// Indexes into all addresses, sorted, and whether they are ready.
type Offerers = Vec<(usize, bool)>;

pub fn repack(subsets: &[EndpointSubset]) -> Vec<EndpointSubset> {
    let mut addresses: Vec<&EndpointAddress> = Vec::new();
    let mut offers: Vec<Offer> = Vec::new();
    for subset in subsets {
        let ports = subset.ports.items();
        let ports: Vec<Option<&EndpointPort>> = match ports.is_empty() {
            true => vec![None],
            false => ports.iter().map(Some).collect(),
        };
        for port in ports {
            for (list, ready) in [
                (subset.addresses.items(), true),
                (subset.not_ready_addresses.items(), false),
            ] {
                for address in list {
                    let known = addresses.iter().position(|one| key(one) == key(address));
                    let index = known.unwrap_or_else(|| {
                        addresses.push(address);
                        addresses.len() - 1
                    });
                    note(&mut offers, port, index, ready);
                }
            }
        }
    }
    let mut packed: Vec<(Offerers, Vec<EndpointPort>)> = Vec::new();
    for offer in offers {
        let known = packed.iter_mut().find(|(of, _)| *of == offer.addresses);
        match known {
            Some((_, ports)) => ports.extend(offer.port),
            None => packed.push((offer.addresses, offer.port.into_iter().collect())),
        }
    }
    let mut subsets: Vec<EndpointSubset> = packed
        .into_iter()
        .map(|(of, ports)| subset(&addresses, &of, ports))
        .collect();
    subsets.sort_by_cached_key(|subset| hash(&shown_subset(subset)));
    subsets
}

/// What tells two addresses apart: two hosts may have the same.
fn key(address: &EndpointAddress) -> (&str, &str) {
    let uid = address.target_ref.as_ref().map(|of| of.uid.text());
    (&address.ip, uid.unwrap_or_default())
}

/// That an address offers a port. Of ready and not ready, the latter holds.
fn note(offers: &mut Vec<Offer>, port: Option<&EndpointPort>, index: usize, ready: bool) {
    // Upstream compares application protocols by where they lie in memory.
    let same = |offer: &&mut Offer| {
        offer.port.as_ref() == port && port.is_none_or(|port| port.app_protocol.is_none())
    };
    let offer = match offers.iter_mut().find(same) {
        Some(offer) => offer,
        None => {
            offers.push(Offer {
                port: port.cloned(),
                addresses: Vec::new(),
            });
            let last = offers.len() - 1;
            &mut offers[last]
        }
    };
    match offer
        .addresses
        .binary_search_by_key(&index, |(index, _)| *index)
    {
        Ok(place) => offer.addresses[place].1 &= ready,
        Err(place) => offer.addresses.insert(place, (index, ready)),
    }
}

fn subset(
    addresses: &[&EndpointAddress],
    of: &[(usize, bool)],
    mut ports: Vec<EndpointPort>,
) -> EndpointSubset {
    let list = |wanted: bool| {
        let chosen = of.iter().filter(|(_, ready)| *ready == wanted);
        let mut list: Vec<EndpointAddress> =
            chosen.map(|(index, _)| addresses[*index].clone()).collect();
        list.sort_by(|a, b| {
            // Who has no target comes first.
            let rank = |one: &EndpointAddress| one.target_ref.is_some();
            let by_target = rank(a).cmp(&rank(b));
            a.ip.cmp(&b.ip)
                .then(by_target)
                .then_with(|| key(a).1.cmp(key(b).1))
        });
        Some(list).filter(|list| !list.is_empty())
    };
    ports.sort_by_cached_key(|port| hash(&shown_port(port)));
    EndpointSubset {
        addresses: list(true),
        not_ready_addresses: list(false),
        ports: Some(ports).filter(|ports| !ports.is_empty()),
    }
}

/// Upstream sorts by the MD5 of how Go's spew shows its internal types. It has to be the same order, nothing more.
fn hash(shown: &str) -> [u8; 16] {
    Md5::digest(shown).into()
}

fn shown_list(kind: &str, items: Vec<String>) -> String {
    match items.is_empty() {
        true => format!("([]core.{kind})<nil>"),
        false => format!("([]core.{kind})[{}]", items.join(" ")),
    }
}

fn shown_optional(text: &Option<String>) -> String {
    format!("(*string){}", text.as_deref().unwrap_or("<nil>"))
}

fn shown_port(port: &EndpointPort) -> String {
    format!(
        "(core.EndpointPort){{Name:(string){} Port:(int32){} Protocol:(core.Protocol){} AppProtocol:{}}}",
        port.name.text(),
        port.port,
        port.protocol.text(),
        shown_optional(&port.app_protocol)
    )
}

fn shown_address(address: &EndpointAddress) -> String {
    let target = match &address.target_ref {
        None => "<nil>".to_owned(),
        Some(of) => format!(
            "{{Kind:(string){} Namespace:(string){} Name:(string){} UID:(types.UID){} APIVersion:(string){} \
             ResourceVersion:(string){} FieldPath:(string){}}}",
            of.kind.text(),
            of.namespace.text(),
            of.name.text(),
            of.uid.text(),
            of.api_version.text(),
            of.resource_version.text(),
            of.field_path.text()
        ),
    };
    format!(
        "(core.EndpointAddress){{IP:(string){} Hostname:(string){} NodeName:{} TargetRef:(*core.ObjectReference){target}}}",
        address.ip,
        address.hostname.text(),
        shown_optional(&address.node_name)
    )
}

fn shown_subset(subset: &EndpointSubset) -> String {
    let addresses = |list: &[EndpointAddress]| {
        shown_list("EndpointAddress", list.iter().map(shown_address).collect())
    };
    let ports = subset.ports.items().iter().map(shown_port).collect();
    format!(
        "(core.EndpointSubset){{Addresses:{} NotReadyAddresses:{} Ports:{}}}",
        addresses(subset.addresses.items()),
        addresses(subset.not_ready_addresses.items()),
        shown_list("EndpointPort", ports)
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(given: Value, expected: Value) {
        let given: Vec<EndpointSubset> = serde_json::from_value(given).expect("subsets");
        let packed = repack(&given);
        assert_eq!(serde_json::to_value(&packed).expect("JSON"), expected);
        assert_eq!(repack(&packed), packed, "packed once more");
    }

    fn addresses(ips: &[&str]) -> Value {
        ips.iter().map(|ip| json!({"ip": ip})).collect()
    }

    #[test]
    fn ports_of_the_same_addresses_stand_together() {
        check(
            json!([
                {"addresses": addresses(&["1.2.3.5", "1.2.3.4"]), "ports": [{"port": 111}]},
                {"addresses": addresses(&["1.2.3.4"]), "ports": [{"port": 111}]},
            ]),
            json!([{"addresses": addresses(&["1.2.3.4", "1.2.3.5"]), "ports": [{"port": 111}]}]),
        );
        let given = json!([
            {"addresses": addresses(&["1.2.3.4"]), "ports": [{"port": 111}]},
            {"addresses": addresses(&["1.2.3.5"]), "ports": [{"port": 222}]},
            {"addresses": addresses(&["1.2.3.6"]), "ports": [{"port": 111}]},
            {"addresses": addresses(&["1.2.3.5"]), "ports": [{"port": 333}]},
        ]);
        let given: Vec<EndpointSubset> = serde_json::from_value(given).expect("subsets");
        let mut lengths: Vec<(usize, usize)> = repack(&given)
            .iter()
            .map(|one| (one.addresses.items().len(), one.ports.items().len()))
            .collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [(1, 2), (2, 1)]);
    }

    #[test]
    fn who_is_not_ready_anywhere_is_not_ready() {
        check(
            json!([
                {"addresses": addresses(&["1.2.3.4"]), "ports": [{"port": 111}]},
                {"notReadyAddresses": addresses(&["1.2.3.4"]), "ports": [{"port": 111}]},
            ]),
            json!([{"notReadyAddresses": addresses(&["1.2.3.4"]), "ports": [{"port": 111}]}]),
        );
    }

    #[test]
    fn hosts_with_one_address_and_subsets_without_ports_stay() {
        let host = |uid: &str| json!({"ip": "1.2.3.4", "targetRef": {"uid": uid}});
        check(
            json!([{"addresses": [host("b"), {"ip": "1.2.3.4"}, host("a")], "ports": [{"port": 1}]}]),
            json!([{"addresses": [{"ip": "1.2.3.4"}, host("a"), host("b")], "ports": [{"port": 1}]}]),
        );
        let without = json!([{"addresses": addresses(&["1.2.3.4"])}]);
        check(without.clone(), without);
        check(json!([]), json!([]));
    }
}
