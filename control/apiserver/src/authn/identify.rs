//! The first step of every request: who is it made as?

use http::request::Parts;
use jiff::Timestamp;

use super::{
    Unauthorized,
    impersonation::{Refusal, impersonated},
};
use crate::{
    context::Api,
    identity::{Peer, User},
    status::{Result, Status},
};

/// Who makes a request, and as whom.
pub struct Identity {
    /// `None`: the credentials are wrong.
    pub requester: Option<User>,
    /// `Some`: the requester impersonates this user.
    ///
    /// # Errors
    /// 401 for credentials that are wrong, 403 or 400 for an impersonation that is refused or incomplete.
    pub impersonated: Result<Option<User>>,
}

/// The user of a request: put there by an in-process client, or authenticated by its connection and headers; in either
/// case perhaps impersonating another. Credentials are taken out of the headers: nothing behind here needs them.
pub fn identify(api: &Api, parts: &mut Parts, now: Timestamp) -> Identity {
    match requester(api, parts, now) {
        Ok(requester) => {
            parts.headers.remove(http::header::AUTHORIZATION);
            Identity {
                impersonated: impersonation(api, parts, &requester),
                requester: Some(requester),
            }
        }
        Err(status) => Identity {
            requester: None,
            impersonated: Err(status),
        },
    }
}

fn requester(api: &Api, parts: &mut Parts, now: Timestamp) -> Result<User> {
    let requester = match (parts.extensions.remove::<User>(), &api.authenticator) {
        (Some(user), _) => user,
        (None, None) => User::anonymous(),
        (None, Some(authenticator)) => {
            let peer = parts.extensions.get::<Peer>();
            authenticator
                .authenticate(&parts.headers, peer, now)
                .map_err(|error: Unauthorized| {
                    tracing::debug!(%error, path = parts.uri.path(), "a request is refused");
                    Status::unauthorized()
                })?
        }
    };
    Ok(requester)
}

fn impersonation(api: &Api, parts: &Parts, requester: &User) -> Result<Option<User>> {
    match impersonated(&parts.headers, requester, api.authorizer.as_ref()) {
        Ok(user) => Ok(user),
        Err(Refusal::WithoutUser(message)) => Err(Status::bad_request(message)),
        Err(Refusal::Forbidden(what)) => {
            let resource = match what.subresource.as_str() {
                "" => what.resource.to_owned(),
                subresource => format!("{}/{subresource}", what.resource),
            };
            let scope = match what.namespace.as_str() {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace \"{namespace}\""),
            };
            let mut reason = format!(
                "User \"{}\" cannot impersonate resource \"{resource}\" in API group \"{}\" {scope}",
                requester.name, what.group
            );
            if !what.reason.is_empty() {
                reason = format!("{reason}: {}", what.reason);
            }
            Err(Status::forbidden(
                what.group,
                what.resource,
                &what.name,
                &reason,
            ))
        }
    }
}
