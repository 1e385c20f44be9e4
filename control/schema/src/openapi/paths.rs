//! Rows → paths and operations.

use serde_json::{Map, Value, json};

use super::{Form, Row, Subresource, definitions::Definitions};

const DRY_RUN: (&str, &str, &str) = (
    "dryRun",
    "string",
    "When present, nothing is persisted. Valid value: All, which runs every stage of the request.",
);
const FIELD_MANAGER: (&str, &str, &str) = (
    "fieldManager",
    "string",
    "The name of the actor or entity that makes the change; required for apply requests. At most 128 printable characters.",
);
const FIELD_VALIDATION: (&str, &str, &str) = (
    "fieldValidation",
    "string",
    "What to do about unknown or duplicate fields of the request: Ignore drops them, Warn (the default) drops them and \
     warns, Strict refuses the request.",
);
const FORCE: (&str, &str, &str) = (
    "force",
    "boolean",
    "Force takes over fields that other managers own. For apply requests only.",
);
const LIST: [(&str, &str, &str); 10] = [
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
const DELETE: [(&str, &str, &str); 5] = [
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

type Parameter = (&'static str, &'static str, &'static str);

fn parameter(form: Form, (name, ty, description): &Parameter, place: &str) -> Value {
    match form {
        Form::V3 => {
            let mut parameter = json!({
                "name": name, "in": place, "description": description,
                "schema": {"type": ty, "uniqueItems": true},
            });
            if place == "path" {
                parameter["required"] = json!(true);
            }
            parameter
        }
        Form::V2 => {
            let mut parameter = json!({
                "name": name, "in": place, "description": description, "type": ty, "uniqueItems": true,
            });
            if place == "path" {
                parameter["required"] = json!(true);
            }
            parameter
        }
    }
}

fn queries(form: Form, parameters: &[Parameter]) -> Vec<Value> {
    parameters
        .iter()
        .map(|query| parameter(form, query, "query"))
        .collect()
}

const MEDIA_TYPES: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
const STREAM_TYPES: [&str; 2] = [
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// What an operation takes and answers.
struct Operation<'a> {
    action: &'a str,
    id: String,
    description: String,
    gvk: (&'a str, &'a str, &'a str),
    tag: String,
    parameters: Vec<Value>,
    body: Option<Value>,
    answer: Value,
    codes: &'a [(&'a str, &'a str)],
    streams: bool,
    custom: bool,
}

impl Operation<'_> {
    fn render(self, form: Form) -> Value {
        let mut produces: Vec<&str> = MEDIA_TYPES.to_vec();
        if self.custom {
            produces.truncate(2);
        }
        if self.streams {
            produces.extend(STREAM_TYPES.iter().take(if self.custom { 1 } else { 2 }));
        }
        let mut responses = Map::new();
        for (code, text) in self.codes {
            let response = match form {
                Form::V2 => json!({"description": text, "schema": self.answer}),
                Form::V3 => {
                    let content: Map<String, Value> = produces
                        .iter()
                        .map(|media| ((*media).to_owned(), json!({"schema": self.answer})))
                        .collect();
                    json!({"description": text, "content": content})
                }
            };
            responses.insert((*code).to_owned(), response);
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        let (group, version, kind) = self.gvk;
        let mut operation = json!({
            "tags": [self.tag],
            "description": self.description,
            "operationId": self.id,
            "responses": responses,
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": {"group": group, "kind": kind, "version": version},
        });
        let mut parameters = self.parameters;
        let is_patch = self.action == "patch";
        if let Some(body) = self.body {
            let required = self.action != "delete" && self.action != "deletecollection";
            match form {
                Form::V2 => {
                    let mut parameter = json!({"name": "body", "in": "body", "schema": body});
                    if required {
                        parameter["required"] = json!(true);
                    }
                    parameters.insert(0, parameter);
                    operation["consumes"] = if is_patch {
                        json!(PATCH_TYPES)
                    } else {
                        json!(["*/*"])
                    };
                }
                Form::V3 => {
                    let patches = PATCH_TYPES.iter().take(if self.custom { 3 } else { 4 });
                    let content: Map<String, Value> = if is_patch {
                        patches
                            .map(|media| ((*media).to_owned(), json!({"schema": body})))
                            .collect()
                    } else {
                        [("*/*".to_owned(), json!({"schema": body}))]
                            .into_iter()
                            .collect()
                    };
                    operation["requestBody"] = json!({"content": content});
                    if required {
                        operation["requestBody"]["required"] = json!(true);
                    }
                }
            }
        }
        if form == Form::V2 {
            operation["produces"] = json!(produces);
            operation["schemes"] = json!(["https"]);
        }
        if !parameters.is_empty() {
            operation["parameters"] = Value::Array(parameters);
        }
        operation
    }
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_ascii_uppercase().to_string() + characters.as_str(),
        None => String::new(),
    }
}

/// `AppsV1`, `CoreV1`, `RbacAuthorizationV1`
fn version_name(group: &str, version: &str) -> String {
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    let group = if short.is_empty() { "core" } else { short };
    let group: String = group.split(['.', '-']).map(capital).collect();
    group + &capital(version)
}

fn tag(group: &str, version: &str) -> String {
    version_tag(group.strip_suffix(".k8s.io").unwrap_or(group), version)
}

fn version_tag(group: &str, version: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    let camel: String = group
        .split('.')
        .enumerate()
        .map(|(at, part)| {
            if at == 0 {
                part.to_owned()
            } else {
                capital(part)
            }
        })
        .collect();
    format!("{camel}_{version}")
}

fn base(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    }
}

/// `/apis/apps/v1/`: the list of resources.
pub(super) fn group_version(
    group: &str,
    version: &str,
    definitions: &mut Definitions,
    paths: &mut Map<String, Value>,
) {
    let form = definitions.form();
    let answer = definitions.meta("APIResourceList");
    let operation = Operation {
        action: "get",
        id: format!("get{}APIResources", version_name(group, version)),
        description: "get available resources".to_owned(),
        gvk: (group, version, "APIResourceList"),
        tag: tag(group, version),
        parameters: Vec::new(),
        body: None,
        answer,
        codes: &[("200", "OK")],
        streams: false,
        custom: false,
    };
    let mut rendered = operation.render(form);
    if let Some(operation) = rendered.as_object_mut() {
        operation.remove("x-kubernetes-action");
        operation.remove("x-kubernetes-group-version-kind");
    }
    paths.insert(
        format!("{}/", base(group, version)),
        json!({"get": rendered}),
    );
}

fn path_parameters(form: Form, row: &Row, named: bool) -> Vec<Value> {
    let mut parameters = Vec::new();
    if named {
        let mut name = parameter(form, &("name", "string", ""), "path");
        name["description"] = json!(format!("name of the {}", row.kind));
        parameters.push(name);
    }
    if row.namespaced {
        let namespace = (
            "namespace",
            "string",
            "object name and auth scope, such as for teams and projects",
        );
        parameters.push(parameter(form, &namespace, "path"));
    }
    let pretty = (
        "pretty",
        "string",
        "If 'true', the output is pretty printed.",
    );
    parameters.push(parameter(form, &pretty, "query"));
    parameters
}

/// All paths of a resource.
pub(super) fn resource(row: &Row, definitions: &mut Definitions, paths: &mut Map<String, Value>) {
    let form = definitions.form();
    let (object, list) = definitions.row(row);
    let base = base(&row.group, &row.version);
    let scope = if row.namespaced { "Namespaced" } else { "" };
    let collection = if row.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", row.plural)
    } else {
        format!("{base}/{}", row.plural)
    };
    let version = version_name(&row.group, &row.version);
    let has = |verb: &str| row.verbs.iter().any(|have| have == verb);
    let operation = |action, id, description, answer| Operation {
        action,
        id,
        description,
        gvk: (row.group.as_str(), row.version.as_str(), row.kind.as_str()),
        tag: tag(&row.group, &row.version),
        parameters: Vec::new(),
        body: None,
        answer,
        codes: &[("200", "OK")],
        streams: false,
        custom: row.schema.is_some(),
    };
    let kind = &row.kind;

    let mut methods = Map::new();
    if has("list") {
        let mut get = operation(
            "list",
            format!("list{version}{scope}{kind}"),
            format!("list or watch objects of kind {kind}"),
            list.clone(),
        );
        get.parameters = queries(form, &LIST);
        get.streams = true;
        methods.insert("get".to_owned(), get.render(form));
    }
    if has("create") {
        let article = if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
            "an"
        } else {
            "a"
        };
        let mut post = operation(
            "post",
            format!("create{version}{scope}{kind}"),
            format!("create {article} {kind}"),
            object.clone(),
        );
        post.parameters = queries(form, &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION]);
        post.body = Some(object.clone());
        post.codes = &[("200", "OK"), ("201", "Created"), ("202", "Accepted")];
        methods.insert("post".to_owned(), post.render(form));
    }
    if has("deletecollection") {
        let mut delete = operation(
            "deletecollection",
            format!("delete{version}Collection{scope}{kind}"),
            format!("delete collection of {kind}"),
            definitions.meta("Status"),
        );
        delete.parameters = queries(form, &DELETE);
        delete.parameters.extend(queries(form, &LIST[1..9]));
        delete.body = Some(definitions.meta("DeleteOptions"));
        methods.insert("delete".to_owned(), delete.render(form));
    }
    if !methods.is_empty() {
        let parameters = path_parameters(form, row, false);
        methods.insert("parameters".to_owned(), Value::Array(parameters));
        paths.insert(collection.clone(), Value::Object(methods));
    }
    if row.namespaced && has("list") {
        let mut get = operation(
            "list",
            format!("list{version}{kind}ForAllNamespaces"),
            format!("list or watch objects of kind {kind}"),
            list,
        );
        get.streams = true;
        let pretty = (
            "pretty",
            "string",
            "If 'true', the output is pretty printed.",
        );
        let mut parameters = queries(form, &LIST);
        parameters.push(parameter(form, &pretty, "query"));
        paths.insert(
            format!("{base}/{}", row.plural),
            json!({"get": get.render(form), "parameters": parameters}),
        );
    }

    let mut methods = Map::new();
    if has("get") {
        let get = operation(
            "get",
            format!("read{version}{scope}{kind}"),
            format!("read the specified {kind}"),
            object.clone(),
        );
        methods.insert("get".to_owned(), get.render(form));
    }
    if has("update") {
        let mut put = operation(
            "put",
            format!("replace{version}{scope}{kind}"),
            format!("replace the specified {kind}"),
            object.clone(),
        );
        put.parameters = queries(form, &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION]);
        put.body = Some(object.clone());
        put.codes = &[("200", "OK"), ("201", "Created")];
        methods.insert("put".to_owned(), put.render(form));
    }
    if has("patch") {
        let mut patch = operation(
            "patch",
            format!("patch{version}{scope}{kind}"),
            format!("partially update the specified {kind}"),
            object.clone(),
        );
        patch.parameters = queries(form, &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE]);
        patch.body = Some(definitions.meta("Patch"));
        patch.codes = &[("200", "OK"), ("201", "Created")];
        methods.insert("patch".to_owned(), patch.render(form));
    }
    if has("delete") {
        let article = if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
            "an"
        } else {
            "a"
        };
        let mut delete = operation(
            "delete",
            format!("delete{version}{scope}{kind}"),
            format!("delete {article} {kind}"),
            definitions.meta("Status"),
        );
        delete.parameters = queries(form, &DELETE);
        delete.body = Some(definitions.meta("DeleteOptions"));
        delete.codes = &[("200", "OK"), ("202", "Accepted")];
        methods.insert("delete".to_owned(), delete.render(form));
    }
    let named = format!("{collection}/{{name}}");
    if !methods.is_empty() {
        let parameters = path_parameters(form, row, true);
        methods.insert("parameters".to_owned(), Value::Array(parameters));
        paths.insert(named.clone(), Value::Object(methods));
    }
    for sub in &row.subresources {
        let methods = subresource(row, sub, &object, &version, scope, definitions);
        if !methods.is_empty() {
            paths.insert(format!("{named}/{}", sub.name), Value::Object(methods));
        }
    }
}

/// Subresources that are streams or proxies rather than objects.
const CONNECTS: [&str; 5] = ["attach", "exec", "log", "portforward", "proxy"];

fn subresource(
    row: &Row,
    sub: &Subresource,
    object: &Value,
    version: &str,
    scope: &str,
    definitions: &mut Definitions,
) -> Map<String, Value> {
    let form = definitions.form();
    let own_kind = sub.kind == row.kind || sub.kind.is_empty();
    let group = if sub.version.is_empty() {
        &row.group
    } else {
        &sub.group
    };
    let sub_version = if sub.version.is_empty() {
        &row.version
    } else {
        &sub.version
    };
    let connects = CONNECTS.contains(&sub.name.as_str());
    let schema = if connects {
        json!({"type": "string"})
    } else if own_kind {
        object.clone()
    } else {
        definitions.kind(group, sub_version, &sub.kind)
    };
    let kind = if own_kind { &row.kind } else { &sub.kind };
    let name: String = sub.name.split('/').map(capital).collect();
    let mut methods = Map::new();
    for verb in &sub.verbs {
        let (method, action, prefix, words): (_, _, _, &str) = match verb.as_str() {
            "get" if connects && sub.name != "log" => {
                ("get", "connect", "connect", "connect GET requests to")
            }
            "create" if connects => ("post", "connect", "connect", "connect POST requests to"),
            "get" => ("get", "get", "read", "read"),
            "update" => ("put", "put", "replace", "replace"),
            "patch" => ("patch", "patch", "patch", "partially update"),
            "create" => ("post", "post", "create", "create"),
            "delete" => ("delete", "delete", "delete", "delete"),
            _ => continue,
        };
        let http = if action == "connect" {
            capital(method)
        } else {
            String::new()
        };
        let writes = matches!(action, "put" | "patch" | "post");
        let mut operation = Operation {
            action,
            id: format!("{prefix}{version}{http}{scope}{}{name}", row.kind),
            description: format!("{words} {} of the specified {}", sub.name, row.kind),
            gvk: (group, sub_version, kind),
            tag: tag(&row.group, &row.version),
            parameters: Vec::new(),
            body: None,
            answer: schema.clone(),
            codes: if writes {
                &[("200", "OK"), ("201", "Created")]
            } else {
                &[("200", "OK")]
            },
            streams: false,
            custom: row.schema.is_some(),
        };
        if writes {
            operation.parameters = queries(form, &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION]);
            operation.body = Some(schema.clone());
        }
        if action == "patch" {
            operation.parameters.extend(queries(form, &[FORCE]));
            operation.body = Some(definitions.meta("Patch"));
        }
        methods.insert(method.to_owned(), operation.render(form));
    }
    if !methods.is_empty() {
        let parameters = path_parameters(form, row, true);
        methods.insert("parameters".to_owned(), Value::Array(parameters));
    }
    methods
}
