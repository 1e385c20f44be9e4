//! `cargo xtask setup`: makes this machine able to build and run skep. Looks first, so that it is quick and silent when
//! there is nothing to do.
//!
//! What it cannot do itself (no root, no apt) it collects, and then says all of it at once.

mod bpf;
pub mod docker;
mod kernel;
mod packages;

use anyhow::{Result, bail};

use crate::command;
use packages::Package;

/// Programs needed to build and run, and the Debian package that brings each.
const NEEDED: [Package; 7] = [
    Package {
        name: "build-essential",
        program: "cc",
        purpose: "compiling the C parts of crates",
    },
    Package {
        name: "protobuf-compiler",
        program: "protoc",
        purpose: "building the etcd client",
    },
    Package {
        name: "docker.io",
        program: "dockerd",
        purpose: "running containers",
    },
    Package {
        name: "docker.io",
        program: "docker",
        purpose: "importing images",
    },
    Package {
        name: "iproute2",
        program: "ip",
        purpose: "namespaces and links",
    },
    Package {
        name: "util-linux",
        program: "nsenter",
        purpose: "starting programs in namespaces",
    },
    Package {
        name: "etcd-server",
        program: "etcd",
        purpose: "clusters that store in etcd",
    },
];

/// The types that `protoc` itself brings, which Debian packages apart from it.
const PROTOBUF_TYPES: Package = Package {
    name: "libprotobuf-dev",
    program: "google/protobuf/descriptor.proto",
    purpose: "building the etcd client",
};

/// Needed besides to test and to measure.
const NEEDED_FOR_TESTS: [Package; 3] = [
    Package {
        name: "nftables",
        program: "nft",
        purpose: "making sure that there are no rules, and measuring against rules",
    },
    Package {
        name: "busybox-static",
        program: "busybox",
        purpose: "the image of the kubelet's tests",
    },
    Package {
        name: "dbus-daemon",
        program: "dbus-daemon",
        purpose: "asking the real logind for a shutdown that it does not do",
    },
];

/// For building and running.
pub fn run() -> Result<()> {
    provide(&NEEDED)
}

/// For tests and benches too.
pub fn run_for_tests() -> Result<()> {
    provide(&[&NEEDED[..], &NEEDED_FOR_TESTS[..]].concat())
}

fn provide(needed: &[Package]) -> Result<()> {
    let mut missing: Vec<Package> = needed
        .iter()
        .copied()
        .filter(|package| command::find(package.program).is_none())
        .collect();
    if !has_protobuf_types() {
        missing.push(PROTOBUF_TYPES);
    }
    missing.extend(bpf::missing_packages());

    if missing.iter().any(|package| package.program == "dockerd") {
        docker::configure_before_first_start()?;
    }
    let mut unsolved = Vec::new();
    if !missing.is_empty()
        && let Err(reason) = packages::install(&missing)
    {
        unsolved.push(format!("{reason:#}"));
        unsolved.extend(missing.iter().map(|package| {
            format!(
                "{}: {} (Debian package {})",
                package.program, package.purpose, package.name
            )
        }));
    }
    if unsolved.is_empty() {
        bpf::install_linker()?;
    } else if let Some(linker) = bpf::missing_linker() {
        unsolved.push(linker);
    }
    if let Err(reason) = kernel::prepare() {
        unsolved.push(format!("{reason:#}"));
    }
    if unsolved.is_empty()
        && let Err(reason) = docker::start()
    {
        unsolved.push(format!("{reason:#}"));
    }
    if !unsolved.is_empty() {
        bail!(
            "this machine lacks what skep needs, and it cannot be installed from here:\n  - {}\n\
             Install these, then run the command again.",
            unsolved.join("\n  - ")
        );
    }
    Ok(())
}

/// `protoc` looks for them in `include` beside the folder that it is in.
fn has_protobuf_types() -> bool {
    command::find("protoc")
        .and_then(|protoc| protoc.canonicalize().ok())
        .is_some_and(|protoc| {
            let mut above = protoc.ancestors().skip(2);
            above.next().is_some_and(|prefix| {
                let types = prefix.join("include").join(PROTOBUF_TYPES.program);
                types.exists()
            })
        })
}

pub(crate) use kernel::cgroup_mounts;
pub use packages::unpack;

/// Where cgroup2 is mounted.
pub(crate) fn cgroup2_mount() -> Option<std::path::PathBuf> {
    kernel::mount_point("cgroup2")
}
