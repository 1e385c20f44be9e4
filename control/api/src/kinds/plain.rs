//! Kinds that add nothing of their own yet.

use k8s_openapi::{
    api::{
        admissionregistration, authentication, authorization, autoscaling, batch, certificates,
        coordination, core, discovery, events, flowcontrol, networking, node, policy, rbac,
        resource, scheduling, storage,
    },
    apiextensions_apiserver::pkg::apis::apiextensions,
    kube_aggregator::pkg::apis::apiregistration,
};

use super::{Generation, Kind, Rules};
use crate::validation::meta::NameRule;

macro_rules! plain {
    ($($type:ty => $rules:expr;)*) => {$(
        impl Kind for $type {
            const RULES: Rules = $rules;
            const HAS_DEFAULTS: bool = false;
        }
    )*};
}

plain! {
    core::v1::Binding => Rules::namespaced();
    core::v1::ComponentStatus => Rules::cluster();
    apiregistration::v1::APIService => Rules::cluster().status().conditional_update();
    events::v1::Event => Rules::namespaced().create_on_update();
    authentication::v1::SelfSubjectReview => Rules::cluster();
    authentication::v1::TokenReview => Rules::cluster();
    authorization::v1::LocalSubjectAccessReview => Rules::namespaced();
    authorization::v1::SelfSubjectAccessReview => Rules::cluster();
    authorization::v1::SelfSubjectRulesReview => Rules::cluster();
    authorization::v1::SubjectAccessReview => Rules::cluster();
    autoscaling::v2::HorizontalPodAutoscaler => Rules::namespaced().status();
    autoscaling::v1::HorizontalPodAutoscaler => Rules::namespaced().status();
    batch::v1::CronJob => Rules::namespaced().generation(Generation::Spec).status();
    batch::v1::Job => Rules::namespaced().generation(Generation::Spec).status();
    certificates::v1::CertificateSigningRequest => Rules::cluster().status();
    networking::v1::IngressClass => Rules::cluster().generation(Generation::Spec);
    networking::v1::Ingress => Rules::namespaced().generation(Generation::Spec).status();
    networking::v1::IPAddress => Rules::cluster().create_on_update();
    networking::v1::NetworkPolicy => Rules::namespaced().generation(Generation::Spec);
    networking::v1::ServiceCIDR => Rules::cluster().status();
    policy::v1::PodDisruptionBudget => Rules::namespaced().generation(Generation::Spec).status().conditional_update();
    rbac::v1::ClusterRoleBinding => Rules::cluster().name(NameRule::PathSegment).create_on_update();
    rbac::v1::ClusterRole => Rules::cluster().name(NameRule::PathSegment).create_on_update();
    rbac::v1::RoleBinding => Rules::namespaced().name(NameRule::PathSegment).create_on_update();
    rbac::v1::Role => Rules::namespaced().name(NameRule::PathSegment).create_on_update();
    storage::v1::CSIDriver => Rules::cluster().conditional_update();
    storage::v1::CSINode => Rules::cluster().conditional_update();
    storage::v1::CSIStorageCapacity => Rules::namespaced();
    storage::v1::StorageClass => Rules::cluster();
    storage::v1::VolumeAttachment => Rules::cluster().status().conditional_update();
    storage::v1::VolumeAttributesClass => Rules::cluster();
    admissionregistration::v1::MutatingAdmissionPolicy => Rules::cluster().generation(Generation::Spec).conditional_update();
    admissionregistration::v1::MutatingAdmissionPolicyBinding => Rules::cluster().generation(Generation::Spec).conditional_update();
    admissionregistration::v1::MutatingWebhookConfiguration => Rules::cluster().generation(Generation::Object).conditional_update();
    admissionregistration::v1::ValidatingAdmissionPolicy => Rules::cluster().generation(Generation::Spec).status().conditional_update();
    admissionregistration::v1::ValidatingAdmissionPolicyBinding => Rules::cluster().generation(Generation::Spec).conditional_update();
    admissionregistration::v1::ValidatingWebhookConfiguration => Rules::cluster().generation(Generation::Object).conditional_update();
    apiextensions::v1::CustomResourceDefinition => Rules::cluster().generation(Generation::Spec).status().conditional_update();
    scheduling::v1::PriorityClass => Rules::cluster().generation(Generation::Object);
    coordination::v1::Lease => Rules::namespaced().create_on_update().conditional_update();
    node::v1::RuntimeClass => Rules::cluster().conditional_update();
    discovery::v1::EndpointSlice => Rules::namespaced().generation(Generation::Own);
    resource::v1::DeviceClass => Rules::cluster().generation(Generation::Spec);
    resource::v1::ResourceClaim => Rules::namespaced().status();
    resource::v1::ResourceClaimTemplate => Rules::namespaced();
    resource::v1::ResourceSlice => Rules::cluster().generation(Generation::Spec);
    flowcontrol::v1::FlowSchema => Rules::cluster().generation(Generation::Spec).status().conditional_update();
    flowcontrol::v1::PriorityLevelConfiguration => Rules::cluster().generation(Generation::Spec).status().conditional_update();
}
