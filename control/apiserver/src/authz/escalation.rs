//! Nobody gives away what they do not have: who writes a role must hold what it allows, who writes a binding must hold
//! what its role allows. Being allowed to `escalate` or `bind` lifts that. Upstream: pkg/registry/rbac/*/policybased.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    Attributes,
    rbac::{Rule, uncovered},
};
use crate::{
    codec::meta,
    context::Ctx,
    handlers::write::remove_meta,
    identity::MASTERS,
    registry::Resource,
    status::{Result, Status},
};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Before a role or binding is written; other kinds pass. `old`: what is updated.
///
/// # Errors
/// 403 that names what the requester does not hold; 404 for a binding to a role that is not there.
pub async fn check(
    ctx: &Ctx,
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
) -> Result<()> {
    if resource.def.group != GROUP || ctx.user.groups.iter().any(|group| group == MASTERS) {
        return Ok(());
    }
    if old.is_some_and(|old| only_for_garbage_collection(object, old)) {
        return Ok(());
    }
    match resource.def.plural.as_ref() {
        "roles" | "clusterroles" => check_role(ctx, resource, object, old),
        _ => check_binding(ctx, resource, object).await,
    }
}

fn check_role(ctx: &Ctx, resource: &Resource, role: &Value, old: Option<&Value>) -> Result<()> {
    let name = &ctx.info.name;
    if may(
        ctx,
        "escalate",
        &resource.def.plural,
        &ctx.info.namespace,
        name,
    ) {
        return Ok(());
    }
    let namespace = meta(role, "namespace");
    let refuse =
        |why: &str| Status::forbidden(GROUP, &resource.def.plural, meta(role, "name"), why);
    if let Some(why) = missing(ctx, namespace, &rules_of(role)) {
        return Err(refuse(&why));
    }
    let aggregates = |role: &Value| {
        let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array();
        selectors.is_some_and(|selectors| !selectors.is_empty())
    };
    if (aggregates(role) || old.is_some_and(aggregates))
        && missing(ctx, "", &[Rule::everything(), Rule::every_path()]).is_some()
    {
        return Err(refuse(
            "must have cluster-admin privileges to use the aggregationRule",
        ));
    }
    Ok(())
}

async fn check_binding(ctx: &Ctx, resource: &Resource, binding: &Value) -> Result<()> {
    let namespace = meta(binding, "namespace");
    let text = |field: &str| binding["roleRef"][field].as_str().unwrap_or_default();
    let plural = match text("kind") {
        "Role" => "roles",
        "ClusterRole" => "clusterroles",
        // Refused by validation, which can say why.
        _ => return Ok(()),
    };
    if may(ctx, "bind", plural, namespace, text("name")) {
        return Ok(());
    }
    let roles = ctx.registry.any_version(GROUP, plural);
    let roles = roles.ok_or_else(Status::no_such_resource)?;
    let of = if plural == "roles" { namespace } else { "" };
    let role = ctx.api.storage.get(&roles.key(of, text("name"))).await?;
    let role = role.ok_or_else(|| Status::not_found(GROUP, plural, text("name")))?;
    let role: Value = serde_json::from_slice(&role.bytes())
        .map_err(|error| Status::internal("decoding a stored object", &error))?;
    match missing(ctx, namespace, &rules_of(&role)) {
        None => Ok(()),
        Some(why) => Err(Status::forbidden(
            GROUP,
            &resource.def.plural,
            meta(binding, "name"),
            &why,
        )),
    }
}

fn may(ctx: &Ctx, verb: &str, plural: &str, namespace: &str, name: &str) -> bool {
    let question = Attributes::Resource {
        user: &ctx.user,
        verb,
        group: GROUP,
        version: "*",
        resource: plural,
        subresource: "",
        namespace,
        name,
    };
    ctx.api.authorizer.authorize(&question).allowed()
}

fn rules_of(role: &Value) -> Vec<Rule> {
    serde_json::from_value::<Option<Vec<Rule>>>(role["rules"].clone())
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// Why the requester may not give these rules away; `None` if they hold them all.
fn missing(ctx: &Ctx, namespace: &str, wanted: &[Rule]) -> Option<String> {
    let user = &ctx.user;
    let missing = uncovered(&ctx.api.authorizer.rules(user, namespace), wanted);
    if missing.is_empty() {
        return None;
    }
    let lines: BTreeSet<String> = compact(missing).iter().map(describe).collect();
    let lines: Vec<String> = lines.into_iter().collect();
    Some(format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        lines.join("\n")
    ))
}

/// Pieces that differ in their verb only become one rule.
fn compact(pieces: Vec<Rule>) -> Vec<Rule> {
    let mut joined: BTreeMap<[Vec<String>; 3], Rule> = BTreeMap::new();
    let mut others = Vec::new();
    for piece in pieces {
        if !piece.non_resource_urls.is_empty() {
            others.push(piece);
            continue;
        }
        let key = [
            piece.api_groups.clone(),
            piece.resources.clone(),
            piece.resource_names.clone(),
        ];
        match joined.get_mut(&key) {
            Some(rule) => rule.verbs.extend(piece.verbs),
            None => drop(joined.insert(key, piece)),
        }
    }
    others.extend(joined.into_values());
    others
}

/// `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`
fn describe(rule: &Rule) -> String {
    let parts: Vec<String> = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ]
    .into_iter()
    .filter(|(_, list)| !list.is_empty())
    .map(|(name, list)| format!("{name}:{}", quoted(list)))
    .collect();
    format!("{{{}}}", parts.join(", "))
}

/// Go's `%q` of a list.
fn quoted(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", items.join(" "))
}

/// Owner references and finalizers may change in what one may not grant.
fn only_for_garbage_collection(new: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut object = object.clone();
        for field in [
            "ownerReferences",
            "finalizers",
            "managedFields",
            "resourceVersion",
        ] {
            remove_meta(&mut object, field);
        }
        object
    };
    rest(new) == rest(old)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(value: Value) -> Vec<Rule> {
        rules_of(&json!({ "rules": value }))
    }

    #[test]
    fn pieces_are_told_together() {
        let wanted = rules(json!([
            {"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get", "list"]},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["delete"]},
            {"nonResourceURLs": ["/x"], "verbs": ["get"]},
        ]));
        let owned = rules(json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]));
        let told: Vec<String> = compact(uncovered(&owned, &wanted))
            .iter()
            .map(describe)
            .collect();
        assert_eq!(
            told,
            [
                r#"{NonResourceURLs:["/x"], Verbs:["get"]}"#,
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["list"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], ResourceNames:["a"], Verbs:["delete"]}"#,
            ]
        );
    }

    #[test]
    fn the_garbage_collector_may_do_its_work() {
        let old = json!({"metadata": {"name": "r", "finalizers": ["a/b"], "resourceVersion": "1"}, "rules": []});
        let mut new = json!({"metadata": {"name": "r"}, "rules": []});
        assert!(only_for_garbage_collection(&new, &old));
        new["rules"] = json!([{"verbs": ["*"]}]);
        assert!(!only_for_garbage_collection(&new, &old));
    }
}
