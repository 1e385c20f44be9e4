//! Query parameters and `DeleteOptions`, parsed and checked as upstream's `meta.k8s.io` option types.

use serde_json::{Value, json};
use skep_api::field::{Bad, FieldError, FieldErrorKind};

use crate::status::{Result, Status};

/// Decoded `key=value` pairs in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// As Go's `url.ParseQuery`, of which upstream takes what it could read.
    pub fn parse(query: Option<&str>) -> Self {
        let pieces = query.unwrap_or_default().split('&');
        let readable = pieces.filter(|piece| !piece.contains(';') && is_escaped_well(piece));
        let pairs = readable.flat_map(|piece| url::form_urlencoded::parse(piece.as_bytes()));
        Self(
            pairs
                .map(|(k, v)| (k.into_owned(), v.into_owned()))
                .collect(),
        )
    }

    /// The first value; empty when absent.
    pub fn get(&self, key: &str) -> &str {
        self.find(key).unwrap_or_default()
    }

    pub fn find(&self, key: &str) -> Option<&str> {
        let pair = self.0.iter().find(|(k, _)| k == key);
        pair.map(|(_, v)| v.as_str())
    }

    pub fn all(&self, key: &str) -> Vec<String> {
        let matching = self.0.iter().filter(|(k, _)| k == key);
        matching.map(|(_, v)| v.clone()).collect()
    }

    /// Go's conversion: present means true unless it says `false` or `0`.
    pub fn flag(&self, key: &str) -> bool {
        self.find(key)
            .is_some_and(|v| !v.eq_ignore_ascii_case("false") && v != "0")
    }

    fn integer(&self, key: &str) -> Result<Option<i64>> {
        let Some(text) = self.find(key) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(error) => {
                let why = match std::num::IntErrorKind::clone(error.kind()) {
                    std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                        "value out of range"
                    }
                    _ => "invalid syntax",
                };
                Err(Status::bad_request(format!(
                    "strconv.ParseInt: parsing {text:?}: {why}"
                )))
            }
        }
    }
}

/// Every `%` is followed by two hexadecimal digits.
pub fn is_escaped_well(piece: &str) -> bool {
    piece.split('%').skip(1).all(|after| {
        let digits = after.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

fn field_error(kind: FieldErrorKind, field: &str, bad_value: Value, detail: &str) -> FieldError {
    FieldError::new(kind, field, Bad::json(&bad_value), detail)
}

fn forbidden(field: &str, detail: &str) -> FieldError {
    field_error(FieldErrorKind::Forbidden, field, Value::Null, detail)
}

fn not_supported(field: &str, bad_value: Value, supported: &[&str]) -> FieldError {
    let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
    let detail = format!("supported values: {}", quoted.join(", "));
    field_error(FieldErrorKind::NotSupported, field, bad_value, &detail)
}

fn checked(kind: &str, errors: Vec<FieldError>) -> Result<()> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid("meta.k8s.io", kind, "", &errors))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VersionMatch {
    #[default]
    Unset,
    Exact,
    NotOlderThan,
}

#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    pub watch: bool,
    pub allow_bookmarks: bool,
    /// As given: empty, `0` or a revision.
    pub resource_version: String,
    pub version_match: VersionMatch,
    pub timeout_seconds: Option<i64>,
    /// 0 = no limit.
    pub limit: usize,
    pub continue_token: String,
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    pub fn parse(query: &Query, watch: bool) -> Result<Self> {
        let version_match = query.get("resourceVersionMatch");
        let options = Self {
            label_selector: query.get("labelSelector").to_owned(),
            field_selector: query.get("fieldSelector").to_owned(),
            watch,
            allow_bookmarks: query.flag("allowWatchBookmarks"),
            resource_version: query.get("resourceVersion").to_owned(),
            version_match: match version_match {
                "Exact" => VersionMatch::Exact,
                "NotOlderThan" => VersionMatch::NotOlderThan,
                _ => VersionMatch::Unset,
            },
            timeout_seconds: query.integer("timeoutSeconds")?,
            limit: query
                .integer("limit")?
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(0),
            continue_token: query.get("continue").to_owned(),
            send_initial_events: query
                .find("sendInitialEvents")
                .map(|_| query.flag("sendInitialEvents")),
        };
        let errors = if watch {
            options.watch_errors(version_match)
        } else {
            options.list_errors(version_match)
        };
        checked("ListOptions", errors)?;
        Ok(options)
    }

    fn list_errors(&self, version_match: &str) -> Vec<FieldError> {
        const FIELD: &str = "resourceVersionMatch";
        let mut errors = Vec::new();
        if !version_match.is_empty() {
            if self.resource_version.is_empty() {
                errors.push(forbidden(
                    FIELD,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !self.continue_token.is_empty() {
                errors.push(forbidden(
                    FIELD,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if self.version_match == VersionMatch::Unset {
                errors.push(not_supported(
                    FIELD,
                    version_match.into(),
                    &["Exact", "NotOlderThan", ""],
                ));
            }
            if self.version_match == VersionMatch::Exact && self.resource_version == "0" {
                errors.push(forbidden(
                    FIELD,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if self.send_initial_events.is_some() {
            errors.push(forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            ));
        }
        errors
    }

    fn watch_errors(&self, version_match: &str) -> Vec<FieldError> {
        const FIELD: &str = "resourceVersionMatch";
        let mut errors = Vec::new();
        if self.send_initial_events.is_some() {
            if self.version_match != VersionMatch::NotOlderThan {
                errors.push(forbidden(
                    FIELD,
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
        } else if !version_match.is_empty() {
            errors.push(forbidden(
                FIELD,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        if !version_match.is_empty() && self.version_match != VersionMatch::NotOlderThan {
            errors.push(not_supported(
                FIELD,
                version_match.into(),
                &["NotOlderThan"],
            ));
        }
        if !self.continue_token.is_empty() {
            errors.push(forbidden("continue", "continue is forbidden for watch"));
        }
        errors
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// Options of create, update and patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    pub force: Option<bool>,
    /// The option object as webhooks see it.
    pub object: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    Create,
    Update,
    Patch { apply: bool },
}

impl WriteOptions {
    pub fn parse(query: &Query, kind: WriteKind) -> Result<Self> {
        let dry_run = query.all("dryRun");
        let field_validation = query.get("fieldValidation");
        let field_manager = query.get("fieldManager").to_owned();
        let force = query.find("force").map(|_| query.flag("force"));
        let mut errors = Vec::new();
        if let WriteKind::Patch { apply } = kind {
            if !apply && force.is_some() {
                errors.push(forbidden(
                    "force",
                    "may not be specified for non-apply patch",
                ));
            }
            if apply && field_manager.is_empty() {
                errors.push(field_error(
                    FieldErrorKind::Required,
                    "fieldManager",
                    "".into(),
                    "is required for apply patch",
                ));
            }
        }
        field_manager_errors(&field_manager, &mut errors);
        dry_run_errors(&dry_run, &mut errors);
        let field_validation = match field_validation {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                errors.push(not_supported(
                    "fieldValidation",
                    other.into(),
                    &["", "Ignore", "Strict", "Warn"],
                ));
                FieldValidation::Warn
            }
        };
        let name = match kind {
            WriteKind::Create => "CreateOptions",
            WriteKind::Update => "UpdateOptions",
            WriteKind::Patch { .. } => "PatchOptions",
        };
        checked(name, errors)?;
        let mut object = json!({"kind": name, "apiVersion": "meta.k8s.io/v1"});
        if !dry_run.is_empty() {
            object["dryRun"] = dry_run.clone().into();
        }
        for key in ["fieldManager", "fieldValidation"] {
            if let Some(value) = query.find(key) {
                object[key] = value.into();
            }
        }
        Ok(Self {
            dry_run: !dry_run.is_empty(),
            field_manager,
            field_validation,
            force,
            object,
        })
    }
}

fn dry_run_errors(dry_run: &[String], errors: &mut Vec<FieldError>) {
    if dry_run.iter().any(|v| v != "All") {
        errors.push(not_supported("dryRun", dry_run.into(), &["All"]));
    }
}

/// Longest name of a field manager.
const FIELD_MANAGER_MAX: usize = 128;

fn field_manager_errors(manager: &str, errors: &mut Vec<FieldError>) {
    if manager.len() > FIELD_MANAGER_MAX {
        errors.push(field_error(
            FieldErrorKind::TooLong,
            "fieldManager",
            manager.into(),
            &format!("may not be more than {FIELD_MANAGER_MAX} bytes"),
        ));
    }
    for (at, c) in manager.char_indices() {
        if c.is_control() || (c.is_whitespace() && c != ' ') {
            let shown = format!(
                "invalid character U+{:04X} (at position {at})",
                u32::from(c)
            );
            errors.push(field_error(
                FieldErrorKind::Invalid,
                "fieldManager",
                manager.into(),
                &shown,
            ));
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub dry_run: bool,
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub ignore_store_read_error: bool,
    pub object: Value,
}

impl DeleteOptions {
    pub fn from_query(query: &Query) -> Result<Self> {
        let mut object = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(seconds) = query.integer("gracePeriodSeconds")? {
            object["gracePeriodSeconds"] = seconds.into();
        }
        if query.find("orphanDependents").is_some() {
            object["orphanDependents"] = query.flag("orphanDependents").into();
        }
        if let Some(policy) = query.find("propagationPolicy") {
            object["propagationPolicy"] = policy.into();
        }
        let dry_run = query.all("dryRun");
        if !dry_run.is_empty() {
            object["dryRun"] = dry_run.into();
        }
        Self::from_object(object)
    }

    /// From the object in the request's body; shapes have been checked by the decoder.
    pub fn from_object(object: Value) -> Result<Self> {
        let mut errors = Vec::new();
        let orphan_dependents = object["orphanDependents"].as_bool();
        let policy = object["propagationPolicy"].as_str();
        if let (Some(_), Some(policy)) = (orphan_dependents, policy) {
            errors.push(field_error(
                FieldErrorKind::Invalid,
                "propagationPolicy",
                policy.into(),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        let propagation = match (policy, orphan_dependents) {
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Background"), _) => Some(Propagation::Background),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (None, Some(false)) => Some(Propagation::Background),
            (None, None) => None,
            (Some(other), _) => {
                errors.push(not_supported(
                    "propagationPolicy",
                    other.into(),
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
                None
            }
        };
        let dry_run: Vec<String> = object["dryRun"]
            .as_array()
            .map(|values| {
                let texts = values.iter().filter_map(Value::as_str);
                texts.map(str::to_owned).collect()
            })
            .unwrap_or_default();
        dry_run_errors(&dry_run, &mut errors);
        checked("DeleteOptions", errors)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(Self {
            dry_run: !dry_run.is_empty(),
            grace_period_seconds: object["gracePeriodSeconds"].as_i64(),
            propagation,
            uid: text(&object["preconditions"]["uid"]),
            resource_version: text(&object["preconditions"]["resourceVersion"]),
            ignore_store_read_error: object["ignoreStoreReadErrorWithClusterBreakingPotential"]
                .as_bool()
                .unwrap_or(false),
            object,
        })
    }
}
