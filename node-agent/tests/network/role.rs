//! This test binary, started again inside a pod, a node or outside, as a server or a client:
//! sockets belong to the namespace and cgroup of the process that makes them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use skep_datapath::{Offload, set_offload};

const ROLE: &str = "SKEP_TEST_ROLE";
const TIMEOUT: Duration = Duration::from_secs(3);

/// Not a test of its own: what [`start`] runs.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<&str> = role.split(' ').collect();
    match words.as_slice() {
        ["hold"] => loop {
            std::thread::park();
        },
        ["tcp", address, name] => serve_tcp(address, name),
        ["udp", address, name] => serve_udp(address, name),
        ["ask-tcp", address, count] => ask_tcp(address, count.parse().unwrap()),
        ["tcp-brief", address] => serve_tcp_briefly(address),
        ["many-tcp", address, count] => many_tcp(address, count.parse().unwrap()),
        ["ask-udp", address, count] => ask_udp(address, count.parse().unwrap()),
        ["hold-tcp", address] => hold_tcp(address),
        ["ask-dns", server, name] => ask_dns(server, name),
        ["capture"] => capture(),
        ["finish-checksums", interface] => {
            set_offload(interface, Offload::TransmitChecksum, false).unwrap();
        }
        _ => panic!("unknown role {role}"),
    }
}

/// Says its name and who the client is.
fn serve_tcp(address: &str, name: &str) {
    let listener = TcpListener::bind(address).unwrap();
    println!("ready");
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let name = name.to_string();
        std::thread::spawn(move || {
            let peer = stream.peer_addr().unwrap();
            let _ = stream.write_all(format!("{name} {}\n", peer.ip().to_canonical()).as_bytes());
            // Echoes what comes, so that a connection can be held.
            let mut buffer = [0; 1024];
            while let Ok(count) = stream.read(&mut buffer) {
                if count == 0 || stream.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
        });
    }
}

/// Closes first, so that the connection's TIME_WAIT is the server's.
fn serve_tcp_briefly(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    println!("ready");
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let _ = stream.write_all(b"bye");
    }
}

fn serve_udp(address: &str, name: &str) {
    let socket = UdpSocket::bind(address).unwrap();
    println!("ready");
    let mut buffer = [0; 64];
    while let Ok((_, from)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(format!("{name} {}\n", from.ip()).as_bytes(), from);
    }
}

fn ask_tcp(address: &str, count: usize) {
    let address: SocketAddr = address.parse().unwrap();
    for _ in 0..count {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut answer = String::new();
                match stream.read_to_string(&mut answer) {
                    Ok(_) => println!("answer {}", answer.trim()),
                    Err(error) => println!("error {:?}", error.kind()),
                }
            }
            Err(error) => println!("error {:?}", error.kind()),
        }
    }
}

/// Opens connections from a few source ports, so that each is used again and again; says how many
/// got their answer and how many SYNs had to be sent again.
fn many_tcp(address: &str, count: usize) {
    const THREADS: usize = 4;
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 44999").unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let clients: Vec<_> = (0..THREADS)
        .map(|_| {
            std::thread::spawn(move || {
                let answered = |_: &usize| {
                    let mut answer = String::new();
                    TcpStream::connect(address)
                        .and_then(|mut stream| {
                            stream.set_read_timeout(Some(TIMEOUT))?;
                            stream.read_to_string(&mut answer)
                        })
                        .is_ok()
                };
                (0..count / THREADS).filter(answered).count()
            })
        })
        .collect();
    let answered: usize = clients
        .into_iter()
        .map(|client| client.join().unwrap())
        .sum();
    println!("answer {answered} {}", syn_retransmissions());
}

/// `TcpExt: TCPSynRetrans` of this namespace.
fn syn_retransmissions() -> u64 {
    let text = std::fs::read_to_string("/proc/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let names = lines.next().unwrap().split_whitespace();
    let values = lines.next().unwrap().split_whitespace();
    let mut pairs = names.zip(values);
    let (_, value) = pairs.find(|(name, _)| *name == "TCPSynRetrans").unwrap();
    value.parse().unwrap()
}

fn ask_udp(address: &str, count: usize) {
    let address: SocketAddr = address.parse().unwrap();
    for _ in 0..count {
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut buffer = [0; 64];
        let result = socket
            .send_to(b"?", address)
            .and_then(|_| socket.recv_from(&mut buffer));
        match result {
            Ok((count, from)) => {
                assert_eq!(from, address, "the answer's source");
                println!(
                    "answer {}",
                    String::from_utf8_lossy(&buffer[..count]).trim()
                );
            }
            Err(error) => println!("error {:?}", error.kind()),
        }
    }
}

/// An A question over UDP and over TCP: the response code and the last address.
fn ask_dns(server: &str, name: &str) {
    let mut query = vec![0x5c, 0xe9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let server: SocketAddr = server.parse().unwrap();
    let tell = |answer: &[u8]| {
        let code = answer[3] & 0x0f;
        let ip = if answer[7] == 0 {
            &[0; 4]
        } else {
            &answer[answer.len() - 4..]
        };
        println!("answer {code} {}.{}.{}.{}", ip[0], ip[1], ip[2], ip[3]);
    };
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.send_to(&query, server).unwrap();
    let mut buffer = [0; 1500];
    match socket.recv_from(&mut buffer) {
        Ok((count, from)) if from == server => tell(&buffer[..count]),
        Ok((_, from)) => println!("error answered by {from}"),
        Err(error) => println!("error {:?}", error.kind()),
    }
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
        .write_all(&(query.len() as u16).to_be_bytes())
        .unwrap();
    stream.write_all(&query).unwrap();
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut answer).unwrap();
    tell(&answer);
}

/// Connects once, then echoes a line of its own for every line of its input.
fn hold_tcp(address: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut greeting = [0; 64];
    let _ = stream.read(&mut greeting).unwrap();
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let mut answer = vec![0; line.len()];
        let result = stream
            .write_all(line.as_bytes())
            .and_then(|()| stream.read_exact(&mut answer));
        println!("{}", if result.is_ok() { "alive" } else { "dead" });
    }
}

/// Sees every packet of its namespace; answers each line of its input with what TCP and UDP over
/// IPv4 it has seen so far, as `source>destination` words.
fn capture() {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::EthAll,
    )
    .unwrap();
    println!("ready");
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let list = seen.clone();
    std::thread::spawn(move || {
        let mut file = File::from(socket);
        let mut frame = [0; 2048];
        while let Ok(len) = file.read(&mut frame) {
            let frame = &frame[..len];
            if len < 38 || frame[12..14] != [8, 0] || !matches!(frame[23], 6 | 17) {
                continue;
            }
            let l4 = 14 + usize::from(frame[14] & 0x0f) * 4;
            let Some(ports) = frame.get(l4..l4 + 4) else {
                continue;
            };
            let end = |ip: &[u8], port: &[u8]| {
                let port = u16::from_be_bytes([port[0], port[1]]);
                format!("{}.{}.{}.{}:{port}", ip[0], ip[1], ip[2], ip[3])
            };
            let source = end(&frame[26..30], &ports[..2]);
            let destination = end(&frame[30..34], &ports[2..]);
            seen.lock()
                .unwrap()
                .insert(format!("{source}>{destination}"));
        }
    });
    for _ in std::io::stdin().lines() {
        let words: Vec<String> = list.lock().unwrap().iter().cloned().collect();
        println!("{}", words.join(" "));
    }
}

/// Where a process runs.
#[derive(Clone)]
pub(crate) struct Place {
    /// A file that names the network namespace.
    pub(crate) netns: String,
    pub(crate) cgroup: Option<String>,
}

pub(crate) struct Process {
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line and returns the one that answers it.
    pub(crate) fn say(&mut self, line: &str) -> String {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
        read_line(self.child.stdout.as_mut().unwrap()).unwrap_or_default()
    }
}

fn command(place: &Place, role: &str) -> Command {
    // `sh` moves itself into the cgroup, then becomes the role inside the namespace.
    let script = "if [ -n \"$1\" ]; then echo $$ > \"$1/cgroup.procs\"; fi; \
                  exec nsenter --net=\"$2\" \"$3\" --exact role::role --nocapture --quiet";
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            script,
            "sh",
            place.cgroup.as_deref().unwrap_or(""),
            &place.netns,
        ])
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0);
    command
}

/// Starts a role that runs until dropped and waits until it is ready.
pub(crate) fn start(place: &Place, role: &str) -> Process {
    let mut child = command(place, role).spawn().unwrap();
    if !role.starts_with("hold ") && role != "hold" {
        let output = child.stdout.as_mut().unwrap();
        loop {
            match read_line(output) {
                Some(line) if line == "ready" => break,
                Some(_) => {}
                None => panic!("{role} ended before it was ready"),
            }
        }
    }
    Process { child }
}

/// Runs a client role to its end: `answer …` and `error …` lines.
pub(crate) fn run(place: &Place, role: &str) -> Vec<String> {
    let output = command(place, role).output().unwrap();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.starts_with("answer") || line.starts_with("error"))
        .map(str::to_string)
        .collect()
}

/// A process with a network namespace of its own, as a sandbox is.
pub(crate) fn sandbox(cgroup: &Path) -> Process {
    let script = "echo $$ > \"$1/cgroup.procs\"; exec unshare --net sleep 3600";
    let mut child = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(cgroup)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    // Ready when its namespace is no longer ours.
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let path = format!("/proc/{}/ns/net", child.id());
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while std::fs::read_link(&path).is_ok_and(|netns| netns == own) {
        if std::time::Instant::now() > deadline {
            let _ = child.kill();
            panic!("the sandbox got no namespace of its own");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // The link exists from the start; opening it proves that the process still lives.
    File::open(&path).unwrap();
    Process { child }
}

/// `None` at the end.
fn read_line(input: &mut impl Read) -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match input.read(&mut byte) {
            Ok(1) if byte[0] == b'\n' => return Some(String::from_utf8_lossy(&line).into_owned()),
            Ok(1) => line.push(byte[0]),
            _ => return None,
        }
    }
}
