//! `metrics.k8s.io/v1beta1` in the table of resources: two kinds that are read and never stored.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use skep_api::{
    field::FieldError,
    printer::{Column, Table},
    resource::{ResourceDef, Scope, UnknownField, Verb},
    strategy::{Strategy, UpdateOf, Warnings},
};

use crate::registry::Resource;

pub const GROUP: &str = "metrics.k8s.io";
pub const VERSION: &str = "v1beta1";

/// No verb of the rows writes.
struct ReadOnly;

impl Strategy for ReadOnly {
    fn default(&self, _: &mut Value) -> bool {
        false
    }

    fn create(&self, _: &mut Value) -> Result<Warnings, Vec<FieldError>> {
        Ok(Vec::new())
    }

    fn update(
        &self,
        _: &mut Value,
        _: &Value,
        _: UpdateOf<'_>,
    ) -> Result<Warnings, Vec<FieldError>> {
        Ok(Vec::new())
    }
}

pub fn rows() -> [Resource; 2] {
    [
        row("NodeMetrics", "nodes", Scope::Cluster),
        row("PodMetrics", "pods", Scope::Namespaced),
    ]
}

fn row(kind: &'static str, plural: &'static str, scope: Scope) -> Resource {
    let columns = vec![
        Column::name(),
        Column::new("cpu", "CPU usage").format("quantity"),
        Column::new("memory", "Memory usage").format("quantity"),
        Column::new("Window", "The time over which it was measured").format("duration"),
    ];
    let def = ResourceDef {
        group: GROUP.into(),
        version: VERSION.into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: "".into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        scope,
        verbs: vec![Verb::Get, Verb::List],
        subresources: Vec::new(),
        conversion: None,
        selectable_names: Vec::new(),
        selectable_fields: Arc::new(|_| Vec::new()),
        unknown_field: UnknownField::OnlyMetadata,
        deprecation: None,
        field_annotations: &[],
        schema: None,
        strategy: Arc::new(ReadOnly),
        printer: Arc::new(Table { columns, cells }),
    };
    let mut resource = Resource::new(def, false);
    resource.openapi = Some(Arc::new(schema(kind)));
    resource
}

fn cells(object: &Value, _: Timestamp) -> Vec<Value> {
    let usages: Vec<&Value> = match object["containers"].as_array() {
        Some(containers) => containers.iter().map(|c| &c["usage"]).collect(),
        None => vec![&object["usage"]],
    };
    let sum = |resource: &str, suffix: &str| -> u64 {
        let amounts = usages.iter().filter_map(|usage| {
            let text = usage[resource].as_str()?;
            text.strip_suffix(suffix)?.parse::<u64>().ok()
        });
        amounts.sum()
    };
    vec![
        skep_api::printer::name(object),
        format!("{}n", sum("cpu", "n")).into(),
        format!("{}Ki", sum("memory", "Ki")).into(),
        object["window"].clone(),
    ]
}

fn schema(kind: &str) -> Value {
    let quantity = json!({"type": "string"});
    let usage = json!({
        "type": "object", "additionalProperties": quantity,
        "description": "The amounts of cpu (in nanocores) and memory (the working set) used.",
    });
    let mut properties = json!({
        "metadata": {"type": "object"},
        "timestamp": {
            "type": "string", "format": "date-time",
            "description": "When the window over which usage was measured ended.",
        },
        "window": {"type": "string", "description": "How long the window was."},
    });
    if kind == "PodMetrics" {
        properties["containers"] = json!({
            "type": "array",
            "items": {
                "type": "object", "required": ["name", "usage"],
                "properties": {"name": {"type": "string"}, "usage": usage},
            },
        });
    } else {
        properties["usage"] = usage;
    }
    json!({
        "type": "object", "properties": properties,
        "description": format!("{kind} says what is used, as the node's agent measured it."),
    })
}
