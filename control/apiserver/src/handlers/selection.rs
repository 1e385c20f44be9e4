//! Which objects a list or watch is about: selectors over what the cache indexed.

use skep_api::{
    kinds::events,
    selector::{FieldSelector, LabelSelector},
};

use crate::{
    cache::Entry,
    context::Ctx,
    crd::conversion::Conversion,
    options::ListOptions,
    registry::Resource,
    status::{Result, Status},
};

#[derive(Debug)]
pub struct Selection {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// A resource's or namespace's prefix, or the whole key of the one object that can match.
    pub prefix: String,
    namespaced: bool,
    prefix_of_resource: usize,
}

impl Selection {
    /// # Errors
    /// 400 for selectors that cannot be parsed or name unknown fields.
    pub fn new(ctx: &Ctx, resource: &Resource, options: &ListOptions) -> Result<Self> {
        let labels = LabelSelector::parse(&options.label_selector)
            .map_err(|error| Status::bad_request(error.to_string()))?;
        let mut fields = FieldSelector::parse(&options.field_selector)
            .map_err(|error| Status::bad_request(error.to_string()))?;
        resource
            .def
            .check_field_selector(&fields)
            .map_err(|error| Status::bad_request(error.to_string()))?;
        if resource.is("events.k8s.io", "events") {
            for term in &mut fields.terms {
                term.field = events::stored_field(&term.field);
            }
        }
        let mut namespace = ctx.info.namespace.as_str();
        if namespace.is_empty() && resource.namespaced() {
            namespace = fields.requires("metadata.namespace").unwrap_or_default();
        }
        // The name in the path belongs to the old form of a watch on one object.
        let name = match ctx.info.name.as_str() {
            "" => fields.requires("metadata.name").unwrap_or_default(),
            name => name,
        };
        let whole = !name.is_empty() && (!namespace.is_empty() || !resource.namespaced());
        let prefix = if whole {
            resource.key(namespace, name).to_string()
        } else {
            resource.scope_prefix(namespace)
        };
        Ok(Self {
            labels,
            fields,
            prefix,
            namespaced: resource.namespaced(),
            prefix_of_resource: resource.prefix.len(),
        })
    }

    /// Nothing is filtered beside the prefix.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub fn matches(&self, entry: &Entry) -> bool {
        if !self.labels.is_everything() && !self.labels.matches_with(|key| entry.labels.get(key)) {
            return false;
        }
        self.fields.is_everything()
            || self.fields.matches_with(|field| match field {
                "metadata.name" => Some(self.name_parts(entry).1),
                "metadata.namespace" => Some(self.name_parts(entry).0),
                field => entry.fields.get(field),
            })
    }

    fn name_parts<'a>(&self, entry: &'a Entry) -> (&'a str, &'a str) {
        let rest = entry.key.get(self.prefix_of_resource..).unwrap_or_default();
        if self.namespaced {
            rest.split_once('/').unwrap_or(("", rest))
        } else {
            ("", rest)
        }
    }

    /// A field with the value that it must have, by which the cache can route events.
    pub fn route(&self, resource: &Resource) -> Option<(String, String)> {
        let form = resource.stored_form.as_ref();
        if form.is_some_and(Conversion::asks_webhook) {
            return None;
        }
        let term = self.fields.terms.iter().find(|term| {
            !term.negated && !term.value.is_empty() && !term.field.starts_with("metadata.")
        })?;
        Some((term.field.clone(), term.value.clone()))
    }
}
