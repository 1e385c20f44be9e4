//! `ipFamilies` and `ipFamilyPolicy` of a Service: what is inferred, and what the cluster can give
//! (upstream `registry/core/service/storage/alloc.go`, `initIPFamilyFields`). Pure.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ServiceSpec;
use skep_api::{
    field::{Bad, Errors, FieldError, Path},
    kinds::core::service::{is_headless, validate_cluster_ips},
    validation::net::is_ipv6,
    zero::{List, Text},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }

    fn of_text(ip: &str) -> Self {
        if is_ipv6(ip) { Self::V6 } else { Self::V4 }
    }

    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// A PreferDualStack Service stays as it is when the cluster gains or loses a family: nothing is added to it or taken
/// from it until it is told so.
pub fn stays_as_it_is(spec: &ServiceSpec, old: Option<&ServiceSpec>) -> bool {
    old.is_some_and(|old| {
        old.ip_family_policy.text() == PREFER
            && spec.ip_family_policy.text() == PREFER
            && spec.type_.text() != "ExternalName"
            && old.type_.text() != "ExternalName"
            && spec.cluster_ips.items() == old.cluster_ips.items()
            && spec.ip_families.items() == old.ip_families.items()
    })
}

/// Fills in the policy and the families. `configured`: those of the cluster, its default first.
///
/// # Errors
/// What asks for more than the cluster has, or contradicts itself.
pub fn infer(
    spec: &mut ServiceSpec,
    old: Option<&ServiceSpec>,
    configured: &[Family],
) -> Result<(), Vec<FieldError>> {
    if spec.type_.text() == "ExternalName" || stays_as_it_is(spec, old) {
        return Ok(());
    }
    let selectorless_headless =
        spec.cluster_ip.text() == "None" && spec.selector.as_ref().is_none_or(|all| all.is_empty());
    if spec.ip_family_policy.is_none() {
        let before = old.and_then(|old| old.ip_family_policy.clone());
        let default = if selectorless_headless {
            REQUIRE
        } else {
            SINGLE
        };
        spec.ip_family_policy = before.or(Some(default.to_owned()));
    }
    let mut errors = Errors::default();
    let old_ips = old.map(|old| old.cluster_ips.items()).unwrap_or_default();
    validate_cluster_ips(spec, old_ips, &mut errors);
    refuse(errors)?;
    agree_with_policy(spec, old, configured)?;

    let families = spec.ip_families.get_or_insert_default();
    if selectorless_headless {
        // Somebody else makes its endpoints, of whatever families.
        if families.is_empty() {
            families.extend(configured.first().map(ToString::to_string));
        }
        if spec.ip_family_policy.text() != SINGLE {
            add_other_family(families);
        }
        return Ok(());
    }
    let mut errors = Errors::default();
    let path = Path::new("spec");
    if spec.ip_family_policy.text() == REQUIRE && configured.len() < 2 {
        errors.invalid(
            &path.child("ipFamilyPolicy"),
            REQUIRE,
            "this cluster is not configured for dual-stack services",
        );
    }
    let at = path.child("ipFamilies");
    for (i, family) in families.iter().enumerate() {
        if !Family::parse(family).is_some_and(|family| configured.contains(&family)) {
            errors.invalid(&at.index(i), family, "not configured on this cluster");
        }
    }
    refuse(errors)?;
    if families.is_empty() {
        families.extend(configured.first().map(ToString::to_string));
    }
    if spec.ip_family_policy.text() != SINGLE && configured.len() == 2 {
        add_other_family(families);
    }
    Ok(())
}

fn refuse(errors: Errors) -> Result<(), Vec<FieldError>> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.0)
    }
}

fn add_other_family(families: &mut Vec<String>) {
    if let [only] = families.as_slice()
        && let Some(family) = Family::parse(only)
    {
        families.push(family.other().to_string());
    }
}

/// The policy must fit the addresses and families that were given; those without families bring them.
fn agree_with_policy(
    spec: &mut ServiceSpec,
    old: Option<&ServiceSpec>,
    configured: &[Family],
) -> Result<(), Vec<FieldError>> {
    let mut errors = Errors::default();
    let path = Path::new("spec");
    let policy_at = path.child("ipFamilyPolicy");
    let policy = spec.ip_family_policy.text().to_owned();
    let single = policy == SINGLE;
    if let Some(old) = old {
        let (old_ips, old_families) = (old.cluster_ips.items(), old.ip_families.items());
        if single {
            // Nothing else changed, so this is how to give the second one back.
            if spec.cluster_ips.items() == old_ips {
                spec.cluster_ips.iter_mut().for_each(|ips| ips.truncate(1));
            }
            if spec.ip_families.items() == old_families {
                spec.ip_families.iter_mut().for_each(|all| all.truncate(1));
            }
        } else {
            for (new, old, what) in [
                (spec.cluster_ips.items(), old_ips, "cluster IP"),
                (spec.ip_families.items(), old_families, "IP family"),
            ] {
                if !new.is_empty() && new.len() < old.len() {
                    errors.invalid(
                        &policy_at,
                        policy.as_str(),
                        format!("must be 'SingleStack' to release the secondary {what}"),
                    );
                }
            }
        }
    }
    if single {
        for (count, what) in [
            (spec.cluster_ips.items().len(), "cluster IPs"),
            (spec.ip_families.items().len(), "IP families"),
        ] {
            if count == 2 {
                errors.invalid(
                    &policy_at,
                    SINGLE,
                    format!(
                        "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                    ),
                );
            }
        }
    }
    if !is_headless(spec) {
        let ips = spec.cluster_ips.clone().unwrap_or_default();
        let families = spec.ip_families.get_or_insert_default();
        let at = path.child("clusterIPs");
        for (i, ip) in ips.iter().enumerate().skip(families.len()) {
            let family = Family::of_text(ip);
            if configured.contains(&family) {
                families.push(family.to_string());
            } else {
                errors.invalid(
                    &at.index(i),
                    Bad::json(&ips),
                    format!("{family} is not configured on this cluster"),
                );
            }
        }
    }
    refuse(errors)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ONE: &[Family] = &[Family::V4];
    const BOTH: &[Family] = &[Family::V4, Family::V6];

    fn spec(mut value: Value) -> ServiceSpec {
        value["type"] = json!("ClusterIP");
        serde_json::from_value(value).expect("a spec")
    }

    /// What comes out, as `policy families`, or the errors.
    fn inferred(new: Value, old: Option<Value>, configured: &[Family]) -> String {
        let mut new = spec(new);
        let old = old.map(spec);
        match infer(&mut new, old.as_ref(), configured) {
            Ok(()) => format!(
                "{} {}",
                new.ip_family_policy.text(),
                new.ip_families.items().join(",")
            ),
            Err(errors) => skep_api::field::aggregate(&errors),
        }
    }

    #[test]
    fn new_services() {
        let check = |new: Value, configured: &[Family], expected: &str| {
            assert_eq!(inferred(new.clone(), None, configured), expected, "{new}");
        };
        check(json!({}), ONE, "SingleStack IPv4");
        check(json!({}), BOTH, "SingleStack IPv4");
        check(json!({"ipFamilies": ["IPv6"]}), BOTH, "SingleStack IPv6");
        let prefer = || json!({"ipFamilyPolicy": "PreferDualStack"});
        check(prefer(), ONE, "PreferDualStack IPv4");
        check(prefer(), BOTH, "PreferDualStack IPv4,IPv6");
        check(
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
            BOTH,
            "RequireDualStack IPv6,IPv4",
        );
        check(
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            ONE,
            r#"spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services"#,
        );
        check(
            json!({"ipFamilies": ["IPv6"]}),
            ONE,
            r#"spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster"#,
        );
        check(
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            BOTH,
            r#"spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"#,
        );
        check(
            json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}),
            ONE,
            r#"spec.clusterIPs[0]: Invalid value: ["fd00::1"]: IPv6 is not configured on this cluster"#,
        );
        check(
            json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}),
            BOTH,
            "SingleStack IPv6",
        );
        let headless = |selector: Value| json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": selector});
        check(headless(json!({})), ONE, "RequireDualStack IPv4,IPv6");
        check(headless(json!({"a": "b"})), ONE, "SingleStack IPv4");
    }

    #[test]
    fn changed_services() {
        let single = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"});
        let dual = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"});
        let with = |base: &Value, field: &str, value: Value| {
            let mut all = base.clone();
            all[field] = value;
            all
        };
        let check = |new: Value, old: &Value, expected: &str| {
            assert_eq!(inferred(new, Some(old.clone()), BOTH), expected);
        };
        let require = with(&single, "ipFamilyPolicy", json!("RequireDualStack"));
        check(require, &single, "RequireDualStack IPv4,IPv6");
        let back = with(&dual, "ipFamilyPolicy", json!("SingleStack"));
        check(back, &dual, "SingleStack IPv4");
        let fewer = with(&dual, "clusterIPs", json!(["10.0.0.1"]));
        check(
            fewer,
            &dual,
            r#"spec.ipFamilyPolicy: Invalid value: "RequireDualStack": must be 'SingleStack' to release the secondary cluster IP"#,
        );
        // The cluster gained a family: nothing happens by itself.
        let prefer = with(&single, "ipFamilyPolicy", json!("PreferDualStack"));
        check(prefer.clone(), &prefer, "PreferDualStack IPv4");
    }
}
