//! What a packet program is given: a socket buffer (tc) or a frame (XDP). The logic of flows and
//! Services is generic over it.

use core::ffi::c_void;
use core::ptr::addr_of;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::generated::bpf_csum_update;

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
}
