//! Service-account tokens: JWTs (RFC 7519) signed with ES256 (RFC 7518 §3.4), bound to objects that must still exist.
//!
//! Claims and lifetimes are upstream's (`pkg/serviceaccount/claims.go`), so client libraries and OIDC relying parties read
//! them. Only ES256 is spoken: a token with any other `alg`, or without a known `kid`, is refused.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
        UnparsedPublicKey,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Objects;
use crate::{codec::meta, identity::User};

/// The clock of another control-plane machine may run this far ahead, in seconds.
const LEEWAY_SECONDS: i64 = 10;

/// `Display` is what a `TokenReview` tells, in upstream's words.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// No JWT of this cluster.
    #[error("invalid bearer token")]
    Malformed,
    #[error("go-jose/go-jose: error in cryptographic primitive")]
    Signature,
    #[error("invalid bearer token")]
    Issuer,
    #[error("token audiences {} is invalid for the target audiences {}", quoted(.of_token), quoted(.wanted))]
    Audience {
        of_token: Vec<String>,
        wanted: Vec<String>,
    },
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYet,
    /// What it is bound to is not there, or is another one of that name.
    #[error("{why}")]
    Gone { kind: &'static str, why: String },
}

/// Go's `%q` of a list.
fn quoted(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    format!("[{}]", texts.join(" "))
}

#[derive(Debug, thiserror::Error)]
#[error("the service-account key is not a PKCS#8 P-256 key: {0}")]
pub struct KeyError(String);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectReference {
    pub name: String,
    /// Empty for the node of a pod that is not there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The private claim `kubernetes.io`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub namespace: String,
    pub serviceaccount: ObjectReference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<ObjectReference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<ObjectReference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<ObjectReference>,
    /// When a client that ignores rotation should be warned about, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub nbf: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub iss: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    pub sub: String,
    #[serde(rename = "kubernetes.io")]
    pub binding: Binding,
}

impl Claims {
    /// The user, if everything that the token is bound to still exists.
    pub fn user(&self, objects: &dyn Objects) -> Result<User, TokenError> {
        let Binding {
            namespace,
            serviceaccount,
            pod,
            secret,
            node,
            ..
        } = &self.binding;
        let alive = |kind: &'static str, plural: &str, reference: &ObjectReference| {
            let key = match kind {
                "Node" => format!("/registry/core/nodes/{}", reference.name),
                _ => format!("/registry/core/{plural}/{namespace}/{}", reference.name),
            };
            let found = objects.object(&key);
            let uid = found.as_ref().map(|object| meta(object, "uid"));
            let why = match (uid, kind) {
                (Some(uid), _) if uid == reference.uid => return Ok(()),
                (Some(uid), "ServiceAccount") => {
                    let claimed = &reference.uid;
                    format!("service account UID ({uid}) does not match claim ({claimed})")
                }
                (Some(uid), _) => {
                    let (claimed, kind) = (&reference.uid, kind.to_lowercase());
                    format!(
                        "{kind} UID ({uid}) does not match service account {kind} ref claim ({claimed})"
                    )
                }
                (None, "ServiceAccount") => format!("{plural} {:?} not found", reference.name),
                (None, _) => "service account token has been invalidated".to_owned(),
            };
            Err(TokenError::Gone { kind, why })
        };
        if self.sub != username(namespace, &serviceaccount.name) {
            return Err(TokenError::Malformed);
        }
        alive("ServiceAccount", "serviceaccounts", serviceaccount)?;
        let mut extra = BTreeMap::new();
        let mut note = |key: &str, value: String| {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        note("credential-id", format!("JTI={}", self.jti));
        if let Some(secret) = secret {
            alive("Secret", "secrets", secret)?;
        }
        if let Some(pod) = pod {
            alive("Pod", "pods", pod)?;
            note("pod-name", pod.name.clone());
            note("pod-uid", pod.uid.clone());
        }
        if let Some(node) = node {
            // A token of a pod only mentions its node; a token bound to a node dies with it.
            if pod.is_none() {
                alive("Node", "nodes", node)?;
            }
            note("node-name", node.name.clone());
            if !node.uid.is_empty() {
                note("node-uid", node.uid.clone());
            }
        }
        Ok(User {
            name: self.sub.clone(),
            uid: serviceaccount.uid.clone(),
            groups: groups(namespace),
            extra,
        })
    }
}

pub fn username(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

pub fn groups(namespace: &str) -> Vec<String> {
    vec![
        "system:serviceaccounts".into(),
        format!("system:serviceaccounts:{namespace}"),
    ]
}

/// Namespace and name of a service account's user name.
pub fn split_username(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

pub fn looks_like_jwt(token: &str) -> bool {
    token.split('.').count() == 3 && token.starts_with("eyJ")
}

/// The cluster's signing key, and what it signs for.
pub struct TokenKeys {
    signing: EcdsaKeyPair,
    key_id: String,
    issuer: String,
    audiences: Vec<String>,
}

impl TokenKeys {
    /// `issuer` is the `iss` claim and, unless `audiences` says otherwise, the only audience of the API server.
    pub fn from_pkcs8(der: &[u8], issuer: &str, audiences: Vec<String>) -> Result<Self, KeyError> {
        let signing =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new())
                .map_err(|e| KeyError(e.to_string()))?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(signing.public_key().as_ref()));
        let audiences = if audiences.is_empty() {
            vec![issuer.to_owned()]
        } else {
            audiences
        };
        Ok(Self {
            signing,
            key_id,
            issuer: issuer.to_owned(),
            audiences,
        })
    }

    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Signs a token; sets `iss`, and `jti` where it is empty.
    pub fn issue(&self, claims: &Claims) -> String {
        let mut claims = claims.clone();
        claims.iss.clone_from(&self.issuer);
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = serde_json::to_value(&claims).unwrap_or_default();
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self
            .signing
            .sign(&SystemRandom::new(), message.as_bytes())
            .expect("the system's random source works");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Checks signature, issuer, times and audience; not yet what it is bound to (see [`Claims::user`]).
    pub fn verify(
        &self,
        token: &str,
        audiences: &[String],
        now: Timestamp,
    ) -> Result<Claims, TokenError> {
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |text: &str| {
            URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| TokenError::Malformed)
        };
        let header: Value =
            serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        if header["alg"] != "ES256" || header["kid"] != self.key_id.as_str() {
            return Err(TokenError::Signature);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.signing.public_key().as_ref())
            .verify(message.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Signature)?;
        let claims: Claims =
            serde_json::from_slice(&decode(claims)?).map_err(|_| TokenError::Malformed)?;
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer);
        }
        if !claims
            .aud
            .iter()
            .any(|audience| audiences.contains(audience))
        {
            return Err(TokenError::Audience {
                of_token: claims.aud,
                wanted: audiences.to_vec(),
            });
        }
        let now = now.as_second();
        if now >= claims.exp {
            return Err(TokenError::Expired);
        }
        if now + LEEWAY_SECONDS < claims.nbf {
            return Err(TokenError::NotYet);
        }
        Ok(claims)
    }

    /// `/.well-known/openid-configuration` (OpenID Connect Discovery 1.0 §3).
    pub fn discovery(&self, jwks_uri: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks` (RFC 7517).
    pub fn jwks(&self) -> Value {
        // SEC 1 §2.3.3: 0x04, then x and y of 32 bytes each.
        let point = self.signing.public_key().as_ref();
        let coordinate = |range| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.key_id,
            "x": coordinate(1..33), "y": coordinate(33..65),
        }]})
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use super::{super::tests::Stored, *};

    const ISSUER: &str = "https://kubernetes.default.svc";

    pub(crate) fn keys() -> TokenKeys {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        TokenKeys::from_pkcs8(key.as_ref(), ISSUER, Vec::new()).unwrap()
    }

    pub(crate) fn claims(namespace: &str, name: &str, uid: &str, now: Timestamp) -> Claims {
        Claims {
            aud: vec![ISSUER.into()],
            exp: now.as_second() + 3600,
            iat: now.as_second(),
            nbf: now.as_second(),
            iss: String::new(),
            jti: "j".into(),
            sub: username(namespace, name),
            binding: Binding {
                namespace: namespace.into(),
                serviceaccount: ObjectReference {
                    name: name.into(),
                    uid: uid.into(),
                },
                pod: None,
                secret: None,
                node: None,
                warnafter: None,
            },
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn tokens_verify_until_they_expire() {
        let keys = keys();
        let token = keys.issue(&claims("a", "robot", "u", at(0)));
        let verify = |now| keys.verify(&token, keys.audiences(), now);
        assert_eq!(verify(at(0)).unwrap().sub, "system:serviceaccount:a:robot");
        assert_eq!(verify(at(3600)), Err(TokenError::Expired));
        assert_eq!(verify(at(-60)), Err(TokenError::NotYet));
        let other = keys.verify(&token, &["x".to_owned()], at(0));
        let why = other.expect_err("for somebody else").to_string();
        assert_eq!(
            why,
            format!("token audiences [{ISSUER:?}] is invalid for the target audiences [\"x\"]")
        );
    }

    #[test]
    fn forged_tokens_do_not_verify() {
        let keys = keys();
        let token = keys.issue(&claims("a", "robot", "u", at(0)));
        let other = tests::keys().issue(&claims("a", "robot", "u", at(0)));
        assert_eq!(
            keys.verify(&other, keys.audiences(), at(0)),
            Err(TokenError::Signature)
        );
        let (message, signature) = token.rsplit_once('.').unwrap();
        let forged = serde_json::to_string(&claims("a", "admin", "u", at(0))).unwrap();
        let header = message.split_once('.').unwrap().0;
        let forged = format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(forged));
        assert_eq!(
            keys.verify(&forged, keys.audiences(), at(0)),
            Err(TokenError::Signature)
        );
        let none = format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), "e30");
        assert_eq!(
            keys.verify(&none, keys.audiences(), at(0)),
            Err(TokenError::Signature)
        );
    }

    #[test]
    fn a_bound_token_dies_with_its_pod_and_account() {
        let mut claims = claims("a", "robot", "u1", at(0));
        claims.binding.pod = Some(ObjectReference {
            name: "p".into(),
            uid: "u2".into(),
        });
        let object = |uid: &str| json!({"metadata": {"uid": uid}});
        let account = "/registry/core/serviceaccounts/a/robot".to_owned();
        let pod = "/registry/core/pods/a/p".to_owned();
        let mut stored = Stored(HashMap::from([
            (account.clone(), object("u1")),
            (pod.clone(), object("u2")),
        ]));
        let user = claims.user(&stored).unwrap();
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        stored.0.insert(pod, object("u3"));
        assert!(matches!(
            claims.user(&stored),
            Err(TokenError::Gone { kind: "Pod", .. })
        ));
        stored.0.remove(&account);
        let why = claims.user(&stored).expect_err("it is gone").to_string();
        assert_eq!(why, "serviceaccounts \"robot\" not found");
    }

    #[test]
    fn user_names_split() {
        assert_eq!(
            split_username("system:serviceaccount:a:b"),
            Some(("a", "b"))
        );
        for wrong in ["a", "system:serviceaccount:a", "system:serviceaccount::b"] {
            assert_eq!(split_username(wrong), None, "{wrong}");
        }
    }
}
