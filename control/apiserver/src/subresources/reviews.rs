//! Kinds that are questions: who am I, what may I, is this token good. Nothing is stored.

use std::{collections::BTreeMap, sync::Arc};

use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, Value, json};
use skep_api::{
    field::{Bad, FieldError, FieldErrorKind},
    validation::text,
};

use crate::{
    admission::Operation,
    authn::Unauthorized,
    authz::{Attributes, Decision},
    codec::{Expected, decode_body},
    context::Ctx,
    handlers::write::{Target, match_namespace, remove_meta},
    identity::User,
    negotiate,
    options::{WriteKind, WriteOptions},
    registry::Resource,
    status::{Result, Status},
};

/// Whether creating this resource asks a question instead of storing an object.
pub fn is_review(resource: &Resource) -> bool {
    matches!(
        resource.def.group.as_ref(),
        "authentication.k8s.io" | "authorization.k8s.io"
    )
}

pub async fn create(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    let encoding = negotiate::input(&ctx.headers)?;
    let body = ctx.read_body().await?;
    let options = WriteOptions::parse(&ctx.query, WriteKind::Create)?;
    let mut review = decode_body(
        &body,
        encoding,
        &Expected::of(resource),
        options.field_validation,
        &mut ctx.warnings.lock(),
    )?;
    let target = Target {
        resource,
        namespace: &ctx.info.namespace,
        name: "",
        subresource: "",
    };
    for field in ["uid", "selfLink", "creationTimestamp", "deletionTimestamp"] {
        remove_meta(&mut review, field);
    }
    match_namespace(&mut review, target.namespace)?;
    target.track(ctx, &options, None, &mut review);
    let review = target
        .admit(
            ctx,
            Operation::Create,
            &options.object,
            options.dry_run,
            review,
        )
        .await?;
    let answered = match resource.def.plural.as_ref() {
        "selfsubjectreviews" => self_subject(ctx, review),
        "tokenreviews" => token(ctx, review)?,
        "selfsubjectrulesreviews" => rules(ctx, &review)?,
        "localsubjectaccessreviews" => access(ctx, review, Subject::Local)?,
        "selfsubjectaccessreviews" => access(ctx, review, Subject::Caller)?,
        _ => access(ctx, review, Subject::Given)?,
    };
    ctx.value(StatusCode::CREATED, &answered, &out)
}

/// `authentication.k8s.io UserInfo`
pub fn user_info(user: &User) -> Value {
    let mut info = Map::new();
    for (key, value) in [("username", &user.name), ("uid", &user.uid)] {
        if !value.is_empty() {
            info.insert(key.into(), value.as_str().into());
        }
    }
    if !user.groups.is_empty() {
        info.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        info.insert("extra".into(), json!(user.extra));
    }
    Value::Object(info)
}

fn self_subject(ctx: &Ctx, mut review: Value) -> Value {
    review["metadata"] = json!({"creationTimestamp": ctx.now.to_string()});
    review["status"] = json!({"userInfo": user_info(&ctx.user)});
    review
}

fn token(ctx: &Ctx, mut review: Value) -> Result<Value> {
    let token = review["spec"]["token"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if token.is_empty() {
        return Err(Status::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let authenticator = ctx.api.authenticator.as_ref();
    let authenticator =
        authenticator.ok_or_else(|| Status::service_unavailable("no authenticator is set up"))?;
    let audiences = texts(&review["spec"]["audiences"]);
    let audiences = if audiences.is_empty() {
        authenticator.service_accounts.audiences().to_vec()
    } else {
        audiences
    };
    review["status"] = match authenticator.review(&token, &audiences, ctx.now) {
        Ok((user, audiences)) => {
            let mut status = json!({"authenticated": true, "user": user_info(&user)});
            if !audiences.is_empty() {
                status["audiences"] = json!(audiences);
            }
            status
        }
        Err(error) => {
            tracing::info!(%error, "a reviewed token was refused");
            let told = match error {
                Unauthorized::ServiceAccount(error) => error.to_string(),
                _ => "invalid bearer token".to_owned(),
            };
            json!({"user": {}, "error": told})
        }
    };
    Ok(review)
}

fn texts(value: &Value) -> Vec<String> {
    let values = value.as_array().into_iter().flatten();
    values
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn rules(ctx: &Ctx, review: &Value) -> Result<Value> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut resource_rules, mut path_rules) = (Vec::new(), Vec::new());
    for rule in ctx.api.authorizer.rules(&ctx.user, namespace) {
        if !rule.resources.is_empty() {
            let mut entry = json!({
                "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources,
            });
            if !rule.resource_names.is_empty() {
                entry["resourceNames"] = json!(rule.resource_names);
            }
            resource_rules.push(entry);
        }
        if !rule.non_resource_urls.is_empty() {
            let entry = json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls});
            path_rules.push(entry);
        }
    }
    Ok(json!({
        "kind": "SelfSubjectRulesReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
        "spec": {},
        "status": {
            "resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": false,
        },
    }))
}

/// Who an access review is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Caller,
    Given,
    /// As given, in the namespace of the request only.
    Local,
}

/// `fieldSelector` and `labelSelector` of what is asked about (KEP-4601).
fn selector_problems(attributes: &Value, errors: &mut Vec<FieldError>) {
    for field in ["fieldSelector", "labelSelector"] {
        let Some(selector) = attributes.get(field).filter(|one| one.is_object()) else {
            continue;
        };
        let path = format!("spec.resourceAttributes.{field}");
        let labels = field == "labelSelector";
        let raw = selector["rawSelector"].as_str().unwrap_or_default();
        let requirements = selector["requirements"].as_array();
        let requirements = requirements.map(Vec::as_slice).unwrap_or_default();
        match (raw, requirements) {
            ("", []) => errors.push(FieldError::new(
                FieldErrorKind::Required,
                format!("{path}.requirements"),
                "",
                format!("when {path} is specified, requirements or rawSelector is required"),
            )),
            ("", _) | (_, []) => {}
            (raw, _) => errors.push(FieldError::new(
                FieldErrorKind::Invalid,
                format!("{path}.rawSelector"),
                raw,
                "may not specified at the same time as requirements",
            )),
        }
        for (i, requirement) in requirements.iter().enumerate() {
            let at = format!("{path}.requirements[{i}]");
            requirement_problems(requirement, labels, &at, errors);
        }
    }
}

/// Operators that are not known may come from newer clients and are let through.
fn requirement_problems(
    requirement: &Value,
    labels: bool,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let given = texts(&requirement["values"]);
    let values = given.len();
    let at = format!("{path}.values");
    match requirement["operator"].as_str().unwrap_or_default() {
        "In" | "NotIn" if values == 0 => errors.push(FieldError::new(
            FieldErrorKind::Required,
            at,
            "",
            "must be specified when `operator` is 'In' or 'NotIn'",
        )),
        "Exists" | "DoesNotExist" if values > 0 => errors.push(FieldError::new(
            FieldErrorKind::Forbidden,
            at,
            "",
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        _ => {}
    }
    let key = requirement["key"].as_str().unwrap_or_default();
    if labels {
        // What selects by label must be a label.
        let mut invalid = |at: String, bad: &str, problems: text::Messages| {
            for why in problems {
                errors.push(FieldError::new(FieldErrorKind::Invalid, &at, bad, why));
            }
        };
        invalid(format!("{path}.key"), key, text::qualified_name(key));
        for (i, value) in given.iter().enumerate() {
            invalid(
                format!("{path}.values[{i}]"),
                value,
                text::label_value(value),
            );
        }
    } else if key.is_empty() {
        errors.push(FieldError::new(
            FieldErrorKind::Required,
            format!("{path}.key"),
            "",
            "must be specified",
        ));
    }
}

/// `metadata` as Go's struct has it.
const META_FIELDS: [&str; 11] = [
    "name",
    "generateName",
    "namespace",
    "resourceVersion",
    "generation",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];
const MANAGED_FIELDS: [&str; 7] = [
    "manager",
    "operation",
    "apiVersion",
    "time",
    "fieldsType",
    "fieldsV1",
    "subresource",
];

/// A map as JSON, with the fields in this order.
fn in_order(value: &Value, fields: &[&str]) -> String {
    let shown: Vec<String> = fields
        .iter()
        .filter_map(|field| Some((field, value.get(field)?)))
        .map(|(field, value)| match (*field, value) {
            ("managedFields", Value::Array(entries)) => {
                let entries: Vec<String> = entries
                    .iter()
                    .map(|entry| in_order(entry, &MANAGED_FIELDS))
                    .collect();
                format!("{field:?}:[{}]", entries.join(","))
            }
            (field, value) => format!("{field:?}:{value}"),
        })
        .collect();
    format!("{{{}}}", shown.join(","))
}

fn access(ctx: &Ctx, mut review: Value, subject: Subject) -> Result<Value> {
    let spec = &review["spec"];
    let mut errors = Vec::new();
    let mut invalid = |field: &str, bad: Bad, detail: &str| {
        errors.push(FieldError::new(FieldErrorKind::Invalid, field, bad, detail));
    };
    let resource = spec.get("resourceAttributes").filter(|r| r.is_object());
    let path = spec.get("nonResourceAttributes").filter(|r| r.is_object());
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let shown_path = path.map(|path| {
        let (path, verb) = (text(path, "path"), text(path, "verb"));
        Bad::shown(format!("{{\"Path\":{path:?},\"Verb\":{verb:?}}}"))
    });
    if let (Some(_), Some(shown)) = (resource, shown_path.clone()) {
        invalid(
            "spec.nonResourceAttributes",
            shown,
            "cannot be specified in combination with resourceAttributes",
        );
    }
    if resource.is_none() && path.is_none() {
        invalid(
            "spec.resourceAttributes",
            Bad::shown("null"),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        );
    }
    let groups = texts(&spec["groups"]);
    if subject != Subject::Caller && text(spec, "user").is_empty() && groups.is_empty() {
        invalid(
            "spec.user",
            Bad::from(""),
            "at least one of user or group must be specified",
        );
    }
    if let Some(attributes) = resource {
        selector_problems(attributes, &mut errors);
    }
    let mut invalid = |field: &str, bad: Bad, detail: &str| {
        errors.push(FieldError::new(FieldErrorKind::Invalid, field, bad, detail));
    };
    let (allowed, detail) = match subject {
        Subject::Local => (
            &["managedFields", "namespace"][..],
            "must be empty except for namespace",
        ),
        _ => (&["managedFields"][..], "must be empty"),
    };
    let metadata = review["metadata"].as_object();
    let given = metadata.into_iter().flatten();
    if given
        .into_iter()
        .any(|(field, value)| !allowed.contains(&field.as_str()) && !value.is_null())
    {
        let shown = in_order(&review["metadata"], &META_FIELDS);
        invalid("metadata", Bad::shown(shown), detail);
    }
    let namespace = resource.map(|r| text(r, "namespace")).unwrap_or_default();
    if subject == Subject::Local {
        if resource.is_some() && namespace != ctx.info.namespace {
            invalid(
                "spec.resourceAttributes.namespace",
                Bad::from(namespace.as_str()),
                "must match metadata.namespace",
            );
        }
        if let Some(shown) = shown_path {
            invalid(
                "spec.nonResourceAttributes",
                shown,
                "disallowed on this kind of request",
            );
        }
    }
    if !errors.is_empty() {
        return Err(Status::invalid("authorization.k8s.io", "", "", &errors));
    }
    let given;
    let user = if subject == Subject::Caller {
        &ctx.user
    } else {
        let extra = spec["extra"].as_object().into_iter().flatten();
        given = User {
            name: text(spec, "user"),
            uid: text(spec, "uid"),
            groups,
            extra: extra
                .map(|(k, v)| (k.clone(), texts(v)))
                .collect::<BTreeMap<_, _>>(),
        };
        &given
    };
    let decision = match (resource, path) {
        (Some(attributes), _) => {
            let [verb, group, version, plural, subresource, name] = [
                "verb",
                "group",
                "version",
                "resource",
                "subresource",
                "name",
            ]
            .map(|key| text(attributes, key));
            ctx.api.authorizer.authorize(&Attributes::Resource {
                user,
                verb: &verb,
                group: &group,
                version: &version,
                resource: &plural,
                subresource: &subresource,
                namespace: &namespace,
                name: &name,
            })
        }
        (None, Some(attributes)) => ctx.api.authorizer.authorize(&Attributes::Path {
            user,
            verb: &text(attributes, "verb"),
            path: &text(attributes, "path"),
        }),
        (None, None) => Decision::NoOpinion {
            reason: String::new(),
        },
    };
    let (allowed, reason) = match decision {
        Decision::Allow { reason } => (true, reason),
        Decision::NoOpinion { reason } => (false, reason),
    };
    let mut status = json!({"allowed": allowed});
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    review["status"] = status;
    Ok(review)
}
