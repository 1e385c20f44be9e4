//! YAML bodies, and go-yaml's words for what is wrong with them.

mod emit;

use serde_json::Value;
use serde_saphyr::{Error, options::DuplicateKeyPolicy};

pub use emit::to_string;

/// # Errors
/// `yaml: line 2: did not find expected key`
pub fn parse(body: &[u8]) -> Result<Value, String> {
    let text =
        std::str::from_utf8(body).map_err(|_| "yaml: invalid leading UTF-8 octet".to_owned())?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    let read = |text: &str| {
        let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
        serde_saphyr::from_str_with_options(text, options)
    };
    let problem = match read(text) {
        Err(error) => match error.without_snippet() {
            Error::MultipleDocuments { .. } => read(first_document(text)),
            _ => Err(error),
        },
        ok => ok,
    };
    problem.map_err(|error| complaint(error.without_snippet(), text))
}

/// What goes before the second document: go-yaml reads no further.
fn first_document(text: &str) -> &str {
    let start = text.find(|c: char| !c.is_whitespace()).unwrap_or(0);
    let begins = start
        + if text[start..].starts_with("---") {
            3
        } else {
            0
        };
    match text[begins..].find("\n---") {
        Some(end) => &text[..begins + end + 1],
        None => text,
    }
}

/// A key that stands twice in one mapping.
pub fn duplicate(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let error = serde_saphyr::from_str::<Value>(text).err()?;
    match error.without_snippet() {
        Error::DuplicateMappingKey {
            key: Some(key),
            location,
        } => Some(format!(
            "yaml: unmarshal errors:\n  line {}: key {key:?} already set in map",
            location.line()
        )),
        _ => None,
    }
}

/// Who of go-yaml finds the problem: the scanner counts lines from one, the parser from zero.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finder {
    Scanner,
    Parser,
}

fn complaint(error: &Error, text: &str) -> String {
    let message = match error {
        Error::ExternalMessage { msg, .. } => msg.as_str(),
        Error::UnknownAnchor { .. } => "unknown anchor",
        Error::Eof { .. } => "unexpected eof",
        _ => return format!("yaml: {error}"),
    };
    let (finder, problem) = problem(message, text);
    let at_end = message.starts_with("unclosed") || message.contains("unexpected E");
    let line = match error.location() {
        Some(location) if !at_end => usize::try_from(location.line()).unwrap_or(1).max(1) - 1,
        _ => text.matches('\n').count(),
    };
    match line {
        // go-yaml takes the first line for an unknown one.
        0 => format!("yaml: {problem}"),
        _ => format!(
            "yaml: line {}: {problem}",
            line + usize::from(finder == Finder::Scanner)
        ),
    }
}

fn problem<'a>(message: &'a str, text: &str) -> (Finder, &'a str) {
    use Finder::{Parser, Scanner};

    if message.starts_with("unclosed bracket") || message.contains("unexpected EOF") {
        let sequence = message.contains('[') || message.contains("sequence");
        let expects_node = text.trim_end().ends_with(['[', '{', ',', ':']);
        return match (expects_node, sequence) {
            (true, _) => (Parser, "did not find expected node content"),
            (false, true) => (Parser, "did not find expected ',' or ']'"),
            (false, false) => (Parser, "did not find expected ',' or '}'"),
        };
    }
    let known = [
        ("unclosed quote", Scanner, "found unexpected end of stream"),
        ("tab", Scanner, NO_TOKEN),
        ("unexpected character", Scanner, NO_TOKEN),
        (
            "while scanning a plain scalar, found a tab",
            Scanner,
            NO_TOKEN,
        ),
        (
            "simple key expected",
            Scanner,
            "could not find expected ':'",
        ),
        (
            "simple key is no longer",
            Scanner,
            "could not find expected ':'",
        ),
        (
            "mapping values",
            Scanner,
            "mapping values are not allowed in this context",
        ),
        (
            "block sequence entries",
            Scanner,
            "block sequence entries are not allowed in this context",
        ),
        ("invalid indentation", Parser, "did not find expected key"),
        (
            "invalid trailing content",
            Parser,
            "did not find expected key",
        ),
        (
            "while parsing a flow sequence, expected",
            Parser,
            "did not find expected ',' or ']'",
        ),
    ];
    if let Some((_, finder, problem)) = known.iter().find(|(start, ..)| message.starts_with(start))
    {
        return (*finder, problem);
    }
    let finder = match message.starts_with("while scanning") || message.contains("quoted scalar") {
        true => Scanner,
        false => Parser,
    };
    (
        finder,
        message
            .split_once(", ")
            .map_or(message, |(_, problem)| problem),
    )
}

const NO_TOKEN: &str = "found character that cannot start any token";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_document_counts() {
        let first = Ok(serde_json::json!({"a": 1}));
        for text in ["a: 1\n---\nb: 2\n", "---\na: 1\n---\nb: 2\n"] {
            assert_eq!(parse(text.as_bytes()), first, "{text:?}");
        }
    }

    #[test]
    fn problems_are_told_in_go_yaml_s_words() {
        for (text, expected) in [
            ("a: [", "yaml: did not find expected node content"),
            (
                "a: 1\nb: [\n",
                "yaml: line 2: did not find expected node content",
            ),
            (
                "a: {b: c\n",
                "yaml: line 1: did not find expected ',' or '}'",
            ),
            (
                "a: b: c",
                "yaml: mapping values are not allowed in this context",
            ),
            (
                "x: y\na: b: c\n",
                "yaml: line 2: mapping values are not allowed in this context",
            ),
            (
                "a:\n\tb: c\n",
                "yaml: line 2: found character that cannot start any token",
            ),
            ("a: \"x\n", "yaml: line 2: found unexpected end of stream"),
        ] {
            assert_eq!(parse(text.as_bytes()), Err(expected.to_owned()), "{text:?}");
        }
    }
}
