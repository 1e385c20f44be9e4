//! Deletes bootstrap tokens that have expired.
//!
//! Watches: Secret in kube-system. Writes: Secret.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use skep_client::{Action, Informer, ObjectKey, writes};

use crate::{
    context::{Context, Doing, Error},
    pods,
};

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";

pub async fn run(context: Arc<Context>) {
    let secrets: Informer<Secret> = context.informers.of();
    let mut work = context.work();
    work.feed(&secrets, |change| match &change.new {
        Some(secret) if is_token(secret) => vec![ObjectKey::of(&secret.metadata)],
        _ => Vec::new(),
    });
    let own = Arc::new((secrets, context));
    work.run("bootstrap-token", 1, own, |own, key| async move {
        reconcile(&own.0, &own.1, key).await
    })
    .await;
}

async fn reconcile(
    secrets: &Informer<Secret>,
    context: &Context,
    key: ObjectKey,
) -> Result<Action, Error> {
    let Some(secret) = secrets.get(&key).filter(|secret| is_token(secret)) else {
        return Ok(Action::done());
    };
    match time_left(&secret, context.now()) {
        None => Ok(Action::done()),
        Some(left) if !left.is_zero() => Ok(Action::requeue(left + Duration::from_millis(100))),
        Some(_) => {
            let api = context.api::<Secret>(&key.namespace);
            writes::delete(
                &api,
                &key.name,
                secret.metadata.uid.clone(),
                DeleteParams::default(),
            )
            .await
            .doing("delete an expired bootstrap token")?;
            tracing::info!(kind = "Secret", namespace = %key.namespace, name = %key.name, reason = "Expired", "deleted");
            Ok(Action::done())
        }
    }
}

fn is_token(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(TYPE) && secret.metadata.namespace.as_deref() == Some(NAMESPACE)
}

/// `None`: it never expires. A date that cannot be read counts as passed, as upstream.
fn time_left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let text = secret.data.as_ref()?.get("expiration")?;
    let at = std::str::from_utf8(&text.0)
        .ok()
        .and_then(|text| text.parse::<Timestamp>().ok());
    Some(at.map_or(Duration::ZERO, |at| pods::until(now, at)))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn expiry() {
        let secret = |expiration: Option<&str>| Secret {
            data: Some(
                expiration
                    .map(|text| {
                        (
                            "expiration".to_owned(),
                            ByteString(text.as_bytes().to_vec()),
                        )
                    })
                    .into_iter()
                    .collect(),
            ),
            ..Default::default()
        };
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        assert_eq!(time_left(&secret(None), now), None);
        assert_eq!(
            time_left(&secret(Some("2026-01-01T00:00:30Z")), now),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            time_left(&secret(Some("2025-01-01T00:00:30Z")), now),
            Some(Duration::ZERO)
        );
        assert_eq!(time_left(&secret(Some("soon")), now), Some(Duration::ZERO));
    }
}
