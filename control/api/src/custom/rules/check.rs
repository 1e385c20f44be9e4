//! Whether the rules of a schema may stand in a definition: syntax, types, cost, use of `oldSelf`.
//!
//! The types are those of the schema; what a library function takes is checked when it is run, what it gives is known
//! here. An expression's cost and type are found in one walk.

use std::{collections::BTreeMap, sync::Arc};

use kube_cel::cel::{
    IdedExpr,
    common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators as op},
};
use serde_json::Value;
use skep_cel::Program;

use super::{cost, list, text, types::Ty, uses_old_self};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Invalid,
    Forbidden,
}

/// What a message shows of what was wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Bad {
    None,
    /// The whole rule.
    Rule(Value),
    Value(Value),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub kind: Kind,
    /// Below the schema: `.properties[a].x-kubernetes-validations[0].rule`.
    pub field: String,
    pub bad: Bad,
    /// `{root}` stands for the path of the schema itself.
    pub detail: String,
}

/// Everything wrong with the rules of a structural schema.
pub fn rules(schema: &Value) -> Vec<Problem> {
    let mut walk = Walk::default();
    walk.schema(schema, true, "", Some(1), None, 0);
    let mut found = walk.found;
    if walk.total > cost::TOTAL_LIMIT {
        walk.costs.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        for (_, field) in walk.costs.into_iter().take(MOST_EXPENSIVE) {
            found.push(Problem {
                kind: Kind::Forbidden,
                field,
                bad: Bad::None,
                detail: "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"
                    .to_owned(),
            });
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        found.push(Problem {
            kind: Kind::Forbidden,
            field: String::new(),
            bad: Bad::None,
            detail: cost::exceeds(what, walk.total, cost::TOTAL_LIMIT),
        });
    }
    found
}

/// How many rules are named when all together are too expensive.
const MOST_EXPENSIVE: usize = 4;

#[derive(Default)]
struct Walk {
    found: Vec<Problem>,
    total: u64,
    costs: Vec<(u64, String)>,
}

impl Walk {
    /// `often`: how many values of the schema one object may have; `None` is no bound. `uncorrelated`: where the way from
    /// the root lost the identity of items.
    fn schema(
        &mut self,
        schema: &Value,
        root: bool,
        at: &str,
        often: Option<u64>,
        uncorrelated: Option<&str>,
        depth: usize,
    ) {
        if depth > super::MAX_DEPTH {
            return;
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let below = format!("{at}.properties[{name}]");
            let lost = uncorrelated.or((schema["x-kubernetes-map-type"] == "atomic").then_some(at));
            self.schema(property, false, &below, often, lost, depth + 1);
        }
        let (ty, _) = Ty::of(schema, root, depth);
        let times = often.map(|often| often.saturating_mul(ty.size()));
        if schema["additionalProperties"].is_object() {
            let below = format!("{at}.additionalProperties");
            let values = &schema["additionalProperties"];
            self.schema(values, false, &below, times, uncorrelated, depth + 1);
        }
        if schema["items"].is_object() {
            let below = format!("{at}.items");
            let keyed = schema["x-kubernetes-list-type"] == "map";
            let lost = uncorrelated.or((!keyed).then_some(at));
            self.schema(&schema["items"], false, &below, times, lost, depth + 1);
        }
        for (index, rule) in list(&schema["x-kubernetes-validations"]).enumerate() {
            let at = format!("{at}.x-kubernetes-validations[{index}]");
            self.rule(rule, &ty, &at, often.unwrap_or(u64::MAX), uncorrelated);
        }
    }

    fn problem(&mut self, kind: Kind, field: String, bad: Bad, detail: String) {
        self.found.push(Problem {
            kind,
            field,
            bad,
            detail,
        });
    }

    fn rule(&mut self, rule: &Value, ty: &Ty, at: &str, often: u64, uncorrelated: Option<&str>) {
        let source = text(rule, "rule");
        let optional_old = rule["optionalOldSelf"] == true;
        let checked = check(source, ty, optional_old);
        let field = format!("{at}.rule");
        let cost = match checked.problem {
            Some(_) => 0,
            None => checked.cost.saturating_mul(often),
        };
        if cost > cost::LIMIT {
            let detail = cost::exceeds("estimated rule cost", cost, cost::LIMIT);
            self.problem(Kind::Forbidden, field.clone(), Bad::None, detail);
        }
        self.total = self.total.saturating_add(cost);
        self.costs.push((cost, field.clone()));
        let whole = || Bad::Rule(rule.clone());
        if let Some(problem) = checked.problem {
            let detail = format!("compilation failed: {problem}");
            self.problem(Kind::Invalid, field.clone(), whole(), detail);
        } else if !matches!(checked.ty, Ty::Bool | Ty::Dyn) {
            let detail = "cel expression must evaluate to a bool".to_owned();
            self.problem(Kind::Invalid, field.clone(), whole(), detail);
        }
        let message = text(rule, "messageExpression").trim();
        if !message.is_empty() {
            let checked = check(message, ty, optional_old);
            let field = format!("{at}.messageExpression");
            if let Some(problem) = checked.problem {
                let detail = format!("messageExpression compilation failed: {problem}");
                self.problem(Kind::Invalid, field, whole(), detail);
            } else if !matches!(checked.ty, Ty::String(_) | Ty::Dyn) {
                let detail = "messageExpression must evaluate to a string".to_owned();
                self.problem(Kind::Invalid, field, whole(), detail);
            } else {
                self.total = self.total.saturating_add(checked.cost);
                self.costs.push((checked.cost, field.clone()));
                if checked.cost > cost::LIMIT {
                    let what = "estimated messageExpression cost";
                    let detail = cost::exceeds(what, checked.cost, cost::LIMIT);
                    self.problem(Kind::Forbidden, field, Bad::None, detail);
                }
            }
        }
        if checked.uses_old {
            if let Some(path) = uncorrelated {
                let detail = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {{root}}{path}"
                );
                self.problem(Kind::Invalid, field, Bad::Value(source.into()), detail);
            }
        } else if let Some(given) = rule["optionalOldSelf"].as_bool() {
            let detail = "may not be set if oldSelf is not used in rule".to_owned();
            let field = format!("{at}.optionalOldSelf");
            self.problem(Kind::Invalid, field, Bad::Value(given.into()), detail);
        }
    }
}

struct Checked {
    ty: Ty,
    cost: u64,
    /// In the form of cel-go's compiler.
    problem: Option<String>,
    uses_old: bool,
}

fn check(source: &str, own: &Ty, optional_old: bool) -> Checked {
    let program = match Program::compile(source) {
        Ok(program) => program,
        Err(error) => {
            return Checked {
                ty: Ty::Dyn,
                cost: 0,
                problem: Some(error.to_string()),
                uses_old: false,
            };
        }
    };
    let old = if optional_old {
        Ty::Optional(Arc::new(own.clone()))
    } else {
        own.clone()
    };
    let mut checker = Checker {
        source,
        scopes: vec![BTreeMap::from([
            ("self".to_owned(), own.clone()),
            ("oldSelf".to_owned(), old),
        ])],
        problems: Vec::new(),
    };
    let uses_old = uses_old_self(&program);
    let (ty, cost) = checker.expression(program.expression());
    let problem = (!checker.problems.is_empty()).then(|| checker.problems.join("\n"));
    Checked {
        ty,
        cost,
        problem,
        uses_old,
    }
}

/// Namespaces of library functions: `sets.contains(…)`.
const NAMESPACES: [&str; 12] = [
    "sets",
    "math",
    "optional",
    "base64",
    "ip",
    "cidr",
    "strings",
    "format",
    "semver",
    "lists",
    "jsonpatch",
    "regex",
];
/// Names of types, which are values.
const TYPE_NAMES: [&str; 11] = [
    "bool",
    "bytes",
    "double",
    "duration",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "timestamp",
    "uint",
];

struct Checker<'a> {
    source: &'a str,
    /// Variables; the innermost last.
    scopes: Vec<BTreeMap<String, Ty>>,
    problems: Vec<String>,
}

impl Checker<'_> {
    /// Adds a problem at the first place of `needle` that stands alone.
    fn problem(&mut self, needle: &str, what: &str) {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let alone = |at: usize| {
            let before = self.source[..at].chars().next_back();
            let after = self.source[at + needle.len()..].chars().next();
            let starts = needle.chars().next().is_some_and(word);
            let ends = needle.chars().next_back().is_some_and(word);
            !(starts && before.is_some_and(word) || ends && after.is_some_and(word))
        };
        let at = self
            .source
            .match_indices(needle)
            .map(|(at, _)| at)
            .find(|at| alone(*at))
            .unwrap_or(0);
        let line_start = self.source[..at].rfind('\n').map_or(0, |end| end + 1);
        let line = self.source[..at].matches('\n').count() + 1;
        let column = self.source[line_start..at].chars().count();
        let shown = self.source[line_start..].lines().next().unwrap_or_default();
        self.problems.push(format!(
            "ERROR: <input>:{line}:{}: {what}\n | {shown}\n | {}^",
            column + 1,
            ".".repeat(column)
        ));
    }

    fn variable(&self, name: &str) -> Option<&Ty> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name))
    }

    fn expression(&mut self, expression: &IdedExpr) -> (Ty, u64) {
        match &expression.expr {
            Expr::Unspecified => (Ty::Dyn, 0),
            Expr::Literal(literal) => (literal_type(literal), 0),
            Expr::Ident(name) => match self.variable(name) {
                Some(ty) => (ty.clone(), 1),
                None if TYPE_NAMES.contains(&name.as_str()) => (Ty::Named("type"), 1),
                None => {
                    let what = format!("undeclared reference to '{name}' (in container '')");
                    self.problem(name, &what);
                    (Ty::Dyn, 1)
                }
            },
            Expr::Select(select) => {
                let (of, cost) = self.expression(&select.operand);
                let (ty, cost) = self.select(of, &select.field, cost);
                if select.test {
                    (Ty::Bool, cost)
                } else {
                    (ty, cost.saturating_add(1))
                }
            }
            Expr::List(items) => {
                let mut ty: Option<Ty> = None;
                let mut sum = cost::LIST;
                for item in &items.elements {
                    let (item, cost) = self.expression(item);
                    sum = sum.saturating_add(cost);
                    ty = Some(match ty {
                        Some(ty) => ty.join(item),
                        None => item,
                    });
                }
                let count = items.elements.len() as u64;
                (Ty::List(Arc::new(ty.unwrap_or(Ty::Dyn)), count), sum)
            }
            Expr::Map(map) => {
                let mut sum = cost::MAP;
                let mut ty: Option<Ty> = None;
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        let (_, key) = self.expression(&entry.key);
                        let (value, cost) = self.expression(&entry.value);
                        sum = sum.saturating_add(key).saturating_add(cost);
                        ty = Some(match ty {
                            Some(ty) => ty.join(value),
                            None => value,
                        });
                    }
                }
                let count = map.entries.len() as u64;
                (Ty::Map(Arc::new(ty.unwrap_or(Ty::Dyn)), count), sum)
            }
            Expr::Struct(_) => (Ty::Dyn, cost::OBJECT),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Call(call) => self.call(call),
        }
    }

    fn select(&mut self, of: Ty, field: &str, cost: u64) -> (Ty, u64) {
        match of {
            Ty::Object(fields) => match fields.get(field) {
                Some(ty) => (ty.clone(), cost),
                None => {
                    let what = format!("undefined field '{field}'");
                    self.problem(&format!(".{field}"), &what);
                    (Ty::Dyn, cost)
                }
            },
            Ty::Map(values, _) => ((*values).clone(), cost),
            Ty::Optional(of) => {
                let (ty, cost) = self.select((*of).clone(), field, cost);
                (Ty::Optional(Arc::new(ty)), cost)
            }
            Ty::Dyn => (Ty::Dyn, cost),
            other => {
                let what = format!("type '{}' does not support field selection", other.shown());
                self.problem(&format!(".{field}"), &what);
                (Ty::Dyn, cost)
            }
        }
    }

    fn comprehension(&mut self, of: &ComprehensionExpr) -> (Ty, u64) {
        let (range, range_cost) = self.expression(&of.iter_range);
        let (mut accu, init) = self.expression(&of.accu_init);
        let (first, second) = match &range {
            Ty::List(items, _) => match of.iter_var2 {
                None => ((**items).clone(), Ty::Dyn),
                Some(_) => (Ty::Int, (**items).clone()),
            },
            Ty::Map(values, _) => (Ty::String(range.size()), (**values).clone()),
            Ty::Object(_) => (Ty::String(253), Ty::Dyn),
            Ty::Dyn => (Ty::Dyn, Ty::Dyn),
            other => {
                let what = format!(
                    "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                    other.shown()
                );
                self.problem(".", &what);
                (Ty::Dyn, Ty::Dyn)
            }
        };
        let mut scope = BTreeMap::from([(of.iter_var.clone(), first)]);
        if let Some(name) = &of.iter_var2 {
            scope.insert(name.clone(), second);
        }
        if let Ty::List(..) = accu {
            // Grows with each step: what it holds is known after the first one.
            scope.insert(of.accu_var.clone(), Ty::List(Arc::new(Ty::Dyn), 0));
        } else {
            scope.insert(of.accu_var.clone(), accu.clone());
        }
        self.scopes.push(scope);
        let (_, condition) = self.expression(&of.loop_cond);
        let (step, step_cost) = self.expression(&of.loop_step);
        if let Ty::List(items, _) = step {
            accu = Ty::List(items, range.size());
        }
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(of.accu_var.clone(), accu);
        }
        let (result, result_cost) = self.expression(&of.result);
        self.scopes.pop();
        let often = range.size();
        let cost = range_cost
            .saturating_add(init)
            .saturating_add(often.saturating_mul(condition.saturating_add(step_cost)))
            .saturating_add(result_cost);
        (result, cost)
    }

    fn call(&mut self, call: &CallExpr) -> (Ty, u64) {
        let name = call.func_name.as_str();
        let mut namespace = "";
        let mut operands = Vec::with_capacity(call.args.len() + 1);
        if let Some(target) = &call.target {
            match &target.expr {
                Expr::Ident(ident)
                    if self.variable(ident).is_none() && NAMESPACES.contains(&ident.as_str()) =>
                {
                    namespace = ident;
                }
                _ => operands.push(self.expression(target)),
            }
        }
        if matches!(name, op::OPT_SELECT) {
            let of = call.args.first().map(|of| self.expression(of));
            let (of, cost) = of.unwrap_or((Ty::Dyn, 0));
            let of = match of {
                Ty::Optional(of) => (*of).clone(),
                of => of,
            };
            let field = call.args.get(1).map(|field| &field.expr);
            let Some(Expr::Literal(LiteralValue::String(field))) = field else {
                return (Ty::Dyn, cost);
            };
            let (ty, cost) = self.select(of, field.inner(), cost);
            return (Ty::Optional(Arc::new(ty)), cost.saturating_add(1));
        }
        for argument in &call.args {
            operands.push(self.expression(argument));
        }
        let sum = operands
            .iter()
            .fold(0u64, |sum, (_, cost)| sum.saturating_add(*cost));
        let types: Vec<Ty> = operands.iter().map(|(ty, _)| ty.clone()).collect();
        let size = |at: usize| types.get(at).map_or(0, Ty::size);
        if let Some((ty, own)) = self.operator(name, &types) {
            let cost = match (name, operands.as_slice()) {
                (op::CONDITIONAL, [(_, condition), (_, yes), (_, no)]) => {
                    condition.saturating_add(*yes.max(no))
                }
                _ => sum.saturating_add(own),
            };
            return (ty, cost);
        }
        let Some(ty) = function(namespace, name, &types) else {
            let full = if namespace.is_empty() {
                name.to_owned()
            } else {
                format!("{namespace}.{name}")
            };
            let what = format!("undeclared reference to '{full}' (in container '')");
            // A method stands where its parenthesis opens.
            if call.target.is_some() && namespace.is_empty() {
                self.problem("(", &what);
            } else {
                self.problem(name, &what);
            }
            return (Ty::Dyn, sum);
        };
        let own = match name {
            "size" | "hasValue" | "value" | "orValue" | "or" => 1,
            "matches" | "find" | "findAll" => cost::regex(size(0), size(1)),
            "contains" if namespace == "sets" => size(0).saturating_mul(size(1)),
            "intersects" | "equivalent" => size(0).saturating_mul(size(1)),
            "contains" => {
                let pattern = cost::traverse(size(1)).max(1);
                cost::traverse(size(0)).saturating_mul(pattern)
            }
            "startsWith" | "endsWith" => cost::traverse(size(1)),
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "join"
            | "distinct" | "reverse" | "sort" | "first" | "last" => cost::traverse(size(0)).max(1),
            _ => cost::traverse(size(0)).max(1),
        };
        (ty, sum.saturating_add(own))
    }

    /// `None`: not an operator.
    fn operator(&mut self, name: &str, types: &[Ty]) -> Option<(Ty, u64)> {
        let is_number = |ty: &Ty| matches!(ty, Ty::Int | Ty::Uint | Ty::Double | Ty::Dyn);
        let mismatch = |checker: &mut Self| {
            let shown: Vec<String> = types.iter().map(Ty::shown).collect();
            let what = format!(
                "found no matching overload for '{name}' applied to '({})'",
                shown.join(", ")
            );
            let symbol = match name {
                op::IN => "in",
                op::INDEX => "[",
                op::CONDITIONAL => "?",
                other => other.trim_matches('_'),
            };
            checker.problem(symbol, &what);
        };
        let boolean = |ty: &Ty| matches!(ty, Ty::Bool | Ty::Dyn);
        let result = match (name, types) {
            (op::LOGICAL_AND | op::LOGICAL_OR, [a, b]) => {
                if !boolean(a) || !boolean(b) {
                    mismatch(self);
                }
                (Ty::Bool, 0)
            }
            (op::LOGICAL_NOT, [a]) => {
                if !boolean(a) {
                    mismatch(self);
                }
                (Ty::Bool, 1)
            }
            (op::NOT_STRICTLY_FALSE, _) => (Ty::Bool, 0),
            (op::CONDITIONAL, [condition, yes, no]) => {
                if !boolean(condition) || !yes.matches(no) {
                    mismatch(self);
                }
                (yes.clone().join(no.clone()), 0)
            }
            (op::EQUALS | op::NOT_EQUALS, [a, b]) => {
                if !a.matches(b) {
                    mismatch(self);
                }
                (Ty::Bool, compared(a, b))
            }
            (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [a, b]) => {
                let ordered = |ty: &Ty| {
                    !matches!(
                        ty,
                        Ty::List(..) | Ty::Map(..) | Ty::Object(_) | Ty::Null | Ty::Named(_)
                    )
                };
                let numbers = is_number(a) && is_number(b);
                if !ordered(a) || !ordered(b) || !(numbers || a.matches(b)) {
                    mismatch(self);
                }
                (Ty::Bool, compared(a, b))
            }
            (op::ADD, [a, b]) => match (a, b) {
                (Ty::String(m), Ty::String(n)) => {
                    let size = m.saturating_add(*n);
                    (Ty::String(size), cost::traverse(size))
                }
                (Ty::Bytes(m), Ty::Bytes(n)) => {
                    let size = m.saturating_add(*n);
                    (Ty::Bytes(size), cost::traverse(size))
                }
                (Ty::List(x, m), Ty::List(y, n)) => {
                    let items = match (x.as_ref(), y.as_ref()) {
                        (Ty::Dyn, items) | (items, Ty::Dyn) => items.clone(),
                        (x, y) => x.clone().join(y.clone()),
                    };
                    (Ty::List(Arc::new(items), m.saturating_add(*n)), 1)
                }
                (Ty::Timestamp, Ty::Duration) | (Ty::Duration, Ty::Timestamp) => (Ty::Timestamp, 1),
                (Ty::Duration, Ty::Duration) => (Ty::Duration, 1),
                (Ty::Dyn, _) | (_, Ty::Dyn) => (Ty::Dyn, 1),
                (a, b) if is_number(a) && a.matches(b) => (a.clone(), 1),
                _ => {
                    mismatch(self);
                    (Ty::Dyn, 1)
                }
            },
            (op::SUBSTRACT, [a, b]) => match (a, b) {
                (Ty::Timestamp, Ty::Timestamp) | (Ty::Duration, Ty::Duration) => (Ty::Duration, 1),
                (Ty::Timestamp, Ty::Duration) => (Ty::Timestamp, 1),
                (Ty::Dyn, _) | (_, Ty::Dyn) => (Ty::Dyn, 1),
                (a, b) if is_number(a) && a.matches(b) => (a.clone(), 1),
                _ => {
                    mismatch(self);
                    (Ty::Dyn, 1)
                }
            },
            (op::MULTIPLY | op::DIVIDE | op::MODULO, [a, b]) => {
                if !is_number(a) || !is_number(b) || !a.matches(b) {
                    mismatch(self);
                }
                (
                    if matches!(a, Ty::Dyn) {
                        b.clone()
                    } else {
                        a.clone()
                    },
                    1,
                )
            }
            (op::NEGATE, [a]) => {
                if !is_number(a) && !matches!(a, Ty::Duration) {
                    mismatch(self);
                }
                (a.clone(), 1)
            }
            (op::IN, [a, b]) => {
                let fits = match b {
                    Ty::List(items, _) => items.matches(a),
                    Ty::Map(..) => matches!(a, Ty::String(_) | Ty::Dyn),
                    Ty::Dyn => true,
                    _ => false,
                };
                if !fits {
                    mismatch(self);
                }
                let own = match b {
                    Ty::List(..) => b.size(),
                    _ => 1,
                };
                (Ty::Bool, own)
            }
            (op::INDEX | op::OPT_INDEX, [of, at]) => {
                let (ty, fits) = match of {
                    Ty::List(items, _) => (
                        (**items).clone(),
                        matches!(at, Ty::Int | Ty::Uint | Ty::Double | Ty::Dyn),
                    ),
                    Ty::Map(values, _) => {
                        ((**values).clone(), matches!(at, Ty::String(_) | Ty::Dyn))
                    }
                    Ty::Dyn | Ty::Optional(_) => (Ty::Dyn, true),
                    _ => (Ty::Dyn, false),
                };
                if !fits {
                    mismatch(self);
                }
                let ty = if name == op::OPT_INDEX {
                    Ty::Optional(Arc::new(ty))
                } else {
                    ty
                };
                (ty, 1)
            }
            _ => return None,
        };
        Some(result)
    }
}

fn compared(a: &Ty, b: &Ty) -> u64 {
    match (a, b) {
        (
            Ty::String(_) | Ty::Bytes(_) | Ty::List(..) | Ty::Map(..) | Ty::Dyn,
            Ty::String(_) | Ty::Bytes(_) | Ty::List(..) | Ty::Map(..) | Ty::Dyn,
        ) => cost::traverse(a.size().min(b.size())).max(1),
        _ => 1,
    }
}

fn literal_type(literal: &LiteralValue) -> Ty {
    match literal {
        LiteralValue::Boolean(_) => Ty::Bool,
        LiteralValue::Bytes(bytes) => Ty::Bytes(bytes.inner().len() as u64),
        LiteralValue::Double(_) => Ty::Double,
        LiteralValue::Int(_) => Ty::Int,
        LiteralValue::Null => Ty::Null,
        LiteralValue::String(text) => Ty::String(text.inner().len() as u64),
        LiteralValue::UInt(_) => Ty::Uint,
    }
}

/// What a function gives; `None`: there is no such function.
fn function(namespace: &str, name: &str, operands: &[Ty]) -> Option<Ty> {
    let first = operands.first().cloned().unwrap_or(Ty::Dyn);
    let size = first.size();
    let of_list = || match &first {
        Ty::List(items, _) => (**items).clone(),
        _ => Ty::Dyn,
    };
    let texts = || Ty::List(Arc::new(Ty::String(size)), size);
    let optional = |ty: Ty| Ty::Optional(Arc::new(ty));
    let ty = match (namespace, name) {
        ("sets", "contains" | "equivalent" | "intersects") => Ty::Bool,
        ("math", "isNaN" | "isInf" | "isFinite") => Ty::Bool,
        (
            "math",
            "greatest" | "least" | "abs" | "ceil" | "floor" | "round" | "sign" | "sqrt" | "trunc"
            | "bitAnd" | "bitOr" | "bitXor" | "bitNot" | "bitShiftLeft" | "bitShiftRight",
        ) => Ty::Dyn,
        ("optional", "none") => optional(Ty::Dyn),
        ("optional", "of" | "ofNonZeroValue") => optional(first),
        ("base64", "encode") => Ty::String(size.saturating_mul(2)),
        ("base64", "decode") => Ty::Bytes(size),
        ("ip", "isCanonical") => Ty::Bool,
        ("strings", "quote") => Ty::String(size.saturating_mul(2)),
        ("jsonpatch", "escapeKey") => Ty::String(size.saturating_mul(2)),
        ("lists", "range") => Ty::List(Arc::new(Ty::Int), size),
        ("format", "named") => optional(Ty::Named("kubernetes.NamedFormat")),
        ("format", _) => Ty::Named("kubernetes.NamedFormat"),
        ("regex" | "semver" | "cidr", _) => Ty::Dyn,
        ("", name) => match name {
            "size" | "indexOf" | "lastIndexOf" | "int" | "compareTo" | "asInteger" | "sign"
            | "family" | "prefixLength" | "major" | "minor" | "patch" | "getFullYear"
            | "getMonth" | "getDate" | "getDayOfMonth" | "getDayOfWeek" | "getDayOfYear"
            | "getHours" | "getMinutes" | "getSeconds" | "getMilliseconds" => Ty::Int,
            "contains"
            | "startsWith"
            | "endsWith"
            | "matches"
            | "isURL"
            | "isIP"
            | "isCIDR"
            | "isQuantity"
            | "isSemver"
            | "isSorted"
            | "containsIP"
            | "containsCIDR"
            | "isInteger"
            | "isGreaterThan"
            | "isLessThan"
            | "hasValue"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast"
            | "bool" => Ty::Bool,
            "find" | "replace" | "lowerAscii" | "upperAscii" | "trim" | "substring" | "join"
            | "charAt" | "format" | "string" | "getScheme" | "getHost" | "getHostname"
            | "getPort" | "getEscapedPath" => Ty::String(size),
            "reverse" if matches!(first, Ty::String(_)) => first,
            "reverse" | "sort" | "slice" | "distinct" | "flatten" => first,
            "findAll" | "split" => texts(),
            "getQuery" => Ty::Map(Arc::new(texts()), size),
            "double" | "asApproximateFloat" => Ty::Double,
            "uint" => Ty::Uint,
            "bytes" => Ty::Bytes(size),
            "timestamp" => Ty::Timestamp,
            "duration" => Ty::Duration,
            "url" => Ty::Named("kubernetes.URL"),
            "ip" => Ty::Named("net.IP"),
            "cidr" | "masked" => Ty::Named("net.CIDR"),
            "quantity" => Ty::Named("kubernetes.Quantity"),
            "semver" => Ty::Named("kubernetes.Semver"),
            "add" | "sub" => first,
            "type" => Ty::Named("type"),
            "dyn" => Ty::Dyn,
            "sum" | "min" | "max" => of_list(),
            "first" | "last" => optional(of_list()),
            "value" => match first {
                Ty::Optional(of) => (*of).clone(),
                _ => Ty::Dyn,
            },
            "orValue" => match first {
                Ty::Optional(of) => (*of).clone(),
                _ => Ty::Dyn,
            },
            "or" => first,
            "optMap" | "optFlatMap" => optional(Ty::Dyn),
            "validate" => optional(Ty::Dyn),
            _ => return None,
        },
        _ => return None,
    };
    Some(ty)
}
