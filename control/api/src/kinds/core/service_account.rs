use k8s_openapi::api::core::v1::{ObjectReference, ServiceAccount};

use crate::{
    kinds::{Check, Kind, Rules},
    strategy::Warnings,
};

const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

impl Kind for ServiceAccount {
    const RULES: Rules =
        Rules::namespaced().update_checks(&[Check::Metadata, Check::MetadataChange]);
    const HAS_DEFAULTS: bool = false;

    fn prepare_create(&mut self) {
        keep_secret_names(self);
    }

    fn prepare_update(&mut self, _old: &Self) {
        keep_secret_names(self);
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        let has = |account: &Self| {
            account
                .metadata
                .annotations
                .as_ref()
                .is_some_and(|all| all.contains_key(MOUNTABLE))
        };
        if has(self) && !old.is_some_and(has) {
            return vec![format!(
                "metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
            )];
        }
        Warnings::new()
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::name_and_age()
    }
}

/// Nothing but the name of a reference means anything.
fn keep_secret_names(account: &mut ServiceAccount) {
    for secret in account.secrets.iter_mut().flatten() {
        *secret = ObjectReference {
            name: secret.name.take(),
            ..ObjectReference::default()
        };
    }
}
