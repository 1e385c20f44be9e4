//! The table of served resources at one moment. Requests take a snapshot; CustomResourceDefinitions and APIServices
//! publish a new one.

use std::{collections::HashMap, sync::Arc};

use skep_api::resource::{ResourceDef, Scope, Verb};

use crate::{crd::conversion::Conversion, subresources::scale::ScalePaths};

/// A row of the table with what the handlers derive from it.
pub struct Resource {
    pub def: ResourceDef,
    /// `v1`, `apps/v1`
    pub api_version: String,
    /// `PodList`
    pub list_kind: String,
    /// From a CustomResourceDefinition.
    pub custom: bool,
    /// `/registry/core/pods/`
    pub prefix: String,
    /// How every stored object of this row's version begins: `{"kind":"Pod","apiVersion":"v1",`.
    pub head: String,
    /// Group and version of the stored form.
    pub stored_group: String,
    pub stored_version: String,
    /// Of a custom resource with a `scale` subresource; built-in kinds all use the default paths.
    pub scale: Option<ScalePaths>,
    /// The complete `openAPIV3Schema` of a custom resource; built-in kinds have theirs in the table of types.
    pub openapi: Option<Arc<serde_json::Value>>,
    /// How stored objects become this row's; custom resources only (built-in kinds have `def.conversion`).
    pub stored_form: Option<Conversion>,
    /// Its definition is being deleted, with all its objects.
    pub terminating: bool,
}

impl Resource {
    pub fn new(def: ResourceDef, custom: bool) -> Self {
        let api_version = api_version(&def.group, &def.version);
        let (stored_group, stored_version) = match &def.conversion {
            Some(c) => (c.storage_group.to_string(), c.storage_version.to_string()),
            None => (def.group.to_string(), def.version.to_string()),
        };
        let folder = if stored_group.is_empty() {
            "core"
        } else {
            &stored_group
        };
        Self {
            list_kind: format!("{}List", def.kind),
            prefix: format!("/registry/{folder}/{}/", def.plural),
            head: crate::codec::head(&def.kind, &api_version),
            api_version,
            scale: None,
            openapi: None,
            stored_form: None,
            terminating: false,
            custom,
            stored_group,
            stored_version,
            def,
        }
    }

    /// Where the kind keeps its replicas and selector, for its `scale` subresource.
    pub fn scale_paths(&self) -> ScalePaths {
        self.scale.clone().unwrap_or_default()
    }

    pub fn namespaced(&self) -> bool {
        self.def.scope == Scope::Namespaced
    }

    pub fn has_verb(&self, verb: Verb) -> bool {
        self.def.verbs.contains(&verb)
    }

    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.def.group == group && self.def.plural == plural
    }

    pub fn key(&self, namespace: &str, name: &str) -> Arc<str> {
        if self.namespaced() {
            format!("{}{namespace}/{name}", self.prefix).into()
        } else {
            format!("{}{name}", self.prefix).into()
        }
    }

    /// The prefix of a namespace's objects, or of all of them.
    pub fn scope_prefix(&self, namespace: &str) -> String {
        if self.namespaced() && !namespace.is_empty() {
            format!("{}{namespace}/", self.prefix)
        } else {
            self.prefix.clone()
        }
    }

    /// `pods`, `deployments.apps`
    pub fn qualified(&self) -> String {
        crate::status::qualified(&self.def.group, &self.def.plural)
    }

    /// The key that upstream's etcd would hold the object under; some error messages quote it.
    pub fn upstream_key(&self, namespace: &str, name: &str) -> String {
        let group = &self.def.group;
        let plural = self.def.plural.as_ref();
        let folder = match (group.as_ref(), plural) {
            ("", "replicationcontrollers") => "controllers".to_owned(),
            ("", "nodes") => "minions".to_owned(),
            ("", "services") => "services/specs".to_owned(),
            ("", "endpoints") => "services/endpoints".to_owned(),
            ("networking.k8s.io", "ingresses") => "ingress".to_owned(),
            (
                "admissionregistration.k8s.io" | "apiextensions.k8s.io" | "apiregistration.k8s.io",
                _,
            ) => {
                if group == "admissionregistration.k8s.io" {
                    plural.to_owned()
                } else {
                    format!("{group}/{plural}")
                }
            }
            _ if self.custom => format!("{group}/{plural}"),
            _ => plural.to_owned(),
        };
        if namespace.is_empty() {
            format!("/registry/{folder}/{name}")
        } else {
            format!("/registry/{folder}/{namespace}/{name}")
        }
    }
}

pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// A served group-version and its resources in discovery's order.
#[derive(Clone)]
pub struct Version {
    pub version: String,
    pub resources: Vec<Arc<Resource>>,
    by_plural: HashMap<String, Arc<Resource>>,
}

/// A served group; the first version is the preferred one.
#[derive(Clone)]
pub struct Group {
    pub name: String,
    pub versions: Vec<Version>,
}

/// Immutable; see [`Registry::with`] and [`Registry::without`].
#[derive(Clone, Default)]
pub struct Registry {
    groups: Vec<Group>,
    by_name: HashMap<String, usize>,
    /// Counts publications, for caches of derived documents.
    pub generation: u64,
}

impl Registry {
    pub fn new(rows: impl IntoIterator<Item = ResourceDef>) -> Self {
        let mut registry = Self::default();
        for def in rows {
            registry.push(Arc::new(Resource::new(def, false)));
        }
        registry
    }

    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub fn group(&self, name: &str) -> Option<&Group> {
        self.by_name.get(name).map(|at| &self.groups[*at])
    }

    pub fn version(&self, group: &str, version: &str) -> Option<&Version> {
        let group = self.group(group)?;
        group.versions.iter().find(|v| v.version == version)
    }

    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.version(group, version)?.by_plural.get(plural)
    }

    /// The row of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        let version = self.version(group, version)?;
        version.resources.iter().find(|r| r.def.kind == kind)
    }

    /// The row of a resource in its group's preferred version that serves it.
    pub fn any_version(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        let mut versions = self.group(group)?.versions.iter();
        versions.find_map(|v| v.by_plural.get(plural))
    }

    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let versions = self.groups.iter().flat_map(|g| &g.versions);
        versions.flat_map(|v| &v.resources)
    }

    fn push(&mut self, resource: Arc<Resource>) {
        let group = resource.def.group.to_string();
        let version = resource.def.version.to_string();
        let at = *self.by_name.entry(group.clone()).or_insert_with(|| {
            self.groups.push(Group {
                name: group,
                versions: Vec::new(),
            });
            self.groups.len() - 1
        });
        let versions = &mut self.groups[at].versions;
        let at = versions.iter().position(|v| v.version == version);
        let at = at.unwrap_or_else(|| {
            versions.push(Version {
                version,
                resources: Vec::new(),
                by_plural: HashMap::new(),
            });
            versions.len() - 1
        });
        let slot = &mut versions[at];
        let plural = resource.def.plural.to_string();
        slot.resources
            .retain(|r| r.def.plural != resource.def.plural);
        slot.resources.push(resource.clone());
        slot.by_plural.insert(plural, resource);
    }

    /// The table with these rows (see [`Resource::new`]) in place of former ones of the same group, version and plural.
    ///
    /// Publish it, then call [`crate::cache::Cache::reindex`] for each new prefix.
    #[must_use]
    pub fn with(&self, rows: impl IntoIterator<Item = Resource>) -> Self {
        let mut next = self.clone();
        next.generation += 1;
        for row in rows {
            next.push(Arc::new(row));
        }
        next
    }

    /// The table with these custom rows in place of all former ones. Versions of a group of custom resources stand in
    /// the order of preference.
    #[must_use]
    pub fn with_custom(&self, rows: impl IntoIterator<Item = Arc<Resource>>) -> Self {
        let mut next = self.without(|_| true);
        for row in rows {
            next.push(row);
        }
        for group in &mut next.groups {
            let custom = |v: &Version| v.resources.iter().all(|r| r.custom);
            if group.versions.iter().all(custom) {
                group.versions.sort_by(|a, b| {
                    skep_api::custom::names::compare_versions(&a.version, &b.version)
                });
            }
        }
        next
    }

    /// The table without the custom rows for which `drop` holds; empty versions and groups go too.
    #[must_use]
    pub fn without(&self, drop: impl Fn(&ResourceDef) -> bool) -> Self {
        let mut next = self.clone();
        next.generation += 1;
        for group in &mut next.groups {
            for version in &mut group.versions {
                let gone = |r: &Arc<Resource>| r.custom && drop(&r.def);
                version.by_plural.retain(|_, r| !gone(r));
                version.resources.retain(|r| !gone(r));
            }
            group.versions.retain(|v| !v.resources.is_empty());
        }
        next.groups.retain(|g| !g.versions.is_empty());
        next.by_name = next
            .groups
            .iter()
            .enumerate()
            .map(|(at, group)| (group.name.clone(), at))
            .collect();
        next
    }
}
