//! Quantities in the canonical form of Go's `resource.Quantity`.
//!
//! A quantity is a fixed-point number with a suffix; canonical means no fraction and the largest suffix of its own
//! family (binary, decimal, exponent) that loses nothing. Finer than a nano is rounded up, away from zero.

/// Why a text is not a quantity. `Display` is upstream's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Number,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Binary,
    Decimal,
    Exponent,
}

/// The canonical form: `1.5Gi` → `1536Mi`, `0.1` → `100m`, `1e3` → `1e3`.
///
/// # Errors
/// When the text is not a quantity.
pub fn canonical_quantity(text: &str) -> Result<String, QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    if text == "0" {
        return Ok("0".to_owned());
    }
    let bytes = text.as_bytes();
    let negative = bytes[0] == b'-';
    let mut at = usize::from(matches!(bytes[0], b'+' | b'-'));
    let digits = |from: usize| {
        bytes[from..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count()
    };

    let whole_length = digits(at);
    let whole = &text[at..at + whole_length];
    at += whole_length;
    let mut fraction = "";
    if bytes.get(at) == Some(&b'.') {
        let length = digits(at + 1);
        fraction = &text[at + 1..at + 1 + length];
        at += 1 + length;
    }
    let suffix = &text[at..];
    let letters = suffix
        .bytes()
        .take_while(|b| b"eEinumkKMGTP".contains(b))
        .count();
    let rest = &suffix[letters..];
    let signed = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    if !signed.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(QuantityError::Format);
    }
    if whole.is_empty() && fraction.is_empty() {
        return Err(QuantityError::Number);
    }

    // value = mantissa × base^exponent
    let (family, base_two, exponent) = interpret(suffix).ok_or(QuantityError::Suffix)?;
    let digits: String = format!("{whole}{fraction}")
        .trim_start_matches('0')
        .chars()
        .collect();
    let scale = -i64::try_from(fraction.len()).map_err(|_| QuantityError::Number)?;

    let nanos = match nanos(&digits, scale, base_two, exponent) {
        Some(nanos) => nanos,
        None => return Ok(beyond(negative, &digits, family)),
    };
    // Past what a Quantity may say, upstream caps.
    Ok(render(negative, nanos, family))
}

fn interpret(suffix: &str) -> Option<(Family, u32, i64)> {
    Some(match suffix {
        "" => (Family::Decimal, 0, 0),
        "n" => (Family::Decimal, 0, -9),
        "u" => (Family::Decimal, 0, -6),
        "m" => (Family::Decimal, 0, -3),
        "k" => (Family::Decimal, 0, 3),
        "M" => (Family::Decimal, 0, 6),
        "G" => (Family::Decimal, 0, 9),
        "T" => (Family::Decimal, 0, 12),
        "P" => (Family::Decimal, 0, 15),
        "E" => (Family::Decimal, 0, 18),
        "Ki" => (Family::Binary, 10, 0),
        "Mi" => (Family::Binary, 20, 0),
        "Gi" => (Family::Binary, 30, 0),
        "Ti" => (Family::Binary, 40, 0),
        "Pi" => (Family::Binary, 50, 0),
        "Ei" => (Family::Binary, 60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            // Go's ParseInt takes a plus sign; so does Rust's.
            let exponent: i32 = exponent.parse().ok()?;
            (Family::Exponent, 0, i64::from(exponent))
        }
    })
}

/// The magnitude in nanos, rounded up; `None` above 2^63-1 whole units.
fn nanos(digits: &str, scale: i64, power_of_two: u32, exponent: i64) -> Option<u128> {
    if digits.is_empty() {
        return Some(0);
    }
    let mut shift = scale + exponent + 9;
    let mut digits = digits;
    let mut inexact = false;
    // Digits far below a nano only matter as "something was there". Binary suffixes multiply, so keep some slack.
    if shift < -40 || digits.len() > 60 {
        let excess = (-shift)
            .max(0)
            .min(i64::try_from(digits.len()).unwrap_or(i64::MAX));
        let keep = digits.len() - usize::try_from(excess).ok()?;
        // A binary factor is at most 2^60 < 10^19.
        let keep = (keep + 25).min(digits.len());
        inexact = digits[keep..].bytes().any(|digit| digit != b'0');
        shift += i64::try_from(digits.len() - keep).ok()?;
        digits = &digits[..keep];
    }
    let limit: u128 = (1 << 63) * 1_000_000_000;
    let mut value = Wide::parse(digits)?;
    value.shift_left(power_of_two);
    while shift > 0 {
        value.multiply(10)?;
        shift -= 1;
    }
    while shift < 0 {
        if value.is_zero() {
            break;
        }
        inexact |= value.divide(10) != 0;
        shift += 1;
    }
    let mut nanos = value.to_u128()?;
    if inexact {
        nanos = nanos.checked_add(1)?;
    }
    (nanos < limit).then_some(nanos)
}

/// A 320-bit unsigned number: 60 digits times 2^60 fits.
struct Wide([u32; 10]);

impl Wide {
    fn parse(digits: &str) -> Option<Self> {
        let mut wide = Self([0; 10]);
        for digit in digits.bytes() {
            wide.multiply(10)?;
            let mut carry = u32::from(digit - b'0');
            for limb in &mut wide.0 {
                let (sum, over) = limb.overflowing_add(carry);
                *limb = sum;
                carry = u32::from(over);
            }
        }
        Some(wide)
    }

    fn multiply(&mut self, factor: u32) -> Option<()> {
        let mut carry = 0u64;
        for limb in &mut self.0 {
            let product = u64::from(*limb) * u64::from(factor) + carry;
            *limb = product as u32;
            carry = product >> 32;
        }
        (carry == 0).then_some(())
    }

    fn shift_left(&mut self, bits: u32) {
        for _ in 0..bits {
            // 60 digits (200 bits) and 60 doublings stay below 320 bits.
            let _ = self.multiply(2);
        }
    }

    fn divide(&mut self, divisor: u32) -> u32 {
        let mut remainder = 0u64;
        for limb in self.0.iter_mut().rev() {
            let value = (remainder << 32) | u64::from(*limb);
            *limb = (value / u64::from(divisor)) as u32;
            remainder = value % u64::from(divisor);
        }
        remainder as u32
    }

    fn is_zero(&self) -> bool {
        self.0.iter().all(|limb| *limb == 0)
    }

    fn to_u128(&self) -> Option<u128> {
        self.0[4..].iter().all(|limb| *limb == 0).then(|| {
            self.0[..4]
                .iter()
                .rev()
                .fold(0, |value, limb| (value << 32) | u128::from(*limb))
        })
    }
}

/// A number above the cap: upstream keeps 2^63-1.
fn beyond(negative: bool, _digits: &str, family: Family) -> String {
    render(
        negative,
        u128::from(i64::MAX.unsigned_abs()) * 1_000_000_000,
        family,
    )
}

const NANO: u128 = 1_000_000_000;

fn render(negative: bool, nanos: u128, family: Family) -> String {
    if nanos == 0 {
        return "0".to_owned();
    }
    let sign = if negative { "-" } else { "" };
    // A binary quantity below 1024, or with a fraction, is written as a decimal one.
    let family = match family {
        Family::Binary if nanos < 1024 * NANO || !nanos.is_multiple_of(NANO) => Family::Decimal,
        other => other,
    };
    if family == Family::Binary {
        let mut value = nanos / NANO;
        let mut suffix = 0;
        while value.is_multiple_of(1024) && suffix < 6 {
            value /= 1024;
            suffix += 1;
        }
        return format!(
            "{sign}{value}{}",
            ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][suffix]
        );
    }
    let mut value = nanos;
    let mut exponent = -9;
    while value.is_multiple_of(1000) && exponent < 18 {
        value /= 1000;
        exponent += 3;
    }
    let suffix = match (family, exponent) {
        (_, 0) => String::new(),
        (Family::Exponent, exponent) => format!("e{exponent}"),
        (_, -9) => "n".to_owned(),
        (_, -6) => "u".to_owned(),
        (_, -3) => "m".to_owned(),
        (_, 3) => "k".to_owned(),
        (_, 6) => "M".to_owned(),
        (_, 9) => "G".to_owned(),
        (_, 12) => "T".to_owned(),
        (_, 15) => "P".to_owned(),
        _ => "E".to_owned(),
    };
    format!("{sign}{value}{suffix}")
}
