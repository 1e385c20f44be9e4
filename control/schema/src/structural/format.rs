//! The string formats that upstream's validator knows (go-openapi strfmt).

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine;

use crate::decode::{BASE64, parse_time};

/// Whether a text is of a format; `None` for formats that nobody checks.
pub(super) fn matches(format: &str, text: &str) -> Option<bool> {
    // Upstream drops the dashes of format names.
    Some(match format.replace('-', "").as_str() {
        "datetime" => date_time(text),
        "date" => date(text),
        "duration" => duration(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "uuid" => uuid(text, None),
        "uuid3" => uuid(text, Some(b'3')),
        "uuid4" => uuid(text, Some(b'4')),
        "uuid5" => uuid(text, Some(b'5')),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "creditcard" => credit_card(text),
        "ssn" => social_security(text),
        "rgbcolor" => rgb_color(text),
        "k8sshortname" => text.len() <= 63 && label(text),
        "k8slongname" => text.len() <= 253 && text.split('.').all(label),
        "byte" => BASE64.decode(text).is_ok(),
        "hostname" => hostname(text),
        "email" => email(text),
        "uri" => uri(text),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        }
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|byte| byte.is_ascii_hexdigit()),
        _ => return None,
    })
}

fn date_time(text: &str) -> bool {
    if parse_time(text).is_ok() {
        return true;
    }
    // Also without a zone, as strfmt allows.
    text.len() >= 19 && parse_time(&format!("{text}Z")).is_ok()
}

fn date(text: &str) -> bool {
    text.len() == 10 && parse_time(&format!("{text}T00:00:00Z")).is_ok()
}

/// Go's durations, and `1 day`, `2 weeks` and the like.
fn duration(text: &str) -> bool {
    let units = ["ns", "us", "µs", "ms", "s", "m", "h"];
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        if digits == 0 {
            return false;
        }
        let spaced = rest[digits..].trim_start();
        let name_length = spaced
            .find(|c: char| c.is_ascii_digit() || c == ' ')
            .unwrap_or(spaced.len());
        let (name, after) = spaced.split_at(name_length);
        let words = [
            "nanos",
            "nanoseconds",
            "micros",
            "microseconds",
            "millis",
            "milliseconds",
            "sec",
            "secs",
            "second",
            "seconds",
            "min",
            "mins",
            "minute",
            "minutes",
            "hr",
            "hrs",
            "hour",
            "hours",
            "d",
            "day",
            "days",
            "w",
            "week",
            "weeks",
        ];
        if !units.contains(&name) && !words.contains(&name) {
            return false;
        }
        rest = after.trim_start();
        parts += 1;
    }
    parts > 0
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let Ok(bits) = bits.parse::<u8>() else {
        return false;
    };
    match (address.parse::<Ipv4Addr>(), address.parse::<Ipv6Addr>()) {
        (Ok(_), _) => bits <= 32,
        (_, Ok(_)) => bits <= 128,
        _ => false,
    }
}

fn mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    matches!(parts.len(), 6 | 8)
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Dashes may be left out, each for itself.
fn uuid(text: &str, version: Option<u8>) -> bool {
    let mut rest = text;
    let mut digits = Vec::new();
    for (group, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if group > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        let Some((part, after)) = rest.split_at_checked(length) else {
            return false;
        };
        digits.extend(part.bytes());
        rest = after;
    }
    let variant = match version {
        Some(b'4' | b'5') => matches!(digits[16].to_ascii_lowercase(), b'8' | b'9' | b'a' | b'b'),
        _ => true,
    };
    rest.is_empty()
        && variant
        && digits.iter().all(u8::is_ascii_hexdigit)
        && version.is_none_or(|version| digits[12] == version)
}

/// What is left without dashes and spaces.
fn bare(text: &str) -> Vec<u8> {
    let kept = text.chars().filter(|c| *c != '-' && !c.is_whitespace());
    kept.collect::<String>().into_bytes()
}

fn isbn10(text: &str) -> bool {
    let text = bare(text);
    let Some((last, digits)) = text.split_last().filter(|_| text.len() == 10) else {
        return false;
    };
    let check = match last {
        b'X' => 10,
        last => u32::from(last.wrapping_sub(b'0')),
    };
    let sum: u32 = (1..)
        .zip(digits)
        .map(|(at, digit)| at * u32::from(digit.wrapping_sub(b'0')))
        .sum();
    digits.iter().all(u8::is_ascii_digit)
        && (*last == b'X' || last.is_ascii_digit())
        && (sum + 10 * check).is_multiple_of(11)
}

fn isbn13(text: &str) -> bool {
    let text = bare(text);
    let sum: u32 = text
        .iter()
        .zip([1, 3].into_iter().cycle())
        .map(|(digit, factor)| factor * u32::from(digit.wrapping_sub(b'0')))
        .sum();
    text.len() == 13 && text.iter().all(u8::is_ascii_digit) && sum.is_multiple_of(10)
}

/// A number of one of the known brands, whose check digit fits; what is no digit is passed over.
fn credit_card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let length = digits.len();
    let prefix = |length: usize| {
        digits
            .get(..length)
            .and_then(|text| text.parse::<u32>().ok())
    };
    let (two, three, four) = (prefix(2), prefix(3), prefix(4));
    let known = match (two, three, four) {
        (Some(40..=49), _, _) => matches!(length, 13 | 16),
        (Some(51..=55), _, _) | (_, _, Some(6011 | 6500..=6599)) => length == 16,
        (Some(34 | 37), _, _) => length == 15,
        (Some(36 | 38), _, _) | (_, Some(300..=305), _) => length == 14,
        (_, _, Some(2131 | 1800)) => length == 15,
        (Some(35), _, _) => length == 16,
        _ => false,
    };
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(at, digit)| {
            let digit = u32::from(digit - b'0');
            match at % 2 {
                0 => digit,
                _ if digit > 4 => 2 * digit - 9,
                _ => 2 * digit,
            }
        })
        .sum();
    known && sum.is_multiple_of(10)
}

fn social_security(text: &str) -> bool {
    text.len() == 11
        && text.bytes().enumerate().all(|(at, byte)| match at {
            3 | 6 => matches!(byte, b'-' | b' '),
            _ => byte.is_ascii_digit(),
        })
}

fn rgb_color(text: &str) -> bool {
    let inner = text
        .strip_prefix("rgb(")
        .and_then(|text| text.strip_suffix(')'));
    let part = |text: &str| {
        let plain = text == "0" || !text.starts_with(['0', '+']);
        plain && text.parse::<u8>().is_ok()
    };
    inner.is_some_and(|inner| {
        inner.split(',').count() == 3 && inner.split(',').all(|one| part(one.trim()))
    })
}

/// Lower-case letters, digits, and dashes between them.
fn label(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(ends) && text.ends_with(ends) && text.chars().all(|c| ends(c) || c == '-')
}

/// A name alone may have one dash, after its first letter; of names with dots, the last part has two letters at least.
fn hostname(text: &str) -> bool {
    // Letters, digits and symbols of any script.
    let fits = |c: char| c.is_ascii_alphanumeric() || "$+<=>^`|~".contains(c) || !c.is_ascii();
    let mut labels: Vec<&str> = text.split('.').collect();
    if text.len() > 255 || labels.iter().any(|label| label.len() > 63) {
        return false;
    }
    let last = labels.pop().unwrap_or_default();
    if labels.is_empty() {
        let mut chars = last.chars();
        let rest = |chars: std::str::Chars<'_>| {
            let rest = chars.as_str();
            rest.strip_prefix('-').unwrap_or(rest).chars().all(fits)
        };
        return chars.next().is_some_and(fits) && rest(chars);
    }
    let dashed = |label: &str| {
        label.starts_with(fits)
            && label.ends_with(fits)
            && label.chars().all(|c| fits(c) || c == '-')
    };
    labels.into_iter().all(dashed)
        && dashed(last)
        && !last.contains("--")
        && last.chars().filter(|c| *c != '-').count() > 1
}

fn email(text: &str) -> bool {
    let address = match (text.find('<'), text.strip_suffix('>')) {
        (Some(open), Some(_)) => &text[open + 1..text.len() - 1],
        _ => text,
    };
    let atom = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || !c.is_ascii();
    match address.rsplit_once('@') {
        Some((local, domain)) => {
            let mut parts = domain.split('.');
            !local.is_empty()
                && !local.contains(' ')
                && parts.all(|part| !part.is_empty() && part.chars().all(atom))
        }
        None => false,
    }
}

/// An absolute URI or an absolute path, as Go's `url.ParseRequestURI` takes it.
fn uri(text: &str) -> bool {
    if text.starts_with('/') {
        return !text.contains(' ');
    }
    let Some((scheme, rest)) = text.split_once(':') else {
        return false;
    };
    !rest.is_empty()
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        && !text.contains([' ', '\n', '\t'])
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn texts_are_of_formats_or_not() {
        let dashed = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
        for (format, good, bad) in [
            (
                "uuid",
                "6ba7b8109dad41d1-80b400c04fd430c8",
                "6ba7b810-9dad-41d1-80b4-00c04fd430c",
            ),
            ("uuid4", dashed, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
            (
                "uuid5",
                "6ba7b810-9dad-51d1-b0b4-00c04fd430c8",
                "6ba7b810-9dad-51d1-c0b4-00c04fd430c8",
            ),
            ("uuid3", "6ba7b810-9dad-31d1-c0b4-00c04fd430c8", dashed),
            ("isbn10", "0-321-75104-3", "0321751044"),
            ("isbn", "978-0321751041", "978-0321751042"),
            ("creditcard", "4111 1111 1111 1111", "4111111111111112"),
            ("ssn", "111-22-3333", "111223333"),
            ("rgbcolor", "rgb(0, 10,255)", "rgb(0,0,256)"),
            ("k8s-short-name", "a-b", "A"),
            ("k8s-long-name", "a-b.c", "a..b"),
            ("hostname", "localhost", "-a"),
            ("hostname", "my-host.example.com", "my-host.c"),
            ("hostname", "1.2.3.44", "a_b.example.com"),
            ("email", "a@b", "a@"),
        ] {
            assert_eq!(matches(format, good), Some(true), "{format} {good}");
            assert_eq!(matches(format, bad), Some(false), "{format} {bad}");
        }
        assert_eq!(matches("password", "x"), None);
    }
}
