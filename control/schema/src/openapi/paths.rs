//! Rows → paths and operations.

use serde_json::{Map, Value, json};

use super::{
    Form, Row, Subresource,
    definitions::Definitions,
    parameters::{self, DELETE, LIST, PATCH, PRETTY, WRITE, parameter, queries},
};

const MEDIA_TYPES: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
const STREAM_TYPES: [&str; 5] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
const LOG_TYPES: [&str; 4] = [
    "text/plain",
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
const CUSTOM_TYPES: [&str; 2] = ["application/json", "application/yaml"];
const CUSTOM_STREAM_TYPES: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/json;stream=watch",
];
const ANY_TYPE: [&str; 1] = ["*/*"];
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const CUSTOM_PATCH_TYPES: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];

type Media = &'static [&'static str];
type Codes = &'static [(&'static str, &'static str)];

const OK: Codes = &[("200", "OK")];
const WRITTEN: Codes = &[("200", "OK"), ("201", "Created")];
const CREATED: Codes = &[("200", "OK"), ("201", "Created"), ("202", "Accepted")];
const DELETED: Codes = &[("200", "OK"), ("202", "Accepted")];

/// What an operation takes and answers.
struct Operation {
    /// Empty, with an empty kind, for what is not about objects.
    action: &'static str,
    id: String,
    description: String,
    /// Group, version, kind.
    gvk: [String; 3],
    tag: String,
    parameters: Vec<Value>,
    body: Option<Value>,
    consumes: Media,
    produces: Media,
    answer: Value,
    codes: Codes,
}

impl Operation {
    /// With the body among the parameters, in version 2.
    fn parameters(&mut self, form: Form) -> &mut Vec<Value> {
        if form == Form::V2
            && let Some(body) = self.body.take()
        {
            let mut parameter = json!({"name": "body", "in": "body", "schema": body});
            if self.needs_body() {
                parameter["required"] = json!(true);
            }
            self.parameters.push(parameter);
        }
        &mut self.parameters
    }

    fn needs_body(&self) -> bool {
        self.action != "delete" && self.action != "deletecollection"
    }

    fn content(media: Media, schema: &Value) -> Value {
        let content: Map<String, Value> = media
            .iter()
            .map(|media| ((*media).to_owned(), json!({"schema": schema})))
            .collect();
        content.into()
    }

    fn render(self, form: Form) -> Value {
        let mut responses = Map::new();
        for (code, text) in self.codes {
            let response = match form {
                Form::V2 => json!({"description": text, "schema": self.answer}),
                Form::V3 => {
                    json!({"description": text, "content": Self::content(self.produces, &self.answer)})
                }
            };
            responses.insert((*code).to_owned(), response);
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        let mut operation = json!({
            "tags": [self.tag],
            "description": self.description,
            "operationId": self.id,
            "responses": responses,
        });
        let [group, version, kind] = &self.gvk;
        if !kind.is_empty() {
            operation["x-kubernetes-action"] = json!(self.action);
            operation["x-kubernetes-group-version-kind"] =
                json!({"group": group, "kind": kind, "version": version});
        }
        match form {
            Form::V2 => {
                if !self.consumes.is_empty() {
                    operation["consumes"] = json!(self.consumes);
                }
                operation["produces"] = json!(self.produces);
                operation["schemes"] = json!(["https"]);
            }
            Form::V3 => {
                if let Some(body) = &self.body {
                    operation["requestBody"] =
                        json!({"content": Self::content(self.consumes, body)});
                    if self.needs_body() {
                        operation["requestBody"]["required"] = json!(true);
                    }
                }
            }
        }
        if !self.parameters.is_empty() {
            operation["parameters"] = Value::Array(self.parameters);
        }
        operation
    }
}

/// A path's operations by method. `of_path` are parameters of all of them; more that all have join these.
fn path_item(
    form: Form,
    mut operations: Vec<(&'static str, Operation)>,
    mut of_path: Vec<Value>,
) -> Value {
    let by_name = |list: &mut Vec<Value>| {
        list.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    };
    let lists = operations.iter_mut();
    let lists = lists.map(|(_, operation)| operation.parameters(form));
    of_path.extend(parameters::take_common(lists.collect()));
    let mut item = Map::new();
    for (method, mut operation) in operations {
        by_name(&mut operation.parameters);
        item.insert(method.to_owned(), operation.render(form));
    }
    if !of_path.is_empty() {
        by_name(&mut of_path);
        item.insert("parameters".to_owned(), Value::Array(of_path));
    }
    Value::Object(item)
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_ascii_uppercase().to_string() + characters.as_str(),
        None => String::new(),
    }
}

/// `Apps`, `Core`, `RbacAuthorization`
fn group_name(group: &str) -> String {
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    let group = if short.is_empty() { "core" } else { short };
    group.split(['.', '-']).map(capital).collect()
}

/// `AppsV1`, `CoreV1`, `RbacAuthorizationV1`
fn version_name(group: &str, version: &str) -> String {
    group_name(group) + &capital(version)
}

/// `apps`, `core`, `rbacAuthorization`
fn group_tag(group: &str) -> String {
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    let group = if short.is_empty() { "core" } else { short };
    let mut parts = group.split('.');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |tag, part| tag + &capital(part))
}

fn tag(group: &str, version: &str) -> String {
    format!("{}_{version}", group_tag(group))
}

fn base(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    }
}

fn discovery(id: String, tag: String, description: &str, media: Media, answer: Value) -> Operation {
    Operation {
        action: "",
        id,
        description: description.to_owned(),
        gvk: Default::default(),
        tag,
        parameters: Vec::new(),
        body: None,
        consumes: media,
        produces: media,
        answer,
        codes: OK,
    }
}

/// `/apis/apps/v1/`: the list of resources.
pub(super) fn group_version(
    group: &str,
    version: &str,
    definitions: &mut Definitions<'_>,
    paths: &mut Map<String, Value>,
) {
    let operation = discovery(
        format!("get{}APIResources", version_name(group, version)),
        tag(group, version),
        "get available resources",
        &MEDIA_TYPES,
        definitions.meta("APIResourceList"),
    );
    paths.insert(
        format!("{}/", base(group, version)),
        path_item(definitions.form(), vec![("get", operation)], Vec::new()),
    );
}

/// The paths that belong to no group-version, without slashes around them.
pub(super) const ROOTS: [&str; 5] = [
    ".well-known/openid-configuration",
    "api",
    "apis",
    "openid/v1/jwks",
    "version",
];

/// One of [`ROOTS`], or a group (`apis/apps`).
pub(super) fn root(path: &str, definitions: &mut Definitions<'_>, paths: &mut Map<String, Value>) {
    let text = json!({"type": "string"});
    let operation = match path {
        ".well-known/openid-configuration" => {
            let mut operation = discovery(
                "getServiceAccountIssuerOpenIDConfiguration".to_owned(),
                "WellKnown".to_owned(),
                "get the OpenID configuration of the issuer of service account tokens",
                &["application/json"],
                text,
            );
            operation.consumes = &[];
            operation
        }
        "openid/v1/jwks" => {
            let mut operation = discovery(
                "getServiceAccountIssuerOpenIDKeyset".to_owned(),
                "openid".to_owned(),
                "get the public keys that verify service account tokens",
                &["application/jwk-set+json"],
                text,
            );
            operation.consumes = &[];
            operation
        }
        "version" => discovery(
            "getCodeVersion".to_owned(),
            "version".to_owned(),
            "get the version of the server",
            &["application/json"],
            definitions.reference("io.k8s.apimachinery.pkg.version.Info"),
        ),
        "api" => discovery(
            "getCoreAPIVersions".to_owned(),
            "core".to_owned(),
            "get available API versions",
            &MEDIA_TYPES,
            definitions.meta("APIVersions"),
        ),
        "apis" => discovery(
            "getAPIVersions".to_owned(),
            "apis".to_owned(),
            "get available API versions",
            &MEDIA_TYPES,
            definitions.meta("APIGroupList"),
        ),
        path => {
            let group = path.strip_prefix("apis/").unwrap_or(path);
            discovery(
                format!("get{}APIGroup", group_name(group)),
                group_tag(group),
                "get information of a group",
                &MEDIA_TYPES,
                definitions.meta("APIGroup"),
            )
        }
    };
    paths.insert(
        format!("/{path}/"),
        path_item(definitions.form(), vec![("get", operation)], Vec::new()),
    );
}

/// Parameters of all operations on an object, or on a collection.
fn of_path(form: Form, row: &Row, named: Option<&str>, pretty: bool) -> Vec<Value> {
    let mut parameters = Vec::new();
    if let Some(kind) = named {
        let mut name = parameter(form, &("name", "string", ""), "path");
        name["description"] = json!(format!("name of the {kind}"));
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
    if pretty {
        parameters.push(parameter(form, &PRETTY, "query"));
    }
    parameters
}

fn article(kind: &str) -> &'static str {
    if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
        "an"
    } else {
        "a"
    }
}

/// A row, and what all its operations have in common.
struct Rendered<'a> {
    row: &'a Row,
    form: Form,
    /// `/apis/apps/v1`
    base: String,
    /// `AppsV1`
    version: String,
    /// `Namespaced`, or nothing.
    scope: &'static str,
    object: Value,
    list: Value,
}

impl Rendered<'_> {
    fn operation(
        &self,
        action: &'static str,
        id: String,
        description: String,
        answer: Value,
    ) -> Operation {
        let row = self.row;
        let custom = row.schema.is_some();
        let lists = matches!(action, "list" | "watch" | "watchlist");
        Operation {
            action,
            id,
            description,
            gvk: [row.group.clone(), row.version.clone(), row.kind.clone()],
            tag: tag(&row.group, &row.version),
            parameters: Vec::new(),
            body: None,
            consumes: match (action, custom) {
                ("patch", false) => &PATCH_TYPES,
                ("patch", true) => &CUSTOM_PATCH_TYPES,
                _ => &ANY_TYPE,
            },
            produces: match (lists, custom) {
                (true, false) => &STREAM_TYPES,
                (true, true) => &CUSTOM_STREAM_TYPES,
                (false, false) => &MEDIA_TYPES,
                (false, true) => &CUSTOM_TYPES,
            },
            answer,
            codes: OK,
        }
    }

    fn has(&self, verb: &str) -> bool {
        self.row.verbs.iter().any(|have| have == verb)
    }

    /// `/namespaces/{namespace}/pods`, `/nodes`
    fn collection(&self) -> String {
        let plural = &self.row.plural;
        if self.row.namespaced {
            format!("/namespaces/{{namespace}}/{plural}")
        } else {
            format!("/{plural}")
        }
    }

    fn collection_operations(
        &self,
        definitions: &mut Definitions<'_>,
    ) -> Vec<(&'static str, Operation)> {
        let (kind, version, scope, form) = (&self.row.kind, &self.version, self.scope, self.form);
        let mut operations = Vec::new();
        if self.has("list") {
            let mut get = self.operation(
                "list",
                format!("list{version}{scope}{kind}"),
                format!("list or watch objects of kind {kind}"),
                self.list.clone(),
            );
            get.parameters = queries(form, &LIST);
            operations.push(("get", get));
        }
        if self.has("create") {
            let mut post = self.operation(
                "post",
                format!("create{version}{scope}{kind}"),
                format!("create {} {kind}", article(kind)),
                self.object.clone(),
            );
            post.parameters = queries(form, &WRITE);
            post.body = Some(self.object.clone());
            post.codes = CREATED;
            operations.push(("post", post));
        }
        if self.has("deletecollection") {
            let mut delete = self.operation(
                "deletecollection",
                format!("delete{version}Collection{scope}{kind}"),
                format!("delete collection of {kind}"),
                definitions.meta("Status"),
            );
            delete.parameters = queries(form, &DELETE);
            delete.parameters.extend(queries(form, &LIST[1..9]));
            delete.body = Some(definitions.meta("DeleteOptions"));
            operations.push(("delete", delete));
        }
        operations
    }

    fn object_operations(
        &self,
        definitions: &mut Definitions<'_>,
    ) -> Vec<(&'static str, Operation)> {
        let (kind, version, scope, form) = (&self.row.kind, &self.version, self.scope, self.form);
        let mut operations = Vec::new();
        if self.has("get") {
            let get = self.operation(
                "get",
                format!("read{version}{scope}{kind}"),
                format!("read the specified {kind}"),
                self.object.clone(),
            );
            operations.push(("get", get));
        }
        if self.has("update") {
            let mut put = self.operation(
                "put",
                format!("replace{version}{scope}{kind}"),
                format!("replace the specified {kind}"),
                self.object.clone(),
            );
            put.parameters = queries(form, &WRITE);
            put.body = Some(self.object.clone());
            put.codes = WRITTEN;
            operations.push(("put", put));
        }
        if self.has("patch") {
            let mut patch = self.operation(
                "patch",
                format!("patch{version}{scope}{kind}"),
                format!("partially update the specified {kind}"),
                self.object.clone(),
            );
            patch.parameters = queries(form, &PATCH);
            patch.body = Some(definitions.meta("Patch"));
            patch.codes = WRITTEN;
            operations.push(("patch", patch));
        }
        if self.has("delete") {
            let answer = match self.row.shows_deleted {
                true => self.object.clone(),
                false => definitions.meta("Status"),
            };
            let mut delete = self.operation(
                "delete",
                format!("delete{version}{scope}{kind}"),
                format!("delete {} {kind}", article(kind)),
                answer,
            );
            delete.parameters = queries(form, &DELETE);
            delete.body = Some(definitions.meta("DeleteOptions"));
            delete.codes = DELETED;
            operations.push(("delete", delete));
        }
        operations
    }

    /// The paths that watched before lists could.
    fn watches(&self, definitions: &mut Definitions<'_>, paths: &mut Map<String, Value>) {
        let (row, form) = (self.row, self.form);
        let (kind, version, scope, base) = (&row.kind, &self.version, self.scope, &self.base);
        let event = definitions.meta("WatchEvent");
        let mut add = |path: String, action: &'static str, id: String, named, namespaced: bool| {
            let description = match action {
                "watch" => format!(
                    "watch an object of kind {kind}. Deprecated: list with 'watch' and a 'fieldSelector'."
                ),
                _ => format!("watch objects of kind {kind}. Deprecated: list with 'watch'."),
            };
            let mut get = self.operation(action, id, description, event.clone());
            get.parameters = queries(form, &LIST);
            let mut of_path = of_path(form, row, named, true);
            of_path.retain(|parameter| namespaced || parameter["name"] != "namespace");
            paths.insert(path, path_item(form, vec![("get", get)], of_path));
        };
        let collection = self.collection();
        add(
            format!("{base}/watch{collection}"),
            "watchlist",
            format!("watch{version}{scope}{kind}List"),
            None,
            true,
        );
        add(
            format!("{base}/watch{collection}/{{name}}"),
            "watch",
            format!("watch{version}{scope}{kind}"),
            Some(kind.as_str()),
            true,
        );
        if row.namespaced {
            add(
                format!("{base}/watch/{}", row.plural),
                "watchlist",
                format!("watch{version}{kind}ListForAllNamespaces"),
                None,
                false,
            );
        }
    }
}

/// All paths of a resource.
pub(super) fn resource(
    row: &Row,
    definitions: &mut Definitions<'_>,
    paths: &mut Map<String, Value>,
) {
    let form = definitions.form();
    let (object, list) = definitions.row(row);
    let rendered = Rendered {
        row,
        form,
        base: base(&row.group, &row.version),
        version: version_name(&row.group, &row.version),
        scope: if row.namespaced { "Namespaced" } else { "" },
        object,
        list,
    };
    let collection = format!("{}{}", rendered.base, rendered.collection());
    let operations = rendered.collection_operations(definitions);
    if !operations.is_empty() {
        let of_path = of_path(form, row, None, true);
        paths.insert(collection.clone(), path_item(form, operations, of_path));
    }
    if row.namespaced && rendered.has("list") {
        let mut get = rendered.operation(
            "list",
            format!("list{}{}ForAllNamespaces", rendered.version, row.kind),
            format!("list or watch objects of kind {}", row.kind),
            rendered.list.clone(),
        );
        get.parameters = queries(form, &LIST);
        get.parameters.push(parameter(form, &PRETTY, "query"));
        let path = format!("{}/{}", rendered.base, row.plural);
        paths.insert(path, path_item(form, vec![("get", get)], Vec::new()));
    }
    let named = format!("{collection}/{{name}}");
    let operations = rendered.object_operations(definitions);
    if !operations.is_empty() {
        let of_path = of_path(form, row, Some(&row.kind), true);
        paths.insert(named.clone(), path_item(form, operations, of_path));
    }
    if row.schema.is_none() && rendered.has("watch") {
        rendered.watches(definitions, paths);
    }
    for sub in &row.subresources {
        subresource(&rendered, sub, &named, definitions, paths);
    }
}

/// Subresources that are streams or proxies rather than objects.
const CONNECTS: [&str; 4] = ["attach", "exec", "portforward", "proxy"];
const PROXY_METHODS: [&str; 7] = ["delete", "get", "head", "options", "patch", "post", "put"];
const STREAM_METHODS: [&str; 2] = ["get", "post"];

fn subresource(
    rendered: &Rendered<'_>,
    sub: &Subresource,
    named: &str,
    definitions: &mut Definitions<'_>,
    paths: &mut Map<String, Value>,
) {
    let (row, form) = (rendered.row, rendered.form);
    let own_kind = sub.kind == row.kind || sub.kind.is_empty();
    let [group, version, kind] = match (own_kind, sub.version.is_empty()) {
        (true, _) => [&row.group, &row.version, &row.kind],
        (false, true) => [&row.group, &row.version, &sub.kind],
        (false, false) => [&sub.group, &sub.version, &sub.kind],
    };
    let gvk = [group.clone(), version.clone(), kind.clone()];
    let name: String = sub.name.split('/').map(capital).collect();
    let path = format!("{named}/{}", sub.name);
    if CONNECTS.contains(&sub.name.as_str()) {
        connect(rendered, sub, &path, &gvk, paths);
        return;
    }
    let is_log = sub.name == "log";
    let schema = if is_log {
        json!({"type": "string"})
    } else if own_kind {
        rendered.object.clone()
    } else {
        definitions.kind(group, version, kind)
    };
    let mut operations = Vec::new();
    for verb in &sub.verbs {
        let (method, prefix, words) = match verb.as_str() {
            "get" => ("get", "read", "read"),
            "update" => ("put", "replace", "replace"),
            "patch" => ("patch", "patch", "partially update"),
            "create" => ("post", "create", "create"),
            _ => continue,
        };
        let of = match method {
            "post" => format!("{} {}", article(&row.kind), row.kind),
            _ => format!("the specified {}", row.kind),
        };
        let mut operation = rendered.operation(
            method,
            format!(
                "{prefix}{}{}{}{name}",
                rendered.version, rendered.scope, row.kind
            ),
            format!("{words} {} of {of}", sub.name),
            schema.clone(),
        );
        operation.gvk = gvk.clone();
        match method {
            "get" if is_log => {
                operation.parameters = queries(form, parameters::of_stream(&sub.name));
                operation.produces = &LOG_TYPES;
            }
            "get" => {}
            "patch" => {
                operation.parameters = queries(form, &PATCH);
                operation.body = Some(definitions.meta("Patch"));
                operation.codes = WRITTEN;
            }
            _ => {
                operation.parameters = queries(form, &WRITE);
                operation.body = Some(schema.clone());
                operation.codes = if method == "post" { CREATED } else { WRITTEN };
            }
        }
        operations.push((method, operation));
    }
    if !operations.is_empty() {
        let of_path = of_path(form, row, Some(kind), true);
        paths.insert(path, path_item(form, operations, of_path));
    }
}

fn connect(
    rendered: &Rendered<'_>,
    sub: &Subresource,
    path: &str,
    gvk: &[String; 3],
    paths: &mut Map<String, Value>,
) {
    let (row, form) = (rendered.row, rendered.form);
    let name = capital(&sub.name);
    let proxies = sub.name == "proxy";
    let methods: &[&'static str] = if proxies {
        &PROXY_METHODS
    } else {
        &STREAM_METHODS
    };
    let mut add = |path: String, suffix: &str, of_path: Vec<Value>| {
        let operations = methods.iter().map(|method| {
            let mut operation = rendered.operation(
                "connect",
                format!(
                    "connect{}{}{}{}{name}{suffix}",
                    rendered.version,
                    capital(method),
                    rendered.scope,
                    row.kind
                ),
                format!(
                    "connect {} requests to {} of {}",
                    method.to_ascii_uppercase(),
                    sub.name,
                    row.kind
                ),
                json!({"type": "string"}),
            );
            operation.gvk = gvk.clone();
            operation.parameters = queries(form, parameters::of_stream(&sub.name));
            operation.produces = &ANY_TYPE;
            (*method, operation)
        });
        paths.insert(path, path_item(form, operations.collect(), of_path));
    };
    let of_path = of_path(form, row, Some(&gvk[2]), false);
    add(path.to_owned(), "", of_path.clone());
    if proxies {
        let mut of_path = of_path;
        let rest = ("path", "string", "path to the resource");
        of_path.push(parameter(form, &rest, "path"));
        add(format!("{path}/{{path}}"), "WithPath", of_path);
    }
}
