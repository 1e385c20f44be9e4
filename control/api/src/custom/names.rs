//! Which names a definition gets, and its conditions (apiextensions' naming, establishing and API-approval controllers).

use std::{cmp::Ordering, collections::BTreeSet};

use serde_json::{Map, Value, json};

use super::{list, text};

pub const APPROVED_ANNOTATION: &str = "api-approved.kubernetes.io";

/// The status of a condition: `True`, `False`, `Unknown`.
pub fn condition<'a>(definition: &'a Value, ty: &str) -> Option<&'a str> {
    list(&definition["status"]["conditions"])
        .find(|condition| condition["type"] == ty)
        .and_then(|condition| condition["status"].as_str())
}

/// Kubernetes' order of versions, the preferred first: `v2`, `v1`, `v1beta2`, `v1beta1`, `v1alpha1`, then the rest by
/// name (apimachinery `version.CompareKubeAwareVersionStrings`, reversed).
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (kube_version(a), kube_version(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// Major version, stability (2 = stable, 1 = beta, 0 = alpha), minor version; ordered by stability first.
fn kube_version(version: &str) -> Option<(u8, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit());
    let (major, rest) = rest.split_at(digits.unwrap_or(rest.len()));
    let number = |text: &str| -> Option<u64> {
        (!text.is_empty() && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse().ok())
            .flatten()
    };
    let major = number(major)?;
    if rest.is_empty() {
        return Some((2, major, 0));
    }
    for (word, stability) in [("beta", 1), ("alpha", 0)] {
        if let Some(minor) = rest.strip_prefix(word) {
            return Some((stability, major, number(minor)?));
        }
    }
    None
}

/// Names that other definitions of the same group have.
#[derive(Default)]
struct Taken {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

impl Taken {
    fn by<'a>(others: impl Iterator<Item = &'a Value>) -> Self {
        let mut taken = Self::default();
        for other in others {
            let names = &other["status"]["acceptedNames"];
            for name in [text(names, "plural"), text(names, "singular")] {
                taken.resources.insert(name.to_owned());
            }
            let short = list(&names["shortNames"]).filter_map(Value::as_str);
            taken.resources.extend(short.map(str::to_owned));
            for name in [text(names, "kind"), text(names, "listKind")] {
                taken.kinds.insert(name.to_owned());
            }
        }
        taken
    }
}

/// The status that a definition should have, `lastTransitionTime` of changed conditions left out. `others`: the other
/// definitions of its group.
pub fn plan_status<'a>(definition: &Value, others: impl Iterator<Item = &'a Value>) -> Value {
    let taken = Taken::by(others);
    let mut status = match &definition["status"] {
        Value::Object(map) => map.clone(),
        _ => Map::new(),
    };
    let wanted = &definition["spec"]["names"];
    let mut accepted = match status.get("acceptedNames") {
        Some(Value::Object(map)) => map.clone(),
        _ => Map::new(),
    };
    let mut conflict: Option<(&str, String)> = None;
    let singles = [
        ("plural", &taken.resources, "PluralConflict"),
        ("singular", &taken.resources, "SingularConflict"),
    ];
    let kinds = [
        ("kind", &taken.kinds, "KindConflict"),
        ("listKind", &taken.kinds, "ListKindConflict"),
    ];
    let mut accept_single =
        |accepted: &mut Map<String, Value>,
         (field, taken, reason): (&'static str, &BTreeSet<String>, &'static str)| {
            let name = text(wanted, field);
            let fresh = accepted.get(field).and_then(Value::as_str) == Some(name);
            if fresh || !taken.contains(name) {
                accepted.insert(field.to_owned(), name.into());
            } else {
                conflict = Some((reason, format!("{name:?} is already in use")));
            }
        };
    for single in singles {
        accept_single(&mut accepted, single);
    }
    for kind in kinds {
        accept_single(&mut accepted, kind);
    }
    if accepted.get("shortNames") != wanted.get("shortNames") {
        let old: Vec<Value> = accepted
            .get("shortNames")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let clashes: Vec<String> = list(&wanted["shortNames"])
            .filter(|name| !old.contains(name))
            .filter_map(Value::as_str)
            .filter(|name| taken.resources.contains(*name))
            .map(|name| format!("{name:?} is already in use"))
            .collect();
        match clashes.as_slice() {
            [] => copy(wanted, &mut accepted, "shortNames"),
            [one] => conflict = Some(("ShortNamesConflict", one.clone())),
            all => conflict = Some(("ShortNamesConflict", format!("[{}]", all.join(", ")))),
        }
    }
    copy(wanted, &mut accepted, "categories");
    status.insert("acceptedNames".to_owned(), Value::Object(accepted));

    let mut status = Value::Object(status);
    let names_accepted = conflict.is_none();
    match &conflict {
        None => set_condition(
            &mut status,
            "NamesAccepted",
            "True",
            "NoConflicts",
            "no conflicts found",
        ),
        Some((reason, message)) => {
            set_condition(&mut status, "NamesAccepted", "False", reason, message);
        }
    }
    let established =
        list(&status["conditions"]).any(|c| c["type"] == "Established" && c["status"] == "True");
    if !established && names_accepted {
        let message = "the initial names have been accepted";
        set_condition(
            &mut status,
            "Established",
            "True",
            "InitialNamesAccepted",
            message,
        );
    } else if !established {
        let message = "not all names are accepted";
        set_condition(&mut status, "Established", "False", "NotAccepted", message);
    }
    if is_protected(text(&definition["spec"], "group")) {
        let (approval, reason) = approval(
            definition
                .pointer("/metadata/annotations")
                .and_then(|annotations| annotations[APPROVED_ANNOTATION].as_str())
                .unwrap_or_default(),
        );
        let (state, word) = match approval {
            Approval::Invalid => ("False", "InvalidAnnotation"),
            Approval::Missing => ("False", "MissingAnnotation"),
            Approval::Approved => ("True", "ApprovedAnnotation"),
            Approval::Bypassed => ("False", "UnapprovedAnnotation"),
        };
        let ty = "KubernetesAPIApprovalPolicyConformant";
        set_condition(&mut status, ty, state, word, &reason);
    }
    if status["storedVersions"]
        .as_array()
        .is_none_or(Vec::is_empty)
    {
        let storage = list(&definition["spec"]["versions"]).find(|v| v["storage"] == true);
        status["storedVersions"] = json!(
            storage
                .map(|v| text(v, "name"))
                .into_iter()
                .collect::<Vec<_>>()
        );
    }
    status
}

fn copy(from: &Value, to: &mut Map<String, Value>, field: &str) {
    match from.get(field) {
        Some(value) => to.insert(field.to_owned(), value.clone()),
        None => to.remove(field),
    };
}

/// Sets a condition; its `lastTransitionTime` goes where the status changes.
pub fn set_condition(status: &mut Value, ty: &str, state: &str, reason: &str, message: &str) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else {
        return;
    };
    let new = json!({"type": ty, "status": state, "reason": reason, "message": message});
    match conditions.iter_mut().find(|c| c["type"] == ty) {
        None => conditions.push(new),
        Some(old) => {
            let since = old["lastTransitionTime"].take();
            let same = old["status"] == state;
            *old = new;
            if same && !since.is_null() {
                old["lastTransitionTime"] = since;
            }
        }
    }
}

/// Groups of the Kubernetes project need an approval.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|own| group == *own || group.ends_with(&format!(".{own}")))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    Invalid,
    Missing,
    Approved,
    Bypassed,
}

/// What the approval annotation says, and the sentence about it.
pub fn approval(annotation: &str) -> (Approval, String) {
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let needed = format!("protected groups must have approval annotation {APPROVED_ANNOTATION:?}");
    if annotation.is_empty() {
        return (Approval::Missing, format!("{needed}, {SEE}"));
    }
    if annotation.starts_with("unapproved") {
        return (Approval::Bypassed, format!("not approved: {annotation:?}"));
    }
    match url::Url::parse(annotation) {
        Ok(url) if url.has_host() => (Approval::Approved, format!("approved in {annotation}")),
        _ => (
            Approval::Invalid,
            format!("{needed} with either a URL or a reason starting with \"unapproved\", {SEE}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str) -> Value {
        json!({
            "metadata": {"name": format!("{plural}.example.com")},
            "spec": {
                "group": "example.com",
                "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")},
                "versions": [{"name": "v1", "served": true, "storage": true}],
            },
        })
    }

    #[test]
    fn the_first_to_come_gets_the_names() {
        let mut first = definition("widgets", "Widget");
        first["status"] = plan_status(&first, std::iter::empty());
        assert_eq!(condition(&first, "NamesAccepted"), Some("True"));
        assert_eq!(condition(&first, "Established"), Some("True"));
        assert_eq!(first["status"]["storedVersions"], json!(["v1"]));

        let mut second = definition("gadgets", "Widget");
        second["status"] = plan_status(&second, [&first].into_iter());
        assert_eq!(condition(&second, "NamesAccepted"), Some("False"));
        assert_eq!(condition(&second, "Established"), Some("False"));
        let names = &second["status"]["conditions"][0];
        assert_eq!(names["reason"], "ListKindConflict");
        assert_eq!(names["message"], "\"WidgetList\" is already in use");
        assert_eq!(second["status"]["acceptedNames"]["plural"], "gadgets");

        // The first one goes: the names are free.
        second["status"] = plan_status(&second, std::iter::empty());
        assert_eq!(condition(&second, "Established"), Some("True"));
    }

    #[test]
    fn a_change_to_a_taken_name_keeps_the_old_one_served() {
        let mut first = definition("widgets", "Widget");
        first["status"] = plan_status(&first, std::iter::empty());
        let mut second = definition("gadgets", "Gadget");
        second["status"] = plan_status(&second, [&first].into_iter());
        second["spec"]["names"]["singular"] = "widget".into();
        second["status"] = plan_status(&second, [&first].into_iter());
        assert_eq!(condition(&second, "NamesAccepted"), Some("False"));
        assert_eq!(condition(&second, "Established"), Some("True"));
        assert_eq!(second["status"]["acceptedNames"]["singular"], "gadget");
    }

    #[test]
    fn versions_are_preferred_in_order() {
        let mut versions = [
            "foo", "v1alpha1", "v1", "v10", "v2beta1", "bar", "v2", "v11beta2",
        ];
        versions.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(
            versions,
            [
                "v10", "v2", "v1", "v11beta2", "v2beta1", "v1alpha1", "bar", "foo"
            ]
        );
    }

    #[test]
    fn approvals_are_addresses_or_say_that_there_is_none() {
        assert_eq!(approval("").0, Approval::Missing);
        assert_eq!(approval("unapproved, legacy").0, Approval::Bypassed);
        assert_eq!(
            approval("https://github.com/kubernetes/kubernetes/pull/1").0,
            Approval::Approved
        );
        assert_eq!(approval("yes").0, Approval::Invalid);
        assert!(
            is_protected("a.k8s.io") && is_protected("kubernetes.io") && !is_protected("ak8s.io")
        );
    }
}
