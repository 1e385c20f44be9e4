//! What can be said of an expression before it is evaluated: its type, what it may cost, and what is wrong with it:
//! names that nobody declared, operators and functions on types that they do not take.
//!
//! What is dynamic ([`Type::Dyn`]) is found out at evaluation. What is reported here is certain. Read `signatures` for the
//! functions there are.

mod cost;
mod signatures;
mod types;

use std::{collections::BTreeMap, sync::Arc};

use kube_cel::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr,
    operators as op,
};

use crate::{Program, functions, interpret::place};

pub use types::Type;

/// The variables of an expression by name.
pub type Declarations = BTreeMap<String, Type>;

/// What is known of an expression.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Of the result.
    pub ty: Type,
    /// The most that one evaluation may cost, by the sizes in the declarations.
    pub cost: u64,
}

/// # Errors
/// All problems, in the form of cel-go's compiler.
pub fn check(program: &Program, declarations: &Declarations) -> Result<Checked, String> {
    let mut checker = Checker {
        declarations,
        locals: Vec::new(),
        problems: Vec::new(),
        doubts: Vec::new(),
    };
    let (ty, cost) = checker.expression(program.expression());
    let problems = match checker.problems.is_empty() {
        true => checker.doubts,
        false => checker.problems,
    };
    if problems.is_empty() {
        Ok(Checked { ty, cost })
    } else {
        Err(shown(program, problems))
    }
}

/// Problems in the order of their places, as cel-go shows them.
fn shown(program: &Program, problems: Vec<Problem>) -> String {
    let (source, places) = (program.source(), program.places());
    let mut placed: Vec<((isize, isize), String)> = Vec::new();
    for (id, why) in problems {
        let offset = places.as_ref().and_then(|places| places.offset_for(id));
        let offset = offset.map_or(0, |(start, _)| start as usize);
        let before = source.get(..offset).unwrap_or(source);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let number = |n: usize| isize::try_from(n).unwrap_or(1);
        let line = number(before.matches('\n').count() + 1);
        let column = number(before[start..].chars().count() + 1);
        placed.push(((line, column), why));
    }
    placed.sort_by_key(|(at, _)| *at);
    let lines = placed.iter().map(|(at, why)| place(source, *at, why));
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether it is certain that the result is nothing but a part of a dynamic object.
pub fn is_plain_selection(program: &Program) -> bool {
    match &program.expression().expr {
        Expr::Select(select) => !select.test,
        Expr::Ident(_) => true,
        Expr::Call(call) => call.func_name == op::INDEX,
        _ => false,
    }
}

const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";

/// The id of the node it is about, and what it is.
type Problem = (u64, String);

struct Checker<'c> {
    declarations: &'c Declarations,
    /// Variables of macros; the innermost last.
    locals: Vec<(String, Type)>,
    problems: Vec<Problem>,
    /// What only those look for who found no problem (cel-go's AST validators).
    doubts: Vec<Problem>,
}

/// A type, and what it may cost to come to the value.
type Found = (Type, u64);

fn sum(costs: impl IntoIterator<Item = u64>) -> u64 {
    costs.into_iter().fold(0, u64::saturating_add)
}

impl Checker<'_> {
    fn problem(&mut self, at: u64, why: String) {
        self.problems.push((at, why));
    }

    fn undeclared(&mut self, at: u64, name: &str) {
        let why = format!("undeclared reference to '{name}' (in container '')");
        self.problem(at, why);
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let local = self.locals.iter().rev().find(|(local, _)| local == name);
        match local {
            Some((_, ty)) => Some(ty.clone()),
            None => self.declarations.get(name).cloned(),
        }
    }

    fn expression(&mut self, expression: &IdedExpr) -> Found {
        match &expression.expr {
            Expr::Unspecified => (Type::Dyn, 0),
            Expr::Literal(literal) => (literal_type(literal), 0),
            Expr::Ident(name) => match self.variable(name) {
                Some(ty) => (ty, 1),
                None if functions::type_named(name).is_some() => (Type::named("type"), 1),
                None => {
                    self.undeclared(expression.id, name);
                    (Type::Dyn, 1)
                }
            },
            Expr::Select(select) => self.select(expression.id, select),
            Expr::List(list) => {
                let found: Vec<Found> = list.elements.iter().map(|e| self.expression(e)).collect();
                let costs = found.iter().map(|(_, cost)| *cost);
                let cost = cost::LIST.saturating_add(sum(costs));
                let optional = |at: &usize| list.optional_indices.contains(at);
                let items = found.into_iter().zip(&list.elements).enumerate();
                let items = items.map(|(at, ((ty, _), of))| (of.id, entry(ty, optional(&at))));
                let count = list.elements.len() as u64;
                let items = self.joined(items);
                (Type::List(Arc::new(items), count), cost)
            }
            Expr::Map(map) => {
                let (mut keys, mut values, mut cost) = (Vec::new(), Vec::new(), cost::MAP);
                for of in &map.entries {
                    if let EntryExpr::MapEntry(of) = &of.expr {
                        let (key, key_cost) = self.expression(&of.key);
                        let (value, value_cost) = self.expression(&of.value);
                        cost = sum([cost, key_cost, value_cost]);
                        keys.push((of.key.id, key));
                        values.push((of.value.id, entry(value, of.optional)));
                    }
                }
                let keys = self.joined(keys.into_iter());
                let values = self.joined(values.into_iter());
                let count = map.entries.len() as u64;
                (Type::Map(Arc::new(keys), Arc::new(values), count), cost)
            }
            Expr::Struct(object) => {
                let mut cost = cost::OBJECT;
                for entry in &object.entries {
                    if let EntryExpr::StructField(field) = &entry.expr {
                        let (_, value) = self.expression(&field.value);
                        cost = cost.saturating_add(value);
                    }
                }
                let name = &object.type_name;
                let known = name == "JSONPatch" || name == "Object" || name.starts_with("Object.");
                if !known {
                    self.undeclared(expression.id, name);
                }
                (Type::Named(name.clone()), cost)
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Call(call) => self.call(expression.id, call),
        }
    }

    /// The one type of the entries of a literal, given with their ids: they may not be mixed
    /// (`ValidateHomogeneousAggregateLiterals`). Only the first that differs is told.
    fn joined(&mut self, types: impl Iterator<Item = (u64, Type)>) -> Type {
        let mut joined: Option<Type> = None;
        for (at, ty) in types {
            joined = Some(match joined {
                None => ty,
                Some(known) if known.matches(&ty) => known.join(ty),
                Some(known) => {
                    let why = format!("expected type '{known}' but found '{ty}'");
                    self.doubts.push((at, why));
                    return Type::Dyn;
                }
            });
        }
        joined.unwrap_or(Type::Dyn)
    }

    fn select(&mut self, at: u64, select: &SelectExpr) -> Found {
        let (operand, cost) = self.expression(&select.operand);
        let ty = self.field(at, operand, &select.field);
        if select.test {
            (Type::Bool, cost)
        } else {
            (ty, cost.saturating_add(1))
        }
    }

    fn field(&mut self, at: u64, of: Type, field: &str) -> Type {
        match of {
            Type::Object(fields) => match fields.get(field) {
                Some(ty) => ty.clone(),
                None => {
                    self.problem(at, format!("undefined field '{field}'"));
                    Type::Dyn
                }
            },
            Type::Map(_, values, _) => (*values).clone(),
            Type::Optional(of) => Type::Optional(Arc::new(self.field(at, (*of).clone(), field))),
            Type::Named(name) if name == AUTHORIZER && field == "requestResource" => {
                Type::named("kubernetes.authorization.ResourceCheck")
            }
            // What an expression has built has the fields that it gave it.
            Type::Named(name) if name == "JSONPatch" || name.starts_with("Object") => Type::Dyn,
            Type::Dyn => Type::Dyn,
            other => {
                let why = format!("type '{other}' does not support field selection");
                self.problem(at, why);
                Type::Dyn
            }
        }
    }

    /// The types of a comprehension's one variable, and of its two: `None` when it cannot be ranged over.
    fn range(&mut self, at: u64, range: &Type) -> (Type, [Type; 2]) {
        match range {
            Type::List(items, _) => ((**items).clone(), [Type::Int, (**items).clone()]),
            Type::Map(keys, values, _) => {
                ((**keys).clone(), [(**keys).clone(), (**values).clone()])
            }
            Type::Dyn => (Type::Dyn, [Type::Dyn, Type::Dyn]),
            other => {
                let why = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.problem(at, why);
                (Type::Dyn, [Type::Dyn, Type::Dyn])
            }
        }
    }

    fn comprehension(&mut self, of: &ComprehensionExpr) -> Found {
        let (range, range_cost) = self.expression(&of.iter_range);
        let (accumulated, init) = self.expression(&of.accu_init);
        let (item, _) = self.range(of.iter_range.id, &range);
        let depth = self.locals.len();
        self.locals.push((of.iter_var.clone(), item));
        let grows = matches!(accumulated, Type::List(..));
        // What a growing list holds is known after the first step.
        let inner = if grows {
            Type::List(Arc::new(Type::Dyn), 0)
        } else {
            accumulated.clone()
        };
        self.locals.push((of.accu_var.clone(), inner));
        let (_, condition) = self.expression(&of.loop_cond);
        let (step, step_cost) = self.expression(&of.loop_step);
        let result = match step {
            Type::List(items, _) if grows => Type::List(items, range.size()),
            step if grows => step,
            _ => accumulated,
        };
        if let Some((_, ty)) = self.locals.last_mut() {
            *ty = result;
        }
        let (ty, result_cost) = self.expression(&of.result);
        self.locals.truncate(depth);
        let round = condition.saturating_add(step_cost);
        let rounds = range.size().saturating_mul(round);
        (ty, sum([range_cost, init, rounds, result_cost]))
    }

    fn call(&mut self, at: u64, call: &CallExpr) -> Found {
        let name = call.func_name.as_str();
        let target = call.target.as_deref();
        if let Some(target) = target
            && let Some(found) = self.macro_call(call, target)
        {
            return found;
        }
        if name == op::OPT_SELECT {
            return self.optional_select(at, call);
        }
        let namespace = match target.map(|target| &target.expr) {
            Some(Expr::Ident(prefix))
                if functions::is_namespace(prefix) && self.variable(prefix).is_none() =>
            {
                Some(prefix)
            }
            _ => None,
        };
        let full = match (namespace, target) {
            (Some(namespace), _) => format!("{namespace}.{name}"),
            (None, Some(_)) => format!(".{name}"),
            (None, None) => name.to_owned(),
        };
        let mut found = Vec::with_capacity(call.args.len() + 1);
        if let (Some(target), None) = (target, namespace) {
            found.push(self.expression(target));
        }
        let operator = target.is_none() && is_operator(name);
        if !operator && !signatures::exists(&full) {
            self.undeclared(at, full.trim_start_matches('.'));
            return (Type::Dyn, 0);
        }
        for argument in &call.args {
            // Only the arguments of `format` may be a mixed list.
            found.push(match &argument.expr {
                Expr::List(list) if name == "format" => {
                    let found: Vec<_> = list.elements.iter().map(|e| self.expression(e)).collect();
                    let size = sum(found.iter().map(|(ty, _)| ty.size()));
                    let cost = sum(found.iter().map(|(_, cost)| *cost));
                    let list = Type::List(Arc::new(Type::Dyn), size);
                    (list, cost.saturating_add(cost::LIST))
                }
                _ => self.expression(argument),
            });
        }
        let (types, costs): (Vec<Type>, Vec<u64>) = found.into_iter().unzip();
        if let (op::CONDITIONAL, [condition, yes, no]) = (name, costs.as_slice()) {
            let (ty, _) = self.operator(at, call, &types).unwrap_or((Type::Dyn, 0));
            return (ty, condition.saturating_add(*yes.max(no)));
        }
        let arguments = sum(costs);
        if target.is_none()
            && let Some((ty, own)) = self.operator(at, call, &types)
        {
            return (ty, arguments.saturating_add(own));
        }
        let method = target.is_some() && namespace.is_none();
        let ty = self.function(at, &full, method, call, &types);
        let own = cost::call(&full, &types);
        (ty, arguments.saturating_add(own))
    }

    fn function(
        &mut self,
        at: u64,
        full: &str,
        method: bool,
        call: &CallExpr,
        types: &[Type],
    ) -> Type {
        let shown = full.trim_start_matches('.');
        let Some(result) = signatures::result(full, types) else {
            let types = match (method, types) {
                (true, [target, arguments @ ..]) => format!("{target}.{}", applied(arguments)),
                _ => applied(types),
            };
            let why = format!("found no matching overload for '{shown}' applied to '{types}'");
            self.problem(at, why);
            return Type::Dyn;
        };
        if let Some(last) = call.args.last()
            && let Expr::Literal(LiteralValue::String(text)) = &last.expr
            && !functions::is_valid_literal(full, text.inner())
        {
            self.doubts
                .push((last.id, format!("invalid {shown} argument")));
        }
        cost::sized(full, types, result)
    }

    fn optional_select(&mut self, at: u64, call: &CallExpr) -> Found {
        let [of, field] = call.args.as_slice() else {
            return (Type::Dyn, 0);
        };
        let (of, cost) = self.expression(of);
        let Expr::Literal(LiteralValue::String(field)) = &field.expr else {
            return (Type::Dyn, cost);
        };
        let ty = match self.field_behind_question_mark(at, of, field.inner()) {
            optional @ Type::Optional(_) => optional,
            ty => Type::Optional(Arc::new(ty)),
        };
        (ty, cost.saturating_add(1))
    }

    fn field_behind_question_mark(&mut self, at: u64, of: Type, field: &str) -> Type {
        let missing = matches!(&of, Type::Object(fields) if !fields.contains_key(field));
        if missing {
            self.problem(at, format!("undefined field '{field}'"));
            return Type::Dyn;
        }
        self.field(at, of, field)
    }

    /// Macros that the parser leaves as calls.
    fn macro_call(&mut self, call: &CallExpr, target: &IdedExpr) -> Option<Found> {
        let names: Vec<String> = call
            .args
            .iter()
            .map_while(|arg| match &arg.expr {
                Expr::Ident(name) => Some(name.clone()),
                _ => None,
            })
            .collect();
        let function = call.func_name.as_str();
        match (function, call.args.as_slice(), names.as_slice()) {
            ("bind", [_, value, body], [name, ..]) if matches!(&target.expr, Expr::Ident(prefix) if prefix == "cel") =>
            {
                let (ty, cost) = self.expression(value);
                let (ty, body) = self.with(vec![(name.clone(), ty)], body);
                Some((ty, cost.saturating_add(body)))
            }
            ("optMap" | "optFlatMap", [_, body], [name, ..]) => {
                let (of, cost) = self.expression(target);
                let of = match of {
                    Type::Optional(of) => (*of).clone(),
                    _ => Type::Dyn,
                };
                let (ty, body) = self.with(vec![(name.clone(), of)], body);
                let ty = match (function, ty) {
                    ("optFlatMap", optional) => optional,
                    (_, ty) => Type::Optional(Arc::new(ty)),
                };
                Some((ty, cost.saturating_add(body)))
            }
            ("sortBy", [_, body], [name, ..]) => {
                let (range, cost) = self.expression(target);
                let (item, _) = self.range(target.id, &range);
                let (_, body) = self.with(vec![(name.clone(), item)], body);
                let own = cost::call("sortBy", std::slice::from_ref(&range));
                let rounds = range.size().saturating_mul(body.saturating_add(1));
                Some((range, sum([cost, own, rounds])))
            }
            (
                "all" | "exists" | "existsOne" | "exists_one" | "transformList" | "transformMap"
                | "transformMapEntry",
                [_, _, bodies @ ..],
                [key, value, ..],
            ) if matches!(bodies, [_] | [_, _]) => {
                Some(self.over_two(function, target, [key, value], bodies))
            }
            _ => None,
        }
    }

    fn over_two(
        &mut self,
        function: &str,
        target: &IdedExpr,
        [key, value]: [&String; 2],
        bodies: &[IdedExpr],
    ) -> Found {
        let (range, range_cost) = self.expression(target);
        let (_, [key_type, value_type]) = self.range(target.id, &range);
        let scope = vec![(key.clone(), key_type.clone()), (value.clone(), value_type)];
        let (mut made, mut round) = (Type::Dyn, 1);
        for body in bodies {
            let (ty, cost) = self.with(scope.clone(), body);
            made = ty;
            round = sum([round, cost]);
        }
        let ty = match function {
            "transformList" => Type::List(Arc::new(made), range.size()),
            "transformMap" => Type::Map(Arc::new(key_type), Arc::new(made), range.size()),
            "transformMapEntry" => made,
            _ => Type::Bool,
        };
        let rounds = range.size().saturating_mul(round);
        (ty, range_cost.saturating_add(rounds))
    }

    /// `body` with variables of its own.
    fn with(&mut self, scope: Vec<(String, Type)>, body: &IdedExpr) -> Found {
        let depth = self.locals.len();
        self.locals.extend(scope);
        let found = self.expression(body);
        self.locals.truncate(depth);
        found
    }

    /// `None`: not an operator.
    fn operator(&mut self, at: u64, call: &CallExpr, types: &[Type]) -> Option<Found> {
        let name = call.func_name.as_str();
        let mismatch = |checker: &mut Self, gives: Type| {
            let types = applied(types);
            let why = format!("found no matching overload for '{name}' applied to '{types}'");
            checker.problem(at, why);
            gives
        };
        let boolean = |ty: &Type| matches!(ty, Type::Bool | Type::Dyn);
        Some(match (name, types) {
            (op::LOGICAL_AND | op::LOGICAL_OR, sides) => {
                let sides = sides.iter().zip(&call.args);
                for (side, of) in sides.filter(|(side, _)| !boolean(side)) {
                    let why = format!("expected type 'bool' but found '{side}'");
                    self.problem(of.id, why);
                }
                (Type::Bool, 0)
            }
            (op::LOGICAL_NOT, [of]) => {
                let fits = boolean(of);
                (
                    if fits {
                        Type::Bool
                    } else {
                        mismatch(self, Type::Bool)
                    },
                    1,
                )
            }
            (op::NOT_STRICTLY_FALSE, _) => (Type::Bool, 0),
            (op::CONDITIONAL, [condition, yes, no]) => {
                let joined = yes.clone().join(no.clone());
                let fits = boolean(condition) && yes.matches(no);
                (
                    if fits {
                        joined
                    } else {
                        mismatch(self, Type::Dyn)
                    },
                    0,
                )
            }
            (op::EQUALS | op::NOT_EQUALS, [a, b]) => {
                let fits = a.matches(b) || (a.is_number() && b.is_number());
                let ty = if fits {
                    Type::Bool
                } else {
                    mismatch(self, Type::Bool)
                };
                (ty, cost::compared(a, b))
            }
            (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [a, b]) => {
                let fits =
                    ordered(a) && ordered(b) && (a.matches(b) || a.is_number() && b.is_number());
                let ty = if fits {
                    Type::Bool
                } else {
                    mismatch(self, Type::Bool)
                };
                (ty, cost::compared(a, b))
            }
            (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [a, b]) => {
                let ty = arithmetic(name, a, b);
                let cost = match &ty {
                    Some(Type::String(size) | Type::Bytes(size)) => cost::traverse(*size),
                    _ => 1,
                };
                (ty.unwrap_or_else(|| mismatch(self, Type::Dyn)), cost)
            }
            (op::NEGATE, [of]) => {
                let fits = matches!(of, Type::Int | Type::Double | Type::Duration | Type::Dyn);
                (
                    if fits {
                        of.clone()
                    } else {
                        mismatch(self, Type::Dyn)
                    },
                    1,
                )
            }
            (op::IN, [item, container]) => {
                let (fits, cost) = match container {
                    Type::List(items, size) => (items.matches(item), *size),
                    Type::Map(keys, ..) => (keys.matches(item), 1),
                    Type::Dyn => (true, 1),
                    _ => (false, 1),
                };
                (
                    if fits {
                        Type::Bool
                    } else {
                        mismatch(self, Type::Bool)
                    },
                    cost,
                )
            }
            (op::INDEX | op::OPT_INDEX, [of, at]) => {
                let (inner, optional) = match of {
                    Type::Optional(of) => (&**of, true),
                    of => (of, name == op::OPT_INDEX),
                };
                let found = match inner {
                    Type::List(items, _) => {
                        let fits = at.is_number() || *at == Type::Dyn;
                        fits.then(|| (**items).clone())
                    }
                    Type::Map(keys, values, _) => keys.matches(at).then(|| (**values).clone()),
                    Type::Dyn => Some(Type::Dyn),
                    _ => None,
                };
                let ty = match found {
                    Some(ty) if optional => Type::Optional(Arc::new(ty)),
                    Some(ty) => ty,
                    None => mismatch(self, Type::Dyn),
                };
                (ty, 1)
            }
            _ => return None,
        })
    }
}

/// The type of an entry of a literal: `[?a]` and `{?'k': a}` take optional values.
fn entry(ty: Type, optional: bool) -> Type {
    match ty {
        Type::Optional(of) if optional => (*of).clone(),
        ty => ty,
    }
}

fn applied(types: &[Type]) -> String {
    let types: Vec<String> = types.iter().map(ToString::to_string).collect();
    format!("({})", types.join(", "))
}

/// Their names are no identifiers.
fn is_operator(name: &str) -> bool {
    name.contains(|c: char| !(c.is_alphanumeric() || c == '_'))
}

fn ordered(ty: &Type) -> bool {
    !matches!(
        ty,
        Type::List(..)
            | Type::Map(..)
            | Type::Object(_)
            | Type::Optional(_)
            | Type::Null
            | Type::Named(_)
    )
}

/// `None`: these cannot be added, subtracted, multiplied, …
fn arithmetic(name: &str, a: &Type, b: &Type) -> Option<Type> {
    let time = |ty: &Type| matches!(ty, Type::Timestamp | Type::Duration);
    Some(match (name, a, b) {
        (_, Type::Dyn, Type::Dyn) => Type::Dyn,
        (op::ADD | op::SUBSTRACT, Type::Dyn, ty) | (op::ADD | op::SUBSTRACT, ty, Type::Dyn)
            if time(ty) =>
        {
            Type::Dyn
        }
        (op::ADD, Type::Dyn, ty) | (op::ADD, ty, Type::Dyn)
            if matches!(ty, Type::String(_) | Type::Bytes(_) | Type::List(..)) =>
        {
            match ty {
                Type::String(_) => Type::TEXT,
                Type::Bytes(_) => Type::Bytes(u64::MAX),
                Type::List(items, _) => Type::List(items.clone(), u64::MAX),
                _ => Type::Dyn,
            }
        }
        (op::MODULO, Type::Double, _) | (op::MODULO, _, Type::Double) => return None,
        (_, Type::Dyn, ty) | (_, ty, Type::Dyn) if ty.is_number() => ty.clone(),
        (_, a, b) if a.is_number() && a == b => a.clone(),
        (op::ADD, Type::String(m), Type::String(n)) => Type::String(m.saturating_add(*n)),
        (op::ADD, Type::Bytes(m), Type::Bytes(n)) => Type::Bytes(m.saturating_add(*n)),
        (op::ADD, Type::List(x, m), Type::List(y, n)) if x.matches(y) => {
            let items = match (&**x, &**y) {
                (Type::Dyn, items) | (items, Type::Dyn) => items.clone(),
                (x, y) => x.clone().join(y.clone()),
            };
            Type::List(Arc::new(items), m.saturating_add(*n))
        }
        (op::ADD, Type::Timestamp, Type::Duration)
        | (op::ADD, Type::Duration, Type::Timestamp)
        | (op::SUBSTRACT, Type::Timestamp, Type::Duration) => Type::Timestamp,
        (op::SUBSTRACT, Type::Timestamp, Type::Timestamp)
        | (op::ADD | op::SUBSTRACT, Type::Duration, Type::Duration) => Type::Duration,
        _ => return None,
    })
}

fn literal_type(literal: &LiteralValue) -> Type {
    match literal {
        LiteralValue::Boolean(_) => Type::Bool,
        LiteralValue::Bytes(bytes) => Type::Bytes(bytes.inner().len() as u64),
        LiteralValue::Double(_) => Type::Double,
        LiteralValue::Int(_) => Type::Int,
        LiteralValue::Null => Type::Null,
        LiteralValue::String(text) => Type::String(text.inner().len() as u64),
        LiteralValue::UInt(_) => Type::Uint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(source: &str) -> Result<String, String> {
        let request = Type::Object(Arc::new(BTreeMap::from([
            ("name".to_owned(), Type::TEXT),
            ("dryRun".to_owned(), Type::Bool),
        ])));
        let declarations = BTreeMap::from([
            ("object".to_owned(), Type::Dyn),
            ("request".to_owned(), request),
        ]);
        let program = Program::compile(source).map_err(|error| error.to_string())?;
        check(&program, &declarations).map(|checked| checked.ty.to_string())
    }

    #[track_caller]
    fn is(source: &str, ty: &str) {
        assert_eq!(checked(source), Ok(ty.to_owned()), "{source}");
    }

    #[track_caller]
    fn fails(source: &str, why: &str) {
        assert_eq!(checked(source), Err(why.to_owned()), "{source}");
    }

    #[test]
    fn types_of_results() {
        is("object.spec.replicas > 1 && has(object.x)", "bool");
        is("object.items.all(i, i.name != '')", "bool");
        is("object.items.map(i, i.name)", "list(dyn)");
        is("object.items.filter(i, i.x).size() == 0", "bool");
        is("'a' + object.name", "string");
        is("object.x ? 'a' : 'b'", "string");
        is("'x'", "string");
        is("object.spec", "dyn");
        is("request.name", "string");
        is("Object{metadata: Object.metadata{}}", "Object");
        is(
            "[JSONPatch{op: 'add', path: '/a', value: 1}]",
            "list(JSONPatch)",
        );
        is("object.?a.orValue(1) == 1", "bool");
        is("object.labels.exists(k, v, k == v)", "bool");
        is("cel.bind(x, object.a, x + 1) == 2", "bool");
        is(
            "sets.contains([1], [1]) || quantity('1') == quantity('2')",
            "bool",
        );
        is("type(object) == string", "bool");
        is("[1, 2].sortBy(x, -x)", "list(int)");
        is("{'a': 1}.transformList(k, v, v > 0, k)", "list(string)");
        is(
            "{'a': 1}.transformMap(k, v, string(v))",
            "map(string, string)",
        );
        is("[1].exists_one(i, v, i == v)", "bool");
        is("cel.bind(x, 'a', x + x)", "string");
        is("optional.of('a').optMap(x, size(x)).orValue(0)", "int");
        is("['a'].first()", "optional_type(string)");
        is("'%s: %d'.format(['a', 1])", "string");
        is("object.name.startsWith('a') ? object.x : 'b'", "dyn");
        is("url('https://a').getQuery()['x']", "list(string)");
    }

    #[test]
    fn what_cannot_be() {
        fails(
            "'a' + 1",
            "ERROR: <input>:1:5: found no matching overload for '_+_' applied to '(string, int)'\n | 'a' + 1\n | ....^",
        );
        fails(
            "object.x == 1 &&\n nope.y",
            "ERROR: <input>:2:2: undeclared reference to 'nope' (in container '')\n |  nope.y\n | .^",
        );
        fails(
            "nope(1)",
            "ERROR: <input>:1:5: undeclared reference to 'nope' (in container '')\n | nope(1)\n | ....^",
        );
        fails(
            "request.nope",
            "ERROR: <input>:1:8: undefined field 'nope'\n | request.nope\n | .......^",
        );
        fails(
            "request.name.x",
            "ERROR: <input>:1:13: type 'string' does not support field selection\n | request.name.x\n | ............^",
        );
        fails(
            "request.name.nope()",
            "ERROR: <input>:1:18: undeclared reference to 'nope' (in container '')\n | request.name.nope()\n | .................^",
        );
        fails(
            "request.name.startsWith(1)",
            "ERROR: <input>:1:24: found no matching overload for 'startsWith' applied to 'string.(int)'\n \
             | request.name.startsWith(1)\n | .......................^",
        );
        fails(
            "size(1) == 1",
            "ERROR: <input>:1:5: found no matching overload for 'size' applied to '(int)'\n | size(1) == 1\n | ....^",
        );
        fails(
            "'a' && request.dryRun",
            "ERROR: <input>:1:1: expected type 'bool' but found 'string'\n | 'a' && request.dryRun\n | ^",
        );
        fails(
            "[1, 'a']",
            "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^",
        );
        fails(
            "request.name.matches('[')",
            "ERROR: <input>:1:22: invalid matches argument\n | request.name.matches('[')\n | .....................^",
        );
        fails(
            "request.dryRun || (1 == 1 || 2)",
            "ERROR: <input>:1:30: expected type 'bool' but found 'int'\n | request.dryRun || (1 == 1 || 2)\n | .............................^",
        );
        fails(
            "'é' == 'é' && !request.name",
            "ERROR: <input>:1:15: found no matching overload for '!_' applied to '(string)'\n \
             | 'é' == 'é' && !request.name\n | ..............^",
        );
        fails(
            "request.dryRun ? 1 : 'a'",
            "ERROR: <input>:1:16: found no matching overload for '_?_:_' applied to '(bool, int, string)'\n \
             | request.dryRun ? 1 : 'a'\n | ...............^",
        );
        fails(
            "{'a': 1, 'b': 'x', 'c': 'y'} == {}",
            "ERROR: <input>:1:15: expected type 'int' but found 'string'\n \
             | {'a': 1, 'b': 'x', 'c': 'y'} == {}\n | ..............^",
        );
        // Not the first place that looks like it, and in the order of places.
        fails(
            "request.name == 'a' && x.size() > y",
            "ERROR: <input>:1:24: undeclared reference to 'x' (in container '')\n \
             | request.name == 'a' && x.size() > y\n | .......................^\n\
             ERROR: <input>:1:35: undeclared reference to 'y' (in container '')\n \
             | request.name == 'a' && x.size() > y\n | ..................................^",
        );
        // What an unknown function is given is not looked at.
        fails(
            "nope(x)",
            "ERROR: <input>:1:5: undeclared reference to 'nope' (in container '')\n | nope(x)\n | ....^",
        );
        // Mixed literals are looked for only where nothing else is wrong.
        fails(
            "[1, 'a'] == [x]",
            "ERROR: <input>:1:14: undeclared reference to 'x' (in container '')\n | [1, 'a'] == [x]\n | .............^",
        );
        assert!(checked("duration('1 day') > duration('1h')").is_err());
        assert!(checked("[1].exists(i, v, v == 'a')").is_err());
        assert!(checked("request.?nope.hasValue()").is_err());
        assert!(checked("true ? 1 : 'a'").is_err());
        assert!(checked("request.all(x, true)").is_err());
        assert!(checked("!'a'").is_err());
        assert!(checked("request.dryRun == 'x'").is_err());
        assert!(checked("1 < 'a'").is_err());
    }
}
