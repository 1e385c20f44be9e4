//! A BPF map as a typed table. `&self` throughout: the kernel does the locking.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::lpm_trie::Key as AyaLpmKey;
use skep_ebpf_common::Address;
use skep_ebpf_common::event::FlowEvent;
use skep_ebpf_common::flow::{Flow, FlowBucket, FlowHash, FlowKey};
use skep_ebpf_common::node::{Config, Network, Pod, PodAddresses};
use skep_ebpf_common::policy::{Identity, RuleKey};
use skep_ebpf_common::service::*;

use crate::error::Error;
use crate::sys;

/// Plain bytes without padding that the kernel may read and any bytes of which are a value.
///
/// # Safety
/// `repr(C)`, no implicit padding, no invalid bit pattern.
pub(crate) unsafe trait Plain: Copy {}

macro_rules! plain {
    // SAFETY: primitive integers, and layouts whose sizes skep-ebpf-common asserts.
    ($($name:ty),+ $(,)?) => { $(unsafe impl Plain for $name {})+ };
}

plain!(
    u32,
    u64,
    Address,
    FrontendKey,
    Frontend,
    Backend,
    BackendElement,
    AffinityKey,
    Affinity,
    SourceRange,
    ServiceCounters,
    FlowKey,
    Flow,
    FlowBucket,
    FlowHash,
    FlowEvent,
    Pod,
    PodAddresses,
    Network,
    Config,
    Identity,
    RuleKey,
);

/// The kernel's `struct bpf_lpm_trie_key`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Prefix<K> {
    pub(crate) bits: u32,
    pub(crate) data: K,
}

// SAFETY: a u32 before data of 4-byte alignment leaves no gap.
unsafe impl<K: Plain> Plain for Prefix<K> {}

const _: () = assert!(size_of::<Prefix<Address>>() == size_of::<AyaLpmKey<Address>>());

#[derive(Debug)]
pub(crate) struct Table<K, V> {
    name: &'static str,
    limit: u32,
    fd: OwnedFd,
    layout: PhantomData<fn(K, V)>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    pub(crate) fn new(name: &'static str, limit: u32, fd: OwnedFd) -> Self {
        Self {
            name,
            limit,
            fd,
            layout: PhantomData,
        }
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, Error> {
        let mut value = MaybeUninit::<V>::uninit();
        // SAFETY: key and value have the map's sizes; the kernel fills the value on success.
        let result = unsafe {
            sys::map_lookup(
                self.fd.as_fd(),
                std::ptr::from_ref(key).cast(),
                value.as_mut_ptr().cast(),
            )
        };
        match result {
            // SAFETY: filled by the kernel.
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(Error::kernel("read", self.name, error)),
        }
    }

    pub(crate) fn set(&self, key: &K, value: &V) -> Result<(), Error> {
        self.update(key, value, 0)
            .map_err(|error| self.not_written(error))
    }

    /// Writes what is not there yet; false: it is there.
    pub(crate) fn add(&self, key: &K, value: &V) -> Result<bool, Error> {
        const BPF_NOEXIST: u64 = 1;
        match self.update(key, value, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(self.not_written(error)),
        }
    }

    fn update(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        // SAFETY: key and value have the map's sizes.
        unsafe {
            sys::map_update(
                self.fd.as_fd(),
                std::ptr::from_ref(key).cast(),
                std::ptr::from_ref(value).cast(),
                flags,
            )
        }
    }

    fn not_written(&self, error: io::Error) -> Error {
        match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => Error::Full {
                table: self.name,
                limit: self.limit,
                hint: "raise the limit of this table and restart the agent",
            },
            _ => Error::kernel("write", self.name, error),
        }
    }

    /// Missing is success.
    pub(crate) fn remove(&self, key: &K) -> Result<(), Error> {
        // SAFETY: the key has the map's size.
        match unsafe { sys::map_delete(self.fd.as_fd(), std::ptr::from_ref(key).cast()) } {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(Error::kernel("remove from", self.name, error)),
        }
    }

    /// Every key, one call each: for small tables, and for tries, which have no batches.
    pub(crate) fn keys(&self) -> Result<Vec<K>, Error> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = MaybeUninit::<K>::uninit();
            let previous = keys
                .last()
                .map_or(std::ptr::null(), |key| std::ptr::from_ref(key).cast());
            // SAFETY: both have the map's key size; the kernel fills `next` on success.
            match unsafe { sys::map_next_key(self.fd.as_fd(), previous, next.as_mut_ptr().cast()) }
            {
                // SAFETY: filled by the kernel.
                Ok(()) => keys.push(unsafe { next.assume_init() }),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(Error::kernel("list", self.name, error)),
            }
            // A table that is changed while it is listed may begin again.
            if keys.len() > 2 * self.limit as usize {
                return Ok(keys);
            }
        }
    }

    /// Calls `visit` for every entry, in batches. An entry that moves meanwhile may be seen twice
    /// or not at all.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&K, &V)) -> Result<(), Error> {
        // A batch must hold the fullest bucket of the hash.
        let mut capacity = 4_096usize;
        let mut position = [0u8; 64];
        let mut first = true;
        loop {
            let mut keys: Vec<MaybeUninit<K>> = vec![MaybeUninit::uninit(); capacity];
            let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::uninit(); capacity];
            // SAFETY: both buffers have room for `capacity` elements, the position is longer than
            // any map's.
            let result = unsafe {
                sys::map_lookup_batch(
                    self.fd.as_fd(),
                    position.as_mut_ptr(),
                    first,
                    keys.as_mut_ptr().cast(),
                    values.as_mut_ptr().cast(),
                    capacity as u32,
                )
            };
            match result {
                Ok((count, last)) => {
                    for (key, value) in keys.iter().zip(&values).take(count as usize) {
                        // SAFETY: the kernel filled the first `count` of both.
                        unsafe { visit(key.assume_init_ref(), value.assume_init_ref()) };
                    }
                    if last {
                        return Ok(());
                    }
                    first = false;
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && capacity < 1 << 20 => {
                    capacity *= 4;
                }
                Err(error) => return Err(Error::kernel("list", self.name, error)),
            }
        }
    }

    /// One value per possible CPU of a per-CPU array.
    pub(crate) fn get_per_cpu(&self, key: &K, cpus: usize) -> Result<Vec<V>, Error> {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::uninit(); cpus];
        // SAFETY: the kernel writes one value, rounded up to 8 bytes, per possible CPU.
        let result = unsafe {
            sys::map_lookup(
                self.fd.as_fd(),
                std::ptr::from_ref(key).cast(),
                values.as_mut_ptr().cast(),
            )
        };
        match result {
            // SAFETY: filled by the kernel.
            Ok(()) => Ok(values
                .iter()
                .map(|value| unsafe { value.assume_init() })
                .collect()),
            Err(error) => Err(Error::kernel("read", self.name, error)),
        }
    }
}

/// CPUs that may ever run: per-CPU maps have a value for each.
pub(crate) fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().unwrap_or("0");
    last.parse::<usize>()
        .map(|last| last + 1)
        .map_err(io::Error::other)
}
