//! Leases for values that expire. Granting one is a commit of its own, so that values with about the same end share one.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use etcd_client::LeaseClient;
use tokio::sync::Mutex;

use super::{Failure, call};

/// How many values one lease takes: etcd deletes them in one go.
const MAX_VALUES: u32 = 1000;
/// How many different times to live are remembered.
const MAX_REMEMBERED: usize = 64;

pub(super) struct Leases {
    client: LeaseClient,
    /// By the time to live that was asked for.
    current: Mutex<HashMap<Duration, Lease>>,
}

struct Lease {
    id: i64,
    /// It does not end before.
    ends: Instant,
    values: u32,
}

impl Leases {
    pub(super) fn new(client: LeaseClient) -> Self {
        Self {
            client,
            current: Mutex::default(),
        }
    }

    /// A lease that lasts at least `ttl`, and not much longer: a 20th, or a minute.
    pub(super) async fn lasting(&self, ttl: Duration) -> Result<i64, Failure> {
        let mut current = self.current.lock().await;
        let now = Instant::now();
        if let Some(lease) = current.get_mut(&ttl)
            && lease.values < MAX_VALUES
            && lease.ends >= now + ttl
        {
            lease.values += 1;
            return Ok(lease.id);
        }
        let longer = ttl + (ttl / 20).min(Duration::from_secs(60));
        let seconds = longer.as_secs() + u64::from(longer.subsec_nanos() > 0);
        let granted = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
        let mut client = self.client.clone();
        let id = call("granting a lease", client.grant(granted, None))
            .await?
            .id();
        current.retain(|ttl, lease| lease.ends >= now + *ttl);
        if current.len() < MAX_REMEMBERED {
            let ends = now + Duration::from_secs(seconds);
            current.insert(
                ttl,
                Lease {
                    id,
                    ends,
                    values: 1,
                },
            );
        }
        Ok(id)
    }

    /// etcd does not know them any more (restored from a backup, revoked by a person).
    pub(super) async fn forget(&self) {
        self.current.lock().await.clear();
    }
}
