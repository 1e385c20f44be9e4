//! `skep get`

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::Args;
use futures::{AsyncBufReadExt, TryStreamExt};
use http::{Request, header};
use serde_json::{Value, json};

use crate::{
    discovery::{Resource, items},
    output::{self, Format},
    session::{self, ApiError, Global, JSON, Session, TABLE, text},
    target::{Selection, Target},
};

/// Show objects.
///
/// Examples:
///   skep get pods -o wide
///   skep get deploy,svc -l app=web
///   skep get pod/web-1 svc/web
///   skep get pods -A -w
///   skep get pods -o jsonpath='{.items[*].metadata.name}'
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Get {
    #[command(flatten)]
    selection: Selection,
    /// wide, yaml, json, name, jsonpath=TEMPLATE, custom-columns=HEAD:PATH,…
    #[arg(short, long)]
    output: Option<Format>,
    /// Go on showing changes
    #[arg(short, long)]
    watch: bool,
    /// Show changes only
    #[arg(long)]
    watch_only: bool,
    /// Leave the line of column names out
    #[arg(long)]
    no_headers: bool,
    /// A last column with all labels
    #[arg(long)]
    show_labels: bool,
    /// Columns with the values of these labels
    #[arg(short = 'L', long, value_delimiter = ',')]
    label_columns: Vec<String>,
    /// Sort by this jsonpath
    #[arg(long, value_name = "PATH")]
    sort_by: Option<String>,
    /// No error for a name that does not exist
    #[arg(long)]
    ignore_not_found: bool,
    /// Show metadata.managedFields in yaml and json
    #[arg(long)]
    show_managed_fields: bool,
    /// Read this path of the API as it is
    #[arg(long, value_name = "PATH")]
    raw: Option<String>,
}

impl Get {
    pub async fn run(self, session: &Session, global: &Global) -> Result<()> {
        if let Some(path) = &self.raw {
            print!("{}", session.text(path).await?);
            return Ok(());
        }
        let targets = self.selection.targets(session, global).await?;
        if self.watch || self.watch_only {
            let [target] = &targets[..] else {
                bail!("you may only specify a single resource type to watch");
            };
            return self.run_watch(session, target).await;
        }
        match &self.output {
            None => self.run_tables(session, &targets, false).await,
            Some(Format::Table { wide }) => self.run_tables(session, &targets, *wide).await,
            Some(format) => self.run_objects(session, &targets, format).await,
        }
    }

    async fn fetch(&self, session: &Session, path: &str, accept: &str) -> Result<Option<Value>> {
        match session.request("GET", path, accept, None).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if self.ignore_not_found && ApiError::reason(&error) == Some("NotFound") => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn run_objects(
        &self,
        session: &Session,
        targets: &[Target],
        format: &Format,
    ) -> Result<()> {
        let mut found = Vec::new();
        let mut whole_list = None;
        for target in targets {
            if target.names.is_empty() {
                let path = format!("{}?{}", target.path(""), self.selection.query());
                let Some(mut list) = self.fetch(session, &path, JSON).await? else {
                    continue;
                };
                let kind = list["kind"].as_str().and_then(|k| k.strip_suffix("List"));
                let kind = kind.unwrap_or(&target.resource.kind).to_owned();
                for item in list["items"].as_array_mut().into_iter().flatten() {
                    item["apiVersion"] = target.resource.api_version().into();
                    item["kind"] = kind.clone().into();
                    found.push((target.resource.clone(), item.take()));
                }
                whole_list = Some(());
            }
            for name in &target.names {
                if let Some(object) = self.fetch(session, &target.path(name), JSON).await? {
                    found.push((target.resource.clone(), object));
                }
            }
        }
        if !self.show_managed_fields {
            for (_, object) in &mut found {
                strip_managed_fields(object);
            }
        }
        if let Some(path) = &self.sort_by {
            sort_by(&mut found, |(_, object)| object, path)?;
        }
        if *format == Format::Name {
            for (resource, object) in &found {
                println!("{}", output::qualified_name(object, Some(resource)));
            }
            return Ok(());
        }
        let single = whole_list.is_none() && found.len() == 1;
        let value = if single {
            found.swap_remove(0).1
        } else if found.is_empty() && whole_list.is_none() {
            return Ok(());
        } else {
            let objects: Vec<Value> = found.into_iter().map(|(_, object)| object).collect();
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": objects})
        };
        print!("{}", format.render(&value, None)?);
        Ok(())
    }

    async fn run_tables(&self, session: &Session, targets: &[Target], wide: bool) -> Result<()> {
        let several = targets.len() > 1;
        let mut shown = 0;
        let mut first_error = None;
        for target in targets {
            let mut table: Option<Value> = None;
            let mut paths: Vec<String> =
                target.names.iter().map(|name| target.path(name)).collect();
            if paths.is_empty() {
                paths.push(format!("{}?{}", target.path(""), self.selection.query()));
            }
            for path in paths {
                match self.fetch(session, &path, TABLE).await {
                    Ok(None) => {}
                    Ok(Some(part)) => match &mut table {
                        None => table = Some(part),
                        Some(table) => {
                            let rows = items(&part, "rows").cloned().collect::<Vec<_>>();
                            if let Some(all) = table["rows"].as_array_mut() {
                                all.extend(rows);
                            }
                        }
                    },
                    // The other names are still shown.
                    Err(error) => {
                        if first_error.replace(error).is_some() {
                            eprintln!("{}", first_error.as_ref().expect("just set"));
                        }
                    }
                }
            }
            let Some(mut table) = table else { continue };
            if items(&table, "rows").len() == 0 {
                continue;
            }
            if let Some(path) = &self.sort_by {
                let mut rows: Vec<Value> = items(&table, "rows").cloned().collect();
                sort_by(&mut rows, |row| &row["object"], path)?;
                table["rows"] = rows.into();
            }
            if shown > 0 {
                println!();
            }
            let prefix = several.then_some(&target.resource);
            print!(
                "{}",
                output::align(&self.rows(&table, wide, prefix, !self.no_headers))
            );
            shown += 1;
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        if shown == 0 && !self.ignore_not_found {
            if self.selection.all_namespaces || targets.iter().all(|t| t.namespace.is_empty()) {
                eprintln!("No resources found");
            } else {
                eprintln!("No resources found in {} namespace.", session.namespace);
            }
        }
        Ok(())
    }

    fn rows(
        &self,
        table: &Value,
        wide: bool,
        prefix: Option<&Resource>,
        head: bool,
    ) -> Vec<Vec<String>> {
        let columns: Vec<(usize, String)> = items(table, "columnDefinitions")
            .enumerate()
            .filter(|(_, column)| wide || column["priority"].as_i64().unwrap_or(0) == 0)
            .map(|(index, column)| (index, text(column, "name").to_uppercase()))
            .collect();
        let mut rows = Vec::new();
        if head {
            let mut row = Vec::new();
            if self.selection.all_namespaces {
                row.push("NAMESPACE".to_owned());
            }
            row.extend(columns.iter().map(|(_, name)| name.clone()));
            let last_part =
                |label: &String| label.rsplit('/').next().unwrap_or(label).to_uppercase();
            row.extend(self.label_columns.iter().map(last_part));
            if self.show_labels {
                row.push("LABELS".to_owned());
            }
            rows.push(row);
        }
        for row in items(table, "rows") {
            let metadata = &row["object"]["metadata"];
            let mut cells = Vec::new();
            if self.selection.all_namespaces {
                cells.push(text(metadata, "namespace"));
            }
            for (index, name) in &columns {
                let cell = match &row["cells"][*index] {
                    Value::String(cell) => cell.clone(),
                    Value::Null => "<none>".to_owned(),
                    other => other.to_string(),
                };
                match prefix {
                    Some(resource) if name == "NAME" => {
                        cells.push(format!("{}/{cell}", resource.qualified_singular()));
                    }
                    _ => cells.push(cell),
                }
            }
            let labels: BTreeMap<String, String> =
                serde_json::from_value(metadata["labels"].clone()).unwrap_or_default();
            for label in &self.label_columns {
                cells.push(labels.get(label).cloned().unwrap_or_default());
            }
            if self.show_labels {
                let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                cells.push(if pairs.is_empty() {
                    "<none>".to_owned()
                } else {
                    pairs.join(",")
                });
            }
            rows.push(cells);
        }
        rows
    }

    async fn run_watch(&self, session: &Session, target: &Target) -> Result<()> {
        let wide = self.output == Some(Format::Table { wide: true });
        let as_table = self.output.as_ref().is_none_or(Format::is_table);
        let accept = if as_table { TABLE } else { JSON };
        let mut query = self.selection.query();
        if let [name] = &target.names[..] {
            query = format!("fieldSelector=metadata.name%3D{name}");
        } else if target.names.len() > 1 {
            bail!("you may only specify a single name to watch");
        }
        let list = session
            .request("GET", &format!("{}?{query}", target.path("")), accept, None)
            .await?;
        let mut head = !self.no_headers;
        let mut widths = Widths::default();
        let mut show = |value: &Value| -> Result<()> {
            if as_table {
                for row in self.rows(value, wide, None, head) {
                    println!("{}", widths.pad(&row));
                }
                head = false;
            } else if let Some(format) = &self.output {
                for object in output::objects(value) {
                    let mut object = object.clone();
                    strip_managed_fields(&mut object);
                    print!("{}", format.render(&object, Some(&target.resource))?);
                }
            }
            Ok(())
        };
        if !self.watch_only && (items(&list, "rows").len() > 0 || items(&list, "items").len() > 0) {
            show(&list)?;
        }
        let mut version = text(&list["metadata"], "resourceVersion");
        // A watch ends by itself after a while; go on from the last version seen.
        loop {
            let path = format!(
                "{}?{query}&watch=true&allowWatchBookmarks=true&resourceVersion={version}",
                target.path("")
            );
            let request = Request::get(&path)
                .header(header::ACCEPT, accept)
                .body(Vec::new())?;
            let stream = session
                .client
                .request_stream(request)
                .await
                .map_err(session::explain)?;
            let mut lines = stream.lines();
            while let Some(line) = lines.try_next().await? {
                let event: Value = serde_json::from_str(&line)?;
                let object = &event["object"];
                if event["type"] == "ERROR" {
                    return Err(ApiError(object.clone()).into());
                }
                let seen = match as_table {
                    true => text(&object["rows"][0]["object"]["metadata"], "resourceVersion"),
                    false => text(&object["metadata"], "resourceVersion"),
                };
                let seen = if seen.is_empty() {
                    text(&object["metadata"], "resourceVersion")
                } else {
                    seen
                };
                if !seen.is_empty() {
                    version = seen;
                }
                if event["type"] != "BOOKMARK" {
                    show(object)?;
                }
            }
        }
    }
}

/// Column widths that only grow, so that lines of a watch stay under their heads.
#[derive(Default)]
struct Widths(Vec<usize>);

impl Widths {
    fn pad(&mut self, row: &[String]) -> String {
        self.0.resize(self.0.len().max(row.len()), 0);
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&mut self.0) {
            *width = (*width).max(cell.chars().count());
            line.push_str(&format!("{cell:<width$}   ", width = *width));
        }
        line.trim_end().to_owned()
    }
}

pub fn strip_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}

fn sort_by<T>(items: &mut Vec<T>, object: impl Fn(&T) -> &Value, path: &str) -> Result<()> {
    let template = if path.starts_with('{') {
        path.to_owned()
    } else {
        format!("{{{path}}}")
    };
    let mut keyed = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        let key = output::jsonpath(object(&item), &template)?;
        keyed.push((key.parse::<f64>().ok(), key, item));
    }
    keyed.sort_by(
        |(a_number, a, _), (b_number, b, _)| match (a_number, b_number) {
            (Some(a), Some(b)) => a.total_cmp(b),
            _ => a.cmp(b),
        },
    );
    items.extend(keyed.into_iter().map(|(_, _, item)| item));
    Ok(())
}
