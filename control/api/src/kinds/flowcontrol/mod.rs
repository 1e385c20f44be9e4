//! flowcontrol.apiserver.k8s.io/v1

use std::sync::Arc;

use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};

use crate::{
    field::{Errors, Path},
    kinds::{Generation, Kind, Rules},
    printer::Printer,
    printers::access,
    zero::{List, set},
};

const RULES: Rules = Rules::cluster().generation(Generation::Spec).status();

impl Kind for FlowSchema {
    const RULES: Rules = RULES;

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        if spec.matching_precedence.unwrap_or(0) == 0 {
            spec.matching_precedence = Some(1000);
        }
        self.status.get_or_insert_default();
    }

    fn prepare_create(&mut self) {
        self.status = Some(Default::default());
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        let path = Path::new("spec");
        let at = path.child("matchingPrecedence");
        let precedence = spec.matching_precedence.unwrap_or(0);
        if precedence <= 0 {
            errors.invalid(&at, precedence, "must be a positive value");
        }
        if precedence > 10_000 {
            errors.invalid(&at, precedence, "must not be greater than 10000");
        }
        if spec.priority_level_configuration.name.is_empty() {
            errors.required(
                &path.child("priorityLevelConfiguration.name"),
                "must reference a priority level",
            );
        }
        let rules = path.child("rules");
        for (index, rule) in spec.rules.items().iter().enumerate() {
            let path = rules.index(index);
            if rule.subjects.is_empty() {
                errors.required(
                    &path.child("subjects"),
                    "subjects must contain at least one value",
                );
            }
            let nothing = rule.resource_rules.items().is_empty()
                && rule.non_resource_rules.items().is_empty();
            if nothing {
                errors.required(
                    &path,
                    "at least one of resourceRules and nonResourceRules has to be non-empty",
                );
            }
        }
    }

    fn printer() -> Arc<dyn Printer> {
        access::flow_schema()
    }
}

impl Kind for PriorityLevelConfiguration {
    const RULES: Rules = RULES;

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

    fn printer() -> Arc<dyn Printer> {
        access::priority_level_configuration()
    }
}
