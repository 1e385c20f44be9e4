//! NetworkPolicy: who (an identity) may reach whom (a policy set) on which port.
//!
//! An identity stands for all pods with the same namespace and labels, or for one CIDR. A policy
//! set stands for all local pods that the same policies select. The cost of a rule is thus the
//! number of identities that it matches, not of pods.

use crate::Address;

/// Any source or destination.
pub const IDENTITY_ANY: u32 = 0;
/// Outside the cluster and in no CIDR that a policy names.
pub const IDENTITY_WORLD: u32 = 1;
/// An address of a node: always allowed, for the kubelet's probes.
pub const IDENTITY_NODE: u32 = 2;
/// First identity given to pods and CIDRs.
pub const IDENTITY_FIRST: u32 = 256;

/// Longest prefix match: all but `port` is exact, a port range is a few prefixes of `port`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleKey {
    pub policy: u32,
    pub identity: u32,
    /// `INGRESS` or `EGRESS`.
    pub direction: u8,
    /// 0 = any.
    pub protocol: u8,
    /// In network byte order, so that a shorter prefix is a range.
    pub port: [u8; 2],
}

pub const INGRESS: u8 = 0;
pub const EGRESS: u8 = 1;

/// Bits of [`RuleKey`] before `port`.
pub const RULE_EXACT_BITS: u32 = 80;

/// Longest prefix match: a pod's address is a full prefix, a CIDR a shorter one.
pub type IdentityKey = Address;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub identity: u32,
    /// All addresses that share so many leading bits (of 128) have this identity, too.
    pub shared_bits: u32,
}

impl Identity {
    /// Of what no prefix matches.
    pub const WORLD: Self = Self {
        identity: IDENTITY_WORLD,
        shared_bits: 128,
    };

    /// Those bits of an address of IPv4, in host byte order.
    #[inline(always)]
    pub const fn mask_v4(&self) -> u32 {
        let bits = self.shared_bits.saturating_sub(96);
        let rest = 32u32.saturating_sub(bits);
        ((u32::MAX as u64) << rest) as u32
    }
}

pub const MAX_RULES: u32 = 65_536;
pub const MAX_IDENTITIES: u32 = 131_072;

const _: () = {
    assert!(size_of::<RuleKey>() == 12);
    const fn mask(shared_bits: u32) -> u32 {
        Identity {
            identity: 0,
            shared_bits,
        }
        .mask_v4()
    }
    assert!(mask(0) == 0 && mask(96) == 0 && mask(128) == u32::MAX && mask(104) == 0xff00_0000);
};
