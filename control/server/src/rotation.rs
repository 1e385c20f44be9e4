//! Certificates that change while they are in use: made anew before they end, without a restart.

use std::{fmt, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::pki::{Pair, Pki};

/// How often certificates are looked at. They are renewed two months before they end.
const INTERVAL: Duration = Duration::from_secs(12 * 3600);

/// The certificate to show in the next handshake.
pub struct Rotating(ArcSwap<CertifiedKey>);

impl fmt::Debug for Rotating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rotating")
    }
}

fn certified(pair: &Pair) -> Result<CertifiedKey> {
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(pair.chain()?, pair.private_key()?, &provider)
        .context("reading a certificate and its key")
}

impl Rotating {
    pub fn new(pair: &Pair) -> Result<Arc<Self>> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(certified(pair)?))))
    }

    fn set(&self, pair: &Pair) -> Result<bool> {
        let new = certified(pair)?;
        let changed = self.0.load().cert != new.cert;
        if changed {
            self.0.store(Arc::new(new));
        }
        Ok(changed)
    }
}

impl ResolvesServerCert for Rotating {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for Rotating {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The certificates that the API server shows, by what they are for.
pub struct Shown {
    pub serving: Arc<Rotating>,
    pub kubelet_client: Arc<Rotating>,
    pub front_proxy: Arc<Rotating>,
}

impl Shown {
    pub fn new(pki: &Pki) -> Result<Self> {
        Ok(Self {
            serving: Rotating::new(&pki.apiserver)?,
            kubelet_client: Rotating::new(&pki.kubelet_client)?,
            front_proxy: Rotating::new(&pki.front_proxy_client)?,
        })
    }

    /// Shows what the folder holds now.
    pub fn refresh(&self, pki: &Pki) -> Result<()> {
        for (name, shown, pair) in [
            ("apiserver", &self.serving, &pki.apiserver),
            ("kubelet-client", &self.kubelet_client, &pki.kubelet_client),
            (
                "front-proxy-client",
                &self.front_proxy,
                &pki.front_proxy_client,
            ),
        ] {
            if shown.set(pair)? {
                info!(certificate = name, "renewed");
            }
        }
        Ok(())
    }
}

/// Looks at the folder again and again. `open` renews what is near its end.
pub async fn run(
    shown: Shown,
    open: impl Fn() -> Result<Pki> + Send,
    renewed: impl Fn(&Pki) -> Result<()> + Send,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
        let refreshed = open().and_then(|pki| {
            shown.refresh(&pki)?;
            renewed(&pki)
        });
        if let Err(error) = refreshed {
            error!(error = %format!("{error:#}"), "certificates cannot be renewed; they will be tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::{SignedDuration, Timestamp};

    use super::*;

    #[test]
    fn the_next_handshake_shows_the_renewed_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let names = BTreeSet::from(["localhost".to_owned()]);
        let open = |at| Pki::open(folder.path(), &names, &BTreeSet::new(), at).unwrap();
        let now = Timestamp::now();
        let shown = Shown::new(&open(now)).unwrap();
        let serial = |rotating: &Rotating| rotating.0.load().cert.clone();
        let first = serial(&shown.serving);
        shown.refresh(&open(now)).unwrap();
        assert_eq!(serial(&shown.serving), first);
        let later = now + SignedDuration::from_hours(320 * 24);
        shown.refresh(&open(later)).unwrap();
        assert_ne!(serial(&shown.serving), first);
        assert_ne!(serial(&shown.front_proxy), serial(&shown.kubelet_client));
    }
}
