//! `skep config`: the kubeconfig file.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    discovery::items,
    output,
    session::{Global, text},
};

/// Show and change the kubeconfig file.
#[derive(Subcommand, Clone, Debug)]
pub enum Config {
    /// Show it, without its secrets
    View {
        /// With its secrets
        #[arg(long)]
        raw: bool,
        /// Only what the current context uses
        #[arg(long)]
        minify: bool,
        #[arg(short, long)]
        output: Option<output::Format>,
    },
    GetContexts,
    CurrentContext,
    #[command(visible_alias = "use")]
    UseContext {
        name: String,
    },
    /// Set the namespace of a context: skep config set-context --current --namespace=NAME
    SetContext {
        name: Option<String>,
        #[arg(long)]
        current: bool,
    },
    DeleteContext {
        name: String,
    },
}

fn path(global: &Global) -> Result<PathBuf> {
    if let Some(path) = &global.kubeconfig {
        return Ok(path.clone());
    }
    if let Some(paths) = std::env::var_os("KUBECONFIG").filter(|paths| !paths.is_empty()) {
        return std::env::split_paths(&paths)
            .next()
            .context("KUBECONFIG is empty");
    }
    let home =
        std::env::var_os("HOME").context("neither --kubeconfig, KUBECONFIG nor HOME is set")?;
    Ok(PathBuf::from(home).join(".kube/config"))
}

fn write(path: &std::path::Path, config: &Value) -> Result<()> {
    let text = output::yaml(config)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(std::path::Path::new(".")))?;
    std::fs::write(file.path(), text)?;
    file.persist(path)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

impl Config {
    pub fn run(self, global: &Global) -> Result<()> {
        let path = path(global)?;
        let source = match std::fs::read_to_string(&path) {
            Ok(source) => source,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                "apiVersion: v1\nkind: Config\n".to_owned()
            }
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let mut config: Value = serde_saphyr::from_str(&source)
            .with_context(|| format!("{} is no kubeconfig", path.display()))?;
        let current = global
            .context
            .clone()
            .unwrap_or_else(|| text(&config, "current-context"));
        match self {
            Self::View {
                raw,
                minify,
                output,
            } => {
                if minify {
                    keep_context(&mut config, &current)?;
                }
                if !raw {
                    redact(&mut config);
                }
                print!(
                    "{}",
                    output
                        .unwrap_or(output::Format::Yaml)
                        .render(&config, None)?
                );
            }
            Self::GetContexts => {
                let head = ["CURRENT", "NAME", "CLUSTER", "AUTHINFO", "NAMESPACE"];
                let mut rows = vec![head.map(str::to_owned).to_vec()];
                for context in items(&config, "contexts") {
                    let name = text(context, "name");
                    let detail = &context["context"];
                    rows.push(vec![
                        if name == current {
                            "*".to_owned()
                        } else {
                            String::new()
                        },
                        name,
                        text(detail, "cluster"),
                        text(detail, "user"),
                        text(detail, "namespace"),
                    ]);
                }
                print!("{}", output::align(&rows));
            }
            Self::CurrentContext if current.is_empty() => bail!("current-context is not set"),
            Self::CurrentContext => println!("{current}"),
            Self::UseContext { name } => {
                if !items(&config, "contexts").any(|context| context["name"] == name.as_str()) {
                    bail!("no context exists with the name: \"{name}\"");
                }
                config["current-context"] = name.clone().into();
                write(&path, &config)?;
                println!("Switched to context \"{name}\".");
            }
            Self::SetContext {
                name,
                current: use_current,
            } => {
                let name = match (name, use_current) {
                    (Some(name), false) => name,
                    (None, true) if !current.is_empty() => current,
                    _ => bail!("name the context, or use --current"),
                };
                let contexts = config["contexts"].as_array_mut();
                let entry = contexts
                    .into_iter()
                    .flatten()
                    .find(|c| c["name"] == name.as_str());
                let entry = entry
                    .with_context(|| format!("no context exists with the name: \"{name}\""))?;
                if let Some(namespace) = &global.namespace {
                    entry["context"]["namespace"] = namespace.clone().into();
                }
                write(&path, &config)?;
                println!("Context \"{name}\" modified.");
            }
            Self::DeleteContext { name } => {
                let contexts = config["contexts"]
                    .as_array_mut()
                    .context("there are no contexts")?;
                let before = contexts.len();
                contexts.retain(|context| context["name"] != name.as_str());
                if contexts.len() == before {
                    bail!("cannot delete context {name}, not in {}", path.display());
                }
                write(&path, &config)?;
                println!("deleted context {name} from {}", path.display());
            }
        }
        Ok(())
    }
}

fn keep_context(config: &mut Value, name: &str) -> Result<()> {
    let context = items(config, "contexts").find(|context| context["name"] == name);
    let context = context
        .context("current-context must exist in order to minify")?
        .clone();
    let (cluster, user) = (
        context["context"]["cluster"].clone(),
        context["context"]["user"].clone(),
    );
    config["contexts"] = json!([context]);
    for (list, wanted) in [("clusters", cluster), ("users", user)] {
        if let Some(entries) = config[list].as_array_mut() {
            entries.retain(|entry| entry["name"] == wanted);
        }
    }
    Ok(())
}

fn redact(config: &mut Value) {
    for user in config["users"].as_array_mut().into_iter().flatten() {
        for secret in ["client-key-data", "token", "password"] {
            if user["user"].get(secret).is_some() {
                user["user"][secret] = "REDACTED".into();
            }
        }
        if user["user"].get("client-certificate-data").is_some() {
            user["user"]["client-certificate-data"] = "DATA+OMITTED".into();
        }
    }
    for cluster in config["clusters"].as_array_mut().into_iter().flatten() {
        if cluster["cluster"]
            .get("certificate-authority-data")
            .is_some()
        {
            cluster["cluster"]["certificate-authority-data"] = "DATA+OMITTED".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let mut config =
            json!({"users": [{"name": "u", "user": {"token": "t", "client-key-data": "k"}}]});
        redact(&mut config);
        assert_eq!(
            config["users"][0]["user"],
            json!({"token": "REDACTED", "client-key-data": "REDACTED"})
        );
    }
}
