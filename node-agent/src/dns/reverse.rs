//! Names by address, for PTR: what the informers' caches do not index.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use skep_client::{Kept as _, ObjectKey};

use crate::endpoints::Slice;
use crate::services::Service;

use super::zone::{host_label, ready_endpoints};

/// Names below the cluster domain, without it.
#[derive(Debug, Default)]
pub struct Reverse {
    tables: RwLock<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    /// Sorted; most have one.
    by_ip: HashMap<IpAddr, Vec<Arc<str>>>,
    /// What each object contributed, to take it back.
    by_service: HashMap<ObjectKey, Named>,
    by_slice: HashMap<ObjectKey, Named>,
}

type Named = Box<[(IpAddr, Arc<str>)]>;

impl Reverse {
    pub fn names(&self, ip: IpAddr) -> Vec<Arc<str>> {
        self.tables
            .read()
            .by_ip
            .get(&ip)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    pub fn set_service(&self, service: &Service) {
        let key = service.key();
        let name: Arc<str> = format!("{}.{}.svc", key.name, key.namespace).into();
        let names: Named = service.ips.iter().map(|ip| (*ip, name.clone())).collect();
        let tables = &mut *self.tables.write();
        let before = tables.by_service.remove(&key).unwrap_or_default();
        replace(&mut tables.by_ip, &before, &names);
        if !names.is_empty() {
            tables.by_service.insert(key, names);
        }
    }

    pub fn remove_service(&self, key: &ObjectKey) {
        let tables = &mut *self.tables.write();
        let before = tables.by_service.remove(key).unwrap_or_default();
        replace(&mut tables.by_ip, &before, &[]);
    }

    /// Only endpoints of headless Services have names of their own; those with a hostname, or all
    /// of a Service without a ClusterIP.
    pub fn set_slice(&self, slice: &Slice) {
        let key = slice.key();
        let service = slice.service();
        let names: Named = service
            .into_iter()
            .flat_map(|service| {
                let namespace = &key.namespace;
                ready_endpoints(slice)
                    .filter(|endpoint| endpoint.hostname().is_some())
                    .map(move |endpoint| {
                        (
                            endpoint.ip,
                            format!("{}.{service}.{namespace}.svc", host_label(endpoint)).into(),
                        )
                    })
            })
            .collect();
        let tables = &mut *self.tables.write();
        let before = tables.by_slice.remove(&key).unwrap_or_default();
        replace(&mut tables.by_ip, &before, &names);
        if !names.is_empty() {
            tables.by_slice.insert(key, names);
        }
    }

    pub fn remove_slice(&self, key: &ObjectKey) {
        let tables = &mut *self.tables.write();
        let before = tables.by_slice.remove(key).unwrap_or_default();
        replace(&mut tables.by_ip, &before, &[]);
    }
}

fn replace(
    by_ip: &mut HashMap<IpAddr, Vec<Arc<str>>>,
    before: &[(IpAddr, Arc<str>)],
    names: &[(IpAddr, Arc<str>)],
) {
    for (ip, name) in before {
        if let Some(known) = by_ip.get_mut(ip) {
            known.retain(|each| each != name);
            if known.is_empty() {
                by_ip.remove(ip);
            }
        }
    }
    for (ip, name) in names {
        let known = by_ip.entry(*ip).or_insert_with(|| Vec::with_capacity(1));
        if let Err(place) = known.binary_search(name) {
            known.insert(place, name.clone());
        }
    }
}
