//! Reads the sources of two published crates: k8s-openapi (its schemars implementations spell out the OpenAPI
//! definitions) and k8s-pb (prost structs: protobuf tags, and the `+listType=…` markers of the documentation).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

pub(crate) const K8S_OPENAPI: &str = "0.29.0";
pub(crate) const K8S_PB: &str = "0.9.0";

/// Where cargo keeps the unpacked sources of the two crates. They are fetched through a manifest of their own, so that
/// neither becomes a dependency of the workspace.
pub(crate) fn locate(scratch: &Path) -> Result<(PathBuf, PathBuf)> {
    fs::create_dir_all(scratch.join("src"))?;
    fs::write(scratch.join("src/lib.rs"), "")?;
    fs::write(
        scratch.join("Cargo.toml"),
        format!(
            "[package]\nname = \"codegen-sources\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
             [dependencies]\nk8s-openapi = \"={K8S_OPENAPI}\"\nk8s-pb = \"={K8S_PB}\"\n"
        ),
    )?;
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(scratch.join("Cargo.toml"))
        .output()
        .context("run cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let find = |name: &str| -> Result<PathBuf> {
        let package = metadata["packages"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|package| package["name"] == name)
            .with_context(|| format!("{name} is not in cargo metadata"))?;
        let manifest = Path::new(package["manifest_path"].as_str().context("manifest_path")?);
        Ok(manifest
            .parent()
            .context("manifest_path has no folder")?
            .join("src"))
    };
    Ok((find("k8s-openapi")?, find("k8s-pb")?))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// One `impl JsonSchema`, as OpenAPI.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) schema: Value,
    /// (group, version, kind) where the type implements `Resource`.
    pub(crate) gvk: Option<(String, String, String)>,
    pub(crate) list_kind: Option<String>,
}

/// Definition id → definition.
pub(crate) fn definitions(k8s_openapi: &Path) -> Result<BTreeMap<String, Definition>> {
    let root = k8s_openapi.join("v1_36");
    let mut files = Vec::new();
    rust_files(&root, &mut files)?;
    let mut texts = Vec::new();
    let mut ids = BTreeMap::new(); // Rust path → definition id
    for file in files {
        let text = fs::read_to_string(&file)?;
        let Some((_, rest)) = text.split_once("JsonSchema for ") else {
            continue;
        };
        let type_name = rest
            .split([' ', '<'])
            .next()
            .context("type name")?
            .to_owned();
        if type_name == "List" {
            continue; // generic; list kinds are made from LIST_KIND
        }
        let id = rest
            .split_once("fn schema_name()")
            .and_then(|(_, rest)| rest.split('"').nth(1))
            .with_context(|| format!("{}: no schema_name", file.display()))?
            .to_owned();
        let module: Vec<String> = file
            .parent()
            .and_then(|folder| folder.strip_prefix(&root).ok())
            .context("module")?
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect();
        ids.insert(
            format!("crate::{}::{type_name}", module.join("::")),
            id.clone(),
        );
        texts.push((file, text, id));
    }
    let mut found = BTreeMap::new();
    for (file, text, id) in texts {
        let constant = |name: &str| -> Option<String> {
            let (_, rest) = text.split_once(&format!("const {name}: &'static str = \""))?;
            Some(rest.split('"').next()?.to_owned())
        };
        let body = text
            .split_once("json_schema!(")
            .map(|(_, rest)| rest)
            .with_context(|| format!("{}: no json_schema!", file.display()))?;
        let mut parser = Parser {
            text: body.as_bytes(),
            at: 0,
            ids: &ids,
        };
        let schema = parser
            .value()
            .with_context(|| format!("parse {}", file.display()))?;
        let gvk = match (constant("GROUP"), constant("VERSION"), constant("KIND")) {
            (Some(group), Some(version), Some(kind)) => Some((group, version, kind)),
            _ => None,
        };
        found.insert(
            id,
            Definition {
                schema,
                gvk,
                list_kind: constant("LIST_KIND"),
            },
        );
    }
    ensure!(
        found.len() > 600,
        "only {} definitions found in k8s-openapi",
        found.len()
    );
    Ok(found)
}

/// The token tree inside `json_schema!(…)`: JSON with trailing commas and Rust expressions for references.
struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    ids: &'a BTreeMap<String, String>,
}

impl Parser<'_> {
    fn space(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn peek(&mut self) -> u8 {
        self.space();
        self.text.get(self.at).copied().unwrap_or(0)
    }

    fn eat(&mut self, token: &str) -> bool {
        self.space();
        let found = self.text[self.at..].starts_with(token.as_bytes());
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        if self.eat(token) {
            return Ok(());
        }
        let rest = &self.text[self.at..self.text.len().min(self.at + 60)];
        bail!("expected {token:?} at {:?}", String::from_utf8_lossy(rest))
    }

    fn value(&mut self) -> Result<Value> {
        match self.peek() {
            b'{' => {
                self.at += 1;
                let mut object = Map::new();
                while self.peek() != b'}' {
                    let key = self.string()?;
                    self.expect(":")?;
                    object.insert(key, self.value()?);
                    self.eat(",");
                }
                self.at += 1;
                Ok(Value::Object(object))
            }
            b'[' => {
                self.at += 1;
                let mut list = Vec::new();
                while self.peek() != b']' {
                    list.push(self.value()?);
                    self.eat(",");
                }
                self.at += 1;
                Ok(Value::Array(list))
            }
            b'(' => {
                self.at += 1;
                let value = if self.eat("{") {
                    self.expect("let mut schema_obj =")?;
                    let mut reference = self.reference()?;
                    self.expect(";")?;
                    self.expect("schema_obj.ensure_object().insert(\"description\".into(),")?;
                    reference["description"] = Value::String(self.string()?);
                    self.expect(".into());")?;
                    self.expect("schema_obj")?;
                    self.expect("}")?;
                    reference
                } else {
                    self.reference()?
                };
                self.expect(")")?;
                Ok(value)
            }
            b'"' => Ok(Value::String(self.string()?)),
            b'_' => self.reference(),
            _ if self.eat("true") => Ok(Value::Bool(true)),
            _ if self.eat("false") => Ok(Value::Bool(false)),
            _ => bail!("unexpected token at byte {}", self.at),
        }
    }

    fn reference(&mut self) -> Result<Value> {
        self.expect("__gen.subschema_for::<")?;
        let rest = &self.text[self.at..];
        let length = rest
            .windows(3)
            .position(|window| window == b">()")
            .context("unclosed <")?;
        let path = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 3;
        let id = self
            .ids
            .get(&path)
            .with_context(|| format!("no definition for {path}"))?;
        Ok(json!({ "$ref": id }))
    }

    fn string(&mut self) -> Result<String> {
        self.expect("\"")?;
        let mut bytes = Vec::new();
        loop {
            let byte = *self.text.get(self.at).context("unclosed string")?;
            self.at += 1;
            match byte {
                b'"' => return Ok(String::from_utf8(bytes)?),
                b'\\' => {
                    let escape = *self.text.get(self.at).context("unclosed string")?;
                    self.at += 1;
                    match escape {
                        b'n' => bytes.push(b'\n'),
                        b't' => bytes.push(b'\t'),
                        b'r' => bytes.push(b'\r'),
                        b'0' => bytes.push(0),
                        b'u' => {
                            self.expect("{")?;
                            let mut code = 0;
                            while self.peek() != b'}' {
                                let digit = char::from(self.text[self.at]).to_digit(16);
                                code = code * 16 + digit.context("\\u{…}")?;
                                self.at += 1;
                            }
                            self.at += 1;
                            let character = char::from_u32(code).context("\\u{…}")?;
                            bytes.extend_from_slice(character.to_string().as_bytes());
                        }
                        other => bytes.push(other),
                    }
                }
                _ => bytes.push(byte),
            }
        }
    }
}

/// A prost struct.
#[derive(Debug, Default)]
pub(crate) struct Message {
    pub(crate) docs: Vec<String>,
    pub(crate) fields: Vec<MessageField>,
}

#[derive(Debug)]
pub(crate) struct MessageField {
    /// Rust's name, without `r#`.
    pub(crate) name: String,
    pub(crate) docs: Vec<String>,
    pub(crate) tag: u32,
    /// What stands first in `#[prost(…)]`: `message`, `string`, `int32`, `btree_map`, …
    pub(crate) wire: String,
    pub(crate) repeated: bool,
    /// Definition id of the message (or of the values of a map); empty for scalars.
    pub(crate) message: String,
}

/// Definition id → message.
pub(crate) fn messages(k8s_pb: &Path) -> Result<BTreeMap<String, Message>> {
    let mut files = Vec::new();
    rust_files(k8s_pb, &mut files)?;
    let mut found = BTreeMap::new();
    for file in files {
        let module: Vec<String> = file
            .parent()
            .and_then(|folder| folder.strip_prefix(k8s_pb).ok())
            .context("module")?
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect();
        let text = fs::read_to_string(&file)?;
        parse_messages(&text, &module, &mut found)
            .with_context(|| format!("parse {}", file.display()))?;
    }
    ensure!(
        found.len() > 900,
        "only {} messages found in k8s-pb",
        found.len()
    );
    Ok(found)
}

pub(crate) fn definition_id(path: &[String]) -> String {
    let mut parts = vec!["io".to_owned(), "k8s".to_owned()];
    parts.extend(path.iter().map(|part| match part.as_str() {
        "apiextensions_apiserver" => "apiextensions-apiserver".to_owned(),
        "kube_aggregator" => "kube-aggregator".to_owned(),
        other => other.to_owned(),
    }));
    parts.join(".")
}

fn parse_messages(
    text: &str,
    module: &[String],
    found: &mut BTreeMap<String, Message>,
) -> Result<()> {
    let mut docs: Vec<String> = Vec::new();
    let mut prost = String::new();
    let mut is_message = false;
    let mut current: Option<(String, Message)> = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if let Some(doc) = line.strip_prefix("///") {
            docs.push(doc.strip_prefix(' ').unwrap_or(doc).to_owned());
        } else if line.starts_with("#[derive(") {
            is_message = line.contains("::prost::Message");
        } else if let Some(attribute) = line.strip_prefix("#[prost(") {
            prost = attribute.trim_end_matches(")]").to_owned();
        } else if let Some(name) = line
            .strip_prefix("pub struct ")
            .filter(|_| is_message && current.is_none())
        {
            let name = name.split([' ', '{']).next().unwrap_or_default();
            let message = Message {
                docs: std::mem::take(&mut docs),
                fields: Vec::new(),
            };
            is_message = false;
            let mut path = module.to_vec();
            path.push(name.to_owned());
            if line.ends_with("{}") {
                found.insert(definition_id(&path), message);
            } else {
                current = Some((definition_id(&path), message));
            }
        } else if line == "}" {
            if let Some((id, message)) = current.take() {
                found.insert(id, message);
            }
            docs.clear();
        } else if line.starts_with("pub ") && current.is_some() && !prost.is_empty() {
            let mut declaration = line.to_owned();
            while !declaration.ends_with(',') {
                declaration.push_str(lines.next().context("unclosed field")?.trim());
            }
            let (name, ty) = declaration
                .trim_start_matches("pub ")
                .trim_end_matches(',')
                .split_once(':')
                .context("field")?;
            let field = message_field(name, ty, &prost, std::mem::take(&mut docs), module)?;
            if let Some((_, message)) = &mut current {
                message.fields.push(field);
            }
            prost.clear();
        } else if current.is_none() {
            docs.clear();
        }
    }
    Ok(())
}

fn message_field(
    name: &str,
    ty: &str,
    prost: &str,
    docs: Vec<String>,
    module: &[String],
) -> Result<MessageField> {
    let (_, tag) = prost.split_once("tag").context("tag")?;
    let tag = tag.split('"').nth(1).context("tag")?.parse()?;
    let wire = prost
        .split([',', ' ', '='])
        .next()
        .unwrap_or_default()
        .to_owned();
    let mut message_path = None;
    if wire == "btree_map" {
        let kinds = prost.split('"').nth(1).context("btree_map")?;
        if kinds.ends_with("message") {
            message_path = ty.rsplit_once(',').map(|(first, last)| {
                // A trailing comma inside `<…,>` leaves nothing after it.
                if last.trim() == ">" {
                    first.rsplit_once(',').map_or(first, |(_, value)| value)
                } else {
                    last
                }
            });
        }
    } else if wire == "message" {
        let inner = ty.rsplit_once('<').map_or(ty, |(_, inner)| inner);
        message_path = Some(inner);
    }
    let message = match message_path {
        Some(path) => {
            let path = path.trim().trim_end_matches(['>', ',', ' ']);
            let mut base = module.to_vec();
            let mut rest = path;
            while let Some(tail) = rest.strip_prefix("super::") {
                base.pop();
                rest = tail;
            }
            base.extend(rest.split("::").map(str::to_owned));
            definition_id(&base)
        }
        None => String::new(),
    };
    Ok(MessageField {
        name: name.trim().trim_start_matches("r#").to_owned(),
        docs,
        tag,
        repeated: prost.contains("repeated"),
        wire,
        message,
    })
}
