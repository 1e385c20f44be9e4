//! What can be said of an expression before it is evaluated: names that nobody declared, operators on types that they
//! do not take, the type of the result.
//!
//! Objects are dynamic, so much stays unknown ([`Type::Dyn`]) and is found out at evaluation. What is reported here is
//! certain.

use std::{collections::BTreeMap, fmt};

use kube_cel::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators,
};

use crate::{Program, functions, interpret::place};

/// The type of an expression, as cel-go shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    Dyn,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Null,
    List(Box<Type>),
    Map(Box<Type>),
    /// An object whose fields are known.
    Fields(BTreeMap<String, Type>),
    /// A constructed object (`Object.spec`) or a value of a library.
    Named(String),
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Null => f.write_str("null"),
            Self::List(items) => write!(f, "list({items})"),
            Self::Map(values) => write!(f, "map(string, {values})"),
            Self::Fields(_) => f.write_str("object"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// The variables of an expression by name.
pub type Declarations = BTreeMap<String, Type>;

/// The result's type.
///
/// # Errors
/// All problems, in the form of cel-go's compiler.
pub fn check(program: &Program, declarations: &Declarations) -> Result<Type, String> {
    let mut checker = Checker {
        source: program.source(),
        declarations,
        locals: Vec::new(),
        problems: Vec::new(),
    };
    let ty = checker.expression(program.expression());
    if checker.problems.is_empty() {
        Ok(ty)
    } else {
        Err(checker.problems.join("\n"))
    }
}

/// Whether it is certain that the result is nothing but a part of a dynamic object.
pub fn is_plain_selection(program: &Program) -> bool {
    match &program.expression().expr {
        Expr::Select(select) => !select.test,
        Expr::Ident(_) => true,
        Expr::Call(call) => call.func_name == operators::INDEX,
        _ => false,
    }
}

struct Checker<'c> {
    source: &'c str,
    declarations: &'c Declarations,
    locals: Vec<(String, Type)>,
    problems: Vec<String>,
}

impl Checker<'_> {
    /// The parser does not say where a node stood, so a problem is shown at the first place that looks like it.
    fn problem(&mut self, needle: &str, why: &str) {
        let at = find_outside_strings(self.source, needle).unwrap_or(0);
        let before = &self.source[..at];
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = self.source[start..at].chars().count() + 1;
        let number = |n: usize| isize::try_from(n).unwrap_or(1);
        let shown = place(self.source, (number(line), number(column)), why);
        self.problems.push(shown);
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let local = self.locals.iter().rev().find(|(local, _)| local == name);
        match local {
            Some((_, ty)) => Some(ty.clone()),
            None => self.declarations.get(name).cloned(),
        }
    }

    fn expression(&mut self, expression: &IdedExpr) -> Type {
        match &expression.expr {
            Expr::Unspecified => Type::Dyn,
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Type::Bool,
                LiteralValue::Bytes(_) => Type::Bytes,
                LiteralValue::Double(_) => Type::Double,
                LiteralValue::Int(_) => Type::Int,
                LiteralValue::Null => Type::Null,
                LiteralValue::String(_) => Type::String,
                LiteralValue::UInt(_) => Type::Uint,
            },
            Expr::Ident(name) => match self.variable(name) {
                Some(ty) => ty,
                None if functions::type_named(name).is_some() => Type::Named("type".to_owned()),
                None => {
                    let why = format!("undeclared reference to '{name}' (in container '')");
                    self.problem(name, &why);
                    Type::Dyn
                }
            },
            Expr::Select(select) => self.select(select),
            Expr::List(list) => {
                let mut items: Option<Type> = None;
                for element in &list.elements {
                    let ty = self.expression(element);
                    items = Some(match items {
                        Some(known) if known != ty => Type::Dyn,
                        _ => ty,
                    });
                }
                Type::List(Box::new(items.unwrap_or(Type::Dyn)))
            }
            Expr::Map(map) => {
                let mut values: Option<Type> = None;
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.expression(&entry.key);
                        let ty = self.expression(&entry.value);
                        values = Some(match values {
                            Some(known) if known != ty => Type::Dyn,
                            _ => ty,
                        });
                    }
                }
                Type::Map(Box::new(values.unwrap_or(Type::Dyn)))
            }
            Expr::Struct(object) => {
                for entry in &object.entries {
                    if let EntryExpr::StructField(field) = &entry.expr {
                        self.expression(&field.value);
                    }
                }
                let name = &object.type_name;
                let known = name == "JSONPatch" || name == "Object" || name.starts_with("Object.");
                if !known {
                    let why = format!("undeclared reference to '{name}' (in container '')");
                    self.problem(name, &why);
                }
                Type::Named(name.clone())
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Call(call) => self.call(call),
        }
    }

    fn select(&mut self, select: &SelectExpr) -> Type {
        let operand = self.expression(&select.operand);
        let needle = format!(".{}", select.field);
        let ty = match operand {
            Type::Fields(fields) => match fields.get(select.field.as_str()) {
                Some(ty) => ty.clone(),
                None => {
                    self.problem(&needle, &format!("undefined field '{}'", select.field));
                    Type::Dyn
                }
            },
            Type::Map(values) => *values,
            Type::Bool
            | Type::Int
            | Type::Uint
            | Type::Double
            | Type::String
            | Type::Bytes
            | Type::Null
            | Type::List(_) => {
                let why = format!("type '{operand}' does not support field selection");
                self.problem(&needle, &why);
                Type::Dyn
            }
            Type::Dyn | Type::Named(_) => Type::Dyn,
        };
        if select.test { Type::Bool } else { ty }
    }

    fn comprehension(&mut self, of: &ComprehensionExpr) -> Type {
        let range = self.expression(&of.iter_range);
        let accumulated = self.expression(&of.accu_init);
        let item = match &range {
            Type::List(items) => (**items).clone(),
            Type::Map(_) => Type::String,
            Type::Dyn | Type::Fields(_) | Type::Named(_) => Type::Dyn,
            other => {
                let why = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.problem(".", &why);
                Type::Dyn
            }
        };
        let depth = self.locals.len();
        self.locals.push((of.iter_var.clone(), item));
        let grows = matches!(accumulated, Type::List(_));
        let inner = if grows {
            Type::List(Box::new(Type::Dyn))
        } else {
            accumulated.clone()
        };
        self.locals.push((of.accu_var.clone(), inner));
        self.expression(&of.loop_cond);
        let step = self.expression(&of.loop_step);
        let result = if grows { step } else { accumulated };
        if let Some((_, ty)) = self.locals.last_mut() {
            *ty = result;
        }
        let ty = self.expression(&of.result);
        self.locals.truncate(depth);
        ty
    }

    fn call(&mut self, call: &CallExpr) -> Type {
        let name = call.func_name.as_str();
        let target = call.target.as_deref();
        if let Some(target) = target {
            if let Some(ty) = self.binding_call(call, target) {
                return ty;
            }
            let namespace = matches!(&target.expr, Expr::Ident(prefix)
                if functions::is_namespace(prefix) && self.variable(prefix).is_none());
            if !namespace {
                self.expression(target);
            }
        }
        let args: Vec<Type> = call.args.iter().map(|arg| self.expression(arg)).collect();
        if target.is_some() {
            return method_type(name);
        }
        self.operator(name, &args)
    }

    /// Macros that name variables of their own. Their bodies are checked at evaluation.
    fn binding_call(&mut self, call: &CallExpr, target: &IdedExpr) -> Option<Type> {
        let names = |count: usize| -> Option<Vec<String>> {
            let first = call.args.get(..count)?;
            first
                .iter()
                .map(|arg| match &arg.expr {
                    Expr::Ident(name) => Some(name.clone()),
                    _ => None,
                })
                .collect()
        };
        let (count, ty) = match (call.func_name.as_str(), call.args.len()) {
            ("bind", 3) if matches!(&target.expr, Expr::Ident(name) if name == "cel") => {
                (1, Type::Dyn)
            }
            ("optMap" | "optFlatMap", 2) => (1, Type::Dyn),
            ("all" | "exists" | "existsOne" | "exists_one", 3) => (2, Type::Bool),
            ("transformList", 3 | 4) => (2, Type::List(Box::new(Type::Dyn))),
            ("transformMap" | "transformMapEntry", 3 | 4) => (2, Type::Map(Box::new(Type::Dyn))),
            _ => return None,
        };
        let names = names(count)?;
        if call.func_name != "bind" {
            self.expression(target);
        }
        let depth = self.locals.len();
        self.locals
            .extend(names.into_iter().map(|name| (name, Type::Dyn)));
        for arg in &call.args[count..] {
            self.expression(arg);
        }
        self.locals.truncate(depth);
        Some(ty)
    }

    fn operator(&mut self, name: &str, args: &[Type]) -> Type {
        use Type::{Bool, Bytes, Double, Dyn, Int, List, String, Uint};
        let known = |ty: &Type| !matches!(ty, Dyn | Type::Named(_) | Type::Fields(_));
        let symbol = name.trim_matches('_').trim_start_matches('@');
        let mismatch = |checker: &mut Self| {
            let shown: Vec<_> = args.iter().map(ToString::to_string).collect();
            let why = format!(
                "found no matching overload for '{name}' applied to '({})'",
                shown.join(", ")
            );
            checker.problem(symbol, &why);
            Dyn
        };
        let number = |ty: &Type| matches!(ty, Int | Uint | Double);
        match (name, args) {
            (operators::CONDITIONAL, [condition, yes, no]) => {
                if known(condition) && *condition != Bool {
                    let condition = condition.to_string();
                    let why = format!("expected type 'bool' but found '{condition}'");
                    self.problem("?", &why);
                }
                if yes == no { yes.clone() } else { Dyn }
            }
            (operators::LOGICAL_AND | operators::LOGICAL_OR, [left, right]) => {
                for side in [left, right] {
                    if known(side) && *side != Bool {
                        let why = format!("expected type 'bool' but found '{side}'");
                        self.problem(symbol, &why);
                    }
                }
                Bool
            }
            (operators::LOGICAL_NOT, [arg]) => {
                if known(arg) && *arg != Bool {
                    return mismatch(self);
                }
                Bool
            }
            (operators::NOT_STRICTLY_FALSE, _) => Bool,
            (operators::EQUALS | operators::NOT_EQUALS, [left, right]) => {
                let comparable = !known(left)
                    || !known(right)
                    || *left == Type::Null
                    || *right == Type::Null
                    || std::mem::discriminant(left) == std::mem::discriminant(right);
                if comparable {
                    Bool
                } else {
                    mismatch(self);
                    Bool
                }
            }
            (
                operators::LESS
                | operators::LESS_EQUALS
                | operators::GREATER
                | operators::GREATER_EQUALS,
                [left, right],
            ) => {
                let fits = !known(left)
                    || !known(right)
                    || (number(left) && number(right))
                    || (left == right && matches!(left, String | Bytes | Bool));
                if !fits {
                    mismatch(self);
                }
                Bool
            }
            (operators::IN, [_, container]) => {
                if known(container) && !matches!(container, List(_) | Type::Map(_)) {
                    mismatch(self);
                }
                Bool
            }
            (operators::ADD, [left, right]) => match (left, right) {
                (a, b) if !known(a) && !known(b) => Dyn,
                (a, b) if !known(a) => b.clone(),
                (a, b) if !known(b) => a.clone(),
                (List(a), List(b)) => List(if **a == Dyn { b.clone() } else { a.clone() }),
                (a, b) if a == b && (number(a) || matches!(a, String | Bytes)) => a.clone(),
                _ => mismatch(self),
            },
            (
                operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO,
                [left, right],
            ) => match (left, right) {
                (a, b) if !known(a) && !known(b) => Dyn,
                (a, b) if !known(a) && number(b) => b.clone(),
                (a, b) if !known(b) && number(a) => a.clone(),
                (a, b) if a == b && number(a) => a.clone(),
                _ => mismatch(self),
            },
            (operators::NEGATE, [arg]) => {
                if known(arg) && !number(arg) {
                    return mismatch(self);
                }
                arg.clone()
            }
            (operators::INDEX, [List(items), _]) => (**items).clone(),
            (operators::INDEX, [Type::Map(values), _]) => (**values).clone(),
            ("size" | "int", _) => Int,
            ("string", _) => String,
            ("bool" | "isQuantity" | "isIP" | "isCIDR" | "isURL" | "isSemver", _) => Bool,
            ("double", _) => Double,
            ("uint", _) => Uint,
            ("bytes", _) => Bytes,
            _ if name.starts_with(['_', '@', '!', '-']) || functions::is_global(name) => Dyn,
            _ => {
                let why = format!("undeclared reference to '{name}' (in container '')");
                self.problem(&format!("{name}("), &why);
                Dyn
            }
        }
    }
}

/// What a method gives, whatever its target.
fn method_type(name: &str) -> Type {
    match name {
        "startsWith" | "endsWith" | "matches" | "contains" | "hasValue" | "allowed" | "errored"
        | "isSorted" | "isGreaterThan" | "isLessThan" | "isInteger" | "containsIP"
        | "containsCIDR" | "intersects" | "equivalent" => Type::Bool,
        "size" | "indexOf" | "lastIndexOf" | "compareTo" => Type::Int,
        "lowerAscii" | "upperAscii" | "trim" | "replace" | "substring" | "join" | "format"
        | "charAt" | "escapeKey" | "reason" => Type::String,
        "split" => Type::List(Box::new(Type::String)),
        _ => Type::Dyn,
    }
}

/// The first place of `needle` that is a whole word and in no string literal.
fn find_outside_strings(source: &str, needle: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut quote: Option<char> = None;
    let mut escaped = false;
    for (at, c) in source.char_indices() {
        if let Some(open) = quote {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == open => quote = None,
                _ => {}
            }
            continue;
        }
        if matches!(c, '\'' | '"') {
            quote = Some(c);
            continue;
        }
        let Some(rest) = source[at..].strip_prefix(needle) else {
            continue;
        };
        let word = needle.chars().next().is_some_and(is_word);
        let starts = !word || !source[..at].ends_with(is_word);
        let ends_in_word = needle.chars().next_back().is_some_and(is_word);
        let ends = !ends_in_word || !rest.starts_with(is_word);
        if starts && ends {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(source: &str) -> Result<String, String> {
        let request = Type::Fields(BTreeMap::from([
            ("name".to_owned(), Type::String),
            ("dryRun".to_owned(), Type::Bool),
        ]));
        let declarations = BTreeMap::from([
            ("object".to_owned(), Type::Dyn),
            ("request".to_owned(), request),
        ]);
        let program = Program::compile(source).map_err(|error| error.to_string())?;
        check(&program, &declarations).map(|ty| ty.to_string())
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
            "ERROR: <input>:1:1: undeclared reference to 'nope' (in container '')\n | nope(1)\n | ^",
        );
        fails(
            "request.nope",
            "ERROR: <input>:1:8: undefined field 'nope'\n | request.nope\n | .......^",
        );
        fails(
            "request.name.x",
            "ERROR: <input>:1:13: type 'string' does not support field selection\n | request.name.x\n | ............^",
        );
        assert!(checked("!'a'").is_err());
        assert!(checked("request.dryRun == 'x'").is_err());
        assert!(checked("1 < 'a'").is_err());
    }
}
