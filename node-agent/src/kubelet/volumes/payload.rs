//! What is written into configMap, secret, downwardAPI and projected volumes.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccountTokenProjection, Volume,
};
use parking_lot::Mutex;

use super::atomic::{Content, Files};
use crate::kubelet::env::{NodeFacts, field_value, resource_value};
use crate::kubelet::objects::Objects;
use crate::kubelet::pod;

const DEFAULT_MODE: i32 = 0o644;

#[derive(Debug, Clone)]
pub(super) struct Token {
    text: String,
    issued_at: Timestamp,
    lifetime: SignedDuration,
}

impl Token {
    /// Until 80 % of its life have passed, and for a day at most. How old it is, a clock that was set back does not tell.
    fn is_fresh(&self, now: Timestamp) -> bool {
        let age = now.duration_since(self.issued_at);
        let young = age < self.lifetime * 4 / 5 && age < SignedDuration::from_hours(24);
        young && !age.is_negative()
    }
}

pub(super) type Tokens = Mutex<BTreeMap<(String, String, String), Token>>;

pub(in crate::kubelet) fn is_written(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

pub(super) async fn build(
    objects: &Objects,
    tokens: &Tokens,
    pod: &Pod,
    volume: &Volume,
    node: &NodeFacts,
    now: Timestamp,
) -> Result<Files, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(source) = &volume.config_map {
        let optional = source.optional == Some(true);
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let data = config_map(objects, namespace, &source.name, optional).await?;
        return select("configmap", data, &source.items, mode, optional);
    }
    if let Some(source) = &volume.secret {
        let optional = source.optional == Some(true);
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let data = secret(objects, namespace, name, optional).await?;
        return select("secret", data, &source.items, mode, optional);
    }
    if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        return downward(pod, source.items.as_deref().unwrap_or_default(), mode, node);
    }
    let mut files = Files::new();
    let Some(projected) = &volume.projected else {
        return Ok(files);
    };
    let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
    for source in projected.sources.iter().flatten() {
        if let Some(s) = &source.config_map {
            let optional = s.optional == Some(true);
            let data = config_map(objects, namespace, &s.name, optional).await?;
            files.extend(select("configmap", data, &s.items, mode, optional)?);
        } else if let Some(s) = &source.secret {
            let optional = s.optional == Some(true);
            let data = secret(objects, namespace, &s.name, optional).await?;
            files.extend(select("secret", data, &s.items, mode, optional)?);
        } else if let Some(s) = &source.downward_api {
            files.extend(downward(
                pod,
                s.items.as_deref().unwrap_or_default(),
                mode,
                node,
            )?);
        } else if let Some(s) = &source.service_account_token {
            let text = token(objects, tokens, pod, &volume.name, s, now).await?;
            // Only its user, or the group that all of the pod is in, may read it.
            let user = sole_user(pod);
            let mode = match user.is_some() || super::fs_group(pod).is_some() {
                true => 0o600,
                false => mode.unsigned_abs(),
            };
            let content = Content {
                bytes: text.into_bytes(),
                mode,
                user,
            };
            files.insert(s.path.clone(), content);
        } else if source.cluster_trust_bundle.is_some() || source.pod_certificate.is_some() {
            // Off by default in Kubernetes 1.36, which drops them; here the pod says why it waits.
            return Err(
                "projected: this node supports configMap, secret, downwardAPI and \
                        serviceAccountToken sources"
                    .into(),
            );
        }
    }
    Ok(files)
}

/// The user of every container of the pod, where that is one.
fn sole_user(pod: &Pod) -> Option<u32> {
    let spec = pod::spec(pod);
    let shared = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|c| {
            let own = c.security_context.as_ref().and_then(|s| s.run_as_user);
            own.or(shared)
        });
    let first = users.next()??;
    let same = users.all(|user| user == Some(first));
    u32::try_from(first).ok().filter(|_| same)
}

type Data = BTreeMap<String, Vec<u8>>;

async fn config_map(
    objects: &Objects,
    namespace: &str,
    name: &str,
    optional: bool,
) -> Result<Data, String> {
    let Some(map) = objects.get::<ConfigMap>(Some(namespace), name).await? else {
        return missing("configmap", name, optional);
    };
    let text = map
        .data
        .into_iter()
        .flatten()
        .map(|(k, v)| (k, v.into_bytes()));
    let binary = map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0));
    Ok(text.chain(binary).collect())
}

async fn secret(
    objects: &Objects,
    namespace: &str,
    name: &str,
    optional: bool,
) -> Result<Data, String> {
    match objects.get::<Secret>(Some(namespace), name).await? {
        Some(secret) => Ok(secret
            .data
            .into_iter()
            .flatten()
            .map(|(k, v)| (k, v.0))
            .collect()),
        None => missing("secret", name, optional),
    }
}

fn missing(kind: &str, name: &str, optional: bool) -> Result<Data, String> {
    match optional {
        true => Ok(Data::new()),
        false => Err(format!("{kind} \"{name}\" not found")),
    }
}

fn select(
    kind: &str,
    data: Data,
    items: &Option<Vec<KeyToPath>>,
    mode: i32,
    optional: bool,
) -> Result<Files, String> {
    let Some(items) = items.as_ref().filter(|items| !items.is_empty()) else {
        let mode = mode.unsigned_abs();
        return Ok(data
            .into_iter()
            .map(|(k, bytes)| {
                (
                    k,
                    Content {
                        bytes,
                        mode,
                        user: None,
                    },
                )
            })
            .collect());
    };
    let mut files = Files::new();
    for item in items {
        // Several files may show the same key.
        match data.get(&item.key).cloned() {
            Some(bytes) => {
                let mode = item.mode.unwrap_or(mode).unsigned_abs();
                files.insert(
                    item.path.clone(),
                    Content {
                        bytes,
                        mode,
                        user: None,
                    },
                );
            }
            None if optional => {}
            None => {
                let what = match kind {
                    "secret" => "references non-existent secret key",
                    _ => "configmap references non-existent config key",
                };
                return Err(format!("{what}: {}", item.key));
            }
        }
    }
    Ok(files)
}

fn downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    node: &NodeFacts,
) -> Result<Files, String> {
    let mut files = Files::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            field_value(pod, field, node)?
        } else if let Some(resource) = &item.resource_field_ref {
            let first = pod::spec(pod)
                .containers
                .first()
                .ok_or("the pod has no container")?;
            resource_value(pod, first, resource, node)?
        } else {
            continue;
        };
        let mode = item.mode.unwrap_or(mode).unsigned_abs();
        files.insert(
            item.path.clone(),
            Content {
                bytes: text.into_bytes(),
                mode,
                user: None,
            },
        );
    }
    Ok(files)
}

async fn token(
    objects: &Objects,
    tokens: &Tokens,
    pod: &Pod,
    volume: &str,
    source: &ServiceAccountTokenProjection,
    now: Timestamp,
) -> Result<String, String> {
    let who = pod::identity(pod);
    let audience = source.audience.clone().unwrap_or_default();
    let key = (who.uid.clone(), volume.to_string(), audience.clone());
    if let Some(token) = tokens.lock().get(&key)
        && token.is_fresh(now)
    {
        return Ok(token.text.clone());
    }
    let account = pod::spec(pod)
        .service_account_name
        .clone()
        .unwrap_or_default();
    let seconds = source.expiration_seconds.unwrap_or(3600);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(if audience.is_empty() {
                Vec::new()
            } else {
                vec![audience]
            }),
            expiration_seconds: Some(seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(who.name.clone()),
                uid: Some(who.uid.clone()),
            }),
        }),
        ..Default::default()
    };
    let answer = objects
        .token(&who.namespace, &account, &request)
        .await
        .map_err(|e| format!("failed to fetch token: {e}"))?;
    let status = answer.status.unwrap_or_default();
    let (Some(text), Some(expires)) = (status.token, status.expiration_timestamp) else {
        return Err("failed to fetch token: the answer has none".into());
    };
    let token = Token {
        text: text.clone(),
        issued_at: now,
        lifetime: expires.0.duration_since(now),
    };
    tokens.lock().insert(key, token);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_in_time() {
        let issued_at = Timestamp::from_second(1_000_000).unwrap();
        let fresh = |hours: i64, after: i64| {
            let token = Token {
                text: String::new(),
                issued_at,
                lifetime: SignedDuration::from_hours(hours),
            };
            token.is_fresh(issued_at + SignedDuration::from_mins(after))
        };
        assert!(fresh(1, 47) && !fresh(1, 48));
        assert!(fresh(100, 24 * 60 - 1) && !fresh(100, 24 * 60));
        assert!(!fresh(1, -1), "the clock was set back");
    }

    #[test]
    fn a_key_may_be_shown_twice_and_must_be_there() {
        let data = || Data::from([("k".to_owned(), b"v".to_vec())]);
        let items = |keys: &[(&str, &str)]| {
            let item = |(key, path): &(&str, &str)| KeyToPath {
                key: (*key).into(),
                path: (*path).into(),
                mode: None,
            };
            Some(keys.iter().map(item).collect::<Vec<_>>())
        };
        let both = select(
            "secret",
            data(),
            &items(&[("k", "a"), ("k", "b")]),
            0o600,
            false,
        );
        assert_eq!(both.unwrap().len(), 2);
        let none = items(&[("none", "a")]);
        assert_eq!(
            select("secret", data(), &none, 0o600, false)
                .err()
                .as_deref(),
            Some("references non-existent secret key: none")
        );
        assert_eq!(
            select("configmap", data(), &none, 0o600, false)
                .err()
                .as_deref(),
            Some("configmap references non-existent config key: none")
        );
        assert!(
            select("configmap", data(), &none, 0o600, true)
                .unwrap()
                .is_empty()
        );
    }
}
