//! `/portForward`: connections to ports inside a pod's network namespace.
//!
//! Three ways in: SPDY streams (`portforward.k8s.io`), the same inside a WebSocket
//! (`SPDY/3.1+portforward.k8s.io`, what kubectl uses), and plain WebSocket channels
//! (`v4.channel.k8s.io`, or no name, what other clients use). A port is dialled on the pod's own loopback, so
//! that programs which listen only there are reached too.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::{StatusCode, header};
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tracing::debug;

use super::stream::{Protocol, is_spdy, switch_to_spdy};
use super::{App, Refused, bad_request, spdy};
use crate::kubelet::plan;

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: &str = "v4.channel.k8s.io";
const BASE64_CHANNELS: &str = "v4.base64.channel.k8s.io";
const DIAL: Duration = Duration::from_secs(10);
const PIECE: usize = 32 * 1024;
const QUEUE: usize = 32;
const MAX_PORTS: usize = 64;

/// The process that holds the pod's network namespace, and the pod for messages.
#[derive(Clone)]
struct Target {
    pid: u32,
    uid: String,
}

impl Target {
    /// A connection from inside the pod. The socket keeps its namespace; the thread ends.
    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        let pid = self.pid;
        let stream = tokio::task::spawn_blocking(move || {
            let thread = std::thread::spawn(move || -> io::Result<StdStream> {
                setns(
                    File::open(format!("/proc/{pid}/ns/net"))?,
                    CloneFlags::CLONE_NEWNET,
                )?;
                let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
                let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port);
                StdStream::connect_timeout(&v4, DIAL)
                    .or_else(|first| StdStream::connect_timeout(&v6, DIAL).map_err(|_| first))
            });
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the dialling thread panicked")))
        })
        .await
        .map_err(io::Error::other)??;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        TcpStream::from_std(stream)
    }

    fn failure(&self, port: u16, e: &io::Error) -> String {
        let why = match e.kind() {
            io::ErrorKind::ConnectionRefused => "connect: connection refused".to_string(),
            io::ErrorKind::TimedOut => "i/o timeout".to_string(),
            _ => e.to_string(),
        };
        format!(
            "error forwarding port {port} to pod {}, uid : failed to connect to localhost:{port} \
             inside namespace \"{}\", IPv4: dial tcp4 127.0.0.1:{port}: {why}",
            self.uid, self.uid
        )
    }
}

pub(super) async fn serve(
    State(app): State<App>,
    Path((namespace, name)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Refused> {
    let pod = app.pod(&namespace, &name)?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let observed = app
        .ctx
        .runtime
        .observe(&uid)
        .await
        .map_err(|e| Refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    let pid = plan::live_sandbox(&observed)
        .and_then(|s| s.pid)
        .ok_or_else(|| {
            Refused(
                StatusCode::NOT_FOUND,
                format!("pod \"{name}\" is not running"),
            )
        })?;
    let target = Target { pid, uid };
    if is_spdy(request.headers()) {
        let work = move |streams| forward(target, streams);
        return switch_to_spdy(request, "portforward.k8s.io", work);
    }
    let ports: Vec<u16> =
        url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
            .filter(|(key, _)| matches!(key.as_ref(), "port" | "ports"))
            .flat_map(|(_, value)| value.split(',').map(str::parse).collect::<Vec<_>>())
            .collect::<Result<_, _>>()
            .map_err(|_| bad_request("port: must be a number between 1 and 65535"))?;
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|e| bad_request(e.to_string()))?
        .protocols([TUNNEL, CHANNELS, BASE64_CHANNELS]);
    let chosen = upgrade.selected_protocol().and_then(|p| p.to_str().ok());
    if chosen == Some(TUNNEL) {
        return Ok(upgrade.on_upgrade(move |socket| tunnel(target, socket)));
    }
    if chosen.is_none() && parts.headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return Err(bad_request(format!(
            "unable to negotiate a protocol: the server speaks {TUNNEL}, {CHANNELS}, \
             {BASE64_CHANNELS}"
        )));
    }
    if ports.is_empty() || ports.len() > MAX_PORTS {
        return Err(bad_request("you must specify at least 1 port"));
    }
    let protocol = Protocol::named(chosen.unwrap_or_default());
    Ok(upgrade.on_upgrade(move |socket| channels(target, socket, ports, protocol)))
}

/// SPDY frames as the binary messages of a WebSocket.
async fn tunnel(target: Target, socket: WebSocket) {
    let (ours, theirs) = tokio::io::duplex(4 * PIECE);
    let streams = match spdy::serve(theirs) {
        Ok(streams) => streams,
        Err(e) => return debug!(error = %e, "cannot speak SPDY"),
    };
    let (mut to_client, mut from_client) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(ours);
    let inward = async {
        while let Some(Ok(message)) = from_client.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => break,
                _ => continue,
            };
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    };
    let outward = async {
        let mut buffer = BytesMut::with_capacity(PIECE);
        while let Ok(n) = reader.read_buf(&mut buffer).await {
            let piece = buffer.split().freeze();
            if n == 0 || to_client.send(Message::Binary(piece)).await.is_err() {
                break;
            }
            buffer.reserve(PIECE);
        }
        let _ = to_client.send(Message::Close(None)).await;
    };
    let work = tokio::spawn(forward(target, streams));
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
    work.abort();
}

/// A pair of streams with the same `requestid` is one connection.
async fn forward(target: Target, mut streams: mpsc::Receiver<spdy::Stream>) {
    let mut errors: HashMap<String, spdy::Output> = HashMap::new();
    let mut connections = tokio::task::JoinSet::new();
    while let Some(stream) = streams.recv().await {
        while connections.try_join_next().is_some() {}
        let request = stream.header("requestid").to_string();
        let port: Option<u16> = stream.header("port").parse().ok().filter(|p| *p > 0);
        if stream.header("streamtype") == "error" {
            errors.insert(request, stream.split().1);
            continue;
        }
        let error = errors.remove(&request);
        let target = target.clone();
        connections.spawn(async move {
            let (input, output) = stream.split();
            let outcome = match port {
                Some(port) => copy(&target, port, input, &output).await,
                None => Err("port: must be a number between 1 and 65535".into()),
            };
            if let Some(error) = error {
                if let Err(message) = outcome {
                    error.send(Bytes::from(message)).await;
                }
                error.close().await;
            }
            output.close().await;
        });
    }
    // The client is gone: so are its connections.
}

async fn copy(
    target: &Target,
    port: u16,
    mut input: mpsc::Receiver<Bytes>,
    output: &spdy::Output,
) -> Result<(), String> {
    let stream = target
        .dial(port)
        .await
        .map_err(|e| target.failure(port, &e))?;
    let (mut reader, mut writer) = stream.into_split();
    let inward = async {
        while let Some(bytes) = input.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    };
    let outward = async {
        let mut buffer = BytesMut::with_capacity(PIECE);
        loop {
            match reader.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if !output.send(buffer.split().freeze()).await {
                        return;
                    }
                    buffer.reserve(PIECE);
                }
            }
        }
    };
    // The answer may go on after the request has ended, not the other way round.
    tokio::pin!(inward);
    tokio::select! {
        () = outward => {}
        () = async { (&mut inward).await; std::future::pending::<()>().await } => {}
    }
    Ok(())
}

/// Two channels a port: data and error, each opened with the port's number.
async fn channels(target: Target, socket: WebSocket, ports: Vec<u16>, protocol: Protocol) {
    let (mut to_client, mut from_client) = socket.split();
    let (out, mut outgoing) = mpsc::channel::<(u8, Bytes)>(QUEUE);
    let mut inputs: HashMap<u8, mpsc::Sender<Bytes>> = HashMap::new();
    for (index, port) in ports.iter().enumerate() {
        let Ok(data) = u8::try_from(index * 2) else {
            break;
        };
        for channel in [data, data + 1] {
            let message = protocol.message(channel, &port.to_le_bytes());
            if to_client.send(message).await.is_err() {
                return;
            }
        }
        let (send, mut input) = mpsc::channel::<Bytes>(QUEUE);
        inputs.insert(data, send);
        let (target, out, port) = (target.clone(), out.clone(), *port);
        tokio::spawn(async move {
            // Dialled when the client first sends, or at once: a server may speak first.
            let stream = match target.dial(port).await {
                Ok(stream) => stream,
                Err(e) => {
                    let _ = out
                        .send((data + 1, Bytes::from(target.failure(port, &e))))
                        .await;
                    return;
                }
            };
            let (mut reader, mut writer) = stream.into_split();
            let inward = async move {
                while let Some(bytes) = input.recv().await {
                    if writer.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            };
            let outward = async {
                let mut buffer = BytesMut::with_capacity(PIECE);
                while let Ok(n) = reader.read_buf(&mut buffer).await {
                    if n == 0 || out.send((data, buffer.split().freeze())).await.is_err() {
                        return;
                    }
                    buffer.reserve(PIECE);
                }
            };
            tokio::select! {
                () = inward => {}
                () = outward => {}
            }
        });
    }
    // The connection lasts until every port's has ended.
    drop(out);
    loop {
        tokio::select! {
            piece = outgoing.recv() => {
                let Some((channel, bytes)) = piece else { break };
                if to_client.send(protocol.message(channel, &bytes)).await.is_err() {
                    return;
                }
            }
            message = from_client.next() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(message)) => {
                    if let Some((channel, bytes)) = protocol.read(message)
                        && let Some(input) = inputs.get(&channel)
                        && input.send(bytes).await.is_err()
                    {
                        inputs.remove(&channel);
                    }
                }
            },
        }
    }
    let _ = to_client.send(Message::Close(None)).await;
}
