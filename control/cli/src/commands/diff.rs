//! `skep diff`: what `apply` would change.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;
use similar::TextDiff;

use super::{get::strip_managed_fields, write::ServerApply};
use crate::{
    files::FileArgs,
    output::{self, yaml},
    session::{Global, Session},
    target::target_of,
};

/// Show what apply would change, as a unified diff. Exits with 1 if there is something.
///
/// Examples:
///   skep diff -f web.yaml
///   cat web.yaml | skep diff -f -
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Diff {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    apply: ServerApply,
    /// Accepted for kubectl's sake: the server always does it
    #[arg(long, num_args = 0..=1, default_missing_value = "true", hide = true)]
    server_side: Option<bool>,
}

/// There are differences: exit code 1, nothing more to say.
#[derive(Debug, thiserror::Error)]
#[error("")]
pub struct Different;

impl Diff {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        let mut different = false;
        for object in self.files.objects()? {
            let target = target_of(session, global, &object).await?;
            let [name] = &target.names[..] else {
                bail!("diff needs metadata.name");
            };
            let path = target.path(name);
            let live = session.find(&path).await?;
            let query = "fieldValidation=Ignore&dryRun=All";
            let applied = self.apply.send(session, &path, query, &object).await?;
            let title = output::qualified_name(&applied, Some(&target.resource));
            if let Some(text) = unified(&title, live, applied)? {
                different = true;
                print!("{text}");
            }
        }
        if different {
            return Err(Different.into());
        }
        Ok(())
    }
}

/// `None` if both are the same but for what the server notes on every write.
fn unified(title: &str, live: Option<Value>, mut applied: Value) -> Result<Option<String>> {
    let mut before = String::new();
    if let Some(mut live) = live {
        let metadata = &mut applied["metadata"];
        // A dry run does not give the version that the write would.
        metadata["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
        strip_managed_fields(&mut live);
        before = yaml(&live)?;
    }
    strip_managed_fields(&mut applied);
    let after = yaml(&applied)?;
    if before == after {
        return Ok(None);
    }
    let diff = TextDiff::from_lines(&before, &after);
    let (live, merged) = (format!("LIVE/{title}"), format!("MERGED/{title}"));
    let text = diff.unified_diff().header(&live, &merged).to_string();
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_an_apply_changes_is_shown() {
        let object = |a: &str, version: &str| {
            json!({"kind": "ConfigMap", "data": {"a": a},
            "metadata": {"name": "c", "resourceVersion": version, "managedFields": [version]}})
        };
        let diff = |live, applied| unified("configmap/c", live, applied).unwrap();
        assert_eq!(diff(Some(object("1", "5")), object("1", "6")), None);
        let text = diff(Some(object("1", "5")), object("2", "6")).unwrap();
        assert!(
            text.starts_with("--- LIVE/configmap/c\n+++ MERGED/configmap/c\n"),
            "{text}"
        );
        let changed: Vec<&str> = text
            .lines()
            .skip(2)
            .filter(|line| line.starts_with(['+', '-']))
            .collect();
        assert_eq!(changed.len(), 2, "{text}");
        let created = diff(None, object("2", "6")).unwrap();
        assert!(
            created.lines().skip(3).all(|line| line.starts_with('+')),
            "{created}"
        );
    }
}
