//! MutatingAdmissionPolicy: expressions that make a configuration to apply, or a JSON patch.

use async_trait::async_trait;
use serde_json::Value;
use skep_apply::managed::{self, ApplyError, Writer};
use skep_cel::{Budget, Object, Value as Cel, to_json};
use skep_schema::{
    TypeRef,
    table::{ListType, Node, Shape},
};

use super::{
    Invoked, Matched, Objects, Subject, conformed,
    expressions::{BUDGET, Expression, Variables},
    matching::namespace_object,
    policies::{Invocation, Policies, invocations},
    put_back, review,
};
use crate::{
    admission::{Attributes, Plugin, forbidden},
    codec::meta,
    context::{Api, now},
    status::{Cause, Failure, Result},
};

struct Mutations {
    list: Vec<Mutation>,
    /// `reinvocationPolicy: IfNeeded`
    reinvocable: bool,
}

enum Mutation {
    Apply(Expression),
    JsonPatch(Expression),
}

fn read(spec: &Value) -> Mutations {
    let list = spec["mutations"].as_array().into_iter().flatten();
    Mutations {
        list: list
            .map(|mutation| match mutation["patchType"].as_str() {
                Some("JSONPatch") => {
                    Mutation::JsonPatch(Expression::new(&mutation["jsonPatch"]["expression"]))
                }
                _ => Mutation::Apply(Expression::new(
                    &mutation["applyConfiguration"]["expression"],
                )),
            })
            .collect(),
        reinvocable: spec["reinvocationPolicy"] == "IfNeeded",
    }
}

pub struct MutatingAdmissionPolicy {
    policies: Policies<Mutations>,
}

impl Default for MutatingAdmissionPolicy {
    fn default() -> Self {
        Self {
            policies: Policies::new(
                &[
                    "mutatingadmissionpolicies",
                    "mutatingadmissionpolicybindings",
                ],
                read,
            ),
        }
    }
}

#[async_trait]
impl Plugin for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        let Some((policies, subject)) = self.policies.about(api, attributes) else {
            return Ok(());
        };
        // All are selected before the first changes anything.
        let found = invocations(api, &policies, attributes, &subject).await;
        if found.is_empty() {
            return Ok(());
        }
        let namespace = namespace_object(api, &subject).await?;
        let running = attributes.reinvocation.running;
        let mut invoked = std::mem::take(&mut attributes.reinvocation.policies);
        invoked.begin(running, &attributes.object);
        let mut errors: Vec<String> = Vec::new();
        let mut reason = None;
        for invocation in &found {
            match invocation {
                Err(wrong) if wrong.policy.fail => {
                    let binding = wrong.binding.map(|b| b.selection.name.as_str());
                    errors.push(denied(
                        &wrong.policy.selection.name,
                        binding,
                        &wrong.message,
                    ));
                }
                Err(_) => {}
                Ok(invocation) => {
                    let matched = &invocation.matched;
                    let mut objects = Objects::of(api, attributes, matched, &namespace).await?;
                    let before = objects.object.clone();
                    let failed = invoke(api, attributes, invocation, &mut objects, &mut invoked);
                    if objects.object != before {
                        put_back(api, attributes, objects.object, matched).await?;
                        invoked.changed();
                        attributes.reinvocation.due = true;
                    }
                    let policy = invocation.policy;
                    for why in failed.into_iter().filter(|_| policy.fail) {
                        if errors.is_empty() {
                            reason = Some("Invalid");
                        }
                        let binding = invocation.binding.selection.name.as_str();
                        errors.push(denied(&policy.selection.name, Some(binding), &why));
                    }
                }
            }
        }
        invoked.last_output = Some(attributes.object.clone());
        attributes.reinvocation.policies = invoked;
        if errors.is_empty() {
            return Ok(());
        }
        Err(refusal(attributes, errors, reason))
    }
}

fn denied(policy: &str, binding: Option<&str>, why: &str) -> String {
    match binding {
        Some(binding) => {
            format!("policy '{policy}' with binding '{binding}' denied request: {why}")
        }
        None => format!("policy {policy:?} denied request: {why}"),
    }
}

/// Upstream gives this 403 the reason `Invalid` when an expression failed, and says nothing of the object.
fn refusal(
    attributes: &Attributes<'_>,
    errors: Vec<String>,
    reason: Option<&'static str>,
) -> Failure {
    let mut status = forbidden(attributes, "admission request denied by policy");
    status.message = errors.first().cloned().unwrap_or_default();
    if let Some(reason) = reason {
        status.reason = reason.into();
    }
    let causes = errors.into_iter().map(|message| Cause {
        message,
        ..Cause::default()
    });
    status.details.get_or_insert_default().causes.extend(causes);
    status
}

/// Runs one policy's mutations on the object. What failed.
fn invoke(
    api: &Api,
    attributes: &Attributes<'_>,
    invocation: &Invocation<'_, Mutations>,
    objects: &mut Objects<'_>,
    invoked: &mut Invoked,
) -> Vec<String> {
    let Invocation {
        policy,
        binding,
        matched,
        params,
    } = invocation;
    let mutations = &policy.does;
    let subject = Subject::of(attributes);
    let request = review::request(attributes, &subject, matched);
    let key = format!(
        "{}/{}/{}/{}",
        policy.selection.name,
        binding.selection.name,
        meta(params, "namespace"),
        meta(params, "name")
    );
    let mut errors = Vec::new();
    for (index, mutation) in mutations.list.iter().enumerate() {
        let input = objects.input(api, attributes, &subject, &request, invocation);
        if index == 0 {
            match policy.conditions.hold(input) {
                Ok(true) => {}
                Ok(false) => return errors,
                Err(why) => return vec![why],
            }
            if attributes.reinvocation.running && !invoked.again.contains(&key) {
                return errors;
            }
        }
        if objects.object.is_null() {
            continue;
        }
        let budget = Budget::new(BUDGET);
        let variables = Variables::new(input, &policy.variables, &budget);
        let made = match mutation {
            Mutation::Apply(expression) => apply(expression, &variables, &objects.object, matched),
            Mutation::JsonPatch(expression) => json_patch(expression, &variables, &objects.object),
        };
        drop(variables);
        let made = made.and_then(|made| conformed(attributes, made, matched));
        match made {
            Ok(made) => objects.object = made,
            Err(why) => errors.push(why),
        }
    }
    if mutations.reinvocable {
        invoked.reinvocable.insert(key);
    }
    errors
}

fn schema_of(matched: &Matched) -> Option<TypeRef> {
    let kind = &matched.kind;
    if kind.kind == matched.resource.def.kind.as_ref() {
        return matched.resource.def.schema.clone();
    }
    skep_schema::builtin(&kind.group, &kind.version, &kind.kind)
}

/// Merges what the expression builds into the object, as a server-side apply that owns nothing.
fn apply(
    expression: &Expression,
    variables: &Variables<'_>,
    object: &Value,
    matched: &Matched,
) -> std::result::Result<Value, String> {
    let made = expression
        .evaluate(variables)
        .map_err(|failed| failed.message())?;
    let Cel::Opaque(opaque) = &made else {
        return Err("unsupported return type from ApplyConfiguration expression".to_owned());
    };
    let built = opaque
        .downcast_ref::<Object>()
        .ok_or("unsupported return type from ApplyConfiguration expression")?;
    built
        .check_places()
        .map_err(|why| format!("type mismatch: {why}"))?;
    let mut patch = to_json(&made).map_err(|kind| format!("invalid return type: {kind}"))?;
    patch["apiVersion"] = object["apiVersion"].clone();
    patch["kind"] = object["kind"].clone();
    let Some(schema) = schema_of(matched) else {
        return Ok(skep_apply::merge_patch(object, &patch));
    };
    let mut atomics = Vec::new();
    find_atomics(
        &patch,
        schema.node(),
        None,
        &mut String::new(),
        &mut atomics,
    );
    if !atomics.is_empty() {
        return Err(format!(
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomics.join(", ")
        ));
    }
    // Ownership is neither looked at nor recorded.
    let managed_fields = object["metadata"].get("managedFields").cloned();
    let mut live = object.clone();
    crate::handlers::write::remove_meta(&mut live, "managedFields");
    let name = |object: &Value| object["metadata"]["name"].clone();
    if !patch["metadata"].is_object() {
        patch["metadata"] = serde_json::json!({});
    }
    if name(&patch).is_null() {
        patch["metadata"]["name"] = name(object);
    }
    let writer = Writer {
        manager: "mutating-admission-policy".to_owned(),
        api_version: matched.resource.api_version.clone(),
        subresource: String::new(),
        time: now(),
    };
    let applied = managed::apply(Some(&live), &patch, &schema, &writer, &[], true);
    let mut merged = applied.map_err(|error| {
        let text = match &error {
            ApplyError::Schema(text) | ApplyError::BadRequest(text) => text.clone(),
            other @ ApplyError::Conflicts(_) => other.to_string(),
        };
        // `failed to create typed patch object (NAME; KIND): why`
        let why = text.split_once("): ").map_or(text.as_str(), |(_, why)| why);
        format!("error applying patch: failed to convert patch object to typed object: {why}")
    })?;
    crate::handlers::write::remove_meta(&mut merged, "managedFields");
    if let Some(managed_fields) = managed_fields {
        merged["metadata"]["managedFields"] = managed_fields;
    }
    Ok(merged)
}

/// Paths of a patch that would replace a list, map or object as a whole: people mean to add to it, and lose the rest.
fn find_atomics(
    value: &Value,
    node: Node<'_>,
    atomic: Option<bool>,
    path: &mut String,
    found: &mut Vec<String>,
) {
    let length = path.len();
    match (value, node.shape()) {
        (Value::Object(fields), Shape::Object(object)) => {
            if atomic.unwrap_or(object.atomic) {
                found.push(path.clone());
            }
            for (name, value) in fields {
                if let Some((field, inner)) = node.field(name) {
                    path.push('.');
                    path.push_str(name);
                    find_atomics(value, inner, field.atomic, path, found);
                    path.truncate(length);
                }
            }
        }
        (Value::Object(_), Shape::Map { atomic: own, .. }) if atomic.unwrap_or(*own) => {
            found.push(path.clone());
        }
        (
            Value::Array(items),
            Shape::List {
                items: ty,
                list_type,
            },
        ) => {
            if atomic.unwrap_or(*list_type == ListType::Atomic) {
                found.push(path.clone());
            }
            for (index, item) in items.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                find_atomics(item, node.at(*ty), None, path, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Applies the operations that the expression lists. A `test` that does not hold leaves the object as it is.
fn json_patch(
    expression: &Expression,
    variables: &Variables<'_>,
    object: &Value,
) -> std::result::Result<Value, String> {
    let made = expression
        .evaluate(variables)
        .map_err(|failed| failed.message())?;
    let Cel::List(items) = &made else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned());
    };
    let mut operations = Vec::with_capacity(items.len());
    let mut tests = false;
    for item in items.iter() {
        let operation = match item {
            Cel::Opaque(opaque) => opaque.downcast_ref::<Object>(),
            _ => None,
        };
        let operation = operation.filter(|operation| operation.type_name == "JSONPatch");
        let operation = operation.ok_or(
            "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch",
        )?;
        if let Some(Cel::Opaque(value)) = operation.fields.get("value")
            && let Some(value) = value.downcast_ref::<Object>()
        {
            value
                .check_places()
                .map_err(|why| format!("type mismatch: {why}"))?;
        }
        let json = to_json(item).map_err(|kind| {
            format!("JSONPath valueExpression evaluated to a type that could not marshal to JSON: {kind}")
        })?;
        tests |= json["op"] == "test";
        operations.push(json);
    }
    match skep_apply::json_patch(object, &Value::Array(operations)) {
        Ok(patched) => Ok(patched),
        Err(skep_apply::PatchError::Unprocessable(why)) if tests && why.starts_with("test") => {
            Ok(object.clone())
        }
        Err(error) => Err(format!("JSONPath: {error}")),
    }
}
