//! The pass over the bytes.
//!
//! Two modes. *Typed* does what unmarshalling into Go's structs and back does. *Free* is for what Go keeps as
//! `map[string]interface{}`: custom resources, whose values stay as they are and lose only unknown fields.
//!
//! Errors of type do not end the pass: upstream checks the syntax of the whole document first, so a later syntax error
//! goes before an earlier type error. Of several type errors the first counts, but one that a type's own UnmarshalJSON
//! finds ends Go's decoding and goes before those that Go had only noted.

use std::borrow::Cow;

use base64::{Engine, alphabet, engine::GeneralPurpose, engine::GeneralPurposeConfig};
use serde_json::{Map, Number, Value};

use super::{
    DecodeError, Decoded, MAX_DEPTH, Problem, canonical_quantity, go_name, parse_micro_time,
    parse_time, syntax,
};
use crate::table::{Field, META_OBJECT, Node, Object, Shape, Zero};

/// Upstream keeps this many problems of one document.
const MAX_PROBLEMS: usize = 100;

pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

pub(super) fn read(bytes: &[u8], node: Node<'_>) -> Result<Decoded, DecodeError> {
    run(bytes, Some(node))
}

pub(super) fn read_untyped(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    run(bytes, None)
}

fn run(bytes: &[u8], node: Option<Node<'_>>) -> Result<Decoded, DecodeError> {
    // Go replaces invalid UTF-8 instead of refusing it.
    let text = String::from_utf8_lossy(bytes);
    let mut reader = Reader {
        text: &text,
        at: 0,
        depth: 0,
        path: Vec::new(),
        owner: "",
        duplicates: Vec::new(),
        unknown: Vec::new(),
        quiet: 0,
        failure: None,
    };
    let parsed = match node {
        Some(node) if node.ty().rules.is_some() => reader.free(Some(node)),
        Some(node) => reader.typed(node),
        None => reader.free(None),
    };
    let value = parsed.and_then(|value| reader.end().map(|()| value));
    let Ok(value) = value else {
        let text = syntax::complaint(bytes).unwrap_or_else(|| "invalid JSON".to_owned());
        return Err(DecodeError::Syntax(text));
    };
    if let Some(failure) = reader.failure {
        return Err(DecodeError::Type(failure.text()));
    }
    let mut problems = reader.duplicates;
    let mut unknown = reader.unknown;
    if node.is_some_and(|node| node.ty().rules.is_some()) {
        // Custom resources are pruned after they are parsed, with sorted paths.
        unknown.sort_by(|left, right| left.1.cmp(&right.1));
        problems.extend(unknown);
    } else {
        problems.extend(unknown);
        problems.sort_by_key(|(position, _)| *position);
    }
    let mut kept: Vec<Problem> = Vec::with_capacity(problems.len());
    for (_, problem) in problems {
        if kept.len() < MAX_PROBLEMS && !kept.contains(&problem) {
            kept.push(problem);
        }
    }
    Ok(Decoded {
        value,
        problems: kept,
    })
}

/// The text is not JSON; where and why is found out afterwards.
struct Malformed;

type Parsed<T> = Result<T, Malformed>;

#[derive(Clone)]
enum Step<'a> {
    /// A field of a struct: part of Go's error context.
    Field(&'a str),
    /// A key of a map.
    Key(Cow<'a, str>),
    Index(usize),
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    path: Vec<Step<'a>>,
    /// Go's name of the struct that holds the current field, without its package.
    owner: &'a str,
    /// With the position in the text, which is the order upstream reports them in.
    duplicates: Vec<(usize, Problem)>,
    unknown: Vec<(usize, Problem)>,
    /// Above 0 inside values that upstream unmarshals by hand, without strictness.
    quiet: usize,
    failure: Option<Failure>,
}

/// What is told of a value that does not fit.
struct Failure {
    what: What,
    /// Found by a type's own UnmarshalJSON: nothing later counts.
    last: bool,
}

enum What {
    Said(String),
    Mismatch {
        found: String,
        ty: String,
        /// `Container.spec.containers.tty`; empty at the top.
        field: String,
    },
}

impl Failure {
    fn text(self) -> String {
        match self.what {
            What::Said(text) => text,
            What::Mismatch { found, ty, field } if field.is_empty() => {
                format!("json: cannot unmarshal {found} into Go value of type {ty}")
            }
            What::Mismatch { found, ty, field } => {
                format!("json: cannot unmarshal {found} into Go struct field {field} of type {ty}")
            }
        }
    }
}

/// The word Go uses for a kind of JSON value.
pub fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Go's name of a type: `v1.ObjectMeta`, `map[string]string`, `[]v1.Container`.
fn go_type(node: Node<'_>) -> String {
    match node.shape() {
        Shape::Object(_)
        | Shape::FieldsV1
        | Shape::OrArray(_)
        | Shape::OrBool(_)
        | Shape::OrStringArray(_) => {
            let name = &node.ty().name;
            let mut parts = name.rsplit('.');
            match (parts.next(), parts.next()) {
                (Some(ty), Some(package)) => format!("{package}.{ty}"),
                _ => "map[string]interface {}".to_owned(),
            }
        }
        Shape::Map { values, .. } => match node.at(*values).shape() {
            Shape::Quantity => "v1.ResourceList".to_owned(),
            _ => format!("map[string]{}", go_type(node.at(*values))),
        },
        Shape::List { items, .. } => format!("[]{}", go_type(node.at(*items))),
        Shape::String | Shape::Time | Shape::MicroTime | Shape::Duration => "string".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Int32 | Shape::IntOrString => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Double => "float64".to_owned(),
        Shape::Bool => "bool".to_owned(),
        Shape::Quantity => "resource.Quantity".to_owned(),
        Shape::Any | Shape::Deduced => "interface {}".to_owned(),
        Shape::Raw => "runtime.RawExtension".to_owned(),
    }
}

fn short_name(node: Node<'_>) -> &str {
    node.ty().name.rsplit('.').next().unwrap_or_default()
}

impl<'a> Reader<'a> {
    // ---- tokens -------------------------------------------------------------------------------------------------

    fn space(&mut self) {
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// The first byte of what comes next.
    fn peek(&mut self) -> Parsed<u8> {
        self.space();
        self.text.as_bytes().get(self.at).copied().ok_or(Malformed)
    }

    fn end(&mut self) -> Parsed<()> {
        self.space();
        if self.at == self.text.len() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    fn expect(&mut self, byte: u8) -> Parsed<()> {
        if self.peek()? == byte {
            self.at += 1;
            return Ok(());
        }
        Err(Malformed)
    }

    fn literal(&mut self, word: &str) -> Parsed<()> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(());
        }
        Err(Malformed)
    }

    fn string(&mut self) -> Parsed<Cow<'a, str>> {
        self.expect(b'"')?;
        let text = self.text;
        let bytes = text.as_bytes();
        let start = self.at;
        loop {
            match bytes.get(self.at).copied().ok_or(Malformed)? {
                b'"' => {
                    let plain = &text[start..self.at];
                    self.at += 1;
                    return Ok(Cow::Borrowed(plain));
                }
                b'\\' => break,
                0..0x20 => return Err(Malformed),
                _ => self.at += 1,
            }
        }
        let mut unescaped = text[start..self.at].to_owned();
        loop {
            match bytes.get(self.at).copied().ok_or(Malformed)? {
                b'"' => {
                    self.at += 1;
                    return Ok(Cow::Owned(unescaped));
                }
                b'\\' => self.escape(&mut unescaped)?,
                0..0x20 => return Err(Malformed),
                _ => {
                    let from = self.at;
                    while !matches!(bytes.get(self.at), None | Some(b'"' | b'\\' | 0..0x20)) {
                        self.at += 1;
                    }
                    unescaped.push_str(&text[from..self.at]);
                }
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Parsed<()> {
        let byte = *self.text.as_bytes().get(self.at + 1).ok_or(Malformed)?;
        self.at += 2;
        out.push(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex()?;
                if (0xd800..0xdc00).contains(&first) && self.text[self.at..].starts_with("\\u") {
                    let back = self.at;
                    self.at += 2;
                    let second = self.hex()?;
                    if (0xdc00..0xe000).contains(&second) {
                        let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
                    } else {
                        self.at = back;
                        char::REPLACEMENT_CHARACTER
                    }
                } else {
                    char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER)
                }
            }
            _ => return Err(Malformed),
        });
        Ok(())
    }

    fn hex(&mut self) -> Parsed<u32> {
        let bytes = self
            .text
            .as_bytes()
            .get(self.at..self.at + 4)
            .ok_or(Malformed)?;
        let mut code = 0;
        for byte in bytes {
            code = code * 16 + char::from(*byte).to_digit(16).ok_or(Malformed)?;
        }
        self.at += 4;
        Ok(code)
    }

    /// The text of a number.
    fn number(&mut self) -> Parsed<&'a str> {
        let text = self.text;
        let bytes = text.as_bytes();
        let start = self.at;
        let digits = |at: &mut usize| {
            let from = *at;
            while bytes.get(*at).is_some_and(u8::is_ascii_digit) {
                *at += 1;
            }
            if *at > from { Ok(()) } else { Err(Malformed) }
        };
        let mut at = start + usize::from(bytes.get(start) == Some(&b'-'));
        if bytes.get(at) == Some(&b'0') {
            at += 1;
        } else {
            digits(&mut at)?;
        }
        if bytes.get(at) == Some(&b'.') {
            at += 1;
            digits(&mut at)?;
        }
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            at += 1;
            at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
            digits(&mut at)?;
        }
        self.at = at;
        Ok(&text[start..at])
    }

    fn enter(&mut self) -> Parsed<()> {
        self.at += 1;
        self.depth += 1;
        // The complaint's scanner has the same limit and says so.
        if self.depth > MAX_DEPTH {
            Err(Malformed)
        } else {
            Ok(())
        }
    }

    /// After a value inside `{}` or `[]`: whether another follows.
    fn more(&mut self, close: u8) -> Parsed<bool> {
        match self.peek()? {
            b',' => {
                self.at += 1;
                Ok(true)
            }
            byte if byte == close => {
                self.at += 1;
                self.depth -= 1;
                Ok(false)
            }
            _ => Err(Malformed),
        }
    }

    fn closes(&mut self, close: u8) -> Parsed<bool> {
        let closes = self.peek()? == close;
        if closes {
            self.at += 1;
            self.depth -= 1;
        }
        Ok(closes)
    }

    /// Passes over one value, which is checked for syntax, and gives its text.
    fn skip(&mut self) -> Parsed<&'a str> {
        self.space();
        let start = self.at;
        let mut closers: Vec<u8> = Vec::new();
        loop {
            match self.peek()? {
                open @ (b'{' | b'[') => {
                    let close = if open == b'{' { b'}' } else { b']' };
                    self.enter()?;
                    if !self.closes(close)? {
                        closers.push(close);
                        if close == b'}' {
                            self.string()?;
                            self.expect(b':')?;
                        }
                        continue;
                    }
                }
                b'"' => {
                    self.string()?;
                }
                b't' => self.literal("true")?,
                b'f' => self.literal("false")?,
                b'n' => self.literal("null")?,
                _ => {
                    self.number()?;
                }
            }
            loop {
                let Some(close) = closers.last().copied() else {
                    return Ok(&self.text[start..self.at]);
                };
                if self.more(close)? {
                    if close == b'}' {
                        self.string()?;
                        self.expect(b':')?;
                    }
                    break;
                }
                closers.pop();
            }
        }
    }

    // ---- reports ------------------------------------------------------------------------------------------------

    fn path_to(&self, last: &str) -> String {
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Field(_) | Step::Key(_) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(match step {
                        Step::Field(name) => name,
                        Step::Key(key) => key,
                        Step::Index(_) => "",
                    });
                }
                Step::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(last);
        path
    }

    fn unknown(&mut self, key: &str) {
        if self.quiet == 0 && self.unknown.len() < MAX_PROBLEMS {
            let problem = Problem::UnknownField(self.path_to(key));
            self.unknown.push((self.at, problem));
        }
    }

    fn duplicate(&mut self, key: &str) {
        if self.quiet == 0 && self.duplicates.len() < MAX_PROBLEMS {
            let problem = Problem::DuplicateField(self.path_to(key));
            self.duplicates.push((self.at, problem));
        }
    }

    fn fail(&mut self, what: impl FnOnce(&Self) -> What, last: bool) {
        let earlier = self.failure.as_ref();
        if earlier.is_none_or(|earlier| last && !earlier.last) {
            let what = what(self);
            self.failure = Some(Failure { what, last });
        }
    }

    /// The words of a type's own UnmarshalJSON.
    fn refuse(&mut self, text: impl FnOnce() -> String) {
        self.fail(|_| What::Said(text()), true);
    }

    fn mismatch(&mut self, found: String, ty: String, last: bool) {
        let what = |reader: &Self| What::Mismatch {
            found,
            ty,
            field: reader.field(),
        };
        self.fail(what, last);
    }

    /// Where the reader is, in Go's words: the innermost struct's name, and the fields that lead there.
    fn field(&self) -> String {
        let fields: Vec<&str> = self
            .path
            .iter()
            .filter_map(|step| match step {
                Step::Field(name) => Some(*name),
                Step::Key(_) | Step::Index(_) => None,
            })
            .collect();
        match fields.is_empty() {
            true => String::new(),
            false => format!("{}.{}", self.owner, fields.join(".")),
        }
    }

    /// Passes over a value of the wrong kind.
    fn wrong(&mut self, ty: impl FnOnce() -> String, last: bool) -> Parsed<Value> {
        let found = match self.peek()? {
            b'{' => "object".to_owned(),
            b'[' => "array".to_owned(),
            b'"' => "string".to_owned(),
            b't' | b'f' => "bool".to_owned(),
            _ => {
                let back = self.at;
                let number = self.number()?;
                self.at = back;
                format!("number {number}")
            }
        };
        // Go names a number's text only where the number itself does not fit.
        let ty = ty();
        let found = match ty.as_str() {
            "int32" | "int64" | "float64" => found,
            _ if found.starts_with("number") => "number".to_owned(),
            _ => found,
        };
        let ty = match ty.as_str() {
            "string" if !last => self.go_name().map(str::to_owned).unwrap_or(ty),
            "[]string" => self.go_name().map(|name| format!("[]{name}")).unwrap_or(ty),
            _ => ty,
        };
        self.mismatch(found, ty, last);
        self.skip()?;
        Ok(Value::Null)
    }

    /// The named type of the current field's texts.
    fn go_name(&self) -> Option<&'static str> {
        let field = self.path.iter().rev().find_map(|step| match step {
            Step::Field(name) => Some(*name),
            Step::Key(_) | Step::Index(_) => None,
        })?;
        go_name(self.owner, field)
    }

    // ---- typed --------------------------------------------------------------------------------------------------

    /// A value of a type; `Null` for null, whatever the type.
    fn typed(&mut self, node: Node<'a>) -> Parsed<Value> {
        let first = self.peek()?;
        if first == b'n' {
            self.literal("null")?;
            return Ok(Value::Null);
        }
        match node.shape() {
            Shape::Object(object) if first == b'{' => self.typed_object(node, object),
            Shape::Map { values, .. } if first == b'{' => self.typed_map(node.at(*values)),
            Shape::List { items, .. } if first == b'[' => self.typed_list(node.at(*items)),
            Shape::String if first == b'"' => Ok(Value::String(self.string()?.into_owned())),
            Shape::Bool if first == b't' => {
                self.literal("true")?;
                Ok(Value::Bool(true))
            }
            Shape::Bool if first == b'f' => {
                self.literal("false")?;
                Ok(Value::Bool(false))
            }
            Shape::Int32 | Shape::Int64 if first == b'-' || first.is_ascii_digit() => {
                let text = self.number()?;
                let wide = text.parse::<i64>().ok();
                let fits = match node.shape() {
                    Shape::Int32 => wide.filter(|wide| i32::try_from(*wide).is_ok()),
                    _ => wide,
                };
                if fits.is_none() {
                    self.mismatch(format!("number {text}"), go_type(node), false);
                }
                Ok(fits.map_or(Value::Null, Value::from))
            }
            Shape::Double if first == b'-' || first.is_ascii_digit() => {
                let text = self.number()?;
                Ok(self.free_number(text))
            }
            Shape::Bytes if first == b'"' => {
                let text = self.string()?;
                Ok(self.bytes(&text))
            }
            Shape::Quantity => {
                let raw = self.skip()?;
                let inner = raw
                    .strip_prefix('"')
                    .and_then(|raw| raw.strip_suffix('"'))
                    .unwrap_or(raw);
                match canonical_quantity(inner.trim()) {
                    Ok(quantity) => Ok(Value::String(quantity)),
                    Err(error) => {
                        self.refuse(|| error.to_string());
                        Ok(Value::Null)
                    }
                }
            }
            shape @ (Shape::Time | Shape::MicroTime) => {
                if first != b'"' {
                    return self.wrong_by_hand("string");
                }
                let text = self.string()?;
                let parsed = match shape {
                    Shape::Time => parse_time(&text),
                    _ => parse_micro_time(&text),
                };
                match parsed {
                    Ok(time) => Ok(Value::String(time)),
                    Err(error) => {
                        self.refuse(|| error);
                        Ok(Value::Null)
                    }
                }
            }
            Shape::Duration if first == b'"' => Ok(Value::String(self.string()?.into_owned())),
            Shape::Duration => self.wrong_by_hand("string"),
            Shape::IntOrString => match first {
                b'"' => Ok(Value::String(self.string()?.into_owned())),
                b'-' | b'0'..=b'9' => {
                    let text = self.number()?;
                    let number = text.parse::<i32>().ok();
                    if number.is_none() {
                        self.mismatch(format!("number {text}"), "int32".to_owned(), true);
                    }
                    Ok(number.map_or(Value::Null, Value::from))
                }
                _ => self.wrong_by_hand("int32"),
            },
            Shape::Any | Shape::Deduced | Shape::Raw | Shape::FieldsV1 => {
                self.quiet += 1;
                let value = self.free(None);
                self.quiet -= 1;
                value
            }
            Shape::OrArray(inner) => match first {
                b'{' => self.by_hand(|reader| reader.typed(node.at(*inner))),
                b'[' => self.by_hand(|reader| reader.typed_list(node.at(*inner))),
                _ => {
                    self.skip()?;
                    Ok(Value::Null)
                }
            },
            Shape::OrBool(inner) => match first {
                b'{' => self.by_hand(|reader| reader.typed(node.at(*inner))),
                b't' | b'f' => self.free(None),
                _ => {
                    self.skip()?;
                    self.refuse(|| "boolean or JSON schema expected".to_owned());
                    Ok(Value::Null)
                }
            },
            Shape::OrStringArray(inner) => match first {
                b'{' => self.by_hand(|reader| reader.typed(node.at(*inner))),
                _ => self.free(None),
            },
            _ => self.wrong(|| go_type(node), false),
        }
    }

    /// A value that upstream's UnmarshalJSON decodes once more, without strictness. The outer decoder puts its own place
    /// into a mismatch that it finds.
    fn by_hand(&mut self, read: impl FnOnce(&mut Self) -> Parsed<Value>) -> Parsed<Value> {
        let earlier = self.failure.take();
        self.quiet += 1;
        let value = read(self);
        self.quiet -= 1;
        let found = self.failure.take();
        self.failure = earlier;
        match found.map(|found| found.what) {
            None => {}
            Some(What::Said(text)) => self.refuse(|| text),
            Some(What::Mismatch { found, ty, .. }) => self.mismatch(found, ty, true),
        }
        value
    }

    /// A value of the wrong kind for a type with an UnmarshalJSON of its own.
    fn wrong_by_hand(&mut self, ty: &'static str) -> Parsed<Value> {
        self.wrong(|| ty.to_owned(), true)
    }

    fn bytes(&mut self, text: &str) -> Value {
        let stripped: Cow<'_, str> = if text.contains(['\r', '\n']) {
            text.replace(['\r', '\n'], "").into()
        } else {
            text.into()
        };
        match BASE64.decode(stripped.as_bytes()) {
            Ok(bytes) => Value::String(BASE64.encode(bytes)),
            Err(error) => {
                let offset = match error {
                    base64::DecodeError::InvalidByte(offset, _)
                    | base64::DecodeError::InvalidLastSymbol(offset, _) => offset,
                    base64::DecodeError::InvalidLength(length) => length / 4 * 4,
                    base64::DecodeError::InvalidPadding => stripped.len() / 4 * 4,
                };
                let text = format!("illegal base64 data at input byte {offset}");
                self.fail(|_| What::Said(text), false);
                Value::Null
            }
        }
    }

    fn typed_object(&mut self, node: Node<'a>, object: &'a Object) -> Parsed<Value> {
        self.enter()?;
        let mut map = Map::new();
        let outer = self.owner;
        // Which fields were there, null included. No built-in type has more than 128.
        let mut seen = 0u128;
        if !self.closes(b'}')? {
            loop {
                self.peek()?;
                let key = self.string()?;
                self.expect(b':')?;
                match object
                    .fields
                    .binary_search_by(|field| field.name.as_str().cmp(&key))
                {
                    Ok(index) => {
                        let field = &object.fields[index];
                        let bit = 1u128.checked_shl(index as u32).unwrap_or(0);
                        if seen & bit != 0 {
                            self.duplicate(&key);
                        }
                        seen |= bit;
                        self.owner = short_name(node);
                        self.path.push(Step::Field(&field.name));
                        let value = self.typed(node.at(field.ty));
                        self.path.pop();
                        let value = value?;
                        if keeps(field, &value) {
                            map.insert(field.name.clone(), value);
                        } else if !value.is_null() {
                            map.remove(&field.name);
                        }
                    }
                    Err(_) => {
                        self.unknown(&key);
                        self.skip()?;
                    }
                }
                if !self.more(b'}')? {
                    break;
                }
            }
        }
        self.owner = outer;
        fill(node, object, &mut map);
        Ok(Value::Object(map))
    }

    fn typed_map(&mut self, values: Node<'a>) -> Parsed<Value> {
        self.enter()?;
        let mut map = Map::new();
        if !self.closes(b'}')? {
            loop {
                self.peek()?;
                let key = self.string()?;
                self.expect(b':')?;
                if map.contains_key(key.as_ref()) {
                    self.duplicate(&key);
                }
                self.path.push(Step::Key(key.clone()));
                let value = self.typed(values);
                self.path.pop();
                let mut value = value?;
                if value.is_null() {
                    value = zero(values);
                }
                map.insert(key.into_owned(), value);
                if !self.more(b'}')? {
                    break;
                }
            }
        }
        Ok(Value::Object(map))
    }

    fn typed_list(&mut self, items: Node<'a>) -> Parsed<Value> {
        self.enter()?;
        let mut list = Vec::new();
        if !self.closes(b']')? {
            loop {
                self.path.push(Step::Index(list.len()));
                let value = self.typed(items);
                self.path.pop();
                let mut value = value?;
                if value.is_null() {
                    value = zero(items);
                }
                list.push(value);
                if !self.more(b']')? {
                    break;
                }
            }
        }
        Ok(Value::Array(list))
    }

    // ---- free ---------------------------------------------------------------------------------------------------

    fn free_number(&mut self, text: &str) -> Value {
        if let Ok(integer) = text.parse::<i64>() {
            return Value::from(integer);
        }
        let float = text.parse::<f64>().unwrap_or(f64::INFINITY);
        if !float.is_finite() {
            self.mismatch(format!("number {text}"), "float64".to_owned(), false);
            return Value::Null;
        }
        // Go writes a float without a fraction as an integer.
        if float.fract() == 0.0 && float.abs() < 9.0e15 {
            return Value::from(float as i64);
        }
        Number::from_f64(float).map_or(Value::Null, Value::Number)
    }

    /// A value that keeps its form. With a type, fields that it does not know go.
    fn free(&mut self, node: Option<Node<'a>>) -> Parsed<Value> {
        match self.peek()? {
            b'{' => {
                if let Some(node) = node.filter(|node| node.ty().name == META_OBJECT) {
                    return self.typed(node);
                }
                self.free_object(node)
            }
            b'[' => {
                let items = node.and_then(|node| match node.shape() {
                    Shape::List { items, .. } => Some(node.at(*items)),
                    _ => None,
                });
                self.enter()?;
                let mut list = Vec::new();
                if !self.closes(b']')? {
                    loop {
                        self.path.push(Step::Index(list.len()));
                        let value = self.free(items);
                        self.path.pop();
                        list.push(value?);
                        if !self.more(b']')? {
                            break;
                        }
                    }
                }
                Ok(Value::Array(list))
            }
            b'"' => Ok(Value::String(self.string()?.into_owned())),
            b't' => self.literal("true").map(|()| Value::Bool(true)),
            b'f' => self.literal("false").map(|()| Value::Bool(false)),
            b'n' => self.literal("null").map(|()| Value::Null),
            _ => {
                let text = self.number()?;
                Ok(self.free_number(text))
            }
        }
    }

    fn free_object(&mut self, node: Option<Node<'a>>) -> Parsed<Value> {
        self.enter()?;
        let mut map = Map::new();
        if self.closes(b'}')? {
            return Ok(Value::Object(map));
        }
        loop {
            self.peek()?;
            let key = self.string()?;
            self.expect(b':')?;
            // `None`: unknown and to be dropped. `Some(None)`: kept, of no type.
            let known = match node.map(Node::shape) {
                Some(Shape::Object(object)) => match object.field(&key) {
                    Some(field) => node.map(|node| Some(node.at(field.ty))),
                    None if object.preserve_unknown => Some(None),
                    None => None,
                },
                Some(Shape::Map { values, .. }) => node.map(|node| Some(node.at(*values))),
                _ => Some(None),
            };
            match known {
                Some(ty) => {
                    if map.contains_key(key.as_ref()) {
                        self.duplicate(&key);
                    }
                    self.path.push(Step::Key(key.clone()));
                    let value = self.free(ty);
                    self.path.pop();
                    map.insert(key.into_owned(), value?);
                }
                None => {
                    self.unknown(&key);
                    // Duplicates inside are reported all the same: upstream prunes after it has parsed.
                    self.path.push(Step::Key(key));
                    let skipped = self.free(None);
                    self.path.pop();
                    skipped?;
                }
            }
            if !self.more(b'}')? {
                return Ok(Value::Object(map));
            }
        }
    }
}

/// Whether the round trip keeps a value of a field.
fn keeps(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => false,
        _ if field.zero != Zero::Omit => true,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Adds the fields that Go's structs always show.
fn fill(node: Node<'_>, object: &Object, map: &mut Map<String, Value>) {
    for field in &object.fields {
        match field.zero {
            Zero::Keep if !map.contains_key(&field.name) => {
                map.insert(field.name.clone(), zero(node.at(field.ty)));
            }
            Zero::Null if !map.contains_key(&field.name) => {
                map.insert(field.name.clone(), Value::Null);
            }
            _ => {}
        }
    }
}

/// Brings a value whose parts are right into the form that decoding gives: nulls and dropped empties go, what is always
/// there comes. For values that a typed struct of ours was turned into. `before` is what the struct was read from: an
/// empty list or map that is always shown becomes null again if it was null or missing there.
pub(super) fn complete(value: &mut Value, before: Option<&Value>, node: Node<'_>) {
    match (node.shape(), value) {
        (Shape::Object(object), Value::Object(map)) => {
            map.retain(|name, value| {
                let Some(field) = object.field(name) else {
                    return true;
                };
                let before = before.map(|before| before.get(name).unwrap_or(&Value::Null));
                complete(value, before, node.at(field.ty));
                let hollow = match value {
                    Value::Array(list) => list.is_empty(),
                    Value::Object(map) => {
                        map.is_empty() && matches!(node.at(field.ty).shape(), Shape::Map { .. })
                    }
                    _ => false,
                };
                let was_null = before.is_some_and(Value::is_null);
                keeps(field, value) && !(field.zero == Zero::Keep && hollow && was_null)
            });
            fill(node, object, map);
        }
        (Shape::Map { values, .. }, Value::Object(map)) => {
            let values = node.at(*values);
            for (name, value) in map {
                complete(value, before.and_then(|before| before.get(name)), values);
                if value.is_null() {
                    *value = zero(values);
                }
            }
        }
        (Shape::List { items, .. }, Value::Array(list)) => {
            let items = node.at(*items);
            // Items are only the same ones if none came or went.
            let before = before
                .and_then(Value::as_array)
                .filter(|old| old.len() == list.len());
            for (at, item) in list.iter_mut().enumerate() {
                complete(item, before.and_then(|before| before.get(at)), items);
                if item.is_null() {
                    *item = zero(items);
                }
            }
        }
        (Shape::OrArray(inner) | Shape::OrBool(inner) | Shape::OrStringArray(inner), value) => {
            match value {
                Value::Object(_) => complete(value, before, node.at(*inner)),
                Value::Array(list) => {
                    for item in list.iter_mut().filter(|item| item.is_object()) {
                        complete(item, None, node.at(*inner));
                    }
                }
                _ => {}
            }
        }
        _ => {}
    }
}

pub(super) fn forget_empty(value: &mut Value, node: Node<'_>) {
    match (node.shape(), value) {
        (Shape::Object(object), Value::Object(map)) => map.retain(|name, value| {
            let Some(field) = object.field(name) else {
                return true;
            };
            let ty = node.at(field.ty);
            let hollow = match value {
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty() && matches!(ty.shape(), Shape::Map { .. }),
                _ => false,
            };
            if !hollow {
                forget_empty(value, ty);
                return true;
            }
            *value = Value::Null;
            field.zero == Zero::Keep
        }),
        (Shape::Map { values, .. }, Value::Object(map)) => {
            let values = node.at(*values);
            map.values_mut()
                .for_each(|value| forget_empty(value, values));
        }
        (Shape::List { items, .. }, Value::Array(list)) => {
            let items = node.at(*items);
            list.iter_mut().for_each(|item| forget_empty(item, items));
        }
        _ => {}
    }
}

/// What Go's zero value of a type looks like in JSON.
pub(crate) fn zero(node: Node<'_>) -> Value {
    match node.shape() {
        Shape::Object(object) => {
            let mut map = Map::new();
            fill(node, object, &mut map);
            Value::Object(map)
        }
        Shape::String | Shape::Duration => Value::String(String::new()),
        Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => Value::from(0),
        Shape::Bool => Value::Bool(false),
        Shape::Quantity => Value::String("0".to_owned()),
        Shape::Map { .. }
        | Shape::List { .. }
        | Shape::Bytes
        | Shape::Time
        | Shape::MicroTime
        | Shape::Any
        | Shape::Deduced
        | Shape::Raw
        | Shape::FieldsV1
        | Shape::OrArray(_)
        | Shape::OrBool(_)
        | Shape::OrStringArray(_) => Value::Null,
    }
}
