//! Exponential waits with a cap and jitter. Every retry in the control plane takes its delay from here.

use std::time::Duration;

use rand::RngExt;

/// `base * 2^n`, at most `cap`, then up to 20 % shorter at random so that failures do not march in step.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub base: Duration,
    pub cap: Duration,
}

impl Backoff {
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap }
    }

    /// The delay before attempt `failures + 1`; `failures` = 0 is the first retry.
    pub fn delay(&self, failures: u32) -> Duration {
        jitter(self.ceiling(failures))
    }

    /// The delay without jitter.
    pub fn ceiling(&self, failures: u32) -> Duration {
        let factor = 1u32.checked_shl(failures.min(30)).unwrap_or(u32::MAX);
        self.base
            .checked_mul(factor)
            .unwrap_or(self.cap)
            .min(self.cap)
    }
}

/// Between 80 % and 100 % of `duration`.
pub fn jitter(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.8..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap() {
        let backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
        assert_eq!(backoff.ceiling(0), Duration::from_millis(5));
        assert_eq!(backoff.ceiling(3), Duration::from_millis(40));
        assert_eq!(backoff.ceiling(8), Duration::from_secs(1));
        assert_eq!(backoff.ceiling(u32::MAX), Duration::from_secs(1));
        for failures in 0..40 {
            let delay = backoff.delay(failures);
            assert!(delay <= backoff.ceiling(failures) && delay >= backoff.ceiling(failures) / 2);
        }
    }
}
