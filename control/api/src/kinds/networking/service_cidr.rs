use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde_json::json;

use crate::{
    field::{Bad, Errors, Path},
    kinds::{Kind, Rules, keep_status_metadata},
    validation::net,
    zero::List,
};

impl Kind for ServiceCIDR {
    // Upstream lets the main endpoint write the status too, and gives up fields of a group that is not this one.
    const RULES: Rules = Rules::cluster().reset_status(&[]);
    const HAS_DEFAULTS: bool = false;

    fn prepare_status_update(&mut self, old: &Self) {
        keep_status_metadata(&mut self.metadata, &old.metadata);
    }

    fn validate(&self, errors: &mut Errors) {
        let cidrs = cidrs(self);
        let path = Path::new("spec.cidrs");
        let shown = || Bad::shown(format!(r#"{{"CIDRs":{}}}"#, json!(cidrs)));
        match cidrs.as_slice() {
            [] => errors.required(&path, "at least one CIDR required"),
            [_] => {}
            [one, other] => {
                let families = [one, other].map(|cidr| net::parse_cidr(cidr).map(is_ipv4));
                if !matches!(families, [Some(one), Some(other)] if one != other) {
                    errors.invalid(
                        &path,
                        shown(),
                        "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
                    );
                    return;
                }
            }
            _ => {
                errors.invalid(&path, shown(), "may only hold up to 2 values");
                return;
            }
        }
        for (index, cidr) in cidrs.iter().enumerate() {
            net::validate_canonical_cidr(cidr, &path.index(index), errors);
        }
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let path = Path::new("spec.cidrs");
        let (new, old) = (cidrs(self), cidrs(old));
        match (old.len(), new.len()) {
            (before, after) if before == after => {
                for (index, (new, old)) in new.iter().zip(&old).enumerate() {
                    errors.immutable(&path.index(index), new, old);
                }
            }
            // One family may gain the other.
            (1, 2) => {
                errors.immutable(&path.index(0), &new[0], &old[0]);
                self.validate(errors);
            }
            _ => errors.immutable(&path, &new, &old),
        }
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::network::service_cidr()
    }
}

fn is_ipv4(net: IpNet) -> bool {
    net.addr().is_ipv4()
}

fn cidrs(object: &ServiceCIDR) -> Vec<String> {
    object
        .spec
        .as_ref()
        .map_or(Vec::new(), |spec| spec.cidrs.items().to_vec())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        kinds::Typed,
        strategy::{Strategy, UpdateOf},
    };

    #[test]
    fn the_main_endpoint_writes_the_status() {
        let strategy = <Typed<ServiceCIDR> as Default>::default();
        let mut old = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "1"},
            "spec": {"cidrs": ["10.0.0.0/24"]},
            "status": {"conditions": [{
                "type": "Ready",
                "status": "True",
                "reason": "r",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        });
        strategy.create(&mut old).expect("fine");
        assert_eq!(old["status"]["conditions"][0]["type"], "Ready");
        let mut new = old.clone();
        new["status"] = json!({});
        strategy
            .update(&mut new, &old, UpdateOf::Main)
            .expect("fine");
        assert_eq!(new["status"], json!({}));
    }
}
