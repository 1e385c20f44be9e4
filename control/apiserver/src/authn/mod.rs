//! Who is it? Turns a connection and its headers into a [`User`].
//!
//! In upstream's order: client certificate (CN = user, O = groups), then a bearer token: static file, bootstrap token,
//! service-account token. A request without credentials is anonymous; wrong credentials are refused, never anonymous.
//! Impersonation (`Impersonate-*` headers) comes after, see [`impersonation`].

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, header};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{AUTHENTICATED, Peer, User};

pub mod bootstrap_token;
pub mod identify;
pub mod impersonation;
pub mod service_account;
pub mod token_file;

/// Reads stored objects by key (`/registry/core/secrets/kube-system/x`): the watch cache.
pub trait Objects: Send + Sync {
    fn object(&self, key: &str) -> Option<Value>;
}

/// The credentials are wrong. Why is for the log only; the client reads `Unauthorized`.
#[derive(Debug, thiserror::Error)]
pub enum Unauthorized {
    #[error("the bearer token matches no authenticator")]
    UnknownToken,
    #[error("the bearer token is not valid: {0}")]
    BadToken(String),
    #[error("the service account's token is not valid: {0}")]
    ServiceAccount(#[from] service_account::TokenError),
    #[error("the Authorization header is not readable")]
    BadHeader,
}

pub struct Authenticator {
    pub static_tokens: token_file::StaticTokens,
    pub service_accounts: Arc<service_account::TokenKeys>,
    pub objects: Arc<dyn Objects>,
}

impl Authenticator {
    /// # Errors
    /// When a bearer token was given that no source accepts.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
        now: Timestamp,
    ) -> Result<User, Unauthorized> {
        if let Some(user) = peer.and_then(|peer| peer.user.as_deref()) {
            return Ok(user.clone());
        }
        let Some(token) = bearer_token(headers)? else {
            return Ok(User::anonymous());
        };
        let audiences = self.service_accounts.audiences();
        self.review(&token, audiences, now).map(|(user, _)| user)
    }

    /// Checks a token for someone else (`TokenReview`): the user, and which of `audiences` it is good for.
    ///
    /// # Errors
    /// When no source accepts the token for any of the audiences.
    pub fn review(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<(User, Vec<String>), Unauthorized> {
        // Only the tokens of service accounts know audiences: the others are for this server.
        let for_server = |user: User| {
            let own = self.service_accounts.audiences();
            let good_for: Vec<String> = audiences
                .iter()
                .filter(|audience| own.contains(audience))
                .cloned()
                .collect();
            match good_for.is_empty() {
                true => Err(Unauthorized::UnknownToken),
                false => Ok((with_authenticated(user), good_for)),
            }
        };
        if let Some(user) = self.static_tokens.user(token) {
            return for_server(user);
        }
        if let Some(parsed) = bootstrap_token::Token::parse(token) {
            return for_server(parsed.authenticate(self.objects.as_ref(), now)?);
        }
        if service_account::looks_like_jwt(token) {
            let claims = self.service_accounts.verify(token, audiences, now)?;
            let good_for = audiences
                .iter()
                .filter(|a| claims.aud.contains(a))
                .cloned()
                .collect();
            let user = claims.user(self.objects.as_ref())?;
            return Ok((with_authenticated(user), good_for));
        }
        Err(Unauthorized::UnknownToken)
    }
}

fn with_authenticated(mut user: User) -> User {
    if !user.groups.iter().any(|group| group == AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

fn bearer_token(headers: &HeaderMap) -> Result<Option<String>, Unauthorized> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let text = value.to_str().map_err(|_| Unauthorized::BadHeader)?;
        let Some((scheme, token)) = text.trim().split_once(' ') else {
            return Ok(None);
        };
        if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
            return Ok(None);
        }
        return Ok(Some(token.trim().to_owned()));
    }
    // Browsers cannot set headers on a WebSocket; upstream takes the token from the subprotocols.
    let token = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|protocol| {
            protocol
                .trim()
                .strip_prefix(crate::websocket::TOKEN_PROTOCOL)
        });
    match token {
        None => Ok(None),
        Some(encoded) => {
            use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
            let bytes = URL_SAFE_NO_PAD
                .decode(encoded.trim_end_matches('='))
                .map_err(|_| Unauthorized::BadHeader)?;
            String::from_utf8(bytes)
                .map(Some)
                .map_err(|_| Unauthorized::BadHeader)
        }
    }
}

/// The user named by a verified client certificate: common name, and organizations as groups.
/// `None` without a common name.
pub fn certificate_user(certificate: &CertificateDer<'static>) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?
        .to_owned();
    let groups = parsed
        .subject()
        .iter_organization()
        .filter_map(|o| o.as_str().ok().map(str::to_owned))
        .collect();
    let fingerprint = {
        use sha2::{Digest, Sha256};
        Sha256::digest(certificate)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let extra = BTreeMap::from([(
        "authentication.kubernetes.io/credential-id".to_owned(),
        vec![format!("X509SHA256={fingerprint}")],
    )]);
    Some(with_authenticated(User {
        name,
        uid: String::new(),
        groups,
        extra,
    }))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;

    /// Objects by key, for tests.
    #[derive(Default)]
    pub(crate) struct Stored(pub(crate) HashMap<String, Value>);

    impl Objects for Stored {
        fn object(&self, key: &str) -> Option<Value> {
            self.0.get(key).cloned()
        }
    }

    fn authenticator() -> Authenticator {
        let stored = Stored(HashMap::from([(
            "/registry/core/serviceaccounts/a/robot".to_owned(),
            json!({"metadata": {"name": "robot", "namespace": "a", "uid": "u1"}}),
        )]));
        let tokens = "secret-token,admin,42,\"system:masters,ops\"\n";
        Authenticator {
            static_tokens: token_file::StaticTokens::parse(tokens).unwrap(),
            service_accounts: Arc::new(service_account::tests::keys()),
            objects: Arc::new(stored),
        }
    }

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
        headers
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    #[test]
    fn without_credentials_it_is_anonymous() {
        let user = authenticator()
            .authenticate(&HeaderMap::new(), None, now())
            .unwrap();
        assert_eq!(user, User::anonymous());
    }

    #[test]
    fn static_tokens_name_users() {
        let user = authenticator()
            .authenticate(&headers("Bearer secret-token"), None, now())
            .unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("admin", "42"));
        assert_eq!(
            user.groups,
            ["system:masters", "ops", "system:authenticated"]
        );
    }

    #[test]
    fn wrong_tokens_are_refused_not_anonymous() {
        for token in ["Bearer x", "Bearer abcdef.0123456789abcdef", "Bearer a.b.c"] {
            assert!(
                authenticator()
                    .authenticate(&headers(token), None, now())
                    .is_err(),
                "{token}"
            );
        }
    }

    #[test]
    fn service_account_tokens_work_for_their_audience_only() {
        let authenticator = authenticator();
        let claims = service_account::tests::claims("a", "robot", "u1", now());
        let token = authenticator.service_accounts.issue(&claims);
        let bearer = headers(&format!("Bearer {token}"));
        let user = authenticator.authenticate(&bearer, None, now()).unwrap();
        assert_eq!(user.name, "system:serviceaccount:a:robot");
        assert_eq!(
            user.groups[..2],
            ["system:serviceaccounts", "system:serviceaccounts:a"]
        );
        assert!(
            authenticator
                .review(&token, &["https://other".into()], now())
                .is_err()
        );
    }
}
