//! Types as rows of a table: what [`TypeRef`] points to.
//!
//! A table is an arena: types name each other by index, so that recursive types (a JSONSchemaProps holds
//! JSONSchemaProps) need no cycles of pointers. The built-in table is inflated at first use and kept; its descriptions
//! stay compressed until somebody asks for a document.

use std::{
    collections::HashMap,
    fmt,
    io::Read,
    sync::{Arc, LazyLock, OnceLock},
};

use flate2::read::ZlibDecoder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Position of a type in its table.
pub type TypeIndex = u32;

/// All types of one origin: the built-in kinds, or one custom resource's schema.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Table {
    #[serde(rename = "t")]
    pub types: Vec<Type>,
}

/// One type.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Type {
    /// Definition id (`io.k8s.api.core.v1.Pod`); empty for types that exist only as part of another.
    #[serde(rename = "n", default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(rename = "k", default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<Gvk>,
    #[serde(rename = "s")]
    pub shape: Shape,
    /// What a structural schema says beyond the shape.
    #[serde(skip)]
    pub rules: Option<Box<crate::structural::Rules>>,
}

/// Group, version, kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Gvk(pub String, pub String, pub String);

/// How a value of a type looks.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub enum Shape {
    /// An object with known fields.
    #[serde(rename = "o")]
    Object(Object),
    /// An object with any keys, and values of one type.
    #[serde(rename = "m")]
    Map {
        #[serde(rename = "v")]
        values: TypeIndex,
        #[serde(rename = "a", default, skip_serializing_if = "is_false")]
        atomic: bool,
    },
    #[serde(rename = "l")]
    List {
        #[serde(rename = "i")]
        items: TypeIndex,
        #[serde(rename = "t", default, skip_serializing_if = "ListType::is_atomic")]
        list_type: ListType,
    },
    #[serde(rename = "str")]
    String,
    /// Base64 text in JSON.
    #[serde(rename = "bytes")]
    Bytes,
    #[serde(rename = "i32")]
    Int32,
    #[serde(rename = "i64")]
    Int64,
    #[serde(rename = "f64")]
    Double,
    #[serde(rename = "bool")]
    Bool,
    #[serde(rename = "quantity")]
    Quantity,
    /// RFC 3339, seconds.
    #[serde(rename = "time")]
    Time,
    /// RFC 3339, microseconds.
    #[serde(rename = "micro")]
    MicroTime,
    /// Go's `1h2m3s`.
    #[serde(rename = "duration")]
    Duration,
    #[serde(rename = "ios")]
    IntOrString,
    /// Any JSON (apiextensions' `JSON`).
    #[default]
    #[serde(rename = "any")]
    Any,
    /// Any JSON, merged by its own structure (`x-kubernetes-preserve-unknown-fields`).
    #[serde(rename = "deduced")]
    Deduced,
    /// An embedded object (`RawExtension`), kept as it is.
    #[serde(rename = "raw")]
    Raw,
    #[serde(rename = "fields")]
    FieldsV1,
    /// `JSONSchemaPropsOrArray`: the named type, or a list of it.
    #[serde(rename = "oa")]
    OrArray(TypeIndex),
    /// `JSONSchemaPropsOrBool`: the named type, or a boolean.
    #[serde(rename = "ob")]
    OrBool(TypeIndex),
    /// `JSONSchemaPropsOrStringArray`: the named type, or a list of strings.
    #[serde(rename = "os")]
    OrStringArray(TypeIndex),
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Object {
    /// Sorted by name. Does not change once it was looked into.
    #[serde(rename = "f")]
    pub fields: Vec<Field>,
    /// Made at the first lookup.
    #[serde(skip)]
    pub index: NameIndex,
    /// Server-side apply takes it as one value.
    #[serde(rename = "a", default, skip_serializing_if = "is_false")]
    pub atomic: bool,
    /// Messages that stand alone in protobuf but whose fields JSON inlines here: (tag, type).
    #[serde(rename = "e", default, skip_serializing_if = "Vec::is_empty")]
    pub embedded: Vec<(u32, TypeIndex)>,
    /// Fields that are not listed are kept (`x-kubernetes-preserve-unknown-fields` beside `properties`).
    #[serde(skip)]
    pub preserve_unknown: bool,
    /// An object with `apiVersion`, `kind` and `metadata` of its own (`x-kubernetes-embedded-resource`).
    #[serde(skip)]
    pub embedded_resource: bool,
}

/// [`first_bytes`] of each field's name.
#[derive(Clone, Debug, Default)]
pub struct NameIndex(OnceLock<Box<[u64]>>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum ListType {
    #[default]
    #[serde(rename = "a")]
    Atomic,
    #[serde(rename = "s")]
    Set,
    /// Items are identified by these fields.
    #[serde(rename = "m")]
    Map(Vec<String>),
}

impl ListType {
    fn is_atomic(&self) -> bool {
        *self == Self::Atomic
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Field {
    #[serde(rename = "n")]
    pub name: String,
    #[serde(rename = "t")]
    pub ty: TypeIndex,
    /// Protobuf tag; 0 = has none (`apiVersion`, `kind`, embedded fields, custom resources).
    #[serde(rename = "p", default, skip_serializing_if = "is_zero")]
    pub tag: u32,
    #[serde(rename = "r", default, skip_serializing_if = "is_false")]
    pub required: bool,
    #[serde(rename = "z", default, skip_serializing_if = "Zero::is_omit")]
    pub zero: Zero,
    /// Server-side apply: atomic or not here, whatever the type says of itself.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub atomic: Option<bool>,
    /// Strategic merge: the list or map is merged rather than replaced.
    #[serde(rename = "m", default, skip_serializing_if = "is_false")]
    pub patch_merge: bool,
    /// Strategic merge: the map is replaced rather than merged.
    #[serde(rename = "mr", default, skip_serializing_if = "is_false")]
    pub patch_replace: bool,
    /// Strategic merge: fields that the patch does not name are dropped when it says so (`$retainKeys`).
    #[serde(rename = "rk", default, skip_serializing_if = "is_false")]
    pub patch_retain_keys: bool,
    /// Strategic merge: what identifies an item; empty for lists of primitives.
    #[serde(rename = "mk", default, skip_serializing_if = "String::is_empty")]
    pub patch_merge_key: String,
    /// The default that the OpenAPI document shows (`default:` markers, list map keys).
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
}

/// What upstream's typed round trip makes of an empty value of a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Zero {
    /// `omitempty` on a value: an empty one is dropped.
    #[default]
    #[serde(rename = "o")]
    Omit,
    /// A pointer with `omitempty`: present if it was there.
    #[serde(rename = "p")]
    Pointer,
    /// No `omitempty`, or a plain struct: always there. Missing lists, maps, pointers and times become null.
    #[serde(rename = "k")]
    Keep,
    /// A pointer without `omitempty`: always there, null if missing.
    #[serde(rename = "n")]
    Null,
}

impl Zero {
    fn is_omit(&self) -> bool {
        *self == Self::Omit
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if"
)]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if"
)]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl Object {
    /// Every walk over an object asks for each of its members, so the search stays within one small array.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let names = self.fields.iter().map(|field| field.name.as_str());
        let index = self
            .index
            .0
            .get_or_init(|| names.map(first_bytes).collect());
        let first = first_bytes(name);
        let from = index.partition_point(|other| *other < first);
        let alike = index[from..].iter().take_while(|other| **other == first);
        let mut candidates = self.fields[from..].iter().zip(alike);
        candidates.find_map(|(field, _)| (field.name == name).then_some(field))
    }
}

/// Orders as the names themselves do, as far as their first eight bytes go.
fn first_bytes(name: &str) -> u64 {
    let mut first = [0; 8];
    let length = name.len().min(8);
    first[..length].copy_from_slice(&name.as_bytes()[..length]);
    u64::from_be_bytes(first)
}

/// A type of a table: cheap to clone, keeps its table alive.
#[derive(Clone)]
pub struct TypeRef {
    table: Arc<Table>,
    index: TypeIndex,
}

impl fmt::Debug for TypeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TypeRef({} {:?})", self.index, self.name())
    }
}

impl TypeRef {
    pub fn new(table: Arc<Table>, index: TypeIndex) -> Option<Self> {
        (usize::try_from(index).ok()? < table.types.len()).then_some(Self { table, index })
    }

    /// `io.k8s.api.core.v1.Pod`; empty for a type without a name of its own.
    pub fn name(&self) -> &str {
        &self.node().ty().name
    }

    /// What an empty Go struct of the type looks like: `{"metadata": {}, "spec": {…}, "status": {}}`. An empty object
    /// for custom resources.
    pub fn zero(&self) -> Value {
        match self.node().ty().rules {
            Some(_) => Value::Object(serde_json::Map::new()),
            None => crate::decode::zero(self.node()),
        }
    }

    /// The borrowed form, which is what walks over a table use.
    pub fn node(&self) -> Node<'_> {
        Node {
            table: &self.table,
            index: self.index,
        }
    }
}

/// A type of a borrowed table.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    table: &'a Table,
    index: TypeIndex,
}

impl<'a> Node<'a> {
    pub fn ty(self) -> &'a Type {
        &self.table.types[self.index as usize]
    }

    pub fn shape(self) -> &'a Shape {
        &self.ty().shape
    }

    pub fn at(self, index: TypeIndex) -> Node<'a> {
        Node {
            table: self.table,
            index,
        }
    }

    pub fn index(self) -> TypeIndex {
        self.index
    }

    /// The fields, if it is an object with known ones.
    pub fn object(self) -> Option<&'a Object> {
        match self.shape() {
            Shape::Object(object) => Some(object),
            _ => None,
        }
    }

    /// A field's declaration and its type.
    pub fn field(self, name: &str) -> Option<(&'a Field, Node<'a>)> {
        let field = self.object()?.field(name)?;
        Some((field, self.at(field.ty)))
    }
}

/// `table.bin`: two zlib streams, each after its length as four big-endian bytes. The first holds a [`Table`] as JSON,
/// the second `{definition id: [description, {field: description}]}`.
static PACKED: &[u8] = include_bytes!("table.bin");

struct Builtin {
    table: Arc<Table>,
    by_kind: HashMap<Gvk, TypeIndex>,
    by_name: HashMap<String, TypeIndex>,
}

static BUILTIN: LazyLock<Builtin> = LazyLock::new(|| {
    let table: Table = unpack(0).expect("the committed table is the generator's output");
    let mut by_kind = HashMap::new();
    let mut by_name = HashMap::new();
    for (index, ty) in (0..).zip(&table.types) {
        for kind in &ty.kinds {
            by_kind.insert(kind.clone(), index);
        }
        if !ty.name.is_empty() {
            by_name.insert(ty.name.clone(), index);
        }
    }
    Builtin {
        table: Arc::new(table),
        by_kind,
        by_name,
    }
});

fn unpack<T: serde::de::DeserializeOwned>(stream: usize) -> Option<T> {
    let mut packed = PACKED;
    for at in 0.. {
        let (length, rest) = packed.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let (body, rest) = rest.split_at_checked(length)?;
        if at == stream {
            let mut json = Vec::new();
            ZlibDecoder::new(body).read_to_end(&mut json).ok()?;
            return serde_json::from_slice(&json).ok();
        }
        packed = rest;
    }
    None
}

/// Descriptions of a definition: its own, and its fields'.
pub type Descriptions = HashMap<String, (String, HashMap<String, String>)>;

/// Inflates the descriptions of all built-in types: several megabytes, so drop them after use.
pub fn descriptions() -> Descriptions {
    unpack(1).unwrap_or_default()
}

/// The type of a built-in kind, its list kind, or one of the meta kinds (`DeleteOptions`, `Status`, `WatchEvent`,
/// `ListOptions`, …), which every group has. The core group is `""`.
pub fn builtin(group: &str, version: &str, kind: &str) -> Option<TypeRef> {
    let key = Gvk(group.to_owned(), version.to_owned(), kind.to_owned());
    let index = match BUILTIN.by_kind.get(&key) {
        Some(index) => *index,
        None => {
            let name = format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}");
            let is_meta = META_KINDS.contains(&kind);
            *is_meta.then(|| BUILTIN.by_name.get(&name)).flatten()?
        }
    };
    TypeRef::new(BUILTIN.table.clone(), index)
}

/// The definition id of ObjectMeta, the one typed part of a custom resource.
pub const META_OBJECT: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Kinds that upstream registers in every group and version.
const META_KINDS: [&str; 13] = [
    "APIGroup",
    "APIGroupList",
    "APIResourceList",
    "APIVersions",
    "CreateOptions",
    "DeleteOptions",
    "GetOptions",
    "ListOptions",
    "PartialObjectMetadata",
    "PartialObjectMetadataList",
    "PatchOptions",
    "Status",
    "WatchEvent",
];

/// A built-in type by its definition id.
pub fn definition(name: &str) -> Option<TypeRef> {
    TypeRef::new(BUILTIN.table.clone(), *BUILTIN.by_name.get(name)?)
}

/// The whole built-in table.
pub fn builtin_table() -> &'static Table {
    &BUILTIN.table
}
