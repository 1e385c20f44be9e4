//! Runs a pod of each DaemonSet on every node that it may run on.
//!
//! Watches: DaemonSet, Node, Pod, ControllerRevision. Writes: Pod, ControllerRevision, DaemonSet status.
//! The scheduler binds the pods: each names its node in a required node affinity.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus},
        core::v1::{
            Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
            Pod, PodSpec, PodTemplateSpec, Toleration,
        },
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::core::Selector;
use skep_client::{Action, Expectations, Informer, ObjectKey, Recorder, writes};
use skep_scheduler::terms::{self, NodeMatch};

use crate::{
    context::{Context, Doing, Error},
    deployment::resolve,
    owners,
    pod_writes::PodWrites,
    pods,
    revisions::{self, HASH_LABEL},
};

const WORKERS: usize = 4;
const BURST: usize = 250;
/// A node whose daemon pod failed gets the next one after this, at the earliest.
const FAILED_POD_DELAY: Duration = Duration::from_secs(1);

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        sets: context.informers.of(),
        nodes: context.informers.of(),
        pods: context.informers.of(),
        revisions: context.informers.of(),
        expectations: Expectations::default(),
        events: context.events.from("daemonset-controller"),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.sets);
    let watcher = controller.clone();
    work.feed(&controller.nodes, move |change| {
        let relevant = |node: &Arc<Node>| {
            let spec = node.spec.as_ref();
            (
                node.metadata.labels.clone(),
                spec.and_then(|spec| spec.taints.clone()),
                spec.and_then(|spec| spec.unschedulable),
            )
        };
        if change.old.as_ref().map(relevant) == change.new.as_ref().map(relevant) {
            return Vec::new();
        }
        watcher
            .sets
            .all()
            .iter()
            .map(|set| ObjectKey::of(&set.metadata))
            .collect()
    });
    let watcher = controller.clone();
    work.feed(&controller.pods, move |change| {
        pods::observe::<DaemonSet>(&watcher.expectations, change)
    });
    work.reads(&controller.revisions);
    work.run(
        "daemonset",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    revisions: Informer<ControllerRevision>,
    expectations: Expectations,
    events: Recorder,
    context: Arc<Context>,
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(set) = self.sets.get(&key) else {
            self.expectations.forget(&key);
            return Ok(Action::done());
        };
        let spec = set.spec.clone().unwrap_or_default();
        let Some(selector) = Selector::try_from(spec.selector.clone())
            .ok()
            .filter(|selector| !selector.selects_all())
        else {
            self.events.warning(
                set.as_ref(),
                "SelectingAll",
                "This daemon set is selecting all pods. A non-empty selector is required.",
            );
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
        let hash = revisions::hash(&history.update).to_owned();
        let owned = self
            .context
            .claim(set.as_ref(), Some(&selector), &self.pods)
            .await?;
        let now = self.context.now();
        let input = Input {
            set: &set,
            nodes: &self.nodes.all(),
            pods: &owned,
            hash: &hash,
            now,
        };
        let mut requeue = None;
        let mut failure = None;
        if self.expectations.satisfied(&key) {
            let plan = plan(&input);
            requeue = plan.requeue_after;
            failure = self
                .execute(&key, &set, &plan, &spec.template, &hash)
                .await
                .err();
        }
        let status = status(&input);
        let api = self.context.api::<DaemonSet>(&key.namespace);
        let old = set.status.clone().unwrap_or_default();
        match writes::merge_status(&api, &set.metadata, &old, &status).await {
            Ok(_) => {}
            Err(error) if writes::is_not_found(&error) => return Ok(Action::done()),
            Err(error) => return Err(error).doing("update the status"),
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let label = |pod: &Arc<Pod>| {
            pod.metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(HASH_LABEL))
                .cloned()
        };
        let used: Vec<Option<String>> = owned.iter().map(label).collect();
        let in_use = |revision: &ControllerRevision| {
            used.iter()
                .flatten()
                .any(|label| label == revisions::hash(revision))
        };
        self.context
            .trim_history(&history, spec.revision_history_limit.unwrap_or(10), in_use)
            .await?;
        let active = owned
            .iter()
            .filter(|pod| pods::is_active(pod))
            .map(AsRef::as_ref);
        let available =
            pods::next_available(active, spec.min_ready_seconds.unwrap_or_default(), now);
        Ok(Action::done().sooner(available).sooner(requeue))
    }

    async fn execute(
        &self,
        key: &ObjectKey,
        set: &Arc<DaemonSet>,
        plan: &Plan,
        template: &PodTemplateSpec,
        hash: &str,
    ) -> Result<(), Error> {
        let pod = |index: usize| {
            let mut pod = daemon_pod(set, template, hash, &plan.create_on[index]);
            pod.metadata.generate_name = Some(pods::generate_name(&key.name));
            pod
        };
        let writes = PodWrites {
            context: &self.context,
            events: &self.events,
            expectations: &self.expectations,
            key,
            owner: set.as_ref(),
        };
        writes
            .carry_out(plan.create_on.len(), pod, &plan.delete)
            .await
    }
}

struct Input<'a> {
    set: &'a DaemonSet,
    nodes: &'a [Arc<Node>],
    pods: &'a [Arc<Pod>],
    /// Of the current template.
    hash: &'a str,
    now: Timestamp,
}

#[derive(Default)]
struct Plan {
    create_on: Vec<String>,
    delete: Vec<Arc<Pod>>,
    requeue_after: Option<Duration>,
}

/// The tolerations that every daemon pod has: it stays where others may not.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut tolerations = spec.tolerations.clone().unwrap_or_default();
    let mut add = |key: &str, effect: &str| {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Default::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    };
    add("node.kubernetes.io/not-ready", "NoExecute");
    add("node.kubernetes.io/unreachable", "NoExecute");
    add("node.kubernetes.io/disk-pressure", "NoSchedule");
    add("node.kubernetes.io/memory-pressure", "NoSchedule");
    add("node.kubernetes.io/pid-pressure", "NoSchedule");
    add("node.kubernetes.io/unschedulable", "NoSchedule");
    if spec.host_network.unwrap_or_default() {
        add("node.kubernetes.io/network-unavailable", "NoSchedule");
    }
    tolerations
}

fn daemon_pod(set: &DaemonSet, template: &PodTemplateSpec, hash: &str, node: &str) -> Pod {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod = pods::from_template(template, namespace, owners::reference(set));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.into());
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let term = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".into(),
            operator: "In".into(),
            values: Some(vec![node.into()]),
        }]),
        match_expressions: None,
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let node_affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    // The set's own affinity was applied when the node was chosen, and changes of the node are ours to act on.
    node_affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![term],
    });
    pod
}

/// The node a daemon pod is for, bound or not.
fn node_of(pod: &Pod) -> Option<&str> {
    if let Some(name) = pods::node_name(pod) {
        return Some(name);
    }
    let affinity = pod
        .spec
        .as_ref()?
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?;
    let terms = &affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?
        .node_selector_terms;
    let fields = terms
        .iter()
        .flat_map(|term| term.match_fields.iter().flatten());
    fields
        .into_iter()
        .find(|field| field.key == "metadata.name" && field.operator == "In")
        .and_then(|field| field.values.as_ref()?.first())
        .map(String::as_str)
}

/// (may a pod be started here, may a running one stay).
fn suitability(spec: &PodSpec, node: &Node) -> (bool, bool) {
    let name = node.metadata.name.clone().unwrap_or_default();
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let pinned = spec.node_name.as_ref().filter(|pinned| !pinned.is_empty());
    if pinned.is_some_and(|pinned| *pinned != name)
        || !NodeMatch::of_pod(spec).matches(&name, &labels)
    {
        return (false, false);
    }
    let tolerations = tolerations(spec);
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let tolerated = |taint| {
        tolerations
            .iter()
            .any(|toleration: &Toleration| terms::tolerates(toleration, taint))
    };
    let all = |effects: &[&str]| {
        taints
            .iter()
            .filter(|taint| effects.contains(&taint.effect.as_str()))
            .all(tolerated)
    };
    (all(&["NoSchedule", "NoExecute"]), all(&["NoExecute"]))
}

fn by_node(input: &Input<'_>) -> BTreeMap<String, Vec<Arc<Pod>>> {
    let mut map: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in input.pods {
        if let Some(node) = node_of(pod) {
            map.entry(node.to_owned()).or_default().push(pod.clone());
        }
    }
    map
}

fn is_current(pod: &Pod, hash: &str) -> bool {
    pod.metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(HASH_LABEL))
        .is_some_and(|label| label == hash)
}

/// (maxSurge, maxUnavailable) for this many nodes; at least one of them moves the rollout.
fn fenceposts(set: &DaemonSet, desired: i32) -> (i32, i32) {
    let strategy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = rolling
        .and_then(|rolling| rolling.max_surge.as_ref())
        .map_or(0, |value| resolve(value, desired, true));
    let one = IntOrString::Int(1);
    let unavailable = rolling
        .and_then(|rolling| rolling.max_unavailable.as_ref())
        .unwrap_or(&one);
    let unavailable = resolve(unavailable, desired, true);
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

fn is_rolling(set: &DaemonSet) -> bool {
    let strategy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

fn plan(input: &Input<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut on_nodes = by_node(input);
    let no_spec = PodSpec::default();
    let template = input
        .set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref())
        .unwrap_or(&no_spec);
    let min_ready = input
        .set
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds)
        .unwrap_or_default();
    let is_available = |pod: &Pod| pods::is_available(pod, min_ready, input.now);
    let wanted = input
        .nodes
        .iter()
        .filter(|node| suitability(template, node).0)
        .count();
    let (max_surge, max_unavailable) =
        fenceposts(input.set, i32::try_from(wanted).unwrap_or(i32::MAX));
    // Pods that a rolling update may replace: (node, old pod, it is available).
    let mut outdated: Vec<(Arc<Pod>, bool, bool)> = Vec::new();
    let mut unavailable = 0;
    let mut surging = 0;
    let mut surge_on: Vec<(String, bool)> = Vec::new();
    for node in input.nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        let here = on_nodes.remove(&name).unwrap_or_default();
        let (may_start, may_stay) = suitability(template, node);
        if !may_stay {
            plan.delete
                .extend(here.into_iter().filter(|pod| !pods::is_terminating(pod)));
            continue;
        }
        let mut running: Vec<Arc<Pod>> = Vec::new();
        let mut leaving = 0;
        for pod in here {
            if pods::is_terminating(&pod) {
                leaving += 1;
            } else if pods::is_finished(&pod) {
                plan.requeue_after = Some(FAILED_POD_DELAY);
                plan.delete.push(pod);
                leaving += 1;
            } else {
                running.push(pod);
            }
        }
        // One pod a node; while surging, one of each template.
        running.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let (mut new, mut old): (Vec<_>, Vec<_>) = running
            .into_iter()
            .partition(|pod| is_current(pod, input.hash));
        if max_surge == 0 && !new.is_empty() {
            plan.delete.append(&mut old);
        }
        plan.delete.extend(new.drain(1.min(new.len())..));
        plan.delete.extend(old.drain(1.min(old.len())..));
        let (new, old) = (new.pop(), old.pop());
        let new_available = new.as_deref().is_some_and(is_available);
        let old_available = old.as_deref().is_some_and(is_available);
        if may_start && !new_available && !old_available {
            unavailable += 1;
        }
        match (new, old) {
            (None, None) => {
                if may_start && leaving == 0 {
                    plan.create_on.push(name);
                }
            }
            (Some(_), Some(old)) => {
                surging += 1;
                if new_available {
                    plan.delete.push(old);
                }
            }
            (None, Some(old)) if max_surge > 0 => surge_on.push((name, is_available(&old))),
            (None, Some(old)) => outdated.push((old, old_available, may_start)),
            (Some(_), None) => {}
        }
    }
    // Pods for nodes that are gone: nobody will ever bind the unbound ones.
    for pod in on_nodes.into_values().flatten() {
        if !pods::is_terminating(&pod) && pods::node_name(&pod).is_none() {
            plan.delete.push(pod);
        }
    }
    if is_rolling(input.set) {
        // Those that do not work cost nothing.
        outdated.sort_by_key(|(_, available, _)| *available);
        for (pod, available, counts) in outdated {
            if !available {
                plan.delete.push(pod);
            } else if unavailable < max_unavailable {
                unavailable += i32::from(counts);
                plan.delete.push(pod);
            }
        }
        surge_on.sort_by_key(|(_, available)| *available);
        for (name, available) in surge_on {
            if surging < max_surge || !available {
                surging += 1;
                plan.create_on.push(name);
            }
        }
    }
    plan.create_on.truncate(BURST);
    plan.delete.truncate(BURST);
    plan
}

fn status(input: &Input<'_>) -> DaemonSetStatus {
    let on_nodes = by_node(input);
    let no_spec = PodSpec::default();
    let template = input
        .set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref())
        .unwrap_or(&no_spec);
    let min_ready = input
        .set
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds)
        .unwrap_or_default();
    let mut status = DaemonSetStatus {
        observed_generation: input.set.metadata.generation,
        collision_count: input
            .set
            .status
            .as_ref()
            .and_then(|status| status.collision_count),
        conditions: input
            .set
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone()),
        ..Default::default()
    };
    let (mut updated, mut available) = (0, 0);
    for node in input.nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        let mut here: Vec<&Arc<Pod>> = on_nodes
            .get(&name)
            .into_iter()
            .flatten()
            .filter(|pod| pods::is_active(pod))
            .collect();
        let (may_start, _) = suitability(template, node);
        if !may_start {
            status.number_misscheduled += i32::from(!here.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        if here.is_empty() {
            continue;
        }
        status.current_number_scheduled += 1;
        here.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let ready: Vec<_> = here.iter().filter(|pod| pods::is_ready(pod)).collect();
        status.number_ready += i32::from(!ready.is_empty());
        available += i32::from(
            ready
                .iter()
                .any(|pod| pods::is_available(pod, min_ready, input.now)),
        );
        updated += i32::from(here.iter().any(|pod| is_current(pod, input.hash)));
    }
    let nonzero = |number: i32| (number != 0).then_some(number);
    status.updated_number_scheduled = nonzero(updated);
    status.number_available = nonzero(available);
    status.number_unavailable = nonzero(status.desired_number_scheduled - available);
    status
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, taints: Value) -> Arc<Node> {
        let node = json!({ "metadata": { "name": name, "labels": { "disk": "ssd" } }, "spec": { "taints": taints } });
        Arc::new(serde_json::from_value(node).expect("a node"))
    }

    fn pod(node: &str, hash: &str, ready: bool, phase: &str) -> Arc<Pod> {
        let ready = if ready { "True" } else { "False" };
        let pod = json!({ "metadata": { "name": format!("{node}-{hash}"), "uid": format!("{node}-{hash}"),
                "labels": { HASH_LABEL: hash } },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "phase": phase, "conditions": [ { "type": "Ready", "status": ready } ] } });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn set(spec: Value) -> DaemonSet {
        let mut set = json!({ "metadata": { "name": "d", "uid": "d", "generation": 1 },
            "spec": { "selector": {}, "template": { "spec": { "containers": [] } } } });
        for (key, value) in spec.as_object().into_iter().flatten() {
            set["spec"][key] = value.clone();
        }
        serde_json::from_value(set).expect("a set")
    }

    fn check(
        set: &DaemonSet,
        nodes: &[Arc<Node>],
        pods: &[Arc<Pod>],
        create: &[&str],
        delete: &[&str],
    ) {
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let plan = plan(&Input {
            set,
            nodes,
            pods,
            hash: "new",
            now,
        });
        let deleted: Vec<_> = plan
            .delete
            .iter()
            .filter_map(|pod| pod.metadata.name.clone())
            .collect();
        assert_eq!(
            (plan.create_on, deleted),
            (
                create.iter().map(|name| (*name).to_owned()).collect(),
                delete.iter().map(|name| (*name).to_owned()).collect()
            )
        );
    }

    #[test]
    fn one_pod_on_every_suitable_node() {
        let plain = set(json!({}));
        let nodes = [
            node("a", json!([])),
            node("b", json!([ { "key": "gpu", "effect": "NoSchedule" } ])),
            node(
                "c",
                json!([ { "key": "node.kubernetes.io/unreachable", "effect": "NoExecute" } ]),
            ),
        ];
        check(&plain, &nodes, &[], &["a", "c"], &[]);
        check(
            &plain,
            &nodes,
            &[
                pod("a", "new", true, "Running"),
                pod("c", "new", true, "Failed"),
            ],
            &[],
            &["c-new"],
        );
        // NoSchedule does not evict; NoExecute does.
        check(
            &plain,
            &nodes[1..2],
            &[pod("b", "new", true, "Running")],
            &[],
            &[],
        );
        let evicting = [node(
            "b",
            json!([ { "key": "gpu", "effect": "NoExecute" } ]),
        )];
        check(
            &plain,
            &evicting,
            &[pod("b", "new", true, "Running")],
            &[],
            &["b-new"],
        );
        let picky = set(
            json!({ "template": { "spec": { "containers": [], "nodeSelector": { "disk": "hdd" } } } }),
        );
        check(
            &picky,
            &nodes,
            &[pod("a", "new", true, "Running")],
            &[],
            &["a-new"],
        );
    }

    #[test]
    fn rolling_updates_keep_most_nodes_served() {
        let nodes = ["a", "b", "c"].map(|name| node(name, json!([])));
        let old = |name: &str, ready: bool| pod(name, "old", ready, "Running");
        let one = set(json!({}));
        check(
            &one,
            &nodes,
            &[old("a", true), old("b", true), old("c", true)],
            &[],
            &["a-old"],
        );
        check(&one, &nodes, &[old("b", true), old("c", true)], &["a"], &[]);
        check(
            &one,
            &nodes,
            &[old("a", false), old("b", true), old("c", true)],
            &[],
            &["a-old"],
        );
        check(
            &one,
            &nodes,
            &[
                pod("a", "new", false, "Running"),
                old("b", true),
                old("c", true),
            ],
            &[],
            &[],
        );
        check(
            &one,
            &nodes,
            &[
                pod("a", "new", true, "Running"),
                old("b", true),
                old("c", true),
            ],
            &[],
            &["b-old"],
        );
        let by_hand = set(json!({ "updateStrategy": { "type": "OnDelete" } }));
        check(
            &by_hand,
            &nodes,
            &[old("a", true), old("b", true), old("c", true)],
            &[],
            &[],
        );
        let surge = set(json!({ "updateStrategy": { "type": "RollingUpdate",
            "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } } }));
        check(
            &surge,
            &nodes,
            &[old("a", true), old("b", true), old("c", true)],
            &["a"],
            &[],
        );
        let both = [
            old("a", true),
            pod("a", "new", false, "Running"),
            old("b", true),
            old("c", true),
        ];
        check(&surge, &nodes, &both, &[], &[]);
        let replaced = [
            old("a", true),
            pod("a", "new", true, "Running"),
            old("b", true),
            old("c", true),
        ];
        check(&surge, &nodes, &replaced, &[], &["a-old"]);
    }

    #[test]
    fn counts() {
        let nodes = [
            node("a", json!([])),
            node("b", json!([])),
            node("c", json!([ { "key": "gpu", "effect": "NoSchedule" } ])),
        ];
        let pods = [
            pod("a", "new", true, "Running"),
            pod("b", "old", false, "Running"),
            pod("c", "old", true, "Running"),
        ];
        let set = set(json!({}));
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let status = status(&Input {
            set: &set,
            nodes: &nodes,
            pods: &pods,
            hash: "new",
            now,
        });
        assert_eq!(
            (
                status.desired_number_scheduled,
                status.current_number_scheduled,
                status.number_misscheduled,
                status.number_ready
            ),
            (2, 2, 1, 1)
        );
        assert_eq!(
            (
                status.updated_number_scheduled,
                status.number_available,
                status.number_unavailable
            ),
            (Some(1), Some(1), Some(1))
        );
    }
}
