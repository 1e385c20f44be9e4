//! The rollout, as a pure function. The rules and their order are upstream's deployment controller.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        apps::v1::{
            Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet,
            ReplicaSetSpec,
        },
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString},
};
use kube::core::ObjectMeta;
use serde_json::{Value, json};
use skep_client::writes::merge_difference;

use super::hash;
use crate::{owners, pods};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HASH_LABEL: &str = "pod-template-hash";
const REVISION_HISTORY_BYTES: usize = 2000;
/// Annotations that a ReplicaSet does not take over from its Deployment.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

pub(super) struct Input<'a> {
    pub(super) deployment: &'a Deployment,
    /// Those that the Deployment owns.
    pub(super) replica_sets: Vec<ReplicaSet>,
    /// Whether the ReplicaSet of this uid still has pods that have not ended.
    pub(super) has_pods: &'a dyn Fn(&str) -> bool,
    pub(super) now: Timestamp,
}

#[derive(Debug)]
pub(super) enum Write {
    Create(Box<ReplicaSet>),
    Update {
        before: Box<ReplicaSet>,
        after: Box<ReplicaSet>,
    },
    Delete(Box<ReplicaSet>),
}

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) writes: Vec<Write>,
    pub(super) status: DeploymentStatus,
    /// What the Deployment's revision annotation must become.
    pub(super) revision: Option<String>,
    pub(super) requeue_after: Option<Duration>,
}

pub(super) fn plan(input: &Input<'_>) -> Plan {
    let spec = input.deployment.spec.clone().unwrap_or_default();
    let mut rollout = Rollout {
        deployment: input.deployment,
        spec: &spec,
        status: input.deployment.status.clone().unwrap_or_default(),
        before: input.replica_sets.clone(),
        sets: input.replica_sets.clone(),
        created: None,
        deleted: Vec::new(),
        new: None,
        revision: None,
        now: input.now,
    };
    rollout.sets.sort_by(|a, b| {
        created_at(a)
            .cmp(&created_at(b))
            .then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
    rollout.before = rollout.sets.clone();
    rollout.new = rollout
        .sets
        .iter()
        .position(|set| same_template(set, input.deployment));

    if input.deployment.metadata.deletion_timestamp.is_some() {
        rollout.status = rollout.observed_status();
        return rollout.finish();
    }
    rollout.check_paused();
    let is_paused = spec.paused.unwrap_or_default();
    if is_paused || rollout.is_scaling_event() {
        rollout.sync_revision(false);
        rollout.scale();
        if is_paused {
            rollout.clean_up();
        }
        rollout.status = rollout.observed_status();
        return rollout.finish();
    }
    if spec
        .strategy
        .as_ref()
        .and_then(|strategy| strategy.type_.as_deref())
        == Some("Recreate")
    {
        rollout.recreate(input.has_pods);
    } else {
        rollout.roll();
    }
    rollout.report_progress();
    rollout.finish()
}

struct Rollout<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    status: DeploymentStatus,
    /// As read; same order as `sets`.
    before: Vec<ReplicaSet>,
    /// As they shall be, oldest first; a set to create comes last.
    sets: Vec<ReplicaSet>,
    created: Option<usize>,
    deleted: Vec<usize>,
    /// The set of the current template.
    new: Option<usize>,
    revision: Option<String>,
    now: Timestamp,
}

impl Rollout<'_> {
    fn desired(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    fn is_rolling(&self) -> bool {
        self.spec
            .strategy
            .as_ref()
            .and_then(|strategy| strategy.type_.as_deref())
            != Some("Recreate")
    }

    /// (maxSurge, maxUnavailable) in pods. If both resolve to zero one pod may be missing, or nothing could move.
    fn fenceposts(&self) -> (i32, i32) {
        if !self.is_rolling() {
            return (0, 0);
        }
        let rolling = self
            .spec
            .strategy
            .as_ref()
            .and_then(|strategy| strategy.rolling_update.as_ref());
        let default = IntOrString::String("25%".into());
        let surge = rolling
            .and_then(|rolling| rolling.max_surge.as_ref())
            .unwrap_or(&default);
        let unavailable = rolling
            .and_then(|rolling| rolling.max_unavailable.as_ref())
            .unwrap_or(&default);
        let surge = resolve(surge, self.desired(), true);
        let unavailable = resolve(unavailable, self.desired(), false);
        if surge == 0 && unavailable == 0 {
            (0, 1)
        } else {
            (surge, unavailable)
        }
    }

    fn max_surge(&self) -> i32 {
        self.fenceposts().0
    }

    fn max_unavailable(&self) -> i32 {
        if self.desired() == 0 {
            0
        } else {
            self.fenceposts().1.min(self.desired())
        }
    }

    fn has_deadline(&self) -> bool {
        self.spec
            .progress_deadline_seconds
            .is_some_and(|seconds| seconds != i32::MAX)
    }

    fn old(&self) -> impl Iterator<Item = usize> + use<> {
        let new = self.new;
        (0..self.sets.len()).filter(move |index| Some(*index) != new)
    }

    /// Indices of the old sets with replicas.
    fn active_old(&self) -> Vec<usize> {
        self.old()
            .filter(|index| replicas(&self.sets[*index]) > 0)
            .collect()
    }

    fn check_paused(&mut self) {
        if !self.has_deadline() {
            return;
        }
        let current = get_condition(&self.status, "Progressing");
        if current.is_some_and(|condition| {
            condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
        }) {
            return;
        }
        let was_paused = current
            .is_some_and(|condition| condition.reason.as_deref() == Some("DeploymentPaused"));
        let (reason, message) = match (self.spec.paused.unwrap_or_default(), was_paused) {
            (true, false) => ("DeploymentPaused", "Deployment is paused"),
            (false, true) => ("DeploymentResumed", "Deployment is resumed"),
            _ => return,
        };
        let condition = condition("Progressing", "Unknown", reason, message.into(), self.now);
        set_condition(&mut self.status, condition);
    }

    /// The number of replicas changed while nothing else did: the active sets were sized for another number.
    fn is_scaling_event(&self) -> bool {
        self.sets.iter().filter(|set| replicas(set) > 0).any(|set| {
            annotation(set, DESIRED)
                .and_then(|value| value.parse::<i32>().ok())
                .is_some_and(|value| value != self.desired())
        })
    }

    /// Finds or makes the set of the current template and numbers the revisions.
    fn sync_revision(&mut self, create: bool) {
        let newest_old = self
            .old()
            .map(|index| revision(&self.sets[index]))
            .max()
            .unwrap_or_default();
        let next = newest_old + 1;
        if let Some(index) = self.new {
            self.annotate_new(index, next, true);
            if let Some(spec) = &mut self.sets[index].spec {
                spec.min_ready_seconds = self
                    .spec
                    .min_ready_seconds
                    .filter(|seconds| *seconds != 0)
                    .or(spec.min_ready_seconds.filter(|seconds| *seconds == 0));
            }
            self.take_revision(index);
            if self.has_deadline() && get_condition(&self.status, "Progressing").is_none() {
                let name = set_name(&self.sets[index]);
                let message = format!("Found new replica set \"{name}\"");
                let condition = condition(
                    "Progressing",
                    "True",
                    "FoundNewReplicaSet",
                    message,
                    self.now,
                );
                set_condition(&mut self.status, condition);
            }
            return;
        }
        if !create {
            return;
        }
        let set = self.new_set();
        let name = set_name(&set).to_owned();
        self.sets.push(set);
        let index = self.sets.len() - 1;
        self.new = Some(index);
        self.created = Some(index);
        let size = self.new_set_size();
        set_replicas(&mut self.sets[index], size);
        self.annotate_new(index, next, false);
        self.take_revision(index);
        if self.has_deadline() {
            let message = format!("Created new replica set \"{name}\"");
            let condition = condition(
                "Progressing",
                "True",
                "NewReplicaSetCreated",
                message,
                self.now,
            );
            set_condition(&mut self.status, condition);
        }
    }

    fn new_set(&self) -> ReplicaSet {
        let mut template = self.spec.template.clone();
        let hash = hash::template_hash(&template, self.status.collision_count);
        let meta = template.metadata.get_or_insert_default();
        meta.labels
            .get_or_insert_default()
            .insert(HASH_LABEL.into(), hash.clone());
        let labels = meta.labels.clone();
        let mut selector = self.spec.selector.clone();
        selector
            .match_labels
            .get_or_insert_default()
            .insert(HASH_LABEL.into(), hash.clone());
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!(
                    "{}-{hash}",
                    self.deployment.metadata.name.as_deref().unwrap_or_default()
                )),
                namespace: self.deployment.metadata.namespace.clone(),
                labels,
                owner_references: Some(vec![owners::reference(self.deployment)]),
                ..Default::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        }
    }

    /// Copies annotations, and gives the set its revision number if it is newer than the one it has.
    fn annotate_new(&mut self, index: usize, next: i64, exists: bool) {
        let desired = self.desired();
        let limit = desired + self.max_surge();
        let copied: Vec<(String, String)> = self
            .deployment
            .metadata
            .annotations
            .iter()
            .flatten()
            .filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let set = &mut self.sets[index];
        let old = annotation(set, REVISION).map(str::to_owned);
        let old_number = old
            .as_deref()
            .and_then(|revision| revision.parse::<i64>().ok())
            .unwrap_or_default();
        let annotations = set.metadata.annotations.get_or_insert_default();
        annotations.extend(copied);
        if old_number < next {
            annotations.insert(REVISION.into(), next.to_string());
            if let Some(old) = old.filter(|_| exists) {
                let history = annotations
                    .get(REVISION_HISTORY)
                    .cloned()
                    .unwrap_or_default();
                let mut numbers: Vec<&str> = history
                    .split(',')
                    .filter(|number| !number.is_empty())
                    .collect();
                numbers.push(&old);
                while numbers.join(",").len() > REVISION_HISTORY_BYTES {
                    numbers.remove(0);
                }
                annotations.insert(REVISION_HISTORY.into(), numbers.join(","));
            }
        }
        if !exists {
            annotations.insert(DESIRED.into(), desired.to_string());
            annotations.insert(MAX.into(), limit.to_string());
        }
    }

    fn take_revision(&mut self, index: usize) {
        let wanted = annotation(&self.sets[index], REVISION).map(str::to_owned);
        let current = self
            .deployment
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(REVISION));
        if wanted.as_ref() != current {
            self.revision = wanted;
        }
    }

    /// How large the new set may be now.
    fn new_set_size(&self) -> i32 {
        let Some(new) = self.new.map(|index| replicas(&self.sets[index])) else {
            return 0;
        };
        if !self.is_rolling() {
            return self.desired();
        }
        let total: i32 = self.sets.iter().map(replicas).sum();
        let limit = self.desired() + self.max_surge();
        if total >= limit {
            return new;
        }
        new + (limit - total).min(self.desired() - new)
    }

    fn roll(&mut self) {
        self.sync_revision(true);
        if self.scale_new() || self.scale_old() {
            return;
        }
        if is_complete(self.deployment, self.desired(), &self.status) {
            self.clean_up();
        }
    }

    fn recreate(&mut self, has_pods: &dyn Fn(&str) -> bool) {
        self.sync_revision(false);
        let active = self.active_old();
        if !active.is_empty() {
            for index in active {
                self.resize(index, 0);
            }
            return;
        }
        // `status.replicas` alone would miss pods that are on their way out.
        let old_pods_left = self.old().any(|index| {
            let set = &self.sets[index];
            status_replicas(set) > 0 || has_pods(set.metadata.uid.as_deref().unwrap_or_default())
        });
        if old_pods_left {
            return;
        }
        if self.new.is_none() {
            self.sync_revision(true);
        }
        self.scale_new();
        if is_complete(self.deployment, self.desired(), &self.status) {
            self.clean_up();
        }
    }

    /// Returns whether the new set changed size.
    fn scale_new(&mut self) -> bool {
        let Some(index) = self.new.filter(|index| Some(*index) != self.created) else {
            return false;
        };
        let current = replicas(&self.sets[index]);
        let desired = self.desired();
        if current == desired {
            return false;
        }
        let size = if current > desired {
            desired
        } else {
            self.new_set_size()
        };
        self.resize(index, size)
    }

    /// Returns whether an old set shrank.
    fn scale_old(&mut self) -> bool {
        let old_total: i32 = self.old().map(|index| replicas(&self.sets[index])).sum();
        if old_total == 0 {
            return false;
        }
        let total: i32 = self.sets.iter().map(replicas).sum();
        let min_available = self.desired() - self.max_unavailable();
        let new_unavailable = self
            .new
            .map(|index| replicas(&self.sets[index]) - available(&self.sets[index]))
            .unwrap_or_default();
        let mut budget = total - min_available - new_unavailable;
        if budget <= 0 {
            return false;
        }
        let mut changed = false;
        // Pods that do not work first: removing them costs no availability.
        for index in self.old().collect::<Vec<_>>() {
            let set = &self.sets[index];
            let unhealthy = replicas(set) - available(set);
            if budget <= 0 {
                break;
            }
            if replicas(set) == 0 || unhealthy <= 0 {
                continue;
            }
            let step = budget.min(unhealthy);
            changed |= self.resize(index, replicas(&self.sets[index]) - step);
            budget -= step;
        }
        let available_total: i32 = self.sets.iter().map(available).sum();
        let mut budget = available_total - min_available;
        for index in self.old().collect::<Vec<_>>() {
            if budget <= 0 {
                break;
            }
            let current = replicas(&self.sets[index]);
            if current == 0 {
                continue;
            }
            let step = budget.min(current);
            changed |= self.resize(index, current - step);
            budget -= step;
        }
        changed
    }

    /// Spreads a change of `spec.replicas` over the sets in proportion to their size.
    fn scale(&mut self) {
        let desired = self.desired();
        let active: Vec<usize> = (0..self.sets.len())
            .filter(|index| replicas(&self.sets[*index]) > 0)
            .collect();
        let single = match active.as_slice() {
            [] => self.new.or_else(|| self.old().last()),
            [only] => Some(*only),
            _ => None,
        };
        if let Some(index) = single {
            if replicas(&self.sets[index]) != desired {
                self.resize(index, desired);
            }
            return;
        }
        if self
            .new
            .is_some_and(|index| self.is_saturated(&self.sets[index]))
        {
            for index in self.active_old() {
                self.resize(index, 0);
            }
            return;
        }
        if !self.is_rolling() || active.is_empty() {
            return;
        }
        let total: i32 = active
            .iter()
            .map(|index| replicas(&self.sets[*index]))
            .sum();
        let allowed = if desired > 0 {
            desired + self.max_surge()
        } else {
            0
        };
        let to_add = allowed - total;
        let mut order = active;
        // Largest first; among equals the newest grows first and the oldest shrinks first.
        order.sort_by_key(|index| {
            let age = i64::try_from(*index).unwrap_or(i64::MAX);
            (
                Reverse(replicas(&self.sets[*index])),
                if to_add > 0 { -age } else { age },
            )
        });
        let mut added = 0;
        let mut sizes: Vec<(usize, i32)> = Vec::new();
        for index in order {
            let current = replicas(&self.sets[index]);
            let share = if to_add == 0 {
                0
            } else {
                self.proportion(&self.sets[index], to_add, added)
            };
            added += share;
            sizes.push((index, current + share));
        }
        if let Some((_, largest)) = sizes.first_mut()
            && to_add != 0
        {
            *largest = (*largest + to_add - added).max(0);
        }
        for (index, size) in sizes {
            self.resize(index, size);
        }
    }

    fn is_saturated(&self, set: &ReplicaSet) -> bool {
        let desired = self.desired();
        let sized_for = annotation(set, DESIRED).and_then(|value| value.parse::<i32>().ok());
        replicas(set) == desired && sized_for == Some(desired) && available(set) == desired
    }

    fn proportion(&self, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
        if replicas(set) == 0 || to_add == added {
            return 0;
        }
        let share = if self.desired() == 0 {
            -replicas(set)
        } else {
            let limit = f64::from(self.desired() + self.max_surge());
            let sized_for = annotation(set, MAX)
                .and_then(|value| value.parse::<i32>().ok())
                .filter(|value| *value != 0)
                .or(self.status.replicas)
                .filter(|value| *value != 0)
                .unwrap_or(1);
            let size = f64::from(replicas(set)) * limit / f64::from(sized_for);
            size.round() as i32 - replicas(set)
        };
        let left = to_add - added;
        if to_add > 0 {
            share.min(left)
        } else {
            share.max(left)
        }
    }

    /// Sets the size and what it was computed from. Returns whether the size changed.
    fn resize(&mut self, index: usize, size: i32) -> bool {
        let desired = self.desired();
        let limit = desired + self.max_surge();
        let set = &mut self.sets[index];
        let changed = replicas(set) != size;
        let annotations = set.metadata.annotations.get_or_insert_default();
        annotations.insert(DESIRED.into(), desired.to_string());
        annotations.insert(MAX.into(), limit.to_string());
        set_replicas(set, size);
        changed
    }

    /// Marks old, empty sets beyond the history limit for deletion.
    fn clean_up(&mut self) {
        let Some(limit) = self
            .spec
            .revision_history_limit
            .and_then(|limit| usize::try_from(limit).ok())
        else {
            return;
        };
        let mut old: Vec<usize> = self
            .old()
            .filter(|index| self.sets[*index].metadata.deletion_timestamp.is_none())
            .collect();
        if old.len() <= limit {
            return;
        }
        old.sort_by_key(|index| revision(&self.sets[*index]));
        let surplus = old.len() - limit;
        for index in old.into_iter().take(surplus) {
            let set = &self.sets[index];
            let observed = set
                .status
                .as_ref()
                .and_then(|status| status.observed_generation)
                .unwrap_or_default();
            let settled = set.metadata.generation.unwrap_or_default() <= observed;
            if status_replicas(set) == 0 && replicas(set) == 0 && settled {
                self.deleted.push(index);
            }
        }
    }

    /// Numbers from the sets' status, and the Available condition.
    fn observed_status(&self) -> DeploymentStatus {
        let sum = |count: fn(&ReplicaSet) -> i32| -> i32 { self.sets.iter().map(count).sum() };
        let available_total = sum(available);
        let unavailable = (sum(replicas) - available_total).max(0);
        let nonzero = |number: i32| (number != 0).then_some(number);
        let terminating: Option<i32> = self
            .sets
            .iter()
            .map(|set| {
                set.status
                    .as_ref()
                    .map_or(Some(0), |status| status.terminating_replicas)
            })
            .sum();
        let mut status = DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: nonzero(sum(status_replicas)),
            updated_replicas: nonzero(
                self.new
                    .map(|index| status_replicas(&self.sets[index]))
                    .unwrap_or_default(),
            ),
            ready_replicas: nonzero(sum(ready)),
            available_replicas: nonzero(available_total),
            unavailable_replicas: nonzero(unavailable),
            terminating_replicas: terminating,
            collision_count: self.status.collision_count,
            conditions: self.status.conditions.clone(),
        };
        let enough = available_total >= self.desired() - self.max_unavailable();
        let (value, reason, message) = if enough {
            (
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.",
            )
        } else {
            (
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
            )
        };
        set_condition(
            &mut status,
            condition("Available", value, reason, message.into(), self.now),
        );
        status
    }

    fn report_progress(&mut self) {
        let mut status = self.observed_status();
        if !self.has_deadline() {
            remove_condition(&mut status, "Progressing");
        }
        let current = get_condition(&self.status, "Progressing").cloned();
        let was_complete = status.replicas.unwrap_or_default()
            == status.updated_replicas.unwrap_or_default()
            && current.as_ref().is_some_and(|condition| {
                condition.reason.as_deref() == Some("NewReplicaSetAvailable")
            });
        if self.has_deadline() && !was_complete {
            let subject = match self.new {
                Some(index) => format!("ReplicaSet \"{}\"", set_name(&self.sets[index])),
                None => format!(
                    "Deployment \"{}\"",
                    self.deployment.metadata.name.as_deref().unwrap_or_default()
                ),
            };
            if is_complete(self.deployment, self.desired(), &status) {
                let message = format!("{subject} has successfully progressed.");
                set_condition(
                    &mut status,
                    condition(
                        "Progressing",
                        "True",
                        "NewReplicaSetAvailable",
                        message,
                        self.now,
                    ),
                );
            } else if is_progressing(&self.deployment.status.clone().unwrap_or_default(), &status) {
                let message = format!("{subject} is progressing.");
                let mut progressing = condition(
                    "Progressing",
                    "True",
                    "ReplicaSetUpdated",
                    message,
                    self.now,
                );
                // The update time restarts the deadline even though nothing else in the condition changes.
                if let Some(current) = &current {
                    if current.status == "True" {
                        progressing.last_transition_time = current.last_transition_time.clone();
                    }
                    remove_condition(&mut status, "Progressing");
                }
                set_condition(&mut status, progressing);
            } else if self.timed_out(current.as_ref()) {
                let message = format!("{subject} has timed out progressing.");
                set_condition(
                    &mut status,
                    condition(
                        "Progressing",
                        "False",
                        "ProgressDeadlineExceeded",
                        message,
                        self.now,
                    ),
                );
            }
        }
        let failure = self.sets.iter().find_map(|set| {
            let conditions = set.status.as_ref()?.conditions.as_ref()?;
            conditions
                .iter()
                .find(|condition| condition.type_ == "ReplicaFailure")
                .cloned()
        });
        match failure {
            Some(failure) => {
                let mut condition = condition(
                    "ReplicaFailure",
                    &failure.status,
                    failure.reason.as_deref().unwrap_or_default(),
                    failure.message.unwrap_or_default(),
                    self.now,
                );
                condition.last_transition_time = failure.last_transition_time;
                set_condition(&mut status, condition);
            }
            None => remove_condition(&mut status, "ReplicaFailure"),
        }
        self.status = status;
    }

    fn timed_out(&self, progressing: Option<&DeploymentCondition>) -> bool {
        let (Some(seconds), Some(condition)) = (self.spec.progress_deadline_seconds, progressing)
        else {
            return false;
        };
        match condition.reason.as_deref() {
            Some("NewReplicaSetAvailable" | "DeploymentPaused") => false,
            Some("ProgressDeadlineExceeded") => true,
            _ => condition
                .last_update_time
                .as_ref()
                .is_some_and(|time| deadline(time, seconds) < self.now),
        }
    }

    fn finish(self) -> Plan {
        let requeue_after = get_condition(&self.status, "Progressing").and_then(|condition| {
            let seconds = self
                .spec
                .progress_deadline_seconds
                .filter(|_| self.has_deadline())?;
            let settled = matches!(
                condition.reason.as_deref(),
                Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded" | "DeploymentPaused")
            );
            let time = condition.last_update_time.as_ref().filter(|_| !settled)?;
            // A second later, so that the deadline has certainly passed.
            Some(pods::until(self.now, deadline(time, seconds)) + Duration::from_secs(1))
        });
        let mut writes = Vec::new();
        for (index, after) in self.sets.into_iter().enumerate() {
            if Some(index) == self.created {
                writes.push(Write::Create(Box::new(after)));
            } else if self.deleted.contains(&index) {
                writes.push(Write::Delete(Box::new(after)));
            } else if let Some(before) = self.before.get(index)
                && update_patch(before, &after).is_some()
            {
                writes.push(Write::Update {
                    before: Box::new(before.clone()),
                    after: Box::new(after),
                });
            }
        }
        Plan {
            writes,
            status: self.status,
            revision: self.revision,
            requeue_after,
        }
    }
}

fn deadline(from: &Time, seconds: i32) -> Timestamp {
    from.0
        .saturating_add(SignedDuration::from_secs(i64::from(seconds)))
        .unwrap_or(Timestamp::MAX)
}

/// Rolled out as the spec wants, as far as the status tells.
fn is_complete(deployment: &Deployment, desired: i32, status: &DeploymentStatus) -> bool {
    status.updated_replicas.unwrap_or_default() == desired
        && status.replicas.unwrap_or_default() == desired
        && status.available_replicas.unwrap_or_default() == desired
        && status.observed_generation >= deployment.metadata.generation
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let old_sets = |status: &DeploymentStatus| {
        status.replicas.unwrap_or_default() - status.updated_replicas.unwrap_or_default()
    };
    new.updated_replicas > old.updated_replicas
        || old_sets(new) < old_sets(old)
        || new.ready_replicas > old.ready_replicas
        || new.available_replicas > old.available_replicas
}

/// A number of pods from a number or a percentage.
pub(crate) fn resolve(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent = text
                .strip_suffix('%')
                .and_then(|number| number.parse::<i64>().ok())
                .unwrap_or_default();
            let product = percent * i64::from(total);
            let rounded = if round_up {
                (product + 99).div_euclid(100)
            } else {
                product.div_euclid(100)
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// Whether the set was made from the Deployment's current template.
pub(super) fn same_template(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let wanted = deployment.spec.as_ref().map(|spec| &spec.template);
    match (own, wanted) {
        (Some(own), Some(wanted)) => {
            let (own, wanted) = (without_hash(own), without_hash(wanted));
            own == wanted || canonical(&own) == canonical(&wanted)
        }
        _ => false,
    }
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        meta.creation_timestamp = None;
    }
    template
}

fn canonical(template: &PodTemplateSpec) -> Value {
    canonical_json(serde_json::to_value(template).unwrap_or_default())
}

/// JSON without what means the same as nothing: null and empty lists.
pub(crate) fn canonical_json(mut value: Value) -> Value {
    fn prune(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.values_mut().for_each(prune);
                map.retain(|_, value| {
                    !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty())
                });
            }
            Value::Array(items) => items.iter_mut().for_each(prune),
            _ => {}
        }
    }
    prune(&mut value);
    value
}

/// The merge patch for size, readiness time and annotations, on condition that the set is still the one read.
pub(super) fn update_patch(before: &ReplicaSet, after: &ReplicaSet) -> Option<Value> {
    let relevant = |set: &ReplicaSet| {
        let annotations: BTreeMap<String, String> =
            set.metadata.annotations.clone().unwrap_or_default();
        json!({
            "metadata": { "annotations": annotations },
            "spec": { "replicas": set.spec.as_ref().and_then(|spec| spec.replicas),
                "minReadySeconds": set.spec.as_ref().and_then(|spec| spec.min_ready_seconds) },
        })
    };
    let mut patch = merge_difference(&relevant(before), &relevant(after))?;
    patch["metadata"]["uid"] = json!(before.metadata.uid);
    patch["metadata"]["resourceVersion"] = json!(before.metadata.resource_version);
    Some(patch)
}

fn created_at(set: &ReplicaSet) -> Option<Timestamp> {
    set.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

fn set_name(set: &ReplicaSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

fn annotation<'a>(set: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    set.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

fn revision(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION)
        .and_then(|revision| revision.parse().ok())
        .unwrap_or_default()
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .map_or(0, |spec| spec.replicas.unwrap_or(1))
}

fn set_replicas(set: &mut ReplicaSet, size: i32) {
    set.spec.get_or_insert_default().replicas = Some(size);
}

fn status_replicas(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or_default()
}

fn ready(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.ready_replicas)
        .unwrap_or_default()
}

pub(super) fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    // Whole seconds, as the API stores them: the cache must compare equal to what was written.
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}

fn get_condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

/// Keeps the condition as it is if status and reason stay, and its transition time if the status stays.
pub(super) fn set_condition(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(current) = get_condition(status, &condition.type_) {
        if current.status == condition.status && current.reason == condition.reason {
            return;
        }
        if current.status == condition.status {
            condition.last_transition_time = current.last_transition_time.clone();
        }
    }
    remove_condition(status, &condition.type_);
    status.conditions.get_or_insert_default().push(condition);
}

fn remove_condition(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
