//! IP addresses, CIDRs and ports.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::text;
use crate::field::{Errors, Path};

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
