//! What happens to every request, in one place and in one order.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;
use tower_http::limit::RequestBodyLimitLayer;
use tracing::Instrument;

use crate::Api;
use crate::measure;
use crate::position::Positions;
use crate::problem::{Problem, VIEW_POSITION};
use crate::route;

/// Names an answer in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Smaller bodies are sent as they are: compressing them costs more than their bytes.
const COMPRESS_ABOVE_BYTES: u64 = 1024;

/// The routes with everything around them; the first layer here is the innermost.
pub fn around(api: Arc<Api>) -> Router {
    let limits = &api.config.limits;
    let places = Arc::new(Semaphore::new(limits.requests_max));
    route::router()
        // A body is read by no route; a large one is refused all the same.
        .layer(RequestBodyLimitLayer::new(limits.body_bytes_max))
        // Behind the timeout, so that compressing counts.
        .layer(
            CompressionLayer::new()
                .no_deflate()
                .no_br()
                .no_zstd()
                .compress_when(SizeAbove::new(COMPRESS_ABOVE_BYTES)),
        )
        // Whatever hangs behind here is given up, also a wait that has no bound of its own.
        .layer(from_fn_with_state(
            Duration::from_millis(limits.request_timeout_ms),
            give_up,
        ))
        // Behind the cheap refusals, before anything that costs: more requests than this
        // instance takes on are refused at once instead of slowing all down.
        .layer(from_fn_with_state(places, take_on))
        // Before routing: what is too long is not looked at.
        .layer(from_fn_with_state(limits.uri_bytes_max, refuse_long_uri))
        // Around everything that may panic, within everything that describes the answer.
        .layer(CatchPanicLayer::custom(panicked))
        // Problems that other layers answered in their own words become ours.
        .layer(from_fn_with_state(limits.body_bytes_max, to_problems))
        // Every answer says how far it is; the ones that looked at no data have not said it.
        .layer(from_fn_with_state(api.clone(), say_position))
        // Outermost: counts, times and names every answer, whoever gave it.
        .layer(from_fn(observe))
        .with_state(api)
}

async fn give_up(State(timeout): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::TimedOut.into_response(),
    }
}

async fn take_on(State(places): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let Ok(_place) = places.try_acquire() else {
        measure::request_refused();
        return Problem::TooManyRequests.into_response();
    };
    next.run(request).await
}

async fn refuse_long_uri(State(bytes_max): State<usize>, request: Request, next: Next) -> Response {
    let length = request
        .uri()
        .path_and_query()
        .map_or(0, |uri| uri.as_str().len());
    if length > bytes_max {
        return Problem::UriTooLong { bytes_max }.into_response();
    }
    next.run(request).await
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(error = message, "a request panicked: {message}");
    Problem::Internal.into_response()
}

async fn to_problems(State(bytes_max): State<usize>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Problem::BodyTooLarge { bytes_max }.into_response();
    }
    response
}

async fn say_position(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    // From before: an answer that looked at no data must not claim what came meanwhile.
    let before = api.cache.position();
    let is_data = request.uri().path().starts_with("/v1/");
    let mut response = next.run(request).await;
    if !response.headers().contains_key(VIEW_POSITION) {
        let said = match before {
            Some(before) => before.positions.to_header(),
            None => Positions::new(&api.config.sources, []).to_header(),
        };
        response.headers_mut().insert(VIEW_POSITION, said);
    }
    if is_data {
        // A shared cache in between would answer without regard to Min-Position.
        let no_store = HeaderValue::from_static("no-store");
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, no_store);
    }
    response
}

async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str)
        .to_owned();
    let method = match request.method().as_str() {
        known @ ("GET" | "HEAD" | "OPTIONS" | "POST" | "PUT" | "PATCH" | "DELETE") => known,
        _ => "other",
    }
    .to_owned();
    let path = request.uri().path().to_owned();
    let id = format!("{:016x}", rand::random::<u64>());
    // Whatever is logged on the way carries the id that the client sees.
    let span = tracing::info_span!("request", id);
    let mut response = next.run(request).instrument(span).await;
    let (status, elapsed) = (response.status(), started.elapsed());
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let bytes = response.body().size_hint().exact();
    let ms = elapsed.as_secs_f64() * 1000.0;
    // A 503 is told to the client with its reason, and may come as often as clients wait.
    if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        tracing::warn!(
            id,
            method,
            path,
            status = status.as_u16(),
            ms,
            "{method} {path}: {status}"
        );
    } else {
        tracing::debug!(
            id,
            method,
            path,
            status = status.as_u16(),
            ms,
            bytes,
            "{method} {path}: {status}"
        );
    }
    measure::request(route, method, status.as_u16(), elapsed);
    response.map(Body::new)
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_problem_that_does_not_say_what_happened() {
        let router = Router::new()
            .route("/", get(|| async { panic!("a secret") as () }))
            .layer(CatchPanicLayer::custom(panicked));
        let request = Request::get("/").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 10_000)
            .await
            .unwrap();
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(
            body.contains("\"code\":\"internal\"") && !body.contains("secret"),
            "{body}"
        );
    }
}
