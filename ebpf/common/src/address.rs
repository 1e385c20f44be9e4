use core::hash::{Hash, Hasher};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The middle word of an IPv4-mapped address, `0000:ffff` in network byte order.
const MAPPED: u32 = 0x0000_ffffu32.to_be();

/// An IPv6 address, or an IPv4 address in mapped form. Four words in network byte order: 4-byte
/// alignment and word-wise comparison are what the BPF verifier and its context accesses want.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialOrd, Ord)]
pub struct Address(pub [u32; 4]);

impl PartialEq for Address {
    // Word by word: a derived comparison becomes a call to `bcmp`, which BPF does not have.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.0[3] == other.0[3]
            && self.0[2] == other.0[2]
            && self.0[1] == other.0[1]
            && self.0[0] == other.0[0]
    }
}

impl Hash for Address {
    #[inline(always)]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Address {
    /// `::`; also "no address" where one is optional.
    pub const ANY: Self = Self([0; 4]);

    /// `::` or `0.0.0.0`, whichever is this address's family: in a
    /// [`crate::service::FrontendKey`], every address of the node.
    #[inline(always)]
    pub const fn unspecified(&self) -> Self {
        if self.is_v4() {
            Self::from_v4_be(0)
        } else {
            Self::ANY
        }
    }

    /// `word` is in network byte order.
    #[inline(always)]
    pub const fn from_v4_be(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// The IPv4 address in network byte order; meaningless unless [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_be(&self) -> u32 {
        self.0[3]
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1u32.to_be()
        }
    }

    pub fn to_ip(&self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from(u32::from_be(self.0[3])))
        } else {
            let mut octets = [0; 16];
            for (chunk, word) in octets.chunks_exact_mut(4).zip(self.0) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::from_v4_be(u32::from(ip).to_be()),
            IpAddr::V6(ip) => {
                let octets = ip.octets();
                let mut words = [0; 4];
                for (word, chunk) in words.iter_mut().zip(octets.chunks_exact(4)) {
                    *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
                }
                Self(words)
            }
        }
    }
}

/// A port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortBe(pub u16);

impl PortBe {
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

const _: () = {
    assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);
    assert!(size_of::<PortBe>() == 2);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in [
            "10.96.0.1",
            "255.255.255.255",
            "::1",
            "fd00::1:2",
            "2001:db8::ff",
        ] {
            let ip: IpAddr = text.parse().expect("a literal");
            let address = Address::from(ip);
            assert_eq!(address.to_ip(), ip);
            assert_eq!(address.is_v4(), ip.is_ipv4());
            assert_eq!(address.is_loopback(), ip.is_loopback());
        }
        assert!(Address::from("127.8.0.1".parse::<IpAddr>().expect("a literal")).is_loopback());
    }
}
