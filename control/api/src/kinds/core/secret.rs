use k8s_openapi::{ByteString, api::core::v1::Secret};
use serde_json::Value;

use super::key_pair;
use crate::{
    field::{Errors, Path},
    kinds::{Check, Kind, Rules, Selectable},
    strategy::Warnings,
    validation::text,
    zero::{Flag, Text, fill},
};

const LIMIT_BYTES: usize = 1024 * 1024;
const FIXED: &str = "field is immutable when `immutable` is set";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

impl Kind for Secret {
    const RULES: Rules =
        Rules::namespaced().update_checks(&[Check::Metadata, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        fill(&mut self.type_, "Opaque");
        // Write-only: what is plain text joins the data.
        for (key, text) in self.string_data.take().into_iter().flatten() {
            self.data
                .get_or_insert_default()
                .insert(key, ByteString(text.into_bytes()));
        }
    }

    fn prepare_update(&mut self, old: &Self) {
        if self.type_.text().is_empty() {
            self.type_.clone_from(&old.type_);
        }
    }

    fn validate(&self, errors: &mut Errors) {
        let path = Path::new("data");
        let mut size = 0;
        for (key, value) in self.data.iter().flatten() {
            errors.invalid_each(&path.key(key), key, text::config_map_key(key));
            size += value.0.len();
        }
        if size > LIMIT_BYTES {
            errors.too_long(&path, LIMIT_BYTES);
        }
        validate_for_type(self, &path, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        errors.immutable(&Path::new("type"), &self.type_, &old.type_);
        if old.immutable.is_true() {
            if !self.immutable.is_true() {
                errors.forbidden(&Path::new("immutable"), FIXED);
            }
            if self.data != old.data {
                errors.forbidden(&Path::new("data"), FIXED);
            }
        }
        self.validate(errors);
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        if self.type_.text() != "kubernetes.io/tls" {
            return Warnings::new();
        }
        let get = |key: &str| self.data.as_ref().and_then(|data| data.get(key));
        let bytes = |key| get(key).map_or(&[][..], |bytes| &bytes.0);
        let problem = key_pair::problem(bytes("tls.crt"), bytes("tls.key"));
        problem.into_iter().collect()
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::core::secret()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        const FIELDS: &[Selectable] = &[Selectable {
            name: "type",
            get: |object| {
                object
                    .get("type")
                    .and_then(Value::as_str)
                    .unwrap_or("")
                    .to_owned()
            },
        }];
        Some(FIELDS)
    }
}

fn validate_for_type(secret: &Secret, path: &Path<'_>, errors: &mut Errors) {
    let get = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
    let docker = |key: &str, errors: &mut Errors| match get(key) {
        None => errors.required(&path.key(key), ""),
        Some(bytes) => {
            if let Err(problem) = check_json_object(&bytes.0) {
                errors.invalid(&path.key(key), "<secret contents redacted>", problem);
            }
        }
    };
    match secret.type_.text() {
        "kubernetes.io/service-account-token" => {
            let annotations = secret.metadata.annotations.as_ref();
            let name = annotations.and_then(|all| all.get(ACCOUNT_NAME));
            if name.is_none_or(String::is_empty) {
                errors.required(&Path::new("metadata.annotations").key(ACCOUNT_NAME), "");
            }
        }
        "kubernetes.io/dockercfg" => docker(".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => docker(".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if get("username").is_none() && get("password").is_none() => {
            errors.required(&path.key("username"), "");
            errors.required(&path.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if get("ssh-privatekey").is_none_or(|key| key.0.is_empty()) => {
            errors.required(&path.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if get(key).is_none() {
                    errors.required(&path.key(key), "");
                }
            }
        }
        _ => {}
    }
}

/// In the words of Go's decoder, as far as they are short.
fn check_json_object(bytes: &[u8]) -> Result<(), String> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("unexpected end of JSON input".to_owned());
    }
    let kind = match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(_) | Value::Null) => return Ok(()),
        Ok(Value::Array(_)) => "array",
        Ok(Value::String(_)) => "string",
        Ok(Value::Bool(_)) => "bool",
        Ok(Value::Number(_)) => "number",
        Err(problem) if problem.is_eof() => return Err("unexpected end of JSON input".to_owned()),
        Err(_) => {
            let first = bytes
                .iter()
                .find(|byte| !byte.is_ascii_whitespace())
                .copied();
            let first = char::from(first.unwrap_or(b' '));
            return Err(format!(
                "invalid character '{first}' looking for beginning of value"
            ));
        }
    };
    Err(format!(
        "json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
    ))
}
