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
