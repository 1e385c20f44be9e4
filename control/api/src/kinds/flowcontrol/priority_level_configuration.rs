use std::sync::Arc;

use k8s_openapi::api::flowcontrol::v1::{
    ExemptPriorityLevelConfiguration, LimitResponse, LimitedPriorityLevelConfiguration,
    PriorityLevelConfiguration, PriorityLevelConfigurationSpec, QueuingConfiguration,
};
use serde_json::json;

use super::{CATCH_ALL, EXEMPT, validate_condition_types, validate_fixed};
use crate::{
    field::{Errors, Path},
    kinds::{Check, Generation, Kind, Rules, keep_status_metadata},
    printer::Printer,
    printers::access,
    zero::{List, Text, set},
};

const MAX_QUEUES: i32 = 10_000_000;
/// Shuffle sharding deals from one hash.
const MAX_HASH_BITS: i32 = 60;

impl Kind for PriorityLevelConfiguration {
    const RULES: Rules = Rules::cluster()
        .generation(Generation::Spec)
        .status()
        .reset_status(&["metadata", "spec"])
        .update_checks(&[Check::Metadata]);

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        if let Some(exempt) = &mut spec.exempt {
            set(&mut exempt.nominal_concurrency_shares, 0);
            set(&mut exempt.lendable_percent, 0);
        }
        if let Some(limited) = &mut spec.limited {
            set(&mut limited.nominal_concurrency_shares, 30);
            set(&mut limited.lendable_percent, 0);
            let queuing = limited
                .limit_response
                .as_mut()
                .and_then(|response| response.queuing.as_mut());
            if let Some(queuing) = queuing {
                for (field, default) in [
                    (&mut queuing.hand_size, 8),
                    (&mut queuing.queues, 64),
                    (&mut queuing.queue_length_limit, 50),
                ] {
                    if field.unwrap_or(0) == 0 {
                        *field = Some(default);
                    }
                }
            }
        }
        self.status.get_or_insert_default();
    }

    fn prepare_create(&mut self) {
        self.status = Some(Default::default());
    }

    fn prepare_status_update(&mut self, old: &Self) {
        keep_status_metadata(&mut self.metadata, &old.metadata);
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        let name = self.metadata.name.text();
        validate_spec(&spec, name, &Path::new("spec"), errors);
        match name {
            // How much of an exempt level others may borrow is for the admin to say.
            EXEMPT => {
                let mut rest = spec.clone();
                rest.exempt = None;
                let fixed = json!({"type": "Exempt"});
                let detail = "except the 'spec.exempt' field must equal the fixed value";
                validate_fixed(
                    ("PriorityLevelSpec", name),
                    &rest,
                    Some(fixed),
                    detail,
                    errors,
                );
            }
            CATCH_ALL => {
                let fixed = json!({
                    "type": "Limited",
                    "limited": {
                        "nominalConcurrencyShares": 5,
                        "limitResponse": {"type": "Reject"},
                        "lendablePercent": 0,
                    },
                });
                let detail = "must equal the fixed value";
                validate_fixed(
                    ("PriorityLevelSpec", name),
                    &spec,
                    Some(fixed),
                    detail,
                    errors,
                );
            }
            _ => {}
        }
        validate_status(self, errors);
    }

    fn validate_status_update(&self, _old: &Self, errors: &mut Errors) {
        validate_status(self, errors);
    }

    fn printer() -> Arc<dyn Printer> {
        access::priority_level_configuration()
    }
}

fn validate_status(level: &PriorityLevelConfiguration, errors: &mut Errors) {
    let status = level.status.as_ref();
    let conditions = status.map(|status| status.conditions.items());
    let conditions = conditions.unwrap_or_default().iter();
    validate_condition_types(conditions.map(|condition| &condition.type_), errors);
}

fn validate_spec(
    spec: &PriorityLevelConfigurationSpec,
    name: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let type_ = spec.type_.as_str();
    if (name == EXEMPT) != (type_ == "Exempt") {
        errors.invalid(
            &path.child("type"),
            type_,
            "type must be 'Exempt' if and only if name is 'exempt'",
        );
    }
    let (exempt_at, limited_at) = (path.child("exempt"), path.child("limited"));
    match type_ {
        "Exempt" => {
            if spec.limited.is_some() {
                errors.forbidden(&limited_at, "must be nil if the type is not Limited");
            }
            if let Some(exempt) = &spec.exempt {
                validate_exempt(exempt, &exempt_at, errors);
            }
        }
        "Limited" => {
            if spec.exempt.is_some() {
                errors.forbidden(&exempt_at, "must be nil if the type is Limited");
            }
            match &spec.limited {
                Some(limited) => validate_limited(limited, &limited_at, errors),
                None => errors.required(&limited_at, "must not be empty when type is Limited"),
            }
        }
        other => errors.not_supported(&path.child("type"), other, &["Exempt", "Limited"]),
    }
}

fn validate_shares(
    shares: Option<i32>,
    lendable_percent: Option<i32>,
    path: &Path<'_>,
    errors: &mut Errors,
    between: impl FnOnce(&mut Errors),
) {
    if let Some(shares) = shares.filter(|shares| *shares < 0) {
        errors.invalid(
            &path.child("nominalConcurrencyShares"),
            shares,
            "must be a non-negative integer",
        );
    }
    between(errors);
    if let Some(percent) = lendable_percent.filter(|percent| !(0..=100).contains(percent)) {
        errors.invalid(
            &path.child("lendablePercent"),
            percent,
            "must be between 0 and 100, inclusive",
        );
    }
}

fn validate_exempt(
    exempt: &ExemptPriorityLevelConfiguration,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let (shares, lendable) = (exempt.nominal_concurrency_shares, exempt.lendable_percent);
    validate_shares(shares, lendable, path, errors, |_| {});
}

fn validate_limited(
    limited: &LimitedPriorityLevelConfiguration,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let (shares, lendable) = (limited.nominal_concurrency_shares, limited.lendable_percent);
    validate_shares(shares, lendable, path, errors, |errors| {
        let response = limited.limit_response.clone().unwrap_or_default();
        validate_response(&response, &path.child("limitResponse"), errors);
    });
    if let Some(percent) = limited
        .borrowing_limit_percent
        .filter(|percent| *percent < 0)
    {
        errors.invalid(
            &path.child("borrowingLimitPercent"),
            percent,
            "if specified, must be a non-negative integer",
        );
    }
}

fn validate_response(response: &LimitResponse, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("queuing");
    match (response.type_.as_str(), &response.queuing) {
        ("Reject", Some(_)) => errors.forbidden(
            &at,
            "must be nil if limited.limitResponse.type is not Limited",
        ),
        ("Reject", None) => {}
        ("Queue", None) => errors.required(
            &at,
            "must not be empty if limited.limitResponse.type is Limited",
        ),
        ("Queue", Some(queuing)) => validate_queuing(queuing, &at, errors),
        (other, _) => errors.not_supported(&path.child("type"), other, &["Queue", "Reject"]),
    }
}

fn validate_queuing(queuing: &QueuingConfiguration, path: &Path<'_>, errors: &mut Errors) {
    let limit = queuing.queue_length_limit.unwrap_or(0);
    if limit <= 0 {
        errors.invalid(&path.child("queueLengthLimit"), limit, "must be positive");
    }
    let queues = queuing.queues.unwrap_or(0);
    let at = path.child("queues");
    if queues <= 0 {
        errors.invalid(&at, queues, "must be positive");
    } else if queues > MAX_QUEUES {
        errors.invalid(
            &at,
            queues,
            format!("must not be greater than {MAX_QUEUES}"),
        );
    }
    let hand = queuing.hand_size.unwrap_or(0);
    let at = path.child("handSize");
    if hand <= 0 {
        errors.invalid(&at, hand, "must be positive");
    } else if hand > queues {
        errors.invalid(
            &at,
            hand,
            format!("should not be greater than queues ({queues})"),
        );
    } else if f64::from(queues).log2() * f64::from(hand) > f64::from(MAX_HASH_BITS) {
        errors.invalid(
            &at,
            hand,
            format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_HASH_BITS}"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[track_caller]
    fn check(name: &str, spec: Value, expected: &[&str]) {
        let mut level: PriorityLevelConfiguration =
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))
                .expect("a priority level");
        level.set_defaults();
        let mut errors = Errors::default();
        level.validate(&mut errors);
        let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn rules() {
        let queue = |queuing: Value| json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": queuing}}});
        check("a", queue(json!({})), &[]);
        check(
            "a",
            queue(json!({"queues": 128, "handSize": 10})),
            &[
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 10: required entropy bits of deckSize 128 and handSize 10 should not be greater than 60",
            ],
        );
        check(
            "a",
            queue(json!({"queues": 2, "handSize": 3})),
            &[
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 3: should not be greater than queues (2)",
            ],
        );
        check(
            "a",
            json!({"type": "Exempt"}),
            &[
                r#"spec.type: Invalid value: "Exempt": type must be 'Exempt' if and only if name is 'exempt'"#,
            ],
        );
        check(
            "exempt",
            json!({"type": "Exempt", "exempt": {"lendablePercent": 10}}),
            &[],
        );
        check(
            "a",
            json!({"type": "Limited", "limited": {"lendablePercent": 101, "borrowingLimitPercent": -1, "limitResponse": {"type": "Reject"}}}),
            &[
                "spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
                "spec.limited.borrowingLimitPercent: Invalid value: -1: if specified, must be a non-negative integer",
            ],
        );
    }
}
