//! Reading the programs' counters.

use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::service::ServiceCounters;

use crate::error::Error;
use crate::table::Table;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonCount {
    pub reason: Reason,
    pub count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCount {
    pub name: String,
    pub connections: u64,
    pub refused: u64,
}

pub(crate) struct Counters {
    pub(crate) reasons: Table<u32, u64>,
    pub(crate) services: Table<u32, ServiceCounters>,
    pub(crate) cpus: usize,
}

impl Counters {
    pub(crate) fn reasons(&self) -> Result<Vec<ReasonCount>, Error> {
        Reason::ALL
            .iter()
            .map(|reason| {
                let values = self.reasons.get_per_cpu(&(*reason as u32), self.cpus)?;
                Ok(ReasonCount {
                    reason: *reason,
                    count: values.iter().sum(),
                })
            })
            .collect()
    }

    pub(crate) fn service(&self, id: u32) -> Result<ServiceCounters, Error> {
        let values = self.services.get_per_cpu(&id, self.cpus)?;
        Ok(values
            .iter()
            .fold(ServiceCounters::default(), |sum, value| ServiceCounters {
                connections: sum.connections + value.connections,
                refused: sum.refused + value.refused,
            }))
    }
}
