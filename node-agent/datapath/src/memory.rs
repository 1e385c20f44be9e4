//! Arrays of the kernel mapped into memory (`BPF_F_MMAPABLE`, Linux 5.5): a write is a store, not
//! a system call.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use parking_lot::Mutex;
use skep_ebpf_common::service::{Backend, BackendCount, Slot};

use crate::error::Error;
use crate::table::Plain;

/// Elements that are mapped together: whole pages of them, whatever their size.
const WINDOW: u32 = 8_192;
/// Windows of a map that are mapped at a time. A mapped page counts as this process's memory, and
/// mapping a window costs some microseconds: what is used together lies together.
const WINDOWS: usize = 8;
const PAGE: usize = 4_096;

/// An array of the kernel's, of which the windows that were used last are mapped.
#[derive(Debug)]
struct Mapping<T> {
    name: &'static str,
    map: OwnedFd,
    len: u32,
    /// The newest last; at most [`WINDOWS`].
    mapped: Mutex<VecDeque<Window<T>>>,
}

#[derive(Debug)]
struct Window<T> {
    number: u32,
    start: NonNull<T>,
    bytes: usize,
}

// SAFETY: shared memory of the kernel's map; all access goes through `Mapping::with`, which holds
// the lock, and the owners serialise writes (`&mut self`).
unsafe impl<T> Send for Window<T> {}

impl<T> Drop for Window<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nothing refers to it outside `Mapping::with`. Failing only leaks
        // it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

impl<T: Plain> Mapping<T> {
    fn new(name: &'static str, map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let mapping = Self {
            name,
            map: map.try_clone_to_owned()?,
            len,
            mapped: Mutex::default(),
        };
        // A map that cannot be mapped is found out here.
        mapping.map(0)?;
        Ok(mapping)
    }

    fn map(&self, number: u32) -> io::Result<Window<T>> {
        let first = number * WINDOW;
        let elements = (self.len - first).min(WINDOW) as usize;
        // The last window ends with the map's last page.
        let bytes = (elements * size_of::<T>()).next_multiple_of(PAGE);
        let offset = first as usize * size_of::<T>();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
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
        Ok(Window {
            number,
            start,
            bytes,
        })
    }

    /// Lets `access` at an element, which stays mapped meanwhile.
    fn with<R>(&self, index: u32, access: impl FnOnce(NonNull<T>) -> R) -> Result<R, Error> {
        let failed = |error| Error::kernel("map into memory", self.name, error);
        if index >= self.len {
            return Err(failed(io::Error::other("outside the map")));
        }
        let number = index / WINDOW;
        let mut mapped = self.mapped.lock();
        let known = mapped.iter().rposition(|window| window.number == number);
        let start = match known {
            Some(position) => mapped[position].start,
            None => {
                let window = self.map(number).map_err(failed)?;
                if mapped.len() >= WINDOWS {
                    mapped.pop_front();
                }
                let start = window.start;
                mapped.push_back(window);
                start
            }
        };
        // SAFETY: inside the window, which has as many elements.
        Ok(access(unsafe { start.add((index % WINDOW) as usize) }))
    }

    /// `None`: outside the map, or not to be mapped.
    fn read(&self, index: u32) -> Option<T> {
        // SAFETY: inside the mapping; any bytes are a value.
        let read = |element: NonNull<T>| unsafe { element.as_ptr().read_volatile() };
        self.with(index, read).ok()
    }
}

#[derive(Debug)]
pub(crate) struct SlotArray(Mapping<Slot>);

impl SlotArray {
    pub(crate) fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        Mapping::new("SLOTS", map, len).map(Self)
    }

    pub(crate) fn get(&self, index: u32) -> Option<u32> {
        self.0.read(index).map(|slot| slot as u32)
    }

    /// One atomic store: a program sees the old backend or the new one.
    pub(crate) fn set(&mut self, index: u32, backend: u32) -> Result<(), Error> {
        self.0.with(index, |slot| {
            // SAFETY: aligned and inside the mapping, which only atomics write.
            unsafe { AtomicU64::from_ptr(slot.as_ptr()) }
                .store(Slot::from(backend), Ordering::Release);
        })
    }

    pub(crate) fn len(&self) -> u32 {
        self.0.len
    }
}

#[derive(Debug)]
pub(crate) struct BackendArray(Mapping<Backend>);

impl BackendArray {
    pub(crate) fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        Mapping::new("BACKENDS", map, len).map(Self)
    }

    pub(crate) fn get(&self, index: u32) -> Option<Backend> {
        self.0.read(index)
    }

    /// The Service goes last: until then no program takes the backend for one of its own.
    pub(crate) fn set(&mut self, index: u32, backend: Backend) -> Result<(), Error> {
        self.0.with(index, |element| {
            store_service(element, 0);
            fence(Ordering::SeqCst);
            // SAFETY: inside the mapping.
            unsafe {
                element.as_ptr().write_volatile(Backend {
                    service: 0,
                    ..backend
                })
            };
            fence(Ordering::SeqCst);
            store_service(element, backend.service);
        })
    }

    /// Gone for every choice from now on; the address stays for those who read it just before.
    pub(crate) fn retire(&mut self, index: u32) -> Result<(), Error> {
        self.0.with(index, |element| store_service(element, 0))
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
        Mapping::new("BACKEND_COUNTS", map, len).map(Self)
    }

    /// 0 for what nobody counts.
    pub(crate) fn get(&self, index: u32) -> BackendCount {
        self.0.read(index).unwrap_or(0)
    }

    pub(crate) fn reset(&mut self, index: u32) -> Result<(), Error> {
        self.0.with(index, |count| {
            // SAFETY: aligned and inside the mapping, which only atomics write.
            unsafe { AtomicU64::from_ptr(count.as_ptr()) }.store(0, Ordering::Relaxed);
        })
    }
}

/// `element` is mapped.
fn store_service(element: NonNull<Backend>, service: u32) {
    // SAFETY: an aligned field inside the mapping.
    unsafe { AtomicU32::from_ptr(&raw mut (*element.as_ptr()).service) }
        .store(service, Ordering::Release);
}
