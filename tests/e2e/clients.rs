//! Clients that other people make: the newest kubectl, Helm, and the Python client.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use skep_tests::client::Client;
use skep_tests::real_clients::{self, Missing};

use crate::Story;

/// `None`, with the reason printed: the client could not be fetched.
fn or_skip<T>(found: Result<T, Missing>) -> Option<T> {
    found
        .inspect_err(|reason| println!("SKIPPED: {reason}"))
        .ok()
}

pub(crate) fn newest_kubectl(story: &Story<'_>) -> Result<()> {
    let Some((program, _)) = or_skip(real_clients::kubectl_and_helm()) else {
        return Ok(());
    };
    let kubectl = Client::new(program, story.kubectl.kubeconfig(), story.namespace);
    kubectl.run(&["create", "configmap", "c", "--from-literal=a=1"])?;
    let folder = tempfile::tempdir()?;
    let manifest = folder.path().join("applied.yaml");
    std::fs::write(
        &manifest,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied}\ndata: {a: '1'}\n",
    )?;
    let manifest = manifest.to_str().context("a path")?;
    kubectl.expect(&["apply", "-f", manifest], "configmap/applied created")?;
    kubectl.expect(&["apply", "-f", manifest], "configmap/applied unchanged")?;
    kubectl.expect(
        &[
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            manifest,
        ],
        "configmap/applied serverside-applied",
    )?;
    kubectl.run(&["diff", "-f", manifest])?;
    kubectl.expect(&["explain", "deployment.spec.strategy"], "rollingUpdate")?;
    kubectl.expect(&["api-resources", "--api-group=apps"], "statefulsets")?;
    kubectl.expect(&["auth", "whoami"], "system:masters")?;
    kubectl.expect(&["auth", "can-i", "create", "pods"], "yes")?;
    kubectl.expect(&["create", "token", "default"], "eyJ")?;
    kubectl.expect(&["get", "configmaps"], "applied")?;
    kubectl.run(&["wait", "--for=create", "configmap/c", "--timeout=5s"])?;
    kubectl.refuse(
        &["create", "configmap", "c"],
        "configmaps \"c\" already exists",
    )?;
    kubectl.expect(&["delete", "configmap", "c"], "deleted")?;
    Ok(())
}

/// The values decide what the chart says, so that an upgrade changes something to roll back.
const CHART: [(&str, &str); 3] = [
    (
        "Chart.yaml",
        "apiVersion: v2\nname: demo\nversion: 1.0.0\nappVersion: '1'\n",
    ),
    ("values.yaml", "greeting: hello\n"),
    (
        "templates/all.yaml",
        "apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Release.Name }}
  labels: {app.kubernetes.io/managed-by: {{ .Release.Service }}}
data:
  greeting: {{ .Values.greeting | quote }}
---
apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}}
spec:
  selector: {app: {{ .Release.Name }}}
  ports: [{port: 80}]
{{- if .Values.account }}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: {{ .Release.Name }}}
{{- end }}
",
    ),
];

pub(crate) fn helm(story: &Story<'_>) -> Result<()> {
    let Some((_, program)) = or_skip(real_clients::kubectl_and_helm()) else {
        return Ok(());
    };
    let chart = tempfile::tempdir()?;
    std::fs::create_dir(chart.path().join("templates"))?;
    for (name, text) in CHART {
        std::fs::write(chart.path().join(name), text)?;
    }
    let chart = chart.path().to_str().context("a path")?;
    let helm = Client::new(program, story.kubectl.kubeconfig(), story.namespace);
    let greeting = |expected: &str| -> Result<()> {
        let map = story.kubectl.get(&["configmap", "demo"])?;
        let found = &map["data"]["greeting"];
        ensure!(found == expected, "the greeting is {found}, not {expected}");
        Ok(())
    };
    helm.expect(&["install", "demo", chart, "--wait"], "STATUS: deployed")?;
    greeting("hello")?;
    let values = ["--set", "greeting=goodbye", "--set", "account=true"];
    let upgrade = [&["upgrade", "demo", chart, "--wait"][..], &values].concat();
    helm.expect(&upgrade, "REVISION: 2")?;
    greeting("goodbye")?;
    story.kubectl.get(&["serviceaccount", "demo"])?;
    helm.expect(
        &["rollback", "demo", "1", "--wait"],
        "Rollback was a success",
    )?;
    greeting("hello")?;
    story
        .kubectl
        .refuse(&["get", "serviceaccount", "demo"], "NotFound")?;
    helm.expect(&["history", "demo"], "Rollback to 1")?;
    helm.expect(&["uninstall", "demo"], "uninstalled")?;
    story
        .kubectl
        .refuse(&["get", "service", "demo"], "NotFound")?;
    Ok(())
}

const PYTHON: &str = r#"
import sys, threading, time
from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException

config.load_kube_config(sys.argv[1])
namespace = sys.argv[2]
core, apps = client.CoreV1Api(), client.AppsV1Api()

meta = client.V1ObjectMeta(name="py", labels={"from": "python"})
made = core.create_namespaced_config_map(namespace, client.V1ConfigMap(metadata=meta, data={"a": "1"}))
assert made.metadata.uid and made.data == {"a": "1"}
try:
    core.create_namespaced_config_map(namespace, client.V1ConfigMap(metadata=meta))
    sys.exit("created twice")
except ApiException as error:
    assert error.status == 409, error
patched = core.patch_namespaced_config_map("py", namespace, {"data": {"b": "2"}})
assert patched.data == {"a": "1", "b": "2"}, patched.data
found = core.list_namespaced_config_map(namespace, label_selector="from=python")
assert [item.metadata.name for item in found.items] == ["py"]

deployment = client.V1Deployment(
    metadata=client.V1ObjectMeta(name="py"),
    spec=client.V1DeploymentSpec(
        replicas=0,
        selector=client.V1LabelSelector(match_labels={"app": "py"}),
        template=client.V1PodTemplateSpec(
            metadata=client.V1ObjectMeta(labels={"app": "py"}),
            spec=client.V1PodSpec(containers=[client.V1Container(name="c", image="skep.local/nginx:1")]),
        ),
    ),
)
apps.create_namespaced_deployment(namespace, deployment)
# The API leaves out a zero here, and the client takes it for None.
assert not apps.read_namespaced_deployment_scale("py", namespace).spec.replicas
scale = {"spec": {"replicas": 1}}
assert apps.patch_namespaced_deployment_scale("py", namespace, scale).spec.replicas == 1

def change():
    time.sleep(0.2)
    core.delete_namespaced_config_map("py", namespace)

threading.Thread(target=change).start()
kinds = []
version = found.metadata.resource_version
for event in watch.Watch().stream(core.list_namespaced_config_map, namespace, resource_version=version, timeout_seconds=20):
    if event["object"].metadata.name == "py":
        kinds.append(event["type"])
        if event["type"] == "DELETED":
            break
assert kinds[-1:] == ["DELETED"], kinds
try:
    core.read_namespaced_config_map("py", namespace)
    sys.exit("it is still there")
except ApiException as error:
    assert error.status == 404, error
apps.delete_namespaced_deployment("py", namespace)
print("done")
"#;

pub(crate) fn python(story: &Story<'_>) -> Result<()> {
    let Some(program) = or_skip(real_clients::python()) else {
        return Ok(());
    };
    let output = Command::new("timeout")
        .arg("100")
        .arg(program)
        .args(["-c", PYTHON])
        .arg(story.kubectl.kubeconfig())
        .arg(story.namespace)
        .output()?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success() && out.trim() == "done",
        "the Python client: {out}{err}"
    );
    Ok(())
}
