//! Gives every namespace its `default` ServiceAccount and the ConfigMap `kube-root-ca.crt`.
//!
//! Watches: Namespace, ServiceAccount, ConfigMap. Writes: ServiceAccount, ConfigMap.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::{
    api::{Patch, PatchParams, PostParams},
    core::ObjectMeta,
};
use serde_json::json;
use skep_client::{Action, Informer, ObjectKey, writes};

use crate::context::{Context, Doing, Error};

const WORKERS: usize = 4;
const DEFAULT_ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such \
     as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
     Kubernetes clusters.";

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        namespaces: context.informers.of(),
        accounts: context.informers.of(),
        maps: context.informers.of(),
        context: context.clone(),
    });
    let mut work = context.work();
    let namespace_of =
        |meta: &ObjectMeta| ObjectKey::cluster(meta.namespace.clone().unwrap_or_default());
    work.feed_self(&controller.namespaces);
    work.feed(&controller.accounts, move |change| {
        let meta = &change.object().metadata;
        if meta.name.as_deref() == Some(DEFAULT_ACCOUNT) {
            vec![namespace_of(meta)]
        } else {
            Vec::new()
        }
    });
    work.feed(&controller.maps, move |change| {
        let meta = &change.object().metadata;
        if meta.name.as_deref() == Some(ROOT_CA) {
            vec![namespace_of(meta)]
        } else {
            Vec::new()
        }
    });
    work.run(
        "service-account",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    maps: Informer<ConfigMap>,
    context: Arc<Context>,
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(namespace) = self.namespaces.get(&key) else {
            return Ok(Action::done());
        };
        let phase = namespace
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if namespace.metadata.deletion_timestamp.is_some() || phase == Some("Terminating") {
            return Ok(Action::done());
        }
        let meta = |name: &str| ObjectMeta {
            name: Some(name.into()),
            namespace: Some(key.name.clone()),
            ..Default::default()
        };
        if self
            .accounts
            .get(&ObjectKey::new(&key.name, DEFAULT_ACCOUNT))
            .is_none()
        {
            let account = ServiceAccount {
                metadata: meta(DEFAULT_ACCOUNT),
                ..Default::default()
            };
            let api = self.context.api::<ServiceAccount>(&key.name);
            tolerate(api.create(&PostParams::default(), &account).await)
                .doing("create the default ServiceAccount")?;
        }
        let ca = &self.context.config.root_ca_pem;
        if ca.is_empty() {
            return Ok(Action::done());
        }
        let wanted = BTreeMap::from([("ca.crt".to_owned(), ca.clone())]);
        let api = self.context.api::<ConfigMap>(&key.name);
        match self.maps.get(&ObjectKey::new(&key.name, ROOT_CA)) {
            None => {
                let mut metadata = meta(ROOT_CA);
                metadata.annotations = Some(BTreeMap::from([(
                    "kubernetes.io/description".to_owned(),
                    DESCRIPTION.to_owned(),
                )]));
                let map = ConfigMap {
                    metadata,
                    data: Some(wanted),
                    ..Default::default()
                };
                tolerate(api.create(&PostParams::default(), &map).await)
                    .doing("publish the root CA")?;
            }
            Some(map) if map.data.as_ref() != Some(&wanted) => {
                // A merge patch: entries that do not belong go by name.
                let mut data: BTreeMap<&str, Option<&str>> = map
                    .data
                    .iter()
                    .flatten()
                    .map(|(key, _)| (key.as_str(), None))
                    .collect();
                data.insert("ca.crt", Some(ca));
                let patch = Patch::Merge(json!({ "data": data }));
                tolerate(api.patch(ROOT_CA, &PatchParams::default(), &patch).await)
                    .doing("publish the root CA")?;
            }
            Some(_) => {}
        }
        Ok(Action::done())
    }
}

/// Somebody else was quicker, or the namespace is on its way out: the next event tells.
fn tolerate<T>(outcome: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error)
            if writes::is_already_exists(&error)
                || writes::is_namespace_terminating(&error)
                || writes::is_not_found(&error) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}
