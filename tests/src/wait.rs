//! Waiting for a state instead of for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const POLL: Duration = Duration::from_millis(100);

/// Polls until `check` succeeds. When time is up, says what was seen last.
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() > deadline => {
                bail!(
                    "waited {} s for {what}; last seen: {last:#}",
                    limit.as_secs()
                )
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}
