//! What every cluster has from the beginning: namespaces, the `kubernetes` Service, and other objects that clients
//! expect to find. Present objects are left as they are.

mod defaults;
pub mod masters;

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use serde_json::{Value, json};
use skep_apply::managed::{self, Writer};
use skep_store::{Guard, Op};

use crate::{
    authz,
    codec::meta,
    context::{Api, now},
    handlers::write::{new_uid, normalized},
    hooks::Extra,
    registry::Resource,
    services::ip_address_object,
    status::Failure,
    storage::to_stored,
};

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("writing {what} failed: {message}")]
    Write { what: String, message: String },
    #[error("{what} is not valid: {message}")]
    Invalid { what: String, message: String },
}

/// Where clients in the cluster find this server.
#[derive(Clone, Copy, Debug)]
pub struct Advertise {
    pub address: SocketAddr,
    /// Other servers may use the same store.
    pub shared: bool,
}

/// PEM.
#[derive(Clone, Debug)]
pub struct ExtensionAuthentication {
    pub client_ca: String,
    pub request_header_ca: String,
    /// Common names of the front proxy's certificate.
    pub allowed_names: Vec<String>,
}

pub async fn run(
    api: &Arc<Api>,
    advertise: Option<Advertise>,
    authentication: Option<&ExtensionAuthentication>,
) -> Result<(), BootstrapError> {
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {"kubernetes.io/metadata.name": namespace}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        });
        ensure(api, object).await?;
    }
    for role in authz::bootstrap::objects() {
        ensure(api, role.object).await?;
    }
    let at = now().to_string();
    let registry = api.registry.load_full();
    let objects = defaults::priority_classes()
        .into_iter()
        .chain(defaults::priority_levels())
        .chain(defaults::flow_schemas(&at))
        .chain(defaults::api_services(&registry, &at));
    for object in objects {
        ensure(api, object).await?;
    }
    let cidrs = api.services.ranges.iter().map(|range| range.net());
    ensure(
        api,
        service_cidr(cidrs.map(|net| net.to_string()).collect()),
    )
    .await?;
    if let Some(authentication) = authentication {
        replace(api, authentication.config_map()).await?;
    }
    if let Some(advertise) = advertise {
        kubernetes_service(api, advertise).await?;
    }
    Ok(())
}

impl ExtensionAuthentication {
    /// Where aggregated servers read whom to believe (upstream `extension-apiserver-authentication`).
    fn config_map(&self) -> Value {
        let list = |items: &[&str]| serde_json::json!(items).to_string();
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": {
                "client-ca-file": self.client_ca,
                "requestheader-allowed-names": json!(self.allowed_names).to_string(),
                "requestheader-client-ca-file": self.request_header_ca,
                "requestheader-extra-headers-prefix": list(&["X-Remote-Extra-"]),
                "requestheader-group-headers": list(&["X-Remote-Group"]),
                "requestheader-uid-headers": list(&["X-Remote-Uid"]),
                "requestheader-username-headers": list(&["X-Remote-User"]),
            },
        })
    }
}

fn service_cidr(cidrs: Vec<String>) -> Value {
    let at = now().to_string();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": cidrs},
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": at,
            "message": "Kubernetes default Service CIDR is ready",
        }]},
    })
}

/// The Service by which pods reach the API server, its address, and its endpoints.
async fn kubernetes_service(
    api: &Arc<Api>,
    Advertise { address, shared }: Advertise,
) -> Result<(), BootstrapError> {
    let members = match shared {
        true => masters::alive(api, address),
        false => BTreeSet::from([address]),
    };
    let Some(service_ip) = api.services.first_ip() else {
        return Ok(());
    };
    let ip = service_ip.to_string();
    let ip_family = if service_ip.is_ipv6() { "IPv6" } else { "IPv4" };
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "sessionAffinity": "None",
            "ipFamilies": [ip_family], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": address.port()}],
        },
        "status": {"loadBalancer": {}},
    });
    ensure(
        api,
        ip_address_object(service_ip, "default", "kubernetes", now()),
    )
    .await?;
    ensure(api, service).await?;
    // The address may have changed since the last start.
    masters::write(api, &members).await
}

fn row(api: &Api, object: &Value) -> Result<Arc<Resource>, BootstrapError> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = object["kind"].as_str().unwrap_or_default();
    let registry = api.registry.load();
    registry
        .kind(group, version, kind)
        .cloned()
        .ok_or_else(|| BootstrapError::Invalid {
            what: describe(object),
            message: "no such kind".to_owned(),
        })
}

fn describe(object: &Value) -> String {
    format!(
        "{} {}",
        object["kind"].as_str().unwrap_or_default(),
        meta(object, "name")
    )
}

/// Creates an object unless it is there. True if it was created.
///
/// # Errors
/// When it does not validate or the store fails.
pub async fn ensure(api: &Api, object: Value) -> Result<bool, BootstrapError> {
    let resource = row(api, &object)?;
    let what = describe(&object);
    let failed = |status: Failure| BootstrapError::Write {
        what: what.clone(),
        message: status.message,
    };
    let key = resource.key(meta(&object, "namespace"), meta(&object, "name"));
    if api.storage.find(&key).await.map_err(failed)?.is_some() {
        return Ok(false);
    }
    let object = normalized(&resource, prepared(&resource, object.clone())).map_err(failed)?;
    let stored = to_stored(&resource, &object);
    let written = api
        .storage
        .create(&key, stored, None, Extra::default())
        .await;
    written
        .map(|_| true)
        .map_err(|status| BootstrapError::Write {
            what: describe(&object),
            message: status.message,
        })
}

async fn replace(api: &Api, object: Value) -> Result<(), BootstrapError> {
    let resource = row(api, &object)?;
    let failed = |status: Failure| BootstrapError::Write {
        what: describe(&object),
        message: status.message,
    };
    let key = resource.key(meta(&object, "namespace"), meta(&object, "name"));
    let present = api.storage.find(&key).await.map_err(failed)?;
    let mut object = prepared(&resource, object.clone());
    let mut guard = Guard::Missing(key.clone());
    if let Some(present) = present {
        let old: Value = serde_json::from_slice(&present.bytes()).unwrap_or_default();
        let same = |field: &str| old.get(field) == object.get(field);
        if ["subsets", "endpoints", "ports", "data"]
            .into_iter()
            .all(same)
        {
            return Ok(());
        }
        object["metadata"] = old["metadata"].clone();
        guard = Guard::Unchanged(key.clone(), present.revision);
    }
    let put = Op::Put {
        key,
        value: to_stored(&resource, &object),
        ttl: None,
    };
    // A conflict means that another server of the cluster wrote the same thing.
    let written = api.storage.write(guard, put, Extra::default()).await;
    written.map(drop).map_err(failed)
}

fn prepared(resource: &Resource, mut object: Value) -> Value {
    resource.def.strategy.default(&mut object);
    if meta(&object, "uid").is_empty() {
        object["metadata"]["uid"] = new_uid().into();
    }
    object["metadata"]["creationTimestamp"] = now().to_string().into();
    if let Some(schema) = &resource.def.schema {
        if let Ok(decoded) = skep_schema::conform(object.clone(), schema) {
            object = decoded.value;
        }
        let writer = Writer {
            manager: "kube-apiserver".to_owned(),
            api_version: resource.api_version.clone(),
            subresource: String::new(),
            time: now(),
        };
        managed::update(None, &mut object, schema, &writer, &[]);
    }
    object
}
