//! The cluster's certificates and keys, made at first start and kept in `DATA_DIR/pki`.
//!
//! | file | what it is |
//! |---|---|
//! | `ca` | signs everything below and what the CSR signers issue; ten years |
//! | `apiserver` | serving certificate; made anew when a name is missing or it nears its end |
//! | `admin` | client certificate of `admin.kubeconfig` (`system:masters`) |
//! | `kubelet-client` | with which the API server calls the agents |
//! | `front-proxy-ca` | signs `front-proxy-client`, and nothing else |
//! | `front-proxy-client` | with which the API server calls the servers of APIServices |
//! | `service-account.key` | signs service-account tokens |
//!
//! Several control-plane machines share one folder's content: copy `pki/` before the first start of the second.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Common name of the certificate that aggregated servers take `X-Remote-*` headers from.
pub const FRONT_PROXY: &str = "front-proxy-client";

const CA_LIFETIME: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
const LIFETIME: SignedDuration = SignedDuration::from_hours(365 * 24);
/// A certificate with less left than this is made anew.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(60 * 24);
/// Clocks of nodes may be this much behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Pair {
    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .context("reading a certificate")
    }

    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context("reading a private key")
    }
}

#[derive(Clone, Debug)]
pub struct Pki {
    pub ca: Pair,
    pub apiserver: Pair,
    pub admin: Pair,
    pub kubelet_client: Pair,
    /// Who may say who a user is: a CA of its own, so that no other certificate of the cluster may.
    pub front_proxy_ca: Pair,
    pub front_proxy_client: Pair,
    /// PKCS#8 DER, P-256.
    pub service_account_key: Vec<u8>,
}

enum Purpose<'a> {
    Server {
        names: &'a BTreeSet<String>,
        addresses: &'a BTreeSet<IpAddr>,
    },
    Client {
        user: &'a str,
        group: &'a str,
    },
}

impl Pki {
    /// Reads `folder`, making what is missing, too old, or (serving) lacks one of the names.
    pub fn open(
        folder: &Path,
        names: &BTreeSet<String>,
        addresses: &BTreeSet<IpAddr>,
        now: Timestamp,
    ) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("making the folder {}", folder.display()))?;
        let files = Folder { folder, now };
        let ca = files.authority("ca", "skep-ca")?;
        let front_proxy_ca = files.authority("front-proxy-ca", "front-proxy-ca")?;
        let client = |name: &str, ca: &Pair, user: &str, group: &str| {
            files.leaf(name, ca, &Purpose::Client { user, group })
        };
        const MASTERS: &str = "system:masters";
        Ok(Self {
            apiserver: files.leaf("apiserver", &ca, &Purpose::Server { names, addresses })?,
            admin: client("admin", &ca, "kubernetes-admin", MASTERS)?,
            kubelet_client: client(
                "kubelet-client",
                &ca,
                "kube-apiserver-kubelet-client",
                MASTERS,
            )?,
            front_proxy_client: client("front-proxy-client", &front_proxy_ca, FRONT_PROXY, "")?,
            front_proxy_ca,
            service_account_key: files.key("service-account")?.serialize_der(),
            ca,
        })
    }
}

struct Folder<'a> {
    folder: &'a Path,
    now: Timestamp,
}

impl Folder<'_> {
    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{name}.{extension}"))
    }

    fn read(&self, name: &str, extension: &str) -> Result<Option<String>> {
        let path = self.path(name, extension);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// The key `name.key`, made if missing.
    fn key(&self, name: &str) -> Result<KeyPair> {
        if let Some(pem) = self.read(name, "key")? {
            let path = self.path(name, "key");
            return KeyPair::from_pem(&pem)
                .with_context(|| format!("{} is not a usable private key", path.display()));
        }
        let key = KeyPair::generate()?;
        write_private(&self.path(name, "key"), &key.serialize_pem())?;
        Ok(key)
    }

    fn params(&self, common_name: &str, lifetime: SignedDuration) -> Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.not_before = offset_date_time(self.now - BACKDATE)?;
        params.not_after = offset_date_time(self.now + lifetime)?;
        Ok(params)
    }

    fn authority(&self, name: &str, common_name: &str) -> Result<Pair> {
        let key = self.key(name)?;
        let certificate = match self.read(name, "crt")? {
            Some(certificate) => certificate,
            None => {
                let mut params = self.params(common_name, CA_LIFETIME)?;
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages = vec![
                    KeyUsagePurpose::DigitalSignature,
                    KeyUsagePurpose::KeyCertSign,
                    KeyUsagePurpose::CrlSign,
                ];
                let certificate = params.self_signed(&key)?.pem();
                write_private(&self.path(name, "crt"), &certificate)?;
                certificate
            }
        };
        Ok(Pair {
            certificate,
            key: key.serialize_pem(),
        })
    }

    fn leaf(&self, name: &str, ca: &Pair, purpose: &Purpose<'_>) -> Result<Pair> {
        let key = self.key(name)?;
        if let Some(certificate) = self.read(name, "crt")? {
            let pair = Pair {
                certificate,
                key: key.serialize_pem(),
            };
            if self.is_good(&pair, ca, purpose) {
                return Ok(pair);
            }
        }
        let issuer = Issuer::from_ca_cert_pem(&ca.certificate, KeyPair::from_pem(&ca.key)?)?;
        let mut params = match purpose {
            Purpose::Server { .. } => self.params("kube-apiserver", LIFETIME)?,
            Purpose::Client { user, .. } => self.params(user, LIFETIME)?,
        };
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        match purpose {
            Purpose::Server { names, addresses } => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                for name in *names {
                    let name = name.as_str().try_into();
                    params
                        .subject_alt_names
                        .push(SanType::DnsName(name.context("a server name")?));
                }
                params
                    .subject_alt_names
                    .extend(addresses.iter().map(|&a| SanType::IpAddress(a)));
            }
            Purpose::Client { group, .. } => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                if !group.is_empty() {
                    params
                        .distinguished_name
                        .push(DnType::OrganizationName, *group);
                }
            }
        }
        let certificate = params.signed_by(&key, &issuer)?.pem();
        write_private(&self.path(name, "crt"), &certificate)?;
        Ok(Pair {
            certificate,
            key: key.serialize_pem(),
        })
    }

    /// Whether a stored certificate is of this CA and this key, lives long enough, and has every name wanted.
    fn is_good(&self, pair: &Pair, ca: &Pair, purpose: &Purpose<'_>) -> bool {
        let (Ok(chain), Ok(ca), Ok(key)) = (pair.chain(), ca.chain(), KeyPair::from_pem(&pair.key))
        else {
            return false;
        };
        let (Some(leaf), Some(ca)) = (chain.first(), ca.first()) else {
            return false;
        };
        let (Ok((_, leaf)), Ok((_, ca))) = (
            X509Certificate::from_der(leaf),
            X509Certificate::from_der(ca),
        ) else {
            return false;
        };
        if leaf.verify_signature(Some(ca.public_key())).is_err()
            || leaf.public_key().subject_public_key.data.as_ref() != key.public_key_raw()
            || leaf.validity().not_after.timestamp() < (self.now + RENEW_BEFORE).as_second()
        {
            return false;
        }
        let Purpose::Server { names, addresses } = purpose else {
            return true;
        };
        let Ok(Some(alternatives)) = leaf.subject_alternative_name() else {
            return false;
        };
        let alternatives = &alternatives.value.general_names;
        let has_name = |name: &String| {
            alternatives
                .iter()
                .any(|a| matches!(a, GeneralName::DNSName(have) if have == name))
        };
        let has_address = |address: &IpAddr| {
            let octets = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            alternatives
                .iter()
                .any(|a| matches!(a, GeneralName::IPAddress(have) if *have == octets))
        };
        names.iter().all(has_name) && addresses.iter().all(has_address)
    }
}

fn offset_date_time(time: Timestamp) -> Result<time::OffsetDateTime> {
    Ok(time::OffsetDateTime::from_unix_timestamp(time.as_second())?)
}

/// Writes a file that only its owner reads; a crash leaves the old content or the new.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, name: &str, now: Timestamp) -> Pki {
        let names = BTreeSet::from(["kubernetes".to_owned(), name.to_owned()]);
        let addresses = BTreeSet::from(["10.96.0.1".parse().unwrap(), "::1".parse().unwrap()]);
        Pki::open(folder, &names, &addresses, now).unwrap()
    }

    #[test]
    fn a_second_start_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let first = open(folder.path(), "a", now);
        let second = open(folder.path(), "a", now);
        assert_eq!(first.ca.certificate, second.ca.certificate);
        assert_eq!(first.apiserver.certificate, second.apiserver.certificate);
        assert_eq!(first.admin.certificate, second.admin.certificate);
        assert_eq!(first.service_account_key, second.service_account_key);
    }

    #[test]
    fn a_new_name_or_age_makes_a_new_certificate_of_the_same_ca() {
        let folder = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let first = open(folder.path(), "a", now);
        let renamed = open(folder.path(), "b", now);
        assert_eq!(first.ca.certificate, renamed.ca.certificate);
        assert_ne!(first.apiserver.certificate, renamed.apiserver.certificate);
        assert_eq!(first.admin.certificate, renamed.admin.certificate);
        let later = open(
            folder.path(),
            "b",
            now + SignedDuration::from_hours(320 * 24),
        );
        assert_ne!(first.admin.certificate, later.admin.certificate);
        assert_eq!(first.ca.certificate, later.ca.certificate);
    }

    #[test]
    fn a_damaged_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.key"), "nonsense").unwrap();
        let error = Pki::open(
            folder.path(),
            &BTreeSet::new(),
            &BTreeSet::new(),
            Timestamp::now(),
        )
        .unwrap_err();
        assert!(error.to_string().contains("ca.key"), "{error:#}");
    }
}
