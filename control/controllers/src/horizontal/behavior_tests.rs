use serde_json::json;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).expect("a time")
}

fn rules(value: serde_json::Value) -> HorizontalPodAutoscalerBehavior {
    serde_json::from_value(value).expect("a behavior")
}

const WIDE: Bounds = Bounds { min: 1, max: 1000 };

#[track_caller]
fn check(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    memory: &mut Memory,
    bounds: Bounds,
    (current, desired): (i32, i32),
    seconds: i64,
    expected: (i32, &str, &str),
) {
    let decision = decide(behavior, memory, bounds, current, desired, at(seconds));
    assert_eq!(
        (
            decision.replicas,
            decision.able_to_scale.1,
            decision.scaling_limited.1
        ),
        expected
    );
    let limited = expected.2 != "DesiredWithinRange";
    assert_eq!(decision.scaling_limited.0, limited);
}

#[test]
fn bounds_and_the_default_rate() {
    for (current, desired, expected, why) in [
        (7, 10, 10, "DesiredWithinRange"),
        (3, 1, 2, "TooFewReplicas"),
        (8, 20, 15, "TooManyReplicas"),
        (1, 100, 4, "ScaleUpLimit"),
        (5, 100, 10, "ScaleUpLimit"),
    ] {
        let bounds = Bounds { min: 2, max: 15 };
        let expected = (expected, "ReadyForNewScale", why);
        check(
            None,
            &mut Memory::default(),
            bounds,
            (current, desired),
            0,
            expected,
        );
    }
}

#[test]
fn without_rules_it_shrinks_after_five_minutes_of_agreement() {
    let mut memory = Memory::default();
    memory.begin(5, at(0));
    let held = (5, "ScaleDownStabilized", "DesiredWithinRange");
    check(None, &mut memory, WIDE, (5, 2), 100, held);
    check(None, &mut memory, WIDE, (5, 3), 299, held);
    let next = (3, "ScaleDownStabilized", "DesiredWithinRange");
    check(None, &mut memory, WIDE, (5, 2), 301, next);
    let free = (2, "ReadyForNewScale", "DesiredWithinRange");
    check(None, &mut memory, WIDE, (3, 2), 601, free);
}

#[test]
fn windows_hold_both_directions() {
    let behavior = rules(json!({
        "scaleUp": {
            "stabilizationWindowSeconds": 60, "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 900, "periodSeconds": 60}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": 120, "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 60}],
        },
    }));
    let mut memory = Memory::default();
    memory.begin(4, at(0));
    let behavior = Some(&behavior);
    let low = (4, "ScaleUpStabilized", "DesiredWithinRange");
    check(behavior, &mut memory, WIDE, (4, 8), 30, low);
    let up = (8, "ReadyForNewScale", "DesiredWithinRange");
    check(behavior, &mut memory, WIDE, (4, 8), 61, up);
    let high = (8, "ScaleDownStabilized", "DesiredWithinRange");
    check(behavior, &mut memory, WIDE, (8, 3), 120, high);
    let down = (3, "ReadyForNewScale", "DesiredWithinRange");
    check(behavior, &mut memory, WIDE, (8, 3), 182, down);
}

#[test]
fn policies_limit_the_change_of_a_period() {
    let behavior = |select: &str| {
        rules(json!({
            "scaleUp": {
                "stabilizationWindowSeconds": 0, "selectPolicy": select,
                "policies": [
                    {"type": "Pods", "value": 4, "periodSeconds": 15},
                    {"type": "Percent", "value": 100, "periodSeconds": 15},
                ],
            },
            "scaleDown": {
                "stabilizationWindowSeconds": 0, "selectPolicy": select,
                "policies": [
                    {"type": "Pods", "value": 1, "periodSeconds": 60},
                    {"type": "Percent", "value": 50, "periodSeconds": 60},
                ],
            },
        }))
    };
    let (max, min, off) = (behavior("Max"), behavior("Min"), behavior("Disabled"));
    let limited = |replicas, why| (replicas, "ReadyForNewScale", why);
    let fresh = &mut Memory::default;
    for (rules, up, down) in [(&max, 7, 5), (&min, 6, 9), (&off, 3, 10)] {
        let up = limited(up, "ScaleUpLimit");
        check(Some(rules), &mut fresh(), WIDE, (3, 100), 0, up);
        let down = limited(down, "ScaleDownLimit");
        check(Some(rules), &mut fresh(), WIDE, (10, 1), 0, down);
    }
    // What was done in the period counts against it.
    let mut memory = Memory::default();
    memory.changed(3, 7, at(0));
    let spent = limited(7, "ScaleUpLimit");
    check(Some(&max), &mut memory, WIDE, (7, 100), 10, spent);
    let again = limited(14, "ScaleUpLimit");
    check(Some(&max), &mut memory, WIDE, (7, 100), 15, again);
    let mut memory = Memory::default();
    memory.changed(10, 5, at(0));
    let spent = limited(5, "ScaleDownLimit");
    check(Some(&max), &mut memory, WIDE, (5, 1), 30, spent);
    let again = limited(2, "ScaleDownLimit");
    check(Some(&max), &mut memory, WIDE, (5, 1), 60, again);
    // The bounds hold as well.
    let bounds = Bounds { min: 4, max: 6 };
    check(
        Some(&max),
        &mut fresh(),
        bounds,
        (5, 100),
        0,
        limited(6, "TooManyReplicas"),
    );
    check(
        Some(&max),
        &mut fresh(),
        bounds,
        (5, 1),
        0,
        limited(4, "TooFewReplicas"),
    );
}
