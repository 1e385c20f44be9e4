use k8s_openapi::api::core::v1::Event;
use serde_json::Value;

use crate::{
    field::{Errors, Path},
    kinds::{Kind, Rules, Selectable},
    validation::text,
    zero::Text,
};

impl Kind for Event {
    // Upstream checks next to nothing of metadata here, as the first releases did not.
    const RULES: Rules = Rules::namespaced().create_on_update().update_checks(&[]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        validate_legacy(self, "reportingComponent", errors);
    }

    fn validate_update(&self, _old: &Self, errors: &mut Errors) {
        validate_legacy(self, "reportingComponent", errors);
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::event()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        Some(SELECTABLE)
    }
}

macro_rules! selectable {
    ($($name:literal => $($pointer:literal),+;)*) => {
        &[$(Selectable {
            name: $name,
            get: |object| first_text(object, &[$($pointer),+]),
        }),*]
    };
}

/// By the stored form's names; events.k8s.io writes some of them differently.
pub(crate) const SELECTABLE: &[Selectable] = selectable! {
    "involvedObject.kind" => "/involvedObject/kind", "/regarding/kind";
    "involvedObject.namespace" => "/involvedObject/namespace", "/regarding/namespace";
    "involvedObject.name" => "/involvedObject/name", "/regarding/name";
    "involvedObject.uid" => "/involvedObject/uid", "/regarding/uid";
    "involvedObject.apiVersion" => "/involvedObject/apiVersion", "/regarding/apiVersion";
    "involvedObject.resourceVersion" => "/involvedObject/resourceVersion", "/regarding/resourceVersion";
    "involvedObject.fieldPath" => "/involvedObject/fieldPath", "/regarding/fieldPath";
    "reason" => "/reason";
    "reportingComponent" => "/reportingComponent", "/reportingController";
    "source" => "/source/component", "/deprecatedSource/component", "/reportingComponent", "/reportingController";
    "type" => "/type";
};

pub(crate) fn first_text(object: &Value, pointers: &[&str]) -> String {
    let texts = pointers
        .iter()
        .filter_map(|pointer| object.pointer(pointer)?.as_str());
    texts
        .into_iter()
        .find(|text| !text.is_empty())
        .unwrap_or("")
        .to_owned()
}

/// What events had to be before `eventTime` came, and what those with one must be.
///
/// `controller`: what the request's version calls `reportingComponent`.
pub(crate) fn validate_legacy(event: &Event, controller: &str, errors: &mut Errors) {
    let namespace = event.metadata.namespace.text();
    let involved = event.involved_object.namespace.text();
    let mut disagree = |wrong: bool| {
        if wrong {
            errors.invalid(
                &Path::new("involvedObject.namespace"),
                involved,
                "does not match event.namespace",
            );
        }
    };
    if event.event_time.is_none() {
        if involved.is_empty() {
            disagree(!matches!(namespace, "" | "default"));
        } else {
            disagree(namespace != involved);
        }
    } else {
        disagree(involved.is_empty() && !matches!(namespace, "default" | "kube-system"));
        validate_new_fields(event, controller, errors);
    }
    errors.invalid_each(
        &Path::new("namespace"),
        namespace,
        text::dns1123_subdomain(namespace),
    );
}

fn validate_new_fields(event: &Event, field: &str, errors: &mut Errors) {
    let controller = event.reporting_component.text();
    let at = Path::new(field);
    if controller.is_empty() {
        errors.required(&at, "");
    }
    errors.invalid_each(&at, controller, text::qualified_name(controller));
    for (field, value, limit) in [
        ("reportingInstance", event.reporting_instance.text(), 128),
        ("action", event.action.text(), 128),
        ("reason", event.reason.text(), 128),
        ("message", event.message.text(), 1024),
    ] {
        let at = Path::new(field);
        if value.is_empty() && field != "message" {
            errors.required(&at, "");
        }
        if value.len() > limit {
            errors.invalid(&at, "", format!("can have at most {limit} characters"));
        }
    }
}
