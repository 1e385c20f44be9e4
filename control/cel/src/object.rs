//! `Object.spec{…}` and `JSONPatch{…}`: what a mutation's expression builds.

use std::collections::BTreeMap;

use kube_cel::cel::{Value, objects::Opaque};

/// A constructed message. Its type is its path: `Object.spec.template`.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub type_name: String,
    pub fields: BTreeMap<String, Value>,
}

// `Value` has no total equality because of doubles, and `Opaque` asks for it.
impl Eq for Object {}

impl Opaque for Object {
    fn runtime_type_name(&self) -> &str {
        &self.type_name
    }
}

impl Object {
    /// Every nested object must be of the type that its place says.
    ///
    /// # Errors
    /// Upstream's sentence about the first that is not.
    pub fn check_places(&self) -> Result<(), String> {
        for (name, value) in &self.fields {
            check_place(&format!("{}.{name}", self.type_name), value)?;
        }
        Ok(())
    }
}

fn check_place(path: &str, value: &Value) -> Result<(), String> {
    match value {
        Value::List(items) => items.iter().try_for_each(|item| check_place(path, item)),
        Value::Opaque(opaque) => match opaque.downcast_ref::<Object>() {
            Some(object) if object.type_name != path => Err(format!(
                "unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
                object.type_name
            )),
            Some(object) => object.check_places(),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}
