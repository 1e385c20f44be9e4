//! The authorizers' view of the cluster: what they need of the watch cache, read when asked.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use skep_store::Revision;

use super::{
    Attributes, Authorizer, Decision, Union,
    node::{NodeAuthorizer, NodeGraph, PodReferences},
    rbac::{Policy, Rbac, Rule},
};
use crate::{authn::Objects, cache::Cache, identity::User};

const POLICY_RESOURCES: [(&str, &str); 4] = [
    (
        "clusterroles",
        "/registry/rbac.authorization.k8s.io/clusterroles/",
    ),
    (
        "clusterrolebindings",
        "/registry/rbac.authorization.k8s.io/clusterrolebindings/",
    ),
    ("roles", "/registry/rbac.authorization.k8s.io/roles/"),
    (
        "rolebindings",
        "/registry/rbac.authorization.k8s.io/rolebindings/",
    ),
];

/// The Node and RBAC authorizers of a cluster. Both decide by what was written before the question.
pub fn authorizer(cache: Arc<Cache>) -> Union {
    Union {
        authorizers: vec![
            Box::new(NodeAuthorizer::new(Graph(cache.clone()))),
            Box::new(CachedRbac {
                cache,
                rbac: Arc::default(),
                read_at: Mutex::new([Revision::MAX; 4]),
            }),
        ],
    }
}

impl Objects for Cache {
    fn object(&self, key: &str) -> Option<Value> {
        serde_json::from_slice(&self.get(key)?.bytes()).ok()
    }
}

/// RBAC over the roles and bindings in the cache, read anew when one has changed.
struct CachedRbac {
    cache: Arc<Cache>,
    rbac: Arc<Rbac>,
    /// When each of [`POLICY_RESOURCES`] had last changed when it was read.
    read_at: Mutex<[Revision; 4]>,
}

impl CachedRbac {
    fn refresh(&self) {
        let changed_at = POLICY_RESOURCES.map(|(_, prefix)| self.cache.changed_at(prefix));
        let mut read_at = self.read_at.lock();
        if *read_at == changed_at {
            return;
        }
        let mut policy = Policy::default();
        for (plural, prefix) in POLICY_RESOURCES {
            for entry in self.cache.snapshot(prefix).iter() {
                match serde_json::from_slice(&entry.bytes()) {
                    Ok(object) => policy.insert(plural, &object),
                    Err(error) => {
                        tracing::error!(key = %entry.key, %error, "a stored role or binding is not readable");
                    }
                }
            }
        }
        self.rbac.replace(policy);
        *read_at = changed_at;
    }
}

impl Authorizer for CachedRbac {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        self.refresh();
        self.rbac.authorize(attributes)
    }

    fn rules(&self, user: &User, namespace: &str) -> Vec<Rule> {
        self.refresh();
        self.rbac.rules(user, namespace)
    }
}

struct Graph(Arc<Cache>);

impl NodeGraph for Graph {
    fn pods_on(&self, node: &str) -> Vec<PodReferences> {
        let pods = self.0.snapshot("/registry/core/pods/");
        let here = pods
            .iter()
            .filter(|pod| pod.fields.get("spec.nodeName") == Some(node));
        here.filter_map(|pod| serde_json::from_slice(&pod.bytes()).ok())
            .map(|pod: Value| PodReferences::of(&pod))
            .collect()
    }

    fn volume_of(&self, namespace: &str, claim: &str) -> Option<String> {
        let key = format!("/registry/core/persistentvolumeclaims/{namespace}/{claim}");
        let claim = self.0.object(&key)?;
        claim["spec"]["volumeName"].as_str().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skep_store::{Op, Store, memory::MemoryStore};

    use super::*;
    use crate::cache::{Index, Options};

    #[tokio::test]
    async fn a_new_binding_counts_at_once() {
        let store = Arc::new(MemoryStore::new());
        let indexer = Arc::new(|_: &str, object: &Value| Index::of_metadata(object));
        let cache = Cache::start(store.clone(), Options::new(indexer))
            .await
            .unwrap();
        let authorizer = authorizer(cache.clone());
        let jane = User {
            name: "jane".into(),
            ..User::default()
        };
        let ask = || {
            let attributes = Attributes::Path {
                user: &jane,
                verb: "get",
                path: "/metrics",
            };
            authorizer.authorize(&attributes).allowed()
        };
        assert!(!ask());
        let objects = [
            (
                "clusterroles",
                json!({"metadata": {"name": "m"}, "rules": [
                {"verbs": ["get"], "nonResourceURLs": ["/metrics"]}]}),
            ),
            (
                "clusterrolebindings",
                json!({"metadata": {"name": "m"},
                "roleRef": {"kind": "ClusterRole", "name": "m"},
                "subjects": [{"kind": "User", "name": "jane"}]}),
            ),
        ];
        for (plural, object) in objects {
            let key = format!("/registry/rbac.authorization.k8s.io/{plural}/m");
            let put = Op::Put {
                key: key.into(),
                value: object.to_string().into(),
                ttl: None,
            };
            let outcome = store.txn(vec![], vec![put]).await.unwrap();
            let skep_store::TxnOutcome::Committed { revision } = outcome else {
                panic!("{outcome:?}")
            };
            cache
                .wait_until(revision, std::time::Duration::from_secs(5))
                .await
                .unwrap();
        }
        assert!(ask());
    }
}
