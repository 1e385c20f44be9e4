//! Arrays of the kernel mapped into memory (`BPF_F_MMAPABLE`, Linux 5.5): a write is a store, not
//! a system call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use skep_ebpf_common::service::{Backend, BackendCount, Slot};

use crate::error::Error;
use crate::table::Plain;

/// Elements that are mapped together: whole pages of them, whatever their size.
const WINDOW: u32 = 16_384;

/// An array of the kernel's, mapped piece by piece where it is used: a mapped page counts as this
/// process's memory, used or not.
#[derive(Debug)]
struct Mapping<T> {
    map: OwnedFd,
    len: u32,
    windows: Vec<OnceLock<NonNull<T>>>,
}

// SAFETY: shared memory of the kernel's map; all access goes through the methods below, which the
// owners serialise (`&mut self` for writes).
unsafe impl<T> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapping<T> {}

impl<T: Plain> Mapping<T> {
    fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let count = len.div_ceil(WINDOW);
        let mapping = Self {
            map: map.try_clone_to_owned()?,
            len,
            windows: (0..count).map(|_| OnceLock::new()).collect(),
        };
        // A map that cannot be mapped is found out here.
        mapping.window(0)?;
        Ok(mapping)
    }

    /// Bytes of a window; the last one ends with the map's last page.
    fn bytes(&self, window: u32) -> usize {
        const PAGE: usize = 4_096;
        let first = window * WINDOW;
        let elements = (self.len - first).min(WINDOW) as usize;
        (elements * size_of::<T>()).next_multiple_of(PAGE)
    }

    fn window(&self, window: u32) -> io::Result<NonNull<T>> {
        let slot = self
            .windows
            .get(window as usize)
            .ok_or_else(|| io::Error::other("outside the map"))?;
        if let Some(start) = slot.get() {
            return Ok(*start);
        }
        let offset = window as usize * WINDOW as usize * size_of::<T>();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                self.bytes(window),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.map.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        // Somebody else's came first: this one is given back.
        if slot.set(start).is_err() {
            // SAFETY: just mapped, and nothing refers to it.
            unsafe { libc::munmap(start.as_ptr().cast(), self.bytes(window)) };
        }
        slot.get()
            .copied()
            .ok_or_else(|| io::Error::other("not mapped"))
    }

    /// Makes the element writable: afterwards [`Self::at`] finds it.
    fn ensure(&self, index: u32) -> io::Result<()> {
        self.window(index / WINDOW).map(drop)
    }

    fn at(&self, index: u32) -> Option<NonNull<T>> {
        if index >= self.len {
            return None;
        }
        let start = self.window(index / WINDOW).ok()?;
        // SAFETY: inside the window.
        Some(unsafe { start.add((index % WINDOW) as usize) })
    }

    fn read(&self, index: u32) -> Option<T> {
        // SAFETY: inside the mapping; any bytes are a value.
        self.at(index)
            .map(|element| unsafe { element.as_ptr().read_volatile() })
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        for (number, window) in self.windows.iter().enumerate() {
            if let Some(start) = window.get() {
                let first = number * WINDOW as usize;
                let elements = (self.len as usize - first).min(WINDOW as usize);
                let bytes = (elements * size_of::<T>()).next_multiple_of(4_096);
                // SAFETY: our own mapping; nothing refers to it any more. Failing only leaks it.
                unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
            }
        }
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

    /// Makes sure that a run can be written.
    pub(crate) fn ensure(&self, base: u32, len: u32) -> Result<(), Error> {
        let last = base + len.max(1) - 1;
        (base / WINDOW..=last / WINDOW)
            .try_for_each(|window| self.0.ensure(window * WINDOW))
            .map_err(|error| Error::kernel("map into memory", "SLOTS", error))
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

    /// Makes sure that the element can be written.
    pub(crate) fn ensure(&self, index: u32) -> Result<(), Error> {
        self.0
            .ensure(index)
            .map_err(|error| Error::kernel("map into memory", "BACKENDS", error))
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

/// Counters that the programs add to.
#[derive(Debug)]
pub(crate) struct CountArray(Mapping<BackendCount>);

impl CountArray {
    pub(crate) fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        Mapping::new(map, len).map(Self)
    }

    /// 0 for what nobody counts.
    pub(crate) fn get(&self, index: u32) -> BackendCount {
        self.0.read(index).unwrap_or(0)
    }

    pub(crate) fn reset(&mut self, index: u32) {
        if let Some(count) = self.0.at(index) {
            // SAFETY: aligned and inside the mapping, which only atomics write.
            unsafe { AtomicU64::from_ptr(count.as_ptr()) }.store(0, Ordering::Relaxed);
        }
    }
}
