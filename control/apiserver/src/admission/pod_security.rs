//! PodSecurity: the pod security standards, per namespace by its `pod-security.kubernetes.io/*` labels.

use async_trait::async_trait;
use serde_json::Value;
use skep_api::field::{Bad, FieldError, FieldErrorKind};

use super::{Attributes, Operation, Plugin, forbidden, object, objects};
use crate::{
    context::Api,
    status::{Result, Status},
};

#[path = "pod_security_checks.rs"]
mod checks;

use checks::violations;

const PREFIX: &str = "pod-security.kubernetes.io/";
/// Pods looked at when a namespace's level is raised, as upstream's bound.
const MAX_EXISTING_PODS: usize = 3000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// The second number of a version of the standards.
type Minor = u32;

/// A level with the version of the standards that it means.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    level: Level,
    version: String,
}

impl Policy {
    /// What a namespace's labels say about `enforce` or `warn`; what is not valid counts as the strictest.
    fn of(namespace: &Value, mode: &str) -> Self {
        let labels = &namespace["metadata"]["labels"];
        let label = |name: String| labels[name.as_str()].as_str();
        let level = label(format!("{PREFIX}{mode}"));
        Self {
            level: level.map_or(Level::Privileged, |l| {
                Level::parse(l).unwrap_or(Level::Restricted)
            }),
            version: label(format!("{PREFIX}{mode}-version"))
                .unwrap_or("latest")
                .to_owned(),
        }
    }

    /// `latest`, and what has not come yet, mean the newest there is.
    fn minor(&self) -> Minor {
        let minor = self.version.strip_prefix("v1.");
        minor
            .filter(|_| valid_version(&self.version))
            .and_then(|minor| minor.parse().ok())
            .unwrap_or(Minor::MAX)
    }

    fn name(&self) -> String {
        format!("{}:{}", self.level.as_str(), self.version)
    }
}

pub struct PodSecurity;

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    async fn validate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if !matches!(attributes.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        if attributes.is("", "namespaces") {
            return check_namespace(api, attributes);
        }
        if attributes.namespace.is_empty() {
            return Ok(());
        }
        let Some((metadata, spec)) = pod_of(attributes) else {
            return Ok(());
        };
        if attributes.resource.is("", "pods")
            && attributes.operation == Operation::Update
            && !significant(attributes)
        {
            return Ok(());
        }
        let namespace = object(api, "", "namespaces", "", attributes.namespace).await?;
        let namespace = namespace.unwrap_or(Value::Null);
        let enforce = Policy::of(&namespace, "enforce");
        let warn = match &namespace["metadata"]["labels"][format!("{PREFIX}warn").as_str()] {
            // What is enforced is warned about where it cannot be enforced: in templates.
            Value::Null => enforce.clone(),
            _ => Policy::of(&namespace, "warn"),
        };
        let describe = |policy: &Policy| -> Option<String> {
            let broken = violations(metadata, spec, policy.level, policy.minor());
            if broken.is_empty() {
                return None;
            }
            let texts: Vec<String> = broken.iter().map(ToString::to_string).collect();
            Some(format!(
                "PodSecurity {:?}: {}",
                policy.name(),
                texts.join(", ")
            ))
        };
        let is_pod = attributes.resource.is("", "pods");
        let audited = describe(&Policy::of(&namespace, "audit"));
        let enforced = is_pod.then(|| describe(&enforce)).flatten();
        let warned = describe(&warn);
        let mut annotate = |key: &str, value: String| {
            attributes
                .annotations
                .push((format!("{PREFIX}{key}"), value));
        };
        if is_pod {
            annotate("enforce-policy", enforce.name());
        }
        if let Some(broken) = audited {
            annotate("audit-violations", format!("would violate {broken}"));
        }
        if let Some(broken) = enforced {
            return Err(forbidden(attributes, &format!("violates {broken}")));
        }
        if let Some(broken) = warned {
            attributes.warnings.push(format!("would violate {broken}"));
        }
        Ok(())
    }
}

/// Metadata and spec of the pod, or of the pod template, that is being written.
fn pod_of<'a>(attributes: &'a Attributes<'_>) -> Option<(&'a Value, &'a Value)> {
    let object = &attributes.object;
    let resource = attributes.resource;
    if resource.is("", "pods") {
        let written = matches!(attributes.subresource, "" | "ephemeralcontainers");
        return written.then(|| (&object["metadata"], &object["spec"]));
    }
    if !attributes.subresource.is_empty() {
        return None;
    }
    let template = match (resource.def.group.as_ref(), resource.def.plural.as_ref()) {
        ("", "podtemplates") => &object["template"],
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => &object["spec"]["template"],
        ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
        _ => return None,
    };
    template["spec"]
        .is_object()
        .then(|| (&template["metadata"], &template["spec"]))
}

/// Only what runs may change in a pod: other updates were checked when it was created.
fn significant(attributes: &Attributes<'_>) -> bool {
    let images = |pod: &Value| -> Vec<Value> {
        ["initContainers", "containers", "ephemeralContainers"]
            .iter()
            .flat_map(|field| pod["spec"][field].as_array().cloned().unwrap_or_default())
            .map(|c| c["image"].clone())
            .collect()
    };
    images(&attributes.object) != images(attributes.old)
}

fn check_namespace(api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
    if !attributes.subresource.is_empty() {
        return Ok(());
    }
    let errors = label_errors(&attributes.object);
    if !errors.is_empty() && label_errors(attributes.old).is_empty() {
        let name = crate::codec::meta(&attributes.object, "name").to_owned();
        return Err(Status::invalid("", "Namespace", &name, &errors));
    }
    let (new, old) = (
        Policy::of(&attributes.object, "enforce"),
        Policy::of(attributes.old, "enforce"),
    );
    if attributes.operation == Operation::Create || new == old || new.level == Level::Privileged {
        return Ok(());
    }
    let name = crate::codec::meta(&attributes.object, "name").to_owned();
    // Pods that break the new level in the same ways share a line.
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for pod in objects(api, "", "pods", &name)
        .into_iter()
        .take(MAX_EXISTING_PODS)
    {
        let broken = violations(&pod["metadata"], &pod["spec"], new.level, new.minor());
        if broken.is_empty() {
            continue;
        }
        let reasons: Vec<&str> = broken.iter().map(|v| v.reason.as_str()).collect();
        let reasons = reasons.join(", ");
        let pod = crate::codec::meta(&pod, "name").to_owned();
        match groups.iter_mut().find(|(known, _)| *known == reasons) {
            Some((_, pods)) => pods.push(pod),
            None => groups.push((reasons, vec![pod])),
        }
    }
    if groups.is_empty() {
        return Ok(());
    }
    attributes.warnings.push(format!(
        "existing pods in namespace {name:?} violate the new PodSecurity enforce level {:?}",
        new.name()
    ));
    groups.sort_by(|a, b| a.1.first().cmp(&b.1.first()));
    for (reasons, pods) in groups {
        let others = match pods.len() {
            1 => String::new(),
            2 => " (and 1 other pod)".to_owned(),
            n => format!(" (and {} other pods)", n - 1),
        };
        let first = pods.first().map(String::as_str).unwrap_or_default();
        attributes
            .warnings
            .push(format!("{first}{others}: {reasons}"));
    }
    Ok(())
}

fn label_errors(namespace: &Value) -> Vec<FieldError> {
    let labels = &namespace["metadata"]["labels"];
    let mut errors = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        let (level, version) = (format!("{PREFIX}{mode}"), format!("{PREFIX}{mode}-version"));
        for (label, valid, why) in [
            (
                &level,
                (|l: &str| Level::parse(l).is_some()) as fn(&str) -> bool,
                "must be one of privileged, baseline, restricted",
            ),
            (&version, valid_version, "must be \"latest\" or \"v1.x\""),
        ] {
            if let Some(value) = labels[label.as_str()].as_str()
                && !valid(value)
            {
                let field = format!("metadata.labels[{label}]");
                errors.push(FieldError::new(
                    FieldErrorKind::Invalid,
                    field,
                    Bad::from(value),
                    why,
                ));
            }
        }
    }
    errors
}

fn valid_version(text: &str) -> bool {
    let minor = text.strip_prefix("v1.");
    let number = |m: &str| {
        !m.is_empty() && m.bytes().all(|b| b.is_ascii_digit()) && (m == "0" || !m.starts_with('0'))
    };
    text == "latest" || minor.is_some_and(number)
}
