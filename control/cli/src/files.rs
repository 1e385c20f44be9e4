//! `-f`: objects from files, folders, URLs of the file system and standard input, as YAML or JSON.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

#[derive(Args, Clone, Debug, Default)]
pub struct FileArgs {
    /// File or folder with objects in YAML or JSON; - is standard input (repeatable)
    #[arg(short, long = "filename", value_name = "FILE")]
    pub filename: Vec<String>,
    /// Go into folders within folders
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

impl FileArgs {
    pub fn is_empty(&self) -> bool {
        self.filename.is_empty()
    }

    /// All objects, in order; lists are taken apart.
    pub fn objects(&self) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        for name in &self.filename {
            if name == "-" {
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .context("reading standard input")?;
                objects.extend(parse(&text).context("standard input")?);
                continue;
            }
            for path in files_below(Path::new(name), self.recursive)? {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("the path \"{}\" cannot be read", path.display()))?;
                objects.extend(parse(&text).with_context(|| format!("{}", path.display()))?);
            }
        }
        if objects.is_empty() {
            bail!("no objects passed");
        }
        Ok(objects)
    }
}

fn files_below(path: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    if !path.exists() {
        bail!("the path \"{}\" does not exist", path.display());
    }
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            if recursive {
                files.extend(files_below(&entry, true)?);
            }
        } else if entry
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        {
            files.push(entry);
        }
    }
    Ok(files)
}

/// The objects of a YAML stream or of JSON.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = if text.trim_start().starts_with('{') {
        serde_json::Deserializer::from_str(text)
            .into_iter()
            .collect::<Result<_, _>>()
            .context("error parsing JSON")?
    } else {
        serde_saphyr::from_multiple(text).context("error parsing YAML")?
    };
    let mut objects = Vec::new();
    for document in documents {
        match document {
            Value::Null => {}
            Value::Object(mut map) => match map.remove("items") {
                Some(Value::Array(items))
                    if map
                        .get("kind")
                        .and_then(Value::as_str)
                        .is_some_and(|k| k.ends_with("List")) =>
                {
                    objects.extend(items);
                }
                Some(items) => {
                    map.insert("items".into(), items);
                    objects.push(map.into());
                }
                None => objects.push(map.into()),
            },
            _ => bail!("want an object with apiVersion and kind"),
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, kinds: &[&str]) {
        let objects = parse(text).unwrap();
        let found: Vec<_> = objects
            .iter()
            .map(|o| o["kind"].as_str().unwrap_or("?"))
            .collect();
        assert_eq!(found, kinds);
    }

    #[test]
    fn streams_and_lists_are_taken_apart() {
        check(
            "kind: A\n---\n# only a comment\n---\nkind: B\n",
            &["A", "B"],
        );
        check("{\"kind\": \"A\"}\n{\"kind\": \"B\"}", &["A", "B"]);
        check("kind: List\nitems:\n- kind: A\n- kind: B\n", &["A", "B"]);
        check("kind: Thing\nitems: [1]\n", &["Thing"]);
    }

    #[test]
    fn numbers_and_strings_stay_what_they_are() {
        let object = &parse("a: \"80\"\nb: 80\nc: yes\nd: 1e3\ne: 0644\n").unwrap()[0];
        assert_eq!(object["a"], "80");
        assert_eq!(object["b"], 80);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse("just text").is_err());
        assert!(parse("{\"kind\": ").is_err());
    }
}
