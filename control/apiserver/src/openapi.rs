//! `/openapi/v3` and `/openapi/v2`: documents made from the registry, kept until it changes.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use axum::response::Response;
use bytes::Bytes;
use flate2::{Compression as Level, write::GzEncoder};
use http::{HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha512};
use skep_schema::openapi::{self, Row, Subresource};

use crate::{
    aggregation::Table,
    context::Ctx,
    registry::{Registry, Resource},
    respond::json_response,
    status::Result,
    stream::Compression,
};

/// A document, ready to send.
#[derive(Clone)]
struct Document {
    json: Bytes,
    gzip: Bytes,
    /// Upper-case hex of SHA-512.
    hash: Arc<str>,
}

impl Document {
    fn new(value: &Value) -> Self {
        // Encoding a value to memory cannot fail.
        let json = serde_json::to_vec(value).unwrap_or_default();
        let hash: String = Sha512::digest(&json)
            .iter()
            .map(|b| format!("{b:02X}"))
            .collect();
        let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
        let gzip = encoder.write_all(&json).and_then(|()| encoder.finish());
        Self {
            json: json.into(),
            gzip: gzip.unwrap_or_default().into(),
            hash: hash.into(),
        }
    }
}

/// Documents of one registry generation, made on first use.
#[derive(Default)]
pub struct Documents {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    generation: Option<u64>,
    v3: BTreeMap<String, Document>,
    /// With the generation of the APIServices in it.
    v2: Option<(u64, Document)>,
}

/// The rows of a registry as plain data.
fn rows(registry: &Registry) -> Vec<Row> {
    registry.resources().map(|resource| row(resource)).collect()
}

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

impl Documents {
    fn v3(&self, registry: &Registry, path: &str) -> Option<Document> {
        if let Some(found) = self.current(registry, |state| state.v3.get(path).cloned()) {
            return Some(found);
        }
        let groups = registry.groups().iter();
        let (group, version) = groups
            .flat_map(|g| {
                g.versions
                    .iter()
                    .map(|v| (g.name.as_str(), v.version.as_str()))
            })
            .find(|(group, version)| path_of(group, version) == path)?;
        let own: Vec<Row> = registry
            .resources()
            .filter(|r| r.def.group == group && r.def.version == version)
            .map(|r| row(r))
            .collect();
        let document = Document::new(&openapi::v3(group, version, &own));
        let mut state = self.state.lock();
        state.refresh(registry);
        state.v3.insert(path.to_owned(), document.clone());
        Some(document)
    }

    fn v2(&self, registry: &Registry, remotes: &Table) -> Document {
        let current = |state: &State| {
            let v2 = state.v2.as_ref()?;
            (v2.0 == remotes.generation).then(|| v2.1.clone())
        };
        if let Some(found) = self.current(registry, current) {
            return found;
        }
        let mut value = openapi::v2(&rows(registry));
        remotes.add_openapi_v2(&mut value);
        let document = Document::new(&value);
        let mut state = self.state.lock();
        state.refresh(registry);
        state.v2 = Some((remotes.generation, document.clone()));
        document
    }

    fn current<T>(&self, registry: &Registry, get: impl Fn(&State) -> Option<T>) -> Option<T> {
        let state = self.state.lock();
        (state.generation == Some(registry.generation))
            .then(|| get(&state))
            .flatten()
    }
}

impl State {
    fn refresh(&mut self, registry: &Registry) {
        if self.generation != Some(registry.generation) {
            *self = Self {
                generation: Some(registry.generation),
                ..Self::default()
            };
        }
    }
}

/// `None`: not a path of ours.
pub async fn handle(ctx: &Ctx) -> Option<Result<Response>> {
    let path = ctx.info.path.trim_end_matches('/');
    match path {
        "/openapi/v3" => Some(Ok(index(ctx).await)),
        "/openapi/v2" if wants_protobuf_v2(&ctx.headers) => Some(Ok(protobuf_v2())),
        "/openapi/v2" => {
            let (api, registry) = (ctx.api.clone(), ctx.registry.clone());
            let document = tokio::task::spawn_blocking(move || {
                api.documents.v2(&registry, &api.aggregation.table())
            })
            .await;
            Some(match document {
                Ok(document) => Ok(send(ctx, &document, false)),
                Err(error) => Err(crate::status::Status::internal("rendering OpenAPI", &error)),
            })
        }
        _ => {
            let wanted = path.strip_prefix("/openapi/v3/")?.to_owned();
            let (api, registry) = (ctx.api.clone(), ctx.registry.clone());
            let document =
                tokio::task::spawn_blocking(move || api.documents.v3(&registry, &wanted)).await;
            let document = document.ok()??;
            let given = ctx.query.get("hash");
            if !given.is_empty() && given != document.hash.as_ref() {
                return Some(Ok(redirect(path, &document.hash)));
            }
            Some(Ok(send(ctx, &document, !given.is_empty())))
        }
    }
}

async fn index(ctx: &Ctx) -> Response {
    let (api, registry) = (ctx.api.clone(), ctx.registry.clone());
    let paths = tokio::task::spawn_blocking(move || {
        let mut paths = serde_json::Map::new();
        for group in registry.groups() {
            for version in &group.versions {
                let path = path_of(&group.name, &version.version);
                if let Some(document) = api.documents.v3(&registry, &path) {
                    let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                    paths.insert(path, json!({"serverRelativeURL": url}));
                }
            }
        }
        api.aggregation.table().add_openapi_v3(&mut paths);
        paths
    });
    let paths = paths.await.unwrap_or_default();
    json_response(StatusCode::OK, &json!({"paths": paths}))
}

/// What kubectl asks v2 for, in protobuf only, when v3 does not know a kind.
const PROTOBUF_V2: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

fn wants_protobuf_v2(headers: &http::HeaderMap) -> bool {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.starts_with(PROTOBUF_V2))
}

/// A document that describes no kind, as gnostic's `openapi.v2.Document`: the client finds that it does not know the kind
/// here either, and goes on to say so. The descriptions are in v3, and in v2 as JSON.
fn protobuf_v2() -> Response {
    /// swagger = "2.0"; info { title = "skep", version = "v1" }; paths {}.
    const EMPTY: &[u8] = b"\x0a\x032.0\x12\x0a\x0a\x04skep\x12\x02v1\x42\x00";
    let mut response = Response::new(EMPTY.into());
    let headers = response.headers_mut();
    // As upstream answers: `@` may not stand in a media type.
    const ANSWERED: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(ANSWERED));
    response
}

/// A client with an old hash is sent to the present document.
fn redirect(path: &str, hash: &str) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("{path}?hash={hash}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn send(ctx: &Ctx, document: &Document, immutable: bool) -> Response {
    let etag = format!("\"{}\"", document.hash);
    let known = ctx.headers.get(header::IF_NONE_MATCH);
    let not_modified = known.is_some_and(|known| known.as_bytes() == etag.as_bytes());
    let gzip = Compression::wanted(&ctx.headers) == Compression::Gzip;
    let body = match (not_modified, gzip) {
        (true, _) => Bytes::new(),
        (false, true) => document.gzip.clone(),
        (false, false) => document.json.clone(),
    };
    let mut response = Response::new(body.into());
    if not_modified {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if gzip && !not_modified {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.insert(
        header::VARY,
        HeaderValue::from_static("Accept-Encoding, Accept"),
    );
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    let cache_control = if immutable {
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
