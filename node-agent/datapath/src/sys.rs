//! bpf(2) commands that aya 0.14 does not offer, and the socket option for a namespace's cookie.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

const BPF_MAP_LOOKUP_ELEM: i64 = 1;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_MAP_DELETE_ELEM: i64 = 3;
const BPF_MAP_GET_NEXT_KEY: i64 = 4;
const BPF_OBJ_PIN: i64 = 6;
const BPF_OBJ_GET: i64 = 7;
const BPF_PROG_TEST_RUN: i64 = 10;
const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
const BPF_MAP_LOOKUP_BATCH: i64 = 24;
const BPF_LINK_CREATE: i64 = 28;
const BPF_LINK_UPDATE: i64 = 29;

/// `enum bpf_attach_type` of linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum AttachType {
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getpeername4 = 29,
    Getpeername6 = 30,
    SockRelease = 34,
    Xdp = 37,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// Zeroed beyond what a command uses, as the kernel demands; larger than any command here needs.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Self {
        Self([0; 128])
    }

    fn u32(mut self, offset: usize, value: u32) -> Self {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, offset: usize, value: u64) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn get_u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes([
            self.0[offset],
            self.0[offset + 1],
            self.0[offset + 2],
            self.0[offset + 3],
        ])
    }
}

/// Lets all threads take memory from one place, where what one has freed serves the others: with a place for each, an idle
/// agent holds twice as much. To be called before there are threads.
pub fn share_memory() {
    // SAFETY: may be called at any time, from any thread.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        tracing::warn!("each thread has memory of its own");
    }
}

/// Gives what is free of the process's memory back to the kernel, page by page, which the allocator by itself does with
/// the end of it only: after much was freed and before nothing happens for long.
pub fn give_back_memory() {
    // SAFETY: may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
}

fn fd(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// `size` is what the command needs; older kernels refuse a longer attribute only if the rest is
/// not zero.
fn bpf(command: i64, attr: &mut Attr) -> io::Result<i64> {
    // SAFETY: the attribute outlives the call and is as long as said; pointers inside it come from
    // the callers below, whose buffers outlive the call too.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attr.0.as_mut_ptr(), attr.0.len()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the kernel just returned this descriptor to us alone.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

pub(crate) enum Target<'a> {
    Cgroup(BorrowedFd<'a>),
    Interface(u32),
}

pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: &Target<'_>,
    attach_type: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let target = match target {
        Target::Cgroup(cgroup) => fd(*cgroup),
        Target::Interface(index) => *index,
    };
    let mut attr = Attr::new()
        .u32(0, fd(program))
        .u32(4, target)
        .u32(8, attach_type as u32)
        .u32(12, flags);
    bpf(BPF_LINK_CREATE, &mut attr).map(owned)
}

/// Replaces the program of a link: no packet sees the link without one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::new().u32(0, fd(link)).u32(4, fd(program));
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

pub(crate) fn pin(object: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let at = path(at)?;
    let mut attr = Attr::new().u64(0, at.as_ptr() as u64).u32(8, fd(object));
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

pub(crate) fn open_pin(at: &Path) -> io::Result<OwnedFd> {
    let at = path(at)?;
    let mut attr = Attr::new().u64(0, at.as_ptr() as u64);
    bpf(BPF_OBJ_GET, &mut attr).map(owned)
}

/// What a program made of a frame.
pub(crate) struct TestRun {
    pub(crate) returned: u32,
    pub(crate) output: Vec<u8>,
    /// Mean of the runs.
    pub(crate) duration: Duration,
}

/// Runs a packet program over a frame (`BPF_PROG_TEST_RUN`), `repeat` times.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    context: &[u8],
    repeat: u32,
) -> io::Result<TestRun> {
    /// A tunnel's headers, and more.
    const GROWTH: usize = 256;
    const RETURNED: usize = 4;
    const OUTPUT_LEN: usize = 12;
    const DURATION: usize = 36;
    let mut output = vec![0u8; frame.len() + GROWTH];
    let mut attr = Attr::new()
        .u32(0, fd(program))
        .u32(8, frame.len() as u32)
        .u32(OUTPUT_LEN, output.len() as u32)
        .u64(16, frame.as_ptr() as u64)
        .u64(24, output.as_mut_ptr() as u64)
        .u32(32, repeat)
        .u32(40, context.len() as u32)
        .u64(48, context.as_ptr() as u64);
    bpf(BPF_PROG_TEST_RUN, &mut attr)?;
    output.truncate(attr.get_u32(OUTPUT_LEN) as usize);
    Ok(TestRun {
        returned: attr.get_u32(RETURNED),
        output,
        duration: Duration::from_nanos(attr.get_u32(DURATION).into()),
    })
}

/// How often a program has run and for how many nanoseconds in all; the kernel counts while
/// `kernel.bpf_stats_enabled` is 1 (Linux 5.1).
pub(crate) fn program_cost(program: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    /// Of `struct bpf_prog_info`, and how much of it there is up to both.
    const RUN_TIME_NS: usize = 192;
    const RUN_COUNT: usize = 200;
    const LEN: usize = 208;
    let mut info = [0u8; LEN];
    let mut attr = Attr::new()
        .u32(0, fd(program))
        .u32(4, LEN as u32)
        .u64(8, info.as_mut_ptr() as u64);
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&info[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    Ok((word(RUN_COUNT), word(RUN_TIME_NS)))
}

fn element(map: BorrowedFd<'_>, key: *const u8, value: *mut u8, flags: u64) -> Attr {
    Attr::new()
        .u32(0, fd(map))
        .u64(8, key as u64)
        .u64(16, value as u64)
        .u64(24, flags)
}

/// # Safety
/// `key` and `value` point to as many bytes as the map's keys and values have.
pub(crate) unsafe fn map_lookup(
    map: BorrowedFd<'_>,
    key: *const u8,
    value: *mut u8,
) -> io::Result<()> {
    bpf(BPF_MAP_LOOKUP_ELEM, &mut element(map, key, value, 0)).map(drop)
}

/// # Safety
/// As for [`map_lookup`].
pub(crate) unsafe fn map_update(
    map: BorrowedFd<'_>,
    key: *const u8,
    value: *const u8,
    flags: u64,
) -> io::Result<()> {
    bpf(
        BPF_MAP_UPDATE_ELEM,
        &mut element(map, key, value.cast_mut(), flags),
    )
    .map(drop)
}

/// # Safety
/// As for [`map_lookup`].
pub(crate) unsafe fn map_delete(map: BorrowedFd<'_>, key: *const u8) -> io::Result<()> {
    bpf(
        BPF_MAP_DELETE_ELEM,
        &mut element(map, key, std::ptr::null_mut(), 0),
    )
    .map(drop)
}

/// # Safety
/// As for [`map_lookup`]; `key` may be null to begin.
pub(crate) unsafe fn map_next_key(
    map: BorrowedFd<'_>,
    key: *const u8,
    next: *mut u8,
) -> io::Result<()> {
    bpf(BPF_MAP_GET_NEXT_KEY, &mut element(map, key, next, 0)).map(drop)
}

/// One batch of a hash map's entries (Linux 5.6). Returns how many and whether it was the last.
///
/// # Safety
/// `keys` and `values` have room for `capacity` elements; `position` points to 4 writable bytes,
/// which continue from the call before unless `first`.
pub(crate) unsafe fn map_lookup_batch(
    map: BorrowedFd<'_>,
    position: *mut u8,
    first: bool,
    keys: *mut u8,
    values: *mut u8,
    capacity: u32,
) -> io::Result<(u32, bool)> {
    let begin = if first { 0 } else { position as u64 };
    let mut attr = Attr::new()
        .u64(0, begin)
        .u64(8, position as u64)
        .u64(16, keys as u64)
        .u64(24, values as u64)
        .u32(32, capacity)
        .u32(36, fd(map));
    match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => Ok((attr.get_u32(32), false)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.get_u32(32), true)),
        Err(error) => Err(error),
    }
}

/// The cookie of the network namespace that `socket` belongs to (Linux 5.14).
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer and its length agree.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct ifreq` with a pointer in its union.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    data: *mut libc::c_void,
    _rest: [u8; 16],
}

/// # Safety
/// `command` is the structure that its first word (`ETHTOOL_*`) says.
unsafe fn ethtool<T>(interface: &str, command: &mut T) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let mut name = [0; libc::IFNAMSIZ];
    let len = interface.len().min(libc::IFNAMSIZ - 1);
    name[..len].copy_from_slice(&interface.as_bytes()[..len]);
    let mut request = InterfaceRequest {
        name,
        data: std::ptr::from_mut(command).cast(),
        _rest: [0; 16],
    };
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the request and what it points to live longer than the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What the kernel or a device does for the other end of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Offload {
    /// `ETHTOOL_SGRO`. A veth interface with it receives by NAPI, and takes frames that XDP
    /// redirects to its peer; without, it drops them (drivers/net/veth.c, `veth_xdp_xmit`).
    Gro = 0x2c,
    /// `ETHTOOL_STXCSUM`. Without it packets leave with complete checksums.
    TransmitChecksum = 0x17,
}

/// Of an interface of this network namespace.
pub fn set_offload(interface: &str, offload: Offload, on: bool) -> io::Result<()> {
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value {
        command: offload as u32,
        data: u32::from(on),
    };
    // SAFETY: the structure of these commands.
    unsafe { ethtool(interface, &mut value) }
}

/// The driver of an interface of this network namespace.
pub(crate) fn driver(interface: &str) -> io::Result<String> {
    /// `struct ethtool_drvinfo`.
    #[repr(C)]
    struct Info {
        command: u32,
        driver: [u8; 32],
        _rest: [u8; 160],
    }
    const ETHTOOL_GDRVINFO: u32 = 3;
    let mut info = Info {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        _rest: [0; 160],
    };
    // SAFETY: the structure of this command.
    unsafe { ethtool(interface, &mut info) }?;
    let name = info.driver.split(|byte| *byte == 0).next();
    Ok(String::from_utf8_lossy(name.unwrap_or_default()).into_owned())
}

/// Sends whole Ethernet frames out of an interface of this namespace.
pub(crate) fn send_frames<F: AsRef<[u8]>>(ifindex: u32, frames: &[F]) -> io::Result<()> {
    // SAFETY: no pointers. Protocol 0: nothing is received.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all-zero is a valid value.
    let mut target: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    target.sll_family = libc::AF_PACKET as u16;
    target.sll_ifindex = ifindex.cast_signed();
    for frame in frames {
        let frame = frame.as_ref();
        // SAFETY: the frame and the address live longer than the call and have these lengths.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const target).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
