//! Who may do what, and what is checked before it is done.

use std::{cmp::Ordering, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;

use super::*;
use crate::printer::{Column, Printer, age, name};

pub fn cluster_role_binding() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "Role",
                    "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.",
                ),
                Column::age(),
                Column::new("Users", "Users in the clusterRoleBinding").wide(),
                Column::new("Groups", "Groups in the clusterRoleBinding").wide(),
                Column::new(
                    "ServiceAccounts",
                    "ServiceAccounts in the clusterRoleBinding",
                )
                .wide(),
            ]
        },
        cluster_role_binding_cells,
    )
}

pub fn role_binding() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "Role",
                    "RoleRef can reference a Role in the current namespace or a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.",
                ),
                Column::age(),
                Column::new("Users", "Users in the roleBinding").wide(),
                Column::new("Groups", "Groups in the roleBinding").wide(),
                Column::new("ServiceAccounts", "ServiceAccounts in the roleBinding").wide(),
            ]
        },
        role_binding_cells,
    )
}

pub fn certificate_signing_request() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::age(),
                Column::new(
                    "SignerName",
                    "Requested signer for the request. It is a qualified name in the form: `scope-hostname.io/name`. If empty, it will be defaulted:\n 1. If it's a kubelet client certificate, it is assigned\n    \"kubernetes.io/kube-apiserver-client-kubelet\".\n 2. If it's a kubelet serving certificate, it is assigned\n    \"kubernetes.io/kubelet-serving\".\n 3. Otherwise, it is assigned \"kubernetes.io/legacy-unknown\".\nDistribution of trust for signers happens out of band. You can select on this field using `spec.signerName`.",
                ),
                Column::new("Requestor", "Base64-encoded PKCS#10 CSR data"),
                Column::of(
                    "RequestedDuration",
                    "io.k8s.api.certificates.v1.CertificateSigningRequestSpec",
                    "expirationSeconds",
                ),
                Column::new(
                    "Condition",
                    "Conditions applied to the request, such as approval or denial.",
                ),
            ]
        },
        certificate_signing_request_cells,
    )
}

pub fn mutating_admission_policy() -> Arc<dyn Printer> {
    table(
        || {
            vec![
            Column::name(),
            Column::new("Mutations", "Mutation indicates the number of mutations rules defined in this configuration").typed("integer"),
            Column::new("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
            Column::age(),
        ]
        },
        mutating_admission_policy_cells,
    )
}

pub fn mutating_admission_policy_binding() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "PolicyName",
                    "PolicyName indicates the policy definition which the policy binding binded to",
                ),
                Column::new(
                    "ParamRef",
                    "ParamRef indicates the param resource which sets the configuration param",
                ),
                Column::age(),
            ]
        },
        mutating_admission_policy_binding_cells,
    )
}

pub fn mutating_webhook_configuration() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "Webhooks",
                    "Webhooks indicates the number of webhooks registered in this configuration",
                )
                .typed("integer"),
                Column::age(),
            ]
        },
        mutating_webhook_configuration_cells,
    )
}

pub fn validating_admission_policy() -> Arc<dyn Printer> {
    table(
        || {
            vec![
            Column::name(),
            Column::new("Validations", "Validations indicates the number of validation rules defined in this configuration").typed("integer"),
            Column::new("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
            Column::age(),
        ]
        },
        validating_admission_policy_cells,
    )
}

pub fn validating_admission_policy_binding() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "PolicyName",
                    "PolicyName indicates the policy definition which the policy binding binded to",
                ),
                Column::new(
                    "ParamRef",
                    "ParamRef indicates the param resource which sets the configuration param",
                ),
                Column::age(),
            ]
        },
        validating_admission_policy_binding_cells,
    )
}

pub fn validating_webhook_configuration() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::new(
                    "Webhooks",
                    "Webhooks indicates the number of webhooks registered in this configuration",
                )
                .typed("integer"),
                Column::age(),
            ]
        },
        validating_webhook_configuration_cells,
    )
}

pub fn flow_schema() -> Arc<dyn Printer> {
    let table = Lazy::new(
        || {
            vec![
                Column::name(),
                Column::of(
                    "PriorityLevel",
                    "io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationReference",
                    "name",
                ),
                Column::of(
                    "MatchingPrecedence",
                    "io.k8s.api.flowcontrol.v1.FlowSchemaSpec",
                    "matchingPrecedence",
                ),
                Column::of(
                    "DistinguisherMethod",
                    "io.k8s.api.flowcontrol.v1.FlowSchemaSpec",
                    "distinguisherMethod",
                ),
                Column::age(),
                Column::new(
                    "MissingPL",
                    "references a broken or non-existent PriorityLevelConfiguration",
                ),
            ]
        },
        flow_schema_cells,
    );
    Arc::new(Lazy {
        order: Some(by_precedence),
        ..table
    })
}

/// Flow schemas are listed in the order in which they are tried.
fn by_precedence(a: &Value, b: &Value) -> Ordering {
    let key = |one| {
        let precedence = integer(one, "/spec/matchingPrecedence");
        (precedence, text(one, "/metadata/name"))
    };
    key(a).cmp(&key(b))
}

pub fn priority_level_configuration() -> Arc<dyn Printer> {
    table(
        || {
            vec![
                Column::name(),
                Column::of(
                    "Type",
                    "io.k8s.api.flowcontrol.v1.PriorityLevelConfigurationSpec",
                    "type",
                ),
                Column::of(
                    "NominalConcurrencyShares",
                    "io.k8s.api.flowcontrol.v1.LimitedPriorityLevelConfiguration",
                    "nominalConcurrencyShares",
                ),
                Column::of(
                    "Queues",
                    "io.k8s.api.flowcontrol.v1.QueuingConfiguration",
                    "queues",
                ),
                Column::of(
                    "HandSize",
                    "io.k8s.api.flowcontrol.v1.QueuingConfiguration",
                    "handSize",
                ),
                Column::of(
                    "QueueLengthLimit",
                    "io.k8s.api.flowcontrol.v1.QueuingConfiguration",
                    "queueLengthLimit",
                ),
                Column::age(),
            ]
        },
        priority_level_configuration_cells,
    )
}

fn binding_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let of = |kind: &str| {
        let subjects = items(object, "/subjects").iter();
        let names: Vec<String> = subjects
            .filter(|subject| text(subject, "/kind") == kind)
            .map(|subject| match (kind, text(subject, "/namespace")) {
                ("ServiceAccount", namespace) if !namespace.is_empty() => {
                    format!("{namespace}/{}", text(subject, "/name"))
                }
                ("ServiceAccount", _) => format!("/{}", text(subject, "/name")),
                _ => text(subject, "/name").to_owned(),
            })
            .collect();
        Value::from(names.join(", "))
    };
    let role = format!(
        "{}/{}",
        text(object, "/roleRef/kind"),
        text(object, "/roleRef/name")
    );
    vec![
        name(object),
        role.into(),
        age(object, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}

fn role_binding_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    binding_cells(object, now)
}

fn cluster_role_binding_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    binding_cells(object, now)
}

fn certificate_signing_request_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let has = |type_: &str| condition(object, type_).is_some();
    let mut state = if has("Denied") {
        "Denied".to_owned()
    } else if has("Approved") {
        "Approved".to_owned()
    } else {
        "Pending".to_owned()
    };
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !text(object, "/status/certificate").is_empty() {
        state.push_str(",Issued");
    }
    let seconds = object
        .pointer("/spec/expirationSeconds")
        .and_then(Value::as_i64);
    let duration = seconds.map_or("<none>".to_owned(), |seconds| {
        crate::duration::human(jiff::SignedDuration::from_secs(seconds))
    });
    vec![
        name(object),
        age(object, now),
        or(text(object, "/spec/signerName"), "<none>").into(),
        text(object, "/spec/username").into(),
        duration.into(),
        state.into(),
    ]
}

fn policy_cells(object: &Value, rules: &str, now: Timestamp) -> Vec<Value> {
    let kind = object
        .pointer("/spec/paramKind")
        .filter(|one| !one.is_null());
    let kind = kind.map_or("<unset>".to_owned(), |one| {
        format!("{}/{}", text(one, "/apiVersion"), text(one, "/kind"))
    });
    vec![
        name(object),
        items(object, rules).len().into(),
        kind.into(),
        age(object, now),
    ]
}

fn mutating_admission_policy_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    policy_cells(object, "/spec/mutations", now)
}

fn validating_admission_policy_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    policy_cells(object, "/spec/validations", now)
}

/// A label selector as Go's generated code writes it.
fn go_selector(selector: &Value) -> String {
    let labels = selector.pointer("/matchLabels").and_then(Value::as_object);
    let labels: String = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}: {},", value.as_str().unwrap_or_default()))
        .collect();
    let expressions: String = items(selector, "/matchExpressions")
        .iter()
        .map(|one| {
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{}],}},",
                text(one, "/key"),
                text(one, "/operator"),
                joined(strings(one, "/values"), " ")
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},\
         MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

fn policy_binding_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameter = object
        .pointer("/spec/paramRef")
        .filter(|one| !one.is_null());
    let parameter = parameter.map_or("<unset>".to_owned(), |one| {
        let (namespace, name) = (text(one, "/namespace"), text(one, "/name"));
        if name.is_empty() {
            one.pointer("/selector")
                .filter(|selector| selector.is_object())
                .map_or("<unset>".to_owned(), go_selector)
        } else {
            format!("{}/{name}", or(namespace, "*"))
        }
    });
    vec![
        name(object),
        text(object, "/spec/policyName").into(),
        parameter.into(),
        age(object, now),
    ]
}

fn mutating_admission_policy_binding_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    policy_binding_cells(object, now)
}

fn validating_admission_policy_binding_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    policy_binding_cells(object, now)
}

fn webhook_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        items(object, "/webhooks").len().into(),
        age(object, now),
    ]
}

fn mutating_webhook_configuration_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    webhook_cells(object, now)
}

fn validating_webhook_configuration_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    webhook_cells(object, now)
}

fn flow_schema_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let dangling = condition(object, "Dangling").map_or("?", |one| text(one, "/status"));
    vec![
        name(object),
        text(object, "/spec/priorityLevelConfiguration/name").into(),
        integer(object, "/spec/matchingPrecedence").into(),
        or(text(object, "/spec/distinguisherMethod/type"), "<none>").into(),
        age(object, now),
        dangling.into(),
    ]
}

fn priority_level_configuration_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let number = |pointer: &str| {
        object
            .pointer(pointer)
            .filter(|one| one.is_number())
            .cloned()
    };
    let or_none = |value: Option<Value>| value.unwrap_or_else(|| "<none>".into());
    let shares = number("/spec/limited/nominalConcurrencyShares");
    let queuing = |field: &str| {
        or_none(number(&format!(
            "/spec/limited/limitResponse/queuing/{field}"
        )))
    };
    vec![
        name(object),
        text(object, "/spec/type").into(),
        or_none(shares),
        queuing("queues"),
        queuing("handSize"),
        queuing("queueLengthLimit"),
        age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_of_bindings() {
        let cell = |reference: Value| {
            let object = json!({"spec": {"paramRef": reference}});
            policy_binding_cells(&object, Timestamp::UNIX_EPOCH)[2].clone()
        };
        assert_eq!(cell(Value::Null), "<unset>");
        assert_eq!(cell(json!({"name": "n"})), "*/n");
        assert_eq!(cell(json!({"name": "n", "namespace": "x"})), "x/n");
        assert_eq!(
            cell(json!({"selector": {"matchLabels": {"a": "b"},
                "matchExpressions": [{"key": "k", "operator": "In", "values": ["v", "w"]}]}})),
            "&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{\
             LabelSelectorRequirement{Key:k,Operator:In,Values:[v w],},},}"
        );
    }

    #[test]
    fn flow_schemas_stand_in_the_order_they_are_tried() {
        let schema = |name: &str, precedence: i64| json!({"metadata": {"name": name}, "spec": {"matchingPrecedence": precedence}});
        let order = flow_schema().order().expect("an order");
        assert_eq!(order(&schema("b", 1), &schema("a", 2)), Ordering::Less);
        assert_eq!(order(&schema("b", 2), &schema("a", 2)), Ordering::Greater);
    }
}
