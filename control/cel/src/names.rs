//! Names of fields as CEL's identifiers (apiserver `cel.Escape`).

/// What CEL's grammar keeps for itself: no variable and no field may be called so.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// A field's name as an identifier; `None` for one that no expression can name.
pub fn escape(name: &str) -> Option<String> {
    if is_reserved(name) {
        return Some(format!("__{name}__"));
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'/');
    let first = name.bytes().next()?;
    if first.is_ascii_digit() || !name.bytes().all(fits) {
        return None;
    }
    Some(
        name.replace("__", "__underscores__")
            .replace('.', "__dot__")
            .replace('-', "__dash__")
            .replace('/', "__slash__"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_named_as_upstream_does() {
        for (name, escaped) in [
            ("a", Some("a")),
            ("while", Some("__while__")),
            ("namespace", Some("__namespace__")),
            (
                "a-b.c/d__e",
                Some("a__dash__b__dot__c__slash__d__underscores__e"),
            ),
            ("-a", Some("__dash__a")),
            ("9a", None),
            ("", None),
            ("$ref", None),
            ("é", None),
        ] {
            assert_eq!(escape(name).as_deref(), escaped, "{name}");
        }
    }
}
