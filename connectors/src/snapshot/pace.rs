//! How much is read at once: chunks of bounded time, rows a second bounded on request.

use std::time::{Duration, Instant};

use service::fault::in_force;

use crate::config::ReadsConfig;

/// Rows of a first statement, before it is known how large a table's rows are.
const FETCH_ROWS_FIRST: usize = 500;
/// Rows of one statement at most: a chunk's bounds are looked at between statements.
const FETCH_ROWS_MAX: usize = 20_000;
/// A statement is stopped where the chunk has so many times what it may have.
const FAR_OVER: usize = 2;
/// Rows of the first chunk of a life.
const CHUNK_ROWS_FIRST: usize = 20_000;
/// With rows a second bounded, a chunk has what the bound allows in so long.
const PACED_CHUNK: Duration = Duration::from_millis(250);

/// Fits chunks to the time that they may take, by how long the last one took until Kafka had
/// it: neither a slow source nor a slow broker holds the stream up for much longer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    rows: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            rows: CHUNK_ROWS_FIRST,
        }
    }
}

impl Pace {
    /// Rows of the next chunk.
    pub(super) fn rows(&self, limits: &ReadsConfig, rows_per_second_max: Option<u32>) -> usize {
        let paced = rows_per_second_max.map_or(usize::MAX, |rows| {
            let rows = u128::from(rows) * PACED_CHUNK.as_millis() / 1000;
            usize::try_from(rows).unwrap_or(usize::MAX).max(1)
        });
        self.rows.min(limits.chunk_rows).min(paced)
    }

    /// A chunk of `rows` took so long.
    pub(super) fn took(&mut self, rows: usize, took: Duration, limits: &ReadsConfig) {
        let wanted = u128::from(limits.chunk_ms_max) * 1000;
        let took = took.as_micros().max(1);
        let fit = usize::try_from(rows as u128 * wanted / took).unwrap_or(usize::MAX);
        // A chunk that was small because there was no more tells only that it was slow.
        let grown = if rows >= self.rows / 2 {
            fit.min(self.rows.saturating_mul(2))
        } else {
            self.rows
        };
        let floor = FETCH_ROWS_FIRST.min(limits.chunk_rows);
        let shrunk = if took > wanted {
            fit.max(self.rows / 2)
        } else {
            grown
        };
        self.rows = shrunk.clamp(floor, limits.chunk_rows.max(floor));
    }
}

/// When `rows` that were begun at `begun` allow the next ones.
pub(super) fn next_at(begun: Instant, rows: u64, rows_per_second_max: Option<u32>) -> Instant {
    match rows_per_second_max {
        None => begun,
        Some(per_second) => {
            let micros = rows.saturating_mul(1_000_000) / u64::from(per_second.max(1));
            begun + Duration::from_micros(micros)
        }
    }
}

/// What one worker may read in a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) rows: usize,
    pub(super) bytes: usize,
    pub(super) time: Duration,
    /// Bytes of an event of this table so far; none: not known.
    pub(super) row_bytes: Option<usize>,
}

impl Bounds {
    /// Is a chunk that has met `bytes` of events since `begun` so far beyond its bounds that its
    /// statement is not to go on?
    pub(super) fn is_far_over(&self, bytes: usize, begun: Instant) -> bool {
        let far_over = bytes >= self.bytes.saturating_mul(FAR_OVER)
            || begun.elapsed() >= self.time.saturating_mul(FAR_OVER as u32);
        far_over && in_force("statements_stopped")
    }

    /// Rows of the next statement, after `rows` rows with `bytes` bytes of events in `took`;
    /// none: the chunk is full.
    pub(super) fn next_fetch(&self, rows: usize, bytes: usize, took: Duration) -> Option<usize> {
        if rows == 0 {
            let by_bytes = self
                .row_bytes
                .map_or(FETCH_ROWS_FIRST, |row| self.bytes / row.max(1));
            return Some(by_bytes.clamp(1, FETCH_ROWS_MAX).min(self.rows.max(1)));
        }
        if rows >= self.rows || bytes >= self.bytes || took >= self.time {
            return None;
        }
        let row_bytes = (bytes / rows).max(1);
        let left = self.time.saturating_sub(took).as_micros();
        let by_time = rows as u128 * left / took.as_micros().max(1);
        let by_time = usize::try_from(by_time).unwrap_or(usize::MAX);
        let by_bytes = (self.bytes - bytes) / row_bytes;
        // Rows may get larger: no statement has more than four times what was met.
        let steady = rows.saturating_mul(4).max(FETCH_ROWS_FIRST);
        let fetch = by_time.min(by_bytes).min(steady).min(self.rows - rows);
        Some(fetch.clamp(1, FETCH_ROWS_MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits() -> ReadsConfig {
        ReadsConfig::default()
    }

    #[test]
    fn chunks_shrink_where_they_take_long_and_grow_again() {
        let (mut pace, limits) = (Pace::default(), limits());
        let ms = |times: u64| Duration::from_millis(limits.chunk_ms_max * times);
        for _ in 0..20 {
            pace.took(pace.rows(&limits, None), ms(4), &limits);
        }
        assert_eq!(pace.rows(&limits, None), FETCH_ROWS_FIRST);
        for _ in 0..20 {
            pace.took(pace.rows(&limits, None), ms(1) / 4, &limits);
        }
        assert_eq!(pace.rows(&limits, None), limits.chunk_rows);
        pace.took(3, ms(1) / 2, &limits);
        assert_eq!(
            pace.rows(&limits, None),
            limits.chunk_rows,
            "a table's rest"
        );
    }

    #[test]
    fn rows_a_second_bound_the_chunk_and_when_the_next_one_comes() {
        let (pace, limits, begun) = (Pace::default(), limits(), Instant::now());
        assert_eq!(pace.rows(&limits, Some(1000)), 250);
        assert_eq!(pace.rows(&limits, Some(1)), 1);
        assert_eq!(next_at(begun, 250, Some(1000)) - begun, PACED_CHUNK);
        assert_eq!(next_at(begun, 250, None), begun);
    }

    proptest! {
        #[test]
        fn a_statement_stays_within_what_is_left(
            rows in 1_usize..1000, bytes in 1_usize..1_000_000, done in 0_usize..1000,
            row in 1_usize..5000, took_ms in 0_u64..500, known: Option<u16>,
        ) {
            let bounds = Bounds {
                rows, bytes, time: Duration::from_millis(250), row_bytes: known.map(usize::from),
            };
            match bounds.next_fetch(done, done * row, Duration::from_millis(took_ms)) {
                Some(fetch) => prop_assert!(fetch >= 1 && done + fetch <= rows.max(1)),
                None => prop_assert!(done >= rows || done * row >= bytes || took_ms >= 250),
            }
        }
    }
}
