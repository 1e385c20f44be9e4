//! Arrays of the kernel mapped into memory (`BPF_F_MMAPABLE`, Linux 5.5): a write is a store, not
//! a system call.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use parking_lot::Mutex;
use skep_ebpf_common::flow::*;
use skep_ebpf_common::service::{Backend, BackendElement, Slot};

use crate::error::Error;
use crate::table::{Plain, Table};

/// Elements that are mapped together: whole pages of them, whatever their size.
const WINDOW: u32 = 8_192;
/// Of those that are larger than others.
const BUCKET_WINDOW: u32 = 512;
/// Windows of a map that are mapped at a time. A mapped page counts as this process's memory, and
/// mapping a window costs some microseconds: what is used together lies together.
const WINDOWS: usize = 4;
const PAGE: usize = 4_096;

/// An array of the kernel's, of which the windows that were used last are mapped.
#[derive(Debug)]
struct Mapping<T, const LEN: u32 = WINDOW> {
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

impl<T: Plain, const LEN: u32> Mapping<T, LEN> {
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
        let first = number * LEN;
        let elements = (self.len - first).min(LEN) as usize;
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
        let number = index / LEN;
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
        Ok(access(unsafe { start.add((index % LEN) as usize) }))
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
pub(crate) struct BackendArray(Mapping<BackendElement>);

impl BackendArray {
    pub(crate) fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        Mapping::new("BACKENDS", map, len).map(Self)
    }

    /// From the maps of agents that counted connections in a map of their own.
    pub(crate) fn take_over(
        &mut self,
        former: &Table<u32, Backend>,
        counts: Option<Table<u32, u64>>,
    ) -> Result<(), Error> {
        let mut found = Vec::new();
        former.for_each(|index, backend| found.push((*index, *backend)))?;
        found.retain(|(index, backend)| backend.service != 0 && *index < self.len());
        for (index, backend) in found {
            let counted = counts
                .as_ref()
                .map(|counts| counts.get(&index))
                .transpose()?;
            let connections = counted.flatten().unwrap_or(0);
            self.write(
                index,
                BackendElement {
                    backend,
                    connections,
                },
            )?;
        }
        Ok(())
    }

    pub(crate) fn get(&self, index: u32) -> Option<Backend> {
        self.0.read(index).map(|element| element.backend)
    }

    /// That it was given; 0 for what nobody counts.
    pub(crate) fn connections(&self, index: u32) -> u64 {
        self.0.read(index).map_or(0, |element| element.connections)
    }

    /// A new one, which was given nothing yet.
    pub(crate) fn set(&mut self, index: u32, backend: Backend) -> Result<(), Error> {
        let connections = 0;
        self.write(
            index,
            BackendElement {
                backend,
                connections,
            },
        )
    }

    /// The Service goes last: until then no program takes the backend for one of its own.
    fn write(&mut self, index: u32, mut element: BackendElement) -> Result<(), Error> {
        let service = std::mem::take(&mut element.backend.service);
        self.0.with(index, |at| {
            store_service(at, 0);
            fence(Ordering::SeqCst);
            // SAFETY: inside the mapping.
            unsafe { at.as_ptr().write_volatile(element) };
            fence(Ordering::SeqCst);
            store_service(at, service);
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

/// The flows of IPv4 (see [`skep_ebpf_common::flow`]). Programs take and give back slots meanwhile.
#[derive(Debug)]
pub(crate) struct FlowBuckets {
    buckets: Mapping<FlowBucket, BUCKET_WINDOW>,
    hash: FlowHash,
}

impl FlowBuckets {
    pub(crate) fn new(map: BorrowedFd<'_>, len: u32, hash: FlowHash) -> io::Result<Self> {
        let buckets = Mapping::new("FLOWS4", map, len)?;
        Ok(Self { buckets, hash })
    }

    pub(crate) fn get(&self, key: &FlowKey4) -> Result<Option<Flow4>, Error> {
        self.find(key, |bucket, slot| bucket.flow(slot))
    }

    /// Missing is success.
    pub(crate) fn remove(&self, key: &FlowKey4) -> Result<(), Error> {
        self.find(key, |bucket, slot| bucket.give_back(slot, key))
            .map(drop)
    }

    /// Puts what is not there yet into a bucket of its own; false: it is there. Its receiver's bucket does not
    /// know before [`Self::for_each_settling`].
    ///
    /// # Errors
    /// `Full`: both buckets are.
    pub(crate) fn add(&self, key: &FlowKey4, flow: &Flow4) -> Result<bool, Error> {
        if self.get(key)?.is_some() {
            return Ok(false);
        }
        let FlowPlaces { buckets, tag } = self.hash.places(key);
        let mut emptier = buckets;
        let taken_in = |index| self.buckets.with(index, |at| taken(Bucket(at).tags()));
        if taken_in(buckets[1])? < taken_in(buckets[0])? {
            emptier.reverse();
        }
        for index in emptier {
            if self
                .buckets
                .with(index, |at| Bucket(at).take(tag, key, flow))?
            {
                return Ok(true);
            }
        }
        Err(Error::Full {
            table: "FLOWS4",
            limit: self.buckets.len,
            hint: "raise the limit of this table",
        })
    }

    /// Calls `visit` for every flow. One that comes or goes meanwhile may be seen or not.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&FlowKey4, &Flow4)) -> Result<(), Error> {
        self.scan(|_, _, flows| {
            for (_, key, flow) in flows {
                visit(&key, &flow);
            }
        })
    }

    /// The same, and lets buckets forget [`STRAYS`] that have gone and know those that programs of former
    /// layouts made: to be called again and again.
    pub(crate) fn for_each_settling(
        &self,
        mut visit: impl FnMut(&FlowKey4, &Flow4),
    ) -> Result<(), Error> {
        // Buckets that say so or should, and whether something is astray.
        let mut strays = BTreeMap::new();
        self.scan(|index, tags, flows| {
            if tags & STRAYS != 0 {
                strays.entry(index).or_insert(false);
            }
            for (tag, key, flow) in flows {
                visit(&key, &flow);
                let home = self.hash.receiver(FlowEnd::receiver(&key));
                let is_home = home == (FlowPlace { bucket: index, tag });
                if !is_home && flow.widened().may_stray(&key.widened()) {
                    strays.insert(home.bucket, true);
                }
            }
        })?;
        for (index, is_straying) in strays {
            self.buckets
                .with(index, |at| Bucket(at).settle(is_straying))?;
        }
        Ok(())
    }

    /// Calls `visit` with every bucket's index and tags, and the flows in it with theirs.
    fn scan(
        &self,
        mut visit: impl FnMut(u32, u64, &mut dyn Iterator<Item = (u64, FlowKey4, Flow4)>),
    ) -> Result<(), Error> {
        for index in 0..self.buckets.len {
            self.buckets.with(index, |at| {
                let bucket = Bucket(at);
                let tags = bucket.tags();
                let mut flows = (0..BUCKET_SLOTS).filter_map(|slot| {
                    let tag = tag_of(tags, slot);
                    if tag == 0 {
                        return None;
                    }
                    let key = bucket.key(slot);
                    (key.0[1] != 0).then(|| (tag, key, bucket.flow(slot)))
                });
                visit(index, tags, &mut flows);
            })?;
        }
        Ok(())
    }

    fn find<R>(
        &self,
        key: &FlowKey4,
        found: impl Fn(&Bucket, usize) -> R,
    ) -> Result<Option<R>, Error> {
        let FlowPlaces { buckets, tag } = self.hash.places(key);
        let own = buckets.map(|bucket| FlowPlace { bucket, tag });
        let receiver = self.hash.receiver(FlowEnd::receiver(key));
        for FlowPlace { bucket, tag } in own.into_iter().chain([receiver]) {
            let result = self.buckets.with(bucket, |at| {
                let bucket = Bucket(at);
                let tags = bucket.tags();
                (0..BUCKET_SLOTS)
                    .find(|slot| tag_of(tags, *slot) == tag && bucket.key(*slot) == *key)
                    .map(|slot| found(&bucket, slot))
            })?;
            if result.is_some() {
                return Ok(result);
            }
        }
        Ok(None)
    }
}

/// A bucket that is mapped.
struct Bucket(NonNull<FlowBucket>);

impl Bucket {
    fn word(&self) -> &AtomicU64 {
        // SAFETY: aligned and inside the mapping; programs write it by atomics, too.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.0.as_ptr()).tags) }
    }

    fn tags(&self) -> u64 {
        self.word().load(Ordering::Acquire)
    }

    fn slot(&self, slot: usize) -> *mut FlowSlot {
        // SAFETY: inside the mapping; only what is in it is pointed to.
        unsafe { &raw mut (*self.0.as_ptr()).slots[slot] }
    }

    fn key(&self, slot: usize) -> FlowKey4 {
        // SAFETY: inside the mapping; any bytes are a value.
        unsafe { (&raw const (*self.slot(slot)).key).read_volatile() }
    }

    fn flow(&self, slot: usize) -> Flow4 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.slot(slot)).flow).read_volatile() }
    }

    fn rest_of_key(&self, slot: usize) -> &AtomicU64 {
        // SAFETY: aligned and inside the mapping.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.slot(slot)).key.0[1]) }
    }

    /// Of two that remove it one gives it back.
    fn give_back(&self, slot: usize, key: &FlowKey4) {
        let rest = self.rest_of_key(slot);
        let mine = rest.compare_exchange(key.0[1], 0, Ordering::AcqRel, Ordering::Relaxed);
        if mine.is_ok() {
            let tag = TAG_MASK << (TAG_BITS * slot as u32);
            self.word().fetch_and(!tag, Ordering::AcqRel);
        }
    }

    /// Whether something to a receiver of this bucket is in a bucket of its own.
    fn settle(&self, is_straying: bool) {
        let settled = |tags: u64| {
            let stays = is_straying || tags & STRAYED != 0;
            let rest = tags & !STRAYS;
            Some(if stays { rest | STRAYING } else { rest })
        };
        // It always succeeds.
        let _ = self
            .word()
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, settled);
    }

    /// False: the bucket is full.
    fn take(&self, tag: u64, key: &FlowKey4, flow: &Flow4) -> bool {
        let free = |tags: u64| (0..BUCKET_SLOTS).find(|slot| tag_of(tags, *slot) == 0);
        let taken = self
            .word()
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |tags| {
                free(tags).map(|slot| tags | tag << (TAG_BITS * slot as u32))
            });
        let Some(slot) = taken.ok().and_then(free) else {
            return false;
        };
        // SAFETY: inside the mapping, and this thread's slot until the key is whole.
        unsafe {
            (&raw mut (*self.slot(slot)).flow).write_volatile(*flow);
            (&raw mut (*self.slot(slot)).key.0[0]).write_volatile(key.0[0]);
        }
        self.rest_of_key(slot).store(key.0[1], Ordering::Release);
        true
    }
}

/// `element` is mapped.
fn store_service(element: NonNull<BackendElement>, service: u32) {
    // SAFETY: an aligned field inside the mapping.
    unsafe { AtomicU32::from_ptr(&raw mut (*element.as_ptr()).backend.service) }
        .store(service, Ordering::Release);
}
