//! CEL in admission: the variables, match conditions, budgets.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use parking_lot::Mutex;
use serde_json::Value as Json;
use skep_cel::{Budget, Environment, Error, Program, Value, from_json};

use super::{Attributes, Subject, authorizer};
use crate::context::Api;

/// What all expressions of one policy may cost for one request (upstream `RuntimeCELCostBudget`).
pub const BUDGET: u64 = 10_000_000;
/// What a policy's or webhook's match conditions may cost (`RuntimeCELCostBudgetMatchConditions`).
const CONDITIONS_BUDGET: u64 = BUDGET / 4;
const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// One expression; a text that does not compile fails whenever it is evaluated.
pub struct Expression {
    pub source: String,
    program: Result<Arc<Program>, String>,
}

/// Programs kept by their text: a change of one policy does not compile all others anew.
const MAX_PROGRAMS: usize = 8192;

fn compiled(source: &str) -> Result<Arc<Program>, String> {
    static PROGRAMS: LazyLock<Mutex<HashMap<String, Arc<Program>>>> = LazyLock::new(Mutex::default);
    if let Some(program) = PROGRAMS.lock().get(source) {
        return Ok(program.clone());
    }
    let program = Program::compile(source).map_err(|error| error.to_string())?;
    let program = Arc::new(program);
    let mut programs = PROGRAMS.lock();
    if programs.len() >= MAX_PROGRAMS {
        programs.clear();
    }
    programs.insert(source.to_owned(), program.clone());
    Ok(program)
}

/// Why an expression has no result.
#[derive(Clone, Debug)]
pub enum Failed {
    /// This one only.
    Expression(String),
    /// No expression after it is evaluated either.
    Budget,
}

impl Failed {
    pub fn message(&self) -> String {
        match self {
            Self::Expression(why) => why.clone(),
            Self::Budget => OUT_OF_BUDGET.to_owned(),
        }
    }
}

impl Expression {
    pub fn new(source: &Json) -> Self {
        let source = source.as_str().unwrap_or_default();
        Self {
            source: source.to_owned(),
            program: compiled(source.trim()),
        }
    }

    pub fn evaluate(&self, variables: &Variables<'_>) -> Result<Value, Failed> {
        let program = self.program.as_ref().map_err(|error| {
            Failed::Expression(format!("compilation error: compilation failed: {error}"))
        })?;
        let result = program.evaluate(variables, variables.budget);
        if variables.budget.spent() {
            return Err(Failed::Budget);
        }
        result.map_err(|error| {
            let source = &self.source;
            Failed::Expression(format!("expression '{source}' resulted in error: {error}"))
        })
    }
}

/// A named expression that others see as `variables.NAME`.
pub struct Variable {
    name: String,
    expression: Expression,
}

/// `variables` of a policy.
pub fn variables(list: &Json) -> Vec<Variable> {
    let list = list.as_array().into_iter().flatten();
    list.map(|variable| Variable {
        name: variable["name"].as_str().unwrap_or_default().to_owned(),
        expression: Expression::new(&variable["expression"]),
    })
    .collect()
}

/// What a write looks like from an expression.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub api: &'a Api,
    pub attributes: &'a Attributes<'a>,
    pub subject: &'a Subject,
    pub request: &'a Json,
    pub object: &'a Json,
    pub old: &'a Json,
    /// `None` where there is no such variable; null where the binding names no parameters.
    pub params: Option<&'a Json>,
    /// `None` where there is no such variable.
    pub namespace: Option<&'a Json>,
}

/// [`Input`] as CEL values, each made when first asked for.
pub struct Variables<'a> {
    input: Input<'a>,
    list: &'a [Variable],
    budget: &'a Budget,
    object: OnceCell<Value>,
    old: OnceCell<Value>,
    request: OnceCell<Value>,
    params: OnceCell<Value>,
    namespace: OnceCell<Value>,
    evaluated: RefCell<Vec<Option<Result<Value, Error>>>>,
}

impl<'a> Variables<'a> {
    pub fn new(input: Input<'a>, list: &'a [Variable], budget: &'a Budget) -> Self {
        Self {
            input,
            list,
            budget,
            object: OnceCell::new(),
            old: OnceCell::new(),
            request: OnceCell::new(),
            params: OnceCell::new(),
            namespace: OnceCell::new(),
            evaluated: RefCell::new(vec![None; list.len()]),
        }
    }

    fn composed(&self, name: &str) -> Result<Value, Error> {
        let index = self.list.iter().position(|variable| variable.name == name);
        let index = index.ok_or_else(|| Error::failed(format!("no such key: {name}")))?;
        if let Some(known) = &self.evaluated.borrow()[index] {
            return known.clone();
        }
        // A variable sees those before it; one that reached itself would find this.
        let circle = Error::failed(format!("variable {name:?} refers to itself"));
        self.evaluated.borrow_mut()[index] = Some(Err(circle));
        let expression = &self.list[index].expression;
        let result = match &expression.program {
            Ok(program) => program.evaluate(self, self.budget),
            Err(error) => Err(Error::failed(error.clone())),
        };
        let result = result.map_err(|error| match error {
            Error::CallLimit => Error::CallLimit,
            error => Error::failed(format!(
                "composited variable {name:?} fails to evaluate: {error}"
            )),
        });
        self.evaluated.borrow_mut()[index] = Some(result.clone());
        result
    }
}

impl Environment for Variables<'_> {
    fn variable(&self, name: &str) -> Option<Result<Value, Error>> {
        let made =
            |cell: &OnceCell<Value>, json: &Json| Ok(cell.get_or_init(|| from_json(json)).clone());
        let input = &self.input;
        match name {
            "object" => Some(made(&self.object, input.object)),
            "oldObject" => Some(made(&self.old, input.old)),
            "request" => Some(made(&self.request, input.request)),
            "params" => input.params.map(|params| made(&self.params, params)),
            "namespaceObject" => input.namespace.map(|n| made(&self.namespace, n)),
            "authorizer" => Some(Ok(authorizer::authorizer(input.attributes))),
            _ => None,
        }
    }

    fn field(&self, variable: &str, field: &str) -> Option<Result<Value, Error>> {
        match (variable, field) {
            ("variables", name) => Some(self.composed(name)),
            ("authorizer", "requestResource") => Some(Ok(authorizer::request_resource(
                self.input.attributes,
                self.input.subject,
            ))),
            _ => None,
        }
    }

    fn call(&self, target: &Value, function: &str, args: &[Value]) -> Option<Result<Value, Error>> {
        authorizer::call(self.input.api, target, function, args)
    }
}

/// `matchConditions`: all must hold.
pub struct Conditions {
    list: Vec<Expression>,
    /// What a condition that fails to evaluate means: `Fail` refuses, `Ignore` skips.
    fail: bool,
}

impl Conditions {
    pub fn new(list: &Json, fail: bool) -> Self {
        let list = list.as_array().into_iter().flatten();
        Self {
            list: list.map(|c| Expression::new(&c["expression"])).collect(),
            fail,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// # Errors
    /// The reasons why it cannot be said, where that refuses the write.
    pub fn hold(&self, input: Input<'_>) -> Result<bool, String> {
        let budget = Budget::new(CONDITIONS_BUDGET);
        let variables = Variables::new(input, &[], &budget);
        let mut errors = Vec::new();
        for condition in &self.list {
            match condition.evaluate(&variables) {
                Ok(Value::Bool(true)) => {}
                // One that does not hold decides, whatever the others would say.
                Ok(Value::Bool(false)) => return Ok(false),
                Ok(_) => errors.push("must evaluate to bool".to_owned()),
                Err(Failed::Expression(why)) => errors.push(why),
                Err(Failed::Budget) => {
                    errors = vec![OUT_OF_BUDGET.to_owned()];
                    break;
                }
            }
        }
        match (errors.is_empty(), self.fail) {
            (true, _) => Ok(true),
            (false, true) => Err(crate::admission::joined(&errors)),
            (false, false) => Ok(false),
        }
    }
}
