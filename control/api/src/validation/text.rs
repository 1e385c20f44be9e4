//! Rules for single strings and numbers. Each gives the messages of what is wrong, none if nothing is
//! (apimachinery `util/validation` and `api/validate/content`).

pub type Messages = Vec<String>;

fn regex_error(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    let examples: Vec<String> = examples
        .iter()
        .map(|example| format!("'{example}', "))
        .collect();
    format!(
        "{message} (e.g. {}regex used for validation is '{pattern}')",
        examples.join(" or ")
    )
}

fn max_characters(limit: usize) -> String {
    format!("must be no more than {limit} characters")
}

fn max_bytes(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

pub fn inclusive_range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

const EMPTY: &str = "must be non-empty";

fn is_lower_alphanumeric(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// `first([mid]*last)?`
fn shape(value: &str, first: fn(u8) -> bool, mid: fn(u8) -> bool, last: fn(u8) -> bool) -> bool {
    match value.as_bytes() {
        [] => false,
        [one] => first(*one),
        [a, between @ .., z] => first(*a) && between.iter().all(|c| mid(*c)) && last(*z),
    }
}

fn is_label_shape(value: &str) -> bool {
    shape(
        value,
        is_lower_alphanumeric,
        |c| is_lower_alphanumeric(c) || c == b'-',
        is_lower_alphanumeric,
    )
}

fn is_subdomain_shape(value: &str) -> bool {
    value.split('.').all(is_label_shape)
}

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

pub fn dns1123_label(value: &str) -> Messages {
    let mut messages = Messages::new();
    if value.len() > 63 {
        messages.push(max_characters(63));
    }
    if !is_label_shape(value) {
        messages.push(if is_subdomain_shape(value) {
            "must not contain dots".to_owned()
        } else {
            regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                 start and end with an alphanumeric character",
                LABEL,
                &["my-name", "123-abc"],
            )
        });
    }
    messages
}

pub fn dns1123_subdomain(value: &str) -> Messages {
    let mut messages = Messages::new();
    if value.len() > 253 {
        messages.push(max_characters(253));
    }
    if !is_subdomain_shape(value) {
        messages.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character",
            SUBDOMAIN,
            &["example.com"],
        ));
    }
    messages
}

pub fn dns1123_subdomain_with_underscore(value: &str) -> Messages {
    let mut messages = Messages::new();
    if value.len() > 253 {
        messages.push(max_characters(253));
    }
    let label = |part: &str| {
        shape(
            part.strip_prefix('_').unwrap_or(part),
            is_lower_alphanumeric,
            |c| is_lower_alphanumeric(c) || c == b'-' || c == b'_',
            is_lower_alphanumeric,
        )
    };
    if !value.split('.').all(label) {
        messages.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and \
             must start and end with an alphanumeric character",
            r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    messages
}

pub fn dns1035_label(value: &str) -> Messages {
    let mut messages = Messages::new();
    if value.len() > 63 {
        messages.push(max_characters(63));
    }
    let fits = shape(
        value,
        |c| c.is_ascii_lowercase(),
        |c| is_lower_alphanumeric(c) || c == b'-',
        is_lower_alphanumeric,
    );
    if !fits {
        messages.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    messages
}

pub fn wildcard_dns1123_subdomain(value: &str) -> Messages {
    let mut messages = Messages::new();
    if value.len() > 253 {
        messages.push(max_characters(253));
    }
    if !value.strip_prefix("*.").is_some_and(is_subdomain_shape) {
        messages.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist \
             of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["*.example.com"],
        ));
    }
    messages
}

fn is_name_shape(value: &str) -> bool {
    shape(
        value,
        |c| c.is_ascii_alphanumeric(),
        |c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'),
        |c| c.is_ascii_alphanumeric(),
    )
}

/// A label key: an optional DNS subdomain and `/`, and a name.
pub fn qualified_name(value: &str) -> Messages {
    let mut messages = Messages::new();
    let shape_error = || {
        regex_error(
            "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
             character",
            "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
            &["MyName", "my.name", "123-abc"],
        )
    };
    let mut parts = value.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                messages.push(format!("prefix part {EMPTY}"));
            } else {
                messages.extend(
                    dns1123_subdomain(prefix)
                        .into_iter()
                        .map(|message| format!("prefix part {message}")),
                );
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                shape_error()
            )];
        }
    };
    if name.is_empty() {
        messages.push(format!("name part {EMPTY}"));
    } else if name.len() > 63 {
        messages.push(format!("name part {}", max_bytes(63)));
    }
    if !is_name_shape(name) {
        messages.push(format!("name part {}", shape_error()));
    }
    messages
}

pub fn label_value(value: &str) -> Messages {
    let mut messages = Messages::new();
    if value.len() > 63 {
        messages.push(max_bytes(63));
    }
    if !value.is_empty() && !is_name_shape(value) {
        messages.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    messages
}

pub fn c_identifier(value: &str) -> Messages {
    let fits = value
        .bytes()
        .enumerate()
        .all(|(i, c)| c == b'_' || c.is_ascii_alphabetic() || (i > 0 && c.is_ascii_digit()));
    if fits && !value.is_empty() {
        return Messages::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
         characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

pub fn port_number(port: i64) -> Messages {
    in_range(port, 1, 65535)
}

pub fn in_range(value: i64, low: i64, high: i64) -> Messages {
    if (low..=high).contains(&value) {
        Messages::new()
    } else {
        vec![inclusive_range(low, high)]
    }
}

pub fn port_name(value: &str) -> Messages {
    let mut messages = Messages::new();
    if value.len() > 15 {
        messages.push(max_characters(15));
    }
    let allowed = |c: u8| is_lower_alphanumeric(c) || c == b'-';
    if value.is_empty() || !value.bytes().all(allowed) {
        messages.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !value.bytes().any(|c| c.is_ascii_lowercase()) {
        messages.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        messages.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        messages.push("must not begin or end with a hyphen".to_owned());
    }
    messages
}

pub fn percent(value: &str) -> Messages {
    let digits = value.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()) {
        return Messages::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

pub fn http_header_name(value: &str) -> Messages {
    if !value.is_empty()
        && value
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b'-')
    {
        return Messages::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// What an environment variable may be called since 1.30: anything printable but `=`.
pub fn env_var_name(value: &str) -> Messages {
    let mut messages = Messages::new();
    if value.is_empty() {
        messages.push(format!("environment variable name {EMPTY}"));
    }
    if value.chars().any(|c| !(' '..='~').contains(&c) || c == '=') {
        messages.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    messages
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(value: &str) -> Messages {
    let mut messages = Messages::new();
    if value.len() > 253 {
        messages.push(max_characters(253));
    }
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
    if value.is_empty() || !value.bytes().all(allowed) {
        messages.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    if value == "." {
        messages.push("must not be '.'".to_owned());
    } else if value == ".." {
        messages.push("must not be '..'".to_owned());
    } else if value.starts_with("..") {
        messages.push("must not start with '..'".to_owned());
    }
    messages
}

/// What may stand in a URL path as one segment (apimachinery `path.IsValidPathSegmentName`).
pub fn path_segment(value: &str) -> Messages {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    let mut messages = Messages::new();
    for illegal in ["/", "%"] {
        if value.contains(illegal) {
            messages.push(format!("may not contain '{illegal}'"));
        }
    }
    messages
}

/// The same for a prefix, which something is appended to.
pub fn path_segment_prefix(value: &str) -> Messages {
    let mut messages = Messages::new();
    for illegal in ["/", "%"] {
        if value.contains(illegal) {
            messages.push(format!("may not contain '{illegal}'"));
        }
    }
    messages
}

/// Messages of a pattern given by the caller, for the rules that only one kind has.
pub fn pattern(fits: bool, message: &str, pattern: &str, examples: &[&str]) -> Messages {
    if fits {
        Messages::new()
    } else {
        vec![regex_error(message, pattern, examples)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rule: fn(&str) -> Messages, good: &[&str], bad: &[&str]) {
        for value in good {
            assert_eq!(rule(value), Messages::new(), "{value:?}");
        }
        for value in bad {
            assert_ne!(rule(value), Messages::new(), "{value:?}");
        }
    }

    #[test]
    fn shapes() {
        let long = "a".repeat(64);
        check(
            dns1123_label,
            &["a", "a-1", "1"],
            &["", "-a", "a-", "A", "a.b", "a_b", &long],
        );
        check(
            dns1123_subdomain,
            &["a.b", "1.2", &long],
            &["", ".", "a..b", "a.-b", "A.b"],
        );
        check(dns1035_label, &["a", "a-1"], &["1a", "a.b", ""]);
        check(
            wildcard_dns1123_subdomain,
            &["*.a.b"],
            &["*", "*.*.a", "a.b", "*a.b"],
        );
        check(
            qualified_name,
            &["A", "a.b/C_d"],
            &["", "/a", "a/", "a/b/c", "A.b/c", "a b", &long],
        );
        check(label_value, &["", "A_b.c"], &["-a", "a b", &long]);
        check(
            port_name,
            &["http", "a-1"],
            &["", "1", "a--b", "-a", "abcdefghijklmnop", "A"],
        );
        check(percent, &["0%", "100%"], &["%", "1", "-1%"]);
        check(env_var_name, &["A b", "1"], &["", "a=b", "é"]);
        check(
            config_map_key,
            &["a.B_c", ".a"],
            &["", ".", "..", "..a", "a/b"],
        );
        check(c_identifier, &["_a1"], &["1a", "", "a-b"]);
    }

    #[test]
    fn the_example_list_reads_as_upstream() {
        assert_eq!(
            percent("5"),
            [
                "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
            ]
        );
    }
}
