//! Kubernetes quantities as integers. Requests round up, as upstream's `Quantity.MilliValue` and `Value` do.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// In thousandths; for cpu. Unreadable or absent is 0: the API server has validated what gets here.
pub fn milli(quantity: &Quantity) -> i64 {
    parse(&quantity.0, 3)
}

/// In whole units; for everything else.
pub fn value(quantity: &Quantity) -> i64 {
    parse(&quantity.0, 0)
}

/// The quantity times 10^`scale`, rounded away from zero, saturating.
fn parse(text: &str, scale: i32) -> i64 {
    let text = text.trim();
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut mantissa: i128 = 0;
    let mut exponent = scale;
    for digit in whole.bytes().chain(fraction.bytes()) {
        if !digit.is_ascii_digit() {
            return 0;
        }
        mantissa = mantissa
            .saturating_mul(10)
            .saturating_add(i128::from(digit - b'0'));
    }
    exponent -= i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let binary = match suffix {
        "" => 0,
        "n" => {
            exponent -= 9;
            0
        }
        "u" => {
            exponent -= 6;
            0
        }
        "m" => {
            exponent -= 3;
            0
        }
        "k" => {
            exponent += 3;
            0
        }
        "M" => {
            exponent += 6;
            0
        }
        "G" => {
            exponent += 9;
            0
        }
        "T" => {
            exponent += 12;
            0
        }
        "P" => {
            exponent += 15;
            0
        }
        "E" => {
            exponent += 18;
            0
        }
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        "Pi" => 50,
        "Ei" => 60,
        other => match other
            .strip_prefix(['e', 'E'])
            .and_then(|digits| digits.parse::<i32>().ok())
        {
            Some(power) => {
                exponent = exponent.saturating_add(power);
                0
            }
            None => return 0,
        },
    };
    mantissa = mantissa.saturating_mul(1i128 << binary);
    let magnitude = if exponent >= 0 {
        let factor = 10i128
            .checked_pow(exponent.unsigned_abs().min(38))
            .unwrap_or(i128::MAX);
        mantissa.saturating_mul(factor)
    } else {
        match 10i128.checked_pow(exponent.unsigned_abs().min(39)) {
            Some(divisor) => mantissa.saturating_add(divisor - 1) / divisor,
            None => i128::from(mantissa > 0),
        }
    };
    let magnitude = i64::try_from(magnitude).unwrap_or(i64::MAX);
    if negative { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_suffix_and_rounds_up() {
        let milli = |text: &str| super::milli(&Quantity(text.into()));
        let value = |text: &str| super::value(&Quantity(text.into()));
        assert_eq!(milli("2"), 2000);
        assert_eq!(milli("100m"), 100);
        assert_eq!(milli("0.5"), 500);
        assert_eq!(milli("1500u"), 2);
        assert_eq!(milli("1n"), 1);
        assert_eq!(value("1Ki"), 1024);
        assert_eq!(value("1.5Gi"), 1_610_612_736);
        assert_eq!(value("128974848"), 128_974_848);
        assert_eq!(value("129e6"), 129_000_000);
        assert_eq!(value("129M"), 129_000_000);
        assert_eq!(value("100m"), 1);
        assert_eq!(value("-1"), -1);
        assert_eq!(value("9Ei"), i64::MAX);
        assert_eq!(
            value("99999999999999999999999999999999999999999999E"),
            i64::MAX
        );
        assert_eq!(value("1e-60"), 1);
        assert_eq!(value("rubbish"), 0);
    }
}
