//! One request: who, what, may they, then the handler for it.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderValue, Method, Request, StatusCode, header};
use skep_api::resource::Verb;

use crate::{
    aggregation,
    audit::{self, Arrival},
    authn::identify::{Identity, identify},
    context::{Api, Ctx, now},
    discovery, handlers, health,
    identity::{NoHost, Peer, User},
    node_metrics, openapi,
    options::is_escaped_well,
    registry::Resource,
    respond::{self, json_response, text},
    status::{Result, Status},
    subresources, tunnel,
};

/// The API as a tower service. Its accept loop puts the `Peer` into the request's extensions, an in-process client the
/// [`User`].
#[derive(Clone)]
pub struct ApiService(pub Arc<Api>);

impl tower::Service<Request<Body>> for ApiService {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, std::result::Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let api = self.0.clone();
        Box::pin(async move { Ok(handle(api, request).await) })
    }
}

/// Counts a request as running until dropped, also when the client goes away.
struct InFlight(Arc<Api>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

pub async fn handle(api: Arc<Api>, request: Request<Body>) -> Response {
    let started = Instant::now();
    api.metrics.in_flight.fetch_add(1, Ordering::Relaxed);
    let _in_flight = InFlight(api.clone());
    if request.extensions().get::<NoHost>().is_some() {
        let why = "400 Bad Request: missing required Host header";
        let mut refused = text(StatusCode::BAD_REQUEST, why);
        let close = HeaderValue::from_static("close");
        refused.headers_mut().insert(header::CONNECTION, close);
        return refused;
    }
    if !is_escaped_well(request.uri().path()) {
        // Go's server does not even ask who it is.
        return text(StatusCode::BAD_REQUEST, "400 Bad Request");
    }
    let (mut parts, body) = request.into_parts();
    let Identity {
        requester,
        impersonated,
    } = identify(&api, &mut parts, now());
    let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let (impersonated, refused) = match impersonated {
        Ok(user) => (user, None),
        Err(status) => (None, Some(status)),
    };
    let authenticated = requester.is_some();
    let audit = api.audit.clone();
    let audit_id = audit::audit_id(&parts.headers);
    let audited = audit.map(|audit| (audit, requester.clone(), impersonated.clone()));
    let user = impersonated.or(requester);
    let mut ctx = Ctx::new(api, &mut parts, body, user.unwrap_or_else(User::anonymous));
    ctx.upgrade = parking_lot::Mutex::new(upgrade);
    if let Some((audit, requester, impersonated)) = audited {
        let arrival = Arrival {
            id: &audit_id,
            uri: &parts.uri,
            headers: &ctx.headers,
            info: &ctx.info,
            peer: parts.extensions.get::<Peer>(),
            requester: requester.as_ref(),
            impersonated: impersonated.as_ref(),
        };
        ctx.audit = audit.begin(arrival).await;
        if ctx.audit.as_ref().is_some_and(|r| r.needs_plain_answer()) {
            ctx.headers.remove(header::ACCEPT_ENCODING);
        }
    }
    let answer = match refused {
        Some(status) => Ok(Err(status)),
        None => AssertUnwindSafe(bounded(&ctx)).catch_unwind().await,
    };
    let mut response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => respond::failure(&ctx, &status),
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            tracing::error!(panic = what, method = %ctx.method, path = %ctx.info.path, "a handler panicked");
            ctx.api.metrics.panics.fetch_add(1, Ordering::Relaxed);
            if let Some(record) = ctx.audit.take() {
                record.panicked(what).await;
            }
            let status = Status::internal_message(
                "This request caused apiserver to panic. Look in the logs for details.",
            );
            respond::failure(&ctx, &status)
        }
    };
    let warnings = std::mem::take(&mut *ctx.warnings.lock());
    if !warnings.is_empty() {
        respond::add_warnings(&mut response, &warnings);
    }
    let code = response.status().as_u16();
    ctx.api.metrics.record(&ctx.info, code, started.elapsed());
    audit::name(&mut response, &audit_id);
    match ctx.audit.take() {
        Some(record) => {
            for (key, value) in ctx.audit_annotations.lock().drain(..) {
                record.annotate(&key, &value);
            }
            let told = response.extensions_mut().remove::<respond::Told>();
            let failure = told.map(|told| told.0);
            record.answered(response, failure, authenticated).await
        }
        None => response,
    }
}

/// How long a handler may take until it answers; a body that is streamed afterwards may take longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Bounds how long a request is worked on, and how many are at once (see [`crate::fairness`]). Watches count until they
/// have begun only, and a relayed request may take as long as its command does.
async fn bounded(ctx: &Ctx) -> Result<Response> {
    let relayed = matches!(
        ctx.info.subresource.as_str(),
        "exec" | "attach" | "portforward" | "proxy" | "log"
    );
    if relayed {
        return route(ctx).await;
    }
    let (class, turn) = ctx
        .api
        .fairness
        .turn(&ctx.user, &ctx.info, &ctx.query)
        .await;
    let mut response = match turn {
        Err(refused) => {
            ctx.api.metrics.refused.fetch_add(1, Ordering::Relaxed);
            refused
        }
        Ok(_seat) => match tokio::time::timeout(REQUEST_TIMEOUT, route(ctx)).await {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => respond::failure(ctx, &status),
            Err(_) => respond::failure(
                ctx,
                &Status::plain(
                    504,
                    "Timeout",
                    "Timeout: request did not complete within the allotted timeout",
                ),
            ),
        },
    };
    class.mark(&mut response);
    Ok(response)
}

async fn route(ctx: &Ctx) -> Result<Response> {
    ctx.authorize()?;
    if ctx.info.path.starts_with("//") {
        return Ok(text(StatusCode::NOT_FOUND, "404 page not found\n"));
    }
    if let Some(answer) = aggregation::handle(ctx).await {
        return answer;
    }
    if ctx.info.is_resource {
        return resource(ctx).await;
    }
    if let Some(answer) = discovery::handle(ctx) {
        return answer;
    }
    if let Some(answer) = health::handle(ctx).await {
        return answer;
    }
    if let Some(answer) = openapi::handle(ctx).await {
        return answer;
    }
    let keys = ctx.api.authenticator.as_ref().map(|a| &a.service_accounts);
    match (ctx.info.path.as_str(), keys) {
        ("/.well-known/openid-configuration", Some(keys)) => {
            let host = ctx
                .headers
                .get(http::header::HOST)
                .and_then(|h| h.to_str().ok());
            let uri = format!(
                "https://{}/openid/v1/jwks",
                host.unwrap_or("kubernetes.default.svc")
            );
            return Ok(json_response(StatusCode::OK, &keys.discovery(&uri)));
        }
        ("/openid/v1/jwks", Some(keys)) => return Ok(jwks(&keys.jwks())),
        _ => {}
    }
    match ctx.info.path.as_str() {
        "/version" | "/version/" if ctx.method != Method::GET => Err(Status::method_not_allowed()),
        "/version" | "/version/" => Ok(json_response(StatusCode::OK, &health::version())),
        "/metrics" => {
            let audit = ctx.api.audit.as_deref();
            let mut metrics = ctx.api.metrics.render(&ctx.api.storage.cache, audit);
            // Writing to a string cannot fail.
            let _written = ctx.api.fairness.write_metrics(&mut metrics);
            Ok(text(StatusCode::OK, metrics))
        }
        tunnel::PATH => tunnel::accept(ctx),
        "/" => Ok(json_response(StatusCode::OK, &root_paths(ctx))),
        _ => Ok(text(StatusCode::NOT_FOUND, "404 page not found\n")),
    }
}

fn jwks(keys: &serde_json::Value) -> Response {
    let mut response = json_response(StatusCode::OK, keys);
    let content_type = http::HeaderValue::from_static("application/jwk-set+json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, content_type);
    response
}

fn root_paths(ctx: &Ctx) -> serde_json::Value {
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned()];
    for group in ctx.registry.groups() {
        if group.name.is_empty() {
            paths.extend(group.versions.iter().map(|v| format!("/api/{}", v.version)));
            continue;
        }
        paths.push(format!("/apis/{}", group.name));
        let versions = group.versions.iter();
        paths.extend(versions.map(|v| format!("/apis/{}/{}", group.name, v.version)));
    }
    for path in [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ] {
        paths.push(path.to_owned());
    }
    paths.sort();
    serde_json::json!({"paths": paths})
}

/// Which path shape of a resource a request uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Collection,
    /// All namespaces of a namespaced resource: only reads.
    AllNamespaces,
    Item,
}

/// What stands in a path and could not be part of a key.
fn check_name(name: &str) -> Result<()> {
    let mut problems = Vec::new();
    if matches!(name, "." | "..") {
        problems.push(format!("may not be '{name}'"));
    }
    if name.contains('%') {
        problems.push("may not contain '%'".to_owned());
    }
    if problems.is_empty() {
        return Ok(());
    }
    let problems = problems.join(";");
    Err(Status::bad_request(format!(
        "Name parameter invalid: {name:?}: {problems}"
    )))
}

async fn resource(ctx: &Ctx) -> Result<Response> {
    let info = &ctx.info;
    let registry = &ctx.registry;
    let Some(resource) = registry.get(&info.group, &info.version, &info.resource) else {
        if !info.group.is_empty() && registry.group(&info.group).is_none() {
            return Ok(text(StatusCode::NOT_FOUND, "404 page not found\n"));
        }
        return Err(Status::no_such_resource());
    };
    if let Some(warning) = &resource.def.deprecation {
        ctx.warnings.lock().push(warning.to_string());
    }
    let own_namespace = resource.is("", "namespaces");
    let shape = match (
        resource.namespaced(),
        info.namespace.is_empty(),
        info.name.is_empty(),
    ) {
        (true, true, true) => Shape::AllNamespaces,
        (true, true, false) => return Err(Status::no_such_resource()),
        (false, false, _) if !own_namespace => return Err(Status::no_such_resource()),
        (_, _, true) => Shape::Collection,
        (_, _, false) => Shape::Item,
    };
    // go-restful's routes are for one method; custom resources and proxies have none.
    if ctx.method == Method::HEAD && !resource.custom && info.subresource != "proxy" {
        return Err(Status::method_not_allowed());
    }
    let subresources = &resource.def.subresources;
    let sub = info.subresource.as_str();
    if sub.is_empty() || subresources.iter().any(|known| known.name == sub) {
        check_name(&info.name)?;
    }
    if info.legacy_watch {
        if !matches!(ctx.method, Method::GET | Method::HEAD) || !resource.has_verb(Verb::Watch) {
            return Err(Status::method_not_allowed());
        }
        return handlers::watch::watch(ctx, resource).await;
    }
    if !info.subresource.is_empty() {
        let subresources = &resource.def.subresources;
        let found = subresources.iter().find(|sub| sub.name == info.subresource);
        let sub = found.ok_or_else(|| {
            if resource.custom {
                Status::missing(resource, &info.name)
            } else {
                Status::no_such_resource()
            }
        })?;
        if !info.rest.is_empty() && info.subresource != "proxy" {
            return Err(Status::no_such_resource());
        }
        return subresources::handle(ctx, resource, sub).await;
    }
    verb(ctx, resource, shape).await
}

async fn verb(ctx: &Ctx, resource: &Arc<Resource>, shape: Shape) -> Result<Response> {
    let served: &[Verb] = match shape {
        Shape::AllNamespaces => &[Verb::List, Verb::Watch],
        Shape::Collection => &[
            Verb::List,
            Verb::Watch,
            Verb::Create,
            Verb::DeleteCollection,
        ],
        Shape::Item => &[Verb::Get, Verb::Update, Verb::Patch, Verb::Delete],
    };
    if !served.iter().any(|verb| resource.has_verb(*verb)) {
        return Err(Status::no_such_resource());
    }
    let verb = match ctx.info.verb {
        "get" => Verb::Get,
        "list" => Verb::List,
        "watch" => Verb::Watch,
        "create" => Verb::Create,
        "update" => Verb::Update,
        "patch" => Verb::Patch,
        "delete" => Verb::Delete,
        "deletecollection" => Verb::DeleteCollection,
        _ => return Err(Status::method_not_allowed()),
    };
    if resource.terminating && verb == Verb::Create {
        let def = &resource.def;
        return Err(Status::terminating_definition(&def.group, &def.plural));
    }
    if !served.contains(&verb) || !resource.has_verb(verb) {
        return Err(Status::method_not_allowed());
    }
    if subresources::components::is_component_status(resource) {
        return match verb {
            Verb::Get => subresources::components::get(ctx, resource).await,
            _ => subresources::components::list(ctx, resource).await,
        };
    }
    match verb {
        Verb::Get if node_metrics::serves(resource) => node_metrics::get(ctx, resource).await,
        Verb::List if node_metrics::serves(resource) => node_metrics::list(ctx, resource).await,
        Verb::Get => handlers::read::get(ctx, resource).await,
        Verb::List => handlers::read::list(ctx, resource).await,
        Verb::Watch => handlers::watch::watch(ctx, resource).await,
        Verb::Create => match subresources::create(ctx, resource).await {
            Some(answer) => answer,
            None => handlers::create::create(ctx, resource).await,
        },
        Verb::Update => handlers::update::update(ctx, resource).await,
        Verb::Patch => handlers::patch::patch(ctx, resource).await,
        Verb::Delete => handlers::delete::delete(ctx, resource).await,
        Verb::DeleteCollection => handlers::delete::delete_collection(ctx, resource).await,
    }
}
