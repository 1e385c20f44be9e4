//! What lets others join the cluster and use it: a bootstrap token in it, `DATA_DIR/bootstrap.kubeconfig` that holds the
//! token, the address of cluster DNS, a default storage class. The process with the controllers takes care of it, wherever
//! the API server runs.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use ipnet::IpNet;
use k8s_openapi::{
    ByteString,
    api::{
        core::v1::{Secret, Service},
        discovery::v1::EndpointSlice,
        storage::v1::StorageClass,
    },
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use rand::RngExt;
use skep_client::backoff::Backoff;
use skep_controllers::persistent_volume::LOCAL_PATH;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    kubeconfig::{self, Credentials},
    pki::write_private,
};

/// Between two tries while the API cannot be reached.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

pub struct Joining {
    pub client: Client,
    pub data_dir: PathBuf,
    /// Of the API server's certificate.
    pub ca_pem: String,
    /// Where nodes reach the API; `None`: ask the API, whose `kubernetes` Service has it.
    pub api_address: Option<SocketAddr>,
    pub service_cidr: IpNet,
}

impl Joining {
    /// Returns once nodes can join, or at shutdown.
    ///
    /// # Errors
    /// A file cannot be read, is damaged, or cannot be written. What fails at the API is tried again.
    pub async fn prepare(&self, shutdown: &CancellationToken) -> Result<()> {
        let token = Token::open(&self.data_dir.join("bootstrap-token"))?;
        let mut failures = 0;
        let address = loop {
            match self.publish(&token).await {
                Ok(address) => break address,
                Err(error) => {
                    let error = format!("{error:#}");
                    warn!(error, "nodes cannot join yet; will retry");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY.delay(failures)) => failures += 1,
                () = shutdown.cancelled() => return Ok(()),
            }
        };
        let text = kubeconfig::render(
            "skep",
            &format!("https://{address}"),
            &self.ca_pem,
            "node-bootstrapper",
            &Credentials::Token(&token.0),
        );
        write_private(&self.data_dir.join("bootstrap.kubeconfig"), &text)
    }

    /// Puts the token and the DNS Service into the cluster; returns the address of its API.
    async fn publish(&self, token: &Token) -> Result<SocketAddr> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "kube-system");
        // Only at the first start, before the token is there: who deletes the class does not get it back.
        if secrets.get_opt(&token.secret_name()).await?.is_none() {
            let classes: Api<StorageClass> = Api::all(self.client.clone());
            let created = classes
                .create(&PostParams::default(), &default_class())
                .await;
            unless_there(created).context("making the default storage class")?;
        }
        let created = secrets
            .create(&PostParams::default(), &token.secret())
            .await;
        unless_there(created).context("storing the bootstrap token")?;
        self.ensure_dns_service().await;
        match self.api_address {
            Some(address) => Ok(address),
            None => self.published_address().await,
        }
    }

    async fn published_address(&self) -> Result<SocketAddr> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), "default");
        let slice = slices
            .get("kubernetes")
            .await
            .context("asking for the endpoints of the kubernetes Service")?;
        let ip = slice
            .endpoints
            .iter()
            .flatten()
            .flat_map(|each| &each.addresses)
            .next();
        let port = slice.ports.iter().flatten().find_map(|port| port.port);
        let (ip, port) = ip
            .zip(port)
            .context("the kubernetes Service has no endpoint")?;
        Ok(SocketAddr::new(ip.parse()?, u16::try_from(port)?))
    }

    /// The cluster DNS address as people look for it, and taken, so that no other Service gets it. Every agent answers
    /// there by itself: the Service has no selector and needs no endpoints, and names resolve without it too.
    async fn ensure_dns_service(&self) {
        let Some(address) = self.service_cidr.hosts().nth(9) else {
            return;
        };
        let services: Api<Service> = Api::namespaced(self.client.clone(), "kube-system");
        let service: Service = match serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": "kube-dns", "namespace": "kube-system",
                "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"},
            },
            "spec": {
                "clusterIP": address.to_string(),
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        })) {
            Ok(service) => service,
            Err(error) => return warn!(%error, "the kube-dns Service is not one"),
        };
        let created = services.create(&PostParams::default(), &service).await;
        if let Err(error) = unless_there(created) {
            warn!(%error, "the kube-dns Service was not made");
        }
    }
}

/// Claims that name no class get a directory on the node of their first pod.
fn default_class() -> StorageClass {
    let default = "storageclass.kubernetes.io/is-default-class";
    StorageClass {
        metadata: ObjectMeta {
            name: Some("local-path".into()),
            annotations: Some([(default.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        provisioner: LOCAL_PATH.into(),
        reclaim_policy: Some("Delete".into()),
        volume_binding_mode: Some("WaitForFirstConsumer".into()),
        ..StorageClass::default()
    }
}

fn unless_there<K>(created: kube::Result<K>) -> kube::Result<()> {
    match created {
        Err(error) if !skep_client::writes::is_already_exists(&error) => Err(error),
        _ => Ok(()),
    }
}

/// `ID.SECRET`, see the [bootstrap token](https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/) format.
struct Token(String);

impl Token {
    /// The one in the file, which is made at the first start.
    fn open(path: &Path) -> Result<Self> {
        let token = match std::fs::read_to_string(path) {
            Ok(text) => Self(text.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let token = Self::random();
                write_private(path, &token.0)?;
                token
            }
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
        };
        skep_apiserver::authn::bootstrap_token::Token::parse(&token.0).with_context(|| {
            format!(
                "{} holds no bootstrap token; delete it to make another",
                path.display()
            )
        })?;
        Ok(token)
    }

    /// `[a-z0-9]{6}.[a-z0-9]{16}`, 82 bits of secret.
    fn random() -> Self {
        const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut random = rand::rng();
        let mut letters = |count: usize| -> String {
            (0..count)
                .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
                .collect()
        };
        Self(format!("{}.{}", letters(6), letters(16)))
    }

    fn id_and_secret(&self) -> (&str, &str) {
        self.0.split_once('.').unwrap_or_default()
    }

    fn secret_name(&self) -> String {
        format!("bootstrap-token-{}", self.id_and_secret().0)
    }

    fn secret(&self) -> Secret {
        let (id, secret) = self.id_and_secret();
        let data = [
            ("token-id", id),
            ("token-secret", secret),
            ("usage-bootstrap-authentication", "true"),
            ("usage-bootstrap-signing", "true"),
            (
                "description",
                "Made by skep-control: with it nodes join the cluster.",
            ),
        ];
        let bytes = |(key, value): (&str, &str)| (key.to_owned(), ByteString(value.into()));
        Secret {
            metadata: ObjectMeta {
                name: Some(self.secret_name()),
                namespace: Some("kube-system".into()),
                ..ObjectMeta::default()
            },
            type_: Some("bootstrap.kubernetes.io/token".into()),
            data: Some(data.map(bytes).into()),
            ..Secret::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_then_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bootstrap-token");
        let made = Token::open(&path).unwrap();
        assert_eq!(Token::open(&path).unwrap().0, made.0);
        let data = made.secret().data.unwrap();
        assert_eq!(
            made.0.as_bytes(),
            [&data["token-id"].0[..], &data["token-secret"].0[..]].join(&b'.')
        );

        std::fs::write(&path, "nonsense").unwrap();
        let error = Token::open(&path).err().unwrap().to_string();
        assert!(error.contains("holds no bootstrap token"), "{error}");
    }
}
