//! What a packet program is given: a socket buffer (tc) or a frame (XDP). The logic of flows and
//! Services is generic over it.

use core::ffi::c_void;
use core::ptr::addr_of;

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, xdp_md};
use aya_ebpf::helpers::generated::{bpf_csum_update, bpf_l4_csum_replace};

pub trait Context: Copy {
    /// For helpers that take either.
    fn raw(self) -> *mut c_void;
    /// The interface that the packet came by or is about to leave by.
    fn ifindex(self) -> u32;
    /// Where the bytes that may be read and written in place begin and end.
    fn span(self) -> (usize, usize);
    /// The device may have summed the whole packet up (`CHECKSUM_COMPLETE`): bytes written in
    /// place have changed its sum by `change`.
    fn add_to_sum(self, change: u32);
    /// Of a packet that the device will cut into segments: how much each carries. Else 0.
    fn segment_size(self) -> u32;
    /// Whether [`Self::replace_in_checksum`] is there.
    const KNOWS_CHECKSUMS: bool;
    /// Replaces in the transport checksum at `at` what the pseudo header adds, by the difference
    /// `addresses`, and the `ports`, old and new. It knows whether the checksum is complete or left to the
    /// device. Of datagrams none (RFC 768) stays none. Invalidates what is known of the packet's bytes.
    fn replace_in_checksum(self, at: u32, is_udp: bool, addresses: u16, ports: [u32; 2]) -> bool;
}

impl Context for *mut __sk_buff {
    #[inline(always)]
    fn raw(self) -> *mut c_void {
        self.cast()
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        // SAFETY: the hook's context.
        unsafe { addr_of!((*self).ifindex).read_volatile() }
    }

    #[inline(always)]
    fn span(self) -> (usize, usize) {
        // SAFETY: the hook's context.
        unsafe {
            (
                addr_of!((*self).data).read_volatile() as usize,
                addr_of!((*self).data_end).read_volatile() as usize,
            )
        }
    }

    #[inline(always)]
    fn add_to_sum(self, change: u32) {
        // SAFETY: the hook's context; of no effect where there is no sum.
        unsafe { bpf_csum_update(self, change) };
    }

    #[inline(always)]
    fn segment_size(self) -> u32 {
        // SAFETY: the hook's context (Linux 5.7).
        unsafe { addr_of!((*self).gso_size).read_volatile() }
    }

    const KNOWS_CHECKSUMS: bool = true;

    #[inline(always)]
    fn replace_in_checksum(self, at: u32, is_udp: bool, addresses: u16, ports: [u32; 2]) -> bool {
        let flags = if is_udp {
            BPF_F_MARK_MANGLED_0 as u64
        } else {
            0
        };
        let [old, new] = ports.map(u64::from);
        let pseudo = flags | BPF_F_PSEUDO_HDR as u64;
        // SAFETY: the helper checks the offset.
        unsafe {
            bpf_l4_csum_replace(self, at, 0, addresses as u64, pseudo) == 0
                && (old == new || bpf_l4_csum_replace(self, at, old, new, flags | 4) == 0)
        }
    }
}

impl Context for *mut xdp_md {
    #[inline(always)]
    fn raw(self) -> *mut c_void {
        self.cast()
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        // SAFETY: the hook's context.
        unsafe { addr_of!((*self).ingress_ifindex).read_volatile() }
    }

    #[inline(always)]
    fn span(self) -> (usize, usize) {
        // SAFETY: the hook's context.
        unsafe {
            (
                addr_of!((*self).data).read_volatile() as usize,
                addr_of!((*self).data_end).read_volatile() as usize,
            )
        }
    }

    #[inline(always)]
    fn add_to_sum(self, _: u32) {}

    #[inline(always)]
    fn segment_size(self) -> u32 {
        0
    }

    const KNOWS_CHECKSUMS: bool = false;

    #[inline(always)]
    fn replace_in_checksum(self, _: u32, _: bool, _: u16, _: [u32; 2]) -> bool {
        false
    }
}
