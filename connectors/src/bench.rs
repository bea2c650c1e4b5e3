//! A sink that throws events away, for the benchmarks: what a connector does without Kafka.
//!
//! Behind the feature `bench`, and there only for a process that asks for it: no configuration
//! can, and what is shipped is built without. Everything else of a life is as ever, so the source
//! is told positions that stand in no topic.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::encode::envelope::now_us;

/// Latencies that are kept; those after it are counted as events only.
const LATENCIES_MAX: usize = 1 << 20;

static ON: AtomicBool = AtomicBool::new(false);
static WITH_LATENCIES: AtomicBool = AtomicBool::new(false);
static EVENTS: AtomicU64 = AtomicU64::new(0);
static FIRST_US: AtomicI64 = AtomicI64::new(0);
static LAST_US: AtomicI64 = AtomicI64::new(0);
static LATENCIES_US: Mutex<Vec<i64>> = Mutex::new(Vec::new());

/// From now on every life of this process throws its events away. With `latencies`, the time
/// from the source's commit is noted of each.
pub fn discard_events(latencies: bool) {
    WITH_LATENCIES.store(latencies, Relaxed);
    ON.store(true, Relaxed);
}

/// What was thrown away until now.
#[derive(Debug, Clone, Serialize)]
pub struct Discarded {
    pub events: u64,
    /// When the first event came, and the last transaction with events ended; microseconds since
    /// 1970.
    pub first_us: i64,
    pub last_us: i64,
    /// From commit to here, of every event in order, if that was asked for.
    pub latencies_us: Vec<i64>,
}

/// Sums up.
#[must_use]
pub fn discarded() -> Discarded {
    let latencies = LATENCIES_US.lock().unwrap_or_else(PoisonError::into_inner);
    Discarded {
        events: EVENTS.load(Relaxed),
        first_us: FIRST_US.load(Relaxed),
        last_us: LAST_US.load(Relaxed),
        latencies_us: latencies.clone(),
    }
}

/// In a producer's place.
#[derive(Debug, Default)]
pub(crate) struct NullSink {
    latencies: bool,
    events: usize,
    bytes: usize,
}

pub(crate) fn null_sink() -> Option<NullSink> {
    ON.load(Relaxed).then(|| NullSink {
        latencies: WITH_LATENCIES.load(Relaxed),
        ..NullSink::default()
    })
}

impl NullSink {
    pub(crate) fn take(&mut self, key: &[u8], value: Option<&[u8]>) {
        if self.events == 0 && FIRST_US.load(Relaxed) == 0 {
            FIRST_US.store(now_us(), Relaxed);
        }
        self.events += 1;
        self.bytes += key.len() + value.map_or(0, <[u8]>::len);
        if self.latencies
            && let Some(committed_us) = value.and_then(committed_us)
        {
            let mut latencies = LATENCIES_US.lock().unwrap_or_else(PoisonError::into_inner);
            if latencies.len() < LATENCIES_MAX {
                latencies.push(now_us() - committed_us);
            }
        }
        std::hint::black_box(value);
    }

    pub(crate) fn commit(&mut self) {
        if self.events > 0 {
            LAST_US.store(now_us(), Relaxed);
        }
        EVENTS.fetch_add(self.events as u64, Relaxed);
        (self.events, self.bytes) = (0, 0);
    }

    pub(crate) fn events(&self) -> usize {
        self.events
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// `source.ts_us`, which stands before the event's own.
fn committed_us(event: &[u8]) -> Option<i64> {
    const NAME: &[u8] = br#","ts_us":"#;
    let at = event
        .windows(NAME.len())
        .position(|window| window == NAME)?
        + NAME.len();
    let digits = event[at..].split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_time_of_an_event_is_its_sources() {
        let event = br#"{"after":{},"source":{"ts_ms":7,"ts_us":7001,"x":1},"ts_us":9}"#;
        assert_eq!(committed_us(event), Some(7001));
        assert_eq!(committed_us(b"{}"), None);
    }
}
