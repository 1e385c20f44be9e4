//! What validating and mutating policies share: which apply, with which parameters.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Compiled, Matched, Subject,
    expressions::{Conditions, Variable, variables},
    matching::{Match, read_selector, selects},
};
use crate::{
    admission::Attributes, codec::meta, context::Api, registry::Resource, storage::from_stored,
};

/// A policy's or binding's name with what selects its writes.
pub struct Selection {
    pub name: String,
    pub matching: Match,
}

/// A binding of a policy to writes and parameters.
pub struct Binding {
    pub selection: Selection,
    params: Value,
    /// `Deny`, `Warn`, `Audit`; a validating policy's only.
    pub actions: Vec<String>,
}

impl Binding {
    pub fn read(binding: &Value) -> Self {
        let spec = &binding["spec"];
        let actions = spec["validationActions"].as_array().into_iter().flatten();
        Self {
            selection: Selection {
                name: meta(binding, "name").to_owned(),
                matching: Match::of_resources(&spec["matchResources"]),
            },
            params: spec["paramRef"].clone(),
            actions: actions
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        }
    }
}

/// A policy (of either kind, with what it does as `T`) and its bindings.
pub struct Policy<T> {
    pub selection: Selection,
    pub bindings: Vec<Binding>,
    param_kind: Value,
    /// `failurePolicy: Fail`
    pub fail: bool,
    pub conditions: Conditions,
    pub variables: Vec<Variable>,
    pub does: T,
}

impl<T> Policy<T> {
    /// Parameters are a variable only of a policy that has a kind of them.
    pub fn params<'a>(&self, params: &'a Value) -> Option<&'a Value> {
        self.param_kind.is_object().then_some(params)
    }
}

/// The policies of one kind, compiled.
pub struct Policies<T> {
    compiled: Compiled<Vec<Policy<T>>>,
    read: fn(&Value) -> T,
}

impl<T> Policies<T> {
    /// `plurals`: of the policies and of their bindings. `read`: what a policy does, from its spec.
    pub const fn new(plurals: &'static [&'static str], read: fn(&Value) -> T) -> Self {
        Self {
            compiled: Compiled::new(plurals),
            read,
        }
    }

    /// `None`: no policy can be about this write.
    pub fn about(
        &self,
        api: &Api,
        attributes: &Attributes<'_>,
    ) -> Option<(Arc<Vec<Policy<T>>>, Subject)> {
        let policies = self.compiled.load(api, |objects| bound(objects, self.read));
        if policies.is_empty() {
            return None;
        }
        let subject = Subject::of(attributes);
        (!subject.is_exempt()).then_some((policies, subject))
    }
}

/// Policies that are bound, sorted by name, each with its bindings sorted by name.
fn bound<T>(collections: Vec<Vec<Value>>, read: fn(&Value) -> T) -> Vec<Policy<T>> {
    let mut collections = collections.into_iter();
    let policies = collections.next().unwrap_or_default();
    let bindings = collections.next().unwrap_or_default();
    let mut read_policies = Vec::new();
    for policy in policies {
        let name = meta(&policy, "name").to_owned();
        let own = bindings
            .iter()
            .filter(|binding| binding["spec"]["policyName"] == name.as_str());
        let bindings: Vec<Binding> = own.map(Binding::read).collect();
        if bindings.is_empty() {
            continue;
        }
        let spec = &policy["spec"];
        let fail = spec["failurePolicy"] != "Ignore";
        read_policies.push(Policy {
            selection: Selection {
                name,
                matching: Match::of_resources(&spec["matchConstraints"]),
            },
            bindings,
            param_kind: spec["paramKind"].clone(),
            fail,
            conditions: Conditions::new(&spec["matchConditions"], fail),
            variables: variables(&spec["variables"]),
            does: read(spec),
        });
    }
    read_policies
}

/// A policy that applies to a write by one of its bindings, with one object of parameters.
pub struct Invocation<'p, T> {
    pub policy: &'p Policy<T>,
    pub binding: &'p Binding,
    pub matched: Matched,
    /// Null without.
    pub params: Value,
}

/// A policy that should apply and cannot.
pub struct Misconfigured<'p, T> {
    pub policy: &'p Policy<T>,
    pub binding: Option<&'p Binding>,
    pub message: String,
}

/// What applies to a write, in order; where one cannot, the reason stands in its place.
pub async fn invocations<'p, T: Sync>(
    api: &Api,
    policies: &'p [Policy<T>],
    attributes: &Attributes<'_>,
    subject: &Subject,
) -> Vec<Result<Invocation<'p, T>, Misconfigured<'p, T>>> {
    let mut found = Vec::new();
    for policy in policies {
        let wrong = |binding: Option<&'p Binding>, why: &str| {
            let what = if binding.is_some() {
                "binding"
            } else {
                "policy"
            };
            Err(Misconfigured {
                policy,
                binding,
                message: format!("failed to configure {what}: {why}"),
            })
        };
        let matching = &policy.selection.matching;
        let matched = match matching.matches(api, attributes, subject).await {
            Ok(Some(matched)) => matched,
            Ok(None) => continue,
            Err(status) => {
                found.push(wrong(None, &status.message));
                continue;
            }
        };
        let kind = match param_resource(api, &policy.param_kind) {
            Ok(kind) => kind,
            Err(why) => {
                found.push(wrong(None, &why));
                continue;
            }
        };
        for binding in &policy.bindings {
            match binding
                .selection
                .matching
                .matches(api, attributes, subject)
                .await
            {
                Ok(Some(_)) => {}
                Ok(None) => continue,
                Err(status) => {
                    found.push(wrong(Some(binding), &status.message));
                    continue;
                }
            }
            match params(api, kind.as_deref(), &binding.params, &subject.namespace).await {
                Err(why) => found.push(wrong(Some(binding), &why)),
                Ok(params) => found.extend(params.into_iter().map(|params| {
                    Ok(Invocation {
                        policy,
                        binding,
                        matched: matched.clone(),
                        params,
                    })
                })),
            }
        }
    }
    found
}

/// The resource that holds a policy's parameters; `None` if it has none.
fn param_resource(api: &Api, kind: &Value) -> Result<Option<std::sync::Arc<Resource>>, String> {
    if kind.is_null() {
        return Ok(None);
    }
    let api_version = kind["apiVersion"].as_str().unwrap_or_default();
    let name = kind["kind"].as_str().unwrap_or_default();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let registry = api.registry.load();
    match registry.kind(group, version, name) {
        Some(resource) => Ok(Some(resource.clone())),
        None => Err(format!(
            "failed to find resource referenced by paramKind: '{api_version}, Kind={name}'"
        )),
    }
}

/// The parameters that a binding names. Empty: there are none, and the binding then does nothing.
async fn params(
    api: &Api,
    kind: Option<&Resource>,
    reference: &Value,
    namespace: &str,
) -> Result<Vec<Value>, String> {
    let Some(kind) = kind.filter(|_| !reference.is_null()) else {
        return Ok(vec![Value::Null]);
    };
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let own = text("namespace");
    let namespace = match (kind.namespaced(), own.is_empty(), namespace.is_empty()) {
        (false, false, _) => {
            return Err(
                "paramRef.namespace must not be provided for a cluster-scoped `paramKind`"
                    .to_owned(),
            );
        }
        (false, true, _) => "",
        (true, false, _) => own,
        (true, true, false) => namespace,
        (true, true, true) => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .to_owned(),
            );
        }
    };
    let decode = |bytes: &[u8]| -> Result<Value, String> {
        let value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Ok(from_stored(kind, value))
    };
    let name = text("name");
    let mut found = Vec::new();
    if !name.is_empty() {
        let entry = api.storage.find(&kind.key(namespace, name)).await;
        if let Some(entry) = entry.map_err(|status| status.message.clone())? {
            found.push(decode(&entry.bytes())?);
        }
    } else if reference["selector"].is_object() {
        let selector = read_selector(&reference["selector"])?;
        let prefix = kind.scope_prefix(namespace);
        for entry in api.storage.cache.snapshot(&prefix).iter() {
            let object = decode(&entry.bytes())?;
            if selects(&selector, &object) {
                found.push(object);
            }
        }
    } else {
        return Err("one of name or selector must be provided".to_owned());
    }
    if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
        return Err(
            "no params found for policy binding with `Deny` parameterNotFoundAction".to_owned(),
        );
    }
    Ok(found)
}
