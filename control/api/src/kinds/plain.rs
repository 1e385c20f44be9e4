//! Kinds that add nothing of their own yet but how they are printed.

use k8s_openapi::{
    api::{
        admissionregistration, authentication, authorization, autoscaling, certificates, core,
        events, flowcontrol, resource,
    },
    apiextensions_apiserver::pkg::apis::apiextensions,
    kube_aggregator::pkg::apis::apiregistration,
};

use super::{Generation, Kind, Rules};
use crate::printers;

macro_rules! plain {
    ($($type:ty => $rules:expr, $printer:path;)*) => {$(
        impl Kind for $type {
            const RULES: Rules = $rules;
            const HAS_DEFAULTS: bool = false;

            fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
                $printer()
            }
        }
    )*};
}

plain! {
    core::v1::Binding => Rules::namespaced(), printers::core::name_and_age;
    core::v1::ComponentStatus => Rules::cluster(), printers::core::component_status;
    apiregistration::v1::APIService => Rules::cluster().status().conditional_update(), printers::core::api_service;
    events::v1::Event => Rules::namespaced().create_on_update(), printers::core::event;
    authentication::v1::SelfSubjectReview => Rules::cluster(), printers::core::name_and_age;
    authentication::v1::TokenReview => Rules::cluster(), printers::core::name_and_age;
    authorization::v1::LocalSubjectAccessReview => Rules::namespaced(), printers::core::name_and_age;
    authorization::v1::SelfSubjectAccessReview => Rules::cluster(), printers::core::name_and_age;
    authorization::v1::SelfSubjectRulesReview => Rules::cluster(), printers::core::name_and_age;
    authorization::v1::SubjectAccessReview => Rules::cluster(), printers::core::name_and_age;
    autoscaling::v2::HorizontalPodAutoscaler => Rules::namespaced().status(), printers::workloads::horizontal_pod_autoscaler;
    autoscaling::v1::HorizontalPodAutoscaler => Rules::namespaced().status(), printers::workloads::horizontal_pod_autoscaler;
    certificates::v1::CertificateSigningRequest => Rules::cluster().status(), printers::access::certificate_signing_request;
    admissionregistration::v1::MutatingAdmissionPolicy => Rules::cluster().generation(Generation::Spec).conditional_update(), printers::access::mutating_admission_policy;
    admissionregistration::v1::MutatingAdmissionPolicyBinding => Rules::cluster().generation(Generation::Spec).conditional_update(), printers::access::mutating_admission_policy_binding;
    admissionregistration::v1::MutatingWebhookConfiguration => Rules::cluster().generation(Generation::Object).conditional_update(), printers::access::mutating_webhook_configuration;
    admissionregistration::v1::ValidatingAdmissionPolicy => Rules::cluster().generation(Generation::Spec).status().conditional_update(), printers::access::validating_admission_policy;
    admissionregistration::v1::ValidatingAdmissionPolicyBinding => Rules::cluster().generation(Generation::Spec).conditional_update(), printers::access::validating_admission_policy_binding;
    admissionregistration::v1::ValidatingWebhookConfiguration => Rules::cluster().generation(Generation::Object).conditional_update(), printers::access::validating_webhook_configuration;
    apiextensions::v1::CustomResourceDefinition => Rules::cluster().generation(Generation::Spec).status().conditional_update(), printers::core::name_and_age;
    resource::v1::DeviceClass => Rules::cluster().generation(Generation::Spec), printers::storage::device_class;
    resource::v1::ResourceClaim => Rules::namespaced().status(), printers::storage::resource_claim;
    resource::v1::ResourceClaimTemplate => Rules::namespaced(), printers::core::name_and_age;
    resource::v1::ResourceSlice => Rules::cluster().generation(Generation::Spec), printers::storage::resource_slice;
    flowcontrol::v1::FlowSchema => Rules::cluster().generation(Generation::Spec).status().conditional_update(), printers::access::flow_schema;
    flowcontrol::v1::PriorityLevelConfiguration => Rules::cluster().generation(Generation::Spec).status().conditional_update(), printers::access::priority_level_configuration;
}
