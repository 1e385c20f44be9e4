//! What an agent finds that it did not leave there, and what does not fit.

use std::fs;
use std::net::IpAddr;

use skep_datapath::layout::TCP;
use skep_datapath::layout::reason::Reason;
use skep_datapath::services::{Endpoint, FrontendAddress, ServicePort};
use skep_datapath::{Datapath, Error, Verdict, cleanup};

use crate::frame::frame;
use crate::scratch::{scratch, shell};

fn service(number: u16) -> ServicePort {
    let endpoint = Endpoint {
        ip: IpAddr::from([10, 244, 1, 5]),
        port: number,
        local: true,
    };
    ServicePort {
        protocol: TCP,
        frontends: vec![FrontendAddress {
            ip: IpAddr::from([0, 0, 0, 0]),
            port: number,
            external: true,
            restricted: false,
        }],
        internal: vec![endpoint],
        external: vec![endpoint],
        ..ServicePort::default()
    }
}

fn name(number: u16) -> String {
    format!("default/web-{number}:http")
}

fn programmed(datapath: &Datapath) -> Vec<u16> {
    let views = datapath.services().lock().view().unwrap();
    views.iter().map(|view| view.port).collect()
}

#[test]
fn one_agent_runs_a_node() {
    let Some(scratch) = scratch("two") else {
        return;
    };
    let first = scratch.open();
    let second = Datapath::open(&scratch.config).err().unwrap();
    assert!(matches!(second, Error::Occupied(_)), "{second}");
    assert!(second.to_string().contains("another agent"), "{second}");
    drop(first);
    scratch.open();
}

#[test]
fn a_map_of_another_layout_is_refused_by_name() {
    let Some(scratch) = scratch("layout") else {
        return;
    };
    drop(scratch.open());
    let maps = scratch.config.bpf_dir.join("maps");
    fs::rename(maps.join("NODE_ADDRESSES-v1"), maps.join("FLOWS6-v1")).unwrap();
    let error = Datapath::open(&scratch.config).err().unwrap();
    assert!(matches!(error, Error::Layout { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("FLOWS6-v1") && text.contains("keys of 16 bytes") && text.contains("cleanup"),
        "{text}"
    );
    // As it says.
    cleanup(&scratch.config.bpf_dir).unwrap();
    assert!(!scratch.config.bpf_dir.exists());
    drop(scratch.open());
}

#[test]
fn an_upgrade_keeps_maps_of_the_same_layout_and_removes_the_others() {
    let Some(scratch) = scratch("upgrade") else {
        return;
    };
    let datapath = scratch.open();
    datapath
        .services()
        .lock()
        .set(&name(30_001), &service(30_001))
        .unwrap();
    drop(datapath);
    fs::remove_file(scratch.config.bpf_dir.join("maps/NETNS-v2")).unwrap();
    scratch.split_backends();
    scratch.narrow_identities();
    // As agents left it whose maps had one version for all.
    let (maps, former) = (
        scratch.config.bpf_dir.join("maps"),
        scratch.config.bpf_dir.join("maps-v2"),
    );
    fs::create_dir(&former).unwrap();
    let mut moved = 0;
    for entry in fs::read_dir(&maps).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (bare, _) = name.rsplit_once("-v").unwrap();
        fs::rename(maps.join(&name), former.join(bare)).unwrap();
        moved += 1;
    }
    assert!(moved > 10);
    let datapath = scratch.open();
    assert_eq!(programmed(&datapath), [30_001], "kept over the upgrade");
    assert_eq!(scratch.widened_identity(), [300, 128]);
    assert!(!former.exists(), "the former folder goes");
    assert!(
        !maps.join("CONFIG-v1").exists(),
        "and maps of a former layout"
    );
    assert!(maps.join("CONFIG-v2").exists());
}

#[test]
fn a_full_table_says_so_and_keeps_what_it_has() {
    let Some(mut scratch) = scratch("full") else {
        return;
    };
    scratch.config.limits.frontends = 4;
    let datapath = scratch.open();
    let mut services = datapath.services().lock();
    for number in 30_001..=30_004 {
        services.set(&name(number), &service(number)).unwrap();
    }
    let error = services.set(&name(30_005), &service(30_005)).unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
    assert!(
        error.to_string().contains("FRONTENDS is full (4 entries)"),
        "{error}"
    );
    drop(services);
    assert_eq!(programmed(&datapath), [30_001, 30_002, 30_003, 30_004]);
    // There is room again.
    let mut services = datapath.services().lock();
    services.remove(&name(30_002)).unwrap();
    services.set(&name(30_005), &service(30_005)).unwrap();
    drop(services);
    assert_eq!(programmed(&datapath), [30_001, 30_003, 30_004, 30_005]);
}

#[test]
fn a_full_flow_table_refuses_new_flows_and_keeps_the_live_ones() {
    const UPLINK: u32 = 102;
    let Some(mut scratch) = scratch("flows") else {
        return;
    };
    shell("link add up0 index 102 type veth peer name up0x");
    shell("link set up0 up");
    shell("link set up0x up");
    shell("addr add 192.0.2.10/24 dev up0");
    scratch.config.uplink_ifindex = Some(UPLINK);
    scratch.config.limits.flows = 16;
    let datapath = scratch.open();
    let mut wanted = service(30_001);
    wanted.external[0].ip = IpAddr::from([192, 0, 2, 10]);
    wanted.external[0].port = 80;
    datapath
        .services()
        .lock()
        .set(&name(30_001), &wanted)
        .unwrap();
    let run = |port: u16| {
        let request = frame(TCP, &format!("198.51.100.9:{port}"), "192.0.2.10:30001");
        let result = datapath.try_packet("from_net", UPLINK, &request.bytes(), 1);
        result.unwrap().verdict
    };
    let verdicts: Vec<Verdict> = (5_000..5_040).map(run).collect();
    let accepted = verdicts
        .iter()
        .take_while(|verdict| **verdict == Verdict::Pass)
        .count();
    // The buckets of so few flows, and two entries each.
    assert!((4..=20).contains(&accepted), "{verdicts:?}");
    assert!(
        verdicts[accepted..].contains(&Verdict::Drop),
        "{verdicts:?}"
    );
    let counts = datapath.reason_counts().unwrap();
    let refused = counts
        .iter()
        .find(|count| count.reason == Reason::FlowTableFull)
        .map_or(0, |count| count.count);
    assert!(refused > 0);
    assert_eq!(run(5_000), Verdict::Pass, "a live one goes on");
}
