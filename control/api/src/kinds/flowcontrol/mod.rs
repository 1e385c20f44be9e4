//! flowcontrol.apiserver.k8s.io/v1

pub mod flow_schema;
pub mod priority_level_configuration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    field::{Errors, Path},
    validation::internal,
    zero::Text,
};

/// The objects that must stay as they were made: without them, requests could match nothing.
pub(crate) const EXEMPT: &str = "exempt";
pub(crate) const CATCH_ALL: &str = "catch-all";

fn validate_fixed(
    (kind, name): (&str, &str),
    spec: &impl Serialize,
    fixed: Option<Value>,
    detail: &str,
    errors: &mut Errors,
) {
    if fixed.is_some_and(|fixed| json!(spec) != fixed) {
        errors.invalid(
            &Path::new("spec"),
            internal::bad(kind, spec),
            format!("spec of '{name}' {detail}"),
        );
    }
}

/// `status.conditions` of both kinds: types are there and differ.
fn validate_condition_types<'a>(
    types: impl IntoIterator<Item = &'a Option<String>>,
    errors: &mut Errors,
) {
    let path = Path::new("status.conditions");
    let mut seen: Vec<&str> = Vec::new();
    for (i, type_) in types.into_iter().enumerate() {
        let (at, type_) = (path.index(i), type_.text());
        if seen.contains(&type_) {
            errors.duplicate(&at.child("type"), type_);
        }
        seen.push(type_);
        if type_.is_empty() {
            errors.required(&at.child("type"), "must not be empty");
        }
    }
}
