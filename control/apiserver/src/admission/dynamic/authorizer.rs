//! The `authorizer` variable: an expression asks what its requester may do.

use std::sync::Arc;

use skep_cel::{Error, Opaque, Value};

use super::{Attributes, Subject};
use crate::{
    authz::{self, Decision},
    context::Api,
    identity::User,
};

/// A question that grows by method calls (`group('').resource('pods').check('get')`), and at last its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Question {
    Nothing { user: User },
    Path { user: User, path: String },
    Group { user: User, group: String },
    Resource(Resource),
    Answer { allowed: bool, reason: String },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resource {
    user: User,
    group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

impl Opaque for Question {
    fn runtime_type_name(&self) -> &str {
        match self {
            Self::Nothing { .. } => "kubernetes.authorization.Authorizer",
            Self::Path { .. } => "kubernetes.authorization.PathCheck",
            Self::Group { .. } => "kubernetes.authorization.GroupCheck",
            Self::Resource(_) => "kubernetes.authorization.ResourceCheck",
            Self::Answer { .. } => "kubernetes.authorization.Decision",
        }
    }
}

fn value(question: Question) -> Value {
    Value::Opaque(Arc::new(question))
}

/// `authorizer`
pub fn authorizer(attributes: &Attributes<'_>) -> Value {
    value(Question::Nothing {
        user: attributes.user.clone(),
    })
}

/// `authorizer.requestResource`
pub fn request_resource(attributes: &Attributes<'_>, subject: &Subject) -> Value {
    let def = &subject.resource.def;
    value(Question::Resource(Resource {
        user: attributes.user.clone(),
        group: def.group.to_string(),
        resource: def.plural.to_string(),
        subresource: subject.subresource.clone(),
        namespace: subject.namespace.clone(),
        name: subject.name.clone(),
    }))
}

/// A method of one of these values; `None` for other targets.
pub fn call(
    api: &Api,
    target: &Value,
    function: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    let Value::Opaque(opaque) = target else {
        return None;
    };
    let question = opaque.downcast_ref::<Question>()?;
    let mut texts = Vec::with_capacity(args.len());
    for arg in args {
        match arg {
            Value::String(text) => texts.push(text.as_str()),
            _ => return Some(Err(Error::failed("no such overload"))),
        }
    }
    Some(answer(api, question, function, &texts))
}

fn answer(api: &Api, question: &Question, function: &str, args: &[&str]) -> Result<Value, Error> {
    let filled = |what: &str, text: &str| {
        if text.trim().is_empty() {
            Err(Error::failed(format!("{what} must not be empty")))
        } else {
            Ok(text.to_owned())
        }
    };
    Ok(match (question, function, args) {
        (Question::Nothing { user }, "path", [path]) => value(Question::Path {
            user: user.clone(),
            path: filled("path", path)?,
        }),
        (Question::Nothing { user }, "group", [group]) => value(Question::Group {
            user: user.clone(),
            group: (*group).to_owned(),
        }),
        (Question::Nothing { .. }, "serviceAccount", [namespace, name]) => {
            value(Question::Nothing {
                user: service_account(namespace, name)?,
            })
        }
        (Question::Group { user, group }, "resource", [resource]) => {
            value(Question::Resource(Resource {
                user: user.clone(),
                group: group.clone(),
                resource: filled("resource", resource)?,
                ..Resource::default()
            }))
        }
        (Question::Resource(asked), "subresource" | "namespace" | "name", [text]) => {
            let mut asked = asked.clone();
            let field = match function {
                "subresource" => &mut asked.subresource,
                "namespace" => &mut asked.namespace,
                _ => &mut asked.name,
            };
            *field = (*text).to_owned();
            value(Question::Resource(asked))
        }
        // Our authorizers do not look at selectors, so a narrower question has the same answer.
        (Question::Resource(_), "fieldSelector" | "labelSelector", [_]) => value(question.clone()),
        (Question::Path { user, path }, "check", [verb]) => {
            let verb = verb.to_lowercase();
            decided(
                api,
                &authz::Attributes::Path {
                    user,
                    verb: &verb,
                    path,
                },
            )
        }
        (Question::Resource(asked), "check", [verb]) => decided(
            api,
            &authz::Attributes::Resource {
                user: &asked.user,
                verb,
                group: &asked.group,
                version: "*",
                resource: &asked.resource,
                subresource: &asked.subresource,
                namespace: &asked.namespace,
                name: &asked.name,
            },
        ),
        (Question::Answer { allowed, .. }, "allowed", []) => Value::Bool(*allowed),
        (Question::Answer { reason, .. }, "reason", []) => text(reason),
        (Question::Answer { .. }, "errored", []) => Value::Bool(false),
        (Question::Answer { .. }, "error", []) => text(""),
        _ => return Err(Error::failed("no such overload")),
    })
}

fn text(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

fn decided(api: &Api, attributes: &authz::Attributes<'_>) -> Value {
    let (allowed, reason) = match api.authorizer.authorize(attributes) {
        Decision::Allow { reason } => (true, reason),
        Decision::NoOpinion { reason } => (false, reason),
    };
    value(Question::Answer { allowed, reason })
}

fn service_account(namespace: &str, name: &str) -> Result<User, Error> {
    let label = |text: &str, dots: bool| {
        !text.is_empty()
            && text.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.')
            })
            && !text.starts_with(['-', '.'])
            && !text.ends_with(['-', '.'])
    };
    if !label(name, true) {
        return Err(Error::failed("Invalid service account name"));
    }
    if !label(namespace, false) {
        return Err(Error::failed("Invalid service account namespace"));
    }
    Ok(User {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ],
        ..User::default()
    })
}
