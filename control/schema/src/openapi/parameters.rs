//! What operations take: the tables of parameters, those that all operations of a path share, and those that many paths of
//! a document share.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha224};

use super::Form;

/// Name, type, description.
pub(super) type Parameter = (&'static str, &'static str, &'static str);

pub(super) const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "When present, nothing is persisted. Valid value: All, which runs every stage of the request.",
);
pub(super) const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name of the actor or entity that makes the change. At most 128 printable characters.",
);
/// Of patches.
pub(super) const APPLY_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name of the actor or entity that makes the change; required for apply requests. At most 128 printable characters.",
);
pub(super) const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What to do about unknown or duplicate fields of the request: Ignore drops them, Warn (the default) drops them and \
     warns, Strict refuses the request.",
);
pub(super) const FORCE: Parameter = (
    "force",
    "boolean",
    "Force takes over fields that other managers own. For apply requests only.",
);
pub(super) const WRITE: [Parameter; 3] = [DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
pub(super) const PATCH: [Parameter; 4] = [DRY_RUN, APPLY_MANAGER, FIELD_VALIDATION, FORCE];
pub(super) const PRETTY: Parameter = (
    "pretty",
    "string",
    "If 'true', the output is pretty printed.",
);
pub(super) const LIST: [Parameter; 10] = [
    (
        "allowWatchBookmarks",
        "boolean",
        "Asks for watch events of type BOOKMARK.",
    ),
    (
        "continue",
        "string",
        "The token of the previous page of a limited list.",
    ),
    (
        "fieldSelector",
        "string",
        "Restricts the objects by their fields.",
    ),
    (
        "labelSelector",
        "string",
        "Restricts the objects by their labels.",
    ),
    (
        "limit",
        "integer",
        "Most objects of one answer; more are read with continue.",
    ),
    (
        "resourceVersion",
        "string",
        "Which version of the data may be served.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion applies to a list: Exact or NotOlderThan.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "A watch starts with the present objects and a bookmark after them.",
    ),
    (
        "timeoutSeconds",
        "integer",
        "How long a list or watch may take.",
    ),
    (
        "watch",
        "boolean",
        "Answers a stream of changes instead of a list.",
    ),
];
pub(super) const DELETE: [Parameter; 5] = [
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "How long the object may take to stop; 0 removes it at once.",
    ),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Removes the object even if what is stored cannot be read.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Deprecated: use propagationPolicy.",
    ),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents: Orphan, Background or Foreground.",
    ),
];
const CONTAINER: Parameter = (
    "container",
    "string",
    "The container that is meant; a pod with one container needs none.",
);
const STDERR: Parameter = ("stderr", "boolean", "Sends standard error to the client.");
const STDIN: Parameter = ("stdin", "boolean", "Takes standard input from the client.");
const STDOUT: Parameter = ("stdout", "boolean", "Sends standard output to the client.");
const TTY: Parameter = ("tty", "boolean", "Runs in a terminal.");
const ATTACH: [Parameter; 5] = [CONTAINER, STDERR, STDIN, STDOUT, TTY];
const EXEC: [Parameter; 6] = [
    (
        "command",
        "string",
        "The command and its arguments, one parameter each; no shell is involved.",
    ),
    CONTAINER,
    STDERR,
    STDIN,
    STDOUT,
    TTY,
];
const LOG: [Parameter; 9] = [
    CONTAINER,
    ("follow", "boolean", "Goes on with what is written later."),
    (
        "insecureSkipTLSVerifyBackend",
        "boolean",
        "Does not ask the kubelet who it is: whoever stands in between can read and change the log.",
    ),
    ("limitBytes", "integer", "Ends after so many bytes."),
    (
        "previous",
        "boolean",
        "The log of the container that ran before this one.",
    ),
    (
        "sinceSeconds",
        "integer",
        "Begins with what was written so many seconds ago.",
    ),
    (
        "stream",
        "string",
        "Which stream is shown: All (the default), Stdout or Stderr.",
    ),
    (
        "tailLines",
        "integer",
        "Begins so many lines before the end.",
    ),
    (
        "timestamps",
        "boolean",
        "Puts the time before every line, as RFC 3339 has it.",
    ),
];
const PORT_FORWARD: [Parameter; 1] = [(
    "ports",
    "integer",
    "The ports that are forwarded; required with WebSockets.",
)];
const PROXY: [Parameter; 1] = [(
    "path",
    "string",
    "The path that is asked for, and its query.",
)];

/// What a subresource that is a stream or a proxy takes.
pub(super) fn of_stream(subresource: &str) -> &'static [Parameter] {
    match subresource {
        "attach" => &ATTACH,
        "exec" => &EXEC,
        "log" => &LOG,
        "portforward" => &PORT_FORWARD,
        "proxy" => &PROXY,
        _ => &[],
    }
}

pub(super) fn parameter(form: Form, (name, ty, description): &Parameter, place: &str) -> Value {
    let mut parameter = json!({"name": name, "in": place, "description": description});
    match form {
        Form::V3 => parameter["schema"] = json!({"type": ty, "uniqueItems": true}),
        Form::V2 => {
            parameter["type"] = json!(ty);
            parameter["uniqueItems"] = json!(true);
        }
    }
    if place == "path" {
        parameter["required"] = json!(true);
    }
    parameter
}

pub(super) fn queries(form: Form, parameters: &[Parameter]) -> Vec<Value> {
    parameters
        .iter()
        .map(|query| parameter(form, query, "query"))
        .collect()
}

/// Takes out what every list has, bodies aside.
pub(super) fn take_common(mut lists: Vec<&mut Vec<Value>>) -> Vec<Value> {
    let Some(first) = lists.first() else {
        return Vec::new();
    };
    let common: Vec<Value> = first
        .iter()
        .filter(|parameter| parameter["in"] != "body")
        .filter(|parameter| lists.iter().all(|list| list.contains(parameter)))
        .cloned()
        .collect();
    for list in &mut lists {
        list.retain(|parameter| !common.contains(parameter));
    }
    common
}

/// Moves parameters of a v2 document's paths to where all paths share them, and leaves references: they would be most of
/// the document.
pub(super) fn share(paths: &mut Map<String, Value>) -> Map<String, Value> {
    let mut shared = BTreeMap::new();
    for item in paths.values_mut().filter_map(Value::as_object_mut) {
        for (method, value) in item {
            let list = match method.as_str() {
                "parameters" => value.as_array_mut(),
                _ => value.get_mut("parameters").and_then(Value::as_array_mut),
            };
            for parameter in list.into_iter().flatten() {
                if is_shared(parameter) {
                    let name = shared_name(parameter);
                    let reference = json!({"$ref": format!("#/parameters/{name}")});
                    shared.insert(name, std::mem::replace(parameter, reference));
                }
            }
        }
    }
    shared.into_iter().collect()
}

/// Upstream leaves those in place that name a kind, and these two.
fn is_shared(parameter: &Value) -> bool {
    let name = parameter["name"].as_str().unwrap_or_default();
    match parameter["in"].as_str() {
        Some("body") => {
            let schema = parameter.pointer("/schema/$ref").and_then(Value::as_str);
            schema.is_some_and(|name| name.ends_with(".DeleteOptions") || name.ends_with(".Patch"))
        }
        Some("path") => name != "name",
        Some(_) => !matches!(name, "dryRun" | "fieldValidation"),
        None => false,
    }
}

/// `limit-1NfNmdNH`: the same for the same parameter in every document, so that documents can be merged.
fn shared_name(parameter: &Value) -> String {
    let digest = Sha224::digest(parameter.to_string());
    let name = parameter["name"].as_str().unwrap_or_default();
    format!("{name}-{}", URL_SAFE_NO_PAD.encode(&digest[..6]))
}
