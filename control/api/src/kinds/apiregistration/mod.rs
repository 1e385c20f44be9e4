//! apiregistration.k8s.io/v1

use jiff::Timestamp;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    kube_aggregator::pkg::apis::apiregistration::v1::{
        APIService, APIServiceCondition, APIServiceStatus,
    },
};

use crate::{
    field::{Errors, Path},
    kinds::{Check, Kind, Rules, keep_status_metadata},
    zero::{Text, set},
};

impl Kind for APIService {
    const RULES: Rules = Rules::cluster()
        .status()
        .reset_status(&["metadata", "spec"])
        .conditional_update()
        .update_checks(&[Check::Metadata, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        let service = self.spec.as_mut().and_then(|spec| spec.service.as_mut());
        if let Some(service) = service {
            set(&mut service.port, 443);
        }
    }

    fn prepare_create(&mut self) {
        let mut status = APIServiceStatus::default();
        if self.spec.as_ref().is_none_or(|spec| spec.service.is_none()) {
            status.conditions = Some(vec![APIServiceCondition {
                type_: "Available".to_owned(),
                status: "True".to_owned(),
                reason: Some("Local".to_owned()),
                message: Some("Local APIServices are always available".to_owned()),
                last_transition_time: Some(Time(Timestamp::now())),
            }]);
        }
        self.status = Some(status);
    }

    fn prepare_status_update(&mut self, old: &Self) {
        keep_status_metadata(&mut self.metadata, &old.metadata);
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        let name = self.metadata.name.text();
        let required = format!("{}.{}", spec.version.text(), spec.group.text());
        if name != required {
            errors.invalid(
                &Path::new("metadata.name"),
                name,
                format!("must be `spec.version+\".\"+spec.group`: {required:?}"),
            );
        }
        let path = Path::new("spec");
        for (field, value, limit) in [
            ("groupPriorityMinimum", spec.group_priority_minimum, 20_000),
            ("versionPriority", spec.version_priority, 1000),
        ] {
            if value <= 0 || value > limit {
                errors.invalid(
                    &path.child(field),
                    value,
                    format!("must be positive and less than {limit}"),
                );
            }
        }
        if let Some(service) = &spec.service {
            let at = path.child("service");
            for (field, value) in [("namespace", &service.namespace), ("name", &service.name)] {
                if value.text().is_empty() {
                    errors.required(&at.child(field), "");
                }
            }
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::api_service()
    }
}
