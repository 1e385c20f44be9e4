//! Makes `src/table.bin` from published type definitions. Run by `cargo xtask codegen`; the output is committed.
//!
//! Three sources: k8s-openapi's OpenAPI definitions, k8s-pb's protobuf tags and documentation markers, and
//! `presence.txt` beside this file, which holds the one thing that neither has: whether an empty value of a field is
//! kept (a pointer in Go) or dropped (`omitempty` on a value).
#![forbid(unsafe_code)]

mod sources;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::Write,
    path::Path,
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, write::ZlibEncoder};
use serde_json::Value;
use skep_schema::table::{Field, Gvk, ListType, Object, Shape, Table, Type, TypeIndex, Zero};
use sources::{Definition, Message, MessageField};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Types that only protobuf and internal callers know: (definition id, required by nobody).
const MESSAGES_ONLY: [&str; 15] = [
    "io.k8s.apimachinery.pkg.apis.meta.v1.CreateOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.GetOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.ListOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.PatchOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.UpdateOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata",
    "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList",
    "io.k8s.api.core.v1.NodeProxyOptions",
    "io.k8s.api.core.v1.PodAttachOptions",
    "io.k8s.api.core.v1.PodExecOptions",
    "io.k8s.api.core.v1.PodLogOptions",
    "io.k8s.api.core.v1.PodPortForwardOptions",
    "io.k8s.api.core.v1.PodProxyOptions",
    "io.k8s.api.core.v1.ServiceProxyOptions",
    "io.k8s.api.core.v1.SerializedReference",
];

fn main() -> Result<()> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = std::env::temp_dir().join(format!("skep-codegen-{}", std::process::id()));
    let located = sources::locate(&scratch);
    fs::remove_dir_all(&scratch).context("remove the scratch manifest")?;
    let (k8s_openapi, k8s_pb) = located?;

    let presence = Presence::parse(include_str!("presence.txt"))?;
    let mut builder = Builder {
        definitions: sources::definitions(&k8s_openapi)?,
        messages: sources::messages(&k8s_pb)?,
        presence,
        table: Table::default(),
        by_id: HashMap::new(),
        plain: HashMap::new(),
        descriptions: BTreeMap::new(),
        problems: Vec::new(),
    };
    builder.build()?;
    if std::env::args().any(|argument| argument == "--verbose") {
        // Fields newer than k8s-pb's release: JSON knows them, protobuf skips them.
        for problem in &builder.problems {
            eprintln!("codegen: {problem}");
        }
    }
    let unused: Vec<_> = builder.presence.unused();
    if !unused.is_empty() {
        bail!(
            "presence.txt names fields that do not exist: {}",
            unused.join(" ")
        );
    }
    if std::env::args().any(|argument| argument == "--list-optional") {
        builder.list_optional();
        return Ok(());
    }

    let mut packed = Vec::new();
    pack(&mut packed, &serde_json::to_vec(&builder.table)?)?;
    pack(&mut packed, &serde_json::to_vec(&builder.descriptions)?)?;
    let output = crate_folder.join("src/table.bin");
    fs::write(&output, &packed).with_context(|| format!("write {}", output.display()))?;
    println!(
        "{}: {} types, {} bytes",
        output.display(),
        builder.table.types.len(),
        packed.len()
    );
    Ok(())
}

fn pack(out: &mut Vec<u8>, body: &[u8]) -> Result<()> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(body)?;
    let body = encoder.finish()?;
    out.extend_from_slice(&u32::try_from(body.len())?.to_be_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

/// `presence.txt`: which optional fields are pointers, values or always there.
struct Presence {
    facts: HashMap<(String, String), (Zero, std::cell::Cell<bool>)>,
    markers: HashMap<(String, String), Vec<String>>,
    required: HashMap<(String, String), bool>,
}

impl Presence {
    fn parse(text: &str) -> Result<Self> {
        let mut facts = HashMap::new();
        let mut markers = HashMap::new();
        let mut required = HashMap::new();
        let mut section = "";
        let mut zero = Zero::Omit;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
                zero = match section {
                    "value" | "markers" | "required" | "optional" => Zero::Omit,
                    "pointer" => Zero::Pointer,
                    "always" => Zero::Keep,
                    "null" => Zero::Null,
                    other => bail!("presence.txt:{number}: unknown section {other}"),
                };
                continue;
            }
            let (ty, fields) = line
                .split_once(' ')
                .with_context(|| format!("presence.txt:{number}: no fields"))?;
            if section == "required" || section == "optional" {
                for field in fields.split_whitespace() {
                    required.insert((ty.to_owned(), field.to_owned()), section == "required");
                }
                continue;
            }
            if section == "markers" {
                let mut words = fields.split_whitespace().map(str::to_owned);
                let field = words.next().unwrap_or_default();
                markers.insert((ty.to_owned(), field), words.collect());
                continue;
            }
            for field in fields.split_whitespace() {
                facts.insert(
                    (ty.to_owned(), field.to_owned()),
                    (zero, std::cell::Cell::new(false)),
                );
            }
        }
        Ok(Self {
            facts,
            markers,
            required,
        })
    }

    /// Where k8s-openapi differs from upstream's document.
    fn required(&self, id: &str, field: &str) -> Option<bool> {
        let mut parts = id.rsplit('.');
        let name = parts.next().unwrap_or_default();
        let group = parts.nth(1).unwrap_or_default();
        [format!("{group}.{name}"), name.to_owned()]
            .into_iter()
            .find_map(|ty| self.required.get(&(ty, field.to_owned())).copied())
    }

    /// Markers of fields that are newer than k8s-pb.
    fn markers(&self, id: &str, field: &str) -> Option<&[String]> {
        let name = id.rsplit('.').next().unwrap_or_default();
        self.markers
            .get(&(name.to_owned(), field.to_owned()))
            .map(Vec::as_slice)
    }

    /// Types are named without their group and version: a kind keeps its habits across versions. `group.Kind` goes
    /// before `Kind`, and `Kind` before `*`.
    fn of(&self, id: &str, field: &str) -> Option<Zero> {
        let mut parts = id.rsplit('.');
        let name = parts.next().unwrap_or_default();
        let group = parts.nth(1).unwrap_or_default();
        [format!("{group}.{name}"), name.to_owned(), "*".to_owned()]
            .into_iter()
            .find_map(|ty| {
                let (zero, used) = self.facts.get(&(ty, field.to_owned()))?;
                used.set(true);
                Some(*zero)
            })
    }

    fn unused(&self) -> Vec<String> {
        let mut unused: Vec<String> = self
            .facts
            .iter()
            .filter(|(_, (_, used))| !used.get())
            .map(|((ty, field), _)| format!("{ty}.{field}"))
            .collect();
        unused.sort();
        unused
    }
}

struct Builder {
    definitions: BTreeMap<String, Definition>,
    messages: BTreeMap<String, Message>,
    presence: Presence,
    table: Table,
    by_id: HashMap<String, TypeIndex>,
    /// Unnamed types by their JSON, so that each stands once.
    plain: HashMap<String, TypeIndex>,
    descriptions: BTreeMap<String, (String, BTreeMap<String, String>)>,
    problems: Vec<String>,
}

/// Documentation markers of a field or type.
#[derive(Default)]
struct Markers {
    list_type: Option<String>,
    list_map_keys: Vec<String>,
    atomic: Option<bool>,
    patch_merge: bool,
    patch_replace: bool,
    patch_retain_keys: bool,
    patch_merge_key: String,
    default: Option<Value>,
    optional: bool,
}

impl Markers {
    fn parse(docs: &[String]) -> Self {
        let mut markers = Self::default();
        for line in docs {
            let line = line.trim();
            if line == "+optional" || line == "+k8s:optional" {
                markers.optional = true;
            }
            let Some((name, value)) = line.strip_prefix('+').and_then(|line| line.split_once('='))
            else {
                continue;
            };
            let value = value.trim();
            match name {
                "listType" => markers.list_type = Some(value.to_owned()),
                "listMapKey" => markers.list_map_keys.push(value.to_owned()),
                "mapType" | "structType" => markers.atomic = Some(value == "atomic"),
                "patchMergeKey" => markers.patch_merge_key = value.to_owned(),
                "patchStrategy" => {
                    markers.patch_replace = value == "replace";
                    markers.patch_merge = value.split(',').any(|part| part == "merge");
                    markers.patch_retain_keys = value.split(',').any(|part| part == "retainKeys");
                }
                "default" => markers.default = serde_json::from_str(value).ok(),
                _ => {}
            }
        }
        markers
    }

    /// The prose: everything before the markers, joined as OpenAPI descriptions are.
    fn prose(docs: &[String]) -> String {
        let kept: Vec<&str> = docs
            .iter()
            .map(|line| line.trim())
            .take_while(|line| *line != "---")
            .filter(|line| !line.starts_with('+'))
            .collect();
        kept.join(" ").trim().to_owned()
    }
}

/// `podCIDR` and `pod_cidr`, `$ref` and `ref`, `externalIPs` and `external_i_ps` are the same.
fn fold(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|character| character.to_ascii_lowercase())
        .collect()
}

/// Whether `field` is a message whose fields JSON inlines; if so, notes them by their folded names.
fn collect_inlined<'a>(
    field: &MessageField,
    names: &HashMap<String, &String>,
    messages: &'a BTreeMap<String, Message>,
    inlined: &mut HashMap<String, &'a MessageField>,
) -> bool {
    if field.wire != "message" || field.repeated {
        return false;
    }
    let Some(message) = messages.get(&field.message) else {
        return false;
    };
    let mut found = HashMap::new();
    for inner in &message.fields {
        if names.contains_key(&fold(&inner.name)) {
            found.insert(fold(&inner.name), inner);
        } else if !collect_inlined(inner, names, messages, &mut found) {
            return false;
        }
    }
    inlined.extend(found);
    true
}

fn camel(name: &str) -> String {
    let mut camel = String::new();
    let mut upper = false;
    for character in name.chars() {
        if character == '_' {
            upper = true;
        } else if upper {
            camel.push(character.to_ascii_uppercase());
            upper = false;
        } else {
            camel.push(character);
        }
    }
    camel
}

fn special(id: &str) -> Option<Shape> {
    Some(match id.rsplit_once("pkg.")?.1 {
        "apis.meta.v1.Time" => Shape::Time,
        "apis.meta.v1.MicroTime" => Shape::MicroTime,
        "apis.meta.v1.Duration" => Shape::Duration,
        "apis.meta.v1.FieldsV1" => Shape::FieldsV1,
        "apis.meta.v1.Patch" | "apis.apiextensions.v1.JSON" => Shape::Any,
        "api.resource.Quantity" => Shape::Quantity,
        "util.intstr.IntOrString" => Shape::IntOrString,
        "runtime.RawExtension" => Shape::Raw,
        _ => return None,
    })
}

impl Builder {
    fn build(&mut self) -> Result<()> {
        let ids: BTreeSet<String> = self.definitions.keys().cloned().collect();
        self.align_names(&ids);
        for id in &ids {
            self.reserve(id);
        }
        let versions: BTreeSet<(String, String)> = self
            .definitions
            .values()
            .filter_map(|definition| definition.gvk.clone())
            .map(|(group, version, _)| (group, version))
            .collect();
        for id in &ids {
            self.define(id)?;
        }
        self.lists()?;
        for id in MESSAGES_ONLY {
            if !self.by_id.contains_key(id) {
                self.message_only(id)?;
            }
        }
        for kind in [
            "DeleteOptions",
            "Status",
            "WatchEvent",
            "APIResourceList",
            "APIGroup",
        ] {
            let Some(index) = self.by_id.get(&format!("{META}{kind}")).copied() else {
                continue;
            };
            let ty = &mut self.table.types[index as usize];
            ty.kinds = match kind {
                "DeleteOptions" | "WatchEvent" => versions
                    .iter()
                    .map(|(group, version)| Gvk(group.clone(), version.clone(), kind.to_owned()))
                    .collect(),
                _ => vec![Gvk(String::new(), "v1".to_owned(), kind.to_owned())],
            };
        }
        Ok(())
    }

    /// prost writes `HttpGetAction` for `HTTPGetAction`.
    fn align_names(&mut self, ids: &BTreeSet<String>) {
        let by_lowercase: HashMap<String, &String> =
            ids.iter().map(|id| (id.to_lowercase(), id)).collect();
        let aligned = |id: &str| match by_lowercase.get(&id.to_lowercase()) {
            Some(id) => (*id).clone(),
            None => id.to_owned(),
        };
        self.messages = std::mem::take(&mut self.messages)
            .into_iter()
            .map(|(id, mut message)| {
                for field in &mut message.fields {
                    field.message = aligned(&field.message);
                }
                (aligned(&id), message)
            })
            .collect();
    }

    fn reserve(&mut self, id: &str) -> TypeIndex {
        let index = self.table.types.len() as TypeIndex;
        self.table.types.push(Type {
            name: id.to_owned(),
            ..Type::default()
        });
        self.by_id.insert(id.to_owned(), index);
        index
    }

    fn define(&mut self, id: &str) -> Result<()> {
        let definition = &self.definitions[id];
        let schema = definition.schema.clone();
        let gvk = definition.gvk.clone();
        let index = self.by_id[id] as usize;
        self.table.types[index].kinds = gvk.into_iter().map(|(g, v, k)| Gvk(g, v, k)).collect();
        let description = schema["description"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.descriptions.entry(id.to_owned()).or_default().0 = description;

        let shape = if let Some(shape) = special(id) {
            shape
        } else if let Some(base) = id.strip_suffix("OrArray") {
            Shape::OrArray(self.by_id[base])
        } else if let Some(base) = id.strip_suffix("OrBool") {
            Shape::OrBool(self.by_id[base])
        } else if let Some(base) = id.strip_suffix("OrStringArray") {
            Shape::OrStringArray(self.by_id[base])
        } else {
            Shape::Object(self.object(id, &schema)?)
        };
        self.table.types[index].shape = shape;
        Ok(())
    }

    fn object(&mut self, id: &str, schema: &Value) -> Result<Object> {
        let empty = Message::default();
        let messages = std::mem::take(&mut self.messages);
        // k8s-pb trails by a release: a version that it lacks has the tags of the one before.
        let message = messages
            .get(id)
            .or_else(|| messages.get(&id.replace(".v1.", ".v1beta1.")))
            .or_else(|| messages.get(&id.replace(".v1beta1.", ".v1alpha1.")));
        if message.is_none() {
            self.problems.push(format!("{id}: no protobuf message"));
        }
        let message = message.unwrap_or(&empty);
        let object = self.object_of(id, schema, message, &messages);
        self.messages = messages;
        object
    }

    fn object_of(
        &mut self,
        id: &str,
        schema: &Value,
        message: &Message,
        messages: &BTreeMap<String, Message>,
    ) -> Result<Object> {
        let required: BTreeSet<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let is_kind = self
            .definitions
            .get(id)
            .is_some_and(|definition| definition.gvk.is_some());
        let mut by_name: HashMap<String, &MessageField> = message
            .fields
            .iter()
            .map(|field| (fold(&field.name), field))
            .collect();
        // Fields of messages that JSON inlines, and those messages themselves.
        let mut inlined: HashMap<String, &MessageField> = HashMap::new();
        let mut embedded = Vec::new();
        let empty = serde_json::Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&empty);
        let names: HashMap<String, &String> =
            properties.keys().map(|name| (fold(name), name)).collect();
        for field in &message.fields {
            let known = names.contains_key(&fold(&field.name));
            if !known && collect_inlined(field, &names, messages, &mut inlined) {
                embedded.push(field);
            }
        }

        let mut fields = Vec::new();
        for (name, property) in properties {
            let own = by_name.remove(&fold(name));
            let message_field = own.or_else(|| inlined.get(&fold(name)).copied());
            if message_field.is_none()
                && !message.fields.is_empty()
                && name != "apiVersion"
                && name != "kind"
            {
                self.problems
                    .push(format!("{id}.{name}: no protobuf field"));
            }
            if let Some(description) = property["description"].as_str() {
                let entry = self.descriptions.entry(id.to_owned()).or_default();
                entry.1.insert(name.clone(), description.to_owned());
            }
            let required = required.contains(name.as_str());
            let mut field = self.field(id, name, property, message_field, required)?;
            if is_kind && name == "metadata" {
                field.required = false; // k8s-openapi's own addition
            }
            field.required = self.presence.required(id, name).unwrap_or(field.required);
            field.tag = own.map_or(0, |own| own.tag);
            fields.push(field);
        }
        for (name, field) in by_name {
            if !embedded.iter().any(|outer| outer.tag == field.tag) {
                self.problems
                    .push(format!("{id}: protobuf field {name} has no JSON field"));
            }
        }
        fields.sort_by(|left, right| left.name.cmp(&right.name));

        let mut tags = Vec::new();
        for outer in embedded {
            let inner = self.embedded(id, &outer.message, &names, properties, messages)?;
            tags.push((outer.tag, self.unnamed(Shape::Object(inner))?));
        }
        let markers = Markers::parse(&message.docs);
        Ok(Object {
            fields,
            atomic: markers.atomic == Some(true),
            embedded: tags,
            ..Object::default()
        })
    }

    /// The part of `id`'s fields that protobuf keeps in a message of its own.
    fn embedded(
        &mut self,
        id: &str,
        message: &str,
        names: &HashMap<String, &String>,
        properties: &serde_json::Map<String, Value>,
        messages: &BTreeMap<String, Message>,
    ) -> Result<Object> {
        let mut object = Object::default();
        for inner in &messages[message].fields {
            if let Some(name) = names.get(&fold(&inner.name)) {
                let property = &properties[name.as_str()];
                let mut field = self.field(id, name, property, Some(inner), false)?;
                field.tag = inner.tag;
                object.fields.push(field);
            } else {
                let nested = self.embedded(id, &inner.message, names, properties, messages)?;
                object
                    .embedded
                    .push((inner.tag, self.unnamed(Shape::Object(nested))?));
            }
        }
        object
            .fields
            .sort_by(|left, right| left.name.cmp(&right.name));
        Ok(object)
    }

    fn field(
        &mut self,
        id: &str,
        name: &str,
        property: &Value,
        message: Option<&MessageField>,
        required: bool,
    ) -> Result<Field> {
        let mut markers = message
            .map(|field| Markers::parse(&field.docs))
            .unwrap_or_default();
        if let Some(lines) = self.presence.markers(id, name) {
            markers = Markers::parse(lines);
        }
        let ty = self.type_of(property, message, &markers)?;
        let shape = &self.table.types[ty as usize].shape;
        let required = self.presence.required(id, name).unwrap_or(required);
        // A kind may require in one version what it drops in another; only a list is dropped all the same.
        let list = matches!(shape, Shape::List { .. });
        let fact = self
            .presence
            .of(id, name)
            .filter(|zero| !required || list || *zero != Zero::Omit);
        let zero = fact.unwrap_or(match shape {
            _ if required => Zero::Keep,
            Shape::List { .. } | Shape::Map { .. } | Shape::String | Shape::Bytes => Zero::Omit,
            _ => Zero::Pointer,
        });
        Ok(Field {
            name: name.to_owned(),
            ty,
            tag: 0,
            required,
            zero,
            // The marker sits on the map type itself there.
            atomic: markers
                .atomic
                .filter(|_| !matches!(shape, Shape::Map { .. })),
            patch_merge: markers.patch_merge,
            patch_replace: markers.patch_replace,
            patch_retain_keys: markers.patch_retain_keys,
            patch_merge_key: markers.patch_merge_key,
            default: markers.default,
        })
    }

    fn type_of(
        &mut self,
        property: &Value,
        message: Option<&MessageField>,
        markers: &Markers,
    ) -> Result<TypeIndex> {
        if let Some(id) = property["$ref"].as_str() {
            return self
                .by_id
                .get(id)
                .copied()
                .with_context(|| format!("no definition {id}"));
        }
        if message.is_some_and(|field| field.message == format!("{META}Duration")) {
            return self.unnamed(Shape::Duration);
        }
        let nested = Markers::default();
        let shape = match (property["type"].as_str(), property["format"].as_str()) {
            (Some("array"), _) => Shape::List {
                items: self.type_of(&property["items"], None, &nested)?,
                list_type: match markers.list_type.as_deref() {
                    Some("map") => ListType::Map(markers.list_map_keys.clone()),
                    Some("set") => ListType::Set,
                    _ => ListType::Atomic,
                },
            },
            (Some("object"), _) => match property.get("additionalProperties") {
                Some(values) => Shape::Map {
                    values: self.type_of(values, None, &nested)?,
                    atomic: markers.atomic == Some(true),
                },
                None => Shape::Any,
            },
            (Some("string"), Some("byte")) => Shape::Bytes,
            (Some("string"), _) => Shape::String,
            (Some("integer"), Some("int64")) => Shape::Int64,
            (Some("integer"), _) => match message.map(|field| field.wire.as_str()) {
                Some("int64") => Shape::Int64,
                _ => Shape::Int32,
            },
            (Some("number"), _) => Shape::Double,
            (Some("boolean"), _) => Shape::Bool,
            _ if property["x-kubernetes-int-or-string"] == true => Shape::IntOrString,
            _ => Shape::Any,
        };
        self.unnamed(shape)
    }

    /// The index of an unnamed type, shared by all of the same shape.
    fn unnamed(&mut self, shape: Shape) -> Result<TypeIndex> {
        let key = serde_json::to_string(&shape)?;
        if let Some(index) = self.plain.get(&key) {
            return Ok(*index);
        }
        let index = self.table.types.len() as TypeIndex;
        self.table.types.push(Type {
            shape,
            ..Type::default()
        });
        self.plain.insert(key, index);
        Ok(index)
    }

    /// `PodList` and the like, which k8s-openapi makes from a generic.
    fn lists(&mut self) -> Result<()> {
        let kinds: Vec<(String, Gvk, String)> = self
            .definitions
            .iter()
            .filter_map(|(id, definition)| {
                let (group, version, _) = definition.gvk.clone()?;
                let list = definition.list_kind.clone()?;
                Some((id.clone(), Gvk(group, version, list.clone()), list))
            })
            .collect();
        let string = self.unnamed(Shape::String)?;
        let list_meta = self.by_id[&format!("{META}ListMeta")];
        for (item_id, gvk, list) in kinds {
            let (package, _) = item_id.rsplit_once('.').context("definition id")?;
            let id = format!("{package}.{list}");
            let items = self.unnamed(Shape::List {
                items: self.by_id[&item_id],
                list_type: ListType::Atomic,
            })?;
            let field = |name: &str, ty, tag, zero| Field {
                name: name.to_owned(),
                ty,
                tag,
                zero,
                required: name == "items",
                ..Field::default()
            };
            let fields = vec![
                field("apiVersion", string, 0, Zero::Omit),
                field("items", items, 2, Zero::Keep),
                field("kind", string, 0, Zero::Omit),
                field("metadata", list_meta, 1, Zero::Keep),
            ];
            let index = self.reserve(&id) as usize;
            self.table.types[index].kinds = vec![gvk];
            self.table.types[index].shape = Shape::Object(Object {
                fields,
                ..Object::default()
            });

            let mut texts = BTreeMap::new();
            for name in ["apiVersion", "kind"] {
                let described = self
                    .descriptions
                    .get(&item_id)
                    .and_then(|(_, all)| all.get(name));
                texts.extend(described.map(|text| (name.to_owned(), text.clone())));
            }
            let message = self.messages.get(&id);
            for field in message.into_iter().flat_map(|message| &message.fields) {
                texts.insert(camel(&field.name), Markers::prose(&field.docs));
            }
            let own = message
                .map(|message| Markers::prose(&message.docs))
                .unwrap_or_default();
            self.descriptions.insert(id, (own, texts));
        }
        Ok(())
    }

    fn message_only(&mut self, id: &str) -> Result<()> {
        let message = self
            .messages
            .remove(id)
            .with_context(|| format!("no message {id}"))?;
        let index = self.reserve(id) as usize;
        let string = self.unnamed(Shape::String)?;
        let mut fields = Vec::new();
        for name in ["apiVersion", "kind"] {
            fields.push(Field {
                name: name.to_owned(),
                ty: string,
                ..Field::default()
            });
        }
        for source in &message.fields {
            let item = match source.wire.as_str() {
                "message" => *self
                    .by_id
                    .get(&source.message)
                    .with_context(|| format!("{id}: no {}", source.message))?,
                "string" => string,
                "bool" => self.unnamed(Shape::Bool)?,
                "int32" => self.unnamed(Shape::Int32)?,
                "int64" => self.unnamed(Shape::Int64)?,
                other => bail!("{id}.{}: wire type {other}", source.name),
            };
            let ty = if source.repeated {
                self.unnamed(Shape::List {
                    items: item,
                    list_type: ListType::Atomic,
                })?
            } else {
                item
            };
            let name = camel(&source.name);
            let zero = self.presence.of(id, &name).unwrap_or({
                match self.table.types[ty as usize].shape {
                    Shape::List { .. } | Shape::String => Zero::Omit,
                    _ => Zero::Pointer,
                }
            });
            fields.push(Field {
                name,
                ty,
                tag: source.tag,
                zero,
                ..Field::default()
            });
        }
        fields.sort_by(|left, right| left.name.cmp(&right.name));
        self.table.types[index].shape = Shape::Object(Object {
            fields,
            ..Object::default()
        });
        if let Some(kind) = id.strip_prefix(META) {
            let gvk = Gvk("meta.k8s.io".to_owned(), "v1".to_owned(), kind.to_owned());
            self.table.types[index].kinds = vec![gvk];
        } else if let Some(kind) = id.strip_prefix("io.k8s.api.core.v1.") {
            self.table.types[index].kinds =
                vec![Gvk(String::new(), "v1".to_owned(), kind.to_owned())];
        }
        Ok(())
    }

    /// The optional scalars and structs, for whoever writes `presence.txt`.
    fn list_optional(&self) {
        let mut lines = BTreeSet::new();
        for ty in &self.table.types {
            let Shape::Object(object) = &ty.shape else {
                continue;
            };
            if ty.name.is_empty() || ty.name.ends_with("List") {
                continue;
            }
            let name = ty.name.rsplit('.').next().unwrap_or_default();
            for field in object.fields.iter().filter(|field| !field.required) {
                let shape = match &self.table.types[field.ty as usize].shape {
                    Shape::Bool => "bool",
                    Shape::Int32 | Shape::Int64 | Shape::Double => "int",
                    Shape::String => "string",
                    Shape::Time | Shape::MicroTime | Shape::Duration => "time",
                    Shape::Object(_) => "struct",
                    Shape::List { .. } | Shape::Map { .. } | Shape::Bytes => continue,
                    _ => "other",
                };
                let kind = format!("{:?}", field.zero);
                lines.insert(format!("{shape} {kind} {name}.{}", field.name));
            }
        }
        for line in lines {
            println!("{line}");
        }
    }
}
