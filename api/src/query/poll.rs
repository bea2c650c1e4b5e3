//! Waiting until the view has reached a position.
//!
//! One task reads the view's position for everybody who waits, and only while somebody does:
//! a thousand waiting clients cost the database as much as one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::View;
use crate::cache::Cache;
use crate::measure;
use crate::position::{Minimum, Positions};

/// Everybody who waits for a position.
#[derive(Debug)]
pub struct Waits {
    places: Semaphore,
    waiting: AtomicUsize,
    somebody: Notify,
    polled: watch::Sender<Arc<Positions>>,
}

/// What came of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Worth another look.
    Reached,
    OutOfTime,
    /// More wait already than may.
    Refused,
}

impl Waits {
    #[must_use]
    pub fn new(waits_max: usize) -> Self {
        Self {
            places: Semaphore::new(waits_max),
            waiting: AtomicUsize::new(0),
            somebody: Notify::new(),
            polled: watch::Sender::new(Arc::default()),
        }
    }

    /// Waits until the view's database has reached `minimum`, or, with `feed`, this instance's
    /// feed gets there. `feed` is for who found it below: a feed that is ahead of the database
    /// (a replica that lags) and had no cached row must not wake the same request again.
    pub async fn until(
        &self,
        minimum: &Minimum,
        feed: Option<&Cache>,
        deadline: Instant,
    ) -> Waited {
        let Ok(_place) = self.places.try_acquire() else {
            measure::wait_refused();
            return Waited::Refused;
        };
        let _guard = Waiting::begin(self);
        let mut polled = self.polled.subscribe();
        // Only what is polled from now on counts: who waits has just seen less.
        polled.mark_unchanged();
        let by_database = async {
            while polled.changed().await.is_ok() {
                if minimum.is_met_by(&polled.borrow_and_update()) {
                    return;
                }
            }
        };
        let by_feed = async {
            match feed {
                Some(cache) => cache.reaches(minimum).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = by_database => Waited::Reached,
            () = by_feed => Waited::Reached,
            () = tokio::time::sleep_until(deadline) => Waited::OutOfTime,
        }
    }

    /// Reads the view's position every `interval` while somebody waits.
    pub async fn poll(&self, view: &View, interval: Duration, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !shutdown.is_cancelled() {
            if self.waiting.load(Ordering::SeqCst) == 0 {
                tokio::select! {
                    () = self.somebody.notified() => {}
                    () = shutdown.cancelled() => return,
                }
            }
            ticks.tick().await;
            match view.positions().await {
                Ok(seen) => {
                    self.polled.send_replace(seen.positions);
                }
                // Said by the watch over the database; who waits runs out of time.
                Err(error) => tracing::debug!(%error, "cannot poll the view's position"),
            }
        }
    }
}

/// Counts who waits, also where a client goes away meanwhile.
struct Waiting<'a>(&'a Waits);

impl<'a> Waiting<'a> {
    fn begin(waits: &'a Waits) -> Self {
        waits.waiting.fetch_add(1, Ordering::SeqCst);
        waits.somebody.notify_one();
        measure::waiting(1.0);
        Self(waits)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        measure::waiting(-1.0);
    }
}
