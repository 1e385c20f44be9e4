//! `/openapi/v2` and `/openapi/v3`: what is in the documents, and how they are sent.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use http::{Request, header};
use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster};

async fn get(cluster: &Cluster, path: &str, headers: &[(header::HeaderName, &str)]) -> Answer {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    cluster
        .call(request.body(Body::empty()).expect("a request"))
        .await
}

fn text<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let value = answer.headers.get(name);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[tokio::test]
async fn documents_are_cached_by_their_hash() {
    let cluster = Cluster::start().await;
    let index = get(&cluster, "/openapi/v3", &[]).await;
    let known = text(&index, "etag").to_owned();
    let again = get(&cluster, "/openapi/v3", &[(header::IF_NONE_MATCH, &known)]).await;
    assert_eq!((again.code, again.bytes.len()), (304, 0));
    let paths = index.expect(200)["paths"].clone();
    for root in ["api", "apis", "apis/apps", "version"] {
        assert!(paths[root].is_object(), "{root}");
    }
    let url = paths["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .expect("a URL");
    let hash = url.split_once("hash=").expect("a hash").1;

    let document = get(&cluster, url, &[]).await;
    assert_eq!(document.code, 200);
    assert_eq!(text(&document, "etag"), format!("\"{hash}\""));
    assert_eq!(text(&document, "cache-control"), "public, immutable");
    assert!(text(&document, "expires").ends_with("GMT"));
    let known = format!("\"other\", W/\"{hash}\"");
    let again = get(&cluster, url, &[(header::IF_NONE_MATCH, &known)]).await;
    assert_eq!((again.code, again.bytes.len()), (304, 0));
    let other = get(&cluster, url, &[(header::IF_NONE_MATCH, "\"other\"")]).await;
    assert_eq!(other.code, 200);

    let old = get(&cluster, "/openapi/v3/apis/apps/v1?hash=0", &[]).await;
    assert_eq!((old.code, text(&old, "location")), (301, url));
    let plain = get(&cluster, "/openapi/v3/apis/apps/v1", &[]).await;
    assert_eq!(text(&plain, "cache-control"), "no-cache, private");
    assert_eq!(plain.bytes, document.bytes);
}

#[tokio::test]
async fn documents_come_as_protobuf_too() {
    let cluster = Cluster::start().await;
    for (path, version) in [("/openapi/v2", "v2"), ("/openapi/v3/apis/apps/v1", "v3")] {
        let name = format!("application/com.github.proto-openapi.spec.{version}");
        let json = get(&cluster, path, &[(header::ACCEPT, "application/json")]).await;
        for accept in [
            format!("{name}@v1.0+protobuf"),
            format!("{name}.v1.0+protobuf, application/json;q=0.5"),
        ] {
            let answer = get(&cluster, path, &[(header::ACCEPT, &accept)]).await;
            assert_eq!(answer.code, 200);
            assert_eq!(
                text(&answer, "content-type"),
                format!("{name}.v1.0+protobuf")
            );
            assert_eq!(text(&answer, "etag"), text(&json, "etag"));
            // The first field: the version of OpenAPI.
            assert_eq!(answer.bytes[0], 0x0a);
            let kind = b"io.k8s.api.apps.v1.Deployment";
            assert!(answer.bytes.windows(kind.len()).any(|at| at == kind));
        }
        let refused = get(&cluster, path, &[(header::ACCEPT, "text/html")]).await;
        assert_eq!(refused.code, 406);
    }
}

/// An operation without what the two documents may word differently.
fn shape(document: &Value, operation: &Value) -> Value {
    let mut shape = operation.clone();
    let map = shape.as_object_mut().expect("an operation");
    map.remove("description");
    // Upstream's document was written with an encoding and a parameter that are off by default.
    for media in ["produces", "consumes"] {
        if let Some(media) = map.get_mut(media).and_then(Value::as_array_mut) {
            media.retain(|media| !media.as_str().is_some_and(|text| text.contains("cbor")));
        }
    }
    let parameters = map.remove("parameters").unwrap_or_default();
    map.insert("parameters".into(), parameters_of(document, &parameters));
    shape
}

fn parameters_of(document: &Value, list: &Value) -> Value {
    let list = list.as_array().into_iter().flatten();
    let list = list.map(|parameter| {
        let mut parameter = match parameter["$ref"].as_str() {
            Some(name) => document
                .pointer(name.trim_start_matches('#'))
                .unwrap_or_else(|| panic!("{name} is missing"))
                .clone(),
            None => parameter.clone(),
        };
        if let Some(map) = parameter.as_object_mut() {
            map.remove("description");
        }
        parameter
    });
    list.filter(|parameter| parameter["name"] != "shardSelector")
        .collect()
}

/// With the reference document beside the checkout, every path and operation must agree with it, but for descriptions.
#[tokio::test]
async fn paths_agree_with_upstream_s_document() {
    let found = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .find_map(|folder| std::fs::read(folder.join("shared/kubernetes/swagger.json")).ok());
    let Some(reference) = found else {
        eprintln!("skipped: no shared/kubernetes/swagger.json beside the checkout");
        return;
    };
    let theirs: Value = serde_json::from_slice(&reference).expect("the reference parses");
    let cluster = Cluster::start().await;
    let ours = cluster.get("/openapi/v2").await.expect(200);
    let flat = |document: &Value| -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        for (path, item) in document["paths"].as_object().into_iter().flatten() {
            // Not served by default: alpha and beta versions, and the logs of the machine.
            if path.contains("/v1alpha") || path.contains("/v1beta") || path.starts_with("/logs/") {
                continue;
            }
            if path.contains("/v2alpha") || path.contains("/v2beta") {
                continue;
            }
            // Groups without a stable version.
            if path.contains("/internal.apiserver.") || path.contains("/storagemigration.") {
                continue;
            }
            for (method, operation) in item.as_object().into_iter().flatten() {
                let shape = match method.as_str() {
                    "parameters" => parameters_of(document, operation),
                    _ => shape(document, operation),
                };
                found.insert(format!("{method} {path}"), shape);
            }
        }
        found
    };
    let (ours_flat, theirs_flat) = (flat(&ours), flat(&theirs));
    let names: BTreeSet<&String> = ours_flat.keys().chain(theirs_flat.keys()).collect();
    let mut different = Vec::new();
    for name in names {
        let (own, other) = (ours_flat.get(name), theirs_flat.get(name));
        if own != other {
            let show = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
            different.push(format!("{name}\n  {}\n  {}", show(own), show(other)));
        }
    }
    different.truncate(40);
    assert!(different.is_empty(), "{}", different.join("\n"));
    let shared = ours["parameters"].as_object().expect("parameters");
    assert!(shared.keys().any(|name| name.starts_with("limit-")));
}

#[tokio::test]
async fn definitions_come_into_both_documents() {
    let cluster = Cluster::start().await;
    // The documents of the others are there already, and stay.
    cluster.get("/openapi/v3").await.expect(200);
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object"}}});
    let definition = crate::definitions::definition("widgets", "Widget", schema);
    cluster
        .post(crate::definitions::DEFINITIONS, definition)
        .await
        .expect(201);
    crate::definitions::established(&cluster, "widgets.example.com").await;
    let path = "/apis/example.com/v1/namespaces/{namespace}/widgets";
    crate::definitions::until(&cluster, "/openapi/v3", |_, body| {
        body["paths"]["apis/example.com/v1"].is_object()
    })
    .await;
    let pointer = format!("/paths/{}", path.replace('/', "~1"));
    crate::definitions::until(&cluster, "/openapi/v2", |_, body| {
        body.pointer(&pointer).is_some_and(Value::is_object)
    })
    .await;
}

#[tokio::test]
async fn a_definition_is_published_within_a_second() {
    let cluster = Cluster::start().await;
    // The documents of the others are there already, and stay.
    cluster.get("/openapi/v2").await.expect(200);
    cluster.get("/openapi/v3").await.expect(200);
    // A busy machine may hold one of them up, but not all.
    let mut fastest = std::time::Duration::MAX;
    for number in 0..5 {
        let plural = format!("widgets{number}");
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object"}}});
        let made = crate::definitions::definition(&plural, &format!("Widget{number}"), schema);
        let begun = std::time::Instant::now();
        cluster
            .post(crate::definitions::DEFINITIONS, made)
            .await
            .expect(201);
        let named = |list: &Value| {
            let mut resources = list["resources"].as_array().into_iter().flatten();
            resources.any(|resource| resource["name"] == plural.as_str())
        };
        let path = "/apis/example.com/v1";
        crate::definitions::until(&cluster, path, |_, list| named(list)).await;
        let below = format!("/apis/example.com/v1/{plural}");
        for document in ["/openapi/v3/apis/example.com/v1", "/openapi/v2"] {
            crate::definitions::until(&cluster, document, |_, document| {
                document["paths"][&below].is_object()
            })
            .await;
        }
        fastest = fastest.min(begun.elapsed());
    }
    assert!(fastest.as_secs() < 1, "{fastest:?}");
}

/// The same entries, whichever part of the document was made first.
#[tokio::test]
async fn parts_make_the_document_that_one_server_would_make_at_once() {
    let schema = || json!({"type": "object", "properties": {"spec": {"type": "object"}}});
    let documents = async |ask_before: bool| {
        let cluster = Cluster::start().await;
        for (plural, kind) in [("widgets", "Widget"), ("gadgets", "Gadget")] {
            if ask_before {
                cluster.get("/openapi/v2").await.expect(200);
            }
            let made = crate::definitions::definition(plural, kind, schema());
            cluster
                .post(crate::definitions::DEFINITIONS, made)
                .await
                .expect(201);
            crate::definitions::established(&cluster, &format!("{plural}.example.com")).await;
        }
        let served = |_: u16, document: &Value| {
            let paths = &document["paths"];
            paths["/apis/example.com/v1/widgets"].is_object()
                && paths["/apis/example.com/v1/gadgets"].is_object()
        };
        crate::definitions::until(&cluster, "/openapi/v2", served).await
    };
    let (grown, whole) = (documents(true).await, documents(false).await);
    assert_eq!(grown, whole);
    let definitions = &whole["definitions"];
    for name in ["com.example.v1.Widget", "com.example.v1.GadgetList"] {
        assert!(definitions[name].is_object(), "{name}");
    }
    assert!(definitions["io.k8s.api.apps.v1.Deployment"].is_object());
    assert_eq!(whole["swagger"], "2.0");
}
