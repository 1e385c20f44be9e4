//! ValidatingAdmissionPolicy: expressions that must hold.

use async_trait::async_trait;
use serde_json::{Value, json};
use skep_cel::{Budget, Value as Cel};

use super::{
    Objects, Subject,
    expressions::{BUDGET, Expression, Failed, Variables},
    matching::namespace_object,
    policies::{Binding, Invocation, Policies, Policy, invocations},
    review,
};
use crate::{
    admission::{Attributes, Plugin, forbidden},
    context::Api,
    status::{Cause, Failure, Result},
};

/// Longest text that an expression may say to a client, and longest audit annotation.
const MESSAGE_MAX: usize = 5 * 1024;
const ANNOTATION_MAX: usize = 10 * 1024;

struct Rules {
    validations: Vec<Validation>,
    annotations: Vec<Annotation>,
}

struct Validation {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: String,
}

struct Annotation {
    key: String,
    value: Expression,
}

fn read(spec: &Value) -> Rules {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let validations = spec["validations"].as_array().into_iter().flatten();
    let annotations = spec["auditAnnotations"].as_array().into_iter().flatten();
    Rules {
        validations: validations
            .map(|validation| Validation {
                expression: Expression::new(&validation["expression"]),
                message: text(&validation["message"]).trim().to_owned(),
                message_expression: validation["messageExpression"]
                    .as_str()
                    .filter(|source| !source.trim().is_empty())
                    .map(|_| Expression::new(&validation["messageExpression"])),
                reason: text(&validation["reason"]),
            })
            .collect(),
        annotations: annotations
            .map(|annotation| Annotation {
                key: text(&annotation["key"]),
                value: Expression::new(&annotation["valueExpression"]),
            })
            .collect(),
    }
}

pub struct ValidatingAdmissionPolicy {
    policies: Policies<Rules>,
}

impl Default for ValidatingAdmissionPolicy {
    fn default() -> Self {
        Self {
            policies: Policies::new(
                &[
                    "validatingadmissionpolicies",
                    "validatingadmissionpolicybindings",
                ],
                read,
            ),
        }
    }
}

/// A write that a policy does not let pass.
struct Denied {
    policy: String,
    binding: Option<String>,
    message: String,
    /// Empty: `Invalid`.
    reason: String,
}

#[async_trait]
impl Plugin for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    async fn validate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        let Some((policies, subject)) = self.policies.about(api, attributes) else {
            return Ok(());
        };
        let invocations = invocations(api, &policies, attributes, &subject).await;
        if invocations.is_empty() {
            return Ok(());
        }
        let namespace = namespace_object(api, &subject).await?;
        let mut denied = Vec::new();
        let mut notes = Notes::default();
        for invocation in &invocations {
            match invocation {
                Ok(invocation) => {
                    let matched = &invocation.matched;
                    let objects = Objects::of(api, attributes, matched, &namespace).await?;
                    evaluate(
                        api,
                        attributes,
                        &subject,
                        invocation,
                        &objects,
                        &mut denied,
                        &mut notes,
                    );
                }
                Err(wrong) if wrong.policy.fail => denied.push(Denied {
                    policy: wrong.policy.selection.name.clone(),
                    binding: wrong.binding.map(|binding| binding.selection.name.clone()),
                    message: wrong.message.clone(),
                    reason: String::new(),
                }),
                Err(_) => {}
            }
        }
        attributes.warnings.append(&mut notes.warnings);
        attributes.annotations.extend(notes.annotations());
        match denied.into_iter().next() {
            None => Ok(()),
            Some(denied) => {
                api.metrics.admission.policy_denied(&denied.policy);
                Err(refusal(attributes, &denied))
            }
        }
    }
}

/// What policies tell the client and the audit log.
#[derive(Default)]
struct Notes {
    warnings: Vec<String>,
    /// By key; several values of one key are joined.
    published: Vec<(String, Vec<String>)>,
    failures: Vec<Value>,
}

impl Notes {
    fn publish(&mut self, key: String, value: String) {
        match self.published.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) if values.contains(&value) => {}
            Some((_, values)) => values.push(value),
            None => self.published.push((key, vec![value])),
        }
    }

    fn annotations(self) -> Vec<(String, String)> {
        let published = self.published.into_iter();
        let mut all: Vec<_> = published
            .map(|(key, values)| (key, values.join(", ")))
            .collect();
        if !self.failures.is_empty() {
            all.push((
                "validation.policy.admission.k8s.io/validation_failure".to_owned(),
                Value::Array(self.failures).to_string(),
            ));
        }
        all
    }
}

/// What one expression of a policy says.
struct Decision {
    /// Of `validations`; the whole policy's decisions have 0.
    index: usize,
    message: String,
    reason: String,
}

fn evaluate(
    api: &Api,
    attributes: &Attributes<'_>,
    subject: &Subject,
    invocation: &Invocation<'_, Rules>,
    objects: &Objects<'_>,
    denied: &mut Vec<Denied>,
    notes: &mut Notes,
) {
    let Invocation {
        policy,
        binding,
        matched,
        ..
    } = invocation;
    let rules = &policy.does;
    let request = review::request(attributes, subject, matched);
    let input = objects.input(api, attributes, subject, &request, invocation);
    let mut refuse = |decision: Decision, notes: &mut Notes| {
        let name = &policy.selection.name;
        for action in &binding.actions {
            match action.as_str() {
                "Deny" => denied.push(Denied {
                    policy: name.clone(),
                    binding: Some(binding.selection.name.clone()),
                    message: decision.message.clone(),
                    reason: decision.reason.clone(),
                }),
                "Warn" => notes.warnings.push(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{name}' with binding '{}': {}",
                    binding.selection.name, decision.message
                )),
                "Audit" => notes.failures.push(audit(policy, binding, &decision)),
                _ => {}
            }
        }
    };
    match policy.conditions.hold(input) {
        Ok(true) => {}
        Ok(false) => return,
        Err(message) => {
            return refuse(
                Decision {
                    index: 0,
                    message,
                    reason: String::new(),
                },
                notes,
            );
        }
    }
    let budget = Budget::new(BUDGET);
    let variables = Variables::new(input, &policy.variables, &budget);
    let mut decisions = Vec::new();
    for (index, validation) in rules.validations.iter().enumerate() {
        match validate(validation, &variables) {
            Ok(None) => {}
            Ok(Some((message, reason))) => decisions.push(Decision {
                index,
                message,
                reason,
            }),
            Err(failed) => {
                let spent = matches!(failed, Failed::Budget);
                if policy.fail {
                    let (message, reason) = (failed.message(), String::new());
                    if spent {
                        // The policy as a whole could not be evaluated.
                        decisions.clear();
                    }
                    decisions.push(Decision {
                        index,
                        message,
                        reason,
                    });
                }
                if spent {
                    break;
                }
            }
        }
    }
    for decision in decisions {
        refuse(decision, notes);
    }
    for annotation in &rules.annotations {
        let key = format!("{}/{}", policy.selection.name, annotation.key);
        match annotation.value.evaluate(&variables) {
            Ok(Cel::String(text)) => {
                let mut text = text.trim().to_owned();
                text.truncate(text.floor_char_boundary(ANNOTATION_MAX));
                if !text.is_empty() {
                    notes.publish(key, text);
                }
            }
            Ok(Cel::Null) => {}
            Ok(_) if policy.fail => denied.push(annotation_denied(policy, binding, format!(
                "valueExpression '{}' resulted in unsupported return type: Return type must be either string or null.",
                annotation.value.source
            ))),
            Err(failed) if policy.fail => {
                denied.push(annotation_denied(policy, binding, failed.message()));
            }
            Ok(_) | Err(_) => {}
        }
    }
}

fn annotation_denied(policy: &Policy<Rules>, binding: &Binding, message: String) -> Denied {
    Denied {
        policy: policy.selection.name.clone(),
        binding: Some(binding.selection.name.clone()),
        message,
        reason: String::new(),
    }
}

fn audit(policy: &Policy<Rules>, binding: &Binding, decision: &Decision) -> Value {
    json!({
        "message": decision.message, "policy": policy.selection.name, "binding": binding.selection.name,
        "expressionIndex": decision.index, "validationActions": binding.actions,
    })
}

/// The message and reason of a validation that does not hold.
fn validate(
    validation: &Validation,
    variables: &Variables<'_>,
) -> std::result::Result<Option<(String, String)>, Failed> {
    if let Cel::Bool(true) = validation.expression.evaluate(variables)? {
        return Ok(None);
    }
    let made = match &validation.message_expression {
        None => None,
        Some(expression) => match expression.evaluate(variables) {
            Ok(Cel::String(text)) => Some(text.trim().to_owned()),
            Ok(_) | Err(Failed::Expression(_)) => None,
            Err(Failed::Budget) => return Err(Failed::Budget),
        },
    };
    let made =
        made.filter(|text| !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n'));
    let message = match (made, validation.message.as_str()) {
        (Some(made), _) => made,
        (None, "") => format!("failed expression: {}", validation.expression.source.trim()),
        (None, given) => given.to_owned(),
    };
    Ok(Some((message, validation.reason.clone())))
}

fn refusal(attributes: &Attributes<'_>, denied: &Denied) -> Failure {
    let by = match &denied.binding {
        Some(binding) => format!(" with binding '{binding}'"),
        None => String::new(),
    };
    let message = format!(
        "ValidatingAdmissionPolicy '{}'{by} denied request: {}",
        denied.policy, denied.message
    );
    let mut status = forbidden(attributes, &message);
    let (reason, code) = match denied.reason.as_str() {
        "Forbidden" => ("Forbidden", 403),
        "Unauthorized" => ("Unauthorized", 401),
        "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
        _ => ("Invalid", 422),
    };
    status.code = code;
    status.reason = reason.into();
    status.details.get_or_insert_default().causes.push(Cause {
        message,
        ..Cause::default()
    });
    status
}
