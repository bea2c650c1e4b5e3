//! The metrics of the API: names, help texts, and the one place where each is written.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

const REQUESTS: &str = "http_requests_total";
const REQUEST_MS: &str = "http_request_duration_ms";
const CONNECTIONS: &str = "http_connections";
const REFUSED: &str = "http_requests_refused_total";
const LOOKS: &str = "api_cache_looks_total";
const OFFERS: &str = "api_cache_offers_total";
const ENTRIES: &str = "api_cache_entries";
const CACHED_BYTES: &str = "api_cache_bytes";
const CHECKPOINTS: &str = "api_feed_checkpoints_total";
const EVENTS: &str = "api_feed_events_total";
const START_OVERS: &str = "api_feed_start_overs_total";
const FEED_AGE_MS: &str = "api_feed_age_milliseconds";
const READS: &str = "api_view_reads_total";
const READ_MS: &str = "api_view_read_duration_ms";
const VIEW_UP: &str = "api_view_up";
const WAITING: &str = "api_waits";
const WAITS_REFUSED: &str = "api_waits_refused_total";

/// Gives every metric its help text.
pub fn describe() {
    describe_counter!(
        REQUESTS,
        Unit::Count,
        "requests by route, method and status"
    );
    describe_histogram!(
        REQUEST_MS,
        Unit::Milliseconds,
        "from a request's head to its answer's"
    );
    describe_gauge!(CONNECTIONS, Unit::Count, "connections open");
    describe_counter!(REFUSED, Unit::Count, "requests beyond limits.requests_max");
    describe_counter!(
        LOOKS,
        Unit::Count,
        "looks at the cache: hit, miss, below (older than asked), old (the feed is silent), off"
    );
    describe_counter!(
        OFFERS,
        Unit::Count,
        "rows read for the cache: kept, refused (by their mark or full), too_large"
    );
    describe_gauge!(ENTRIES, Unit::Count, "rows cached, absent ones too");
    describe_gauge!(CACHED_BYTES, Unit::Bytes, "size of the rows cached");
    describe_counter!(
        CHECKPOINTS,
        Unit::Count,
        "checkpoints of unified that the feed took"
    );
    describe_counter!(EVENTS, Unit::Count, "events that checkpoints ended with");
    describe_counter!(
        START_OVERS,
        Unit::Count,
        "times the cache started over: gap, epoch, writer, suspension"
    );
    describe_gauge!(
        FEED_AGE_MS,
        Unit::Milliseconds,
        "since the feed took a checkpoint; -1: none yet"
    );
    describe_counter!(READS, Unit::Count, "statements on the view, ok or not");
    describe_histogram!(
        READ_MS,
        Unit::Milliseconds,
        "time of a statement, the wait for a connection included"
    );
    describe_gauge!(VIEW_UP, Unit::Count, "1 while the view's database answers");
    describe_gauge!(WAITING, Unit::Count, "requests that wait for a position");
    describe_counter!(
        WAITS_REFUSED,
        Unit::Count,
        "requests beyond limits.waits_max"
    );
}

pub(crate) fn request(route: String, method: String, status: u16, elapsed: Duration) {
    histogram!(REQUEST_MS, "route" => route.clone()).record(elapsed.as_secs_f64() * 1000.0);
    counter!(REQUESTS, "route" => route, "method" => method, "status" => status.to_string())
        .increment(1);
}

pub(crate) fn request_refused() {
    counter!(REFUSED).increment(1);
}

pub(crate) fn connections(change: f64) {
    gauge!(CONNECTIONS).increment(change);
}

/// What looking at the cache gave.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Look {
    Hit,
    Miss,
    /// Cached, but older than the client asks for.
    Below,
    /// Cached, but the feed has been silent for too long.
    Old,
    /// The feed has not said where it starts.
    Off,
}

pub(crate) fn look(result: Look) {
    let result = match result {
        Look::Hit => "hit",
        Look::Miss => "miss",
        Look::Below => "below",
        Look::Old => "old",
        Look::Off => "off",
    };
    counter!(LOOKS, "result" => result).increment(1);
}

/// What came of offering a row to the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Offer {
    Kept,
    Refused,
    TooLarge,
}

pub(crate) fn offer(result: Offer) {
    let result = match result {
        Offer::Kept => "kept",
        Offer::Refused => "refused",
        Offer::TooLarge => "too_large",
    };
    counter!(OFFERS, "result" => result).increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub(crate) fn cached(entries: u64, bytes: u64) {
    gauge!(ENTRIES).set(entries as f64);
    gauge!(CACHED_BYTES).set(bytes as f64);
}

pub(crate) fn checkpoint(events: usize) {
    counter!(CHECKPOINTS).increment(1);
    counter!(EVENTS).increment(events as u64);
}

pub(crate) fn start_over(reason: &'static str) {
    counter!(START_OVERS, "reason" => reason).increment(1);
}

pub(crate) fn feed_age(age: Option<Duration>) {
    gauge!(FEED_AGE_MS).set(age.map_or(-1.0, |age| age.as_secs_f64() * 1000.0));
}

pub(crate) fn view_read(what: &'static str, elapsed: Duration, is_ok: bool) {
    histogram!(READ_MS, "what" => what).record(elapsed.as_secs_f64() * 1000.0);
    let result = if is_ok { "ok" } else { "failed" };
    counter!(READS, "what" => what, "result" => result).increment(1);
    gauge!(VIEW_UP).set(f64::from(u8::from(is_ok)));
}

pub(crate) fn waiting(change: f64) {
    gauge!(WAITING).increment(change);
}

pub(crate) fn wait_refused() {
    counter!(WAITS_REFUSED).increment(1);
}
