//! The resolvers of the node, for names outside the cluster. Answers are cached as long as they say.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver, TokioResolver};
use tracing::warn;

/// libc gives up after 5 s (resolv.conf(5)); an answer must come before.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
const CACHE_ENTRIES: u64 = 4_096;
/// Negative answers of others are forgotten quickly: a new name should work soon.
const NEGATIVE_TTL: Duration = Duration::from_secs(30);

pub struct Upstream {
    resolver: Option<TokioResolver>,
    count: usize,
}

pub(super) struct Found {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) soa: Option<Record>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the node has no resolver for names outside the cluster")]
    NoServer,
    #[error("upstream: {0}")]
    Net(#[from] hickory_resolver::net::NetError),
}

impl Upstream {
    /// Reads `nameserver` lines; `except` are our own addresses. Without any, names outside the
    /// cluster fail at once.
    pub fn from_file(resolv_conf: &Path, except: &[IpAddr]) -> Self {
        let text = std::fs::read_to_string(resolv_conf).unwrap_or_default();
        let servers: Vec<NameServerConfig> = name_servers(&text)
            .into_iter()
            .filter(|ip| !except.contains(ip))
            .map(NameServerConfig::udp_and_tcp)
            .collect();
        let count = servers.len();
        if count == 0 {
            return Self {
                resolver: None,
                count,
            };
        }
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.timeout = TIMEOUT;
        options.attempts = ATTEMPTS;
        options.cache_size = CACHE_ENTRIES;
        options.use_hosts_file = ResolveHosts::Never;
        options.negative_max_ttl = Some(NEGATIVE_TTL);
        match builder.build() {
            Ok(resolver) => Self {
                resolver: Some(resolver),
                count,
            },
            Err(error) => {
                warn!(%error, "names outside the cluster cannot be resolved");
                Self {
                    resolver: None,
                    count: 0,
                }
            }
        }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Found, Failure> {
        let resolver = self.resolver.as_ref().ok_or(Failure::NoServer)?;
        match resolver.lookup(name.clone(), kind).await {
            Ok(lookup) => Ok(Found {
                code: ResponseCode::NoError,
                answers: lookup.answers().to_vec(),
                soa: None,
            }),
            Err(error) if error.is_no_records_found() => {
                let code = if error.is_nx_domain() {
                    ResponseCode::NXDomain
                } else {
                    ResponseCode::NoError
                };
                Ok(Found {
                    code,
                    answers: Vec::new(),
                    soa: None,
                })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// resolv.conf(5): the first word decides, comments begin with `#` or `;`.
fn name_servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(['#', ';']).next()?.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next()?.parse().ok())?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_libc_reads_them() {
        let text = "# nameserver 1.1.1.1\nnameserver 192.0.2.53 ; old\nsearch example.org\n\
                    nameserver  2001:db8::53\nnameserver nonsense\noptions ndots:5\n";
        let expected: Vec<IpAddr> = ["192.0.2.53", "2001:db8::53"]
            .iter()
            .filter_map(|ip| ip.parse().ok())
            .collect();
        assert_eq!(name_servers(text), expected);
    }

    #[tokio::test]
    async fn without_a_resolver_the_answer_is_immediate() {
        let upstream = Upstream::from_file(Path::new("/nonexistent"), &[]);
        let name = Name::from_ascii("example.org.").expect("a name");
        assert!(matches!(
            upstream.ask(&name, RecordType::A).await,
            Err(Failure::NoServer)
        ));
    }
}
