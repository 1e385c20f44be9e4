//! Which addresses there are to give out. Pure, but for what is taken, which the caller knows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::families::Family;

/// One range of Service addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range(IpNet);

impl Range {
    pub fn new(net: IpNet) -> Self {
        Self(net.trunc())
    }

    pub fn net(self) -> IpNet {
        self.0
    }

    pub fn family(self) -> Family {
        Family::of_net(&self.0)
    }

    /// Usable addresses are offsets 1 to this: not the network's own, and no broadcast address.
    fn last_offset(self) -> u128 {
        let bits = u32::from(self.0.max_prefix_len() - self.0.prefix_len());
        let size = 1u128.checked_shl(bits).unwrap_or(u128::MAX);
        match self.family() {
            Family::V4 => size.saturating_sub(2),
            Family::V6 => size.saturating_sub(1),
        }
    }

    /// Below this offset addresses are given only to who asks for them (KEP-3070).
    fn static_band(self) -> u128 {
        let size = self.last_offset().saturating_add(2);
        (size / 16).clamp(16, 256).min(self.last_offset())
    }

    pub fn at(self, offset: u128) -> IpAddr {
        match self.0.network() {
            IpAddr::V4(network) => {
                let by = u32::try_from(offset).unwrap_or(u32::MAX);
                Ipv4Addr::from(u32::from(network).wrapping_add(by)).into()
            }
            IpAddr::V6(network) => Ipv6Addr::from(u128::from(network).wrapping_add(offset)).into(),
        }
    }

    /// Whether the address may be given out at all.
    pub fn offers(self, ip: IpAddr) -> bool {
        let offset = match (ip, self.0.network()) {
            (IpAddr::V4(ip), IpAddr::V4(network)) => {
                u128::from(u32::from(ip).wrapping_sub(u32::from(network)))
            }
            (IpAddr::V6(ip), IpAddr::V6(network)) => {
                u128::from(ip).wrapping_sub(u128::from(network))
            }
            _ => return false,
        };
        self.0.contains(&ip) && offset != 0 && offset <= self.last_offset()
    }

    /// Random first, so that an address is not reused at once; then the next free one, and the static band only when
    /// nothing else is left.
    pub fn free(self, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let (band, last) = (self.static_band(), self.last_offset());
        if last == 0 {
            return None;
        }
        let start = rand::random_range(band..=last.max(band));
        let upper = (start..=last).chain(band..start);
        let mut all = upper.chain(1..band).map(|offset| self.at(offset));
        all.find(|ip| !taken(*ip))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn range(text: &str) -> Range {
        Range::new(text.parse().expect("a network"))
    }

    #[test]
    fn the_static_band_is_last() {
        let range = range("10.0.0.0/27");
        assert_eq!((range.static_band(), range.last_offset()), (16, 30));
        let mut taken = BTreeSet::new();
        for round in 0..30 {
            let ip = range.free(|ip| taken.contains(&ip)).expect("room");
            let upper = (16..=30).any(|offset| range.at(offset) == ip);
            assert_eq!(upper, round < 15, "{ip} in round {round}");
            assert!(taken.insert(ip));
        }
        assert_eq!(range.free(|ip| taken.contains(&ip)), None);
    }

    #[test]
    fn what_a_range_offers() {
        let check = |net: &str, ip: &str, expected: bool| {
            let ip = ip.parse().expect("an address");
            assert_eq!(range(net).offers(ip), expected, "{net} {ip}");
        };
        check("10.96.0.0/16", "10.96.0.0", false);
        check("10.96.0.0/16", "10.96.0.1", true);
        check("10.96.0.0/16", "10.96.255.255", false);
        check("10.96.0.0/16", "10.97.0.1", false);
        check("10.96.0.0/16", "fd00::1", false);
        check("fd00::/112", "fd00::", false);
        check("fd00::/112", "fd00::ffff", true);
        check("fd00::/108", "fd00::10:0", false);
        check("10.0.0.0/31", "10.0.0.1", false);
        assert!(range("fd00::/64").free(|_| false).is_some());
        assert!(range("::/0").free(|_| false).is_some());
    }
}
