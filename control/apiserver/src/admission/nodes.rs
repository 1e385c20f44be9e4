//! TaintNodesByCondition, DefaultIngressClass, PodTopologyLabels.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin, object, objects};
use crate::{
    context::Api,
    status::{Result, Status},
};

/// A new node gets no pods until the node controller has seen that it is ready.
pub struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    async fn mutate(&self, _: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        const KEY: &str = "node.kubernetes.io/not-ready";
        if !attributes.is("", "nodes") || attributes.operation != Operation::Create {
            return Ok(());
        }
        let spec = &mut attributes.object["spec"];
        if spec.is_null() {
            *spec = json!({});
        }
        if !spec["taints"].is_array() {
            spec["taints"] = json!([]);
        }
        if let Some(taints) = spec["taints"].as_array_mut()
            && !taints
                .iter()
                .any(|t| t["key"] == KEY && t["effect"] == "NoSchedule")
        {
            taints.push(json!({"key": KEY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}

/// An Ingress without a class gets the default one.
pub struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
        const OLD: &str = "kubernetes.io/ingress.class";
        if !attributes.is("networking.k8s.io", "ingresses")
            || attributes.operation != Operation::Create
            || !attributes.object["spec"]["ingressClassName"].is_null()
            || !attributes.object["metadata"]["annotations"][OLD].is_null()
        {
            return Ok(());
        }
        let mut classes = objects(api, "networking.k8s.io", "ingressclasses", "");
        classes.retain(|c| c["metadata"]["annotations"][DEFAULT] == "true");
        match newest(classes) {
            Some(name) => attributes.object["spec"]["ingressClassName"] = name.into(),
            None => return Ok(()),
        }
        if attributes.object["spec"]["ingressClassName"].is_null() {
            return Err(Status::internal_message(
                "default ingress class without a name",
            ));
        }
        Ok(())
    }
}

/// A pod carries the zone and region of its node, so that what runs in it can know them (KEP-4742).
pub struct PodTopologyLabels;

#[async_trait]
impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        const LABELS: [&str; 2] = [
            "topology.kubernetes.io/zone",
            "topology.kubernetes.io/region",
        ];
        if !attributes.resource.is("", "pods") || attributes.operation != Operation::Create {
            return Ok(());
        }
        let node = match attributes.subresource {
            "" => &attributes.object["spec"]["nodeName"],
            // The binding's labels become the pod's.
            "binding" if attributes.object["target"]["kind"] == "Node" => {
                &attributes.object["target"]["name"]
            }
            _ => return Ok(()),
        };
        let Some(node) = node.as_str().filter(|name| !name.is_empty()) else {
            return Ok(());
        };
        let Some(node) = object(api, "", "nodes", "", node).await? else {
            return Ok(());
        };
        for label in LABELS {
            let value = &node["metadata"]["labels"][label];
            let own = &attributes.object["metadata"]["labels"][label];
            if !value.is_null() && own.is_null() {
                attributes.object["metadata"]["labels"][label] = value.clone();
            }
        }
        Ok(())
    }
}

/// The name of the object made last; of several made at once, the first by name.
pub fn newest(mut objects: Vec<Value>) -> Option<String> {
    objects.sort_by(|a, b| {
        let (a, b) = (&a["metadata"], &b["metadata"]);
        let by_age = b["creationTimestamp"]
            .as_str()
            .cmp(&a["creationTimestamp"].as_str());
        by_age.then_with(|| a["name"].as_str().cmp(&b["name"].as_str()))
    });
    objects.first()?["metadata"]["name"]
        .as_str()
        .map(str::to_owned)
}
