//! One value: PostgreSQL's text in, JSON out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::io::Write as _;

use super::{time, write_string};

/// How a column's values look in JSON; follows from its base type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` and `false`.
    Bool,
    /// A JSON number.
    Integer,
    /// A JSON number; `NaN` and the infinities, which JSON lacks, are strings.
    Float,
    /// A string, digit by digit as PostgreSQL has it.
    Numeric,
    /// Days since 1970.
    Date,
    /// Microseconds since 1970, without a zone.
    Timestamp,
    /// Milliseconds since 1970: `timestamp(3)` and coarser, as Debezium.
    TimestampMillis,
    /// RFC 3339 in UTC with microseconds.
    TimestampTz,
    /// Base64.
    Bytes,
    /// A string.
    Uuid,
    /// A string: every text type, JSON and enums.
    Text,
    /// PostgreSQL's text of a type that has no form of its own here.
    Other,
}

impl Kind {
    /// The form of a base type (a domain's is that of what it is made from).
    #[must_use]
    pub fn of(type_oid: u32, type_modifier: i32) -> Self {
        match type_oid {
            16 => Self::Bool,
            20 | 21 | 23 | 26 => Self::Integer,
            700 | 701 => Self::Float,
            1700 => Self::Numeric,
            1082 => Self::Date,
            1114 if (0..=3).contains(&type_modifier) => Self::TimestampMillis,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            17 => Self::Bytes,
            2950 => Self::Uuid,
            18 | 19 | 25 | 114 | 1042 | 1043 | 3802 => Self::Text,
            _ => Self::Other,
        }
    }

    /// Can a value of it be found again from its JSON? Needed of a key's columns.
    #[must_use]
    pub fn is_invertible(self) -> bool {
        match self {
            Self::Bool
            | Self::Integer
            | Self::Numeric
            | Self::Date
            | Self::Timestamp
            | Self::TimestampTz
            | Self::Uuid
            | Self::Text => true,
            Self::Float | Self::TimestampMillis | Self::Bytes | Self::Other => false,
        }
    }
}

/// A value is no text: JSON cannot hold it. PostgreSQL checks what comes in, but damaged and very
/// old databases hold such values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a value is not valid UTF-8")]
pub struct NotUtf8;

/// Writes a value, none being NULL.
///
/// # Errors
/// Where it is no text; then nothing is written.
pub fn write(out: &mut Vec<u8>, kind: Kind, text: Option<&[u8]>) -> Result<(), NotUtf8> {
    match text {
        None => out.extend_from_slice(b"null"),
        Some(bytes) => write_text(out, kind, std::str::from_utf8(bytes).map_err(|_| NotUtf8)?),
    }
    Ok(())
}

/// Writes a value that is not NULL.
pub fn write_text(out: &mut Vec<u8>, kind: Kind, text: &str) {
    let written = match kind {
        Kind::Bool => bool_json(text).map(|json| out.extend_from_slice(json)),
        Kind::Integer => is_integer(text).then(|| out.extend_from_slice(text.as_bytes())),
        Kind::Float => is_number(text).then(|| out.extend_from_slice(text.as_bytes())),
        Kind::Date => time::date_days(text).map(|days| number(out, days)),
        Kind::Timestamp => time::timestamp_us(text).map(|us| number(out, us)),
        Kind::TimestampMillis => {
            time::timestamp_us(text).map(|us| number(out, us.div_euclid(1000)))
        }
        Kind::TimestampTz => time::timestamp_us(text).and_then(|us| {
            let begin = out.len();
            out.push(b'"');
            let written = time::push_iso(out, us).map(|()| out.push(b'"'));
            if written.is_none() {
                out.truncate(begin);
            }
            written
        }),
        Kind::Bytes => unhex(text).map(|raw| write_string(out, &BASE64.encode(raw))),
        Kind::Numeric | Kind::Uuid | Kind::Text | Kind::Other => None,
    };
    if written.is_none() {
        write_string(out, text);
    }
}

/// The text that PostgreSQL reads as the value that [`write()`] wrote as `json`; none where the
/// value cannot have come from a column of this kind.
#[must_use]
pub fn invert(kind: Kind, json: &serde_json::Value) -> Option<String> {
    use serde_json::Value;
    match (kind, json) {
        (Kind::Bool, Value::Bool(value)) => Some(value.to_string()),
        (Kind::Integer, Value::Number(number)) => Some(number.to_string()),
        (Kind::Date, Value::Number(days)) => time::date_text(days.as_i64()?),
        (Kind::Timestamp, Value::Number(us)) => time::timestamp_text(us.as_i64()?),
        (Kind::TimestampTz, Value::String(text)) => match time::iso_us(text) {
            Some(us) => time::timestamp_text(us).map(|text| match text.strip_suffix(" BC") {
                Some(text) => format!("{text}+00 BC"),
                None => format!("{text}+00"),
            }),
            None => Some(text.clone()),
        },
        // What its type's form cannot hold was written as text: infinity.
        (
            Kind::Date | Kind::Timestamp | Kind::Numeric | Kind::Uuid | Kind::Text,
            Value::String(text),
        ) => Some(text.clone()),
        _ => None,
    }
}

fn bool_json(text: &str) -> Option<&'static [u8]> {
    match text {
        "t" => Some(b"true"),
        "f" => Some(b"false"),
        _ => None,
    }
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits.len() == 1 || !digits.starts_with('0'))
}

/// Is this JSON's grammar of a number? PostgreSQL's floats are, but for `NaN` and infinities.
fn is_number(text: &str) -> bool {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    is_integer(whole) && digits(fraction) && digits(exponent)
}

fn number(out: &mut Vec<u8>, value: i64) {
    write!(out, "{value}").expect("a Vec takes any bytes");
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    (digits.len() % 2 == 0).then_some(())?;
    digits
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(kind: Kind, text: &str) -> String {
        let mut out = Vec::new();
        write(&mut out, kind, Some(text.as_bytes())).unwrap();
        String::from_utf8(out).unwrap()
    }

    const KINDS: [Kind; 12] = [
        Kind::Bool,
        Kind::Integer,
        Kind::Float,
        Kind::Numeric,
        Kind::Date,
        Kind::Timestamp,
        Kind::TimestampMillis,
        Kind::TimestampTz,
        Kind::Bytes,
        Kind::Uuid,
        Kind::Text,
        Kind::Other,
    ];

    #[test]
    fn every_kind_has_its_form() {
        for (kind, text, expected) in [
            (Kind::Bool, "t", "true"),
            (
                Kind::Integer,
                "-9223372036854775808",
                "-9223372036854775808",
            ),
            (Kind::Float, "1.5e-07", "1.5e-07"),
            (Kind::Float, "-0", "-0"),
            (Kind::Float, "NaN", "\"NaN\""),
            (Kind::Numeric, "2.50", "\"2.50\""),
            (Kind::Numeric, "NaN", "\"NaN\""),
            (Kind::Date, "1969-12-31", "-1"),
            (Kind::Date, "infinity", "\"infinity\""),
            (
                Kind::Timestamp,
                "2020-01-01 00:00:00.000001",
                "1577836800000001",
            ),
            (Kind::TimestampMillis, "1969-12-31 23:59:59.999", "-1"),
            (
                Kind::TimestampTz,
                "2020-01-01 00:00:00+00",
                "\"2020-01-01T00:00:00.000000Z\"",
            ),
            (Kind::TimestampTz, "-infinity", "\"-infinity\""),
            (Kind::Bytes, "\\x00ff10", "\"AP8Q\""),
            (
                Kind::Text,
                "a \"quote\"\n\u{1F600} \u{5e9}",
                "\"a \\\"quote\\\"\\n\u{1F600} \u{5e9}\"",
            ),
            (Kind::Other, "{1,2}", "\"{1,2}\""),
        ] {
            assert_eq!(json(kind, text), expected, "{kind:?} {text}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused_and_leaves_nothing() {
        for kind in KINDS {
            let mut out = Vec::new();
            assert_eq!(write(&mut out, kind, Some(b"a\xc8")), Err(NotUtf8));
            assert!(out.is_empty());
        }
    }

    #[test]
    fn null_is_null_whatever_the_kind() {
        for kind in KINDS {
            let mut out = Vec::new();
            write(&mut out, kind, None).unwrap();
            assert_eq!(out, b"null");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_text_the_json_is_valid(text: String, kind in prop::sample::select(&KINDS[..])) {
            let written = json(kind, &text);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&written).is_ok(), "{written}");
        }

        #[test]
        fn numbers_of_any_shape_are_valid_or_strings(text in "-?[0-9]{0,4}(\\.[0-9]{0,3})?(e[-+]{0,2}[0-9]{0,3})?") {
            for kind in [Kind::Integer, Kind::Float] {
                let written = json(kind, &text);
                prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(&written).is_ok(), "{written}");
            }
        }

        #[test]
        fn an_integer_key_comes_back(value: i64) {
            let written: serde_json::Value = serde_json::from_str(&json(Kind::Integer, &value.to_string())).unwrap();
            prop_assert_eq!(invert(Kind::Integer, &written), Some(value.to_string()));
        }

        #[test]
        fn a_text_key_comes_back(value: String) {
            let written: serde_json::Value = serde_json::from_str(&json(Kind::Text, &value)).unwrap();
            prop_assert_eq!(invert(Kind::Text, &written), Some(value));
        }

        #[test]
        fn a_moment_comes_back(us in -62_000_000_000_000_000_i64..200_000_000_000_000_000) {
            for (kind, zone) in [(Kind::Timestamp, ""), (Kind::TimestampTz, "+00")] {
                let text = time::timestamp_text(us).unwrap();
                let text = match text.strip_suffix(" BC") {
                    Some(text) => format!("{text}{zone} BC"),
                    None => format!("{text}{zone}"),
                };
                let written: serde_json::Value = serde_json::from_str(&json(kind, &text)).unwrap();
                prop_assert_eq!(invert(kind, &written), Some(text));
            }
        }
    }
}
