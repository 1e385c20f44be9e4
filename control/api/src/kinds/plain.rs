//! Kinds that add nothing of their own yet but how they are printed.

use k8s_openapi::api::{authentication, authorization, core};

use super::{Kind, Rules};
use crate::printers;

macro_rules! plain {
    ($($type:ty => $rules:expr, $printer:path;)*) => {$(
        impl Kind for $type {
            const RULES: Rules = $rules;
            const HAS_DEFAULTS: bool = false;

            fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
                $printer()
            }
        }
    )*};
}

plain! {
    core::v1::Binding => Rules::namespaced(), printers::core::name_and_age;
    core::v1::ComponentStatus => Rules::cluster(), printers::core::component_status;
    authentication::v1::SelfSubjectReview => Rules::cluster(), printers::core::name_and_age;
    authentication::v1::TokenReview => Rules::cluster(), printers::core::name_and_age;
    authorization::v1::LocalSubjectAccessReview => Rules::namespaced(), printers::core::name_and_age;
    authorization::v1::SelfSubjectAccessReview => Rules::cluster(), printers::core::name_and_age;
    authorization::v1::SelfSubjectRulesReview => Rules::cluster(), printers::core::name_and_age;
    authorization::v1::SubjectAccessReview => Rules::cluster(), printers::core::name_and_age;
}
