//! ServiceAccount: every pod runs as a service account that exists, with its token mounted.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin, forbidden, object};
use crate::{context::Api, handlers::write::generate_name, status::Result};

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";
const ENFORCE_SECRETS: &str = "kubernetes.io/enforce-mountable-secrets";
/// Just above an hour, so that the API server can tell the requests of kubelets (upstream
/// `WarnOnlyBoundTokenExpirationPeriod`).
const TOKEN_SECONDS: i64 = 3607;

pub struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if !attributes.is("", "pods") || attributes.operation != Operation::Create {
            return Ok(());
        }
        let spec = &attributes.object["spec"];
        let name = spec["serviceAccountName"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if !attributes.object["metadata"]["annotations"][MIRROR].is_null() {
            return match mirror_refusal(spec) {
                Some(why) => Err(forbidden(attributes, why)),
                None => Ok(()),
            };
        }
        let name = if name.is_empty() {
            "default".to_owned()
        } else {
            name
        };
        let namespace = attributes.namespace;
        let Some(account) = object(api, "", "serviceaccounts", namespace, &name).await? else {
            let why = format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            );
            return Err(forbidden(attributes, &why));
        };
        if account["metadata"]["annotations"][ENFORCE_SECRETS] == "true"
            && let Some(why) = secret_refusal(spec, &account, &name)
        {
            return Err(forbidden(attributes, &why));
        }
        let spec = &mut attributes.object["spec"];
        spec["serviceAccountName"] = name.as_str().into();
        spec["serviceAccount"] = name.as_str().into();
        let wanted = spec["automountServiceAccountToken"]
            .as_bool()
            .or_else(|| account["automountServiceAccountToken"].as_bool());
        if wanted.unwrap_or(true) {
            mount_token(spec);
        }
        let none = spec["imagePullSecrets"]
            .as_array()
            .is_none_or(Vec::is_empty);
        if none
            && account["imagePullSecrets"]
                .as_array()
                .is_some_and(|s| !s.is_empty())
        {
            spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
        }
        Ok(())
    }
}

fn mirror_refusal(spec: &Value) -> Option<&'static str> {
    if !spec["serviceAccountName"]
        .as_str()
        .unwrap_or_default()
        .is_empty()
    {
        return Some("a mirror pod may not reference service accounts");
    }
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    for volume in volumes {
        if !volume["secret"].is_null() {
            return Some("a mirror pod may not reference secrets");
        }
        let sources = volume["projected"]["sources"]
            .as_array()
            .into_iter()
            .flatten();
        if sources
            .into_iter()
            .any(|s| !s["serviceAccountToken"].is_null())
        {
            return Some("a mirror pod may not use ServiceAccountToken volume projections");
        }
    }
    None
}

/// Why the pod uses a secret that its account does not list.
fn secret_refusal(spec: &Value, account: &Value, name: &str) -> Option<String> {
    let listed = |field: &str, secret: &str| {
        let mut secrets = account[field].as_array().into_iter().flatten();
        secrets.any(|s| s["name"] == secret)
    };
    let refused = |what: String| {
        Some(format!(
            "{what} is not allowed because service account {name} does not reference that secret"
        ))
    };
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        if let Some(secret) = volume["secret"]["secretName"].as_str()
            && !listed("secrets", secret)
        {
            return refused(format!("volume with secret.secretName={secret:?}"));
        }
    }
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        let kind = match field {
            "initContainers" => "init container",
            "containers" => "container",
            _ => "ephemeral container",
        };
        for container in spec[field].as_array().into_iter().flatten() {
            let own = container["name"].as_str().unwrap_or_default();
            for env in container["env"].as_array().into_iter().flatten() {
                if let Some(secret) = env["valueFrom"]["secretKeyRef"]["name"].as_str()
                    && !listed("secrets", secret)
                {
                    let variable = env["name"].as_str().unwrap_or_default();
                    return refused(format!(
                        "{kind} {own} with envVar {variable} referencing secret.secretName={secret:?}"
                    ));
                }
            }
            for from in container["envFrom"].as_array().into_iter().flatten() {
                if let Some(secret) = from["secretRef"]["name"].as_str()
                    && !listed("secrets", secret)
                {
                    return refused(format!(
                        "{kind} {own} with envFrom referencing secret.secretName={secret:?}"
                    ));
                }
            }
        }
    }
    let pull_secrets = spec["imagePullSecrets"].as_array().into_iter().flatten();
    for (index, secret) in pull_secrets.enumerate() {
        let secret = secret["name"].as_str().unwrap_or_default();
        if !listed("imagePullSecrets", secret) {
            return Some(format!(
                "imagePullSecrets[{index}].name={secret:?} is not allowed because service account {name} does not \
                 reference that imagePullSecret"
            ));
        }
    }
    None
}

fn mount_token(spec: &mut Value) {
    let volume = generate_name("kube-api-access-");
    let mut mounted = false;
    for field in ["initContainers", "containers"] {
        for container in spec[field].as_array_mut().into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array().into_iter().flatten();
            if mounts.into_iter().any(|m| m["mountPath"] == TOKEN_PATH) {
                continue;
            }
            if !container["volumeMounts"].is_array() {
                container["volumeMounts"] = json!([]);
            }
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
                mounted = true;
            }
        }
    }
    if !mounted {
        return;
    }
    if !spec["volumes"].is_array() {
        spec["volumes"] = json!([]);
    }
    let projected = json!({
        "name": volume,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {
                    "name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}],
                }},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    });
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.push(projected);
    }
}
