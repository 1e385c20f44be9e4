//! Whom a webhook's caller trusts: the bundle in its configuration, else the system's authorities.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

/// Where systems keep their authorities, most common first.
const SYSTEM_BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// `certificate`: what the webhook is shown.
///
/// # Errors
/// When the bundle holds no certificate, or the key does not fit what the webhook is shown.
pub fn config(
    ca_bundle: &[u8],
    certificate: Option<&(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, String> {
    let certificates = if ca_bundle.is_empty() {
        system_authorities()
    } else {
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(ca_bundle).collect();
        let read = read.map_err(|error| error.to_string())?;
        if read.is_empty() {
            return Err("no certificate in the bundle".to_owned());
        }
        read
    };
    let mut roots = RootCertStore::empty();
    let (known, _) = roots.add_parsable_certificates(certificates.iter().cloned());
    if known == 0 && !ca_bundle.is_empty() {
        return Err("no readable certificate in the bundle".to_owned());
    }
    let provider = Arc::new(ring::default_provider());
    let inner = if known == 0 {
        None
    } else {
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        Some(verifier.build().map_err(|error| error.to_string())?)
    };
    let verifier = BundleVerifier {
        inner,
        certificates,
        provider: provider.clone(),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match certificate {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| error.to_string()),
    }
}

fn system_authorities() -> Vec<CertificateDer<'static>> {
    let given = std::env::var("SSL_CERT_FILE").ok();
    let files = given
        .as_deref()
        .into_iter()
        .chain(SYSTEM_BUNDLES.iter().copied());
    let read = files
        .filter_map(|file| CertificateDer::pem_file_iter(file).ok())
        .map(|certificates| certificates.filter_map(Result::ok).collect::<Vec<_>>());
    let mut read = read.filter(|certificates| !certificates.is_empty());
    read.next().unwrap_or_default()
}

/// The usual verifier, and beside it what Go allows: a self-signed server certificate that is in the bundle itself.
#[derive(Debug)]
struct BundleVerifier {
    /// `None` when there are no authorities at all.
    inner: Option<Arc<WebPkiServerVerifier>>,
    certificates: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for BundleVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificates.iter().any(|known| known == end_entity) {
            check_time(end_entity, now)?;
            let parsed = ParsedCertificate::try_from(end_entity)?;
            rustls::client::verify_server_name(&parsed, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        match &self.inner {
            Some(inner) => {
                inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn check_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// A failed handshake in the words of Go's crypto/tls, which people search for.
pub fn reason(error: &rustls::Error) -> String {
    use rustls::Error::{InvalidCertificate, InvalidMessage};
    match error {
        InvalidCertificate(why) => {
            let why = match why {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "certificate signed by unknown authority".to_owned()
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "certificate has expired or is not yet valid".to_owned()
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "certificate has expired or is not yet valid".to_owned()
                }
                CertificateError::NotValidForName => {
                    "certificate is not valid for the server's name".to_owned()
                }
                CertificateError::NotValidForNameContext {
                    expected,
                    presented,
                } => {
                    let expected = expected.to_str();
                    let names: Vec<&str> = presented
                        .iter()
                        .map(|name| name.split('"').nth(1).unwrap_or(name.as_str()))
                        .collect();
                    format!(
                        "certificate is valid for {}, not {expected}",
                        names.join(", ")
                    )
                }
                other => other.to_string(),
            };
            format!("tls: failed to verify certificate: x509: {why}")
        }
        InvalidMessage(_) => "http: server gave HTTP response to HTTPS client".to_owned(),
        other => format!("remote error: tls: {other}"),
    }
}
