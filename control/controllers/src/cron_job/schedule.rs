//! Cron schedules: five fields, names, lists, ranges, steps, and the `@` shorthands, in a time zone. Pure.

use jiff::{Timestamp, ToSpan, Zoned, civil, tz::TimeZone};

/// A parsed schedule; each field is a set of bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// Sunday is 0.
    weekdays: u64,
    /// With both restricted, either one is enough.
    either_day: bool,
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// 29 February comes at least every eight years; a schedule without a match before that never matches.
const SEARCH_YEARS: i32 = 8;

/// Why a schedule cannot be read, naming the field.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ScheduleError {
    #[error("expected exactly 5 fields, found {0}")]
    FieldCount(usize),
    #[error("{0:?} is not a valid {1}")]
    Field(String, &'static str),
}

impl Schedule {
    /// # Errors
    /// The field that is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, ScheduleError> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(ScheduleError::FieldCount(fields.len()));
        };
        let is_any = |field: &str| field.starts_with('*') || field.starts_with('?');
        let mut weekday_set = field(weekdays, 0, 7, &WEEKDAYS, "day of the week")?;
        if weekday_set & (1 << 7) != 0 {
            weekday_set = (weekday_set | 1) & !(1 << 7);
        }
        Ok(Self {
            minutes: field(minutes, 0, 59, &[], "minute")?,
            hours: field(hours, 0, 23, &[], "hour")?,
            days: field(days, 1, 31, &[], "day of the month")?,
            months: field(months, 1, 12, &MONTHS, "month")?,
            weekdays: weekday_set,
            either_day: !is_any(days) && !is_any(weekdays),
        })
    }

    /// The first time strictly after `after`. A local time that a change of the clock skips is due right after the gap.
    pub(crate) fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = after.to_zoned(zone.clone());
        let first = start.date();
        let mut date = first;
        while date.year() - first.year() <= i16::try_from(SEARCH_YEARS).unwrap_or(i16::MAX) {
            if self.matches_date(date)
                && let Some(time) = self.first_on(date, after, zone)
            {
                return Some(time);
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    fn matches_date(&self, date: civil::Date) -> bool {
        let has = |set: u64, number: i8| set & (1u64 << number.clamp(0, 63)) != 0;
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month())
            && if self.either_day {
                day || weekday
            } else {
                day && weekday
            }
    }

    fn first_on(&self, date: civil::Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        for hour in (0i8..24).filter(|hour| self.hours & (1 << hour) != 0) {
            for minute in (0i8..60).filter(|minute| self.minutes & (1 << minute) != 0) {
                let local = date.at(hour, minute, 0, 0);
                let zoned: Option<Zoned> = zone.to_ambiguous_zoned(local).compatible().ok();
                if let Some(time) = zoned
                    .map(|zoned| zoned.timestamp())
                    .filter(|time| *time > after)
                {
                    return Some(time);
                }
            }
        }
        None
    }
}

fn field(
    text: &str,
    min: u32,
    max: u32,
    names: &[&str],
    what: &'static str,
) -> Result<u64, ScheduleError> {
    let bad = || ScheduleError::Field(text.to_owned(), what);
    let mut set = 0u64;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (
                range,
                Some(
                    step.parse::<u32>()
                        .ok()
                        .filter(|step| *step > 0)
                        .ok_or_else(bad)?,
                ),
            ),
            None => (part, None),
        };
        let number = |text: &str| -> Result<u32, ScheduleError> {
            let name = text.to_ascii_lowercase();
            let by_name = names.iter().position(|known| *known == name);
            let number = match by_name {
                // Months count from 1, days of the week from 0: each list starts at its field's minimum.
                Some(index) => u32::try_from(index).map_err(|_| bad())? + min,
                None => text.parse().map_err(|_| bad())?,
            };
            if (min..=max).contains(&number) {
                Ok(number)
            } else {
                Err(bad())
            }
        };
        let (first, last) = match range {
            "*" | "?" => (min, max),
            _ => match range.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => {
                    let first = number(range)?;
                    // `5/15` means from 5 on.
                    (first, if step.is_some() { max } else { first })
                }
            },
        };
        if first > last {
            return Err(bad());
        }
        let step = usize::try_from(step.unwrap_or(1)).map_err(|_| bad())?;
        for number in (first..=last).step_by(step) {
            set |= 1 << number;
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(schedule: &str, zone: &str, after: &str, expected: &str) {
        let schedule = Schedule::parse(schedule).expect("a schedule");
        let zone = TimeZone::get(zone).expect("a zone");
        let next = schedule.next_after(after.parse().expect("a time"), &zone);
        assert_eq!(next.map(|time| time.to_string()).as_deref(), Some(expected));
    }

    #[test]
    fn next_times() {
        check(
            "* * * * *",
            "UTC",
            "2026-01-01T00:00:00Z",
            "2026-01-01T00:01:00Z",
        );
        check(
            "*/15 * * * *",
            "UTC",
            "2026-01-01T00:07:30Z",
            "2026-01-01T00:15:00Z",
        );
        check(
            "5/20 * * * *",
            "UTC",
            "2026-01-01T00:26:00Z",
            "2026-01-01T00:45:00Z",
        );
        check(
            "0 9-17/4 * * MON-FRI",
            "UTC",
            "2026-01-02T14:00:00Z",
            "2026-01-02T17:00:00Z",
        );
        check(
            "0 9 * * mon-fri",
            "UTC",
            "2026-01-02T14:00:00Z",
            "2026-01-05T09:00:00Z",
        );
        check(
            "30 4 1,15 * 5",
            "UTC",
            "2026-01-01T05:00:00Z",
            "2026-01-02T04:30:00Z",
        );
        check(
            "0 0 29 feb *",
            "UTC",
            "2026-01-01T00:00:00Z",
            "2028-02-29T00:00:00Z",
        );
        check(
            "@weekly",
            "UTC",
            "2026-01-01T00:00:00Z",
            "2026-01-04T00:00:00Z",
        );
        check(
            "0 0 * * 7",
            "UTC",
            "2026-01-01T00:00:00Z",
            "2026-01-04T00:00:00Z",
        );
        check(
            "0 9 * * *",
            "Europe/Berlin",
            "2026-07-01T06:00:00Z",
            "2026-07-01T07:00:00Z",
        );
        check(
            "0 9 * * *",
            "Asia/Kolkata",
            "2026-07-01T06:00:00Z",
            "2026-07-02T03:30:00Z",
        );
        // 02:30 does not exist on the day the clocks go forward.
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00:00Z",
            "2026-03-29T01:30:00Z",
        );
    }

    #[test]
    fn what_cannot_be_read() {
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "a * * * *",
            "5-1 * * * *",
            "*/0 * * * *",
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad:?}");
        }
        let never = Schedule::parse("0 0 31 2 *").expect("readable");
        assert_eq!(
            never.next_after(Timestamp::UNIX_EPOCH, &TimeZone::UTC),
            None
        );
    }
}
