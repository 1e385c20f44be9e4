//! Getting the images of containers.

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Secret};
use tokio::time::Instant;
use tracing::debug;

use super::actions::Refusal;
use super::images::{self, Credential};
use super::worker::Shared;
use super::{Context, pod};
use crate::runtime::Image;

/// The image of a container, pulled if need be and allowed.
///
/// # Errors
/// Reason and message of the waiting container.
pub async fn ensure(
    shared: &Shared,
    pod: &Pod,
    c: &Container,
    about: &ObjectReference,
) -> Result<Image, Refusal> {
    let ctx = &shared.ctx;
    let name = c.image.as_deref().unwrap_or_default();
    let reference = images::normalize(name).map_err(|message| {
        ctx.recorder
            .warning(about, "InspectFailed", message.clone());
        ("InvalidImageName".to_string(), message)
    })?;
    let present = ctx.runtime.image(&reference).await.map_err(|e| {
        let message = format!("Failed to inspect image \"{name}\": {e}");
        ctx.recorder
            .warning(about, "InspectFailed", message.clone());
        ("ImageInspectError".to_string(), message)
    })?;
    let policy = images::pull_policy(c.image_pull_policy.as_deref(), &reference);
    let present = present.filter(|_| policy != "Always");
    let may_use = |image: &Image, credentials: &[Credential]| {
        let pulled = ctx.pulled.as_ref();
        pulled.is_none_or(|pulled| pulled.may_use(&reference, &image.id, credentials))
    };
    // Whoever may use it without credentials needs none looked up.
    let credentials = match present.as_ref().is_some_and(|image| may_use(image, &[])) {
        true => Vec::new(),
        false => images::credentials(&reference, &secrets(shared, pod, about).await),
    };
    if let Some(image) = present.filter(|image| may_use(image, &credentials)) {
        let text = format!(
            "Container image \"{name}\" already present on machine and can be accessed by the pod"
        );
        ctx.recorder.normal(about, "Pulled", text);
        return Ok(image);
    }
    if policy == "Never" {
        let message =
            format!("Container image \"{name}\" is not present with pull policy of Never");
        ctx.recorder
            .warning(about, "ErrImageNeverPull", message.clone());
        return Err(("ErrImageNeverPull".into(), message));
    }
    ctx.recorder
        .normal(about, "Pulling", format!("Pulling image \"{name}\""));
    let began = Instant::now();
    match pull(ctx, &reference, &credentials).await {
        Ok(image) => {
            let seconds = began.elapsed().as_millis() as f64 / 1000.0;
            let text = format!(
                "Successfully pulled image \"{name}\" in {seconds}s ({seconds}s including waiting). \
                 Image size: {} bytes.",
                image.size_bytes
            );
            ctx.recorder.normal(about, "Pulled", text);
            Ok(image)
        }
        Err(failure) => {
            let text = format!("Failed to pull image \"{name}\": {failure}");
            ctx.recorder.warning(about, "Failed", text);
            Err(("ErrImagePull".into(), failure))
        }
    }
}

/// Those that the pod names. A missing one is not fatal: the registry may not need it.
async fn secrets(shared: &Shared, pod: &Pod, about: &ObjectReference) -> Vec<Secret> {
    let ctx = &shared.ctx;
    let mut secrets = Vec::new();
    let mut missing = Vec::new();
    for secret in pod::spec(pod).image_pull_secrets.iter().flatten() {
        match ctx
            .objects
            .get::<Secret>(Some(&shared.who.namespace), &secret.name)
            .await
        {
            Ok(Some(found)) => secrets.push(found),
            Ok(None) => missing.push(secret.name.as_str()),
            Err(message) => {
                debug!(message, secret = secret.name, "cannot read a pull secret");
                missing.push(secret.name.as_str());
            }
        }
    }
    if !missing.is_empty() {
        let text = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not \
             succeed.",
            missing.join(", ")
        );
        ctx.recorder
            .warning(about, "FailedToRetrieveImagePullSecret", text);
    }
    secrets
}

/// With one credential after the other, or without if there is none.
async fn pull(ctx: &Context, reference: &str, credentials: &[Credential]) -> Result<Image, String> {
    let mut tries: Vec<Option<&Credential>> = credentials.iter().map(Some).collect();
    if tries.is_empty() {
        tries.push(None);
    }
    if let Some(pulled) = &ctx.pulled {
        pulled.begin(reference);
    }
    let mut failures = Vec::new();
    for credential in tries {
        let auth = credential.map(|c| &c.auth);
        if let Err(e) = ctx.runtime.pull(reference, auth).await {
            failures.push(e.to_string());
            continue;
        }
        let Some(image) = ctx.runtime.image(reference).await.ok().flatten() else {
            failures.push(format!(
                "the image {reference} is gone again after its pull"
            ));
            continue;
        };
        if let Some(pulled) = &ctx.pulled {
            let present = ctx.runtime.images().await.ok();
            let present = present.map(|all| all.into_iter().map(|image| image.id).collect());
            pulled.succeeded(reference, &image.id, credential, present.as_ref());
        }
        return Ok(image);
    }
    if let Some(pulled) = &ctx.pulled {
        pulled.failed(reference);
    }
    Err(match failures.as_slice() {
        [one] => one.clone(),
        // As Kubernetes aggregates errors.
        more => format!("[{}]", more.join(", ")),
    })
}
