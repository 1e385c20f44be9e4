//! The tables against a model: whatever sequence of changes and restarts, the kernel has what was
//! last asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use skep_datapath::Datapath;
use skep_datapath::layout::TCP;
use skep_datapath::services::{Endpoint, FrontendAddress, ServicePort};

use crate::scratch::{Scratch, scratch};

#[derive(Clone, Debug)]
enum Step {
    Set {
        service: u8,
        internal: BTreeSet<u8>,
        external: BTreeSet<u8>,
        node_port: bool,
        maglev: bool,
    },
    Remove(u8),
    /// A new agent that is told everything again, then drops what nobody claimed.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let endpoints = || prop::collection::btree_set(0u8..40, 0..20);
    prop_oneof![
        8 => (0u8..6, endpoints(), endpoints(), any::<bool>(), prop::bool::weighted(0.2)).prop_map(
            |(service, internal, external, node_port, maglev)| Step::Set {
                service, internal, external, node_port, maglev
            }
        ),
        2 => (0u8..6).prop_map(Step::Remove),
        1 => Just(Step::Restart),
    ]
}

fn address(endpoint: u8) -> (IpAddr, u16) {
    (IpAddr::from([10, 244, 0, endpoint]), 8_080)
}

fn port(
    service: u8,
    internal: &BTreeSet<u8>,
    external: &BTreeSet<u8>,
    node_port: bool,
    maglev: bool,
) -> ServicePort {
    let endpoints = |set: &BTreeSet<u8>| -> Vec<Endpoint> {
        set.iter()
            .map(|number| {
                let (ip, port) = address(*number);
                Endpoint {
                    ip,
                    port,
                    local: number % 2 == 0,
                }
            })
            .collect()
    };
    let frontend = |ip: [u8; 4], port, external| FrontendAddress {
        ip: IpAddr::from(ip),
        port,
        external,
        restricted: false,
    };
    let mut frontends = vec![frontend([10, 96, 0, service + 1], 80, false)];
    if node_port {
        frontends.push(frontend([0, 0, 0, 0], 30_000 + u16::from(service), true));
    }
    ServicePort {
        protocol: TCP,
        frontends,
        internal: endpoints(internal),
        external: endpoints(external),
        maglev,
        ..ServicePort::default()
    }
}

fn check(datapath: &Datapath, model: &BTreeMap<u8, ServicePort>) {
    let views = datapath.services().lock().view().unwrap();
    let frontends: usize = model.values().map(|port| port.frontends.len()).sum();
    assert_eq!(views.len(), frontends);
    for (service, wanted) in model {
        for frontend in &wanted.frontends {
            let view = views
                .iter()
                .find(|view| view.ip == frontend.ip && view.port == frontend.port)
                .unwrap_or_else(|| panic!("service {service}: {frontend:?} is not programmed"));
            let set = |endpoints: &[Endpoint]| -> BTreeSet<(IpAddr, u16)> {
                endpoints
                    .iter()
                    .map(|endpoint| (endpoint.ip, endpoint.port))
                    .collect()
            };
            assert_eq!(
                view.internal.iter().copied().collect::<BTreeSet<_>>(),
                set(&wanted.internal)
            );
            assert_eq!(
                view.external.iter().copied().collect::<BTreeSet<_>>(),
                set(&wanted.external)
            );
        }
    }
}

fn restart(scratch: &Scratch, model: &BTreeMap<u8, ServicePort>) -> Datapath {
    let datapath = scratch.open();
    {
        let mut tables = datapath.services().lock();
        for (service, wanted) in model {
            tables.set(&format!("s{service}"), wanted).unwrap();
        }
        tables.remove_unclaimed().unwrap();
    }
    datapath
}

#[test]
fn the_kernel_has_what_was_last_asked_for() {
    let Some(scratch) = scratch("tables") else {
        return;
    };
    let mut runner = TestRunner::new(Config {
        cases: 12,
        ..Config::default()
    });
    // One datapath for all cases: each begins with what the one before left, unclaimed.
    runner
        .run(&prop::collection::vec(step(), 1..40), |steps| {
            let mut model: BTreeMap<u8, ServicePort> = BTreeMap::new();
            let mut datapath = restart(&scratch, &model);
            for step in steps {
                match step {
                    Step::Set {
                        service,
                        internal,
                        external,
                        node_port,
                        maglev,
                    } => {
                        let wanted = port(service, &internal, &external, node_port, maglev);
                        let name = format!("s{service}");
                        datapath.services().lock().set(&name, &wanted).unwrap();
                        model.insert(service, wanted);
                    }
                    Step::Remove(service) => {
                        let name = format!("s{service}");
                        datapath.services().lock().remove(&name).unwrap();
                        model.remove(&service);
                    }
                    Step::Restart => {
                        drop(datapath);
                        datapath = restart(&scratch, &model);
                    }
                }
                check(&datapath, &model);
            }
            Ok(())
        })
        .unwrap();
}
