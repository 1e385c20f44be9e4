use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::Value;

use crate::{
    field::{Bad, Errors, IMMUTABLE, Path},
    kinds::{Check, Kind, Rules},
    validation::numbers::validate_non_negative,
};

impl Kind for ControllerRevision {
    const RULES: Rules =
        Rules::namespaced().update_checks(&[Check::Metadata, Check::MetadataChange]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        validate_non_negative(self.revision, &Path::new("revision"), errors);
        let path = Path::new("data");
        match self.data.as_ref().map(|data| &data.0) {
            None | Some(Value::Null) => errors.required(&path, "data is mandatory"),
            Some(Value::Object(_)) => {}
            Some(_) => errors.required(&path, "data must be a valid JSON object"),
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate_non_negative(self.revision, &Path::new("revision"), errors);
        if self.data != old.data {
            errors.invalid(&Path::new("data"), Bad::json(&self.data), IMMUTABLE);
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::controller_revision()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(data: Value, expected: &[&str]) {
        let revision = json!({"metadata": {"name": "r"}, "revision": -1, "data": data});
        let revision: ControllerRevision = serde_json::from_value(revision).unwrap();
        let mut errors = Errors::default();
        revision.validate(&mut errors);
        let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn data_is_an_object() {
        let negative = "revision: Invalid value: -1: must be greater than or equal to 0";
        check(json!({}), &[negative]);
        check(
            json!(null),
            &[negative, "data: Required value: data is mandatory"],
        );
        check(
            json!("x"),
            &[
                negative,
                "data: Required value: data must be a valid JSON object",
            ],
        );
    }
}
