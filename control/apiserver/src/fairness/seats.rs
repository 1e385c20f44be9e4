//! Seats and queues of the priority levels. No clock and no waiting: who calls says what happened.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde_json::Value;
use tokio::sync::oneshot;

/// What a request is taken to last when it is dispatched; corrected when it is done.
const ESTIMATE_SECONDS: f64 = 0.003;

/// Seats of `catch-all` while its object is missing.
const CATCH_ALL_SEATS: u32 = 13;

/// The part of its level's seats that one request may take.
const MAX_WIDTH_PERCENT: u32 = 15;

/// A level's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    exempt: bool,
    /// Seats of its own.
    nominal: u32,
    /// Of these, how many others may use.
    lendable: u32,
    /// How many of others' it may use; `None`: any.
    borrowing: Option<u32>,
    /// `None`: who finds no seat is refused at once.
    queuing: Option<Queuing>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Queuing {
    queues: usize,
    hand_size: usize,
    /// Most requests in one queue.
    length: usize,
}

impl Limits {
    /// Divides the server's seats among levels, in proportion to their shares.
    pub fn of_levels(levels: &[Value], total: u32) -> BTreeMap<String, Self> {
        let limited = |level: &Value| match level["spec"]["type"].as_str() {
            Some("Exempt") => level["spec"]["exempt"].clone(),
            _ => level["spec"]["limited"].clone(),
        };
        let shares = |level: &Value| {
            let default = if level["spec"]["type"] == "Exempt" {
                0
            } else {
                30
            };
            limited(level)["nominalConcurrencyShares"]
                .as_u64()
                .unwrap_or(default)
        };
        let sum = levels.iter().map(shares).sum::<u64>().max(1);
        let number = |value: &Value, default: u64| {
            usize::try_from(value.as_u64().unwrap_or(default)).unwrap_or(usize::MAX)
        };
        let mut limits = BTreeMap::new();
        for level in levels {
            let spec = limited(level);
            let nominal = (u64::from(total) * shares(level)).div_ceil(sum);
            let part =
                |percent: u64| u32::try_from((nominal * percent + 50) / 100).unwrap_or(u32::MAX);
            let response = &spec["limitResponse"];
            let queuing = &response["queuing"];
            limits.insert(
                level["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                Self {
                    exempt: level["spec"]["type"] == "Exempt",
                    nominal: u32::try_from(nominal).unwrap_or(u32::MAX),
                    lendable: part(spec["lendablePercent"].as_u64().unwrap_or(0)),
                    borrowing: spec["borrowingLimitPercent"].as_u64().map(part),
                    queuing: (response["type"] == "Queue").then(|| Queuing {
                        queues: number(&queuing["queues"], 64).clamp(1, 10_000),
                        hand_size: number(&queuing["handSize"], 8).max(1),
                        length: number(&queuing["queueLengthLimit"], 50).max(1),
                    }),
                },
            );
        }
        limits
    }

    /// So many seats one request may have: no request takes a level for itself (upstream `priorityLevelMaxSeatsPercent`).
    fn width(&self, wanted: u32) -> u32 {
        let most = self.nominal.saturating_mul(MAX_WIDTH_PERCENT).div_ceil(100);
        wanted.min(most).max(1)
    }
}

/// Seats taken by one request; give them back with [`Seats::release`].
#[derive(Debug)]
pub struct Grant {
    level: String,
    schema: String,
    taken: Taken,
    queue: usize,
}

/// Whose seats they are, and how many: the level's own, and borrowed ones. Never empty, and none of it is 0.
#[derive(Debug)]
struct Taken(Vec<(String, u32)>);

impl Taken {
    fn width(&self) -> u32 {
        self.0.iter().map(|(_, count)| count).sum()
    }
}

#[derive(Debug)]
pub enum Asked {
    Exempt,
    Granted(Grant),
    Queued {
        ticket: u64,
        granted: oneshot::Receiver<Grant>,
    },
    Refused,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    schema: String,
    /// How many seats it needs.
    width: u32,
    grant: oneshot::Sender<Grant>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiter>,
    /// Seconds of work that this queue's requests have had, comparable with other queues of the level.
    served: f64,
    executing: u32,
}

#[derive(Debug)]
struct Level {
    limits: Limits,
    /// Its own seats that are taken, by itself or by borrowers. Never over `nominal` but after a reconfiguration.
    taken: u32,
    /// Of these, by borrowers.
    lent: u32,
    /// Others' seats that its requests sit on.
    borrowed: u32,
    /// Seats that its requests sit on.
    executing: u32,
    waiting: usize,
    queues: Vec<Queue>,
    /// Where a queue that was empty begins.
    virtual_time: f64,
    waited_seconds: f64,
    waited_count: u64,
}

impl Level {
    fn new(limits: Limits) -> Self {
        let mut level = Self {
            taken: 0,
            lent: 0,
            borrowed: 0,
            executing: 0,
            waiting: 0,
            queues: Vec::new(),
            virtual_time: 0.0,
            waited_seconds: 0.0,
            waited_count: 0,
            limits: limits.clone(),
        };
        level.configure(limits);
        level
    }

    fn configure(&mut self, limits: Limits) {
        let count = limits.queuing.map_or(1, |queuing| queuing.queues);
        self.limits = limits;
        if count < self.queues.len() {
            // Who waits in a queue that goes moves to one that stays.
            for (index, mut gone) in self.queues.split_off(count).into_iter().enumerate() {
                self.queues[index % count].waiting.append(&mut gone.waiting);
            }
        }
        self.queues.resize_with(count, Queue::default);
    }

    /// The queue that was served least of those in which somebody waits.
    fn next_queue(&self) -> Option<usize> {
        let queues = self.queues.iter().enumerate();
        let (index, _) = queues
            .filter(|(_, queue)| !queue.waiting.is_empty())
            .min_by(|(_, a), (_, b)| a.served.total_cmp(&b.served))?;
        Some(index)
    }

    /// How many seats who comes next needs.
    fn next_width(&self) -> Option<u32> {
        let queue = &self.queues[self.next_queue()?];
        queue.waiting.front().map(|waiter| waiter.width)
    }

    fn is_idle(&self) -> bool {
        self.executing == 0 && self.waiting == 0 && self.taken == 0
    }
}

/// A hand of different queues for a flow (upstream `shufflesharding`).
fn deal(mut flow: u64, queues: usize, hand_size: usize) -> Vec<usize> {
    let hand_size = hand_size.min(queues);
    let mut remainders = Vec::with_capacity(hand_size);
    for dealt in 0..hand_size {
        let left = (queues - dealt) as u64;
        remainders.push(usize::try_from(flow % left).unwrap_or(0));
        flow /= left;
    }
    let mut hand = Vec::with_capacity(hand_size);
    for (index, card) in remainders.iter().enumerate() {
        let mut card = *card;
        for before in remainders[..index].iter().rev() {
            if card >= *before {
                card += 1;
            }
        }
        hand.push(card);
    }
    hand
}

/// All levels. Every seat that is taken counts in exactly one level's `taken`.
#[derive(Debug, Default)]
pub struct Seats {
    levels: BTreeMap<String, Level>,
    tickets: u64,
    dispatched: BTreeMap<(String, String), u64>,
    executing: BTreeMap<(String, String), u64>,
    refused: BTreeMap<(String, String, &'static str), u64>,
}

/// Label sets of counters that are kept; schemas come and go.
const MAX_SERIES: usize = 4096;

impl Seats {
    pub fn configure(&mut self, mut limits: BTreeMap<String, Limits>) {
        // These two exist whatever anybody deletes.
        for (name, exempt) in [("exempt", true), ("catch-all", false)] {
            limits.entry(name.to_owned()).or_insert(Limits {
                exempt,
                nominal: if exempt { 0 } else { CATCH_ALL_SEATS },
                lendable: 0,
                borrowing: None,
                queuing: None,
            });
        }
        // A level that is gone lets in nobody new and vanishes when its last request has.
        self.levels
            .retain(|name, level| limits.contains_key(name) || !level.is_idle());
        for (name, level) in &mut self.levels {
            if !limits.contains_key(name) {
                level.limits.lendable = 0;
            }
        }
        for (name, limits) in limits {
            match self.levels.get_mut(&name) {
                Some(level) => level.configure(limits),
                None => {
                    self.levels.insert(name, Level::new(limits));
                }
            }
        }
        self.dispatch();
    }

    /// Takes so many seats, the level's own or others'. All or none.
    fn take(&mut self, name: &str, width: u32) -> Option<Taken> {
        let level = self.levels.get(name)?;
        let own = level.limits.nominal.saturating_sub(level.taken).min(width);
        let mut missing = width - own;
        let most = level.limits.borrowing.unwrap_or(u32::MAX);
        if missing > 0 && level.borrowed.saturating_add(missing) > most {
            return None;
        }
        let mut taken = Vec::with_capacity(1);
        if own > 0 {
            taken.push((name.to_owned(), own));
        }
        for (lender, level) in &self.levels {
            if missing == 0 {
                break;
            }
            if lender == name || level.limits.exempt || level.waiting > 0 {
                continue;
            }
            let lendable = level.limits.lendable.saturating_sub(level.lent);
            let free = level.limits.nominal.saturating_sub(level.taken);
            let lent = missing.min(lendable).min(free);
            if lent > 0 {
                taken.push((lender.clone(), lent));
                missing -= lent;
            }
        }
        if missing > 0 {
            return None;
        }
        for (owner, count) in &taken {
            if let Some(level) = self.levels.get_mut(owner) {
                level.taken += count;
                if owner != name {
                    level.lent += count;
                }
            }
        }
        if let Some(level) = self.levels.get_mut(name) {
            level.borrowed += width - own;
            level.executing += width;
        }
        Some(Taken(taken))
    }

    /// `flow`: a hash of what tells flows apart.
    /// `wanted`: how many seats the request is worth; it is given a part of its level at most.
    pub fn ask(&mut self, name: &str, schema: &str, flow: u64, wanted: u32) -> Asked {
        let Some(level) = self.levels.get(name) else {
            return Asked::Refused;
        };
        if level.limits.exempt {
            self.count_dispatch(name, schema);
            return Asked::Exempt;
        }
        let queuing = level.limits.queuing;
        let width = level.limits.width(wanted);
        let hand = queuing.map(|q| deal(flow, level.queues.len(), q.hand_size));
        let queue = hand.iter().flatten().min_by_key(|index| {
            let queue = &level.queues[**index];
            queue.waiting.len() + queue.executing as usize
        });
        let queue = queue.copied().unwrap_or(0);
        if level.waiting == 0
            && let Some(taken) = self.take(name, width)
        {
            return Asked::Granted(self.grant(name, schema, taken, queue));
        }
        let Some(queuing) = queuing else {
            self.count_refusal(name, schema, "concurrency-limit");
            return Asked::Refused;
        };
        let full = self
            .levels
            .get(name)
            .is_none_or(|level| level.queues[queue].waiting.len() >= queuing.length);
        if full {
            self.count_refusal(name, schema, "queue-full");
            return Asked::Refused;
        }
        self.tickets += 1;
        let ticket = self.tickets;
        let (grant, granted) = oneshot::channel();
        if let Some(level) = self.levels.get_mut(name) {
            let virtual_time = level.virtual_time;
            let queue = &mut level.queues[queue];
            if queue.waiting.is_empty() && queue.executing == 0 {
                queue.served = queue.served.max(virtual_time);
            }
            queue.waiting.push_back(Waiter {
                ticket,
                schema: schema.to_owned(),
                width,
                grant,
            });
            level.waiting += 1;
        }
        // It may come before a wider one for which there are not enough seats.
        self.dispatch();
        Asked::Queued { ticket, granted }
    }

    fn grant(&mut self, name: &str, schema: &str, taken: Taken, queue: usize) -> Grant {
        if let Some(level) = self.levels.get_mut(name) {
            let virtual_time = level.virtual_time;
            let queue = &mut level.queues[queue];
            if queue.executing == 0 && queue.waiting.is_empty() {
                queue.served = queue.served.max(virtual_time);
            }
            level.virtual_time = virtual_time.max(queue.served);
            queue.served += ESTIMATE_SECONDS * f64::from(taken.width());
            queue.executing += 1;
        }
        self.count_dispatch(name, schema);
        *self
            .executing
            .entry((name.to_owned(), schema.to_owned()))
            .or_default() += 1;
        Grant {
            level: name.to_owned(),
            schema: schema.to_owned(),
            taken,
            queue,
        }
    }

    /// A request is done after this long.
    pub fn release(&mut self, grant: Grant, took: Duration) {
        let Grant {
            level: name,
            schema,
            taken,
            queue,
        } = grant;
        self.give_back(&name, &taken);
        // The level, or the queue, may have gone meanwhile.
        if let Some(level) = self.levels.get_mut(&name)
            && let Some(queue) = level.queues.get_mut(queue)
        {
            queue.executing = queue.executing.saturating_sub(1);
            let seconds = took.as_secs_f64() - ESTIMATE_SECONDS;
            queue.served += seconds * f64::from(taken.width());
        }
        if let Some(count) = self.executing.get_mut(&(name, schema)) {
            *count = count.saturating_sub(1);
        }
        self.dispatch();
    }

    fn give_back(&mut self, name: &str, taken: &Taken) {
        for (owner, count) in &taken.0 {
            if let Some(level) = self.levels.get_mut(owner) {
                level.taken = level.taken.saturating_sub(*count);
                if owner != name {
                    level.lent = level.lent.saturating_sub(*count);
                }
            }
            if let Some(level) = self.levels.get_mut(name) {
                level.executing = level.executing.saturating_sub(*count);
                if owner != name {
                    level.borrowed = level.borrowed.saturating_sub(*count);
                }
            }
        }
    }

    /// Somebody does not wait any longer.
    pub fn leave(&mut self, name: &str, ticket: u64) {
        let Some(level) = self.levels.get_mut(name) else {
            return;
        };
        for queue in &mut level.queues {
            if let Some(at) = queue.waiting.iter().position(|w| w.ticket == ticket) {
                queue.waiting.remove(at);
                level.waiting -= 1;
                // A level that nobody waits in lends its seats again.
                self.dispatch();
                return;
            }
        }
    }

    /// Gives free seats to who waits: first levels with seats of their own, then borrowers.
    fn dispatch(&mut self) {
        loop {
            let mut waiting: Vec<(bool, String, u32)> = self
                .levels
                .iter()
                .filter_map(|(name, level)| {
                    let width = level.next_width()?;
                    let own = level.taken.saturating_add(width) <= level.limits.nominal;
                    Some((!own, name.clone(), width))
                })
                .collect();
            waiting.sort();
            let found = waiting.into_iter().find_map(|(_, name, width)| {
                let taken = self.take(&name, width)?;
                Some((name, taken))
            });
            let Some((name, taken)) = found else { return };
            let Some((queue, waiter)) = self.next_waiter(&name) else {
                self.give_back(&name, &taken);
                return;
            };
            let grant = self.grant(&name, &waiter.schema, taken, queue);
            if let Err(grant) = waiter.grant.send(grant) {
                // Gone a moment ago; the seats are free again, and the loop goes on.
                self.give_back(&grant.level, &grant.taken);
                if let Some(count) = self.executing.get_mut(&(grant.level, grant.schema)) {
                    *count = count.saturating_sub(1);
                }
                if let Some(level) = self.levels.get_mut(&name) {
                    level.queues[queue].executing -= 1;
                }
            }
        }
    }

    /// The first of the queue that was served least.
    fn next_waiter(&mut self, name: &str) -> Option<(usize, Waiter)> {
        let level = self.levels.get_mut(name)?;
        let index = level.next_queue()?;
        let waiter = level.queues[index].waiting.pop_front()?;
        level.waiting -= 1;
        Some((index, waiter))
    }

    pub fn waited(&mut self, name: &str, waited: Duration) {
        if let Some(level) = self.levels.get_mut(name) {
            level.waited_seconds += waited.as_secs_f64();
            level.waited_count += 1;
        }
    }

    fn count_dispatch(&mut self, level: &str, schema: &str) {
        let key = (level.to_owned(), schema.to_owned());
        if self.dispatched.len() < MAX_SERIES || self.dispatched.contains_key(&key) {
            *self.dispatched.entry(key).or_default() += 1;
        }
    }

    /// `reason`: `queue-full`, `concurrency-limit`, `time-out`.
    pub fn count_refusal(&mut self, level: &str, schema: &str, reason: &'static str) {
        let key = (level.to_owned(), schema.to_owned(), reason);
        if self.refused.len() < MAX_SERIES || self.refused.contains_key(&key) {
            *self.refused.entry(key).or_default() += 1;
        }
    }

    /// Name, kind, labels and value, sorted by name.
    pub fn metrics(&self) -> Vec<(&'static str, &'static str, String, f64)> {
        let mut all = Vec::new();
        let of =
            |level: &str, schema: &str| format!("flow_schema={schema:?},priority_level={level:?}");
        for ((level, schema), count) in &self.dispatched {
            all.push((
                "apiserver_flowcontrol_dispatched_requests_total",
                "counter",
                of(level, schema),
                *count as f64,
            ));
        }
        for ((level, schema), count) in &self.executing {
            all.push((
                "apiserver_flowcontrol_current_executing_requests",
                "gauge",
                of(level, schema),
                *count as f64,
            ));
        }
        for ((level, schema, reason), count) in &self.refused {
            all.push((
                "apiserver_flowcontrol_rejected_requests_total",
                "counter",
                format!("{},reason={reason:?}", of(level, schema)),
                *count as f64,
            ));
        }
        for (name, level) in &self.levels {
            let labels = format!("priority_level={name:?}");
            let limits = &level.limits;
            let lower = limits.nominal.saturating_sub(limits.lendable);
            let upper = limits
                .nominal
                .saturating_add(limits.borrowing.unwrap_or(super::TOTAL_SEATS));
            for (metric, kind, value) in [
                (
                    "apiserver_flowcontrol_current_executing_seats",
                    "gauge",
                    f64::from(level.executing),
                ),
                (
                    "apiserver_flowcontrol_current_inqueue_requests",
                    "gauge",
                    level.waiting as f64,
                ),
                (
                    "apiserver_flowcontrol_current_limit_seats",
                    "gauge",
                    f64::from(limits.nominal.saturating_sub(level.lent) + level.borrowed),
                ),
                (
                    "apiserver_flowcontrol_lower_limit_seats",
                    "gauge",
                    f64::from(lower),
                ),
                (
                    "apiserver_flowcontrol_nominal_limit_seats",
                    "gauge",
                    f64::from(limits.nominal),
                ),
                (
                    "apiserver_flowcontrol_request_wait_duration_seconds_count",
                    "counter",
                    level.waited_count as f64,
                ),
                (
                    "apiserver_flowcontrol_request_wait_duration_seconds_sum",
                    "counter",
                    level.waited_seconds,
                ),
                (
                    "apiserver_flowcontrol_upper_limit_seats",
                    "gauge",
                    f64::from(upper),
                ),
            ] {
                all.push((metric, kind, labels.clone(), value));
            }
        }
        all.sort_by(|a, b| (a.0, &a.2).cmp(&(b.0, &b.2)));
        all
    }
}

#[cfg(test)]
mod tests;
