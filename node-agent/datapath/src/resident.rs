//! What of the running program is in memory. Nothing of the datapath, but `unsafe` stands in this crate.
//!
//! The kernel maps 64 KiB around each place of a program that is reached, and keeps all of it mapped: code that runs once
//! (the start, the loading of programs, options) counts as the process's memory for good.

use std::io;
use std::ops::Range;

/// Unmaps the code and the constants of this program. What is needed again is mapped again, from the page cache.
///
/// # Errors
/// As madvise(2), or procfs is not there.
pub fn release_program() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    for range in unwritten(&maps, release_program as *const () as usize) {
        let start = std::ptr::without_provenance_mut(range.start);
        // SAFETY: private pages of a file that nobody can have written: they come back as they were.
        if unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Where `maps` of proc(5) has the file with the code at `inside`, up to that code: what comes after it holds addresses
/// that were filled in when the program was started, though it may be read-only by now.
fn unwritten(maps: &str, inside: usize) -> Vec<Range<usize>> {
    let parsed = maps.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        let range = number(start)?..number(end)?;
        let (permissions, _offset) = (words.next()?, words.next()?);
        let file = (words.next()?, words.next()?);
        Some((range, permissions, file))
    });
    let all: Vec<_> = parsed.collect();
    let Some((code, _, file)) = all.iter().find(|(range, ..)| range.contains(&inside)) else {
        return Vec::new();
    };
    let of_program = all.iter().filter(|(range, permissions, of)| {
        let written = permissions.contains('w') || permissions.contains('s');
        of == file && range.end <= code.end && !written
    });
    of_program.map(|(range, ..)| range.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_at_the_start_stays() {
        let maps = "\
            55d0c8c00000-55d0c9600000 r--p 00000000 fe:00 77    /bin/agent\n\
            55d0c9600000-55d0cb300000 r-xp 00a00000 fe:00 77    /bin/agent\n\
            55d0cb300000-55d0cb400000 r--p 02700000 fe:00 77    /bin/agent\n\
            55d0cb400000-55d0cb500000 rw-p 02800000 fe:00 77    /bin/agent\n\
            55d0cb500000-55d0cb600000 rw-p 00000000 00:00 0     [heap]\n\
            7f0000000000-7f0000100000 r-xp 00000000 fe:00 78    /lib/libc.so.6\n";
        let found = unwritten(maps, 0x55d0_c970_0000);
        assert_eq!(
            found,
            [
                0x55d0_c8c0_0000..0x55d0_c960_0000,
                0x55d0_c960_0000..0x55d0_cb30_0000
            ]
        );
        assert_eq!(unwritten(maps, 1), []);
    }

    /// Resident pages of files, of statm in proc(5).
    fn resident() -> u64 {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split_whitespace().nth(2).unwrap().parse().unwrap()
    }

    /// Bytes of memory that is no file's.
    fn anonymous() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() << 10
    }

    #[test]
    fn what_lies_free_between_things_that_stay_is_given_back() {
        crate::share_memory();
        let mut things: Vec<Box<[u8]>> = (0..32_768).map(|_| vec![1; 1 << 10].into()).collect();
        let full = anonymous();
        let mut number = 0;
        things.retain(|_| {
            number += 1;
            number % 256 == 0
        });
        crate::give_back_memory();
        let left = anonymous();
        assert!(left + (24 << 20) < full, "{left} of {full} bytes");
        assert!(things.iter().all(|thing| thing[0] == 1));
    }

    #[test]
    fn the_program_goes_on_without_what_it_does_not_use() {
        let before = resident();
        release_program().unwrap();
        let after = resident();
        assert!(after < before, "{after} pages, {before} before");
        assert!(
            unwritten(
                &std::fs::read_to_string("/proc/self/maps").unwrap(),
                release_program as *const () as usize
            )
            .iter()
            .any(|range| range.contains(&(resident as *const () as usize)))
        );
    }
}
