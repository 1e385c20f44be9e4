//! Node ports of a Service (upstream `initNodePorts`, `updateNodePorts`). Pure, but for what is taken.

use std::{collections::BTreeSet, ops::RangeInclusive};

use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use skep_api::{
    field::{Bad, FieldError, FieldErrorKind},
    kinds::core::service::{gives_node_ports, needs_health_check},
    zero::{List, Text},
};

/// Ports below this offset are given only to who asks for them (KEP-3668).
const STATIC_PORTS: u16 = 86;

/// Why there is no port.
#[derive(Debug, PartialEq)]
pub enum PortError {
    Field(FieldError),
    /// Upstream answers these with 500.
    Internal(String),
    /// The same, without a reason.
    Unknown(String),
}

/// The ports of a cluster during one write.
pub struct Pool<'a> {
    pub range: RangeInclusive<u16>,
    pub taken: &'a dyn Fn(u16) -> bool,
    chosen: BTreeSet<u16>,
}

impl<'a> Pool<'a> {
    pub fn new(range: RangeInclusive<u16>, taken: &'a dyn Fn(u16) -> bool) -> Self {
        Self {
            range,
            taken,
            chosen: BTreeSet::new(),
        }
    }

    fn take(&mut self, port: i32) -> Result<(), String> {
        let wanted = u16::try_from(port)
            .ok()
            .filter(|port| self.range.contains(port));
        let Some(wanted) = wanted else {
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.range.start(),
                self.range.end()
            ));
        };
        if (self.taken)(wanted) || !self.chosen.insert(wanted) {
            return Err("provided port is already allocated".to_owned());
        }
        Ok(())
    }

    fn take_any(&mut self) -> Result<i32, String> {
        let (first, last) = (*self.range.start(), *self.range.end());
        let dynamic = first.saturating_add(STATIC_PORTS).min(last);
        let start = rand::random_range(dynamic..=last.max(dynamic));
        let mut candidates = (start..=last).chain(dynamic..start).chain(first..dynamic);
        let found = candidates.find(|port| !self.chosen.contains(port) && !(self.taken)(*port));
        let Some(port) = found else {
            return Err("range is full".to_owned());
        };
        self.chosen.insert(port);
        Ok(port.into())
    }
}

fn has_node_ports(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.text(), "NodePort" | "LoadBalancer")
}

fn number(port: &ServicePort) -> i32 {
    port.node_port.unwrap_or(0)
}

fn refused(index: usize, port: i32, why: String) -> PortError {
    PortError::Field(FieldError::new(
        FieldErrorKind::Invalid,
        format!("spec.ports[{index}].nodePort"),
        Bad::from(port),
        why,
    ))
}

fn full(why: &str) -> PortError {
    PortError::Internal(format!("failed to allocate a nodePort: {why}"))
}

/// Gives a Service the ports that it needs and checks those that it asks for.
///
/// # Errors
/// Ports that are taken or out of range; none left.
pub fn allocate(
    spec: &mut ServiceSpec,
    old: Option<&ServiceSpec>,
    pool: &mut Pool<'_>,
) -> Result<(), PortError> {
    if has_node_ports(spec) {
        match old {
            None => init(spec, pool)?,
            Some(old) => update(spec, old, pool)?,
        }
    }
    if needs_health_check(spec) && !old.is_some_and(needs_health_check) {
        match spec.health_check_node_port.unwrap_or(0) {
            0 => {
                let port = pool.take_any().map_err(|why| {
                    PortError::Internal(format!(
                        "failed to allocate a HealthCheck NodePort 0: {why}"
                    ))
                })?;
                spec.health_check_node_port = Some(port);
            }
            port => pool.take(port).map_err(|why| {
                PortError::Internal(format!(
                    "failed to allocate requested HealthCheck NodePort {port}: {why}"
                ))
            })?,
        }
    }
    Ok(())
}

/// One number serves the same port in several protocols.
fn init(spec: &mut ServiceSpec, pool: &mut Pool<'_>) -> Result<(), PortError> {
    let gives = gives_node_ports(spec);
    let ports = spec.ports.get_or_insert_default();
    // (port, node port)
    let mut known: Vec<(i32, i32)> = Vec::new();
    for i in 0..ports.len() {
        let (port, given) = (ports[i].port, number(&ports[i]));
        if given == 0 && !gives {
            continue;
        }
        let before = known.iter().rfind(|(of, _)| *of == port).map(|(_, at)| *at);
        match before {
            None => {
                let asked = ports
                    .iter()
                    .find(|one| one.port == port && number(one) != 0)
                    .map(number);
                let got = match asked {
                    Some(asked) => {
                        pool.take(asked).map_err(|why| refused(i, asked, why))?;
                        asked
                    }
                    None => pool.take_any().map_err(|why| full(&why))?,
                };
                ports[i].node_port = Some(got);
                known.push((port, got));
            }
            Some(before) if given == 0 => ports[i].node_port = Some(before),
            Some(before) if given != before => {
                pool.take(given).map_err(|why| refused(i, given, why))?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn update(spec: &mut ServiceSpec, old: &ServiceSpec, pool: &mut Pool<'_>) -> Result<(), PortError> {
    let gives = gives_node_ports(spec);
    let own: BTreeSet<i32> = old.ports.items().iter().map(number).collect();
    let mut taken: BTreeSet<i32> = BTreeSet::new();
    let mut seen: Vec<(String, i32)> = Vec::new();
    for (i, port) in spec.ports.iter_mut().flatten().enumerate() {
        let mut wanted = number(port);
        if wanted == 0 && !gives {
            continue;
        }
        if wanted == 0 {
            wanted = pool.take_any().map_err(|why| full(&why))?;
            port.node_port = Some(wanted);
        } else if !own.contains(&wanted) && taken.insert(wanted) {
            pool.take(wanted).map_err(|why| refused(i, wanted, why))?;
        }
        let one = (port.protocol.text().to_owned(), wanted);
        if seen.contains(&one) {
            let (protocol, number) = one;
            return Err(PortError::Unknown(format!(
                "duplicate nodePort: {{{protocol} {number}}}"
            )));
        }
        seen.push(one);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The node ports that come out, or what is wrong.
    fn allocated(ports: Value, old: Option<Value>) -> String {
        let spec = |ports: Value| -> ServiceSpec {
            serde_json::from_value(json!({"type": "NodePort", "ports": ports})).expect("a spec")
        };
        let mut new = spec(ports);
        let old = old.map(spec);
        let taken = |port: u16| port == 30001;
        let mut pool = Pool::new(30000..=30100, &taken);
        match allocate(&mut new, old.as_ref(), &mut pool) {
            Ok(()) => {
                let ports = new
                    .ports
                    .items()
                    .iter()
                    .map(|port| number(port).to_string());
                ports.collect::<Vec<_>>().join(",")
            }
            Err(PortError::Field(error)) => error.to_string(),
            Err(PortError::Internal(text) | PortError::Unknown(text)) => text,
        }
    }

    #[test]
    fn new_ports() {
        let two = |a: i32, b: i32| json!([{"port": 1, "protocol": "TCP", "nodePort": a}, {"port": 1, "protocol": "UDP", "nodePort": b}]);
        assert_eq!(allocated(two(30005, 0), None), "30005,30005");
        assert_eq!(allocated(two(0, 30005), None), "30005,30005");
        assert_eq!(
            allocated(
                json!([{"port": 1, "nodePort": 30005}, {"port": 2, "nodePort": 30005}]),
                None
            ),
            "spec.ports[1].nodePort: Invalid value: 30005: provided port is already allocated"
        );
        assert_eq!(
            allocated(json!([{"port": 1, "nodePort": 30001}]), None),
            "spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"
        );
        assert_eq!(
            allocated(json!([{"port": 1, "nodePort": 80}]), None),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-30100"
        );
    }

    #[test]
    fn changed_ports() {
        let old = || Some(json!([{"port": 1, "protocol": "TCP", "nodePort": 30001}]));
        assert_eq!(
            allocated(
                json!([{"port": 2, "protocol": "TCP", "nodePort": 30001}]),
                old()
            ),
            "30001"
        );
        assert_eq!(
            allocated(
                json!([{"port": 2, "protocol": "TCP", "nodePort": 30001}, {"port": 3, "protocol": "TCP", "nodePort": 30001}]),
                old()
            ),
            "duplicate nodePort: {TCP 30001}"
        );
    }
}
