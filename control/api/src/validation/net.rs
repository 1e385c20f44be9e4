//! IP addresses, CIDRs and ports.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::text;
use crate::field::{Errors, Path, quoted};

const BAD_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const BAD_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

pub const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// As the first releases read them: leading zeros are decimal zeros.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|c| c.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts
        .next()
        .is_none()
        .then(|| Ipv4Addr::from(octets).into())
}

pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    if prefix.is_empty() || !prefix.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    IpNet::new(parse_ip(address)?, prefix.parse().ok()?).ok()
}

pub fn is_ipv6(text: &str) -> bool {
    parse_ip(text).is_some_and(|ip| ip.is_ipv6())
}

/// Values in `old` were accepted once and stay so.
pub fn validate_ip(value: &str, old: &[String], path: &Path<'_>, errors: &mut Errors) {
    if old.iter().any(|one| one == value) {
        return;
    }
    match parse_ip(value) {
        None => errors.invalid(path, value, BAD_IP),
        Some(_) if value.parse::<IpAddr>().is_err() => {
            errors.invalid(path, value, "must not have leading 0s");
        }
        Some(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            errors.invalid(path, value, "must not be an IPv4-mapped IPv6 address");
        }
        Some(_) => {}
    }
}

pub fn validate_cidr(value: &str, old: &[String], path: &Path<'_>, errors: &mut Errors) {
    if old.iter().any(|one| one == value) {
        return;
    }
    let Some(net) = parse_cidr(value) else {
        errors.invalid(path, value, BAD_CIDR);
        return;
    };
    let (address, prefix) = value.split_once('/').unwrap_or((value, ""));
    if address.parse::<IpAddr>().is_err() || (prefix.len() > 1 && prefix.starts_with('0')) {
        errors.invalid(
            path,
            value,
            "must not have leading 0s in IP or prefix length",
        );
        return;
    }
    if let IpAddr::V6(ip) = net.addr()
        && ip.to_ipv4_mapped().is_some()
    {
        errors.invalid(path, value, "must not have an IPv4-mapped IPv6 address");
    }
    if net.addr() != net.network() {
        errors.invalid(
            path,
            value,
            "must not have bits set beyond the prefix length",
        );
    }
}

/// A form that is accepted and has a better one.
pub fn ip_warning(value: &str, path: &Path<'_>) -> Option<String> {
    let ip = parse_ip(value)?;
    let mapped = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    let value_shown = quoted(value);
    match value.parse::<IpAddr>() {
        Ok(strict) if !mapped(strict) => {
            let canonical = strict.to_string();
            (strict.is_ipv6() && canonical != value).then(|| {
                format!("{path}: IPv6 address {value_shown} should be in RFC 5952 canonical format (\"{canonical}\")")
            })
        }
        _ => {
            let canonical = ip.to_canonical();
            Some(format!(
                "{path}: non-standard IP address {value_shown} will be considered invalid in a future Kubernetes \
                 release: use \"{canonical}\""
            ))
        }
    }
}

/// The same of a network.
pub fn cidr_warnings(value: &str, path: &Path<'_>) -> Vec<String> {
    let Some(net) = parse_cidr(value) else {
        return Vec::new();
    };
    let value_shown = quoted(value);
    let mut warnings = Vec::new();
    if net.addr() != net.network() {
        let single = IpNet::from(net.addr());
        warnings.push(format!(
            "{path}: CIDR value {value_shown} is ambiguous in this context (should be \"{}\" or \"{single}\"?)",
            net.trunc()
        ));
    }
    let (address, prefix) = value.split_once('/').unwrap_or((value, ""));
    let zeros = prefix.len() > 1 && prefix.starts_with('0');
    let strict = address.parse::<IpAddr>().ok().filter(|_| !zeros);
    match strict {
        Some(ip) if ip.to_canonical() == ip => {
            if warnings.is_empty() && ip.is_ipv6() && net.to_string() != value {
                warnings.push(format!(
                    "{path}: IPv6 CIDR value {value_shown} should be in RFC 5952 canonical format (\"{net}\")"
                ));
            }
        }
        _ => warnings.push(format!(
            "{path}: non-standard CIDR value {value_shown} will be considered invalid in a future Kubernetes \
             release: use \"{}\"",
            net.trunc()
        )),
    }
    warnings
}

/// Where there is no older practice to respect (apimachinery `IsValidIP`).
pub fn validate_canonical_ip(value: &str, path: &Path<'_>, errors: &mut Errors) {
    let before = errors.len();
    validate_ip(value, &[], path, errors);
    match parse_ip(value) {
        Some(ip) if errors.len() == before => require_canonical(value, &ip, path, errors),
        _ => {}
    }
}

/// The same of a network (apimachinery `IsValidCIDR`).
pub fn validate_canonical_cidr(value: &str, path: &Path<'_>, errors: &mut Errors) {
    let before = errors.len();
    validate_cidr(value, &[], path, errors);
    match parse_cidr(value) {
        Some(net) if errors.len() == before => require_canonical(value, &net, path, errors),
        _ => {}
    }
}

fn require_canonical(value: &str, canonical: &impl ToString, path: &Path<'_>, errors: &mut Errors) {
    let canonical = canonical.to_string();
    if value != canonical {
        let detail = format!("must be in canonical form (\"{canonical}\")");
        errors.invalid(path, value, detail);
    }
}

/// An address with the prefix of its network, in canonical form: `10.1.2.3/8` (apimachinery `IsValidInterfaceAddress`).
pub fn validate_interface_address(value: &str, path: &Path<'_>, errors: &mut Errors) {
    let Some(net) = parse_cidr(value) else {
        errors.invalid(
            path,
            value,
            "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)",
        );
        return;
    };
    if net.to_string() != value {
        errors.invalid(
            path,
            value,
            format!("must be in canonical form (\"{net}\")"),
        );
    }
}

/// One address of each family at most.
pub fn is_dual_stack(ips: &[IpAddr]) -> bool {
    ips.iter().any(IpAddr::is_ipv4) && ips.iter().any(IpAddr::is_ipv6)
}

/// Endpoints and external addresses: nothing that means "here" or "this link".
pub fn validate_non_special_ip(value: &str, path: &Path<'_>, errors: &mut Errors) {
    let Some(ip) = parse_ip(value) else {
        errors.invalid(path, value, "must be a valid IP address");
        return;
    };
    if ip.is_unspecified() {
        errors.invalid(path, value, format!("may not be unspecified ({value})"));
    }
    if ip.is_loopback() {
        errors.invalid(
            path,
            value,
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        );
    }
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (
            ip.segments()[0] & 0xffc0 == 0xfe80,
            ip.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    if link_local {
        errors.invalid(
            path,
            value,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        );
    }
    if link_local_multicast {
        errors.invalid(
            path,
            value,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        );
    }
}

pub fn validate_port_number(port: i32, path: &Path<'_>, errors: &mut Errors) {
    for message in text::port_number(port.into()) {
        errors.invalid(path, port, message);
    }
}

pub fn validate_port(port: &IntOrString, path: &Path<'_>, errors: &mut Errors) {
    match port {
        IntOrString::Int(number) => validate_port_number(*number, path, errors),
        IntOrString::String(name) => errors.invalid_each(path, name, text::port_name(name)),
    }
}

pub fn validate_protocol(protocol: &str, path: &Path<'_>, errors: &mut Errors) {
    if protocol.is_empty() {
        errors.required(path, "");
    } else if !PROTOCOLS.contains(&protocol) {
        errors.not_supported(path, protocol, &PROTOCOLS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rule: fn(&str, &[String], &Path<'_>, &mut Errors), value: &str, detail: &str) {
        let mut errors = Errors::default();
        rule(value, &[], &Path::new("x"), &mut errors);
        let details: Vec<_> = errors.0.iter().map(|error| error.detail.as_str()).collect();
        assert_eq!(details.join("|"), detail, "{value}");
    }

    #[test]
    fn better_forms() {
        let path = Path::new("ip");
        let warned = |value| ip_warning(value, &path).unwrap_or_default();
        assert_eq!(warned("10.0.0.1"), "");
        assert_eq!(
            warned("FD00::1"),
            "ip: IPv6 address \"FD00::1\" should be in RFC 5952 canonical format (\"fd00::1\")"
        );
        assert!(warned("10.0.0.01").ends_with("use \"10.0.0.1\""));
        assert!(warned("::ffff:10.0.0.1").ends_with("use \"10.0.0.1\""));
        assert_eq!(
            cidr_warnings("10.0.0.5/8", &path),
            [
                "ip: CIDR value \"10.0.0.5/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \
              \"10.0.0.5/32\"?)"
            ]
        );
    }

    #[test]
    fn addresses() {
        check(validate_ip, "10.0.0.1", "");
        check(validate_ip, "fd00::1", "");
        check(validate_ip, "010.0.0.1", "must not have leading 0s");
        check(
            validate_ip,
            "::ffff:10.0.0.1",
            "must not be an IPv4-mapped IPv6 address",
        );
        check(validate_ip, "x", BAD_IP);
        check(validate_ip, "1.2.3.4.5", BAD_IP);
        check(validate_cidr, "10.0.0.0/8", "");
        check(
            validate_cidr,
            "10.0.0.1/8",
            "must not have bits set beyond the prefix length",
        );
        check(validate_cidr, "10.0.0.0/33", BAD_CIDR);
        check(validate_cidr, "10.0.0.0/+8", BAD_CIDR);
        check(
            validate_cidr,
            "10.0.0.0/08",
            "must not have leading 0s in IP or prefix length",
        );
    }
}
