//! A small operator written with kube-rs: its definition, server-side apply, a finalizer.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use http::Request;
use k8s_openapi::{
    api::core::v1::ConfigMap,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams},
    runtime::{
        controller::{Action, Controller},
        finalizer::{Event, finalizer},
        wait::{await_condition, conditions},
        watcher,
    },
};
use serde_json::json;
use skep_apiserver::identity::User;
use tower::ServiceExt;

use crate::{cluster::Cluster, definitions::definition};

const DEADLINE: Duration = Duration::from_secs(20);
const FINALIZER: &str = "example.com/greeter";

fn client(cluster: &Cluster) -> Client {
    let service =
        cluster
            .server
            .router()
            .map_request(|mut request: Request<kube::client::Body>| {
                request.extensions_mut().insert(User::component("operator"));
                request.map(axum::body::Body::new)
            });
    Client::new(service, "default")
}

struct Context {
    client: Client,
    kind: ApiResource,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

/// Keeps a ConfigMap with the greeting of each Greeter, and says so in its status.
async fn reconcile(greeter: Arc<DynamicObject>, context: Arc<Context>) -> Result<Action, Failed> {
    let greeters =
        Api::<DynamicObject>::default_namespaced_with(context.client.clone(), &context.kind);
    let maps = Api::<ConfigMap>::default_namespaced(context.client.clone());
    let failed = |error: kube::Error| Failed(error.to_string());
    finalizer(&greeters, FINALIZER, greeter, |event| async move {
        match event {
            Event::Apply(greeter) => {
                let name = greeter.name_any();
                let map = json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                    "data": {"greeting": greeter.data["spec"]["greeting"]},
                });
                let params = PatchParams::apply("greeter").force();
                maps.patch(&name, &params, &Patch::Apply(&map))
                    .await
                    .map_err(failed)?;
                let status = json!({
                    "apiVersion": "example.com/v1", "kind": "Greeter",
                    "status": {"observedGeneration": greeter.metadata.generation},
                });
                Api::<DynamicObject>::default_namespaced_with(
                    context.client.clone(),
                    &context.kind,
                )
                .patch_status(&name, &params, &Patch::Apply(&status))
                .await
                .map_err(failed)?;
            }
            Event::Cleanup(greeter) => {
                let params = DeleteParams::default();
                maps.delete(&greeter.name_any(), &params)
                    .await
                    .map_err(failed)?;
            }
        }
        Ok::<_, Failed>(Action::await_change())
    })
    .await
    .map_err(|error| Failed(error.to_string()))
}

#[tokio::test]
async fn an_operator_of_kube_rs_works() {
    let cluster = Cluster::start().await;
    let client = client(&cluster);
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"greeting": {"type": "string", "default": "hello"}}},
        "status": {"type": "object", "properties": {"observedGeneration": {"type": "integer"}}},
    }});
    let mut given = definition("greeters", "Greeter", schema);
    given["apiVersion"] = "apiextensions.k8s.io/v1".into();
    given["kind"] = "CustomResourceDefinition".into();
    given["spec"]["versions"][0]["subresources"] = json!({"status": {}});
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let params = PatchParams::apply("greeter");
    definitions
        .patch("greeters.example.com", &params, &Patch::Apply(&given))
        .await
        .expect("the definition is applied");
    let established = await_condition(
        definitions,
        "greeters.example.com",
        conditions::is_crd_established(),
    );
    tokio::time::timeout(DEADLINE, established)
        .await
        .expect("established in time")
        .expect("a watch");

    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "Greeter"));
    let greeters = Api::<DynamicObject>::default_namespaced_with(client.clone(), &kind);
    let context = Arc::new(Context {
        client: client.clone(),
        kind: kind.clone(),
    });
    let controller =
        Controller::new_with(greeters.clone(), watcher::Config::default(), kind.clone())
            .run(
                reconcile,
                |_, _, _| Action::requeue(Duration::from_millis(50)),
                context,
            )
            .for_each(|_| futures::future::ready(()));
    let controller = tokio::spawn(controller);

    let greeter = json!({
        "apiVersion": "example.com/v1", "kind": "Greeter", "metadata": {"name": "a"}, "spec": {},
    });
    greeters
        .patch("a", &PatchParams::apply("user"), &Patch::Apply(&greeter))
        .await
        .expect("a greeter is applied");
    let seen = await_condition(greeters.clone(), "a", |object: Option<&DynamicObject>| {
        object.is_some_and(|object| object.data["status"]["observedGeneration"].is_i64())
    });
    let seen = tokio::time::timeout(DEADLINE, seen)
        .await
        .expect("reconciled in time")
        .expect("a watch")
        .expect("a greeter");
    assert_eq!(seen.finalizers(), [FINALIZER]);
    let maps = Api::<ConfigMap>::default_namespaced(client);
    let map = maps.get("a").await.expect("a map");
    assert_eq!(map.data.expect("data")["greeting"], "hello");

    greeters
        .delete("a", &DeleteParams::default())
        .await
        .expect("deleted");
    let gone = await_condition(greeters, "a", |object: Option<&DynamicObject>| {
        object.is_none()
    });
    tokio::time::timeout(DEADLINE, gone)
        .await
        .expect("gone in time")
        .expect("a watch");
    assert!(maps.get_opt("a").await.expect("an answer").is_none());
    controller.abort();
}
