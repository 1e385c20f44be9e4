//! What stands below an object: `status`, `scale`, `binding`, …

use std::sync::Arc;

use axum::response::Response;
use skep_api::resource::{Subresource, Verb};

use crate::{
    context::Ctx,
    handlers,
    registry::Resource,
    status::{Result, Status},
};

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
        (name, Verb::Get) if whole && name != "log" => handlers::read::get(ctx, resource).await,
        (_, Verb::Update) if whole => handlers::update::update(ctx, resource).await,
        (_, Verb::Patch) if whole => handlers::patch::patch(ctx, resource).await,
        _ => Err(Status::no_such_resource()),
    }
}
