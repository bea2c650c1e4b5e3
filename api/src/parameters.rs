//! What a request asks: its path's key, its query, its `Min-Position`.
//!
//! Strict: an unknown parameter, one given twice and one out of bounds are problems that name
//! it. What is silently ignored today is what a client relies on tomorrow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;

use crate::Api;
use crate::key::{RowKey, Table};
use crate::position::Minimum;
use crate::problem::Problem;
use crate::route::discrepancies::RULES;

pub const LIMIT_MAX: u16 = 1000;
pub const LIMIT_DEFAULT: u16 = 50;
pub const MAX_WAIT_MS_MAX: u64 = 10_000;
pub const MAX_WAIT_MS_DEFAULT: u64 = 2000;

/// The header that asks for a position.
pub const MIN_POSITION: &str = "min-position";

const OF_ONE: &[&str] = &["max_wait_ms"];
/// The query parameters of lists.
pub const OF_LIST: &[&str] = &["cursor", "limit", "max_wait_ms"];
const OF_DISCREPANCIES: &[&str] = &["cursor", "limit", "max_wait_ms", "rule", "system"];

/// The position that a client asks for, and how long it waits.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub minimum: Minimum,
    pub wait: Duration,
}

/// `GET` of one row.
#[derive(Debug)]
pub struct OneRequest {
    /// The path's segments that name the row, decoded.
    pub segments: Vec<String>,
    pub wanted: Wanted,
}

/// `GET` of a page.
#[derive(Debug)]
pub struct ListRequest {
    pub limit: u16,
    pub cursor: Option<String>,
    pub wanted: Wanted,
}

/// `GET` of a page of discrepancies.
#[derive(Debug)]
pub struct DiscrepanciesRequest {
    pub list: ListRequest,
    pub rule: Option<String>,
    pub system: Option<String>,
}

/// `GET` of something that has no further parameters.
#[derive(Debug)]
pub struct PlainRequest {
    pub wanted: Wanted,
}

impl OneRequest {
    /// The key of the row that the path names.
    ///
    /// # Errors
    /// A segment that is no value of its column.
    pub fn key(&self, table: &Table) -> Result<RowKey, Problem> {
        RowKey::from_path(table, &self.segments).map_err(|wrong| Problem::InvalidId {
            name: wrong.column.name,
            expected: wrong.expected(),
            given: wrong.given,
        })
    }
}

impl FromRequestParts<Arc<Api>> for OneRequest {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let Path(segments) = Path::<Vec<String>>::from_request_parts(parts, api)
            .await
            .map_err(|_| Problem::InvalidId {
                name: "id",
                given: parts.uri.path().to_owned(),
                expected: "percent-encoded UTF-8",
            })?;
        let given = Given::read(parts, OF_ONE)?;
        Ok(Self {
            segments,
            wanted: wanted(parts, &given, api)?,
        })
    }
}

impl FromRequestParts<Arc<Api>> for ListRequest {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let given = Given::read(parts, OF_LIST)?;
        Self::of(&given, parts, api)
    }
}

impl ListRequest {
    fn of(given: &Given, parts: &Parts, api: &Api) -> Result<Self, Problem> {
        let limit = given.number("limit", 1..=u64::from(LIMIT_MAX), u64::from(LIMIT_DEFAULT))?;
        Ok(Self {
            limit: u16::try_from(limit).unwrap_or(LIMIT_MAX),
            cursor: given.text("cursor").map(str::to_owned),
            wanted: wanted(parts, given, api)?,
        })
    }
}

impl FromRequestParts<Arc<Api>> for DiscrepanciesRequest {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let given = Given::read(parts, OF_DISCREPANCIES)?;
        let systems: Vec<_> = api.config.sources.iter().map(String::as_str).collect();
        Ok(Self {
            list: ListRequest::of(&given, parts, api)?,
            rule: given.one_of("rule", &RULES)?,
            system: given.one_of("system", &systems)?,
        })
    }
}

impl FromRequestParts<Arc<Api>> for PlainRequest {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let given = Given::read(parts, OF_ONE)?;
        Ok(Self {
            wanted: wanted(parts, &given, api)?,
        })
    }
}

/// The query's parameters, each known and given once.
struct Given(BTreeMap<String, String>);

impl Given {
    fn read(parts: &Parts, known: &'static [&'static str]) -> Result<Self, Problem> {
        let Query(pairs) =
            Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map_err(|_| {
                Problem::InvalidParameter {
                    name: "query",
                    expected: "name=value pairs with & between, percent-encoded".to_owned(),
                }
            })?;
        let mut given = BTreeMap::new();
        for (name, value) in pairs {
            if !known.contains(&name.as_str()) {
                return Err(Problem::UnknownParameter { name, known });
            }
            if given.insert(name.clone(), value).is_some() {
                return Err(Problem::DuplicateParameter { name });
            }
        }
        Ok(Self(given))
    }

    /// A word of a list, if it is given.
    fn one_of(&self, name: &'static str, words: &[&str]) -> Result<Option<String>, Problem> {
        match self.text(name) {
            Some(word) if !words.contains(&word) => Err(Problem::InvalidParameter {
                name,
                expected: format!("one of {}", words.join(", ")),
            }),
            word => Ok(word.map(str::to_owned)),
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(
        &self,
        name: &'static str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64, Problem> {
        let Some(text) = self.text(name) else {
            return Ok(default);
        };
        text.parse()
            .ok()
            .filter(|number| is_plain_number(text) && range.contains(number))
            .ok_or_else(|| Problem::InvalidParameter {
                name,
                expected: format!("a whole number from {} to {}", range.start(), range.end()),
            })
    }
}

fn wanted(parts: &Parts, given: &Given, api: &Api) -> Result<Wanted, Problem> {
    let wait_ms = given.number("max_wait_ms", 0..=MAX_WAIT_MS_MAX, MAX_WAIT_MS_DEFAULT)?;
    let mut items = Vec::new();
    for value in parts.headers.get_all(MIN_POSITION) {
        items.push(String::from_utf8_lossy(value.as_bytes()));
    }
    Ok(Wanted {
        minimum: Minimum::parse(&items.join(","), &api.config.sources)
            .map_err(Problem::InvalidMinPosition)?,
        wait: Duration::from_millis(wait_ms),
    })
}

fn is_plain_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use proptest::prelude::*;

    use super::*;

    fn read(query: &str) -> Result<Given, Problem> {
        let request = Request::builder()
            .uri(format!("/v1/orders?{query}"))
            .body(())
            .unwrap();
        Given::read(&request.into_parts().0, OF_LIST)
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(query in "[a-z_=&%+0-9]{0,60}") {
            if let Ok(given) = read(&query) {
                let _ = given.number("limit", 1..=1000, 50);
            }
        }

        #[test]
        fn a_number_in_bounds_is_taken(limit in 1_u64..=1000) {
            let given = read(&format!("limit={limit}")).unwrap();
            prop_assert_eq!(given.number("limit", 1..=1000, 50), Ok(limit));
        }
    }

    #[test]
    fn numbers_out_of_bounds_are_refused() {
        for value in [
            "0",
            "1001",
            "4294967295",
            "99999999999999999999",
            "-1",
            "+5",
            "5.0",
            "",
            "x",
        ] {
            let query = format!("limit={}", value.replace('+', "%2B"));
            let given = read(&query).unwrap();
            assert!(given.number("limit", 1..=1000, 50).is_err(), "{value:?}");
        }
    }

    #[test]
    fn unknown_and_repeated_parameters_are_named() {
        let problem = |query: &str| read(query).err().map(|problem| problem.code());
        assert_eq!(problem("limt=5"), Some("unknown_parameter"));
        assert_eq!(problem("limit=5&limit=5"), Some("duplicate_parameter"));
        assert_eq!(problem("limit=5&cursor=x&max_wait_ms=0"), None);
    }
}
