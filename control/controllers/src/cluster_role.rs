//! Fills aggregated ClusterRoles with the rules of the roles they select.
//!
//! Watches and writes: ClusterRole.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::{
    api::{Patch, PatchParams},
    core::{Selector, SelectorExt},
};
use serde_json::json;
use skep_client::{Action, Informer, ObjectKey, writes};

use crate::context::{Context, Doing, Error};

pub async fn run(context: Arc<Context>) {
    let roles: Informer<ClusterRole> = context.informers.of();
    let mut work = context.work();
    let all = roles.clone();
    work.feed(&roles, move |_| {
        let aggregated = all
            .all()
            .into_iter()
            .filter(|role| role.aggregation_rule.is_some());
        aggregated
            .map(|role| ObjectKey::of(&role.metadata))
            .collect()
    });
    let own = Arc::new((roles, context));
    work.run("clusterrole-aggregation", 2, own, |own, key| async move {
        reconcile(&own.0, &own.1, key).await
    })
    .await;
}

async fn reconcile(
    roles: &Informer<ClusterRole>,
    context: &Context,
    key: ObjectKey,
) -> Result<Action, Error> {
    let Some(role) = roles
        .get(&key)
        .filter(|role| role.aggregation_rule.is_some())
    else {
        return Ok(Action::done());
    };
    let wanted = union(&role, &roles.all());
    if role.rules.clone().unwrap_or_default() == wanted {
        return Ok(Action::done());
    }
    let patch = json!({ "metadata": { "uid": role.metadata.uid, "resourceVersion": role.metadata.resource_version },
        "rules": wanted });
    let api = context.cluster_api::<ClusterRole>();
    match api
        .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(Action::done()),
        Err(error) if writes::is_not_found(&error) => Ok(Action::done()),
        Err(error) => Err(error).doing("write the aggregated rules"),
    }
}

/// The rules of all selected roles, by role name, each once.
fn union(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let selectors: Vec<Selector> = role
        .aggregation_rule
        .iter()
        .flat_map(|rule| rule.cluster_role_selectors.iter().flatten())
        .filter_map(|selector| selector.clone().try_into().ok())
        .collect();
    let none = Default::default();
    let mut selected: Vec<&Arc<ClusterRole>> = all
        .iter()
        .filter(|other| other.metadata.name != role.metadata.name)
        .filter(|other| {
            let labels = other.metadata.labels.as_ref().unwrap_or(&none);
            selectors.iter().any(|selector| selector.matches(labels))
        })
        .collect();
    selected.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in selected.iter().flat_map(|role| role.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn unions_are_sorted_and_without_repeats() {
        let role = |name: &str, labels: Value, verbs: &[&str]| -> Arc<ClusterRole> {
            let rules: Vec<Value> = verbs
                .iter()
                .map(|verb| json!({ "apiGroups": [""], "resources": ["pods"], "verbs": [verb] }))
                .collect();
            let role = json!({ "metadata": { "name": name, "labels": labels }, "rules": rules });
            Arc::new(serde_json::from_value(role).expect("a role"))
        };
        let view: ClusterRole = serde_json::from_value(json!({ "metadata": { "name": "view" },
            "aggregationRule": { "clusterRoleSelectors": [ { "matchLabels": { "to": "view" } } ] } }))
        .expect("a role");
        let all = [
            role("b", json!({ "to": "view" }), &["list", "get"]),
            role("a", json!({ "to": "view" }), &["get"]),
            role("c", json!({ "to": "edit" }), &["delete"]),
        ];
        let verbs: Vec<String> = union(&view, &all)
            .into_iter()
            .map(|rule| rule.verbs.join(","))
            .collect();
        assert_eq!(verbs, ["get", "list"]);
    }
}
