//! The few rtnetlink requests that the pod network needs, and a way to make them in another
//! network namespace.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::NeighbourFlags;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use nix::sched::{CloneFlags, setns};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder};

/// `proto` of the routes that skep adds: "who added this" in `ip route`. Unassigned in
/// rtnetlink(7) and iproute2's rt_protos.
const ROUTE_PROTOCOL: u8 = 0x5c;

#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {object}")]
pub struct NetlinkError {
    action: &'static str,
    object: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl NetlinkError {
    fn new(
        action: &'static str,
        object: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            action,
            object: object.into(),
            source: source.into(),
        }
    }

    pub(super) fn missing(object: impl Into<String>) -> Self {
        Self::new("find interface", object, "it is gone")
    }
}

/// A network interface as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    /// Index of the other end of a veth pair, in the other end's namespace.
    pub peer_index: Option<u32>,
}

/// A netlink socket of the namespace in which it was opened.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Call inside a tokio runtime; the connection ends with it.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub async fn interface(&self, name: &str) -> Result<Option<Interface>, NetlinkError> {
        let mut links = Box::pin(self.handle.link().get().match_name(name).execute());
        match links.try_next().await {
            Ok(Some(link)) => Ok(Some(describe(&link))),
            Ok(None) => Ok(None),
            Err(error) if is(&error, nix::errno::Errno::ENODEV) => Ok(None),
            Err(error) => Err(NetlinkError::new("look at interface", name, error)),
        }
    }

    pub async fn interfaces(&self) -> Result<Vec<Interface>, NetlinkError> {
        let links: Vec<LinkMessage> = Box::pin(self.handle.link().get().execute())
            .try_collect()
            .await
            .map_err(|error| NetlinkError::new("list", "interfaces", error))?;
        Ok(links.iter().map(describe).collect())
    }

    /// Index of the interface that holds `ip`.
    pub async fn interface_with(&self, ip: IpAddr) -> Result<Option<u32>, NetlinkError> {
        let addresses = Box::pin(self.handle.address().get().set_address_filter(ip).execute())
            .try_collect::<Vec<_>>()
            .await
            .map_err(|error| NetlinkError::new("list", "addresses", error))?;
        Ok(addresses.first().map(|address| address.header.index))
    }

    /// Every address of this namespace but loopback and link-local ones.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, NetlinkError> {
        use netlink_packet_route::address::AddressAttribute;
        let messages = Box::pin(self.handle.address().get().execute())
            .try_collect::<Vec<_>>()
            .await
            .map_err(|error| NetlinkError::new("list", "addresses", error))?;
        let mut ips = Vec::new();
        for message in messages {
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(ip) => Some(*ip),
                    _ => None,
                });
            let address = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                });
            let link_local = |ip: &IpAddr| match ip {
                IpAddr::V4(ip) => ip.is_link_local(),
                IpAddr::V6(ip) => ip.is_unicast_link_local(),
            };
            ips.extend(
                local
                    .or(address)
                    .filter(|ip| !ip.is_loopback() && !link_local(ip)),
            );
        }
        Ok(ips)
    }

    /// A pair whose first end, with this hardware address, is here and whose other one is in `netns` from the beginning: to
    /// move it there would make the kernel wait for all its processors.
    pub async fn add_veth(
        &self,
        name: &str,
        mac: [u8; 6],
        peer: &str,
        netns: &File,
        mtu: u32,
    ) -> Result<(), NetlinkError> {
        use std::os::fd::AsRawFd;
        let other = LinkUnspec::new_with_name(peer)
            .mtu(mtu)
            .setns_by_fd(netns.as_raw_fd())
            .build();
        let message = LinkVeth::new(name, peer)
            .mtu(mtu)
            .address(mac.to_vec())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(|error| NetlinkError::new("create veth pair", name, error))
    }

    /// A VXLAN device that learns nothing and asks nobody: see [`Self::set_forwarding`].
    pub async fn add_vxlan(
        &self,
        name: &str,
        vni: u32,
        local: IpAddr,
        port: u16,
    ) -> Result<(), NetlinkError> {
        let builder = LinkVxlan::new(name, vni).port(port).learning(false);
        let builder = match local {
            IpAddr::V4(ip) => builder.local(ip),
            IpAddr::V6(ip) => builder.local6(ip),
        };
        self.handle
            .link()
            .add(builder.build())
            .execute()
            .await
            .map_err(|error| NetlinkError::new("create VXLAN device", name, error))
    }

    /// Frames to `mac` leave a VXLAN device for `node`.
    pub async fn set_forwarding(
        &self,
        index: u32,
        mac: [u8; 6],
        node: IpAddr,
    ) -> Result<(), NetlinkError> {
        self.handle
            .neighbours()
            .add_bridge(index, &mac)
            .destination(node)
            .flags(NeighbourFlags::Own)
            .replace()
            .execute()
            .await
            .map_err(|error| NetlinkError::new("forward to node", node.to_string(), error))
    }

    pub async fn remove(&self, index: u32) -> Result<(), NetlinkError> {
        match self.handle.link().del(index).execute().await {
            Err(error) if is(&error, nix::errno::Errno::ENODEV) => Ok(()),
            other => other
                .map_err(|error| NetlinkError::new("remove interface", index.to_string(), error)),
        }
    }

    pub async fn rename(&self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).name(name).build();
        self.change("rename interface", index, message).await
    }

    pub async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.change("bring up interface", index, message).await
    }

    pub async fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index)
            .address(mac.to_vec())
            .build();
        self.change("address interface", index, message).await
    }

    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.change("size interface", index, message).await
    }

    async fn change(
        &self,
        action: &'static str,
        index: u32,
        message: LinkMessage,
    ) -> Result<(), NetlinkError> {
        self.handle
            .link()
            .change(message)
            .execute()
            .await
            .map_err(|error| NetlinkError::new(action, index.to_string(), error))
    }

    /// An address that is there already is success. Usable at once: skep gives every address out
    /// once, so nobody has to be asked whether it is free (RFC 4862 §5.4).
    pub async fn add_address(&self, index: u32, net: IpNet) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .address()
            .add(index, net.addr(), net.prefix_len())
            .replace();
        if net.addr().is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request
            .execute()
            .await
            .map_err(|error| NetlinkError::new("add address", net.to_string(), error))
    }

    /// A permanent neighbour: nobody is asked by ARP or NDP.
    pub async fn set_neighbour(
        &self,
        index: u32,
        ip: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), NetlinkError> {
        self.handle
            .neighbours()
            .add(index, ip)
            .link_layer_address(&mac)
            .replace()
            .execute()
            .await
            .map_err(|error| NetlinkError::new("set neighbour", ip.to_string(), error))
    }

    pub async fn set_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.handle
            .route()
            .add(route.message().map_err(|error| {
                NetlinkError::new("describe route", route.destination.to_string(), error)
            })?)
            .replace()
            .execute()
            .await
            .map_err(|error| NetlinkError::new("set route", route.destination.to_string(), error))
    }

    /// Routes to whole networks that skep added earlier (see [`ROUTE_PROTOCOL`]).
    pub async fn own_routes(&self) -> Result<Vec<(IpNet, RouteMessage)>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let found: Vec<RouteMessage> = Box::pin(self.handle.route().get(filter).execute())
                .try_collect()
                .await
                .map_err(|error| NetlinkError::new("list", "routes", error))?;
            for message in found {
                if message.header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL) {
                    continue;
                }
                let destination = message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                            Some(IpAddr::from(*ip))
                        }
                        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
                            Some(IpAddr::from(*ip))
                        }
                        _ => None,
                    });
                let prefix = message.header.destination_prefix_length;
                if let Some(Ok(net)) = destination.map(|ip| IpNet::new(ip, prefix)) {
                    routes.push((net, message));
                }
            }
        }
        Ok(routes)
    }

    pub async fn remove_route(&self, message: RouteMessage) -> Result<(), NetlinkError> {
        match self.handle.route().del(message).execute().await {
            Err(error) if is(&error, nix::errno::Errno::ESRCH) => Ok(()),
            other => other.map_err(|error| NetlinkError::new("remove", "route", error)),
        }
    }
}

/// Where packets for a network go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub destination: IpNet,
    pub next: NextHop,
    /// Smaller wins among equal destinations.
    pub metric: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHop {
    Interface(u32),
    Gateway {
        via: IpAddr,
        interface: Option<u32>,
    },
    /// Behind a tunnel: `via` is on its link, whatever its address looks like.
    Tunnel {
        via: IpAddr,
        interface: u32,
    },
    /// Refused with ICMP: a packet that gets here must not leave the machine.
    Unreachable,
}

impl Route {
    fn message(&self) -> Result<RouteMessage, Box<dyn std::error::Error + Send + Sync>> {
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(self.destination.addr(), self.destination.prefix_len())?
            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
            .priority(self.metric);
        match self.next {
            NextHop::Interface(index) => {
                builder = builder.output_interface(index).scope(RouteScope::Link);
            }
            NextHop::Gateway { via, interface } => {
                builder = builder.gateway(via)?;
                if let Some(index) = interface {
                    builder = builder.output_interface(index);
                }
            }
            NextHop::Tunnel { via, interface } => {
                builder = builder.gateway(via)?.output_interface(interface).onlink();
            }
            NextHop::Unreachable => builder = builder.kind(RouteType::Unreachable),
        }
        Ok(builder.build())
    }
}

fn describe(link: &LinkMessage) -> Interface {
    let mut interface = Interface {
        index: link.header.index,
        name: String::new(),
        mac: [0; 6],
        mtu: 0,
        peer_index: None,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(mac) => {
                if let Ok(mac) = mac.as_slice().try_into() {
                    interface.mac = mac;
                }
            }
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Link(index) => interface.peer_index = Some(*index),
            _ => {}
        }
    }
    interface
}

fn is(error: &rtnetlink::Error, errno: nix::errno::Errno) -> bool {
    matches!(
        error,
        rtnetlink::Error::NetlinkError(message) if message.raw_code() == -(errno as i32)
    )
}

/// Runs `body` inside the network namespace, on a thread of its own that ends with it: a thread
/// that changed its namespace must never serve anything else.
pub async fn in_netns<T, F, Fut>(netns: File, body: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = T>,
{
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            let run = || -> io::Result<T> {
                setns(&netns, CloneFlags::CLONE_NEWNET)?;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                Ok(runtime.block_on(body()))
            };
            // The receiver is gone when the caller was cancelled.
            let _ = sender.send(run());
        })?;
    receiver
        .await
        .map_err(|_| io::Error::other("the namespace's thread ended early"))?
}
