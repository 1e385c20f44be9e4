//! skep's datapath in the kernel. One file a hook, the rest is shared between them.
//!
//! | program | hook | duty | Linux |
//! |---|---|---|---|
//! | `connect4/6`, `sendmsg4/6` | cgroup | a Service address becomes a backend before any packet exists | 5.12 |
//! | `recvmsg4/6`, `getpeername4/6` | cgroup | the application keeps seeing the Service | 5.12 |
//! | `sock_release` | cgroup | what was remembered of a socket is forgotten with it | 5.9 |
//! | `from_pod`, `to_pod` | tcx (clsact before 6.6) on the host end of a pod's veth | anti-spoofing, policy, masquerade, per-packet Services | 5.11 |
//! | `xdp_net` | XDP on the uplink | the plain part of `from_net`, before a socket buffer exists | 5.18 |
//! | `from_net`, `to_net` | tcx (clsact before 6.6) on the uplink and the tunnel | NodePort and external addresses, reverse translation | 5.11 |
//!
//! The floor of the sockets' is 5.12 (atomic compare and exchange), of the others 5.11
//! (`bpf_ktime_get_coarse_ns`); the supported floor is 5.15. On 5.15–5.17 a
//! refused connect says EPERM, from 5.18 on ECONNREFUSED (`bpf_set_retval`).
//!
//! Read `socket`, then `net` and `pod`. An entry point is a truth table; raw pointers stay in
//! `packet` and `maps`.
#![no_std]
#![no_main]
#![allow(
    unsafe_code,
    reason = "maps and helpers of the kernel are raw pointers"
)]
#![allow(unstable_features, reason = "see `atomic`")]
#![feature(asm_experimental_arch)]
#![allow(unreachable_pub, reason = "a binary: `pub` means between its files")]

mod announce;
mod atomic;
mod context;
mod count;
mod direct;
mod flow;
mod forward;
mod fresh;
mod known;
mod maps;
mod net;
mod packet;
mod pod;
mod policy;
mod refuse;
mod service;
mod socket;
mod table;
mod too_big;
mod tunnel;
mod xdp;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the build has no panicking path, and the verifier would refuse the loop.
    loop {}
}

/// Helpers such as `bpf_fib_lookup` are only for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
