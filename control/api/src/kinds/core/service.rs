use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{ClientIPConfig, Service, ServicePort, ServiceSpec, SessionAffinityConfig},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    field::{Bad, Errors, Path},
    kinds::{Check, Kind, Rules, Selectable, text_at},
    strategy::Warnings,
    validation::{
        labels::validate_labels,
        net::{
            self, is_dual_stack, is_ipv6, parse_ip, validate_cidr, validate_ip,
            validate_non_special_ip, validate_port, validate_port_number, validate_protocol,
        },
        text,
    },
    zero::{List, Text, fill, set},
};

const NONE: &str = "None";
const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

impl Kind for Service {
    const RULES: Rules = Rules::namespaced()
        .name(crate::validation::meta::NameRule::Label)
        .status()
        .create_on_update()
        .update_checks(&[Check::Metadata, Check::MetadataChange]);

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        set_spec_defaults(spec);
        let Some(status) = &mut self.status else {
            return;
        };
        if spec.type_.text() != "LoadBalancer" {
            return;
        }
        let ingress = status
            .load_balancer
            .as_mut()
            .and_then(|balancer| balancer.ingress.as_mut());
        for one in ingress.into_iter().flatten() {
            if !one.ip.text().is_empty() {
                set(&mut one.ip_mode, "VIP".to_owned());
            }
        }
    }

    fn prepare_create(&mut self) {
        if let Some(spec) = &mut self.spec {
            normalize_cluster_ips(spec, None);
        }
    }

    fn prepare_update(&mut self, old: &Self) {
        let (Some(spec), Some(old)) = (&mut self.spec, &old.spec) else {
            return;
        };
        normalize_cluster_ips(spec, Some(old));
        drop_type_dependent_fields(spec, old);
    }

    fn validate(&self, errors: &mut Errors) {
        validate(self, None, errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        let (spec, old_spec) = (
            self.spec.clone().unwrap_or_default(),
            old.spec.clone().unwrap_or_default(),
        );
        validate_cluster_ip_change(&spec, &old_spec, errors);
        validate_family_change(&spec, &old_spec, errors);
        if spec.type_.text() == "LoadBalancer"
            && old_spec.type_.text() == "LoadBalancer"
            && spec.load_balancer_class != old_spec.load_balancer_class
        {
            errors.invalid(
                &Path::new("spec.loadBalancerClass"),
                spec.load_balancer_class.clone(),
                "may not change once set",
            );
        }
        validate_load_balancer_class(&spec, errors);
        if needs_health_check(&spec)
            && needs_health_check(&old_spec)
            && spec.health_check_node_port != old_spec.health_check_node_port
        {
            errors.forbidden(&Path::new("spec.healthCheckNodePort"), "field is immutable");
        }
        validate(self, Some(old), errors);
    }

    fn validate_status_update(&self, old: &Self, errors: &mut Errors) {
        validate_status(self, old, errors);
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        warnings(self)
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::network::service()
    }

    fn selectable() -> Option<&'static [Selectable]> {
        const FIELDS: &[Selectable] = &[
            Selectable {
                name: "spec.clusterIP",
                get: |one| text_at(one, "/spec/clusterIP"),
            },
            Selectable {
                name: "spec.type",
                get: |one| text_at(one, "/spec/type"),
            },
        ];
        Some(FIELDS)
    }
}

fn set_spec_defaults(spec: &mut ServiceSpec) {
    fill(&mut spec.session_affinity, "None");
    if spec.session_affinity.text() == "None" {
        spec.session_affinity_config = None;
    }
    if spec.session_affinity.text() == "ClientIP" {
        let timeout = spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref())
            .and_then(|config| config.timeout_seconds);
        if timeout.is_none() {
            spec.session_affinity_config = Some(SessionAffinityConfig {
                client_ip: Some(ClientIPConfig {
                    timeout_seconds: Some(10800),
                }),
            });
        }
    }
    fill(&mut spec.type_, "ClusterIP");
    for port in spec.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
        let unset = match &port.target_port {
            None | Some(IntOrString::Int(0)) => true,
            Some(IntOrString::String(name)) => name.is_empty(),
            Some(IntOrString::Int(_)) => false,
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    if is_externally_accessible(spec) {
        fill(&mut spec.external_traffic_policy, "Cluster");
    }
    if matches!(spec.type_.text(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set(&mut spec.internal_traffic_policy, "Cluster".to_owned());
    }
    if spec.type_.text() == "LoadBalancer" {
        set(&mut spec.allocate_load_balancer_node_ports, true);
    }
}

/// Its ports get node ports, unless its load balancer does without.
pub fn gives_node_ports(spec: &ServiceSpec) -> bool {
    match spec.type_.text() {
        "NodePort" => true,
        "LoadBalancer" => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    }
}

/// Reached from outside by a node's port, a load balancer or an external address.
pub fn is_externally_accessible(spec: &ServiceSpec) -> bool {
    match spec.type_.text() {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !spec.external_ips.items().is_empty(),
        _ => false,
    }
}

/// A load balancer that keeps the client's address must ask each node whether it has a backend.
pub fn needs_health_check(spec: &ServiceSpec) -> bool {
    spec.type_.text() == "LoadBalancer" && spec.external_traffic_policy.text() == "Local"
}

pub fn is_headless(spec: &ServiceSpec) -> bool {
    matches!(spec.cluster_ips.items(), [one] if one == NONE)
}

/// Keeps `clusterIP` the first of `clusterIPs`, whichever of them the client wrote.
pub fn normalize_cluster_ips(spec: &mut ServiceSpec, old: Option<&ServiceSpec>) {
    let ip = spec.cluster_ip.text().to_owned();
    let Some(old) = old else {
        if !ip.is_empty() && spec.cluster_ips.items().is_empty() {
            spec.cluster_ips = Some(vec![ip]);
        }
        return;
    };
    let old_ip = old.cluster_ip.text();
    let same_list = spec.cluster_ips.items() == old.cluster_ips.items();
    if ip.is_empty() && !old_ip.is_empty() {
        // The old field was cleared: so are the new ones, unless the client wrote those.
        if same_list {
            spec.cluster_ips = None;
        }
    } else if ip != old_ip && same_list {
        spec.cluster_ips = Some(vec![ip]);
    }
}

/// What the server gave a Service stays with it when an update leaves it out.
pub fn patch_allocated_values(spec: &mut ServiceSpec, old: &ServiceSpec) {
    let needs_ip =
        |spec: &ServiceSpec| matches!(spec.type_.text(), "ClusterIP" | "NodePort" | "LoadBalancer");
    if needs_ip(old) && needs_ip(spec) {
        if spec.cluster_ip.text().is_empty() {
            spec.cluster_ip.clone_from(&old.cluster_ip);
        }
        if spec.cluster_ips.items().is_empty() && spec.cluster_ip == old.cluster_ip {
            spec.cluster_ips.clone_from(&old.cluster_ips);
        }
    }
    if gives_node_ports(old) && gives_node_ports(spec) {
        let used = |spec: &ServiceSpec| -> BTreeSet<i32> {
            let numbers = spec.ports.items().iter().filter_map(|port| port.node_port);
            numbers.filter(|number| *number != 0).collect()
        };
        let mut kept: BTreeSet<i32> = used(old).intersection(&used(spec)).copied().collect();
        for port in spec.ports.iter_mut().flatten() {
            if port.node_port.unwrap_or(0) != 0 {
                continue;
            }
            // By name: everything else about a port may have changed.
            let same = |before: &&ServicePort| before.name.text() == port.name.text();
            let before = old.ports.items().iter().rfind(same);
            let number = before.and_then(|before| before.node_port).unwrap_or(0);
            if number != 0 && kept.insert(number) {
                port.node_port = Some(number);
            }
        }
    }
    if needs_health_check(old)
        && needs_health_check(spec)
        && spec.health_check_node_port.unwrap_or(0) == 0
    {
        spec.health_check_node_port = old.health_check_node_port;
    }
}

/// When the type changes, what belonged to the old type goes unless the client changed it.
pub fn drop_type_dependent_fields(spec: &mut ServiceSpec, old: &ServiceSpec) {
    let needs_ip =
        |spec: &ServiceSpec| matches!(spec.type_.text(), "ClusterIP" | "NodePort" | "LoadBalancer");
    if needs_ip(old) && !needs_ip(spec) {
        if spec.cluster_ip == old.cluster_ip && spec.cluster_ips == old.cluster_ips {
            spec.cluster_ip = None;
            spec.cluster_ips = None;
        }
        if spec.ip_families == old.ip_families {
            spec.ip_families = None;
        }
        if spec.ip_family_policy == old.ip_family_policy {
            spec.ip_family_policy = None;
        }
    }
    let needs_ports = |spec: &ServiceSpec| matches!(spec.type_.text(), "NodePort" | "LoadBalancer");
    let ports = |spec: &ServiceSpec| -> BTreeSet<i32> {
        spec.ports
            .items()
            .iter()
            .filter_map(|port| port.node_port)
            .filter(|one| *one != 0)
            .collect()
    };
    if needs_ports(old) && !needs_ports(spec) && ports(spec) == ports(old) {
        for port in spec.ports.iter_mut().flatten() {
            port.node_port = None;
        }
    }
    if needs_health_check(old)
        && !needs_health_check(spec)
        && spec.health_check_node_port == old.health_check_node_port
    {
        spec.health_check_node_port = None;
    }
    let is_balancer = |spec: &ServiceSpec| spec.type_.text() == "LoadBalancer";
    if is_balancer(old) && !is_balancer(spec) {
        if spec.allocate_load_balancer_node_ports == old.allocate_load_balancer_node_ports {
            spec.allocate_load_balancer_node_ports = None;
        }
        if spec.load_balancer_class == old.load_balancer_class {
            spec.load_balancer_class = None;
        }
    }
    let external = |spec: &ServiceSpec| is_externally_accessible(spec);
    if external(old)
        && !external(spec)
        && spec.external_traffic_policy == old.external_traffic_policy
    {
        spec.external_traffic_policy = None;
    }
}

fn validate(service: &Service, old: Option<&Service>, errors: &mut Errors) {
    let spec = service.spec.clone().unwrap_or_default();
    let old_spec = old.and_then(|old| old.spec.clone()).unwrap_or_default();
    let path = Path::new("spec");
    let type_ = spec.type_.text();
    let headless = is_headless(&spec);
    validate_topology_annotations(service, errors);
    let ports = spec.ports.items();
    if ports.is_empty() && !headless && type_ != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    match type_ {
        "LoadBalancer" | "NodePort" if headless => errors.invalid(
            &path.child("clusterIPs").index(0),
            NONE,
            format!("may not be set to 'None' for {type_} services"),
        ),
        "ExternalName" => validate_external_name(&spec, &path, errors),
        _ => {}
    }
    let mut names = BTreeSet::new();
    let ports_path = path.child("ports");
    for (i, port) in ports.iter().enumerate() {
        validate_service_port(
            port,
            ports.len() > 1,
            &mut names,
            &ports_path.index(i),
            errors,
        );
    }
    validate_labels(spec.selector.as_ref(), &path.child("selector"), errors);
    validate_session_affinity(&spec, &path, errors);
    validate_cluster_ips(&spec, old_spec.cluster_ips.items(), errors);
    let external = path.child("externalIPs");
    for (i, ip) in spec.external_ips.items().iter().enumerate() {
        let before = errors.len();
        validate_ip(
            ip,
            old_spec.external_ips.items(),
            &external.index(i),
            errors,
        );
        if errors.len() == before {
            validate_non_special_ip(ip, &external.index(i), errors);
        }
    }
    if type_.is_empty() {
        errors.required(&path.child("type"), "");
    } else if !TYPES.contains(&type_) {
        errors.not_supported(&path.child("type"), type_, &TYPES);
    }
    validate_port_uses(&spec, &ports_path, errors);
    validate_source_ranges(service, &spec, &old_spec, &path, errors);
    if spec.allocate_load_balancer_node_ports.is_some() && type_ != "LoadBalancer" {
        errors.forbidden(
            &path.child("allocateLoadBalancerNodePorts"),
            "may only be used when `type` is 'LoadBalancer'",
        );
    }
    validate_load_balancer_class(&spec, errors);
    validate_traffic_policies(&spec, &path, errors);
}

fn validate_topology_annotations(service: &Service, errors: &mut Errors) {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    const MODE: &str = "service.kubernetes.io/topology-mode";
    let get = |key: &str| {
        service
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(key))
    };
    if let (Some(mode), Some(hints)) = (get(MODE), get(HINTS))
        && mode != hints
    {
        errors.invalid(
            &Path::new("metadata.annotations").key(MODE),
            mode,
            format!("must match annotations[{HINTS}] when both are specified"),
        );
    }
}

fn validate_external_name(spec: &ServiceSpec, path: &Path<'_>, errors: &mut Errors) {
    const MESSAGE: &str = "may not be set for ExternalName services";
    for (field, set) in [
        ("clusterIPs", !spec.cluster_ips.items().is_empty()),
        ("ipFamilies", !spec.ip_families.items().is_empty()),
        ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
    ] {
        if set {
            errors.forbidden(&path.child(field), MESSAGE);
        }
    }
    let name = spec.external_name.text();
    let name = name.strip_suffix('.').unwrap_or(name);
    let at = path.child("externalName");
    if name.is_empty() {
        errors.required(&at, "");
    } else {
        errors.invalid_each(&at, name, text::dns1123_subdomain(name));
    }
}

fn validate_service_port<'a>(
    port: &'a ServicePort,
    named: bool,
    names: &mut BTreeSet<&'a str>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let name = port.name.text();
    let at = path.child("name");
    if named && name.is_empty() {
        errors.required(&at, "");
    } else if !name.is_empty() {
        errors.invalid_each(&at, name, text::dns1123_label(name));
        if !names.insert(name) {
            errors.duplicate(&at, name);
        }
    }
    validate_port_number(port.port, &path.child("port"), errors);
    validate_protocol(port.protocol.text(), &path.child("protocol"), errors);
    let target = port.target_port.clone().unwrap_or(IntOrString::Int(0));
    validate_port(&target, &path.child("targetPort"), errors);
    if let Some(protocol) = &port.app_protocol {
        errors.invalid_each(
            &path.child("appProtocol"),
            protocol,
            text::qualified_name(protocol),
        );
    }
}

fn validate_session_affinity(spec: &ServiceSpec, path: &Path<'_>, errors: &mut Errors) {
    let affinity = spec.session_affinity.text();
    match affinity {
        "" => errors.required(&path.child("sessionAffinity"), ""),
        "ClientIP" | "None" => {}
        other => errors.not_supported(&path.child("sessionAffinity"), other, &["ClientIP", "None"]),
    }
    let at = path.child("sessionAffinityConfig");
    if affinity == "None" && spec.session_affinity_config.is_some() {
        errors.forbidden(&at, "must not be set when session affinity is None");
    }
    if affinity != "ClientIP" {
        return;
    }
    const MESSAGE: &str = "when session affinity type is ClientIP";
    let Some(config) = &spec.session_affinity_config else {
        errors.required(&at, MESSAGE);
        return;
    };
    let at = at.child("clientIP");
    let Some(config) = &config.client_ip else {
        errors.required(&at, MESSAGE);
        return;
    };
    let at = at.child("timeoutSeconds");
    match config.timeout_seconds {
        None => errors.required(&at, MESSAGE),
        Some(seconds) if !(1..=86400).contains(&seconds) => {
            errors.invalid(&at, seconds, "must be greater than 0 and less than 86400");
        }
        Some(_) => {}
    }
}

/// Also run when addresses are given out.
pub fn validate_cluster_ips(spec: &ServiceSpec, old: &[String], errors: &mut Errors) {
    if spec.type_.text() == "ExternalName" {
        return;
    }
    let path = Path::new("spec");
    let ips_path = path.child("clusterIPs");
    let families_path = path.child("ipFamilies");
    let ips = spec.cluster_ips.items();
    let shown = || Bad::json(&ips);
    let ip = spec.cluster_ip.text();
    match ips.first() {
        None if !ip.is_empty() => errors.required(&ips_path, ""),
        Some(_) if ip.is_empty() => errors.invalid(
            &ips_path,
            shown(),
            "must be empty when `clusterIP` is not specified",
        ),
        Some(first) if first != ip => {
            errors.invalid(&ips_path, shown(), "first value must match `clusterIP`");
        }
        _ => {}
    }
    let families = spec.ip_families.items();
    for (i, family) in families.iter().enumerate() {
        if !matches!(family.as_str(), "IPv4" | "IPv6") {
            errors.not_supported(&families_path.index(i), family, &["IPv4", "IPv6"]);
        }
        if families[..i].contains(family) {
            errors.duplicate(&families_path.index(i), family);
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if let Some(policy) = &spec.ip_family_policy
        && !policies.contains(&policy.as_str())
    {
        errors.not_supported(&path.child("ipFamilyPolicy"), policy, &policies);
    }
    let before = errors.len();
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && ip == NONE {
            if ips.len() > 1 {
                errors.invalid(
                    &ips_path,
                    shown(),
                    "'None' must be the first and only value",
                );
            }
            continue;
        }
        validate_ip(ip, old, &ips_path.index(i), errors);
    }
    let bad_ips = errors.len() > before;
    if ips.len() > 2 {
        errors.invalid(&ips_path, shown(), "may only hold up to 2 values");
    }
    if bad_ips {
        return;
    }
    if ips.len() > 1 {
        let parsed: Vec<IpAddr> = ips.iter().filter_map(|ip| parse_ip(ip)).collect();
        if !is_dual_stack(&parsed) {
            errors.invalid(
                &ips_path,
                shown(),
                "may specify no more than one IP for each IP family",
            );
        }
    }
    if is_headless(spec) {
        return;
    }
    for (i, (ip, family)) in ips.iter().zip(families).enumerate() {
        let wrong = match family.as_str() {
            "IPv4" => is_ipv6(ip),
            "IPv6" => !is_ipv6(ip),
            _ => false,
        };
        if wrong {
            errors.invalid(
                &ips_path.index(i),
                ip,
                format!("expected an {family} value as indicated by `ipFamilies[{i}]`"),
            );
        }
    }
}

fn validate_port_uses(spec: &ServiceSpec, path: &Path<'_>, errors: &mut Errors) {
    let ports = spec.ports.items();
    let node_port = |port: &ServicePort| port.node_port.unwrap_or(0);
    if spec.type_.text() == "ClusterIP" {
        for (i, port) in ports.iter().enumerate() {
            if node_port(port) != 0 {
                errors.forbidden(
                    &path.index(i).child("nodePort"),
                    "may not be used when `type` is 'ClusterIP'",
                );
            }
        }
    }
    for (i, port) in ports.iter().enumerate() {
        let same = |other: &&ServicePort| {
            node_port(other) == node_port(port) && other.protocol == port.protocol
        };
        if node_port(port) != 0 && ports[..i].iter().any(|other| same(&other)) {
            errors.duplicate(&path.index(i).child("nodePort"), node_port(port));
        }
    }
    for (i, port) in ports.iter().enumerate() {
        let protocol = port.protocol.text();
        let same =
            |other: &ServicePort| other.port == port.port && other.protocol.text() == protocol;
        if ports[..i].iter().any(same) {
            let shown = format!(
                r#"{{"Name":"","Protocol":{},"AppProtocol":null,"Port":{},"TargetPort":0,"NodePort":0}}"#,
                serde_json::json!(protocol),
                port.port
            );
            errors.duplicate(&path.index(i), Bad::shown(shown));
        }
    }
}

fn validate_source_ranges(
    service: &Service,
    spec: &ServiceSpec,
    old: &ServiceSpec,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    const MESSAGE: &str = "may only be used when `type` is 'LoadBalancer'";
    let ranges = spec.load_balancer_source_ranges.items();
    let is_balancer = spec.type_.text() == "LoadBalancer";
    if !ranges.is_empty() {
        // Upstream's spelling.
        let at = path.child("LoadBalancerSourceRanges");
        if !is_balancer {
            errors.forbidden(&at, MESSAGE);
        }
        for (i, range) in ranges.iter().enumerate() {
            let old = old.load_balancer_source_ranges.items();
            validate_cidr(range.trim(), old, &at.index(i), errors);
        }
        return;
    }
    let annotation = service
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(ANNOTATION));
    let Some(annotation) = annotation else { return };
    let at = Path::new("metadata.annotations");
    let at = at.key(ANNOTATION);
    if !is_balancer {
        errors.forbidden(&at, MESSAGE);
    }
    for range in annotation
        .split(',')
        .map(str::trim)
        .filter(|range| !range.is_empty())
    {
        validate_cidr(range, &[], &at, errors);
    }
}

fn validate_load_balancer_class(spec: &ServiceSpec, errors: &mut Errors) {
    let Some(class) = &spec.load_balancer_class else {
        return;
    };
    let path = Path::new("spec.loadBalancerClass");
    if spec.type_.text() == "LoadBalancer" {
        errors.invalid_each(&path, class, text::qualified_name(class));
    } else {
        errors.forbidden(&path, "may only be used when `type` is 'LoadBalancer'");
    }
}

fn validate_traffic_policies(spec: &ServiceSpec, path: &Path<'_>, errors: &mut Errors) {
    let policy = spec.external_traffic_policy.text();
    let at = path.child("externalTrafficPolicy");
    if !is_externally_accessible(spec) {
        if !policy.is_empty() {
            errors.invalid(
                &at,
                policy,
                "may only be set for externally-accessible services",
            );
        }
    } else {
        match policy {
            "" => errors.required(&at, ""),
            "Cluster" | "Local" => {}
            other => errors.not_supported(&at, other, &["Cluster", "Local"]),
        }
    }
    let port = spec.health_check_node_port.unwrap_or(0);
    let at = path.child("healthCheckNodePort");
    match (needs_health_check(spec), port) {
        (false, 0) => {}
        (false, port) => errors.invalid(
            &at,
            port,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (true, 0) => errors.required(&at, ""),
        (true, port) => validate_port_number(port, &at, errors),
    }
    let at = path.child("internalTrafficPolicy");
    match spec.internal_traffic_policy.as_deref() {
        Some("Cluster" | "Local") => {}
        Some(other) => errors.not_supported(&at, other, &["Cluster", "Local"]),
        None if matches!(spec.type_.text(), "NodePort" | "LoadBalancer" | "ClusterIP") => {
            errors.required(&at, "");
        }
        None => {}
    }
    let distributions = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    if let Some(distribution) = &spec.traffic_distribution
        && !distributions.contains(&distribution.as_str())
    {
        errors.not_supported(
            &path.child("trafficDistribution"),
            distribution,
            &distributions,
        );
    }
}

/// An address may be added or given back, but the first one never changes.
fn validate_cluster_ip_change(spec: &ServiceSpec, old: &ServiceSpec, errors: &mut Errors) {
    if spec.type_.text() == "ExternalName" || old.type_.text() == "ExternalName" {
        return;
    }
    if is_headless(old) && is_headless(spec) {
        return;
    }
    let path = Path::new("spec.clusterIPs");
    let (ips, old_ips) = (spec.cluster_ips.items(), old.cluster_ips.items());
    let shown = || Bad::json(&ips);
    const FIXED: &str = "may not change once set";
    let first_changed = ips
        .first()
        .zip(old_ips.first())
        .is_some_and(|(new, old)| new != old);
    if ips.len() == old_ips.len() {
        for (i, (new, old)) in ips.iter().zip(old_ips).enumerate() {
            if new != old {
                errors.invalid(&path.index(i), shown(), FIXED);
            }
        }
    } else if ips.len() < old_ips.len() {
        if ips.is_empty() {
            errors.invalid(
                &path.index(0),
                shown(),
                "primary clusterIP can not be unset",
            );
        }
        if first_changed {
            errors.invalid(&path.index(0), shown(), FIXED);
        }
        if ips.len() == 1 && spec.ip_family_policy.text() != "SingleStack" {
            errors.invalid(
                &Path::new("spec.ipFamilyPolicy"),
                spec.ip_family_policy.clone(),
                "must be set to 'SingleStack' when releasing the secondary clusterIP",
            );
        }
    } else if first_changed {
        errors.invalid(&path.index(0), shown(), FIXED);
    }
}

fn validate_family_change(spec: &ServiceSpec, old: &ServiceSpec, errors: &mut Errors) {
    if spec.type_.text() == "ExternalName" || old.type_.text() == "ExternalName" {
        return;
    }
    if is_headless(spec) || is_headless(old) {
        return;
    }
    let path = Path::new("spec.ipFamilies");
    let (families, old_families) = (spec.ip_families.items(), old.ip_families.items());
    const FIXED: &str = "may not change once set";
    let first_changed = families
        .first()
        .zip(old_families.first())
        .is_some_and(|(new, old)| new != old);
    if families.len() == old_families.len() {
        for (new, old) in families.iter().zip(old_families) {
            if new != old {
                errors.invalid(&path.index(0), Bad::json(&families), FIXED);
            }
        }
    } else if families.len() < old_families.len() {
        if spec.cluster_ips.items().is_empty() {
            errors.invalid(
                &path.index(0),
                Bad::json(&families),
                "primary ipFamily can not be unset",
            );
        }
        if first_changed {
            errors.invalid(&path.index(0), Bad::json(&spec.cluster_ips), FIXED);
        }
        if families.len() == 1 && spec.ip_family_policy.text() != "SingleStack" {
            errors.invalid(
                &Path::new("spec.ipFamilyPolicy"),
                spec.ip_family_policy.clone(),
                "must be set to 'SingleStack' when releasing the secondary ipFamily",
            );
        }
    } else if first_changed {
        errors.invalid(&path.index(0), Bad::json(&spec.cluster_ips), FIXED);
    }
}

fn validate_status(service: &Service, old: &Service, errors: &mut Errors) {
    let type_ = service.spec.as_ref().map_or("", |spec| spec.type_.text());
    let ingress = |service: &Service| {
        let status = service.status.clone().unwrap_or_default();
        status
            .load_balancer
            .unwrap_or_default()
            .ingress
            .unwrap_or_default()
    };
    let old: Vec<String> = ingress(old)
        .iter()
        .filter_map(|one| one.ip.clone())
        .collect();
    let path = Path::new("status.loadBalancer.ingress");
    let all = ingress(service);
    if type_ != "LoadBalancer" && !all.is_empty() {
        errors.forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'");
        return;
    }
    for (i, one) in all.iter().enumerate() {
        let path = path.index(i);
        let ip = one.ip.text();
        if !ip.is_empty() {
            validate_ip(ip, &old, &path.child("ip"), errors);
        }
        let at = path.child("ipMode");
        match one.ip_mode.as_deref() {
            None if !ip.is_empty() => {
                errors.required(&at, "must be specified when `ip` is set");
            }
            Some(_) if ip.is_empty() => {
                errors.forbidden(&at, "may not be specified when `ip` is not set");
            }
            Some("VIP" | "Proxy") | None => {}
            Some(other) => errors.not_supported(&at, other, &["Proxy", "VIP"]),
        }
        let hostname = one.hostname.text();
        if !hostname.is_empty() {
            let at = path.child("hostname");
            errors.invalid_each(&at, hostname, text::dns1123_subdomain(hostname));
            if parse_ip(hostname).is_some() {
                errors.invalid(&at, hostname, "must be a DNS name, not an IP address");
            }
        }
    }
}

fn warnings(service: &Service) -> Warnings {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    let mut warnings = Warnings::new();
    let spec = service.spec.clone().unwrap_or_default();
    let annotations = service.metadata.annotations.as_ref();
    if annotations.is_some_and(|all| all.contains_key(HINTS)) {
        warnings.push(format!(
            "annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let path = Path::new("spec");
    let of_ips = |field: &str, ips: &[String], warnings: &mut Warnings| {
        let at = path.child(field);
        for (i, ip) in ips.iter().enumerate() {
            warnings.extend(net::ip_warning(ip, &at.index(i)));
        }
    };
    let type_ = spec.type_.text();
    if type_ != "ExternalName" && !is_headless(&spec) {
        of_ips("clusterIPs", spec.cluster_ips.items(), &mut warnings);
    }
    let external = spec.external_ips.items();
    let headless = type_ == "ClusterIP" && is_headless(&spec);
    let warn = |wrong: bool, message: &str, warnings: &mut Warnings| {
        if wrong {
            warnings.push(message.to_owned());
        }
    };
    if headless {
        for (ignored, field) in [
            (!spec.load_balancer_ip.text().is_empty(), "loadBalancerIP"),
            (!external.is_empty(), "externalIPs"),
            (spec.session_affinity.text() != "None", "SessionAffinity"),
        ] {
            let message = format!("spec.{field} is ignored for headless services");
            warn(ignored, &message, &mut warnings);
        }
    }
    of_ips("externalIPs", external, &mut warnings);
    warn(
        !external.is_empty() && !headless && type_ != "ExternalName",
        "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
        &mut warnings,
    );
    let balancer = spec.load_balancer_ip.text();
    if !balancer.is_empty() {
        warnings.extend(net::ip_warning(balancer, &path.child("loadBalancerIP")));
    }
    let at = path.child("loadBalancerSourceRanges");
    for (i, range) in spec.load_balancer_source_ranges.items().iter().enumerate() {
        warnings.extend(net::cidr_warnings(range, &at.index(i)));
    }
    warn(
        type_ == "ExternalName" && !external.is_empty(),
        "spec.externalIPs is ignored when spec.type is \"ExternalName\"",
        &mut warnings,
    );
    warn(
        type_ != "ExternalName" && !spec.external_name.text().is_empty(),
        "spec.externalName is ignored when spec.type is not \"ExternalName\"",
        &mut warnings,
    );
    warn(
        spec.traffic_distribution.text() == "PreferClose",
        "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
        &mut warnings,
    );
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_update_keeps_what_it_leaves_out() {
        let spec = |value: Value| -> ServiceSpec { serde_json::from_value(value).expect("a spec") };
        let old = spec(json!({
            "type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
            "ports": [{"name": "a", "port": 1, "nodePort": 30001}, {"name": "b", "port": 2, "nodePort": 30002}],
        }));
        let mut new = spec(json!({"type": "NodePort", "ports": [{"name": "b", "port": 3}]}));
        patch_allocated_values(&mut new, &old);
        assert_eq!(new.cluster_ips.items(), ["10.96.1.1"]);
        assert_eq!(new.ports.items()[0].node_port, Some(30002));
        // A number that the update gives to another port is not given twice.
        let mut new = spec(
            json!({"type": "NodePort", "ports": [{"name": "x", "port": 1, "nodePort": 30002}, {"name": "b", "port": 3}]}),
        );
        patch_allocated_values(&mut new, &old);
        assert_eq!(new.ports.items()[1].node_port, None);
    }
}
