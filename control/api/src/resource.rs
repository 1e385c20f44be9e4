//! The table of resources: one row per (group, version, plural). The API server has one set of handlers for all rows;
//! a CustomResourceDefinition inserts rows at run time.

use std::{borrow::Cow, sync::Arc};

use serde_json::Value;
use skep_schema::TypeRef;

use crate::{
    field::quoted,
    printer::Printer,
    selector::{FieldSelector, SelectorError},
    strategy::Strategy,
};

pub type Name = Cow<'static, str>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Update => "update",
            Self::Watch => "watch",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// `pods/status`, `deployments/scale`, …: as discovery shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: Name,
    /// The kind it takes and answers, with its group and version where they differ from the resource's
    /// (`autoscaling/v1 Scale`, `policy/v1 Eviction`, `authentication.k8s.io/v1 TokenRequest`).
    pub group: Name,
    pub version: Name,
    pub kind: Name,
    pub verbs: Vec<Verb>,
}

/// A function from an object to its selectable fields (`metadata.name` and `metadata.namespace` are implied).
pub type SelectableFields = Arc<dyn Fn(&Value) -> Vec<(Name, String)> + Send + Sync>;

/// A function that turns an object of another served version of the same kind into this row's version.
pub type Convert = Arc<dyn Fn(Value) -> Value + Send + Sync>;

/// How several served versions share one stored form.
#[derive(Clone)]
pub struct Conversion {
    /// The version whose row is stored.
    pub storage_group: Name,
    pub storage_version: Name,
    pub to_storage: Convert,
    pub from_storage: Convert,
}

/// The two texts upstream has for a field that cannot be selected by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownField {
    /// Kinds with selectable fields of their own, and custom resources.
    NotSupported,
    /// Kinds that know nothing but `metadata.name` and `metadata.namespace`.
    OnlyMetadata,
}

/// One served resource.
#[derive(Clone)]
pub struct ResourceDef {
    /// Empty for the core group.
    pub group: Name,
    pub version: Name,
    pub kind: Name,
    pub plural: Name,
    pub singular: Name,
    pub short_names: Vec<Name>,
    pub categories: Vec<Name>,
    pub scope: Scope,
    pub verbs: Vec<Verb>,
    pub subresources: Vec<Subresource>,
    /// `None`: this version is the stored one.
    pub conversion: Option<Conversion>,
    /// Field names that field selectors may use besides `metadata.name` and `metadata.namespace`.
    pub selectable_names: Vec<Name>,
    pub selectable_fields: SelectableFields,
    /// How a field selector on another field is refused.
    pub unknown_field: UnknownField,
    /// The warning that every request for the resource is answered with, once it is on its way out.
    pub deprecation: Option<Name>,
    /// Annotations that stand for fields of older versions. Table rows and partial metadata do not have them: upstream
    /// takes those from its internal form, which has the fields.
    pub field_annotations: &'static [&'static str],
    /// `None` only where objects have no schema (a CRD that preserves everything).
    pub schema: Option<TypeRef>,
    pub strategy: Arc<dyn Strategy>,
    pub printer: Arc<dyn Printer>,
}

impl ResourceDef {
    /// # Errors
    /// Names the first field that objects of this kind cannot be selected by; a 400 for the client.
    pub fn check_field_selector(&self, selector: &FieldSelector) -> Result<(), SelectorError> {
        for term in &selector.terms {
            let field = term.field.as_str();
            let known = field == "metadata.name"
                || field == "metadata.namespace"
                || self.selectable_names.iter().any(|name| name == field);
            if known {
                continue;
            }
            return Err(SelectorError(match self.unknown_field {
                UnknownField::NotSupported => format!("field label not supported: {field}"),
                UnknownField::OnlyMetadata => format!(
                    "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                    quoted(field)
                ),
            }));
        }
        Ok(())
    }
}
