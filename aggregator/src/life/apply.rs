//! How what the followers give becomes view transactions.

use std::time::{Duration, Instant};

use kafka::Offsets;
use metrics::counter;
use service::fault;

use super::{Applier, count};
use crate::failure::Failure;
use crate::ingest::{Change, Item, Purpose};
use crate::telemetry;
use crate::view::Part;

impl Applier {
    /// A checkpoint in one step; with others that are here already.
    pub(super) async fn apply(&mut self, part: Part) -> Result<(), Failure> {
        self.runs(&part.moved.source);
        let began = Instant::now();
        if !self.view.serves(&part.moved.source) {
            let moved = part.moved.clone();
            count(&moved.source, part.changes.len());
            tracing::info!(
                source = moved.source,
                "computes the view with {}",
                moved.source
            );
            self.view.serve(part).await?;
            tracing::info!(
                source = moved.source,
                "serves {} at {}",
                moved.source,
                moved.record.at()
            );
            self.applied(&[moved], began);
            return Ok(());
        }
        let (view, stalled) = (&self.view, &self.stalled);
        let parts = self.feeds.more(part, self.step_events_max, |source| {
            view.serves(source) && !stalled.contains_key(source)
        });
        let moves: Vec<_> = parts.iter().map(|part| part.moved.clone()).collect();
        for part in &parts {
            count(&part.moved.source, part.changes.len());
        }
        // Those that came along are known to run, too.
        for moved in &moves {
            self.runs(&moved.source);
        }
        self.view.apply(parts).await?;
        self.applied(&moves, began);
        Ok(())
    }

    /// A checkpoint of several steps, as one view transaction. Those of other sources that are here
    /// go along: what several touch is computed once, and none waits for the other.
    pub(super) async fn apply_in_steps(
        &mut self,
        source: &str,
        first: Vec<Change>,
    ) -> Result<(), Failure> {
        let began = Instant::now();
        let mut parts: Vec<Part> = Vec::new();
        let mut next = Some((source.to_owned(), Item::Events(first, Offsets::new())));
        while let Some((source, item)) = next {
            let part = match item {
                Item::Events(first, _) => self.steps(&source, first).await?,
                Item::Checkpoint(part) => {
                    self.runs(&source);
                    count(&source, part.changes.len());
                    Some(*part)
                }
                _ => None,
            };
            let Some(part) = part else {
                if fault::in_force("undone_steps_come_again") {
                    // The others' steps were undone with its own.
                    for part in &parts {
                        self.follow(&part.moved.source, Duration::ZERO);
                    }
                }
                return Ok(());
            };
            parts.push(part);
            let (view, backoffs, stalled) = (&self.view, &self.backoffs, &self.stalled);
            next = self.feeds.waiting(|source| {
                let is_taken = parts.iter().any(|part| part.moved.source == source);
                // One that failed just now goes alone, and can undo only its own.
                let failed = backoffs.contains_key(&(source.to_owned(), Purpose::Serve));
                let failed = failed || stalled.contains_key(source);
                view.serves(source) && !is_taken && !failed
            });
        }
        let moves: Vec<_> = parts.iter().map(|part| part.moved.clone()).collect();
        self.view.apply(parts).await?;
        self.applied(&moves, began);
        Ok(())
    }

    /// The steps of a source's checkpoint; the part that completes it. None where it cannot be
    /// completed: then all steps are undone.
    async fn steps(&mut self, source: &str, first: Vec<Change>) -> Result<Option<Part>, Failure> {
        self.runs(source);
        count(source, first.len());
        self.view.step(source, first).await?;
        let mut silences = 0;
        loop {
            // The server would end a transaction that is idle for longer.
            let next = tokio::time::timeout(self.silence_max / 2, self.feeds.next_of(source));
            match next.await {
                Ok(Some(Item::Events(changes, _))) => {
                    silences = 0;
                    count(source, changes.len());
                    self.view.step(source, changes).await?;
                }
                Ok(Some(Item::Checkpoint(part))) => {
                    count(source, part.changes.len());
                    return Ok(Some(*part));
                }
                Ok(Some(Item::Runs)) => {}
                Ok(Some(Item::TooOld)) => {
                    self.undo(source, "too_old").await?;
                    return Ok(None);
                }
                Ok(Some(Item::Behind)) => {
                    self.undo(source, "behind").await?;
                    self.behind(source).await?;
                    return Ok(None);
                }
                Ok(Some(Item::Failed(error))) => {
                    self.undo(source, "failed").await?;
                    self.failed(source, Purpose::Serve, &error);
                    return Ok(None);
                }
                Ok(None) => return Err(Failure::TaskEnded),
                Err(_) if silences < self.silences_max(source) => {
                    silences += 1;
                    // A writer that is paused does not say this.
                    self.view.stay().await?;
                }
                Err(_) => {
                    let silent_ms = (self.silence_max / 2 * (silences + 1)).as_millis();
                    tracing::warn!(
                        source,
                        "{source} stalled within a checkpoint for {silent_ms} ms: undoes it"
                    );
                    self.undo(source, "stalled").await?;
                    self.stalls(source);
                    return Ok(None);
                }
            }
        }
    }

    /// Undoes the open view transaction for the sake of a source.
    async fn undo(&mut self, source: &str, reason: &'static str) -> Result<(), Failure> {
        let source = source.to_owned();
        counter!(telemetry::STEPS_UNDONE, "source" => source, "reason" => reason).increment(1);
        self.view.undo().await
    }
}
