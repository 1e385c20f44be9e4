//! Why a packet or a connection was not passed on, or what special thing was done to it. One
//! counter each, one name each; the number is the counter's index and never changes meaning.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:literal, $text:literal;)+) => {
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name = $value,)+
        }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// The label in metrics and events.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$name => $text,)+ }
            }

            pub const fn from_u32(value: u32) -> Option<Self> {
                match value { $($value => Some(Reason::$name),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// A Service without a backend: refused.
    NoBackend = 0, "no_backend";
    /// externalTrafficPolicy Local and no backend on this node: dropped.
    NoLocalBackend = 1, "no_local_backend";
    /// The client is in none of the Service's source ranges.
    SourceRange = 2, "source_range";
    /// A pod sent with an address that is not its own.
    Spoofed = 3, "spoofed";
    /// The flow table is full: a new flow was refused, the live ones stay.
    FlowTableFull = 4, "flow_table_full";
    /// No free port towards this remote address and port.
    NoPort = 5, "no_port";
    /// Headers end before they should.
    Truncated = 6, "truncated";
    /// Policy does not allow what reached the pod.
    PolicyIngress = 7, "policy_ingress";
    /// Policy does not allow what the pod sent.
    PolicyEgress = 8, "policy_egress";
    /// No route to the translated destination.
    NoRoute = 9, "no_route";
    /// The hop limit ran out.
    HopLimit = 10, "hop_limit";
    /// A later fragment without its first.
    Fragment = 11, "fragment";
    /// SCTP's checksum would have to be computed anew for another port.
    SctpPort = 12, "sctp_port";
    /// A helper refused to change the packet.
    Rewrite = 13, "rewrite";
    /// Not a drop: a connection got its backend at the socket.
    SocketTranslated = 14, "socket_translated";
    /// Not a drop: a new flow was translated packet by packet.
    FlowCreated = 15, "flow_created";
    /// Not a drop: delivered straight into a pod.
    RedirectedToPod = 16, "redirected_to_pod";
    /// Not a drop: sent straight to a neighbour.
    RedirectedToNeighbour = 17, "redirected_to_neighbour";
    /// Not a drop: a pod's address hidden behind the node's.
    Masqueraded = 18, "masqueraded";
    /// Not a drop: an ICMP error translated.
    IcmpTranslated = 19, "icmp_translated";
    /// A packet for a Service address that no Service has on that port.
    NoSuchFrontend = 20, "no_such_frontend";
    /// Not a drop: a flow's source was replaced by the node's address for a remote backend.
    SourceTranslated = 21, "source_translated";
    /// Not a drop: sent through the tunnel.
    Tunnelled = 22, "tunnelled";
    /// Not a drop: an ARP request for a Service address of this node answered.
    ArpAnswered = 23, "arp_answered";
    /// Not a drop: a neighbour solicitation for a Service address of this node answered.
    NdpAnswered = 24, "ndp_answered";
    /// Another machine claims a Service address that this node answers for.
    AddressClash = 25, "address_clash";
    /// Not a drop: a new connection that nothing translates. Counted only while somebody listens.
    Forwarded = 26, "forwarded";
    /// Not a drop: sent to a backend that answers the client directly.
    DirectReturn = 27, "direct_return";
    /// Too long for the way onwards, and not to be fragmented: its sender was told (ICMP).
    TooBig = 28, "too_big";
    /// Not a drop: put into a pod's receive queue by XDP.
    XdpToPod = 29, "xdp_to_pod";
    /// Not a drop: sent back out of the uplink by XDP.
    XdpToNeighbour = 30, "xdp_to_neighbour";
    /// Not a drop: a socket needed storage of its own, because another has its place or because it
    /// sends to several Services.
    PlaceTaken = 31, "place_taken";
}

impl Reason {
    pub const fn is_drop(self) -> bool {
        !matches!(
            self,
            Reason::SocketTranslated
                | Reason::FlowCreated
                | Reason::RedirectedToPod
                | Reason::RedirectedToNeighbour
                | Reason::Masqueraded
                | Reason::IcmpTranslated
                | Reason::SourceTranslated
                | Reason::Tunnelled
                | Reason::ArpAnswered
                | Reason::NdpAnswered
                | Reason::AddressClash
                | Reason::Forwarded
                | Reason::DirectReturn
                | Reason::XdpToPod
                | Reason::XdpToNeighbour
                | Reason::PlaceTaken
        )
    }
}

/// Size of the counters' array; room to grow without a new layout.
pub const MAX_REASONS: u32 = 64;

const _: () = assert!(Reason::ALL.len() < MAX_REASONS as usize);
