//! Keeps the pods of each StatefulSet, every one with its own name and volumes, in order.
//!
//! Watches: StatefulSet, Pod, PersistentVolumeClaim, ControllerRevision. Writes: Pod, PersistentVolumeClaim,
//! ControllerRevision, StatefulSet status.
//!
//! One step at a time: with `OrderedReady` a round stops at the first pod that is not there or not ready. Unlike upstream
//! (kubernetes#67250) a pod that cannot become ready does not block its own replacement: if its revision is outdated it is
//! deleted, so a rollback from a broken template works.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus},
        core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, Volume},
    },
    apimachinery::pkg::{apis::meta::v1::OwnerReference, util::intstr::IntOrString},
};
use kube::{
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::Selector,
};
use serde_json::json;
use skep_client::{Action, Informer, ObjectKey, Recorder, writes};

use crate::{
    context::{Context, Doing, Error, api_message},
    deployment::resolve,
    owners, pods,
    revisions::{self, HASH_LABEL, History},
};

const WORKERS: usize = 4;
const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        sets: context.informers.of(),
        pods: context.informers.of(),
        claims: context.informers.of(),
        revisions: context.informers.of(),
        events: context.events.from("statefulset-controller"),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.sets);
    work.feed(&controller.pods, owners::controllers_of::<StatefulSet, _>);
    work.reads(&controller.claims);
    work.reads(&controller.revisions);
    work.run(
        "statefulset",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
    events: Recorder,
    context: Arc<Context>,
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(set) = self.sets.get(&key) else {
            return Ok(Action::done());
        };
        let Some(spec) = &set.spec else {
            return Ok(Action::done());
        };
        let Some(selector) = Selector::try_from(spec.selector.clone())
            .ok()
            .filter(|selector| !selector.selects_all())
        else {
            return Ok(Action::done());
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Action::done());
        }
        let collisions = set
            .status
            .as_ref()
            .and_then(|status| status.collision_count);
        let history = self
            .context
            .history(
                set.as_ref(),
                &spec.selector,
                &spec.template,
                collisions,
                &self.revisions,
            )
            .await?;
        // Only pods whose name says that they are members.
        let owned = self
            .context
            .claim(set.as_ref(), Some(&selector), &self.pods)
            .await?;
        let members: BTreeMap<i32, Arc<Pod>> = owned
            .into_iter()
            .filter_map(|pod| {
                ordinal(&key.name, pod.metadata.name.as_deref()?).map(|number| (number, pod))
            })
            .collect();
        let now = self.context.now();
        let current = current_revision(&set, &history);
        let plan = plan(&set, spec, &members, &current, &history.update, now);
        let outcome = self
            .execute(&key, &set, spec, &plan, &current, &history)
            .await;
        let status = status(&set, spec, &members, &current, &history.update, now);
        let api = self.context.api::<StatefulSet>(&key.namespace);
        let old = set.status.clone().unwrap_or_default();
        match writes::merge_status(&api, &set.metadata, &old, &status).await {
            Ok(_) => {}
            Err(error) if writes::is_not_found(&error) => return Ok(Action::done()),
            Err(error) => return Err(error).doing("update the status"),
        }
        outcome?;
        let in_use = |revision: &ControllerRevision| {
            revisions::name(revision) == revisions::name(&current)
                || members
                    .values()
                    .any(|pod| pod_revision(pod) == revisions::name(revision))
        };
        self.context
            .trim_history(&history, spec.revision_history_limit.unwrap_or(10), in_use)
            .await?;
        let min_ready = spec.min_ready_seconds.unwrap_or_default();
        Ok(Action::done().sooner(pods::next_available(
            members.values().map(AsRef::as_ref),
            min_ready,
            now,
        )))
    }

    async fn execute(
        &self,
        key: &ObjectKey,
        set: &Arc<StatefulSet>,
        spec: &StatefulSetSpec,
        plan: &[Step],
        current: &ControllerRevision,
        history: &History,
    ) -> Result<(), Error> {
        let api = self.context.api::<Pod>(&key.namespace);
        for step in plan {
            match step {
                Step::Create { ordinal, updated } => {
                    let revision = if *updated { &history.update } else { current };
                    let pod = member(set, spec, *ordinal, revision);
                    self.ensure_claims(key, set, spec, *ordinal).await?;
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    match api.create(&PostParams::default(), &pod).await {
                        Ok(_) => self.events.normal(
                            set.as_ref(),
                            "SuccessfulCreate",
                            format!("create Pod {name} in StatefulSet {} successful", key.name),
                        ),
                        Err(error) if writes::is_namespace_terminating(&error) => return Ok(()),
                        Err(error) => {
                            let message = format!(
                                "create Pod {name} in StatefulSet {} failed error: {}",
                                key.name,
                                api_message(&error)
                            );
                            self.events.warning(set.as_ref(), "FailedCreate", message);
                            return Err(error).doing("create a pod");
                        }
                    }
                }
                Step::Delete {
                    ordinal,
                    uid,
                    scales_down,
                } => {
                    let name = pod_name(&key.name, *ordinal);
                    if *scales_down {
                        self.release_claims(key, spec, *ordinal, uid).await?;
                    }
                    match writes::delete(&api, &name, Some(uid.clone()), DeleteParams::default())
                        .await
                    {
                        Ok(()) => self.events.normal(
                            set.as_ref(),
                            "SuccessfulDelete",
                            format!("delete Pod {name} in StatefulSet {} successful", key.name),
                        ),
                        Err(error) => return Err(error).doing("delete a pod"),
                    }
                }
            }
        }
        Ok(())
    }

    /// The pod's volumes exist before it does.
    async fn ensure_claims(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        spec: &StatefulSetSpec,
        ordinal: i32,
    ) -> Result<(), Error> {
        let api = self.context.api::<PersistentVolumeClaim>(&key.namespace);
        for template in spec.volume_claim_templates.iter().flatten() {
            let template_name = template.metadata.name.as_deref().unwrap_or_default();
            let name = claim_name(template_name, &key.name, ordinal);
            if let Some(claim) = self.claims.get(&ObjectKey::new(&key.namespace, &name)) {
                if claim.metadata.deletion_timestamp.is_some() {
                    return Err(Error::Invalid(format!("the claim {name} is being deleted")));
                }
                continue;
            }
            let mut claim = template.clone();
            claim.metadata.name = Some(name);
            claim.metadata.namespace = Some(key.namespace.clone());
            let labels = claim.metadata.labels.get_or_insert_default();
            labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
            claim.status = None;
            let policy = spec.persistent_volume_claim_retention_policy.as_ref();
            if policy.and_then(|policy| policy.when_deleted.as_deref()) == Some("Delete") {
                let owner = OwnerReference {
                    controller: None,
                    block_owner_deletion: None,
                    ..owners::reference(set)
                };
                claim.metadata.owner_references = Some(vec![owner]);
            }
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {}
                Err(error) if writes::is_already_exists(&error) => {}
                Err(error) => return Err(error).doing("create a volume claim"),
            }
        }
        Ok(())
    }

    /// `whenScaled: Delete`: the claims go with the pod that is going.
    async fn release_claims(
        &self,
        key: &ObjectKey,
        spec: &StatefulSetSpec,
        ordinal: i32,
        uid: &str,
    ) -> Result<(), Error> {
        let policy = spec.persistent_volume_claim_retention_policy.as_ref();
        if policy.and_then(|policy| policy.when_scaled.as_deref()) != Some("Delete") {
            return Ok(());
        }
        let api = self.context.api::<PersistentVolumeClaim>(&key.namespace);
        for template in spec.volume_claim_templates.iter().flatten() {
            let template_name = template.metadata.name.as_deref().unwrap_or_default();
            let name = claim_name(template_name, &key.name, ordinal);
            let owner = json!({ "apiVersion": "v1", "kind": "Pod", "name": pod_name(&key.name, ordinal), "uid": uid });
            let patch = json!({ "metadata": { "ownerReferences": [owner] } });
            match api
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await
            {
                Ok(_) => {}
                Err(error) if writes::is_not_found(&error) => {}
                Err(error) => return Err(error).doing("hand a claim to its pod"),
            }
        }
        Ok(())
    }
}

fn pod_name(set: &str, ordinal: i32) -> String {
    format!("{set}-{ordinal}")
}

fn claim_name(template: &str, set: &str, ordinal: i32) -> String {
    format!("{template}-{set}-{ordinal}")
}

fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let number = pod.strip_prefix(set)?.strip_prefix('-')?;
    number
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| number.parse().ok())?
}

fn pod_revision(pod: &Pod) -> &str {
    let label = pod
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(HASH_LABEL));
    label.map(String::as_str).unwrap_or_default()
}

/// The revision that pods outside the update have: the status's, if it still exists.
fn current_revision(set: &StatefulSet, history: &History) -> ControllerRevision {
    let name = set
        .status
        .as_ref()
        .and_then(|status| status.current_revision.as_deref());
    let found = history
        .all
        .iter()
        .find(|revision| Some(revisions::name(revision)) == name);
    found.unwrap_or(&history.update).clone()
}

fn member(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    ordinal: i32,
    revision: &ControllerRevision,
) -> Pod {
    let set_name = set.metadata.name.as_deref().unwrap_or_default();
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let template = revisions::template(revision).unwrap_or_else(|| spec.template.clone());
    let mut pod = pods::from_template(&template, namespace, owners::reference(set));
    let name = pod_name(set_name, ordinal);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME_LABEL.into(), name.clone());
    labels.insert(POD_INDEX_LABEL.into(), ordinal.to_string());
    labels.insert(HASH_LABEL.into(), revisions::name(revision).to_owned());
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(name.clone());
    pod_spec.subdomain = spec.service_name.clone();
    let templates: Vec<&str> = spec
        .volume_claim_templates
        .iter()
        .flatten()
        .filter_map(|template| template.metadata.name.as_deref())
        .collect();
    let volumes = pod_spec.volumes.get_or_insert_default();
    volumes.retain(|volume| !templates.contains(&volume.name.as_str()));
    volumes.extend(templates.iter().map(|template| Volume {
        name: (*template).to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(template, set_name, ordinal),
            read_only: None,
        }),
        ..Default::default()
    }));
    pod.metadata.name = Some(name);
    pod
}

#[derive(Debug, PartialEq)]
enum Step {
    Create {
        ordinal: i32,
        updated: bool,
    },
    Delete {
        ordinal: i32,
        uid: String,
        scales_down: bool,
    },
}

fn start_ordinal(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals
        .as_ref()
        .and_then(|ordinals| ordinals.start)
        .unwrap_or_default()
}

fn partition(spec: &StatefulSetSpec) -> i32 {
    let rolling = spec
        .update_strategy
        .as_ref()
        .and_then(|strategy| strategy.rolling_update.as_ref());
    rolling
        .and_then(|rolling| rolling.partition)
        .unwrap_or_default()
}

fn plan(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    members: &BTreeMap<i32, Arc<Pod>>,
    current: &ControllerRevision,
    update: &ControllerRevision,
    now: Timestamp,
) -> Vec<Step> {
    let ordered = spec.pod_management_policy.as_deref() != Some("Parallel");
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    let rolling = spec
        .update_strategy
        .as_ref()
        .and_then(|strategy| strategy.type_.as_deref())
        != Some("OnDelete");
    let start = start_ordinal(spec);
    let end = start.saturating_add(spec.replicas.unwrap_or(1));
    let (current, update) = (revisions::name(current), revisions::name(update));
    let current_replicas = set
        .status
        .as_ref()
        .and_then(|status| status.current_replicas)
        .unwrap_or_default();
    // Which template a pod that is missing gets: below the partition, and while others still have it, the current one.
    let gets_update = |ordinal: i32| {
        if current == update {
            return true;
        }
        if !rolling {
            return false;
        }
        match partition(spec) {
            0 => ordinal >= start + current_replicas,
            partition => ordinal >= start + partition,
        }
    };
    let is_target = |ordinal: i32| rolling && ordinal >= start + partition(spec);
    let delete = |ordinal: i32, pod: &Pod, scales_down: bool| Step::Delete {
        ordinal,
        uid: pods::uid(pod).to_owned(),
        scales_down,
    };
    let available = |pod: &Pod| {
        !pods::is_terminating(pod)
            && pods::phase(pod) == "Running"
            && pods::is_available(pod, min_ready, now)
    };
    let mut steps = Vec::new();
    for ordinal in start..end {
        let Some(pod) = members.get(&ordinal) else {
            steps.push(Step::Create {
                ordinal,
                updated: gets_update(ordinal),
            });
            if ordered {
                return steps;
            }
            continue;
        };
        if pods::is_finished(pod) && !pods::is_terminating(pod) {
            steps.push(delete(ordinal, pod, false));
            if ordered {
                return steps;
            }
            continue;
        }
        if ordered && pods::is_terminating(pod) {
            return steps;
        }
        if ordered && !available(pod) {
            if is_target(ordinal) && pod_revision(pod) != update && !pods::is_ready(pod) {
                steps.push(delete(ordinal, pod, false));
            }
            return steps;
        }
    }
    // Surplus goes from the top; in order, the next only when the last is gone and all others are well.
    let condemned = members
        .iter()
        .rev()
        .filter(|(ordinal, _)| **ordinal < start || **ordinal >= end);
    let mut scaling_down = false;
    for (ordinal, pod) in condemned {
        scaling_down = true;
        if !pods::is_terminating(pod) {
            steps.push(delete(*ordinal, pod, true));
        }
        if ordered {
            return steps;
        }
    }
    if scaling_down || !rolling || steps.iter().any(|step| matches!(step, Step::Delete { .. })) {
        return steps;
    }
    // The update goes from the top too, as far as unavailability allows.
    let max_unavailable = spec
        .update_strategy
        .as_ref()
        .and_then(|strategy| strategy.rolling_update.as_ref())
        .and_then(|rolling| rolling.max_unavailable.as_ref())
        .unwrap_or(&IntOrString::Int(1));
    let budget = resolve(max_unavailable, spec.replicas.unwrap_or(1), true).max(1);
    let mut unavailable = (start..end)
        .filter(|ordinal| members.get(ordinal).is_none_or(|pod| !available(pod)))
        .count();
    for ordinal in (start..end).rev().filter(|ordinal| is_target(*ordinal)) {
        let Some(pod) = members.get(&ordinal) else {
            continue;
        };
        if pod_revision(pod) == update || pods::is_terminating(pod) {
            continue;
        }
        let is_unavailable = !available(pod);
        if !is_unavailable {
            if i32::try_from(unavailable).unwrap_or(i32::MAX) >= budget {
                break;
            }
            unavailable += 1;
        }
        steps.push(delete(ordinal, pod, false));
    }
    steps
}

fn status(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    members: &BTreeMap<i32, Arc<Pod>>,
    current: &ControllerRevision,
    update: &ControllerRevision,
    now: Timestamp,
) -> StatefulSetStatus {
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    let (current, update) = (revisions::name(current), revisions::name(update));
    let alive = || members.values().filter(|pod| !pods::is_finished(pod));
    let count = |test: &dyn Fn(&Pod) -> bool| -> i32 {
        i32::try_from(alive().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let running = |pod: &Pod| pods::phase(pod) == "Running";
    let replicas = count(&|_| true);
    let ready = count(&|pod| running(pod) && pods::is_ready(pod));
    let of =
        |revision: &str| count(&|pod| !pods::is_terminating(pod) && pod_revision(pod) == revision);
    let mut current_replicas = of(current);
    let updated_replicas = of(update);
    let mut current_name = current.to_owned();
    let wanted = spec.replicas.unwrap_or(1);
    let rolling = spec
        .update_strategy
        .as_ref()
        .and_then(|strategy| strategy.type_.as_deref())
        != Some("OnDelete");
    if rolling && updated_replicas == replicas && ready == replicas && replicas == wanted {
        // The update is through.
        current_name = update.to_owned();
        current_replicas = updated_replicas;
    }
    let nonzero = |number: i32| (number != 0).then_some(number);
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas,
        ready_replicas: nonzero(ready),
        available_replicas: Some(count(&|pod| {
            running(pod) && !pods::is_terminating(pod) && pods::is_available(pod, min_ready, now)
        })),
        current_replicas: nonzero(current_replicas),
        updated_replicas: nonzero(updated_replicas),
        current_revision: Some(current_name),
        update_revision: Some(update.to_owned()),
        collision_count: Some(
            set.status
                .as_ref()
                .and_then(|status| status.collision_count)
                .unwrap_or_default(),
        ),
        conditions: set
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn set(spec: Value) -> StatefulSet {
        let mut set = json!({ "metadata": { "name": "db", "namespace": "default", "uid": "s" },
            "spec": { "replicas": 3, "serviceName": "db", "selector": {}, "template": { "spec": { "containers": [] } } } });
        for (key, value) in spec.as_object().into_iter().flatten() {
            if key == "status" {
                set["status"] = value.clone();
            } else {
                set["spec"][key] = value.clone();
            }
        }
        serde_json::from_value(set).expect("a set")
    }

    fn revision(name: &str) -> ControllerRevision {
        serde_json::from_value(json!({ "metadata": { "name": name }, "revision": 1 }))
            .expect("a revision")
    }

    /// `r` ready, `u` unready, `f` failed, `t` terminating; then the revision.
    fn pods(states: &[(i32, &str, &str)]) -> BTreeMap<i32, Arc<Pod>> {
        states
            .iter()
            .map(|(ordinal, state, revision)| {
                let mut pod = json!({ "metadata": { "name": pod_name("db", *ordinal), "uid": ordinal.to_string(),
                        "labels": { HASH_LABEL: revision } },
                    "status": { "phase": if *state == "f" { "Failed" } else { "Running" },
                        "conditions": [ { "type": "Ready", "status": if *state == "u" { "False" } else { "True" } } ] } });
                if *state == "t" {
                    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                }
                (*ordinal, Arc::new(serde_json::from_value(pod).expect("a pod")))
            })
            .collect()
    }

    fn check(set: &StatefulSet, states: &[(i32, &str, &str)], expected: &[&str]) {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let spec = set.spec.clone().expect("has one");
        let steps = plan(
            set,
            &spec,
            &pods(states),
            &revision("old"),
            &revision("new"),
            now,
        );
        let shown: Vec<String> = steps
            .iter()
            .map(|step| match step {
                Step::Create { ordinal, updated } => {
                    format!("create {ordinal} {}", if *updated { "new" } else { "old" })
                }
                Step::Delete { ordinal, .. } => format!("delete {ordinal}"),
            })
            .collect();
        assert_eq!(shown, expected, "{states:?}");
    }

    #[test]
    fn in_order() {
        let set = set(json!({}));
        check(&set, &[], &["create 0 new"]);
        check(&set, &[(0, "u", "new")], &[]);
        check(&set, &[(0, "r", "new")], &["create 1 new"]);
        check(&set, &[(0, "r", "new"), (1, "f", "new")], &["delete 1"]);
        check(&set, &[(0, "t", "new"), (1, "r", "new")], &[]);
        let full = [(0, "r", "new"), (1, "r", "new"), (2, "r", "new")];
        check(&set, &full, &[]);
        let more = [
            (0, "r", "new"),
            (1, "r", "new"),
            (2, "r", "new"),
            (3, "r", "new"),
            (4, "r", "new"),
        ];
        check(&set, &more, &["delete 4"]);
        check(
            &set,
            &[
                (0, "r", "new"),
                (1, "u", "new"),
                (2, "r", "new"),
                (3, "r", "new"),
            ],
            &[],
        );
    }

    #[test]
    fn in_parallel() {
        let set = set(json!({ "podManagementPolicy": "Parallel" }));
        check(&set, &[], &["create 0 new", "create 1 new", "create 2 new"]);
        check(
            &set,
            &[(1, "u", "new"), (4, "r", "new"), (5, "r", "new")],
            &["create 0 new", "create 2 new", "delete 5", "delete 4"],
        );
    }

    #[test]
    fn updates_from_the_top() {
        let updating = json!({ "status": { "replicas": 3, "currentReplicas": 3 } });
        let set = set(updating);
        check(
            &set,
            &[(0, "r", "old"), (1, "r", "old"), (2, "r", "old")],
            &["delete 2"],
        );
        check(
            &set,
            &[(0, "r", "old"), (1, "r", "old"), (2, "u", "new")],
            &[],
        );
        check(
            &set,
            &[(0, "r", "old"), (1, "r", "old"), (2, "r", "new")],
            &["delete 1"],
        );
        // A broken pod of an old revision does not block the repair.
        check(
            &set,
            &[(0, "r", "old"), (1, "r", "old"), (2, "u", "older")],
            &["delete 2"],
        );
        check(
            &set,
            &[(0, "u", "old"), (1, "r", "old"), (2, "r", "old")],
            &["delete 0"],
        );
        let partitioned = super::tests::set(json!({ "updateStrategy": { "type": "RollingUpdate",
            "rollingUpdate": { "partition": 2 } }, "status": { "replicas": 3, "currentReplicas": 2 } }));
        check(
            &partitioned,
            &[(0, "r", "old"), (1, "r", "old"), (2, "r", "new")],
            &[],
        );
        check(
            &partitioned,
            &[(0, "r", "old"), (2, "r", "new")],
            &["create 1 old"],
        );
        let by_hand = super::tests::set(json!({ "updateStrategy": { "type": "OnDelete" } }));
        check(
            &by_hand,
            &[(0, "r", "old"), (1, "r", "old"), (2, "r", "old")],
            &[],
        );
    }

    #[test]
    fn members_have_identity() {
        let set = set(
            json!({ "volumeClaimTemplates": [ { "metadata": { "name": "data" }, "spec": {} } ] }),
        );
        let spec = set.spec.clone().expect("has one");
        let pod = member(&set, &spec, 2, &revision("db-abc"));
        let pod_spec = pod.spec.expect("has one");
        assert_eq!(pod.metadata.name.as_deref(), Some("db-2"));
        assert_eq!(
            (pod_spec.hostname.as_deref(), pod_spec.subdomain.as_deref()),
            (Some("db-2"), Some("db"))
        );
        let claim = pod_spec
            .volumes
            .and_then(|volumes| volumes[0].persistent_volume_claim.clone());
        assert_eq!(
            claim.map(|claim| claim.claim_name).as_deref(),
            Some("data-db-2")
        );
        assert_eq!(
            pod.metadata
                .labels
                .and_then(|labels| labels.get(HASH_LABEL).cloned())
                .as_deref(),
            Some("db-abc")
        );
        assert_eq!(
            (
                ordinal("db", "db-12"),
                ordinal("db", "db-x"),
                ordinal("db", "dbx-1"),
                ordinal("db", "db-+1")
            ),
            (Some(12), None, None, None)
        );
    }

    #[test]
    fn an_update_that_is_through_becomes_current() {
        let set = set(json!({}));
        let spec = set.spec.clone().expect("has one");
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let half = pods(&[(0, "r", "old"), (1, "r", "new"), (2, "r", "new")]);
        let report = status(&set, &spec, &half, &revision("old"), &revision("new"), now);
        assert_eq!(
            (
                report.current_revision.as_deref(),
                report.current_replicas,
                report.updated_replicas
            ),
            (Some("old"), Some(1), Some(2))
        );
        let all = pods(&[(0, "r", "new"), (1, "r", "new"), (2, "r", "new")]);
        let report = status(&set, &spec, &all, &revision("old"), &revision("new"), now);
        assert_eq!(
            (report.current_revision.as_deref(), report.current_replicas),
            (Some("new"), Some(3))
        );
    }
}
