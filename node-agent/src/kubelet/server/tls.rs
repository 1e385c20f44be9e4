//! The server's certificate: made here at first, signed by the cluster as soon as it will.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::RwLock;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::super::bootstrap::{self, SERVING_SIGNER};
use super::Context;

const RETRY: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
pub(super) struct Certificates {
    current: Arc<RwLock<Arc<CertifiedKey>>>,
    folder: PathBuf,
    /// The current one is signed by the cluster.
    signed: Arc<RwLock<bool>>,
}

impl Certificates {
    /// The signed certificate of the last start, or a new one signed by itself.
    pub(super) fn load(ctx: &Context) -> Result<Self> {
        let folder = ctx.config.state_dir.join("pki");
        let read = |name: &str| std::fs::read(folder.join(name)).ok();
        let stored = read("serving.crt")
            .zip(read("serving.key"))
            .and_then(|(certificate, key)| certified(&certificate, &key).ok())
            .filter(|key| remaining(key) > 0.2);
        let signed = stored.is_some();
        let current = match stored {
            Some(key) => key,
            None => {
                let key = KeyPair::generate()?;
                let mut params = CertificateParams::default();
                params.subject_alt_names = names(ctx)?;
                let certificate = params.self_signed(&key)?;
                certified(certificate.pem().as_bytes(), key.serialize_pem().as_bytes())?
            }
        };
        Ok(Self {
            current: Arc::new(RwLock::new(Arc::new(current))),
            folder,
            signed: Arc::new(RwLock::new(signed)),
        })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

fn names(ctx: &Context) -> Result<Vec<SanType>> {
    let mut names: Vec<SanType> = ctx
        .host_ips
        .iter()
        .copied()
        .map(SanType::IpAddress)
        .collect();
    names.push(SanType::DnsName(ctx.config.node_name.clone().try_into()?));
    Ok(names)
}

fn certified(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<std::result::Result<Vec<_>, _>>()
        .context("the serving certificate is not PEM")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("the serving key is not PEM")?;
    Ok(CertifiedKey::new(chain, any_supported_type(&key)?))
}

/// The part of its life that a certificate still has.
fn remaining(key: &CertifiedKey) -> f64 {
    let Some(first) = key.cert.first() else {
        return 0.0;
    };
    let Ok((_, certificate)) = X509Certificate::from_der(first) else {
        return 0.0;
    };
    let validity = certificate.validity();
    let (from, to) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let now = jiff::Timestamp::now().as_second();
    (to - now) as f64 / (to - from).max(1) as f64
}

/// Asks the cluster to sign, at first and before the end of each certificate.
pub(super) async fn keep_signed(
    ctx: Arc<Context>,
    certificates: Certificates,
    stop: CancellationToken,
) {
    let mut wait = RETRY;
    loop {
        let fresh = *certificates.signed.read() && remaining(&certificates.current.read()) > 0.3;
        let pause = if fresh {
            LOOK
        } else {
            match sign(&ctx, &certificates).await {
                Ok(()) => {
                    wait = RETRY;
                    LOOK
                }
                Err(e) => {
                    warn!(
                        error = format!("{e:#}"),
                        "no signed serving certificate yet; will retry"
                    );
                    wait = (wait * 2).min(RETRY_MAX);
                    wait
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn sign(ctx: &Context, certificates: &Certificates) -> Result<()> {
    let key = KeyPair::generate()?;
    let node = &ctx.config.node_name;
    let user = format!("system:node:{node}");
    let names = names(ctx)?;
    let certificate =
        bootstrap::request(&ctx.client, &key, &user, SERVING_SIGNER, &names, node).await?;
    let key = key.serialize_pem();
    let fresh = certified(&certificate, key.as_bytes())?;
    bootstrap::write_secret(&certificates.folder.join("serving.crt"), &certificate)?;
    bootstrap::write_secret(&certificates.folder.join("serving.key"), key.as_bytes())?;
    *certificates.current.write() = Arc::new(fresh);
    *certificates.signed.write() = true;
    info!(node, "the cluster signed the serving certificate");
    Ok(())
}

/// Client certificates are optional: a caller may bring a token instead.
pub(super) fn config(
    certificates: Certificates,
    roots: Vec<CertificateDer<'static>>,
) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root)
            .context("the cluster's CA certificate is not usable")?;
    }
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = if store.is_empty() {
        builder.with_no_client_auth()
    } else {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
            .allow_unauthenticated()
            .build()?;
        builder.with_client_cert_verifier(verifier)
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
