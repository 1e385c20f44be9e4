//! The cases of upstream's `replica_calculator_test.go`.

use serde_json::json;

use super::*;

const NOW: &str = "2026-01-01T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

#[derive(Clone)]
struct Case {
    current: i32,
    expected: i32,
    target: i32,
    utilization: i32,
    levels: Vec<i64>,
    requests: Vec<&'static str>,
    /// Empty: all are ready.
    ready: Vec<bool>,
    /// Empty: all run.
    phases: Vec<&'static str>,
    /// Started so recently that their use is that of starting.
    hot: Vec<bool>,
    terminating: Vec<bool>,
}

impl Case {
    fn new(current: i32, expected: i32, target: i32, utilization: i32) -> Self {
        Self {
            current,
            expected,
            target,
            utilization,
            levels: Vec::new(),
            requests: vec!["1"; current as usize],
            ready: Vec::new(),
            phases: Vec::new(),
            hot: Vec::new(),
            terminating: Vec::new(),
        }
    }

    fn levels(mut self, levels: &[i64]) -> Self {
        self.levels = levels.to_vec();
        self
    }

    fn pods(&self) -> Vec<Pod> {
        let pod = |at: usize| -> Pod {
            let ready = self.ready.get(at).copied().unwrap_or(true);
            let hot = self.hot.get(at).copied().unwrap_or(false);
            let started = now() - SignedDuration::from_secs(if hot { 20 } else { 3600 });
            // A hot pod became ready within the window of its metric.
            let since = now() - SignedDuration::from_secs(if hot { 10 } else { 3590 });
            serde_json::from_value(json!({
                "metadata": {
                    "name": format!("p{at}"),
                    "deletionTimestamp": self.terminating.get(at).filter(|t| **t).map(|_| NOW),
                },
                "spec": {"containers": [
                    {"name": "c", "resources": {"requests": {"cpu": self.requests[at]}}},
                ]},
                "status": {
                    "phase": self.phases.get(at).copied().unwrap_or("Running"),
                    "startTime": started,
                    "conditions": [{
                        "type": "Ready", "status": if ready { "True" } else { "False" },
                        "lastTransitionTime": if ready { since } else { started },
                    }],
                },
            }))
            .expect("a pod")
        };
        (0..self.requests.len()).map(pod).collect()
    }

    fn samples(&self) -> Samples {
        let sample = |(at, level): (usize, &i64)| {
            let sample = Sample {
                value_milli: *level,
                at: now(),
                window: SignedDuration::from_secs(60),
            };
            (format!("p{at}"), sample)
        };
        self.levels.iter().enumerate().map(sample).collect()
    }

    fn run(&self) -> Result<Proposal, String> {
        let pods = self.pods();
        let of = Utilization {
            resource: "cpu",
            container: None,
            target_percent: self.target,
        };
        let pods: Vec<&Pod> = pods.iter().collect();
        by_utilization(&of, &pods, self.samples(), self.current, BOTH, now())
    }
}

const BOTH: Tolerances = Tolerances { up: 0.1, down: 0.1 };

#[track_caller]
fn check(case: Case) {
    let proposal = case.run().expect("a proposal");
    assert_eq!(
        (proposal.replicas, proposal.utilization),
        (case.expected, case.utilization)
    );
}

#[test]
fn scales_up() {
    check(Case::new(3, 5, 30, 50).levels(&[300, 500, 700]));
}

#[test]
fn unready_and_starting_pods_soften_a_scale_up() {
    let mut case = Case::new(3, 4, 30, 60).levels(&[300, 500, 700]);
    case.ready = vec![false, true, true];
    check(case.clone());
    case.ready.clear();
    case.hot = vec![true, false, false];
    check(case);
    let mut none = Case::new(3, 3, 30, 40).levels(&[400, 500, 700]);
    none.ready = vec![true, false, false];
    check(none);
}

#[test]
fn failed_and_deleted_pods_do_not_count() {
    let mut case = Case::new(2, 4, 30, 60).levels(&[500, 700]);
    case.requests = vec!["1"; 4];
    case.ready = vec![true, true, false, false];
    case.phases = vec!["Running", "Running", "Failed", "Failed"];
    check(case.clone());
    case.phases.clear();
    case.ready.clear();
    case.terminating = vec![false, false, true, true];
    check(case);
}

#[test]
fn scales_down() {
    check(Case::new(5, 3, 50, 28).levels(&[100, 300, 500, 250, 250]));
}

#[test]
fn small_differences_are_left_alone() {
    let mut case = Case::new(3, 3, 100, 102).levels(&[1010, 1030, 1020]);
    case.requests = vec!["0.9", "1.0", "1.1"];
    check(case);
}

#[test]
fn missing_metrics_make_the_change_smaller() {
    check(Case::new(4, 3, 100, 24).levels(&[400, 95]));
    check(Case::new(2, 2, 100, 100).levels(&[1000]));
    // Up: the missing one may be idle. Down: it may use all that it asked for.
    check(Case::new(2, 2, 100, 190).levels(&[1900]));
    check(Case::new(2, 2, 100, 60).levels(&[600]));
    let mut unready = Case::new(3, 3, 50, 45).levels(&[100, 450]);
    unready.ready = vec![false, true, true];
    check(unready);
}

#[test]
fn says_why_it_cannot_tell() {
    let mut case = Case::new(1, 0, 50, 0);
    case.requests.clear();
    assert_eq!(
        case.run(),
        Err("no pods returned by selector while calculating replica count".to_owned())
    );
    assert_eq!(
        Case::new(1, 0, 50, 0).run(),
        Err("did not receive metrics for targeted pods (pods might be unready)".to_owned())
    );
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p0"}, "spec": {"containers": [{"name": "c"}]},
        "status": {"phase": "Running"},
    }))
    .expect("a pod");
    let of = Utilization {
        resource: "memory",
        container: None,
        target_percent: 50,
    };
    let samples = Case::new(1, 0, 0, 0).levels(&[5]).samples();
    assert_eq!(
        by_utilization(&of, &[&pod], samples, 1, BOTH, now()),
        Err("missing request for memory in container c of Pod p0".to_owned())
    );
}

#[test]
fn averages_of_pods() {
    // Upstream: custom metric "qps", 10, 20 and 10 of a target of 15.
    let case = Case::new(3, 0, 0, 0).levels(&[20_000, 10_000, 30_000]);
    let pods = case.pods();
    let pods: Vec<&Pod> = pods.iter().collect();
    let run = |levels: &[i64], current| {
        let samples = case.clone().levels(levels).samples();
        by_average(false, 15_000, &pods, samples, current, BOTH, now())
            .map(|p| (p.replicas, p.average_milli))
    };
    assert_eq!(run(&[20_000, 10_000, 30_000], 3), Ok((4, 20_000)));
    assert_eq!(run(&[12_000, 12_000, 12_000], 3), Ok((3, 12_000)));
    assert_eq!(run(&[5_000, 5_000, 5_000], 3), Ok((1, 5_000)));
    // The third says nothing: it counts as on target when others have too little.
    assert_eq!(run(&[5_000, 5_000], 3), Ok((2, 5_000)));
}

#[test]
fn values_of_other_objects() {
    let case = Case::new(3, 0, 0, 0);
    let pods = case.pods();
    let pods: Vec<&Pod> = pods.iter().collect();
    let run = |value, target, current| by_value(value, target, &pods, current, BOTH);
    assert_eq!(run(20_000, 15_000, 3).map(|p| p.replicas), Ok(4));
    assert_eq!(run(16_000, 15_000, 3).map(|p| p.replicas), Ok(3));
    // From nothing.
    assert_eq!(run(45_000, 15_000, 0).map(|p| p.replicas), Ok(3));
    assert!(by_value(20_000, 15_000, &[], 3, BOTH).is_err());
    let each = |value, replicas| by_value_per_pod(value, 50_000, replicas, BOTH).replicas;
    assert_eq!(each(250_000, 3), 5);
    assert_eq!(each(150_000, 3), 3);
    assert_eq!(each(150_000, 0), 3);
}

#[test]
fn tolerances_differ_by_direction() {
    let case = Case::new(3, 0, 0, 0);
    let pods = case.pods();
    let pods: Vec<&Pod> = pods.iter().collect();
    let run = |value, tolerances| by_value(value, 10_000, &pods, 3, tolerances).map(|p| p.replicas);
    let up_only = Tolerances { up: 0.5, down: 0.0 };
    assert_eq!(run(14_000, up_only), Ok(3));
    assert_eq!(run(6_000, up_only), Ok(2));
    assert_eq!(run(6_000, Tolerances { up: 0.0, down: 0.5 }), Ok(3));
}
