//! `x-kubernetes-validations`: rules in CEL (apiextensions `schema/cel`).
//!
//! Compiled once with the row, evaluated for each write by `skep-cel`, under its budget. Which value a rule sees is said
//! in `value`, whether a rule may stand in a definition in `check`, what it may cost in `cost`.

pub mod check;
mod cost;
pub(crate) mod types;
mod value;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use skep_cel::{Budget, Environment, Error, OptionalValue, Program};

use super::{list, path, text};
use crate::{
    field::{Bad, Errors, FieldError, FieldErrorKind},
    strategy::Warnings,
};

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
    /// Of the schema. Values of `object` and `array` are too long for a message.
    ty: String,
}

struct Rule {
    /// As it stands in the definition, for messages.
    text: String,
    program: Option<Program>,
    uses_old: bool,
    message: String,
    message_program: Option<Program>,
    reason: FieldErrorKind,
    /// Below the node; `.a[b]`, empty for none.
    field: String,
    optional_old: bool,
}

pub(super) fn uses_old_self(program: &Program) -> bool {
    program.expression().references().has_variable("oldSelf")
}

/// What a rule can refer to.
struct Values {
    own: skep_cel::Value,
    /// `None`: there is none.
    old: Option<skep_cel::Value>,
    /// `oldSelf` is an optional value.
    optional: bool,
}

impl Environment for Values {
    fn variable(&self, name: &str) -> Option<Result<skep_cel::Value, Error>> {
        match name {
            "self" => Some(Ok(self.own.clone())),
            "oldSelf" if self.optional => {
                let optional = match &self.old {
                    Some(old) => OptionalValue::of(old.clone()),
                    None => OptionalValue::none(),
                };
                Some(Ok(skep_cel::Value::Opaque(Arc::new(optional))))
            }
            "oldSelf" => self.old.clone().map(Ok),
            _ => None,
        }
    }
}

/// What the rules of one object may cost together, as upstream's `RuntimeCELCostBudget`.
const OBJECT_COST: u64 = 10_000_000;

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// What is left of the budget, and what was found with it.
struct Told<'a> {
    budget: Budget,
    errors: &'a mut Errors,
    warnings: Warnings,
    /// What did not hold before may stay.
    ratchet: bool,
}

/// A value and what it was before.
type Pair<'a> = Option<(&'a Value, &'a Value)>;

/// Rules go on; or one was too expensive, and no other is looked at.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Stop,
}

impl Rules {
    /// The rules of an `openAPIV3Schema`. A rule that does not compile never holds; validation of the definition refuses
    /// it.
    pub fn compile(schema: &Value) -> Self {
        Self {
            root: Node::compile(schema, true, 0).map(Arc::new),
        }
    }

    /// The rules of a schema that stands within another one.
    pub fn of_part(schema: &Value) -> Self {
        Self {
            root: Node::compile(schema, false, 0).map(Arc::new),
        }
    }

    /// Adds what does not hold of a default, which stands at `path`.
    pub fn validate_default(&self, default: &Value, path: &str, errors: &mut Errors) {
        let mut told = Told {
            budget: Budget::new(OBJECT_COST),
            errors,
            warnings: Warnings::new(),
            ratchet: false,
        };
        if let Some(root) = &self.root {
            root.validate(default, Some(default), None, path, &mut told);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Adds what does not hold, and warns of what did not hold before either. `new` and `old` must fit the schema.
    pub fn validate(&self, new: &Value, old: Option<&Value>, errors: &mut Errors) -> Warnings {
        let mut told = Told {
            budget: Budget::new(OBJECT_COST),
            errors,
            warnings: Warnings::new(),
            ratchet: true,
        };
        if let Some(root) = &self.root {
            root.validate(new, old, old.map(|old| (new, old)), "", &mut told);
        }
        told.warnings
    }
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
            .map(|rule| Rule::compile(rule, schema))
            .collect();
        // Rules may stand in the parts of an `allOf` too, about the same value.
        for part in list(&schema["allOf"]) {
            let part = list(&part["x-kubernetes-validations"]);
            rules.extend(part.map(|rule| Rule::compile(rule, schema)));
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
            ty: text(schema, "type").to_owned(),
        })
    }

    /// `nearest`: of this value, or of the nearest one around it that has an old one.
    fn validate(
        &self,
        new: &Value,
        old: Option<&Value>,
        nearest: Pair<'_>,
        path: &str,
        told: &mut Told<'_>,
    ) -> Next {
        if new.is_null() {
            return Next::Go;
        }
        if !self.rules.is_empty() && self.validate_here(new, old, nearest, path, told) == Next::Stop
        {
            return Next::Stop;
        }
        match new {
            Value::Object(map) => {
                for (name, value) in map {
                    let (node, step) = match (self.properties.get(name), &self.additional) {
                        (Some(node), _) => (node, join(path, name)),
                        (None, Some(node)) => (node.as_ref(), format!("{path}[{name}]")),
                        (None, None) => continue,
                    };
                    let old = old.and_then(|old| old.get(name));
                    let nearest = old.map(|old| (value, old)).or(nearest);
                    if node.validate(value, old, nearest, &step, told) == Next::Stop {
                        return Next::Stop;
                    }
                }
            }
            Value::Array(items) => {
                let Some(node) = &self.items else {
                    return Next::Go;
                };
                for (at, item) in items.iter().enumerate() {
                    let old = old.and_then(|old| self.old_item(item, old));
                    let step = format!("{path}[{at}]");
                    let nearest = old.map(|old| (item, old)).or(nearest);
                    if node.validate(item, old, nearest, &step, told) == Next::Stop {
                        return Next::Stop;
                    }
                }
            }
            _ => {}
        }
        Next::Go
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

    fn validate_here(
        &self,
        new: &Value,
        old: Option<&Value>,
        nearest: Pair<'_>,
        path: &str,
        told: &mut Told<'_>,
    ) -> Next {
        let old = old.filter(|old| !old.is_null());
        let shown = || match self.ty.as_str() {
            "object" | "array" => Bad::omitted(),
            _ => Bad::from(new.clone()),
        };
        let budget = &told.budget;
        let mut unchanged = None;
        let at = if path.is_empty() { "<nil>" } else { path };
        let mut values = Values {
            own: self.shape.value(new),
            old: old.map(|old| self.shape.value(old)),
            optional: false,
        };
        for rule in &self.rules {
            // Of a rule without an answer, the type is shown in place of the value.
            let mut fail = |detail: String| {
                let bad = Bad::from(self.ty.as_str());
                let error = FieldError::new(FieldErrorKind::Invalid, at, bad, detail);
                told.errors.push(error);
            };
            if budget.spent() {
                fail(OUT_OF_BUDGET.to_owned());
                return Next::Stop;
            }
            let Some(program) = &rule.program else {
                fail(format!("rule compile error: {}", rule.describe()));
                continue;
            };
            if rule.uses_old && old.is_none() && !rule.optional_old {
                continue;
            }
            values.optional = rule.optional_old;
            match program.evaluate(&values, budget) {
                Ok(skep_cel::Value::Bool(true)) => {}
                Err(Error::CallLimit) if budget.spent() => {
                    fail(OUT_OF_BUDGET.to_owned());
                    return Next::Stop;
                }
                Err(Error::CallLimit) => {
                    fail(format!(
                        "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        Error::CallLimit,
                        rule.describe()
                    ));
                    return Next::Stop;
                }
                Err(Error::Failed(why)) if why.starts_with("no such overload") => fail(format!(
                    "'{why}': call arguments did not match a supported operator, function or macro signature for rule: \
                     {}",
                    rule.describe()
                )),
                Err(Error::Failed(why)) => {
                    fail(format!("{why} evaluating rule: {}", rule.describe()));
                }
                Ok(_) => {
                    let detail = rule.message(&values, budget);
                    let field = rule.field_below(path);
                    let detail = match rule.reason {
                        FieldErrorKind::Duplicate => String::new(),
                        _ => detail,
                    };
                    let error = FieldError::new(rule.reason, field, shown(), detail);
                    let same = || nearest.is_some_and(|(new, old)| new == old);
                    if told.ratchet && !rule.uses_old && *unchanged.get_or_insert_with(same) {
                        told.warnings.push(error.to_string());
                    } else {
                        told.errors.push(error);
                    }
                }
            }
        }
        Next::Go
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
    fn compile(rule: &Value, schema: &Value) -> Self {
        let given = text(rule, "fieldPath");
        let field = match path::resolve(schema, given, true) {
            Ok((shown, _)) if shown.is_empty() || shown.starts_with('[') => shown,
            Ok((shown, _)) => format!(".{shown}"),
            Err(_) => given.to_owned(),
        };
        let source = text(rule, "rule");
        let program = Program::compile(source).ok();
        let message_expression = text(rule, "messageExpression").trim();
        let reason = match text(rule, "reason") {
            "FieldValueRequired" => FieldErrorKind::Required,
            "FieldValueForbidden" => FieldErrorKind::Forbidden,
            "FieldValueDuplicate" => FieldErrorKind::Duplicate,
            _ => FieldErrorKind::Invalid,
        };
        Self {
            text: source.trim().to_owned(),
            uses_old: program.as_ref().is_some_and(uses_old_self),
            program,
            message: text(rule, "message").trim().to_owned(),
            message_program: match message_expression {
                "" => None,
                expression => Program::compile(expression).ok(),
            },
            reason,
            field,
            optional_old: rule["optionalOldSelf"] == true,
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

    fn message(&self, values: &Values, budget: &Budget) -> String {
        if let Some(program) = &self.message_program
            && let Ok(skep_cel::Value::String(said)) = program.evaluate(values, budget)
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
}

#[cfg(test)]
mod tests;
