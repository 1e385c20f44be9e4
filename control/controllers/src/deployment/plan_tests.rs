use super::*;

const NOW: &str = "2026-01-01T00:10:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn deployment(replicas: i32, image: &str, extra: Value) -> Deployment {
    let mut value = json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "d", "generation": 1 },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "web" } },
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 10,
            "template": { "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [ { "name": "c", "image": image } ] } },
        },
    });
    merge(&mut value, extra);
    serde_json::from_value(value).expect("a deployment")
}

fn merge(base: &mut Value, extra: Value) {
    match (base, extra) {
        (Value::Object(base), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, extra) => *base = extra,
    }
}

fn strategy(surge: Value, unavailable: Value) -> Value {
    json!({ "spec": { "strategy": { "type": "RollingUpdate",
        "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } } } })
}

/// (image, size, available, revision); sized for `desired` with 25 % surge.
fn set(image: &str, size: i32, available: i32, number: i64, desired: i32) -> ReplicaSet {
    let from = deployment(desired, image, json!({}));
    let rollout_limit = desired + resolve(&IntOrString::String("25%".into()), desired, true);
    serde_json::from_value(json!({
        "metadata": { "name": format!("web-{image}"), "namespace": "default", "uid": image, "generation": 1,
            "resourceVersion": "7", "creationTimestamp": format!("2026-01-01T00:00:{number:02}Z"),
            "annotations": { REVISION: number.to_string(), DESIRED: desired.to_string(), MAX: rollout_limit.to_string() } },
        "spec": { "replicas": size, "selector": {}, "template": from.spec.map(|spec| spec.template) },
        "status": { "replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1 },
    }))
    .expect("a set")
}

fn run(deployment: &Deployment, sets: Vec<ReplicaSet>) -> Plan {
    plan(&Input {
        deployment,
        replica_sets: sets,
        has_pods: &|_| false,
        now: now(),
    })
}

/// `create 3`, `v1 4->2`, `delete v1`.
fn steps(plan: &Plan) -> Vec<String> {
    plan.writes
        .iter()
        .filter_map(|write| match write {
            Write::Create(set) => Some(format!("create {}", replicas(set))),
            Write::Update { before, after } if replicas(before) != replicas(after) => {
                let name = set_name(after).trim_start_matches("web-").to_owned();
                Some(format!("{name} {}->{}", replicas(before), replicas(after)))
            }
            Write::Update { .. } => None,
            Write::Delete(set) => Some(format!(
                "delete {}",
                set_name(set).trim_start_matches("web-")
            )),
        })
        .collect()
}

#[test]
fn resolves_percentages() {
    let percent = |text: &str| IntOrString::String(text.into());
    assert_eq!(resolve(&percent("25%"), 10, true), 3);
    assert_eq!(resolve(&percent("25%"), 10, false), 2);
    assert_eq!(resolve(&percent("100%"), 4, true), 4);
    assert_eq!(resolve(&percent("x"), 4, true), 0);
    assert_eq!(resolve(&IntOrString::Int(3), 4, true), 3);
}

#[test]
fn creates_the_first_set_at_full_size() {
    let deployment = deployment(
        3,
        "v1",
        json!({ "metadata": { "annotations": { "team": "a" } } }),
    );
    let plan = run(&deployment, vec![]);
    assert_eq!(steps(&plan), ["create 3"]);
    assert_eq!(plan.revision.as_deref(), Some("1"));
    let Write::Create(set) = &plan.writes[0] else {
        panic!("creates")
    };
    let annotations = set.metadata.annotations.clone().expect("some");
    let get = |key: &str| annotations.get(key).map(String::as_str);
    assert_eq!(
        (get(REVISION), get(DESIRED), get(MAX), get("team")),
        (Some("1"), Some("3"), Some("4"), Some("a"))
    );
    let spec = set.spec.clone().expect("has one");
    let hash = set
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(HASH_LABEL))
        .cloned()
        .expect("hashed");
    assert_eq!(set_name(set), format!("web-{hash}"));
    assert_eq!(
        spec.selector
            .match_labels
            .as_ref()
            .and_then(|labels| labels.get(HASH_LABEL)),
        Some(&hash)
    );
    assert!(same_template(set, &deployment));
    let progressing = get_condition(&plan.status, "Progressing").expect("set");
    assert_eq!(progressing.reason.as_deref(), Some("NewReplicaSetCreated"));
}

#[test]
fn rolling_update_steps() {
    let check = |surge: Value, unavailable: Value, sets: Vec<ReplicaSet>, expected: &[&str]| {
        let deployment = deployment(4, "v2", strategy(surge.clone(), unavailable.clone()));
        assert_eq!(
            steps(&run(&deployment, sets)),
            expected,
            "surge {surge}, unavailable {unavailable}"
        );
    };
    // Starts: the new set takes the surge, the old one gives what may be missing.
    check(
        json!(1),
        json!(0),
        vec![set("v1", 4, 4, 1, 4)],
        &["create 1"],
    );
    check(
        json!(0),
        json!(1),
        vec![set("v1", 4, 4, 1, 4)],
        &["v1 4->3", "create 0"],
    );
    check(
        json!("25%"),
        json!("25%"),
        vec![set("v1", 4, 4, 1, 4)],
        &["v1 4->3", "create 1"],
    );
    check(
        json!(0),
        json!(0),
        vec![set("v1", 4, 4, 1, 4)],
        &["v1 4->3", "create 0"],
    );
    // Goes on as new pods become available.
    check(
        json!(1),
        json!(0),
        vec![set("v1", 4, 4, 1, 4), set("v2", 1, 0, 2, 4)],
        &[],
    );
    check(
        json!(1),
        json!(0),
        vec![set("v1", 4, 4, 1, 4), set("v2", 1, 1, 2, 4)],
        &["v1 4->3"],
    );
    check(
        json!(1),
        json!(0),
        vec![set("v1", 3, 3, 1, 4), set("v2", 1, 1, 2, 4)],
        &["v2 1->2"],
    );
    check(
        json!(1),
        json!(0),
        vec![set("v1", 1, 1, 1, 4), set("v2", 4, 4, 2, 4)],
        &["v1 1->0"],
    );
    // Broken old pods go first and cost no availability.
    check(
        json!(1),
        json!(0),
        vec![set("v1", 4, 0, 1, 4), set("v2", 1, 0, 2, 4)],
        &[],
    );
    check(
        json!(1),
        json!(1),
        vec![set("v1", 4, 2, 1, 4), set("v2", 1, 1, 2, 4)],
        &["v1 4->2"],
    );
    // Nothing left to do.
    check(
        json!(1),
        json!(0),
        vec![set("v1", 0, 0, 1, 4), set("v2", 4, 4, 2, 4)],
        &[],
    );
}

#[test]
fn a_whole_rollout_never_drops_below_the_floor_or_exceeds_the_ceiling() {
    for (replicas_wanted, surge, unavailable) in
        [(4, 1, 0), (4, 0, 1), (10, 3, 2), (1, 1, 0), (7, 7, 7)]
    {
        let deployment = deployment(
            replicas_wanted,
            "v2",
            strategy(json!(surge), json!(unavailable)),
        );
        let mut sets = vec![set(
            "v1",
            replicas_wanted,
            replicas_wanted,
            1,
            replicas_wanted,
        )];
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 100, "the rollout does not end");
            let plan = run(&deployment, sets.clone());
            let changed = !steps(&plan).is_empty();
            for write in plan.writes {
                match write {
                    Write::Create(mut set) => {
                        set.metadata.creation_timestamp =
                            Some(Time("2026-01-01T00:00:30Z".parse().expect("a time")));
                        sets.push(*set);
                    }
                    Write::Update { after, .. } => {
                        let slot = sets
                            .iter_mut()
                            .find(|set| set.metadata.name == after.metadata.name)
                            .expect("known");
                        slot.spec = after.spec;
                        slot.metadata.annotations = after.metadata.annotations;
                    }
                    Write::Delete(_) => {}
                }
            }
            let total: i32 = sets.iter().map(replicas).sum();
            assert!(total <= replicas_wanted + surge, "{total} pods");
            // Shrinking is immediate, and takes available pods; growing becomes available one at a time.
            let mut grew = false;
            for set in &mut sets {
                let size = replicas(set);
                let status = set.status.get_or_insert_default();
                status.replicas = size;
                let available = status.available_replicas.unwrap_or_default().min(size);
                status.available_replicas = Some(available);
            }
            let available_now: i32 = sets.iter().map(available).sum();
            assert!(
                available_now >= replicas_wanted - unavailable,
                "{available_now} available"
            );
            if let Some(set) = sets.iter_mut().find(|set| available(set) < replicas(set)) {
                let status = set.status.get_or_insert_default();
                status.available_replicas = Some(status.available_replicas.unwrap_or_default() + 1);
                grew = true;
            }
            if !changed && !grew {
                break;
            }
        }
        let sizes: Vec<i32> = sets.iter().map(replicas).collect();
        assert_eq!(sizes, [0, replicas_wanted]);
    }
}

#[test]
fn rolling_back_reuses_the_old_set_under_a_new_number() {
    let deployment = deployment(2, "v1", strategy(json!(1), json!(0)));
    let plan = run(
        &deployment,
        vec![set("v1", 0, 0, 1, 2), set("v2", 2, 2, 2, 2)],
    );
    assert_eq!(steps(&plan), ["v1 0->1"]);
    assert_eq!(plan.revision.as_deref(), Some("3"));
    let Write::Update { after, .. } = &plan.writes[0] else {
        panic!("updates")
    };
    assert_eq!(annotation(after, REVISION), Some("3"));
    assert_eq!(annotation(after, REVISION_HISTORY), Some("1"));
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let recreate = json!({ "spec": { "strategy": { "type": "Recreate" } } });
    let deployment = deployment(3, "v2", recreate);
    assert_eq!(
        steps(&run(&deployment, vec![set("v1", 3, 3, 1, 3)])),
        ["v1 3->0"]
    );
    let waiting = plan(&Input {
        deployment: &deployment,
        replica_sets: vec![set("v1", 0, 0, 1, 3)],
        has_pods: &|_| true,
        now: now(),
    });
    assert!(steps(&waiting).is_empty());
    assert_eq!(
        steps(&run(&deployment, vec![set("v1", 0, 0, 1, 3)])),
        ["create 3"]
    );
}

#[test]
fn scaling_is_proportional_in_the_middle_of_a_rollout() {
    // 10 → 20 with sets of 5 and 8 sized for 10 + 3: the limit grows to 25.
    let deployment = deployment(20, "v2", strategy(json!("25%"), json!("25%")));
    let plan = run(
        &deployment,
        vec![set("v1", 5, 5, 1, 10), set("v2", 8, 4, 2, 10)],
    );
    assert_eq!(steps(&plan), ["v1 5->10", "v2 8->15"]);
    // A single active set simply follows.
    let plan = run(
        &deployment,
        vec![set("v1", 0, 0, 1, 10), set("v2", 10, 10, 2, 10)],
    );
    assert_eq!(steps(&plan), ["v2 10->20"]);
}

#[test]
fn paused_deployments_scale_but_do_not_roll() {
    let paused = json!({ "spec": { "paused": true } });
    let deployment = deployment(3, "v2", paused);
    let plan = run(&deployment, vec![set("v1", 2, 2, 1, 3)]);
    assert_eq!(steps(&plan), ["v1 2->3"]);
    let progressing = get_condition(&plan.status, "Progressing").expect("set");
    assert_eq!(
        (progressing.status.as_str(), progressing.reason.as_deref()),
        ("Unknown", Some("DeploymentPaused"))
    );
}

#[test]
fn old_sets_beyond_the_limit_go_when_the_rollout_is_complete() {
    let extra = json!({ "spec": { "revisionHistoryLimit": 1 },
        "status": { "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "observedGeneration": 1 } });
    let deployment = deployment(1, "v4", extra);
    let sets = vec![
        set("v1", 0, 0, 1, 1),
        set("v2", 0, 0, 2, 1),
        set("v3", 0, 0, 3, 1),
        set("v4", 1, 1, 4, 1),
    ];
    assert_eq!(steps(&run(&deployment, sets)), ["delete v1", "delete v2"]);
}

#[test]
fn progress_conditions() {
    let reason = |plan: &Plan| {
        get_condition(&plan.status, "Progressing")
            .and_then(|condition| condition.reason.clone())
            .unwrap_or_default()
    };
    let with_condition = |updated: &str, reason: &str| {
        json!({ "status": { "replicas": 2, "updatedReplicas": 2, "observedGeneration": 1, "conditions": [
            { "type": "Progressing", "status": "True", "reason": reason, "lastUpdateTime": updated } ] } })
    };
    let recent = deployment(
        2,
        "v1",
        with_condition("2026-01-01T00:09:00Z", "ReplicaSetUpdated"),
    );
    let plan = run(&recent, vec![set("v1", 2, 0, 1, 2)]);
    assert_eq!(reason(&plan), "ReplicaSetUpdated");
    assert_eq!(plan.requeue_after, Some(Duration::from_secs(541)));

    let old = deployment(
        2,
        "v1",
        with_condition("2025-12-31T23:59:00Z", "ReplicaSetUpdated"),
    );
    assert_eq!(
        reason(&run(&old, vec![set("v1", 2, 0, 1, 2)])),
        "ProgressDeadlineExceeded"
    );
    let plan = run(&old, vec![set("v1", 2, 2, 1, 2)]);
    assert_eq!(reason(&plan), "NewReplicaSetAvailable");
    assert_eq!(plan.requeue_after, None);
    assert_eq!(
        get_condition(&plan.status, "Available").map(|condition| condition.status.as_str()),
        Some("True")
    );
}
