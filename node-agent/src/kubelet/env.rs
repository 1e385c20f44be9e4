//! A container's environment: `env`, `envFrom`, service links and `$(VAR)`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::pod;
use super::resources;
use crate::endpoints::protocol_name;
use crate::services::Service;

/// The objects that a pod's containers refer to, by name; missing ones are absent.
#[derive(Debug, Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
    /// What env files say, by volume and path.
    pub files: BTreeMap<(String, String), BTreeMap<String, String>>,
}

/// The env files that `container` reads (KEP-3721): volume and path.
pub fn files(container: &Container) -> Vec<(&str, &str)> {
    let sources = container.env.iter().flatten();
    let sources = sources.filter_map(|e| e.value_from.as_ref()?.file_key_ref.as_ref());
    sources
        .map(|r| (r.volume_name.as_str(), r.path.as_str()))
        .collect()
}

/// Whether the container's environment tells the pod's addresses, which only its network gives.
pub fn needs_address(container: &Container) -> bool {
    let sources = container.env.iter().flatten();
    let mut fields = sources.filter_map(|e| e.value_from.as_ref()?.field_ref.as_ref());
    fields.any(|f| matches!(f.field_path.as_str(), "status.podIP" | "status.podIPs"))
}

/// `NAME='value'` lines: what is between the quotes is taken as it is, newlines too. A word needs no quotes. Lines that
/// begin with `#` say nothing.
///
/// # Errors
/// Which line is wrong.
pub fn parse_file(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    let (mut rest, mut number) = (text, 0);
    while !rest.is_empty() {
        number += 1;
        let (line, next) = rest.split_once('\n').unwrap_or((rest, ""));
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            rest = next;
            continue;
        }
        let bad =
            |what: &str| format!("invalid environment variable format at line {number}: {what}");
        let (name, value) = rest.split_once('=').ok_or_else(|| bad("no '='"))?;
        let name = name.trim_start();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(bad("no name before '='"));
        }
        match value.strip_prefix('\'') {
            Some(quoted) => {
                let (value, after) = quoted
                    .split_once('\'')
                    .ok_or_else(|| bad("a quote does not end"))?;
                let (left, next) = after.split_once('\n').unwrap_or((after, ""));
                let left = left.trim();
                if !left.is_empty() && !left.starts_with('#') {
                    return Err(bad("text after the value"));
                }
                number += value.matches('\n').count();
                found.insert(name.to_owned(), value.to_owned());
                rest = next;
            }
            None => {
                let (word, next) = value.split_once('\n').unwrap_or((value, ""));
                let word = word.trim_end();
                if word.contains(|c: char| c.is_whitespace() || c == '"' || c == '\'') {
                    return Err(bad("a value with spaces or quotes stands in single quotes"));
                }
                found.insert(name.to_owned(), word.to_owned());
                rest = next;
            }
        }
    }
    Ok(found)
}

/// What the node contributes.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    pub name: String,
    pub host_ips: Vec<String>,
    pub pod_ips: Vec<String>,
    pub allocatable: BTreeMap<String, Quantity>,
}

/// Names of config maps and secrets that `container` needs for its environment.
pub fn references(container: &Container) -> (Vec<&str>, Vec<&str>) {
    let mut maps = Vec::new();
    let mut secrets = Vec::new();
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.as_str()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.as_str()));
    }
    for source in container
        .env
        .iter()
        .flatten()
        .filter_map(|e| e.value_from.as_ref())
    {
        maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.as_str()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.as_str()));
    }
    (maps, secrets)
}

/// # Errors
/// The text of a `CreateContainerConfigError`.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    services: &[Arc<Service>],
    node: &NodeFacts,
) -> Result<Vec<(String, String)>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = service_links(pod, services);
    let mut out: Vec<(String, String)> = Vec::new();
    let mut known: HashMap<String, String> = HashMap::new();
    let set = |out: &mut Vec<(String, String)>,
               known: &mut HashMap<String, String>,
               k: String,
               v: String| {
        known.insert(k.clone(), v.clone());
        match out.iter_mut().find(|(name, _)| *name == k) {
            Some(slot) => slot.1 = v,
            None => out.push((k, v)),
        }
    };
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let pairs: Vec<(String, String)> = if let Some(r) = &from.config_map_ref {
            match sources.config_maps.get(&r.name) {
                Some(map) => map.data.clone().into_iter().flatten().collect(),
                None if r.optional == Some(true) => Vec::new(),
                None => return Err(format!("configmap \"{}\" not found", r.name)),
            }
        } else if let Some(r) = &from.secret_ref {
            match sources.secrets.get(&r.name) {
                Some(secret) => secret
                    .data
                    .iter()
                    .flatten()
                    .map(|(k, v)| (k.clone(), String::from_utf8_lossy(&v.0).into_owned()))
                    .collect(),
                None if r.optional == Some(true) => Vec::new(),
                None => return Err(format!("secret \"{}\" not found", r.name)),
            }
        } else {
            Vec::new()
        };
        for (k, v) in pairs {
            let name = format!("{prefix}{k}");
            // KEP-4369: anything printable but '='.
            if !name.is_empty() && !name.contains('=') {
                set(&mut out, &mut known, name, v);
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match &var.value_from {
            None => expand(var.value.as_deref().unwrap_or_default(), |name| {
                known.get(name).or_else(|| links.get(name)).cloned()
            }),
            Some(source) => {
                if let Some(field) = &source.field_ref {
                    field_value(pod, field, node)?
                } else if let Some(resource) = &source.resource_field_ref {
                    resource_value(pod, container, resource, node)?
                } else if let Some(r) = &source.config_map_key_ref {
                    let optional = r.optional == Some(true);
                    let map = match sources.config_maps.get(&r.name) {
                        Some(map) => map,
                        None if optional => continue,
                        None => return Err(format!("configmap \"{}\" not found", r.name)),
                    };
                    match map.data.as_ref().and_then(|data| data.get(&r.key)) {
                        Some(value) => value.clone(),
                        None if optional => continue,
                        None => {
                            return Err(format!(
                                "couldn't find key {} in ConfigMap {namespace}/{}",
                                r.key, r.name
                            ));
                        }
                    }
                } else if let Some(r) = &source.file_key_ref {
                    let optional = r.optional == Some(true);
                    let file = sources.files.get(&(r.volume_name.clone(), r.path.clone()));
                    match file.and_then(|file| file.get(&r.key)) {
                        Some(value) => value.clone(),
                        None if optional => continue,
                        None if file.is_none() => {
                            return Err(format!(
                                "failed to parse environment variable file {:?}: no such file",
                                r.path
                            ));
                        }
                        None => {
                            return Err(format!(
                                "environment variable key {:?} not found in file {:?}",
                                r.key, r.path
                            ));
                        }
                    }
                } else if let Some(r) = &source.secret_key_ref {
                    let optional = r.optional == Some(true);
                    let secret = match sources.secrets.get(&r.name) {
                        Some(secret) => secret,
                        None if optional => continue,
                        None => return Err(format!("secret \"{}\" not found", r.name)),
                    };
                    match secret.data.as_ref().and_then(|data| data.get(&r.key)) {
                        Some(value) => String::from_utf8_lossy(&value.0).into_owned(),
                        None if optional => continue,
                        None => {
                            return Err(format!(
                                "couldn't find key {} in Secret {namespace}/{}",
                                r.key, r.name
                            ));
                        }
                    }
                } else {
                    continue;
                }
            }
        };
        set(&mut out, &mut known, var.name.clone(), value);
    }
    for (name, value) in links {
        if !known.contains_key(&name) {
            out.push((name, value));
        }
    }
    Ok(out)
}

/// Replaces `$(NAME)` by its value where there is one; `$$` is a literal `$`.
pub fn expand(text: &str, mut value: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match value(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// `metadata.labels['key']` → (`metadata.labels`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (field, rest) = path.split_once("['")?;
    Some((field, rest.strip_suffix("']")?))
}

pub fn field_value(
    pod: &Pod,
    field: &ObjectFieldSelector,
    node: &NodeFacts,
) -> Result<String, String> {
    let meta = &pod.metadata;
    let path = field.field_path.as_str();
    if let Some((field, key)) = subscript(path) {
        let map = match field {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("fieldPath \"{path}\" does not support subscript")),
        };
        return Ok(map
            .as_ref()
            .and_then(|m| m.get(key))
            .cloned()
            .unwrap_or_default());
    }
    let lines = |map: &Option<BTreeMap<String, String>>| {
        let lines: Vec<String> = map
            .iter()
            .flatten()
            .map(|(k, v)| format!("{k}={}", quoted(v)))
            .collect();
        lines.join("\n")
    };
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => pod::spec(pod)
            .service_account_name
            .clone()
            .unwrap_or_default(),
        "status.hostIP" => node.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => node.host_ips.join(","),
        "status.podIP" => node.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => node.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// As Go's `%q`.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub fn resource_value(
    pod: &Pod,
    container: &Container,
    field: &ResourceFieldSelector,
    node: &NodeFacts,
) -> Result<String, String> {
    let target = match field.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => {
            let all = pod::containers(pod);
            all.into_iter()
                .find(|(_, c)| c.name == name)
                .map(|(_, c)| c)
                .ok_or_else(|| format!("container {name} not found"))?
        }
        None => container.clone(),
    };
    let (kind, name) = field
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", field.resource))?;
    let resources = target.resources.unwrap_or_default();
    let found = match kind {
        // Without a limit a container may use what the node can give.
        "limits" => resources
            .limits
            .and_then(|l| l.get(name).cloned())
            .or_else(|| node.allocatable.get(name).cloned()),
        "requests" => resources.requests.and_then(|r| r.get(name).cloned()),
        _ => {
            return Err(format!(
                "unsupported container resource : {}",
                field.resource
            ));
        }
    };
    let quantity = found.unwrap_or_else(|| Quantity("0".into()));
    Ok(resources::divided(
        &quantity,
        field.divisor.as_ref().filter(|d| d.0 != "0"),
    ))
}

/// Variables in the manner of Docker links. The API's own Service is always there.
fn service_links(pod: &Pod, services: &[Arc<Service>]) -> BTreeMap<String, String> {
    let enabled = pod::spec(pod).enable_service_links != Some(false);
    let namespace = pod.metadata.namespace.as_deref();
    let mut out = BTreeMap::new();
    // The pod's own namespace comes last and wins.
    let is_master = |s: &Service| s.namespace() == "default" && s.name() == "kubernetes";
    let own = |s: &Service| enabled && Some(s.namespace()) == namespace;
    let chosen = services
        .iter()
        .filter(|s| is_master(s))
        .chain(services.iter().filter(|s| own(s)));
    for service in chosen {
        let Some(ip) = service.ips.first() else {
            continue;
        };
        let name = variable(service.name());
        let Some(first) = service.ports.first() else {
            continue;
        };
        let host = if ip.is_ipv6() {
            format!("[{ip}]")
        } else {
            ip.to_string()
        };
        out.insert(format!("{name}_SERVICE_HOST"), ip.to_string());
        out.insert(format!("{name}_SERVICE_PORT"), first.number.to_string());
        for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
            let key = format!("{name}_SERVICE_PORT_{}", variable(&port.name));
            out.insert(key, port.number.to_string());
        }
        for (index, port) in service.ports.iter().enumerate() {
            let lower = protocol_name(port.protocol);
            let url = format!("{lower}://{host}:{}", port.number);
            if index == 0 {
                out.insert(format!("{name}_PORT"), url.clone());
            }
            let prefix = format!("{name}_PORT_{}_{}", port.number, lower.to_uppercase());
            out.insert(prefix.clone(), url);
            out.insert(format!("{prefix}_PROTO"), lower.to_string());
            out.insert(format!("{prefix}_PORT"), port.number.to_string());
            out.insert(format!("{prefix}_ADDR"), ip.to_string());
        }
    }
    out
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace(['-', '.'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_files() {
        let text = "# a comment\n\nA='one two' # said\nB=word\nC='two\nlines=$A'\n";
        let found = parse_file(text).unwrap();
        let pairs: Vec<(&str, &str)> = found.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(
            pairs,
            [("A", "one two"), ("B", "word"), ("C", "two\nlines=$A")]
        );
        for (text, why) in [
            ("A", "line 1: no '='"),
            ("A='x'\n='y'", "line 2: no name before '='"),
            ("A='x\ny'\nB=a b", "line 3: a value with spaces"),
            ("A='x", "line 1: a quote does not end"),
            ("A='x'y", "line 1: text after the value"),
        ] {
            let error = parse_file(text).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn expansion_follows_the_rules_of_the_api() {
        let value = |name: &str| (name == "A").then(|| "1".to_string());
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("", ""),
        ] {
            assert_eq!(expand(text, value), expected, "{text}");
        }
    }

    #[test]
    fn a_missing_key_is_named_with_its_map() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"containers": [{"name": "c", "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}
            ]}]}
        }))
        .unwrap();
        let container = &pod::spec(&pod).containers[0];
        let mut sources = Sources::default();
        let node = NodeFacts::default();
        let env = |s: &Sources| environment(&pod, container, s, &[], &node);
        assert_eq!(env(&sources), Err("configmap \"m\" not found".into()));
        sources.config_maps.insert("m".into(), ConfigMap::default());
        assert_eq!(
            env(&sources),
            Err("couldn't find key k in ConfigMap ns/m".into())
        );
    }
}
