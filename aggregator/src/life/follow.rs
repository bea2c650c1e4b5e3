//! Which sources are followed to be served, and why others are not at the moment.
//!
//! A source whose events stop within a checkpoint of several steps, since a partition has no leader
//! for example, holds a view transaction open that nobody else can use meanwhile. So it does that
//! once: then its events are read to the end of a checkpoint and passed over, and only when one has
//! come whole is it read again to be applied. Until then it costs the others nothing.

use std::time::Duration;

use kafka::follower::{FollowerError, Standing};
use links::backoff::Backoff;
use metrics::gauge;
use service::fault;

use super::{Applier, BACKOFF_FIRST, BACKOFF_MAX, now_ms};
use crate::failure::Failure;
use crate::ingest::Purpose;
use crate::telemetry;

/// How often half of the silence allowed may pass within a checkpoint before its steps are undone.
const SILENCES_MAX: u32 = 5;

/// A source that stalled within a checkpoint, and has not come whole to the end of one since.
#[derive(Debug, Default)]
pub(super) struct Stalled {
    /// Were steps of what its follower reads now passed over? Then the rest is not to be applied.
    is_passed_over: bool,
}

impl Applier {
    /// Where the source's follower goes on. A load begins now, however often it is resumed.
    pub(super) fn standing(&self, source: &str) -> Standing {
        let mut standing = self.view.standing(source);
        standing.since_ms.get_or_insert_with(now_ms);
        standing
    }

    pub(super) fn follow(&mut self, source: &str, wait: Duration) {
        let standing = self.standing(source);
        self.feeds.restart(source, Purpose::Serve, standing, wait);
        self.comes_again(source);
    }

    /// The source's follower goes on from where the view stands.
    pub(super) fn comes_again(&mut self, source: &str) {
        if let Some(stalled) = self.stalled.get_mut(source) {
            stalled.is_passed_over = false;
        }
    }

    pub(super) fn runs(&mut self, source: &str) {
        if self.is_stalled(source) || !self.running.insert(source.to_owned()) {
            return;
        }
        self.not_running.remove(source);
        if self.running.len() == self.sources.len() {
            tracing::info!("follows every source");
            self.health.ready();
        } else {
            self.say_not_running();
        }
    }

    pub(super) fn stops(&mut self, source: &str, why: String) {
        self.running.remove(source);
        self.not_running.insert(source.to_owned(), why);
        self.say_not_running();
    }

    fn say_not_running(&self) {
        let others = self.sources.iter();
        let others = others.filter(|source| !self.running.contains(*source));
        let why = others.map(|source| {
            let said = self.not_running.get(source).cloned();
            said.unwrap_or_else(|| format!("begins to follow {source}"))
        });
        self.health.not_ready(why.collect::<Vec<_>>().join("; "));
    }

    pub(super) fn failed(&mut self, source: &str, purpose: Purpose, error: &FollowerError) {
        tracing::warn!(source, %error, "cannot follow {source}: {error}");
        self.retry(source, purpose, &error.to_string());
    }

    fn retry(&mut self, source: &str, purpose: Purpose, reason: &str) {
        let backoff = self
            .backoffs
            .entry((source.to_owned(), purpose))
            .or_insert_with(|| Backoff::new(BACKOFF_FIRST, BACKOFF_MAX));
        let wait = backoff.wait();
        match purpose {
            Purpose::Serve => {
                self.stops(source, format!("cannot follow {source}: {reason}"));
                self.follow(source, wait);
            }
            Purpose::Rebuild => self.follow_rebuild(source, wait),
        }
    }

    /// What it read is committed. Only then a failure is over: one that comes back each time after
    /// a while would else be tried again at once each time.
    pub(super) fn committed(&mut self, source: &str, purpose: Purpose) {
        self.backoffs.remove(&(source.to_owned(), purpose));
    }

    /// Has it failed since its last commit?
    pub(super) fn has_failed(&self, source: &str) -> bool {
        let key = (source.to_owned(), Purpose::Serve);
        self.backoffs.contains_key(&key)
    }

    /// How often half of the silence allowed may pass: not once where it failed before and others
    /// wait.
    pub(super) fn silences_max(&mut self, source: &str) -> u32 {
        if !self.has_failed(source) || !fault::in_force("second_stall_is_short") {
            return SILENCES_MAX;
        }
        let stalled = &self.stalled;
        let is_waited_for = self
            .feeds
            .is_any_here(|other| other != source && !stalled.contains_key(other));
        if is_waited_for { 0 } else { SILENCES_MAX }
    }

    /// Its events stopped within a checkpoint, whose steps are undone.
    pub(super) fn stalls(&mut self, source: &str) {
        if fault::in_force("stalled_stands_aside") {
            self.stalled.insert(source.to_owned(), Stalled::default());
            gauge!(telemetry::STALLED, "source" => source.to_owned()).set(1.0);
        }
        self.retry(source, Purpose::Serve, "stalled within a checkpoint");
    }

    pub(super) fn is_stalled(&self, source: &str) -> bool {
        self.stalled.contains_key(source)
    }

    /// A step of a source that stalled: is it passed over?
    pub(super) fn passes_over(&mut self, source: &str) -> bool {
        let stalled = self.stalled.get_mut(source);
        stalled
            .map(|stalled| stalled.is_passed_over = true)
            .is_some()
    }

    /// A whole checkpoint of the source is here. Is it to be read again, since steps of it were
    /// passed over?
    pub(super) fn is_to_be_read_again(&mut self, source: &str) -> bool {
        let Some(Stalled { is_passed_over }) = self.stalled_no_more(source) else {
            return false;
        };
        tracing::info!(source, "{source} comes to the end of a checkpoint again");
        if is_passed_over {
            self.follow(source, Duration::ZERO);
        }
        is_passed_over
    }

    fn stalled_no_more(&mut self, source: &str) -> Option<Stalled> {
        let stalled = self.stalled.remove(source);
        if stalled.is_some() {
            gauge!(telemetry::STALLED, "source" => source.to_owned()).set(0.0);
        }
        stalled
    }

    /// What this reader has not read may be gone: a source that is not served yet begins anew,
    /// one that is is rebuilt beside what is served.
    pub(super) async fn behind(&mut self, source: &str) -> Result<(), Failure> {
        self.stalled_no_more(source);
        if self.view.serves(source) {
            let why = format!(
                "the view is too far behind {source}, Kafka no longer has every change since: \
                rebuilds it"
            );
            tracing::warn!(source, "{why}");
            self.stops(source, why);
            self.feeds.stop(source, Purpose::Serve);
            return self.rebuild(source).await;
        }
        tracing::warn!(source, "loading {source} took too long: begins anew");
        self.view.forget(source).await?;
        self.follow(source, BACKOFF_FIRST);
        Ok(())
    }
}
