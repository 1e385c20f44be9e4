//! `x-kubernetes-validations`: rules in CEL (apiextensions `schema/cel`).
//!
//! Compiled once with the row, evaluated for each write. The CEL runtime is the `cel` crate with the Kubernetes
//! functions of `kube-cel`; which value a rule sees is said in `value`, whether a rule may stand in a definition in
//! `check`, what it may cost in `cost`.

pub mod check;
mod cost;
mod types;

mod value;

use std::{collections::BTreeMap, sync::Arc};

use kube_cel::{
    KubeCelExt,
    cel::{
        self, Context, ExecutionError, IdedExpr,
        common::ast::{EntryExpr, Expr},
        parser::{ParseErrors, Parser},
    },
};
use serde_json::Value;

use super::{list, path, text};
use crate::field::{Bad, Errors, FieldError, FieldErrorKind};

/// Most of what a `messageExpression` may say; longer texts give way to `message` (upstream the same).
const MAX_MESSAGE_BYTES: usize = 5 * 1024;
/// Deepest schema whose rules are looked at.
const MAX_DEPTH: usize = 100;

/// The rules of a schema.
#[derive(Default)]
pub struct Rules {
    root: Option<Arc<Node>>,
}

/// A place of the schema at or below which rules stand.
#[derive(Default)]
pub(super) struct Node {
    pub shape: value::Shape,
    rules: Vec<Rule>,
    /// Below which rules stand; the rest is in `shape` only.
    properties: BTreeMap<String, Node>,
    items: Option<Box<Node>>,
    additional: Option<Box<Node>>,
    list_map_keys: Vec<String>,
    keyed: bool,
    /// `object` or `array`: such values are too long for a message.
    composite: bool,
}

struct Rule {
    /// As it stands in the definition, for messages.
    text: String,
    program: Option<Program>,
    message: String,
    message_program: Option<Program>,
    reason: FieldErrorKind,
    /// Below the node; `.a[b]`, empty for none.
    field: String,
    optional_old: bool,
}

/// A parsed expression; with `optionalOldSelf`, one for each case.
struct Program {
    expression: IdedExpr,
    /// `oldSelf` as `optional.none()`.
    without_old: Option<IdedExpr>,
    uses_old: bool,
}

/// Parses an expression with Kubernetes' syntax options.
pub(super) fn parse(source: &str) -> Result<IdedExpr, ParseErrors> {
    Parser::default().enable_optional_syntax(true).parse(source)
}

pub(super) fn uses_old_self(expression: &IdedExpr) -> bool {
    expression.references().has_variable("oldSelf")
}

impl Program {
    fn compile(source: &str, optional_old: bool) -> Option<Self> {
        let expression = parse(source).ok()?;
        let uses_old = uses_old_self(&expression);
        if !optional_old || !uses_old {
            return Some(Self {
                expression,
                without_old: None,
                uses_old,
            });
        }
        let (mut with, mut without) = (expression.clone(), expression);
        replace_old_self(&mut with, &parse("optional.of(oldSelf)").ok()?);
        replace_old_self(&mut without, &parse("optional.none()").ok()?);
        Some(Self {
            expression: with,
            without_old: Some(without),
            uses_old,
        })
    }

    fn run(&self, context: &Context<'_>, has_old: bool) -> Result<cel::Value, ExecutionError> {
        let expression = match &self.without_old {
            Some(without) if !has_old => without,
            _ => &self.expression,
        };
        cel::Value::resolve(expression, context)
    }
}

/// Puts an expression in place of the variable.
fn replace_old_self(at: &mut IdedExpr, with: &IdedExpr) {
    match &mut at.expr {
        Expr::Ident(name) if name == "oldSelf" => at.expr = with.expr.clone(),
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
        Expr::Call(call) => {
            if let Some(target) = &mut call.target {
                replace_old_self(target, with);
            }
            for argument in &mut call.args {
                replace_old_self(argument, with);
            }
        }
        Expr::Comprehension(comprehension) => {
            for part in [
                &mut comprehension.iter_range,
                &mut comprehension.accu_init,
                &mut comprehension.loop_cond,
                &mut comprehension.loop_step,
                &mut comprehension.result,
            ] {
                replace_old_self(part, with);
            }
        }
        Expr::List(list) => {
            for element in &mut list.elements {
                replace_old_self(element, with);
            }
        }
        Expr::Map(map) => {
            for entry in &mut map.entries {
                replace_in_entry(&mut entry.expr, with);
            }
        }
        Expr::Struct(object) => {
            for entry in &mut object.entries {
                replace_in_entry(&mut entry.expr, with);
            }
        }
        Expr::Select(select) => replace_old_self(&mut select.operand, with),
    }
}

fn replace_in_entry(entry: &mut EntryExpr, with: &IdedExpr) {
    match entry {
        EntryExpr::StructField(field) => replace_old_self(&mut field.value, with),
        EntryExpr::MapEntry(entry) => {
            replace_old_self(&mut entry.key, with);
            replace_old_self(&mut entry.value, with);
        }
    }
}

impl Rules {
    /// The rules of an `openAPIV3Schema`. A rule that does not compile never holds; validation of the definition refuses
    /// it.
    pub fn compile(schema: &Value) -> Self {
        Self {
            root: Node::compile(schema, true, 0).map(Arc::new),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Adds what does not hold. `new` and `old` must fit the schema.
    pub fn validate(&self, new: &Value, old: Option<&Value>, errors: &mut Errors) {
        if let Some(root) = &self.root {
            root.validate(new, old, "", errors);
        }
    }
}

thread_local! {
    /// All functions. A context is not shared between threads.
    static FUNCTIONS: Context<'static> = Context::default().with_all();
}

impl Node {
    fn compile(schema: &Value, root: bool, depth: usize) -> Option<Self> {
        if depth > MAX_DEPTH || !schema.is_object() {
            return None;
        }
        let below = |schema: &Value| Self::compile(schema, false, depth + 1);
        let mut properties = BTreeMap::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(node) = below(property) {
                properties.insert(name.clone(), node);
            }
        }
        let items = below(&schema["items"]).map(Box::new);
        let additional = below(&schema["additionalProperties"]).map(Box::new);
        let mut rules: Vec<Rule> = list(&schema["x-kubernetes-validations"])
            .map(Rule::compile)
            .collect();
        // Rules may stand in the parts of an `allOf` too, about the same value.
        for part in list(&schema["allOf"]) {
            rules.extend(list(&part["x-kubernetes-validations"]).map(Rule::compile));
        }
        if rules.is_empty() && properties.is_empty() && items.is_none() && additional.is_none() {
            return None;
        }
        let keys = list(&schema["x-kubernetes-list-map-keys"]).filter_map(Value::as_str);
        Some(Self {
            // Only a rule needs to know what the value looks like to CEL.
            shape: if rules.is_empty() {
                value::Shape::default()
            } else {
                value::Shape::of(schema, root, depth)
            },
            rules,
            properties,
            items,
            additional,
            list_map_keys: keys.map(str::to_owned).collect(),
            keyed: schema["x-kubernetes-list-type"] == "map",
            composite: matches!(text(schema, "type"), "object" | "array"),
        })
    }

    fn validate(&self, new: &Value, old: Option<&Value>, path: &str, errors: &mut Errors) {
        if new.is_null() {
            return;
        }
        if !self.rules.is_empty() {
            self.validate_here(new, old, path, errors);
        }
        match new {
            Value::Object(map) => {
                for (name, value) in map {
                    let node = match self.properties.get(name) {
                        Some(node) => Some(node),
                        None if !self.shape.declares(name) => self.additional.as_deref(),
                        None => None,
                    };
                    if let Some(node) = node {
                        let old = old.and_then(|old| old.get(name));
                        let step = if self.properties.contains_key(name) {
                            join(path, name)
                        } else {
                            format!("{path}[{name}]")
                        };
                        node.validate(value, old, &step, errors);
                    }
                }
            }
            Value::Array(items) => {
                let Some(node) = &self.items else {
                    return;
                };
                for (at, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| self.old_item(item, old));
                    node.validate(item, old, &format!("{path}[{at}]"), errors);
                }
            }
            _ => {}
        }
    }

    /// What an item was before: only the items of keyed lists have an identity.
    fn old_item<'a>(&self, item: &Value, old: &'a Value) -> Option<&'a Value> {
        if !self.keyed {
            return None;
        }
        let same = |other: &&Value| {
            let mut keys = self.list_map_keys.iter();
            keys.all(|key| other.get(key) == item.get(key))
        };
        old.as_array()?.iter().find(same)
    }

    fn validate_here(&self, new: &Value, old: Option<&Value>, path: &str, errors: &mut Errors) {
        let old = old.filter(|old| !old.is_null());
        let shown = || {
            if self.composite {
                Bad::omitted()
            } else {
                Bad::from(new.clone())
            }
        };
        let at = if path.is_empty() { "<nil>" } else { path };
        FUNCTIONS.with(|functions| {
            let mut context = functions.new_inner_scope();
            context.add_variable_from_value("self", self.shape.value(new));
            if let Some(old) = old {
                context.add_variable_from_value("oldSelf", self.shape.value(old));
            }
            for rule in &self.rules {
                let Some(program) = &rule.program else {
                    let detail = format!("rule compile error: {}", rule.describe());
                    errors.push(FieldError::new(
                        FieldErrorKind::Invalid,
                        at,
                        shown(),
                        detail,
                    ));
                    continue;
                };
                if program.uses_old && old.is_none() && !rule.optional_old {
                    continue;
                }
                match program.run(&context, old.is_some()) {
                    Ok(cel::Value::Bool(true)) => {}
                    Ok(_) => {
                        // What was wrong before and did not change may stay.
                        if !program.uses_old && old == Some(new) {
                            continue;
                        }
                        let detail = rule.message(&context, old.is_some());
                        let field = rule.field_below(path);
                        let bad = if rule.field.is_empty() {
                            shown()
                        } else {
                            Bad::omitted()
                        };
                        errors.push(FieldError::new(rule.reason, field, bad, detail));
                    }
                    Err(error) => {
                        if !program.uses_old && old == Some(new) {
                            continue;
                        }
                        let detail = rule.failure(&error);
                        errors.push(FieldError::new(
                            FieldErrorKind::Invalid,
                            at,
                            shown(),
                            detail,
                        ));
                    }
                }
            }
        });
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

impl Rule {
    fn compile(rule: &Value) -> Self {
        let source = text(rule, "rule");
        let optional_old = rule["optionalOldSelf"] == true;
        let message_expression = text(rule, "messageExpression").trim();
        let reason = match text(rule, "reason") {
            "FieldValueRequired" => FieldErrorKind::Required,
            "FieldValueForbidden" => FieldErrorKind::Forbidden,
            "FieldValueDuplicate" => FieldErrorKind::Duplicate,
            _ => FieldErrorKind::Invalid,
        };
        Self {
            text: source.trim().to_owned(),
            program: Program::compile(source, optional_old),
            message: text(rule, "message").trim().to_owned(),
            message_program: (!message_expression.is_empty())
                .then(|| Program::compile(message_expression, optional_old))
                .flatten(),
            reason,
            field: normalized_field(text(rule, "fieldPath").trim()),
            optional_old,
        }
    }

    /// What stands for the rule in a message about its failure.
    fn describe(&self) -> &str {
        if self.message.is_empty() {
            &self.text
        } else {
            &self.message
        }
    }

    fn message(&self, context: &Context<'_>, has_old: bool) -> String {
        if let Some(program) = &self.message_program
            && let Ok(cel::Value::String(said)) = program.run(context, has_old)
        {
            let said = said.trim();
            if !said.is_empty() && said.len() <= MAX_MESSAGE_BYTES && !said.contains('\n') {
                return said.to_owned();
            }
        }
        if self.message.is_empty() {
            format!("failed rule: {}", self.text)
        } else {
            self.message.clone()
        }
    }

    fn field_below(&self, path: &str) -> String {
        match (path.is_empty(), self.field.is_empty()) {
            (true, true) => "<nil>".to_owned(),
            (true, false) => self.field.trim_start_matches('.').to_owned(),
            (false, true) => path.to_owned(),
            (false, false) => format!("{path}{}", self.field),
        }
    }

    fn failure(&self, error: &ExecutionError) -> String {
        let rule = self.describe();
        match error {
            ExecutionError::NoSuchOverload
            | ExecutionError::UnexpectedType { .. }
            | ExecutionError::UnsupportedBinaryOperator(..)
            | ExecutionError::ValuesNotComparable(..)
            | ExecutionError::UnsupportedUnaryOperator(..) => format!(
                "'no such overload': call arguments did not match a supported operator, function or macro signature \
                 for rule: {rule}"
            ),
            ExecutionError::NoSuchKey(key) => {
                format!("no such key: {key} evaluating rule: {rule}")
            }
            ExecutionError::IndexOutOfBounds(index) => {
                let index = match index {
                    cel::Value::Int(index) => index.to_string(),
                    other => format!("{other:?}"),
                };
                format!("index out of bounds: {index} evaluating rule: {rule}")
            }
            ExecutionError::DivisionByZero(_) => {
                format!("division by zero evaluating rule: {rule}")
            }
            ExecutionError::RemainderByZero(_) => {
                format!("modulus by zero evaluating rule: {rule}")
            }
            ExecutionError::FunctionError { message, .. } => {
                format!("{message} evaluating rule: {rule}")
            }
            other => format!("{other} evaluating rule: {rule}"),
        }
    }
}

/// `.a['b.c']` as a field path is shown: `.a[b.c]`; a quoted name that is plain becomes `.name`.
fn normalized_field(given: &str) -> String {
    let Some(parts) = path::parts(given) else {
        return given.to_owned();
    };
    let mut out = String::new();
    for part in parts {
        let mut bytes = part.bytes();
        let plain = bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if plain {
            out.push('.');
            out.push_str(&part);
        } else {
            out.push_str(&format!("[{part}]"));
        }
    }
    out
}

#[cfg(test)]
mod tests;
