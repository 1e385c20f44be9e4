//! Command line of `skep-control`.

use std::{net::IpAddr, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use ipnet::IpNet;

/// The control plane of a skep cluster: API server, scheduler and controllers in one process.
///
/// First start: makes the cluster's certificates and writes DATA_DIR/admin.kubeconfig (for people) and
/// DATA_DIR/bootstrap.kubeconfig (for nodes that join).
#[derive(Clone, Debug, Parser)]
#[command(name = "skep-control", version)]
pub struct Options {
    /// Where certificates, kubeconfigs and the embedded store live.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/skep")]
    pub data_dir: PathBuf,

    /// Address and port of the API, TLS only.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:6443")]
    pub listen: SocketAddr,

    /// Also serve the API without TLS here; loopback addresses only. Credentials are still needed.
    #[arg(long, value_name = "ADDR:PORT", value_parser = loopback)]
    pub listen_plain: Option<SocketAddr>,

    /// Address under which nodes and pods reach this API server; default: the listen address, else the
    /// address of the default route.
    #[arg(long, value_name = "IP")]
    pub advertise_address: Option<IpAddr>,

    /// Further names and addresses for the serving certificate.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub tls_san: Vec<String>,

    /// What to run here.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Role::Api, Role::Scheduler, Role::Controllers])]
    pub roles: Vec<Role>,

    /// Serve metrics.k8s.io from what the nodes' agents measure; default: where the controllers run too. Say `false` to
    /// bring a metrics server of your own.
    #[arg(long, value_name = "BOOL")]
    pub metrics_api: Option<bool>,

    /// How to reach the API when it runs elsewhere (no `api` in --roles).
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// Where objects are kept.
    #[arg(long, value_enum, default_value_t = StoreKind::Redb)]
    pub store: StoreKind,

    /// etcd's client URLs, for --store etcd.
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379"
    )]
    pub etcd_endpoints: Vec<String>,

    /// The CA of etcd's serving certificate (PEM).
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,

    /// The client certificate for etcd (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["etcd_keyfile", "etcd_cafile"])]
    pub etcd_certfile: Option<PathBuf>,

    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,

    /// Static bearer tokens: lines of `token,user,uid,"group1,group2"`.
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,

    /// What is stored encrypted, and under which keys (`apiserver.config.k8s.io/v1 EncryptionConfiguration`, YAML).
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,

    /// Which requests the audit log records (`audit.k8s.io/v1 Policy`, YAML).
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    pub audit_policy_file: Option<PathBuf>,

    /// The audit log, one event of JSON a line; `-` is the standard output.
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    pub audit_log_path: Option<PathBuf>,

    /// Rotate the audit log before it grows over this; 0: never.
    #[arg(long, value_name = "MEGABYTES", default_value_t = 100)]
    pub audit_log_maxsize: u64,

    /// Remove rotated audit logs after this; 0: never.
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    pub audit_log_maxage: u64,

    /// Keep at most this many rotated audit logs; 0: all.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub audit_log_maxbackup: usize,

    /// Addresses of Services: one range, or one of IPv4 and one of IPv6. The first one's family is the default.
    #[arg(
        long,
        value_name = "CIDR[,CIDR]",
        default_value = "10.96.0.0/16",
        value_delimiter = ','
    )]
    pub service_cidr: Vec<IpNet>,

    /// Addresses of pods: one range, or one of IPv4 and one of IPv6; each node gets a part of each.
    #[arg(
        long,
        value_name = "CIDR[,CIDR]",
        default_value = "10.244.0.0/16",
        value_delimiter = ','
    )]
    pub cluster_cidr: Vec<IpNet>,

    /// Addresses for LoadBalancer Services, on the nodes' own link; may be given several times. The
    /// nodes answer for those in use (ARP, NDP). Without it another controller gives Services theirs.
    #[arg(long, value_name = "CIDR")]
    pub load_balancer_cidr: Vec<IpNet>,

    /// Ports of NodePort Services, first and last.
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767", value_parser = port_range)]
    pub service_node_port_range: (u16, u16),

    /// A node whose heartbeats stop for this long is not ready.
    #[arg(long, value_name = "SECONDS", default_value = "40", value_parser = seconds)]
    pub node_monitor_grace_period: Duration,

    /// How long pods stay bound to a node that is not ready, unless they say otherwise.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub default_toleration_seconds: i64,

    /// One line of JSON for each log record.
    #[arg(long)]
    pub log_json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    Api,
    Scheduler,
    Controllers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// One file below --data-dir.
    Redb,
    /// An etcd cluster, for several control planes.
    Etcd,
    /// Gone at exit.
    Memory,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|e| format!("{e}: want ADDR:PORT"))?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!(
            "{} is not a loopback address; use --listen for others",
            address.ip()
        ))
    }
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let parsed = text
        .split_once('-')
        .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match parsed {
        Some((first, last)) if 0 < first && first <= last => Ok((first, last)),
        _ => Err("want FIRST-LAST, for example 30000-32767".into()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds.is_finite() => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("want a number of seconds above 0".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn bad_values_are_explained() {
        let parse = |args: &[&str]| {
            let args = ["skep-control"].iter().chain(args).copied();
            Options::try_parse_from(args).map_err(|error| error.to_string())
        };
        assert!(
            parse(&["--listen-plain", "0.0.0.0:80"])
                .unwrap_err()
                .contains("loopback")
        );
        assert!(
            parse(&["--service-node-port-range", "9-1"])
                .unwrap_err()
                .contains("FIRST-LAST")
        );
        let options = parse(&["--roles", "api", "--node-monitor-grace-period", "4s"]).unwrap();
        assert_eq!(options.roles, [Role::Api]);
        assert_eq!(options.node_monitor_grace_period, Duration::from_secs(4));
    }
}
