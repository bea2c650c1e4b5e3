//! `GET` of a list: one snapshot of the view, a page at a time, never cached.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::Api;
use crate::cursor;
use crate::parameters::ListRequest;
use crate::problem::{Problem, VIEW_POSITION};
use crate::query::{Filter, Resource};

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// The rows, in the list's order.
    pub data: Vec<T>,
    /// Where the list goes on: pass it as `cursor`. Null after the last page.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

/// Answers with a page, once it can at the position that was asked for.
///
/// # Errors
/// A cursor that is not one of this list; the position was not reached; the view does not
/// answer.
pub async fn page<R: Resource>(api: &Api, request: &ListRequest) -> Result<Response, Problem> {
    page_of::<R>(api, request, &[]).await
}

/// The same, of those rows that all filters let through.
///
/// # Errors
/// As [`page`].
pub async fn page_of<R: Resource>(
    api: &Api,
    request: &ListRequest,
    filters: &[Filter],
) -> Result<Response, Problem> {
    let after = match &request.cursor {
        None => None,
        Some(text) => {
            Some(cursor::decode(R::NAME, R::SORTED_BY, text).ok_or(Problem::InvalidCursor)?)
        }
    };
    let started = Instant::now();
    let seen = loop {
        // One row more than asked tells whether there is another page.
        let seen = api
            .view
            .page::<R>(after.as_deref(), i64::from(request.limit) + 1, filters)
            .await?;
        if request.wanted.minimum.is_met_by(&seen.positions) {
            break seen;
        }
        api.wait(&request.wanted, None, started, &seen.positions)
            .await?;
    };
    let mut data = seen.found;
    let goes_on = data.len() > usize::from(request.limit);
    data.truncate(usize::from(request.limit));
    let next_cursor = data
        .last()
        .filter(|_| goes_on)
        .map(|last| cursor::encode(R::NAME, &last.sort_key()));
    let page = Json(Page { data, next_cursor });
    Ok(([(VIEW_POSITION, seen.positions.to_header())], page).into_response())
}
