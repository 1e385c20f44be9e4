//! apiregistration.k8s.io/v1

use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;

use crate::{
    field::{Errors, Path},
    kinds::{Kind, Rules},
    zero::{Text, set},
};

impl Kind for APIService {
    const RULES: Rules = Rules::cluster().status().conditional_update();

    fn set_defaults(&mut self) {
        let service = self.spec.as_mut().and_then(|spec| spec.service.as_mut());
        if let Some(service) = service {
            set(&mut service.port, 443);
        }
    }

    fn prepare_create(&mut self) {
        self.status = Some(Default::default());
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
