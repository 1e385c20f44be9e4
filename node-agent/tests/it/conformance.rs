//! The behaviours of Kubernetes' conformance suite that a node shows by what a container prints:
//! all pods of a test run at the same time on one node.
//!
//! Names are those of the suite (`[sig-node]`, `[sig-storage]`), shortened.

use k8s_openapi::api::core::v1::Node as K8sNode;
use serde_json::{Value, json};

use crate::harness::{IMAGE, Node, may_be_privileged};

/// A pod that runs to its end and prints these lines, in any order.
struct Case {
    name: &'static str,
    spec: Value,
    prints: &'static [&'static str],
}

fn case(name: &'static str, spec: Value, prints: &'static [&'static str]) -> Case {
    Case { name, spec, prints }
}

/// One container that runs `script`, with more fields of its own.
fn container(script: &str, more: Value) -> Value {
    let mut c = json!({"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["sh", "-c", script]});
    for (key, value) in more.as_object().into_iter().flatten() {
        c[key] = value.clone();
    }
    c
}

fn pod(script: &str, more: Value, mut spec: Value) -> Value {
    spec["containers"] = json!([container(script, more)]);
    spec
}

async fn check(cases: Vec<Case>, prepare: impl FnOnce(&Node)) {
    check_and(cases, prepare, |_| {}).await;
}

async fn check_and(cases: Vec<Case>, prepare: impl FnOnce(&Node), afterwards: impl FnOnce(&Node)) {
    let Some(node) = Node::start().await else {
        return;
    };
    prepare(&node);
    for (i, case) in cases.iter().enumerate() {
        let mut spec = case.spec.clone();
        spec["restartPolicy"] = json!("Never");
        if spec["serviceAccountName"].is_null() {
            spec["serviceAccountName"] = json!("default");
        }
        node.create(&format!("case-{i}"), spec);
    }
    let mut failures = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let pod = node
            .wait_pod(&format!("case-{i}"), case.name, |pod| {
                ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or(""))
            })
            .await;
        let log = node.log(&pod, "c");
        for line in case.prints {
            if !log.lines().any(|l| l == *line) {
                failures.push(format!(
                    "{}: {line:?} is not in {log:?} ({})",
                    case.name, pod["status"]["phase"]
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    for i in 0..cases.len() {
        node.delete(&format!("case-{i}"));
    }
    for i in 0..cases.len() {
        node.wait_gone(&format!("case-{i}")).await;
    }
    assert_eq!(node.containers().await, 0);
    afterwards(&node);
}

fn config(node: &Node) {
    node.api.put(
        "/api/v1/configmaps/default/m",
        json!({"metadata": {"name": "m", "namespace": "default"},
            "data": {"data-1": "value-1", "data-2": "value-2", "bad=name": "x"},
            "binaryData": {"bytes": "3q2+7w=="}}),
    );
    node.api.put(
        "/api/v1/secrets/default/s",
        json!({"metadata": {"name": "s", "namespace": "default"}, "data": {"data-1": "dmFsdWUtMQ=="}}),
    );
    node.api.put(
        "/api/v1/secrets/other/s",
        json!({"metadata": {"name": "s", "namespace": "other"}, "data": {"data-1": "b3RoZXI="}}),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environment_and_commands() {
    let env = |list: Value| json!({"env": list});
    let field = |path: &str| json!({"valueFrom": {"fieldRef": {"fieldPath": path}}});
    let named = |name: &str, mut source: Value| {
        source["name"] = json!(name);
        source
    };
    let resources = json!({"requests": {"cpu": "250m", "memory": "32Mi"},
        "limits": {"cpu": "1250m", "memory": "64Mi"}});
    let resource = |name: &str| json!({"valueFrom": {"resourceFieldRef": {"resource": name}}});
    let written = |reference: Value| {
        let mut spec = pod(
            "echo got=$A; echo none=$B",
            json!({"env": [
                {"name": "A", "valueFrom": {"fileKeyRef": reference}},
                {"name": "B", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "none", "key": "B",
                    "optional": true}}},
            ]}),
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        );
        spec["initContainers"] = json!([{"name": "writer", "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["sh", "-c", "echo \"A='one two'\" > /v/env"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]);
        spec
    };
    let cases = vec![
        case(
            "ConfigMap should be consumable via environment variable",
            pod(
                "echo $A",
                env(
                    json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "data-1"}}}]),
                ),
                json!({}),
            ),
            &["value-1"],
        ),
        case(
            "ConfigMap should be consumable as environment variable names with various prefixes",
            pod(
                "",
                json!({"command": ["/bin/busybox", "env"], "envFrom": [{"configMapRef": {"name": "m"}}, {"prefix": "p-", "configMapRef": {"name": "m"}},
                    {"prefix": "no", "configMapRef": {"name": "missing", "optional": true}}]}),
                json!({}),
            ),
            &["data-1=value-1", "p-data-1=value-1"],
        ),
        case(
            "Secrets should be consumable via the environment",
            pod(
                "",
                json!({"command": ["/bin/busybox", "env"], "envFrom": [{"prefix": "p_", "secretRef": {"name": "s"}}],
                    "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "data-1"}}},
                        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "none", "optional": true}}}]}),
                json!({}),
            ),
            &["A=value-1", "p_data-1=value-1"],
        ),
        case(
            "Downward API should provide pod name, namespace, IP, UID and host IPs as env vars",
            pod(
                "echo $NAME.$NAMESPACE $HOST $HOSTS $SA $NODE; test -n \"$IP\" && test \"$IP\" = \"$IPS\" && test -n \"$ID\" && echo all",
                env(json!([
                    named("NAME", field("metadata.name")),
                    named("NAMESPACE", field("metadata.namespace")),
                    named("HOST", field("status.hostIP")),
                    named("HOSTS", field("status.hostIPs")),
                    named("IP", field("status.podIP")),
                    named("IPS", field("status.podIPs")),
                    named("ID", field("metadata.uid")),
                    named("SA", field("spec.serviceAccountName")),
                    named("NODE", field("metadata.labels['app']"))
                ])),
                json!({"serviceAccountName": "me"}),
            ),
            &["case-3.default 192.0.2.1 192.0.2.1 me case-3", "all"],
        ),
        case(
            "Downward API should provide container's limits and requests as env vars",
            pod(
                "echo $A $B $C $D",
                json!({"resources": resources, "env": [named("A", resource("limits.cpu")), named("B", resource("limits.memory")),
                    named("C", resource("requests.cpu")), named("D", resource("requests.memory"))]}),
                json!({}),
            ),
            &["2 67108864 1 33554432"],
        ),
        case(
            "Downward API should provide default limits from node allocatable",
            pod(
                "test $A -ge 1 && test $B -gt 1000000 && echo node",
                env(json!([
                    named("A", resource("limits.cpu")),
                    named("B", resource("limits.memory"))
                ])),
                json!({}),
            ),
            &["node"],
        ),
        case(
            "Variable Expansion should allow composing env vars, in command and in args",
            json!({"containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
                "env": [{"name": "FOO", "value": "foo"}, {"name": "BAR", "value": "$(FOO);;$(NONE)"}],
                "command": ["sh", "-c", "echo $BAR; echo $0", "arg $(FOO) $$(FOO)"]}]}),
            &["foo;;$(NONE)", "arg foo $(FOO)"],
        ),
        case(
            "Containers should be able to override the image's default command and arguments",
            json!({"containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["echo", "command"], "args": ["args"]}]}),
            &["command args"],
        ),
        case(
            "Variable Expansion should allow substituting values in a container's args",
            json!({"containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
                "env": [{"name": "TEST_VAR", "value": "test-value"}],
                "command": ["sh", "-c"], "args": ["TEST_VAR=wrong; echo $(TEST_VAR)"]}]}),
            &["test-value"],
        ),
        case(
            "Containers should be able to override the image's default arguments",
            json!({"containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never", "args": ["echo", "args"]}]}),
            &["args"],
        ),
        case(
            "Containers should be able to override the image's default command",
            json!({"containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["/bin/busybox", "echo", "another"]}]}),
            &["another"],
        ),
        case(
            "Kubelet should write entries to /etc/hosts",
            pod(
                "cat /etc/hosts",
                json!({}),
                json!({"hostAliases": [{"ip": "123.45.67.89", "hostnames": ["foo", "bar"]}]}),
            ),
            &["# Entries added by HostAliases.", "123.45.67.89\tfoo\tbar"],
        ),
        case(
            "setHostnameAsFQDN",
            pod(
                "hostname",
                json!({}),
                json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true}),
            ),
            &["h.s.default.svc.cluster.local"],
        ),
        case(
            "shareProcessNamespace",
            pod(
                "ps | grep -q /pause && echo shared",
                json!({}),
                json!({"shareProcessNamespace": true}),
            ),
            &["shared"],
        ),
        case(
            "variables from a file that an init container has written",
            written(json!({"volumeName": "v", "path": "env", "key": "A"})),
            &["got=one two", "none="],
        ),
    ];
    check(cases, config).await;
}

/// The same for `configMap`, `secret` and `downwardAPI` volumes as such and in projected ones: as root and not,
/// with items and without, with modes and `fsGroup`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_in_every_kind_of_volume() {
    let source = |kind: &str, projected: bool, item_mode: Option<i32>| {
        let name = match (kind, projected) {
            ("secret", false) => "secretName",
            _ => "name",
        };
        let mut source = json!({name: if kind == "secret" { "s" } else { "m" }});
        if let Some(mode) = item_mode {
            source["items"] = json!([{"key": "data-1", "path": "path/to/data", "mode": mode}]);
        }
        source
    };
    let volume = |kind: &str, projected: bool, mut source: Value, mode: i32| match projected {
        true => {
            json!([{"name": "v", "projected": {"defaultMode": mode, "sources": [{kind: source}]}}])
        }
        false => {
            source["defaultMode"] = json!(mode);
            json!([{"name": "v", kind: source}])
        }
    };
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let at_sub_path = json!({"volumeMounts": [{"name": "v", "mountPath": "/sub/file", "subPath": "data-1"},
        {"name": "v", "mountPath": "/v"}]});
    let user = json!({"runAsUser": 1000});
    let group = json!({"runAsUser": 1000, "fsGroup": 1001});
    let mut cases = Vec::new();
    for (kind, projected) in [
        ("configMap", false),
        ("configMap", true),
        ("secret", false),
        ("secret", true),
    ] {
        let with = |script: &str,
                    container: &Value,
                    item_mode: Option<i32>,
                    mode: i32,
                    security: &Value| {
            let source = source(kind, projected, item_mode);
            let volumes = volume(kind, projected, source, mode);
            pod(
                script,
                container.clone(),
                json!({"volumes": volumes, "securityContext": security}),
            )
        };
        let show = "cat /v/data-1; echo; stat -Lc '%a %u:%g' /v/data-1; stat -c %a /v";
        let show_item = "cat /v/path/to/data; echo; stat -Lc %a /v/path/to/data; ls /v";
        cases.push(case(
            "consumable from pods in volume, with defaultMode, as root",
            with(show, &mounts, None, 0o400, &json!({})),
            &["value-1", "400 0:0", "777"],
        ));
        cases.push(case(
            "consumable from pods in volume as non-root",
            with(show, &mounts, None, 0o644, &user),
            &["value-1", "644 0:0"],
        ));
        cases.push(case(
            "consumable as non-root with defaultMode and fsGroup set",
            with(show, &mounts, None, 0o440, &group),
            &["value-1", "440 0:1001"],
        ));
        cases.push(case(
            "consumable with mappings and Item mode set",
            with(show_item, &mounts, Some(0o400), 0o644, &json!({})),
            &["value-1", "400", "path"],
        ));
        cases.push(case(
            "consumable with mappings as non-root",
            with(show_item, &mounts, Some(0o444), 0o600, &user),
            &["value-1", "444", "path"],
        ));
        cases.push(case(
            "Atomic writer volumes should support subpaths",
            with(
                "cat /sub/file; echo; ls /sub; readlink /v/data-1",
                &at_sub_path,
                None,
                0o644,
                &json!({}),
            ),
            &["value-1", "file", "..data/data-1"],
        ));
    }
    let resource = |path: &str, resource: &str, divisor: &str| json!({"path": path, "resourceFieldRef": {"containerName": "c", "resource": resource, "divisor": divisor}});
    let items = json!([
        {"path": "podname", "mode": 0o400, "fieldRef": {"fieldPath": "metadata.name"}},
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        resource("cpu_limit", "limits.cpu", "1m"), resource("memory_limit", "limits.memory", "1Mi"),
        resource("cpu_request", "requests.cpu", "1m"), resource("memory_request", "requests.memory", "1"),
    ]);
    let unlimited = json!([
        resource("cpu_limit", "limits.cpu", "0"),
        resource("memory_limit", "limits.memory", "0")
    ]);
    let with_resources = json!({"volumeMounts": mounts["volumeMounts"],
        "resources": {"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}}});
    let downward = "for f in cpu_limit memory_limit cpu_request memory_request; do echo $f $(cat /v/$f); done; \
        case $(cat /sub) in app=\\\"case-*) echo labels;; esac; stat -Lc '%a' /v/podname /v/labels";
    let mut at_sub = with_resources.clone();
    at_sub["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/sub", "subPath": "labels"}]);
    for projected in [false, true] {
        let volumes =
            |items: &Value| volume("downwardAPI", projected, json!({"items": items}), 0o440);
        cases.push(case(
            "Downward API volume should provide podname, limits and requests, with modes and subpaths",
            pod(downward, at_sub.clone(), json!({"volumes": volumes(&items)})),
            &[
                "cpu_limit 1250",
                "memory_limit 64",
                "cpu_request 250",
                "memory_request 33554432",
                "labels",
                "400",
                "440",
            ],
        ));
        cases.push(case(
            "Downward API volume should provide node allocatable as default limits",
            pod(
                "test $(cat /v/cpu_limit) -ge 1 && test $(cat /v/memory_limit) -gt 1000000 && echo node",
                mounts.clone(),
                json!({"volumes": volumes(&unlimited)}),
            ),
            &["node"],
        ));
    }
    check(cases, config).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_in_volumes() {
    let at = |path: &str| json!({"volumeMounts": [{"name": "v", "mountPath": path}]});
    let volume = |mut source: Value| {
        source["name"] = json!("v");
        json!({"volumes": [source]})
    };
    let as_user = |mut spec: Value| {
        spec["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 1001});
        spec
    };
    let items = json!([{"key": "data-1", "path": "path/to/data", "mode": 256}]);
    let show = "cat /v/data-1; echo; stat -Lc '%a %u:%g' /v/data-1";
    let show_item = "cat /v/path/to/data; echo; stat -Lc '%a' /v/path/to/data";
    let six_mounts = ["a", "b", "c", "d", "e", "f"]
        .map(|name| json!({"name": name, "mountPath": format!("/{name}")}));
    let six_mounts = json!({"volumeMounts": six_mounts});
    let projected =
        |sources: Value| volume(json!({"projected": {"sources": sources, "defaultMode": 256}}));
    let cases = vec![
        case(
            "ConfigMap should be consumable from pods in volume",
            pod(show, at("/v"), volume(json!({"configMap": {"name": "m"}}))),
            &["value-1", "644 0:0"],
        ),
        case(
            "ConfigMap should be consumable from pods in volume with defaultMode set",
            pod(
                show,
                at("/v"),
                volume(json!({"configMap": {"name": "m", "defaultMode": 256}})),
            ),
            &["value-1", "400 0:0"],
        ),
        case(
            "ConfigMap should be consumable from pods in volume with mappings and Item mode set",
            pod(
                show_item,
                at("/v"),
                volume(json!({"configMap": {"name": "m", "items": items}})),
            ),
            &["value-1", "400"],
        ),
        case(
            "ConfigMap binary data should be reflected in volume",
            pod(
                "test $(stat -Lc %s /v/bytes) = 4 && cat /v/data-1 && echo && echo bytes",
                at("/v"),
                volume(json!({"configMap": {"name": "m"}})),
            ),
            &["value-1", "bytes"],
        ),
        case(
            "Secrets should be consumable as non-root with defaultMode and fsGroup set",
            pod(
                show,
                at("/v"),
                as_user(volume(
                    json!({"secret": {"secretName": "s", "defaultMode": 288}}),
                )),
            ),
            &["value-1", "440 0:1001"],
        ),
        case(
            "Secrets should be consumable with mappings and Item Mode set",
            pod(
                show_item,
                at("/v"),
                volume(json!({"secret": {"secretName": "s", "items": items}})),
            ),
            &["value-1", "400"],
        ),
        case(
            "Secrets optional: a missing one is an empty volume",
            pod(
                "ls /v; echo empty",
                at("/v"),
                volume(json!({"secret": {"secretName": "none", "optional": true}})),
            ),
            &["empty"],
        ),
        case(
            "Downward API volume should provide podname, labels and resources with modes",
            pod(
                "cat /v/name; echo; cat /v/labels; echo; cat /v/cpu; echo; stat -Lc %a /v/name",
                json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}],
                    "resources": {"limits": {"cpu": "1250m"}}}),
                volume(json!({"downwardAPI": {"defaultMode": 256, "items": [
                    {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}]}})),
            ),
            &["case-7", "app=\"case-7\"", "1250", "400"],
        ),
        case(
            "Projected combined should project all components",
            pod(
                "cat /v/data-1; echo; cat /v/data-2; echo; cat /v/name; echo; cat /v/token; stat -Lc %a /v/name",
                at("/v"),
                projected(json!([{"secret": {"name": "s"}},
                    {"configMap": {"name": "m", "items": [{"key": "data-2", "path": "data-2"}]}},
                    {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                    {"serviceAccountToken": {"path": "token"}}])),
            ),
            &["value-1", "value-2", "case-8", "a.b.c400"],
        ),
        case(
            "A token is its user's",
            pod("stat -Lc '%a %u' /v/token; cat /v/token; echo", at("/v"), {
                let mut spec = projected(json!([{"serviceAccountToken": {"path": "token"}}]));
                spec["securityContext"] = json!({"runAsUser": 1000});
                spec
            }),
            &["600 1000", "a.b.c"],
        ),
        case(
            "Secrets and ConfigMaps should be consumable in multiple volumes, also projected ones",
            pod(
                "for v in a b c d e f; do echo $v $(cat /$v/data-1) $(touch /$v/new 2>/dev/null || echo readonly); done",
                six_mounts,
                json!({"volumes": [
                    {"name": "a", "secret": {"secretName": "s"}}, {"name": "b", "secret": {"secretName": "s"}},
                    {"name": "c", "configMap": {"name": "m"}}, {"name": "d", "configMap": {"name": "m"}},
                    {"name": "e", "projected": {"sources": [{"secret": {"name": "s"}}]}},
                    {"name": "f", "projected": {"sources": [{"configMap": {"name": "m"}}]}}]}),
            ),
            // Nobody writes into them, whatever the mount says.
            &[
                "a value-1 readonly",
                "b value-1 readonly",
                "c value-1 readonly",
                "d value-1 readonly",
                "e value-1 readonly",
                "f value-1 readonly",
            ],
        ),
        case(
            "Atomic writer volumes should support subpaths, at an existing file too",
            pod(
                "cat /sub/file /etc/hosts; echo; ls /sub; touch /sub/file || echo readonly",
                json!({"volumeMounts": [
                    {"name": "v", "mountPath": "/sub/file", "subPath": "data-1", "readOnly": true},
                    {"name": "v", "mountPath": "/etc/hosts", "subPath": "data-2"}]}),
                volume(json!({"configMap": {"name": "m"}})),
            ),
            &["value-1value-2", "file", "readonly"],
        ),
    ];
    check(cases, config).await;
}

/// Claims, as the control plane binds them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("local")).unwrap();
    let uses = |claim: &str| {
        pod(
            "touch /v/f && stat -c '%u %g' /v/f",
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
            json!({"securityContext": {"runAsUser": 1000, "fsGroup": 2000},
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}),
        )
    };
    let path = |name: &str| root.path().join(name);
    let volumes = json!([
        {"name": "made", "hostPath": {"path": path("made"), "type": "DirectoryOrCreate"}},
        {"name": "local", "local": {"path": path("local")}},
    ]);
    check_and(
        vec![
            case(
                "a provisioned folder of this node",
                uses("made"),
                &["1000 2000"],
            ),
            case("a local volume", uses("local"), &["1000 2000"]),
        ],
        |node| {
            for volume in volumes.as_array().unwrap() {
                let name = volume["name"].as_str().unwrap();
                let mut spec = volume.clone();
                spec.as_object_mut().unwrap().remove("name");
                spec["capacity"] = json!({"storage": "1Gi"});
                let annotations = json!({"pv.kubernetes.io/provisioned-by": "skep.io/local-path"});
                node.api.put(
                    &format!("/api/v1/persistentvolumes/{name}"),
                    json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec}),
                );
                node.api.put(
                    &format!("/api/v1/persistentvolumeclaims/default/{name}"),
                    json!({"metadata": {"name": name, "namespace": "default"},
                        "spec": {"volumeName": name}, "status": {"phase": "Bound"}}),
                );
            }
        },
        |node| {
            let ctx = node.ctx.as_ref().expect("runs");
            let volumes = ctx.volumes.as_ref().expect("has volumes");
            // The controllers have the node remove the folders of deleted volumes.
            for volume in ["made", "local", "never-seen", "../made"] {
                volumes.remove_local(volume).expect("removes");
            }
        },
    )
    .await;
    assert!(!path("made").exists(), "it went with its volume");
    assert!(path("local").exists(), "it was not ours to remove");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scratch_space() {
    let at = |path: &str| json!({"volumeMounts": [{"name": "v", "mountPath": path}]});
    let disk = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    let memory =
        json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]});
    let with = |base: &Value, security: Value| {
        let mut spec = base.clone();
        spec["securityContext"] = security;
        spec
    };
    let user = json!({"runAsUser": 1000});
    let write = "stat -c %a /v; for mode in 644 666 777; do \
        echo text > /v/$mode && chmod $mode /v/$mode && stat -c '%a %u' /v/$mode && cat /v/$mode; done";
    let host = tempfile::tempdir().unwrap();
    std::fs::create_dir(host.path().join("d")).unwrap();
    std::os::unix::fs::symlink("/etc", host.path().join("out")).unwrap();
    let host_path = |kind: &str, more: &str| {
        let path = host.path().join(more);
        json!({"volumes": [{"name": "v", "hostPath": {"path": path, "type": kind}}]})
    };
    let expr = |path: &str, env: Value| {
        json!({"env": env, "volumeMounts": [{"name": "v", "mountPath": "/v"},
            {"name": "v", "mountPath": "/sub", "subPathExpr": path}]})
    };
    let cases = vec![
        case(
            "EmptyDir (root,default)",
            pod(write, at("/v"), disk.clone()),
            &["777", "644 0", "666 0", "777 0", "text"],
        ),
        case(
            "EmptyDir (non-root,default)",
            pod(write, at("/v"), with(&disk, user.clone())),
            &["777", "644 1000", "666 1000", "777 1000", "text"],
        ),
        case(
            "EmptyDir (root,tmpfs)",
            pod(
                &format!(
                    "{write}; grep ' /v ' /proc/mounts | cut -d' ' -f1,3; dd if=/dev/zero of=/v/big bs=1k count=2000 2>/dev/null || echo full"
                ),
                at("/v"),
                memory.clone(),
            ),
            &["777", "644 0", "666 0", "777 0", "tmpfs tmpfs", "full"],
        ),
        case(
            "EmptyDir (non-root,tmpfs)",
            pod(write, at("/v"), with(&memory, user.clone())),
            &["777", "644 1000", "666 1000", "777 1000", "text"],
        ),
        case(
            "EmptyDir with fsGroup",
            pod(
                "touch /v/f; stat -c '%a %g' /v; stat -c %g /v/f",
                at("/v"),
                with(
                    &disk,
                    json!({"runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [3000]}),
                ),
            ),
            &["2777 2000", "2000"],
        ),
        case(
            "Variable Expansion should succeed in writing subpaths in container",
            pod(
                "touch /sub/f; ls /v /v/foo",
                expr("$(POD)", json!([{"name": "POD", "value": "foo"}])),
                disk.clone(),
            ),
            &["foo", "f"],
        ),
        case(
            "subPath in memory",
            pod(
                "touch /sub/f; ls /v/a/b",
                json!({"volumeMounts": [{"name": "v", "mountPath": "/v"},
                    {"name": "v", "mountPath": "/sub", "subPath": "a/b"}]}),
                memory.clone(),
            ),
            &["f"],
        ),
        case(
            "pod should support shared volumes between containers",
            {
                let mut spec = pod(
                    "until cat /v/said; do sleep 0.1; done 2>/dev/null",
                    at("/v"),
                    disk.clone(),
                );
                let mut other =
                    container("echo from the other > /v/tmp; mv /v/tmp /v/said", at("/v"));
                other["name"] = json!("other");
                spec["containers"].as_array_mut().unwrap().push(other);
                spec
            },
            &["from the other"],
        ),
        case(
            "hostPath Directory",
            pod("echo ok", at("/v"), host_path("Directory", "d")),
            &["ok"],
        ),
        case(
            "hostPath of everything",
            pod(
                "test -d /v/etc && echo ok",
                at("/v"),
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
            ),
            &["ok"],
        ),
        case(
            "hostPath FileOrCreate",
            pod("stat -c %F /v", at("/v"), host_path("FileOrCreate", "f")),
            &["regular empty file"],
        ),
        case(
            "readOnly",
            pod(
                "touch /v/x || echo readonly",
                json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}]}),
                host_path("DirectoryOrCreate", "new"),
            ),
            &["readonly"],
        ),
    ];
    check(cases, |_| ()).await;
}

/// Those of this process are the node's.
fn own_namespaces() -> &'static [&'static str] {
    let names = ["ipc", "net", "pid"].map(|kind| {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("readable");
        &*link.display().to_string().leak()
    });
    names.to_vec().leak()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn security() {
    let context = |security: Value| json!({"securityContext": security});
    let mut cases = vec![
        case(
            "runAsUser and runAsGroup of the container",
            pod(
                "id -u; id -g",
                context(json!({"runAsUser": 65534, "runAsGroup": 2002})),
                json!({}),
            ),
            &["65534", "2002"],
        ),
        case(
            "runAsUser and runAsGroup of the pod",
            pod(
                "echo $(id -u) $(id -g) $(id -G)",
                json!({}),
                json!({"securityContext": {"runAsUser": 1001, "runAsGroup": 2002, "supplementalGroups": [1234], "fsGroup": 5678}}),
            ),
            &["1001 2002 2002 1234 5678"],
        ),
        case(
            "supplementalGroupsPolicy Merge: the image's groups of its user are added",
            pod(
                "echo $(id -u) $(id -g) $(id -G)",
                json!({}),
                json!({"securityContext": {"runAsUser": 1100, "runAsGroup": 2002, "supplementalGroups": [1234]}}),
            ),
            &["1100 2002 2002 1234 50000"],
        ),
        case(
            "supplementalGroupsPolicy Strict: they are not",
            pod(
                "echo $(id -u) $(id -g) $(id -G)",
                json!({}),
                json!({"securityContext": {"runAsUser": 1100, "supplementalGroups": [1234],
                    "supplementalGroupsPolicy": "Strict"}}),
            ),
            &["1100 1500 1500 1234"],
        ),
        case(
            "unprivileged when false",
            pod(
                "mount -t tmpfs x /tmp 2>/dev/null || echo unprivileged",
                context(json!({"privileged": false})),
                json!({}),
            ),
            &["unprivileged"],
        ),
        case(
            "writable rootfs when readOnlyRootFilesystem=false",
            pod(
                "touch /tmp/x && echo writable",
                context(json!({"readOnlyRootFilesystem": false})),
                json!({}),
            ),
            &["writable"],
        ),
        case(
            "should not write to root filesystem",
            pod(
                "touch /tmp/x 2>/dev/null || echo readonly",
                context(json!({"readOnlyRootFilesystem": true})),
                json!({}),
            ),
            &["readonly"],
        ),
        case(
            "should not allow privilege escalation when false",
            pod(
                "grep NoNewPrivs /proc/self/status",
                context(json!({"allowPrivilegeEscalation": false})),
                json!({}),
            ),
            &["NoNewPrivs:\t1"],
        ),
        case(
            "capabilities",
            pod(
                "grep CapEff /proc/self/status",
                context(json!({"capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]}})),
                json!({}),
            ),
            &["CapEff:\t0000000000002000"],
        ),
        case(
            "procMount Unmasked",
            pod(
                "grep -c ' /proc/' /proc/mounts",
                context(json!({"procMount": "Unmasked"})),
                json!({}),
            ),
            &["0"],
        ),
        case(
            "procMount Default: paths are masked and read-only",
            pod(
                "test $(grep -c ' /proc/' /proc/mounts) -gt 3 && echo masked; (echo -n >> /proc/sysrq-trigger) 2>/dev/null || echo refused",
                json!({}),
                json!({}),
            ),
            &["masked", "refused"],
        ),
        case(
            "hostPID, hostIPC and hostNetwork",
            pod(
                "for n in ipc net pid; do readlink /proc/self/ns/$n; done",
                json!({}),
                json!({"hostPID": true, "hostIPC": true, "hostNetwork": true}),
            ),
            own_namespaces(),
        ),
        case(
            "seccomp RuntimeDefault and Unconfined",
            pod(
                "grep Seccomp: /proc/self/status",
                json!({}),
                json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}),
            ),
            &["Seccomp:\t2"],
        ),
        case(
            "seccomp Localhost: a profile of the node's",
            pod(
                "touch /tmp/x; chmod 600 /tmp/x 2>/dev/null || echo refused",
                json!({}),
                json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "no/chmod.json"}}}),
            ),
            &["refused"],
        ),
        case(
            "without a seccomp profile",
            pod("grep Seccomp: /proc/self/status", json!({}), json!({})),
            &["Seccomp:\t0"],
        ),
        case(
            "should support sysctls",
            pod(
                "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start",
                json!({}),
                json!({"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"},
                    {"name": "net/ipv4/ip_unprivileged_port_start", "value": "0"}]}}),
            ),
            &["1", "0"],
        ),
        case(
            "ImageVolume should succeed",
            pod(
                "ls /image/bin | grep -x busybox; touch /image/x 2>/dev/null || echo readonly",
                json!({"volumeMounts": [{"name": "v", "mountPath": "/image"}]}),
                json!({"volumes": [{"name": "v", "image": {"reference": IMAGE, "pullPolicy": "IfNotPresent"}}]}),
            ),
            &["busybox", "readonly"],
        ),
    ];
    if may_be_privileged() {
        cases.push(case(
            "privileged when true",
            pod(
                "mount -t tmpfs x /tmp && echo mounted; test $(ls /dev | wc -l) -gt 20 && echo devices",
                context(json!({"privileged": true})),
                json!({}),
            ),
            &["mounted", "devices"],
        ));
    }
    check(cases, |node| {
        let folder = node.dir.path().join("seccomp/no");
        std::fs::create_dir_all(&folder).expect("a folder");
        let calls = ["chmod", "fchmod", "fchmodat", "fchmodat2"];
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": calls, "action": "SCMP_ACT_ERRNO"}]});
        std::fs::write(folder.join("chmod.json"), profile.to_string()).expect("written");
    })
    .await;
}

/// What the scheduler knew of the node holds, though the agent has not heard of it.
#[tokio::test]
async fn a_label_that_the_node_has_just_got_counts() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    node.fall_behind(json!({"metadata": {"labels": {"disk": "none"}}}))
        .await;
    node.put_node(json!({"metadata": {"labels": {"disk": "ssd"}}}));
    let on = |disk: &str| {
        pod(
            "sleep 1000",
            json!({}),
            json!({"nodeSelector": {"disk": disk}}),
        )
    };
    node.create("fits", on("ssd"));
    node.create("elsewhere", on("hdd"));
    node.wait_phase("fits", "Running").await;
    let refused = node.wait_phase("elsewhere", "Failed").await;
    assert_eq!(refused["status"]["reason"], "NodeAffinity");
}

/// What others say of the node holds from when they have said it.
#[tokio::test]
async fn what_others_say_of_the_node_counts() {
    let Some(node) = Node::start().await else {
        return;
    };
    node.put_node(json!({"status": {"allocatable": {"example.com/dongle": "1"}}}));
    let asks = |name: &str| {
        let resources = json!({"resources": {"requests": {name: "1"}}});
        pod("sleep 1000", resources, json!({}))
    };
    let dongles = |of: &K8sNode| {
        let status = of.status.as_ref()?;
        status
            .allocatable
            .as_ref()?
            .get("example.com/dongle")
            .cloned()
    };
    node.wait_node("with a dongle", |of| dongles(of).is_some())
        .await;
    node.create("first", asks("example.com/dongle"));
    node.wait_phase("first", "Running").await;
    node.create("second", asks("example.com/dongle"));
    let refused = node.wait_phase("second", "Failed").await;
    assert_eq!(refused["status"]["reason"], "OutOfexample.com/dongle");
    // What no node has is somebody else's to give.
    node.create("of-the-cluster", asks("example.com/licence"));
    node.wait_phase("of-the-cluster", "Running").await;

    let taint = json!({"key": "gone", "effect": "NoExecute"});
    node.put_node(json!({"spec": {"taints": [taint]}}));
    let taints = |of: &K8sNode| of.spec.as_ref()?.taints.clone();
    node.wait_node("with a taint", |of| taints(of).is_some())
        .await;
    node.create("driven-out", asks("example.com/licence"));
    let refused = node.wait_phase("driven-out", "Failed").await;
    assert_eq!(refused["status"]["reason"], "TaintToleration");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_pods_and_failing_containers() {
    let Some(node) = Node::start().await else {
        return;
    };
    let sysctl =
        json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "8192"}]}});
    node.create("sysctl", pod("true", json!({}), sysctl));
    let huge = json!({"resources": {"requests": {"cpu": "1000"}}});
    node.create("huge", pod("true", huge, json!({})));
    let with = |mount: Value| {
        pod(
            "sleep 1000",
            json!({"env": [{"name": "ABS", "value": "/tmp"}, {"name": "UP", "value": ".."}],
                "volumeMounts": [mount]}),
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        )
    };
    node.create(
        "absolute",
        with(json!({"name": "v", "mountPath": "/v", "subPathExpr": "$(ABS)/x"})),
    );
    node.create(
        "missing",
        with(json!({"name": "v", "mountPath": "/v", "subPathExpr": "$(NONE)"})),
    );
    node.create(
        "up",
        with(json!({"name": "v", "mountPath": "/v", "subPathExpr": "a/$(UP)"})),
    );
    let root = json!({"securityContext": {"runAsNonRoot": true}});
    node.create("root", pod("true", root, json!({})));

    for (name, reason, message) in [
        (
            "sysctl",
            "SysctlForbidden",
            "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        ),
        (
            "huge",
            "OutOfcpu",
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000",
        ),
    ] {
        let pod = node.wait_phase(name, "Failed").await;
        assert_eq!(pod["status"]["reason"], reason);
        let said = pod["status"]["message"].as_str().unwrap();
        assert!(said.starts_with(message), "{said}");
        assert!(pod["status"]["containerStatuses"].is_null());
    }
    for (name, text) in [
        (
            "absolute",
            "error SubPath `/tmp/x` must not be an absolute path",
        ),
        ("missing", "missing value for \"NONE\""),
        (
            "up",
            "unable to provision SubPath `a/..`: must not contain '..'",
        ),
        (
            "root",
            "container has runAsNonRoot and image will run as root",
        ),
    ] {
        node.wait_pod(name, text, |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            let message = waiting["message"].as_str().unwrap_or_default();
            waiting["reason"] == "CreateContainerConfigError" && message.starts_with(text)
        })
        .await;
    }
}
