//! Which runs of the slot array are in use: a buddy allocator. Runs are powers of two, aligned to
//! their size, so that a freed run merges with its neighbour.

use std::collections::BTreeSet;

#[derive(Debug)]
pub(crate) struct SlotAllocator {
    /// `free[order]`: bases of free runs of `1 << order` slots. No two buddies are both free.
    free: Vec<BTreeSet<u32>>,
}

impl SlotAllocator {
    /// `len` is a power of two.
    pub(crate) fn new(len: u32) -> Self {
        let top = len.ilog2() as usize;
        let mut free = vec![BTreeSet::new(); top + 1];
        free[top].insert(0);
        Self { free }
    }

    /// The order of the smallest run that holds `len` slots.
    pub(crate) fn order_of(len: u32) -> u8 {
        len.max(1).next_power_of_two().ilog2() as u8
    }

    pub(crate) fn allocate(&mut self, order: u8) -> Option<u32> {
        let order = order as usize;
        let from = (order..self.free.len()).find(|&order| !self.free[order].is_empty())?;
        let base = self.free[from].pop_first()?;
        for split in (order..from).rev() {
            self.free[split].insert(base + (1 << split));
        }
        Some(base)
    }

    /// Takes exactly this run, if it is free.
    pub(crate) fn reserve(&mut self, base: u32, order: u8) -> bool {
        let order = order as usize;
        let Some(from) = (order..self.free.len())
            .find(|&candidate| self.free[candidate].contains(&(base & !((1u32 << candidate) - 1))))
        else {
            return false;
        };
        let start = base & !((1u32 << from) - 1);
        self.free[from].remove(&start);
        let mut start = start;
        for split in (order..from).rev() {
            let upper = start + (1 << split);
            if base >= upper {
                self.free[split].insert(start);
                start = upper;
            } else {
                self.free[split].insert(upper);
            }
        }
        true
    }

    pub(crate) fn release(&mut self, base: u32, order: u8) {
        let mut base = base;
        let mut order = order as usize;
        while order + 1 < self.free.len() && self.free[order].remove(&(base ^ (1 << order))) {
            base &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(base);
    }

    pub(crate) fn free_slots(&self) -> u32 {
        self.free
            .iter()
            .enumerate()
            .map(|(order, runs)| (runs.len() as u32) << order)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_never_overlap_and_all_come_back(
            steps in prop::collection::vec((0u8..6, any::<prop::sample::Index>(), any::<bool>()), 1..200)
        ) {
            let mut allocator = SlotAllocator::new(256);
            let mut used: Vec<(u32, u8)> = Vec::new();
            for (order, index, release) in steps {
                if release && !used.is_empty() {
                    let (base, order) = used.swap_remove(index.index(used.len()));
                    allocator.release(base, order);
                } else if let Some(base) = allocator.allocate(order) {
                    prop_assert_eq!(base % (1 << order), 0);
                    for (other, its) in &used {
                        prop_assert!(base + (1 << order) <= *other || other + (1 << its) <= base);
                    }
                    used.push((base, order));
                }
                let taken: u32 = used.iter().map(|(_, order)| 1u32 << order).sum();
                prop_assert_eq!(allocator.free_slots(), 256 - taken);
            }
            // A successor that finds the same runs in the kernel reserves exactly them.
            let mut successor = SlotAllocator::new(256);
            for (base, order) in &used {
                prop_assert!(successor.reserve(*base, *order));
                prop_assert!(!successor.reserve(*base, *order));
            }
            prop_assert_eq!(successor.free_slots(), allocator.free_slots());
        }
    }
}
