//! API priority and fairness (KEP-1040): whose request is worked on when there are more than the server can take.
//!
//! A FlowSchema puts a request into a priority level, and there into a flow. A level has seats in proportion to its
//! shares; those that it does not need it lends to others. Waiting requests of a level stand in queues; shuffle sharding
//! gives each flow a few of them, so that one flow cannot fill them all, and the queue that was served least comes next.
//!
//! ```text
//! request ── FlowSchema ──► level ── seat free ──────────────────────────► executing ──► done
//!                             ├──── queue of the flow's hand ── a seat ───────┘
//!                             └──── queue full, waited too long, no queues ──► 429
//! ```
//!
//! A list takes a seat for each 100 KB that it reads, ten at most. Unlike upstream, seats are lent and taken back at once instead of every ten seconds.

mod rules;
mod seats;

use std::{
    fmt::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use axum::response::Response;
use http::{HeaderName, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use serde_json::Value;
use skep_store::Revision;
use tokio::sync::oneshot;

use rules::Schema;
use seats::{Asked, Grant, Limits, Seats};

use crate::{cache::Cache, identity::User, options::Query, request::RequestInfo, respond};

/// Requests worked on at once by all levels that are not exempt (upstream: 400 that read and 200 that write).
pub const TOTAL_SEATS: u32 = 600;
/// How long a request may wait for its turn (upstream: a quarter of the request's own timeout).
const WAIT_LIMIT: Duration = Duration::from_secs(15);

/// What one seat of a list is worth (upstream `bytesPerSeat`), and the most that its answer keeps in memory at once.
const BYTES_A_SEAT: usize = 100_000;
const MAX_LIST_BYTES: usize = 1_000_000;
/// From so many objects the size of all is taken.
const SIZE_SAMPLE: usize = 8;

const SCHEMAS: &str = "/registry/flowcontrol.apiserver.k8s.io/flowschemas/";
const LEVELS: &str = "/registry/flowcontrol.apiserver.k8s.io/prioritylevelconfigurations/";
static SCHEMA_HEADER: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
static LEVEL_HEADER: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// The flow schemas of a moment.
struct Configuration {
    read_at: [Revision; 2],
    /// By matching precedence, then name.
    schemas: Vec<Schema>,
}

pub struct Fairness {
    cache: Arc<Cache>,
    configuration: ArcSwapOption<Configuration>,
    /// Held for a few hundred instructions, never across an await.
    seats: Arc<Mutex<Seats>>,
}

/// A request's place in the server, until it is dropped.
pub struct Seat {
    seats: Arc<Mutex<Seats>>,
    /// `None` for exempt requests.
    grant: Option<Grant>,
    started: Instant,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            self.seats.lock().release(grant, self.started.elapsed());
        }
    }
}

/// A place in a queue, until it is dropped.
struct Waiting {
    seats: Arc<Mutex<Seats>>,
    level: String,
    ticket: u64,
    granted: oneshot::Receiver<Grant>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut seats = self.seats.lock();
        self.granted.close();
        match self.granted.try_recv() {
            // Its turn came while the client went.
            Ok(grant) => seats.release(grant, Duration::ZERO),
            Err(_) => seats.leave(&self.level, self.ticket),
        }
    }
}

/// Where a request belongs.
pub struct Class {
    schema_uid: HeaderValue,
    level_uid: HeaderValue,
}

impl Class {
    /// Tells the client, who can then find out why it had to wait.
    pub fn mark(&self, response: &mut Response) {
        for (name, uid) in [
            (&SCHEMA_HEADER, &self.schema_uid),
            (&LEVEL_HEADER, &self.level_uid),
        ] {
            response.headers_mut().insert(name.clone(), uid.clone());
        }
    }
}

impl Fairness {
    pub fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            configuration: ArcSwapOption::empty(),
            seats: Arc::default(),
        }
    }

    fn configuration(&self) -> Arc<Configuration> {
        let changed = [
            self.cache.changed_at(SCHEMAS),
            self.cache.changed_at(LEVELS),
        ];
        if let Some(known) = self.configuration.load_full()
            && known.read_at == changed
        {
            return known;
        }
        let read = |prefix: &str| -> Vec<Value> {
            let snapshot = self.cache.snapshot(prefix);
            let objects = snapshot.iter();
            objects
                .filter_map(|entry| serde_json::from_slice(&entry.bytes()).ok())
                .collect()
        };
        let levels = read(LEVELS);
        let limits = Limits::of_levels(&levels, TOTAL_SEATS);
        let uids = |level: &str| {
            let found = levels
                .iter()
                .find(|object| object["metadata"]["name"] == level);
            found.map(rules::uid_header)
        };
        let mut schemas: Vec<Schema> = read(SCHEMAS)
            .iter()
            .filter_map(|schema| Schema::read(schema, uids))
            .collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        self.seats.lock().configure(limits);
        let configuration = Arc::new(Configuration {
            read_at: changed,
            schemas,
        });
        self.configuration.store(Some(configuration.clone()));
        configuration
    }

    /// Waits for this request's turn.
    ///
    /// # Errors
    /// The 429 of a request whose turn does not come.
    pub async fn turn(
        &self,
        user: &User,
        info: &RequestInfo,
        query: &Query,
    ) -> (Class, Result<Seat, Response>) {
        let configuration = self.configuration();
        let schema = configuration
            .schemas
            .iter()
            .find(|schema| schema.matches(user, info));
        let (schema, flow) = match schema {
            Some(schema) => (schema, schema.flow(user, info)),
            // The schemas that match everybody are missing: before they are written first, or deleted since.
            None => (Schema::mandatory(user, info), 0),
        };
        let class = Class {
            schema_uid: schema.uid.clone(),
            level_uid: schema.level_uid.clone(),
        };
        let wanted = self.wanted(info, query);
        let seat = self.seat(schema, flow, wanted).await;
        (class, seat)
    }

    /// How many seats a request is worth (upstream's `listWorkEstimator`; every list is served from the cache).
    fn wanted(&self, info: &RequestInfo, query: &Query) -> u32 {
        let lists = match info.verb {
            "list" => true,
            "watch" => query.flag("sendInitialEvents"),
            _ => false,
        };
        if !lists || !info.name.is_empty() {
            return 1;
        }
        let group = if info.group.is_empty() {
            "core"
        } else {
            &info.group
        };
        let mut prefix = format!("/registry/{group}/{}/", info.resource);
        if !info.namespace.is_empty() {
            prefix.push_str(&info.namespace);
            prefix.push('/');
        }
        let objects = self.cache.snapshot(&prefix);
        let sizes: Vec<usize> = objects
            .iter()
            .take(SIZE_SAMPLE)
            .map(|entry| entry.body.len())
            .collect();
        let average = sizes.iter().sum::<usize>() / sizes.len().max(1);
        let limit = query.get("limit").parse().unwrap_or(0);
        let count = match limit {
            0 => objects.len(),
            limit => objects.len().min(limit),
        };
        let bytes = count.saturating_mul(average).min(MAX_LIST_BYTES);
        u32::try_from(bytes.div_ceil(BYTES_A_SEAT)).unwrap_or(u32::MAX)
    }

    async fn seat(&self, schema: &Schema, flow: u64, wanted: u32) -> Result<Seat, Response> {
        let seat = |grant: Option<Grant>| Seat {
            seats: self.seats.clone(),
            grant,
            started: Instant::now(),
        };
        let asked = {
            let mut seats = self.seats.lock();
            seats.ask(&schema.level, &schema.name, flow, wanted)
        };
        let (ticket, granted) = match asked {
            Asked::Exempt => return Ok(seat(None)),
            Asked::Granted(grant) => return Ok(seat(Some(grant))),
            Asked::Refused => return Err(too_many()),
            Asked::Queued { ticket, granted } => (ticket, granted),
        };
        let mut waiting = Waiting {
            seats: self.seats.clone(),
            level: schema.level.clone(),
            ticket,
            granted,
        };
        let began = Instant::now();
        let outcome = tokio::time::timeout(WAIT_LIMIT, &mut waiting.granted).await;
        let mut seats = self.seats.lock();
        seats.waited(&schema.level, began.elapsed());
        match outcome {
            Ok(Ok(grant)) => Ok(seat(Some(grant))),
            _ => {
                seats.count_refusal(&schema.level, &schema.name, "time-out");
                drop(seats);
                Err(too_many())
            }
        }
    }

    /// Upstream's names; see the metrics' help texts there.
    pub fn write_metrics(&self, out: &mut String) -> std::fmt::Result {
        let seats = self.seats.lock();
        let metrics = seats.metrics();
        drop(seats);
        let mut last = "";
        for (name, kind, labels, value) in metrics {
            if name != last {
                writeln!(out, "# TYPE {name} {kind}")?;
                last = name;
            }
            writeln!(out, "{name}{{{labels}}} {value}")?;
        }
        Ok(())
    }
}

fn too_many() -> Response {
    let mut response = respond::text(
        StatusCode::TOO_MANY_REQUESTS,
        "Too many requests, please try again later.\n",
    );
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
