//! The real pod network: a veth pair per pod, host routes, eBPF on the host's end.
//!
//! Inside the pod every destination goes through a gateway that exists nowhere: a link-local
//! address with a permanent neighbour entry for the host's end. So nothing about the node shows in
//! the pod, and nothing in the pod changes when the node's addresses do.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use skep_datapath::layout::{SCTP, TCP, UDP};
use skep_datapath::services::{Endpoint, FrontendAddress, ServicePort};
use skep_datapath::{Datapath, Offload, PodLink, netns_cookie, set_offload};
use tokio::sync::{Mutex, Notify};
use tracing::{info, warn};

use super::events::{DEFAULT_SAMPLE, Events};
use super::ipam::{Ipam, Lease};
use super::netlink::{Interface, Netlink, NextHop, Route, in_netns};
use super::{EventLines, NetworkError, PodAddresses, PodIdentity, PodNetwork, PodNetworkSpec};

const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Of every host end: locally administered, and the same everywhere, so that a pod's neighbour
/// entry never goes stale.
const HOST_MAC: [u8; 6] = [0xee, 0xee, 0xee, 0xee, 0xee, 0xee];
/// Of the pod's end until it is inside the pod.
const POD_INTERFACE: &str = "eth0";

/// Attaches pods of this node. One at a time: the kernel's network lock would serialise them anyway.
pub struct Pods {
    datapath: Arc<Datapath>,
    netlink: Netlink,
    mtu: u32,
    ipam: Mutex<Ipam>,
    /// Of attached pods, by uid; those of a predecessor come with their next attach.
    namespaces: parking_lot::Mutex<HashMap<String, File>>,
    attached: Arc<Notify>,
    events: Events,
    /// Of other parts of the node's network.
    more_metrics: parking_lot::Mutex<Vec<WriteMetrics>>,
}

type WriteMetrics = Box<dyn Fn(&mut String) + Send + Sync>;

impl Pods {
    /// Adds to what [`PodNetwork::metrics`] says.
    pub fn add_metrics(&self, write: impl Fn(&mut String) + Send + Sync + 'static) {
        self.more_metrics.lock().push(Box::new(write));
    }

    /// Call inside the node's network namespace and a tokio runtime. `mtu` is the uplink's, less
    /// what a tunnel needs.
    pub async fn new(
        datapath: Arc<Datapath>,
        netlink: Netlink,
        state_file: PathBuf,
        mtu: u32,
    ) -> Result<Self, NetworkError> {
        let ipam = Ipam::open(&state_file).map_err(|error| {
            NetworkError::Other(format!("cannot read {}: {error}", state_file.display()))
        })?;
        let pods = Self {
            events: Events::new(datapath.clone()),
            datapath,
            netlink,
            mtu,
            ipam: Mutex::new(ipam),
            namespaces: parking_lot::Mutex::default(),
            more_metrics: parking_lot::Mutex::default(),
            attached: Arc::default(),
        };
        pods.adopt().await?;
        Ok(pods)
    }

    /// The node's `spec.podCIDRs`.
    pub async fn set_ranges(&self, ranges: Vec<IpNet>) {
        let mut ipam = self.ipam.lock().await;
        if ipam.ranges() != ranges {
            info!(?ranges, "pod address ranges");
            ipam.set_ranges(ranges);
        }
    }

    /// Addresses of the attached pods, by uid.
    pub async fn addresses(&self) -> HashMap<String, Vec<IpAddr>> {
        let ipam = self.ipam.lock().await;
        ipam.leases()
            .map(|(uid, lease)| (uid.clone(), lease.ips.clone()))
            .collect()
    }

    /// Told whenever a pod was attached.
    pub fn attached(&self) -> Arc<Notify> {
        self.attached.clone()
    }

    /// The network namespaces of the attached pods.
    pub fn namespaces(&self) -> Vec<File> {
        // A descriptor limit costs a pod's UDP sockets their quick change of backend, no more.
        self.namespaces
            .lock()
            .values()
            .filter_map(|netns| netns.try_clone().ok())
            .collect()
    }

    /// Gives the pods of a predecessor this agent's programs.
    async fn adopt(&self) -> Result<(), NetworkError> {
        let interfaces = self.netlink.interfaces().await.map_err(other)?;
        let ipam = self.ipam.lock().await;
        let mut live = Vec::new();
        for (_, lease) in ipam.leases() {
            if let Some(interface) = interfaces.iter().find(|i| i.name == lease.interface) {
                live.push(interface.index);
            }
        }
        self.datapath
            .retain_pod_links(&live)
            .map_err(datapath_error)?;
        for ifindex in live {
            self.datapath
                .update_pod_programs(ifindex)
                .map_err(datapath_error)?;
        }
        let known: HashSet<IpAddr> = ipam
            .leases()
            .flat_map(|(_, lease)| lease.ips.iter().copied())
            .collect();
        for (uid, lease) in ipam.leases() {
            self.open_host_ports(uid, lease)?;
        }
        for ip in self.datapath.pod_ips().map_err(datapath_error)? {
            if !known.contains(&ip) {
                self.datapath.detach_pod(&[ip], 0).map_err(datapath_error)?;
            }
        }
        Ok(())
    }

    async fn connect(&self, lease: &Lease, netns: File) -> Result<(), NetworkError> {
        let own = netns.try_clone().map_err(other)?;
        let existing = self
            .netlink
            .interface(&lease.interface)
            .await
            .map_err(other)?;
        if let Some(host) = existing {
            let index = host.index;
            let inside = in_netns(own, move || pod_end(index)).await.map_err(other)?;
            if let Ok(Some((pod, cookie))) = inside {
                return self.finish(lease, &host, &pod, cookie, false).await;
            }
            // Its other end is not in this sandbox: a former sandbox of the same pod.
            self.netlink.remove(host.index).await.map_err(other)?;
        }

        let own = netns.try_clone().map_err(other)?;
        let temporary = format!("{}p", lease.interface);
        self.netlink
            .add_veth(&lease.interface, HOST_MAC, &temporary, &netns, self.mtu)
            .await
            .map_err(other)?;
        let result = self.connect_new(lease, &temporary, own).await;
        if result.is_err()
            && let Ok(Some(host)) = self.netlink.interface(&lease.interface).await
        {
            // Nothing stays behind after an error.
            let _ = self.netlink.remove(host.index).await;
            let _ = self.datapath.detach_pod(&lease.ips, host.index);
        }
        result
    }

    async fn connect_new(
        &self,
        lease: &Lease,
        temporary: &str,
        own: File,
    ) -> Result<(), NetworkError> {
        let name = &lease.interface;
        let host = self.netlink.interface(name).await.map_err(other)?;
        let host = host.ok_or_else(|| NetworkError::Other(format!("interface {name} vanished")))?;
        let dual = lease.ips.iter().any(IpAddr::is_ipv6);
        quieten(&lease.interface, dual).map_err(other)?;
        self.netlink.set_up(host.index).await.map_err(other)?;
        let host_index = host.index;
        let xdp = self.datapath.xdp().is_on();
        let (ips, name) = (lease.ips.clone(), temporary.to_string());
        let (pod, cookie, takes_frames) = in_netns(own, async move || -> Result<_, NetlinkOrIo> {
            configure_pod(&name, &ips).await?;
            // Without, tc brings the pod what XDP would.
            let takes_frames = xdp && set_offload(POD_INTERFACE, Offload::Gro, true).is_ok();
            let (pod, cookie) = pod_end(host_index)
                .await?
                .ok_or_else(|| io::Error::other("the pod's interface vanished"))?;
            Ok((pod, cookie, takes_frames))
        })
        .await
        .map_err(other)?
        .map_err(other)?;
        self.finish(lease, &host, &pod, cookie, takes_frames).await
    }

    /// The node's side: routes and programs. Harmless to repeat.
    async fn finish(
        &self,
        lease: &Lease,
        host: &Interface,
        pod: &Interface,
        cookie: u64,
        takes_frames: bool,
    ) -> Result<(), NetworkError> {
        for ip in &lease.ips {
            self.netlink
                .set_neighbour(host.index, *ip, pod.mac)
                .await
                .map_err(other)?;
            let route = Route {
                destination: IpNet::from(*ip),
                next: NextHop::Interface(host.index),
                metric: 0,
            };
            self.netlink.set_route(&route).await.map_err(other)?;
        }
        let link = PodLink {
            ifindex: host.index,
            mac: pod.mac,
            host_mac: HOST_MAC,
            netns_cookie: cookie,
            takes_frames,
        };
        self.datapath
            .attach_pod(&lease.ips, &link)
            .map_err(datapath_error)
    }

    /// A hostPort is a Service of one backend: this pod.
    fn open_host_ports(&self, uid: &str, lease: &Lease) -> Result<(), NetworkError> {
        let mut tables = self.datapath.services().lock();
        for (name, port) in host_ports(uid, lease) {
            tables.set(&name, &port).map_err(datapath_error)?;
        }
        Ok(())
    }

    fn close_host_ports(&self, uid: &str, lease: &Lease) -> Result<(), NetworkError> {
        let mut tables = self.datapath.services().lock();
        for (name, _) in host_ports(uid, lease) {
            tables.remove(&name).map_err(datapath_error)?;
        }
        Ok(())
    }

    async fn disconnect(&self, ipam: &mut Ipam, uid: &str) -> Result<(), NetworkError> {
        let Some(lease) = ipam.lease(uid).cloned() else {
            return Ok(());
        };
        self.namespaces.lock().remove(uid);
        self.close_host_ports(uid, &lease)?;
        let host = self
            .netlink
            .interface(&lease.interface)
            .await
            .map_err(other)?;
        if let Some(host) = &host {
            // The programs go with the interface; then nothing can use the address any more.
            self.netlink.remove(host.index).await.map_err(other)?;
        }
        self.datapath
            .detach_pod(&lease.ips, host.map_or(0, |host| host.index))
            .map_err(datapath_error)?;
        ipam.free(uid)?;
        info!(namespace = lease.namespace, name = lease.name, uid, ips = ?lease.ips, "pod detached");
        Ok(())
    }
}

#[async_trait]
impl PodNetwork for Pods {
    async fn attach(
        &self,
        pod: &PodIdentity,
        sandbox_pid: u32,
        spec: &PodNetworkSpec,
    ) -> Result<PodAddresses, NetworkError> {
        let netns =
            File::open(format!("/proc/{sandbox_pid}/ns/net")).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::NotFound => NetworkError::SandboxGone(sandbox_pid),
                    _ => {
                        NetworkError::Other(format!("cannot open the sandbox's namespace: {error}"))
                    }
                }
            })?;
        let held = netns.try_clone().map_err(other)?;
        let mut ipam = self.ipam.lock().await;
        let known = ipam.lease(&pod.uid).is_some();
        let lease = ipam.allocate(&pod.uid, |ips| Lease {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            ips,
            interface: interface_name(&pod.uid),
            host_ports: spec.host_ports.clone(),
        })?;
        let connected = match self.connect(&lease, netns).await {
            Ok(()) => self.open_host_ports(&pod.uid, &lease),
            Err(error) => Err(error),
        };
        match connected {
            Ok(()) => {
                self.namespaces.lock().insert(pod.uid.clone(), held);
                self.attached.notify_one();
                let (namespace, name, uid) = (&pod.namespace, &pod.name, &pod.uid);
                info!(%namespace, %name, %uid, ips = ?lease.ips, "pod attached");
                Ok(PodAddresses { ips: lease.ips })
            }
            Err(error) => {
                if !known {
                    ipam.free(&pod.uid)?;
                }
                Err(error)
            }
        }
    }

    fn metrics(&self) -> String {
        let mut text = super::inspect::metrics(&self.datapath);
        for write in self.more_metrics.lock().iter() {
            write(&mut text);
        }
        text
    }

    fn view(&self, name: &str, query: &HashMap<String, String>) -> Option<serde_json::Value> {
        super::inspect::view(&self.datapath, name, query)
    }

    fn follow(&self, sample: Option<u32>) -> Option<Result<EventLines, NetworkError>> {
        let listener = self.events.listen(sample.unwrap_or(DEFAULT_SAMPLE));
        let lines = listener.map_err(datapath_error).map(|listener| {
            futures::stream::unfold(listener, |mut listener| async {
                let line = listener.next_line().await?;
                Some((line, listener))
            })
            .boxed()
        });
        Some(lines)
    }

    async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        let mut ipam = self.ipam.lock().await;
        self.disconnect(&mut ipam, uid).await
    }

    async fn retain(&self, live_uids: &HashSet<String>) -> Result<(), NetworkError> {
        let mut ipam = self.ipam.lock().await;
        let gone: Vec<String> = ipam
            .leases()
            .map(|(uid, _)| uid)
            .filter(|uid| !live_uids.contains(*uid))
            .cloned()
            .collect();
        for uid in gone {
            if let Err(error) = self.disconnect(&mut ipam, &uid).await {
                warn!(uid, %error, "pod cannot be detached; the next sweep tries again");
            }
        }
        Ok(())
    }
}

fn host_ports(uid: &str, lease: &Lease) -> Vec<(String, ServicePort)> {
    let mut ports = Vec::new();
    for host_port in &lease.host_ports {
        let protocol = match host_port.protocol.as_str() {
            "UDP" => UDP,
            "SCTP" => SCTP,
            _ => TCP,
        };
        for ip in &lease.ips {
            let every: IpAddr = match ip {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let host_ip = host_port.host_ip.unwrap_or(every);
            if host_ip.is_ipv4() != ip.is_ipv4() {
                continue;
            }
            let backend = vec![Endpoint {
                ip: *ip,
                port: host_port.container_port,
                local: true,
            }];
            let wanted = ServicePort {
                protocol,
                frontends: vec![FrontendAddress {
                    ip: host_ip,
                    port: host_port.host_port,
                    external: true,
                    restricted: false,
                }],
                internal: backend.clone(),
                external: backend,
                ..ServicePort::default()
            };
            let number = host_port.host_port;
            ports.push((format!("pod/{uid}:{number}/{protocol}/{host_ip}"), wanted));
        }
    }
    ports
}

type NetlinkOrIo = Box<dyn std::error::Error + Send + Sync>;

/// The pod's end of the pair whose host end has `host_index`, and the namespace's cookie. Runs
/// inside the pod's namespace.
async fn pod_end(host_index: u32) -> Result<Option<(Interface, u64)>, NetlinkOrIo> {
    let netlink = Netlink::open()?;
    let Some(interface) = netlink.interface(POD_INTERFACE).await? else {
        return Ok(None);
    };
    if interface.peer_index != Some(host_index) {
        return Ok(None);
    }
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    Ok(Some((interface, netns_cookie(&socket).unwrap_or(0))))
}

/// Runs inside the pod's namespace.
async fn configure_pod(temporary: &str, ips: &[IpAddr]) -> Result<(), NetlinkOrIo> {
    let netlink = Netlink::open()?;
    if let Some(loopback) = netlink.interface("lo").await? {
        netlink.set_up(loopback.index).await?;
    }
    let Some(interface) = netlink.interface(temporary).await? else {
        return Err(NetlinkOrIo::from(format!(
            "interface {temporary} did not arrive"
        )));
    };
    let index = interface.index;
    netlink.rename(index, POD_INTERFACE).await?;
    let setting = |name: &str| format!("net/ipv6/conf/{POD_INTERFACE}/{name}");
    if ips.iter().any(IpAddr::is_ipv6) {
        write_sysctl("net/ipv6/conf/lo/disable_ipv6", "0")?;
        write_sysctl(&setting("disable_ipv6"), "0")?;
        // The node says what there is to know, and hands an address out once.
        write_sysctl(&setting("accept_ra"), "0")?;
        write_sysctl(&setting("accept_dad"), "0")?;
    } else {
        // No family, no link-local chatter, and `localhost` is one address.
        write_sysctl("net/ipv6/conf/lo/disable_ipv6", "1")?;
        write_sysctl(&setting("disable_ipv6"), "1")?;
    }
    netlink.set_up(index).await?;
    for ip in ips {
        netlink.add_address(index, IpNet::from(*ip)).await?;
        let (gateway, default) = match ip {
            IpAddr::V4(_) => (
                IpAddr::V4(GATEWAY_V4),
                IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0)?,
            ),
            IpAddr::V6(_) => (
                IpAddr::V6(GATEWAY_V6),
                IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0)?,
            ),
        };
        netlink.set_neighbour(index, gateway, HOST_MAC).await?;
        let to_gateway = Route {
            destination: IpNet::from(gateway),
            next: NextHop::Interface(index),
            metric: 0,
        };
        netlink.set_route(&to_gateway).await?;
        let by_gateway = NextHop::Gateway {
            via: gateway,
            interface: Some(index),
        };
        netlink
            .set_route(&Route {
                destination: default,
                next: by_gateway,
                metric: 0,
            })
            .await?;
    }
    Ok(())
}

/// What the stack must not do by itself on a host end.
fn quieten(interface: &str, dual: bool) -> io::Result<()> {
    // The host's end has no address: nothing to filter by.
    write_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
    let setting = |name: &str| format!("net/ipv6/conf/{interface}/{name}");
    write_sysctl(&setting("accept_ra"), "0")?;
    if !dual {
        return write_sysctl(&setting("disable_ipv6"), "1");
    }
    // IPv6 would make an address up (`IN6_ADDR_GEN_MODE_NONE`).
    write_sysctl(&setting("addr_gen_mode"), "1")?;
    write_sysctl(&setting("accept_dad"), "0")?;
    write_sysctl(&setting("disable_ipv6"), "0")
}

/// A setting of the calling thread's network namespace. A kernel without IPv6 has none of its.
pub(super) fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/{name}"), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("net/ipv6") => {
            Ok(())
        }
        other => other,
    }
}

/// At most 15 bytes (`IFNAMSIZ`), with room for one more, and the same for the same pod.
fn interface_name(uid: &str) -> String {
    let digest = Sha256::digest(uid.as_bytes());
    let mut name = String::from("sk");
    for byte in digest.iter().take(6) {
        name.push_str(&format!("{byte:02x}"));
    }
    name
}

fn other(error: impl Into<NetlinkOrIo>) -> NetworkError {
    let error = error.into();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    NetworkError::Other(text)
}

fn datapath_error(error: skep_datapath::Error) -> NetworkError {
    other(Box::new(error) as NetlinkOrIo)
}
