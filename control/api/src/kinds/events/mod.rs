//! events.k8s.io/v1: the core Event under other names, stored as the core one.

use k8s_openapi::api::events::v1::Event;
use serde_json::{Value, json};

use crate::{
    field::{Bad, Errors, IMMUTABLE, Path},
    kinds::{Kind, Rules, Selectable, ZERO_TIME, core::event},
    validation::{
        internal,
        meta::{
            NameRule, validate_object_meta, validate_object_meta_update,
            validate_standard_finalizers,
        },
    },
    zero::Text,
};

/// What each is called there and here.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

/// What the core Event always writes, and this one leaves out when it says nothing.
const ALWAYS: [&str; 4] = [
    "involvedObject",
    "source",
    "reportingComponent",
    "reportingInstance",
];
const ALWAYS_TIMES: [&str; 3] = ["firstTimestamp", "lastTimestamp", "eventTime"];

impl Kind for Event {
    // Metadata is checked after what core Events are checked for.
    const RULES: Rules = Rules::namespaced().create_on_update().update_checks(&[]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        if let Some(core) = as_core(self) {
            event::validate_legacy(&core, "reportingController", errors);
        }
        let (meta, path) = (&self.metadata, Path::new("metadata"));
        validate_object_meta(meta, true, NameRule::Subdomain, &path, errors);
        validate_standard_finalizers(meta, &path, errors);
        validate_series(self, errors);
        if self.event_time.is_none() {
            errors.required(&Path::new("eventTime"), "");
        }
        let type_ = self.type_.text();
        if !matches!(type_, "Normal" | "Warning") {
            errors.invalid(
                &Path::new("type"),
                "",
                format!("has invalid value: {type_}"),
            );
        }
        let source = self.deprecated_source.as_ref();
        for (field, there) in [
            ("firstTimestamp", self.deprecated_first_timestamp.is_some()),
            ("lastTimestamp", self.deprecated_last_timestamp.is_some()),
            (
                "count",
                self.deprecated_count.is_some_and(|count| count != 0),
            ),
            (
                "source",
                source.is_some_and(|source| source != &Default::default()),
            ),
        ] {
            if there {
                errors.invalid(&Path::new(field), "", "needs to be unset");
            }
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        if let Some(core) = as_core(self) {
            event::validate_legacy(&core, "reportingController", errors);
        }
        let (meta, path) = (&self.metadata, Path::new("metadata"));
        validate_object_meta_update(meta, &old.metadata, &path, errors);
        validate_standard_finalizers(meta, &path, errors);
        if self.series != old.series {
            validate_series(self, errors);
        }
        // What upstream calls each, whether it is as it was, and how it is shown.
        type Shown = fn(&Event) -> Bad;
        let fields: [(&str, bool, Shown); 14] = [
            ("involvedObject", self.regarding == old.regarding, |event| {
                internal::bad(
                    "ObjectReference",
                    &event.regarding.clone().unwrap_or_default(),
                )
            }),
            ("reason", self.reason.text() == old.reason.text(), |event| {
                event.reason.text().into()
            }),
            ("message", self.note.text() == old.note.text(), |event| {
                event.note.text().into()
            }),
            (
                "source",
                self.deprecated_source == old.deprecated_source,
                |event| {
                    internal::bad(
                        "EventSource",
                        &event.deprecated_source.clone().unwrap_or_default(),
                    )
                },
            ),
            (
                "firstTimestamp",
                self.deprecated_first_timestamp == old.deprecated_first_timestamp,
                |event| Bad::json(&event.deprecated_first_timestamp),
            ),
            (
                "lastTimestamp",
                self.deprecated_last_timestamp == old.deprecated_last_timestamp,
                |event| Bad::json(&event.deprecated_last_timestamp),
            ),
            (
                "count",
                self.deprecated_count.unwrap_or(0) == old.deprecated_count.unwrap_or(0),
                |event| event.deprecated_count.unwrap_or(0).into(),
            ),
            // Twice, as upstream has it.
            ("reason", self.reason.text() == old.reason.text(), |event| {
                event.reason.text().into()
            }),
            ("type", self.type_.text() == old.type_.text(), |event| {
                event.type_.text().into()
            }),
            ("eventTime", self.event_time == old.event_time, |event| {
                Bad::json(&event.event_time)
            }),
            ("action", self.action.text() == old.action.text(), |event| {
                event.action.text().into()
            }),
            ("related", self.related == old.related, |event| {
                internal::bad("ObjectReference", &event.related)
            }),
            (
                "reportingController",
                self.reporting_controller.text() == old.reporting_controller.text(),
                |event| event.reporting_controller.text().into(),
            ),
            (
                "reportingInstance",
                self.reporting_instance.text() == old.reporting_instance.text(),
                |event| event.reporting_instance.text().into(),
            ),
        ];
        for (field, same, shown) in fields {
            if !same {
                errors.invalid(&Path::new(field), shown(self), IMMUTABLE);
            }
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::event()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        Some(SELECTABLE)
    }
}

macro_rules! selectable {
    ($($name:literal),*) => {
        &[$(Selectable {
            name: $name,
            get: |object| {
                let field = stored_field($name).replace('.', "/");
                event::first_text(object, &[&format!("/{field}")])
            },
        }),*]
    };
}

/// By the names of this version; what is stored is selected by [`stored_field`].
const SELECTABLE: &[Selectable] = selectable!(
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type"
);

/// What a selectable field of this version is called in the core Event, which is the stored one.
pub fn stored_field(name: &str) -> String {
    match name.strip_prefix("regarding.") {
        Some(rest) => format!("involvedObject.{rest}"),
        None if name == "reportingController" => "reportingComponent".to_owned(),
        None => name.to_owned(),
    }
}

fn validate_series(event: &Event, errors: &mut Errors) {
    let Some(series) = &event.series else { return };
    if series.count < 2 {
        errors.invalid(&Path::new("series.count"), "", "should be at least 2");
    }
    if series.last_observed_time.0.to_string() == ZERO_TIME {
        errors.required(&Path::new("series.lastObservedTime"), "");
    }
}

fn as_core(event: &Event) -> Option<k8s_openapi::api::core::v1::Event> {
    serde_json::from_value(to_core(serde_json::to_value(event).ok()?)).ok()
}

pub(crate) fn to_core(mut object: Value) -> Value {
    object["apiVersion"] = json!("v1");
    let Some(fields) = object.as_object_mut() else {
        return object;
    };
    for (new, core) in NAMES {
        if let Some(value) = fields.remove(new) {
            fields.insert(core.to_owned(), value);
        }
    }
    for name in ALWAYS {
        let empty = if name.starts_with("reporting") {
            json!("")
        } else {
            json!({})
        };
        fields.entry(name).or_insert(empty);
    }
    for name in ALWAYS_TIMES {
        fields.entry(name).or_insert(Value::Null);
    }
    object
}

pub(crate) fn from_core(mut object: Value) -> Value {
    object["apiVersion"] = json!("events.k8s.io/v1");
    let Some(fields) = object.as_object_mut() else {
        return object;
    };
    for name in ["reportingComponent", "reportingInstance"] {
        if fields.get(name) == Some(&json!("")) {
            fields.remove(name);
        }
    }
    for (new, core) in NAMES {
        if let Some(value) = fields.remove(core) {
            fields.insert(new.to_owned(), value);
        }
    }
    for name in ["regarding", "deprecatedSource"] {
        fields.entry(name).or_insert(json!({}));
    }
    for name in [
        "deprecatedFirstTimestamp",
        "deprecatedLastTimestamp",
        "eventTime",
    ] {
        fields.entry(name).or_insert(Value::Null);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_change(field: &str, value: Value, expected: &[&str]) {
        let old = json!({
            "metadata": {"name": "e", "namespace": "default", "resourceVersion": "1"},
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "example.com/x",
            "reportingInstance": "x-1",
            "action": "act",
            "reason": "why",
            "type": "Normal",
        });
        let read = |event: &Value| -> Event { serde_json::from_value(event.clone()).unwrap() };
        let mut new = old.clone();
        new[field] = value;
        let mut errors = Errors::default();
        read(&new).validate_update(&read(&old), &mut errors);
        let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn events_do_not_change() {
        let reason = r#"reason: Invalid value: "x": field is immutable"#;
        check_change("reason", json!("x"), &[reason, reason]);
        check_change(
            "type",
            json!(null),
            &[r#"type: Invalid value: "": field is immutable"#],
        );
        check_change("note", json!(""), &[]);
    }

    #[test]
    fn core_form_and_back() {
        let event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "e", "namespace": "default"},
            "regarding": {"kind": "Pod", "name": "p"},
            "note": "started",
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "example.com/x",
            "reportingInstance": "x-1",
            "deprecatedSource": {},
            "deprecatedFirstTimestamp": null,
            "deprecatedLastTimestamp": null,
        });
        let core = to_core(event.clone());
        assert_eq!(core["involvedObject"]["name"], "p");
        assert_eq!(core["message"], "started");
        assert_eq!(core["reportingComponent"], "example.com/x");
        assert_eq!(from_core(core), event);
    }
}
