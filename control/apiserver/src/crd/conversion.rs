//! Stored objects of custom resources ⇄ the version of a row.
//!
//! An object is stored in the version that was the storage version when it was written, pruned and defaulted by the
//! schema of that time. A row shows it in its own version, pruned and defaulted by today's: mostly the bytes as they
//! are, else through the definition's conversion, which may be a webhook.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skep_api::custom;
use skep_schema::{TypeRef, structural};
use skep_store::{Key, Revision};

use crate::{
    cache::{Entry, Index, Pairs},
    codec::{self, meta},
    context::Api,
    handlers::write::new_uid,
    registry::{Resource, api_version},
    status::{Result, Status},
    webhook::{Destination, credentials::Caller},
};

/// What a webhook may take for one review, as upstream's client.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Objects in one review.
pub const REVIEW_OBJECTS: usize = 200;
/// Converted objects that are kept, so that watchers of the same thing do not each ask the webhook.
const KEPT_OBJECTS: usize = 2_000;
const KEPT_BYTES: usize = 4 << 20;

/// What all rows of a definition share.
pub struct Shared {
    kind: String,
    storage_version: String,
    /// `group/version` of the stored form.
    storage: String,
    /// By `group/version`, of all versions, served or not.
    types: BTreeMap<String, TypeRef>,
    webhook: Option<Webhook>,
    /// Some version has selectable fields.
    selects: bool,
    /// Objects written later are pruned and defaulted by today's schema.
    since: Revision,
}

struct Webhook {
    destination: std::result::Result<Destination, String>,
    /// `v1` or `v1beta1`; `None`: the webhook knows neither.
    review: Option<&'static str>,
}

impl Shared {
    /// # Errors
    /// What is wrong with the definition's schemas.
    pub fn read(definition: &Value, since: Revision) -> std::result::Result<Self, String> {
        let spec = &definition["spec"];
        let group = spec["group"].as_str().unwrap_or_default();
        let mut types = BTreeMap::new();
        let mut storage_version = String::new();
        let mut selects = false;
        for version in spec["versions"].as_array().into_iter().flatten() {
            let name = version["name"].as_str().unwrap_or_default();
            let ty = custom::type_of(version).map_err(|error| error.to_string())?;
            types.insert(api_version(group, name), ty);
            selects |= !version["selectableFields"].is_null();
            if version["storage"] == true {
                storage_version = name.to_owned();
            }
        }
        let conversion = &spec["conversion"];
        let webhook = (conversion["strategy"] == "Webhook").then(|| {
            let webhook = &conversion["webhook"];
            let reviews = webhook["conversionReviewVersions"].as_array();
            let review = reviews
                .into_iter()
                .flatten()
                .find_map(|v| match v.as_str() {
                    Some("v1") => Some("v1"),
                    Some("v1beta1") => Some("v1beta1"),
                    _ => None,
                });
            Webhook {
                destination: Destination::read(&webhook["clientConfig"]),
                review,
            }
        });
        let names = &definition["status"]["acceptedNames"];
        Ok(Self {
            kind: names["kind"].as_str().unwrap_or_default().to_owned(),
            storage: api_version(group, &storage_version),
            storage_version,
            types,
            webhook,
            selects,
            since,
        })
    }

    pub fn storage_version(&self) -> &str {
        &self.storage_version
    }

    /// `example.com/v1, Kind=Widget`
    fn describe(&self, version: &str) -> String {
        format!("{version}, Kind={}", self.kind)
    }

    /// Prunes an object by the schema of its version.
    fn prune(&self, object: Value) -> Result<Value> {
        let Some(ty) = self.types.get(version_of(&object)) else {
            return Ok(object);
        };
        skep_schema::conform(object, ty)
            .map(|decoded| decoded.value)
            .map_err(|error| Status::internal("reading a custom object", &error))
    }

    /// As a read brings it: pruned and defaulted in its own version.
    fn refresh(&self, object: Value) -> Result<Value> {
        let mut object = self.prune(object)?;
        if let Some(ty) = self.types.get(version_of(&object)) {
            structural::apply_defaults(&mut object, ty);
        }
        Ok(object)
    }

    /// Objects in another version, in order.
    async fn convert(&self, api: &Api, objects: Vec<Value>, to: &str) -> Result<Vec<Value>> {
        let Some(webhook) = &self.webhook else {
            return Ok(objects
                .into_iter()
                .map(|mut object| {
                    object["apiVersion"] = to.into();
                    object
                })
                .collect());
        };
        let mut converted = Vec::with_capacity(objects.len());
        let mut rest = objects;
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(REVIEW_OBJECTS));
            converted.append(&mut self.review(api, webhook, rest, to).await?);
            rest = later;
        }
        Ok(converted)
    }

    async fn review(
        &self,
        api: &Api,
        webhook: &Webhook,
        objects: Vec<Value>,
        to: &str,
    ) -> Result<Vec<Value>> {
        let from = objects.first().map(version_of).unwrap_or_default();
        let of = self.describe(from);
        let failed =
            |why: &str| Status::unknown(format!("conversion webhook for {of} failed: {why}"));
        let invalid = |why: String| Status::unknown(format!("conversion webhook for {of} {why}"));
        let Some(review) = webhook.review else {
            return Err(Status::unknown("no supported conversion review versions"));
        };
        let destination = match &webhook.destination {
            Ok(destination) => destination,
            Err(why) => return Err(failed(why)),
        };
        let uid = new_uid();
        let api_version = format!("apiextensions.k8s.io/{review}");
        let request = json!({
            "kind": "ConversionReview", "apiVersion": api_version,
            "request": {"uid": uid, "desiredAPIVersion": to, "objects": objects},
        });
        let body = serde_json::to_vec(&request)
            .map_err(|error| Status::internal("encoding a conversion review", &error))?;
        let mut answer = api
            .webhooks
            .post(Caller::Conversion, destination, body.into(), TIMEOUT)
            .await
            .map_err(|error| failed(&error.to_string()))?;
        if review == "v1" {
            let (kind, version) = (&answer["kind"], &answer["apiVersion"]);
            if *kind != "ConversionReview" || *version != api_version.as_str() {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                return Err(failed(&format!(
                    "expected webhook response of {api_version}, Kind=ConversionReview, got {}, Kind={}",
                    text(version),
                    text(kind)
                )));
            }
        }
        let mut response = answer["response"].take();
        if !response.is_object() {
            return Err(failed("no response provided"));
        }
        if review == "v1" && response["uid"] != uid.as_str() {
            let got = response["uid"].as_str().unwrap_or_default();
            return Err(failed(&format!(
                "expected response.uid={uid:?}, got {got:?}"
            )));
        }
        let result = &response["result"];
        if result["status"] != "Success" {
            let message = result["message"].as_str().unwrap_or_default();
            if !message.is_empty() {
                return Err(failed(message));
            }
            let status = result["status"].as_str().unwrap_or_default();
            return Err(failed(&format!(
                "response.result.status was '{status}', not 'Success'"
            )));
        }
        let converted = match response["convertedObjects"].take() {
            Value::Array(list) => list,
            _ => Vec::new(),
        };
        if converted.len() != objects.len() {
            return Err(invalid(format!(
                "returned {} objects, expected {}",
                converted.len(),
                objects.len()
            )));
        }
        let mut out = Vec::with_capacity(converted.len());
        for (at, (original, mut object)) in objects.iter().zip(converted).enumerate() {
            let got = version_of(&object).to_owned();
            if got != to {
                return Err(invalid(format!(
                    "returned invalid object at index {at}: invalid groupVersion (expected {to}, received {got})"
                )));
            }
            if object["kind"] != original["kind"] {
                return Err(invalid(format!(
                    "returned invalid object at index {at}: invalid kind (expected {}, received {})",
                    self.kind,
                    object["kind"].as_str().unwrap_or_default()
                )));
            }
            same_object(original, &object)
                .map_err(|why| invalid(format!("returned invalid object: {why}")))?;
            restore_metadata(original, &mut object)
                .map_err(|why| invalid(format!("returned invalid metadata: {why}")))?;
            out.push(self.prune(object)?);
        }
        Ok(out)
    }
}

fn version_of(object: &Value) -> &str {
    object["apiVersion"].as_str().unwrap_or_default()
}

/// A conversion keeps an object's identity.
fn same_object(original: &Value, converted: &Value) -> std::result::Result<(), String> {
    for field in ["name", "namespace", "uid"] {
        let (before, after) = (meta(original, field), meta(converted, field));
        if before != after {
            let word = if field == "uid" { "UID" } else { field };
            return Err(format!("must have the same {word}: {before} != {after}"));
        }
    }
    Ok(())
}

/// Of metadata a webhook may change labels and annotations only.
fn restore_metadata(original: &Value, converted: &mut Value) -> std::result::Result<(), String> {
    let mut metadata = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        let given = &converted["metadata"][field];
        match given {
            Value::Null => {
                if let Some(metadata) = metadata.as_object_mut() {
                    metadata.remove(field);
                }
            }
            Value::Object(map) if map.values().all(Value::is_string) => {
                metadata[field] = given.clone();
            }
            other => {
                return Err(format!(
                    "metadata.{field}: Invalid value: {other}: must be a map of strings"
                ));
            }
        }
    }
    converted["metadata"] = metadata;
    Ok(())
}

/// How stored objects become one row's, and back.
pub struct Conversion {
    shared: Arc<Shared>,
    api_version: String,
    kept: Mutex<Kept>,
}

impl Conversion {
    /// An object of another version in the row's.
    ///
    /// # Errors
    /// What the conversion webhook says, or that it says nothing.
    pub async fn converted(&self, api: &Api, object: Value) -> Result<Value> {
        let converted = self.shared.convert(api, vec![object], &self.api_version);
        let mut converted = converted.await?.into_iter();
        let none = || Status::unknown("the conversion brought no object");
        converted.next().ok_or_else(none)
    }
}

/// First in, first out.
#[derive(Default)]
struct Kept {
    objects: HashMap<(Key, Revision), Form>,
    order: VecDeque<(Key, Revision)>,
    bytes: usize,
}

/// An object in the row's form, and what selectors find in it.
#[derive(Clone)]
struct Form {
    bytes: Bytes,
    labels: Pairs,
    fields: Pairs,
}

impl Form {
    fn new(resource: &Resource, object: &Value) -> Self {
        let index = Index::of_metadata(object);
        Self {
            bytes: codec::encode_object(object),
            labels: index.labels.into_iter().collect(),
            fields: (resource.def.selectable_fields)(object)
                .into_iter()
                .collect(),
        }
    }

    fn of(self, entry: &Entry) -> Arc<Entry> {
        Arc::new(entry.in_form(self.bytes, self.labels, self.fields))
    }
}

impl Kept {
    fn insert(&mut self, at: (Key, Revision), object: Form) {
        if self.objects.contains_key(&at) {
            return;
        }
        self.bytes += object.bytes.len();
        self.objects.insert(at.clone(), object);
        self.order.push_back(at);
        while self.order.len() > KEPT_OBJECTS || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            if let Some(object) = self.objects.remove(&oldest) {
                self.bytes -= object.bytes.len();
            }
        }
    }
}

impl Conversion {
    pub fn new(shared: Arc<Shared>, api_version: &str) -> Self {
        Self {
            shared,
            api_version: api_version.to_owned(),
            kept: Mutex::default(),
        }
    }

    /// Whether only a webhook knows what objects of other versions look like in the row's: the labels and selectable fields
    /// that the cache holds are those of the stored form.
    pub fn asks_webhook(&self) -> bool {
        self.shared.webhook.is_some()
    }

    /// Whether a cached object's labels and selectable fields are those of the row's form.
    pub fn selects(&self, resource: &Resource, entry: &Entry) -> bool {
        !self.asks_webhook() || entry.body.starts_with(resource.head.as_bytes())
    }

    /// A stored object as the index reads it: with the defaults that every version shows, even those that came after it
    /// was written.
    pub fn indexed<'a>(&self, stored: &'a Value) -> Cow<'a, Value> {
        let shared = &self.shared;
        match shared.types.get(version_of(stored)) {
            Some(ty) if shared.selects => {
                let mut defaulted = stored.clone();
                structural::apply_defaults(&mut defaulted, ty);
                Cow::Owned(defaulted)
            }
            _ => Cow::Borrowed(stored),
        }
    }

    /// Whether a cached object is as the row shows it.
    pub fn shows(&self, resource: &Resource, entry: &Entry) -> bool {
        self.is_today(entry.revision) && entry.body.starts_with(resource.head.as_bytes())
    }

    /// Whether objects of this revision were written by today's schemas.
    fn is_today(&self, revision: Revision) -> bool {
        revision > self.shared.since
    }

    /// Whether the object was converted already, and need not be again.
    pub fn keeps(&self, entry: &Entry) -> bool {
        let at = (entry.key.clone(), entry.revision);
        self.kept.lock().objects.contains_key(&at)
    }

    async fn show(&self, api: &Api, stored: Vec<Value>) -> Result<Vec<Value>> {
        let mut objects = Vec::with_capacity(stored.len());
        for object in stored {
            objects.push(self.shared.refresh(object)?);
        }
        let (mut moved, mut places) = (Vec::new(), Vec::new());
        for (at, object) in objects.iter_mut().enumerate() {
            if version_of(object) != self.api_version {
                moved.push(object.take());
                places.push(at);
            }
        }
        if !moved.is_empty() {
            let converted = self.shared.convert(api, moved, &self.api_version).await?;
            for (at, object) in places.into_iter().zip(converted) {
                objects[at] = object;
            }
        }
        Ok(objects)
    }
}

/// A stored object as the row's.
///
/// # Errors
/// When a webhook fails.
pub async fn read(
    api: &Api,
    resource: &Resource,
    bytes: &[u8],
    revision: Revision,
) -> Result<Value> {
    let decode = || -> Result<Value> {
        serde_json::from_slice(bytes)
            .map_err(|error| Status::internal("decoding a stored object", &error))
    };
    match &resource.stored_form {
        None => crate::storage::read_object(resource, bytes),
        Some(form) if form.is_today(revision) && bytes.starts_with(resource.head.as_bytes()) => {
            decode()
        }
        Some(form) => {
            let mut objects = form.show(api, vec![decode()?]).await?;
            objects
                .pop()
                .ok_or_else(|| Status::unknown("a conversion brought nothing"))
        }
    }
}

/// Stored objects as the row's: the same entries where they are as they should be, else new ones.
///
/// # Errors
/// When a webhook fails.
pub async fn present(
    api: &Api,
    resource: &Resource,
    mut entries: Vec<Arc<Entry>>,
) -> Result<Vec<Arc<Entry>>> {
    let Some(form) = &resource.stored_form else {
        return Ok(entries);
    };
    let (mut places, mut objects) = (Vec::new(), Vec::new());
    for (at, entry) in entries.iter_mut().enumerate() {
        if form.shows(resource, entry) {
            continue;
        }
        let kept = form
            .kept
            .lock()
            .objects
            .get(&(entry.key.clone(), entry.revision))
            .cloned();
        if let Some(kept) = kept {
            *entry = kept.of(entry);
            continue;
        }
        places.push(at);
        objects.push(
            serde_json::from_slice(&entry.bytes())
                .map_err(|error| Status::internal("decoding a stored object", &error))?,
        );
    }
    if places.is_empty() {
        return Ok(entries);
    }
    let converted = form.show(api, objects).await?;
    for (at, object) in places.into_iter().zip(converted) {
        let shown = Form::new(resource, &object);
        let entry = &mut entries[at];
        let place = (entry.key.clone(), entry.revision);
        form.kept.lock().insert(place, shown.clone());
        *entry = shown.of(entry);
    }
    Ok(entries)
}

/// A row's object as it is stored.
///
/// # Errors
/// When a webhook fails.
pub async fn store(api: &Api, resource: &Resource, object: &Value) -> Result<Bytes> {
    let Some(form) = &resource.stored_form else {
        return Ok(crate::storage::to_stored(resource, object));
    };
    let shared = &form.shared;
    if form.api_version == shared.storage {
        return Ok(codec::encode_stored(object));
    }
    let converted = shared
        .convert(api, vec![object.clone()], &shared.storage)
        .await?;
    let converted = converted.into_iter().next().unwrap_or_default();
    Ok(codec::encode_stored(&shared.refresh(converted)?))
}

/// What a write answers: the object as it was stored at `revision`.
///
/// # Errors
/// When a webhook fails.
pub async fn answer(
    api: &Api,
    resource: &Resource,
    object: Value,
    stored: &[u8],
    revision: Revision,
) -> Result<crate::respond::Object> {
    let Some(form) = &resource.stored_form else {
        return Ok(crate::handlers::write::answer(
            resource, object, stored, revision,
        ));
    };
    let bytes = codec::with_revision(stored, revision);
    if stored.starts_with(resource.head.as_bytes()) {
        return Ok(crate::respond::Object::Bytes(bytes));
    }
    let value = serde_json::from_slice(&bytes)
        .map_err(|error| Status::internal("decoding an object just written", &error))?;
    let mut objects = form.show(api, vec![value]).await?;
    Ok(crate::respond::Object::Value(
        objects.pop().unwrap_or_default(),
    ))
}
