//! kubeconfig files: one for the cluster's own folder, and a context in the user's, as kind and minikube do it.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::DEFAULT_NAME;

/// The name of cluster, user and context: `skep`, or `skep-NAME`.
pub(super) fn context(cluster: &str) -> String {
    if cluster == DEFAULT_NAME {
        "skep".to_owned()
    } else {
        format!("skep-{cluster}")
    }
}

/// Copies a kubeconfig that skep-control wrote, for a client that reaches the API server at another address.
pub(super) fn rewrite(from: &Path, to: &Path, server: &str, name: &str) -> Result<()> {
    let source = read(from)?.with_context(|| format!("{} is not there", from.display()))?;
    write(
        to,
        &renamed(&source, server, name).with_context(|| format!("in {}", from.display()))?,
    )
}

fn renamed(source: &Value, server: &str, name: &str) -> Result<Value> {
    let mut cluster = source["clusters"][0]["cluster"].clone();
    let user = source["users"][0]["user"].clone();
    if !cluster.is_object() || !user.is_object() {
        bail!("a kubeconfig has one cluster and one user");
    }
    cluster["server"] = json!(server);
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }))
}

/// Adds a cluster to the user's kubeconfig and makes it the current one.
pub(super) fn merge(from: &Path) -> Result<PathBuf> {
    let addition = read(from)?.with_context(|| format!("{} is not there", from.display()))?;
    let file = users_file()?;
    let existing = read(&file)?.unwrap_or_else(|| json!({"apiVersion": "v1", "kind": "Config"}));
    write(&file, &merged(existing, &addition)?)?;
    Ok(file)
}

/// Takes a cluster out of the user's kubeconfig again.
pub(super) fn forget(name: &str) -> Result<()> {
    let file = users_file()?;
    let Some(existing) = read(&file)? else {
        return Ok(());
    };
    let without = without(existing.clone(), name)?;
    if without != existing {
        write(&file, &without)?;
    }
    Ok(())
}

const LISTS: [&str; 3] = ["clusters", "users", "contexts"];

fn merged(existing: Value, addition: &Value) -> Result<Value> {
    let name = addition["current-context"]
        .as_str()
        .context("a kubeconfig without a context")?;
    let mut result = without(existing, name)?;
    for list in LISTS {
        let entries = addition[list].as_array().cloned().unwrap_or_default();
        match &mut result[list] {
            Value::Array(all) => all.extend(entries),
            other => *other = Value::Array(entries),
        }
    }
    result["current-context"] = json!(name);
    Ok(result)
}

fn without(mut existing: Value, name: &str) -> Result<Value> {
    if !existing.is_object() {
        bail!("a kubeconfig must be a mapping");
    }
    for list in LISTS {
        if let Some(entries) = existing[list].as_array_mut() {
            entries.retain(|entry| entry["name"] != name);
        }
    }
    if existing["current-context"] == name {
        existing["current-context"] = json!("");
    }
    Ok(existing)
}

/// The file that kubectl would write to.
fn users_file() -> Result<PathBuf> {
    if let Some(list) = std::env::var_os("KUBECONFIG")
        && let Some(first) = std::env::split_paths(&list).find(|path| !path.as_os_str().is_empty())
    {
        return Ok(first);
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(Path::new(&home).join(".kube/config"))
}

fn read(file: &Path) -> Result<Option<Value>> {
    let text = match fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => return Ok(None),
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let value =
        serde_saphyr::from_str(&text).with_context(|| format!("{} is not YAML", file.display()))?;
    Ok(Some(value))
}

/// Replaces the file as a whole, readable by its owner only: it holds keys.
fn write(file: &Path, value: &Value) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = file.with_extension("skep-new");
    let mut options = fs::OpenOptions::new();
    let mut opened = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    let text = serde_saphyr::to_string(value).context("cannot write YAML")?;
    std::io::Write::write_all(&mut opened, text.as_bytes())?;
    if let Ok(existing) = fs::metadata(file) {
        fs::set_permissions(
            &temporary,
            fs::Permissions::from_mode(existing.permissions().mode()),
        )?;
    }
    fs::rename(&temporary, file).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Value {
        let written = json!({
            "clusters": [{"name": "x", "cluster": {"server": "https://a:1", "certificate-authority-data": "Q0E="}}],
            "users": [{"name": "y", "user": {"token": "t"}}],
        });
        renamed(&written, "https://127.0.0.1:7", "skep").unwrap()
    }

    #[test]
    fn merging_keeps_what_is_there_and_forgetting_restores_it() {
        let theirs: Value = serde_saphyr::from_str(
            "apiVersion: v1\nkind: Config\npreferences: {}\ncurrent-context: work\n\
             contexts: [{name: work, context: {cluster: work, user: me}}]\n\
             clusters: [{name: work, cluster: {server: 'https://w'}}]\nusers: [{name: me, user: {token: '007'}}]\n",
        )
        .unwrap();
        let both = merged(theirs.clone(), &ours()).unwrap();
        assert_eq!(both["current-context"], "skep");
        assert_eq!(
            both["clusters"][1]["cluster"]["server"],
            "https://127.0.0.1:7"
        );
        // A second time changes nothing.
        assert_eq!(merged(both.clone(), &ours()).unwrap(), both);

        let again = without(both, "skep").unwrap();
        assert_eq!(again["contexts"], theirs["contexts"]);
        assert_eq!(again["users"], theirs["users"]);
        assert_eq!(again["current-context"], "");
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let tricky = json!({"token": "007", "empty": "", "yes": "yes", "lines": "a\nb\n", "n": null, "l": []});
        let text = serde_saphyr::to_string(&tricky).unwrap();
        assert_eq!(
            serde_saphyr::from_str::<Value>(&text).unwrap(),
            tricky,
            "{text}"
        );
    }

    #[test]
    fn a_kubeconfig_that_is_none_is_refused() {
        assert!(renamed(&json!({}), "s", "n").is_err());
        assert!(merged(json!([1]), &ours()).is_err());
    }
}
