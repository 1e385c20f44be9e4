//! Warnings about expressions of a ValidatingAdmissionPolicy that do not fit the kinds that it matches (KEP-3488).
//!
//! A policy with warnings works as it did: they are for its author, in `status.typeChecking`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::admissionregistration::v1::{
    ExpressionWarning, ValidatingAdmissionPolicySpec, Variable,
};
use serde_json::{Map, Value};
use skep_cel::{Program, check::check};

pub use skep_cel::check::Type;

use super::expressions::Scope;
use crate::{custom::rules::types, zero::Text};

/// Most kinds that one rule of a policy is checked for.
const MAX_KINDS: usize = 10;
/// Deepest schema that is followed.
const MAX_DEPTH: usize = 40;

/// What a policy matches by name: group, version and resource, sorted, without what holds a wildcard and without
/// subresources.
pub fn matched(spec: &ValidatingAdmissionPolicySpec) -> BTreeSet<(String, String, String)> {
    let mut found = BTreeSet::new();
    let rules = spec.match_constraints.iter();
    for rule in rules.flat_map(|of| of.resource_rules.iter().flatten()) {
        let named = |names: &Option<Vec<String>>| -> Vec<String> {
            let names: BTreeSet<String> = names.iter().flatten().cloned().collect();
            names.into_iter().collect()
        };
        let (groups, versions) = (named(&rule.api_groups), named(&rule.api_versions));
        if groups
            .iter()
            .chain(&versions)
            .any(|name| name.contains('*'))
        {
            continue;
        }
        let mut resources = named(&rule.resources);
        resources.retain(|name| !name.contains(['*', '/']));
        let all = groups.iter().flat_map(|group| {
            let (versions, resources) = (&versions, &resources);
            versions.iter().flat_map(move |version| {
                let resources = resources.iter();
                resources.map(move |name| (group.clone(), version.clone(), name.clone()))
            })
        });
        found.extend(all.take(MAX_KINDS));
    }
    found
}

/// A kind, and what its objects are to an expression.
pub struct Matched {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub ty: Type,
}

/// The type of a kind's objects by an OpenAPI v3 document of its group and version; `None` when it is not there.
pub fn type_of(document: &Value, group: &str, version: &str, kind: &str) -> Option<Type> {
    let schemas = document["components"]["schemas"].as_object()?;
    let is_it = |schema: &&Value| {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array();
        kinds
            .into_iter()
            .flatten()
            .any(|gvk| gvk["group"] == group && gvk["version"] == version && gvk["kind"] == kind)
    };
    let schema = schemas.values().find(is_it)?;
    let inlined = inlined(schema, schemas, &mut Vec::new());
    Some(types::of(&inlined, false, 0).0)
}

/// A schema without references; what contains itself becomes a schema of anything.
fn inlined<'s>(
    schema: &'s Value,
    schemas: &'s Map<String, Value>,
    within: &mut Vec<&'s str>,
) -> Value {
    let reference = |schema: &'s Value| schema["$ref"].as_str();
    let wrapped = schema["allOf"]
        .as_array()
        .and_then(|parts| match parts.as_slice() {
            [part] => reference(part),
            _ => None,
        });
    if let Some(name) = reference(schema).or(wrapped) {
        let name = name.rsplit('/').next().unwrap_or(name);
        let Some(target) = schemas
            .get(name)
            .filter(|_| !within.contains(&name) && within.len() < MAX_DEPTH)
        else {
            return Value::Object(Map::new());
        };
        within.push(name);
        let inlined = inlined(target, schemas, within);
        within.pop();
        return inlined;
    }
    let mut out = Map::new();
    let anything = schema["format"] == "int-or-string"
        || (schema["type"] == "object"
            && !schema["properties"].is_object()
            && !schema["additionalProperties"].is_object());
    if anything {
        return Value::Object(out);
    }
    for (name, value) in schema.as_object().into_iter().flatten() {
        let value = match name.as_str() {
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                let inlined = properties
                    .map(|(name, schema)| (name.clone(), inlined(schema, schemas, within)));
                Value::Object(inlined.collect())
            }
            "items" | "additionalProperties" if value.is_object() => {
                inlined(value, schemas, within)
            }
            "type"
            | "format"
            | "x-kubernetes-int-or-string"
            | "x-kubernetes-preserve-unknown-fields" => value.clone(),
            _ => continue,
        };
        out.insert(name.clone(), value);
    }
    Value::Object(out)
}

/// What is wrong with the policy's validations for each of `kinds`; `params` is the type of its parameters, where that is
/// known.
pub fn warnings(
    spec: &ValidatingAdmissionPolicySpec,
    kinds: &[Matched],
    params: Option<&Type>,
) -> Vec<ExpressionWarning> {
    let variables = spec.variables.as_deref().unwrap_or_default();
    let scopes: Vec<(String, Scope)> = kinds
        .iter()
        .map(|of| {
            let name = format!("{}/{}, Kind={}", of.group, of.version, of.kind);
            let params = spec
                .param_kind
                .as_ref()
                .map(|_| params.cloned().unwrap_or(Type::Dyn));
            (name, scope(&of.ty, params, variables))
        })
        .collect();
    let mut found = Vec::new();
    let mut look = |expression: &str, field_ref: String| {
        let said: Vec<String> = scopes
            .iter()
            .filter_map(|(kind, scope)| Some(format!("{kind}: {}\n", wrong(expression, scope)?)))
            .collect();
        if !said.is_empty() {
            found.push(ExpressionWarning {
                field_ref,
                warning: said.join("\n"),
            });
        }
    };
    for (i, validation) in spec.validations.iter().flatten().enumerate() {
        let at = format!("spec.validations[{i}]");
        look(&validation.expression, format!("{at}.expression"));
        let message = validation.message_expression.text();
        if !message.is_empty() {
            look(message, format!("{at}.messageExpression"));
        }
    }
    found
}

fn scope(object: &Type, params: Option<Type>, variables: &[Variable]) -> Scope {
    let mut scope = Scope::new(params.is_some());
    scope.declare("object", object.clone());
    scope.declare("oldObject", object.clone());
    if let Some(params) = params {
        scope.declare("params", params);
    }
    let mut known = BTreeMap::new();
    for variable in variables {
        scope.declare_variables(&known);
        let ty = Program::compile(variable.expression.trim())
            .ok()
            .and_then(|program| check(&program, scope.declarations()).ok());
        // What is wrong with a variable is said where it is used.
        known.insert(
            variable.name.clone(),
            ty.map_or(Type::Dyn, |checked| checked.ty),
        );
    }
    scope.declare_variables(&known);
    scope
}

fn wrong(expression: &str, scope: &Scope) -> Option<String> {
    match Program::compile(expression.trim()) {
        Ok(program) => check(&program, scope.declarations()).err(),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(expression: &str, more: Value) -> ValidatingAdmissionPolicySpec {
        let mut spec = json!({
            "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"],
                "operations": ["CREATE"], "resources": ["deployments", "deployments/scale"]}]},
            "validations": [{"expression": expression}],
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            spec[name] = value.clone();
        }
        serde_json::from_value(spec).expect("a spec")
    }

    fn document() -> Value {
        let of = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
        json!({"components": {"schemas": {
            "Deployment": {
                "type": "object",
                "x-kubernetes-group-version-kind": [{"group": "apps", "version": "v1", "kind": "Deployment"}],
                "properties": {
                    "spec": {"allOf": [of("Spec")], "default": {}},
                    "metadata": {"type": "object", "properties": {"labels":
                        {"type": "object", "additionalProperties": {"type": "string", "default": ""}}}},
                },
            },
            "Spec": {"type": "object", "properties": {
                "replicas": {"type": "integer", "format": "int32"},
                "surge": of("IntOrString"), "self": of("Spec"), "raw": {"type": "object"},
            }},
            "IntOrString": {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
        }}})
    }

    fn warned(expression: &str, more: Value) -> Vec<(String, String)> {
        let ty = type_of(&document(), "apps", "v1", "Deployment").expect("it is there");
        let kinds = [Matched {
            group: "apps".into(),
            version: "v1".into(),
            kind: "Deployment".into(),
            ty,
        }];
        let warnings = warnings(&spec(expression, more), &kinds, None);
        let parts = |w: ExpressionWarning| (w.field_ref, w.warning);
        warnings.into_iter().map(parts).collect()
    }

    #[test]
    fn a_field_that_is_not_there_is_named() {
        assert_eq!(
            warned("object.replicas > 1", json!({})),
            [(
                "spec.validations[0].expression".to_owned(),
                "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n \
                 | ......^\n"
                    .to_owned()
            )]
        );
        let variables = json!({"variables": [{"name": "n", "expression": "object.spec.replicas"}]});
        let found = warned("variables.n == 'x'", variables);
        assert!(
            found[0].1.contains("applied to '(int, string)'"),
            "{found:?}"
        );
        let message = json!({"validations": [{"expression": "true", "messageExpression": "object.spec.nope"}]});
        let found = warned("", message);
        assert_eq!(found[0].0, "spec.validations[0].messageExpression");
    }

    #[test]
    fn what_fits_is_not_warned_about() {
        for expression in [
            "object.spec.replicas > 1 && oldObject.spec.replicas < 9",
            "object.spec.surge == 1 || object.spec.surge == '5%'",
            "object.spec.self.anything && object.spec.raw.x == 1",
            "has(object.metadata.labels) && object.metadata.labels['a'] == 'b'",
            "params.limit > 1",
        ] {
            let params = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}});
            assert_eq!(warned(expression, params), [], "{expression}");
        }
    }

    #[test]
    fn wildcards_and_subresources_are_not_looked_up() {
        let found = matched(&spec("true", json!({})));
        let deployments = ("apps".to_owned(), "v1".to_owned(), "deployments".to_owned());
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [deployments]);
        let wild = json!({"matchConstraints": {"resourceRules": [
            {"apiGroups": ["*"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["pods"]}]}});
        assert!(matched(&spec("true", wild)).is_empty());
    }
}
