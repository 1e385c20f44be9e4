//! Read-modify-write of shared words (Linux 5.12). LLVM's BPF target has it; Rust's says that it does
//! not, so it is written out.

use core::arch::asm;

/// Makes a word of 0 `value`. False: it was not 0, and stays.
///
/// # Safety
/// `word` points into an element of a map and is aligned.
#[inline(always)]
pub unsafe fn take(word: *mut u64, value: u64) -> bool {
    let mut found = 0u64;
    // SAFETY: the caller's; r0 is both the value expected and the one found.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {value})",
            word = in(reg) word,
            value = in(reg) value,
            inout("r0") found,
        );
    }
    found == 0
}

/// # Safety
/// As for [`take`].
#[inline(always)]
pub unsafe fn increment(word: *mut u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) += {one}",
            word = in(reg) word,
            one = in(reg) 1u64,
        );
    }
}
