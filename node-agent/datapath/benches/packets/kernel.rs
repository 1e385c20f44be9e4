//! The little of bpf(2) that a packet generator and a sink need, and their programs as bare
//! instructions: nothing of them ends up in what skep ships.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAP_CREATE: i64 = 0;
const MAP_LOOKUP_ELEM: i64 = 1;
const PROG_LOAD: i64 = 5;
const TEST_RUN: i64 = 10;
const INFO_BY_FD: i64 = 15;
const LINK_CREATE: i64 = 28;
const ENABLE_STATS: i64 = 32;

const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;
const CGROUP_SOCK_ADDR: u32 = 18;

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

    fn call(&mut self, command: i64) -> io::Result<i64> {
        // SAFETY: the attribute and all that it points to outlive the call.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(result)
    }

    fn open(&mut self, command: i64) -> io::Result<OwnedFd> {
        // SAFETY: the kernel just returned this descriptor to us alone.
        self.call(command)
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// One instruction: opcode, destination, source, offset, immediate.
fn op(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(to | from << 4) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(value.cast_unsigned()) << 32
}

fn load(name: &str, kind: u32, attach_type: u32, code: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut log = vec![0u8; 16_384];
    let mut attr = Attr::new()
        .u32(0, kind)
        .u32(4, code.len() as u32)
        .u64(8, code.as_ptr() as u64)
        .u64(16, license.as_ptr() as u64)
        .u32(24, 1)
        .u32(28, log.len() as u32)
        .u64(32, log.as_mut_ptr() as u64)
        .u32(68, attach_type);
    attr.0[48..48 + name.len()].copy_from_slice(name.as_bytes());
    attr.open(PROG_LOAD).map_err(|error| {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
        let log = String::from_utf8_lossy(&log[..end]).into_owned();
        io::Error::other(format!("{error}: {log}"))
    })
}

/// Writes `frame` over each frame of the generator and sends it out of `ifindex`. `flows`: how many
/// clients take turns, a power of two: they differ in the low half of the IPv4 source address and
/// in the source port. The identification makes up for the address in the header's checksum.
pub(crate) fn generator(frame: &[u8], ifindex: u32, flows: u32) -> io::Result<OwnedFd> {
    const DROPPED: i32 = 1;
    let words = frame.len().div_ceil(8);
    let mut code = vec![
        op(0x61, 6, 1, 0, 0),                // r6 = data
        op(0x61, 3, 1, 4, 0),                // r3 = end
        op(0xbf, 4, 6, 0, 0),                // r4 = r6
        op(0x07, 4, 0, 0, words as i32 * 8), // r4 += length
        op(0xbd, 4, 3, 2, 0),                // if r4 <= r3 goto +2
        op(0xb7, 0, 0, 0, DROPPED),
        op(0x95, 0, 0, 0, 0),
    ];
    for (index, chunk) in frame.chunks(8).enumerate() {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        let word = u64::from_le_bytes(bytes);
        code.push(op(0x18, 5, 0, 0, word as u32 as i32)); // r5 = word
        code.push(op(0, 0, 0, 0, (word >> 32) as u32 as i32));
        code.push(op(0x7b, 6, 5, index as i16 * 8, 0)); // *(u64 *)(r6 + …) = r5
    }
    if flows > 1 {
        code.extend([
            op(0x85, 0, 0, 0, 7),                         // r0 = get_prandom_u32()
            op(0x54, 0, 0, 0, (flows - 1).cast_signed()), // w0 &= flows - 1
            op(0x6b, 6, 0, 28, 0),                        // low half of the source
            op(0xbf, 1, 0, 0, 0),
            op(0xa4, 1, 0, 0, -1),     // w1 ^= -1
            op(0x6b, 6, 1, 18, 0),     // identification
            op(0x74, 0, 0, 0, 16),     // w0 >>= 16
            op(0x44, 0, 0, 0, 0x4000), // no well-known port
            op(0xdc, 0, 0, 0, 16),     // big endian
            op(0x6b, 6, 0, 34, 0),     // source port
        ]);
    }
    code.extend([
        op(0xb7, 1, 0, 0, ifindex as i32),
        op(0xb7, 2, 0, 0, 0),
        op(0x85, 0, 0, 0, 23), // redirect
        op(0x95, 0, 0, 0, 0),
    ]);
    load("bench_source", XDP, 37, &code)
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    Tc,
}

/// Where frames end: counted and dropped.
pub(crate) struct Sink {
    map: OwnedFd,
    _links: Vec<OwnedFd>,
}

impl Sink {
    /// Drops what arrives at `ifindex` in this network namespace, before and in the stack.
    pub(crate) fn at(ifindex: u32) -> io::Result<Self> {
        let map = Attr::new()
            .u32(0, 2)
            .u32(4, 4)
            .u32(8, 8)
            .u32(12, 1)
            .open(MAP_CREATE)?;
        let mut links = Vec::new();
        for hook in [Hook::Xdp, Hook::Tc] {
            let dropped = if hook == Hook::Xdp { 1 } else { 2 };
            let code = [
                op(0x62, 10, 0, -4, 0), // *(u32 *)(r10 - 4) = 0
                op(0xbf, 2, 10, 0, 0),
                op(0x07, 2, 0, 0, -4),
                op(0x18, 1, 1, 0, number(&map) as i32), // r1 = map
                op(0, 0, 0, 0, 0),
                op(0x85, 0, 0, 0, 1), // map_lookup_elem
                op(0x15, 0, 0, 2, 0), // if r0 == 0 goto +2
                op(0xb7, 1, 0, 0, 1),
                op(0xdb, 0, 1, 0, 0), // lock *(u64 *)r0 += r1
                op(0xb7, 0, 0, 0, dropped),
                op(0x95, 0, 0, 0, 0),
            ];
            links.push(attach("bench_sink", hook, &code, ifindex)?.link);
        }
        Ok(Self { map, _links: links })
    }

    pub(crate) fn count(&self) -> io::Result<u64> {
        let (key, mut value) = (0u32, 0u64);
        Attr::new()
            .u32(0, number(&self.map))
            .u64(8, &raw const key as u64)
            .u64(16, &raw mut value as u64)
            .call(MAP_LOOKUP_ELEM)?;
        Ok(value)
    }
}

/// A program at its hook, for as long as this lives.
pub(crate) struct Attached {
    program: OwnedFd,
    link: OwnedFd,
}

impl Attached {
    fn new(program: OwnedFd, target: u32, attach_type: u32, flags: u32) -> io::Result<Self> {
        let link = Attr::new()
            .u32(0, number(&program))
            .u32(4, target)
            .u32(8, attach_type)
            .u32(12, flags)
            .open(LINK_CREATE)?;
        Ok(Self { program, link })
    }

    /// Nanoseconds and runs, as far as the kernel has counted (see [`enable_stats`]).
    pub(crate) fn cost(&self) -> io::Result<(u64, u64)> {
        cost(&self.program)
    }
}

fn cost(program: &OwnedFd) -> io::Result<(u64, u64)> {
    let mut info = [0u8; 232];
    Attr::new()
        .u32(0, number(program))
        .u32(4, info.len() as u32)
        .u64(8, info.as_mut_ptr() as u64)
        .call(INFO_BY_FD)?;
    let field = |at: usize| u64::from_ne_bytes(info[at..at + 8].try_into().unwrap_or_default());
    Ok((field(192), field(200)))
}

fn attach(name: &str, hook: Hook, code: &[u64], ifindex: u32) -> io::Result<Attached> {
    let (kind, attach_type, flags) = match hook {
        Hook::Xdp => (XDP, 37, 1 << 2),
        Hook::Tc => (SCHED_CLS, 46, 0),
    };
    let program = load(name, kind, attach_type, code)?;
    Attached::new(program, ifindex, attach_type, flags)
}

/// The least that a hook of connect(2) can do: allow it.
pub(crate) fn empty_connect(cgroup: BorrowedFd<'_>) -> io::Result<Attached> {
    const CONNECT4: u32 = 10;
    let code = [op(0xb7, 0, 0, 0, 1), op(0x95, 0, 0, 0, 0)];
    let program = load("bench_empty", CGROUP_SOCK_ADDR, CONNECT4, &code)?;
    Attached::new(program, cgroup.as_raw_fd().cast_unsigned(), CONNECT4, 0)
}

/// Runs before every ordinary process of this CPU from now on.
pub(crate) fn take_precedence() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 10 };
    // SAFETY: the structure outlives the call.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// This thread runs as any other from now on.
pub(crate) fn give_way() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure outlives the call.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The least that a forwarding program can do at `at`: send everything on to `to`.
pub(crate) fn bare_redirect(hook: Hook, at: u32, to: u32) -> io::Result<Attached> {
    let helper = match hook {
        Hook::Xdp => 23, // redirect
        Hook::Tc => 155, // redirect_peer
    };
    let code = [
        op(0xb7, 1, 0, 0, to as i32),
        op(0xb7, 2, 0, 0, 0),
        op(0x85, 0, 0, 0, helper),
        op(0x95, 0, 0, 0, 0),
    ];
    attach("bench_bare", hook, &code, at)
}

/// Nanoseconds that the kernel counts for a program that does nothing: its own looks at the clock.
/// While [`enable_stats`] lives.
pub(crate) fn empty_cost(hook: Hook, runs: u32) -> io::Result<f64> {
    let (kind, attach_type) = match hook {
        Hook::Xdp => (XDP, 37),
        Hook::Tc => (SCHED_CLS, 46),
    };
    let code = [op(0xb7, 0, 0, 0, 2), op(0x95, 0, 0, 0, 0)];
    let program = load("bench_empty", kind, attach_type, &code)?;
    let frame = [0u8; 64];
    Attr::new()
        .u32(0, number(&program))
        .u32(8, frame.len() as u32)
        .u64(16, frame.as_ptr() as u64)
        .u32(32, runs)
        .call(TEST_RUN)?;
    let (ns, runs) = cost(&program)?;
    Ok(ns as f64 / runs.max(1) as f64)
}

/// Runs the generator on this CPU: real frames, until `count` are sent. Nanoseconds that each took, as the
/// kernel says: the call itself waits for grace periods of RCU before the first frame and after the last.
pub(crate) fn send(generator: &OwnedFd, count: u32) -> io::Result<u32> {
    const LIVE_FRAMES: u32 = 1 << 1;
    const DURATION: usize = 36;
    let frame = [0u8; 64];
    let mut attr = Attr::new()
        .u32(0, number(generator))
        .u32(8, frame.len() as u32)
        .u64(16, frame.as_ptr() as u64)
        .u32(32, count)
        .u32(64, LIVE_FRAMES)
        .u32(72, 64);
    attr.call(TEST_RUN)?;
    let duration = attr.0[DURATION..DURATION + 4].try_into();
    Ok(u32::from_ne_bytes(duration.unwrap_or_default()))
}

/// While it lives the kernel counts and times the runs of every program.
pub(crate) fn enable_stats() -> io::Result<OwnedFd> {
    Attr::new().open(ENABLE_STATS)
}
