//! Objects in the store, read through the watch cache: what handlers know of persistence.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use skep_store::{Guard, Key, Op, Revision, Store, TxnOutcome};

use crate::{
    cache::{Cache, Entry},
    codec,
    context::Api,
    crd::conversion,
    encryption::Encryption,
    hooks::Extra,
    registry::Resource,
    status::{Failure, Result, Status},
};

/// How long a read may wait for the cache to catch up with the store before the client is told to try again.
const FRESH_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub struct Storage {
    pub store: Arc<dyn Store>,
    pub cache: Arc<Cache>,
    pub encryption: Arc<Encryption>,
}

/// A stored object as one write found it.
#[derive(Clone, Debug)]
pub struct Current {
    /// As clients see it, in the stored version, resource version included.
    pub bytes: Bytes,
    pub revision: Revision,
    /// See [`Entry::stale`].
    pub stale: bool,
}

impl Current {
    /// A built-in object in the row's own version.
    pub fn value(&self, resource: &Resource) -> Result<Value> {
        read_object(resource, &self.bytes)
    }

    /// The object in the row's own version; custom ones may need their webhook for that.
    pub async fn read(&self, api: &Api, resource: &Resource) -> Result<Value> {
        conversion::read(api, resource, &self.bytes, self.revision).await
    }
}

impl From<&Entry> for Current {
    fn from(entry: &Entry) -> Self {
        Self {
            bytes: entry.bytes(),
            revision: entry.revision,
            stale: entry.stale,
        }
    }
}

/// Decodes a stored object into the row's version.
pub fn read_object(resource: &Resource, bytes: &[u8]) -> Result<Value> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Status::internal("decoding a stored object", &error))?;
    Ok(from_stored(resource, value))
}

/// From the stored version to the row's.
pub fn from_stored(resource: &Resource, value: Value) -> Value {
    let Some(conversion) = &resource.def.conversion else {
        return value;
    };
    let mut value = (conversion.from_storage)(value);
    value["kind"] = resource.def.kind.as_ref().into();
    value["apiVersion"] = resource.api_version.as_str().into();
    resource.def.strategy.default(&mut value);
    value
}

/// From the row's version to the stored bytes.
pub fn to_stored(resource: &Resource, value: &Value) -> Bytes {
    match &resource.def.conversion {
        None => codec::encode_stored(value),
        Some(conversion) => {
            let mut stored = (conversion.to_storage)(value.clone());
            stored["kind"] = resource.def.kind.as_ref().into();
            stored["apiVersion"] =
                crate::registry::api_version(&resource.stored_group, &resource.stored_version)
                    .into();
            codec::encode_stored(&stored)
        }
    }
}

/// What became of a guarded write.
#[derive(Debug)]
pub enum Written {
    At(Revision),
    /// Somebody else was faster: what is stored now.
    Conflict(Option<Current>),
    /// The object is as expected, but one of the extra guards did not hold.
    ExtraConflict,
}

fn untransformed(key: &str, why: &str) -> Failure {
    Status::internal_message(&format!("unable to transform key {key:?}: {why}"))
}

impl Storage {
    /// Waits until the cache shows everything that was committed before this call.
    pub async fn fresh(&self) -> Result<Revision> {
        Ok(self.cache.wait_fresh(FRESH_TIMEOUT).await?)
    }

    /// Waits until the cache shows this revision.
    pub async fn wait_until(&self, revision: Revision) -> Result<()> {
        Ok(self.cache.wait_until(revision, FRESH_TIMEOUT).await?)
    }

    /// A linearizable read.
    pub async fn get(&self, key: &str) -> Result<Option<Arc<Entry>>> {
        self.fresh().await?;
        match self.cache.get(key) {
            None => self.readable(key).map(|()| None),
            found => Ok(found),
        }
    }

    /// # Errors
    /// 500 where something at or under `prefix` is stored that cannot be read.
    pub fn readable(&self, prefix: &str) -> Result<()> {
        match self.cache.unreadable(prefix) {
            None => Ok(()),
            Some((key, why)) => Err(untransformed(&key, &why)),
        }
    }

    fn revealed(&self, entry: skep_store::Entry) -> Result<Current> {
        let revealed = self.encryption.reveal(&entry.key, entry.value);
        let revealed = revealed.map_err(|why| untransformed(&entry.key, &why))?;
        Ok(Current {
            bytes: codec::with_revision(&revealed.json, entry.mod_revision),
            revision: entry.mod_revision,
            stale: revealed.stale,
        })
    }

    /// From the cache where it has the object, else a linearizable read: for things that rarely vanish.
    pub async fn find(&self, key: &str) -> Result<Option<Arc<Entry>>> {
        match self.cache.get(key) {
            Some(entry) => Ok(Some(entry)),
            None => self.get(key).await,
        }
    }

    /// Decoded, in the stored version.
    pub async fn find_value(&self, key: &str) -> Result<Option<Value>> {
        match self.find(key).await? {
            None => Ok(None),
            Some(entry) => serde_json::from_slice(&entry.bytes())
                .map(Some)
                .map_err(|error| Status::internal("decoding a stored object", &error)),
        }
    }

    pub async fn create(
        &self,
        key: &Key,
        value: Bytes,
        ttl: Option<Duration>,
        extra: Extra,
    ) -> Result<Written> {
        let put = Op::Put {
            key: key.clone(),
            value,
            ttl,
        };
        self.write(Guard::Missing(key.clone()), put, extra).await
    }

    pub async fn update(
        &self,
        key: &Key,
        value: Bytes,
        revision: Revision,
        ttl: Option<Duration>,
        extra: Extra,
    ) -> Result<Written> {
        let put = Op::Put {
            key: key.clone(),
            value,
            ttl,
        };
        let guard = Guard::Unchanged(key.clone(), revision);
        self.write(guard, put, extra).await
    }

    pub async fn delete(&self, key: &Key, revision: Revision, extra: Extra) -> Result<Written> {
        let delete = Op::Delete { key: key.clone() };
        let guard = Guard::Unchanged(key.clone(), revision);
        self.write(guard, delete, extra).await
    }

    /// Writes if the guards hold; what encryption is configured is applied.
    pub async fn write(&self, guard: Guard, op: Op, extra: Extra) -> Result<Written> {
        let mut guards = vec![guard];
        guards.extend(extra.guards);
        let mut ops = vec![op];
        ops.extend(extra.ops);
        for op in &mut ops {
            if let Op::Put { key, value, .. } = op {
                let sealed = self.encryption.seal(key, std::mem::take(value));
                *value = sealed.map_err(|why| untransformed(key, &why))?;
            }
        }
        match self.store.txn(guards, ops).await? {
            TxnOutcome::Committed { revision } => {
                // Whoever got the answer finds what it wrote in the cache too, which is what admission looks at.
                if self.wait_until(revision).await.is_err() {
                    tracing::warn!(revision, "the watch cache lags behind a write");
                }
                Ok(Written::At(revision))
            }
            TxnOutcome::Conflict { guard: 0, current } => {
                let current = current.map(|entry| self.revealed(entry)).transpose()?;
                Ok(Written::Conflict(current))
            }
            TxnOutcome::Conflict { .. } => Ok(Written::ExtraConflict),
        }
    }
}
