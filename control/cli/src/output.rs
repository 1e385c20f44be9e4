//! `-o`: how objects are shown.

use std::{fmt::Write as _, str::FromStr};

use anyhow::{Context, Result, bail};
use jsonpath_rust::JsonPath;
use serde_json::Value;

use crate::{
    discovery::{Resource, items},
    session::name_of,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    Table { wide: bool },
    Yaml,
    Json,
    Name,
    JsonPath(String),
    CustomColumns(Vec<(String, String)>),
}

impl FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, argument) = text.split_once('=').unwrap_or((text, ""));
        Ok(match name {
            "wide" => Self::Table { wide: true },
            "yaml" => Self::Yaml,
            "json" => Self::Json,
            "name" => Self::Name,
            "jsonpath" if !argument.is_empty() => Self::JsonPath(argument.to_owned()),
            "custom-columns" if !argument.is_empty() => {
                let column = |part: &str| {
                    let (head, path) = part.split_once(':').with_context(|| {
                        format!("custom-columns: want HEADER:PATH, not \"{part}\"")
                    })?;
                    Ok((head.to_owned(), path.to_owned()))
                };
                Self::CustomColumns(argument.split(',').map(column).collect::<Result<_>>()?)
            }
            _ => bail!(
                "unable to match a printer suitable for the output format \"{text}\", allowed formats \
                 are: custom-columns=…,json,jsonpath=…,name,wide,yaml"
            ),
        })
    }
}

impl Format {
    /// Whether the server's Table is what is wanted.
    pub fn is_table(&self) -> bool {
        matches!(self, Self::Table { .. })
    }

    /// An object or a list; the text ends with a newline where it is not empty (but for jsonpath).
    pub fn render(&self, value: &Value, resource: Option<&Resource>) -> Result<String> {
        Ok(match self {
            Self::Yaml => yaml(value)?,
            Self::Json => format!("{value:#}\n"),
            Self::JsonPath(template) => jsonpath(value, template)?,
            Self::Name => objects(value)
                .map(|o| qualified_name(o, resource) + "\n")
                .collect(),
            Self::CustomColumns(columns) => {
                let mut rows = vec![columns.iter().map(|(head, _)| head.clone()).collect()];
                for object in objects(value) {
                    let cell = |(_, path): &(String, String)| {
                        let text = jsonpath(object, &format!("{{{path}}}"))?;
                        Ok(if text.is_empty() {
                            "<none>".to_owned()
                        } else {
                            text
                        })
                    };
                    rows.push(columns.iter().map(cell).collect::<Result<Vec<_>>>()?);
                }
                align(&rows)
            }
            Self::Table { .. } => bail!("tables are printed from the server's Table"),
        })
    }
}

/// An object itself, or the items of a list.
pub fn objects(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    if value.get("items").is_some_and(Value::is_array)
        && value["kind"]
            .as_str()
            .is_some_and(|kind| kind.ends_with("List"))
    {
        Box::new(items(value, "items"))
    } else {
        Box::new(std::iter::once(value))
    }
}

/// `deployment.apps/web`.
pub fn qualified_name(object: &Value, resource: Option<&Resource>) -> String {
    let prefix = match resource {
        Some(resource) => resource.qualified_singular(),
        None => {
            let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
            match object["apiVersion"]
                .as_str()
                .and_then(|v| v.split_once('/'))
            {
                Some((group, _)) => format!("{kind}.{group}"),
                None => kind,
            }
        }
    };
    format!("{prefix}/{}", name_of(object))
}

pub fn yaml(value: &Value) -> Result<String> {
    let text = serde_saphyr::to_string(value).context("writing YAML")?;
    Ok(if text.ends_with('\n') {
        text
    } else {
        text + "\n"
    })
}

/// Columns padded to their widest cell, three spaces between, nothing at the end of a line.
pub fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// kubectl's JSONPath templates: text, `{.path}`, `{range .items[*]}…{end}`, `{"\n"}`.
pub fn jsonpath(value: &Value, template: &str) -> Result<String> {
    // A bare path is taken as one expression, as kubectl does.
    let template = if template.contains('{') {
        template.to_owned()
    } else {
        format!("{{{template}}}")
    };
    let mut out = String::new();
    let tokens = tokenize(&template)?;
    expand(value, value, &tokens, &mut out)?;
    Ok(out)
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Text(String),
    Path(String),
    Range(String, Vec<Token>),
}

fn tokenize(template: &str) -> Result<Vec<Token>> {
    // The innermost open range collects tokens; the first entry is the template itself.
    let mut stack: Vec<(String, Vec<Token>)> = vec![(String::new(), Vec::new())];
    let mut rest = template;
    while !rest.is_empty() {
        let Some(open) = rest.find('{') else {
            push(&mut stack, Token::Text(rest.to_owned()));
            break;
        };
        if open > 0 {
            push(&mut stack, Token::Text(rest[..open].to_owned()));
        }
        let close = closing_brace(&rest[open..])
            .with_context(|| format!("unclosed action in the jsonpath {template:?}"))?;
        let expression = rest[open + 1..open + close].trim();
        rest = &rest[open + close + 1..];
        if let Some(path) = expression.strip_prefix("range ") {
            stack.push((path.trim().to_owned(), Vec::new()));
        } else if expression == "end" {
            let Some((path, tokens)) = stack.pop().filter(|_| !stack.is_empty()) else {
                bail!("{{end}} without {{range}} in the jsonpath {template:?}");
            };
            push(&mut stack, Token::Range(path, tokens));
        } else if let Some(quoted) = quoted(expression) {
            push(&mut stack, Token::Text(quoted));
        } else {
            push(&mut stack, Token::Path(expression.to_owned()));
        }
    }
    match stack.pop() {
        Some((_, tokens)) if stack.is_empty() => Ok(tokens),
        _ => bail!("{{range}} without {{end}} in the jsonpath {template:?}"),
    }
}

fn push(stack: &mut [(String, Vec<Token>)], token: Token) {
    if let Some((_, tokens)) = stack.last_mut() {
        tokens.push(token);
    }
}

/// Where the `{` at the start of `text` is closed, quotes respected.
fn closing_brace(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (index, character) in text.char_indices() {
        match (quote, character) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => quote = Some(character),
            (None, '}') => return Some(index),
            _ => {}
        }
    }
    None
}

fn quoted(expression: &str) -> Option<String> {
    let inner = ['"', '\''].iter().find_map(|&quote| {
        expression
            .strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote))
    })?;
    Some(
        inner
            .replace("\\n", "\n")
            .replace("\\t", "\t")
            .replace("\\\"", "\""),
    )
}

fn expand(root: &Value, current: &Value, tokens: &[Token], out: &mut String) -> Result<()> {
    for token in tokens {
        match token {
            Token::Text(text) => out.push_str(text),
            Token::Path(path) => {
                let found = evaluate(root, current, path)?;
                let shown: Vec<String> = found.iter().map(show).collect();
                out.push_str(&shown.join(" "));
            }
            Token::Range(path, body) => {
                for item in evaluate(root, current, path)? {
                    expand(root, &item, body, out)?;
                }
            }
        }
    }
    Ok(())
}

fn evaluate(root: &Value, current: &Value, path: &str) -> Result<Vec<Value>> {
    // kubectl's dialect to RFC 9535: `.a\.b` is a member with a dot, `@` is the current object.
    let (base, path) = match path.strip_prefix('$') {
        Some(path) => (root, path),
        None => (current, path.strip_prefix('@').unwrap_or(path)),
    };
    if path.is_empty() {
        return Ok(vec![base.clone()]);
    }
    let mut query = String::from("$");
    let mut rest = path;
    if !rest.starts_with(['.', '[']) {
        query.push('.');
    }
    while let Some(character) = rest.chars().next() {
        if character == '.' && rest.len() > 1 && !rest.starts_with("..") && !rest.starts_with(".[")
        {
            let end = member_end(&rest[1..]) + 1;
            let member = rest[1..end].replace("\\.", ".").replace("\\/", "/");
            if member == "*" {
                query.push_str(".*");
            } else {
                let _ = write!(query, "['{}']", member.replace('\'', "\\'"));
            }
            rest = &rest[end..];
        } else if character == '[' {
            let end = rest.find(']').map_or(rest.len(), |at| at + 1);
            query.push_str(&rest[..end]);
            rest = &rest[end..];
        } else if rest.starts_with(".[") {
            rest = &rest[1..];
        } else {
            query.push(character);
            rest = &rest[character.len_utf8()..];
        }
    }
    let found = base
        .query(&query)
        .with_context(|| format!("in the jsonpath {{{path}}}"))?;
    Ok(found.into_iter().cloned().collect())
}

fn member_end(text: &str) -> usize {
    let mut escaped = false;
    for (index, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '.' | '[' => return index,
            _ => {}
        }
    }
    text.len()
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(template: &str, expected: &str) {
        let value = json!({
            "metadata": {"name": "web", "labels": {"app.kubernetes.io/name": "x"}},
            "items": [{"name": "a", "n": 1}, {"name": "b", "n": 2}],
        });
        assert_eq!(jsonpath(&value, template).unwrap(), expected, "{template}");
    }

    #[test]
    fn templates_are_expanded() {
        check("{.metadata.name}", "web");
        check(".metadata.name", "web");
        check("name={.metadata.name}{\"\\n\"}", "name=web\n");
        check("{.items[*].name}", "a b");
        check("{.items[1].n}", "2");
        check("{range .items[*]}{.name}={.n}{\"\\n\"}{end}", "a=1\nb=2\n");
        check("{.metadata.labels.app\\.kubernetes\\.io/name}", "x");
        check("{.items[?(@.name==\"b\")].n}", "2");
        check("{.nothing}", "");
        check("{.metadata.labels}", "{\"app.kubernetes.io/name\":\"x\"}");
    }

    #[test]
    fn broken_templates_are_refused() {
        for template in ["{.a", "{range .items[*]}x", "x{end}"] {
            assert!(jsonpath(&json!({}), template).is_err(), "{template}");
        }
    }

    #[test]
    fn formats_are_parsed() {
        assert_eq!(
            "wide".parse::<Format>().unwrap(),
            Format::Table { wide: true }
        );
        assert!("jsonpath".parse::<Format>().is_err());
        assert!(
            "custom-columns=NAME:.metadata.name"
                .parse::<Format>()
                .is_ok()
        );
        assert!("nonsense".parse::<Format>().is_err());
    }

    #[test]
    fn columns_line_up() {
        let rows = [["NAME", "AGE"], ["a-long-name", "1s"]].map(|r| r.map(str::to_owned).to_vec());
        assert_eq!(align(&rows), "NAME          AGE\na-long-name   1s\n");
    }
}
