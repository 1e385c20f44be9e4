//! Label and field selectors: parsing of the query strings, in apimachinery's words, and matching.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

use crate::{
    field::{Bad, Errors, FieldError, Path, aggregate},
    validation::text,
};

/// Why a selector was refused; the text goes to the client as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, each once.
    pub values: Vec<String>,
}

/// All requirements must hold. Empty = everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    pub requirements: Vec<Requirement>,
    /// A selector object that is absent selects nothing.
    nothing: bool,
}

impl LabelSelector {
    /// `a=b,c in (d,e),!f`
    ///
    /// # Errors
    /// The text of apimachinery's `labels.Parse`.
    pub fn parse(query: &str) -> Result<Self, SelectorError> {
        let mut requirements = Parser::new(query).parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self {
            requirements: Vec::new(),
            nothing: true,
        }
    }

    /// Every label of the set must be there with its value.
    pub fn from_set(labels: &BTreeMap<String, String>) -> Self {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::Equals,
                values: vec![value.clone()],
            })
            .collect();
        Self {
            requirements,
            nothing: false,
        }
    }

    /// `spec.selector` of a ReplicaSet and its like. `None` selects nothing, an empty one everything.
    ///
    /// # Errors
    /// An operator or value that validation refuses.
    pub fn from_object(selector: Option<&meta::LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else {
            return Ok(Self::nothing());
        };
        let mut all = match &selector.match_labels {
            Some(labels) => Self::from_set(labels),
            None => Self::everything(),
        };
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!(
                        "{} is not a valid label selector operator",
                        crate::field::quoted(other)
                    )));
                }
            };
            let values = expression.values.clone().unwrap_or_default();
            all.requirements
                .push(Requirement::new(&expression.key, operator, values)?);
        }
        all.requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(all)
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// `lookup` answers a label's value.
    pub fn matches_with<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing
            && self
                .requirements
                .iter()
                .all(|requirement| requirement.matches(lookup(&requirement.key)))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

impl Requirement {
    /// # Errors
    /// Values that do not fit the operator, and keys and values that are not those of labels.
    pub fn new(
        key: &str,
        operator: Operator,
        mut values: Vec<String>,
    ) -> Result<Self, SelectorError> {
        values.sort();
        values.dedup();
        let mut errors = Errors::default();
        check_label_key(key, &Path::new("key"), &mut errors);
        let path = Path::new("values");
        let all = || Bad::json(&values);
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => errors.invalid(
                &path,
                all(),
                "for 'in', 'notin' operators, values set can't be empty",
            ),
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals
                if values.len() != 1 =>
            {
                errors.invalid(
                    &path,
                    all(),
                    "exact-match compatibility requires one single value",
                );
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => errors.invalid(
                &path,
                all(),
                "values set must be empty for exists and does not exist",
            ),
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    errors.invalid(
                        &path,
                        all(),
                        "for 'Gt', 'Lt' operators, exactly one value is required",
                    );
                }
                for (i, value) in values.iter().enumerate() {
                    if value.parse::<i64>().is_err() {
                        errors.invalid(
                            &path.index(i),
                            value,
                            "for 'Gt', 'Lt' operators, the value must be an integer",
                        );
                    }
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let messages = text::label_value(value);
            if !messages.is_empty() {
                errors.invalid(&path.index(i).key(key), value, messages.join("; "));
            }
        }
        if errors.is_empty() {
            Ok(Self {
                key: key.to_owned(),
                operator,
                values,
            })
        } else {
            Err(SelectorError(aggregate(&errors.0)))
        }
    }

    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|one| one == value);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let limit = self
                    .values
                    .first()
                    .and_then(|limit| limit.parse::<i64>().ok());
                match (value.and_then(|value| value.parse::<i64>().ok()), limit) {
                    (Some(value), Some(limit)) if self.operator == Operator::GreaterThan => {
                        value > limit
                    }
                    (Some(value), Some(limit)) => value < limit,
                    _ => false,
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let values = self.values.join(",");
        match self.operator {
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

fn check_label_key(key: &str, path: &Path<'_>, errors: &mut Errors) {
    let messages = text::qualified_name(key);
    if !messages.is_empty() {
        errors.invalid(path, key, messages.join("; "));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Error,
    End,
    ClosedPar,
    Comma,
    DoesNotExist,
    DoubleEquals,
    Equals,
    GreaterThan,
    Identifier,
    In,
    LessThan,
    NotEquals,
    NotIn,
    OpenPar,
}

fn keyword(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::ClosedPar,
        "," => Token::Comma,
        "!" => Token::DoesNotExist,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::GreaterThan,
        "in" => Token::In,
        "<" => Token::LessThan,
        "!=" => Token::NotEquals,
        "notin" => Token::NotIn,
        "(" => Token::OpenPar,
        _ => return None,
    })
}

fn is_symbol(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn scan(query: &str) -> Vec<(Token, String)> {
    let mut items = Vec::new();
    let mut rest = query;
    loop {
        rest = rest.trim_start_matches(is_space);
        let Some(first) = rest.chars().next().filter(|c| *c != '\0') else {
            items.push((Token::End, String::new()));
            return items;
        };
        if !is_symbol(first) {
            let end = rest
                .find(|c| is_symbol(c) || is_space(c) || c == '\0')
                .unwrap_or(rest.len());
            let word = &rest[..end];
            items.push((keyword(word).unwrap_or(Token::Identifier), word.to_owned()));
            rest = &rest[end..];
            continue;
        }
        // The longest run of symbols that is still an operator.
        let symbols = rest.find(|c| !is_symbol(c)).unwrap_or(rest.len());
        let mut found: Option<(Token, usize)> = None;
        let mut end = 0;
        while end < symbols {
            end += 1;
            match keyword(&rest[..end]) {
                Some(token) => found = Some((token, end)),
                None if found.is_some() => break,
                None => {}
            }
        }
        match found {
            Some((token, length)) => {
                items.push((token, rest[..length].to_owned()));
                rest = &rest[length..];
            }
            None => {
                let text = format!("error expected: keyword found '{}'", &rest[..symbols]);
                items.push((Token::Error, text));
                rest = &rest[symbols..];
            }
        }
    }
}

struct Parser {
    items: Vec<(Token, String)>,
    position: usize,
}

impl Parser {
    fn new(query: &str) -> Self {
        Self {
            items: scan(query),
            position: 0,
        }
    }

    fn at(&self, position: usize) -> (Token, String) {
        self.items
            .get(position)
            .cloned()
            .unwrap_or((Token::End, String::new()))
    }

    /// `in` and `notin` are operators only where one is expected.
    fn peek(&self) -> (Token, String) {
        match self.at(self.position) {
            (Token::In | Token::NotIn, text) => (Token::Identifier, text),
            other => other,
        }
    }

    fn next(&mut self) -> (Token, String) {
        let item = self.peek();
        self.position += 1;
        item
    }

    fn next_operator(&mut self) -> (Token, String) {
        let item = self.at(self.position);
        self.position += 1;
        item
    }

    fn parse(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Token::Identifier | Token::DoesNotExist, _) => {
                    let requirement = self.requirement().map_err(|problem| {
                        SelectorError(format!("unable to parse requirement: {problem}"))
                    })?;
                    requirements.push(requirement);
                    match self.next() {
                        (Token::End, _) => return Ok(requirements),
                        (Token::Comma, _) => {
                            let (token, text) = self.peek();
                            if !matches!(token, Token::Identifier | Token::DoesNotExist) {
                                return fail(format!(
                                    "found '{text}', expected: identifier after ','"
                                ));
                            }
                        }
                        (_, text) => {
                            return fail(format!(
                                "found '{text}', expected: ',' or 'end of string'"
                            ));
                        }
                    }
                }
                (Token::End, _) => return Ok(requirements),
                (_, text) => {
                    return fail(format!(
                        "found '{text}', expected: !, identifier, or 'end of string'"
                    ));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut key) = self.next();
        let negated = token == Token::DoesNotExist;
        if negated {
            (token, key) = self.next();
        }
        if token != Token::Identifier {
            return fail(format!("found '{key}', expected: identifier"));
        }
        let messages = text::qualified_name(&key);
        if !messages.is_empty() {
            let problem = FieldError::new(
                crate::field::FieldErrorKind::Invalid,
                "<nil>",
                key.as_str(),
                messages.join("; "),
            );
            return fail(problem.to_string());
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let (token, text) = self.next_operator();
        let operator = match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::GreaterThan => Operator::GreaterThan,
            Token::LessThan => Operator::LessThan,
            _ => {
                return fail(format!(
                    "found '{text}', expected: in, notin, =, ==, !=, gt, lt"
                ));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(&key, operator, values)
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let (token, text) = self.next();
        if token != Token::OpenPar {
            return fail(format!("found '{text}' expected: '('"));
        }
        let (token, text) = self.peek();
        match token {
            Token::Identifier | Token::Comma => {
                let values = self.identifiers()?;
                if self.next().0 != Token::ClosedPar {
                    return fail(format!("found '{text}', expected: ')'"));
                }
                Ok(values)
            }
            Token::ClosedPar => {
                self.position += 1;
                Ok(vec![String::new()])
            }
            _ => fail(format!("found '{text}', expected: ',', ')' or identifier")),
        }
    }

    fn identifiers(&mut self) -> Result<Vec<String>, SelectorError> {
        let mut values = Vec::new();
        loop {
            let (token, text) = self.next();
            match token {
                Token::Identifier => {
                    values.push(text);
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::ClosedPar, _) => return Ok(values),
                        (_, text) => return fail(format!("found '{text}', expected: ',' or ')'")),
                    }
                }
                Token::Comma => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.peek().0 {
                        Token::ClosedPar => {
                            values.push(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.position += 1;
                            values.push(String::new());
                        }
                        _ => {}
                    }
                }
                _ => return fail(format!("found '{text}', expected: ',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        let (token, text) = self.next();
        if token == Token::Identifier {
            return Ok(text);
        }
        fail(format!("found '{text}', expected: identifier"))
    }
}

fn fail<T>(text: String) -> Result<T, SelectorError> {
    Err(SelectorError(text))
}

/// `metadata.name=a,status.phase!=Running`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Sorted as the parts of the query sort.
    pub terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    /// `!=`
    pub negated: bool,
}

impl FieldSelector {
    /// # Errors
    /// The text of apimachinery's `fields.ParseSelector`. Whether a kind knows the fields is a second question:
    /// [`crate::resource::ResourceDef::check_field_selector`].
    pub fn parse(query: &str) -> Result<Self, SelectorError> {
        let mut parts = split_terms(query);
        parts.sort_unstable();
        let mut terms = Vec::new();
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let Some((field, operator, value)) = split_term(part) else {
                return fail(format!(
                    "invalid selector: '{query}'; can't understand '{part}'"
                ));
            };
            terms.push(FieldTerm {
                field: field.to_owned(),
                value: unescape(value)?,
                negated: operator == "!=",
            });
        }
        Ok(Self { terms })
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// `lookup` answers a field's value; a missing one counts as empty.
    pub fn matches_with<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms
            .iter()
            .all(|term| (lookup(&term.field).unwrap_or("") == term.value) != term.negated)
    }

    /// The value that a field must have to match, if the selector says one.
    pub fn requires(&self, field: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|term| term.field == field && !term.negated)
            .map(|term| term.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let operator = if term.negated { "!=" } else { "=" };
            write!(f, "{comma}{}{operator}", term.field)?;
            for c in term.value.chars() {
                if matches!(c, '\\' | ',' | '=') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// At commas without a backslash.
fn split_terms(query: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (i, c) in query.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&query[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&query[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, &str, &str)> {
    for (i, _) in term.char_indices() {
        for operator in ["!=", "==", "="] {
            if let Some(value) = term[i..].strip_prefix(operator) {
                return Some((&term[..i], operator, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return fail(format!(
                        "invalid field selector: invalid escape sequence: {sequence}"
                    ));
                }
            },
            ',' | '=' => {
                return fail(format!(
                    "invalid field selector: unescaped character in value: {}",
                    c as u32
                ));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(query: &str, matching: &[&[(&str, &str)]], other: &[&[(&str, &str)]]) {
        let selector = LabelSelector::parse(query).expect("valid");
        let labels = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        for pairs in matching {
            assert!(
                selector.matches(&labels(pairs)),
                "{query} should match {pairs:?}"
            );
        }
        for pairs in other {
            assert!(
                !selector.matches(&labels(pairs)),
                "{query} should not match {pairs:?}"
            );
        }
        let again = LabelSelector::parse(&selector.to_string()).expect("its own text");
        assert_eq!(again, selector);
    }

    #[test]
    fn label_queries() {
        check("", &[&[], &[("a", "b")]], &[]);
        check("a=b", &[&[("a", "b")]], &[&[], &[("a", "c")]]);
        check("a==b,c", &[&[("a", "b"), ("c", "")]], &[&[("a", "b")]]);
        check("a!=b", &[&[], &[("a", "c")]], &[&[("a", "b")]]);
        check("a in (b, c)", &[&[("a", "c")]], &[&[("a", "d")], &[]]);
        check(
            "a notin (b),!z",
            &[&[], &[("a", "c")]],
            &[&[("a", "b")], &[("z", "")]],
        );
        check("a in (,b)", &[&[("a", "")], &[("a", "b")]], &[&[]]);
        check(
            "a>1,a<5",
            &[&[("a", "3")]],
            &[&[("a", "5")], &[("a", "x")], &[]],
        );
        check("in in (in)", &[&[("in", "in")]], &[&[("in", "x")]]);
        check("a=", &[&[("a", "")]], &[&[], &[("a", "b")]]);
    }

    #[track_caller]
    fn refused(query: &str, expected: &str) {
        let text = LabelSelector::parse(query)
            .expect_err("refused")
            .to_string();
        assert!(text.contains(expected), "{query}: {text}");
    }

    #[test]
    fn refused_label_queries() {
        refused("a,", "found '', expected: identifier after ','");
        refused(
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        );
        refused(
            "=a",
            "found '=', expected: !, identifier, or 'end of string'",
        );
        refused(
            "a in b",
            "unable to parse requirement: found 'b' expected: '('",
        );
        refused("a in (b", "found '', expected: ',' or ')'");
        refused("a=b c", "found 'c', expected: ',' or 'end of string'");
        refused(
            "a>x",
            "for 'Gt', 'Lt' operators, the value must be an integer",
        );
        refused("a=-", "values[0][a]: Invalid value: \"-\"");
        refused("-=a", "<nil>: Invalid value: \"-\": name part must consist");
    }

    #[test]
    fn field_queries() {
        let selector = FieldSelector::parse(r"b!=2,a=x\,y,,c==3").expect("valid");
        assert_eq!(selector.requires("a"), Some("x,y"));
        assert_eq!(selector.to_string(), r"a=x\,y,b!=2,c=3");
        let value = |field: &str| match field {
            "a" => Some("x,y"),
            "c" => Some("3"),
            _ => None,
        };
        assert!(selector.matches_with(value));
        let refused = |query: &str| {
            FieldSelector::parse(query)
                .expect_err("refused")
                .to_string()
        };
        assert_eq!(
            refused("metadata.name"),
            "invalid selector: 'metadata.name'; can't understand 'metadata.name'"
        );
        assert_eq!(
            refused(r"a=\x"),
            r"invalid field selector: invalid escape sequence: \x"
        );
        assert_eq!(
            refused("a=b=c"),
            "invalid field selector: unescaped character in value: 61"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_selector_or_an_error(text in "[ a-cA-C0-2!=<>(),./_\\\\-]{0,40}|\\PC{0,40}", value in "\\PC{0,8}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let _matches = selector.matches_with(|_| Some(&value));
                let _matches = selector.matches_with(|_| None);
            }
            if let Ok(selector) = FieldSelector::parse(&text) {
                let _matches = selector.matches_with(|_| Some(&value));
            }
        }

        #[test]
        fn a_set_selects_itself_and_nothing_that_lacks_a_label(
            labels in proptest::collection::btree_map("[a-c]{1,3}", "[x-z]{0,3}", 1..5),
        ) {
            let selector = LabelSelector::from_set(&labels);
            prop_assert!(selector.matches(&labels));
            for key in labels.keys() {
                let mut fewer = labels.clone();
                fewer.remove(key);
                prop_assert!(!selector.matches(&fewer));
            }
            let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let parsed = LabelSelector::parse(&pairs.join(",")).expect("well-formed");
            prop_assert!(parsed.matches(&labels));
        }
    }
}
