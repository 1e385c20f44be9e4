//! Files of a volume that would stand in each other's way: warned of, not refused.

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, PodSpec, Volume, VolumeProjection,
};

use crate::{
    field::quoted,
    strategy::Warnings,
    zero::{List, Text},
};

pub fn overlap_warnings(spec: &PodSpec, warnings: &mut Warnings) {
    for volume in spec.volumes.items() {
        volume_warnings(volume, warnings);
    }
}

fn volume_warnings(volume: &Volume, warnings: &mut Warnings) {
    let name = quoted(&volume.name);
    let mut of_one_source = |what: String, paths: Vec<&str>| {
        for (path, other) in overlaps(&paths, |path| *path) {
            warnings.push(format!(
                "volume {name} ({what}): overlapping paths: {} with {}",
                quoted(path),
                quoted(other)
            ));
        }
    };
    if let Some(source) = &volume.config_map {
        let what = format!("ConfigMap {}", quoted(&source.name));
        of_one_source(what, key_paths(source.items.items()));
    }
    if let Some(source) = &volume.secret {
        let what = format!("Secret {}", quoted(source.secret_name.text()));
        of_one_source(what, key_paths(source.items.items()));
    }
    if let Some(source) = &volume.downward_api {
        of_one_source("DownwardAPI".to_owned(), file_paths(source.items.items()));
    }
    let Some(projected) = &volume.projected else {
        return;
    };
    let sources = projected.sources.items();
    if sources.is_empty() {
        warnings.push(format!("volume {name} (Projected) has no sources provided"));
    }
    let paths: Vec<(&str, String)> = sources.iter().flat_map(projected_paths).collect();
    for ((path, source), (other, other_source)) in overlaps(&paths, |(path, _)| *path) {
        warnings.push(format!(
            "volume {name} (Projected): overlapping paths: {} ({source}) with {} ({other_source})",
            quoted(path),
            quoted(other)
        ));
    }
}

fn key_paths(items: &[KeyToPath]) -> Vec<&str> {
    items.iter().map(|item| trimmed(&item.path)).collect()
}

fn file_paths(items: &[DownwardAPIVolumeFile]) -> Vec<&str> {
    items.iter().map(|item| trimmed(&item.path)).collect()
}

/// Each path with what puts a file there.
fn projected_paths(source: &VolumeProjection) -> Vec<(&str, String)> {
    let (what, paths) = if let Some(source) = &source.config_map {
        let what = format!("ConfigMap {}", quoted(&source.name));
        (what, key_paths(source.items.items()))
    } else if let Some(source) = &source.secret {
        let what = format!("Secret {}", quoted(&source.name));
        (what, key_paths(source.items.items()))
    } else if let Some(source) = &source.downward_api {
        ("DownwardAPI".to_owned(), file_paths(source.items.items()))
    } else if let Some(source) = &source.service_account_token {
        let what = "ServiceAccountToken".to_owned();
        (what, vec![trimmed(&source.path)])
    } else if let Some(source) = &source.cluster_trust_bundle {
        let name = source.name.as_deref().or(source.signer_name.as_deref());
        let what = format!("ClusterTrustBundle {}", quoted(name.unwrap_or("")));
        (what, vec![trimmed(&source.path)])
    } else if let Some(source) = &source.pod_certificate {
        let files = [
            ("chain", &source.certificate_chain_path),
            ("key", &source.key_path),
            ("credential bundle", &source.credential_bundle_path),
        ];
        let given = files
            .into_iter()
            .filter(|(_, path)| !path.text().is_empty());
        return given
            .map(|(what, path)| (trimmed(path.text()), format!("PodCertificate {what}")))
            .collect();
    } else {
        return Vec::new();
    };
    paths.into_iter().map(|path| (path, what.clone())).collect()
}

fn trimmed(path: &str) -> &str {
    path.trim_end_matches('/')
}

/// Each pair of which one is the other or a directory above it: the later first.
fn overlaps<'a, T>(all: &'a [T], path: impl Fn(&'a T) -> &'a str) -> Vec<(&'a T, &'a T)> {
    let mut found = Vec::new();
    for (i, later) in all.iter().enumerate() {
        for earlier in &all[..i] {
            let (one, other) = (path(later), path(earlier));
            let below = |deep: &str, top: &str| {
                let rest = deep.strip_prefix(top);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if below(one, other) || below(other, one) {
                found.push((later, earlier));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(volume: serde_json::Value, expected: &[&str]) {
        let spec = serde_json::from_value(json!({"containers": [], "volumes": [volume]}));
        let mut warnings = Warnings::new();
        overlap_warnings(&spec.unwrap(), &mut warnings);
        assert_eq!(warnings, expected);
    }

    #[test]
    fn a_file_in_the_way_of_another() {
        let items = json!([{"key": "a", "path": "a"}, {"key": "b", "path": "a/b"}]);
        check(
            json!({"name": "v", "configMap": {"name": "c", "items": items}}),
            &["volume \"v\" (ConfigMap \"c\"): overlapping paths: \"a/b\" with \"a\""],
        );
        let items = json!([{"key": "a", "path": "a"}, {"key": "b", "path": "ab"}]);
        check(
            json!({"name": "v", "secret": {"secretName": "s", "items": items}}),
            &[],
        );
        let sources = json!([
            {"configMap": {"name": "c", "items": [{"key": "a", "path": "token"}]}},
            {"serviceAccountToken": {"path": "token"}},
        ]);
        check(
            json!({"name": "v", "projected": {"sources": sources}}),
            &[
                "volume \"v\" (Projected): overlapping paths: \"token\" (ServiceAccountToken) \
               with \"token\" (ConfigMap \"c\")",
            ],
        );
        check(
            json!({"name": "v", "projected": {"sources": []}}),
            &["volume \"v\" (Projected) has no sources provided"],
        );
    }
}
