//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy.

use serde_json::{Value, json};

use crate::cluster::{Cluster, MAPS, map};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

fn about(resource: &str, operations: &[&str]) -> Value {
    json!({"resourceRules": [{
        "apiGroups": ["*"], "apiVersions": ["*"], "resources": [resource], "operations": operations,
    }]})
}

/// Makes a policy and a binding of the same name; `kind` is `validating` or `mutating`.
async fn bind(cluster: &Cluster, kind: &str, name: &str, mut spec: Value, binding: Value) {
    if spec["matchConstraints"].is_null() {
        spec["matchConstraints"] = about("configmaps", &["CREATE", "UPDATE"]);
    }
    if kind == "mutating" && spec["reinvocationPolicy"].is_null() {
        spec["reinvocationPolicy"] = "Never".into();
    }
    let policy = json!({"metadata": {"name": name}, "spec": spec});
    let policies = format!("{GROUP}/{kind}admissionpolicies");
    cluster.post(&policies, policy).await.expect(201);
    let mut spec = binding;
    spec["policyName"] = name.into();
    if kind == "validating" && spec["validationActions"].is_null() {
        spec["validationActions"] = json!(["Deny"]);
    }
    let binding = json!({"metadata": {"name": name}, "spec": spec});
    let bindings = format!("{GROUP}/{kind}admissionpolicybindings");
    cluster.post(&bindings, binding).await.expect(201);
}

fn data(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

#[tokio::test]
async fn actions_warn_audit_and_deny() {
    let cluster = Cluster::start().await;
    let spec = json!({
        "validations": [{"expression": "!has(object.data.no)", "message": "no no"}],
        "auditAnnotations": [{"key": "size", "valueExpression": "string(size(object.data))"}],
    });
    bind(
        &cluster,
        "validating",
        "w",
        spec.clone(),
        json!({"validationActions": ["Warn", "Audit"]}),
    )
    .await;
    let answer = cluster.post(MAPS, data("a", json!({"no": "1"}))).await;
    assert_eq!(answer.code, 201);
    let warning = answer.headers["warning"].to_str().unwrap();
    assert_eq!(
        warning,
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'w' with binding 'w': no no\""
    );
    bind(&cluster, "validating", "d", spec, json!({})).await;
    let refused = cluster
        .post(MAPS, data("b", json!({"no": "1"})))
        .await
        .expect(422);
    assert_eq!(
        refused["message"],
        "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'd' with binding 'd' denied request: no no"
    );
    // An audit annotation that fails is a refusal too.
    let refused = cluster.post(MAPS, map("c")).await.expect(422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("no such key: data"),
        "{refused}"
    );
}

#[tokio::test]
async fn errors_count_as_the_failure_policy_says() {
    let cluster = Cluster::start().await;
    let spec = |policy: &str| {
        json!({
            "failurePolicy": policy, "validations": [{"expression": "object.data.nope == 'x'"}],
        })
    };
    bind(&cluster, "validating", "ignore", spec("Ignore"), json!({})).await;
    cluster
        .post(MAPS, data("a", json!({"k": "v"})))
        .await
        .expect(201);
    bind(&cluster, "validating", "fail", spec("Fail"), json!({})).await;
    let refused = cluster
        .post(MAPS, data("b", json!({"k": "v"})))
        .await
        .expect(422);
    assert_eq!(
        refused["message"],
        "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'fail' with binding 'fail' denied request: \
         expression 'object.data.nope == 'x'' resulted in error: no such key: nope"
    );
}

#[tokio::test]
async fn parameters_by_name_and_selector() {
    let cluster = Cluster::start().await;
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConstraints": about("secrets", &["CREATE"]),
        "validations": [{
            "expression": "params == null || !object.metadata.name.startsWith(params.data.prefix)",
            "messageExpression": "'not ' + params.data.prefix",
        }],
    });
    let secrets = "/api/v1/namespaces/default/secrets";
    let reference =
        |action: &str| json!({"paramRef": {"name": "limits", "parameterNotFoundAction": action}});
    bind(
        &cluster,
        "validating",
        "named",
        spec.clone(),
        reference("Deny"),
    )
    .await;
    let refused = cluster.post(secrets, map("x")).await.expect(422);
    assert_eq!(
        refused["message"],
        "secrets \"x\" is forbidden: ValidatingAdmissionPolicy 'named' with binding 'named' denied request: \
         failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
    );
    cluster
        .post(MAPS, data("limits", json!({"prefix": "bad"})))
        .await
        .expect(201);
    cluster.post(secrets, map("x")).await.expect(201);
    let refused = cluster.post(secrets, map("bad-1")).await.expect(422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .ends_with("denied request: not bad")
    );
    let by_label = json!({"paramRef": {
        "selector": {"matchLabels": {"limits": "yes"}}, "namespace": "default", "parameterNotFoundAction": "Allow",
    }});
    bind(&cluster, "validating", "selected", spec.clone(), by_label).await;
    cluster.post(secrets, map("worse-1")).await.expect(201);
    for prefix in ["worse", "worst"] {
        let mut params = data(prefix, json!({"prefix": prefix}));
        params["metadata"]["labels"] = json!({"limits": "yes"});
        cluster.post(MAPS, params).await.expect(201);
    }
    cluster.post(secrets, map("worse-2")).await.expect(422);
    cluster.post(secrets, map("worst-2")).await.expect(422);
    let mut unknown = spec;
    unknown["paramKind"] = json!({"apiVersion": "x.io/v1", "kind": "Nope"});
    bind(
        &cluster,
        "validating",
        "unknown",
        unknown,
        reference("Deny"),
    )
    .await;
    let refused = cluster.post(secrets, map("y")).await.expect(422);
    assert!(
        refused["message"].as_str().unwrap().ends_with(
            "ValidatingAdmissionPolicy 'unknown' denied request: failed to configure policy: failed to find \
             resource referenced by paramKind: 'x.io/v1, Kind=Nope'"
        ),
        "{refused}"
    );
}

#[tokio::test]
async fn expressions_see_the_request_the_namespace_and_what_is_allowed() {
    let cluster = Cluster::start().await;
    let spec = json!({
        "matchConstraints": about("configmaps", &["*"]),
        "variables": [
            {"name": "who", "expression": "request.userInfo.username"},
            {"name": "greeting", "expression": "'hello ' + variables.who"},
            {"name": "never", "expression": "object.nope.nope"},
        ],
        "validations": [
            {"expression": "variables.greeting == 'hello tester'"},
            {"expression": "namespaceObject.metadata.name == request.namespace"},
            {"expression": "request.operation == 'DELETE' ? object == null && oldObject != null : has(object.metadata)"},
            {"expression": "authorizer.group('').resource('pods').namespace('default').check('create').allowed()"},
            {"expression": "!authorizer.serviceAccount('default', 'default').path('/metrics').check('get').allowed()"},
            {"expression": "request.?name.orValue('') != 'denied'", "reason": "Forbidden"},
        ],
    });
    bind(&cluster, "validating", "p", spec, json!({})).await;
    cluster.post(MAPS, map("a")).await.expect(201);
    cluster.post(MAPS, map("denied")).await.expect(403);
    cluster
        .delete(&format!("{MAPS}/a"), Value::Null)
        .await
        .expect(200);
}

#[tokio::test]
async fn bindings_narrow_and_exclusions_hold() {
    let cluster = Cluster::start().await;
    let mut constraints = about("*", &["CREATE"]);
    constraints["excludeResourceRules"] = about("secrets", &["*"])["resourceRules"].clone();
    let spec = json!({"matchConstraints": constraints, "validations": [{"expression": "false", "message": "no"}]});
    let only = json!({"matchResources": {"objectSelector": {"matchLabels": {"guarded": "yes"}}}});
    bind(&cluster, "validating", "p", spec, only).await;
    let guarded = |name: &str| json!({"metadata": {"name": name, "labels": {"guarded": "yes"}}});
    cluster.post(MAPS, map("a")).await.expect(201);
    cluster.post(MAPS, guarded("b")).await.expect(422);
    cluster
        .post("/api/v1/namespaces/default/secrets", guarded("b"))
        .await
        .expect(201);
    // Admission's own objects are out of its reach.
    let policy = json!({"metadata": {"name": "q", "labels": {"guarded": "yes"}}, "spec": {
        "matchConstraints": about("secrets", &["CREATE"]), "validations": [{"expression": "true"}],
    }});
    cluster
        .post(&format!("{GROUP}/validatingadmissionpolicies"), policy)
        .await
        .expect(201);
}

#[tokio::test]
async fn an_expression_that_costs_too_much_is_an_error() {
    let cluster = Cluster::start().await;
    let expression = "object.data.all(a, object.data.all(b, object.data.all(c, object.data.all(d, size(a + b + c + d) > 0))))";
    let spec = json!({"validations": [{"expression": expression}]});
    bind(&cluster, "validating", "p", spec, json!({})).await;
    let many: serde_json::Map<String, Value> =
        (0..100).map(|n| (format!("k{n}"), "v".into())).collect();
    let refused = cluster
        .post(MAPS, data("a", Value::Object(many)))
        .await
        .expect(422);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .ends_with("operation cancelled: actual cost limit exceeded"),
        "{refused}"
    );
}

fn apply(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn json_patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

#[tokio::test]
async fn mutations_merge_and_patch() {
    let cluster = Cluster::start().await;
    let pods = json!({
        "matchConstraints": about("pods", &["CREATE"]),
        "variables": [{"name": "image", "expression": "'proxy:' + request.namespace"}],
        "mutations": [
            apply("Object{spec: Object.spec{containers: [Object.spec.containers{name: 'sidecar', image: variables.image}]}}"),
            json_patch("[JSONPatch{op: 'test', path: '/spec/containers/0/name', value: 'c'}, \
                        JSONPatch{op: 'add', path: '/metadata/labels', value: {'a/b': 'c'}}]"),
            json_patch("[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('x/y'), value: 'z'}]"),
            json_patch("[JSONPatch{op: 'test', path: '/metadata/name', value: 'other'}, \
                        JSONPatch{op: 'remove', path: '/spec/containers/0'}]"),
        ],
    });
    bind(&cluster, "mutating", "sidecar", pods, json!({})).await;
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pod = cluster
        .post("/api/v1/namespaces/default/pods", pod)
        .await
        .expect(201);
    let names: Vec<_> = pod["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["c", "sidecar"]);
    assert_eq!(pod["spec"]["containers"][1]["image"], "proxy:default");
    // Defaults reach what was added, and plugins of the second round too.
    assert_eq!(
        pod["spec"]["containers"][1]["terminationMessagePolicy"],
        "File"
    );
    assert_eq!(
        pod["spec"]["containers"][1]["volumeMounts"][0]["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(pod["metadata"]["labels"], json!({"a/b": "c", "x/y": "z"}));
}

#[tokio::test]
async fn mutations_that_fail() {
    let cluster = Cluster::start().await;
    let refused = async |expression: &str| {
        let spec = json!({"mutations": [apply(expression)]});
        bind(&cluster, "mutating", "m", spec, json!({})).await;
        let refused = cluster.post(MAPS, map("a")).await.expect(403);
        for kind in [
            "mutatingadmissionpolicies",
            "mutatingadmissionpolicybindings",
        ] {
            cluster
                .delete(&format!("{GROUP}/{kind}/m"), Value::Null)
                .await
                .expect(200);
        }
        assert_eq!(
            refused["details"]["causes"][0]["message"],
            refused["message"]
        );
        refused["message"].as_str().unwrap().to_owned()
    };
    let start = "policy 'm' with binding 'm' denied request: ";
    assert_eq!(
        refused("Object{data: {'a': object.nope}}").await,
        format!(
            "{start}expression 'Object{{data: {{'a': object.nope}}}}' resulted in error: no such key: nope"
        )
    );
    assert_eq!(
        refused("Object{nope: 1}").await,
        format!(
            "{start}error applying patch: failed to convert patch object to typed object: .nope: field not declared in schema"
        )
    );
    assert!(
        refused("Object{metadata: Object.wrong{name: 'x'}}")
            .await
            .contains("type mismatch: ")
    );
}

#[tokio::test]
async fn policies_run_again_when_a_later_one_changes_the_object() {
    let cluster = Cluster::start().await;
    let count = "Object{data: {'count': string(size(object.?data.orValue({}))) }}";
    let first = json!({"reinvocationPolicy": "IfNeeded", "mutations": [apply(count)]});
    bind(&cluster, "mutating", "a", first, json!({})).await;
    bind(
        &cluster,
        "mutating",
        "b",
        json!({"mutations": [apply("Object{data: {'b': '1'}}")]}),
        json!({}),
    )
    .await;
    let created = cluster.post(MAPS, map("x")).await.expect(201);
    assert_eq!(created["data"], json!({"b": "1", "count": "2"}));
}
