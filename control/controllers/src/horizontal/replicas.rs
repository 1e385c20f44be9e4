//! From what pods use to how many there should be. Pure.
//!
//! The rules are upstream's (`pkg/controller/podautoscaler/replica_calculator.go`): pods that start are not judged,
//! pods without metrics are judged so that the change is the smaller one, and small differences are left alone.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use skep_scheduler::quantity;

use crate::pods;

/// While a pod is younger its CPU use is that of starting.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// A pod that has not been ready since this long after its start never was.
const INITIAL_READINESS_DELAY: SignedDuration = SignedDuration::from_secs(30);

/// What one pod uses, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub value_milli: i64,
    pub at: Timestamp,
    pub window: SignedDuration,
}

/// By pod name.
pub type Samples = BTreeMap<String, Sample>;

/// How far from the target is near enough, as shares of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    pub up: f64,
    pub down: f64,
}

impl Tolerances {
    fn hold(self, ratio: f64) -> bool {
        (1.0 - self.down) <= ratio && ratio <= (1.0 + self.up)
    }
}

/// An answer with what it was made from, for the status.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proposal {
    pub replicas: i32,
    /// Percent of the request; 0 where no percentage was asked for.
    pub utilization: i32,
    /// Average of a pod, in thousandths; of an object, its value.
    pub average_milli: i64,
}

#[derive(Debug, Default, PartialEq)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn group(pods: &[&Pod], samples: &Samples, is_cpu: bool, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let own = name(pod).to_owned();
        if pods::is_terminating(pod) || pods::phase(pod) == "Failed" {
            groups.ignored.insert(own);
        } else if pods::phase(pod) == "Pending" {
            groups.unready.insert(own);
        } else {
            match samples.get(&own) {
                None => drop(groups.missing.insert(own)),
                Some(sample) if is_cpu && starting(pod, sample, now) => {
                    groups.unready.insert(own);
                }
                Some(_) => groups.ready += 1,
            }
        }
    }
    groups
}

fn starting(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let start = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    let condition = pods::condition(pod, "Ready");
    let (Some(start), Some(condition)) = (start, condition) else {
        return true;
    };
    let since = condition.last_transition_time.as_ref();
    let since = since.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    if start.0 + CPU_INITIALIZATION > now {
        // Young: only what was measured entirely while it was ready counts.
        return condition.status == "False" || sample.at < since + sample.window;
    }
    condition.status == "False" && start.0 + INITIAL_READINESS_DELAY > since
}

/// Usage over requests, with the percentage that people see.
struct Ratio {
    ratio: f64,
    utilization: i32,
    average_milli: i64,
}

fn utilization(
    samples: &Samples,
    requests: &BTreeMap<String, i64>,
    target_percent: i32,
) -> Result<Ratio, String> {
    let (mut used, mut requested, mut count) = (0i64, 0i64, 0i64);
    for (pod, sample) in samples {
        // A pod that went away between the two lists.
        let Some(request) = requests.get(pod) else {
            continue;
        };
        used = used.saturating_add(sample.value_milli);
        requested = requested.saturating_add(*request);
        count += 1;
    }
    if requested == 0 {
        return Err("no metrics returned matched known pods".to_owned());
    }
    let percent = i128::from(used) * 100 / i128::from(requested);
    let percent = i32::try_from(percent).unwrap_or(i32::MAX);
    Ok(Ratio {
        ratio: f64::from(percent) / f64::from(target_percent.max(1)),
        utilization: percent,
        average_milli: used / count,
    })
}

fn average(samples: &Samples, target_milli: i64) -> Ratio {
    let total = samples
        .values()
        .fold(0i64, |sum, s| sum.saturating_add(s.value_milli));
    let average_milli = total / (samples.len() as i64).max(1);
    Ratio {
        ratio: average_milli as f64 / target_milli.max(1) as f64,
        utilization: 0,
        average_milli,
    }
}

fn ceil(value: f64) -> i32 {
    // Saturates; a rate of a broken metric must not wrap around.
    value.ceil() as i32
}

/// The scaled object as it is.
struct Scaled<'a> {
    pods: &'a [&'a Pod],
    /// Pods that just start count otherwise for this resource.
    is_cpu: bool,
    current: i32,
    tolerances: Tolerances,
    now: Timestamp,
}

/// What both kinds of targets share. `ratio` is asked again after pods without metrics were given `fallback`.
fn replicas(
    scaled: &Scaled<'_>,
    mut samples: Samples,
    ratio: impl Fn(&Samples) -> Result<Ratio, String>,
    fallback: impl Fn(&str) -> i64,
) -> Result<Proposal, String> {
    let Scaled {
        pods,
        is_cpu,
        current,
        tolerances,
        now,
    } = *scaled;
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(pods, &samples, is_cpu, now);
    samples.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let seen = ratio(&samples)?;
    let proposal = |replicas| Proposal {
        replicas,
        utilization: seen.utilization,
        average_milli: seen.average_milli,
    };
    let with_unready = !groups.unready.is_empty() && seen.ratio > 1.0;
    if !with_unready && groups.missing.is_empty() {
        return Ok(proposal(if tolerances.hold(seen.ratio) {
            current
        } else {
            ceil(seen.ratio * groups.ready as f64)
        }));
    }
    let mut assume = |pod: &str, value_milli| {
        let sample = Sample {
            value_milli,
            at: now,
            window: SignedDuration::ZERO,
        };
        samples.insert(pod.to_owned(), sample);
    };
    for pod in &groups.missing {
        if seen.ratio < 1.0 {
            assume(pod, fallback(pod));
        } else if seen.ratio > 1.0 {
            assume(pod, 0);
        }
    }
    if with_unready {
        for pod in &groups.unready {
            assume(pod, 0);
        }
    }
    let again = ratio(&samples)?.ratio;
    let turned = (seen.ratio < 1.0 && again > 1.0) || (seen.ratio > 1.0 && again < 1.0);
    if tolerances.hold(again) || turned {
        return Ok(proposal(current));
    }
    let wanted = ceil(again * samples.len() as f64);
    let backwards = (again < 1.0 && wanted > current) || (again > 1.0 && wanted < current);
    Ok(proposal(if backwards { current } else { wanted }))
}

/// The request of each pod, or of one container of each, in thousandths.
fn requests(
    pods: &[&Pod],
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in pods {
        let spec = pod.spec.clone().unwrap_or_default();
        let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
        if container.is_none()
            && let Some(request) = whole.and_then(|requests| requests.get(resource))
        {
            all.insert(name(pod).to_owned(), quantity::milli(request));
            continue;
        }
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let containers: Vec<&Container> = spec.containers.iter().chain(sidecars).collect();
        let mut sum = 0i64;
        for own in containers {
            if container.is_some_and(|wanted| own.name != wanted) {
                continue;
            }
            let requests = own.resources.as_ref().and_then(|r| r.requests.as_ref());
            let request = requests.and_then(|requests| requests.get(resource));
            let request = request.ok_or_else(|| {
                format!(
                    "missing request for {resource} in container {} of Pod {}",
                    own.name,
                    name(pod)
                )
            })?;
            sum = sum.saturating_add(quantity::milli(request));
        }
        all.insert(name(pod).to_owned(), sum);
    }
    Ok(all)
}

/// One resource of all containers or of one, as a share of the request.
pub struct Utilization<'a> {
    pub resource: &'a str,
    pub container: Option<&'a str>,
    pub target_percent: i32,
}

/// # Errors
/// In upstream's words.
pub fn by_utilization(
    of: &Utilization<'_>,
    pods: &[&Pod],
    samples: Samples,
    current: i32,
    tolerances: Tolerances,
    now: Timestamp,
) -> Result<Proposal, String> {
    let requests = requests(pods, of.resource, of.container);
    // Upstream asks for requests only once it knows that there are metrics to compare them with.
    let known = requests.as_ref().map_err(Clone::clone);
    let scaled = Scaled {
        pods,
        is_cpu: of.resource == "cpu",
        current,
        tolerances,
        now,
    };
    replicas(
        &scaled,
        samples,
        |samples| utilization(samples, known.clone()?, of.target_percent),
        |pod| {
            // All of the request, or the target where that is more.
            let request = requests.as_ref().ok().and_then(|all| all.get(pod));
            let percent = i128::from(of.target_percent.max(100));
            let amount = i128::from(*request.unwrap_or(&0)) * percent / 100;
            i64::try_from(amount).unwrap_or(i64::MAX)
        },
    )
}

/// A metric of the pods, whose average has a target.
///
/// # Errors
/// In upstream's words.
pub fn by_average(
    is_cpu: bool,
    target_milli: i64,
    pods: &[&Pod],
    samples: Samples,
    current: i32,
    tolerances: Tolerances,
    now: Timestamp,
) -> Result<Proposal, String> {
    let scaled = Scaled {
        pods,
        is_cpu,
        current,
        tolerances,
        now,
    };
    replicas(
        &scaled,
        samples,
        |samples| Ok(average(samples, target_milli)),
        |_| target_milli,
    )
}

/// A metric of something else: its value has a target, whatever the number of pods.
///
/// # Errors
/// In upstream's words.
pub fn by_value(
    value_milli: i64,
    target_milli: i64,
    pods: &[&Pod],
    current: i32,
    tolerances: Tolerances,
) -> Result<Proposal, String> {
    let ratio = value_milli as f64 / target_milli.max(1) as f64;
    let replicas = if current == 0 {
        ceil(ratio)
    } else if tolerances.hold(ratio) {
        current
    } else {
        if pods.is_empty() {
            return Err(
                "unable to calculate ready pods: no pods returned by selector while calculating replica count"
                    .to_owned(),
            );
        }
        let ready = pods
            .iter()
            .filter(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod))
            .count();
        ceil(ratio * ready as f64)
    };
    Ok(Proposal {
        replicas,
        utilization: 0,
        average_milli: value_milli,
    })
}

/// A metric of something else, of which each pod should have so much.
pub fn by_value_per_pod(
    value_milli: i64,
    target_milli: i64,
    status_replicas: i32,
    tolerances: Tolerances,
) -> Proposal {
    let target = target_milli.max(1) as f64;
    let ratio = value_milli as f64 / (target * f64::from(status_replicas));
    let replicas = if tolerances.hold(ratio) {
        status_replicas
    } else {
        ceil(value_milli as f64 / target)
    };
    Proposal {
        replicas,
        utilization: 0,
        average_milli: (value_milli as f64 / f64::from(status_replicas.max(1))).ceil() as i64,
    }
}

#[cfg(test)]
#[path = "replicas_tests.rs"]
mod tests;
