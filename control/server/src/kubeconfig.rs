//! The kubeconfig files that `skep-control` writes.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::pki::Pair;

pub enum Credentials<'a> {
    Certificate(&'a Pair),
    Token(&'a str),
}

/// A kubeconfig with one cluster, one user and one context. JSON, which every YAML reader reads.
pub fn render(
    name: &str,
    server: &str,
    ca_pem: &str,
    user: &str,
    credentials: &Credentials<'_>,
) -> String {
    let encode = |text: &str| STANDARD.encode(text);
    let credentials: Value = match credentials {
        Credentials::Certificate(pair) => json!({
            "client-certificate-data": encode(&pair.certificate),
            "client-key-data": encode(&pair.key),
        }),
        Credentials::Token(token) => json!({"token": token}),
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {
            "server": server,
            "certificate-authority-data": encode(ca_pem),
        }}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        "current-context": name,
    });
    format!("{config:#}\n")
}
