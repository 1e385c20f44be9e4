//! How a node gets its identity: a token, a certificate request, a kubeconfig.
//!
//! With the token the agent asks for a client certificate of `system:node:NAME` in group
//! `system:nodes`; the cluster's signer grants it. The key never leaves the node. The result is an
//! ordinary kubeconfig, so the next start needs no token.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::json;
use tracing::{info, warn};

pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
const POLL: Duration = Duration::from_millis(250);

pub async fn client(path: &Path) -> Result<Client> {
    let config = config(path).await?;
    Client::try_from(config).context("cannot make an API client")
}

pub async fn config(path: &Path) -> Result<kube::Config> {
    let kubeconfig =
        Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("{} is not usable", path.display()))?;
    config.read_timeout = None;
    Ok(config)
}

/// Joins with the token in `bootstrap` and writes `kubeconfig`.
pub async fn join(bootstrap: &Path, kubeconfig: &Path, node: &str) -> Result<()> {
    let source = Kubeconfig::read_from(bootstrap)
        .with_context(|| format!("cannot read {}", bootstrap.display()))?;
    let client = client(bootstrap).await?;
    let key = KeyPair::generate().context("cannot make a key")?;
    let name = format!("system:node:{node}");
    let certificate = loop {
        match request(&client, &key, &name, CLIENT_SIGNER, &[], node).await {
            Ok(certificate) => break certificate,
            Err(e) => {
                warn!(
                    node,
                    error = format!("{e:#}"),
                    "cannot get a certificate yet; will retry"
                );
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    };
    let cluster = source
        .clusters
        .first()
        .and_then(|c| c.cluster.clone())
        .with_context(|| format!("{} names no cluster", bootstrap.display()))?;
    let written = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "skep",
        "clusters": [{"name": "skep", "cluster": cluster}],
        "contexts": [{"name": "skep", "context": {"cluster": "skep", "user": name}}],
        "users": [{"name": name, "user": {
            "client-certificate-data": STANDARD.encode(&certificate),
            "client-key-data": STANDARD.encode(key.serialize_pem()),
        }}],
    });
    write_secret(kubeconfig, written.to_string().as_bytes())?;
    info!(node, kubeconfig = %kubeconfig.display(), "joined the cluster");
    Ok(())
}

/// Only root may read it, and a half-written one is never seen.
pub fn write_secret(path: &Path, content: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let temporary = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Asks for a certificate and waits until it is issued: PEM.
pub async fn request(
    client: &Client,
    key: &KeyPair,
    name: &str,
    signer: &str,
    addresses: &[SanType],
    node: &str,
) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.subject_alt_names = addresses.to_vec();
    let csr = params.serialize_request(key)?.pem()?;
    let usages = match signer {
        SERVING_SIGNER => ["digital signature", "server auth"],
        _ => ["digital signature", "client auth"],
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let object = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("csr-".into()),
            labels: Some(BTreeMap::from([(
                "skep.io/node".to_string(),
                node.to_string(),
            )])),
            ..Default::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(csr.into_bytes()),
            signer_name: signer.into(),
            usages: Some(usages.map(String::from).to_vec()),
            ..Default::default()
        },
        ..Default::default()
    };
    let made = api
        .create(&PostParams::default(), &object)
        .await
        .context("cannot ask")?;
    let name = made.name_any();
    // Until somebody decides: a person may have to.
    loop {
        tokio::time::sleep(POLL).await;
        let current = api.get(&name).await.context("cannot read the request")?;
        let status = current.status.unwrap_or_default();
        if let Some(no) = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Denied" || c.type_ == "Failed")
        {
            let _ = api.delete(&name, &DeleteParams::default()).await;
            bail!(
                "certificate request {name} was {}: {}",
                no.type_.to_lowercase(),
                no.message.clone().unwrap_or_default()
            );
        }
        if let Some(certificate) = status.certificate.filter(|c| !c.0.is_empty()) {
            return Ok(certificate.0);
        }
    }
}
