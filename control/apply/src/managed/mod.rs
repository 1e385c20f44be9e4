//! Who set which field: `metadata.managedFields`, and server-side apply (KEP-555).
//!
//! A manager is known by its name, the operation (`Apply` or `Update`), the subresource, and for updates the API
//! version. Its set of fields is what it last applied, or what its updates changed and nobody changed since.

use std::{collections::BTreeMap, fmt::Write, sync::LazyLock};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use skep_schema::TypeRef;

use crate::{
    fieldset::{FieldSet, Step},
    strategic,
    typed::{self, Comparison, Ty},
};

/// Most entries of updates that one object keeps; the oldest are folded into [`ANCIENT_CHANGES`].
pub const MAX_UPDATE_MANAGERS: usize = 10;

const ANCIENT_CHANGES: &str = "ancient-changes";
/// Owns what an object had before anything was applied to it.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The manager name of `kubectl apply --server-side`, for which client-side apply gives way.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Upstream's limit of all annotations together.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

/// Nobody owns these: they belong to the server or identify the object.
static UNOWNED: LazyLock<FieldSet> = LazyLock::new(|| {
    FieldSet::of_fields(&[
        "apiVersion",
        "kind",
        "metadata",
        "metadata.creationTimestamp",
        "metadata.generation",
        "metadata.managedFields",
        "metadata.name",
        "metadata.namespace",
        "metadata.resourceVersion",
        "metadata.selfLink",
        "metadata.uid",
    ])
});

static MANAGED_FIELDS: LazyLock<FieldSet> =
    LazyLock::new(|| FieldSet::of_fields(&["metadata.managedFields"]));

/// Who writes, through what, when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// `fieldManager`, or the user agent's first word.
    pub manager: String,
    /// The `apiVersion` of the request.
    pub api_version: String,
    /// `status`, `scale`, …; empty for the object itself.
    pub subresource: String,
    pub time: Timestamp,
}

/// A field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub manager: String,
    /// `.spec.containers[name="a"].image`
    pub field: String,
    pub api_version: String,
    /// `Apply` or `Update`
    pub operation: String,
    pub subresource: String,
}

impl Conflict {
    fn manager_text(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            let _ = write!(text, " with subresource {:?}", self.subresource);
        }
        if self.operation == UPDATE {
            let _ = write!(text, " using {}", self.api_version);
        }
        text
    }

    /// The `message` of the cause: `conflict with "x" using apps/v1`.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager_text())
    }
}

fn conflicts_text(conflicts: &[Conflict]) -> String {
    if let [conflict] = conflicts {
        return format!(
            "Apply failed with 1 conflict: {}: {}",
            conflict.message(),
            conflict.field
        );
    }
    let mut lines = Vec::new();
    let mut last = String::new();
    for conflict in conflicts {
        let manager = conflict.manager_text();
        if manager != last {
            lines.push(format!("conflicts with {manager}:"));
            last = manager;
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        lines.join("\n")
    )
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 409 Conflict; `Display` is the whole message of the Status, each conflict a cause `FieldManagerConflict`.
    /// Sorted by manager.
    #[error("{}", conflicts_text(.0))]
    Conflicts(Vec<Conflict>),
    /// 400 BadRequest.
    #[error("{0}")]
    BadRequest(String),
    /// The applied configuration does not fit the schema: upstream answers 500 with this text and no reason.
    #[error("{0}")]
    Schema(String),
}

const APPLY: &str = "Apply";
const UPDATE: &str = "Update";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ManagerId {
    manager: String,
    operation: String,
    /// Empty for `Apply`, so that a manager has one entry whatever version it applies.
    api_version: String,
    subresource: String,
}

#[derive(Clone, Debug)]
struct Entry {
    set: FieldSet,
    api_version: String,
    time: Option<String>,
}

impl Entry {
    /// Gives up what changed; whether anything is left.
    fn lose(&mut self, compared: &Comparison) -> bool {
        self.set.subtract(&compared.modified);
        self.set.subtract(&compared.added);
        self.set.subtract(&compared.removed);
        !self.set.is_empty()
    }
}

/// `metadata.managedFields`, decoded.
#[derive(Clone, Debug, Default)]
struct Managers(BTreeMap<ManagerId, Entry>);

impl Managers {
    /// `None` if an entry is not one.
    fn decode(object: &Value) -> Option<Self> {
        let mut managers = Self::default();
        let list = match object
            .get("metadata")
            .and_then(|meta| meta.get("managedFields"))
        {
            None | Some(Value::Null) => return Some(managers),
            Some(list) => list.as_array()?,
        };
        for entry in list {
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
            let operation = text("operation");
            if (operation != APPLY && operation != UPDATE)
                || text("fieldsType") != "FieldsV1"
                || text("apiVersion").is_empty()
            {
                return None;
            }
            let set = match entry.get("fieldsV1") {
                None | Some(Value::Null) => FieldSet::default(),
                Some(fields) => FieldSet::decode(fields)?,
            };
            let api_version = text("apiVersion").to_owned();
            let id = ManagerId {
                manager: text("manager").to_owned(),
                operation: operation.to_owned(),
                api_version: match operation {
                    APPLY => String::new(),
                    _ => api_version.clone(),
                },
                subresource: text("subresource").to_owned(),
            };
            let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
            managers.0.insert(
                id,
                Entry {
                    set,
                    api_version,
                    time,
                },
            );
        }
        Some(managers)
    }

    fn encode(&self) -> Vec<Value> {
        let mut sorted: Vec<(&ManagerId, &Entry)> = self.0.iter().collect();
        sorted.sort_by_key(|(id, entry)| {
            (
                &id.operation,
                // RFC 3339 in UTC sorts as text; none is oldest.
                entry.time.as_deref().unwrap_or_default(),
                &id.manager,
                &entry.api_version,
                &id.subresource,
            )
        });
        sorted
            .into_iter()
            .map(|(id, entry)| {
                let mut object = Map::new();
                let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
                put("manager", json!(id.manager));
                put("operation", json!(id.operation));
                put("apiVersion", json!(entry.api_version));
                if let Some(time) = &entry.time {
                    put("time", json!(time));
                }
                put("fieldsType", json!("FieldsV1"));
                put("fieldsV1", entry.set.encode());
                if !id.subresource.is_empty() {
                    put("subresource", json!(id.subresource));
                }
                Value::Object(object)
            })
            .collect()
    }

    /// Takes from everybody what changed.
    fn lose(&mut self, compared: &Comparison) {
        self.0.retain(|_, entry| entry.lose(compared));
    }

    /// The same where entries speak of other versions: what they own is compared in theirs, and goes with a version
    /// that there is no more.
    fn lose_versioned(
        &mut self,
        compared: &Comparison,
        version: &str,
        compare: impl Fn(&str) -> Option<Comparison>,
    ) {
        let mut known: BTreeMap<String, Option<Comparison>> = BTreeMap::new();
        self.0.retain(|_, entry| {
            if entry.api_version == version {
                return entry.lose(compared);
            }
            let theirs = known
                .entry(entry.api_version.clone())
                .or_insert_with(|| compare(&entry.api_version));
            theirs.as_ref().is_some_and(|theirs| entry.lose(theirs))
        });
    }

    /// Folds the oldest updates into one entry a version until at most [`MAX_UPDATE_MANAGERS`] are left.
    fn cap(&mut self) {
        let mut updates: Vec<(String, ManagerId)> = self
            .0
            .iter()
            .filter(|(id, _)| id.operation == UPDATE)
            .map(|(id, entry)| (entry.time.clone().unwrap_or_default(), id.clone()))
            .collect();
        let mut count = updates.len();
        if count <= MAX_UPDATE_MANAGERS {
            return;
        }
        updates.sort();
        let mut first: BTreeMap<String, ManagerId> = BTreeMap::new();
        for (_, id) in updates {
            if count <= MAX_UPDATE_MANAGERS {
                return;
            }
            let bucket = ManagerId {
                manager: ANCIENT_CHANGES.to_owned(),
                operation: UPDATE.to_owned(),
                api_version: id.api_version.clone(),
                subresource: String::new(),
            };
            let Some(first_id) = first.get(&id.api_version) else {
                first.insert(id.api_version.clone(), id);
                continue;
            };
            if !self.0.contains_key(&bucket)
                && let Some(entry) = self.0.remove(first_id)
            {
                self.0.insert(bucket.clone(), entry);
            }
            if let Some(entry) = self.0.remove(&id)
                && let Some(old) = self.0.get_mut(&bucket)
            {
                old.set.union(&entry.set);
                // The newer of the two.
                old.time = entry.time;
            }
            count -= 1;
        }
    }
}

fn metadata(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object
        .as_object_mut()?
        .entry("metadata")
        .or_insert_with(|| json!({}))
        .as_object_mut()
}

fn write_back(object: &mut Value, managers: &Managers) {
    let encoded = managers.encode();
    let Some(metadata) = metadata(object) else {
        return;
    };
    if encoded.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), Value::Array(encoded));
    }
}

/// What the managers are before an update: the request's own list if it has one, else the stored one.
fn managers_of(live: Option<&Value>, new: &Value, subresource: &str) -> Managers {
    let of_live = || live.and_then(Managers::decode).unwrap_or_default();
    if !subresource.is_empty() {
        // A subresource cannot set them.
        return of_live();
    }
    let list = new
        .get("metadata")
        .and_then(|meta| meta.get("managedFields"));
    if let Some([Value::Object(only)]) = list.and_then(Value::as_array).map(Vec::as_slice)
        && only.values().all(Value::is_null)
    {
        return Managers::default(); // `[{}]` resets
    }
    match Managers::decode(new) {
        Some(managers) if !managers.0.is_empty() => managers,
        // Clients that do not know the field must not delete it by accident.
        _ => of_live(),
    }
}

fn rfc3339(time: Timestamp) -> String {
    // Whole seconds, as `metav1.Time`.
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}

fn compare(live: &Value, new: &Value, ty: &TypeRef, reset: &[&str]) -> Comparison {
    let mut compared = typed::compare(live, new, Ty::of(ty.node()));
    compared.without_trees(&MANAGED_FIELDS);
    if !reset.is_empty() {
        compared.without_trees(&FieldSet::of_fields(reset));
    }
    compared
}

/// Records an update by `writer` in `managers`, which have lost what changed.
fn record(managers: &mut Managers, compared: Comparison, writer: &Writer) {
    let mut own = compared.added;
    own.union(&compared.modified);
    own.subtract(&UNOWNED);
    if own.is_empty() {
        return;
    }
    let id = ManagerId {
        manager: writer.manager.clone(),
        operation: UPDATE.to_owned(),
        api_version: writer.api_version.clone(),
        subresource: writer.subresource.clone(),
    };
    // Entries that come through /scale carry no time upstream.
    let time = (writer.subresource != "scale").then(|| rfc3339(writer.time));
    match managers.0.get_mut(&id) {
        Some(entry) => {
            entry.set.union(&own);
            entry.time = time;
        }
        None => {
            let api_version = writer.api_version.clone();
            managers.0.insert(
                id,
                Entry {
                    set: own,
                    api_version,
                    time,
                },
            );
        }
    }
}

/// Updates `new.metadata.managedFields` for a create, update or patch by `writer`.
///
/// `new` is the object about to be stored, `live` what is stored now; both in the form that decoding gives. `reset`
/// lists the fields that this endpoint may not own. Never fails: managed fields that cannot be read are dropped, as
/// upstream does. A write that changes nothing leaves the list as it was, times included.
pub fn update(
    live: Option<&Value>,
    new: &mut Value,
    ty: &TypeRef,
    writer: &Writer,
    reset: &[&str],
) {
    update_versioned(live, new, ty, writer, reset, None);
}

/// An object in another version, given its `apiVersion`, and that version's type. `None`: there is no such version.
pub type InVersion<'a> = &'a dyn Fn(&str, &Value) -> Option<(Value, TypeRef)>;

/// [`update`] of a kind of which several versions are served.
pub fn update_versioned(
    live: Option<&Value>,
    new: &mut Value,
    ty: &TypeRef,
    writer: &Writer,
    reset: &[&str],
    other_versions: Option<InVersion<'_>>,
) {
    let mut managers = managers_of(live, new, &writer.subresource);
    let empty;
    let old = match live {
        Some(live) => live,
        None => {
            empty = ty.zero();
            &empty
        }
    };
    let compared = compare(old, new, ty, reset);
    match other_versions {
        None => managers.lose(&compared),
        Some(convert) => managers.lose_versioned(&compared, &writer.api_version, |version| {
            let (old, ty) = convert(version, old)?;
            let (new, _) = convert(version, new)?;
            Some(compare(&old, &new, &ty, reset))
        }),
    }
    record(&mut managers, compared, writer);
    managers.cap();
    write_back(new, &managers);
    if let Some(live) = live {
        keep_times(live, new);
    }
}

/// If only times in `managedFields` differ, puts the old list back, so that nothing is written.
fn keep_times(stored: &Value, new: &mut Value) {
    let list = |object: &Value| {
        let list = object
            .get("metadata")
            .and_then(|meta| meta.get("managedFields"));
        list.and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let timeless = |mut list: Vec<Value>| {
        for entry in list.iter_mut().filter_map(Value::as_object_mut) {
            entry.remove("time");
        }
        // Times decide the order.
        list.sort_by_key(Value::to_string);
        list
    };
    let same = |name: &str| stored.get(name) == new.get(name);
    let (Some(live), Some(object)) = (stored.as_object(), new.as_object()) else {
        return;
    };
    let others_same = live
        .keys()
        .chain(object.keys())
        .all(|name| name == "metadata" || same(name));
    let meta = |object: &Map<String, Value>| {
        let mut meta = object.get("metadata").and_then(Value::as_object).cloned();
        for name in ["managedFields", "resourceVersion"] {
            meta.as_mut().map(|meta| meta.remove(name));
        }
        meta
    };
    if !others_same || meta(live) != meta(object) {
        return;
    }
    let old = list(stored);
    if !old.is_empty()
        && timeless(old.clone()) == timeless(list(new))
        && let Some(metadata) = metadata(new)
    {
        metadata.insert("managedFields".to_owned(), Value::Array(old));
    }
}

/// Server-side apply: the object that results, `managedFields` included.
///
/// `live` is the stored object (`None`: the apply creates it), `applied` the request's document as it was parsed,
/// without anything filled in. The result is not defaulted. If nothing changes it equals `live`.
///
/// # Errors
/// Conflicts unless `force`; configurations that do not fit the schema.
pub fn apply(
    live: Option<&Value>,
    applied: &Value,
    ty: &TypeRef,
    writer: &Writer,
    reset: &[&str],
    force: bool,
) -> Result<Value, ApplyError> {
    match apply_once(live, applied, ty, writer, reset, force) {
        Err(ApplyError::Conflicts(conflicts)) if writer.manager == KUBECTL => {
            // `kubectl apply` before it knew server-side apply: what it applied last, and nobody changed since, is
            // the same user's.
            let allowed = live
                .map(|live| last_applied_paths(live, ty, writer))
                .unwrap_or_default();
            let left: Vec<Conflict> = conflicts
                .into_iter()
                .filter(|conflict| !allowed.contains(&conflict.field))
                .collect();
            if !left.is_empty() {
                return Err(ApplyError::Conflicts(left));
            }
            apply_once(live, applied, ty, writer, reset, true)
        }
        result => result,
    }
    .map(|mut object| {
        sync_last_applied(&mut object, applied, writer);
        object
    })
}

fn annotation(object: &Value) -> Option<&str> {
    object
        .get("metadata")?
        .get("annotations")?
        .get(LAST_APPLIED)?
        .as_str()
}

fn last_applied_paths(live: &Value, ty: &TypeRef, writer: &Writer) -> Vec<String> {
    let Some(last) = annotation(live).and_then(|text| serde_json::from_str::<Value>(text).ok())
    else {
        return Vec::new();
    };
    if last.get("apiVersion").and_then(Value::as_str) != Some(writer.api_version.as_str()) {
        return Vec::new();
    }
    let node = Ty::of(ty.node());
    let mut set = typed::to_set(&last, node);
    let compared = typed::compare(&last, live, node);
    set.subtract(&compared.modified);
    set.subtract(&compared.added);
    set.subtract(&compared.removed);
    set.paths()
}

/// Keeps the annotation of client-side apply current while `kubectl` applies, so that a user can go back.
fn sync_last_applied(object: &mut Value, applied: &Value, writer: &Writer) {
    if writer.manager != KUBECTL || annotation(object).is_none() {
        return;
    }
    let mut configuration = applied.clone();
    if let Some(metadata) = metadata(&mut configuration) {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata
            .get_mut("annotations")
            .and_then(Value::as_object_mut)
        {
            annotations.remove(LAST_APPLIED);
        }
    }
    let mut text = format!("{configuration}\n");
    if text.len() > MAX_ANNOTATION_BYTES {
        text.clear();
    }
    let annotations = metadata(object)
        .and_then(|metadata| metadata.get_mut("annotations"))
        .and_then(Value::as_object_mut);
    if let Some(annotations) = annotations {
        annotations.insert(LAST_APPLIED.to_owned(), Value::String(text));
    }
}

fn apply_once(
    live: Option<&Value>,
    applied: &Value,
    ty: &TypeRef,
    writer: &Writer,
    reset: &[&str],
    force: bool,
) -> Result<Value, ApplyError> {
    let node = Ty::of(ty.node());
    let has_managers = |object: &Value| {
        let list = object
            .get("metadata")
            .and_then(|meta| meta.get("managedFields"));
        list.is_some_and(|list| !list.is_null())
    };
    if has_managers(applied) {
        return Err(ApplyError::BadRequest(
            "metadata.managedFields must be nil".to_owned(),
        ));
    }
    check_schema(applied, node)?;

    let zero = ty.zero();
    let old = live.unwrap_or(&zero);
    let mut managers = live.and_then(Managers::decode).unwrap_or_default();
    if managers.0.is_empty() && live.is_some() {
        let before = Writer {
            manager: BEFORE_FIRST_APPLY.to_owned(),
            ..writer.clone()
        };
        record(&mut managers, compare(&zero, old, ty, reset), &before);
    }

    let id = ManagerId {
        manager: writer.manager.clone(),
        operation: APPLY.to_owned(),
        api_version: String::new(),
        subresource: writer.subresource.clone(),
    };
    let merged = typed::merge(old, applied, node);
    let mut set = typed::to_set(applied, node);
    set.subtract_trees(&FieldSet::of_fields(reset));
    let mut owned = set.clone();
    owned.subtract(&UNOWNED);
    let last = managers.0.insert(
        id.clone(),
        Entry {
            set,
            api_version: writer.api_version.clone(),
            time: None,
        },
    );
    if let (Some(last), Some(entry)) = (&last, managers.0.get_mut(&id)) {
        entry.time.clone_from(&last.time);
    }
    let new = match &last {
        // Who applies the same fields again gives nothing up.
        Some(last) if !last.set.is_empty() && last.set != owned => {
            prune(&merged, &managers, &last.set, node)
        }
        _ => merged,
    };

    let compared = compare(old, &new, ty, reset);
    let conflicts = settle(&mut managers, &compared, &id, force);
    if !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    if let Some(entry) = managers.0.get_mut(&id) {
        entry.set.subtract(&UNOWNED);
        if entry.set.is_empty() {
            managers.0.remove(&id);
        }
    }
    let mut object = if compared.is_same() && live.is_some() {
        old.clone()
    } else {
        if let Some(entry) = managers.0.get_mut(&id) {
            entry.time = (writer.subresource != "scale").then(|| rfc3339(writer.time));
        }
        // Nulls go, and what typed objects always show comes.
        let node = ty.node();
        let is_typed = node.ty().rules.is_none();
        let problem = is_typed
            .then(|| strategic::restore_error(&new, node))
            .flatten();
        let decoded = skep_schema::conform(new, ty);
        match (problem, decoded) {
            (None, Ok(decoded)) => decoded.value,
            (problem, decoded) => {
                let why = problem.or(decoded.err().map(|error| error.to_string()));
                return Err(unconvertible(applied, &why.unwrap_or_default()));
            }
        }
    };
    write_back(&mut object, &managers);
    Ok(object)
}

fn check_schema(applied: &Value, node: Ty<'_>) -> Result<(), ApplyError> {
    let complaints = typed::complaints(applied, node);
    let detail = match complaints.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    Err(ApplyError::Schema(format!(
        "failed to create typed patch object ({}): {detail}",
        described(applied)
    )))
}

/// The new object cannot be one of its Go type.
fn unconvertible(applied: &Value, why: &str) -> ApplyError {
    ApplyError::Schema(format!(
        "failed to convert new object ({}) to proper version: unable to convert unstructured object to {}: {why}",
        described(applied),
        kind_text(applied)
    ))
}

/// `ns/name; apps/v1, Kind=Deployment`
fn described(applied: &Value) -> String {
    let meta = |name: &str| applied["metadata"][name].as_str().unwrap_or_default();
    let (namespace, name) = (meta("namespace"), meta("name"));
    format!("{namespace}/{name}; {}", kind_text(applied))
}

/// `apps/v1, Kind=Deployment`, and `/v1, Kind=Pod`
fn kind_text(applied: &Value) -> String {
    let text = |name: &str| applied[name].as_str().unwrap_or_default();
    let (group_version, kind) = (text("apiVersion"), text("kind"));
    let slash = if group_version.contains('/') { "" } else { "/" };
    format!("{slash}{group_version}, Kind={kind}")
}

/// Takes out what this manager applied before and does not any more, unless somebody else owns it.
fn prune(merged: &Value, managers: &Managers, last: &FieldSet, node: Ty<'_>) -> Value {
    let last = typed::with_named_fields(last, node);
    let merged_set = typed::with_named_fields(&typed::to_set(merged, node), node);
    let mut pruned = typed::remove(merged, &last, node);

    // Back comes what anybody owns, this manager's new set included.
    let mut kept = typed::with_named_fields(&typed::to_set(&pruned, node), node);
    let mut managed = FieldSet::default();
    for entry in managers.0.values() {
        managed.union(&entry.set);
    }
    kept.union(&typed::with_named_fields(&managed, node));
    let mut gone = merged_set.clone();
    gone.subtract(&kept);
    pruned = typed::remove(merged, &gone, node);

    // Back comes also what nobody owns but this manager did not own either.
    let mut gone = merged_set;
    gone.subtract(&typed::with_named_fields(
        &typed::to_set(&pruned, node),
        node,
    ));
    gone.intersect(&last);
    typed::remove(merged, &gone, node)
}

/// Finds conflicts; without any (or with `force`) takes the fields from their owners.
fn settle(
    managers: &mut Managers,
    compared: &Comparison,
    id: &ManagerId,
    force: bool,
) -> Vec<Conflict> {
    let mut changed = compared.modified.clone();
    changed.union(&compared.added);
    let mut conflicts = Vec::new();
    if !force {
        for (other, entry) in managers.0.iter().filter(|(other, _)| *other != id) {
            let mut conflict = entry.set.clone();
            conflict.intersect(&changed);
            conflicts.extend(conflict.paths().into_iter().map(|field| Conflict {
                manager: other.manager.clone(),
                field,
                api_version: entry.api_version.clone(),
                operation: other.operation.clone(),
                subresource: other.subresource.clone(),
            }));
        }
        if !conflicts.is_empty() {
            return conflicts;
        }
    }
    managers.0.retain(|other, entry| {
        if other != id {
            entry.set.subtract(&changed);
            entry.set.subtract(&compared.removed);
        }
        !entry.set.is_empty()
    });
    conflicts
}

/// Whether a set of managed fields holds a path of field names (`["spec", "replicas"]`), which controllers that
/// reconcile single fields ask.
pub fn owns(entry: &Value, path: &[&str]) -> bool {
    let Some(set) = entry.get("fieldsV1").and_then(FieldSet::decode) else {
        return false;
    };
    let mut node = &set;
    for name in path {
        match node.children.get(&Step::Field((*name).to_owned())) {
            Some(below) => node = below,
            None => return false,
        }
    }
    node.member
}

#[cfg(test)]
mod tests;
