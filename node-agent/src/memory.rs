//! Gives back what the agent holds and does not use: code that ran once, when it started or when many pods did, and what
//! was free afterwards.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use skep_datapath::give_back_memory;
use tokio::runtime::{Builder, Runtime};
use tracing::{debug, warn};

use crate::kubelet::counters::Counters;

/// Between two looks. An agent that has begun nothing from one to the next is at rest.
const LOOK: Duration = Duration::from_secs(10);

/// Of the runtime.
const THREADS: usize = 2;

/// How often memory was to be given back: what is free belongs to the thread that had it, and only that one gives it back.
static RELEASES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static DONE: Cell<u64> = const { Cell::new(0) };
}

/// The allocator asks for huge pages, and a huge page of which little is used counts as a whole: a third of what an idle
/// agent holds.
pub fn without_huge_pages() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        warn!(%error, "memory comes in huge pages");
    }
}

/// What the agent runs in: threads that give back what they do not use.
///
/// # Errors
/// As thread creation.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .on_thread_park(|| {
            let asked = RELEASES.load(Ordering::Relaxed);
            if DONE.replace(asked) != asked {
                give_back_memory();
            }
        })
        .build()
}

/// Of this thread now, and of the runtime's when they next have nothing to do.
pub fn give_back() {
    RELEASES.fetch_add(1, Ordering::Relaxed);
    give_back_memory();
    for _ in 0..THREADS {
        // Wakes one that sleeps.
        tokio::spawn(async {});
    }
}

/// How many actions had been begun.
#[derive(Debug, Default)]
struct Looks {
    last: Option<u64>,
    released: Option<u64>,
}

impl Looks {
    /// Whether it is time for a release: once when the agent comes to rest.
    fn look(&mut self, begun: u64) -> bool {
        let rests = self.last.replace(begun) == Some(begun);
        rests && self.released.replace(begun) != Some(begun)
    }
}

/// To be run by the thread that everything was set up on, which is none of the runtime's.
pub async fn run(counters: &Counters) -> Infallible {
    let mut looks = Looks::default();
    loop {
        tokio::time::sleep(LOOK).await;
        if !looks.look(counters.actions()) {
            continue;
        }
        give_back();
        match skep_datapath::release_program() {
            Ok(()) => debug!("released what is not used"),
            Err(error) => warn!(%error, "memory stays in use that is not needed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_released_once_when_the_agent_comes_to_rest() {
        let mut looks = Looks::default();
        let seen = [0, 0, 0, 7, 9, 9, 9, 10, 10].map(|begun| looks.look(begun));
        let (no, yes) = (false, true);
        assert_eq!(seen, [no, yes, no, no, no, yes, no, no, yes]);
    }
}
