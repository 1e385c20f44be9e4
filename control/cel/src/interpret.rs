//! The interpreter: a tree walk with a cost for every step.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use kube_cel::cel::{
    Value,
    common::ast::{
        CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, LiteralValue, MapExpr,
        SelectExpr, SourceInfo, StructExpr, operators,
    },
    objects::{Key, Map, OptionalValue},
    parser::Parser,
};

use crate::{
    functions,
    object::Object,
    unordered::{as_unordered, equal, items_of, ordered},
};

/// Most that one evaluation may cost, as upstream's `PerCallLimit`.
pub const CALL_COST_LIMIT: u64 = 1_000_000;
/// Upstream charges a tenth of a string's or list's length for walking it.
const WALK_DIVISOR: u64 = 10;

/// Brackets in each other; upstream's parser stops at a depth too.
const MAX_NESTING: usize = 48;
/// Operators or selections in a row that need as much stack as a pair of brackets.
/// The generated parser needs some 50 KB for a pair of brackets. Compiling is rare, so it gets a thread of its own.
const PARSER_STACK_BYTES: usize = 32 * 1024 * 1024;
const OPERATORS_A_LEVEL: usize = 5;

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// In cel-go's words: `no such key: x`.
    #[error("{0}")]
    Failed(String),
    /// One evaluation cost more than [`CALL_COST_LIMIT`].
    #[error("operation cancelled: actual cost limit exceeded")]
    CallLimit,
}

impl Error {
    pub fn failed(why: impl Into<String>) -> Self {
        Self::Failed(why.into())
    }

    pub(crate) fn overload() -> Self {
        Self::failed("no such overload")
    }
}

/// The text is no expression. Displays as cel-go shows it, with the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(pub String);

/// What several evaluations may cost together.
#[derive(Debug)]
pub struct Budget(Cell<u64>);

impl Budget {
    pub fn new(cost: u64) -> Self {
        Self(Cell::new(cost))
    }

    /// Nothing is left.
    pub fn spent(&self) -> bool {
        self.0.get() == 0
    }
}

/// What an expression can refer to.
pub trait Environment {
    /// `None`: there is no such variable.
    fn variable(&self, name: &str) -> Option<Result<Value, Error>>;

    /// A field of a variable that is not worth making as a whole (`variables.x`). `None`: look at the variable.
    fn field(&self, _variable: &str, _field: &str) -> Option<Result<Value, Error>> {
        None
    }

    /// A method of one of the caller's own opaque values. `None`: not one of these.
    fn call(
        &self,
        _target: &Value,
        _function: &str,
        _args: &[Value],
    ) -> Option<Result<Value, Error>> {
        None
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    source: String,
    root: IdedExpr,
}

impl Program {
    /// # Errors
    /// When the text is no expression.
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        if nesting(source) > MAX_NESTING {
            return Err(CompileError(format!(
                "ERROR: <input>:-1:0: expression recursion limit exceeded: {MAX_NESTING}"
            )));
        }
        let text = source.to_owned();
        let parsed = on_parser_stack(move || {
            parser().parse(&text).map_err(|errors| {
                let errors = errors.errors.into_iter();
                errors.map(|e| (e.pos, e.msg)).collect::<Vec<_>>()
            })
        });
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(NoParse::Thread(error)) => {
                return Err(CompileError(format!("no thread for the parser: {error}")));
            }
            // The generated parser panics on some texts that end too early.
            Err(NoParse::Panic) => {
                return Err(CompileError(place(
                    source,
                    (1, 1),
                    "Syntax error: mismatched input",
                )));
            }
        };
        let root = parsed.map_err(|errors| {
            let shown = errors.iter().map(|(at, why)| place(source, *at, why));
            let shown: Vec<String> = shown.collect();
            CompileError(shown.join("\n"))
        })?;
        Ok(Self {
            source: source.to_owned(),
            root,
        })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn expression(&self) -> &IdedExpr {
        &self.root
    }

    /// Where the nodes stand in the source, by their ids. Parses once more: the parser tells it only with its errors. A
    /// character that no token begins with is one, and changes nothing else.
    pub(crate) fn places(&self) -> Option<Arc<SourceInfo>> {
        let text = format!("{}\n$", self.source);
        let parsed = on_parser_stack(move || {
            let errors = parser().parse(&text).err()?.errors;
            errors.into_iter().find_map(|error| error.source_info)
        });
        parsed.ok().flatten()
    }

    /// # Errors
    /// See [`Error`].
    pub fn evaluate(&self, environment: &dyn Environment, budget: &Budget) -> Result<Value, Error> {
        let limit = CALL_COST_LIMIT.min(budget.0.get());
        let run = Run {
            environment,
            cost: Cell::new(0),
            limit,
        };
        let result = run.eval(&self.root, None);
        let left = budget.0.get().saturating_sub(run.cost.get());
        budget.0.set(left);
        result
    }
}

fn parser() -> Parser {
    Parser::new().enable_optional_syntax(true)
}

enum NoParse {
    Thread(std::io::Error),
    Panic,
}

fn on_parser_stack<T: Send + 'static>(
    parse: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoParse> {
    let thread = std::thread::Builder::new().stack_size(PARSER_STACK_BYTES);
    let thread = thread.spawn(parse).map_err(NoParse::Thread)?;
    thread.join().map_err(|_| NoParse::Panic)
}

/// How deep brackets and conditionals are in each other at most; the parser recurses for each. Long chains of one
/// operator nest as deep as they are long, so every operator of a run counts too.
fn nesting(source: &str) -> usize {
    let (mut depth, mut deepest, mut runs) = (0_usize, 0, vec![(0_usize, 0_usize)]);
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => {
                // A raw or triple-quoted string reads as several short ones; only the balance matters.
                while let Some(inner) = chars.next() {
                    match inner {
                        '\\' => {
                            chars.next();
                        }
                        inner if inner == c => break,
                        _ => {}
                    }
                }
            }
            '(' | '[' | '{' => {
                depth += 1;
                runs.push((0, 0));
            }
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                if runs.len() > 1 {
                    runs.pop();
                }
            }
            ',' | '&' | '|' => {
                if let Some(run) = runs.last_mut() {
                    *run = (0, 0);
                }
            }
            '?' if !matches!(chars.peek(), Some('.' | '[')) => {
                if let Some(run) = runs.last_mut() {
                    run.0 += OPERATORS_A_LEVEL;
                }
            }
            '+' | '-' | '*' | '/' | '%' | '!' | '=' | '<' | '>' | ':' => {
                if let Some(run) = runs.last_mut() {
                    *run = (run.0 + 1, 0);
                }
            }
            '.' => {
                if let Some(run) = runs.last_mut() {
                    run.1 += 1;
                }
            }
            _ => {}
        }
        // An operator of a run costs less stack than a bracket.
        let run: usize = runs
            .iter()
            .map(|(operators, selects)| operators + selects)
            .sum();
        deepest = deepest.max(depth + run / OPERATORS_A_LEVEL);
    }
    deepest
}

/// `ERROR: <input>:1:3: why` and the line with a caret.
pub(crate) fn place(source: &str, (line, column): (isize, isize), why: &str) -> String {
    let number = usize::try_from(line).unwrap_or(1).max(1);
    let text = source.lines().nth(number - 1).unwrap_or_default();
    let dots = ".".repeat(usize::try_from(column).unwrap_or(1).saturating_sub(1));
    format!("ERROR: <input>:{line}:{column}: {why}\n | {text}\n | {dots}^")
}

/// Local variables, innermost first.
struct Scope<'s> {
    outer: Option<&'s Scope<'s>>,
    name: &'s str,
    value: Value,
}

struct Run<'r> {
    environment: &'r dyn Environment,
    cost: Cell<u64>,
    limit: u64,
}

type Evaluated = Result<Value, Error>;
type Locals<'s> = Option<&'s Scope<'s>>;

pub(crate) fn optional(value: Option<Value>) -> Value {
    let optional = match value {
        Some(value) => OptionalValue::of(value),
        None => OptionalValue::none(),
    };
    Value::Opaque(Arc::new(optional))
}

pub(crate) fn as_optional(value: &Value) -> Option<&OptionalValue> {
    match value {
        Value::Opaque(opaque) => opaque.downcast_ref::<OptionalValue>(),
        _ => None,
    }
}

fn truth(value: Value) -> Result<bool, Error> {
    match value {
        Value::Bool(bool) => Ok(bool),
        _ => Err(Error::overload()),
    }
}

impl Run<'_> {
    fn charge(&self, cost: u64) -> Result<(), Error> {
        let cost = self.cost.get().saturating_add(cost);
        self.cost.set(cost);
        if cost > self.limit {
            return Err(Error::CallLimit);
        }
        Ok(())
    }

    /// Walking a string, list or map costs by its length.
    fn charge_walk(&self, value: &Value) -> Result<(), Error> {
        let length = match value {
            Value::String(text) => text.len(),
            Value::Bytes(bytes) => bytes.len(),
            Value::Map(map) => map.map.len(),
            value => items_of(value).map_or(0, |items| items.len()),
        };
        self.charge(length as u64 / WALK_DIVISOR)
    }

    fn eval(&self, expr: &IdedExpr, locals: Locals<'_>) -> Evaluated {
        match &expr.expr {
            Expr::Literal(literal) => Ok(literal_value(literal)),
            Expr::Ident(name) => {
                self.charge(1)?;
                self.identifier(name, locals)
            }
            Expr::Select(select) => self.select(select, locals),
            Expr::Call(call) => self.call(call, locals),
            Expr::List(list) => self.list(list, locals),
            Expr::Map(map) => self.map(map, locals),
            Expr::Struct(object) => self.object(object, locals),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, locals),
            Expr::Unspecified => Err(Error::failed("unspecified expression")),
        }
    }

    fn identifier(&self, name: &str, locals: Locals<'_>) -> Evaluated {
        let mut scope = locals;
        while let Some(local) = scope {
            if local.name == name {
                return Ok(local.value.clone());
            }
            scope = local.outer;
        }
        if let Some(value) = self.environment.variable(name) {
            return value;
        }
        functions::type_named(name)
            .ok_or_else(|| Error::failed(format!("no such attribute(s): {name}")))
    }

    fn select(&self, select: &SelectExpr, locals: Locals<'_>) -> Evaluated {
        self.charge(1)?;
        if let Expr::Ident(name) = &select.operand.expr
            && !is_local(name, locals)
            && let Some(value) = self.environment.field(name, &select.field)
        {
            return if select.test {
                Ok(Value::Bool(true))
            } else {
                value
            };
        }
        let operand = self.eval(&select.operand, locals)?;
        if let Some(optional_operand) = as_optional(&operand) {
            let found = match optional_operand.value() {
                Some(inner) => field_of(inner, &select.field)?,
                None => None,
            };
            return Ok(if select.test {
                Value::Bool(found.is_some())
            } else {
                optional(found)
            });
        }
        let found = field_of(&operand, &select.field)?;
        if select.test {
            return Ok(Value::Bool(found.is_some()));
        }
        found.ok_or_else(|| Error::failed(format!("no such key: {}", select.field)))
    }

    fn list(&self, list: &ListExpr, locals: Locals<'_>) -> Evaluated {
        self.charge(1 + list.elements.len() as u64)?;
        let mut items = Vec::with_capacity(list.elements.len());
        for (index, element) in list.elements.iter().enumerate() {
            let value = self.eval(element, locals)?;
            if list.optional_indices.contains(&index) {
                items.extend(unwrapped(value)?);
            } else {
                items.push(value);
            }
        }
        Ok(Value::List(Arc::new(items)))
    }

    fn map(&self, map: &MapExpr, locals: Locals<'_>) -> Evaluated {
        self.charge(1 + map.entries.len() as u64)?;
        let mut built = HashMap::with_capacity(map.entries.len());
        for entry in &map.entries {
            let EntryExpr::MapEntry(entry) = &entry.expr else {
                return Err(Error::failed("a map has no fields"));
            };
            let key = self.eval(&entry.key, locals)?;
            let key = as_key(&key)?;
            let value = self.eval(&entry.value, locals)?;
            let value = if entry.optional {
                unwrapped(value)?
            } else {
                Some(value)
            };
            if let Some(value) = value {
                built.insert(key, value);
            }
        }
        Ok(Value::Map(Map {
            map: Arc::new(built),
        }))
    }

    fn object(&self, object: &StructExpr, locals: Locals<'_>) -> Evaluated {
        self.charge(1 + object.entries.len() as u64)?;
        let mut fields = BTreeMap::new();
        for entry in &object.entries {
            let EntryExpr::StructField(field) = &entry.expr else {
                return Err(Error::failed("an object has no keys"));
            };
            let value = self.eval(&field.value, locals)?;
            let value = if field.optional {
                unwrapped(value)?
            } else {
                Some(value)
            };
            if let Some(value) = value {
                fields.insert(field.field.clone(), value);
            }
        }
        let type_name = object.type_name.clone();
        Ok(Value::Opaque(Arc::new(Object { type_name, fields })))
    }

    fn call(&self, call: &CallExpr, locals: Locals<'_>) -> Evaluated {
        self.charge(1)?;
        let name = call.func_name.as_str();
        match (name, call.args.as_slice()) {
            (operators::CONDITIONAL, [condition, yes, no]) => {
                let taken = truth(self.eval(condition, locals)?)?;
                return self.eval(if taken { yes } else { no }, locals);
            }
            (operators::LOGICAL_OR, [left, right]) => {
                return self.either(left, right, true, locals);
            }
            (operators::LOGICAL_AND, [left, right]) => {
                return self.either(left, right, false, locals);
            }
            (operators::NOT_STRICTLY_FALSE, [arg]) => {
                return match self.eval(arg, locals) {
                    Ok(Value::Bool(bool)) => Ok(Value::Bool(bool)),
                    Err(Error::CallLimit) => Err(Error::CallLimit),
                    _ => Ok(Value::Bool(true)),
                };
            }
            (operators::OPT_SELECT, [operand, field]) => {
                let operand = self.eval(operand, locals)?;
                let field = self.eval(field, locals)?;
                return self.optional_index(&operand, &field);
            }
            (operators::OPT_INDEX, [operand, index]) => {
                let operand = self.eval(operand, locals)?;
                let index = self.eval(index, locals)?;
                return self.optional_index(&operand, &index);
            }
            _ => {}
        }
        if let Some(result) = self.macro_call(call, locals) {
            return result;
        }
        let mut args = Vec::with_capacity(call.args.len());
        match &call.target {
            None => {
                for arg in &call.args {
                    args.push(self.eval(arg, locals)?);
                }
                self.global(name, args)
            }
            Some(target) => {
                if let Expr::Ident(prefix) = &target.expr
                    && functions::is_namespace(prefix)
                    && !is_local(prefix, locals)
                {
                    for arg in &call.args {
                        args.push(self.eval(arg, locals)?);
                    }
                    self.charge_all(&args)?;
                    let args: Vec<Value> = args.into_iter().map(ordered).collect();
                    return functions::qualified(prefix, name, &args);
                }
                let target = self.eval(target, locals)?;
                for arg in &call.args {
                    args.push(self.eval(arg, locals)?);
                }
                self.method(&target, name, &args)
            }
        }
    }

    fn charge_all(&self, args: &[Value]) -> Result<(), Error> {
        args.iter().try_for_each(|arg| self.charge_walk(arg))
    }

    fn global(&self, name: &str, args: Vec<Value>) -> Evaluated {
        match (name, args.as_slice()) {
            (operators::INDEX, [operand, index]) => self.index(operand, index),
            (operators::EQUALS, [left, right]) => {
                self.charge_walk(left)?;
                Ok(Value::Bool(equal(left, right)))
            }
            (operators::NOT_EQUALS, [left, right]) => {
                self.charge_walk(left)?;
                Ok(Value::Bool(!equal(left, right)))
            }
            (operators::ADD, [left, right]) if as_unordered(left).is_some() => {
                self.charge_all(&args)?;
                match (as_unordered(left), items_of(right)) {
                    (Some(list), Some(more)) => Ok(Value::Opaque(Arc::new(list.union(more)))),
                    _ => Err(Error::overload()),
                }
            }
            ("dyn", [arg]) => Ok(arg.clone()),
            (operators::IN, [item, container]) => {
                self.charge_walk(container)?;
                match (items_of(container), container) {
                    (Some(items), _) => {
                        Ok(Value::Bool(items.iter().any(|known| equal(known, item))))
                    }
                    (None, Value::Map(map)) => {
                        let key = as_key(item);
                        Ok(Value::Bool(key.is_ok_and(|key| map.map.contains_key(&key))))
                    }
                    _ => Err(Error::overload()),
                }
            }
            (operators::LOGICAL_NOT, [arg]) => Ok(Value::Bool(!truth(arg.clone())?)),
            _ => {
                self.charge_all(&args)?;
                let args: Vec<Value> = args.into_iter().map(ordered).collect();
                if let Some(result) = functions::operator(name, &args) {
                    return result;
                }
                functions::global(name, &args)
            }
        }
    }

    fn method(&self, target: &Value, name: &str, args: &[Value]) -> Evaluated {
        if let Some(result) = self.environment.call(target, name, args) {
            // An authorization check is the dearest thing that an expression can do.
            self.charge(if name == "check" { 350_000 } else { 1 })?;
            return result;
        }
        self.charge_walk(target)?;
        self.charge_all(args)?;
        if as_optional(target).is_some() {
            return functions::method(target, name, args);
        }
        let args: Vec<Value> = args.iter().cloned().map(ordered).collect();
        functions::method(&ordered(target.clone()), name, &args)
    }

    /// `||` (`decides` = true) and `&&`: the side that decides wins, whichever fails.
    fn either(
        &self,
        left: &IdedExpr,
        right: &IdedExpr,
        decides: bool,
        locals: Locals<'_>,
    ) -> Evaluated {
        let left = self.eval(left, locals).and_then(truth);
        match left {
            Ok(bool) if bool == decides => return Ok(Value::Bool(decides)),
            Err(Error::CallLimit) => return Err(Error::CallLimit),
            _ => {}
        }
        let right = self.eval(right, locals).and_then(truth);
        match (left, right) {
            (_, Ok(bool)) if bool == decides => Ok(Value::Bool(decides)),
            (_, Err(Error::CallLimit)) => Err(Error::CallLimit),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(_), Ok(_)) => Ok(Value::Bool(!decides)),
        }
    }

    fn index(&self, operand: &Value, index: &Value) -> Evaluated {
        if let Some(inner) = as_optional(operand) {
            return match inner.value() {
                Some(inner) => self.optional_index(inner, index),
                None => Ok(optional(None)),
            };
        }
        if let Some(items) = items_of(operand) {
            let at = list_index(index)?;
            let item = usize::try_from(at).ok().and_then(|at| items.get(at));
            return item
                .cloned()
                .ok_or_else(|| Error::failed(format!("index out of bounds: {at}")));
        }
        match operand {
            Value::Map(map) => {
                let key = as_key(index)?;
                let found = map.map.get(&key).cloned();
                found.ok_or_else(|| {
                    Error::failed(format!("no such key: {}", functions::shown(index)))
                })
            }
            _ => Err(Error::overload()),
        }
    }

    fn optional_index(&self, operand: &Value, index: &Value) -> Evaluated {
        let operand = match as_optional(operand) {
            Some(inner) => match inner.value() {
                Some(inner) => inner,
                None => return Ok(optional(None)),
            },
            None => operand,
        };
        if let Some(items) = items_of(operand) {
            let at = usize::try_from(list_index(index)?);
            return Ok(optional(at.ok().and_then(|at| items.get(at).cloned())));
        }
        let found = match operand {
            Value::Map(map) => map.map.get(&as_key(index)?).cloned(),
            Value::Opaque(_) => match index {
                Value::String(field) => field_of(operand, field)?,
                _ => return Err(Error::overload()),
            },
            _ => return Err(Error::overload()),
        };
        Ok(optional(found))
    }

    /// Macros that the parser leaves as calls: `cel.bind`, `optMap`, comprehensions over two variables.
    fn macro_call(&self, call: &CallExpr, locals: Locals<'_>) -> Option<Evaluated> {
        let target = call.target.as_deref()?;
        let ident = |expr: &'_ IdedExpr| match &expr.expr {
            Expr::Ident(name) => Some(name.clone()),
            _ => None,
        };
        match (call.func_name.as_str(), call.args.as_slice()) {
            ("bind", [name, value, body]) if ident(target).as_deref() == Some("cel") => {
                let name = ident(name)?;
                Some(self.eval(value, locals).and_then(|value| {
                    self.eval(
                        body,
                        Some(&Scope {
                            outer: locals,
                            name: &name,
                            value,
                        }),
                    )
                }))
            }
            ("sortBy", [name, body]) => {
                let name = ident(name)?;
                Some(self.sort_by(target, &name, body, locals))
            }
            (function @ ("optMap" | "optFlatMap"), [name, body]) => {
                let name = ident(name)?;
                Some(self.opt_map(target, &name, body, function == "optFlatMap", locals))
            }
            (function @ ("all" | "exists" | "existsOne" | "exists_one"), [key, value, body]) => {
                let (key, value) = (ident(key)?, ident(value)?);
                Some(self.quantify(function, target, [&key, &value], body, locals))
            }
            (
                function @ ("transformList" | "transformMap" | "transformMapEntry"),
                [key, value, rest @ ..],
            ) => {
                let (key, value) = (ident(key)?, ident(value)?);
                let (filter, body) = match rest {
                    [body] => (None, body),
                    [filter, body] => (Some(filter), body),
                    _ => return None,
                };
                Some(self.transform(function, target, [&key, &value], filter, body, locals))
            }
            _ => None,
        }
    }

    fn opt_map(
        &self,
        target: &IdedExpr,
        name: &str,
        body: &IdedExpr,
        flat: bool,
        locals: Locals<'_>,
    ) -> Evaluated {
        let target = self.eval(target, locals)?;
        let inner = as_optional(&target).ok_or_else(Error::overload)?;
        let Some(value) = inner.value().cloned() else {
            return Ok(optional(None));
        };
        let mapped = self.eval(
            body,
            Some(&Scope {
                outer: locals,
                name,
                value,
            }),
        )?;
        Ok(if flat { mapped } else { optional(Some(mapped)) })
    }

    /// The items of a list in the order of what `body` gives for each.
    fn sort_by(
        &self,
        target: &IdedExpr,
        name: &str,
        body: &IdedExpr,
        locals: Locals<'_>,
    ) -> Evaluated {
        let target = self.eval(target, locals)?;
        let items = items_of(&target).ok_or_else(Error::overload)?;
        let mut keyed = Vec::with_capacity(items.len());
        for item in items.iter() {
            self.charge(1)?;
            let scope = Scope {
                outer: locals,
                name,
                value: item.clone(),
            };
            keyed.push((self.eval(body, Some(&scope))?, item.clone()));
        }
        // Each comparison is a step.
        let rounds = keyed.len().checked_ilog2().unwrap_or(0);
        self.charge(keyed.len() as u64 * u64::from(rounds))?;
        let mut failure = None;
        keyed.sort_by(|(a, _), (b, _)| {
            functions::compare(a, b)
                .unwrap_or_else(|error| {
                    failure = Some(error);
                    None
                })
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        match failure {
            Some(error) => Err(error),
            None => {
                let sorted = keyed.into_iter().map(|(_, item)| item).collect();
                Ok(Value::List(Arc::new(sorted)))
            }
        }
    }

    /// Index and item of a list, key and value of a map.
    fn pairs(&self, range: &Value) -> Result<Vec<(Value, Value)>, Error> {
        if let Some(items) = items_of(range) {
            let numbered = items.iter().enumerate();
            return Ok(numbered
                .map(|(at, item)| (Value::Int(at as i64), item.clone()))
                .collect());
        }
        match range {
            Value::Map(map) => {
                let entries = map.map.iter();
                let mut pairs: Vec<(Value, Value)> = entries
                    .map(|(key, value)| (Value::from(key), value.clone()))
                    .collect();
                pairs.sort_by_key(|(key, _)| functions::shown(key));
                Ok(pairs)
            }
            _ => Err(Error::overload()),
        }
    }

    fn quantify(
        &self,
        function: &str,
        target: &IdedExpr,
        [key_name, value_name]: [&str; 2],
        body: &IdedExpr,
        locals: Locals<'_>,
    ) -> Evaluated {
        let range = self.eval(target, locals)?;
        let (mut count, mut failure) = (0, None);
        for (key, value) in self.pairs(&range)? {
            let outer = Scope {
                outer: locals,
                name: key_name,
                value: key,
            };
            let inner = Scope {
                outer: Some(&outer),
                name: value_name,
                value,
            };
            self.charge(1)?;
            match (function, self.eval(body, Some(&inner)).and_then(truth)) {
                ("all", Ok(false)) => return Ok(Value::Bool(false)),
                ("exists", Ok(true)) => return Ok(Value::Bool(true)),
                (_, Ok(true)) => count += 1,
                (_, Ok(false)) => {}
                ("all" | "exists", Err(Error::Failed(why))) => failure = Some(Error::Failed(why)),
                (_, Err(error)) => return Err(error),
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(Value::Bool(match function {
                "all" => true,
                "exists" => false,
                _ => count == 1,
            })),
        }
    }

    fn transform(
        &self,
        function: &str,
        target: &IdedExpr,
        [key_name, value_name]: [&str; 2],
        filter: Option<&IdedExpr>,
        body: &IdedExpr,
        locals: Locals<'_>,
    ) -> Evaluated {
        let range = self.eval(target, locals)?;
        let (mut list, mut map) = (Vec::new(), HashMap::new());
        for (key, value) in self.pairs(&range)? {
            self.charge(1)?;
            let outer = Scope {
                outer: locals,
                name: key_name,
                value: key.clone(),
            };
            let inner = Scope {
                outer: Some(&outer),
                name: value_name,
                value,
            };
            if let Some(filter) = filter
                && !truth(self.eval(filter, Some(&inner))?)?
            {
                continue;
            }
            let made = self.eval(body, Some(&inner))?;
            match (function, made) {
                ("transformList", made) => list.push(made),
                ("transformMap", made) => {
                    map.insert(as_key(&key)?, made);
                }
                (_, Value::Map(entries)) => {
                    for (key, value) in entries.map.iter() {
                        if map.insert(key.clone(), value.clone()).is_some() {
                            return Err(Error::failed(format!(
                                "insert failed: key {} already exists",
                                functions::shown(&Value::from(key))
                            )));
                        }
                    }
                }
                _ => return Err(Error::overload()),
            }
        }
        Ok(match function {
            "transformList" => Value::List(Arc::new(list)),
            _ => Value::Map(Map { map: Arc::new(map) }),
        })
    }

    fn comprehension(&self, comprehension: &ComprehensionExpr, locals: Locals<'_>) -> Evaluated {
        let range = self.eval(&comprehension.iter_range, locals)?;
        let mut accumulated = self.eval(&comprehension.accu_init, locals)?;
        let name = comprehension.accu_var.as_str();
        let items: Vec<Value> = match (items_of(&range), &range) {
            (Some(items), _) => items.to_vec(),
            (None, Value::Map(map)) => {
                let mut keys: Vec<Value> = map.map.keys().map(Value::from).collect();
                keys.sort_by_key(functions::shown);
                keys
            }
            _ => return Err(Error::overload()),
        };
        for item in items {
            self.charge(1)?;
            // The accumulator of `map` and `filter` is a list that only grows; no copy of it for each item.
            if !matches!(accumulated, Value::List(_)) {
                let scope = Scope {
                    outer: locals,
                    name,
                    value: accumulated.clone(),
                };
                if !truth(self.eval(&comprehension.loop_cond, Some(&scope))?)? {
                    break;
                }
            }
            let item = Scope {
                outer: locals,
                name: &comprehension.iter_var,
                value: item,
            };
            accumulated = self.step(&comprehension.loop_step, name, accumulated, &item)?;
        }
        let scope = Scope {
            outer: locals,
            name,
            value: accumulated,
        };
        self.eval(&comprehension.result, Some(&scope))
    }

    /// One round of a comprehension; appends to a list in place.
    fn step(&self, step: &IdedExpr, name: &str, accumulated: Value, item: &Scope<'_>) -> Evaluated {
        let is_accumulator = |expr: &IdedExpr| matches!(&expr.expr, Expr::Ident(n) if n == name);
        match (&step.expr, accumulated) {
            (Expr::Ident(n), accumulated) if n == name => Ok(accumulated),
            (Expr::Call(call), Value::List(mut items)) => {
                match (call.func_name.as_str(), call.args.as_slice()) {
                    (operators::CONDITIONAL, [condition, yes, no]) => {
                        let taken = truth(self.eval(condition, Some(item))?)?;
                        self.step(if taken { yes } else { no }, name, Value::List(items), item)
                    }
                    (operators::ADD, [left, right]) if is_accumulator(left) => {
                        let more = self.eval(right, Some(item))?;
                        let Value::List(more) = more else {
                            return Err(Error::overload());
                        };
                        Arc::make_mut(&mut items).extend(more.iter().cloned());
                        Ok(Value::List(items))
                    }
                    _ => self.general_step(step, name, Value::List(items), item),
                }
            }
            (_, accumulated) => self.general_step(step, name, accumulated, item),
        }
    }

    fn general_step(
        &self,
        step: &IdedExpr,
        name: &str,
        value: Value,
        item: &Scope<'_>,
    ) -> Evaluated {
        self.eval(
            step,
            Some(&Scope {
                outer: Some(item),
                name,
                value,
            }),
        )
    }
}

fn is_local(name: &str, locals: Locals<'_>) -> bool {
    let mut scope = locals;
    while let Some(local) = scope {
        if local.name == name {
            return true;
        }
        scope = local.outer;
    }
    false
}

fn literal_value(literal: &LiteralValue) -> Value {
    match literal {
        LiteralValue::Boolean(bool) => Value::Bool(*bool.inner()),
        LiteralValue::Bytes(bytes) => Value::Bytes(Arc::new(bytes.inner().to_vec())),
        LiteralValue::Double(double) => Value::Float(*double.inner()),
        LiteralValue::Int(int) => Value::Int(*int.inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::String(text) => Value::String(Arc::new(text.inner().to_owned())),
        LiteralValue::UInt(uint) => Value::UInt(*uint.inner()),
    }
}

fn field_of(value: &Value, field: &str) -> Result<Option<Value>, Error> {
    match value {
        Value::Map(map) => {
            let key = Key::String(Arc::new(field.to_owned()));
            Ok(map.map.get(&key).cloned())
        }
        Value::Opaque(opaque) => match opaque.downcast_ref::<Object>() {
            Some(object) => Ok(object.fields.get(field).cloned()),
            None => Err(Error::overload()),
        },
        // Upstream cannot select from null either, and says so in these words.
        _ => Err(Error::failed(format!("no such key: {field}"))),
    }
}

fn unwrapped(value: Value) -> Result<Option<Value>, Error> {
    match as_optional(&value) {
        Some(inner) => Ok(inner.value().cloned()),
        None => Err(Error::failed(
            "cannot initialize optional entry from a value that is not optional",
        )),
    }
}

fn list_index(index: &Value) -> Result<i64, Error> {
    match index {
        Value::Int(int) => Ok(*int),
        Value::UInt(uint) => Ok(i64::try_from(*uint).unwrap_or(i64::MAX)),
        Value::Float(float) if float.fract() == 0.0 => Ok(*float as i64),
        _ => Err(Error::overload()),
    }
}

/// Numbers that are equal are the same key.
fn as_key(value: &Value) -> Result<Key, Error> {
    match value {
        Value::Int(int) => Ok(Key::Int(*int)),
        Value::UInt(uint) => Ok(i64::try_from(*uint).map_or(Key::Uint(*uint), Key::Int)),
        Value::Bool(bool) => Ok(Key::Bool(*bool)),
        Value::String(text) => Ok(Key::String(text.clone())),
        Value::Float(float) if float.fract() == 0.0 => Ok(Key::Int(*float as i64)),
        _ => Err(Error::failed("unsupported key type")),
    }
}

#[cfg(test)]
mod tests;
