//! One line a step on standard error, so that a long step is seen to run and results can be piped.

use std::io::Write;
use std::time::Instant;

use anyhow::Result;

/// Runs one step and says how long it took. A step that had nothing to do is silent: see [`note`].
pub fn step<T>(what: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("▸ {what}");
    let start = Instant::now();
    let result = run();
    let seconds = start.elapsed().as_secs_f32();
    match &result {
        Ok(_) => eprintln!("  done in {seconds:.1} s"),
        Err(_) => eprintln!("  failed after {seconds:.1} s"),
    }
    result
}

/// Says something without a step of its own.
pub fn note(what: &str) {
    eprintln!("  {what}");
}

/// Prints to standard output and ignores a reader that went away (`cargo xtask up | head`).
pub fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
