//! The five fields of a cron schedule, checked in the words of the parser that upstream uses.

use crate::field::quoted;

/// # Errors
/// What is wrong with the schedule.
pub(super) fn check(schedule: &str) -> Result<(), String> {
    if schedule.starts_with('@') {
        return check_descriptor(schedule);
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    const MONTHS: &[&str] = &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let bounds = [
        (0, 59, &[][..]),
        (0, 23, &[]),
        (1, 31, &[]),
        (1, 12, MONTHS),
        (0, 6, DAYS),
    ];
    for (field, (low, high, names)) in fields.iter().zip(bounds) {
        for part in field.split(',').filter(|part| !part.is_empty()) {
            check_range(part, low, high, names)?;
        }
    }
    Ok(())
}

fn check_descriptor(schedule: &str) -> Result<(), String> {
    match schedule {
        "@yearly" | "@annually" | "@monthly" | "@weekly" | "@daily" | "@midnight" | "@hourly" => {
            Ok(())
        }
        _ => match schedule.strip_prefix("@every ") {
            Some(duration) => check_duration(duration)
                .map_err(|problem| format!("failed to parse duration {schedule}: time: {problem}")),
            None => Err(format!("unrecognized descriptor: {schedule}")),
        },
    }
}

/// `1h30m`, as Go reads durations.
fn check_duration(text: &str) -> Result<(), String> {
    let shown = quoted(text);
    let invalid = || format!("invalid duration {shown}");
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest.is_empty() {
        return Err(invalid());
    }
    if rest == "0" {
        return Ok(());
    }
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c| !is_number(c)).unwrap_or(rest.len()));
        if !number.contains(|c: char| c.is_ascii_digit()) || number.matches('.').count() > 1 {
            return Err(invalid());
        }
        let (unit, after) = after.split_at(after.find(is_number).unwrap_or(after.len()));
        match unit {
            "" => return Err(format!("missing unit in duration {shown}")),
            "ns" | "us" | "µs" | "μs" | "ms" | "s" | "m" | "h" => rest = after,
            other => {
                let unit = quoted(other);
                return Err(format!("unknown unit {unit} in duration {shown}"));
            }
        }
    }
    Ok(())
}

/// `*`, `?`, `3`, `3-5`, `*/2`, `3-5/2`
fn check_range(text: &str, low: u32, high: u32, names: &[&str]) -> Result<(), String> {
    let mut steps = text.split('/');
    let range = steps.next().unwrap_or("");
    let step = steps.next();
    if steps.next().is_some() {
        return Err(format!("too many slashes: {text}"));
    }
    let parts: Vec<&str> = range.split('-').collect();
    let (start, mut end) = if matches!(parts[0], "*" | "?") {
        (low, high)
    } else {
        let start = number_or_name(parts[0], low, names)?;
        match parts[..] {
            [_] => (start, start),
            [_, end] => (start, number_or_name(end, low, names)?),
            _ => return Err(format!("too many hyphens: {text}")),
        }
    };
    let mut stride = 1;
    if let Some(step) = step {
        stride = number(step)?;
        if parts.len() == 1 {
            end = high;
        }
    }
    if start < low {
        return Err(format!(
            "beginning of range ({start}) below minimum ({low}): {text}"
        ));
    }
    if end > high {
        return Err(format!(
            "end of range ({end}) above maximum ({high}): {text}"
        ));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {text}"
        ));
    }
    if stride == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    Ok(())
}

fn number_or_name(text: &str, first: u32, names: &[&str]) -> Result<u32, String> {
    let name = names
        .iter()
        .position(|name| name.eq_ignore_ascii_case(text));
    match name.and_then(|index| u32::try_from(index).ok()) {
        Some(index) => Ok(index + first),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(number) if number < 0 => Err(format!("negative number ({number}) not allowed: {text}")),
        Ok(number) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        Err(_) => Err(format!(
            "failed to parse int from {text}: strconv.Atoi: parsing {}: invalid syntax",
            quoted(text)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in [
            "* * * * *",
            "*/5 0-3 1,15 jan-mar mon",
            "@daily",
            "@every 1h30m",
            "? * * * 0",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let bad = |schedule: &str| check(schedule).expect_err("refused");
        assert_eq!(
            bad("* * * *"),
            "expected exactly 5 fields, found 4: [* * * *]"
        );
        assert_eq!(
            bad("60 * * * *"),
            "end of range (60) above maximum (59): 60"
        );
        assert_eq!(
            bad("* * 0 * *"),
            "beginning of range (0) below minimum (1): 0"
        );
        assert_eq!(
            bad("5-3 * * * *"),
            "beginning of range (5) beyond end of range (3): 5-3"
        );
        assert_eq!(
            bad("*/0 * * * *"),
            "step of range should be a positive number: */0"
        );
        assert_eq!(bad("@never"), "unrecognized descriptor: @never");
        assert!(bad("x * * * *").starts_with("failed to parse int from x"));
        for (duration, problem) in [
            ("x", "invalid duration \"x\""),
            ("5", "missing unit in duration \"5\""),
            ("5d", "unknown unit \"d\" in duration \"5d\""),
        ] {
            let schedule = format!("@every {duration}");
            let expected = format!("failed to parse duration {schedule}: time: {problem}");
            assert_eq!(bad(&schedule), expected);
        }
    }
}
