//! Read-modify-write of shared words (Linux 5.12). LLVM's BPF target has it; Rust's says that it does
//! not, so it is written out. And a word that the compiler knows nothing of.

use core::arch::asm;

/// Makes a word of 0 `value`. False: it was not 0, and stays.
///
/// # Safety
/// `word` points into an element of a map and is aligned.
#[inline(always)]
pub unsafe fn take(word: *mut u64, value: u64) -> bool {
    // SAFETY: the caller's.
    unsafe { exchange(word, 0, value) }
}

/// Makes a word of `expected` `value`. False: it was another, and stays.
///
/// # Safety
/// As for [`take`].
#[inline(always)]
pub unsafe fn exchange(word: *mut u64, expected: u64, value: u64) -> bool {
    let mut found = expected;
    // SAFETY: the caller's; r0 is both the value expected and the one found.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {value})",
            word = in(reg) word,
            value = in(reg) value,
            inout("r0") found,
        );
    }
    found == expected
}

/// # Safety
/// As for [`take`].
#[inline(always)]
pub unsafe fn clear(word: *mut u64, bits: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) &= {rest}",
            word = in(reg) word,
            rest = in(reg) !bits,
        );
    }
}

/// # Safety
/// As for [`take`].
#[inline(always)]
pub unsafe fn set(word: *mut u64, bits: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) |= {bits}",
            word = in(reg) word,
            bits = in(reg) bits,
        );
    }
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

/// The same, and the compiler does not know it.
// VERIFIER: what it computed from what it knows, LLVM would turn into branches, and use a register
// whose bounds were never checked.
#[inline(always)]
pub fn opaque(mut word: u64) -> u64 {
    // SAFETY: changes nothing. (Without an instruction, its line would be that of the next.)
    unsafe { asm!("{word} = {word}", word = inout(reg) word) };
    word
}
