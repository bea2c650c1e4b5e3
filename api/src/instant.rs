//! Times as the API writes them: RFC 3339 in UTC with microseconds, `2020-01-01T00:00:00.000000Z`.
//!
//! PostgreSQL writes the times of rows itself. This is for the two that the API computes with:
//! now, and when a source was last known current.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

const DAY_US: i64 = 86_400_000_000;

/// Microseconds since 1970, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub i64);

impl Instant {
    /// The system's clock.
    #[must_use]
    pub fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self(since_1970.map_or(0, |elapsed| {
            i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
        }))
    }

    /// Milliseconds from `earlier` to this, at least 0.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0).max(0) / 1000
    }
}

/// Civil dates from days and back: Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", where years begin in March and eras have 400 years.
impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, of_day) = (self.0.div_euclid(DAY_US), self.0.rem_euclid(DAY_US));
        let shifted = days + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (seconds, us) = (of_day / 1_000_000, of_day % 1_000_000);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{us:06}Z"
        )
    }
}

/// The text is not a time as this module writes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time like 2020-01-01T00:00:00.000000Z")]
pub struct InstantError(String);

impl FromStr for Instant {
    type Err = InstantError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let number = |from: usize, to: usize| -> Option<i64> {
                let digits = text.get(from..to)?;
                digits
                    .bytes()
                    .all(|byte| byte.is_ascii_digit())
                    .then(|| digits.parse().ok())?
            };
            let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
            let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
            let us = number(20, 26)?;
            if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
                return None;
            }
            let year = year - i64::from(month <= 2);
            let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
            let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
            let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
            let days = era * 146_097 + of_era - 719_468;
            let seconds = (hour * 60 + minute) * 60 + second;
            let instant = Self(days * DAY_US + seconds * 1_000_000 + us);
            // Whatever was misplaced, missing or out of range does not come back the same.
            (instant.to_string() == text).then_some(instant)
        };
        parse().ok_or_else(|| InstantError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(us in -62_135_596_800_000_000_i64..253_402_300_800_000_000) {
            prop_assert_eq!(Instant(us).to_string().parse(), Ok(Instant(us)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,30}") {
            let _ = text.parse::<Instant>();
        }
    }

    #[test]
    fn known_times_are_written_as_expected() {
        assert_eq!(Instant(0).to_string(), "1970-01-01T00:00:00.000000Z");
        assert_eq!(
            Instant(951_782_400_000_001).to_string(),
            "2000-02-29T00:00:00.000001Z"
        );
        assert_eq!(Instant(-1).to_string(), "1969-12-31T23:59:59.999999Z");
    }
}
