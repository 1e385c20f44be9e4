//! cgroup socket hooks: a Service address becomes a backend before any packet exists.
//! Miss = not ours, allow. No backend = refused (ECONNREFUSED; EPERM before Linux 5.18), counted.
//!
//! The translation is kept for as long as the socket lives: in the place of an array that its cookie
//! gives it, which `sock_release` frees, or where another socket has that place in its own storage,
//! which the kernel frees. Storage alone would do, but to allocate and free it is most of what a
//! connection would cost.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use skep_ebpf_common::event::Hook;
use skep_ebpf_common::flow::FlowKey;
use skep_ebpf_common::reason::Reason;
use skep_ebpf_common::service::*;
use skep_ebpf_common::{Address, PortBe, TCP};

use crate::atomic::take;
use crate::count::{count, listened_to, sampled, service_connection, service_refused, tell};
use crate::maps::{NETNS, PEERS, SOCKETS, STREAMS, config, has_set_retval};
use crate::packet::Tuple;
use crate::service::{Balance, Chosen, alive, choose, find};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    verdict::<V4>(&ctx, false)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    verdict::<V6>(&ctx, false)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    verdict::<V4>(&ctx, true)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    verdict::<V6>(&ctx, true)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    restore::<V4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    restore::<V6>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    restore::<V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    restore::<V6>(&ctx)
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    // SAFETY: the hook's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock.cast()) };
    if let Some(peer) = own_place(cookie) {
        // SAFETY: an element of the map; nobody uses the socket any more.
        unsafe { addr_of_mut!((*peer).cookie).write_volatile(0) };
    }
    ALLOW
}

enum Outcome {
    NotAService,
    NoBackend(u32),
    Backend(Chosen),
}

#[inline(always)]
fn verdict<F: Family>(ctx: &SockAddrContext, datagram: bool) -> i32 {
    let address = F::address(ctx);
    let port = port(ctx);
    match translate(ctx, &address, port, datagram) {
        Outcome::NotAService => ALLOW,
        Outcome::NoBackend(service) => {
            count(Reason::NoBackend);
            service_refused(service);
            refuse()
        }
        Outcome::Backend(chosen) => {
            F::set_address(ctx, &chosen.backend.address);
            set_port(ctx, chosen.backend.port);
            ALLOW
        }
    }
}

#[inline(always)]
fn translate(ctx: &SockAddrContext, address: &Address, port: PortBe, datagram: bool) -> Outcome {
    let in_host_netns = address.is_loopback()
        && config().is_some_and(|config| config.host_netns_cookie == netns_cookie(ctx));
    let mut frontend = Frontend::default();
    if !find(address, port, protocol(ctx), in_host_netns, &mut frontend) {
        return Outcome::NotAService;
    }
    let cookie = cookie(ctx);
    if datagram && let Some(chosen) = remembered(ctx, cookie, address, port, &frontend) {
        return Outcome::Backend(chosen);
    }
    let client = if frontend.affinity_seconds == 0 {
        Address::ANY
    } else {
        client(ctx, address)
    };
    let Some(chosen) = choose(
        &frontend,
        frontend.internal,
        Balance::Random,
        &client,
        false,
    ) else {
        return Outcome::NoBackend(frontend.service);
    };
    remember(ctx, cookie, address, port, &chosen, frontend.service);
    count(Reason::SocketTranslated);
    service_connection(frontend.service, chosen.index);
    if listened_to() && sampled() {
        tell_listener(ctx, address, port, &chosen, frontend.service);
    }
    Outcome::Backend(chosen)
}

/// Of a connection that is being made, whose own port is not chosen yet.
#[inline(always)]
fn tell_listener(
    ctx: &SockAddrContext,
    address: &Address,
    port: PortBe,
    chosen: &Chosen,
    service: u32,
) {
    let source = client(ctx, address);
    let flow = FlowKey {
        source,
        destination: *address,
        source_port: PortBe(0),
        destination_port: port,
        protocol: protocol(ctx),
        _pad: [0; 3],
    };
    let new = Tuple {
        source,
        destination: chosen.backend.address,
        source_port: PortBe(0),
        destination_port: chosen.backend.port,
    };
    tell(
        &flow,
        Some(&new),
        Reason::SocketTranslated,
        Hook::Socket,
        service,
        0,
    );
}

/// The place that a socket of this cookie may have.
#[inline(always)]
fn place(cookie: u64) -> Option<*mut Peer> {
    PEERS.get_ptr_mut(cookie as u32 & (MAX_PEERS - 1))
}

/// The place that the socket has.
#[inline(always)]
fn own_place(cookie: u64) -> Option<*mut Peer> {
    // SAFETY: an element of the map.
    place(cookie).filter(|peer| unsafe { (**peer).cookie } == cookie)
}

/// The backend that this socket sent to last time, if it is still one.
#[inline(always)]
fn remembered(
    ctx: &SockAddrContext,
    cookie: u64,
    address: &Address,
    port: PortBe,
    frontend: &Frontend,
) -> Option<Chosen> {
    if let Some(peer) = own_place(cookie)
        // SAFETY: an element of the map that is this socket's; a lost race costs one stale answer.
        && let Some(chosen) = still_serves(unsafe { &(*peer).translation }, address, port, frontend)
    {
        return Some(chosen);
    }
    // SAFETY: the hook's own socket.
    let record = unsafe { SOCKETS.get_ptr_mut(ctx) };
    if record.is_null() {
        return None;
    }
    // SAFETY: not null; the socket's lock is not held, as above.
    let entries = unsafe { addr_of!((*record).entries).cast::<Translation>() };
    for i in 0..TRANSLATIONS {
        // SAFETY: within the array.
        let entry = unsafe { &*entries.add(i) };
        if let Some(chosen) = still_serves(entry, address, port, frontend) {
            return Some(chosen);
        }
    }
    None
}

#[inline(always)]
fn still_serves(
    entry: &Translation,
    address: &Address,
    port: PortBe,
    frontend: &Frontend,
) -> Option<Chosen> {
    if entry.service == frontend.service
        && entry.frontend_port == port
        && entry.frontend == *address
        && let Some(backend) = alive(entry.index, frontend.service)
        && backend.port == entry.backend_port
        && backend.address == entry.backend
    {
        return Some(Chosen {
            index: entry.index,
            backend,
        });
    }
    None
}

#[inline(always)]
fn remember(
    ctx: &SockAddrContext,
    cookie: u64,
    address: &Address,
    port: PortBe,
    chosen: &Chosen,
    service: u32,
) {
    let stream = protocol(ctx) == TCP;
    if let Some(peer) = place(cookie) {
        // SAFETY: an element of the map, written only by the socket whose cookie is in it.
        unsafe {
            let translation = addr_of_mut!((*peer).translation);
            let owner = (*peer).cookie;
            // Another destination of a datagram socket goes to its storage.
            let ours = owner == cookie
                && (stream
                    || ((*translation).frontend_port == port
                        && (*translation).frontend == *address));
            if ours || (owner == 0 && take(addr_of_mut!((*peer).cookie), cookie)) {
                write(translation, address, port, chosen, service);
                return;
            }
        }
    }
    store(ctx, stream, address, port, chosen, service);
}

/// Into the socket's storage. Without room for that the application sees the backend where it asked
/// for the Service.
#[inline(always)]
fn store(
    ctx: &SockAddrContext,
    stream: bool,
    address: &Address,
    port: PortBe,
    chosen: &Chosen,
    service: u32,
) {
    count(Reason::PlaceTaken);
    if stream {
        // SAFETY: the hook's own socket.
        let record = unsafe { STREAMS.get_or_insert_ptr_mut(ctx, None) };
        if !record.is_null() {
            // SAFETY: not null; a socket connects once at a time.
            unsafe {
                (*record).frontend = *address;
                (*record).backend = chosen.backend.address;
                (*record).frontend_port = port;
                (*record).backend_port = chosen.backend.port;
            }
        }
        return;
    }
    // SAFETY: the hook's own socket.
    let record = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None) };
    if record.is_null() {
        return;
    }
    // SAFETY: not null; the index stays below TRANSLATIONS.
    unsafe {
        let next = (*record).count as usize & (TRANSLATIONS - 1);
        (*record).count = (*record).count.wrapping_add(1);
        let entry = addr_of_mut!((*record).entries)
            .cast::<Translation>()
            .add(next);
        write(entry, address, port, chosen, service);
    }
}

/// # Safety
/// `entry` may be written.
#[inline(always)]
unsafe fn write(
    entry: *mut Translation,
    address: &Address,
    port: PortBe,
    chosen: &Chosen,
    service: u32,
) {
    // SAFETY: the caller's.
    unsafe {
        (*entry).frontend = *address;
        (*entry).backend = chosen.backend.address;
        (*entry).frontend_port = port;
        (*entry).backend_port = chosen.backend.port;
        (*entry).index = chosen.index;
        (*entry).service = service;
    }
}

/// Shows the application the Service where the kernel has the backend.
#[inline(always)]
fn restore<F: Family>(ctx: &SockAddrContext) -> i32 {
    let address = F::address(ctx);
    let port = port(ctx);
    if let Some(peer) = own_place(cookie(ctx)) {
        // SAFETY: an element of the map that is this socket's.
        let translation = unsafe { &(*peer).translation };
        if translation.backend_port == port && translation.backend == address {
            F::set_address(ctx, &translation.frontend);
            set_port(ctx, translation.frontend_port);
            return ALLOW;
        }
    }
    if protocol(ctx) == TCP {
        // SAFETY: the hook's own socket.
        let record = unsafe { STREAMS.get_ptr_mut(ctx) };
        if !record.is_null() {
            // SAFETY: not null.
            let record = unsafe { &*record };
            if record.backend_port == port && record.backend == address {
                F::set_address(ctx, &record.frontend);
                set_port(ctx, record.frontend_port);
            }
            return ALLOW;
        }
        // Connected while an older agent kept all sockets alike.
    }
    // SAFETY: the hook's own socket.
    let record = unsafe { SOCKETS.get_ptr_mut(ctx) };
    if record.is_null() {
        return ALLOW;
    }
    // SAFETY: not null.
    let entries = unsafe { addr_of!((*record).entries).cast::<Translation>() };
    for i in 0..TRANSLATIONS {
        // SAFETY: within the array.
        let entry = unsafe { &*entries.add(i) };
        if entry.service != 0 && entry.backend_port == port && entry.backend == address {
            F::set_address(ctx, &entry.frontend);
            set_port(ctx, entry.frontend_port);
            return ALLOW;
        }
    }
    ALLOW
}

#[inline(always)]
fn refuse() -> i32 {
    if has_set_retval() {
        // SAFETY: the loader says that the kernel has it.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    DENY
}

/// Who connects, for sessionAffinity: the pod's address, or the node's.
#[inline(always)]
fn client(ctx: &SockAddrContext, destination: &Address) -> Address {
    let cookie = netns_cookie(ctx);
    // SAFETY: copied at once.
    if let Some(pod) = unsafe { NETNS.get(&cookie) } {
        return if destination.is_v4() { pod.v4 } else { pod.v6 };
    }
    match config() {
        Some(config) if destination.is_v4() => config.node_v4,
        Some(config) => config.node_v6,
        None => Address::ANY,
    }
}

#[inline(always)]
fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the hook's context.
    unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the hook's context.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

// VERIFIER (6.18): context fields must be read and written with their own width; volatile keeps
// LLVM from merging or narrowing the accesses.
#[inline(always)]
fn port(ctx: &SockAddrContext) -> PortBe {
    // SAFETY: the hook's context.
    PortBe(unsafe { addr_of!((*ctx.sock_addr).user_port).read_volatile() } as u16)
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, port: PortBe) {
    // SAFETY: the hook's context.
    unsafe { addr_of_mut!((*ctx.sock_addr).user_port).write_volatile(port.0 as u32) };
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    // SAFETY: the hook's context.
    (unsafe { addr_of!((*ctx.sock_addr).protocol).read_volatile() }) as u8
}

trait Family {
    fn address(ctx: &SockAddrContext) -> Address;
    fn set_address(ctx: &SockAddrContext, address: &Address);
}

struct V4;
struct V6;

impl Family for V4 {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address {
        // SAFETY: the hook's context.
        Address::from_v4_be(unsafe { addr_of!((*ctx.sock_addr).user_ip4).read_volatile() })
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address) {
        // SAFETY: the hook's context.
        unsafe { addr_of_mut!((*ctx.sock_addr).user_ip4).write_volatile(address.v4_be()) };
    }
}

impl Family for V6 {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address {
        // SAFETY: the hook's context.
        unsafe {
            let words = addr_of!((*ctx.sock_addr).user_ip6).cast::<u32>();
            Address([
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ])
        }
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address) {
        // SAFETY: the hook's context.
        unsafe {
            let words = addr_of_mut!((*ctx.sock_addr).user_ip6).cast::<u32>();
            words.write_volatile(address.0[0]);
            words.add(1).write_volatile(address.0[1]);
            words.add(2).write_volatile(address.0[2]);
            words.add(3).write_volatile(address.0[3]);
        }
    }
}
