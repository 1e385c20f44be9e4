//! XDP on the uplink: whether, and in which of the kernel's modes.

use std::io;

use crate::error::Error;
use crate::links::Links;
use crate::programs::{Programs, XDP_PROGRAM};
use crate::sys::{self, AttachType, Target};

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of linux/if_link.h.
const GENERIC: u32 = 1 << 1;
const NATIVE: u32 = 1 << 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native where it pays, else none. Not on a veth link, which copies each of its kernel's own
    /// packets for XDP and leaves their checksums unfinished.
    Auto,
    /// In the driver, or an error that says why not.
    Native,
    /// In the stack, for any device: after GRO, whose large packets it first makes one piece.
    Generic,
    #[default]
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XdpState {
    Native,
    Generic,
    /// tc does everything.
    Off {
        why: String,
    },
}

impl XdpState {
    pub(crate) fn off(why: impl Into<String>) -> Self {
        Self::Off { why: why.into() }
    }

    pub const fn is_on(&self) -> bool {
        !matches!(self, Self::Off { .. })
    }
}

/// Attaches the program to the uplink, in the place of a predecessor's, or takes that away.
pub(crate) fn attach(
    programs: &Programs,
    links: &Links,
    ifindex: u32,
    mode: XdpMode,
) -> Result<XdpState, Error> {
    let name = |mode: &str| format!("uplink-{ifindex}-xdp-{mode}");
    let (native, generic) = (name("native"), name("generic"));
    let (wanted, flags, state) = match mode {
        XdpMode::Off => {
            links.detach(&native)?;
            links.detach(&generic)?;
            return Ok(XdpState::off("turned off"));
        }
        XdpMode::Auto if is_veth(ifindex) => {
            links.detach(&native)?;
            links.detach(&generic)?;
            return Ok(XdpState::off(
                "the uplink is a veth, where XDP costs a copy",
            ));
        }
        XdpMode::Auto | XdpMode::Native => {
            links.detach(&generic)?;
            (native, NATIVE, XdpState::Native)
        }
        XdpMode::Generic => {
            links.detach(&native)?;
            (generic, GENERIC, XdpState::Generic)
        }
    };
    let fd = programs.fd(XDP_PROGRAM)?;
    let target = Target::Interface(ifindex);
    match links.attach_with(&wanted, fd, &target, AttachType::Xdp, flags) {
        Ok(()) => Ok(state),
        Err(Error::Kernel { source, .. }) => Ok(XdpState::off(why_not(&source))),
        Err(error) => Err(error),
    }
}

fn is_veth(ifindex: u32) -> bool {
    nix::net::if_::if_indextoname(ifindex)
        .ok()
        .and_then(|name| sys::driver(&name.to_string_lossy()).ok())
        .is_some_and(|driver| driver == "veth")
}

fn why_not(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the uplink's driver has no XDP".into(),
        Some(libc::EBUSY | libc::EEXIST) => "another XDP program is on the uplink".into(),
        Some(libc::EINVAL | libc::ERANGE) => {
            format!("the uplink's driver refuses XDP at its MTU or settings ({error})")
        }
        _ => error.to_string(),
    }
}
