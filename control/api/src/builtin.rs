//! The rows of the built-in resources, group by group in the order of discovery.

use std::{borrow::Cow, sync::Arc};

use k8s_openapi::{
    api::{
        admissionregistration, apps, authentication, authorization, autoscaling, batch,
        certificates, coordination, core, discovery, events, flowcontrol, networking, node, policy,
        rbac, resource, scheduling, storage,
    },
    apiextensions_apiserver::pkg::apis::apiextensions,
    kube_aggregator::pkg::apis::apiregistration,
};

use crate::{
    kinds::{Kind, Typed, autoscaling::convert as convert_autoscaler, events as convert_event},
    resource::{Conversion, ResourceDef, Scope, Subresource, UnknownField, Verb},
};

const ALL: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];
const PROXY: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::Get,
    Verb::Patch,
    Verb::Update,
];
const READ_WRITE: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];

/// Every resource of the stable groups of Kubernetes 1.36.
pub fn builtin() -> Vec<ResourceDef> {
    let groups = [
        core(),
        apiregistration(),
        apps(),
        events(),
        authentication(),
        authorization(),
        autoscaling_v2(),
        autoscaling(),
        batch(),
        certificates(),
        networking(),
        policy(),
        rbac(),
        storage(),
        admissionregistration(),
        apiextensions(),
        scheduling(),
        coordination(),
        node(),
        discovery(),
        resource(),
        flowcontrol(),
    ];
    groups.into_iter().flatten().collect()
}

fn core() -> Vec<ResourceDef> {
    let group = Group::new("", "v1");
    vec![
        group
            .namespaced::<core::v1::Binding>("bindings", "Binding")
            .create_only()
            .build(),
        group
            .cluster::<core::v1::ComponentStatus>("componentstatuses", "ComponentStatus")
            .read_only()
            .short(&["cs"])
            .deprecated("v1 ComponentStatus is deprecated in v1.19+")
            .build(),
        group
            .namespaced::<core::v1::ConfigMap>("configmaps", "ConfigMap")
            .short(&["cm"])
            .build(),
        group
            .namespaced::<core::v1::Endpoints>("endpoints", "Endpoints")
            .short(&["ep"])
            .deprecated(
                "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
            )
            .build(),
        group
            .namespaced::<core::v1::Event>("events", "Event")
            .short(&["ev"])
            .build(),
        group
            .namespaced::<core::v1::LimitRange>("limitranges", "LimitRange")
            .short(&["limits"])
            .build(),
        group
            .cluster::<core::v1::Namespace>("namespaces", "Namespace")
            .no_delete_collection()
            .short(&["ns"])
            .sub("finalize", "Namespace", &[Verb::Update])
            .writes("status")
            .build(),
        group
            .cluster::<core::v1::Node>("nodes", "Node")
            .short(&["no"])
            .sub("proxy", "NodeProxyOptions", PROXY)
            .writes("status")
            .build(),
        group
            .namespaced::<core::v1::PersistentVolumeClaim>(
                "persistentvolumeclaims",
                "PersistentVolumeClaim",
            )
            .short(&["pvc"])
            .writes("status")
            .build(),
        group
            .cluster::<core::v1::PersistentVolume>("persistentvolumes", "PersistentVolume")
            .short(&["pv"])
            .writes("status")
            .build(),
        group
            .namespaced::<core::v1::Pod>("pods", "Pod")
            .short(&["po"])
            .categories(&["all"])
            .sub("attach", "PodAttachOptions", &[Verb::Create, Verb::Get])
            .sub("binding", "Binding", &[Verb::Create])
            .writes("ephemeralcontainers")
            .sub_of("eviction", "policy", "v1", "Eviction", &[Verb::Create])
            .sub("exec", "PodExecOptions", &[Verb::Create, Verb::Get])
            .sub("log", "Pod", &[Verb::Get])
            .sub(
                "portforward",
                "PodPortForwardOptions",
                &[Verb::Create, Verb::Get],
            )
            .sub("proxy", "PodProxyOptions", PROXY)
            .writes("resize")
            .writes("status")
            .build(),
        group
            .namespaced::<core::v1::PodTemplate>("podtemplates", "PodTemplate")
            .build(),
        group
            .namespaced::<core::v1::ReplicationController>(
                "replicationcontrollers",
                "ReplicationController",
            )
            .short(&["rc"])
            .categories(&["all"])
            .scale()
            .writes("status")
            .build(),
        group
            .namespaced::<core::v1::ResourceQuota>("resourcequotas", "ResourceQuota")
            .short(&["quota"])
            .writes("status")
            .build(),
        group
            .namespaced::<core::v1::Secret>("secrets", "Secret")
            .build(),
        group
            .namespaced::<core::v1::ServiceAccount>("serviceaccounts", "ServiceAccount")
            .short(&["sa"])
            .sub_of(
                "token",
                "authentication.k8s.io",
                "v1",
                "TokenRequest",
                &[Verb::Create],
            )
            .build(),
        group
            .namespaced::<core::v1::Service>("services", "Service")
            .short(&["svc"])
            .categories(&["all"])
            .sub("proxy", "ServiceProxyOptions", PROXY)
            .writes("status")
            .build(),
    ]
}

fn apiregistration() -> Vec<ResourceDef> {
    let group = Group::new("apiregistration.k8s.io", "v1");
    vec![
        group
            .cluster::<apiregistration::v1::APIService>("apiservices", "APIService")
            .categories(&["api-extensions"])
            .writes("status")
            .build(),
    ]
}

fn apps() -> Vec<ResourceDef> {
    let group = Group::new("apps", "v1");
    vec![
        group
            .namespaced::<apps::v1::ControllerRevision>("controllerrevisions", "ControllerRevision")
            .build(),
        group
            .namespaced::<apps::v1::DaemonSet>("daemonsets", "DaemonSet")
            .short(&["ds"])
            .categories(&["all"])
            .writes("status")
            .build(),
        group
            .namespaced::<apps::v1::Deployment>("deployments", "Deployment")
            .short(&["deploy"])
            .categories(&["all"])
            .scale()
            .writes("status")
            .build(),
        group
            .namespaced::<apps::v1::ReplicaSet>("replicasets", "ReplicaSet")
            .short(&["rs"])
            .categories(&["all"])
            .scale()
            .writes("status")
            .build(),
        group
            .namespaced::<apps::v1::StatefulSet>("statefulsets", "StatefulSet")
            .short(&["sts"])
            .categories(&["all"])
            .scale()
            .writes("status")
            .build(),
    ]
}

fn events() -> Vec<ResourceDef> {
    let group = Group::new("events.k8s.io", "v1");
    vec![
        group
            .namespaced::<events::v1::Event>("events", "Event")
            .short(&["ev"])
            .stored_as("", "v1", convert_event::to_core, convert_event::from_core)
            .build(),
    ]
}

fn authentication() -> Vec<ResourceDef> {
    let group = Group::new("authentication.k8s.io", "v1");
    vec![
        group
            .cluster::<authentication::v1::SelfSubjectReview>(
                "selfsubjectreviews",
                "SelfSubjectReview",
            )
            .create_only()
            .build(),
        group
            .cluster::<authentication::v1::TokenReview>("tokenreviews", "TokenReview")
            .create_only()
            .build(),
    ]
}

fn authorization() -> Vec<ResourceDef> {
    let group = Group::new("authorization.k8s.io", "v1");
    vec![
        group
            .namespaced::<authorization::v1::LocalSubjectAccessReview>(
                "localsubjectaccessreviews",
                "LocalSubjectAccessReview",
            )
            .create_only()
            .build(),
        group
            .cluster::<authorization::v1::SelfSubjectAccessReview>(
                "selfsubjectaccessreviews",
                "SelfSubjectAccessReview",
            )
            .create_only()
            .build(),
        group
            .cluster::<authorization::v1::SelfSubjectRulesReview>(
                "selfsubjectrulesreviews",
                "SelfSubjectRulesReview",
            )
            .create_only()
            .build(),
        group
            .cluster::<authorization::v1::SubjectAccessReview>(
                "subjectaccessreviews",
                "SubjectAccessReview",
            )
            .create_only()
            .build(),
    ]
}

fn autoscaling_v2() -> Vec<ResourceDef> {
    let group = Group::new("autoscaling", "v2");
    vec![
        group
            .namespaced::<autoscaling::v2::HorizontalPodAutoscaler>(
                "horizontalpodautoscalers",
                "HorizontalPodAutoscaler",
            )
            .short(&["hpa"])
            .categories(&["all"])
            .writes("status")
            .build(),
    ]
}

fn autoscaling() -> Vec<ResourceDef> {
    let group = Group::new("autoscaling", "v1");
    vec![
        group
            .namespaced::<autoscaling::v1::HorizontalPodAutoscaler>(
                "horizontalpodautoscalers",
                "HorizontalPodAutoscaler",
            )
            .short(&["hpa"])
            .categories(&["all"])
            .writes("status")
            .stored_as(
                "autoscaling",
                "v2",
                convert_autoscaler::to_v2,
                convert_autoscaler::from_v2,
            )
            .build(),
    ]
}

fn batch() -> Vec<ResourceDef> {
    let group = Group::new("batch", "v1");
    vec![
        group
            .namespaced::<batch::v1::CronJob>("cronjobs", "CronJob")
            .short(&["cj"])
            .categories(&["all"])
            .writes("status")
            .build(),
        group
            .namespaced::<batch::v1::Job>("jobs", "Job")
            .categories(&["all"])
            .writes("status")
            .build(),
    ]
}

fn certificates() -> Vec<ResourceDef> {
    let group = Group::new("certificates.k8s.io", "v1");
    vec![
        group
            .cluster::<certificates::v1::CertificateSigningRequest>(
                "certificatesigningrequests",
                "CertificateSigningRequest",
            )
            .short(&["csr"])
            .writes("approval")
            .writes("status")
            .build(),
    ]
}

fn networking() -> Vec<ResourceDef> {
    let group = Group::new("networking.k8s.io", "v1");
    vec![
        group
            .cluster::<networking::v1::IngressClass>("ingressclasses", "IngressClass")
            .build(),
        group
            .namespaced::<networking::v1::Ingress>("ingresses", "Ingress")
            .short(&["ing"])
            .writes("status")
            .build(),
        group
            .cluster::<networking::v1::IPAddress>("ipaddresses", "IPAddress")
            .short(&["ip"])
            .build(),
        group
            .namespaced::<networking::v1::NetworkPolicy>("networkpolicies", "NetworkPolicy")
            .short(&["netpol"])
            .build(),
        group
            .cluster::<networking::v1::ServiceCIDR>("servicecidrs", "ServiceCIDR")
            .writes("status")
            .build(),
    ]
}

fn policy() -> Vec<ResourceDef> {
    let group = Group::new("policy", "v1");
    vec![
        group
            .namespaced::<policy::v1::PodDisruptionBudget>(
                "poddisruptionbudgets",
                "PodDisruptionBudget",
            )
            .short(&["pdb"])
            .writes("status")
            .build(),
    ]
}

fn rbac() -> Vec<ResourceDef> {
    let group = Group::new("rbac.authorization.k8s.io", "v1");
    vec![
        group
            .cluster::<rbac::v1::ClusterRoleBinding>("clusterrolebindings", "ClusterRoleBinding")
            .build(),
        group
            .cluster::<rbac::v1::ClusterRole>("clusterroles", "ClusterRole")
            .build(),
        group
            .namespaced::<rbac::v1::RoleBinding>("rolebindings", "RoleBinding")
            .build(),
        group.namespaced::<rbac::v1::Role>("roles", "Role").build(),
    ]
}

fn storage() -> Vec<ResourceDef> {
    let group = Group::new("storage.k8s.io", "v1");
    vec![
        group
            .cluster::<storage::v1::CSIDriver>("csidrivers", "CSIDriver")
            .build(),
        group
            .cluster::<storage::v1::CSINode>("csinodes", "CSINode")
            .build(),
        group
            .namespaced::<storage::v1::CSIStorageCapacity>(
                "csistoragecapacities",
                "CSIStorageCapacity",
            )
            .build(),
        group
            .cluster::<storage::v1::StorageClass>("storageclasses", "StorageClass")
            .short(&["sc"])
            .build(),
        group
            .cluster::<storage::v1::VolumeAttachment>("volumeattachments", "VolumeAttachment")
            .writes("status")
            .build(),
        group
            .cluster::<storage::v1::VolumeAttributesClass>(
                "volumeattributesclasses",
                "VolumeAttributesClass",
            )
            .short(&["vac"])
            .build(),
    ]
}

fn admissionregistration() -> Vec<ResourceDef> {
    let group = Group::new("admissionregistration.k8s.io", "v1");
    vec![
        group
            .cluster::<admissionregistration::v1::MutatingAdmissionPolicy>(
                "mutatingadmissionpolicies",
                "MutatingAdmissionPolicy",
            )
            .categories(&["api-extensions"])
            .build(),
        group
            .cluster::<admissionregistration::v1::MutatingAdmissionPolicyBinding>(
                "mutatingadmissionpolicybindings",
                "MutatingAdmissionPolicyBinding",
            )
            .categories(&["api-extensions"])
            .build(),
        group
            .cluster::<admissionregistration::v1::MutatingWebhookConfiguration>(
                "mutatingwebhookconfigurations",
                "MutatingWebhookConfiguration",
            )
            .categories(&["api-extensions"])
            .build(),
        group
            .cluster::<admissionregistration::v1::ValidatingAdmissionPolicy>(
                "validatingadmissionpolicies",
                "ValidatingAdmissionPolicy",
            )
            .categories(&["api-extensions"])
            .writes("status")
            .build(),
        group
            .cluster::<admissionregistration::v1::ValidatingAdmissionPolicyBinding>(
                "validatingadmissionpolicybindings",
                "ValidatingAdmissionPolicyBinding",
            )
            .categories(&["api-extensions"])
            .build(),
        group
            .cluster::<admissionregistration::v1::ValidatingWebhookConfiguration>(
                "validatingwebhookconfigurations",
                "ValidatingWebhookConfiguration",
            )
            .categories(&["api-extensions"])
            .build(),
    ]
}

fn apiextensions() -> Vec<ResourceDef> {
    let group = Group::new("apiextensions.k8s.io", "v1");
    vec![
        group
            .cluster::<apiextensions::v1::CustomResourceDefinition>(
                "customresourcedefinitions",
                "CustomResourceDefinition",
            )
            .short(&["crd", "crds"])
            .categories(&["api-extensions"])
            .writes("status")
            .build(),
    ]
}

fn scheduling() -> Vec<ResourceDef> {
    let group = Group::new("scheduling.k8s.io", "v1");
    vec![
        group
            .cluster::<scheduling::v1::PriorityClass>("priorityclasses", "PriorityClass")
            .short(&["pc"])
            .build(),
    ]
}

fn coordination() -> Vec<ResourceDef> {
    let group = Group::new("coordination.k8s.io", "v1");
    vec![
        group
            .namespaced::<coordination::v1::Lease>("leases", "Lease")
            .build(),
    ]
}

fn node() -> Vec<ResourceDef> {
    let group = Group::new("node.k8s.io", "v1");
    vec![
        group
            .cluster::<node::v1::RuntimeClass>("runtimeclasses", "RuntimeClass")
            .build(),
    ]
}

fn discovery() -> Vec<ResourceDef> {
    let group = Group::new("discovery.k8s.io", "v1");
    vec![
        group
            .namespaced::<discovery::v1::EndpointSlice>("endpointslices", "EndpointSlice")
            .build(),
    ]
}

fn resource() -> Vec<ResourceDef> {
    let group = Group::new("resource.k8s.io", "v1");
    vec![
        group
            .cluster::<resource::v1::DeviceClass>("deviceclasses", "DeviceClass")
            .build(),
        group
            .namespaced::<resource::v1::ResourceClaim>("resourceclaims", "ResourceClaim")
            .writes("status")
            .build(),
        group
            .namespaced::<resource::v1::ResourceClaimTemplate>(
                "resourceclaimtemplates",
                "ResourceClaimTemplate",
            )
            .build(),
        group
            .cluster::<resource::v1::ResourceSlice>("resourceslices", "ResourceSlice")
            .build(),
    ]
}

fn flowcontrol() -> Vec<ResourceDef> {
    let group = Group::new("flowcontrol.apiserver.k8s.io", "v1");
    vec![
        group
            .cluster::<flowcontrol::v1::FlowSchema>("flowschemas", "FlowSchema")
            .writes("status")
            .build(),
        group
            .cluster::<flowcontrol::v1::PriorityLevelConfiguration>(
                "prioritylevelconfigurations",
                "PriorityLevelConfiguration",
            )
            .writes("status")
            .build(),
    ]
}

struct Group {
    name: &'static str,
    version: &'static str,
}

impl Group {
    const fn new(name: &'static str, version: &'static str) -> Self {
        Self { name, version }
    }

    fn namespaced<T: Kind>(&self, plural: &'static str, kind: &'static str) -> Row {
        self.row::<T>(plural, kind, Scope::Namespaced)
    }

    fn cluster<T: Kind>(&self, plural: &'static str, kind: &'static str) -> Row {
        self.row::<T>(plural, kind, Scope::Cluster)
    }

    fn row<T: Kind>(&self, plural: &'static str, kind: &'static str, scope: Scope) -> Row {
        let fields = T::selectable();
        Row(ResourceDef {
            group: Cow::Borrowed(self.name),
            version: Cow::Borrowed(self.version),
            kind: Cow::Borrowed(kind),
            plural: Cow::Borrowed(plural),
            singular: Cow::Owned(kind.to_lowercase()),
            short_names: Vec::new(),
            categories: Vec::new(),
            scope,
            verbs: ALL.to_vec(),
            subresources: Vec::new(),
            conversion: None,
            selectable_names: fields
                .unwrap_or_default()
                .iter()
                .map(|field| Cow::Borrowed(field.name))
                .collect(),
            selectable_fields: Arc::new(move |object| {
                fields
                    .unwrap_or_default()
                    .iter()
                    .map(|field| (Cow::Borrowed(field.name), (field.get)(object)))
                    .collect()
            }),
            unknown_field: match fields {
                Some(_) => UnknownField::NotSupported,
                None => UnknownField::OnlyMetadata,
            },
            deprecation: None,
            field_annotations: T::FIELD_ANNOTATIONS,
            schema: skep_schema::builtin(self.name, self.version, kind),
            strategy: Arc::new(Typed::<T>::default()),
            printer: T::printer(),
        })
    }
}

struct Row(ResourceDef);

impl Row {
    fn short(mut self, names: &[&'static str]) -> Self {
        self.0.short_names = names.iter().copied().map(Cow::Borrowed).collect();
        self
    }

    fn categories(mut self, names: &[&'static str]) -> Self {
        self.0.categories = names.iter().copied().map(Cow::Borrowed).collect();
        self
    }

    fn deprecated(mut self, warning: &'static str) -> Self {
        self.0.deprecation = Some(Cow::Borrowed(warning));
        self
    }

    fn create_only(mut self) -> Self {
        self.0.verbs = vec![Verb::Create];
        self
    }

    fn read_only(mut self) -> Self {
        self.0.verbs = vec![Verb::Get, Verb::List];
        self
    }

    fn no_delete_collection(mut self) -> Self {
        self.0.verbs.retain(|verb| *verb != Verb::DeleteCollection);
        self
    }

    /// A subresource that reads and writes the object itself.
    fn writes(self, name: &'static str) -> Self {
        let kind = self.0.kind.clone();
        self.subresource(name, "", "", kind, READ_WRITE)
    }

    fn scale(self) -> Self {
        self.sub_of("scale", "autoscaling", "v1", "Scale", READ_WRITE)
    }

    fn sub(self, name: &'static str, kind: &'static str, verbs: &[Verb]) -> Self {
        self.sub_of(name, "", "", kind, verbs)
    }

    fn sub_of(
        self,
        name: &'static str,
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        verbs: &[Verb],
    ) -> Self {
        self.subresource(name, group, version, Cow::Borrowed(kind), verbs)
    }

    fn subresource(
        mut self,
        name: &'static str,
        group: &'static str,
        version: &'static str,
        kind: Cow<'static, str>,
        verbs: &[Verb],
    ) -> Self {
        self.0.subresources.push(Subresource {
            name: Cow::Borrowed(name),
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            kind,
            verbs: verbs.to_vec(),
        });
        self
    }

    /// Stored as the same resource of another group or version.
    fn stored_as(
        mut self,
        group: &'static str,
        version: &'static str,
        to_storage: fn(serde_json::Value) -> serde_json::Value,
        from_storage: fn(serde_json::Value) -> serde_json::Value,
    ) -> Self {
        self.0.conversion = Some(Conversion {
            storage_group: Cow::Borrowed(group),
            storage_version: Cow::Borrowed(version),
            to_storage: Arc::new(to_storage),
            from_storage: Arc::new(from_storage),
        });
        self
    }

    fn build(self) -> ResourceDef {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn rows_are_distinct_and_named_as_their_kind() {
        let rows = builtin();
        let mut seen = HashSet::new();
        for row in &rows {
            assert!(seen.insert((row.group.clone(), row.version.clone(), row.plural.clone())));
            assert_eq!(row.singular, row.kind.to_lowercase());
            let mut verbs = row.verbs.clone();
            verbs.sort_by_key(|verb| verb.as_str());
            assert_eq!(
                verbs, row.verbs,
                "{}: discovery lists verbs sorted",
                row.plural
            );
        }
        assert_eq!(rows.len(), 68);
    }
}
