//! The network of a cluster on one machine: namespaces joined to a bridge. See the drawing in the parent module.

use anyhow::Result;

use crate::command::{line, program};

/// What the namespaces of a cluster are made of.
pub(super) struct Topology<'a> {
    /// Holds the bridge; plays the physical network.
    pub network: &'a str,
    pub machines: Vec<Machine<'a>>,
    /// The bridge's own address, which is the control plane's.
    pub gateway: &'a str,
    /// The link from the root namespace to the bridge, and the root namespace's address on it. None when isolated.
    pub uplink: Option<(&'a str, &'a str)>,
}

/// What is plugged into the bridge.
pub(super) struct Machine<'a> {
    pub namespace: &'a str,
    pub address: &'a str,
    pub address_v6: Option<&'a str>,
}

pub(super) const PREFIX_LENGTH: u8 = 24;
const PREFIX_LENGTH_V6: u8 = 64;

/// The bridge's port to the root namespace.
const UPLINK_PORT: &str = "uplink";

/// Makes what is not there yet.
pub(super) fn create(topology: &Topology<'_>) -> Result<()> {
    let network = topology.network;
    if add_namespace(network)? {
        line(&format!("ip -n {network} link add br0 type bridge")).output()?;
        line(&format!(
            "ip -n {network} addr add {}/{PREFIX_LENGTH} dev br0",
            topology.gateway
        ))
        .output()?;
        if topology
            .machines
            .iter()
            .any(|machine| machine.address_v6.is_some())
        {
            let gateway = gateway_v6();
            line(&format!(
                "ip -n {network} addr add {gateway}/{PREFIX_LENGTH_V6} dev br0 nodad"
            ))
            .output()?;
        }
        line(&format!("ip -n {network} link set br0 up")).output()?;
    }
    for Machine {
        namespace: machine,
        address,
        address_v6,
    } in &topology.machines
    {
        if !add_namespace(machine)? {
            continue;
        }
        let port = machine.rsplit('-').next().unwrap_or(machine);
        line(&format!(
            "ip -n {network} link add {port} type veth peer name eth0 netns {machine}"
        ))
        .output()?;
        line(&format!("ip -n {network} link set {port} master br0 up")).output()?;
        line(&format!(
            "ip -n {machine} addr add {address}/{PREFIX_LENGTH} dev eth0"
        ))
        .output()?;
        line(&format!("ip -n {machine} link set eth0 up")).output()?;
        // Leads to the bridge's namespace, which forwards nothing: there is no way out.
        line(&format!(
            "ip -n {machine} route add default via {}",
            topology.gateway
        ))
        .output()?;
        if let Some(address) = address_v6 {
            give_ipv6(machine, address)?;
        }
    }
    if let Some((link, address)) = topology.uplink
        && !line(&format!("ip link show dev {link}")).succeeds()
    {
        line(&format!(
            "ip link add {link} type veth peer name {UPLINK_PORT} netns {network}"
        ))
        .output()?;
        line(&format!(
            "ip -n {network} link set {UPLINK_PORT} master br0 up"
        ))
        .output()?;
        line(&format!("ip addr add {address}/{PREFIX_LENGTH} dev {link}")).output()?;
        line(&format!("ip link set {link} up")).output()?;
    }
    Ok(())
}

/// The address of a machine with this number.
pub(super) fn address_v6(number: usize) -> String {
    format!("fd00:88::{number}")
}

fn gateway_v6() -> String {
    address_v6(1)
}

/// An IPv6 address on a machine's link and a way out. The kernel takes both away when the link goes down.
pub fn give_ipv6(machine: &str, address: &str) -> Result<()> {
    line(&format!(
        "ip -n {machine} addr replace {address}/{PREFIX_LENGTH_V6} dev eth0 nodad"
    ))
    .output()?;
    line(&format!(
        "ip -n {machine} -6 route replace default via {} dev eth0",
        gateway_v6()
    ))
    .output()
    .map(drop)
}

/// Makes a namespace with its loopback up; whether it was not there before.
fn add_namespace(name: &str) -> Result<bool> {
    if exists(name) {
        return Ok(false);
    }
    line(&format!("ip netns add {name}")).output()?;
    line(&format!("ip -n {name} link set lo up")).output()?;
    Ok(true)
}

pub(super) fn exists(namespace: &str) -> bool {
    std::path::Path::new("/run/netns").join(namespace).exists()
}

/// Removes every namespace of a cluster, with the links in them.
pub(super) fn remove(cluster: &str) -> Result<()> {
    let prefix = super::namespace(cluster, "");
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return Ok(());
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // `skep-a-` is also how the namespaces of a cluster called `a-b` begin.
        if name.strip_prefix(&prefix).is_some_and(is_role) {
            program("ip").args(["netns", "delete", &name]).output()?;
        }
    }
    Ok(())
}

fn is_role(name: &str) -> bool {
    name == "net"
        || name == "outside"
        || name.strip_prefix("node").is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
}

/// Routes that keep a packet for the cluster's ranges on this machine when no node answers for it. The least preferred
/// routes there are, so that the agent's own win.
const FENCE_METRIC: &str = "4294967295";

pub(super) fn fence(ranges: &[&str]) -> Result<()> {
    for range in ranges {
        line(&format!(
            "ip route replace unreachable {range} metric {FENCE_METRIC}"
        ))
        .output()?;
    }
    Ok(())
}

pub(super) fn unfence(ranges: &[&str]) {
    for range in ranges {
        // Not there is what we want.
        let _ = line(&format!(
            "ip route del unreachable {range} metric {FENCE_METRIC}"
        ))
        .succeeds();
    }
}

/// This machine's address towards the rest of the world.
pub(super) fn host_address() -> Result<Option<String>> {
    let routes = line("ip -4 -o route show default").output()?;
    let Some(device) = word_after(&routes, "dev") else {
        return Ok(None);
    };
    let addresses = line(&format!("ip -4 -o addr show dev {device} scope global")).output()?;
    Ok(word_after(&addresses, "inet")
        .and_then(|address| address.split('/').next())
        .map(str::to_owned))
}

fn word_after<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    text.split_whitespace()
        .skip_while(|found| *found != word)
        .nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_not_the_rest_of_another_name() {
        assert!(is_role("net") && is_role("outside") && is_role("node12"));
        assert!(!is_role("b-net") && !is_role("node") && !is_role("node1-net"));
    }

    #[test]
    fn words_of_ip() {
        assert_eq!(
            word_after("default via 10.0.0.1 dev eth0", "dev"),
            Some("eth0")
        );
        assert_eq!(word_after("default", "dev"), None);
    }
}
