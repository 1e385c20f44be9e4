//! Image references, pull policies and registry credentials.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::runtime::RegistryAuth;

/// Checks a reference and gives it the tag `latest` where it has none.
///
/// # Errors
/// The text of `InvalidImageName`.
pub fn normalize(image: &str) -> Result<String, String> {
    let bad = |why: &str| {
        Err(format!(
            "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": \
             invalid reference format{why}"
        ))
    };
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if is_registry(host) => (Some(host), path),
        _ => (None, name),
    };
    let (path, tag) = match path.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        let library = match host.is_none() && !path.contains('/') {
            true => "library/",
            false => "",
        };
        return bad(&format!(
            ": repository name ({library}{path}) must be lowercase"
        ));
    }
    let component = |part: &str| {
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(part.chars().next())
            && edge(part.chars().next_back())
            && part.chars().all(|c| {
                c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-')
            })
    };
    let host_ok = host.is_none_or(|h| {
        !h.is_empty()
            && h.chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']'))
    });
    let tag_ok = tag.is_none_or(|t| {
        !t.is_empty()
            && t.len() <= 128
            && !t.starts_with(['.', '-'])
            && t.chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    });
    let digest_ok = digest.is_none_or(|d| {
        d.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    });
    if !host_ok || !tag_ok || !digest_ok || name.len() > 255 || !path.split('/').all(component) {
        return bad("");
    }
    Ok(match (tag, digest) {
        (None, None) => format!("{image}:latest"),
        _ => image.to_string(),
    })
}

/// `Always`, `IfNotPresent` or `Never`; the API has set the default already.
pub fn pull_policy<'a>(policy: Option<&'a str>, image: &str) -> &'a str {
    match policy {
        Some(policy) if !policy.is_empty() => policy,
        _ if image.ends_with(":latest") => "Always",
        _ => "IfNotPresent",
    }
}

#[derive(Deserialize, Default)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default, Clone)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

/// The first part of a name is a registry when it looks like a host; a repository's name is in lower case.
fn is_registry(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.bytes().any(|b| b.is_ascii_uppercase())
}

/// The registry of a reference as credentials name it.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if is_registry(host) => host,
        _ => "docker.io",
    }
}

/// A reference without its tag and digest.
pub fn repository(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    match name.rsplit_once(':') {
        // A port is followed by a path.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// What opens a registry, and the secret that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub secret_uid: String,
    pub auth: RegistryAuth,
}

impl Credential {
    /// The same for the same credential in another secret.
    pub fn hash(&self) -> String {
        let auth = &self.auth;
        let parts = [&auth.username, &auth.password, &auth.identity_token];
        let mut digest = Sha256::new();
        for part in parts {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        }
        let hash = digest.finalize();
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Every credential of `secrets` that fits the image, the most specific first.
pub fn credentials(image: &str, secrets: &[Secret]) -> Vec<Credential> {
    let host = registry(image);
    let path = image
        .strip_prefix(host)
        .unwrap_or(image)
        .trim_start_matches('/');
    let mut found: Vec<(usize, Credential)> = Vec::new();
    for secret in secrets {
        let data = secret.data.as_ref();
        let config = data
            .and_then(|d| d.get(".dockerconfigjson"))
            .and_then(|bytes| serde_json::from_slice::<DockerConfig>(&bytes.0).ok())
            .map(|config| config.auths)
            .or_else(|| serde_json::from_slice(&data?.get(".dockercfg")?.0).ok())
            .unwrap_or_default();
        for (server, entry) in config {
            let bare = server
                .trim_start_matches("https://")
                .trim_start_matches("http://")
                .trim_end_matches('/');
            let (server_host, server_path) = bare.split_once('/').unwrap_or((bare, ""));
            let server_host = match server_host {
                "index.docker.io" | "registry-1.docker.io" => "docker.io",
                other => other,
            };
            let server_path = server_path
                .trim_start_matches("v1")
                .trim_start_matches("v2");
            let server_path = server_path.trim_matches('/');
            if !host_matches(server_host, host) || !path.starts_with(server_path) {
                continue;
            }
            let (username, password) = STANDARD
                .decode(&entry.auth)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .and_then(|text| {
                    text.split_once(':')
                        .map(|(u, p)| (u.to_string(), p.to_string()))
                })
                .unwrap_or((entry.username.clone(), entry.password.clone()));
            let auth = RegistryAuth {
                username,
                password,
                server: server.clone(),
                identity_token: entry.identitytoken.clone(),
            };
            let secret_uid = secret.metadata.uid.clone().unwrap_or_default();
            found.push((server_path.len(), Credential { secret_uid, auth }));
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// `*.example.org` fits one label.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (pattern, host): (Vec<&str>, Vec<&str>) =
        (pattern.split('.').collect(), host.split('.').collect());
    pattern.len() == host.len() && pattern.iter().zip(&host).all(|(p, h)| *p == "*" || p == h)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_get_a_tag_or_an_explanation() {
        for (image, expected) in [
            ("nginx", "nginx:latest"),
            ("nginx:1.2", "nginx:1.2"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("docker.io/library/nginx:x", "docker.io/library/nginx:x"),
        ] {
            assert_eq!(normalize(image).as_deref(), Ok(expected), "{image}");
        }
        for image in ["", "Nginx", "a//b", "a:", "-a", "a b", "a@sha256:1"] {
            let error = normalize(image).expect_err(image);
            assert!(error.contains("invalid reference format"), "{error}");
        }
    }

    #[test]
    fn a_repository_has_no_tag() {
        for (image, expected) in [
            ("nginx:1", "nginx"),
            ("localhost:5000/a", "localhost:5000/a"),
            ("localhost:5000/a:1@sha256:0", "localhost:5000/a"),
        ] {
            assert_eq!(repository(image), expected);
        }
    }

    #[test]
    fn the_most_specific_credential_comes_first() {
        let json = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:h")},
            "r.example.org": {"username": "all", "password": "p"},
            "r.example.org/team": {"auth": STANDARD.encode("team:t:t")},
        }});
        let secret: Secret = serde_json::from_value(serde_json::json!({
            "data": {".dockerconfigjson": STANDARD.encode(json.to_string())}
        }))
        .unwrap();
        let users = |image: &str| -> Vec<String> {
            let found = credentials(image, std::slice::from_ref(&secret));
            found
                .into_iter()
                .map(|c| format!("{}/{}", c.auth.username, c.auth.password))
                .collect()
        };
        assert_eq!(users("nginx:1"), ["hub/h"]);
        assert_eq!(users("r.example.org/team/x:1"), ["team/t:t", "all/p"]);
        assert_eq!(users("other.example.org/x"), Vec::<String>::new());
    }
}
