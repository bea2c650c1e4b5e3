//! Dates and times between PostgreSQL's text (DateStyle ISO, TimeZone UTC) and the topics'.
//!
//! The calendar is the proleptic Gregorian one on both sides. PostgreSQL writes the year 1 BC
//! as `0001-… BC`; that is the year 0 here. The arithmetic is Howard Hinnant's ("chrono-
//! compatible low-level date algorithms").

/// Microseconds of a day.
const DAY_US: i64 = 86_400_000_000;

/// Days since 1970-01-01 of a `date`, or none for `infinity` and what is no date.
pub(super) fn date_days(text: &str) -> Option<i64> {
    let (text, before_christ) = era(text);
    days(text.as_bytes(), before_christ)
}

/// Microseconds since 1970 of a `timestamp` or, being in UTC, a `timestamptz`.
pub(super) fn timestamp_us(text: &str) -> Option<i64> {
    let (text, before_christ) = era(text);
    let text = text.strip_suffix("+00").unwrap_or(text);
    let mut parts = text.as_bytes().splitn(2, |byte| *byte == b' ');
    let (date, time) = (parts.next()?, parts.next()?);
    days(date, before_christ)?
        .checked_mul(DAY_US)?
        .checked_add(time_us(time)?)
}

/// A `date` as PostgreSQL takes it, for [`date_days`].
pub(super) fn date_text(days: i64) -> Option<String> {
    with_era(days, |_| {})
}

/// A `timestamp` as PostgreSQL takes it, for [`timestamp_us`].
pub(super) fn timestamp_text(us: i64) -> Option<String> {
    with_era(us.div_euclid(DAY_US), |text| {
        text.push(b' ');
        push_time(text, us.rem_euclid(DAY_US));
    })
}

/// RFC 3339 in UTC with microseconds; beyond its years ISO 8601's signed ones, as Java's.
pub(crate) fn iso_text(us: i64) -> Option<String> {
    let mut text = Vec::with_capacity(32);
    push_iso(&mut text, us)?;
    String::from_utf8(text).ok()
}

/// Appends [`iso_text`]; none: nothing is appended.
pub(super) fn push_iso(out: &mut Vec<u8>, us: i64) -> Option<()> {
    let (year, month, day) = civil(us.div_euclid(DAY_US))?;
    match year {
        0..=9999 => {}
        10_000.. => out.push(b'+'),
        _ => out.push(b'-'),
    }
    push_date(out, year.abs(), month, day);
    out.push(b'T');
    push_time(out, us.rem_euclid(DAY_US));
    out.push(b'Z');
    Some(())
}

/// The inverse of [`iso_text`].
pub(super) fn iso_us(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (negative, date) = match date.as_bytes().first()? {
        b'-' => (true, &date[1..]),
        b'+' => (false, &date[1..]),
        _ => (false, date),
    };
    let (year, month, day) = ymd(date.as_bytes())?;
    days_of(if negative { -year } else { year }, month, day)?
        .checked_mul(DAY_US)?
        .checked_add(time_us(time.as_bytes())?)
}

fn era(text: &str) -> (&str, bool) {
    match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    }
}

fn days(date: &[u8], before_christ: bool) -> Option<i64> {
    let (year, month, day) = ymd(date)?;
    days_of(if before_christ { 1 - year } else { year }, month, day)
}

fn ymd(date: &[u8]) -> Option<(i64, i64, i64)> {
    let (year, rest) = date.split_at_checked(date.len().checked_sub(6)?)?;
    let &[b'-', m1, m2, b'-', d1, d2] = rest else {
        return None;
    };
    (year.len() <= 7).then_some(())?;
    Some((digits(year)?, digits(&[m1, m2])?, digits(&[d1, d2])?))
}

/// Not more of them than an i64 holds.
fn digits(text: &[u8]) -> Option<i64> {
    (!text.is_empty()).then_some(())?;
    text.iter().try_fold(0, |number: i64, byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + i64::from(byte - b'0'))
    })
}

fn time_us(time: &[u8]) -> Option<i64> {
    let (&[h1, h2, b':', m1, m2, b':', s1, s2], fraction) = time.split_first_chunk::<8>()? else {
        return None;
    };
    let fraction = match fraction {
        [] => 0,
        [b'.', some @ ..] if some.len() <= 6 => {
            digits(some)? * 10_i64.pow(u32::try_from(6 - some.len()).ok()?)
        }
        _ => return None,
    };
    let (hours, minutes) = (digits(&[h1, h2])?, digits(&[m1, m2])?);
    Some(((hours * 60 + minutes) * 60 + digits(&[s1, s2])?) * 1_000_000 + fraction)
}

fn days_of(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

fn civil(days: i64) -> Option<(i64, i64, i64)> {
    let days = days.checked_add(719_468)?;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (day, month) = (
        of_year - (153 * shifted + 2) / 5 + 1,
        (shifted + 2) % 12 + 1,
    );
    Some((year + era * 400 + i64::from(month <= 2), month, day))
}

fn push_date(out: &mut Vec<u8>, year: i64, month: i64, day: i64) {
    push_digits::<4>(out, year);
    out.push(b'-');
    push_digits::<2>(out, month);
    out.push(b'-');
    push_digits::<2>(out, day);
}

fn push_time(out: &mut Vec<u8>, us: i64) {
    let seconds = us / 1_000_000;
    push_digits::<2>(out, seconds / 3600);
    out.push(b':');
    push_digits::<2>(out, seconds / 60 % 60);
    out.push(b':');
    push_digits::<2>(out, seconds % 60);
    out.push(b'.');
    push_digits::<6>(out, us % 1_000_000);
}

/// As PostgreSQL writes a day, with what follows it before the era.
fn with_era(days: i64, rest: impl FnOnce(&mut Vec<u8>)) -> Option<String> {
    let (year, month, day) = civil(days)?;
    let mut text = Vec::with_capacity(32);
    push_date(
        &mut text,
        if year <= 0 { 1 - year } else { year },
        month,
        day,
    );
    rest(&mut text);
    if year <= 0 {
        text.extend_from_slice(b" BC");
    }
    String::from_utf8(text).ok()
}

/// At least `WIDTH` digits. By hand, because a table read spends a sixth of its time in the
/// formatting of moments otherwise.
fn push_digits<const WIDTH: usize>(out: &mut Vec<u8>, number: i64) {
    let mut digits = [b'0'; WIDTH];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
    }
    if rest == 0 {
        out.extend_from_slice(&digits);
    } else {
        out.extend_from_slice(number.to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments_are_themselves() {
        assert_eq!(date_days("1970-01-01"), Some(0));
        assert_eq!(date_days("2000-02-29"), Some(11_016));
        assert_eq!(date_days("0001-12-31 BC"), Some(-719_163));
        assert_eq!(date_days("infinity"), None);
        assert_eq!(timestamp_us("1969-12-31 23:59:59.999999"), Some(-1));
        assert_eq!(
            timestamp_us("2020-01-01 00:00:00.5+00"),
            Some(1_577_836_800_500_000)
        );
        assert_eq!(
            iso_text(1_577_836_800_000_000).unwrap(),
            "2020-01-01T00:00:00.000000Z"
        );
        assert_eq!(
            iso_text(timestamp_us("0044-03-15 12:00:00+00 BC").unwrap()).unwrap(),
            "-0043-03-15T12:00:00.000000Z"
        );
        assert_eq!(
            iso_text(timestamp_us("12020-01-01 00:00:00+00").unwrap()).unwrap(),
            "+12020-01-01T00:00:00.000000Z"
        );
    }

    proptest! {
        #[test]
        fn every_moment_of_postgresql_comes_back(us in -211_813_488_000_000_000_i64..i64::MAX) {
            prop_assert_eq!(timestamp_us(&timestamp_text(us).unwrap()), Some(us));
            prop_assert_eq!(iso_us(&iso_text(us).unwrap()), Some(us));
        }

        #[test]
        fn every_day_comes_back(days in -2_451_507_i64..2_145_031_949) {
            prop_assert_eq!(date_days(&date_text(days).unwrap()), Some(days));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-0-9:. T+BCZ]{0,40}") {
            _ = timestamp_us(&text);
            _ = date_days(&text);
            _ = iso_us(&text);
        }
    }
}
