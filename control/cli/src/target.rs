//! What a command is about: `TYPE NAME…`, `TYPE/NAME…`, `TYPE -l SELECTOR`, `-f FILE`.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    discovery::{Resource, encode, items},
    files::FileArgs,
    session::{Global, Session, name_of, text},
};

#[derive(Args, Clone, Debug, Default)]
pub struct Selection {
    /// TYPE NAME…, TYPE/NAME… or TYPE[,TYPE…]
    #[arg(value_name = "TYPE[/NAME]")]
    pub words: Vec<String>,
    #[command(flatten)]
    pub files: FileArgs,
    /// Label selector, as in app=web,tier!=cache,env in (a,b)
    #[arg(short = 'l', long)]
    pub selector: Option<String>,
    /// Field selector, as in status.phase=Running
    #[arg(long)]
    pub field_selector: Option<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

/// Objects of one resource in one namespace.
#[derive(Clone, Debug)]
pub struct Target {
    pub resource: Resource,
    /// Empty for cluster scope and for all namespaces.
    pub namespace: String,
    /// Empty for "all that the selectors choose".
    pub names: Vec<String>,
}

impl Target {
    pub fn path(&self, name: &str) -> String {
        self.resource.path(&self.namespace, name)
    }
}

impl Selection {
    /// The targets, in the order written.
    pub async fn targets(&self, session: &Session, global: &Global) -> Result<Vec<Target>> {
        if !self.files.is_empty() {
            if !self.words.is_empty() {
                bail!("when paths are given with -f, resource types and names must not be");
            }
            let mut targets = Vec::new();
            for object in self.files.objects()? {
                targets.push(target_of(session, global, &object).await?);
            }
            return Ok(targets);
        }
        let targets = parse(session, &self.words).await?;
        let with_names = targets.iter().any(|t| !t.names.is_empty());
        if with_names && (self.selector.is_some() || self.all_namespaces) {
            bail!("names cannot be combined with a selector or with --all-namespaces");
        }
        let in_namespace = |mut target: Target| {
            if target.resource.namespaced && !self.all_namespaces {
                target.namespace.clone_from(&session.namespace);
            }
            target
        };
        Ok(targets.into_iter().map(in_namespace).collect())
    }

    /// `labelSelector=…&fieldSelector=…`
    pub fn query(&self) -> String {
        let mut query = Vec::new();
        if let Some(selector) = &self.selector {
            query.push(format!("labelSelector={}", encode(selector)));
        }
        if let Some(selector) = &self.field_selector {
            query.push(format!("fieldSelector={}", encode(selector)));
        }
        query.join("&")
    }

    /// Every object selected, with its resource.
    ///
    /// # Errors
    /// When a named object does not exist.
    pub async fn objects(
        &self,
        session: &Session,
        global: &Global,
    ) -> Result<Vec<(Resource, Value)>> {
        let mut found = Vec::new();
        for target in self.targets(session, global).await? {
            for name in &target.names {
                found.push((
                    target.resource.clone(),
                    session.get(&target.path(name)).await?,
                ));
            }
            if target.names.is_empty() {
                let list = session
                    .get(&format!("{}?{}", target.path(""), self.query()))
                    .await?;
                for item in items(&list, "items") {
                    let mut item = item.clone();
                    // Items of a list carry no kind.
                    item["apiVersion"] = target.resource.api_version().into();
                    item["kind"] = target.resource.kind.clone().into();
                    found.push((target.resource.clone(), item));
                }
            }
        }
        Ok(found)
    }
}

/// The target that a manifest names.
pub async fn target_of(session: &Session, global: &Global, object: &Value) -> Result<Target> {
    let resource = session.resource_of(object).await?;
    let namespace = if resource.namespaced {
        session.namespace_of(object, global.namespace.as_deref())?
    } else {
        String::new()
    };
    let name = name_of(object);
    if name.is_empty() && text(&object["metadata"], "generateName").is_empty() {
        bail!("resource name may not be empty (set metadata.name)");
    }
    let names = if name.is_empty() {
        Vec::new()
    } else {
        vec![name]
    };
    Ok(Target {
        resource,
        namespace,
        names,
    })
}

async fn parse(session: &Session, words: &[String]) -> Result<Vec<Target>> {
    let Some((first, rest)) = words.split_first() else {
        bail!(
            "you must specify the type of resource to get; use \"skep api-resources\" for a list of \
             supported resources"
        );
    };
    if words.iter().any(|word| word.contains('/')) {
        let mut targets: Vec<Target> = Vec::new();
        for word in words {
            let Some((kind, name)) = word.split_once('/') else {
                bail!(
                    "there is no need to specify a resource type as a separate argument when passing \
                       arguments in TYPE/NAME form"
                );
            };
            if name.is_empty() || name.contains('/') {
                bail!(
                    "arguments in TYPE/NAME form must have a single type and name, not \"{word}\""
                );
            }
            let resource = session.resource(kind).await?;
            targets.push(Target {
                resource,
                namespace: String::new(),
                names: vec![name.to_owned()],
            });
        }
        return Ok(targets);
    }
    let mut targets = Vec::new();
    for kind in first.split(',') {
        let in_category = session.resources().await?.in_category(kind);
        if !in_category.is_empty() {
            targets.extend(in_category.into_iter().map(|resource| Target {
                resource,
                namespace: String::new(),
                names: rest.to_vec(),
            }));
            continue;
        }
        let resource = session.resource(kind).await?;
        targets.push(Target {
            resource,
            namespace: String::new(),
            names: rest.to_vec(),
        });
    }
    Ok(targets)
}
