//! tc programs before tcx (Linux 6.6): filters of the `clsact` queueing discipline, over rtnetlink.
//!
//! A filter belongs to its interface and has no pin. One of ours has a fixed priority and handle, so
//! that writing it again replaces its program in place.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
/// The program's return value is the verdict.
const ACT_DIRECT: u32 = 1;

/// `TC_H_CLSACT`; its lower half says which side of the interface.
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Ours among the filters of an interface: "sk".
const PRIORITY: u32 = 0x736b;
const HANDLE: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Ingress,
    Egress,
}

impl Side {
    /// In the names of links.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "in",
            Self::Egress => "out",
        }
    }

    const fn parent(self) -> u32 {
        match self {
            Self::Ingress => INGRESS,
            Self::Egress => EGRESS,
        }
    }
}

/// Attaches the program, in the place of a predecessor's.
pub(crate) fn attach(program: BorrowedFd<'_>, ifindex: u32, side: Side) -> io::Result<()> {
    const CREATE: u16 = libc::NLM_F_CREATE as u16;
    const ONLY_NEW: u16 = CREATE | libc::NLM_F_EXCL as u16;
    let mut qdisc = Message::new(RTM_NEWQDISC, ONLY_NEW, ifindex, 0xffff_0000, CLSACT, 0);
    qdisc.attribute(TCA_KIND, b"clsact\0");
    match qdisc.send() {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        _ => {}
    }
    let mut filter = filter(RTM_NEWTFILTER, CREATE, ifindex, side);
    filter.attribute(TCA_KIND, b"bpf\0");
    let options = filter.begin(TCA_OPTIONS);
    filter.attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
    filter.attribute(TCA_BPF_NAME, b"skep\0");
    filter.attribute(TCA_BPF_FLAGS, &ACT_DIRECT.to_ne_bytes());
    filter.end(options);
    filter.send()
}

/// Missing, with or without its interface, is success.
pub(crate) fn detach(ifindex: u32, side: Side) -> io::Result<()> {
    let mut filter = filter(RTM_DELTFILTER, 0, ifindex, side);
    filter.attribute(TCA_KIND, b"bpf\0");
    match filter.send() {
        Err(error)
            if !matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

fn filter(kind: u16, flags: u16, ifindex: u32, side: Side) -> Message {
    let every_protocol = u32::from((libc::ETH_P_ALL as u16).to_be());
    let info = PRIORITY << 16 | every_protocol;
    Message::new(kind, flags, ifindex, HANDLE, side.parent(), info)
}

/// A netlink message with a `struct tcmsg`.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, ifindex: u32, handle: u32, parent: u32, info: u32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        bytes.extend(flags.to_ne_bytes());
        // Sequence, port; family and padding.
        bytes.extend([0; 12]);
        for word in [ifindex, handle, parent, info] {
            bytes.extend(word.to_ne_bytes());
        }
        Self(bytes)
    }

    fn begin(&mut self, kind: u16) -> usize {
        let at = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        at
    }

    fn end(&mut self, at: usize) {
        let len = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let at = self.begin(kind);
        self.0.extend(value);
        self.end(at);
    }

    /// Sends it and waits for the kernel's word.
    fn send(mut self) -> io::Result<()> {
        /// Of the answer: the error after the header.
        const ERROR: std::ops::Range<usize> = 16..20;
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        // SAFETY: no pointers.
        let socket = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_ROUTE,
            )
        };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let mut answer = [0u8; 4096];
        // SAFETY: the buffers outlive the calls and have these lengths.
        let received = unsafe {
            let sent = libc::send(socket.as_raw_fd(), self.0.as_ptr().cast(), self.0.len(), 0);
            if sent < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::recv(
                socket.as_raw_fd(),
                answer.as_mut_ptr().cast(),
                answer.len(),
                0,
            )
        };
        if received < ERROR.end as isize {
            return Err(io::Error::last_os_error());
        }
        let [a, b, c, d] = [answer[16], answer[17], answer[18], answer[19]];
        match i32::from_ne_bytes([a, b, c, d]) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }
}
