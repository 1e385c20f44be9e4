//! From a pod to what the runtime is asked for. Pure, but for the files that `mounts` makes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, SeccompProfile, VolumeMount,
};

use tracing::warn;

use super::accounts::Question;
use super::env::{NodeFacts, expand};
use super::pod::{self, Kind};
use super::volumes::{self, MountNamespace, VolumePaths, read_only_folder, sub_path};
use super::{Config, admit, plan, resources};
use crate::network::{HostPort, PodNetworkSpec};
use crate::runtime::{
    ContainerSpec, DeviceSpec, Image, MountSpec, Namespace, Propagation, SandboxSpec, Security,
    label,
};

pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// `PARENT/kubepods/QOS/podUID`.
pub fn cgroup(config: &Config, pod: &Pod) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let parent = config.cgroup_parent.trim_end_matches('/');
    match resources::qos_class(pod) {
        "Guaranteed" => format!("{parent}/kubepods/pod{uid}"),
        class => format!("{parent}/kubepods/{}/pod{uid}", class.to_lowercase()),
    }
}

/// The parent of [`cgroup`], with all pods of its class.
pub fn class_cgroup(config: &Config, pod: &Pod) -> String {
    let own = cgroup(config, pod);
    own.rsplit_once('/').map_or("", |(parent, _)| parent).into()
}

/// Whether the kernel confines processes by AppArmor.
pub fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.trim() == "Y")
}

pub fn hostname(config: &Config, pod: &Pod) -> String {
    let spec = pod::spec(pod);
    if let Some(name) = spec.hostname_override.as_ref().filter(|n| !n.is_empty()) {
        return name.clone();
    }
    if pod::is_host_network(pod) {
        return config.node_name.clone();
    }
    let name = match spec.hostname.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => name,
        None => pod.metadata.name.as_deref().unwrap_or_default(),
    };
    let name = name
        .get(..63)
        .unwrap_or(name)
        .trim_end_matches(['-', '.'])
        .to_string();
    match fqdn_suffix(config, pod) {
        Some(suffix) if spec.set_hostname_as_fqdn == Some(true) => format!("{name}.{suffix}"),
        _ => name,
    }
}

/// `SUBDOMAIN.NAMESPACE.svc.DOMAIN` for a pod with a subdomain.
fn fqdn_suffix(config: &Config, pod: &Pod) -> Option<String> {
    let subdomain = pod::spec(pod)
        .subdomain
        .as_deref()
        .filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!(
        "{subdomain}.{namespace}.svc.{}",
        config.cluster_domain
    ))
}

pub fn sandbox(config: &Config, pod: &Pod, attempt: u32) -> SandboxSpec {
    let spec = pod::spec(pod);
    let host = |on: Option<bool>| {
        if on == Some(true) {
            Namespace::Host
        } else {
            Namespace::Pod
        }
    };
    let security = spec.security_context.as_ref();
    SandboxSpec {
        pod: pod::identity(pod),
        attempt,
        hostname: hostname(config, pod),
        cgroup_parent: cgroup(config, pod),
        network: host(spec.host_network),
        pid: host(spec.host_pid),
        ipc: host(spec.host_ipc),
        sysctls: security
            .and_then(|s| s.sysctls.as_ref())
            .into_iter()
            .flatten()
            .map(|s| (admit::dotted(&s.name), s.value.clone()))
            .collect(),
        labels: BTreeMap::from([(
            label::GRACE_SECONDS.to_string(),
            spec.termination_grace_period_seconds
                .unwrap_or(30)
                .to_string(),
        )]),
    }
}

pub fn network(pod: &Pod) -> PodNetworkSpec {
    let ports = pod::containers(pod)
        .into_iter()
        .flat_map(|(_, c)| c.ports.unwrap_or_default());
    PodNetworkSpec {
        host_ports: ports
            .filter_map(|port| {
                let host_port = u16::try_from(port.host_port?).ok().filter(|p| *p > 0)?;
                Some(HostPort {
                    protocol: port.protocol.unwrap_or_else(|| "TCP".into()),
                    host_ip: port.host_ip.and_then(|ip| ip.parse().ok()),
                    host_port,
                    container_port: u16::try_from(port.container_port).ok()?,
                })
            })
            .collect(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
    }
}

pub struct Made<'a> {
    pub config: &'a Config,
    pub pod: &'a Pod,
    pub kind: Kind,
    pub container: &'a Container,
    pub attempt: u32,
    pub sandbox: &'a str,
    pub image: &'a Image,
    pub env: Vec<(String, String)>,
    pub volumes: &'a VolumePaths,
    /// Where volumes are mounted.
    pub namespace: &'a MountNamespace,
    pub node: &'a NodeFacts,
    pub memory_capacity: i64,
    /// The pod's folder.
    pub dir: PathBuf,
}

impl Made<'_> {
    fn pod_uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// What the image's own files decide of the container's groups.
    pub fn question(&self) -> Question<'_> {
        let security = pod::spec(self.pod).security_context.as_ref();
        let policy = security.and_then(|s| s.supplemental_groups_policy.as_deref());
        Question {
            image_user: &self.image.user,
            strict: policy == Some("Strict"),
        }
    }
}

/// # Errors
/// The text of a `CreateContainerConfigError`.
pub fn container(made: &Made<'_>) -> Result<ContainerSpec, String> {
    let (pod, c) = (made.pod, made.container);
    let spec = pod::spec(pod);
    let value = |name: &str| {
        made.env
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.clone())
    };
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|text| expand(text, value))
            .collect()
    };
    let mut mounts = mounts(made)?;
    let (termination_path, termination_file) = termination(made)?;
    mounts.push(MountSpec {
        host_path: termination_file.to_string_lossy().into_owned(),
        container_path: termination_path.clone(),
        read_only: false,
        propagation: Propagation::Private,
    });
    for (file, target) in [(HOSTS, "/etc/hosts"), (RESOLV_CONF, "/etc/resolv.conf")] {
        let source = made.dir.join(file);
        if source.exists() && !mounts.iter().any(|m| m.container_path == target) {
            mounts.push(MountSpec {
                host_path: source.to_string_lossy().into_owned(),
                container_path: target.into(),
                read_only: false,
                propagation: Propagation::Private,
            });
        }
    }
    let labels = BTreeMap::from([
        (label::CONTAINER_HASH.to_string(), pod::hash(c)),
        (plan::SANDBOX_LABEL.to_string(), made.sandbox.to_string()),
        (label::TERMINATION_PATH.to_string(), termination_path),
        (
            label::TERMINATION_POLICY.to_string(),
            c.termination_message_policy
                .clone()
                .unwrap_or_else(|| "File".into()),
        ),
        (
            label::TERMINATION_FILE.to_string(),
            termination_file.to_string_lossy().into_owned(),
        ),
        (
            label::GRACE_SECONDS.to_string(),
            spec.termination_grace_period_seconds
                .unwrap_or(30)
                .to_string(),
        ),
    ]);
    Ok(ContainerSpec {
        pod: pod::identity(pod),
        name: c.name.clone(),
        attempt: made.attempt,
        image: c.image.clone().unwrap_or_default(),
        command: expanded(&c.command),
        args: expanded(&c.args),
        env: made.env.clone(),
        working_dir: c.working_dir.clone().unwrap_or_default(),
        mounts,
        devices: devices(made)?,
        labels,
        cgroup_parent: cgroup(made.config, pod),
        pid: match (spec.host_pid, spec.share_process_namespace) {
            (Some(true), _) => Namespace::Host,
            (_, Some(true)) => Namespace::Pod,
            _ => Namespace::Container,
        },
        pid_of: None,
        resources: resources::container_limits(pod, c, made.memory_capacity),
        security: security(made)?,
        stdin: c.stdin == Some(true),
        stdin_once: c.stdin_once == Some(true),
        tty: c.tty == Some(true),
        stop_signal: c.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
    })
}

fn mounts(made: &Made<'_>) -> Result<Vec<MountSpec>, String> {
    let mut out = Vec::new();
    for (index, mount) in made.container.volume_mounts.iter().flatten().enumerate() {
        let volume = made.volumes.get(&mount.name).ok_or_else(|| {
            format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                mount.name, made.container.name
            )
        })?;
        let value = |name: &str| {
            made.env
                .iter()
                .find(|(k, _)| k == name)
                .map(|(_, v)| v.clone())
        };
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (_, Some(expression)) if !expression.is_empty() => {
                let mut missing = None;
                let text = expand(expression, |name| {
                    let found = value(name);
                    if found.is_none() {
                        missing.get_or_insert_with(|| name.to_string());
                    }
                    found
                });
                if let Some(name) = missing {
                    return Err(format!("missing value for \"{name}\""));
                }
                Some(text)
            }
            (Some(path), _) if !path.is_empty() => Some(path.clone()),
            _ => None,
        };
        let source = match sub {
            Some(sub) => {
                if sub.starts_with('/') {
                    return Err(format!(
                        "error SubPath `{sub}` must not be an absolute path"
                    ));
                }
                if sub.split('/').any(|part| part == "..") {
                    return Err(format!(
                        "unable to provision SubPath `{sub}`: must not contain '..'"
                    ));
                }
                let made_path = made.namespace.inside(|| sub_path(volume, &sub));
                made_path.map_err(|e| {
                    warn!(volume = mount.name, error = %e, "cannot prepare a subPath");
                    format!(
                        "failed to prepare subPath for volumeMount \"{}\" of container \"{}\"",
                        mount.name, made.container.name
                    )
                })?
            }
            None => volume.clone(),
        };
        let source = match is_read_only_throughout(mount)? {
            true => {
                let copy = read_only_folder(&made.config.state_dir, made.pod_uid())
                    .join(&made.container.name)
                    .join(index.to_string());
                let mounted = made.namespace.mount_read_only(&source, &copy);
                mounted
                    .map_err(|e| format!("cannot make volume \"{}\" read-only: {e}", mount.name))?;
                copy
            }
            false => source,
        };
        out.push(MountSpec {
            host_path: source.to_string_lossy().into_owned(),
            container_path: absolute(&mount.mount_path),
            read_only: mount.read_only == Some(true) || is_read_only(made.pod, &mount.name),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    Ok(out)
}

/// The block devices that the container sees as such.
fn devices(made: &Made<'_>) -> Result<Vec<DeviceSpec>, String> {
    let devices = made.container.volume_devices.iter().flatten();
    devices
        .map(|device| {
            let path = &device.device_path;
            if !path.starts_with('/') {
                return Err(format!(
                    "error DevicePath `{path}` must be an absolute path"
                ));
            }
            let volume = made.volumes.get(&device.name).ok_or_else(|| {
                format!(
                    "cannot find volume \"{}\" to pass into container \"{}\"",
                    device.name, made.container.name
                )
            })?;
            Ok(DeviceSpec {
                host_path: volume.to_string_lossy().into_owned(),
                container_path: path.clone(),
                read_only: is_read_only(made.pod, &device.name),
            })
        })
        .collect()
}

/// Volumes that no container writes to, whatever its mount says.
fn is_read_only(pod: &Pod, name: &str) -> bool {
    let mut volumes = pod::spec(pod).volumes.iter().flatten();
    let volume = volumes.find(|v| v.name == name);
    volume.is_some_and(|v| {
        let claim = v.persistent_volume_claim.as_ref();
        v.image.is_some()
            || volumes::is_written(v)
            || claim.is_some_and(|claim| claim.read_only == Some(true))
    })
}

/// Whether what is mounted below a volume is to be read-only too (KEP-3857).
pub fn is_read_only_throughout(mount: &VolumeMount) -> Result<bool, String> {
    if !matches!(
        mount.recursive_read_only.as_deref(),
        Some("Enabled" | "IfPossible")
    ) {
        return Ok(false);
    }
    if mount.read_only != Some(true) {
        return Err(format!(
            "volume \"{}\" requested recursive read-only mode, but it is not read-only",
            mount.name
        ));
    }
    match mount.mount_propagation.as_deref() {
        None | Some("None") => Ok(true),
        Some(other) => Err(format!(
            "volume \"{}\" requested recursive read-only mode, but it is not compatible with \
             propagation \"{other}\"",
            mount.name
        )),
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_string()
    } else {
        format!("/{path}")
    }
}

/// The file behind `terminationMessagePath`, one for each attempt.
fn termination(made: &Made<'_>) -> Result<(String, PathBuf), String> {
    let path = made
        .container
        .termination_message_path
        .clone()
        .filter(|p| !p.is_empty())
        .unwrap_or_else(|| TERMINATION_LOG.into());
    let folder = made.dir.join("containers").join(&made.container.name);
    let file = folder.join(made.attempt.to_string());
    let make = || {
        fs::create_dir_all(&folder)?;
        fs::write(&file, "")?;
        // Any user inside may write it.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666))
    };
    make().map_err(|e| format!("cannot make {}: {e}", file.display()))?;
    Ok((path, file))
}

fn security(made: &Made<'_>) -> Result<Security, String> {
    let own = made.container.security_context.clone().unwrap_or_default();
    let shared = pod::spec(made.pod)
        .security_context
        .clone()
        .unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let user = own.run_as_user.or(shared.run_as_user);
    let group = own.run_as_group.or(shared.run_as_group);
    let non_root = own.run_as_non_root.or(shared.run_as_non_root) == Some(true);
    let who = format!(
        "(pod: \"{}\", container: {})",
        pod::full_name(&pod::identity(made.pod)),
        made.container.name
    );
    let (image_user, image_group) = made
        .image
        .user
        .split_once(':')
        .unwrap_or((made.image.user.as_str(), ""));
    if non_root {
        match user {
            Some(0) => {
                return Err(format!(
                    "container's runAsUser breaks non-root policy {who}"
                ));
            }
            Some(_) => {}
            None if image_user.is_empty() || image_user == "0" => {
                return Err(format!(
                    "container has runAsNonRoot and image will run as root {who}"
                ));
            }
            None if image_user.parse::<i64>().is_err() => {
                return Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({image_user}), \
                     cannot verify user is non-root {who}"
                ));
            }
            None => {}
        }
    }
    let user_text = match (user, group) {
        (Some(user), Some(group)) => format!("{user}:{group}"),
        (Some(user), None) => user.to_string(),
        (None, Some(group)) => {
            let base = if image_user.is_empty() {
                "0"
            } else {
                image_user
            };
            format!("{base}:{group}")
        }
        (None, None) if image_group.is_empty() => String::new(),
        (None, None) => made.image.user.clone(),
    };
    let mut groups: Vec<i64> = shared.supplemental_groups.clone().unwrap_or_default();
    groups.extend(shared.fs_group);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    Ok(Security {
        user: user_text,
        supplemental_groups: groups,
        privileged,
        read_only_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        seccomp: seccomp(
            made.config,
            own.seccomp_profile
                .as_ref()
                .or(shared.seccomp_profile.as_ref()),
            privileged,
        )?,
        apparmor: apparmor(
            own.app_armor_profile
                .as_ref()
                .or(shared.app_armor_profile.as_ref()),
            privileged,
        ),
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

/// As Docker takes it; `None` is Docker's own default profile.
fn apparmor(profile: Option<&AppArmorProfile>, privileged: bool) -> Option<String> {
    let profile = profile.filter(|_| !privileged && has_apparmor())?;
    match profile.type_.as_str() {
        "Unconfined" => Some("unconfined".into()),
        "Localhost" => profile.localhost_profile.clone(),
        _ => None,
    }
}

/// Without a profile a container is unconfined, as under a kubelet without `seccompDefault`.
fn seccomp(
    config: &Config,
    profile: Option<&SeccompProfile>,
    privileged: bool,
) -> Result<Option<String>, String> {
    match profile.map(|p| p.type_.as_str()) {
        _ if privileged => Ok(Some("unconfined".into())),
        Some("RuntimeDefault") => Ok(None),
        Some("Localhost") => {
            let name = profile
                .and_then(|p| p.localhost_profile.clone())
                .unwrap_or_default();
            let path = config.state_dir.join("seccomp").join(&name);
            if name.split('/').any(|part| part == "..") {
                return Err(format!(
                    "seccomp profile \"{name}\" must stay below {}",
                    path.display()
                ));
            }
            fs::read_to_string(&path)
                .map(Some)
                .map_err(|e| format!("cannot load seccomp profile \"{}\": {e}", path.display()))
        }
        _ => Ok(Some("unconfined".into())),
    }
}

const HOSTS: &str = "etc-hosts";
const RESOLV_CONF: &str = "resolv.conf";

/// Makes `/etc/hosts` and `/etc/resolv.conf` of a pod, empty where they are not there yet.
///
/// # Errors
/// The text of a `CreateContainerConfigError`.
pub fn ensure_etc(dir: &Path) -> Result<(), String> {
    for name in [HOSTS, RESOLV_CONF] {
        let path = dir.join(name);
        let made = fs::create_dir_all(dir).and_then(|()| {
            let mut options = fs::OpenOptions::new();
            options.append(true).create(true).open(&path)
        });
        made.map_err(|e| format!("cannot make {}: {e}", path.display()))?;
    }
    Ok(())
}

/// Writes `/etc/hosts` and `/etc/resolv.conf` of a pod.
///
/// # Errors
/// The text of a `CreateContainerConfigError`.
pub fn write_etc(config: &Config, pod: &Pod, node: &NodeFacts, dir: &Path) -> Result<(), String> {
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        // A container that runs must not find it empty.
        if fs::read(&path).is_ok_and(|before| before == text.as_bytes()) {
            return Ok(());
        }
        fs::create_dir_all(dir)
            .and_then(|()| fs::write(&path, text))
            .map_err(|e| format!("cannot write {}: {e}", path.display()))
    };
    write(HOSTS, hosts(config, pod, node))?;
    let host = fs::read_to_string(&config.resolv_conf).unwrap_or_default();
    write(RESOLV_CONF, resolv_conf(config, pod, &host))
}

fn hosts(config: &Config, pod: &Pod, node: &NodeFacts) -> String {
    let mut out = String::new();
    if pod::is_host_network(pod) {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(&fs::read_to_string("/etc/hosts").unwrap_or_default());
    } else {
        out.push_str(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        let name = hostname(config, pod);
        let short = name.split('.').next().unwrap_or_default();
        for ip in &node.pod_ips {
            match fqdn_suffix(config, pod) {
                Some(suffix) => out.push_str(&format!("{ip}\t{short}.{suffix}\t{short}\n")),
                None => out.push_str(&format!("{ip}\t{name}\n")),
            }
        }
    }
    let aliases = pod::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            out.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    out
}

fn resolv_conf(config: &Config, pod: &Pod, host: &str) -> String {
    let spec = pod::spec(pod);
    let words = |key: &str| -> Vec<Vec<String>> {
        host.lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace().map(String::from);
                (words.next()? == key).then(|| words.collect())
            })
            .collect()
    };
    let host_servers: Vec<String> = words("nameserver").into_iter().flatten().collect();
    // The last `search` line counts (resolv.conf(5)).
    let host_searches = words("search").pop().unwrap_or_default();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !pod::is_host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let (mut servers, mut searches, mut options) = match (policy, config.cluster_dns) {
        ("None", _) => (Vec::new(), Vec::new(), Vec::new()),
        (_, Some(dns)) if cluster => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let domain = &config.cluster_domain;
            let mut searches = vec![
                format!("{namespace}.svc.{domain}"),
                format!("svc.{domain}"),
                domain.clone(),
            ];
            for search in host_searches {
                if !searches.contains(&search) {
                    searches.push(search);
                }
            }
            (
                vec![dns.to_string()],
                searches,
                vec![("ndots".to_string(), Some("5".to_string()))],
            )
        }
        _ => {
            let options =
                words("options")
                    .into_iter()
                    .flatten()
                    .map(|word| match word.split_once(':') {
                        Some((name, value)) => (name.to_string(), Some(value.to_string())),
                        None => (word, None),
                    });
            (host_servers, host_searches, options.collect())
        }
    };
    if let Some(dns) = &spec.dns_config {
        servers.extend(dns.nameservers.clone().into_iter().flatten());
        searches.extend(dns.searches.clone().into_iter().flatten());
        for option in dns.options.iter().flatten() {
            let Some(name) = option.name.clone() else {
                continue;
            };
            options.retain(|(n, _): &(String, Option<String>)| *n != name);
            options.push((name, option.value.clone()));
        }
    }
    let mut seen = Vec::new();
    searches.retain(|s| {
        !seen.contains(s) && {
            seen.push(s.clone());
            true
        }
    });
    let mut out = String::new();
    if !searches.is_empty() {
        out.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for server in servers {
        out.push_str(&format!("nameserver {server}\n"));
    }
    if !options.is_empty() {
        let words: Vec<String> = options
            .into_iter()
            .map(|(name, value)| match value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            })
            .collect();
        out.push_str(&format!("options {}\n", words.join(" ")));
    }
    out
}

/// Whether the pod's own security settings ask for something this node cannot do.
pub fn unsupported(pod: &Pod) -> Option<String> {
    let spec = pod::spec(pod);
    let security: Option<&PodSecurityContext> = spec.security_context.as_ref();
    if security.is_some_and(|s| s.windows_options.is_some()) {
        return Some("windowsOptions: this is a Linux node".into());
    }
    if spec.host_users == Some(false) {
        return Some("hostUsers: false: user namespaces are not supported with Docker".into());
    }
    if let Some(claim) = spec.resource_claims.iter().flatten().next() {
        return Some(format!(
            "resourceClaims: {}: this node has no DRA drivers",
            claim.name
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u"}, "spec": spec
        }))
        .unwrap()
    }

    fn config() -> Config {
        Config {
            cluster_dns: Some([10, 96, 0, 10].into()),
            ..Config::for_tests()
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_word() {
        let why = |spec| unsupported(&pod(spec)).unwrap_or_default();
        assert_eq!(why(serde_json::json!({"containers": []})), "");
        let users = why(serde_json::json!({"containers": [], "hostUsers": false}));
        assert!(
            users.contains("user namespaces are not supported"),
            "{users}"
        );
        let claims = serde_json::json!([{"name": "gpu", "resourceClaimName": "c"}]);
        let claims = why(serde_json::json!({"containers": [], "resourceClaims": claims}));
        assert_eq!(claims, "resourceClaims: gpu: this node has no DRA drivers");
    }

    #[test]
    fn a_pod_asks_the_cluster_first() {
        let host = "search example.org\nnameserver 192.0.2.1\noptions edns0\n";
        let check = |spec, expected: &str| {
            assert_eq!(resolv_conf(&config(), &pod(spec), host), expected);
        };
        check(
            serde_json::json!({"containers": []}),
            "search ns.svc.cluster.local svc.cluster.local cluster.local example.org\n\
             nameserver 10.96.0.10\noptions ndots:5\n",
        );
        check(
            serde_json::json!({"containers": [], "dnsPolicy": "Default"}),
            "search example.org\nnameserver 192.0.2.1\noptions edns0\n",
        );
        check(
            serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
                "nameservers": ["192.0.2.9"], "searches": ["a.b"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            "search a.b\nnameserver 192.0.2.9\noptions ndots:2 edns0\n",
        );
    }

    #[test]
    fn the_hosts_file_names_the_pod_and_its_aliases() {
        let pod = pod(serde_json::json!({
            "containers": [], "hostname": "h", "subdomain": "s",
            "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["a", "b"]}]
        }));
        let node = NodeFacts {
            pod_ips: vec!["10.244.0.5".into()],
            ..Default::default()
        };
        let text = hosts(&config(), &pod, &node);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(
            text.contains("\n10.244.0.5\th.s.ns.svc.cluster.local\th\n"),
            "{text}"
        );
        assert!(
            text.ends_with("# Entries added by HostAliases.\n192.0.2.7\ta\tb\n"),
            "{text}"
        );
    }
}
