//! Who the API server is to a webhook: the users of a kubeconfig, named by the servers that they are for. Which file that
//! is, an `AdmissionConfiguration` says (`--admission-control-config-file`), for each of the two kinds of webhooks.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::Deserialize;

const VERSION: &str = "apiserver.config.k8s.io/v1";
/// A user for every server that no other is for.
const ANY: &str = "*";

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    Mutating,
    Validating,
    /// Has no credentials.
    Conversion,
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: {why}", path.display())]
    Invalid { path: PathBuf, why: String },
}

/// The users of both kinds of webhooks.
#[derive(Default)]
pub struct Credentials {
    mutating: Users,
    validating: Users,
}

type Users = HashMap<String, Identity>;

/// What a webhook is shown.
#[derive(Default)]
pub(super) struct Identity {
    pub certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    pub authorization: Option<HeaderValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AdmissionConfiguration {
    api_version: String,
    kind: String,
    #[serde(default)]
    plugins: Vec<Plugin>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    name: String,
    /// Of a file with the configuration, if it does not stand here.
    #[serde(default)]
    path: String,
    configuration: Option<WebhookAdmission>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WebhookAdmission {
    api_version: String,
    kind: String,
    kube_config_file: PathBuf,
}

#[derive(Deserialize)]
struct Kubeconfig {
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: User,
}

/// Certificates and keys are PEM, in files or in base64.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
}

fn read(path: &Path) -> Result<String, CredentialsError> {
    std::fs::read_to_string(path).map_err(|source| CredentialsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn parse<T: for<'a> Deserialize<'a>>(path: &Path, text: &str) -> Result<T, CredentialsError> {
    serde_saphyr::from_str(text).map_err(|error| {
        // The rest of the message may quote a line with a secret.
        let why = error.to_string();
        invalid(path, why.lines().next().unwrap_or_default())
    })
}

fn invalid(path: &Path, why: impl Into<String>) -> CredentialsError {
    CredentialsError::Invalid {
        path: path.to_owned(),
        why: why.into(),
    }
}

/// Relative names are relative to the file in which they stand.
fn beside(file: &Path, name: &Path) -> PathBuf {
    file.parent()
        .map_or_else(|| name.to_owned(), |folder| folder.join(name))
}

impl Credentials {
    /// Reads an `AdmissionConfiguration` and the files that it names.
    ///
    /// # Errors
    /// Which file cannot be read, or what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, CredentialsError> {
        let configuration: AdmissionConfiguration = parse(path, &read(path)?)?;
        if configuration.kind != "AdmissionConfiguration" || configuration.api_version != VERSION {
            return Err(invalid(
                path,
                format!("want apiVersion {VERSION} and kind AdmissionConfiguration"),
            ));
        }
        let mut credentials = Self::default();
        for plugin in configuration.plugins {
            let users = match plugin.name.as_str() {
                "MutatingAdmissionWebhook" => &mut credentials.mutating,
                "ValidatingAdmissionWebhook" => &mut credentials.validating,
                other => {
                    let why = format!("the admission plugin {other:?} takes no configuration here");
                    return Err(invalid(path, why));
                }
            };
            let (file, webhooks) = match plugin.configuration {
                Some(configuration) => (path.to_owned(), configuration),
                None => {
                    let file = beside(path, Path::new(&plugin.path));
                    let configuration = parse(&file, &read(&file)?)?;
                    (file, configuration)
                }
            };
            if webhooks.kind != "WebhookAdmissionConfiguration" || webhooks.api_version != VERSION {
                return Err(invalid(
                    &file,
                    format!("want apiVersion {VERSION} and kind WebhookAdmissionConfiguration"),
                ));
            }
            *users = read_users(&beside(&file, &webhooks.kube_config_file))?;
        }
        Ok(credentials)
    }

    /// `server`: host and port.
    pub(super) fn find(&self, caller: Caller, server: &str) -> Option<&Identity> {
        let users = match caller {
            Caller::Mutating => &self.mutating,
            Caller::Validating => &self.validating,
            Caller::Conversion => return None,
        };
        let named = |target: &str| {
            let exact = users.get(target);
            let dots = target.match_indices('.').map(|(at, _)| &target[at..]);
            exact.or_else(|| {
                dots.map(|rest| format!("*{rest}"))
                    .find_map(|n| users.get(&n))
            })
        };
        named(server)
            .or_else(|| named(server.strip_suffix(":443")?))
            .or_else(|| users.get(ANY))
    }
}

fn read_users(path: &Path) -> Result<Users, CredentialsError> {
    let kubeconfig: Kubeconfig = parse(path, &read(path)?)?;
    let users = kubeconfig.users.into_iter();
    users
        .map(|NamedUser { name, user }| {
            let identity = user.identity(path, &name)?;
            Ok((name, identity))
        })
        .collect()
}

impl User {
    fn identity(&self, path: &Path, name: &str) -> Result<Identity, CredentialsError> {
        let wrong = |what: &str| invalid(path, format!("user {name:?}: {what}"));
        let pem = |data: &Option<String>, file: &Option<PathBuf>| match (data, file) {
            (Some(data), _) => {
                let decoded = STANDARD.decode(data).ok();
                decoded.map(Some).ok_or_else(|| wrong("no base64"))
            }
            (None, Some(file)) => {
                let text = read(&beside(path, file))?;
                Ok(Some(text.into_bytes()))
            }
            (None, None) => Ok(None),
        };
        let chain = pem(&self.client_certificate_data, &self.client_certificate)?;
        let key = pem(&self.client_key_data, &self.client_key)?;
        let certificate = match (chain, key) {
            (None, None) => None,
            (Some(chain), Some(key)) => {
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
                let chain = chain.ok().filter(|chain| !chain.is_empty());
                let chain = chain.ok_or_else(|| wrong("its certificate cannot be read"))?;
                let key = PrivateKeyDer::from_pem_slice(&key);
                let key = key.map_err(|_| wrong("its key cannot be read"))?;
                Some((chain, key))
            }
            _ => return Err(wrong("a certificate and its key come together")),
        };
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) => Some(read(&beside(path, file))?.trim().to_owned()),
            (None, None) => None,
        };
        let authorization = match (token, &self.username) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, Some(username)) => {
                let password = self.password.as_deref().unwrap_or_default();
                let pair = STANDARD.encode(format!("{username}:{password}"));
                Some(format!("Basic {pair}"))
            }
            (None, None) => None,
        };
        let authorization = authorization.map(|value| {
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| wrong("its token cannot stand in a header"))?;
            value.set_sensitive(true);
            Ok(value)
        });
        Ok(Identity {
            certificate,
            authorization: authorization.transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(kubeconfig: &str) -> Result<Credentials, CredentialsError> {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("a file");
        };
        write("webhooks.kubeconfig", kubeconfig);
        write(
            "webhooks.yaml",
            "{apiVersion: apiserver.config.k8s.io/v1, kind: WebhookAdmissionConfiguration, kubeConfigFile: webhooks.kubeconfig}",
        );
        write(
            "admission.yaml",
            "{apiVersion: apiserver.config.k8s.io/v1, kind: AdmissionConfiguration, plugins: [\
             {name: ValidatingAdmissionWebhook, path: webhooks.yaml}]}",
        );
        Credentials::load(&folder.path().join("admission.yaml"))
    }

    #[test]
    fn the_closest_name_wins() {
        let user =
            |name: &str, token: &str| format!("{{name: '{name}', user: {{token: {token}}}}}");
        let users = [
            user("hook.default.svc", "exact"),
            user("hook.default.svc:8443", "port"),
            user("*.example.com", "star"),
            user("*", "any"),
        ];
        let credentials = loaded(&format!("users: [{}]", users.join(", "))).expect("good");
        let token = |server: &str| {
            let found = credentials
                .find(Caller::Validating, server)
                .expect("a user");
            let header = found.authorization.clone().expect("a token");
            header
                .to_str()
                .expect("text")
                .trim_start_matches("Bearer ")
                .to_owned()
        };
        assert_eq!(token("hook.default.svc:443"), "exact");
        assert_eq!(token("hook.default.svc:8443"), "port");
        assert_eq!(token("a.b.example.com:443"), "star");
        assert_eq!(token("elsewhere.org:443"), "any");
        for caller in [Caller::Mutating, Caller::Conversion] {
            assert!(credentials.find(caller, "hook.default.svc:443").is_none());
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        for (kubeconfig, why) in [
            (
                "users: [{name: a, user: {client-key-data: aHVudGVyMg==}}]",
                "come together",
            ),
            (
                "users: [{name: a, user: {client-key-data: aHVudGVyMg==, client-certificate-data: aHVudGVyMg==}}]",
                "its certificate cannot be read",
            ),
            (
                "users: [{name: a, user: {token: \"hunter2\\n\"}}]",
                "cannot stand in a header",
            ),
            ("users: 7", "webhooks.kubeconfig"),
            (
                "users: [{name: a, user: {client-key: nope, client-certificate: nope}}]",
                "cannot read",
            ),
        ] {
            let Err(error) = loaded(kubeconfig) else {
                panic!("{kubeconfig} is accepted")
            };
            let error = error.to_string();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
    }
}
