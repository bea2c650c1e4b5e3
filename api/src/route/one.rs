//! `GET` of one row: from the cache where that shows what was asked, else from the view.

use std::sync::Arc;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use service::fault;
use tokio::time::Instant;

use crate::Api;
use crate::cache::{CachedRow, Entry, FeedPosition};
use crate::key::{RowKey, Table};
use crate::measure::{self, Look};
use crate::parameters::OneRequest;
use crate::position::Positions;
use crate::problem::{Problem, VIEW_POSITION};
use crate::query::Resource;

/// Says that an answer may be older than the view, because the view's database is down.
pub const VIEW_STALE: &str = "view-stale";

/// A row or its absence, and the position it is true at.
struct Answer {
    row: Option<CachedRow>,
    positions: Arc<Positions>,
    is_stale: bool,
}

/// What the cache had, and whether it is fresh enough to be answered without the database.
struct Cached {
    answer: Answer,
    is_fed: bool,
}

/// Answers with the row, once it can at the position that was asked for.
///
/// # Errors
/// No such row; the position was not reached; the view does not answer.
pub async fn one<R: Resource>(api: &Api, request: &OneRequest) -> Result<Response, Problem> {
    let (key, wanted) = (&request.key(&R::TABLE)?, &request.wanted);
    let started = Instant::now();
    loop {
        // From before looking: what is cached then is the view's row at this position.
        let before = api.cache.position();
        let cached = match &before {
            Some(before) => look(api, before, R::TABLE, key).await,
            None => None,
        };
        if let Some(cached) = &cached
            && cached.is_fed
            && wanted.minimum.is_met_by(&cached.answer.positions)
        {
            measure::look(Look::Hit);
            return Ok(respond::<R>(key, &cached.answer));
        }
        measure::look(match (&before, &cached) {
            (None, _) => Look::Off,
            (Some(_), None) => Look::Miss,
            (Some(_), Some(cached)) if cached.is_fed => Look::Below,
            (Some(_), Some(_)) => Look::Old,
        });
        let answer = match (read::<R>(api, before.as_deref(), key).await, cached) {
            (Ok(answer), _) => answer,
            (Err(_), Some(cached)) => Answer {
                is_stale: true,
                ..cached.answer
            },
            (Err(problem), None) => return Err(problem),
        };
        if wanted.minimum.is_met_by(&answer.positions)
            || !fault::in_force("min_position_of_the_answer")
        {
            return Ok(respond::<R>(key, &answer));
        }
        let feed_is_below = before.is_none_or(|at| !wanted.minimum.is_met_by(&at.positions));
        let feed = feed_is_below.then_some(&api.cache);
        api.wait(wanted, feed, started, &answer.positions).await?;
    }
}

/// The cached row at the later of two positions: this instance's from before it looked, and
/// the one the row was read at.
async fn look(api: &Api, before: &FeedPosition, table: Table, key: &RowKey) -> Option<Cached> {
    let entry = api.cache.look(before, table, key).await?;
    let later;
    let at = if fault::in_force("position_before_look") {
        before
    } else {
        fault::point("api.between_look_and_position").await;
        later = api.cache.position()?;
        &later
    };
    let is_newer = entry.revision > at.revision && fault::in_force("later_position");
    let positions = if is_newer {
        entry.positions
    } else {
        at.positions.clone()
    };
    Some(Cached {
        answer: Answer {
            row: entry.row,
            positions,
            is_stale: !api.view.answers(),
        },
        is_fed: api.cache.is_fed(at),
    })
}

/// Reads the row from the view, and offers it to the cache.
async fn read<R: Resource>(
    api: &Api,
    before: Option<&FeedPosition>,
    key: &RowKey,
) -> Result<Answer, Problem> {
    let seen = api.view.one::<R>(key).await.map_err(Problem::from)?;
    let row = match &seen.found {
        None => None,
        Some(row) => Some(CachedRow {
            json: json(row)?,
            is_sold: row.is_sold(),
        }),
    };
    if let Some(before) = before {
        fault::point("api.between_read_and_insert").await;
        let entry = Entry {
            row: row.clone(),
            revision: seen.revision,
            positions: seen.positions.clone(),
        };
        api.cache.offer(before, R::TABLE, key, entry).await;
    }
    Ok(Answer {
        row,
        positions: seen.positions,
        is_stale: false,
    })
}

fn respond<R: Resource>(key: &RowKey, answer: &Answer) -> Response {
    let mut response = match answer.row.as_ref().filter(|row| R::shows(row)) {
        Some(row) => (
            [(header::CONTENT_TYPE, "application/json")],
            row.json.clone(),
        )
            .into_response(),
        None => Problem::NotFound {
            resource: R::NAME,
            key: key.to_string(),
            positions: answer.positions.clone(),
        }
        .into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(VIEW_POSITION, answer.positions.to_header());
    if answer.is_stale {
        headers.insert(VIEW_STALE, HeaderValue::from_static("true"));
    }
    response
}

fn json<R: Resource>(row: &R) -> Result<Bytes, Problem> {
    serde_json::to_vec(row).map(Bytes::from).map_err(|error| {
        tracing::error!(%error, "cannot write a row of {} as JSON", R::NAME);
        Problem::Internal
    })
}
