//! Probes and lifecycle hooks.

use k8s_openapi::api::core::v1::{
    ExecAction, GRPCAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction,
    TCPSocketAction,
};

use super::{
    net::{validate_port, validate_port_number},
    numbers::validate_non_negative,
    text,
};
use crate::{
    field::{Errors, Path},
    zero::{List, Text},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeOf {
    Liveness,
    Readiness,
    Startup,
}

pub fn validate_probe(
    probe: Option<&Probe>,
    of: ProbeOf,
    grace_seconds: Option<i64>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let Some(probe) = probe else { return };
    let handler = Handler {
        exec: probe.exec.as_ref(),
        http_get: probe.http_get.as_ref(),
        tcp_socket: probe.tcp_socket.as_ref(),
        grpc: probe.grpc.as_ref(),
        sleep: None,
    };
    handler.validate(grace_seconds, path, errors);
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        validate_non_negative(value.unwrap_or(0).into(), &path.child(field), errors);
    }
    let grace_path = path.child("terminationGracePeriodSeconds");
    if let Some(seconds) = probe.termination_grace_period_seconds {
        if seconds <= 0 {
            errors.invalid(&grace_path, seconds, "must be greater than 0");
        }
        if of == ProbeOf::Readiness {
            errors.invalid(&grace_path, seconds, "must not be set for readinessProbes");
        }
    }
    let successes = probe.success_threshold.unwrap_or(0);
    if of != ProbeOf::Readiness && successes != 1 {
        errors.invalid(&path.child("successThreshold"), successes, "must be 1");
    }
}

pub fn validate_lifecycle(
    lifecycle: &Lifecycle,
    grace_seconds: Option<i64>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    for (field, hook) in [
        ("postStart", &lifecycle.post_start),
        ("preStop", &lifecycle.pre_stop),
    ] {
        if let Some(hook) = hook {
            Handler::of_hook(hook).validate(grace_seconds, &path.child(field), errors);
        }
    }
}

struct Handler<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc: Option<&'a GRPCAction>,
    sleep: Option<&'a SleepAction>,
}

impl<'a> Handler<'a> {
    fn of_hook(hook: &'a LifecycleHandler) -> Self {
        Self {
            exec: hook.exec.as_ref(),
            http_get: hook.http_get.as_ref(),
            tcp_socket: hook.tcp_socket.as_ref(),
            grpc: None,
            sleep: hook.sleep.as_ref(),
        }
    }

    fn validate(&self, grace_seconds: Option<i64>, path: &Path<'_>, errors: &mut Errors) {
        let mut found = false;
        let mut first = |present: bool, path: &Path<'_>, errors: &mut Errors| {
            if present && found {
                errors.forbidden(path, "may not specify more than 1 handler type");
            }
            let first = present && !found;
            found |= present;
            first
        };
        let at = path.child("exec");
        if first(self.exec.is_some(), &at, errors)
            && self
                .exec
                .is_some_and(|exec| exec.command.items().is_empty())
        {
            errors.required(&at.child("command"), "");
        }
        let at = path.child("httpGet");
        if first(self.http_get.is_some(), &at, errors)
            && let Some(http_get) = self.http_get
        {
            validate_http_get(http_get, &at, errors);
        }
        let at = path.child("tcpSocket");
        if first(self.tcp_socket.is_some(), &at, errors)
            && let Some(tcp) = self.tcp_socket
        {
            validate_port(&tcp.port, &at.child("port"), errors);
        }
        let at = path.child("grpc");
        if first(self.grpc.is_some(), &at, errors)
            && let Some(grpc) = self.grpc
        {
            validate_port_number(grpc.port, &at.child("port"), errors);
        }
        let at = path.child("sleep");
        if first(self.sleep.is_some(), &at, errors)
            && let (Some(sleep), Some(grace)) = (self.sleep, grace_seconds)
            && !(0..=grace).contains(&sleep.seconds)
        {
            errors.invalid(
                &at,
                sleep.seconds,
                format!(
                    "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                ),
            );
        }
        if !found {
            errors.required(path, "must specify a handler type");
        }
    }
}

fn validate_http_get(http_get: &HTTPGetAction, path: &Path<'_>, errors: &mut Errors) {
    if http_get.path.text().is_empty() {
        errors.required(&path.child("path"), "");
    }
    validate_port(&http_get.port, &path.child("port"), errors);
    let scheme = http_get.scheme.text();
    if !matches!(scheme, "HTTP" | "HTTPS") {
        errors.not_supported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for header in http_get.http_headers.items() {
        errors.invalid_each(
            &path.child("httpHeaders"),
            &header.name,
            text::http_header_name(&header.name),
        );
    }
}
