//! Arrays of the kernel mapped into memory (`BPF_F_MMAPABLE`, Linux 5.5): a write is a store, not
//! a system call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use skep_ebpf_common::service::{Backend, Slot};

use crate::table::Plain;

#[derive(Debug)]
struct Mapping<T> {
    start: NonNull<T>,
    len: u32,
    bytes: usize,
}

// SAFETY: shared memory of the kernel's map; all access goes through the methods below, which the
// owners serialise (`&mut self` for writes).
unsafe impl<T> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapping<T> {}

impl<T: Plain> Mapping<T> {
    fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let page = 4096;
        let bytes = (len as usize * size_of::<T>()).next_multiple_of(page);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, len, bytes })
    }

    fn at(&self, index: u32) -> Option<NonNull<T>> {
        // SAFETY: inside the mapping.
        (index < self.len).then(|| unsafe { self.start.add(index as usize) })
    }

    fn read(&self, index: u32) -> Option<T> {
        // SAFETY: inside the mapping; any bytes are a value.
        self.at(index)
            .map(|element| unsafe { element.as_ptr().read_volatile() })
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nothing refers to it any more. Failing only leaks it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[derive(Debug)]
pub(crate) struct SlotArray(Mapping<Slot>);

impl SlotArray {
    pub(crate) fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        Mapping::new(map, len).map(Self)
    }

    pub(crate) fn get(&self, index: u32) -> Option<u32> {
        self.0.read(index).map(|slot| slot as u32)
    }

    /// One atomic store: a program sees the old backend or the new one.
    pub(crate) fn set(&mut self, index: u32, backend: u32) {
        if let Some(slot) = self.0.at(index) {
            // SAFETY: aligned and inside the mapping, which only atomics write.
            unsafe { AtomicU64::from_ptr(slot.as_ptr()) }
                .store(Slot::from(backend), Ordering::Release);
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.0.len
    }
}

#[derive(Debug)]
pub(crate) struct BackendArray(Mapping<Backend>);

impl BackendArray {
    pub(crate) fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        Mapping::new(map, len).map(Self)
    }

    pub(crate) fn get(&self, index: u32) -> Option<Backend> {
        self.0.read(index)
    }

    /// The Service goes last: until then no program takes the backend for one of its own.
    pub(crate) fn set(&mut self, index: u32, backend: Backend) {
        let Some(element) = self.0.at(index) else {
            return;
        };
        self.set_service(index, 0);
        fence(Ordering::SeqCst);
        // SAFETY: inside the mapping.
        unsafe {
            element.as_ptr().write_volatile(Backend {
                service: 0,
                ..backend
            })
        };
        fence(Ordering::SeqCst);
        self.set_service(index, backend.service);
    }

    /// Gone for every choice from now on; the address stays for those who read it just before.
    pub(crate) fn retire(&mut self, index: u32) {
        self.set_service(index, 0);
    }

    fn set_service(&mut self, index: u32, service: u32) {
        if let Some(element) = self.0.at(index) {
            // SAFETY: an aligned field inside the mapping.
            unsafe { AtomicU32::from_ptr(&raw mut (*element.as_ptr()).service) }
                .store(service, Ordering::Release);
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.0.len
    }
}
