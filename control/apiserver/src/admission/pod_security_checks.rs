//! The checks of the pod security standards, each in the versions that have it, as data about one pod.

use std::{collections::BTreeSet, fmt};

use serde_json::Value;

use super::{Level, Minor};

/// A check that a pod fails: `hostPath volumes (volume "v")`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{} ({})", self.reason, self.detail)
        }
    }
}

type Check = fn(&Pod<'_>) -> Option<Violation>;

/// A check of the baseline level.
struct Baseline {
    check: Check,
    since: Minor,
    /// From this version on, the restricted level has its own form of it.
    replaced_since: Option<Minor>,
}

const fn baseline(check: Check) -> Baseline {
    Baseline {
        check,
        since: 0,
        replaced_since: None,
    }
}

/// In the order in which upstream reports them.
const BASELINE: [Baseline; 12] = [
    baseline(app_armor),
    Baseline {
        replaced_since: Some(22),
        ..baseline(capabilities)
    },
    baseline(host_namespaces),
    Baseline {
        replaced_since: Some(0),
        ..baseline(host_path)
    },
    baseline(host_ports),
    Baseline {
        since: 34,
        ..baseline(probe_hosts)
    },
    baseline(privileged),
    baseline(proc_mount),
    baseline(selinux),
    Baseline {
        replaced_since: Some(19),
        ..baseline(seccomp)
    },
    baseline(sysctls),
    baseline(host_process),
];

/// With the version that brought each.
const RESTRICTED: [(Check, Minor); 6] = [
    (privilege_escalation, 8),
    (capabilities_restricted, 22),
    (volume_types, 0),
    (run_as_non_root, 0),
    (run_as_user, 23),
    (seccomp_restricted, 19),
];

/// What of a level the pod breaks, by the standards of one version.
pub fn violations(metadata: &Value, spec: &Value, level: Level, version: Minor) -> Vec<Violation> {
    if level == Level::Privileged {
        return Vec::new();
    }
    let pod = Pod {
        metadata,
        spec,
        version,
    };
    let restricted = level == Level::Restricted;
    let replaced =
        |one: &Baseline| restricted && one.replaced_since.is_some_and(|since| since <= version);
    let mut found: Vec<Violation> = BASELINE
        .iter()
        .filter(|one| one.since <= version && !replaced(one))
        .filter_map(|one| (one.check)(&pod))
        .collect();
    if restricted {
        let checks = RESTRICTED.iter().filter(|(_, since)| *since <= version);
        found.extend(checks.filter_map(|(check, _)| check(&pod)));
    }
    found
}

struct Pod<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    /// Of the standards.
    version: Minor,
}

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |field| spec[field].as_array().into_iter().flatten())
    }

    /// Names of the containers for which `broken` holds.
    fn which(&self, broken: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        let containers = self.containers().filter(|c| broken(c));
        containers.filter_map(|c| c["name"].as_str()).collect()
    }

    /// What only Linux knows is not asked of Windows since 1.25.
    fn is_windows(&self) -> bool {
        self.version >= 25 && self.spec["os"]["name"] == "windows"
    }

    /// A pod in a user namespace may be root in it since 1.35 (KEP-127).
    fn has_user_namespace(&self) -> bool {
        self.version >= 35 && self.spec["hostUsers"] == false
    }
}

fn violation(reason: impl Into<String>, detail: impl Into<String>) -> Option<Violation> {
    Some(Violation {
        reason: reason.into(),
        detail: detail.into(),
    })
}

fn quoted<T: fmt::Debug>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| format!("{n:?}")).collect();
    names.join(", ")
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`
fn containers(names: &[&str]) -> String {
    format!(
        "{} {}",
        plural("container", "containers", names.len()),
        quoted(names)
    )
}

fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let forbidden = |profile: &Value| profile["type"] == "Unconfined";
    let mut details = Vec::new();
    if forbidden(&pod.spec["securityContext"]["appArmorProfile"]) {
        details.push("pod must not set AppArmor profile type to \"Unconfined\"".to_owned());
    }
    let names = pod.which(|c| forbidden(&c["securityContext"]["appArmorProfile"]));
    if !names.is_empty() {
        let which = containers(&names);
        details.push(format!(
            "{which} must not set AppArmor profile type to \"Unconfined\""
        ));
    }
    let mut values = Vec::new();
    for (key, value) in pod.metadata["annotations"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let value = value.as_str().unwrap_or_default();
        let allowed = matches!(value, "" | "runtime/default") || value.starts_with("localhost/");
        if key.starts_with(ANNOTATION) && !allowed {
            values.push(format!("{key}={value:?}"));
        }
    }
    if !values.is_empty() {
        let word = plural("annotation", "annotations", values.len());
        details.push(format!("{word} {}", values.join(", ")));
    }
    if details.is_empty() {
        return None;
    }
    let word = plural(
        "forbidden AppArmor profile",
        "forbidden AppArmor profiles",
        details.len(),
    );
    violation(word, details.join("; "))
}

fn added(container: &Value) -> impl Iterator<Item = &str> {
    let add = container["securityContext"]["capabilities"]["add"].as_array();
    add.into_iter().flatten().filter_map(Value::as_str)
}

fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let forbidden = |container: &Value| -> BTreeSet<String> {
        let added = added(container).filter(|c| !ALLOWED.contains(c));
        added.map(str::to_owned).collect()
    };
    let names = pod.which(|c| !forbidden(c).is_empty());
    if names.is_empty() {
        return None;
    }
    let all: BTreeSet<String> = pod.containers().flat_map(forbidden).collect();
    violation(
        "non-default capabilities",
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&names),
            quoted(all)
        ),
    )
}

fn capabilities_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let drops_all = |c: &Value| {
        let drop = c["securityContext"]["capabilities"]["drop"].as_array();
        drop.is_some_and(|d| d.iter().any(|cap| cap == "ALL"))
    };
    let keeping = pod.which(|c| !drops_all(c));
    let adds = |c: &Value| added(c).any(|cap| cap != "NET_BIND_SERVICE");
    let adding = pod.which(adds);
    let mut details = Vec::new();
    if !keeping.is_empty() {
        let which = containers(&keeping);
        details.push(format!(
            "{which} must set securityContext.capabilities.drop=[\"ALL\"]"
        ));
    }
    if !adding.is_empty() {
        let all: BTreeSet<&str> = pod
            .containers()
            .flat_map(added)
            .filter(|cap| *cap != "NET_BIND_SERVICE")
            .collect();
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&adding),
            quoted(all)
        ));
    }
    if details.is_empty() {
        return None;
    }
    violation("unrestricted capabilities", details.join("; "))
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|field| pod.spec[**field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    if set.is_empty() {
        return None;
    }
    violation("host namespaces", set.join(", "))
}

fn volumes<'a>(pod: &Pod<'a>) -> impl Iterator<Item = &'a Value> {
    pod.spec["volumes"].as_array().into_iter().flatten()
}

fn host_path(pod: &Pod<'_>) -> Option<Violation> {
    let with_path = volumes(pod).filter(|v| !v["hostPath"].is_null());
    let names: Vec<&str> = with_path.filter_map(|v| v["name"].as_str()).collect();
    if names.is_empty() {
        return None;
    }
    let word = plural("volume", "volumes", names.len());
    violation("hostPath volumes", format!("{word} {}", quoted(names)))
}

fn volume_types(pod: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: [&str; 8] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let type_of = |volume: &Value| -> Option<String> {
        let fields = volume.as_object().into_iter().flatten();
        let types = fields.filter(|(key, value)| key.as_str() != "name" && !value.is_null());
        let mut types = types.map(|(key, _)| key.clone());
        types.find(|t| !ALLOWED.contains(&t.as_str()))
    };
    let mut names = Vec::new();
    let mut types = BTreeSet::new();
    for volume in volumes(pod) {
        if let Some(type_) = type_of(volume) {
            names.push(volume["name"].as_str().unwrap_or_default());
            types.insert(type_);
        }
    }
    if names.is_empty() {
        return None;
    }
    violation(
        "restricted volume types",
        format!(
            "{} {} {} {} {}",
            plural("volume", "volumes", names.len()),
            quoted(&names),
            plural("uses", "use", names.len()),
            plural(
                "restricted volume type",
                "restricted volume types",
                types.len()
            ),
            quoted(&types)
        ),
    )
}

fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    let ports_of = |container: &Value| -> Vec<u64> {
        let ports = container["ports"].as_array().into_iter().flatten();
        let ports = ports.filter_map(|p| p["hostPort"].as_u64());
        ports.filter(|port| *port != 0).collect()
    };
    let names = pod.which(|c| !ports_of(c).is_empty());
    if names.is_empty() {
        return None;
    }
    let ports: BTreeSet<u64> = pod.containers().flat_map(ports_of).collect();
    let mut ports: Vec<String> = ports.iter().map(u64::to_string).collect();
    // Upstream sorts them as text.
    ports.sort();
    let word = plural("hostPort", "hostPorts", ports.len());
    violation(
        "hostPort",
        format!(
            "{} {} {word} {}",
            containers(&names),
            plural("uses", "use", names.len()),
            ports.join(", ")
        ),
    )
}

fn probe_hosts(pod: &Pod<'_>) -> Option<Violation> {
    let hosts_of = |container: &Value| -> BTreeSet<String> {
        let handlers = [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &container["lifecycle"]["postStart"],
            &container["lifecycle"]["preStop"],
        ];
        let hosts = handlers
            .into_iter()
            .flat_map(|h| [&h["httpGet"]["host"], &h["tcpSocket"]["host"]]);
        let hosts = hosts.filter_map(Value::as_str);
        let local = |host: &str| matches!(host, "" | "localhost" | "127.0.0.1" | "::1");
        hosts.filter(|h| !local(h)).map(str::to_owned).collect()
    };
    let names = pod.which(|c| !hosts_of(c).is_empty());
    if names.is_empty() {
        return None;
    }
    let hosts: BTreeSet<String> = pod.containers().flat_map(hosts_of).collect();
    violation(
        "probe or lifecycle host",
        format!(
            "{} {} probe or lifecycle {} {}",
            containers(&names),
            plural("uses", "use", names.len()),
            plural("host", "hosts", hosts.len()),
            quoted(hosts)
        ),
    )
}

fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let names = pod.which(|c| c["securityContext"]["privileged"] == true);
    if names.is_empty() {
        return None;
    }
    let which = containers(&names);
    violation(
        "privileged",
        format!("{which} must not set securityContext.privileged=true"),
    )
}

fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_user_namespace() {
        return None;
    }
    let set = |c: &Value| {
        let mount = c["securityContext"]["procMount"].as_str();
        mount.filter(|m| *m != "Default").map(str::to_owned)
    };
    let names = pod.which(|c| set(c).is_some());
    if names.is_empty() {
        return None;
    }
    let values: BTreeSet<String> = pod.containers().filter_map(set).collect();
    violation(
        "procMount",
        format!(
            "{} must not set securityContext.procMount to {}",
            containers(&names),
            quoted(values)
        ),
    )
}

fn selinux(pod: &Pod<'_>) -> Option<Violation> {
    const TYPES: [&str; 5] = [
        "",
        "container_t",
        "container_init_t",
        "container_kvm_t",
        "container_engine_t", // since 1.31
    ];
    let types = if pod.version >= 31 {
        &TYPES[..]
    } else {
        &TYPES[..4]
    };
    let options = |context: &Value| context["securityContext"]["seLinuxOptions"].clone();
    let type_of = |o: &Value| o["type"].as_str().unwrap_or_default().to_owned();
    let set = |o: &Value, field: &str| !o[field].as_str().unwrap_or_default().is_empty();
    let bad = |o: &Value| !types.contains(&type_of(o).as_str()) || set(o, "user") || set(o, "role");
    let pod_bad = bad(&options(pod.spec));
    let names = pod.which(|c| bad(&options(c)));
    if !pod_bad && names.is_empty() {
        return None;
    }
    let mut who = Vec::new();
    if pod_bad {
        who.push("pod".to_owned());
    }
    if !names.is_empty() {
        who.push(containers(&names));
    }
    let all: Vec<Value> = std::iter::once(options(pod.spec))
        .chain(pod.containers().map(options))
        .collect();
    let bad_types: BTreeSet<String> = all
        .iter()
        .map(type_of)
        .filter(|t| !types.contains(&t.as_str()))
        .collect();
    let mut what = Vec::new();
    if !bad_types.is_empty() {
        let word = plural("type", "types", bad_types.len());
        what.push(format!("{word} {}", quoted(bad_types)));
    }
    for field in ["user", "role"] {
        if all.iter().any(|o| set(o, field)) {
            what.push(format!("{field} may not be set"));
        }
    }
    violation(
        "seLinuxOptions",
        format!(
            "{} set forbidden securityContext.seLinuxOptions: {}",
            who.join(" and "),
            what.join("; ")
        ),
    )
}

fn seccomp_type(context: &Value) -> &str {
    context["securityContext"]["seccompProfile"]["type"]
        .as_str()
        .unwrap_or_default()
}

/// What said the profile before 1.19.
fn seccomp_annotations(pod: &Pod<'_>) -> Option<Violation> {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let of_containers = pod.containers().filter_map(|c| c["name"].as_str());
    let keys = std::iter::once(POD.to_owned())
        .chain(of_containers.map(|name| format!("{CONTAINER}{name}")));
    let good = |value: &str| {
        matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/")
    };
    let bad: BTreeSet<String> = keys
        .filter_map(|key| {
            let value = pod.metadata["annotations"][key.as_str()].as_str()?;
            (!good(value)).then(|| format!("{key}={value:?}"))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let word = plural("annotation", "annotations", bad.len());
    let bad: Vec<String> = bad.into_iter().collect();
    violation(
        "seccompProfile",
        format!("forbidden {word} {}", bad.join(", ")),
    )
}

fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    if pod.version < 19 {
        return seccomp_annotations(pod);
    }
    let bad =
        |context: &Value| !matches!(seccomp_type(context), "" | "RuntimeDefault" | "Localhost");
    let names = pod.which(bad);
    let mut who = Vec::new();
    if bad(pod.spec) {
        who.push("pod".to_owned());
    }
    if !names.is_empty() {
        who.push(containers(&names));
    }
    if who.is_empty() {
        return None;
    }
    let contexts = std::iter::once(pod.spec).chain(pod.containers());
    let values: BTreeSet<&str> = contexts.filter(|c| bad(c)).map(seccomp_type).collect();
    violation(
        "seccompProfile",
        format!(
            "{} must not set securityContext.seccompProfile.type to {}",
            who.join(" and "),
            quoted(values)
        ),
    )
}

fn seccomp_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    const REASON: &str = "seccompProfile";
    let good = |context: &Value| matches!(seccomp_type(context), "RuntimeDefault" | "Localhost");
    let explicitly_bad = |context: &Value| !seccomp_type(context).is_empty() && !good(context);
    let bad = pod.which(explicitly_bad);
    let pod_bad = explicitly_bad(pod.spec);
    if pod_bad || !bad.is_empty() {
        let mut who = Vec::new();
        if pod_bad {
            who.push("pod".to_owned());
        }
        if !bad.is_empty() {
            who.push(containers(&bad));
        }
        let contexts = std::iter::once(pod.spec).chain(pod.containers());
        let values: BTreeSet<&str> = contexts
            .filter(|c| explicitly_bad(c))
            .map(seccomp_type)
            .collect();
        return violation(
            REASON,
            format!(
                "{} must not set securityContext.seccompProfile.type to {}",
                who.join(" and "),
                quoted(values)
            ),
        );
    }
    if good(pod.spec) {
        return None;
    }
    let missing = pod.which(|c| seccomp_type(c).is_empty());
    if missing.is_empty() {
        return None;
    }
    violation(
        REASON,
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers(&missing)
        ),
    )
}

fn sysctls(pod: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: [(&str, Minor); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let allowed = |name: &str| {
        let known = ALLOWED.iter().find(|(known, _)| *known == name);
        known.is_some_and(|(_, since)| *since <= pod.version)
    };
    let sysctls = pod.spec["securityContext"]["sysctls"]
        .as_array()
        .into_iter()
        .flatten();
    let names = sysctls.filter_map(|s| s["name"].as_str());
    let bad: Vec<&str> = names.filter(|name| !allowed(name)).collect();
    if bad.is_empty() {
        return None;
    }
    violation("forbidden sysctls", bad.join(", "))
}

fn host_process(pod: &Pod<'_>) -> Option<Violation> {
    let set = |c: &Value| c["securityContext"]["windowsOptions"]["hostProcess"] == true;
    let names = pod.which(set);
    let mut who = Vec::new();
    if set(pod.spec) {
        who.push("pod".to_owned());
    }
    if !names.is_empty() {
        who.push(containers(&names));
    }
    if who.is_empty() {
        return None;
    }
    violation(
        "hostProcess",
        format!(
            "{} must not set securityContext.windowsOptions.hostProcess=true",
            who.join(" and ")
        ),
    )
}

fn privilege_escalation(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let names = pod.which(|c| c["securityContext"]["allowPrivilegeEscalation"] != false);
    if names.is_empty() {
        return None;
    }
    let which = containers(&names);
    violation(
        "allowPrivilegeEscalation != false",
        format!("{which} must set securityContext.allowPrivilegeEscalation=false"),
    )
}

fn run_as_non_root(pod: &Pod<'_>) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    if pod.has_user_namespace() {
        return None;
    }
    let set = |context: &Value| context["securityContext"]["runAsNonRoot"].as_bool();
    let bad = pod.which(|c| set(c) == Some(false));
    let pod_bad = set(pod.spec) == Some(false);
    if pod_bad || !bad.is_empty() {
        let mut who = Vec::new();
        if pod_bad {
            who.push("pod".to_owned());
        }
        if !bad.is_empty() {
            who.push(containers(&bad));
        }
        let detail = format!(
            "{} must not set securityContext.runAsNonRoot=false",
            who.join(" and ")
        );
        return violation(REASON, detail);
    }
    if set(pod.spec) == Some(true) {
        return None;
    }
    let missing = pod.which(|c| set(c).is_none());
    if missing.is_empty() {
        return None;
    }
    let which = containers(&missing);
    violation(
        REASON,
        format!("pod or {which} must set securityContext.runAsNonRoot=true"),
    )
}

fn run_as_user(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_user_namespace() {
        return None;
    }
    let root = |context: &Value| context["securityContext"]["runAsUser"] == 0;
    let names = pod.which(root);
    let mut who = Vec::new();
    if root(pod.spec) {
        who.push("pod".to_owned());
    }
    if !names.is_empty() {
        who.push(containers(&names));
    }
    if who.is_empty() {
        return None;
    }
    violation(
        "runAsUser=0",
        format!("{} must not set runAsUser=0", who.join(" and ")),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(spec: Value, level: Level, expected: &[&str]) {
        check_at(36, &Value::Null, spec, level, expected);
    }

    #[track_caller]
    fn check_at(version: Minor, metadata: &Value, spec: Value, level: Level, expected: &[&str]) {
        let found = violations(metadata, &spec, level, version);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn levels_grow() {
        let plain = json!({"containers": [{"name": "c"}]});
        check(plain.clone(), Level::Privileged, &[]);
        check(plain.clone(), Level::Baseline, &[]);
        check(
            plain,
            Level::Restricted,
            &[
                "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)",
                "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"])",
                "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)",
                "seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
            ],
        );
    }

    #[test]
    fn a_restricted_pod_passes() {
        check(
            json!({
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                }}],
            }),
            Level::Restricted,
            &[],
        );
    }

    #[test]
    fn host_access_is_named() {
        check(
            json!({
                "hostNetwork": true, "hostPID": true,
                "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
                "containers": [
                    {"name": "a", "ports": [{"hostPort": 8}, {"hostPort": 9}]},
                    {"name": "b", "ports": [{"hostPort": 9}], "securityContext": {"privileged": true}},
                ],
            }),
            Level::Baseline,
            &[
                "host namespaces (hostNetwork=true, hostPID=true)",
                "hostPath volumes (volume \"v\")",
                "hostPort (containers \"a\", \"b\" use hostPorts 8, 9)",
                "privileged (container \"b\" must not set securityContext.privileged=true)",
            ],
        );
    }

    #[test]
    fn a_version_has_the_checks_of_its_time() {
        let plain = json!({"containers": [{"name": "c"}]});
        let root = "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)";
        let escalation = "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)";
        check_at(7, &Value::Null, plain.clone(), Level::Restricted, &[root]);
        check_at(
            18,
            &Value::Null,
            plain,
            Level::Restricted,
            &[escalation, root],
        );
        let capable = json!({"containers": [{"name": "c", "securityContext": {
            "capabilities": {"add": ["SYS_TIME"]}, "allowPrivilegeEscalation": false, "runAsNonRoot": true,
        }}]});
        // Before 1.22 the restricted level had baseline's check of capabilities.
        check_at(
            18,
            &Value::Null,
            capable,
            Level::Restricted,
            &[
                "non-default capabilities (container \"c\" must not include \"SYS_TIME\" in securityContext.capabilities.add)",
            ],
        );
        let sysctls = json!({"containers": [], "securityContext": {"sysctls": [
            {"name": "net.ipv4.tcp_rmem"}, {"name": "net.ipv4.tcp_fin_timeout"},
        ]}});
        let broken = "forbidden sysctls (net.ipv4.tcp_rmem, net.ipv4.tcp_fin_timeout)";
        check_at(
            28,
            &Value::Null,
            sysctls.clone(),
            Level::Baseline,
            &[broken],
        );
        check_at(
            31,
            &Value::Null,
            sysctls.clone(),
            Level::Baseline,
            &["forbidden sysctls (net.ipv4.tcp_rmem)"],
        );
        check_at(32, &Value::Null, sysctls, Level::Baseline, &[]);
        let annotated =
            json!({"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}});
        check_at(
            18,
            &annotated,
            json!({"containers": []}),
            Level::Baseline,
            &[
                "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")",
            ],
        );
        check_at(
            19,
            &annotated,
            json!({"containers": []}),
            Level::Baseline,
            &[],
        );
        let probe = json!({"containers": [
            {"name": "c", "livenessProbe": {"tcpSocket": {"host": "example.com", "port": 1}}},
        ]});
        check_at(33, &Value::Null, probe, Level::Baseline, &[]);
    }
}
