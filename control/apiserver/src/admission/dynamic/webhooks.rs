//! MutatingAdmissionWebhook, ValidatingAdmissionWebhook.
//!
//! Mutating webhooks are called one after the other, each with what the last one made of the object; validating ones all
//! at once. A webhook that cannot be called counts as its `failurePolicy` says.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use serde_json::{Value, json};

use super::{
    Compiled, Invoked, Matched, Subject, conformed,
    expressions::{Conditions, Input},
    internal,
    matching::Match,
    put_back, review, shown,
};
use crate::{
    admission::{Attributes, Plugin, forbidden},
    context::Api,
    handlers::write::new_uid,
    status::{Cause, Details, Failure, Result, Status},
    webhook::{Destination, credentials::Caller},
};

/// One webhook of a configuration.
struct Hook {
    name: String,
    configuration: String,
    matching: Match,
    conditions: Conditions,
    destination: std::result::Result<Destination, String>,
    /// `failurePolicy: Fail`
    fail: bool,
    /// Dry runs may call it.
    harmless: bool,
    timeout: Duration,
    /// `reinvocationPolicy: IfNeeded`
    reinvocable: bool,
    /// The newest version of reviews that it speaks.
    version: &'static str,
}

impl Hook {
    fn read(configuration: &str, hook: &Value) -> Self {
        let text = |field: &str| hook[field].as_str().unwrap_or_default();
        let fail = text("failurePolicy") != "Ignore";
        let versions = hook["admissionReviewVersions"].as_array();
        let first = versions
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .find(|version| matches!(*version, "v1" | "v1beta1"));
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(10);
        Self {
            name: text("name").to_owned(),
            configuration: configuration.to_owned(),
            matching: Match::of_webhook(hook),
            conditions: Conditions::new(&hook["matchConditions"], fail),
            destination: Destination::read(&hook["clientConfig"]),
            fail,
            harmless: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            timeout: Duration::from_secs(seconds),
            reinvocable: text("reinvocationPolicy") == "IfNeeded",
            version: if first == Some("v1beta1") {
                "v1beta1"
            } else {
                "v1"
            },
        }
    }

    /// Names are unique within a configuration.
    fn id(&self) -> String {
        format!("{}/{}", self.configuration, self.name)
    }
}

fn hooks(collections: Vec<Vec<Value>>) -> Vec<Hook> {
    let mut hooks = Vec::new();
    for configuration in collections.into_iter().flatten() {
        let name = crate::codec::meta(&configuration, "name");
        let webhooks = configuration["webhooks"].as_array();
        hooks.extend(
            webhooks
                .into_iter()
                .flatten()
                .map(|hook| Hook::read(name, hook)),
        );
    }
    hooks
}

/// Why a write does not simply go on after a webhook.
enum Outcome {
    /// The webhook could not be asked or did not answer.
    Uncalled(String),
    /// It, or its answer, refuses the write.
    Refused(Failure),
}

impl Hook {
    /// The version this webhook wants to see, if it wants to see this write at all.
    async fn wants(
        &self,
        api: &Api,
        attributes: &Attributes<'_>,
        subject: &Subject,
    ) -> Result<Option<Matched>> {
        let Some(matched) = self.matching.matches(api, attributes, subject).await? else {
            return Ok(None);
        };
        if self.conditions.is_empty() {
            return Ok(Some(matched));
        }
        let request = review::request(attributes, subject, &matched);
        let object = shown(api, attributes, &attributes.object, &matched).await?;
        let old = shown(api, attributes, attributes.old, &matched).await?;
        let input = Input {
            api,
            attributes,
            subject,
            request: &request,
            object: &object,
            old: &old,
            params: None,
            namespace: Some(&Value::Null),
        };
        match self.conditions.hold(input) {
            Ok(true) => Ok(Some(matched)),
            Ok(false) => Ok(None),
            Err(why) => Err(forbidden(attributes, &why)),
        }
    }

    /// Asks the webhook. The answer allows the write.
    async fn ask(
        &self,
        api: &Api,
        attributes: &Attributes<'_>,
        subject: &Subject,
        matched: &Matched,
        mutating: bool,
    ) -> std::result::Result<review::Answer, Outcome> {
        if attributes.dry_run && !self.harmless {
            return Err(Outcome::Refused(Status::bad_request(format!(
                "admission webhook {:?} does not support dry run",
                self.name
            ))));
        }
        let destination = self
            .destination
            .as_ref()
            .map_err(|why| Outcome::Uncalled(format!("could not get REST client: {why}")))?;
        let uid = new_uid();
        let request = review::request(attributes, subject, matched);
        let object = shown(api, attributes, &attributes.object, matched).await;
        let object = object.map_err(Outcome::Refused)?;
        let old = shown(api, attributes, attributes.old, matched).await;
        let old = old.map_err(Outcome::Refused)?;
        let review = review::review(self.version, &uid, request, &object, &old);
        let body = Bytes::from(review.to_string());
        let started = std::time::Instant::now();
        let caller = if mutating {
            Caller::Mutating
        } else {
            Caller::Validating
        };
        let answer = api
            .webhooks
            .post(caller, destination, body, self.timeout)
            .await;
        api.metrics.admission.webhook_called(
            &self.name,
            if mutating { "admit" } else { "validating" },
            attributes.operation.as_str(),
            started.elapsed(),
        );
        let answer = answer.map_err(|error| {
            Outcome::Uncalled(match error {
                crate::webhook::CallError::Client(why) => {
                    format!("could not get REST client: {why}")
                }
                crate::webhook::CallError::Call(why) => format!("failed to call webhook: {why}"),
            })
        })?;
        let answer = review::read(&answer, self.version, &uid, mutating).map_err(|why| {
            Outcome::Uncalled(format!("received invalid webhook response: {why}"))
        })?;
        if answer.allowed {
            return Ok(answer);
        }
        Err(Outcome::Refused(refusal(&self.name, &answer.status)))
    }

    /// What an uncalled webhook means.
    ///
    /// # Errors
    /// 500 where the policy is to fail.
    fn uncalled(&self, api: &Api, why: &str) -> Result<()> {
        let why = format!("failed calling webhook {:?}: {why}", self.name);
        if self.fail {
            tracing::warn!(
                webhook = self.name,
                reason = why,
                "a webhook refuses a write by not answering"
            );
            api.metrics
                .admission
                .webhook_rejected(&self.name, "calling_webhook_error");
            return Err(internal(why));
        }
        tracing::warn!(
            webhook = self.name,
            reason = why,
            "a webhook did not answer and is passed over"
        );
        api.metrics.admission.webhook_failed_open(&self.name);
        Ok(())
    }
}

/// A webhook's refusal as the answer of the request.
fn refusal(name: &str, status: &Value) -> Failure {
    const LEAST: u64 = 400;
    let denied = format!("admission webhook {name:?} denied the request");
    let text = |field: &str| status[field].as_str().unwrap_or_default();
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = status["code"].as_u64().unwrap_or(0).max(LEAST);
    let details = status["details"].is_object().then(|| {
        let details = &status["details"];
        let text = |field: &str| details[field].as_str().unwrap_or_default().to_owned();
        let causes = details["causes"].as_array().into_iter().flatten();
        let causes = causes.map(|cause| {
            let text = |field: &str| cause[field].as_str().unwrap_or_default().to_owned();
            Cause {
                reason: text("reason").into(),
                message: text("message"),
                field: text("field"),
            }
        });
        Details {
            name: text("name"),
            group: text("group"),
            kind: text("kind"),
            uid: text("uid"),
            causes: causes.collect(),
            retry_after_seconds: details["retryAfterSeconds"]
                .as_u64()
                .and_then(|s| u32::try_from(s).ok())
                .unwrap_or(0),
        }
    });
    let mut refused = Status::plain(u16::try_from(code).unwrap_or(403), "", message);
    refused.reason = text("reason").to_owned().into();
    refused.details = details;
    refused
}

impl Attributes<'_> {
    fn take_notes(&mut self, hook: &Hook, answer: &mut review::Answer) {
        self.warnings.append(&mut answer.warnings);
        let notes = answer.annotations.drain(..);
        let notes = notes.map(|(key, value)| (format!("{}/{key}", hook.name), value));
        self.annotations.extend(notes);
    }
}

pub struct MutatingAdmissionWebhook {
    hooks: Compiled<Vec<Hook>>,
}

impl Default for MutatingAdmissionWebhook {
    fn default() -> Self {
        Self {
            hooks: Compiled::new(&["mutatingwebhookconfigurations"]),
        }
    }
}

#[async_trait]
impl Plugin for MutatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    async fn mutate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        let hooks = self.hooks.load(api, hooks);
        if hooks.is_empty() || Subject::of(attributes).is_exempt() {
            return Ok(());
        }
        let running = attributes.reinvocation.running;
        let mut invoked = std::mem::take(&mut attributes.reinvocation.webhooks);
        invoked.begin(running, &attributes.object);
        let done = mutate(api, attributes, &hooks, &mut invoked).await;
        invoked.last_output = Some(attributes.object.clone());
        attributes.reinvocation.webhooks = invoked;
        done
    }
}

async fn mutate(
    api: &Api,
    attributes: &mut Attributes<'_>,
    hooks: &[Hook],
    invoked: &mut Invoked,
) -> Result<()> {
    let running = attributes.reinvocation.running;
    for (index, hook) in hooks.iter().enumerate() {
        let subject = Subject::of(attributes);
        let Some(matched) = hook.wants(api, attributes, &subject).await? else {
            continue;
        };
        let id = hook.id();
        if running && !invoked.again.contains(&id) {
            continue;
        }
        let answer = hook.ask(api, attributes, &subject, &matched, true).await;
        let place = format!("round_{}_index_{index}", u8::from(running));
        let changed = match answer {
            Ok(mut answer) => {
                attributes.take_notes(hook, &mut answer);
                let changed = patch(api, hook, attributes, &matched, &answer).await?;
                attributes.annotations.push((
                    format!("mutation.webhook.admission.k8s.io/{place}"),
                    json!({
                        "configuration": hook.configuration, "webhook": hook.name, "mutated": changed,
                    })
                    .to_string(),
                ));
                changed
            }
            Err(Outcome::Refused(status)) => {
                api.metrics
                    .admission
                    .webhook_rejected(&hook.name, "no_error");
                return Err(status);
            }
            Err(Outcome::Uncalled(why)) => {
                hook.uncalled(api, &why)?;
                attributes.annotations.push((
                    format!("failed-open.mutating.webhook.admission.k8s.io/{place}"),
                    hook.name.clone(),
                ));
                false
            }
        };
        if changed {
            invoked.changed();
            attributes.reinvocation.due = true;
        }
        if hook.reinvocable {
            invoked.reinvocable.insert(id);
        }
    }
    Ok(())
}

/// Applies a webhook's patch. Whether it changed anything.
async fn patch(
    api: &Api,
    hook: &Hook,
    attributes: &mut Attributes<'_>,
    matched: &Matched,
    answer: &review::Answer,
) -> Result<bool> {
    if answer.patch.is_empty() {
        return Ok(false);
    }
    if !matches!(answer.patch_type.as_str(), "JSONPatch" | "") {
        let why = format!("unsupported patch type {:?}", answer.patch_type);
        return Err(internal(format!(
            "failed calling webhook {:?}: {why}",
            hook.name
        )));
    }
    let operations: Value = serde_json::from_slice(&answer.patch).map_err(internal)?;
    if operations.as_array().is_some_and(Vec::is_empty) {
        return Ok(false);
    }
    if attributes.object.is_null() {
        return Err(internal(format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        )));
    }
    let before = shown(api, attributes, &attributes.object, matched).await?;
    let after = skep_apply::json_patch(&before, &operations).map_err(internal)?;
    let after = conformed(attributes, after, matched).map_err(internal)?;
    if after == before {
        return Ok(false);
    }
    put_back(api, attributes, after, matched).await?;
    Ok(true)
}

pub struct ValidatingAdmissionWebhook {
    hooks: Compiled<Vec<Hook>>,
}

impl Default for ValidatingAdmissionWebhook {
    fn default() -> Self {
        Self {
            hooks: Compiled::new(&["validatingwebhookconfigurations"]),
        }
    }
}

#[async_trait]
impl Plugin for ValidatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    async fn validate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        let hooks: Arc<Vec<Hook>> = self.hooks.load(api, hooks);
        if hooks.is_empty() {
            return Ok(());
        }
        let subject = Subject::of(attributes);
        if subject.is_exempt() {
            return Ok(());
        }
        let mut wanted = Vec::new();
        for hook in hooks.iter() {
            if let Some(matched) = hook.wants(api, attributes, &subject).await? {
                wanted.push((hook, matched));
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let asked = &*attributes;
        let calls = wanted
            .iter()
            .map(|(hook, matched)| hook.ask(api, asked, &subject, matched, false));
        let answers = join_all(calls).await;
        let mut first = None;
        for (index, ((hook, _), answer)) in wanted.iter().zip(answers).enumerate() {
            let refused = match answer {
                Ok(mut answer) => {
                    attributes.take_notes(hook, &mut answer);
                    continue;
                }
                Err(Outcome::Refused(status)) => {
                    api.metrics
                        .admission
                        .webhook_rejected(&hook.name, "no_error");
                    Err(status)
                }
                Err(Outcome::Uncalled(why)) => hook.uncalled(api, &why),
            };
            match refused {
                Ok(()) => attributes.annotations.push((
                    format!(
                        "failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}"
                    ),
                    hook.name.clone(),
                )),
                Err(status) => {
                    first.get_or_insert(status);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }
}
