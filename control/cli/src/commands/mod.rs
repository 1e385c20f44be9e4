//! One module for each family of commands.

use std::time::Duration;

pub mod certificate;
pub mod config;
pub mod create;
pub mod datapath;
pub mod debug;
pub mod describe;
pub mod diff;
pub mod get;
pub mod info;
pub mod nodes;
pub mod plugin;
pub mod pods;
pub mod proxy;
pub mod trace;
pub mod workloads;
pub mod write;

/// Go's durations, as kubectl's flags take them: `90s`, `1m30s`, `2h`, a bare number of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text} is out of range"));
    }
    let wrong = || format!("\"{text}\" is not a duration; want for example 30s, 5m or 1h30m");
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit_end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        total += number
            * match &rest[..unit_end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        for wrong in ["", "s", "5x", "-1s", "1e400"] {
            assert!(duration(wrong).is_err() || wrong.is_empty(), "{wrong}");
        }
    }
}
