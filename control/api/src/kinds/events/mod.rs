//! events.k8s.io/v1: the core Event under other names, stored as the core one.

use k8s_openapi::api::events::v1::Event;
use serde_json::{Value, json};

use crate::{
    field::{Bad, Errors, Path},
    kinds::{Kind, Rules, Selectable, core::event},
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
    const RULES: Rules = Rules::namespaced().create_on_update();
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
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
        for (field, there) in [
            ("firstTimestamp", self.deprecated_first_timestamp.is_some()),
            ("lastTimestamp", self.deprecated_last_timestamp.is_some()),
        ] {
            if there {
                errors.invalid(&Path::new(field), "", "needs to be unset");
            }
        }
        if self.deprecated_count.is_some_and(|count| count != 0) {
            errors.invalid(&Path::new("count"), "", "needs to be unset");
        }
        if self
            .deprecated_source
            .as_ref()
            .is_some_and(|source| source != &Default::default())
        {
            errors.invalid(&Path::new("source"), "", "needs to be unset");
        }
        if let Some(series) = &self.series
            && series.count < 2
        {
            errors.invalid(&Path::new("series.count"), "", "should be at least 2");
        }
        if let Some(core) = as_core(self) {
            event::validate_legacy(&core, errors);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        macro_rules! unchanged {
            ($($path:literal => $field:ident),*) => {$(
                if self.$field != old.$field {
                    errors.invalid(&Path::new($path), Bad::json(&self.$field), "field is immutable");
                }
            )*};
        }
        unchanged! {
            "involvedObject" => regarding,
            "reason" => reason,
            "message" => note,
            "source" => deprecated_source,
            "firstTimestamp" => deprecated_first_timestamp,
            "lastTimestamp" => deprecated_last_timestamp,
            "count" => deprecated_count,
            "type" => type_,
            "eventTime" => event_time,
            "action" => action,
            "related" => related,
            "reportingController" => reporting_controller,
            "reportingInstance" => reporting_instance
        }
        if let Some(core) = as_core(self) {
            event::validate_legacy(&core, errors);
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::event()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        Some(event::SELECTABLE)
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
