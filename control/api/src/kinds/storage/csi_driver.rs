use k8s_openapi::api::storage::v1::CSIDriver;

use crate::{
    field::{Errors, Path},
    kinds::{Kind, Rules},
    zero::{List, set},
};

impl Kind for CSIDriver {
    const RULES: Rules = Rules::cluster().conditional_update();

    fn set_defaults(&mut self) {
        let spec = &mut self.spec;
        set(&mut spec.attach_required, true);
        set(&mut spec.pod_info_on_mount, false);
        set(&mut spec.storage_capacity, false);
        set(
            &mut spec.fs_group_policy,
            "ReadWriteOnceWithFSType".to_owned(),
        );
        if spec.volume_lifecycle_modes.items().is_empty() {
            spec.volume_lifecycle_modes = Some(vec!["Persistent".to_owned()]);
        }
        set(&mut spec.requires_republish, false);
        set(&mut spec.se_linux_mount, false);
    }

    /// A new driver has no generation; the first change makes it 1.
    fn prepare_update(&mut self, old: &Self) {
        if self.spec != old.spec {
            self.metadata.generation = Some(old.metadata.generation.unwrap_or(0) + 1);
        }
    }

    fn validate(&self, errors: &mut Errors) {
        validate_spec(self, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        validate_spec(self, errors);
        let path = Path::new("spec");
        let (new, old) = (&self.spec, &old.spec);
        errors.immutable(
            &path.child("attachedRequired"),
            &new.attach_required,
            &old.attach_required,
        );
        errors.immutable(
            &path.child("volumeLifecycleModes"),
            &new.volume_lifecycle_modes,
            &old.volume_lifecycle_modes,
        );
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::storage::csi_driver()
    }
}

fn validate_spec(driver: &CSIDriver, errors: &mut Errors) {
    const GROUP_POLICIES: [&str; 3] = ["File", "None", "ReadWriteOnceWithFSType"];
    let spec = &driver.spec;
    let path = Path::new("spec");
    for (field, value) in [
        ("attachedRequired", spec.attach_required),
        ("podInfoOnMount", spec.pod_info_on_mount),
        ("storageCapacity", spec.storage_capacity),
    ] {
        if value.is_none() {
            errors.required(&path.child(field), "");
        }
    }
    let at = path.child("fsGroupPolicy");
    match spec.fs_group_policy.as_deref() {
        None => errors.required(&at, ""),
        Some(policy) if GROUP_POLICIES.contains(&policy) => {}
        Some(other) => errors.not_supported(&at, other, &GROUP_POLICIES),
    }
    let at = path.child("tokenRequests");
    let tokens = spec.token_requests.items();
    for (index, token) in tokens.iter().enumerate() {
        let at = at.index(index);
        if tokens[..index]
            .iter()
            .any(|before| before.audience == token.audience)
        {
            errors.duplicate(&at.child("audience"), token.audience.as_str());
            continue;
        }
        let Some(seconds) = token.expiration_seconds else {
            continue;
        };
        let at = at.child("expirationSeconds");
        if seconds < 600 {
            errors.invalid(
                &at,
                seconds,
                "may not specify a duration less than 10 minutes",
            );
        }
        if seconds > 1 << 32 {
            errors.invalid(
                &at,
                seconds,
                "may not specify a duration larger than 2^32 seconds",
            );
        }
    }
    let at = path.child("volumeLifecycleModes");
    for mode in spec.volume_lifecycle_modes.items() {
        if !matches!(mode.as_str(), "Ephemeral" | "Persistent") {
            errors.not_supported(&at, mode.as_str(), &["Persistent", "Ephemeral"]);
        }
    }
    if spec.se_linux_mount.is_none() {
        errors.required(&path.child("seLinuxMount"), "");
    }
    if let Some(seconds) = spec
        .node_allocatable_update_period_seconds
        .filter(|seconds| *seconds < 10)
    {
        errors.invalid(
            &path.child("nodeAllocatableUpdatePeriodSeconds"),
            seconds,
            "must be greater than or equal to 10 seconds",
        );
    }
    if let Some(secret) = spec.service_account_token_in_secrets
        && tokens.is_empty()
    {
        errors.invalid(
            &path.child("serviceAccountTokenInSecrets"),
            secret,
            "serviceAccountTokenInSecrets is set but no tokenRequests are specified",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_in_secrets_are_asked_for() {
        let problems = |tokens: serde_json::Value| {
            let spec = json!({"serviceAccountTokenInSecrets": false, "tokenRequests": tokens});
            let mut driver: CSIDriver =
                serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("a driver");
            driver.set_defaults();
            let mut errors = Errors::default();
            driver.validate(&mut errors);
            errors.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(problems(json!([{"audience": "a"}])), Vec::<String>::new());
        assert_eq!(
            problems(json!([])),
            [
                "spec.serviceAccountTokenInSecrets: Invalid value: false: serviceAccountTokenInSecrets is set but no \
              tokenRequests are specified"
            ]
        );
    }
}
