//! Resource quantities: `100m`, `1.5Gi`, `2e3`. Exact to a billionth, which is apimachinery's precision too.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    ops::{Add, AddAssign, Neg, Sub},
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

/// `limits` and its like.
pub type ResourceList = BTreeMap<String, Wire>;

const NANO: i128 = 1_000_000_000;
/// Far beyond any machine and far from overflow: sums of many stay exact.
const LIMIT: i128 = (i64::MAX as i128) * NANO * 1024;

/// How a quantity was written, and so how its sum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `k`, `M`, `G`
    Decimal,
    /// `Ki`, `Mi`, `Gi`
    Binary,
    /// `e3`, `e6`
    Exponent,
}

#[derive(Clone, Copy, Debug)]
pub struct Amount {
    nanos: i128,
    format: Format,
}

impl Amount {
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::Decimal,
    };

    pub const fn from_units(units: i64, format: Format) -> Self {
        Self {
            nanos: units as i128 * NANO,
            format,
        }
    }

    pub const fn from_milli(milli: i64) -> Self {
        Self {
            nanos: milli as i128 * (NANO / 1000),
            format: Format::Decimal,
        }
    }

    /// `None` for what is no quantity.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        let (scale, format) = Scale::parse(suffix)?;
        let mut digits: i128 = 0;
        for c in whole.bytes().chain(fraction.bytes()) {
            digits = digits.checked_mul(10)?.checked_add(i128::from(c - b'0'))?;
        }
        // value = digits * 10^-len(fraction) * scale, in nanos, rounded away from zero.
        let mut numerator = digits;
        let mut denominator: i128 = 1;
        let mut tens = 9 - i32::try_from(fraction.len()).ok()?;
        match scale {
            Scale::Ten(power) => tens += power,
            Scale::Two(power) => numerator = numerator.checked_mul(1 << power).unwrap_or(LIMIT),
        }
        if numerator != 0 && tens > 38 {
            numerator = LIMIT;
            tens = 0;
        }
        for _ in 0..tens.max(0) {
            numerator = numerator.checked_mul(10).unwrap_or(LIMIT).min(LIMIT);
        }
        for _ in 0..(-tens).max(0) {
            denominator = denominator.checked_mul(10).unwrap_or(i128::MAX / 2);
        }
        let nanos = ceil_div(numerator, denominator).min(LIMIT);
        Some(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }

    pub fn of(quantity: &Wire) -> Self {
        Self::parse(&quantity.0).unwrap_or(Self::ZERO)
    }

    /// Whole units, rounded up.
    pub fn value(self) -> i64 {
        clamp(ceil_div_signed(self.nanos, NANO))
    }

    /// Thousandths, rounded up.
    pub fn milli_value(self) -> i64 {
        clamp(ceil_div_signed(self.nanos, NANO / 1000))
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    pub fn is_positive(self) -> bool {
        self.nanos > 0
    }

    /// Nothing smaller than a thousandth (upstream `SetDefaults_ResourceList`).
    pub fn rounded_up_to_milli(self) -> Self {
        let milli = NANO / 1000;
        Self {
            nanos: ceil_div_signed(self.nanos, milli) * milli,
            ..self
        }
    }

    /// Whole units.
    pub fn rounded_up(self) -> Self {
        Self {
            nanos: ceil_div_signed(self.nanos, NANO) * NANO,
            ..self
        }
    }

    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    pub fn is_multiple_of(self, unit: Self) -> bool {
        unit.nanos != 0 && self.nanos % unit.nanos == 0
    }

    pub fn max(self, other: Self) -> Self {
        if other > self { other } else { self }
    }

    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    pub fn to_wire(self) -> Wire {
        Wire(self.to_string())
    }
}

enum Scale {
    Ten(i32),
    Two(u32),
}

impl Scale {
    fn parse(suffix: &str) -> Option<(Self, Format)> {
        Some(match suffix {
            "" => (Self::Ten(0), Format::Decimal),
            "n" => (Self::Ten(-9), Format::Decimal),
            "u" => (Self::Ten(-6), Format::Decimal),
            "m" => (Self::Ten(-3), Format::Decimal),
            "k" => (Self::Ten(3), Format::Decimal),
            "M" => (Self::Ten(6), Format::Decimal),
            "G" => (Self::Ten(9), Format::Decimal),
            "T" => (Self::Ten(12), Format::Decimal),
            "P" => (Self::Ten(15), Format::Decimal),
            "E" => (Self::Ten(18), Format::Decimal),
            "Ki" => (Self::Two(10), Format::Binary),
            "Mi" => (Self::Two(20), Format::Binary),
            "Gi" => (Self::Two(30), Format::Binary),
            "Ti" => (Self::Two(40), Format::Binary),
            "Pi" => (Self::Two(50), Format::Binary),
            "Ei" => (Self::Two(60), Format::Binary),
            _ => {
                let exponent = suffix.strip_prefix(['e', 'E'])?;
                let power: i32 = exponent.parse().ok()?;
                (Self::Ten(power.clamp(-100, 100)), Format::Exponent)
            }
        })
    }
}

fn ceil_div(numerator: i128, denominator: i128) -> i128 {
    numerator / denominator + i128::from(numerator % denominator != 0)
}

/// Away from zero, as apimachinery rounds.
fn ceil_div_signed(numerator: i128, denominator: i128) -> i128 {
    if numerator < 0 {
        -ceil_div(-numerator, denominator)
    } else {
        ceil_div(numerator, denominator)
    }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Amount {
    /// The canonical form: no fraction, the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.format == Format::Binary && !small {
            let mut value = ceil_div_signed(self.nanos, NANO);
            let mut steps = 0;
            while value % 1024 == 0 && steps < 6 {
                value /= 1024;
                steps += 1;
            }
            return write!(
                f,
                "{value}{}",
                ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][steps]
            );
        }
        let mut value = self.nanos;
        let mut steps = 0;
        while value % 1000 == 0 && steps < 9 {
            value /= 1000;
            steps += 1;
        }
        if self.format == Format::Exponent {
            return match steps as i32 * 3 - 9 {
                0 => write!(f, "{value}"),
                power => write!(f, "{value}e{power}"),
            };
        }
        write!(
            f,
            "{value}{}",
            ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][steps]
        )
    }
}

impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Amount {}

impl PartialOrd for Amount {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Amount {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        // Zero has no format of its own.
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: (self.nanos + other.nanos).clamp(-LIMIT, LIMIT),
            format,
        }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Amount {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Neg for Amount {
    type Output = Self;

    fn neg(self) -> Self {
        Self {
            nanos: -self.nanos,
            ..self
        }
    }
}

/// Adds `other` to `list`, resource by resource.
pub fn add_to(list: &mut ResourceList, other: &ResourceList) {
    for (name, quantity) in other {
        let sum = match list.get(name) {
            Some(have) => Amount::of(have) + Amount::of(quantity),
            None => Amount::of(quantity),
        };
        list.insert(name.clone(), sum.to_wire());
    }
}

/// Raises `list` to `other` where that is more.
pub fn raise_to(list: &mut ResourceList, other: &ResourceList) {
    for (name, quantity) in other {
        let more = list
            .get(name)
            .is_none_or(|have| Amount::of(quantity) > Amount::of(have));
        if more {
            list.insert(name.clone(), quantity.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, canonical: &str, value: i64, milli: i64) {
        let amount = Amount::parse(text).expect("a quantity");
        assert_eq!(amount.to_string(), canonical, "{text}");
        assert_eq!(amount.value(), value, "{text}");
        assert_eq!(amount.milli_value(), milli, "{text}");
    }

    #[test]
    fn canonical_forms() {
        check("0", "0", 0, 0);
        check("100m", "100m", 1, 100);
        check("0.1", "100m", 1, 100);
        check("1500m", "1500m", 2, 1500);
        check("2000m", "2", 2, 2000);
        check("1000", "1k", 1000, 1_000_000);
        check("1024Ki", "1Mi", 1 << 20, 1_048_576_000);
        check("1.5Gi", "1536Mi", 3 << 29, 1_610_612_736_000);
        check("1023Ki", "1023Ki", 1_047_552, 1_047_552_000);
        check("0.5Ki", "512", 512, 512_000);
        check("1e3", "1e3", 1000, 1_000_000);
        check("12E2", "1200", 1200, 1_200_000);
        check("-1Gi", "-1Gi", -(1 << 30), -1_073_741_824_000);
        check(".5", "500m", 1, 500);
        check("1n", "1n", 1, 1);
        check("+5k", "5k", 5000, 5_000_000);
        for bad in ["", "-", ".", "1.2.3", "1ki", "1e", "abc", "1 Gi", "1mm"] {
            assert!(Amount::parse(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn canonical_form_means_the_same(units in -1_000_000_000_000i64..1_000_000_000_000, suffix in 0usize..14) {
            let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "e3", "e-3"];
            let text = format!("{units}{}", suffixes[suffix]);
            let amount = Amount::parse(&text).expect("a quantity");
            let again = Amount::parse(&amount.to_string()).expect("its own text");
            prop_assert_eq!(amount, again);
            prop_assert_eq!(amount.to_string(), again.to_string());
        }

        #[test]
        fn no_text_panics(text in "[-+0-9.eEinumkKMGTP]{0,50}") {
            let _ = Amount::parse(&text).map(|amount| amount.to_string());
        }

        #[test]
        fn sums_commute(a in "[0-9]{1,9}(m|Ki|Gi|M|)", b in "[0-9]{1,9}(m|Ki|Gi|M|)") {
            let (a, b) = (Amount::parse(&a).expect("a"), Amount::parse(&b).expect("b"));
            prop_assert_eq!(a + b, b + a);
            prop_assert_eq!(a + b - b, a);
        }
    }
}
