//! Flow events for whoever follows them: one reader of the kernel's ring, many listeners. The
//! programs tell nothing while nobody listens.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use skep_datapath::{Datapath, Event, EventReader};
use tokio::sync::broadcast;
use tracing::{debug, warn};

use super::inspect::protocol;

/// Events that a slow listener may fall behind; then it misses the oldest, and is told how many.
const BACKLOG: usize = 4_096;
/// How often the ring is emptied while somebody listens: it holds two thousand events.
const DRAIN: Duration = Duration::from_millis(20);
/// Names of Services are looked up anew this often.
const NAMES: Duration = Duration::from_secs(1);

/// Of how many new connections one is told of, if a listener does not say.
pub(super) const DEFAULT_SAMPLE: u32 = 1;

#[derive(Clone)]
pub(super) struct Events {
    datapath: Arc<Datapath>,
    listeners: Arc<Mutex<Option<broadcast::Sender<Arc<Event>>>>>,
}

/// A listener's end.
pub(super) struct Listener {
    events: broadcast::Receiver<Arc<Event>>,
    names: Names,
}

impl Events {
    pub(super) fn new(datapath: Arc<Datapath>) -> Self {
        Self {
            datapath,
            listeners: Arc::default(),
        }
    }

    /// Hears of one of `sample` new connections, and of every drop, from now on. Listeners at the
    /// same time share the last one's `sample`.
    pub(super) fn listen(&self, sample: u32) -> Result<Listener, skep_datapath::Error> {
        let mut listeners = self.listeners.lock();
        let events = match &*listeners {
            Some(sender) => sender.subscribe(),
            None => {
                let reader = self.datapath.events()?;
                let (sender, receiver) = broadcast::channel(BACKLOG);
                *listeners = Some(sender.clone());
                tokio::spawn(self.clone().read(reader, sender));
                receiver
            }
        };
        self.datapath.set_events(Some(sample))?;
        Ok(Listener {
            events,
            names: Names::new(self.datapath.clone()),
        })
    }

    async fn read(self, mut reader: EventReader, sender: broadcast::Sender<Arc<Event>>) {
        let mut drain = tokio::time::interval(DRAIN);
        drain.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            drain.tick().await;
            while let Some(event) = reader.next_event() {
                // Nobody listens: seen below.
                let _ = sender.send(Arc::new(event));
            }
            let mut listeners = self.listeners.lock();
            if sender.receiver_count() == 0 {
                *listeners = None;
                if let Err(error) = self.datapath.set_events(None) {
                    warn!(%error, "flow events are not turned off");
                }
                debug!("nobody follows the flows any more");
                return;
            }
        }
    }
}

impl Listener {
    /// The next event as a line of JSON. `None`: the agent ends.
    pub(super) async fn next_line(&mut self) -> Option<String> {
        let value = match self.events.recv().await {
            Ok(event) => self.describe(&event),
            Err(broadcast::error::RecvError::Lagged(missed)) => json!({"missed": missed}),
            Err(broadcast::error::RecvError::Closed) => return None,
        };
        Some(format!("{value}\n"))
    }

    fn describe(&mut self, event: &Event) -> Value {
        let address = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip, port).to_string();
        let verdict = if event.reason.is_drop() {
            "dropped"
        } else if event.new.is_some() {
            "translated"
        } else {
            "forwarded"
        };
        let mut value = json!({
            "time": wall_clock(event.monotonic_ns),
            "verdict": verdict,
            "reason": event.reason.name(),
            "hook": event.hook,
            "protocol": protocol(event.protocol),
            "source": address(event.source),
            "destination": address(event.destination),
        });
        if let Some([source, destination]) = event.new {
            value["newSource"] = address(source).into();
            value["newDestination"] = address(destination).into();
        }
        if let Some(name) = self.names.of(event.service) {
            value["service"] = name.into();
        }
        value
    }
}

/// Names of Service ports by the ids that programs know them by.
struct Names {
    datapath: Arc<Datapath>,
    known: HashMap<u32, String>,
    looked: std::time::Instant,
}

impl Names {
    fn new(datapath: Arc<Datapath>) -> Self {
        let known = look(&datapath);
        Self {
            datapath,
            known,
            looked: std::time::Instant::now(),
        }
    }

    fn of(&mut self, id: u32) -> Option<String> {
        if id == 0 {
            return None;
        }
        if !self.known.contains_key(&id) && self.looked.elapsed() >= NAMES {
            self.known = look(&self.datapath);
            self.looked = std::time::Instant::now();
        }
        self.known.get(&id).cloned()
    }
}

fn look(datapath: &Datapath) -> HashMap<u32, String> {
    let ids = datapath.services().lock().ids();
    ids.into_iter().map(|(name, id)| (id, name)).collect()
}

/// The programs' clock is the monotonic one.
fn wall_clock(monotonic_ns: u64) -> String {
    let monotonic = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .unwrap_or_default();
    let ago = monotonic.saturating_sub(Duration::from_nanos(monotonic_ns));
    let now = jiff::Timestamp::now();
    let at = now
        .checked_sub(jiff::SignedDuration::try_from(ago).unwrap_or_default())
        .unwrap_or(now);
    format!("{at:.3}")
}
