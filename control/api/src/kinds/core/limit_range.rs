use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem};

use crate::{
    defaults::pod_spec::round_up,
    field::{Errors, Path},
    kinds::{Check, Kind, Rules},
    quantity::{Amount, Format, ResourceList},
    validation::{
        resources::{
            is_overcommit_allowed, validate_container_resource_name, validate_resource_name,
        },
        text,
    },
};

impl Kind for LimitRange {
    const RULES: Rules = Rules::namespaced()
        .create_on_update()
        .update_checks(&[Check::Metadata]);

    fn set_defaults(&mut self) {
        for item in self.spec.iter_mut().flat_map(|spec| &mut spec.limits) {
            for list in [
                &mut item.max,
                &mut item.min,
                &mut item.default,
                &mut item.default_request,
                &mut item.max_limit_request_ratio,
            ] {
                round_up(list.as_mut());
            }
            if item.type_ == "Container" {
                set_container_defaults(item);
            }
        }
    }

    fn validate(&self, errors: &mut Errors) {
        let path = Path::new("spec.limits");
        let mut types = BTreeSet::new();
        let items = self
            .spec
            .as_ref()
            .map(|spec| spec.limits.as_slice())
            .unwrap_or_default();
        for (i, item) in items.iter().enumerate() {
            let path = path.index(i);
            validate_type(&item.type_, &path.child("type"), errors);
            if !types.insert(&item.type_) {
                errors.duplicate(&path.child("type"), &item.type_);
            }
            validate_item(item, &path, errors);
        }
    }
}

/// A missing limit follows from the maximum, a missing request from the limit, then from the minimum.
fn set_container_defaults(item: &mut LimitRangeItem) {
    let mut limits = item.default.take().unwrap_or_default();
    let mut requests = item.default_request.take().unwrap_or_default();
    let fill = |list: &mut ResourceList, from: &ResourceList| {
        for (name, quantity) in from {
            list.entry(name.clone()).or_insert_with(|| quantity.clone());
        }
    };
    let none = ResourceList::new();
    fill(&mut limits, item.max.as_ref().unwrap_or(&none));
    fill(&mut requests, &limits);
    fill(&mut requests, item.min.as_ref().unwrap_or(&none));
    item.default = Some(limits).filter(|list| !list.is_empty());
    item.default_request = Some(requests).filter(|list| !list.is_empty());
}

fn validate_type(type_: &str, path: &Path<'_>, errors: &mut Errors) {
    let messages = text::qualified_name(type_);
    let standard = ["Pod", "Container", "PersistentVolumeClaim"];
    if !messages.is_empty() {
        errors.invalid_each(path, type_, messages);
    } else if !type_.contains('/') && !standard.contains(&type_) {
        errors.invalid(
            path,
            type_,
            "must be a standard limit type or fully qualified",
        );
    }
}

fn validate_item(item: &LimitRangeItem, path: &Path<'_>, errors: &mut Errors) {
    let rule = match item.type_.as_str() {
        "Pod" | "Container" => validate_container_resource_name,
        _ => validate_resource_name,
    };
    let none = ResourceList::new();
    let of = |list: &Option<ResourceList>| list.clone().unwrap_or_default();
    let (max, min) = (of(&item.max), of(&item.min));
    let (mut limits, mut requests) = (of(&item.default), of(&item.default_request));
    let ratios = of(&item.max_limit_request_ratio);
    let check_names = |field: &str, list: &ResourceList, errors: &mut Errors| {
        let at = path.child(field);
        for name in list.keys() {
            rule(name, &at.key(name), errors);
        }
    };
    check_names("max", &max, errors);
    check_names("min", &min, errors);
    if item.type_ == "Pod" {
        for (field, list) in [("default", &limits), ("defaultRequest", &requests)] {
            if !list.is_empty() {
                errors.forbidden(
                    &path.child(field),
                    "may not be specified when `type` is 'Pod'",
                );
            }
        }
        limits.clone_from(&none);
        requests.clone_from(&none);
    } else {
        check_names("default", &limits, errors);
        check_names("defaultRequest", &requests, errors);
    }
    if item.type_ == "PersistentVolumeClaim"
        && !min.contains_key("storage")
        && !max.contains_key("storage")
    {
        errors.required(
            &path.child("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
    check_names("maxLimitRequestRatio", &ratios, errors);
    let names: BTreeSet<&String> = [&max, &min, &limits, &requests, &ratios]
        .into_iter()
        .flat_map(ResourceList::keys)
        .collect();
    for name in names {
        let get = |list: &ResourceList| list.get(name).map(Amount::of);
        let bounds = Bounds {
            name,
            min: get(&min),
            max: get(&max),
            limit: get(&limits),
            request: get(&requests),
            ratio: get(&ratios),
        };
        bounds.validate(path, errors);
    }
}

/// What an item says of one resource.
struct Bounds<'a> {
    name: &'a str,
    min: Option<Amount>,
    max: Option<Amount>,
    limit: Option<Amount>,
    request: Option<Amount>,
    ratio: Option<Amount>,
}

impl Bounds<'_> {
    fn validate(&self, path: &Path<'_>, errors: &mut Errors) {
        let name = self.name;
        let mut in_order = |field: &str,
                            (low, low_name): (Option<Amount>, &str),
                            (high, high_name): (Option<Amount>, &str),
                            bad: Option<Amount>| {
            if let (Some(low), Some(high), Some(bad)) = (low, high, bad)
                && low > high
            {
                errors.invalid(
                    &path.child(field).key(name),
                    bad.to_string(),
                    format!("{low_name} value {low} is greater than {high_name} value {high}"),
                );
            }
        };
        let (min, max) = ((self.min, "min"), (self.max, "max"));
        let request = (self.request, "default request");
        in_order("min", min, max, self.min);
        in_order("defaultRequest", min, request, self.request);
        in_order("defaultRequest", request, max, self.request);
        in_order(
            "defaultRequest",
            request,
            (self.limit, "default limit"),
            self.request,
        );
        in_order("default", min, (self.limit, "default"), self.min);
        in_order("default", (self.limit, "default"), max, self.max);
        let ratio_path = path.child("maxLimitRequestRatio");
        if let Some(ratio) = self.ratio {
            if ratio < Amount::from_units(1, Format::Decimal) {
                errors.invalid(
                    &ratio_path.key(name),
                    ratio.to_string(),
                    format!("ratio {ratio} is less than 1"),
                );
            }
            if let (Some(min), Some(max)) = (self.min, self.max) {
                let most = max.as_f64() / min.as_f64();
                if ratio.as_f64() > most {
                    errors.invalid(
                        &ratio_path.key(name),
                        ratio.to_string(),
                        format!("ratio {ratio} is greater than max/min = {most:.6}"),
                    );
                }
            }
        }
        if let (Some(limit), Some(request)) = (self.limit, self.request)
            && limit != request
            && !is_overcommit_allowed(name)
        {
            errors.invalid(
                &path.child("defaultRequest").key(name),
                request.to_string(),
                format!(
                    "default value {limit} must equal to defaultRequest value {request} in {name}"
                ),
            );
        }
    }
}
