//! What Docker is asked for: the bodies of its `create` calls.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, DeviceMapping, HostConfig, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType,
};

use super::DockerRuntime;
use super::daemon::HostNetwork;
use crate::runtime::{
    ContainerSpec, DeviceSpec, MountSpec, Namespace, Propagation, Result, RuntimeError,
    SandboxSpec, label, pause,
};

/// Rotation of the daemon's own log files, kubelet's `containerLogMaxSize` and `MaxFiles`.
const LOG_MAX_SIZE: &str = "10m";
const LOG_MAX_FILES: &str = "5";

impl DockerRuntime {
    pub(super) fn sandbox_body(&self, spec: &SandboxSpec) -> Result<ContainerCreateBody> {
        let mut labels = self.labels(&spec.labels, &spec.pod);
        labels.insert(label::ROLE.into(), "podsandbox".into());
        labels.insert(label::ATTEMPT.into(), spec.attempt.to_string());
        let (network_mode, netns) = match (spec.network, &self.host_network) {
            (Namespace::Host, HostNetwork::Docker) => ("host", None),
            (Namespace::Host, HostNetwork::File(path)) => ("none", Some(path)),
            (Namespace::Host, HostNetwork::Unreachable) => {
                return Err(RuntimeError::Refused(
                    "hostNetwork: the agent's network namespace has no name under /run/netns and \
                     is not Docker's"
                        .into(),
                ));
            }
            _ => ("none", None),
        };
        let host = HostConfig {
            network_mode: Some(network_mode.into()),
            pid_mode: (spec.pid == Namespace::Host).then(|| "host".into()),
            ipc_mode: Some(
                if spec.ipc == Namespace::Host {
                    "host"
                } else {
                    "shareable"
                }
                .into(),
            ),
            cgroup_parent: Some(spec.cgroup_parent.clone()),
            oom_score_adj: Some(self.least_oom_score.max(-998)),
            cpu_shares: Some(2),
            sysctls: (!spec.sysctls.is_empty()).then(|| {
                spec.sysctls
                    .iter()
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect()
            }),
            readonly_rootfs: Some(true),
            log_config: Some(HostConfigLogConfig {
                typ: Some("none".into()),
                config: None,
            }),
            // It does nothing but wait. What it could do it may not, and a filter of system calls would be compiled at
            // each start, which takes longer than the start.
            cap_drop: Some(vec!["ALL".into()]),
            cap_add: netns.is_some().then(|| vec!["SYS_ADMIN".into()]),
            security_opt: Some(match netns {
                Some(_) => vec!["seccomp=unconfined".into(), "apparmor=unconfined".into()],
                None => vec!["seccomp=unconfined".into(), "no-new-privileges".into()],
            }),
            mounts: netns.map(|path| {
                vec![Mount {
                    target: Some(pause::NETNS_PATH.into()),
                    source: Some(path.to_string_lossy().into_owned()),
                    typ: Some(MountType::BIND),
                    read_only: Some(true),
                    ..Default::default()
                }]
            }),
            ..Default::default()
        };
        Ok(ContainerCreateBody {
            image: Some(pause::IMAGE.into()),
            cmd: netns.is_some().then(|| vec![pause::NETNS_PATH.into()]),
            // A namespace of its own and nothing in it: without this, Docker keeps books of a network that is none.
            network_disabled: (network_mode == "none").then_some(true),
            // Docker's own host network keeps the machine's name.
            hostname: (network_mode != "host").then(|| spec.hostname.clone()),
            labels: Some(labels),
            host_config: Some(host),
            ..Default::default()
        })
    }

    pub(super) fn container_body(
        &self,
        sandbox: &str,
        spec: &ContainerSpec,
    ) -> ContainerCreateBody {
        let mut labels = self.labels(&spec.labels, &spec.pod);
        labels.insert(label::ROLE.into(), "container".into());
        labels.insert(label::CONTAINER_NAME.into(), spec.name.clone());
        labels.insert(label::ATTEMPT.into(), spec.attempt.to_string());
        let joined = format!("container:{sandbox}");
        let security = &spec.security;
        let mut options = Vec::new();
        if let Some(profile) = &security.seccomp {
            options.push(format!("seccomp={profile}"));
        }
        if let Some(profile) = &security.apparmor {
            options.push(format!("apparmor={profile}"));
        }
        if security.no_new_privileges {
            options.push("no-new-privileges".into());
        }
        let limits = &spec.resources;
        let host = HostConfig {
            network_mode: Some(joined.clone()),
            ipc_mode: Some(joined.clone()),
            pid_mode: match (&spec.pid_of, spec.pid) {
                (Some(target), _) => Some(format!("container:{target}")),
                (None, Namespace::Pod) => Some(joined),
                (None, Namespace::Host) => Some("host".into()),
                (None, Namespace::Container) => None,
            },
            cgroup_parent: Some(spec.cgroup_parent.clone()),
            cpu_shares: limits.cpu_shares,
            cpu_quota: limits.cpu_quota_us,
            cpu_period: limits.cpu_period_us,
            memory: limits.memory_bytes,
            // Equal means no swap beyond the limit.
            memory_swap: limits.memory_bytes,
            oom_score_adj: limits
                .oom_score_adj
                .map(|score| score.max(self.least_oom_score)),
            pids_limit: limits.pids,
            mounts: Some(spec.mounts.iter().map(mount).collect()),
            devices: some(&spec.devices.iter().map(device).collect::<Vec<_>>()),
            privileged: Some(security.privileged),
            readonly_rootfs: Some(security.read_only_rootfs),
            cap_add: some(&security.add_capabilities),
            cap_drop: some(&security.drop_capabilities),
            group_add: some(
                &security
                    .supplemental_groups
                    .iter()
                    .map(i64::to_string)
                    .collect::<Vec<_>>(),
            ),
            security_opt: some(&options),
            masked_paths: security.unmasked_proc.then(Vec::new),
            readonly_paths: security.unmasked_proc.then(Vec::new),
            log_config: Some(logging()),
            ..Default::default()
        };
        ContainerCreateBody {
            image: Some(spec.image.clone()),
            user: (!security.user.is_empty()).then(|| security.user.clone()),
            entrypoint: some(&spec.command),
            cmd: some(&spec.args),
            env: Some(spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect()),
            working_dir: (!spec.working_dir.is_empty()).then(|| spec.working_dir.clone()),
            open_stdin: Some(spec.stdin),
            stdin_once: Some(spec.stdin_once),
            tty: Some(spec.tty),
            stop_signal: spec.stop_signal.clone(),
            labels: Some(labels),
            // The pod's probes say how it is; the image's own check would only cost.
            healthcheck: Some(bollard::models::HealthConfig {
                test: Some(vec!["NONE".into()]),
                ..Default::default()
            }),
            host_config: Some(host),
            ..Default::default()
        }
    }
}

fn mount(spec: &MountSpec) -> Mount {
    Mount {
        target: Some(spec.container_path.clone()),
        source: Some(spec.host_path.clone()),
        typ: Some(MountType::BIND),
        read_only: Some(spec.read_only),
        bind_options: Some(MountBindOptions {
            propagation: match spec.propagation {
                // Docker's default, but rslave for what holds Docker's own folder: it refuses anything stricter.
                Propagation::Private => None,
                Propagation::HostToContainer => Some(MountBindOptionsPropagationEnum::RSLAVE),
                Propagation::Bidirectional => Some(MountBindOptionsPropagationEnum::RSHARED),
            },
            // Docker 25 and later would make what is mounted below it read-only too.
            read_only_non_recursive: spec.read_only.then_some(true),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn device(spec: &DeviceSpec) -> DeviceMapping {
    DeviceMapping {
        path_on_host: Some(spec.host_path.clone()),
        path_in_container: Some(spec.container_path.clone()),
        cgroup_permissions: Some(if spec.read_only { "r" } else { "mrw" }.into()),
    }
}

fn logging() -> HostConfigLogConfig {
    HostConfigLogConfig {
        typ: Some("json-file".into()),
        config: Some(HashMap::from([
            ("max-size".into(), LOG_MAX_SIZE.into()),
            ("max-file".into(), LOG_MAX_FILES.into()),
        ])),
    }
}

fn some<T>(list: &[T]) -> Option<Vec<T>>
where
    T: Clone,
{
    (!list.is_empty()).then(|| list.to_vec())
}
