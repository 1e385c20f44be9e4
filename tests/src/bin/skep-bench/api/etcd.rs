//! What etcd itself does here: the same objects by as many writers, with nothing but its client between.
//!
//! This is the bound of what an API server over it can reach: each of its writes is one such transaction, and etcd
//! answers it when it is on disk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};

const WRITERS: usize = 32;
const ROUND: Duration = Duration::from_secs(2);

/// Creates a second.
pub(super) async fn creates(endpoint: &str, value: &[u8]) -> Result<f64> {
    let client = Client::connect([endpoint], None).await?;
    let value: Arc<[u8]> = value.into();
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let (mut client, value, next) = (client.clone(), value.clone(), next.clone());
        writers.spawn(async move {
            let mut created = 0_u64;
            while started.elapsed() < ROUND {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let nanos = started.elapsed().as_nanos();
                let key = format!("/limit/{nanos}/{number}");
                let missing = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
                let put = TxnOp::put(key, value.to_vec(), None);
                client
                    .txn(Txn::new().when([missing]).and_then([put]))
                    .await?;
                created += 1;
            }
            anyhow::Ok(created)
        });
    }
    let mut created = 0;
    while let Some(writer) = writers.join_next().await {
        created += writer??;
    }
    Ok(created as f64 / started.elapsed().as_secs_f64())
}
