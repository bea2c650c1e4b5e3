//! Rebuilds, as the applier sees them: a second follower a source, from the first record on,
//! whose events fill what is not served yet.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka::follower::Standing;
use metrics::gauge;
use service::fault;

use super::{Applier, moved_on, now_ms};
use crate::control::{self, Refused, Status};
use crate::failure::Failure;
use crate::ingest::{Item, Purpose};
use crate::telemetry;
use crate::view::Part;

impl Applier {
    /// Goes on with what another life began.
    pub(super) fn resume_rebuilds(&mut self) {
        for source in self.sources.clone() {
            if self.view.rebuilds().contains_key(&source) {
                tracing::info!(source, "goes on to rebuild {source}");
                self.follow_rebuild(&source, Duration::ZERO);
            }
        }
    }

    /// Begins to rebuild these sources, or all; those that are being rebuilt go on.
    pub(super) async fn rebuild_by_command(
        &mut self,
        sources: &[String],
    ) -> Result<Result<Vec<String>, Refused>, Failure> {
        if let Some(unknown) = sources.iter().find(|one| !self.sources.contains(one)) {
            return Ok(Err(Refused::UnknownSource {
                name: unknown.clone(),
                known: self.sources.join(", "),
            }));
        }
        let mut sources = sources.to_vec();
        if sources.is_empty() {
            sources.clone_from(&self.sources);
        }
        for source in &sources {
            if !self.view.serves(source) {
                tracing::info!(source, "{source} is being read for the first time already");
            } else {
                self.rebuild(source).await?;
            }
        }
        Ok(Ok(sources))
    }

    /// Rebuilds a source; goes on with the rebuild that is under way, which may be hours old: were it
    /// begun anew with every life, it would never end.
    pub(super) async fn rebuild(&mut self, source: &str) -> Result<(), Failure> {
        let is_under_way = self.view.rebuilds().contains_key(source);
        if is_under_way && fault::in_force("rebuild_goes_on") {
            return Ok(());
        }
        tracing::info!(source, "rebuilds {source}");
        self.begin_rebuild(source).await
    }

    async fn begin_rebuild(&mut self, source: &str) -> Result<(), Failure> {
        let standing = Standing {
            since_ms: Some(now_ms()),
            ..Standing::default()
        };
        self.rebuilt_events.remove(source);
        self.view.begin_rebuild(source, standing).await?;
        self.follow_rebuild(source, Duration::ZERO);
        Ok(())
    }

    pub(super) fn follow_rebuild(&mut self, source: &str, wait: Duration) {
        let standing = self.view.rebuilds().get(source).cloned();
        let standing = standing.unwrap_or_default();
        self.feeds.restart(source, Purpose::Rebuild, standing, wait);
    }

    pub(super) async fn take_rebuilt(&mut self, source: &str, item: Item) -> Result<(), Failure> {
        match item {
            Item::Runs => {}
            Item::Events(changes, offsets) => {
                self.loaded(source, changes.len());
                let standing = self.view.rebuilds().get(source).cloned();
                let standing = moved_on(standing.unwrap_or_default(), offsets);
                self.view.load_rebuilt(source, changes, standing).await?;
                self.committed(source, Purpose::Rebuild);
            }
            Item::Checkpoint(part) => self.rebuilt(*part).await?,
            // Nothing of it is served; it comes again.
            Item::TooOld => {}
            Item::Behind => {
                tracing::warn!(source, "rebuilding {source} took too long: begins anew");
                self.begin_rebuild(source).await?;
            }
            Item::Failed(error) => self.failed(source, Purpose::Rebuild, &error),
        }
        Ok(())
    }

    /// A whole checkpoint: serves it, unless what is served is newer.
    async fn rebuilt(&mut self, part: Part) -> Result<(), Failure> {
        let source = part.moved.source.clone();
        self.loaded(&source, part.changes.len());
        let at = part.moved.record.at();
        let served = self.view.position(&source);
        let is_behind = served.is_some_and(|served| at < served);
        if is_behind && fault::in_force("rebuild_not_behind") {
            // Only the rebuild goes on from here, so that it cannot chase what is served for ever.
            self.feeds.stop(&source, Purpose::Serve);
            let standing = part.moved.standing.clone();
            return self
                .view
                .load_rebuilt(&source, part.changes, standing)
                .await;
        }
        let differences = self.view.finish_rebuild(part).await?;
        tracing::info!(
            source,
            mirror_rows = differences.mirror_rows,
            unified_rows = differences.unified_rows,
            "{source} is rebuilt and served at {at}: {} of its rows and {} unified rows differed",
            differences.mirror_rows,
            differences.unified_rows
        );
        self.rebuilt_events.remove(&source);
        self.feeds.stop(&source, Purpose::Rebuild);
        self.follow(&source, Duration::ZERO);
        Ok(())
    }

    /// How far the source's rebuild is, if one is under way.
    fn progress(&self, source: &str) -> Option<control::Rebuild> {
        let standing = self.view.rebuilds().get(source)?;
        let read = standing.offsets.values().flat_map(BTreeMap::values).sum();
        Some(control::Rebuild {
            events: self.rebuilt_events.get(source).copied().unwrap_or(0),
            offsets_read: read,
            offsets: self.feeds.offsets_wanted(source, Purpose::Rebuild),
        })
    }

    /// Says in the metrics how far rebuilds are.
    pub(super) fn say_progress(&self) {
        for source in &self.sources {
            let progress = self.progress(source);
            let read = progress.as_ref().map_or(0, |rebuild| rebuild.offsets_read);
            let all = progress.and_then(|rebuild| rebuild.offsets).unwrap_or(0);
            #[expect(clippy::cast_precision_loss, reason = "gauges")]
            let (read, all) = (read as f64, all as f64);
            gauge!(telemetry::REBUILD_READ, "source" => source.clone()).set(read);
            gauge!(telemetry::REBUILD_OFFSETS, "source" => source.clone()).set(all);
        }
    }

    fn loaded(&mut self, source: &str, events: usize) {
        *self.rebuilt_events.entry(source.to_owned()).or_default() += events as u64;
    }

    fn suspended_of(&self, source: &str) -> Vec<control::Suspended> {
        let suspended = self.view.suspended();
        suspended
            .filter(|(table, _)| table.source == source)
            .map(|(table, is_resumed)| control::Suspended {
                table: table.captured.to_owned(),
                is_resumed,
            })
            .collect()
    }

    /// What `/status` says.
    pub(super) fn status(&self) -> Status {
        let sources = self.sources.iter().map(|source| control::Source {
            source: source.clone(),
            position: self.view.position(source).map(|at| at.to_string()),
            follows: self.running.contains(source),
            is_stalled: self.is_stalled(source),
            rebuild: self.progress(source),
            suspended: self.suspended_of(source),
        });
        Status {
            state: String::new(),
            writes: true,
            revision: Some(self.view.revision().to_string()),
            quarantined: Some(self.view.quarantined()),
            sources: sources.collect(),
            recompute: self.recompute.clone(),
            sweep: None,
        }
    }
}
