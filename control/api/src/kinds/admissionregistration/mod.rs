//! admissionregistration.k8s.io/v1

mod expressions;
pub mod policies;
pub mod policy_bindings;
mod rules;
pub mod type_checking;
pub mod webhooks;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{field::quoted, strategy::Warnings, zero::Text};

/// Names that are meant for configurations from files of the server's (KEP-5793).
fn reserved_name_warnings(meta: &ObjectMeta) -> Warnings {
    const SUFFIX: &str = ".static.k8s.io";
    if !meta.name.text().ends_with(SUFFIX) {
        return Warnings::new();
    }
    let suffix = quoted(SUFFIX);
    vec![format!(
        "metadata.name: names ending with {suffix} are reserved for static manifest-based configurations and cannot be managed via the API"
    )]
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::admissionregistration::v1::{
        MutatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
    };

    use crate::kinds::Kind;

    fn check<T: Kind + Default>(name: &str, warned: bool) {
        let mut object = T::default();
        object.metadata_mut().name = Some(name.to_owned());
        assert_eq!(!object.warnings(None).is_empty(), warned, "{}", T::KIND);
    }

    #[test]
    fn names_of_static_configurations_are_warned_of() {
        check::<ValidatingWebhookConfiguration>("a.static.k8s.io", true);
        check::<MutatingAdmissionPolicy>("a.static.k8s.io", true);
        check::<ValidatingAdmissionPolicyBinding>("a.static.k8s.io", true);
        check::<ValidatingAdmissionPolicyBinding>("static.k8s.io", false);
    }
}
