//! Exact decimal numbers.
//!
//! Terraform computes with 512 bits and compares what a provider returns, so a number keeps its decimal digits
//! from the wire to the wire and never passes through `f64` unless that is exact.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Longest plain decimal form that is accepted (hostile exponents would otherwise cost memory).
const MAX_DIGITS: usize = 4096;

/// A number in canonical plain decimal form, or an infinity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Number(Repr);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Repr {
    /// `-?digits(.digits)?` without leading or trailing zeros and without `-0`.
    Decimal(String),
    PositiveInfinity,
    NegativeInfinity,
}

/// The text or float is not a number that Terraform knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a decimal number")]
pub struct NumberError;

impl Number {
    /// Positive infinity.
    pub const INFINITY: Self = Self(Repr::PositiveInfinity);
    /// Negative infinity.
    pub const NEG_INFINITY: Self = Self(Repr::NegativeInfinity);

    /// From a float, by its shortest decimal text; not-a-number is an error.
    pub fn from_f64(float: f64) -> Result<Self, NumberError> {
        if float.is_nan() {
            return Err(NumberError);
        }
        if float.is_infinite() {
            return Ok(if float > 0.0 {
                Self::INFINITY
            } else {
                Self::NEG_INFINITY
            });
        }
        // Rust prints the shortest digits that give the same float, without an exponent.
        format!("{float}").parse()
    }

    /// The plain decimal text; `inf` or `-inf` for the infinities.
    pub fn as_text(&self) -> &str {
        match &self.0 {
            Repr::Decimal(text) => text,
            Repr::PositiveInfinity => "inf",
            Repr::NegativeInfinity => "-inf",
        }
    }

    /// The value if it is whole and fits.
    pub fn as_i64(&self) -> Option<i64> {
        match &self.0 {
            Repr::Decimal(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// The value if it is whole, not negative and fits.
    pub fn as_u64(&self) -> Option<u64> {
        match &self.0 {
            Repr::Decimal(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// The nearest float.
    pub fn to_f64(&self) -> f64 {
        match &self.0 {
            // The canonical form is always in the grammar of float texts.
            Repr::Decimal(text) => text.parse().unwrap_or(f64::NAN),
            Repr::PositiveInfinity => f64::INFINITY,
            Repr::NegativeInfinity => f64::NEG_INFINITY,
        }
    }

    /// The float, when it holds this number without loss.
    pub(crate) fn exact_f64(&self) -> Option<f64> {
        let Repr::Decimal(text) = &self.0 else {
            return Some(self.to_f64());
        };
        // A binary fraction always ends in 5 in decimal: a cheap way to sort out most others.
        if text.contains('.') && !text.ends_with('5') {
            return None;
        }
        let float: f64 = text.parse().ok()?;
        let exact = format!("{float:.1100}");
        (float.is_finite() && exact.parse::<Number>().ok()? == *self).then_some(float)
    }

    /// True for a number without a fraction.
    pub fn is_whole(&self) -> bool {
        matches!(&self.0, Repr::Decimal(text) if !text.contains('.'))
    }
}

impl FromStr for Number {
    type Err = NumberError;

    fn from_str(text: &str) -> Result<Self, NumberError> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if matches!(unsigned, "inf" | "Inf") {
            return Ok(if negative {
                Self::NEG_INFINITY
            } else {
                Self::INFINITY
            });
        }
        let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
            Some(at) => {
                let exponent: i64 = unsigned[at + 1..].parse().map_err(|_| NumberError)?;
                (&unsigned[..at], exponent)
            }
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction)
        {
            return Err(NumberError);
        }
        plain_decimal(negative, whole, fraction, exponent).map(|text| Self(Repr::Decimal(text)))
    }
}

/// Shifts the decimal point by `exponent` and strips needless zeros.
fn plain_decimal(
    negative: bool,
    whole: &str,
    fraction: &str,
    exponent: i64,
) -> Result<String, NumberError> {
    let digits: String = [whole, fraction].concat();
    let significant = digits.trim_start_matches('0');
    if significant.is_empty() {
        return Ok("0".to_owned());
    }
    let limit = MAX_DIGITS as i64;
    if digits.len() > MAX_DIGITS || exponent.abs() > limit {
        return Err(NumberError);
    }
    // Digits before the point, counted in `significant`; may be negative or beyond its end.
    let point = whole.len() as i64 - (digits.len() - significant.len()) as i64 + exponent;
    let mut text = String::new();
    if point <= 0 {
        text.push_str("0.");
        text.extend(std::iter::repeat_n('0', point.unsigned_abs() as usize));
        text.push_str(significant);
    } else if point as usize >= significant.len() {
        text.push_str(significant);
        text.extend(std::iter::repeat_n('0', point as usize - significant.len()));
    } else {
        let (before, after) = significant.split_at(point as usize);
        text.push_str(before);
        text.push('.');
        text.push_str(after);
    }
    if text.contains('.') {
        let kept = text.trim_end_matches('0').trim_end_matches('.').len();
        text.truncate(kept);
    }
    if negative {
        text.insert(0, '-');
    }
    Ok(text)
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |number: &Number| match &number.0 {
            Repr::NegativeInfinity => 0,
            Repr::Decimal(_) => 1,
            Repr::PositiveInfinity => 2,
        };
        match (&self.0, &other.0) {
            (Repr::Decimal(left), Repr::Decimal(right)) => compare_decimals(left, right),
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

fn compare_decimals(left: &str, right: &str) -> Ordering {
    let split = |text: &str| {
        let (negative, magnitude) = text
            .strip_prefix('-')
            .map_or((false, text), |magnitude| (true, magnitude));
        let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
        (negative, whole.to_owned(), fraction.to_owned())
    };
    let (left_negative, left_whole, left_fraction) = split(left);
    let (right_negative, right_whole, right_fraction) = split(right);
    let magnitude = (left_whole.len().cmp(&right_whole.len()))
        .then_with(|| left_whole.cmp(&right_whole))
        .then_with(|| left_fraction.cmp(&right_fraction));
    match (left_negative, right_negative) {
        (false, false) => magnitude,
        (true, true) => magnitude.reverse(),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_text())
    }
}

macro_rules! from_integer {
    ($($integer:ty),*) => {$(
        impl From<$integer> for Number {
            fn from(integer: $integer) -> Self {
                Self(Repr::Decimal(integer.to_string()))
            }
        }
    )*};
}
from_integer!(i8, i16, i32, i64, u8, u16, u32, u64, usize);
