//! Asks the metrics APIs: `metrics.k8s.io`, and `custom.metrics.k8s.io` and `external.metrics.k8s.io` where an add-on
//! serves them. Errors are upstream's sentences, as they end in conditions and events.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::autoscaling::v2::{CrossVersionObjectReference, MetricIdentifier},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector},
};
use kube::{Client, core::Selector};
use serde::Deserialize;
use serde_json::Value;
use skep_scheduler::quantity;

use super::replicas::{Sample, Samples};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodMetrics {
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    timestamp: Timestamp,
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(default)]
    usage: std::collections::BTreeMap<String, Quantity>,
}

/// Of both other APIs; an external one has no object.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricValue {
    #[serde(default)]
    described_object: Described,
    timestamp: Timestamp,
    window_seconds: Option<i64>,
    window: Option<i64>,
    value: Quantity,
}

#[derive(Deserialize, Default)]
struct Described {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct List<T> {
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

pub struct Metrics {
    client: Client,
}

/// What a request for a path that nobody serves is answered with.
enum Refusal {
    NotServed,
    Other(String),
}

impl Metrics {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn get<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Refusal> {
        let query: Vec<String> = query
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| format!("{key}={}", escape(value)))
            .collect();
        let uri = match query.is_empty() {
            true => path.to_owned(),
            false => format!("{path}?{}", query.join("&")),
        };
        let request = http::Request::get(uri).body(Vec::new());
        let request = request.map_err(|error| Refusal::Other(error.to_string()))?;
        match self.client.request::<T>(request).await {
            Ok(answer) => Ok(answer),
            Err(kube::Error::Api(status)) if status.code == 404 => Err(Refusal::NotServed),
            Err(kube::Error::Api(status)) => Err(Refusal::Other(status.message.clone())),
            Err(error) => Err(Refusal::Other(error.to_string())),
        }
    }

    /// The use of one resource by the pods, or by one container of each.
    pub async fn resource(
        &self,
        namespace: &str,
        selector: &str,
        resource: &str,
        container: Option<&str>,
    ) -> Result<Samples, String> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods");
        let list: Result<List<PodMetrics>, _> =
            self.get(&path, &[("labelSelector", selector)]).await;
        let list = list.map_err(|refusal| {
            let why = match refusal {
                Refusal::NotServed => {
                    "the server could not find the requested resource (get pods.metrics.k8s.io)"
                        .to_owned()
                }
                Refusal::Other(why) => why,
            };
            format!("unable to fetch metrics from resource metrics API: {why}")
        })?;
        if list.items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        let mut samples = Samples::new();
        for pod in list.items {
            let name = pod.metadata.name.unwrap_or_default();
            let mut containers = pod.containers.iter();
            let value_milli = match container {
                Some(wanted) => {
                    let found = containers.find(|c| c.name == wanted).ok_or_else(|| {
                        format!(
                            "failed to get container metrics: container {wanted} not present in metrics for pod {namespace}/{name}"
                        )
                    })?;
                    found.usage.get(resource).map(quantity::milli)
                }
                None => containers
                    .map(|c| c.usage.get(resource).map(quantity::milli))
                    .try_fold(0i64, |sum, own| Some(sum.saturating_add(own?))),
            };
            // Not said of this pod: it counts as one without metrics.
            if let Some(value_milli) = value_milli {
                let window = duration(&pod.window);
                let at = pod.timestamp;
                samples.insert(
                    name,
                    Sample {
                        value_milli,
                        at,
                        window,
                    },
                );
            }
        }
        Ok(samples)
    }

    /// The served version of a group of metrics.
    async fn version(&self, group: &str) -> Result<String, Refusal> {
        let answer: Value = self.get(&format!("/apis/{group}"), &[]).await?;
        let version = answer["preferredVersion"]["version"].as_str();
        version.map(str::to_owned).ok_or(Refusal::NotServed)
    }

    async fn custom(
        &self,
        path: &str,
        pods: &str,
        metric: &MetricIdentifier,
    ) -> Result<List<MetricValue>, String> {
        const GROUP: &str = "custom.metrics.k8s.io";
        let why = |refusal| {
            let why = match refusal {
                Refusal::NotServed => format!("no custom metrics API ({GROUP}) registered"),
                Refusal::Other(why) => why,
            };
            format!("unable to fetch metrics from custom metrics API: {why}")
        };
        let version = self.version(GROUP).await.map_err(why)?;
        let selector = selector_text(metric.selector.as_ref())?;
        let query = [("labelSelector", pods), ("metricLabelSelector", &selector)];
        let path = format!("/apis/{GROUP}/{version}/{path}/{}", escape(&metric.name));
        let list: List<MetricValue> = self.get(&path, &query).await.map_err(|refusal| {
            let why = match refusal {
                Refusal::NotServed => format!(
                    "the server could not find the metric {} for pods",
                    metric.name
                ),
                Refusal::Other(why) => why,
            };
            format!("unable to fetch metrics from custom metrics API: {why}")
        })?;
        if list.items.is_empty() {
            return Err("no metrics returned from custom metrics API".to_owned());
        }
        Ok(list)
    }

    pub async fn pods(
        &self,
        namespace: &str,
        selector: &str,
        metric: &MetricIdentifier,
    ) -> Result<Samples, String> {
        let path = format!("namespaces/{namespace}/pods/*");
        let list = self.custom(&path, selector, metric).await?;
        let sample = |value: MetricValue| {
            let seconds = value.window_seconds.or(value.window).unwrap_or(60);
            let sample = Sample {
                value_milli: quantity::milli(&value.value),
                at: value.timestamp,
                window: SignedDuration::from_secs(seconds),
            };
            (value.described_object.name, sample)
        };
        Ok(list.items.into_iter().map(sample).collect())
    }

    /// A metric of one object; `resource` is its plural with its group.
    pub async fn object(
        &self,
        namespace: &str,
        resource: &str,
        of: &CrossVersionObjectReference,
        metric: &MetricIdentifier,
    ) -> Result<i64, String> {
        let path = if of.kind == "Namespace" && resource == "namespaces" {
            format!("namespaces/{}/metrics", of.name)
        } else {
            format!("namespaces/{namespace}/{resource}/{}", of.name)
        };
        let list = self.custom(&path, "", metric).await?;
        Ok(quantity::milli(&list.items[0].value))
    }

    /// The sum of a metric's series.
    pub async fn external(
        &self,
        namespace: &str,
        metric: &MetricIdentifier,
    ) -> Result<i64, String> {
        let selector = selector_text(metric.selector.as_ref())?;
        let name = escape(&metric.name);
        let path = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{name}");
        let list: Result<List<MetricValue>, _> =
            self.get(&path, &[("labelSelector", &selector)]).await;
        let list = list.map_err(|refusal| {
            let why = match refusal {
                Refusal::NotServed => format!(
                    "the server could not find the requested resource (get {name}.external.metrics.k8s.io)"
                ),
                Refusal::Other(why) => why,
            };
            format!("unable to fetch metrics from external metrics API: {why}")
        })?;
        if list.items.is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        let values = list.items.iter().map(|value| quantity::milli(&value.value));
        Ok(values.fold(0, i64::saturating_add))
    }
}

fn selector_text(selector: Option<&LabelSelector>) -> Result<String, String> {
    let Some(selector) = selector else {
        return Ok(String::new());
    };
    let parsed: Result<Selector, _> = selector.clone().try_into();
    parsed
        .map(|selector| selector.to_string())
        .map_err(|error| error.to_string())
}

/// Percent-encodes what may not stand in a path segment or a query's value (RFC 3986 §2.3).
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(byte.into());
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// Reads what Go writes: `1m30.5s`. What cannot be read is a minute, as for a metric that does not say.
fn duration(text: &str) -> SignedDuration {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let Some((number, tail)) = end.map(|end| rest.split_at(end)) else {
            return SignedDuration::from_mins(1);
        };
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return SignedDuration::from_mins(1),
        };
        let Ok(number) = number.parse::<f64>() else {
            return SignedDuration::from_mins(1);
        };
        total += number * seconds;
        rest = tail;
    }
    SignedDuration::from_millis((total * 1000.0) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_go_durations() {
        for (text, ms) in [
            ("15s", 15_000),
            ("10.062s", 10_062),
            ("1m0s", 60_000),
            ("1h1m1.5s", 3_661_500),
            ("250ms", 250),
            ("rubbish", 60_000),
            ("5", 60_000),
        ] {
            assert_eq!(duration(text).as_millis(), ms, "{text}");
        }
    }

    #[test]
    fn selectors_survive_a_url() {
        assert_eq!(
            escape("app=web,tier in (a, b)"),
            "app%3Dweb%2Ctier%20in%20%28a%2C%20b%29"
        );
    }
}
