//! `/v1/status`: how far each source is, and whether that is still so.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use kafka::Position;
use serde::Serialize;
use tokio_postgres::Row;
use utoipa::ToSchema;

use super::one::VIEW_STALE;
use crate::Api;
use crate::cache::{FeedPosition, SourceRow};
use crate::instant::Instant;
use crate::parameters::PlainRequest;
use crate::problem::{Problem, VIEW_POSITION};
use crate::query::{Seen, View, ViewError};
use crate::revision::Revision;

/// How far the view and this instance are.
#[derive(Debug, Serialize, ToSchema)]
pub struct Status {
    /// This instance's clock; RFC 3339 in UTC with microseconds.
    #[schema(example = "2020-01-01T00:00:00.000000Z")]
    now: String,
    /// The view transaction that was applied last.
    #[schema(example = "1763900000-000000000042")]
    revision: String,
    /// Every source, by name.
    sources: Vec<SourceStatus>,
    feed: FeedStatus,
}

/// One source, as the view has it.
#[derive(Debug, Serialize, ToSchema)]
pub struct SourceStatus {
    #[schema(example = "sales")]
    source: String,
    state: SourceState,
    /// Epoch and LSN; null while loading.
    #[schema(required, example = "1763900000:0/1A2B3C")]
    position: Option<String>,
    /// When that position was last known to be all that the source had; null: not yet.
    #[schema(required, example = "2020-01-01T00:00:00.000000Z")]
    current_at: Option<String>,
    /// Milliseconds since `current_at`.
    #[schema(required, example = 120)]
    lag_ms: Option<i64>,
    /// Bytes of the source's log that the view had not applied when it last heard of them.
    #[schema(required, example = 0)]
    lag_bytes: Option<i64>,
}

/// What to expect of a source's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// Not read yet: its fields are null and named in `unknown`.
    Loading,
    /// Known current within the last seconds.
    Live,
    /// Not known current for longer than the configured time (15 s): the source, its connector
    /// or the way from there is slow or down. Its data is as old as `current_at` says.
    Stale,
}

/// What feeds this instance's cache.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeedStatus {
    state: FeedState,
    /// This instance's position: what a cached row shows. Null while starting.
    #[schema(required, example = "sales=1763900000:0/1A2B3C")]
    position: Option<String>,
    /// Milliseconds since the last checkpoint was taken.
    #[schema(required, example = 40)]
    age_ms: Option<u64>,
}

/// Whether the cache is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeedState {
    /// No checkpoint was taken yet: every answer is read from the view's database.
    Starting,
    /// Cached rows are evicted as they change.
    Live,
    /// No checkpoint for longer than the configured time: cached rows serve only where the
    /// view's database does not answer.
    Silent,
}

/// How far each source is, and whether this instance's cache is fed.
#[utoipa::path(get, path = "/v1/status", tag = "status", operation_id = "get_status",
    responses((status = 200, description = "The status", body = Status)))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    request: PlainRequest,
) -> Result<Response, Problem> {
    let started = tokio::time::Instant::now();
    loop {
        let feed = api.cache.position();
        let (seen, is_stale) = match (sources(&api.view).await, &feed) {
            (Ok(seen), _) => (seen, false),
            // Without the database the feed still knows how far the sources were.
            (Err(_), Some(feed)) => (told_by(feed), true),
            (Err(error), None) => return Err(error.into()),
        };
        let minimum = &request.wanted.minimum;
        if !minimum.is_met_by(&seen.positions) {
            api.wait(&request.wanted, None, started, &seen.positions)
                .await?;
            continue;
        }
        let status = Json(status(&api, &seen, feed.as_deref()));
        let mut response = ([(VIEW_POSITION, seen.positions.to_header())], status).into_response();
        if is_stale {
            response
                .headers_mut()
                .insert(VIEW_STALE, HeaderValue::from_static("true"));
        }
        return Ok(response);
    }
}

const SOURCES: &str = "SELECT source, epoch, lsn, lag_bytes, \
    to_char(current_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS current_at, \
    writer, number, degraded::text FROM public.positions";

/// The view's rows about its sources.
pub(crate) async fn sources(view: &View) -> Result<Seen<Vec<SourceRow>>, ViewError> {
    let seen = view.rows("sources", SOURCES).await?;
    let rows: Result<Vec<_>, _> = seen.found.iter().filter_map(source).collect();
    let rows = rows.map_err(|source| ViewError::Read {
        what: "sources",
        source,
    })?;
    Ok(seen.with(rows))
}

/// None: the join found no row.
fn source(row: &Row) -> Option<Result<SourceRow, tokio_postgres::Error>> {
    let read = |source| {
        Ok(SourceRow {
            source,
            epoch: row.try_get("epoch")?,
            lsn: row.try_get("lsn")?,
            lag_bytes: row.try_get("lag_bytes")?,
            current_at: row.try_get("current_at")?,
            writer: row.try_get("writer")?,
            number: row.try_get("number")?,
            degraded: row.try_get("degraded")?,
        })
    };
    match row.try_get("source") {
        Ok(None) => None,
        Ok(Some(source)) => Some(read(source)),
        Err(error) => Some(Err(error)),
    }
}

fn told_by(feed: &FeedPosition) -> Seen<Vec<SourceRow>> {
    Seen {
        found: feed.sources.to_vec(),
        revision: feed.revision,
        positions: feed.positions.clone(),
    }
}

fn status(api: &Api, seen: &Seen<Vec<SourceRow>>, feed: Option<&FeedPosition>) -> Status {
    let now = Instant::now();
    let Revision { writer, number } = seen.revision;
    let sources = seen.positions.iter().map(|(source, position)| {
        let row = seen.found.iter().find(|row| row.source == source);
        source_status(source, position, row, now, api.config.stale_after_ms)
    });
    Status {
        now: now.to_string(),
        revision: format!("{writer:010}-{number:012}"),
        sources: sources.collect(),
        feed: FeedStatus {
            state: match feed {
                None => FeedState::Starting,
                Some(feed) if api.cache.is_fed(feed) => FeedState::Live,
                Some(_) => FeedState::Silent,
            },
            position: feed.map(|feed| feed.positions.to_string()),
            age_ms: feed
                .map(|feed| u64::try_from(feed.taken.elapsed().as_millis()).unwrap_or(u64::MAX)),
        },
    }
}

fn source_status(
    source: &str,
    position: Option<Position>,
    row: Option<&SourceRow>,
    now: Instant,
    stale_after_ms: i64,
) -> SourceStatus {
    let current_at = row.and_then(|row| row.current_at.clone());
    let lag_ms = current_at
        .as_ref()
        .and_then(|at| at.parse().ok())
        .map(|at| now.ms_since(at));
    let state = match (position, lag_ms) {
        (None, _) => SourceState::Loading,
        (Some(_), Some(lag_ms)) if lag_ms <= stale_after_ms => SourceState::Live,
        (Some(_), _) => SourceState::Stale,
    };
    SourceStatus {
        source: source.to_owned(),
        state,
        position: position.map(|position| position.to_string()),
        current_at,
        lag_ms,
        lag_bytes: row.and_then(|row| row.lag_bytes),
    }
}

#[cfg(test)]
mod tests {
    use kafka::Lsn;

    use super::*;

    #[test]
    fn a_source_is_loading_then_live_and_stale_once_it_is_not_known_current() {
        let state = |position: Option<Position>, current_at: Option<i64>| {
            let row = SourceRow {
                source: "sales".to_owned(),
                epoch: None,
                lsn: None,
                lag_bytes: Some(0),
                current_at: current_at.map(|us| Instant(us).to_string()),
                writer: 1,
                number: 1,
                degraded: None,
            };
            source_status("sales", position, Some(&row), Instant(60_000_000), 15_000).state
        };
        let position = Some(Position {
            epoch: 1,
            lsn: Lsn(1),
        });
        assert_eq!(state(None, None), SourceState::Loading);
        assert_eq!(state(position, Some(45_000_000)), SourceState::Live);
        assert_eq!(state(position, Some(44_999_000)), SourceState::Stale);
        assert_eq!(state(position, None), SourceState::Stale);
    }
}
