//! `/exec` and `/attach`: a process's standard streams over WebSocket channels or SPDY streams.
//!
//! Both transports become [`Channels`]; one function carries a runtime session over them. On the
//! WebSocket the first byte of a message is its channel: 0 input, 1 output, 2 error output, 3 the
//! final Status, 4 terminal size, and (v5) 255 closes the channel that follows. Before v4 nothing on
//! channel 3 is success, and text is why it failed. In a `base64` protocol messages are text: a
//! digit for the channel, and the rest encoded.

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tracing::debug;

use super::{App, Refused, bad_request, spdy};
use crate::runtime::{
    ExecSpec, OutputStream, Runtime, Session, SessionId, State as ContainerState,
};

const QUEUE: usize = 32;
const PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
/// A message of a client; kubectl sends 32 KiB at most.
const MAX_MESSAGE: usize = 4 << 20;

enum Out {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last message.
    Status(Value),
}

struct Channels {
    /// Ends when the client closes its input.
    input: mpsc::Receiver<Bytes>,
    sizes: mpsc::Receiver<(u16, u16)>,
    output: mpsc::Sender<Out>,
}

fn spec(query: &str) -> ExecSpec {
    let mut spec = ExecSpec::default();
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let on = !matches!(value.as_ref(), "" | "0" | "false");
        match key.as_ref() {
            "command" => spec.command.push(value.into_owned()),
            "input" | "stdin" => spec.stdin = on,
            "output" | "stdout" => spec.stdout = on,
            "error" | "stderr" => spec.stderr = on,
            "tty" => spec.tty = on,
            _ => {}
        }
    }
    spec
}

pub(super) async fn exec(
    State(app): State<App>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    request: Request,
) -> Result<Response, Refused> {
    let spec = spec(request.uri().query().unwrap_or_default());
    if spec.command.is_empty() {
        return Err(bad_request(
            "you must specify at least 1 command for the container",
        ));
    }
    let id = running(&app, &namespace, &name, &container).await?.0;
    serve(app, request, id, spec, false).await
}

pub(super) async fn attach(
    State(app): State<App>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    request: Request,
) -> Result<Response, Refused> {
    let mut spec = spec(request.uri().query().unwrap_or_default());
    let (id, tty) = running(&app, &namespace, &name, &container).await?;
    spec.tty = tty;
    serve(app, request, id, spec, true).await
}

async fn running(
    app: &App,
    namespace: &str,
    name: &str,
    container: &str,
) -> Result<(String, bool), Refused> {
    let pod = app.pod(namespace, name)?;
    let (spec, attempts) = app.attempts(&pod, container).await?;
    match attempts.first() {
        Some(o) if o.state == ContainerState::Running => Ok((o.id.clone(), spec.tty == Some(true))),
        _ => Err(Refused(
            StatusCode::NOT_FOUND,
            format!("container not found (\"{container}\")"),
        )),
    }
}

async fn serve(
    app: App,
    request: Request,
    id: String,
    spec: ExecSpec,
    attach: bool,
) -> Result<Response, Refused> {
    let wanted = spec.clone();
    let work = move |channels: Channels| async move {
        let runtime = &*app.ctx.runtime;
        let session = match attach {
            true => runtime.attach(&id, &spec).await,
            false => runtime.exec(&id, &spec).await,
        };
        let status = match session {
            Ok(session) => {
                carry(
                    runtime,
                    session,
                    &spec,
                    channels.input,
                    channels.sizes,
                    &channels.output,
                )
                .await
            }
            Err(e) => internal(&format!("error executing command in container: {e}")),
        };
        // A client that is gone needs no status.
        let _ = channels.output.send(Out::Status(status)).await;
    };
    if is_spdy(request.headers()) {
        return spdy_upgrade(request, work);
    }
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|e| bad_request(e.to_string()))?;
    let upgrade = upgrade.max_message_size(MAX_MESSAGE).protocols(PROTOCOLS);
    let chosen = upgrade.selected_protocol();
    if chosen.is_none() && parts.headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return Err(bad_request(format!(
            "unable to negotiate a protocol: the server speaks {}",
            PROTOCOLS.join(", ")
        )));
    }
    let protocol = Protocol::named(chosen.and_then(|p| p.to_str().ok()).unwrap_or_default());
    let hello = match (wanted.stdout, wanted.stderr) {
        (true, _) => 1,
        (false, true) => 2,
        (false, false) => 3,
    };
    Ok(upgrade.on_upgrade(move |socket| websocket(socket, protocol, hello, work)))
}

/// How channels become messages.
#[derive(Clone, Copy)]
pub(super) struct Protocol {
    base64: bool,
    /// The end is told as a Status object.
    status: bool,
    /// Clients can close a channel.
    closes: bool,
}

impl Protocol {
    /// No name: the oldest.
    pub(super) fn named(name: &str) -> Self {
        Self {
            base64: name.contains("base64."),
            status: name.starts_with('v'),
            closes: name.starts_with("v5."),
        }
    }

    pub(super) fn message(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let channel = char::from(channel.saturating_add(b'0'));
            return Message::Text(format!("{channel}{}", STANDARD.encode(bytes)).into());
        }
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.extend_from_slice(&[channel]);
        message.extend_from_slice(bytes);
        Message::Binary(message.freeze())
    }

    /// `None`: it says nothing on any channel.
    pub(super) fn read(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text.as_str().to_owned()),
            Message::Close(_) | Message::Ping(_) | Message::Pong(_) => return None,
        };
        if bytes.is_empty() {
            return None;
        }
        let channel = bytes.split_to(1)[0];
        if !self.base64 {
            return Some((channel, bytes));
        }
        let decoded = STANDARD.decode(&bytes).ok()?;
        Some((channel.checked_sub(b'0')?, decoded.into()))
    }

    /// What is said on channel 3 at the end.
    fn end(self, status: &Value) -> Option<String> {
        match self.status {
            true => Some(status.to_string()),
            false if status["status"] == "Success" => None,
            false => status["message"].as_str().map(str::to_owned),
        }
    }
}

pub(super) fn is_spdy(headers: &HeaderMap) -> bool {
    let upgrade = headers
        .get(header::UPGRADE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    upgrade.eq_ignore_ascii_case("SPDY/3.1")
}

/// Connects a session with its channels until the process ends or the client leaves: the Status.
async fn carry(
    runtime: &dyn Runtime,
    session: Session,
    spec: &ExecSpec,
    mut input: mpsc::Receiver<Bytes>,
    mut sizes: mpsc::Receiver<(u16, u16)>,
    output: &mpsc::Sender<Out>,
) -> Value {
    let Session {
        id,
        output: mut from,
        input: mut to,
    } = session;
    let mut input_open = spec.stdin;
    let mut sizes_open = spec.tty;
    loop {
        tokio::select! {
            piece = from.next() => match piece {
                Some(Ok(piece)) => {
                    let out = match piece.stream {
                        OutputStream::Stdout => Out::Stdout(piece.bytes),
                        OutputStream::Stderr => Out::Stderr(piece.bytes),
                    };
                    if output.send(out).await.is_err() {
                        return success();
                    }
                }
                Some(Err(e)) => return internal(&e.to_string()),
                None => break,
            },
            () = output.closed() => {
                debug!("the client of an exec is gone");
                return success();
            }
            bytes = input.recv(), if input_open => {
                let written = match bytes {
                    Some(bytes) => {
                        async { to.write_all(&bytes).await?; to.flush().await }.await
                    }
                    None => {
                        input_open = false;
                        to.shutdown().await
                    }
                };
                if written.is_err() {
                    // The process has closed its input; its output goes on.
                    input_open = false;
                }
            }
            size = sizes.recv(), if sizes_open => match size {
                Some((width, height)) => {
                    if let Err(e) = runtime.resize(&id, width, height).await {
                        debug!(error = %e, "cannot resize a terminal");
                    }
                }
                None => sizes_open = false,
            },
        }
    }
    if let SessionId::Attach(_) = id {
        return success();
    }
    for wait in [0, 5, 20, 50, 100, 200, 500, 1000] {
        tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
        match runtime.exit_code(&id).await {
            Ok(Some(0)) => return success(),
            Ok(Some(code)) => return exited(code),
            Ok(None) => {}
            Err(e) => return internal(&e.to_string()),
        }
    }
    internal("the command's exit code is not known")
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

fn exited(code: i32) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn internal(message: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    })
}

fn size(bytes: &[u8]) -> Option<(u16, u16)> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let get = |name: &str| u16::try_from(value[name].as_u64()?).ok();
    Some((get("Width")?, get("Height")?))
}

async fn websocket<W, F>(socket: WebSocket, protocol: Protocol, hello: u8, work: W)
where
    W: FnOnce(Channels) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let (mut to_client, mut from_client) = socket.split();
    let (input_send, input) = mpsc::channel(QUEUE);
    let (sizes_send, sizes) = mpsc::channel(QUEUE);
    let (output, mut output_receive) = mpsc::channel(QUEUE);
    let work = tokio::spawn(work(Channels {
        input,
        sizes,
        output,
    }));
    let reader = tokio::spawn(async move {
        let mut input_send = Some(input_send);
        while let Some(Ok(message)) = from_client.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
            let Some((channel, bytes)) = protocol.read(message) else {
                continue;
            };
            match channel {
                0 => {
                    if let Some(send) = &input_send
                        && !bytes.is_empty()
                        && send.send(bytes).await.is_err()
                    {
                        input_send = None;
                    }
                }
                4 => {
                    if let Some(size) = size(&bytes) {
                        // The newest size counts; a full queue has newer ones coming.
                        let _ = sizes_send.try_send(size);
                    }
                }
                255 if protocol.closes && bytes.first() == Some(&0) => input_send = None,
                _ => {}
            }
        }
    });
    // Tells the client that the streams are there.
    let mut alive = to_client.send(protocol.message(hello, &[])).await.is_ok();
    let mut reader = reader;
    while alive {
        let out = tokio::select! {
            out = output_receive.recv() => match out {
                Some(out) => out,
                None => break,
            },
            // The client left: the process is told by the end of its streams.
            _ = &mut reader => break,
        };
        let last = matches!(out, Out::Status(_));
        let message = match out {
            Out::Stdout(bytes) => Some(protocol.message(1, &bytes)),
            Out::Stderr(bytes) => Some(protocol.message(2, &bytes)),
            Out::Status(status) => {
                let end = protocol.end(&status);
                end.map(|text| protocol.message(3, text.as_bytes()))
            }
        };
        if let Some(message) = message {
            alive = to_client.send(message).await.is_ok();
        }
        alive &= !last;
        if last {
            // Without a code clients report an abnormal end.
            let close = CloseFrame {
                code: 1000,
                reason: "".into(),
            };
            let _ = to_client.send(Message::Close(Some(close))).await;
            let _ = tokio::time::timeout(std::time::Duration::from_secs(2), &mut reader).await;
        }
    }
    drop(output_receive);
    reader.abort();
    // The session ends by itself now that nobody reads; do not leave it behind.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), work).await;
}

/// Answers 101 and hands the connection to SPDY.
pub(super) fn switch_to_spdy<F>(
    request: Request,
    protocol: &'static str,
    work: impl FnOnce(mpsc::Receiver<spdy::Stream>) -> F + Send + 'static,
) -> Result<Response, Refused>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => match spdy::serve(hyper_util::rt::TokioIo::new(upgraded)) {
                Ok(streams) => work(streams).await,
                Err(e) => debug!(error = %e, "cannot speak SPDY"),
            },
            Err(e) => debug!(error = %e, "a connection was not upgraded"),
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("X-Stream-Protocol-Version", protocol)
        .body(axum::body::Body::empty())
        .map_err(|e| Refused(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

fn spdy_upgrade<W, F>(request: Request, work: W) -> Result<Response, Refused>
where
    W: FnOnce(Channels) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let offered: Vec<&str> = request
        .headers()
        .get_all("X-Stream-Protocol-Version")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(',').map(str::trim))
        .collect();
    let protocol = ["v5.channel.k8s.io", "v4.channel.k8s.io"]
        .into_iter()
        .find(|p| offered.contains(p))
        .ok_or_else(|| {
            Refused(
                StatusCode::FORBIDDEN,
                "unable to upgrade: unable to negotiate protocol".into(),
            )
        })?;
    let wanted = spec(request.uri().query().unwrap_or_default());
    switch_to_spdy(request, protocol, move |streams| {
        spdy_session(streams, wanted, work)
    })
}

async fn spdy_session<W, F>(mut streams: mpsc::Receiver<spdy::Stream>, wanted: ExecSpec, work: W)
where
    W: FnOnce(Channels) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let expected = 1
        + usize::from(wanted.stdin)
        + usize::from(wanted.stdout)
        + usize::from(wanted.stderr && !wanted.tty)
        + usize::from(wanted.tty);
    let (mut error, mut stdout, mut stderr) = (None, None, None);
    let (input_send, mut input) = mpsc::channel(QUEUE);
    drop(input_send);
    let (sizes_send, sizes) = mpsc::channel(QUEUE);
    for _ in 0..expected {
        let next = tokio::time::timeout(std::time::Duration::from_secs(30), streams.recv());
        let Ok(Some(stream)) = next.await else { return };
        let kind = stream.header("streamtype").to_string();
        let (receive, output) = stream.split();
        match kind.as_str() {
            "error" => error = Some(output),
            "stdin" => input = receive,
            "stdout" => stdout = Some(output),
            "stderr" => stderr = Some(output),
            "resize" => {
                let sizes_send = sizes_send.clone();
                let mut receive = receive;
                tokio::spawn(async move {
                    while let Some(bytes) = receive.recv().await {
                        if let Some(size) = size(&bytes) {
                            let _ = sizes_send.try_send(size);
                        }
                    }
                });
            }
            _ => {}
        }
    }
    drop(sizes_send);
    let (output, mut output_receive) = mpsc::channel(QUEUE);
    let work = tokio::spawn(work(Channels {
        input,
        sizes,
        output,
    }));
    while let Some(out) = output_receive.recv().await {
        let (to, bytes) = match out {
            Out::Stdout(bytes) => (&stdout, bytes),
            Out::Stderr(bytes) => (&stderr, bytes),
            Out::Status(status) => (&error, Bytes::from(status.to_string())),
        };
        if let Some(to) = to
            && !to.send(bytes).await
        {
            break;
        }
    }
    for stream in [stdout, stderr, error].into_iter().flatten() {
        stream.close().await;
    }
    drop(output_receive);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), work).await;
    // The client closes the connection; do not do it before it has read everything.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), streams.recv()).await;
}
