//! What the programs would do to a new connection, and why: the same tables, read in the same
//! order as `ebpf/programs` reads them. Nothing is sent and nothing changes.

use std::net::IpAddr;
use std::time::Duration;

use skep_ebpf_common::node::{Config, Network, Pod, config_flags, network_flags, pod_flags};
use skep_ebpf_common::policy::{
    EGRESS, IDENTITY_ANY, IDENTITY_WORLD, INGRESS, Identity, RULE_EXACT_BITS, RuleKey,
};
use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::service::*;
use skep_ebpf_common::{Address, PortBe};

use crate::error::Error;
use crate::flows::now;
use crate::loader::Datapath;
use crate::table::Prefix;

/// Backends of a Service that are followed; more are counted only.
const MAX_PATHS: usize = 64;

/// Where the connection begins, as seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A pod of this node.
    Pod,
    /// The node itself.
    Node,
    /// Comes in by the uplink, from outside the cluster.
    Outside,
    /// Comes from another node that has done its part: for a pod of this one.
    OtherNode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub origin: Origin,
    pub from: IpAddr,
    pub to: IpAddr,
    pub port: u16,
    pub protocol: u8,
}

/// One look at a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `service`, `affinity`, `policy`, `nat`, `route`.
    pub what: &'static str,
    pub detail: String,
}

/// How it ends on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Into a pod of this node.
    Delivered,
    /// To a process of this node.
    ToNode,
    /// To another node or the world, by the node's routes.
    Routed,
    /// Through the tunnel to this node.
    Tunnelled(IpAddr),
    /// The client is told at once.
    Refused(Reason),
    /// The client waits in vain.
    Dropped(Reason),
}

/// What would happen with one choice of backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub steps: Vec<Step>,
    /// As the packet leaves this node.
    pub source: IpAddr,
    pub destination: (IpAddr, u16),
    pub end: End,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Before a backend is chosen.
    pub steps: Vec<Step>,
    /// One for each backend that may be chosen; one without a Service.
    pub paths: Vec<Path>,
    /// Backends beyond those in `paths`.
    pub more: usize,
}

fn step(what: &'static str, detail: impl Into<String>) -> Step {
    Step {
        what,
        detail: detail.into(),
    }
}

/// What the Service lookup says.
enum Match {
    None,
    Refused(End),
    Backends(Vec<Backend>),
}

impl Datapath {
    /// Answers the question from the tables as they are now.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn trace(&self, question: &Question) -> Result<Trace, Error> {
        let config = self.node_tables().config.get(&0)?.unwrap_or_default();
        let tracer = Tracer {
            datapath: self,
            question: *question,
            config,
        };
        tracer.trace()
    }
}

struct Tracer<'a> {
    datapath: &'a Datapath,
    question: Question,
    config: Config,
}

impl Tracer<'_> {
    fn trace(&self) -> Result<Trace, Error> {
        let question = &self.question;
        let mut trace = Trace::default();
        let plain = (question.to, question.port);
        let pod = match question.origin {
            Origin::Pod => {
                let pod = self.pod(question.from)?;
                if pod.is_none() {
                    let detail = format!("{} is no pod of this node", question.from);
                    trace.steps.push(step("source", detail));
                    let end = End::Dropped(Reason::Spoofed);
                    trace.paths.push(self.path(plain, end));
                    return Ok(trace);
                }
                pod
            }
            _ => None,
        };
        if question.origin == Origin::OtherNode {
            trace.paths.push(self.onward(None, plain, false)?);
            return Ok(trace);
        }
        match self.service(&mut trace.steps)? {
            Match::Refused(end) => trace.paths.push(self.path(plain, end)),
            Match::None => trace.paths.push(self.onward(pod.as_ref(), plain, false)?),
            Match::Backends(backends) => {
                trace.more = backends.len().saturating_sub(MAX_PATHS);
                for backend in backends.iter().take(MAX_PATHS) {
                    let destination = (backend.address.to_ip(), backend.port.get());
                    trace
                        .paths
                        .push(self.onward(pod.as_ref(), destination, true)?);
                }
            }
        }
        Ok(trace)
    }

    fn path(&self, destination: (IpAddr, u16), end: End) -> Path {
        Path {
            steps: Vec::new(),
            source: self.question.from,
            destination,
            end,
        }
    }

    fn pod(&self, ip: IpAddr) -> Result<Option<Pod>, Error> {
        self.datapath.node_tables().pods.get(&Address::from(ip))
    }

    fn is_node_address(&self, ip: IpAddr) -> Result<bool, Error> {
        let found = self
            .datapath
            .node_tables()
            .addresses
            .get(&Address::from(ip))?;
        Ok(found.is_some())
    }

    fn network(&self, ip: IpAddr) -> Result<Network, Error> {
        let key = Prefix {
            bits: 128,
            data: Address::from(ip),
        };
        let found = self.datapath.node_tables().networks.get(&key)?;
        Ok(found.unwrap_or_default())
    }

    /// `ebpf/programs/src/service.rs` and, for clients outside, `serve` of `net.rs`.
    fn service(&self, steps: &mut Vec<Step>) -> Result<Match, Error> {
        let question = &self.question;
        let outside = question.origin == Origin::Outside;
        let address = Address::from(question.to);
        let port = PortBe::new(question.port);
        let exact = FrontendKey::new(address, port, question.protocol);
        let every = FrontendKey::new(address.unspecified(), port, question.protocol);
        let loopback = question.origin == Origin::Node && address.is_loopback();
        let services = self.datapath.services().lock();
        let mut found = services.frontend(&exact)?;
        if found.is_none() && (loopback || self.is_node_address(question.to)?) {
            found = services.frontend(&every)?;
        }
        let Some((frontend, name)) = found else {
            let network = self.network(question.to)?;
            if network.flags & network_flags::SERVICE != 0 {
                let detail = format!(
                    "{} is a Service address, and no Service has port {}",
                    question.to, question.port
                );
                steps.push(step("service", detail));
                let reason = Reason::NoSuchFrontend;
                return Ok(Match::Refused(match question.origin {
                    Origin::Pod => End::Dropped(reason),
                    _ => End::Refused(reason),
                }));
            }
            if outside && self.announced(question.to)? {
                let detail = "the node answers for the address, and no Service has this port";
                steps.push(step("service", detail));
                return Ok(Match::Refused(End::Dropped(Reason::NoSuchFrontend)));
            }
            steps.push(step("service", "none: the address is used as it is"));
            return Ok(Match::None);
        };
        let name = name.unwrap_or_else(|| format!("of a predecessor, number {}", frontend.service));
        if outside && frontend.flags & frontend_flags::INTERNAL_ONLY != 0 {
            steps.push(step("service", format!("{name}: not for clients outside")));
            return Ok(Match::None);
        }
        let extent = if outside {
            frontend.external
        } else {
            frontend.internal
        };
        let maglev = outside && frontend.flags & frontend_flags::EXTERNAL_MAGLEV != 0;
        let mut backends = services.backends_in(extent);
        backends.retain(|(_, backend)| backend.service == frontend.service);
        let way = match (backends.len(), maglev) {
            (1, _) => "",
            (_, true) => ", chosen by the connection's hash (Maglev)",
            (_, false) => ", chosen at random",
        };
        steps.push(step(
            "service",
            format!("{name}: {} backends{way}", backends.len()),
        ));
        if outside && frontend.flags & frontend_flags::SOURCE_RANGES != 0 {
            let range = Prefix {
                bits: 160,
                data: SourceRange {
                    service: frontend.service,
                    client: Address::from(question.from),
                },
            };
            if !services.allows(&range)? {
                let detail = format!("{} is in none of the source ranges", question.from);
                steps.push(step("service", detail));
                return Ok(Match::Refused(End::Dropped(Reason::SourceRange)));
            }
        }
        if backends.is_empty() {
            let drop = outside && frontend.flags & frontend_flags::EXTERNAL_DROP != 0;
            return Ok(Match::Refused(if drop {
                End::Dropped(Reason::NoLocalBackend)
            } else {
                End::Refused(Reason::NoBackend)
            }));
        }
        drop(services);
        if frontend.affinity_seconds != 0
            && let Some(index) = self.remembered(&frontend, steps)?
        {
            backends.retain(|(own, _)| *own == index);
        }
        Ok(Match::Backends(
            backends.into_iter().map(|(_, backend)| backend).collect(),
        ))
    }

    fn announced(&self, ip: IpAddr) -> Result<bool, Error> {
        let found = self
            .datapath
            .node_tables()
            .announced
            .get(&Address::from(ip))?;
        Ok(found.is_some())
    }

    /// The backend that sessionAffinity holds the client to, if it does.
    fn remembered(&self, frontend: &Frontend, steps: &mut Vec<Step>) -> Result<Option<u32>, Error> {
        let key = AffinityKey {
            client: Address::from(self.question.from),
            service: frontend.service,
        };
        let affinity = self.datapath.affinities().get(&key)?;
        let now = now()?;
        let fresh = affinity.filter(|affinity| {
            now.wrapping_sub(affinity.seen) <= frontend.affinity_seconds
                && self
                    .datapath
                    .services()
                    .lock()
                    .is_backend(affinity.backend, frontend.service)
        });
        let lasts = Duration::from_secs(u64::from(frontend.affinity_seconds));
        steps.push(step(
            "affinity",
            match &fresh {
                Some(_) => format!("this client is held to one backend for {lasts:?}"),
                None => format!("none yet; the choice will hold for {lasts:?}"),
            },
        ));
        Ok(fresh.map(|affinity| affinity.backend))
    }

    /// From the choice of a destination on: policy, address translation, the way.
    fn onward(
        &self,
        pod: Option<&Pod>,
        destination: (IpAddr, u16),
        translated: bool,
    ) -> Result<Path, Error> {
        let (ip, port) = destination;
        let mut path = self.path(destination, End::Routed);
        if translated {
            let detail = format!("the destination becomes {}", shown(destination));
            path.steps.push(step("nat", detail));
        }
        let peer = self.pod(ip)?;
        let to_node = self.is_node_address(ip)?;
        let network = self.network(ip)?;
        let tunnel = (network.tunnel != Address::ANY).then(|| network.tunnel.to_ip());

        if let Some(pod) = pod
            && pod.flags & pod_flags::EGRESS_ISOLATED != 0
        {
            let allowed = to_node || self.judge(&mut path.steps, pod.policy, EGRESS, ip, port)?;
            if !allowed {
                path.end = End::Dropped(Reason::PolicyEgress);
                return Ok(path);
            }
        }
        path.source = self.source(
            &mut path.steps,
            ip,
            peer.is_some(),
            to_node,
            &network,
            translated,
        );
        if let Some(peer) = peer {
            if peer.flags & pod_flags::INGRESS_ISOLATED != 0 {
                let source = path.source;
                let allowed = self.is_node_address(source)?
                    || self.judge(&mut path.steps, peer.policy, INGRESS, source, port)?;
                if !allowed {
                    path.end = End::Dropped(Reason::PolicyIngress);
                    return Ok(path);
                }
            }
            path.steps.push(step(
                "route",
                format!(
                    "{ip} is a pod of this node, behind interface {}",
                    peer.ifindex
                ),
            ));
            path.end = End::Delivered;
        } else if to_node {
            path.steps
                .push(step("route", format!("{ip} is an address of this node")));
            path.end = End::ToNode;
        } else if let Some(node) = tunnel {
            path.steps
                .push(step("route", format!("through the tunnel to node {node}")));
            path.end = End::Tunnelled(node);
        } else {
            let kind = if network.flags & network_flags::CLUSTER != 0 {
                "inside the cluster"
            } else {
                "outside the cluster"
            };
            path.steps.push(step(
                "route",
                format!("{ip} is {kind}: by the node's routes"),
            ));
        }
        Ok(path)
    }

    /// Whose address the other end will see.
    fn source(
        &self,
        steps: &mut Vec<Step>,
        to: IpAddr,
        local: bool,
        to_node: bool,
        network: &Network,
        translated: bool,
    ) -> IpAddr {
        let from = self.question.from;
        let v4 = to.is_ipv4();
        let tunnelled = network.tunnel != Address::ANY;
        let (hidden, why) = match self.question.origin {
            Origin::Outside if translated && !local && !to_node => {
                if tunnelled && self.config.flags & config_flags::TUNNEL_KEEPS_CLIENT != 0 {
                    steps.push(step("nat", "the tunnel keeps the client's address"));
                    return from;
                }
                let own = match (tunnelled, v4) {
                    (false, true) => self.config.node_v4,
                    (false, false) => self.config.node_v6,
                    (true, true) => self.config.tunnel_v4,
                    (true, false) => self.config.tunnel_v6,
                };
                (own, "so that answers come back through this node")
            }
            Origin::Pod
                if !local
                    && !to_node
                    && network.flags & network_flags::CLUSTER == 0
                    && self.config.flags & config_flags::MASQUERADE != 0 =>
            {
                let own = if v4 {
                    self.config.node_v4
                } else {
                    self.config.node_v6
                };
                (own, "nobody outside knows a pod's address")
            }
            _ => return from,
        };
        if hidden == Address::ANY {
            return from;
        }
        let source = hidden.to_ip();
        steps.push(step("nat", format!("the source becomes {source}: {why}")));
        source
    }

    /// `ebpf/programs/src/policy.rs`.
    fn judge(
        &self,
        steps: &mut Vec<Step>,
        policy: u32,
        direction: u8,
        peer: IpAddr,
        port: u16,
    ) -> Result<bool, Error> {
        let tables = self.datapath.policy_tables();
        let key = Prefix {
            bits: 128,
            data: Address::from(peer),
        };
        let identity = tables
            .identities
            .get(&key)?
            .unwrap_or(Identity::WORLD)
            .identity;
        let protocol = self.question.protocol;
        let way = if direction == INGRESS {
            "ingress"
        } else {
            "egress"
        };
        let who = match identity {
            IDENTITY_WORLD => format!("{peer} (nobody that a policy names)"),
            _ => format!("{peer} (identity {identity})"),
        };
        for (identity, protocol) in [
            (identity, protocol),
            (IDENTITY_ANY, protocol),
            (identity, 0),
            (IDENTITY_ANY, 0),
        ] {
            let rule = Prefix {
                bits: RULE_EXACT_BITS + 16,
                data: RuleKey {
                    policy,
                    identity,
                    direction,
                    protocol,
                    port: port.to_be_bytes(),
                },
            };
            if tables.rules.get(&rule)?.is_some() {
                let whom = if identity == IDENTITY_ANY {
                    "anybody".to_string()
                } else {
                    who
                };
                let what = if protocol == 0 {
                    "everything".to_string()
                } else {
                    format!("port {port}")
                };
                steps.push(step(
                    "policy",
                    format!("{way}: policy set {policy} allows {whom} {what}"),
                ));
                return Ok(true);
            }
        }
        steps.push(step(
            "policy",
            format!("{way}: policy set {policy} has no rule for {who} on port {port}"),
        ));
        Ok(false)
    }
}

fn shown((ip, port): (IpAddr, u16)) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}
