//! Writes the EndpointSlices and the Endpoints of every Service with a selector.
//!
//! Watches: Service, Pod, Node (zones), EndpointSlice, Endpoints. Writes: EndpointSlice, Endpoints.
//! Slices are what the datapath reads; Endpoints exist for older clients. [`plan`] decides both.

mod plan;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{Endpoints, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::{Expression, Selector, SelectorExt},
};
use parking_lot::Mutex;
use serde_json::json;
use skep_client::{Action, Change, Informer, ObjectKey, Recorder, informer::BY_SERVICE, writes};

use self::plan::{SliceWrite, Target};
use crate::{
    context::{Context, Doing, Error, api_message},
    pods,
};

const WORKERS: usize = 8;
/// After this long the cache is believed even if it never showed our write: somebody else may have deleted the slice.
const WRITE_EXPIRY: Duration = Duration::from_secs(10);

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        services: context.informers.of(),
        pods: context.informers.of(),
        nodes: context.informers.of(),
        slices: context.informers.of(),
        endpoints: context.informers.of(),
        written: Mutex::default(),
        events: context.events.from("endpoint-slice-controller"),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.services);
    let watcher = controller.clone();
    work.feed(&controller.pods, move |change| watcher.concerned(change));
    work.feed(&controller.slices, |change| {
        let mut keys: Vec<_> = change
            .each()
            .filter_map(|slice| plan::service_of(slice))
            .collect();
        keys.dedup();
        keys
    });
    work.feed(&controller.endpoints, |change| {
        vec![ObjectKey::of(&change.object().metadata)]
    });
    let watcher = controller.clone();
    work.feed(&controller.nodes, move |change| {
        let zone = |node: &Arc<Node>| plan::zone(node);
        if change.old.as_ref().and_then(zone) == change.new.as_ref().and_then(zone) {
            return Vec::new();
        }
        watcher
            .services
            .all()
            .iter()
            .map(|service| ObjectKey::of(&service.metadata))
            .collect()
    });
    work.run(
        "endpoints",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

/// By slice: the version that our write made, and when.
type Written = HashMap<String, (String, Instant)>;

struct Controller {
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    endpoints: Informer<Endpoints>,
    /// resourceVersions of our own latest writes by object, until the cache shows them: planning on an older slice would
    /// write a second one for the same endpoints.
    written: Mutex<HashMap<ObjectKey, Written>>,
    events: Recorder,
    context: Arc<Context>,
}

impl Controller {
    /// Services whose endpoints a pod's change can alter.
    fn concerned(&self, change: &Change<Pod>) -> Vec<ObjectKey> {
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && !plan::matters(old, new)
        {
            return Vec::new();
        }
        pods::selected_by(&self.services, change, selector)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(service) = self.services.get(&key) else {
            self.written.lock().remove(&key);
            return self.remove(&key).await;
        };
        let is_external =
            service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
        if is_external {
            return self.remove(&key).await;
        }
        // Without a selector the endpoints are the user's.
        let Some(selector) = selector(&service) else {
            return Ok(Action::done());
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Action::done());
        }
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .by_index(BY_SERVICE, &key.to_string())
            .into_iter()
            .filter(|slice| plan::is_ours(slice))
            .collect();
        if self.is_behind(&key, &existing) {
            // Our last write comes back through the informer and queues the Service again; this is only the net below.
            return Ok(Action::requeue(Duration::from_secs(2)));
        }
        let none = Default::default();
        let targets: Vec<Target> = self
            .pods
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|pod| selector.matches(pod.metadata.labels.as_ref().unwrap_or(&none)))
            .map(|pod| {
                let node = pods::node_name(&pod)
                    .and_then(|name| self.nodes.get(&ObjectKey::cluster(name)));
                Target {
                    zone: node.as_ref().and_then(plan::zone),
                    pod,
                }
            })
            .collect();
        let writes = plan::plan_slices(&service, &targets, &existing, self.context.now());
        for write in &writes {
            self.write_slice(&key, &service, write).await?;
        }
        self.write_endpoints(&key, &service, &targets).await?;
        Ok(Action::done())
    }

    /// Whether the cache misses something we wrote.
    fn is_behind(&self, key: &ObjectKey, existing: &[Arc<EndpointSlice>]) -> bool {
        let mut written = self.written.lock();
        let Some(expected) = written.get_mut(key) else {
            return false;
        };
        expected.retain(|name, (version, since)| {
            if since.elapsed() > WRITE_EXPIRY {
                return false;
            }
            let cached = existing
                .iter()
                .find(|slice| slice.metadata.name.as_deref() == Some(name));
            let cached = cached.and_then(|slice| slice.metadata.resource_version.as_deref());
            // Opaque by contract, a number in this API server; anything unreadable counts as seen.
            let number = |version: &str| version.parse::<u64>().ok();
            match (cached.map(number), number(version)) {
                (Some(Some(cached)), Some(version)) => cached < version,
                (None, Some(_)) => true,
                _ => false,
            }
        });
        let behind = !expected.is_empty();
        if !behind {
            written.remove(key);
        }
        behind
    }

    fn note(&self, key: &ObjectKey, slice: &EndpointSlice) {
        let (Some(name), Some(version)) = (&slice.metadata.name, &slice.metadata.resource_version)
        else {
            return;
        };
        self.written
            .lock()
            .entry(key.clone())
            .or_default()
            .insert(name.clone(), (version.clone(), Instant::now()));
    }

    async fn write_slice(
        &self,
        key: &ObjectKey,
        service: &Service,
        write: &SliceWrite,
    ) -> Result<(), Error> {
        let api = self.context.api::<EndpointSlice>(&key.namespace);
        let outcome = match write {
            SliceWrite::Create(slice) => api.create(&PostParams::default(), slice).await.map(Some),
            SliceWrite::Update(slice) => {
                let name = slice.metadata.name.clone().unwrap_or_default();
                api.replace(&name, &PostParams::default(), slice)
                    .await
                    .map(Some)
            }
            SliceWrite::Delete(slice) => {
                let name = slice.metadata.name.clone().unwrap_or_default();
                writes::delete(
                    &api,
                    &name,
                    slice.metadata.uid.clone(),
                    DeleteParams::default(),
                )
                .await
                .map(|()| None)
            }
        };
        match outcome {
            Ok(Some(slice)) => self.note(key, &slice),
            Ok(None) => {
                if let (SliceWrite::Delete(slice), Some(written)) =
                    (write, self.written.lock().get_mut(key))
                {
                    written.remove(slice.metadata.name.as_deref().unwrap_or_default());
                }
            }
            Err(error) if writes::is_namespace_terminating(&error) => {}
            Err(error) => {
                self.written.lock().remove(key);
                if !writes::is_conflict(&error) && !writes::is_not_found(&error) {
                    self.events.warning(
                        service,
                        "FailedToUpdateEndpointSlices",
                        format!(
                            "Error updating Endpoint Slices for Service {key}: {}",
                            api_message(&error)
                        ),
                    );
                }
                return Err(error).doing("write an EndpointSlice");
            }
        }
        Ok(())
    }

    async fn write_endpoints(
        &self,
        key: &ObjectKey,
        service: &Service,
        targets: &[Target],
    ) -> Result<(), Error> {
        let current = self.endpoints.get(key);
        let Some(wanted) =
            plan::plan_endpoints(service, targets, current.as_deref(), self.context.now())
        else {
            return Ok(());
        };
        let api = self.context.api::<Endpoints>(&key.namespace);
        let outcome = match &current {
            None => api.create(&PostParams::default(), &wanted).await,
            Some(current) => {
                let patch = json!({
                    "metadata": { "resourceVersion": current.metadata.resource_version, "uid": current.metadata.uid,
                        "labels": wanted.metadata.labels, "annotations": wanted.metadata.annotations },
                    "subsets": wanted.subsets });
                api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                    .await
            }
        };
        match outcome {
            Ok(_) => Ok(()),
            Err(error)
                if writes::is_namespace_terminating(&error)
                    || writes::is_already_exists(&error) =>
            {
                Ok(())
            }
            Err(error) => Err(error).doing("write the Endpoints"),
        }
    }

    /// The Service is gone (or has no endpoints any more). Garbage collection would do it; this is sooner.
    async fn remove(&self, key: &ObjectKey) -> Result<Action, Error> {
        let api = self.context.api::<EndpointSlice>(&key.namespace);
        for slice in self
            .slices
            .by_index(BY_SERVICE, &key.to_string())
            .iter()
            .filter(|slice| plan::is_ours(slice))
        {
            let name = slice.metadata.name.clone().unwrap_or_default();
            writes::delete(
                &api,
                &name,
                slice.metadata.uid.clone(),
                DeleteParams::default(),
            )
            .await
            .doing("delete an EndpointSlice")?;
        }
        if let Some(endpoints) = self
            .endpoints
            .get(key)
            .filter(|endpoints| plan::is_managed(endpoints))
        {
            let api = self.context.api::<Endpoints>(&key.namespace);
            writes::delete(
                &api,
                &key.name,
                endpoints.metadata.uid.clone(),
                DeleteParams::default(),
            )
            .await
            .doing("delete the Endpoints")?;
        }
        Ok(Action::done())
    }
}

fn selector(service: &Service) -> Option<Selector> {
    let labels = service
        .spec
        .as_ref()?
        .selector
        .as_ref()
        .filter(|labels| !labels.is_empty())?;
    Some(
        labels
            .iter()
            .map(|(key, value)| Expression::Equal(key.clone(), value.clone()))
            .collect(),
    )
}
