//! A column's value, checked so that no value that passed can make an SQL statement fail.

use bytes::{BufMut, BytesMut};
use serde_json::Value as Json;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

/// What a mirror column holds, and how a change event writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A key or a reference: a JSON number, `bigint`. The source may widen it.
    Id,
    /// A number that sums are made of: a JSON number, `integer` as in the source, so that no sum
    /// of `bigint` can overflow.
    Integer,
    /// A JSON string, `text`.
    Text,
    /// A JSON string of decimal digits, `numeric`.
    Numeric,
    /// A JSON string, ISO 8601 in UTC, `timestamptz`.
    Time,
}

/// A parameter of a statement that many rows go through at once.
pub(crate) type Array = Box<dyn ToSql + Sync + Send>;

/// A value that fits its column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    Null,
    Integer(i64),
    /// Of [`Kind::Text`] and [`Kind::Numeric`].
    Text(String),
    Time(Time),
}

/// Microseconds since 2000-01-01 UTC, PostgreSQL's own binary form: no session setting and no
/// parser of the server can read it differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub i64);

/// Digits before or after the point of a number; more than any money needs and far from what
/// a sum of `numeric` refuses.
const DIGITS_MAX: usize = 100;
/// 4714-11-24 BC, PostgreSQL's first.
const TIME_MIN_US: i64 = -211_813_488_000_000_000;
/// 294277-01-01, after PostgreSQL's last.
const TIME_END_US: i64 = 9_223_371_331_200_000_000;
const DAY_US: i128 = 86_400_000_000;
/// Days from 1970-01-01 to 2000-01-01.
const DAYS_TO_2000: i128 = 10_957;

impl Kind {
    /// The type of the mirror's column.
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Self::Id => "bigint",
            Self::Integer => "integer",
            Self::Text => "text",
            Self::Numeric => "numeric",
            Self::Time => "timestamptz",
        }
    }

    /// The type in which values cross to the server.
    pub(crate) fn wire(self) -> &'static str {
        match self {
            Self::Id | Self::Integer => "bigint",
            Self::Text | Self::Numeric => "text",
            Self::Time => "timestamptz",
        }
    }

    /// The parameter of this number, of many values of this kind.
    pub(crate) fn array_sql(self, number: usize) -> String {
        let (wire, sql) = (self.wire(), self.sql());
        let cast = if wire == sql {
            String::new()
        } else {
            format!("::{sql}[]")
        };
        format!("${number}::{wire}[]{cast}")
    }

    /// Many values as that parameter.
    pub(crate) fn array<'a>(self, values: impl Iterator<Item = &'a Value>) -> Array {
        match self {
            Self::Id | Self::Integer => Box::new(
                values
                    .map(|value| match value {
                        Value::Integer(value) => Some(*value),
                        _ => None,
                    })
                    .collect::<Vec<_>>(),
            ),
            Self::Text | Self::Numeric => Box::new(
                values
                    .map(|value| match value {
                        Value::Text(value) => Some(value.clone()),
                        _ => None,
                    })
                    .collect::<Vec<_>>(),
            ),
            Self::Time => Box::new(
                values
                    .map(|value| match value {
                        Value::Time(value) => Some(*value),
                        _ => None,
                    })
                    .collect::<Vec<_>>(),
            ),
        }
    }

    /// Checks a value of an event.
    ///
    /// # Errors
    /// What does not fit, in words that name no value.
    pub(crate) fn read(self, json: Json) -> Result<Value, &'static str> {
        match (self, json) {
            (_, Json::Null) => Ok(Value::Null),
            (Self::Id, Json::Number(number)) => number
                .as_i64()
                .map(Value::Integer)
                .ok_or("is not a whole number of 64 bits"),
            (Self::Integer, Json::Number(number)) => number
                .as_i64()
                .filter(|number| i32::try_from(*number).is_ok())
                .map(Value::Integer)
                .ok_or("is not a whole number of 32 bits"),
            (Self::Text, Json::String(text)) if text.contains('\0') => {
                Err("holds a zero byte, which no text of PostgreSQL can")
            }
            (Self::Text, Json::String(text)) => Ok(Value::Text(text)),
            (Self::Numeric, Json::String(text)) => check_numeric(&text).map(|()| Value::Text(text)),
            (Self::Time, Json::String(text)) => parse_time(&text).map(Value::Time),
            (Self::Id | Self::Integer, _) => Err("is not a JSON number"),
            (Self::Text | Self::Numeric | Self::Time, _) => Err("is not a JSON string"),
        }
    }
}

fn check_numeric(text: &str) -> Result<(), &'static str> {
    if matches!(text, "NaN" | "Infinity" | "-Infinity") {
        return Err("is no finite number, so no sum can contain it");
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let good = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !good(whole) || !good(fraction) {
        return Err("is not a decimal number");
    }
    if whole.len() > DIGITS_MAX || fraction.len() > DIGITS_MAX {
        return Err("has more than 100 digits before or after the point");
    }
    Ok(())
}

/// `[+-]YYYY…-MM-DDTHH:MM:SS[.f…]Z`, the year as ISO 8601 counts (0 is 1 BC).
fn parse_time(text: &str) -> Result<Time, &'static str> {
    if text
        .trim_start_matches(['+', '-'])
        .eq_ignore_ascii_case("infinity")
    {
        return Err("is an infinite time");
    }
    let us = time_parts(text).ok_or("is not a time as ISO 8601 writes it in UTC")?;
    i64::try_from(us)
        .ok()
        .filter(|us| (TIME_MIN_US..TIME_END_US).contains(us))
        .map(Time)
        .ok_or("is a time that PostgreSQL cannot hold")
}

fn time_parts(text: &str) -> Option<i128> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (date, clock) = rest.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-');
    let year = sign * digits(date.next()?, 4..=9)?;
    let (month, day) = (digits(date.next()?, 2..=2)?, digits(date.next()?, 2..=2)?);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.split(':');
    let mut part = || digits(clock.next()?, 2..=2);
    let (hour, minute, second) = (part()?, part()?, part()?);
    let fits = (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !fits || date.next().is_some() || clock.next().is_some() {
        return None;
    }
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?.min(9));
    let fraction_us = digits(fraction, 1..=9)? * 1_000_000 / scale;
    let seconds = (hour * 60 + minute) * 60 + second;
    Some(
        (days_from_1970(year, month, day) - DAYS_TO_2000) * DAY_US
            + seconds * 1_000_000
            + fraction_us,
    )
}

fn digits(text: &str, length: std::ops::RangeInclusive<usize>) -> Option<i128> {
    (length.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

fn days_in(year: i128, month: i128) -> i128 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the proleptic Gregorian calendar. The year is taken to begin in March, so that the
/// leap day is its last.
fn days_from_1970(year: i128, month: i128, day: i128) -> i128 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + leap_days + day_of_year - 719_468
}

/// From 1970 to 2000.
const TO_2000_US: i64 = 946_684_800_000_000;

impl Time {
    /// Of microseconds since 1970.
    pub(crate) fn of_1970(us: i64) -> Self {
        Self(us.saturating_sub(TO_2000_US))
    }
}

impl FromSql<'_> for Time {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

impl ToSql for Time {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_i64(self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn times_count_from_2000() {
        let us = |text| match Kind::Time.read(json!(text)) {
            Ok(Value::Time(Time(us))) => us,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(us("2000-01-01T00:00:00.000000Z"), 0);
        assert_eq!(us("2000-01-01T00:00:00Z"), 0);
        assert_eq!(us("2000-03-01T00:00:00.000001Z"), 60 * 86_400_000_000 + 1);
        assert_eq!(us("1969-12-31T23:59:59.5Z"), -946_684_800_500_000);
        assert_eq!(us("-4713-11-24T00:00:00.000000Z"), TIME_MIN_US);
        assert_eq!(us("+294276-12-31T23:59:59.999999Z"), TIME_END_US - 1);
    }

    #[test]
    fn what_postgresql_or_a_sum_cannot_hold_is_refused() {
        for (kind, json) in [
            (Kind::Time, json!("infinity")),
            (Kind::Time, json!("+294277-01-01T00:00:00Z")),
            (Kind::Time, json!("+292278994-08-16T23:00:00.000000Z")),
            (Kind::Time, json!("-4713-11-23T23:59:59Z")),
            (Kind::Time, json!("2023-02-29T00:00:00Z")),
            (Kind::Time, json!("2023-02-28T24:00:00Z")),
            (Kind::Time, json!("2023-02-28 00:00:00Z")),
            (Kind::Time, json!(5)),
            (Kind::Numeric, json!("NaN")),
            (Kind::Numeric, json!("Infinity")),
            (Kind::Numeric, json!("1e5")),
            (Kind::Numeric, json!("")),
            (Kind::Numeric, json!("1.")),
            (Kind::Numeric, json!("9".repeat(101))),
            (Kind::Numeric, json!(2.5)),
            (Kind::Integer, json!(2_147_483_648_i64)),
            (Kind::Integer, json!(1.5)),
            (Kind::Id, json!(9_223_372_036_854_775_808_u64)),
            (Kind::Id, json!("5")),
            (Kind::Text, json!("a\0b")),
            (Kind::Text, json!({})),
        ] {
            assert!(kind.read(json.clone()).is_err(), "{kind:?} {json}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            for kind in [Kind::Time, Kind::Numeric, Kind::Text] {
                let _ = kind.read(json!(text));
            }
        }

        #[test]
        fn days_follow_each_other(year in -4700_i128..294_000, month in 1_i128..=12) {
            let last = days_from_1970(year, month, days_in(year, month));
            let (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            prop_assert_eq!(days_from_1970(year, month, 1), last + 1);
        }
    }
}
