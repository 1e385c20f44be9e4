//! Gives back what the agent holds and does not use: code that ran once, when it started or when many pods did, and what
//! was free afterwards.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use skep_datapath::{give_back_memory, share_memory};
use tokio::runtime::{Builder, Runtime};
use tracing::{debug, warn};

use crate::kubelet::counters::Counters;

/// Between two looks. An agent that has begun nothing from one to the next is at rest.
const LOOK: Duration = Duration::from_secs(10);
/// Of the runtime.
const THREADS: usize = 2;

/// To be called before there are threads.
pub fn prepare() {
    share_memory();
    // A huge page of which little is used counts as a whole.
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        warn!(%error, "memory comes in huge pages");
    }
}

/// What the agent runs in.
///
/// # Errors
/// As thread creation.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
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

pub async fn run(counters: &Counters) -> Infallible {
    let mut looks = Looks::default();
    loop {
        tokio::time::sleep(LOOK).await;
        if !looks.look(counters.actions()) {
            continue;
        }
        give_back_memory();
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
