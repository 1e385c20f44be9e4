//! `Status`: the one answer of every request that fails, and the one place where errors become HTTP.
//!
//! Constructors follow apimachinery's `api/errors` package, because clients compare `reason`, `details` and `code`.

use std::{borrow::Cow, fmt};

use serde_json::{Map, Value, json};
use skep_api::field::FieldError;
use skep_store::StoreError;

use crate::{
    cache::{CacheError, Gone},
    registry::Resource,
};

/// Boxed: it travels in the `Err` of everything a handler calls.
pub type Failure = Box<Status>;
pub type Result<T> = std::result::Result<T, Failure>;

#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub code: u16,
    /// Empty where upstream leaves the reason out (`StatusReasonUnknown`).
    pub reason: Cow<'static, str>,
    pub message: String,
    pub details: Option<Details>,
    /// `metadata.continue`: how a list whose token expired may go on, inconsistently.
    pub continue_token: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub name: String,
    pub group: String,
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: u32,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cause {
    pub reason: Cow<'static, str>,
    pub message: String,
    pub field: String,
}

impl Details {
    fn to_value(&self) -> Value {
        let mut map = Map::new();
        for (key, value) in [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
            ("uid", &self.uid),
        ] {
            if !value.is_empty() {
                map.insert(key.into(), value.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(Cause::to_value).collect();
            map.insert("causes".into(), Value::Array(causes));
        }
        if self.retry_after_seconds > 0 {
            map.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        Value::Object(map)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut map = Map::new();
        for (key, value) in [
            ("reason", self.reason.as_ref()),
            ("message", &self.message),
            ("field", &self.field),
        ] {
            if !value.is_empty() {
                map.insert(key.into(), value.into());
            }
        }
        Value::Object(map)
    }
}

impl From<&FieldError> for Cause {
    fn from(error: &FieldError) -> Self {
        Self {
            reason: error.kind.reason().into(),
            message: error.body(),
            field: error.field.clone(),
        }
    }
}

/// `deployments.apps`, `pods`: apimachinery `GroupResource.String`.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Failure {
        Box::new(Self {
            code,
            reason: Cow::Borrowed(reason),
            message: message.into(),
            details: None,
            continue_token: String::new(),
        })
    }

    /// A failure with reason, message and nothing else, as upstream code that builds its own `Status` does.
    pub fn plain(code: u16, reason: &'static str, message: impl Into<String>) -> Failure {
        Self::new(code, reason, message)
    }

    /// Adds an empty `details` (upstream's generic server responses carry one).
    fn with_empty_details(mut self: Box<Self>) -> Failure {
        self.details = Some(Details::default());
        self
    }

    fn with_object(mut self: Box<Self>, group: &str, kind: &str, name: &str) -> Failure {
        let details = self.details.get_or_insert_default();
        details.group = group.to_owned();
        details.kind = kind.to_owned();
        details.name = name.to_owned();
        self
    }

    pub fn with_causes(mut self: Box<Self>, causes: Vec<Cause>) -> Failure {
        self.details.get_or_insert_default().causes = causes;
        self
    }

    pub fn with_retry_after(mut self: Box<Self>, seconds: u32) -> Failure {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Failure {
        Self::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Failure {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// `reason` completes `pods "x" is forbidden: …`.
    pub fn forbidden(group: &str, resource: &str, name: &str, reason: &str) -> Failure {
        let what = qualified(group, resource);
        let message = match (what.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {reason}"),
            (false, true) => format!("{what} is forbidden: {reason}"),
            (false, false) => format!("{what} {name:?} is forbidden: {reason}"),
        };
        Self::new(403, "Forbidden", message).with_object(group, resource, name)
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Failure {
        let what = qualified(group, resource);
        Self::new(404, "NotFound", format!("{what} {name:?} not found"))
            .with_object(group, resource, name)
    }

    pub fn missing(resource: &Resource, name: &str) -> Failure {
        Self::not_found(&resource.def.group, &resource.def.plural, name)
    }

    pub fn no_such_resource() -> Failure {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
        .with_empty_details()
    }

    pub fn method_not_allowed() -> Failure {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .with_empty_details()
    }

    /// What the REST layer says when a resource exists but its storage lacks the verb.
    pub fn method_not_supported(group: &str, resource: &str, verb: &str) -> Failure {
        Self::new(
            405,
            "MethodNotAllowed",
            format!(
                "{verb} is not supported on resources of kind {:?}",
                qualified(group, resource)
            ),
        )
        .with_object(group, resource, "")
    }

    /// Nothing is created of a kind whose definition is being deleted.
    pub fn terminating_definition(group: &str, resource: &str) -> Failure {
        let mut failure = Self::method_not_supported(group, resource, "create");
        "create not allowed while custom resource definition is terminating"
            .clone_into(&mut failure.message);
        failure
    }

    pub fn not_acceptable(message: impl Into<String>) -> Failure {
        Self::new(406, "NotAcceptable", message)
    }

    pub fn not_acceptable_scope() -> Failure {
        Self::new(
            406,
            "NotAcceptable",
            "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, \
             application/vnd.kubernetes.protobuf, application/json;stream=watch, \
             application/vnd.kubernetes.protobuf;stream=watch",
        )
        .with_empty_details()
    }

    pub fn unsupported_media_type(message: impl Into<String>) -> Failure {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// No consumer of the route takes this media type.
    pub fn unsupported_media_type_scope() -> Failure {
        Self::new(415, "UnsupportedMediaType", "415: Unsupported Media Type").with_empty_details()
    }

    /// 422 about a patch that does not fit, without saying why.
    pub fn unprocessable() -> Failure {
        Self::new(
            422,
            "Invalid",
            "the server rejected our request due to an error in our request",
        )
        .with_empty_details()
    }

    pub fn already_exists(resource: &Resource, name: &str) -> Failure {
        let (group, plural) = (&resource.def.group, &resource.def.plural);
        let message = format!("{} {name:?} already exists", qualified(group, plural));
        Self::new(409, "AlreadyExists", message).with_object(group, plural, name)
    }

    /// `why` completes `Operation cannot be fulfilled on pods "x": …`. `kind` is the plural almost everywhere.
    pub fn conflict(group: &str, kind: &str, name: &str, why: &str) -> Failure {
        let what = qualified(group, kind);
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {what} {name:?}: {why}"),
        )
        .with_object(group, kind, name)
    }

    pub fn modified(resource: &Resource, name: &str) -> Failure {
        Self::conflict(
            &resource.def.group,
            &resource.def.plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn expired(message: impl Into<String>) -> Failure {
        Self::new(410, "Expired", message)
    }

    pub fn too_large(message: impl Into<String>) -> Failure {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// A list's continue token is older than the history; `token` goes on with what is there now.
    pub fn continue_expired(token: &str) -> Failure {
        let mut status = Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new \
             list without the continue parameter, or use the continue token in this response to retrieve the \
             remainder of the results. Continuing with the provided token results in an inconsistent list - objects \
             that were created, modified, or deleted between the time the first chunk was returned and now may show \
             up in the list.",
        );
        status.continue_token = token.to_owned();
        status
    }

    /// 422 with one cause a field.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Failure {
        let message = skep_api::field::aggregate(errors);
        Self::new(
            422,
            "Invalid",
            format!("{} {name:?} is invalid: {message}", qualified(group, kind)),
        )
        .with_object(group, kind, name)
        .with_causes(errors.iter().map(Cause::from).collect())
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Failure {
        Self::new(429, "TooManyRequests", message).with_retry_after(retry_after_seconds)
    }

    /// 500 whose text the client may see: upstream returns these errors as they are, without reason or details.
    pub fn unknown(message: impl Into<String>) -> Failure {
        Self::new(500, "", message)
    }

    /// 500 for our own failure: the detail goes to the log, not to the client.
    pub fn internal(doing: &str, error: &dyn fmt::Display) -> Failure {
        tracing::error!(%error, doing, "internal error");
        Self::internal_message(doing)
    }

    pub fn internal_message(what: &str) -> Failure {
        Self::new(
            500,
            "InternalError",
            format!("Internal error occurred: {what}"),
        )
        .with_causes(vec![Cause {
            message: what.to_owned(),
            ..Cause::default()
        }])
    }

    pub fn service_unavailable(message: impl Into<String>) -> Failure {
        Self::new(503, "ServiceUnavailable", message)
    }

    pub fn server_timeout(resource: &Resource, verb: &str) -> Failure {
        let (group, plural) = (&resource.def.group, &resource.def.plural);
        Self::new(
            500,
            "ServerTimeout",
            format!(
                "The {verb} operation against {} could not be completed at this time, please try again.",
                qualified(group, plural)
            ),
        )
        .with_object(group, plural, "")
        .with_retry_after(1)
    }

    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.continue_token.is_empty() {
            value["metadata"]["continue"] = self.continue_token.as_str().into();
        }
        if !self.reason.is_empty() {
            value["reason"] = self.reason.as_ref().into();
        }
        if let Some(details) = &self.details {
            value["details"] = details.to_value();
        }
        value
    }
}

/// What a successful delete answers when the object is gone.
pub fn deleted(resource: &Resource, name: &str, uid: &str) -> Value {
    let details = Details {
        name: name.to_owned(),
        group: resource.def.group.to_string(),
        kind: resource.def.plural.to_string(),
        uid: uid.to_owned(),
        ..Details::default()
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": details.to_value(),
    })
}

/// What creates answer that store no object of their own.
pub fn created() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Compacted { requested, oldest } => Status::expired(format!(
                "The resourceVersion for the provided list is too old. ({requested} < {oldest})"
            )),
            StoreError::Future { requested, newest } => Status::future(*requested, *newest),
            StoreError::TooLarge { size, limit, .. } => Status::too_large(format!(
                "the object is too large: {size} bytes, the limit is {limit}"
            )),
            StoreError::Unavailable { doing, source } => {
                tracing::error!(%error, %source, doing, "the store failed");
                Status::service_unavailable("the store is unavailable, try again")
            }
        }
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Gone(gone) => gone.into(),
            CacheError::Future { requested, newest }
            | CacheError::Lagging {
                wanted: requested,
                reached: newest,
            } => Status::future(requested, newest),
            CacheError::Store(error) => error.into(),
        }
    }
}

impl From<Gone> for Failure {
    fn from(gone: Gone) -> Self {
        Status::expired(gone.to_string())
    }
}

impl Status {
    /// A revision that no commit has reached yet: upstream answers a timeout that names both.
    pub fn future(requested: u64, newest: u64) -> Failure {
        Self::new(
            504,
            "Timeout",
            format!("Timeout: Too large resource version: {requested}, current: {newest}"),
        )
        .with_causes(vec![Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            ..Cause::default()
        }])
        .with_retry_after(1)
    }
}
