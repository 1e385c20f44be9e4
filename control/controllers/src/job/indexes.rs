//! Sets of completion indexes as the API writes them: `0,3-5,8`.

use std::collections::BTreeSet;

/// Unreadable parts, and indexes outside `0..limit`, are skipped.
pub(super) fn parse(text: &str, limit: i32) -> BTreeSet<i32> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<i32>(), last.trim().parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(limit.saturating_sub(1)));
        }
    }
    indexes
}

/// Runs of three and more become a range; two stay apart, as upstream writes them.
pub(super) fn format(indexes: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let shown = runs.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    shown.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text() {
        assert_eq!(format(&[0, 3, 4, 5, 7, 8].into()), "0,3-5,7,8");
        assert_eq!(format(&BTreeSet::new()), "");
        assert_eq!(parse("0,3-5,x,9-", 5), [0, 3, 4].into());
        assert_eq!(parse("0-2000000000", 3), [0, 1, 2].into());
    }

    proptest! {
        #[test]
        fn round_trip(indexes in prop::collection::btree_set(0i32..50, 0..30)) {
            prop_assert_eq!(parse(&format(&indexes), 50), indexes);
        }
    }
}
