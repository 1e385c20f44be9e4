use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus};

use crate::{
    defaults::pod_spec::round_up,
    field::{Bad, Errors, IMMUTABLE, Path},
    kinds::{Kind, Rules},
    quantity::{Amount, ResourceList},
    validation::{
        internal,
        resources::{
            is_standard_quota_resource, validate_quota_resource_name, validate_resource_quantity,
        },
    },
    zero::List,
};

impl Kind for ResourceQuota {
    const RULES: Rules = Rules::namespaced().status();

    fn set_defaults(&mut self) {
        if let Some(spec) = &mut self.spec {
            round_up(spec.hard.as_mut());
        }
        if let Some(status) = &mut self.status {
            round_up(status.hard.as_mut());
            round_up(status.used.as_mut());
        }
    }

    fn validate(&self, errors: &mut Errors) {
        validate_spec(&self.spec.clone().unwrap_or_default(), errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        let scopes = |quota: &Self| {
            let mut scopes = quota
                .spec
                .clone()
                .unwrap_or_default()
                .scopes
                .unwrap_or_default();
            scopes.sort();
            scopes.dedup();
            scopes
        };
        if scopes(self) != scopes(old) {
            let scopes = self.spec.as_ref().and_then(|spec| spec.scopes.as_ref());
            errors.invalid(&Path::new("spec.scopes"), Bad::json(&scopes), IMMUTABLE);
        }
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        let status: ResourceQuotaStatus = self.status.clone().unwrap_or_default();
        validate_list(status.hard.as_ref(), &Path::new("status.hard"), errors);
        validate_list(status.used.as_ref(), &Path::new("status.used"), errors);
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::resource_quota()
    }
}

fn validate_list(list: Option<&ResourceList>, path: &Path<'_>, errors: &mut Errors) {
    for (name, quantity) in list.into_iter().flatten() {
        let path = path.key(name);
        validate_quota_resource_name(name, &path, errors);
        validate_resource_quantity(name, Amount::of(quantity), &path, errors);
    }
}

const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

/// Whether counting a resource within a scope means anything.
fn is_scope_valid_for(scope: &str, resource: &str) -> bool {
    let compute = [
        "cpu",
        "memory",
        "limits.cpu",
        "limits.memory",
        "requests.cpu",
        "requests.memory",
        "ephemeral-storage",
        "limits.ephemeral-storage",
        "requests.ephemeral-storage",
    ];
    let is_compute = compute.contains(&resource) || resource.contains("hugepages-");
    match scope {
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => resource == "pods" || is_compute,
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage")
        }
        _ => true,
    }
}

fn validate_spec(spec: &ResourceQuotaSpec, errors: &mut Errors) {
    validate_list(spec.hard.as_ref(), &Path::new("spec.hard"), errors);
    let resources: Vec<&String> = spec.hard.iter().flatten().map(|(name, _)| name).collect();
    let unfit = |scope: &str| {
        resources
            .iter()
            .filter(|name| is_standard_quota_resource(name) && !is_scope_valid_for(scope, name))
            .count()
    };
    let scopes = spec.scopes.items();
    let path = Path::new("spec.scopes");
    for scope in scopes {
        if !SCOPES.contains(&scope.as_str()) {
            errors.invalid(&path, Bad::json(&scopes), "unsupported scope");
        }
        for _ in 0..unfit(scope) {
            errors.invalid(
                &path,
                Bad::json(&scopes),
                "unsupported scope applied to resource",
            );
        }
    }
    let names: Vec<&str> = scopes.iter().map(String::as_str).collect();
    validate_pairs(&names, scopes, &path, errors);
    let Some(selector) = &spec.scope_selector else {
        return;
    };
    let path = Path::new("spec.scopeSelector.matchExpressions");
    for requirement in selector.match_expressions.items() {
        let (scope, operator) = (
            requirement.scope_name.as_str(),
            requirement.operator.as_str(),
        );
        let values = requirement.values.items();
        if !SCOPES.contains(&scope) {
            errors.invalid(&path.child("scopeName"), scope, "unsupported scope");
        }
        for _ in 0..unfit(scope) {
            errors.invalid(
                &path,
                internal::bad("ScopeRequirement", selector),
                "unsupported scope applied to resource",
            );
        }
        let only_exists =
            !matches!(scope, "PriorityClass" | "VolumeAttributesClass") && SCOPES.contains(&scope);
        if only_exists && operator != "Exists" {
            errors.invalid(
                &path.child("operator"),
                operator,
                "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
                 ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.required(
                &path.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.invalid(
                &path.child("values"),
                Bad::json(&values),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            ),
        }
    }
    let names: Vec<&str> = selector
        .match_expressions
        .items()
        .iter()
        .map(|one| one.scope_name.as_str())
        .collect();
    validate_pairs(&names, scopes, &path, errors);
}

fn validate_pairs(names: &[&str], scopes: &[String], path: &Path<'_>, errors: &mut Errors) {
    for (one, other) in [
        ("BestEffort", "NotBestEffort"),
        ("NotTerminating", "Terminating"),
    ] {
        if names.contains(&one) && names.contains(&other) {
            errors.invalid(path, Bad::json(&scopes), "conflicting scopes");
        }
    }
}
