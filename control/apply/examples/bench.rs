//! What the parts of a write cost: `cargo run --release -p skep-apply --example bench`.

use std::{hint::black_box, sync::LazyLock, time::Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use skep_apply::{
    managed::{self, Writer},
    merge_patch, strategic_merge,
};
use skep_schema::{TypeRef, builtin, complete, conform, decode_json, protobuf};

fn main() {
    let ty = builtin("", "v1", "Pod").expect("a built-in kind");
    let sent = pod();
    let bytes = serde_json::to_vec(&sent).expect("encodes");
    let decoded = decode_json(&bytes, &ty).expect("decodes").value;
    let mut live = decoded.clone();
    managed::update(None, &mut live, &ty, &writer("kubectl-create"), &["status"]);
    let mut next = live.clone();
    next["status"]["phase"] = json!("Running");
    let wire = protobuf::encode(&live, &ty).expect("encodes");
    let applied = managed::apply(None, &sent, &ty, &writer("a"), &["status"], true);
    let applied = applied.expect("applies");
    let patch = json!({"spec": {"containers": [{"name": "c0", "image": "x"}]}});
    println!(
        "a pod of {} bytes of JSON, {} of protobuf; {}",
        bytes.len(),
        wire.len(),
        table(&ty)
    );

    let time = |what: &str, work: &mut dyn FnMut()| {
        for _ in 0..200 {
            work();
        }
        let rounds = 3_000;
        let start = cpu_ns();
        for _ in 0..rounds {
            work();
        }
        let spent_us = (cpu_ns() - start) as f64 / 1e3;
        println!("{what:<40} {:>8.2} µs", spent_us / f64::from(rounds));
    };
    time("serde_json::from_slice::<Value>", &mut || {
        black_box(serde_json::from_slice::<Value>(&bytes).expect("parses"));
    });
    time("decode_json", &mut || {
        black_box(decode_json(&bytes, &ty).expect("decodes"));
    });
    time("clone", &mut || {
        black_box(live.clone());
    });
    time("conform", &mut || {
        black_box(conform(live.clone(), &ty).expect("conforms"));
    });
    time("complete", &mut || {
        let mut value = live.clone();
        complete(&mut value, &live, &ty);
        black_box(value);
    });
    time("managed::update, create", &mut || {
        let mut value = decoded.clone();
        managed::update(
            None,
            &mut value,
            &ty,
            &writer("kubectl-create"),
            &["status"],
        );
        black_box(value);
    });
    time("managed::update, status", &mut || {
        let mut value = next.clone();
        managed::update(Some(&live), &mut value, &ty, &writer("kubelet"), &["spec"]);
        black_box(value);
    });
    time("managed::apply, no change", &mut || {
        let who = writer("a");
        let result = managed::apply(Some(&applied), &sent, &ty, &who, &["status"], false);
        black_box(result.expect("applies"));
    });
    time("strategic_merge", &mut || {
        black_box(strategic_merge(&live, &patch, &ty).expect("merges"));
    });
    time("merge_patch", &mut || {
        black_box(merge_patch(
            &live,
            &json!({"metadata": {"labels": {"x": "y"}}}),
        ));
    });
    time("protobuf::decode", &mut || {
        black_box(protobuf::decode(&wire).expect("decodes"));
    });
    time("protobuf::encode", &mut || {
        black_box(protobuf::encode(&live, &ty).expect("encodes"));
    });
    time("serde_json::to_vec", &mut || {
        black_box(serde_json::to_vec(&live).expect("encodes"));
    });
}

/// Time on the processor, so that a busy machine does not matter; wall time where the kernel does not say.
fn cpu_ns() -> u128 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let on_cpu = stat
        .split_whitespace()
        .next()
        .and_then(|text| text.parse().ok());
    on_cpu.unwrap_or_else(|| START.elapsed().as_nanos())
}

fn table(ty: &TypeRef) -> String {
    format!(
        "its type has {} fields",
        ty.node().object().map_or(0, |object| object.fields.len())
    )
}

fn writer(manager: &str) -> Writer {
    Writer {
        manager: manager.to_owned(),
        api_version: "v1".to_owned(),
        subresource: String::new(),
        time: Timestamp::UNIX_EPOCH,
    }
}

/// A pod as a Deployment of a real application makes it.
fn pod() -> Value {
    let container = |number: usize| {
        let probe = json!({"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"},
            "initialDelaySeconds": 5, "periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3, "successThreshold": 1});
        json!({
            "name": format!("c{number}"),
            "image": "registry.example.com/team/application:1.2.3",
            "imagePullPolicy": "IfNotPresent",
            "args": ["--listen=0.0.0.0:8080", "--log-level=info", "--config=/etc/app/config.yaml"],
            "env": [
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}},
                {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}},
                {"name": "MODE", "value": "production"},
            ],
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}, {"name": "metrics", "containerPort": 9090, "protocol": "TCP"}],
            "resources": {"limits": {"cpu": "500m", "memory": "512Mi"}, "requests": {"cpu": "250m", "memory": "256Mi"}},
            "livenessProbe": probe,
            "readinessProbe": probe,
            "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}, {"name": "data", "mountPath": "/data"}],
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "application-7d9c8b6f5d-x2x4z", "namespace": "default",
            "labels": {"app": "application", "pod-template-hash": "7d9c8b6f5d", "tier": "backend"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "application-7d9c8b6f5d",
                "uid": "11111111-2222-4333-8444-555555555555", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {
            "containers": [container(0), container(1)],
            "volumes": [{"name": "config", "configMap": {"name": "application", "defaultMode": 420}}, {"name": "data", "emptyDir": {}}],
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "serviceAccountName": "application",
            "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "fsGroup": 1000},
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            ],
        },
    })
}
