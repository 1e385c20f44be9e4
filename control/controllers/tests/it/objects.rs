//! Namespaces, and what every namespace gets.

use k8s_openapi::{
    api::{
        admissionregistration::v1::ValidatingAdmissionPolicy,
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, ServiceAccount},
        rbac::v1::ClusterRole,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::{
    cluster::{Cluster, wait_for},
    rollouts::deployment,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_furnished_and_emptied() {
    let cluster = Cluster::start(&["n1"]).await;
    let namespace: Namespace =
        serde_json::from_value(json!({ "metadata": { "name": "team" } })).expect("a namespace");
    let namespaces = cluster.all::<Namespace>();
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .expect("creates");
    wait_for(
        "the default account",
        || async {
            cluster
                .api_in::<ServiceAccount>("team")
                .get_opt("default")
                .await
                .expect("answers")
        },
        Option::is_some,
    )
    .await;
    let map = wait_for(
        "the root CA",
        || async {
            cluster
                .api_in::<ConfigMap>("team")
                .get_opt("kube-root-ca.crt")
                .await
                .expect("answers")
        },
        Option::is_some,
    )
    .await;
    assert!(
        map.and_then(|map| map.data)
            .is_some_and(|data| data["ca.crt"].contains("BEGIN CERTIFICATE"))
    );

    let mut web = deployment("web", 3, "v1");
    web["metadata"]["namespace"] = json!("team");
    cluster.create::<Deployment>(web).await;
    let held = json!({ "metadata": { "name": "held", "namespace": "team", "finalizers": ["example.com/hold"] } });
    cluster.create::<ConfigMap>(held).await;
    wait_for(
        "pods",
        || async {
            cluster
                .api_in::<k8s_openapi::api::core::v1::Pod>("team")
                .list(&Default::default())
                .await
                .expect("lists")
                .items
        },
        |pods| pods.len() == 3,
    )
    .await;

    namespaces
        .delete("team", &DeleteParams::default())
        .await
        .expect("deletes");
    wait_for(
        "the condition that names what is left",
        || async { namespaces.get("team").await.expect("exists") },
        |namespace| {
            namespace.status.iter().flat_map(|status| status.conditions.iter().flatten()).any(|condition| {
                condition.type_ == "NamespaceFinalizersRemaining"
                    && condition.status == "True"
                    && condition.message.as_deref()
                        == Some("Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances")
            })
        },
    )
    .await;
    let release = json!({ "metadata": { "finalizers": null } });
    cluster
        .api_in::<ConfigMap>("team")
        .patch(
            "held",
            &Default::default(),
            &kube::api::Patch::Merge(release),
        )
        .await
        .expect("releases");
    wait_for(
        "no namespace",
        || async { namespaces.get_opt("team").await.expect("answers") },
        Option::is_none,
    )
    .await;
}

/// KEP-3488, "Type checking": of built-in kinds, and of one that a CustomResourceDefinition gives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expressions_that_do_not_fit_what_a_policy_matches_are_warned_about() {
    let cluster = Cluster::start(&[]).await;
    let schema = json!({ "type": "object", "properties": {
        "spec": { "type": "object", "properties": { "size": { "type": "integer" } } } } });
    let definition = json!({
        "metadata": { "name": "boxes.example.com" },
        "spec": { "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "boxes", "kind": "Box" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }] },
    });
    let definition: CustomResourceDefinition =
        serde_json::from_value(definition).expect("a definition");
    let definitions = cluster.all::<CustomResourceDefinition>();
    definitions
        .create(&PostParams::default(), &definition)
        .await
        .expect("creates");
    wait_for(
        "the definition to be served",
        || async { definitions.get("boxes.example.com").await.expect("exists") },
        |definition| {
            let conditions = definition
                .status
                .iter()
                .flat_map(|s| s.conditions.iter().flatten());
            conditions
                .into_iter()
                .any(|c| c.type_ == "Established" && c.status == "True")
        },
    )
    .await;
    let rule = |group: &str, resource: &str| {
        json!({ "apiGroups": [group], "apiVersions": ["v1"],
        "operations": ["CREATE"], "resources": [resource] })
    };
    let policy = json!({
        "metadata": { "name": "sizes" },
        "spec": {
            "matchConstraints": { "resourceRules": [rule("apps", "deployments"), rule("example.com", "boxes")] },
            "validations": [
                { "expression": "object.spec.replicas < 9" },
                { "expression": "has(object.metadata.labels)" },
            ],
        },
    });
    let policy: ValidatingAdmissionPolicy = serde_json::from_value(policy).expect("a policy");
    let policies = cluster.all::<ValidatingAdmissionPolicy>();
    policies
        .create(&PostParams::default(), &policy)
        .await
        .expect("creates");
    let policy = wait_for(
        "the check of types",
        || async { policies.get("sizes").await.expect("exists") },
        |policy| {
            policy
                .status
                .as_ref()
                .is_some_and(|s| s.observed_generation == Some(1))
        },
    )
    .await;
    let checked = policy.status.and_then(|status| status.type_checking);
    let warnings = checked
        .and_then(|checked| checked.expression_warnings)
        .unwrap_or_default();
    let said: Vec<_> = warnings
        .iter()
        .map(|w| (w.field_ref.as_str(), w.warning.as_str()))
        .collect();
    assert_eq!(
        said,
        [(
            "spec.validations[0].expression",
            "example.com/v1, Kind=Box: ERROR: <input>:1:12: undefined field 'replicas'\n | object.spec.replicas < 9\n \
             | ...........^\n"
        )]
    );
}

/// An aggregated role has the rules of those that its selectors find, as they come, change and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregated_role_follows_the_roles_it_selects() {
    let cluster = Cluster::start(&[]).await;
    let roles = cluster.all::<ClusterRole>();
    let role = |value: serde_json::Value| serde_json::from_value(value).expect("a role");
    let part = |name: &str, verb: &str| {
        role(
            json!({ "metadata": { "name": name, "labels": { "part-of": "monitoring" } },
            "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": [verb] }] }),
        )
    };
    let whole = role(json!({ "metadata": { "name": "monitoring" }, "rules": [],
        "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { "part-of": "monitoring" } }] } }));
    roles
        .create(&PostParams::default(), &whole)
        .await
        .expect("creates");
    let verbs = async |wanted: &[&str]| {
        wait_for(
            "the rules of the parts",
            || async { roles.get("monitoring").await.expect("exists") },
            |role| {
                let rules = role.rules.iter().flatten();
                let verbs: Vec<&str> = rules
                    .flat_map(|r| r.verbs.iter().map(String::as_str))
                    .collect();
                verbs == wanted
            },
        )
        .await;
    };
    roles
        .create(&PostParams::default(), &part("b", "list"))
        .await
        .expect("creates");
    verbs(&["list"]).await;
    roles
        .create(&PostParams::default(), &part("a", "get"))
        .await
        .expect("creates");
    verbs(&["get", "list"]).await;
    let unlabelled = Patch::Merge(json!({ "metadata": { "labels": null } }));
    roles
        .patch("b", &PatchParams::default(), &unlabelled)
        .await
        .expect("patches");
    verbs(&["get"]).await;
    roles
        .delete("a", &DeleteParams::default())
        .await
        .expect("deletes");
    verbs(&[]).await;
}
