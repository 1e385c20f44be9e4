//! The store for several control-plane machines: an etcd cluster of version 3.4 or later, which it should have for
//! itself.
//!
//! # Assumptions
//! - A watch follows the whole keyspace and drops what lies outside of its prefix here. Its progress comes from events
//!   alone: etcd before 3.4.31 and 3.5.13 may announce progress before the events that it covers (etcd#15220).
//! - A watch never reconnects by itself; it ends with an error, and whoever watches starts again at the next revision.
//! - The user, where etcd has authentication on, may read the whole keyspace.
//!
//! # Caveats
//! - Values that expire hang on shared leases, as kube-apiserver's do: those that expire together are deleted in one
//!   commit.
//! - A transaction that failed with `Unavailable` may have been committed. It is never sent twice.

mod lease;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, KeyValue, PutOptions, Txn,
    TxnOp, TxnOpResponse, WatchOptions, WatchResponse,
};
use futures::{StreamExt, stream};

use self::lease::Leases;
use crate::{
    Entry, Event, Guard, Op, RangeRequest, RangeResult, Revision, Store, StoreError, TxnOutcome,
    WatchBatch, WatchStream, check_sizes, last_op_per_key,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A dead connection is noticed after the sum of both.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits before a read is tried again; a member that restarts is back within these.
const READ_RETRY_MS: [u64; 4] = [50, 200, 500, 1000];

/// A batch of values may be large; what the API server asks for at once bounds it.
const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

// gRPC status codes.
const NOT_FOUND: i32 = 5;
const OUT_OF_RANGE: i32 = 11;
const UNAVAILABLE: i32 = 14;

#[derive(Clone, Default)]
pub struct Options {
    /// `https://10.0.0.1:2379`, …
    pub endpoints: Vec<String>,
    pub tls: Option<Tls>,
    /// Name and password.
    pub user: Option<(String, String)>,
}

/// PEM texts.
#[derive(Clone)]
pub struct Tls {
    pub ca: Vec<u8>,
    /// The client's certificate and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

pub struct EtcdStore {
    client: Client,
    leases: Leases,
    /// The highest revision compacted through this store; etcd itself keeps one more (see [`Store::compact`]).
    compacted: AtomicU64,
}

impl EtcdStore {
    /// Fails if no member answers.
    pub async fn connect(options: Options) -> Result<Self, StoreError> {
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
            .with_keep_alive_while_idle(true)
            // A member cut off from the others ends its watches instead of going quiet.
            .with_require_leader(true);
        if let Some(tls) = options.tls {
            let ca = etcd_client::Certificate::from_pem(tls.ca);
            let mut config = etcd_client::TlsOptions::new().ca_certificate(ca);
            if let Some((certificate, key)) = tls.identity {
                config = config.identity(etcd_client::Identity::from_pem(certificate, key));
            }
            connect = connect.with_tls(config);
        }
        if let Some((name, password)) = options.user {
            connect = connect.with_user(name, password);
        }
        let doing = "connecting to etcd";
        let client = timed(doing, Client::connect(options.endpoints, Some(connect)))
            .await?
            .map_err(|error| StoreError::Unavailable {
                doing,
                source: error.into(),
            })?;
        let leases = Leases::new(client.lease_client());
        let store = Self {
            client,
            leases,
            compacted: AtomicU64::new(0),
        };
        store.revision().await?;
        Ok(store)
    }

    fn kv(&self) -> etcd_client::KvClient {
        self.client
            .kv_client()
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn check_kept(&self, revision: Revision) -> Result<(), StoreError> {
        // Before the first commit etcd is at revision 1, and it knows no revision 0.
        let oldest = self.compacted.load(Ordering::Acquire).max(1);
        if revision < oldest {
            return Err(StoreError::Compacted {
                requested: revision,
                oldest,
            });
        }
        Ok(())
    }

    async fn try_txn(&self, guards: &[Guard], ops: &[Op]) -> Result<TxnOutcome, Failure> {
        let compares: Vec<Compare> = guards
            .iter()
            .map(|guard| match guard {
                Guard::Missing(key) => Compare::version(key.as_bytes(), CompareOp::Equal, 0),
                Guard::Unchanged(key, revision) => {
                    Compare::mod_revision(key.as_bytes(), CompareOp::Equal, signed(*revision))
                }
            })
            .collect();
        let lookups: Vec<TxnOp> = guards
            .iter()
            .map(|guard| TxnOp::get(guard_key(guard), None))
            .collect();
        let mut writes = Vec::with_capacity(ops.len());
        for op in ops {
            writes.push(match op {
                Op::Put { key, value, ttl } => {
                    let options = match ttl {
                        Some(ttl) => {
                            Some(PutOptions::new().with_lease(self.leases.lasting(*ttl).await?))
                        }
                        None => None,
                    };
                    TxnOp::put(key.as_bytes(), value.as_ref(), options)
                }
                Op::Delete { key } => TxnOp::delete(key.as_bytes(), None),
            });
        }
        let txn = Txn::new().when(compares).and_then(writes).or_else(lookups);
        let response = call("committing", self.kv().txn(txn)).await?;
        if response.succeeded() {
            let revision = revision_of(response.header());
            return Ok(TxnOutcome::Committed { revision });
        }
        for (guard, answer) in response.op_responses().into_iter().enumerate() {
            let TxnOpResponse::Get(mut found) = answer else {
                continue;
            };
            let current = match found.take_kvs().pop() {
                Some(kv) => Some(entry(kv)?),
                None => None,
            };
            let now = current.as_ref().map(|entry| entry.mod_revision);
            let wanted = match guards.get(guard) {
                Some(Guard::Unchanged(_, revision)) => Some(*revision),
                _ => None,
            };
            if now != wanted {
                return Ok(TxnOutcome::Conflict { guard, current });
            }
        }
        Err(Failure::new(
            "committing",
            "etcd refused a transaction whose guards hold",
        ))
    }
}

#[async_trait::async_trait]
impl Store for EtcdStore {
    async fn txn(&self, guards: Vec<Guard>, ops: Vec<Op>) -> Result<TxnOutcome, StoreError> {
        check_sizes(&ops)?;
        let ops = last_op_per_key(ops);
        match self.try_txn(&guards, &ops).await {
            // Refused as a whole, so that it can be tried with a new lease.
            Err(failure) if failure.lease_not_found() => {
                self.leases.forget().await;
                Ok(self.try_txn(&guards, &ops).await?)
            }
            outcome => Ok(outcome?),
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let read = || async {
            let mut kv = self.kv();
            call("reading a key", kv.get(key, None)).await
        };
        let found = retried(read).await?.take_kvs().pop();
        Ok(found.map(entry).transpose()?)
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResult, StoreError> {
        if let Some(revision) = request.revision {
            self.check_kept(revision)?;
        }
        let start = match &request.start_after {
            Some(key) if key.as_ref() >= request.prefix.as_str() => format!("{key}\0").into_bytes(),
            _ if request.prefix.is_empty() => vec![0],
            _ => request.prefix.as_bytes().to_vec(),
        };
        let options = GetOptions::new()
            .with_range(end_of_prefix(&request.prefix))
            .with_limit(i64::try_from(request.limit).unwrap_or(0))
            .with_revision(signed(request.revision.unwrap_or(0)));
        let read = || async {
            let mut kv = self.kv();
            call(
                "reading a range",
                kv.get(start.clone(), Some(options.clone())),
            )
            .await
        };
        let mut response = match retried(read).await {
            Ok(response) => response,
            Err(failure) => {
                let requested = request.revision.unwrap_or(0);
                if failure.is_future_revision() {
                    return Err(StoreError::Future {
                        requested,
                        newest: self.revision().await?,
                    });
                }
                return Err(failure.of_revision(requested));
            }
        };
        let revision = request
            .revision
            .unwrap_or_else(|| revision_of(response.header()));
        let more = response.more();
        let entries = response
            .take_kvs()
            .into_iter()
            .map(entry)
            .collect::<Result<_, _>>()?;
        Ok(RangeResult {
            entries,
            revision,
            more,
        })
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError> {
        let next = if from == 0 {
            self.revision().await? + 1
        } else {
            self.check_kept(from)?;
            from
        };
        let options = WatchOptions::new()
            .with_all_keys()
            .with_prev_key()
            .with_start_revision(signed(next));
        let mut client = self
            .client
            .watch_client()
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let stream = call("watching", client.watch("", Some(options))).await?;
        let watch = Watch {
            stream,
            prefix: prefix.to_owned(),
            next,
        };
        Ok(stream::unfold(Some(watch), |watch| async {
            let mut watch = watch?;
            match watch.batch().await {
                Ok(batch) => Some((Ok(batch), Some(watch))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        let read = || async {
            let mut kv = self.kv();
            // The key does not matter: the answer's header is what counts, and the read is linearizable.
            let options = GetOptions::new().with_count_only();
            call("reading the revision", kv.get("/", Some(options))).await
        };
        Ok(revision_of(retried(read).await?.header()))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let newest = self.revision().await?;
        if revision > newest {
            return Err(StoreError::Future {
                requested: revision,
                newest,
            });
        }
        // One less than asked for: a watch from `revision` still needs its deletes, and the previous values.
        if revision > 1 {
            let mut kv = self.kv();
            match call("compacting", kv.compact(signed(revision - 1), None)).await {
                Ok(_) => {}
                Err(failure) if failure.is_compacted_revision() => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        self.compacted.fetch_max(revision, Ordering::AcqRel);
        Ok(())
    }
}

struct Watch {
    stream: etcd_client::WatchStream,
    prefix: String,
    next: Revision,
}

impl Watch {
    async fn batch(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            let response = self
                .stream
                .message()
                .await
                .map_err(|error| Failure::new("watching", error))?
                .ok_or_else(|| Failure::new("watching", "etcd ended the stream"))?;
            if response.compact_revision() > 0 {
                // etcd keeps `compact_revision` itself readable, but not what was deleted there.
                let oldest = unsigned(response.compact_revision()) + 1;
                return Err(StoreError::Compacted {
                    requested: self.next,
                    oldest,
                });
            }
            if response.canceled() {
                let reason = format!("etcd cancelled the watch: {}", response.cancel_reason());
                return Err(Failure::new("watching", reason).into());
            }
            // Created, or a progress notification that cannot be trusted.
            let Some(last) = response.events().last().and_then(|event| event.kv()) else {
                continue;
            };
            let revision = unsigned(last.mod_revision());
            let events = events_under(&self.prefix, &response)?;
            self.next = revision + 1;
            return Ok(WatchBatch { revision, events });
        }
    }
}

fn events_under(prefix: &str, response: &WatchResponse) -> Result<Vec<Event>, Failure> {
    let mut events = Vec::new();
    for event in response.events() {
        let Some(kv) = event
            .kv()
            .filter(|kv| kv.key().starts_with(prefix.as_bytes()))
        else {
            continue;
        };
        let previous = event.prev_kv().cloned().map(entry).transpose()?;
        events.push(match (event.event_type(), previous) {
            (EventType::Put, previous) => Event::Put {
                entry: entry(kv.clone())?,
                previous,
            },
            (EventType::Delete, Some(previous)) => Event::Delete {
                key: previous.key.clone(),
                revision: unsigned(kv.mod_revision()),
                previous,
            },
            // Only where compaction overtook the watch.
            (EventType::Delete, None) => {
                return Err(Failure::new(
                    "watching",
                    "etcd sent a delete without its value",
                ));
            }
        });
    }
    Ok(events)
}

fn guard_key(guard: &Guard) -> &[u8] {
    let (Guard::Missing(key) | Guard::Unchanged(key, _)) = guard;
    key.as_bytes()
}

fn entry(kv: KeyValue) -> Result<Entry, Failure> {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let (key, value) = kv.into_key_value();
    let key = String::from_utf8(key).map_err(|error| Failure::new("reading a key", error))?;
    Ok(Entry {
        key: key.into(),
        value: Bytes::from(value),
        create_revision: unsigned(create_revision),
        mod_revision: unsigned(mod_revision),
    })
}

/// The first key after all that start with `prefix`.
fn end_of_prefix(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // etcd's way to say: no end.
    vec![0]
}

/// etcd counts in signed numbers, none of which is negative.
fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> Revision {
    u64::try_from(revision).unwrap_or(0)
}

fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    header.map_or(0, |header| unsigned(header.revision()))
}

/// A call that failed.
struct Failure {
    doing: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
    /// gRPC status and message, if the server or the transport gave one.
    status: Option<(i32, String)>,
}

impl Failure {
    fn new(
        doing: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            doing,
            source: source.into(),
            status: None,
        }
    }

    fn says(&self, code: i32, text: &str) -> bool {
        self.status
            .as_ref()
            .is_some_and(|(c, message)| *c == code && message.contains(text))
    }

    fn is_compacted_revision(&self) -> bool {
        self.says(OUT_OF_RANGE, "has been compacted")
    }

    fn is_future_revision(&self) -> bool {
        self.says(OUT_OF_RANGE, "future revision")
    }

    fn lease_not_found(&self) -> bool {
        self.says(NOT_FOUND, "requested lease not found")
    }

    fn is_passing(&self) -> bool {
        self.status
            .as_ref()
            .is_none_or(|(code, _)| *code == UNAVAILABLE)
    }

    fn of_revision(self, requested: Revision) -> StoreError {
        if self.is_compacted_revision() {
            // etcd does not say where it stands.
            return StoreError::Compacted {
                requested,
                oldest: requested + 1,
            };
        }
        self.into()
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        Self::Unavailable {
            doing: failure.doing,
            source: failure.source,
        }
    }
}

async fn timed<T>(doing: &'static str, future: impl Future<Output = T>) -> Result<T, Failure> {
    let late = |_| {
        Failure::new(
            doing,
            format!("etcd did not answer within {CALL_TIMEOUT:?}"),
        )
    };
    tokio::time::timeout(CALL_TIMEOUT, future)
        .await
        .map_err(late)
}

async fn call<T>(
    doing: &'static str,
    future: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Failure> {
    timed(doing, future).await?.map_err(|error| {
        let status = match &error {
            etcd_client::Error::GRpcStatus(status) => {
                Some((i32::from(status.code()), status.message().to_owned()))
            }
            _ => None,
        };
        Failure {
            doing,
            source: error.into(),
            status,
        }
    })
}

/// For reads only.
async fn retried<T, F: Future<Output = Result<T, Failure>>>(
    read: impl Fn() -> F,
) -> Result<T, Failure> {
    for wait_ms in READ_RETRY_MS {
        match read().await {
            Err(failure) if failure.is_passing() => {
                let wait = Duration::from_millis(wait_ms);
                tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
            }
            result => return result,
        }
    }
    read().await
}
