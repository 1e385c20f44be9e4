use k8s_openapi::api::core::v1::PodTemplate;

use crate::{
    defaults::pod_spec::set_template_defaults,
    field::{Errors, Path},
    kinds::{Generation, Kind, Rules},
    strategy::Warnings,
    validation::{template::validate_template, warnings::pod_template_warnings},
};

impl Kind for PodTemplate {
    const RULES: Rules = Rules::namespaced()
        .generation(Generation::Object)
        .create_on_update();

    fn set_defaults(&mut self) {
        set_template_defaults(self.template.get_or_insert_default());
    }

    fn validate(&self, errors: &mut Errors) {
        let template = self.template.clone().unwrap_or_default();
        validate_template(&template, &Path::new("template"), errors);
    }

    fn warnings(&self, old: Option<&Self>) -> Warnings {
        let old = old.map(|old| &old.metadata);
        pod_template_warnings(self.template.as_ref(), &self.metadata, old, "template")
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::workloads::pod_template()
    }
}
