use k8s_openapi::api::networking::v1::ServiceCIDR;

use crate::{
    field::{Bad, Errors, Path},
    kinds::{Kind, Rules},
    validation::net,
    zero::List,
};

impl Kind for ServiceCIDR {
    const RULES: Rules = Rules::cluster().status();
    const HAS_DEFAULTS: bool = false;

    fn validate(&self, errors: &mut Errors) {
        let cidrs = cidrs(self);
        let path = Path::new("spec.cidrs");
        match cidrs.len() {
            0 => errors.required(&path, "at least one CIDR required"),
            1 => {}
            2 => {
                let parsed: Vec<_> = cidrs
                    .iter()
                    .filter_map(|cidr| net::parse_cidr(cidr))
                    .collect();
                let dual =
                    parsed.len() == 2 && parsed[0].addr().is_ipv4() != parsed[1].addr().is_ipv4();
                if parsed.len() == 2 && !dual {
                    errors.invalid(
                        &path,
                        Bad::json(&cidrs),
                        "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
                    );
                }
            }
            _ => {
                errors.invalid(&path, Bad::json(&cidrs), "may only hold up to 2 values");
                return;
            }
        }
        for (index, cidr) in cidrs.iter().enumerate() {
            net::validate_cidr(cidr, &[], &path.index(index), errors);
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

fn cidrs(object: &ServiceCIDR) -> Vec<String> {
    object
        .spec
        .as_ref()
        .map_or(Vec::new(), |spec| spec.cidrs.items().to_vec())
}
