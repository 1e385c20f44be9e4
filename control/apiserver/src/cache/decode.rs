//! Decodes a stored object for the indexer, without `metadata.managedFields`: that is often half of the object, and
//! nothing selects by it. Where nothing is selected by the content either, metadata is all that is kept.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// All of `json` is checked, whatever is kept.
pub(super) fn for_index(json: &[u8], content: bool) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let object = Part::Object { content }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(object)
}

#[derive(Clone, Copy)]
enum Part {
    Object { content: bool },
    Metadata,
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = match (self, name.as_str()) {
                (Self::Object { .. }, "metadata") => members.next_value_seed(Self::Metadata)?,
                (Self::Object { content: false }, _) | (Self::Metadata, "managedFields") => {
                    members.next_value::<IgnoredAny>()?;
                    continue;
                }
                _ => members.next_value()?,
            };
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn leaves_out_nothing_else() {
        let full = json!({
            "kind": "Pod",
            "metadata": {"name": "a", "labels": {"managedFields": "kept"}, "managedFields": [{"manager": "kubectl"}]},
            "spec": {"metadata": {"managedFields": [1]}, "managedFields": null},
        });
        let mut expected = full.clone();
        expected["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("managedFields");
        let full = full.to_string();
        assert_eq!(for_index(full.as_bytes(), true).unwrap(), expected);
        let metadata = json!({"metadata": expected["metadata"]});
        assert_eq!(for_index(full.as_bytes(), false).unwrap(), metadata);
    }

    #[test]
    fn refuses_what_is_no_object() {
        for json in [
            "",
            "1",
            "[]",
            "{",
            "{}x",
            r#"{"metadata":1}"#,
            r#"{"data":{"a":}}"#,
        ] {
            for content in [true, false] {
                assert!(for_index(json.as_bytes(), content).is_err(), "{json}");
            }
        }
    }
}
