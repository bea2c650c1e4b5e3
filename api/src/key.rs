//! Primary keys: as a path writes them, as SQL finds a row by them, and as events of the feed
//! have them.

use std::fmt;

use serde_json::Value;
use tokio_postgres::types::ToSql;

use crate::instant::Instant;

const DAY_US: i64 = 86_400_000_000;
/// The days that PostgreSQL has, since 1970.
const DAYS: std::ops::Range<i64> = -2_440_588..2_145_042_541;

/// A table of the view whose rows are cached, and evicted by the feed.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// As the feed names it, `schema.table`.
    pub name: &'static str,
    /// In the order of the path's segments.
    pub key: &'static [KeyColumn],
}

impl Table {
    /// The condition that finds the row, its parameters from `$1` on.
    #[must_use]
    pub fn condition(&self) -> String {
        let columns = self.key.iter().enumerate();
        let columns = columns.map(|(index, KeyColumn { name, kind })| {
            let place = index + 1;
            match kind {
                KeyKind::Id => format!("{name} = ${place}"),
                KeyKind::Day => format!("{name} = '1970-01-01'::date + ${place}::bigint::integer"),
                KeyKind::Text => format!("{name} = ${place}::text"),
            }
        });
        columns.collect::<Vec<_>>().join(" AND ")
    }
}

/// A column of a primary key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyColumn {
    pub name: &'static str,
    pub kind: KeyKind,
}

/// The key that most tables have.
pub const ID: &[KeyColumn] = &[KeyColumn {
    name: "id",
    kind: KeyKind::Id,
}];

/// What a column of a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// `bigint`: a JSON number.
    Id,
    /// `date`: `2020-01-31` in paths, days since 1970 in events.
    Day,
    /// `text`.
    Text,
}

/// The key of one row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RowKey(Box<[Part]>);

/// A value of a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Part {
    /// An id, or days since 1970.
    Number(i64),
    Text(String),
}

/// A segment of a path that is no value of its column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongKey {
    pub column: KeyColumn,
    pub given: String,
}

impl RowKey {
    /// From the segments of a path. One row has one URL: no plus, no leading zeros.
    ///
    /// # Errors
    /// The first segment that is no value of its column; an empty one where some are missing.
    pub fn from_path(table: &Table, segments: &[String]) -> Result<Self, WrongKey> {
        let parts = table.key.iter().enumerate().map(|(index, column)| {
            let given = segments.get(index).map_or("", String::as_str);
            let part = match column.kind {
                KeyKind::Id => given
                    .parse()
                    .ok()
                    .filter(|id: &i64| id.to_string() == given)
                    .map(Part::Number),
                KeyKind::Day => days(given).map(Part::Number),
                // PostgreSQL's text cannot hold a zero byte, so no row is named by one.
                KeyKind::Text => Some(given)
                    .filter(|text| !text.is_empty() && !text.contains('\0'))
                    .map(|text| Part::Text(text.to_owned())),
            };
            part.ok_or_else(|| WrongKey {
                column: *column,
                given: given.to_owned(),
            })
        });
        parts.collect::<Result<_, _>>().map(Self)
    }

    /// From the key of an event; none where it is not that of the table.
    #[must_use]
    pub fn from_event(table: &Table, json: &[u8]) -> Option<Self> {
        let key: Value = serde_json::from_slice(json).ok()?;
        let parts = table.key.iter().map(|column| {
            let value = key.get(column.name)?;
            match column.kind {
                KeyKind::Id | KeyKind::Day => value.as_i64().map(Part::Number),
                KeyKind::Text => value.as_str().map(|text| Part::Text(text.to_owned())),
            }
        });
        parts.collect::<Option<_>>().map(Self)
    }

    /// What [`Table::condition`] takes.
    #[must_use]
    pub fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.0.iter().map(Part::parameter).collect()
    }
}

impl Part {
    /// Can a column of this kind hold it? Else a statement that takes it may fail.
    #[must_use]
    pub fn fits(&self, kind: KeyKind) -> bool {
        match (self, kind) {
            (Self::Number(_), KeyKind::Id) => true,
            (Self::Number(days), KeyKind::Day) => DAYS.contains(days),
            (Self::Text(text), KeyKind::Text) => !text.contains('\0'),
            (Self::Number(_), KeyKind::Text) | (Self::Text(_), KeyKind::Id | KeyKind::Day) => false,
        }
    }

    /// As a statement takes it: `bigint` or `text`.
    #[must_use]
    pub fn parameter(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Number(number) => number,
            Self::Text(text) => text,
        }
    }
}

impl WrongKey {
    /// What the segment must be.
    #[must_use]
    pub fn expected(&self) -> &'static str {
        match self.column.kind {
            KeyKind::Id => {
                "a whole number from -9223372036854775808 to 9223372036854775807, written \
                without leading zeros or plus"
            }
            KeyKind::Day => "a day like 2020-01-31",
            KeyKind::Text => "a text without zero bytes",
        }
    }
}

/// Days from 1970-01-01 to a day that is written as `2020-01-31`.
fn days(text: &str) -> Option<i64> {
    let midnight: Instant = format!("{text}T00:00:00.000000Z").parse().ok()?;
    Some(midnight.0.div_euclid(DAY_US))
}

/// As in the path, but for days, which are counted.
impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("/")?;
            }
            match part {
                Part::Number(number) => number.fmt(f)?,
                Part::Text(text) => f.write_str(text)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SALES: Table = Table {
        name: "public.daily_sales",
        key: &[
            KeyColumn {
                name: "day",
                kind: KeyKind::Day,
            },
            KeyColumn {
                name: "product_id",
                kind: KeyKind::Id,
            },
        ],
    };
    const COUNTRIES: Table = Table {
        name: "public.countries",
        key: &[KeyColumn {
            name: "country",
            kind: KeyKind::Text,
        }],
    };

    fn path(table: &Table, segments: &[&str]) -> Option<RowKey> {
        let segments: Vec<_> = segments.iter().map(|text| (*text).to_owned()).collect();
        RowKey::from_path(table, &segments).ok()
    }

    #[test]
    fn a_path_names_the_row_that_an_event_names() {
        let event = br#"{"day": 18292, "product_id": 7}"#;
        let named = path(&SALES, &["2020-01-31", "7"]);
        assert!(named.is_some());
        assert_eq!(named, RowKey::from_event(&SALES, event));
        let event = br#"{"country": "C\u00f4te d'Ivoire"}"#;
        let named = path(&COUNTRIES, &["C\u{f4}te d'Ivoire"]);
        assert_eq!(named, RowKey::from_event(&COUNTRIES, event));
        assert_eq!(RowKey::from_event(&SALES, b"{}"), None);
    }

    #[test]
    fn a_row_has_one_path() {
        for wrong in [
            ["2020-1-31", "7"],
            ["2020-02-30", "7"],
            ["2020-01-31", "07"],
            ["2020-01-31", "+7"],
            ["18292", "7"],
            ["", "7"],
        ] {
            assert_eq!(path(&SALES, &wrong), None, "{wrong:?}");
        }
        assert_eq!(path(&SALES, &["2020-01-31"]), None);
        assert_eq!(path(&COUNTRIES, &["a\0"]), None);
    }

    proptest! {
        #[test]
        fn an_id_is_written_in_one_way(id: i64) {
            let orders = Table { name: "public.orders", key: ID };
            prop_assert!(path(&orders, &[&id.to_string()]).is_some());
            let (padded, signed) = (format!("0{id}"), format!("+{id}"));
            prop_assert!(path(&orders, &[&padded]).is_none());
            prop_assert!(path(&orders, &[&signed]).is_none());
        }

        #[test]
        fn any_path_and_any_event_are_read_or_refused(text in ".{0,30}", json in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = path(&SALES, &[&text, &text]);
            let _ = path(&COUNTRIES, &[&text]);
            let _ = RowKey::from_event(&SALES, &json);
        }
    }
}
