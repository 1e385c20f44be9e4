//! Ending UDP sockets that are connected to a backend which is gone. The socket hooks run at
//! connect(2) only; nothing else would ever tell such a socket (sock_diag(7), `SOCK_DESTROY`,
//! Linux 4.9 with `CONFIG_INET_DIAG_DESTROY`).

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use nix::sched::{CloneFlags, setns};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// `struct inet_diag_msg` up to and with its socket id.
const ID_OFFSET: usize = 4;
const ID_LEN: usize = 48;
const UDP: u8 = 17;

/// Destroys the UDP sockets of this network namespace that are connected to one of `peers`.
/// `None`: the caller's own namespace. Returns how many.
///
/// # Errors
/// `EOPNOTSUPP`: the kernel cannot; such sockets notice by ICMP or their own timeout.
pub fn destroy_connected(netns: Option<File>, peers: Vec<SocketAddr>) -> io::Result<usize> {
    // A thread that changed its namespace must never serve anything else.
    let worker = std::thread::Builder::new()
        .name("sock-destroy".into())
        .spawn(move || {
            if let Some(netns) = netns {
                setns(&netns, CloneFlags::CLONE_NEWNET)?;
            }
            let mut destroyed = 0;
            for family in [libc_af::INET, libc_af::INET6] {
                destroyed += destroy_family(family, &peers)?;
            }
            Ok(destroyed)
        })?;
    worker
        .join()
        .map_err(|_| io::Error::other("the socket worker failed"))?
}

mod libc_af {
    pub(super) const INET: u8 = 2;
    pub(super) const INET6: u8 = 10;
}

fn destroy_family(family: u8, peers: &[SocketAddr]) -> io::Result<usize> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let mut found: Vec<Vec<u8>> = Vec::new();
    // Every state; the id is ignored in a dump.
    socket.send(
        &message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &[0; ID_LEN]),
        0,
    )?;
    'dump: loop {
        let (buffer, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&buffer) {
            match kind {
                NLMSG_DONE => break 'dump,
                NLMSG_ERROR => return error_of(body).map(|()| 0),
                _ => {
                    let Some(id) = body.get(ID_OFFSET..ID_OFFSET + ID_LEN) else {
                        continue;
                    };
                    if peer_of(family, id).is_some_and(|peer| peers.contains(&peer)) {
                        found.push(id.to_vec());
                    }
                }
            }
        }
    }
    let mut destroyed = 0;
    for id in found {
        socket.send(&message(SOCK_DESTROY, NLM_F_ACK, family, &id), 0)?;
        let (buffer, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&buffer) {
            if kind == NLMSG_ERROR {
                match error_of(body) {
                    Ok(()) => destroyed += 1,
                    // Closed meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(destroyed)
}

fn message(kind: u16, flags: u16, family: u8, id: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, UDP, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(id);
    bytes
}

fn messages(buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let header = rest.get(..HEADER)?;
        let len = u32::from_ne_bytes(header.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(header.get(4..6)?.try_into().ok()?);
        let body = rest.get(HEADER..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn error_of(body: &[u8]) -> io::Result<()> {
    let code = body
        .get(..4)
        .and_then(|code| code.try_into().ok())
        .map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::other("a short answer of sock_diag")),
    }
}

/// `struct inet_diag_sockid`: ports, then source, then destination.
fn peer_of(family: u8, id: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(id.get(2..4)?.try_into().ok()?);
    let destination: [u8; 16] = id.get(20..36)?.try_into().ok()?;
    let ip = if family == libc_af::INET {
        let [a, b, c, d, ..] = destination;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from(destination)).to_canonical()
    };
    (port != 0).then(|| SocketAddr::new(ip, port))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_connected_socket_learns_that_its_peer_is_gone() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs CAP_NET_ADMIN");
            return;
        }
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(peer.local_addr().unwrap()).unwrap();
        let bystander = UdpSocket::bind("127.0.0.1:0").unwrap();
        bystander.connect(other.local_addr().unwrap()).unwrap();
        match destroy_connected(None, vec![peer.local_addr().unwrap()]) {
            Ok(count) => assert_eq!(count, 1),
            Err(error) => {
                eprintln!("skipped: this kernel cannot destroy sockets: {error}");
                return;
            }
        }
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .unwrap();
        let error = socket.recv(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        bystander.send(b"still here").unwrap();
    }
}
