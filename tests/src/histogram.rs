//! Latencies in buckets that grow with the value: 1 % wide, a fixed size however many are recorded.

/// Each power of two is split into this many buckets.
const STEPS: u64 = 128;
const STEP_BITS: u32 = STEPS.trailing_zeros();

#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; index(u64::MAX) + 1],
            total: 0,
        }
    }
}

impl Histogram {
    pub fn record(&mut self, value: u64) {
        self.counts[index(value)] += 1;
        self.total += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    /// The lower bound of the bucket that holds the value at this share, `0.5` for the median. 0 if empty.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return lower_bound(index);
            }
        }
        0
    }
}

fn index(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let exponent = u64::from(value.ilog2() - STEP_BITS);
    ((exponent + 1) * STEPS + (value >> exponent) - STEPS) as usize
}

fn lower_bound(index: usize) -> u64 {
    let index = index as u64;
    if index < STEPS {
        return index;
    }
    let exponent = index / STEPS - 1;
    (STEPS + index % STEPS) << exponent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_at_most_a_128th_below_its_values() {
        for value in [
            0,
            1,
            127,
            128,
            129,
            255,
            256,
            1000,
            123_456,
            u64::MAX / 3,
            u64::MAX,
        ] {
            let low = lower_bound(index(value));
            assert!(
                low <= value && value - low <= value / STEPS,
                "{value}: {low}"
            );
        }
        for value in 0..5000 {
            assert!(index(value) <= index(value + 1));
        }
    }

    #[test]
    fn quantiles() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0);
        for value in 1..=20 {
            histogram.record(value);
        }
        assert_eq!(
            (
                histogram.quantile(0.5),
                histogram.quantile(0.99),
                histogram.quantile(1.0)
            ),
            (10, 20, 20)
        );
        let mut both = Histogram::default();
        both.add(&histogram);
        both.add(&histogram);
        assert_eq!((both.count(), both.quantile(0.5)), (40, 10));
    }
}
