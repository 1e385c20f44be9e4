//! Where a webhook is reached: admission and conversion webhooks and aggregated APIs
//! (apiserver `pkg/util/webhook/validation.go`).

use super::text;
use crate::field::{Errors, Path};

const FORM: &str = "; desired format: https://host[/path]";

pub fn validate_webhook_url(value: &str, path: &Path<'_>, errors: &mut Errors) {
    // `url` knows only absolute URLs, and drops what Go keeps: the parts are found by hand (RFC 3986 §3).
    let (rest, fragment) = value.split_once('#').unwrap_or((value, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_lowercase(), rest),
        Some(("", _)) => {
            errors.required(
                path,
                format!(
                    "url must be a valid URL: parse {}: missing protocol scheme{FORM}",
                    crate::field::quoted(value)
                ),
            );
            return;
        }
        _ => (String::new(), rest),
    };
    let authority = rest.strip_prefix("//").unwrap_or("");
    let authority = authority.split('/').next().unwrap_or("");
    let (user, host) = authority
        .rsplit_once('@')
        .map_or((None, authority), |(user, host)| (Some(user), host));
    if scheme != "https" {
        errors.invalid(
            path,
            scheme,
            format!("'https' is the only allowed URL scheme{FORM}"),
        );
    }
    if host.is_empty() {
        errors.invalid(path, host, format!("host must be specified{FORM}"));
    }
    for (part, detail) in [
        (
            user.unwrap_or(""),
            "user information is not permitted in the URL",
        ),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            errors.invalid(path, part, detail);
        }
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.'))
}

pub fn validate_webhook_service(
    name: &str,
    namespace: &str,
    url_path: Option<&str>,
    port: i32,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if name.is_empty() {
        errors.required(&path.child("name"), "service name is required");
    }
    if namespace.is_empty() {
        errors.required(&path.child("namespace"), "service namespace is required");
    }
    let messages = text::port_number(port.into());
    if !messages.is_empty() {
        errors.invalid(
            &path.child("port"),
            port,
            format!("port is not valid: {}", messages.join(", ")),
        );
    }
    let at = path.child("path");
    let Some(url_path) = url_path.filter(|url_path| !matches!(*url_path, "" | "/")) else {
        return;
    };
    if url_path == "//" {
        errors.invalid(&at, url_path, "segment[0] may not be empty");
        return;
    }
    if !url_path.starts_with('/') {
        errors.invalid(&at, url_path, "must start with a '/'");
    }
    let mut characters = url_path.chars();
    characters.next();
    let rest = characters.as_str();
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    for (i, segment) in rest.split('/').enumerate() {
        if segment.is_empty() {
            errors.invalid(&at, url_path, format!("segment[{i}] may not be empty"));
            continue;
        }
        for message in text::dns1123_subdomain(segment) {
            errors.invalid(&at, url_path, format!("segment[{i}]: {message}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_url(url: &str, expected: &[&str]) {
        let mut errors = Errors::default();
        validate_webhook_url(url, &Path::new("u"), &mut errors);
        let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected, "{url}");
    }

    #[track_caller]
    fn check_path(url_path: &str, expected: &[&str]) {
        let mut errors = Errors::default();
        validate_webhook_service("n", "s", Some(url_path), 443, &Path::new("s"), &mut errors);
        let details: Vec<&str> = errors.0.iter().map(|error| error.detail.as_str()).collect();
        assert_eq!(details, expected, "{url_path}");
    }

    #[test]
    fn urls() {
        check_url("https://h:1/x", &[]);
        check_url(
            "http://u@h?q=1#f",
            &[
                r#"u: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]"#,
                r#"u: Invalid value: "u": user information is not permitted in the URL"#,
                r#"u: Invalid value: "f": fragments are not permitted in the URL"#,
                r#"u: Invalid value: "q=1": query parameters are not permitted in the URL"#,
            ],
        );
        check_url(
            "x",
            &[
                r#"u: Invalid value: "": 'https' is the only allowed URL scheme; desired format: https://host[/path]"#,
                r#"u: Invalid value: "": host must be specified; desired format: https://host[/path]"#,
            ],
        );
    }

    #[test]
    fn service_paths() {
        check_path("/a/b/", &[]);
        check_path("//", &["segment[0] may not be empty"]);
        check_path("/a//b", &["segment[1] may not be empty"]);
        assert_eq!(text::dns1123_subdomain("a").len(), 0);
        check_path(
            "a",
            &["must start with a '/'", "segment[0] may not be empty"],
        );
    }
}
