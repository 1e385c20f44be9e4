//! What stands below an object: `status`, `scale`, `binding`, …

mod binding;
pub mod components;
mod connect;
mod eviction;
pub mod reviews;
pub mod scale;
pub mod streams;
mod token;

use std::sync::Arc;

use axum::response::Response;
use skep_api::resource::{Subresource, Verb};

use crate::{
    context::Ctx,
    handlers,
    registry::Resource,
    status::{Result, Status},
};

/// Creates that store nothing of their own. `None`: an ordinary create.
pub async fn create(ctx: &Ctx, resource: &Arc<Resource>) -> Option<Result<Response>> {
    if reviews::is_review(resource) {
        return Some(reviews::create(ctx, resource).await);
    }
    if resource.is("", "bindings") {
        return Some(binding::create(ctx, resource).await);
    }
    None
}

/// Hands a request on to its subresource.
pub async fn handle(ctx: &Ctx, resource: &Arc<Resource>, sub: &Subresource) -> Result<Response> {
    let verb = match ctx.info.verb {
        "get" => Verb::Get,
        "create" => Verb::Create,
        "update" => Verb::Update,
        "patch" => Verb::Patch,
        "delete" => Verb::Delete,
        _ => return Err(Status::method_not_allowed()),
    };
    if !sub.verbs.contains(&verb) {
        return Err(Status::method_not_allowed());
    }
    // Subresources that show and write the object itself.
    let whole = sub.group.is_empty() && sub.version.is_empty() && sub.kind == resource.def.kind;
    match (sub.name.as_ref(), verb) {
        ("scale", _) => scale::handle(ctx, resource, verb).await,
        ("token", Verb::Create) => token::create(ctx, resource).await,
        ("binding", Verb::Create) => binding::create(ctx, resource).await,
        ("eviction", Verb::Create) => eviction::create(ctx, resource).await,
        ("log", Verb::Get) => streams::log(ctx).await,
        ("exec" | "attach" | "portforward", _) => streams::stream(ctx, resource, &sub.name).await,
        ("proxy", _) => {
            connect::admit(ctx, resource, "proxy").await?;
            streams::proxy(ctx).await
        }
        (_, Verb::Get) if whole => handlers::read::get(ctx, resource).await,
        (_, Verb::Update) if whole => handlers::update::update(ctx, resource).await,
        (_, Verb::Patch) if whole => handlers::patch::patch(ctx, resource).await,
        _ => Err(Status::no_such_resource()),
    }
}
