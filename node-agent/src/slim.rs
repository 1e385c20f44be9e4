//! Kinds that every node knows thousands of, without what nobody on a node reads. An informer reads them as [`Sent`], which
//! has the metadata that a watch wants, and keeps the rest.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};
use skep_client::ObjectKey;

/// Which version of which object. Never written back.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    pub namespace: Box<str>,
    pub name: Box<str>,
    /// Of the uid.
    uid: u64,
    version: Box<str>,
}

impl Identity {
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&*self.namespace, &*self.name)
    }

    /// Of two with the same key.
    pub fn is_same(&self, other: &Self) -> bool {
        self.uid == other.uid && self.version == other.version
    }
}

/// As the API writes it, as far as it is read.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    namespace: Option<Box<str>>,
    name: Option<Box<str>>,
    uid: Option<Box<str>>,
    resource_version: Option<Box<str>>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Metadata {
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            namespace: self.namespace.clone().unwrap_or_default(),
            name: self.name.clone().unwrap_or_default(),
            uid: digest(self.uid.as_deref().unwrap_or_default()),
            version: self.resource_version.clone().unwrap_or_default(),
        }
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.as_ref()?.get(key).map(String::as_str)
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// FNV-1a.
pub(crate) fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A namespaced kind that is kept slim.
pub trait Slim: Sized {
    const GROUP: &'static str;
    const VERSION: &'static str;
    const KIND: &'static str;
    const PLURAL: &'static str;

    fn identity(&self) -> &Identity;
}

/// An object on its way from the API.
#[derive(Clone, Debug)]
pub struct Sent<T> {
    metadata: ObjectMeta,
    pub object: T,
}

impl<'de, T: Slim + Deserialize<'de>> Deserialize<'de> for Sent<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = T::deserialize(deserializer)?;
        let of = object.identity();
        let metadata = ObjectMeta {
            namespace: Some(of.namespace.to_string()),
            name: Some(of.name.to_string()),
            resource_version: Some(of.version.to_string()),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, object })
    }
}

impl<T: Slim> kube::Resource for Sent<T> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        T::KIND.into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        T::GROUP.into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        T::VERSION.into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        T::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
