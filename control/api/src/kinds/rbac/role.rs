use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};

use crate::{
    field::{Bad, Errors, Path},
    kinds::{Check, Kind, Rules},
    validation::{
        labels::{SelectorRules, readable, validate_selector},
        meta::NameRule,
    },
    zero::List,
};

impl Kind for Role {
    const RULES: Rules = Rules::namespaced()
        .name(NameRule::PathSegment)
        .create_on_update()
        .update_checks(&[Check::Metadata, Check::Object, Check::MetadataChange]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        validate_rules(self.rules.items(), true, errors);
    }

    fn validate_update(&self, _old: &Self, _errors: &mut Errors) {}
}

impl Kind for ClusterRole {
    const RULES: Rules = Rules::cluster()
        .name(NameRule::PathSegment)
        .create_on_update()
        .update_checks(&[Check::Metadata, Check::Object, Check::MetadataChange]);
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        validate_rules(self.rules.items(), false, errors);
        let Some(aggregation) = &self.aggregation_rule else {
            return;
        };
        let path = Path::new("aggregationRule.clusterRoleSelectors");
        let selectors = aggregation.cluster_role_selectors.items();
        if selectors.is_empty() {
            errors.required(
                &path,
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            );
        }
        for (i, selector) in selectors.iter().enumerate() {
            let at = path.index(i);
            validate_selector(Some(selector), SelectorRules::default(), &at, errors);
            if readable(selector).is_none() {
                errors.invalid(&at, None::<&str>, "invalid label selector.");
            }
        }
    }

    fn validate_update(&self, _old: &Self, _errors: &mut Errors) {}
}

fn validate_rules(rules: &[PolicyRule], namespaced: bool, errors: &mut Errors) {
    let path = Path::new("rules");
    for (i, rule) in rules.iter().enumerate() {
        validate_rule(rule, namespaced, &path.index(i), errors);
    }
}

fn validate_rule(rule: &PolicyRule, namespaced: bool, path: &Path<'_>, errors: &mut Errors) {
    if rule.verbs.is_empty() {
        errors.required(
            &path.child("verbs"),
            "verbs must contain at least one value",
        );
    }
    let groups = rule.api_groups.items();
    let (resources, names) = (rule.resources.items(), rule.resource_names.items());
    let urls = rule.non_resource_urls.items();
    if !urls.is_empty() {
        let at = path.child("nonResourceURLs");
        if namespaced {
            errors.invalid(
                &at,
                Bad::json(&urls),
                "namespaced rules cannot apply to non-resource URLs",
            );
        }
        if !groups.is_empty() || !resources.is_empty() || !names.is_empty() {
            errors.invalid(
                &at,
                Bad::json(&urls),
                "rules cannot apply to both regular resources and non-resource URLs",
            );
        }
        return;
    }
    if groups.is_empty() {
        errors.required(
            &path.child("apiGroups"),
            "resource rules must supply at least one api group",
        );
    }
    if resources.is_empty() {
        errors.required(
            &path.child("resources"),
            "resource rules must supply at least one resource",
        );
    }
}
