//! `skep api-resources`, `api-versions`, `cluster-info`, `version`, `explain`, `auth can-i`, `auth whoami`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    discovery::{Resource, items},
    output,
    session::{Session, text},
};

/// List what the server serves.
#[derive(Args, Clone, Debug)]
pub struct ApiResources {
    /// Only of this group ('' is core)
    #[arg(long)]
    api_group: Option<String>,
    /// Only namespaced (or not)
    #[arg(long)]
    namespaced: Option<bool>,
    /// Only with all these verbs
    #[arg(long, value_delimiter = ',')]
    verbs: Vec<String>,
    /// wide or name
    #[arg(short, long)]
    output: Option<String>,
    #[arg(long)]
    no_headers: bool,
}

impl ApiResources {
    pub async fn run(self, session: &Session) -> Result<()> {
        let resources = session.resources().await?;
        let mut chosen: Vec<&Resource> = resources
            .all
            .iter()
            .filter(|r| r.preferred)
            .filter(|r| {
                self.api_group
                    .as_ref()
                    .is_none_or(|group| *group == r.group)
            })
            .filter(|r| {
                self.namespaced
                    .is_none_or(|namespaced| namespaced == r.namespaced)
            })
            .filter(|r| self.verbs.iter().all(|verb| r.verbs.contains(verb)))
            .collect();
        chosen.sort_by(|a, b| (&a.group, &a.plural).cmp(&(&b.group, &b.plural)));
        if self.output.as_deref() == Some("name") {
            chosen.iter().for_each(|resource| println!("{resource}"));
            return Ok(());
        }
        let wide = match self.output.as_deref() {
            None => false,
            Some("wide") => true,
            Some(other) => {
                bail!("--output {other} is not available in api-resources; want wide or name")
            }
        };
        let mut rows = Vec::new();
        if !self.no_headers {
            let mut head = vec!["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"];
            if wide {
                head.extend(["VERBS", "CATEGORIES"]);
            }
            rows.push(head.into_iter().map(str::to_owned).collect::<Vec<_>>());
        }
        for resource in chosen {
            let mut row = vec![
                resource.plural.clone(),
                resource.short_names.join(","),
                resource.api_version(),
                resource.namespaced.to_string(),
                resource.kind.clone(),
            ];
            if wide {
                row.extend([resource.verbs.join(","), resource.categories.join(",")]);
            }
            rows.push(row);
        }
        print!("{}", output::align(&rows));
        Ok(())
    }
}

pub async fn api_versions(session: &Session) -> Result<()> {
    let resources = session.resources().await?;
    let versions: BTreeSet<String> = resources.all.iter().map(Resource::api_version).collect();
    versions.iter().for_each(|version| println!("{version}"));
    Ok(())
}

pub async fn cluster_info(session: &Session) -> Result<()> {
    println!("Kubernetes control plane is running at {}", session.server);
    let path = "/api/v1/namespaces/kube-system/services?labelSelector=kubernetes.io%2Fcluster-service%3Dtrue";
    for service in items(&session.get(path).await?, "items") {
        let name = text(&service["metadata"], "name");
        let label = service["metadata"]["labels"]["kubernetes.io/name"]
            .as_str()
            .unwrap_or(&name);
        let address = text(&service["spec"], "clusterIP");
        println!("{label} is running at {address} ({name} in kube-system)");
    }
    println!("\nTo look closer at a problem, use 'skep get events -A' and 'skep describe'.");
    Ok(())
}

/// `session`: `None` with --client.
pub async fn version(session: Option<&Session>, format: Option<&str>) -> Result<()> {
    let server = match session {
        Some(session) => Some(session.get("/version").await?),
        None => None,
    };
    let client = json!({"gitVersion": concat!("v", env!("CARGO_PKG_VERSION"))});
    let mut all = json!({"clientVersion": client});
    if let Some(server) = &server {
        all["serverVersion"] = server.clone();
    }
    match format {
        Some("json") => println!("{all:#}"),
        Some("yaml") => print!("{}", output::yaml(&all)?),
        Some(other) => bail!("--output must be 'yaml' or 'json', not '{other}'"),
        None => {
            println!("Client Version: {}", text(&client, "gitVersion"));
            if let Some(server) = server {
                println!("Server Version: {}", text(&server, "gitVersion"));
            }
        }
    }
    Ok(())
}

/// Show the fields of a kind.
///
/// Examples:
///   skep explain pods
///   skep explain deployment.spec.strategy --recursive
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct Explain {
    /// TYPE[.FIELD…]
    target: String,
    #[arg(long)]
    recursive: bool,
    #[arg(long)]
    api_version: Option<String>,
}

impl Explain {
    pub async fn run(self, session: &Session) -> Result<()> {
        let mut parts = self.target.split('.');
        let word = parts.next().unwrap_or_default();
        let mut fields: Vec<&str> = parts.collect();
        let resource = match &self.api_version {
            Some(version) => {
                let resources = session.resources().await?;
                let kind = session.resource(word).await?.kind;
                resources
                    .of_kind(version, &kind)
                    .cloned()
                    .with_context(|| {
                        format!("couldn't find resource for \"{version}, Kind={kind}\"")
                    })?
            }
            None => match session.resource(&self.target).await {
                Ok(resource) => {
                    fields.clear();
                    resource
                }
                Err(_) => session.resource(word).await?,
            },
        };
        let path = if resource.group.is_empty() {
            format!("/openapi/v3/api/{}", resource.version)
        } else {
            format!("/openapi/v3/apis/{}/{}", resource.group, resource.version)
        };
        let document = session.get(&path).await?;
        let schemas = &document["components"]["schemas"];
        let is_kind = |schema: &&Value| {
            items(schema, "x-kubernetes-group-version-kind").any(|gvk| {
                gvk["kind"] == resource.kind.as_str()
                    && gvk["version"] == resource.version.as_str()
                    && gvk["group"] == resource.group.as_str()
            })
        };
        let schema = schemas
            .as_object()
            .and_then(|all| all.values().find(is_kind));
        let mut schema = schema
            .with_context(|| format!("the server publishes no schema of {}", resource.kind))?;
        let mut description = text(schema, "description");
        let mut type_name = resource.kind.clone();
        for field in &fields {
            let property = schema["properties"].get(*field);
            let property = property.with_context(|| format!("field \"{field}\" does not exist"))?;
            type_name = type_of(schemas, property);
            let own = text(property, "description");
            schema = element(schemas, property);
            description = if own.is_empty() {
                text(schema, "description")
            } else {
                own
            };
        }
        println!(
            "GROUP:      {}",
            if resource.group.is_empty() {
                "core"
            } else {
                &resource.group
            }
        );
        println!(
            "KIND:       {}\nVERSION:    {}\n",
            resource.kind, resource.version
        );
        if let Some(last) = fields.last() {
            println!("FIELD: {last} <{type_name}>\n");
        }
        println!("DESCRIPTION:\n{}", wrap(&description, 4));
        if schema["properties"].is_object() {
            println!("FIELDS:");
            show_fields(schemas, schema, 2, self.recursive, 0);
        }
        Ok(())
    }
}

/// Behind `$ref`, `allOf`, arrays and maps: the schema whose fields matter.
fn element<'a>(schemas: &'a Value, schema: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..8 {
        if let Some(reference) = schema["$ref"].as_str() {
            schema = &schemas[reference.rsplit('/').next().unwrap_or(reference)];
        } else if schema["allOf"].is_array() {
            schema = &schema["allOf"][0];
        } else if schema["items"].is_object() {
            schema = &schema["items"];
        } else if schema["additionalProperties"].is_object() {
            schema = &schema["additionalProperties"];
        } else {
            break;
        }
    }
    schema
}

fn type_of(schemas: &Value, schema: &Value) -> String {
    let reference = schema["$ref"]
        .as_str()
        .or(schema["allOf"][0]["$ref"].as_str());
    if let Some(reference) = reference {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        let target = &schemas[name];
        return match target["type"].as_str() {
            Some("object") | None => name.rsplit('.').next().unwrap_or(name).to_owned(),
            Some(simple) => simple.to_owned(),
        };
    }
    match schema["type"].as_str() {
        Some("array") => format!("[]{}", type_of(schemas, &schema["items"])),
        Some("object") if schema["additionalProperties"].is_object() => {
            format!(
                "map[string]{}",
                type_of(schemas, &schema["additionalProperties"])
            )
        }
        Some("object") | None => "Object".to_owned(),
        Some(simple) => simple.to_owned(),
    }
}

fn show_fields(schemas: &Value, schema: &Value, indent: usize, recursive: bool, depth: usize) {
    let required: Vec<&str> = items(schema, "required")
        .filter_map(Value::as_str)
        .collect();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let mark = if required.contains(&name.as_str()) {
            " -required-"
        } else {
            ""
        };
        println!(
            "{:indent$}{name}\t<{}>{mark}",
            "",
            type_of(schemas, property)
        );
        if recursive {
            // JSONSchemaProps holds itself.
            if depth < 12 {
                show_fields(
                    schemas,
                    element(schemas, property),
                    indent + 2,
                    true,
                    depth + 1,
                );
            }
        } else {
            let own = text(property, "description");
            let shown = if own.is_empty() {
                text(element(schemas, property), "description")
            } else {
                own
            };
            println!("{}", wrap(&shown, indent + 2));
        }
    }
}

fn wrap(description: &str, indent: usize) -> String {
    let mut out = String::new();
    for paragraph in description.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty()
                && line.chars().count() + word.chars().count() + 1 > 78 - indent.min(40)
            {
                out.push_str(&format!("{:indent$}{line}\n", ""));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        out.push_str(format!("{:indent$}{line}\n", "").trim_end_matches(' '));
    }
    if out.is_empty() {
        format!("{:indent$}<empty>\n", "")
    } else {
        out
    }
}

/// Who am I, and what may I do?
#[derive(Subcommand, Clone, Debug)]
pub enum Auth {
    /// May I? skep auth can-i create pods; skep auth can-i '*' '*'; skep auth can-i get /healthz
    CanI {
        verb: Option<String>,
        /// TYPE[/NAME] or a path
        target: Option<String>,
        #[arg(long)]
        subresource: Option<String>,
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        /// All that I may do in the namespace
        #[arg(long)]
        list: bool,
        #[arg(short, long)]
        quiet: bool,
    },
    /// Who the server takes me for
    Whoami,
}

/// The answer was no: exit code 1, nothing more to say.
#[derive(Debug, thiserror::Error)]
#[error("")]
pub struct Refused;

impl Auth {
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Whoami => whoami(session).await,
            Self::CanI { list: true, .. } => list_rules(session).await,
            Self::CanI {
                verb,
                target,
                subresource,
                all_namespaces,
                quiet,
                ..
            } => {
                let (Some(verb), Some(target)) = (verb, target) else {
                    bail!(
                        "you must specify two arguments: verb resource or verb resource/resourceName"
                    );
                };
                let mut spec = json!({});
                if target.starts_with('/') {
                    spec["nonResourceAttributes"] = json!({"verb": verb, "path": target});
                } else {
                    let (kind, name) = target.split_once('/').unwrap_or((&target, ""));
                    let (group, plural) = match session.resource(kind).await {
                        Ok(resource) => (resource.group, resource.plural),
                        Err(_) if kind == "*" => ("*".to_owned(), "*".to_owned()),
                        Err(_) => {
                            eprintln!(
                                "Warning: the server doesn't have a resource type '{kind}'\n"
                            );
                            (String::new(), kind.to_owned())
                        }
                    };
                    let namespace = if all_namespaces {
                        ""
                    } else {
                        &session.namespace
                    };
                    spec["resourceAttributes"] = json!({
                        "verb": verb, "group": group, "resource": plural, "name": name,
                        "namespace": namespace, "subresource": subresource.unwrap_or_default(),
                    });
                }
                let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec});
                let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
                let answer = session.create(path, &review).await?;
                let allowed = answer["status"]["allowed"] == true;
                if !quiet {
                    println!("{}", if allowed { "yes" } else { "no" });
                }
                if allowed { Ok(()) } else { Err(Refused.into()) }
            }
        }
    }
}

async fn whoami(session: &Session) -> Result<()> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = session
        .create("/apis/authentication.k8s.io/v1/selfsubjectreviews", &review)
        .await?;
    let user = &answer["status"]["userInfo"];
    let groups: Vec<&str> = items(user, "groups").filter_map(Value::as_str).collect();
    let mut rows = vec![
        vec!["ATTRIBUTE".to_owned(), "VALUE".to_owned()],
        vec!["Username".to_owned(), text(user, "username")],
    ];
    if user["uid"].is_string() {
        rows.push(vec!["UID".to_owned(), text(user, "uid")]);
    }
    rows.push(vec!["Groups".to_owned(), format!("[{}]", groups.join(" "))]);
    print!("{}", output::align(&rows));
    Ok(())
}

async fn list_rules(session: &Session) -> Result<()> {
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": session.namespace}});
    let answer = session
        .create(
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            &review,
        )
        .await?;
    let list = |rule: &Value, key: &str| {
        let words: Vec<&str> = items(rule, key).filter_map(Value::as_str).collect();
        format!("[{}]", words.join(" "))
    };
    let mut rows = vec![
        ["Resources", "Non-Resource URLs", "Resource Names", "Verbs"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for rule in items(&answer["status"], "resourceRules") {
        let groups: Vec<&str> = items(rule, "apiGroups").filter_map(Value::as_str).collect();
        let resources: Vec<String> = items(rule, "resources")
            .filter_map(Value::as_str)
            .flat_map(|resource| {
                groups.iter().map(move |group| match *group {
                    "" => resource.to_owned(),
                    group => format!("{resource}.{group}"),
                })
            })
            .collect();
        rows.push(vec![
            resources.join(","),
            "[]".into(),
            list(rule, "resourceNames"),
            list(rule, "verbs"),
        ]);
    }
    for rule in items(&answer["status"], "nonResourceRules") {
        rows.push(vec![
            String::new(),
            list(rule, "nonResourceURLs"),
            "[]".into(),
            list(rule, "verbs"),
        ]);
    }
    print!("{}", output::align(&rows));
    Ok(())
}
