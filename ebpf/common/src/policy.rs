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

/// The identity of an address; longest prefix match, a pod's address is a full prefix.
pub type IdentityKey = Address;

pub const MAX_RULES: u32 = 65_536;
pub const MAX_IDENTITIES: u32 = 131_072;

const _: () = assert!(size_of::<RuleKey>() == 12);
