//! Logs and watches over a WebSocket, for clients that cannot read an answer piece by piece: what would be the body goes
//! out as messages. Upstream: `wsstream` of k8s.io/apiserver, and its watch handler.

use axum::{body::Body, response::Response};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{
    context::Ctx,
    status::{Result, Status},
};

/// What a client sends is not read: more than this is no request of ours.
const MAX_MESSAGE: usize = 64 << 10;
const BASE64: &str = "base64.binary.k8s.io";
/// Subprotocols that are a token of the client's, for us alone.
pub const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// How a piece becomes a message.
#[derive(Clone, Copy)]
enum Messages {
    Binary,
    /// For browsers that know only text.
    Base64,
    Text,
}

pub fn is_asked(headers: &HeaderMap) -> bool {
    let of = |name| {
        let values = headers.get_all(name).into_iter();
        values.filter_map(|value| value.to_str().ok())
    };
    let upgrades = of(header::CONNECTION)
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    upgrades && of(header::UPGRADE).any(|value| value.eq_ignore_ascii_case("websocket"))
}

/// What the client offers, without its token.
fn offered(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty() && !protocol.starts_with(TOKEN_PROTOCOL))
        .collect()
}

/// Leaves a client's token out of what goes to others.
pub fn drop_token(headers: &mut HeaderMap) {
    if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        let rest = HeaderValue::from_str(&offered(headers).join(", "));
        match rest {
            Ok(rest) if !rest.is_empty() => {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, rest);
            }
            _ => {
                headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
            }
        }
    }
}

/// The pieces of a log, as bytes or as base64, whichever the client knows.
///
/// # Errors
/// When it knows neither.
pub fn pieces(ctx: &Ctx, answer: Response) -> Result<Response> {
    let offered = offered(&ctx.headers);
    let mut known = offered.iter().copied();
    let chosen = known.find(|protocol| matches!(*protocol, "binary.k8s.io" | BASE64));
    let messages = match chosen {
        None if !offered.is_empty() => {
            return Err(Status::bad_request(format!(
                "unable to negotiate a protocol: the server speaks binary.k8s.io, {BASE64}"
            )));
        }
        Some(BASE64) => Messages::Base64,
        _ => Messages::Binary,
    };
    // An empty message first: the client knows that it is served, however long the log is silent.
    open(ctx, answer, chosen, messages, Some(Bytes::new()))
}

/// A message for each event of a watch.
///
/// # Errors
/// As of [`open`].
pub fn events(ctx: &Ctx, answer: Response) -> Result<Response> {
    let json = answer.headers().get(header::CONTENT_TYPE);
    let messages = match json.is_some_and(|kind| kind == "application/json") {
        true => Messages::Text,
        false => Messages::Binary,
    };
    let chosen = offered(&ctx.headers).first().copied();
    open(ctx, answer, chosen, messages, None)
}

/// Switches protocols and sends `answer`'s body. An answer that failed stays what it is.
fn open(
    ctx: &Ctx,
    answer: Response,
    protocol: Option<&str>,
    messages: Messages,
    first: Option<Bytes>,
) -> Result<Response> {
    if answer.status() != StatusCode::OK {
        return Ok(answer);
    }
    let key = ctx.headers.get(header::SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| Status::bad_request("Sec-WebSocket-Key is missing"))?;
    let connection = ctx.upgrade.lock().take();
    let connection =
        connection.ok_or_else(|| Status::bad_request("this connection cannot be upgraded"))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accepted = derive_accept_key(key.as_bytes());
    if let Ok(accepted) = HeaderValue::from_str(&accepted) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    }
    if let Some(protocol) = protocol.and_then(|p| HeaderValue::from_str(p).ok()) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let draining = ctx.api.readiness.draining();
    tokio::spawn(async move {
        tokio::select! {
            () = send(connection, answer.into_body(), messages, first) => {}
            () = draining => {}
        }
    });
    Ok(response)
}

async fn send(connection: OnUpgrade, body: Body, messages: Messages, first: Option<Bytes>) {
    let connection = match connection.await {
        Ok(connection) => TokioIo::new(connection),
        Err(error) => return tracing::debug!(%error, "a WebSocket did not begin"),
    };
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE));
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await;
    let (mut to, mut from) = socket.split();
    let message = |piece: Bytes| match messages {
        Messages::Binary => Message::Binary(piece),
        Messages::Base64 => Message::Text(STANDARD.encode(&piece).into()),
        Messages::Text => Message::Text(String::from_utf8_lossy(&piece).as_ref().into()),
    };
    if let Some(piece) = first
        && to.send(message(piece)).await.is_err()
    {
        return;
    }
    let mut pieces = body.into_data_stream();
    loop {
        tokio::select! {
            piece = pieces.next() => match piece {
                Some(Ok(piece)) => {
                    if to.send(message(piece)).await.is_err() {
                        return;
                    }
                }
                _ => break,
            },
            // Pings are answered by reading; anything else that is said is passed over.
            said = from.next() => match said {
                Some(Ok(Message::Close(_))) | Some(Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
    let close = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    // A client that is gone needs no end.
    let _ = to.send(Message::Close(Some(close))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_is_asked_for_in_two_headers() {
        let headers = |connection: &'static str, upgrade: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
            headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
            headers
        };
        assert!(is_asked(&headers("keep-alive, Upgrade", "WebSocket")));
        assert!(!is_asked(&headers("keep-alive", "websocket")));
        assert!(!is_asked(&headers("Upgrade", "SPDY/3.1")));
        assert!(!is_asked(&HeaderMap::new()));
    }

    #[test]
    fn a_token_is_no_protocol() {
        let mut headers = HeaderMap::new();
        let value = "base64url.bearer.authorization.k8s.io.YQ, binary.k8s.io ,,x";
        headers.insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(value),
        );
        assert_eq!(offered(&headers), ["binary.k8s.io", "x"]);
    }
}
