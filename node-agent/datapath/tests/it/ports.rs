//! Ports of the node that hide clients: no server meets a connection that it may still remember.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use skep_datapath::layout::TCP;

use crate::frame::{ACK, FIN, Frame, frame};
use crate::packets::{Bench, UPLINK, bench_with, node_port};

const BACKEND: &str = "10.244.2.10";
/// Most of the ports that there are.
const CONNECTIONS: u32 = 58_000;

/// A client whose own port is a server's, and may not be kept.
fn client(number: u32) -> Frame {
    let [_, high, middle, low] = number.to_be_bytes();
    let from = format!("198.{}.{middle}.{low}:80", 18 + high);
    frame(TCP, &from, "192.0.2.10:30014")
}

/// Opens a connection; returns it as the backend sees it.
fn opened(bench: &Bench, request: &Frame) -> Frame {
    bench.run("from_net", UPLINK, request).1
}

fn backend_closes(bench: &Bench, request: &Frame, onward: &Frame) {
    bench.run("from_net", UPLINK, &onward.answer().flags(FIN | ACK));
    bench.run("from_net", UPLINK, &request.clone().flags(FIN | ACK));
}

fn client_closes(bench: &Bench, request: &Frame, onward: &Frame) {
    bench.run("from_net", UPLINK, &request.clone().flags(FIN | ACK));
    bench.run("from_net", UPLINK, &onward.answer().flags(FIN | ACK));
}

#[test]
fn a_servers_ports_come_in_turn() {
    let Some((bench, _scratch)) = bench_with("turn", 1 << 17) else {
        return;
    };
    bench.set("n:tcp", &node_port(TCP, 30_014, &[(BACKEND, 80, false)]));
    let mut ports = HashSet::new();
    for number in 0..CONNECTIONS {
        let request = client(number);
        let onward = opened(&bench, &request);
        assert!(
            ports.insert(onward.source.port()),
            "{onward:?} comes again after {number} connections"
        );
        backend_closes(&bench, &request, &onward);
    }
}

#[test]
fn a_port_is_free_soon_where_the_client_closes_first() {
    let Some((bench, _scratch)) = bench_with("soon", 4_096) else {
        return;
    };
    bench.set("n:tcp", &node_port(TCP, 30_014, &[(BACKEND, 80, false)]));
    let from = |number: u32| {
        let mut request = client(number);
        request.source.set_port(45_000);
        request
    };
    let first = from(0);
    let onward = opened(&bench, &first);
    assert_eq!(onward.source.port(), 45_000);
    client_closes(&bench, &first, &onward);
    // Not at once: the client's last acknowledgement may be on its way.
    let began = Instant::now();
    for number in 1.. {
        if opened(&bench, &from(number)).source.port() == 45_000 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "never");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(began.elapsed() > Duration::from_secs(1));
}
