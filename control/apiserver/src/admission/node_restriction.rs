//! NodeRestriction: an agent writes only what is its node's. The Node authorizer says which kinds it may touch, this
//! says which objects and fields.

use async_trait::async_trait;
use serde_json::Value;

use super::{Attributes, Operation, Plugin, forbidden, object};
use crate::{
    authz::{self, node::node_name},
    codec::meta,
    context::Api,
    status::{Result, Status},
};

const MIRROR: &str = "kubernetes.io/config.mirror";
const LEASE_NAMESPACE: &str = "kube-node-lease";

pub struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        let Some(node) = node_name(attributes.user) else {
            return Ok(());
        };
        if attributes.operation == Operation::Connect {
            return Ok(());
        }
        let def = &attributes.resource.def;
        match (
            def.group.as_ref(),
            def.plural.as_ref(),
            attributes.subresource,
        ) {
            ("", "pods", "") => pod(api, attributes, node).await,
            ("", "pods", "status") => pod_status(attributes, node),
            ("", "pods", "eviction") => pod_eviction(api, attributes, node).await,
            ("", "pods", other) => refuse(
                attributes,
                &format!(
                    "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
                ),
            ),
            ("", "nodes", _) => own_node(attributes, node),
            ("", "persistentvolumeclaims", "status") => claim_status(attributes, node),
            ("", "persistentvolumeclaims", _) => refuse(attributes, "may only update PVC status"),
            ("", "serviceaccounts", "token") => token(api, attributes, node).await,
            ("coordination.k8s.io", "leases", _) => lease(attributes, node),
            ("storage.k8s.io", "csinodes", _) => named_as_node(attributes, node, || {
                "can only access CSINode with the same name as the requesting node".to_owned()
            }),
            ("resource.k8s.io", "resourceslices", _) => slice(attributes, node),
            _ => Ok(()),
        }
    }
}

fn refuse(attributes: &Attributes<'_>, why: &str) -> Result<()> {
    Err(forbidden(attributes, why))
}

async fn pod(api: &Api, attributes: &Attributes<'_>, node: &str) -> Result<()> {
    match attributes.operation {
        Operation::Create => mirror(api, attributes, node).await,
        Operation::Delete if attributes.old["spec"]["nodeName"] == node => Ok(()),
        Operation::Delete => refuse(
            attributes,
            &format!("node {node:?} can only delete pods with spec.nodeName set to itself"),
        ),
        other => refuse(
            attributes,
            &format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                other.as_str()
            ),
        ),
    }
}

/// A pod that an agent creates shows one of its static pods, and leads to nothing else.
async fn mirror(api: &Api, attributes: &Attributes<'_>, node: &str) -> Result<()> {
    let pod = &attributes.object;
    let no = |why: &str| refuse(attributes, &format!("node {node:?} {why}"));
    if pod["metadata"]["annotations"][MIRROR].is_null() {
        return refuse(
            attributes,
            &format!(
                "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
            ),
        );
    }
    if pod["spec"]["nodeName"] != node {
        return no("can only create pods with spec.nodeName set to itself");
    }
    let owners = pod["metadata"]["ownerReferences"].as_array();
    let owner = match owners.map_or(&[][..], Vec::as_slice) {
        [owner] => owner,
        [] => return no("can only create pods with an owner reference set to itself"),
        _ => return no("can only create pods with a single owner reference set to itself"),
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return no("can only create pods with an owner reference set to itself");
    }
    if owner["controller"] != true {
        return no("can only create pods with a controller owner reference set to itself");
    }
    if owner["blockOwnerDeletion"] == true {
        return no("must not set blockOwnerDeletion on an owner reference");
    }
    let own = object(api, "", "nodes", "", node).await?;
    let own = own.ok_or_else(|| Status::not_found("", "nodes", node))?;
    if owner["uid"].as_str() != Some(meta(&own, "uid")) {
        let uid = owner["uid"].as_str().unwrap_or_default();
        return refuse(
            attributes,
            &format!(
                "node {node} UID mismatch: expected {uid} got {}",
                meta(&own, "uid")
            ),
        );
    }
    match reference(&pod["spec"]) {
        Some(what) => no(&format!("can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// What else a pod leads to.
fn reference(spec: &Value) -> Option<&'static str> {
    let filled = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    if filled(&spec["serviceAccountName"]) {
        return Some("a service account");
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let volumes = list(&spec["volumes"]);
    let containers: Vec<Value> = ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|field| list(&spec[*field]))
        .collect();
    let env_refers = |what: [&str; 2]| {
        containers.iter().any(|container| {
            list(&container["envFrom"])
                .iter()
                .any(|from| !from[what[0]].is_null())
                || list(&container["env"])
                    .iter()
                    .any(|env| !env["valueFrom"][what[1]].is_null())
        })
    };
    let volume_has = |field: &str| {
        volumes.iter().any(|volume| {
            !volume[field].is_null()
                || list(&volume["projected"]["sources"])
                    .iter()
                    .any(|source| !source[field].is_null())
        })
    };
    let secret_of_driver = volumes.iter().any(|volume| {
        let sources = volume.as_object().into_iter().flatten();
        sources.into_iter().any(|(_, source)| {
            ["secretRef", "nodePublishSecretRef"]
                .iter()
                .any(|field| !source[*field].is_null())
                || filled(&source["secretName"])
        })
    });
    if !list(&spec["imagePullSecrets"]).is_empty()
        || volume_has("secret")
        || secret_of_driver
        || env_refers(["secretRef", "secretKeyRef"])
    {
        return Some("secrets");
    }
    if volume_has("configMap") || env_refers(["configMapRef", "configMapKeyRef"]) {
        return Some("configmaps");
    }
    if volume_has("clusterTrustBundle") {
        return Some("clustertrustbundles");
    }
    if volume_has("persistentVolumeClaim") {
        return Some("persistentvolumeclaims");
    }
    (!list(&spec["resourceClaims"]).is_empty()).then_some("resourceclaims")
}

fn pod_status(attributes: &Attributes<'_>, node: &str) -> Result<()> {
    let (new, old) = (&attributes.object, attributes.old);
    if attributes.operation != Operation::Update {
        let operation = attributes.operation.as_str();
        return refuse(attributes, &format!("unexpected operation {operation:?}"));
    }
    if old["spec"]["nodeName"] != node {
        return refuse(
            attributes,
            &format!(
                "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
            ),
        );
    }
    if !same(&new["metadata"]["labels"], &old["metadata"]["labels"]) {
        return refuse(
            attributes,
            &format!("node {node:?} cannot update labels through pod status"),
        );
    }
    let claims = |pod: &Value| pod["status"]["resourceClaimStatuses"].clone();
    if !same(&claims(new), &claims(old)) {
        return refuse(
            attributes,
            &format!("node {node:?} cannot update resource claim statues"),
        );
    }
    Ok(())
}

/// Nothing and an empty list or map are the same.
fn same(a: &Value, b: &Value) -> bool {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    a == b || (empty(a) && empty(b))
}

async fn pod_eviction(api: &Api, attributes: &Attributes<'_>, node: &str) -> Result<()> {
    let (namespace, name) = (attributes.namespace, attributes.name);
    let pod = object(api, "", "pods", namespace, name).await?;
    let pod = pod.ok_or_else(|| Status::not_found("", "pods", name))?;
    if pod["spec"]["nodeName"] == node {
        return Ok(());
    }
    refuse(
        attributes,
        &format!("node {node} can only evict pods with spec.nodeName set to itself"),
    )
}

fn own_node(attributes: &Attributes<'_>, node: &str) -> Result<()> {
    let name = match attributes.name {
        "" => meta(&attributes.object, "name"),
        name => name,
    };
    if name != node {
        return refuse(
            attributes,
            &format!("node {node:?} is not allowed to modify node {name:?}"),
        );
    }
    let (new, old) = (&attributes.object, attributes.old);
    match attributes.operation {
        Operation::Create => {
            let set = forbidden_labels(&new["metadata"]["labels"], &Value::Null);
            if !set.is_empty() {
                let why = format!(
                    "node {node:?} is not allowed to set the following labels: {}",
                    set.join(", ")
                );
                return refuse(attributes, &why);
            }
            Ok(())
        }
        Operation::Update => {
            if !same(&new["spec"]["taints"], &old["spec"]["taints"]) {
                return refuse(
                    attributes,
                    &format!("node {node:?} is not allowed to modify taints"),
                );
            }
            let changed = forbidden_labels(&new["metadata"]["labels"], &old["metadata"]["labels"]);
            if !changed.is_empty() {
                let why = format!(
                    "node {node:?} is not allowed to modify labels: {}",
                    changed.join(", ")
                );
                return refuse(attributes, &why);
            }
            let owners = |node: &Value| node["metadata"]["ownerReferences"].clone();
            if !same(&owners(new), &owners(old)) {
                return refuse(
                    attributes,
                    &format!("node {node:?} is not allowed to modify ownerReferences"),
                );
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Labels that differ and that an agent may not decide about: workloads are steered by them.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let mut changed: Vec<String> = Vec::new();
    let fields = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let (new, old) = (fields(new), fields(old));
    for key in new.keys().chain(old.keys()) {
        if new.get(key) != old.get(key) && is_restricted(key) && !changed.contains(key) {
            changed.push(key.clone());
        }
    }
    changed.sort();
    changed
}

fn is_restricted(label: &str) -> bool {
    const KUBELETS: [&str; 12] = [
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "node.kubernetes.io/instance-type",
        "beta.kubernetes.io/instance-type",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "node.kubernetes.io/windows-build",
    ];
    let Some((namespace, _)) = label.split_once('/') else {
        return false;
    };
    let within = |domain: &str| {
        namespace == domain
            || namespace
                .strip_suffix(domain)
                .is_some_and(|before| before.ends_with('.'))
    };
    if within("node-restriction.kubernetes.io") {
        return true;
    }
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    let kubelets = KUBELETS.contains(&label)
        || within("kubelet.kubernetes.io")
        || within("node.kubernetes.io");
    kubernetes && !kubelets
}

fn claim_status(attributes: &Attributes<'_>, node: &str) -> Result<()> {
    if attributes.operation != Operation::Update {
        let operation = attributes.operation.as_str();
        return refuse(attributes, &format!("unexpected operation {operation:?}"));
    }
    let rest = |claim: &Value| {
        let mut claim = claim.clone();
        for field in ["resourceVersion", "managedFields"] {
            crate::handlers::write::remove_meta(&mut claim, field);
        }
        if let Some(status) = claim["status"].as_object_mut() {
            for field in [
                "capacity",
                "conditions",
                "allocatedResources",
                "allocatedResourceStatuses",
            ] {
                status.remove(field);
            }
        }
        claim
    };
    if rest(&attributes.object) == rest(attributes.old) {
        return Ok(());
    }
    refuse(
        attributes,
        &format!(
            "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
        ),
    )
}

async fn token(api: &Api, attributes: &Attributes<'_>, node: &str) -> Result<()> {
    let bound = &attributes.object["spec"]["boundObjectRef"];
    let text = |field: &str| bound[field].as_str().unwrap_or_default();
    if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
        return refuse(attributes, "node requested token not bound to a pod");
    }
    if text("uid").is_empty() {
        return refuse(
            attributes,
            "node requested token with a pod binding without a uid",
        );
    }
    let pod = object(api, "", "pods", attributes.namespace, text("name")).await?;
    let pod = pod.ok_or_else(|| Status::not_found("", "pods", text("name")))?;
    if text("uid") != meta(&pod, "uid") {
        return refuse(
            attributes,
            &format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have \
                 been deleted and then recreated",
                text("uid")
            ),
        );
    }
    if pod["spec"]["nodeName"] != node {
        return refuse(
            attributes,
            "node requested token bound to a pod scheduled on a different node",
        );
    }
    audience(api, attributes, &pod)
}

/// An agent asks for tokens for those who its pod names, or whom a role names for it (KEP-4601's restriction).
fn audience(api: &Api, attributes: &Attributes<'_>, pod: &Value) -> Result<()> {
    let wanted = attributes.object["spec"]["audiences"].as_array();
    let wanted = match wanted.map_or(&[][..], Vec::as_slice) {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return refuse(attributes, "node may only request 0 or 1 audiences"),
    };
    if names_audience(api, pod, wanted) {
        return Ok(());
    }
    let question = authz::Attributes::Resource {
        user: attributes.user,
        verb: "request-serviceaccounts-token-audience",
        group: "",
        version: "",
        resource: wanted,
        subresource: "",
        namespace: attributes.namespace,
        name: attributes.name,
    };
    if api.authorizer.authorize(&question).allowed() {
        return Ok(());
    }
    let user = &attributes.user.name;
    refuse(
        attributes,
        &format!(
            "audience {wanted:?} not found in pod spec volume, {user} is not authorized to request tokens for this \
             audience"
        ),
    )
}

/// Whether a volume of the pod needs a token for this audience: a projected one, or its CSI driver.
fn names_audience(api: &Api, pod: &Value, audience: &str) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let stored = |group: &str, plural: &str, namespace: &str, name: &str| {
        let registry = api.registry.load();
        let entry = api
            .storage
            .cache
            .get(&registry.any_version(group, plural)?.key(namespace, name))?;
        serde_json::from_slice::<Value>(&entry.bytes).ok()
    };
    let driver_asks = |driver: &str| {
        stored("storage.k8s.io", "csidrivers", "", driver).is_some_and(|driver| {
            items(&driver["spec"]["tokenRequests"])
                .iter()
                .any(|request| text(&request["audience"]) == audience)
        })
    };
    let claim_asks = |claim: &str| {
        let namespace = meta(pod, "namespace");
        let volume = stored("", "persistentvolumeclaims", namespace, claim).and_then(|claim| {
            stored(
                "",
                "persistentvolumes",
                "",
                &text(&claim["spec"]["volumeName"]),
            )
        });
        volume.is_some_and(|volume| driver_asks(&text(&volume["spec"]["csi"]["driver"])))
    };
    items(&pod["spec"]["volumes"]).iter().any(|volume| {
        let projected = items(&volume["projected"]["sources"]).iter().any(|source| {
            let token = &source["serviceAccountToken"];
            !token.is_null() && text(&token["audience"]) == audience
        });
        let claim = &volume["persistentVolumeClaim"]["claimName"];
        projected
            || volume["csi"]["driver"].as_str().is_some_and(driver_asks)
            || claim.as_str().is_some_and(claim_asks)
            || (!volume["ephemeral"].is_null()
                && claim_asks(&format!("{}-{}", meta(pod, "name"), text(&volume["name"]))))
    })
}

fn lease(attributes: &Attributes<'_>, node: &str) -> Result<()> {
    if attributes.namespace != LEASE_NAMESPACE {
        return refuse(
            attributes,
            &format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"),
        );
    }
    named_as_node(attributes, node, || {
        "can only access node lease with the same name as the requesting node".to_owned()
    })
}

fn named_as_node(attributes: &Attributes<'_>, node: &str, why: impl Fn() -> String) -> Result<()> {
    let name = match attributes.operation {
        Operation::Create => meta(&attributes.object, "name"),
        _ => attributes.name,
    };
    if name == node {
        return Ok(());
    }
    refuse(attributes, &why())
}

fn slice(attributes: &Attributes<'_>, node: &str) -> Result<()> {
    let (object, verb) = match attributes.operation {
        Operation::Create => (&attributes.object, "create"),
        Operation::Update => (attributes.old, "update"),
        _ => (attributes.old, "delete"),
    };
    if object["spec"]["nodeName"] == node {
        return Ok(());
    }
    refuse(
        attributes,
        &format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_that_steer_workloads_are_not_an_agents() {
        let old = json!({"kubernetes.io/role": "x", "own/label": "1"});
        let new = json!({
            "kubernetes.io/hostname": "n", "node.kubernetes.io/anything": "1", "own/label": "2", "plain": "1",
            "node-restriction.kubernetes.io/a": "1", "x.node-restriction.kubernetes.io/b": "1",
            "example.kubernetes.io/c": "1", "notkubernetes.io/d": "1",
        });
        assert_eq!(
            forbidden_labels(&new, &old),
            [
                "example.kubernetes.io/c",
                "kubernetes.io/role",
                "node-restriction.kubernetes.io/a",
                "x.node-restriction.kubernetes.io/b",
            ]
        );
        assert_eq!(forbidden_labels(&new, &new), Vec::<String>::new());
    }

    #[test]
    fn mirrors_lead_to_nothing() {
        let check = |spec: Value, what: Option<&str>| assert_eq!(reference(&spec), what, "{spec}");
        check(
            json!({"containers": [{"env": [{"name": "A", "value": "b"}]}]}),
            None,
        );
        check(
            json!({"serviceAccountName": "x"}),
            Some("a service account"),
        );
        check(
            json!({"volumes": [{"secret": {"secretName": "s"}}]}),
            Some("secrets"),
        );
        check(
            json!({"volumes": [{"projected": {"sources": [{"configMap": {"name": "c"}}]}}]}),
            Some("configmaps"),
        );
        check(
            json!({"initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s"}}}]}]}),
            Some("secrets"),
        );
        check(
            json!({"volumes": [{"persistentVolumeClaim": {"claimName": "c"}}]}),
            Some("persistentvolumeclaims"),
        );
        check(json!({"volumes": [{"hostPath": {"path": "/"}}]}), None);
    }
}
