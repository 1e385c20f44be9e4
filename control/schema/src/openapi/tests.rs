use super::*;

fn deployments() -> Row {
    let verbs = |verbs: &[&str]| verbs.iter().map(|verb| (*verb).to_owned()).collect();
    Row {
        group: "apps".into(),
        version: "v1".into(),
        kind: "Deployment".into(),
        plural: "deployments".into(),
        namespaced: true,
        verbs: verbs(&[
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch",
        ]),
        subresources: vec![
            Subresource {
                name: "scale".into(),
                group: "autoscaling".into(),
                version: "v1".into(),
                kind: "Scale".into(),
                verbs: verbs(&["get", "patch", "update"]),
            },
            Subresource {
                name: "status".into(),
                group: "apps".into(),
                version: "v1".into(),
                kind: "Deployment".into(),
                verbs: verbs(&["get", "patch", "update"]),
            },
        ],
        shows_deleted: false,
        schema: None,
    }
}

/// Every `$ref` of a document must lead to one of its definitions; those to parameters are a whole server's matter.
fn check_references(value: &Value, prefix: &str, definitions: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str) {
                if name.starts_with("#/parameters/") {
                    return;
                }
                let name = name
                    .strip_prefix(prefix)
                    .expect("a reference to a definition");
                assert!(definitions.get(name).is_some(), "{name} is missing");
            }
            for value in map.values() {
                check_references(value, prefix, definitions);
            }
        }
        Value::Array(list) => {
            for item in list {
                check_references(item, prefix, definitions);
            }
        }
        _ => {}
    }
}

#[test]
fn a_group_version_has_what_kubectl_looks_for() {
    let document = v3(&Texts::read(), "apps", "v1", &[deployments()]);
    let schemas = &document["components"]["schemas"];
    check_references(&document, "#/components/schemas/", schemas);
    let patch =
        &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "kind": "Deployment", "version": "v1"})
    );
    let names: Vec<&str> = patch["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|parameter| parameter["name"].as_str())
        .collect();
    assert_eq!(
        names,
        ["dryRun", "fieldManager", "fieldValidation", "force"]
    );
    assert_eq!(
        schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
    );
    let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(
        ports["x-kubernetes-list-map-keys"],
        json!(["containerPort", "protocol"])
    );
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
    assert_eq!(ports["x-kubernetes-patch-strategy"], "merge");
    assert!(
        ports["description"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    );
    let port = &schemas["io.k8s.api.core.v1.ContainerPort"]["properties"];
    assert_eq!(port["protocol"]["default"], "TCP");
    assert_eq!(port["containerPort"]["default"], 0);
    assert_eq!(
        schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]["oneOf"],
        json!([{"type": "integer"}, {"type": "string"}])
    );
}

#[test]
fn custom_kinds_stand_under_their_reversed_group() {
    let row = Row {
        group: "example.com".into(),
        version: "v1".into(),
        kind: "Widget".into(),
        plural: "widgets".into(),
        namespaced: false,
        verbs: vec!["get".into(), "list".into(), "patch".into()],
        subresources: Vec::new(),
        shows_deleted: false,
        schema: Some(json!({
            "type": "object",
            "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "nullable": true}}}},
        })),
    };
    let document = v3(
        &Texts::read(),
        "example.com",
        "v1",
        std::slice::from_ref(&row),
    );
    check_references(
        &document,
        "#/components/schemas/",
        &document["components"]["schemas"],
    );
    let widget = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(
        widget["x-kubernetes-group-version-kind"],
        json!([{"group": "example.com", "kind": "Widget", "version": "v1"}])
    );
    assert_eq!(
        widget["properties"]["spec"]["properties"]["size"]["nullable"],
        true
    );
    assert!(widget["properties"]["metadata"]["allOf"].is_array());
    let document = v2_part(&Texts::read(), &[row]);
    check_references(&document, "#/definitions/", &document["definitions"]);
    let widget = &document["definitions"]["com.example.v1.Widget"];
    assert_eq!(
        widget["properties"]["spec"]["properties"]["size"],
        json!({})
    );
}

/// With the reference document beside the checkout, definitions must agree with it field by field.
#[test]
fn definitions_agree_with_upstream_s_document() {
    // Reference data lies beside the checkout, never in it.
    let found = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .find_map(|folder| std::fs::read(folder.join("shared/kubernetes/swagger.json")).ok());
    let Some(text) = found else {
        eprintln!("skipped: no shared/kubernetes/swagger.json beside the checkout");
        return;
    };
    let reference: Value = serde_json::from_slice(&text).expect("the reference parses");
    let texts = Texts::read();
    let mut definitions = Definitions::new(Form::V2, &texts);
    let names = reference["definitions"].as_object().expect("definitions");
    for name in names.keys() {
        definitions.reference(name);
    }
    let ours = definitions.finish();
    let mut different = Vec::new();
    for (name, theirs) in names {
        let required = |schema: &Value| -> BTreeSet<String> {
            let list = schema["required"].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        // What is not served has no marks.
        let stable = !name.contains(".v1alpha") && !name.contains(".v1beta");
        let order = stable && ours[name]["required"] != theirs["required"];
        if ours[name]["type"] != theirs["type"]
            || required(&ours[name]) != required(theirs)
            || order
        {
            different.push(name.clone());
        }
        for (field, schema) in theirs["properties"].as_object().into_iter().flatten() {
            let mut own = ours[name]["properties"][field].clone();
            // The reference was written without them.
            for part in ["items", "additionalProperties"] {
                if let Some(inner) = own.get_mut(part).and_then(Value::as_object_mut) {
                    inner.remove("enum");
                }
            }
            for part in [
                "type",
                "format",
                "$ref",
                "items",
                "additionalProperties",
                "x-kubernetes-list-type",
                "x-kubernetes-map-type",
            ] {
                if own[part] != schema[part] && (stable || !part.starts_with("x-")) {
                    different.push(format!(
                        "{name}.{field} {part}: {} {}",
                        own[part], schema[part]
                    ));
                }
            }
        }
    }
    assert!(
        different.len() < 4,
        "{} differences:\n{}",
        different.len(),
        different.join("\n")
    );
}

#[test]
fn fields_with_fixed_values_list_them() {
    let document = v3(&Texts::read(), "apps", "v1", &[deployments()]);
    let schemas = &document["components"]["schemas"];
    let strategy = &schemas["io.k8s.api.apps.v1.DeploymentStrategy"]["properties"]["type"];
    assert_eq!(strategy["enum"], json!(["Recreate", "RollingUpdate"]));
    let text = strategy["description"].as_str().expect("a description");
    assert!(
        text.contains("\n\nPossible enum values:\n - `\"Recreate\"` Kill all existing pods"),
        "{text}"
    );
    let modes =
        &schemas["io.k8s.api.core.v1.PersistentVolumeClaimSpec"]["properties"]["accessModes"];
    assert_eq!(modes["items"]["enum"][3], "ReadWriteOncePod");
    assert!(modes.get("enum").is_none());
}

#[test]
fn every_field_with_fixed_values_exists() {
    for field in enums::Enums::read().fields() {
        let (definition, name) = field.rsplit_once('.').expect("a type and a field");
        let ty = crate::table::definition(&format!("io.k8s.api.{definition}"));
        let found = ty.is_some_and(|ty| ty.node().field(name).is_some());
        assert!(found, "{field}");
    }
}

#[test]
fn addresses_lose_their_brackets() {
    let check = |text: &str, expected: &str| assert_eq!(marks::unwrapped(text), expected);
    check("see <https://a.b/c>.", "see https://a.b/c.");
    check("<http://a> and <b>", "http://a and <b>");
    check("cut <https://a", "cut <https://a");
}

#[test]
fn marks_of_definitions_are_shown() {
    let document = v3(&Texts::read(), "apps", "v1", &[deployments()]);
    let schemas = &document["components"]["schemas"];
    let profile = &schemas["io.k8s.api.core.v1.SeccompProfile"];
    assert_eq!(
        profile["x-kubernetes-unions"],
        json!([{
            "discriminator": "type",
            "fields-to-discriminateBy": {"localhostProfile": "LocalhostProfile"},
        }])
    );
    let spec = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"];
    assert_eq!(spec["tolerations"]["x-kubernetes-list-type"], "atomic");
    let action = &schemas["io.k8s.api.core.v1.ISCSIVolumeSource"];
    assert_eq!(action["required"], json!(["targetPortal", "iqn", "lun"]));
}
