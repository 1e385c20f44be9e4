//! `AdmissionReview`: the question about a write, and the answer of a webhook.

use base64::Engine;
use serde_json::{Map, Value, json};

use super::{Matched, Subject};
use crate::{admission::Attributes, subresources::reviews::user_info};

/// `AdmissionRequest` without uid and objects: what expressions see as `request`.
pub fn request(attributes: &Attributes<'_>, subject: &Subject, matched: &Matched) -> Value {
    let resource = |resource: &crate::registry::Resource| {
        let def = &resource.def;
        json!({"group": def.group, "version": def.version, "resource": def.plural})
    };
    let mut request = json!({
        "kind": matched.kind.json(),
        "resource": resource(&matched.resource),
        "requestKind": subject.kind.json(),
        "requestResource": resource(&subject.resource),
        "operation": attributes.operation.as_str(),
        "userInfo": user_info(attributes.user),
        "dryRun": attributes.dry_run,
        "options": attributes.options,
    });
    for (field, text) in [
        ("subResource", &subject.subresource),
        ("requestSubResource", &subject.subresource),
        ("name", &subject.name),
        ("namespace", &subject.namespace),
    ] {
        if !text.is_empty() {
            request[field] = text.as_str().into();
        }
    }
    request
}

/// The review in one of the versions that webhooks speak.
pub fn review(version: &str, uid: &str, mut request: Value, object: &Value, old: &Value) -> Value {
    request["uid"] = uid.into();
    request["object"] = object.clone();
    request["oldObject"] = old.clone();
    json!({
        "kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"),
        "request": request,
    })
}

/// What a webhook decided.
#[derive(Debug, Default)]
pub struct Answer {
    pub allowed: bool,
    /// `status`, for a refusal.
    pub status: Value,
    /// A JSON patch as text, and its type; a mutating webhook's only.
    pub patch: Vec<u8>,
    pub patch_type: String,
    pub annotations: Vec<(String, String)>,
    pub warnings: Vec<String>,
}

/// # Errors
/// In upstream's words, for an answer that is none (`VerifyAdmissionResponse`).
pub fn read(answer: &Value, version: &str, uid: &str, mutating: bool) -> Result<Answer, String> {
    let response = &answer["response"];
    let Value::Object(fields) = response else {
        return Err("webhook response was absent".to_owned());
    };
    if version == "v1" {
        check_v1(answer, response, uid, mutating)?;
    }
    let text = |field: &str| {
        fields
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let patch = base64::engine::general_purpose::STANDARD
        .decode(text("patch"))
        .map_err(|error| format!("illegal base64 data: {error}"))?;
    let pairs = |value: &Map<String, Value>| {
        let pairs = value.iter();
        pairs
            .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect()
    };
    let allowed = match fields.get("allowed") {
        Some(Value::Bool(allowed)) => *allowed,
        None | Some(Value::Null) => false,
        Some(_) => {
            return Err(
                "json: cannot unmarshal into Go struct field AdmissionResponse.response.allowed of type bool"
                    .to_owned(),
            );
        }
    };
    Ok(Answer {
        allowed,
        status: response["status"].clone(),
        patch,
        patch_type: text("patchType").to_owned(),
        annotations: response["auditAnnotations"]
            .as_object()
            .map(pairs)
            .unwrap_or_default(),
        warnings: response["warnings"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
    })
}

fn check_v1(answer: &Value, response: &Value, uid: &str, mutating: bool) -> Result<(), String> {
    let given = response["uid"].as_str().unwrap_or_default();
    if given != uid {
        return Err(format!("expected response.uid={uid:?}, got {given:?}"));
    }
    let kind = answer["kind"].as_str().unwrap_or_default();
    let api_version = answer["apiVersion"].as_str().unwrap_or_default();
    if kind != "AdmissionReview" || api_version != "admission.k8s.io/v1" {
        return Err(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={kind}",
            if api_version.contains('/') || api_version.is_empty() {
                api_version.to_owned()
            } else {
                format!("/{api_version}")
            }
        ));
    }
    let has_patch = response["patch"].as_str().is_some_and(|p| !p.is_empty());
    let has_type = !response["patchType"].is_null();
    match (mutating, has_patch, has_type) {
        (true, true, false) => {
            Err("webhook returned response.patch but not response.patchType".to_owned())
        }
        (true, false, true) => {
            Err("webhook returned response.patchType but not response.patch".to_owned())
        }
        (true, true, true) if response["patchType"] != "JSONPatch" => Err(format!(
            "webhook returned invalid response.patchType of {:?}",
            response["patchType"].as_str().unwrap_or_default()
        )),
        (false, true, _) => Err("validating webhook may not return response.patch".to_owned()),
        (false, _, true) => Err("validating webhook may not return response.patchType".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_none() {
        let answer = |response: Value| json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        let check = |answer: Value, mutating: bool, why: &str| {
            assert_eq!(read(&answer, "v1", "u", mutating).unwrap_err(), why);
        };
        check(json!({}), true, "webhook response was absent");
        check(
            answer(json!({"uid": "x"})),
            true,
            "expected response.uid=\"u\", got \"x\"",
        );
        check(
            json!({"kind": "AdmissionReview", "apiVersion": "v1", "response": {"uid": "u"}}),
            true,
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /v1, Kind=AdmissionReview",
        );
        check(
            answer(json!({"uid": "u", "allowed": true, "patch": "W10="})),
            true,
            "webhook returned response.patch but not response.patchType",
        );
        check(
            answer(json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"})),
            false,
            "validating webhook may not return response.patch",
        );
        let good = answer(json!({
            "uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch", "warnings": ["w"],
            "auditAnnotations": {"a": "b"},
        }));
        let good = read(&good, "v1", "u", true).unwrap();
        assert_eq!((good.patch.as_slice(), good.allowed), (&b"[]"[..], true));
        assert_eq!(good.annotations, [("a".to_owned(), "b".to_owned())]);
    }
}
