//! Cluster DNS, on every node: the agent answers for its own pods, at the cluster DNS address by
//! way of the Service maps. It answers from the informers' caches, so also while the control plane
//! is down; what is not the cluster's is asked of the node's own resolvers.

mod reverse;
mod upstream;
mod zone;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use skep_client::{Informers, Kept as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::endpoints::Slice;
use crate::services::Service;

pub use reverse::Reverse;
pub use upstream::Upstream;
pub use zone::{Answer, Zone};

/// Of an idle TCP client.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers queued for one TCP client.
const TCP_QUEUE: usize = 64;
/// What this server takes and gives over UDP (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1_232;

#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// `cluster.local`
    pub domain: String,
    /// An address of the node; pods get here through the cluster DNS address.
    pub node_ip: IpAddr,
    /// Tried first, so that pinned Service entries stay right over a restart.
    pub port: u16,
    /// Names the resolvers for everything else.
    pub resolv_conf: PathBuf,
    /// Never asked: it is ourselves.
    pub cluster_dns: IpAddr,
}

/// The bound sockets of the server.
pub struct Dns {
    udp: UdpSocket,
    tcp: TcpListener,
    address: SocketAddr,
    config: DnsConfig,
}

impl Dns {
    /// Binds the same port of UDP and TCP: the configured one, or else a free one.
    pub async fn bind(config: DnsConfig) -> std::io::Result<Self> {
        let mut last = std::io::Error::other("no port tried");
        for port in [config.port, 0, 0, 0] {
            match bind_both(SocketAddr::new(config.node_ip, port)).await {
                Ok((udp, tcp, address)) => {
                    return Ok(Self {
                        udp,
                        tcp,
                        address,
                        config,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop`.
    pub async fn run(self, informers: Informers, stop: CancellationToken) {
        let zone = match zone_of(&informers, &self.config.domain) {
            Ok(zone) => zone,
            Err(error) => {
                warn!(domain = self.config.domain, %error, "the cluster domain is not a DNS name");
                return;
            }
        };
        self.serve(zone, stop).await;
    }

    /// As [`Self::run`], from a zone at hand.
    pub async fn serve(self, zone: Zone, stop: CancellationToken) {
        let upstream = Upstream::from_file(&self.config.resolv_conf, &[self.config.cluster_dns]);
        info!(address = %self.address, upstreams = upstream.len(), "DNS ready");
        let handler = Handler {
            zone,
            upstream,
            counters: Arc::default(),
        };
        let mut server = Server::new(handler);
        server.register_socket(self.udp);
        server.register_listener(self.tcp, TCP_TIMEOUT, TCP_QUEUE);
        tokio::select! {
            result = server.block_until_done() => {
                if let Err(error) = result {
                    warn!(%error, "the DNS server ended");
                }
            }
            () = stop.cancelled() => {}
        }
    }
}

async fn bind_both(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener, SocketAddr)> {
    let udp = UdpSocket::bind(address).await?;
    let address = udp.local_addr()?;
    let tcp = TcpListener::bind(address).await?;
    Ok((udp, tcp, address))
}

/// The zone over shared informers, its reverse names kept up to date by them.
fn zone_of(informers: &Informers, domain: &str) -> Result<Zone, hickory_proto::ProtoError> {
    let domain = Name::from_ascii(format!("{}.", domain.trim_end_matches('.')))?;
    let services = informers.of::<Service>();
    let slices = informers.of::<Slice>();
    let reverse = Arc::new(Reverse::default());
    let index = reverse.clone();
    services.on_change(move |change| match &change.new {
        Some(service) => index.set_service(service),
        None => index.remove_service(&change.object().key()),
    });
    let index = reverse.clone();
    slices.on_change(move |change| match &change.new {
        Some(slice) => index.set_slice(slice),
        None => index.remove_slice(&change.object().key()),
    });
    Ok(Zone {
        services,
        slices,
        reverse,
        domain,
    })
}

#[derive(Debug, Default)]
struct Counters {
    cluster: AtomicU64,
    forwarded: AtomicU64,
    failed: AtomicU64,
}

struct Handler {
    zone: Zone,
    upstream: Upstream,
    counters: Arc<Counters>,
}

struct Reply {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    soa: Option<Record>,
}

impl Reply {
    fn error(code: ResponseCode) -> Self {
        Self {
            code,
            authoritative: false,
            answers: Vec::new(),
            soa: None,
        }
    }
}

impl Handler {
    async fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query {
            return Reply::error(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else {
            return Reply::error(ResponseCode::FormErr);
        };
        if info.query.query_class() != DNSClass::IN {
            return Reply::error(ResponseCode::Refused);
        }
        let name = Name::from(info.query.name().clone());
        let kind = info.query.query_type();
        // Before the caches are filled "no such name" would be a lie that clients remember.
        let ready = self.zone.services.is_synced() && self.zone.slices.is_synced();
        match self.zone.answer(&name, kind) {
            Answer::NotOurs => self.forward(&name, kind).await,
            Answer::NoData | Answer::NoSuchName if !ready => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                Reply::error(ResponseCode::ServFail)
            }
            answer => {
                self.counters.cluster.fetch_add(1, Ordering::Relaxed);
                self.cluster_reply(answer, kind).await
            }
        }
    }

    async fn cluster_reply(&self, answer: Answer, kind: RecordType) -> Reply {
        let soa = Some(self.zone.soa());
        match answer {
            Answer::Records(mut answers) => {
                self.follow_alias(&mut answers, kind).await;
                Reply {
                    code: ResponseCode::NoError,
                    authoritative: true,
                    answers,
                    soa: None,
                }
            }
            Answer::NoData | Answer::NotOurs => Reply {
                code: ResponseCode::NoError,
                authoritative: true,
                answers: Vec::new(),
                soa,
            },
            Answer::NoSuchName => Reply {
                code: ResponseCode::NXDomain,
                authoritative: true,
                answers: Vec::new(),
                soa,
            },
        }
    }

    /// Stub resolvers want the target's addresses in the same answer (RFC 1034 §3.6.2).
    async fn follow_alias(&self, answers: &mut Vec<Record>, kind: RecordType) {
        let target = match answers.first().map(|record| &record.data) {
            Some(hickory_proto::rr::RData::CNAME(target)) if kind != RecordType::CNAME => {
                target.0.clone()
            }
            _ => return,
        };
        match self.zone.answer(&target, kind) {
            Answer::Records(more) => answers.extend(more),
            Answer::NotOurs => answers.extend(self.forward(&target, kind).await.answers),
            Answer::NoData | Answer::NoSuchName => {}
        }
    }

    async fn forward(&self, name: &Name, kind: RecordType) -> Reply {
        match self.upstream.ask(name, kind).await {
            Ok(found) => {
                self.counters.forwarded.fetch_add(1, Ordering::Relaxed);
                Reply {
                    code: found.code,
                    authoritative: false,
                    answers: found.answers,
                    soa: found.soa,
                }
            }
            Err(error) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                debug!(%name, %kind, %error, "not resolved");
                Reply::error(ResponseCode::ServFail)
            }
        }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut handle: R,
    ) -> ResponseInfo {
        let reply = self.reply(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = true;
        let mut builder = MessageResponseBuilder::from_message_request(request);
        let mut edns = Edns::new();
        if request.edns.is_some() {
            edns.set_max_payload(UDP_PAYLOAD).set_version(0);
            builder.edns(&edns);
        }
        let response = builder.build(metadata, &reply.answers, [], &reply.soa, []);
        match handle.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                debug!(%error, "a DNS answer was not sent");
                hickory_proto::op::Header {
                    metadata,
                    counts: hickory_proto::op::HeaderCounts::default(),
                }
                .into()
            }
        }
    }
}
