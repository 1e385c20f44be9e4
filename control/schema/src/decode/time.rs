//! RFC 3339 times as Go's `time.Parse` takes and `metav1.Time` writes them.

use std::fmt::Write;

const TIME: &str = "2006-01-02T15:04:05Z07:00";
const MICRO_TIME: &str = "2006-01-02T15:04:05.000000Z07:00";

/// `metav1.Time`: UTC, whole seconds.
///
/// # Errors
/// The text of Go's `time.ParseError`.
pub fn parse_time(text: &str) -> Result<String, String> {
    parse(text, TIME, false)
}

/// `metav1.MicroTime`: UTC, six digits of a second, which the input must have too.
///
/// # Errors
/// The text of Go's `time.ParseError`.
pub fn parse_micro_time(text: &str) -> Result<String, String> {
    parse(text, MICRO_TIME, true)
}

struct Cursor<'a> {
    whole: &'a str,
    rest: &'a str,
    layout: &'static str,
}

impl Cursor<'_> {
    fn cannot(&self, rest: &str, element: &str) -> String {
        format!(
            "parsing time {} as {:?}: cannot parse {} as {element:?}",
            quote(self.whole),
            self.layout,
            quote(rest)
        )
    }

    fn out_of_range(&self, what: &str) -> String {
        format!("parsing time {}: {what} out of range", quote(self.whole))
    }

    fn number(&mut self, digits: usize, element: &str) -> Result<i64, String> {
        let bytes = self.rest.as_bytes();
        if bytes.len() < digits || !bytes[..digits].iter().all(u8::is_ascii_digit) {
            return Err(self.cannot(self.rest, element));
        }
        let (number, rest) = self.rest.split_at(digits);
        self.rest = rest;
        number.parse().map_err(|_| self.cannot(number, element))
    }

    fn literal(&mut self, literal: &str) -> Result<(), String> {
        match self.rest.strip_prefix(literal) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(self.cannot(self.rest, literal)),
        }
    }
}

/// Go's quoting inside a ParseError: ASCII quotes and backslashes escaped, other bytes in hex.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(character);
            }
            ' '..='~' => quoted.push(character),
            _ => {
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(quoted, "\\x{byte:02x}");
                }
            }
        }
    }
    quoted.push('"');
    quoted
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a civil date (proleptic Gregorian).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

fn parse(text: &str, layout: &'static str, micro: bool) -> Result<String, String> {
    let mut cursor = Cursor {
        whole: text,
        rest: text,
        layout,
    };
    let year = cursor.number(4, "2006")?;
    cursor.literal("-")?;
    let month = cursor.number(2, "01")?;
    if !(1..=12).contains(&month) {
        return Err(cursor.out_of_range("month"));
    }
    cursor.literal("-")?;
    let day = cursor.number(2, "02")?;
    cursor.literal("T")?;
    // Go's "15" takes one digit or two.
    let two = cursor
        .rest
        .as_bytes()
        .get(1)
        .is_some_and(u8::is_ascii_digit);
    let hour = cursor.number(if two { 2 } else { 1 }, "15")?;
    if hour > 23 {
        return Err(cursor.out_of_range("hour"));
    }
    cursor.literal(":")?;
    let minute = cursor.number(2, "04")?;
    if minute > 59 {
        return Err(cursor.out_of_range("minute"));
    }
    cursor.literal(":")?;
    let second = cursor.number(2, "05")?;
    if second > 59 {
        return Err(cursor.out_of_range("second"));
    }
    let mut micros = 0;
    if micro {
        let bytes = cursor.rest.as_bytes();
        if bytes.len() < 7 || bytes[0] != b'.' || !bytes[1..7].iter().all(u8::is_ascii_digit) {
            return Err(cursor.cannot(cursor.rest, ".000000"));
        }
        micros = cursor.rest[1..7].parse::<i64>().unwrap_or_default();
        cursor.rest = &cursor.rest[7..];
    } else if let Some(rest) = cursor.rest.strip_prefix(['.', ',']) {
        // A fraction is taken although the layout has none, if digits follow.
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits > 0 {
            cursor.rest = &rest[digits..];
        }
    }
    let zone = cursor.rest;
    let mut offset_seconds = 0;
    if let Some(rest) = zone.strip_prefix('Z') {
        cursor.rest = rest;
    } else {
        let bytes = zone.as_bytes();
        let shaped = bytes.len() >= 6
            && matches!(bytes[0], b'+' | b'-')
            && bytes[3] == b':'
            && [1, 2, 4, 5].iter().all(|at| bytes[*at].is_ascii_digit());
        if !shaped {
            return Err(cursor.cannot(zone, "Z07:00"));
        }
        let digit = |at: usize| i64::from(bytes[at] - b'0');
        let hours = digit(1) * 10 + digit(2);
        let minutes = digit(4) * 10 + digit(5);
        if hours > 24 {
            return Err(cursor.out_of_range("time zone offset hour"));
        }
        if minutes > 60 {
            return Err(cursor.out_of_range("time zone offset minute"));
        }
        offset_seconds = hours * 3600 + minutes * 60;
        if bytes[0] == b'-' {
            offset_seconds = -offset_seconds;
        }
        cursor.rest = &zone[6..];
    }
    if !cursor.rest.is_empty() {
        return Err(format!(
            "parsing time {}: extra text: {}",
            quote(text),
            quote(cursor.rest)
        ));
    }
    if day < 1 || day > days_in(year, month) {
        return Err(cursor.out_of_range("day"));
    }
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second
        - offset_seconds;
    Ok(format_time(seconds, micro.then_some(micros)))
}

/// `2026-11-23T10:00:00Z` from seconds since 1970; with microseconds if given.
pub(crate) fn format_time(seconds: i64, micros: Option<i64>) -> String {
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if let Some(micros) = micros {
        let _ = write!(text, ".{micros:06}");
    }
    text.push('Z');
    text
}

/// Seconds since 1970 and nanoseconds of a time that [`parse_time`] or [`parse_micro_time`] wrote.
pub(crate) fn to_unix(text: &str) -> Option<(i64, i64)> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let days = days_from_civil(number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let seconds = days * 86_400 + number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    let nanos = match text.as_bytes().get(19) {
        Some(b'.') => number(20, 26)? * 1000,
        _ => 0,
    };
    Some((seconds, nanos))
}
