//! Bootstrap tokens (`ID.SECRET`, kept in `kube-system/bootstrap-token-ID`): how a node introduces itself.
//! Upstream: plugin/pkg/auth/authenticator/token/bootstrap.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Objects, Unauthorized};
use crate::identity::User;

pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";
const USER_PREFIX: &str = "system:bootstrap:";

pub struct Token<'a> {
    id: &'a str,
    secret: &'a str,
}

impl<'a> Token<'a> {
    /// `None` unless it has the form `[a-z0-9]{6}.[a-z0-9]{16}`.
    pub fn parse(token: &'a str) -> Option<Self> {
        let (id, secret) = token.split_once('.')?;
        let plain = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret))
            .then_some(Self { id, secret })
    }

    /// # Errors
    /// When the Secret is missing, of another type, expired, not for authentication, or its secret differs.
    pub fn authenticate(
        &self,
        objects: &dyn Objects,
        now: Timestamp,
    ) -> Result<User, Unauthorized> {
        let refuse = |why: &str| Unauthorized::BadToken(format!("bootstrap token: {why}"));
        let key = format!(
            "/registry/core/secrets/kube-system/bootstrap-token-{}",
            self.id
        );
        let stored = objects
            .object(&key)
            .ok_or_else(|| refuse("no such token"))?;
        if stored["type"] != SECRET_TYPE || !stored["metadata"]["deletionTimestamp"].is_null() {
            return Err(refuse("no such token"));
        }
        let field = |name: &str| decode(&stored["data"][name]);
        if field("token-id").as_deref() != Some(self.id) {
            return Err(refuse("the Secret is for another token"));
        }
        let expected = field("token-secret").unwrap_or_default();
        // Comparing digests tells an attacker nothing by how long it takes.
        if Sha256::digest(expected) != Sha256::digest(self.secret) {
            return Err(refuse("the secret is wrong"));
        }
        if let Some(expiration) = field("expiration") {
            match expiration.parse::<Timestamp>() {
                Ok(time) if time > now => {}
                _ => return Err(refuse("it is expired")),
            }
        }
        if field("usage-bootstrap-authentication").as_deref() != Some("true") {
            return Err(refuse("it is not for authentication"));
        }
        let mut groups = vec![GROUP.to_owned()];
        let extra_groups = field("auth-extra-groups").unwrap_or_default();
        let extra_groups = extra_groups
            .split(',')
            .map(str::trim)
            .filter(|group| !group.is_empty());
        for group in extra_groups {
            if !group.starts_with("system:bootstrappers:") {
                return Err(refuse(
                    "auth-extra-groups must start with system:bootstrappers:",
                ));
            }
            groups.push(group.to_owned());
        }
        Ok(User {
            name: format!("{USER_PREFIX}{}", self.id),
            groups,
            ..User::default()
        })
    }
}

fn decode(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::{super::tests::Stored, *};

    fn stored(changes: &[(&str, Option<&str>)]) -> Stored {
        let mut data = HashMap::from([
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("expiration", "2030-01-01T00:00:00Z"),
            ("auth-extra-groups", "system:bootstrappers:skep"),
        ]);
        for (key, value) in changes {
            match value {
                Some(value) => drop(data.insert(key, value)),
                None => drop(data.remove(key)),
            }
        }
        let data: HashMap<_, _> = data
            .into_iter()
            .map(|(k, v)| (k, STANDARD.encode(v)))
            .collect();
        let key = "/registry/core/secrets/kube-system/bootstrap-token-abcdef".to_owned();
        Stored(HashMap::from([(
            key,
            json!({"type": SECRET_TYPE, "data": data}),
        )]))
    }

    fn ask(token: &str, changes: &[(&str, Option<&str>)]) -> Result<User, Unauthorized> {
        let now = "2027-01-01T00:00:00Z".parse().unwrap();
        Token::parse(token)
            .unwrap()
            .authenticate(&stored(changes), now)
    }

    #[test]
    fn a_good_token_is_a_bootstrapper() {
        let user = ask("abcdef.0123456789abcdef", &[]).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(
            user.groups,
            ["system:bootstrappers", "system:bootstrappers:skep"]
        );
    }

    #[test]
    fn bad_tokens_are_refused() {
        let good = "abcdef.0123456789abcdef";
        assert!(ask("abcdef.0123456789abcdee", &[]).is_err());
        assert!(ask("bbcdef.0123456789abcdef", &[]).is_err());
        assert!(ask(good, &[("expiration", Some("2026-01-01T00:00:00Z"))]).is_err());
        assert!(ask(good, &[("usage-bootstrap-authentication", None)]).is_err());
        assert!(ask(good, &[("auth-extra-groups", Some("system:masters"))]).is_err());
        assert!(Token::parse("ABCDEF.0123456789abcdef").is_none());
        assert!(Token::parse("abcdef").is_none());
    }
}
