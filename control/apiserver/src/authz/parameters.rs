//! A policy reads its parameters with the server's rights: who points one at them must be able to read them too.
//! Upstream: pkg/registry/admissionregistration/*/authz.go.

use serde_json::Value;
use skep_api::field::{Bad, FieldError, FieldErrorKind};

use super::Attributes;
use crate::{
    admission,
    codec::meta,
    context::Ctx,
    identity::{MASTERS, User},
    registry::Resource,
    status::{Result, Status},
};

const GROUP: &str = "admissionregistration.k8s.io";

/// Before an admission policy or a binding of one is written; other kinds pass. `old`: what is updated.
///
/// # Errors
/// 422 that forbids `spec.paramKind` or `spec.paramRef`.
pub async fn check(
    ctx: &Ctx,
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
) -> Result<()> {
    if ctx.user.groups.iter().any(|group| group == MASTERS) {
        return Ok(());
    }
    let (field, why) = match resource.def.plural.as_ref() {
        "validatingadmissionpolicies" | "mutatingadmissionpolicies" => {
            ("paramKind", check_policy(ctx, object, old))
        }
        "validatingadmissionpolicybindings" => (
            "paramRef",
            check_binding(ctx, "validatingadmissionpolicies", object, old).await?,
        ),
        "mutatingadmissionpolicybindings" => (
            "paramRef",
            check_binding(ctx, "mutatingadmissionpolicies", object, old).await?,
        ),
        _ => return Ok(()),
    };
    let Some(why) = why else {
        return Ok(());
    };
    let path = format!("spec.{field}");
    let error = FieldError::new(FieldErrorKind::Forbidden, path, Bad::omitted(), why);
    let def = &resource.def;
    Err(Status::invalid(
        &def.group,
        &def.kind,
        meta(object, "name"),
        &[error],
    ))
}

fn check_policy(ctx: &Ctx, policy: &Value, old: Option<&Value>) -> Option<String> {
    let kind = &policy["spec"]["paramKind"];
    if kind.is_null() || old.is_some_and(|old| old["spec"]["paramKind"] == *kind) {
        return None;
    }
    let text = |field: &str| kind[field].as_str().unwrap_or_default();
    if may_read(ctx, "get", &Parameters::of(ctx, kind), "*", "*") {
        return None;
    }
    Some(format!(
        "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
        shown(&ctx.user),
        text("kind"),
        text("apiVersion")
    ))
}

async fn check_binding(
    ctx: &Ctx,
    policies: &str,
    binding: &Value,
    old: Option<&Value>,
) -> Result<Option<String>> {
    let reference = &binding["spec"]["paramRef"];
    let same = |field: &str| old.is_some_and(|old| old["spec"][field] == binding["spec"][field]);
    if reference.is_null() || (same("paramRef") && same("policyName")) {
        return Ok(None);
    }
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let policy = binding["spec"]["policyName"].as_str().unwrap_or_default();
    let policy = admission::object(&ctx.api, GROUP, policies, "", policy).await?;
    let kind = policy.map(|policy| policy["spec"]["paramKind"].clone());
    let parameters = Parameters::of(ctx, &kind.unwrap_or_default());
    let verb = match text("name") {
        "" => "list",
        _ => "get",
    };
    if may_read(ctx, verb, &parameters, text("namespace"), text("name")) {
        return Ok(None);
    }
    Ok(Some(format!(
        "user {} does not have \"{verb}\" permission on the object referenced by paramRef",
        shown(&ctx.user)
    )))
}

/// What parameters are, as far as it is known: `*` for the rest.
struct Parameters {
    group: String,
    version: String,
    resource: String,
}

impl Parameters {
    fn of(ctx: &Ctx, kind: &Value) -> Self {
        let any = || "*".to_owned();
        let Some(api_version) = kind["apiVersion"].as_str() else {
            return Self {
                group: any(),
                version: any(),
                resource: any(),
            };
        };
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = kind["kind"].as_str().unwrap_or_default();
        let known = ctx.registry.kind(group, version, kind);
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            resource: known.map_or_else(any, |known| known.def.plural.to_string()),
        }
    }
}

fn may_read(ctx: &Ctx, verb: &str, of: &Parameters, namespace: &str, name: &str) -> bool {
    let question = Attributes::Resource {
        user: &ctx.user,
        verb,
        group: &of.group,
        version: &of.version,
        resource: &of.resource,
        subresource: "",
        namespace,
        name,
    };
    ctx.api.authorizer.authorize(&question).allowed()
}

/// Go's `%v` of the user's record.
fn shown(user: &User) -> String {
    let extra: Vec<String> = user
        .extra
        .iter()
        .map(|(key, values)| format!("{key}:[{}]", values.join(" ")))
        .collect();
    format!(
        "&{{{} {} [{}] map[{}]}}",
        user.name,
        user.uid,
        user.groups.join(" "),
        extra.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_shown_as_go_shows_them() {
        let mut user = User {
            name: "jane".into(),
            groups: vec!["dev".into(), "system:authenticated".into()],
            ..User::default()
        };
        assert_eq!(shown(&user), "&{jane  [dev system:authenticated] map[]}");
        user.uid = "7".into();
        user.extra.insert("a".into(), vec!["b".into(), "c".into()]);
        assert_eq!(
            shown(&user),
            "&{jane 7 [dev system:authenticated] map[a:[b c]]}"
        );
    }
}
