//! What a request asks for, read from its method and path (upstream `RequestInfo`).

use std::borrow::Cow;

use http::Method;
use percent::decode;

/// Path and verb of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// `get`, `list`, … for resources; the lower-case method for other paths.
    pub verb: &'static str,
    pub path: String,
    /// False for discovery, health and everything else outside `/api/V/…` and `/apis/G/V/…`.
    pub is_resource: bool,
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource (`proxy/…`), without a leading slash, still percent-encoded.
    pub rest: String,
    /// `/api/v1/watch/…`, the form of a watch from before query parameters.
    pub legacy_watch: bool,
}

/// Subresources of a namespace, as opposed to resources in it.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// `watch` and `has_name` come from the query: `watch=true` makes a list a watch.
    pub fn parse(method: &Method, path: &str, watch: bool) -> Self {
        let mut info = Self {
            verb: method_verb(method),
            path: path.to_owned(),
            ..Self::default()
        };
        // Go routes by the decoded path, where a `%2f` is a slash like any other; what is proxied goes on as it came.
        let slashes = path.contains("%2f") || path.contains("%2F");
        let decoded = match slashes && !path.contains("/proxy/") {
            true => Cow::Owned(path.replace("%2f", "/").replace("%2F", "/")),
            false => Cow::Borrowed(path),
        };
        let path = decoded.as_ref();
        let trimmed = path.trim_matches('/');
        let mut parts: Vec<&str> = trimmed.split('/').collect();
        match parts.first().copied() {
            Some("api") if parts.len() >= 3 => {
                info.version = parts[1].to_owned();
                parts.drain(..2);
            }
            Some("apis") if parts.len() >= 4 => {
                info.group = decode(parts[1]);
                info.version = parts[2].to_owned();
                parts.drain(..3);
            }
            _ => return info,
        }
        info.is_resource = true;
        if parts[0] == "watch" && parts.len() > 1 {
            info.legacy_watch = true;
            parts.remove(0);
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace = decode(parts[1]);
            if parts.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&parts[2]) {
                parts.drain(..2);
            }
        }
        info.resource = decode(parts[0]);
        if let Some(name) = parts.get(1) {
            info.name = decode(name);
        }
        if let Some(subresource) = parts.get(2) {
            info.subresource = decode(subresource);
        }
        if parts.len() > 3 {
            // Cut from the raw path: a proxied path keeps empty segments and its trailing slash.
            info.rest = rest_after(path, parts[2], parts[3..].len());
            if path.ends_with('/') && !info.rest.ends_with('/') {
                info.rest.push('/');
            }
        } else if parts.len() == 3 && path.ends_with('/') {
            info.rest = "/".to_owned();
        }
        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD if info.legacy_watch => "watch",
            Method::GET | Method::HEAD if info.name.is_empty() && watch => "watch",
            Method::GET | Method::HEAD if info.name.is_empty() => "list",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if info.name.is_empty() => "deletecollection",
            Method::DELETE => "delete",
            _ => info.verb,
        };
        info
    }
}

fn rest_after(path: &str, _subresource: &str, segments: usize) -> String {
    let path = path.trim_end_matches('/');
    let mut start = path.len();
    for _ in 0..segments {
        start = path[..start].rfind('/').unwrap_or(0);
    }
    path[start..].trim_start_matches('/').to_owned()
}

fn method_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "connect",
    }
}

pub mod percent {
    //! Percent-decoding of path segments and query strings.

    /// Invalid escapes stay as they are; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(text: &str) -> String {
        if !text.contains('%') {
            return text.to_owned();
        }
        let bytes = text.as_bytes();
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            let escaped = (bytes[at] == b'%')
                .then(|| text.get(at + 1..at + 3))
                .flatten()
                .and_then(|hex| u8::from_str_radix(hex, 16).ok());
            match escaped {
                Some(byte) => {
                    out.push(byte);
                    at += 3;
                }
                None => {
                    out.push(bytes[at]);
                    at += 1;
                }
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: Method, path: &str) -> (String, String) {
        let i = RequestInfo::parse(&method, path, false);
        (
            format!("{} {}/{}", i.verb, i.group, i.version),
            format!(
                "{}|{}|{}|{}|{}",
                i.namespace, i.resource, i.name, i.subresource, i.rest
            ),
        )
    }

    #[test]
    fn paths_of_resources() {
        let check = |method, path, verb: &str, what: &str| {
            assert_eq!(
                parse(method, path),
                (verb.to_owned(), what.to_owned()),
                "{path}"
            );
        };
        check(Method::GET, "/api/v1/pods", "list /v1", "|pods|||");
        let slash = "/api/v1/namespaces/a%2fpods/b%2Flog";
        check(Method::GET, slash, "get /v1", "a|pods|b|log|");
        check(
            Method::GET,
            "/api/v1/namespaces/a",
            "get /v1",
            "a|namespaces|a||",
        );
        check(
            Method::PUT,
            "/api/v1/namespaces/a/finalize",
            "update /v1",
            "a|namespaces|a|finalize|",
        );
        check(
            Method::GET,
            "/api/v1/namespaces/a/pods",
            "list /v1",
            "a|pods|||",
        );
        check(
            Method::DELETE,
            "/apis/apps/v1/namespaces/a/deployments",
            "deletecollection apps/v1",
            "a|deployments|||",
        );
        check(
            Method::GET,
            "/api/v1/namespaces/a/pods/p/proxy/x/y/",
            "get /v1",
            "a|pods|p|proxy|x/y/",
        );
        check(
            Method::GET,
            "/api/v1/nodes/n/proxy/",
            "get /v1",
            "|nodes|n|proxy|/",
        );
        check(
            Method::GET,
            "/api/v1/watch/namespaces/a/pods",
            "watch /v1",
            "a|pods|||",
        );
        check(
            Method::GET,
            "/apis/x.io/v1/a/b%3Ac",
            "get x.io/v1",
            "|a|b:c||",
        );
    }
}
