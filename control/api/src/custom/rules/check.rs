//! Whether the rules of a schema may stand in a definition: syntax, types, cost, use of `oldSelf`.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use skep_cel::{
    Program,
    check::{Checked, Type, check},
};

use super::{cost, list, text, types, uses_old_self};

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

/// Everything wrong with the rules of a structural schema. `sound`: whether the rules at a place are looked at.
pub fn rules(schema: &Value, sound: &dyn Fn(&str) -> bool) -> Vec<Problem> {
    let mut walk = Walk {
        found: Vec::new(),
        total: 0,
        costs: Vec::new(),
        sound,
    };
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

struct Walk<'a> {
    found: Vec<Problem>,
    total: u64,
    costs: Vec<(u64, String)>,
    sound: &'a dyn Fn(&str) -> bool,
}

impl Walk<'_> {
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
            self.schema(property, false, &below, often, uncorrelated, depth + 1);
        }
        let (ty, _) = types::of(schema, root, depth);
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
        let rules = list(&schema["x-kubernetes-validations"]);
        for (index, rule) in rules.filter(|_| (self.sound)(at)).enumerate() {
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

    fn rule(&mut self, rule: &Value, ty: &Type, at: &str, often: u64, uncorrelated: Option<&str>) {
        let source = text(rule, "rule");
        let optional_old = rule["optionalOldSelf"] == true;
        let field = format!("{at}.rule");
        let whole = || Bad::Rule(rule.clone());
        let (checked, mut uses_old) = checked(source, ty, optional_old);
        let mut compiled = false;
        match checked {
            Ok(checked) => {
                compiled = matches!(checked.ty, Type::Bool | Type::Dyn);
                let cost = checked.cost.saturating_mul(often);
                self.costs("estimated rule cost", cost, &field);
                if !compiled {
                    let detail = "cel expression must evaluate to a bool".to_owned();
                    self.problem(Kind::Invalid, field.clone(), whole(), detail);
                }
            }
            Err(problem) => {
                let detail = format!("compilation failed: {problem}");
                self.problem(Kind::Invalid, field.clone(), whole(), detail);
            }
        }
        // Of a rule that does not compile, nothing else is known.
        uses_old &= compiled;
        let message = text(rule, "messageExpression").trim();
        if !message.is_empty() && compiled {
            self.message(message, rule, ty, at);
        }
        if uses_old {
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

    fn message(&mut self, source: &str, rule: &Value, ty: &Type, at: &str) {
        let field = format!("{at}.messageExpression");
        let detail = match checked(source, ty, rule["optionalOldSelf"] == true).0 {
            Ok(checked) if matches!(checked.ty, Type::String(_) | Type::Dyn) => {
                return self.costs("estimated messageExpression cost", checked.cost, &field);
            }
            Ok(_) => "messageExpression must evaluate to a string".to_owned(),
            Err(problem) => format!("messageExpression compilation failed: {problem}"),
        };
        self.problem(Kind::Invalid, field, Bad::Rule(rule.clone()), detail);
    }

    fn costs(&mut self, what: &str, cost: u64, field: &str) {
        self.total = self.total.saturating_add(cost);
        self.costs.push((cost, field.to_owned()));
        if cost > cost::LIMIT {
            let detail = cost::exceeds(what, cost, cost::LIMIT);
            self.problem(Kind::Forbidden, field.to_owned(), Bad::None, detail);
        }
    }
}

/// What is known of an expression or, in the form of cel-go's compiler, wrong with it; and whether it uses `oldSelf`.
fn checked(source: &str, own: &Type, optional_old: bool) -> (Result<Checked, String>, bool) {
    let program = match Program::compile(source) {
        Ok(program) => program,
        Err(error) => return (Err(error.to_string()), false),
    };
    let old = if optional_old {
        Type::Optional(Arc::new(own.clone()))
    } else {
        own.clone()
    };
    let declarations = BTreeMap::from([
        ("self".to_owned(), own.clone()),
        ("oldSelf".to_owned(), old),
    ]);
    let uses_old = uses_old_self(&program);
    (check(&program, &declarations), uses_old)
}
