//! `/openapi/v3` and `/openapi/v2`: documents made from the registry, kept until it changes.

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{Arc, OnceLock},
};

use axum::response::Response;
use bytes::Bytes;
use flate2::{Compression as Level, write::GzEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use sha2::{Digest, Sha512};
use skep_schema::openapi::{self, Row, Subresource, Texts};

use crate::{
    aggregation::Table,
    context::{Api, Ctx, now},
    handlers::delete::answers_with_object,
    negotiate,
    registry::{Registry, Resource},
    status::{Result, Status},
    stream::Compression,
};

/// A document, ready to send.
struct Document {
    json: Bytes,
    /// Made when somebody asks for them.
    gzip: OnceLock<Bytes>,
    protobuf: OnceLock<Bytes>,
    /// Upper-case hex of SHA-512 of the JSON, whatever is sent.
    hash: String,
    modified: Timestamp,
}

impl Document {
    fn new(value: &impl Serialize) -> Arc<Self> {
        // Encoding a value to memory cannot fail.
        let json = serde_json::to_vec(value).unwrap_or_default();
        let hash = Sha512::digest(&json)
            .iter()
            .map(|b| format!("{b:02X}"))
            .collect();
        Arc::new(Self {
            json: json.into(),
            gzip: OnceLock::new(),
            protobuf: OnceLock::new(),
            hash,
            modified: now(),
        })
    }

    fn body(&self, form: Form) -> Bytes {
        match form {
            Form::Json => self.json.clone(),
            Form::Gzip => {
                let compressed = || {
                    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
                    let gzip = encoder.write_all(&self.json);
                    gzip.and_then(|()| encoder.finish())
                        .unwrap_or_default()
                        .into()
                };
                self.gzip.get_or_init(compressed).clone()
            }
            Form::Protobuf(version) => {
                let encoded = || {
                    let value = serde_json::from_slice(&self.json).unwrap_or_default();
                    match version {
                        Version::V2 => openapi::v2_protobuf(&value).into(),
                        Version::V3 => openapi::v3_protobuf(&value).into(),
                    }
                };
                self.protobuf.get_or_init(encoded).clone()
            }
        }
    }
}

/// The documents made so far, as long as what they are about stays as it is.
#[derive(Default)]
pub struct Documents {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By path; with the rows that are in it.
    v3: BTreeMap<String, (Vec<Arc<Resource>>, Arc<Document>)>,
    v2: Option<(Generations, Arc<Document>)>,
    /// What rows add to it, by the path of their group-version; those of built-in kinds together, under no path.
    v2_parts: BTreeMap<String, (Vec<Arc<Resource>>, Arc<Part>)>,
}

/// Entries of the document of version 2, encoded, by section and name.
#[derive(Default)]
struct Part([BTreeMap<String, Box<RawValue>>; openapi::V2_SECTIONS.len()]);

impl Part {
    fn new(value: &Value) -> Self {
        let section = |name: &str| {
            let entries = value[name].as_object().into_iter().flatten();
            // A value is always JSON.
            entries
                .filter_map(|(name, entry)| {
                    Some((name.clone(), serde_json::value::to_raw_value(entry).ok()?))
                })
                .collect()
        };
        Self(openapi::V2_SECTIONS.map(section))
    }
}

/// The document of version 2 from its parts. Of entries with one name the first part's counts.
fn joined(parts: &[Arc<Part>]) -> Arc<Document> {
    #[derive(Serialize)]
    struct Whole<'a> {
        #[serde(flatten)]
        head: serde_json::Map<String, Value>,
        #[serde(flatten)]
        sections: BTreeMap<&'a str, BTreeMap<&'a str, &'a RawValue>>,
    }
    let section = |(i, name): (usize, &'static str)| {
        let parts = parts.iter().rev();
        let entries = parts.flat_map(|part| &part.0[i]);
        let entries = entries.map(|(name, entry)| (name.as_str(), entry.as_ref()));
        (name, entries.collect())
    };
    let sections = openapi::V2_SECTIONS.into_iter().enumerate();
    Document::new(&Whole {
        head: openapi::v2_head(),
        sections: sections.map(section).collect(),
    })
}

/// Of the registry and of the APIServices.
type Generations = (u64, u64);

/// A row of the registry as plain data.
fn row(resource: &Resource) -> Row {
    let def = &resource.def;
    let verbs =
        |verbs: &[skep_api::resource::Verb]| verbs.iter().map(|v| v.as_str().to_owned()).collect();
    Row {
        group: def.group.to_string(),
        version: def.version.to_string(),
        kind: def.kind.to_string(),
        plural: def.plural.to_string(),
        namespaced: resource.namespaced(),
        verbs: verbs(&def.verbs),
        subresources: def
            .subresources
            .iter()
            .map(|sub| Subresource {
                name: sub.name.to_string(),
                group: sub.group.to_string(),
                version: sub.version.to_string(),
                kind: sub.kind.to_string(),
                verbs: verbs(&sub.verbs),
            })
            .collect(),
        shows_deleted: answers_with_object(resource),
        schema: resource.openapi.as_deref().cloned(),
    }
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// What is served beside the group-versions.
fn roots(registry: &Registry) -> Vec<String> {
    let built_in = registry.groups().iter().filter(|group| {
        let mut resources = group.versions.iter().flat_map(|v| &v.resources);
        resources.any(|resource| !resource.custom)
    });
    openapi::roots(built_in.map(|group| group.name.as_str()))
}

/// The rows of a group-version, by its path; none for a root. `None`: there is no such document.
fn rows_at(registry: &Registry, path: &str) -> Option<Vec<Arc<Resource>>> {
    for group in registry.groups() {
        for version in &group.versions {
            if path_of(&group.name, &version.version) == path {
                return Some(version.resources.clone());
            }
        }
    }
    let is_root = roots(registry).iter().any(|root| root == path);
    is_root.then(Vec::new)
}

impl Documents {
    fn v3(&self, registry: &Registry, path: &str) -> Option<Arc<Document>> {
        let rows = rows_at(registry, path)?;
        self.known_v3(path, &rows)
            .or_else(|| Some(self.make_v3(&Texts::read(), path, rows)))
    }

    fn known_v3(&self, path: &str, rows: &[Arc<Resource>]) -> Option<Arc<Document>> {
        let state = self.state.lock();
        let (known, document) = state.v3.get(path)?;
        is_same(known, rows).then(|| document.clone())
    }

    fn make_v3(&self, texts: &Texts, path: &str, rows: Vec<Arc<Resource>>) -> Arc<Document> {
        let value = match rows.first() {
            None => openapi::v3_root(texts, path),
            Some(first) => {
                let plain: Vec<Row> = rows.iter().map(|resource| row(resource)).collect();
                openapi::v3(texts, &first.def.group, &first.def.version, &plain)
            }
        };
        let document = Document::new(&value);
        let mut state = self.state.lock();
        state.v3.insert(path.to_owned(), (rows, document.clone()));
        document
    }

    /// All of them by path; what is not served any more is forgotten.
    fn all_v3(&self, registry: &Registry) -> BTreeMap<String, Arc<Document>> {
        let mut paths = roots(registry);
        for group in registry.groups() {
            let versions = group.versions.iter();
            paths.extend(versions.map(|version| path_of(&group.name, &version.version)));
        }
        let mut texts = None;
        let mut all = BTreeMap::new();
        for path in paths {
            let Some(rows) = rows_at(registry, &path) else {
                continue;
            };
            let document = self.known_v3(&path, &rows).unwrap_or_else(|| {
                let texts = texts.get_or_insert_with(Texts::read);
                self.make_v3(texts, &path, rows)
            });
            all.insert(path, document);
        }
        let mut state = self.state.lock();
        state.v3.retain(|path, _| all.contains_key(path));
        all
    }

    fn v2(&self, registry: &Registry, remotes: &Table) -> Arc<Document> {
        let generations = (registry.generation, remotes.generation);
        if let Some((of, document)) = &self.state.lock().v2
            && *of == generations
        {
            return document.clone();
        }
        let mut parts = self.v2_parts(registry);
        let mut theirs = json!({});
        for section in openapi::V2_SECTIONS {
            theirs[section] = json!({});
        }
        remotes.add_openapi_v2(&mut theirs);
        parts.push(Arc::new(Part::new(&theirs)));
        let document = joined(&parts);
        self.state.lock().v2 = Some((generations, document.clone()));
        document
    }

    /// The parts of all rows; only those of rows that changed are made.
    fn v2_parts(&self, registry: &Registry) -> Vec<Arc<Part>> {
        let mut groups: BTreeMap<String, Vec<Arc<Resource>>> = BTreeMap::new();
        for resource in registry.resources() {
            let path = match resource.custom {
                true => path_of(&resource.def.group, &resource.def.version),
                false => String::new(),
            };
            groups.entry(path).or_default().push(resource.clone());
        }
        let mut texts = None;
        let mut parts = Vec::new();
        for (path, rows) in &groups {
            let part = self.known_v2_part(path, rows).unwrap_or_else(|| {
                let texts = texts.get_or_insert_with(Texts::read);
                let plain: Vec<Row> = rows.iter().map(|resource| row(resource)).collect();
                let part = Arc::new(Part::new(&openapi::v2_part(texts, &plain)));
                let mut state = self.state.lock();
                state
                    .v2_parts
                    .insert(path.clone(), (rows.clone(), part.clone()));
                part
            });
            parts.push(part);
        }
        let mut state = self.state.lock();
        state.v2_parts.retain(|path, _| groups.contains_key(path));
        parts
    }

    fn known_v2_part(&self, path: &str, rows: &[Arc<Resource>]) -> Option<Arc<Part>> {
        let state = self.state.lock();
        let (known, part) = state.v2_parts.get(path)?;
        is_same(known, rows).then(|| part.clone())
    }
}

fn is_same(known: &[Arc<Resource>], rows: &[Arc<Resource>]) -> bool {
    let mut both = known.iter().zip(rows);
    known.len() == rows.len() && both.all(|(a, b)| Arc::ptr_eq(a, b))
}

/// `None`: not a path of ours.
pub async fn handle(ctx: &Ctx) -> Option<Result<Response>> {
    let path = ctx.info.path.trim_end_matches('/');
    let wanted = path.strip_prefix("/openapi/")?.to_owned();
    let version = match wanted.as_str() {
        "v2" => Version::V2,
        _ => Version::V3,
    };
    let Some(form) = Form::accepted(&ctx.headers, version) else {
        return Some(Ok(not_acceptable()));
    };
    let (api, registry) = (ctx.api.clone(), ctx.registry.clone());
    // Making a document takes a while.
    let made = tokio::task::spawn_blocking(move || {
        let document = match wanted.as_str() {
            "v2" => api.documents.v2(&registry, &api.aggregation.table()),
            "v3" => index(&api, &registry),
            wanted => api.documents.v3(&registry, wanted.strip_prefix("v3/")?)?,
        };
        let body = document.body(form);
        Some((document, body))
    });
    let (document, body) = match made.await {
        Ok(made) => made?,
        Err(error) => return Some(Err(Status::internal("rendering OpenAPI", &error))),
    };
    let given = match path {
        "/openapi/v2" | "/openapi/v3" => "",
        _ => ctx.query.get("hash"),
    };
    if !given.is_empty() && given != document.hash {
        return Some(Ok(redirect(path, &document.hash)));
    }
    Some(Ok(send(ctx, &document, body, form, !given.is_empty())))
}

fn index(api: &Api, registry: &Registry) -> Arc<Document> {
    let mut paths = serde_json::Map::new();
    for (path, document) in api.documents.all_v3(registry) {
        let url = format!("/openapi/v3/{path}?hash={}", document.hash);
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    api.aggregation.table().add_openapi_v3(&mut paths);
    Document::new(&json!({"paths": paths}))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V2,
    V3,
}

/// What a document is sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Gzip,
    Protobuf(Version),
}

impl Form {
    /// The one that the client likes best. `None`: it wants something else.
    fn accepted(headers: &HeaderMap, version: Version) -> Option<Self> {
        // The older name has an `@`, which may not stand in a media type.
        let names = match version {
            Version::V2 => [
                "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
                "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
            ],
            Version::V3 => [
                "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
                "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
            ],
        };
        let json = match Compression::wanted(headers) {
            Compression::Gzip => Self::Gzip,
            _ => Self::Json,
        };
        let clauses = negotiate::clauses(headers);
        clauses.iter().find_map(|clause| match clause.media {
            "application/json" | "application/*" | "*/*" | "*/json" => Some(json),
            media if names.contains(&media) => Some(Self::Protobuf(version)),
            _ => None,
        })
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Json | Self::Gzip => "application/json",
            Self::Protobuf(Version::V2) => {
                "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
            }
            Self::Protobuf(Version::V3) => {
                "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
            }
        }
    }
}

fn not_acceptable() -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
    let vary = HeaderValue::from_static("Accept");
    response.headers_mut().insert(header::VARY, vary);
    response
}

/// A client with an old hash is sent to the present document.
fn redirect(path: &str, hash: &str) -> Response {
    let location = format!("{path}?hash={hash}");
    let body = format!("<a href=\"{location}\">Moved Permanently</a>.\n\n");
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let headers = response.headers_mut();
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, html);
    if let Ok(location) = HeaderValue::from_str(&location) {
        headers.insert(header::LOCATION, location);
    }
    response
}

/// RFC 9110 §5.6.7
fn http_date(at: Timestamp) -> Option<HeaderValue> {
    let text = at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    HeaderValue::from_str(&text).ok()
}

const YEAR: SignedDuration = SignedDuration::from_hours(365 * 24);

fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let known = headers.get(header::IF_NONE_MATCH);
    let known = known.and_then(|known| known.to_str().ok());
    let weak = |tag: &str| tag.trim().trim_start_matches("W/") == etag;
    known.is_some_and(|known| known.trim() == "*" || known.split(',').any(weak))
}

fn send(ctx: &Ctx, document: &Document, body: Bytes, form: Form, immutable: bool) -> Response {
    let etag = format!("\"{}\"", document.hash);
    let mut response = Response::default();
    let not_modified = is_known(&ctx.headers, &etag);
    if not_modified {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        *response.body_mut() = body.into();
        let content_type = HeaderValue::from_static(form.content_type());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, content_type);
        if form == Form::Gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
    }
    let headers = response.headers_mut();
    headers.insert(
        header::VARY,
        HeaderValue::from_static("Accept-Encoding, Accept"),
    );
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    if let Some(modified) = http_date(document.modified) {
        headers.insert(header::LAST_MODIFIED, modified);
    }
    let cache_control = if immutable {
        // What has this hash never changes.
        if let Some(expires) = now().checked_add(YEAR).ok().and_then(http_date) {
            headers.insert(header::EXPIRES, expires);
        }
        "public, immutable"
    } else {
        "no-cache, private"
    };
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static(cache_control),
    );
    response
}
