//! Reading a pod's spec: the questions the kubelet asks again and again.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use sha2::{Digest, Sha256};

use crate::runtime::PodRef;

/// Where a pod comes from: `file` for a static one.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Runs to its end before the next one starts.
    Init,
    /// A restartable init container: must have started before the next one, then keeps running.
    Sidecar,
    Main,
    Ephemeral,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> Self {
        match text {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }

    pub fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

pub fn identity(pod: &Pod) -> PodRef {
    PodRef {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
    }
}

/// Upstream's way of naming a pod in messages: `name_namespace(uid)`.
pub fn full_name(pod: &PodRef) -> String {
    format!("{}_{}({})", pod.name, pod.namespace, pod.uid)
}

pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    RestartPolicy::parse(spec(pod).restart_policy.as_deref())
}

pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

const RESTART_ALL: &str = "RestartAllContainers";

/// The action of the first rule that fits an exit code.
fn rule(container: &Container, exit_code: i32) -> Option<&str> {
    let mut rules = container.restart_policy_rules.iter().flatten();
    let fits = rules.find(|rule| {
        let Some(codes) = &rule.exit_codes else {
            return false;
        };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    });
    fits.map(|rule| rule.action.as_str())
}

/// KEP-5532: with this exit code the container takes all of its pod along into a restart.
pub fn restarts_all(container: &Container, exit_code: i32) -> bool {
    rule(container, exit_code) == Some(RESTART_ALL)
}

/// KEP-5307: a container's own policy wins over the pod's, and its rules over both.
pub fn restarts(pod: &Pod, container: &Container, kind: Kind, exit_code: i32) -> bool {
    match kind {
        Kind::Sidecar => return true,
        Kind::Ephemeral => return false,
        Kind::Init | Kind::Main => {}
    }
    if let Some(action) = rule(container, exit_code) {
        return matches!(action, "Restart" | RESTART_ALL);
    }
    let policy = match &container.restart_policy {
        Some(own) => RestartPolicy::parse(Some(own)),
        None => restart_policy(pod),
    };
    match (kind, policy) {
        // An init container that succeeded is done, whatever the policy.
        (Kind::Init, policy) => exit_code != 0 && policy != RestartPolicy::Never,
        (_, policy) => policy.restarts(exit_code),
    }
}

/// Whether a container that is found to be ill is replaced.
pub fn restarts_on_failure(pod: &Pod, container: &Container) -> bool {
    let policy = match &container.restart_policy {
        Some(own) => RestartPolicy::parse(Some(own)),
        None => restart_policy(pod),
    };
    policy != RestartPolicy::Never
}

/// An ephemeral container as an ordinary one: the same fields with fewer allowed.
pub fn ephemeral(pod: &Pod) -> Vec<Container> {
    spec(pod)
        .ephemeral_containers
        .iter()
        .flatten()
        .filter_map(|e| serde_json::from_value(serde_json::to_value(e).ok()?).ok())
        .collect()
}

/// Every container in the order in which it may start.
pub fn containers(pod: &Pod) -> Vec<(Kind, Container)> {
    let spec = spec(pod);
    let init = spec.init_containers.iter().flatten().map(|c| {
        (
            if is_sidecar(c) {
                Kind::Sidecar
            } else {
                Kind::Init
            },
            c.clone(),
        )
    });
    let main = spec.containers.iter().map(|c| (Kind::Main, c.clone()));
    let ephemeral = ephemeral(pod).into_iter().map(|c| (Kind::Ephemeral, c));
    init.chain(main).chain(ephemeral).collect()
}

pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or("Pending")
}

/// The API already says that this pod has ended; it never starts again.
pub fn is_over(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// How long containers get to stop. Never zero: a container gets a second to react.
pub fn grace(pod: &Pod) -> Duration {
    let seconds = pod
        .metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(30);
    Duration::from_secs(seconds.max(1).unsigned_abs())
}

/// Changes of these fields restart a container in place; nothing else of a running pod's
/// containers may change.
pub fn hash(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let digest = Sha256::digest(format!("{}\0{image}", container.name));
    digest.iter().take(4).map(|b| format!("{b:02x}")).collect()
}

/// From a file of this node, not from the API.
pub fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref();
    source.is_some_and(|a| a.get(CONFIG_SOURCE).is_some_and(|s| s != "api"))
}

pub fn is_host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}
