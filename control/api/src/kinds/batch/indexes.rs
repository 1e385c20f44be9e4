//! Lists of a Job's indexes: `1,3-5,7`.

use crate::field::quoted;

/// How many there are, if they are ascending and exist.
pub fn count(indexes: &str, completions: i32) -> Result<i32, String> {
    if indexes.is_empty() {
        return Ok(0);
    }
    let (mut count, mut last) = (0, None);
    for interval in indexes.split(',') {
        let (first, end) = interval_of(interval, completions)?;
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(format!(
                "non-increasing order, previous: {last}, current: {first}"
            ));
        }
        count += end - first + 1;
        last = Some(end);
    }
    Ok(count)
}

/// Where two lists meet first. What cannot be read is passed over: it is reported as such.
pub fn overlap(one: &str, other: &str, completions: i32) -> Option<i32> {
    let read = |indexes: &str| -> Vec<(i32, i32)> {
        let intervals = indexes.split(',');
        intervals
            .filter_map(|interval| interval_of(interval, completions).ok())
            .collect()
    };
    let (one, other) = (read(one), read(other));
    let meets = |(first, end): &(i32, i32)| {
        let met = other
            .iter()
            .find(|(other_first, other_end)| first <= other_end && other_first <= end);
        met.map(|(other_first, _)| *first.max(other_first))
    };
    one.iter().find_map(meets)
}

fn interval_of(interval: &str, completions: i32) -> Result<(i32, i32), String> {
    let parts: Vec<&str> = interval.split('-').collect();
    if parts.len() > 2 {
        return Err(format!(
            "the fragment {} violates the requirement that an index interval can have at most two parts separated by '-'",
            quoted(interval)
        ));
    }
    let number = |text: &str| {
        let number: i64 = text.parse().map_err(|_| {
            let text = quoted(text);
            format!("cannot convert string to integer for index: {text}")
        })?;
        match i32::try_from(number) {
            Ok(number) if number < completions => Ok(number),
            _ => Err(format!("too large index: {}", quoted(text))),
        }
    };
    let first = number(parts[0])?;
    let Some(end) = parts.get(1) else {
        return Ok((first, first));
    };
    let end = number(end)?;
    if first >= end {
        return Err(format!(
            "non-increasing order, previous: {first}, current: {end}"
        ));
    }
    Ok((first, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        for (indexes, expected) in [
            ("", Ok(0)),
            ("0,2-4", Ok(4)),
            ("3,3", Err("non-increasing order, previous: 3, current: 3")),
            ("4-2", Err("non-increasing order, previous: 4, current: 2")),
            ("9", Err("too large index: \"9\"")),
            (
                "a",
                Err("cannot convert string to integer for index: \"a\""),
            ),
        ] {
            assert_eq!(
                count(indexes, 5),
                expected.map_err(str::to_owned),
                "{indexes}"
            );
        }
    }

    #[test]
    fn overlaps() {
        assert_eq!(overlap("0-2,4", "3", 5), None);
        assert_eq!(overlap("0-2,4", "1,4", 5), Some(1));
    }
}
