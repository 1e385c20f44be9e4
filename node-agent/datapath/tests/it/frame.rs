//! Ethernet frames written and read by hand: an independent judge of the programs' rewriting.

use std::net::{IpAddr, SocketAddr};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) protocol: u8,
    pub(crate) tcp_flags: u8,
    pub(crate) hop_limit: u8,
    /// Identification, more fragments, offset in 8-byte units. IPv6: a header of its own, unless all
    /// are zero.
    pub(crate) fragment: (u16, bool, u16),
    /// UDP without a checksum.
    pub(crate) unchecked: bool,
    /// Of IPv6, before a fragment's: the type of each, and what it has after the type of the next.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn frame(protocol: u8, source: &str, destination: &str) -> Frame {
    Frame {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol,
        tcp_flags: SYN,
        hop_limit: 64,
        fragment: (0, false, 0),
        unchecked: false,
        extensions: Vec::new(),
        payload: b"payload!".to_vec(),
    }
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        sum + u32::from(pair[0]) * 256 + u32::from(pair.get(1).copied().unwrap_or(0))
    })
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Of an IPv4 header whose own checksum is 0.
pub(crate) fn header_checksum(header: &[u8]) -> u16 {
    !fold(sum(header, 0))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u32 {
    let sum = sum(&octets(source), sum(&octets(destination), 0));
    sum + u32::from(protocol) + len as u32
}

impl Frame {
    pub(crate) fn flags(mut self, flags: u8) -> Self {
        self.tcp_flags = flags;
        self
    }

    fn transport(&self) -> Vec<u8> {
        let mut l4 = Vec::new();
        if self.fragment.2 != 0 {
            return self.payload.clone();
        }
        if self.protocol == 1 {
            // Echo request; the identifier is the source port.
            l4.extend([8, 0, 0, 0]);
            l4.extend(self.source.port().to_be_bytes());
            l4.extend([0, 1]);
            l4.extend(&self.payload);
            let checksum = !fold(sum(&l4, 0));
            l4[2..4].copy_from_slice(&checksum.to_be_bytes());
            return l4;
        }
        l4.extend(self.source.port().to_be_bytes());
        l4.extend(self.destination.port().to_be_bytes());
        let at = if self.protocol == 6 {
            l4.extend([0; 8]);
            l4.extend([0x50, self.tcp_flags, 0xff, 0xff, 0, 0, 0, 0]);
            16
        } else {
            l4.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            l4.extend([0, 0]);
            6
        };
        l4.extend(&self.payload);
        if !self.unchecked {
            let start = pseudo(
                self.source.ip(),
                self.destination.ip(),
                self.protocol,
                l4.len(),
            );
            let checksum = !fold(sum(&l4, start));
            l4[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        l4
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let l4 = self.transport();
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if self.source.is_ipv4() {
            bytes.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend(((20 + l4.len()) as u16).to_be_bytes());
            header.extend(self.fragment.0.to_be_bytes());
            let more = if self.fragment.1 { 0x2000 } else { 0 };
            header.extend((more | self.fragment.2).to_be_bytes());
            header.extend([self.hop_limit, self.protocol, 0, 0]);
            header.extend(octets(self.source.ip()));
            header.extend(octets(self.destination.ip()));
            let checksum = !fold(sum(&header, 0));
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            bytes.extend(header);
        } else {
            let (id, more, offset) = self.fragment;
            let mut header = Vec::new();
            let mut next = self.protocol;
            if self.fragment != (0, false, 0) {
                header.extend([std::mem::replace(&mut next, 44), 0]);
                header.extend((offset << 3 | u16::from(more)).to_be_bytes());
                header.extend(u32::from(id).to_be_bytes());
            }
            for (kind, rest) in self.extensions.iter().rev() {
                let mut extension = vec![std::mem::replace(&mut next, *kind)];
                extension.extend(rest);
                extension.extend(header);
                header = extension;
            }
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend(((header.len() + l4.len()) as u16).to_be_bytes());
            bytes.extend([next, self.hop_limit]);
            bytes.extend(octets(self.source.ip()));
            bytes.extend(octets(self.destination.ip()));
            bytes.extend(header);
        }
        bytes.extend(l4);
        bytes
    }

    /// The bytes as Linux sends them over a virtual link: the transport checksum is only the sum of
    /// the pseudo header (`CHECKSUM_PARTIAL`).
    pub(crate) fn unfinished(&self) -> Vec<u8> {
        let len = self.transport().len();
        let mut bytes = self.bytes();
        let start = bytes.len() - len;
        let at = start + if self.protocol == 6 { 16 } else { 6 };
        let sum = pseudo(self.source.ip(), self.destination.ip(), self.protocol, len);
        bytes[at..at + 2].copy_from_slice(&fold(sum).to_be_bytes());
        bytes
    }

    /// What a receiver would read. Panics on a wrong checksum.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let v4 = bytes[12..14] == [0x08, 0x00];
        let ip = &bytes[14..];
        let mut extensions = Vec::new();
        let (source, destination, protocol, hop_limit, fragment, l4) = if v4 {
            assert_eq!(fold(sum(&ip[..20], 0)), 0xffff, "IPv4 header checksum");
            let address =
                |at: usize| -> IpAddr { <[u8; 4]>::try_from(&ip[at..at + 4]).unwrap().into() };
            let word = u16::from_be_bytes([ip[6], ip[7]]);
            let fragment = (
                u16::from_be_bytes([ip[4], ip[5]]),
                word & 0x2000 != 0,
                word & 0x1fff,
            );
            (address(12), address(16), ip[9], ip[8], fragment, &ip[20..])
        } else {
            let address =
                |at: usize| -> IpAddr { <[u8; 16]>::try_from(&ip[at..at + 16]).unwrap().into() };
            let word = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
            let (mut next, mut at) = (ip[6], 40);
            while matches!(next, 0 | 43 | 60) {
                let end = at + (usize::from(ip[at + 1]) + 1) * 8;
                extensions.push((next, ip[at + 1..end].to_vec()));
                (next, at) = (ip[at], end);
            }
            let (protocol, fragment, l4) = if next == 44 {
                let fragment = (word(at + 6), word(at + 2) & 1 != 0, word(at + 2) >> 3);
                (ip[at], fragment, &ip[at + 8..])
            } else {
                (next, (0, false, 0), &ip[at..])
            };
            (address(8), address(24), protocol, ip[7], fragment, l4)
        };
        let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
        let mut unchecked = false;
        let (ports, tcp_flags, header) = match protocol {
            _ if fragment.2 != 0 => ((0, 0), SYN, 0),
            1 => {
                assert_eq!(fold(sum(l4, 0)), 0xffff, "ICMP checksum");
                ((port(4), 0), SYN, 8)
            }
            _ => {
                unchecked = protocol == 17 && port(6) == 0;
                // A fragment's checksum covers what is not here.
                if !unchecked && !fragment.1 {
                    let start = pseudo(source, destination, protocol, l4.len());
                    assert_eq!(fold(sum(l4, start)), 0xffff, "transport checksum");
                }
                if protocol == 6 {
                    ((port(0), port(2)), l4[13], 20)
                } else {
                    ((port(0), port(2)), SYN, 8)
                }
            }
        };
        Self {
            source: SocketAddr::new(source, ports.0),
            destination: SocketAddr::new(destination, ports.1),
            protocol,
            tcp_flags,
            hop_limit,
            fragment,
            unchecked,
            extensions,
            payload: l4[header..].to_vec(),
        }
    }

    /// Source and destination of an ICMPv6 message. Panics on a wrong checksum or length.
    pub(crate) fn read_icmpv6(bytes: &[u8]) -> (IpAddr, IpAddr) {
        assert_eq!(bytes[12..14], [0x86, 0xdd]);
        let ip = &bytes[14..];
        let address =
            |at: usize| -> IpAddr { <[u8; 16]>::try_from(&ip[at..at + 16]).unwrap().into() };
        let (source, destination) = (address(8), address(24));
        let message = &ip[40..];
        assert_eq!(ip[6], 58);
        assert_eq!(
            usize::from(u16::from_be_bytes([ip[4], ip[5]])),
            message.len()
        );
        let start = pseudo(source, destination, 58, message.len());
        assert_eq!(fold(sum(message, start)), 0xffff, "ICMPv6 checksum");
        (source, destination)
    }

    /// The answer to this frame.
    pub(crate) fn answer(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            tcp_flags: SYN | ACK,
            hop_limit: 64,
            ..self.clone()
        }
    }
}

/// An ICMP "port unreachable" of `from` about a frame that arrived there.
pub(crate) fn unreachable(from: &str, about: &Frame) -> Vec<u8> {
    let quoted = &about.bytes()[14..];
    let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0];
    icmp.extend(&quoted[..28]);
    let checksum = !fold(sum(&icmp, 0));
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    let shell = Frame {
        source: SocketAddr::new(from.parse().unwrap(), 0),
        destination: SocketAddr::new(about.source.ip(), 0),
        protocol: 1,
        fragment: (0, false, 1),
        payload: icmp,
        ..about.clone()
    };
    // Written as a later fragment to get the payload as it is, then made whole.
    let mut bytes = shell.bytes();
    bytes[20..22].copy_from_slice(&[0, 0]);
    let checksum = {
        bytes[24..26].copy_from_slice(&[0, 0]);
        !fold(sum(&bytes[14..34], 0))
    };
    bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

pub(crate) fn has_good_icmpv6_checksum(bytes: &[u8]) -> bool {
    let icmp = &bytes[54..];
    // Source, destination; length and protocol.
    let pseudo = sum(&bytes[22..54], 58 + icmp.len() as u32);
    fold(sum(icmp, pseudo)) == 0xffff
}

/// Outer source and destination, then source and destination of the quoted packet.
pub(crate) fn read_unreachable(bytes: &[u8]) -> (IpAddr, IpAddr, SocketAddr, SocketAddr) {
    let ip = &bytes[14..];
    assert_eq!(fold(sum(&ip[..20], 0)), 0xffff, "outer header checksum");
    assert_eq!(fold(sum(&ip[20..], 0)), 0xffff, "ICMP checksum");
    let quoted = &ip[28..];
    assert_eq!(
        fold(sum(&quoted[..20], 0)),
        0xffff,
        "quoted header checksum"
    );
    let address = |bytes: &[u8], at: usize| -> IpAddr {
        <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap().into()
    };
    let port = |at: usize| u16::from_be_bytes([quoted[at], quoted[at + 1]]);
    (
        address(ip, 12),
        address(ip, 16),
        SocketAddr::new(address(quoted, 12), port(20)),
        SocketAddr::new(address(quoted, 16), port(22)),
    )
}

/// Who has `target`? With or without the asker's MAC as an option.
pub(crate) fn neighbour_solicitation(
    mac: [u8; 6],
    source: IpAddr,
    target: IpAddr,
    hop_limit: u8,
    option: bool,
) -> Vec<u8> {
    let target = octets(target);
    let mut group = [0; 16];
    group[..2].copy_from_slice(&[0xff, 0x02]);
    group[11..13].copy_from_slice(&[1, 0xff]);
    group[13..].copy_from_slice(&target[13..]);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(&target);
    if option {
        message.extend([1, 1]);
        message.extend(mac);
    }
    let start = pseudo(source, group.into(), 58, message.len());
    let checksum = !fold(sum(&message, start));
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut bytes = vec![0x33, 0x33, 0xff, group[13], group[14], group[15]];
    bytes.extend(mac);
    bytes.extend([
        0x86,
        0xdd,
        0x60,
        0,
        0,
        0,
        0,
        message.len() as u8,
        58,
        hop_limit,
    ]);
    bytes.extend(octets(source));
    bytes.extend(group);
    bytes.extend(message);
    bytes
}
