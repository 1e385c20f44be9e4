//! serviceaccounts/token: a signed token, bound to objects and audiences.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use skep_api::field::{Bad, FieldError, FieldErrorKind};
use skep_apply::managed;

use crate::{
    admission::Operation,
    authn::service_account::{Binding, Claims, ObjectReference, username},
    codec::{Expected, decode_body, meta},
    context::Ctx,
    handlers::write::{Target, match_namespace, new_uid},
    negotiate,
    options::{WriteKind, WriteOptions},
    registry::Resource,
    status::{Failure, Result, Status},
};

const GROUP: &str = "authentication.k8s.io";
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
const DEFAULT_SECONDS: i64 = 3600;
/// What the kubelet asks for on behalf of pods whose clients may not know rotation (upstream
/// `WarnOnlyBoundTokenExpirationPeriod`): such tokens really live a year, and using one late is only warned about.
const WARN_ONLY_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

pub async fn create(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.plain_or_transformed()?;
    let encoding = negotiate::input(&ctx.headers)?;
    let body = ctx.read_body().await?;
    let options = WriteOptions::parse(&ctx.query, WriteKind::Create)?;
    let schema = skep_schema::builtin(GROUP, "v1", "TokenRequest");
    let expected = Expected {
        group: GROUP,
        version: "v1",
        kind: "TokenRequest",
        schema: schema.as_ref(),
        custom: false,
    };
    let mut request = decode_body(
        &body,
        encoding,
        &expected,
        options.field_validation,
        &mut ctx.warnings.lock(),
    )?;
    let (namespace, name) = (ctx.info.namespace.as_str(), ctx.info.name.as_str());
    match_namespace(&mut request, namespace)?;
    match meta(&request, "name") {
        "" => request["metadata"]["name"] = name.into(),
        given if given == name => {}
        given => {
            let why = "must match the service account name if specified";
            return Err(invalid(name, "metadata.name", Bad::from(given), why));
        }
    }
    if request["spec"]["expirationSeconds"].is_null() {
        request["spec"]["expirationSeconds"] = DEFAULT_SECONDS.into();
    }
    let target = Target {
        resource,
        namespace,
        name,
        subresource: "token",
    };
    if let Some(schema) = &schema {
        let mut writer = target.writer(ctx, &options);
        writer.api_version = format!("{GROUP}/v1");
        managed::update(None, &mut request, schema, &writer, &[]);
    }
    let mut request = target
        .admit(
            ctx,
            Operation::Create,
            &options.object,
            options.dry_run,
            request,
        )
        .await?;
    let authenticator = ctx.api.authenticator.as_ref();
    let authenticator =
        authenticator.ok_or_else(|| Status::service_unavailable("no authenticator is set up"))?;
    let keys = &authenticator.service_accounts;

    let account = ctx.api.storage.get(&resource.key(namespace, name)).await?;
    let account = account.ok_or_else(|| Status::missing(resource, name))?;
    let uid = meta(&request, "uid");
    if !uid.is_empty() && uid != account.uid.as_ref() {
        let found = &account.uid;
        let why = format!(
            "the UID in the token request ({uid}) does not match the UID of the service account ({found})"
        );
        return Err(Status::conflict(GROUP, "TokenRequest", name, &why));
    }
    let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(0);
    check_seconds(seconds)?;
    let given = request["spec"]["audiences"]
        .as_array()
        .filter(|a| !a.is_empty());
    let audiences: Vec<String> = match given {
        Some(given) => given
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        None => keys.audiences().to_vec(),
    };
    request["spec"]["audiences"] = json!(audiences);
    if request["spec"]["boundObjectRef"].is_null() {
        request["spec"]["boundObjectRef"] = Value::Null;
    }
    let mut binding = Binding {
        namespace: namespace.to_owned(),
        serviceaccount: ObjectReference {
            name: name.to_owned(),
            uid: account.uid.to_string(),
        },
        pod: None,
        secret: None,
        node: None,
        warnafter: None,
    };
    bind(ctx, &mut request["spec"]["boundObjectRef"], &mut binding).await?;

    let now = ctx.now.as_second();
    let for_this_server = audiences.iter().all(|a| keys.audiences().contains(a));
    let mut lifetime = seconds;
    if seconds == WARN_ONLY_SECONDS && for_this_server && binding.pod.is_some() {
        lifetime = EXTENDED_SECONDS;
        binding.warnafter = Some(now + seconds);
    }
    let claims = Claims {
        aud: audiences,
        exp: now + lifetime,
        iat: now,
        nbf: now,
        iss: String::new(),
        jti: new_uid(),
        sub: username(namespace, name),
        binding,
    };
    let expires =
        Timestamp::from_second(now).unwrap_or(ctx.now) + SignedDuration::from_secs(seconds);
    request["metadata"]["uid"] = account.uid.as_ref().into();
    request["metadata"]["creationTimestamp"] = ctx.now.to_string().into();
    request["status"] = json!({
        "token": keys.issue(&claims), "expirationTimestamp": expires.to_string(),
    });
    ctx.value(StatusCode::CREATED, &request, &out)
}

fn check_seconds(seconds: i64) -> Result<()> {
    let why = if seconds < MIN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > MAX_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    Err(invalid(
        "",
        "spec.expirationSeconds",
        Bad::json(&seconds),
        why,
    ))
}

fn invalid(name: &str, field: &str, bad: Bad, why: &str) -> Failure {
    let error = FieldError::new(FieldErrorKind::Invalid, field, bad, why);
    Status::invalid(GROUP, "TokenRequest", name, &[error])
}

/// Looks up what the token is to be bound to.
async fn bind(ctx: &Ctx, reference: &mut Value, binding: &mut Binding) -> Result<()> {
    if reference.is_null() {
        return Ok(());
    }
    let text = |key: &str| reference[key].as_str().unwrap_or_default();
    let (api_version, kind, name, uid) =
        (text("apiVersion"), text("kind"), text("name"), text("uid"));
    let namespace = &binding.namespace;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let (plural, key) = match (group, kind) {
        ("", "Pod") => ("pods", format!("/registry/core/pods/{namespace}/{name}")),
        ("", "Secret") => (
            "secrets",
            format!("/registry/core/secrets/{namespace}/{name}"),
        ),
        ("", "Node") => ("nodes", format!("/registry/core/nodes/{name}")),
        _ => {
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    let found = ctx.api.storage.get(&key).await?;
    let found = found.ok_or_else(|| Status::not_found("", plural, name))?;
    let object: Value = serde_json::from_slice(&found.bytes())
        .map_err(|error| Status::internal("decoding a stored object", &error))?;
    if kind == "Pod" {
        let account = object["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or_default();
        let wanted = &binding.serviceaccount.name;
        if account != wanted {
            return Err(Status::bad_request(format!(
                "cannot bind token for serviceaccount {wanted:?} to pod running with different serviceaccount name."
            )));
        }
        if let Some(node) = object["spec"]["nodeName"]
            .as_str()
            .filter(|n| !n.is_empty())
        {
            let entry = ctx
                .api
                .storage
                .find(&format!("/registry/core/nodes/{node}"))
                .await?;
            binding.node = Some(ObjectReference {
                name: node.to_owned(),
                uid: entry.map_or_else(String::new, |entry| entry.uid.to_string()),
            });
        }
    }
    if !uid.is_empty() && uid != found.uid.as_ref() {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
             been deleted and then recreated"
        );
        return Err(Status::conflict("", kind, name, &why));
    }
    let bound = ObjectReference {
        name: name.to_owned(),
        uid: found.uid.to_string(),
    };
    match kind {
        "Pod" => binding.pod = Some(bound),
        "Secret" => binding.secret = Some(bound),
        _ => binding.node = Some(bound),
    }
    reference["uid"] = found.uid.as_ref().into();
    Ok(())
}
