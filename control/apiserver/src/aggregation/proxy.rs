//! Requests for an aggregated group-version: to whom they go, and as whom they are sent.

use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::Remote;
use crate::{
    context::{Api, Ctx},
    identity::User,
    relay::{self, Destination, Tls},
    respond::text,
    status::Result,
    subresources::streams::service_endpoint,
};

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA_PREFIX: &str = "x-remote-extra-";

/// `None`: the path is answered here.
pub async fn handle(ctx: &Ctx) -> Option<Result<Response>> {
    // OpenAPI of an aggregated group-version is its server's, under the same path.
    let path = ctx
        .info
        .path
        .strip_prefix("/openapi/v3")
        .unwrap_or(&ctx.info.path);
    let mut parts = path.strip_prefix("/apis/")?.split('/');
    let (group, version) = (parts.next()?, parts.next().filter(|v| !v.is_empty())?);
    let remote = ctx.api.aggregation.remote(group, version)?;
    Some(proxied(ctx, &remote).await)
}

fn unavailable() -> Response {
    text(StatusCode::SERVICE_UNAVAILABLE, "service unavailable\n")
}

async fn proxied(ctx: &Ctx, remote: &Remote) -> Result<Response> {
    if !remote.available {
        return Ok(unavailable());
    }
    let query = ctx.query_text.as_deref();
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    let path = format!("{}{query}", ctx.info.path);
    match destination(&ctx.api, remote, path) {
        Ok(mut destination) => {
            destination.headers = identity(&ctx.user);
            let answer = relay::forward(ctx, &destination).await;
            if matches!(&answer, Err(status) if status.code == 503) {
                ctx.api.aggregation.suspicion.notify_one();
            }
            answer
        }
        Err(error) => {
            tracing::debug!(
                apiservice = remote.name,
                error,
                "an aggregated server cannot be reached"
            );
            Ok(unavailable())
        }
    }
}

/// An endpoint of the APIService's Service.
pub(super) fn destination(
    api: &Api,
    remote: &Remote,
    path: String,
) -> std::result::Result<Destination, String> {
    let endpoint = service_endpoint(
        api,
        &remote.namespace,
        &remote.service,
        &remote.port.to_string(),
    )
    .map_err(|status| status.message.clone())?;
    Ok(Destination {
        address: endpoint.address,
        port: endpoint.port,
        tls: Tls::Service(remote.tls.clone()?),
        node: endpoint.node,
        path,
        headers: HeaderMap::new(),
    })
}

/// Headers that name a user, and that a client may not send through.
pub fn is_identity(name: &HeaderName) -> bool {
    [USER, UID, GROUP].contains(name) || name.as_str().starts_with(EXTRA_PREFIX)
}

/// The request's user as the other server reads it (`--requestheader-*-headers`).
pub(super) fn identity(user: &User) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut add = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.append(name, value);
        }
    };
    add(USER, &user.name);
    if !user.uid.is_empty() {
        add(UID, &user.uid);
    }
    for group in &user.groups {
        add(GROUP, group);
    }
    for (key, values) in &user.extra {
        if let Ok(name) = format!("{EXTRA_PREFIX}{}", escaped(key)).parse::<HeaderName>() {
            for value in values {
                add(name.clone(), value);
            }
        }
    }
    headers
}

/// What may not stand in a header's name is percent-encoded (client-go `headerKeyEscape`).
fn escaped(key: &str) -> String {
    let mut out = String::new();
    for byte in key.to_ascii_lowercase().bytes() {
        match byte {
            b'%' => out.push_str("%25"),
            b'!' | b'#' | b'$' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`'
            | b'|' | b'~' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// `insecureSkipTLSVerify`: takes any certificate, but still holds the other end to owning it.
#[derive(Debug)]
pub(super) struct AnyCertificate(pub(super) CryptoProvider);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn users_are_named_in_headers() {
        let user = User {
            name: "jane".into(),
            uid: "u".into(),
            groups: vec!["a".into(), "b".into()],
            extra: BTreeMap::from([("example.com/Scope%".into(), vec!["x".into(), "y".into()])]),
        };
        let headers = identity(&user);
        let all = |name: &str| -> Vec<&str> {
            let values = headers.get_all(name).iter();
            values.map(|v| v.to_str().unwrap()).collect()
        };
        assert_eq!(all("x-remote-user"), ["jane"]);
        assert_eq!(all("x-remote-uid"), ["u"]);
        assert_eq!(all("x-remote-group"), ["a", "b"]);
        assert_eq!(all("x-remote-extra-example.com%2Fscope%25"), ["x", "y"]);
        assert!(headers.keys().all(is_identity));
        assert!(!is_identity(&http::header::ACCEPT));
    }
}
