//! Security contexts of pods and containers.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
    Sysctl, WindowsSecurityContextOptions,
};
use serde_json::json;

use super::{containers::as_container, text, volume_sources::validate_descending_path};
use crate::{
    field::{Bad, Errors, Path},
    zero::{Flag, List, Text},
};

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Of a user or a group.
pub fn validate_id(id: Option<i64>, path: &Path<'_>, errors: &mut Errors) {
    let Some(id) = id else { return };
    for message in text::in_range(id, 0, i32::MAX.into()) {
        errors.invalid(path, id, message);
    }
}

pub fn validate_pod_security_context(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let Some(context) = &spec.security_context else {
        return;
    };
    validate_id(context.fs_group, &path.child("fsGroup"), errors);
    validate_id(context.run_as_user, &path.child("runAsUser"), errors);
    validate_id(context.run_as_group, &path.child("runAsGroup"), errors);
    let groups = path.child("supplementalGroups");
    for (i, group) in context.supplemental_groups.items().iter().enumerate() {
        validate_id(Some(*group), &groups.index(i), errors);
    }
    if spec.share_process_namespace.is_true() && spec.host_pid.is_true() {
        errors.invalid(
            &path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    validate_sysctls(
        context.sysctls.items(),
        spec,
        &path.child("sysctls"),
        errors,
    );
    validate_choice(
        context.fs_group_change_policy.as_deref(),
        &["Always", "OnRootMismatch"],
        &path.child("fsGroupChangePolicy"),
        errors,
    );
    validate_seccomp(
        context.seccomp_profile.as_ref(),
        &path.child("seccompProfile"),
        errors,
    );
    validate_windows(
        context.windows_options.as_ref(),
        &path.child("windowsOptions"),
        errors,
    );
    validate_app_armor(
        context.app_armor_profile.as_ref(),
        &path.child("appArmorProfile"),
        errors,
    );
    validate_choice(
        context.supplemental_groups_policy.as_deref(),
        &["Merge", "Strict"],
        &path.child("supplementalGroupsPolicy"),
        errors,
    );
    validate_choice(
        context.se_linux_change_policy.as_deref(),
        &["MountOption", "Recursive"],
        &path.child("seLinuxChangePolicy"),
        errors,
    );
}

fn validate_choice(value: Option<&str>, choices: &[&str], path: &Path<'_>, errors: &mut Errors) {
    if let Some(value) = value.filter(|value| !choices.contains(value)) {
        errors.not_supported(path, value, choices);
    }
}

fn validate_sysctls(sysctls: &[Sysctl], spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (i, sysctl) in sysctls.iter().enumerate() {
        let path = path.index(i);
        let path = path.child("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            errors.required(&path, "");
        } else if !is_sysctl_name(name) {
            errors.invalid(
                &path,
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if names.contains(name) {
            errors.duplicate(&path, name);
        }
        let normal = name.replace('/', ".");
        if spec.host_network.is_true() && normal.starts_with("net.") {
            errors.invalid(
                &path,
                name,
                "may not be specified when 'hostNetwork' is true",
            );
        } else if spec.host_ipc.is_true() && is_ipc_sysctl(&normal) {
            errors.invalid(&path, name, "may not be specified when 'hostIPC' is true");
        }
        names.insert(name);
    }
}

fn is_ipc_sysctl(name: &str) -> bool {
    name.starts_with("kernel.shm")
        || name.starts_with("kernel.msg")
        || name.starts_with("fs.mqueue.")
        || name == "kernel.sem"
}

fn is_sysctl_name(name: &str) -> bool {
    let segment = |part: &str| {
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(part.chars().next())
            && edge(part.chars().last())
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn validate_seccomp(profile: Option<&SeccompProfile>, path: &Path<'_>, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    let type_ = profile.type_.as_str();
    match type_ {
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        "" => errors.required(
            &path.child("type"),
            "type is required when seccompProfile is set",
        ),
        other => errors.not_supported(
            &path.child("type"),
            other,
            &["Localhost", "RuntimeDefault", "Unconfined"],
        ),
    }
    let at = path.child("localhostProfile");
    match (&profile.localhost_profile, type_) {
        (None, "Localhost") => {
            errors.required(&at, "must be set when seccomp type is Localhost");
        }
        (Some(local), "Localhost") => validate_descending_path(local, &at, errors),
        (Some(local), _) => errors.invalid(
            &at,
            Bad::shown(format!(
                r#"{{"Type":{},"LocalhostProfile":{}}}"#,
                json!(type_),
                json!(local)
            )),
            "can only be set when seccomp type is Localhost",
        ),
        (None, _) => {}
    }
}

fn validate_app_armor(profile: Option<&AppArmorProfile>, path: &Path<'_>, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    let at = path.child("localhostProfile");
    match profile.type_.as_str() {
        "Localhost" => match &profile.localhost_profile {
            None => errors.required(&at, "must be set when AppArmor type is Localhost"),
            Some(local) => {
                if local.trim() != local {
                    errors.invalid(&at, local, "must not be padded with whitespace");
                } else if local.is_empty() {
                    errors.required(&at, "must be set when AppArmor type is Localhost");
                }
                if local.len() > 4095 {
                    errors.too_long(&at, 4095);
                }
            }
        },
        "RuntimeDefault" | "Unconfined" => {
            if let Some(local) = &profile.localhost_profile {
                errors.invalid(
                    &at,
                    local,
                    "can only be set when AppArmor type is Localhost",
                );
            }
        }
        "" => errors.required(
            &path.child("type"),
            "type is required when appArmorProfile is set",
        ),
        other => errors.not_supported(
            &path.child("type"),
            other,
            &["Localhost", "RuntimeDefault", "Unconfined"],
        ),
    }
}

fn validate_windows(
    options: Option<&WindowsSecurityContextOptions>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let Some(options) = options else { return };
    if let Some(name) = &options.gmsa_credential_spec_name {
        errors.invalid_each(
            &path.child("gmsaCredentialSpecName"),
            name,
            text::dns1123_subdomain(name),
        );
    }
    if let Some(spec) = &options.gmsa_credential_spec {
        let at = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.invalid(&at, spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > 64 * 1024 {
            errors.invalid(&at, spec, "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if let Some(name) = &options.run_as_user_name {
        for problem in windows_user_problems(name) {
            errors.invalid(&path.child("runAsUserName"), name, problem);
        }
    }
}

fn windows_user_problems(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string".to_owned()];
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters".to_owned()];
    }
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts[..] {
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return vec!["runAsUserName cannot contain more than one backslash".to_owned()],
    };
    let mut problems = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            problems.push("runAsUserName's Domain length must be under 256 characters".to_owned());
        }
        let net_bios = (1..=15).contains(&domain.len())
            && !domain.starts_with('.')
            && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|']);
        let dns = !domain.is_empty()
            && domain.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            });
        if !net_bios && !dns {
            problems.push(
                "runAsUserName's Domain doesn't match the NetBios nor the DNS format".to_owned(),
            );
        }
    }
    if user.is_empty() {
        problems.push("runAsUserName's User cannot be empty".to_owned());
    } else if user.len() > 104 {
        problems
            .push("runAsUserName's User length must not be longer than 104 characters".to_owned());
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        problems.push("runAsUserName's User cannot contain only periods or spaces".to_owned());
    }
    if user.contains([
        '"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']',
    ]) {
        problems.push(
            "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]"
                .to_owned(),
        );
    }
    problems
}

pub fn validate_security_context(
    context: Option<&SecurityContext>,
    host_users: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let Some(context) = context else { return };
    validate_id(context.run_as_user, &path.child("runAsUser"), errors);
    validate_id(context.run_as_group, &path.child("runAsGroup"), errors);
    if let Some(mount) = &context.proc_mount {
        let at = path.child("procMount");
        validate_choice(Some(mount), &["Default", "Unmasked"], &at, errors);
        if host_users && mount == "Unmasked" {
            errors.invalid(&at, mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    validate_seccomp(
        context.seccomp_profile.as_ref(),
        &path.child("seccompProfile"),
        errors,
    );
    if context.allow_privilege_escalation == Some(false) {
        if context.privileged.is_true() {
            errors.invalid(
                path,
                shown(context),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        let added = context.capabilities.iter().flat_map(|all| all.add.items());
        for _ in added.filter(|capability| *capability == "CAP_SYS_ADMIN") {
            errors.invalid(
                path,
                shown(context),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    validate_windows(
        context.windows_options.as_ref(),
        &path.child("windowsOptions"),
        errors,
    );
    validate_app_armor(
        context.app_armor_profile.as_ref(),
        &path.child("appArmorProfile"),
        errors,
    );
}

/// The context as upstream's internal type is shown.
fn shown(context: &SecurityContext) -> Bad {
    let se_linux = context
        .se_linux_options
        .as_ref()
        .map_or("null".to_owned(), |options| {
            format!(
                r#"{{"User":{},"Role":{},"Type":{},"Level":{}}}"#,
                json!(options.user.text()),
                json!(options.role.text()),
                json!(options.type_.text()),
                json!(options.level.text())
            )
        });
    let capabilities = context
        .capabilities
        .as_ref()
        .map_or("null".to_owned(), |all| {
            format!(r#"{{"Add":{},"Drop":{}}}"#, json!(all.add), json!(all.drop))
        });
    let profile = |type_: &str, local: &Option<String>| {
        format!(
            r#"{{"Type":{},"LocalhostProfile":{}}}"#,
            json!(type_),
            json!(local)
        )
    };
    let seccomp = context
        .seccomp_profile
        .as_ref()
        .map_or("null".to_owned(), |one| {
            profile(&one.type_, &one.localhost_profile)
        });
    let app_armor = context
        .app_armor_profile
        .as_ref()
        .map_or("null".to_owned(), |one| {
            profile(&one.type_, &one.localhost_profile)
        });
    let windows = context.windows_options.as_ref().map_or("null".to_owned(), |options| {
        format!(
            r#"{{"GMSACredentialSpecName":{},"GMSACredentialSpec":{},"RunAsUserName":{},"HostProcess":{}}}"#,
            json!(options.gmsa_credential_spec_name),
            json!(options.gmsa_credential_spec),
            json!(options.run_as_user_name),
            json!(options.host_process)
        )
    });
    let fields: [(&str, String); 12] = [
        ("Capabilities", capabilities),
        ("Privileged", json!(context.privileged).to_string()),
        ("SELinuxOptions", se_linux),
        ("WindowsOptions", windows),
        ("RunAsUser", json!(context.run_as_user).to_string()),
        ("RunAsGroup", json!(context.run_as_group).to_string()),
        ("RunAsNonRoot", json!(context.run_as_non_root).to_string()),
        (
            "ReadOnlyRootFilesystem",
            json!(context.read_only_root_filesystem).to_string(),
        ),
        (
            "AllowPrivilegeEscalation",
            json!(context.allow_privilege_escalation).to_string(),
        ),
        ("ProcMount", json!(context.proc_mount).to_string()),
        ("SeccompProfile", seccomp),
        ("AppArmorProfile", app_armor),
    ];
    let fields: Vec<String> = fields
        .into_iter()
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    Bad::shown(format!("{{{}}}", fields.join(",")))
}

/// Every container with its path, as upstream visits them: init, regular, ephemeral.
pub fn visit_containers(
    spec: &PodSpec,
    path: &Path<'_>,
    visit: &mut dyn FnMut(&Container, &Path<'_>),
) {
    let at = path.child("initContainers");
    for (i, container) in spec.init_containers.items().iter().enumerate() {
        visit(container, &at.index(i));
    }
    let at = path.child("containers");
    for (i, container) in spec.containers.iter().enumerate() {
        visit(container, &at.index(i));
    }
    let at = path.child("ephemeralContainers");
    for (i, container) in spec.ephemeral_containers.items().iter().enumerate() {
        visit(&as_container(container), &at.index(i));
    }
}

/// The annotations that came before the fields.
pub fn validate_profile_annotations(
    annotations: &BTreeMap<String, String>,
    spec: &PodSpec,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let seccomp = |profile: &str, path: &Path<'_>, errors: &mut Errors| {
        if let Some(local) = profile.strip_prefix("localhost/") {
            validate_descending_path(local, path, errors);
        } else if !matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
            errors.invalid(path, profile, "must be a valid seccomp profile");
        }
    };
    if let Some(profile) = annotations.get(SECCOMP_POD) {
        seccomp(profile, &path.child(SECCOMP_POD), errors);
    }
    for (key, profile) in annotations {
        if key.starts_with(SECCOMP_CONTAINER) {
            seccomp(profile, &path.child(key), errors);
        }
    }
    for (key, profile) in annotations {
        let Some(name) = key.strip_prefix(APPARMOR_CONTAINER) else {
            continue;
        };
        let mut found = false;
        visit_containers(spec, &Path::ROOT, &mut |container, _| {
            found |= container.name == name
        });
        if !found {
            errors.invalid(&path.key(key), name, "container not found");
        }
        let fits = matches!(profile.as_str(), "" | "runtime/default" | "unconfined")
            || profile.starts_with("localhost/");
        if !fits {
            errors.invalid(
                &path.key(key),
                profile,
                format!(
                    "invalid AppArmor profile name: {}",
                    crate::field::quoted(profile)
                ),
            );
        }
    }
}

/// Where both an annotation and a field say something, they must agree.
pub fn validate_profile_annotations_match(
    annotations: Option<&BTreeMap<String, String>>,
    spec: &PodSpec,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let Some(annotations) = annotations else {
        return;
    };
    let pod = spec.security_context.clone().unwrap_or_default();
    if let (Some(profile), Some(annotation)) = (&pod.seccomp_profile, annotations.get(SECCOMP_POD))
    {
        let path = path.child("securityContext");
        let path = path.child("seccompProfile");
        check_match(
            "seccomp",
            &profile.type_,
            &profile.localhost_profile,
            annotation,
            &path,
            errors,
        );
    }
    visit_containers(spec, path, &mut |container, path| {
        let profile = container
            .security_context
            .as_ref()
            .and_then(|one| one.seccomp_profile.as_ref());
        let annotation = annotations.get(&format!("{SECCOMP_CONTAINER}{}", container.name));
        if let (Some(profile), Some(annotation)) = (profile, annotation) {
            let path = path.child("securityContext");
            let path = path.child("seccompProfile");
            check_match(
                "seccomp",
                &profile.type_,
                &profile.localhost_profile,
                annotation,
                &path,
                errors,
            );
        }
    });
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return;
    }
    visit_containers(spec, path, &mut |container, path| {
        let own = container
            .security_context
            .as_ref()
            .and_then(|one| one.app_armor_profile.as_ref());
        let annotation = annotations.get(&format!("{APPARMOR_CONTAINER}{}", container.name));
        if let (Some(profile), Some(annotation)) =
            (own.or(pod.app_armor_profile.as_ref()), annotation)
        {
            let path = path.child("securityContext");
            let path = path.child("appArmorProfile");
            check_match(
                "apparmor",
                &profile.type_,
                &profile.localhost_profile,
                annotation,
                &path,
                errors,
            );
        }
    });
}

fn check_match(
    what: &str,
    type_: &str,
    local: &Option<String>,
    annotation: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let agrees = match type_ {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => {
            annotation == "runtime/default" || (what == "seccomp" && annotation == "docker/default")
        }
        "Localhost" => match annotation.strip_prefix("localhost/") {
            None => false,
            Some(name) => {
                if local.as_deref() != Some(name) {
                    errors.forbidden(
                        &path.child("localhostProfile"),
                        format!("{what} profile in annotation and field must match"),
                    );
                }
                true
            }
        },
        _ => true,
    };
    if !agrees {
        errors.forbidden(
            &path.child("type"),
            format!("{what} type in annotation and field must match"),
        );
    }
}

fn host_process(options: Option<&WindowsSecurityContextOptions>) -> Option<bool> {
    options.and_then(|options| options.host_process)
}

pub fn validate_host_process(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    let of_pod = host_process(
        spec.security_context
            .as_ref()
            .and_then(|one| one.windows_options.as_ref()),
    );
    let (mut all, mut privileged) = (0, 0);
    visit_containers(spec, path, &mut |container, path| {
        all += 1;
        let own = host_process(
            container
                .security_context
                .as_ref()
                .and_then(|one| one.windows_options.as_ref()),
        );
        if let (Some(pod), Some(own)) = (of_pod, own)
            && pod != own
        {
            errors.invalid(
                &path.child("securityContext.windowsOptions.hostProcess"),
                own,
                format!("pod hostProcess value must be identical if both are specified, was {pod}"),
            );
        }
        if own.or(of_pod) == Some(true) {
            privileged += 1;
        }
    });
    if privileged == 0 {
        return;
    }
    if privileged != all {
        errors.invalid(
            path,
            "",
            "If pod contains any hostProcess containers then all containers must be HostProcess containers",
        );
    }
    if !spec.host_network.is_true() {
        errors.invalid(
            &path.child("hostNetwork"),
            false,
            "hostNetwork must be true if pod contains any hostProcess containers",
        );
    }
}

/// What one operating system has and the other has not.
pub fn validate_os_specifics(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    match spec.os.as_ref().map(|os| os.name.as_str()) {
        Some("linux") => validate_for_linux(spec, path, errors),
        Some("windows") => validate_for_windows(spec, path, errors),
        _ => {}
    }
}

fn validate_for_linux(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    const MESSAGE: &str = "windows options cannot be set for a linux pod";
    let context = spec.security_context.as_ref();
    if context.is_some_and(|context| context.windows_options.is_some()) {
        errors.forbidden(&path.child("securityContext.windowsOptions"), MESSAGE);
    }
    visit_containers(spec, path, &mut |container, path| {
        let context = container.security_context.as_ref();
        if context.is_some_and(|context| context.windows_options.is_some()) {
            errors.forbidden(&path.child("securityContext.windowsOptions"), MESSAGE);
        }
    });
}

fn validate_for_windows(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    const MESSAGE: &str = "cannot be set for a windows pod";
    let context: PodSecurityContext = spec.security_context.clone().unwrap_or_default();
    for (field, set) in [
        (
            "securityContext.appArmorProfile",
            context.app_armor_profile.is_some(),
        ),
        (
            "securityContext.seLinuxOptions",
            context.se_linux_options.is_some(),
        ),
        ("hostUsers", spec.host_users.is_some()),
        ("hostPID", spec.host_pid.is_true()),
        ("hostIPC", spec.host_ipc.is_true()),
        (
            "securityContext.seccompProfile",
            context.seccomp_profile.is_some(),
        ),
        ("securityContext.fsGroup", context.fs_group.is_some()),
        (
            "securityContext.fsGroupChangePolicy",
            context.fs_group_change_policy.is_some(),
        ),
        (
            "securityContext.sysctls",
            !context.sysctls.items().is_empty(),
        ),
        (
            "shareProcessNamespace",
            spec.share_process_namespace.is_some(),
        ),
        ("securityContext.runAsUser", context.run_as_user.is_some()),
        ("securityContext.runAsGroup", context.run_as_group.is_some()),
        (
            "securityContext.supplementalGroups",
            context.supplemental_groups.is_some(),
        ),
        (
            "securityContext.supplementalGroupsPolicy",
            context.supplemental_groups_policy.is_some(),
        ),
        (
            "securityContext.seLinuxChangePolicy",
            context.se_linux_change_policy.is_some(),
        ),
    ] {
        if set {
            errors.forbidden(&path.child(field), MESSAGE);
        }
    }
    visit_containers(spec, path, &mut |container, path| {
        let Some(context) = &container.security_context else {
            return;
        };
        let path = path.child("securityContext");
        for (field, set) in [
            ("appArmorProfile", context.app_armor_profile.is_some()),
            ("seLinuxOptions", context.se_linux_options.is_some()),
            ("seccompProfile", context.seccomp_profile.is_some()),
            ("capabilities", context.capabilities.is_some()),
            (
                "readOnlyRootFilesystem",
                context.read_only_root_filesystem.is_some(),
            ),
            ("privileged", context.privileged.is_some()),
            (
                "allowPrivilegeEscalation",
                context.allow_privilege_escalation.is_some(),
            ),
            ("procMount", context.proc_mount.is_some()),
            ("runAsUser", context.run_as_user.is_some()),
            ("runAsGroup", context.run_as_group.is_some()),
        ] {
            if set {
                errors.forbidden(&path.child(field), MESSAGE);
            }
        }
    });
}

/// `hostUsers: false` does not go with the node's other namespaces.
pub fn validate_host_users(spec: &PodSpec, path: &Path<'_>, errors: &mut Errors) {
    if spec.host_users != Some(false) {
        return;
    }
    for (field, set) in [
        ("hostNetwork", spec.host_network.is_true()),
        ("hostPID", spec.host_pid.is_true()),
        ("hostIPC", spec.host_ipc.is_true()),
    ] {
        if set {
            errors.forbidden(&path.child(field), "when `hostUsers` is false");
        }
    }
}
