//! The Node authorizer: an agent (`system:node:NAME` in `system:nodes`) may do what the role `system:node` lists, but
//! reads only the Secrets, ConfigMaps, claims and volumes that pods bound to it use, and makes tokens only for those
//! pods' service accounts. Upstream: plugin/pkg/auth/authorizer/node.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
};

use serde_json::Value;

use super::{
    Attributes, Authorizer, Decision, bootstrap,
    rbac::{Policy, Rbac, Rule},
};
use crate::identity::User;

const GROUP: &str = "system:nodes";
const USER_PREFIX: &str = "system:node:";

/// The node that a user is the agent of.
pub fn node_name(user: &User) -> Option<&str> {
    if !user.groups.iter().any(|group| group == GROUP) {
        return None;
    }
    user.name
        .strip_prefix(USER_PREFIX)
        .filter(|name| !name.is_empty())
}

/// What one pod lets its node read, by resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodReferences {
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub secrets: BTreeSet<String>,
    pub config_maps: BTreeSet<String>,
    pub claims: BTreeSet<String>,
    pub resource_claims: BTreeSet<String>,
}

impl PodReferences {
    pub fn of(pod: &Value) -> Self {
        let text = |value: &Value, pointer: &str| {
            value
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let mut refs = Self {
            namespace: text(pod, "/metadata/namespace"),
            name: text(pod, "/metadata/name"),
            service_account: text(pod, "/spec/serviceAccountName"),
            ..Self::default()
        };
        let spec = pod.get("spec").unwrap_or(&Value::Null);
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            for container in items(spec, list) {
                for variable in items(container, "env") {
                    refs.secrets
                        .insert(text(variable, "/valueFrom/secretKeyRef/name"));
                    refs.config_maps
                        .insert(text(variable, "/valueFrom/configMapKeyRef/name"));
                }
                for source in items(container, "envFrom") {
                    refs.secrets.insert(text(source, "/secretRef/name"));
                    refs.config_maps.insert(text(source, "/configMapRef/name"));
                }
            }
        }
        for secret in items(spec, "imagePullSecrets") {
            refs.secrets.insert(text(secret, "/name"));
        }
        for volume in items(spec, "volumes") {
            refs.secrets.insert(text(volume, "/secret/secretName"));
            refs.config_maps.insert(text(volume, "/configMap/name"));
            refs.claims
                .insert(text(volume, "/persistentVolumeClaim/claimName"));
            if volume.get("ephemeral").is_some() {
                refs.claims
                    .insert(format!("{}-{}", refs.name, text(volume, "/name")));
            }
            for plugin in [
                "csi/nodePublishSecretRef",
                "cephfs/secretRef",
                "rbd/secretRef",
            ] {
                refs.secrets
                    .insert(text(volume, &format!("/{plugin}/name")));
            }
            for source in volume
                .get("projected")
                .into_iter()
                .flat_map(|p| items(p, "sources"))
            {
                refs.secrets.insert(text(source, "/secret/name"));
                refs.config_maps.insert(text(source, "/configMap/name"));
            }
        }
        for claim in pod
            .get("status")
            .into_iter()
            .flat_map(|s| items(s, "resourceClaimStatuses"))
        {
            refs.resource_claims
                .insert(text(claim, "/resourceClaimName"));
        }
        for claim in items(spec, "resourceClaims") {
            refs.resource_claims
                .insert(text(claim, "/resourceClaimName"));
        }
        for set in [
            &mut refs.secrets,
            &mut refs.config_maps,
            &mut refs.claims,
            &mut refs.resource_claims,
        ] {
            set.remove("");
        }
        refs
    }
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// Where the authorizer looks up what is bound to a node.
pub trait NodeGraph: Send + Sync {
    /// The pods whose `spec.nodeName` is `node`.
    fn pods_on(&self, node: &str) -> Vec<PodReferences>;
    /// `spec.volumeName` of a claim.
    fn volume_of(&self, namespace: &str, claim: &str) -> Option<String>;
}

pub struct NodeAuthorizer<G> {
    graph: G,
}

impl<G: NodeGraph> NodeAuthorizer<G> {
    pub fn new(graph: G) -> Self {
        Self { graph }
    }

    /// Whether a pod on the node refers to the object, for resources that need it; `None` for other resources.
    fn related(&self, node: &str, attributes: &Attributes<'_>) -> Option<bool> {
        let Attributes::Resource {
            group,
            resource,
            subresource,
            namespace,
            name,
            ..
        } = *attributes
        else {
            return None;
        };
        let any = |test: &dyn Fn(&PodReferences) -> bool| {
            Some(!name.is_empty() && self.graph.pods_on(node).iter().any(test))
        };
        match (group, resource, subresource) {
            ("", "secrets", _) => any(&|p| p.namespace == namespace && p.secrets.contains(name)),
            ("", "configmaps", _) => {
                any(&|p| p.namespace == namespace && p.config_maps.contains(name))
            }
            ("", "persistentvolumeclaims", _) => {
                any(&|p| p.namespace == namespace && p.claims.contains(name))
            }
            ("resource.k8s.io", "resourceclaims", _) => {
                any(&|p| p.namespace == namespace && p.resource_claims.contains(name))
            }
            ("", "persistentvolumes", _) => any(&|pod| {
                pod.claims.iter().any(|claim| {
                    self.graph
                        .volume_of(&pod.namespace, claim)
                        .is_some_and(|v| v == name)
                })
            }),
            ("", "serviceaccounts", "token") => {
                any(&|p| p.namespace == namespace && p.service_account == name)
            }
            ("coordination.k8s.io", "leases", _) => {
                Some(namespace == "kube-node-lease" && (name.is_empty() || name == node))
            }
            ("storage.k8s.io", "csinodes", _) => Some(name.is_empty() || name == node),
            _ => None,
        }
    }
}

/// `system:node`, as an RBAC policy that binds it to the group of nodes.
static NODE_ROLE: LazyLock<Arc<Rbac>> = LazyLock::new(|| {
    let mut policy = Policy::default();
    for bootstrap::BootstrapObject { plural, mut object } in bootstrap::objects() {
        if object["metadata"]["name"] != "system:node" {
            continue;
        }
        if plural == "clusterrolebindings" {
            object["subjects"] = serde_json::json!([{"kind": "Group", "name": GROUP}]);
        }
        policy.insert(plural, &object);
    }
    let rbac = Arc::new(Rbac::default());
    rbac.replace(policy);
    rbac
});

impl<G: NodeGraph> Authorizer for NodeAuthorizer<G> {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let Some(node) = node_name(attributes.user()) else {
            return Decision::NoOpinion {
                reason: String::new(),
            };
        };
        if !NODE_ROLE.authorize(attributes).allowed() {
            return Decision::NoOpinion {
                reason: String::new(),
            };
        }
        match self.related(node, attributes) {
            None | Some(true) => Decision::Allow {
                reason: String::new(),
            },
            Some(false) => Decision::NoOpinion {
                reason: format!("no relationship found between node '{node}' and this object"),
            },
        }
    }

    fn rules(&self, _user: &User, _namespace: &str) -> Vec<Rule> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct OnePod(Value);

    impl NodeGraph for OnePod {
        fn pods_on(&self, node: &str) -> Vec<PodReferences> {
            if node == "n1" {
                vec![PodReferences::of(&self.0)]
            } else {
                Vec::new()
            }
        }
        fn volume_of(&self, _: &str, claim: &str) -> Option<String> {
            (claim == "data").then(|| "pv-1".to_owned())
        }
    }

    #[track_caller]
    fn check(node: &str, verb: &str, resource: &str, namespace: &str, name: &str, allowed: bool) {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "a"},
            "spec": {
                "serviceAccountName": "default",
                "containers": [{"envFrom": [{"secretRef": {"name": "env"}}]}],
                "volumes": [
                    {"name": "v", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "t", "projected": {"sources": [{"configMap": {"name": "ca"}}]}},
                ],
            },
        });
        let user = User {
            name: format!("system:node:{node}"),
            groups: vec![GROUP.into()],
            ..User::default()
        };
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let group = if resource == "leases" {
            "coordination.k8s.io"
        } else {
            ""
        };
        let attributes = Attributes::Resource {
            user: &user,
            verb,
            group,
            version: "v1",
            resource,
            subresource,
            namespace,
            name,
        };
        let decision = NodeAuthorizer::new(OnePod(pod)).authorize(&attributes);
        assert_eq!(decision.allowed(), allowed, "{attributes:?} {decision:?}");
    }

    #[test]
    fn nodes_read_what_their_pods_use() {
        check("n1", "get", "secrets", "a", "env", true);
        check("n2", "get", "secrets", "a", "env", false);
        check("n1", "get", "secrets", "b", "env", false);
        check("n1", "get", "secrets", "a", "other", false);
        check("n1", "list", "secrets", "a", "", false);
        check("n1", "get", "configmaps", "a", "ca", true);
        check("n1", "get", "persistentvolumeclaims", "a", "data", true);
        check("n1", "get", "persistentvolumes", "", "pv-1", true);
        check("n1", "get", "persistentvolumes", "", "pv-2", false);
        check(
            "n1",
            "create",
            "serviceaccounts/token",
            "a",
            "default",
            true,
        );
        check("n1", "create", "serviceaccounts/token", "a", "admin", false);
    }

    #[test]
    fn nodes_do_what_the_role_lists() {
        check("n1", "list", "pods", "", "", true);
        check("n1", "update", "leases", "kube-node-lease", "n1", true);
        check("n1", "update", "leases", "kube-node-lease", "n2", false);
        check("n1", "delete", "secrets", "a", "env", false);
        check("n1", "create", "services", "a", "s", false);
    }
}
