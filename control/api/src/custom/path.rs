//! The simple paths of definitions: `.spec.replicas`, with `['a.b']` for odd names.

use serde_json::Value;

/// The steps of a simple path. `None` for anything that is not one.
pub fn parts(path: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix("['") {
            let (name, after) = quoted.split_once("']")?;
            parts.push(name.to_owned());
            rest = after;
        } else {
            let name = rest.strip_prefix('.')?;
            let mut end = name.len();
            let mut escaped = false;
            for (at, c) in name.char_indices() {
                match c {
                    _ if escaped => escaped = false,
                    '\\' => escaped = true,
                    '.' | '[' => {
                        end = at;
                        break;
                    }
                    _ => {}
                }
            }
            if end == 0 {
                return None;
            }
            parts.push(name[..end].replace("\\.", "."));
            rest = &name[end..];
        }
    }
    Some(parts)
}

/// The schema at a path (`.spec.a`, `['odd.name']`) below another one, and the path as errors show it: keys of maps in
/// brackets, names of fields after dots.
///
/// # Errors
/// Upstream's words for a path that leads nowhere (`cel.ValidFieldPath`).
pub fn resolve<'a>(
    schema: &'a Value,
    given: &str,
    brackets: bool,
) -> Result<(String, &'a Value), String> {
    const END: &str = "unexpected end of JSON path";
    let mut tokens = tokens(given).into_iter();
    let (mut at, mut shown) = (schema, String::new());
    while let Some(token) = tokens.next() {
        let name = match token {
            "[" if !brackets => return Err("array notation is not allowed".to_owned()),
            "[" => {
                let quoted = tokens.next().ok_or(END)?;
                let name = quoted.strip_prefix('\'').filter(|_| quoted.len() > 1);
                let name = name.and_then(|name| name.strip_suffix('\''));
                unescaped(
                    name.ok_or_else(|| format!("expected single quoted string but got {quoted}"))?,
                )?
            }
            "." => tokens.next().ok_or(END)?.to_owned(),
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        let fields = at["properties"].as_object();
        let fields = fields.filter(|fields| !fields.is_empty());
        at = match (fields, &at["additionalProperties"]) {
            (Some(fields), _) => {
                if !shown.is_empty() {
                    shown.push('.');
                }
                shown.push_str(&name);
                fields.get(&name).ok_or("does not refer to a valid field")?
            }
            (None, values @ Value::Object(_)) => {
                shown.push_str(&format!("[{name}]"));
                values
            }
            (None, _) => return Err("does not refer to a valid field".to_owned()),
        };
        if token == "[" {
            match tokens.next() {
                None => return Err(END.to_owned()),
                Some("]") => {}
                Some(other) => return Err(format!("expected ] but got {other}")),
            }
        }
    }
    Ok((shown, at))
}

/// Delimiters, quoted names with their quotes, and what stands between.
fn tokens(given: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = given;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '.' | '[' | ']' => Some(1),
            '\'' => {
                let mut before = first;
                let closing = rest.char_indices().skip(1).find(|(_, c)| {
                    let closes = *c == '\'' && before != '\\';
                    before = *c;
                    closes
                });
                closing.map(|(at, _)| at + 1)
            }
            _ => rest.find(['.', '[', ']']),
        };
        let (token, after) = rest.split_at(end.unwrap_or(rest.len()));
        tokens.push(token);
        rest = after;
    }
    tokens
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next() {
            Some('a') => '\u{7}',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\u{b}',
            Some(same @ ('\'' | '\\')) => same,
            Some(other) => {
                return Err(format!(
                    "invalid string literal: invalid escape char \\{other}"
                ));
            }
            None => '\\',
        });
    }
    Ok(out)
}

/// What stands at a simple path.
pub fn find<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut at = object;
    for part in parts(path)? {
        at = at.get(&part)?;
    }
    Some(at)
}

/// A simple path as a JSON pointer.
pub fn pointer(path: &str) -> String {
    let parts = parts(path).unwrap_or_default();
    parts
        .iter()
        .map(|part| format!("/{}", part.replace('~', "~0").replace('/', "~1")))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_to_schemas() {
        let schema = json!({"properties": {
            "a": {"properties": {"b.c": {"type": "string"}}},
            "m": {"additionalProperties": {"type": "integer"}},
        }});
        let shown = |path: &str, brackets| resolve(&schema, path, brackets).map(|(shown, _)| shown);
        assert_eq!(shown(".a['b.c']", true), Ok("a.b.c".to_owned()));
        assert_eq!(shown(".m['k']", true), Ok("m[k]".to_owned()));
        assert_eq!(shown(".m.k", false), Ok("m[k]".to_owned()));
        for (path, brackets, problem) in [
            (".a['b.c']", false, "array notation is not allowed"),
            (".x", true, "does not refer to a valid field"),
            (".a.", true, "unexpected end of JSON path"),
            ("a", true, "expected [ or . but got: a"),
            (".a[b]", true, "expected single quoted string but got b"),
            (".a['b.c'.", true, "expected ] but got ."),
        ] {
            assert_eq!(shown(path, brackets), Err(problem.to_owned()), "{path}");
        }
    }

    #[test]
    fn paths_lead_to_values() {
        let object = json!({"a": {"b.c": {"d": 1}}});
        for path in [".a['b.c'].d", ".a.b\\.c.d"] {
            assert_eq!(find(&object, path), Some(&json!(1)), "{path}");
        }
        assert_eq!(find(&object, ".a.x"), None);
        assert_eq!(parts("a"), None);
        assert_eq!(parts(".a..b"), None);
        assert_eq!(pointer(".a['b/c']"), "/a/b~1c");
    }
}
