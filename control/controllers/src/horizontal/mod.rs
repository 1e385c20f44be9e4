//! Scales what a HorizontalPodAutoscaler points at by what its pods use.
//!
//! Watches: HorizontalPodAutoscaler. Reads: the target's `scale`, its pods, the metrics APIs. Writes: `scale`,
//! HorizontalPodAutoscaler status. `replicas` says how many there should be, `behavior` how fast to get there; both are
//! pure. What was recommended and done lately is kept in memory only, as upstream does: a new leader begins with the
//! size that it finds.

pub mod behavior;
pub mod metrics;
pub mod replicas;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            ContainerResourceMetricStatus, CrossVersionObjectReference, ExternalMetricStatus,
            HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
            HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus, MetricTarget,
            MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;
use skep_client::{Action, Informer, ObjectKey, Recorder, writes};
use skep_scheduler::quantity;

use self::{
    behavior::{Bounds, Memory},
    metrics::Metrics,
    replicas::{Proposal, Tolerances, Utilization},
};
use crate::{
    context::{Context, Doing, Error},
    pods,
};

const WORKERS: usize = 5;
/// Upstream's `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;
/// How long the plural of a kind is believed.
const MAPPING_TTL: Duration = Duration::from_secs(60);

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        autoscalers: context.informers.of(),
        metrics: Metrics::new(context.client.clone()),
        events: context.events.from("horizontal-pod-autoscaler"),
        memories: Mutex::default(),
        selected: Mutex::default(),
        kinds: Mutex::default(),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed(&controller.autoscalers, |change| {
        // Our own writes of the status must not make us hurry.
        let spec = |object: &Option<Arc<HorizontalPodAutoscaler>>| {
            object.as_ref().map(|object| object.spec.clone())
        };
        match spec(&change.old) == spec(&change.new) {
            true => Vec::new(),
            false => vec![ObjectKey::of(&change.object().metadata)],
        }
    });
    work.run(
        "horizontalpodautoscaler",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    autoscalers: Informer<HorizontalPodAutoscaler>,
    metrics: Metrics,
    events: Recorder,
    memories: Mutex<HashMap<ObjectKey, Memory>>,
    /// The uids of the pods that each one counted last.
    selected: Mutex<HashMap<ObjectKey, HashSet<String>>>,
    kinds: Mutex<HashMap<GroupVersionKind, (ApiResource, Instant)>>,
    context: Arc<Context>,
}

/// What is in the way, as a condition and an event say it.
struct Trouble {
    condition: &'static str,
    reason: &'static str,
    /// Of the condition.
    message: String,
}

/// One metric, evaluated.
struct Evaluated {
    proposal: Proposal,
    /// `cpu resource utilization (percentage of request)`
    name: String,
    status: MetricStatus,
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(autoscaler) = self.autoscalers.get(&key) else {
            self.memories.lock().remove(&key);
            self.selected.lock().remove(&key);
            return Ok(Action::done());
        };
        let now = self.context.now();
        let old = autoscaler.status.clone().unwrap_or_default();
        let mut status = old.clone();
        let outcome = self.scale(&key, &autoscaler, &mut status, now).await;
        let api = self.context.api::<HorizontalPodAutoscaler>(&key.namespace);
        match writes::merge_status(&api, &autoscaler.metadata, &old, &status).await {
            Ok(_) => {}
            Err(error) if writes::is_not_found(&error) || writes::is_conflict(&error) => {}
            Err(error) => return Err(error).doing("write the status of an autoscaler"),
        }
        if let Err(message) = outcome {
            tracing::debug!(kind = "HorizontalPodAutoscaler", namespace = %key.namespace, name = %key.name, reason = message, "not scaled; will retry");
        }
        Ok(Action::requeue(self.context.config.horizontal_period))
    }

    /// Observes, decides and writes the target's scale. Whatever happens is told in `status`.
    async fn scale(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        status: &mut HorizontalPodAutoscalerStatus,
        now: Timestamp,
    ) -> Result<(), String> {
        let spec = &autoscaler.spec;
        let target = &spec.scale_target_ref;
        let api = match self.api_of(&key.namespace, target).await {
            Ok(api) => api,
            Err(message) => return Err(self.no_scale(autoscaler, status, message, now)),
        };
        let scale = match api.get_scale(&target.name).await {
            Ok(scale) => scale,
            Err(error) => {
                return Err(self.no_scale(autoscaler, status, said(&error), now));
            }
        };
        set(
            status,
            "AbleToScale",
            true,
            "SucceededGetScale",
            "the HPA controller was able to get the target's current scale",
            now,
        );
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let status_replicas = scale.status.as_ref().map_or(0, |s| s.replicas);
        let selector = scale.status.as_ref().and_then(|s| s.selector.clone());
        let bounds = Bounds {
            min: spec.min_replicas.unwrap_or(1),
            max: spec.max_replicas,
        };
        {
            let mut memories = self.memories.lock();
            memories.entry(key.clone()).or_default().begin(current, now);
        }
        status.current_replicas = Some(status_replicas);
        let mut current_metrics = None;
        let (desired, reason) = if current == 0 && bounds.min != 0 {
            set(
                status,
                "ScalingActive",
                false,
                "ScalingDisabled",
                "scaling is disabled since the replica count of the target is zero",
                now,
            );
            (0, String::new())
        } else if current > bounds.max {
            let why = "Current number of replicas above Spec.MaxReplicas";
            (bounds.max, why.to_owned())
        } else if current < bounds.min {
            let why = "Current number of replicas below Spec.MinReplicas";
            (bounds.min, why.to_owned())
        } else {
            let counts = (current, status_replicas);
            let evaluated = self
                .evaluate(key, autoscaler, status, counts, selector.as_deref(), now)
                .await;
            let (wanted, name, statuses) = match evaluated {
                Ok(found) => found,
                Err((message, statuses)) => {
                    status.current_metrics = statuses;
                    status.desired_replicas = current;
                    self.events
                        .warning(autoscaler, "FailedComputeMetricsReplicas", &*message);
                    return Err(message);
                }
            };
            current_metrics = Some(statuses);
            let reason = match wanted.cmp(&current) {
                std::cmp::Ordering::Greater => format!("{name} above target"),
                std::cmp::Ordering::Less => "All metrics below target".to_owned(),
                std::cmp::Ordering::Equal => String::new(),
            };
            let decision = {
                let mut memories = self.memories.lock();
                let memory = memories.entry(key.clone()).or_default();
                let behavior = spec.behavior.as_ref();
                behavior::decide(behavior, memory, bounds, current, wanted, now)
            };
            for (condition, (holds, reason, message)) in [
                ("AbleToScale", decision.able_to_scale),
                ("ScalingLimited", decision.scaling_limited),
            ] {
                set(status, condition, holds, reason, message, now);
            }
            (decision.replicas, reason)
        };
        status.current_metrics = current_metrics;
        if desired == current {
            status.desired_replicas = current;
            return Ok(());
        }
        let patch = json!({
            "metadata": {"resourceVersion": scale.metadata.resource_version},
            "spec": {"replicas": desired},
        });
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        if let Err(error) = api.patch_scale(&target.name, &params, &patch).await {
            let error = said(&error);
            let message = format!("New size: {desired}; reason: {reason}; error: {error}");
            self.events.warning(autoscaler, "FailedRescale", message);
            let message =
                format!("the HPA controller was unable to update the target scale: {error}");
            set(
                status,
                "AbleToScale",
                false,
                "FailedUpdateScale",
                &message,
                now,
            );
            status.desired_replicas = current;
            return Err(message);
        }
        let message =
            format!("the HPA controller was able to update the target scale to {desired}");
        set(
            status,
            "AbleToScale",
            true,
            "SucceededRescale",
            &message,
            now,
        );
        let message = format!("New size: {desired}; reason: {reason}");
        self.events
            .normal(autoscaler, "SuccessfulRescale", &*message);
        tracing::info!(kind = "HorizontalPodAutoscaler", namespace = %key.namespace, name = %key.name, from = current, to = desired, reason, "scaled");
        if let Some(memory) = self.memories.lock().get_mut(key) {
            memory.changed(current, desired, now);
        }
        status.desired_replicas = desired;
        status.last_scale_time = Some(Time(now));
        Ok(())
    }

    fn no_scale(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        status: &mut HorizontalPodAutoscalerStatus,
        error: String,
        now: Timestamp,
    ) -> String {
        self.events
            .warning(autoscaler, "FailedGetScale", error.as_str());
        let message =
            format!("the HPA controller was unable to get the target's current scale: {error}");
        set(
            status,
            "AbleToScale",
            false,
            "FailedGetScale",
            &message,
            now,
        );
        message
    }

    /// Where objects of the referenced kind are.
    async fn api_of(
        &self,
        namespace: &str,
        of: &CrossVersionObjectReference,
    ) -> Result<Api<DynamicObject>, String> {
        let resource = self.resource_of(of).await?;
        Ok(Api::namespaced_with(
            self.context.client.clone(),
            namespace,
            &resource,
        ))
    }

    async fn resource_of(&self, of: &CrossVersionObjectReference) -> Result<ApiResource, String> {
        let api_version = of.api_version.as_deref().unwrap_or("v1");
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = GroupVersionKind::gvk(group, version, &of.kind);
        let known = self.kinds.lock().get(&kind).cloned();
        if let Some((resource, since)) = known
            && since.elapsed() < MAPPING_TTL
        {
            return Ok(resource);
        }
        let found = kube::discovery::pinned_kind(&self.context.client, &kind).await;
        let (resource, _) = found.map_err(|_| {
            format!(
                "unable to determine resource for scale target reference: no matches for kind {:?} in group {group:?}",
                of.kind
            )
        })?;
        let mut kinds = self.kinds.lock();
        kinds.retain(|_, (_, since)| since.elapsed() < MAPPING_TTL);
        kinds.insert(kind, (resource.clone(), Instant::now()));
        Ok(resource)
    }

    /// The largest size that a metric asks for, the metric's name, and what each metric is at.
    async fn evaluate(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        status: &mut HorizontalPodAutoscalerStatus,
        (current, status_replicas): (i32, i32),
        selector: Option<&str>,
        now: Timestamp,
    ) -> Result<(i32, String, Vec<MetricStatus>), (String, Option<Vec<MetricStatus>>)> {
        let (selector, pods) = match self.pods(key, autoscaler, selector).await {
            Ok(found) => found,
            Err((trouble, message)) => {
                set_trouble(status, &trouble, now);
                return Err((message, status.current_metrics.clone()));
            }
        };
        let pods: Vec<&Pod> = pods.iter().collect();
        let tolerances = tolerances(autoscaler);
        let mut best: Option<(i32, String)> = None;
        let mut first: Option<(Trouble, String)> = None;
        let mut statuses = Vec::new();
        let mut invalid = 0;
        let metrics = autoscaler.spec.metrics.clone().unwrap_or_default();
        for metric in &metrics {
            let input = Input {
                namespace: &key.namespace,
                selector: &selector,
                pods: &pods,
                current,
                status_replicas,
                tolerances,
                now,
            };
            match self.metric(autoscaler, metric, &input).await {
                Ok(evaluated) => {
                    let replicas = evaluated.proposal.replicas;
                    if best.as_ref().is_none_or(|(most, _)| replicas > *most) {
                        best = Some((replicas, evaluated.name));
                    }
                    statuses.push(evaluated.status);
                }
                Err(trouble) => {
                    invalid += 1;
                    first.get_or_insert(trouble);
                }
            }
        }
        let proposal = best.as_ref().map_or(0, |(replicas, _)| *replicas);
        // With a metric missing there may be more to do than the others know: nothing is taken away.
        if let Some((trouble, error)) = first
            && (invalid >= metrics.len() || proposal < current)
        {
            set_trouble(status, &trouble, now);
            let message = format!(
                "invalid metrics ({invalid} invalid out of {}), first error is: {error}",
                metrics.len()
            );
            return Err((message, Some(statuses)));
        }
        let (replicas, name) = best.unwrap_or_default();
        let message =
            format!("the HPA was able to successfully calculate a replica count from {name}");
        set(
            status,
            "ScalingActive",
            true,
            "ValidMetricFound",
            &message,
            now,
        );
        Ok((replicas, name, statuses))
    }

    /// The pods that the target's own selector names.
    async fn pods(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        selector: Option<&str>,
    ) -> Result<(String, Vec<Pod>), (Trouble, String)> {
        let trouble = |reason, message: String| Trouble {
            condition: "ScalingActive",
            reason,
            message,
        };
        let Some(selector) = selector.filter(|selector| !selector.is_empty()) else {
            let error = "selector is required";
            self.events.warning(autoscaler, "SelectorRequired", error);
            let message = "the HPA target's scale is missing a selector".to_owned();
            return Err((trouble("InvalidSelector", message), error.to_owned()));
        };
        let api = self.context.api::<Pod>(&key.namespace);
        let listed = api.list(&ListParams::default().labels(selector)).await;
        let pods = match listed {
            Ok(list) => list.items,
            Err(error) => {
                let error = format!(
                    "couldn't convert selector into a corresponding internal selector object: {}",
                    said(&error)
                );
                self.events
                    .warning(autoscaler, "InvalidSelector", error.as_str());
                return Err((trouble("InvalidSelector", error.clone()), error));
            }
        };
        let uids: HashSet<String> = pods.iter().map(|pod| pods::uid(pod).to_owned()).collect();
        let mut selected = self.selected.lock();
        let mut rivals: Vec<String> = selected
            .iter()
            .filter(|(other, of)| {
                other.namespace == key.namespace && *other != key && !of.is_disjoint(&uids)
            })
            .map(|(other, _)| format!("{}/{}", other.namespace, other.name))
            .collect();
        selected.insert(key.clone(), uids);
        drop(selected);
        if !rivals.is_empty() {
            rivals.push(format!("{}/{}", key.namespace, key.name));
            rivals.sort();
            let error = format!(
                "pods by selector {selector} are controlled by multiple HPAs: [{}]",
                rivals.join(" ")
            );
            self.events
                .warning(autoscaler, "AmbiguousSelector", error.as_str());
            return Err((trouble("AmbiguousSelector", error.clone()), error));
        }
        Ok((selector.to_owned(), pods))
    }

    async fn metric(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        metric: &MetricSpec,
        input: &Input<'_>,
    ) -> Result<Evaluated, (Trouble, String)> {
        let (reason, prefix, result) = match metric.type_.as_str() {
            "Resource" => {
                let source = metric.resource.clone().unwrap_or_default();
                let prefix = format!("failed to get {} resource metric value", source.name);
                let of = (source.name.as_str(), None);
                let result = self.resource(of, &source.target, input).await;
                ("FailedGetResourceMetric", prefix, result)
            }
            "ContainerResource" => {
                let source = metric.container_resource.clone().unwrap_or_default();
                let prefix = format!("failed to get {} container metric value", source.name);
                let of = (source.name.as_str(), Some(source.container.as_str()));
                let result = self.resource(of, &source.target, input).await;
                ("FailedGetContainerResourceMetric", prefix, result)
            }
            "Pods" => {
                let prefix = "failed to get pods metric value".to_owned();
                let result = self.pods_metric(metric, input).await;
                ("FailedGetPodsMetric", prefix, result)
            }
            "Object" => {
                let prefix = "failed to get object metric value".to_owned();
                let result = self.object_metric(metric, input).await;
                ("FailedGetObjectMetric", prefix, result)
            }
            "External" => {
                let name = metric.external.as_ref().map(|e| e.metric.name.as_str());
                let name = name.unwrap_or_default();
                let prefix = format!("failed to get {name} external metric value");
                let result = self.external_metric(metric, input).await;
                ("FailedGetExternalMetric", prefix, result)
            }
            other => {
                let error = format!("unknown metric source type {other:?}");
                let prefix = "failed to evaluate a metric".to_owned();
                ("InvalidMetricSourceType", prefix, Err(error))
            }
        };
        result.map_err(|error| {
            self.events.warning(autoscaler, reason, error.as_str());
            let trouble = Trouble {
                condition: "ScalingActive",
                reason,
                message: format!("the HPA was unable to compute the replica count: {error}"),
            };
            (trouble, format!("{prefix}: {error}"))
        })
    }

    async fn resource(
        &self,
        (resource, container): (&str, Option<&str>),
        target: &MetricTarget,
        input: &Input<'_>,
    ) -> Result<Evaluated, String> {
        let failed = |what: &str, error: String| {
            format!(
                "failed to get {resource} {what}: unable to get metrics for resource {resource}: {error}"
            )
        };
        let fetch = self
            .metrics
            .resource(input.namespace, input.selector, resource, container);
        let (proposal, name) = if let Some(average) = &target.average_value {
            let samples = fetch.await.map_err(|error| failed("usage", error))?;
            let proposal = replicas::by_average(
                resource == "cpu",
                quantity::milli(average),
                input.pods,
                samples,
                input.current,
                input.tolerances,
                input.now,
            );
            let proposal =
                proposal.map_err(|error| format!("failed to get {resource} usage: {error}"))?;
            (proposal, format!("{resource} resource"))
        } else {
            let target_percent = target.average_utilization.ok_or(
                "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set",
            )?;
            let samples = fetch.await.map_err(|error| failed("utilization", error))?;
            let of = Utilization {
                resource,
                container,
                target_percent,
            };
            let proposal = replicas::by_utilization(
                &of,
                input.pods,
                samples,
                input.current,
                input.tolerances,
                input.now,
            );
            let proposal = proposal
                .map_err(|error| format!("failed to get {resource} utilization: {error}"))?;
            let name = format!("{resource} resource utilization (percentage of request)");
            (proposal, name)
        };
        let current = MetricValueStatus {
            average_utilization: target
                .average_value
                .is_none()
                .then_some(proposal.utilization),
            average_value: Some(milli(proposal.average_milli)),
            value: None,
        };
        let mut status = MetricStatus::default();
        match container {
            None => {
                status.type_ = "Resource".to_owned();
                status.resource = Some(ResourceMetricStatus {
                    name: resource.to_owned(),
                    current,
                });
            }
            Some(container) => {
                status.type_ = "ContainerResource".to_owned();
                status.container_resource = Some(ContainerResourceMetricStatus {
                    container: container.to_owned(),
                    name: resource.to_owned(),
                    current,
                });
            }
        }
        Ok(Evaluated {
            proposal,
            name,
            status,
        })
    }

    async fn pods_metric(
        &self,
        metric: &MetricSpec,
        input: &Input<'_>,
    ) -> Result<Evaluated, String> {
        let source = metric.pods.clone().unwrap_or_default();
        let id = &source.metric;
        let samples = self
            .metrics
            .pods(input.namespace, input.selector, id)
            .await
            .map_err(|error| format!("unable to get metric {}: {error}", id.name))?;
        let target = source
            .target
            .average_value
            .as_ref()
            .map_or(0, quantity::milli);
        let proposal = replicas::by_average(
            false,
            target,
            input.pods,
            samples,
            input.current,
            input.tolerances,
            input.now,
        )?;
        let status = MetricStatus {
            type_: "Pods".to_owned(),
            pods: Some(PodsMetricStatus {
                metric: id.clone(),
                current: MetricValueStatus {
                    average_value: Some(milli(proposal.average_milli)),
                    ..Default::default()
                },
            }),
            ..Default::default()
        };
        Ok(Evaluated {
            proposal,
            name: format!("pods metric {}", id.name),
            status,
        })
    }

    async fn object_metric(
        &self,
        metric: &MetricSpec,
        input: &Input<'_>,
    ) -> Result<Evaluated, String> {
        let source = metric.object.clone().unwrap_or_default();
        let (id, of) = (&source.metric, &source.described_object);
        let resource = self.resource_of(of).await?;
        let plural = match resource.group.as_str() {
            "" => resource.plural.clone(),
            group => format!("{}.{group}", resource.plural),
        };
        let value = self
            .metrics
            .object(input.namespace, &plural, of, id)
            .await
            .map_err(|error| {
                format!(
                    "unable to get metric {}: {} on {} {}/{error}",
                    id.name, of.kind, input.namespace, of.name
                )
            })?;
        let (proposal, current) = by_target(value, &source.target, input)?;
        let status = MetricStatus {
            type_: "Object".to_owned(),
            object: Some(ObjectMetricStatus {
                metric: id.clone(),
                described_object: of.clone(),
                current,
            }),
            ..Default::default()
        };
        Ok(Evaluated {
            proposal,
            name: format!("{} metric {}", of.kind, id.name),
            status,
        })
    }

    async fn external_metric(
        &self,
        metric: &MetricSpec,
        input: &Input<'_>,
    ) -> Result<Evaluated, String> {
        let source = metric.external.clone().unwrap_or_default();
        let id = &source.metric;
        let value = self
            .metrics
            .external(input.namespace, id)
            .await
            .map_err(|error| {
                format!(
                    "unable to get external metric {}/{}/{}: {error}",
                    input.namespace,
                    id.name,
                    shown(id.selector.as_ref())
                )
            })?;
        let (proposal, current) = by_target(value, &source.target, input)?;
        let status = MetricStatus {
            type_: "External".to_owned(),
            external: Some(ExternalMetricStatus {
                metric: id.clone(),
                current,
            }),
            ..Default::default()
        };
        Ok(Evaluated {
            proposal,
            name: format!(
                "external metric {}({})",
                id.name,
                shown(id.selector.as_ref())
            ),
            status,
        })
    }
}

/// A selector in a sentence.
fn shown(
    selector: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
) -> String {
    selector.map_or("nil".to_owned(), |selector| {
        serde_json::to_string(selector).unwrap_or_default()
    })
}

/// What evaluating a metric needs to know.
struct Input<'a> {
    namespace: &'a str,
    selector: &'a str,
    pods: &'a [&'a Pod],
    current: i32,
    status_replicas: i32,
    tolerances: Tolerances,
    now: Timestamp,
}

/// A metric that is not of the pods has a target value, or one a pod.
fn by_target(
    value_milli: i64,
    target: &MetricTarget,
    input: &Input<'_>,
) -> Result<(Proposal, MetricValueStatus), String> {
    if let Some(average) = &target.average_value {
        let average = quantity::milli(average);
        let replicas = input.status_replicas;
        let proposal = replicas::by_value_per_pod(value_milli, average, replicas, input.tolerances);
        let current = MetricValueStatus {
            average_value: Some(milli(proposal.average_milli)),
            ..Default::default()
        };
        return Ok((proposal, current));
    }
    let wanted = target
        .value
        .as_ref()
        .ok_or("neither a value target nor an average value target was set")?;
    let wanted = quantity::milli(wanted);
    let proposal = replicas::by_value(
        value_milli,
        wanted,
        input.pods,
        input.current,
        input.tolerances,
    )?;
    let current = MetricValueStatus {
        value: Some(milli(value_milli)),
        ..Default::default()
    };
    Ok((proposal, current))
}

fn tolerances(autoscaler: &HorizontalPodAutoscaler) -> Tolerances {
    let behavior = autoscaler.spec.behavior.as_ref();
    let of = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
        let own = rules.and_then(|rules| rules.tolerance.as_ref());
        own.map_or(TOLERANCE, |own| quantity::milli(own) as f64 / 1000.0)
    };
    Tolerances {
        up: of(behavior.and_then(|b| b.scale_up.as_ref())),
        down: of(behavior.and_then(|b| b.scale_down.as_ref())),
    }
}

/// Thousandths, in the shortest form.
fn milli(amount: i64) -> Quantity {
    Quantity(match amount % 1000 {
        0 => (amount / 1000).to_string(),
        _ => format!("{amount}m"),
    })
}

fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

fn set_trouble(status: &mut HorizontalPodAutoscalerStatus, trouble: &Trouble, now: Timestamp) {
    let Trouble {
        condition,
        reason,
        message,
    } = trouble;
    set(status, condition, false, reason, message, now);
}

fn set(
    status: &mut HorizontalPodAutoscalerStatus,
    type_: &str,
    holds: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let value = if holds { "True" } else { "False" };
    let at = match conditions.iter().position(|c| c.type_ == type_) {
        Some(at) => at,
        None => {
            conditions.push(HorizontalPodAutoscalerCondition {
                type_: type_.to_owned(),
                ..Default::default()
            });
            conditions.len() - 1
        }
    };
    let condition = &mut conditions[at];
    if condition.status != value {
        condition.last_transition_time = Some(Time(now));
    }
    condition.status = value.to_owned();
    condition.reason = Some(reason.to_owned());
    condition.message = Some(message.to_owned());
}
