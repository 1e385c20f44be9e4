//! `Impersonate-User`, `-Group`, `-Uid` and `-Extra-KEY`: acting as someone else, if the authorizer lets the requester
//! `impersonate` each of the things named. Upstream: apiserver/pkg/endpoints/filters/impersonation.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};

use super::service_account;
use crate::{
    authz::{Attributes, Authorizer, Decision},
    identity::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, User},
};

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const EXTRA_PREFIX: &str = "impersonate-extra-";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Groups, uid or extra without a user: 400 with this message.
    WithoutUser(String),
    /// 403.
    Forbidden(Box<Impersonated>),
}

/// What the requester may not impersonate, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impersonated {
    pub group: &'static str,
    pub resource: &'static str,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub reason: String,
}

/// Who the request is made as: `None` where nobody is impersonated.
pub fn impersonated(
    headers: &HeaderMap,
    requester: &User,
    authorizer: &dyn Authorizer,
) -> Result<Option<User>, Refusal> {
    let text = |name: &HeaderName| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let name = text(&USER);
    let uid = text(&UID);
    let mut groups: Vec<String> = headers
        .get_all(&GROUP)
        .iter()
        .filter_map(|value| value.to_str().ok().map(str::to_owned))
        .collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix(EXTRA_PREFIX) {
            let value = value.to_str().unwrap_or_default().to_owned();
            extra.entry(percent_decode(key)).or_default().push(value);
        }
    }
    if name.is_empty() {
        if uid.is_empty() && groups.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        return Err(Refusal::WithoutUser(format!(
            "requested &user.DefaultInfo{{Name:\"\", UID:{uid:?}, Groups:{}, Extra:{}}} without \
             impersonating a user name",
            go_strings(&groups),
            go_extra(&extra),
        )));
    }

    let ask = |group, resource, subresource: &str, namespace: &str, name: &str| {
        let attributes = Attributes::Resource {
            user: requester,
            verb: "impersonate",
            group,
            version: "v1",
            resource,
            subresource,
            namespace,
            name,
        };
        match authorizer.authorize(&attributes) {
            Decision::Allow { .. } => Ok(()),
            Decision::NoOpinion { reason } => Err(Refusal::Forbidden(Box::new(Impersonated {
                group,
                resource,
                subresource: subresource.to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                reason,
            }))),
        }
    };
    const AUTHENTICATION: &str = "authentication.k8s.io";
    match service_account::split_username(&name) {
        Some((namespace, account)) => {
            ask("", "serviceaccounts", "", namespace, account)?;
            // A service account brings its groups along unless others are asked for.
            if groups.is_empty() {
                groups = service_account::groups(namespace);
            }
        }
        None => ask("", "users", "", "", &name)?,
    }
    let asked_groups = headers
        .get_all(&GROUP)
        .iter()
        .filter_map(|value| value.to_str().ok());
    for group in asked_groups {
        ask("", "groups", "", "", group)?;
    }
    for (key, values) in &extra {
        for value in values {
            ask(AUTHENTICATION, "userextras", key, "", value)?;
        }
    }
    if !uid.is_empty() {
        ask(AUTHENTICATION, "uids", "", "", &uid)?;
    }
    let implied = if name == ANONYMOUS {
        UNAUTHENTICATED
    } else {
        AUTHENTICATED
    };
    if !groups
        .iter()
        .any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED)
    {
        groups.push(implied.into());
    }
    Ok(Some(User {
        name,
        uid,
        groups,
        extra,
    }))
}

/// RFC 3986 §2.1; a malformed escape stays as it is.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| {
                text.get(at + 1..at + 3)
                    .and_then(|hex| u8::from_str_radix(hex, 16).ok())
            })
            .flatten();
        match escaped {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).to_lowercase()
}

/// How Go prints a `[]string` with `%#v`, which is what upstream's message holds.
fn go_strings(items: &[String]) -> String {
    if items.is_empty() {
        return "[]string(nil)".into();
    }
    let quoted: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
    format!("[]string{{{}}}", quoted.join(", "))
}

fn go_extra(extra: &BTreeMap<String, Vec<String>>) -> String {
    if extra.is_empty() {
        return "map[string][]string(nil)".into();
    }
    let pairs: Vec<String> = extra
        .iter()
        .map(|(key, values)| format!("{key:?}:{}", go_strings(values)))
        .collect();
    format!("map[string][]string{{{}}}", pairs.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::rbac::Rule;

    /// Allows what its closure says of (resource, namespace, name).
    struct Only(fn(&str, &str, &str) -> bool);

    impl Authorizer for Only {
        fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
            match *attributes {
                Attributes::Resource {
                    resource,
                    namespace,
                    name,
                    ..
                } if (self.0)(resource, namespace, name) => Decision::Allow {
                    reason: String::new(),
                },
                _ => Decision::NoOpinion {
                    reason: String::new(),
                },
            }
        }
        fn rules(&self, _: &User, _: &str) -> Vec<Rule> {
            Vec::new()
        }
    }

    fn ask(
        headers: &[(&str, &str)],
        allow: fn(&str, &str, &str) -> bool,
    ) -> Result<Option<User>, Refusal> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        impersonated(&map, &User::anonymous(), &Only(allow))
    }

    #[test]
    fn nobody_is_impersonated_without_headers() {
        assert_eq!(ask(&[], |_, _, _| false), Ok(None));
    }

    #[test]
    fn users_groups_and_extras_are_taken_over() {
        let headers = [
            ("Impersonate-User", "jane"),
            ("Impersonate-Group", "devs"),
            ("Impersonate-Uid", "42"),
            ("Impersonate-Extra-Acme.com%2fProject", "x"),
        ];
        let user = ask(&headers, |_, _, _| true).unwrap().unwrap();
        assert_eq!(user.groups, ["devs", "system:authenticated"]);
        assert_eq!(user.extra["acme.com/project"], ["x"]);
        assert_eq!(user.uid, "42");
    }

    #[test]
    fn service_accounts_bring_their_groups() {
        let headers = [("Impersonate-User", "system:serviceaccount:a:b")];
        let allow = |resource: &str, namespace: &str, name: &str| {
            (resource, namespace, name) == ("serviceaccounts", "a", "b")
        };
        let user = ask(&headers, allow).unwrap().unwrap();
        assert_eq!(user.groups[1], "system:serviceaccounts:a");
    }

    #[test]
    fn each_thing_must_be_allowed() {
        let headers = [
            ("Impersonate-User", "jane"),
            ("Impersonate-Group", "system:masters"),
        ];
        let refusal = ask(&headers, |resource, _, _| resource == "users").unwrap_err();
        assert!(matches!(refusal, Refusal::Forbidden(what) if what.name == "system:masters"));
    }

    #[test]
    fn groups_need_a_user() {
        let refusal = ask(&[("Impersonate-Group", "devs")], |_, _, _| true).unwrap_err();
        assert_eq!(
            refusal,
            Refusal::WithoutUser(
                "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"devs\"}, \
                 Extra:map[string][]string(nil)} without impersonating a user name"
                    .into()
            )
        );
    }
}
