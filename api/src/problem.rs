//! Every way a request can fail, and what the client is told: `application/problem+json` as
//! RFC 9457 has it, with a `code` that stays, the parameter that is wrong and the way out.
//!
//! `docs/errors.md` has a section for each code; a test keeps it so. What a database said never
//! reaches a client: it is logged where it happened.

use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::position::{MinimumError, Positions};
use crate::query::ViewError;

/// The header that says how far in each source an answer is.
pub const VIEW_POSITION: &str = "view-position";

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    UnknownParameter {
        name: String,
        known: &'static [&'static str],
    },
    DuplicateParameter {
        name: String,
    },
    InvalidParameter {
        name: &'static str,
        expected: String,
    },
    InvalidCursor,
    InvalidId {
        /// The part of the path.
        name: &'static str,
        given: String,
        expected: &'static str,
    },
    InvalidMinPosition(MinimumError),
    NotFound {
        resource: &'static str,
        key: String,
        positions: Arc<Positions>,
    },
    NoSuchRoute {
        path: String,
    },
    MethodNotAllowed,
    UriTooLong {
        bytes_max: usize,
    },
    BodyTooLarge {
        bytes_max: usize,
    },
    PositionNotReached {
        positions: Arc<Positions>,
        waited_ms: u64,
    },
    TooManyWaits,
    TooManyRequests,
    ViewUnavailable,
    TimedOut,
    Internal,
}

/// The body of an error answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProblemBody {
    /// Names the kind of problem: `urn:tributary:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:tributary:problem:unknown_parameter")]
    kind: String,
    /// What this kind of problem is.
    #[schema(example = "A query parameter is not known")]
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 400)]
    status: u16,
    /// The stable name of this kind of problem; match on this.
    #[schema(example = "unknown_parameter")]
    code: &'static str,
    /// What was wrong with this request and what to do.
    #[schema(example = "there is no query parameter \"limt\"; did you mean \"limit\"?")]
    detail: String,
    /// The parameter or header that is wrong, where one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "limt")]
    parameter: Option<String>,
    /// With `position_not_reached`: how far the view is, as in the header `View-Position`.
    #[serde(skip_serializing_if = "Option::is_none")]
    view_position: Option<String>,
}

impl ProblemBody {
    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }
}

impl Problem {
    /// The code of every problem: for the documentation and the test that compares it.
    pub const CODES: [&str; 17] = [
        "unknown_parameter",
        "duplicate_parameter",
        "invalid_parameter",
        "invalid_cursor",
        "invalid_id",
        "invalid_min_position",
        "not_found",
        "no_such_route",
        "method_not_allowed",
        "uri_too_long",
        "body_too_large",
        "position_not_reached",
        "too_many_waits",
        "too_many_requests",
        "view_unavailable",
        "timed_out",
        "internal",
    ];

    /// Status, code and title: the one place where a problem gets its status.
    fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::UnknownParameter { .. } => (
                StatusCode::BAD_REQUEST,
                "unknown_parameter",
                "A query parameter is not known",
            ),
            Self::DuplicateParameter { .. } => (
                StatusCode::BAD_REQUEST,
                "duplicate_parameter",
                "A query parameter is given twice",
            ),
            Self::InvalidParameter { .. } => (
                StatusCode::BAD_REQUEST,
                "invalid_parameter",
                "A query parameter has a value it cannot have",
            ),
            Self::InvalidCursor => (
                StatusCode::BAD_REQUEST,
                "invalid_cursor",
                "The cursor is not one of this list",
            ),
            Self::InvalidId { .. } => (
                StatusCode::BAD_REQUEST,
                "invalid_id",
                "The path names no row that there can be",
            ),
            Self::InvalidMinPosition(_) => (
                StatusCode::BAD_REQUEST,
                "invalid_min_position",
                "Min-Position cannot be read",
            ),
            Self::NotFound { .. } => (StatusCode::NOT_FOUND, "not_found", "There is no such row"),
            Self::NoSuchRoute { .. } => (
                StatusCode::NOT_FOUND,
                "no_such_route",
                "There is no such route",
            ),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "The route does not know this method",
            ),
            Self::UriTooLong { .. } => (
                StatusCode::URI_TOO_LONG,
                "uri_too_long",
                "The URI is too long",
            ),
            Self::BodyTooLarge { .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "The request's body is too large",
            ),
            Self::PositionNotReached { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "position_not_reached",
                "The view did not reach Min-Position in time",
            ),
            Self::TooManyWaits => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_waits",
                "Too many requests wait for a position",
            ),
            Self::TooManyRequests => (
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_requests",
                "This instance is at its limit",
            ),
            Self::ViewUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "view_unavailable",
                "The view's database cannot be read",
            ),
            Self::TimedOut => (
                StatusCode::GATEWAY_TIMEOUT,
                "timed_out",
                "The answer took too long",
            ),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "Something is wrong on this side",
            ),
        }
    }

    /// The stable name of this kind of problem.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.kind().1
    }

    fn detail(&self) -> String {
        match self {
            Self::UnknownParameter { name, known } => match nearest(name, known) {
                Some(near) => {
                    format!("there is no query parameter {name:?}; did you mean {near:?}?")
                }
                None => format!(
                    "there is no query parameter {name:?}; this route knows {}",
                    known.join(", ")
                ),
            },
            Self::DuplicateParameter { name } => {
                format!("the query parameter {name:?} is given more than once; give it once")
            }
            Self::InvalidParameter { name, expected } => {
                format!("the query parameter {name:?} must be {expected}")
            }
            Self::InvalidCursor => {
                "the query parameter \"cursor\" must be a next_cursor that this \
                list answered, unchanged; leave it out to begin at the first page"
                    .to_owned()
            }
            Self::InvalidId {
                name,
                given,
                expected,
            } => format!("the {name} {given:?} must be {expected}"),
            Self::InvalidMinPosition(error) => format!("the header Min-Position: {error}"),
            Self::NotFound { resource, key, .. } => {
                format!("there is no row {key} in {resource} at the position in View-Position")
            }
            Self::NoSuchRoute { path } => {
                format!("there is nothing at {path:?}; /openapi.json lists the routes")
            }
            Self::MethodNotAllowed => {
                "this route answers GET and HEAD; writes go to the legacy systems".to_owned()
            }
            Self::UriTooLong { bytes_max } => {
                format!("path and query may have {bytes_max} bytes together")
            }
            Self::BodyTooLarge { bytes_max } => {
                format!("a body may have {bytes_max} bytes; the routes here need none")
            }
            Self::PositionNotReached { waited_ms, .. } => format!(
                "the view did not reach Min-Position within {waited_ms} ms; ask again, or raise \
                 max_wait_ms; view_position says how far it is"
            ),
            Self::TooManyWaits => "as many requests wait for a Min-Position as this instance \
                allows; ask again after Retry-After"
                .to_owned(),
            Self::TooManyRequests => "this instance answers as many requests at a time as it \
                allows; ask again after Retry-After"
                .to_owned(),
            Self::ViewUnavailable => "the view's database does not answer and this is not cached; \
                ask again after Retry-After"
                .to_owned(),
            Self::TimedOut => "the request was given up; ask again, for fewer rows where it was a \
                list"
                .to_owned(),
            Self::Internal => "the request failed for a reason that was logged under the \
                X-Request-Id of this answer"
                .to_owned(),
        }
    }

    fn parameter(&self) -> Option<String> {
        match self {
            Self::UnknownParameter { name, .. } | Self::DuplicateParameter { name } => {
                Some(name.clone())
            }
            Self::InvalidParameter { name, .. } => Some((*name).to_owned()),
            Self::InvalidCursor => Some("cursor".to_owned()),
            Self::InvalidId { name, .. } => Some((*name).to_owned()),
            Self::InvalidMinPosition(_) => Some("Min-Position".to_owned()),
            Self::NotFound { .. }
            | Self::NoSuchRoute { .. }
            | Self::MethodNotAllowed
            | Self::UriTooLong { .. }
            | Self::BodyTooLarge { .. }
            | Self::PositionNotReached { .. }
            | Self::TooManyWaits
            | Self::TooManyRequests
            | Self::ViewUnavailable
            | Self::TimedOut
            | Self::Internal => None,
        }
    }

    /// The position the problem was found at, where it depends on one.
    fn positions(&self) -> Option<&Positions> {
        match self {
            Self::NotFound { positions, .. } | Self::PositionNotReached { positions, .. } => {
                Some(positions)
            }
            Self::UnknownParameter { .. }
            | Self::DuplicateParameter { .. }
            | Self::InvalidParameter { .. }
            | Self::InvalidCursor
            | Self::InvalidId { .. }
            | Self::InvalidMinPosition(_)
            | Self::NoSuchRoute { .. }
            | Self::MethodNotAllowed
            | Self::UriTooLong { .. }
            | Self::BodyTooLarge { .. }
            | Self::TooManyWaits
            | Self::TooManyRequests
            | Self::ViewUnavailable
            | Self::TimedOut
            | Self::Internal => None,
        }
    }

    /// What a client reads.
    #[must_use]
    pub fn body(&self) -> ProblemBody {
        let (status, code, title) = self.kind();
        ProblemBody {
            kind: format!("urn:tributary:problem:{code}"),
            title,
            status: status.as_u16(),
            code,
            detail: self.detail(),
            parameter: self.parameter(),
            view_position: matches!(self, Self::PositionNotReached { .. })
                .then(|| self.positions().map(Positions::to_string))
                .flatten(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, ..) = self.kind();
        let mut response = (status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(positions) = self.positions() {
            headers.insert(VIEW_POSITION, positions.to_header());
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<ViewError> for Problem {
    /// The client is told that the database does not answer; the log what it answered.
    fn from(error: ViewError) -> Self {
        tracing::warn!(%error, "a request could not be answered: {error}");
        Self::ViewUnavailable
    }
}

/// The known name that a misspelt one most likely meant, if any is near.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // A name longer than any known one by more than this is not a misspelling.
    let near = |candidate: &str| name.len() <= candidate.len() + 3;
    known
        .iter()
        .filter(|candidate| near(candidate))
        .map(|candidate| (edit_distance(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's: single bytes inserted, removed or replaced.
fn edit_distance(from: &str, to: &str) -> usize {
    let (from, to) = (from.to_ascii_lowercase(), to.to_ascii_lowercase());
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_finds_the_nearest_known_one() {
        let known = ["limit", "cursor", "max_wait_ms"];
        for (given, near) in [
            ("limt", Some("limit")),
            ("LIMIT", Some("limit")),
            ("curser", Some("cursor")),
            ("max_wait", Some("max_wait_ms")),
            ("page", None),
            ("", None),
            (&"x".repeat(10_000), None),
        ] {
            assert_eq!(nearest(given, &known), near, "{given}");
        }
    }
}
